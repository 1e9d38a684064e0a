//! See `health`.
