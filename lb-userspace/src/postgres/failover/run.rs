//! A change of the primary, step by step.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    AGAIN, Action, Machine, Message, PromoteError, Promotion, broadcast, cut, store::CLOSES,
};
use crate::{
    events::Kind,
    postgres::{
        choose::{self, Choice},
        lsn::Lsn,
        record::{Branch, Cause, FollowUp, LastKnown, Loss, Mark, Phase, Record},
        sample::Sample,
    },
};

/// How long other balancers may take to close their gates, or to keep the intent.
const ACK_LIMIT: Duration = Duration::from_secs(5);

/// How long an orderly change may take until the candidate has everything. What is asked for has limits
/// of its own, which are shorter.
const QUIESCE_LIMIT: Duration = Duration::from_mins(2);

/// Tries until a promotion is given up: those that were not sent, and those of which that is not known.
const TRIES: u32 = 3;
const SENT_TRIES: u32 = 20;

/// How far this balancer is with the change that it carries out.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Work {
    /// It carries none out.
    Rest,
    /// It was at it before a restart.
    Resume,
    /// No write may pass any balancer; these have not said so yet. If they have not by `early`, the standbys'
    /// way is taken meanwhile.
    Fence { waits: BTreeSet<String>, until: Duration, told: Duration, early: Option<Duration> },
    /// The open transactions of the primary come to their end.
    Quiesce { until: Duration },
    /// The candidate receives the rest of the log, which ends there.
    CatchUp { end: Lsn, until: Duration },
    /// Standbys let go of the old primary; these have not yet.
    Revoke {
        waits: BTreeSet<String>,
        seen: BTreeMap<String, Sample>,
        end: Option<Lsn>,
        until: Duration,
    },
    /// The others keep the name of the candidate; these have not yet. `fresh`: it has surely not been
    /// promoted yet.
    /// Nobody is promoted before `not_before`: then gates that nobody has confirmed are closed.
    Intent {
        waits: BTreeSet<String>,
        until: Duration,
        told: Duration,
        fresh: bool,
        not_before: Duration,
    },
    /// The candidate is promoted.
    Promote { again: Option<Duration>, tries: u32, may_be_sent: bool },
    /// The new primary serves, as soon as the tables say so.
    Settle,
}

impl Work {
    pub(super) fn resume(record: Option<&Record>, node: &str) -> Self {
        match record {
            Some(record) if record.is_run_by(node) && record.phase != Phase::Frozen => Self::Resume,
            Some(Record { mark: Some(mark), follow_up: Some(_), .. }) if mark.node == node => {
                Self::Resume
            }
            _ => Self::Rest,
        }
    }

    /// Another balancer has done what it was asked for.
    pub(super) fn heard(&mut self, node: &str) {
        if let Self::Fence { waits, .. } | Self::Intent { waits, .. } = self {
            waits.remove(node);
        }
    }

    pub(super) fn waits_for(&self, node: &str) -> bool {
        matches!(self, Self::Fence { waits, .. } | Self::Intent { waits, .. } if waits.contains(node))
    }
}

impl Machine {
    /// Begins what the record that was just kept announces, if that is ours to do. `fresh`: a candidate
    /// that it names has surely not been promoted yet.
    pub(super) fn start(&mut self, fresh: bool, now: Duration, out: &mut Vec<Action>) {
        let resumed = self.work == Work::Resume;
        self.work = Work::Rest;
        let Some(record) = &self.record else { return };
        let waits = match &record.run {
            Some(run) if run.controller == self.settings.node => self.others(&run.absent),
            Some(_) => return,
            None => BTreeSet::new(),
        };
        let absent = record.run.as_ref().is_some_and(|run| !run.absent.is_empty());
        if record.phase != Phase::Promoting {
            self.cut.clear();
        }
        let candidate = record.run.as_ref().and_then(|run| run.candidate.as_ref());
        let cut = candidate.and_then(|it| self.cut.get(it)).copied().unwrap_or(now);
        let orderly = record.run.as_ref().is_some_and(|run| run.cause == Cause::Switchover);
        let (until, told) = (now + ACK_LIMIT, now);
        let (unattended, stored) = (self.is_unattended(), self.is_stored());
        if resumed {
            let message = Message::Record(Box::new(record.clone()));
            broadcast(&waits, &message, out);
        }
        self.work = match record.phase {
            Phase::Fencing if unattended => {
                // One that was off may be back, and have asked the store a moment before this.
                let waits = self.settings.peers.clone();
                let early = (!orderly).then_some(now + cut::PROMPT);
                Work::Fence { waits, until: now + CLOSES, told, early }
            }
            Phase::Fencing => Work::Fence { waits, until, told, early: None },
            Phase::Promoting => {
                // What the store has, whoever goes on finds there.
                let waits = if unattended && stored { BTreeSet::new() } else { waits };
                let not_before = if unattended && absent { cut + CLOSES } else { now };
                Work::Intent { waits, until, told, fresh, not_before }
            }
            Phase::Serving if record.follow_up.is_some() => Work::Settle,
            Phase::Serving | Phase::Frozen => Work::Rest,
        };
    }

