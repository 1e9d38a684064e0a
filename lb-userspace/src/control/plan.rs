//! From what should be to what must be written: the planner knows what stands in the maps, and
//! answers a desired state with the writes that lead there, in an order that is safe at every step.
//!
//! The order is: floating addresses, then backends, then tables, then the services that point to
//! them; what is taken away goes the other way. A backend loses its right to forward after the
//! tables have ceased to name it.
//!
//! Three things are given out: indexes of services, identifiers of backends, and runs of slots.
//! A backend that is desired no longer keeps its identifier while it drains, and then until a sweep
//! that began after it was cut off has found no flow that names it. A run of slots rests before it
//! is used again ([`Ranges`]), and a table is never changed while a service points to it.
//!
//! A service that is removed goes when its last backend has drained. What is special about the tables
//! of steered services is in [`steer`].
//!
//! A service that has been planned once without any write to make is settled: until another state is
//! desired of it, planning costs nothing for it. So a change costs as much as it changes, however
//! many services there are. The table of a steered service changes by time too, so such a service is
//! not settled while slots of it are disturbed.
//!
//! A planned write counts only once [`Planner::applied`] has been told of it. So a plan that failed
//! half-way is simply planned again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_common::{
    backend::{self, Backend},
    service::{Balance, STEERED, Service, ServiceKey},
};

use self::steer::{Base, Steering};
use super::{ranges::Ranges, table::Member};
use crate::{
    config::{Forwarding, Guard, Replay, sizes::Density},
    dataplane::{Adopted, Op, Sizes},
    net::NextHops,
};

mod encode;
mod guard;
mod numbers;
mod place;
mod steer;
#[cfg(test)]
mod tests;
mod write;

pub use encode::service_key;
pub use guard::Proxied;
use numbers::Numbers;
pub use steer::Swept as SweptSteered;

/// How long the connections of a backend that a previous daemon left behind may go on, when the
/// configuration does not say so.
const ORPHAN_DRAIN: Duration = Duration::from_secs(30);

/// What the maps should say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Floating addresses.
    pub floating: BTreeSet<IpAddr>,
    /// Services. One that is the same value in memory as in the plan before has not changed, nor have
    /// the next hops of its backends.
    pub services: Vec<Arc<DesiredService>>,
    /// Next hops, at least those of all backends.
    pub next_hops: Arc<NextHops>,
    /// How long a TCP connection may be silent and still lives.
    pub tcp_idle: Duration,
    /// The same for UDP.
    pub udp_idle: Duration,
    /// No packet can have come yet: what stands in the tables has decided nothing.
    pub untouched: bool,
}

/// A service as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredService {
    /// Address, port and protocol.
    pub key: ServiceKey,
    /// How a backend is chosen.
    pub balance: Balance,
    /// How packets get to the backends.
    pub forward: Forwarding,
    /// When a connection is tried at another backend.
    pub replay: Replay,
    /// How long the connections of a backend that is removed may go on.
    pub drain_timeout: Duration,
    /// All configured backends, serving or not.
    pub backends: Vec<DesiredBackend>,
    /// Who may connect, and how often.
    pub guard: Guard,
    /// What the proxy has of it.
    pub proxied: Proxied,
    /// Its new connections wait until then ([`Service::parked_until`]).
    pub parked_until: u32,
}

/// A backend as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredBackend {
    /// Address and port.
    pub address: SocketAddr,
    /// Weight in tables, 1 and up.
    pub weight: u32,
    /// Weight that it has while it serves in full, at least `weight`.
    pub full_weight: u32,
    /// It gets new connections.
    pub serving: bool,
    /// Packets of its connections are forwarded.
    pub forward: bool,
    /// Milliseconds that it may take to answer a SYN; 0: what stands in the map stays.
    pub patience_ms: u16,
    /// Packets go to it only until the end of its lease.
    pub leased: bool,
}

