//! The HTTP and HTTPS probe: one GET on a connection of its own.
//!
//! With TLS the certificate is **not** verified: a probe asks whether a server works, not who it is,
//! and backends often hold certificates for names that nobody can resolve from here. Nothing secret
//! is sent.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::{Arc, LazyLock},
};

use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, StatusCode,
    body::{Body, Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{Deadline, Observation, io_reason, tcp};
use crate::config::HttpProbe;

/// Bytes of a body that are read; the rest says nothing more about health.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// Bytes of a status line and header fields after which no more is read.
const MAX_HEADER_BYTES: usize = 64 * 1024;

const USER_AGENT: &str = concat!("ballast/", env!("CARGO_PKG_VERSION"), " (health check)");

/// Asks over plain TCP.
pub async fn probe(address: SocketAddr, probe: &HttpProbe, deadline: Deadline) -> Observation {
    let exchange = async {
        let stream = tcp::connect(address, deadline).await?;
        exchange(stream, address, probe, deadline).await
    };
    observation(exchange.await)
}

/// Asks over TLS.
pub async fn probe_tls(address: SocketAddr, probe: &HttpProbe, deadline: Deadline) -> Observation {
    let exchange = async {
        let stream = tcp::connect(address, deadline).await?;
        let connector = TlsConnector::from(Arc::clone(&TLS));
        let handshake = connector.connect(server_name(address, probe), stream);
        let stream = match deadline.within(handshake).await {
            Some(result) => result.map_err(|error| format!("TLS: {}", io_reason(&error)))?,
            None => return Err(deadline.missed("TLS: no handshake")),
        };
        exchange(stream, address, probe, deadline).await
    };
    observation(exchange.await)
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
    deadline: Deadline,
) -> Result<String, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = Request::get(&probe.path)
        .header(header::HOST, probe.host.clone().unwrap_or_else(|| address.to_string()))
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("cannot ask for {:?}: {error}", probe.path))?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEADER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| http_reason(&error))?;
    let answer = async {
        let response = match deadline.within(sender.send_request(request)).await {
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
    let verifier =
        AnyCertificate { schemes: provider.signature_verification_algorithms.supported_schemes() };
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

/// Takes every certificate; see the module.
#[derive(Debug)]
struct AnyCertificate {
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_host(host: Option<&str>) -> HttpProbe {
        HttpProbe { path: "/".into(), host: host.map(Into::into), expect: vec![(200, 399)] }
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
