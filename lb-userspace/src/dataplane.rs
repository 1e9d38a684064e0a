//! The kernel's side as the daemon sees it: the only user of aya.

use std::{
    collections::BTreeMap,
    fmt,
    ops::ControlFlow,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, MapInfo, MapType, RingBuf, lpm_trie::LpmTrie},
};
use aya_log::EbpfLogger;
use lb_common::{
    backend::{self, Backend},
    elder::{ELDERS, Elder},
    event::Event,
    limits, names,
    news::Node,
    service::{STEERED, Service, ServiceKey},
    source::Source,
    stats::Meta,
};

use self::{active::Active, filters::Filters, load::Variant};
pub use self::{
    flows::{Connection, Cut, Reader, Sweeper, sync},
    leases::KernelLeases,
    ops::{Adopted, Op},
    signals::Signals,
    ticks::Ticks,
    trace::{Traced, Tracer},
    view::{AttachMode, Attachment, Counters, Flow, Info, MapSize, Sweep, Timeouts},
};
use crate::clock;

mod active;
mod batch;
pub mod cookies;
mod counters;
pub mod decap;
mod filters;
mod flows;
mod grow;
pub mod kernel;
mod leases;
mod link;
pub mod load;
mod ops;
mod pins;
pub mod replay;
pub mod resets;
mod run;
mod signals;
mod ticks;
mod trace;
mod view;
mod write;

/// Room in the maps that hold the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sizes {
    /// Services: entries in `SERVICES`, and in the maps with one entry for each service.
    pub services: u32,
    /// Backends of all services: entries in `BACKENDS`, and in the maps with one for each backend.
    pub backends: u32,
    /// Slots in `MAGLEV`.
    pub slots: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            services: limits::DEFAULT_SERVICES,
            backends: limits::DEFAULT_BACKENDS,
            slots: limits::DEFAULT_SLOTS,
        }
    }
}

/// What to open, and with which sizes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of pins, on a BPF file system.
    pub pins: PathBuf,
    /// Entries in `FLOWS` and `FLOWS6` each.
    pub max_flows: u32,
    /// Entries in `HALF_OPEN` and `HALF_OPEN6` each.
    pub max_half_open: u32,
    /// Room for services, backends and slots. Maps that a previous daemon pinned keep their size if
    /// they have more, and are replaced by larger ones if they have less.
    pub sizes: Sizes,
    /// Throw pinned maps away instead of adopting them; open connections are lost.
    pub discard_pins: bool,
}

/// The loaded program with its maps.
///
/// The kernel's side goes on without this value: maps and links are pinned. Dropping it changes
/// nothing but who keeps the tables true.
pub struct Dataplane {
    ebpf: Ebpf,
    options: Options,
    /// The variant for traces, while it is in force.
    tracer: Option<Tracer>,
    services: HashMap<MapData, ServiceKey, Service>,
    /// The same map as `services`, for batches.
    service_map: MapData,
    backends: MapData,
    sources: LpmTrie<MapData, Source, u32>,
    slots: MapData,
    /// Those of the plain program.
    filters: Filters,
    /// Those of a previous daemon's program, if it is still on an interface. Then it is these that are pinned.
    left_filters: Option<Filters>,
    reasons: MapData,
    service_stats: MapData,
    backend_stats: MapData,
    backend_signals: MapData,
    events: RingBuf<MapData>,
    samples: RingBuf<MapData>,
    log: Option<EbpfLogger<&'static dyn log::Log>>,
    active: Arc<Active>,
    sweeper: Arc<Mutex<Sweeper>>,
    reader: Arc<Reader>,
    created: Duration,
    ticks: Ticks,
    cuts: Arc<sync::cuts::Cuts>,
    attachments: Vec<Attachment>,
    adopted: bool,
    notes: Vec<String>,
    sizes: Sizes,
    cpus: usize,
}

impl fmt::Debug for Dataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataplane").field("pins", &self.options.pins).finish_non_exhaustive()
    }
}

