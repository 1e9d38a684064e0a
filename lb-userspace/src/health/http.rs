//! The HTTP and HTTPS probe: one GET on a connection of its own.
//!
//! With TLS the certificate is **not** verified, unless the service's proxy verifies it: a probe asks
//! whether a server works, not who it is, and backends often hold certificates for names that nobody
//! can resolve from here. Nothing secret is sent. What the proxy could not use is not fit: backends of a
//! proxied service are asked as the proxy asks them, with its certificates, version of HTTP, and header
//! of the PROXY protocol.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Body, Bytes, Incoming},
    client::conn::{http1, http2},
    header,
    http::uri::Scheme,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, client::Resumption, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{Deadline, Observation, io_reason, tcp};
use crate::{
    config::{HttpProbe, Upstream},
    proxy::{outbound, secure, secure::Secure},
    trust::AnyCertificate,
};

/// Bytes of a body that are read; the rest says nothing more about health.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// Bytes of a status line and header fields after which no more is read.
const MAX_HEADER_BYTES: usize = 64 * 1024;

const USER_AGENT: &str = concat!("ballast/", env!("CARGO_PKG_VERSION"), " (health check)");

/// What a backend's probes have read of the files that the proxy's configuration names.
///
/// It is read anew after a probe has failed: a certificate that is new may be trusted by a file that is.
#[derive(Debug, Default)]
pub struct Trust(Mutex<Option<Arc<Secure>>>);

impl Trust {
    async fn get(&self, upstream: &Upstream) -> Result<Option<Arc<Secure>>, String> {
        if upstream.tls.is_none() {
            return Ok(None);
        }
        let known = self.lock().clone();
        if known.is_some() {
            return Ok(known);
        }
        let upstream = upstream.clone();
        let read = tokio::task::spawn_blocking(move || Secure::new(&upstream)).await;
        let read = read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        self.lock().clone_from(&read);
        Ok(read)
    }

    fn forget(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Secure>>> {
        // Each change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks over plain TCP.
pub async fn probe(address: SocketAddr, probe: &HttpProbe, deadline: &Deadline) -> Observation {
    let exchange = async {
        let stream = connect(address, probe, deadline).await?;
        // The proxy speaks HTTP/2 at once only where it speaks no TLS.
        let http2 = probe.upstream.http2 && probe.upstream.tls.is_none();
        exchange(stream, address, probe, Scheme::HTTP, http2, deadline).await
    };
    observation(exchange.await)
}

/// Asks over TLS.
pub async fn probe_tls(
    address: SocketAddr,
    probe: &HttpProbe,
    trust: &Trust,
    deadline: &Deadline,
) -> Observation {
    let exchange = async {
        let secure = trust.get(&probe.upstream).await?;
        let stream = connect(address, probe, deadline).await?;
        let handshake = async {
            if let Some(secure) = secure {
                secure.connect(address, stream).await
            } else {
                let connector = TlsConnector::from(Arc::clone(&TLS));
                connector.connect(server_name(address, probe), stream).await
            }
        };
        let stream = match deadline.within(handshake).await {
            Some(result) => result.map_err(|error| format!("TLS: {}", io_reason(&error)))?,
            None => return Err(deadline.missed("TLS: no handshake")),
        };
        let http2 = secure::is_http2(&stream);
        exchange(stream, address, probe, Scheme::HTTPS, http2, deadline).await
    };
    let result = exchange.await;
    if result.is_err() {
        trust.forget();
    }
    observation(result)
}

/// A connection, with the header that the proxy's have: it says that nobody else is behind it.
async fn connect(
    address: SocketAddr,
    probe: &HttpProbe,
    deadline: &Deadline,
) -> Result<TcpStream, String> {
    let mut stream = tcp::connect(address, deadline).await?;
    let header = probe.upstream.send_proxy.and_then(outbound::local_header);
    if let Some(header) = header {
        match deadline.within(stream.write_all(&header)).await {
            Some(result) => result.map_err(|error| io_reason(&error))?,
            None => return Err(deadline.missed("connected, but nothing is taken")),
        }
    }
    Ok(stream)
}

fn observation(result: Result<String, String>) -> Observation {
    match result {
        Ok(reason) => Observation::Pass(reason),
        Err(reason) => Observation::Fail(reason),
    }
}

async fn exchange<S>(
    stream: S,
    address: SocketAddr,
    probe: &HttpProbe,
    scheme: Scheme,
    http2: bool,
    deadline: &Deadline,
) -> Result<String, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let host = probe.host.clone().unwrap_or_else(|| address.to_string());
    let request =
        Request::builder().header(header::USER_AGENT, USER_AGENT).header(header::ACCEPT, "*/*");
    let request = if http2 {
        let uri = Uri::builder().scheme(scheme).authority(host).path_and_query(&*probe.path);
        request.uri(uri.build().map_err(|error| cannot_ask(probe, &error))?)
    } else {
        request.uri(&*probe.path).header(header::HOST, host).header(header::CONNECTION, "close")
    };
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| cannot_ask(probe, &error))?;
    let stream = TokioIo::new(stream);
    if http2 {
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .handshake(stream)
            .await
            .map_err(|error| http_reason(&error))?;
        return judge(sender.send_request(request), connection, probe, deadline).await;
    }
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEADER_BYTES)
        .handshake(stream)
        .await
        .map_err(|error| http_reason(&error))?;
    judge(sender.send_request(request), connection, probe, deadline).await
}

