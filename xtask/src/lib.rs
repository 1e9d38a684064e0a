//! ballast's own tools, as a library: the lab is used by the tests too.

pub mod bench;
