//! Who is slow: handshake times against what is usual, and against the siblings'.

use std::time::Duration;

use super::{Input, News, Outcome, Seen, Track};

/// Handshakes below this are fast, whatever their drift.
const FAST_US: f64 = 1000.0;

/// From so many times the usual handshake time, less the siblings' drift, the share in percent.
const SLOW: [(f64, u32); 2] = [(16.0, 25), (4.0, 50)];

/// Below this drift a backend is slow no longer.
const SLOW_ENDS: f64 = 2.0;

/// A share stays for so long at least.
const SHARE_STAYS: Duration = Duration::from_secs(3);

/// After so long, slow is usual.
pub(super) const SLOW_ACCEPTED: Duration = Duration::from_mins(10);

/// Lowers the share of those that have become slow, and restores it.
pub(super) fn compare_handshakes(
    backends: &mut [(&mut Track, Input<'_>)],
    now: Duration,
    outcome: &mut Outcome,
) {
    let seen: Vec<_> = backends
        .iter()
        .map(|(track, input)| {
            let live = track.live().filter(|_| input.eligible && !track.is_ejected())?;
            Some((live.handshakes.median()?, live.handshakes.drift()?))
        })
        .collect();
    for (place, (track, _)) in backends.iter_mut().enumerate() {
        let others = || {
            let others = seen.iter().enumerate().filter(|(other, _)| *other != place);
            others.filter_map(|(_, seen)| *seen)
        };
        let known = seen[place].zip(middle(others().map(|(median, _)| median)));
        let above = known
            .is_some_and(|((median, _), theirs)| median >= FAST_US && median >= SLOW_ENDS * theirs);
        outcome.changed |= std::mem::replace(&mut track.above_siblings, above) != above;
        // Without anything to compare with, it is not slow.
        let drift = seen[place].zip(middle(others().map(|(_, drift)| drift)));
        let drift = drift.map_or(
            1.0,
            |((median, drift), theirs)| {
                if median < FAST_US { 1.0 } else { drift / theirs }
            },
        );
        if let Some(percent) = track.slow_down(drift, now) {
            outcome.news.push((place, News::Share(percent)));
        }
    }
}

impl Track {
    /// The share that belongs to a drift; something if it is news.
    fn slow_down(&mut self, drift: f64, now: Duration) -> Option<u32> {
        let current = self.share_percent();
        let by_drift = SLOW.iter().find(|(from, _)| drift >= *from).map(|(_, percent)| *percent);
        let mut wanted = by_drift.unwrap_or(if drift < SLOW_ENDS { 100 } else { current });
        if let Some((_, since)) = self.share {
            if now >= since + SLOW_ACCEPTED {
                wanted = 100;
                if let Seen::Some(live) = &mut self.seen {
                    live.handshakes.accept();
                }
            } else if now < since + SHARE_STAYS {
                return None;
            }
        }
        if wanted == current {
            return None;
        }
        self.share = (wanted < 100).then_some((wanted, now));
        Some(wanted)
    }
}

/// The median; of two in the middle, the lower.
fn middle(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}
