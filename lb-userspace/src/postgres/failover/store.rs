//! The record in the store that a majority keeps, and until when this balancer's gate is open.
//!
//! Where the primary may change without a person, each balancer lets packets through to the servers only
//! until the end of a lease in the kernel's table, which this balancer extends as long as it is sure that
//! nobody has gone on without it. It is sure of a moment if, in answer to a question of that moment,
//!
//! - the store has its record, and that serves ([`Event::Read`](super::Event::Read)), or it has put it there; or
//! - every other balancer has the same record, and begins no change; or
//! - every server says that it follows, or is, the primary of the record.
//!
//! Whoever changes the primary puts that into the store first, and promotes nobody before [`CLOSES`] has
//! passed since then for every balancer that did not confirm it. As a candidate's way to the old
//! primary is taken as well, and [`CLOSES`] has passed since that too, the third way is closed. So the loss
//! of the store alone closes no gate.

use std::time::Duration;

use super::{AGAIN, Action, Known, Machine, Pending, run::Work};
use crate::{
    events::{Kind, Note},
    postgres::{
        record::{Cause, Phase, Record, Run},
        sample::Role,
    },
};

/// How long a gate stays open after the moment that this balancer is sure of.
pub const LEASE: Duration = Duration::from_secs(2);

/// After this time a gate that is not extended is surely closed: clocks of different hosts run at different
/// rates, and a timer may be late.
pub(super) const CLOSES: Duration = Duration::from_millis(2200);

/// Time between two questions to the store, and to the other balancers.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(500);

/// A question to the store that has no answer after this time is asked again.
const GIVE_UP: Duration = Duration::from_secs(3);

/// A balancer that changes the primary, and says nothing for so long, is at it no longer.
pub(super) const TAKEOVER: Duration = Duration::from_secs(4);

/// What a balancer of that name has said is what the store has.
const STORE: &str = "etcd";

/// What is known of the store.
#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    /// When it was asked last, if there is no answer yet.
    asked: Option<Duration>,
    next: Duration,
    /// When it was asked what it answered last.
    answered: Option<Duration>,
    /// Why it does not answer.
    failing: Option<String>,
    /// The place of the record that it is known to have.
    has: Option<(u64, u64)>,
}

impl Store {
    /// Why nothing can be put into it, as far as that is known.
    pub(super) fn trouble(&self) -> Option<&str> {
        match (&self.failing, self.answered) {
            (Some(why), _) => Some(why),
            (None, None) => Some("it has not answered yet"),
            (None, Some(_)) => None,
        }
    }
}

impl Machine {
    /// Whether the primary may change without a person, so that gates have a lease.
    pub(super) fn is_unattended(&self) -> bool {
        self.settings.unattended.is_some()
    }

    /// Until when packets may go to the servers; none where they need no lease.
    pub fn lease(&self) -> Option<Duration> {
        self.is_unattended().then(|| self.lease.unwrap_or_default())
    }

    /// Why the store does not answer, if there is one and it does not.
    pub fn store_trouble(&self) -> Option<&str> {
        self.settings.unattended.as_ref().and(self.store.trouble())
    }

    /// Asks the store, if that is due.
    pub(super) fn ask_store(&mut self, now: Duration, out: &mut Vec<Action>) {
        let store = &mut self.store;
        let waits = store.asked.is_some_and(|at| now < at + GIVE_UP);
        if now >= store.next && !waits {
            (store.asked, store.next) = (Some(now), now + ASK_EVERY);
            out.push(Action::Read);
        }
    }

    /// How a record of ours is put into the store.
    pub(super) fn propose(&self, record: &Record) -> Action {
        let base = self.record.clone().map(Box::new);
        Action::Propose { record: Box::new(record.clone()), base }
    }

    /// Whether the store has the record that is in force, so that whoever asks it finds this.
    pub(super) fn is_stored(&self) -> bool {
        self.record.as_ref().is_some_and(|record| self.store.has == Some(record.place()))
    }

