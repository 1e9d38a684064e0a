//! Steered services: the planner's tables against a model of the kernel program's rule.

use lb_common::{hash, maglev};

use super::*;
use crate::control::plan::steer::RESETS_FOR;

/// A tuple: its hash.
type Tuple = u32;

/// `FLOWS`, with what the kernel program does to a steered packet.
#[derive(Default)]
struct Flows {
    /// Backend, and when the last packet came.
    entries: BTreeMap<Tuple, (u32, Duration)>,
}

impl Flows {
    /// Where a packet goes; `None` if it is refused.
    fn steer(&mut self, model: &Model, tuple: Tuple, syn: bool, now: Duration) -> Option<u32> {
        let service = model.services.get(&key(80))?;
        if service.table_len == 0 {
            return None;
        }
        let slot = service.table_start + maglev::slot(tuple, service.table_len);
        let Slot { backend, base } = model.slots[&slot];
        let usable =
            |id: u32| model.backends.get(&id).is_some_and(|it| it.flags & backend::FORWARD != 0);
        let chosen = if base == backend {
            backend
        } else if syn {
            let differs = backend != base & !LOOK_UP;
            if differs && usable(backend) {
                self.entries.insert(tuple, (backend, now));
            } else {
                self.entries.remove(&tuple);
            }
            backend
        } else if let Some((backend, seen)) = self.entries.get_mut(&tuple) {
            *seen = now;
            *backend
        } else {
            let base = base & !LOOK_UP;
            if base != backend && usable(base) {
                self.entries.insert(tuple, (base, now));
            }
            base
        };
        usable(chosen).then_some(chosen)
    }

    /// A sweep: forgets what is old, and says what there was.
    fn sweep(&mut self, planner: &mut Planner, now: Duration) {
        let mut by_backend = BTreeMap::new();
        let mut seen = SweptSteered::new();
        for (tuple, (id, _)) in &self.entries {
            *by_backend.entry(*id).or_default() += 1;
            seen.entry(*id).or_default().insert((tuple >> 16) as u16);
        }
        self.entries.retain(|_, (_, seen)| now < *seen + IDLE);
        planner.swept(&by_backend, now);
        planner.swept_steered(&seen, now);
    }
}

/// A site with one steered service.
struct Site {
    planner: Planner,
    model: Model,
    flows: Flows,
    /// Living connections: where each is, and when it last sent.
    open: BTreeMap<Tuple, (u32, Duration)>,
    now: Duration,
}

impl Site {
    fn new(hosts: &[u8]) -> Self {
        let (planner, model) = nothing();
        let (flows, open) = (Flows::default(), BTreeMap::new());
        let mut site = Self { planner, model, flows, open, now: seconds(1000) };
        site.want(&steered(hosts));
        site
    }

    fn want(&mut self, wanted: &Desired) {
        let plan = apply(&mut self.planner, &mut self.model, wanted, self.now);
        assert_eq!(plan.problems, []);
        self.bury();
    }

    /// The connections of backends that are cut off are over.
    fn bury(&mut self) {
        let backends = &self.model.backends;
        self.open.retain(|_, (at, _)| {
            backends.get(at).is_some_and(|it| it.flags & backend::FORWARD != 0)
        });
    }

    fn open(&mut self, tuple: Tuple) -> Option<u32> {
        let id = self.flows.steer(&self.model, tuple, true, self.now)?;
        self.open.insert(tuple, (id, self.now));
        Some(id)
    }

    /// Every connection sends a packet, and it gets to where the connection is.
    fn all_send(&mut self) {
        let tuples: Vec<_> = self.open.keys().copied().collect();
        for tuple in tuples {
            self.send(tuple);
        }
    }

    fn send(&mut self, tuple: Tuple) {
        let Some((at, last)) = self.open.get(&tuple).copied() else { return };
        // It was silent for too long.
        if self.now >= last + IDLE {
            self.open.remove(&tuple);
            return;
        }
        let goes = self.flows.steer(&self.model, tuple, false, self.now);
        assert_eq!(goes, Some(at), "a connection to a living backend has moved");
        self.open.insert(tuple, (at, self.now));
    }

