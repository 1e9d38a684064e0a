//! The writes themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use lb_common::service::{Balance, Service};

use super::{
    Desired, DesiredBackend, Life, Placed, Plan, Planner, Problem, Source, encode, place::Places,
};
use crate::{
    control::{
        ranges::Ranges,
        table::{self, Member, Table},
    },
    dataplane::Op,
};

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
                let wanted = &desired.services[at].backends[place];
                encode::backend(wanted, entry.service, &desired.next_hops)
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
            if had & !backend.flags == 0 { early.push(op) } else { late.push(op) }
        }
        // Identifiers are cleared last, after everything that might have named them.
        late.sort_by_key(|op| matches!(op, Op::ClearBackend { .. }));
        (early, late)
    }

    /// Writes to `MAGLEV`, and to `SERVICES`.
    pub(super) fn service_ops(
        &mut self,
        desired: &Desired,
        changed: &[usize],
        ids: &Places,
        now: Duration,
        plan: &mut Plan,
    ) -> (Vec<Op>, Vec<Op>) {
        let mut members: BTreeMap<usize, Vec<Member>> = BTreeMap::new();
        for (&id, &(at, place)) in ids {
            let DesiredBackend { address, weight, full_weight, serving, .. } =
                desired.services[at].backends[place];
            let weight = if serving { weight } else { 0 };
            members.entry(at).or_default().push(Member { address, id, full_weight, weight });
        }
        let (mut tables, mut services) = (Vec::new(), Vec::new());
        let density = self.density;
        for &at in changed {
            let service = &desired.services[at];
            let key = service.key;
            let Some(placed) = self.services.get_mut(&key) else { continue };
            let mut members = members.remove(&at).unwrap_or_default();
            members.sort_unstable();
            let source = Source { balance: service.balance, density, members };
            if placed.written.is_some() && placed.source.as_ref() == Some(&source) {
                drop_pending(placed, &mut self.ranges);
                continue;
            }
            let Some(Run { start, slots, table_len }) = lay(&mut self.ranges, placed, &source, now)
            else {
                let Table { slots, members } =
                    table::build(source.balance, &source.members, density);
                plan.problems.push(Problem::Slots((slots.len() + members.len()) as u32));
                continue;
            };
            let members_len = slots.len() as u32 - table_len;
            let service = Service {
                index: placed.index,
                table_start: start,
                table_len,
                balance: service.balance as u32,
                members_start: if members_len > 0 { start + table_len } else { 0 },
                members_len,
            };
            placed.pending = Some((service, source));
            if !slots.is_empty() {
                tables.push(Op::SetTable { start, slots });
            }
            services.push(Op::SetService { key, service });
        }
        let wanted: BTreeSet<_> = desired.services.iter().map(|service| service.key).collect();
        for (key, placed) in &mut self.services {
            if !wanted.contains(key) {
                drop_pending(placed, &mut self.ranges);
                if placed.written.is_some() {
                    services.push(Op::RemoveService { key: *key });
                }
            }
        }
        (tables, services)
    }

    /// Notes which of the planned services stand in the maps in full: those without a write.
    pub(super) fn settle(
        &mut self,
        desired: &Desired,
        changed: &[usize],
        ops: &[&[Op]],
        plan: &Plan,
    ) {
        // A backend or a run without room is tried again.
        if !plan.problems.is_empty() {
            return;
        }
        let mut busy: BTreeSet<u32> = BTreeSet::new();
        for op in ops.iter().copied().flatten() {
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
            {
                placed.settled = Some(Arc::clone(service));
            }
        }
    }

    /// The filter: all floating addresses, and those that flows of removed services still use.
    pub(super) fn vip_words(&self, desired: &Desired) -> Vec<u64> {
        let services =
            self.services.iter().filter(|(_, placed)| self.users.contains_key(&placed.index));
        let addresses = services.map(|(key, _)| encode::address(key.address));
        let desired_listens =
            desired.services.iter().map(|service| encode::address(service.key.address));
        encode::vip_words(desired.floating.iter().copied().chain(addresses).chain(desired_listens))
    }
}

/// A planned run of slots: a table, and its members behind it.
struct Run {
    start: u32,
    slots: Vec<u32>,
    table_len: u32,
}

/// Builds a table and finds a place for it, which is that of the table that is planned already if it
/// has the same length. A schedule that has no room is made coarser until it has; a Maglev table is
/// not, for other nodes have the same one.
fn lay(ranges: &mut Ranges, placed: &mut Placed, source: &Source, now: Duration) -> Option<Run> {
    let mut density = source.density;
    loop {
        let Table { mut slots, members } = table::build(source.balance, &source.members, density);
        let table_len = slots.len() as u32;
        slots.extend(members);
        let len = slots.len() as u32;
        if placed.pending.as_ref().is_none_or(|(pending, _)| run(pending).1 != len) {
            drop_pending(placed, ranges);
        }
        let start = match &placed.pending {
            Some((pending, _)) => Some(pending.table_start),
            None if len == 0 => Some(0),
            None => ranges.take(len, now),
        };
        if let Some(start) = start {
            return Some(Run { start, slots, table_len });
        }
        if source.balance == Balance::Maglev {
            return None;
        }
        density = density.sparser()?;
    }
}

fn drop_pending(placed: &mut Placed, ranges: &mut Ranges) {
    if let Some((service, _)) = placed.pending.take() {
        let (start, len) = run(&service);
        ranges.give_back_unused(start, len);
    }
}

/// The run of slots that a service of ours points to: its table, and its members behind it.
pub(super) fn run(service: &Service) -> (u32, u32) {
    (service.table_start, service.table_len + service.members_len)
}
