//! Two nodes: they know each other, have each other's connections, and say what is wrong between them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::{
    lab::{
        HostName, Options, default_config,
        topology::{FLOATING_V4, FLOATING_V6},
    },
    shell,
};

use crate::{
    config::{APPS, echo, web, web6},
    http::Connection,
    load::Load,
    site::{Site, Status, eventually, number, unique},
};

/// Connections that are open in each family, of each kind.
const OPEN: usize = 10;

/// A key for the cluster, in a file of its own.
pub(crate) struct Key(PathBuf);

impl Key {
    pub(crate) fn new(text: &str) -> Result<Self> {
        let key = Self(std::env::temp_dir().join(unique("key")));
        key.write(text)?;
        Ok(key)
    }

    fn write(&self, text: &str) -> Result<()> {
        fs::write(&self.0, text).context("write the key")?;
        fs::set_permissions(&self.0, fs::Permissions::from_mode(0o600)).context("protect the key")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

pub(crate) fn config(key: &Key) -> String {
    let line = format!("[cluster]\nsecret_file = \"{}\"\n", key.path().display());
    default_config().replacen("[cluster]\n", &line, 1)
}

/// `ballast …` for the daemon of a host.
pub(crate) fn obeys(site: &Site, host: HostName, words: &str) -> Result<String> {
    let (command, arguments) = words.split_once(' ').unwrap_or((words, ""));
    let mut command = site.lab().ballast_command(host.as_str(), command);
    shell::output(command.args(arguments.split_whitespace()).stdin(Stdio::null()))
}

fn status(site: &Site, host: HostName) -> Result<Status> {
    Ok(Status(serde_json::from_str(&obeys(site, host, "status --json")?)?))
}

/// Waits until the other node is, in the eyes of this one, as asked.
fn until_peer(
    site: &Site,
    host: HostName,
    what: &str,
    so: impl Fn(&Value) -> bool,
) -> Result<Value> {
    eventually(&format!("{what}, as {host} sees it"), || {
        let peer = status(site, host)?.0["peers"][0].clone();
        Ok(so(&peer).then_some(peer))
    })
}

pub(crate) fn until_in_sync(site: &Site) -> Result<()> {
    for host in [HostName::Lb01, HostName::Lb02] {
        until_peer(site, host, "the other node to be in sync", |peer| {
            peer["up"] == true && peer["in_sync"] == true && peer["same_config"] == true
        })?;
    }
    Ok(())
}

fn told(site: &Site, host: HostName, text: &str) -> Result<bool> {
    Ok(obeys(site, host, "events")?.contains(text))
}

fn open(site: &Site) -> Result<Vec<Connection>> {
    let targets = [web(), web6()].into_iter().cycle().take(2 * OPEN);
    targets.map(|target| Connection::open(site.client(), target)).collect()
}

/// Waits until both nodes count so many open connections, by IPv4 and by IPv6.
fn both_count(site: &Site, open: [usize; 2]) -> Result<()> {
    eventually(&format!("both nodes to count {open:?} connections"), || {
        for host in [HostName::Lb01, HostName::Lb02] {
            let status = status(site, host)?;
            let counted = ["web", "web6"].map(|service| status.sum(service, "active") as usize);
            if counted != open {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

/// lb-01 is gone from one moment to the next, and lb-02 has the addresses.
fn take_over(site: &Site) -> Result<()> {
    site.lab().daemon("lb-01").kill()?;
    site.lab().cut("lb-01")?;
    site.ip(HostName::Lb02, &format!("address replace {FLOATING_V4}/24 dev eth0"))?;
    site.ip(HostName::Lb02, &format!("-6 address replace {FLOATING_V6}/64 dev eth0 nodad"))?;
    // Whoever announces an address does this to its neighbours.
    for host in APPS.into_iter().chain([HostName::Client]) {
        for family in ["-4", "-6"] {
            site.ip(host, &format!("{family} neigh flush dev eth0"))?;
        }
    }
    Ok(())
}

#[test]
fn connections_go_on_at_the_other_node() -> Result<()> {
    let key = Key::new("one key for all nodes of the lab\n")?;
    let site = Site::with("peers", Options { config: Some(config(&key)), ..Options::default() })?;
    site.settled()?;
    // Some begin before there is another node, and some after.
    let mut connections = open(&site)?;
    let download = Connection::open(site.client(), web())?.download("/big?rate=25m")?;
    let file = site.lab().big_file()?;
    site.lab().daemon("lb-02").start()?;
    until_in_sync(&site)?;
    connections.extend(open(&site)?);
    let datagrams = Load::echo(site.client(), echo());
    datagrams.more(20)?;
    datagrams.stop().ensure_none_failed()?;
    // Closed ones leave nothing behind.
    let load = Load::http(site.client(), 4, web());
    load.more(300)?;
    load.stop().ensure_none_failed()?;

    eventually("all connections to be in the other node's tables", || {
        let flows = obeys(&site, HostName::Lb02, "flows --json")?;
        let there = |it: &Connection| flows.contains(&format!("\"{}\"", it.local()));
        Ok(connections.iter().all(there).then_some(()))
    })?;
    both_count(&site, [2 * OPEN + 1, 2 * OPEN])?;
    // What ends while the other node's daemon is away is not open for ever in its tables.
    site.lab().daemon("lb-02").kill()?;
    connections.truncate(2 * OPEN);
    site.lab().daemon("lb-02").start()?;
    until_in_sync(&site)?;
    both_count(&site, [OPEN + 1, OPEN])?;
    connections.extend(open(&site)?);
    both_count(&site, [2 * OPEN + 1, 2 * OPEN])?;
    // The other node's tables name its own backends.
    let flows = obeys(&site, HostName::Lb02, "flows --json --service echo")?;
    ensure!(flows.contains("\"udp\""), "no flow of UDP: {flows}");

    let backends: Vec<String> = connections.iter().map(|it| it.backend().to_owned()).collect();
    thread::scope(|scope| {
        let download = scope.spawn(move || download.compare(&file));
        take_over(&site)?;
        for (connection, backend) in connections.iter_mut().zip(&backends) {
            let answer = connection.get("/id").context("ask on a connection from before")?;
            ensure!(answer == *backend, "{answer} answers in place of {backend}");
        }
        // And new ones.
        connections.extend(open(&site)?);
        download.join().expect("join the download").context("download over the takeover")
    })?;
    until_peer(&site, HostName::Lb02, "the other node to be silent", |peer| peer["up"] == false)?;
    drop(connections);
    eventually("no connection to be open at the other node", || {
        let status = status(&site, HostName::Lb02)?;
        let open = ["web", "web6"].iter().map(|service| status.sum(service, "active"));
        Ok((open.sum::<u64>() == 0).then_some(()))
    })?;
    ensure!(told(&site, HostName::Lb02, "node lb-01 is silent")?);
    site.lab().heal("lb-01")?;
    site.finish()
}

#[test]
fn what_is_wrong_between_nodes_is_said() -> Result<()> {
    let key = Key::new("one key for all nodes of the lab\n")?;
    let site = Site::with("strange", Options { config: Some(config(&key)), ..Options::default() })?;
    site.settled()?;
    // The other node has another key.
    key.write("and another one for the other node\n")?;
    site.lab().daemon("lb-02").start()?;
    for host in [HostName::Lb01, HostName::Lb02] {
        let peer = until_peer(&site, host, "the other's key to be refused", |peer| {
            peer["problem"].as_str().is_some_and(|problem| problem.contains("secret_file"))
        })?;
        ensure!(peer["up"] == false && peer["in_sync"] == false, "{peer}");
        ensure!(told(&site, host, "is refused")?);
        ensure!(obeys(&site, host, "status")?.contains("refused: it is sealed with another key"));
    }
    // A reload reads the key again.
    obeys(&site, HostName::Lb01, "reload")?;
    until_in_sync(&site)?;

    // The other node has another file.
    let same = config(&key);
    site.write_config(&same.replacen("[[service]]", "[[service]]\nslow_start = \"7s\"", 1))?;
    obeys(&site, HostName::Lb02, "reload")?;
    for host in [HostName::Lb01, HostName::Lb02] {
        until_peer(&site, host, "the other's file to be another", |peer| {
            peer["up"] == true && peer["same_config"] == false
        })?;
        eventually("it to be told", || {
            Ok(told(&site, host, "is another: compare the two files")?.then_some(()))
        })?;
    }
    obeys(&site, HostName::Lb01, "reload")?;
    until_in_sync(&site)?;
    // Each knows how the other's services are.
    let peer = until_peer(&site, HostName::Lb02, "all services to serve", |peer| {
        peer["services"]["fit"] == 4 && peer["services"]["all"] == 4
    })?;
    ensure!(number(&peer["backends"]["all"]) == 12, "{peer}");
    site.lab().daemon("lb-02").stop()?;
    until_peer(&site, HostName::Lb01, "the other node to be silent", |peer| peer["up"] == false)?;
    site.finish()
}

/// Processor time that a daemon has had.
fn cpu(site: &Site, host: HostName) -> Result<Duration> {
    let pid = number(&status(site, host)?.0["pid"]);
    let stat =
        fs::read_to_string(format!("/proc/{pid}/stat")).context("read the daemon's times")?;
    let (_, fields) = stat.rsplit_once(") ").context("find the name's end")?;
    // utime and stime, in ticks (proc(5)).
    let times: Vec<u64> =
        fields.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100) as u64;
    Ok(Duration::from_secs(times.iter().sum()) / per_second as u32)
}

/// Prints what the daemons take of a CPU for short connections, without another node and with one. It is
/// no measure while other things run on the machine, so nothing depends on it.
#[test]
fn what_it_costs_to_tell_each_other() -> Result<()> {
    const CONNECTIONS: u64 = 10_000;
    let key = Key::new("one key for all nodes of the lab\n")?;
    let site = Site::with("costs", Options { config: Some(config(&key)), ..Options::default() })?;
    site.settled()?;
    let mut costs = Vec::new();
    for hosts in [&[HostName::Lb01][..], &[HostName::Lb01, HostName::Lb02]] {
        if hosts.len() == 2 {
            site.lab().daemon("lb-02").start()?;
            until_in_sync(&site)?;
        }
        let times = || hosts.iter().map(|host| cpu(&site, *host)).collect::<Result<Vec<_>>>();
        let (before, began) = (times()?, Instant::now());
        let load = Load::http(site.client(), 16, web());
        load.more(CONNECTIONS)?;
        load.stop().ensure_none_failed()?;
        let took = began.elapsed();
        let used: Vec<_> =
            times()?.iter().zip(before).map(|(now, then)| now.saturating_sub(then)).collect();
        costs.push(format!("{used:?} in {took:?}"));
    }
    let peer = until_peer(&site, HostName::Lb02, "all to have come", |peer| {
        number(&peer["received"]) >= 2 * CONNECTIONS && peer["backlog"] == 0
    })?;
    println!(
        "{CONNECTIONS} connections: processor time of the daemon alone {}, of two nodes {}; {peer}",
        costs[0], costs[1]
    );
    site.finish()
}
