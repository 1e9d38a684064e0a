//! Who gets which number: indexes of services, identifiers of backends, and how long a backend that
//! is configured no longer keeps its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::{backend, service::ServiceKey};

use super::{Desired, Entry, Life, Numbers, ORPHAN_DRAIN, Placed, Plan, Planner, Problem};

/// Where each backend that has an identifier stands in the desired state: its service's place, and
/// its own place in that service. Of the services that are planned.
pub(super) type Places = BTreeMap<u32, (usize, usize)>;

impl Planner {
    /// Gives every service of `changed` an index and every backend of it an identifier, and moves the
    /// lives of the others on. Answers with the identifiers by service and place in it.
    pub(super) fn place(
        &mut self,
        desired: &Desired,
        changed: &[usize],
        now: Duration,
        plan: &mut Plan,
    ) -> Places {
        let mut ids = Places::new();
        let mut free_indexes = None;
        let mut left: BTreeMap<u32, Duration> = BTreeMap::new();
        for &at in changed {
            let service = &desired.services[at];
            let Some(index) = self.index_of(&service.key, &mut free_indexes) else {
                plan.problems.push(Problem::Services(self.sizes.services));
                continue;
            };
            let life = Life::Wanted { drain_timeout: service.drain_timeout };
            let mut members = Vec::with_capacity(service.backends.len());
            let mut missing = None;
            for (place, backend) in service.backends.iter().enumerate() {
                let address = backend.address;
                let known = self.id(index, address).filter(|id| self.backends.contains_key(id));
                let Some(id) = known.or_else(|| self.free_ids.lowest()) else {
                    missing = missing.or(Some(address));
                    continue;
                };
                if let Some(entry) = self.backends.get_mut(&id) {
                    entry.life = life;
                } else {
                    let fresh =
                        Entry { service: index, address, written: None, stopped: None, life };
                    self.add(id, fresh);
                }
                if self.waning.remove(&id) {
                    self.waned += 1;
                }
                ids.insert(id, (at, place));
                members.push(id);
            }
            if let Some(address) = missing {
                plan.problems.push(Problem::Backends(address, self.sizes.backends));
            }
            if let Some(placed) = self.services.get_mut(&service.key) {
                let before = std::mem::replace(&mut placed.members, members);
                let gone = before.into_iter().filter(|id| !ids.contains_key(id));
                left.extend(gone.map(|id| (id, service.drain_timeout)));
            }
        }
        left.extend(self.of_removed_services(desired));
        left.extend(self.found(desired));
        for (id, drain_timeout) in left {
            self.let_go(id, drain_timeout, now);
        }
        ids
    }

    /// The backends of services that are desired no longer, and how long each drains.
    fn of_removed_services(&mut self, desired: &Desired) -> Vec<(u32, Duration)> {
        let wanted: BTreeSet<_> = desired.services.iter().map(|service| service.key).collect();
        let mut left = Vec::new();
        for (_, placed) in self.services.iter_mut().filter(|(key, _)| !wanted.contains(key)) {
            placed.settled = None;
            for id in std::mem::take(&mut placed.members) {
                let drain = match self.backends.get(&id).map(|entry| entry.life) {
                    Some(Life::Wanted { drain_timeout }) => drain_timeout,
                    _ => ORPHAN_DRAIN,
                };
                left.push((id, drain));
            }
        }
        left
    }

    /// What a previous daemon left and nobody wants.
    fn found(&self, desired: &Desired) -> Vec<(u32, Duration)> {
        let is_found = |id: &u32| self.backends.get(id).is_some_and(|it| it.life == Life::Found);
        let found: Vec<u32> = self.waning.iter().copied().filter(is_found).collect();
        if found.is_empty() {
            return Vec::new();
        }
        let drains = desired.services.iter().filter_map(|service| {
            Some((self.services.get(&service.key)?.index, service.drain_timeout))
        });
        let drains: BTreeMap<u32, Duration> = drains.collect();
        let drain = |id: u32| {
            let service = self.backends.get(&id).map(|entry| entry.service);
            service.and_then(|service| drains.get(&service)).copied().unwrap_or(ORPHAN_DRAIN)
        };
        found.into_iter().map(|id| (id, drain(id))).collect()
    }

    /// A backend is configured no longer.
    fn let_go(&mut self, id: u32, drain_for: Duration, now: Duration) {
        let Some(entry) = self.backends.get_mut(&id) else { return };
        if !matches!(entry.life, Life::Wanted { .. } | Life::Found) {
            return;
        }
        entry.life = match entry.written {
            // Planned once, and never written: no flow can name it.
            None => Life::Unused,
            Some(written) if written.flags & backend::FORWARD == 0 => Life::Cut { at: now },
            Some(_) => Life::Draining { until: now + drain_for },
        };
        self.waning.insert(id);
        self.waned += 1;
    }

    /// The index of a service. `free` is made when the first new one needs it.
    fn index_of(&mut self, key: &ServiceKey, free: &mut Option<Numbers>) -> Option<u32> {
        if let Some(placed) = self.services.get(key) {
            return Some(placed.index);
        }
        let free = free.get_or_insert_with(|| {
            let mut free = Numbers::new(self.sizes.services);
            let placed = self.services.values().map(|placed| placed.index);
            for index in placed.chain(self.users.keys().copied()) {
                // A service and its backends have the same one.
                let _ = free.take(index);
            }
            free
        });
        let index = free.lowest()?;
        self.services.insert(*key, Placed { index, ..Placed::default() });
        Some(index)
    }

    /// Frees the indexes of services that are not written and have no backends left.
    pub(super) fn forget_services(&mut self) {
        if !std::mem::take(&mut self.forgetful) {
            return;
        }
        let users = &self.users;
        self.services.retain(|_, placed| {
            placed.written.is_some()
                || placed.pending.is_some()
                || users.contains_key(&placed.index)
        });
    }
}
