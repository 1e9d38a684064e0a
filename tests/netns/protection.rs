//! Who may connect, and how often: by lists and rates, over a reload and a restart.

use std::{io::ErrorKind, net::TcpStream, time::Duration};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::HostName;

use crate::{
    config::{self, APPS, Service, web, web6},
    http::Connection,
    load::Load,
    site::{Site, number},
};

/// Long enough for a SYN and some more, on a busy machine too.
const SHORT: Duration = Duration::from_secs(3);

fn with(keys: &[&str]) -> String {
    let web = keys.iter().fold(Service::web("web", web(), &APPS), |web, key| web.key(key));
    config::text(&[web, Service::web("web6", web6(), &APPS)])
}

fn reload(site: &Site, keys: &[&str]) -> Result<()> {
    site.write_config(&with(keys))?;
    site.obeys("reload")?;
    Ok(())
}

fn is_denied(site: &Site) -> Result<bool> {
    let connected = site.client().within(|| TcpStream::connect_timeout(&web(), SHORT))?;
    match connected {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(true),
        Err(error) => Err(error).context("connect"),
    }
}

#[test]
fn lists_decide_about_new_connections_and_survive_a_restart() -> Result<()> {
    let site = Site::up("lists", with(&[]))?;
    let client = HostName::Client.ipv4();
    let mut open = Connection::to(site.client(), web(), "app-01")?;
    ensure!(!is_denied(&site)?);

    let deny = format!("deny = [\"{client}\"]");
    reload(&site, &[&deny])?;
    ensure!(is_denied(&site)?, "a denied client can connect");
    let status = site.status()?;
    ensure!(status.reason("denied") > 0 && number(&status.service("web")["refused"]) > 0);
    // What is open goes on; other services do not know the list.
    ensure!(open.get("/id")? == "app-01", "a connection of a denied client is broken");
    Load::http_requests(site.client(), 2, 50, web6()).end().ensure_none_failed()?;

    site.daemon().kill()?;
    ensure!(is_denied(&site)?, "the list is gone with the daemon");
    site.daemon().start()?;
    site.settled()?;
    ensure!(is_denied(&site)?, "the list is gone after a restart");

    // The smaller network decides.
    let allow = "allow = [\"192.0.2.0/24\"]";
    reload(&site, &[allow, &deny])?;
    ensure!(is_denied(&site)?);
    reload(&site, &[allow])?;
    ensure!(!is_denied(&site)?, "an allowed client cannot connect");
    reload(&site, &["allow = [\"198.51.100.0/24\"]"])?;
    ensure!(is_denied(&site)?, "a client that is not allowed can connect");
    reload(&site, &[])?;
    ensure!(!is_denied(&site)?, "a list is left behind");
    ensure!(open.get("/id")? == "app-01");
    site.finish()
}

#[test]
fn a_source_begins_no_more_connections_than_its_rate() -> Result<()> {
    let site = Site::up("rates", with(&["source_rate = 1", "source_burst = 5"]))?;
    let mut open = Vec::new();
    while open.len() < 100 {
        let connected = site.client().within(|| TcpStream::connect_timeout(&web(), SHORT / 6))?;
        match connected {
            Ok(stream) => open.push(stream),
            Err(error) if error.kind() == ErrorKind::TimedOut => break,
            Err(error) => return Err(error).context("connect"),
        }
    }
    ensure!(open.len() >= 5, "only {} connections at once", open.len());
    ensure!(open.len() < 100, "there is no limit");
    ensure!(site.status()?.reason("rate_limited") > 0);
    let told = site.until("the limit to be told", |status| {
        status.warnings().contains("more connections than")
    })?;
    ensure!(told.warnings().contains("web"), "{}", told.warnings());
    // Another service has a limit of its own: none.
    Load::http_requests(site.client(), 2, 50, web6()).end().ensure_none_failed()?;
    // The rate goes on, and a reload without the limit ends it.
    ensure!(site.client().within(|| TcpStream::connect_timeout(&web(), SHORT * 4))?.is_ok());
    reload(&site, &[])?;
    Load::http_requests(site.client(), 2, 50, web()).end().ensure_none_failed()?;
    site.finish()
}
