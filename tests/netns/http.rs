//! The least of an HTTP client: what curl cannot be asked, such as on which connection it is.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::lab::Host;

use crate::load::PATIENCE;

/// One request on a connection of its own; gives the body of a 200, without the line's end.
pub(crate) fn get(target: SocketAddr, path: &str) -> Result<String> {
    let mut stream = connect(target)?;
    stream.write_all(request(path, "close").as_bytes()).context("send the request")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of head")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.starts_with("HTTP/1.1 200 "), "the answer is {status}");
    Ok(body.trim_end().to_owned())
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn request(path: &str, connection: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n")
}

/// A connection that stays open.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    local: SocketAddr,
    backend: String,
}

impl Connection {
    /// Opens one from the host, and asks who answers.
    pub(crate) fn open(host: &Host, target: SocketAddr) -> Result<Self> {
        let mut new = Self::begin(host, target)?;
        new.backend = new.get("/id")?;
        Ok(new)
    }

    /// Opens one from the host, and asks nothing yet.
    pub(crate) fn begin(host: &Host, target: SocketAddr) -> Result<Self> {
        let stream = host.within(|| connect(target))??;
        let local = stream.local_addr()?;
        Ok(Self { stream: BufReader::new(stream), local, backend: String::new() })
    }

    /// With another limit for each answer.
    pub(crate) fn patient(self, limit: Duration) -> Result<Self> {
        self.stream.get_ref().set_read_timeout(Some(limit)).context("set a limit")?;
        Ok(self)
    }

    /// Opens connections until one is to the backend.
    pub(crate) fn to(host: &Host, target: SocketAddr, backend: &str) -> Result<Self> {
        // Those to others are kept until then, so that `least_conn` goes round.
        let mut others = Vec::new();
        while others.len() < 50 {
            let new = Self::open(host, target)?;
            if new.backend == backend {
                return Ok(new);
            }
            others.push(new);
        }
        bail!("none of 50 connections was to {backend}")
    }

    /// The client's end.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// The host that answers.
    pub(crate) fn backend(&self) -> &str {
        &self.backend
    }

    /// A request on this connection; gives the body.
    pub(crate) fn get(&mut self, path: &str) -> Result<String> {
        let length = self.ask(path)?;
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body).context("read the body")?;
        Ok(String::from_utf8(body)?.trim_end().to_owned())
    }

    /// What becomes of a request on this connection: the error as the socket gives it.
    pub(crate) fn try_get(&mut self, path: &str) -> io::Result<String> {
        self.get(path).map_err(|error| match error.downcast::<io::Error>() {
            Ok(error) => error,
            Err(error) => io::Error::other(format!("{error:#}")),
        })
    }

    /// Sends a request, the answer to which is [`Download`]ed.
    pub(crate) fn download(mut self, path: &str) -> Result<Download> {
        let length = self.ask(path)?;
        Ok(Download { connection: self, length })
    }

    fn ask(&mut self, path: &str) -> Result<u64> {
        let text = request(path, "keep-alive");
        self.stream.get_mut().write_all(text.as_bytes()).context("send the request")?;
        let mut status = String::new();
        self.stream.read_line(&mut status).context("read the answer")?;
        if status.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        ensure!(status.starts_with("HTTP/1.1 200 "), "the answer is {status}");
        let mut length = None;
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).context("read the head")?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.parse()?);
            }
        }
        length.context("the answer names no length")
    }
}

/// Each connection is answered once more, by the backend that it has.
pub(crate) fn all_go_on(connections: &mut [Connection], when: &str) -> Result<()> {
    for connection in connections {
        let backend = connection.backend().to_owned();
        let answer = connection.get("/id").with_context(|| format!("ask {when}"))?;
        ensure!(answer == backend, "{when}, {answer} answers in place of {backend}");
    }
    Ok(())
}

/// A body that is still to be read.
pub(crate) struct Download {
    connection: Connection,
    length: u64,
}

impl Download {
    /// The host that sends it.
    pub(crate) fn backend(&self) -> &str {
        &self.connection.backend
    }

    /// Reads it to its end; every byte must be that of the file.
    pub(crate) fn compare(mut self, file: &Path) -> Result<()> {
        let mut file = BufReader::with_capacity(1 << 16, File::open(file)?);
        let mut body = self.connection.stream.by_ref().take(self.length);
        let mut piece = vec![0; 1 << 16];
        let mut wanted = vec![0; 1 << 16];
        let mut read = 0;
        loop {
            let length = body.read(&mut piece).with_context(|| format!("read after {read}"))?;
            if length == 0 {
                break;
            }
            file.read_exact(&mut wanted[..length]).context("the body is longer than the file")?;
            ensure!(piece[..length] == wanted[..length], "other bytes after {read}");
            read += length as u64;
        }
        ensure!(read == self.length, "the body ends after {read} of {} bytes", self.length);
        ensure!(file.fill_buf()?.is_empty(), "the body is shorter than the file");
        Ok(())
    }
}
