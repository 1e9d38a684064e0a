//! All is well: requests, files, datagrams and ten thousand short connections through the floating
//! addresses.

use std::{net::UdpSocket, thread};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::lab::{BIG_BYTES, HostName, default_config, topology::FLOATING_V4};

use crate::{
    config::{self, APPS, Service, echo, echo6, web, web6},
    http::Connection,
    load::{Load, PATIENCE},
    ping::ping,
    site::{Site, number},
};

#[test]
fn requests_and_datagrams_go_through_the_kernel_to_all_backends() -> Result<()> {
    let site = Site::up("web", default_config())?;
    requests_reach_every_backend(&site)?;
    counters_show_that_the_program_forwarded_them(&site)?;
    what_is_no_service_is_left_to_the_host(&site)?;
    an_open_connection_is_listed(&site)?;
    tables_read_like_tables(&site)?;
    ten_thousand_short_connections(&site)?;
    datagrams_come_back(&site)?;
    site.finish()
}

fn requests_reach_every_backend(site: &Site) -> Result<()> {
    for url in ["http://192.0.2.100/id", "http://[2001:db8::100]/id"] {
        let mut names = Vec::new();
        for _ in 0..12 {
            names.push(site.run(HostName::Client, &["curl", "-sS", "-m", "10", "-f", url])?);
        }
        names.sort();
        names.dedup();
        ensure!(names == APPS.map(|app| format!("{app}\n")), "{url} was answered by {names:?}");
    }
    Ok(())
}

fn counters_show_that_the_program_forwarded_them(site: &Site) -> Result<()> {
    let status = site.status()?;
    for service in ["web", "web6"] {
        ensure!(number(&status.service(service)["connections"]) == 12, "of {service}");
        ensure!(number(&status.service(service)["refused"]) == 0, "of {service}");
        ensure!(status.sum(service, "connections") == 12, "of {service}");
        ensure!(status.sum(service, "answered") == 12, "of {service}");
        // SYN, ACK, request, FIN; SYN+ACK, answer, FIN: not fewer.
        ensure!(status.sum(service, "forward_packets") >= 12 * 4, "of {service}");
        ensure!(status.sum(service, "return_packets") >= 12 * 3, "of {service}");
    }
    let attachments = &status.0["dataplane"]["attachments"];
    ensure!(attachments[0]["interface"] == "eth0" && attachments[0]["mode"] == "driver");
    ensure!(status.0["dataplane"]["adopted"] == false);
    let text = site.obeys("status")?;
    for word in ["web6", "app-03", "192.0.2.100", "driver"] {
        ensure!(text.contains(word), "`ballast status` does not say {word}:\n{text}");
    }
    Ok(())
}

fn what_is_no_service_is_left_to_the_host(site: &Site) -> Result<()> {
    let before = site.status()?;
    for target in [web(), web6()] {
        ping(site.client(), target.ip())?;
    }
    let refused = site
        .client()
        .within(|| std::net::TcpStream::connect_timeout(&(FLOATING_V4, 81).into(), PATIENCE))?;
    let refused = refused.expect_err("connect to a port without a service");
    ensure!(refused.kind() == std::io::ErrorKind::ConnectionRefused, "{refused}");
    let status = site.status()?;
    for reason in ["other_protocol", "no_service"] {
        ensure!(status.reason(reason) > before.reason(reason), "nothing counted as {reason}");
    }
    Ok(())
}

fn an_open_connection_is_listed(site: &Site) -> Result<()> {
    for (service, target) in [("web", web()), ("web6", web6())] {
        let connection = Connection::open(site.client(), target)?;
        let text = site.obeys(&format!("flows --service {service} --json"))?;
        let flows: Vec<Value> = serde_json::from_str(&text)?;
        let client = connection.local().to_string();
        let flow = flows.iter().find(|flow| flow["client"] == client);
        let flow = flow.with_context(|| format!("find {client} in {text}"))?;
        let status = site.status()?;
        let backend = status.backend(service, connection.backend());
        ensure!(flow["backend_name"] == connection.backend(), "{flow}");
        ensure!(flow["backend"] == backend["address"], "{flow}");
        ensure!(flow["service"] == service, "{flow}");
        ensure!(flow["listen"] == target.to_string(), "{flow}");
        ensure!(flow["phase"] == "established", "{flow}");
        let nat = flow["nat"].as_str().unwrap_or_default();
        let floating = target.to_string().replace(":80", ":");
        ensure!(nat.starts_with(&floating) && nat != target.to_string(), "{flow}");
        ensure!(number(&backend["active"]) == 1, "{backend}");
        let text = site.obeys(&format!("flows --service {service}"))?;
        ensure!(text.contains(&client) && text.contains(connection.backend()), "{text}");
    }
    Ok(())
}

