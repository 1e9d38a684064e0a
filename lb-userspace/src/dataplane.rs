//! The kernel's side as the daemon sees it: the only user of aya.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use anyhow::Context;
use aya::{
    Ebpf,
    maps::{
        Array, HashMap, Map, MapData, MapError, MapInfo, MapType, PerCpuArray, PerCpuValues,
        RingBuf,
        lpm_trie::{Key as Prefixed, LpmTrie},
    },
};
use aya_log::EbpfLogger;
use lb_common::{
    backend::{self, Backend},
    event::Event,
    flow::{FlowKey4, FlowKey6, HalfOpen4, HalfOpen6},
    limits, names,
    reason::Reason,
    service::{STEERED, Service, ServiceKey, Slot},
    source::Source,
    stats::{BackendSignals, BackendStats, Meta, ServiceStats},
};

pub use self::flows::{Connection, Cut};
use self::{active::Active, flows::Table};
use crate::clock;

pub use signals::Signals;

mod active;
mod batch;
pub mod decap;
mod flows;
mod half_open;
pub mod kernel;
mod link;
pub mod load;
mod pins;
pub mod replay;
mod signals;

/// What to open, and with which sizes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of pins, on a BPF file system.
    pub pins: PathBuf,
    /// Entries in `FLOWS` and `FLOWS6` each.
    pub max_flows: u32,
    /// Entries in `HALF_OPEN` and `HALF_OPEN6` each.
    pub max_half_open: u32,
    /// Throw pinned maps away instead of adopting them; open connections are lost.
    pub discard_pins: bool,
}

/// One write to the maps. `control::plan` decides them; applying one twice changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// `BACKENDS[id] = backend`.
    SetBackend {
        /// Index.
        id: u32,
        /// Value.
        backend: Backend,
    },
    /// `BACKENDS[id]` is free again.
    ClearBackend {
        /// Index.
        id: u32,
    },
    /// A run of slots of `MAGLEV`, which no service points to yet.
    SetTable {
        /// First slot.
        start: u32,
        /// The slots.
        slots: Vec<Slot>,
    },
    /// Adds or replaces a service, in one atomic step.
    SetService {
        /// Key.
        key: ServiceKey,
        /// Value.
        service: Service,
    },
    /// Removes a service.
    RemoveService {
        /// Key.
        key: ServiceKey,
    },
    /// An entry of `SOURCES`.
    SetSource {
        /// Length of the prefix in bits.
        bits: u32,
        /// The prefix.
        source: Source,
        /// Value.
        verdict: u32,
    },
    /// Removes an entry of `SOURCES`.
    RemoveSource {
        /// Length of the prefix in bits.
        bits: u32,
        /// The prefix.
        source: Source,
    },
    /// The whole filter of floating addresses.
    SetVips {
        /// `VIPS`, all [`lb_common::limits::VIP_WORDS`] words.
        words: Vec<u64>,
    },
    /// The whole filter of steered services.
    SetSteered {
        /// `STEERED`, all [`lb_common::limits::STEERED_WORDS`] words.
        words: Vec<u64>,
    },
}

/// What a previous daemon left in the maps.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    /// Entries of `SERVICES`.
    pub services: Vec<(ServiceKey, Service)>,
    /// Entries of `BACKENDS` that are in use.
    pub backends: Vec<(u32, Backend)>,
    /// Entries of `SOURCES`: prefix, its length in bits, value.
    pub sources: Vec<((Source, u32), u32)>,
    /// The tables of steered services.
    pub steered: BTreeMap<ServiceKey, Vec<Slot>>,
}

/// How the program runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// In the driver.
    Driver,
    /// In the generic hook: slower, works everywhere.
    Generic,
}

/// One connection, both directions.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// The client.
    pub client: SocketAddr,
    /// The floating address and port that it talks to.
    pub listen: SocketAddr,
    /// The address and port that the backend sees.
    pub nat: SocketAddr,
    /// The backend.
    pub backend: SocketAddr,
    /// Identifier of the backend in `BACKENDS`.
    pub backend_id: u32,
    /// `half_open`, `established`, `closing`, `closed`, `udp`, or `steered`: recorded, because the
    /// present table would send its packets elsewhere.
    pub phase: String,
    /// Milliseconds since the last packet.
    pub idle_ms: u64,
    /// Packets and bytes from the client.
    pub forward_packets: u64,
    /// Bytes from the client.
    pub forward_bytes: u64,
    /// Packets from the backend.
    pub return_packets: u64,
    /// Bytes from the backend.
    pub return_bytes: u64,
}

