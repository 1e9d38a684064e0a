//! Once a second: sweep a slice of the flow tables, take the kernel's events, read the counters.

use std::{collections::HashMap, sync::Arc, time::Duration};

use lb_common::{event::Event, reason::Reason, stats::BackendSignals, trace::Sample};

use super::{TICK, Task};
use crate::{
    clock,
    config::Dataplane,
    control::kernel::Kernel,
    dataplane::{Counters, Sweep, Timeouts},
};

/// What a blocking thread brought.
#[derive(Debug)]
pub(super) struct Swept {
    events: Vec<Event>,
    samples: Vec<Sample>,
    /// The whole sweep, if this was its last slice.
    sweep: anyhow::Result<Option<Sweep>>,
    /// The counters, if they were read this time.
    counted: anyhow::Result<Option<Counted>>,
}

/// What the kernel program has counted.
#[derive(Debug)]
struct Counted {
    counters: Counters,
    /// By identifier, in ascending order.
    signals: Vec<(u32, BackendSignals)>,
}

impl Counted {
    /// Reads the counters of these services and backends, whose identifiers ascend.
    fn read(kernel: &dyn Kernel, services: &[u32], backends: &[u32]) -> anyhow::Result<Self> {
        let counters = kernel.counters(services, backends)?;
        let signals = kernel.signals(backends)?;
        Ok(Self { counters, signals: backends.iter().copied().zip(signals).collect() })
    }
}

/// Backends whose counters are read in one second. With more, they are read less often, so that the
/// time that it takes is the same share.
const COUNTED_A_SECOND: usize = 65_536;

/// Counters at two points in time, and what follows from them.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates {
    at: Duration,
    connections: HashMap<u32, u64>,
    backends: HashMap<u32, [u64; 3]>,
    given: Option<u64>,
    /// New connections a second, by service index.
    pub(super) services: HashMap<u32, f64>,
    /// New connections, bytes to it and bytes from it a second, by backend identifier.
    pub(super) by_backend: HashMap<u32, [f64; 3]>,
    /// SYN cookies a second.
    pub(super) cookies: f64,
}

impl Rates {
    /// The rates since `self`, with what was counted then.
    fn next(&self, counters: &Counters, at: Duration) -> Self {
        let seconds = at.saturating_sub(self.at).as_secs_f64().max(0.001);
        // A counter that went back belongs to another backend by now.
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds;
        let connections: HashMap<_, _> =
            counters.services.iter().map(|(index, stats)| (*index, stats.connections)).collect();
        let backends: HashMap<_, _> = counters
            .backends
            .iter()
            .map(|(id, stats, _)| {
                (*id, [stats.connections, stats.forward_bytes, stats.return_bytes])
            })
            .collect();
        let services = connections
            .iter()
            .filter_map(|(index, now)| Some((*index, rate(*self.connections.get(index)?, *now))))
            .collect();
        let by_backend = backends
            .iter()
            .filter_map(|(id, now)| {
                let before = self.backends.get(id)?;
                Some((*id, [0, 1, 2].map(|which| rate(before[which], now[which]))))
            })
            .collect();
        let given = counters.reasons.get(Reason::SynCookie as usize).copied();
        let cookies = self.given.zip(given).map_or(0.0, |(before, now)| rate(before, now));
        Self { at, connections, backends, given, services, by_backend, cookies }
    }
}

