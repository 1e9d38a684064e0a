//! A request on a connection that the backend has given up: it is repeated if it provably was not delivered.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    config::{self, APPS, Service, web},
    load::PATIENCE,
    site::{Site, eventually, number},
};

const PORT: u16 = 8090;

/// How a server treats a connection after its first answer on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// It forgets it, and says nothing: what comes then is answered with a reset that acknowledges nothing.
    Forget,
    /// It waits for what comes, and ends it without reading: the reset acknowledges what has come.
    Drop,
}

/// What a server has seen.
#[derive(Default)]
struct Seen {
    /// Bodies of requests that it has read whole.
    bodies: Mutex<Vec<String>>,
    /// Whether its first connection is as the manner says.
    is_ready: AtomicBool,
}

/// Serves connections of the proxy, the first as the manner says, all others well.
fn serve(listener: &TcpListener, manner: Manner, seen: &Arc<Seen>) {
    for (number, stream) in listener.incoming().flatten().enumerate() {
        let seen = Arc::clone(seen);
        // What becomes of it, the client sees.
        thread::spawn(move || answer(stream, (number == 0).then_some(manner), &seen));
    }
}

fn answer(stream: TcpStream, manner: Option<Manner>, seen: &Seen) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = String::from_utf8(body)?;
        seen.bodies.lock().unwrap_or_else(PoisonError::into_inner).push(body);
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")?;
        match manner {
            None => {}
            Some(Manner::Forget) => {
                // An acknowledgement of the answer would meet the reset before the next request does.
                until_acknowledged(&out)?;
                forget(&out)?;
                drop((out, reader));
                seen.is_ready.store(true, Ordering::Release);
                return Ok(());
            }
            Some(Manner::Drop) => {
                seen.is_ready.store(true, Ordering::Release);
                out.peek(&mut [0])?;
                return Ok(());
            }
        }
    }
}

/// Waits until nothing that was sent is without an acknowledgement (`SIOCOUTQ`, `tcp(7)`).
fn until_acknowledged(stream: &TcpStream) -> Result<()> {
    eventually("the answer to be acknowledged", || {
        let mut waits = 0_i32;
        // SAFETY: the descriptor is open, and the kernel writes one number.
        let asked = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut waits) };
        ensure!(asked == 0, "ask: {}", std::io::Error::last_os_error());
        Ok((waits == 0).then_some(()))
    })
}

/// Has the kernel forget a connection when it is closed: no FIN, no reset (`TCP_REPAIR`, `tcp(7)`).
fn forget(stream: &TcpStream) -> Result<()> {
    const TCP_REPAIR: i32 = 19;
    let on = 1_i32;
    // SAFETY: the descriptor is open, and the kernel reads no more than the number it is given.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_REPAIR,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    ensure!(set == 0, "repair: {}", std::io::Error::last_os_error());
    Ok(())
}

/// A client's connection.
struct Client(BufReader<TcpStream>);

impl Client {
    fn open(site: &Site, target: SocketAddr) -> Result<Self> {
        let stream = site.client().within(|| TcpStream::connect_timeout(&target, PATIENCE))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Posts a body; gives the status.
    fn post(&mut self, body: &str) -> Result<String> {
        let length = body.len();
        let request =
            format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{body}");
        self.0.get_mut().write_all(request.as_bytes()).context("send")?;
        let mut status = String::new();
        self.0.read_line(&mut status).context("read the status")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        self.0.read_exact(&mut vec![0; length])?;
        Ok(status.split(' ').nth(1).unwrap_or_default().to_owned())
    }
}

#[test]
fn a_post_that_provably_nobody_has_seen_is_sent_again() -> Result<()> {
    let long = "x".repeat(100_000);
    for (manner, body, status) in [
        (Manner::Forget, "second", &["200"][..]),
        // Of several segments the first may have been read. But if the reset is faster than the second
        // segment, there is only one.
        (Manner::Forget, long.as_str(), &["200", "502"]),
        // It has been delivered, whether anybody has read it or not.
        (Manner::Drop, "second", &["502"]),
    ] {
        let address = APPS[0].sockets(PORT)[0];
        let service = Service::new("web", web())
            .key("path = \"proxy\"")
            .backend(APPS[0].as_str(), address, "")
            .health("probe = \"none\"");
        let site = Site::up("proxy-resets", config::text(&[service]))?;
        let listener = site.host(APPS[0]).within(|| TcpListener::bind(("0.0.0.0", PORT)))??;
        let seen = Arc::<Seen>::default();
        thread::spawn({
            let seen = Arc::clone(&seen);
            move || serve(&listener, manner, &seen)
        });
        let mut client = Client::open(&site, web())?;
        ensure!(client.post("first")? == "200");
        eventually("the server to be ready", || {
            Ok(seen.is_ready.load(Ordering::Acquire).then_some(()))
        })?;
        let told = client.post(body)?;
        let what = format!("{manner:?}, {} bytes", body.len());
        ensure!(status.contains(&told.as_str()), "{what}: {told}");
        let seen = seen.bodies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let status = site.status()?;
        let proxy = &status.service("web")["proxy"];
        if told == "200" {
            ensure!(seen == ["first", body], "{what}: {seen:?}");
            ensure!(number(&proxy["undelivered"]) == 1, "{proxy}");
            ensure!(number(&proxy["reopened"]) == 1 && number(&proxy["retries"]) == 0, "{proxy}");
        } else {
            ensure!(seen == ["first"], "{what}: {} requests", seen.len());
            ensure!(number(&proxy["undelivered"]) == 0, "{proxy}");
        }
        site.finish()?;
    }
    Ok(())
}
