//! The kernel's side as the control plane uses it: [`Dataplane`], or a model of it in tests.

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lb_common::{
    elder::{ELDERS, Elder},
    event::Event,
    news::Node,
    stats::BackendSignals,
    trace::{Sample, TraceFilter},
};

use crate::{
    dataplane::{
        Adopted, AttachMode, Connection, Counters, Cut, Dataplane, Flow, Info, KernelLeases, Op,
        Reader, Signals, Sweep, Sweeper, Timeouts, Traced, Tracer, replay::Replayer,
        sync::FlowSync,
    },
    vrrp::router::Leases,
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
    /// See [`Dataplane::detach`].
    fn detach(&self, ifindex: u32) -> anyhow::Result<()>;
    /// See [`Dataplane::info`].
    fn info(&self) -> anyhow::Result<Info>;
    /// See [`Dataplane::counters`].
    fn counters(&self, services: &[u32], backends: &[u32]) -> anyhow::Result<Counters>;
    /// See [`Signals::read`]. Waits for no other call.
    fn signals(&self, backends: &[u32]) -> anyhow::Result<Vec<BackendSignals>>;
    /// See [`Reader::read`].
    fn flows(
        &self,
        wanted: &dyn Fn(u32) -> bool,
        each: &mut dyn FnMut(Flow) -> ControlFlow<()>,
    ) -> anyhow::Result<()>;
    /// See [`Reader::connections`].
    fn connections(&self, backends: &BTreeSet<u32>) -> anyhow::Result<Vec<Connection>>;
    /// See [`Dataplane::cut`].
    fn cut(&self, connections: &[Connection]) -> anyhow::Result<Vec<Cut>>;
    /// See [`Sweeper::slice`].
    fn sweep(&self, now_ns: u64, timeouts: &Timeouts) -> anyhow::Result<Option<Sweep>>;
    /// See [`Dataplane::take_events`].
    fn take_events(&self) -> Vec<Event>;
    /// See [`Dataplane::take_samples`].
    fn take_samples(&self) -> Vec<Sample>;
    /// See [`Dataplane::set_trace`]; the first trace puts the second variant in force.
    fn set_trace(&self, index: u32, filter: Option<&TraceFilter>) -> anyhow::Result<()>;
    /// See [`Dataplane::take_traces`].
    fn take_traces(&self) -> anyhow::Result<Traced>;
    /// See [`Dataplane::set_node`].
    fn set_node(&self, node: Node) -> anyhow::Result<()>;
    /// See [`Dataplane::set_elders`].
    fn set_elders(&self, elders: [Elder; ELDERS as usize]) -> anyhow::Result<()>;
    /// See [`Dataplane::set_macs`].
    fn set_macs(&self, macs: &BTreeSet<[u8; 6]>) -> anyhow::Result<()>;
    /// See [`Dataplane::flow_sync`]. `None`: there are no flow tables to keep alike.
    fn flow_sync(&self) -> anyhow::Result<Option<FlowSync>>;
    /// See [`Dataplane::replayer`]. `None`: there is nothing that could be replayed.
    fn replayer(&self) -> anyhow::Result<Option<Replayer>>;
    /// Where the leases of floating addresses are.
    fn leases(&self) -> Arc<dyn Leases>;
    /// Where the leases of databases' servers are.
    fn gates(&self) -> Arc<dyn Gates>;
}

/// The leases of servers: until when packets may go to them, if they need one.
pub trait Gates: fmt::Debug + Send + Sync {
    /// Lets packets through to these servers until then, on the monotonic clock. Blocks for microseconds.
    fn extend(&self, servers: &[SocketAddr], until: Duration) -> anyhow::Result<()>;
}

/// The data plane, shared by the reconcile task, the sweeps and the readers of `status`.
///
/// Sweeps and lists of flows, which take long when there are many, wait for nobody and nobody waits
/// for them.
#[derive(Debug)]
pub struct Shared {
    dataplane: Mutex<Dataplane>,
    sweeper: Arc<Mutex<Sweeper>>,
    reader: Arc<Reader>,
    /// Outside the lock, which a long list of writes holds for long.
    signals: Signals,
    leases: Arc<KernelLeases>,
}

impl Shared {
    /// Shares an open data plane.
    pub fn new(dataplane: Dataplane) -> anyhow::Result<Self> {
        let (sweeper, reader) = (dataplane.sweeper(), dataplane.reader());
        let signals = dataplane.signals()?;
        let leases = Arc::new(dataplane.leases()?);
        Ok(Self { dataplane: Mutex::new(dataplane), sweeper, reader, signals, leases })
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

    fn detach(&self, ifindex: u32) -> anyhow::Result<()> {
        self.lock().detach(ifindex)
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

    fn flows(
        &self,
        wanted: &dyn Fn(u32) -> bool,
        each: &mut dyn FnMut(Flow) -> ControlFlow<()>,
    ) -> anyhow::Result<()> {
        self.reader.read(wanted, each)
    }

    fn connections(&self, backends: &BTreeSet<u32>) -> anyhow::Result<Vec<Connection>> {
        self.reader.connections(backends)
    }

    fn cut(&self, connections: &[Connection]) -> anyhow::Result<Vec<Cut>> {
        self.lock().cut(connections)
    }

    fn sweep(&self, now_ns: u64, timeouts: &Timeouts) -> anyhow::Result<Option<Sweep>> {
        // A sweep that panicked left tables that the next can go on from.
        self.sweeper.lock().unwrap_or_else(PoisonError::into_inner).slice(now_ns, timeouts)
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

    fn set_node(&self, node: Node) -> anyhow::Result<()> {
        self.lock().set_node(node)
    }

    fn set_elders(&self, elders: [Elder; ELDERS as usize]) -> anyhow::Result<()> {
        self.lock().set_elders(elders)
    }

    fn set_macs(&self, macs: &BTreeSet<[u8; 6]>) -> anyhow::Result<()> {
        self.lock().set_macs(macs)
    }

    fn flow_sync(&self) -> anyhow::Result<Option<FlowSync>> {
        self.lock().flow_sync().map(Some)
    }

    fn replayer(&self) -> anyhow::Result<Option<Replayer>> {
        self.lock().replayer().map(Some)
    }

    fn leases(&self) -> Arc<dyn Leases> {
        Arc::<KernelLeases>::clone(&self.leases)
    }

    fn gates(&self) -> Arc<dyn Gates> {
        Arc::<KernelLeases>::clone(&self.leases)
    }
}
