//! Sixty thousand connections to one backend: every port of the floating address in use.

use std::{
    io::{BufRead as _, BufReader},
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    process::{Child, ChildStdin, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket,
};
use xtask::lab::{Host, HostName, topology::FLOATING_V4};

use crate::{
    config::{self, Service, web},
    load::Load,
    site::{Site, number},
};

/// Addresses that the client connects from.
const CLIENTS: u8 = 4;

/// Connections from each of them: 60,000 in all, 4512 less than there are ports.
const EACH: u16 = 15_000;

/// Ports of the floating address that connections to one backend may have.
const PORTS: u64 = 65_536 - 1024;

/// How many more each of them tries: more than there are ports.
const MORE: u16 = 1150;

#[test]
fn ports_last_for_sixty_thousand_connections_and_running_out_is_said() -> Result<()> {
    let target = SocketAddr::from((FLOATING_V4, 7000));
    let [first, second] =
        [HostName::App01, HostName::App02].map(|app| SocketAddr::from((app.ipv4(), 7000)));
    let services = [
        Service::new("hold", target)
            .backend("first", first, "")
            .backend("second", second, "")
            .health("probe = \"none\""),
        Service::web("web", web(), &[HostName::App01]),
    ];
    // At the end tens of thousands of resets come at once, and the switch loses some.
    let config = config::text(&services) + "\n[dataplane]\ntcp_closing_timeout = \"10s\"\n";
    let site = Site::without_daemon("ports", config)?;
    let listeners = [(HostName::App01, first), (HostName::App02, second)]
        .map(|(host, address)| listen_only(&site, host, address));
    for number in 1..=CLIENTS {
        site.ip(HostName::Client, &format!("address add 192.0.2.{}/24 dev eth0", 200 + number))?;
    }
    site.daemon().start()?;
    site.settled()?;
    // All to one backend.
    site.obeys("disable second --service hold")?;
    site.until_serving("hold", "second", false)?;

    let holders = hold(&site, target, 20_000, EACH)?;
    let held: u64 = holders.iter().map(|holder| holder.held).sum();
    ensure!(held == 60_000, "{held} of 60000 connections could be opened");
    let status = site.until("60000 connections to be counted", |status| {
        number(&status.backend("hold", "first")["active"]) == 60_000
    })?;
    // Each client used the same ports, so three of four had to get others.
    ensure!(number(&status.backend("hold", "first")["answered"]) == 60_000);

    let more = hold(&site, target, 20_000 + EACH, MORE)?;
    let more: u64 = more.iter().map(|holder| holder.held).sum();
    println!("{held} connections, then {more} more: {} of {PORTS} ports", held + more);
    ensure!(held + more <= PORTS, "{} connections on {PORTS} ports", held + more);
    ensure!(held + more > PORTS - 500, "only {} connections on {PORTS} ports", held + more);
    let status = site.status()?;
    ensure!(status.reason("ports_exhausted") > 0, "nothing counted as ports_exhausted");
    ensure!(number(&status.service("hold")["refused"]) > 0);
    let warnings = status.warnings();
    ensure!(warnings.contains("ports") && warnings.contains("first"), "warnings: {warnings}");
    let events = site.events()?;
    let told = events.iter().find(|event| event["kind"] == "kernel");
    let told = told.context("find what the kernel reports on the timeline")?;
    ensure!(told.to_string().contains("ports"), "{told}");

    // Another backend of the same service, and another service, have ports of their own.
    let report = Load::http_requests(site.client(), 2, 50, web()).end();
    report.ensure_none_failed()?;
    site.obeys("enable second --service hold")?;
    site.until_serving("hold", "second", true)?;
    let others = hold(&site, target, 40_000, 500)?;
    let others: u64 = others.iter().map(|holder| holder.held).sum();
    ensure!(others == 500 * u64::from(CLIENTS), "{others} connections to the second backend");

    // All end; none is forgotten.
    drop(holders);
    drop(listeners);
    site.until("all connections to be over", |status| {
        status.sum("hold", "active") == 0 && number(&status.0["flows"]) == 0
    })?;
    site.finish()
}

/// Listens with a backlog for all of them. Nobody accepts, so nobody needs a descriptor.
fn listen_only(site: &Site, host: HostName, address: SocketAddr) -> Result<OwnedFd> {
    site.set(host, "net/core/somaxconn", "100000")?;
    site.set(host, "net/ipv4/tcp_max_syn_backlog", "100000")?;
    let SocketAddr::V4(address) = address else { anyhow::bail!("{address} is not IPv4") };
    site.host(host).within(|| {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(address))?;
        listen(&fd, Backlog::MAXALLOWABLE)?;
        Ok(fd)
    })?
}

/// A process that holds connections until this is dropped. A process has too few descriptors for
/// all of them.
struct Holder {
    child: Child,
    /// Its end ends the process.
    _stdin: ChildStdin,
    held: u64,
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Its sockets go with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens `each` connections from each client address, from its ports `first` and up.
fn hold(site: &Site, target: SocketAddr, first: u16, each: u16) -> Result<Vec<Holder>> {
    let started = (1..=CLIENTS).map(|number| {
        let from = IpAddr::from([192, 0, 2, 200 + number]);
        start(site.client(), target, from, first, each)
    });
    let started = started.collect::<Result<Vec<_>>>()?;
    started.into_iter().map(Starting::held).collect()
}

struct Starting {
    holder: Holder,
    stdout: BufReader<std::process::ChildStdout>,
}

fn start(host: &Host, target: SocketAddr, from: IpAddr, first: u16, each: u16) -> Result<Starting> {
    let mut command = host.command(env!("CARGO_BIN_EXE_hold-connections"));
    command.arg(target.to_string()).arg(from.to_string());
    command.arg(first.to_string()).arg(each.to_string());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start hold-connections")?;
    let stdin = child.stdin.take().context("take its input")?;
    let stdout = child.stdout.take().context("take its output")?;
    Ok(Starting {
        holder: Holder { child, _stdin: stdin, held: 0 },
        stdout: BufReader::new(stdout),
    })
}

impl Starting {
    /// Waits until it has tried all.
    fn held(mut self) -> Result<Holder> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).context("read how many connections are held")?;
        self.holder.held = line.trim().parse().with_context(|| format!("understand {line:?}"))?;
        Ok(self.holder)
    }
}