    /// Takes the next step as soon as it may be taken.
    pub(super) fn advance(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.pending.is_some() {
            return;
        }
        if self.work == Work::Resume {
            self.start(false, now, out);
        }
        // After a restart, nothing is decided before every server has been asked.
        let asked = self.settings.servers.iter().all(|(name, _)| self.servers.contains_key(name));
        let ready = self.is_gated() && asked;
        let Some(record) = self.record.clone() else { return };
        if let (Work::Fence { .. }, Some(why)) = (&self.work, self.primary_lives(&record, now)) {
            self.stop(&why, now, out);
            return;
        }
        if self.is_gated()
            && record.phase == Phase::Serving
            && let Some(from) = self.replaced.take()
        {
            // Its clients are told where they may come back.
            out.push(Action::CutOff(from));
        }
        let sure = !matches!(self.work, Work::Fence { .. }) || self.is_sure(&record, now);
        let closes = self.is_unattended() && self.is_stored();
        if closes && ready && sure {
            self.revoke_early(&record, now, out);
        }
        match &mut self.work {
            Work::Rest | Work::Resume => {}
            Work::Intent { not_before, .. } if now < *not_before => {}
            Work::Fence { waits, until, told, .. } | Work::Intent { waits, until, told, .. } => {
                if waits.is_empty() && ready && sure {
                    self.step(&record, now, out);
                } else if now >= *until {
                    let silent = std::mem::take(waits);
                    let names = silent.iter().cloned().collect::<Vec<_>>().join(", ");
                    if names.is_empty() {
                        let why = "this balancer's own tables could not be written".to_owned();
                        self.stop(&why, now, out);
                    } else if closes && matches!(self.work, Work::Fence { .. }) {
                        self.leave_behind(silent, now, out);
                    } else {
                        let why = format!(
                            "{names} did not confirm that no write passes; if it is off, say so with \
                             --peer-is-down"
                        );
                        self.stop(&why, now, out);
                    }
                } else if !waits.is_empty() && now >= *told + AGAIN {
                    *told = now;
                    let (waits, message) = (waits.clone(), Message::Record(Box::new(record)));
                    broadcast(&waits, &message, out);
                }
            }
            Work::Quiesce { until } | Work::CatchUp { until, .. } => {
                if now >= *until {
                    self.stop("the primary or its standby does not answer", now, out);
                }
            }
            Work::Revoke { waits, until, .. } => {
                if waits.is_empty() || now >= *until {
                    self.elect(&record, out);
                }
            }
            Work::Promote { again, .. } => {
                if again.is_some_and(|at| now >= at) {
                    *again = None;
                    self.order_promotion(&record, out);
                }
            }
            Work::Settle => {
                if ready && let Some(FollowUp { from }) = &record.follow_up {
                    let outcome = self.outcome.take();
                    let outcome = outcome.unwrap_or_else(|| format!("{} serves", record.primary));
                    self.finish(Ok(outcome), out);
                    out.push(Action::CutOff(from.clone()));
                    out.push(Action::Checkpoint(record.primary.clone()));
                    self.commit(record.next(|next| next.follow_up = None), None, out);
                }
            }
        }
    }

