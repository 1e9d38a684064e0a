//! The maps. Their names are those of `lb_common::names`; user space sets their sizes
//! when it loads the program; those here hold where it does not.

use core::{cell::UnsafeCell, ptr::NonNull};

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    helpers::bpf_map_lookup_elem,
    macros::btf_map,
};
use lb_common::{
    backend::Backend,
    elder::{ELDERS, Elder},
    event::Event,
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, HalfOpen4, HalfOpen6},
    lease::{Lease, LeaseKey},
    limits::{
        DEFAULT_BACKENDS, DEFAULT_FLOWS, DEFAULT_HALF_OPEN, DEFAULT_SERVICES, DEFAULT_SLOTS,
        EVENTS_BYTES, MAC_BYTES, MAX_LEASES, MAX_RATES, MAX_SOURCES, PORTS_BYTES, VIP_BYTES,
    },
    news::{NEWS_BYTES, Node},
    reason::Reason,
    service::{Service, ServiceKey, Slot},
    source::{Bucket, RateKey, Source},
    stats::{BackendSignals, BackendStats, Meta, ServiceStats},
    trace::{SAMPLES_BYTES, Sample},
};
use lb_ebpf::{
    family::{V4, V6},
    tables::Scratch,
};

use super::{clock, trace};

/// Bytes that user space writes.
#[repr(transparent)]
pub(crate) struct Filter<const N: usize>(UnsafeCell<[u8; N]>);

// SAFETY: its bytes are read one by one.
unsafe impl<const N: usize> Sync for Filter<N> {}

impl<const N: usize> Filter<N> {
    /// A byte.
    #[inline(always)]
    pub(crate) fn at(&self, place: u32) -> u8 {
        const { assert!(N == 1 << 16) }
        // SAFETY: the place is below 2^16. Volatile, since the compiler sees nobody write.
        unsafe { self.0.get().cast::<u8>().add(usize::from(place as u16)).read_volatile() }
    }
}

// The look-up of an array's element costs 16 instructions more than a load at an address that the program
// knows. So these are no maps of ours: the loader makes maps of the sections (`names::is_data`), for each
// program that is loaded.

#[unsafe(link_section = ".bss.VIPS")]
pub(crate) static VIPS: Filter<VIP_BYTES> = Filter(UnsafeCell::new([0; VIP_BYTES]));

#[unsafe(link_section = ".bss.PORTS")]
pub(crate) static PORTS: Filter<PORTS_BYTES> = Filter(UnsafeCell::new([0; PORTS_BYTES]));

#[unsafe(link_section = ".bss.MACS")]
pub(crate) static MACS: Filter<MAC_BYTES> = Filter(UnsafeCell::new([0; MAC_BYTES]));

#[btf_map]
pub(crate) static SERVICES: HashMap<ServiceKey, Service, { DEFAULT_SERVICES as usize }> =
    HashMap::new();

#[btf_map]
pub(crate) static BACKENDS: Array<Backend, { DEFAULT_BACKENDS as usize }> = Array::new();

#[btf_map]
pub(crate) static MAGLEV: Array<Slot, { DEFAULT_SLOTS as usize }> = Array::new();

#[btf_map]
pub(crate) static FLOWS: LruHashMap<FlowKey4, FlowEntry4, { DEFAULT_FLOWS as usize }> =
    LruHashMap::new();

#[btf_map]
pub(crate) static FLOWS6: LruHashMap<FlowKey6, FlowEntry6, { DEFAULT_FLOWS as usize }> =
    LruHashMap::new();

#[btf_map]
pub(crate) static HALF_OPEN: LruHashMap<FlowKey4, HalfOpen4, { DEFAULT_HALF_OPEN as usize }> =
    LruHashMap::new();

#[btf_map]
pub(crate) static HALF_OPEN6: LruHashMap<FlowKey6, HalfOpen6, { DEFAULT_HALF_OPEN as usize }> =
    LruHashMap::new();

#[btf_map]
pub(crate) static REASONS: PerCpuArray<u64, { Reason::COUNT as usize }> = PerCpuArray::new();

#[btf_map]
pub(crate) static SERVICE_STATS: PerCpuArray<ServiceStats, { DEFAULT_SERVICES as usize }> =
    PerCpuArray::new();

#[btf_map]
pub(crate) static BACKEND_STATS: PerCpuArray<BackendStats, { DEFAULT_BACKENDS as usize }> =
    PerCpuArray::new();

#[btf_map]
pub(crate) static BACKEND_SIGNALS: PerCpuArray<BackendSignals, { DEFAULT_BACKENDS as usize }> =
    PerCpuArray::new();

#[btf_map]
pub(crate) static SOURCES: LpmTrie<Source, u32, { MAX_SOURCES as usize }> = LpmTrie::new();

