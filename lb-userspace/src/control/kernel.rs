//! The kernel's side as the control plane uses it: [`Dataplane`], or a model of it in tests.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use lb_common::{
    event::Event,
    trace::{Sample, TraceFilter},
};

use crate::dataplane::{
    Adopted, AttachMode, Counters, Dataplane, Flow, Info, Op, Sweep, Timeouts, Traced, Tracer,
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
    /// See [`Dataplane::flows`].
    fn flows(&self, limit: usize) -> anyhow::Result<Vec<Flow>>;
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

    fn flows(&self, limit: usize) -> anyhow::Result<Vec<Flow>> {
        self.lock().flows(limit)
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
}
