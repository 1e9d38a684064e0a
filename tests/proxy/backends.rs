//! Backends that misbehave as they are told, and remember what they were asked.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use socket2::SockRef;

/// How a backend treats a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Manner {
    /// Answers 200; the body says its name and what it was asked.
    Good,
    /// Nobody listens.
    Refuse,
    /// Ends the connection before it has read anything.
    CloseAtOnce,
    /// Reads the request, and ends the connection.
    Close,
    /// Reads the request, and resets the connection.
    Reset,
    /// Answers with a part of a head, and ends the connection.
    PartOfHead,
    /// Reads the request, and says nothing.
    Silent,
    /// Answers with what is no head.
    Garbage,
    /// Answers with a head that is too long.
    LongHead,
    /// Answers with this status.
    Status(u16),
    /// Answers with half of the body that it promises, and ends the connection.
    HalfBody,
    /// Answers with half of a chunk, and ends the connection.
    HalfChunk,
    /// Answers 200 with chunks.
    Chunks,
    /// Answers without a length, by ending the connection.
    UntilClose,
    /// Answers with both `Transfer-Encoding` and a wrong `Content-Length`.
    BothLengths,
    /// Answers with two `Content-Length`s that differ.
    TwoLengths,
    /// Answers with 103 first, then 200.
    Interim,
    /// Keeps the connection after its first answer, and closes it when it is asked again.
    Stale,
    /// Answers 204.
    NoContent,
    /// Answers 101 and sends back what it reads.
    Echo,
}

/// What a backend has been asked, by the `X-Row` of the request: method, path and body of each.
type Asked = Arc<Mutex<HashMap<String, Vec<Request>>>>;

/// A request as a backend got it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// The values of a field.
    pub(crate) fn field(&self, name: &str) -> Vec<&str> {
        let values = self.fields.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        values.map(|(_, value)| value.as_str()).collect()
    }
}

/// A backend, as long as the test runs.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    asked: Asked,
    connections: Arc<AtomicUsize>,
}

impl Backend {
    /// Starts one that is called `name`.
    pub(crate) fn start(name: &'static str, manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
        let backend = Self {
            address: listener.local_addr()?,
            asked: Asked::default(),
            connections: Arc::default(),
        };
        if manner == Manner::Refuse {
            return Ok(backend);
        }
        let asked = Arc::clone(&backend.asked);
        let connections = Arc::clone(&backend.connections);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::Relaxed);
                let asked = Arc::clone(&asked);
                thread::spawn(move || {
                    // What becomes of it, the client sees.
                    let _ = serve(name, manner, stream, &asked);
                });
            }
        });
        Ok(backend)
    }

    /// One that somebody else has started, and that remembers nothing.
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self { address, asked: Asked::default(), connections: Arc::default() }
    }

    /// How many connections it was sent.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// What it was asked under this name.
    pub(crate) fn asked(&self, row: &str) -> Vec<Request> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get(row).cloned().unwrap_or_default()
    }
}

fn serve(name: &str, manner: Manner, stream: TcpStream, asked: &Asked) -> Result<()> {
    if manner == Manner::CloseAtOnce {
        return Ok(());
    }
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    for number in 0.. {
        let Some(request) = read(&mut reader)? else { return Ok(()) };
        let row = request.field("x-row").first().map(|row| (*row).to_owned()).unwrap_or_default();
        let echo = format!("{name} {}", request.line);
        let is_head = request.line.starts_with("HEAD ");
        if !(manner == Manner::Stale && number > 0) {
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.entry(row).or_default().push(request);
        }
        let (answer, then) = answer(manner, number, &echo, is_head);
        out.write_all(answer.as_bytes())?;
        match then {
            Then::Stay => {}
            Then::End => {
                out.shutdown(Shutdown::Both)?;
                return Ok(());
            }
            Then::Reset => {
                SockRef::from(&out).set_linger(Some(Duration::ZERO))?;
                return Ok(());
            }
            Then::Wait => {
                // Until the other side has had enough.
                reader.read_to_end(&mut Vec::new())?;
                return Ok(());
            }
            Then::Echo => {
                std::io::copy(&mut reader, &mut out)?;
                return Ok(());
            }
        }
    }
    Ok(())
}

