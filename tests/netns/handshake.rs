//! The address moves while clients are in the middle of their handshakes: the backend has answered, and the
//! client's acknowledgement comes to the other node.

use std::process::Command;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use xtask::{
    lab::{HostName, Options},
    shell,
};

use crate::{
    config::{APPS, web, web6},
    http::Connection,
    load::Load,
    peers::{self, Key, obeys, until_in_sync},
    site::{Site, eventually},
};

/// Connections in each family.
const BEGUN: usize = 5;

/// A client sends its SYN, and after that nothing.
const HOLD_CLIENT: &str = "table inet hold { chain output { type filter hook output priority 0; \
                           tcp dport 80 tcp flags & syn == 0 drop; }; }";

/// The switch keeps what the backends send to the floating addresses. (Were it dropped at the backend, that one
/// would know that nothing was sent.)
const HOLD_BACKENDS: &str = "table bridge hold { chain forward { type filter hook forward priority 0; \
                             ip daddr 192.0.2.100 tcp sport 8080 drop; \
                             ip6 daddr 2001:db8::100 tcp sport 8080 drop; }; }";

fn hold_client(site: &Site) -> Result<()> {
    site.run(HostName::Client, &["nft", HOLD_CLIENT]).map(drop)
}

fn let_client_go(site: &Site) -> Result<()> {
    site.run(HostName::Client, &["nft", "delete table inet hold"]).map(drop)
}

fn at_switch(site: &Site, rules: &str) -> Result<()> {
    site.lab().within_switch(|| shell::output(Command::new("nft").arg(rules)))?.map(drop)
}

fn until_active(site: &Site, host: HostName) -> Result<()> {
    eventually(&format!("{host} to be Active"), || {
        let status: Value = serde_json::from_str(&obeys(site, host, "status --json")?)?;
        let held = status["floating"]
            .as_array()
            .is_some_and(|all| all.iter().all(|it| it["held"] == true));
        Ok((status["vrrp"][0]["role"] == "active" && held).then_some(()))
    })
}

/// Two nodes in sync, of which lb-01 has the addresses, and everybody knows everybody's MAC address.
fn pair(name: &str, key: &Key) -> Result<Site> {
    let config = Some(peers::config(key));
    let site = Site::with(name, Options { config, ..Options::default() })?;
    until_active(&site, HostName::Lb01)?;
    site.lab().daemon("lb-02").start()?;
    until_in_sync(&site)?;
    for target in [web(), web6()] {
        let load = Load::http(site.client(), 1, target);
        load.more(50)?;
        load.stop().ensure_none_failed()?;
    }
    Ok(site)
}

fn begin(site: &Site) -> Result<Vec<Connection>> {
    let targets = [web(), web6()].into_iter().cycle().take(2 * BEGUN);
    targets.map(|target| Connection::begin(site.client(), target)).collect()
}

/// Waits until lb-02 knows all of them, as what they are.
fn until_told(site: &Site, connections: &[Connection]) -> Result<()> {
    eventually("lb-02 to know the connections that are half open", || {
        let flows: Value = serde_json::from_str(&obeys(site, HostName::Lb02, "flows --json")?)?;
        let flows = flows.as_array().cloned().unwrap_or_default();
        let knows = |it: &Connection| {
            let local = it.local().to_string();
            flows.iter().any(|flow| flow["client"] == local && flow["phase"] == "half_open")
        };
        Ok(connections.iter().all(knows).then_some(()))
    })
}

fn all_are_answered(mut connections: Vec<Connection>) -> Result<()> {
    for connection in &mut connections {
        let backend = connection.get("/id")?;
        ensure!(APPS.iter().any(|app| app.as_str() == backend), "{backend} answers");
    }
    Ok(())
}

#[test]
fn the_other_node_knows_them_when_the_power_fails() -> Result<()> {
    let key = Key::new("one key for all nodes of the lab\n")?;
    let site = pair("handshake", &key)?;
    hold_client(&site)?;
    let connections = begin(&site)?;
    until_told(&site, &connections)?;
    site.lab().cut("lb-01")?;
    until_active(&site, HostName::Lb02)?;
    let_client_go(&site)?;
    all_are_answered(connections)?;
    site.lab().heal("lb-01")?;
    site.finish()
}

#[test]
fn the_daemon_that_is_back_tells_of_those_that_began_without_it() -> Result<()> {
    let key = Key::new("one key for all nodes of the lab\n")?;
    let site = pair("orphans", &key)?;
    hold_client(&site)?;
    // The other node must not take over before they have begun.
    site.lab().daemon("lb-02").signal(Signal::SIGSTOP)?;
    site.lab().daemon("lb-01").kill()?;
    let begun = begin(&site);
    // Whoever sends again now would be told that nobody knows it, if lb-01 took longer than two seconds.
    at_switch(&site, HOLD_BACKENDS)?;
    site.lab().daemon("lb-02").signal(Signal::SIGCONT)?;
    let connections = begun?;
    until_active(&site, HostName::Lb02)?;
    site.lab().daemon("lb-01").start()?;
    until_told(&site, &connections)?;
    at_switch(&site, "delete table bridge hold")?;
    let_client_go(&site)?;
    all_are_answered(connections)?;
    site.finish()
}
