//! A request on its way to a backend.

use std::{
    io::{self, IoSlice, Write as _},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use hyper::{
    HeaderMap,
    body::Body,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
        CONTENT_TYPE, HOST, HeaderName, MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
    },
};
use tokio::io::AsyncWrite;

use crate::proxy::head::Head;

/// A buffer for heads that has become larger is given back after the request.
const KEPT_BYTES: usize = 4 << 10;

/// What is written after a chunk, and after the last one.
const AFTER_CHUNK: &[u8] = b"\r\n";
const AFTER_LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

/// A request, as far as it is not sent.
///
/// `head`, `data` and `tail` are written one after the other, and nothing is added before all of them
/// have been.
#[derive(Debug)]
pub(super) struct Outgoing<B> {
    head: Vec<u8>,
    /// Bytes of `head` that have been written.
    written: usize,
    data: Bytes,
    tail: &'static [u8],
    /// What is to come.
    body: Option<B>,
    framing: Framing,
    /// Something has been written.
    begun: bool,
    /// Something that was written may not have left yet.
    unflushed: bool,
}

/// How the backend finds the end of the body.
#[derive(Debug)]
enum Framing {
    /// So many bytes are left.
    Length(u64),
    /// By chunks; these fields may come after them.
    Chunked(Vec<HeaderName>),
}

/// Why it cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The client's body broke off, or another attempt has it.
    Body,
    /// The backend did not take it in time.
    Slow,
    /// The backend takes nothing any more.
    Closed,
}

impl<B> Default for Outgoing<B> {
    fn default() -> Self {
        Self {
            head: Vec::new(),
            written: 0,
            data: Bytes::new(),
            tail: &[],
            body: None,
            framing: Framing::Length(0),
            begun: false,
            unflushed: false,
        }
    }
}

impl<B: Body<Data = Bytes, Error = io::Error> + Unpin> Outgoing<B> {
    /// Takes a request. The one before it must have been sent.
    pub(super) fn begin(&mut self, head: &Head, body: B) {
        self.begun = false;
        let out = &mut self.head;
        out.extend_from_slice(head.method.as_str().as_bytes());
        out.push(b' ');
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        if !target.starts_with('/') && target != "*" {
            out.push(b'/');
        }
        out.extend_from_slice(target.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        let mut has_length = false;
        for (name, value) in &head.headers {
            // How long the body is, is said below, and once. `TE` is for HTTP/2.
            if *name == CONTENT_LENGTH {
                has_length = true;
            } else if *name != TRANSFER_ENCODING && *name != TE {
                field(out, name, value.as_bytes());
            }
        }
        if let Some((lines, id)) = &head.told {
            out.extend_from_slice(lines);
            out.extend_from_slice(b"x-request-id: ");
            out.extend_from_slice(id);
            out.extend_from_slice(b"\r\n");
        }
        if body.is_end_stream() {
            if has_length {
                field(out, &CONTENT_LENGTH, b"0");
            }
            self.framing = Framing::Length(0);
        } else if let Some(length) = body.size_hint().exact() {
            // Writing to a `Vec` cannot fail.
            let _ = write!(out, "content-length: {length}\r\n");
            self.framing = Framing::Length(length);
            self.body = (length > 0).then_some(body);
        } else {
            field(out, &TRANSFER_ENCODING, b"chunked");
            self.framing = Framing::Chunked(announced(&head.headers));
            self.body = Some(body);
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Whether something of it has been written.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether all of it has been sent.
    pub(super) fn is_done(&self) -> bool {
        self.body.is_none() && !self.has_pending() && !self.unflushed
    }

    /// Sends what can be sent; ready when it is all of it. Nothing is sent after trouble.
    pub(super) fn poll<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut W,
    ) -> Poll<Result<(), Trouble>> {
        let sent = ready!(self.poll_all(cx, io));
        // A buffer that a connection keeps while it is unused is a small one.
        self.head.clear();
        self.head.shrink_to(KEPT_BYTES);
        if sent.is_err() {
            *self = Self { begun: self.begun, ..Self::default() };
        }
        Poll::Ready(sent)
    }

    fn poll_all<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut W,
    ) -> Poll<Result<(), Trouble>> {
        loop {
            // The first piece of a body leaves with the head.
            let waits = self.data.is_empty() && self.tail.is_empty() && self.poll_next(cx)?;
            while self.has_pending() {
                let pieces = [
                    IoSlice::new(&self.head[self.written..]),
                    IoSlice::new(&self.data),
                    IoSlice::new(self.tail),
                ];
                match ready!(Pin::new(&mut *io).poll_write_vectored(cx, &pieces)) {
                    Ok(0) => return Poll::Ready(Err(Trouble::Closed)),
                    Ok(written) => self.advance(written),
                    Err(error) => return Poll::Ready(Err(trouble(&error))),
                }
            }
            if self.unflushed && (waits || self.body.is_none()) {
                let flushed = ready!(Pin::new(&mut *io).poll_flush(cx));
                flushed.map_err(|error| trouble(&error))?;
                self.unflushed = false;
            }
            if self.body.is_none() {
                return Poll::Ready(Ok(()));
            }
            if waits {
                return Poll::Pending;
            }
        }
    }

    /// Takes the next piece of the body, if there is one; says whether it has to be waited for.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Result<bool, Trouble> {
        let Some(body) = &mut self.body else { return Ok(false) };
        let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else { return Ok(true) };
        let Some(frame) = frame else {
            self.body = None;
            return match &self.framing {
                Framing::Length(0) => Ok(false),
                Framing::Length(_) => Err(Trouble::Body),
                Framing::Chunked(_) => {
                    self.head.extend_from_slice(b"0\r\n\r\n");
                    Ok(false)
                }
            };
        };
        let frame = match frame.map_err(|_| Trouble::Body)?.into_data() {
            Ok(data) => {
                self.take(data)?;
                return Ok(false);
            }
            Err(frame) => frame,
        };
        if let (Ok(trailers), Framing::Chunked(announced)) = (frame.into_trailers(), &self.framing)
        {
            self.head.extend_from_slice(b"0\r\n");
            for (name, value) in &trailers {
                if announced.contains(name) && may_trail(name) {
                    field(&mut self.head, name, value.as_bytes());
                }
            }
            self.head.extend_from_slice(b"\r\n");
            self.body = None;
        }
        Ok(false)
    }