/// When an entry is old enough to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, both sides open.
    pub tcp_idle_ns: u64,
    /// TCP, one side closed.
    pub tcp_closing_ns: u64,
    /// UDP.
    pub udp_idle_ns: u64,
}

/// What a sweep over the flow tables saw and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Connections in `FLOWS` and `FLOWS6`.
    pub flows: u64,
    /// Connections that were removed, by age.
    pub expired: u64,
    /// Entries without their other half that were removed.
    pub orphans: u64,
    /// Entries in the tables by backend identifier, two for each connection, half-open and closed
    /// ones included: while there are any, the identifier is in use.
    pub by_backend: BTreeMap<u32, u64>,
    /// Of these, the entries of half-open connections.
    pub half_open: BTreeMap<u32, u64>,
    /// How full the fuller of the half-open tables is.
    pub half_open_percent: u64,
    /// Where the entries of steered connections are, one for each: by backend identifier, the upper 16
    /// bits of their hashes.
    pub steered: BTreeMap<u32, BTreeSet<u16>>,
}

/// Counters, summed over the CPUs.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// By [`lb_common::reason::Reason`] number.
    pub reasons: Vec<u64>,
    /// By service index, as many as were asked for.
    pub services: Vec<(u32, ServiceStats)>,
    /// By backend identifier, with open connections.
    pub backends: Vec<(u32, BackendStats, u64)>,
}

/// What `status` says of the kernel's side.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Info {
    /// Identifier of the loaded program, as in `bpftool prog`.
    pub program_id: u32,
    /// Whether this daemon found pinned maps and went on with them.
    pub adopted: bool,
    /// Interfaces with the program: name, index, mode.
    pub attachments: Vec<Attachment>,
    /// Maps: name, entries it may hold, bytes of kernel memory.
    pub maps: Vec<MapSize>,
    /// What the operator should know of the maps, in sentences.
    pub notes: Vec<String>,
}

/// The program on one interface.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attachment {
    /// Name of the interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// How the program runs there.
    pub mode: AttachMode,
}

/// Size of one map.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MapSize {
    /// Name.
    pub name: String,
    /// Most entries.
    pub max_entries: u32,
    /// Kernel memory. Before Linux 6.4 the kernel tells only what keys and values take.
    pub bytes: u64,
}

/// The loaded program with its maps.
///
/// The kernel's side goes on without this value: maps and links are pinned. Dropping it changes
/// nothing but who keeps the tables true.
pub struct Dataplane {
    ebpf: Ebpf,
    pins: PathBuf,
    services: HashMap<MapData, ServiceKey, Service>,
    backends: Array<MapData, Backend>,
    sources: LpmTrie<MapData, Source, u32>,
    slots: MapData,
    vips: MapData,
    steered: MapData,
    reasons: PerCpuArray<MapData, u64>,
    service_stats: PerCpuArray<MapData, ServiceStats>,
    backend_stats: PerCpuArray<MapData, BackendStats>,
    backend_signals: PerCpuArray<MapData, BackendSignals>,
    events: RingBuf<MapData>,
    log: Option<EbpfLogger<&'static dyn log::Log>>,
    active: Active,
    flows: Table<FlowKey4>,
    flows6: Table<FlowKey6>,
    half_open: Table<FlowKey4, HalfOpen4>,
    half_open6: Table<FlowKey6, HalfOpen6>,
    attachments: Vec<Attachment>,
    adopted: bool,
    notes: Vec<String>,
    sweeps: u64,
    /// Entries that fit into `HALF_OPEN` and `HALF_OPEN6` each.
    half_open_room: u32,
}

impl fmt::Debug for Dataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataplane").field("pins", &self.pins).finish_non_exhaustive()
    }
}

/// The halves of all connections are matched every so many sweeps: it costs memory for every key, and
/// finds only what the kernel pushed out of a full table.
const MATCH_HALVES_EVERY: u64 = 10;

