//! The state in plain maps.

use std::{
    boxed::Box,
    cell::{Cell, RefCell, UnsafeCell},
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    vec,
    vec::Vec,
};

use lb_common::{
    backend::Backend,
    event::Event,
    flow::{FlowKey4, FlowKey6, HalfOpen4, HalfOpen6, state},
    hash::{PORT_SERVED, PORT_STEERED},
    lease::LeaseKey,
    limits::{DEFAULT_BACKENDS, DEFAULT_SERVICES, DEFAULT_SLOTS, REPLAY_BUDGET, REPLAY_COST},
    news::{Begun4, Begun6, Node},
    reason::Reason,
    service::{Service, ServiceKey, Slot},
    source::{Bucket, LIST_BITS, RateKey, Source},
    stats::{BackendSignals, BackendStats, ServiceStats, handshake_class},
    trace::{SAMPLE_EVERY, Sample, Stage},
};

use super::setup::{Setup, mapped_ip, service_key};
use crate::{
    cookie::Cookie,
    family::{Address, Family, Ports, Tuple, V4, V6},
    packet::Packet,
    sample,
    tables::{Signal, Tables},
    too_big,
};

mod flows;
mod of_family;

pub use flows::FlowTables;

/// Length of a tick here, nanoseconds.
pub const TICK_NS: u64 = 1_000_000;

/// All the state, as the maps of the kernel would hold it.
///
/// Entries of flow tables have addresses of their own, as in the kernel: a reference to one stays
/// valid when it is removed, until [`FakeTables::bury`].
pub struct FakeTables {
    now_ns: Cell<u64>,
    random: Cell<u32>,
    vips: Vec<u8>,
    ports: Vec<u8>,
    macs: Vec<u8>,
    services: HashMap<ServiceKey, Service>,
    backends: Vec<Backend>,
    leases: HashMap<LeaseKey, u64>,
    slots: Vec<Slot>,
    sources: BTreeMap<(u32, Source), u32>,
    buckets: RefCell<HashMap<RateKey, Box<UnsafeCell<Bucket>>>>,
    cursors: RefCell<BTreeMap<u32, u64>>,
    active: RefCell<BTreeMap<u32, u64>>,
    reasons: RefCell<Vec<u64>>,
    service_stats: RefCell<BTreeMap<u32, ServiceStats>>,
    backend_stats: RefCell<BTreeMap<u32, BackendStats>>,
    signals: RefCell<BTreeMap<u32, BackendSignals>>,
    spent: RefCell<BTreeMap<u32, u64>>,
    events: RefCell<Vec<Event>>,
    samples: RefCell<Vec<Sample>>,
    stage: Cell<Stage>,
    answered_ns: Cell<u64>,
    cookie: Cell<Option<Cookie>>,
    own_scale: Cell<Option<u8>>,
    node: Cell<Node>,
    news: RefCell<Vec<News>>,
    meanwhile: RefCell<Option<Meanwhile>>,
    /// The flow tables of IPv4.
    pub v4: FlowTables<V4>,
    /// The flow tables of IPv6.
    pub v6: FlowTables<V6>,
}

/// A step of the data path that another CPU may come right before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An insertion into `FLOWS`.
    Establish,
    /// A half-open connection is taken from its backend, or given to the next.
    Replay,
}

/// A record of `NEWS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// An IPv4 connection is established.
    Begun4(Begun4),
    /// An IPv6 connection is established.
    Begun6(Begun6),
    /// An IPv4 connection has ended.
    Ended4(FlowKey4),
    /// An IPv6 connection has ended.
    Ended6(FlowKey6),
}

/// What happens elsewhere while a packet is in work.
struct Meanwhile {
    step: Step,
    /// So many such steps come first.
    after: u32,
    event: Box<dyn FnOnce(&FakeTables)>,
}

