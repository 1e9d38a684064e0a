//! Connections to backends.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming, SizeHint},
    client::conn::TrySendError,
};
use nix::errno::Errno;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, timeout},
};

use super::{
    backend::Backend,
    decide::Failure,
    files::FILES,
    head::Head,
    inbound::Ends,
    kept::Sending,
    multiplex::{Place, Shared, is_unprocessed},
    outbound,
    service::View,
    stream::Stream,
    wire::{self, Io, Why, Wire},
};
use crate::clock;

/// Silence after which the kernel asks the other side whether it is still there, and how often.
const KEEPALIVE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A connection to a backend.
///
/// One that speaks HTTP/1.1 is no task of its own: whoever has the link drives it. So what the backend
/// sends wakes the one task that waits for it, and a connection that nobody uses costs nothing.
#[derive(Debug)]
pub(super) struct Link {
    sender: Sender,
    /// When it is looked next whether there is still an answer to wait for. One timer for all requests
    /// of the connection: setting one for each would cost more.
    look: Pin<Box<Sleep>>,
    pub(super) tcp: Arc<TcpStream>,
    /// Its resets are noted.
    pub(super) is_watched: bool,
}

/// What takes requests.
#[derive(Debug)]
enum Sender {
    /// One after the other, in HTTP/1.1.
    One(Box<Wire>),
    /// Many at once, in HTTP/2. The connection is a task of its own.
    Many(Place),
}

/// A request that is on its way.
pub(super) enum Asked {
    One,
    Many(Pin<Box<dyn Future<Output = Sent> + Send>>),
}

/// What becomes of a request in HTTP/2; the error has it back if nothing of it was written.
pub(super) type Sent = Result<Response<Incoming>, TrySendError<Request<Sending>>>;

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Reply {
    /// The link has it; see [`Link::poll_body`].
    One,
    Many(Incoming),
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) failure: Failure,
    /// Something of the request has been written.
    pub(super) written: bool,
    /// The backend says that it has not looked at it.
    pub(super) unprocessed: bool,
}

impl Link {
    fn new(sender: Sender, tcp: Arc<TcpStream>) -> Self {
        let look = Box::pin(tokio::time::sleep_until(clock::timer()));
        Self { sender, look, tcp, is_watched: false }
    }

    /// One place of many on a connection.
    pub(super) fn many(place: Place) -> Self {
        let tcp = Arc::clone(place.tcp());
        Self::new(Sender::Many(place), tcp)
    }

    /// Whether it can take a request now. Whoever waited for it is not woken any more: else the next
    /// request would wake a client that has nothing to do with it.
    pub(super) fn is_ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::One(wire) => wire.is_ready(),
            Sender::Many(place) => place.is_open(),
        }
    }

    /// Whether it can take a request, as far as is known.
    pub(super) fn seems_ready(&self) -> bool {
        match &self.sender {
            Sender::One(wire) => wire.is_free(),
            Sender::Many(_) => false,
        }
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        match &self.sender {
            Sender::One(wire) => wire.is_over(),
            Sender::Many(place) => !place.is_open(),
        }
    }

    /// Drives it until it can take a request, if it will.
    pub(super) async fn ready(&mut self) -> bool {
        let ready = std::future::poll_fn(|cx| match &mut self.sender {
            Sender::One(wire) => wire.poll_ready(cx),
            Sender::Many(place) => Poll::Ready(place.is_open()),
        });
        ready.await
    }

    /// Sends a request.
    pub(super) fn send(&mut self, head: &Head, body: Sending) -> Asked {
        match &mut self.sender {
            Sender::One(wire) => {
                wire.send(head, body);
                Asked::One
            }
            Sender::Many(place) => Asked::Many(Box::pin(place.send(head.request(body)))),
        }
    }

    /// The head of the answer to what was asked, once it is there.
    pub(super) fn poll_answer(
        &mut self,
        asked: &mut Asked,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<Reply>, Broken>> {
        Poll::Ready(match (&mut self.sender, asked) {
            (_, Asked::Many(answer)) => match ready!(answer.as_mut().poll(cx)) {
                Ok(answer) => Ok(answer.map(Reply::Many)),
                Err(mut error) => Err(Broken {
                    written: error.take_message().is_none(),
                    unprocessed: is_unprocessed(error.error()),
                    failure: of_hyper(error.error()),
                }),
            },
            (Sender::One(wire), Asked::One) => match ready!(wire.poll_answer(cx)) {
                Ok(answer) => Ok(answer.map(|()| Reply::One)),
                Err(wire::Broken { why, written }) => {
                    let failure = match why {
                        Why::Closed => Failure::Closed,
                        Why::Slow => Failure::SendTimeout,
                        Why::Malformed => Failure::InvalidHeader,
                    };
                    Err(Broken { failure, written, unprocessed: false })
                }
            },
            (Sender::Many(_), Asked::One) => unreachable!("what was asked is of this connection"),
        })
    }

    /// The next piece of the answer's body, if the link has it.
    pub(super) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.sender {
            Sender::One(wire) => wire.poll_body(cx),
            Sender::Many(_) => Poll::Ready(None),
        }
    }

    /// Whether nothing is left of the answer, if the link has its body.
    pub(super) fn has_answered(&self) -> bool {
        match &self.sender {
            Sender::One(wire) => wire.has_answered(),
            Sender::Many(_) => true,
        }
    }

    /// Whether all of the answer has come, as far as can be seen, if the link has its body.
    pub(super) fn is_at_hand(&self) -> bool {
        match &self.sender {
            Sender::One(wire) => wire.is_at_hand(),
            Sender::Many(_) => false,
        }
    }

    /// How long the rest of the answer's body is, if the link has it.
    pub(super) fn left(&self) -> SizeHint {
        match &self.sender {
            Sender::One(wire) => wire.left(),
            Sender::Many(_) => SizeHint::with_exact(0),
        }
    }

    /// The connection, after a change of protocol, and what has come on it already. There is none in
    /// HTTP/2.
    pub(super) fn into_parts(self) -> Option<(Box<dyn Io>, Bytes)> {
        match self.sender {
            Sender::One(wire) => Some(wire.into_parts()),
            Sender::Many(_) => None,
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
        http1(stream, tcp)
    } else {
        let left = proxy.connect_timeout.saturating_sub(clock::timer() - begun);
        let prepared = Box::pin(outbound::prepare(view, ends, backend.address, &tcp, stream));
        timeout(left, prepared).await.map_err(|_| Failure::ConnectTimeout).flatten()?
    };
    // What comes before the first request belongs to the time that the backend may take.
    backend.connected(clock::timer() - begun);
    Ok(link)
}

/// A connection on which HTTP/1.1 is spoken.
pub(super) fn http1(stream: impl Io + 'static, tcp: Arc<TcpStream>) -> Link {
    Link::new(Sender::One(Box::new(Wire::new(stream))), tcp)
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    if FILES.is_reserved(&tcp) {
        return Err(Errno::EMFILE.into());
    }
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
        _ => {
            FILES.is_shortage(error);
            Failure::Local
        }
    }
}

/// What an error of HTTP/2 is.
fn of_hyper(error: &hyper::Error) -> Failure {
    if error.is_parse() {
        return Failure::InvalidHeader;
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::TimedOut
        {
            return Failure::SendTimeout;
        }
        source = cause.source();
    }
    Failure::Closed
}
