//! How the database stands, for people.

use std::time::Duration;

use super::Task;
use crate::{
    clock,
    config::{Durability, Server},
    control::verdict::Appointed,
    postgres::{
        failover::Known,
        record::{Phase, Record, Run},
        sample::{FailureKind, Receiver, Role, Sample},
        status::{self, Asks, Change, Database, Degradation, Route, Sync},
        sync::SyncRule,
    },
};

/// Half of this is how long a promotion without a person waits at least, if the primary is cut off.
const PATIENCE: Duration = Duration::from_secs(6);

impl Task {
    /// Makes the status true.
    pub(super) fn show(&self) {
        let new = self.describe();
        self.status.send_if_modified(|status| {
            let changed = *status != new;
            *status = new;
            changed
        });
    }

    fn describe(&self) -> Database {
        let record = self.machine.record();
        let open = self.machine.open();
        let problem = match (&open, record) {
            (Ok(_), _) => None,
            (Err(why), Some(_)) => Some(why.clone()),
            (Err(_), None) => self.machine.only_primary().err(),
        };
        let mut warnings: Vec<String> = Vec::new();
        for (server, why) in self.machine.barred() {
            warnings.push(format!("{server} gets no packet: {why}"));
        }
        for (server, why) in &self.troubles {
            warnings.push(format!("{server}: {why}"));
        }
        for server in &self.config.servers {
            warnings.extend(self.lack(&server.name));
        }
        for server in &self.config.servers {
            warnings.extend(self.cannot_write(&server.name).map(|why| {
                let role = self.role_of(&server.name);
                format!("{role}{} cannot write: {why}", server.name)
            }));
        }
        for (server, detail) in &self.details {
            warnings.extend(detail.advice.iter().map(|advice| format!("{server}: {advice}")));
            let lost = detail
                .slots
                .iter()
                .filter(|slot| matches!(slot.wal_status.as_str(), "unreserved" | "lost"));
            warnings.extend(
                lost.map(|slot| format!("{server}: slot {} is {}", slot.name, slot.wal_status)),
            );
        }
        if self.config.durability != Durability::Strict
            && let Some(primary) = record.map(|record| &record.primary)
            && self.details.get(primary).is_some_and(|it| it.may_degrade == Some(false))
        {
            warnings.push(format!(
                "{primary}: our role lacks ALTER SYSTEM on synchronous_standby_names, so commits wait whatever \
                 `durability` says; `ballast pg setup` prints the SQL"
            ));
        }
        for (server, degraded) in record.iter().flat_map(|record| &record.degraded) {
            if record.is_none_or(|record| record.primary != *server) {
                let names = &degraded.names;
                warnings.push(format!(
                    "{server}: synchronous_standby_names is to be {names} again as soon as it answers"
                ));
            }
        }
        if let Some(why) = self.machine.store_trouble() {
            warnings
                .push(format!("nobody is promoted without a person: etcd does not answer ({why})"));
        }
        if self.machine.lease().is_some_and(|until| until <= clock::monotonic()) {
            warnings.push(
                "no packet passes: neither etcd, nor all other balancers, nor all servers confirm the \
                 primary"
                    .into(),
            );
        }
        warnings.extend(self.behind.clone());
        Database {
            name: self.config.name.clone(),
            read_write: self.config.read_write,
            read_only: self.config.read_only,
            promotion: self.config.promotion.to_string(),
            primary: record.map(|record| record.primary.clone()),
            writes_to: open.ok().map(str::to_owned),
            problem,
            epoch: record.map_or(0, |record| record.epoch),
            revision: record.map_or(0, |record| record.revision),
            phase: record.map(|record| record.phase),
            timeline: record.map_or(0, |record| record.branch.timeline),
            degraded: record.and_then(|record| self.degradation(record)),
            durability: self.config.durability.to_string(),
            change: record
                .filter(|record| record.phase != Phase::Serving)
                .and_then(|record| record.run.as_ref())
                .map(change),
            asks: record.and_then(|record| record.doubt.as_ref()).map(|doubt| Asks {
                candidate: doubt.candidate.clone(),
                approve: doubt.approve.clone(),
                veto: doubt.veto.clone(),
                answer: doubt.answer,
            }),
            calm: record.is_some_and(|record| record.calm),
            refused: self.machine.refused().map(str::to_owned),
            servers: self.config.servers.iter().map(|server| self.server(server)).collect(),
            warnings,
            losses: self.gathered.shown(),
            max_lag: self.config.max_lag,
            max_retained: self.config.max_retained,
        }
    }

