//! The primary changes without a person, where etcd says who may do that; and does not, where it must not.

use nix::time::{ClockId, clock_gettime};

use super::{
    figures::repeated,
    pair::{BOTH, both_see, database_of, routes_alike},
    *,
};
use crate::peers::{self, Key};

/// The hosts of its members.
pub(super) const ETCD: [HostName; 3] = [HostName::Lb01, HostName::Lb02, HostName::Witness];

/// How long nothing must happen where nothing may.
pub(super) const WATCH: Duration = Duration::from_secs(6);

/// The configuration of both balancers.
pub(super) fn config(key: &Key, promotion: &str) -> String {
    let promotion = format!("promotion = \"{promotion}\"");
    let postgres = automatic_config().replace("promotion = \"automatic\"", &promotion);
    peers::config(key) + &postgres + &etcd_config()
}

/// A lab with two balancers, etcd and synchronous replication.
pub(super) fn unattended(name: &str, key: &Key, promotion: &str) -> Result<Site> {
    unattended_with(name, key, promotion, "")
}

/// The same, with more lines about the database.
pub(super) fn unattended_with(name: &str, key: &Key, promotion: &str, more: &str) -> Result<Site> {
    let line = format!("promotion = \"{promotion}\"");
    let config = config(key, promotion).replacen(&line, &format!("{line}{more}"), 1);
    let site = Site::with(
        name,
        Options {
            config: Some(config),
            postgres: true,
            etcd: true,
            apps: 0,
            balancers: Balancers::Both,
            ..Options::default()
        },
    )?;
    settle(&site)?;
    Ok(site)
}

/// Waits until nothing is in the way of a promotion. Replication is synchronous in such a lab.
pub(super) fn settle(site: &Site) -> Result<()> {
    both_see(site, "pg-01 to be the primary", |it| {
        it["writes_to"] == "pg-01" && server(it, "pg-02")["read_only"]["state"] == "serves"
    })?;
    peers::until_in_sync(site)?;
    both_see(site, "synchronous replication to be seen", |it| {
        it["servers"][0]["detail"]["standbys"][0]["sync_state"] == "sync"
    })?;
    both_see(site, "no packet to be held up", |it| {
        !it["warnings"].to_string().contains("no packet passes")
            && !it["warnings"].to_string().contains("etcd")
    })
}

fn monotonic_ms() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.tv_sec() as u64 * 1000 + now.tv_nsec() as u64 / 1_000_000)
}

/// Prints when the longest pause began and ended, from `begin` on.
fn print_pause(acknowledged: &[(u64, Instant)], begin: Instant) -> Result<()> {
    let paused = acknowledged.windows(2).max_by_key(|pair| pair[1].1 - pair[0].1);
    let paused = paused.context("find the pause")?;
    let after = |at: Instant| at.saturating_duration_since(begin);
    println!("from {:?} to {:?} after it", after(paused[0].1), after(paused[1].1));
    Ok(())
}

/// Prints what these balancers have done since then, with the time that it took.
fn print_since(site: &Site, since_ms: u64, hosts: &[HostName]) -> Result<()> {
    for host in hosts {
        for line in peers::obeys(site, *host, "events --json")?.lines() {
            let event: Value = serde_json::from_str(line)?;
            let at = event["monotonic_ms"].as_u64().unwrap_or_default();
            if let Some(after) = at.checked_sub(since_ms) {
                println!("  {host} {after:5} ms  {} {}", event["message"], event["cause"]);
            }
        }
    }
    Ok(())
}

/// Nobody is promoted for a while, and it is said why.
pub(super) fn nobody_is_promoted(site: &Site, why: &str) -> Result<()> {
    both_see(site, why, |it| it["refused"].to_string().contains(why))?;
    let begin = Instant::now();
    while begin.elapsed() < WATCH {
        for host in BOTH {
            let database = database_of(site, host)?;
            ensure!(database["epoch"] == 1, "{database}");
        }
    }
    Ok(())
}

