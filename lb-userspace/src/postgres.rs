//! `PostgreSQL`: who is the primary, who may be read from, and how that changes safely.
//!
//! ```text
//!  monitor ──── samples ───▶ failover ──── actions ───▶ work (SQL), store (disk), peers
//!                               │
//!                            gate, samples ───▶ route ───▶ control::verdict ───▶ the kernel's tables
//! ```
//!
//! [`monitor`] asks the servers over SQL. [`failover`] is the pure machine that decides, of what they
//! say, of what the operator wants and of what the other balancers say. [`route`] makes of both who
//! serves which of the two services. [`task`] runs all that for one database, [`databases`] for each.

pub mod choose;
pub mod databases;
pub mod etcd;
pub mod failover;
#[cfg(test)]
mod fixture;
pub mod handover;
pub mod losses;
pub mod lsn;
pub mod monitor;
pub mod peers;
pub mod record;
pub mod rejoin;
pub mod route;
pub mod sample;
pub mod setup;
pub mod status;
pub mod store;
pub mod sync;
pub mod task;
pub mod work;