    /// Why nothing can be written on a server that lives.
    fn cannot_write(&self, server: &str) -> Option<String> {
        let known = self.machine.servers().get(server)?;
        if let Some((_, failure)) = known.failing() {
            return (failure.kind == FailureKind::Full).then(|| failure.reason.clone());
        }
        self.details.get(server).filter(|_| known.answers())?.cannot_write.clone()
    }

    /// What a server is, before its name.
    pub(super) fn role_of(&self, server: &str) -> &'static str {
        let record = self.machine.record();
        if record.is_some_and(|record| record.primary == server) { "the primary " } else { "" }
    }

    /// What becomes of commits on the primary, if they do not wait as they should.
    fn degradation(&self, record: &Record) -> Option<Degradation> {
        let degraded = record.degraded()?;
        let rule = SyncRule::parse(&degraded.names);
        let known = self.machine.servers().get(&record.primary).filter(|known| known.answers());
        let sample = known.and_then(Known::sample);
        Some(Degradation {
            server: record.primary.clone(),
            names: degraded.names.clone(),
            by: degraded.by.clone(),
            restoring: degraded.restoring,
            need: rule.as_ref().map_or(0, |rule| rule.need),
            have: sample.zip(rule.as_ref()).map_or(0, |(sample, rule)| sample.there(rule)),
            by_itself: self.config.durability != Durability::Strict,
        })
    }

    /// What speaks against promoting a server, or reading from it.
    fn lack(&self, server: &str) -> Option<String> {
        let known = self.machine.servers().get(server)?;
        let sample = known.sample().filter(|_| known.answers())?;
        if let Some(lacks) = &sample.lacks {
            return Some(format!(
                "{server} cannot be promoted: our role lacks {lacks}; `ballast pg setup` prints the SQL"
            ));
        }
        let streams = sample.receiver.as_ref().is_some_and(|receiver| receiver.streaming);
        if self.store.is_some()
            && sample.role == Role::Standby
            && sample.patience.is_none_or(|patience| patience > PATIENCE)
        {
            return Some(format!(
                "{server} is slow to find out that a primary is silent: set wal_receiver_timeout to 2s or 1s"
            ));
        }
        (sample.role == Role::Standby && !streams)
            .then(|| format!("{server} is a standby and receives nothing"))
    }

    fn server(&self, server: &Server) -> status::Server {
        let known = self.machine.servers().get(&server.name);
        let sample = known.and_then(Known::sample);
        let failure = known.and_then(Known::failing).map(|(_, failure)| failure);
        let lag = sample.filter(|sample| sample.role == Role::Standby);
        let lag = lag.map(|sample| self.lags.lag(sample, clock::monotonic()));
        let unknown = Appointed::Barred("nothing is known of it yet".into());
        let (write, read) = self
            .applied
            .get(&server.name)
            .map_or((&unknown, &unknown), |(write, read)| (write, read));
        let receiver = sample.and_then(|sample| sample.receiver.as_ref());
        let streams = receiver.filter(|receiver| receiver.streaming);
        status::Server {
            name: server.name.clone(),
            address: server.address,
            answers: known.is_some_and(Known::answers),
            failure: failure.map(|failure| failure.reason.clone()),
            failure_kind: failure.map(|failure| failure.kind),
            role: sample.map(|sample| sample.role),
            version: sample.map(|sample| status::version(sample.version)),
            system_id: sample.map(|sample| sample.system_id.to_string()),
            timeline: sample.map(|sample| sample.timeline),
            received: sample.map(|sample| sample.received.to_string()),
            replayed: sample.map(|sample| sample.replayed.to_string()),
            lag_bytes: lag.map(|lag| lag.bytes),
            lag_ms: lag.map(|lag| lag.time.as_millis() as u64),
            streams_from: streams.map(|Receiver { host, .. }| host.clone()),
            quarantined: self.machine.quarantined(&server.name),
            sync: sample.and_then(sync),
            cannot_write: self.cannot_write(&server.name),
            read_write: Route::from(write),
            read_only: Route::from(read),
            detail: self.details.get(&server.name).cloned(),
        }
    }
}

/// What commits on a primary wait for, and what there is of it.
fn sync(sample: &Sample) -> Option<Sync> {
    let rule = sample.sync.as_ref().filter(|_| sample.role == Role::Primary)?;
    let is = |state: &str| matches!(state, "sync" | "quorum");
    let have = sample.replicas.iter().filter(|it| it.state == "streaming" && is(&it.sync_state));
    Some(Sync { need: rule.need, have: have.count() })
}

fn change(run: &Run) -> Change {
    Change {
        by: run.controller.clone(),
        cause: run.cause,
        candidate: run.candidate.clone(),
        loss: run.loss,
        stuck: run.stuck.clone(),
    }
}
