//! The program's second variant: loaded beside the first, with the same pinned maps, and in force on the
//! same interfaces, while a trace runs.

use std::fmt;

use anyhow::Context;
use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, PerCpuValues, RingBuf},
    programs::Xdp,
};
use lb_common::{
    names,
    trace::{MAX_TRACES, Sample, TraceCounts, TraceFilter, TraceRecord},
};

use super::{Dataplane, Options, filters::Filters, load, load::Variant, pins, take};

/// Most records taken at once, so that a flood of them does not keep others from the maps.
const TAKEN_AT_ONCE: usize = 8192;

/// What traces brought since they were last asked.
#[derive(Clone, Debug, Default)]
pub struct Traced {
    /// Records, in the order in which the kernel made them.
    pub records: Vec<TraceRecord>,
    /// Records that found no room in the ring buffer since the variant was put in force, by index of
    /// the trace.
    pub lost: [u64; MAX_TRACES as usize],
}

/// The loaded variant with its own maps.
pub struct Tracer {
    ebpf: Ebpf,
    filters: Array<MapData, TraceFilter>,
    address_filters: Filters,
    counts: PerCpuArray<MapData, TraceCounts>,
    records: RingBuf<MapData>,
    /// Traces that run, by index.
    running: [bool; MAX_TRACES as usize],
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").field("running", &self.running).finish_non_exhaustive()
    }
}

impl Tracer {
    /// Loads the variant. The maps must have been pinned with these options. Takes a while, and needs
    /// nothing of an open [`Dataplane`].
    pub fn load(options: &Options) -> anyhow::Result<Self> {
        let mut ebpf =
            load::load(options, Variant::Trace, &[]).context("load the variant for traces")?;
        Ok(Self {
            filters: take(&mut ebpf, names::TRACE_FILTERS)?,
            address_filters: Filters::take(&mut ebpf)?,
            counts: take(&mut ebpf, names::TRACE_COUNTS)?,
            records: take(&mut ebpf, names::TRACES)?,
            running: [false; MAX_TRACES as usize],
            ebpf,
        })
    }

    pub(super) fn program(&mut self) -> anyhow::Result<&mut Xdp> {
        load::program(&mut self.ebpf, Variant::Trace)
    }

    /// The filters of addresses that are this variant's own; empty until it is put in force.
    pub(super) fn address_filters(&self) -> &Filters {
        &self.address_filters
    }

    /// How many traces run.
    pub(super) fn running(&self) -> usize {
        self.running.iter().filter(|running| **running).count()
    }
}

impl Dataplane {
    /// What [`Tracer::load`] wants.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether the second variant is in force.
    pub fn is_tracing(&self) -> bool {
        self.tracer.is_some()
    }

    /// Puts the second variant in force on every interface, without losing a packet. Does nothing if
    /// it is.
    pub fn begin_tracing(&mut self, tracer: Tracer) -> anyhow::Result<()> {
        if self.tracer.is_some() {
            return Ok(());
        }
        tracer.address_filters.copy(&self.filters)?;
        // From here on, writes go to both.
        self.tracer = Some(tracer);
        let begun = self.put_in_force();
        if begun.is_err() {
            // Where it did come into force it must not stay.
            self.end_tracing()?;
        }
        begun
    }

    /// Puts the plain program in force again.
    pub fn end_tracing(&mut self) -> anyhow::Result<()> {
        let Some(tracer) = self.tracer.take() else { return Ok(()) };
        let ended = self.put_in_force();
        if ended.is_err() {
            self.tracer = Some(tracer);
        }
        ended
    }

    /// Sets what the trace `index` wants, or ends it. The second variant must be in force; it leaves
    /// with the last trace.
    pub fn set_trace(&mut self, index: u32, filter: Option<&TraceFilter>) -> anyhow::Result<()> {
        let tracer = self.tracer.as_mut().context("trace while the plain program is in force")?;
        let running = tracer.running.get_mut(index as usize).context("find room for a trace")?;
        *running = filter.is_some();
        let value = filter.copied().unwrap_or(TraceFilter::ZERO);
        tracer.filters.set(index, value, 0).context("write TRACE_FILTERS")?;
        if filter.is_some() {
            let zeros = PerCpuValues::try_from(vec![TraceCounts::ZERO; self.cpus])?;
            tracer.counts.set(index, zeros, 0).context("write TRACE_COUNTS")?;
        }
        if tracer.running() == 0 { self.end_tracing() } else { Ok(()) }
    }

    /// Takes what the traces brought.
    pub fn take_traces(&mut self) -> anyhow::Result<Traced> {
        let mut traced = Traced::default();
        let Some(tracer) = &mut self.tracer else { return Ok(traced) };
        while traced.records.len() < TAKEN_AT_ONCE
            && let Some(item) = tracer.records.next()
        {
            if item.len() >= size_of::<TraceRecord>() {
                // SAFETY: the record is long enough, and every bit pattern is a `TraceRecord`.
                let record = unsafe { item.as_ptr().cast::<TraceRecord>().read_unaligned() };
                traced.records.push(record);
            }
        }
        for (index, lost) in (0..).zip(&mut traced.lost) {
            let counts = tracer.counts.get(&index, 0).context("read TRACE_COUNTS")?;
            *lost = counts.iter().map(|counts| counts.lost).sum();
        }
        Ok(traced)
    }

    /// Takes the samples of steered services that the kernel program left since the last call.
    pub fn take_samples(&mut self) -> Vec<Sample> {
        let mut samples = Vec::new();
        while let Some(item) = self.samples.next() {
            if item.len() >= size_of::<Sample>() {
                // SAFETY: the record is long enough, and every bit pattern is a `Sample`.
                samples.push(unsafe { item.as_ptr().cast::<Sample>().read_unaligned() });
            }
        }
        samples
    }

    /// The program that is to be on the interfaces.
    pub(super) fn program(&mut self) -> anyhow::Result<&mut Xdp> {
        match &mut self.tracer {
            Some(tracer) => tracer.program(),
            None => load::program(&mut self.ebpf, Variant::Plain),
        }
    }

    /// Identifier of the program that is in force.
    pub(super) fn program_id(&self) -> anyhow::Result<u32> {
        let program = self.tracer.as_ref().map_or_else(
            || self.ebpf.program(names::PROGRAM),
            |tracer| tracer.ebpf.program(names::TRACE_PROGRAM),
        );
        let program = program.context("find the program")?;
        Ok(program.info().context("look at the program")?.id())
    }

    /// Replaces the program in every link, each in one step. An interface that is gone is none to care
    /// about; of those that fail, the first is told when all have been tried.
    fn put_in_force(&mut self) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        for attachment in self.attachments.clone() {
            let path = pins::link(&self.options.pins, attachment.ifindex, attachment.mode);
            let put = self.program().and_then(|program| load::take_over(program, &path));
            let put =
                put.with_context(|| format!("replace the program on {}", attachment.interface));
            outcome = outcome.and(put.map(drop));
        }
        outcome
    }
}
