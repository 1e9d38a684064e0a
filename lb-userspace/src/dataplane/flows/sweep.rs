//! Forgetting what is too old, a slice at a time.
//!
//! A sweep goes over the half-open tables first and the established ones after, so that a connection
//! that moves from one to the other meanwhile is met. Each slice reads a bounded number of entries,
//! and goes on where the last one ended: with millions of flows a sweep takes several seconds, of
//! which each costs the same. No lock is held that a writer of the other tables would wait for.
//!
//! An entry that is read here may be gone, or be another connection's, when it is to be removed. So
//! it is read again, and then taken out in one step with what stands in it at that moment
//! ([`batch::take`]). If that is not what was judged, it is put back. A packet of that connection
//! that comes between the two steps, microseconds apart, finds no entry: that needs a connection
//! that begins, or wakes after two hours, in the same microseconds.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hasher as _},
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;
use aya::maps::MapData;
use lb_common::{
    backend::FORWARD,
    flow::{FlowKey4, FlowKey6, HalfOpen4, HalfOpen6, state},
    names,
};

use super::{Key, STOPPED_NS, Table, Ticks, Value, View, backend};
use crate::dataplane::{
    Sweep, Timeouts,
    active::{Active, Drift},
    batch::{self, Chunk, Cursor},
};

/// Entries that one slice reads. A slice a second of this size reads the entries of a million
/// connections in four seconds, and takes a few percent of one CPU.
const SLICE_ENTRIES: usize = 1 << 19;

/// The two halves of each connection are matched once in so many sweeps: it costs a look-up for each
/// entry, and finds only what the kernel pushed out of a full table.
const MATCH_EVERY: u64 = 10;

/// Sweeps the flow tables.
#[derive(Debug)]
pub struct Sweeper {
    half_open: Swept<FlowKey4, HalfOpen4>,
    half_open6: Swept<FlowKey6, HalfOpen6>,
    flows: Swept<FlowKey4>,
    flows6: Swept<FlowKey6>,
    backends: MapData,
    /// Entries that fit into each of the half-open tables.
    half_open_room: u32,
    active: Arc<Active>,
    drift: Drift,
    /// The sweep that is under way.
    cycle: Option<Cycle>,
    /// Sweeps so far.
    cycles: u64,
}

/// A table and where the sweep stands in it.
#[derive(Debug)]
struct Swept<K: Key, V: Value<K> = <K as Key>::Entry> {
    table: Table<K, V>,
    cursor: Cursor,
    done: bool,
    /// Entries read since the sweep began.
    entries: u64,
    /// Entries whose other half was not there. They are looked at again by the next slice: the kernel
    /// adds the halves of a connection one after the other.
    suspects: Vec<K>,
}

/// What a sweep has seen so far.
#[derive(Debug)]
struct Cycle {
    number: u64,
    sweep: Sweep,
    /// By backend: entries, those of them in the half-open tables, and connections that are open.
    entries: Vec<u32>,
    half_open: Vec<u32>,
    open: Vec<u32>,
    /// Whether backends are cut off, of those that were looked at.
    stopped: HashMap<u32, bool>,
}

/// What a slice goes by.
#[derive(Clone, Copy)]
struct Slice<'a> {
    now_ns: u64,
    timeouts: &'a Timeouts,
    active: &'a Active,
    backends: BorrowedFd<'a>,
}

impl Sweeper {
    pub(in crate::dataplane) fn open(
        pins: &Path,
        active: Arc<Active>,
        ticks: Ticks,
    ) -> anyhow::Result<Self> {
        let half_open = Swept::open(pins, names::HALF_OPEN, true, ticks)?;
        let half_open6 = Swept::open(pins, names::HALF_OPEN6, true, ticks)?;
        Ok(Self {
            half_open_room: half_open.room()?.min(half_open6.room()?),
            half_open,
            half_open6,
            flows: Swept::open(pins, names::FLOWS, false, ticks)?,
            flows6: Swept::open(pins, names::FLOWS6, false, ticks)?,
            backends: crate::dataplane::pinned(pins, names::BACKENDS)?,
            active,
            drift: Drift::default(),
            cycle: None,
            cycles: 0,
        })
    }

