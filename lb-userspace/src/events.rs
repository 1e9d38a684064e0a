//! The timeline: what happened, when and why.
//!
//! Pure code makes a [`Note`]; the [`Timeline`] stamps it, keeps the last ones in memory, appends it
//! to a file, and hands it to whoever follows. Nothing that goes wrong here stops the daemon.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::broadcast;

use crate::clock;

mod file;

use file::EventFile;

/// Events kept in memory.
const KEPT: usize = 2048;

/// Events that a slow follower may lag behind before it loses the oldest.
const FOLLOWER_LAG: usize = 512;

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The daemon has started.
    Started,
    /// The daemon ends; forwarding goes on.
    Stopped,
    /// A new configuration is in force.
    Reloaded,
    /// A new configuration was refused; nothing changed.
    ReloadRefused,
    /// The probes' opinion of a backend changed.
    Health,
    /// What the connections of clients say of a backend changed.
    Passive,
    /// A backend began or ceased to get new connections.
    Serving,
    /// A backend's connections may go on no longer.
    Drained,
    /// No backend of a service is fit, or one is again.
    Panic,
    /// The backups of a service took over, or rest again.
    Backup,
    /// The operator wished something.
    Wish,
    /// The program was put on an interface, or taken off it.
    Attach,
    /// A floating address was taken or given up.
    Address,
    /// Another node came or went, or its connections are here.
    Peer,
    /// This node became, or ceased to be, the one that has floating addresses.
    Role,
    /// Connections to a backend are tried at others, or no longer.
    Replay,
    /// What is known of a database changed.
    Database,
    /// The primary of a database changes, or did not.
    Failover,
    /// New connections of a service take another path.
    Path,
    /// The kernel program reports something.
    Kernel,
    /// An alert was told, or is not.
    Alert,
    /// Something went wrong, and a human may have to act.
    Fault,
    /// A fault is over.
    Recovered,
}

impl Kind {
    /// Whether a human may have to act.
    pub fn is_grave(self) -> bool {
        matches!(self, Self::Fault | Self::ReloadRefused)
    }
}

/// Something that happened, before it has a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What kind.
    pub kind: Kind,
    /// Service that it is about.
    pub service: Option<String>,
    /// Backend that it is about.
    pub backend: Option<String>,
    /// One sentence for a person.
    pub message: String,
    /// What it follows from: what a probe said, who asked.
    pub cause: Option<String>,
}

impl Note {
    /// A note about nothing in particular.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, service: None, backend: None, message: message.into(), cause: None }
    }

    /// It is about this service.
    #[must_use]
    pub fn service(mut self, name: &str) -> Self {
        self.service = Some(name.to_owned());
        self
    }

    /// It is about this backend.
    #[must_use]
    pub fn backend(mut self, name: &str) -> Self {
        self.backend = Some(name.to_owned());
        self
    }

    /// It follows from this.
    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Event {
    /// Number in this daemon's life, from 1.
    pub number: u64,
    /// Wall-clock time, RFC 3339.
    pub time: jiff::Timestamp,
    /// Monotonic time, milliseconds.
    pub monotonic_ms: u64,
    /// What kind.
    pub kind: Kind,
    /// Service that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Backend that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// One sentence for a person.
    pub message: String,
    /// What it follows from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// Where events go.
#[derive(Debug)]
pub struct Timeline {
    inner: Mutex<Inner>,
    followers: broadcast::Sender<Event>,
}

#[derive(Debug)]
struct Inner {
    next: u64,
    kept: VecDeque<Event>,
    file: Option<EventFile>,
}

impl Timeline {
    /// A timeline that writes to `events.jsonl` in `directory` as well as it can, or to memory only.
    pub fn new(directory: Option<&Path>) -> Self {
        let file = directory.map(|directory| EventFile::new(directory.join("events.jsonl")));
        Self {
            inner: Mutex::new(Inner { next: 1, kept: VecDeque::new(), file }),
            followers: broadcast::Sender::new(FOLLOWER_LAG),
        }
    }

    /// Puts a note on the timeline, and into the log.
    pub fn add(&self, note: Note) {
        log(&note);
        let mut inner = self.lock();
        let event = Event {
            number: inner.next,
            time: clock::wall(),
            monotonic_ms: clock::monotonic().as_millis() as u64,
            kind: note.kind,
            service: note.service,
            backend: note.backend,
            message: note.message,
            cause: note.cause,
        };
        inner.next += 1;
        if inner.kept.len() == KEPT {
            inner.kept.pop_front();
        }
        inner.kept.push_back(event.clone());
        if let Some(file) = &mut inner.file {
            file.append(&event);
        }
        // Sent under the lock, so that followers see events in order and `follow` misses none. It
        // fails only when nobody follows.
        let _ = self.followers.send(event);
    }

    /// What is in memory, the oldest first.
    pub fn recent(&self) -> Vec<Event> {
        self.lock().kept.iter().cloned().collect()
    }

    /// What is in memory, and what comes after it, without a gap between the two.
    pub fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let inner = self.lock();
        (inner.kept.iter().cloned().collect(), self.followers.subscribe())
    }

    /// What is wrong with the file, if events do not get there.
    pub fn trouble(&self) -> Option<String> {
        self.lock().file.as_ref().and_then(|file| file.trouble().map(str::to_owned))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic of another thread in here leaves whole events behind; they are still good.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log(note: &Note) {
    let service = note.service.as_deref();
    let backend = note.backend.as_deref();
    let cause = note.cause.as_deref();
    match note.kind {
        Kind::Fault => tracing::error!(service, backend, cause, "{}", note.message),
        Kind::ReloadRefused | Kind::Kernel | Kind::Panic | Kind::Alert => {
            tracing::warn!(service, backend, cause, "{}", note.message);
        }
        _ => tracing::info!(service, backend, cause, "{}", note.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_numbers_go_on() {
        let timeline = Timeline::new(None);
        for index in 0..KEPT + 10 {
            timeline.add(Note::new(Kind::Health, format!("event {index}")));
        }
        let recent = timeline.recent();
        assert_eq!(recent.len(), KEPT);
        assert_eq!(recent[0].number, 11);
        assert_eq!(recent.last().unwrap().message, format!("event {}", KEPT + 9));
    }

    #[test]
    fn a_follower_gets_the_past_and_then_the_rest() {
        let timeline = Timeline::new(None);
        timeline.add(Note::new(Kind::Started, "one"));
        let (past, mut rest) = timeline.follow();
        timeline.add(Note::new(Kind::Stopped, "two").service("web").because("a signal"));
        assert_eq!(past.len(), 1);
        let event = rest.try_recv().unwrap();
        assert_eq!((event.number, event.message.as_str()), (2, "two"));
        assert_eq!(event.service.as_deref(), Some("web"));
    }

    #[test]
    fn json_has_a_readable_time_and_no_empty_fields() {
        let timeline = Timeline::new(None);
        timeline.add(Note::new(Kind::ReloadRefused, "no"));
        let json = serde_json::to_value(&timeline.recent()[0]).unwrap();
        assert_eq!(json["kind"], "reload_refused");
        assert!(json["time"].as_str().unwrap().ends_with('Z'));
        assert!(json.get("service").is_none());
    }
}
