//! The writes themselves.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use lb_common::{
    backend,
    service::{Balance, STEERED, Service, ServiceKey, Slot},
};

use super::{
    Desired, DesiredBackend, Life, Pending, Placed, Plan, Planner, Problem, Source, encode,
    place::Places,
    steer::{self, Base, Steering},
};
use crate::{
    config::{Forwarding, Replay},
    control::{
        ranges::Ranges,
        table::{self, Member, Table},
    },
    dataplane::Op,
};

/// IP protocol number of TCP.
const TCP: u8 = 6;

impl Planner {
    /// Writes to `BACKENDS`: those that come before the tables, and those that come after.
    pub(super) fn backend_ops(
        &self,
        desired: &Desired,
        ids: &Places,
        now: Duration,
    ) -> (Vec<Op>, Vec<Op>) {
        let (mut early, mut late) = (Vec::new(), Vec::new());
        let concerned: BTreeSet<u32> =
            ids.keys().copied().chain(self.waning.iter().copied()).collect();
        for id in concerned {
            let Some(entry) = self.backends.get(&id) else { continue };
            if entry.life == Life::Unused {
                late.push(Op::ClearBackend { id });
                continue;
            }
            let backend = if let Some(&(at, place)) = ids.get(&id) {
                let service = &desired.services[at];
                let wanted = &service.backends[place];
                let forward = service.forward;
                let mut backend =
                    encode::backend(wanted, entry.service, forward, &desired.next_hops);
                if backend.patience_ms == 0 {
                    // What a previous daemon has learned is better than nothing.
                    backend.patience_ms = entry.written.map_or(0, |written| written.patience_ms);
                }
                backend
            } else {
                let Some(written) = entry.written else { continue };
                let cut = !matches!(entry.life, Life::Draining { until } if now < until);
                encode::retired(written, entry.address, cut, &desired.next_hops)
            };
            if entry.written == Some(backend) {
                continue;
            }
            let had = entry.written.map_or(0, |written| written.flags);
            let op = Op::SetBackend { id, backend };
            // The way of its packets (`DIRECT` and the like) may change at any point.
            let lost = had & !backend.flags & (backend::FORWARD | backend::RESOLVED);
            let begins = backend.flags & !had & backend::FORWARD != 0;
            if lost == 0 || begins { early.push(op) } else { late.push(op) }
        }
        // Identifiers are cleared last, after everything that might have named them.
        late.sort_by_key(|op| matches!(op, Op::ClearBackend { .. }));
        (early, late)
    }

    /// Writes to `MAGLEV`, and to `SERVICES`; and the steered services that there are afterwards.
    pub(super) fn service_ops(
        &mut self,
        desired: &Desired,
        changed: &[usize],
        ids: &Places,
        now: Duration,
        plan: &mut Plan,
    ) -> (Vec<Op>, Vec<Op>, BTreeSet<ServiceKey>) {
        let mut members: BTreeMap<usize, Vec<Member>> = BTreeMap::new();
        let mut forwarding = BTreeSet::new();
        for (&id, &(at, place)) in ids {
            let DesiredBackend { address, weight, full_weight, serving, forward, .. } =
                desired.services[at].backends[place];
            forwarding.extend(forward.then_some(id));
            let weight = if serving { weight } else { 0 };
            members.entry(at).or_default().push(Member { address, id, full_weight, weight });
        }
        let mut writes = Writes {
            now,
            untouched: desired.untouched,
            tables: Vec::new(),
            services: Vec::new(),
            problems: &mut plan.problems,
        };
        let density = self.density;
        for &at in changed {
            let service = &desired.services[at];
            let Some(placed) = self.services.get_mut(&service.key) else { continue };
            let mut members = members.remove(&at).unwrap_or_default();
            members.sort_unstable();
            let steered = service.forward != Forwarding::Nat;
            let replay = service.replay;
            let source = Source { balance: service.balance, density, steered, replay, members };
            if steered {
                let idle = desired.idle(service.key);
                let base = |id| Self::base(&self.backends, &forwarding, id);
                writes.steer(service.key, placed, source, idle, base, &mut self.ranges);
            } else {
                writes.table(service.key, placed, source, &mut self.ranges);
            }
        }
        let mut steered = BTreeSet::new();
        let mut wanted = BTreeSet::new();
        for service in &desired.services {
            wanted.insert(service.key);
            if service.forward != Forwarding::Nat && self.services.contains_key(&service.key) {
                steered.insert(service.key);
            }
        }
        let drains = self.draining(now);
        for (&key, placed) in &mut self.services {
            if wanted.contains(&key) {
                continue;
            }
            if placed.is_steered() && drains.contains(&placed.index) {
                steered.insert(key);
                let base = |id| Self::base(&self.backends, &forwarding, id);
                let idle = desired.idle(key);
                // Nobody takes new connections.
                let source = Source {
                    balance: Balance::Maglev,
                    density,
                    steered: true,
                    replay: Replay { tries: 0, per_mille: 0 },
                    members: Vec::new(),
                };
                writes.steer(key, placed, source, idle, base, &mut self.ranges);
                continue;
            }
            drop_pending(placed, &mut self.ranges);
            if placed.written.is_some() {
                writes.services.push(Op::RemoveService { key });
            }
        }
        (writes.tables, writes.services, steered)
    }

