//! HTTP/2 from end to end, as gRPC needs it: trailers, streams both ways, and what is safe to repeat.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use h2::{RecvStream, client::SendRequest, server::SendResponse};
use hyper::{
    HeaderMap, Request, Response,
    body::Bytes,
    http::{HeaderName, HeaderValue},
};
use tokio::{runtime, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{
    backends::{Backend, Manner as Plain},
    client::{Connection, PATIENCE},
    fronts::{self, Service},
    tls::Folder,
};

/// What a client that speaks gRPC says of itself.
const TYPE: &str = "application/grpc";

/// How a server of HTTP/2 treats requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Sends back what it is sent, as it comes; the trailers say what it was asked.
    Grpc,
    /// Refuses each stream (`REFUSED_STREAM`).
    Refuse,
    /// Says that the connection ends, and that it has looked at no request.
    GoAway,
    /// Says that the connection ends after this request, and ends it without an answer.
    Taken,
    /// Answers one request, and says then that it has looked at no other.
    GoAwayLater,
}

/// A server of HTTP/2 in the clear.
pub(crate) struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn start(manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
        let server = Self {
            address: listener.local_addr()?,
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let (connections, requests) =
            (Arc::clone(&server.connections), Arc::clone(&server.requests));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = connections.fetch_add(1, Ordering::Relaxed);
                let requests = Arc::clone(&requests);
                thread::spawn(move || {
                    // What becomes of it, the client sees.
                    let _ = match manner {
                        Manner::Grpc => speak(stream, &requests),
                        Manner::GoAwayLater if number > 0 => speak(stream, &requests),
                        _ => refuse(stream, manner, &requests),
                    };
                });
            }
        });
        Ok(server)
    }

    pub(crate) fn backend(&self) -> Backend {
        Backend::at(self.address)
    }

    /// How many connections it was sent.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many requests it has seen, answered or not.
    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

fn speak(stream: TcpStream, requests: &Arc<AtomicUsize>) -> Result<()> {
    stream.set_nonblocking(true)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let mut connection = h2::server::handshake(stream).await?;
        while let Some(accepted) = connection.accept().await {
            let (request, respond) = accepted?;
            requests.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(echo(request, respond));
        }
        Ok(())
    })
}

/// Sends back what comes, as it comes.
async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
    let (parts, mut body) = request.into_parts();
    let head = Response::builder().header("content-type", TYPE).body(())?;
    let mut answer = respond.send_response(head, false)?;
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        answer.send_data(data, false)?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    for name in ["te", "content-type", "x-forwarded-proto"] {
        let told = parts.headers.get(name).cloned();
        let key = HeaderName::try_from(format!("told-{name}"))?;
        trailers.insert(key, told.unwrap_or(HeaderValue::from_static("-")));
    }
    trailers.insert(
        "told-authority",
        HeaderValue::try_from(parts.uri.authority().map_or("-", |it| it.as_str()))?,
    );
    let sent = body.trailers().await?.and_then(|mut it| it.remove("sent"));
    trailers.insert("told-trailer", sent.unwrap_or(HeaderValue::from_static("-")));
    answer.send_trailers(trailers)?;
    Ok(())
}

/// A frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];

/// Reads requests and does not answer them, but in frames that say so.
fn refuse(mut stream: TcpStream, manner: Manner, requests: &Arc<AtomicUsize>) -> Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface)?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let mut seen = 0;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match head[3] {
            SETTINGS if head[4] == 0 => stream.write_all(&frame(SETTINGS, 1, 0, &[]))?,
            HEADERS => {
                requests.fetch_add(1, Ordering::Relaxed);
                seen += 1;
                match manner {
                    Manner::Refuse => {
                        stream.write_all(&frame(RST_STREAM, 0, id, &REFUSED_STREAM))?;
                    }
                    Manner::GoAwayLater if seen == 1 => {
                        // `:status: 200` of the static table (RFC 7541, appendix A), and the end.
                        stream.write_all(&frame(HEADERS, 5, id, &[0x88]))?;
                    }
                    _ => {
                        let last = match manner {
                            Manner::Taken => id,
                            Manner::GoAwayLater => id - 2,
                            _ => 0,
                        };
                        let payload = [last.to_be_bytes(), [0; 4]].concat();
                        stream.write_all(&frame(GOAWAY, 0, 0, &payload))?;
                        if manner == Manner::Taken {
                            return Ok(());
                        }
                    }
                }
            }
            _ => {}
        }
    }
}

/// A client of HTTP/2 over TLS.
async fn open(target: SocketAddr, folder: &Folder) -> Result<SendRequest<Bytes>> {
    let (config, name) = crate::frames::tls_client(folder)?;
    let tcp = tokio::net::TcpStream::connect(target).await.context("connect")?;
    let stream = TlsConnector::from(config).connect(name, tcp).await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    Ok(sender.ready().await?)
}

fn within<T>(test: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { timeout(PATIENCE, test).await.context("it takes too long")? })
}

