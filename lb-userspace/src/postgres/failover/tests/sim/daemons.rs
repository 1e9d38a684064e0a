//! The balancers of a site: what their machines are told, and what is done for them.

use super::*;

impl Site {
    /// Does all that the machine wants.
    pub(super) fn finish_all(&mut self, at: usize) {
        while !self.balancers[at].orders.is_empty()
            || !self.balancers[at].actions.is_empty()
            || !self.balancers[at].replies.is_empty()
        {
            self.act(at, false);
            self.hear_store(at);
        }
    }

    /// Where a balancer lets writes through to.
    pub(super) fn gate(&self, at: usize) -> Option<&str> {
        let balancer = &self.balancers[at];
        let passes = self.unattended.is_none() || self.now < balancer.lease;
        balancer.open.as_deref().filter(|_| balancer.host_up && passes)
    }

    /// Gives the machine an event, and queues what it wants.
    pub(super) fn take(&mut self, at: usize, event: Event) {
        let now = self.now;
        let mutant = self.mutant;
        let balancer = &mut self.balancers[at];
        let Some(machine) = &mut balancer.machine else { return };
        for action in machine.handle(event, now) {
            match action {
                Action::Commit(_) | Action::Gate(_) => balancer.orders.push(action),
                Action::Tell { node, message } => {
                    let to = NODES.iter().position(|it| *it == node).expect("a balancer");
                    self.messages.push((at, to, message));
                }
                Action::Finish(result) => balancer.ended = Some(result),
                Action::Lease(until) => {
                    let late =
                        if mutant == Some(Mutant::LeasesLast) { LATE } else { Duration::ZERO };
                    balancer.lease = balancer.lease.max(until + late);
                }
                Action::Note(_) | Action::CutOff(_) | Action::Checkpoint(_) => {}
                action => balancer.actions.push(action),
            }
        }
    }

    pub(super) fn deliver(&mut self, place: usize) {
        let (from, to, message) = self.messages.swap_remove(place);
        if self.linked(from, to) {
            let node = NODES[from].to_owned();
            self.take(to, Event::Heard { node, message });
        }
    }

    /// Does one thing that the machine wants.
    pub(super) fn act(&mut self, at: usize, rough: bool) {
        let fails = rough && self.rng.u8(..20) == 0;
        let balancer = &mut self.balancers[at];
        let ordered = balancer.actions.is_empty() || self.rng.bool();
        if !balancer.orders.is_empty() && ordered {
            match balancer.orders.remove(0) {
                Action::Commit(record) if fails => {
                    let event = Event::NotCommitted(record.revision, "no space".into());
                    self.take(at, event);
                }
                Action::Commit(record) => {
                    let revision = record.revision;
                    self.check_record(at, &record);
                    self.balancers[at].disk = Some(*record);
                    self.take(at, Event::Committed(revision));
                }
                Action::Gate(gate) => {
                    let opens = gate.open.is_some();
                    if opens || self.mutant != Some(Mutant::ConfirmsEarly) || self.rng.bool() {
                        balancer.open.clone_from(&gate.open);
                    }
                    self.take(at, Event::Gated(gate.number));
                }
                _ => unreachable!("only these have an order"),
            }
            return;
        }
        if balancer.actions.is_empty() {
            return;
        }
        let action = balancer.actions.swap_remove(self.rng.usize(..balancer.actions.len()));
        match action {
            Action::Revoke(name) => {
                let server = server_at(&name);
                if self.ask(at, server).is_ok()
                    && self.servers[server].role == Role::Standby
                    && !fails
                    && self.mutant != Some(Mutant::RevokesNobody)
                {
                    self.servers[server].source = Source::Revoked;
                }
                let mut found = self.ask(at, server);
                if let (Ok(found), Some(Mutant::RevokesNobody)) = (&mut found, self.mutant) {
                    (found.revoked, found.receiver) = (true, None);
                }
                self.take(at, Event::Revoked { server: name, found });
            }
            Action::Follow { standby, primary } => {
                let server = server_at(&standby);
                if self.ask(at, server).is_ok() && !fails {
                    self.servers[server].source = Source::Server(server_at(&primary));
                }
            }
            Action::Quiesce(name) => {
                let result = self.ask(at, server_at(&name)).map(|it| it.received);
                let result = result.map_err(|failure| failure.reason);
                self.take(
                    at,
                    Event::Quiesced(result.and_then(|end| {
                        if fails { Err("a transaction is open".into()) } else { Ok(end) }
                    })),
                );
            }
            Action::CatchUp { server, end } => {
                let place = server_at(&server);
                self.replicate(place, usize::MAX);
                let result = match self.ask(at, place) {
                    Ok(sample) if sample.received >= end => Ok(()),
                    Ok(_) => Err("it does not come".into()),
                    Err(failure) => Err(failure.reason),
                };
                self.take(at, Event::CaughtUp(result));
            }
            Action::SetSync { server, names, need } => {
                self.set_sync(at, server, names, need, fails);
            }
            Action::Promote { server, mark, from } => self.promote(at, server, mark, from, fails),
            Action::Read => self.read_store(at, fails),
            Action::Propose { record, base } => {
                self.set_before_kept(&record, base.as_deref());
                self.propose(at, *record, base.as_deref(), fails);
            }
            other => unreachable!("{other:?}"),
        }
    }

    pub(super) fn stop_daemon(&mut self, at: usize) {
        let balancer = &mut self.balancers[at];
        if let Some(machine) = balancer.machine.take() {
            balancer.warm = machine.is_confirmed();
        }
        balancer.orders.clear();
        balancer.actions.clear();
        balancer.replies.clear();
    }

    pub(super) fn start_daemon(&mut self, at: usize) {
        let balancer = &mut self.balancers[at];
        if balancer.host_up && balancer.machine.is_none() {
            let settings = node(at, self.unattended.clone());
            balancer.machine = Some(Machine::new(settings, balancer.disk.clone(), balancer.warm));
        }
    }

    pub(super) fn stop_host(&mut self, at: usize) {
        self.stop_daemon(at);
        let balancer = &mut self.balancers[at];
        (balancer.host_up, balancer.open, balancer.warm) = (false, None, false);
        balancer.lease = Duration::ZERO;
    }
}
