//! Backends by their addresses: their identifiers are each node's own.

use std::{
    collections::HashMap,
    net::{Ipv6Addr, SocketAddr},
    ops::ControlFlow,
    os::fd::AsFd as _,
    path::Path,
};

use anyhow::Context as _;
use aya::maps::MapData;
use lb_common::{
    backend::{Backend, FORWARD, IN_USE},
    names,
    service::{Service, ServiceKey, mapped},
};

use super::Begun;
use crate::dataplane::batch;

/// What is not found is looked for again after so long, nanoseconds.
const AGAIN_NS: u64 = 1_000_000_000;

/// What `SERVICES` and `BACKENDS` said when they were last read.
#[derive(Debug)]
pub(super) struct Directory {
    services: MapData,
    backends: MapData,
    indexes: HashMap<ServiceKey, u32>,
    ids: HashMap<(u32, SocketAddr), u32>,
    read_ns: Option<u64>,
    /// Identifiers that have been looked at lately.
    checked: HashMap<u32, bool>,
}

impl Directory {
    pub(super) fn open(pins: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            services: crate::dataplane::pinned(pins, names::SERVICES)?,
            backends: crate::dataplane::pinned(pins, names::BACKENDS)?,
            indexes: HashMap::new(),
            ids: HashMap::new(),
            read_ns: None,
            checked: HashMap::new(),
        })
    }

    /// From here on, backends are looked at anew.
    pub(super) fn forget_checks(&mut self) {
        self.checked.clear();
    }

    /// The identifier of a connection's backend, if this node knows that backend for that service.
    pub(super) fn id(&mut self, begun: &Begun, now_ns: u64) -> anyhow::Result<Option<u32>> {
        if let Some(id) = self.find(begun)? {
            return Ok(Some(id));
        }
        if self.read_ns.is_some_and(|read_ns| now_ns.saturating_sub(read_ns) < AGAIN_NS) {
            return Ok(None);
        }
        self.read_ns = Some(now_ns);
        self.read()?;
        self.find(begun)
    }

    /// The address of a backend.
    pub(super) fn address(&self, id: u32) -> Option<SocketAddr> {
        let backend: Option<Backend> = batch::get(self.backends.fd().as_fd(), &id).ok()?;
        backend.map(|backend| address(&backend))
    }

    fn find(&mut self, begun: &Begun) -> anyhow::Result<Option<u32>> {
        let Some(&index) = self.indexes.get(&key(begun)) else { return Ok(None) };
        let Some(&id) = self.ids.get(&(index, begun.backend)) else { return Ok(None) };
        if let Some(&is_same) = self.checked.get(&id) {
            return Ok(is_same.then_some(id));
        }
        // The number may be another backend's by now.
        let backend: Option<Backend> =
            batch::get(self.backends.fd().as_fd(), &id).context("read BACKENDS")?;
        let is_same = backend.is_some_and(|backend| {
            backend.flags & IN_USE != 0
                && backend.service == index
                && address(&backend) == begun.backend
        });
        self.checked.insert(id, is_same);
        Ok(is_same.then_some(id))
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let (indexes, ids) = (&mut self.indexes, &mut self.ids);
        indexes.clear();
        ids.clear();
        self.checked.clear();
        batch::for_each::<ServiceKey, Service>(self.services.fd().as_fd(), |key, service| {
            indexes.insert(*key, service.index);
            ControlFlow::Continue(())
        })
        .context("read SERVICES")?;
        batch::for_each::<u32, Backend>(self.backends.fd().as_fd(), |id, backend| {
            if backend.flags & IN_USE != 0 {
                let at = (backend.service, address(backend));
                // Of two, that which serves.
                if backend.flags & FORWARD != 0 || !ids.contains_key(&at) {
                    ids.insert(at, *id);
                }
            }
            ControlFlow::Continue(())
        })
        .context("read BACKENDS")
    }
}

fn address(backend: &Backend) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(backend.address).to_canonical(), backend.port)
}

fn key(begun: &Begun) -> ServiceKey {
    let address = match begun.listen {
        SocketAddr::V4(listen) => mapped(listen.ip().octets()),
        SocketAddr::V6(listen) => listen.ip().octets(),
    };
    ServiceKey { address, port: begun.listen.port(), protocol: begun.protocol, reserved: 0 }
}
