//! One attempt: a request on a connection, and the head of its answer.

use std::{future::poll_fn, task::Poll, time::Duration};

use hyper::Response;
use tokio::time::Instant;

use super::{
    backend::Backend,
    connect::{Broken, Link, Reply},
    decide::Failure,
    head::Head,
    kept::Kept,
    stream,
};
use crate::{clock, config};

/// How often it is looked whether there is still an answer to wait for.
const LOOK: Duration = Duration::from_millis(100);

/// How an attempt ended without an answer.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) failure: Failure,
    /// The backend may have the request.
    pub(super) sent: bool,
}

/// When an attempt is given up.
#[derive(Clone, Copy)]
pub(super) struct Patience<'a> {
    pub(super) proxy: &'a config::Proxy,
    /// `next_upstream_timeout`.
    pub(super) deadline: Option<Instant>,
    /// Whether nothing speaks against asking another backend: then a host that is silent, or a backend
    /// that is down meanwhile, is not waited for.
    pub(super) hasty: &'a (dyn Fn() -> bool + Sync),
}

/// Sends the request, and waits for the head of the final answer. `begun` is now, or nearly so: each
/// look at the clock costs as much as a look-up in a table.
pub(super) async fn attempt(
    link: &mut Link,
    backend: &Backend,
    head: &Head,
    body: &Kept,
    begun: Instant,
    patience: Patience<'_>,
) -> Result<Response<Reply>, Failed> {
    let mut asked = link.send(head, body.attempt());
    if let Some(deadline) = patience.deadline {
        link.look_again(deadline.min(begun + LOOK));
    }
    loop {
        let outcome = poll_fn(|cx| {
            if let Poll::Ready(answer) = link.poll_answer(&mut asked, cx) {
                return Poll::Ready(Some(answer));
            }
            link.poll_look(cx).map(|()| None)
        });
        if let Some(answer) = outcome.await {
            return answer.map_err(|Broken { failure, written, unprocessed }| {
                // A body of which a part is lost cannot begin anew, whoever says what of it.
                Failed { failure, sent: written && !(unprocessed && body.is_kept()) }
            });
        }
        let now = clock::timer();
        let look = now + LOOK;
        link.look_again(patience.deadline.map_or(look, |deadline| look.min(deadline)));
        if patience.deadline.is_some_and(|deadline| now >= deadline) {
            return Err(Failed { failure: Failure::Deadline, sent: true });
        }
        let read_timeout = patience.proxy.read_timeout;
        let is_late = body.sent(begun).is_some_and(|sent| now >= sent + read_timeout);
        let is_gone = || backend.is_condemned() || stream::is_silent(&link.tcp);
        if is_late || (is_gone() && (patience.hasty)()) {
            if stream::is_silent(&link.tcp) {
                link.spoil();
            }
            return Err(Failed { failure: Failure::ReadTimeout, sent: true });
        }
    }
}
