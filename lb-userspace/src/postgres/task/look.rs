//! What the servers say is taken note of.

use std::sync::Arc;

use super::Task;
use crate::{
    events::{Kind, Note},
    postgres::{
        failover::Event,
        monitor::{Detail, Found},
        sample::Role,
    },
};

impl Task {
    pub(super) async fn see(&mut self, found: Found) {
        let Found { server, asked, sample, detail, trouble } = found;
        let record = self.machine.record();
        let primary = record.is_some_and(|record| record.primary == server);
        if let Ok(sample) = &sample
            && primary == (sample.role == Role::Primary)
        {
            self.lags.see(&server, sample, primary, self.config.max_lag, asked);
        }
        if let Some(detail) = detail {
            self.note_room(&server, &detail);
            self.details.insert(server.clone(), detail);
        }
        match trouble {
            Some(trouble) => drop(self.troubles.insert(server.clone(), trouble)),
            None => drop(self.troubles.remove(&server)),
        }
        let known = self.machine.servers().get(&server);
        let before = known.map(|known| known.failing().map(|(_, it)| it.reason.clone()));
        let after = sample.as_ref().err().map(|failure| failure.reason.clone());
        let failed = matches!(before, Some(Some(_)));
        self.watch_for_losses(&server, after.is_some(), failed);
        if primary && failed != after.is_some() {
            self.prepare(&server, after.is_some());
        }
        if before.as_ref() != Some(&after) {
            let note = match &after {
                Some(why) if before != Some(None) || !why.is_empty() => Some(
                    Note::new(Kind::Database, format!("{server} does not answer")).because(why),
                ),
                None if before.is_some() => {
                    Some(Note::new(Kind::Database, format!("{server} answers again")))
                }
                _ => None,
            };
            if let Some(note) = note {
                self.note(note.backend(&server));
            }
        }
        self.take(Event::Seen { server, asked, found: sample }).await;
    }

    /// The primary begins to fail, or answers again: what a promotion begins with stands ready, or is forgotten.
    pub(super) fn prepare(&self, primary: &str, fails: bool) {
        for link in self.links.values().filter(|link| link.server != primary) {
            if fails {
                let link = Arc::clone(link);
                tokio::spawn(async move { link.prepare().await });
            } else {
                link.forget();
            }
        }
    }

    /// A server can write no longer, or again.
    pub(super) fn note_room(&self, server: &str, detail: &Detail) {
        let before = self.details.get(server).and_then(|it| it.cannot_write.as_ref());
        let role = self.role_of(server);
        let note = match (before, &detail.cannot_write) {
            (None, Some(why)) => {
                Note::new(Kind::Fault, format!("{role}{server} cannot write")).because(why)
            }
            (Some(_), None) => {
                Note::new(Kind::Recovered, format!("{role}{server} can write again"))
            }
            _ => return,
        };
        self.note(note.backend(server));
    }
}
