//! What commits on the primary wait for, when the standbys that they wait for are missing.
//!
//! ```text
//!           too few standbys: the record says so      synchronous_standby_names = ''
//!  strict ───────────────────────────────────▶ degraded ───────────────────────────▶ commits go on
//!     ▲                                                                                   │
//!     │   all is there that was committed: the record says so       the standbys are back │
//!     └────────────────────────────── restoring ◀─────────────────────────────────────────┘
//! ```
//!
//! A promotion may count on it that an acknowledged commit is at the standbys as long as the record does not
//! say that the primary is [degraded](Record::degraded). So the record changes before the setting does, and
//! changes back after it; and a promotion replaces the record as well, so one of the two finds that the other
//! has begun. What is to be done follows from the record and from what the server says, not from what was
//! done: whoever starts anew goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{AGAIN, Action, Known, Machine, Message, broadcast, run::Work, store::TAKEOVER};
use crate::{
    events::Kind,
    postgres::{
        lsn::Lsn,
        record::{Degraded, Phase, Record},
        sample::{Role, Sample},
        sync::SyncRule,
    },
};

/// Standbys that are back must have been there for so long before commits wait for them again. What was ordered
/// before has then arrived, or never will.
const HOLD: Duration = Duration::from_secs(6);

/// An order has ended after this time, whether that was heard or not.
const ORDER_LIMIT: Duration = Duration::from_mins(1);

/// After an order that came to nothing the next one waits so long.
const RETRY: Duration = Duration::from_secs(2);

/// How long the others may take to keep the record, where a person waits for that.
const AGREE_LIMIT: Duration = Duration::from_secs(5);

/// What this balancer is at with what commits wait for.
#[derive(Clone, Debug, Default)]
pub(super) struct Upkeep {
    /// Since when too few standbys are there, and since when enough are.
    missing: Option<Duration>,
    back: Option<Duration>,
    /// The order that has not ended: server, setting, and when it was given.
    ordered: Option<(String, String, Duration)>,
    /// The server whose commits wait for nobody, and since when.
    lifted: Option<(String, Duration)>,
    /// No order before this.
    not_before: Duration,
    /// Balancers that have the record of this place, and when they were last told.
    acks: BTreeSet<String>,
    of: (u64, u64),
    told: Duration,
    /// A person waits for the others until then.
    until: Option<Duration>,
    /// What was said last about an order that came to nothing.
    said: Option<String>,
}

impl Upkeep {
    /// Another balancer has the record of this place.
    pub(super) fn heard(&mut self, node: &str, place: (u64, u64)) {
        if self.of != place {
            self.acks.clear();
            self.of = place;
        }
        self.acks.insert(node.to_owned());
    }

    /// A person waits for the end of an order.
    pub(super) fn is_awaited(&self) -> bool {
        self.until.is_some()
    }
}

impl Machine {
    /// Sees to it that commits wait for what the record says.
    pub(super) fn keep_sync(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.upkeep.until.is_some() && !self.commanded {
            self.upkeep.until = None;
        }
        if self.pending.is_some() || self.work != Work::Rest || !self.confirmed {
            return;
        }
        let Some(record) = self.record.clone() else { return };
        if record.phase != Phase::Serving {
            if self.upkeep.until.take().is_some() {
                self.finish(Err("the primary is being changed".into()), out);
            }
            return;
        }
        self.count_standbys(&record, now);
        let busy = self.upkeep.ordered.as_ref();
        if busy.is_some_and(|(.., at)| now < *at + ORDER_LIMIT)
            || now < self.upkeep.not_before.max(self.not_before)
        {
            return;
        }
        if let Some(degraded) = record.degraded() {
            self.keep_degraded(&record, degraded.clone(), now, out);
        } else {
            self.upkeep.lifted = None;
            self.degrade_if_due(&record, now, out);
        }
        if self.pending.is_none() && self.upkeep.ordered.is_none() {
            self.set_back_others(&record, now, out);
        }
        if self.pending.is_none() && self.upkeep.ordered.is_none() {
            self.correct_standbys(&record, now, out);
        }
    }

