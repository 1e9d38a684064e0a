//! What tests run the data path with: state in plain maps, packets, and what to expect of them.
//!
//! Behind the feature `fake`, which the BPF program never has: this module allocates and panics as
//! tests do.

pub mod fixtures;
pub mod frame;
pub mod outcome;
pub mod outer;
pub mod setup;
pub mod tables;
pub mod valid;

pub use frame::{Error, Frame};
pub use outcome::{Counter, Outcome, Xdp, run};
pub use setup::{Net, Setup};
pub use tables::{FakeTables, News, Step, TICK_NS};
pub use valid::assert_valid;