impl FakeTables {
    /// The state before the first packet.
    ///
    /// # Panics
    ///
    /// When the configuration does not fit the maps.
    #[must_use]
    pub fn new(setup: &Setup) -> Self {
        let (vips, ports) = setup.filters();
        let mut tables = Self {
            now_ns: Cell::new(1_000_000_000_000),
            random: Cell::new(1),
            vips,
            ports,
            macs: setup.mac_filter(),
            services: setup.services.iter().copied().collect(),
            backends: vec![Backend::ZERO; DEFAULT_BACKENDS as usize],
            leases: HashMap::new(),
            slots: setup.slots.clone(),
            sources: setup.sources.iter().copied().collect(),
            buckets: RefCell::default(),
            cursors: RefCell::default(),
            active: RefCell::default(),
            reasons: RefCell::new(vec![0; Reason::COUNT as usize]),
            service_stats: RefCell::default(),
            backend_stats: RefCell::default(),
            signals: RefCell::default(),
            spent: RefCell::default(),
            events: RefCell::default(),
            samples: RefCell::default(),
            stage: Cell::new(Stage::Filter),
            answered_ns: Cell::new(0),
            cookie: Cell::new(None),
            own_scale: Cell::new(None),
            node: Cell::new(Node::ZERO),
            news: RefCell::default(),
            meanwhile: RefCell::default(),
            v4: FlowTables::new(0, HalfOpen4::ZERO),
            v6: FlowTables::new([0; 2], HalfOpen6::ZERO),
        };
        for (id, backend) in &setup.backends {
            tables.set_backend(*id, *backend);
        }
        tables
    }

    /// Changes a backend.
    ///
    /// # Panics
    ///
    /// When `BACKENDS` has no such index.
    pub fn set_backend(&mut self, id: u32, backend: Backend) {
        self.backends[id as usize] = backend;
    }

    /// Gives a backend a lease until then, on the clock of the flows.
    ///
    /// # Panics
    ///
    /// When `BACKENDS` has no such index.
    pub fn set_lease(&mut self, id: u32, until_ns: u64) {
        let Backend { address, port, .. } = self.backends[id as usize];
        self.leases.insert(LeaseKey::backend(&address, port), until_ns);
    }

    /// Sets and clears flags of a backend.
    ///
    /// # Panics
    ///
    /// When `BACKENDS` has no such index.
    pub fn set_flag(&mut self, id: u32, flag: u16, on: bool) {
        let flags = &mut self.backends[id as usize].flags;
        *flags = if on { *flags | flag } else { *flags & !flag };
    }

    /// Replaces the table of a service. The slots of its old one stay, as in the kernel.
    ///
    /// # Panics
    ///
    /// When there is no such service.
    pub fn set_table(&mut self, listen: SocketAddr, protocol: u8, table: &[u32]) {
        let start = self.slots.len() as u32;
        self.slots.extend(table.iter().map(|id| Slot::of(*id)));
        let service =
            self.services.get_mut(&service_key(listen, protocol)).expect("a service there");
        (service.table_start, service.table_len) = (start, table.len() as u32);
    }

    /// Changes a slot, as user space does in place. `index` is that in `MAGLEV`.
    ///
    /// # Panics
    ///
    /// When no table has the slot.
    pub fn set_slot(&mut self, index: u32, slot: Slot) {
        self.slots[index as usize] = slot;
    }

    /// Sets the clock.
    pub fn set_now_ns(&self, now_ns: u64) {
        self.now_ns.set(now_ns);
    }

    /// Frees the entries that were removed.
    pub fn bury(&mut self) {
        self.v4.bury();
        self.v6.bury();
    }

    /// Runs `event` as on another CPU, once, right before the insertion into `FLOWS` that follows
    /// `after` others.
    pub fn meanwhile(&self, after: u32, event: impl FnOnce(&Self) + 'static) {
        self.meanwhile_at(Step::Establish, after, event);
    }

    /// Runs `event` as on another CPU, once, right before the step that follows `after` others of its
    /// kind.
    pub fn meanwhile_at(&self, step: Step, after: u32, event: impl FnOnce(&Self) + 'static) {
        *self.meanwhile.borrow_mut() = Some(Meanwhile { step, after, event: Box::new(event) });
    }

