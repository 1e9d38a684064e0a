//! The store of an unattended site: a record that a majority keeps, and how it fails.

use super::*;

/// The store.
#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    record: Option<Record>,
    down: bool,
    /// Balancers that do not reach it.
    cut: [bool; 2],
}

/// What the store has said.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// To be given to the machine.
    Event(Box<Event>),
    /// The record is there; it is kept, and then given to the machine.
    Stored(Box<Record>),
}

impl Store {
    fn answers(&self, at: usize) -> bool {
        !self.down && !self.cut[at]
    }

    pub(super) fn heal(&mut self) {
        (self.down, self.cut) = (false, [false; 2]);
    }

    /// Something happens to it.
    pub(super) fn suffer(&mut self, rng: &mut Rng) {
        match rng.u8(..4) {
            0 => self.down = true,
            1 => self.cut[rng.usize(..2)] = true,
            _ => self.heal(),
        }
    }

    /// As [`crate::postgres::etcd::Etcd::propose`] does.
    /// `blind`: it compares nothing.
    fn propose(
        &mut self,
        record: &Record,
        base: Option<&Record>,
        blind: bool,
    ) -> Result<(), Box<Record>> {
        let may = match &self.record {
            None => true,
            Some(_) if blind => true,
            Some(found) => {
                found == record
                    || Some(found) == base
                    || base.is_some_and(|base| found.place() < base.place())
            }
        };
        if !may {
            return Err(Box::new(self.record.clone().expect("it is there")));
        }
        self.record = Some(record.clone());
        Ok(())
    }
}

/// Some rules.
pub(super) fn rules(rng: &mut Rng) -> Unattended {
    let veto = rng.bool().then(|| Duration::from_secs(rng.u64(..6)));
    let max_loss = [0, 2, 1000][rng.usize(..3)];
    let available = rng.bool().then(|| Duration::from_millis(rng.u64(..3000)));
    Unattended { veto, max_loss, available, seed: rng.u64(..) }
}

impl Site {
    /// A balancer does what is due, in order.
    pub(super) fn turn(&mut self, at: usize) {
        for server in 0..3 {
            self.look(at, server);
        }
        self.finish_all(at);
    }

    /// The primary of a site that was whole goes down, perhaps with something else, and the balancers
    /// have some seconds for it, in which messages and answers come late or not at all.
    pub(super) fn incident(&mut self) {
        self.mend();
        self.calm(10);
        let Some(primary) = self.gate(0).map(server_at) else { return };
        if self.rng.u8(..4) == 0 {
            // Only some do not reach it.
            for other in 0..5 {
                if other != primary + 2 && self.rng.bool() {
                    self.cuts.insert((other.min(primary + 2), other.max(primary + 2)));
                }
            }
        } else {
            self.servers[primary].up = false;
        }
        let at = self.rng.usize(..2);
        match self.rng.u8(..8) {
            0 => self.stop_daemon(at),
            1 => self.stop_host(at),
            2 => drop(self.cuts.insert((0, 1))),
            3 => self.store.suffer(&mut self.rng),
            _ => {}
        }
        for _ in 0..self.rng.usize(20..90) {
            let mended = self.rng.usize(..40);
            if let Some(pair) = self.cuts.iter().nth(mended).copied() {
                self.cuts.remove(&pair);
            }
            self.go_on_roughly(primary);
        }
    }

    /// One balancer reaches the primary and the other the standbys, and neither the other's: the one may let commits go on
    /// without standbys, and the other may promote one. Perhaps the primary and its standbys hear each other again, or
    /// the first does not reach the store.
    pub(super) fn contest(&mut self) {
        self.mend();
        self.calm(10);
        let Some(primary) = self.gate(0).map(server_at) else { return };
        let at = self.rng.usize(..2);
        self.cuts.extend([(0, 1), (1 - at, primary + 2)]);
        let way = |other: usize| (other.min(primary) + 2, other.max(primary) + 2);
        let standbys = (0..3).filter(|it| *it != primary);
        self.cuts.extend(standbys.clone().map(way));
        self.store.cut[at] = self.rng.u8(..3) == 0;
        let rounds = self.rng.usize(20..70);
        let back = self.rng.usize(..2 * rounds);
        for round in 0..rounds {
            if round == back {
                for other in standbys.clone() {
                    self.cuts.remove(&way(other));
                }
            }
            self.go_on_roughly(primary);
        }
    }

    pub(super) fn read_store(&mut self, at: usize, fails: bool) {
        let found = if self.store.answers(at) && !fails {
            Ok(self.store.record.clone().map(Box::new))
        } else {
            Err("no answer".into())
        };
        let reply = Reply::Event(Box::new(Event::Read { asked: self.now, found }));
        self.balancers[at].replies.push(reply);
    }

    pub(super) fn propose(
        &mut self,
        at: usize,
        record: Record,
        base: Option<&Record>,
        fails: bool,
    ) {
        let revision = record.revision;
        let unstored = || Reply::Event(Box::new(Event::Unstored(revision, "no answer".into())));
        let reply = if !self.store.answers(at) || (fails && self.rng.bool()) {
            unstored()
        } else {
            match self.store.propose(&record, base, self.mutant == Some(Mutant::ComparesNothing)) {
                // The answer may get lost.
                Ok(()) if fails => unstored(),
                Ok(()) => Reply::Stored(Box::new(record)),
                Err(theirs) => Reply::Event(Box::new(Event::Conflict(revision, theirs))),
            }
        };
        self.balancers[at].replies.push(reply);
    }

    /// One answer of the store arrives.
    pub(super) fn hear_store(&mut self, at: usize) {
        if self.balancers[at].replies.is_empty() {
            return;
        }
        let place = self.rng.usize(..self.balancers[at].replies.len());
        match self.balancers[at].replies.swap_remove(place) {
            Reply::Event(event) => self.take(at, *event),
            Reply::Stored(record) => {
                let revision = record.revision;
                let kept = self.balancers[at].disk.as_ref();
                if kept.is_some_and(|kept| kept.place() > record.place()) {
                    // Another balancer has told what came after.
                    return;
                }
                self.check_record(at, &record);
                self.balancers[at].disk = Some(*record);
                self.take(at, Event::Committed(revision));
            }
        }
    }

    /// A person answers, if anything is asked. Says whether that was so.
    pub(super) fn answer(&mut self, at: usize) -> bool {
        let doubt = self.balancers[at].disk.as_ref().and_then(|it| it.doubt.clone());
        let Some(doubt) = doubt else { return false };
        match self.rng.u8(..4) {
            0 => self.take(at, Event::Command(Command::Veto(doubt.veto))),
            1 => self.take(at, Event::Command(Command::Approve(doubt.approve))),
            _ => {}
        }
        true
    }
}
