//! `vagrant/`: the lab of virtual machines. None is started here; what they do is, in namespaces.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use xtask::{
    build,
    lab::{self, Balancers, Lab, Options, topology::HOSTS},
    shell,
};

use crate::{
    config::web,
    http,
    postgres::{ask, on},
    site::{ensure_gone, eventually, unique},
};

#[test]
fn the_vagrantfile_is_valid_and_has_the_hosts_of_the_lab() -> Result<()> {
    let folder = build::workspace().join("vagrant");
    let home = std::env::temp_dir().join(unique("vagrant"));
    fs::create_dir_all(&home).context("make a home for vagrant")?;
    let mut command = Command::new("vagrant");
    command.args(["validate", "--ignore-provider"]).current_dir(&folder);
    command.env("VAGRANT_HOME", &home).env("VAGRANT_DOTFILE_PATH", home.join("state"));
    command.env("VAGRANT_CHECKPOINT_DISABLE", "1");
    let outcome = shell::output(&mut command);
    fs::remove_dir_all(&home).context("remove vagrant's home")?;
    outcome?;

    let text = fs::read_to_string(folder.join("Vagrantfile")).context("read the Vagrantfile")?;
    let mut listed: Vec<(&str, u8)> = text
        .lines()
        .filter_map(|line| {
            let (name, number) = line.trim().strip_suffix(',')?.split_once(" => ")?;
            Some((name.trim_matches('"'), number.parse().ok()?))
        })
        .collect();
    listed.sort_unstable_by_key(|(_, number)| *number);
    let hosts = HOSTS.map(|host| (host.as_str(), host.number()));
    ensure!(listed == hosts, "the Vagrantfile has {listed:?}");
    Ok(())
}

/// What `provision.sh` does in each machine, in the namespaces of a lab in which nothing runs.
#[test]
fn machines_become_the_hosts_of_a_lab() -> Result<()> {
    let options = Options {
        name: unique("wires"),
        balancers: Balancers::None,
        apps: 0,
        ..Options::default()
    };
    let wires = Lab::up(options)?;
    let name = unique("machines");
    let provision = |host: &str| {
        let mut command = wires.host(host).command(build::xtask()?);
        command.args(["lab", "host", host, "--interface", "eth0", "--name", &name]);
        command.arg("--ballast").arg(build::ballast()?);
        shell::output(&mut command).with_context(|| format!("make a machine {host}"))
    };
    let outcome = (|| {
        for host in ["pg-01", "pg-02", "app-01", "app-02", "witness", "lb-01"] {
            provision(host)?;
        }
        // Again, as at each boot.
        for host in ["pg-01", "pg-02", "app-01", "witness", "lb-01"] {
            provision(host)?;
        }
        let client = wires.host("client");
        eventually("answers through the floating address", || {
            let answer = client.within(|| http::get(web(), "/id"))?;
            Ok(answer.is_ok_and(|name| name.starts_with("app-0")).then_some(()))
        })?;
        // Two of three members of etcd are enough.
        eventually("the database to answer through it", || {
            let server = on(client, async || ask(5432, "select host(inet_server_addr())").await);
            Ok(server.ok().filter(|address| address == "192.0.2.31"))
        })
        .map(drop)
    })();
    // Of the machines' own lab there are processes, names and files, and nothing that stands.
    let down = lab::down(&name);
    outcome?;
    down?;
    ensure_gone(&name)?;
    let gone = wires.state_dir();
    wires.down()?;
    ensure!(!gone.exists(), "{} is left", gone.display());
    Ok(())
}