    fn id(&self, host: u8) -> u32 {
        id(&self.planner, 80, host).unwrap()
    }

    fn slots(&self) -> Vec<Slot> {
        self.model.table(&self.model.services[&key(80)])
    }

    fn disturbed(&self) -> u32 {
        self.planner.disturbed(&key(80)).unwrap().0
    }
}

fn steered(hosts: &[u8]) -> Desired {
    let service = DesiredService { forward: Forwarding::Direct, ..service(80, hosts) };
    desired(vec![service])
}

/// Tuples all over the table.
fn tuples(count: u32) -> impl Iterator<Item = Tuple> {
    (0..count).map(|number| hash::mix(u64::from(number), 4711))
}

#[test]
fn a_first_table_is_undisturbed_and_marked() {
    let site = Site::new(&[21, 22]);
    let service = site.model.services[&key(80)];
    assert_eq!(service.flags, STEERED);
    assert!(site.slots().iter().all(|slot| slot.base == slot.backend));
    assert_eq!(site.planner.disturbed(&key(80)), Some((0, 4096)));
    let backend = site.model.backends[&site.id(21)];
    assert_eq!(backend.flags & backend::DIRECT, backend::DIRECT);
    assert_eq!((backend.source, backend.max_packet), ([0; 16], 0), "nothing is wrapped");
}

/// A next hop has changed: so has every service, as the planner sees it.
fn set_hop(wanted: &mut Desired, address: IpAddr, hop: NextHop) {
    Arc::make_mut(&mut wanted.next_hops).insert(address, hop);
    for service in &mut wanted.services {
        *service = Arc::new(DesiredService::clone(service));
    }
}

#[test]
fn a_tunnel_has_a_beginning_and_a_limit() {
    let v6 = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x21], 8080));
    for (address, encapsulation, flags, limit) in [
        (address(21), Encapsulation::Ipip, backend::TUNNEL, 1480),
        (address(21), Encapsulation::Gue, backend::TUNNEL | backend::GUE, 1472),
        (v6, Encapsulation::Ipip, backend::TUNNEL, 1460),
        (v6, Encapsulation::Gue, backend::TUNNEL | backend::GUE, 1452),
    ] {
        let mut wanted = steered(&[21]);
        Arc::make_mut(&mut wanted.services[0]).forward = Forwarding::Tunnel(encapsulation);
        Arc::make_mut(&mut wanted.services[0]).backends[0].address = address;
        let ours = if address.is_ipv4() { "192.0.2.11" } else { "2001:db8::11" }.parse().unwrap();
        let hop = NextHop {
            ifindex: 2,
            source_mac: [2; 6],
            mac: Some([3; 6]),
            mtu: 1500,
            source: Some(ours),
        };
        set_hop(&mut wanted, address.ip(), hop);
        let (mut planner, mut model) = nothing();
        apply(&mut planner, &mut model, &wanted, seconds(0));
        let written = model.backends[&0];
        assert_eq!(written.flags & !backend::RESOLVED, backend::IN_USE | backend::FORWARD | flags);
        assert_eq!(encode::address(written.source), ours);
        assert_eq!(written.max_packet, limit);
        // The link's MTU changes, and then our address there goes.
        set_hop(&mut wanted, address.ip(), NextHop { mtu: 9000, ..hop });
        apply(&mut planner, &mut model, &wanted, seconds(1));
        assert_eq!(model.backends[&0].max_packet, limit + 7500);
        set_hop(&mut wanted, address.ip(), NextHop { source: None, ..hop });
        apply(&mut planner, &mut model, &wanted, seconds(2));
        assert_eq!(model.backends[&0].flags & backend::RESOLVED, 0, "a tunnel begins nowhere");
    }
}

