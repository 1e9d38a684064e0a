//! A client's connection, as hyper reads it: behind [`Strict`].
//!
//! hyper cannot be told why a head is refused. So it is given another request in its place, one that
//! says nothing but that it is the last; whoever answers it asks [`Edge::refusal`] first.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    packets::Packets,
    refuse::Refusal,
    strict::{Fed, Strict},
};

/// No time at all.
const BUSY: u64 = u64::MAX;

/// How a client begins that speaks HTTP/2 at once (RFC 9113, section 3.4): a head of a version that no
/// request in HTTP/1 can have.
const HTTP_2: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// What hyper reads in place of a head that is refused.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// What the reader of a connection and those who answer it tell each other.
#[derive(Debug)]
pub(super) struct Edge {
    begun: Instant,
    /// Since when the client is waited for, in nanoseconds after `begun`; [`BUSY`] while it waits for
    /// its answer.
    rests_since: AtomicU64,
    /// What is refused: the request of this number, or its body.
    refusal: OnceLock<(u32, Refusal)>,
    /// Requests that have been answered, or are being.
    seen: AtomicU32,
    /// The protocol has changed: the bytes are no requests.
    switched: AtomicBool,
    amid_head: AtomicBool,
    /// Neither a head nor a body has begun and not ended.
    between: AtomicBool,
    /// Something that was written may not have left yet.
    unflushed: AtomicBool,
    /// The client speaks HTTP/2.
    http2: AtomicBool,
    /// The client was told, in HTTP/2, that the connection ends for what it has done.
    sent_away: AtomicBool,
    pub(super) packets: Packets,
}

impl Edge {
    /// A connection that begins now.
    pub(super) fn new(begun: Instant) -> Self {
        Self {
            begun,
            rests_since: AtomicU64::new(0),
            refusal: OnceLock::new(),
            seen: AtomicU32::new(0),
            switched: AtomicBool::new(false),
            amid_head: AtomicBool::new(false),
            between: AtomicBool::new(true),
            unflushed: AtomicBool::new(false),
            http2: AtomicBool::new(false),
            sent_away: AtomicBool::new(false),
            packets: Packets::default(),
        }
    }

