//! What the connections of clients show of the backends, as part of the state.

use std::time::Duration;

use lb_common::stats::BackendSignals;

use super::{Record, ServiceState, State, is_reached, rise::Rise};
use crate::{
    config,
    control::verdict::{Admin, Passive},
    events::{Kind, Note},
    health::{
        Health,
        passive::{self, Ejection, Failing, Input, News, Restored, Rules, Stand},
    },
    net::NextHops,
};

/// A backend that is let back because its time is over is on trial, as nobody has asked it: it gets its
/// share in at least this time.
const TRIAL: Duration = Duration::from_secs(5);

/// What a reading of the kernel's counters brought.
#[derive(Debug, Default)]
pub struct Watched {
    /// What is worth telling.
    pub notes: Vec<Note>,
    /// The verdicts, or what stands in the tables beside them, may be others now.
    pub changed: bool,
    /// Service and name of the backends that were ejected: their probes count from here on.
    pub ejected: Vec<(String, String)>,
}

impl State {
    /// Takes a reading of the kernel's counters, of the services that `is_read` names by their places: by the places of the service and of the backend in
    /// it, an identifier and its counters. `passes` says how many probes of a backend have passed in
    /// a row, by the names of the service and the backend.
    pub fn watch<'a>(
        &mut self,
        is_read: impl Fn(usize) -> bool,
        reading: impl Fn(usize, usize) -> Option<(u32, &'a BackendSignals)>,
        passes: impl Fn(&str, &str) -> u32,
        now: Duration,
    ) -> Watched {
        let mut watched = Watched::default();
        let services = self.services.iter_mut().enumerate();
        for (place, service) in services.filter(|(place, _)| is_read(*place)) {
            let reading = |backend: usize| reading(place, backend);
            service.watch(&self.next_hops, reading, &passes, now, &mut watched);
        }
        watched
    }

    /// The places of the backends whose connections are watched.
    pub fn watched(&self) -> impl Iterator<Item = (usize, usize)> {
        let services = self.services.iter().enumerate();
        let services = services.filter(|(_, service)| service.config.passive.is_some());
        services.flat_map(|(place, service)| (0..service.records.len()).map(move |it| (place, it)))
    }
}

impl ServiceState {
    fn watch<'a>(
        &mut self,
        next_hops: &NextHops,
        reading: impl Fn(usize) -> Option<(u32, &'a BackendSignals)>,
        passes: &impl Fn(&str, &str) -> u32,
        now: Duration,
        watched: &mut Watched,
    ) {
        let Some(config::Passive { eject_percent, eject_time }) = self.config.passive else {
            return;
        };
        let rules = Rules { eject_percent, eject_time };
        let name = &self.config.name;
        let config::Health { probe, rise, .. } = &self.config.health;
        let mut backends: Vec<_> = self
            .records
            .iter_mut()
            .enumerate()
            .map(|(place, record)| {
                let probed = probe.is_active();
                let is_ejected = matches!(record.track.stand(), Stand::Ejected(_));
                let input = Input {
                    signals: reading(place),
                    eligible: record.wish.admin == Admin::Enabled
                        && record.health == Health::Up
                        && is_reached(&self.config, record, next_hops),
                    down: record.health == Health::Down,
                    confirmed: probed
                        .then(|| is_ejected && passes(name, &record.config.name) >= *rise),
                };
                (&mut record.track, input)
            })
            .collect();
        // Of all of them, or it says nothing beside the sum before.
        let failures: Option<u64> = backends
            .iter()
            .map(|(_, input)| {
                input.signals.map(|(_, it)| it.refused + it.unreachable + it.unanswered)
            })
            .sum();
        let outcome = passive::judge(rules, &mut backends, now);
        drop(backends);
        let name = name.clone();
        let failed = failures.map_or(0, |failures| self.path.failed(failures));
        if failed > 0 {
            let because = format!("{failed} connections refused or not answered");
            let raised = self.sign(&because, now);
            watched.changed |= raised.is_some();
            watched.notes.extend(raised);
        }
        if outcome.changed {
            watched.changed = true;
            self.news.add_facts();
        }
        for (place, news) in outcome.news {
            let slow_start = self.config.slow_start;
            if let News::Ejected(Ejection { evidence, .. }, _)
            | News::Failing(Failing { evidence, .. }) = &news
            {
                let because = format!("{}: {evidence}", self.records[place].config.name);
                watched.notes.extend(self.sign(&because, now));
            }
            let record = &mut self.records[place];
            match news {
                News::Ejected(..) => {
                    watched.ejected.push((name.clone(), record.config.name.clone()));
                }
                News::Restored(Restored::Time) => {
                    record.rise = Rise::start(slow_start.max(TRIAL), now);
                }
                News::Restored(Restored::Probed) => record.rise = Rise::start(slow_start, now),
                News::Restored(Restored::Answers)
                | News::Failing(_)
                | News::Recovered
                | News::Share(_) => {}
            }
            watched.notes.push(note(record, news).service(&name).backend(&record.config.name));
        }
    }
}

impl Record {
    /// What the connections of clients say, for the verdict.
    pub(super) fn passive(&self) -> Passive {
        match self.track.stand() {
            Stand::Ejected(ejection) => Passive::Ejected(ejection.evidence.to_string()),
            Stand::Failing(failing) => Passive::Failing(failing.to_string()),
            Stand::Fit if self.track.share_percent() < 100 => {
                Passive::Slow(self.track.share_percent())
            }
            Stand::Fit => Passive::Fit,
        }
    }
}

fn note(record: &Record, news: News) -> Note {
    let name = &record.config.name;
    let note = |message: String| Note::new(Kind::Passive, message);
    match news {
        News::Ejected(ejection, hold) if hold.is_zero() => {
            note(format!("{name} is ejected until its probes pass"))
                .because(ejection.evidence.to_string())
        }
        News::Ejected(ejection, hold) => {
            note(format!("{name} is ejected for {} s", hold.as_secs_f64()))
                .because(ejection.evidence.to_string())
        }
        News::Restored(why) => {
            let why = match why {
                Restored::Answers => "it answers connections",
                Restored::Probed => "its probes pass",
                Restored::Time => "its time is over",
            };
            note(format!("{name} is ejected no longer")).because(why)
        }
        News::Failing(failing) => note(format!("{name} fails")).because(failing.to_string()),
        News::Recovered => note(format!("{name} fails no longer")),
        News::Share(100) => note(format!("{name} is slow no longer")),
        News::Share(percent) => {
            let micros = record.track.handshake_p50_us().unwrap_or_default();
            note(format!("{name} is slow and gets {percent} % of its weight"))
                .because(format!("half of its handshakes take over {:.1} ms", micros as f64 / 1e3))
        }
    }
}
