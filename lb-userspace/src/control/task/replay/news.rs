//! That connections to a backend are tried at others, told when it begins and when it is over.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    time::Duration,
};

use lb_common::stats::{BackendSignals, ServiceStats};

use crate::events::{Kind, Note};

/// It is over when nothing of it has been seen for so long.
const OVER: Duration = Duration::from_secs(10);

/// Refused, unreachable, silent.
type Failures = [u64; 3];

/// What goes on.
#[derive(Debug, Default)]
pub(in crate::control::task) struct ReplayNews {
    failures: HashMap<u32, Failures>,
    replayed: BTreeMap<u32, u64>,
    open: BTreeMap<u32, Episode>,
}

#[derive(Debug)]
struct Episode {
    service: String,
    backend: String,
    begun: Duration,
    last: Duration,
    failures: Failures,
}

impl ReplayNews {
    /// Takes the counters of a second or so, and answers with what is worth telling. `index_of` says the
    /// index of a backend's service, `names` what the service and the backend are called.
    pub(in crate::control::task) fn take(
        &mut self,
        signals: &[(u32, BackendSignals)],
        services: &[(u32, ServiceStats)],
        index_of: &dyn Fn(u32) -> Option<u32>,
        names: &dyn Fn(u32) -> Option<(String, String)>,
        now: Duration,
    ) -> Vec<Note> {
        let replayed: BTreeMap<u32, u64> =
            services.iter().map(|(index, stats)| (*index, stats.replayed)).collect();
        let has_replayed = |index: u32| {
            let before = self.replayed.get(&index);
            before.zip(replayed.get(&index)).is_some_and(|(before, now)| now > before)
        };
        let mut notes = Vec::new();
        let mut failures = HashMap::with_capacity(signals.len());
        for (id, signals) in signals {
            let counted = [signals.refused, signals.unreachable, signals.unanswered];
            failures.insert(*id, counted);
            let Some(before) = self.failures.get(id) else { continue };
            let new = std::array::from_fn(|kind| counted[kind].saturating_sub(before[kind]));
            if new == [0; 3] || !index_of(*id).is_some_and(has_replayed) {
                continue;
            }
            if let Some(episode) = self.open.get_mut(id) {
                episode.last = now;
                for (sum, new) in episode.failures.iter_mut().zip(new) {
                    *sum += new;
                }
                continue;
            }
            let Some((service, backend)) = names(*id) else { continue };
            let episode = Episode { service, backend, begun: now, last: now, failures: new };
            notes.push(episode.note("are tried at other backends", told(new)));
            self.open.insert(*id, episode);
        }
        self.failures = failures;
        self.replayed = replayed;
        self.open.retain(|_, episode| {
            let over = now.saturating_sub(episode.last) >= OVER;
            if over {
                let seconds = (episode.last.saturating_sub(episode.begun)).as_secs() + 1;
                let cause = format!("{} in {seconds} s", told(episode.failures));
                notes.push(episode.note("are no longer tried at other backends", cause));
            }
            !over
        });
        notes
    }
}

impl Episode {
    fn note(&self, what: &str, cause: String) -> Note {
        let note = Note::new(Kind::Replay, format!("connections to {} {what}", self.backend));
        note.service(&self.service).backend(&self.backend).because(cause)
    }
}

/// `3 refused, 1 unreachable, 2 without an answer`.
fn told(failures: Failures) -> String {
    let mut text = String::new();
    for (count, word) in failures.into_iter().zip(["refused", "unreachable", "without an answer"]) {
        if count > 0 {
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a `String` cannot fail.
            let _ = write!(text, "{comma}{count} {word}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(
        news: &mut ReplayNews,
        signals: &[(u32, BackendSignals)],
        services: &[(u32, ServiceStats)],
        now: Duration,
    ) -> Vec<Note> {
        let names = |id: u32| Some(("web".to_owned(), format!("app-{:02}", id - 6)));
        news.take(signals, services, &|_| Some(0), &names, now)
    }

    fn signals(refused: u64, unanswered: u64) -> Vec<(u32, BackendSignals)> {
        vec![
            (7, BackendSignals { refused, unanswered, ..BackendSignals::ZERO }),
            (8, BackendSignals::ZERO),
        ]
    }

    fn services(replayed: u64) -> Vec<(u32, ServiceStats)> {
        vec![(0, ServiceStats { replayed, ..ServiceStats::ZERO })]
    }

    #[test]
    fn it_is_told_when_it_begins_and_when_it_is_over() {
        let mut news = ReplayNews::default();
        let mut at = |second, refused, unanswered, replayed| {
            let now = Duration::from_secs(second);
            take(&mut news, &signals(refused, unanswered), &services(replayed), now)
        };
        assert_eq!(at(0, 5, 0, 5), [], "what was before is no news");
        assert_eq!(at(1, 5, 0, 5), []);
        assert_eq!(at(2, 7, 0, 5), [], "a refusal that went to the client");
        let begun = at(3, 19, 1, 18);
        assert_eq!(begun.len(), 1);
        assert_eq!(begun[0].message, "connections to app-01 are tried at other backends");
        assert_eq!(begun[0].cause.as_deref(), Some("12 refused, 1 without an answer"));
        assert_eq!(begun[0].service.as_deref(), Some("web"));
        assert_eq!(begun[0].backend.as_deref(), Some("app-01"));
        assert_eq!(at(4, 30, 1, 29), [], "it goes on");
        assert_eq!(at(13, 30, 1, 29), []);
        let over = at(14, 30, 1, 29);
        assert_eq!(over[0].message, "connections to app-01 are no longer tried at other backends");
        assert_eq!(over[0].cause.as_deref(), Some("23 refused, 1 without an answer in 2 s"));
        assert_eq!(at(15, 30, 1, 29), []);
        assert_eq!(at(16, 31, 1, 30).len(), 1, "and again");
    }

    #[test]
    fn counters_that_begin_anew_are_no_failures() {
        let mut news = ReplayNews::default();
        let now = Duration::from_secs;
        take(&mut news, &signals(50, 0), &services(5), now(0));
        assert_eq!(take(&mut news, &signals(0, 0), &services(9), now(1)), []);
    }
}
