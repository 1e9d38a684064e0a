//! Whether the primary has failed, and what is done about that without a person.
//!
//! Two kinds of evidence must agree: the primary does not answer this balancer, and a standby that answers
//! does not hear it either. A standby that hears it still, or another balancer that reaches it, speaks
//! against it; who does not answer says nothing. A primary that answers, in whatever way, has not failed.

use std::time::Duration;

use super::{
    Action, Known, Machine,
    run::{Work, describe},
};
use crate::{
    events::Kind,
    postgres::{
        choose::{self, Choice},
        record::{Cause, Doubt, Phase, Record},
        sample::{FailureKind, Role, Sample},
    },
};

/// Looks in a row that must have failed.
const LEAST_FAILURES: u32 = 2;

/// What was last known of the primary must not have been older than this when it failed.
const KNOWN_BEFORE: Duration = Duration::from_secs(5);

/// A process that has ended may come back: without proof that a promotion loses nothing, so long is waited
/// for it.
const RESTART_GRACE: Duration = Duration::from_secs(5);

/// After a promotion without a person there is none for so long: two in a row are a sign of something
/// else.
const CALM: Duration = Duration::from_mins(1);

/// So much later another balancer than the one that has promoted says that this time is over.
const STAGGER: Duration = Duration::from_secs(1);

/// After a change that came to nothing there is none for so long.
const PAUSE: Duration = Duration::from_secs(5);

/// What another balancer says of the primary counts for so long.
const WORD: Duration = Duration::from_millis(1500);

/// What can be said of the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    /// It answers.
    Lives,
    /// It is too early to say.
    Wait,
    /// It does not answer, and that is not enough; why.
    Unsure(String),
    /// It has failed; what shows that.
    Failed(Vec<String>),
}

impl Machine {
    /// Does what is to be done about the primary without a person.
    pub(super) fn consider(&mut self, now: Duration, out: &mut Vec<Action>) {
        let Some(rules) = self.settings.unattended.clone().filter(|_| now >= self.not_before)
        else {
            return;
        };
        if self.pending.is_some() || self.work != Work::Rest {
            return;
        }
        let Some(record) = self.record.clone().filter(|it| it.phase == Phase::Serving) else {
            return;
        };
        if self.is_calm_over(&record, now) {
            return self.commit(record.next(|next| next.calm = false), None, out);
        }
        let nobody = "nobody is promoted";
        let evidence = match self.finding(&record, now) {
            Finding::Lives => {
                if let Some(why) = self.commits_that_wait(&record) {
                    self.say_once(nobody, &why, out);
                } else if self.said.take().is_some() {
                    self.refused = None;
                }
                self.forget_doubt(&record, now, out);
                return;
            }
            Finding::Wait => return,
            Finding::Unsure(why) => return self.say_once(nobody, &why, out),
            Finding::Failed(evidence) => evidence,
        };
        if let Some(why) = self.store.trouble() {
            let why = format!("etcd does not answer ({why})");
            return self.say_once(nobody, &why, out);
        }
        if self.given_up.is_some_and(|at| now < at + PAUSE) {
            // Whatever spoke against it is likely to do so again.
            return;
        }
        if record.calm {
            let why = format!("{} was promoted less than a minute ago", record.primary);
            return self.say_once(nobody, &why, out);
        }
        if record.degraded().is_some() && rules.max_loss == 0 {
            let why = format!(
                "commits on {} wait for no standby, so nothing proves that none is lost, and max_loss is 0",
                record.primary
            );
            return self.say_once(nobody, &why, out);
        }
        let mut run = self.draft(&record, Cause::Failure, now);
        run.may_lose = Some(rules.max_loss);
        let choice = choose::choose(&record, &run, &self.as_if_revoked(), &self.order());
        let Choice { server, loss } = match choice {
            Ok(choice) => choice,
            Err(refusal) => return self.say_once(nobody, &refusal.to_string(), out),
        };
        let failing = self.servers.get(&record.primary).and_then(Known::failing);
        let Some((since, failure)) = failing else { return };
        let proven = loss.is_some_and(|loss| loss.proven);
        if failure.kind == FailureKind::Dead && !proven && now < since + RESTART_GRACE {
            let why = format!("{} may be started again", record.primary);
            return self.say_once("a promotion waits a little", &why, out);
        }
        let because = evidence.join("; ");
        if let Some(time) = rules.veto {
            let Some(doubt) = &record.doubt else {
                let doubt = self.doubt(&record, &server, now);
                let lost = loss.map_or_else(|| "what is lost is not known".into(), describe);
                let message = format!(
                    "{} has failed: {server} is promoted in {} s, and {lost}. `ballast pg approve {}` \
                     does it now, `ballast pg veto {}` forbids it",
                    record.primary,
                    time.as_secs(),
                    doubt.approve,
                    doubt.veto
                );
                let Action::Note(note) = self.note(Kind::Failover, message) else { return };
                out.push(Action::Note(note.because(because)));
                return self.commit(record.next(|next| next.doubt = Some(doubt)), None, out);
            };
            if !self.is_agreed(doubt, time, &record, now, out) {
                return;
            }
        }
        let from = record.primary.clone();
        let message = format!("{from} has failed: it shall be the primary no longer");
        let Action::Note(note) = self.note(Kind::Failover, message) else { return };
        out.push(Action::Note(note.because(because)));
        let next = record.next(|next| {
            (next.phase, next.run, next.doubt) = (Phase::Fencing, Some(run), None);
        });
        self.commit(next, None, out);
    }