    /// The primary, if it answers.
    fn asked_primary(&self, record: &Record) -> Option<&Sample> {
        let known = self.servers.get(&record.primary).filter(|known| known.answers())?;
        known.sample().filter(|sample| sample.role == Role::Primary)
    }

    /// What commits wait for, or shall wait for again.
    fn rule(record: &Record, sample: &Sample) -> Option<SyncRule> {
        match record.degraded() {
            Some(degraded) => SyncRule::parse(&degraded.names),
            None => sample.sync.clone(),
        }
    }

    fn count_standbys(&mut self, record: &Record, now: Duration) {
        let enough = self.asked_primary(record).and_then(|sample| {
            let rule = Self::rule(record, sample)?;
            Some(sample.there(&rule) >= rule.need)
        });
        let upkeep = &mut self.upkeep;
        match enough {
            Some(true) => (upkeep.missing, upkeep.back) = (None, upkeep.back.or(Some(now))),
            Some(false) => (upkeep.missing, upkeep.back) = (upkeep.missing.or(Some(now)), None),
            None => (upkeep.missing, upkeep.back) = (None, None),
        }
    }

    /// How long standbys may be missing before commits go on without them; none: a person decides.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.settings.unattended.as_ref().and_then(|rules| rules.available)
    }

    fn are_missing(&self, now: Duration) -> bool {
        let missing = self.upkeep.missing.zip(self.patience());
        missing.is_some_and(|(since, patience)| now >= since + patience)
    }

    fn degrade_if_due(&mut self, record: &Record, now: Duration, out: &mut Vec<Action>) {
        if !self.are_missing(now) || self.store.trouble().is_some() || record.doubt.is_some() {
            return;
        }
        let Some(sample) = self.asked_primary(record) else { return };
        let names = sample.sync_names.clone();
        let why = format!("too few of {names} have been there for a while");
        self.degrade(record, names, BTreeSet::new(), &why, out);
    }

    /// The record says it first.
    fn degrade(
        &mut self,
        record: &Record,
        names: String,
        absent: BTreeSet<String>,
        why: &str,
        out: &mut Vec<Action>,
    ) {
        let by = self.settings.node.clone();
        let degraded = Degraded { names, by, absent, restoring: false };
        let message = format!("commits on {} shall wait for no standby", record.primary);
        let Action::Note(note) = self.note(Kind::Database, message) else { return };
        out.push(Action::Note(note.because(why)));
        let primary = record.primary.clone();
        self.commit(record.next(|next| drop(next.degraded.insert(primary, degraded))), None, out);
    }

    /// Whether this balancer sees to an entry. If the one that did is silent, it does so from now on.
    fn is_ours(
        &mut self,
        record: &Record,
        server: &str,
        degraded: &Degraded,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> bool {
        if degraded.by == self.settings.node {
            return true;
        }
        let heard = self.heard.get(&degraded.by).copied().unwrap_or_default().max(self.since);
        if self.is_unattended() && self.store.trouble().is_none() && now >= heard + TAKEOVER {
            let by = self.settings.node.clone();
            self.change(record, server, |it| it.by = by, out);
        }
        false
    }

    fn change(
        &mut self,
        record: &Record,
        server: &str,
        change: impl FnOnce(&mut Degraded),
        out: &mut Vec<Action>,
    ) {
        let next = record.next(|next| {
            next.degraded.entry(server.to_owned()).and_modify(change);
        });
        self.commit(next, None, out);
    }

    fn keep_degraded(
        &mut self,
        record: &Record,
        degraded: Degraded,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let server = record.primary.clone();
        if !self.is_ours(record, &server, &degraded, now, out) {
            return;
        }
        let Some(sample) = self.asked_primary(record) else { return };
        if degraded.restoring {
            self.upkeep.lifted = None;
            if self.are_missing(now) {
                return self.change(record, &server, |it| it.restoring = false, out);
            }
            let need = SyncRule::parse(&degraded.names).map_or(0, |rule| rule.need);
            return self.order_sync(server, degraded.names, need, now, out);
        }
        let back = self.upkeep.back.is_some_and(|at| now >= at.max(self.since) + HOLD);
        let asked = self.servers.get(&server).map(|known| known.asked);
        let names = sample.sync_names.clone();
        let lifted = self.upkeep.lifted.as_ref().filter(|(of, _)| *of == server);
        match lifted.map(|(_, at)| *at) {
            Some(at) => {
                if !names.is_empty() && asked > Some(at) {
                    // Somebody has set it: that is a wish.
                    let message = format!("commits on {server} wait again: somebody has set it so");
                    out.push(self.note(Kind::Database, message));
                    self.change(
                        record,
                        &server,
                        |it| (it.names, it.restoring) = (names, true),
                        out,
                    );
                } else if back && self.patience().is_some() {
                    let message = format!("the standbys of {server} are back");
                    out.push(self.note(Kind::Database, message));
                    self.change(record, &server, |it| it.restoring = true, out);
                }
            }
            None => {
                if self.is_agreed_to(record, &degraded, now, out) {
                    self.order_sync(server, String::new(), 0, now, out);
                }
            }
        }
    }

    /// Whether all who could promote a standby know that nothing is proven any longer.
    fn is_agreed_to(
        &mut self,
        record: &Record,
        degraded: &Degraded,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> bool {
        if self.is_unattended() {
            return self.is_stored();
        }
        let mut waits = self.others(&degraded.absent);
        if self.upkeep.of == record.place() {
            waits = &waits - &self.upkeep.acks;
        }
        if waits.is_empty() {
            return true;
        }
        if self.upkeep.until.is_some_and(|until| now >= until) {
            self.upkeep.until = None;
            let names = waits.iter().cloned().collect::<Vec<_>>().join(", ");
            let server = record.primary.clone();
            self.commit(record.next(|next| drop(next.degraded.remove(&server))), None, out);
            let why = format!(
                "{names} did not confirm that it knows; if it is off, say so with --peer-is-down"
            );
            self.finish(Err(why), out);
        } else if now >= self.upkeep.told + AGAIN {
            self.upkeep.told = now;
            broadcast(&waits, &Message::Record(Box::new(record.clone())), out);
        }
        false
    }

    pub(super) fn order_sync(
        &mut self,
        server: String,
        names: String,
        need: usize,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        self.upkeep.ordered = Some((server.clone(), names.clone(), now));
        out.push(Action::SetSync { server, names, need });
    }

    /// Servers that were degraded when they were the primary: their setting is to be as it was when they are
    /// one again.
    fn set_back_others(&mut self, record: &Record, now: Duration, out: &mut Vec<Action>) {
        let others: BTreeMap<_, _> =
            record.degraded.iter().filter(|(server, _)| **server != record.primary).collect();
        for (server, degraded) in others {
            let answers = self.servers.get(server).is_some_and(Known::answers);
            if answers && self.is_ours(record, server, degraded, now, out) {
                return self.order_sync(server.clone(), degraded.names.clone(), 0, now, out);
            }
            if self.pending.is_some() {
                return;
            }
        }
    }

    /// The server that was told to let commits wait for something else, and for what, if it has not answered.
    #[cfg(test)]
    pub(super) fn ordered(&self) -> Option<(&str, &str)> {
        let (server, names, _) = self.upkeep.ordered.as_ref()?;
        Some((server, names))
    }

    pub(super) fn sync_set(
        &mut self,
        server: &str,
        names: &str,
        result: Result<Lsn, String>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let asked = self.upkeep.ordered.as_ref();
        if asked.is_none_or(|(of, to, _)| (of.as_str(), to.as_str()) != (server, names)) {
            return;
        }
        self.upkeep.ordered = None;
        let Some(record) = self.record.clone().filter(|it| it.phase == Phase::Serving) else {
            return;
        };
        if self.pending.is_some() {
            return;
        }
        let Some(degraded) = record.degraded.get(server) else {
            // A standby that would have waited for itself. If it still would, that is seen at the next look.
            self.upkeep.not_before = now + RETRY;
            if result.is_ok() {
                let message = format!(
                    "{server} would have waited for itself as a primary: its synchronous_standby_names is \
                     {names:?} now"
                );
                out.push(self.note(Kind::Database, message));
            }
            return;
        };
        let end = match result {
            Ok(end) => end,
            Err(why) => {
                self.upkeep.not_before = now + RETRY;
                if self.upkeep.said.as_ref() != Some(&why) {
                    self.upkeep.said = Some(why.clone());
                    let message = format!("what commits on {server} wait for was not changed");
                    let Action::Note(note) = self.note(Kind::Fault, message) else { return };
                    out.push(Action::Note(note.because(&why)));
                }
                if self.upkeep.until.take().is_some() {
                    self.finish(Err(format!("{why}. It is tried again")), out);
                }
                return;
            }
        };
        self.upkeep.said = None;
        let is_primary = server == record.primary;
        let wanted = degraded.restoring || !is_primary;
        let (text, kind) = if wanted && names == degraded.names {
            let next = record.next(|next| {
                next.degraded.remove(server);
                if is_primary {
                    next.sync_since = end;
                }
            });
            self.commit(next, None, out);
            (format!("commits on {server} wait for {names} again"), Kind::Recovered)
        } else if !wanted && names.is_empty() {
            self.upkeep.lifted = Some((server.to_owned(), now));
            (format!("commits on {server} wait for no standby"), Kind::Fault)
        } else {
            return;
        };
        out.push(self.note(kind, text.clone()));
        if is_primary && self.upkeep.until.take().is_some() {
            self.finish(Ok(text), out);
        }
    }

    /// A person lets commits go on.
    pub(super) fn degrade_by_hand(
        &mut self,
        absent: BTreeSet<String>,
        force: bool,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> Result<Option<String>, String> {
        self.check_absent(&absent)?;
        let record = self.serving()?;
        let primary = &record.primary;
        let sample = self.asked_primary(&record);
        let sample = sample.ok_or_else(|| format!("{primary} does not answer"))?;
        match record.degraded() {
            Some(degraded) if !degraded.restoring && self.upkeep.lifted.is_some() => {
                return Ok(Some(format!("commits on {primary} wait for no standby already")));
            }
            Some(_) => {
                let by = self.settings.node.clone();
                let change =
                    |it: &mut Degraded| (it.by, it.absent, it.restoring) = (by, absent, false);
                self.change(&record, primary, change, out);
            }
            None => {
                let rule = sample
                    .sync
                    .clone()
                    .ok_or_else(|| format!("commits on {primary} wait for no standby as it is"))?;
                if sample.there(&rule) >= rule.need && !force {
                    return Err(format!(
                        "the standbys that commits on {primary} wait for are there, so none hangs. --force \
                         lets them go on without all the same"
                    ));
                }
                let names = sample.sync_names.clone();
                self.degrade(&record, names, absent, "a person wants it", out);
            }
        }
        self.upkeep.until = Some(now + AGREE_LIMIT);
        self.upkeep.not_before = now;
        Ok(None)
    }

    /// A person wants commits to wait again.
    pub(super) fn restore_by_hand(
        &mut self,
        out: &mut Vec<Action>,
    ) -> Result<Option<String>, String> {
        let record = self.serving()?;
        let primary = &record.primary;
        let Some(degraded) = record.degraded() else {
            return Err(format!("{primary} is not degraded: nothing is to be restored"));
        };
        let sample = self.asked_primary(&record);
        let sample = sample.ok_or_else(|| format!("{primary} does not answer"))?;
        let rule = SyncRule::parse(&degraded.names);
        if let Some(rule) = rule.filter(|rule| sample.there(rule) < rule.need) {
            return Err(format!(
                "{} of the {} standbys that commits would wait for are there: they would hang",
                sample.there(&rule),
                rule.need
            ));
        }
        let by = self.settings.node.clone();
        self.change(&record, primary, |it| (it.by, it.restoring) = (by, true), out);
        self.upkeep.until = Some(Duration::MAX);
        Ok(None)
    }

    /// The record, if it serves and is ours to change.
    fn serving(&self) -> Result<Record, String> {
        let record = self.ours()?.clone();
        if record.phase != Phase::Serving {
            return Err("the primary is being changed".into());
        }
        Ok(record)
    }
}
