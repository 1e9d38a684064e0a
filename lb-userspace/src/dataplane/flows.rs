//! The flow tables from user space: reading them, and forgetting what is too old.
//!
//! The kernel program never removes a connection for its age. That is done here, every second, and
//! when the daemon is dead, by the tables themselves: they are LRU, so what they push out then is
//! what has been idle longest.

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
};

use anyhow::Context;
use aya::{
    Pod,
    maps::{HashMap, MapData, MapError},
};
use lb_common::flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, HalfOpen4, HalfOpen6, state};

use super::{Flow, Sweep, Timeouts, batch};

/// A TCP connection that its backend has not answered is forgotten after so long: longer than the
/// retransmissions of a client that still tries (RFC 5382, REQ-5, "transitory", allows 4 minutes).
const HALF_OPEN_NS: u64 = 60_000_000_000;

/// What is kept of a backend that was given up: as long as it may answer after all. A Linux server sends
/// its answer again after 1 s and after 3 s.
const GIVEN_UP_NS: u64 = 5_000_000_000;

/// A closed connection is kept for so long, for what its sides may still send or repeat.
const CLOSED_NS: u64 = 5_000_000_000;

const TCP: u8 = 6;

/// A key of either family.
pub(super) trait Key: Pod + Eq + Hash + Copy {
    /// The value that goes with it in `FLOWS`.
    type Entry: Pod;
    /// The value that goes with it in `HALF_OPEN`.
    type HalfOpen: Value<Self>;
    /// The key of the connection's other direction.
    fn partner(&self, entry: &Self::Entry) -> Self;
    /// What the two families share.
    fn view(&self, entry: &Self::Entry) -> View;
}

/// A value of a table, of either kind.
pub(super) trait Value<K: Key>: Pod {
    /// What it has in common with those of `FLOWS`.
    fn flow(&self) -> &K::Entry;
}

/// An entry, read.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    protocol: u8,
    src: SocketAddr,
    dst: SocketAddr,
    new_src: SocketAddr,
    new_dst: SocketAddr,
    backend: u32,
    state: u32,
    last_seen_ns: u64,
    packets: u64,
    bytes: u64,
}

macro_rules! key {
    ($key:ident, $entry:ty, $half_open:ty, $address:ty) => {
        impl Value<$key> for $entry {
            fn flow(&self) -> &$entry {
                self
            }
        }

        impl Value<$key> for $half_open {
            fn flow(&self) -> &$entry {
                &self.flow
            }
        }

        impl Key for $key {
            type Entry = $entry;
            type HalfOpen = $half_open;

            fn partner(&self, entry: &$entry) -> Self {
                Self {
                    src: entry.new_dst,
                    dst: entry.new_src,
                    src_port: entry.new_dst_port,
                    dst_port: entry.new_src_port,
                    protocol: self.protocol,
                    reserved: [0; 3],
                }
            }

            fn view(&self, entry: &$entry) -> View {
                let socket = |address, port| {
                    SocketAddr::new(
                        IpAddr::from(<$address>::from(address)),
                        u16::from_be_bytes(port),
                    )
                };
                View {
                    protocol: self.protocol,
                    src: socket(self.src, self.src_port),
                    dst: socket(self.dst, self.dst_port),
                    new_src: socket(entry.new_src, entry.new_src_port),
                    new_dst: socket(entry.new_dst, entry.new_dst_port),
                    backend: entry.backend,
                    state: entry.state,
                    last_seen_ns: entry.last_seen_ns,
                    packets: u64::from(entry.packets),
                    bytes: entry.bytes,
                }
            }
        }
    };
}

key!(FlowKey4, FlowEntry4, HalfOpen4, Ipv4Addr);
key!(FlowKey6, FlowEntry6, HalfOpen6, Ipv6Addr);

impl View {
    fn is_return(&self) -> bool {
        self.state & state::RETURN != 0
    }

    /// Whether it stands alone: the connection has gone to another backend.
    fn is_given_up(&self) -> bool {
        self.state & state::GIVEN_UP != 0
    }

    /// Age at which it is forgotten, in an established (`false`) or half-open table.
    fn timeout_ns(&self, half_open: bool, timeouts: &Timeouts) -> u64 {
        match (self.protocol, half_open) {
            (TCP, true) if self.is_given_up() => GIVEN_UP_NS,
            (TCP, true) => HALF_OPEN_NS,
            (TCP, false) if state::closed(self.state) => CLOSED_NS,
            (TCP, false) if state::closing(self.state) => timeouts.tcp_closing_ns,
            (TCP, false) => timeouts.tcp_idle_ns,
            _ => timeouts.udp_idle_ns,
        }
    }

    fn phase(&self, half_open: bool) -> &'static str {
        match (self.protocol, half_open) {
            (TCP, true) => "half_open",
            (TCP, false) if state::closed(self.state) => "closed",
            (TCP, false) if state::closing(self.state) => "closing",
            (TCP, false) => "established",
            _ => "udp",
        }
    }
}

/// One flow table: of established connections, or of half-open ones.
pub(super) struct Table<K: Key, V: Value<K> = <K as Key>::Entry> {
    map: HashMap<MapData, K, V>,
    /// The same map, for batches.
    raw: MapData,
    half_open: bool,
}

/// What one pass over a table found, before anything is removed.
pub(super) struct Pass<K> {
    /// Client halves that are old enough by themselves.
    old: Vec<K>,
    /// Backend halves that are old enough by themselves.
    old_returns: Vec<K>,
    /// All keys, where the two halves of every connection are to be matched.
    keys: Option<HashSet<K>>,
}

