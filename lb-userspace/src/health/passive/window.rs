//! What a backend's connections did lately: its counters at the readings of the last seconds.

use std::{collections::VecDeque, time::Duration};

use lb_common::stats::BackendSignals;

/// Readings older than this are forgotten: what happened then says nothing about now.
pub(super) const KEPT: Duration = Duration::from_secs(10);

/// The counters of [`BackendSignals`] that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) attempts: u64,
    pub(super) answered: u64,
    pub(super) refused: u64,
    pub(super) unreachable: u64,
    pub(super) unanswered: u64,
    pub(super) resets: u64,
}

impl Counts {
    pub(super) fn of(signals: &BackendSignals) -> Self {
        Self {
            attempts: signals.attempts,
            answered: signals.answered,
            refused: signals.refused,
            unreachable: signals.unreachable,
            unanswered: signals.unanswered,
            resets: signals.resets,
        }
    }

    fn values(&self) -> [u64; 6] {
        [self.attempts, self.answered, self.refused, self.unreachable, self.unanswered, self.resets]
    }

    /// Whether a counter is below what it was: then they are another backend's.
    pub(super) fn went_back(&self, before: &Self) -> bool {
        self.values().iter().zip(before.values()).any(|(now, before)| *now < before)
    }
}

/// What came of the connections of some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Handshakes that were answered.
    pub(super) answered: u64,
    /// RSTs in answer to a SYN.
    pub(super) refused: u64,
    /// ICMP errors in answer to a SYN.
    pub(super) unreachable: u64,
    /// No answer in time.
    pub(super) silent: u64,
    /// RSTs in established connections.
    pub(super) resets: u64,
    /// How long ago the first of them began, at most.
    pub(super) within: Duration,
}

impl Tally {
    /// Connections that the backend's host or a router refused.
    pub(super) fn hard(&self) -> u64 {
        self.refused + self.unreachable
    }

    /// Connections that were not made.
    pub(super) fn failed(&self) -> u64 {
        self.hard() + self.silent
    }

    /// Connections of which it is known what came of them.
    pub(super) fn ended(&self) -> u64 {
        self.answered + self.failed()
    }
}

/// The counters over the last [`KEPT`]. A reading that brought nothing new takes no room.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// The oldest first, never empty. The first is what the others are compared with.
    readings: VecDeque<(Duration, Counts)>,
    /// When the reading before the last one was made, and the last one.
    read: [Duration; 2],
}

impl Window {
    pub(super) fn new(counts: Counts, now: Duration) -> Self {
        Self { readings: VecDeque::from([(now, counts)]), read: [now, now] }
    }

    pub(super) fn last(&self) -> Counts {
        self.readings.back().map(|(_, counts)| *counts).unwrap_or_default()
    }

    /// Takes a reading.
    pub(super) fn push(&mut self, counts: Counts, now: Duration) {
        self.read = [self.read[1], now];
        if counts != self.last() {
            self.readings.push_back((now, counts));
        }
        while self.readings.get(1).is_some_and(|(at, _)| *at + KEPT <= now) {
            self.readings.pop_front();
        }
    }

    /// Forgets everything before now.
    pub(super) fn restart(&mut self, now: Duration) {
        *self = Self { read: self.read, ..Self::new(self.last(), now) };
    }

    /// The last reading up to `at`, or the oldest one.
    fn reading_at(&self, at: Duration) -> (Duration, Counts) {
        let place = self.first_after(at).saturating_sub(1);
        self.readings.get(place).copied().unwrap_or_default()
    }

    /// The place of the first reading after `at`.
    fn first_after(&self, at: Duration) -> usize {
        self.readings.partition_point(|(read, _)| *read <= at)
    }

    fn counts_at(&self, at: Duration) -> Counts {
        self.reading_at(at).1
    }

    /// When it was last seen to answer, or the beginning.
    pub(super) fn last_answer(&self) -> Duration {
        let first = self.readings.front().map_or(Duration::ZERO, |(at, _)| *at);
        let pairs = self.readings.iter().zip(self.readings.iter().skip(1)).rev();
        let mut grew = pairs.filter(|((_, before), (_, after))| after.answered > before.answered);
        grew.next().map_or(first, |(_, (at, _))| *at)
    }

