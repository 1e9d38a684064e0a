//! A worker's unused connections to the backends of a service.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{backend::Backend, connect::Link, multiplex::Shared};

/// A connection that has been unused for so long is closed (nginx: `keepalive_timeout`).
const UNUSED: Duration = Duration::from_mins(1);

/// The connections, by backend; the one used last comes first.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<(Arc<Backend>, Idle)>>);

#[derive(Debug, Default)]
struct Idle {
    links: VecDeque<(Instant, Link)>,
    /// Connections of HTTP/2, used or not; since when they are seen to be unused.
    shared: Vec<(Option<Instant>, Shared)>,
}

impl Pool {
    /// A connection to the backend that was open a moment ago.
    pub(super) fn take(&self, backend: &Arc<Backend>) -> Option<Link> {
        let mut pool = self.lock();
        let (_, idle) = pool.iter_mut().find(|(of, _)| Arc::ptr_eq(of, backend))?;
        for (unused, shared) in &mut idle.shared {
            if let Some(place) = shared.place() {
                *unused = None;
                return Some(Link::many(place));
            }
        }
        while let Some((_, mut link)) = idle.links.pop_back() {
            if link.is_ready() {
                return Some(link);
            }
        }
        None
    }

    /// Keeps a connection, unless there are `most` already.
    pub(super) fn give_back(&self, backend: &Arc<Backend>, link: Link, most: u32, now: Instant) {
        let mut pool = self.lock();
        let idle = &mut idle(&mut pool, backend).links;
        if idle.len() >= most as usize {
            idle.pop_front();
        }
        if most > 0 {
            idle.push_back((now, link));
        }
    }

    /// Lets other requests have a connection that has room for more than one.
    pub(super) fn share(&self, backend: &Arc<Backend>, link: &Link) {
        if let Some(shared) = link.shared() {
            idle(&mut self.lock(), backend).shared.push((None, shared.clone()));
        }
    }

    /// Closes what is of no use: connections that are closed or were unused for long, and those to
    /// backends that are not to be kept.
    pub(super) fn sweep(&self, now: Instant, is_kept: impl Fn(SocketAddr) -> bool) {
        let mut pool = self.lock();
        for (backend, idle) in pool.iter_mut() {
            let keeps = is_kept(backend.address);
            idle.links.retain_mut(|(since, link)| {
                keeps && link.is_ready() && now.duration_since(*since) < UNUSED
            });
            idle.shared.retain_mut(|(unused, shared)| {
                let since = *unused.get_or_insert(now);
                if shared.is_used() {
                    *unused = None;
                }
                keeps && shared.is_open() && now.duration_since(since) < UNUSED
            });
        }
        pool.retain(|(_, idle)| !idle.links.is_empty() || !idle.shared.is_empty());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Arc<Backend>, Idle)>> {
        // Each change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What there is for a backend.
fn idle<'a>(pool: &'a mut Vec<(Arc<Backend>, Idle)>, backend: &Arc<Backend>) -> &'a mut Idle {
    let place = pool.iter().position(|(of, _)| Arc::ptr_eq(of, backend));
    let place = place.unwrap_or_else(|| {
        pool.push((Arc::clone(backend), Idle::default()));
        pool.len() - 1
    });
    &mut pool[place].1
}
