//! Connections whose backend says nothing: the kernel program gets the client's SYN again.
//!
//! The program itself gives a silent backend up when the client sends its SYN again, which takes a
//! second. This is sooner: it looks for SYNs that have waited for longer than their backend usually
//! takes, and lets the program have them once more, as a test run. What the program made of them is to
//! be sent.
//!
//! Looking costs time, so it is done only when the signals show that some backend has not answered
//! ([`Watch`]), and a round looks at a bounded number of entries and runs a bounded number of SYNs.
//! Everything here is a handle of its own on the maps, apart from [`super::Dataplane`]: a sweep over
//! large tables holds nothing up.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::ControlFlow,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use anyhow::Context as _;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use lb_common::{
    backend::{self, Backend},
    flow::{FlowKey4, FlowKey6, HalfOpen4, HalfOpen6, state, syn},
    limits::DEFAULT_PATIENCE_MS,
    names,
    stats::BackendSignals,
};

use self::{frame::Key, watch::Watch};
use super::{
    batch::{self, Chunk, Cursor},
    run::{self, Ran},
};

pub mod frame;
mod watch;

/// Entries of `HALF_OPEN` that a round looks at.
const LOOKED_AT: usize = 8192;

/// SYNs that a round runs.
const RUN: usize = 64;

/// SYNs that wait to be run; more are found again later.
const QUEUE: usize = 4096;

/// Backends whose signals a round reads.
const READ: usize = 256;

/// The list of backends is read again after so long, nanoseconds.
const BACKENDS_NS: u64 = 1_000_000_000;

/// A frame to send, and the interface that it leaves by.
pub type Outgoing = (u32, Vec<u8>);

/// What a round brought.
#[derive(Debug, Default)]
pub struct Round {
    /// To be sent, in this order.
    pub frames: Vec<Outgoing>,
    /// There is something to watch, so the next round should be soon.
    pub busy: bool,
}

/// Finds SYNs that have waited too long, and runs them.
pub struct Replayer {
    program: OwnedFd,
    backends: Array<MapData, Backend>,
    /// The same map, for batches.
    raw_backends: MapData,
    signals: PerCpuArray<MapData, BackendSignals>,
    half_open: HashMap<MapData, FlowKey4, HalfOpen4>,
    half_open6: HashMap<MapData, FlowKey6, HalfOpen6>,
    /// `HALF_OPEN` and `HALF_OPEN6`, for batches.
    raw: [MapData; 2],
    /// Backends in use: their patience.
    in_use: BTreeMap<u32, u64>,
    read_ns: Option<u64>,
    /// The backend whose signals are read next.
    next: u32,
    watch: Watch,
    pass: Option<Pass>,
    queue: VecDeque<Found>,
}

impl std::fmt::Debug for Replayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replayer").field("in_use", &self.in_use).finish_non_exhaustive()
    }
}

/// Where a pass over the half-open tables is.
#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    /// In `HALF_OPEN6`.
    second: bool,
    cursor: Cursor,
}

/// The backend's half of a connection that has waited too long.
#[derive(Clone, Copy, Debug)]
enum Found {
    V4(FlowKey4),
    V6(FlowKey6),
}

impl Replayer {
    /// Opens the pinned maps. `program` is the loaded program.
    pub(super) fn open(program: OwnedFd, pins: &Path) -> anyhow::Result<Self> {
        let pinned = |name| super::pinned(pins, name);
        Ok(Self {
            program,
            backends: Map::Array(pinned(names::BACKENDS)?).try_into().context("open BACKENDS")?,
            raw_backends: pinned(names::BACKENDS)?,
            signals: Map::PerCpuArray(pinned(names::BACKEND_SIGNALS)?)
                .try_into()
                .context("open BACKEND_SIGNALS")?,
            half_open: Map::LruHashMap(pinned(names::HALF_OPEN)?)
                .try_into()
                .context("open HALF_OPEN")?,
            half_open6: Map::LruHashMap(pinned(names::HALF_OPEN6)?)
                .try_into()
                .context("open HALF_OPEN6")?,
            raw: [pinned(names::HALF_OPEN)?, pinned(names::HALF_OPEN6)?],
            in_use: BTreeMap::new(),
            read_ns: None,
            next: 0,
            watch: Watch::default(),
            pass: None,
            queue: VecDeque::new(),
        })
    }

    /// One round. `now_ns` is the time of `CLOCK_MONOTONIC`.
    pub fn round(&mut self, now_ns: u64) -> anyhow::Result<Round> {
        let is_old = |read_ns| now_ns.saturating_sub(read_ns) >= BACKENDS_NS;
        if self.in_use.is_empty() || self.read_ns.is_none_or(is_old) {
            self.read_backends()?;
            self.read_ns = Some(now_ns);
        }
        let watched = self.read_signals(now_ns)?;
        if self.pass.is_none() && self.queue.is_empty() && self.watch.begin(now_ns) {
            self.pass = Some(Pass::default());
        }
        self.look(now_ns)?;
        let mut round = Round::default();
        for _ in 0..RUN {
            let Some(found) = self.queue.pop_front() else { break };
            let frame = match found {
                Found::V4(key) => self.run(&key, now_ns),
                Found::V6(key) => self.run(&key, now_ns),
            };
            round.frames.extend(frame?);
        }
        round.busy = watched || self.pass.is_some() || !self.queue.is_empty();
        Ok(round)
    }

    /// Reads which backends there are.
    fn read_backends(&mut self) -> anyhow::Result<()> {
        let mut in_use = BTreeMap::new();
        batch::for_each::<u32, Backend>(self.raw_backends.fd().as_fd(), |id, backend| {
            if backend.flags & backend::IN_USE != 0 {
                in_use.insert(*id, patience_ns(backend));
            }
            ControlFlow::Continue(())
        })
        .context("read BACKENDS")?;
        self.watch.keep(|id| in_use.contains_key(&id));
        self.in_use = in_use;
        Ok(())
    }