/// Something that cannot be done now; the next plan tries again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Every service index is taken.
    #[error(
        "no room for another service: all {0} are taken, some by removed services that still drain"
    )]
    Services(u32),
    /// Every backend identifier is taken.
    #[error(
        "no room for backend {0} and perhaps others: all {1} are taken, some by removed backends \
         that still drain"
    )]
    Backends(SocketAddr, u32),
    /// No run of slots is long enough.
    #[error("no room for a table of {0} slots; the service keeps its old one")]
    Slots(u32),
}

/// What must be written, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The writes.
    pub ops: Vec<Op>,
    /// What could not be planned.
    pub problems: Vec<Problem>,
}

/// A backend that is configured no longer and still has its identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retiring {
    /// Its identifier.
    pub id: u32,
    /// Its address and port.
    pub address: SocketAddr,
    /// Its connections may go on until then; `None` if they have been cut.
    pub until: Option<Duration>,
}

/// Knows what stands in the maps and who owns which number.
#[derive(Clone, Debug)]
pub struct Planner {
    sizes: Sizes,
    density: Density,
    vips: Option<Vec<u8>>,
    /// `PORTS`.
    filter: Option<Vec<u8>>,
    services: BTreeMap<ServiceKey, Placed>,
    backends: BTreeMap<u32, Entry>,
    /// Identifiers by service and address.
    known: HashMap<(u32, SocketAddr), u32>,
    /// Backends by the index of their service: how many have an identifier.
    users: HashMap<u32, u32>,
    /// Backends that are not configured, or not known to be.
    waning: BTreeSet<u32>,
    /// Counts the changes of `waning`.
    waned: u64,
    /// Counts the identifiers given and taken back.
    numbered: u64,
    free_ids: Numbers,
    /// A service may have lost its last backend.
    forgetful: bool,
    sources: guard::Sources,
    ranges: Ranges,
}

/// A service that has an index.
#[derive(Clone, Debug, Default)]
struct Placed {
    index: u32,
    /// What `SERVICES` holds.
    written: Option<Service>,
    /// The runs of slots that `written` points to.
    runs: Vec<(u32, u32)>,
    /// What the table in `runs` was made of; unknown if a previous daemon made it.
    source: Option<Source>,
    /// The table in `runs`, if the service is steered.
    steering: Option<Steering>,
    /// A table that is planned, and that no service points to yet.
    pending: Option<Pending>,
    /// Its configured backends, by the last plan.
    members: Vec<u32>,
    /// What stands in the maps in full.
    settled: Option<Arc<DesiredService>>,
}

impl Placed {
    /// Whether its packets are steered now.
    fn is_steered(&self) -> bool {
        self.written.is_some_and(|service| service.flags & STEERED != 0)
    }

    /// Whether time alone will change its table.
    fn is_disturbed(&self) -> bool {
        self.steering.as_ref().is_some_and(|steering| steering.disturbed() > 0)
    }
}

/// A table that no service points to yet.
#[derive(Clone, Debug)]
struct Pending {
    service: Service,
    source: Source,
    steering: Option<Steering>,
}

/// Everything that a service and its table depend on.
#[derive(Clone, Debug, PartialEq)]
struct Source {
    balance: Balance,
    density: Density,
    steered: bool,
    replay: Replay,
    members: Vec<Member>,
}

impl Source {
    fn serving(&self) -> impl Iterator<Item = u32> {
        self.members.iter().filter(|member| member.weight > 0).map(|member| member.id)
    }
}

/// A backend that has an identifier.
#[derive(Clone, Debug)]
struct Entry {
    service: u32,
    address: SocketAddr,
    written: Option<Backend>,
    /// When its packets were last stopped; `None` while they are forwarded.
    stopped: Option<Duration>,
    life: Life,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    /// Found in the maps; the first plan decides.
    Found,
    /// Configured.
    Wanted { drain_timeout: Duration },
    /// Configured no longer; its connections may go on until then.
    Draining { until: Duration },
    /// Cut off at that time; flows may still name it.
    Cut { at: Duration },
    /// No flow names it: it can be cleared.
    Unused,
}

