//! Connections to backends.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::future::Either;
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{self, SendRequest},
    },
    header::TE,
};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, Sleep, timeout},
};

use super::{
    backend::Backend,
    decide::Failure,
    inbound::Ends,
    kept::Sending,
    multiplex::{Place, Shared},
    outbound,
    service::View,
    stream::Stream,
};
use crate::clock;

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
    sender: Sender,
    /// HTTP/1.1, until it has ended.
    connection: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    /// When it is looked next whether there is still an answer to wait for. One timer for all requests
    /// of the connection: setting one for each would cost more.
    look: Pin<Box<Sleep>>,
    pub(super) tcp: Arc<TcpStream>,
    /// Its resets are noted.
    pub(super) is_watched: bool,
    /// The backend was offered HTTP/2, which knows header fields that HTTP/1.1 does not.
    may_be_many: bool,
}

/// What takes requests.
enum Sender {
    /// One after the other.
    One(SendRequest<Sending>),
    /// Many at once. The connection is a task of its own.
    Many(Place),
}

/// What becomes of a request; the error has it back if nothing of it was written.
pub(super) type Sent = Result<Response<Incoming>, TrySendError<Request<Sending>>>;

impl fmt::Debug for Link {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Link").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

impl Link {
    fn new(
        sender: Sender,
        connection: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
        tcp: Arc<TcpStream>,
    ) -> Self {
        let look = Box::pin(tokio::time::sleep_until(clock::timer()));
        Self { sender, connection, look, tcp, is_watched: false, may_be_many: false }
    }

    /// One place of many on a connection.
    pub(super) fn many(place: Place) -> Self {
        let tcp = Arc::clone(place.tcp());
        Self::new(Sender::Many(place), None, tcp)
    }

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

    /// Whether it can take a request now. Whoever waits for it is not woken, and whoever drove it before
    /// is not any more: else the next request would wake a client that has nothing to do with it.
    pub(super) fn is_ready(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        match &self.sender {
            Sender::One(sender) => self.connection.is_some() && sender.is_ready(),
            Sender::Many(place) => place.is_open(),
        }
    }

    /// Whether it can take a request, as far as is known.
    pub(super) fn seems_ready(&self) -> bool {
        match &self.sender {
            Sender::One(sender) => sender.is_ready(),
            Sender::Many(_) => false,
        }
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        match &self.sender {
            Sender::One(sender) => self.connection.is_none() || sender.is_closed(),
            Sender::Many(place) => !place.is_open(),
        }
    }

    /// Drives it until it can take a request, if it will.
    pub(super) async fn ready(&mut self) -> bool {
        let ready = std::future::poll_fn(|cx| {
            self.drive(cx);
            match &mut self.sender {
                Sender::One(sender) => sender.poll_ready(cx),
                Sender::Many(_) => Poll::Ready(Ok(())),
            }
        });
        ready.await.is_ok()
    }

    /// Sends a request.
    pub(super) fn send(
        &mut self,
        mut request: Request<Sending>,
    ) -> impl Future<Output = Sent> + use<> {
        match &mut self.sender {
            Sender::One(sender) => {
                if self.may_be_many {
                    request.headers_mut().remove(TE);
                }
                Either::Left(sender.try_send_request(request))
            }
            Sender::Many(place) => Either::Right(place.send(request)),
        }
    }

    /// The connection, if others may use it too.
    pub(super) fn shared(&self) -> Option<&Shared> {
        match &self.sender {
            Sender::One(_) => None,
            Sender::Many(place) => Some(place.shared()),
        }
    }

    /// Has no more requests begin on a connection that others use too: the host is silent.
    pub(super) fn spoil(&self) {
        if let Sender::Many(place) = &self.sender {
            place.spoil();
        }
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

/// Makes a connection, for a client that has these ends.
pub(super) async fn connect(backend: &Backend, view: &View, ends: Ends) -> Result<Link, Failure> {
    let proxy = &view.proxy;
    let begun = clock::timer();
    let tcp = match timeout(proxy.connect_timeout, dial(backend.address)).await {
        Ok(Ok(tcp)) => Arc::new(tcp),
        Ok(Err(error)) => return Err(failure(&error)),
        Err(_) => return Err(Failure::ConnectTimeout),
    };
    let stream = Stream::new(Arc::clone(&tcp), proxy.send_timeout);
    let link = if proxy.upstream.is_plain() {
        http1(stream, tcp).await?
    } else {
        let left = proxy.connect_timeout.saturating_sub(clock::timer() - begun);
        let prepared = Box::pin(outbound::prepare(view, ends, backend.address, &tcp, stream));
        let mut link =
            timeout(left, prepared).await.map_err(|_| Failure::ConnectTimeout).flatten()?;
        link.may_be_many = proxy.upstream.http2;
        link
    };
    // What comes before the first request belongs to the time that the backend may take.
    backend.connected(clock::timer() - begun);
    Ok(link)
}

/// Begins to speak HTTP/1.1 on a connection.
pub(super) async fn http1<S>(stream: S, tcp: Arc<TcpStream>) -> Result<Link, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    // No more fields than hyper has room for without an allocation: 100, as in a request.
    builder.max_buf_size(HEAD_BYTES);
    let (sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Handshake)?;
    let connection: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(connection.with_upgrades());
    Ok(Link::new(Sender::One(sender), Some(connection), tcp))
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
