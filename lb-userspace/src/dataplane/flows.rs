//! The flow tables from user space: reading them, and forgetting what is too old.
//!
//! The kernel program never removes a connection for its age. That is done here, every second, and
//! when the daemon is dead, by the tables themselves: they are LRU, so what they push out then is
//! what has been idle longest.

use std::{
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use anyhow::Context;
use aya::{Pod, maps::MapData};
use lb_common::{
    backend::Backend,
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, HalfOpen4, HalfOpen6, state},
    hash, names,
};

use super::{Flow, Ticks, Timeouts, batch};
use crate::clock;

mod cut;
mod sweep;
pub mod sync;

pub use cut::{Connection, Cut};
pub use sweep::Sweeper;

/// A TCP connection that its backend has not answered is forgotten after so long: longer than the
/// retransmissions of a client that still tries (RFC 5382, REQ-5, "transitory", allows 4 minutes).
const HALF_OPEN_NS: u64 = 60_000_000_000;

/// A steered connection whose backend is cut off is forgotten after so long: those that still send have
/// been told by then.
const STOPPED_NS: u64 = 60_000_000_000;

/// What is kept of a backend that was given up: as long as it may answer after all. A Linux server sends
/// its answer again after 1 s and after 3 s.
const GIVEN_UP_NS: u64 = 5_000_000_000;

/// A closed connection is kept for so long, for what its sides may still send or repeat.
const CLOSED_NS: u64 = 5_000_000_000;

const TCP: u8 = 6;

/// The phase of an entry that stands alone.
const STEERED: &str = "steered";

/// A key of either family.
pub(super) trait Key: Pod + Eq + Hash + Copy {
    /// The value that goes with it in `FLOWS`.
    type Entry: Value<Self>;
    /// The value that goes with it in `HALF_OPEN`.
    type HalfOpen: Value<Self>;
    /// The key of the connection's other direction.
    fn partner(&self, entry: &Self::Entry) -> Self;
    /// What the two families share.
    fn view(&self, entry: &Self::Entry, ticks: Ticks) -> View;
    /// The hash of the tuple, by which the kernel program chooses a slot.
    fn tuple_hash(&self) -> u32;
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
    ($key:ident, $entry:ty, $half_open:ty, $address:ty, $words:ident) => {
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

            fn tuple_hash(&self) -> u32 {
                let ([a, b], [c, d]) = (self.src_port, self.dst_port);
                let ports = u32::from_ne_bytes([a, b, c, d]);
                hash::tuple($words(self.src), $words(self.dst), ports)
            }

            fn view(&self, entry: &$entry, ticks: Ticks) -> View {
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
                    last_seen_ns: ticks.ns(entry.last_seen),
                    packets: u64::from(entry.packets),
                    bytes: entry.bytes,
                }
            }
        }
    };
}

key!(FlowKey4, FlowEntry4, HalfOpen4, Ipv4Addr, words4);
key!(FlowKey6, FlowEntry6, HalfOpen6, Ipv6Addr, words6);

/// An address as [`hash::tuple`] takes it.
fn words4(address: [u8; 4]) -> (u64, u64) {
    (u64::from(u32::from_ne_bytes(address)), 0)
}

/// The same for IPv6.
fn words6(address: [u8; 16]) -> (u64, u64) {
    let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| address[at + byte]));
    (word(0), word(8))
}

impl View {
    fn is_return(&self) -> bool {
        self.state & state::RETURN != 0
    }

    /// Whether the connection is steered: it has no other half, and is not among the open connections that are counted.
    fn is_steered(&self) -> bool {
        self.state & state::STEERED != 0
    }

    /// The connection of an entry that stands alone. It does not hold the backend's address, which is
    /// `backend` if it is known.
    fn steered(&self, backend: Option<&Backend>, now_ns: u64) -> Flow {
        let address = |backend: &Backend| {
            SocketAddr::new(Ipv6Addr::from(backend.address).to_canonical(), backend.port)
        };
        Flow {
            protocol: self.protocol,
            client: self.src,
            listen: self.dst,
            nat: self.src,
            backend: backend.map_or(self.dst, address),
            backend_id: self.backend,
            phase: self.phase(false).to_owned(),
            idle_ms: now_ns.saturating_sub(self.last_seen_ns) / 1_000_000,
            forward_packets: self.packets,
            forward_bytes: self.bytes,
            return_packets: 0,
            return_bytes: 0,
        }
    }

    /// Whether it is what was kept of a backend after the connection has gone to another.
    fn is_given_up(&self) -> bool {
        state::given_up(self.state)
    }

