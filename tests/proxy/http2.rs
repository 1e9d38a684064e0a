//! Clients of HTTP/2 that mean harm, over TLS and with prior knowledge: each is answered with the error that
//! it is due, counted, and bounded; no backend sees what may be misunderstood; others notice nothing.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use ballast::proxy::{Proxy, Status};
use xtask::wait;

use crate::{
    attacks::{
        Attack, CANCEL, Counted, Due, FLOW_CONTROL, PROTOCOL, REFUSED_STREAM, STREAM_CLOSED,
        connections, floods, harmless, heads, plain,
    },
    backends::{Backend, Manner},
    client::{Connection, PATIENCE},
    frames::{
        CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE,
        RST_STREAM, WHOLE, WINDOW_UPDATE, field, frame, get,
    },
    fronts::{self, Service},
    tls::Folder,
};

/// Somebody who does no harm, at the same time.
struct Bystander {
    stop: Arc<AtomicBool>,
    asks: thread::JoinHandle<Result<u64>>,
}

impl Bystander {
    fn start(target: SocketAddr, folder: Option<Arc<Folder>>) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stops = Arc::clone(&stop);
        let asks = thread::spawn(move || -> Result<u64> {
            let mut client = Client::begin(target, folder.as_deref(), &[])?;
            let mut asked = 0;
            loop {
                // One request at least begins after the attack.
                let is_last = stops.load(Ordering::Relaxed);
                let stream = 2 * asked as u32 + 1;
                client.send(&frame(HEADERS, WHOLE, stream, &plain()));
                client.until("answer", |frame| {
                    frame.stream == stream && frame.flags & END_STREAM > 0
                })?;
                asked += 1;
                if is_last {
                    return Ok(asked);
                }
            }
        });
        Self { stop, asks }
    }

    /// How many of its requests were answered: all, or it says why not.
    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.asks.join().ok().context("the bystander panicked")?.context("a bystander suffers")
    }
}

fn status(proxy: &Proxy) -> Status {
    proxy.status("s0").unwrap_or_default()
}

/// Another request on the same connection is answered.
fn goes_on(client: &mut Client) -> Result<()> {
    client.send(&frame(HEADERS, WHOLE, 101, &plain()));
    client.until("answer afterwards", |frame| frame.kind == HEADERS && frame.stream == 101)?;
    Ok(())
}

/// Sends an attack, and looks at what comes of it.
fn suffer(attack: &Attack, folder: Option<&Arc<Folder>>) -> Result<()> {
    let lines = folder.map(|folder| folder.certify("a.example")).transpose()?;
    // Its own, so that the counts are this one's.
    let services = [Service::start(Manner::Good)?];
    let (proxy, _, listens) = fronts::ballast_with(&services, lines.as_deref().unwrap_or(""))?;
    let bystander = Bystander::start(listens[0], folder.cloned());
    let mut client = Client::begin(listens[0], folder.map(AsRef::as_ref), &[])?;
    client.send(&attack.bytes);
    match attack.due {
        Due::Status(status) => {
            let head = client.until("head", |frame| frame.kind == HEADERS && frame.stream == 1)?;
            ensure!(head.status() == Some(status), "it is answered {head:?}");
            goes_on(&mut client)?;
        }
        Due::Reset(code) => {
            let reset = client.until("reset", |frame| frame.kind == RST_STREAM)?;
            ensure!(reset.stream == 1 && reset.code() == Some(code), "{reset:?}");
            goes_on(&mut client)?;
        }
        Due::Away(code) => {
            let away = client.until("GOAWAY", |frame| frame.kind == GOAWAY)?;
            ensure!(away.code() == Some(code), "{away:?}");
            ensure!(client.ends()?, "the connection goes on");
        }
        Due::Nothing => goes_on(&mut client)?,
    }
    ensure!(bystander.stop()? > 0, "the bystander was not answered");
    wait::until(PATIENCE, "requests to end", || Ok((status(&proxy).active == 0).then_some(())))?;
    // What is sent is counted a moment later.
    let count =
        wait::until(PATIENCE, "it to be counted", || Ok(attack.counted.of(&status(&proxy))));
    let counts = status(&proxy);
    ensure!(count.is_ok_and(|count| count == 1), "not as {:?}: {counts:?}", attack.counted);
    let asked = services[0].first.asked("attack");
    ensure!(attack.is_seen || asked.is_empty(), "a backend has seen it: {asked:?}");
    Ok(())
}

