//! Who shall be the primary, and what that loses. Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    lsn::Lsn,
    record::{Branch, LastKnown, Loss, Record, Run},
    sample::{Role, Sample},
};

/// The one that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its name.
    pub server: String,
    /// What its promotion loses.
    pub loss: Option<Loss>,
}

/// Why nobody can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No standby can be promoted; why, for each.
    #[error("no server can be promoted: {0}")]
    Nobody(String),
    /// The one that was asked for cannot be promoted.
    #[error("{server} cannot be promoted: {why}")]
    Target {
        /// Its name.
        server: String,
        /// Why not.
        why: String,
    },
    /// Too much would be lost.
    #[error(
        "promoting {server} may lose {at_most} bytes of acknowledged writes, and {limit} are \
         allowed; what {because}"
    )]
    Loss {
        /// The best candidate.
        server: String,
        /// Bytes that may be lost.
        at_most: u64,
        /// Bytes that may be lost at most.
        limit: u64,
        /// What stands against it.
        because: &'static str,
    },
    /// What would be lost is not known.
    #[error(
        "it cannot be said what promoting {0} loses: nothing is known of where the old primary was"
    )]
    Unknown(String),
}

/// Why a server cannot be promoted; none if it can.
pub fn unfit(server: &str, sample: &Sample, record: &Record, wanted: bool) -> Option<String> {
    let Branch { system_id, timeline, .. } = record.branch;
    let why = if record.fenced.contains(server) {
        "it is fenced by command".to_owned()
    } else if sample.system_id != system_id {
        format!("it belongs to another cluster (system identifier {})", sample.system_id)
    } else if sample.role == Role::Primary && !is_promoted(sample, record.branch) {
        "it is no standby".to_owned()
    } else if sample.role == Role::Primary && !wanted {
        // Somebody promoted it; that it is meant must be said.
        format!("it has been promoted already, to timeline {}", sample.timeline)
    } else if sample.role == Role::Standby && sample.timeline != timeline {
        format!("it is on timeline {}, and the primary was on {timeline}", sample.timeline)
    } else if let Some(lacks) = &sample.lacks {
        format!("our role lacks {lacks} there; `ballast pg setup` prints the SQL")
    } else if sample.paused {
        "its replay is paused: resume it with pg_wal_replay_resume()".to_owned()
    } else if !sample.delay.is_zero() && !wanted {
        format!("it is {} s late on purpose", sample.delay.as_secs())
    } else {
        return None;
    };
    Some(why)
}

/// Whether a server out of recovery has left the record's history for a newer one.
fn is_promoted(sample: &Sample, branch: Branch) -> bool {
    sample.system_id == branch.system_id && sample.timeline > branch.timeline
}

/// Chooses among the standbys as they were when their way to the old primary had been taken. `order`
/// has the names of the servers, the preferred first.
pub fn choose(
    record: &Record,
    run: &Run,
    seen: &BTreeMap<String, Sample>,
    order: &[String],
) -> Result<Choice, Refusal> {
    let wanted =
        |name: &str| run.target.as_deref() == Some(name) || run.candidate.as_deref() == Some(name);
    let (mut fit, mut unfits) = (Vec::new(), Vec::new());
    for (name, sample) in seen.iter().filter(|(name, _)| **name != record.primary) {
        match unfit(name, sample, record, wanted(name)) {
            None => fit.push((name, sample)),
            Some(why) => unfits.push((name, why)),
        }
    }
    let place = |name: &String| order.iter().position(|it| it == name).unwrap_or(usize::MAX);
    let best = match &run.target {
        Some(target) => fit.iter().find(|(name, _)| *name == target).ok_or_else(|| {
            let why = unfits.iter().find(|(name, _)| *name == target);
            let why = why.map_or("it does not answer", |(_, why)| why).to_owned();
            Refusal::Target { server: target.clone(), why }
        })?,
        None => fit
            .iter()
            .max_by_key(|(name, it)| (it.received, it.replayed, Reverse(place(name))))
            .ok_or_else(|| {
                let all: Vec<_> =
                    unfits.iter().map(|(name, why)| format!("{name}: {why}")).collect();
                let none = "no standby answers".to_owned();
                Refusal::Nobody(if all.is_empty() { none } else { all.join("; ") })
            })?,
    };
    let (server, sample) = (best.0.clone(), best.1);
    let loss = loss(record, run, seen, &server, sample);
    if let Some(limit) = run.may_lose {
        let Some(Loss { at_most, .. }) = loss else { return Err(Refusal::Unknown(server)) };
        if at_most > limit {
            let because = if run.sync.is_some() {
                "synchronous replication would prove is not proven: too few of its standbys answer"
            } else {
                "the old primary wrote last is not known to have reached it"
            };
            return Err(Refusal::Loss { server, at_most, limit, because });
        }
    }
    Ok(Choice { server, loss })
}

/// What promoting this server loses; none if that cannot be said.
fn loss(
    record: &Record,
    run: &Run,
    seen: &BTreeMap<String, Sample>,
    server: &str,
    sample: &Sample,
) -> Option<Loss> {
    let same = |it: &&Sample| {
        it.role == Role::Standby
            && it.system_id == record.branch.system_id
            && it.timeline == record.branch.timeline
    };
    let ahead = seen.values().filter(same).map(|it| it.received).max().unwrap_or_default();
    // Those that can hear no more of the old primary. The candidate cannot either, once promoted.
    let silent = seen.iter().filter(|(name, it)| same(it) && (it.revoked || *name == server));
    let silent: BTreeSet<&str> = silent.map(|(name, _)| name.as_str()).collect();
    let proven = sample.received >= ahead.max(run.sync_from)
        && run.sync.as_ref().is_some_and(|rule| rule.proves(&run.sync_servers, &silent));
    if proven {
        return Some(Loss { known: 0, at_most: 0, proven: true });
    }
    let LastKnown { end, since } = run.last_known?;
    let known = end.max(ahead).since(sample.received);
    let at_most = Lsn(end.0 + since).max(ahead).since(sample.received);
    Some(Loss { known, at_most, proven: false })
}

#[cfg(test)]
mod tests;
