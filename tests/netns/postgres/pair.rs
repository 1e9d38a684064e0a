//! Two balancers that agree about the database over their channel.

use super::{figures::repeated, *};
use crate::peers::{self, Key};

pub(super) const BOTH: [HostName; 2] = [HostName::Lb01, HostName::Lb02];

/// A lab whose two balancers have the same key and have found the primary.
pub(super) fn pair(name: &str, key: &Key) -> Result<Site> {
    let config = peers::config(key) + &postgres_config();
    let site = Site::with(
        name,
        Options {
            config: Some(config),
            postgres: true,
            apps: 0,
            balancers: Balancers::Both,
            ..Options::default()
        },
    )?;
    both_see(&site, "pg-01 to be the primary", |it| {
        it["writes_to"] == "pg-01" && server(it, "pg-02")["read_only"]["state"] == "serves"
    })?;
    peers::until_in_sync(&site)?;
    Ok(site)
}

pub(super) fn database_of(site: &Site, host: HostName) -> Result<Value> {
    let all: Value = serde_json::from_str(&peers::obeys(site, host, "pg status --json")?)?;
    Ok(all[0].clone())
}

pub(super) fn sees(
    site: &Site,
    host: HostName,
    what: &str,
    so: impl Fn(&Value) -> bool,
) -> Result<Value> {
    eventually(&format!("{what}, as {host} sees it"), || {
        let database = database_of(site, host)?;
        Ok(so(&database).then_some(database))
    })
}

pub(super) fn both_see(site: &Site, what: &str, so: impl Fn(&Value) -> bool) -> Result<()> {
    for host in BOTH {
        sees(site, host, what, &so)?;
    }
    Ok(())
}

/// Both have the same record, and route alike.
pub(super) fn routes_alike(site: &Site, primary: &str, epoch: u64) -> Result<()> {
    both_see(site, &format!("{primary} to be the primary of epoch {epoch}"), |it| {
        it["writes_to"] == primary && it["epoch"] == epoch && it["phase"] == "serving"
    })?;
    eventually("both to route alike", || {
        let [one, two] = BOTH.map(|host| database_of(site, host));
        let (one, two) = (one?, two?);
        let alike = ["pg-01", "pg-02"].into_iter().all(|name| {
            ["read_write", "read_only"].into_iter().all(|service| {
                server(&one, name)[service]["state"] == server(&two, name)[service]["state"]
            })
        });
        Ok(alike.then_some(()))
    })
}

#[test]
fn a_change_needs_no_word_of_the_operator_while_both_balancers_live() -> Result<()> {
    let key = Key::new("one key for both balancers\n")?;
    let site = pair("pg-pair", &key)?;
    let writer = Writer::start(&site)?;
    site.obeys("pg switchover --yes")?;
    writer.more(50)?;
    let acknowledged = writer.end()?;
    println!("switchover: longest pause {:?}", gap(&acknowledged));
    ensure!(missing(&site, &acknowledged)?.is_empty(), "{:?}", missing(&site, &acknowledged)?);
    routes_alike(&site, "pg-02", 2)?;
    ensure!(leads_to(&site, 5432)? == "192.0.2.32");
    let told = peers::obeys(&site, HostName::Lb02, "events")?;
    ensure!(told.contains("lb-01 changes the primary"), "{told}");
    for host in BOTH {
        let database = database_of(&site, host)?;
        ensure!(server(&database, "pg-01")["read_only"]["state"] == "barred", "{database}");
    }
    site.finish()
}

#[test]
fn a_balancer_that_is_silent_is_named_before_anything_changes() -> Result<()> {
    let key = Key::new("one key for both balancers\n")?;
    let site = pair("pg-agree", &key)?;
    // A peer that is silent is named at once, and nothing has changed.
    site.lab().daemon("lb-02").kill()?;
    eventually("lb-02 to be silent", || {
        Ok((site.status()?.0["peers"][0]["up"] == false).then_some(()))
    })?;
    let refused = site.refuses("pg switchover --yes")?;
    ensure!(
        refused.contains("lb-02 is silent") && refused.contains("--peer-is-down lb-02"),
        "{refused}"
    );
    let database = database(&site)?;
    ensure!(database["writes_to"] == "pg-01" && database["revision"] == 1, "{database}");
    site.lab().daemon("lb-02").start()?;
    peers::until_in_sync(&site)?;
    site.finish()
}

/// From Enter to the first write.
fn promote_by_hand() -> Result<Duration> {
    let key = Key::new("one key for both balancers\n")?;
    let site = pair("pg-hand", &key)?;
    make_synchronous(&site)?;
    both_see(&site, "synchronous replication to be seen", |it| {
        it["servers"][0]["detail"]["standbys"][0]["sync_state"] == "sync"
    })?;
    let writer = Writer::start(&site)?;
    site.lab().kill("pg-01")?;
    both_see(&site, "pg-01 to be found dead", |it| {
        server(it, "pg-01")["failure_kind"] == "dead" && server(it, "pg-02")["answers"] == true
    })?;
    let begin = Instant::now();
    let said = site.obeys("pg promote --yes")?;
    let told = begin.elapsed();
    ensure!(said.contains("as synchronous replication proves"), "{said}");
    writer.more(50)?;
    let acknowledged = writer.end()?;
    let first = acknowledged.iter().find(|(_, at)| *at > begin).context("find a write")?.1;
    println!("from Enter to the answer {told:?}, to the first write {:?}", first - begin);
    ensure!(missing(&site, &acknowledged)?.is_empty(), "{:?}", missing(&site, &acknowledged)?);
    routes_alike(&site, "pg-02", 2)?;
    site.finish()?;
    Ok(first - begin)
}

#[test]
fn one_command_and_writes_go_on() -> Result<()> {
    repeated("promotion by hand, from Enter to the first write", promote_by_hand)
}

#[test]
fn a_balancer_that_was_off_learns_of_the_new_primary() -> Result<()> {
    let key = Key::new("one key for both balancers\n")?;
    let site = pair("pg-off", &key)?;
    site.lab().daemon("lb-02").kill()?;
    eventually("lb-02 to be silent", || {
        Ok((site.status()?.0["peers"][0]["up"] == false).then_some(()))
    })?;
    site.obeys("pg switchover --yes --peer-is-down lb-02")?;
    ensure!(leads_to(&site, 5432)? == "192.0.2.32");
    site.lab().daemon("lb-02").start()?;
    routes_alike(&site, "pg-02", 2)?;
    site.finish()
}