    fn let_others_run(&self, now: Step) {
        let due = match &mut *self.meanwhile.borrow_mut() {
            Some(Meanwhile { step, after: 0, .. }) => *step == now,
            Some(meanwhile) => {
                if meanwhile.step == now {
                    meanwhile.after -= 1;
                }
                false
            }
            None => false,
        };
        let Some(meanwhile) = due.then(|| self.meanwhile.take()).flatten() else { return };
        self.v4.on_cpu(1);
        self.v6.on_cpu(1);
        (meanwhile.event)(self);
        self.v4.on_cpu(0);
        self.v6.on_cpu(0);
    }

    /// What the node's own stack says to SYNs for its listeners from now on, and how it scales its windows.
    pub fn set_cookie(&self, cookie: Option<Cookie>, own_scale: Option<u8>) {
        self.cookie.set(cookie);
        self.own_scale.set(own_scale);
    }

    /// Counts a packet that was not forwarded.
    pub fn count_reason(&self, reason: Reason) {
        self.reasons.borrow_mut()[reason as usize] += 1;
    }

    /// Packets counted under a reason.
    #[must_use]
    pub fn reason(&self, reason: Reason) -> u64 {
        self.reasons.borrow()[reason as usize]
    }

    /// Packets by reason.
    #[must_use]
    pub fn reasons(&self) -> Vec<u64> {
        self.reasons.borrow().clone()
    }

    /// Counters of a backend.
    #[must_use]
    pub fn backend_stats(&self, id: u32) -> BackendStats {
        self.backend_stats.borrow().get(&id).copied().unwrap_or(BackendStats::ZERO)
    }

    /// Counters of a service.
    #[must_use]
    pub fn service_stats(&self, index: u32) -> ServiceStats {
        self.service_stats.borrow().get(&index).copied().unwrap_or(ServiceStats::ZERO)
    }

    /// What connections have shown of a backend.
    #[must_use]
    pub fn signals(&self, id: u32) -> BackendSignals {
        self.signals.borrow().get(&id).copied().unwrap_or(BackendSignals::ZERO)
    }

    /// Packets in all counters that a packet may end in.
    #[must_use]
    pub fn counted(&self) -> u64 {
        let forwarded: u64 = self
            .backend_stats
            .borrow()
            .values()
            .map(|stats| stats.forward_packets + stats.return_packets)
            .sum();
        forwarded + self.reasons.borrow().iter().sum::<u64>()
    }

    /// What this node is among the others, from now on.
    pub fn set_node(&self, node: Node) {
        self.node.set(node);
    }

    /// Takes what was told to the other nodes.
    #[must_use]
    pub fn take_news(&self) -> Vec<News> {
        self.news.take()
    }

    /// Takes the reports to user space. (The kernel sends each reason once a second and CPU; here
    /// they all are.)
    #[must_use]
    pub fn take_events(&self) -> Vec<Event> {
        self.events.take()
    }

    /// Takes the samples.
    #[must_use]
    pub fn take_samples(&self) -> Vec<Sample> {
        self.samples.take()
    }

    /// The step that decided about the last packet.
    #[must_use]
    pub fn last_stage(&self) -> Stage {
        self.stage.get()
    }
}

impl Tables for FakeTables {
    fn has_listener(&self, _packet: &Packet, _key: &ServiceKey) -> bool {
        // Nor does anybody listen where the kernel runs the same packets.
        false
    }

    fn is_foreign(&self, place: u32) -> bool {
        self.macs[place as usize] != 0
    }

    fn own_scale(&self) -> Option<u8> {
        self.own_scale.get()
    }

    fn ticks(&self) -> u64 {
        self.now_ns.get() / TICK_NS
    }

    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn clock_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn random(&self) -> u32 {
        // xorshift (Marsaglia 2003): never 0, period 2^32 - 1.
        let mut number = self.random.get();
        number ^= number << 13;
        number ^= number >> 17;
        number ^= number << 5;
        self.random.set(number);
        number
    }

