//! Decides what the kernel's tables should say, and makes them say it.

pub mod plan;
pub mod state;
pub mod table;
pub mod task;
