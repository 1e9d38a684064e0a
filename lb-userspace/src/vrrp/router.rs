//! The virtual routers of this node: one machine for each `[[floating]]`, on a thread of their own.
//!
//! The thread has real-time priority where it may, and does nothing but this: it hears and sends adverts,
//! and puts the addresses on and off. Nothing that waits for a disk or for another thread happens
//! there. If it ends, the lease ends too, and another node takes over.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, thread, time::Duration};

use anyhow::Context as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use super::HolderState;
use crate::{
    config::{Config, Floating},
    events::Note,
};

mod instance;
mod news;
mod run;

/// Commands on their way to the thread. Most senders wait for its answer, so few ever queue.
const QUEUED_COMMANDS: usize = 32;

/// Notes on their way to the timeline. More than these are lost rather than waited for.
const QUEUED_NOTES: usize = 256;

/// Where the leases are that the kernel program asks before it lets this host answer for an address.
pub trait Leases: Send + Sync + std::fmt::Debug {
    /// Sets until when this node may answer for `addresses`, on the monotonic clock; `None`: it may
    /// not any more. It must not block.
    fn set(&self, addresses: &[IpAddr], until: Option<Duration>) -> anyhow::Result<()>;

    /// As [`Leases::set`], for a node that has said that it lets the addresses go.
    fn give_away(&self, addresses: &[IpAddr], until: Duration) -> anyhow::Result<()>;

    /// Ends those leases of `addresses` that an earlier life was giving away.
    fn end_given_away(&self, addresses: &[IpAddr]) -> anyhow::Result<()>;

    /// Forgets the leases of all addresses but these. Who has no lease needs none: it is alone.
    fn keep(&self, addresses: &[IpAddr]) -> anyhow::Result<()>;

    /// The earliest end of the leases of `addresses`; none if one of them has no lease, or is being given away.
    fn get(&self, addresses: &[IpAddr]) -> Option<Duration>;
}

/// No leases: a node whose daemon dies goes on to answer for the addresses.
#[derive(Clone, Copy, Debug)]
pub struct NoLeases;

impl Leases for NoLeases {
    fn set(&self, _: &[IpAddr], _: Option<Duration>) -> anyhow::Result<()> {
        Ok(())
    }

    fn give_away(&self, _: &[IpAddr], _: Duration) -> anyhow::Result<()> {
        Ok(())
    }

    fn end_given_away(&self, _: &[IpAddr]) -> anyhow::Result<()> {
        Ok(())
    }

    fn keep(&self, _: &[IpAddr]) -> anyhow::Result<()> {
        Ok(())
    }

    fn get(&self, _: &[IpAddr]) -> Option<Duration> {
        None
    }
}

/// What a router needs to know of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// Name of this node.
    pub name: String,
    /// Its interface.
    pub interface: String,
    /// Its own address.
    pub address: IpAddr,
    /// Its configured priority.
    pub priority: u8,
    /// Name, address and priority of the other nodes.
    pub peers: Vec<(String, IpAddr, u8)>,
    /// One machine for each.
    pub floating: Vec<Floating>,
}

impl Setup {
    /// What concerns a node. None if the configuration does not have it.
    pub fn new(config: &Config, node: &str) -> Option<Self> {
        let own = config.node(node)?;
        let peers = config.nodes.iter().filter(|peer| peer.name != node);
        Some(Self {
            name: own.name.clone(),
            interface: own.interface.clone(),
            address: own.address,
            priority: own.priority,
            peers: peers.map(|it| (it.name.clone(), it.address, it.priority)).collect(),
            floating: config.floating.clone(),
        })
    }
}

/// Commands the thread; cheap to copy. It ends with the last copy.
#[derive(Clone, Debug)]
pub struct Router {
    commands: mpsc::Sender<Command>,
    holder: watch::Receiver<HolderState>,
}

#[derive(Debug)]
enum Command {
    Configure(Box<Setup>),
    Begin,
    Priority(u8),
    MayPreempt(bool),
    Release(oneshot::Sender<Vec<Released>>),
    Stop(oneshot::Sender<()>),
    Inspect(oneshot::Sender<Overview>),
}

/// What became of an attempt to hand over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// The virtual router.
    pub vrid: u8,
    /// Who is Active now: a node's name or an address; none if that is not known.
    pub to: Option<String>,
    /// This node still is, because nobody took over.
    pub kept: bool,
    /// What became of it, in a sentence.
    pub outcome: String,
}

/// All virtual routers of this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overview {
    /// One for each `[[floating]]`.
    pub instances: Vec<InstanceStatus>,
    /// What a human should look at.
    pub problems: Vec<String>,
}

