//! App servers that answer the clients by themselves: for services with `direct` and `tunnel`.
//!
//! They have the floating addresses on `lo` and say nothing of them by ARP, and `ballast decap` takes
//! packets out of tunnels on their `eth0`. The wires between balancers and app servers carry longer
//! packets than the clients', so that what a tunnel adds fits.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{
    HostName, Lab, netns,
    network::set,
    topology::{FLOATING_V4, FLOATING_V6, HOSTS, Role},
    xdp_pass,
};
use crate::{bpffs, shell};

/// Bytes of the longest packet between balancers and app servers: 1500 and what any tunnel adds.
pub const LONG_MTU: u32 = 1600;

/// The host answers ARP only for addresses of the interface that is asked, and names none of another.
const APP_SETTINGS: [(&str, &str); 2] =
    [("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2")];

/// Makes the wires longer, and the app servers ready.
pub(super) fn prepare(lab: &Lab) -> Result<()> {
    let switch = lab.switch();
    for host in HOSTS.into_iter().filter(|it| matches!(it.role(), Role::Balancer | Role::App)) {
        ip(&switch, &format!("link set dev {} mtu {LONG_MTU}", host.port()))?;
        ip(&lab.namespace(host), &format!("link set dev eth0 mtu {LONG_MTU}"))?;
    }
    for host in HOSTS.into_iter().filter(|host| host.role() == Role::App) {
        let namespace = lab.namespace(host);
        set(&namespace, &APP_SETTINGS)?;
        ip(&namespace, &format!("address replace {FLOATING_V4}/32 dev lo"))?;
        ip(&namespace, &format!("address replace {FLOATING_V6}/128 dev lo nodad"))?;
        // A veth hands sums on to its peer that nobody has computed yet; the XDP program there would
        // take the mark away that says so.
        xdp_pass::plain_frames(&switch, &host.port())?;
        let mut command = decap_command(lab, host);
        shell::output(&mut command).with_context(|| format!("run ballast decap on {host}"))?;
    }
    Ok(())
}

/// `ballast decap` of an app server; it may be given more arguments.
pub(super) fn decap_command(lab: &Lab, host: HostName) -> std::process::Command {
    let mut command = netns::command(&lab.namespace(host), lab.ballast());
    command.args(["decap", "--interface", "eth0", "--pin-dir"]).arg(pin_dir(lab, host));
    command
}

fn pin_dir(lab: &Lab, host: HostName) -> PathBuf {
    Path::new(bpffs::MOUNT_POINT).join(lab.namespace(host))
}

fn ip(namespace: &str, words: &str) -> Result<()> {
    let mut command = netns::command(namespace, "ip");
    command.args(words.split(' '));
    shell::output(&mut command).map(drop)
}
