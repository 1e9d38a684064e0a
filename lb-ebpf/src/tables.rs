//! The state that the data path reads and writes: BPF maps in the kernel, plain maps in host tests.

use lb_common::{
    backend::Backend,
    event::Event,
    flow::Syn,
    news::Node,
    service::{Service, ServiceKey, Slot},
    source::{Bucket, RateKey},
    trace::Stage,
};

use crate::{
    cookie::{Cookie, Question},
    family::{ClientSide, Family, Ports, Tuple, V4, V6},
    packet::{Macs, Packet},
    replay::Tags,
};

/// A table took no entry: the key is there already, or there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotInserted;

/// All of the state.
pub trait State: Tables + Flows<V4> + Flows<V6> {}

impl<T: Tables + Flows<V4> + Flows<V6>> State for T {}

/// Everything but the flow tables, which are [`Flows`] of each family.
pub trait Tables {
    /// The clock that flows are stamped with: the kernel's count of ticks, which costs a load.
    fn ticks(&self) -> u64;
    /// `CLOCK_MONOTONIC`, exact to a tick, in nanoseconds: a call.
    fn now_ns(&self) -> u64;
    /// `CLOCK_MONOTONIC` to the nanosecond: dearer, and only for the first packets of a connection.
    fn clock_ns(&self) -> u64;
    /// Any number.
    fn random(&self) -> u32;
    /// [`lb_common::hash::VIP`] and [`lb_common::hash::VIP_STEERED`] of an address, by its place in `VIPS`; 0
    /// for one that is not ours.
    fn vip(&self, place: u32) -> u8;
    /// Whether a place of `PORTS` may be a steered service's.
    fn is_steered(&self, place: u32) -> bool;
    /// Whether a place of `PORTS` may be any service's.
    fn is_served(&self, place: u32) -> bool;
    /// Whether no interface of this node has a MAC address of that place in `MACS`.
    fn is_foreign(&self, place: u32) -> bool;
    /// An entry of `SERVICES`.
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    /// Whether a socket of this node takes new connections to the service.
    fn has_listener(&self, packet: &Packet, key: &ServiceKey) -> bool;
    /// An entry of `BACKENDS`.
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// The same, of which the compiler does not know that it is: it does not keep a register for an address
    /// that it can make anew of another in one instruction.
    fn afresh<'a, E>(&self, element: &'a E) -> &'a E {
        element
    }
    /// The same number, of which the compiler does not know that it is: of comparisons with one number it makes
    /// a table, in an order of its own.
    fn apart(&self, number: u64) -> u64 {
        number
    }
    /// [`Tables::backend`] of an identifier that lies in a map: it is the key where it lies.
    fn backend_at(&self, id: &u32) -> Option<&Backend> {
        self.backend(*id)
    }
    /// Whether the lease of a [`LEASED`](lb_common::backend::LEASED) backend is over, or there is none.
    fn is_lease_over(&self, backend: u32) -> bool;
    /// A slot of `MAGLEV`.
    fn slot(&self, index: u32) -> Option<&Slot>;
    /// What `SOURCES` says of an address in a list: the longest prefix.
    fn source(&self, list: u32, address: &[u8; 16]) -> Option<u32>;
    /// An entry of `RATES`, shared as those of [`Flows`] are.
    #[expect(clippy::mut_from_ref, reason = "shared memory, see `Flows`")]
    fn bucket(&self, key: &RateKey) -> Option<&mut Bucket>;
    /// Adds to `RATES`, if there is room.
    fn add_bucket(&self, key: &RateKey, bucket: Bucket);
    /// The service's round-robin position, which each call moves on by one.
    fn next_cursor(&self, service: u32) -> u32;
    /// Open connections of a backend.
    fn active(&self, backend: u32) -> u64;
    /// One more.
    fn open(&self, backend: u32);
    /// One less.
    fn close(&self, backend: u32);
    /// Sets bits in a word of a flow entry and returns what it was, in one atomic step.
    fn set_bits(&self, word: *mut u64, bits: u64) -> u64;
    /// Counts a packet to a backend.
    fn count_forward(&self, backend: u32, bytes: u64);
    /// [`Tables::count_forward`] of an identifier that lies in a map.
    fn count_forward_at(&self, backend: &u32, bytes: u64) {
        self.count_forward(*backend, bytes);
    }
    /// [`Tables::count_return`] of an identifier that lies in a map.
    fn count_return_at(&self, backend: &u32, bytes: u64) {
        self.count_return(*backend, bytes);
    }
    /// Counts a packet to a backend as [`Tables::count_forward`] does, and says whether it is one to
    /// sample.
    fn count_steered(&self, backend: &u32, bytes: u64) -> bool;
    /// Shows user space a packet of a steered service, whose IP header is at `l3`
    /// ([`crate::sample::sample`]).
    fn sample(&self, packet: &Packet, l3: usize, backend: u32, bytes: u64);
    /// Counts a packet from a backend.
    fn count_return(&self, backend: u32, bytes: u64);
    /// Counts a new connection.
    fn count_connection(&self, service: u32, backend: u32);
    /// Counts a backend's first answer to a connection.
    fn count_answered(&self, backend: u32);
    /// Counts a new connection that was refused.
    fn count_refused(&self, service: u32);
    /// This step decides about the packet, unless a later one says so too. For traces; costs nothing
    /// where none is made.
    fn stage(&self, stage: Stage);
    /// Counts what a connection shows of a backend.
    fn signal(&self, backend: u32, signal: Signal);
    /// Counts a connection that is tried at another backend, which is this one.
    fn count_replayed(&self, service: u32, backend: u32);
    /// Counts a connection that is not, although its backend has failed.
    fn count_not_replayed(&self, service: u32);
    /// Adds to the service's budget of replays.
    fn earn_replays(&self, service: u32, amount: u64);
    /// Takes one replay out of the service's budget. False if there is none.
    fn spend_replay(&self, service: u32) -> bool;
    /// What this node is among the others.
    fn node(&self) -> Node;
    /// Tells user space.
    fn report(&self, event: Event);
    /// How the node's own stack scales the windows of its connections; `None` if answers in its name may not
    /// carry timestamps.
    fn own_scale(&self) -> Option<u8>;
    /// Whether one more answer may be sent about a packet that was too long.
    fn may_answer(&self) -> bool;
}

