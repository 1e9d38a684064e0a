//! `path = "auto"`: when the new connections of a service take the proxy. Pure.
//!
//! ```text
//!              a sign of trouble
//!   Down ─────────────────────────────▶ Up
//!     ▲                                 │ each further sign begins the quiet time anew
//!     └──────── the quiet time is over ─┘
//! ```
//!
//! A sign is a backend that probes or connections condemn, or a connection that was refused or not
//! answered. So it settles: while there are signs nothing changes, and a service that comes back up soon
//! after it went down stays up for twice as long as before.

use std::time::Duration;

/// How long nothing must have gone wrong until the kernel forwards again: the first time, and the most.
pub const QUIET: [Duration; 2] = [Duration::from_secs(30), Duration::from_mins(16)];

/// A service that was down for so many quiet times is forgiven: the next one is the shortest again.
const FORGIVEN: u32 = 4;

/// Where the new connections of a service go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lift {
    /// The last sign, while it is up.
    sign: Option<Duration>,
    quiet: Duration,
    /// When it went down last.
    fell: Option<Duration>,
}

impl Lift {
    /// Whether they take the proxy.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.sign.is_some()
    }

    /// Takes a sign of trouble. True if it goes up by it.
    pub fn sign(&mut self, now: Duration) -> bool {
        let rises = self.sign.replace(now).is_none();
        if rises {
            let [least, most] = QUIET;
            let soon = self.fell.is_some_and(|fell| now < fell + FORGIVEN * self.quiet);
            self.quiet = if soon { (2 * self.quiet).min(most) } else { least };
        }
        rises
    }

    /// Lets time pass. True if it goes down by it.
    pub fn pass(&mut self, now: Duration) -> bool {
        let over = self.until().is_some_and(|until| now >= until);
        if over {
            self.sign = None;
            self.fell = Some(now);
        }
        over
    }

    /// When it goes down if there is no further sign.
    #[must_use]
    pub fn until(&self) -> Option<Duration> {
        self.sign.map(|sign| sign + self.quiet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_is_up_until_a_quiet_time_has_passed() {
        let mut lift = Lift::default();
        assert!(!lift.is_up() && lift.until().is_none() && !lift.pass(SECOND));
        assert!(lift.sign(10 * SECOND));
        assert!(!lift.sign(20 * SECOND), "it is up already");
        assert_eq!(lift.until(), Some(50 * SECOND));
        assert!(!lift.pass(49 * SECOND) && lift.is_up());
        assert!(lift.pass(50 * SECOND) && !lift.is_up());
        assert!(!lift.pass(51 * SECOND), "it is down already");
    }

    #[test]
    fn it_settles_and_does_not_swing() {
        // A sign each time that it has just gone down.
        let (mut lift, mut now, mut rises) = (Lift::default(), Duration::ZERO, 0);
        while now < Duration::from_hours(24) {
            rises += u32::from(lift.sign(now));
            now = lift.until().unwrap();
            assert!(lift.pass(now));
            now += SECOND;
        }
        // 30 s, 1 min, 2 min ... 16 min: five doublings, and then 24 hours of the longest.
        assert!(rises <= 6 + 24 * 60 / 16, "{rises}");
        // After a long time without a sign it is as new.
        assert!(lift.sign(now + Duration::from_hours(2)));
        assert_eq!(lift.until(), Some(now + Duration::from_hours(2) + QUIET[0]));
    }
}
