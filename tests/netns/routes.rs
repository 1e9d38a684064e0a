//! Networks behind networks: backends on another interface, clients behind a router.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{BIG_BYTES, Host, HostName, topology::FLOATING_V4};

use crate::{
    config::{self, Service, web, web6},
    http::{self, Connection},
    load::Load,
    site::{Site, number},
};

/// Joins two hosts by a link of their own, `eth1` on both sides, up and without addresses.
fn join(site: &Site, one: HostName, other: HostName) -> Result<()> {
    let namespace = site.host(other).namespace();
    site.ip(one, &format!("link add eth1 type veth peer name eth1 netns {namespace}"))?;
    for host in [one, other] {
        site.ip(host, "link set eth1 up")?;
        // What a program is to see must be what would be on a wire.
        site.run(host, &["ethtool", "-K", "eth1", "tx", "off", "txvlan", "off"])?;
        // A veth takes frames that its peer redirects only while it has a queue of its own.
        site.run(host, &["ethtool", "-K", "eth1", "gro", "on"])?;
    }
    Ok(())
}

#[test]
fn backends_on_another_interface_and_behind_a_gateway() -> Result<()> {
    // witness is on a network behind lb-01; pg-01 on another one, which witness leads to.
    let near: SocketAddr = "198.51.100.41:8080".parse()?;
    let far: SocketAddr = "203.0.113.31:8080".parse()?;
    let services = [
        Service::new("near", web()).backend("near", near, ""),
        Service::new("far", (FLOATING_V4, 81).into()).backend("far", far, ""),
    ];
    let site = Site::without_daemon("routes", config::text(&services))?;
    join(&site, HostName::Lb01, HostName::Witness)?;
    site.ip(HostName::Lb01, "address add 198.51.100.11/24 dev eth1")?;
    site.ip(HostName::Witness, "address add 198.51.100.41/24 dev eth1")?;
    // A host that knows the floating address's network by another way must be told of this one.
    site.ip(HostName::Witness, "route add 192.0.2.100 via 198.51.100.11")?;
    site.ip(HostName::Lb01, "route add 203.0.113.0/24 via 198.51.100.41")?;
    site.set(HostName::Witness, "net/ipv4/ip_forward", "1")?;
    site.ip(HostName::Pg01, "address add 203.0.113.31/24 dev eth0")?;
    site.ip(HostName::Witness, "address add 203.0.113.41/24 dev eth0")?;
    site.ip(HostName::Pg01, "route add 192.0.2.100 via 203.0.113.41")?;
    site.ip(HostName::Pg01, "route add 198.51.100.0/24 via 203.0.113.41")?;

    let near = Server::start(site.host(HostName::Witness), near, "near")?;
    let far = Server::start(site.host(HostName::Pg01), far, "far")?;
    site.daemon().start()?;
    let status = site.until("both backends to serve", |status| {
        status.backends().all(|backend| backend["serving"] == true)
    })?;
    let attachments = status.0["dataplane"]["attachments"].as_array().context("no attachments")?;
    let mut interfaces: Vec<_> =
        attachments.iter().map(|it| (it["interface"].as_str(), it["mode"].as_str())).collect();
    interfaces.sort_unstable();
    ensure!(
        interfaces == [(Some("eth0"), Some("driver")), (Some("eth1"), Some("driver"))],
        "{interfaces:?}"
    );
    // The same gateway leads to both.
    let hop = &status.backend("near", "near")["next_hop"];
    ensure!(hop.is_string() && *hop == status.backend("far", "far")["next_hop"], "{hop}");
    for (service, target, name) in
        [("near", web(), "near"), ("far", (FLOATING_V4, 81).into(), "far")]
    {
        let report = Load::http_requests(site.client(), 4, 50, target).end();
        report.ensure_none_failed()?;
        ensure!(report.answers(None)[name] == 200);
        let status = site.status()?;
        ensure!(status.sum(service, "forward_packets") >= 200 * 4, "of {service}");
        ensure!(status.sum(service, "return_packets") >= 200 * 3, "of {service}");
        // A large answer, from interface to interface.
        let body = site.client().within(|| http::get(target, "/large"))??;
        ensure!(body == large(), "the answer of {name} has changed");
    }
    the_route_moves(&site)?;
    drop((near, far));
    site.finish()
}

/// A backend gets another gateway while it serves.
fn the_route_moves(site: &Site) -> Result<()> {
    let target = (FLOATING_V4, 81).into();
    let before = site.status()?.backend("far", "far")["next_hop"].clone();
    // pg-01 is on the balancer's own network too.
    site.ip(HostName::Lb01, "route replace 203.0.113.0/24 via 192.0.2.31")?;
    site.ip(HostName::Pg01, "route del 192.0.2.100")?;
    site.until("the new next hop", |status| {
        let now = &status.backend("far", "far")["next_hop"];
        now.is_string() && *now != before
    })?;
    let report = Load::http_requests(site.client(), 2, 50, target).end();
    report.ensure_none_failed()
}

