//! See `control`.