#[test]
fn a_steered_service_is_passed_over_when_time_changes_nothing_more() {
    let mut site = Site::new(&[21, 22]);
    let mut wanted = steered(&[21, 22]);
    site.want(&wanted);
    site.want(&wanted);
    assert!(site.planner.changed(&wanted).is_empty());
    // The filters know it still.
    let other = Arc::new(service(81, &[23]));
    wanted.services.push(other);
    let plan = apply(&mut site.planner, &mut site.model, &wanted, site.now);
    let ports = |op: &Op| match op {
        Op::SetPorts { bytes } => Some(bytes.iter().copied().filter(|byte| *byte != 0).sum()),
        _ => None,
    };
    let (steered, other) = (hash::PORT_SERVED | hash::PORT_STEERED, hash::PORT_SERVED);
    assert_eq!(plan.ops.iter().filter_map(ports).collect::<Vec<u8>>(), [steered + other]);
    let vips = |op: &Op| match op {
        Op::SetVips { bytes } => bytes.iter().copied().find(|byte| *byte != 0),
        _ => None,
    };
    let vips: Vec<_> = plan.ops.iter().filter_map(vips).collect();
    assert_eq!(vips, [hash::VIP | hash::VIP_STEERED]);

    Arc::make_mut(&mut wanted.services[0]).backends[0].serving = false;
    for _ in 0..3 {
        site.want(&wanted);
    }
    assert_eq!(site.planner.changed(&wanted), [0], "slots of it are disturbed");
    site.now += IDLE;
    site.want(&wanted);
    site.now += seconds(2);
    site.flows.sweep(&mut site.planner, site.now);
    for _ in 0..2 {
        site.want(&wanted);
    }
    assert_eq!(site.planner.disturbed(&key(80)).map(|(disturbed, _)| disturbed), Some(0));
    assert!(site.planner.changed(&wanted).is_empty());
}

#[test]
fn an_added_backend_takes_new_connections_and_no_old_one() {
    let mut site = Site::new(&[21, 22]);
    tuples(2000).for_each(|tuple| assert!(site.open(tuple).is_some()));
    site.now += seconds(1);
    site.want(&steered(&[21, 22, 23]));
    let third = site.id(23);
    let share = site.slots().iter().filter(|slot| slot.backend == third).count();
    assert!((1200..1500).contains(&share), "{share}");
    assert!(site.disturbed() >= share as u32);
    site.all_send();
    let new: Vec<_> = tuples(6000).skip(2000).map(|tuple| site.open(tuple).unwrap()).collect();
    assert!(new.iter().filter(|id| **id == third).count() > 1000);
    assert_eq!(site.open.len(), 6000);
    site.now += seconds(1);
    site.all_send();
}

#[test]
fn a_slot_goes_back_to_rest_when_its_old_connections_are_over() {
    let mut site = Site::new(&[21, 22]);
    tuples(500).for_each(|tuple| assert!(site.open(tuple).is_some()));
    let wanted = steered(&[21, 22, 23]);
    site.want(&wanted);
    let begun = site.now;
    // One connection goes on for long; all others end.
    let third = site.id(23);
    let moved = |slot: &Slot| slot.backend == third;
    let lasting = tuples(500).find(|tuple| moved(&site.slots()[(tuple >> 20) as usize])).unwrap();
    site.open.retain(|tuple, _| *tuple == lasting);
    while site.now < begun + IDLE + seconds(3) {
        site.now += seconds(1);
        site.all_send();
        site.flows.sweep(&mut site.planner, site.now);
        site.want(&wanted);
    }
    assert_eq!(site.open.len(), 1);
    assert!(site.slots().iter().all(|slot| slot.base & !LOOK_UP == slot.backend));
    for _ in 0..20 {
        site.now += seconds(1);
        site.all_send();
        site.flows.sweep(&mut site.planner, site.now);
        site.want(&wanted);
    }
    assert_eq!(site.disturbed(), 1, "only the slot of the connection that lasts is looked up");
    site.open.clear();
    for _ in 0..20 {
        site.now += seconds(1);
        site.flows.sweep(&mut site.planner, site.now);
        site.want(&wanted);
    }
    assert_eq!(site.disturbed(), 0);
    assert!(site.slots().iter().all(|slot| slot.base == slot.backend));
}