fn cannot_ask(probe: &HttpProbe, error: &hyper::http::Error) -> String {
    format!("cannot ask for {:?}: {error}", probe.path)
}

/// Waits for an answer, and says what is to be thought of it.
async fn judge(
    sent: impl Future<Output = hyper::Result<Response<Incoming>>>,
    connection: impl Future<Output = hyper::Result<()>>,
    probe: &HttpProbe,
    deadline: &Deadline,
) -> Result<String, String> {
    let answer = async {
        let response = match deadline.within(sent).await {
            Some(result) => result.map_err(|error| http_reason(&error))?,
            None => return Err(deadline.missed("connected, but no HTTP answer")),
        };
        let status = response.status();
        if !expected(status, &probe.expect) {
            return Err(format!("HTTP {}, expected {}", status.as_u16(), ranges(&probe.expect)));
        }
        match deadline.within(read(response.into_body())).await {
            Some(Ok(())) => Ok(format!("HTTP {}", status.as_u16())),
            Some(Err(_)) => Err(format!("HTTP {}, but the body broke off", status.as_u16())),
            None => {
                Err(deadline.missed(&format!("HTTP {}, but the body did not end", status.as_u16())))
            }
        }
    };
    // The connection makes the answer progress. It may end first, with the answer in its buffers.
    match select(pin!(answer), pin!(connection)).await {
        Either::Left((result, _)) => result,
        Either::Right((_, answer)) => answer.await,
    }
}

async fn read(mut body: Incoming) -> hyper::Result<()> {
    let mut bytes = 0;
    while bytes < MAX_BODY_BYTES && !body.is_end_stream() {
        match body.frame().await {
            Some(frame) => bytes += frame?.data_ref().map_or(0, Bytes::len),
            None => break,
        }
    }
    Ok(())
}

fn expected(status: StatusCode, ranges: &[(u16, u16)]) -> bool {
    ranges.iter().any(|&(first, last)| (first..=last).contains(&status.as_u16()))
}

fn ranges(ranges: &[(u16, u16)]) -> String {
    let range = |&(first, last): &(u16, u16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(", ")
}

/// What an operator should read of hyper's errors.
fn http_reason(error: &hyper::Error) -> String {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            return format!("connected, but: {}", io_reason(error));
        }
        source = cause.source();
    }
    if error.is_parse_too_large() {
        "HTTP header too long".into()
    } else if error.is_parse() {
        "the answer is not HTTP/1.1".into()
    } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        "connection closed without an HTTP answer".into()
    } else {
        format!("HTTP: {error}")
    }
}

/// The name for SNI: the `host` of the probe if it is a name; an address is not sent (RFC 6066 §3).
fn server_name(address: SocketAddr, probe: &HttpProbe) -> ServerName<'static> {
    let name = probe.host.as_deref().and_then(|host| {
        // `name:port`; an IPv6 address has more than one colon and is no name.
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        ServerName::try_from(name.to_owned()).ok()
    });
    name.unwrap_or_else(|| ServerName::from(address.ip()))
}

static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = AnyCertificate::new(&provider);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring's cipher suites cover TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Backends that share a name must not share sessions, and each probe shall test a whole handshake.
    config.resumption = Resumption::disabled();
    Arc::new(config)
});

#[cfg(test)]
mod tests {
    use super::*;

    fn with_host(host: Option<&str>) -> HttpProbe {
        HttpProbe {
            path: "/".into(),
            host: host.map(Into::into),
            expect: vec![(200, 399)],
            upstream: Upstream::default(),
        }
    }

    #[test]
    fn ranges_read_like_the_configuration() {
        assert_eq!(ranges(&[(200, 399)]), "200-399");
        assert_eq!(ranges(&[(200, 200), (301, 302)]), "200, 301-302");
    }

    #[test]
    fn both_ends_of_a_range_are_expected() {
        let status = |code| StatusCode::from_u16(code).unwrap();
        for (code, fits) in [(199, false), (200, true), (399, true), (400, false), (404, true)] {
            assert_eq!(expected(status(code), &[(200, 399), (404, 404)]), fits, "{code}");
        }
    }

    #[test]
    fn only_a_name_is_sent_in_the_handshake() {
        let address = "192.0.2.1:443".parse().unwrap();
        let name = |host| server_name(address, &with_host(host)).to_str().into_owned();
        assert_eq!(name(Some("app.example")), "app.example");
        assert_eq!(name(Some("app.example:8443")), "app.example");
        for host in [None, Some("not a name"), Some("192.0.2.1"), Some("192.0.2.1:443")] {
            let name = server_name(address, &with_host(host));
            assert!(matches!(name, ServerName::IpAddress(_)), "{host:?} gives {name:?}");
        }
    }
}
