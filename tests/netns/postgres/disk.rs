//! A primary whose disk is full, and which lives.

use super::{
    pair::{BOTH, both_see},
    unattended::{WATCH, unattended},
    *,
};
use crate::peers::{self, Key};

#[test]
fn a_primary_that_cannot_write_is_told_and_not_replaced() -> Result<()> {
    let key = Key::new("one key for both balancers\n")?;
    let site = unattended("pg-full", &key, "automatic")?;
    let lab = site.lab();
    // Its data move to a disk of their own, which can be full.
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