fn tables_read_like_tables(site: &Site) -> Result<()> {
    let backends = site.pins().join("BACKENDS");
    let path = backends.to_str().context("write the path")?;
    let text = site.run(HostName::Lb01, &["bpftool", "map", "dump", "pinned", path])?;
    for field in ["\"address\":", "\"port\": 8080", "\"weight\":", "\"next_hop\":"] {
        ensure!(text.contains(field), "`bpftool map dump` does not say {field}");
    }
    let first: Value = serde_json::from_str::<Vec<Value>>(&text)?.swap_remove(0);
    ensure!(first["value"]["port"] == 8080, "{first}");
    Ok(())
}

fn ten_thousand_short_connections(site: &Site) -> Result<()> {
    let before = site.status()?;
    for (service, target) in [("web", web()), ("web6", web6())] {
        let report = Load::http_requests(site.client(), 8, 625, target).end();
        ensure!(report.total() == 5000);
        report.ensure_none_failed()?;
        let more = site.status()?.sum(service, "connections") - before.sum(service, "connections");
        ensure!(more == 5000, "{service} counted {more} connections, not 5000");
    }
    // Closed connections leave the tables, and no count of open ones has drifted.
    let status = site.until("the flow tables to be empty", |status| {
        number(&status.0["flows"]) == 0
            && status.backends().all(|backend| number(&backend["active"]) == 0)
    })?;
    for reason in ["no_flow", "table_full", "ports_exhausted", "inconsistent", "no_backend"] {
        ensure!(status.reason(reason) == before.reason(reason), "packets counted as {reason}");
    }
    Ok(())
}

fn datagrams_come_back(site: &Site) -> Result<()> {
    // The echo puts the host's name in front: the last ones fill the answer's packet.
    for (target, sizes) in
        [(echo(), [0, 1, 2, 3, 511, 1400, 1472 - 7]), (echo6(), [0, 1, 2, 3, 511, 1400, 1452 - 7])]
    {
        let mut names = Vec::new();
        for size in sizes {
            let payload: Vec<u8> = (0..size).map(|at: usize| (at * 7) as u8).collect();
            let answer = ask(site, target, &payload)?;
            let (name, rest) = answer.split_at(7.min(answer.len()));
            ensure!(rest == payload, "{size} bytes to {target} came back changed");
            names.push(String::from_utf8_lossy(name).into_owned());
        }
        names.sort();
        names.dedup();
        ensure!(names == ["app-01:", "app-02:", "app-03:"], "{target}: {names:?}");
    }
    Ok(())
}

/// Sends a datagram from a new socket; the answer must come from the floating address and port.
fn ask(site: &Site, target: std::net::SocketAddr, payload: &[u8]) -> Result<Vec<u8>> {
    site.client().within(|| {
        let socket = UdpSocket::bind(if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(payload, target).context("send a datagram")?;
        let mut answer = vec![0; 2048];
        let (length, from) = socket
            .recv_from(&mut answer)
            .with_context(|| format!("wait for the echo of {} bytes", payload.len()))?;
        ensure!(from == target, "the answer of {target} came from {from}");
        answer.truncate(length);
        Ok(answer)
    })?
}

#[test]
fn large_datagrams_and_large_files_pass_unchanged() -> Result<()> {
    let plain = |name, target: std::net::SocketAddr, app| {
        let family = usize::from(target.is_ipv6());
        Service::new(name, target).key("protocol = \"udp\"").backend(
            "plain",
            HostName::sockets(app, 9100)[family],
            "",
        )
    };
    let (large, large6) = (with_port(echo(), 9100), with_port(echo6(), 9100));
    let services = [
        Service::web("web", web(), &APPS),
        Service::web("web6", web6(), &APPS),
        plain("large", large, HostName::App01),
        plain("large6", large6, HostName::App01),
    ];
    let site = Site::up("files", config::text(&services))?;
    for (target, size) in [(large, 1472), (large6, 1452)] {
        largest_datagram(&site, target, size)?;
    }
    for url in ["http://192.0.2.100", "http://[2001:db8::100]"] {
        download(&site, url)?;
        upload(&site, url)?;
    }
    site.finish()
}

fn with_port(mut socket: std::net::SocketAddr, port: u16) -> std::net::SocketAddr {
    socket.set_port(port);
    socket
}

/// A datagram that fills its packet comes back as it is.
fn largest_datagram(site: &Site, target: std::net::SocketAddr, size: usize) -> Result<()> {
    let app = HostName::App01.sockets(target.port())[usize::from(target.is_ipv6())];
    let server = site.host(HostName::App01).within(|| UdpSocket::bind(app))??;
    server.set_read_timeout(Some(PATIENCE))?;
    let payload: Vec<u8> = (0..size).map(|at| (at * 31) as u8).collect();
    thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let mut datagram = [0; 2048];
            let (length, from) = server.recv_from(&mut datagram).context("wait for a datagram")?;
            ensure!(from.ip() == target.ip(), "the backend sees {from}, not the floating address");
            server.send_to(&datagram[..length], from).context("answer")?;
            Ok(())
        });
        let answer = ask(site, target, &payload);
        echo.join().expect("join the echo")?;
        ensure!(answer? == payload, "{size} bytes to {target} came back changed");
        Ok(())
    })
}

