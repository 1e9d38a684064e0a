//! The task that owns the socket, and the hold on the flow tables.
//!
//! Everything that blocks (reading and writing the tables) is done on a blocking thread, one piece of work
//! at a time; meanwhile datagrams wait in the socket's buffer. Cancelling it loses what other nodes have
//! not been told for some milliseconds; they ask for everything when it is started again.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use lb_common::news::{Node, TELL};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::{
    net::UdpSocket,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep,
};

use super::{
    Board, Ends,
    hub::{Effects, Hub, Step},
    wire::{
        Keys, MAX_DATAGRAM, Nonce,
        frame::{About, Fence},
    },
};
use crate::{
    clock,
    control::kernel::Kernel,
    dataplane::{
        Timeouts,
        sync::{Applied, Change, FlowSync, Refresh, Side, Walk},
    },
    events::{Kind, Note, Timeline},
    net,
};

/// Time between two looks at what the kernel program has told. What has not been told when this node loses
/// its power breaks, so it is well below the 50 ms in which a connection has to be there.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Time until the tables are tried again after an error.
const AFTER_TROUBLE: Duration = Duration::from_secs(5);

/// Datagrams that are taken before anything else is done.
const DATAGRAMS_AT_ONCE: usize = 256;

/// Bytes of datagrams that wait in the kernel: all that may be on the way from several nodes.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Commands that wait. Each sender waits for its turn.
const QUEUED_COMMANDS: usize = 32;

/// What the channel needs.
#[derive(Debug)]
pub struct Setup {
    /// Name of this node.
    pub own: String,
    /// How it is.
    pub about: About,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Interface that its clients come by.
    pub interface: String,
    /// The other nodes.
    pub others: Vec<(String, SocketAddr)>,
    /// Content of the file with the cluster's key.
    pub secret: Vec<u8>,
    /// What this node is among the others.
    pub node: Node,
    /// When connections age.
    pub timeouts: Timeouts,
    /// The kernel's side.
    pub kernel: Arc<dyn Kernel>,
    /// Where events go.
    pub timeline: Arc<Timeline>,
}

/// The channel, while it is held. Dropping it ends the task.
#[derive(Debug)]
pub struct Channel {
    about: watch::Sender<About>,
    task: JoinHandle<()>,
}

/// What others ask of the task.
#[derive(Debug)]
pub(super) enum Command {
    /// Something is to be cut off everywhere. The sender is for the names of those who have.
    Fence(Fence, mpsc::Sender<String>),
    /// What that node has asked for is cut off.
    Fenced(String, Fence),
    /// A word for that node.
    Say(String, Vec<u8>),
}

/// Another node wants something cut off.
#[derive(Debug)]
pub struct FenceRequest {
    /// The other node.
    pub from: String,
    /// What it wants cut off.
    pub fence: Fence,
    commands: mpsc::Sender<Command>,
}

impl FenceRequest {
    /// It is cut off: the other node is told, and told again if it asks again.
    pub async fn done(self) {
        // If the channel has ended, the other node asks the next one.
        let _ = self.commands.send(Command::Fenced(self.from, self.fence)).await;
    }
}