    /// Whether there is no other half that it could be matched with.
    fn stands_alone(&self) -> bool {
        self.is_steered() || self.is_given_up()
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
        if self.is_steered() {
            return STEERED;
        }
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
#[derive(Debug)]
struct Table<K: Key, V: Value<K> = <K as Key>::Entry> {
    map: MapData,
    half_open: bool,
    ticks: Ticks,
    types: std::marker::PhantomData<fn() -> (K, V)>,
}

impl<K: Key, V: Value<K>> Table<K, V> {
    fn open(pins: &Path, name: &str, half_open: bool, ticks: Ticks) -> anyhow::Result<Self> {
        let map = super::pinned(pins, name)?;
        Ok(Self { map, half_open, ticks, types: std::marker::PhantomData })
    }

    /// An entry, read.
    fn view(&self, key: &K, entry: &K::Entry) -> View {
        key.view(entry, self.ticks)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }

    fn get(&self, key: &K) -> anyhow::Result<Option<K::Entry>> {
        let value: Option<V> = batch::get(self.fd(), key).context("read the flow table")?;
        Ok(value.map(|value| *value.flow()))
    }

    /// The other half of a connection: the entry under the key that this one leads to, if that one
    /// leads back. It does not if another connection has taken it.
    fn other_half(&self, key: &K, entry: &K::Entry) -> anyhow::Result<Option<View>> {
        let partner = key.partner(entry);
        let found = self.get(&partner)?.filter(|other| partner.partner(other) == *key);
        Ok(found.map(|other| self.view(&partner, &other)))
    }

    /// Hands over the connections that `wanted` picks by their backend, until `each` breaks.
    fn read(
        &self,
        now_ns: u64,
        backends: BorrowedFd<'_>,
        wanted: &dyn Fn(u32) -> bool,
        each: &mut dyn FnMut(Flow) -> ControlFlow<()>,
    ) -> anyhow::Result<ControlFlow<()>> {
        let mut result = Ok(ControlFlow::Continue(()));
        batch::for_each::<K, V>(self.fd(), |key, value| {
            let entry = value.flow();
            let client = self.view(key, entry);
            if client.is_return() || !wanted(client.backend) {
                return ControlFlow::Continue(());
            }
            let flow = if client.is_steered() {
                backend(backends, client.backend)
                    .map(|backend| client.steered(backend.as_ref(), now_ns))
            } else {
                self.other_half(key, entry).map(|server| self.flow(&client, server, now_ns))
            };
            match flow {
                Ok(flow) => {
                    let flow = each(flow);
                    if flow.is_break() {
                        result = Ok(flow);
                    }
                    flow
                }
                Err(error) => {
                    result = Err(error);
                    ControlFlow::Break(())
                }
            }
        })
        .context("read the flow table")?;
        result
    }

    fn flow(&self, client: &View, server: Option<View>, now_ns: u64) -> Flow {
        let last_seen_ns = client.last_seen_ns.max(server.map_or(0, |server| server.last_seen_ns));
        Flow {
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
        }
    }
}

/// The entry of a backend, if there is such an identifier.
fn backend(backends: BorrowedFd<'_>, id: u32) -> anyhow::Result<Option<Backend>> {
    batch::get(backends, &id).context("read BACKENDS")
}

/// Reads the flow tables, without a lock and beside whatever else goes on with them.
#[derive(Debug)]
pub struct Reader {
    flows: Table<FlowKey4>,
    flows6: Table<FlowKey6>,
    half_open: Table<FlowKey4, HalfOpen4>,
    half_open6: Table<FlowKey6, HalfOpen6>,
    backends: MapData,
}

impl Reader {
    pub(super) fn open(pins: &Path, ticks: Ticks) -> anyhow::Result<Self> {
        Ok(Self {
            flows: Table::open(pins, names::FLOWS, false, ticks)?,
            flows6: Table::open(pins, names::FLOWS6, false, ticks)?,
            half_open: Table::open(pins, names::HALF_OPEN, true, ticks)?,
            half_open6: Table::open(pins, names::HALF_OPEN6, true, ticks)?,
            backends: super::pinned(pins, names::BACKENDS)?,
        })
    }

    /// Hands over every connection whose backend `wanted` picks, half-open ones too, until `each`
    /// breaks. It holds a few thousand entries at a time, however many there are.
    pub fn read(
        &self,
        wanted: &dyn Fn(u32) -> bool,
        each: &mut dyn FnMut(Flow) -> ControlFlow<()>,
    ) -> anyhow::Result<()> {
        let now_ns = clock::monotonic_coarse_ns();
        let backends = self.backends.fd().as_fd();
        let ended = self.flows.read(now_ns, backends, wanted, each)?.is_break()
            || self.flows6.read(now_ns, backends, wanted, each)?.is_break()
            || self.half_open.read(now_ns, backends, wanted, each)?.is_break();
        if !ended {
            // Whether the last one broke off makes no difference.
            let _ = self.half_open6.read(now_ns, backends, wanted, each)?;
        }
        Ok(())
    }
}
