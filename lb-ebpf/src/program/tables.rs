//! The data path's state, in BPF maps.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, xdp_md},
    btf_maps::lpm_trie::Key as Prefixed,
    helpers::{bpf_get_prandom_u32, bpf_sk_lookup_tcp, bpf_sk_release},
};
use lb_common::{
    backend::Backend,
    event::Event,
    hash::{PORT_SERVED, PORT_STEERED},
    lease::LeaseKey,
    limits::{REPLAY_BUDGET, REPLAY_COST},
    news::Node,
    service::{Service, ServiceKey, Slot},
    source::{Bucket, RateKey, SOURCE_BITS, Source},
    stats::handshake_class,
    trace::{FROM_BACKEND, SAMPLE_EVERY, Stage, TO_BACKEND, TraceRecord},
};
use lb_ebpf::{
    packet::Packet,
    sample,
    tables::{Signal, Tables},
    too_big,
};

use super::{
    atomic, clock, cookie,
    maps::{
        ACTIVE, ANSWERED, BACKEND_SIGNALS, BACKEND_STATS, BACKENDS, CURSORS, EVENTS, LEASES, MACS,
        MAGLEV, NODE, PORTS, RATES, REPORTED, SAMPLES, SERVICE_STATS, SERVICES, SOURCES, SPENT,
        VIPS, at,
    },
    trace,
};

mod of_family;

/// User space is told of the same reason at most so often by one CPU.
const REPORT_EVERY_NS: u64 = 1_000_000_000;

/// The maps as the data path's state.
///
/// Without `TRACEABLE`, no trace is ever made: that is for the hot path of the plain program, where
/// even to ask would cost.
pub(crate) struct Maps<const TRACEABLE: bool = true>;

impl<const TRACEABLE: bool> Maps<TRACEABLE> {
    /// Notes something in the trace of the packet in work.
    #[inline(always)]
    fn note(change: impl FnOnce(&mut TraceRecord)) {
        if TRACEABLE {
            trace::note(change);
        }
    }
}