    /// Takes a piece of the body.
    fn take(&mut self, data: Bytes) -> Result<(), Trouble> {
        if data.is_empty() {
            return Ok(());
        }
        match &mut self.framing {
            Framing::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Trouble::Body)?;
                if *left == 0 {
                    self.body = None;
                }
            }
            Framing::Chunked(_) => {
                // Writing to a `Vec` cannot fail.
                let _ = write!(self.head, "{:x}\r\n", data.len());
                self.tail = AFTER_CHUNK;
                if self.body.as_ref().is_some_and(Body::is_end_stream) {
                    self.tail = AFTER_LAST_CHUNK;
                    self.body = None;
                }
            }
        }
        self.data = data;
        Ok(())
    }

    fn has_pending(&self) -> bool {
        self.written < self.head.len() || !self.data.is_empty() || !self.tail.is_empty()
    }

    /// So many bytes have been written.
    fn advance(&mut self, written: usize) {
        (self.begun, self.unflushed) = (true, true);
        let head = written.min(self.head.len() - self.written);
        self.written += head;
        if self.written == self.head.len() {
            self.head.clear();
            self.written = 0;
        }
        let data = (written - head).min(self.data.len());
        self.data.advance(data);
        self.tail = &self.tail[written - head - data..];
    }
}

fn field(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The fields that `Trailer` announces.
fn announced(headers: &HeaderMap) -> Vec<HeaderName> {
    let lists = headers.get_all(TRAILER).iter();
    let names = lists.flat_map(|list| list.as_bytes().split(|byte| *byte == b','));
    names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).collect()
}

/// Whether a field may come after a body: none that says how to read it, whom it is for, or who asks
/// (RFC 9110, section 6.5.1).
fn may_trail(name: &HeaderName) -> bool {
    let may_not = [
        AUTHORIZATION,
        CACHE_CONTROL,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        HOST,
        MAX_FORWARDS,
        SET_COOKIE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
    ];
    !may_not.contains(name)
}

fn trouble(error: &io::Error) -> Trouble {
    if error.kind() == io::ErrorKind::TimedOut { Trouble::Slow } else { Trouble::Closed }
}
