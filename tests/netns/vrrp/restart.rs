//! What a daemon does for the addresses before it can serve: its start takes longer than fast adverts wait.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use lb_common::names;
use xtask::lab::HostName::{Client, Lb01, Lb02};

use super::pair::Pair;
use crate::{
    config::web,
    load::Load,
    site::{eventually, number},
};

/// Gives two pinned maps each other's names, so that no daemon can go on with them; the program goes on.
fn swap(pins: &Path) -> Result<()> {
    let [one, two, third] = [names::REASONS, names::CURSORS, "swap"].map(|name| pins.join(name));
    for (from, to) in [(&one, &third), (&two, &one), (&third, &two)] {
        fs::rename(from, to).with_context(|| format!("rename {}", from.display()))?;
    }
    Ok(())
}

#[test]
fn a_start_that_fails_hands_over_what_it_went_on_with() -> Result<()> {
    // Adverts of two seconds, so that it is back in time on any machine.
    let pair = Pair::up("broken", &[("interval = \"100ms\"", "interval = \"2s\"")])?;
    let mut daemon = pair.lab().daemon("lb-01");
    daemon.kill()?;
    let pins = pair.lab().pin_dir(Lb01);
    swap(&pins)?;
    daemon.spawn()?;
    let log = pair.lab().log(Lb01, "ballast");
    eventually("the start to fail", || {
        let text = fs::read_to_string(&log).context("read the log")?;
        Ok(text.contains("of another version of ballast").then_some(()))
    })?;
    pair.until_active(Lb02)?;
    let events = pair.events(Lb02)?;
    ensure!(events.contains("the Active has handed over"), "it was silent: {events}");
    ensure!(!pair.has_address(Lb01)?, "it has not given the address up");
    let load = Load::http(pair.host(Client), 4, web());
    load.more(100)?;

    swap(&pins)?;
    eventually("the failed daemon to be gone", || Ok(daemon.pid().is_none().then_some(())))?;
    pair.lab().daemon("lb-01").start()?;
    pair.until("lb-01 to follow lb-02", Lb01, |vrrp| {
        vrrp["role"] == "backup" && vrrp["active"] == "lb-02"
    })?;
    let vrrp = pair.vrrp(Lb02)?;
    ensure!(vrrp["role"] == "active" && number(&vrrp["takeovers"]) == 1, "{vrrp}");
    load.more(100)?;
    load.stop().ensure_none_failed()?;
    pair.finish()
}

#[test]
fn who_was_killed_while_it_left_does_not_go_on() -> Result<()> {
    // Adverts of two seconds: it leaves for eight, in which it is killed and back.
    let pair = Pair::up("leaving", &[("interval = \"100ms\"", "interval = \"2s\"")])?;
    // Nobody takes the addresses, and nobody says whether somebody has.
    pair.lab().daemon("lb-02").kill()?;
    let mut release = pair.lab().ballast_command("lb-01", "release");
    let mut release =
        release.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    pair.until_role(Lb01, "leaving")?;
    let mut daemon = pair.lab().daemon("lb-01");
    daemon.kill()?;
    release.wait()?;
    ensure!(pair.has_address(Lb01)?, "a killed daemon leaves the address");

    daemon.spawn()?;
    eventually("lb-01 to listen", || {
        // It does not answer until it runs.
        Ok(pair.vrrp(Lb01).ok().filter(|vrrp| vrrp["role"] == "backup"))
    })?;
    ensure!(!pair.has_address(Lb01)?, "it listens, and has the address");
    pair.until_active(Lb01)?;
    let events = pair.events(Lb01)?;
    ensure!(!events.contains("it was Active a moment ago"), "it went on: {events}");
    pair.finish()
}
