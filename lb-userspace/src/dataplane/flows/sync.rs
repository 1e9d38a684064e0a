//! Flow tables of several nodes, kept alike: what this node's kernel program has begun and ended, and
//! what that of another has.
//!
//! A connection crosses as its addresses and ports ([`Change`]): numbers of backends and interfaces, MAC
//! addresses and clocks are each node's own, and are put in by the one that takes it. What is taken
//! counts as open, and ages here as it does there, since its age comes along.
//!
//! Everything here is a handle of its own on the maps, apart from [`crate::dataplane::Dataplane`].

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use aya::maps::{Map, MapData, RingBuf};
use lb_common::{
    flow::{FlowKey4, FlowKey6, state},
    names,
};

use self::{
    cuts::Cuts,
    directory::Directory,
    walk::{At, is_wanted},
};
use super::{Table, Ticks, Value, View};
use crate::dataplane::{
    active::Active,
    batch::{Chunk, Cursor},
    flows::Key,
};

mod apply;
pub(in crate::dataplane) mod cuts;
mod directory;
pub mod entry;
pub mod record;
mod walk;

pub use entry::Side;
pub use walk::{Refresh, Walk, Which};

/// A change of a flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// There is a connection.
    Begun(Begun),
    /// There is going to be one.
    Answered(Answered),
    /// There no longer is.
    Ended(Ended),
}

/// A connection that is established.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// IP protocol number.
    pub protocol: u8,
    /// Bits of [`lb_common::flow::state`], as far as they describe the connection: who has sent FIN, and
    /// whether it is steered.
    pub state: u8,
    /// The client.
    pub client: SocketAddr,
    /// The floating address and port that it talks to.
    pub listen: SocketAddr,
    /// The backend.
    pub backend: SocketAddr,
    /// The port of the floating address that the backend sees; 0 if the connection is steered.
    pub nat_port: u16,
    /// Where the client's packets come from.
    pub client_mac: [u8; 6],
    /// Milliseconds since its last packet.
    pub idle_ms: u32,
}

/// A connection whose backend has answered, and whose client has still to say that it got the answer. At the
/// other node that is what makes it an established one, so that nobody gets an entry there for SYNs alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The connection.
    pub begun: Begun,
    /// What its client has to acknowledge.
    pub ack: u32,
}

/// A connection that is over, by its backend's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// IP protocol number.
    pub protocol: u8,
    /// The backend.
    pub backend: SocketAddr,
    /// The floating address and the port of it that the backend sees.
    pub nat: SocketAddr,
}

/// Bits of [`Begun::state`].
const STATE_BITS: u32 = state::CLIENT_FIN | state::BACKEND_FIN | state::STEERED;

/// Records of `NEWS` that are read at once.
const NEWS_AT_ONCE: usize = 8192;

/// The most connections that are told of in one look before they are established: 200 times a second.
const MOST_ANSWERED: usize = 256;

/// Entries that one step of a walk reads.
const WALK_ENTRIES: usize = 2048;

/// Entries that one look for connections to forget reads.
const FORGET_ENTRIES: usize = 16_384;

/// A connection's other half is asked for its age if the client's half has been quiet for so long.
const QUIET_NS: u64 = 5_000_000_000;

/// What became of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Connections that are new here.
    pub begun: u64,
    /// Connections that are new here, and not established yet.
    pub answered: u64,
    /// Connections that were here.
    pub known: u64,
    /// Connections that have been removed.
    pub ended: u64,
    /// Connections that have not been taken, because others of this node have their places.
    pub conflicts: u64,
    /// Connections that have not been taken, because this node does not know their services or backends.
    pub unknown: u64,
}

impl std::ops::AddAssign for Applied {
    fn add_assign(&mut self, other: Self) {
        self.begun += other.begun;
        self.answered += other.answered;
        self.known += other.known;
        self.ended += other.ended;
        self.conflicts += other.conflicts;
        self.unknown += other.unknown;
    }
}

/// The flow tables as the other nodes see them.
pub struct FlowSync {
    news: RingBuf<MapData>,
    flows: Both<FlowKey4>,
    flows6: Both<FlowKey6>,
    directory: Directory,
    active: Arc<Active>,
    cuts: Arc<Cuts>,
    created: Duration,
    /// While all connections of another node come: hashes of those that have.
    mentioned: Option<HashSet<u64>>,
    forgetting: Option<Forgetting>,
}

