//! Which slots of `MAGLEV` are free.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// How long a freed range is left alone: a packet may still read it. A packet is in the program for
/// microseconds; this is much more, and little enough that tables can follow a flapping backend.
const QUARANTINE: Duration = Duration::from_secs(1);

/// Allocator of runs of slots: the shortest free run that is long enough, the first of equals. Each
/// step takes time by the logarithm of the number of free runs.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// Start to length; never adjacent to one another.
    free: BTreeMap<u32, u32>,
    /// The same by length and start.
    by_len: BTreeSet<(u32, u32)>,
    /// Start, length, and when it may be used again; the earliest first.
    resting: VecDeque<(u32, u32, Duration)>,
}

impl Ranges {
    /// `total` free slots.
    pub fn new(total: u32) -> Self {
        let mut ranges =
            Self { free: BTreeMap::new(), by_len: BTreeSet::new(), resting: VecDeque::new() };
        ranges.add(0, total);
        ranges
    }

    /// Takes a run of `len` slots, if there is one that has rested long enough.
    pub fn take(&mut self, len: u32, now: Duration) -> Option<u32> {
        self.wake(now);
        let &(size, start) = self.by_len.range((len, 0)..).next()?;
        self.remove(start, size);
        self.add(start + len, size - len);
        Some(start)
    }

    /// Takes this very run, for a table that a previous daemon wrote. False if a part of it is not
    /// free.
    pub fn take_at(&mut self, start: u32, len: u32) -> bool {
        let Some((&from, &size)) = self.free.range(..=start).next_back() else {
            return false;
        };
        let (Some(end), until) = (start.checked_add(len), from + size) else {
            return false;
        };
        if end > until {
            return false;
        }
        self.remove(from, size);
        self.add(from, start - from);
        self.add(end, until - end);
        true
    }

    /// Gives a run back that a service pointed to until now. It may be used again after a while.
    pub fn give_back(&mut self, start: u32, len: u32, now: Duration) {
        if len > 0 {
            self.resting.push_back((start, len, now + QUARANTINE));
        }
    }

    /// Gives a run back that no service has ever pointed to.
    pub fn give_back_unused(&mut self, start: u32, len: u32) {
        let (mut start, mut len) = (start, len);
        if len == 0 {
            return;
        }
        if let Some((&before, &size)) = self.free.range(..start).next_back()
            && before + size == start
        {
            self.remove(before, size);
            (start, len) = (before, size + len);
        }
        if let Some(&size) = self.free.get(&(start + len)) {
            self.remove(start + len, size);
            len += size;
        }
        self.add(start, len);
    }

    fn add(&mut self, start: u32, len: u32) {
        if len > 0 {
            self.free.insert(start, len);
            self.by_len.insert((len, start));
        }
    }

    fn remove(&mut self, start: u32, len: u32) {
        self.free.remove(&start);
        self.by_len.remove(&(len, start));
    }

    fn wake(&mut self, now: Duration) {
        while let Some((start, len, _)) = self.resting.pop_front_if(|(_, _, until)| *until <= now) {
            self.give_back_unused(start, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ZERO: Duration = Duration::ZERO;

    #[test]
    fn a_freed_run_rests() {
        let mut ranges = Ranges::new(100);
        assert_eq!(ranges.take(60, ZERO), Some(0));
        ranges.give_back(0, 60, Duration::from_millis(500));
        assert_eq!(ranges.take(60, Duration::from_millis(1499)), None);
        assert_eq!(ranges.take(100, Duration::from_millis(1500)), Some(0), "and it is whole again");
    }

    #[test]
    fn adopted_runs_are_taken_where_they_lie() {
        let mut ranges = Ranges::new(100);
        assert!(ranges.take_at(10, 20));
        assert!(!ranges.take_at(29, 2), "overlaps");
        assert!(!ranges.take_at(90, 11), "past the end");
        assert!(!ranges.take_at(u32::MAX, 2), "overflows");
        assert_eq!(ranges.take(10, ZERO), Some(0));
        assert_eq!(ranges.take(70, ZERO), Some(30));
        assert_eq!(ranges.take(1, ZERO), None);
    }

    proptest! {
        #[test]
        fn runs_never_overlap(script in prop::collection::vec((1..40_u32, 0..4_u8), 1..80)) {
            let mut ranges = Ranges::new(200);
            let mut held: Vec<(u32, u32)> = Vec::new();
            let mut now = ZERO;
            for (len, action) in script {
                now += Duration::from_millis(300);
                if action > 0 {
                    if let Some(start) = ranges.take(len, now) {
                        for &(other, size) in &held {
                            prop_assert!(start + len <= other || other + size <= start);
                        }
                        prop_assert!(start + len <= 200);
                        held.push((start, len));
                    }
                } else if let Some((start, len)) = held.pop() {
                    ranges.give_back(start, len, now);
                }
            }
            for (start, len) in held {
                ranges.give_back(start, len, now);
            }
            prop_assert_eq!(ranges.take(200, now + QUARANTINE), Some(0));
        }
    }
}
