//! Backends that may have only so many requests at once, and which of them is asked.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ballast::proxy::Proxy;
use xtask::wait;

use crate::{
    backends::Manner,
    client::{Connection, PATIENCE},
    fronts::{self, Service},
};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn status(target: SocketAddr) -> Result<u16> {
    let mut connection = Connection::open(target)?;
    connection.send(GET);
    Ok(connection.answer("GET")?.status)
}

fn until(proxy: &Proxy, what: &str, is_so: impl Fn(ballast::proxy::Status) -> bool) -> Result<()> {
    wait::until(PATIENCE, what, || Ok(is_so(proxy.status("s0").unwrap_or_default()).then_some(())))
}

#[test]
fn what_a_full_backend_cannot_take_waits_or_is_refused() -> Result<()> {
    let keys = "max_requests = 1\nqueue = 1\nqueue_timeout = \"40s\"";
    // It is silent for two seconds, until the read timeout.
    let services = [Service::before(Manner::Silent, None)?.keys(keys)];
    let (proxy, ours) = fronts::ballast(&services)?;
    let target = ours[0];
    let first = thread::spawn(move || status(target));
    until(&proxy, "the backend to be asked", |counts| counts.active == 1)?;
    let second = thread::spawn(move || status(target));
    until(&proxy, "a request to wait", |counts| counts.queued == 1)?;
    // Nobody waits for the third: the queue is full.
    ensure!(status(target)? == 503);
    let joined = |thread: thread::JoinHandle<Result<u16>>| {
        thread.join().ok().context("a client panicked")?
    };
    ensure!(joined(first)? == 504, "the first was given up as the backend is silent");
    // Its turn came, and the backend was silent again.
    ensure!(joined(second)? == 504, "the second was let in after the first");
    let counts = proxy.status("s0").unwrap_or_default();
    ensure!((counts.queued, counts.overloaded) == (2, 1), "{counts:?}");
    Ok(())
}

#[test]
fn who_waits_for_too_long_is_told_so() -> Result<()> {
    let keys = "max_requests = 1\nqueue_timeout = \"100ms\"";
    let services = [Service::before(Manner::Silent, None)?.keys(keys)];
    let (proxy, ours) = fronts::ballast(&services)?;
    let target = ours[0];
    let first = thread::spawn(move || status(target));
    until(&proxy, "the backend to be asked", |counts| counts.active == 1)?;
    let asked = Instant::now();
    let told = status(target)?;
    // The first may have ended meanwhile, on a machine that does something else.
    ensure!(told == 503 || asked.elapsed() > Duration::from_secs(1), "{told}");
    first.join().ok().context("a client panicked")??;
    Ok(())
}

#[test]
fn nobody_is_lost_in_the_queue() -> Result<()> {
    let keys = "max_requests = 2\nqueue_timeout = \"60s\"";
    let services = [Service::before(Manner::Good, None)?.keys(keys)];
    let (proxy, ours) = fronts::ballast(&services)?;
    let target = ours[0];
    let clients: Vec<_> = (0..16)
        .map(|_| {
            thread::spawn(move || -> Result<()> {
                let mut connection = Connection::open(target)?;
                for _ in 0..50 {
                    connection.send(GET);
                    let answer = connection.answer("GET")?;
                    ensure!(answer.status == 200, "{answer:?}");
                }
                Ok(())
            })
        })
        .collect();
    for client in clients {
        client.join().ok().context("a client panicked")??;
    }
    let counts = proxy.status("s0").unwrap_or_default();
    ensure!(counts.requests == 16 * 50 && counts.overloaded == 0, "{counts:?}");
    Ok(())
}

#[test]
fn a_full_backend_leaves_requests_to_the_next() -> Result<()> {
    let keys = "max_requests = 1\nleast_time = true";
    let services = [Service::start(Manner::Silent)?.keys(keys)];
    let (proxy, ours) = fronts::ballast(&services)?;
    let target = ours[0];
    let first = thread::spawn(move || status(target));
    until(&proxy, "the first backend to be asked", |counts| counts.active == 1)?;
    let mut connection = Connection::open(target)?;
    connection.send(GET);
    let answer = connection.answer("GET")?;
    ensure!(answer.status == 200 && answer.body.starts_with("second"), "{answer:?}");
    ensure!(first.join().ok().context("a client panicked")?? == 200, "it was not asked again");
    Ok(())
}
