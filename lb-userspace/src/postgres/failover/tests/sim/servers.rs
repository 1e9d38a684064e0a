//! The servers of a site: what they say, write, and copy from each other.

use super::*;

impl Site {
    pub(super) fn sample(&self, server: usize) -> Sample {
        let it = &self.servers[server];
        let streaming = self.is_fed(server);
        let receiver = streaming.then(|| Receiver {
            streaming: true,
            host: String::new(),
            heard: Some(Duration::ZERO),
        });
        // In the tests a write is one byte.
        let end = Lsn(it.log.len() as u64);
        Sample {
            role: it.role,
            timeline: it.timeline,
            received: end,
            replayed: end,
            mark: it.log.iter().rev().find_map(|write| write.mark.clone()),
            receiver: receiver.filter(|_| it.role == Role::Standby),
            revoked: it.source == Source::Revoked,
            sync: SyncRule::parse(self.names_of(server)),
            sync_names: self.names_of(server).into(),
            replicas: self.replicas_of(server),
            started: it.started,
            ..primary(0)
        }
    }

    pub(super) fn ask(&self, at: usize, server: usize) -> Result<Sample, Failure> {
        if !self.linked(at, server + 2) {
            Err(failure(FailureKind::Silent))
        } else if self.servers[server].up {
            Ok(self.sample(server))
        } else {
            Err(failure(FailureKind::Dead))
        }
    }

    pub(super) fn look(&mut self, at: usize, server: usize) {
        let found = self.ask(at, server);
        self.take(at, Event::Seen { server: SERVERS[server].into(), asked: self.now, found });
    }

    /// The server that this one could receive from now.
    pub(super) fn is_fed(&self, server: usize) -> bool {
        let Source::Server(source) = self.servers[server].source else { return false };
        let (it, from) = (&self.servers[server], &self.servers[source]);
        it.up
            && from.up
            && it.role == Role::Standby
            && self.linked(server + 2, source + 2)
            && from.log.starts_with(&it.log)
    }

    pub(super) fn replicate(&mut self, server: usize, most: usize) {
        let Source::Server(source) = self.servers[server].source else { return };
        if !self.is_fed(server) {
            return;
        }
        let from = &self.servers[source];
        let (all, timeline, begin) =
            (from.log.len(), from.timeline, self.servers[server].log.len());
        let end = all.min(begin.saturating_add(most));
        let new = from.log[begin..end].to_vec();
        let it = &mut self.servers[server];
        it.log.extend(new);
        if end == all {
            it.timeline = timeline;
        }
        let it = &self.servers[server];
        let arrived = |number: &u64| it.log.iter().rev().any(|write| write.number == *number);
        let done: Vec<u64> = self.servers[source].waiting.iter().copied().filter(arrived).collect();
        self.acknowledge(source, &done);
    }

    /// A client writes through a balancer.
    pub(super) fn write(&mut self, at: usize) {
        let Some(open) = self.gate(at) else { return };
        let server = server_at(open);
        let reaches = self.linked(at, server + 2);
        let it = &mut self.servers[server];
        if !reaches || !it.up || it.role != Role::Primary {
            return;
        }
        let number = self.next;
        self.next += 1;
        it.log.push(Write { number, timeline: it.timeline, mark: None });
        if it.sync {
            it.waiting.push(number);
        } else {
            self.acknowledged.insert(number);
        }
    }

    pub(super) fn promote(
        &mut self,
        at: usize,
        name: String,
        mark: Mark,
        from: Branch,
        fails: bool,
    ) {
        let server = server_at(&name);
        let result = if let Err(failure) = self.ask(at, server) {
            Err(PromoteError { sent: false, why: failure.reason })
        } else {
            let before = self.servers[server].clone();
            let first = before.role == Role::Standby;
            if first {
                self.check_nobody_writes(at);
                self.count_losses(at, server);
                let it = &mut self.servers[server];
                it.role = Role::Primary;
                it.timeline += 1;
                it.source = Source::Nobody;
                let run = self.balancers[at].disk.as_ref().and_then(|it| it.run.clone());
                *(match run.map(|run| run.cause) {
                    Some(Cause::Switchover) => &mut self.switchovers,
                    Some(Cause::Failure) => &mut self.failovers,
                    _ => &mut self.promotions,
                }) += 1;
            }
            let it = &mut self.servers[server];
            if it.timeline <= from.timeline {
                Err(PromoteError { sent: false, why: "it is no standby".into() })
            } else {
                if !it.log.iter().any(|write| write.mark.as_ref() == Some(&mark)) {
                    let (number, timeline) = (self.next, it.timeline);
                    self.next += 1;
                    it.log.push(Write { number, timeline, mark: Some(mark) });
                }
                let (timeline, switch) = (it.timeline, Lsn(it.log.len() as u64));
                Ok(Promotion { timeline, switch })
            }
        };
        // The answer may get lost.
        let lost = Err(PromoteError { sent: true, why: "no answer".into() });
        let result = if fails && result.is_ok() { lost } else { result };
        self.take(at, Event::Promoted { server: name, result });
    }
}
