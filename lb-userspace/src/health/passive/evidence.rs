//! What speaks against a backend, in numbers, and whether chance explains it.

use std::{fmt, time::Duration};

use super::window::Tally;

/// What went wrong, most of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It answers a SYN with an RST.
    Refused,
    /// A router or its host answers a SYN with an ICMP error.
    Unreachable,
    /// It does not answer a SYN in time.
    Silent,
    /// It resets connections that it had accepted.
    Resets,
}

/// What speaks against a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// What went wrong.
    pub fault: Fault,
    /// Connections that failed.
    pub failed: u64,
    /// Of so many.
    pub of: u64,
    /// The first of them began at most so long ago.
    pub within: Duration,
}

impl Evidence {
    /// Connections that were not made.
    pub(super) fn of_connections(tally: &Tally) -> Self {
        let (failed, of, within) = (tally.failed(), tally.ended(), tally.within);
        let fault = if tally.silent > tally.hard() {
            Fault::Silent
        } else if tally.unreachable > tally.refused {
            Fault::Unreachable
        } else {
            Fault::Refused
        };
        Self { fault, failed, of, within }
    }

    /// Connections that were reset.
    pub(super) fn of_resets(tally: &Tally) -> Self {
        // Long-lived connections may end in a time in which few begin.
        let of = tally.answered.max(tally.resets);
        Self { fault: Fault::Resets, failed: tally.resets, of, within: tally.within }
    }

    /// All connections failed, and answers would say that it is otherwise now.
    pub(super) fn is_whole(&self) -> bool {
        self.fault != Fault::Resets && self.failed == self.of
    }

    pub(super) fn share(&self) -> f64 {
        if self.of == 0 { 0.0 } else { self.failed as f64 / self.of as f64 }
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, failed, of, within } = self;
        let what = match fault {
            Fault::Refused => "refused",
            Fault::Unreachable => "answered with an ICMP error",
            Fault::Silent => "not answered",
            Fault::Resets => "reset",
        };
        write!(out, "{failed} of {of} connections {what} in the last ")?;
        // As coarse as the readings.
        match within.as_millis().div_ceil(100).max(1) * 100 {
            millis if millis < 2000 => write!(out, "{millis} ms"),
            millis => write!(out, "{} s", millis.div_ceil(1000)),
        }
    }
}

/// How likely it is at most that all of so many connections fail, if each does with this probability.
pub(super) fn chance_of_all(of: u64, usual: f64) -> f64 {
    usual.powf(of as f64)
}

/// How much less likely it is that two backends are alike than that they differ, by how many of the
/// connections of each have failed, of so many: the ratio of the likelihoods, as in the G-test (Wilks,
/// 1938). Unlike a comparison with the siblings' average it knows when there is little to average.
pub(super) fn chance_of_alike(one: (u64, u64), other: (u64, u64)) -> f64 {
    let both = (one.0 + other.0, one.1 + other.1);
    (-(information(one, both) + information(other, both))).exp()
}

/// The Kullback-Leibler divergence of the share from the share of both, times the connections, in nats.
fn information((failed, of): (u64, u64), (failed_of_both, both): (u64, u64)) -> f64 {
    let part = |here: u64, of_both: u64| {
        let here = here as f64;
        if here == 0.0 {
            0.0
        } else {
            here * (here * both as f64 / (of as f64 * of_both as f64)).ln()
        }
    };
    part(failed, failed_of_both) + part(of - failed, both - failed_of_both)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_reads_as_a_sentence() {
        let evidence = |fault, millis| Evidence {
            fault,
            failed: 12,
            of: 12,
            within: Duration::from_millis(millis),
        };
        for (evidence, text) in [
            (evidence(Fault::Refused, 200), "12 of 12 connections refused in the last 200 ms"),
            (evidence(Fault::Silent, 0), "12 of 12 connections not answered in the last 100 ms"),
            (evidence(Fault::Silent, 205), "12 of 12 connections not answered in the last 300 ms"),
            (evidence(Fault::Resets, 1990), "12 of 12 connections reset in the last 2 s"),
            (
                evidence(Fault::Unreachable, 4100),
                "12 of 12 connections answered with an ICMP error in the last 5 s",
            ),
        ] {
            assert_eq!(evidence.to_string(), text);
        }
    }

    #[test]
    fn the_more_is_seen_the_less_is_chance() {
        assert!((chance_of_alike((5, 10), (50, 100)) - 1.0).abs() < 1e-9);
        assert!((chance_of_alike((0, 10), (0, 100)) - 1.0).abs() < 1e-9);
        assert!((chance_of_alike((7, 7), (0, 0)) - 1.0).abs() < 1e-9, "nothing to compare with");
        // (7/14)^7 for each of the two.
        assert!((chance_of_alike((7, 7), (0, 7)) - f64::powi(0.5, 14)).abs() < 1e-12);
        let mut before = 1.0;
        for of in 1..50 {
            let chance = chance_of_alike((of, of), (0, 2 * of));
            assert!(chance < before, "{of}");
            before = chance;
        }
        let symmetric = chance_of_alike((3, 40), (9, 20)) / chance_of_alike((9, 20), (3, 40));
        assert!((symmetric - 1.0).abs() < 1e-9);
        assert!((chance_of_all(10, 0.5) - f64::powi(0.5, 10)).abs() < 1e-12);
    }
}