/// What a backend does after an answer.
enum Then {
    Stay,
    End,
    Reset,
    Wait,
    Echo,
}

/// What is said to the request of this number on a connection.
fn answer(manner: Manner, number: usize, echo: &str, is_head: bool) -> (String, Then) {
    let length = echo.len();
    let body = if is_head { "" } else { echo };
    let ok = |fields: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}");
    let whole = ok(&format!("Content-Length: {length}"), body);
    match manner {
        Manner::Good => (whole, Then::Stay),
        Manner::Stale if number == 0 => (whole, Then::Stay),
        Manner::Refuse | Manner::CloseAtOnce | Manner::Close | Manner::Stale => {
            (String::new(), Then::End)
        }
        Manner::Reset => (String::new(), Then::Reset),
        Manner::PartOfHead => ("HTTP/1.1 200 OK\r\nContent-Le".into(), Then::End),
        Manner::Silent => (String::new(), Then::Wait),
        Manner::Garbage => ("\x01\x02 this is no head\r\n\r\n".into(), Then::End),
        Manner::LongHead => (ok(&format!("X: {}", "x".repeat(200_000)), ""), Then::End),
        Manner::Status(status) => {
            let head = format!("HTTP/1.1 {status} Said\r\nContent-Length: {length}\r\n\r\n{body}");
            (head, Then::Stay)
        }
        Manner::HalfBody => {
            (ok(&format!("Content-Length: {length}"), &body[..body.len() / 2]), Then::End)
        }
        Manner::HalfChunk => (ok("Transfer-Encoding: chunked", "9\r\nhalf"), Then::End),
        Manner::Chunks => {
            let mut chunks = String::new();
            for byte in body.chars() {
                // Writing to a `String` cannot fail.
                let _ = write!(chunks, "1\r\n{byte}\r\n");
            }
            chunks.push_str(if is_head { "" } else { "0\r\n\r\n" });
            (ok("Transfer-Encoding: chunked", &chunks), Then::Stay)
        }
        Manner::UntilClose => (ok("Connection: close", body), Then::End),
        Manner::BothLengths => {
            let chunk = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
            let chunk = if is_head { "" } else { &chunk };
            (ok("Content-Length: 3\r\nTransfer-Encoding: chunked", chunk), Then::End)
        }
        Manner::TwoLengths => (ok("Content-Length: 3\r\nContent-Length: 9", body), Then::End),
        Manner::Interim => {
            (format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{whole}"), Then::Stay)
        }
        Manner::NoContent => ("HTTP/1.1 204 No Content\r\n\r\n".into(), Then::Stay),
        Manner::Echo => {
            let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                        Upgrade: echo\r\n\r\n";
            (head.into(), Then::Echo)
        }
    }
}

/// Reads a request; nothing if the connection has ended before one.
pub(crate) fn read(reader: &mut BufReader<TcpStream>) -> Result<Option<Request>> {
    let mut request = Request::default();
    if reader.read_line(&mut request.line)? == 0 {
        return Ok(None);
    }
    request.line.truncate(request.line.trim_end().len());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.fields.push((name.to_owned(), value.trim().to_owned()));
    }
    if let Some(length) = request.field("content-length").first() {
        request.body = vec![0; length.parse()?];
        reader.read_exact(&mut request.body)?;
    } else if !request.field("transfer-encoding").is_empty() {
        request.body = read_chunks(reader)?;
    }
    Ok(Some(request))
}

/// Reads a body of chunks.
pub(crate) fn read_chunks(reader: &mut impl std::io::BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim_end(), 16).context("read a chunk's size")?;
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk)?;
        body.extend_from_slice(&chunk[..size]);
        if size == 0 {
            return Ok(body);
        }
    }
}
