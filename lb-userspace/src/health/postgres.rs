//! The probe of Postgres: whether the server lets clients in.
//!
//! It begins a connection, as every client does, and needs no account for that, like `pg_isready`: a server that
//! asks for a password, or that knows no such user, runs and accepts connections. One that starts, ends, recovers
//! or has as many clients as it may is not fit, although it answers. Whether it is the primary, and how far behind
//! a standby is, is the business of `[[postgres]]`.
//!
//! TLS is used where the server offers it, so that one which wants it does not log a refusal each time. Its certificate
//! is not verified: nothing secret is sent. The connection is closed in order; Postgres would log a reset.

use std::{
    error::Error as _,
    io,
    net::SocketAddr,
    sync::{Arc, LazyLock},
};

use rustls::{ClientConfig, client::Resumption};
use tokio::net::TcpStream;
use tokio_postgres::{Config, config::SslMode, error::SqlState, tls::MakeTlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Deadline, Observation, io_reason};
use crate::trust::AnyCertificate;

/// Who the probe says that it is. Nobody needs to know the user: a refusal is an answer.
const USER: &str = "ballast";

/// A database that every cluster has.
const DATABASE: &str = "postgres";

/// Class of the errors by which a server does not believe who one is.
const UNKNOWN_CLIENT: &str = "28";

/// Begins a connection to the server at `address`.
pub async fn probe(address: SocketAddr, deadline: &Deadline) -> Observation {
    match ask(address, deadline).await {
        Ok(reason) => Observation::Pass(reason),
        Err(reason) => Observation::Fail(reason),
    }
}

async fn ask(address: SocketAddr, deadline: &Deadline) -> Result<String, String> {
    let connect = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        io::Result::Ok(stream)
    };
    let stream = match deadline.within(connect).await {
        Some(stream) => stream.map_err(|error| io_reason(&error))?,
        None => return Err(deadline.missed("no answer")),
    };
    let mut config = Config::new();
    config
        .user(USER)
        .dbname(DATABASE)
        .application_name("ballast (health check)")
        .ssl_mode(SslMode::Prefer);
    let mut tls = MakeRustlsConnect::new(ClientConfig::clone(&TLS));
    let tls = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls, &address.ip().to_string());
    let tls = tls.map_err(|error| error.to_string())?;
    match deadline.within(config.connect_raw(stream, tls)).await {
        // Both are dropped, and the connection with them.
        Some(Ok((_client, _connection))) => Ok("PostgreSQL lets clients in".into()),
        Some(Err(error)) => judge(&error),
        None => Err(deadline.missed("connected, but PostgreSQL does not answer")),
    }
}

/// What the end of an attempt says of the server.
fn judge(error: &tokio_postgres::Error) -> Result<String, String> {
    if let Some(error) = error.as_db_error() {
        return judge_code(error.code(), error.message());
    }
    let kind = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return Err(match error.kind() {
                _ if kind.starts_with("error performing TLS") => {
                    format!("TLS: {}", io_reason(error))
                }
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::Other => {
                    not_postgres()
                }
                io::ErrorKind::UnexpectedEof => closed(),
                _ => format!("connected, but: {}", io_reason(error)),
            });
        }
        source = cause.source();
    }
    if error.is_closed() {
        return Err(closed());
    }
    // The library tells the kinds apart by their text alone. All that could be missing in the configuration is what
    // the server has asked for: the password, or another proof.
    if kind.starts_with("invalid configuration") || kind.starts_with("authentication error") {
        return Ok("PostgreSQL asks who we are".into());
    }
    if kind.starts_with("unexpected message") || kind.starts_with("error parsing") {
        return Err(not_postgres());
    }
    Err(kind)
}

/// What an error of the server itself says of it.
fn judge_code(code: &SqlState, message: &str) -> Result<String, String> {
    if code.code().starts_with(UNKNOWN_CLIENT) || *code == SqlState::INVALID_CATALOG_NAME {
        return Ok("PostgreSQL answers, and does not know us".into());
    }
    if *code == SqlState::TOO_MANY_CONNECTIONS {
        return Err(format!("PostgreSQL has as many clients as it may ({message})"));
    }
    // In the server's words: it starts up, it shuts down, it recovers.
    Err(format!("PostgreSQL lets nobody in: {message} ({})", code.code()))
}

fn closed() -> String {
    "connection closed without an answer of PostgreSQL".into()
}

fn not_postgres() -> String {
    "the answer is not PostgreSQL's".into()
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
    config.resumption = Resumption::disabled();
    Arc::new(config)
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_known_is_answered_and_who_comes_too_early_is_not_served() {
        let judged = |code: &str, message| judge_code(&SqlState::from_code(code), message);
        for code in ["28000", "28P01", "3D000"] {
            assert!(judged(code, "no").is_ok(), "{code}");
        }
        for (code, message, says) in [
            ("57P03", "the database system is starting up", "starting up"),
            ("57P03", "the database system is shutting down", "shutting down"),
            ("53300", "sorry, too many clients already", "as many clients as it may"),
            ("53200", "out of memory", "out of memory"),
            ("XX000", "something", "lets nobody in"),
        ] {
            let reason = judged(code, message).unwrap_err();
            assert!(reason.contains(says), "{code}: {reason}");
        }
    }
}