#[test]
fn a_backend_that_dies_takes_only_its_own_connections_with_it() {
    let mut site = Site::new(&[21, 22, 23]);
    tuples(3000).for_each(|tuple| assert!(site.open(tuple).is_some()));
    let dead = site.id(21);
    let of_dead = site.open.values().filter(|(id, _)| *id == dead).count();
    let mut wanted = steered(&[21, 22, 23]);
    Arc::make_mut(&mut wanted.services[0]).backends[0].serving = false;
    Arc::make_mut(&mut wanted.services[0]).backends[0].forward = false;
    site.now += seconds(1);
    site.want(&wanted);
    site.all_send();
    assert_eq!(site.open.len(), 3000 - of_dead);
    tuples(3000).for_each(|tuple| assert!(site.open(tuple).is_some()));
    assert_eq!(site.disturbed() as usize, of_slots(&site, dead), "no other slot is disturbed");
    // Those who had connections to it are told for a while, and then its slots rest.
    site.now += RESETS_FOR;
    site.open.clear();
    for _ in 0..20 {
        site.now += seconds(1);
        site.flows.sweep(&mut site.planner, site.now);
        site.want(&wanted);
    }
    assert_eq!(site.disturbed(), 0);
}

fn of_slots(site: &Site, base: u32) -> usize {
    site.slots().iter().filter(|slot| slot.base & !LOOK_UP == base).count()
}

#[test]
fn the_last_backend_can_drain() {
    let mut site = Site::new(&[21]);
    tuples(100).for_each(|tuple| assert!(site.open(tuple).is_some()));
    let mut wanted = steered(&[21]);
    Arc::make_mut(&mut wanted.services[0]).backends[0].serving = false;
    site.want(&wanted);
    assert!(site.slots().iter().all(|slot| slot.backend == NOBODY));
    assert_eq!(site.open(77), None);
    site.all_send();
    assert_eq!(site.open.len(), 100);
    // It serves again: its slots have what they had.
    Arc::make_mut(&mut wanted.services[0]).backends[0].serving = true;
    site.now += seconds(1);
    site.want(&wanted);
    site.all_send();
    assert!(site.open(77).is_some());
    assert_eq!(site.open.len(), 101);
}

#[test]
fn before_the_first_packet_there_is_nothing_to_remember() {
    let mut site = Site::new(&[21]);
    site.want(&Desired { untouched: true, ..steered(&[21, 22, 23]) });
    assert_eq!(site.disturbed(), 0);
    site.want(&steered(&[21, 22, 23, 24]));
    assert_ne!(site.disturbed(), 0);
}

#[test]
fn a_removed_service_drains() {
    let mut site = Site::new(&[21, 22]);
    tuples(100).for_each(|tuple| assert!(site.open(tuple).is_some()));
    let none = desired(vec![]);
    site.want(&none);
    assert!(site.model.services.contains_key(&key(80)));
    assert_eq!(site.open(77), None, "no new connection");
    for _ in 0..9 {
        site.now += seconds(3);
        site.all_send();
        site.want(&none);
    }
    assert_eq!(site.open.len(), 100);
    for _ in 0..60 {
        site.now += seconds(3);
        site.all_send();
        site.flows.sweep(&mut site.planner, site.now);
        site.want(&none);
    }
    assert!(site.model.services.is_empty() && site.model.backends.is_empty());
    assert!(
        site.model.filter.iter().chain(&site.model.vips).filter(|word| **word != 0).count() == 1
    );
}

#[test]
fn a_new_daemon_goes_on_with_bases() {
    let mut site = Site::new(&[21, 22]);
    tuples(1000).for_each(|tuple| assert!(site.open(tuple).is_some()));
    site.want(&steered(&[21, 22, 23]));
    let (slots, disturbed) = (site.slots(), site.disturbed());
    site.now += seconds(2);
    site.planner = Planner::adopt(site.model.adopted());
    let plan = apply(&mut site.planner, &mut site.model, &steered(&[21, 22, 23]), site.now);
    assert!(!plan.ops.iter().any(|op| matches!(op, Op::SetTable { .. } | Op::SetService { .. })));
    assert_eq!((site.slots(), site.disturbed()), (slots, disturbed));
    site.all_send();
    assert_eq!(site.open.len(), 1000);
}

