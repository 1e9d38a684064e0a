//! What is wrong now: told once when it begins, shown while it lasts, told again when it is over.

use std::{collections::BTreeMap, time::Duration};

use lb_common::{event::Event, reason::Reason};

use crate::events::{Kind, Note};

/// Things that went wrong and have not come right, by what they are about.
#[derive(Debug, Default)]
pub(super) struct Faults {
    open: BTreeMap<String, String>,
}

impl Faults {
    /// Records how `about` stands now: what is wrong, or nothing. Answers with a note if that is
    /// news.
    pub(super) fn set(&mut self, about: &str, wrong: Option<String>) -> Option<Note> {
        match wrong {
            None => {
                self.open.remove(about)?;
                Some(Note::new(Kind::Recovered, format!("{about}: it works again")))
            }
            Some(wrong) if self.open.get(about) == Some(&wrong) => None,
            Some(wrong) => {
                self.open.insert(about.to_owned(), wrong.clone());
                Some(Note::new(Kind::Fault, format!("{about}: {wrong}")))
            }
        }
    }

    /// Everything that is wrong, for `status`.
    pub(super) fn messages(&self) -> impl Iterator<Item = String> {
        self.open.iter().map(|(about, wrong)| format!("{about}: {wrong}"))
    }
}

/// A report of the kernel program that comes again within this time is the same one going on.
const GOES_ON: Duration = Duration::from_secs(10);

/// What goes on is told again after this time.
const REMINDER: Duration = Duration::from_mins(1);

/// What the kernel program reports, told without repeating it every second.
#[derive(Debug, Default)]
pub(super) struct KernelNews {
    seen: BTreeMap<(u32, u32, u32), Seen>,
}

#[derive(Debug)]
struct Seen {
    noted: Duration,
    last: Duration,
    message: String,
}

/// Names of a service and a backend, by index and identifier.
pub(super) type Names<'a> = &'a dyn Fn(u32, u32) -> (Option<String>, Option<String>);

impl KernelNews {
    /// Takes new records, and answers with what is worth telling.
    pub(super) fn take(&mut self, events: &[Event], names: Names<'_>, now: Duration) -> Vec<Note> {
        let mut notes = Vec::new();
        for event in events {
            let key = (event.reason, event.service, event.backend);
            let (service, backend) = names(event.service, event.backend);
            let message = message(event.reason, service.as_deref(), backend.as_deref());
            let known = self.seen.get_mut(&key);
            let stale = |seen: &Seen| now >= seen.last + GOES_ON || now >= seen.noted + REMINDER;
            if let Some(seen) = known.filter(|seen| !stale(seen)) {
                seen.last = now;
                continue;
            }
            self.seen.insert(key, Seen { noted: now, last: now, message: message.clone() });
            let note = Note { service, backend, ..Note::new(Kind::Kernel, message) };
            notes.push(note);
        }
        self.seen.retain(|_, seen| now < seen.last + REMINDER);
        notes
    }

    /// What goes on now, for `status`.
    pub(super) fn messages(&self, now: Duration) -> impl Iterator<Item = String> {
        let current = self.seen.values().filter(move |seen| now < seen.last + GOES_ON);
        current.map(|seen| seen.message.clone())
    }
}

fn message(reason: u32, service: Option<&str>, backend: Option<&str>) -> String {
    let service = service.unwrap_or("a removed service");
    let backend = backend.unwrap_or("a removed backend");
    match Reason::ALL.get(reason as usize) {
        Some(Reason::PortsExhausted) => format!(
            "ports towards {backend} ran out: new connections to it are dropped until others end"
        ),
        Some(Reason::TableFull) => "the flow tables are full: new connections are dropped; raise \
                                    max_flows in [dataplane] and restart"
            .to_owned(),
        Some(Reason::NoBackend) => format!("{service} refuses connections: no backend serves"),
        Some(Reason::NoNeighbour) => {
            format!(
                "packets to {backend} are dropped: the MAC address of its next hop is not known"
            )
        }
        Some(Reason::RateLimited) => {
            format!("a source begins more connections than source_rate of {service} lets it")
        }
        Some(Reason::BackendGone) => {
            format!("connections to {backend} are reset: it is gone")
        }
        Some(Reason::Inconsistent) => format!(
            "the kernel's tables contradict each other in {service}: a defect of ballast, please \
             report it"
        ),
        Some(other) => format!("packets of {service} are counted as {}", other.label()),
        None => {
            format!("the kernel program gives reason {reason}, which this ballast does not know")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_when_it_begins_and_when_it_ends() {
        let mut faults = Faults::default();
        assert_eq!(faults.set("apply", None), None);
        let note = faults.set("apply", Some("no memory".into())).unwrap();
        assert_eq!((note.kind, note.message.as_str()), (Kind::Fault, "apply: no memory"));
        assert_eq!(faults.set("apply", Some("no memory".into())), None);
        assert_eq!(faults.messages().collect::<Vec<_>>(), ["apply: no memory"]);
        assert_eq!(faults.set("apply", None).unwrap().kind, Kind::Recovered);
        assert_eq!(faults.messages().count(), 0);
    }

    fn names(service: u32, _: u32) -> (Option<String>, Option<String>) {
        (Some(format!("service-{service}")), Some("app-01".into()))
    }

    #[test]
    fn what_goes_on_is_told_once_a_minute() {
        let mut news = KernelNews::default();
        let reason = Reason::PortsExhausted as u32;
        let event = Event { reason, service: 3, ..Event::ZERO };
        let told: Vec<_> = (100..230)
            .filter(|&second| !news.take(&[event], &names, Duration::from_secs(second)).is_empty())
            .collect();
        assert_eq!(told, [100, 160, 220]);
        let messages: Vec<_> = news.messages(Duration::from_secs(230)).collect();
        assert!(messages[0].starts_with("ports towards app-01 ran out"));
        assert_eq!(news.messages(Duration::from_secs(260)).count(), 0);
        assert_eq!(news.take(&[event], &names, Duration::from_secs(260)).len(), 1);
    }

    #[test]
    fn every_reason_has_a_message() {
        for reason in 0..=Reason::COUNT {
            assert!(!message(reason, Some("web"), None).is_empty());
        }
    }
}
