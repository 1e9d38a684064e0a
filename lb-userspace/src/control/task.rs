//! The reconcile task: the one place where inputs meet, and the one writer of the kernel's tables.
//!
//! It owns the state, the planner, the probes and the floating addresses. Whatever happens, it
//! judges, plans and applies anew; what has not changed costs nothing. Cancelling it loses nothing
//! but the knowledge of who is healthy: the tables stay as they are, and forwarding goes on.
//!
//! Calls to the kernel's side block, so they are made on blocking threads; so are the sweeps over
//! the flow tables, one a second, which take long when the tables are big.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    kernel::Kernel,
    plan::Planner,
    sampled::Sampled,
    state::{State, Wish},
    status::View,
    verdict::Admin,
    wishes::{self, Kept, Wishes},
};
use crate::{
    alert, clock,
    config::{Config, Postgres, sizes},
    events::{Kind, Note, Timeline},
    health::{Report, passive::TICK as WATCH},
    net::NextHops,
    proxy::Proxy,
    trace::show::Names,
    vrrp::{
        Holder,
        router::{Released, Router},
    },
};

mod addresses;
pub(super) mod anycast;
mod appoint;
mod attach;
mod cookies;
pub(super) mod elder;
mod faults;
mod fitness;
mod flood;
mod handle;
mod names;
mod passive;
mod peers;
mod probes;
mod proxied;
mod reconcile;
mod reload;
mod replay;
mod snapshot;
mod sweep;
mod trace;
mod wish;

use addresses::Addresses;
use anycast::Anycast;
pub use appoint::Appointment;
use attach::Attachments;
use cookies::Cookies;
use elder::Elders;
use faults::{Faults, KernelNews};
use fitness::Weight;
use flood::Flood;
pub use handle::{FlowsError, Handle, ResetError, TraceError};
use passive::Readings;
use peers::Peers;
use probes::Probes;
pub(crate) use reload::warnings;
pub use reload::{Refused, Reloaded};
use replay::news::ReplayNews;
use sweep::{Rates, Swept};
pub use wish::{Change, WishError, Wished};

/// Commands that wait for the task. Each sender waits for its answer, so few ever queue.
const QUEUED_COMMANDS: usize = 32;

/// Time between two sweeps, and the longest time until what failed is tried again.
const TICK: Duration = Duration::from_secs(1);

/// After a start, the tables that a previous daemon left stay as they are until all backends have
/// been probed and all next hops are known, but not longer than this.
const SETTLE: Duration = Duration::from_secs(2);

/// What the task needs.
#[derive(Debug)]
pub struct Setup {
    /// Name of this node.
    pub node: String,
    /// File that a reload reads.
    pub config_path: PathBuf,
    /// The configuration.
    pub config: Config,
    /// What the operator should know about it.
    pub warnings: Vec<String>,
    /// Directory of what survives a restart.
    pub state_dir: PathBuf,
    /// The kernel's side.
    pub kernel: Arc<dyn Kernel>,
    /// VRRP, and what it tells, if it runs already.
    pub router: Option<(Router, mpsc::Receiver<Note>)>,
    /// Where events go.
    pub timeline: Arc<Timeline>,
    /// Next hops of what `wanted` asks for.
    pub next_hops: watch::Receiver<NextHops>,
    /// Addresses whose next hops are wanted.
    pub wanted: watch::Sender<BTreeSet<IpAddr>>,
    /// What requests are handed on by.
    pub proxy: Proxy,
    /// Told of the databases that the configuration has, at each reload.
    pub databases: watch::Sender<Vec<Postgres>>,
    /// Told of what the configuration says of alerts, at each reload.
    pub alerts: watch::Sender<alert::task::Settings>,
}

