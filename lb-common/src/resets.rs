//! What is noted of the resets that a socket gets.

/// The program, and its function's name in the object.
pub const PROGRAM: &str = "ballast_resets";

/// Socket cookie to the kinds of resets it got: [`BARE`], [`ACKNOWLEDGING`], or both.
pub const MAP: &str = "RESETS";

/// Most sockets in [`MAP`]; the oldest are forgotten.
pub const MOST: u32 = 16_384;

/// A reset without an acknowledgement: the answer of a host that has no such connection (RFC 9293,
/// section 3.10.7.1).
pub const BARE: u32 = 1;

/// A reset that acknowledges: a connection that was there has been broken off.
pub const ACKNOWLEDGING: u32 = 2;
