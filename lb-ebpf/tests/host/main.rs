//! The data path on the host, against state in plain maps.

mod agree;
mod balance;
mod bounds;
mod churn;
mod conversation;
mod cookies;
mod counts;
mod driver;
mod eviction;
mod icmp;
mod lifecycle;
mod nodes;
mod ports;
mod races;
mod replay;
mod resets;
mod steering;
mod trace;
mod tunnels;
