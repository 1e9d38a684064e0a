//! Whole lives of a site, by chance: two balancers, three servers, and everything that breaks.
//!
//! At every moment: never two servers that take writes and that balancers let writes through to; never
//! more lost than a promotion said. At the end, with everything whole again: one primary, everywhere.

use fastrand::Rng;

use super::*;
use crate::postgres::record::Cause;

mod commits;
mod laws;
mod store;

/// Lives that are played.
const LIVES: u64 = 2000;

/// Steps of a life.
const STEPS: usize = 500;

const NODES: [&str; 2] = ["lb-01", "lb-02"];

/// A write in a log.
#[derive(Clone, Debug, PartialEq)]
struct Write {
    number: u64,
    timeline: u32,
    mark: Option<Mark>,
}

/// Whom a server follows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Nobody,
    Server(usize),
    Revoked,
}

#[derive(Clone, Debug)]
struct Server {
    up: bool,
    role: Role,
    timeline: u32,
    log: Vec<Write>,
    source: Source,
    started: i64,
    /// Writes that wait for a standby.
    waiting: Vec<u64>,
    /// Writes wait for a standby. It outlives a crash.
    sync: bool,
}

#[derive(Clone, Debug)]
struct Balancer {
    host_up: bool,
    machine: Option<Machine>,
    disk: Option<Record>,
    /// The record was confirmed since the host came up.
    warm: bool,
    /// Where the tables let writes through to. They outlive the daemon.
    open: Option<String>,
    /// What the machine wanted; records and gates in their order.
    orders: Vec<Action>,
    actions: Vec<Action>,
    ended: Option<Result<String, String>>,
    /// Until when its tables let packets through to the servers. It outlives the daemon.
    lease: Duration,
    /// What the store has said, and has not arrived yet.
    replies: Vec<store::Reply>,
}

struct Site {
    rng: Rng,
    now: Duration,
    sync: bool,
    /// The primary may change without a person; then there is a store.
    unattended: Option<Unattended>,
    store: store::Store,
    balancers: [Balancer; 2],
    servers: [Server; 3],
    /// Pairs that do not hear each other: balancers are 0 and 1, servers 2 to 4.
    cuts: BTreeSet<(usize, usize)>,
    messages: Vec<(usize, usize, Message)>,
    acknowledged: BTreeSet<u64>,
    next: u64,
    promotions: u32,
    failovers: u32,
    switchovers: u32,
    lost: u64,
    degradations: u32,
    restorations: u32,
    epochs: BTreeMap<u64, String>,
}

fn node(at: usize, unattended: Option<Unattended>) -> Settings {
    Settings { unattended, ..settings(NODES[at], &[NODES[1 - at]], 3) }
}

fn server_at(name: &str) -> usize {
    SERVERS.iter().position(|it| *it == name).expect("a server")
}

impl Site {
    fn new(seed: u64, unattended: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let unattended = unattended.then(|| store::rules(&mut rng));
        let sync = rng.bool();
        let server = |at: usize| Server {
            up: true,
            role: if at == 0 { Role::Primary } else { Role::Standby },
            timeline: 1,
            log: Vec::new(),
            source: if at == 0 { Source::Nobody } else { Source::Server(0) },
            started: at as i64,
            waiting: Vec::new(),
            sync,
        };
        let balancer = |at: usize| Balancer {
            host_up: true,
            machine: Some(Machine::new(node(at, unattended.clone()), None, false)),
            disk: None,
            warm: true,
            open: None,
            orders: Vec::new(),
            actions: Vec::new(),
            ended: None,
            lease: Duration::ZERO,
            replies: Vec::new(),
        };
        let mut site = Self {
            rng,
            now: Duration::from_secs(1000),
            sync,
            unattended: unattended.clone(),
            store: store::Store::default(),
            balancers: [balancer(0), balancer(1)],
            servers: [server(0), server(1), server(2)],
            cuts: BTreeSet::new(),
            messages: Vec::new(),
            acknowledged: BTreeSet::new(),
            next: 1,
            promotions: 0,
            failovers: 0,
            switchovers: 0,
            lost: 0,
            degradations: 0,
            restorations: 0,
            epochs: BTreeMap::new(),
        };
        site.calm(30);
        for at in 0..2 {
            assert_eq!(site.gate(at), Some("pg-01"), "seed {seed}: it begins well");
        }
        site
    }

