//! Who owns the floating addresses. With one node: this one does.

pub mod address;
pub mod announce;
