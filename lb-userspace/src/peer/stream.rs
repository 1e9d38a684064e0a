//! A stream of parts that arrives whole and in order, over datagrams that may be lost.
//!
//! The sender numbers the parts from 0 and repeats those that are not acknowledged in time; the receiver
//! keeps what comes early, and says what it has. Nothing is negotiated: a session begins with an empty
//! stream, and a new session with a new one.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::wire::frame::Ack;

/// Parts on the way at once: as many as an [`Ack`] can tell of.
const ON_THE_WAY: usize = 64;

/// Parts that wait to be sent, at most: about 4 MiB, or 130,000 connections.
const QUEUED: usize = 4096;

/// Waits for an acknowledgement: the least (a receiver is a process that has to be scheduled), the
/// first, and the longest.
const SHORTEST_WAIT: Duration = Duration::from_millis(30);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// What is to be sent.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Number of the first part of `parts`.
    base: u64,
    parts: VecDeque<Part>,
    /// Smoothed time that an acknowledgement takes, and how much it varies (RFC 6298).
    timing: Option<(Duration, Duration)>,
    /// Parts that were sent again.
    repeated: u64,
}

#[derive(Debug)]
struct Part {
    content: Vec<u8>,
    /// When it is sent, or sent again.
    due: Duration,
    sent: Option<Duration>,
    tries: u32,
    arrived: bool,
}

impl Outgoing {
    /// Parts that have not been acknowledged.
    pub fn backlog(&self) -> usize {
        self.parts.len()
    }

    /// Parts that may be added.
    pub fn room(&self) -> usize {
        QUEUED.saturating_sub(self.parts.len())
    }

    /// Parts that were sent more than once, counted by each time.
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Adds a part. False if there is no room.
    #[must_use]
    pub fn push(&mut self, content: Vec<u8>) -> bool {
        if self.room() == 0 {
            return false;
        }
        self.parts.push_back(Part {
            content,
            due: Duration::ZERO,
            sent: None,
            tries: 0,
            arrived: false,
        });
        true
    }

    /// The number of the next part to send now. It counts as sent.
    pub fn next(&mut self, now: Duration) -> Option<u64> {
        let wait = self.wait();
        let mut parts = self.parts.iter_mut().take(ON_THE_WAY).enumerate();
        let (at, part) = parts.find(|(_, part)| !part.arrived && part.due <= now)?;
        self.repeated += u64::from(part.tries > 0);
        part.due = now + (wait * 2_u32.pow(part.tries.min(8))).min(LONGEST_WAIT);
        part.sent = Some(now);
        part.tries += 1;
        Some(self.base + at as u64)
    }

    /// The content of a part that has not been acknowledged.
    pub fn content(&self, number: u64) -> Option<&[u8]> {
        let at = usize::try_from(number.checked_sub(self.base)?).ok()?;
        self.parts.get(at).map(|part| part.content.as_slice())
    }

    /// The other side has these.
    pub fn acknowledged(&mut self, ack: Ack, now: Duration) {
        while self.base < ack.next
            && let Some(part) = self.parts.pop_front()
        {
            self.base += 1;
            self.measure(&part, now);
        }
        if ack.next != self.base {
            // Of a past that is over, or of what has never been sent.
            return;
        }
        for bit in 0..u64::BITS as usize {
            if ack.later >> bit & 1 != 0
                && let Some(part) = self.parts.get_mut(bit + 1)
            {
                part.arrived = true;
            }
        }
    }

    /// When [`Outgoing::next`] will have something next, if nothing comes.
    pub fn deadline(&self) -> Option<Duration> {
        let waiting = self.parts.iter().take(ON_THE_WAY).filter(|part| !part.arrived);
        waiting.map(|part| part.due).min()
    }

    /// Karn's rule: what was sent twice says nothing.
    fn measure(&mut self, part: &Part, now: Duration) {
        let (Some(sent), 1, false) = (part.sent, part.tries, part.arrived) else { return };
        let took = now.saturating_sub(sent);
        self.timing = Some(match self.timing {
            None => (took, took / 2),
            Some((mean, spread)) => ((mean * 7 + took) / 8, (spread * 3 + took.abs_diff(mean)) / 4),
        });
    }

    fn wait(&self) -> Duration {
        self.timing.map_or(FIRST_WAIT, |(mean, spread)| {
            (mean + spread * 4).clamp(SHORTEST_WAIT, LONGEST_WAIT)
        })
    }
}

/// What comes.
#[derive(Debug, Default)]
pub struct Incoming {
    /// The first number that has not come.
    next: u64,
    /// Parts that came early.
    early: BTreeMap<u64, Vec<u8>>,
}

