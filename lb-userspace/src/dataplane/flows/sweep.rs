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
    collections::BTreeMap,
    hash::{DefaultHasher, Hasher as _},
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;
use lb_common::{
    flow::{FlowKey4, FlowKey6, state},
    names,
};

use super::{Key, Table, View};
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
    half_open: Swept<FlowKey4>,
    half_open6: Swept<FlowKey6>,
    flows: Swept<FlowKey4>,
    flows6: Swept<FlowKey6>,
    active: Arc<Active>,
    drift: Drift,
    /// The sweep that is under way.
    cycle: Option<Cycle>,
    /// Sweeps so far.
    cycles: u64,
}

/// A table and where the sweep stands in it.
#[derive(Debug)]
struct Swept<K> {
    table: Table<K>,
    cursor: Cursor,
    done: bool,
    /// Entries whose other half was not there. They are looked at again by the next slice: the kernel
    /// adds the halves of a connection one after the other.
    suspects: Vec<K>,
}

/// What a sweep has seen so far.
#[derive(Debug)]
struct Cycle {
    number: u64,
    sweep: Sweep,
    /// By backend: entries, and connections that are open.
    entries: Vec<u32>,
    open: Vec<u32>,
}

/// What a slice goes by.
#[derive(Clone, Copy)]
struct Slice<'a> {
    now_ns: u64,
    timeouts: &'a Timeouts,
    active: &'a Active,
}

impl Sweeper {
    pub(in crate::dataplane) fn open(pins: &Path, active: Arc<Active>) -> anyhow::Result<Self> {
        Ok(Self {
            half_open: Swept::open(pins, names::HALF_OPEN, true)?,
            half_open6: Swept::open(pins, names::HALF_OPEN6, true)?,
            flows: Swept::open(pins, names::FLOWS, false)?,
            flows6: Swept::open(pins, names::FLOWS6, false)?,
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
        let slice = Slice { now_ns, timeouts, active: &active };
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
        let used = (0..).zip(&cycle.entries).filter(|&(_, &entries)| entries > 0);
        sweep.by_backend = used.map(|(id, &entries)| (id, u64::from(entries))).collect();
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
            sweep: Sweep { began_ns: now_ns, by_backend: BTreeMap::new(), ..Sweep::default() },
            entries: vec![0; backends],
            open: vec![0; backends],
        }
    }
}

impl Cycle {
    fn count(&mut self, view: &View) {
        if let Some(entries) = self.entries.get_mut(view.backend as usize) {
            *entries += 1;
        }
        if !view.is_return() {
            self.sweep.flows += 1;
            if !state::closed(view.state)
                && let Some(open) = self.open.get_mut(view.backend as usize)
            {
                *open += 1;
            }
        }
    }

    /// A connection that was open until now is removed.
    fn close(&mut self, backend: u32, active: &Active) {
        active.close(backend);
        if let Some(open) = self.open.get_mut(backend as usize) {
            *open = open.saturating_sub(1);
        }
    }
}

impl<K: Key> Swept<K> {
    fn open(pins: &Path, name: &str, half_open: bool) -> anyhow::Result<Self> {
        Ok(Self {
            table: Table::open(pins, name, half_open)?,
            cursor: Cursor::default(),
            done: false,
            suspects: Vec::new(),
        })
    }

    fn rewind(&mut self) {
        self.cursor = Cursor::default();
        self.done = false;
    }

    /// Reads on while there is room: counts every entry, and removes the old ones.
    fn read(
        &mut self,
        slice: Slice<'_>,
        cycle: &mut Cycle,
        left: &mut usize,
    ) -> anyhow::Result<()> {
        let mut chunk = Chunk::<K, K::Entry>::new();
        while *left > 0 && !self.done {
            let more = chunk.read(self.table.fd(), &mut self.cursor);
            let more = more.context("read the flow table")?;
            self.done = !more;
            for (key, entry) in chunk.entries() {
                *left = left.saturating_sub(1);
                let view = key.view(entry);
                cycle.count(&view);
                let age_ns = slice.now_ns.saturating_sub(view.last_seen_ns);
                let is_old = age_ns >= view.timeout_ns(self.table.half_open, slice.timeouts);
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

impl<K: Key> Table<K> {
    /// Removes a connection if its last packet in either direction is old, given the key of its
    /// client's half.
    fn expire(&self, key: &K, slice: Slice<'_>, cycle: &mut Cycle) -> anyhow::Result<()> {
        let is_old = |entry: &K::Entry, server: Option<&View>| {
            let client = key.view(entry);
            let last_seen_ns = client.last_seen_ns.max(server.map_or(0, |s| s.last_seen_ns));
            let age_ns = slice.now_ns.saturating_sub(last_seen_ns);
            age_ns >= client.timeout_ns(self.half_open, slice.timeouts)
        };
        let Some(read) = self.get(key)? else { return Ok(()) };
        let server = self.other_half(key, &read)?;
        if !is_old(&read, server.as_ref()) {
            return Ok(());
        }
        let partner = key.partner(&read);
        let same = |entry: &K::Entry| key.partner(entry) == partner && is_old(entry, None);
        let Some(taken) = self.take_if(key, same)? else { return Ok(()) };
        cycle.sweep.expired += 1;
        let client = key.view(&taken);
        if !state::closed(client.state) {
            cycle.close(client.backend, slice.active);
        }
        if server.is_some() {
            self.take_if(&partner, |entry| partner.partner(entry) == *key)?;
        }
        Ok(())
    }

    /// Removes an entry whose other half is gone, for whichever reason: one direction alone would
    /// swallow the other's packets.
    fn remove_orphan(&self, key: &K, slice: Slice<'_>, cycle: &mut Cycle) -> anyhow::Result<()> {
        let Some(read) = self.get(key)? else { return Ok(()) };
        if self.other_half(key, &read)?.is_some() {
            return Ok(());
        }
        let partner = key.partner(&read);
        let same = |entry: &K::Entry| key.partner(entry) == partner;
        let Some(taken) = self.take_if(key, same)? else { return Ok(()) };
        cycle.sweep.orphans += 1;
        let view = key.view(&taken);
        if !view.is_return() && !state::closed(view.state) {
            cycle.close(view.backend, slice.active);
        }
        Ok(())
    }

    /// Takes an entry out, if it is still the one that was judged. Another one is put back, unless
    /// yet another has come in its place.
    fn take_if(
        &self,
        key: &K,
        same: impl Fn(&K::Entry) -> bool,
    ) -> anyhow::Result<Option<K::Entry>> {
        const WHAT: &str = "remove from the flow table";
        let Some(taken) = batch::take::<K, K::Entry>(self.fd(), key).context(WHAT)? else {
            return Ok(None);
        };
        if same(&taken) {
            return Ok(Some(taken));
        }
        batch::insert_new(self.fd(), key, &taken).context("put back into the flow table")?;
        Ok(None)
    }
}
