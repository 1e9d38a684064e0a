//! Netlink: interfaces, routes and neighbours.
//!
//! The kernel program forwards to a MAC address that stands in the backend's entry; it never asks the
//! kernel's routing table. This module finds that address and follows its changes.
//!
//! - `netlink` opens sockets and asks; it turns the kernel's messages into ours.
//! - `table` is what is known of links, neighbours and routes, and the next hops that follow; pure.
//! - `follow` is the task that keeps the table true.
//! - `macs` is the task that keeps this node's MAC addresses known.
//! - `inject` sends whole frames, and `rst` makes those of resets.
//!
//! Sockets belong to the network namespace of the thread that opens them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use anyhow::Context as _;
use tokio::{sync::watch, task::JoinHandle};

mod follow;
pub mod inject;
mod macs;
pub(crate) mod netlink;
pub mod rst;
mod table;
pub(crate) mod unsent;

pub use netlink::Error;
use netlink::Netlink;

/// How packets get to an address on the next link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Interface that the route names.
    pub ifindex: u32,
    /// MAC address of that interface.
    pub source_mac: [u8; 6],
    /// MAC address of the destination or of its gateway; `None` until it has answered.
    pub mac: Option<[u8; 6]>,
    /// Longest IP packet that the interface takes, bytes.
    pub mtu: u32,
    /// The address of ours that the kernel would write as the source of packets to it.
    pub source: Option<IpAddr>,
}

/// The next hop of each wanted address that has a route.
pub type NextHops = BTreeMap<IpAddr, NextHop>;

/// Starts the task that keeps the next hops of `wanted` known: it looks up routes, makes the kernel
/// resolve neighbours, and follows netlink's announcements of routes, links and neighbours, so that
/// a changed MAC address is seen at once.
///
/// An address of this host, or one that no Ethernet interface leads to, has no next hop. The receiver
/// is told only of changes; it starts empty. The task ends when the sender of `wanted` or all
/// receivers are gone. Call it within a tokio runtime.
pub fn watch_next_hops(
    wanted: watch::Receiver<BTreeSet<IpAddr>>,
) -> anyhow::Result<(watch::Receiver<NextHops>, JoinHandle<()>)> {
    // Opened here, so that a refusal is the caller's, and in the caller's namespace.
    let sockets = follow::Sockets::open().context("open netlink sockets")?;
    let (sender, receiver) = watch::channel(NextHops::new());
    Ok((receiver, tokio::spawn(follow::run(sockets, wanted, sender))))
}

/// The MAC addresses of this node's Ethernet interfaces: those on which packets are forwarded, and those upon
/// them (VLANs, bonds, bridges, macvlans).
pub type Macs = BTreeSet<[u8; 6]>;

/// Starts the task that keeps them known. The receiver is told only of changes; it starts empty. The task ends
/// when all receivers are gone. Call it within a tokio runtime.
pub fn watch_macs() -> anyhow::Result<(watch::Receiver<Macs>, JoinHandle<()>)> {
    let sockets = macs::Sockets::open().context("open netlink sockets")?;
    let (sender, receiver) = watch::channel(Macs::new());
    Ok((receiver, tokio::spawn(macs::run(sockets, sender))))
}

/// An Ethernet interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Whether it is switched on and its carrier is there.
    pub up: bool,
    /// Bytes of the longest IP packet.
    pub mtu: u32,
}

/// Looks an interface up. It is an error if there is none of that name, or if it is not Ethernet.
pub async fn interface(name: &str) -> Result<Interface, Error> {
    let link = Netlink::open()?.link(name).await?;
    let mac = link.mac.ok_or_else(|| Error::NotEthernet(name.into()))?;
    Ok(Interface { name: link.name, ifindex: link.ifindex, mac, up: link.running, mtu: link.mtu })
}

/// The addresses of an interface, with their prefix lengths.
pub async fn addresses(name: &str) -> Result<Vec<(IpAddr, u8)>, Error> {
    let netlink = Netlink::open()?;
    let ifindex = netlink.link(name).await?.ifindex;
    let addresses = netlink.addresses(ifindex).await?;
    Ok(addresses.into_iter().map(|address| (address.ip, address.prefix)).collect())
}

/// Writes a MAC address the way people do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}
