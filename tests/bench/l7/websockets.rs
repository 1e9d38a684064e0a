//! Many silent `WebSockets` beside requests, for a long time: does anything fail, does memory grow?

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use ballast::proxy::files;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use xtask::{
    interrupt,
    lab::{Balancers, Host, Lab, Options, test_name},
    wait,
};

use super::memory;

/// Requests a second, on so many connections.
const RATE: u32 = 2000;
const CLIENTS: u32 = 4;

/// Where the app server listens.
const APP: &str = "192.0.2.21:8091";
/// The service.
const SERVICE: ([u8; 4], u16) = ([192, 0, 2, 100], 80);

/// File descriptors that are needed for something else.
const OTHER_FILES: u64 = 200;

/// Longest that any answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

const UPGRADE: &[u8] = b"GET /socket HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\napp-01\n";

/// What the requests of a client came to.
#[derive(Debug, Default)]
struct Requests {
    latencies: Vec<Duration>,
    errors: Vec<String>,
}

/// Opens them, waits, asks each whether it is still there, and prints what came of it.
pub(super) fn run(ballast: PathBuf, count: usize, minutes: u32, check: bool) -> anyhow::Result<()> {
    // The daemon has two for each, and so has this process: it is client and app server.
    let files = files::raise().context("raise the limit of files")?;
    let most = (files::for_clients(files).saturating_sub(OTHER_FILES) / 2) as usize;
    ensure!(
        count <= most,
        "{count} WebSockets need two files each, and a process may have {files} here: there is room for {most}"
    );
    let lab = Lab::up(Options {
        name: test_name("bench-ws"),
        balancers: Balancers::None,
        apps: 0,
        config: Some(config()),
        ballast: Some(ballast),
        ..Options::default()
    })
    .context("bring up a lab")?;
    serve(lab.host("app-01"))?;
    let mut daemon = lab.daemon("lb-01");
    daemon.start().context("start the daemon")?;
    let process = daemon.pid().context("find the daemon")?;
    let client = lab.host("client");
    wait::until(PATIENCE, "the first answer", || {
        Ok(client.within(|| Connection::open()?.request())?.ok())
    })?;

    let before = memory::resident(process)?;
    let mut sockets = client.within(|| {
        let sockets = (0..count).map(|_| {
            interrupt::check()?;
            Connection::open()?.upgraded()
        });
        sockets.collect::<anyhow::Result<Vec<_>>>()
    })??;
    let opened = memory::resident(process)?;
    println!(
        "{count} WebSockets are open: {:.1} KiB of the daemon's memory each",
        (opened - before) / 1024.0 / count as f64
    );

    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            thread::spawn(move || client.within(|| ask(&stop)))
        })
        .collect();
    // The first minute warms up.
    let (mut first, mut last) = (opened, opened);
    for minute in 1..=minutes {
        let end = Instant::now() + Duration::from_mins(1);
        while Instant::now() < end {
            interrupt::check()?;
            thread::sleep(Duration::from_millis(100));
        }
        last = memory::resident(process)?;
        if minute == 1 {
            first = last;
        }
        println!("minute {minute}: {:.1} MiB", last / f64::from(1 << 20));
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = Requests::default();
    for client in clients {
        let requests = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        all.latencies.extend(requests.latencies);
        all.errors.extend(requests.errors);
    }
    let broken = sockets.iter_mut().filter_map(|socket| socket.echo().err()).count();
    drop(sockets);
    lab.down().context("take the lab down")?;

    all.latencies.sort_unstable();
    let place = all.latencies.len() * 99 / 100;
    let p99 = all.latencies.get(place).copied().unwrap_or_default();
    let growth = (last - first) / first * 100.0;
    println!(
        "{} requests ({:.0} a second), {} failed, p99 {:.2} ms; {broken} of {count} WebSockets broken; \
         memory {growth:+.1} % since the first minute",
        all.latencies.len(),
        all.latencies.len() as f64 / (f64::from(minutes) * 60.0),
        all.errors.len(),
        p99.as_secs_f64() * 1e3,
    );
    for error in all.errors.iter().take(5) {
        println!("  {error}");
    }
    if check && (broken > 0 || !all.errors.is_empty() || growth > 5.0) {
        bail!("something failed, or memory grew by more than 5 %");
    }
    Ok(())
}