impl Planner {
    /// For maps that hold `adopted`, and whose filter of floating addresses is unknown.
    pub fn adopt(adopted: Adopted) -> Self {
        let mut ranges = Ranges::new(adopted.sizes.slots);
        let mut services = BTreeMap::new();
        let mut steered = adopted.steered;
        for (key, service) in adopted.services {
            let runs = [
                (service.table_start, service.table_len),
                (service.members_start, service.members_len),
            ];
            let runs =
                runs.into_iter().filter(|&(start, len)| len > 0 && ranges.take_at(start, len));
            let placed = Placed {
                index: service.index,
                runs: runs.collect(),
                written: Some(service),
                steering: steered.remove(&key).map(Steering::adopt),
                ..Placed::default()
            };
            services.insert(key, placed);
        }
        let mut planner = Self {
            sizes: adopted.sizes,
            density: Density::FULL,
            vips: None,
            filter: None,
            services,
            backends: BTreeMap::new(),
            known: HashMap::new(),
            users: HashMap::new(),
            waning: BTreeSet::new(),
            waned: 0,
            numbered: 0,
            free_ids: Numbers::new(adopted.sizes.backends),
            forgetful: false,
            sources: adopted.sources.into_iter().collect(),
            ranges,
        };
        for (id, backend) in adopted.backends {
            let address = encode::backend_address(&backend);
            let (service, written) = (backend.service, Some(backend));
            let stopped = (backend.flags & backend::FORWARD == 0).then_some(Duration::ZERO);
            planner.free_ids.take(id);
            planner.add(id, Entry { service, address, written, stopped, life: Life::Found });
            planner.waning.insert(id);
        }
        planner
    }

    /// Sets how fine the tables are, from the next plan on.
    pub fn set_density(&mut self, density: Density) {
        if self.density != density {
            self.density = density;
            self.services.values_mut().for_each(|placed| placed.settled = None);
        }
    }

    /// The writes that lead from what stands in the maps to `desired`.
    pub fn plan(&mut self, desired: &Desired, now: Duration) -> Plan {
        let mut plan = Plan::default();
        self.forget_services();
        let changed = self.changed(desired);
        let places = self.place(desired, &changed, now, &mut plan);
        let (early, late) = self.backend_ops(desired, &places, now);
        let (tables, services, steered) =
            self.service_ops(desired, &changed, &places, now, &mut plan);
        let vips = self.vip_filter(desired, &steered);
        let filter = self.ports_filter(desired, &steered);
        let all_vips = encode::union(self.vips.as_deref(), &vips);
        let whole_filter = encode::union(self.filter.as_deref(), &filter);
        if self.filter.as_ref() != Some(&whole_filter) {
            plan.ops.push(Op::SetPorts { bytes: whole_filter.clone() });
        }
        if self.vips.as_ref() != Some(&all_vips) {
            plan.ops.push(Op::SetVips { bytes: all_vips.clone() });
        }
        plan.ops.extend(early);
        plan.ops.extend(tables);
        plan.ops.extend(services);
        plan.ops.extend(late);
        if all_vips != vips {
            plan.ops.push(Op::SetVips { bytes: vips });
        }
        self.guard(desired, &changed, &mut plan.ops);
        if whole_filter != filter {
            plan.ops.push(Op::SetPorts { bytes: filter });
        }
        self.settle(desired, &changed, &plan);
        plan
    }

    /// The places of the services that are not settled.
    fn changed(&self, desired: &Desired) -> Vec<usize> {
        let is_settled = |service: &Arc<DesiredService>| {
            let settled = self.services.get(&service.key).and_then(|it| it.settled.as_ref());
            settled.is_some_and(|settled| Arc::ptr_eq(settled, service))
        };
        let services = desired.services.iter().enumerate();
        services.filter(|(_, service)| !is_settled(service)).map(|(at, _)| at).collect()
    }

