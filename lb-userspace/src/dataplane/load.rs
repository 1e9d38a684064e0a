//! The program's object file, and how it is loaded.

/// The object that the build put into this binary. Aligned, because the ELF reader reads words.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ballast-xdp"));

/// Where the build left the programs that the benchmark measures ours against. A path, so that the
/// daemon does not carry them.
pub const FLOORS_PATH: &str = concat!(env!("OUT_DIR"), "/ballast-floors");
