//! A client's connection of HTTP/2, on its way to hyper: what is wrong with it is counted, and one that
//! only makes work is ended.
//!
//! hyper and h2 answer each frame by itself, as RFC 9113 has it, and tell nobody. Some floods they bound
//! (`CONTINUATION`, small data, streams reset before they were looked at). Others they follow as fast as they come:
//! requests that are taken back (CVE-2023-44487) or made to fail (CVE-2025-8671), settings, pings, priorities.
//! So a client has a credit here. Each frame that asks for work and brings nothing takes from it, time and
//! answers give it back, and with the last of it the client is told to be calm (RFC 9113, section 7).

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    edge::Edge,
    frames::{self, Frame, Frames, PREFACE},
    refuse::Refusal,
    service::Service,
};
use crate::clock;

/// Errors (RFC 9113, section 7).
const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

/// So many frames in a row may bring nothing.
const CREDIT: u32 = 1000;

/// How often one more may.
const EACH: Duration = Duration::from_millis(10);

/// What an answer gives back, and each kibibyte of it: more than clients that do no harm take, which open
/// their windows as they read.
const ANSWER: u32 = 2;

/// What a client may still ask for in vain.
#[derive(Debug)]
struct Credit {
    left: u32,
    /// Until when time has been counted.
    counted: Option<Instant>,
}

impl Credit {
    fn new() -> Self {
        Self { left: CREDIT, counted: None }
    }

    /// Takes one; whether there was one. Time is looked at only when nothing is left.
    fn take(&mut self, begun: Instant, now: impl FnOnce() -> Instant) -> bool {
        if self.left == 0 {
            let now = now();
            let passed = now.duration_since(self.counted.unwrap_or(begun));
            let more = passed.as_nanos() / EACH.as_nanos();
            if more > 0 {
                self.counted = Some(now);
                self.left = more.min(CREDIT.into()) as u32;
            }
        }
        let had = self.left > 0;
        self.left = self.left.saturating_sub(1);
        had
    }

    fn give(&mut self, more: u32) {
        self.left = self.left.saturating_add(more).min(CREDIT);
    }
}