/// The tables of a family.
struct Both<K: Key> {
    flows: Table<K>,
    half_open: Table<K, K::HalfOpen>,
}

impl<K: Key> Both<K> {
    fn open(pins: &Path, flows: &str, half_open: &str, ticks: Ticks) -> anyhow::Result<Self> {
        Ok(Self {
            flows: Table::open(pins, flows, false, ticks)?,
            half_open: Table::open(pins, half_open, true, ticks)?,
        })
    }
}

/// Looks for connections that the other node has not mentioned.
#[derive(Debug)]
struct Forgetting {
    mentioned: HashSet<u64>,
    /// In `FLOWS6`.
    second: bool,
    cursor: Cursor,
    /// Since when the other node would have had them: `CLOCK_MONOTONIC_COARSE`, nanoseconds.
    since_ns: u64,
}

impl std::fmt::Debug for FlowSync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowSync").finish_non_exhaustive()
    }
}

impl Drop for FlowSync {
    fn drop(&mut self) {
        self.cuts.listen(false);
    }
}

impl FlowSync {
    /// Opens the pinned maps. There should be one at a time: each takes what it reads out of `NEWS`.
    pub(in crate::dataplane) fn open(
        pins: &Path,
        active: Arc<Active>,
        cuts: Arc<Cuts>,
        created: Duration,
        ticks: Ticks,
    ) -> anyhow::Result<Self> {
        let news = Map::RingBuf(crate::dataplane::pinned(pins, names::NEWS)?);
        cuts.listen(true);
        Ok(Self {
            news: news.try_into().context("open NEWS")?,
            flows: Both::open(pins, names::FLOWS, names::HALF_OPEN, ticks)?,
            flows6: Both::open(pins, names::FLOWS6, names::HALF_OPEN6, ticks)?,
            directory: Directory::open(pins)?,
            active,
            cuts,
            created,
            mentioned: None,
            forgetting: None,
        })
    }

    /// When the tables were created, on the monotonic clock; 0 if that is not known.
    pub fn created(&self) -> Duration {
        self.created
    }

    /// Takes what the kernel program has told since the last call, in order; a bounded number of
    /// changes, the last call of a row gives none. What has become more since is told as that alone.
    pub fn news(&mut self) -> Vec<Change> {
        let mut changes: Vec<Change> = self.cuts.take().into_iter().map(Change::Ended).collect();
        let directory = &self.directory;
        while changes.len() < NEWS_AT_ONCE
            && let Some(item) = self.news.next()
        {
            changes.extend(record::change(&item, &|id| directory.address(id)));
        }
        brief(&mut changes);
        changes
    }

    /// Goes on with a walk: adds to `changes`, and says whether there is more. `now_ns` is the time of
    /// `CLOCK_MONOTONIC_COARSE`.
    pub fn walk(
        &self,
        walk: &mut Walk,
        now_ns: u64,
        changes: &mut Vec<Change>,
    ) -> anyhow::Result<bool> {
        let (more, next) = match walk.at {
            At::HalfOpen => {
                (self.step(&self.flows.half_open, walk, now_ns, changes)?, Some(At::HalfOpen6))
            }
            At::HalfOpen6 => {
                (self.step(&self.flows6.half_open, walk, now_ns, changes)?, Some(At::Flows))
            }
            At::Flows => (self.step(&self.flows.flows, walk, now_ns, changes)?, Some(At::Flows6)),
            At::Flows6 => (self.step(&self.flows6.flows, walk, now_ns, changes)?, None),
        };
        match next {
            Some(next) if !more => {
                walk.enter(next);
                Ok(true)
            }
            _ => Ok(more),
        }
    }

