//! Connections of HTTP/2 to backends, which many requests share.
//!
//! Each is a task of its own: whoever waits for one answer cannot be the one who reads those of others.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use hyper::{
    Request, Uri,
    client::conn::http2::{self, SendRequest},
    header::HOST,
    http::uri::{Authority, Scheme},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::kept::Sending;

/// Longest head of an answer.
const HEAD_BYTES: u32 = 64 << 10;

/// A connection. Copies are the same one; it ends with the last.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    sender: SendRequest<Sending>,
    tcp: Arc<TcpStream>,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    streams: AtomicU32,
    most: u32,
    scheme: Scheme,
    /// Nothing more is to be asked on it.
    spoiled: AtomicBool,
}

/// A request's place on a connection, as long as it lives.
#[derive(Debug)]
pub(super) struct Place(Shared);

impl Shared {
    /// Begins to speak HTTP/2 on a connection, with so many requests at once.
    pub(super) async fn begin<S>(
        stream: S,
        tcp: Arc<TcpStream>,
        scheme: Scheme,
        most: u32,
    ) -> hyper::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).max_header_list_size(HEAD_BYTES);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        // What goes wrong, the requests that it goes wrong with are told.
        tokio::spawn(connection);
        let state =
            State { streams: AtomicU32::new(0), most, scheme, spoiled: AtomicBool::new(false) };
        Ok(Self { sender, tcp, state: Arc::new(state) })
    }

    /// A place for a request, if there is one.
    pub(super) fn place(&self) -> Option<Place> {
        if !self.is_open() {
            return None;
        }
        let most = self.state.most;
        let taken =
            self.state.streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |streams| {
                (streams < most).then_some(streams + 1)
            });
        taken.ok().map(|_| Place(self.clone()))
    }

    /// Whether it can have requests, now or when some of those that it has have ended.
    pub(super) fn is_open(&self) -> bool {
        !self.state.spoiled.load(Ordering::Relaxed) && !self.sender.is_closed()
    }

    /// Whether it has requests.
    pub(super) fn is_used(&self) -> bool {
        self.state.streams.load(Ordering::Relaxed) > 0
    }
}

impl Place {
    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }

    pub(super) fn tcp(&self) -> &Arc<TcpStream> {
        &self.0.tcp
    }

    /// Sends a request; see [`SendRequest::try_send_request`].
    pub(super) fn send(
        &mut self,
        mut request: Request<Sending>,
    ) -> impl Future<Output = super::connect::Sent> + use<> {
        name(&mut request, &self.0.state.scheme);
        self.0.sender.try_send_request(request)
    }

    /// Whether the connection is still there.
    pub(super) fn is_open(&self) -> bool {
        self.0.is_open()
    }

    /// Has no more requests begin on the connection: the host at its other end is silent.
    pub(super) fn spoil(&self) {
        self.0.state.spoiled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.state.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Writes `Host` as `:authority` (RFC 9113, section 8.3.1). One that cannot be is left where it is.
fn name(request: &mut Request<Sending>, scheme: &Scheme) {
    let host = request.headers().get(HOST).map(|host| Authority::try_from(host.as_bytes()));
    let Some(Ok(authority)) = host else { return };
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(scheme.clone());
    parts.authority = Some(authority);
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
        request.headers_mut().remove(HOST);
    }
}

/// Whether a backend says that it has not looked at the request: its connection was ending when the
/// request came (GOAWAY, RFC 9113, section 6.8), or the stream was refused (section 8.7).
pub(super) fn is_unprocessed(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            // Streams that it does look at go on after a GOAWAY, and end with other errors.
            return error.is_remote() && (error.is_go_away() || refused);
        }
        source = cause.source();
    }
    false
}
