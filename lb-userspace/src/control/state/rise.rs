//! A slow start as it goes on.

use std::time::Duration;

use crate::control::verdict::{Ramp, until_next_step};

/// While a backend's handshakes take longer than its siblings', its slow start goes on so many times
/// more slowly: it is still cold, and more connections would keep it so.
const STRETCH: u32 = 4;

/// A slow start, and how far it has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rise {
    ramp: Ramp,
    /// Up to when `ramp` is right.
    at: Duration,
    stretched: bool,
}

impl Rise {
    /// One that takes so long; none if it takes no time.
    pub(super) fn start(whole: Duration, now: Duration) -> Option<Self> {
        let ramp = Ramp { done: Duration::ZERO, whole };
        (!whole.is_zero()).then_some(Self { ramp, at: now, stretched: false })
    }

    /// Goes on until now; from here on it is stretched, or not.
    pub(super) fn advance(&mut self, stretched: bool, now: Duration) {
        let elapsed = now.saturating_sub(self.at);
        self.ramp.done += if self.stretched { elapsed / STRETCH } else { elapsed };
        (self.at, self.stretched) = (now, stretched);
    }

    pub(super) fn ramp(&self) -> Ramp {
        self.ramp
    }

    pub(super) fn is_over(&self) -> bool {
        self.ramp.done >= self.ramp.whole
    }

    /// When the share changes next.
    pub(super) fn next_step(&self) -> Option<Duration> {
        let wait = until_next_step(self.ramp)?;
        // Divided later, a stretched wait must not be short by the rounding.
        Some(self.at + if self.stretched { wait * STRETCH } else { wait })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretched_start_takes_longer_and_ends() {
        assert!(Rise::start(Duration::ZERO, Duration::ZERO).is_none());
        for (stretched, whole) in [(false, 10), (true, 40)] {
            let mut rise = Rise::start(Duration::from_secs(10), Duration::from_secs(7)).unwrap();
            rise.advance(stretched, Duration::from_secs(7));
            let mut now = Duration::from_secs(7);
            let mut steps = 0;
            while let Some(at) = rise.next_step() {
                assert!(at > now, "time goes on");
                now = at;
                rise.advance(stretched, now);
                steps += 1;
            }
            assert!(rise.is_over());
            assert_eq!((steps, now), (10, Duration::from_secs(7 + whole)));
        }
    }

    #[test]
    fn it_goes_on_faster_once_it_is_warm() {
        let mut rise = Rise::start(Duration::from_secs(10), Duration::ZERO).unwrap();
        rise.advance(true, Duration::ZERO);
        rise.advance(false, Duration::from_secs(8));
        assert_eq!(rise.ramp().done, Duration::from_secs(2));
        rise.advance(false, Duration::from_secs(16));
        assert!(rise.is_over());
    }
}
