//! One POST, over HTTP/1.1 and TLS.
//!
//! Certificates are verified: by those of the system, or by a file. No error says more of an address than
//! its host, because the rest is often a secret.

use std::{path::Path, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, StatusCode, Uri,
    body::Bytes,
    client::conn::http1,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::trust;

/// What one POST may take, from the name to the end of the answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Bytes of an answer that are read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// What is sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Post {
    /// The whole address.
    pub url: String,
    /// JSON.
    pub body: String,
    /// Sent as a bearer token (RFC 6750).
    pub token: Option<String>,
    /// So that a receiver can tell a repetition.
    pub key: Option<String>,
}

impl std::fmt::Debug for Post {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Post").field("body", &self.body).finish_non_exhaustive()
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// Wait so long before the next try.
    pub retry_after: Option<Duration>,
    /// The body, as far as it is read.
    pub body: String,
}

/// Sends it. `ca_file` has the certificates that the receiver's is verified by, in place of the system's.
pub async fn post(post: Post, ca_file: Option<&Path>) -> Result<Answer, String> {
    let uri: Uri = post.url.parse().map_err(|_| "the address makes no sense".to_owned())?;
    let host = uri.host().ok_or("the address names no host")?.to_owned();
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let work = async {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((bare, port))
            .await
            .map_err(|error| format!("connect to {host}: {error}"))?;
        if !secure {
            return exchange(stream, &uri, post).await;
        }
        let config = tls(ca_file).await?;
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|_| format!("{host} is no name that a certificate can be for"))?;
        let stream = TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|error| format!("TLS with {host}: {error}"))?;
        exchange(stream, &uri, post).await
    };
    timeout(LIMIT, work)
        .await
        .unwrap_or_else(|_| Err(format!("{host} has not answered within {LIMIT:?}")))
}

async fn exchange<S>(stream: S, uri: &Uri, post: Post) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| format!("the connection broke off: {error}");
    let target = uri.path_and_query().map_or("/", |it| it.as_str());
    let authority = uri.authority().map_or("", |it| it.as_str());
    // A name and password before the host are not for others.
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let mut request = Request::post(target)
        .header(HOST, host)
        .header(USER_AGENT, concat!("ballast/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, "application/json");
    if let Some(token) = post.token {
        let mut value = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| "the token has characters that a header cannot hold".to_owned())?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    if let Some(key) = post.key {
        request = request.header("idempotency-key", key);
    }
    let request = request
        .body(Full::new(Bytes::from(post.body)))
        .map_err(|_| "the address makes no sense".to_owned())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let connection = tokio::spawn(connection);
    let answer = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|it| it.to_str().ok());
        let retry_after = retry_after.and_then(|it| it.parse().ok()).map(Duration::from_secs);
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Ok(Answer { status, retry_after, body: String::from_utf8_lossy(&body).into_owned() })
    };
    let answer = answer.await;
    connection.abort();
    answer
}

async fn tls(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let ca_file = ca_file.map(Path::to_owned);
    let roots = tokio::task::spawn_blocking(move || trust::roots(ca_file.as_deref()));
    let roots = roots.await.map_err(|error| error.to_string())??;
    let config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
    Ok(Arc::new(config))
}