impl<K: Key, V: Value<K>> Table<K, V> {
    pub(super) fn new(map: HashMap<MapData, K, V>, raw: MapData, half_open: bool) -> Self {
        Self { map, raw, half_open }
    }

    /// Adds the connections to `flows`, up to `limit` in all.
    pub(super) fn read(
        &self,
        now_ns: u64,
        limit: usize,
        flows: &mut Vec<Flow>,
    ) -> anyhow::Result<()> {
        let mut found: Vec<(K, K::Entry)> = Vec::new();
        let room = limit.saturating_sub(flows.len());
        batch::for_each::<K, V>(self.raw.fd().as_fd(), |key, value| {
            let entry = value.flow();
            if found.len() < room && !key.view(entry).is_return() {
                found.push((*key, *entry));
            }
        })
        .context("read the flow table")?;
        for (key, entry) in found {
            let client = key.view(&entry);
            let partner = key.partner(&entry);
            let server = self.get(&partner)?.map(|entry| partner.view(&entry));
            let last_seen_ns =
                client.last_seen_ns.max(server.map_or(0, |server| server.last_seen_ns));
            flows.push(Flow {
                protocol: client.protocol,
                client: client.src,
                listen: client.dst,
                nat: client.new_src,
                backend: client.new_dst,
                backend_id: client.backend,
                phase: client.phase(self.half_open).to_owned(),
                idle_ms: now_ns.saturating_sub(last_seen_ns) / 1_000_000,
                forward_packets: client.packets,
                forward_bytes: client.bytes,
                return_packets: server.map_or(0, |server| server.packets),
                return_bytes: server.map_or(0, |server| server.bytes),
            });
        }
        Ok(())
    }

    /// Looks at every entry: counts it in `sweep` and in `open`, and notes it if it is old.
    pub(super) fn pass(
        &self,
        now_ns: u64,
        timeouts: &Timeouts,
        match_halves: bool,
        sweep: &mut Sweep,
        open: &mut BTreeMap<u32, u64>,
    ) -> anyhow::Result<Pass<K>> {
        let mut pass = Pass {
            old: Vec::new(),
            old_returns: Vec::new(),
            keys: match_halves.then(HashSet::new),
        };
        batch::for_each::<K, V>(self.raw.fd().as_fd(), |key, value| {
            let view = key.view(value.flow());
            *sweep.by_backend.entry(view.backend).or_default() += 1;
            if !view.is_return() {
                sweep.flows += 1;
                if !state::closed(view.state) {
                    *open.entry(view.backend).or_default() += 1;
                }
            }
            if let Some(keys) = &mut pass.keys
                && !view.is_given_up()
            {
                keys.insert(*key);
            }
            let age_ns = now_ns.saturating_sub(view.last_seen_ns);
            if age_ns >= view.timeout_ns(self.half_open, timeouts) {
                if view.is_return() {
                    pass.old_returns.push(*key);
                } else {
                    pass.old.push(*key);
                }
            }
        })
        .context("read the flow table")?;
        Ok(pass)
    }

    /// Removes what is old in both directions, and halves whose other half is gone. `close` is called
    /// with the backend of each connection that was open until then.
    pub(super) fn expire(
        &mut self,
        pass: Pass<K>,
        now_ns: u64,
        timeouts: &Timeouts,
        sweep: &mut Sweep,
        mut close: impl FnMut(u32),
    ) -> anyhow::Result<()> {
        // Each entry is read again just before it is removed: the client may have begun anew.
        for key in pass.old {
            let Some(entry) = self.get(&key)? else { continue };
            let client = key.view(&entry);
            let partner = key.partner(&entry);
            let server = self.get(&partner)?.map(|entry| partner.view(&entry));
            let last_seen_ns = client.last_seen_ns.max(server.map_or(0, |s| s.last_seen_ns));
            let age_ns = now_ns.saturating_sub(last_seen_ns);
            if age_ns < client.timeout_ns(self.half_open, timeouts) {
                continue;
            }
            if self.remove(&key)? {
                sweep.expired += 1;
                if !state::closed(client.state) {
                    close(client.backend);
                }
            }
            self.remove(&partner)?;
        }
        for key in pass.old_returns {
            self.remove_orphan(&key, sweep, &mut close)?;
        }
        if let Some(keys) = pass.keys {
            for key in &keys {
                let Some(entry) = self.get(key)? else { continue };
                if !keys.contains(&key.partner(&entry)) {
                    self.remove_orphan(key, sweep, &mut close)?;
                }
            }
        }
        Ok(())
    }

    /// Removes an entry whose other half is gone, for whichever reason: one direction alone would
    /// swallow the other's packets.
    fn remove_orphan(
        &mut self,
        key: &K,
        sweep: &mut Sweep,
        close: &mut impl FnMut(u32),
    ) -> anyhow::Result<()> {
        let Some(entry) = self.get(key)? else { return Ok(()) };
        let view = key.view(&entry);
        if !view.is_given_up() && self.get(&key.partner(&entry))?.is_some() {
            return Ok(());
        }
        if self.remove(key)? {
            sweep.orphans += 1;
            if !view.is_return() && !state::closed(view.state) {
                close(view.backend);
            }
        }
        Ok(())
    }

    fn get(&self, key: &K) -> anyhow::Result<Option<K::Entry>> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(*value.flow())),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context("read the flow table"),
        }
    }

    /// Removes a key; false if it was not there.
    fn remove(&mut self, key: &K) -> anyhow::Result<bool> {
        match self.map.remove(key) {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(false)
            }
            Err(error) => Err(error).context("remove from the flow table"),
        }
    }
}
