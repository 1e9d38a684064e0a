//! See `config`.
