//! The retry budget: how many of the requests under way may be repeated ones.
//!
//! When everything is slow, retries make it slower. So no more than a share of the requests that are
//! under way may be retries; one that finds the budget spent waits until another has ended, for a
//! limited time, and then is given up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

/// So many retries may always be under way.
const LEAST: u32 = 3;

/// What a service's requests share.
#[derive(Debug, Default)]
pub(super) struct Budget {
    requests: AtomicU32,
    retries: AtomicU32,
    returned: Notify,
}

/// A request under way, for as long as it lives.
#[derive(Debug)]
pub(super) struct Under(Arc<Budget>);

/// A retry under way, for as long as it lives.
#[derive(Debug)]
pub(super) struct Permit(Arc<Budget>);

impl Budget {
    /// A request begins.
    pub(super) fn enter(self: &Arc<Self>) -> Under {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Under(Arc::clone(self))
    }

    /// Requests under way.
    pub(super) fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// A retry of a request that is under way; nothing if there was no room for it in time.
    pub(super) async fn retry(
        self: &Arc<Self>,
        per_mille: u32,
        patience: Duration,
    ) -> Option<Permit> {
        let wait = async {
            loop {
                let returned = self.returned.notified();
                if let Some(permit) = self.try_retry(per_mille) {
                    return permit;
                }
                returned.await;
            }
        };
        match self.try_retry(per_mille) {
            Some(permit) => Some(permit),
            None => timeout(patience, wait).await.ok(),
        }
    }

    fn try_retry(self: &Arc<Self>, per_mille: u32) -> Option<Permit> {
        let share = u64::from(self.requests()) * u64::from(per_mille) / 1000;
        let most = LEAST.max(share as u32);
        let taken = self.retries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |retries| {
            (retries < most).then_some(retries + 1)
        });
        taken.ok().map(|_| Permit(Arc::clone(self)))
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Ordering::Relaxed);
        self.0.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[tokio::test]
    async fn three_retries_may_always_be_under_way_and_a_share_of_many_requests() {
        let budget = Arc::new(Budget::default());
        let _one = budget.enter();
        let mut permits = Vec::new();
        for _ in 0..3 {
            permits.push(budget.retry(200, NOW).await.expect("one of three"));
        }
        assert!(budget.retry(200, NOW).await.is_none());
        let more: Vec<_> = (0..39).map(|_| budget.enter()).collect();
        for _ in 0..5 {
            permits.push(budget.retry(200, NOW).await.expect("a fifth of forty"));
        }
        assert!(budget.retry(200, NOW).await.is_none());
        drop(more);
        permits.pop();
        assert!(budget.retry(200, NOW).await.is_none(), "still more than three");
    }

    #[tokio::test]
    async fn a_retry_waits_for_another_to_end() {
        let budget = Arc::new(Budget::default());
        let mut permits = Vec::new();
        for _ in 0..3 {
            permits.push(budget.retry(1, NOW).await.unwrap());
        }
        let waits = budget.retry(1, Duration::from_mins(1));
        tokio::pin!(waits);
        assert!(timeout(NOW, &mut waits).await.is_err());
        permits.pop();
        assert!(waits.await.is_some());
    }
}
