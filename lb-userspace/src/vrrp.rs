//! Who owns the floating addresses. With one node: this one does; with several, VRRP decides.
//!
//! - `machine` decides who is Active, and `packet` is what the nodes tell each other; both pure.
//! - `priority` is what a node is worth, given what it can serve; pure too.
//! - `router` is the thread that runs the machines of all virtual routers, by `socket`.
//! - `address` puts floating addresses on an interface and takes them off.
//! - `announce` tells the neighbours on the link whose MAC address they have.
//! - `hold` is the task that does both for as long as this node owns the addresses.

use std::net::IpAddr;

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot, watch};

pub mod address;
pub mod announce;
mod hold;
pub mod machine;
pub mod packet;
pub mod priority;
mod realtime;
pub mod router;
mod socket;

use hold::Command;

/// Commands on their way to the task. Each sender waits for its answer, so few ever queue.
const QUEUED_COMMANDS: usize = 4;

/// Keeps floating addresses on an interface.
///
/// They are put on and announced, put on again when somebody takes them off, announced again when the
/// link comes back. Dropping the holder leaves them where they are: the kernel program goes on
/// forwarding when the daemon ends, and so it needs them. Only [`Holder::release`] takes them off.
#[derive(Debug)]
pub struct Holder {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<HolderState>,
}

/// What a [`Holder`] has achieved.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HolderState {
    /// Name of the interface.
    pub interface: String,
    /// In the order of the addresses.
    pub addresses: Vec<HeldAddress>,
}

/// One floating address.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HeldAddress {
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
    /// Whether it is on the interface.
    pub held: bool,
    /// Times that it was put on again because somebody had taken it off.
    pub restored: u64,
    /// MAC address of another host that claims the address (IPv4 only).
    pub conflict: Option<String>,
    /// Why it is not held.
    pub problem: Option<String>,
}

impl Holder {
    /// Starts to hold `addresses`, each with its prefix length. It is no error if the interface does
    /// not exist: it is waited for. Errors are those of opening sockets, mostly a lack of
    /// `CAP_NET_RAW`. Call it within a tokio runtime.
    pub fn start(interface: String, addresses: Vec<(IpAddr, u8)>) -> anyhow::Result<Self> {
        let (commands, receiver) = mpsc::channel(QUEUED_COMMANDS);
        let (sender, state) = watch::channel(HolderState::default());
        // Opened here, so that a refusal is the caller's, and in the caller's namespace.
        let sockets = hold::Sockets::open()
            .with_context(|| format!("hold the floating addresses on {interface}"))?;
        tokio::spawn(hold::run(sockets, interface, addresses, receiver, sender));
        Ok(Self { commands, state })
    }

    /// What has been achieved, and each change of it.
    pub fn state(&self) -> watch::Receiver<HolderState> {
        self.state.clone()
    }

    /// Holds these addresses from now on. Those that are no longer among them are taken off; the
    /// others are not touched. Returns when it is done, or has been tried: see [`Holder::state`].
    pub async fn set_addresses(&self, addresses: Vec<(IpAddr, u8)>) {
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::Set(addresses, done)).await.is_ok() {
            // The task ends only with its runtime.
            let _ = wait.await;
        }
    }

    /// Announces the addresses once more: somebody else has claimed them meanwhile.
    pub async fn announce(&self) {
        // The task ends only with its runtime.
        let _ = self.commands.send(Command::Announce).await;
    }

    /// Takes the addresses off the interface. The error is the first one; all are tried.
    pub async fn release(self) -> anyhow::Result<()> {
        let (done, wait) = oneshot::channel();
        let sent = self.commands.send(Command::Release(done)).await;
        sent.ok().context("release the floating addresses: their task is gone")?;
        wait.await.context("release the floating addresses: their task is gone")??;
        Ok(())
    }
}
