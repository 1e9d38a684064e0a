//! An old primary becomes a standby again, by commands that are run on its host.

use std::fs;

use anyhow::{Result, ensure};
use xtask::lab::{default_config, postgres_config};

use crate::{
    postgres::{self, ask, leads_to, on, server, until},
    site::{Site, eventually},
};

fn serves_reads(site: &Site, name: &str) -> Result<()> {
    until(site, "the server to serve reads", |it| {
        server(it, name)["read_only"]["state"] == "serves"
    })
    .map(drop)
}

#[test]
fn an_old_primary_is_rewound_and_another_is_cloned() -> Result<()> {
    let site = postgres::site("rejoin", "")?;
    let lab = site.lab();
    site.write_config(&lab.with_hosts(&(default_config() + &postgres_config())))?;
    site.obeys("reload")?;
    let write = |number: u32| {
        on(site.client(), async || {
            ask(5432, &format!("create table table_{number} (number bigint)")).await
        })
    };
    write(1)?;
    eventually("pg-02 to have it", || {
        let has = lab.query_app("pg-02", "select to_regclass('public.table_1') is not null")?;
        Ok((has == "t").then_some(()))
    })?;

    // It comes back, and writes what nobody else has.
    lab.kill("pg-01")?;
    until(&site, "pg-01 to be found dead", |it| server(it, "pg-01")["failure_kind"] == "dead")?;
    site.obeys("pg promote --yes --accept-data-loss --peer-is-down lb-02")?;
    write(2)?;
    lab.start("pg-01")?;
    lab.query("pg-01", "create table diverged (number bigint)")?;
    let printed = site.obeys("pg rejoin pg-01 --print")?;
    ensure!(printed.contains("nsenter") && printed.contains("pg_rewind"), "{printed}");
    ensure!(site.refuses("pg rejoin pg-02 --yes")?.contains("pg-02 is the primary"));
    // What it copies from the primary names itself.
    lab.query("pg-02", "alter system set synchronous_standby_names = '\"pg-01\"'")?;
    lab.query("pg-02", "select pg_reload_conf()")?;
    let said = site.obeys("pg rejoin pg-01 --yes")?;
    ensure!(said.contains("ballast: it is rewound"), "{said}");
    ensure!(said.contains("a standby, and streams"), "{said}");
    serves_reads(&site, "pg-01")?;
    ensure!(lab.query("pg-01", "select to_regclass('diverged') is null")? == "t");
    ensure!(leads_to(&site, 5433)? == "192.0.2.31");
    eventually("the log to be kept for it", || {
        let slots =
            lab.query("pg-02", "select slot_name from pg_replication_slots where active")?;
        Ok((slots == "pg_01").then_some(()))
    })?;

    eventually("pg-01 to wait for itself no longer", || {
        let names = lab.query("pg-01", "show synchronous_standby_names")?;
        Ok(names.is_empty().then_some(()))
    })?;

    // The other way round, and the data of the old primary are of no use.
    write(3)?;
    lab.kill("pg-02")?;
    until(&site, "pg-02 to be found dead", |it| server(it, "pg-02")["failure_kind"] == "dead")?;
    site.obeys("pg promote --yes --accept-data-loss --peer-is-down lb-02")?;
    write(4)?;
    fs::remove_file(lab.data_dir().join("pg-02/global/pg_control"))?;
    let said = site.obeys("pg rejoin pg-02 --yes")?;
    ensure!(said.contains("ballast: it is cloned anew"), "{said}");
    serves_reads(&site, "pg-02")?;
    ensure!(leads_to(&site, 5433)? == "192.0.2.32");
    let tables = on(site.client(), async || {
        ask(5433, "select count(*) from pg_tables where tablename like 'table_%'").await
    })?;
    ensure!(tables == "4", "{tables}");
    site.finish()
}
