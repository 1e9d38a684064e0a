//! Requests that wait because every backend has as many as it may.
//!
//! The one that has waited longest goes first. Whoever has waited for too long, or finds too many
//! waiting, is told that the service is overloaded: better soon than never.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

/// What waits for the backends of a service.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: AtomicU32,
    freed: Notify,
}

/// A place in the queue, for as long as it lives.
#[derive(Debug)]
struct Place<'a>(&'a Queue);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Queue {
    /// Waits until `ask` gives something, which it may once a backend has become free. Nothing if that
    /// takes too long, or if `most` others wait.
    pub(super) async fn wait<T>(
        &self,
        most: u32,
        patience: Duration,
        mut ask: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let taken = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            (waiting < most).then_some(waiting + 1)
        });
        taken.ok()?;
        let _place = Place(self);
        let wait = async {
            loop {
                let freed = self.freed.notified();
                if let Some(given) = ask() {
                    return given;
                }
                freed.await;
            }
        };
        timeout(patience, wait).await.ok()
    }

    /// A backend has one request less.
    pub(super) fn free(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_let_in_or_told_in_time() {
        let queue = Queue::default();
        let free = Cell::new(0);
        let ask = || (free.get() > 0).then(|| free.set(free.get() - 1));
        let minute = Duration::from_mins(1);
        assert_eq!(queue.wait(0, minute, ask).await, None, "nobody may wait");
        assert_eq!(queue.wait(1, minute, ask).await, None, "nothing became free");
        assert_eq!(queue.waiting.load(Ordering::Relaxed), 0, "its place stays taken");
        let first = queue.wait(2, minute, ask);
        let second = queue.wait(2, minute, ask);
        let third = queue.wait(2, minute, ask);
        let frees = async {
            tokio::task::yield_now().await;
            for _ in 0..2 {
                free.set(free.get() + 1);
                queue.free();
            }
        };
        let (first, second, third, ()) = tokio::join!(first, second, third, frees);
        assert_eq!((first, second, third), (Some(()), Some(()), None));
    }
}
