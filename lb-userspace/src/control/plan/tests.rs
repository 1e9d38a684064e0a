//! The planner against a model of the maps.

use lb_common::{
    service::{LOOK_UP, NOBODY, Slot},
    source::Source,
};
use proptest::prelude::*;

use super::*;
use crate::{
    config::{Encapsulation, Protocol},
    net::NextHop,
};

mod steer;

/// Places in a filter, and the bits that stand there.
type Places = Vec<(usize, u8)>;

/// What one service needs in `VIPS` and in `PORTS`.
fn places(key: ServiceKey, steered: bool) -> [Places; 2] {
    let steered = BTreeSet::from_iter(steered.then_some(key));
    let filters = [
        encode::vip_filter(std::iter::empty(), std::iter::once(key), &steered),
        encode::ports_filter(std::iter::once(key), &steered),
    ];
    filters.map(|filter| filter.into_iter().enumerate().filter(|(_, bits)| *bits != 0).collect())
}

/// The maps, and what must always hold of them.
#[derive(Default)]
struct Model {
    services: BTreeMap<ServiceKey, Service>,
    backends: BTreeMap<u32, Backend>,
    slots: BTreeMap<u32, Slot>,
    /// What each run of slots names, backend and base, by its first slot; and its length.
    named: BTreeMap<u32, (u32, BTreeSet<(u32, u32)>)>,
    vips: Vec<u8>,
    sources: BTreeMap<(Source, u32), u32>,
    filter: Vec<u8>,
    /// The bytes of both filters that a service needs, steered or not. The encoder is asked once for each: the
    /// filters are long, and looked at after every write.
    places: BTreeMap<(ServiceKey, bool), [Places; 2]>,
    /// Slots that a service pointed to, and until when.
    left: Vec<(u32, u32, Duration)>,
}

impl Model {
    fn apply(&mut self, op: &Op, now: Duration) {
        match op {
            Op::SetBackend { id, backend } => {
                self.backends.insert(*id, *backend);
            }
            Op::ClearBackend { id } => {
                self.backends.remove(id);
            }
            Op::SetTable { start, slots } => {
                let end = start + slots.len() as u32;
                assert!(end <= Sizes::default().slots);
                let overlaps = |at: u32, len: u32| at < end && *start < at + len;
                for (at, len) in self.services.values().flat_map(runs) {
                    assert!(!overlaps(at, len), "a table in use is overwritten");
                }
                for &(at, len, until) in &self.left {
                    assert!(
                        !overlaps(at, len) || now >= until + Duration::from_secs(1),
                        "slots {at}+{len} were in use until {until:?}, and it is {now:?}"
                    );
                }
                self.slots.extend((*start..).zip(slots.iter().copied()));
                self.named.retain(|at, (len, _)| !overlaps(*at, *len));
                let named = slots.iter().map(|slot| (slot.backend, slot.base & !LOOK_UP));
                self.named.insert(*start, (slots.len() as u32, named.collect()));
            }
            Op::SetService { key, service } => {
                if let Some(old) = self.services.insert(*key, *service) {
                    self.left.extend(runs(&old).map(|(at, len)| (at, len, now)));
                }
            }
            Op::RemoveService { key } => {
                let old = self.services.remove(key).expect("the service is there");
                self.left.extend(runs(&old).map(|(at, len)| (at, len, now)));
            }
            Op::SetVips { bytes } => self.vips.clone_from(bytes),
            Op::SetSource { bits, source, verdict } => {
                self.sources.insert((*source, *bits), *verdict);
            }
            Op::RemoveSource { bits, source } => {
                self.sources.remove(&(*source, *bits)).expect("the prefix is there");
            }
            Op::SetPorts { bytes } => self.filter.clone_from(bytes),
        }
        self.check();
    }

