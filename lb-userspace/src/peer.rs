//! The channel between nodes: who lives, whether they agree, and each other's connections.
//!
//! - `wire` is what datagrams look like, and who can make them.
//! - `window`, `stream` and `session` are the pure machine for one other node.
//!
//! All nodes of the configuration talk to each other over UDP, each from its own address.

pub mod session;
pub mod stream;
pub mod window;
pub mod wire;