/// All of them; says of each that fails why.
fn suffer_all(attacks: &[Attack]) -> Result<()> {
    let folder = Arc::new(Folder::new()?);
    let mut wrong = Vec::new();
    for attack in attacks {
        for folder in [None, Some(&folder)] {
            if let Err(error) = suffer(attack, folder) {
                let how = if folder.is_some() { "TLS" } else { "prior knowledge" };
                wrong.push(format!("{}, {how}: {error:#}", attack.name));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn requests_that_are_none_are_reset_or_refused() -> Result<()> {
    suffer_all(&heads())
}

#[test]
fn what_is_wrong_with_a_connection_ends_it() -> Result<()> {
    suffer_all(&connections())
}

#[test]
fn who_only_makes_work_is_told_to_be_calm() -> Result<()> {
    suffer_all(&floods())
}

#[test]
fn what_is_merely_odd_is_borne() -> Result<()> {
    suffer_all(&harmless())
}

/// The first bytes over TLS, where HTTP/2 has been agreed on. In the clear they are those of another protocol
/// (`prior.rs`), but for the end of the preface.
#[test]
fn a_preface_that_is_none_ends_the_connection() -> Result<()> {
    let folder = Folder::new()?;
    let lines = folder.certify("a.example")?;
    let secure = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec();
    let mut clear = PREFACE.to_vec();
    clear[18] = b'X';
    let no_settings = [PREFACE, &frame(PING, 0, 0, &[0; 8])].concat();
    for (folder, lines, bytes) in [
        (Some(&folder), lines.as_str(), &secure),
        (Some(&folder), lines.as_str(), &no_settings),
        (None, "", &clear),
        (None, "", &no_settings),
    ] {
        let services = [Service::start(Manner::Good)?];
        let (proxy, _, listens) = fronts::ballast_with(&services, lines)?;
        let mut client = Client::open(listens[0], folder)?;
        client.send(bytes);
        let away = client.until("GOAWAY", |frame| frame.kind == GOAWAY)?;
        ensure!(away.code() == Some(PROTOCOL), "{away:?}");
        ensure!(client.ends()?, "the connection goes on");
        let counted = Counted::Away("protocol_error");
        let count = wait::until(PATIENCE, "a count", || Ok(counted.of(&status(&proxy))))?;
        ensure!(count == 1 && status(&proxy).requests == 0, "{:?}", status(&proxy));
    }
    Ok(())
}

/// What is wrong with one stream of several, or only in some moments.
#[test]
fn streams_are_wrong_on_their_own() -> Result<()> {
    let services = [Service::start(Manner::Silent)?];
    let (proxy, listens) = fronts::ballast(&services)?;
    let mut client = Client::begin(listens[0], None, &[])?;
    // As many as may be, and two more.
    for at in 0..130 {
        client.send(&frame(HEADERS, END_HEADERS, 2 * at + 1, &get(&[])));
    }
    for stream in [257, 259] {
        let reset = client.until("refusal", |frame| frame.kind == RST_STREAM)?;
        ensure!((reset.stream, reset.code()) == (stream, Some(REFUSED_STREAM)), "{reset:?}");
    }
    wait::until(PATIENCE, "all to be under way", || {
        Ok((status(&proxy).active == 128).then_some(()))
    })?;
    client.send(&frame(WINDOW_UPDATE, 0, 1, &(u32::MAX >> 1).to_be_bytes()));
    let reset = client.until("reset", |frame| frame.kind == RST_STREAM)?;
    ensure!((reset.stream, reset.code()) == (1, Some(FLOW_CONTROL)), "{reset:?}");
    // It has been reset.
    client.send(&frame(DATA, END_STREAM, 257, b"hello"));
    let reset = client.until("reset", |frame| frame.kind == RST_STREAM)?;
    ensure!((reset.stream, reset.code()) == (257, Some(STREAM_CLOSED)), "{reset:?}");
    let expected = [("flow_control_error", 1), ("refused_stream", 2), ("stream_closed", 1)];
    let expected = expected.map(|(error, count)| (error.to_owned(), count)).into();
    wait::until(PATIENCE, "counts", || Ok((status(&proxy).resets == expected).then_some(())))?;
    drop(client);
    wait::until(PATIENCE, "requests to end", || Ok((status(&proxy).active == 0).then_some(())))
}

/// A head that is too long is told so, and is not kept.
#[test]
fn a_head_that_is_too_long_is_refused() -> Result<()> {
    let services = [Service::start(Manner::Good)?];
    let (proxy, listens) = fronts::ballast(&services)?;
    let mut client = Client::begin(listens[0], None, &[])?;
    let mut head = get(&[]);
    for _ in 0..5 {
        head.extend(field("x", &"x".repeat(14_000)));
    }
    let mut pieces = head.chunks(16_000).peekable();
    let (mut kind, mut flags) = (HEADERS, END_STREAM);
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        client.send(&frame(kind, flags | last, 1, piece));
        (kind, flags) = (CONTINUATION, 0);
    }
    let answer = client.until("head", |frame| frame.kind == HEADERS)?;
    ensure!(answer.status() == Some(431), "{answer:?}");
    goes_on(&mut client)?;
    ensure!(services[0].first.asked("attack").is_empty(), "a backend has seen it");
    let counted = Counted::Refused("too_large");
    let count = wait::until(PATIENCE, "a count", || Ok(counted.of(&status(&proxy))))?;
    ensure!(count == 1, "counted {count} times");
    Ok(())
}

/// A backend whose answers are longer than what fits on the way, and how much of them it was rid of.
fn flowing() -> Result<(SocketAddr, Arc<AtomicUsize>)> {
    const BODY: usize = 256 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
    let address = listener.local_addr()?;
    let written = Arc::<AtomicUsize>::default();
    let counts = Arc::clone(&written);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let counts = Arc::clone(&counts);
            thread::spawn(move || -> Result<()> {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head)?;
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n")?;
                let piece = [b'x'; 16 << 10];
                // Until nobody wants more of it.
                loop {
                    counts.fetch_add(stream.write(&piece)?, Ordering::Relaxed);
                }
            });
        }
    });
    Ok((address, written))
}