    /// Looks at the next slice of the tables, and removes what in it is too old. Answers with the
    /// result of the whole sweep when this slice was its last; the next call begins another.
    pub fn slice(&mut self, now_ns: u64, timeouts: &Timeouts) -> anyhow::Result<Option<Sweep>> {
        self.slice_of(SLICE_ENTRIES, now_ns, timeouts)
    }

    /// A whole sweep, without a pause.
    pub fn sweep(&mut self, now_ns: u64, timeouts: &Timeouts) -> anyhow::Result<Sweep> {
        loop {
            if let Some(sweep) = self.slice(now_ns, timeouts)? {
                return Ok(sweep);
            }
        }
    }

    /// See [`Sweeper::slice`]; ends after the batch that makes it at least `room` entries.
    pub fn slice_of(
        &mut self,
        room: usize,
        now_ns: u64,
        timeouts: &Timeouts,
    ) -> anyhow::Result<Option<Sweep>> {
        let mut cycle = match self.cycle.take() {
            Some(cycle) => cycle,
            None => self.begin(now_ns),
        };
        let active = Arc::clone(&self.active);
        let backends = self.backends.fd().as_fd();
        let slice = Slice { now_ns, timeouts, active: &active, backends };
        self.half_open.remove_suspects(slice, &mut cycle)?;
        self.half_open6.remove_suspects(slice, &mut cycle)?;
        self.flows.remove_suspects(slice, &mut cycle)?;
        self.flows6.remove_suspects(slice, &mut cycle)?;
        let mut left = room;
        self.half_open.read(slice, &mut cycle, &mut left)?;
        self.half_open6.read(slice, &mut cycle, &mut left)?;
        self.flows.read(slice, &mut cycle, &mut left)?;
        self.flows6.read(slice, &mut cycle, &mut left)?;
        if !self.flows6.done {
            self.cycle = Some(cycle);
            return Ok(None);
        }
        self.drift.end(&self.active, &cycle.open);
        let mut sweep = cycle.sweep;
        sweep.by_backend = by_backend(&cycle.entries);
        sweep.half_open = by_backend(&cycle.half_open);
        let fuller = self.half_open.entries.max(self.half_open6.entries);
        sweep.half_open_percent = fuller * 100 / u64::from(self.half_open_room.max(1));
        Ok(Some(sweep))
    }

    fn begin(&mut self, now_ns: u64) -> Cycle {
        self.half_open.rewind();
        self.half_open6.rewind();
        self.flows.rewind();
        self.flows6.rewind();
        self.drift.begin(&self.active);
        let backends = self.active.entries() as usize;
        let number = self.cycles;
        self.cycles += 1;
        Cycle {
            number,
            sweep: Sweep { began_ns: now_ns, ..Sweep::default() },
            entries: vec![0; backends],
            half_open: vec![0; backends],
            open: vec![0; backends],
            stopped: HashMap::new(),
        }
    }
}

/// Counts that are not 0, by backend.
fn by_backend(counts: &[u32]) -> BTreeMap<u32, u64> {
    let used = (0..).zip(counts).filter(|&(_, &count)| count > 0);
    used.map(|(id, &count)| (id, u64::from(count))).collect()
}

impl Cycle {
    fn count<K: Key>(&mut self, key: &K, view: &View, half_open: bool) {
        let backend = view.backend as usize;
        if let Some(entries) = self.entries.get_mut(backend) {
            *entries += 1;
        }
        if let Some(entries) = self.half_open.get_mut(backend).filter(|_| half_open) {
            *entries += 1;
        }
        if view.is_steered() {
            let place = (key.tuple_hash() >> 16) as u16;
            self.sweep.steered.entry(view.backend).or_default().insert(place);
        } else if !view.is_return() && !view.is_given_up() {
            self.sweep.flows += 1;
            if !state::closed(view.state)
                && let Some(open) = self.open.get_mut(view.backend as usize)
            {
                *open += 1;
            }
        }
    }

    /// Whether a backend is cut off, as far as this sweep has looked.
    fn is_stopped(&mut self, id: u32, slice: Slice<'_>) -> anyhow::Result<bool> {
        if let Some(&stopped) = self.stopped.get(&id) {
            return Ok(stopped);
        }
        let stopped = is_stopped(id, slice)?;
        self.stopped.insert(id, stopped);
        Ok(stopped)
    }

