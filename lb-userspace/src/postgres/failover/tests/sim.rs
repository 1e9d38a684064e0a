//! Whole lives of a site, by chance: two balancers, three servers, and everything that breaks.
//!
//! At every moment: never two servers that take writes and that balancers let writes through to; never
//! more lost than a promotion said. At the end, with everything whole again: one primary, everywhere.

use fastrand::Rng;

use self::mutants::{LATE, Mutant};
use super::*;
use crate::postgres::record::Cause;

mod chance;
mod commits;
mod daemons;
mod laws;
mod mutants;
mod servers;
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
    /// What is wrong with the machines, on purpose.
    mutant: Option<Mutant>,
}

fn node(at: usize, unattended: Option<Unattended>) -> Settings {
    Settings { unattended, ..settings(NODES[at], &[NODES[1 - at]], 3) }
}

fn server_at(name: &str) -> usize {
    SERVERS.iter().position(|it| *it == name).expect("a server")
}

impl Site {
    fn new(seed: u64, unattended: bool, mutant: Option<Mutant>) -> Self {
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
            mutant,
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

    fn linked(&self, one: usize, other: usize) -> bool {
        !self.cuts.contains(&(one.min(other), one.max(other)))
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        for at in 0..2 {
            self.take(at, Event::Tick);
        }
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
fn live(seed: u64, unattended: bool, mutant: Option<Mutant>) -> Played {
    let mut site = Site::new(seed, unattended, mutant);
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
                        let played = std::panic::catch_unwind(|| live(seed, unattended, None));
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
