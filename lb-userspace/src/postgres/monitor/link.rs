//! A server that is asked: how it is reached, and what its errors mean.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow, error::SqlState};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    clock,
    config::{Postgres, Server},
    postgres::sample::{Failure, FailureKind},
};

/// A server that is asked.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its name.
    pub server: String,
    /// Its address.
    pub address: std::net::SocketAddr,
    user: String,
    database: String,
    password_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    /// What connecting, and each question, may take.
    pub limit: Duration,
    /// A connection that was made before it is needed.
    spare: Arc<Spare>,
}

/// A connection that was made before it is needed, and when.
#[derive(Debug, Default)]
struct Spare(Mutex<Option<(Session, Duration)>>);

/// A spare connection that is older may be one in name only.
const SPARE: Duration = Duration::from_secs(10);

/// How long one statement over a spare connection may take.
const STATEMENT: Duration = Duration::from_secs(5);

/// A connection. Dropping it ends it.
pub struct Session {
    client: Client,
    connection: JoinHandle<()>,
    limit: Duration,
}

impl fmt::Debug for Session {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Session")
            .field("closed", &self.client.is_closed())
            .finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Link {
    /// The way to a server of a database.
    pub fn new(database: &Postgres, server: &Server) -> Self {
        Self {
            server: server.name.clone(),
            address: server.address,
            user: database.user.clone(),
            database: database.database.clone(),
            password_file: database.password_file.clone(),
            ca_file: database.ca_file.clone(),
            limit: database.timeout,
            spare: Arc::default(),
        }
    }

    /// Makes a connection that [`Self::connect_soon`] will want.
    pub async fn prepare(&self) {
        // If it comes to nothing, it is made when it is wanted.
        if let Ok(session) = self.connect_for(STATEMENT).await {
            self.give_back(session);
        }
    }

    /// Keeps a connection for who wants one next.
    pub fn give_back(&self, session: Session) {
        *self.lock_spare() = Some((session, clock::monotonic()));
    }

    /// Nobody wants the spare connection.
    pub fn forget(&self) {
        drop(self.lock_spare().take());
    }

    /// The spare connection, or a new one.
    pub async fn connect_soon(&self) -> Result<Session, Failure> {
        let spare = self.lock_spare().take();
        match spare {
            Some((session, made))
                if !session.client.is_closed() && clock::monotonic() < made + SPARE =>
            {
                Ok(session)
            }
            _ => self.connect_for(STATEMENT).await,
        }
    }

    fn lock_spare(&self) -> MutexGuard<'_, Option<(Session, Duration)>> {
        self.spare.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, where connecting, and each question, may take so long.
    #[must_use]
    pub fn patient(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// A connection on which nothing is written.
    pub async fn connect(&self) -> Result<Session, Failure> {
        self.connect_with(self.limit, "-c default_transaction_read_only=on").await
    }

    /// A connection whose questions may take so long.
    pub async fn connect_for(&self, limit: Duration) -> Result<Session, Failure> {
        self.connect_with(limit, "").await
    }

    async fn connect_with(&self, limit: Duration, options: &str) -> Result<Session, Failure> {
        let work = self.open(limit, options);
        // The limit of the library is for TCP alone.
        timeout(self.limit, work)
            .await
            .unwrap_or_else(|_| Err(silent(format!("no connection within {:?}", self.limit))))
    }

    async fn open(&self, limit: Duration, options: &str) -> Result<Session, Failure> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(self.address.ip().to_string())
            .port(self.address.port())
            .user(&self.user)
            .dbname(&self.database)
            .application_name("ballast")
            .connect_timeout(self.limit)
            .tcp_user_timeout(limit)
            .keepalives_idle(Duration::from_secs(2))
            .keepalives_interval(Duration::from_secs(1))
            .keepalives_retries(2)
            .options(format!(
                "-c statement_timeout={} -c lock_timeout=500 {options}",
                limit.as_millis()
            ));
        if let Some(path) = &self.password_file {
            let text = tokio::fs::read(path).await.map_err(|error| {
                refuses(format!("read the password from {}: {error}", path.display()))
            })?;
            let end = text.iter().position(|&byte| byte == b'\n').unwrap_or(text.len());
            config.password(&text[..end]);
        }
        let (client, connection) = if let Some(path) = &self.ca_file {
            let connector = tls(path).await?;
            config.ssl_mode(tokio_postgres::config::SslMode::Require);
            let (client, connection) =
                config.connect(connector).await.map_err(|error| understand(&error))?;
            (client, tokio::spawn(async move { drop(connection.await) }))
        } else {
            config.ssl_mode(tokio_postgres::config::SslMode::Disable);
            let (client, connection) =
                config.connect(NoTls).await.map_err(|error| understand(&error))?;
            (client, tokio::spawn(async move { drop(connection.await) }))
        };
        Ok(Session { client, connection, limit })
    }
}

/// TLS that verifies the server's certificate by those in a file.
async fn tls(path: &std::path::Path) -> Result<MakeRustlsConnect, Failure> {
    let wrong = |why: String| refuses(format!("read certificates from {}: {why}", path.display()));
    let text = tokio::fs::read(path).await.map_err(|error| wrong(error.to_string()))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("there is none".into()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

impl Session {
    /// Runs statements that give no rows. Each that must be alone is given alone.
    pub async fn run(&self, statement: &str) -> Result<(), Failure> {
        let work = self.client.batch_execute(statement);
        self.limited(work).await
    }

    /// The rows of a question, as text.
    pub async fn rows(&self, statement: &str) -> Result<Vec<SimpleQueryRow>, Failure> {
        let messages = self.limited(self.client.simple_query(statement)).await?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The one row of a question.
    pub async fn row(&self, statement: &str) -> Result<SimpleQueryRow, Failure> {
        let mut rows = self.rows(statement).await?;
        rows.pop().ok_or_else(|| unfit("the server gave no row".into()))
    }

    /// Asks what makes the server write: gives why it cannot, if so.
    pub async fn refusal(&self, statement: &str) -> Result<Option<String>, Failure> {
        match timeout(self.limit, self.client.simple_query(statement)).await {
            Ok(Ok(_)) => Ok(None),
            Ok(Err(error)) => match error.as_db_error().filter(|it| cannot_write(it.code())) {
                Some(said) => Ok(Some(said.message().to_owned())),
                None => Err(understand(&error)),
            },
            Err(_) => Err(silent(format!("no answer within {:?}", self.limit))),
        }
    }

    /// The one value of a question.
    pub async fn value(&self, statement: &str) -> Result<Option<String>, Failure> {
        let row = self.row(statement).await?;
        Ok(row.try_get(0).ok().flatten().map(str::to_owned))
    }

    async fn limited<T>(
        &self,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Failure> {
        match timeout(self.limit, work).await {
            Ok(result) => result.map_err(|error| understand(&error)),
            Err(_) => Err(silent(format!("no answer within {:?}", self.limit))),
        }
    }
}

/// Whether an error says that the server's disk takes nothing. A file system that is read-only is one that lacks a
/// privilege, in the server's words.
fn cannot_write(code: &SqlState) -> bool {
    [SqlState::DISK_FULL, SqlState::IO_ERROR, SqlState::INSUFFICIENT_PRIVILEGE].contains(code)
}

/// What a server does with the first connection to a database since it was started, or since one of its catalogs has
/// changed: it keeps what it found in a file, and gives the connection up if that cannot be written. Before version
/// 16 the error has no code that says so; this name is in no language.
const CACHES: &str = "write_relcache_init_file";

fn silent(reason: String) -> Failure {
    Failure { kind: FailureKind::Silent, reason }
}

fn refuses(reason: String) -> Failure {
    Failure { kind: FailureKind::Refuses, reason }
}

pub(super) fn unfit(reason: String) -> Failure {
    Failure { kind: FailureKind::Unfit, reason }
}

/// What an error says of the server.
fn understand(error: &tokio_postgres::Error) -> Failure {
    if let Some(db) = error.as_db_error() {
        let said = db.message();
        let code = db.code();
        return if *code == SqlState::INVALID_PASSWORD {
            refuses(format!("wrong password ({said})"))
        } else if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
            refuses(format!("it does not let us in; see its pg_hba.conf ({said})"))
        } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
            unfit(format!("a privilege is missing ({said}); `ballast pg setup` prints the SQL"))
        } else if *code == SqlState::DISK_FULL || db.routine() == Some(CACHES) {
            let reason = format!("its disk takes nothing, so it lets nobody in ({said})");
            Failure { kind: FailureKind::Full, reason }
        } else if *code == SqlState::ADMIN_SHUTDOWN || *code == SqlState::CRASH_SHUTDOWN {
            Failure { kind: FailureKind::Dead, reason: format!("it ends ({said})") }
        } else {
            // Starting up, too many clients, a statement that took too long: it lives.
            refuses(said.to_owned())
        };
    }
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(error) = inner.downcast_ref::<io::Error>() {
            let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            if let Some(error) = tls {
                return refuses(distrust(error));
            }
            let kind = match error.kind() {
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof => FailureKind::Dead,
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => FailureKind::Refuses,
                _ => FailureKind::Silent,
            };
            return Failure { kind, reason: error.to_string() };
        }
        source = inner.source();
    }
    if error.is_closed() {
        let reason = "it has closed the connection".to_owned();
        return Failure { kind: FailureKind::Dead, reason };
    }
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        reason = format!("{reason}: {inner}");
        source = inner.source();
    }
    if reason.ends_with("server does not support TLS") {
        reason = "it speaks no TLS (ssl = off), and ca_file asks for it".into();
    }
    refuses(reason)
}

/// Why TLS with a server comes to nothing.
fn distrust(error: &rustls::Error) -> String {
    use rustls::CertificateError as Wrong;
    let rustls::Error::InvalidCertificate(wrong) = error else { return format!("TLS: {error}") };
    match wrong {
        Wrong::UnknownIssuer | Wrong::BadSignature => {
            "its certificate is from no authority that stands in ca_file".into()
        }
        Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
            "its certificate is not for the address that it is asked at: let it name that address as \
             subjectAltName"
                .into()
        }
        Wrong::Expired | Wrong::ExpiredContext { .. } => "its certificate has expired".into(),
        Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => {
            "its certificate is not valid yet; are the clocks right?".into()
        }
        other => format!("its certificate is refused: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_certificate_is_said_with_its_cure() {
        let said = |wrong| distrust(&rustls::Error::InvalidCertificate(wrong));
        assert!(said(rustls::CertificateError::UnknownIssuer).contains("ca_file"));
        assert!(said(rustls::CertificateError::NotValidForName).contains("subjectAltName"));
        assert!(said(rustls::CertificateError::Expired).contains("expired"));
        assert!(said(rustls::CertificateError::Revoked).contains("refused"));
        assert!(distrust(&rustls::Error::DecryptError).starts_with("TLS: "));
    }
}
