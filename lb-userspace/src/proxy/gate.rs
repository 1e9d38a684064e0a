//! Futures that are not looked at while nothing can have come of them.
//!
//! A task is polled as a whole: each request of a client polls also what may end its connection one day.
//! Asking a flag costs less than asking a timer or a channel.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// Polls the future once, so that it knows whom to wake, and then only while `open` says so.
///
/// It must be polled by one task all the time. If the future wakes the task while it is not open,
/// whatever opens it must do so on that task, or wake it too.
pub(super) fn gated<G, F>(open: G, future: F) -> Gated<G, F>
where
    G: Fn() -> bool + Unpin,
    F: Future + Unpin,
{
    Gated { open, future, begun: false }
}

/// See [`gated`].
#[derive(Debug)]
pub(super) struct Gated<G, F> {
    open: G,
    future: F,
    begun: bool,
}

impl<G, F> Future for Gated<G, F>
where
    G: Fn() -> bool + Unpin,
    F: Future + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if std::mem::replace(&mut self.begun, true) && !(self.open)() {
            return Poll::Pending;
        }
        Pin::new(&mut self.future).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn, task::Waker};

    use super::*;

    #[test]
    fn it_is_polled_first_and_when_it_is_open() {
        let (open, polls) = (Cell::new(false), Cell::new(0));
        let future = poll_fn(|_| {
            polls.set(polls.get() + 1);
            if polls.get() < 3 { Poll::Pending } else { Poll::Ready(polls.get()) }
        });
        let mut gated = gated(|| open.get(), future);
        let mut cx = Context::from_waker(Waker::noop());
        let mut poll = || Pin::new(&mut gated).poll(&mut cx);
        assert!(poll().is_pending() && poll().is_pending());
        assert_eq!(polls.get(), 1, "it is asked while it is shut");
        open.set(true);
        assert!(poll().is_pending());
        assert_eq!(poll(), Poll::Ready(3));
    }
}
