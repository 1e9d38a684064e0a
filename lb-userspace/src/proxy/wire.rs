//! A connection to a backend that speaks HTTP/1.1.
//!
//! ```text
//!   Free ──send──▶ Head ──▶ Body ──▶ Free      it can have another request
//!                    └───────┴─────▶ Over      it cannot
//! ```
//!
//! It does what a proxy needs of a client of HTTP/1.1 and no more: one request after the other, and
//! whoever waits for the answer drives it, so nothing passes between tasks. hyper's client is made for
//! everybody, and costs a request a third of the proxy's instructions
//! (`docs/decisions/0023-proxy-speed.md`). What the backend sends is parsed by httparse, as in hyper.
//! What begins and ends where follows RFC 9112, section 6.3; whatever is left of that is not used for
//! another request.

use std::{
    fmt, io,
    pin::pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use hyper::{
    Method, Response,
    body::{Body, Frame, SizeHint},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::{head::Head, kept::Sending};

mod chunks;
mod outgoing;
mod reply;

use chunks::Piece;
use outgoing::{Outgoing, Trouble};
use reply::Framing;

/// Bytes that are read at once, at first; and at most, while an answer fills them.
const ROOM: usize = 8 << 10;
const MOST_ROOM: usize = 64 << 10;

/// With less room than this a new buffer is taken.
const LEAST_ROOM: usize = 1 << 10;

/// What a connection is read from and written to.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection.
pub(super) struct Wire<B = Sending> {
    io: Box<dyn Io>,
    outgoing: Outgoing<B>,
    place: Place,
    /// What has come and is not used up.
    input: BytesMut,
    /// How many bytes are read at once.
    room: usize,
    /// It may have another request after this one.
    keeps: bool,
}

/// Where in what the backend sends.
#[derive(Debug)]
enum Place {
    /// Nothing is asked.
    Free,
    /// The head of an answer comes; to a request that can have no body in its answer, or to another.
    Head { bodiless: bool },
    /// The body of an answer comes.
    Body(Framing),
    /// Nothing more can be asked.
    Over,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) why: Why,
    /// Something of the request has been written.
    pub(super) written: bool,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The connection ended, or the client's body did.
    Closed,
    /// The backend did not take the request in time.
    Slow,
    /// The head of the answer cannot be understood.
    Malformed,
}

impl<B> fmt::Debug for Wire<B> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Wire").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<B: Body<Data = Bytes, Error = io::Error> + Unpin> Wire<B> {
    /// A connection on which nothing has been asked.
    pub(super) fn new(io: impl Io + 'static) -> Self {
        Self {
            io: Box::new(io),
            outgoing: Outgoing::default(),
            place: Place::Free,
            input: BytesMut::new(),
            room: ROOM,
            keeps: true,
        }
    }

    /// Begins to send a request; [`Wire::poll_answer`] does it. The connection must be free.
    pub(super) fn send(&mut self, head: &Head, body: B) {
        debug_assert!(matches!(self.place, Place::Free), "the last request has not ended");
        self.outgoing.begin(head, body);
        self.place = Place::Head { bodiless: head.method == Method::HEAD };
        self.room = ROOM;
    }

    /// Sends what can be sent, and gives the head of the final answer when it has come.
    pub(super) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<()>, Broken>> {
        let answer = ready!(self.poll_head(cx));
        if answer.is_err() {
            self.place = Place::Over;
        }
        let written = self.outgoing.has_begun();
        Poll::Ready(answer.map_err(|why| Broken { why, written }))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Why>> {
        let Place::Head { bodiless } = self.place else {
            return Poll::Ready(Err(Why::Closed));
        };
        loop {
            // Looked at first: what has come before anything was sent is no answer, but the end.
            let filled = self.poll_fill(cx);
            if filled.is_ready() && !self.outgoing.has_begun() {
                return Poll::Ready(Err(Why::Closed));
            }
            self.poll_send(cx)?;
            match ready!(filled) {
                Ok(0) | Err(_) => return Poll::Ready(Err(Why::Closed)),
                Ok(_) => {}
            }
            let read = reply::read(&mut self.input, bodiless).map_err(|_| Why::Malformed)?;
            if let Some(reply) = read {
                self.keeps &= reply.keeps;
                self.place = Place::Body(reply.framing);
                self.end_if_whole();
                return Poll::Ready(Ok(reply.response));
            }
        }
    }

    /// The next piece of the answer's body.
    pub(super) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        // What is wrong with the request does not make the answer wrong.
        let _ = self.poll_send(cx);
        let frame = ready!(self.poll_frame(cx));
        if let Err(error) = frame {
            self.place = Place::Over;
            return Poll::Ready(Some(Err(error)));
        }
        self.end_if_whole();
        Poll::Ready(frame.transpose())
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Frame<Bytes>>>> {
        loop {
            let Place::Body(framing) = &mut self.place else { return Poll::Ready(Ok(None)) };
            match framing {
                Framing::Length(left) if !self.input.is_empty() => {
                    let taken = self.input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= taken as u64;
                    let data = self.input.split_to(taken).freeze();
                    return Poll::Ready(Ok(Some(Frame::data(data))));
                }
                Framing::UntilEnd if !self.input.is_empty() => {
                    let data = self.input.split().freeze();
                    return Poll::Ready(Ok(Some(Frame::data(data))));
                }
                Framing::Chunked(chunks) => match chunks.next(&mut self.input)? {
                    Some(Piece::Data(data)) => return Poll::Ready(Ok(Some(Frame::data(data)))),
                    Some(Piece::Trailers(trailers)) => {
                        return Poll::Ready(Ok(Some(Frame::trailers(trailers))));
                    }
                    Some(Piece::End) => return Poll::Ready(Ok(None)),
                    None => {}
                },
                Framing::Length(_) | Framing::UntilEnd => {}
            }
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(match self.place {
                    Place::Body(Framing::UntilEnd) => {
                        self.place = Place::Over;
                        Ok(None)
                    }
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                });
            }
        }
    }

    /// Ends the answer if nothing of it is left.
    fn end_if_whole(&mut self) {
        if let Place::Body(framing) = &self.place
            && framing.is_whole()
        {
            // What comes unasked belongs to nothing.
            let free = self.keeps && self.input.is_empty();
            self.place = if free { Place::Free } else { Place::Over };
        }
    }

    /// Whether the answer has ended.
    pub(super) fn has_answered(&self) -> bool {
        matches!(self.place, Place::Free | Place::Over)
    }

    /// Whether all of the answer has come, as far as can be seen without reading it.
    pub(super) fn is_at_hand(&self) -> bool {
        match &self.place {
            Place::Free | Place::Over => true,
            Place::Head { .. } | Place::Body(Framing::UntilEnd) => false,
            Place::Body(Framing::Length(left)) => *left <= self.input.len() as u64,
            Place::Body(Framing::Chunked(_)) => self.input.ends_with(b"0\r\n\r\n"),
        }
    }

    /// How long what is left of the answer's body is.
    pub(super) fn left(&self) -> SizeHint {
        match &self.place {
            Place::Body(Framing::Length(left)) => SizeHint::with_exact(*left),
            Place::Body(_) => SizeHint::default(),
            Place::Free | Place::Head { .. } | Place::Over => SizeHint::with_exact(0),
        }
    }

    /// Whether it cannot have another request, now or later.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.place, Place::Over)
    }

    /// Whether it can have a request, as far as is known.
    pub(super) fn is_free(&self) -> bool {
        matches!(self.place, Place::Free) && self.outgoing.is_done()
    }

    /// Whether it can have a request now. Whoever waited for it is not woken any more.
    pub(super) fn is_ready(&mut self) -> bool {
        if self.is_free() && self.poll_fill(&mut Context::from_waker(Waker::noop())).is_ready() {
            // Nothing was asked, so it is the end, or no answer.
            self.place = Place::Over;
        }
        self.is_free()
    }

    /// Waits until it can have a request, if its answer has ended before its request.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !matches!(self.place, Place::Free) {
            return Poll::Ready(false);
        }
        let sent = self.poll_send(cx);
        if sent.is_ok() && self.is_free() {
            return Poll::Ready(self.is_ready());
        }
        if sent.is_err() || self.poll_fill(cx).is_ready() {
            self.place = Place::Over;
            return Poll::Ready(false);
        }
        Poll::Pending
    }

    /// The connection, after a change of protocol, and what has come on it already.
    pub(super) fn into_parts(self) -> (Box<dyn Io>, Bytes) {
        (self.io, self.input.freeze())
    }

    /// Sends what can be sent. An end of the connection is found by reading too, and an answer may have
    /// come before it.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), Why> {
        if self.outgoing.is_done() {
            return Ok(());
        }
        let Poll::Ready(sent) = self.outgoing.poll(cx, &mut self.io) else { return Ok(()) };
        let Err(trouble) = sent else { return Ok(()) };
        self.keeps = false;
        if matches!(self.place, Place::Free) {
            self.place = Place::Over;
        }
        match trouble {
            Trouble::Body => Err(Why::Closed),
            Trouble::Slow => Err(Why::Slow),
            Trouble::Closed => Ok(()),
        }
    }

    /// Reads some bytes; none is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() - self.input.len() < LEAST_ROOM {
            self.input.reserve(self.room);
        }
        let room = self.input.capacity() - self.input.len();
        let read = ready!(pin!(self.io.read_buf(&mut self.input)).poll(cx))?;
        if read == room {
            self.room = (self.room * 2).min(MOST_ROOM);
        }
        Poll::Ready(Ok(read))
    }
}

#[cfg(test)]
mod tests;
