//! The lab itself: two at once, and nothing left of one that fails or is killed.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xtask::{
    build,
    lab::{Lab, Options, default_config},
};

use crate::{
    config::web,
    load::Load,
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
