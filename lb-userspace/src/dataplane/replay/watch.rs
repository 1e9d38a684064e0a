//! Whether some backend owes answers, by its counters alone.
//!
//! Attempts that were counted before the backend's patience ago, less all that have been settled since
//! in any way: while that rises, SYNs wait too long. It never falls to zero for good (a client that
//! gives up settles nothing), so what is left after a look at the entries is taken for that, and only
//! more is news.

use std::collections::{BTreeMap, VecDeque};

/// A backend that got no connection for so long is not watched closely, nanoseconds.
const CLOSE_NS: u64 = 2_000_000_000;

/// Points of a backend's past that are kept.
const KEPT: usize = 64;

/// What is known of each backend.
#[derive(Debug, Default)]
pub(super) struct Watch {
    backends: BTreeMap<u32, Seen>,
    again: bool,
}

#[derive(Debug)]
struct Seen {
    /// When how many attempts were counted; the first is the last one before the patience ago.
    past: VecDeque<(u64, u64)>,
    /// Attempts that are old enough, less those that are settled.
    owed: i64,
    /// As much is not news.
    known: i64,
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
            known: owed(attempts, settled),
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
        seen.known = seen.known.min(seen.owed);
    }

    /// Whether a look at the entries is due; if so, it begins now.
    pub(super) fn begin(&mut self) -> bool {
        let mut due = std::mem::take(&mut self.again);
        for seen in self.backends.values_mut() {
            due |= seen.owed > seen.known;
            seen.known = seen.owed;
        }
        due
    }

    /// Another look is due.
    pub(super) fn again(&mut self) {
        self.again = true;
    }

    /// Whether any backend has got a connection lately.
    pub(super) fn is_busy(&self, now_ns: u64) -> bool {
        let lately = |seen: &Seen| {
            seen.past.len() > 1
                || seen.past.back().is_some_and(|(at, _)| now_ns.saturating_sub(*at) < CLOSE_NS)
        };
        self.again || self.backends.values().any(lately)
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
            if watch.begin() {
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
        assert!(!watch.is_busy(9000 * MS) || watch.backends[&7].past.len() > 1);
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
    fn what_is_never_settled_is_looked_at_once() {
        let mut watch = Watch::default();
        // One client has gone away.
        let due = play(&mut watch, 0, 4000, |ms| match ms {
            0..1000 => (5, 5),
            1000..2000 => (6, 5),
            _ => (ms / 10, ms / 10 - 1),
        });
        assert_eq!(due, [1200]);
    }

    #[test]
    fn an_identifier_that_is_used_anew_begins_anew() {
        let mut watch = Watch::default();
        play(&mut watch, 0, 1000, |_| (1000, 1));
        assert_eq!(play(&mut watch, 1000, 2000, |_| (0, 0)), [0; 0]);
        assert_eq!(play(&mut watch, 2000, 3000, |_| (1, 0)), [2200]);
        watch.keep(|_| false);
        assert!(!watch.is_busy(3000 * MS));
    }
}
