//! What comes between a connection to a backend and its first request: a header of the PROXY protocol,
//! TLS, HTTP/2.

use std::{net::SocketAddr, sync::Arc};

use hyper::http::uri::Scheme;
use proxy_header::{ProxiedAddress, ProxyHeader};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    connect::{self, Link},
    decide::Failure,
    inbound::Ends,
    multiplex::Shared,
    secure,
    service::View,
    stream::Stream,
};
use crate::config::{self, Upstream};

/// Prepares a connection for requests.
pub(super) async fn prepare(
    view: &View,
    ends: Ends,
    backend: SocketAddr,
    tcp: &Arc<TcpStream>,
    mut stream: Stream,
) -> Result<Link, Failure> {
    let upstream = &view.proxy.upstream;
    if let Some(version) = upstream.send_proxy {
        let header = header(version, Some(ends)).ok_or(Failure::Local)?;
        stream.write_all(&header).await.map_err(|_| Failure::Handshake)?;
    }
    if upstream.tls.is_none() {
        return link(stream, tcp, upstream, Scheme::HTTP, upstream.http2).await;
    }
    // It is not there if its files could not be read.
    let secure = view.secure.as_ref().ok_or(Failure::Local)?;
    let stream = secure.connect(backend, stream).await.map_err(|error| {
        tracing::debug!(%error, %backend, "make a connection secure");
        Failure::Handshake
    })?;
    let http2 = upstream.http2 && secure::is_http2(&stream);
    link(stream, tcp, upstream, Scheme::HTTPS, http2).await
}

async fn link<S>(
    stream: S,
    tcp: &Arc<TcpStream>,
    upstream: &Upstream,
    scheme: Scheme,
    http2: bool,
) -> Result<Link, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if !http2 {
        return Ok(connect::http1(stream, Arc::clone(tcp)));
    }
    let shared = Shared::begin(stream, Arc::clone(tcp), scheme, upstream.max_streams).await;
    let place = shared.ok().and_then(|shared| shared.place());
    place.map(Link::many).ok_or(Failure::Handshake)
}

/// A header that says that a connection is our own, and nobody is behind it.
pub(crate) fn local_header(version: config::ProxyHeader) -> Option<Vec<u8>> {
    header(version, None)
}

/// A header that tells both ends of a client's connection; without them, that it is our own.
fn header(version: config::ProxyHeader, ends: Option<Ends>) -> Option<Vec<u8>> {
    let header = match ends {
        Some(Ends { client, target }) => {
            let (client, target) = of_one_family(client, target);
            ProxyHeader::with_address(ProxiedAddress::stream(client, target))
        }
        None => ProxyHeader::with_local(),
    };
    let mut bytes = Vec::with_capacity(64);
    let written = match version {
        config::ProxyHeader::V1 => header.encode_v1(&mut bytes),
        config::ProxyHeader::V2 => header.encode_v2(&mut bytes),
    };
    written.ok().map(|()| bytes)
}

/// A header has one family for both ends.
fn of_one_family(client: SocketAddr, target: SocketAddr) -> (SocketAddr, SocketAddr) {
    let (client, target) = (canonical(client), canonical(target));
    if client.is_ipv4() == target.is_ipv4() {
        return (client, target);
    }
    (mapped(client), mapped(target))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        SocketAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_one_family() {
        let written = |client: &str, target: &str| {
            let ends = Ends { client: client.parse().unwrap(), target: target.parse().unwrap() };
            let line = header(config::ProxyHeader::V1, Some(ends)).unwrap();
            String::from_utf8(line).unwrap()
        };
        for (client, target, line) in [
            ("192.0.2.9:1", "192.0.2.100:80", "TCP4 192.0.2.9 192.0.2.100 1 80"),
            ("[::ffff:192.0.2.9]:1", "192.0.2.100:80", "TCP4 192.0.2.9 192.0.2.100 1 80"),
            ("[2001:db8::9]:1", "[2001:db8::100]:80", "TCP6 2001:db8::9 2001:db8::100 1 80"),
            ("[2001:db8::9]:1", "192.0.2.100:80", "TCP6 2001:db8::9 ::ffff:192.0.2.100 1 80"),
        ] {
            assert_eq!(written(client, target), format!("PROXY {line}\r\n"));
        }
        assert_eq!(header(config::ProxyHeader::V1, None).unwrap(), b"PROXY UNKNOWN\r\n");
        assert_eq!(header(config::ProxyHeader::V2, None).unwrap()[12], 0x20, "LOCAL");
    }
}
