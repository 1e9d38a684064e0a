//! See `dataplane`.
