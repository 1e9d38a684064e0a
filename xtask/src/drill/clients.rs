//! The clients of a drill.
//!
//! - *Requests*: many short connections with a request each; what fails is counted. A user's browser.
//! - *Probes*: every few milliseconds a connection that is given up soon. The longest time between two that
//!   succeeded is the gap. (A request that lost its first packet succeeds a second later, when TCP sends it
//!   again, so requests cannot measure a gap.)
//! - *Open connections*: each asks ten times a second over one connection, and is broken if that ends or
//!   an answer does not come.
//! - *A download*: 200 MB that are in flight meanwhile, and must be the right ones.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use super::download::Download;
use crate::{
    lab::{Host, topology::FLOATING_V4},
    run::client::Load,
};

/// Threads of the requests.
const REQUEST_THREADS: usize = 16;

/// Threads of the probes.
const PROBERS: u32 = 40;

/// A thread's probes begin so far apart; those of all threads by a fraction of it.
const PROBE_PERIOD: Duration = Duration::from_millis(200);

/// A probe is given up after so long.
const PROBE_LIMIT: Duration = Duration::from_millis(150);

/// How many connections are open.
pub(super) const CONNECTIONS: usize = 20;

/// An open connection asks so often.
const ASK_PERIOD: Duration = Duration::from_millis(100);

/// An open connection is broken if an answer takes longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What the clients saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Requests.
    pub(super) requests: u64,
    /// Requests that failed.
    pub(super) failed: u64,
    /// Why they failed, and how many each.
    pub(super) failures: BTreeMap<String, u64>,
    /// The slowest request.
    pub(super) slowest: Duration,
    /// The longest time between the beginnings of two probes that succeeded.
    pub(super) gap: Duration,
    /// Open connections that broke.
    pub(super) broken: usize,
    /// What was wrong with the download, if something was.
    pub(super) download: Option<String>,
}

/// Clients at work, until they are stopped or dropped.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    load: Option<Load>,
    probers: Vec<JoinHandle<Result<Vec<Instant>>>>,
    connections: Vec<JoinHandle<Result<bool>>>,
    download: Option<JoinHandle<Result<()>>>,
}

impl Clients {
    /// Starts them on a host. `file` is what the download is to be; without it there is none.
    pub(super) fn start(host: &Host, file: Option<PathBuf>) -> Result<Self> {
        let target = SocketAddr::new(FLOATING_V4.into(), 80);
        let stop = Arc::new(AtomicBool::new(false));
        let begin = Instant::now();
        let probers = (0..PROBERS)
            .map(|number| {
                let (host, stop) = (host.clone(), Arc::clone(&stop));
                let first = begin + PROBE_PERIOD * number / PROBERS;
                thread::spawn(move || host.within(|| probe(target, first, &stop)))
            })
            .collect();
        let streams = host.within(|| {
            (0..CONNECTIONS)
                .map(|_| TcpStream::connect_timeout(&target, ANSWER_LIMIT))
                .collect::<Result<Vec<_>, _>>()
        })?;
        let connections = streams
            .context("open the connections that are to stay open")?
            .into_iter()
            .map(|stream| {
                let stop = Arc::clone(&stop);
                thread::spawn(move || Ok(stays(stream, target, &stop)))
            })
            .collect();
        let download = match file {
            None => None,
            Some(file) => {
                let download = host.within(|| Download::ask(target))??;
                Some(thread::spawn(move || download.read(&file)))
            }
        };
        let load = Load::start(host, target, REQUEST_THREADS);
        Ok(Self { stop, load: Some(load), probers, connections, download })
    }

