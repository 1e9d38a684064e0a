//! Decides what the kernel's tables should say, and makes them say it.
//!
//! Life of a change: an input (a probe's report, a next hop, an operator's wish, a reload, time)
//! goes to [`state::State`]; [`verdict::judge`] says for each backend whether it serves and why;
//! [`plan::Planner`] turns the difference from what stands in the maps into a list of writes;
//! [`task`] applies them. The first three are pure: inputs and `now` in, decisions out.
//!
//! **Architecture Invariant:** `plan` alone decides what is written to the maps, and in which order.

pub mod daemon;
pub mod kernel;
pub mod lift;
pub mod plan;
pub mod ranges;
pub mod reset;
pub mod sampled;
pub mod state;
pub mod status;
pub mod table;
pub mod task;
pub mod verdict;
pub mod wishes;
