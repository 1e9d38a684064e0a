//! The flow tables of one family.

use std::{
    boxed::Box,
    cell::{Cell, RefCell, UnsafeCell},
    collections::HashMap,
    hash::Hash,
    vec::Vec,
};

use lb_common::{flow::Syn, service::Service};

use crate::{
    family::{ClientSide, Family, Ports, Tuple},
    packet::Macs,
    replay::Tags,
    tables::{Entry, HalfOpen, NotInserted, Scratch},
};

/// `FLOWS` and `HALF_OPEN` of one family, and the scratch of two CPUs.
pub struct FlowTables<F: Family + Copy> {
    pub(super) flows: Table<F::Key, F::Entry>,
    pub(super) half_open: Table<F::Key, F::HalfOpen>,
    scratch: [UnsafeCell<Scratch<F>>; 2],
    cpu: Cell<usize>,
}

impl<F: Family<Key: Eq + Hash> + Copy> FlowTables<F> {
    pub(super) fn new(some: F::Address, mut half: F::HalfOpen) -> Self {
        // What the scratch holds means nothing, so it holds something that would be noticed.
        let tuple = Tuple { src: some, dst: some, ports: Ports(0x5a5a_5a5a) };
        let side = ClientSide { macs: Macs::load(&[0x5a; 12]), ifindex: 0x5a };
        *half.flow_mut() = F::Entry::new(tuple, tuple, 0x5a, 0x5a);
        *half.syn_mut() = Syn { tries: 0x5a, bits: 0x5a, options_len: 0x5a, ..Syn::ZERO };
        let scratch = Scratch {
            client: F::key(tuple, 0x5a),
            server: F::key(tuple, 0x5a),
            entry: F::Entry::new(tuple, tuple, 0x5a, 0x5a),
            half,
            service: Service { table_len: 0x5a, ..Service::ZERO },
            tags: Tags { l3: 0x5a, ..Tags::NONE },
            tuple,
            replies: tuple,
            side,
            backend: 0x5a,
            load: 0x5a,
            weight: 0x5a,
            seed: 0x5a,
            protocol: 0x5a,
        };
        Self {
            flows: Table::default(),
            half_open: Table::default(),
            scratch: [UnsafeCell::new(scratch), UnsafeCell::new(scratch)],
            cpu: Cell::new(0),
        }
    }

    pub(super) fn on_cpu(&self, cpu: usize) {
        self.cpu.set(cpu);
    }

    /// The scratch of the CPU that the packet in work is on.
    pub(super) fn scratch(&self) -> *mut Scratch<F> {
        self.scratch[self.cpu.get()].get()
    }

    pub(super) fn bury(&mut self) {
        self.flows.removed.get_mut().clear();
        self.half_open.removed.get_mut().clear();
    }

    /// All of `FLOWS`.
    #[must_use]
    pub fn flows(&self) -> HashMap<F::Key, F::Entry> {
        self.flows.copy()
    }

    /// All of `HALF_OPEN`, without the SYNs.
    #[must_use]
    pub fn half_open(&self) -> HashMap<F::Key, F::Entry> {
        self.half_open.copy().into_iter().map(|(key, half)| (key, *half.flow())).collect()
    }

    /// All of `HALF_OPEN`.
    #[must_use]
    pub fn halves(&self) -> HashMap<F::Key, F::HalfOpen> {
        self.half_open.copy()
    }

    /// Adds to `FLOWS`, as another node or daemon would.
    pub fn put_flow(&self, key: F::Key, entry: F::Entry) {
        self.flows.remove(&key);
        let _ = self.flows.insert(&key, &entry);
    }

    /// Removes from `FLOWS`, as the kernel does when the table is full, and user space when an entry
    /// is old.
    pub fn evict_flow(&self, key: &F::Key) -> bool {
        self.flows.remove(key)
    }

    /// Removes from `HALF_OPEN`.
    pub fn evict_half_open(&self, key: &F::Key) -> bool {
        self.half_open.remove(key)
    }

    /// Makes `FLOWS` and `HALF_OPEN` take no more than so many entries.
    pub fn limit(&self, flows: usize, half_open: usize) {
        self.flows.limit.set(flows);
        self.half_open.limit.set(half_open);
    }
}

/// A hash map with entries that do not move.
pub(super) struct Table<K, E> {
    entries: RefCell<HashMap<K, Box<UnsafeCell<E>>>>,
    /// Entries that were removed: somebody may still look at them.
    removed: RefCell<Vec<Box<UnsafeCell<E>>>>,
    limit: Cell<usize>,
}

impl<K, E> Default for Table<K, E> {
    fn default() -> Self {
        Self {
            entries: RefCell::default(),
            removed: RefCell::default(),
            limit: Cell::new(usize::MAX),
        }
    }
}

impl<K: Copy + Eq + Hash, E: Copy> Table<K, E> {
    #[expect(clippy::mut_from_ref, reason = "as in the kernel, see `Flows`")]
    pub(super) fn get(&self, key: &K) -> Option<&mut E> {
        // SAFETY: the memory lives until `bury`, which needs the tables alone; writes of the data
        // path through two references to one entry are of plain words, and one thread makes them.
        self.entries.borrow().get(key).map(|entry| unsafe { &mut *entry.get() })
    }

    pub(super) fn insert(&self, key: &K, entry: &E) -> Result<(), NotInserted> {
        let mut entries = self.entries.borrow_mut();
        if entries.contains_key(key) || entries.len() >= self.limit.get() {
            return Err(NotInserted);
        }
        entries.insert(*key, Box::new(UnsafeCell::new(*entry)));
        Ok(())
    }

    pub(super) fn remove(&self, key: &K) -> bool {
        let removed = self.entries.borrow_mut().remove(key);
        let was_there = removed.is_some();
        self.removed.borrow_mut().extend(removed);
        was_there
    }

    pub(super) fn replace(&self, key: &K, entry: &E) -> Result<(), NotInserted> {
        if !self.remove(key) {
            return Err(NotInserted);
        }
        self.entries.borrow_mut().insert(*key, Box::new(UnsafeCell::new(*entry)));
        Ok(())
    }

    fn copy(&self) -> HashMap<K, E> {
        // SAFETY: as in `get`.
        self.entries.borrow().iter().map(|(key, entry)| (*key, unsafe { *entry.get() })).collect()
    }
}
