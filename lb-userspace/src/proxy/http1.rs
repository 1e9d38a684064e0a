//! A client's connection that speaks HTTP/1.
//!
//! ```text
//!   Still ──▶ Served ──▶ Still       nothing has been asked for a while
//!     │  bytes   ├─────▶ HTTP/2      the client's first bytes are those of HTTP/2
//!     └──────────┴─────▶ over        the client is gone, or too slow, or the service ends
//! ```
//!
//! hyper keeps two buffers of 8 KiB for a connection, and most connections do nothing for most of their
//! time. So one that is still is taken away from hyper, and only its socket is waited for; with the
//! client's next bytes hyper gets it back.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{sleep, sleep_until},
};
use tokio_rustls::server::TlsStream;

use super::{
    early::Early,
    edge::{Edge, Strictly},
    exchange,
    gate::gated,
    serve::{Client, Route, next, until_told},
    service::{LEAVE, Open, Phase},
    stream::Stream,
    strict::HEAD_BYTES,
};
use crate::clock;

/// After so long without a request a connection is still. Long enough that taking it away from hyper and
/// giving it back, and the timer for it, do not show beside what requests cost.
const STILL: Duration = Duration::from_secs(3);

/// What a connection is read from and written to.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Whether bytes may have been read from the socket that nobody has seen yet.
    const HOLDS_BYTES: bool;

    /// The socket.
    fn tcp(&self) -> &Arc<TcpStream>;
}

impl Socket for Stream {
    const HOLDS_BYTES: bool = false;

    fn tcp(&self) -> &Arc<TcpStream> {
        self.tcp()
    }
}

impl Socket for TlsStream<Stream> {
    const HOLDS_BYTES: bool = true;

    fn tcp(&self) -> &Arc<TcpStream> {
        self.get_ref().0.tcp()
    }
}

/// Serves a connection to its end; or gives it back if its client speaks HTTP/2, as it may in the clear.
/// `plain` is whether it says at its end nothing but that it is over.
pub(super) async fn http1<S: Socket>(
    client: Arc<Client>,
    io: S,
    plain: bool,
    timeout: Duration,
) -> Option<Early<S>> {
    let (route, edge) = (Arc::clone(&client.route), Arc::clone(&client.edge));
    let open = Arc::clone(&client.open);
    let tcp = Arc::clone(io.tcp());
    let mut service = service_fn(move |request| {
        let client = Arc::clone(&client);
        async move { Ok::<_, Infallible>(exchange::exchange(&client, request).await) }
    });
    let mut builder = http1::Builder::new();
    // `Strictly` counts the header fields, and `pause` has the time.
    builder.max_buf_size(HEAD_BYTES).header_read_timeout(None);
    let mut stream = Strictly::new(io, Arc::clone(&edge), plain);
    // hyper is not needed before the first bytes come, unless some have come with the last ones of the
    // handshake.
    let mut asked = S::HOLDS_BYTES;
    loop {
        if !asked && !has_bytes(&tcp, &route, &open, &edge, timeout).await {
            return None;
        }
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let mut connection = Box::new(connection);
        let pause = {
            let tell = http1::UpgradeableConnection::graceful_shutdown;
            let pause = pin!(pause(&edge, timeout));
            let driven = Pin::new(&mut *connection);
            // Both show by the poll of the connection before.
            let other = poll_fn(|_| {
                edge.packets.settle(&tcp);
                if edge.is_http2() { Poll::Ready(()) } else { Poll::Pending }
            });
            tokio::select! {
                biased;
                // How it ended is the client's matter.
                _ = until_told(&open, driven, tell) => return None,
                () = other => Pause::Http2,
                pause = gated(|| edge.rests_since().is_some(), pause) => pause,
            }
        };
        if pause == Pause::Late {
            if edge.is_amid_head() {
                route.service.stats.slow_heads.add();
            }
            return None;
        }
        match connection.into_parts() {
            // It has been given whole heads, and has answered all of them.
            Some(parts) if parts.read_buf.is_empty() => {
                (stream, service) = (parts.io.into_inner(), parts.service);
            }
            _ => return None,
        }
        if pause == Pause::Http2 {
            let (stream, bytes) = stream.into_parts();
            return Some(Early::new(bytes.into(), stream));
        }
        asked = false;
    }
}

/// Why a connection is looked at that is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// It is still.
    Still,
    /// The client has been waited for as long as it may (nginx: `client_header_timeout` and
    /// `keepalive_timeout`).
    Late,
    /// It is not HTTP/1 that the client speaks.
    Http2,
}

/// Waits for either. It looks when that can be at the earliest, so a request costs no timer.
async fn pause(edge: &Edge, timeout: Duration) -> Pause {
    let look = STILL.min(timeout);
    let mut end = clock::timer() + look;
    loop {
        sleep_until(end).await;
        let now = clock::timer();
        let Some(since) = edge.rests_since() else {
            end = now + look;
            continue;
        };
        if now >= since + timeout {
            return Pause::Late;
        }
        end = if edge.is_still() { since + look } else { now + look };
        if end <= now {
            return Pause::Still;
        }
        end = end.min(since + timeout);
    }
}

/// Waits for the next bytes of a client; for as long as it may take, and the service goes on.
async fn has_bytes(
    tcp: &TcpStream,
    route: &Route,
    open: &Open,
    edge: &Edge,
    timeout: Duration,
) -> bool {
    let end = edge.rests_since().unwrap_or_else(clock::timer) + timeout;
    let _still = route.service.stats.still();
    let mut phase = open.phase();
    let mut seen = Phase::Serving;
    loop {
        tokio::select! {
            biased;
            // hyper finds out what it is, and be it the end.
            ready = tcp.readable() => return ready.is_ok(),
            phase = next(&mut phase, seen) => match phase {
                Phase::Serving | Phase::Draining | Phase::Closing => seen = phase,
                Phase::Cut => return false,
            },
            // Who has not asked until then is cut off.
            () = sleep(LEAVE), if seen != Phase::Serving => return false,
            () = sleep_until(end) => return false,
        }
    }
}