    /// Stops them; each ends what it has begun.
    pub(super) fn stop(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let mut answered = Vec::new();
        for prober in self.probers.drain(..) {
            answered.extend(prober.join().map_err(|_| anyhow!("a prober panicked"))??);
        }
        let mut broken = 0;
        for connection in self.connections.drain(..) {
            let stays = connection.join().map_err(|_| anyhow!("a connection panicked"))??;
            broken += usize::from(!stays);
        }
        let download = match self.download.take() {
            None => Ok(()),
            Some(download) => download.join().map_err(|_| anyhow!("the download panicked"))?,
        };
        let load = self.load.take().context("stop the requests once")?;
        let tallies = load.stop()?;
        let mut failures = BTreeMap::new();
        for (why, count) in tallies.iter().flat_map(|tally| &tally.failures) {
            *failures.entry(why.clone()).or_default() += count;
        }
        Ok(Seen {
            failures,
            requests: tallies.iter().map(|tally| tally.answered() + tally.failed()).sum(),
            failed: tallies.iter().map(crate::run::client::Tally::failed).sum(),
            slowest: tallies.iter().map(|tally| tally.slowest).max().unwrap_or_default(),
            gap: longest_gap(answered),
            broken,
            download: download.err().map(|error| format!("{error:#}")),
        })
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// When the probes began that succeeded.
fn probe(target: SocketAddr, first: Instant, stop: &AtomicBool) -> Vec<Instant> {
    let mut answered = Vec::new();
    let mut next = first;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let begin = Instant::now();
        if ask_once(target, begin + PROBE_LIMIT).is_some() {
            answered.push(begin);
        }
        next = (next + PROBE_PERIOD).max(Instant::now());
    }
    answered
}

/// One connection with one request; `None` if the answer is not there in time.
fn ask_once(target: SocketAddr, end: Instant) -> Option<()> {
    let left =
        || Some(end.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero());
    let mut stream = TcpStream::connect_timeout(&target, left()?).ok()?;
    stream.set_read_timeout(left()).ok()?;
    ask(&mut stream, target)
}

/// Whether a connection goes on until it is stopped.
fn stays(mut stream: TcpStream, target: SocketAddr, stop: &AtomicBool) -> bool {
    if stream.set_read_timeout(Some(ANSWER_LIMIT)).is_err() {
        return false;
    }
    while !stop.load(Ordering::Relaxed) {
        if ask(&mut stream, target).is_none() {
            return false;
        }
        thread::sleep(ASK_PERIOD);
    }
    true
}

/// A request over a connection that stays open, and the whole of its answer.
fn ask(stream: &mut TcpStream, target: SocketAddr) -> Option<()> {
    stream.write_all(format!("GET /id HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).ok()?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let read = stream.read(&mut piece).ok().filter(|read| *read > 0)?;
        answer.extend_from_slice(&piece[..read]);
        if let Some(complete) = is_complete(&answer) {
            return complete.then_some(());
        }
    }
}

/// Whether an answer is good, once all of it is there.
fn is_complete(answer: &[u8]) -> Option<bool> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    match length {
        Some(length) if body.len() < length => None,
        Some(_) => Some(head.starts_with("HTTP/1.1 200 ")),
        // All that is asked for has a length; an error page of a balancer may not.
        None => Some(false),
    }
}

/// The longest time between two of these moments.
fn longest_gap(mut moments: Vec<Instant>) -> Duration {
    moments.sort_unstable();
    let gaps = moments.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_the_longest_time_without_success() {
        let begin = Instant::now();
        let moments = [0, 5, 400, 10, 405].map(|ms| begin + Duration::from_millis(ms));
        assert_eq!(longest_gap(moments.to_vec()), Duration::from_millis(390));
        assert_eq!(longest_gap(Vec::new()), Duration::MAX);
    }

    #[test]
    fn an_answer_is_complete_when_its_body_is_there() {
        assert_eq!(is_complete(b"HTTP/1.1 200 OK\r\nContent-Le"), None);
        assert_eq!(is_complete(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"), None);
        assert_eq!(is_complete(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"), Some(true));
        assert_eq!(is_complete(b"HTTP/1.1 502 Bad\r\nContent-Length: 1\r\n\r\nx"), Some(false));
        assert_eq!(is_complete(b"HTTP/1.1 200 OK\r\n\r\n"), Some(false));
    }
}
