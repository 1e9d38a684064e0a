//! Puts floating addresses on an interface and takes them off.
//!
//! They are marked with a protocol number of our own (`IFA_PROTO`, Linux 5.18; older kernels ignore
//! it), so that those that a crash left behind can be told from the host's own.
//!
//! An IPv6 address is added without duplicate address detection: it would stay unusable for a second,
//! and a takeover is meant to happen while others may still hold it. It is also marked as deprecated
//! (RFC 4862 §5.5.4: not chosen as a source for new connections), so that the host's own connections,
//! health checks among them, do not break when the address moves. IPv4 needs no such mark: an address
//! beside another of its subnet is secondary, and the kernel chooses the first.

use std::{fs, io, net::IpAddr, path::PathBuf};

use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, CacheInfo,
};
use tracing::warn;

use crate::net::{
    Error,
    netlink::{Address, Link, Netlink},
};

/// The mark of our addresses: `proto 0xba` in `ip -details address`.
pub const PROTOCOL: u8 = 0xba;

/// Takes off the addresses with our mark that are not among `keep`: those that an earlier daemon, with
/// another configuration, left behind. Returns them.
///
/// `keep` must hold the addresses of all floating blocks on the interface.
pub async fn remove_stale(
    interface: &str,
    keep: &[(IpAddr, u8)],
) -> Result<Vec<(IpAddr, u8)>, Error> {
    let netlink = Netlink::open()?;
    let link = netlink.link(interface).await?;
    let mut removed = Vec::new();
    for Address { ip: address, prefix, protocol, .. } in netlink.addresses(link.ifindex).await? {
        if protocol == Some(PROTOCOL) && !keep.contains(&(address, prefix)) {
            remove(&netlink, &link, address, prefix).await?;
            removed.push((address, prefix));
        }
    }
    Ok(removed)
}

/// Adds an address; one that is there already is no error.
pub(super) async fn add(
    netlink: &Netlink,
    link: &Link,
    address: IpAddr,
    prefix: u8,
) -> Result<(), Error> {
    let mut request = netlink.handle().address().add(link.ifindex, address, prefix);
    let attributes = &mut request.message_mut().attributes;
    attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
    if address.is_ipv6() {
        attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        let mut lifetime = CacheInfo::default();
        // No preferred life makes it deprecated; the greatest number means for ever.
        lifetime.ifa_valid = u32::MAX;
        attributes.push(AddressAttribute::CacheInfo(lifetime));
    }
    match request.execute().await {
        Ok(()) => Ok(()),
        Err(error) => match Error::from_request("add an address", &error) {
            error if error.code() == Some(libc::EEXIST) => Ok(()),
            error => Err(error),
        },
    }
}

/// Removes an address; one that is not there, or whose interface is gone, is no error.
pub(super) async fn remove(
    netlink: &Netlink,
    link: &Link,
    address: IpAddr,
    prefix: u8,
) -> Result<(), Error> {
    let _kept = match address {
        IpAddr::V4(_) => KeepSecondaries::on(&link.name),
        IpAddr::V6(_) => None,
    };
    let message = message(netlink, link.ifindex, address, prefix);
    match netlink.handle().address().del(message).execute().await {
        Ok(()) => Ok(()),
        Err(error) => match Error::from_request("remove an address", &error) {
            error if matches!(error.code(), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) => Ok(()),
            error => Err(error),
        },
    }
}

fn message(netlink: &Netlink, ifindex: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    netlink.handle().address().add(ifindex, address, prefix).message_mut().clone()
}

/// While it lives, the IPv4 addresses of a subnet outlive the first of them.
///
/// A floating address that was added before the host's own of the same subnet is the first one, and
/// by default the kernel removes all others with it. Releasing it must not cut the host off.
struct KeepSecondaries {
    setting: PathBuf,
    before: Vec<u8>,
}

impl KeepSecondaries {
    fn on(interface: &str) -> Option<Self> {
        let directory = PathBuf::from("/proc/sys/net/ipv4/conf").join(interface);
        let setting = directory.join("promote_secondaries");
        let change = || -> io::Result<Option<Vec<u8>>> {
            let before = fs::read(&setting)?;
            if before.starts_with(b"1") {
                return Ok(None);
            }
            fs::write(&setting, "1")?;
            Ok(Some(before))
        };
        match change() {
            Ok(before) => before.map(|before| Self { setting, before }),
            Err(error) => {
                if directory.exists() {
                    let setting = setting.display();
                    warn!(%error, %setting, "other addresses may go with a floating one");
                }
                None
            }
        }
    }
}

impl Drop for KeepSecondaries {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.setting, &self.before) {
            warn!(%error, setting = %self.setting.display(), "a changed setting stays");
        }
    }
}