    /// These balancers have not confirmed that no write passes: their leases are over.
    fn leave_behind(&mut self, silent: BTreeSet<String>, now: Duration, out: &mut Vec<Action>) {
        let names = silent.iter().cloned().collect::<Vec<_>>().join(", ");
        let message = format!("{names} is silent: its gate has closed by itself");
        out.push(self.note(Kind::Failover, message));
        self.silent = silent;
        if let Work::Fence { until, .. } = &mut self.work {
            *until = now + ACK_LIMIT;
        }
    }

    /// No write passes any balancer, or all have kept the name of the candidate.
    fn step(&mut self, record: &Record, now: Duration, out: &mut Vec<Action>) {
        let Some(run) = &record.run else { return };
        if let Work::Intent { fresh, .. } = self.work {
            self.work = Work::Promote { again: None, tries: 0, may_be_sent: !fresh };
            self.order_promotion(record, out);
        } else if run.cause == Cause::Switchover {
            self.work = Work::Quiesce { until: now + QUIESCE_LIMIT };
            out.push(Action::Quiesce(record.primary.clone()));
        } else {
            self.revoke(record, None, now, out);
        }
    }

    pub(super) fn quiesced(
        &mut self,
        result: Result<Lsn, String>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let target = self.record.as_ref().and_then(|it| it.run.as_ref()?.target.clone());
        let (Work::Quiesce { .. }, Some(server)) = (&self.work, target) else { return };
        match result {
            Ok(end) => {
                self.work = Work::CatchUp { end, until: now + QUIESCE_LIMIT };
                out.push(Action::CatchUp { server, end });
            }
            Err(why) => self.stop(&why, now, out),
        }
    }

    pub(super) fn caught_up(
        &mut self,
        result: Result<(), String>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let (Work::CatchUp { end, .. }, Some(record)) = (&self.work, self.record.clone()) else {
            return;
        };
        let end = *end;
        match result {
            Ok(()) => self.revoke(&record, Some(end), now, out),
            Err(why) => self.stop(&why, now, out),
        }
    }

    /// Chooses the candidate, and keeps its name before it hears of it.
    fn elect(&mut self, record: &Record, out: &mut Vec<Action>) {
        let (Work::Revoke { seen, end, .. }, Some(run)) = (&self.work, &record.run) else { return };
        let mut run = run.clone();
        run.absent.extend(std::mem::take(&mut self.silent));
        if let Some(end) = *end {
            run.last_known = Some(LastKnown { end, since: 0 });
        }
        match choose::choose(record, &run, seen, &self.order()) {
            // Who does not hear us may believe that nothing has changed as long as it follows.
            Ok(Choice { server, .. })
                if self.is_unattended()
                    && !run.absent.is_empty()
                    && !seen.get(&server).is_some_and(|it| it.revoked) =>
            {
                let why = format!("{server} could not be kept from following {}", record.primary);
                self.retreat(record, &why, out);
            }
            Ok(Choice { server, loss }) => {
                let lost = loss.map_or_else(|| "what is lost is not known".to_owned(), describe);
                let message = format!("{server} is chosen: {lost}");
                out.push(self.note(Kind::Failover, message));
                (run.candidate, run.loss) = (Some(server), loss);
                let next =
                    record.next(|next| (next.phase, next.run) = (Phase::Promoting, Some(run)));
                self.commit(next, None, out);
            }
            Err(refusal) => self.retreat(record, &refusal.to_string(), out),
        }
    }

    fn order_promotion(&self, record: &Record, out: &mut Vec<Action>) {
        let candidate = record.run.as_ref().and_then(|run| run.candidate.clone());
        let Some(server) = candidate else { return };
        let mark = self.mark(record, &server);
        out.push(Action::Promote { server, mark, from: record.branch });
    }

    /// What the candidate will carry.
    fn mark(&self, record: &Record, server: &str) -> Mark {
        let (epoch, node) = (record.epoch + 1, self.settings.node.clone());
        Mark { epoch, server: server.to_owned(), node }
    }

