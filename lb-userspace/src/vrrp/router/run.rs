//! The thread of the virtual routers.
//!
//! It owns their machines, the sockets of their adverts and the holder of their addresses. Before it
//! decides anything about time it reads all adverts that have arrived, so that what the kernel received
//! while the thread did not run counts at the time at which it came.

use std::{collections::BTreeSet, future::pending, io, net::IpAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use rtnetlink::MulticastGroup;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep_until, timeout},
};

use super::{
    Command, Leases, Overview, Released, Setup,
    instance::{Instance, name_of},
    news,
};
use crate::{
    clock,
    events::{Kind, Note},
    net::netlink::{Netlink, Notifications},
    vrrp::{
        Holder, HolderState, address,
        machine::{Action, Cause, Event, State},
        packet, realtime,
        socket::AdvertSocket,
    },
};

/// The longest sleep.
const IDLE: Duration = Duration::from_secs(1);

/// Adverts that are read at a time: a flood must not keep the machines from their own.
const AT_ONCE: usize = 1024;

/// A contest is over if so many intervals pass without another advert of the other one.
const QUIET: u32 = 4;

/// How long the end waits until the addresses are off.
const PATIENCE: Duration = Duration::from_secs(5);

mod link;

/// What the holder is asked for.
#[derive(Clone, Debug, Default)]
struct Wanted {
    version: u64,
    addresses: Vec<(IpAddr, u8)>,
    announcements: u64,
}

/// The body of the thread.
pub(super) fn thread(
    setup: Setup,
    leases: Arc<dyn Leases>,
    commands: mpsc::Receiver<Command>,
    notes: mpsc::Sender<Note>,
    begun: oneshot::Sender<anyhow::Result<watch::Receiver<HolderState>>>,
) {
    let realtime = realtime::take();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            // The caller may have gone away.
            let _ = begun.send(Err(error).context("start the runtime"));
            return;
        }
    };
    runtime.block_on(async move {
        match Run::new(setup, leases, notes, realtime).await {
            Ok((mut run, holder)) => {
                if begun.send(Ok(holder)).is_ok() {
                    run.run(commands).await;
                }
            }
            Err(error) => {
                let _ = begun.send(Err(error));
            }
        }
    });
}

struct Run {
    setup: Setup,
    leases: Arc<dyn Leases>,
    netlink: Netlink,
    changes: Notifications,
    /// Those of IPv4 and of IPv6; none while the interface cannot be used.
    sockets: [Option<AdvertSocket>; 2],
    instances: Vec<Instance>,
    /// Virtual routers whose addresses are on the interface.
    held: BTreeSet<u8>,
    wanted: watch::Sender<Wanted>,
    applied: watch::Receiver<u64>,
    notes: mpsc::Sender<Note>,
    /// This node can serve.
    begun: bool,
    priority: u8,
    may_preempt: bool,
    /// When what could not be opened is tried again.
    retry: Option<Duration>,
    /// What is wrong with the thread, the interface, the leases.
    slow: Option<String>,
    unusable: Option<String>,
    unleased: Option<String>,
    released: Vec<oneshot::Sender<Vec<Released>>>,
    stopping: Option<oneshot::Sender<()>>,
    strangers: BTreeSet<u8>,
    /// When the sockets were last found empty.
    drained: Duration,
}

impl Run {
    async fn new(
        setup: Setup,
        leases: Arc<dyn Leases>,
        notes: mpsc::Sender<Note>,
        realtime: io::Result<()>,
    ) -> anyhow::Result<(Self, watch::Receiver<HolderState>)> {
        let changes =
            Notifications::open(&[MulticastGroup::Link]).context("follow the interface")?;
        let holder = Holder::start(setup.interface.clone(), Vec::new())?;
        let state = holder.state();
        let wanted = watch::Sender::new(Wanted::default());
        let (applied_sender, applied) = watch::channel(0);
        tokio::spawn(apply(holder, wanted.subscribe(), applied_sender));
        let slow = realtime.err().map(|error| {
            format!(
                "VRRP runs without real-time priority, so that other work may delay it: {error}"
            )
        });
        let mut run = Self {
            priority: setup.priority,
            instances: Vec::new(),
            setup,
            leases,
            netlink: Netlink::open()?,
            changes,
            sockets: [None, None],
            held: BTreeSet::new(),
            wanted,
            applied,
            notes,
            begun: false,
            may_preempt: true,
            retry: None,
            slow,
            unusable: None,
            unleased: None,
            released: Vec::new(),
            stopping: None,
            strangers: BTreeSet::new(),
            drained: clock::monotonic(),
        };
        let floating = run.setup.floating.clone();
        let address = run.setup.address;
        let instances = floating.into_iter().map(|it| Instance::new(it, &run.setup, address));
        run.instances = instances.collect();
        run.keep_leases();
        run.open().await;
        run.forget_stale().await;
        Ok((run, state))
    }

