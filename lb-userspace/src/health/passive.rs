//! Passive health: what the connections of a service's clients show of its backends, without a probe.
//! Pure: the kernel's counters and `now` in, opinions out.
//!
//! ```text
//!                  condemned, room under the cap
//!        ┌───────────────────────────────────────────────┐
//!        │   condemned, but no room, no other,           ▼
//!       Fit ────── or all fail alike ──────▶ Failing ──▶ Ejected
//!        ▲                                      │          │
//!        └──── it answers, or all is quiet ─────┘          │
//!        └──── probes pass, it answers, or its time is up ─┘
//! ```
//!
//! A backend is condemned by one of three tests: nothing but failures since its last answer, mostly
//! failures over two seconds, or established connections that it resets one after another. Each is
//! judged by what its siblings show at the same time: that they are alike must be less likely than
//! a hundredth of a percent. So what hits all alike (loss on the clients' side, a
//! flood, the balancer's own cable) condemns nobody, and a single lost packet never does.
//!
//! A backend whose handshakes take longer than usual, while its siblings' do not, is not ejected but
//! gets a smaller share. Where a service's answers do not pass the balancer, silence says nothing
//! and is not counted.

use std::{fmt, time::Duration};

use lb_common::stats::BackendSignals;

mod drift;
mod evidence;
mod handshakes;
#[cfg(test)]
mod tests;
mod track;
mod trial;
mod window;

pub use evidence::{Evidence, Fault};
use handshakes::Handshakes;
use window::{Counts, Window};

/// Time between two readings of the kernel's counters.
pub const TICK: Duration = Duration::from_millis(100);

/// Failures since the last answer that may condemn, if the siblings have answered so much meanwhile that
/// it is no chance: about seventy connections, for two failures. So few because `least_conn` gives hardly
/// more to a backend that lets connections hang.
const FAILURES: u64 = 2;

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Most backends of a service that are ejected at a time, in percent; one may always be.
    pub eject_percent: u32,
    /// How long the first ejection lasts; each one that follows soon lasts twice as long.
    pub eject_time: Duration,
}

/// What is known of a backend now.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Its identifier and its counters, if they have been read.
    pub signals: Option<(u32, &'a BackendSignals)>,
    /// It would serve, but for what is said here: the operator, the probes and its next hop allow it.
    pub eligible: bool,
    /// The probes say that it is down.
    pub down: bool,
    /// Whether so many probes in a row have passed since it was ejected as make a backend rise;
    /// nothing if it is not probed.
    pub confirmed: Option<bool>,
}

/// How a backend stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stand {
    /// Nothing speaks against it.
    #[default]
    Fit,
    /// Much speaks against it, and it stays nevertheless.
    Failing(Failing),
    /// It gets no new connections.
    Ejected(Ejection),
}

/// A backend that fails and stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// What speaks against it.
    pub evidence: Evidence,
    /// Why it stays.
    pub stays: Stays,
    answered: u64,
    until: Duration,
}

/// Why a backend that fails is not ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stays {
    /// The others fail too: the cause is not with it.
    Alike,
    /// There is no other.
    Alone,
    /// So many of so many are ejected, and no more may be.
    Cap(usize, usize),
}

impl fmt::Display for Failing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}; it stays: ", self.evidence)?;
        match self.stays {
            Stays::Alike => out.write_str("the other backends fail too"),
            Stays::Alone => out.write_str("there is no other backend"),
            Stays::Cap(ejected, of) => write!(out, "{ejected} of {of} backends are ejected"),
        }
    }
}

/// An ejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// What speaks against it.
    pub evidence: Evidence,
    /// It lasts until then at least, unless the backend is seen to be well.
    pub until: Duration,
    answered: u64,
    saw_down: bool,
}

/// Why an ejection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// It answers connections: late ones, or those of a panic.
    Answers,
    /// The probes pass.
    Probed,
    /// Its time is over, and there is no probe that could say more.
    Time,
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It is ejected, for so long at least.
    Ejected(Ejection, Duration),
    /// It is ejected no longer.
    Restored(Restored),
    /// It should be ejected, and is not.
    Failing(Failing),
    /// It fails no longer.
    Recovered,
    /// It is slow and has this share in percent, or 100: it is slow no longer.
    Share(u32),
}

