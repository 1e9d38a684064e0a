//! See `vrrp`.