/// What a connection shows of a backend, see [`lb_common::stats::BackendSignals`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A SYN is sent to it.
    Attempt,
    /// It has answered; after so many nanoseconds, if that is known.
    Answered(Option<u64>),
    /// It has refused.
    Refused,
    /// Somebody says that it cannot be reached.
    Unreachable,
    /// It has not answered in time.
    Unanswered,
    /// It has reset an established connection.
    Reset,
}

/// Room for what a new connection writes into the flow tables: a BPF program's stack has 512 bytes,
/// which two keys and an entry of IPv6 would nearly fill.
///
/// It also is how the searches for a backend and for a port get their arguments, see
/// [`Flows::consider`] and [`Flows::take_port`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Scratch<F: Family> {
    /// Key of the client's direction.
    pub client: F::Key,
    /// Key of the backend's direction.
    pub server: F::Key,
    /// Entry of either in `FLOWS`.
    pub entry: F::Entry,
    /// Entry of either in `HALF_OPEN`.
    pub half: F::HalfOpen,
    /// The service.
    pub service: Service,
    /// Of the packet that becomes a SYN to another backend.
    pub tags: Tags,
    /// The client's tuple.
    pub tuple: Tuple<F::Address>,
    /// The tuple of the replies; the search fills in its destination port.
    pub replies: Tuple<F::Address>,
    /// The link on the client's side.
    pub side: ClientSide,
    /// Backend identifier.
    pub backend: u32,
    /// Its open connections, while it is searched for.
    pub load: i64,
    /// Its weight, while it is searched for.
    pub weight: i64,
    /// Where the search starts: any number.
    pub seed: u32,
    /// TCP or UDP.
    pub protocol: u8,
}