    fn step<K: entry::Synced, V: Value<K>>(
        &self,
        table: &Table<K, V>,
        walk: &mut Walk,
        now_ns: u64,
        changes: &mut Vec<Change>,
    ) -> anyhow::Result<bool> {
        let mut chunk = Chunk::<K, V>::of(WALK_ENTRIES);
        let more = chunk.read(table.fd(), &mut walk.cursor).context("read the flow table")?;
        for (key, value) in chunk.entries() {
            let entry = value.flow();
            let view = table.view(key, entry);
            if view.is_return()
                || state::closed(view.state)
                || table.half_open && !is_answered(&view)
            {
                continue;
            }
            let age_ns = age_ns(table, key, entry, &view, now_ns)?;
            if is_wanted(walk.which, key, &view, age_ns) {
                let idle_ms = u32::try_from(age_ns / 1_000_000).unwrap_or(u32::MAX);
                let begun = self.begun(&view, K::client_mac(entry), idle_ms);
                let ack = u32::from_be(K::ack(entry));
                changes.extend(begun.map(|begun| {
                    if table.half_open {
                        Change::Answered(Answered { begun, ack })
                    } else {
                        Change::Begun(begun)
                    }
                }));
            }
        }
        Ok(more)
    }

    /// `None` if a steered connection's backend is not known.
    fn begun(&self, client: &View, client_mac: [u8; 6], idle_ms: u32) -> Option<Begun> {
        let steered = client.is_steered();
        let backend =
            if steered { self.directory.address(client.backend)? } else { client.new_dst };
        Some(Begun {
            protocol: client.protocol,
            state: (client.state & STATE_BITS) as u8,
            client: client.src,
            listen: client.dst,
            backend,
            nat_port: if steered { 0 } else { client.new_src.port() },
            client_mac,
            idle_ms,
        })
    }

    /// From here on, all connections of the other node come.
    pub fn begin_all(&mut self) {
        (self.mentioned, self.forgetting) = (Some(HashSet::new()), None);
    }

    /// All have come. Its table is of this age.
    pub fn end_all(&mut self, table_age_ns: u64, now_ns: u64) {
        self.forgetting = self.mentioned.take().map(|mentioned| Forgetting {
            mentioned,
            second: false,
            cursor: Cursor::default(),
            since_ns: now_ns.saturating_sub(table_age_ns),
        });
    }

    /// Forgets some of the connections that the other node has not mentioned although it must have had
    /// them, and that had no packet here since it spoke of them last: they have ended. Says how many, and
    /// whether there may be more.
    pub fn forget(&mut self, now_ns: u64) -> anyhow::Result<(u64, bool)> {
        let Some(mut forgetting) = self.forgetting.take() else { return Ok((0, false)) };
        let Forgetting { mentioned, second, cursor, since_ns } = &mut forgetting;
        let mut gone = Vec::new();
        let each = |view: &View| gone.extend(unmentioned(view, mentioned, *since_ns));
        let more = if *second {
            step_over(&self.flows6.flows, cursor, each)?
        } else {
            if !step_over(&self.flows.flows, cursor, each)? {
                (*second, *cursor) = (true, Cursor::default());
            }
            true
        };
        let gone: Vec<Change> = gone.into_iter().map(Change::Ended).collect();
        let side = Side { ifindex: 0, mac: [0; 6] };
        let forgotten = self.apply(&gone, side, now_ns)?.ended;
        if more {
            self.forgetting = Some(forgetting);
        }
        Ok((forgotten, more))
    }

    /// Makes changes of another node here. `side` is where clients are, on this node.
    pub fn apply(
        &mut self,
        changes: &[Change],
        side: Side,
        now_ns: u64,
    ) -> anyhow::Result<Applied> {
        self.directory.forget_checks();
        if let Some(mentioned) = &mut self.mentioned {
            mentioned.extend(changes.iter().filter_map(|change| match change {
                Change::Begun(begun) | Change::Answered(Answered { begun, .. }) => {
                    Some(mark(begun))
                }
                Change::Ended(_) => None,
            }));
        }
        let mut applied = Applied::default();
        let active = &*self.active;
        for change in changes {
            let is_v4 = match change {
                Change::Begun(begun) | Change::Answered(Answered { begun, .. }) => {
                    begun.client.is_ipv4()
                }
                Change::Ended(ended) => ended.nat.is_ipv4(),
            };
            let directory = &mut self.directory;
            applied += if is_v4 {
                apply::apply(&self.flows, active, directory, change, side, now_ns)
            } else {
                apply::apply(&self.flows6, active, directory, change, side, now_ns)
            }?;
        }
        Ok(applied)
    }
}

