//! The connections of clients.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_rustls::TlsAcceptor;

use super::{
    calm::Calm,
    edge::Edge,
    exchange,
    files::FILES,
    gate::gated,
    headers::Named,
    http1::http1,
    inbound::{self, Ends},
    packets,
    pool::Pool,
    service::{LEAVE, Open, Phase, Service, View},
    stall::Answers,
    stream::Stream,
    strict::HEAD_BYTES,
    tls,
};
use crate::clock;

/// Most requests of a connection that are under way at once, with HTTP/2 (nginx:
/// `http2_max_concurrent_streams`).
const STREAMS: u32 = 128;

/// Most streams of a connection, in its whole life, that are reset for what is wrong with them.
const WRONG_STREAMS: usize = 1024;

/// Most streams that a client has taken back before they were looked at, at once.
const PENDING_RESETS: usize = 20;

/// Most bytes of one answer, in HTTP/2, that wait for their client beside those in the socket.
const SEND_BYTES: usize = 128 << 10;

/// How long, and how much, is still read of a client that was refused.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 1 << 20;

/// How often unused connections are looked through.
const SWEEP: Duration = Duration::from_secs(5);

/// A service, as one worker has it.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) service: Arc<Service>,
    view: watch::Receiver<Arc<View>>,
    pub(super) pool: Pool,
    turn: AtomicU32,
}

/// Who a connection is from.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) route: Arc<Route>,
    pub(super) address: SocketAddr,
    pub(super) open: Arc<Open>,
    pub(super) edge: Arc<Edge>,
    /// What backends are told of it.
    pub(super) named: Named,
    pub(super) ends: Ends,
    /// Unused connections to backends that are for this client alone: they have begun with its name.
    own: Option<Pool>,
}

impl Client {
    /// Unused connections that its requests may have.
    pub(super) fn pool(&self) -> &Pool {
        self.own.as_ref().unwrap_or(&self.route.pool)
    }
}

impl Route {
    pub(super) fn new(service: Arc<Service>) -> Arc<Self> {
        let view = service.watch();
        let turn = AtomicU32::new(fastrand::u32(..));
        Arc::new(Self { service, view, pool: Pool::default(), turn })
    }

    /// What holds now.
    pub(super) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.service.phase()
    }

    /// The next turn of the round robin.
    pub(super) fn turn(&self) -> u32 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// A connection could not be taken.
    pub(super) fn count_accept_failure(&self, error: &io::Error) {
        // That no file is left is told once, and not by each worker each time.
        if !FILES.is_shortage(error) {
            tracing::warn!(%error, service = self.service.name, "take a connection");
        }
    }

    /// Closes connections to backends that are of no use any more, until the service ends.
    pub(super) async fn sweep(self: Arc<Self>) {
        let mut phase = self.phase();
        let mut ticks = interval(SWEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => break,
                _ = ticks.tick() => {}
            }
            let view = self.view();
            self.pool.sweep(clock::timer(), |address| {
                view.seats.iter().any(|seat| seat.backend.address == address && seat.serving)
            });
        }
        self.pool.sweep(clock::timer(), |_| false);
    }
}

/// Serves one connection to its end.
pub(super) async fn connection(route: Arc<Route>, tcp: TcpStream, address: SocketAddr) {
    let open = Arc::new(route.service.open());
    route.service.stats.connections.add();
    let tcp = Arc::new(tcp);
    let view = route.view();
    let ends = if view.proxy.accept_proxy.is_empty() {
        Ends { client: address, target: route.service.listen }
    } else {
        packets::acknowledge(&tcp);
        let identified = Box::pin(inbound::identify(&route.service, &view, &tcp, address));
        let Some(ends) = identified.await else { return };
        ends
    };
    let address = ends.client;
    let timeout = view.proxy.client_timeout;
    let edge = Arc::new(Edge::new(clock::timer()));
    let stream = Stream::of_client(Arc::clone(&tcp), timeout, Arc::clone(&edge));
    let scheme = if view.tls.is_some() { "https" } else { "http" };
    let client = Arc::new(Client {
        route: Arc::clone(&route),
        address,
        open,
        edge: Arc::clone(&edge),
        named: Named::new(address.ip(), scheme),
        ends,
        own: view.proxy.upstream.send_proxy.map(|_| Pool::default()),
    });
    // Each in a box of its own, so that the state of a connection has room for what it is and not for
    // what it might be; and nothing of the configuration is held while it lasts.
    let tls = view.tls.clone();
    drop(view);
    if let Some(tls) = tls {
        packets::acknowledge(&tcp);
        Box::pin(secured(client, TlsAcceptor::from(tls), stream, timeout)).await;
    } else {
        let served = Box::pin(http1(Arc::clone(&client), stream, true, timeout)).await;
        if let Some(stream) = served {
            packets::acknowledge(&tcp);
            Box::pin(http2(client, stream, timeout)).await;
        }
    }
    if edge.has_refused() || edge.is_sent_away() {
        // It ends only with the last copy of the descriptor.
        let _ = tokio::time::timeout(LINGER, Box::pin(linger(&tcp))).await;
    }
}

