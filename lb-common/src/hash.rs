//! Hashes that both sides compute: cheap in a BPF program, spread well over the low bits.

/// Mixes two words to 32 bits (the finaliser of `MurmurHash3`, Appleby 2011).
#[must_use]
#[inline(always)]
pub const fn mix(a: u64, b: u64) -> u32 {
    let mut h = a ^ b.rotate_left(29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (h >> 32) as u32
}

/// Bit of an IPv4 address in `VIPS`.
///
/// `address` is the four bytes as they lie in the packet, read as a native word.
#[must_use]
#[inline(always)]
pub const fn vip_bit4(address: u32) -> u32 {
    address.wrapping_mul(0x9e37_79b1) >> (32 - crate::limits::VIP_BITS.trailing_zeros())
}

/// Bit of an IPv6 address in `VIPS`; `high` and `low` are its halves as native words.
#[must_use]
#[inline(always)]
pub const fn vip_bit6(high: u64, low: u64) -> u32 {
    let folded = (high ^ low.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (folded >> 32) as u32 >> (32 - crate::limits::VIP_BITS.trailing_zeros())
}
