//! The connections of a time: those that clients have made until the address went to another node, or until
//! the service ends.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout_at,
};

use super::service::{LEAVE, Phase};
use crate::clock;

/// A count that can be waited for to become none.
#[derive(Debug, Default)]
pub(super) struct Count {
    count: AtomicU64,
    none: Notify,
}

impl Count {
    pub(super) fn add(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove(&self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.none.notify_waiters();
        }
    }

    pub(super) fn get(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Waits until it is none.
    pub(super) async fn none(&self) {
        loop {
            let mut none = pin!(self.none.notified());
            // From here on, none is missed.
            none.as_mut().enable();
            if self.get() == 0 {
                return;
            }
            none.await;
        }
    }
}

/// Such connections, and whether they go on.
#[derive(Debug)]
pub(super) struct Era {
    phase: watch::Sender<Phase>,
    pub(super) open: Count,
    /// The phase is not the first.
    ends: AtomicBool,
}

impl Era {
    pub(super) fn new() -> Arc<Self> {
        let phase = watch::Sender::new(Phase::Serving);
        Arc::new(Self { phase, open: Count::default(), ends: AtomicBool::new(false) })
    }

    /// Whether they go on.
    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Whether each answer should be a connection's last.
    pub(super) fn ends(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// From now on.
    pub(super) fn enter(&self, phase: Phase) {
        self.ends.store(phase != Phase::Serving, Ordering::Relaxed);
        self.phase.send_replace(phase);
    }

    /// Ends them: in order, or after this time at once.
    pub(super) fn end(self: &Arc<Self>, within: Duration) -> JoinHandle<()> {
        self.enter(Phase::Draining);
        let era = Arc::clone(self);
        tokio::spawn(async move {
            let cut = clock::timer() + within;
            tokio::time::sleep(LEAVE.min(within)).await;
            era.enter(Phase::Closing);
            let _ = timeout_at(cut, era.open.none()).await;
            era.enter(Phase::Cut);
        })
    }
}
