//! What is known of the services and their backends, and the verdicts that follow.
//!
//! Pure: it takes configuration, reports, next hops, wishes and the time, and gives verdicts, notes
//! for the timeline, and the desired state of the maps.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use super::{
    plan::{Desired, DesiredBackend, DesiredService, Proxied, service_key},
    verdict::{self, Admin, Appointed, Facts, Judgement, Rules, Verdict, Why},
};
use crate::{
    config::{self, Probe},
    events::{Kind, Note},
    health::{Health, Report, Target, passive::Track},
    net::NextHops,
};

mod path;
mod rise;
mod watch;

use path::Path;
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
    /// What it is there for, if it is a server of a database.
    pub appointed: Appointed,
    /// Its slow start, since it came back.
    rise: Option<Rise>,
}

impl Record {
    /// The configured weight, or the operator's.
    pub fn weight(&self) -> u32 {
        self.wish.weight.unwrap_or(self.config.weight)
    }
}

/// What is said of a backend that is not probed.
const NOT_PROBED: &str = "not probed";

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
    /// Which path its connections take.
    path: Path,
    /// Until when its new connections wait, as the maps say it.
    parked_until: u32,
    /// What has changed since the last verdicts.
    news: News,
    /// What the maps should say of it, by the last verdicts.
    desired: Arc<DesiredService>,
}

/// What has come to be known of a service since it was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// Nothing.
    Nothing,
    /// Something that the verdicts depend on.
    Facts,
    /// A next hop, so the kernel's entries must be looked at whatever the verdicts say.
    NextHop,
}