/// Serves a connection once it is secure.
async fn secured(client: Arc<Client>, tls: TlsAcceptor, stream: Stream, timeout: Duration) {
    let handshake = Box::pin(tls.accept(stream));
    let Ok(Ok(stream)) = tokio::time::timeout(timeout, handshake).await else {
        client.route.service.stats.handshakes.add();
        return;
    };
    if stream.get_ref().1.alpn_protocol() == Some(tls::HTTP_2) {
        Box::pin(http2(client, stream, timeout)).await;
    } else {
        Box::pin(http1(client, stream, false, timeout)).await;
    }
}

async fn http2<S>(client: Arc<Client>, stream: S, timeout: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (service_of, edge) = (Arc::clone(&client.route.service), Arc::clone(&client.edge));
    let open = Arc::clone(&client.open);
    let service = service_fn(move |request| {
        let client = Arc::clone(&client);
        async move { Ok::<_, Infallible>(exchange::exchange(&client, request).await) }
    });
    let answers = Answers { service: Arc::clone(&service_of), timeout };
    let mut builder = http2::Builder::new(answers);
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(timeout)
        .keep_alive_timeout(timeout)
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(WRONG_STREAMS)
        .max_send_buf_size(SEND_BYTES)
        .max_header_list_size(HEAD_BYTES as u32);
    let stream = Calm::new(stream, service_of, edge);
    let connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // How it ended is the client's matter.
    let _ = until_told(&open, connection, http2::Connection::graceful_shutdown).await;
}

/// Runs a connection to its end, which is told it when its time ends.
pub(super) async fn until_told<C: Future<Output = hyper::Result<()>>>(
    open: &Open,
    mut connection: Pin<&mut C>,
    tell: impl Fn(Pin<&mut C>),
) -> hyper::Result<()> {
    let mut phase = open.phase();
    let (mut seen, mut told) = (Phase::Serving, false);
    loop {
        // Before it ends, there is nothing to be told.
        let next = pin!(next(&mut phase, seen));
        let next = gated(|| open.ends(), next);
        tokio::select! {
            biased;
            result = &mut connection => return result,
            phase = next => match phase {
                Phase::Serving | Phase::Draining | Phase::Closing => seen = phase,
                Phase::Cut => return Ok(()),
            },
            () = sleep(LEAVE), if seen != Phase::Serving && !told => {
                // Answers until now have said that they are the last; who has not asked is cut off.
                tell(connection.as_mut());
                told = true;
            }
        }
    }
}

/// Reads what a client still sends that has been refused, so that it reads its answer before the
/// connection is reset (RFC 9112, section 9.6).
async fn linger(tcp: &TcpStream) -> io::Result<()> {
    let mut left = LINGER_BYTES;
    let mut bytes = [0; 4096];
    while left > 0 {
        tcp.readable().await?;
        match tcp.try_read(&mut bytes) {
            Ok(0) => break,
            Ok(read) => left = left.saturating_sub(read),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The phase after the one that has been seen.
pub(super) async fn next(phase: &mut watch::Receiver<Phase>, seen: Phase) -> Phase {
    // It fails only if the service is gone, which this connection holds.
    phase.wait_for(|phase| *phase != seen).await.map_or(Phase::Cut, |phase| *phase)
}