/// Shows some clients' halves of a table, and says whether there are more.
fn step_over<K: Key>(
    table: &Table<K>,
    cursor: &mut Cursor,
    mut each: impl FnMut(&View),
) -> anyhow::Result<bool> {
    let mut chunk = Chunk::<K, K::Entry>::of(FORGET_ENTRIES);
    let more = chunk.read(table.fd(), cursor).context("read the flow table")?;
    for (key, entry) in chunk.entries() {
        let view = table.view(key, entry);
        if !view.is_return() && !view.is_steered() {
            each(&view);
        }
    }
    Ok(more)
}

/// The end of a connection that another node must have had since then, and has not mentioned.
fn unmentioned(client: &View, mentioned: &HashSet<u64>, since_ns: u64) -> Option<Ended> {
    let ended = client.packets == 0
        && client.last_seen_ns > since_ns
        && !mentioned.contains(&mark_of(client.src, client.dst, client.protocol));
    ended.then_some(Ended {
        protocol: client.protocol,
        backend: client.new_dst,
        nat: client.new_src,
    })
}

/// What a connection is remembered by while others come.
fn mark(begun: &Begun) -> u64 {
    mark_of(begun.client, begun.listen, begun.protocol)
}

/// Leaves of connections that are not established only those that do not become so in the same changes, and
/// not too many of them: a flood of SYNs is answered too, and nobody's connection is lost with it.
fn brief(changes: &mut Vec<Change>) {
    if !changes.iter().any(|change| matches!(change, Change::Answered(_))) {
        return;
    }
    let established: HashSet<u64> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Begun(begun) => Some(mark(begun)),
            Change::Answered(_) | Change::Ended(_) => None,
        })
        .collect();
    let mut left = MOST_ANSWERED;
    changes.retain(|change| {
        let Change::Answered(answered) = change else { return true };
        let is_told = left > 0 && !established.contains(&mark(&answered.begun));
        left -= usize::from(is_told);
        is_told
    });
}

/// Whether a half-open connection is one that another node may go on with.
fn is_answered(client: &View) -> bool {
    client.protocol == super::TCP
        && client.state & state::ANSWERED != 0
        && !client.is_given_up()
        && !client.is_steered()
}

fn mark_of(client: SocketAddr, listen: SocketAddr, protocol: u8) -> u64 {
    let mut hasher = DefaultHasher::new();
    (client, listen, protocol).hash(&mut hasher);
    hasher.finish()
}

/// Time since the last packet of a connection, in either direction.
fn age_ns<K: Key, V: Value<K>>(
    table: &Table<K, V>,
    key: &K,
    entry: &K::Entry,
    view: &View,
    now_ns: u64,
) -> anyhow::Result<u64> {
    let age_ns = now_ns.saturating_sub(view.last_seen_ns);
    if age_ns < QUIET_NS || view.is_steered() {
        return Ok(age_ns);
    }
    let other = table.other_half(key, entry)?;
    Ok(other.map_or(age_ns, |other| age_ns.min(now_ns.saturating_sub(other.last_seen_ns))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_established_is_told_if_it_stays_so_and_not_without_end() {
        let begun = |port: u16| Begun {
            protocol: 6,
            state: 0,
            client: SocketAddr::from(([192, 0, 2, 9], port)),
            listen: SocketAddr::from(([192, 0, 2, 100], 80)),
            backend: SocketAddr::from(([192, 0, 2, 21], 8080)),
            nat_port: port,
            client_mac: [2; 6],
            idle_ms: 0,
        };
        let answered = |port| Change::Answered(Answered { begun: begun(port), ack: 1 });
        let mut changes = vec![answered(1), answered(2), Change::Begun(begun(1))];
        brief(&mut changes);
        assert_eq!(changes, [answered(2), Change::Begun(begun(1))]);
        let mut flood: Vec<Change> = (0..20_000).map(answered).collect();
        flood.push(Change::Begun(begun(30_000)));
        brief(&mut flood);
        assert_eq!(flood.len(), MOST_ANSWERED + 1);
        assert_eq!(flood.last(), Some(&Change::Begun(begun(30_000))));
    }
}
