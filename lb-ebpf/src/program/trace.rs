//! Traces: what the program's second variant adds.
//!
//! The object has two programs that share all subprograms. `ballast` is the one in force nearly always;
//! its hot path is compiled without any of this, and the subprograms ask a constant that the loader
//! sets to 0, so that the kernel's verifier takes the branches out. While somebody traces, the daemon
//! loads the object once more with the constant 1 and puts `ballast_trace` in force.
//!
//! A packet's record grows in memory of its CPU: [`trace_begin`] notes it as it came, the data path's
//! steps what they are and what they count, [`trace_end`] how it leaves; then it is known who wants it.

use aya_ebpf::{
    Global,
    bindings::xdp_md,
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_xdp_load_bytes},
    macros::btf_map,
};
use lb_common::trace::{
    MAX_TRACES, NONE, NOT_FORWARDED, Stage, TRACED_BYTES, TRACES_IDLE_BYTES, TraceCounts,
    TraceFilter, TraceRecord,
};
use lb_ebpf::{
    packet::{store32, store128},
    trace::{self, Ends},
};

use super::maps::BACKENDS;

/// Set to 1 by the loader for the second variant.
#[unsafe(no_mangle)]
static TRACE: Global<u32> = Global::new(0);

/// The loader gives it its size for the second variant.
#[btf_map]
static TRACES: RingBuf<TraceRecord, { TRACES_IDLE_BYTES as usize }> = RingBuf::new();

#[btf_map]
static TRACE_FILTERS: Array<TraceFilter, { MAX_TRACES as usize }> = Array::new();

#[btf_map]
static TRACE_COUNTS: PerCpuArray<TraceCounts, { MAX_TRACES as usize }> = PerCpuArray::new();

/// The record of the packet in work.
#[btf_map]
static TRACE_RECORD: PerCpuArray<TraceRecord, 1> = PerCpuArray::new();

#[inline(always)]
fn record() -> Option<&'static mut TraceRecord> {
    // SAFETY: this CPU's own element; the program is not entered again before it ends, and each step
    // is done with the reference before the next takes its own.
    TRACE_RECORD.get_ptr_mut(0).map(|record| unsafe { &mut *record })
}

/// Changes the record of the packet in work, in the second variant.
#[inline(always)]
pub(crate) fn note(change: impl FnOnce(&mut TraceRecord)) {
    if TRACE.load() != 0
        && let Some(record) = record()
    {
        change(record);
    }
}

/// Notes a packet as it comes.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn trace_begin(ctx: *mut xdp_md) -> u32 {
    let Some(record) = record() else { return 0 };
    let packet = crate::packet(ctx);
    let Ends { src, dst, ports, protocol, flags } = Ends::of(&packet);
    // SAFETY: the helpers take no argument.
    (record.time_ns, record.cpu) =
        unsafe { (bpf_ktime_get_ns(), bpf_get_smp_processor_id() as u32) };
    record.ifindex = packet.ingress_ifindex;
    record.stage = Stage::Filter as u32;
    (record.reason, record.backend, record.service) = (NONE, NONE, NONE);
    record.direction = NOT_FORWARDED;
    store128(&mut record.before_src, src);
    store128(&mut record.before_dst, dst);
    store32(&mut record.before_ports, ports);
    (record.before_protocol, record.before_flags) = (protocol, flags);
    record.before_len = packet.len() as u32;
    copy(ctx, &mut record.before, record.before_len)
}

/// Notes the packet as it leaves, and shows it to those who want it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn trace_end(ctx: *mut xdp_md, action: u32) -> u32 {
    let Some(record) = record() else { return 0 };
    let packet = crate::packet(ctx);
    let Ends { src, dst, ports, protocol, flags } = Ends::of(&packet);
    store128(&mut record.after_src, src);
    store128(&mut record.after_dst, dst);
    store32(&mut record.after_ports, ports);
    (record.after_protocol, record.after_flags) = (protocol, flags);
    record.after_len = packet.len() as u32;
    record.action = action;
    if let Some(backend) = BACKENDS.get(record.backend) {
        record.service = backend.service;
    }
    record.wanted = 0;
    let mut index = 0;
    while index < MAX_TRACES {
        record.wanted |= trace_wanted(index) << index;
        index += 1;
    }
    if record.wanted == 0 {
        return 0;
    }
    copy(ctx, &mut record.after, record.after_len);
    if TRACES.output(&*record, 0).is_err() {
        let mut index = 0;
        while index < MAX_TRACES {
            if record.wanted >> index & 1 != 0
                && let Some(counts) = TRACE_COUNTS.get_ptr_mut(index)
            {
                // SAFETY: this CPU's own element.
                unsafe { (*counts).lost += 1 };
            }
            index += 1;
        }
    }
    0
}

/// 1 if the trace wants the packet in work, and it is its turn. A subprogram: the verifier looks at it
/// once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trace_wanted(index: u32) -> u32 {
    let (Some(record), Some(filter)) = (record(), TRACE_FILTERS.get(index)) else { return 0 };
    if !trace::wants(filter, record) {
        return 0;
    }
    let Some(counts) = TRACE_COUNTS.get_ptr_mut(index) else { return 0 };
    // SAFETY: this CPU's own element.
    let counts = unsafe { &mut *counts };
    let turn = filter.one_in < 2 || counts.matched.is_multiple_of(filter.one_in.into());
    counts.matched += 1;
    u32::from(turn)
}

/// Copies the start of a frame of `len` bytes.
#[inline(always)]
fn copy(ctx: *mut xdp_md, into: &mut [u8; TRACED_BYTES], len: u32) -> u32 {
    let into: *mut [u8; TRACED_BYTES] = into;
    // SAFETY: both arrays of a record begin at a multiple of 8 (asserted below); written in words,
    // since the target would call a function for the bytes.
    unsafe { *into.cast::<[u64; TRACED_BYTES / 8]>() = [0; TRACED_BYTES / 8] };
    let len = len.min(TRACED_BYTES as u32);
    // SAFETY: a local. The compiler must forget what it knows of the length: the verifiers of all kernels
    // see from the mask, and not from comparisons, that it is from 1 to the array's. (No frame has length 0.)
    let len = unsafe { (&raw const len).read_volatile() };
    let len = (len.wrapping_sub(1) & (TRACED_BYTES as u32 - 1)) + 1;
    // SAFETY: the context is the kernel's; `len` bytes lie within the array.
    unsafe { bpf_xdp_load_bytes(ctx, 0, into.cast(), len) as u32 }
}

const _: () = assert!(
    TRACED_BYTES.is_power_of_two()
        && core::mem::offset_of!(TraceRecord, before) % 8 == 0
        && core::mem::offset_of!(TraceRecord, after) % 8 == 0
);