    /// A connection that was open until now is removed.
    fn close(&mut self, backend: u32, active: &Active) {
        active.close(backend);
        if let Some(open) = self.open.get_mut(backend as usize) {
            *open = open.saturating_sub(1);
        }
    }
}

/// Whether a backend is cut off: its connections are over.
fn is_stopped(id: u32, slice: Slice<'_>) -> anyhow::Result<bool> {
    Ok(backend(slice.backends, id)?.is_none_or(|backend| backend.flags & FORWARD == 0))
}

impl<K: Key, V: Value<K>> Swept<K, V> {
    fn open(pins: &Path, name: &str, half_open: bool, ticks: Ticks) -> anyhow::Result<Self> {
        Ok(Self {
            table: Table::open(pins, name, half_open, ticks)?,
            cursor: Cursor::default(),
            done: false,
            entries: 0,
            suspects: Vec::new(),
        })
    }

    fn rewind(&mut self) {
        self.cursor = Cursor::default();
        self.done = false;
        self.entries = 0;
    }

    /// Entries that fit into the table.
    fn room(&self) -> anyhow::Result<u32> {
        Ok(self.table.map.info().context("look at a flow table")?.max_entries())
    }

    /// Reads on while there is room: counts every entry, and removes the old ones.
    fn read(
        &mut self,
        slice: Slice<'_>,
        cycle: &mut Cycle,
        left: &mut usize,
    ) -> anyhow::Result<()> {
        let mut chunk = Chunk::<K, V>::new();
        while *left > 0 && !self.done {
            let more = chunk.read(self.table.fd(), &mut self.cursor);
            let more = more.context("read the flow table")?;
            self.done = !more;
            for (key, value) in chunk.entries() {
                let entry = value.flow();
                *left = left.saturating_sub(1);
                self.entries += 1;
                let view = self.table.view(key, entry);
                cycle.count(key, &view, self.table.half_open);
                let age_ns = slice.now_ns.saturating_sub(view.last_seen_ns);
                if view.is_steered() {
                    let timeout_ns = view.timeout_ns(self.table.half_open, slice.timeouts);
                    if age_ns >= timeout_ns
                        || age_ns >= STOPPED_NS && cycle.is_stopped(view.backend, slice)?
                    {
                        self.table.expire_steered(key, slice, cycle)?;
                    }
                    continue;
                }
                let is_old = age_ns >= view.timeout_ns(self.table.half_open, slice.timeouts);
                if view.is_given_up() {
                    if is_old {
                        self.table.forget_given_up(key, slice, cycle)?;
                    }
                    continue;
                }
                if is_old && !view.is_return() {
                    self.table.expire(key, slice, cycle)?;
                } else if (is_old || is_examined(key, cycle.number))
                    && self.table.other_half(key, entry)?.is_none()
                {
                    self.suspects.push(*key);
                }
            }
        }
        Ok(())
    }

    /// Removes the entries that were without their other half already when the last slice met them.
    fn remove_suspects(&mut self, slice: Slice<'_>, cycle: &mut Cycle) -> anyhow::Result<()> {
        for key in std::mem::take(&mut self.suspects) {
            self.table.remove_orphan(&key, slice, cycle)?;
        }
        Ok(())
    }
}

/// Whether the halves of this entry's connection are matched in this sweep.
fn is_examined<K: Key>(key: &K, cycle: u64) -> bool {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish() % MATCH_EVERY == cycle % MATCH_EVERY
}

