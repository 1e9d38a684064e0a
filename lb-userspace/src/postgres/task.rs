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
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    databases::Setup,
    etcd::{self, Etcd},
    failover::{self, Action, Command, Event, Machine, Message, Plan, Unattended},
    losses as reports,
    monitor::{self, Detail, Found, Link},
    peers::Word,
    record::Record,
    route::{self, Lags, Rules, View},
    sample::Role,
    status::Database,
    store::{self, Kept},
    work,
};
use crate::{
    clock,
    config::{Access, Durability, Postgres, Promotion},
    control::{
        kernel::Gates,
        reset::DEFAULT_RATE,
        task::{Appointment, ResetError},
        verdict::Appointed,
    },
    events::{Kind, Note},
};

mod losses;
mod park;
mod show;

use self::losses::Gathered;

/// Time between two ticks of the machine.
const TICK: Duration = Duration::from_millis(100);

/// After its start the task waits so long for the first word of each server, and touches no table.
const FIRST_ROUND: Duration = Duration::from_millis(1500);

/// A fence that is not in force after so long is told to be late, and how often that is looked at.
const IN_FORCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// What waits for the task. A monitor whose report does not fit waits, which delays its next look.
const QUEUED: usize = 64;

/// What others ask of the task.
#[derive(Debug)]
enum Ask {
    Command(Command, oneshot::Sender<Result<String, String>>),
    Plan(Option<String>, oneshot::Sender<Plan>),
    Try(Command, oneshot::Sender<Result<(), String>>),
    Hear(String, Message),
    InForce(oneshot::Sender<Result<(), String>>),
    Stop(oneshot::Sender<()>),
}

/// Commands the task; cheap to copy.
#[derive(Clone, Debug)]
pub struct Handle {
    asks: mpsc::Sender<Ask>,
    status: watch::Receiver<Database>,
}

impl Handle {
    /// How the database stands.
    pub fn status(&self) -> Database {
        self.status.borrow().clone()
    }

    /// What a promotion would do now.
    pub async fn plan(&self, server: Option<String>) -> Result<Plan, String> {
        self.ask(|answer| Ask::Plan(server, answer)).await
    }

    /// Whether a command would be begun now, or why not. Nothing is done.
    pub async fn would(&self, command: Command) -> Result<(), String> {
        self.ask(|answer| Ask::Try(command, answer)).await?
    }

    /// Does what the operator wants, and answers when it is done.
    pub async fn command(&self, command: Command) -> Result<String, String> {
        let fences = matches!(command, Command::Fence(_));
        let done = self.ask(|answer| Ask::Command(command, answer)).await??;
        if fences {
            let late = |why| format!("it is decided, and not in force yet: {why}");
            self.wait_in_force().await.map_err(late)?;
        }
        Ok(done)
    }

