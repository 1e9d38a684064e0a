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
            map.insert(key, Lease { until_ns, told_ns: 0 }, 0).context("write LEASES")?;
        }
        Ok(())
    }
}

impl Leases for KernelLeases {
    fn set(&self, addresses: &[IpAddr], until: Option<Duration>) -> anyhow::Result<()> {
        let now = clock::monotonic();
        let mut map = self.lock();
        for &address in addresses {
            let before = map.get(&key(address), 0).unwrap_or(Lease::ZERO);
            map.insert(key(address), next(before, until, now), 0).context("write LEASES")?;
        }
        Ok(())
    }

    fn get(&self, addresses: &[IpAddr]) -> Option<Duration> {
        let map = self.lock();
        let until = |address: &IpAddr| map.get(&key(*address), 0).ok().map(|lease| lease.until_ns);
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

/// The lease that follows `before`.
fn next(before: Lease, until: Option<Duration>, now: Duration) -> Lease {
    let was_closed = before.until_ns <= now.as_nanos() as u64;
    let told_ns = match until {
        Some(_) if was_closed => (now + TOLD_WITHIN).as_nanos() as u64,
        _ => before.told_ns,
    };
    Lease { until_ns: until.map_or(0, |until| until.as_nanos() as u64), told_ns }
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
        assert_eq!(taken, Lease { until_ns: 11_000_000_000, told_ns: 12_000_000_000 });
        let renewed = next(taken, Some(12 * S), 10 * S + S / 2);
        assert_eq!(renewed, Lease { until_ns: 12_000_000_000, ..taken });
        let given_up = next(renewed, None, 11 * S);
        assert_eq!(given_up.until_ns, 0);
        let taken_again = next(given_up, Some(14 * S), 13 * S);
        assert_eq!(taken_again.told_ns, 15_000_000_000);
    }
}
