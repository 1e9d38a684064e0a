//! Ten times a second: what the connections of clients show of the backends.
//!
//! Most readings change nothing, and then nothing follows: no verdict is made anew, nothing planned.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_common::stats::BackendSignals;

use super::Task;
use crate::{clock, control::plan::service_key};

/// Backends that are read at a time. With more, they take turns, so that a reading stays a matter of a
/// few milliseconds.
const AT_A_TIME: usize = 16_384;

/// A backend's identifier, and its place in the state: that of its service, and its own in it.
type Placed = (u32, (usize, usize));

/// Which backends are read.
#[derive(Debug, Default)]
pub(super) struct Readings {
    /// By identifier.
    known: Arc<Vec<Placed>>,
    /// What `known` was collected of: the numbers that the backends and their identifiers have.
    of: Option<(u64, u64)>,
    /// Where the next turn begins.
    next: usize,
}

impl Task {
    /// Reads the counters and judges by them. Says whether the verdicts may be others now.
    pub(super) async fn watch(&mut self) -> bool {
        let of = (self.state.revision(), self.planner.numbered());
        if self.readings.of.replace(of) != Some(of) {
            self.readings.known = Arc::new(self.places());
        }
        let known = Arc::clone(&self.readings.known);
        if known.is_empty() {
            return false;
        }
        let first = if self.readings.next < known.len() { self.readings.next } else { 0 };
        let last = known.len().min(first + AT_A_TIME);
        self.readings.next = last;
        let turn = &known[first..last];
        let ids: Vec<_> = turn.iter().map(|(id, _)| *id).collect();
        let kernel = Arc::clone(&self.kernel);
        let read = tokio::task::spawn_blocking(move || kernel.signals(&ids)).await;
        let mut signals = match read.map_err(anyhow::Error::from).and_then(|read| read) {
            Ok(signals) => signals,
            Err(error) => {
                self.fault("passive health", Some(format!("{error:#}")));
                return false;
            }
        };
        self.fault("passive health", None);
        self.add_proxied(turn, &mut signals);
        let by_place: BTreeMap<(usize, usize), (u32, &BackendSignals)> = turn
            .iter()
            .zip(&signals)
            .map(|(&(id, place), signals)| (place, (id, signals)))
            .collect();
        let probes = &self.probes;
        let services: BTreeSet<usize> = by_place.keys().map(|&(service, _)| service).collect();
        let watched = self.state.watch(
            |service| services.contains(&service),
            |service, backend| by_place.get(&(service, backend)).copied(),
            |service, backend| probes.passes(service, backend),
            clock::monotonic(),
        );
        for (service, backend) in &watched.ejected {
            self.probes.doubt(service, backend);
        }
        for note in watched.notes {
            self.timeline.add(note);
        }
        watched.changed
    }

    /// Adds what requests have shown to what the kernel's connections have.
    fn add_proxied(&self, turn: &[Placed], signals: &mut [BackendSignals]) {
        let services = self.state.services();
        for (&(_, (service, backend)), signals) in turn.iter().zip(signals) {
            let service = &services[service];
            if service.config.proxy.is_none() {
                continue;
            }
            let address = service.records[backend].config.address;
            let Some(seen) = self.proxy.signals(&service.config.name, address) else { continue };
            signals.attempts += seen.attempts;
            signals.answered += seen.answered;
            signals.refused += seen.refused;
            signals.unreachable += seen.unreachable;
            signals.unanswered += seen.unanswered;
            signals.resets += seen.resets;
            for (sum, seen) in signals.handshakes.iter_mut().zip(seen.handshakes) {
                *sum = sum.wrapping_add(seen);
            }
        }
    }

    /// The identifiers of the backends that are watched, with their places in the state.
    fn places(&self) -> Vec<Placed> {
        let services = self.state.services();
        let mut places: Vec<_> = self
            .state
            .watched()
            .filter_map(|(service, backend)| {
                let of = &services[service];
                let key = service_key(of.config.listen, of.config.protocol);
                let index = self.planner.service_index(&key)?;
                let id = self.planner.id(index, of.records[backend].config.address)?;
                Some((id, (service, backend)))
            })
            .collect();
        places.sort_unstable();
        places
    }
}
