//! `ballast reset`: connections that say nothing are ended at once, on both sides.

use std::{
    fs,
    io::{BufRead as _, BufReader, ErrorKind, Read as _},
    net::{IpAddr, SocketAddr, TcpStream},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use xtask::lab::HostName;

use crate::{
    config::{self, Service, web, web6},
    load::Load,
    site::{Site, eventually, number},
};

/// How long a reset may take at most to arrive, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

fn site(name: &str) -> Result<Site> {
    let app = [HostName::App01];
    Site::up(
        name,
        config::text(&[
            Service::web("web", web(), &app).key("balance = \"maglev\""),
            Service::web("web6", web6(), &app),
        ]),
    )
}

/// A connection that says nothing.
fn idle(site: &Site, target: SocketAddr) -> Result<TcpStream> {
    let stream = site.client().within(|| TcpStream::connect_timeout(&target, PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn is_reset(mut stream: &TcpStream) -> Result<()> {
    match stream.read(&mut [0; 16]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).context("wait for the reset"),
        Ok(bytes) => bail!("{bytes} bytes, and no reset"),
    }
}

/// Waits until the balancer knows so many connections of a service, all of them answered.
fn until_open(site: &Site, service: &str, count: u64) -> Result<()> {
    let what = format!("{count} open connections of {service}");
    site.until(&what, |status| status.sum(service, "active") == count)?;
    Ok(())
}

fn reset(site: &Site, words: &str) -> Result<Value> {
    Ok(serde_json::from_str(&site.obeys(&format!("reset {words} --json"))?)?)
}

/// How often a host has asked back because of a segment that was not exact (RFC 5961).
fn challenges(site: &Site, host: HostName) -> Result<u64> {
    let read = || fs::read_to_string("/proc/thread-self/net/netstat");
    let text = site.host(host).within(read)??;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) =
        pairs.find(|(name, _)| *name == "TCPChallengeACK").context("find TCPChallengeACK")?;
    Ok(value.parse()?)
}

/// Established connections of a host to this port of any other.
fn established(site: &Site, host: HostName, port: u16) -> Result<usize> {
    let mut count = 0;
    for file in ["tcp", "tcp6"] {
        let read = || fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let text = site.host(host).within(read)??;
        let remote = format!(":{port:04X}");
        count += text
            .lines()
            .filter_map(|line| {
                let mut fields = line.split_whitespace().skip(2);
                Some((fields.next()?, fields.next()?))
            })
            .filter(|(address, state)| address.ends_with(&remote) && *state == "01")
            .count();
    }
    Ok(count)
}

#[test]
fn a_connection_that_says_nothing_ends_on_both_sides_without_a_question() -> Result<()> {
    let site = site("reset")?;
    for (target, service) in [(web(), "web"), (web6(), "web6")] {
        let stream = idle(&site, target)?;
        let port = stream.local_addr()?.port();
        until_open(&site, service, 1)?;
        ensure!(established(&site, HostName::App01, port)? == 1);
        let before = [HostName::Client, HostName::App01].map(|host| challenges(&site, host));
        let resets = reset(&site, &format!("app-01 --service {service}"))?;
        ensure!(resets["ended"] == 1 && resets["untold"] == 0, "{resets}");
        ensure!(resets["to_clients"] == 1 && resets["to_backends"] == 1, "{resets}");
        is_reset(&stream)?;
        eventually("the backend's side to end", || {
            Ok((established(&site, HostName::App01, port)? == 0).then_some(()))
        })?;
        let after = [HostName::Client, HostName::App01].map(|host| challenges(&site, host));
        for (before, after) in before.into_iter().zip(after) {
            ensure!(before? == after?, "a reset was not exact, and its receiver has asked back");
        }
        until_open(&site, service, 0)?;
    }
    // The backend serves on.
    Load::http_requests(site.client(), 2, 50, web()).end().ensure_none_failed()?;

    let one = idle(&site, web())?;
    let other = idle(&site, web())?;
    until_open(&site, "web", 2)?;
    let resets = reset(&site, &format!("app-01 --flows {}", one.local_addr()?))?;
    ensure!(resets["ended"] == 1, "{resets}");
    is_reset(&one)?;
    until_open(&site, "web", 1)?;
    let nobody = reset(&site, "app-01 --flows 192.0.2.77")?;
    ensure!(nobody["ended"] == 0, "{nobody}");
    ensure!(established(&site, HostName::App01, other.local_addr()?.port())? == 1);

    let text = site.refuses("reset app-09")?;
    ensure!(text.contains("there are: app-01"), "{text}");
    let text = site.refuses("reset app-01 --service shop")?;
    ensure!(text.contains("there are: web, web6"), "{text}");
    let events = site.events()?;
    ensure!(events.iter().any(|event| event.to_string().contains("1 connections to app-01")));
    site.finish()
}

/// Connections from each of two client addresses.
const EACH: u16 = 2000;

#[test]
fn thousands_of_connections_end_at_the_pace_that_was_asked_for() -> Result<()> {
    let site = site("resets")?;
    let port = web().port();
    let mut holders = Vec::new();
    for host in [201_u8, 202] {
        site.ip(HostName::Client, &format!("address add 192.0.2.{host}/24 dev eth0"))?;
        let from = IpAddr::from([192, 0, 2, host]);
        let mut command = site.client().command(env!("CARGO_BIN_EXE_hold-connections"));
        command.arg(web().to_string()).arg(from.to_string());
        command.arg("20000").arg(EACH.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("take its output")?;
        holders.push(Guard(child));
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.trim() == EACH.to_string(), "only {line} connections could be opened");
    }
    let all = u64::from(EACH) * 2;
    until_open(&site, "web", all)?;
    let began = Instant::now();
    let resets = reset(&site, "app-01 --service web --rate 4000")?;
    let took = began.elapsed();
    println!("{all} connections ended in {took:?}: {resets}");
    ensure!(number(&resets["ended"]) == all && resets["untold"] == 0, "{resets}");
    // Half a pause is the shortest.
    ensure!(took >= Duration::from_millis(450), "they ended without a pace, in {took:?}");
    eventually("all to end at the client", || {
        Ok((established(&site, HostName::Client, port)? == 0).then_some(()))
    })?;
    until_open(&site, "web", 0)?;
    drop(holders);
    Load::http_requests(site.client(), 2, 50, web()).end().ensure_none_failed()?;
    site.finish()
}

/// A process that ends with this.
struct Guard(std::process::Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Its sockets go with it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
