//! The data path.
#![cfg_attr(not(test), no_std)]
