//! `PostgreSQL`: who is the primary, who may be read from, and how that changes safely.
//!
//! [`monitor`] asks the servers over SQL; [`failover`] is the pure machine that decides, of what they say,
//! of what the operator wants and of what the other balancers say; [`route`] makes of both who serves
//! which of the two services.

pub mod choose;
pub mod failover;
pub mod lsn;
pub mod record;
pub mod sample;
pub mod sync;
