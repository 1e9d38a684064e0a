//! Which time a stamp of the flow tables stands for.
//!
//! The kernel program stamps flows with the kernel's count of ticks, since to read that costs it one load.
//! The kernel counts a tick for each whole length of one that has passed on `CLOCK_MONOTONIC`, also when it
//! was idle or asleep meanwhile. So a line leads from one to the other: its slope is the length of a tick, which
//! is the resolution of the coarse clocks, and a point of it is what the kernel program reads of both.

use std::os::fd::BorrowedFd;

use anyhow::{Context as _, ensure};
use lb_common::clock::Reading;

use super::run;
use crate::clock;

/// Shorter frames cannot be run, and are too short for a [`Reading`].
const FRAME: [u8; 64] = [0; 64];

/// Readings of which the best is taken: between the counter and the clock, a tick may come.
const READINGS: usize = 3;

/// The line between ticks and nanoseconds of `CLOCK_MONOTONIC_COARSE`. It is true to a tick or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    tick_ns: u64,
    /// Time of tick 0, which lies before the start of the machine.
    zero_ns: i64,
}

impl Ticks {
    /// Asks [`lb_common::names::CLOCK_PROGRAM`].
    pub(super) fn learn(program: BorrowedFd<'_>) -> anyhow::Result<Self> {
        let readings: Vec<Reading> =
            (0..READINGS).map(|_| read(program)).collect::<anyhow::Result<_>>()?;
        Self::of(clock::tick_ns(), &readings).context("read the clocks by the kernel program")
    }

    /// The line of that slope through the latest of these points; `None` without any.
    fn of(tick_ns: u64, readings: &[Reading]) -> Option<Self> {
        let zeros = readings.iter().map(|reading| {
            (reading.coarse_ns as i64).wrapping_sub(reading.ticks.wrapping_mul(tick_ns) as i64)
        });
        zeros.max().map(|zero_ns| Self { tick_ns: tick_ns.max(1), zero_ns })
    }

    /// The time of a stamp, nanoseconds; 0 for what was before the start of the machine.
    #[must_use]
    pub fn ns(self, ticks: u64) -> u64 {
        let ns = (ticks.wrapping_mul(self.tick_ns) as i64).wrapping_add(self.zero_ns);
        u64::try_from(ns).unwrap_or(0)
    }

    /// The stamp of a time: the tick that it lies in.
    #[must_use]
    pub fn at(self, ns: u64) -> u64 {
        (ns as i64).wrapping_sub(self.zero_ns) as u64 / self.tick_ns
    }
}

fn read(program: BorrowedFd<'_>) -> anyhow::Result<Reading> {
    let ran = run::run(program, 0, &FRAME).context("run the program that reads the clocks")?;
    let (words, _) = ran.frame.as_chunks::<8>();
    ensure!(ran.frame.len() == FRAME.len(), "the clocks' program has changed its frame's length");
    Ok(Reading { ticks: u64::from_ne_bytes(words[0]), coarse_ns: u64::from_ne_bytes(words[1]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a machine that has been up for an hour: its counter begins five minutes before it wraps in 32 bits.
    fn hour(tick_ns: u64) -> Reading {
        let hour = 3_600_000_000_000;
        let first = (1_u64 << 32) - 300_000_000_000 / tick_ns;
        Reading { ticks: first + hour / tick_ns, coarse_ns: hour }
    }

    #[test]
    fn a_stamp_is_a_time_and_a_time_a_stamp() {
        for tick_ns in [1_000_000, 3_333_333, 4_000_000, 10_000_000] {
            let now = hour(tick_ns);
            let line = Ticks::of(tick_ns, &[now]).expect("a line");
            assert_eq!(line.ns(now.ticks), now.coarse_ns);
            assert_eq!(line.ns(now.ticks - 1000), now.coarse_ns - 1000 * tick_ns);
            assert_eq!(line.ns(now.ticks + 7), now.coarse_ns + 7 * tick_ns);
            for ticks in now.ticks - 50..now.ticks + 50 {
                assert_eq!(line.at(line.ns(ticks)), ticks);
                assert_eq!(line.at(line.ns(ticks) + tick_ns - 1), ticks);
            }
        }
    }

    #[test]
    fn what_was_never_seen_is_as_old_as_can_be() {
        let line = Ticks::of(4_000_000, &[hour(4_000_000)]).expect("a line");
        assert_eq!(line.ns(0), 0);
        assert!(line.at(0) > 0, "a stamp of its own");
    }

    #[test]
    fn a_tick_between_the_two_readings_does_no_harm() {
        let now = hour(4_000_000);
        // The counter has moved, the clock not yet.
        let torn = Reading { ticks: now.ticks + 1, ..now };
        let line = |readings: &[Reading]| Ticks::of(4_000_000, readings);
        assert_eq!(line(&[torn, now, torn]), line(&[now]));
        assert_eq!(line(&[]), None);
    }
}