impl<const TRACEABLE: bool> Tables for Maps<TRACEABLE> {
    #[inline(always)]
    fn ticks(&self) -> u64 {
        clock::ticks()
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    #[inline(always)]
    fn clock_ns(&self) -> u64 {
        clock::exact_ns()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes no argument.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn vip(&self, place: u32) -> u8 {
        VIPS.at(place)
    }

    #[inline(always)]
    fn is_steered(&self, place: u32) -> bool {
        PORTS.at(place) & PORT_STEERED != 0
    }

    #[inline(always)]
    fn is_served(&self, place: u32) -> bool {
        PORTS.at(place) & PORT_SERVED != 0
    }

    #[inline(always)]
    fn is_foreign(&self, place: u32) -> bool {
        MACS.at(place) != 0
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        // SAFETY: copied at once; the element may be replaced under the reference.
        unsafe { SERVICES.get(key) }.copied()
    }

    #[inline(always)]
    fn has_listener(&self, packet: &Packet, key: &ServiceKey) -> bool {
        let (words, _) = key.address.as_chunks::<8>();
        let [high, low] = words else { return false };
        let [high, low] = [high, low].map(|word| u64::from_ne_bytes(*word));
        has_listener(packet.context as *mut xdp_md, high, low, u32::from(key.port.to_be())) != 0
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&Backend> {
        Self::note(|record| record.backend = id);
        BACKENDS.get(id)
    }

    #[inline(always)]
    fn is_lease_over(&self, backend: u32) -> bool {
        is_lease_over(backend) != 0
    }

    #[inline(always)]
    fn afresh<'a, E>(&self, element: &'a E) -> &'a E {
        atomic::afresh(element)
    }

    #[inline(always)]
    fn apart(&self, number: u64) -> u64 {
        atomic::apart(number)
    }

    #[inline(always)]
    fn backend_at(&self, id: &u32) -> Option<&Backend> {
        Self::note(|record| record.backend = *id);
        // SAFETY: an element stays where it is as long as the map; user space replaces it word by word.
        at(&BACKENDS, id).map(|backend| unsafe { backend.as_ref() })
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<&Slot> {
        MAGLEV.get(index)
    }

    #[inline(always)]
    fn source(&self, list: u32, address: &[u8; 16]) -> Option<u32> {
        SOURCES.get(&Prefixed::new(SOURCE_BITS, Source { list, address: *address })).copied()
    }

    #[inline(always)]
    fn bucket(&self, key: &RateKey) -> Option<&mut Bucket> {
        // SAFETY: the kernel keeps an element's memory valid while the program runs. If it is given to
        // another source meanwhile, that one pays.
        RATES.get_ptr_mut(key).map(|bucket| unsafe { &mut *bucket })
    }

    #[inline(always)]
    fn add_bucket(&self, key: &RateKey, bucket: Bucket) {
        // It fails if another CPU was first, or if there is no memory: the source has a token more.
        let _ = RATES.insert(key, bucket, u64::from(BPF_NOEXIST));
    }

    #[inline(always)]
    fn next_cursor(&self, service: u32) -> u32 {
        let Some(cursor) = CURSORS.get_ptr_mut(service) else { return 0 };
        // SAFETY: a map element is valid and aligned.
        unsafe { atomic::fetch_add(cursor, 1) as u32 }
    }

    #[inline(always)]
    fn active(&self, backend: u32) -> u64 {
        ACTIVE.get(backend).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn open(&self, backend: u32) {
        add(backend, 1);
    }

    #[inline(always)]
    fn close(&self, backend: u32) {
        add(backend, u64::MAX);
    }

    #[inline(always)]
    fn set_bits(&self, word: *mut u64, bits: u64) -> u64 {
        // SAFETY: the word lies in a map element that was just looked up; entries are aligned to 8.
        unsafe { atomic::fetch_or(word, bits) }
    }

    #[inline(always)]
    fn count_forward(&self, backend: u32, bytes: u64) {
        self.count_forward_at(&backend, bytes);
    }

    #[inline(always)]
    fn count_forward_at(&self, backend: &u32, bytes: u64) {
        Self::note(|record| (record.backend, record.direction) = (*backend, TO_BACKEND));
        if let Some(mut stats) = at(&BACKEND_STATS, backend) {
            // SAFETY: this CPU's own element.
            let stats = unsafe { stats.as_mut() };
            stats.forward_packets += 1;
            stats.forward_bytes += bytes;
        }
    }

    #[inline(always)]
    fn count_steered(&self, backend: &u32, bytes: u64) -> bool {
        Self::note(|record| (record.backend, record.direction) = (*backend, TO_BACKEND));
        let Some(mut stats) = at(&BACKEND_STATS, backend) else { return false };
        // SAFETY: this CPU's own element.
        let stats = unsafe { stats.as_mut() };
        stats.forward_packets += 1;
        stats.forward_bytes += bytes;
        stats.forward_packets.is_multiple_of(SAMPLE_EVERY)
    }

    #[inline(always)]
    fn sample(&self, packet: &Packet, l3: usize, backend: u32, bytes: u64) {
        show_sample(packet.context as *mut xdp_md, l3 as u32, backend, bytes as u32);
    }

    #[inline(always)]
    fn stage(&self, stage: Stage) {
        Self::note(|record| record.stage = stage as u32);
    }

    #[inline(always)]
    fn count_return(&self, backend: u32, bytes: u64) {
        self.count_return_at(&backend, bytes);
    }

    #[inline(always)]
    fn count_return_at(&self, backend: &u32, bytes: u64) {
        Self::note(|record| (record.backend, record.direction) = (*backend, FROM_BACKEND));
        if let Some(mut stats) = at(&BACKEND_STATS, backend) {
            // SAFETY: this CPU's own element.
            let stats = unsafe { stats.as_mut() };
            stats.return_packets += 1;
            stats.return_bytes += bytes;
        }
    }

    #[inline(always)]
    fn count_connection(&self, service: u32, backend: u32) {
        if let Some(stats) = SERVICE_STATS.get_ptr_mut(service) {
            // SAFETY: this CPU's own element.
            unsafe { (*stats).connections += 1 };
        }
        if let Some(stats) = BACKEND_STATS.get_ptr_mut(backend) {
            // SAFETY: as above.
            unsafe { (*stats).connections += 1 };
        }
    }

    #[inline(always)]
    fn count_answered(&self, backend: u32) {
        if let Some(stats) = BACKEND_STATS.get_ptr_mut(backend) {
            // SAFETY: this CPU's own element.
            unsafe { (*stats).answered += 1 };
        }
    }

    #[inline(always)]
    fn count_refused(&self, service: u32) {
        if let Some(stats) = SERVICE_STATS.get_ptr_mut(service) {
            // SAFETY: this CPU's own element.
            unsafe { (*stats).refused += 1 };
        }
    }

    #[inline(always)]
    fn signal(&self, backend: u32, signal: Signal) {
        let Some(signals) = BACKEND_SIGNALS.get_ptr_mut(backend) else { return };
        // SAFETY: this CPU's own element.
        let signals = unsafe { &mut *signals };
        match signal {
            Signal::Attempt => signals.attempts += 1,
            Signal::Answered(took_ns) => {
                signals.answered += 1;
                if let Some(took_ns) = took_ns {
                    // The compiler knows that the class is small, and the verifier does not: so the
                    // check must stay.
                    let class = core::hint::black_box(handshake_class(took_ns));
                    if let Some(count) = signals.handshakes.get_mut(class) {
                        *count += 1;
                    }
                }
            }
            Signal::Refused => signals.refused += 1,
            Signal::Unreachable => signals.unreachable += 1,
            Signal::Unanswered => signals.unanswered += 1,
            Signal::Reset => signals.resets += 1,
        }
    }

    #[inline(always)]
    fn count_replayed(&self, service: u32, backend: u32) {
        if let Some(stats) = SERVICE_STATS.get_ptr_mut(service) {
            // SAFETY: this CPU's own element.
            unsafe { (*stats).replayed += 1 };
        }
        if let Some(stats) = BACKEND_STATS.get_ptr_mut(backend) {
            // SAFETY: as above.
            unsafe { (*stats).connections += 1 };
        }
    }

    #[inline(always)]
    fn count_not_replayed(&self, service: u32) {
        if let Some(stats) = SERVICE_STATS.get_ptr_mut(service) {
            // SAFETY: this CPU's own element.
            unsafe { (*stats).not_replayed += 1 };
        }
    }

    #[inline(always)]
    fn earn_replays(&self, service: u32, amount: u64) {
        if let Some(spent) = SPENT.get_ptr_mut(service) {
            // SAFETY: this CPU's own element.
            unsafe { *spent = (*spent).saturating_sub(amount) };
        }
    }

    #[inline(always)]
    fn spend_replay(&self, service: u32) -> bool {
        let Some(spent) = SPENT.get_ptr_mut(service) else { return false };
        // SAFETY: this CPU's own element.
        unsafe {
            if *spent + REPLAY_COST > REPLAY_BUDGET {
                return false;
            }
            *spent += REPLAY_COST;
        }
        true
    }

    #[inline(always)]
    fn node(&self) -> Node {
        NODE.get(0).copied().unwrap_or(Node::ZERO)
    }

    #[inline(always)]
    fn report(&self, event: Event) {
        let Some(reported) = REPORTED.get_ptr_mut(event.reason) else { return };
        // SAFETY: this CPU's own element.
        unsafe {
            if *reported != 0 && event.time_ns.wrapping_sub(*reported) < REPORT_EVERY_NS {
                return;
            }
            *reported = event.time_ns;
        }
        // A full buffer means that the daemon is gone or slow; the counters tell the same.
        let _ = EVENTS.output(event, 0);
    }

    #[inline(always)]
    fn own_scale(&self) -> Option<u8> {
        cookie::own_scale()
    }

    #[inline(always)]
    fn may_answer(&self) -> bool {
        let Some(paid_ns) = ANSWERED.get_ptr_mut(0) else { return false };
        // SAFETY: this CPU's own element.
        too_big::take_turn(unsafe { &mut *paid_ns }, self.now_ns())
    }
}

#[inline(always)]
fn add(backend: u32, number: u64) {
    if let Some(active) = ACTIVE.get_ptr_mut(backend) {
        // SAFETY: a map element is valid and aligned.
        unsafe { atomic::fetch_add(active, number) };
    }
}

/// Shows a packet of a steered service. A subprogram, for its registers and its stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn show_sample(ctx: *mut xdp_md, l3: u32, backend: u32, bytes: u32) -> u32 {
    let packet = crate::packet(ctx);
    // The compiler knows from the callers that it is small, and the verifier does not: so the check must stay.
    let l3 = core::hint::black_box(l3) as usize;
    if let Some(sample) = sample::sample(&packet, l3, backend, bytes, clock::now_ns()) {
        // A full buffer means that the daemon is gone or slow; it shows what it gets.
        let _ = SAMPLES.output(sample, 0);
    }
    0
}

/// Whether the lease of a backend is over. A global subprogram, which has a stack of its own for the key.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_lease_over(backend: u32) -> u32 {
    let key = BACKENDS.get(backend).map(|it| LeaseKey::backend(&it.address, it.port));
    // SAFETY: the value is copied at once.
    let lease = key.and_then(|key| unsafe { LEASES.get(&key) }.copied());
    u32::from(lease.is_none_or(|lease| lease.until_ns <= clock::exact_ns()))
}

/// Whether a socket listens at an address, given as the two halves of its mapped form, and a port in
/// network byte order. From nobody's address: so no established connection is found.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn has_listener(ctx: *mut xdp_md, high: u64, low: u64, port: u32) -> u32 {
    const V4_LEN: u32 = 12;
    const V6_LEN: u32 = 36;
    /// What stands before an IPv4 address in its mapped form, `::ffff:a.b.c.d`.
    const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
    let [first, second] = words(low);
    // A source, the destination, and their ports, as `struct bpf_sock_tuple` has them.
    let mut tuple = [0_u32; 9];
    let length = if high == 0 && first == MAPPED {
        tuple[1] = second;
        tuple[2] = port << 16;
        V4_LEN
    } else {
        let [one, two] = words(high);
        (tuple[4], tuple[5], tuple[6], tuple[7]) = (one, two, first, second);
        tuple[8] = port << 16;
        V6_LEN
    };
    // SAFETY: the tuple is as long as is said, and the socket is given back at once.
    unsafe {
        let tuple = (&raw mut tuple).cast();
        let socket = bpf_sk_lookup_tcp(ctx.cast(), tuple, length, OWN_NETNS, 0);
        if socket.is_null() {
            return 0;
        }
        bpf_sk_release(socket.cast());
    }
    1
}

/// `BPF_F_CURRENT_NETNS`: the network namespace of the interface.
pub(super) const OWN_NETNS: u64 = u64::MAX;

/// The halves of a word as they stand in memory.
#[inline(always)]
fn words(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}
