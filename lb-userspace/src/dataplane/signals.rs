//! `BACKEND_SIGNALS`: what connections show of each backend, read ten times a second.
//!
//! The reader has its own hold on the map. It never waits for whoever writes to the tables, which may
//! take long.

use std::os::fd::AsFd;

use anyhow::Context;
use aya::maps::MapData;
use lb_common::stats::BackendSignals;

use super::batch;

/// A batch may read past so many identifiers that nobody asked for, rather than begin anew.
const GAP: u32 = 16;

/// Reads the signals of backends.
#[derive(Debug)]
pub struct Signals {
    map: MapData,
    cpus: usize,
}

impl Signals {
    pub(super) fn new(map: MapData) -> anyhow::Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"));
        Ok(Self { map, cpus: cpus.context("count the CPUs")? })
    }

    /// The signals of backends, summed over the CPUs, in the order of `ids`, which ascend.
    pub fn read(&self, ids: &[u32]) -> anyhow::Result<Vec<BackendSignals>> {
        let mut signals = Vec::with_capacity(ids.len());
        for run in ids.chunk_by(|before, after| (1..=GAP).contains(&after.saturating_sub(*before)))
        {
            let (Some(&first), Some(&last)) = (run.first(), run.last()) else { continue };
            let mut wanted = run.iter().copied().peekable();
            let run = first..last + 1;
            batch::read_per_cpu(self.map.fd().as_fd(), self.cpus, run, |id, per_cpu| {
                if wanted.next_if_eq(&id).is_some() {
                    signals.push(sum(per_cpu));
                }
            })
            .context("read BACKEND_SIGNALS")?;
        }
        anyhow::ensure!(signals.len() == ids.len(), "read BACKEND_SIGNALS: entries are missing");
        Ok(signals)
    }
}

fn sum(per_cpu: &[BackendSignals]) -> BackendSignals {
    per_cpu.iter().fold(BackendSignals::ZERO, |mut sum, cpu| {
        sum.attempts += cpu.attempts;
        sum.answered += cpu.answered;
        sum.refused += cpu.refused;
        sum.unreachable += cpu.unreachable;
        sum.unanswered += cpu.unanswered;
        sum.resets += cpu.resets;
        for (sum, cpu) in sum.handshakes.iter_mut().zip(cpu.handshakes) {
            *sum = sum.wrapping_add(cpu);
        }
        sum
    })
}
