//! The writes themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::service::{Service, Slot};

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
        for (&id, entry) in &self.backends {
            if entry.life == Life::Unused {
                late.push(Op::ClearBackend { id });
                continue;
            }
            let backend = if let Some(&(at, place)) = ids.get(&id) {
                let wanted = &desired.services[at].backends[place];
                let mut backend = encode::backend(wanted, entry.service, &desired.next_hops);
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
        for (at, service) in desired.services.iter().enumerate() {
            let key = service.key;
            let Some(placed) = self.services.get_mut(&key) else { continue };
            let mut members = members.remove(&at).unwrap_or_default();
            members.sort_unstable();
            let source = Source { balance: service.balance, replay: service.replay, members };
            if placed.written.is_some() && placed.source.as_ref() == Some(&source) {
                drop_pending(placed, &mut self.ranges);
                continue;
            }
            let Table { mut slots, members } = table::build(service.balance, &source.members);
            let (table_len, members_len) = (slots.len() as u32, members.len() as u32);
            // The members stand behind the table, in the same run of slots.
            slots.extend(members);
            let len = slots.len() as u32;
            if placed.pending.as_ref().is_none_or(|(pending, _)| run(pending).1 != len) {
                drop_pending(placed, &mut self.ranges);
            }
            let start = match &placed.pending {
                Some((pending, _)) => Some(pending.table_start),
                None if len == 0 => Some(0),
                None => self.ranges.take(len, now),
            };
            let Some(start) = start else {
                plan.problems.push(Problem::Slots(len));
                continue;
            };
            let service = Service {
                index: placed.index,
                table_start: start,
                table_len,
                balance: service.balance as u32,
                members_start: if members_len > 0 { start + table_len } else { 0 },
                members_len,
                replay_tries: service.replay.tries,
                replay_per_mille: service.replay.per_mille,
                ..Service::ZERO
            };
            placed.pending = Some((service, source));
            if len > 0 {
                let slots = slots.into_iter().map(Slot::of).collect();
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

    /// The filter: all floating addresses, and those that flows of removed services still use.
    pub(super) fn vip_words(&self, desired: &Desired) -> Vec<u64> {
        let in_use: BTreeSet<u32> = self.backends.values().map(|entry| entry.service).collect();
        let services = self.services.iter().filter(|(_, placed)| in_use.contains(&placed.index));
        let addresses = services.map(|(key, _)| encode::address(key.address));
        let desired_listens =
            desired.services.iter().map(|service| encode::address(service.key.address));
        encode::vip_words(desired.floating.iter().copied().chain(addresses).chain(desired_listens))
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
