//! The body of an answer, on its way to the client.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{
    Response, StatusCode,
    body::{Body, Bytes, Frame, SizeHint},
    header::{CONNECTION, CONTENT_TYPE, HeaderValue},
};
use tokio::time::{Instant, Sleep, timeout};

use super::{
    access::Entry,
    backend::Active,
    budget::{Permit, Under},
    connect::{Link, Reply},
    serve::Client,
    stall::Stall,
};
use crate::clock;

/// How long a connection may take to be ready again after an answer's end. What takes longer is a
/// backend that did not want the whole request: its connection is closed.
const READY: Duration = Duration::from_secs(1);

/// What becomes of a request: its share of the budget, its line in the log, its answer's body.
#[derive(Debug)]
pub(super) struct Answer {
    content: Content,
    client: Arc<Client>,
    status: StatusCode,
    bytes: u64,
    entry: Option<Box<Entry>>,
    /// Who looks whether the client takes it, with HTTP/2.
    stall: Option<Arc<Stall>>,
    _under: Under,
}

#[derive(Debug)]
enum Content {
    Own(Option<Bytes>),
    Backend(Relay),
}

/// The body of a backend's answer.
#[derive(Debug)]
struct Relay {
    reply: Reply,
    lease: Option<Lease>,
    pause: Option<Pin<Box<Sleep>>>,
    read_timeout: Duration,
    /// What has gone wrong, until it is told.
    fault: Option<io::Error>,
    broken: bool,
}

/// A connection that is in use.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) link: Link,
    pub(super) active: Active,
    pub(super) _permit: Option<Permit>,
    pub(super) keepalive: u32,
}

impl Lease {
    /// The answer has ended: the connection can serve again, once the request has too.
    fn give_back(self, client: &Arc<Client>, now: Instant) {
        let Self { mut link, active, keepalive, .. } = self;
        if link.shared().is_some() {
            // The pool has it all the time.
            return;
        }
        let client = Arc::clone(client);
        if link.seems_ready() || link.is_ready() {
            client.pool().give_back(active.backend(), link, keepalive, now);
        } else if !link.has_ended() {
            tokio::spawn(async move {
                if let Ok(true) = timeout(READY, link.ready()).await {
                    client.pool().give_back(active.backend(), link, keepalive, clock::timer());
                }
            });
        }
    }
}

impl Answer {
    /// An answer of our own.
    pub(super) fn own(
        status: StatusCode,
        close: bool,
        (client, under, entry): (&Arc<Client>, Under, Option<Box<Entry>>),
    ) -> Response<Self> {
        let reason = status.canonical_reason().unwrap_or_default();
        let text = Bytes::from(format!("{} {reason}\n", status.as_u16()));
        let content = Content::Own(Some(text));
        let mut response = Response::new(Self::new(content, status, client, under, entry));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        if close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// A backend's answer. Its body is `reply`, on the leased connection.
    pub(super) fn relay(
        status: StatusCode,
        reply: Reply,
        lease: Lease,
        read_timeout: Duration,
        (client, under, entry): (&Arc<Client>, Under, Option<Box<Entry>>),
    ) -> Self {
        let lease = Some(lease);
        let relay = Relay { reply, lease, pause: None, read_timeout, fault: None, broken: false };
        Self::new(Content::Backend(relay), status, client, under, entry)
    }

    /// No body.
    pub(super) fn empty(
        status: StatusCode,
        (client, under, entry): (&Arc<Client>, Under, Option<Box<Entry>>),
    ) -> Self {
        Self::new(Content::Own(None), status, client, under, entry)
    }

    /// Whether all of it has come, so that it is written in one go; as far as can be seen.
    pub(super) fn is_at_hand(&self) -> bool {
        match &self.content {
            Content::Own(_) => true,
            Content::Backend(relay) => relay.is_at_hand(),
        }
    }

    fn new(
        content: Content,
        status: StatusCode,
        client: &Arc<Client>,
        under: Under,
        entry: Option<Box<Entry>>,
    ) -> Self {
        client.route.service.stats.answered(status);
        let (client, stall) = (Arc::clone(client), Stall::current());
        Self { content, client, status, bytes: 0, entry, stall, _under: under }
    }
}

impl Relay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(fault) = self.fault.take() {
            return Poll::Ready(Some(Err(fault)));
        }
        let frame = match (&mut self.reply, &mut self.lease) {
            (Reply::Many(incoming), _) => Pin::new(incoming)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(io::Error::other))),
            (Reply::One, Some(lease)) => lease.link.poll_body(cx),
            (Reply::One, None) => Poll::Ready(None),
        };
        let Poll::Ready(frame) = frame else {
            let until = self.read_timeout;
            let pause = self
                .pause
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(clock::timer() + until)));
            ready!(pause.as_mut().poll(cx));
            return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
        };
        self.pause = None;
        match frame {
            Some(Err(error)) => {
                // hyper cuts the client off at once. What came before, and be it the head, goes first.
                self.fault = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            frame => Poll::Ready(frame),
        }
    }

    /// Whether nothing is left.
    fn is_end_stream(&self) -> bool {
        if self.fault.is_some() || self.broken {
            return false;
        }
        match &self.reply {
            Reply::Many(incoming) => incoming.is_end_stream(),
            Reply::One => self.lease.as_ref().is_none_or(|lease| lease.link.has_answered()),
        }
    }

    /// See [`Answer::is_at_hand`].
    fn is_at_hand(&self) -> bool {
        match (&self.reply, &self.lease) {
            (Reply::One, Some(lease)) => lease.link.is_at_hand(),
            (Reply::One, None) => true,
            (Reply::Many(_), _) => self.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.reply {
            Reply::Many(incoming) => incoming.size_hint(),
            Reply::One => match &self.lease {
                Some(lease) => lease.link.left(),
                None => SizeHint::with_exact(0),
            },
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        if let Some(stall) = &this.stall {
            stall.asked();
        }
        let frame = match &mut this.content {
            Content::Own(text) => text.take().map(|text| Ok(Frame::data(text))),
            Content::Backend(relay) => {
                let frame = ready!(relay.poll(cx));
                match &frame {
                    None => {
                        if let Some(lease) = relay.lease.take() {
                            lease.give_back(&this.client, clock::timer());
                        }
                    }
                    Some(Err(_)) => {
                        relay.broken = true;
                        relay.lease = None;
                        this.client.route.service.stats.truncated.add();
                    }
                    Some(Ok(_)) => {}
                }
                frame
            }
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.bytes += data.len() as u64;
        }
        if let Some(stall) = &this.stall {
            stall.handed();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Own(text) => text.is_none(),
            Content::Backend(relay) => relay.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Own(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Content::Backend(relay) => relay.size_hint(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let mut whole = true;
        let now = clock::timer();
        if let Content::Backend(relay) = &mut self.content
            && relay.lease.is_some()
        {
            // hyper does not ask a body of known length for its end.
            whole = relay.is_end_stream();
            if whole && let Some(lease) = relay.lease.take() {
                lease.give_back(&self.client, now);
            }
        } else if let Content::Backend(relay) = &self.content {
            whole = !relay.broken;
        }
        self.client.edge.rest(now);
        if let Some(entry) = self.entry.take() {
            entry.end(self.status, self.bytes, whole);
        }
    }
}