impl<K: Key, V: Value<K>> Table<K, V> {
    /// Removes a connection if its last packet in either direction is old, given the key of its
    /// client's half.
    fn expire(&self, key: &K, slice: Slice<'_>, cycle: &mut Cycle) -> anyhow::Result<()> {
        let is_old = |entry: &K::Entry, server: Option<&View>| {
            let client = self.view(key, entry);
            let last_seen_ns = client.last_seen_ns.max(server.map_or(0, |s| s.last_seen_ns));
            let age_ns = slice.now_ns.saturating_sub(last_seen_ns);
            age_ns >= client.timeout_ns(self.half_open, slice.timeouts)
        };
        let Some(read) = self.get(key)? else { return Ok(()) };
        if self.view(key, &read).stands_alone() {
            return Ok(());
        }
        let server = self.other_half(key, &read)?;
        if !is_old(&read, server.as_ref()) {
            return Ok(());
        }
        let partner = key.partner(&read);
        let same = |entry: &K::Entry| {
            key.partner(entry) == partner
                && is_old(entry, None)
                && !self.view(key, entry).stands_alone()
        };
        let Some(taken) = self.take_if(key, same)? else { return Ok(()) };
        cycle.sweep.expired += 1;
        let client = self.view(key, &taken);
        if !state::closed(client.state) {
            cycle.close(client.backend, slice.active);
        }
        if server.is_some() {
            self.take_if(&partner, |entry| partner.partner(entry) == *key)?;
        }
        Ok(())
    }

    /// Removes the entry of a steered connection, which stands alone, if its last packet is old.
    fn expire_steered(&self, key: &K, slice: Slice<'_>, cycle: &mut Cycle) -> anyhow::Result<()> {
        let Some(read) = self.get(key)? else { return Ok(()) };
        let before = self.view(key, &read);
        // The backend may have come back since this sweep looked.
        let stopped = is_stopped(before.backend, slice)?;
        let is_old = |entry: &K::Entry| {
            let view = self.view(key, entry);
            let age_ns = slice.now_ns.saturating_sub(view.last_seen_ns);
            let timeout_ns = view.timeout_ns(self.half_open, slice.timeouts);
            view.is_steered()
                && view.backend == before.backend
                && age_ns >= if stopped { timeout_ns.min(STOPPED_NS) } else { timeout_ns }
        };
        if is_old(&read) && self.take_if(key, is_old)?.is_some() {
            cycle.sweep.expired += 1;
        }
        Ok(())
    }

    /// Removes what was kept of a backend that was given up, if its time is over. The connection is
    /// another backend's, and goes on.
    fn forget_given_up(&self, key: &K, slice: Slice<'_>, cycle: &mut Cycle) -> anyhow::Result<()> {
        let is_over = |entry: &K::Entry| {
            let view = self.view(key, entry);
            let age_ns = slice.now_ns.saturating_sub(view.last_seen_ns);
            view.is_given_up() && age_ns >= view.timeout_ns(self.half_open, slice.timeouts)
        };
        if self.get(key)?.is_some_and(|read| is_over(&read))
            && self.take_if(key, is_over)?.is_some()
        {
            cycle.sweep.orphans += 1;
        }
        Ok(())
    }

    /// Removes an entry whose other half is gone, for whichever reason: one direction alone would
    /// swallow the other's packets.
    fn remove_orphan(&self, key: &K, slice: Slice<'_>, cycle: &mut Cycle) -> anyhow::Result<()> {
        let Some(read) = self.get(key)? else { return Ok(()) };
        if self.view(key, &read).stands_alone() || self.other_half(key, &read)?.is_some() {
            return Ok(());
        }
        let partner = key.partner(&read);
        let same = |entry: &K::Entry| {
            key.partner(entry) == partner && !self.view(key, entry).stands_alone()
        };
        let Some(taken) = self.take_if(key, same)? else { return Ok(()) };
        cycle.sweep.orphans += 1;
        let view = self.view(key, &taken);
        if !view.is_return() && !state::closed(view.state) {
            cycle.close(view.backend, slice.active);
        }
        Ok(())
    }

    /// Takes an entry out, if it is still the one that was judged. Another one is put back, unless
    /// yet another has come in its place.
    pub(super) fn take_if(
        &self,
        key: &K,
        same: impl Fn(&K::Entry) -> bool,
    ) -> anyhow::Result<Option<K::Entry>> {
        const WHAT: &str = "remove from the flow table";
        let Some(taken) = batch::take::<K, V>(self.fd(), key).context(WHAT)? else {
            return Ok(None);
        };
        if same(taken.flow()) {
            return Ok(Some(*taken.flow()));
        }
        batch::insert_new(self.fd(), key, &taken).context("put back into the flow table")?;
        Ok(None)
    }
}