    fn check(&mut self) {
        for (key, service) in &self.services {
            let steered = service.flags & STEERED != 0;
            let run = (service.table_start, service.table_len + service.members_len);
            let named = self.named.get(&run.0).filter(|(len, _)| *len == run.1 && run.1 > 0);
            assert!(
                named.is_some() || run.1 == 0,
                "a service points to slots that are not written"
            );
            for &(id, base) in named.iter().flat_map(|(_, named)| named) {
                assert!(steered || base == id, "only steered services have bases");
                for id in [id, base] {
                    if id == NOBODY {
                        assert!(steered, "only steered services have slots of nobody");
                        continue;
                    }
                    let backend = self.backends.get(&id).expect("a slot names a backend in use");
                    assert!(backend.flags & backend::IN_USE != 0);
                    assert_eq!(backend.service, service.index, "a slot names another's backend");
                }
                if id != NOBODY {
                    let flags = self.backends[&id].flags;
                    assert!(flags & backend::FORWARD != 0, "a table names a backend cut off");
                }
            }
            let [vips, ports] =
                self.places.entry((*key, steered)).or_insert_with(|| places(*key, steered));
            let holds = |filter: &[u8], places: &Places| {
                places.iter().all(|&(at, bits)| filter.get(at).is_some_and(|it| it & bits == bits))
            };
            assert!(holds(&self.vips, vips), "a service's address is not in the filter");
            assert!(holds(&self.filter, ports), "a service is not in the filter");
        }
    }

    fn table(&self, service: &Service) -> Vec<Slot> {
        let run = service.table_start..service.table_start + service.table_len;
        run.map(|slot| self.slots[&slot]).collect()
    }

    fn adopted(&self) -> Adopted {
        Adopted {
            services: self.services.iter().map(|(key, service)| (*key, *service)).collect(),
            backends: self.backends.iter().map(|(id, backend)| (*id, *backend)).collect(),
            sizes: Sizes::default(),
            sources: self.sources.iter().map(|(key, verdict)| (*key, *verdict)).collect(),
            steered: self
                .services
                .iter()
                .filter(|(_, service)| service.flags & STEERED != 0)
                .map(|(key, service)| (*key, self.table(service)))
                .collect(),
        }
    }
}

/// The runs of slots that a service points to.
fn runs(service: &Service) -> [(u32, u32); 2] {
    [(service.table_start, service.table_len), (service.members_start, service.members_len)]
}

fn apply(planner: &mut Planner, model: &mut Model, desired: &Desired, now: Duration) -> Plan {
    let plan = planner.plan(desired, now);
    for op in &plan.ops {
        model.apply(op, now);
        planner.applied(op, now);
    }
    plan
}

/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(5);

/// The kinds of a plan's writes: a table of thousands of slots is nothing to print.
fn kinds(plan: &Plan) -> Vec<&'static str> {
    let kind = |op: &Op| match op {
        Op::SetBackend { .. } => "backend",
        Op::ClearBackend { .. } => "clear",
        Op::SetTable { .. } => "table",
        Op::SetService { .. } => "service",
        Op::RemoveService { .. } => "remove",
        Op::SetVips { .. } => "vips",
        Op::SetPorts { .. } => "filter",
        Op::SetSource { .. } => "source",
        Op::RemoveSource { .. } => "unsource",
    };
    plan.ops.iter().map(kind).collect()
}

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, host], 8080))
}

fn key(port: u16) -> ServiceKey {
    service_key(SocketAddr::from(([192, 0, 2, 100], port)), Protocol::Tcp)
}

fn service(port: u16, hosts: &[u8]) -> DesiredService {
    let serving = |&host: &u8| DesiredBackend {
        address: address(host),
        weight: 16,
        full_weight: 16,
        serving: true,
        forward: true,
        patience_ms: 0,
        leased: false,
    };
    DesiredService {
        key: key(port),
        balance: Balance::Maglev,
        forward: Forwarding::Nat,
        replay: Replay { tries: 3, per_mille: 200 },
        drain_timeout: Duration::from_secs(30),
        backends: hosts.iter().map(serving).collect(),
        guard: Guard::default(),
        proxied: Proxied::None,
        parked_until: 0,
    }
}

