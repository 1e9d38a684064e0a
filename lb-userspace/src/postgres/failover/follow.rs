//! Records: the first one, those of other balancers, and what a kept one sets going.

use std::{collections::BTreeSet, time::Duration};

use super::{AGAIN, Action, Machine, Message, Pending, broadcast, store::ASK_EVERY};
use crate::{
    events::Kind,
    postgres::{
        failover::{Known, run::Work},
        lsn::Lsn,
        record::{Branch, Cause, Phase, Record},
        sample::{Failure, Role, Sample},
    },
};

/// Time between two tries of telling a standby whom to follow.
const FOLLOW_AGAIN: Duration = Duration::from_secs(5);

/// Time between two questions to the other balancers while nothing is in doubt.
const ASK_AGAIN: Duration = Duration::from_secs(10);

impl Machine {
    pub(super) fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        // What another balancer has told may have got lost.
        let waits = !self.confirmed
            || self
                .record
                .as_ref()
                .is_some_and(|it| it.phase != Phase::Serving && !it.is_run_by(&self.settings.node));
        let wait = match (self.is_unattended(), waits) {
            (true, _) => ASK_EVERY,
            (false, true) => AGAIN,
            (false, false) => ASK_AGAIN,
        };
        if self.asked.is_none_or(|at| now >= at + wait) {
            self.asked = Some(now);
            broadcast(&self.settings.peers, &Message::Ask(question(now)), out);
        }
        if let Some(pending) = &mut self.pending
            && pending.again.is_some_and(|at| now >= at)
        {
            pending.again = None;
            out.push(pending.order(self.record.as_ref()));
        }
        self.lead_standbys(now, out);
        if self.is_unattended() {
            self.ask_store(now, out);
            self.extend_by_agreement(now, out);
            self.take_over(now, out);
        }
    }

    /// Standbys whose way was taken follow the primary again, once there is one.
    fn lead_standbys(&mut self, now: Duration, out: &mut Vec<Action>) {
        let (Ok(primary), Work::Rest) = (self.open(), &self.work) else { return };
        let primary = primary.to_owned();
        for (name, known) in &self.servers {
            let Some(sample) = known.sample() else { continue };
            let last = self.followed.get(name);
            // Another balancer may have taken its way a moment ago, for a change of which this one does not know.
            let over = known.revoked.is_some_and(|at| self.sure > Some(at));
            if self.is_unattended() && !over {
                continue;
            }
            if *name != primary
                && known.answers()
                && sample.role == Role::Standby
                && sample.revoked
                && last.is_none_or(|at| now >= *at + FOLLOW_AGAIN)
            {
                self.followed.insert(name.clone(), now);
                out.push(Action::Follow { standby: name.clone(), primary: primary.clone() });
            }
        }
    }

    pub(super) fn see(
        &mut self,
        server: &str,
        asked: Duration,
        found: Result<Sample, Failure>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        if !self.settings.servers.iter().any(|(name, _)| name == server) {
            return;
        }
        if let Ok(sample) = &found {
            self.check_cut(server, asked, sample);
        }
        let known = self.servers.entry(server.to_owned()).or_default();
        if let (Ok(new), Some(old)) = (&found, known.sample())
            && old.role == Role::Primary
            && new.role == Role::Standby
            && new.started == old.started
        {
            // No server becomes a standby without a restart: this was seen before its promotion.
            return;
        }
        known.see(found, asked, now);
        self.begin(out);
        self.verify();
        self.catch_up_with_mark(out);
        self.extend_by_servers(now, out);
        self.acknowledge(now, out);
    }

    /// Notes that the primary of the record says that it is one.
    fn verify(&mut self) {
        if let Some(record) = &self.record
            && record.phase == Phase::Serving
            && self.servers.get(&record.primary).is_some_and(Known::answers)
            && self.contradiction(record).is_none()
        {
            self.verified = Some(record.epoch);
        }
    }

    /// Takes the primary that is there, if there is no doubt: one server takes writes, and all others
    /// follow it.
    fn begin(&mut self, out: &mut Vec<Action>) {
        if self.record.is_some() || self.pending.is_some() {
            return;
        }
        let Ok((name, sample)) = self.only_primary() else { return };
        let branch = Branch {
            system_id: sample.system_id,
            timeline: sample.timeline,
            switch: Lsn::default(),
        };
        let record = Record::first(name, branch, sample.mark.clone());
        out.push(self.note(Kind::Database, format!("{name} is the primary")));
        // No balancer has ever changed the primary, or is about to.
        let untouched = |it: &Known| it.sample().is_some_and(|it| it.mark.is_none() && !it.revoked);
        self.confirmed |= self.servers.values().all(untouched);
        self.commit(record, None, out);
    }

    /// The one server that takes writes, or why it cannot be said who it is.
    pub fn only_primary(&self) -> Result<(&str, &Sample), String> {
        let mut primaries = Vec::new();
        for (name, _) in &self.settings.servers {
            let known = self.servers.get(name);
            match known.and_then(|known| known.sample().filter(|_| known.answers())) {
                Some(sample) if sample.role == Role::Primary => {
                    primaries.push((name.as_str(), sample));
                }
                Some(_) => {}
                None => {
                    let why = known.and_then(Known::failing);
                    let why = why.map_or("it was not asked yet", |(_, it)| it.reason.as_str());
                    return Err(format!("{name} has not been seen: {why}"));
                }
            }
        }
        let (name, primary) = match primaries[..] {
            [one] => one,
            [] => return Err("no server takes writes".into()),
            _ => {
                let names: Vec<_> = primaries.iter().map(|(name, _)| *name).collect();
                return Err(format!("{} servers take writes: {}", names.len(), names.join(", ")));
            }
        };
        for (other, known) in &self.servers {
            let Some(sample) = known.sample() else { continue };
            if sample.system_id != primary.system_id {
                return Err(format!(
                    "{other} is a standby of another cluster (system identifier {}, and {name} has {})",
                    sample.system_id, primary.system_id
                ));
            }
            if sample.timeline > primary.timeline {
                return Err(format!("{other} is on a newer timeline than {name}"));
            }
        }
        Ok((name, primary))
    }

    /// The databases themselves say that another balancer has gone on: believe them, if the one that was
    /// promoted is there and takes writes.
    fn catch_up_with_mark(&mut self, out: &mut Vec<Action>) {
        if self.pending.is_some() || self.work != Work::Rest {
            return;
        }
        let (Some(record), Some(mark)) = (&self.record, self.newer_mark()) else { return };
        if self.is_unattended() && record.run.is_some() {
            // Whoever promotes it says so, or this balancer goes on in its place.
            return;
        }
        let Some(sample) = self.servers.get(&mark.server).and_then(Known::sample) else { return };
        let same = sample.system_id == record.branch.system_id;
        if !same || sample.role != Role::Primary || sample.mark.as_ref() != Some(mark) {
            return;
        }
        let branch = Branch { timeline: sample.timeline, ..record.branch };
        let next = record.next(|next| {
            next.epoch = mark.epoch;
            next.phase = Phase::Serving;
            next.primary.clone_from(&mark.server);
            next.branch = branch;
            next.mark = Some(mark.clone());
            next.run = None;
        });
        let message =
            format!("{} is the primary: it carries the mark of epoch {}", mark.server, mark.epoch);
        out.push(self.note(Kind::Failover, message));
        self.commit(next, None, out);
    }

    pub(super) fn hear(
        &mut self,
        node: &str,
        message: Message,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        if !self.settings.peers.contains(node) {
            return;
        }
        self.heard.insert(node.to_owned(), now);
        match message {
            Message::Ask(question) => {
                // What is being written is not known to be kept, and what was is over.
                if self.pending.is_none() {
                    let message = Message::Answer(question, self.record.clone().map(Box::new));
                    out.push(Action::Tell { node: node.to_owned(), message });
                }
                if self.is_unattended()
                    && let (Some(record), Some(ago)) = (&self.record, self.reaches(now))
                {
                    let message = Message::Reach(record.place(), ago.as_millis() as u64);
                    out.push(Action::Tell { node: node.to_owned(), message });
                }
            }
            Message::Answer(number, theirs) => {
                let fresh = self.asked.map(question) == Some(number);
                match theirs {
                    None => self.confirmed |= fresh && self.record.is_some(),
                    Some(theirs) => {
                        let same = self.record.as_ref() == Some(&*theirs);
                        self.compare(node, *theirs, fresh, now, out);
                        if let Some(asked) = self.asked.filter(|_| fresh && same) {
                            self.agrees(node, asked, now, out);
                        }
                    }
                }
            }
            Message::Record(record) => self.compare(node, *record, false, now, out),
            Message::Reach(place, millis) => {
                if self.record.as_ref().is_some_and(|record| record.place() == place) {
                    let asked = now.saturating_sub(Duration::from_millis(millis));
                    self.reach.insert(node.to_owned(), asked);
                }
            }
            Message::Ack(place) => {
                if self.record.as_ref().is_some_and(|record| record.place() == place) {
                    self.work.heard(node);
                    self.upkeep.heard(node, place);
                }
            }
            Message::Refuse(place, why) => {
                let current = self.record.as_ref().is_some_and(|it| it.place() == place);
                if current && self.pending.is_none() && self.work.waits_for(node) {
                    self.stop(&format!("{node} refuses: {why}"), now, out);
                }
            }
        }
    }

    /// Compares another balancer's record with ours: the later one is right.
    /// `fresh`: it was said after this balancer's own start.
    fn compare(
        &mut self,
        node: &str,
        theirs: Record,
        fresh: bool,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let tell = |message| Action::Tell { node: node.to_owned(), message };
        if self.pending.is_some() {
            // They say it again.
            return;
        }
        let Some(ours) = &self.record else {
            self.adopt(theirs, node, fresh, out);
            return;
        };
        if theirs == *ours {
            self.confirmed |= fresh;
            self.ack = Some((node.to_owned(), theirs.place()));
            self.acknowledge(now, out);
        } else if theirs.place() > ours.place() {
            if matches!(self.work, Work::Promote { .. }) && !self.is_unattended() {
                let why = format!("{} is promoting a server itself", self.settings.node);
                out.push(tell(Message::Refuse(theirs.place(), why)));
                return;
            }
            self.adopt(theirs, node, fresh, out);
        } else if theirs.place() < ours.place() {
            self.confirmed |= fresh;
            out.push(tell(Message::Record(Box::new(ours.clone()))));
        } else if theirs.phase == Phase::Serving && ours.phase == Phase::Serving {
            // They differ in what is left to do, or in a fence, unless two primaries were accepted.
            self.confirmed |= fresh && theirs.primary == ours.primary && theirs.epoch == ours.epoch;
        } else {
            let why = format!("{} has another record with this number", self.settings.node);
            out.push(tell(Message::Refuse(theirs.place(), why)));
        }
    }

    pub(super) fn adopt(&mut self, theirs: Record, node: &str, fresh: bool, out: &mut Vec<Action>) {
        self.commit(theirs, Some(node), out);
        if let Some(pending) = &mut self.pending {
            pending.fresh = fresh;
        }
    }

    pub(super) fn acknowledge(&mut self, now: Duration, out: &mut Vec<Action>) {
        let Some(record) = &self.record else { return };
        if let Some((node, place)) = &self.ack
            && self.is_gated()
            && record.place() == *place
        {
            let message = match self.objection(record, now) {
                Objection::Wait => return,
                Objection::None => Message::Ack(*place),
                Objection::Lives(why) => Message::Refuse(*place, why),
            };
            out.push(Action::Tell { node: node.clone(), message });
            self.ack = None;
        }
    }

    /// What this balancer has against a change that another begins because the primary has failed.
    fn objection(&self, record: &Record, now: Duration) -> Objection {
        let unattended = record.run.as_ref().is_some_and(|run| run.cause == Cause::Failure);
        if record.phase != Phase::Fencing || !unattended {
            return Objection::None;
        }
        let primary = &record.primary;
        let Some(known) = self.servers.get(primary) else { return Objection::None };
        match known.failing() {
            Some((_, failure)) if failure.kind.is_down() => Objection::None,
            Some((_, failure)) => Objection::Lives(format!("{primary} lives: {}", failure.reason)),
            // What it said before proves nothing.
            None if self.reaches(now).is_none() || known.asked() <= self.since => Objection::Wait,
            None => Objection::Lives(format!("{primary} answers it")),
        }
    }

    pub(super) fn committed(&mut self, revision: u64, now: Duration, out: &mut Vec<Action>) {
        let Some(Pending { record, of, fresh, stores, since, .. }) =
            self.pending.take_if(|pending| pending.record.revision == revision)
        else {
            return;
        };
        if stores {
            self.has_stored(record.place());
        }
        let before = self.record.replace(record);
        self.note_change(before.as_ref(), now);
        self.verify();
        let serves = self.record.as_ref().is_some_and(|it| it.phase == Phase::Serving);
        if let Some(since) = since.filter(|_| stores && serves) {
            self.assure(since, now, out);
        }
        let record = self.record.as_ref().expect("it has just been set");
        if let Some(node) = of {
            self.confirmed |= fresh;
            self.ack = Some((node.clone(), record.place()));
            if !self.settings.peers.contains(&node) {
                // It is what the store has: nobody waits.
                self.ack = None;
            }
            if before.as_ref().is_none_or(|it| it.primary != record.primary) {
                self.replaced = before.map(|it| it.primary);
                let message = format!("{} is the primary, {node} says", record.primary);
                out.push(self.note(Kind::Failover, message));
            } else if before.is_some_and(|it| it.phase != record.phase) {
                let message = match record.phase {
                    Phase::Serving => format!("{} goes on as the primary", record.primary),
                    Phase::Fencing => {
                        format!("{} gets no packet: {node} changes the primary", record.primary)
                    }
                    Phase::Promoting => format!("{node} promotes a server"),
                    Phase::Frozen => format!("the change of the primary by {node} is stuck"),
                };
                out.push(self.note(Kind::Failover, message));
            }
            if self.work != Work::Rest {
                self.finish(Err(format!("{node} has gone on by itself")), out);
            }
            self.work = Work::resume(self.record.as_ref(), &self.settings.node);
            return;
        }
        broadcast(&self.settings.peers.clone(), &Message::Record(Box::new(record.clone())), out);
        self.answered(out);
        let unsent = before.is_some_and(|it| it.phase == Phase::Fencing);
        self.start(unsent, now, out);
    }

    pub(super) fn not_committed(
        &mut self,
        revision: u64,
        why: &str,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let Some(pending) = self.pending.as_mut().filter(|it| it.record.revision == revision)
        else {
            return;
        };
        let begins = pending.record.phase == Phase::Fencing
            && self.record.as_ref().is_some_and(|it| it.phase == Phase::Serving);
        if begins && pending.of.is_none() {
            self.pending = None;
            self.not_before = now + AGAIN;
            self.finish(Err(format!("the record cannot be kept: {why}")), out);
        } else {
            pending.again = Some(now + AGAIN);
        }
    }

    /// The balancers that must agree to a change.
    pub(super) fn others(&self, absent: &BTreeSet<String>) -> BTreeSet<String> {
        self.settings.peers.difference(absent).cloned().collect()
    }
}

/// What is to be said against a change.
enum Objection {
    /// Nothing.
    None,
    /// That is not known yet.
    Wait,
    /// The primary lives.
    Lives(String),
}

/// The number of a question that was asked then: another one in each life of a balancer.
fn question(asked: Duration) -> u64 {
    asked.as_nanos() as u64
}
