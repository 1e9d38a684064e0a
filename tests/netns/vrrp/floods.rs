//! A switch that does not know where a node is brings its frames to the other node as well.

use std::process::Command;

use anyhow::{Result, ensure};
use xtask::{lab::HostName, shell};

use super::pair::Pair;
use crate::{config::web, load::Load, site::number};

#[test]
fn a_backup_begins_nothing_of_what_a_flooding_switch_brings() -> Result<()> {
    let pair = Pair::up("floods", &[])?;
    let (mac, port) = (HostName::Lb01.mac(), HostName::Lb01.port());
    pair.lab().within_switch(|| -> Result<()> {
        for words in [
            format!("link set dev {port} learning off"),
            format!("fdb del {mac} dev {port} master"),
        ] {
            shell::output(Command::new("bridge").args(words.split_whitespace()))?;
        }
        Ok(())
    })??;
    let load = Load::http_requests(pair.host(HostName::Client), 4, 50, web());
    load.end().ensure_none_failed()?;
    let (active, backup) = (pair.status(HostName::Lb01)?, pair.status(HostName::Lb02)?);
    let begun = |status: &serde_json::Value| {
        let services = status["services"].as_array().expect("a list of services");
        let web = services.iter().find(|service| service["name"] == "web");
        number(&web.expect("the service")["connections"])
    };
    ensure!(begun(&active) >= 200, "{active}");
    ensure!(begun(&backup) == 0, "the Backup began {} connections", begun(&backup));
    let reasons = &backup["reasons"];
    ensure!(number(&reasons["other_host"]) >= 200, "{reasons}");
    ensure!(active["reasons"]["other_host"].is_null(), "{}", active["reasons"]);
    pair.finish()
}
