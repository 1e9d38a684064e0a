//! What is news. Pure: conditions and the time in, notices out.
//!
//! ```text
//!            has lasted for `hold`              is gone for CALM
//!  pending ────────────────────────▶ firing ───────────────────▶ over
//!     │            (told)               │ (told, if firing was)
//!     └── gone: never told              └── told again every REPEAT, if critical
//! ```
//!
//! An alert that has begun more than [`MOST_CHANGES`] times within [`FLAPPING`] is told once more, as one that
//! comes and goes, and then not until it has been quiet, or lasted, for so long.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use jiff::Timestamp;

use super::{Notice, Severity, State, condition::Condition, status::Firing};

/// What is gone for so long is over.
const CALM: Duration = Duration::from_secs(2);

/// What is critical and lasts is told again.
const REPEAT: Duration = Duration::from_hours(4);

/// The time in which an alert that begins too often is said to flap.
const FLAPPING: Duration = Duration::from_mins(10);

/// So often it may begin in that time.
const MOST_CHANGES: usize = 3;

/// Things that have happened and were told lately; the same is not told again.
const MOST_EVENTS: usize = 200;

type Key = (String, String);

#[derive(Clone, Debug)]
struct Entry {
    condition: Condition,
    since: Duration,
    since_wall: Timestamp,
    seen: Duration,
    /// When it was last told.
    told: Option<Duration>,
    /// It has lasted for long enough.
    firing: bool,
    /// It is told no more: it comes and goes.
    muted: bool,
}

/// Keeps what has been told.
#[derive(Clone, Debug)]
pub struct Desk {
    cluster: String,
    node: String,
    entries: BTreeMap<Key, Entry>,
    /// When alerts began that were told.
    begun: BTreeMap<Key, VecDeque<Duration>>,
    events: VecDeque<(Duration, String, String)>,
}

impl Desk {
    /// An empty one.
    #[must_use]
    pub fn new(cluster: &str, node: &str) -> Self {
        Self {
            cluster: cluster.into(),
            node: node.into(),
            entries: BTreeMap::new(),
            begun: BTreeMap::new(),
            events: VecDeque::new(),
        }
    }

    /// Takes all that is wrong now, and says what of it is to be told. With `speaks` unset, another node
    /// tells it: nothing is told now, and what still lasts is told when this one begins to.
    pub fn look(
        &mut self,
        conditions: Vec<Condition>,
        speaks: bool,
        now: Duration,
        wall: Timestamp,
    ) -> Vec<Notice> {
        for condition in conditions {
            let key = (condition.alert.to_owned(), condition.subject.clone());
            let entry = self.entries.entry(key).or_insert_with(|| Entry {
                condition: condition.clone(),
                since: now,
                since_wall: wall,
                seen: now,
                told: None,
                firing: false,
                muted: false,
            });
            entry.seen = now;
            entry.condition = condition;
        }
        self.begun.retain(|_, times| {
            times.retain(|&time| now < time + FLAPPING);
            !times.is_empty()
        });
        let mut notices = Vec::new();
        let Self { cluster, node, entries, begun, .. } = self;
        entries.retain(|key, entry| {
            if now >= entry.seen + CALM || (!entry.firing && now > entry.seen) {
                if entry.told.is_some() && !entry.muted && speaks {
                    notices.push(resolved(entry, cluster, node, now, wall));
                }
                return false;
            }
            entry.firing |= now >= entry.since + entry.condition.hold;
            if !entry.firing || !speaks {
                return true;
            }
            if entry.muted {
                if now < entry.since + FLAPPING {
                    return true;
                }
                // It has come to stay.
                (entry.muted, entry.told) = (false, None);
            }
            let Some(told) = entry.told else {
                entry.told = Some(now);
                let times = begun.entry(key.clone()).or_default();
                times.push_back(now);
                entry.muted = times.len() > MOST_CHANGES;
                if times.len() <= MOST_CHANGES + 1 {
                    let mut notice = firing(entry, cluster, node);
                    if entry.muted {
                        notice.text.push_str(FLAPS);
                    }
                    notices.push(notice);
                }
                return true;
            };
            if entry.condition.severity == Severity::Critical && now >= told + REPEAT {
                entry.told = Some(now);
                notices.push(firing(entry, cluster, node));
            }
            true
        });
        notices
    }

    /// Something has happened that does not end. None if the same was told lately.
    pub fn event(
        &mut self,
        condition: &Condition,
        speaks: bool,
        now: Duration,
        wall: Timestamp,
    ) -> Option<Notice> {
        self.events.retain(|(time, ..)| now < *time + FLAPPING);
        let same = |(_, alert, text): &(Duration, String, String)| {
            *alert == condition.alert && *text == condition.text
        };
        if !speaks || self.events.iter().any(same) {
            return None;
        }
        if self.events.len() == MOST_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back((now, condition.alert.into(), condition.text.clone()));
        let state = State::Event;
        Some(notice(condition, state, &self.cluster, &self.node, wall, None))
    }

    /// What lasts now, whether it was told or not.
    pub fn lasting(&self) -> Vec<Firing> {
        let firing = self.entries.values().filter(|entry| entry.firing);
        let firing = firing.map(|entry| Firing {
            alert: entry.condition.alert.into(),
            subject: entry.condition.subject.clone(),
            severity: entry.condition.severity,
            text: entry.condition.text.clone(),
            since: entry.since_wall,
            told: entry.told.is_some() && !entry.muted,
        });
        firing.collect()
    }
}

