//! A primary whose disk is full, and which lives.

use super::{
    pair::{BOTH, both_see},
    unattended::{WATCH, unattended},
    *,
};
use crate::peers::{self, Key};

/// A lab in which the data of pg-01 are on a disk of their own, which can be full.
fn with_disk(name: &str, key: &Key) -> Result<Site> {
    let site = unattended(name, key, "automatic")?;
    let lab = site.lab();
    lab.kill("pg-02")?;
    lab.kill("pg-01")?;
    lab.give_disk("pg-01")?;
    lab.start("pg-01")?;
    lab.start("pg-02")?;
    both_see(&site, "both servers to be back", |it| {
        it["writes_to"] == "pg-01"
            && server(it, "pg-01")["sync"]["have"] == 1
            && server(it, "pg-02")["read_only"]["state"] == "serves"
    })?;
    Ok(site)
}

/// Takes away the files in which a server keeps what every new connection reads first, as a change of a catalog does,
/// and a crash. Says whether there were any.
fn forget_caches(site: &Site, host: &str) -> Result<bool> {
    let data = site.lab().data_dir().join(host);
    let databases = fs::read_dir(data.join("base"))?;
    let mut folders = vec![data.join("global")];
    for folder in databases {
        folders.push(folder?.path());
    }
    // Nobody may have connected to some.
    let gone = folders.iter().filter(|it| fs::remove_file(it.join("pg_internal.init")).is_ok());
    Ok(gone.count() > 0)
}

#[test]
fn a_primary_that_cannot_write_is_told_and_not_replaced() -> Result<()> {
    let key = Key::new("one key for both balancers\n")?;
    let site = with_disk("pg-full", &key)?;
    let lab = site.lab();
    lab.fill_disk("pg-01")?;
    both_see(&site, "the full disk to be named", |it| {
        let warnings = it["warnings"].to_string();
        warnings.contains("the primary pg-01 cannot write")
            && warnings.contains("No space left on device")
            && server(it, "pg-01")["cannot_write"].is_string()
    })?;
    let begin = Instant::now();
    while begin.elapsed() < WATCH {
        both_see(&site, "pg-01 to stay the primary", |it| it["writes_to"] == "pg-01")?;
    }
    for host in BOTH {
        let database = pair::database_of(&site, host)?;
        ensure!(database["epoch"] == 1, "{database}");
        ensure!(server(&database, "pg-02")["cannot_write"].is_null(), "{database}");
        let told = peers::obeys(&site, host, "events")?;
        ensure!(told.contains("the primary pg-01 cannot write"), "{told}");
    }
    let shown = site.obeys("pg status")?;
    ensure!(shown.contains("the primary pg-01 cannot write"), "{shown}");
    lab.free_disk("pg-01")?;
    both_see(&site, "pg-01 to write again", |it| server(it, "pg-01")["cannot_write"].is_null())?;
    let told = site.obeys("events")?;
    ensure!(told.contains("the primary pg-01 can write again"), "{told}");
    site.finish()
}

#[test]
fn a_primary_that_lets_nobody_in_for_want_of_room_is_told_and_not_replaced() -> Result<()> {
    let key = Key::new("one key for both balancers\n")?;
    let site = with_disk("pg-no-room", &key)?;
    let lab = site.lab();
    let nobody_gets_in = || {
        eventually("nobody to get in", || {
            // Who comes in between makes them anew.
            if forget_caches(&site, "pg-01")? {
                lab.fill_disk("pg-01")?;
            }
            for host in BOTH {
                let told = pair::database_of(&site, host)?["warnings"].to_string();
                if !told.contains("pg-01: no new connections: its disk takes nothing") {
                    return Ok(None);
                }
            }
            Ok(leads_to(&site, 5432).is_err().then_some(()))
        })
    };
    nobody_gets_in()?;
    both_see(&site, "the full disk to be named", |it| {
        server(it, "pg-01")["cannot_write"].is_string()
    })?;
    let refused = site.refuses("pg switchover --yes")?;
    ensure!(refused.contains("it lets nobody in"), "{refused}");
    // A daemon that begins now has no connection to it at all.
    site.daemon().kill()?;
    site.daemon().start()?;
    pair::sees(&site, HostName::Lb01, "pg-01 to be full, and to live", |it| {
        let full = server(it, "pg-01");
        full["failure_kind"] == "full"
            && full["cannot_write"].as_str().is_some_and(|it| it.contains("could not write"))
            && it["refused"].to_string().contains("pg-01 lives: its disk takes nothing")
    })?;
    peers::until_in_sync(&site)?;
    let begin = Instant::now();
    while begin.elapsed() < WATCH {
        both_see(&site, "pg-01 to stay the primary", |it| {
            it["epoch"] == 1 && it["writes_to"] == "pg-01"
        })?;
    }
    let refused = site.refuses("pg promote --yes")?;
    ensure!(refused.contains("make room on its disk, or force this"), "{refused}");
    lab.free_disk("pg-01")?;
    eventually("clients to get in again", || Ok(leads_to(&site, 5432).ok()))?;
    both_see(&site, "pg-01 to write again", |it| {
        server(it, "pg-01")["cannot_write"].is_null() && server(it, "pg-01")["answers"] == true
    })?;

    // The same once more, and a person does not wait for room.
    nobody_gets_in()?;
    both_see(&site, "the full disk to be named again", |it| {
        server(it, "pg-01")["cannot_write"].is_string() && server(it, "pg-01")["sync"]["have"] == 1
    })?;
    let said = site.obeys("pg promote --yes --force")?;
    ensure!(said.contains("as synchronous replication proves"), "{said}");
    pair::routes_alike(&site, "pg-02", 2)?;
    ensure!(leads_to(&site, 5432)? == "192.0.2.32");
    site.finish()
}
