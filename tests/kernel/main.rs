//! The data path in the kernel: packets through the loaded program, one by one. Needs root.

mod budget;
mod cases;
mod differential;
mod layout;
mod ports;
mod replay;
