//! What the operator commands: checked, and begun.

use std::{collections::BTreeSet, time::Duration};

use super::{Action, Command, Known, Machine, run::Work};
use crate::{
    events::Kind,
    postgres::{
        lsn::Lsn,
        record::{Branch, Cause, Phase, Record, Run},
        sample::{FailureKind, Role},
    },
};

impl Machine {
    pub(super) fn command(&mut self, command: Command, now: Duration, out: &mut Vec<Action>) {
        let busy = self.pending.is_some() || self.upkeep.is_awaited();
        if busy || !matches!(self.work, Work::Rest) {
            let busy = "a change is under way; `ballast pg status` shows it".to_owned();
            out.push(Action::Finish(Err(busy)));
            return;
        }
        let done = match command {
            Command::Promote { server, may_lose, absent, force } => {
                self.promote(server, may_lose, absent, force, now, out)
            }
            Command::Switchover { server, absent } => {
                self.switchover(server.as_deref(), absent, now, out)
            }
            Command::Degrade { absent, force } => self.degrade_by_hand(absent, force, now, out),
            Command::Restore => self.restore_by_hand(out),
            Command::Fence(server) => self.fence(&server, out),
            Command::Unfence { server, force } => self.unfence(&server, force, out),
            Command::Approve(token) => self.answer(&token, true, out),
            Command::Veto(token) => self.answer(&token, false, out),
        };
        match done {
            Ok(None) => self.commanded = true,
            Ok(Some(text)) => out.push(Action::Finish(Ok(text))),
            Err(why) => out.push(Action::Finish(Err(why))),
        }
    }

    fn known_server(&self, server: &str) -> Result<(), String> {
        if self.settings.servers.iter().any(|(name, _)| name == server) {
            return Ok(());
        }
        Err(format!("no server is called {server}; there are: {}", self.order().join(", ")))
    }

    pub(super) fn check_absent(&self, absent: &BTreeSet<String>) -> Result<(), String> {
        match absent.iter().find(|node| !self.settings.peers.contains(*node)) {
            None => Ok(()),
            Some(node) => Err(format!("no other balancer is called {node}")),
        }
    }

