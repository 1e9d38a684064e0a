//! `LEASES`: until when this node may answer for its floating addresses, and until when packets may go to
//! the servers of databases whose primary may change without a person.
//!
//! The thread of VRRP writes here with every advert. It has its own hold on the map, so that it never
//! waits for whoever writes to the other tables.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    lease::{Lease, LeaseKey},
    names,
};

use super::{Options, pinned, pins};
use crate::{clock, control::kernel::Gates, vrrp::router::Leases};

/// How long after this node has taken an address another one may still tell of its connections: that it was
/// handed over with a batch on the way, or that its daemon is on its way back and sends all it knows.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// The leases in the kernel's map.
#[derive(Debug)]
pub struct KernelLeases(Mutex<HashMap<MapData, LeaseKey, Lease>>);

impl KernelLeases {
    pub(super) fn open(pins: &Path) -> anyhow::Result<Self> {
        let map = Map::HashMap(pinned(pins, names::LEASES)?);
        Ok(Self(Mutex::new(map.try_into().context("open LEASES")?)))
    }

    /// The leases that a daemon before this one left, while its program is still on the interface. None if there
    /// are none of this version, or they are to be thrown away.
    pub fn left(options: &Options, ifindex: u32) -> anyhow::Result<Option<Self>> {
        if options.discard_pins || !pins::is_left(options, names::LEASES, ifindex)? {
            return Ok(None);
        }
        Self::open(&options.pins).map(Some)
    }

    /// Writes what follows the lease of each address.
    fn change(&self, addresses: &[IpAddr], next: impl Fn(Lease) -> Lease) -> anyhow::Result<()> {
        let mut map = self.lock();
        for &address in addresses {
            let before = map.get(&key(address), 0).unwrap_or(Lease::ZERO);
            map.insert(key(address), next(before), 0).context("write LEASES")?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MapData, LeaseKey, Lease>> {
        // Each call is whole or has not happened.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gates for KernelLeases {
    fn extend(&self, servers: &[SocketAddr], until: Duration) -> anyhow::Result<()> {
        let until_ns = until.as_nanos() as u64;
        let mut map = self.lock();
        for server in servers {
            let key = LeaseKey::backend(&key(server.ip()).address, server.port());
            map.insert(key, Lease { until_ns, ..Lease::ZERO }, 0).context("write LEASES")?;
        }
        Ok(())
    }
}

impl Leases for KernelLeases {
    fn set(&self, addresses: &[IpAddr], until: Option<Duration>) -> anyhow::Result<()> {
        let now = clock::monotonic();
        self.change(addresses, |before| next(before, until, now))
    }

    fn give_away(&self, addresses: &[IpAddr], until: Duration) -> anyhow::Result<()> {
        let now = clock::monotonic();
        self.change(addresses, |before| Lease { given_away: 1, ..next(before, Some(until), now) })
    }

    fn end_given_away(&self, addresses: &[IpAddr]) -> anyhow::Result<()> {
        let mut map = self.lock();
        for key in addresses.iter().copied().map(key) {
            if let Ok(left) = map.get(&key, 0)
                && left.given_away != 0
            {
                map.insert(key, Lease { until_ns: 0, ..left }, 0).context("write LEASES")?;
            }
        }
        Ok(())
    }

    fn get(&self, addresses: &[IpAddr]) -> Option<Duration> {
        let map = self.lock();
        let until = |address: &IpAddr| goes_on(map.get(&key(*address), 0).ok()?);
        let until: Option<Vec<u64>> = addresses.iter().map(until).collect();
        until?.into_iter().min().map(Duration::from_nanos)
    }

    fn keep(&self, addresses: &[IpAddr]) -> anyhow::Result<()> {
        let mut map = self.lock();
        let kept: Vec<LeaseKey> = addresses.iter().map(|address| key(*address)).collect();
        let there: Vec<LeaseKey> = map.keys().collect::<Result<_, _>>().context("read LEASES")?;
        let ended = |key: &LeaseKey| !key.is_backend() && !kept.contains(key);
        for key in there.into_iter().filter(ended) {
            map.remove(&key).context("write LEASES")?;
        }
        Ok(())
    }
}

/// Until when a lease lasts with which a daemon that is started may go on.
fn goes_on(left: Lease) -> Option<u64> {
    (left.given_away == 0).then_some(left.until_ns)
}

/// The lease that follows `before`.
fn next(before: Lease, until: Option<Duration>, now: Duration) -> Lease {
    let was_closed = before.until_ns <= now.as_nanos() as u64;
    let told_ns = match until {
        Some(_) if was_closed => (now + TOLD_WITHIN).as_nanos() as u64,
        _ => before.told_ns,
    };
    Lease { until_ns: until.map_or(0, |until| until.as_nanos() as u64), told_ns, given_away: 0 }
}

fn key(address: IpAddr) -> LeaseKey {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    LeaseKey { address: address.octets() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn only_who_takes_an_address_waits_to_be_told() {
        let taken = next(Lease::ZERO, Some(11 * S), 10 * S);
        let (until_ns, told_ns) = (11_000_000_000, 12_000_000_000);
        assert_eq!(taken, Lease { until_ns, told_ns, given_away: 0 });
        let renewed = next(taken, Some(12 * S), 10 * S + S / 2);
        assert_eq!(renewed, Lease { until_ns: 12_000_000_000, ..taken });
        let given_up = next(renewed, None, 11 * S);
        assert_eq!(given_up.until_ns, 0);
        let taken_again = next(given_up, Some(14 * S), 13 * S);
        assert_eq!(taken_again.told_ns, 15_000_000_000);
    }

    #[test]
    fn nobody_goes_on_with_what_is_being_given_away() {
        let held = next(Lease::ZERO, Some(11 * S), 10 * S);
        assert_eq!(goes_on(held), Some(held.until_ns));
        let given_away = Lease { given_away: 1, ..held };
        assert_eq!(goes_on(given_away), None);
        // Nobody took it.
        let kept = next(given_away, Some(12 * S), 10 * S);
        assert_eq!(goes_on(kept), Some(kept.until_ns));
    }
}
