//! Consistency under faults, in the manner of Jepsen (<https://jepsen.io/consistency>): clients write through the
//! floating address while servers, links, disks, daemons and etcd are killed, paused, cut and filled, in an order
//! that a seed gives.
//!
//! What must hold: each write that was acknowledged is there at the end, once; one that was refused is not; and no
//! write is acknowledged by a server of an earlier timeline after one of a later one was acknowledged, so that
//! there are never two servers that clients can write to; nor is a read answered by an old primary. Commits that came back with "canceling wait for
//! synchronous replication" count as unknown. Where the primary changes without a person, the record that etcd has
//! goes forward only, and each epoch has one promotion.
//!
//! `BALLAST_NEMESIS_SECONDS` says how long each of the two tests goes on, `BALLAST_NEMESIS_SEED` repeats the order of
//! an earlier run.

use std::{
    env,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use xtask::{lab::Program, wait};

use self::{
    journal::Journal,
    readers::Reader,
    writers::{Client, Writers},
};
use super::{
    pair::{BOTH, both_see, database_of, pair},
    *,
};
use crate::peers::{self, Key};

mod automatic;
mod journal;
mod judge;
mod manual;
mod readers;
mod writers;

/// How long faults go on, if nobody says so.
const SECONDS: u64 = 45;

/// How long anything may take that ought to happen at all: after a promotion without a person there is none for a
/// minute.
const PATIENCE: Duration = Duration::from_mins(3);

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().and_then(|text| text.parse().ok())
}

fn seed() -> u64 {
    number("BALLAST_NEMESIS_SEED").unwrap_or_else(|| fastrand::u64(..))
}

fn lasts() -> Duration {
    Duration::from_secs(number("BALLAST_NEMESIS_SECONDS").unwrap_or(SECONDS))
}

fn host_of(server: &str) -> HostName {
    if server == "pg-01" { HostName::Pg01 } else { HostName::Pg02 }
}

/// The primary and its standby, as the balancers know them.
fn roles(site: &Site) -> Result<(&'static str, &'static str)> {
    let database = both_agree(site)?;
    Ok(if database["primary"] == "pg-01" { ("pg-01", "pg-02") } else { ("pg-02", "pg-01") })
}

/// Both balancers have the same record, and writes go to its primary, which answers them.
fn both_agree(site: &Site) -> Result<Value> {
    wait::until(PATIENCE, "both balancers to agree", || {
        let [one, two] = BOTH.map(|host| database_of(site, host));
        let (one, two) = (one?, two?);
        let same =
            ["primary", "writes_to", "epoch", "phase"].iter().all(|key| one[key] == two[key]);
        let serves = one["phase"] == "serving" && one["writes_to"] == one["primary"];
        let primary = one["primary"].as_str().unwrap_or_default();
        let answers = [&one, &two].iter().all(|it| server(it, primary)["answers"] == true);
        Ok((same && serves && answers).then_some(one))
    })
}

fn signal_all(site: &Site, server: &str, signal: Signal) -> Result<()> {
    for pid in processes(site, host_of(server), "")? {
        // It may have ended meanwhile.
        let _ = kill(pid, signal);
    }
    if signal == Signal::SIGKILL {
        // Where nobody reaps it, `pg_ctl` would take its zombie for a server that runs.
        fs::remove_file(site.lab().data_dir().join(server).join("postmaster.pid"))?;
    }
    Ok(())
}

/// Drops packets on a host, until [`heal`]. `rules` are those of nft, one after the other.
fn part(site: &Site, host: HostName, rules: &[String]) -> Result<()> {
    let mut text = String::from(
        "add table inet part; \
         add chain inet part in { type filter hook input priority 0; }; \
         add chain inet part out { type filter hook output priority 0; }; ",
    );
    for rule in rules {
        let _ = write!(text, "add rule inet part {rule} drop; ");
    }
    site.run(host, &["nft", &text]).map(drop)
}

fn heal(site: &Site, host: HostName) -> Result<()> {
    site.run(host, &["nft", "delete table inet part"]).map(drop)
}

/// Makes a server a standby of the primary.
fn come_back(site: &Site, server: &str) -> Result<()> {
    let mut said = String::new();
    wait::until(PATIENCE, &format!("{server} to come back"), || {
        for folder in [site.lab().state_dir(), site.lab().data_dir()] {
            for name in [".s.PGSQL.5432.lock", "postmaster.pid"] {
                forget_the_dead(&folder.join(server).join(name));
            }
        }
        let output = site.ballast(&format!("pg rejoin {server} --yes"))?;
        said = crate::site::text(&output);
        Ok(output.status.success().then_some(()))
    })
    .with_context(|| said.clone())?;
    // Its settings are those of the primary now. Should it become one, its commits must not wait for itself.
    site.lab().query(server, "alter system set synchronous_standby_names = ''")?;
    site.lab().query(server, "select pg_reload_conf()").map(drop)
}

/// Where a server logs that was started by `rejoin`.
fn rejoin_log(site: &Site, server: &str) -> PathBuf {
    site.lab().state_dir().join(server).join("rejoin.log")
}

/// Removes a lock of a process that was killed and that nobody has collected yet: the server takes it for one
/// that runs.
fn forget_the_dead(lock: &Path) {
    let Ok(text) = fs::read_to_string(lock) else { return };
    let pid = text.lines().next().unwrap_or_default();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')) {
        // If it stays, the server says so.
        let _ = fs::remove_file(lock);
    }
}

/// Commits on `primary` wait for `standby`.
fn synchronous(site: &Site, primary: &str, standby: &str) -> Result<()> {
    let lab = site.lab();
    lab.query(primary, &format!("alter system set synchronous_standby_names = '\"{standby}\"'"))?;
    lab.query(primary, "select pg_reload_conf()")?;
    Ok(())
}

/// All is well: the standby streams and is synchronous, and both balancers have seen that.
fn steady(site: &Site) -> Result<()> {
    let (primary, standby) = roles(site)?;
    wait::until(PATIENCE, "the standby to be synchronous", || {
        let state = site.lab().query(primary, "select sync_state from pg_stat_replication")?;
        Ok((state == "sync").then_some(()))
    })?;
    both_see(site, "all to be well", |it| {
        let sync = &server(it, primary)["sync"];
        sync["have"] == 1
            && server(it, primary)["answers"] == true
            && server(it, standby)["read_only"]["state"] == "serves"
    })?;
    peers::until_in_sync(site)
}

/// The end of each test: what clients have seen is compared with what there is. If anything has failed, all that
/// happened is printed.
fn conclude(
    site: Site,
    journal: &Journal,
    writers: Writers,
    reader: Reader,
    outcome: Result<()>,
    judge: impl FnOnce(&Site) -> Result<()>,
) -> Result<()> {
    let outcome = writers.end().and_then(|history| {
        let reads = reader.end()?;
        println!(
            "{} faults; writes: {} acknowledged, {} refused for want of space, {} by standbys, {} unknown",
            journal.faults(),
            history.acknowledged.len(),
            history.disk_full,
            history.standby,
            history.unknown
        );
        println!(
            "{} reads, {} of them answered by a primary, {} failed",
            reads.answered,
            reads.of_primaries.len(),
            reads.failed
        );
        journal.print_pauses();
        outcome?;
        judge::judge(&site, &history)?;
        judge::judge_reads(&history, &reads)?;
        judge(&site)
    });
    if outcome.is_err() {
        journal.print(&site);
    }
    outcome.with_context(|| format!("BALLAST_NEMESIS_SEED={}", journal.seed()))?;
    site.finish()
}