    /// Everything that is whole does its work for so many rounds, in order.
    fn calm(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.pass(100);
            for at in 0..2 {
                for server in 0..3 {
                    self.look(at, server);
                }
                self.finish_all(at);
            }
            while !self.messages.is_empty() {
                self.deliver(0);
            }
            for server in 0..3 {
                self.replicate(server, usize::MAX);
            }
            self.write(self.rng.clone().usize(..2));
        }
    }

    /// Does all that the machine wants.
    fn finish_all(&mut self, at: usize) {
        while !self.balancers[at].orders.is_empty()
            || !self.balancers[at].actions.is_empty()
            || !self.balancers[at].replies.is_empty()
        {
            self.act(at, false);
            self.hear_store(at);
        }
    }

    /// Where a balancer lets writes through to.
    fn gate(&self, at: usize) -> Option<&str> {
        let balancer = &self.balancers[at];
        let passes = self.unattended.is_none() || self.now < balancer.lease;
        balancer.open.as_deref().filter(|_| balancer.host_up && passes)
    }

    fn linked(&self, one: usize, other: usize) -> bool {
        !self.cuts.contains(&(one.min(other), one.max(other)))
    }

    /// Gives the machine an event, and queues what it wants.
    fn take(&mut self, at: usize, event: Event) {
        let now = self.now;
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
                Action::Lease(until) => balancer.lease = balancer.lease.max(until),
                Action::Note(_) | Action::CutOff(_) | Action::Checkpoint(_) => {}
                action => balancer.actions.push(action),
            }
        }
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        for at in 0..2 {
            self.take(at, Event::Tick);
        }
    }

    fn sample(&self, server: usize) -> Sample {
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

    fn ask(&self, at: usize, server: usize) -> Result<Sample, Failure> {
        if !self.linked(at, server + 2) {
            Err(failure(FailureKind::Silent))
        } else if self.servers[server].up {
            Ok(self.sample(server))
        } else {
            Err(failure(FailureKind::Dead))
        }
    }

    fn look(&mut self, at: usize, server: usize) {
        let found = self.ask(at, server);
        self.take(at, Event::Seen { server: SERVERS[server].into(), asked: self.now, found });
    }

    /// The server that this one could receive from now.
    fn is_fed(&self, server: usize) -> bool {
        let Source::Server(source) = self.servers[server].source else { return false };
        let (it, from) = (&self.servers[server], &self.servers[source]);
        it.up
            && from.up
            && it.role == Role::Standby
            && self.linked(server + 2, source + 2)
            && from.log.starts_with(&it.log)
    }

    fn replicate(&mut self, server: usize, most: usize) {
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
    fn write(&mut self, at: usize) {
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

    fn deliver(&mut self, place: usize) {
        let (from, to, message) = self.messages.swap_remove(place);
        if self.linked(from, to) {
            let node = NODES[from].to_owned();
            self.take(to, Event::Heard { node, message });
        }
    }

    /// Does one thing that the machine wants.
    fn act(&mut self, at: usize, rough: bool) {
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
                    balancer.open.clone_from(&gate.open);
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
                {
                    self.servers[server].source = Source::Revoked;
                }
                let found = self.ask(at, server);
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
            Action::Propose { record, base } => self.propose(at, *record, base.as_deref(), fails),
            other => unreachable!("{other:?}"),
        }
    }

    fn promote(&mut self, at: usize, name: String, mark: Mark, from: Branch, fails: bool) {
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

    fn stop_daemon(&mut self, at: usize) {
        let balancer = &mut self.balancers[at];
        if let Some(machine) = balancer.machine.take() {
            balancer.warm = machine.is_confirmed();
        }
        balancer.orders.clear();
        balancer.actions.clear();
        balancer.replies.clear();
    }

    fn start_daemon(&mut self, at: usize) {
        let balancer = &mut self.balancers[at];
        if balancer.host_up && balancer.machine.is_none() {
            let settings = node(at, self.unattended.clone());
            balancer.machine = Some(Machine::new(settings, balancer.disk.clone(), balancer.warm));
        }
    }

    fn stop_host(&mut self, at: usize) {
        self.stop_daemon(at);
        let balancer = &mut self.balancers[at];
        (balancer.host_up, balancer.open, balancer.warm) = (false, None, false);
        balancer.lease = Duration::ZERO;
    }

    /// Something happens.
    fn step(&mut self) {
        let at = self.rng.usize(..2);
        let server = self.rng.usize(..3);
        match self.rng.u8(..100) {
            0..18 => {
                self.act(at, true);
                self.hear_store(at);
            }
            18..30 if self.unattended.is_some() && self.rng.u8(..20) == 0 => {
                if self.rng.bool() {
                    self.lose_standbys();
                } else {
                    self.incident();
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
    fn command(&mut self, at: usize) {
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

    /// Both balancers lead to the same primary, and no change is left.
    fn is_whole(&self) -> bool {
        let serves = |at: usize| {
            let record = self.balancers[at].disk.as_ref();
            record.is_some_and(|it| it.phase == Phase::Serving && it.fenced.is_empty())
        };
        (0..2).all(serves) && self.gate(0).is_some() && self.gate(0) == self.gate(1)
    }

    /// Everything is whole again, and the operator goes on with what is stuck.
    fn heal(&mut self, seed: u64) {
        self.cuts.clear();
        self.store.heal();
        for server in &mut self.servers {
            server.up = true;
        }
        for at in 0..2 {
            self.balancers[at].host_up = true;
            self.start_daemon(at);
        }
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

/// How much of everything there was.
#[derive(Clone, Copy, Debug, Default)]
struct Played {
    promotions: u64,
    switchovers: u64,
    lost: u64,
    failovers: u64,
    degradations: u64,
    restorations: u64,
}

/// Plays one life.
fn live(seed: u64, unattended: bool) -> Played {
    let mut site = Site::new(seed, unattended);
    for _ in 0..STEPS {
        site.step();
        site.check();
    }
    site.heal(seed);
    Played {
        promotions: site.promotions.into(),
        switchovers: site.switchovers.into(),
        lost: site.lost,
        failovers: site.failovers.into(),
        degradations: site.degradations.into(),
        restorations: site.restorations.into(),
    }
}

/// Plays all lives.
fn lives(unattended: bool) -> Played {
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let mut all = Played::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    let seeds = (0..LIVES).filter(|seed| seed % threads == worker);
                    let played = seeds.map(|seed| {
                        let played = std::panic::catch_unwind(|| live(seed, unattended));
                        played.unwrap_or_else(|_| panic!("seed {seed} went wrong"))
                    });
                    played.collect::<Vec<_>>()
                })
            })
            .collect();
        for worker in workers {
            for life in worker.join().expect("all lives went well") {
                all.promotions += life.promotions;
                all.switchovers += life.switchovers;
                all.lost += life.lost;
                all.failovers += life.failovers;
                all.degradations += life.degradations;
                all.restorations += life.restorations;
            }
        }
    });
    all
}

#[test]
fn no_life_has_two_primaries_or_hidden_losses() {
    let all = lives(false);
    println!("{all:?}");
    // A simulation in which nothing happens proves nothing.
    assert!(all.promotions > LIVES / 10, "{all:?}");
    assert!(all.switchovers > LIVES / 20, "{all:?}");
    assert!(all.lost > 0, "no promotion was allowed to lose anything");
    assert!(all.degradations > LIVES / 20 && all.restorations > LIVES / 100, "{all:?}");
    assert_eq!(all.failovers, 0, "nobody has asked for that");
}

#[test]
fn no_unattended_life_has_two_primaries_or_hidden_losses() {
    let all = lives(true);
    println!("{all:?}");
    assert!(all.failovers > LIVES / 20, "{all:?}");
    assert!(all.promotions > LIVES / 100, "{all:?}");
    assert!(all.switchovers > LIVES / 100, "{all:?}");
    assert!(all.degradations > LIVES / 20 && all.restorations > LIVES / 20, "{all:?}");
}
