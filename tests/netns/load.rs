//! Clients: threads that ask again and again, and remember what came of each request.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::{lab::Host, wait};

use crate::{http, site::eventually};

/// A client gives a request up after so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A request and what came of it.
pub(crate) struct Request {
    begun: Instant,
    ended: Instant,
    /// The name of the host that answered, or what went wrong.
    outcome: Result<String, String>,
}

/// Clients at work.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    /// When the last request that a host answered was begun, by its name.
    answered: Arc<Mutex<BTreeMap<String, Instant>>>,
    threads: Vec<JoinHandle<Vec<Request>>>,
}

impl Load {
    /// Short HTTP connections, one after another in each thread.
    pub(crate) fn http(host: &Host, threads: usize, target: SocketAddr) -> Self {
        Self::http_requests(host, threads, u64::MAX, target)
    }

    /// So many of them in each thread.
    pub(crate) fn http_requests(
        host: &Host,
        threads: usize,
        each: u64,
        target: SocketAddr,
    ) -> Self {
        Self::start(host, threads, each, move || move || http::get(target, "/id"))
    }

    /// One datagram at a time, from one socket: none may get lost.
    pub(crate) fn echo(host: &Host, target: SocketAddr) -> Self {
        Self::start(host, 1, u64::MAX, move || {
            let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).expect("open a socket");
            socket.set_read_timeout(Some(PATIENCE)).expect("set its timeout");
            let mut number = 0_u64;
            move || echo(&socket, target, &mut number)
        })
    }

    /// So many requests in each thread, by a client that is made in it.
    pub(crate) fn start<A: FnMut() -> Result<String>>(
        host: &Host,
        threads: usize,
        each: u64,
        client: impl Fn() -> A + Clone + Send + Sync + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let answered = Arc::new(Mutex::new(BTreeMap::new()));
        let threads = (0..threads).map(|_| {
            let (host, client) = (host.clone(), client.clone());
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            let answered = Arc::clone(&answered);
            thread::spawn(move || {
                // Made in the thread that is on the host, as are its sockets.
                let work = || {
                    let mut ask = client();
                    let mut requests = Vec::new();
                    while !stop.load(Ordering::Relaxed) && (requests.len() as u64) < each {
                        let begun = Instant::now();
                        let outcome = ask().map_err(|error| format!("{error:#}"));
                        if let Ok(name) = &outcome {
                            answered.lock().expect("note the answer").insert(name.clone(), begun);
                        }
                        requests.push(Request { begun, ended: Instant::now(), outcome });
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    requests
                };
                host.within(work).expect("enter the client's namespace")
            })
        });
        let threads = threads.collect();
        Self { stop, done, answered, threads }
    }

    /// Waits until each of the hosts has answered a request that was begun after this call.
    pub(crate) fn until_answered_by(&self, hosts: &[&str]) -> Result<()> {
        let now = Instant::now();
        eventually(&format!("answers from {}", hosts.join(", ")), || {
            let answered = self.answered.lock().expect("read the answers");
            let has = |host: &&str| answered.get(*host).is_some_and(|begun| *begun >= now);
            Ok(hosts.iter().all(has).then_some(()))
        })
    }

    /// Waits until so many more requests have ended.
    pub(crate) fn more(&self, requests: u64) -> Result<()> {
        let goal = self.done.load(Ordering::Relaxed) + requests;
        eventually(&format!("{requests} more requests"), || {
            Ok((self.done.load(Ordering::Relaxed) >= goal).then_some(()))
        })
    }

    /// Waits until so many more requests are over, where that may take long.
    pub(crate) fn more_within(&self, requests: u64, limit: Duration) -> Result<()> {
        let goal = self.done.load(Ordering::Relaxed) + requests;
        wait::until(limit, &format!("{requests} more requests"), || {
            Ok((self.done.load(Ordering::Relaxed) >= goal).then_some(()))
        })
    }

    /// Lets each client end its last request.
    pub(crate) fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.end()
    }

    /// Waits until each client has sent all its requests.
    pub(crate) fn end(mut self) -> Report {
        let threads = std::mem::take(&mut self.threads).into_iter();
        Report(threads.flat_map(|thread| thread.join().expect("join a client")).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Of a test that fails; nobody waits for the clients.
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends the next number and waits until it comes back.
fn echo(socket: &UdpSocket, target: SocketAddr, number: &mut u64) -> Result<String> {
    *number += 1;
    let number = number.to_be_bytes();
    socket.send_to(&number, target).context("send a datagram")?;
    let mut answer = [0; 64];
    let (length, from) = socket.recv_from(&mut answer).context("wait for the echo")?;
    ensure!(from == target, "the echo came from {from}");
    let name = answer[..length].strip_suffix(&number).context("the echo of another datagram")?;
    Ok(String::from_utf8_lossy(name).trim_end_matches(':').to_owned())
}

/// What came of the requests.
pub(crate) struct Report(Vec<Request>);

impl Report {
    /// How many there were.
    pub(crate) fn total(&self) -> usize {
        self.0.len()
    }

    /// How many failed.
    pub(crate) fn failed(&self) -> usize {
        self.failures().count()
    }

    /// How many failed of those that were begun before `moment`.
    pub(crate) fn failed_before(&self, moment: Instant) -> usize {
        self.failures().filter(|request| request.begun < moment).count()
    }

    fn failures(&self) -> impl Iterator<Item = &Request> {
        self.0.iter().filter(|request| request.outcome.is_err())
    }

    /// How many were answered by each host, of those that were begun at or after `since`.
    pub(crate) fn answers(&self, since: Option<Instant>) -> BTreeMap<String, usize> {
        let mut answers = BTreeMap::new();
        let asked = self.0.iter().filter(|request| since.is_none_or(|at| request.begun >= at));
        for name in asked.filter_map(|request| request.outcome.as_ref().ok()) {
            *answers.entry(name.clone()).or_default() += 1;
        }
        answers
    }

    /// How many of those that were begun between two moments were answered by the host.
    pub(crate) fn answered_by(&self, host: &str, from: Instant, to: Instant) -> usize {
        let asked = self.0.iter().filter(|it| it.begun >= from && it.begun < to);
        asked.filter(|request| request.outcome.as_deref() == Ok(host)).count()
    }

    /// The longest that any request took.
    pub(crate) fn slowest(&self) -> Duration {
        let times = self.0.iter().map(|request| request.ended - request.begun);
        times.max().unwrap_or_default()
    }

    /// No request failed, and there were some.
    pub(crate) fn ensure_none_failed(&self) -> Result<()> {
        ensure!(self.total() > 0, "no request was sent");
        self.ensure_failures(self.failures(), "")
    }

    /// No request failed that was begun at or after `moment`, and there were some.
    pub(crate) fn ensure_none_failed_since(&self, moment: Instant) -> Result<()> {
        let later = self.0.iter().filter(|request| request.begun >= moment).count();
        ensure!(later > 0, "no request was sent after the moment");
        self.ensure_failures(self.failures().filter(|it| it.begun >= moment), "after the moment ")
    }

    fn ensure_failures<'a>(
        &self,
        failures: impl Iterator<Item = &'a Request>,
        when: &str,
    ) -> Result<()> {
        let start = self.0.iter().map(|request| request.begun).min();
        let failures: Vec<String> = failures
            .map(|request| {
                let at = start.map(|start| request.begun - start).unwrap_or_default();
                let took = request.ended - request.begun;
                let outcome = request.outcome.as_ref().err();
                format!("at {at:?}, after {took:?}: {}", outcome.map_or("", String::as_str))
            })
            .collect();
        ensure!(
            failures.is_empty(),
            "{} of {} requests failed {when}; the first:\n{}",
            failures.len(),
            self.total(),
            failures[..failures.len().min(5)].join("\n")
        );
        Ok(())
    }
}