impl Dataplane {
    /// Loads the program and creates its maps, or adopts those that a previous daemon pinned.
    pub fn open(options: &Options) -> anyhow::Result<Self> {
        kernel::check()?;
        let mut found = pins::prepare(options)?;
        let mut ebpf = load::load(options, Variant::Plain, &found.outgrown)?;
        let mut meta: Array<_, Meta> = take(&mut ebpf, names::META)?;
        let mut created_s = meta.get(&0, 0).context("read META")?.created_s;
        if !found.adopted {
            created_s = (clock::monotonic().as_secs() as u32).max(1);
        }
        meta.set(0, Meta { abi_version: limits::ABI_VERSION, created_s }, 0)
            .context("write META")?;
        let pins = options.pins.as_path();
        grow::replace(pins, &found.outgrown)?;
        // The log only carries what cannot happen; without it the daemon is no worse off.
        let log = EbpfLogger::init(&mut ebpf)
            .inspect_err(|error| tracing::debug!(%error, "no log from the kernel program"))
            .ok();
        let active = Arc::new(Active::map(&pinned(pins, names::ACTIVE)?)?);
        let ticks = load::ticks(&mut ebpf)?;
        let filters = Filters::take(&mut ebpf)?;
        let mut left_filters = Filters::pinned(pins)?;
        if let Some(in_force) = &left_filters {
            filters.copy(in_force)?;
        }
        // Every interface at once: the program of a previous daemon knows the old maps only.
        let program = load::program(&mut ebpf, Variant::Plain)?;
        let (attachments, left) = load::take_over_all(program, pins)?;
        if left.is_empty() || left_filters.is_none() {
            filters.pin(pins)?;
            left_filters = None;
        }
        found.notes.extend(left);
        let cpus =
            aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        Ok(Self {
            options: options.clone(),
            tracer: None,
            services: take(&mut ebpf, names::SERVICES)?,
            service_map: pinned(pins, names::SERVICES)?,
            backends: pinned(pins, names::BACKENDS)?,
            sources: take(&mut ebpf, names::SOURCES)?,
            slots: pinned(pins, names::MAGLEV)?,
            filters,
            left_filters,
            reasons: pinned(pins, names::REASONS)?,
            service_stats: pinned(pins, names::SERVICE_STATS)?,
            backend_stats: pinned(pins, names::BACKEND_STATS)?,
            backend_signals: pinned(pins, names::BACKEND_SIGNALS)?,
            events: take(&mut ebpf, names::EVENTS)?,
            samples: take(&mut ebpf, names::SAMPLES)?,
            log,
            sweeper: Arc::new(Mutex::new(Sweeper::open(pins, Arc::clone(&active), ticks)?)),
            reader: Arc::new(Reader::open(pins, ticks)?),
            ticks,
            created: Duration::from_secs(created_s.into()),
            cuts: Arc::default(),
            active,
            attachments,
            adopted: found.adopted,
            notes: found.notes,
            sizes: pins::sizes(pins)?,
            cpus,
            ebpf,
        })
    }

    /// Which time the stamps of the flow tables stand for.
    #[must_use]
    pub fn ticks(&self) -> Ticks {
        self.ticks
    }

    /// What stands in the maps now.
    pub fn adopted(&self) -> anyhow::Result<Adopted> {
        let services: Vec<(ServiceKey, Service)> =
            self.services.iter().collect::<Result<_, _>>().context("read SERVICES")?;
        let mut backends = Vec::new();
        batch::for_each::<u32, Backend>(self.backends.fd().as_fd(), |id, backend| {
            if backend.flags & backend::IN_USE != 0 {
                backends.push((*id, *backend));
            }
            ControlFlow::Continue(())
        })
        .context("read BACKENDS")?;
        let sources = self.sources.iter().map(|entry| {
            let (key, verdict) = entry?;
            Ok(((key.data(), key.prefix_len()), verdict))
        });
        let sources = sources.collect::<Result<_, MapError>>().context("read SOURCES")?;
        let mut steered = BTreeMap::new();
        for (key, service) in services.iter().filter(|(_, it)| it.flags & STEERED != 0) {
            let slots = self.slots.fd().as_fd();
            let table = batch::read_array(slots, service.table_start, service.table_len);
            steered.insert(*key, table.context("read MAGLEV")?);
        }
        Ok(Adopted { services, backends, sizes: self.sizes, sources, steered })
    }

    /// Puts the program on an interface, in place of the one that a previous daemon left there,
    /// without losing a packet. Does nothing if it is there already.
    pub fn attach(&mut self, interface: &str, ifindex: u32) -> anyhow::Result<AttachMode> {
        if let Some(attachment) = self.attachments.iter().find(|a| a.ifindex == ifindex) {
            return Ok(attachment.mode);
        }
        let pins = self.options.pins.clone();
        let mode = load::attach(self.program()?, &pins, interface, ifindex)?;
        self.attachments.push(Attachment { interface: interface.to_owned(), ifindex, mode });
        Ok(mode)
    }

    /// Takes the program off an interface.
    pub fn detach(&mut self, ifindex: u32) -> anyhow::Result<()> {
        for mode in [AttachMode::Driver, AttachMode::Generic] {
            let path = pins::link(&self.options.pins, ifindex, mode);
            if path.exists() {
                pins::remove_link(&path)?;
            }
        }
        self.attachments.retain(|attachment| attachment.ifindex != ifindex);
        Ok(())
    }

    /// Program, maps and interfaces.
    pub fn info(&self) -> anyhow::Result<Info> {
        let program_id = self.program_id()?;
        let mut maps = Vec::new();
        for name in names::PINNED {
            // By its pin: to open a map by its number takes CAP_SYS_ADMIN.
            let map = pinned(&self.options.pins, name)?;
            let info = map.info().with_context(|| format!("look at the pinned map {name}"))?;
            let (max_entries, bytes) = (info.max_entries(), memory(&map, &info));
            maps.push(MapSize { name: name.to_owned(), max_entries, bytes });
        }
        Ok(Info {
            program_id,
            traces: self.tracer.as_ref().map_or(0, Tracer::running),
            adopted: self.adopted,
            attachments: self.attachments.clone(),
            maps,
            notes: self.notes.clone(),
        })
    }

