//! Simulated failures: the machines that decide, on nodes with clocks, a network and faults that all
//! follow from one number.
//!
//! `cargo xtask test sim` runs thousands of such numbers, the seeds. One that breaks an invariant is
//! printed with the command that plays it again and tells every step.

mod echo;
mod seeds;
mod vrrp;
mod world;