impl Channel {
    /// Opens the socket and begins to talk. Call it within a tokio runtime, in the network namespace of
    /// the node.
    pub async fn start(setup: Setup, ends: &Ends) -> anyhow::Result<Self> {
        let socket = bind(setup.listen)
            .await
            .with_context(|| format!("listen for other nodes on {}", setup.listen))?;
        let kernel = Arc::clone(&setup.kernel);
        let sync = tokio::task::spawn_blocking(move || kernel.flow_sync())
            .await?
            .context("open the flow tables")?;
        let (commands, command_receiver) = mpsc::channel(QUEUED_COMMANDS);
        let (about, about_receiver) = watch::channel(setup.about);
        ends.commands.send_replace(Some(commands.clone()));
        let keys = Arc::new(Keys::new(&setup.secret));
        let random = SystemRandom::new();
        let mut hub = Hub::new(
            &setup.own,
            &setup.others,
            &keys,
            Refresh::new(&setup.timeouts),
            (clock::monotonic(), clock::wall()),
            &mut || nonce(&random),
        );
        // What is said first is believed, so it must be true.
        hub.set_about(setup.about);
        hub.set_created(sync.as_ref().map_or(Duration::ZERO, FlowSync::created));
        let task = Task {
            socket,
            hub,
            sync,
            side: None,
            random,
            own_commands: commands.downgrade(),
            ends: ends.clone(),
            waiting: Vec::new(),
            pending: Vec::new(),
            forgets: false,
            telling: false,
            discard: false,
            next_look: Duration::ZERO,
            trouble: None,
            interface: setup.interface,
            node: setup.node,
            kernel: setup.kernel,
            timeline: setup.timeline,
        };
        let task = tokio::spawn(task.run(command_receiver, about_receiver));
        Ok(Self { about, task })
    }

    /// Ends the task, and returns when its port is free.
    pub async fn close(self) {
        let Self { about, task } = self;
        drop(about);
        // If it has panicked, its port is free too.
        let _ = task.await;
    }

    /// What this node tells of itself from now on.
    pub fn tell(&self, about: About) {
        self.about.send_if_modified(|current| std::mem::replace(current, about) != about);
    }
}

async fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(listen).await?;
    // Without the privilege the buffer is as the system gives it, and more is sent again.
    let _ = setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER);
    Ok(socket)
}

fn nonce(random: &SystemRandom) -> Nonce {
    let mut nonce = Nonce::default();
    // The kernel's generator does not fail once it has been seeded, which it is at boot.
    random.fill(&mut nonce).expect("random numbers of the kernel");
    nonce
}

struct Task {
    socket: UdpSocket,
    hub: Hub,
    /// None while it is in use, and after it has failed.
    sync: Option<FlowSync>,
    side: Option<Side>,
    random: SystemRandom,
    own_commands: mpsc::WeakSender<Command>,
    ends: Ends,
    /// Who waits for which fence.
    waiting: Vec<(Fence, Duration, mpsc::Sender<String>)>,
    /// What other nodes have brought, and is still to be done.
    pending: Vec<Step>,
    /// There may be connections to forget.
    forgets: bool,
    /// The kernel program tells of connections.
    telling: bool,
    /// What it has told so far is of the time before the session.
    discard: bool,
    next_look: Duration,
    /// What is wrong, and has been told.
    trouble: Option<String>,
    interface: String,
    node: Node,
    kernel: Arc<dyn Kernel>,
    timeline: Arc<Timeline>,
}

/// A piece of work on the tables.
struct Work {
    steps: Vec<Step>,
    side: Option<Side>,
    discard: bool,
    walk: Option<Walk>,
}

/// What it has brought.
#[derive(Default)]
struct Done {
    applied: Applied,
    news: Vec<Change>,
    walked: Option<(Walk, Vec<Change>, bool)>,
    forgets: bool,
}

/// A fence is waited for as long as it is asked for.
const WAIT_FOR_FENCE: Duration = Duration::from_mins(1);

