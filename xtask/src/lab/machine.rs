//! A machine of its own as one host of the lab: what `vagrant/` is made of.
//!
//! The network namespace that the machine lives in gets the name that the host's namespace has in a lab
//! on one machine. With that, the same code writes the same files and starts the same programs.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{
    Balancers, HostName, Lab, Options, Program, balancer, check_name, check_privilege, etcd, hosts,
    netns, postgres, teardown::Lock, topology::Role,
};
use crate::{build, setup, shell, wait};

/// How long the standby waits for the primary's machine.
const PRIMARY_LIMIT: Duration = Duration::from_mins(5);

/// What makes a machine a host of the lab.
#[derive(Debug)]
pub struct Machine {
    /// Name of the lab.
    pub name: String,
    /// Which host it is.
    pub host: HostName,
    /// Its interface in the lab's network.
    pub interface: String,
    /// The `ballast` binary, for a balancer; built if absent.
    pub ballast: Option<PathBuf>,
}

/// Makes this machine a host of the lab, and starts what the host runs: installs what is missing, adds the
/// host's addresses to the interface, and leaves the programs running. It may be repeated; after a start of
/// the machine it must be.
pub fn host(machine: Machine) -> Result<()> {
    let Machine { name, host, interface, ballast } = machine;
    check_name(&name)?;
    check_privilege()?;
    setup::install_programs(programs(host))?;
    let _lock = Lock::take(&name)?;
    let ballast = match ballast {
        None if host.role() == Role::Balancer => Some(build::ballast()?),
        ballast => ballast,
    };
    let options = Options {
        balancers: Balancers::Both,
        postgres: true,
        etcd: true,
        config: Some(config(&interface)),
        ballast,
        name,
        ..Options::default()
    };
    let lab = Lab {
        hosts: hosts(&options.name),
        options,
        tool: build::xtask()?,
        owned: false,
        guard: None,
    };
    netns::name_own(&lab.namespace(host)).context("make this machine a host of the lab")?;
    for address in [format!("{}/24", host.ipv4()), format!("{}/64", host.ipv6())] {
        let mut command = Command::new("ip");
        command.args(["address", "replace", &address, "dev", &interface]);
        if address.contains(':') {
            command.arg("nodad");
        }
        shell::output(&mut command).with_context(|| format!("add {address} to {interface}"))?;
    }
    lab.prepare_host(host)?;
    if host == postgres::PRIMARY {
        postgres::start_primary(&lab)
    } else if host.role() == Role::Postgres {
        wait_for_primary(&lab)?;
        postgres::start_standby(&lab)
    } else {
        let mut programs = lab.programs(host);
        programs.iter_mut().try_for_each(Program::spawn)?;
        programs.iter().try_for_each(Program::wait_ready)
    }
}

/// The balancers' configuration, for this interface.
fn config(interface: &str) -> String {
    let text = balancer::with_key(&balancer::config()) + &postgres::automatic() + &etcd::config();
    text.replace("interface = \"eth0\"", &format!("interface = \"{interface}\""))
}

/// What a host needs of [`setup`]'s programs.
fn programs(host: HostName) -> &'static [&'static str] {
    match host.role() {
        Role::Client => &["curl", "ip", "nsenter", "wrk"],
        Role::Balancer => &["bpftool", "etcd", "ethtool", "ip", "nsenter"],
        Role::App => &["ip", "nginx", "nsenter"],
        Role::Postgres => &[
            "ip",
            "nsenter",
            "setpriv",
            "/usr/lib/postgresql/15/bin/postgres",
            "/usr/lib/postgresql/15/bin/pg_basebackup",
        ],
        Role::Witness => &["etcd", "ip", "nsenter"],
    }
}

/// A standby is cloned from the primary, whose machine may come up after this one.
fn wait_for_primary(lab: &Lab) -> Result<()> {
    if postgres::answers(lab) {
        return Ok(());
    }
    println!("waiting for {} at {}", postgres::PRIMARY, postgres::PRIMARY.ipv4());
    let outcome = wait::until(PRIMARY_LIMIT, "the primary to answer", || {
        Ok(postgres::answers(lab).then_some(()))
    });
    if outcome.is_err() {
        bail!("{} does not answer: bring it up first", postgres::PRIMARY);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::topology::HOSTS;

    #[test]
    fn the_configuration_names_the_interface_of_both_nodes() {
        let text = config("eth1");
        assert_eq!(text.matches("interface = \"eth1\"").count(), 2);
        assert!(!text.contains("eth0"));
    }

    #[test]
    fn every_program_is_one_that_setup_knows() {
        for host in HOSTS {
            for program in programs(host) {
                assert!(setup::knows(program), "{program}");
            }
        }
    }
}
