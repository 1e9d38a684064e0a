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

use super::pinned;
use crate::{control::kernel::Gates, vrrp::router::Leases};

/// The leases in the kernel's map.
#[derive(Debug)]
pub struct KernelLeases(Mutex<HashMap<MapData, LeaseKey, Lease>>);

impl KernelLeases {
    pub(super) fn open(pins: &Path) -> anyhow::Result<Self> {
        let map = Map::HashMap(pinned(pins, names::LEASES)?);
        Ok(Self(Mutex::new(map.try_into().context("open LEASES")?)))
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
            map.insert(key, Lease { until_ns }, 0).context("write LEASES")?;
        }
        Ok(())
    }
}

impl Leases for KernelLeases {
    fn set(&self, addresses: &[IpAddr], until: Option<Duration>) -> anyhow::Result<()> {
        let until_ns = until.map_or(0, |until| until.as_nanos() as u64);
        let mut map = self.lock();
        for &address in addresses {
            map.insert(key(address), Lease { until_ns }, 0).context("write LEASES")?;
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

fn key(address: IpAddr) -> LeaseKey {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    LeaseKey { address: address.octets() }
}