/// What others ask of the task.
#[derive(Debug)]
enum Command {
    Snapshot(View, oneshot::Sender<snapshot::Snapshot>),
    FlowNames(Option<String>, oneshot::Sender<Result<names::FlowNames, Vec<String>>>),
    BackendIds(String, Option<String>, oneshot::Sender<Result<BTreeSet<u32>, String>>),
    TraceNames(oneshot::Sender<Names>),
    Reload(oneshot::Sender<Result<Reloaded, Refused>>),
    Wish(wish::Request, oneshot::Sender<Result<Vec<Wished>, WishError>>),
    Appoint(Vec<Appointment>, oneshot::Sender<Result<(), String>>),
    Park(String, Option<Duration>, oneshot::Sender<Result<(), String>>),
    Release(oneshot::Sender<Option<anyhow::Result<Vec<Released>>>>),
    Stop(oneshot::Sender<Option<Holder>>),
}

/// The task's own state.
#[derive(Debug)]
pub struct Task {
    node: String,
    config_path: PathBuf,
    config: Config,
    config_loaded: Timestamp,
    warnings: Vec<String>,
    state_dir: PathBuf,
    kernel: Arc<dyn Kernel>,
    timeline: Arc<Timeline>,
    wanted: watch::Sender<BTreeSet<IpAddr>>,
    databases: watch::Sender<Vec<Postgres>>,
    alerts: watch::Sender<alert::task::Settings>,
    started: Timestamp,
    state: State,
    planner: Planner,
    /// The maps hold what a previous daemon wrote.
    adopted: bool,
    /// Nothing is left to guess, or it has taken too long.
    settled: watch::Sender<bool>,
    settle_by: Duration,
    wishes: Wishes,
    probes: Probes,
    readings: Readings,
    addresses: Addresses,
    anycast: Anycast,
    attachments: Attachments,
    peers: Peers,
    elders: Elders,
    weight: Weight,
    faults: Faults,
    kernel_news: KernelNews,
    flood: Flood,
    cookies: Cookies,
    replay_news: ReplayNews,
    /// When writes that failed are tried again, and how long the wait was.
    retry: Option<(Duration, Duration)>,
    sweeping: bool,
    swept: mpsc::Sender<Swept>,
    flows: u64,
    rates: Arc<Rates>,
    sampled: Sampled,
    proxy: Proxy,
    /// A listener of the proxy is missing.
    proxy_lacks: bool,
    /// The backends whose next hops have been asked for, by the numbers that their sets have.
    hops_wanted_of: Option<(u64, u64)>,
}

/// What the task receives.
#[derive(Debug)]
struct Inputs {
    commands: mpsc::Receiver<Command>,
    reports: mpsc::Receiver<Report>,
    next_hops: watch::Receiver<NextHops>,
    swept: mpsc::Receiver<Swept>,
}