/// Whether a client's frame asks for work and brings nothing.
fn is_idle(frame: Frame) -> bool {
    match frame.kind {
        frames::DATA => frame.length == 0 && frame.flags & frames::END_STREAM == 0,
        // What comes of a request is seen by what it is answered with.
        frames::HEADERS => false,
        // It was asked for.
        frames::SETTINGS | frames::PING => frame.flags & frames::ACK == 0,
        _ => true,
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Calm<S> {
    stream: S,
    service: Arc<Service>,
    edge: Arc<Edge>,
    begun: Instant,
    /// Bytes of the preface that have come.
    preface: usize,
    /// The client's first frame has come.
    has_begun: bool,
    incoming: Frames,
    outgoing: Frames,
    credit: Credit,
    /// Streams whose answer has begun and not ended.
    answered: Vec<u32>,
    /// The last stream that the client has opened.
    last: u32,
    /// The error that the connection is ended for.
    wrong: Option<u32>,
    ended: bool,
}

impl<S> Calm<S> {
    pub(super) fn new(stream: S, service: Arc<Service>, edge: Arc<Edge>) -> Self {
        Self {
            stream,
            service,
            edge,
            begun: clock::timer(),
            preface: 0,
            has_begun: false,
            incoming: Frames::default(),
            outgoing: Frames::default(),
            credit: Credit::new(),
            answered: Vec::new(),
            last: 0,
            wrong: None,
            ended: false,
        }
    }

    /// Looks at what the client has sent.
    fn hear(&mut self, mut bytes: &[u8]) {
        if self.preface < PREFACE.len() {
            let length = bytes.len().min(PREFACE.len() - self.preface);
            if bytes[..length] != PREFACE[self.preface..self.preface + length] {
                self.wrong = Some(PROTOCOL_ERROR);
                return;
            }
            self.preface += length;
            bytes = &bytes[length..];
        }
        let Self { service, begun, has_begun, incoming, credit, answered, last, wrong, .. } = self;
        incoming.feed(bytes, |frame| {
            let is_first = !std::mem::replace(has_begun, true);
            let is_settings = frame.kind == frames::SETTINGS && frame.flags & frames::ACK == 0;
            if is_first && !is_settings {
                wrong.get_or_insert(PROTOCOL_ERROR);
            }
            if frame.kind == frames::HEADERS {
                *last = frame.stream.max(*last);
            }
            if frame.kind == frames::RST_STREAM {
                service.stats.cancelled.add();
                answered.retain(|stream| *stream != frame.stream);
            }
            if is_idle(frame) && !credit.take(*begun, clock::timer) {
                wrong.get_or_insert(ENHANCE_YOUR_CALM);
            }
        });
    }

    /// Looks at what the client is told.
    fn tell(&mut self, bytes: &[u8]) {
        let Self { service, edge, begun, outgoing, credit, answered, wrong, .. } = self;
        outgoing.feed(bytes, |frame| match (frame.kind, frame.code) {
            (frames::HEADERS | frames::DATA, _) => {
                credit.give(ANSWER + frame.length / 1024);
                let known = answered.iter().position(|stream| *stream == frame.stream);
                match (known, frame.flags & frames::END_STREAM > 0) {
                    (None, false) => answered.push(frame.stream),
                    (Some(at), true) => drop(answered.swap_remove(at)),
                    // All that hyper has has a date. h2 answers by itself if a head is too long.
                    (None, true) if frame.bare => service.stats.refused(Refusal::TooLarge),
                    _ => {}
                }
            }
            (frames::RST_STREAM, Some(code)) => {
                service.stats.reset(code);
                answered.retain(|stream| *stream != frame.stream);
                if !credit.take(*begun, clock::timer) {
                    wrong.get_or_insert(ENHANCE_YOUR_CALM);
                }
            }
            (frames::GOAWAY, Some(code)) if code != 0 => {
                service.stats.sent_away(code);
                edge.send_away();
            }
            _ => {}
        });
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Calm<S> {
    /// Says why, if that can be said at once, and ends the connection.
    fn poll_end(&mut self, cx: &mut Context<'_>, code: u32) -> io::Error {
        if !std::mem::replace(&mut self.ended, true) {
            self.service.stats.sent_away(code);
            self.edge.send_away();
            // Nobody waits for a client that does not read; nor can a frame be put into another.
            if self.outgoing.is_between() {
                let last = frames::go_away(self.last, code);
                let mut stream = Pin::new(&mut self.stream);
                let _ = stream.as_mut().poll_write(cx, &last);
                let _ = stream.as_mut().poll_flush(cx);
                let _ = stream.poll_shutdown(cx);
            }
        }
        io::Error::new(io::ErrorKind::InvalidData, "the client was sent away")
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Calm<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.wrong.is_none() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            this.hear(&buf.filled()[before..]);
            if this.wrong.is_some() {
                buf.set_filled(before);
            }
        }
        match this.wrong {
            Some(code) => Poll::Ready(Err(this.poll_end(cx, code))),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Calm<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.tell(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bytes))?;
        let mut left = written;
        for piece in bytes {
            let length = piece.len().min(left);
            self.tell(&piece[..length]);
            left -= length;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credit_is_spent_and_comes_back() {
        let begun = clock::timer();
        let mut credit = Credit::new();
        let same = || begun;
        assert!((0..CREDIT).all(|_| credit.take(begun, same)));
        assert!(!credit.take(begun, same), "more than the credit");
        assert!(!credit.take(begun, || begun + EACH / 2), "too soon");
        assert!(credit.take(begun, || begun + EACH));
        assert!(!credit.take(begun, || begun + EACH), "the same time counts twice");
        let later = begun + EACH * (3 * CREDIT);
        assert!((0..CREDIT).all(|_| credit.take(begun, || later)));
        assert!(!credit.take(begun, || later), "more than the credit comes back");
        credit.give(2);
        assert!(credit.take(begun, || later) && credit.take(begun, || later));
        assert!(!credit.take(begun, || later));
        credit.give(u32::MAX);
        assert_eq!(credit.left, CREDIT);
    }

    #[test]
    fn what_brings_something_costs_nothing() {
        let frame = |kind, flags, length| {
            let (stream, code, bare) = (1, None, false);
            Frame { kind, flags, length, stream, code, bare }
        };
        for (frame, idle) in [
            (frame(frames::DATA, 0, 1), false),
            (frame(frames::DATA, 0, 0), true),
            (frame(frames::DATA, frames::END_STREAM, 0), false),
            (frame(frames::HEADERS, 0, 0), false),
            (frame(frames::SETTINGS, 0, 0), true),
            (frame(frames::SETTINGS, frames::ACK, 0), false),
            (frame(frames::PING, 0, 8), true),
            (frame(frames::PING, frames::ACK, 8), false),
            (frame(frames::RST_STREAM, 0, 4), true),
            // Priorities, windows, and what nobody knows.
            (frame(2, 0, 5), true),
            (frame(8, 0, 4), true),
            (frame(99, 0, 0), true),
        ] {
            assert_eq!(is_idle(frame), idle, "{frame:?}");
        }
    }
}
