//! Sizes of the maps and bounds of the loops in the kernel program.

/// Version of everything in this crate that lies in a pinned map. A daemon adopts pinned maps only
/// of its own version.
pub const ABI_VERSION: u32 = 8;

/// Default number of entries in `SERVICES` (floating address + port + protocol), and in every map
/// that has one entry for each service.
pub const DEFAULT_SERVICES: u32 = 1024;

/// Default number of entries in `BACKENDS`, and in every map that has one entry for each backend of
/// all services. A backend's identifier is its index in `BACKENDS`.
pub const DEFAULT_BACKENDS: u32 = 4096;

/// Default number of slots in `MAGLEV`, shared by the tables of all services (8 bytes each).
pub const DEFAULT_SLOTS: u32 = 1 << 20;

/// Most services that a configuration may ask for.
pub const MOST_SERVICES: u32 = 1 << 18;

/// Most backends that a configuration may ask for.
pub const MOST_BACKENDS: u32 = 1 << 22;

/// Most slots that a configuration may ask for: 2 GiB of kernel memory.
pub const MOST_SLOTS: u32 = 1 << 28;

/// Default number of entries in `FLOWS` (and in `FLOWS6`): two for each connection.
pub const DEFAULT_FLOWS: u32 = 262_144;

/// Default number of entries in `HALF_OPEN` (and in `HALF_OPEN6`): two for each connection that
/// the backend has not answered yet.
pub const DEFAULT_HALF_OPEN: u32 = 65_536;

/// Bytes in `VIPS`, the filter that tells in one load that an address is not ours: one for each hash of
/// 16 bits, so that the verifier sees without a comparison that the load is within.
pub const VIP_BYTES: usize = 1 << 16;

/// Bytes in `PORTS`, the filter that tells in one load that a packet's service is not steered, or that there is
/// none. As many
/// as in `VIPS`, for the same reason.
pub const PORTS_BYTES: usize = 1 << 16;

/// Bytes in `MACS`, the filter that tells in one load that a frame is for another host. As many as the last
/// two bytes of a MAC address can be.
pub const MAC_BYTES: usize = 1 << 16;

/// Most prefixes in `SOURCES`: the lists of all services, floating addresses, and while a reload is
/// under way, the old lists beside the new. The kernel takes memory for those that are there.
pub const MAX_SOURCES: u32 = 1 << 20;

/// Most sources in `RATES`. With more than these at a time, the kernel forgets the one that has been
/// idle longest, which may then begin a burst anew.
pub const MAX_RATES: u32 = 1 << 16;

/// Most floating addresses with a lease.
pub const MAX_LEASES: u32 = 1 << 14;

/// Bytes of the `EVENTS` ring buffer. A power of two and a multiple of the page size.
pub const EVENTS_BYTES: u32 = 1 << 18;

/// Most backends that `least_conn` looks at for one new connection. With more than this, it takes
/// the best of this many neighbours from a rotating start.
pub const LEAST_CONN_SCAN: u32 = 32;

/// Ports tried before a new connection is given up as [`crate::reason::Reason::PortsExhausted`].
///
/// With 60,000 of 64,512 ports taken, one random try fails with 0.93, and 128 with 0.0001.
pub const PORT_TRIES: u32 = 128;

/// Slots, or members of a service, that are looked at for another backend than those tried.
pub const REPLAY_SCAN: u32 = 32;

/// Time that a backend has to answer a SYN while its own is not known, milliseconds. Linux sends a SYN
/// again after 1 s (RFC 6298, section 2), so this is in time for a client that is closer than that.
pub const DEFAULT_PATIENCE_MS: u16 = 200;

/// What one replay takes of a service's budget; a new connection adds
/// [`crate::service::Service::replay_per_mille`].
pub const REPLAY_COST: u64 = 1000;

/// Most that a service's budget holds on one CPU.
pub const REPLAY_BUDGET: u64 = 1000 * REPLAY_COST;

/// Lowest port that a translated connection may take as its source.
pub const FIRST_NAT_PORT: u16 = 1024;

/// Number of ports that a translated connection may take: all from [`FIRST_NAT_PORT`] up.
pub const NAT_PORTS: u32 = 65_536 - FIRST_NAT_PORT as u32;