impl Incoming {
    /// Takes a part, and gives those that are due now, in order.
    pub fn take(&mut self, number: u64, content: &[u8]) -> Vec<Vec<u8>> {
        let ahead = number.wrapping_sub(self.next);
        if number < self.next || ahead > ON_THE_WAY as u64 {
            return Vec::new();
        }
        if ahead > 0 {
            self.early.entry(number).or_insert_with(|| content.to_vec());
            return Vec::new();
        }
        let mut due = vec![content.to_vec()];
        self.next += 1;
        while let Some(content) = self.early.remove(&self.next) {
            due.push(content);
            self.next += 1;
        }
        due
    }

    /// What has come.
    pub fn ack(&self) -> Ack {
        let bit = |number: &u64| 1_u64.checked_shl((number - self.next - 1) as u32).unwrap_or(0);
        Ack { next: self.next, later: self.early.keys().map(bit).sum() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn parts_are_repeated_until_they_are_acknowledged() {
        let mut out = Outgoing::default();
        assert!(out.push(vec![1]) && out.push(vec![2]));
        assert_eq!((out.next(MS), out.next(MS), out.next(MS)), (Some(0), Some(1), None));
        out.acknowledged(Ack { next: 0, later: 1 }, 2 * MS);
        let later = MS + FIRST_WAIT;
        assert_eq!((out.next(later), out.next(later)), (Some(0), None), "the second has arrived");
        assert_eq!(out.next(later + FIRST_WAIT), None, "it waits twice as long");
        assert_eq!(out.next(later + 2 * FIRST_WAIT), Some(0));
        out.acknowledged(Ack { next: 2, later: 0 }, later);
        assert_eq!((out.backlog(), out.next(later * 10), out.deadline()), (0, None, None));
        assert_eq!(out.repeated(), 2);
    }

    #[test]
    fn no_more_is_queued_or_sent_than_there_is_room_for() {
        let mut out = Outgoing::default();
        while out.push(vec![0]) {}
        assert_eq!((out.backlog(), out.room()), (QUEUED, 0));
        let sent = std::iter::from_fn(|| out.next(MS)).count();
        assert_eq!(sent, ON_THE_WAY);
        let mut incoming = Incoming::default();
        for number in 1..ON_THE_WAY as u64 + 100 {
            assert!(incoming.take(number, b"early").is_empty());
        }
        assert_eq!(incoming.ack(), Ack { next: 0, later: u64::MAX });
        assert_eq!(incoming.take(0, b"").len(), ON_THE_WAY + 1);
        assert!(incoming.take(u64::MAX, b"far").is_empty());
        assert!(incoming.take(3, b"again").is_empty());
    }

    #[test]
    fn nonsense_is_no_acknowledgement() {
        let mut out = Outgoing::default();
        assert!(out.push(vec![1]));
        out.acknowledged(Ack { next: 700, later: u64::MAX }, MS);
        assert_eq!(out.backlog(), 0, "who says to have all gets no more of it");
        assert!(out.push(vec![2]));
        assert_eq!(out.next(MS), Some(1));
        out.acknowledged(Ack { next: 0, later: u64::MAX }, MS);
        assert_eq!(out.backlog(), 1);
    }

    proptest! {
        /// Whatever is lost, doubled or swapped on the way, all arrives once and in order.
        #[test]
        fn all_arrives_in_order(
            parts in 1_u16..300,
            fates in prop::collection::vec(0_u8..8, 0..2000),
        ) {
            let mut out = Outgoing::default();
            let mut incoming = Incoming::default();
            let mut got = Vec::new();
            // In the end the network is well again.
            let mut fates = fates.into_iter().chain(std::iter::repeat(7));
            for number in 0..parts {
                prop_assert!(out.push(number.to_be_bytes().to_vec()));
            }
            let mut way: VecDeque<u64> = VecDeque::new();
            let mut now = Duration::ZERO;
            for _ in 0..200_000 {
                if out.backlog() == 0 {
                    break;
                }
                now += MS;
                while let Some(number) = out.next(now) {
                    match fates.next().unwrap() {
                        0 => {}
                        1 => way.extend([number, number]),
                        2 => way.push_front(number),
                        _ => way.push_back(number),
                    }
                }
                if let Some(number) = way.pop_front()
                    && let Some(content) = out.content(number)
                {
                    got.extend(incoming.take(number, content));
                    if fates.next().unwrap() > 1 {
                        out.acknowledged(incoming.ack(), now);
                    }
                }
                now += if way.is_empty() { 100 * MS } else { MS };
            }
            let wanted: Vec<_> = (0..parts).map(|number| number.to_be_bytes().to_vec()).collect();
            prop_assert_eq!(got, wanted);
        }
    }
}