    /// Whether the client has begun to speak HTTP/2. Whoever reads HTTP/1 is told nothing then.
    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Ordering::Relaxed)
    }

    /// The answer has ended, so the client's next request is waited for.
    pub(super) fn rest(&self, now: Instant) {
        let since = now.duration_since(self.begun).as_nanos() as u64;
        self.rests_since.store(since, Ordering::Relaxed);
    }

    /// Since when a request is waited for, if one is.
    pub(super) fn rests_since(&self) -> Option<Instant> {
        match self.rests_since.load(Ordering::Relaxed) {
            BUSY => None,
            nanos => Some(self.begun + Duration::from_nanos(nanos)),
        }
    }

    /// Counts a request; says why it is refused, if it is.
    pub(super) fn next(&self) -> (u32, Option<Refusal>) {
        self.rests_since.store(BUSY, Ordering::Relaxed);
        self.packets.goes_on();
        let number = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        (number, self.refusal(number))
    }

    /// Why the request of this number, or its body, is refused.
    pub(super) fn refusal(&self, number: u32) -> Option<Refusal> {
        self.refusal.get().filter(|(refused, _)| *refused == number).map(|(_, refusal)| *refusal)
    }

    /// The protocol changes after this answer.
    pub(super) fn switch(&self) {
        self.switched.store(true, Ordering::Relaxed);
    }

    /// Whether anything was refused.
    pub(super) fn has_refused(&self) -> bool {
        self.refusal.get().is_some()
    }

    /// The client of HTTP/2 is told that the connection ends for what it has done.
    pub(super) fn send_away(&self) {
        self.sent_away.store(true, Ordering::Relaxed);
    }

    /// Whether it was.
    pub(super) fn is_sent_away(&self) -> bool {
        self.sent_away.load(Ordering::Relaxed)
    }

    /// Whether all has come of the last request, nothing of the next one, and all has left that was
    /// written. An answer may end before its request does.
    pub(super) fn is_still(&self) -> bool {
        let unflushed = self.unflushed.load(Ordering::Relaxed);
        self.between.load(Ordering::Relaxed) && !unflushed && !self.has_refused()
    }

    /// Whether a head had begun, and not ended, when the connection did.
    pub(super) fn is_amid_head(&self) -> bool {
        self.amid_head.load(Ordering::Relaxed)
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Strictly<S> {
    stream: S,
    strict: Strict,
    edge: Arc<Edge>,
    /// Bytes, of those that are held or stand in for them, that may go on.
    ready: usize,
    /// What comes after them is refused for this.
    refusal: Option<Refusal>,
    refused: bool,
    /// It says nothing at its end but that it is over, which closing it says too.
    plain: bool,
    /// Its first bytes may be those of HTTP/2. Over TLS that has been agreed on before.
    new: bool,
}

impl<S> Strictly<S> {
    pub(super) fn new(stream: S, edge: Arc<Edge>, plain: bool) -> Self {
        let strict = Strict::default();
        Self { stream, strict, edge, ready: 0, refusal: None, refused: false, plain, new: plain }
    }

    /// The stream, and what was read of it and is not used: all that a client has sent that speaks
    /// HTTP/2.
    pub(super) fn into_parts(mut self) -> (S, Vec<u8>) {
        (self.stream, std::mem::take(self.strict.held()))
    }

    /// Whether the client speaks HTTP/2, by its first bytes, of which these are the last. Then they are
    /// held. Until enough have come, they are the beginning of a head.
    fn begins_http2(&mut self, bytes: &[u8]) -> bool {
        let held = self.strict.held();
        let mut first = held.iter().chain(bytes);
        let same = HTTP_2.iter().take_while(|byte| first.next() == Some(*byte)).count();
        if same == HTTP_2.len() {
            held.extend_from_slice(bytes);
            self.edge.http2.store(true, Ordering::Relaxed);
            return true;
        }
        self.new = same == held.len() + bytes.len();
        false
    }

    /// Says where in the client's bytes it is.
    fn tell_place(&self) {
        self.edge.amid_head.store(self.strict.is_amid_head(), Ordering::Relaxed);
        self.edge.between.store(self.strict.is_between(), Ordering::Relaxed);
    }

    /// Takes note of a refusal. A body that is refused ends with an error.
    fn refuse(&mut self, refusal: Refusal) -> io::Result<()> {
        let amid_body = refusal == Refusal::Chunk;
        let number = self.strict.heads() + u32::from(!amid_body);
        // There is one at most.
        let _ = self.edge.refusal.set((number, refusal));
        self.refused = true;
        if amid_body {
            return Err(io::Error::new(io::ErrorKind::InvalidData, refusal));
        }
        let held = self.strict.held();
        held.clear();
        held.extend_from_slice(STAND_IN);
        self.ready = STAND_IN.len();
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> Strictly<S> {
    /// Reads from the stream.
    fn read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_pending() && !self.strict.is_between() {
            self.edge.packets.wait();
        }
        read
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strictly<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.edge.is_http2() {
            // It is not for whoever reads here.
            return Poll::Pending;
        }
        loop {
            let switched = this.edge.switched.load(Ordering::Relaxed);
            if switched {
                this.ready = this.strict.held().len();
            }
            if this.ready > 0 {
                let passed = this.ready.min(buf.remaining());
                let held = this.strict.held();
                buf.put_slice(&held[..passed]);
                held.drain(..passed);
                this.ready -= passed;
                this.tell_place();
                return Poll::Ready(Ok(()));
            }
            if let Some(refusal) = this.refusal.take() {
                this.refuse(refusal)?;
                continue;
            }
            if this.refused {
                // The answer to what stands in ends the connection.
                return Poll::Pending;
            }
            if switched || this.strict.free() >= buf.remaining() as u64 {
                let before = buf.filled().len();
                ready!(this.read(cx, buf))?;
                if !switched {
                    // All of it is a body's.
                    let _ = this.strict.feed(&buf.filled()[before..]);
                    this.tell_place();
                }
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            let held = !this.strict.held().is_empty();
            ready!(this.read(cx, buf))?;
            let new = &buf.filled()[before..];
            if new.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if this.new && this.begins_http2(new) {
                buf.set_filled(before);
                return Poll::Pending;
            }
            let Fed { passed, refusal } = this.strict.feed(new);
            this.tell_place();
            this.refusal = refusal;
            if held {
                buf.set_filled(before);
                this.ready = passed;
            } else {
                buf.set_filled(before + passed);
                if passed > 0 {
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strictly<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.edge.unflushed.store(true, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    /// hyper asks for it when it has written all that it has.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.edge.unflushed.store(false, Ordering::Relaxed);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let switched = self.edge.switched.load(Ordering::Relaxed);
        if self.plain && !self.refused && !switched && !self.edge.packets.holds() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.edge.unflushed.store(true, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
