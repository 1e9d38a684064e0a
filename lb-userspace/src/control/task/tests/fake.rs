//! A model of the kernel's side.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::ControlFlow,
    sync::{Arc, Mutex},
    time::Duration,
};

use lb_common::{
    backend::{self, Backend},
    elder::{ELDERS, Elder},
    event::Event,
    news::Node,
    reason::Reason,
    service::{Service, ServiceKey},
    source::Source,
    stats::{BackendSignals, BackendStats, ServiceStats},
    trace::{Sample, TraceFilter},
};

use crate::{
    control::{
        kernel::{Gates, Kernel},
        plan::service_key,
    },
    dataplane::{
        Adopted, AttachMode, Attachment, Connection, Counters, Cut, Flow, Info, Op, Sizes, Sweep,
        Timeouts, Traced, replay::Replayer, sync::FlowSync,
    },
    vrrp::router::{Leases, NoLeases},
};

/// A model of the maps.
#[derive(Debug, Default)]
pub(super) struct FakeKernel(Mutex<Maps>);

#[derive(Debug, Default)]
pub(super) struct Maps {
    pub(super) services: BTreeMap<ServiceKey, Service>,
    pub(super) backends: BTreeMap<u32, Backend>,
    pub(super) slots: BTreeMap<u32, u32>,
    pub(super) sources: BTreeMap<(Source, u32), u32>,
    pub(super) attached: Vec<Attachment>,
    pub(super) writes: usize,
    pub(super) broken: bool,
    pub(super) events: Vec<Event>,
    pub(super) samples: Vec<Sample>,
    pub(super) traces: BTreeMap<u32, TraceFilter>,
    pub(super) traced: Traced,
    pub(super) sizes: Sizes,
    pub(super) connections: Vec<Connection>,
    pub(super) signals: BTreeMap<u32, BackendSignals>,
    pub(super) node: Option<Node>,
}

impl FakeKernel {
    pub(super) fn maps(&self) -> std::sync::MutexGuard<'_, Maps> {
        self.0.lock().unwrap()
    }

    /// Addresses in the table of the service at `port`.
    pub(super) fn table(&self, port: u16) -> Option<BTreeSet<SocketAddr>> {
        let maps = self.maps();
        let service = maps.services.get(&key(port))?;
        let slots = service.table_start..service.table_start + service.table_len;
        let backends = slots.map(|slot| &maps.backends[&maps.slots[&slot]]);
        Some(backends.map(|it| SocketAddr::from(([127, 0, 0, 1], it.port))).collect())
    }

    pub(super) fn forwards(&self, address: SocketAddr) -> bool {
        let maps = self.maps();
        let mut backends = maps.backends.values().filter(|it| it.port == address.port());
        backends.any(|it| it.flags & backend::FORWARD != 0)
    }
}

impl Kernel for FakeKernel {
    fn adopted(&self) -> anyhow::Result<Adopted> {
        let maps = self.maps();
        Ok(Adopted {
            sources: maps.sources.iter().map(|(key, verdict)| (*key, *verdict)).collect(),
            services: maps.services.iter().map(|(key, service)| (*key, *service)).collect(),
            backends: maps.backends.iter().map(|(id, backend)| (*id, *backend)).collect(),
            sizes: maps.sizes,
            ..Adopted::default()
        })
    }

    fn apply(&self, ops: &[Op]) -> anyhow::Result<()> {
        let mut maps = self.maps();
        for op in ops {
            anyhow::ensure!(!maps.broken, "the maps are broken");
            maps.writes += 1;
            match op.clone() {
                Op::SetBackend { id, backend } => drop(maps.backends.insert(id, backend)),
                Op::ClearBackend { id } => drop(maps.backends.remove(&id)),
                Op::SetTable { start, slots } => {
                    maps.slots.extend((start..).zip(slots.iter().map(|slot| slot.backend)));
                }
                Op::SetService { key, service } => drop(maps.services.insert(key, service)),
                Op::RemoveService { key } => drop(maps.services.remove(&key)),
                Op::SetSource { bits, source, verdict } => {
                    maps.sources.insert((source, bits), verdict);
                }
                Op::RemoveSource { bits, source } => drop(maps.sources.remove(&(source, bits))),
                Op::SetVips { .. } | Op::SetPorts { .. } => {}
            }
        }
        Ok(())
    }

    fn attach(&self, interface: &str, ifindex: u32) -> anyhow::Result<AttachMode> {
        let (interface, mode) = (interface.to_owned(), AttachMode::Generic);
        self.maps().attached.push(Attachment { interface, ifindex, mode });
        Ok(mode)
    }

    fn detach(&self, ifindex: u32) -> anyhow::Result<()> {
        self.maps().attached.retain(|attachment| attachment.ifindex != ifindex);
        Ok(())
    }

