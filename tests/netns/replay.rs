//! A backend fails before it has answered: its connections go to the next in the kernel.
//!
//! The active probes come so seldom here that they find nothing out while a test runs.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use xtask::lab::{Host, HostName};

use crate::{
    config::{self, APPS, Service, web, web6},
    load::PATIENCE,
    site::{Site, eventually, number},
};

/// Client threads, each of which makes one connection for each request.
const CLIENTS: usize = 16;

/// A service whose connections may all be replayed, so that the budget has no part in it.
fn service(name: &str, listen: SocketAddr) -> Service {
    Service::web(name, listen, &APPS).key("replay_budget = \"100%\"").health("interval = \"10s\"")
}

/// Makes a host refuse connections to its nginx: a reset in answer to each SYN.
fn refuse(site: &Site, app: HostName) -> Result<()> {
    site.run(app, &["nft", "add table inet refuse"])?;
    let hook = "{ type filter hook input priority 0; }";
    site.run(app, &["nft", &format!("add chain inet refuse input {hook}")])?;
    let rule = "tcp dport 8080 tcp flags & (syn | ack) == syn reject with tcp reset";
    site.run(app, &["nft", &format!("add rule inet refuse input {rule}")])?;
    Ok(())
}

/// A request: when it was begun, how long the connection took or why there is none, and why there was no
/// answer.
struct Try {
    begun: Instant,
    connect: Result<Duration, ErrorKind>,
    answer: Result<(), String>,
}

/// Clients at work. The connection and what comes after it are told apart.
struct Clients {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<Try>>>,
}

impl Clients {
    fn start(host: &Host, count: usize, target: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let threads = (0..count).map(|_| {
            let (host, stop, done) = (host.clone(), Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || {
                let work = || {
                    let mut tries = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        tries.push(ask(target));
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    tries
                };
                host.within(work).expect("enter the client's namespace")
            })
        });
        let threads = threads.collect();
        Self { stop, done, threads }
    }

    /// Waits until so many more requests have ended.
    fn more(&self, requests: u64) -> Result<()> {
        let goal = self.done.load(Ordering::Relaxed) + requests;
        eventually(&format!("{requests} more requests"), || {
            Ok((self.done.load(Ordering::Relaxed) >= goal).then_some(()))
        })
    }

    fn stop(mut self) -> Tries {
        self.stop.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads).into_iter();
        Tries(threads.flat_map(|thread| thread.join().expect("join a client")).collect())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // Of a test that fails; nobody waits for the clients.
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ask(target: SocketAddr) -> Try {
    let begun = Instant::now();
    let stream = TcpStream::connect_timeout(&target, PATIENCE);
    let connect = stream.as_ref().map(|_| begun.elapsed()).map_err(std::io::Error::kind);
    let answer = stream.and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /id HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.1 200 ") {
            Ok(())
        } else {
            Err(ErrorKind::InvalidData.into())
        }
    });
    Try { begun, connect, answer: answer.map_err(|error| error.to_string()) }
}

/// What came of the requests.
struct Tries(Vec<Try>);

impl Tries {
    fn failed_connects(&self) -> Vec<ErrorKind> {
        self.0.iter().filter_map(|request| request.connect.err()).collect()
    }

    /// Connections that took at least so long.
    fn slower_than(&self, time: Duration) -> usize {
        self.0.iter().filter(|request| request.connect.is_ok_and(|took| took >= time)).count()
    }

    fn slowest_connect_since(&self, moment: Instant) -> Duration {
        let since = self.0.iter().filter(|request| request.begun >= moment);
        since.filter_map(|request| request.connect.ok()).max().unwrap_or_default()
    }

    /// Requests whose connection stood, and that had no answer.
    fn unanswered(&self) -> Vec<&str> {
        let connected = self.0.iter().filter(|request| request.connect.is_ok());
        connected.filter_map(|request| request.answer.as_ref().err().map(String::as_str)).collect()
    }

    fn ensure_all_connected(&self) -> Result<()> {
        let failed = self.failed_connects();
        ensure!(
            failed.is_empty(),
            "{} of {} connections failed, the first: {:?}",
            failed.len(),
            self.0.len(),
            failed[0]
        );
        Ok(())
    }
}