    /// The indexes of services with backends that are configured no longer and whose connections still
    /// go on, or are still told that they are over.
    fn draining(&self, now: Duration) -> BTreeSet<u32> {
        let waning = self.waning.iter().filter_map(|id| self.backends.get(id));
        let draining = waning.filter(|entry| {
            let told = entry.stopped.is_some_and(|stopped| now >= stopped + steer::RESETS_FOR);
            entry.life != Life::Unused && !told
        });
        draining.map(|entry| entry.service).collect()
    }

    /// Notes which of the planned services stand in the maps in full: those without a write, now or
    /// when some time is over.
    pub(super) fn settle(&mut self, desired: &Desired, changed: &[usize], plan: &Plan) {
        // A backend or a run without room is tried again.
        if !plan.problems.is_empty() {
            return;
        }
        let mut busy: BTreeSet<u32> = BTreeSet::new();
        for op in &plan.ops {
            match op {
                Op::SetBackend { id, .. } => {
                    busy.extend(self.backends.get(id).map(|entry| entry.service));
                }
                Op::SetService { service, .. } => {
                    busy.insert(service.index);
                }
                _ => {}
            }
        }
        for service in changed.iter().map(|&at| &desired.services[at]) {
            if let Some(placed) = self.services.get_mut(&service.key)
                && !busy.contains(&placed.index)
                && !placed.is_disturbed()
            {
                placed.settled = Some(Arc::clone(service));
            }
        }
    }

    /// The filter: all floating addresses, and those that flows of removed services still use.
    pub(super) fn vip_filter(&self, desired: &Desired, steered: &BTreeSet<ServiceKey>) -> Vec<u8> {
        let addresses = self.used().map(|key| encode::address(key.address));
        let addresses = desired.floating.iter().copied().chain(addresses);
        let services = desired.services.iter().map(|service| service.key);
        encode::vip_filter(addresses, services.chain(steered.iter().copied()), steered)
    }

    /// The filter of services: all that are wanted or drain, and those that were removed and still have flows.
    pub(super) fn ports_filter(
        &self,
        desired: &Desired,
        steered: &BTreeSet<ServiceKey>,
    ) -> Vec<u8> {
        let services = desired.services.iter().map(|service| service.key);
        let services = services.chain(steered.iter().copied()).chain(self.used());
        encode::ports_filter(services, steered)
    }

    /// Services that have flows once the plan is done: it clears the backends that have none.
    fn used(&self) -> impl Iterator<Item = ServiceKey> {
        let mut cleared: HashMap<u32, u32> = HashMap::new();
        for entry in self.waning.iter().filter_map(|id| self.backends.get(id)) {
            *cleared.entry(entry.service).or_default() += u32::from(entry.life == Life::Unused);
        }
        let used = move |index: u32| {
            let users = self.users.get(&index).copied().unwrap_or_default();
            users > cleared.get(&index).copied().unwrap_or_default()
        };
        self.services.iter().filter(move |(_, placed)| used(placed.index)).map(|(key, _)| *key)
    }
}

impl Desired {
    /// How long a connection of the service may be silent and still lives.
    fn idle(&self, key: ServiceKey) -> Duration {
        if key.protocol == TCP { self.tcp_idle } else { self.udp_idle }
    }
}

/// Writes that are being collected.
struct Writes<'a> {
    now: Duration,
    /// As in [`Desired`].
    untouched: bool,
    tables: Vec<Op>,
    services: Vec<Op>,
    problems: &'a mut Vec<Problem>,
}

