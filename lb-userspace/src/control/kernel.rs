//! The kernel's side as the control plane uses it: [`Dataplane`], or a model of it in tests.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use lb_common::{event::Event, stats::BackendSignals};

use crate::dataplane::{
    Adopted, AttachMode, Connection, Counters, Cut, Dataplane, Flow, Info, Op, Signals, Sweep,
    Timeouts, replay::Replayer,
};

/// What the control plane asks of the kernel's side. The calls block; they are made from blocking
/// threads. Their meaning is that of the methods of [`Dataplane`].
pub trait Kernel: fmt::Debug + Send + Sync {
    /// See [`Dataplane::adopted`].
    fn adopted(&self) -> anyhow::Result<Adopted>;
    /// See [`Dataplane::apply`].
    fn apply(&self, ops: &[Op]) -> anyhow::Result<()>;
    /// See [`Dataplane::attach`].
    fn attach(&self, interface: &str, ifindex: u32) -> anyhow::Result<AttachMode>;
    /// See [`Dataplane::info`].
    fn info(&self) -> anyhow::Result<Info>;
    /// See [`Dataplane::counters`].
    fn counters(&self, services: &[u32], backends: &[u32]) -> anyhow::Result<Counters>;
    /// See [`Signals::read`]. Waits for no other call.
    fn signals(&self, backends: &[u32]) -> anyhow::Result<Vec<BackendSignals>>;
    /// See [`Dataplane::flows`].
    fn flows(&self, limit: usize) -> anyhow::Result<Vec<Flow>>;
    /// See [`Dataplane::connections`].
    fn connections(&self, backends: &BTreeSet<u32>) -> anyhow::Result<Vec<Connection>>;
    /// See [`Dataplane::cut`].
    fn cut(&self, connections: &[Connection]) -> anyhow::Result<Vec<Cut>>;
    /// See [`Dataplane::sweep`].
    fn sweep(&self, now_ns: u64, timeouts: &Timeouts) -> anyhow::Result<Sweep>;
    /// See [`Dataplane::take_events`].
    fn take_events(&self) -> Vec<Event>;
    /// See [`Dataplane::replayer`]. `None`: there is nothing that could be replayed.
    fn replayer(&self) -> anyhow::Result<Option<Replayer>>;
}

/// The data plane, shared by the reconcile task, the sweeps and the readers of `status`.
#[derive(Debug)]
pub struct Shared {
    dataplane: Mutex<Dataplane>,
    /// Outside the lock, which a sweep holds for long.
    signals: Signals,
}

impl Shared {
    /// Shares an open data plane.
    pub fn new(dataplane: Dataplane) -> anyhow::Result<Self> {
        Ok(Self { signals: dataplane.signals()?, dataplane: Mutex::new(dataplane) })
    }

    fn lock(&self) -> MutexGuard<'_, Dataplane> {
        // Every call leaves the maps in a state that the next can go on from.
        self.dataplane.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for Shared {
    fn adopted(&self) -> anyhow::Result<Adopted> {
        self.lock().adopted()
    }

    fn apply(&self, ops: &[Op]) -> anyhow::Result<()> {
        self.lock().apply(ops)
    }

    fn attach(&self, interface: &str, ifindex: u32) -> anyhow::Result<AttachMode> {
        self.lock().attach(interface, ifindex)
    }

    fn info(&self) -> anyhow::Result<Info> {
        self.lock().info()
    }

    fn counters(&self, services: &[u32], backends: &[u32]) -> anyhow::Result<Counters> {
        self.lock().counters(services, backends)
    }

    fn signals(&self, backends: &[u32]) -> anyhow::Result<Vec<BackendSignals>> {
        self.signals.read(backends)
    }

    fn flows(&self, limit: usize) -> anyhow::Result<Vec<Flow>> {
        self.lock().flows(limit)
    }

    fn connections(&self, backends: &BTreeSet<u32>) -> anyhow::Result<Vec<Connection>> {
        self.lock().connections(backends)
    }

    fn cut(&self, connections: &[Connection]) -> anyhow::Result<Vec<Cut>> {
        self.lock().cut(connections)
    }

    fn sweep(&self, now_ns: u64, timeouts: &Timeouts) -> anyhow::Result<Sweep> {
        self.lock().sweep(now_ns, timeouts)
    }

    fn take_events(&self) -> Vec<Event> {
        self.lock().take_events()
    }

    fn replayer(&self) -> anyhow::Result<Option<Replayer>> {
        self.lock().replayer().map(Some)
    }
}
