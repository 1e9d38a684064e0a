//! Asks the members of etcd, one after the other until one answers, each on a connection of its own.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::Error;
use crate::config::Consensus;

/// How long a member may take to answer. One that has lost the others takes longer.
const MEMBER: Duration = Duration::from_millis(800);

/// Bytes of an answer that are read.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    tls: bool,
    /// Name or address.
    host: String,
    port: u16,
    /// As it was written.
    url: String,
}

/// The members, and how they are asked.
#[derive(Debug)]
pub struct Client {
    members: Vec<Member>,
    ca_file: Option<PathBuf>,
    /// Name, and the file with the password.
    user: Option<(String, PathBuf)>,
    /// The member that has answered last.
    preferred: AtomicUsize,
    /// What shows who we are, once etcd has given it.
    token: Mutex<Option<String>>,
}

/// Why a member has given no answer.
enum Failure {
    /// In words.
    Failed(String),
    /// It does not know who we are, or no longer.
    Unknown(String),
}

impl Client {
    /// A client; it connects to nobody yet.
    #[must_use]
    pub fn new(consensus: &Consensus) -> Self {
        let Consensus { etcd, ca_file, user, password_file, .. } = consensus;
        Self {
            members: etcd.iter().filter_map(|url| member(url)).collect(),
            ca_file: ca_file.clone(),
            user: user.clone().zip(password_file.clone()),
            preferred: AtomicUsize::new(0),
            token: Mutex::new(None),
        }
    }

    /// Asks the members in turn, beginning with the one that has answered last.
    pub async fn ask(&self, path: &str, body: &Value) -> Result<Value, Error> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut reasons = Vec::new();
        for turn in 0..self.members.len() {
            let at = (first + turn) % self.members.len();
            let member = &self.members[at];
            match timeout(MEMBER, self.ask_as_user(member, path, body)).await {
                Ok(Ok(answer)) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(Failure::Failed(why) | Failure::Unknown(why))) => {
                    reasons.push(format!("{}: {why}", member.url));
                }
                Err(_) => reasons.push(format!("{}: no answer", member.url)),
            }
        }
        Err(Error::Failed(reasons.join("; ")))
    }

    /// Asks a member, and shows it who we are if it wants to know.
    async fn ask_as_user(
        &self,
        member: &Member,
        path: &str,
        body: &Value,
    ) -> Result<Value, Failure> {
        let Some((user, file)) = &self.user else {
            return self.exchange(member, path, body, None).await;
        };
        let known = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(token) = known {
            match self.exchange(member, path, body, Some(&token)).await {
                // It has been started again, or the token is too old.
                Err(Failure::Unknown(_)) => {}
                other => return other,
            }
        }
        let password = read(file).await?;
        let password = String::from_utf8_lossy(&password);
        let login =
            json!({ "name": user, "password": password.lines().next().unwrap_or_default() });
        let answer = self.exchange(member, "/v3/auth/authenticate", &login, None).await?;
        let token = answer["token"].as_str().map(str::to_owned);
        let token = token.ok_or_else(|| Failure::Failed("it gives no token".into()))?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        self.exchange(member, path, body, Some(&token)).await
    }

    async fn exchange(
        &self,
        member: &Member,
        path: &str,
        body: &Value,
        token: Option<&str>,
    ) -> Result<Value, Failure> {
        let stream = TcpStream::connect((member.host.as_str(), member.port)).await;
        let stream = stream.map_err(|error| Failure::Failed(error.to_string()))?;
        // Small questions; without this each waits for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let request = Request::post(path)
            .header(header::HOST, format!("{}:{}", member.host, member.port))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close");
        let request = token
            .iter()
            .fold(request, |request, token| request.header(header::AUTHORIZATION, *token));
        let request = request
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|error| Failure::Failed(error.to_string()))?;
        if !member.tls {
            return talk(stream, request).await;
        }
        let connector = self.connector().await?;
        let name = ServerName::try_from(member.host.clone());
        let name = name.map_err(|error| Failure::Failed(error.to_string()))?;
        let stream = connector.connect(name, stream).await;
        talk(stream.map_err(|error| Failure::Failed(format!("TLS: {error}")))?, request).await
    }

    /// TLS that verifies a member's certificate by those of the file, which may have been replaced.
    async fn connector(&self) -> Result<TlsConnector, Failure> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &self.ca_file {
            let text = read(path).await?;
            let wrong = |why: String| Failure::Failed(format!("read {}: {why}", path.display()));
            for certificate in CertificateDer::pem_slice_iter(&text) {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::Failed(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let text = tokio::fs::read(path).await;
    text.map_err(|error| Failure::Failed(format!("read {}: {error}", path.display())))
}

/// Sends one request, and reads the answer to its end.
async fn talk<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Value, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| Failure::Failed(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // It ends with the answer, as both sides close.
    let connection = tokio::spawn(connection);
    let answer = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| Failure::Failed(error.to_string()))?.to_bytes();
        let answer: Value = serde_json::from_slice(&body)
            .map_err(|error| Failure::Failed(format!("HTTP {status}: {error}")))?;
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer["error"].as_str().or_else(|| answer["message"].as_str());
        let text = format!("HTTP {}: {}", status.as_u16(), text.unwrap_or_default());
        // A token is also refused when users were changed after it was given.
        let unknown = status == StatusCode::UNAUTHORIZED || text.contains("auth store is old");
        Err(if unknown { Failure::Unknown(text) } else { Failure::Failed(text) })
    };
    let answer = answer.await;
    connection.abort();
    answer
}

/// Reads a member's address; none if it has no host, which `check` does not let through.
fn member(url: &str) -> Option<Member> {
    let (tls, rest) = match url.strip_prefix("https://") {
        Some(rest) => (true, rest),
        None => (false, url.strip_prefix("http://")?),
    };
    let place = rest.split('/').next().filter(|place| !place.is_empty())?;
    let (host, port) = match place.rsplit_once(':') {
        // The colons of an IPv6 address stand within brackets.
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (place, 2379),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some(Member { tls, host, port, url: url.trim_end_matches('/').to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_members_are_understood() {
        let of = |url| member(url).map(|it| (it.tls, it.host, it.port));
        assert_eq!(of("http://192.0.2.11:2379"), Some((false, "192.0.2.11".into(), 2379)));
        assert_eq!(
            of("https://etcd-1.example.org/"),
            Some((true, "etcd-1.example.org".into(), 2379))
        );
        assert_eq!(of("https://[2001:db8::11]:12379"), Some((true, "2001:db8::11".into(), 12379)));
        assert_eq!(of("http://[2001:db8::11]"), Some((false, "2001:db8::11".into(), 2379)));
        assert_eq!(of("http://host:port"), None);
    }
}