    fn vip(&self, place: u32) -> u8 {
        self.vips[place as usize]
    }

    fn is_steered(&self, place: u32) -> bool {
        self.ports[place as usize] & PORT_STEERED != 0
    }

    fn is_served(&self, place: u32) -> bool {
        self.ports[place as usize] & PORT_SERVED != 0
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.services.get(key).copied()
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(id as usize)
    }

    fn is_lease_over(&self, backend: u32) -> bool {
        let key = self.backend(backend).map(|it| LeaseKey::backend(&it.address, it.port));
        let until_ns = key.and_then(|key| self.leases.get(&key));
        until_ns.is_none_or(|until_ns| *until_ns <= self.now_ns.get())
    }

    fn slot(&self, index: u32) -> Option<&Slot> {
        // An array has all its elements, with zeros in those that nobody wrote.
        (index < DEFAULT_SLOTS).then(|| self.slots.get(index as usize).unwrap_or(&Slot::ZERO))
    }

    fn source(&self, list: u32, address: &[u8; 16]) -> Option<u32> {
        let matches = |(bits, prefix): &(u32, Source)| {
            let differ = u128::from_be_bytes(prefix.address) ^ u128::from_be_bytes(*address);
            prefix.list == list && differ.leading_zeros() >= bits - LIST_BITS
        };
        // They are in the order of their lengths.
        self.sources.iter().rev().find(|(key, _)| matches(key)).map(|(_, verdict)| *verdict)
    }

    fn bucket(&self, key: &RateKey) -> Option<&mut Bucket> {
        // SAFETY: buckets are never removed, and one thread uses them, one packet after another.
        self.buckets.borrow().get(key).map(|bucket| unsafe { &mut *bucket.get() })
    }

    fn add_bucket(&self, key: &RateKey, bucket: Bucket) {
        self.buckets.borrow_mut().entry(*key).or_insert_with(|| Box::new(UnsafeCell::new(bucket)));
    }

    fn next_cursor(&self, service: u32) -> u32 {
        if service >= DEFAULT_SERVICES {
            return 0;
        }
        let mut cursors = self.cursors.borrow_mut();
        let cursor = cursors.entry(service).or_default();
        *cursor += 1;
        (*cursor - 1) as u32
    }

    fn active(&self, backend: u32) -> u64 {
        self.active.borrow().get(&backend).copied().unwrap_or(0)
    }

    fn open(&self, backend: u32) {
        let mut active = self.active.borrow_mut();
        let count = active.entry(backend).or_default();
        *count = count.wrapping_add(1);
    }

    fn close(&self, backend: u32) {
        let mut active = self.active.borrow_mut();
        let count = active.entry(backend).or_default();
        *count = count.wrapping_sub(1);
    }

    #[expect(clippy::not_unsafe_ptr_arg_deref, reason = "the trait's words are those of entries")]
    fn set_bits(&self, word: *mut u64, bits: u64) -> u64 {
        assert!(word.is_aligned(), "an atomic operation on an unaligned word");
        if bits == u64::from(state::GIVEN_UP) << if cfg!(target_endian = "big") { 0 } else { 32 } {
            self.let_others_run(Step::Replay);
        }
        // SAFETY: the word lies in an entry that was looked up, whose memory lives until `bury`.
        unsafe {
            let before = *word;
            *word = before | bits;
            before
        }
    }

    fn count_forward(&self, backend: u32, bytes: u64) {
        let mut stats = self.backend_stats.borrow_mut();
        let stats = stats.entry(backend).or_insert(BackendStats::ZERO);
        stats.forward_packets += 1;
        stats.forward_bytes += bytes;
    }

    fn count_steered(&self, backend: &u32, bytes: u64) -> bool {
        self.count_forward(*backend, bytes);
        self.backend_stats(*backend).forward_packets.is_multiple_of(SAMPLE_EVERY)
    }