    /// The store has said what it has, to a question of `asked`.
    pub(super) fn read(
        &mut self,
        asked: Duration,
        found: Result<Option<Box<Record>>, String>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        self.store.asked = None;
        let theirs = match found {
            Ok(theirs) => theirs,
            Err(why) => {
                if self.store.failing.is_none() {
                    let message = "etcd does not answer: nobody is promoted without a person";
                    let Action::Note(note) = self.note(Kind::Fault, message) else { return };
                    out.push(Action::Note(note.because(&why)));
                }
                self.store.failing = Some(why);
                return;
            }
        };
        if self.store.failing.take().is_some() {
            out.push(self.note(Kind::Recovered, "etcd answers again"));
        }
        self.store.answered = Some(asked);
        self.store.has = theirs.as_ref().map(|it| it.place());
        if self.pending.is_some() {
            return;
        }
        match (theirs, &self.record) {
            (Some(theirs), Some(ours)) if *theirs == *ours => {
                if ours.phase == Phase::Serving {
                    self.assure(asked, now, out);
                }
            }
            (Some(theirs), ours)
                if ours.as_ref().is_none_or(|ours| theirs.place() >= ours.place()) =>
            {
                self.adopt_stored(*theirs, out);
            }
            // It was left behind while it did not answer.
            (_, Some(ours)) => out.push(self.propose(&ours.clone())),
            (_, None) => {}
        }
    }

    fn adopt_stored(&mut self, theirs: Record, out: &mut Vec<Action>) {
        let node = theirs.run.as_ref().map(|run| run.controller.clone());
        let node = node.filter(|node| *node != self.settings.node);
        self.adopt(theirs, node.as_deref().unwrap_or(STORE), false, out);
    }

    /// The store has another record than the one that was to be replaced.
    pub(super) fn conflict(&mut self, revision: u64, theirs: Record, out: &mut Vec<Action>) {
        let ours = self.pending.take_if(|it| it.record.revision == revision && it.of.is_none());
        if ours.is_some() {
            let by = theirs.run.as_ref().map_or("another balancer", |run| &run.controller);
            let why = format!("{by} was faster: the record in etcd is another");
            self.finish(Err(why), out);
            self.work = Work::Rest;
        }
        self.store.has = Some(theirs.place());
        if self.pending.is_none() && self.record.as_ref() != Some(&theirs) {
            self.adopt_stored(theirs, out);
        }
    }

    /// The store has not said that it has a record of ours; it may have taken it.
    pub(super) fn unstored(
        &mut self,
        revision: u64,
        why: &str,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let Some(pending) = &mut self.pending else { return };
        if pending.record.revision != revision || !pending.stores {
            return;
        }
        let serves = self.record.as_ref().is_none_or(|it| it.phase == Phase::Serving);
        // Who does not agree by word has to find it in the store.
        let alone = |run: &Run| run.cause == Cause::Failure || !run.absent.is_empty();
        // And nobody may believe of commits that they wait who could find there that they do not.
        let sync = |record: &Record| (record.degraded.clone(), record.sync_since);
        let needed = pending.record.run.as_ref().is_some_and(alone)
            || (serves && self.record.as_ref().is_some_and(|it| sync(it) != sync(&pending.record)));
        if needed && serves {
            // Nothing has begun. If the store has it all the same, that is found out.
            self.pending = None;
            self.not_before = now + ASK_EVERY;
            let why = format!(
                "etcd does not keep the record ({why}), and without it every balancer must agree by word"
            );
            self.refused = Some(why.clone());
            self.finish(Err(why), out);
        } else if needed {
            pending.again = Some(now + AGAIN);
        } else {
            // A person wants it, or it leads out of a change: the balancers agree among themselves, as
            // without a store. The leases hold whoever does not hear of it.
            pending.stores = false;
            out.push(Action::Commit(Box::new(pending.record.clone())));
        }
    }

    /// The store, or every other balancer, has said that the record was in force at that moment.
    pub(super) fn assure(&mut self, from: Duration, now: Duration, out: &mut Vec<Action>) {
        self.sure = self.sure.max(Some(from));
        self.extend(from, now, out);
    }

    /// The gate may be open until some time after `from`.
    fn extend(&mut self, from: Duration, now: Duration, out: &mut Vec<Action>) {
        let until = from + LEASE;
        if until <= now {
            return;
        }
        self.confirmed = true;
        if self.lease.is_none_or(|old| old < until) {
            self.lease = Some(until);
            out.push(Action::Lease(until));
        }
    }

    /// Another balancer has the same record, by its answer to a question of `asked`.
    pub(super) fn agrees(
        &mut self,
        node: &str,
        asked: Duration,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        self.agreed.insert(node.to_owned(), asked);
        self.extend_by_agreement(now, out);
    }

