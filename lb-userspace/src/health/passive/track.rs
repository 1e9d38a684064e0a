//! One backend: what is learned of it, and how its stand changes.

use std::time::Duration;

use lb_common::stats::BackendSignals;

use super::{
    Ejection, Evidence, FAILURES, Failing, Input, Live, News, Restored, Rules, Seen, Stand, Stays,
    Track, window::Counts,
};

/// A SYN is overdue after so many times the 99th percentile of the backend's handshakes, ...
const PATIENCE_FACTOR: f64 = 3.0;

/// ... within these bounds. Below, the balancer's own delays count; above, clients give up.
const PATIENCE: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(5)];

/// The same for a backend of which too few handshakes are known: above the round trip to anywhere that
/// a service would have its backends.
const UNKNOWN_PATIENCE: Duration = Duration::from_millis(250);

/// A shorter patience is in force after it was right for so long; a longer one at once.
const PATIENCE_FALLS: Duration = Duration::from_secs(10);

/// A new patience is told only if it differs by this factor.
const PATIENCE_STEP: f64 = 1.25;

/// Longest ejection by time, unless `eject_time` is longer.
pub(super) const LONGEST: Duration = Duration::from_mins(5);

/// A backend that has served for twice its last ejection, and for so long, begins anew.
const FORGIVEN: Duration = Duration::from_mins(1);

impl Track {
    /// Takes a reading. The first one of an identifier is what later ones are compared with.
    pub(super) fn read(&mut self, id: u32, signals: &BackendSignals, now: Duration) {
        let counts = Counts::of(signals);
        let is_new = self.id.replace(id) != Some(id);
        if is_new || self.live().is_some_and(|live| counts.went_back(&live.window.last())) {
            self.seen = Seen::Nothing;
        }
        let slow = self.share.is_some();
        match &mut self.seen {
            Seen::Some(live) => {
                live.window.push(counts, now);
                live.handshakes.push(&signals.handshakes, slow, now);
            }
            Seen::Nothing if counts == Counts::default() => self.seen = Seen::Zero(now),
            Seen::Nothing => self.seen = Seen::Some(Box::new(Live::new(signals, now))),
            Seen::Zero(at) if counts == Counts::default() => *at = now,
            Seen::Zero(at) => {
                let mut live = Live::new(&BackendSignals::ZERO, *at);
                live.window.push(counts, now);
                live.handshakes.push(&signals.handshakes, slow, now);
                self.seen = Seen::Some(Box::new(live));
            }
        }
    }

    /// After this time without an answer a SYN has failed.
    pub(super) fn grace(&self) -> Duration {
        let p99 = self.live().and_then(|live| live.handshakes.p99());
        p99.map_or(UNKNOWN_PATIENCE, patience)
    }

    pub(super) fn follow_patience(&mut self, now: Duration) -> bool {
        let Some(p99) = self.live().and_then(|live| live.handshakes.p99()) else { return false };
        let wanted = patience(p99).as_millis() as u16;
        let (old, new) = (f64::from(self.patience_ms), f64::from(wanted));
        if new * PATIENCE_STEP > old && new < old * PATIENCE_STEP {
            self.patience_falls = None;
            return false;
        }
        if new < old && now < *self.patience_falls.get_or_insert(now) + PATIENCE_FALLS {
            return false;
        }
        self.patience_falls = None;
        self.patience_ms = wanted;
        true
    }

    pub(super) fn eject(
        &mut self,
        evidence: Evidence,
        rules: Rules,
        probed: bool,
        now: Duration,
    ) -> News {
        let (returned, lasted) = self.returned;
        if now >= returned + (lasted * 2).max(FORGIVEN) {
            self.ejections = 0;
        }
        self.ejections += 1;
        // A probe may say at once that it is well again. If it has said so, and was wrong, the time
        // counts too.
        let doublings =
            if probed { self.ejections.checked_sub(2) } else { Some(self.ejections - 1) };
        let longest = LONGEST.max(rules.eject_time);
        let hold = doublings.map_or(Duration::ZERO, |doublings| {
            rules.eject_time.saturating_mul(1 << doublings.min(16)).min(longest)
        });
        let answered = self.answered();
        let ejection = Ejection { evidence, until: now + hold, answered, saw_down: false };
        self.stand = Stand::Ejected(ejection);
        self.returned = (now, hold);
        self.share = None;
        News::Ejected(ejection, hold)
    }

    /// Ends an ejection if it is time.
    pub(super) fn restore(&mut self, input: &Input<'_>, now: Duration) -> Option<News> {
        let answered = self.answered();
        let Stand::Ejected(ejection) = &mut self.stand else { return None };
        ejection.saw_down |= input.down;
        let over = now >= ejection.until;
        let whole = ejection.evidence.is_whole();
        let answers = whole && answered >= ejection.answered + FAILURES;
        let restored = match input.confirmed {
            _ if answers => Restored::Answers,
            Some(true) if over || ejection.saw_down => Restored::Probed,
            None if over => Restored::Time,
            Some(_) | None => return None,
        };
        self.stand = Stand::Fit;
        self.returned.0 = now;
        self.forget(now);
        Some(News::Restored(restored))
    }

    /// What happened until now is not held against it.
    pub(super) fn forget(&mut self, now: Duration) {
        if let Seen::Some(live) = &mut self.seen {
            live.window.restart(now);
        }
    }

    /// Notes that it fails and stays; news if that is so since now.
    pub(super) fn fail(
        &mut self,
        evidence: Evidence,
        stays: Stays,
        rules: Rules,
        now: Duration,
    ) -> Option<News> {
        let until = now + rules.eject_time;
        let answered = self.answered();
        if let Stand::Failing(failing) = &mut self.stand {
            (failing.stays, failing.until, failing.answered) = (stays, until, answered);
            return None;
        }
        let failing = Failing { evidence, stays, answered, until };
        self.stand = Stand::Failing(failing);
        Some(News::Failing(failing))
    }

    /// Ends failing, as nothing speaks against it now.
    pub(super) fn recover(&mut self, eligible: bool, now: Duration) -> Option<News> {
        let Stand::Failing(failing) = self.stand else { return None };
        // Of one that failed in part, answers say nothing.
        let whole = failing.evidence.is_whole();
        let answers = whole && self.answered() >= failing.answered + FAILURES;
        if eligible && !answers && now < failing.until {
            return None;
        }
        self.stand = Stand::Fit;
        self.forget(now);
        Some(News::Recovered)
    }
}

fn patience(p99_us: f64) -> Duration {
    let [least, most] = PATIENCE;
    Duration::from_secs_f64(p99_us * PATIENCE_FACTOR / 1e6).clamp(least, most)
}