    /// Reads the signals of some backends. Says whether any of them has got a connection lately.
    fn read_signals(&mut self, now_ns: u64) -> anyhow::Result<bool> {
        let wrapped = self.in_use.range(self.next..).chain(self.in_use.range(..self.next));
        let ids: Vec<(u32, u64)> =
            wrapped.take(READ).map(|(id, patience)| (*id, *patience)).collect();
        for (id, patience_ns) in &ids {
            let (mut attempts, mut settled) = (0, 0);
            for cpu in self.signals.get(id, 0).context("read BACKEND_SIGNALS")?.iter() {
                attempts += cpu.attempts;
                settled += cpu.answered + cpu.refused + cpu.unreachable + cpu.unanswered;
            }
            self.watch.see(*id, now_ns, *patience_ns, attempts, settled);
        }
        self.next = ids.last().map_or(0, |(id, _)| id + 1);
        Ok(self.watch.is_busy(now_ns))
    }

    /// Goes on with the pass over the half-open tables, and notes what has waited too long.
    fn look(&mut self, now_ns: u64) -> anyhow::Result<()> {
        let Some(mut pass) = self.pass else { return Ok(()) };
        let (in_use, queue) = (&self.in_use, &mut self.queue);
        let map = self.raw[usize::from(pass.second)].fd().as_fd();
        let is_due = |backend: u32, bits: u32, syn: &lb_common::flow::Syn| {
            let patience = in_use.get(&backend).copied().unwrap_or(u64::MAX);
            may_run(bits, syn) && now_ns.saturating_sub(syn.sent_ns) >= patience
        };
        let more = if pass.second {
            let mut chunk = Chunk::<FlowKey6, HalfOpen6>::of(LOOKED_AT);
            let more = chunk.read(map, &mut pass.cursor);
            for (key, half) in chunk.entries() {
                if queue.len() < QUEUE && is_due(half.flow.backend, half.flow.state, &half.syn) {
                    queue.push_back(Found::V6(*key));
                }
            }
            more
        } else {
            let mut chunk = Chunk::<FlowKey4, HalfOpen4>::of(LOOKED_AT);
            let more = chunk.read(map, &mut pass.cursor);
            for (key, half) in chunk.entries() {
                if queue.len() < QUEUE && is_due(half.flow.backend, half.flow.state, &half.syn) {
                    queue.push_back(Found::V4(*key));
                }
            }
            more
        };
        self.pass = match (more.context("read HALF_OPEN")?, pass.second) {
            (true, _) => Some(pass),
            (false, false) => Some(Pass { second: true, cursor: Cursor::default() }),
            (false, true) => None,
        };
        if self.queue.len() >= QUEUE {
            // What has not been noted is found by another pass.
            self.watch.again();
        }
        Ok(())
    }

    /// Runs the SYN of one connection. `None`: it has gone on meanwhile.
    fn run<K: Key>(&mut self, key: &K, now_ns: u64) -> anyhow::Result<Option<Outgoing>>
    where
        Self: Halves<K>,
    {
        let Some(waiting) = self.half(key)?.map(|half| key.waiting(&half)) else { return Ok(None) };
        let patience = self.in_use.get(&waiting.backend).copied().unwrap_or(u64::MAX);
        if !may_run(waiting.state, &waiting.syn)
            || now_ns.saturating_sub(waiting.syn.sent_ns) < patience
        {
            return Ok(None);
        }
        let Ran { action, frame } =
            run::run(self.program.as_fd(), waiting.ifindex, &waiting.frame())
                .context("run a SYN")?;
        if waiting.syn.bits & syn::OVERDUE == 0 {
            self.watch.settled(waiting.backend);
        }
        let ifindex = match action {
            run::Action::Transmit => waiting.ifindex,
            run::Action::Redirect => {
                let Some(half) = self.half(&key.client(&waiting))? else { return Ok(None) };
                let id = key.waiting(&half).backend;
                self.backends.get(&id, 0).context("read BACKENDS")?.ifindex
            }
            run::Action::Other => return Ok(None),
        };
        Ok(Some((ifindex, frame)))
    }
}

/// The time that a backend has to answer.
fn patience_ns(backend: &Backend) -> u64 {
    let ms = if backend.patience_ms == 0 { DEFAULT_PATIENCE_MS } else { backend.patience_ms };
    u64::from(ms) * 1_000_000
}

/// Whether the SYN that a half has, of these state bits, may be run. One that came in a VLAN may not: the
/// tags are not kept.
fn may_run(bits: u32, noted: &lb_common::flow::Syn) -> bool {
    let ended = state::GIVEN_UP | state::ANSWERED | state::RESET;
    bits & (state::RETURN | ended) == state::RETURN
        && noted.bits & (syn::REPLAYABLE | syn::TAGGED) == syn::REPLAYABLE
}

/// The half-open table of a family.
trait Halves<K: Key> {
    /// An entry.
    fn half(&self, key: &K) -> anyhow::Result<Option<K::Half>>;
}

macro_rules! halves {
    ($key:ty, $table:ident) => {
        impl Halves<$key> for Replayer {
            fn half(&self, key: &$key) -> anyhow::Result<Option<<$key as Key>::Half>> {
                match self.$table.get(key, 0) {
                    Ok(half) => Ok(Some(half)),
                    Err(MapError::KeyNotFound) => Ok(None),
                    Err(error) => Err(error).context("read HALF_OPEN"),
                }
            }
        }
    };
}

halves!(FlowKey4, half_open);
halves!(FlowKey6, half_open6);