    /// Extends the lease if all other balancers agree.
    pub(super) fn extend_by_agreement(&mut self, now: Duration, out: &mut Vec<Action>) {
        let serves = self.record.as_ref().is_some_and(|it| it.phase == Phase::Serving);
        if !self.is_unattended() || !serves || self.pending.is_some() {
            return;
        }
        let asked: Option<Vec<Duration>> =
            self.settings.peers.iter().map(|node| self.agreed.get(node).copied()).collect();
        if let Some(asked) = asked {
            // Alone, there is nobody who could change anything.
            self.assure(asked.into_iter().min().unwrap_or(now), now, out);
        }
    }

    /// Extends the lease if every server follows the primary of the record.
    pub(super) fn extend_by_servers(&mut self, now: Duration, out: &mut Vec<Action>) {
        let Some(record) = self.record.as_ref().filter(|it| it.phase == Phase::Serving) else {
            return;
        };
        if !self.is_unattended() || self.pending.is_some() || self.contradiction(record).is_some() {
            return;
        }
        let mut from = now;
        for (name, _) in &self.settings.servers {
            let Some(known) = self.servers.get(name).filter(|known| known.answers()) else {
                return;
            };
            let Some(sample) = known.sample() else { return };
            let streams = sample.receiver.as_ref().is_some_and(|it| it.streaming);
            let follows = match sample.role {
                Role::Primary => *name == record.primary,
                Role::Standby => *name != record.primary && streams && !sample.revoked,
            };
            let branch = record.branch;
            if !follows
                || (sample.system_id, sample.timeline) != (branch.system_id, branch.timeline)
            {
                return;
            }
            from = from.min(known.asked());
        }
        self.extend(from, now, out);
    }

    /// Another balancer that changes the primary has fallen silent: this one goes on, by the store's leave.
    pub(super) fn take_over(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.pending.is_some() || self.work != Work::Rest || self.store_trouble().is_some() {
            return;
        }
        let Some(record) = self.record.clone() else { return };
        let Some(run) = record.run.clone().filter(|_| record.phase != Phase::Frozen) else {
            return;
        };
        let heard = self.heard.get(&run.controller).copied().unwrap_or_default();
        let since = heard.max(self.since);
        if run.controller == self.settings.node || now < since + TAKEOVER {
            return;
        }
        let message = format!("{} is silent: this balancer goes on", run.controller);
        out.push(self.note(Kind::Failover, message));
        let next = record.next(|next| {
            if record.phase == Phase::Fencing && run.cause != Cause::Failure {
                // What a person wanted there, that person may want here.
                (next.phase, next.run) = (Phase::Serving, None);
            } else if let Some(run) = &mut next.run {
                self.settings.node.clone_into(&mut run.controller);
            }
        });
        self.commit(next, None, out);
    }

    /// The store has the record of this place.
    pub(super) fn has_stored(&mut self, place: (u64, u64)) {
        self.store.has = Some(place);
    }

    /// Another record is in force.
    pub(super) fn note_change(&mut self, before: Option<&Record>, now: Duration) {
        self.since = now;
        self.agreed.clear();
        let failed =
            |record: &&Record| record.run.as_ref().is_some_and(|run| run.cause == Cause::Failure);
        let serves = self.record.as_ref().is_some_and(|it| it.phase == Phase::Serving);
        let epoch = self.record.as_ref().map(|record| record.epoch);
        let ended = before.filter(failed).filter(|_| serves);
        if ended.is_some_and(|it| Some(it.epoch) == epoch) {
            self.given_up = Some(now);
        }
    }

    /// Says something once, until something else is to be said.
    pub(super) fn say_once(&mut self, message: &str, why: &str, out: &mut Vec<Action>) {
        let text = format!("{message}: {why}");
        if self.said.as_ref() != Some(&text) {
            let note = Note::new(Kind::Failover, message).service(&self.settings.name);
            out.push(Action::Note(note.because(why)));
            self.refused = Some(text.clone());
            self.said = Some(text);
        }
    }
}

impl Pending {
    /// What puts it where it is kept.
    pub(super) fn order(&self, base: Option<&Record>) -> Action {
        let record = Box::new(self.record.clone());
        if self.stores {
            Action::Propose { record, base: base.cloned().map(Box::new) }
        } else {
            Action::Commit(record)
        }
    }
}

impl Known {
    /// When it was asked what it said last.
    pub(super) fn asked(&self) -> Duration {
        self.asked
    }
}
