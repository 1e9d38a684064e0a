//! The data path in the kernel: packets through the loaded program, one by one, and
//! the daemon's side of it. Needs root.

mod attach;
mod budget;
mod cases;
mod churn;
mod cookies;
mod cut;
mod decap;
mod differential;
mod elder;
mod filters;
mod layout;
mod lease;
mod nodes;
mod pins;
mod ports;
mod privilege;
mod replay;
mod trace;
