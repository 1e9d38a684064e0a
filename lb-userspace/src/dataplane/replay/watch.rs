//! Whether some backend owes answers, by its counters alone.
//!
//! Attempts that were counted before the backend's patience ago, less all that have been settled in any
//! way: while that is more than 0, SYNs wait too long. Only it does not stay at 0 for good (a client
//! that gives up settles nothing, a late answer settles twice). So what is left when the fewest are on
//! their way, or after a look at the entries, is taken for that, and only more is news. A look may be
//! wrong about what it leaves, so while connections come, and anything may be owed, it is repeated.

use std::collections::{BTreeMap, VecDeque};

/// A backend that got no connection for so long is not watched closely, nanoseconds.
const CLOSE_NS: u64 = 2_000_000_000;

/// A look is repeated after so long, nanoseconds.
const AGAIN_NS: u64 = 100_000_000;

/// Points of a backend's past that are kept.
const KEPT: usize = 64;

/// What is known of each backend.
#[derive(Debug, Default)]
pub(super) struct Watch {
    backends: BTreeMap<u32, Seen>,
    again: bool,
    looked_ns: u64,
}

#[derive(Debug)]
struct Seen {
    /// When how many attempts were counted; the first is the last one before the patience ago.
    past: VecDeque<(u64, u64)>,
    /// Attempts that are old enough, less those that are settled.
    owed: i64,
    /// As much is not news.
    known: i64,
    /// The least that ever was.
    floor: i64,
}

impl Watch {
    /// Forgets the backends that are not so.
    pub(super) fn keep(&mut self, is_so: impl Fn(u32) -> bool) {
        self.backends.retain(|id, _| is_so(*id));
    }

    /// Takes a backend's counters: attempts, and those that were settled.
    pub(super) fn see(
        &mut self,
        id: u32,
        now_ns: u64,
        patience_ns: u64,
        attempts: u64,
        settled: u64,
    ) {
        let new = || Seen {
            past: VecDeque::from([(now_ns, attempts)]),
            owed: owed(attempts, settled),
            // Some may wait already: the first look finds out.
            known: owed(attempts, settled).min(0),
            floor: owed(attempts, settled),
        };
        let seen = self.backends.entry(id).or_insert_with(new);
        let (last_ns, last) = seen.past.back().copied().unwrap_or((now_ns, attempts));
        if attempts < last {
            // Another backend has the identifier now.
            *seen = new();
            return;
        }
        // A long patience is divided into fewer points.
        let is_point = seen.past.len() < KEPT || now_ns - last_ns >= patience_ns / KEPT as u64;
        if attempts > last && is_point {
            seen.past.push_back((now_ns, attempts));
        }
        let old_enough = now_ns.saturating_sub(patience_ns);
        while seen.past.get(1).is_some_and(|(at, _)| *at <= old_enough) {
            seen.past.pop_front();
        }
        let old = seen.past.front().map_or(attempts, |(_, attempts)| *attempts);
        seen.owed = owed(old, settled);
        seen.known = seen.known.min(owed(attempts, settled));
        seen.floor = seen.floor.min(owed(attempts, settled));
    }

    /// Whether a look at the entries is due; if so, it begins now.
    pub(super) fn begin(&mut self, now_ns: u64) -> bool {
        let repeat = now_ns.saturating_sub(self.looked_ns) >= AGAIN_NS;
        let mut due = std::mem::take(&mut self.again);
        for seen in self.backends.values_mut() {
            due |= seen.owed > seen.known
                || (repeat && seen.owed > seen.floor && seen.is_busy(now_ns));
            seen.known = seen.known.max(seen.owed);
        }
        if due {
            self.looked_ns = now_ns;
        }
        due
    }

    /// A SYN to the backend is settled by the look that goes on: it is not left after it.
    pub(super) fn settled(&mut self, id: u32) {
        if let Some(seen) = self.backends.get_mut(&id) {
            seen.known -= 1;
        }
    }

    /// Another look is due.
    pub(super) fn again(&mut self) {
        self.again = true;
    }