    fn info(&self) -> anyhow::Result<Info> {
        Ok(Info { attachments: self.maps().attached.clone(), ..Info::default() })
    }

    fn counters(&self, services: &[u32], backends: &[u32]) -> anyhow::Result<Counters> {
        let mut reasons = vec![0; Reason::COUNT as usize];
        reasons[Reason::NoService as usize] = 7;
        let stats = ServiceStats { connections: 40, refused: 2, ..ServiceStats::ZERO };
        Ok(Counters {
            reasons,
            services: services.iter().map(|&index| (index, stats)).collect(),
            backends: backends
                .iter()
                .map(|&id| (id, BackendStats { connections: 20, ..BackendStats::ZERO }, 3))
                .collect(),
        })
    }

    fn signals(&self, backends: &[u32]) -> anyhow::Result<Vec<BackendSignals>> {
        let maps = self.maps();
        let of = |id: &u32| maps.signals.get(id).copied().unwrap_or(BackendSignals::ZERO);
        Ok(backends.iter().map(of).collect())
    }

    fn flows(
        &self,
        wanted: &dyn Fn(u32) -> bool,
        each: &mut dyn FnMut(Flow) -> ControlFlow<()>,
    ) -> anyhow::Result<()> {
        let maps = self.maps();
        let flow = |(&id, backend): (&u32, &Backend)| Flow {
            protocol: 6,
            client: "192.0.2.9:4000".parse().unwrap(),
            listen: "192.0.2.100:80".parse().unwrap(),
            nat: "192.0.2.100:2000".parse().unwrap(),
            backend: SocketAddr::from(([127, 0, 0, 1], backend.port)),
            backend_id: id,
            phase: "established".into(),
            idle_ms: 5,
            forward_packets: 1,
            forward_bytes: 60,
            return_packets: 1,
            return_bytes: 60,
        };
        for flow in maps.backends.iter().filter(|(id, _)| wanted(**id)).map(flow) {
            if each(flow).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn connections(&self, backends: &BTreeSet<u32>) -> anyhow::Result<Vec<Connection>> {
        let connections = self.maps().connections.clone();
        Ok(connections.into_iter().filter(|it| backends.contains(&it.backend)).collect())
    }

    fn cut(&self, connections: &[Connection]) -> anyhow::Result<Vec<Cut>> {
        let mut maps = self.maps();
        let open = maps.connections.len();
        maps.connections.retain(|it| !connections.contains(it));
        Ok(vec![Cut::default(); open - maps.connections.len()])
    }

    fn sweep(&self, _: u64, _: &Timeouts) -> anyhow::Result<Option<Sweep>> {
        Ok(Some(Sweep { flows: 5, ..Sweep::default() }))
    }

    fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.maps().events)
    }

    fn take_samples(&self) -> Vec<Sample> {
        std::mem::take(&mut self.maps().samples)
    }

    fn set_trace(&self, index: u32, filter: Option<&TraceFilter>) -> anyhow::Result<()> {
        let mut maps = self.maps();
        match filter {
            Some(filter) => maps.traces.insert(index, *filter),
            None => maps.traces.remove(&index),
        };
        Ok(())
    }

    fn take_traces(&self) -> anyhow::Result<Traced> {
        let mut maps = self.maps();
        let lost = maps.traced.lost;
        Ok(std::mem::replace(&mut maps.traced, Traced { records: Vec::new(), lost }))
    }

    fn set_macs(&self, _: &BTreeSet<[u8; 6]>) -> anyhow::Result<()> {
        Ok(())
    }

    fn set_node(&self, node: Node) -> anyhow::Result<()> {
        self.maps().node = Some(node);
        Ok(())
    }

    fn set_elders(&self, _: [Elder; ELDERS as usize]) -> anyhow::Result<()> {
        Ok(())
    }

    fn flow_sync(&self) -> anyhow::Result<Option<FlowSync>> {
        Ok(None)
    }

    fn replayer(&self) -> anyhow::Result<Option<Replayer>> {
        Ok(None)
    }

    fn leases(&self) -> Arc<dyn Leases> {
        Arc::new(NoLeases)
    }

    fn gates(&self) -> Arc<dyn Gates> {
        Arc::new(NoGates)
    }
}

fn key(port: u16) -> ServiceKey {
    service_key(SocketAddr::from(([192, 0, 2, 100], port)), crate::config::Protocol::Tcp)
}

/// Nothing has a lease.
#[derive(Debug)]
struct NoGates;

impl Gates for NoGates {
    fn extend(&self, _: &[SocketAddr], _: Duration) -> anyhow::Result<()> {
        Ok(())
    }
}