    /// Records that a write has been made.
    pub fn applied(&mut self, op: &Op, now: Duration) {
        match op {
            Op::SetVips { bytes } => self.vips = Some(bytes.clone()),
            Op::SetPorts { bytes } => self.filter = Some(bytes.clone()),
            Op::SetTable { .. } => {}
            Op::SetBackend { id, backend } => {
                if let Some(entry) = self.backends.get_mut(id) {
                    entry.written = Some(*backend);
                    entry.stopped = (backend.flags & backend::FORWARD == 0)
                        .then(|| entry.stopped.unwrap_or(now));
                    if matches!(entry.life, Life::Draining { .. })
                        && backend.flags & backend::FORWARD == 0
                    {
                        entry.life = Life::Cut { at: now };
                    }
                }
            }
            Op::ClearBackend { id } => self.remove(*id),
            Op::SetService { key, service } => {
                let Some(placed) = self.services.get_mut(key) else { return };
                if placed.pending.is_none() {
                    // Its table is the same as before.
                    placed.written = Some(*service);
                    return;
                }
                let old = std::mem::replace(&mut placed.runs, vec![write::run(service)]);
                placed.written = Some(*service);
                (placed.source, placed.steering) = match placed.pending.take() {
                    Some(pending) => (Some(pending.source), pending.steering),
                    None => (None, None),
                };
                if let Some(steering) = &mut placed.steering {
                    steering.written(now);
                }
                self.give_back(old, now);
            }
            Op::SetSource { bits, source, verdict } => {
                self.sources.insert((*source, *bits), *verdict);
            }
            Op::RemoveSource { bits, source } => {
                self.sources.remove(&(*source, *bits));
            }
            Op::RemoveService { key } => {
                let Some(placed) = self.services.get_mut(key) else { return };
                placed.written = None;
                placed.source = None;
                placed.settled = None;
                placed.steering = None;
                let old = std::mem::take(&mut placed.runs);
                self.give_back(old, now);
                self.forgetful = true;
            }
        }
    }

    /// Takes the result of a sweep that saw all flows and began at `began`: how many name each
    /// backend. Identifiers that none names any more are cleared by the next plan.
    pub fn swept(&mut self, by_backend: &BTreeMap<u32, u64>, began: Duration) {
        let is_over = |id: &u32| {
            let flows = by_backend.get(id).copied().unwrap_or(0);
            let life = self.backends.get(id).map(|entry| entry.life);
            flows == 0 && matches!(life, Some(Life::Cut { at }) if at < began)
        };
        let over: BTreeSet<u32> = self.waning.iter().copied().filter(is_over).collect();
        if over.is_empty() {
            return;
        }
        let named: BTreeSet<u32> =
            self.services.values().flat_map(|placed| self.named_by(placed, &over)).collect();
        for id in over.difference(&named) {
            if let Some(entry) = self.backends.get_mut(id) {
                entry.life = Life::Unused;
            }
        }
    }

    /// Takes what the same sweep saw of the entries of steered connections.
    pub fn swept_steered(&mut self, seen: &SweptSteered, began: Duration) {
        let mut by_service: HashMap<u32, Vec<u32>> = HashMap::new();
        for &id in seen.keys() {
            if let Some(entry) = self.backends.get(&id) {
                by_service.entry(entry.service).or_default().push(id);
            }
        }
        for placed in self.services.values_mut().filter(|placed| placed.is_disturbed()) {
            let Some(steering) = &mut placed.steering else { continue };
            let ids = by_service.get(&placed.index).into_iter().flatten();
            let seen = ids.filter_map(|id| Some((*id, seen.get(id)?.clone()))).collect();
            steering.swept(&seen, began);
        }
    }

    /// How many slots of a steered service are disturbed, of how many; `None` if it is not steered.
    pub fn disturbed(&self, key: &ServiceKey) -> Option<(u32, u32)> {
        let placed = self.services.get(key).filter(|placed| placed.is_steered())?;
        let steering = placed.steering.as_ref()?;
        Some((steering.disturbed(), steering.slots().len() as u32))
    }

    /// The index of a service.
    pub fn service_index(&self, key: &ServiceKey) -> Option<u32> {
        self.services.get(key).map(|placed| placed.index)
    }

    /// The identifier of a backend, by the index of its service and its address.
    pub fn id(&self, service: u32, address: SocketAddr) -> Option<u32> {
        self.known.get(&(service, address)).copied()
    }

