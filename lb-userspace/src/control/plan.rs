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
//! A planned write counts only once [`Planner::applied`] has been told of it. So a plan that failed
//! half-way is simply planned again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{
    backend::{self, Backend},
    limits,
    service::{Balance, STEERED, Service, ServiceKey},
};

use self::steer::{Base, Steering};
use super::{ranges::Ranges, table::Member};
use crate::{
    config::{Forwarding, Guard, Replay},
    dataplane::{Adopted, Op},
    net::NextHops,
};

mod encode;
mod guard;
mod place;
mod steer;
#[cfg(test)]
mod tests;
mod write;

pub use encode::service_key;
pub use steer::Swept as SweptSteered;

/// How long the connections of a backend that a previous daemon left behind may go on, when the
/// configuration does not say so.
const ORPHAN_DRAIN: Duration = Duration::from_secs(30);

/// What the maps should say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Floating addresses.
    pub floating: BTreeSet<IpAddr>,
    /// Services.
    pub services: Vec<DesiredService>,
    /// Next hops, at least those of all backends.
    pub next_hops: NextHops,
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
}

/// Something that cannot be done now; the next plan tries again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Every service index is taken.
    #[error("no room for another service: all {} are taken", limits::MAX_SERVICES)]
    Services,
    /// Every backend identifier is taken.
    #[error(
        "no room for backend {0}: all {max} are taken, some by removed backends that still drain",
        max = limits::MAX_BACKENDS
    )]
    Backends(SocketAddr),
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
    vips: Option<Vec<u64>>,
    /// `STEERED`.
    filter: Option<Vec<u64>>,
    services: BTreeMap<ServiceKey, Placed>,
    backends: BTreeMap<u32, Entry>,
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
}

impl Placed {
    /// Whether its packets are steered now.
    fn is_steered(&self) -> bool {
        self.written.is_some_and(|service| service.flags & STEERED != 0)
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
        let mut ranges = Ranges::new(limits::MAX_SLOTS);
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
        let backends = adopted.backends.into_iter().map(|(id, backend)| {
            let address = encode::backend_address(&backend);
            let (service, written) = (backend.service, Some(backend));
            let stopped = (backend.flags & backend::FORWARD == 0).then_some(Duration::ZERO);
            (id, Entry { service, address, written, stopped, life: Life::Found })
        });
        let sources = adopted.sources.into_iter().collect();
        let backends = backends.collect();
        Self { vips: None, filter: None, services, backends, sources, ranges }
    }

    /// The writes that lead from what stands in the maps to `desired`.
    pub fn plan(&mut self, desired: &Desired, now: Duration) -> Plan {
        let mut plan = Plan::default();
        let ids = self.place(desired, now, &mut plan);
        let (early, late) = self.backend_ops(desired, &ids, now);
        let (tables, services, steered) = self.service_ops(desired, &ids, now, &mut plan);
        let vips = self.vip_words(desired, &steered);
        let filter = encode::steered_words(&steered);
        let all_vips = encode::union(self.vips.as_deref(), &vips);
        let whole_filter = encode::union(self.filter.as_deref(), &filter);
        if self.filter.as_ref() != Some(&whole_filter) {
            plan.ops.push(Op::SetSteered { words: whole_filter.clone() });
        }
        if self.vips.as_ref() != Some(&all_vips) {
            plan.ops.push(Op::SetVips { words: all_vips.clone() });
        }
        plan.ops.extend(early);
        plan.ops.extend(tables);
        plan.ops.extend(services);
        plan.ops.extend(late);
        if all_vips != vips {
            plan.ops.push(Op::SetVips { words: vips });
        }
        self.guard(desired, &mut plan.ops);
        if whole_filter != filter {
            plan.ops.push(Op::SetSteered { words: filter });
        }
        plan
    }

    /// Records that a write has been made.
    pub fn applied(&mut self, op: &Op, now: Duration) {
        match op {
            Op::SetVips { words } => self.vips = Some(words.clone()),
            Op::SetSteered { words } => self.filter = Some(words.clone()),
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
            Op::ClearBackend { id } => {
                self.backends.remove(id);
                self.forget_services();
            }
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
                placed.steering = None;
                let old = std::mem::take(&mut placed.runs);
                self.give_back(old, now);
                self.forget_services();
            }
        }
    }

    /// Takes the result of a sweep that saw all flows and began at `began`: how many name each
    /// backend. Identifiers that none names any more are cleared by the next plan.
    pub fn swept(&mut self, by_backend: &BTreeMap<u32, u64>, began: Duration) {
        let named: BTreeSet<u32> =
            self.services.values().flat_map(|placed| self.named_by(placed)).collect();
        for (id, entry) in &mut self.backends {
            let flows = by_backend.get(id).copied().unwrap_or(0);
            if matches!(entry.life, Life::Cut { at } if at < began)
                && flows == 0
                && !named.contains(id)
            {
                entry.life = Life::Unused;
            }
        }
    }

    /// Takes what the same sweep saw of the entries of steered connections.
    pub fn swept_steered(&mut self, seen: &SweptSteered, began: Duration) {
        for placed in self.services.values_mut() {
            let Some(steering) = &mut placed.steering else { continue };
            if steering.disturbed() == 0 {
                continue;
            }
            let of_it =
                |id: &u32| self.backends.get(id).is_some_and(|entry| entry.service == placed.index);
            let seen = seen.iter().filter(|(id, _)| of_it(id));
            let seen = seen.map(|(&id, hashes)| (id, hashes.clone())).collect();
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

    /// The identifiers of all backends, by the index of their service and their address.
    pub fn ids(&self) -> BTreeMap<(u32, SocketAddr), u32> {
        let ids = self.backends.iter().map(|(&id, entry)| ((entry.service, entry.address), id));
        ids.collect()
    }

    /// Whether the maps hold no service at all: nothing was adopted and nothing written.
    pub fn is_empty(&self) -> bool {
        self.services.values().all(|placed| placed.written.is_none())
    }

    /// Backends that are configured no longer and still have their identifiers.
    pub fn retiring(&self) -> impl Iterator<Item = Retiring> {
        self.backends.iter().filter_map(|(&id, entry)| {
            let until = match entry.life {
                Life::Wanted { .. } => return None,
                Life::Draining { until } => Some(until),
                Life::Found | Life::Cut { .. } | Life::Unused => None,
            };
            Some(Retiring { id, address: entry.address, until })
        })
    }

    /// When the next removed backend has drained.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.retiring().filter_map(|retiring| retiring.until).min()
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

    /// Backends that the table behind a written service may name.
    fn named_by(&self, placed: &Placed) -> Vec<u32> {
        if let Some(steering) = placed.steering.as_ref().filter(|_| placed.is_steered()) {
            return steering.named().collect();
        }
        match (&placed.written, &placed.source) {
            (None, _) => Vec::new(),
            (Some(_), Some(source)) => source.serving().collect(),
            // A previous daemon's table: it may name any backend of its service.
            (Some(_), None) => {
                let of_it = |entry: &Entry| entry.service == placed.index;
                self.backends.iter().filter(|(_, entry)| of_it(entry)).map(|(&id, _)| id).collect()
            }
        }
    }
}
