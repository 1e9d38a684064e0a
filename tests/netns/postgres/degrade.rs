//! Commits wait for a standby that is gone: they go on without it, in a way that no promotion takes for proof.

use super::{
    pair::{BOTH, both_see, pair, routes_alike},
    unattended::{nobody_is_promoted, unattended, unattended_with},
    *,
};
use crate::peers::{self, Key};

const NAMES: &str = "\"pg-02\"";

fn names(site: &Site) -> Result<String> {
    site.lab().query("pg-01", "show synchronous_standby_names")
}

fn until_synchronous(site: &Site) -> Result<()> {
    eventually("pg-02 to be synchronous", || {
        let state = site.lab().query("pg-01", "select sync_state from pg_stat_replication")?;
        Ok((state == "sync").then_some(()))
    })
}

#[test]
fn a_lost_standby_holds_writes_up_for_a_while_where_they_matter_more() -> Result<()> {
    let key = Key::new("one key for both balancers\n")?;
    let site = unattended_with("pg-avail", &key, "automatic", "\ndurability = \"available 2s\"")?;
    let writer = Writer::start(&site)?;
    writer.more(50)?;
    site.lab().kill("pg-02")?;
    both_see(&site, "commits to go on", |it| it["degraded"]["server"] == "pg-01")?;
    writer.more(50)?;
    ensure!(names(&site)?.is_empty(), "{}", names(&site)?);
    let told = BOTH.map(|host| peers::obeys(&site, host, "events"));
    let told = told.into_iter().collect::<Result<Vec<_>>>()?.concat();
    ensure!(told.contains("commits on pg-01 wait for no standby"), "{told}");
    let shown = site.obeys("pg status")?;
    ensure!(shown.contains("DEGRADED") && shown.contains(NAMES), "{shown}");
    // It comes back, and all is as it was.
    site.lab().start("pg-02")?;
    both_see(&site, "commits to wait again", |it| {
        it["degraded"].is_null() && it["servers"][0]["sync"]["have"] == 1
    })?;
    ensure!(names(&site)? == NAMES, "{}", names(&site)?);
    until_synchronous(&site)?;
    writer.more(50)?;
    both_see(&site, "pg-02 to stream", |it| !server(it, "pg-02")["streams_from"].is_null())?;
    site.lab().kill("pg-01")?;
    routes_alike(&site, "pg-02", 2)?;
    writer.more(50)?;
    let lost = missing(&site, &writer.end()?)?;
    ensure!(lost.is_empty(), "{lost:?}");
    site.finish()
}

#[test]
fn nobody_is_promoted_while_nothing_proves_that_no_write_is_lost() -> Result<()> {
    let key = Key::new("one key for both balancers\n")?;
    let site = unattended("pg-degraded", &key, "automatic")?;
    let writer = Writer::start(&site)?;
    let refused = site.refuses("pg degrade")?;
    ensure!(refused.contains("so none hangs"), "{refused}");
    let refused = site.refuses("pg restore")?;
    ensure!(refused.contains("nothing is to be restored"), "{refused}");
    site.lab().kill("pg-02")?;
    both_see(&site, "commits to wait", |it| it["servers"][0]["sync"]["have"] == 0)?;
    site.obeys("pg degrade")?;
    writer.more(50)?;
    let refused = site.refuses("pg restore")?;
    ensure!(refused.contains("they would hang"), "{refused}");
    site.lab().start("pg-02")?;
    both_see(&site, "pg-02 to be back", |it| {
        it["degraded"]["have"] == 1 && server(it, "pg-02")["read_only"]["state"] == "serves"
    })?;
    // It has all, but nothing proves that.
    let acknowledged = writer.end()?;
    site.lab().kill("pg-01")?;
    nobody_is_promoted(&site, "commits on pg-01 wait for no standby")?;
    site.lab().start("pg-01")?;
    both_see(&site, "pg-02 to follow", |it| {
        server(it, "pg-01")["answers"] == true && it["degraded"]["have"] == 1
    })?;
    // The other balancer may be told too.
    peers::obeys(&site, HostName::Lb02, "pg restore")?;
    ensure!(names(&site)? == NAMES, "{}", names(&site)?);
    until_synchronous(&site)?;
    both_see(&site, "all to be as it was", |it| {
        it["degraded"].is_null()
            && it["servers"][0]["sync"]["have"] == 1
            && it["refused"].is_null()
            && server(it, "pg-02")["read_only"]["state"] == "serves"
    })?;
    site.lab().kill("pg-01")?;
    routes_alike(&site, "pg-02", 2)?;
    let lost = missing(&site, &acknowledged)?;
    ensure!(lost.is_empty(), "{lost:?}");
    site.finish()
}

