//! What the data path needs from the kernel.

pub(crate) mod atomic;
pub(crate) mod clock;
mod cookie;
pub(crate) mod elder;
pub(crate) mod maps;
pub(crate) mod tables;
pub(crate) mod trace;
