//! The kernel's side as the daemon sees it: the only user of aya.

use std::{net::SocketAddr, path::PathBuf};

use lb_common::{
    backend::Backend,
    service::{Service, ServiceKey},
    stats::{BackendStats, ServiceStats},
};

pub mod flows;
pub mod load;
pub mod pins;

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
        /// Backend identifiers.
        slots: Vec<u32>,
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
    /// The whole filter of floating addresses.
    SetVips {
        /// `VIPS`, all [`lb_common::limits::VIP_WORDS`] words.
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
    /// `half_open`, `established`, `closing`, `closed`, or `udp`.
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
    /// Connections in the tables by backend identifier, half-open and closed ones included: while
    /// this is not zero, the identifier is in use.
    pub by_backend: std::collections::BTreeMap<u32, u64>,
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
    /// Kernel memory.
    pub bytes: u64,
}

/// The loaded program with its maps.
#[derive(Debug)]
pub struct Dataplane {
    _private: (),
}

impl Dataplane {
    /// Loads the program and creates its maps, or adopts those that a previous daemon pinned.
    pub fn open(options: &Options) -> anyhow::Result<Self> {
        let _ = options;
        unimplemented!("dataplane")
    }

    /// What stands in the maps now.
    pub fn adopted(&self) -> anyhow::Result<Adopted> {
        unimplemented!("dataplane")
    }

    /// Writes to the maps, in order. Stops at the first error; applying again is harmless.
    pub fn apply(&mut self, ops: &[Op]) -> anyhow::Result<()> {
        let _ = ops;
        unimplemented!("dataplane")
    }

    /// Puts the program on an interface, in place of the one that a previous daemon left there,
    /// without losing a packet. Does nothing if it is there already.
    pub fn attach(&mut self, interface: &str, ifindex: u32) -> anyhow::Result<AttachMode> {
        let _ = (interface, ifindex);
        unimplemented!("dataplane")
    }

    /// Takes the program off an interface.
    pub fn detach(&mut self, ifindex: u32) -> anyhow::Result<()> {
        let _ = ifindex;
        unimplemented!("dataplane")
    }

    /// Program, maps and interfaces.
    pub fn info(&self) -> anyhow::Result<Info> {
        unimplemented!("dataplane")
    }

    /// Counters of the given services and backends.
    pub fn counters(&self, services: &[u32], backends: &[u32]) -> anyhow::Result<Counters> {
        let _ = (services, backends);
        unimplemented!("dataplane")
    }

    /// All connections, up to `limit`; half-open ones too.
    pub fn flows(&self, limit: usize) -> anyhow::Result<Vec<Flow>> {
        let _ = limit;
        unimplemented!("dataplane")
    }

    /// Removes what is too old, and corrects the counts of open connections.
    pub fn sweep(&mut self, now_ns: u64, timeouts: &Timeouts) -> anyhow::Result<Sweep> {
        let _ = (now_ns, timeouts);
        unimplemented!("dataplane")
    }

    /// Takes the records that the kernel program left in `EVENTS` since the last call.
    pub fn take_events(&mut self) -> Vec<lb_common::event::Event> {
        unimplemented!("dataplane")
    }
}

/// Removes links, maps and the directory that [`Dataplane::open`] pinned.
pub fn remove_pins(pins: &std::path::Path) -> anyhow::Result<()> {
    let _ = pins;
    unimplemented!("dataplane")
}