/// What a round of judging brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What is worth telling, by the place of the backend.
    pub news: Vec<(usize, News)>,
    /// Something has changed that the tables depend on.
    pub changed: bool,
}

/// All that is known of one backend.
#[derive(Clone, Debug, Default)]
pub struct Track {
    id: Option<u32>,
    seen: Seen,
    stand: Stand,
    /// Ejections that followed each other soon.
    ejections: u32,
    /// When the last one ended, and how long it was to last.
    returned: (Duration, Duration),
    /// Share in percent, less than 100 while it is slow, and since when.
    share: Option<(u32, Duration)>,
    patience_ms: u16,
    patience_falls: Option<Duration>,
    above_siblings: bool,
}

/// What has been seen of its connections. Most backends of many have none for long.
#[derive(Clone, Debug, Default)]
enum Seen {
    #[default]
    Nothing,
    /// All counters are zero.
    Zero(Duration),
    Some(Box<Live>),
}

#[derive(Clone, Debug)]
struct Live {
    window: Window,
    handshakes: Handshakes,
}

impl Track {
    /// How it stands.
    pub fn stand(&self) -> Stand {
        self.stand
    }

    /// Share of its weight in percent: less than 100 while it is slow.
    pub fn share_percent(&self) -> u32 {
        self.share.map_or(100, |(percent, _)| percent)
    }

    /// Milliseconds that it may take to answer a SYN; 0 while that is not known.
    pub fn patience_ms(&self) -> u16 {
        self.patience_ms
    }

    /// Whether its handshakes take clearly longer than its siblings'.
    pub fn is_above_siblings(&self) -> bool {
        self.above_siblings
    }

    /// Microseconds that half of its handshakes stay below now, if there are enough.
    pub fn handshake_p50_us(&self) -> Option<u64> {
        self.live().and_then(|live| live.handshakes.median()).map(|micros| micros as u64)
    }

    /// Microseconds that 99 % of its handshakes of the last half minute or so stay below.
    pub fn handshake_p99_us(&self) -> Option<u64> {
        self.live().and_then(|live| live.handshakes.p99()).map(|micros| micros as u64)
    }

    /// Whether it has had connections in the last seconds.
    pub fn is_busy(&self, now: Duration) -> bool {
        self.live().is_some_and(|live| live.window.is_busy(now))
    }

    fn live(&self) -> Option<&Live> {
        match &self.seen {
            Seen::Some(live) => Some(live),
            Seen::Nothing | Seen::Zero(_) => None,
        }
    }

    fn is_ejected(&self) -> bool {
        matches!(self.stand, Stand::Ejected(_))
    }

    fn answered(&self) -> u64 {
        self.live().map_or(0, |live| live.window.last().answered)
    }
}

impl Live {
    fn new(signals: &BackendSignals, now: Duration) -> Self {
        let window = Window::new(Counts::of(signals), now);
        Self { window, handshakes: Handshakes::new(&signals.handshakes, now) }
    }
}

/// Judges the backends of one service.
pub fn judge(rules: Rules, backends: &mut [(&mut Track, Input<'_>)], now: Duration) -> Outcome {
    let mut outcome = Outcome::default();
    for (track, input) in backends.iter_mut() {
        if let Some((id, signals)) = input.signals {
            track.read(id, signals, now);
        }
    }
    let awake =
        |track: &Track| track.stand != Stand::Fit || track.share.is_some() || track.is_busy(now);
    if !backends.iter().any(|(track, _)| awake(track)) {
        return outcome;
    }
    for (place, (track, input)) in backends.iter_mut().enumerate() {
        outcome.changed |= track.follow_patience(now);
        outcome.news.extend(track.restore(input, now).map(|news| (place, news)));
    }
    // Mostly nothing has gone wrong anywhere.
    let calm = |track: &Track| {
        let trouble = |live: &Live| live.window.has_trouble(now, track.grace());
        track.stand == Stand::Fit && !track.live().is_some_and(trouble)
    };
    if !backends.iter().all(|(track, _)| calm(track)) {
        trial::condemn(rules, backends, now, &mut outcome);
    }
    drift::compare_handshakes(backends, now, &mut outcome);
    outcome.changed |= !outcome.news.is_empty();
    outcome
}