    /// Whether it has answered between the last two readings.
    pub(super) fn answers_now(&self) -> bool {
        self.last().answered > self.counts_at(self.read[0]).answered
    }

    /// Whether anything has happened in the time that is kept.
    pub(super) fn is_busy(&self, now: Duration) -> bool {
        // The first reading alone is no event.
        self.readings.len() > 1 && self.readings.back().is_some_and(|(at, _)| now < *at + KEPT)
    }

    /// Whether anything at all went wrong in the time that is kept.
    pub(super) fn has_trouble(&self, now: Duration, grace: Duration) -> bool {
        let (base, last) = (self.counts_at(Duration::ZERO), self.last());
        let bad =
            |counts: Counts| [counts.refused, counts.unreachable, counts.unanswered, counts.resets];
        let due = self.counts_at(now.saturating_sub(grace)).attempts;
        bad(base) != bad(last) || due - base.attempts > last.answered - base.answered
    }

    /// What came of the connections since `from`. One that is not answered after `grace` counts as
    /// silent.
    pub(super) fn since(&self, from: Duration, now: Duration, grace: Duration) -> Tally {
        let base = self.counts_at(from);
        let last = self.last();
        let answered = last.answered.saturating_sub(base.answered);
        let refused = last.refused.saturating_sub(base.refused);
        let unreachable = last.unreachable.saturating_sub(base.unreachable);
        // Attempts that are old enough, less those that have ended: if some of these are of younger
        // attempts, it is too few rather than too many.
        let due = self.counts_at(now.saturating_sub(grace).max(from));
        let due = due.attempts.saturating_sub(base.attempts);
        let overdue = due.saturating_sub(answered + refused + unreachable);
        // The kernel counts those that were tried elsewhere or that the client has begun anew; some
        // were answered after all.
        let open = last.attempts.saturating_sub(base.attempts + answered + refused + unreachable);
        let silent = overdue.max(last.unanswered.saturating_sub(base.unanswered).min(open));
        let first = self.readings.get(self.first_after(from)).map_or(now, |(at, _)| *at);
        // It began between that reading and the one before.
        let within = (now.saturating_sub(first) + super::TICK).min(now.saturating_sub(from));
        let resets = last.resets.saturating_sub(base.resets);
        Tally { answered, refused, unreachable, silent, resets, within }
    }

    /// What came of the connections since `from` that are old enough to be judged: what a backend is
    /// compared with. [`Self::since`] takes answers to younger ones for theirs, which spares the
    /// backend that is judged; of its siblings it would draw too good a picture.
    pub(super) fn due_since(&self, from: Duration, now: Duration, grace: Duration) -> Tally {
        let base = self.counts_at(from);
        let (at, due) = self.reading_at(now.saturating_sub(grace).max(from));
        // Their answers have come by then.
        let ended = self.counts_at(at + grace);
        let attempts = due.attempts.saturating_sub(base.attempts);
        let answered = ended.answered.saturating_sub(base.answered);
        let refused = ended.refused.saturating_sub(base.refused);
        let unreachable = ended.unreachable.saturating_sub(base.unreachable);
        let overdue = attempts.saturating_sub(answered + refused + unreachable);
        let open = ended.attempts.saturating_sub(base.attempts + answered + refused + unreachable);
        let silent = overdue.max(ended.unanswered.saturating_sub(base.unanswered).min(open));
        let resets = ended.resets.saturating_sub(base.resets);
        let within = now.saturating_sub(from);
        Tally { answered, refused, unreachable, silent, resets, within }
    }

    /// At how many readings since `from` there were new resets.
    pub(super) fn readings_with_resets(&self, from: Duration) -> usize {
        let first = self.first_after(from).max(1);
        let pairs = self.readings.range(first - 1..).zip(self.readings.range(first..));
        pairs.filter(|((_, before), (_, after))| after.resets > before.resets).count()
    }
}
