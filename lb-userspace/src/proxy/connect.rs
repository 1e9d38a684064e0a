//! Connections to backends.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::timeout};

use super::{backend::Backend, decide::Failure, kept::Sending, stream::Stream};
use crate::{clock, config};

/// Longest head of an answer.
const HEAD_BYTES: usize = 64 << 10;

/// Most header fields of an answer.
const HEADERS: usize = 200;

/// Silence after which the kernel asks the other side whether it is still there, and how often.
const KEEPALIVE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A connection to a backend.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) sender: SendRequest<Sending>,
    pub(super) tcp: Arc<TcpStream>,
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
    builder.max_buf_size(HEAD_BYTES).max_headers(HEADERS);
    let (sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Handshake)?;
    // It ends when the connection does, or when nobody holds the sender any more. What goes wrong, the
    // request that it goes wrong with is told.
    tokio::spawn(async move { connection.with_upgrades().await.ok() });
    Ok(Link { sender, tcp })
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
