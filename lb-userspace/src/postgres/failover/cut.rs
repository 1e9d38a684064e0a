//! The standbys' way to the old primary is taken, so that it cannot have another write acknowledged by one, and so
//! that their positions stand still.
//!
//! A balancer that does not hear this one, but every server, may be sure that nobody has gone on as long as all
//! standbys follow the old primary ([`store`](super::store)). So where a balancer is silent, its gate is closed
//! [`CLOSES`](super::store::CLOSES) after the candidate's way was taken. That is not put off until the gate would be
//! closed for the other reasons: both times run at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{AGAIN, Action, Machine, run::Work};
use crate::{
    events::Kind,
    postgres::{
        lsn::Lsn,
        record::{Phase, Record},
        sample::{Failure, Role, Sample},
    },
};

/// How long standbys may take to let go of the old primary.
const REVOKE_LIMIT: Duration = Duration::from_secs(8);

/// A balancer that lives has confirmed a fence, or refused it, after this time, unless it looks more seldom.
pub(super) const PROMPT: Duration = Duration::from_millis(300);

impl Machine {
    /// Takes the way of all standbys to the old primary.
    pub(super) fn revoke(
        &mut self,
        record: &Record,
        end: Option<Lsn>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let (mut waits, mut seen) = (BTreeSet::new(), BTreeMap::new());
        for (name, known) in self.servers.iter().filter(|(_, known)| known.answers()) {
            let Some(sample) = known.sample() else { continue };
            if sample.role == Role::Primary {
                seen.insert(name.clone(), sample.clone());
            } else if sample.system_id == record.branch.system_id {
                waits.insert(name.clone());
                out.push(Action::Revoke(name.clone()));
            }
        }
        self.work = Work::Revoke { waits, seen, end, until: now + REVOKE_LIMIT };
    }

    pub(super) fn revoked(
        &mut self,
        server: &str,
        found: Result<Sample, Failure>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let (ours, is_cut) = (self.is_fencing(), found.as_ref().is_ok_and(|it| it.revoked));
        if ours && is_cut {
            self.cut.entry(server.to_owned()).or_insert(now);
        }
        let text = match &found {
            Ok(sample) if sample.revoked => None,
            Ok(_) => Some("it could not be kept from following the old primary".to_owned()),
            Err(failure) => Some(failure.reason.clone()),
        };
        if let Some(why) = text {
            let note = self.note(Kind::Failover, format!("{server} was not taken off"));
            let Action::Note(note) = note else { return };
            out.push(Action::Note(note.because(why)));
        }
        if let Work::Revoke { waits, seen, .. } = &mut self.work
            && waits.remove(server)
            && let Ok(sample) = &found
        {
            seen.insert(server.to_owned(), sample.clone());
        }
        self.servers.entry(server.to_owned()).or_default().see(found, Duration::ZERO, now);
    }

    /// Takes their way while it is waited for a balancer that is silent.
    pub(super) fn revoke_early(&mut self, record: &Record, now: Duration, out: &mut Vec<Action>) {
        let Work::Fence { waits, early, .. } = &mut self.work else { return };
        if waits.is_empty() || early.is_none_or(|at| now < at) {
            return;
        }
        *early = Some(now + AGAIN);
        for (name, known) in self.servers.iter().filter(|(_, known)| known.answers()) {
            let Some(sample) = known.sample() else { continue };
            let follows = sample.role == Role::Standby
                && sample.system_id == record.branch.system_id
                && !self.cut.contains_key(name);
            if follows {
                out.push(Action::Revoke(name.clone()));
            }
        }
    }

    /// A server has said how it stands, asked at that time: somebody may have led it back.
    pub(super) fn check_cut(&mut self, server: &str, asked: Duration, sample: &Sample) {
        if !sample.revoked && self.cut.get(server).is_some_and(|at| asked > *at) {
            self.cut.remove(server);
        }
    }

    fn is_fencing(&self) -> bool {
        let record = self.record.as_ref();
        record.is_some_and(|it| it.phase == Phase::Fencing && it.is_run_by(&self.settings.node))
    }
}
