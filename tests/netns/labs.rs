//! The lab itself: two at once, and nothing left of one that fails or is killed.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use xtask::{
    build,
    lab::{self, Lab, Options, default_config},
    shell,
};

use crate::{
    config::web,
    load::Load,
    postgres::{ask, on, server},
    site::{Site, ensure_gone, eventually, remains, unique},
};

#[test]
fn two_labs_stand_side_by_side() -> Result<()> {
    let one = Site::up("one", default_config())?;
    let two = Site::up("two", default_config())?;
    let load = Load::http(one.client(), 2, web());
    load.more(50)?;
    two.lab().kill("app-01")?;
    two.until_serving("web", "app-01", false)?;
    ensure!(one.status()?.backend("web", "app-01")["serving"] == true);
    let report = Load::http_requests(two.client(), 2, 30, web()).end();
    report.ensure_none_failed()?;
    ensure!(report.answers(None).len() == 2, "{:?}", report.answers(None));
    two.finish()?;
    load.more(50)?;
    let report = load.stop();
    report.ensure_none_failed()?;
    ensure!(report.answers(None).len() == 3, "{:?}", report.answers(None));
    one.finish()
}

#[test]
fn a_lab_that_fails_half_way_leaves_nothing_behind() -> Result<()> {
    let name = unique("half");
    let config = default_config().replace("protocol = \"tcp\"", "protocol = \"sctp\"");
    let outcome =
        Lab::up(Options { name: name.clone(), config: Some(config), ..Options::default() });
    let error = outcome.err().context("a lab came up with a wrong configuration")?;
    let text = format!("{error:#}");
    ensure!(text.contains("2 errors"), "it does not say why: {text}");
    ensure_gone(&name)
}

#[test]
fn a_lab_goes_with_the_process_that_made_it() -> Result<()> {
    let name = unique("killed");
    let mut command = Command::new(build::xtask()?);
    command.args(["lab", "up", "--no-postgres", "--name", &name]);
    let mut child = command.spawn().context("start `xtask lab up`")?;
    eventually("the lab to be half up", || {
        let there = fs::exists(format!("/run/netns/{name}-lb-01"))?;
        Ok(there.then_some(()))
    })?;
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).context("kill it")?;
    child.wait()?;
    eventually("nothing to be left", || Ok(remains(&name)?.is_empty().then_some(())))
}

#[test]
fn the_database_of_a_lab_with_etcd_changes_its_primary_by_itself() -> Result<()> {
    let name = unique("etcd");
    let xtask = |words: &[&str]| -> Result<String> {
        let mut command = Command::new(build::xtask()?);
        shell::output(command.arg("lab").args(words).args(["--name", &name]))
    };
    let shown = xtask(&["up", "--etcd"])?;
    let outcome = (|| {
        ensure!(shown.matches("etcd (").count() == 3, "{shown}");
        let lab = Lab::attach(&name)?;
        let until = |what: &str, so: &dyn Fn(&Value) -> bool| {
            eventually(what, || {
                let mut command = lab.ballast_command("lb-02", "pg");
                let all = shell::output(command.args(["status", "--json"]))?;
                let all: Value = serde_json::from_str(&all)?;
                Ok(so(&all[0]).then_some(()))
            })
        };
        until("the standby to be synchronous, and nothing to be wrong", &|it| {
            it["writes_to"] == "pg-01"
                && server(it, "pg-01")["sync"]["have"] == 1
                && it["warnings"].as_array().is_none_or(Vec::is_empty)
        })?;
        let client = lab.host("client");
        on(client, async || ask(5432, "create table kept (value bigint)").await)?;
        xtask(&["kill", "pg-01"])?;
        until("pg-02 to be the primary", &|it| it["writes_to"] == "pg-02" && it["epoch"] == 2)?;
        eventually("a write", || {
            let written = on(client, async || {
                ask(5432, "insert into kept values (1) returning host(inet_server_addr())").await
            });
            Ok(written.ok().filter(|address| address == "192.0.2.32"))
        })?;
        xtask(&["start", "pg-01"])?;
        until("pg-01 to be barred", &|it| {
            server(it, "pg-01")["answers"] == true
                && server(it, "pg-01")["read_write"]["state"] == "barred"
        })?;
        let mut rejoin = lab.ballast_command("lb-02", "pg");
        shell::output(rejoin.args(["rejoin", "pg-01", "--yes"])).map(drop)
    })();
    let down = lab::down(&name);
    outcome?;
    down?;
    ensure_gone(&name)
}