#[btf_map]
pub(crate) static RATES: LruHashMap<RateKey, Bucket, { MAX_RATES as usize }> = LruHashMap::new();

#[btf_map]
pub(crate) static ACTIVE: Array<u64, { DEFAULT_BACKENDS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();

#[btf_map]
pub(crate) static CURSORS: Array<u64, { DEFAULT_SERVICES as usize }> = Array::new();

#[btf_map]
pub(crate) static EVENTS: RingBuf<Event, { EVENTS_BYTES as usize }> = RingBuf::new();

#[btf_map]
pub(crate) static SAMPLES: RingBuf<Sample, { SAMPLES_BYTES as usize }> = RingBuf::new();

#[btf_map]
pub(crate) static NODE: Array<Node, 1> = Array::new();

#[btf_map]
pub(crate) static ELDER: Array<Elder, { ELDERS as usize }> = Array::new();

/// Of records of several kinds; this is one of them.
#[btf_map]
pub(crate) static NEWS: RingBuf<FlowKey4, { NEWS_BYTES as usize }> = RingBuf::new();

/// Written by user space only; here so that it is created and pinned with the others.
#[btf_map]
pub(crate) static META: Array<Meta, 1> = Array::new();

/// When this CPU last told user space of a reason.
#[btf_map]
pub(crate) static REPORTED: PerCpuArray<u64, { Reason::COUNT as usize }> = PerCpuArray::new();

/// Until when this CPU's answers about packets that were too long are paid for
/// (`lb_ebpf::too_big::take_turn`).
#[btf_map]
pub(crate) static ANSWERED: PerCpuArray<u64, 1> = PerCpuArray::new();
/// What this CPU's replays have taken out of each service's budget, and new connections have not put
/// back. (Zero is a full budget, which is what the kernel makes the map of.)
#[btf_map]
pub(crate) static SPENT: PerCpuArray<u64, { DEFAULT_SERVICES as usize }> = PerCpuArray::new();

/// Until when this node may answer for a floating address. One that is not here has no lease, and needs
/// none.
#[btf_map]
pub(crate) static LEASES: HashMap<LeaseKey, Lease, { MAX_LEASES as usize }> = HashMap::new();

/// Whether the lease of an address is over.
#[inline(always)]
pub(crate) fn is_closed(address: [u8; 16]) -> bool {
    // SAFETY: the value is copied at once.
    let lease = unsafe { LEASES.get(&LeaseKey { address }) }.copied();
    lease.is_some_and(|lease| lease.until_ns <= clock::exact_ns())
}

/// Why nothing is said about a connection to an address that is not known here: another node has the address,
/// or had it until a moment ago and may still tell of the connection. `None`: there is no such connection.
#[inline(always)]
pub(crate) fn silence(address: [u8; 16]) -> Option<Reason> {
    // SAFETY: the value is copied at once.
    let lease = unsafe { LEASES.get(&LeaseKey { address }) }.copied()?;
    let now = clock::exact_ns();
    if lease.until_ns <= now {
        Some(Reason::NoLease)
    } else if now < lease.told_ns {
        Some(Reason::NotYetTold)
    } else {
        None
    }
}

/// Scratch of IPv4.
#[btf_map]
pub(crate) static SCRATCH: PerCpuArray<Scratch<V4>, 1> = PerCpuArray::new();

/// Scratch of IPv6.
#[btf_map]
pub(crate) static SCRATCH6: PerCpuArray<Scratch<V6>, 1> = PerCpuArray::new();

/// Maps that are indexed from 0.
pub(crate) trait Indexed {
    /// What they hold.
    type Value;
}

impl<T, const N: usize> Indexed for Array<T, N> {
    type Value = T;
}

impl<T, const N: usize> Indexed for PerCpuArray<T, N> {
    type Value = T;
}

/// An element, or this CPU's of it, whose index lies in a map. As aya's look-ups, but the kernel reads the
/// index where it lies: they would copy it first.
#[inline(always)]
pub(crate) fn at<M: Indexed>(map: &'static M, index: &u32) -> Option<NonNull<M::Value>> {
    let map: *const M = map;
    let index: *const u32 = index;
    // SAFETY: the map's address stands for the map, and the helper reads four bytes.
    let element = unsafe { bpf_map_lookup_elem(map.cast_mut().cast(), index.cast()) };
    NonNull::new(element.cast())
}

/// Counts a packet that was not forwarded, and notes it in its trace.
#[inline(always)]
pub(crate) fn count_reason(reason: Reason) {
    trace::note(|record| record.reason = reason as u32);
    count_reason_untraced(reason);
}

/// [`count_reason`] where no trace is ever made.
#[inline(always)]
pub(crate) fn count_reason_untraced(reason: Reason) {
    if let Some(count) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own element.
        unsafe { *count += 1 };
    }
}
