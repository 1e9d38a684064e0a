//! What is read from the kernel: connections, counters, the program and its maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_common::stats::{BackendStats, ServiceStats};

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
    /// `half_open`, `established`, `closing`, `closed`, `udp`, `sampled`, or `steered`: recorded,
    /// because the present table would send its packets elsewhere.
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
    /// When it began: `CLOCK_MONOTONIC_COARSE`, nanoseconds.
    pub began_ns: u64,
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
    /// Traces that run: while there are any, the program is the variant that makes them.
    #[serde(default)]
    pub traces: usize,
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
