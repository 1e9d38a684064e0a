//! Who may connect, and to what: the lists in `SOURCES`, and what services say of them and of the proxy.
//!
//! A service refers to one of its two lists. A changed list is written whole as the other one, then the
//! service turns to it in one step, and then the old one goes: a packet sees the old list or the new
//! one. What a packet in work may still see of the old one is ever less that allows, and in the end
//! nothing, which refuses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    service::{FILTERED, FORWARDABLE, LISTENED, PROXIED, SECOND_LIST, Service, ServiceKey},
    source::{self, ALLOW, DENY, FLOATING, LIST_BITS, SOURCE_BITS, Source},
};

use super::{Desired, Placed, Planner, encode};
use crate::{config::Guard, dataplane::Op};

/// What the proxy has of a service's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proxied {
    /// None.
    #[default]
    None,
    /// Some that go on; new ones are forwarded by the kernel.
    Old,
    /// The new ones; while nobody listens, the kernel forwards them.
    New,
    /// The new ones, and nobody else can take them.
    Only,
}

/// Entries of `SOURCES`, by key and length of the prefix in bits.
pub(super) type Sources = BTreeMap<(Source, u32), u32>;

impl Planner {
    /// Completes the writes of a plan: lists are written before services refer to them, and removed
    /// after.
    ///
    /// The lists of services that are not among the `changed` ones are right.
    pub(super) fn guard(&self, desired: &Desired, changed: &[usize], ops: &mut Vec<Op>) {
        let mut wanted = floating(desired);
        let mut gone = BTreeSet::new();
        let planned = planned(ops);
        let mut judged = BTreeSet::new();
        for service in changed.iter().map(|&at| &desired.services[at]) {
            judged.insert(service.key);
            let Some(placed) = self.services.get(&service.key) else { continue };
            let flags = self.guard_flags(placed, &service.guard);
            if flags & FILTERED != 0 {
                let list = source::list(placed.index, flags);
                let entries = entries(list, &service.guard);
                // An attempt that failed, or a service that had the index before, may have left some.
                gone.extend(
                    self.list(list).map(|(key, _)| key).filter(|it| !entries.contains_key(it)),
                );
                wanted.extend(entries);
            }
            let flags = flags | proxied_flags(service.proxied);
            let guarded = |written| {
                let guarded = guarded(written, flags, service.guard.rate);
                Service { parked_until: service.parked_until, ..guarded }
            };
            refer(ops, &planned, service.key, placed.written, guarded);
        }
        let stale = gone.iter().map(|&(source, bits)| Op::RemoveSource { bits, source });
        let mut early: Vec<_> = stale.collect();
        let missing = wanted.iter().filter(|(key, verdict)| self.sources.get(key) != Some(verdict));
        early.extend(missing.map(|(&(source, bits), &verdict)| Op::SetSource {
            bits,
            source,
            verdict,
        }));
        ops.splice(0..0, early);

        // A service that is configured no longer may be written still; the next plan sees.
        let left = self.services.iter().filter(|(key, _)| !judged.contains(key));
        let left: BTreeSet<u32> = left.filter_map(|(_, placed)| list_in_use(placed)).collect();
        let mut late: Vec<_> = self
            .sources
            .iter()
            .filter(|(key, _)| !wanted.contains_key(key) && !gone.contains(key))
            .filter(|((source, _), _)| !left.contains(&source.list))
            // What allows goes first.
            .map(|(&(source, bits), &verdict)| (verdict == DENY, source, bits))
            .collect();
        late.sort_unstable();
        ops.extend(late.into_iter().map(|(_, source, bits)| Op::RemoveSource { bits, source }));
    }

    /// The flags of a service that says so: those that it has, if its list is right; or else the other
    /// list.
    fn guard_flags(&self, placed: &Placed, guard: &Guard) -> u32 {
        if guard.is_open() {
            return 0;
        }
        let written = placed.written.map_or(0, |written| written.flags) & (FILTERED | SECOND_LIST);
        if written & FILTERED == 0 {
            return FILTERED;
        }
        let list = source::list(placed.index, written);
        let is_right = entries(list, guard).into_iter().eq(self.list(list));
        if is_right { written } else { written ^ SECOND_LIST }
    }

    /// What stands in a list.
    fn list(&self, list: u32) -> impl Iterator<Item = ((Source, u32), u32)> {
        let first = (Source { list, address: [0; 16] }, 0);
        let last = (Source { list, address: [u8::MAX; 16] }, u32::MAX);
        self.sources.range(first..=last).map(|(key, verdict)| (*key, *verdict))
    }
}

/// The list that a written service refers to.
fn list_in_use(placed: &Placed) -> Option<u32> {
    let flags = placed.written?.flags;
    (flags & FILTERED != 0).then(|| source::list(placed.index, flags))
}

/// Where the planned services stand among the writes.
fn planned(ops: &[Op]) -> BTreeMap<ServiceKey, usize> {
    let services = ops.iter().enumerate().filter_map(|(at, op)| match op {
        Op::SetService { key, .. } => Some((*key, at)),
        _ => None,
    });
    services.collect()
}

fn proxied_flags(proxied: Proxied) -> u32 {
    match proxied {
        Proxied::None => 0,
        Proxied::Old => LISTENED,
        Proxied::New => LISTENED | PROXIED | FORWARDABLE,
        Proxied::Only => LISTENED | PROXIED,
    }
}

/// The service with its list, with the rate of each source, and with what the proxy has of it.
fn guarded(service: Service, flags: u32, rate: Option<(u32, u32)>) -> Service {
    const ALL_FLAGS: u32 = FILTERED | SECOND_LIST | LISTENED | PROXIED | FORWARDABLE;
    let (source_rate, source_burst) = rate.unwrap_or_default();
    let flags = service.flags & !ALL_FLAGS | flags;
    Service { flags, source_rate, source_burst, ..service }
}

/// Makes the planned service what `guarded` makes of it; plans it if nothing else of it changes.
fn refer(
    ops: &mut Vec<Op>,
    planned: &BTreeMap<ServiceKey, usize>,
    service_key: ServiceKey,
    written: Option<Service>,
    guarded: impl Fn(Service) -> Service,
) {
    let op = planned.get(&service_key).and_then(|&at| ops.get_mut(at));
    if let Some(Op::SetService { service, .. }) = op {
        *service = guarded(*service);
    } else if let Some(written) = written
        && guarded(written) != written
    {
        ops.push(Op::SetService { key: service_key, service: guarded(written) });
    }
}

/// The entries of a service's list.
fn entries(list: u32, guard: &Guard) -> Sources {
    let verdict = |allowed| if allowed { ALLOW } else { DENY };
    let others = (Source { list, address: [0; 16] }, LIST_BITS);
    let sources = guard.sources.iter().map(|&((address, length), allowed)| {
        let before = if address.is_ipv4() { 96 } else { 0 };
        let source = Source { list, address: encode::bytes(address) };
        ((source, LIST_BITS + before + u32::from(length)), verdict(allowed))
    });
    std::iter::once((others, verdict(guard.others))).chain(sources).collect()
}

/// The list of floating addresses.
fn floating(desired: &Desired) -> Sources {
    let listens = desired.services.iter().map(|service| encode::address(service.key.address));
    let addresses = desired.floating.iter().copied().chain(listens);
    let entry = |address: IpAddr| {
        ((Source { list: FLOATING, address: encode::bytes(address) }, SOURCE_BITS), ALLOW)
    };
    addresses.map(entry).collect()
}

#[cfg(test)]
mod tests;
