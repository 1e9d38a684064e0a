//! Services whose backends answer the clients by themselves: `direct` and `tunnel`, with real nginx.

use std::{fs, net::SocketAddr, process::Command};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{
    HostName, Options,
    topology::{ECHO_PORT, FLOATING_V4, FLOATING_V6},
};

use crate::{
    config::{self, APPS, Service},
    http::Connection,
    load::Load,
    site::{Site, Status, number},
};

/// A way to the backends: a name, its lines of configuration, its port, and whether the backends' family
/// is the service's own.
type Way = (&'static str, &'static [&'static str], u16, bool);

const DIRECT: Way = ("direct", &["forward = \"direct\""], 80, true);
const IPIP: Way = ("ipip", &["forward = \"tunnel\""], 81, true);
const GUE: Way = ("gue", &["forward = \"tunnel\"", "encapsulation = \"gue\""], 82, true);
const CROSSED: Way = ("crossed", &["forward = \"tunnel\""], 83, false);

/// Bytes of what is uploaded.
const UPLOAD: usize = 3_000_000;

fn listen(way: &Way, v6: bool) -> SocketAddr {
    if v6 { (FLOATING_V6, way.2).into() } else { (FLOATING_V4, way.2).into() }
}

fn name(way: &Way, v6: bool) -> String {
    format!("{}{}", way.0, if v6 { "6" } else { "" })
}

fn service(way: &Way, v6: bool, apps: &[HostName]) -> Service {
    let listen = listen(way, v6);
    let family = usize::from(v6 == way.3);
    let new = way.1.iter().fold(Service::new(&name(way, v6), listen), |it, line| it.key(line));
    apps.iter()
        .fold(new, |it, app| it.backend(app.as_str(), app.sockets(way.2)[family], ""))
        .health("probe = \"http\"")
        .health("path = \"/id\"")
        .health("expect = \"200\"")
}

fn site(name: &str, services: &[Service]) -> Result<Site> {
    let config = Some(config::text(services));
    let site = Site::with(name, Options { steered: true, config, ..Options::default() })?;
    site.settled()?;
    Ok(site)
}

#[test]
fn every_way_serves_requests_downloads_and_uploads() -> Result<()> {
    let ways = [DIRECT, IPIP, GUE, CROSSED];
    let mut services: Vec<Service> =
        ways.iter().flat_map(|way| [false, true].map(|v6| service(way, v6, &APPS))).collect();
    let echo: SocketAddr = (FLOATING_V4, ECHO_PORT).into();
    services.push(Service::echo("echo", echo, &APPS).key("forward = \"tunnel\""));
    let site = site("ways", &services)?;
    for way in &ways {
        for v6 in [false, true] {
            requests_reach_every_backend(&site, way, v6).with_context(|| name(way, v6))?;
        }
    }
    let datagrams = Load::echo(site.client(), echo);
    datagrams.more(50)?;
    datagrams.stop().ensure_none_failed()?;
    nothing_is_recorded(&site)?;
    decapsulators_tell_what_they_did(&site)?;
    files_go_both_ways(&site)?;
    site.finish()
}

fn requests_reach_every_backend(site: &Site, way: &Way, v6: bool) -> Result<()> {
    let report = Load::http_requests(site.client(), 4, 15, listen(way, v6)).end();
    report.ensure_none_failed()?;
    let answers = report.answers(None);
    ensure!(answers.len() == APPS.len(), "answered by {answers:?}");
    let status = site.status()?;
    let service = status.service(&name(way, v6));
    let (forward, encapsulation) = match way.0 {
        "direct" => ("direct", None),
        "gue" => ("tunnel", Some("gue")),
        _ => ("tunnel", Some("ipip")),
    };
    ensure!(service["forward"] == forward, "{service}");
    ensure!(service["encapsulation"].as_str() == encapsulation, "{service}");
    ensure!(service["balance"] == "maglev", "{service}");
    ensure!(number(&service["connections"]) >= 60, "{service}");
    ensure!(status.sum(&name(way, v6), "forward_packets") >= 60 * 4, "{service}");
    ensure!(status.sum(&name(way, v6), "return_packets") == 0, "replies pass by the balancer");
    Ok(())
}

/// While nothing changes, no connection is written down.
fn nothing_is_recorded(site: &Site) -> Result<()> {
    let _open = Connection::open(site.client(), listen(&DIRECT, false))?;
    let flows = site.obeys("flows --json")?;
    ensure!(flows.trim() == "[]", "{flows}");
    let status = site.status()?;
    for way in [DIRECT, IPIP, GUE, CROSSED] {
        let slots = &status.service(&name(&way, false))["slots"];
        ensure!(number(&slots["total"]) >= 4096 && slots["disturbed"] == 0, "{slots}");
    }
    Ok(())
}

fn decapsulators_tell_what_they_did(site: &Site) -> Result<()> {
    for app in APPS {
        let mut command = site.lab().decap_command(app.as_str());
        command.args(["--status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&output(&mut command)?)?;
        ensure!(status["mode"] == "driver", "{status}");
        let count = |label: &str| {
            let packets = status["packets"].as_array().into_iter().flatten();
            packets.filter(|it| it[0] == label).filter_map(|it| it[1].as_u64()).sum::<u64>()
        };
        ensure!(count("ip_in_ip") > 0 && count("gue") > 0, "{status}");
        for label in ["malformed", "checksum", "denied", "congestion", "fragment"] {
            ensure!(count(label) == 0, "{label}: {status}");
        }
    }
    // A second one takes the first one's place, and goes on with its counters.
    let mut command = site.lab().decap_command("app-01");
    let text = output(command.args(["--from", "192.0.2.0/24", "--from", "2001:db8::/64"]))?;
    ensure!(text.contains("192.0.2.0/24"), "{text}");
    let text = output(site.lab().decap_command("app-01").arg("--status"))?;
    let taken = text.lines().find_map(|line| line.trim().strip_prefix("ip_in_ip"));
    ensure!(taken.is_some_and(|count| count.trim() != "0"), "{text}");
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    xtask::shell::output(command)
}

/// Longer packets than the tunnel takes are answered, and clients send shorter ones.
fn files_go_both_ways(site: &Site) -> Result<()> {
    let big = site.lab().big_file()?;
    Connection::open(site.client(), listen(&IPIP, false))?.download("/big")?.compare(&big)?;

    let content: Vec<u8> = (0..UPLOAD).map(|at| (at / 7 % 251) as u8).collect();
    let file = site.lab().state_dir().join("to-upload");
    fs::write(&file, &content).context("write what is uploaded")?;
    let upload = |what: &str, way: &Way, v6: bool| -> Result<()> {
        let to = format!("{}-{what}", name(way, v6));
        let url = format!("http://{}/upload/{to}", listen(way, v6));
        let path = file.display().to_string();
        site.run(HostName::Client, &["curl", "-sS", "-m", "60", "-f", "-T", &path, &url])?;
        let paths = APPS.map(|app| site.lab().upload(app.as_str(), &to));
        let got = paths.iter().find(|path| path.exists()).context("find the upload")?;
        ensure!(fs::read(got)? == content, "{to} has other bytes");
        Ok(())
    };
    let each = |what: &str| -> Result<()> {
        for way in [DIRECT, IPIP, GUE, CROSSED] {
            for v6 in [false, true] {
                upload(what, &way, v6)
                    .with_context(|| format!("upload by {} ({what})", name(&way, v6)))?;
            }
        }
        Ok(())
    };
    each("long")?;
    let status = site.status()?;
    ensure!(status.reason("too_big") == 0, "packets were too big for wires of 1600 bytes");
    ensure!(!status.warnings().contains("at most"), "{}", status.warnings());

    // The balancer's link gets shorter, which the daemon hears of.
    site.ip(HostName::Lb01, "link set dev eth0 mtu 1500")?;
    let status = site.until("the daemon to warn of short tunnels", |status: &Status| {
        status.warnings().contains("may have 1480 bytes at most")
            && status.warnings().contains("may have 1460 bytes at most")
            && status.warnings().contains("may have 1452 bytes at most")
    })?;
    ensure!(status.warnings().contains("advmss"), "{}", status.warnings());
    each("short")?;
    ensure!(site.status()?.reason("too_big") > 0, "no packet was too big");
    Ok(())
}

#[test]
fn changes_of_the_backends_move_no_connection_of_those_that_stay() -> Result<()> {
    let services = |apps: &[HostName]| {
        [DIRECT, IPIP].map(|way| service(&way, false, apps).key("drain_timeout = \"2s\""))
    };
    let [first, second, third] = APPS;
    let site = site("moves", &services(&[first, second]))?;
    let load = Load::http(site.client(), 4, listen(&DIRECT, false));
    let mut open = Vec::new();
    for way in [DIRECT, IPIP] {
        for _ in 0..150 {
            open.push(Connection::open(site.client(), listen(&way, false))?);
        }
    }
    let all_answer = |open: &mut Vec<Connection>, when: &str| -> Result<()> {
        for connection in open {
            let at = connection.backend().to_owned();
            let answer = connection.get("/id").with_context(|| format!("{when}, of {at}"))?;
            ensure!(answer == at, "{when}: a connection to {at} was answered by {answer}");
        }
        Ok(())
    };
    all_answer(&mut open, "at first")?;

    // A third backend comes.
    site.write_config(&config::text(&services(&APPS)))?;
    site.obeys("reload")?;
    site.until_serving("direct", third.as_str(), true)?;
    site.until_serving("ipip", third.as_str(), true)?;
    all_answer(&mut open, "with a third backend")?;
    let status = site.status()?;
    for service in ["direct", "ipip"] {
        ensure!(number(&status.service(service)["slots"]["disturbed"]) > 1000, "of {service}");
    }
    let flows: serde_json::Value = serde_json::from_str(&site.obeys("flows --json")?)?;
    let flows = flows.as_array().context("a list of flows")?;
    // Where many packets go to a backend, some are shown as samples too.
    let flows: Vec<_> = flows.iter().filter(|it| it["phase"] != "sampled").collect();
    let is_steered = |it: &&serde_json::Value| {
        it["phase"] == "steered" && it["backend"].as_str().is_some_and(|it| it.starts_with("192."))
    };
    ensure!(!flows.is_empty() && flows.iter().all(is_steered), "{flows:?}");
    for _ in 0..60 {
        open.push(Connection::open(site.client(), listen(&DIRECT, false))?);
    }
    ensure!(open.iter().any(|it| it.backend() == third.as_str()), "the third gets connections");

    // It gets a greater share, the daemon is killed and starts anew, and another share.
    site.obeys(&format!("weight {third} 5"))?;
    all_answer(&mut open, "with another share")?;
    site.daemon().kill()?;
    all_answer(&mut open, "without a daemon")?;
    site.daemon().start()?;
    site.settled()?;
    all_answer(&mut open, "with a new daemon")?;
    site.obeys(&format!("weight {third} 2"))?;
    all_answer(&mut open, "with a third share")?;

    // One is removed: its connections go on for a while and are then reset, all others live on.
    site.write_config(&config::text(&services(&[first, third])))?;
    site.obeys("reload")?;
    site.until("the removed backend to be cut off", |status| {
        let retiring = status.0["retiring"].as_array().into_iter().flatten();
        let mut of_it = retiring
            .filter(|it| it["address"].as_str().is_some_and(|it| it.starts_with("192.0.2.22:")));
        of_it.all(|it| it["seconds_left"].is_null())
    })?;
    let (mut gone, mut stay): (Vec<_>, Vec<_>) =
        open.into_iter().partition(|it| it.backend() == second.as_str());
    ensure!(gone.len() > 50, "{} connections were to {second}", gone.len());
    all_answer(&mut stay, "with a backend removed")?;
    for connection in &mut gone {
        let error = connection.try_get("/id").err().context("a removed backend has answered")?;
        ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
    }
    ensure!(site.status()?.reason("backend_gone") >= gone.len() as u64);
    load.more(100)?;
    let report = load.stop();
    report.ensure_none_failed()?;
    println!("{} requests, {} connections held: none failed", report.total(), stay.len());
    site.finish()
}