impl Task {
    /// Starts the next slice of a sweep, unless one still runs.
    pub(super) fn start_sweep(&mut self) {
        if self.sweeping {
            return;
        }
        self.sweeping = true;
        let kernel = Arc::clone(&self.kernel);
        let timeouts = timeouts(&self.config.dataplane);
        let indexes = self.is_time_to_count().then(|| self.indexes());
        let sender = self.swept.clone();
        tokio::spawn(async move {
            let work = tokio::task::spawn_blocking(move || Swept {
                events: kernel.take_events(),
                samples: kernel.take_samples(),
                sweep: kernel.sweep(clock::monotonic_coarse_ns(), &timeouts),
                counted: indexes
                    .map(|(services, backends)| Counted::read(&*kernel, &services, &backends))
                    .transpose(),
            });
            let swept = work.await.unwrap_or_else(|panicked| Swept {
                events: Vec::new(),
                samples: Vec::new(),
                sweep: Err(panicked.into()),
                counted: Ok(None),
            });
            // The task may have ended meanwhile.
            let _ = sender.send(swept).await;
        });
    }

    /// With many backends, not every second.
    fn is_time_to_count(&self) -> bool {
        let every = TICK * self.planner.backend_count().div_ceil(COUNTED_A_SECOND).max(1) as u32;
        // A little less, since ticks come a little early or late.
        clock::monotonic() + TICK / 2 >= self.rates.at + every
    }

    /// Takes what a slice of a sweep has brought.
    pub(super) fn take_sweep(&mut self, swept: Swept) {
        self.sweeping = false;
        let now = clock::monotonic();
        self.sampled.take(&swept.samples, now);
        if !swept.events.is_empty() {
            let names = self.names_in(&swept.events);
            let find = |service: u32, backend: u32| {
                (names.services.get(&service).cloned(), names.backends.get(&backend).cloned())
            };
            for note in self.kernel_news.take(&swept.events, &find, now) {
                self.timeline.add(note);
            }
        }
        let mut done = None;
        let wrong = match swept.sweep {
            Ok(Some(sweep)) => {
                self.flows = sweep.flows;
                let began = Duration::from_nanos(sweep.began_ns);
                self.planner.swept(&sweep.by_backend, began);
                self.planner.swept_steered(&sweep.steered, began);
                done = Some(sweep);
                None
            }
            Ok(None) => None,
            Err(error) => Some(format!("{error:#}")),
        };
        self.fault("sweep of the flow tables", wrong);
        let wrong = match swept.counted {
            Ok(Some(Counted { counters, signals })) => {
                self.rates = Arc::new(self.rates.next(&counters, now));
                self.tell_of_replays(&signals, &counters, now);
                self.watch_cookies(now);
                None
            }
            Ok(None) => None,
            Err(error) => Some(format!("{error:#}")),
        };
        self.fault("counters", wrong);
        if let Some(sweep) = done {
            self.watch_floods(&sweep, now);
        }
    }

    /// Tells that connections to a backend are tried at others, and that they no longer are.
    fn tell_of_replays(
        &mut self,
        signals: &[(u32, BackendSignals)],
        counters: &Counters,
        now: Duration,
    ) {
        let mut news = std::mem::take(&mut self.replay_news);
        let index_of = |id: u32| self.planner.backend(id).map(|(index, _)| index);
        let names = |id: u32| self.backend_name(id);
        let notes = news.take(signals, &counters.services, &index_of, &names, now);
        self.replay_news = news;
        for note in notes {
            self.timeline.add(note);
        }
    }

    /// The indexes of all services and the identifiers of all backends.
    fn indexes(&self) -> (Vec<u32>, Vec<u32>) {
        (self.planner.service_indexes(), self.planner.backend_ids())
    }
}

pub(super) fn timeouts(dataplane: &Dataplane) -> Timeouts {
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
        let rates = Rates::default();
        let rates = rates.next(&counters(1000, 50_000), Duration::from_secs(10));
        assert!(rates.services.is_empty(), "one point is no rate");
        let rates = rates.next(&counters(1030, 60_000), Duration::from_secs(12));
        assert!((rates.services[&0] - 15.0).abs() < 1e-9);
        assert!((rates.by_backend[&7][1] - 5000.0).abs() < 1e-9);
        let rates = rates.next(&counters(3, 4), Duration::from_secs(13));
        assert!(rates.services[&0].abs() < 1e-9, "a counter that began anew");
    }
}