#[test]
fn a_table_that_grows_keeps_every_connection() {
    let hosts: Vec<u8> = (1..=40).collect();
    let mut site = Site::new(&hosts);
    tuples(3000).for_each(|tuple| assert!(site.open(tuple).is_some()));
    let more: Vec<u8> = (1..=41).collect();
    site.want(&steered(&more));
    assert_eq!(site.slots().len(), 16_384);
    site.all_send();
    assert_eq!(site.open.len(), 3000);
    // And one that could be smaller stays as it is.
    site.now += seconds(1);
    site.want(&steered(&hosts));
    assert_eq!(site.slots().len(), 16_384);
    site.all_send();
    assert_eq!(site.open.len(), 3000);
}

/// A step of a random life.
#[derive(Clone, Debug)]
enum Event {
    /// Other backends: serving, forwarding, weight.
    Want(Vec<AnyBackend>),
    /// The first writes of a plan are made, then one fails.
    FailAfter(Vec<AnyBackend>, usize),
    /// Connections begin.
    Open(u32, u32),
    /// Some of the connections end, so many of 8.
    Close(usize),
    /// Some connections send, the first or every second one.
    Send(usize),
    /// A sweep.
    Sweep,
    /// The daemon starts anew.
    Restart,
    /// Time passes, in milliseconds.
    Wait(u64),
}

fn any_backends() -> impl Strategy<Value = Vec<AnyBackend>> {
    let backend = prop::option::weighted(0.8, (any::<bool>(), any::<bool>(), 1..64_u32));
    prop::collection::vec(backend, 6)
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => any_backends().prop_map(Event::Want),
        1 => (any_backends(), 0..6_usize).prop_map(|(backends, n)| Event::FailAfter(backends, n)),
        4 => (any::<u32>(), 1..60_u32).prop_map(|(from, count)| Event::Open(from, count)),
        1 => (0..8_usize).prop_map(Event::Close),
        4 => (1..4_usize).prop_map(Event::Send),
        4 => Just(Event::Sweep),
        1 => Just(Event::Restart),
        5 => (0..2500_u64).prop_map(Event::Wait),
    ]
}

fn wanted(backends: Vec<AnyBackend>) -> Desired {
    random_desired(&[Some((0, Forwarding::Direct, backends))])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_connection_of_a_living_backend_is_ever_moved(
        events in prop::collection::vec(any_event(), 1..60),
    ) {
        let mut site = Site::new(&[20, 21, 22]);
        let mut desired = steered(&[20, 21, 22]);
        for event in events {
            match event {
                Event::Want(backends) => desired = wanted(backends),
                Event::FailAfter(backends, count) => {
                    desired = wanted(backends);
                    for op in site.planner.plan(&desired, site.now).ops.iter().take(count) {
                        site.model.apply(op, site.now);
                        site.planner.applied(op, site.now);
                    }
                    site.bury();
                    site.all_send();
                    continue;
                }
                Event::Open(from, count) => {
                    for number in from..from.saturating_add(count) {
                        // A client uses a tuple anew only when its connection is over.
                        let tuple = hash::mix(u64::from(number), 1);
                        site.send(tuple);
                        if !site.open.contains_key(&tuple) {
                            site.open(tuple);
                        }
                    }
                }
                Event::Close(of_8) => {
                    let mut number = 0;
                    site.open.retain(|_, _| {
                        number += 1;
                        number % 8 >= of_8
                    });
                }
                Event::Send(every) => {
                    let tuples: Vec<_> = site.open.keys().copied().step_by(every).collect();
                    for tuple in tuples {
                        site.send(tuple);
                    }
                }
                Event::Sweep => site.flows.sweep(&mut site.planner, site.now),
                Event::Restart => {
                    site.now += seconds(1);
                    site.planner = Planner::adopt(site.model.adopted());
                }
                Event::Wait(milliseconds) => site.now += Duration::from_millis(milliseconds),
            }
            site.want(&desired);
            prop_assert_eq!(kinds(&site.planner.plan(&desired, site.now)), [""; 0]);
        }
        site.all_send();
        // When nothing changes any more, everything comes to rest.
        site.open.clear();
        for _ in 0..100 {
            site.now += seconds(1);
            site.flows.sweep(&mut site.planner, site.now);
            site.want(&desired);
        }
        prop_assert_eq!(site.disturbed(), 0);
        for slot in site.slots() {
            prop_assert_eq!(slot.base, slot.backend);
        }
    }
}
