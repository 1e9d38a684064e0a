//! The other end of the socket: what the command line asks with.

use std::{
    io,
    path::{Path, PathBuf},
};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::HOST,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{Problem, target::encode};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error(
        "no daemon answers at {socket}: is `ballast run` active? `systemctl status ballast` shows \
         it; --socket names another place ({source})"
    )]
    Absent {
        /// Where it should be.
        socket: PathBuf,
        /// What the connection failed with.
        source: io::Error,
    },
    /// The socket is not ours to open.
    #[error("only root may speak to the daemon at {0}: run this with sudo")]
    Forbidden(PathBuf),
    /// The connection broke, or carried something else than HTTP.
    #[error("the daemon at {socket} broke off: {source}")]
    Broken {
        /// Where it is.
        socket: PathBuf,
        /// What happened.
        source: hyper::Error,
    },
    /// The answer is not what was asked for: another version, most likely.
    #[error("the daemon's answer makes no sense: {0}. Are daemon and command of one version?")]
    Nonsense(String),
    /// The daemon answered with an error.
    #[error("{}", .0.error)]
    Refused(Problem),
}

/// One request to the daemon.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    target: String,
}

impl Call {
    /// Asks for something. `path` is made of segments, escaped here.
    pub fn get(path: &[&str]) -> Self {
        Self { method: Method::GET, target: join(path) }
    }

    /// Commands something.
    pub fn post(path: &[&str]) -> Self {
        Self { method: Method::POST, target: join(path) }
    }

    /// Adds a key and value to the query, if there is a value.
    #[must_use]
    pub fn with(mut self, key: &str, value: Option<&str>) -> Self {
        if let Some(value) = value {
            self.target.push(if self.target.contains('?') { '&' } else { '?' });
            self.target.push_str(key);
            self.target.push('=');
            self.target.push_str(&encode(value));
        }
        self
    }

    /// The whole answer, as text.
    pub async fn text(self, socket: &Path) -> Result<String, Error> {
        let response = self.send(socket).await?;
        let body = response.into_body().collect().await;
        let body = body.map_err(|source| broken(socket, source))?.to_bytes();
        String::from_utf8(body.to_vec()).map_err(|error| Error::Nonsense(error.to_string()))
    }

    /// Hands over the answer in pieces as they come, until there are no more or `each` says `false`.
    pub async fn pieces(
        self,
        socket: &Path,
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), Error> {
        let mut body = self.send(socket).await?.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| broken(socket, source))?;
            if frame.data_ref().is_some_and(|piece| !each(piece)) {
                break;
            }
        }
        Ok(())
    }

    /// The whole answer, understood.
    pub async fn json<T: DeserializeOwned>(self, socket: &Path) -> Result<T, Error> {
        understand(&self.text(socket).await?)
    }

    /// Hands over each line of the answer as it comes, until there are no more or `each` says
    /// `false`.
    pub async fn lines(
        self,
        socket: &Path,
        mut each: impl FnMut(&str) -> bool,
    ) -> Result<(), Error> {
        let mut body = self.send(socket).await?.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| broken(socket, source))?;
            rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| &data[..]));
            while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if !each(String::from_utf8_lossy(&line).trim_end()) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn send(self, socket: &Path) -> Result<Response<Incoming>, Error> {
        let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => Error::Forbidden(socket.to_owned()),
            _ => Error::Absent { socket: socket.to_owned(), source },
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|source| broken(socket, source))?;
        // It ends with the answer; its errors come out there too.
        tokio::spawn(connection);
        let request = Request::builder().method(self.method).uri(self.target);
        let request = request
            .header(HOST, "ballast")
            .body(Empty::<Bytes>::new())
            .map_err(|error| Error::Nonsense(error.to_string()))?;
        let response =
            sender.send_request(request).await.map_err(|source| broken(socket, source))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await;
        let body = body.map_err(|source| broken(socket, source))?.to_bytes();
        Err(Error::Refused(understand(&String::from_utf8_lossy(&body))?))
    }
}

fn join(path: &[&str]) -> String {
    path.iter().fold(String::new(), |mut target, segment| {
        target.push('/');
        target.push_str(&encode(segment));
        target
    })
}

fn understand<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::Nonsense(error.to_string()))
}

fn broken(socket: &Path, source: hyper::Error) -> Error {
    Error::Broken { socket: socket.to_owned(), source }
}
