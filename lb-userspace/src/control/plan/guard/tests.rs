//! What a packet meets between any two writes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use lb_common::service::Balance;
use proptest::prelude::*;

use super::*;
use crate::{
    config::{Forwarding, Protocol, Replay},
    control::plan::{DesiredService, service_key},
    dataplane::Adopted,
};

/// The maps that decide who may connect.
#[derive(Clone, Default)]
struct Maps {
    services: BTreeMap<ServiceKey, Service>,
    sources: Sources,
}

impl Maps {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::SetService { key, service } => drop(self.services.insert(*key, *service)),
            Op::RemoveService { key } => drop(self.services.remove(key)),
            Op::SetSource { bits, source, verdict } => {
                self.sources.insert((*source, *bits), *verdict);
            }
            Op::RemoveSource { bits, source } => drop(self.sources.remove(&(*source, *bits))),
            _ => {}
        }
    }

    /// As the kernel program looks: the longest prefix, and nothing refuses.
    fn admits(&self, key: ServiceKey, address: IpAddr) -> bool {
        let service = self.services[&key];
        if service.flags & FILTERED == 0 {
            return true;
        }
        let list = source::list(service.index, service.flags);
        let address = u128::from_be_bytes(encode::bytes(address));
        let matching = self.sources.iter().filter(|((source, bits), _)| {
            let differ = u128::from_be_bytes(source.address) ^ address;
            source.list == list && differ.leading_zeros() >= bits - LIST_BITS
        });
        let longest = matching.max_by_key(|((_, bits), _)| *bits);
        longest.is_some_and(|(_, verdict)| *verdict == ALLOW)
    }

    fn adopted(&self) -> Adopted {
        Adopted {
            services: self.services.iter().map(|(key, service)| (*key, *service)).collect(),
            backends: Vec::new(),
            sources: self.sources.iter().map(|(key, verdict)| (*key, *verdict)).collect(),
            ..Adopted::default()
        }
    }
}