impl Dataplane {
    /// Loads the program and creates its maps, or adopts those that a previous daemon pinned.
    pub fn open(options: &Options) -> anyhow::Result<Self> {
        kernel::check()?;
        let found = pins::prepare(options)?;
        let mut ebpf = load::load(options)?;
        let mut meta: Array<_, Meta> = take(&mut ebpf, names::META)?;
        meta.set(0, Meta { abi_version: limits::ABI_VERSION, reserved: 0 }, 0)
            .context("write META")?;
        let pins = options.pins.as_path();
        // The log only carries what cannot happen; without it the daemon is no worse off.
        let log = EbpfLogger::init(&mut ebpf)
            .inspect_err(|error| tracing::debug!(%error, "no log from the kernel program"))
            .ok();
        Ok(Self {
            pins: pins.to_owned(),
            services: take(&mut ebpf, names::SERVICES)?,
            backends: take(&mut ebpf, names::BACKENDS)?,
            sources: take(&mut ebpf, names::SOURCES)?,
            slots: pinned(pins, names::MAGLEV)?,
            vips: pinned(pins, names::VIPS)?,
            steered: pinned(pins, names::STEERED)?,
            reasons: take(&mut ebpf, names::REASONS)?,
            service_stats: take(&mut ebpf, names::SERVICE_STATS)?,
            backend_stats: take(&mut ebpf, names::BACKEND_STATS)?,
            backend_signals: take(&mut ebpf, names::BACKEND_SIGNALS)?,
            events: take(&mut ebpf, names::EVENTS)?,
            log,
            active: Active::map(&pinned(pins, names::ACTIVE)?)?,
            flows: table(&mut ebpf, pins, names::FLOWS, false)?,
            flows6: table(&mut ebpf, pins, names::FLOWS6, false)?,
            half_open: table(&mut ebpf, pins, names::HALF_OPEN, true)?,
            half_open6: table(&mut ebpf, pins, names::HALF_OPEN6, true)?,
            attachments: Vec::new(),
            adopted: found.adopted,
            notes: found.notes,
            sweeps: 0,
            half_open_room: half_open::room(pins)?,
            ebpf,
        })
    }

    /// What stands in the maps now.
    pub fn adopted(&self) -> anyhow::Result<Adopted> {
        let services: Vec<(ServiceKey, Service)> =
            self.services.iter().collect::<Result<_, _>>().context("read SERVICES")?;
        let mut backends = Vec::new();
        for id in 0..limits::MAX_BACKENDS {
            let backend = self.backends.get(&id, 0).context("read BACKENDS")?;
            if backend.flags & backend::IN_USE != 0 {
                backends.push((id, backend));
            }
        }
        let sources = self.sources.iter().map(|entry| {
            let (key, verdict) = entry?;
            Ok(((key.data(), key.prefix_len()), verdict))
        });
        let sources = sources.collect::<Result<_, MapError>>().context("read SOURCES")?;
        let map = Map::Array(pinned(&self.pins, names::MAGLEV)?);
        let slots: Array<_, Slot> = map.try_into().context("open MAGLEV")?;
        let mut steered = BTreeMap::new();
        for (key, service) in services.iter().filter(|(_, it)| it.flags & STEERED != 0) {
            let run = service.table_start..service.table_start.saturating_add(service.table_len);
            let table = run.map(|slot| slots.get(&slot, 0)).collect::<Result<_, _>>();
            steered.insert(*key, table.context("read MAGLEV")?);
        }
        Ok(Adopted { services, backends, sources, steered })
    }

    /// Writes to the maps, in order. Stops at the first error; applying again is harmless.
    pub fn apply(&mut self, ops: &[Op]) -> anyhow::Result<()> {
        ops.iter().try_for_each(|op| {
            self.apply_one(op).with_context(|| format!("write to the BPF maps: {}", op.what()))
        })
    }

