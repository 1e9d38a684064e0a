//! How full the half-open tables are.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context as _;
use aya::maps::MapInfo;
use lb_common::names;

/// Entries that fit into the smaller of the half-open tables, by their pins.
pub(super) fn room(pins: &Path) -> anyhow::Result<u32> {
    let room = |name: &str| {
        let info = MapInfo::from_pin(pins.join(name));
        info.map(|info| info.max_entries())
            .with_context(|| format!("look at the pinned map {name}"))
    };
    Ok(room(names::HALF_OPEN)?.min(room(names::HALF_OPEN6)?))
}

/// What was added to counts by backend.
pub(super) fn added(before: &BTreeMap<u32, u64>, after: &BTreeMap<u32, u64>) -> BTreeMap<u32, u64> {
    let more = |(id, count): (&u32, &u64)| {
        let more = count - before.get(id).copied().unwrap_or(0);
        (more > 0).then_some((*id, more))
    };
    after.iter().filter_map(more).collect()
}

/// How full the fuller table is, by the entries of IPv4 and those of both.
pub(super) fn percent(v4: &BTreeMap<u32, u64>, both: &BTreeMap<u32, u64>, room: u32) -> u64 {
    let v4: u64 = v4.values().sum();
    let v6 = both.values().sum::<u64>() - v4;
    v4.max(v6) * 100 / u64::from(room.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuller_table_counts() {
        let before = BTreeMap::from([(1, 10), (2, 10)]);
        let v4 = added(&before, &BTreeMap::from([(1, 15), (2, 10), (3, 25)]));
        assert_eq!(v4, BTreeMap::from([(1, 5), (3, 25)]));
        assert_eq!(percent(&v4, &v4, 60), 50);
        let both = BTreeMap::from([(1, 5), (3, 25), (4, 54)]);
        assert_eq!(percent(&v4, &both, 60), 90);
        assert_eq!(percent(&BTreeMap::new(), &BTreeMap::new(), 60), 0);
    }
}
