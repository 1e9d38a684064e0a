//! Once a second: sweep the flow tables, take the kernel's events, read the counters.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lb_common::{event::Event, stats::BackendSignals};

use super::Task;
use crate::{
    clock,
    config::Dataplane,
    dataplane::{Counters, Sweep, Timeouts},
};

/// What a blocking thread brought.
#[derive(Debug)]
pub(super) struct Swept {
    /// When it began.
    began: Duration,
    events: Vec<Event>,
    sweep: anyhow::Result<Sweep>,
    counters: anyhow::Result<Counters>,
    signals: anyhow::Result<Vec<(u32, BackendSignals)>>,
}

/// Counters at two points in time, and what follows from them.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates {
    at: Duration,
    connections: BTreeMap<u32, u64>,
    backends: BTreeMap<u32, [u64; 3]>,
    /// New connections a second, by service index.
    pub(super) services: BTreeMap<u32, f64>,
    /// New connections, bytes to it and bytes from it a second, by backend identifier.
    pub(super) by_backend: BTreeMap<u32, [f64; 3]>,
}

impl Rates {
    fn take(&mut self, counters: &Counters, at: Duration) {
        let seconds = at.saturating_sub(self.at).as_secs_f64().max(0.001);
        // A counter that went back belongs to another backend by now.
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds;
        let connections: BTreeMap<_, _> =
            counters.services.iter().map(|(index, stats)| (*index, stats.connections)).collect();
        let backends: BTreeMap<_, _> = counters
            .backends
            .iter()
            .map(|(id, stats, _)| {
                (*id, [stats.connections, stats.forward_bytes, stats.return_bytes])
            })
            .collect();
        self.services = connections
            .iter()
            .filter_map(|(index, now)| Some((*index, rate(*self.connections.get(index)?, *now))))
            .collect();
        self.by_backend = backends
            .iter()
            .filter_map(|(id, now)| {
                let before = self.backends.get(id)?;
                Some((*id, [0, 1, 2].map(|which| rate(before[which], now[which]))))
            })
            .collect();
        (self.at, self.connections, self.backends) = (at, connections, backends);
    }
}

impl Task {
    /// Starts a sweep, unless one still runs.
    pub(super) fn start_sweep(&mut self) {
        if self.sweeping {
            return;
        }
        self.sweeping = true;
        let kernel = Arc::clone(&self.kernel);
        let timeouts = timeouts(&self.config.dataplane);
        let (services, backends) = self.indexes();
        let sender = self.swept.clone();
        tokio::spawn(async move {
            let began = clock::monotonic();
            let work = tokio::task::spawn_blocking(move || Swept {
                began,
                events: kernel.take_events(),
                sweep: kernel.sweep(clock::monotonic_coarse_ns(), &timeouts),
                counters: kernel.counters(&services, &backends),
                signals: kernel
                    .signals(&backends)
                    .map(|signals| backends.iter().copied().zip(signals).collect()),
            });
            let swept = work.await.unwrap_or_else(|panicked| Swept {
                began,
                events: Vec::new(),
                sweep: Err(panicked.into()),
                counters: Ok(Counters::default()),
                signals: Ok(Vec::new()),
            });
            // The task may have ended meanwhile.
            let _ = sender.send(swept).await;
        });
    }

    /// Takes the result of a sweep.
    pub(super) fn take_sweep(&mut self, swept: Swept) {
        self.sweeping = false;
        let now = clock::monotonic();
        let names = self.names();
        let find = |service: u32, backend: u32| {
            (names.services.get(&service).cloned(), names.backends.get(&backend).cloned())
        };
        for note in self.kernel_news.take(&swept.events, &find, now) {
            self.timeline.add(note);
        }
        let wrong = match &swept.sweep {
            Ok(sweep) => {
                self.flows = sweep.flows;
                self.planner.swept(&sweep.by_backend, swept.began);
                self.planner.swept_steered(&sweep.steered, swept.began);
                None
            }
            Err(error) => Some(format!("{error:#}")),
        };
        self.fault("sweep of the flow tables", wrong);
        let wrong = match swept.counters {
            Ok(counters) => {
                self.rates.take(&counters, now);
                let signals = swept.signals.as_deref().unwrap_or_default();
                for note in self.replay_news.take(signals, &counters.services, &names, now) {
                    self.timeline.add(note);
                }
                swept.signals.err().map(|error| format!("{error:#}"))
            }
            Err(error) => Some(format!("{error:#}")),
        };
        self.fault("counters", wrong);
        if let Ok(sweep) = &swept.sweep {
            self.watch_floods(sweep, &names, now);
        }
    }

    /// The indexes of all services and the identifiers of all backends.
    pub(super) fn indexes(&self) -> (Vec<u32>, Vec<u32>) {
        let names = self.names();
        (names.services.into_keys().collect(), names.backends.into_keys().collect())
    }
}

fn timeouts(dataplane: &Dataplane) -> Timeouts {
    let ns = |timeout: Duration| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
    Timeouts {
        tcp_idle_ns: ns(dataplane.tcp_idle_timeout),
        tcp_closing_ns: ns(dataplane.tcp_closing_timeout),
        udp_idle_ns: ns(dataplane.udp_idle_timeout),
    }
}

#[cfg(test)]
mod tests {
    use lb_common::stats::{BackendStats, ServiceStats};

    use super::*;

    #[test]
    fn rates_are_differences_over_time() {
        let counters = |connections, bytes| Counters {
            reasons: Vec::new(),
            services: vec![(0, ServiceStats { connections, ..ServiceStats::ZERO })],
            backends: vec![(
                7,
                BackendStats { connections, forward_bytes: bytes, ..BackendStats::ZERO },
                1,
            )],
        };
        let mut rates = Rates::default();
        rates.take(&counters(1000, 50_000), Duration::from_secs(10));
        assert!(rates.services.is_empty(), "one point is no rate");
        rates.take(&counters(1030, 60_000), Duration::from_secs(12));
        assert!((rates.services[&0] - 15.0).abs() < 1e-9);
        assert!((rates.by_backend[&7][1] - 5000.0).abs() < 1e-9);
        rates.take(&counters(3, 4), Duration::from_secs(13));
        assert!(rates.services[&0].abs() < 1e-9, "a counter that began anew");
    }
}
