//! What is known of each server, and what follows for a change of the primary.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Machine, Settings};
use crate::postgres::{
    choose::{self, Choice},
    lsn::Lsn,
    record::{Cause, LastKnown, Loss, Mark, Record, Run},
    sample::{Failure, Role, Sample},
    sync::SyncRule,
};

/// What is known of a server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// What it said last, and when.
    sample: Option<(Duration, Sample)>,
    /// Why it says nothing, and since when.
    failing: Option<(Duration, Failure)>,
    /// Bytes of log that it writes in a second, at most, lately.
    rate: f64,
    /// What commits on it wait for, and where its log ended when that was first seen.
    sync: Option<(SyncRule, Lsn)>,
    /// When it was asked what it said last; zero if that is not known.
    pub(super) asked: Duration,
    /// How often it has not answered since it did.
    pub(super) failures: u32,
    /// Since when it says that its way to its source was taken.
    pub(super) revoked: Option<Duration>,
    /// When it was last seen to receive from its source.
    pub(super) streamed: Option<Duration>,
}

/// A standby or another witness that heard the primary not longer ago than this has heard it live.
const FRESH: Duration = Duration::from_secs(3);

/// Share of the highest rate that is left after each look.
const FADE: f64 = 0.8;

impl Known {
    /// What it said last.
    pub fn sample(&self) -> Option<&Sample> {
        self.sample.as_ref().map(|(_, sample)| sample)
    }

    /// When it said that.
    pub fn sampled(&self) -> Option<Duration> {
        self.sample.as_ref().map(|(at, _)| *at)
    }

    /// Why it says nothing, and since when.
    pub fn failing(&self) -> Option<(Duration, &Failure)> {
        self.failing.as_ref().map(|(since, failure)| (*since, failure))
    }

    /// Whether it answered when it was last asked.
    pub fn answers(&self) -> bool {
        self.sample.is_some() && self.failing.is_none()
    }

    pub(crate) fn see(&mut self, found: Result<Sample, Failure>, asked: Duration, now: Duration) {
        match found {
            Ok(sample) => {
                (self.asked, self.failures) = (asked, 0);
                if self.sync.as_ref().map(|(rule, _)| rule) != sample.sync.as_ref() {
                    self.sync = sample.sync.clone().map(|rule| (rule, sample.received));
                }
                self.revoked = sample.revoked.then(|| self.revoked.unwrap_or(now));
                if sample.receiver.as_ref().is_some_and(|it| it.streaming) {
                    self.streamed = Some(now);
                }
                if let Some((at, before)) = &self.sample {
                    let seconds = now.saturating_sub(*at).as_secs_f64();
                    if sample.role == Role::Primary && seconds > 0.0 {
                        let rate = sample.received.since(before.received) as f64 / seconds;
                        self.rate = rate.max(self.rate * FADE);
                    }
                }
                self.sample = Some((now, sample));
                self.failing = None;
            }
            Err(failure) => {
                let since = self.failing.take().map_or(now, |(since, _)| since);
                self.failing = Some((since, failure));
                self.failures += 1;
            }
        }
    }

    /// It was promoted: what it said before is true no longer.
    pub(super) fn promote(&mut self, timeline: u32, mark: &Mark) {
        if let Some((_, sample)) = &mut self.sample {
            sample.role = Role::Primary;
            sample.timeline = timeline;
            sample.mark = Some(mark.clone());
            sample.receiver = None;
        }
        // That it follows nobody else is not what it was asked.
        self.asked = Duration::ZERO;
    }

    /// Where its log ended when it was last seen, and what it may have written since.
    fn last_known(&self, now: Duration) -> Option<LastKnown> {
        let (at, sample) = self.sample.as_ref()?;
        // It wrote until it failed, at the latest until it was found failing.
        let until = self.failing.as_ref().map_or(now, |(since, _)| *since);
        let since = (self.rate * until.saturating_sub(*at).as_secs_f64()).ceil() as u64;
        Some(LastKnown { end: sample.received, since })
    }
}

/// What a promotion would do, for the operator to agree to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The primary now.
    pub from: Option<String>,
    /// The one that would be promoted; absent if none can be.
    pub to: Option<String>,
    /// What would be lost; absent if that is not known.
    pub loss: Option<Loss>,
    /// Why it cannot be done, if so.
    pub refused: Option<String>,
    /// What says that the primary is down, or that it is not.
    pub evidence: Vec<String>,
    /// The primary lives.
    pub alive: bool,
    /// Balancers that must close their gates first.
    pub balancers: Vec<String>,
}