/// A client that asks for much and takes nothing of it: by windows that are shut, or by not reading. What waits
/// for it is bounded, and so is the time.
#[test]
fn answers_that_are_not_taken_are_given_up() -> Result<()> {
    const STREAMS: u32 = 8;
    let folder = Folder::new()?;
    let lines = folder.certify("a.example")?;
    for (folder, lines) in [(None, ""), (Some(&folder), lines.as_str())] {
        let (backend, written) = flowing()?;
        let services = [Service::of(Backend::at(backend), None).keys("client_timeout = \"3s\"")];
        let (proxy, _, listens) = fronts::ballast_with(&services, lines)?;
        // Its windows are of no byte.
        let mut client = Client::begin(listens[0], folder, &[0, 4, 0, 0, 0, 0])?;
        for at in 0..STREAMS {
            client.send(&frame(HEADERS, WHOLE, 2 * at + 1, &get(&[])));
        }
        let mut reset = Vec::new();
        while reset.len() < STREAMS as usize {
            let frame = client.until("reset", |frame| frame.kind == RST_STREAM)?;
            ensure!(frame.code() == Some(CANCEL), "{frame:?}");
            reset.push(frame.stream);
        }
        reset.sort_unstable();
        ensure!(reset == (0..STREAMS).map(|at| 2 * at + 1).collect::<Vec<_>>(), "{reset:?}");
        goes_on(&mut client)?;
        wait::until(PATIENCE, "counts", || {
            Ok((status(&proxy).stalled == u64::from(STREAMS)).then_some(()))
        })?;
        // What the buffers of two sockets hold (`tcp_wmem`, `tcp_rmem`), and little more.
        let each = written.load(Ordering::Relaxed) / STREAMS as usize;
        ensure!(each < 16 << 20, "{each} bytes of each answer were taken");

        // Its windows are as wide as can be, and it does not read.
        let mut client = Client::begin(listens[0], folder, &[0, 4, 0x7f, 0xff, 0xff, 0xff])?;
        client.send(&frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes()));
        for at in 0..STREAMS {
            client.send(&frame(HEADERS, WHOLE, 2 * at + 1, &get(&[])));
        }
        wait::until(PATIENCE, "all to be given up", || {
            let counts = status(&proxy);
            Ok((counts.requests > 2 * u64::from(STREAMS) && counts.open <= 1).then_some(()))
        })?;
    }
    Ok(())
}

/// Requests that are taken back are taken back from the backend too, so none pile up there.
#[test]
fn what_is_taken_back_leaves_the_backend() -> Result<()> {
    let services = [Service::start(Manner::Silent)?];
    let (proxy, listens) = fronts::ballast(&services)?;
    let mut client = Client::begin(listens[0], None, &[])?;
    for at in 0..300_u32 {
        let stream = 2 * at + 1;
        client.send(&frame(HEADERS, WHOLE, stream, &get(&[])));
        wait::until(PATIENCE, "a request to be under way", || {
            Ok((status(&proxy).requests > at.into()).then_some(()))
        })?;
        // By the client, and by what the client does.
        let (kind, what) =
            if at % 2 == 0 { (RST_STREAM, CANCEL) } else { (WINDOW_UPDATE, u32::MAX >> 1) };
        client.send(&frame(kind, 0, stream, &what.to_be_bytes()));
        wait::until(PATIENCE, "it to be over", || Ok((status(&proxy).active == 0).then_some(())))?;
    }
    wait::until(PATIENCE, "counts", || {
        let counts = status(&proxy);
        let reset = counts.resets.get("flow_control_error") == Some(&150);
        Ok((counts.cancelled == 150 && counts.gone == 300 && reset).then_some(()))
    })?;
    let mut other = Connection::open(listens[0])?;
    other.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    ensure!(other.answer("GET")?.status == 200, "the second backend answers");
    Ok(())
}
