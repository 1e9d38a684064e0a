//! What commits of a site wait for, and how that changes.

use super::*;

/// `synchronous_standby_names` of a server whose commits wait.
const NAMES: &str = "\"pg-01\", \"pg-02\", \"pg-03\"";

impl Site {
    pub(super) fn names_of(&self, server: usize) -> &'static str {
        if self.servers[server].sync { NAMES } else { "" }
    }

    /// Whether another server has been promoted already, which somebody who looks at the servers sees.
    pub(super) fn is_behind(&self, at: usize) -> bool {
        let Some(record) = &self.balancers[at].disk else { return true };
        self.servers.iter().any(|it| it.timeline > record.branch.timeline)
    }

    fn feeds(&self, server: usize, other: usize) -> bool {
        self.servers[other].source == Source::Server(server) && self.is_fed(other)
    }

    pub(super) fn replicas_of(&self, server: usize) -> Vec<Replica> {
        let fed = (0..3).filter(|other| self.feeds(server, *other));
        fed.map(|other| Replica {
            name: SERVERS[other].into(),
            address: Some(address(SERVERS[other])),
            state: "streaming".into(),
            sync_state: "quorum".into(),
        })
        .collect()
    }

    /// Clients hear of writes that have waited.
    pub(super) fn acknowledge(&mut self, server: usize, done: &[u64]) {
        let it = &mut self.servers[server];
        it.waiting.retain(|number| !done.contains(number));
        // A client whose connection was cut hears of no acknowledgement.
        let is_primary = it.role == Role::Primary;
        if is_primary && (0..2).any(|at| self.gate(at) == Some(SERVERS[server])) {
            self.acknowledged.extend(done);
        }
    }

    /// As [`crate::postgres::work::set_sync`] does.
    pub(super) fn set_sync(
        &mut self,
        at: usize,
        name: String,
        names: String,
        need: usize,
        fails: bool,
    ) {
        let asked = self.balancers[at].machine.as_ref().and_then(|it| it.ordered());
        if asked != Some((name.as_str(), names.as_str())) {
            // It has ended long ago.
            return;
        }
        let server = server_at(&name);
        let has = |site: &Self, end: usize| {
            let fed = (0..3).filter(|it| site.feeds(server, *it));
            fed.filter(|it| site.servers[*it].log.len() >= end).count() >= need
        };
        let mut result = match self.ask(at, server) {
            Ok(_) if need > 0 && self.mutant == Some(Mutant::RestoresByWord) => {
                let end = Ok(Lsn(self.servers[server].log.len() as u64));
                return self.take(at, Event::SyncSet { server: name, names, result: end });
            }
            Ok(_) if has(self, 0) && !(fails && self.rng.bool()) => Ok(()),
            Ok(_) => Err("too few are there".to_owned()),
            Err(failure) => Err(failure.reason),
        };
        if result.is_ok() {
            let was = std::mem::replace(&mut self.servers[server].sync, !names.is_empty());
            if was && names.is_empty() {
                self.degradations += 1;
                let waiting = self.servers[server].waiting.clone();
                self.acknowledge(server, &waiting);
            }
        }
        let end = self.servers[server].log.len();
        if result.is_ok() && need > 0 {
            for other in 0..3 {
                if self.feeds(server, other) {
                    let most = self.rng.usize(..20);
                    self.replicate(other, most);
                }
            }
            if has(self, end) {
                self.restorations += 1;
            } else {
                result = Err("they do not have it".into());
            }
        }
        // The answer may get lost.
        let result = if fails { Err("no answer".into()) } else { result };
        let result = result.map(|()| Lsn(end as u64));
        self.take(at, Event::SyncSet { server: name, names, result });
    }

    /// The standbys of a site that was whole go down, or the primary does not reach them; perhaps it goes
    /// down as well, or some do not reach it, while that is dealt with.
    pub(super) fn lose_standbys(&mut self) {
        self.mend();
        self.calm(10);
        let Some(primary) = self.gate(0).map(server_at) else { return };
        let standbys: Vec<usize> = (0..3).filter(|it| *it != primary).collect();
        let cut = self.rng.bool();
        for &it in &standbys {
            if cut {
                self.cuts.insert((it.min(primary) + 2, it.max(primary) + 2));
            } else {
                self.servers[it].up = false;
            }
        }
        let rounds = self.rng.usize(20..120);
        let blow = self.rng.usize(..rounds);
        let back = self.rng.usize(..rounds);
        for round in 0..rounds {
            if round == blow {
                match self.rng.u8(..6) {
                    0 => self.servers[primary].up = false,
                    1 => drop(self.cuts.insert((self.rng.usize(..2), primary + 2))),
                    2 => {
                        let at = self.rng.usize(..2);
                        self.stop_daemon(at);
                        self.start_daemon(at);
                    }
                    3 => self.store.suffer(&mut self.rng),
                    4 => drop(self.cuts.insert((0, 1))),
                    _ => {}
                }
            }
            if round == back {
                for &it in &standbys {
                    self.servers[it].up = true;
                    self.cuts.remove(&(it.min(primary) + 2, it.max(primary) + 2));
                }
            }
            self.go_on_roughly(primary);
        }
    }

    /// Everything is whole: commits wait again where they shall.
    pub(super) fn check_commits(&mut self, seed: u64) {
        let rules = self.unattended.clone();
        if !self.sync || rules.is_none_or(|rules| rules.available.is_none()) {
            return;
        }
        for _ in 0..15 {
            let is_degraded =
                |it: &Balancer| it.disk.as_ref().is_none_or(|it| !it.degraded.is_empty());
            if !self.balancers.iter().any(is_degraded) {
                break;
            }
            self.calm(20);
            self.check();
        }
        let Some(record) = self.balancers[0].disk.clone() else { return };
        let primary = server_at(&record.primary);
        // One whose history is another one cannot come back without a person.
        let fed = (0..3).filter(|it| self.feeds(primary, *it)).count();
        assert!(
            fed == 0 || (record.degraded.is_empty() && self.servers[primary].sync),
            "seed {seed}: commits wait for nobody: {record:?}"
        );
    }
}