fn large() -> String {
    let lines: Vec<String> = (0..20_000).map(|number| format!("{number:06}")).collect();
    lines.join("\n")
}

/// A small HTTP server, for hosts without nginx. It ends when it is dropped.
struct Server {
    stop: std::sync::Arc<AtomicBool>,
    host: Host,
    address: SocketAddr,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn start(host: &Host, address: SocketAddr, name: &'static str) -> Result<Self> {
        let listener = host.within(|| TcpListener::bind(address))??;
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // A probe that only connects sends nothing; a client that goes away is its own loss.
                let _ = stream.and_then(|mut stream| {
                    stream.set_read_timeout(Some(crate::load::PATIENCE))?;
                    let mut request = [0; 1024];
                    let length = stream.read(&mut request)?;
                    let asked = String::from_utf8_lossy(&request[..length]);
                    let body =
                        if asked.starts_with("GET /large ") { large() } else { name.to_owned() };
                    let length = body.len();
                    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")
                });
            }
        });
        Ok(Self { stop, host: host.clone(), address, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it. If the namespace is gone, the process's end is the thread's end.
        let connected = self.host.within(|| std::net::TcpStream::connect(self.address));
        if let (Ok(Ok(_)), Some(thread)) = (connected, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

#[test]
fn path_mtu_discovery_works_through_the_balancer() -> Result<()> {
    // pg-02 is a client behind a router, pg-01, whose link to it carries only 1400 bytes.
    let site = Site::up(
        "pmtu",
        config::text(&[
            Service::web("web", web(), &[HostName::App01]),
            Service::web("web6", web6(), &[HostName::App01]),
        ]),
    )?;
    join(&site, HostName::Pg01, HostName::Pg02)?;
    site.ip(HostName::Pg01, "address add 198.51.100.31/24 dev eth1")?;
    site.ip(HostName::Pg01, "address add 2001:db8:1::31/64 dev eth1 nodad")?;
    site.ip(HostName::Pg02, "address add 198.51.100.32/24 dev eth1")?;
    site.ip(HostName::Pg02, "address add 2001:db8:1::32/64 dev eth1 nodad")?;
    site.ip(HostName::Pg02, "route add 192.0.2.100 via 198.51.100.31")?;
    site.ip(HostName::Pg02, "route add 2001:db8::100 via 2001:db8:1::31")?;
    site.set(HostName::Pg01, "net/ipv4/ip_forward", "1")?;
    site.set(HostName::Pg01, "net/ipv6/conf/all/forwarding", "1")?;
    // Only the router knows: client and backend both offer the MSS of 1500 bytes.
    site.ip(HostName::Pg01, "link set dev eth1 mtu 1400")?;

    let client = site.host(HostName::Pg02);
    for (service, target, floating) in
        [("web", web(), "192.0.2.100"), ("web6", web6(), "2001:db8::100")]
    {
        ensure!(client.within(|| http::get(target, "/id"))?? == "app-01");
        let before = site.ip(HostName::App01, &format!("route get {floating}"))?;
        ensure!(!before.contains("mtu"), "{before}");
        let big = site.lab().big_file()?;
        let download = Connection::open(client, target)?.download("/big")?;
        download
            .compare(&big)
            .with_context(|| format!("download {BIG_BYTES} bytes by {service}"))?;
        // The router's error reached the backend.
        let after = site.ip(HostName::App01, &format!("route get {floating}"))?;
        ensure!(after.contains("mtu 1400"), "app-01 has not learnt the MTU by {service}: {after}");
    }
    ensure!(number(&site.status()?.service("web")["refused"]) == 0);
    site.finish()
}

#[test]
fn a_client_that_moves_to_another_mac_address_keeps_its_connection() -> Result<()> {
    let services = [
        Service::web("web", web(), &[HostName::App01]),
        Service::web("web6", web6(), &[HostName::App01]),
    ];
    let site = Site::up("client-mac", config::text(&services))?;
    let open = [web(), web6()].map(|target| Connection::open(site.client(), target));
    let mut open = open.into_iter().collect::<Result<Vec<_>>>()?;
    // As when a standby takes over from the router that the client is behind.
    site.ip(HostName::Client, "link set dev eth0 address 02:00:00:00:02:09")?;
    for connection in &mut open {
        ensure!(connection.get("/id")? == "app-01");
    }
    ensure!(site.status()?.reason("no_flow") == 0, "the connections were begun anew");
    site.finish()
}
