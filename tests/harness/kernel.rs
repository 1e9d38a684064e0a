//! The program as the kernel runs it: loaded without pins, one packet at a time.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRun,
    maps::{
        Array, HashMap as BpfHashMap, Map, MapData, MapInfo, PerCpuArray, PerCpuValues, RingBuf,
        lpm_trie::{Key as Prefixed, LpmTrie},
    },
    programs::{ProgramInfo, TestRunOptions, Xdp},
    util::nr_cpus,
};
use ballast::dataplane::load::OBJECT;
use lb_common::{
    backend::Backend,
    elder::{Elder, LAST, RELAY},
    event::Event,
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, HalfOpen4, HalfOpen6},
    limits::{MAC_BYTES, PORTS_BYTES, VIP_BYTES},
    names,
    news::Node,
    reason::Reason,
    service::{Service, ServiceKey, Slot},
    source::{Bucket, RateKey, Source},
    stats::{BackendSignals, BackendStats, ServiceStats},
    trace::{TRACES_BYTES, TraceCounts, TraceFilter, TraceRecord},
};
use lb_ebpf::fake::{Outcome, Setup, Xdp as Action};

/// Room for a packet that a test gets back.
const PACKET_BYTES: usize = 4096;

/// The loaded program and its maps.
pub struct Kernel {
    ebpf: Ebpf,
    /// Name of the loaded program.
    program: &'static str,
    /// What [`Kernel::reset`] has to undo.
    setup: Setup,
    cpus: usize,
}

/// Counters, summed over the CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// By number of the reason.
    pub reasons: Vec<u64>,
    /// By identifier of the backend, as many as the configuration names.
    pub backends: Vec<(u32, BackendStats)>,
    /// By index of the service.
    pub services: Vec<(u32, ServiceStats)>,
    /// What connections showed of each backend. Of the handshakes the number alone: how long each took is
    /// a matter of the clock.
    pub signals: Vec<(u32, BackendSignals)>,
    /// Open connections by identifier of the backend.
    pub active: Vec<(u32, u64)>,
}

impl Counters {
    /// Packets in all counters that a packet may end in.
    #[must_use]
    pub fn counted(&self) -> u64 {
        let forwarded: u64 = self
            .backends
            .iter()
            .map(|(_, stats)| stats.forward_packets + stats.return_packets)
            .sum();
        forwarded + self.reasons.iter().sum::<u64>()
    }
}

impl Kernel {
    /// Loads the program, with flow tables of this many entries.
    pub fn load(flows: u32) -> Result<Self> {
        Self::load_program(names::PROGRAM, flows, |_| {})
    }

    /// Loads the program as where the node's stack scales windows so, and writes timestamps without offset.
    pub fn load_scaled(flows: u32, own_scale: u8) -> Result<Self> {
        let more = u32::from(own_scale) + 1;
        Self::load_program(names::PROGRAM, flows, |loader| {
            loader.override_global(names::OWN_SCALE, &more, true);
        })
    }

    /// Loads the variant that makes traces.
    pub fn load_traced(flows: u32) -> Result<Self> {
        Self::load_program(names::TRACE_PROGRAM, flows, |loader| {
            loader.override_global(names::TRACE, &1_u32, true);
            loader.map_max_entries(names::TRACES, TRACES_BYTES);
        })
    }

