//! ballast's own tools, as a library: the lab is used by the tests too.
//!
//! Nothing here depends on the daemon or on the kernel program, so that it builds on a machine that
//! has none of their tools yet: [`setup`] installs them.

pub mod bench;
pub mod bpffs;
pub mod build;
pub mod cli;
pub mod drill;
pub mod interrupt;
pub mod lab;
pub mod run;
pub mod setup;
pub mod shell;
pub mod test;
pub mod tidy;
pub mod vm;
pub mod wait;