    /// The indexes of all services.
    pub fn service_indexes(&self) -> Vec<u32> {
        self.services.values().map(|placed| placed.index).collect()
    }

    /// The identifiers of all backends, in order.
    pub fn backend_ids(&self) -> Vec<u32> {
        self.backends.keys().copied().collect()
    }

    /// How many backends have an identifier.
    pub fn backend_count(&self) -> usize {
        self.backends.len()
    }

    /// The service and the address of a backend.
    pub fn backend(&self, id: u32) -> Option<(u32, SocketAddr)> {
        self.backends.get(&id).map(|entry| (entry.service, entry.address))
    }

    /// Whether the maps hold no service at all: nothing was adopted and nothing written.
    pub fn is_empty(&self) -> bool {
        self.services.values().all(|placed| placed.written.is_none())
    }

    /// Room in the maps.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Backends that are configured no longer and still have their identifiers.
    pub fn retiring(&self) -> impl Iterator<Item = Retiring> {
        self.waning.iter().filter_map(|&id| {
            let entry = self.backends.get(&id)?;
            let until = match entry.life {
                Life::Wanted { .. } => return None,
                Life::Draining { until } => Some(until),
                Life::Found | Life::Cut { .. } | Life::Unused => None,
            };
            Some(Retiring { id, address: entry.address, until })
        })
    }

    /// Another number whenever [`Planner::retiring`] has others.
    pub fn retired(&self) -> u64 {
        self.waned
    }

    /// Another number whenever backends have other identifiers.
    pub fn numbered(&self) -> u64 {
        self.numbered
    }

    /// When the next removed backend has drained.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.retiring().filter_map(|retiring| retiring.until).min()
    }

    /// Gives a backend its identifier.
    fn add(&mut self, id: u32, entry: Entry) {
        *self.users.entry(entry.service).or_default() += 1;
        self.known.entry((entry.service, entry.address)).or_insert(id);
        self.backends.insert(id, entry);
        self.numbered += 1;
    }

    /// An identifier is free again.
    fn remove(&mut self, id: u32) {
        let Some(entry) = self.backends.remove(&id) else { return };
        self.free_ids.give_back(id);
        self.numbered += 1;
        if self.waning.remove(&id) {
            self.waned += 1;
        }
        if self.known.get(&(entry.service, entry.address)) == Some(&id) {
            self.known.remove(&(entry.service, entry.address));
        }
        if let Some(users) = self.users.get_mut(&entry.service) {
            *users -= 1;
            if *users == 0 {
                self.users.remove(&entry.service);
                self.forgetful = true;
            }
        }
    }

    fn give_back(&mut self, runs: Vec<(u32, u32)>, now: Duration) {
        for (start, len) in runs {
            self.ranges.give_back(start, len, now);
        }
    }

    /// How a backend stands that packets without an entry are steered to; those of `forwarding` forward
    /// when the table is written.
    fn base(backends: &BTreeMap<u32, Entry>, forwarding: &BTreeSet<u32>, id: u32) -> Base {
        match backends.get(&id) {
            None => Base::Unknown,
            Some(_) if forwarding.contains(&id) => Base::Lives,
            Some(entry) => entry.stopped.map_or(Base::Lives, Base::Cut),
        }
    }

    /// Which of these backends the table behind a written service may name.
    fn named_by(&self, placed: &Placed, of: &BTreeSet<u32>) -> Vec<u32> {
        if let Some(steering) = placed.steering.as_ref().filter(|_| placed.is_steered()) {
            return steering.named().filter(|id| of.contains(id)).collect();
        }
        match (&placed.written, &placed.source) {
            (None, _) => Vec::new(),
            (Some(_), Some(source)) => source.serving().filter(|id| of.contains(id)).collect(),
            // A previous daemon's table: it may name any backend of its service.
            (Some(_), None) => {
                let of_it = |id: &u32| {
                    self.backends.get(id).is_some_and(|entry| entry.service == placed.index)
                };
                of.iter().copied().filter(of_it).collect()
            }
        }
    }
}