    /// Whether any backend has got a connection lately.
    pub(super) fn is_busy(&self, now_ns: u64) -> bool {
        self.again || self.backends.values().any(|seen| seen.is_busy(now_ns))
    }
}

impl Seen {
    fn is_busy(&self, now_ns: u64) -> bool {
        self.past.back().is_some_and(|(at, _)| now_ns.saturating_sub(*at) < CLOSE_NS)
    }
}

fn owed(attempts: u64, settled: u64) -> i64 {
    attempts.wrapping_sub(settled).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const PATIENCE: u64 = 200 * MS;

    /// Sees a backend every 20 ms, with the counters that `counters` gives for the millisecond.
    fn play(
        watch: &mut Watch,
        from_ms: u64,
        to_ms: u64,
        counters: impl Fn(u64) -> (u64, u64),
    ) -> Vec<u64> {
        let mut due = Vec::new();
        for ms in (from_ms..to_ms).step_by(20) {
            let (attempts, settled) = counters(ms);
            watch.see(7, ms * MS, PATIENCE, attempts, settled);
            if watch.begin(ms * MS) {
                due.push(ms);
            }
        }
        due
    }

    #[test]
    fn answers_within_the_patience_are_no_news() {
        let mut watch = Watch::default();
        // A connection each millisecond, answered 100 ms later.
        let due = play(&mut watch, 0, 5000, |ms| (ms, ms.saturating_sub(100)));
        assert_eq!(due, [0; 0]);
        assert!(watch.is_busy(5000 * MS));
        assert!(!watch.is_busy(9000 * MS));
    }

    #[test]
    fn a_silent_backend_is_found_when_its_patience_is_over() {
        let mut watch = Watch::default();
        let silent = |ms: u64| (ms / 10, ms.min(1000) / 10);
        let due = play(&mut watch, 0, 2000, silent);
        assert_eq!(due.first(), Some(&1220), "{due:?}");
        // And again as long as there are more.
        assert!(due.len() > 30, "{due:?}");
    }

    #[test]
    fn as_many_are_found_as_come() {
        // Each is settled by the look that finds it, and by then as many are on their way again.
        let mut watch = Watch::default();
        let mut settled = 0;
        let mut looks = 0;
        for ms in (0..4000).step_by(20) {
            let attempts = 12 * (ms / 200);
            watch.see(7, ms * MS, PATIENCE, attempts, settled);
            if watch.begin(ms * MS) {
                looks += 1;
                let old_enough = 12 * (ms.saturating_sub(200) / 200);
                for _ in settled..old_enough {
                    watch.settled(7);
                }
                settled = settled.max(old_enough);
            }
        }
        assert_eq!(settled, 12 * 18);
        assert_eq!(looks, 18);
    }

    #[test]
    fn what_is_never_settled_is_looked_at_while_connections_come() {
        let mut watch = Watch::default();
        // One client has gone away; others go on, or nobody comes.
        let gone = |ms: u64| match ms {
            0..1000 => (5, 5),
            1000..2000 => (6, 5),
            _ => (6 + (ms - 2000) / 10, 5 + (ms - 2000) / 10),
        };
        let due = play(&mut watch, 0, 4000, gone);
        assert_eq!(due.first(), Some(&1200), "{due:?}");
        assert!(due.windows(2).all(|pair| pair[1] - pair[0] >= 100), "{due:?}");
        let (attempts, settled) = gone(3980);
        let due = play(&mut watch, 4000, 9000, |_| (attempts, settled));
        assert!(due.iter().all(|ms| *ms < 6000), "{due:?}");
    }

    #[test]
    fn an_identifier_that_is_used_anew_begins_anew() {
        let mut watch = Watch::default();
        play(&mut watch, 0, 1000, |_| (1000, 1));
        assert_eq!(play(&mut watch, 1000, 2000, |_| (0, 0)), [0; 0]);
        assert_eq!(play(&mut watch, 2000, 3000, |_| (1, 0)).first(), Some(&2200));
        watch.keep(|_| false);
        assert!(!watch.is_busy(3000 * MS));
    }
}