impl Task {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut about: watch::Receiver<About>,
    ) {
        self.find_side().await;
        let mut buffer = vec![0; MAX_DATAGRAM + 1];
        loop {
            let now = clock::monotonic();
            self.hub.tick(now, clock::wall());
            self.take_effects().await;
            self.work().await;
            let board = self.hub.board(clock::monotonic());
            self.ends.board.send_if_modified(|old| {
                let changed = *old != board;
                *old = board;
                changed
            });
            let pause = self.pause();
            tokio::select! {
                // An error of the socket is of one datagram: somebody does not listen.
                _ = self.socket.readable() => self.receive(&mut buffer),
                command = commands.recv() => {
                    let Some(command) = command else { break };
                    self.obey(command);
                }
                changed = about.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let about = *about.borrow_and_update();
                    self.hub.set_about(about);
                }
                () = sleep(pause) => {}
            }
        }
        self.ends.commands.send_replace(None);
        self.ends.board.send_replace(Board::default());
        self.tell(false).await;
    }

    fn pause(&self) -> Duration {
        let now = clock::monotonic();
        let session = self.hub.deadline();
        let look = self.telling.then_some(self.next_look);
        let next = session.into_iter().chain(look).min();
        next.map_or(LOOK_EVERY, |next| next.saturating_sub(now))
    }

    fn receive(&mut self, buffer: &mut [u8]) {
        for _ in 0..DATAGRAMS_AT_ONCE {
            match self.socket.try_recv_from(buffer) {
                Ok((len, from)) => {
                    let time = (clock::monotonic(), clock::wall());
                    let random = &self.random;
                    self.hub.receive(from, &buffer[..len], time, &mut || nonce(random));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Of a datagram that was sent before: nobody listens there.
                Err(error) => tracing::debug!(%error, "receive from a node"),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let now = clock::monotonic();
        match command {
            Command::Fence(fence, sender) => {
                self.hub.fence(&fence, now);
                self.waiting.push((fence, now, sender));
            }
            Command::Fenced(node, fence) => self.hub.fenced(&node, fence, (now, clock::wall())),
            Command::Say(node, word) => self.hub.say(&node, &word, (now, clock::wall())),
        }
    }

    async fn take_effects(&mut self) {
        let Effects { datagrams, steps, notes, wishes, fenced, words, began } = self.hub.take();
        for (to, datagram) in datagrams {
            // What is not sent is as what is lost on the way: it is sent again.
            if let Err(error) = self.socket.try_send_to(&datagram, to) {
                tracing::debug!(%error, %to, "send to a node");
            }
        }
        self.pending.extend(steps);
        for note in notes {
            self.timeline.add(note);
        }
        for (from, fence) in wishes {
            if let Some(commands) = self.own_commands.upgrade() {
                // If nobody is there, or too many wait, it is asked for again.
                let _ = self.ends.wishes.try_send(FenceRequest { from, fence, commands });
            }
        }
        for (node, fence) in fenced {
            for (_, _, sender) in self.waiting.iter().filter(|(wanted, ..)| *wanted == fence) {
                let _ = sender.try_send(node.clone());
            }
        }
        for word in words {
            // If nobody is there, or too many wait, it is as lost on the way.
            let _ = self.ends.words.try_send(word);
        }
        let now = clock::monotonic();
        self.waiting.retain(|(_, since, sender)| {
            !sender.is_closed() && now.saturating_sub(*since) < WAIT_FOR_FENCE
        });
        if began {
            self.find_side().await;
        }
        let is_heard = self.hub.is_heard();
        if is_heard != self.telling {
            self.discard |= is_heard;
            self.tell(is_heard).await;
        }
    }

    /// Lets the kernel program tell of connections, or not.
    async fn tell(&mut self, telling: bool) {
        let node = Node { flags: if telling { TELL } else { 0 }, ..self.node };
        let kernel = Arc::clone(&self.kernel);
        let told = tokio::task::spawn_blocking(move || kernel.set_node(node)).await;
        let result = told.map_err(anyhow::Error::from).flatten();
        self.telling = telling;
        self.report(result.context("tell the kernel program of the other nodes").err());
    }

    async fn find_side(&mut self) {
        match net::interface(&self.interface).await {
            Ok(found) => self.side = Some(Side { ifindex: found.ifindex, mac: found.mac }),
            Err(error) => {
                let error = anyhow::Error::from(error);
                self.report(Some(error.context("find the interface of the clients")));
            }
        }
    }

    /// Does what is due on the tables.
    async fn work(&mut self) {
        let now = clock::monotonic();
        let looks = self.telling && now >= self.next_look;
        if !looks && self.pending.is_empty() && !self.forgets {
            return;
        }
        let walk = if looks { self.hub.walk(now) } else { None };
        let work = Work {
            steps: std::mem::take(&mut self.pending),
            side: self.side,
            discard: std::mem::take(&mut self.discard),
            walk,
        };
        let (kernel, mut sync) = (Arc::clone(&self.kernel), self.sync.take());
        let work = tokio::task::spawn_blocking(move || {
            let done = work.run(&*kernel, &mut sync, clock::monotonic_coarse_ns());
            (sync, done)
        });
        self.next_look = now + LOOK_EVERY;
        match work.await {
            Ok((sync, Ok(done))) => {
                self.sync = sync;
                self.hub.count(done.applied);
                self.forgets = done.forgets;
                self.hub.tell(&done.news);
                if let Some((walk, changes, more)) = done.walked {
                    self.hub.walked(walk, &changes, more);
                }
                self.report(None);
            }
            Ok((sync, Err(error))) => {
                self.sync = sync;
                self.fail(error.context("keep the flow tables alike"));
            }
            Err(panicked) => self.fail(anyhow::Error::from(panicked)),
        }
    }

    fn fail(&mut self, error: anyhow::Error) {
        self.hub.give_up_walk();
        self.forgets = false;
        self.next_look = clock::monotonic() + AFTER_TROUBLE;
        self.report(Some(error));
    }

    /// Tells of a fault when it begins and when it is over.
    fn report(&mut self, error: Option<anyhow::Error>) {
        let now = error.map(|error| format!("peer channel: {error:#}"));
        let before = std::mem::replace(&mut self.trouble, now);
        match (&before, &self.trouble) {
            (None, Some(trouble)) => self.timeline.add(Note::new(Kind::Fault, trouble)),
            (Some(_), None) => {
                self.timeline.add(Note::new(Kind::Recovered, "peer channel: it works again"));
            }
            _ => {}
        }
    }
}

impl Done {
    /// Makes changes here, as far as it is known where clients are.
    fn apply(
        &mut self,
        sync: &mut FlowSync,
        changes: &mut Vec<Change>,
        side: Option<Side>,
        now_ns: u64,
    ) -> anyhow::Result<()> {
        let changes = std::mem::take(changes);
        if let Some(side) = side
            && !changes.is_empty()
        {
            self.applied += sync.apply(&changes, side, now_ns)?;
        }
        Ok(())
    }
}

impl Work {
    /// Opens the tables if they are not.
    fn run(
        self,
        kernel: &dyn Kernel,
        sync: &mut Option<FlowSync>,
        now_ns: u64,
    ) -> anyhow::Result<Done> {
        let mut done = Done::default();
        if sync.is_none() {
            *sync = kernel.flow_sync().context("open the flow tables")?;
        }
        let Some(sync) = sync else {
            // Without tables there are no connections.
            done.walked = self.walk.map(|walk| (walk, Vec::new(), false));
            return Ok(done);
        };
        let mut changes = Vec::new();
        for step in self.steps {
            if let Step::Change(change) = step {
                changes.push(change);
                continue;
            }
            done.apply(sync, &mut changes, self.side, now_ns)?;
            match step {
                Step::All => sync.begin_all(),
                Step::AllCame(age) => sync.end_all(age.as_nanos() as u64, now_ns),
                Step::Change(_) => {}
            }
        }
        done.apply(sync, &mut changes, self.side, now_ns)?;
        let (forgotten, forgets) = sync.forget(now_ns)?;
        done.applied.ended += forgotten;
        done.forgets = forgets;
        let news = sync.news();
        if !self.discard {
            done.news = news;
        }
        if let Some(mut walk) = self.walk {
            let mut changes = Vec::new();
            let more = sync.walk(&mut walk, now_ns, &mut changes)?;
            done.walked = Some((walk, changes, more));
        }
        Ok(done)
    }
}
