//! The client: many short HTTP connections, each counted in the phase in which it began.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{lab::Host, wait};

/// Requests in a second, of all threads. Far below what the path carries: the machine's cores are
/// shared with the servers, and a port is free again only some time after its connection.
const RATE: u32 = 2000;

/// A connection, and then an answer, may take so long.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What came of the requests of a phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Answered ones, by the name in the answer.
    pub(crate) answers: BTreeMap<String, u64>,
    /// Failed ones, by error.
    pub(crate) failures: BTreeMap<String, u64>,
    /// The slowest, answered or not.
    pub(crate) slowest: Duration,
}

impl Tally {
    /// Answered requests.
    pub(crate) fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Failed requests.
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    fn add(&mut self, outcome: io::Result<String>, took: Duration) {
        self.slowest = self.slowest.max(took);
        let (counts, key) = match outcome {
            Ok(name) => (&mut self.answers, name),
            Err(error) => (&mut self.failures, describe(&error)),
        };
        *counts.entry(key).or_default() += 1;
    }
}

/// Requests that are under way until it is [stopped](Load::stop) or dropped.
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

struct Shared {
    target: SocketAddr,
    stop: AtomicBool,
    phase: AtomicUsize,
    /// For each thread the phase of its last request.
    begun: Vec<AtomicUsize>,
    tallies: Mutex<Vec<Tally>>,
}

impl Shared {
    fn record(&self, phase: usize, outcome: io::Result<String>, took: Duration) {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        if tallies.len() <= phase {
            tallies.resize_with(phase + 1, Tally::default);
        }
        tallies[phase].add(outcome, took);
    }
}

impl Load {
    /// Starts `threads` threads on a host, in phase 0.
    pub(crate) fn start(host: &Host, target: SocketAddr, threads: usize) -> Self {
        let shared = Arc::new(Shared {
            target,
            stop: AtomicBool::new(false),
            phase: AtomicUsize::new(0),
            begun: (0..threads).map(|_| AtomicUsize::new(0)).collect(),
            tallies: Mutex::new(vec![Tally::default()]),
        });
        let period = Duration::from_secs(1) * threads as u32 / RATE;
        let threads = (0..threads)
            .map(|thread| {
                let (host, shared) = (host.clone(), Arc::clone(&shared));
                thread::spawn(move || host.within(|| work(&shared, thread, period)))
            })
            .collect();
        Self { shared, threads }
    }

    /// Requests from now on belong to the next phase. Waits until those of the last are answered,
    /// so that what happens next is not held against them.
    pub(crate) fn next_phase(&self) -> Result<()> {
        let phase = self.shared.phase.fetch_add(1, Ordering::Relaxed) + 1;
        // Connecting, writing and reading may each take their time.
        wait::until(4 * TIMEOUT, "the client's threads", || {
            let all = self.shared.begun.iter().all(|begun| begun.load(Ordering::Relaxed) >= phase);
            let ended = self.threads.iter().any(JoinHandle::is_finished);
            if ended {
                bail!("a thread of the client has ended");
            }
            Ok(all.then_some(()))
        })
    }

    /// Everything so far, of all phases.
    pub(crate) fn total(&self) -> Tally {
        let mut total = Tally::default();
        let tallies = self.shared.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        for tally in tallies.iter() {
            total.slowest = total.slowest.max(tally.slowest);
            for (sum, part) in
                [(&mut total.answers, &tally.answers), (&mut total.failures, &tally.failures)]
            {
                for (key, count) in part {
                    *sum.entry(key.clone()).or_default() += count;
                }
            }
        }
        total
    }

    /// Ends the requests in order and gives what came of them, phase by phase.
    pub(crate) fn stop(mut self) -> Result<Vec<Tally>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a thread of the client panicked"),
            }
        }
        let mut tallies = self.shared.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        // The last phases may have begun no request.
        let phases = self.shared.phase.load(Ordering::Relaxed) + 1;
        tallies.resize_with(phases, Tally::default);
        Ok(std::mem::take(&mut *tallies))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn work(shared: &Shared, thread: usize, period: Duration) {
    let mut next = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        let phase = shared.phase.load(Ordering::Relaxed);
        shared.begun[thread].store(phase, Ordering::Relaxed);
        let begin = Instant::now();
        let outcome = ask(shared.target);
        shared.record(phase, outcome, begin.elapsed());
        // After a slow one there is no rush to catch up.
        next = (next + period).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        // The first is what a read with a limit gives.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "timed out".into(),
        io::ErrorKind::InvalidData => error.to_string(),
        kind => kind.to_string(),
    }
}

/// One connection with one request; gives the name of the server that answered.
fn ask(target: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!("GET /id HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    name_in(&answer)
}

fn name_in(answer: &str) -> io::Result<String> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    let name = body.trim();
    if status != "200" || name.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("status {status}")));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that answers every connection with `answer`.
    fn serve(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                // The whole request, lest the answer be cut off by a reset.
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                    request.push(byte[0]);
                }
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    #[test]
    fn the_name_in_the_answer_is_the_server() {
        let address = serve("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\napp-01\n");
        assert_eq!(ask(address).unwrap(), "app-01");
    }

    #[test]
    fn bad_answers_are_failures() {
        let kind = |answer| name_in(answer).unwrap_err().kind();
        assert_eq!(kind("HTTP/1.1 503 Sick\r\n\r\napp-01\n"), io::ErrorKind::InvalidData);
        assert_eq!(kind("HTTP/1.1 200 OK\r\n\r\n"), io::ErrorKind::InvalidData);
        assert_eq!(kind("HTTP/1.1 200 OK\r\n"), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(""), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_tally_tells_answers_from_failures() {
        let mut tally = Tally::default();
        tally.add(Ok("app-01".into()), Duration::from_millis(3));
        tally.add(Ok("app-01".into()), Duration::from_millis(9));
        tally.add(Err(io::ErrorKind::ConnectionRefused.into()), Duration::from_millis(1));
        assert_eq!((tally.answered(), tally.failed()), (2, 1));
        assert_eq!(tally.slowest, Duration::from_millis(9));
        assert_eq!(tally.failures.keys().next().unwrap(), "connection refused");
        assert_eq!(describe(&io::ErrorKind::WouldBlock.into()), "timed out");
        assert_eq!(describe(&name_in("HTTP/1.1 503 Sick\r\n\r\nx").unwrap_err()), "status 503");
    }
}
