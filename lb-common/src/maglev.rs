//! Slot arithmetic of Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4).

/// Table sizes to choose from: primes, as the permutation of slots needs.
pub const SIZES: [u32; 6] = [251, 1021, 4093, 16_381, 32_749, 65_521];

/// Size of the table for `backends` backends: at least 100 slots for each, as the paper advises
/// for a share within 1 %, bounded by the largest size.
#[must_use]
pub const fn table_size(backends: u32) -> u32 {
    let mut index = 0;
    while index < SIZES.len() - 1 {
        if SIZES[index] >= backends.saturating_mul(100) {
            return SIZES[index];
        }
        index += 1;
    }
    SIZES[SIZES.len() - 1]
}

/// The `step`-th slot that a backend prefers, in a table of `size` slots.
///
/// `offset_seed` and `skip_seed` are two independent hashes of the backend's name.
#[must_use]
pub const fn preference(offset_seed: u32, skip_seed: u32, step: u32, size: u32) -> u32 {
    let offset = (offset_seed % size) as u64;
    let skip = (skip_seed % (size - 1) + 1) as u64;
    ((offset + skip * step as u64) % size as u64) as u32
}

/// The slot of a hash in a table of `size` slots, without division: the high half of the product
/// (Lemire, "Fast Random Integer Generation in an Interval", 2019).
#[must_use]
#[inline(always)]
pub const fn slot(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}
