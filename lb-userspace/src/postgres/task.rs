//! The task of one database: owns its failover machine, does what that wants, and puts the routes into
//! force.
//!
//! Everything that the machine wants to be kept is on the disk before the machine hears that it is.
//! Cancelling the task loses nothing: the next one goes on from the record.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use super::{
    databases::Setup,
    etcd::Etcd,
    failover::{self, Action, Command, Event, Machine, Unattended},
    losses as reports,
    monitor::{self, Detail, Found, Link},
    record::Record,
    route::Lags,
    status::Database,
    store::{self, Kept},
};
use crate::{
    clock,
    config::{Durability, Postgres, Promotion},
    control::{kernel::Gates, verdict::Appointed},
    events::Note,
};

mod act;
mod handle;
mod look;
mod losses;
mod park;
mod routes;
mod show;

pub use self::handle::Handle;
use self::{handle::Ask, losses::Gathered};

/// Time between two ticks of the machine.
const TICK: Duration = Duration::from_millis(100);

/// After its start the task waits so long for the first word of each server, and touches no table.
const FIRST_ROUND: Duration = Duration::from_millis(1500);

/// What waits for the task. A monitor whose report does not fit waits, which delays its next look.
const QUEUED: usize = 64;

/// The task's own state.
#[derive(Debug)]
pub struct Task {
    setup: Setup,
    config: Postgres,
    machine: Machine,
    links: BTreeMap<String, Arc<Link>>,
    /// Where a majority keeps the record, if it does.
    store: Option<Arc<Etcd>>,
    /// What the store has taken, and the disk has not yet.
    stored: mpsc::Sender<Box<Record>>,
    /// The leases of the servers.
    gates: Arc<dyn Gates>,
    monitors: Vec<JoinHandle<()>>,
    /// What was begun ends here.
    ended: mpsc::Sender<Event>,
    /// Who waits for the end of a command.
    answer: Option<oneshot::Sender<Result<String, String>>>,
    lags: Lags,
    details: BTreeMap<String, Detail>,
    troubles: BTreeMap<String, String>,
    /// What the tables say.
    applied: BTreeMap<String, (Appointed, Appointed)>,
    /// The gate that the tables do not say yet.
    gate: Option<u64>,
    /// Who may have lost writes.
    gathered: Gathered,
    /// New connections of writers wait.
    parked: bool,
    /// When the task began, on the monotonic clock.
    began: Duration,
    /// The last try to write the tables failed; why.
    behind: Option<String>,
    /// The record on the disk is marked as the latest.
    marked: bool,
    status: watch::Sender<Database>,
}