/// All services.
///
/// What has not changed is not judged again, and stays the same value for the planner.
#[derive(Clone, Debug, Default)]
pub struct State {
    services: Vec<ServiceState>,
    by_name: HashMap<String, usize>,
    /// The places of those that have a proxy.
    proxied: Vec<usize>,
    next_hops: Arc<NextHops>,
    revision: u64,
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
        let old = self.services.drain(..).map(|service| (service.config.name.clone(), service));
        let mut old: HashMap<String, ServiceState> = old.collect();
        let states = services.iter().map(|service| {
            let old = old.remove(&service.name);
            let as_wished =
                |record: &Record| record.wish == wishes(&service.name, &record.config.name);
            match old {
                Some(old) if old.config == *service && old.records.iter().all(as_wished) => old,
                old => ServiceState::new(service, old, &wishes, now),
            }
        });
        self.services = states.collect();
        let names = self.services.iter().enumerate();
        self.by_name = names.map(|(at, service)| (service.config.name.clone(), at)).collect();
        let places = self.services.iter().enumerate();
        let proxied = places.filter(|(_, service)| service.config.proxy.is_some());
        self.proxied = proxied.map(|(at, _)| at).collect();
        self.revision += 1;
    }

    /// Another number whenever there are other backends.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes what a probe found. The notes say what has changed.
    pub fn observe(&mut self, report: &Report, now: Duration) -> Vec<Note> {
        let Some(&at) = self.by_name.get(&report.service) else { return Vec::new() };
        let service = &mut self.services[at];
        let Some(note) = service.observe(report, now) else { return Vec::new() };
        let is_down = report.health == Health::Down;
        let because = || format!("{}: {}", report.backend, report.reason);
        let sign = is_down.then(|| service.sign(&because(), now)).flatten();
        std::iter::once(note).chain(sign).collect()
    }

    /// Takes what a server of a database is there for.
    pub fn appoint(&mut self, service: &str, backend: &str, appointed: Appointed, now: Duration) {
        let Some(&at) = self.by_name.get(service) else { return };
        let service = &mut self.services[at];
        let Some(record) = service.records.iter_mut().find(|it| it.config.name == backend) else {
            return;
        };
        let health = match appointed {
            Appointed::Serves(_) | Appointed::Rests(_) => Health::Up,
            Appointed::Barred(_) => Health::Down,
        };
        if record.health != health {
            (record.health, record.since) = (health, now);
        }
        appointed.why().clone_into(&mut record.reason);
        record.appointed = appointed;
        service.news.add_facts();
    }

    /// Takes until when new connections of a service wait ([`lb_common::service::Service::parked_until`]).
    pub fn park(&mut self, service: &str, until: u32) {
        let Some(&at) = self.by_name.get(service) else { return };
        let service = &mut self.services[at];
        if std::mem::replace(&mut service.parked_until, until) != until {
            service.news.add_facts();
        }
    }

    /// Takes what the operator wants of a backend.
    pub fn wish(&mut self, service: &str, backend: &str, wish: Wish) {
        let Some(&at) = self.by_name.get(service) else { return };
        let service = &mut self.services[at];
        if let Some(record) = service.records.iter_mut().find(|it| it.config.name == backend) {
            record.wish = wish;
            service.news.add_facts();
        }
    }

    /// Takes whether the proxy can take a service's connections.
    pub fn set_listens(&mut self, service: &str, listens: bool) {
        let Some(&at) = self.by_name.get(service) else { return };
        let service = &mut self.services[at];
        if std::mem::replace(&mut service.path.listens, listens) != listens {
            service.news.add_facts();
        }
    }

    /// Takes what is known of next hops.
    pub fn set_next_hops(&mut self, next_hops: NextHops) {
        let old = std::mem::replace(&mut self.next_hops, Arc::new(next_hops));
        let new = &self.next_hops;
        let gone = old.keys().filter(|address| !new.contains_key(address));
        let others = new.iter().filter(|&(address, hop)| old.get(address) != Some(hop));
        let changed: BTreeSet<IpAddr> =
            gone.chain(others.map(|(address, _)| address)).copied().collect();
        if changed.is_empty() {
            return;
        }
        for service in &mut self.services {
            let has_moved = |record: &Record| changed.contains(&record.config.address.ip());
            if service.records.iter().any(has_moved) {
                service.news = News::NextHop;
            }
        }
    }

    /// Decides anew about every backend of the services for which something may have changed. The
    /// notes say what has.
    pub fn judge(&mut self, now: Duration) -> Vec<Note> {
        let mut notes = Vec::new();
        for service in &mut self.services {
            if service.news != News::Nothing || service.is_timed() {
                service.judge(&self.next_hops, now, &mut notes);
                service.lower(now, &mut notes);
                service.describe();
            }
        }
        notes
    }

    /// What the maps should say, by the last verdicts.
    pub fn desired(&self, floating: BTreeSet<IpAddr>) -> Desired {
        let services = self.services.iter().map(|service| Arc::clone(&service.desired));
        Desired {
            floating,
            services: services.collect(),
            next_hops: Arc::clone(&self.next_hops),
            ..Desired::default()
        }
    }

    /// When a verdict changes by time alone: a drain ends, or a slow start takes its next step.
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        let timed = || self.services.iter().filter(|service| service.is_timed());
        let lifts = timed().filter_map(|service| service.path.until());
        let records =
            timed().flat_map(|service| service.records.iter().map(move |it| (service, it)));
        let deadlines = records.flat_map(|(service, record)| {
            let drain = (record.wish.admin == Admin::Draining)
                .then(|| record.wish.since + service.config.drain_timeout)
                .filter(|&at| at > now);
            let step = record.rise.and_then(|rise| rise.next_step());
            drain.into_iter().chain(step)
        });
        deadlines.chain(lifts).min()
    }

    /// Whether every backend has been probed and has a route: nothing is left to guess.
    pub fn is_settled(&self) -> bool {
        self.records().all(|(_, record)| {
            record.health != Health::Unknown
                && self.next_hops.contains_key(&record.config.address.ip())
        })
    }

    /// What to probe, and what is known of its health.
    pub fn targets(&self) -> Vec<(Target, Health)> {
        let probed = self.records().filter(|(service, _)| service.config.health.probe.is_active());
        probed
            .map(|(service, record)| {
                let target = Target {
                    service: service.config.name.clone(),
                    backend: record.config.name.clone(),
                    address: record.config.address,
                    health: service.config.health.clone(),
                };
                (target, record.health)
            })
            .collect()
    }

    /// The service of this name.
    pub fn service(&self, name: &str) -> Option<&ServiceState> {
        self.by_name.get(name).map(|&at| &self.services[at])
    }

    /// The services that have a proxy.
    pub fn proxied(&self) -> impl Iterator<Item = &ServiceState> {
        self.proxied.iter().map(|&at| &self.services[at])
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

impl News {
    fn add_facts(&mut self) {
        if *self == Self::Nothing {
            *self = Self::Facts;
        }
    }
}

impl ServiceState {
    /// A service of a new configuration, with what is known of it.
    fn new(
        service: &config::Service,
        old: Option<Self>,
        wishes: &impl Fn(&str, &str) -> Wish,
        now: Duration,
    ) -> Self {
        let (panic, on_backups) =
            old.as_ref().map_or((false, false), |old| (old.panic, old.on_backups));
        let parked_until = old.as_ref().map_or(0, |old| old.parked_until);
        let path = Path::after(old.as_ref().map(|old| old.path), service);
        let old = old.into_iter().flat_map(|old| old.records);
        let mut known: HashMap<String, Record> =
            old.map(|record| (record.config.name.clone(), record)).collect();
        let records = service.backends.iter().map(|backend| {
            let wish = wishes(&service.name, &backend.name);
            let mut record = match known.remove(&backend.name) {
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
                    appointed: Appointed::Barred("nothing is known of it yet".into()),
                    rise: None,
                },
            };
            if service.health.probe == Probe::None && record.reason != NOT_PROBED {
                // No task says so, since there may be a million of them.
                record.health = Health::Up;
                NOT_PROBED.clone_into(&mut record.reason);
                record.since = now;
            }
            record
        });
        let records: Vec<Record> = records.collect();
        let desired = Arc::new(desired(service, &records, Proxied::None, parked_until));
        let mut this = Self {
            config: service.clone(),
            records,
            panic,
            on_backups,
            path,
            parked_until,
            news: News::Facts,
            desired,
        };
        this.describe();
        this.news = News::Facts;
        this
    }

    fn observe(&mut self, report: &Report, now: Duration) -> Option<Note> {
        let slow_start = self.config.slow_start;
        let record = self.records.iter_mut().find(|it| it.config.name == report.backend)?;
        self.news.add_facts();
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

    /// What the maps should say of it, by the last verdicts: another value whenever that changes.
    pub fn desired(&self) -> &Arc<DesiredService> {
        &self.desired
    }

    /// Whether time alone may change a verdict, or what is said of it.
    fn is_timed(&self) -> bool {
        self.records
            .iter()
            .any(|record| record.wish.admin == Admin::Draining || record.rise.is_some())
            || self.path.is_lifted()
    }

    /// Makes `desired` what follows from the verdicts.
    fn describe(&mut self) {
        let desired = desired(&self.config, &self.records, self.proxied(), self.parked_until);
        if self.news == News::NextHop || *self.desired != desired {
            self.desired = Arc::new(desired);
        }
        self.news = News::Nothing;
    }

    fn judge(&mut self, next_hops: &NextHops, now: Duration, notes: &mut Vec<Note>) {
        let rules = Rules { on_down: self.config.on_down };
        let drain_timeout = self.config.drain_timeout;
        for record in &mut self.records {
            let above = record.track.is_above_siblings();
            if let Some(rise) = &mut record.rise {
                rise.advance(above, now);
            }
        }
        if matches!(self.config.health.probe, Probe::Database { .. }) {
            let judgement = self.judge_servers(next_hops, now);
            self.take_judgement(judgement, notes);
            return;
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
                resolved: is_reached(&self.config, record, next_hops),
            })
            .collect();
        let judgement = verdict::judge(rules, &facts);
        self.take_judgement(judgement, notes);
    }

    fn judge_servers(&self, next_hops: &NextHops, now: Duration) -> Judgement {
        let drain_timeout = self.config.drain_timeout;
        let servers = self.records.iter().map(|record| verdict::Server {
            appointed: &record.appointed,
            admin: record.wish.admin,
            drain_left: (record.wish.since + drain_timeout).saturating_sub(now),
            weight: record.weight(),
            resolved: is_reached(&self.config, record, next_hops),
        });
        verdict::judge_servers(&servers.collect::<Vec<_>>())
    }

    fn take_judgement(&mut self, judgement: Judgement, notes: &mut Vec<Note>) {
        let Judgement { verdicts, panic, on_backups } = judgement;
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

/// Whether packets to a backend find their way. The proxy's are sent by the kernel, which finds it by
/// itself.
fn is_reached(service: &config::Service, record: &Record, next_hops: &NextHops) -> bool {
    let hop = || next_hops.get(&record.config.address.ip());
    service.proxy.as_ref().is_some_and(|proxy| !proxy.auto)
        || hop().is_some_and(|hop| hop.mac.is_some())
}

/// What the maps should say of a service with these backends.
fn desired(
    service: &config::Service,
    records: &[Record],
    proxied: Proxied,
    parked_until: u32,
) -> DesiredService {
    DesiredService {
        key: service_key(service.listen, service.protocol),
        balance: service.balance,
        forward: service.forward,
        replay: service.replay,
        drain_timeout: service.drain_timeout,
        guard: service.proxy.as_ref().map_or_else(
            || service.guard.clone(),
            |proxy| service.guard.for_fronts(&proxy.accept_proxy),
        ),
        proxied,
        parked_until,
        backends: records
            .iter()
            .map(|record| DesiredBackend {
                address: record.config.address,
                weight: record.verdict.weight,
                full_weight: record.weight() * verdict::WEIGHT_SCALE,
                serving: record.verdict.serving,
                forward: record.verdict.forward,
                patience_ms: record.track.patience_ms(),
                leased: matches!(service.health.probe, Probe::Database { leased: true }),
            })
            .collect(),
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