impl Writes<'_> {
    /// Writes the table of a service whose connections stand in `FLOWS`, if it has changed.
    fn table(&mut self, key: ServiceKey, placed: &mut Placed, source: Source, ranges: &mut Ranges) {
        if placed.written.is_some() && placed.source.as_ref() == Some(&source) {
            drop_pending(placed, ranges);
            return;
        }
        let mut density = source.density;
        let mut wanted = None;
        let (start, Table { slots, members }) = loop {
            let table = table::build(source.balance, &source.members, density);
            let len = (table.slots.len() + table.members.len()) as u32;
            if let Some(start) = room(placed, len, self.now, ranges) {
                break (start, table);
            }
            let wanted = *wanted.get_or_insert(len);
            // A schedule that has no room is made coarser until it has; a Maglev table is not, for other
            // nodes have the same one.
            let sparser = density.sparser().filter(|_| source.balance != Balance::Maglev);
            let Some(sparser) = sparser else {
                self.problems.push(Problem::Slots(wanted));
                return;
            };
            density = sparser;
        };
        let service = Service {
            index: placed.index,
            table_len: slots.len() as u32,
            balance: source.balance as u32,
            members_len: members.len() as u32,
            replay_tries: source.replay.tries,
            replay_per_mille: source.replay.per_mille,
            ..Service::ZERO
        };
        // The members stand behind the table, in the same run of slots.
        let slots = slots.into_iter().chain(members).map(Slot::of).collect();
        self.write(key, placed, start, Pending { service, source, steering: None }, slots);
    }

    /// Writes the table of a steered service, if something has changed or a time is over.
    fn steer(
        &mut self,
        key: ServiceKey,
        placed: &mut Placed,
        source: Source,
        idle: Duration,
        base: impl Fn(u32) -> Base,
        ranges: &mut Ranges,
    ) {
        let is_written = placed.is_steered();
        let old = placed.steering.get_or_insert_default();
        // Times that a previous daemon knew are counted from now on.
        old.written(self.now);
        if is_written
            && placed.source.as_ref() == Some(&source)
            && !old.is_due(idle, self.now, &base)
        {
            drop_pending(placed, ranges);
            return;
        }
        let wanted = table::steered(&source.members);
        let steering = if self.untouched {
            Steering::default().turn(&wanted, idle, self.now, base)
        } else {
            old.turn(&wanted, idle, self.now, base)
        };
        if is_written && steering.slots() == old.slots() {
            placed.source = Some(source);
            drop_pending(placed, ranges);
            return;
        }
        let len = steering.slots().len() as u32;
        let Some(start) = room(placed, len, self.now, ranges) else {
            self.problems.push(Problem::Slots(len));
            return;
        };
        let service = Service {
            index: placed.index,
            table_len: len,
            balance: Balance::Maglev as u32,
            flags: STEERED,
            ..Service::ZERO
        };
        let slots = steering.slots().to_vec();
        let pending = Pending { service, source, steering: Some(steering) };
        self.write(key, placed, start, pending, slots);
    }

    /// Writes the slots from `start` on, and the service that points to them.
    fn write(
        &mut self,
        key: ServiceKey,
        placed: &mut Placed,
        start: u32,
        mut pending: Pending,
        slots: Vec<Slot>,
    ) {
        let service = &mut pending.service;
        service.table_start = start;
        if service.members_len > 0 {
            service.members_start = start + service.table_len;
        }
        let service = *service;
        placed.pending = Some(pending);
        if !slots.is_empty() {
            self.tables.push(Op::SetTable { start, slots });
        }
        self.services.push(Op::SetService { key, service });
    }
}

/// A run of `len` slots: that of the table that is planned already, if it has the same length.
fn room(placed: &mut Placed, len: u32, now: Duration, ranges: &mut Ranges) -> Option<u32> {
    if placed.pending.as_ref().is_none_or(|pending| run(&pending.service).1 != len) {
        drop_pending(placed, ranges);
    }
    match &placed.pending {
        Some(pending) => Some(pending.service.table_start),
        None if len == 0 => Some(0),
        None => ranges.take(len, now),
    }
}

fn drop_pending(placed: &mut Placed, ranges: &mut Ranges) {
    if let Some(pending) = placed.pending.take() {
        let (start, len) = run(&pending.service);
        ranges.give_back_unused(start, len);
    }
}

/// The run of slots that a service of ours points to: its table, and its members behind it.
pub(super) fn run(service: &Service) -> (u32, u32) {
    (service.table_start, service.table_len + service.members_len)
}
