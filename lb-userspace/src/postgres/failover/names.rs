//! What a standby's commits would wait for if it were promoted.
//!
//! A copy of a primary has its `synchronous_standby_names` as well, and there its own name stands: promoted, it would
//! wait for itself. So a standby that would is set right while it is one; and what is promoted before that, or waits for
//! others that are missing where commits must not, begins as [degraded](Record::degraded).

use std::time::Duration;

use super::{Action, Known, Machine};
use crate::postgres::{
    record::{Degraded, Record, Run},
    sample::{Role, Sample},
    sync::{self, SyncRule},
};

impl Machine {
    /// The names by which a primary knows a server.
    fn names_of(&self, record: &Record, server: &str) -> Vec<String> {
        let address = self.settings.servers.iter().find(|(name, _)| name == server).map(|it| it.1);
        let primary = self.servers.get(&record.primary).and_then(Known::sample);
        let replicas = primary.into_iter().flat_map(|sample| &sample.replicas);
        let fed = replicas.filter(|it| address.is_some() && it.address == address);
        std::iter::once(server.to_owned()).chain(fed.map(|it| it.name.clone())).collect()
    }

    /// Of a server that would wait for itself, its own names.
    fn waits_for_itself(
        &self,
        record: &Record,
        server: &str,
        sample: &Sample,
    ) -> Option<Vec<String>> {
        let rule = SyncRule::parse(&sample.sync_names)?;
        let own = self.names_of(record, server);
        rule.needs_itself(&own).then_some(own)
    }

    /// Sets a standby right that would wait for itself. No commit depends on that before it is promoted.
    pub(super) fn correct_standbys(
        &mut self,
        record: &Record,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        for (name, known) in &self.servers {
            let Some(sample) = known.sample().filter(|_| known.answers()) else { continue };
            let same = sample.system_id == record.branch.system_id;
            if !same || sample.role != Role::Standby || record.degraded.contains_key(name) {
                continue;
            }
            let Some(own) = self.waits_for_itself(record, name, sample) else { continue };
            let mut names = sync::replaced(&sample.sync_names, &own, &record.primary);
            // It is promoted when the primary is gone. Then it would wait for that, and only where it goes on
            // without after a while may it begin so.
            let gone = [record.primary.clone()];
            let waits = SyncRule::parse(&names).is_none_or(|rule| rule.needs_itself(&gone));
            if waits && self.patience().is_none() {
                names.clear();
            }
            return self.order_sync(name.clone(), names, 0, now, out);
        }
    }

    /// What the record shall say of a server that is promoted, if its commits would wait for nobody who can come.
    pub(super) fn lifted(&self, record: &Record, run: &Run, server: &str) -> Option<Degraded> {
        let sample = self.servers.get(server)?.sample()?;
        let rule = SyncRule::parse(&sample.sync_names)?;
        let names = match self.waits_for_itself(record, server, sample) {
            Some(own) => sync::replaced(&sample.sync_names, &own, &record.primary),
            None if self.patience().is_some() && self.follow(record, &rule, server) < rule.need => {
                sample.sync_names.clone()
            }
            None => return None,
        };
        let (by, absent) = (self.settings.node.clone(), run.absent.clone());
        Some(Degraded { names, by, absent, restoring: false })
    }

    /// How many standbys that a rule counts are there to follow a new primary.
    fn follow(&self, record: &Record, rule: &SyncRule, server: &str) -> usize {
        let others = self.servers.iter().filter(|(name, known)| {
            let sample = known.sample().filter(|_| known.answers());
            let stands = sample.is_some_and(|it| {
                it.role == Role::Standby && it.system_id == record.branch.system_id
            });
            *name != server && *name != &record.primary && stands
        });
        let names = others.map(|(name, _)| self.names_of(record, name));
        names.filter(|names| names.iter().any(|name| rule.counts(name))).count()
    }
}
