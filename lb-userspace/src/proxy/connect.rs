//! Connections to backends.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, timeout},
};

use super::{backend::Backend, decide::Failure, kept::Sending, stream::Stream};
use crate::{clock, config};

/// Longest head of an answer.
const HEAD_BYTES: usize = 64 << 10;

/// Silence after which the kernel asks the other side whether it is still there, and how often.
const KEEPALIVE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A connection to a backend.
///
/// hyper's side of it is no task of its own: whoever has the link drives it. So what the backend sends
/// wakes the one task that waits for it, and a connection that nobody uses costs nothing.
pub(super) struct Link {
    pub(super) sender: SendRequest<Sending>,
    /// Until it has ended.
    connection: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    /// When it is looked next whether there is still an answer to wait for. One timer for all requests
    /// of the connection: setting one for each would cost more.
    look: Pin<Box<Sleep>>,
    pub(super) tcp: Arc<TcpStream>,
}

impl fmt::Debug for Link {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Link").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

impl Link {
    /// Writes and reads what can be written and read now.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            // What goes wrong, the request that it goes wrong with is told.
            && connection.as_mut().poll(cx).is_ready()
        {
            self.connection = None;
        }
    }

    /// How to wait for what comes out of [`Link::drive`]: whoever drives it is there already when it
    /// comes, and being woken for it would be one poll too many.
    pub(super) fn quiet<'a>(&self, cx: &mut Context<'a>) -> Context<'a> {
        let waker = if self.connection.is_some() { Waker::noop() } else { cx.waker() };
        Context::from_waker(waker)
    }

    /// Whether nothing has come since it was driven last. Whoever waits for it is not woken.
    pub(super) fn is_silent(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.connection.is_some() && self.tcp.poll_read_ready(&mut cx).is_pending()
    }

    /// Whether it can take a request now. Whoever waits for it is not woken.
    pub(super) fn is_ready(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.connection.is_none() || self.sender.is_closed()
    }

    /// Drives it until it can take a request, if it will.
    pub(super) async fn ready(&mut self) -> bool {
        let ready = std::future::poll_fn(|cx| {
            self.drive(cx);
            self.sender.poll_ready(cx)
        });
        ready.await.is_ok()
    }

    /// Is ready when it is time to look; see [`Link::look_again`].
    pub(super) fn poll_look(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.look.as_mut().poll(cx)
    }

    /// Looks at this time.
    pub(super) fn look_again(&mut self, at: Instant) {
        self.look.as_mut().reset(at);
    }
}

/// Makes a connection.
pub(super) async fn connect(backend: &Backend, proxy: &config::Proxy) -> Result<Link, Failure> {
    let begun = clock::timer();
    let tcp = match timeout(proxy.connect_timeout, dial(backend.address)).await {
        Ok(Ok(tcp)) => Arc::new(tcp),
        Ok(Err(error)) => return Err(failure(&error)),
        Err(_) => return Err(Failure::ConnectTimeout),
    };
    backend.connected(clock::timer() - begun);
    let stream = Stream::new(Arc::clone(&tcp), proxy.send_timeout);
    let mut builder = http1::Builder::new();
    // No more fields than hyper has room for without an allocation: 100, as in a request.
    builder.max_buf_size(HEAD_BYTES);
    let (sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Handshake)?;
    let look = Box::pin(tokio::time::sleep_until(clock::timer()));
    Ok(Link { sender, connection: Some(Box::pin(connection.with_upgrades())), look, tcp })
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL).with_retries(3);
    SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
    Ok(tcp)
}

fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Failure::Refused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Failure::Unreachable,
        io::ErrorKind::TimedOut => Failure::ConnectTimeout,
        _ => Failure::Local,
    }
}