#[test]
fn a_service_says_when_connections_are_tried_elsewhere() {
    let mut planner = Planner::adopt(Adopted::default());
    let mut model = Model::default();
    let mut wanted = desired(vec![service(80, &[21, 22])]);
    apply(&mut planner, &mut model, &wanted, Duration::ZERO);
    let written = model.services[&key(80)];
    assert_eq!((written.replay_tries, written.replay_per_mille), (3, 200));
    // Every member can be found, whatever the method.
    assert_eq!(written.members_len, 2);
    Arc::make_mut(&mut wanted.services[0]).replay = Replay { tries: 0, per_mille: 200 };
    apply(&mut planner, &mut model, &wanted, Duration::from_secs(1));
    assert_eq!(model.services[&key(80)].replay_tries, 0);
}

fn desired(services: Vec<DesiredService>) -> Desired {
    let hop = |host: u8| NextHop {
        ifindex: 2,
        source_mac: [2; 6],
        mac: Some([host; 6]),
        mtu: 1500,
        source: Some(IpAddr::from([192, 0, 2, 11])),
    };
    Desired {
        floating: BTreeSet::from([IpAddr::from([192, 0, 2, 100])]),
        services: services.into_iter().map(Arc::new).collect(),
        next_hops: Arc::new((0..=255).map(|host| (address(host).ip(), hop(host))).collect()),
        tcp_idle: IDLE,
        udp_idle: IDLE,
        untouched: false,
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn id(planner: &Planner, port: u16, host: u8) -> Option<u32> {
    let index = planner.service_index(&key(port))?;
    planner.id(index, address(host))
}

fn nothing() -> (Planner, Model) {
    (Planner::adopt(Adopted::default()), Model::default())
}

#[test]
fn a_first_plan_goes_from_addresses_to_services_and_a_second_is_empty() {
    let (mut planner, mut model) = nothing();
    let wanted = desired(vec![service(80, &[21, 22])]);
    let plan = apply(&mut planner, &mut model, &wanted, seconds(0));
    assert_eq!(
        kinds(&plan),
        ["source", "filter", "vips", "backend", "backend", "table", "service"]
    );
    assert_eq!(planner.plan(&wanted, seconds(1)), Plan::default());
    let backend = model.backends[&id(&planner, 80, 21).unwrap()];
    assert_eq!(backend.next_hop, [21; 6]);
    assert_eq!(backend.flags, backend::IN_USE | backend::FORWARD | backend::RESOLVED);
}

#[test]
fn a_backend_goes_out_of_the_table_before_it_is_cut_off() {
    let (mut planner, mut model) = nothing();
    let mut wanted = desired(vec![service(80, &[21, 22])]);
    apply(&mut planner, &mut model, &wanted, seconds(0));
    let web = Arc::make_mut(&mut wanted.services[0]);
    web.backends[0].serving = false;
    web.backends[0].forward = false;
    let plan = apply(&mut planner, &mut model, &wanted, seconds(1));
    assert!(matches!(
        plan.ops[..],
        [Op::SetTable { .. }, Op::SetService { .. }, Op::SetBackend { .. }]
    ));
}

#[test]
fn a_removed_backend_drains_then_is_cut_then_forgotten() {
    let (mut planner, mut model) = nothing();
    let both = desired(vec![service(80, &[21, 22])]);
    apply(&mut planner, &mut model, &both, seconds(0));
    let id = id(&planner, 80, 21).unwrap();
    let one = desired(vec![service(80, &[22])]);
    apply(&mut planner, &mut model, &one, seconds(100));
    assert_ne!(model.backends[&id].flags & backend::FORWARD, 0);
    assert_eq!(planner.next_deadline(), Some(seconds(130)));
    planner.swept(&BTreeMap::new(), seconds(129));
    assert!(planner.plan(&one, seconds(129)).ops.is_empty(), "it may still get packets");

    apply(&mut planner, &mut model, &one, seconds(130));
    assert_eq!(model.backends[&id].flags & backend::FORWARD, 0);
    planner.swept(&BTreeMap::new(), seconds(130));
    assert!(planner.plan(&one, seconds(130)).ops.is_empty(), "that sweep began too early");
    planner.swept(&BTreeMap::from([(id, 1)]), seconds(131));
    assert!(planner.plan(&one, seconds(131)).ops.is_empty(), "a flow names it");
    planner.swept(&BTreeMap::new(), seconds(132));
    let plan = apply(&mut planner, &mut model, &one, seconds(132));
    assert_eq!(plan.ops, [Op::ClearBackend { id }]);
    assert_eq!(planner.retiring().count(), 0);
}

#[test]
fn a_backend_that_returns_while_it_drains_keeps_its_identifier() {
    let (mut planner, mut model) = nothing();
    let both = desired(vec![service(80, &[21, 22])]);
    apply(&mut planner, &mut model, &both, seconds(0));
    let removed = id(&planner, 80, 21).unwrap();
    apply(&mut planner, &mut model, &desired(vec![service(80, &[22])]), seconds(1));
    apply(&mut planner, &mut model, &desired(vec![service(80, &[22])]), seconds(40));
    assert_eq!(model.backends[&removed].flags & backend::FORWARD, 0);
    apply(&mut planner, &mut model, &both, seconds(50));
    assert_eq!(id(&planner, 80, 21), Some(removed));
    assert_ne!(model.backends[&removed].flags & backend::FORWARD, 0);
}

#[test]
fn a_new_daemon_takes_over_numbers_and_drains_the_rest() {
    let (mut planner, mut model) = nothing();
    let old = desired(vec![service(80, &[21, 22, 23]), service(81, &[24])]);
    apply(&mut planner, &mut model, &old, seconds(0));
    let (kept, gone) = (id(&planner, 80, 23), id(&planner, 80, 21).unwrap());
    let index = planner.service_index(&key(80));

    let mut next = Planner::adopt(model.adopted());
    let new = desired(vec![service(80, &[23, 22])]);
    let plan = apply(&mut next, &mut model, &new, seconds(10));
    assert_eq!(id(&next, 80, 23), kept);
    assert_eq!(next.service_index(&key(80)), index);
    assert!(!plan.ops.iter().any(|op| matches!(op, Op::SetBackend { .. })), "{:?}", plan.ops);
    assert!(plan.ops.contains(&Op::RemoveService { key: key(81) }));
    assert_ne!(model.backends[&gone].flags & backend::FORWARD, 0);
    assert_eq!(next.retiring().count(), 2);
    apply(&mut next, &mut model, &new, seconds(40));
    assert_eq!(model.backends[&gone].flags & backend::FORWARD, 0);
    next.swept(&BTreeMap::new(), seconds(41));
    apply(&mut next, &mut model, &new, seconds(41));
    assert_eq!(model.backends.len(), 2);
    assert_eq!(next.plan(&new, seconds(42)), Plan::default());
    assert_eq!(next.service_index(&key(81)), None);
}

#[test]
fn a_service_without_backends_that_serve_has_an_empty_table() {
    let (mut planner, mut model) = nothing();
    let mut wanted = desired(vec![service(80, &[21])]);
    Arc::make_mut(&mut wanted.services[0]).backends[0].serving = false;
    apply(&mut planner, &mut model, &wanted, seconds(0));
    assert_eq!(model.services[&key(80)].table_len, 0);
    assert_eq!(planner.plan(&wanted, seconds(0)), Plan::default());
}

#[test]
fn a_plan_looks_only_at_what_has_changed() {
    let (mut planner, mut model) = nothing();
    let mut wanted = desired((0..50).map(|port| service(80 + port, &[21, 22])).collect());
    assert_eq!(planner.changed(&wanted).len(), 50);
    apply(&mut planner, &mut model, &wanted, seconds(0));
    assert_eq!(planner.changed(&wanted).len(), 50, "nothing says yet that it stands in the maps");
    assert_eq!(planner.plan(&wanted, seconds(0)), Plan::default());
    assert!(planner.changed(&wanted).is_empty());

    Arc::make_mut(&mut wanted.services[7]).backends[1].weight = 3;
    assert_eq!(planner.changed(&wanted), [7]);
    let plan = apply(&mut planner, &mut model, &wanted, seconds(1));
    assert_eq!(plan.ops.len(), 3, "backend, table and service: {:?}", plan.ops);

    planner.set_density(Density::FULL.sparser().unwrap());
    let plan = apply(&mut planner, &mut model, &wanted, seconds(2));
    assert_eq!(plan.ops.len(), 100, "all tables are of another size");
}

#[test]
fn a_schedule_without_room_is_made_coarser_and_a_maglev_table_is_not() {
    let sizes = Sizes { slots: 600, ..Sizes::default() };
    let mut planner = Planner::adopt(Adopted { sizes, ..Adopted::default() });
    let mut model = Model::default();
    let mut wanted = desired(vec![service(80, &[21, 22])]);
    let web = Arc::make_mut(&mut wanted.services[0]);
    web.balance = Balance::RoundRobin;
    // 1000 slots in lowest terms.
    (web.backends[0].weight, web.backends[1].weight) = (999, 1);
    let plan = apply(&mut planner, &mut model, &wanted, seconds(0));
    assert_eq!(plan.problems, []);
    let len = model.services[&key(80)].table_len;
    assert!((2..=600).contains(&len), "{len}");

    let mut wanted = desired(vec![service(81, &[21, 22, 23])]);
    let plan = apply(&mut planner, &mut model, &wanted, seconds(9));
    assert_eq!(plan.problems, [Problem::Slots(1021 + 3)]);
    assert!(planner.changed(&wanted).contains(&0), "it is tried again");
    Arc::make_mut(&mut wanted.services[0]).backends.truncate(2);
    let plan = apply(&mut planner, &mut model, &wanted, seconds(10));
    assert_eq!(plan.problems, []);
}

#[test]
fn backends_beyond_the_room_are_told() {
    let sizes = Sizes { backends: 2, services: 1, ..Sizes::default() };
    let mut planner = Planner::adopt(Adopted { sizes, ..Adopted::default() });
    let wanted = desired(vec![service(80, &[21, 22, 23]), service(81, &[24])]);
    let plan = planner.plan(&wanted, seconds(0));
    assert_eq!(plan.problems, [Problem::Backends(address(23), 2), Problem::Services(1)]);
}

#[test]
fn an_address_leaves_the_filter_after_its_last_flow() {
    let (mut planner, mut model) = nothing();
    let wanted = desired(vec![service(80, &[21])]);
    apply(&mut planner, &mut model, &wanted, seconds(0));
    let none = Desired { floating: BTreeSet::new(), ..desired(vec![]) };
    apply(&mut planner, &mut model, &none, seconds(1));
    assert!(model.vips.iter().any(|&word| word != 0), "its flows still need it");
    apply(&mut planner, &mut model, &none, seconds(31));
    planner.swept(&BTreeMap::new(), seconds(32));
    apply(&mut planner, &mut model, &none, seconds(32));
    apply(&mut planner, &mut model, &none, seconds(33));
    assert!(model.vips.iter().all(|&word| word == 0));
    assert!(model.backends.is_empty() && planner.services.is_empty());
}

/// A random backend, if it is there: serving, forwarding while it does not serve, weight.
type AnyBackend = Option<(bool, bool, u32)>;

/// A random service, if it is there: its method, the way to its backends, and its backends by host.
type AnyService = Option<(u8, Forwarding, Vec<AnyBackend>)>;

/// A step of a random life.
#[derive(Clone, Debug)]
enum Step {
    /// Another state is desired.
    Want(Vec<AnyService>),
    /// The first writes of the plan are made, then one fails.
    FailAfter(usize),
    /// A sweep, with these backends still named.
    Sweep(BTreeSet<u32>),
    /// The daemon starts anew.
    Restart,
    /// Time passes, in milliseconds.
    Wait(u64),
}

fn any_way() -> impl Strategy<Value = Forwarding> {
    prop_oneof![
        2 => Just(Forwarding::Nat),
        1 => Just(Forwarding::Direct),
        1 => Just(Forwarding::Tunnel(Encapsulation::Ipip)),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let backend = prop::option::of((any::<bool>(), any::<bool>(), 1..64_u32));
    let service = prop::option::of((0..4_u8, any_way(), prop::collection::vec(backend, 5)));
    prop_oneof![
        4 => prop::collection::vec(service, 3).prop_map(Step::Want),
        1 => (0..8_usize).prop_map(Step::FailAfter),
        2 => prop::collection::btree_set(0..12_u32, 0..4).prop_map(Step::Sweep),
        1 => Just(Step::Restart),
        3 => (0..4000_u64).prop_map(Step::Wait),
    ]
}

fn random_desired(services: &[AnyService]) -> Desired {
    let mut all = Vec::new();
    for (port, random) in (80..).zip(services) {
        let Some((balance, forward, backends)) = random else { continue };
        let mut service = service(port, &[]);
        service.balance = Balance::from_number(u32::from(*balance)).unwrap();
        service.forward = *forward;
        service.drain_timeout = Duration::from_secs(2);
        for (host, random) in (20..).zip(backends) {
            let Some((serving, forward, weight)) = *random else { continue };
            service.backends.push(DesiredBackend {
                address: address(host),
                weight,
                full_weight: 64,
                serving,
                forward: serving || forward,
                patience_ms: 0,
                leased: false,
            });
        }
        all.push(service);
    }
    desired(all)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_step_of_any_life_is_unsafe(steps in prop::collection::vec(any_step(), 1..40)) {
        let (mut planner, mut model) = nothing();
        let mut wanted = desired(vec![]);
        let mut now = seconds(1);
        for step in steps {
            match step {
                Step::Want(services) => wanted = random_desired(&services),
                Step::FailAfter(count) => {
                    for op in planner.plan(&wanted, now).ops.iter().take(count) {
                        model.apply(op, now);
                        planner.applied(op, now);
                    }
                    continue;
                }
                Step::Sweep(named) => {
                    let named = named.into_iter().map(|id| (id, 1)).collect();
                    planner.swept(&named, now);
                    planner.swept_steered(&SweptSteered::new(), now);
                }
                Step::Restart => {
                    planner = Planner::adopt(model.adopted());
                    // A new daemon cannot know what was freed just before; it takes longer than
                    // that to start.
                    now += seconds(1);
                }
                Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
            }
            let plan = apply(&mut planner, &mut model, &wanted, now);
            prop_assert!(plan.problems.is_empty());
            prop_assert_eq!(kinds(&planner.plan(&wanted, now)), [""; 0]);
            for service in &wanted.services {
                for backend in &service.backends {
                    let index = planner.service_index(&service.key).unwrap();
                    let id = planner.id(index, backend.address).unwrap();
                    let flags = model.backends[&id].flags;
                    prop_assert_eq!(flags & backend::FORWARD != 0, backend.forward);
                }
            }
        }
        // In the end, with nothing wanted and no flows, nothing is left.
        let nothing = desired(vec![]);
        for _ in 0..6 {
            now += seconds(40);
            apply(&mut planner, &mut model, &nothing, now);
            planner.swept(&BTreeMap::new(), now + seconds(1));
        }
        apply(&mut planner, &mut model, &nothing, now);
        prop_assert!(model.backends.is_empty() && model.services.is_empty());
    }
}

#[test]
fn patience_is_written_once_known_and_outlives_the_daemon() {
    let mut wanted = desired(vec![service(80, &[21])]);
    let mut planner = Planner::adopt(Adopted::default());
    let patience = |plan: &Plan| {
        plan.ops.iter().find_map(|op| match op {
            Op::SetBackend { backend, .. } => Some(backend.patience_ms),
            _ => None,
        })
    };
    let mut step = |wanted: &Desired| {
        let plan = planner.plan(wanted, Duration::from_secs(1));
        plan.ops.iter().for_each(|op| planner.applied(op, Duration::from_secs(1)));
        patience(&plan)
    };
    assert_eq!(step(&wanted), Some(0));
    Arc::make_mut(&mut wanted.services[0]).backends[0].patience_ms = 50;
    assert_eq!(step(&wanted), Some(50));
    assert_eq!(step(&wanted), None);
    // The next daemon does not know it yet, and writes the backend for another reason.
    Arc::make_mut(&mut wanted.services[0]).backends[0].patience_ms = 0;
    assert_eq!(step(&wanted), None);
    Arc::make_mut(&mut wanted.services[0]).backends[0].weight = 8;
    assert_eq!(step(&wanted), Some(50));
}
