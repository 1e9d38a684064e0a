//! `probe = "postgres"`, with a server that runs, ends, is gone, and is silent.

use std::fs;

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xtask::lab::{Options, default_config};

use crate::site::Site;

const SERVICE: &str = r#"
[[service]]
name = "db"
listen = "192.0.2.100:5440"
  [[service.backend]]
  name = "first"
  address = "192.0.2.31:5432"
  [[service.backend]]
  name = "second"
  address = "192.0.2.32:5432"
  [[service.backend]]
  name = "wrong-port"
  address = "192.0.2.31:5433"
  [service.health]
  probe = "postgres"
"#;

/// Waits until a backend is up or down for this reason.
fn until(site: &Site, backend: &str, health: &str, reason: &str) -> Result<()> {
    let what = format!("{backend} to be {health}: {reason}");
    site.until(&what, |status| {
        let backend = status.backend("db", backend);
        let said = backend["reason"].as_str().unwrap_or_default();
        backend["health"] == health && said.contains(reason)
    })
    .map(drop)
}

#[test]
fn a_server_is_asked_without_an_account() -> Result<()> {
    let config = Some(default_config() + SERVICE);
    let site =
        Site::with("pg-probe", Options { config, postgres: true, apps: 0, ..Options::default() })?;
    let lab = site.lab();
    // Neither the user nor a password for it is known there.
    until(&site, "first", "up", "PostgreSQL")?;
    until(&site, "second", "up", "PostgreSQL")?;
    until(&site, "wrong-port", "down", "connection refused")?;

    // No answer.
    lab.cut("pg-02")?;
    until(&site, "second", "down", "no answer")?;
    lab.heal("pg-02")?;
    until(&site, "second", "up", "PostgreSQL")?;

    // It ends when its last client does, and lets in nobody else.
    let stays = site.client().within(|| -> Result<_> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = runtime.block_on(async {
            let mut config = tokio_postgres::Config::new();
            config.host("192.0.2.31").port(5432).user("app").password("app").dbname("app");
            let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            Ok::<_, tokio_postgres::Error>(client)
        })?;
        Ok((runtime, client))
    })??;
    let file = lab.data_dir().join("pg-01/postmaster.pid");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let pid: i32 = text.lines().next().context("find the number")?.trim().parse()?;
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    until(&site, "first", "down", "shutting down")?;
    drop(stays);
    until(&site, "first", "down", "connection refused")?;
    lab.start("pg-01")?;
    until(&site, "first", "up", "PostgreSQL")?;
    site.finish()
}
