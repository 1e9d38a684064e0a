//! The contract between the kernel program and the daemon.
//!
//! Everything that both sides must agree on, and nothing else: the layout of each map's key and
//! value, the names and sizes of the maps, the reasons a packet is counted under, and the hashing
//! that turns a packet into a slot. `no_std`, no dependencies (aya only behind `user`, for `Pod`).
//!
//! A change here is a change of the map ABI: raise [`limits::ABI_VERSION`].
#![cfg_attr(not(test), no_std)]

mod map_type;

pub mod backend;
pub mod clock;
pub mod decap;
pub mod elder;
pub mod event;
pub mod flow;
pub mod hash;
pub mod lease;
pub mod limits;
pub mod maglev;
pub mod names;
pub mod news;
pub mod reason;
pub mod resets;
pub mod service;
pub mod source;
pub mod stats;
pub mod trace;