fn kill() -> Result<Duration> {
    let key = Key::new("one key for both balancers\n")?;
    let site = unattended("pg-auto", &key, "automatic")?;
    let writer = Writer::start(&site)?;
    writer.more(50)?;
    site.lab().kill("pg-01")?;
    routes_alike(&site, "pg-02", 2)?;
    writer.more(50)?;
    let acknowledged = writer.end()?;
    let pause = gap(&acknowledged);
    let lost = missing(&site, &acknowledged)?;
    ensure!(lost.is_empty(), "{lost:?}");
    // It is told why.
    let told = BOTH.map(|host| peers::obeys(&site, host, "events"));
    let told = told.into_iter().collect::<Result<Vec<_>>>()?.concat();
    for words in ["pg-01 has failed", "pg-02 receives nothing from pg-01", "pg-02 is chosen"] {
        ensure!(told.contains(words), "nobody has said {words:?}: {told}");
    }
    // Daemons that are killed hold to it that the next promotion is not soon.
    for host in BOTH {
        site.lab().daemon(host.as_str()).kill()?;
    }
    for host in BOTH {
        site.lab().daemon(host.as_str()).start()?;
    }
    both_see(&site, "the minute to go on", |it| it["writes_to"] == "pg-02" && it["calm"] == true)?;
    // The old one comes back, and is not reachable.
    site.lab().start("pg-01")?;
    both_see(&site, "pg-01 to be barred", |it| {
        server(it, "pg-01")["answers"] == true
            && server(it, "pg-01")["read_write"]["state"] == "barred"
            && server(it, "pg-01")["read_only"]["state"] == "barred"
    })?;
    ensure!(leads_to(&site, 5432)? == "192.0.2.32");
    site.finish()?;
    Ok(pause)
}

#[test]
fn a_killed_primary_is_replaced_without_a_person() -> Result<()> {
    repeated("the primary killed, nothing was written for", kill)
}

fn cut_off() -> Result<Duration> {
    let key = Key::new("one key for both balancers\n")?;
    let site = unattended("pg-auto-cut", &key, "automatic")?;
    for host in ["pg-01", "pg-02"] {
        // The shortest time that is advised: after half of it, the standby asks.
        site.lab().query(host, "alter system set wal_receiver_timeout = '1s'")?;
        site.lab().query(host, "select pg_reload_conf()")?;
    }
    let writer = Writer::start(&site)?;
    writer.more(50)?;
    let (cut, begin) = (monotonic_ms()?, Instant::now());
    site.lab().cut("pg-01")?;
    routes_alike(&site, "pg-02", 2)?;
    writer.more(50)?;
    let acknowledged = writer.end()?;
    let pause = gap(&acknowledged);
    print_pause(&acknowledged, begin)?;
    print_since(&site, cut, &BOTH)?;
    let lost = missing(&site, &acknowledged)?;
    ensure!(lost.is_empty(), "{lost:?}");
    site.lab().heal("pg-01")?;
    both_see(&site, "pg-01 to be barred", |it| {
        server(it, "pg-01")["answers"] == true
            && server(it, "pg-01")["read_write"]["state"] == "barred"
    })?;
    ensure!(leads_to(&site, 5432)? == "192.0.2.32");
    site.finish()?;
    Ok(pause)
}

#[test]
fn a_primary_that_is_cut_off_is_replaced_without_a_person() -> Result<()> {
    repeated("the primary cut off, nothing was written for", cut_off)
}

fn kill_with_a_balancer() -> Result<Duration> {
    let key = Key::new("one key for both balancers\n")?;
    let site = unattended("pg-auto-both", &key, "automatic")?.on_lb02();
    let writer = Writer::start(&site)?;
    writer.more(50)?;
    // Its tables stay, and its gate closes by itself.
    let (killed, begin) = (monotonic_ms()?, Instant::now());
    site.lab().daemon("lb-01").kill()?;
    site.lab().kill("pg-01")?;
    until(&site, "pg-02 to be the primary", |it| it["writes_to"] == "pg-02" && it["epoch"] == 2)?;
    writer.more(50)?;
    let acknowledged = writer.end()?;
    let pause = gap(&acknowledged);
    print_pause(&acknowledged, begin)?;
    print_since(&site, killed, &[HostName::Lb02])?;
    let lost = missing(&site, &acknowledged)?;
    ensure!(lost.is_empty(), "{lost:?}");
    let told = site.obeys("events")?;
    ensure!(told.contains("lb-01 is silent: its gate has closed by itself"), "{told}");
    // The other one learns of it.
    site.lab().daemon("lb-01").start()?;
    routes_alike(&site, "pg-02", 2)?;
    site.finish()?;
    Ok(pause)
}

#[test]
fn a_balancer_that_dies_with_the_primary_delays_it_and_no_more() -> Result<()> {
    repeated("the primary killed with a balancer, nothing was written for", kill_with_a_balancer)
}

