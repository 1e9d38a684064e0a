//! Sizes of the maps and bounds of the loops in the kernel program.

/// Version of everything in this crate that lies in a pinned map. A daemon adopts pinned maps only
/// of its own version.
pub const ABI_VERSION: u32 = 1;

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

/// Bits in `VIPS`, the filter that tells in one load that an address is not ours. A power of two.
pub const VIP_BITS: u32 = 1 << 16;

/// Elements of 64 bits in `VIPS`.
pub const VIP_WORDS: u32 = VIP_BITS / 64;

/// Bytes of the `EVENTS` ring buffer. A power of two and a multiple of the page size.
pub const EVENTS_BYTES: u32 = 1 << 18;

/// Most backends that `least_conn` looks at for one new connection. With more than this, it takes
/// the best of this many neighbours from a rotating start.
pub const LEAST_CONN_SCAN: u32 = 32;

/// Ports tried before a new connection is given up as [`crate::reason::Reason::PortsExhausted`].
///
/// With 60,000 of 64,512 ports taken, one random try fails with 0.93, and 128 with 0.0001.
pub const PORT_TRIES: u32 = 128;

/// Lowest port that a translated connection may take as its source.
pub const FIRST_NAT_PORT: u16 = 1024;

/// Number of ports that a translated connection may take: all from [`FIRST_NAT_PORT`] up.
pub const NAT_PORTS: u32 = 65_536 - FIRST_NAT_PORT as u32;
