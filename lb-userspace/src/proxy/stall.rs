//! Answers in HTTP/2 that their clients do not take.
//!
//! A client has a window for each stream, and may keep it shut for ever (CVE-2019-9511, CVE-2019-9517): hyper
//! waits, and with it the connection to the backend. In HTTP/1 that is a write that makes no progress, and
//! ends in time (`stream.rs`). Here each answer is a task, and a clock beside it runs while a piece of its
//! body waits for the client.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{task_local, time::Sleep};

use super::service::Service;
use crate::clock;

task_local! {
    /// That of the answer whose task this is.
    static STALL: Arc<Stall>;
}

/// Whether the client is waited for.
#[derive(Debug, Default)]
pub(super) struct Stall {
    waits: AtomicBool,
    /// It has been asked for more since the clock was looked at.
    moved: AtomicBool,
}

impl Stall {
    /// That of this task, if it is one that answers in HTTP/2.
    pub(super) fn current() -> Option<Arc<Self>> {
        STALL.try_with(Arc::clone).ok()
    }

    /// More of the answer is asked for: the client has taken what there was.
    pub(super) fn asked(&self) {
        self.waits.store(false, Ordering::Relaxed);
        self.moved.store(true, Ordering::Relaxed);
    }

    /// A piece of the answer waits for the client.
    pub(super) fn handed(&self) {
        self.waits.store(true, Ordering::Relaxed);
    }

    /// Ready when the client has been waited for that long.
    fn poll(
        &self,
        sleep: &mut Option<Pin<Box<Sleep>>>,
        timeout: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let moved = self.moved.swap(false, Ordering::Relaxed);
        if moved || !self.waits.load(Ordering::Relaxed) {
            *sleep = None;
        }
        if !self.waits.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let sleep = sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(clock::timer() + timeout)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(())
    }
}

/// Runs the answers of a connection, each for as long as its client takes it. The stream of one that is
/// given up is reset (`CANCEL`).
#[derive(Clone, Debug)]
pub(super) struct Answers {
    pub(super) service: Arc<Service>,
    /// How long a client may take none of it.
    pub(super) timeout: Duration,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Answers {
    fn execute(&self, answer: F) {
        let Self { service, timeout } = self.clone();
        let stall = Arc::<Stall>::default();
        tokio::spawn(STALL.scope(Arc::clone(&stall), async move {
            let answer = pin!(answer);
            let mut sleep = None;
            tokio::select! {
                biased;
                () = answer => {}
                () = poll_fn(|cx| stall.poll(&mut sleep, timeout, cx)) => service.stats.stalled.add(),
            }
        }));
    }
}
