//! What all workers know of one backend.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use lb_common::stats::{BackendSignals, HANDSHAKE_CLASSES, handshake_class};

use tokio::time::Instant;

use super::{
    decide::Failure,
    queue::Queue,
    speed::Speed,
    stats::{BackendStatus, Counter},
};

/// A backend of a proxied service.
#[derive(Debug)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Requests, and tunnels, that it has now.
    active: AtomicU32,
    /// Whether the one verdict is that it is gone: its probes fail, or its connections do.
    condemned: AtomicBool,
    /// Milliseconds that it may take to accept a connection, before another is tried beside it.
    patience_ms: AtomicU32,
    requests: Counter,
    failures: Counter,
    signals: Signals,
    /// What waits for it and its siblings.
    queue: Arc<Queue>,
    speed: Speed,
}

/// [`BackendSignals`], counted here. A request is an attempt once it is known what came of it: one that
/// takes its time is not overdue.
#[derive(Debug, Default)]
struct Signals {
    answered: AtomicU64,
    refused: AtomicU64,
    unreachable: AtomicU64,
    unanswered: AtomicU64,
    resets: AtomicU64,
    handshakes: [AtomicU32; HANDSHAKE_CLASSES],
}

/// Until its handshakes are known.
const UNKNOWN_PATIENCE: Duration = Duration::from_millis(250);

impl Backend {
    pub(super) fn new(name: &str, address: SocketAddr, queue: &Arc<Queue>) -> Self {
        Self {
            name: name.to_owned(),
            address,
            active: AtomicU32::new(0),
            condemned: AtomicBool::new(false),
            patience_ms: AtomicU32::new(0),
            requests: Counter::default(),
            failures: Counter::default(),
            signals: Signals::default(),
            queue: Arc::clone(queue),
            speed: Speed::default(),
        }
    }

    /// A request was answered after this time.
    pub(super) fn took(&self, time: Duration, now: Instant) {
        self.speed.add(time, now);
    }

    /// Microseconds that it takes to answer a request, as far as is known.
    pub(super) fn micros(&self, now: Instant) -> u32 {
        self.speed.micros(now)
    }

    /// Requests that it has now.
    pub(super) fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    pub(super) fn is_condemned(&self) -> bool {
        self.condemned.load(Ordering::Relaxed)
    }

    /// Takes what the verdict says.
    pub(super) fn judge(&self, condemned: bool, patience_ms: u16) {
        self.condemned.store(condemned, Ordering::Relaxed);
        self.patience_ms.store(u32::from(patience_ms), Ordering::Relaxed);
    }

    /// How long it may take to accept a connection, before another is tried beside it.
    pub(super) fn patience(&self) -> Duration {
        match self.patience_ms.load(Ordering::Relaxed) {
            0 => UNKNOWN_PATIENCE,
            millis => Duration::from_millis(millis.into()),
        }
    }

    /// It has accepted a connection, in this time.
    pub(super) fn connected(&self, within: Duration) {
        let class = handshake_class(within.as_nanos() as u64);
        self.signals.handshakes[class].fetch_add(1, Ordering::Relaxed);
    }

    /// It has answered a request.
    pub(super) fn answered(&self) {
        self.signals.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// An attempt at it has failed, and that speaks against it.
    pub(super) fn charge(&self, failure: Failure) {
        self.failures.add();
        let signals = &self.signals;
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match failure {
            Failure::Refused | Failure::Handshake => {
                count(&signals.refused);
            }
            Failure::Unreachable => {
                count(&signals.unreachable);
            }
            Failure::ConnectTimeout | Failure::SendTimeout | Failure::ReadTimeout => {
                count(&signals.unanswered);
            }
            Failure::Closed
            | Failure::InvalidHeader
            | Failure::Status(_)
            | Failure::Local
            | Failure::Truncated
            | Failure::Deadline => {
                count(&signals.resets);
            }
        }
    }

    /// What requests have shown of it.
    pub(super) fn signals(&self) -> BackendSignals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let signals = &self.signals;
        let mut read = BackendSignals {
            answered: read(&signals.answered),
            refused: read(&signals.refused),
            unreachable: read(&signals.unreachable),
            unanswered: read(&signals.unanswered),
            resets: read(&signals.resets),
            ..BackendSignals::ZERO
        };
        read.attempts = read.answered + read.refused + read.unreachable + read.unanswered;
        for (to, from) in read.handshakes.iter_mut().zip(&signals.handshakes) {
            *to = from.load(Ordering::Relaxed);
        }
        read
    }

    pub(super) fn status(&self) -> BackendStatus {
        BackendStatus {
            requests: self.requests.get(),
            active: self.active().into(),
            failures: self.failures.get(),
        }
    }
}

/// A request that a backend has: counted as long as this lives.
#[derive(Debug)]
pub(super) struct Active(Arc<Backend>);

impl Active {
    /// Nothing if it has `most` already; 0 is any number.
    pub(super) fn new(backend: Arc<Backend>, most: u32) -> Option<Self> {
        let taken = backend.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |active| {
            (most == 0 || active < most).then_some(active + 1)
        });
        taken.ok().map(|_| Self(backend))
    }

    /// The backend.
    pub(super) fn backend(&self) -> &Arc<Backend> {
        &self.0
    }

    /// A request is sent to it.
    pub(super) fn count_request(&self) {
        self.0.requests.add();
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
        self.0.queue.free();
    }
}
