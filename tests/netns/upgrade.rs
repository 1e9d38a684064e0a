//! Both nodes are upgraded one after the other, as `docs/operations.md` says, and no client notices.

use std::{process::Stdio, thread};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::{
    lab::{Balancers, HostName, Options, default_config, with_key},
    shell,
};

use crate::{
    config::{web, web6},
    http::{Connection, all_go_on},
    load::Load,
    site::{Site, eventually},
};

/// Connections that are open in each family.
const OPEN: usize = 10;

/// Requests between two steps.
const MEANWHILE: u64 = 200;

fn obeys(site: &Site, host: HostName, words: &str) -> Result<String> {
    let (command, arguments) = words.split_once(' ').unwrap_or((words, ""));
    let mut command = site.lab().ballast_command(host.as_str(), command);
    shell::output(command.args(arguments.split_whitespace()).stdin(Stdio::null()))
}

fn status(site: &Site, host: HostName) -> Result<Value> {
    serde_json::from_str(&obeys(site, host, "status --json")?).context("read the status")
}

/// Waits until the node is Active, or Backup, for all addresses.
fn until_role(site: &Site, host: HostName, role: &str) -> Result<()> {
    eventually(&format!("{host} to be {role}"), || {
        let status = status(site, host)?;
        let instances = status["vrrp"].as_array().cloned().unwrap_or_default();
        let all = instances.iter().all(|instance| instance["role"] == role);
        Ok((!instances.is_empty() && all).then_some(()))
    })
}

/// Waits until the nodes have each other's connections.
fn until_in_sync(site: &Site) -> Result<()> {
    for host in [HostName::Lb01, HostName::Lb02] {
        eventually(&format!("{host} to be in sync"), || {
            let peer = &status(site, host)?["peers"][0];
            Ok((peer["up"] == true && peer["in_sync"] == true).then_some(()))
        })?;
    }
    Ok(())
}

fn open(site: &Site) -> Result<Vec<Connection>> {
    let targets = [web(), web6()].into_iter().cycle().take(2 * OPEN);
    targets.map(|target| Connection::open(site.client(), target)).collect()
}

#[test]
fn both_nodes_are_upgraded_under_load_and_nothing_breaks() -> Result<()> {
    let config = with_key(&default_config()).replacen(
        "interval = \"100ms\"",
        "interval = \"100ms\"\npreempt = true",
        1,
    );
    // Named, so that a daemon can be started again.
    let site = Site::with(
        "upgrade",
        Options { config: Some(config), balancers: Balancers::First, ..Options::default() },
    )?;
    site.settled()?;
    site.lab().daemon("lb-02").start()?;
    until_in_sync(&site)?;
    until_role(&site, HostName::Lb02, "backup")?;

    let mut connections = open(&site)?;
    let download = Connection::open(site.client(), web())?.download("/big?rate=10m")?;
    let file = site.lab().big_file()?;
    let load = Load::http(site.client(), 4, web());
    load.more(MEANWHILE)?;
    thread::scope(|scope| {
        let download = scope.spawn(|| download.compare(&file));
        // The Backup first.
        site.lab().daemon("lb-02").stop()?;
        load.more(MEANWHILE)?;
        site.lab().daemon("lb-02").start()?;
        until_in_sync(&site)?;
        all_go_on(&mut connections, "after the Backup's upgrade")?;
        // Then the Active, which hands over before it ends.
        obeys(&site, HostName::Lb01, "release")?;
        until_role(&site, HostName::Lb02, "active")?;
        load.more(MEANWHILE)?;
        all_go_on(&mut connections, "at the other node")?;
        site.lab().daemon("lb-01").stop()?;
        connections.extend(open(&site)?);
        site.lab().daemon("lb-01").start()?;
        // With `preempt` it takes the addresses back, once it has all connections: those that were begun
        // while it was away too.
        until_role(&site, HostName::Lb01, "active")?;
        until_role(&site, HostName::Lb02, "backup")?;
        load.more(MEANWHILE)?;
        all_go_on(&mut connections, "back at the first node")?;
        download.join().expect("join the download").context("download over the upgrade")
    })?;
    load.stop().ensure_none_failed()?;
    let events = obeys(&site, HostName::Lb01, "events")?;
    let synced = events.rfind("all connections of lb-02 are here");
    let taken = events.rfind("this node is Active");
    ensure!(synced < taken, "it took the addresses before it had the connections: {events}");
    site.finish()
}