    /// Takes off what an earlier daemon left, but for what this one goes on to hold.
    async fn forget_stale(&mut self) {
        let (goes_on, stale): (Vec<&Instance>, Vec<&Instance>) =
            self.instances.iter().partition(|instance| instance.state.serves());
        let keep: Vec<_> = goes_on.iter().flat_map(|it| it.floating.addresses.clone()).collect();
        let ended: Vec<IpAddr> = stale.iter().flat_map(|it| it.addresses()).collect();
        if let Err(error) = self.leases.end_given_away(&ended) {
            self.unleased = Some(format!("the leases: {error:#}"));
        }
        match address::remove_stale(&self.setup.interface, &keep).await {
            Ok(removed) => {
                for (address, prefix) in removed {
                    let interface = &self.setup.interface;
                    self.note(Note::new(
                        Kind::Address,
                        format!(
                            "{address}/{prefix} was left on {interface} by an earlier ballast, and is \
                             gone now"
                        ),
                    ));
                }
            }
            Err(error) => self.note(
                Note::new(Kind::Fault, "stale addresses cannot be looked for")
                    .because(error.to_string()),
            ),
        }
    }

    async fn run(&mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let due = self.due();
            tokio::select! {
                command = commands.recv() => match command {
                    // Whoever commanded is gone without a word, and so is the node's control plane.
                    None => return,
                    Some(command) => self.obey(command).await,
                },
                change = self.changes.next() => self.changed(change.ok()).await,
                () = readable(self.sockets[0].as_ref()) => {}
                () = readable(self.sockets[1].as_ref()) => {}
                () = sleep_until(clock::timer() + due.saturating_sub(clock::monotonic())) => {}
            }
            self.turn();
            if self.retry.is_some_and(|at| clock::monotonic() >= at) {
                self.open().await;
            }
            self.answer_release();
            if self.stopping.is_some() && self.instances.iter().all(|it| !it.state.serves()) {
                self.flush().await;
                if let Some(done) = self.stopping.take() {
                    let _ = done.send(());
                }
                return;
            }
        }
    }

    /// When something has to be done, whatever happens.
    fn due(&self) -> Duration {
        let machines = self.instances.iter().filter_map(|instance| instance.state.deadline());
        machines.chain(self.retry).min().unwrap_or_else(|| clock::monotonic() + IDLE)
    }

    /// Reads what has arrived, and then lets the machines look at the clock.
    fn turn(&mut self) {
        let known = self.drain();
        let now = clock::monotonic();
        for at in 0..self.instances.len() {
            let Some(due) = self.instances[at].state.deadline() else { continue };
            // In a flood, the adverts up to a time are known, and those after it are not.
            let listens = matches!(self.instances[at].state, State::Backup(_));
            if due <= now && (!listens || due <= known) {
                self.step(at, Event::Tick, now);
            }
            let instance = &mut self.instances[at];
            let quiet = instance.interval() * QUIET;
            if let Some((by, _)) = instance.contested.take_if(|(_, heard)| now > *heard + quiet) {
                let vrid = instance.floating.vrid;
                self.note(news::united(by, vrid, &self.setup));
            }
        }
    }

    /// Reads adverts, and answers up to when all are known.
    fn drain(&mut self) -> Duration {
        let mut known = clock::monotonic();
        for family in 0..self.sockets.len() {
            for count in 0.. {
                let Some(socket) = &self.sockets[family] else { break };
                match socket.receive() {
                    Ok(None) => break,
                    Ok(Some(mut packet)) => {
                        // Whatever the wall clock did meanwhile: it was not here at the last look.
                        packet.at = packet.at.max(self.drained);
                        if count >= AT_ONCE {
                            known = known.min(packet.at);
                        }
                        self.hear(family, &packet);
                        if count >= AT_ONCE {
                            break;
                        }
                    }
                    Err(error) => {
                        self.fail(format!("adverts cannot be heard: {error}"));
                        break;
                    }
                }
            }
        }
        self.drained = self.drained.max(known);
        known
    }

    fn hear(&mut self, family: usize, packet: &crate::vrrp::socket::Received) {
        let Some(vrid) = packet::vrid(&packet.message) else { return };
        let is_ours =
            |it: &Instance| it.floating.vrid == vrid && usize::from(!it.is_v4()) == family;
        let Some(at) = self.instances.iter().position(is_ours) else {
            // Somebody else's, and none of our business.
            self.strangers.insert(vrid);
            return;
        };
        let (event, first) = self.instances[at].hear(packet, &self.setup);
        if let Some(first) = first {
            self.note(news::first(first, vrid, &self.setup));
        }
        if let Some(event) = event {
            self.step(at, event, clock::monotonic());
        }
    }

    fn step(&mut self, at: usize, event: Event, now: Duration) {
        for action in self.instances[at].step(event, now) {
            self.act(at, action, now);
        }
    }

    fn act(&mut self, at: usize, action: Action, now: Duration) {
        let instance = &mut self.instances[at];
        let vrid = instance.floating.vrid;
        match action {
            Action::Send(priority) => self.send(at, priority),
            Action::Lease(until) => {
                let result = self.leases.set(&instance.addresses(), until);
                self.unleased = result.err().map(|error| format!("the lease: {error:#}"));
            }
            Action::LastLease(until) => {
                let result = self.leases.give_away(&instance.addresses(), until);
                self.unleased = result.err().map(|error| format!("the lease: {error:#}"));
            }
            Action::Take => {
                self.held.insert(vrid);
                self.want(0);
            }
            Action::Drop => {
                self.held.remove(&vrid);
                self.want(0);
            }
            Action::Announce => self.want(1),
            Action::Tell(Cause::Contested { by, priority }) => {
                if instance.contested.replace((by, now)).is_none() {
                    self.note(news::split(by, priority, vrid, &self.setup));
                }
            }
            Action::Tell(cause) => {
                instance.contested = None;
                let addresses = instance.addresses();
                if let Some(note) = news::of(cause, vrid, &addresses, &self.setup) {
                    self.note(note);
                }
            }
        }
    }

    fn send(&mut self, at: usize, priority: u8) {
        let instance = &mut self.instances[at];
        let socket = self.sockets[usize::from(!instance.is_v4())].as_ref();
        let mut unsent = None;
        for (message, to) in instance.adverts(priority) {
            let sent = socket.map(|socket| socket.send(&message, to));
            if let Some(Err(error)) = sent {
                unsent = Some(format!("to {to}: {error}"));
            }
        }
        instance.unsent = unsent;
    }

    /// Asks the holder for what this node should hold, and for so many more announcements.
    fn want(&self, announcements: u64) {
        let held = self.instances.iter().filter(|it| self.held.contains(&it.floating.vrid));
        let addresses = held.flat_map(|it| it.floating.addresses.clone()).collect();
        self.wanted.send_modify(|wanted| {
            wanted.version += 1;
            wanted.addresses = addresses;
            wanted.announcements += announcements;
        });
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Configure(setup) => self.configure(*setup).await,
            Command::Begin => {
                self.begun = true;
                self.start();
            }
            Command::Priority(priority) => {
                self.priority = priority;
                self.adapt();
            }
            Command::MayPreempt(may) => {
                self.may_preempt = may;
                self.adapt();
            }
            Command::Release(answer) => {
                self.released.push(answer);
                self.all(Event::Release);
            }
            Command::Stop(done) => {
                self.stopping = Some(done);
                self.all(Event::Stop);
            }
            Command::Inspect(answer) => {
                let _ = answer.send(self.overview());
            }
        }
    }

    fn all(&mut self, event: Event) {
        // An Active that has slept must hear what came before it is asked for anything.
        self.drain();
        let now = clock::monotonic();
        for at in 0..self.instances.len() {
            self.step(at, event, now);
        }
    }

    fn adapt(&mut self) {
        let now = clock::monotonic();
        for at in 0..self.instances.len() {
            if self.instances[at].adapt(self.priority, self.may_preempt) {
                self.step(at, Event::Changed, now);
            }
        }
    }

    async fn configure(&mut self, setup: Setup) {
        if self.priority == self.setup.priority {
            self.priority = setup.priority;
        }
        self.setup = setup;
        let setup = self.setup.clone();
        // Another version or family is another virtual router.
        let same = |old: &Instance, new: &crate::config::Floating| {
            let key = |it: &crate::config::Floating| (it.vrid, it.version, it.is_v4());
            key(&old.floating) == key(new)
        };
        for at in (0..self.instances.len()).rev() {
            match setup.floating.iter().find(|new| same(&self.instances[at], new)) {
                Some(new) => self.instances[at].configure(new.clone(), &setup),
                None => self.remove(at),
            }
        }
        for new in &setup.floating {
            if !self.instances.iter().any(|old| same(old, new)) {
                self.instances.push(Instance::new(new.clone(), &setup, setup.address));
            }
        }
        self.keep_leases();
        self.want(0);
        self.open().await;
        let now = clock::monotonic();
        for at in 0..self.instances.len() {
            self.instances[at].adapt(self.priority, self.may_preempt);
            self.step(at, Event::Changed, now);
        }
    }

    /// Leases are for the addresses that this node shares, and for no others.
    fn keep_leases(&mut self) {
        let addresses: Vec<IpAddr> = self.instances.iter().flat_map(Instance::addresses).collect();
        let result = self.leases.keep(&addresses);
        self.unleased = result.err().map(|error| format!("the leases: {error:#}"));
    }

    fn remove(&mut self, at: usize) {
        if self.instances[at].state.serves() {
            self.send(at, crate::vrrp::machine::LEAVES);
        }
        self.step(at, Event::Fault, clock::monotonic());
        self.instances.remove(at);
    }

    /// Starts the machines that can run and do not.
    fn start(&mut self) {
        let now = clock::monotonic();
        for at in 0..self.instances.len() {
            let instance = &self.instances[at];
            if instance.state != State::Initialize
                || self.stopping.is_some()
                || self.sockets[usize::from(!instance.is_v4())].is_none()
            {
                continue;
            }
            // Only a daemon that has just started may go on with the lease of an earlier one.
            let lease = if self.begun { None } else { self.leases.get(&instance.addresses()) };
            let lease = lease.filter(|until| now < *until);
            if self.begun || lease.is_some() {
                self.instances[at].adapt(self.priority, self.may_preempt);
                self.step(at, Event::Start { lease }, now);
            }
        }
    }

    fn answer_release(&mut self) {
        let leaving = |it: &Instance| matches!(it.state, State::Leaving(_));
        if self.released.is_empty() || self.instances.iter().any(leaving) {
            return;
        }
        let answers: Vec<Released> = self.instances.iter().map(|it| self.outcome(it)).collect();
        for answer in self.released.drain(..) {
            // Who asked may have gone away.
            let _ = answer.send(answers.clone());
        }
    }

    fn outcome(&self, instance: &Instance) -> Released {
        let vrid = instance.floating.vrid;
        let (to, outcome) = match instance.state {
            State::Active(_) | State::Leaving(_) => {
                (None, "nobody took over, so this node goes on".to_owned())
            }
            _ => match instance.active() {
                Some(active) => {
                    let name = name_of(&self.setup, active).map(str::to_owned);
                    let name = name.unwrap_or_else(|| active.to_string());
                    (Some(name.clone()), format!("{name} is Active"))
                }
                None => (None, "this node is not Active".to_owned()),
            },
        };
        Released { vrid, to, kept: instance.state.serves(), outcome }
    }

    /// Waits until the addresses are as they were asked for.
    async fn flush(&mut self) {
        let version = self.wanted.borrow().version;
        let applied = self.applied.wait_for(|applied| *applied >= version);
        // What hangs there is no reason to hang here: the lease is over.
        let _ = timeout(PATIENCE, applied).await;
    }

    fn overview(&self) -> Overview {
        let now = clock::monotonic();
        let instances = self.instances.iter().map(|it| it.status(&self.setup, now));
        let problems = [&self.slow, &self.unusable, &self.unleased];
        let mut problems: Vec<String> = problems.into_iter().flatten().cloned().collect();
        let instances: Vec<_> = instances.collect();
        problems.extend(instances.iter().filter_map(|it| {
            it.problem.as_ref().map(|problem| format!("vrid {}: {problem}", it.vrid))
        }));
        Overview { instances, problems }
    }

    fn note(&self, note: Note) {
        // A full queue means that the timeline's task hangs; nothing here may wait for that.
        if let Err(mpsc::error::TrySendError::Full(note)) = self.notes.try_send(note) {
            tracing::warn!(message = note.message, "an event is lost");
        }
    }
}

async fn readable(socket: Option<&AdvertSocket>) {
    match socket {
        // An error is met again where it is read.
        Some(socket) => drop(socket.readable().await),
        None => pending().await,
    }
}

/// Keeps the holder at what is wanted. It waits for netlink, so that the machines need not.
async fn apply(holder: Holder, mut wanted: watch::Receiver<Wanted>, applied: watch::Sender<u64>) {
    let mut done = Wanted::default();
    while wanted.changed().await.is_ok() {
        let now = wanted.borrow_and_update().clone();
        if now.addresses != done.addresses {
            holder.set_addresses(now.addresses.clone()).await;
        }
        if now.announcements != done.announcements {
            holder.announce().await;
        }
        applied.send_replace(now.version);
        done = now;
    }
}