impl Task {
    /// Takes over what stands in the maps and starts to serve. Returns once the program is on the
    /// node's interface, with the handle that others command the task by; the task ends by
    /// [`Handle::stop`], or with the runtime.
    pub async fn start(setup: Setup) -> anyhow::Result<Handle> {
        let Setup { node, config_path, config, warnings, state_dir, kernel, timeline, .. } = setup;
        let reader = Arc::clone(&kernel);
        let (adopted, info) =
            tokio::task::spawn_blocking(move || anyhow::Ok((reader.adopted()?, reader.info()?)))
                .await?
                .context("read the tables that a previous daemon left")?;
        let planner = Planner::adopt(adopted);
        let (wishes, lost) = wishes::load(&state_dir);
        if let Some(note) = lost {
            timeline.add(note);
        }
        let (probes, reports) = Probes::new();
        let (command_sender, commands) = mpsc::channel(QUEUED_COMMANDS);
        let (swept_sender, swept) = mpsc::channel(1);
        let settled = watch::Sender::new(false);
        let mut task = Self {
            node,
            config_path,
            config,
            config_loaded: clock::wall(),
            warnings,
            state_dir,
            kernel,
            timeline,
            wanted: setup.wanted,
            databases: setup.databases,
            alerts: setup.alerts,
            started: clock::wall(),
            state: State::default(),
            adopted: !planner.is_empty(),
            planner,
            settle_by: clock::monotonic() + SETTLE,
            settled,
            wishes,
            probes,
            readings: Readings::default(),
            addresses: Addresses::default(),
            anycast: Anycast::default(),
            attachments: Attachments::default(),
            peers: Peers::default(),
            elders: Elders::default(),
            weight: Weight::default(),
            faults: Faults::default(),
            kernel_news: KernelNews::default(),
            flood: Flood::default(),
            cookies: Cookies::default(),
            replay_news: ReplayNews::default(),
            retry: None,
            sweeping: false,
            swept: swept_sender,
            flows: 0,
            rates: Arc::default(),
            sampled: Sampled::default(),
            proxy: setup.proxy,
            proxy_lacks: false,
            hops_wanted_of: None,
        };
        task.attachments.adopt(&info.attachments);
        let interface = task.interface()?;
        // Before it gives out a port.
        task.share_ports().await?;
        task.attach_first(&interface).await?;
        if let Some((router, notes)) = setup.router {
            task.addresses.go_on(router, notes);
        } else {
            let leases = task.kernel.leases();
            let prepared = task.addresses.prepare(&task.config, &task.node, leases).await;
            task.fault("floating addresses", prepared.err().map(|error| format!("{error:#}")));
        }
        task.configure().await;
        let handle = Handle::new(
            command_sender,
            task.settled.subscribe(),
            Arc::clone(&task.kernel),
            Arc::clone(&task.timeline),
            task.peers.others(),
        );
        let inputs = Inputs { commands, reports, next_hops: setup.next_hops, swept };
        replay::spawn(Arc::clone(&task.kernel), Arc::clone(&task.timeline));
        tokio::spawn(task.run(inputs));
        Ok(handle)
    }