#[test]
fn without_etcd_the_balancers_agree_before_commits_go_on() -> Result<()> {
    let key = Key::new("one key for both balancers\n")?;
    let site = pair("pg-degrade", &key)?;
    make_synchronous(&site)?;
    let writer = Writer::start(&site)?;
    site.lab().kill("pg-02")?;
    both_see(&site, "commits to wait", |it| it["servers"][0]["sync"]["have"] == 0)?;
    site.lab().daemon("lb-02").kill()?;
    eventually("lb-02 to be silent", || {
        Ok((site.status()?.0["peers"][0]["up"] == false).then_some(()))
    })?;
    let refused = site.refuses("pg degrade")?;
    ensure!(refused.contains("--peer-is-down lb-02"), "{refused}");
    ensure!(names(&site)? == NAMES, "nothing has changed");
    site.lab().daemon("lb-02").start()?;
    peers::until_in_sync(&site)?;
    both_see(&site, "pg-01 to answer both", |it| server(it, "pg-01")["answers"] == true)?;
    site.obeys("pg degrade")?;
    both_see(&site, "both to know", |it| it["degraded"]["server"] == "pg-01")?;
    writer.more(50)?;
    // A promotion loses what it cannot prove, and asks.
    site.lab().start("pg-02")?;
    both_see(&site, "pg-02 to be back", |it| it["degraded"]["have"] == 1)?;
    let shown = site.obeys("pg status")?;
    ensure!(shown.contains("`ballast pg restore`"), "{shown}");
    site.obeys("pg restore")?;
    both_see(&site, "both to know it", |it| it["degraded"].is_null())?;
    until_synchronous(&site)?;
    writer.more(50)?;
    writer.end()?;
    site.finish()
}

/// What the daemon has kept of pg-01: absent, `false` for degraded, or `true` for being restored.
fn kept(site: &Site) -> Option<bool> {
    let file = site.lab().state_dir().join("lb-01/state/postgres-appdb.json");
    let kept: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    kept["record"]["degraded"]["pg-01"]["restoring"].as_bool()
}

/// Begins a command while these processes stand still, kills the daemon when its record says so, and lets go.
fn killed_on_the_way(
    site: &Site,
    words: &str,
    host: HostName,
    stopped: &str,
    so: Option<bool>,
) -> Result<()> {
    let stopped = processes(site, host, stopped)?;
    ensure!(!stopped.is_empty(), "{host} has no such process");
    for pid in &stopped {
        kill(*pid, Signal::SIGSTOP)?;
    }
    let mut command = site.lab().ballast_command("lb-01", "pg");
    let mut command = command.args(words.split_whitespace()).spawn().context("begin it")?;
    eventually("the daemon to come so far", || Ok((kept(site) == so).then_some(())))?;
    site.daemon().kill()?;
    ensure!(!command.wait()?.success(), "the command has heard of no end");
    for pid in stopped {
        kill(pid, Signal::SIGCONT)?;
    }
    site.daemon().start()
}

#[test]
fn a_daemon_killed_on_the_way_goes_on() -> Result<()> {
    let site = site("pg-degrade-kill", "")?;
    make_synchronous(&site)?;
    let writer = Writer::start(&site)?;
    // Nobody is found silent while it stands still.
    let slow = (default_config() + &postgres_config())
        .replace("user = \"ballast\"", "user = \"ballast\"\ntimeout = \"15s\"");
    site.write_config(&slow)?;
    site.obeys("reload")?;
    site.lab().kill("pg-02")?;
    until(&site, "commits to wait", |it| it["servers"][0]["sync"]["have"] == 0)?;
    let degrade = "degrade --peer-is-down lb-02";
    killed_on_the_way(&site, degrade, HostName::Pg01, "postgres", Some(false))?;
    writer.more(50)?;
    ensure!(names(&site)?.is_empty(), "{}", names(&site)?);
    // A second time says so.
    let said = site.obeys(&format!("pg {degrade}"))?;
    ensure!(said.contains("wait for no standby"), "{said}");

    site.lab().start("pg-02")?;
    until(&site, "pg-02 to be back", |it| it["degraded"]["have"] == 1)?;
    // What is written now does not come there.
    writer.more(5)?;
    killed_on_the_way(&site, "restore", HostName::Pg02, "walreceiver", Some(true))?;
    until(&site, "commits to wait again", |it| it["degraded"].is_null())?;
    ensure!(names(&site)? == NAMES, "{}", names(&site)?);
    until_synchronous(&site)?;
    writer.more(50)?;
    let lost = missing(&site, &writer.end()?)?;
    ensure!(lost.is_empty(), "{lost:?}");
    site.finish()
}
