//! How long a probe may take.

use std::{
    fmt::Write as _,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use crate::clock;

/// A step that takes long looks at the clock so often.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// When a whole probe must have ended: its steps share the time.
///
/// Time in which this process did not run does not count, up to as much again: a machine with too much to do, or one
/// that a hypervisor has stopped, is no evidence against a backend, whose answer waits in a socket. It shows by
/// timers that are late.
#[derive(Debug)]
pub struct Deadline {
    at: Instant,
    timeout: Duration,
    /// By how much all timers were late so far, nanoseconds.
    late_ns: AtomicU64,
}

impl Deadline {
    /// A deadline `timeout` from now.
    pub fn after(timeout: Duration) -> Self {
        Self { at: clock::timer() + timeout, timeout, late_ns: AtomicU64::new(0) }
    }

    /// What `step` gives, or nothing if the time is over first.
    pub(super) async fn within<T>(&self, step: impl Future<Output = T>) -> Option<T> {
        let mut step = pin!(step);
        loop {
            let begun = clock::timer();
            let end = self.end();
            let look = (begun + LOOK_EVERY).min(end.max(begun));
            let outcome = timeout_at(look, &mut step).await;
            let late = clock::timer().saturating_duration_since(look);
            self.late_ns.fetch_add(late.as_nanos() as u64, Ordering::Relaxed);
            match outcome {
                Ok(outcome) => return Some(outcome),
                // What was late may have moved the end.
                Err(_) if look >= end && clock::timer() >= self.end() => return None,
                Err(_) => {}
            }
        }
    }

    fn end(&self) -> Instant {
        let late = Duration::from_nanos(self.late_ns.load(Ordering::Relaxed));
        self.at + late.min(self.timeout)
    }

    /// `"no answer within 500 ms"`.
    pub(super) fn missed(&self, what: &str) -> String {
        let mut text = format!("{what} within ");
        let millis = self.timeout.as_secs_f64() * 1e3;
        // Writing to a string cannot fail.
        let _ = if millis < 1000.0 {
            write!(text, "{millis} ms")
        } else {
            write!(text, "{} s", self.timeout.as_secs_f64())
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// How long a step that takes `takes` may run, in a process that stands still for `still` after `runs`.
    async fn play(takes: Duration, runs: Duration, still: Duration) -> (bool, Duration) {
        let deadline = Deadline::after(500 * MS);
        let begun = clock::timer();
        let steps = async {
            // The answer to a step comes so long after the process has asked.
            let first = deadline.within(sleep(takes)).await;
            first?;
            deadline.within(sleep(takes)).await
        };
        let stands = async {
            sleep(runs).await;
            advance(still).await;
        };
        let (outcome, ()) = tokio::join!(steps, stands);
        (outcome.is_some(), clock::timer() - begun)
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_runs_gives_each_probe_its_time_and_no_more() {
        let never = Duration::ZERO;
        assert!(play(200 * MS, MS, never).await.0);
        let (answered, took) = play(300 * MS, MS, never).await;
        assert!(!answered && took >= 500 * MS && took < 520 * MS, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_process_stands_still_does_not_count() {
        // Without it, 400 ms; the rest of the second step would be too late.
        assert!(play(200 * MS, 120 * MS, 450 * MS).await.0);
        // But nobody waits for ever.
        let deadline = Deadline::after(500 * MS);
        let begun = clock::timer();
        let stands = async {
            for _ in 0..20 {
                sleep(10 * MS).await;
                advance(400 * MS).await;
            }
        };
        let silent = std::future::pending::<()>();
        let (outcome, ()) = tokio::join!(deadline.within(silent), stands);
        assert_eq!(outcome, None);
        assert!(clock::timer() - begun >= 1000 * MS);
        assert!(deadline.end() == deadline.at + 500 * MS, "it was given more than twice its time");
    }
}
