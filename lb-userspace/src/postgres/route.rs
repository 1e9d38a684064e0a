//! Who serves which of the two services of a database. Pure.
//!
//! Writes go to the server that the gate names, and to no other. Reads go to the standbys that follow it
//! and are not too late; while there is none, to the primary, or to nobody.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{
    failover::Known,
    lsn::Lsn,
    record::Record,
    sample::{Role, Sample},
};
use crate::control::verdict::Appointed;

/// Looks in a row that must agree until a standby is taken out, or back, because of its lag.
const STEADY: u32 = 3;

/// One that was too late serves again with less than this share of the limit, in percent.
const BACK_PERCENT: u64 = 80;

/// Places of the primary that are remembered: some minutes.
const REMEMBERED: usize = 1024;

/// A standby that fails to answer for so many intervals serves no longer.
const MISSED: u32 = 3;

/// The rules of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Bytes that a standby may be behind.
    pub max_lag: u64,
    /// The primary serves reads while no standby can.
    pub read_from_primary: bool,
    /// Time between two looks.
    pub interval: Duration,
}

/// How far a standby is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lag {
    /// Bytes of log that it has not replayed.
    pub bytes: u64,
    /// Age of the oldest of them; zero if there is none.
    pub time: Duration,
}

/// What is remembered of the standbys' lag.
#[derive(Clone, Debug, Default)]
pub struct Lags {
    /// Where the primary's log ended, and when.
    places: VecDeque<(Duration, Lsn)>,
    standbys: BTreeMap<String, Standing>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    late: bool,
    /// Looks in a row that say otherwise.
    against: u32,
}

impl Lags {
    /// Takes a look at a server.
    pub fn see(&mut self, server: &str, sample: &Sample, primary: bool, max: u64, now: Duration) {
        if primary {
            // Another history begins at an earlier place.
            self.places.retain(|(_, place)| *place <= sample.received);
            if self.places.back().is_none_or(|(_, place)| *place < sample.received) {
                self.places.push_back((now, sample.received));
            }
            if self.places.len() > REMEMBERED {
                self.places.pop_front();
            }
            return;
        }
        let lag = self.lag(sample, now).bytes;
        let standing = self.standbys.entry(server.to_owned()).or_default();
        let back = max / 100 * BACK_PERCENT + max % 100 * BACK_PERCENT / 100;
        let other = if standing.late { lag <= back } else { lag > max };
        standing.against = if other { standing.against + 1 } else { 0 };
        if standing.against >= STEADY {
            *standing = Standing { late: !standing.late, against: 0 };
        }
    }

    /// How far a standby is behind.
    pub fn lag(&self, sample: &Sample, now: Duration) -> Lag {
        let end = self.places.back().map_or(Lsn(0), |(_, place)| *place);
        let bytes = end.since(sample.replayed);
        // What was written first of what it has not.
        let first = self.places.iter().find(|(_, place)| *place > sample.replayed);
        let time = first.map_or(Duration::ZERO, |(at, _)| now.saturating_sub(*at));
        Lag { bytes, time }
    }

    /// The last time at which the primary's log is known to have ended there, or before.
    pub fn reached(&self, place: Lsn) -> Option<Duration> {
        self.places.iter().rev().find(|(_, end)| *end <= place).map(|(at, _)| *at)
    }

    fn is_late(&self, server: &str) -> bool {
        self.standbys.get(server).is_some_and(|standing| standing.late)
    }
}

/// What is known, for the routes.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The record.
    pub record: Option<&'a Record>,
    /// The server that writes go to, or why to none.
    pub open: Result<&'a str, &'a str>,
    /// Servers that get no packet; why.
    pub barred: &'a BTreeMap<String, String>,
    /// What is known of the servers.
    pub servers: &'a BTreeMap<String, Known>,
    /// Their lag.
    pub lags: &'a Lags,
}

/// What each server is there for: for writes, and for reads.
pub fn appoint(
    rules: Rules,
    names: &[String],
    view: View<'_>,
    now: Duration,
) -> BTreeMap<String, (Appointed, Appointed)> {
    let reads: BTreeMap<&String, Appointed> =
        names.iter().map(|name| (name, read(rules, name, view, now))).collect();
    let none = !reads
        .iter()
        .any(|(name, it)| view.open != Ok(name.as_str()) && matches!(it, Appointed::Serves(_)));
    let all = names.iter().map(|name| {
        let mut read = reads[name].clone();
        if view.open == Ok(name.as_str()) {
            read = if none && rules.read_from_primary {
                Appointed::Serves("the primary, as no standby can".into())
            } else {
                Appointed::Rests("the primary; standbys serve reads".into())
            };
        }
        (name.clone(), (write(name, view), read))
    });
    all.collect()
}

fn write(name: &str, view: View<'_>) -> Appointed {
    if let Some(why) = view.barred.get(name) {
        return Appointed::Barred(why.clone());
    }
    match view.open {
        Ok(primary) if primary == name => {
            let timeline = view.record.map_or(0, |record| record.branch.timeline);
            Appointed::Serves(format!("primary, timeline {timeline}"))
        }
        Ok(_) => Appointed::Barred("not the primary".into()),
        Err(why) => Appointed::Barred(why.into()),
    }
}

fn read(rules: Rules, name: &str, view: View<'_>, now: Duration) -> Appointed {
    let barred = |why: &str| Appointed::Barred(why.to_owned());
    if let Some(why) = view.barred.get(name) {
        return barred(why);
    }
    let Some(record) = view.record else { return barred("no primary is known yet") };
    let Some((known, sample)) = view.servers.get(name).and_then(|it| Some((it, it.sample()?)))
    else {
        let why = view.servers.get(name).and_then(Known::failing);
        return match why {
            Some((_, failure)) => barred(&failure.reason),
            // After a start of the daemon, what is open goes on.
            None => Appointed::Rests("not asked yet".into()),
        };
    };
    if let Some((since, failure)) = known.failing()
        && (!failure.kind.is_down() || now.saturating_sub(since) >= rules.interval * MISSED)
    {
        return barred(&failure.reason);
    }
    if sample.role == Role::Primary {
        return barred("not seen as the primary yet");
    }
    if sample.timeline != record.branch.timeline {
        let (its, ours) = (sample.timeline, record.branch.timeline);
        return barred(&format!("on timeline {its}, and the primary is on {ours}"));
    }
    if let Some(mark) = &record.mark
        && sample.mark.as_ref().map(|it| it.epoch) != Some(mark.epoch)
    {
        return barred("it does not descend from the primary, or has not come so far");
    }
    let lag = view.lags.lag(sample, now);
    if view.lags.is_late(name) {
        return Appointed::Rests(format!("{} bytes behind", lag.bytes));
    }
    Appointed::Serves("standby, not behind".to_owned())
}

#[cfg(test)]
mod tests;