impl Machine {
    /// What speaks for it that the primary lives: itself, or a standby that hears it. None if nobody.
    pub(super) fn signs_of_life(&self, record: &Record, now: Duration) -> Vec<String> {
        let mut signs = Vec::new();
        let primary = self.servers.get(&record.primary);
        let failing = primary.and_then(|known| known.failing());
        if primary.is_some_and(Known::answers) {
            signs.push(format!("{} answers", record.primary));
        }
        if let Some((_, failure)) = failing
            && !failure.kind.is_down()
        {
            signs.push(format!("{} lives: {}", record.primary, failure.reason));
        }
        for (name, known) in &self.servers {
            let (Some(sample), Some(at)) = (known.sample(), known.sampled()) else { continue };
            let Some(receiver) = &sample.receiver else { continue };
            let age = now.saturating_sub(at);
            let heard = receiver.heard.map(|heard| heard + age);
            // It counts only if it heard the primary after we did not.
            let silent = failing.map_or(Duration::MAX, |(since, _)| now.saturating_sub(since));
            if *name != record.primary
                && known.answers()
                && receiver.streaming
                && heard.is_some_and(|heard| heard < silent && heard < FRESH)
            {
                signs.push(format!("{name} still hears {}", record.primary));
            }
        }
        if let Some((since, _)) = failing {
            let others = self.others_that_reach(since, now);
            signs.extend(
                others.iter().map(|node| format!("{node} still reaches {}", record.primary)),
            );
        }
        signs
    }

    /// A run as it would begin now.
    pub(super) fn draft(&self, record: &Record, cause: Cause, now: Duration) -> Run {
        let primary = self.servers.get(&record.primary);
        let sample = primary.and_then(Known::sample).filter(|it| it.role == Role::Primary);
        let servers = sample.map(|it| sync_servers(&self.settings, it)).unwrap_or_default();
        // What was acknowledged meanwhile may be nowhere else.
        let waits = |_: &&Sample| record.degraded().is_none();
        let mut sync = sample.filter(waits).and_then(|sample| sample.sync.clone());
        if let Some(rule) = &mut sync {
            // The same list may stand on every server, but none waits for itself.
            rule.names.retain(|name| servers.get(name) != Some(&record.primary));
        }
        Run {
            controller: self.settings.node.clone(),
            cause,
            target: None,
            may_lose: Some(0),
            absent: BTreeSet::new(),
            last_known: sample.and(primary).and_then(|known| known.last_known(now)),
            sync,
            sync_servers: servers,
            sync_from: primary
                .and_then(|it| it.sync.as_ref())
                .map_or(Lsn::default(), |it| it.1)
                .max(record.sync_since),
            candidate: None,
            loss: None,
            stuck: None,
        }
    }

    /// What a promotion would do now.
    pub fn plan(&self, target: Option<&str>, now: Duration) -> Plan {
        let mut plan = Plan {
            from: None,
            to: None,
            loss: None,
            refused: None,
            evidence: Vec::new(),
            alive: false,
            balancers: self.settings.peers.iter().cloned().collect(),
        };
        let Some(record) = &self.record else {
            plan.refused = Some("no primary is known yet".into());
            return plan;
        };
        plan.from = Some(record.primary.clone());
        let signs = self.signs_of_life(record, now);
        plan.alive = !signs.is_empty();
        plan.evidence = signs;
        if let Some((since, failure)) = self.servers.get(&record.primary).and_then(Known::failing) {
            let seconds = now.saturating_sub(since).as_secs_f64();
            let primary = &record.primary;
            plan.evidence.push(format!("{primary}: {} for {seconds:.1} s", failure.reason));
        }
        let mut run = self.draft(record, Cause::Operator, now);
        if let Some(known) = record.run.as_ref() {
            run.last_known = known.last_known;
            run.sync.clone_from(&known.sync);
            run.sync_servers.clone_from(&known.sync_servers);
            run.sync_from = known.sync_from;
        }
        run.may_lose = None;
        run.target = target.map(str::to_owned);
        match choose::choose(record, &run, &self.as_if_revoked(), &self.order()) {
            Ok(Choice { server, loss }) => (plan.to, plan.loss) = (Some(server), loss),
            Err(refusal) => plan.refused = Some(refusal.to_string()),
        }
        plan
    }

    /// The servers that answer, as if their way to the primary had been taken.
    pub(super) fn as_if_revoked(&self) -> BTreeMap<String, Sample> {
        let answering = self.servers.iter().filter(|(_, known)| known.answers());
        answering
            .filter_map(|(name, known)| {
                let sample = known.sample()?.clone();
                Some((name.clone(), Sample { revoked: true, ..sample }))
            })
            .collect()
    }

    pub(super) fn order(&self) -> Vec<String> {
        self.settings.servers.iter().map(|(name, _)| name.clone()).collect()
    }
}

/// The servers behind the names that a commit waits for: by the address that they connect from, or by
/// having the same name.
fn sync_servers(settings: &Settings, primary: &Sample) -> BTreeMap<String, String> {
    let Some(rule) = &primary.sync else { return BTreeMap::new() };
    let server = |name: &String| {
        let replica = primary.replicas.iter().find(|it| it.name.eq_ignore_ascii_case(name));
        let address = replica.and_then(|it| it.address);
        let by_address = settings.servers.iter().find(|(_, it)| Some(*it) == address);
        let by_name = settings.servers.iter().find(|(it, _)| it.eq_ignore_ascii_case(name));
        Some((name.clone(), by_address.or(by_name)?.0.clone()))
    };
    rule.names.iter().filter_map(server).collect()
}
