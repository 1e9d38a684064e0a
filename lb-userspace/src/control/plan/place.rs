//! Who gets which number: indexes of services, identifiers of backends, and how long a backend that
//! is configured no longer keeps its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use lb_common::{backend, limits, service::ServiceKey};

use super::{Desired, Entry, Life, ORPHAN_DRAIN, Placed, Plan, Planner, Problem};

/// Where each backend that has an identifier stands in the desired state: its service's place, and
/// its own place in that service.
pub(super) type Places = BTreeMap<u32, (usize, usize)>;

impl Planner {
    /// Gives every desired service an index and every desired backend an identifier, and moves the
    /// lives of the others on. Answers with the identifiers by service and place in it.
    pub(super) fn place(&mut self, desired: &Desired, now: Duration, plan: &mut Plan) -> Places {
        let mut ids = BTreeMap::new();
        let mut known: BTreeMap<(u32, SocketAddr), u32> = BTreeMap::new();
        for (&id, entry) in &self.backends {
            known.entry((entry.service, entry.address)).or_insert(id);
        }
        let mut drains = BTreeMap::new();
        for (at, service) in desired.services.iter().enumerate() {
            let Some(index) = self.index_of(&service.key) else {
                plan.problems.push(Problem::Services);
                continue;
            };
            drains.insert(index, service.drain_timeout);
            for (place, backend) in service.backends.iter().enumerate() {
                let life = Life::Wanted { drain_timeout: service.drain_timeout };
                let known = known.get(&(index, backend.address)).copied();
                let Some(id) = known.or_else(|| self.free_id()) else {
                    plan.problems.push(Problem::Backends(backend.address));
                    continue;
                };
                let address = backend.address;
                let fresh = Entry { service: index, address, written: None, stopped: None, life };
                self.backends.entry(id).or_insert(fresh).life = life;
                ids.insert(id, (at, place));
            }
        }
        for (id, entry) in &mut self.backends {
            if ids.contains_key(id) {
                continue;
            }
            let drain_for = match entry.life {
                Life::Wanted { drain_timeout } => drain_timeout,
                Life::Found => drains.get(&entry.service).copied().unwrap_or(ORPHAN_DRAIN),
                Life::Draining { .. } | Life::Cut { .. } | Life::Unused => continue,
            };
            entry.life = match entry.written {
                // Planned once, and never written: no flow can name it.
                None => Life::Unused,
                Some(written) if written.flags & backend::FORWARD == 0 => Life::Cut { at: now },
                Some(_) => Life::Draining { until: now + drain_for },
            };
        }
        ids
    }

    fn index_of(&mut self, key: &ServiceKey) -> Option<u32> {
        if let Some(placed) = self.services.get(key) {
            return Some(placed.index);
        }
        let taken: BTreeSet<u32> = self
            .services
            .values()
            .map(|placed| placed.index)
            .chain(self.backends.values().map(|entry| entry.service))
            .collect();
        let index = (0..limits::MAX_SERVICES).find(|index| !taken.contains(index))?;
        self.services.insert(*key, Placed { index, ..Placed::default() });
        Some(index)
    }

    fn free_id(&self) -> Option<u32> {
        (0..limits::MAX_BACKENDS).find(|id| !self.backends.contains_key(id))
    }

    /// Frees the indexes of services that are not written and have no backends left.
    pub(super) fn forget_services(&mut self) {
        let in_use: BTreeSet<u32> = self.backends.values().map(|entry| entry.service).collect();
        self.services.retain(|_, placed| {
            placed.written.is_some() || placed.pending.is_some() || in_use.contains(&placed.index)
        });
    }
}
