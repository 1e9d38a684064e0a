//! The rise/fall machine: when enough probes agree. Pure: results in, health out.
//!
//! ```text
//!               first pass                    `fall` failures in a row
//!  Unknown ───────────────────────▶ Up ───────────────────────────────▶ Down
//!     │                             ▲                                    │ ▲
//!     │                             └────────────────────────────────────┘ │
//!     │                                   `rise` passes in a row           │
//!     └────────────────────────────────────────────────────────────────────┘
//!               first failure
//! ```
//!
//! The first probe decides alone. A service must come up as fast as its backends answer, and a
//! backend that is dead when the daemon starts must not get a single connection. From then on one
//! probe is not enough: `rise` and `fall` keep a lost packet from moving traffic.

use super::Health;

/// How many probes in a row change a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// Passes in a row until a backend that is down is up; 0 counts as 1.
    pub rise: u32,
    /// Failures in a row until a backend that is up is down; 0 counts as 1.
    pub fall: u32,
}

/// A backend's health, and how many probes in a row have contradicted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    health: Health,
    against: u32,
}

impl State {
    /// A state that nothing contradicts yet. [`Health::Unknown`] is the start.
    pub fn new(health: Health) -> Self {
        Self { health, against: 0 }
    }

    /// The health after the probes seen so far.
    pub fn health(self) -> Health {
        self.health
    }

    /// The state after one more probe, and whether the health changed by it.
    #[must_use]
    pub fn observe(self, passed: bool, threshold: Threshold) -> (Self, bool) {
        let (other, needed) = match (self.health, passed) {
            (Health::Unknown, true) => (Health::Up, 1),
            (Health::Unknown, false) => (Health::Down, 1),
            (Health::Up, false) => (Health::Down, threshold.fall),
            (Health::Down, true) => (Health::Up, threshold.rise),
            (Health::Up, true) | (Health::Down, false) => return (Self::new(self.health), false),
        };
        let against = self.against.saturating_add(1);
        if against >= needed {
            (Self::new(other), true)
        } else {
            (Self { health: self.health, against }, false)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(threshold: Threshold, probes: &[bool]) -> Vec<Health> {
        let mut state = State::new(Health::Unknown);
        probes
            .iter()
            .map(|&passed| {
                let (next, changed) = state.observe(passed, threshold);
                assert_eq!(changed, next.health() != state.health());
                state = next;
                state.health()
            })
            .collect()
    }

    #[test]
    fn every_state_and_result() {
        use Health::{Down, Unknown, Up};
        let threshold = Threshold { rise: 2, fall: 3 };
        let state = |health, against| State { health, against };
        let table = [
            (state(Unknown, 0), true, state(Up, 0), true),
            (state(Unknown, 0), false, state(Down, 0), true),
            (state(Up, 0), true, state(Up, 0), false),
            (state(Up, 1), true, state(Up, 0), false),
            (state(Up, 2), true, state(Up, 0), false),
            (state(Up, 0), false, state(Up, 1), false),
            (state(Up, 1), false, state(Up, 2), false),
            (state(Up, 2), false, state(Down, 0), true),
            (state(Down, 0), false, state(Down, 0), false),
            (state(Down, 1), false, state(Down, 0), false),
            (state(Down, 0), true, state(Down, 1), false),
            (state(Down, 1), true, state(Up, 0), true),
        ];
        for (from, passed, to, changed) in table {
            assert_eq!(from.observe(passed, threshold), (to, changed), "{from:?}, {passed}");
        }
    }

    #[test]
    fn zero_counts_as_one() {
        let threshold = Threshold { rise: 0, fall: 0 };
        assert_eq!(run(threshold, &[true, false, true]), [Health::Up, Health::Down, Health::Up]);
    }

    #[test]
    fn a_shorter_threshold_applies_to_failures_already_counted() {
        let (state, _) = State::new(Health::Up).observe(false, Threshold { rise: 1, fall: 9 });
        let (state, _) = state.observe(false, Threshold { rise: 1, fall: 9 });
        assert!(state.observe(false, Threshold { rise: 1, fall: 2 }).1);
    }

    proptest! {
        /// Compares with the definition: look back from each probe, and count.
        #[test]
        fn health_is_the_last_run_that_was_long_enough(
            probes in proptest::collection::vec(any::<bool>(), 1..80),
            rise in 1_u32..5,
            fall in 1_u32..5,
        ) {
            let got = run(Threshold { rise, fall }, &probes);
            for (index, health) in got.iter().enumerate() {
                let mut expected = probes[0];
                for end in 1..=index {
                    let length = if probes[end] { rise } else { fall } as usize;
                    // A run that includes the first probe has set the health already.
                    if end + 1 >= length && probes[end + 1 - length..=end].iter().all(|&p| p == probes[end]) {
                        expected = probes[end];
                    }
                }
                prop_assert_eq!(*health, if expected { Health::Up } else { Health::Down });
            }
        }
    }
}