/// Said of an alert that begins too often.
const FLAPS: &str =
    ". It comes and goes: it is not told again until it has lasted, or been quiet, for 10 minutes";

fn firing(entry: &Entry, cluster: &str, node: &str) -> Notice {
    notice(&entry.condition, State::Firing, cluster, node, entry.since_wall, None)
}

fn resolved(entry: &Entry, cluster: &str, node: &str, now: Duration, wall: Timestamp) -> Notice {
    let until = entry.seen;
    let ago = now.saturating_sub(until);
    let wall = jiff::SignedDuration::try_from(ago).map_or(wall, |ago| wall - ago);
    notice(&entry.condition, State::Resolved, cluster, node, entry.since_wall, Some(wall))
}

fn notice(
    condition: &Condition,
    state: State,
    cluster: &str,
    node: &str,
    since: Timestamp,
    until: Option<Timestamp>,
) -> Notice {
    Notice {
        alert: condition.alert.into(),
        subject: condition.subject.clone(),
        severity: condition.severity,
        state,
        text: condition.text.clone(),
        since,
        until,
        cluster: cluster.into(),
        node: node.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(hold: u64) -> Condition {
        Condition {
            alert: "primary_down",
            subject: "appdb/pg-01".into(),
            severity: Severity::Critical,
            text: "it is DOWN".into(),
            hold: Duration::from_secs(hold),
        }
    }

    struct Play {
        desk: Desk,
        told: Vec<(u64, State, String)>,
    }

    impl Play {
        fn new() -> Self {
            Self { desk: Desk::new("edge", "lb-01"), told: Vec::new() }
        }

        /// A second in which this is wrong, or nothing.
        fn second(&mut self, second: u64, wrong: Option<Condition>, speaks: bool) {
            let wall = Timestamp::from_second(1_700_000_000 + second as i64).unwrap();
            let now = Duration::from_secs(second);
            let notices = self.desk.look(wrong.into_iter().collect(), speaks, now, wall);
            self.told.extend(notices.into_iter().map(|it| (second, it.state, it.text)));
        }

        fn states(&self) -> Vec<(u64, State)> {
            self.told.iter().map(|(second, state, _)| (*second, *state)).collect()
        }
    }

    #[test]
    fn it_is_told_when_it_has_lasted_and_when_it_is_over() {
        let mut play = Play::new();
        for second in 0..60 {
            play.second(second, (10..50).contains(&second).then(|| down(3)), true);
        }
        assert_eq!(play.states(), [(13, State::Firing), (51, State::Resolved)]);
    }

    #[test]
    fn what_passes_is_not_told() {
        let mut play = Play::new();
        for second in 0..60 {
            play.second(second, (second % 3 != 0).then(|| down(3)), true);
        }
        assert_eq!(play.states(), []);
    }

    #[test]
    fn a_short_gap_ends_nothing() {
        let mut play = Play::new();
        for second in 0..60 {
            play.second(second, (second != 30).then(|| down(3)), true);
        }
        assert_eq!(play.states(), [(3, State::Firing)]);
    }

    #[test]
    fn what_is_critical_and_lasts_is_told_again() {
        let mut play = Play::new();
        for second in 0..6 * 3600 {
            play.second(second, Some(down(0)), true);
        }
        assert_eq!(play.states(), [(0, State::Firing), (4 * 3600, State::Firing)]);
        let mut play = Play::new();
        for second in 0..6 * 3600 {
            play.second(second, Some(Condition { severity: Severity::Warning, ..down(0) }), true);
        }
        assert_eq!(play.states(), [(0, State::Firing)]);
    }

    #[test]
    fn what_comes_and_goes_is_told_once_more_and_then_not() {
        let mut play = Play::new();
        for second in 0..600 {
            play.second(second, (second % 10 < 5).then(|| down(0)), true);
        }
        let firing: Vec<_> = play.told.iter().filter(|it| it.1 == State::Firing).collect();
        assert_eq!(firing.len(), 4, "{firing:?}");
        assert!(firing[3].2.ends_with(FLAPS));
        assert_eq!(play.told.len(), 4 + 3, "the last one's end is not told");
        // It stays: that is news.
        for second in 600..1400 {
            play.second(second, Some(down(0)), true);
        }
        assert_eq!(play.told.len(), 8, "{:?}", play.told);
        assert!(!play.told[7].2.ends_with(FLAPS));
    }

    #[test]
    fn a_node_that_begins_to_speak_tells_what_lasts() {
        let mut play = Play::new();
        for second in 0..30 {
            play.second(second, (second < 20).then(|| down(2)), second >= 10);
        }
        assert_eq!(play.states(), [(10, State::Firing), (21, State::Resolved)]);
        let mut play = Play::new();
        for second in 0..30 {
            play.second(second, (second < 20).then(|| down(2)), second >= 25);
        }
        assert_eq!(play.states(), [], "it was over before");
    }

    #[test]
    fn the_same_event_is_told_once() {
        let mut desk = Desk::new("edge", "lb-01");
        let wall = Timestamp::from_second(0).unwrap();
        let mut told = |second, text: &str| {
            let condition = Condition { text: text.into(), ..down(0) };
            desk.event(&condition, true, Duration::from_secs(second), wall).is_some()
        };
        assert!(told(0, "a"));
        assert!(!told(1, "a"));
        assert!(told(2, "b"));
        assert!(told(700, "a"));
    }
}
