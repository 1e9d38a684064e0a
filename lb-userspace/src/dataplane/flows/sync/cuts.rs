//! Connections that the daemon itself has ended, for the other nodes.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use super::Ended;

/// More than this many are forgotten: those that come late age at the other nodes.
const MOST: usize = 1 << 16;

/// Ended connections that nobody has taken yet.
#[derive(Debug, Default)]
pub(in crate::dataplane) struct Cuts {
    listened: AtomicBool,
    ended: Mutex<Vec<Ended>>,
}

impl Cuts {
    /// Whether somebody takes them.
    pub(super) fn listen(&self, listened: bool) {
        self.listened.store(listened, Ordering::Relaxed);
        self.take();
    }

    pub(in crate::dataplane) fn add(&self, ended: Ended) {
        if self.listened.load(Ordering::Relaxed) {
            let mut all = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() < MOST {
                all.push(ended);
            }
        }
    }

    pub(super) fn take(&self) -> Vec<Ended> {
        std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
