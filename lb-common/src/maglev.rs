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

/// Slots for each backend where there is room: the share of each is then right within 1 %.
pub const FULL_DENSITY: u32 = 100;

/// Table sizes where room is short: primes again, each about twice the one before.
pub const SPARSE_SIZES: [u32; 11] =
    [61, 127, 251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521];

/// Size of the table for `backends` backends with at least `density` slots for each. All have one
/// slot more or less than another of the same weight, so a share is wrong by at most
/// `1 / density`: 2 % with 50, 10 % with 10.
///
/// From [`FULL_DENSITY`] up it is [`table_size`].
#[must_use]
pub const fn table_size_within(backends: u32, density: u32) -> u32 {
    if density >= FULL_DENSITY {
        return table_size(backends);
    }
    let mut index = 0;
    while index < SPARSE_SIZES.len() - 1 {
        if SPARSE_SIZES[index] >= backends.saturating_mul(density) {
            return SPARSE_SIZES[index];
        }
        index += 1;
    }
    SPARSE_SIZES[SPARSE_SIZES.len() - 1]
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

/// Sizes of the tables of steered services: powers of two, so that each slot of a table is a whole number
/// of slots of any larger one, and every packet of a slot stays together when a table grows.
pub const STEERED_SIZES: [u32; 3] = [4096, 16_384, 65_536];

/// Size of a steered service's table for `backends` backends: at least 100 slots for each, bounded by
/// the largest size.
#[must_use]
pub const fn steered_size(backends: u32) -> u32 {
    let mut index = 0;
    while index < STEERED_SIZES.len() - 1 {
        if STEERED_SIZES[index] >= backends.saturating_mul(100) {
            return STEERED_SIZES[index];
        }
        index += 1;
    }
    STEERED_SIZES[STEERED_SIZES.len() - 1]
}

/// [`preference`] for a table whose size is a power of two: an odd skip meets every slot.
#[must_use]
pub const fn steered_preference(offset_seed: u32, skip_seed: u32, step: u32, size: u32) -> u32 {
    offset_seed.wrapping_add((skip_seed | 1).wrapping_mul(step)) & (size - 1)
}

/// The slot of a hash in a table of `size` slots, without division: the high half of the product
/// (Lemire, "Fast Random Integer Generation in an Interval", 2019).
#[must_use]
#[inline(always)]
pub const fn slot(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{
        FULL_DENSITY, SIZES, SPARSE_SIZES, STEERED_SIZES, preference, slot, steered_preference,
        steered_size, table_size, table_size_within,
    };

    #[test]
    fn sizes_are_primes_in_order() {
        for size in SIZES.into_iter().chain(SPARSE_SIZES) {
            assert!((2..size).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
        assert!(SIZES.is_sorted() && SPARSE_SIZES.is_sorted());
    }

    #[test]
    fn a_table_has_a_hundred_slots_for_each_backend_while_there_are_larger_ones() {
        assert_eq!(table_size(0), 251);
        for backends in 1..=655 {
            let size = table_size(backends);
            assert!(size >= backends * 100);
            assert!(SIZES.iter().all(|other| *other >= size || *other < backends * 100));
        }
        assert_eq!(table_size(656), 65_521);
        assert_eq!(table_size(u32::MAX), 65_521);
    }

    #[test]
    fn a_sparse_table_has_as_many_slots_for_each_backend_as_were_asked_for() {
        for backends in [1, 2, 7, 100, 655] {
            assert_eq!(table_size_within(backends, FULL_DENSITY), table_size(backends));
            for density in [5, 10, 20, 50] {
                let size = table_size_within(backends, density);
                assert!(size >= backends * density, "{backends} {density}");
                assert!(size <= table_size(backends), "{backends} {density}");
            }
        }
        assert_eq!(table_size_within(100, 10), 1021);
        assert_eq!(table_size_within(u32::MAX, 5), 65_521);
    }

    #[test]
    fn preferences_name_every_slot_once() {
        for size in [251, 1021] {
            for seeds in [(0, 0), (1, u32::MAX), (u32::MAX, size - 2), (12_345, 67_890)] {
                let slots: HashSet<_> =
                    (0..size).map(|step| preference(seeds.0, seeds.1, step, size)).collect();
                assert_eq!(slots.len(), size as usize);
                assert!(slots.iter().all(|slot| *slot < size));
            }
        }
    }

    #[test]
    fn steered_preferences_name_every_slot_once() {
        for seeds in [(0, 0), (1, u32::MAX), (u32::MAX, 4094), (12_345, 67_890)] {
            let slots: HashSet<_> =
                (0..4096).map(|step| steered_preference(seeds.0, seeds.1, step, 4096)).collect();
            assert_eq!(slots.len(), 4096);
        }
    }

    #[test]
    fn a_slot_of_a_steered_table_is_whole_slots_of_a_larger_one() {
        assert_eq!([0, 40, 41, 163, 164, u32::MAX].map(steered_size), {
            let [small, middle, large] = STEERED_SIZES;
            [small, small, middle, middle, large, large]
        });
        for hash in (0..=u32::MAX).step_by(999_983).chain([u32::MAX]) {
            for [small, large] in [[4096, 16_384], [4096, 65_536], [16_384, 65_536]] {
                assert_eq!(slot(hash, large) / (large / small), slot(hash, small));
            }
        }
    }

    #[test]
    fn slots_divide_the_hashes_evenly() {
        for size in [1, 3, 251, 65_521] {
            assert_eq!(slot(0, size), 0);
            assert_eq!(slot(u32::MAX, size), size - 1);
            // The first hash of a slot is the one where the product reaches it.
            for wanted in 1..size.min(500) {
                let first = (u64::from(wanted) << 32).div_ceil(u64::from(size)) as u32;
                assert_eq!((slot(first - 1, size), slot(first, size)), (wanted - 1, wanted));
            }
        }
    }
}