    fn sample(&self, packet: &Packet, l3: usize, backend: u32, bytes: u64) {
        let sample = sample::sample(packet, l3, backend, bytes as u32, self.now_ns());
        self.samples.borrow_mut().extend(sample);
    }

    fn stage(&self, stage: Stage) {
        self.stage.set(stage);
    }

    fn count_return(&self, backend: u32, bytes: u64) {
        let mut stats = self.backend_stats.borrow_mut();
        let stats = stats.entry(backend).or_insert(BackendStats::ZERO);
        stats.return_packets += 1;
        stats.return_bytes += bytes;
    }

    fn count_connection(&self, service: u32, backend: u32) {
        let mut services = self.service_stats.borrow_mut();
        services.entry(service).or_insert(ServiceStats::ZERO).connections += 1;
        // As in the kernel, where no element has that number.
        if backend != u32::MAX {
            let mut backends = self.backend_stats.borrow_mut();
            backends.entry(backend).or_insert(BackendStats::ZERO).connections += 1;
        }
    }

    fn count_answered(&self, backend: u32) {
        let mut backends = self.backend_stats.borrow_mut();
        backends.entry(backend).or_insert(BackendStats::ZERO).answered += 1;
    }

    fn count_refused(&self, service: u32) {
        let mut services = self.service_stats.borrow_mut();
        services.entry(service).or_insert(ServiceStats::ZERO).refused += 1;
    }

    fn signal(&self, backend: u32, signal: Signal) {
        let mut signals = self.signals.borrow_mut();
        let signals = signals.entry(backend).or_insert(BackendSignals::ZERO);
        match signal {
            Signal::Attempt => signals.attempts += 1,
            Signal::Answered(took_ns) => {
                signals.answered += 1;
                if let Some(took_ns) = took_ns {
                    signals.handshakes[handshake_class(took_ns)] += 1;
                }
            }
            Signal::Refused => signals.refused += 1,
            Signal::Unreachable => signals.unreachable += 1,
            Signal::Unanswered => signals.unanswered += 1,
            Signal::Reset => signals.resets += 1,
        }
    }

    fn count_replayed(&self, service: u32, backend: u32) {
        let mut services = self.service_stats.borrow_mut();
        services.entry(service).or_insert(ServiceStats::ZERO).replayed += 1;
        let mut backends = self.backend_stats.borrow_mut();
        backends.entry(backend).or_insert(BackendStats::ZERO).connections += 1;
    }

    fn count_not_replayed(&self, service: u32) {
        let mut services = self.service_stats.borrow_mut();
        services.entry(service).or_insert(ServiceStats::ZERO).not_replayed += 1;
    }

    fn earn_replays(&self, service: u32, amount: u64) {
        let mut spent = self.spent.borrow_mut();
        let spent = spent.entry(service).or_default();
        *spent = spent.saturating_sub(amount);
    }

    fn spend_replay(&self, service: u32) -> bool {
        let mut spent = self.spent.borrow_mut();
        let spent = spent.entry(service).or_default();
        if *spent + REPLAY_COST > REPLAY_BUDGET {
            return false;
        }
        *spent += REPLAY_COST;
        true
    }

    fn node(&self) -> Node {
        self.node.get()
    }

    fn report(&self, event: Event) {
        self.events.borrow_mut().push(event);
    }

    fn may_answer(&self) -> bool {
        let mut paid_ns = self.answered_ns.get();
        let may = too_big::take_turn(&mut paid_ns, self.now_ns.get());
        self.answered_ns.set(paid_ns);
        may
    }
}

/// The tuple of packets between two hosts of the family.
///
/// # Panics
///
/// When they are of another family.
#[must_use]
pub fn tuple<F: Family>(src: SocketAddr, dst: SocketAddr) -> Tuple<F::Address> {
    Tuple {
        src: F::Address::from_mapped(&mapped_ip(src.ip())),
        dst: F::Address::from_mapped(&mapped_ip(dst.ip())),
        ports: Ports::new(src.port().to_be_bytes(), dst.port().to_be_bytes()),
    }
}