    fn load_program<'a>(
        program: &'static str,
        flows: u32,
        prepare: impl FnOnce(&mut EbpfLoader<'a>),
    ) -> Result<Self> {
        // SAFETY: the call takes nothing and cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            bail!(
                "the kernel tests load BPF programs, which only root may do: run them as root, \
                 for example with `sudo -E env PATH=$PATH cargo xtask test kernel`"
            );
        }
        let mut loader = EbpfLoader::new();
        for name in [names::FLOWS, names::FLOWS6, names::HALF_OPEN, names::HALF_OPEN6] {
            loader.map_max_entries(name, flows);
        }
        prepare(&mut loader);
        let mut ebpf = loader.load(OBJECT).context("create the maps")?;
        let xdp: &mut Xdp = ebpf.program_mut(program).context("find the program")?.try_into()?;
        xdp.load().context("load the program")?;
        let cpus = nr_cpus().map_err(|(_, error)| error).context("count the CPUs")?;
        Ok(Self { ebpf, program, setup: Setup::default(), cpus })
    }

    /// The program as the kernel describes it.
    pub fn program(&self) -> Result<ProgramInfo> {
        Ok(self.xdp()?.info()?)
    }

    /// A map as the kernel describes it.
    pub fn map(&self, name: &str) -> Result<MapInfo> {
        let map = self
            .ebpf
            .map(names::in_object(name))
            .with_context(|| format!("find the map {name}"))?;
        let data = match map {
            Map::Array(data)
            | Map::HashMap(data)
            | Map::LpmTrie(data)
            | Map::LruHashMap(data)
            | Map::PerCpuArray(data)
            | Map::RingBuf(data) => data,
            other => bail!("{name} is a map of a kind that nobody expects: {other:?}"),
        };
        Ok(data.info()?)
    }

    /// Empties all maps and writes a configuration.
    pub fn reset(&mut self, setup: &Setup) -> Result<()> {
        let old = std::mem::replace(&mut self.setup, setup.clone());
        self.empty::<FlowKey4, FlowEntry4>(names::FLOWS)?;
        self.empty::<FlowKey4, HalfOpen4>(names::HALF_OPEN)?;
        self.empty::<FlowKey6, FlowEntry6>(names::FLOWS6)?;
        self.empty::<FlowKey6, HalfOpen6>(names::HALF_OPEN6)?;
        self.empty::<ServiceKey, Service>(names::SERVICES)?;
        self.empty::<RateKey, Bucket>(names::RATES)?;
        let mut sources: LpmTrie<_, Source, u32> = self.map_mut(names::SOURCES)?.try_into()?;
        for ((bits, source), _) in &old.sources {
            // A list may name a prefix twice, so it may be gone already.
            let _ = sources.remove(&Prefixed::new(*bits, *source));
        }
        for ((bits, source), verdict) in &setup.sources {
            sources.insert(&Prefixed::new(*bits, *source), *verdict, 0)?;
        }
        let (filter, ports_filter) = setup.filters();
        let mut steered: Array<_, [u8; PORTS_BYTES]> = self.array(names::PORTS)?;
        steered.set(0, <&[u8; PORTS_BYTES]>::try_from(ports_filter.as_slice())?, 0)?;
        let mut vips: Array<_, [u8; VIP_BYTES]> = self.array(names::VIPS)?;
        vips.set(0, <&[u8; VIP_BYTES]>::try_from(filter.as_slice())?, 0)?;
        let mut macs: Array<_, [u8; MAC_BYTES]> = self.array(names::MACS)?;
        macs.set(0, <&[u8; MAC_BYTES]>::try_from(setup.mac_filter().as_slice())?, 0)?;
        let mut backends: Array<_, Backend> = self.array(names::BACKENDS)?;
        for (id, _) in &old.backends {
            backends.set(*id, Backend::ZERO, 0)?;
        }
        for (id, backend) in &setup.backends {
            backends.set(*id, backend, 0)?;
        }
        let mut slots: Array<_, Slot> = self.array(names::MAGLEV)?;
        for (index, slot) in (0..).zip(&setup.slots) {
            slots.set(index, slot, 0)?;
        }
        let mut services: BpfHashMap<_, ServiceKey, Service> =
            self.map_mut(names::SERVICES)?.try_into()?;
        for (key, service) in &setup.services {
            services.insert(key, service, 0)?;
        }
        let mut cursors: Array<_, u64> = self.array(names::CURSORS)?;
        for (_, service) in old.services.iter().chain(&setup.services) {
            cursors.set(service.index, 0, 0)?;
        }
        let mut active: Array<_, u64> = self.array(names::ACTIVE)?;
        for (id, _) in old.backends.iter().chain(&setup.backends) {
            active.set(*id, 0, 0)?;
        }
        let services: Vec<u32> =
            old.services.iter().chain(&setup.services).map(|(_, service)| service.index).collect();
        let backends: Vec<u32> =
            old.backends.iter().chain(&setup.backends).map(|(id, _)| *id).collect();
        self.zero::<u64>(names::REASONS, &reasons(), 0)?;
        self.zero::<u64>("REPORTED", &reasons(), 0)?;
        self.zero::<u64>("ANSWERED", &[0], 0)?;
        self.zero(names::SERVICE_STATS, &services, ServiceStats::ZERO)?;
        self.zero(names::BACKEND_STATS, &backends, BackendStats::ZERO)?;
        self.zero(names::BACKEND_SIGNALS, &backends, BackendSignals::ZERO)?;
        self.zero(names::SPENT, &services, 0_u64)?;
        self.take_events()?;
        self.set_elder(Elder::ZERO)?;
        self.set_relay(Elder::ZERO)?;
        self.set_node(Node::ZERO)
    }

    /// Who had the addresses before this node, from now on.
    pub fn set_elder(&mut self, elder: Elder) -> Result<()> {
        let mut elders: Array<_, Elder> = self.array(names::ELDER)?;
        Ok(elders.set(LAST, elder, 0)?)
    }

    /// To whom this node hands on what comes from who has the addresses, from now on.
    pub fn set_relay(&mut self, elder: Elder) -> Result<()> {
        let mut elders: Array<_, Elder> = self.array(names::ELDER)?;
        Ok(elders.set(RELAY, elder, 0)?)
    }

    /// What this node is among the others, from now on.
    pub fn set_node(&mut self, node: Node) -> Result<()> {
        let mut nodes: Array<_, Node> = self.array(names::NODE)?;
        Ok(nodes.set(0, node, 0)?)
    }

    /// Changes a backend.
    pub fn set_backend(&mut self, id: u32, backend: Backend) -> Result<()> {
        let mut backends: Array<_, Backend> = self.array(names::BACKENDS)?;
        Ok(backends.set(id, backend, 0)?)
    }

    /// Changes a slot; `index` is that in `MAGLEV`.
    pub fn set_slot(&mut self, index: u32, slot: Slot) -> Result<()> {
        let mut slots: Array<_, Slot> = self.array(names::MAGLEV)?;
        Ok(slots.set(index, slot, 0)?)
    }

    /// Runs a packet through the program.
    pub fn run(&self, packet: &[u8]) -> Result<Outcome> {
        let mut after = vec![0; PACKET_BYTES];
        let result = self.xdp()?.test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut after),
            ..TestRunOptions::default()
        })?;
        after.truncate(result.data_size_out as usize);
        let xdp = match result.return_value {
            1 => Action::Drop,
            2 => Action::Pass,
            3 => Action::Transmit,
            4 => Action::Redirect,
            other => bail!("the program returned {other}, which is no action of its"),
        };
        Ok(Outcome { xdp, frame: after })
    }

    /// What the program has counted.
    pub fn counters(&self) -> Result<Counters> {
        let reasons = self.summed::<u64>(names::REASONS, &reasons(), |sum, count| *sum += count)?;
        let backends: Vec<u32> = self.setup.backends.iter().map(|(id, _)| *id).collect();
        let services: Vec<u32> =
            self.setup.services.iter().map(|(_, service)| service.index).collect();
        let map = self.ebpf.map(names::ACTIVE).context("find ACTIVE")?;
        let active: Array<_, u64> = map.try_into()?;
        Ok(Counters {
            reasons: reasons.into_iter().map(|(_, count)| count).collect(),
            active: backends
                .iter()
                .map(|id| Ok((*id, active.get(id, 0)?)))
                .collect::<Result<_>>()?,
            signals: self
                .summed(names::BACKEND_SIGNALS, &backends, add_signals)?
                .into_iter()
                .map(|(id, signals)| (id, untimed(signals)))
                .collect(),
            backends: self.summed(names::BACKEND_STATS, &backends, add_backend)?,
            services: self.summed(names::SERVICE_STATS, &services, add_service)?,
        })
    }

    /// Takes the records in `EVENTS`.
    pub fn take_events(&mut self) -> Result<Vec<Event>> {
        let mut ring: RingBuf<_> = self.map_mut(names::EVENTS)?.try_into()?;
        let mut events = Vec::new();
        while let Some(record) = ring.next() {
            if record.len() < size_of::<Event>() {
                bail!("a record of {} bytes in EVENTS", record.len());
            }
            // SAFETY: long enough (checked), any bytes are a valid `Event` (`map_type!`), and the
            // read needs no alignment.
            events.push(unsafe { record.as_ptr().cast::<Event>().read_unaligned() });
        }
        Ok(events)
    }

    /// Sets what a trace wants, and forgets what it has counted.
    pub fn set_trace(&mut self, index: u32, filter: &TraceFilter) -> Result<()> {
        let mut filters: Array<_, TraceFilter> = self.array(names::TRACE_FILTERS)?;
        filters.set(index, filter, 0)?;
        self.zero(names::TRACE_COUNTS, &[index], TraceCounts::ZERO)
    }

    /// Takes the records in `TRACES`.
    pub fn take_traces(&mut self) -> Result<Vec<TraceRecord>> {
        let mut ring: RingBuf<_> = self.map_mut(names::TRACES)?.try_into()?;
        let mut records = Vec::new();
        while let Some(record) = ring.next() {
            if record.len() < size_of::<TraceRecord>() {
                bail!("a record of {} bytes in TRACES", record.len());
            }
            // SAFETY: as for events.
            records.push(unsafe { record.as_ptr().cast::<TraceRecord>().read_unaligned() });
        }
        Ok(records)
    }

    /// Records of a trace that found no room.
    pub fn lost_traces(&self, index: u32) -> Result<u64> {
        let lost =
            self.summed(names::TRACE_COUNTS, &[index], |sum: &mut TraceCounts, counts| {
                sum.lost += counts.lost;
            })?;
        Ok(lost.iter().map(|(_, counts)| counts.lost).sum())
    }

    /// Takes the records in `NEWS`.
    pub fn take_news(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut ring: RingBuf<_> = self.map_mut(names::NEWS)?.try_into()?;
        let mut news = Vec::new();
        while let Some(record) = ring.next() {
            news.push(record.to_vec());
        }
        Ok(news)
    }

    /// All entries of a flow table: `FLOWS` and `HALF_OPEN` of either family.
    pub fn entries<K: Pod + Eq + std::hash::Hash, V: Pod>(
        &self,
        name: &str,
    ) -> Result<HashMap<K, V>> {
        let map: BpfHashMap<_, K, V> =
            self.ebpf.map(name).with_context(|| format!("find {name}"))?.try_into()?;
        map.iter().map(|entry| Ok(entry?)).collect()
    }

    /// Adds entries to a flow table.
    pub fn insert<K: Pod, V: Pod>(
        &mut self,
        name: &str,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<()> {
        let mut map: BpfHashMap<_, K, V> = self.map_mut(name)?.try_into()?;
        for (key, value) in entries {
            map.insert(key, value, 0)?;
        }
        Ok(())
    }

    /// Removes entries of a flow table that are so.
    pub fn remove<K: Pod + Eq + std::hash::Hash, V: Pod>(
        &mut self,
        name: &str,
        is_so: impl Fn(&K, &V) -> bool,
    ) -> Result<()> {
        let entries = self.entries::<K, V>(name)?;
        let mut map: BpfHashMap<_, K, V> = self.map_mut(name)?.try_into()?;
        for (key, _) in entries.iter().filter(|(key, value)| is_so(key, value)) {
            map.remove(key)?;
        }
        Ok(())
    }

    fn xdp(&self) -> Result<&Xdp> {
        Ok(self.ebpf.program(self.program).context("find the program")?.try_into()?)
    }

    fn map_mut(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(names::in_object(name)).with_context(|| format!("find {name}"))
    }

    fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        Ok(Array::try_from(self.map_mut(name)?)?)
    }

    fn empty<K: Pod, V: Pod>(&mut self, name: &str) -> Result<()> {
        let mut map: BpfHashMap<_, K, V> = self.map_mut(name)?.try_into()?;
        let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
        for key in keys {
            map.remove(&key)?;
        }
        Ok(())
    }

    fn zero<V: Pod>(&mut self, name: &str, indices: &[u32], zero: V) -> Result<()> {
        let cpus = self.cpus;
        let mut map: PerCpuArray<_, V> = self.map_mut(name)?.try_into()?;
        for index in indices {
            map.set(*index, PerCpuValues::try_from(vec![zero; cpus])?, 0)?;
        }
        Ok(())
    }

    fn summed<V: Pod>(
        &self,
        name: &str,
        indices: &[u32],
        add: impl Fn(&mut V, &V),
    ) -> Result<Vec<(u32, V)>> {
        let map: PerCpuArray<_, V> =
            self.ebpf.map(name).with_context(|| format!("find {name}"))?.try_into()?;
        indices
            .iter()
            .map(|index| {
                let values = map.get(index, 0)?;
                let (first, rest) = values.split_first().context("a value for each CPU")?;
                let mut sum = *first;
                for value in rest {
                    add(&mut sum, value);
                }
                Ok((*index, sum))
            })
            .collect()
    }
}

