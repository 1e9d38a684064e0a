//! The lab's wires: namespaces, the bridge, links, addresses.

use std::{fmt::Write as _, fs, num::NonZero, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{
    HostName, Lab, netns,
    topology::{HOSTS, Role},
    xdp_pass,
};
use crate::{bpffs, interrupt, shell};

/// The bridge, in the switch's namespace.
const BRIDGE: &str = "br0";

/// No router is there to solicit, and no address to be found a duplicate of: both would only delay
/// the first packets.
const HOST_SETTINGS: [(&str, &str); 4] = [
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
];

/// Tens of thousands of short connections to one address and port within the minute that
/// TIME-WAIT lasts.
const CLIENT_SETTINGS: [(&str, &str); 2] =
    [("net/ipv4/ip_local_port_range", "1024 65535"), ("net/ipv4/tcp_tw_reuse", "1")];

/// The switch has no addresses and says nothing.
const SWITCH_SETTINGS: [(&str, &str); 1] = [("net/ipv6/conf/default/disable_ipv6", "1")];

/// Makes the namespaces and joins them.
pub(super) fn build(lab: &Lab) -> Result<()> {
    let switch = lab.switch();
    netns::add(&switch)?;
    set(&switch, &SWITCH_SETTINGS)?;
    for host in HOSTS {
        interrupt::check()?;
        netns::add(&lab.namespace(host))?;
        set(&lab.namespace(host), &HOST_SETTINGS)?;
        if host.role() == Role::Client {
            set(&lab.namespace(host), &CLIENT_SETTINGS)?;
        }
    }
    batch(&switch, &switch_commands(lab)).context("build the switch")?;
    learn(&switch).context("tell the switch who is where")?;
    let balancers = HOSTS.into_iter().filter(|host| host.role() == Role::Balancer);
    let ports: Vec<String> = balancers.map(HostName::port).collect();
    for port in &ports {
        xdp_pass::plain_frames(&switch, port)?;
        queue(&switch, port)?;
    }
    xdp_pass::attach(&switch, &ports, &Path::new(bpffs::MOUNT_POINT).join(&switch))?;
    for host in HOSTS {
        interrupt::check()?;
        batch(&lab.namespace(host), &host_commands(host))
            .with_context(|| format!("wire {host}"))?;
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get).min(32);
        steer(&lab.namespace(host), u32::MAX >> (32 - cpus))?;
    }
    Ok(())
}

/// Gives a switch port towards a balancer a queue, as a switch has one.
///
/// An interface with an XDP program takes packets from a veth through a ring of 256, and what finds the
/// ring full is dropped, unless a queue discipline is there to hold it back.
fn queue(switch: &str, port: &str) -> Result<()> {
    let mut command = netns::command(switch, "tc");
    command.args(["qdisc", "replace", "dev", port, "root", "pfifo", "limit", "10000"]);
    shell::output(&mut command).map(drop)
}

/// Gives all packets of a connection to one CPU of the host, as a network card does (RPS).
///
/// A veth alone takes a packet on whichever CPU sent it. Two packets of a connection that arrive at
/// once can then find its socket between two tables (kernels up to 6.18, `inet_ehash_insert`), and the
/// host resets a connection that has only just begun.
///
/// `mask` has a bit for each CPU that may be chosen.
pub(super) fn steer(namespace: &str, mask: u32) -> Result<()> {
    // `ip netns exec`, because it mounts a `/sys` that shows the namespace.
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "sh", "-c"]);
    command.arg(format!("echo {mask:x} > /sys/class/net/eth0/queues/rx-0/rps_cpus"));
    shell::output(&mut command).map(drop)
}

/// Takes a port of the switch `up` or `down`.
pub(super) fn set_port(lab: &Lab, host: HostName, state: &str) -> Result<()> {
    let mut command = netns::command(&lab.switch(), "ip");
    command.args(["link", "set", "dev", &host.port(), state]);
    shell::output(&mut command).map(drop)
}

/// Whether the host's port of the switch is up.
pub(super) fn port_is_up(lab: &Lab, host: HostName) -> Result<bool> {
    netns::within(&lab.switch(), || {
        // Bit 0 is IFF_UP. Under /sys one would see the wrong namespace.
        let mut command = Command::new("ip");
        command.args(["-o", "link", "show", "dev", &host.port()]);
        let text = shell::output(&mut command)?;
        let flags = text.split(['<', '>']).nth(1).unwrap_or_default();
        Ok(flags.split(',').any(|flag| flag == "UP"))
    })?
}

fn switch_commands(lab: &Lab) -> String {
    let mut text = format!(
        "link add {BRIDGE} address 02:00:00:00:02:00 type bridge forward_delay 0 mcast_snooping 0\n\
         link set {BRIDGE} up\n"
    );
    for host in HOSTS {
        let (port, port_mac, mac) = (host.port(), host.port_mac(), host.mac());
        let namespace = lab.namespace(host);
        let _ = write!(
            text,
            "link add {port} address {port_mac} type veth \
             peer name eth0 address {mac} netns {namespace}\n\
             link set {port} master {BRIDGE} up\n"
        );
    }
    text
}

/// Tells the switch for good which host is at which port.
///
/// A switch that does not know, as after a cable was pulled, sends a frame to everybody. Network cards leave
/// aside what is for others; a veth does not, and hands it to the other balancer's program.
fn learn(switch: &str) -> Result<()> {
    let mut text = String::new();
    for host in HOSTS {
        let (mac, port) = (host.mac(), host.port());
        let _ = writeln!(text, "fdb replace {mac} dev {port} master static");
    }
    let mut command = netns::command(switch, "bridge");
    command.args(["-batch", "-"]);
    shell::output_of(&mut command, &text).map(drop)
}

fn host_commands(host: HostName) -> String {
    let (ipv4, ipv6) = (host.ipv4(), host.ipv6());
    format!(
        "link set lo up\n\
         address add {ipv4}/24 brd + dev eth0\n\
         address add {ipv6}/64 dev eth0 nodad\n\
         link set eth0 up\n"
    )
}

fn batch(namespace: &str, commands: &str) -> Result<()> {
    let mut command = netns::command(namespace, "ip");
    command.args(["-batch", "-"]);
    shell::output_of(&mut command, commands).map(drop)
}

/// Sets kernel parameters in a namespace.
pub(super) fn set(namespace: &str, settings: &[(&str, &str)]) -> Result<()> {
    // /proc/sys/net shows the namespace of the thread that looks.
    netns::within(namespace, || {
        settings.iter().try_for_each(|(key, value)| {
            let file = Path::new("/proc/sys").join(key);
            fs::write(&file, value).with_context(|| format!("set {key} in {namespace}"))
        })
    })?
}
