//! Backends that nobody probes: what the connections of clients show of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;
use xtask::lab::HostName;

use crate::{
    config::{self, APPS, Service, web, web6},
    load::Load,
    site::{Site, Status, number},
};

/// Client threads under which things fail.
const CLIENTS: usize = 16;

/// Longest time from the first connection that failed to the end of new ones. It takes three readings;
/// the rest is for machines that do something else meanwhile.
const SOON: Duration = Duration::from_secs(5);

/// HTTP on the app servers, not probed, with this `[service.passive]`.
fn unprobed(name: &str, listen: std::net::SocketAddr, passive: &str) -> Service {
    let family = usize::from(listen.is_ipv6());
    APPS.iter()
        .fold(Service::new(name, listen), |service, app| {
            service.backend(app.as_str(), app.sockets(xtask::lab::topology::APP_PORT)[family], "")
        })
        .key(&format!("passive = {{ {passive} }}"))
        .health("probe = \"none\"")
}

/// The clock of the timeline, milliseconds.
fn monotonic_ms() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.tv_sec() as u64 * 1000 + now.tv_nsec() as u64 / 1_000_000)
}

/// The events about a backend of a service since then, the oldest first.
fn told(site: &Site, service: &str, backend: &str, since_ms: u64) -> Result<Vec<Value>> {
    let mut events = site.events()?;
    events.retain(|event| {
        event["service"] == service
            && event["backend"] == backend
            && event["monotonic_ms"].as_u64().is_some_and(|at| at >= since_ms)
    });
    Ok(events)
}

/// What the ejection says, and how long after `since_ms` it was in force.
fn ejection(
    site: &Site,
    service: &str,
    backend: &str,
    since_ms: u64,
) -> Result<(String, Duration)> {
    let events = told(site, service, backend, since_ms)?;
    let because = |message: &str| {
        let found = events
            .iter()
            .find(|event| event["message"].as_str().is_some_and(|text| text.contains(message)));
        found.with_context(|| format!("find {message:?} in {events:?}"))
    };
    let evidence = because("is ejected for")?["cause"].as_str().unwrap_or_default().to_owned();
    let out = because("serves no longer")?;
    let cause = out["cause"].as_str().unwrap_or_default();
    ensure!(cause.contains(&format!("ejected: {evidence}")), "it is out because of {cause}");
    let after = number(&out["monotonic_ms"]).saturating_sub(since_ms);
    Ok((evidence, Duration::from_millis(after)))
}

/// How long before the ejection the first of its connections began, at most: `in the last 300 ms`.
fn within(evidence: &str) -> Result<Duration> {
    let (_, time) = evidence.split_once(" in the last ").context("find the time")?;
    let (number, unit) = time.split_once(' ').context("find its unit")?;
    let number = number.parse()?;
    Ok(if unit == "ms" { Duration::from_millis(number) } else { Duration::from_secs(number) })
}

fn passive<'a>(status: &'a Status, backend: &str) -> &'a Value {
    &status.backend("web", backend)["passive"]
}

#[test]
fn a_killed_app_is_out_without_a_probe_and_comes_back_by_itself() -> Result<()> {
    let site =
        Site::up("passive-killed", config::text(&[unprobed("web", web(), "eject_time = \"2s\"")]))?;
    let load = Load::http(site.client(), CLIENTS, web());
    load.more(1000)?;
    site.until("handshake times", |status| {
        let known = |app: &HostName| passive(status, app.as_str())["handshake_p99_us"].is_u64();
        APPS.iter().all(known)
    })?;
    let killed = monotonic_ms()?;
    site.lab().kill("app-01")?;
    site.until("app-01 to be ejected", |status| {
        passive(status, "app-01")["state"] == "ejected"
            && status.backend("web", "app-01")["serving"] == false
    })?;
    let out = Instant::now();
    let (evidence, after) = ejection(&site, "web", "app-01", killed)?;
    ensure!(evidence.contains("connections refused in the last"), "{evidence}");
    println!("app killed: out {after:?} after the kill: {evidence}");
    ensure!(after < SOON, "it took {after:?}");
    let text = site.obeys("status")?;
    ensure!(text.contains("ejected") && text.contains(&evidence), "{text}");

    // Dead still, it gets a few connections when its time is over, and is out for longer.
    site.until("a second ejection", |_| {
        let events = told(&site, "web", "app-01", killed).unwrap_or_default();
        let ejected = |event: &&Value| event.to_string().contains("is ejected for");
        events.iter().filter(ejected).count() > 1
    })?;
    site.lab().start("app-01")?;
    let started = Instant::now();
    let status = site.until_serving("web", "app-01", true)?;
    ensure!(status.service("web")["panic"] == false);
    site.until("its whole share", |status| {
        let backend = status.backend("web", "app-01");
        backend["weight_percent"] == 100
            && backend["serving"] == true
            && backend["passive"]["state"] == "fit"
    })?;
    let whole = Instant::now();
    load.until_answered_by(&["app-01"])?;
    load.more(1000)?;
    let report = load.stop();
    println!(
        "{} of {} requests failed, {} until it was out, the others on trial; back with its whole \
         share after {:?}",
        report.failed(),
        report.total(),
        report.failed_before(out),
        whole - started
    );
    report.ensure_none_failed_since(whole)?;
    ensure!(report.answered_by("app-01", out, started) == 0, "a dead app has answered");
    site.finish()
}