    fn apply_one(&mut self, op: &Op) -> anyhow::Result<()> {
        match op {
            Op::SetBackend { id, backend } => self.backends.set(*id, backend, 0)?,
            Op::ClearBackend { id } => {
                self.backends.set(*id, Backend::ZERO, 0)?;
                self.backend_stats.set(*id, every_cpu(BackendStats::ZERO)?, 0)?;
                self.backend_signals.set(*id, every_cpu(BackendSignals::ZERO)?, 0)?;
                self.active.clear(*id);
            }
            Op::SetTable { start, slots } => {
                anyhow::ensure!(
                    u64::from(*start) + slots.len() as u64 <= u64::from(limits::MAX_SLOTS),
                    "the table does not fit into MAGLEV",
                );
                batch::update_array(self.slots.fd().as_fd(), *start, slots)?;
            }
            Op::SetService { key, service } => {
                if !self.has_service(key)? {
                    let zeros = every_cpu(ServiceStats::ZERO)?;
                    self.service_stats.set(service.index, zeros, 0)?;
                }
                self.services.insert(key, service, 0)?;
            }
            Op::RemoveService { key } => {
                if self.has_service(key)? {
                    self.services.remove(key)?;
                }
            }
            Op::SetSource { bits, source, verdict } => {
                self.sources.insert(&Prefixed::new(*bits, *source), verdict, 0)?;
            }
            Op::RemoveSource { bits, source } => {
                let key = Prefixed::new(*bits, *source);
                match self.sources.remove(&key) {
                    Err(MapError::SyscallError(error))
                        if error.io_error.raw_os_error() == Some(libc::ENOENT) => {}
                    removed => removed?,
                }
            }
            Op::SetVips { words } => {
                batch::update_array(self.vips.fd().as_fd(), 0, words)?;
            }
            Op::SetSteered { words } => {
                batch::update_array(self.steered.fd().as_fd(), 0, words)?;
            }
        }
        Ok(())
    }