    async fn run(mut self, mut inputs: Inputs) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = interval(WATCH);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watchdog = watchdog();
        let mut followed = true;
        let mut deadline = self.reconcile().await;
        let mut changed = false;
        let mut board = self.peers.others().board();
        loop {
            if std::mem::replace(&mut changed, true) {
                deadline = self.reconcile().await;
            }
            tokio::select! {
                Some(command) = inputs.commands.recv() => {
                    if let Command::Stop(done) = command {
                        self.take_leave();
                        self.addresses.stop().await;
                        // Not before: of connections that the kernel begins in the last moment, the
                        // other nodes might not be told any more. Those of the proxy go on here.
                        self.hand_to_kernel().await;
                        let mut notes = self.addresses.news();
                        if self.config.nodes.len() > 1 {
                            notes.extend(self.anycast.release().await);
                        }
                        self.tell(notes);
                        let _ = done.send(self.leave().await);
                        return;
                    }
                    self.obey(command, &mut inputs.reports).await;
                }
                Some(report) = inputs.reports.recv() => {
                    self.observe(&report);
                    // All that are there at once: a cut link condemns many backends together.
                    while let Ok(report) = inputs.reports.try_recv() {
                        self.observe(&report);
                    }
                }
                changed = inputs.next_hops.changed(), if followed => {
                    followed = changed.is_ok();
                    self.state.set_next_hops(inputs.next_hops.borrow_and_update().clone());
                    let wrong = (!followed).then(|| "their task has ended; restart ballast".into());
                    self.fault("next hops", wrong);
                }
                Some(swept) = inputs.swept.recv() => self.take_sweep(swept),
                _ = watch.tick() => changed = self.watch().await,
                () = self.addresses.changed() => {}
                // It ends with this task at the earliest.
                Ok(()) = board.changed() => {
                    board.mark_unchanged();
                    self.follow_elder().await;
                    changed = false;
                }
                _ = tick.tick() => {
                    self.start_sweep();
                    self.tell_peers();
                    self.attachments.retry();
                    self.retry_listening();
                    self.count_files();
                    self.detach_where_idle(clock::monotonic()).await;
                }
                _ = watchdog.tick() => {
                    // Nobody listens unless systemd asked for it.
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
                }
                () = sleep_until(deadline) => {}
            }
        }
    }

    async fn obey(&mut self, command: Command, reports: &mut mpsc::Receiver<Report>) {
        // Who asked may have gone away meanwhile; then nobody wants the answer.
        match command {
            Command::Snapshot(view, answer) => {
                let vrrp = self.addresses.overview().await;
                let _ = answer.send(self.snapshot(&view, vrrp));
            }
            Command::FlowNames(service, answer) => {
                let _ = answer.send(self.flow_names(service.as_deref()));
            }
            Command::BackendIds(backend, service, answer) => {
                let _ = answer.send(self.backend_ids(&backend, service.as_deref()));
            }
            Command::TraceNames(answer) => {
                let _ = answer.send(self.trace_names());
            }
            Command::Reload(answer) => {
                let result = self.reload(reports).await;
                self.reconcile().await;
                let _ = answer.send(result);
            }
            Command::Wish(request, answer) => {
                let result = self.wish(request).await;
                self.reconcile().await;
                let _ = answer.send(result);
            }
            Command::Appoint(appointments, answer) => {
                let _ = answer.send(self.appoint(appointments).await);
            }
            Command::Park(service, until, answer) => {
                let _ = answer.send(self.park(&service, until).await);
            }
            Command::Release(answer) => match self.addresses.release() {
                None => drop(answer.send(None)),
                Some(release) => {
                    let work = async move { answer.send(Some(release.await)) };
                    tokio::spawn(work);
                }
            },
            Command::Stop(answer) => {
                let _ = answer.send(None);
            }
        }
    }

    fn observe(&mut self, report: &Report) {
        for note in self.state.observe(report, clock::monotonic()) {
            self.timeline.add(note);
        }
    }

    /// Puts the configuration into force: services, wishes, probes.
    async fn configure(&mut self) {
        let now = clock::monotonic();
        let wishes = &self.wishes;
        self.state.configure(
            &self.config.services,
            |service, backend| {
                if wishes.is_empty() {
                    return Wish::default();
                }
                let kept = wishes.get(&(service.to_owned(), backend.to_owned()));
                kept.map_or_else(Wish::default, |kept| in_force(kept, now))
            },
            now,
        );
        self.planner.set_density(sizes::needs(&self.config).density);
        self.listen();
        let targets = self.state.targets();
        self.probes.keep(targets.iter().map(|(target, _)| target)).await;
        self.probes.start(targets);
    }

    /// Records how something stands, and tells it if it is news.
    fn fault(&mut self, about: &str, wrong: Option<String>) {
        if let Some(note) = self.faults.set(about, wrong) {
            self.timeline.add(note);
        }
    }

    fn interface(&self) -> anyhow::Result<String> {
        let node = self.config.node(&self.node);
        let node = node.with_context(|| format!("find node {} in the configuration", self.node))?;
        Ok(node.interface.clone())
    }

    fn note(&self, kind: Kind, message: impl Into<String>) {
        self.timeline.add(Note::new(kind, message));
    }
}

/// A kept wish on the monotonic clock. A wall clock that was set back since makes it new.
fn in_force(kept: &Kept, now: Duration) -> Wish {
    let age = clock::wall().duration_since(kept.since).max(SignedDuration::ZERO);
    let age = match kept.admin {
        Admin::Draining => age.unsigned_abs(),
        Admin::Enabled | Admin::Disabled => Duration::ZERO,
    };
    Wish { admin: kept.admin, weight: kept.weight, since: now.saturating_sub(age) }
}

/// Ticks twice in the time that systemd's watchdog allows, or once an hour if there is none.
fn watchdog() -> tokio::time::Interval {
    let allowed = sd_notify::watchdog_enabled().unwrap_or(Duration::from_hours(2));
    let mut ticks = interval((allowed / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The instant of a point on the monotonic clock.
fn instant(at: Duration) -> Instant {
    clock::timer() + at.saturating_sub(clock::monotonic())
}

#[cfg(test)]
mod tests;