/// 200 MB down, with their checksum.
fn download(site: &Site, url: &str) -> Result<()> {
    let script = format!("curl -sS -m 120 -f '{url}/big' | sha256sum");
    let sum = site.run(HostName::Client, &["sh", "-c", &script])?;
    let wanted = checksum(site, &site.lab().big_file()?)?;
    ensure!(sum.split_whitespace().next() == Some(&wanted), "{url}/big has the checksum {sum}");
    Ok(())
}

/// 200 MB up, with their checksum.
fn upload(site: &Site, url: &str) -> Result<()> {
    let file = site.lab().big_file()?;
    let path = file.to_str().context("write the path")?;
    let url = format!("{url}/upload/file");
    site.run(HostName::Client, &["curl", "-sS", "-m", "120", "-f", "-T", path, &url])?;
    let arrived = APPS.into_iter().map(|app| site.lab().upload(app.as_str(), "file"));
    let arrived: Vec<_> = arrived.filter(|file| file.exists()).collect();
    ensure!(arrived.len() == 1, "the upload is at {arrived:?}");
    ensure!(arrived[0].metadata()?.len() == BIG_BYTES, "the upload is incomplete");
    ensure!(checksum(site, &arrived[0])? == checksum(site, &file)?, "the upload has changed");
    std::fs::remove_file(&arrived[0]).context("remove the upload")
}

fn checksum(site: &Site, file: &std::path::Path) -> Result<String> {
    let path = file.to_str().context("write the path")?;
    let text = site.run(HostName::Client, &["sha256sum", path])?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

#[test]
fn methods_share_connections_by_weight() -> Result<()> {
    let service = |name, port, balance: &str| {
        Service::web(name, (FLOATING_V4, port).into(), &APPS)
            .key(&format!("balance = \"{balance}\""))
            .backend_key("app-02", "weight = 2")
    };
    let site = Site::up(
        "methods",
        config::text(&[
            service("turn", 8001, "round_robin"),
            service("least", 8002, "least_conn"),
            service("hash", 8003, "maglev"),
            service("chance", 8004, "random"),
        ]),
    )?;
    for (name, port, slack) in
        [("turn", 8001, 0.02), ("least", 8002, 0.1), ("hash", 8003, 0.1), ("chance", 8004, 0.1)]
    {
        let target = (FLOATING_V4, port).into();
        let report = Load::http_requests(site.client(), 1, 2000, target).end();
        report.ensure_none_failed()?;
        let answers = report.answers(None);
        for (app, share) in [("app-01", 0.25), ("app-02", 0.5), ("app-03", 0.25)] {
            let part = answers.get(app).copied().unwrap_or(0) as f64 / 2000.0;
            ensure!((part - share).abs() <= slack, "{name}: {app} has {part}, not {share}");
        }
    }
    // A client's connections from one port go to one backend with `maglev`, whatever came between.
    let status = site.status()?;
    ensure!(status.service("hash")["balance"] == "maglev");
    site.finish()
}

#[test]
fn least_conn_counts_long_connections() -> Result<()> {
    let site = Site::up("least", config::text(&[Service::web("web", web(), &APPS)]))?;
    let mut held = Vec::new();
    for _ in 0..30 {
        held.push(Connection::open(site.client(), web())?);
    }
    let status = site.status()?;
    for app in APPS {
        let active = number(&status.backend("web", app.as_str())["active"]);
        ensure!(active == 10, "{app} has {active} of 30 connections");
    }
    // Those of one backend end; the next ones go there.
    held.retain(|connection| connection.backend() != "app-02");
    site.until("the ended connections to be counted", |status| {
        number(&status.backend("web", "app-02")["active"]) == 0
    })?;
    for _ in 0..10 {
        let new = Connection::open(site.client(), web())?;
        ensure!(new.backend() == "app-02", "{} got a connection", new.backend());
        held.push(new);
    }
    drop(held);
    site.until("no connection to be open", |status| status.sum("web", "active") == 0)?;
    site.finish()
}