    fn has_service(&self, key: &ServiceKey) -> anyhow::Result<bool> {
        match self.services.get(key, 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts the program on an interface, in place of the one that a previous daemon left there,
    /// without losing a packet. Does nothing if it is there already.
    pub fn attach(&mut self, interface: &str, ifindex: u32) -> anyhow::Result<AttachMode> {
        if let Some(attachment) = self.attachments.iter().find(|a| a.ifindex == ifindex) {
            return Ok(attachment.mode);
        }
        let program = load::program(&mut self.ebpf)?;
        let mode = load::attach(program, &self.pins, interface, ifindex)?;
        self.attachments.push(Attachment { interface: interface.to_owned(), ifindex, mode });
        Ok(mode)
    }

    /// Takes the program off an interface.
    pub fn detach(&mut self, ifindex: u32) -> anyhow::Result<()> {
        self.attachments.retain(|attachment| attachment.ifindex != ifindex);
        for mode in [AttachMode::Driver, AttachMode::Generic] {
            let path = pins::link(&self.pins, ifindex, mode);
            if path.exists() {
                pins::remove_link(&path)?;
            }
        }
        Ok(())
    }

    /// Program, maps and interfaces.
    pub fn info(&self) -> anyhow::Result<Info> {
        let program = self.ebpf.program(names::PROGRAM).context("find the program")?;
        let mut maps = Vec::new();
        for name in names::PINNED {
            // By its pin: to open a map by its number takes CAP_SYS_ADMIN.
            let map = pinned(&self.pins, name)?;
            let info = map.info().with_context(|| format!("look at the pinned map {name}"))?;
            let (max_entries, bytes) = (info.max_entries(), memory(&map, &info));
            maps.push(MapSize { name: name.to_owned(), max_entries, bytes });
        }
        Ok(Info {
            program_id: program.info().context("look at the program")?.id(),
            adopted: self.adopted,
            attachments: self.attachments.clone(),
            maps,
            notes: self.notes.clone(),
        })
    }

    /// Counters of the given services and backends.
    pub fn counters(&self, services: &[u32], backends: &[u32]) -> anyhow::Result<Counters> {
        let reasons = (0..Reason::COUNT)
            .map(|reason| Ok(self.reasons.get(&reason, 0)?.iter().sum()))
            .collect::<Result<_, MapError>>()
            .context("read REASONS")?;
        let services = services
            .iter()
            .map(|&index| {
                let sum = self.service_stats.get(&index, 0)?.iter().fold(
                    ServiceStats::ZERO,
                    |sum, cpu| ServiceStats {
                        connections: sum.connections + cpu.connections,
                        refused: sum.refused + cpu.refused,
                        replayed: sum.replayed + cpu.replayed,
                        not_replayed: sum.not_replayed + cpu.not_replayed,
                    },
                );
                Ok((index, sum))
            })
            .collect::<Result<_, MapError>>()
            .context("read SERVICE_STATS")?;
        let backends = backends
            .iter()
            .map(|&id| {
                let sum =
                    self.backend_stats.get(&id, 0)?.iter().fold(BackendStats::ZERO, |sum, cpu| {
                        BackendStats {
                            connections: sum.connections + cpu.connections,
                            answered: sum.answered + cpu.answered,
                            forward_packets: sum.forward_packets + cpu.forward_packets,
                            forward_bytes: sum.forward_bytes + cpu.forward_bytes,
                            return_packets: sum.return_packets + cpu.return_packets,
                            return_bytes: sum.return_bytes + cpu.return_bytes,
                        }
                    });
                Ok((id, sum, self.active.get(id)))
            })
            .collect::<Result<_, MapError>>()
            .context("read BACKEND_STATS")?;
        Ok(Counters { reasons, services, backends })
    }

    /// A reader of what connections show of each backend.
    pub fn signals(&self) -> anyhow::Result<Signals> {
        Signals::new(pinned(&self.pins, names::BACKEND_SIGNALS)?)
    }

    /// All connections, up to `limit`; half-open ones too.
    pub fn flows(&self, limit: usize) -> anyhow::Result<Vec<Flow>> {
        let now_ns = clock::monotonic_coarse_ns();
        let mut flows = Vec::new();
        self.flows.read(now_ns, limit, &mut flows)?;
        self.flows6.read(now_ns, limit, &mut flows)?;
        self.half_open.read(now_ns, limit, &mut flows)?;
        self.half_open6.read(now_ns, limit, &mut flows)?;
        for flow in flows.iter_mut().filter(|flow| flow.phase == flows::STEERED) {
            let backend = self.backends.get(&flow.backend_id, 0).context("read BACKENDS")?;
            let address = Ipv6Addr::from(backend.address).to_canonical();
            flow.backend = SocketAddr::new(address, backend.port);
        }
        Ok(flows)
    }

    /// Removes what is too old, and corrects the counts of open connections.
    pub fn sweep(&mut self, now_ns: u64, timeouts: &Timeouts) -> anyhow::Result<Sweep> {
        let match_halves = self.sweeps % MATCH_HALVES_EVERY == MATCH_HALVES_EVERY - 1;
        self.sweeps += 1;
        let mut sweep = Sweep::default();
        let mut open = BTreeMap::new();

        // The counters are compared with the tables before anything is removed from either.
        let flows = self.flows.pass(now_ns, timeouts, match_halves, &mut sweep, &mut open)?;
        let flows6 = self.flows6.pass(now_ns, timeouts, match_halves, &mut sweep, &mut open)?;
        let established = sweep.by_backend.clone();
        let half = self.half_open.pass(now_ns, timeouts, match_halves, &mut sweep, &mut open)?;
        let entries4 = half_open::added(&established, &sweep.by_backend);
        let half6 = self.half_open6.pass(now_ns, timeouts, match_halves, &mut sweep, &mut open)?;
        sweep.half_open = half_open::added(&established, &sweep.by_backend);
        sweep.half_open_percent =
            half_open::percent(&entries4, &sweep.half_open, self.half_open_room);
        self.active.reconcile(&open);

        let active = &self.active;
        let close = |backend| active.close(backend);
        self.flows.expire(flows, now_ns, timeouts, &mut sweep, close)?;
        self.flows6.expire(flows6, now_ns, timeouts, &mut sweep, close)?;
        self.half_open.expire(half, now_ns, timeouts, &mut sweep, close)?;
        self.half_open6.expire(half6, now_ns, timeouts, &mut sweep, close)?;
        Ok(sweep)
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
        replay::Replayer::open(program.context("hold the program")?, &self.pins)
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

impl Op {
    /// What it writes, for errors.
    fn what(&self) -> String {
        match self {
            Self::SetBackend { id, .. } | Self::ClearBackend { id } => format!("BACKENDS[{id}]"),
            Self::SetTable { start, slots } => {
                format!("MAGLEV[{start}..{}]", u64::from(*start) + slots.len() as u64)
            }
            Self::SetService { .. } | Self::RemoveService { .. } => "SERVICES".to_owned(),
            Self::SetSource { .. } | Self::RemoveSource { .. } => "SOURCES".to_owned(),
            Self::SetVips { .. } => "VIPS".to_owned(),
            Self::SetSteered { .. } => "STEERED".to_owned(),
        }
    }
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

fn table<K: flows::Key, V: flows::Value<K>>(
    ebpf: &mut Ebpf,
    pins: &Path,
    name: &str,
    half_open: bool,
) -> anyhow::Result<Table<K, V>> {
    Ok(Table::new(take(ebpf, name)?, pinned(pins, name)?, half_open))
}

/// The same value for every CPU.
fn every_cpu<T: aya::Pod>(value: T) -> anyhow::Result<PerCpuValues<T>> {
    let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
    Ok(PerCpuValues::try_from(vec![value; cpus])?)
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