#[test]
fn a_silent_app_is_out_without_a_probe() -> Result<()> {
    let services = [
        unprobed("web", web(), "eject_time = \"3s\""),
        unprobed("web6", web6(), "eject_time = \"3s\""),
    ];
    let site = Site::up("passive-cut", config::text(&services))?;
    let load = Load::http(site.client(), CLIENTS, web());
    let load6 = Load::http(site.client(), CLIENTS, web6());
    load.more(1000)?;
    load6.more(1000)?;
    let cut = monotonic_ms()?;
    site.lab().cut("app-02")?;
    for service in ["web", "web6"] {
        site.until_serving(service, "app-02", false)?;
        let (evidence, after) = ejection(&site, service, "app-02", cut)?;
        ensure!(evidence.contains("connections not answered in the last"), "{evidence}");
        // Connections that hang keep `least_conn` from giving it new ones, which could fail.
        let touched = within(&evidence)?;
        println!(
            "link cut: out of {service} {after:?} later, {touched:?} after a connection touched it"
        );
        ensure!(touched < SOON, "it took {touched:?}: {evidence}");
    }
    load.more(1000)?;
    site.lab().heal("app-02")?;
    for service in ["web", "web6"] {
        site.until_serving(service, "app-02", true)?;
    }
    site.until("its whole share", |status| {
        ["web", "web6"].iter().all(|service| {
            let backend = status.backend(service, "app-02");
            backend["weight_percent"] == 100 && backend["passive"]["state"] == "fit"
        })
    })?;
    let whole = Instant::now();
    load.until_answered_by(&["app-02"])?;
    load6.until_answered_by(&["app-02"])?;
    load.more(1000)?;
    load6.more(1000)?;
    for report in [load.stop(), load6.stop()] {
        println!(
            "{} of {} failed, slowest {:?}",
            report.failed(),
            report.total(),
            report.slowest()
        );
        report.ensure_none_failed_since(whole)?;
    }
    site.finish()
}

#[test]
fn the_cap_leaves_one_in_and_panic_takes_all() -> Result<()> {
    let site =
        Site::up("passive-cap", config::text(&[unprobed("web", web(), "eject_time = \"2s\"")]))?;
    let load = Load::http(site.client(), CLIENTS, web());
    load.more(1000)?;
    for app in ["app-01", "app-02"] {
        site.lab().kill(app)?;
    }
    let states = |status: &Status| {
        let mut states: Vec<_> = APPS
            .iter()
            .map(|app| passive(status, app.as_str())["state"].as_str().unwrap_or("-").to_owned())
            .collect();
        states.sort();
        states
    };
    let status = site.until("one to be ejected and one to stay", |status| {
        states(status) == ["ejected", "failing", "fit"]
    })?;
    ensure!(status.service("web")["panic"] == false);
    ensure!(status.backend("web", "app-03")["serving"] == true);
    let stays = ["app-01", "app-02"].map(|app| passive(&status, app)["reason"].to_string());
    ensure!(stays.iter().any(|reason| reason.contains("it stays: 1 of 3 backends")), "{stays:?}");

    site.lab().kill("app-03")?;
    let status = site.until("panic", |status| status.service("web")["panic"] == true)?;
    ensure!(status.backends().all(|backend| backend["serving"] == true), "not all serve");
    ensure!(status.warnings().contains("web: no backend is fit"), "{}", status.warnings());

    for app in APPS {
        site.lab().start(app.as_str())?;
    }
    site.until("all to be well", |status| {
        status.service("web")["panic"] == false
            && states(status) == ["fit", "fit", "fit"]
            && status.backends().all(|backend| backend["weight_percent"] == 100)
    })?;
    let well = Instant::now();
    load.until_answered_by(&["app-01", "app-02", "app-03"])?;
    load.more(1000)?;
    let report = load.stop();
    report.ensure_none_failed_since(well)?;
    site.finish()
}
