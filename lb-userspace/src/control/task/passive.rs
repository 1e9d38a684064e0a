//! Ten times a second: what the connections of clients show of the backends.
//!
//! Most readings change nothing, and then nothing follows: no verdict is made anew, nothing planned.

use std::{collections::BTreeMap, sync::Arc};

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
    /// By identifier; none if they must be collected anew.
    known: Option<Arc<Vec<Placed>>>,
    /// Where the next turn begins.
    next: usize,
}

impl Readings {
    /// Services, backends or identifiers may have changed.
    pub(super) fn forget(&mut self) {
        self.known = None;
    }
}

impl Task {
    /// Reads the counters and judges by them. Says whether the verdicts may be others now.
    pub(super) async fn watch(&mut self) -> bool {
        let known = match &self.readings.known {
            Some(known) => Arc::clone(known),
            None => Arc::clone(self.readings.known.insert(Arc::new(self.places()))),
        };
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
        let signals = match read.map_err(anyhow::Error::from).and_then(|read| read) {
            Ok(signals) => signals,
            Err(error) => {
                self.fault("passive health", Some(format!("{error:#}")));
                return false;
            }
        };
        self.fault("passive health", None);
        let by_place: BTreeMap<(usize, usize), (u32, &BackendSignals)> = turn
            .iter()
            .zip(&signals)
            .map(|(&(id, place), signals)| (place, (id, signals)))
            .collect();
        let probes = &self.probes;
        let watched = self.state.watch(
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