    pub(super) fn promoted(
        &mut self,
        server: &str,
        result: Result<Promotion, PromoteError>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let Some(record) = self.record.clone() else { return };
        let run = record.run.as_ref();
        let asked = run.is_some_and(|run| run.candidate.as_deref() == Some(server));
        let Work::Promote { again, tries, may_be_sent } = &mut self.work else { return };
        if !asked || self.pending.is_some() {
            return;
        }
        let Promotion { timeline, switch } = match result {
            Ok(promotion) => promotion,
            Err(PromoteError { sent, why }) => {
                *may_be_sent |= sent;
                *tries += 1;
                let most = if *may_be_sent { SENT_TRIES } else { TRIES };
                if *tries < most {
                    *again = Some(now + AGAIN);
                } else {
                    self.stop(&format!("{server} was not promoted: {why}"), now, out);
                }
                return;
            }
        };
        let mark = self.mark(&record, server);
        if let Some(known) = self.servers.get_mut(server) {
            known.promote(timeline, &mark);
        }
        let loss = run.and_then(|run| run.loss);
        let alone = run.is_some_and(|run| run.cause == Cause::Failure);
        let lifted = run.and_then(|run| self.lifted(&record, run, server));
        let lost = loss.map_or_else(|| "what is lost is not known".to_owned(), describe);
        let next = record.next(|next| {
            next.epoch += 1;
            next.phase = Phase::Serving;
            next.follow_up = Some(FollowUp { from: record.primary.clone() });
            server.clone_into(&mut next.primary);
            next.branch = Branch { timeline, switch, ..record.branch };
            next.mark = Some(mark);
            next.run = None;
            next.sync_since = Lsn::default();
            next.calm = alone;
            if let Some(lifted) = lifted {
                next.degraded.entry(server.to_owned()).or_insert(lifted);
            }
        });
        self.verified = Some(next.epoch);
        let message = format!("{server} is the primary, on timeline {timeline}");
        out.push(self.note(Kind::Failover, message.clone()));
        self.commit(next, None, out);
        self.refused = None;
        self.outcome = Some(format!("{message}, which begins at {switch}; {lost}"));
    }

    /// Gives the change up: back to the old primary while nobody can have been promoted, and to a stop
    /// otherwise.
    pub(super) fn stop(&mut self, why: &str, _now: Duration, out: &mut Vec<Action>) {
        let Some(record) = self.record.clone() else { return };
        let promoted = match &self.work {
            Work::Promote { may_be_sent, .. } => *may_be_sent,
            Work::Intent { fresh, .. } => !fresh,
            _ => false,
        };
        if !promoted {
            self.retreat(&record, why, out);
            return;
        }
        self.refused = Some(why.to_owned());
        let next = record.next(|next| {
            next.phase = Phase::Frozen;
            if let Some(run) = &mut next.run {
                run.stuck = Some(why.to_owned());
            }
        });
        let Action::Note(note) = self.note(Kind::Fault, "the change of the primary is stuck")
        else {
            return;
        };
        out.push(Action::Note(note.because(why)));
        self.commit(next, None, out);
        self.work = Work::Rest;
        self.finish(Err(format!("{why}. Nothing takes writes until a person decides")), out);
    }

    /// Everything as before: nobody was promoted.
    fn retreat(&mut self, record: &Record, why: &str, out: &mut Vec<Action>) {
        self.refused = Some(why.to_owned());
        let message = format!("{} goes on as the primary", record.primary);
        let Action::Note(note) = self.note(Kind::Failover, message) else { return };
        out.push(Action::Note(note.because(why)));
        self.commit(record.next(|next| (next.phase, next.run) = (Phase::Serving, None)), None, out);
        self.work = Work::Rest;
        self.finish(Err(format!("{why}. {} goes on as the primary", record.primary)), out);
    }

    /// Tells the operator, if one waits.
    pub(super) fn finish(&mut self, result: Result<String, String>, out: &mut Vec<Action>) {
        if std::mem::take(&mut self.commanded) {
            out.push(Action::Finish(result));
        }
    }
}

/// What is lost, in words.
pub(crate) fn describe(loss: Loss) -> String {
    match loss {
        Loss { proven: true, .. } => {
            "no acknowledged write is lost, as synchronous replication proves".into()
        }
        Loss { at_most: 0, .. } => "nothing is known to be lost".into(),
        Loss { known, at_most, .. } if known == at_most => format!("{known} bytes of log are lost"),
        Loss { known, at_most, .. } => {
            format!("{known} bytes of log are lost, and at most {at_most}")
        }
    }
}
