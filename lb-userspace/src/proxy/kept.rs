//! The body of a request, on its way to a backend, and kept for another.
//!
//! Attempts share the client's body. Each reads first what was kept of it, then what still comes. What
//! has been sent once is kept up to `body_buffer`; beyond that the request cannot be repeated. Only the
//! attempt of the last turn may read: hyper's body wakes one reader, and bytes that an attempt took
//! that was given up already would be lost.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{
    HeaderMap,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
};
use tokio::time::{Instant, Sleep};

use super::service::Service;
use crate::{clock, config};

/// A request's body.
#[derive(Debug)]
pub(super) struct Kept(Option<Arc<Mutex<Source>>>);

#[derive(Debug)]
struct Source {
    service: Arc<Service>,
    incoming: Incoming,
    /// All frames so far, unless they are `lost`.
    frames: Vec<Piece>,
    received: usize,
    /// Length, if the client has said it.
    length: Option<u64>,
    bytes: u64,
    limit: u64,
    /// Longest pause of the client (nginx: `client_body_timeout`).
    longest: Duration,
    lost: bool,
    ended: bool,
    turn: u32,
    /// When the attempt of this turn had the whole body.
    sent: Option<Instant>,
    pause: Option<Pin<Box<Sleep>>>,
    fault: Option<Fault>,
}

/// A frame that can be sent again.
#[derive(Clone, Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// Why a client's body is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The client broke off, or sent what is no body.
    Broken,
    /// The client paused for too long.
    Slow,
}

impl Kept {
    pub(super) fn new(incoming: Incoming, proxy: &config::Proxy, service: &Arc<Service>) -> Self {
        if incoming.is_end_stream() {
            return Self(None);
        }
        let length = incoming.size_hint().exact();
        Self(Some(Arc::new(Mutex::new(Source {
            service: Arc::clone(service),
            incoming,
            frames: Vec::new(),
            received: 0,
            length,
            bytes: 0,
            limit: proxy.body_buffer,
            longest: proxy.client_timeout,
            lost: false,
            ended: false,
            turn: 0,
            sent: None,
            pause: None,
            fault: None,
        }))))
    }

    /// The body for another attempt. Those before are given up.
    pub(super) fn attempt(&self) -> Sending {
        let Some(source) = &self.0 else { return Sending(None) };
        let mut shared = lock(source);
        shared.turn += 1;
        shared.sent = None;
        let part = Part {
            source: Arc::clone(source),
            turn: shared.turn,
            at: 0,
            left: shared.length,
            ended: false,
        };
        Sending(Some(part))
    }

    /// Whether what has been sent of it can be sent again.
    pub(super) fn is_kept(&self) -> bool {
        self.0.as_ref().is_none_or(|source| !lock(source).lost)
    }

    /// When the last attempt had sent all of it; nothing if it has not yet.
    pub(super) fn sent(&self, begun: Instant) -> Option<Instant> {
        self.0.as_ref().map_or(Some(begun), |source| lock(source).sent)
    }

    /// What is wrong with what the client sends.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.0.as_ref().and_then(|source| lock(source).fault)
    }
}

fn lock(source: &Mutex<Source>) -> MutexGuard<'_, Source> {
    // Each step leaves it whole.
    source.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Source {
    /// The next frame from the client.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            let longest = self.longest;
            let pause = self.pause.get_or_insert_with(|| {
                Box::pin(tokio::time::sleep_until(clock::timer() + longest))
            });
            ready!(pause.as_mut().poll(cx));
            self.fault = Some(Fault::Slow);
            return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
        };
        self.pause = None;
        Poll::Ready(match frame {
            None => None,
            Some(Ok(frame)) => {
                self.keep(&frame);
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                self.fault = Some(Fault::Broken);
                Some(Err(io::Error::other(error)))
            }
        })
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        self.received += 1;
        if self.lost {
            return;
        }
        let (piece, size) = if let Some(data) = frame.data_ref() {
            (Piece::Data(data.clone()), data.len() as u64)
        } else if let Some(trailers) = frame.trailers_ref() {
            (Piece::Trailers(trailers.clone()), 0)
        } else {
            return;
        };
        if self.bytes + size > self.limit || !self.service.memory.take(size) {
            self.lose();
        } else {
            self.bytes += size;
            self.frames.push(piece);
        }
    }

    fn lose(&mut self) {
        self.lost = true;
        self.frames = Vec::new();
        self.service.memory.give_back(std::mem::take(&mut self.bytes));
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.service.memory.give_back(self.bytes);
    }
}

/// The body of one attempt.
#[derive(Debug)]
pub(super) struct Sending(Option<Part>);

#[derive(Debug)]
struct Part {
    source: Arc<Mutex<Source>>,
    turn: u32,
    at: usize,
    left: Option<u64>,
    ended: bool,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let Some(part) = &mut self.0 else { return Poll::Ready(None) };
        let mut source = lock(&part.source);
        if source.turn != part.turn {
            return Poll::Ready(Some(Err(io::Error::other("another attempt has the body"))));
        }
        let frame = if part.at < source.received {
            match source.frames.get(part.at).cloned() {
                Some(Piece::Data(data)) => Frame::data(data),
                Some(Piece::Trailers(trailers)) => Frame::trailers(trailers),
                None => {
                    let lost = io::Error::other("the body has not been kept");
                    return Poll::Ready(Some(Err(lost)));
                }
            }
        } else if source.ended {
            part.ended = true;
            source.sent.get_or_insert_with(clock::timer);
            return Poll::Ready(None);
        } else {
            match ready!(source.poll(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    source.ended = true;
                    part.ended = true;
                    source.sent = Some(clock::timer());
                    return Poll::Ready(None);
                }
            }
        };
        part.at += 1;
        if let (Some(left), Some(data)) = (&mut part.left, frame.data_ref()) {
            *left = left.saturating_sub(data.len() as u64);
        }
        // A body of known length is not asked for its end.
        source.ended |= source.incoming.is_end_stream();
        if source.ended && part.at == source.received {
            part.ended = true;
            source.sent.get_or_insert_with(clock::timer);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|part| part.ended)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            None => SizeHint::with_exact(0),
            Some(Part { left: Some(left), .. }) => SizeHint::with_exact(*left),
            Some(_) => SizeHint::default(),
        }
    }
}