    /// Waits until the kernel's tables say what was decided. Those of a daemon that has just started are its
    /// predecessor's for a moment.
    async fn wait_in_force(&self) -> Result<(), String> {
        let until = clock::monotonic() + IN_FORCE;
        loop {
            match self.ask(Ask::InForce).await? {
                Err(why) if clock::monotonic() >= until => return Err(why),
                Err(_) => sleep(LOOK).await,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Another balancer says something.
    pub async fn hear(&self, node: String, message: Message) {
        // It is said again, if it matters.
        let _ = self.asks.send(Ask::Hear(node, message)).await;
    }

    /// Ends the task. The kernel's tables stay as they are.
    pub async fn stop(&self) {
        // If it has ended already, that is as good.
        let _ = self.ask(Ask::Stop).await;
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, String> {
        let (sender, answer) = oneshot::channel();
        let ended = || "the task of the database has ended".to_owned();
        self.asks.send(ask(sender)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }
}

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

    async fn see(&mut self, found: Found) {
        let Found { server, asked, sample, detail, trouble } = found;
        let record = self.machine.record();
        let primary = record.is_some_and(|record| record.primary == server);
        if let Ok(sample) = &sample
            && primary == (sample.role == Role::Primary)
        {
            self.lags.see(&server, sample, primary, self.config.max_lag, asked);
        }
        if let Some(detail) = detail {
            self.note_room(&server, &detail);
            self.details.insert(server.clone(), detail);
        }
        match trouble {
            Some(trouble) => drop(self.troubles.insert(server.clone(), trouble)),
            None => drop(self.troubles.remove(&server)),
        }
        let known = self.machine.servers().get(&server);
        let before = known.map(|known| known.failing().map(|(_, it)| it.reason.clone()));
        let after = sample.as_ref().err().map(|failure| failure.reason.clone());
        let failed = matches!(before, Some(Some(_)));
        self.watch_for_losses(&server, after.is_some(), failed);
        if primary && failed != after.is_some() {
            self.prepare(&server, after.is_some());
        }
        if before.as_ref() != Some(&after) {
            let note = match &after {
                Some(why) if before != Some(None) || !why.is_empty() => Some(
                    Note::new(Kind::Database, format!("{server} does not answer")).because(why),
                ),
                None if before.is_some() => {
                    Some(Note::new(Kind::Database, format!("{server} answers again")))
                }
                _ => None,
            };
            if let Some(note) = note {
                self.note(note.backend(&server));
            }
        }
        self.take(Event::Seen { server, asked, found: sample }).await;
    }

    /// The primary begins to fail, or answers again: what a promotion begins with stands ready, or is forgotten.
    fn prepare(&self, primary: &str, fails: bool) {
        for link in self.links.values().filter(|link| link.server != primary) {
            if fails {
                let link = Arc::clone(link);
                tokio::spawn(async move { link.prepare().await });
            } else {
                link.forget();
            }
        }
    }

    /// A server can write no longer, or again.
    fn note_room(&self, server: &str, detail: &Detail) {
        let before = self.details.get(server).and_then(|it| it.cannot_write.as_ref());
        let role = self.role_of(server);
        let note = match (before, &detail.cannot_write) {
            (None, Some(why)) => {
                Note::new(Kind::Fault, format!("{role}{server} cannot write")).because(why)
            }
            (Some(_), None) => {
                Note::new(Kind::Recovered, format!("{role}{server} can write again"))
            }
            _ => return,
        };
        self.note(note.backend(server));
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

    /// Does what the machine wants, or begins it.
    async fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Commit(record) => return Some(self.keep(*record).await),
            Action::Propose { record, base } => self.propose(record, base),
            Action::Read => self.read(),
            Action::Lease(until) => {
                let servers: Vec<_> = self.config.servers.iter().map(|it| it.address).collect();
                if let Err(error) = self.gates.extend(&servers, until) {
                    // No packet passes from its end on, which is safe.
                    tracing::error!(%error, database = self.config.name, "extend the lease");
                }
            }
            Action::Gate(gate) => self.gate = Some(gate.number),
            Action::Tell { node, message } => {
                let database = self.config.name.clone();
                self.setup.channel.tell(Word { node, database, message });
            }
            Action::Revoke(server) => self.begin(&server.clone(), |link| async move {
                let found = work::revoke(&link).await;
                Some(Event::Revoked { server, found })
            }),
            Action::Follow { standby, primary } => self.follow(&standby, &primary),
            Action::Quiesce(server) => {
                let cut = self.cut(server.clone());
                self.begin(&server, |link| async move {
                    cut.await;
                    Some(Event::Quiesced(work::quiesce(&link).await))
                });
            }
            Action::SetSync { server, names, need } => {
                self.begin(&server.clone(), move |link| async move {
                    let result = work::set_sync(&link, &names, need).await;
                    let result = result.map_err(|failure| failure.reason);
                    Some(Event::SyncSet { server, names, result })
                });
            }
            Action::CatchUp { server, end } => self.begin(&server, move |link| async move {
                Some(Event::CaughtUp(work::catch_up(&link, end).await))
            }),
            Action::Promote { server, mark, from } => {
                self.draft_losses(&server);
                self.begin(&server.clone(), move |link| async move {
                    let result = work::promote(&link, &mark, from).await;
                    Some(Event::Promoted { server, result })
                });
            }
            Action::CutOff(server) => {
                self.links.values().for_each(|link| link.forget());
                let (report, cut) = (self.report_losses(), self.cut(server));
                tokio::spawn(async move {
                    report.await;
                    cut.await;
                });
            }
            Action::Checkpoint(server) => {
                let (timeline, name) = (Arc::clone(&self.setup.timeline), self.config.name.clone());
                self.begin(&server.clone(), move |link| async move {
                    if let Err(failure) = work::checkpoint(&link).await {
                        let message = format!(
                            "{server} writes no checkpoint at once: the old primary \
                                               cannot be rewound before its next one"
                        );
                        let note = Note::new(Kind::Database, message).service(&name);
                        timeline.add(note.because(failure.reason));
                    }
                    None
                });
            }
            Action::Note(note) => self.setup.timeline.add(note),
            Action::Finish(result) => {
                // Who hears of the end, and looks, shall see it.
                self.show();
                if let Some(answer) = self.answer.take() {
                    // Who asked may have gone away meanwhile.
                    let _ = answer.send(result);
                }
            }
        }
        None
    }

    /// Keeps a record on the disk.
    async fn keep(&mut self, record: Record) -> Event {
        let revision = record.revision;
        self.marked = self.machine.is_confirmed();
        match self.write(Kept::new(record, self.marked)).await {
            Ok(()) => Event::Committed(revision),
            Err(why) => Event::NotCommitted(revision, why),
        }
    }

    /// Puts a record into the store, and then keeps it.
    fn propose(&self, record: Box<Record>, base: Option<Box<Record>>) {
        let Some(store) = self.store.clone() else { return };
        let (stored, ended) = (self.stored.clone(), self.ended.clone());
        tokio::spawn(async move {
            let revision = record.revision;
            // If the task has ended, the next one reads what the store has.
            match store.propose(&record, base.as_deref()).await {
                Ok(()) => drop(stored.send(record).await),
                Err(etcd::Error::Conflict(theirs)) => {
                    drop(ended.send(Event::Conflict(revision, theirs)).await);
                }
                Err(etcd::Error::Failed(why)) => {
                    drop(ended.send(Event::Unstored(revision, why)).await);
                }
            }
        });
    }

    /// Asks the store.
    fn read(&self) {
        let Some(store) = self.store.clone() else { return };
        let ended = self.ended.clone();
        tokio::spawn(async move {
            let asked = clock::monotonic();
            let found = store.read().await;
            let found = found.map(|it| it.map(Box::new)).map_err(|error| error.to_string());
            // As above.
            let _ = ended.send(Event::Read { asked, found }).await;
        });
    }

    /// Runs work about a server; its event comes back when it is done.
    fn begin<F>(&self, server: &str, work: impl FnOnce(Arc<Link>) -> F)
    where
        F: Future<Output = Option<Event>> + Send + 'static,
    {
        let Some(link) = self.links.get(server) else { return };
        let work = work(Arc::clone(link));
        let ended = self.ended.clone();
        tokio::spawn(async move {
            if let Some(event) = work.await {
                // If the task has ended, the next one begins anew.
                let _ = ended.send(event).await;
            }
        });
    }

    fn follow(&self, standby: &str, primary: &str) {
        let Some(source) = self.links.get(primary).cloned() else { return };
        let (timeline, name) = (Arc::clone(&self.setup.timeline), self.config.name.clone());
        let message = format!("{standby} follows {primary}");
        self.begin(standby, move |link| async move {
            let note = match work::follow(&link, &source).await {
                Ok(()) => Note::new(Kind::Database, message),
                Err(failure) => {
                    let message = format!("{} does not follow {}", link.server, source.server);
                    Note::new(Kind::Fault, message).because(failure.reason)
                }
            };
            timeline.add(note.service(&name));
            None
        });
    }

    /// Ends the connections to a server, through all services of the database.
    fn cut(&self, server: String) -> impl Future<Output = ()> + Send + 'static {
        let control = self.setup.control.clone();
        let services = self.services().map(|(_, service)| service).collect::<Vec<_>>();
        async move {
            for service in services {
                let ended = control.reset(&server, Some(&service), None, DEFAULT_RATE).await;
                if let Err(ResetError::Failed(error)) = ended {
                    tracing::warn!(%error, server, "end the connections");
                }
            }
        }
    }

    /// The services that the database has.
    fn services(&self) -> impl Iterator<Item = (Access, String)> {
        let Postgres { read_write, read_only, .. } = self.config;
        let both = [(Access::ReadWrite, read_write), (Access::ReadOnly, read_only)];
        both.into_iter()
            .filter(|(_, listen)| listen.is_some())
            .map(|(access, _)| (access, self.config.service(access)))
    }

    async fn write(&self, kept: Kept) -> Result<(), String> {
        let (directory, name) = (self.setup.state_dir.clone(), self.config.name.clone());
        let saved =
            tokio::task::spawn_blocking(move || store::save(&directory, &name, &kept)).await;
        match saved {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(panicked) => Err(panicked.to_string()),
        }
    }

    /// Puts the routes into force, if they are others now. The event says that a gate is.
    async fn put_routes(&mut self) -> Option<Event> {
        // What the daemon before has left is better than what is not known yet.
        let asked = self.links.keys().all(|server| self.machine.servers().contains_key(server));
        if !asked && clock::monotonic() < self.began + FIRST_ROUND {
            return None;
        }
        let routes = self.routes();
        if routes == self.applied && self.gate.is_none() {
            return None;
        }
        let services: Vec<_> = self.services().collect();
        let appointments = routes.iter().flat_map(|(server, (write, read))| {
            services.iter().map(move |(access, service)| Appointment {
                service: service.clone(),
                backend: server.clone(),
                appointed: match access {
                    Access::ReadWrite => write.clone(),
                    Access::ReadOnly => read.clone(),
                },
            })
        });
        let applied = self.setup.control.appoint(appointments.collect()).await;
        let applied = applied.unwrap_or_else(|error| Err(error.to_string()));
        self.behind = applied.err();
        if self.behind.is_some() {
            // The next tick tries again.
            return None;
        }
        self.applied = routes;
        self.gate.take().map(Event::Gated)
    }

    /// Whether the kernel's tables say what was decided, or why they do not yet.
    fn in_force(&self) -> Result<(), String> {
        if self.routes() == self.applied {
            return Ok(());
        }
        let unknown = || "not every server has been asked yet".to_owned();
        Err(self.behind.clone().unwrap_or_else(unknown))
    }

    fn routes(&self) -> BTreeMap<String, (Appointed, Appointed)> {
        let rules = Rules {
            max_lag: self.config.max_lag,
            read_from_primary: self.config.read_from_primary,
            interval: self.config.interval,
        };
        let names: Vec<_> = self.config.servers.iter().map(|server| server.name.clone()).collect();
        let (open, barred) = (self.machine.open(), self.machine.barred());
        let view = View {
            record: self.machine.record(),
            open: open.as_ref().map(|server| *server).map_err(String::as_str),
            barred: &barred,
            servers: self.machine.servers(),
            lags: &self.lags,
        };
        route::appoint(rules, &names, view, clock::monotonic())
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
