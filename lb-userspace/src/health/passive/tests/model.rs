//! A model of backends under traffic: what the kernel would count of them.

use std::{collections::VecDeque, time::Duration};

use lb_common::stats::{BackendSignals, handshake_class};

use super::super::{Input, News, Outcome, Rules, Stand, TICK, Track, judge};

/// How a backend treats connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Manner {
    /// It answers in so many microseconds.
    Answers(u64),
    /// It refuses all.
    Refuses,
    /// A router says that it is not there.
    Unreachable,
    /// It says nothing.
    Silent,
    /// Of this share nothing is heard; the others are answered.
    Loses(f64),
    /// This share is refused.
    RefusesShare(f64),
    /// It answers after so many ticks.
    Late(usize),
    /// It answers, and then resets this share.
    Resets(f64),
}

pub(super) struct Backend {
    pub(super) track: Track,
    pub(super) signals: BackendSignals,
    pub(super) manner: Manner,
    pub(super) eligible: bool,
    pub(super) down: bool,
    pub(super) confirmed: Option<bool>,
    /// Attempts by tick that are answered late; the next to be answered first.
    late: VecDeque<u64>,
}

/// One service.
pub(super) struct Model {
    pub(super) rules: Rules,
    pub(super) backends: Vec<Backend>,
    pub(super) now: Duration,
    /// Connections a tick to each backend that serves, on average.
    pub(super) rate: f64,
    random: fastrand::Rng,
    pub(super) told: Vec<(Duration, usize, News)>,
}

pub(super) const RULES: Rules = Rules { eject_percent: 50, eject_time: Duration::from_secs(10) };

impl Model {
    pub(super) fn new(backends: usize, rate: f64, seed: u64) -> Self {
        let backend = || Backend {
            track: Track::default(),
            signals: BackendSignals::ZERO,
            manner: Manner::Answers(100),
            eligible: true,
            down: false,
            confirmed: None,
            late: VecDeque::new(),
        };
        let mut model = Self {
            rules: RULES,
            backends: (0..backends).map(|_| backend()).collect(),
            now: Duration::from_secs(1000),
            rate,
            random: fastrand::Rng::with_seed(seed),
            told: Vec::new(),
        };
        model.judge();
        model
    }

    /// One that has had traffic for a while.
    pub(super) fn warm(backends: usize, rate: f64, seed: u64) -> Self {
        let mut model = Self::new(backends, rate, seed);
        model.run(Duration::from_secs(5));
        assert_eq!(model.told, [], "nobody fails yet");
        model
    }

    pub(super) fn all(&mut self, manner: Manner) {
        self.backends.iter_mut().for_each(|backend| backend.manner = manner);
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.tick();
        }
    }

    /// A tick of traffic, and a reading.
    pub(super) fn tick(&mut self) -> Outcome {
        // All are ejected or fail: the verdict lets all serve.
        let fit = |backend: &Backend| backend.eligible && backend.track.stand() == Stand::Fit;
        let panic = !self.backends.iter().any(fit);
        for backend in &mut self.backends {
            let serves = panic || !matches!(backend.track.stand(), Stand::Ejected(_));
            let connections = if backend.eligible && serves {
                // A whole number with this mean.
                let part = self.random.f64() < self.rate.fract();
                self.rate as u64 + u64::from(part)
            } else {
                0
            };
            backend.take(connections, &mut self.random);
        }
        self.now += TICK;
        self.judge()
    }

    fn judge(&mut self) -> Outcome {
        let mut backends: Vec<_> = (10..)
            .zip(&mut self.backends)
            .map(|(id, backend)| {
                let input = Input {
                    signals: Some((id, &backend.signals)),
                    eligible: backend.eligible,
                    down: backend.down,
                    confirmed: backend.confirmed,
                };
                (&mut backend.track, input)
            })
            .collect();
        let outcome = judge(self.rules, &mut backends, self.now);
        self.told.extend(outcome.news.iter().map(|(place, news)| (self.now, *place, *news)));
        outcome
    }

    pub(super) fn ejected(&self) -> Vec<usize> {
        let ejected = |backend: &Backend| matches!(backend.track.stand(), Stand::Ejected(_));
        (0..self.backends.len()).filter(|place| ejected(&self.backends[*place])).collect()
    }

    /// How often a backend was ejected.
    pub(super) fn ejections(&self) -> usize {
        self.told.iter().filter(|(_, _, news)| matches!(news, News::Ejected(..))).count()
    }
}

impl Backend {
    fn take(&mut self, connections: u64, random: &mut fastrand::Rng) {
        let signals = &mut self.signals;
        signals.attempts += connections;
        // Jitter of handshakes around the time given.
        let mut answer = |signals: &mut BackendSignals, count: u64, micros: u64| {
            signals.answered += count;
            for _ in 0..count {
                let nanos = micros * random.u64(700..1400);
                signals.handshakes[handshake_class(nanos)] += 1;
            }
        };
        let due = if self.late.is_empty() { 0 } else { self.late.pop_front().unwrap_or(0) };
        answer(signals, due, self.late.len() as u64 * TICK.as_micros() as u64 + 100_000);
        match self.manner {
            Manner::Answers(micros) => answer(signals, connections, micros),
            Manner::Refuses => signals.refused += connections,
            Manner::Unreachable => signals.unreachable += connections,
            Manner::Silent => {}
            Manner::Late(ticks) => {
                self.late.resize(ticks, 0);
                if let Some(last) = self.late.back_mut() {
                    *last += connections;
                }
            }
            Manner::Resets(share) => {
                answer(signals, connections, 100);
                signals.resets += (connections as f64 * share) as u64;
            }
            Manner::Loses(share) | Manner::RefusesShare(share) => {
                for _ in 0..connections {
                    if fastrand_share(random, share) {
                        signals.refused += u64::from(self.manner == Manner::RefusesShare(share));
                    } else {
                        signals.answered += 1;
                        signals.handshakes[7] += 1;
                    }
                }
            }
        }
    }
}

fn fastrand_share(random: &mut fastrand::Rng, share: f64) -> bool {
    random.f64() < share
}