#[test]
fn a_backend_that_refuses_costs_no_request() -> Result<()> {
    let services = [service("web", web()), service("web6", web6())];
    let site = Site::up("refusing", config::text(&services))?;
    let clients = Clients::start(site.client(), CLIENTS, web());
    let clients6 = Clients::start(site.client(), 2, web6());
    clients.more(300)?;
    refuse(&site, HostName::App01)?;
    clients.more(2000)?;
    clients6.more(200)?;
    let status = site.until("the replays to be told", |status| {
        number(&status.service("web")["replayed"]) > 0
            && number(&status.service("web6")["replayed"]) > 0
    })?;
    let (tries, tries6) = (clients.stop(), clients6.stop());
    println!(
        "refusing: 0 of {} requests may fail; {} connections replayed, {} not",
        tries.0.len() + tries6.0.len(),
        number(&status.service("web")["replayed"]),
        number(&status.service("web")["not_replayed"]),
    );
    for tries in [&tries, &tries6] {
        tries.ensure_all_connected()?;
        ensure!(tries.unanswered().is_empty(), "{:?}", tries.unanswered());
    }
    let note = eventually("the timeline to tell of it", || {
        let events = site.events()?;
        Ok(events.into_iter().find(|it| it["kind"] == "replay" && it["backend"] == "app-01"))
    })?;
    ensure!(note["cause"].as_str().unwrap_or_default().contains("refused"), "{note}");
    ensure!(site.obeys("status")?.contains("tried at another backend"));
    site.finish()
}

#[test]
fn without_replay_the_refusal_reaches_the_client() -> Result<()> {
    let service = service("web", web()).key("replay_tries = 0");
    let site = Site::up("refused", config::text(&[service]))?;
    let clients = Clients::start(site.client(), CLIENTS, web());
    clients.more(300)?;
    refuse(&site, HostName::App01)?;
    clients.more(300)?;
    let tries = clients.stop();
    let failed = tries.failed_connects();
    ensure!(failed.contains(&ErrorKind::ConnectionRefused), "{failed:?}");
    ensure!(site.status()?.service("web")["replayed"] == 0);
    site.finish()
}

#[test]
fn a_killed_backend_costs_only_what_it_had_accepted() -> Result<()> {
    let site = Site::up("sigkill", config::text(&[service("web", web())]))?;
    let clients = Clients::start(site.client(), CLIENTS, web());
    clients.more(300)?;
    site.lab().kill("app-01")?;
    clients.more(2000)?;
    let replayed = number(&site.status()?.service("web")["replayed"]);
    let tries = clients.stop();
    println!(
        "killed: {} requests, 0 may be refused; {replayed} connections replayed; lost with the \
         process, which had accepted them: {:?}",
        tries.0.len(),
        tries.unanswered()
    );
    // The host may reset a connection that it has just established before the client's call has
    // returned; what it refuses from the start is another error.
    let failed = tries.failed_connects();
    let refused = failed.iter().filter(|kind| **kind != ErrorKind::ConnectionReset).count();
    ensure!(refused == 0, "{failed:?}");
    ensure!(replayed > 0, "nothing was replayed");
    // The process had them: in its hands, or in its socket's queue. Each client has one at most.
    let lost = failed.len() + tries.unanswered().len();
    ensure!(lost <= CLIENTS, "{failed:?}, {:?}", tries.unanswered());
    site.finish()
}

#[test]
fn a_silent_backend_costs_no_connection() -> Result<()> {
    // In turn: `least_conn` would keep away from a backend whose connections stand still.
    let in_turn = |service: Service| service.key("balance = \"round_robin\"");
    let services = [in_turn(service("web", web())), in_turn(service("web6", web6()))];
    let site = Site::up("cut", config::text(&services))?;
    let clients = Clients::start(site.client(), CLIENTS, web());
    let clients6 = Clients::start(site.client(), 2, web6());
    clients.more(300)?;
    let cut = Instant::now();
    site.lab().cut("app-02")?;
    clients.more(1000)?;
    clients6.more(50)?;
    let status = site.status()?;
    let (tries, tries6) = (clients.stop(), clients6.stop());
    let slowest = tries.slowest_connect_since(cut).max(tries6.slowest_connect_since(cut));
    println!(
        "link cut: {} connections, none may fail; slowest {slowest:?}; {} replayed, {} SYNs dropped \
         for want of a next hop; {:?} took longer than 0.1, 0.5 and 0.9 s; on connections that stood when the link went: {:?}",
        tries.0.len() + tries6.0.len(),
        number(&status.service("web")["replayed"]),
        status.reason("no_neighbour"),
        [100, 500, 900].map(|ms| tries.slower_than(Duration::from_millis(ms))),
        tries.unanswered()
    );
    tries.ensure_all_connected()?;
    tries6.ensure_all_connected()?;
    ensure!(number(&status.service("web")["replayed"]) > 0, "nothing was replayed");
    // Most did not have to wait for the client's own retransmission, which comes after a second.
    let [held_up, _, late] = [100, 500, 900].map(|ms| tries.slower_than(Duration::from_millis(ms)));
    ensure!(late * 2 <= held_up, "{late} of {held_up} connections waited for the client");
    ensure!(slowest < Duration::from_millis(1500), "the slowest connection took {slowest:?}");
    site.finish()
}
