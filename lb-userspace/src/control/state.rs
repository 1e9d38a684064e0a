//! What is known of the services and their backends, and the verdicts that follow.
//!
//! Pure: it takes configuration, reports, next hops, wishes and the time, and gives verdicts, notes
//! for the timeline, and the desired state of the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use super::{
    plan::{Desired, DesiredBackend, DesiredService, service_key},
    verdict::{self, Admin, Facts, Judgement, Rules, Verdict, Why},
};
use crate::{
    config,
    events::{Kind, Note},
    health::{Health, Report, Target, passive::Track},
    net::NextHops,
};

mod rise;
mod watch;

use rise::Rise;
pub use watch::Watched;

/// What the operator wants of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Whether it shall serve.
    pub admin: Admin,
    /// Weight in place of the configured one.
    pub weight: Option<u32>,
    /// When `admin` was last set, on the monotonic clock: draining counts from there.
    pub since: Duration,
}

/// What is known of one backend.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its configuration.
    pub config: config::Backend,
    /// What the probes say.
    pub health: Health,
    /// What the last probe said.
    pub reason: String,
    /// When `health` last changed, on the monotonic clock.
    pub since: Duration,
    /// What the operator wants.
    pub wish: Wish,
    /// What was decided.
    pub verdict: Verdict,
    /// What the connections of clients have shown of it.
    pub track: Track,
    /// Its slow start, since it came back.
    rise: Option<Rise>,
}

impl Record {
    /// The configured weight, or the operator's.
    pub fn weight(&self) -> u32 {
        self.wish.weight.unwrap_or(self.config.weight)
    }
}

/// One service with its backends.
#[derive(Clone, Debug)]
pub struct ServiceState {
    /// Its configuration.
    pub config: config::Service,
    /// Its backends, in the order of the configuration.
    pub records: Vec<Record>,
    /// No backend is fit, so all that are enabled serve.
    pub panic: bool,
    /// Backups serve because no other can.
    pub on_backups: bool,
}

/// All services.
#[derive(Clone, Debug, Default)]
pub struct State {
    services: Vec<ServiceState>,
    next_hops: NextHops,
}

impl State {
    /// Takes a new configuration. What is known of backends that stay is kept: those of the same
    /// service and name whose address has not changed.
    pub fn configure(
        &mut self,
        services: &[config::Service],
        wishes: impl Fn(&str, &str) -> Wish,
        now: Duration,
    ) {
        let mut known: BTreeMap<(String, String), Record> = BTreeMap::new();
        let mut flags = BTreeMap::new();
        for service in self.services.drain(..) {
            flags.insert(service.config.name.clone(), (service.panic, service.on_backups));
            for record in service.records {
                known.insert((service.config.name.clone(), record.config.name.clone()), record);
            }
        }
        self.services = services
            .iter()
            .map(|service| {
                let records = service.backends.iter().map(|backend| {
                    let key = (service.name.clone(), backend.name.clone());
                    let wish = wishes(&service.name, &backend.name);
                    match known.remove(&key) {
                        Some(old) if old.config.address == backend.address => {
                            // Who is not watched has nothing to answer for.
                            let track = service.passive.map(|_| old.track).unwrap_or_default();
                            Record { config: backend.clone(), wish, track, ..old }
                        }
                        _ => Record {
                            config: backend.clone(),
                            health: Health::Unknown,
                            reason: String::new(),
                            since: now,
                            wish,
                            verdict: Verdict::default(),
                            track: Track::default(),
                            rise: None,
                        },
                    }
                });
                let (panic, on_backups) = flags.get(&service.name).copied().unwrap_or_default();
                let records = records.collect();
                ServiceState { config: service.clone(), records, panic, on_backups }
            })
            .collect();
    }

    /// Takes what a probe found.
    pub fn observe(&mut self, report: &Report, now: Duration) -> Option<Note> {
        let service = self.services.iter_mut().find(|it| it.config.name == report.service)?;
        let slow_start = service.config.slow_start;
        let record = service.records.iter_mut().find(|it| it.config.name == report.backend)?;
        record.reason.clone_from(&report.reason);
        let before = std::mem::replace(&mut record.health, report.health);
        if before == report.health {
            return None;
        }
        record.since = now;
        // At the daemon's start a backend goes from unknown to up: it was warm before we came.
        let rises = before == Health::Down && report.health == Health::Up;
        record.rise = if rises { Rise::start(slow_start, now) } else { None };
        let word = match report.health {
            Health::Unknown => "unknown",
            Health::Up => "up",
            Health::Down => "down",
        };
        let note = Note::new(Kind::Health, format!("{} is {word}", report.backend));
        Some(note.service(&report.service).backend(&report.backend).because(&report.reason))
    }

    /// Takes what the operator wants of a backend.
    pub fn wish(&mut self, service: &str, backend: &str, wish: Wish) {
        let service = self.services.iter_mut().find(|it| it.config.name == service);
        let Some(service) = service else { return };
        if let Some(record) = service.records.iter_mut().find(|it| it.config.name == backend) {
            record.wish = wish;
        }
    }

    /// Takes what is known of next hops.
    pub fn set_next_hops(&mut self, next_hops: NextHops) {
        self.next_hops = next_hops;
    }

    /// Decides about every backend anew. The notes say what has changed.
    pub fn judge(&mut self, now: Duration) -> Vec<Note> {
        let mut notes = Vec::new();
        for service in &mut self.services {
            service.judge(&self.next_hops, now, &mut notes);
        }
        notes
    }