    /// What reads the flow tables beside everything else.
    pub fn reader(&self) -> Arc<Reader> {
        Arc::clone(&self.reader)
    }

    /// What forgets old flows. It has a lock of its own, so that nothing here waits for a sweep.
    pub fn sweeper(&self) -> Arc<Mutex<Sweeper>> {
        Arc::clone(&self.sweeper)
    }

    /// A reader of what connections show of each backend.
    pub fn signals(&self) -> anyhow::Result<Signals> {
        Signals::new(pinned(&self.options.pins, names::BACKEND_SIGNALS)?)
    }

    /// The leases of floating addresses.
    pub fn leases(&self) -> anyhow::Result<KernelLeases> {
        KernelLeases::open(&self.options.pins)
    }

    /// The first `limit` connections; half-open ones too.
    pub fn flows(&self, limit: usize) -> anyhow::Result<Vec<Flow>> {
        let mut flows = Vec::new();
        self.reader.read(&|_| true, &mut |flow| {
            if flows.len() < limit {
                flows.push(flow);
            }
            if flows.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(flows)
    }

    /// A whole sweep: see [`Sweeper::sweep`].
    pub fn sweep(&mut self, now_ns: u64, timeouts: &Timeouts) -> anyhow::Result<Sweep> {
        // A sweep that panicked left a table that the next can go on from.
        self.sweeper.lock().unwrap_or_else(PoisonError::into_inner).sweep(now_ns, timeouts)
    }

    /// Room in the maps.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// What finds SYNs that have waited too long, with handles of its own.
    pub fn replayer(&self) -> anyhow::Result<replay::Replayer> {
        let program: &aya::programs::Xdp = self
            .ebpf
            .program(names::PROGRAM)
            .context("find the program")?
            .try_into()
            .context("find the program")?;
        let program = program.fd().context("hold the program")?.as_fd().try_clone_to_owned();
        replay::Replayer::open(program.context("hold the program")?, &self.options.pins)
    }

    /// The flow tables as the other nodes see them, with handles of their own.
    pub fn flow_sync(&self) -> anyhow::Result<sync::FlowSync> {
        let (active, cuts) = (Arc::clone(&self.active), Arc::clone(&self.cuts));
        sync::FlowSync::open(&self.options.pins, active, cuts, self.created, self.ticks)
    }

    /// Tells the kernel program what this node is among the others.
    pub fn set_node(&mut self, node: Node) -> anyhow::Result<()> {
        let map = Map::Array(pinned(&self.options.pins, names::NODE)?);
        let mut nodes: Array<_, Node> = map.try_into().context("open NODE")?;
        nodes.set(0, node, 0).context("write NODE")
    }

    /// Tells the kernel program of the nodes that had the addresses before, as long as they answer on their
    /// proxies' connections: by [`lb_common::elder::LAST`] and [`lb_common::elder::RELAY`].
    pub fn set_elders(&mut self, new: [Elder; ELDERS as usize]) -> anyhow::Result<()> {
        let map = Map::Array(pinned(&self.options.pins, names::ELDER)?);
        let mut elders: Array<_, Elder> = map.try_into().context("open ELDER")?;
        for (index, elder) in (0..).zip(new) {
            elders.set(index, elder, 0).context("write ELDER")?;
        }
        Ok(())
    }

    /// Takes the records that the kernel program left in `EVENTS` since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        if let Some(log) = &mut self.log {
            log.flush();
        }
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            if item.len() >= size_of::<Event>() {
                // SAFETY: the record is long enough, and every bit pattern is an `Event`.
                events.push(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
            }
        }
        events
    }
}

/// Removes links, maps and the directory that [`Dataplane::open`] pinned.
pub fn remove_pins(pins: &Path) -> anyhow::Result<()> {
    pins::remove(pins)
}

/// A map of the object as aya's typed view of it.
fn take<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<T>
where
    T::Error: std::error::Error + Send + Sync + 'static,
{
    let map = ebpf.take_map(name).with_context(|| format!("find the map {name}"))?;
    T::try_from(map).with_context(|| format!("open the map {name}"))
}

/// A map by its pin, for what aya's typed views do not offer.
fn pinned(pins: &Path, name: &str) -> anyhow::Result<MapData> {
    MapData::from_pin(pins.join(name)).with_context(|| format!("open the pinned map {name}"))
}

/// Kernel memory of a map, as `/proc` tells it. Before Linux 6.4 that is 0 for a ring buffer, whose size
/// in bytes is its number of entries.
fn memory(map: &MapData, info: &MapInfo) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    let told = line.and_then(|line| line.trim().parse().ok()).unwrap_or(0);
    let ring = matches!(info.map_type(), Ok(MapType::RingBuf));
    if ring { told.max(info.max_entries().into()) } else { told }
}