/// The flow tables of one family.
///
/// A look-up gives the entry itself, not a copy: entries are shared with other CPUs, and with user
/// space, and are written in place. The fields that decide anything are written atomically
/// ([`crate::conntrack`]); stamps and counters may lose an update to a race, which costs nothing.
pub trait Flows<F: Family> {
    /// An entry of `FLOWS`.
    #[expect(clippy::mut_from_ref, reason = "shared memory, see the trait")]
    fn flow(&self, key: &F::Key) -> Option<&mut F::Entry>;
    /// Adds to `FLOWS` a key that is not there.
    fn insert_flow(&self, key: &F::Key, entry: &F::Entry) -> Result<(), NotInserted>;
    /// Removes from `FLOWS`; no harm if it is not there. Says whether it was.
    fn remove_flow(&self, key: &F::Key) -> bool;
    /// An entry of `HALF_OPEN`.
    #[expect(clippy::mut_from_ref, reason = "shared memory, see the trait")]
    fn half_open(&self, key: &F::Key) -> Option<&mut F::HalfOpen>;
    /// Adds to `HALF_OPEN` a key that is not there.
    fn insert_half_open(&self, key: &F::Key, entry: &F::HalfOpen) -> Result<(), NotInserted>;
    /// Puts another entry in `HALF_OPEN` in place of the one that is there, in one step.
    fn replace_half_open(&self, key: &F::Key, entry: &F::HalfOpen) -> Result<(), NotInserted>;
    /// Removes from `HALF_OPEN`. Says whether it was there.
    fn remove_half_open(&self, key: &F::Key) -> bool;
    /// This CPU's scratch; what it holds means nothing. Taken once for a packet.
    #[expect(clippy::mut_from_ref, reason = "memory of this CPU alone")]
    fn scratch(&self) -> Option<&mut Scratch<F>>;
    /// Tells the other nodes of a connection that is established, or that its backend has answered: `client`,
    /// `server` and `entry` of the scratch, as in [`lb_common::news::Begun4`].
    fn tell_begun(&self);
    /// Tells the other nodes that a connection has ended, by the key of its backend's direction.
    fn tell_ended(&self, server: &F::Key);
    /// The node's SYN cookie for a connection to a listener of its own, if that is short of room. `question`
    /// is the SYN of `tuple`, which `packet` carries.
    fn cookie(
        &self,
        packet: &Packet,
        tuple: &Tuple<F::Address>,
        question: &Question<F>,
    ) -> Option<Cookie>;
    /// Runs [`crate::connect::find_port`]. The kernel's verifier looks at a subprogram of its own
    /// once, and not anew for each of the paths that lead to it.
    fn find_port(&self) -> bool;
    /// Runs [`crate::connect::take_port`], for the same reason: once, and not for each attempt.
    fn take_port(&self, attempt: u32) -> bool;
    /// Runs [`crate::admit::judge`], a subprogram for the same reason.
    fn judge(&self, index: u32, flags: u32, rate: u32, burst: u32) -> u32;
    /// Runs [`crate::select::consider`], likewise.
    fn consider(&self, step: u32) -> bool;
}

/// Value of a flow table, of either family.
pub trait Entry<F: Family>: Copy {
    /// An entry that turns packets of the tuple `from` into packets of the tuple `to`.
    fn new(from: Tuple<F::Address>, to: Tuple<F::Address>, backend: u32, state: u32) -> Self;
    /// Copies another entry, but for its state bits.
    ///
    /// Word by word: of a whole entry the compiler makes a call of `memmove`, which the stack has no room
    /// for where this is used.
    fn copy(&mut self, other: &Self, state: u32);
    /// The tuple after rewriting.
    fn rewritten(&self) -> Tuple<F::Address>;
    /// The ports after rewriting.
    fn ports(&self) -> Ports;
    /// What the rewriting adds to a TCP or UDP checksum's sum.
    fn l4_delta(&self) -> u16;
    /// Backend identifier.
    fn backend(&self) -> u32;
    /// Where it stands.
    fn backend_at(&self) -> &u32;
    /// State bits.
    fn state(&self) -> u32;
    /// Sets the backend identifier.
    fn set_backend(&mut self, backend: u32);
    /// Backend identifier and state bits as one word of 64 bits, in place.
    fn backend_and_state(&mut self) -> *mut u64;
    /// Stamps and counts a packet.
    fn seen(&mut self, ticks: u64, bytes: u64);
    /// The last acknowledgement number, network byte order; 0 if there is none.
    fn ack(&self) -> u32;
    /// Notes the last acknowledgement number.
    fn set_ack(&mut self, ack: u32);
    /// The link on the client's side.
    fn client_side(&self) -> ClientSide;
    /// The interface on the client's side.
    fn client_ifindex(&self) -> u32;
    /// The MAC addresses of this direction's frames on the client's side, as they come in or leave.
    fn macs(&self) -> Macs;
    /// The upper eight bytes of [`Entry::macs`].
    fn upper_macs(&self) -> u64;
    /// Notes the link on the client's side.
    fn set_client_side(&mut self, side: ClientSide);
}

/// Value of a half-open table, of either family.
pub trait HalfOpen<F: Family>: Copy {
    /// As it would stand in `FLOWS`.
    fn flow(&self) -> &F::Entry;
    /// As it would stand in `FLOWS`.
    fn flow_mut(&mut self) -> &mut F::Entry;
    /// The client's SYN: of the backend's half alone.
    fn syn(&self) -> &Syn;
    /// The client's SYN.
    fn syn_mut(&mut self) -> &mut Syn;
}