impl Task {
    /// Begins with the record on the disk. It is an error if that makes no sense; why.
    pub async fn start(setup: &Setup, config: Postgres) -> Result<Handle, String> {
        let (directory, name) = (setup.state_dir.clone(), config.name.clone());
        let read = move || {
            let kept = store::load(&directory, &name)?;
            let epoch = kept.as_ref().map(|kept| kept.record.epoch);
            let report = epoch.and_then(|epoch| reports::load(&directory, &name, epoch));
            Ok::<_, String>((kept, report))
        };
        let (kept, report) =
            tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())??;
        let servers = config.servers.iter();
        let settings = failover::Settings {
            name: config.name.clone(),
            node: setup.node.clone(),
            peers: setup.peers.clone(),
            servers: servers
                .clone()
                .map(|server| (server.name.clone(), server.address.ip()))
                .collect::<Vec<(String, IpAddr)>>(),
            unattended: unattended(&config),
        };
        let warm = kept.as_ref().is_some_and(Kept::is_warm);
        let machine = Machine::new(settings, kept.map(|kept| kept.record), warm);
        let links =
            servers.map(|server| (server.name.clone(), Arc::new(Link::new(&config, server))));
        let links: BTreeMap<_, _> = links.collect();
        let (found_sender, found) = mpsc::channel(QUEUED);
        let monitors = links
            .values()
            .map(|link| monitor::watch(Arc::clone(link), config.interval, found_sender.clone()));
        let monitors = monitors.collect();
        let (ask_sender, asks) = mpsc::channel(QUEUED);
        let (ended, ends) = mpsc::channel(QUEUED);
        let (stored_sender, stored) = mpsc::channel(QUEUED);
        let status = watch::Sender::new(Database::default());
        let task = Self {
            setup: setup.clone(),
            store: config.consensus.as_ref().map(|it| Arc::new(Etcd::new(it, &config.name))),
            stored: stored_sender,
            gates: setup.control.gates(),
            config,
            machine,
            links,
            monitors,
            ended,
            answer: None,
            lags: Lags::default(),
            details: BTreeMap::new(),
            troubles: BTreeMap::new(),
            applied: BTreeMap::new(),
            gate: None,
            gathered: Gathered::new(report),
            parked: false,
            began: clock::monotonic(),
            behind: None,
            marked: warm,
            status,
        };
        let handle = Handle { asks: ask_sender, status: task.status.subscribe() };
        tokio::spawn(task.run(asks, found, ends, stored));
        Ok(handle)
    }

    async fn run(
        mut self,
        mut asks: mpsc::Receiver<Ask>,
        mut found: mpsc::Receiver<Found>,
        mut ends: mpsc::Receiver<Event>,
        mut stored: mpsc::Receiver<Box<Record>>,
    ) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // What a change waits for comes first.
                biased;
                Some(event) = ends.recv() => self.take(event).await,
                Some(record) = stored.recv() => {
                    // The store was slow, and another balancer has told what came after: that is kept.
                    if self.machine.record().is_none_or(|it| it.place() <= record.place()) {
                        let event = self.keep(*record).await;
                        self.take(event).await;
                    }
                }
                ask = asks.recv() => match ask {
                    Some(Ask::Command(command, answer)) => {
                        if let Some(why) = self.unheard(&command) {
                            let _ = answer.send(Err(why));
                            continue;
                        }
                        // A second one is refused by the machine at once, so the first goes on.
                        let first = self.answer.replace(answer);
                        self.take(Event::Command(command)).await;
                        if let Some(first) = first {
                            self.answer.get_or_insert(first);
                        }
                    }
                    Some(Ask::Plan(server, answer)) => {
                        let plan = self.machine.plan(server.as_deref(), clock::monotonic());
                        let _ = answer.send(plan);
                    }
                    Some(Ask::Try(command, answer)) => {
                        let _ = answer.send(self.would(command));
                    }
                    Some(Ask::Hear(node, message)) => {
                        self.take(Event::Heard { node, message }).await;
                    }
                    Some(Ask::InForce(answer)) => {
                        let _ = answer.send(self.in_force());
                    }
                    Some(Ask::Stop(answer)) => {
                        let _ = answer.send(());
                        return;
                    }
                    None => return,
                },
                Some(found) = found.recv() => self.see(found).await,
                _ = ticks.tick() => {
                    self.watch_connections();
                    self.take(Event::Tick).await;
                }
            }
            self.show();
        }
    }

    /// Why a change cannot begin: a balancer that must close its gate is silent. Without this look, no
    /// write would pass until that is found out.
    fn unheard(&self, command: &Command) -> Option<String> {
        let absent = match command {
            // The gate of a silent balancer closes by itself.
            Command::Promote { .. } | Command::Degrade { .. } if self.store.is_some() => {
                return None;
            }
            Command::Promote { absent, .. }
            | Command::Switchover { absent, .. }
            | Command::Degrade { absent, .. } => absent,
            _ => return None,
        };
        // The first of all records says who the primary is, and changes nothing.
        self.machine.record()?;
        let asked = self.setup.peers.difference(absent);
        let silent: Vec<_> = asked
            .filter_map(|node| Some((node.as_str(), self.setup.channel.silent(node)?)))
            .collect();
        let (names, whys): (Vec<_>, Vec<_>) = silent.into_iter().unzip();
        (!names.is_empty()).then(|| {
            format!(
                "{}, so nobody knows whether writes pass there. If it is off, say so: --peer-is-down {}",
                whys.join("; "),
                names.join(" --peer-is-down ")
            )
        })
    }

    /// Plays a command through on a copy of the machine.
    fn would(&self, command: Command) -> Result<(), String> {
        let mut machine = self.machine.clone();
        let actions = machine.handle(Event::Command(command), clock::monotonic());
        let refused = actions.into_iter().find_map(|action| match action {
            Action::Finish(Err(why)) => Some(why),
            _ => None,
        });
        refused.map_or(Ok(()), Err)
    }

    fn note(&self, note: Note) {
        self.setup.timeline.add(note.service(&self.config.name));
    }

    /// Gives the machine an event, and does what it wants, until it wants no more.
    async fn take(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        loop {
            while let Some(event) = events.pop_front() {
                for action in self.machine.handle(event, clock::monotonic()) {
                    events.extend(self.act(action).await);
                }
            }
            match self.route().await {
                Some(event) => events.push_back(event),
                None => break,
            }
        }
        if !self.marked
            && self.machine.is_confirmed()
            && let Some(record) = self.machine.record()
        {
            // If it cannot be written, a restart asks the other balancers.
            self.marked = self.write(Kept::new(record.clone(), true)).await.is_ok();
        }
    }
}

/// How the primary may change without a person.
fn unattended(config: &Postgres) -> Option<Unattended> {
    let veto = match config.promotion {
        Promotion::Manual => return None,
        Promotion::Veto(time) => Some(time),
        Promotion::Automatic => None,
    };
    let mut seed = [0; 8];
    // The kernel's generator does not fail once it has been seeded, which it is at boot.
    SystemRandom::new().fill(&mut seed).expect("random numbers of the kernel");
    let available = match config.durability {
        Durability::Strict => None,
        Durability::Available(after) => Some(after),
    };
    Some(Unattended { veto, max_loss: config.max_loss, available, seed: u64::from_ne_bytes(seed) })
}

impl Drop for Task {
    fn drop(&mut self) {
        for monitor in &self.monitors {
            monitor.abort();
        }
    }
}
