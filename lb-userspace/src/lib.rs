//! The control plane: keeps the maps of the kernel program true.

pub mod admin;
pub mod alert;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod events;
pub mod health;
mod memory;
pub mod net;
pub mod peer;
pub mod postgres;
pub mod proxy;
pub mod top;
pub mod trace;
mod trust;
pub mod vrrp;

#[cfg(test)]
mod scratch;