#[test]
fn what_is_no_failure_of_the_primary_promotes_nobody() -> Result<()> {
    let key = Key::new("one key for both balancers\n")?;
    let site = unattended("pg-auto-not", &key, "automatic")?;

    // The balancers do not reach the primary, which lives: the standby hears it.
    let ruleset = "add table ip cut; add chain ip cut in { type filter hook input priority 0; }; \
                   add rule ip cut in ip saddr { 192.0.2.11, 192.0.2.12, 192.0.2.100 } drop";
    site.run(HostName::Pg01, &["nft", ruleset])?;
    nobody_is_promoted(&site, "pg-02 still hears pg-01")?;
    site.run(HostName::Pg01, &["nft", "delete table ip cut"])?;
    both_see(&site, "pg-01 to answer", |it| server(it, "pg-01")["answers"] == true)?;
    eventually("writes to go on", || Ok(leads_to(&site, 5432).ok()))?;

    // Its commits wait for a standby that is gone.
    site.lab().kill("pg-02")?;
    nobody_is_promoted(&site, "its commits wait")?;
    site.lab().start("pg-02")?;
    both_see(&site, "pg-02 to be back", |it| {
        server(it, "pg-02")["read_only"]["state"] == "serves" && it["refused"].is_null()
    })?;

    // Nobody needs etcd to serve, and nobody is promoted without it.
    let writer = Writer::start(&site)?;
    for host in ETCD {
        site.lab().program(host.as_str(), "etcd").kill()?;
    }
    both_see(&site, "etcd to be missed", |it| {
        it["warnings"].to_string().contains("etcd does not answer")
    })?;
    let begin = Instant::now();
    while begin.elapsed() < WATCH {
        writer.more(10)?;
    }
    let pause = gap(&writer.end()?);
    ensure!(pause < Duration::from_secs(2), "writes waited for {pause:?}");
    // Even with one balancer alone.
    site.lab().daemon("lb-02").kill()?;
    let begin = Instant::now();
    while begin.elapsed() < WATCH {
        let server = eventually("writes to pass", || Ok(leads_to(&site, 5432).ok()))?;
        ensure!(server == "192.0.2.31", "they go to {server}");
    }
    site.lab().daemon("lb-02").start()?;
    peers::until_in_sync(&site)?;
    both_see(&site, "pg-01 to serve", |it| it["writes_to"] == "pg-01")?;
    site.lab().kill("pg-01")?;
    nobody_is_promoted(&site, "etcd does not answer")?;
    site.lab().start("lb-01")?;
    site.lab().start("lb-02")?;
    site.lab().start("witness")?;
    routes_alike(&site, "pg-02", 2)?;
    ensure!(leads_to(&site, 5432)? == "192.0.2.32");
    site.finish()
}

#[test]
fn a_person_may_forbid_it_or_agree() -> Result<()> {
    let key = Key::new("one key for both balancers\n")?;
    let site = unattended("pg-veto", &key, "veto 10m")?;
    site.lab().kill("pg-01")?;
    let asks = || -> Result<Value> {
        let database =
            until(&site, "a person to be asked", |it| it["asks"]["candidate"] == "pg-02")?;
        Ok(database["asks"].clone())
    };
    let word = |asks: &Value, key: &str| asks[key].as_str().unwrap_or_default().to_owned();
    let first = asks()?;
    let refused = site.refuses("pg veto 000000000000")?;
    ensure!(refused.contains("not the token"), "{refused}");
    // Either balancer takes the answer.
    peers::obeys(&site, HostName::Lb02, &format!("pg veto {}", word(&first, "veto")))?;
    nobody_is_promoted(&site, "a person has forbidden it")?;
    let refused = site.refuses(&format!("pg approve {}", word(&first, "approve")))?;
    ensure!(refused.contains("forbidden already"), "{refused}");
    // With the primary's return the question is over, and so are its tokens.
    site.lab().start("pg-01")?;
    both_see(&site, "nothing to be asked", |it| {
        it["asks"].is_null() && it["writes_to"] == "pg-01" && server(it, "pg-01")["answers"] == true
    })?;
    eventually("pg-02 to be synchronous", || {
        let state = site.lab().query("pg-01", "select sync_state from pg_stat_replication")?;
        Ok((state == "sync").then_some(()))
    })?;
    // A standby that was not seen to hear it says nothing by not hearing it.
    both_see(&site, "pg-02 to follow", |it| {
        server(it, "pg-02")["read_only"]["state"] == "serves"
            && !server(it, "pg-02")["streams_from"].is_null()
            && server(it, "pg-01")["sync"]["have"] == 1
    })?;
    site.lab().kill("pg-01")?;
    let second = asks()?;
    ensure!(second["veto"] != first["veto"] && second["approve"] != first["approve"]);
    let begin = Instant::now();
    site.obeys(&format!("pg approve {}", word(&second, "approve")))?;
    routes_alike(&site, "pg-02", 2)?;
    println!("approved: both balancers route to pg-02 after {:?}", begin.elapsed());
    site.finish()
}
