//! What the operator wishes: drain, enable, disable, weight.

use std::{
    io::ErrorKind,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::lab::default_config;

use crate::{
    config::{self, APPS, Service, web, web6},
    http::Connection,
    load::Load,
    site::{Site, number},
};

#[test]
fn a_drained_backend_gets_no_new_connection_and_ends_what_it_has() -> Result<()> {
    let site = Site::up("drain", default_config())?;
    let load = Load::http(site.client(), 8, web());
    load.more(300)?;
    // 200 MB at 30 MB a second: it goes on over all that follows.
    let download = Connection::to(site.client(), web(), "app-01")?.download("/big?rate=30m")?;
    let file = site.lab().big_file()?;
    thread::scope(|scope| {
        let download =
            scope.spawn(move || (download.backend().to_owned(), download.compare(&file)));
        let text = site.obeys("drain app-01")?;
        ensure!(text.contains("app-01"), "{text}");
        let status = site.until_serving("web", "app-01", false)?;
        let drained = Instant::now();
        let backend = status.backend("web", "app-01");
        ensure!(backend["draining"] == true && backend["admin"] == "draining", "{backend}");
        ensure!(
            status.backend("web6", "app-01")["draining"] == true,
            "it is drained in one service"
        );
        load.more(2000)?;
        let enabled = Instant::now();
        let open = number(&site.status()?.backend("web", "app-01")["active"]);
        ensure!(open == 1, "{open} connections are open to the drained backend");

        let (backend, outcome) = download.join().expect("join the download");
        outcome.with_context(|| format!("download from {backend} while it is drained"))?;
        site.obeys("enable app-01")?;
        site.until_serving("web", "app-01", true)?;
        load.until_answered_by(&["app-01"])?;
        load.more(1000)?;
        let report = load.stop();
        report.ensure_none_failed()?;
        let answers = report.answered_by("app-01", drained, enabled);
        ensure!(answers == 0, "{answers} requests went to the drained backend");
        Ok(())
    })?;
    site.finish()
}

#[test]
fn disable_weight_and_a_drain_that_runs_out() -> Result<()> {
    let services = [
        Service::web("web", web(), &APPS).key("balance = \"round_robin\""),
        Service::web("web6", web6(), &APPS).key("drain_timeout = \"2s\""),
    ];
    let site = Site::up("wishes", config::text(&services))?;
    weights_change_the_shares(&site)?;
    wishes_survive_a_restart(&site)?;
    disable_resets(&site)?;
    a_drain_runs_out(&site)?;
    unknown_names_are_refused(&site)?;
    site.finish()
}

fn weights_change_the_shares(site: &Site) -> Result<()> {
    let share = |app: &str| -> Result<f64> {
        let report = Load::http_requests(site.client(), 1, 600, web()).end();
        report.ensure_none_failed()?;
        Ok(report.answers(None).get(app).copied().unwrap_or(0) as f64 / 600.0)
    };
    let before = share("app-02")?;
    ensure!((before - 1.0 / 3.0).abs() < 0.02, "app-02 has {before}");
    let load = Load::http(site.client(), 4, web());
    load.more(100)?;
    site.obeys("weight app-02 4 --service web")?;
    site.until("the weight", |status| number(&status.backend("web", "app-02")["weight"]) == 4)?;
    load.more(300)?;
    load.stop().ensure_none_failed()?;
    let after = share("app-02")?;
    ensure!((after - 4.0 / 6.0).abs() < 0.02, "app-02 with weight 4 has {after}");
    ensure!(number(&site.status()?.backend("web6", "app-02")["weight"]) == 1);
    Ok(())
}

fn wishes_survive_a_restart(site: &Site) -> Result<()> {
    site.obeys("drain app-03")?;
    site.until_serving("web", "app-03", false)?;
    let load = Load::http(site.client(), 4, web());
    load.more(200)?;
    let from = Instant::now();
    site.daemon().kill()?;
    load.more(200)?;
    site.daemon().start()?;
    let status = site.until("the backends to be probed", |status| {
        status.backends().all(|backend| backend["health"] == "up")
    })?;
    for service in ["web", "web6"] {
        let backend = status.backend(service, "app-03");
        ensure!(backend["admin"] == "draining" && backend["serving"] == false, "{backend}");
    }
    ensure!(number(&status.backend("web", "app-02")["weight"]) == 4, "the weight is forgotten");
    load.more(300)?;
    let report = load.stop();
    report.ensure_none_failed()?;
    let answers = report.answered_by("app-03", from, Instant::now());
    ensure!(answers == 0, "{answers} requests went to a drained backend around the restart");
    site.obeys("enable app-03")?;
    site.obeys("weight app-02 default --service web")?;
    let status = site.until_serving("web", "app-03", true)?;
    ensure!(number(&status.backend("web", "app-02")["weight"]) == 1);
    Ok(())
}

fn disable_resets(site: &Site) -> Result<()> {
    let mut open = Connection::to(site.client(), web(), "app-02")?;
    let mut other = Connection::to(site.client(), web(), "app-01")?;
    let load = Load::http(site.client(), 4, web());
    load.more(100)?;
    let text = site.obeys("disable app-02 --service web --json")?;
    let wished: Vec<Value> = serde_json::from_str(&text)?;
    ensure!(wished.len() == 1 && wished[0]["admin"] == "disabled", "{text}");
    site.until_serving("web", "app-02", false)?;
    let disabled = Instant::now();
    load.more(300)?;
    let error = open.try_get("/").expect_err("a connection of a disabled backend goes on");
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    ensure!(other.get("/id")? == "app-01");
    ensure!(site.status()?.backend("web6", "app-02")["serving"] == true);
    site.obeys("enable app-02")?;
    site.until_serving("web", "app-02", true)?;
    let report = load.stop();
    report.ensure_none_failed_since(disabled)
}

fn a_drain_runs_out(site: &Site) -> Result<()> {
    let mut open = Connection::to(site.client(), web6(), "app-01")?;
    site.obeys("drain app-01 --service web6")?;
    site.until_serving("web6", "app-01", false)?;
    ensure!(open.get("/id")? == "app-01", "a drained backend's connection is broken");
    let status = site.until("the drain to run out", |status| {
        let verdict = &status.backend("web6", "app-01")["verdict"];
        verdict.to_string().contains("drained;")
    })?;
    ensure!(status.backend("web", "app-01")["serving"] == true);
    let error = open.try_get("/id").expect_err("a connection outlives its drain");
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    site.obeys("enable app-01")?;
    site.until_serving("web6", "app-01", true)?;
    Ok(())
}

fn unknown_names_are_refused(site: &Site) -> Result<()> {
    let text = site.refuses("drain app-07")?;
    ensure!(text.contains("app-07") && text.contains("app-01"), "{text}");
    let text = site.refuses("drain app-01 --service nothing")?;
    ensure!(text.contains("nothing") && text.contains("web6"), "{text}");
    let text = site.refuses("flows --service nothing")?;
    ensure!(text.contains("nothing") && text.contains("web6"), "{text}");
    for words in ["weight app-01 0", "weight app-01 257", "weight app-01 heavy"] {
        let output = site.ballast(words)?;
        ensure!(!output.status.success(), "`ballast {words}` is obeyed");
    }
    Ok(())
}

#[test]
fn commands_without_a_daemon_say_so() -> Result<()> {
    let site = Site::without_daemon("silence", default_config())?;
    for words in ["status", "status --json", "reload", "drain app-01", "flows", "events"] {
        let begun = Instant::now();
        let text = site.refuses(words)?;
        ensure!(text.contains("ballast.sock"), "`ballast {words}`: {text}");
        ensure!(begun.elapsed() < Duration::from_secs(30), "`ballast {words}` hangs");
    }
    site.finish()
}