/// A virtual router, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Virtual router identifier.
    pub vrid: u8,
    /// `initialize`, `backup`, `claiming`, `active` or `leaving`.
    pub role: String,
    /// Since when.
    pub since: Timestamp,
    /// Version of VRRP, 2 or 3.
    pub version: u8,
    /// The priority that this node advertises.
    pub priority: u8,
    /// The configured one.
    pub configured_priority: u8,
    /// Milliseconds between two adverts of this node.
    pub interval_ms: u64,
    /// Who is Active: the name of a node, or an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// Times that this node became Active.
    pub takeovers: u64,
    /// Adverts sent.
    pub sent: u64,
    /// Adverts that were listened to.
    pub received: u64,
    /// Adverts that were not, by reason.
    #[serde(default)]
    pub refused: BTreeMap<String, u64>,
    /// Who refused adverts came from last, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refused: Option<String>,
    /// Who else has been heard.
    #[serde(default)]
    pub peers: Vec<PeerStatus>,
    /// What is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Another router of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Name of the node, if its address is that of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Source of its adverts.
    pub address: IpAddr,
    /// Priority of its last advert; 0 if it has left.
    pub priority: u8,
    /// Milliseconds between two of its adverts.
    pub interval_ms: u64,
    /// Milliseconds since the last one.
    pub last_advert_ms: u64,
    /// Adverts heard from it.
    pub adverts: u64,
    /// The form of its checksums: `pseudo_header`, `rfc9568` or `group_pseudo_header`.
    pub checksum: String,
    /// Whether it advertises other addresses than this node.
    #[serde(default)]
    pub other_addresses: bool,
}

impl Router {
    /// Starts the thread, in the network namespace of this one. What an earlier daemon held, and may
    /// still, it goes on to hold; other floating addresses of ours are taken off the interface. It
    /// takes part from [`Router::begin`] on. Notes for the timeline come by the receiver.
    pub async fn start(
        setup: Setup,
        leases: Arc<dyn Leases>,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Note>)> {
        let (commands, received) = mpsc::channel(QUEUED_COMMANDS);
        let (notes, told) = mpsc::channel(QUEUED_NOTES);
        let (begun, ready) = oneshot::channel();
        let what = || format!("run VRRP on {}", setup.interface);
        let context = what();
        thread::Builder::new()
            .name("vrrp".into())
            .spawn(move || run::thread(setup, leases, received, notes, begun))
            .with_context(|| context.clone())?;
        let holder = ready.await.context("the thread has ended").and_then(|result| result);
        let holder = holder.context(context)?;
        Ok((Self { commands, holder }, told))
    }

    /// What has been achieved with the addresses, and each change of it.
    pub fn holder(&self) -> watch::Receiver<HolderState> {
        self.holder.clone()
    }

    /// Takes part: this node can serve.
    pub async fn begin(&self) {
        self.send(Command::Begin).await;
    }

    /// Puts another configuration into force. The interface stays the same.
    pub async fn configure(&self, setup: Setup) {
        self.send(Command::Configure(Box::new(setup))).await;
    }

    /// Advertises this priority from now on, in place of the configured one: the node serves worse than
    /// it should, or no longer.
    pub async fn set_priority(&self, priority: u8) {
        self.send(Command::Priority(priority)).await;
    }

    /// Whether this node may take the addresses from one that has them: not while it would break the
    /// connections that the other one knows.
    pub async fn set_may_preempt(&self, may: bool) {
        self.send(Command::MayPreempt(may)).await;
    }

    /// Hands over to another node. Answers when that is done, or nobody took over.
    pub async fn release(&self) -> anyhow::Result<Vec<Released>> {
        self.ask(Command::Release).await
    }

    /// Hands over if another node is there, and ends. If none is, the addresses stay where they are.
    pub async fn stop(&self) {
        // A thread that has ended already has stopped.
        let _ = self.ask(Command::Stop).await;
    }

    /// How everything stands.
    pub async fn overview(&self) -> anyhow::Result<Overview> {
        self.ask(Command::Inspect).await
    }

    async fn send(&self, command: Command) {
        // If the thread has ended, `overview` says so.
        let _ = self.commands.send(command).await;
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> anyhow::Result<T> {
        let (sender, answer) = oneshot::channel();
        let sent = self.commands.send(command(sender)).await;
        sent.ok().context("ask the thread of VRRP: it has ended")?;
        answer.await.context("ask the thread of VRRP: it has ended")
    }
}
