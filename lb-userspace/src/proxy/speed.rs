//! How long a backend takes to answer.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// After so long without an answer half of what is known is forgotten: a backend that was slow is tried
/// again.
const HALF_LIFE: Duration = Duration::from_secs(5);

/// A moving average; each answer counts an eighth.
#[derive(Debug, Default)]
pub(super) struct Speed {
    begun: OnceLock<Instant>,
    /// The average in microseconds, and when it was made, in milliseconds since `begun`: both in one
    /// word, so that they fit each other.
    word: AtomicU64,
}

impl Speed {
    /// Takes the time of an answer. One of two that come at once may be lost.
    pub(super) fn add(&self, time: Duration, now: Instant) {
        let begun = *self.begun.get_or_init(|| now);
        let sample = u32::try_from(time.as_micros()).unwrap_or(u32::MAX).max(1);
        // What is forgotten stays so: else one that was slow would be asked once in a long while, and no more.
        let average = match self.micros(now) {
            0 => sample,
            known => (known - known / 8).saturating_add(sample / 8).max(1),
        };
        let millis = now.saturating_duration_since(begun).as_millis() as u32;
        self.word.store(u64::from(average) << 32 | u64::from(millis), Ordering::Relaxed);
    }

    /// The average in microseconds; 0 if nothing is known.
    pub(super) fn micros(&self, now: Instant) -> u32 {
        let Some(begun) = self.begun.get() else { return 0 };
        let (average, millis) = self.parts();
        let made = *begun + Duration::from_millis(millis.into());
        let halves = now.saturating_duration_since(made).as_secs() / HALF_LIFE.as_secs();
        average.checked_shr(halves as u32).unwrap_or(0)
    }

    fn parts(&self) -> (u32, u32) {
        let word = self.word.load(Ordering::Relaxed);
        ((word >> 32) as u32, word as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_the_answers_and_forgets() {
        let speed = Speed::default();
        let now = Instant::now();
        assert_eq!(speed.micros(now), 0);
        speed.add(Duration::from_millis(8), now);
        assert_eq!(speed.micros(now), 8000);
        speed.add(Duration::from_millis(16), now);
        assert_eq!(speed.micros(now), 9000);
        for _ in 0..100 {
            speed.add(Duration::from_millis(1), now);
        }
        assert!((1000..1100).contains(&speed.micros(now)), "{}", speed.micros(now));
        assert!((500..550).contains(&speed.micros(now + HALF_LIFE)));
        assert_eq!(speed.micros(now + HALF_LIFE * 40), 0);
    }

    #[test]
    fn what_it_has_forgotten_does_not_come_back() {
        let speed = Speed::default();
        let now = Instant::now();
        speed.add(Duration::from_millis(64), now);
        let later = now + HALF_LIFE * 6;
        assert_eq!(speed.micros(later), 1000);
        speed.add(Duration::from_millis(1), later);
        assert_eq!(speed.micros(later), 1000);
    }
}