fn call() -> Result<Request<()>> {
    let builder = Request::post("https://a.example/echo.Echo/Stream");
    Ok(builder.header("content-type", TYPE).header("te", "trailers").body(())?)
}

async fn next(body: &mut RecvStream) -> Result<Bytes> {
    let data = body.data().await.context("the stream ends")??;
    body.flow_control().release_capacity(data.len())?;
    Ok(data)
}

#[test]
fn streams_go_both_ways_and_end_with_trailers() -> Result<()> {
    let folder = Folder::new()?;
    let certificate = folder.certify("a.example")?;
    let lines = format!("http_version = \"2\"\n{certificate}");
    let server = Server::start(Manner::Grpc)?;
    // One of the backends is not there.
    let dead = Backend::start("first", Plain::Refuse)?;
    let services = [Service::of(dead, Some(server.backend()))];
    let (proxy, _, listens) = fronts::ballast_with(&services, &lines)?;
    within(async {
        let mut client = open(listens[0], &folder).await?;
        for round in 0..3 {
            let (answer, mut send) = client.send_request(call()?, false)?;
            send.send_data(Bytes::from("one"), false)?;
            let answer = answer.await?;
            ensure!(answer.status() == 200, "{round}: {answer:?}");
            ensure!(answer.headers()["content-type"] == TYPE, "{round}: {answer:?}");
            let mut body = answer.into_body();
            ensure!(next(&mut body).await? == "one");
            // The other side has answered already, and is sent more.
            for word in ["two", "three"] {
                send.send_data(Bytes::from(word), false)?;
                ensure!(next(&mut body).await? == word);
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("sent", HeaderValue::from_static("last"));
            send.send_trailers(trailers)?;
            ensure!(body.data().await.is_none(), "more than was sent");
            let told = body.trailers().await?.context("there are no trailers")?;
            for (name, value) in [
                ("grpc-status", "0"),
                ("told-te", "trailers"),
                ("told-content-type", TYPE),
                ("told-trailer", "last"),
                ("told-authority", "a.example"),
                ("told-x-forwarded-proto", "https"),
            ] {
                ensure!(told.get(name).is_some_and(|it| it == value), "{name}: {told:?}");
            }
        }
        // An error without a body: nothing but trailers.
        let (answer, _) = client.send_request(call()?, true)?;
        let mut body = answer.await?.into_body();
        ensure!(body.data().await.is_none());
        ensure!(body.trailers().await?.is_some_and(|it| it["grpc-status"] == "0"));
        Ok(())
    })?;
    let counts = proxy.status("s0").unwrap_or_default();
    ensure!(counts.retries == 4 && counts.answers["2xx"] == 4, "{counts:?}");
    ensure!(server.requests() == 4);
    Ok(())
}

/// What a client of HTTP/1.1 is told that posts something.
fn post(target: SocketAddr) -> Result<(u16, String)> {
    let mut connection = Connection::open(target)?;
    connection.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    let answer = connection.answer("POST")?;
    Ok((answer.status, answer.body))
}

#[test]
fn what_was_not_looked_at_is_repeated_whatever_it_is() -> Result<()> {
    for (manner, status) in [
        (Manner::Refuse, 200),
        (Manner::GoAway, 200),
        // It may have been done.
        (Manner::Taken, 502),
    ] {
        let (first, second) = (Server::start(manner)?, Server::start(Manner::Grpc)?);
        let services =
            [Service::of(first.backend(), Some(second.backend())).keys("http_version = \"2\"")];
        let (proxy, listens) = fronts::ballast(&services)?;
        let told = post(listens[0])?;
        ensure!(told.0 == status, "{manner:?}: {told:?}");
        ensure!(first.requests() == 1, "{manner:?}: asked {} times", first.requests());
        ensure!(second.requests() == usize::from(status == 200), "{manner:?}");
        if status == 200 {
            ensure!(told.1 == "hello", "{manner:?}: {told:?}");
        }
        let counts = proxy.status("s0").unwrap_or_default();
        ensure!(counts.retries == u64::from(status == 200), "{manner:?}: {counts:?}");
    }
    Ok(())
}

#[test]
fn a_kept_connection_that_ends_costs_no_request() -> Result<()> {
    let server = Server::start(Manner::GoAwayLater)?;
    let services = [Service::of(server.backend(), None).keys("http_version = \"2\"")];
    let (proxy, listens) = fronts::ballast(&services)?;
    // On one connection, so on one worker: the second request finds the first one's connection.
    let mut client = Connection::open(listens[0])?;
    for round in 0..3 {
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
        let answer = client.answer("POST")?;
        ensure!(answer.status == 200, "{round}: {answer:?}");
    }
    let counts = proxy.status("s0").unwrap_or_default();
    ensure!(counts.reopened == 1 && counts.retries == 0, "{counts:?}");
    if server.connections() != 2 {
        bail!("{} connections", server.connections());
    }
    Ok(())
}
