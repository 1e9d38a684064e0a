//! The kernel's side as the control plane uses it: [`Dataplane`], or a model of it in tests.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use lb_common::{
    event::Event,
    stats::BackendSignals,
    trace::{Sample, TraceFilter},
};

use crate::dataplane::{
    Adopted, AttachMode, Connection, Counters, Cut, Dataplane, Flow, Info, Op, Sweep, Timeouts,
    Traced, Tracer, replay::Replayer,
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
    /// See [`Dataplane::signals`].
    fn signals(&self, backends: &[u32]) -> anyhow::Result<Vec<(u32, BackendSignals)>>;
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
    /// See [`Dataplane::take_samples`].
    fn take_samples(&self) -> Vec<Sample>;
    /// See [`Dataplane::set_trace`]; the first trace puts the second variant in force.
    fn set_trace(&self, index: u32, filter: Option<&TraceFilter>) -> anyhow::Result<()>;
    /// See [`Dataplane::take_traces`].
    fn take_traces(&self) -> anyhow::Result<Traced>;
    /// See [`Dataplane::replayer`]. `None`: there is nothing that could be replayed.
    fn replayer(&self) -> anyhow::Result<Option<Replayer>>;
}

/// The data plane, shared by the reconcile task, the sweeps and the readers of `status`.
#[derive(Debug)]
pub struct Shared(Mutex<Dataplane>);

impl Shared {
    /// Shares an open data plane.
    pub fn new(dataplane: Dataplane) -> Self {
        Self(Mutex::new(dataplane))
    }

    fn lock(&self) -> MutexGuard<'_, Dataplane> {
        // Every call leaves the maps in a state that the next can go on from.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn signals(&self, backends: &[u32]) -> anyhow::Result<Vec<(u32, BackendSignals)>> {
        self.lock().signals(backends)
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

    fn take_samples(&self) -> Vec<Sample> {
        self.lock().take_samples()
    }

    fn set_trace(&self, index: u32, filter: Option<&TraceFilter>) -> anyhow::Result<()> {
        let options = {
            let dataplane = self.lock();
            (filter.is_some() && !dataplane.is_tracing()).then(|| dataplane.options().clone())
        };
        if let Some(options) = options {
            // Loading takes long; others use the maps meanwhile.
            let tracer = Tracer::load(&options)?;
            self.lock().begin_tracing(tracer)?;
        }
        self.lock().set_trace(index, filter)
    }

    fn take_traces(&self) -> anyhow::Result<Traced> {
        self.lock().take_traces()
    }

    fn replayer(&self) -> anyhow::Result<Option<Replayer>> {
        self.lock().replayer().map(Some)
    }
}
