//! A worker's unused connections to the backends of a service.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{backend::Backend, connect::Link};

/// A connection that has been unused for so long is closed (nginx: `keepalive_timeout`).
const UNUSED: Duration = Duration::from_mins(1);

/// The connections, by backend; the one used last comes first.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<(Arc<Backend>, Idle)>>);

type Idle = VecDeque<(Instant, Link)>;

impl Pool {
    /// A connection to the backend that was open a moment ago.
    pub(super) fn take(&self, backend: &Arc<Backend>) -> Option<Link> {
        let mut pool = self.lock();
        let (_, idle) = pool.iter_mut().find(|(of, _)| Arc::ptr_eq(of, backend))?;
        while let Some((_, mut link)) = idle.pop_back() {
            // It was ready when it was given back.
            if link.is_silent() || link.is_ready() {
                return Some(link);
            }
        }
        None
    }

    /// Keeps a connection, unless there are `most` already.
    pub(super) fn give_back(&self, backend: &Arc<Backend>, link: Link, most: u32, now: Instant) {
        let mut pool = self.lock();
        let place = pool.iter().position(|(of, _)| Arc::ptr_eq(of, backend));
        let place = place.unwrap_or_else(|| {
            pool.push((Arc::clone(backend), VecDeque::new()));
            pool.len() - 1
        });
        let idle = &mut pool[place].1;
        if idle.len() >= most as usize {
            idle.pop_front();
        }
        if most > 0 {
            idle.push_back((now, link));
        }
    }

    /// Closes what is of no use: connections that are closed or were unused for long, and those to
    /// backends that are not to be kept.
    pub(super) fn sweep(&self, now: Instant, is_kept: impl Fn(SocketAddr) -> bool) {
        let mut pool = self.lock();
        for (backend, idle) in pool.iter_mut() {
            let keeps = is_kept(backend.address);
            idle.retain_mut(|(since, link)| {
                keeps && link.is_ready() && now.duration_since(*since) < UNUSED
            });
        }
        pool.retain(|(_, idle)| !idle.is_empty());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Arc<Backend>, Idle)>> {
        // Each change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