    /// What the maps should say, by the last verdicts.
    pub fn desired(&self, floating: BTreeSet<IpAddr>) -> Desired {
        let services = self.services.iter().map(|service| DesiredService {
            key: service_key(service.config.listen, service.config.protocol),
            balance: service.config.balance,
            forward: service.config.forward,
            replay: service.config.replay,
            drain_timeout: service.config.drain_timeout,
            guard: service.config.guard.clone(),
            backends: service
                .records
                .iter()
                .map(|record| DesiredBackend {
                    address: record.config.address,
                    weight: record.verdict.weight,
                    full_weight: record.weight() * verdict::WEIGHT_SCALE,
                    serving: record.verdict.serving,
                    forward: record.verdict.forward,
                    patience_ms: record.track.patience_ms(),
                })
                .collect(),
        });
        Desired {
            floating,
            services: services.collect(),
            next_hops: self.next_hops.clone(),
            ..Desired::default()
        }
    }

    /// When a verdict changes by time alone: a drain ends, or a slow start takes its next step.
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        let deadlines = self.records().flat_map(|(service, record)| {
            let drain = (record.wish.admin == Admin::Draining)
                .then(|| record.wish.since + service.config.drain_timeout)
                .filter(|&at| at > now);
            let step = record.rise.and_then(|rise| rise.next_step());
            drain.into_iter().chain(step)
        });
        deadlines.min()
    }

    /// Whether every backend has been probed and has a route: nothing is left to guess.
    pub fn is_settled(&self) -> bool {
        self.records().all(|(_, record)| {
            record.health != Health::Unknown
                && self.next_hops.contains_key(&record.config.address.ip())
        })
    }

    /// What to probe.
    pub fn targets(&self) -> Vec<Target> {
        self.records()
            .map(|(service, record)| Target {
                service: service.config.name.clone(),
                backend: record.config.name.clone(),
                address: record.config.address,
                health: service.config.health.clone(),
            })
            .collect()
    }

    /// The services.
    pub fn services(&self) -> &[ServiceState] {
        &self.services
    }

    /// The next hops.
    pub fn next_hops(&self) -> &NextHops {
        &self.next_hops
    }

    /// Every backend with its service.
    pub fn records(&self) -> impl Iterator<Item = (&ServiceState, &Record)> {
        self.services
            .iter()
            .flat_map(|service| service.records.iter().map(move |record| (service, record)))
    }
}

impl ServiceState {
    fn judge(&mut self, next_hops: &NextHops, now: Duration, notes: &mut Vec<Note>) {
        let rules = Rules { on_down: self.config.on_down };
        let drain_timeout = self.config.drain_timeout;
        for record in &mut self.records {
            let above = record.track.is_above_siblings();
            if let Some(rise) = &mut record.rise {
                rise.advance(above, now);
            }
        }
        let passive: Vec<_> = self.records.iter().map(Record::passive).collect();
        let facts: Vec<_> = self
            .records
            .iter()
            .zip(&passive)
            .map(|(record, passive)| Facts {
                health: record.health,
                reason: &record.reason,
                admin: record.wish.admin,
                drain_left: (record.wish.since + drain_timeout).saturating_sub(now),
                weight: record.weight(),
                backup: record.config.backup,
                passive,
                ramp: record.rise.map(|rise| rise.ramp()),
                resolved: next_hops
                    .get(&record.config.address.ip())
                    .is_some_and(|hop| hop.mac.is_some()),
            })
            .collect();
        let Judgement { verdicts, panic, on_backups } = verdict::judge(rules, &facts);
        let name = self.config.name.clone();
        let alone = verdicts.iter().filter(|verdict| verdict.serving).count() == 1;
        for (record, verdict) in self.records.iter_mut().zip(verdicts) {
            // A slow start that has ended, or that protects nobody, does not begin again when
            // others come back.
            if record.rise.is_some_and(|rise| rise.is_over()) || (alone && verdict.serving) {
                record.rise = None;
            }
            let before = std::mem::replace(&mut record.verdict, verdict);
            notes.extend(changes(&before, record).into_iter().map(|note| note.service(&name)));
        }
        if std::mem::replace(&mut self.panic, panic) != panic {
            let message = if panic {
                format!("{name} panics: no backend is fit, so all that are enabled serve")
            } else {
                format!("{name} panics no longer")
            };
            notes.push(Note::new(Kind::Panic, message).service(&name));
        }
        if std::mem::replace(&mut self.on_backups, on_backups) != on_backups {
            let message = if on_backups {
                format!("{name} is served by its backups")
            } else {
                format!("{name} needs its backups no longer")
            };
            notes.push(Note::new(Kind::Backup, message).service(&name));
        }
    }
}

/// What the timeline should say about a new verdict.
fn changes(before: &Verdict, record: &Record) -> Vec<Note> {
    let name = &record.config.name;
    let verdict = &record.verdict;
    let because = || verdict.reasons.iter().map(Why::to_string).collect::<Vec<_>>().join("; ");
    let mut notes = Vec::new();
    if before.serving != verdict.serving {
        let message = if verdict.serving {
            format!("{name} serves")
        } else {
            format!("{name} serves no longer")
        };
        notes.push(Note::new(Kind::Serving, message).backend(name).because(because()));
    }
    let drained = |verdict: &Verdict| verdict.reasons.contains(&Why::Drained);
    if drained(verdict) && !drained(before) && !before.reasons.is_empty() {
        let message = format!("{name} is drained; connections that were left are reset");
        notes.push(Note::new(Kind::Drained, message).backend(name));
    }
    notes
}

#[cfg(test)]
mod tests;