    /// Whether the time has passed in which no epoch begins without a person. Each balancer counts it, after a restart
    /// anew, and the first that is through ends it for all: most likely the one that has promoted.
    fn is_calm_over(&mut self, record: &Record, now: Duration) -> bool {
        if !record.calm || self.store.trouble().is_some() {
            return false;
        }
        if self.calm.is_none_or(|(epoch, _)| epoch != record.epoch) {
            self.calm = Some((record.epoch, now));
        }
        let since = self.calm.map_or(now, |(_, at)| at);
        let by = record.mark.as_ref().map(|mark| &mark.node);
        let last = if by == Some(&self.settings.node) { Duration::ZERO } else { STAGGER };
        now >= since + CALM + last
    }

    /// Whether a person agrees, by word or by silence.
    fn is_agreed(
        &mut self,
        doubt: &Doubt,
        time: Duration,
        record: &Record,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> bool {
        match doubt.answer {
            Some(true) => return true,
            Some(false) => {
                self.say_once("nobody is promoted", "a person has forbidden it", out);
                return false;
            }
            None => {}
        }
        if doubt.by == self.settings.node {
            let since = *self.doubted.get_or_insert(now);
            return now >= since + time;
        }
        // The one who counts the time has fallen silent: this balancer begins anew.
        let heard = self.heard.get(&doubt.by).copied().unwrap_or_default().max(self.since);
        if now >= heard + KNOWN_BEFORE {
            let node = self.settings.node.clone();
            let next = record.next(|next| {
                if let Some(doubt) = &mut next.doubt {
                    doubt.by = node;
                }
            });
            self.doubted = None;
            self.commit(next, None, out);
        }
        false
    }

    /// The primary lives: what was asked of a person is asked no longer.
    fn forget_doubt(&mut self, record: &Record, now: Duration, out: &mut Vec<Action>) {
        self.doubted = None;
        let Some(doubt) = &record.doubt else { return };
        let heard = self.heard.get(&doubt.by).copied().unwrap_or_default().max(self.since);
        if doubt.by == self.settings.node || now >= heard + KNOWN_BEFORE {
            let message = format!("{} answers again: it stays the primary", record.primary);
            out.push(self.note(Kind::Failover, message));
            self.commit(record.next(|next| next.doubt = None), None, out);
        }
    }

    fn doubt(&mut self, record: &Record, candidate: &str, now: Duration) -> Doubt {
        let seed = self.settings.unattended.as_ref().map_or(0, |it| it.seed);
        let token = |which: u64| {
            // SplitMix64 (Steele et al. 2014) of a number that nobody outside knows.
            let mut z = seed
                .wrapping_add(now.as_nanos() as u64)
                .wrapping_add((record.revision << 1 | which).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            format!("{:012x}", (z ^ (z >> 31)) & 0xffff_ffff_ffff)
        };
        let (approve, veto) = (token(0), token(1));
        let (by, candidate) = (self.settings.node.clone(), candidate.to_owned());
        Doubt { by, candidate, approve, veto, answer: None }
    }

    /// A person answers, by a token.
    pub(super) fn answer(
        &mut self,
        token: &str,
        yes: bool,
        out: &mut Vec<Action>,
    ) -> Result<Option<String>, String> {
        let record = self.record.clone().ok_or("no primary is known yet")?;
        let asked = record.doubt.as_ref().ok_or("nothing is asked: the primary has not failed")?;
        let expected = if yes { &asked.approve } else { &asked.veto };
        if token != expected {
            return Err("this is not the token of what is asked now".into());
        }
        if let Some(answer) = asked.answer {
            let word = if answer { "agreed to" } else { "forbidden" };
            return Err(format!("it was {word} already"));
        }
        let next = record.next(|next| {
            if let Some(doubt) = &mut next.doubt {
                doubt.answer = Some(yes);
            }
        });
        self.commit(next, None, out);
        Ok(None)
    }

    /// A person's answer is kept: it counts.
    pub(super) fn answered(&mut self, out: &mut Vec<Action>) {
        let doubt = self.record.as_ref().and_then(|record| record.doubt.as_ref());
        let Some(Doubt { candidate, answer: Some(yes), .. }) = doubt else { return };
        let word = if *yes { "agreed to" } else { "forbidden" };
        let text = format!("the promotion of {candidate} is {word}");
        if self.commanded {
            out.push(self.note(Kind::Wish, text.clone()));
            self.finish(Ok(text), out);
        }
    }

    /// What can be said of the primary now.
    fn finding(&self, record: &Record, now: Duration) -> Finding {
        let primary = &record.primary;
        let Some(known) = self.servers.get(primary) else { return Finding::Wait };
        let Some((since, failure)) = known.failing() else { return Finding::Lives };
        if !failure.kind.is_down() {
            return Finding::Unsure(format!("{primary} lives: {}", failure.reason));
        }
        if known.failures() < LEAST_FAILURES {
            return Finding::Wait;
        }
        if known.sampled().is_none_or(|at| since > at + KNOWN_BEFORE) {
            return Finding::Unsure(format!("{primary} was not seen shortly before it failed"));
        }
        let signs = self.signs_of_life(record, now);
        if !signs.is_empty() {
            return Finding::Unsure(format!("{primary} does not answer, but {}", signs.join("; ")));
        }
        let mut evidence = vec![format!("{primary}: {}", failure.reason)];
        let mut waits = false;
        let failure = record.run.as_ref().is_some_and(|run| run.cause == Cause::Failure);
        let begun = failure && record.phase == Phase::Fencing;
        for (name, known) in self.servers.iter().filter(|(name, _)| *name != primary) {
            let Some(sample) = known.sample().filter(|_| known.answers()) else { continue };
            let same = sample.system_id == record.branch.system_id;
            if same && sample.revoked && begun {
                // Nobody has done that who was not sure; what it says from then on proves nothing.
                evidence
                    .push(format!("{name} had not heard {primary} when its way there was taken"));
                continue;
            }
            // One that did not hear it before says nothing by not hearing it now.
            let knew = known.streamed().is_some_and(|at| since <= at + KNOWN_BEFORE);
            if !same || sample.role != Role::Standby || sample.revoked || !knew {
                continue;
            }
            if known.asked() <= since {
                waits = true;
                continue;
            }
            match hears_nothing(sample) {
                Some(text) => evidence.push(format!("{name} {text} {primary}")),
                None => waits = true,
            }
        }
        if waits {
            Finding::Wait
        } else if evidence.len() < 2 {
            let why = format!("no standby answers that could tell whether {primary} lives");
            Finding::Unsure(why)
        } else {
            Finding::Failed(evidence)
        }
    }

    /// Why a change that began because the primary has failed must not go on.
    pub(super) fn primary_lives(&self, record: &Record, now: Duration) -> Option<String> {
        record.run.as_ref().filter(|run| run.cause == Cause::Failure)?;
        match self.finding(record, now) {
            Finding::Lives => Some(format!("{} answers", record.primary)),
            Finding::Unsure(why) => Some(why),
            Finding::Wait | Finding::Failed(_) => None,
        }
    }

    /// Whether a change may go on: a person wants it, or the primary has surely failed.
    pub(super) fn is_sure(&self, record: &Record, now: Duration) -> bool {
        let unattended = record.run.as_ref().is_some_and(|run| run.cause == Cause::Failure);
        !unattended || matches!(self.finding(record, now), Finding::Failed(_))
    }

    /// Commits on the primary wait for standbys that are not there.
    fn commits_that_wait(&self, record: &Record) -> Option<String> {
        let sample = self.servers.get(&record.primary)?.sample()?;
        let rule = sample.sync.as_ref()?;
        let there = sample.there(rule);
        (there < rule.need).then(|| {
            format!(
                "{} lives, and its commits wait for {} of the standbys {}, of which {there} are there",
                record.primary,
                rule.need,
                rule.names.join(", ")
            )
        })
    }

    /// Other balancers that reach the primary, since this one does not.
    pub(super) fn others_that_reach(&self, since: Duration, now: Duration) -> Vec<&str> {
        let reach = self.reach.iter().filter(|(_, at)| **at > since && now < **at + WORD);
        reach.map(|(node, _)| node.as_str()).collect()
    }

    /// How long ago the primary was asked what it has answered, if it answers this balancer.
    pub(super) fn reaches(&self, now: Duration) -> Option<Duration> {
        let primary = self.servers.get(&self.record.as_ref()?.primary)?;
        let is_primary = primary.sample().is_some_and(|sample| sample.role == Role::Primary);
        (primary.answers() && is_primary).then(|| now.saturating_sub(primary.asked()))
    }
}

/// Why a standby surely does not hear its source; none if it may.
fn hears_nothing(sample: &Sample) -> Option<&'static str> {
    let Some(receiver) = sample.receiver.as_ref().filter(|it| it.streaming) else {
        return Some("receives nothing from");
    };
    // It asks its source for a word when it has heard nothing for half of its time.
    let patience = sample.patience? / 2 + ANSWER;
    (receiver.heard? >= patience).then_some("has asked in vain for a word of")
}

/// How long a source may take to answer its standby.
const ANSWER: Duration = Duration::from_millis(400);

impl Known {
    /// When it was last seen to receive from its source.
    pub(super) fn streamed(&self) -> Option<Duration> {
        self.streamed
    }

    /// How often it has not answered since it did.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}
