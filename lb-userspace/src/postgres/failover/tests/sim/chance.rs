//! What happens to a site, by chance; and how it is made whole again.

use super::*;

impl Site {
    /// Something happens.
    pub(super) fn step(&mut self) {
        let at = self.rng.usize(..2);
        let server = self.rng.usize(..3);
        match self.rng.u8(..100) {
            0..18 => {
                self.act(at, true);
                self.hear_store(at);
            }
            18..30 if self.unattended.is_some() && self.rng.u8(..20) == 0 => {
                match self.rng.u8(..3) {
                    0 => self.lose_standbys(),
                    1 => self.contest(),
                    _ => self.incident(),
                }
            }
            18..30 if self.unattended.is_some() && self.rng.bool() => self.turn(at),
            18..30 => self.look(at, server),
            30..42 => self.write(at),
            42..54 => {
                let most = self.rng.usize(1..5);
                self.replicate(server, most);
            }
            54..66 if !self.messages.is_empty() => {
                let place = self.rng.usize(..self.messages.len());
                if self.rng.u8(..10) == 0 {
                    self.messages.swap_remove(place);
                } else {
                    self.deliver(place);
                }
            }
            66..80 => {
                let millis = [20, 100, 300, 1100][self.rng.usize(..4)];
                self.pass(millis);
            }
            80..83 => {
                let it = &mut self.servers[server];
                it.up = !it.up;
                if it.up {
                    it.started += 10;
                    // A crash ends what waited; the writes are there.
                    it.waiting.clear();
                }
            }
            83..85 => {
                let (one, other) = (self.rng.usize(..5), self.rng.usize(..5));
                let pair = (one.min(other), one.max(other));
                if one != other && !self.cuts.remove(&pair) {
                    self.cuts.insert(pair);
                }
            }
            85 => {
                self.cuts.clear();
                self.store.heal();
            }
            86 => self.stop_daemon(at),
            87..90 => self.start_daemon(at),
            90 => self.stop_host(at),
            91 => self.balancers[at].host_up = true,
            92 if self.unattended.is_some() => self.store.suffer(&mut self.rng),
            92..98 => self.command(at),
            _ => {
                for server in 0..3 {
                    self.servers[server].up = true;
                }
            }
        }
    }

    /// An operator does something, and says the truth about balancers that are off.
    pub(super) fn command(&mut self, at: usize) {
        let other = 1 - at;
        let off = !self.balancers[other].host_up;
        let absent: BTreeSet<String> = off.then(|| NODES[other].to_owned()).into_iter().collect();
        let server = SERVERS[self.rng.usize(..3)].to_owned();
        let named = self.rng.bool().then(|| server.clone());
        if self.unattended.is_some() && self.answer(at) {
            return;
        }
        let command = match self.rng.u8(..13) {
            0..5 => {
                let may_lose = [Some(0), Some(3), None][self.rng.usize(..3)];
                Command::Promote { server: named, may_lose, absent, force: self.rng.bool() }
            }
            5..8 => Command::Switchover { server: named, absent },
            8 => Command::Fence(server),
            9 | 10 => Command::Degrade { absent, force: self.rng.bool() },
            11 => Command::Restore,
            _ => Command::Unfence { server, force: false },
        };
        // To force another candidate than the one that may be promoted is to give up on its writes.
        let record = self.balancers[at].disk.as_ref();
        let stuck = record.and_then(|it| it.run.as_ref()).is_some_and(|it| it.candidate.is_some());
        // `unfence` says that the record is right, which only one who has looked may say.
        let unsure = self.balancers[at].machine.as_ref().is_none_or(|it| !it.is_confirmed());
        let rash = match &command {
            _ if unsure => true,
            Command::Promote { force, .. } => *force && (stuck || self.is_behind(at)),
            // Nor does somebody who has looked let commits go on at a server that the other has replaced.
            Command::Degrade { .. } => self.is_behind(at),
            Command::Unfence { .. } => stuck,
            Command::Switchover { .. }
            | Command::Fence(_)
            | Command::Restore
            | Command::Approve(_)
            | Command::Veto(_) => false,
        };
        if !rash {
            self.take(at, Event::Command(command));
        }
    }

    /// Everything is up, and hears everything.
    pub(super) fn mend(&mut self) {
        self.cuts.clear();
        self.store.heal();
        for server in &mut self.servers {
            server.up = true;
        }
        for at in 0..2 {
            self.balancers[at].host_up = true;
            self.start_daemon(at);
        }
    }

    /// Both balancers do some of what is due, while messages and answers come late or not at all. They look at this
    /// server each time.
    pub(super) fn go_on_roughly(&mut self, watched: usize) {
        let millis = [50, 100, 200, 300][self.rng.usize(..4)];
        self.pass(millis);
        for at in 0..2 {
            for server in 0..3 {
                if server == watched || self.rng.bool() {
                    self.look(at, server);
                }
            }
            for _ in 0..4 {
                self.act(at, true);
                self.hear_store(at);
            }
            self.write(at);
        }
        for _ in 0..6.min(self.messages.len()) {
            let place = self.rng.usize(..self.messages.len());
            self.deliver(place);
        }
        let server = self.rng.usize(..3);
        self.replicate(server, 3);
        self.check();
    }

    /// Both balancers lead to the same primary, and no change is left.
    pub(super) fn is_whole(&self) -> bool {
        let serves = |at: usize| {
            let record = self.balancers[at].disk.as_ref();
            record.is_some_and(|it| it.phase == Phase::Serving && it.fenced.is_empty())
        };
        (0..2).all(serves) && self.gate(0).is_some() && self.gate(0) == self.gate(1)
    }

    /// Everything is whole again, and the operator goes on with what is stuck.
    pub(super) fn heal(&mut self, seed: u64) {
        self.mend();
        // Without a person it may take several leases.
        for _ in 0..if self.unattended.is_some() { 16 } else { 4 } {
            self.calm(35);
            self.check();
            if self.unattended.is_some() && self.is_whole() {
                break;
            }
            for at in 0..2 {
                let Some(record) = self.balancers[at].disk.clone() else { continue };
                for server in record.fenced {
                    self.take(at, Event::Command(Command::Unfence { server, force: false }));
                    self.calm(10);
                }
                if record.phase == Phase::Frozen {
                    let why = record.run.and_then(|run| run.stuck);
                    assert!(why.is_some(), "seed {seed}: it is stuck and does not say why");
                    self.take(
                        at,
                        Event::Command(Command::Promote {
                            server: None,
                            may_lose: None,
                            absent: BTreeSet::new(),
                            force: false,
                        }),
                    );
                    self.calm(40);
                }
            }
        }
        let open: Vec<_> = (0..2).map(|at| self.gate(at).map(str::to_owned)).collect();
        let why: Vec<_> =
            self.balancers.iter().map(|it| it.machine.as_ref().unwrap().open()).collect();
        assert!(
            open[0].is_some() && open[0] == open[1],
            "seed {seed}: {why:?}\n{:#?}\n{:#?}",
            self.balancers[0].machine,
            self.balancers[1].machine
        );
        let primary = server_at(open[0].as_ref().unwrap());
        let has: BTreeSet<u64> = self.servers[primary].log.iter().map(|it| it.number).collect();
        let lost: Vec<_> = self.acknowledged.difference(&has).collect();
        assert!(lost.is_empty(), "seed {seed}: nobody said that these are lost: {lost:?}");
        self.check_commits(seed);
    }
}