/// As the configuration says it.
fn means(guard: &Guard, address: IpAddr) -> bool {
    let IpAddr::V4(address) = address else { unreachable!("IPv4 only") };
    let matching = guard.sources.iter().filter(|((network, length), _)| {
        let IpAddr::V4(network) = network else { unreachable!("IPv4 only") };
        (network.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(*length)
    });
    let longest = matching.max_by_key(|((_, length), _)| *length);
    longest.map_or(guard.is_open() || guard.others, |(_, allowed)| *allowed)
}

fn key(port: u16) -> ServiceKey {
    service_key(SocketAddr::from(([192, 0, 2, 100], port)), Protocol::Tcp)
}

fn desired(guards: &[Guard]) -> Desired {
    let services = (80..).zip(guards).map(|(port, guard)| DesiredService {
        key: key(port),
        balance: Balance::Maglev,
        forward: Forwarding::Nat,
        replay: Replay { tries: 0, per_mille: 0 },
        drain_timeout: Duration::ZERO,
        backends: Vec::new(),
        guard: guard.clone(),
        proxied: Proxied::None,
        parked_until: 0,
    });
    let services = services.map(Arc::new);
    Desired { services: services.collect(), ..Desired::default() }
}

fn guard() -> impl Strategy<Value = Guard> {
    let network = (0..4_u8, prop_oneof![Just(8_u8), Just(16), Just(24), Just(32)]);
    let sources = proptest::collection::btree_map(network, any::<bool>(), 0..6);
    let rate = prop_oneof![Just(None), Just(Some((100, 100))), Just(Some((5, 50)))];
    (sources, any::<bool>(), rate).prop_map(|(networks, others, rate)| {
        let address = |host: u8, length: u8| {
            let mask = u32::MAX << (32 - u32::from(length));
            IpAddr::from(std::net::Ipv4Addr::from_bits(
                u32::from_be_bytes([198, 51, host, host]) & mask,
            ))
        };
        let sources: BTreeMap<_, _> = networks
            .into_iter()
            .map(|((host, length), allowed)| ((address(host, length), length), allowed))
            .collect();
        Guard { sources: sources.into_iter().collect(), others, rate }
    })
}

fn clients() -> impl Iterator<Item = IpAddr> {
    let hosts = (0..4_u8).flat_map(|host| [[198, 51, host, host], [198, 51, host, 9]]);
    hosts.chain([[198, 9, 9, 9], [203, 0, 113, 9]]).map(IpAddr::from)
}

proptest! {
    #[test]
    fn no_packet_is_admitted_that_neither_the_old_nor_the_new_list_admits(
        states in proptest::collection::vec((guard(), guard(), 0..30_usize, any::<bool>()), 1..8),
    ) {
        let now = Duration::from_secs(100);
        let mut maps = Maps::default();
        let mut planner = Planner::adopt(Adopted::default());
        for (one, two, stop, restart) in states {
            let guards = [one, two];
            let desired = desired(&guards);
            // The first attempt stops somewhere, and the second does not.
            for stop in [stop, usize::MAX] {
                if restart {
                    planner = Planner::adopt(maps.adopted());
                }
                let before = maps.clone();
                for op in planner.plan(&desired, now).ops.iter().take(stop) {
                    maps.apply(op);
                    planner.applied(op, now);
                    for (port, guard) in (80..).zip(&guards) {
                        let was = before.services.contains_key(&key(port));
                        if !maps.services.contains_key(&key(port)) {
                            continue;
                        }
                        for client in clients() {
                            let may = means(guard, client)
                                || was && before.admits(key(port), client);
                            prop_assert!(may || !maps.admits(key(port), client), "{client} by {op:?}");
                            let must = means(guard, client)
                                && (!was || before.admits(key(port), client));
                            let last = matches!(op, Op::RemoveSource { .. });
                            prop_assert!(last || !must || maps.admits(key(port), client), "{client}");
                        }
                    }
                }
            }
            for (port, guard) in (80..).zip(&guards) {
                for client in clients() {
                    prop_assert_eq!(maps.admits(key(port), client), means(guard, client));
                }
                let service = maps.services[&key(port)];
                let rate = guard.rate.unwrap_or_default();
                prop_assert_eq!((service.source_rate, service.source_burst), rate);
            }
            let rest = planner.plan(&desired, now).ops;
            prop_assert!(rest.is_empty(), "{rest:?}");
            // Nothing of other lists is left.
            let lists: BTreeSet<_> = maps.sources.keys().map(|(source, _)| source.list).collect();
            let filtered = guards.iter().filter(|guard| !guard.is_open()).count();
            prop_assert_eq!(lists.len(), filtered + 1, "{:?}", lists);
        }
    }
}

#[test]
fn a_change_of_one_service_leaves_the_lists_of_the_others() {
    let now = Duration::from_secs(100);
    let of = |host: u8| Guard {
        sources: vec![((IpAddr::from([198, 51, 100, host]), 32), true)],
        others: false,
        rate: None,
    };
    let mut planner = Planner::adopt(Adopted::default());
    let mut wanted = desired(&[of(1), of(2), of(3)]);
    let mut last = 0;
    for _ in 0..2 {
        let ops = planner.plan(&wanted, now).ops;
        for op in &ops {
            planner.applied(op, now);
        }
        last = ops.len();
    }
    assert_eq!(last, 0);
    assert!(planner.changed(&wanted).is_empty());

    Arc::make_mut(&mut wanted.services[1]).guard = of(9);
    assert_eq!(planner.changed(&wanted), [1]);
    let ops = planner.plan(&wanted, now).ops;
    let lists = |ops: &[Op]| -> Vec<u32> {
        let list = |op: &Op| match op {
            Op::SetSource { source, .. } | Op::RemoveSource { source, .. } => Some(source.list),
            _ => None,
        };
        ops.iter().filter_map(list).collect()
    };
    assert_eq!(lists(&ops), [3, 3, 2, 2], "the other list of that service comes, the old one goes");
    for op in &ops {
        planner.applied(op, now);
    }
    assert_eq!(planner.plan(&wanted, now).ops, []);
}

#[test]
fn a_removed_service_leaves_no_list() {
    let now = Duration::from_secs(100);
    let client = (IpAddr::from([198, 51, 100, 0]), 24);
    let closed = Guard { sources: vec![(client, true)], others: false, rate: None };
    let mut planner = Planner::adopt(Adopted::default());
    let mut maps = Maps::default();
    for guards in [&[closed][..], &[]] {
        for _ in 0..2 {
            for op in planner.plan(&desired(guards), now).ops {
                maps.apply(&op);
                planner.applied(&op, now);
            }
        }
        let of_services = maps.sources.keys().filter(|(source, _)| source.list != FLOATING).count();
        assert_eq!(of_services, 2 * guards.len());
    }
}