fn reasons() -> Vec<u32> {
    (0..Reason::COUNT).collect()
}

fn add_backend(sum: &mut BackendStats, value: &BackendStats) {
    sum.connections += value.connections;
    sum.answered += value.answered;
    sum.forward_packets += value.forward_packets;
    sum.forward_bytes += value.forward_bytes;
    sum.return_packets += value.return_packets;
    sum.return_bytes += value.return_bytes;
}

fn add_service(sum: &mut ServiceStats, value: &ServiceStats) {
    sum.connections += value.connections;
    sum.refused += value.refused;
    sum.replayed += value.replayed;
    sum.not_replayed += value.not_replayed;
}

fn add_signals(sum: &mut BackendSignals, value: &BackendSignals) {
    sum.attempts += value.attempts;
    sum.answered += value.answered;
    sum.refused += value.refused;
    sum.unreachable += value.unreachable;
    sum.unanswered += value.unanswered;
    sum.resets += value.resets;
    for (sum, count) in sum.handshakes.iter_mut().zip(value.handshakes) {
        *sum += count;
    }
}

/// With all handshakes in the first class.
#[must_use]
pub fn untimed(mut signals: BackendSignals) -> BackendSignals {
    let all = signals.handshakes.iter().sum();
    signals.handshakes = BackendSignals::ZERO.handshakes;
    signals.handshakes[0] = all;
    signals
}
