//! Backends that die, fall silent, fall ill, move, or were never there.

use std::{
    io::ErrorKind,
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use xtask::lab::{HostName, default_config, topology::FLOATING_V4};

use crate::{
    config::{self, APPS, Service, web, web6},
    http::{self, Connection},
    load::{Load, PATIENCE},
    site::{Site, number},
};

/// Client threads under which things fail.
const CLIENTS: usize = 16;

#[test]
fn a_killed_app_costs_requests_only_until_it_is_ejected() -> Result<()> {
    let site = Site::up("killed", default_config())?;
    let load = Load::http(site.client(), CLIENTS, web());
    load.more(500)?;
    let killed = Instant::now();
    site.lab().kill("app-01")?;
    site.until_serving("web", "app-01", false)?;
    let ejected = Instant::now();
    load.more(1000)?;
    let started = Instant::now();
    site.lab().start("app-01")?;
    site.until_serving("web", "app-01", true)?;
    load.until_answered_by(&["app-01"])?;
    load.more(1000)?;
    let report = load.stop();
    println!(
        "app killed: {} of {} requests failed, all before it was ejected after {:?}; slowest {:?}",
        report.failed(),
        report.total(),
        ejected - killed,
        report.slowest()
    );
    report.ensure_none_failed_since(ejected)?;
    ensure!(report.answered_by("app-01", ejected, started) == 0, "an ejected backend answered");
    the_timeline_tells_of_it(&site)?;
    site.finish()
}

fn the_timeline_tells_of_it(site: &Site) -> Result<()> {
    let events = site.events()?;
    let about = |kind: &str| {
        let of_web = events.iter().filter(|it| it["service"] == "web" && it["backend"] == "app-01");
        of_web.filter(|event| event["kind"] == kind).cloned().collect::<Vec<_>>()
    };
    // The connections of clients tell sooner than the probes.
    let passive = about("passive");
    let ejected = passive.first().context("find the ejection")?;
    ensure!(ejected.to_string().contains("refused"), "it does not say why: {ejected}");
    let serving = about("serving");
    let out = serving.iter().find(|event| event["message"] == "app-01 serves no longer");
    let out = out.with_context(|| format!("find its end in {serving:?}"))?;
    ensure!(out["cause"].to_string().contains("refused"), "it does not say why: {out}");
    let back = serving.iter().rev().find(|event| event["message"] == "app-01 serves");
    let back = back.with_context(|| format!("find the return in {serving:?}"))?;
    ensure!(number(&back["number"]) > number(&out["number"]), "the story is out of order");
    ensure!(number(&out["number"]) > number(&ejected["number"]), "the story is out of order");
    let text = site.obeys("events")?;
    ensure!(text.contains("app-01") && text.contains("refused"), "{text}");
    Ok(())
}

#[test]
fn a_silent_app_holds_requests_up_only_until_it_is_ejected() -> Result<()> {
    let services = [
        Service::web("web", web(), &APPS).key("slow_start = \"3s\""),
        Service::web("web6", web6(), &APPS),
    ];
    let site = Site::up("silent", config::text(&services))?;
    let load = Load::http(site.client(), CLIENTS, web());
    let load6 = Load::http(site.client(), 2, web6());
    load.more(500)?;
    let mut idle = Connection::to(site.client(), web(), "app-02")?;
    let cut = Instant::now();
    site.lab().cut("app-02")?;
    site.until_serving("web", "app-02", false)?;
    site.until_serving("web6", "app-02", false)?;
    let ejected = Instant::now();
    load.more(1000)?;
    load6.more(100)?;
    let error = idle.try_get("/").expect_err("a connection of a silent backend goes on");
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");

    site.lab().heal("app-02")?;
    // Back with a small share, which grows.
    let status = site.until_serving("web", "app-02", true)?;
    let share = number(&status.backend("web", "app-02")["weight_percent"]);
    ensure!(share < 100, "it starts with {share} % of its weight");
    load.more(500)?;
    site.until("the slow start to be over", |status| {
        status.backend("web", "app-02")["weight_percent"] == 100
    })?;
    load.until_answered_by(&["app-02"])?;
    load.more(1000)?;
    let report = load.stop();
    let report6 = load6.stop();
    println!(
        "link cut: {} of {} requests failed, all begun before it was ejected after {:?}; slowest \
         {:?}",
        report.failed() + report6.failed(),
        report.total() + report6.total(),
        ejected - cut,
        report.slowest().max(report6.slowest())
    );
    report.ensure_none_failed_since(ejected)?;
    report6.ensure_none_failed_since(ejected)?;
    // Each client was held up at most by what it had begun when the link went, and by one more
    // which it began until the ejection.
    ensure!(report.failed() <= 2 * CLIENTS, "{} requests failed", report.failed());
    ensure!(report6.failed() <= 2 * 2, "{} requests failed", report6.failed());
    site.finish()
}

#[test]
fn on_down_resets_or_keeps_connections() -> Result<()> {
    let kept = (FLOATING_V4, 8080).into();
    let services = [
        Service::web("reset", web(), &APPS),
        Service::web("keep", kept, &APPS).key("on_down = \"keep\""),
    ];
    let site = Site::up("on-down", config::text(&services))?;
    let mut reset = Connection::to(site.client(), web(), "app-03")?;
    let mut keep = Connection::to(site.client(), kept, "app-03")?;
    let mut other = Connection::to(site.client(), web(), "app-01")?;
    // It fails its probes, and else works as before.
    site.lab().set_sick("app-03", true)?;
    let status = site.until_serving("reset", "app-03", false)?;
    site.until_serving("keep", "app-03", false)?;
    let reason = status.backend("reset", "app-03")["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("503"), "the reason is {reason}");

    let error = reset.try_get("/").expect_err("a connection of a dead backend goes on");
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    ensure!(keep.get("/")?.contains("app-03"));
    ensure!(other.get("/")?.contains("app-01"));
    for target in [web(), kept] {
        for _ in 0..6 {
            let name = site.client().within(|| http::get(target, "/id"))??;
            ensure!(name != "app-03", "a dead backend got a new connection of {target}");
        }
    }
    ensure!(site.status()?.reason("backend_gone") > 0, "nothing counted as backend_gone");
    site.lab().set_sick("app-03", false)?;
    site.until_serving("keep", "app-03", true)?;
    ensure!(keep.get("/id")? == "app-03");
    site.finish()
}

#[test]
fn backups_panic_and_no_backend_at_all() -> Result<()> {
    let alone = (FLOATING_V4, 8080).into();
    let services = [
        Service::web("web", web(), &APPS).backend_key("app-03", "backup = true"),
        Service::web("alone", alone, &[HostName::App01]),
    ];
    let site = Site::up("backup", config::text(&services))?;
    let ask = |target| site.client().within(|| http::get(target, "/id"));

    // A backup rests while others serve.
    ensure!(site.status()?.backend("web", "app-03")["serving"] == false);
    for _ in 0..6 {
        ensure!(ask(web())?? != "app-03", "a backup got a connection");
    }
    for app in ["app-01", "app-02"] {
        site.lab().set_sick(app, true)?;
    }
    let status = site.until_serving("web", "app-03", true)?;
    ensure!(status.service("web")["panic"] == false);
    ensure!(ask(web())?? == "app-03");

    // None is fit: all serve, and it is said.
    site.lab().set_sick("app-03", true)?;
    let status = site.until("panic", |status| {
        status.service("web")["panic"] == true && status.service("alone")["panic"] == true
    })?;
    ensure!(status.warnings().contains("web"), "{}", status.warnings());
    for target in [web(), alone] {
        // It answers 503, which comes from a backend.
        let error = ask(target)?.expect_err("a sick backend says that it is well");
        ensure!(format!("{error:#}").contains("503"), "{error:#}");
    }
    for app in APPS {
        site.lab().set_sick(app.as_str(), false)?;
    }
    site.until("panic to end", |status| {
        status.service("web")["panic"] == false && status.service("alone")["panic"] == false
    })?;

    // No backend may serve: a client is told at once.
    site.obeys("disable app-01 --service alone")?;
    site.until_serving("alone", "app-01", false)?;
    let refused = site.client().within(|| TcpStream::connect_timeout(&alone, PATIENCE))?;
    let refused = refused.expect_err("connect to a service without a backend");
    ensure!(refused.kind() == ErrorKind::ConnectionRefused, "{refused}");
    let status = site.status()?;
    ensure!(number(&status.service("alone")["refused"]) > 0);
    ensure!(status.reason("no_backend") > 0);
    site.obeys("enable app-01 --service alone")?;
    site.until_serving("alone", "app-01", true)?;
    ensure!(ask(alone)?? == "app-01");
    site.finish()
}

#[test]
fn a_backend_that_moves_to_another_mac_address_is_followed() -> Result<()> {
    let services = [
        Service::web("web", web(), &[HostName::App02]),
        Service::web("web6", web6(), &[HostName::App02]),
    ];
    let site = Site::up("mac", config::text(&services))?;
    let new = "02:00:00:00:02:22";
    // A host tells its neighbours when its address changes, if it is asked to.
    site.set(HostName::App02, "net/ipv4/conf/eth0/arp_notify", "1")?;
    site.set(HostName::App02, "net/ipv6/conf/eth0/ndisc_notify", "1")?;
    let mut open = Connection::open(site.client(), web())?;
    site.ip(HostName::App02, &format!("link set dev eth0 address {new}"))?;
    site.until("the new MAC address", |status| {
        ["web", "web6"].iter().all(|service| status.backend(service, "app-02")["next_hop"] == new)
    })?;
    for target in [web(), web6()] {
        ensure!(site.client().within(|| http::get(target, "/id"))?? == "app-02");
    }
    ensure!(open.get("/id")? == "app-02");
    ensure!(site.status()?.backend("web", "app-02")["health"] == "up");
    site.finish()
}

#[test]
fn a_backend_that_is_unreachable_at_the_start_is_shown_and_waited_for() -> Result<()> {
    let services = [Service::web("web", web(), &APPS), Service::web("web6", web6(), &APPS)];
    let site = Site::without_daemon("unreachable", config::text(&services))?;
    site.lab().cut("app-01")?;
    site.lab().kill("app-02")?;
    site.daemon().start()?;
    let status = site.until("the dead backends to be known", |status| {
        ["web", "web6"].iter().all(|service| {
            status.backend(service, "app-01")["health"] == "down"
                && status.backend(service, "app-02")["health"] == "down"
                && status.backend(service, "app-03")["serving"] == true
        })
    })?;
    for app in ["app-01", "app-02"] {
        let backend = status.backend("web", app);
        ensure!(backend["serving"] == false, "{backend}");
        ensure!(!backend["reason"].as_str().unwrap_or_default().is_empty(), "{backend}");
    }
    ensure!(
        status.backend("web", "app-01")["next_hop"].is_null(),
        "a MAC address of the unreachable"
    );
    let text = site.obeys("status")?;
    ensure!(text.contains("app-01") && text.contains("down"), "{text}");
    let load = Load::http(site.client(), 2, web());
    load.more(100)?;
    site.lab().heal("app-01")?;
    site.lab().start("app-02")?;
    for service in ["web", "web6"] {
        for app in ["app-01", "app-02"] {
            site.until_serving(service, app, true)?;
        }
    }
    load.more(300)?;
    let report = load.stop();
    report.ensure_none_failed()?;
    ensure!(report.answers(None).len() == 3, "{:?}", report.answers(None));
    site.finish()
}

#[test]
fn a_daemon_that_is_stopped_and_goes_on_catches_up() -> Result<()> {
    let site = Site::up("paused", config::text(&[Service::web("web", web(), &APPS)]))?;
    let load = Load::http(site.client(), 4, web());
    site.daemon().signal(Signal::SIGSTOP)?;
    load.more(1000)?;
    site.lab().kill("app-02")?;
    site.daemon().signal(Signal::SIGCONT)?;
    site.until_serving("web", "app-02", false)?;
    let ejected = Instant::now();
    load.more(500)?;
    let report = load.stop();
    report.ensure_none_failed_since(ejected)?;
    ensure!(report.slowest() < PATIENCE + Duration::from_secs(5));
    site.finish()
}
