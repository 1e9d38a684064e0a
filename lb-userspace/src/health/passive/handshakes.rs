//! How long a backend takes to answer a SYN: histograms that forget.

use std::time::Duration;

use lb_common::stats::HANDSHAKE_CLASSES;

/// After this time a handshake counts half for how the backend is now.
const NOW: Duration = Duration::from_secs(2);

/// The same for how it was lately.
const LATELY: Duration = Duration::from_secs(30);

/// Time over which a new level becomes the usual one.
const HABIT: Duration = Duration::from_mins(2);

/// A median of fewer handshakes than this is chance.
const ENOUGH: f64 = 8.0;

/// A histogram of handshake times by powers of two, in which old ones fade.
#[derive(Clone, Debug, Default)]
struct Histogram([f64; HANDSHAKE_CLASSES]);

impl Histogram {
    fn fade(&mut self, elapsed: Duration, half_life: Duration) {
        let factor = (-elapsed.as_secs_f64() / half_life.as_secs_f64()).exp2();
        self.0.iter_mut().for_each(|count| *count *= factor);
    }

    fn add(&mut self, new: &[u32; HANDSHAKE_CLASSES]) {
        for (count, new) in self.0.iter_mut().zip(new) {
            *count += f64::from(*new);
        }
    }

    /// The time in microseconds that so large a share stays below, between the edges of its class by
    /// proportion.
    fn quantile(&self, share: f64) -> Option<f64> {
        let total: f64 = self.0.iter().sum();
        if total < ENOUGH {
            return None;
        }
        let wanted = total * share;
        let mut below = 0.0;
        let mut class = 0;
        while class + 1 < HANDSHAKE_CLASSES && below + self.0[class] < wanted {
            below += self.0[class];
            class += 1;
        }
        let (low, high) = edges(class);
        let part = if self.0[class] > 0.0 { (wanted - below) / self.0[class] } else { 1.0 };
        Some(low + (high - low) * part.clamp(0.0, 1.0))
    }
}

/// The times in microseconds between which the class lies.
fn edges(class: usize) -> (f64, f64) {
    let high = (class as f64).exp2();
    (if class == 0 { 0.0 } else { high / 2.0 }, high)
}

/// The handshakes of one backend.
#[derive(Clone, Debug)]
pub(super) struct Handshakes {
    last: [u32; HANDSHAKE_CLASSES],
    at: Duration,
    now: Histogram,
    lately: Histogram,
    /// Median in microseconds that it has had for long.
    usual: Option<f64>,
}

impl Handshakes {
    pub(super) fn new(counts: &[u32; HANDSHAKE_CLASSES], now: Duration) -> Self {
        Self {
            last: *counts,
            at: now,
            now: Histogram::default(),
            lately: Histogram::default(),
            usual: None,
        }
    }

    /// Takes a reading. While the backend is slow, what is usual stays as it is.
    pub(super) fn push(&mut self, counts: &[u32; HANDSHAKE_CLASSES], slow: bool, now: Duration) {
        let mut new = [0; HANDSHAKE_CLASSES];
        for (class, new) in new.iter_mut().enumerate() {
            *new = counts[class].wrapping_sub(self.last[class]);
        }
        let elapsed = now.saturating_sub(self.at);
        (self.last, self.at) = (*counts, now);
        self.now.fade(elapsed, NOW);
        self.lately.fade(elapsed, LATELY);
        self.now.add(&new);
        self.lately.add(&new);
        let Some(median) = self.median() else { return };
        match &mut self.usual {
            None => self.usual = Some(median),
            Some(usual) if !slow => {
                let step = 1.0 - (-elapsed.as_secs_f64() / HABIT.as_secs_f64()).exp();
                *usual *= (median / *usual).powf(step);
            }
            Some(_) => {}
        }
    }

    /// Half of the present handshakes are faster, in microseconds; nothing if there are too few.
    pub(super) fn median(&self) -> Option<f64> {
        self.now.quantile(0.5)
    }

    /// Of the handshakes of the last half minute or so, 99 % are faster, in microseconds.
    pub(super) fn p99(&self) -> Option<f64> {
        self.lately.quantile(0.99)
    }

    /// How many times its usual median the present one is.
    pub(super) fn drift(&self) -> Option<f64> {
        Some(self.median()? / self.usual?)
    }

    /// What the backend shows now is the usual from here on.
    pub(super) fn accept(&mut self) {
        self.usual = self.median().or(self.usual);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(classes: &[(usize, u32)]) -> [u32; HANDSHAKE_CLASSES] {
        let mut counts = [0; HANDSHAKE_CLASSES];
        for &(class, count) in classes {
            counts[class] = count;
        }
        counts
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn quantiles_lie_in_their_class() {
        let mut handshakes = Handshakes::new(&of(&[]), seconds(0));
        handshakes.push(&of(&[(7, 7)]), false, seconds(1));
        assert_eq!(handshakes.median(), None, "too few");
        handshakes.push(&of(&[(7, 98), (10, 2)]), false, seconds(1));
        let median = handshakes.median().unwrap();
        assert!((64.0..=128.0).contains(&median), "{median}");
        let p99 = handshakes.p99().unwrap();
        assert!((512.0..=1024.0).contains(&p99), "{p99}");
    }

    #[test]
    fn old_handshakes_fade() {
        let mut handshakes = Handshakes::new(&of(&[]), seconds(0));
        handshakes.push(&of(&[(7, 1000)]), false, seconds(1));
        handshakes.push(&of(&[(7, 1000), (12, 100)]), false, seconds(15));
        assert!(handshakes.median().unwrap() > 2000.0, "what is now");
        assert!(handshakes.drift().unwrap() > 16.0);
        let p99 = handshakes.p99().unwrap();
        assert!(p99 > 2000.0, "lately holds both: {p99}");
    }

    #[test]
    fn counters_that_wrap_are_still_differences() {
        let mut handshakes = Handshakes::new(&of(&[(5, u32::MAX - 4)]), seconds(0));
        handshakes.push(&of(&[(5, 15)]), false, seconds(1));
        let median = handshakes.median().unwrap();
        assert!((16.0..=32.0).contains(&median));
    }

    #[test]
    fn what_is_usual_stays_while_the_backend_is_slow() {
        let mut handshakes = Handshakes::new(&of(&[]), seconds(0));
        let (mut fast, mut slow) = (0, 0);
        for second in 1..=10 {
            fast += 50;
            handshakes.push(&of(&[(7, fast)]), false, seconds(second));
        }
        for second in 11..=300 {
            slow += 50;
            handshakes.push(&of(&[(7, fast), (12, slow)]), true, seconds(second));
        }
        assert!(handshakes.drift().unwrap() > 16.0);
        handshakes.accept();
        assert!((handshakes.drift().unwrap() - 1.0).abs() < 1e-9);
    }
}