/// Requests at their rate, on one connection, until told to stop.
fn ask(stop: &AtomicBool) -> Requests {
    let mut requests = Requests::default();
    let gap = Duration::from_secs(1) * CLIENTS / RATE;
    let mut due = Instant::now();
    let mut connection = None;
    while !stop.load(Ordering::Relaxed) {
        due += gap;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let asked = Instant::now();
        let result = match connection.take() {
            Some(open) => Ok(open),
            None => Connection::open(),
        };
        match result.and_then(|mut open| open.request().map(|()| open)) {
            Ok(open) => {
                requests.latencies.push(asked.elapsed());
                connection = Some(open);
            }
            Err(error) => requests.errors.push(format!("{error:#}")),
        }
    }
    requests
}

/// A client's connection.
struct Connection(TcpStream);

impl Connection {
    fn open() -> anyhow::Result<Self> {
        let stream = TcpStream::connect(SocketAddr::from(SERVICE)).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    fn request(&mut self) -> anyhow::Result<()> {
        self.0.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n").context("ask")?;
        let answer = self.read_until(b"app-01\n")?;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "the answer is another one");
        Ok(())
    }

    fn upgraded(mut self) -> anyhow::Result<Self> {
        self.0.write_all(UPGRADE).context("ask for a WebSocket")?;
        let answer = self.read_until(b"\r\n\r\n")?;
        ensure!(answer.starts_with(b"HTTP/1.1 101"), "there is no WebSocket");
        Ok(self)
    }

    /// Sends something, which must come back.
    fn echo(&mut self) -> anyhow::Result<()> {
        self.0.write_all(b"still there").context("send")?;
        let mut back = [0; 11];
        self.0.read_exact(&mut back).context("read it again")?;
        ensure!(back == *b"still there", "something else came back");
        Ok(())
    }

    fn read_until(&mut self, end: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut read = Vec::new();
        while !read.ends_with(end) {
            let mut bytes = [0; 1024];
            let length = self.0.read(&mut bytes).context("read an answer")?;
            ensure!(length > 0, "the connection was closed");
            read.extend_from_slice(&bytes[..length]);
        }
        Ok(read)
    }
}

/// The app server: answers requests, and sends back what `WebSockets` send.
fn serve(host: &Host) -> anyhow::Result<()> {
    let listener = host.within(|| TcpListener::bind(APP))?.context("listen")?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::spawn(move || {
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                // How it ended, the client sees.
                tokio::spawn(async { answer(stream).await.ok() });
            }
            #[expect(unreachable_code, reason = "it says the type")]
            std::io::Result::Ok(())
        })
    });
    Ok(())
}

async fn answer(mut stream: tokio::net::TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut held = Vec::new();
    let mut bytes = [0; 1024];
    loop {
        let length = stream.read(&mut bytes).await?;
        if length == 0 {
            return Ok(());
        }
        held.extend_from_slice(&bytes[..length]);
        if !held.ends_with(b"\r\n\r\n") {
            continue;
        }
        if !held.starts_with(b"GET /socket ") {
            stream.write_all(ANSWER).await?;
            held.clear();
            continue;
        }
        stream.write_all(SWITCHED).await?;
        break;
    }
    drop(held);
    loop {
        stream.readable().await?;
        match stream.try_read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(length) => stream.write_all(&bytes[..length]).await?,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn config() -> String {
    let (address, port) = SERVICE;
    let address = std::net::Ipv4Addr::from(address);
    format!(
        "[[node]]\nname = \"lb-01\"\naddress = \"192.0.2.11\"\ninterface = \"eth0\"\n\
         [[floating]]\nvrid = 51\naddresses = [\"{address}/24\"]\n\
         [[service]]\nname = \"web\"\nlisten = \"{address}:{port}\"\npath = \"proxy\"\n\
         [[service.backend]]\nname = \"app-01\"\naddress = \"{APP}\"\n\
         [service.health]\nprobe = \"tcp\"\n"
    )
}