    fn promote(
        &mut self,
        server: Option<String>,
        may_lose: Option<u64>,
        absent: BTreeSet<String>,
        force: bool,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> Result<Option<String>, String> {
        server.as_deref().map_or(Ok(()), |server| self.known_server(server))?;
        self.check_absent(&absent)?;
        let Some(record) = self.record.clone() else {
            return self.accept(server.as_deref(), out);
        };
        if server.as_ref() == Some(&record.primary) && record.phase == Phase::Serving {
            return Err(format!("{} is the primary already", record.primary));
        }
        let mut run = match &record.run {
            // It goes on where another change stopped, with what that knew of the old primary.
            Some(old) => {
                let gone = old.controller == self.settings.node || absent.contains(&old.controller);
                if !gone && record.phase != Phase::Frozen {
                    return Err(format!(
                        "{} is changing the primary; if it is off, say so",
                        old.controller
                    ));
                }
                let controller = self.settings.node.clone();
                if old.controller != controller && old.absent.contains(&controller) && !force {
                    return Err(format!(
                        "{} was told that {controller} is off, and may have promoted a server since: look at \
                         the servers, and force this",
                        old.controller
                    ));
                }
                Run { controller, cause: Cause::Operator, stuck: None, ..old.clone() }
            }
            None => self.draft(&record, Cause::Operator, now),
        };
        run.may_lose = may_lose;
        run.absent = absent;
        if let Some(candidate) = run.candidate.clone() {
            // It may have been promoted, so another one is a second history.
            if server.as_ref().is_none_or(|server| *server == candidate) {
                let next = record.next(|next| {
                    next.phase = Phase::Promoting;
                    next.run = Some(run);
                });
                self.commit(next, None, out);
                return Ok(None);
            }
            if may_lose.is_some() || !force {
                return Err(format!(
                    "{candidate} may have been promoted already, and may have the only copy of the \
                     last writes: promote it, or force this"
                ));
            }
            run.candidate = None;
        }
        let plan = self.plan(server.as_deref(), now);
        if plan.alive && !force && record.phase == Phase::Serving {
            let full = self.servers.get(&record.primary).and_then(Known::failing);
            let cure = match full {
                Some((_, failure)) if failure.kind == FailureKind::Full => {
                    "make room on its disk, or force this"
                }
                _ => "`ballast pg switchover` loses nothing",
            };
            return Err(format!("the primary lives ({}): {cure}", plan.evidence.join("; ")));
        }
        if let Some(why) = plan.refused {
            return Err(why);
        }
        if let (Some(limit), Some(loss)) = (may_lose, plan.loss)
            && loss.at_most > limit
        {
            return Err(format!(
                "this may lose {} bytes of acknowledged writes, and {limit} were agreed to",
                loss.at_most
            ));
        }
        run.target = server;
        let from = record.primary.clone();
        self.commit(
            record.next(|next| {
                (next.phase, next.run, next.doubt) = (Phase::Fencing, Some(run), None);
            }),
            None,
            out,
        );
        out.push(self.note(Kind::Failover, format!("{from} shall be the primary no longer")));
        Ok(None)
    }

    /// The operator says which of the servers is the primary, where that could not be told.
    fn accept(
        &mut self,
        server: Option<&str>,
        out: &mut Vec<Action>,
    ) -> Result<Option<String>, String> {
        let Some(name) = server else {
            let why = self.only_primary().err().unwrap_or_default();
            return Err(format!("no primary is known yet ({why}): name the server"));
        };
        let sample = self.servers.get(name).filter(|known| known.answers()).and_then(Known::sample);
        let sample = sample.filter(|sample| sample.role == Role::Primary).ok_or_else(|| {
            format!(
                "no primary is known yet, and {name} takes no writes: promote it with pg_ctl first"
            )
        })?;
        let (system_id, timeline) = (sample.system_id, sample.timeline);
        let branch = Branch { system_id, timeline, switch: Lsn::default() };
        let record = Record::first(name, branch, sample.mark.clone());
        self.confirmed = true;
        self.commit(record, None, out);
        Ok(Some(format!("{name} is the primary")))
    }

    fn switchover(
        &mut self,
        server: Option<&str>,
        absent: BTreeSet<String>,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> Result<Option<String>, String> {
        server.map_or(Ok(()), |server| self.known_server(server))?;
        self.check_absent(&absent)?;
        let why = self.open().err();
        let Some(record) = self.record.clone().filter(|_| why.is_none()) else {
            return Err(why.unwrap_or_default());
        };
        if server == Some(&record.primary) {
            return Err(format!("{} is the primary already", record.primary));
        }
        if !self.servers.get(&record.primary).is_some_and(Known::answers) {
            return Err(format!("{} does not answer: `ballast pg promote`", record.primary));
        }
        let plan = self.plan(server, now);
        let Some(target) = plan.to else { return Err(plan.refused.unwrap_or_default()) };
        let streams = self.servers.get(&target).and_then(Known::sample);
        let streams = streams.and_then(|it| it.receiver.as_ref()).is_some_and(|it| it.streaming);
        if !streams {
            return Err(format!("{target} does not stream from {}", record.primary));
        }
        let mut run = self.draft(&record, Cause::Switchover, now);
        run.absent = absent;
        out.push(self.note(Kind::Failover, format!("{} hands over to {target}", record.primary)));
        run.target = Some(target);
        self.commit(
            record.next(|next| {
                (next.phase, next.run, next.doubt) = (Phase::Fencing, Some(run), None);
            }),
            None,
            out,
        );
        Ok(None)
    }

    /// The record, if no other balancer is about to change it.
    pub(super) fn ours(&self) -> Result<&Record, String> {
        let record = self.record.as_ref().ok_or("no primary is known yet")?;
        match &record.run {
            Some(run) if run.controller != self.settings.node && record.phase != Phase::Frozen => {
                Err(format!("{} is changing the primary", run.controller))
            }
            _ => Ok(record),
        }
    }

    fn fence(&mut self, server: &str, out: &mut Vec<Action>) -> Result<Option<String>, String> {
        self.known_server(server)?;
        let record = self.ours()?;
        let next = record.next(|next| {
            next.fenced.insert(server.to_owned());
        });
        out.push(self.note(Kind::Wish, format!("{server} gets no packet, by command")));
        self.commit(next, None, out);
        Ok(Some(format!("{server} gets no packet until `ballast pg unfence {server}`")))
    }

    fn unfence(
        &mut self,
        server: &str,
        force: bool,
        out: &mut Vec<Action>,
    ) -> Result<Option<String>, String> {
        self.known_server(server)?;
        let record = if force {
            self.record.as_ref().ok_or("no primary is known yet")?
        } else {
            self.ours()?
        };
        let changing = record.phase != Phase::Serving && record.primary == server;
        if changing && record.phase != Phase::Fencing && !force {
            let run = record.run.as_ref();
            let candidate = run.and_then(|run| run.candidate.as_deref()).unwrap_or_default();
            return Err(format!(
                "{candidate} may have been promoted: if {server} goes on, there may be two histories. \
                 Force this, or go on with `ballast pg promote {candidate}`"
            ));
        }
        let next = record.next(|next| {
            next.fenced.remove(server);
            if changing {
                (next.phase, next.run) = (Phase::Serving, None);
            }
        });
        // Who asks for this has looked.
        self.confirmed = true;
        out.push(self.note(Kind::Wish, format!("{server} is fenced no longer, by command")));
        self.commit(next, None, out);
        Ok(Some(format!("{server} is fenced no longer")))
    }
}
