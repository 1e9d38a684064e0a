//! How long requests take where nobody is at the limit, at the same rate for all.
//!
//! Clients that ask again as soon as they are answered load each proxy to its limit. What a request
//! takes is then what the line before it takes, and which of the programs that share a CPU has its
//! turn: the same proxy's 99th percentile differs by a factor between two runs. Here requests are
//! due at times that are drawn once, and the same for all, whatever became of those before.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde::Serialize;
use xtask::lab::Lab;

use super::{CONNECTIONS, Case, fronts::Front};

/// Of the requests a second that nginx answers at its limit. At half of it the clients themselves, who
/// share a CPU with the app server, are what a request waits for.
pub(super) const SHARE: f64 = 0.25;

/// Longest that any answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the clients have to open their connections before the first request is due.
const START: Duration = Duration::from_millis(300);

/// What the app server answers with.
const BODY: &[u8] = b"app-01\n";

/// How long requests took in a turn.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Paced {
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

/// What all clients of a turn have in common.
#[derive(Clone, Debug)]
struct Plan {
    front: SocketAddr,
    trust: Option<Arc<ClientConfig>>,
    /// Whether each request has a connection of its own.
    close: bool,
    /// Between two requests of a client, on average.
    gap: Duration,
    /// When the clients begin, and end.
    start: Instant,
    end: Instant,
}

/// Asks a proxy so many times a second, for so many seconds.
///
/// # Errors
///
/// If any request fails.
pub(super) fn turn(
    lab: &Lab,
    front: Front,
    case: Case,
    rate: f64,
    seconds: u32,
) -> anyhow::Result<Paced> {
    let tls = case == Case::Tls;
    let trust = tls.then(|| trust(&lab.state_dir().join("chain.pem"))).transpose()?;
    let start = Instant::now() + START;
    let plan = Plan {
        front: front.address(tls),
        trust,
        close: case == Case::Close,
        gap: Duration::from_secs_f64(f64::from(CONNECTIONS) / rate),
        start,
        end: start + Duration::from_secs(seconds.into()),
    };
    let ask = || {
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CONNECTIONS)
                .map(|seed| {
                    let plan = &plan;
                    scope.spawn(move || plan.ask(seed.into()))
                })
                .collect();
            let mut all = Vec::new();
            for client in clients {
                all.extend(client.join().map_err(|_| anyhow!("a client panicked"))??);
            }
            anyhow::Ok(all)
        })
    };
    let mut took = lab.host("client").within(ask)??;
    ensure!(!took.is_empty(), "no request was due in {seconds} s at {rate:.0} a second");
    took.sort_unstable();
    let of_100 = |part: usize| took[took.len() * part / 100].as_secs_f64() * 1e6;
    Ok(Paced { p50_us: of_100(50), p99_us: of_100(99) })
}

/// Trusts the proxies' certificate.
fn trust(chain: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let chain = fs::read(chain).context("read the certificate")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&chain) {
        roots.add(certificate.context("read the certificate")?)?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::new(config))
}

impl Plan {
    /// What a client's requests took.
    fn ask(&self, seed: u64) -> anyhow::Result<Vec<Duration>> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut open = if self.close { None } else { Some(self.open()?) };
        let mut took = Vec::new();
        for number in 0.. {
            let due = self.start + self.gap.mul_f64(f64::from(number) + random.f64());
            if due >= self.end {
                break;
            }
            let wait = due.saturating_duration_since(Instant::now());
            thread::sleep(wait);
            // One that had to wait for the answer before it has waited since it was due. A client
            // that wakes up late has waited for nobody but itself.
            let asked = if wait.is_zero() { due } else { Instant::now() };
            match &mut open {
                Some(open) => request(open.as_mut(), "")?,
                None => request(self.open()?.as_mut(), "Connection: close\r\n")?,
            }
            took.push(asked.elapsed());
        }
        Ok(took)
    }

    fn open(&self) -> anyhow::Result<Box<dyn Connection>> {
        let stream = TcpStream::connect(self.front).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let Some(trust) = &self.trust else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from("bench")?;
        let mut session = ClientConnection::new(Arc::clone(trust), name)?;
        let mut stream = stream;
        while session.is_handshaking() {
            session.complete_io(&mut stream).context("agree on TLS")?;
        }
        Ok(Box::new(StreamOwned::new(session, stream)))
    }
}

/// In the clear, or not.
trait Connection: Read + Write {}

impl<Stream: Read + Write> Connection for Stream {}

fn request(open: &mut dyn Connection, field: &str) -> anyhow::Result<()> {
    let head = format!("GET / HTTP/1.1\r\nHost: bench\r\n{field}\r\n");
    open.write_all(head.as_bytes()).context("ask")?;
    open.flush().context("ask")?;
    let mut answer = [0; 2048];
    let mut length = 0;
    while !answer[..length].ends_with(BODY) {
        let read = open.read(&mut answer[length..]).context("read an answer")?;
        ensure!(read > 0, "the connection was closed, or the answer is too long");
        length += read;
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "the answer is another one");
    Ok(())
}
