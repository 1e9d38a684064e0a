//! What the machine wants is done, or begun.

use std::sync::Arc;

use super::Task;
use crate::{
    clock,
    control::{reset::DEFAULT_RATE, task::ResetError},
    events::{Kind, Note},
    postgres::{
        etcd,
        failover::{Action, Event},
        monitor::Link,
        peers::Word,
        record::Record,
        store::{self, Kept},
        work,
    },
};

impl Task {
    /// Does what the machine wants, or begins it.
    pub(super) async fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Commit(record) => return Some(self.keep(*record).await),
            Action::Propose { record, base } => self.propose(record, base),
            Action::Read => self.read(),
            Action::Lease(until) => {
                let servers: Vec<_> = self.config.servers.iter().map(|it| it.address).collect();
                if let Err(error) = self.gates.extend(&servers, until) {
                    // No packet passes from its end on, which is safe.
                    tracing::error!(%error, database = self.config.name, "extend the lease");
                }
            }
            Action::Gate(gate) => self.gate = Some(gate.number),
            Action::Tell { node, message } => {
                let database = self.config.name.clone();
                self.setup.channel.tell(Word { node, database, message });
            }
            Action::Revoke(server) => self.begin(&server.clone(), |link| async move {
                let found = work::revoke(&link).await;
                Some(Event::Revoked { server, found })
            }),
            Action::Follow { standby, primary } => self.follow(&standby, &primary),
            Action::Quiesce(server) => {
                let cut = self.cut(server.clone());
                self.begin(&server, |link| async move {
                    cut.await;
                    Some(Event::Quiesced(work::quiesce(&link).await))
                });
            }
            Action::SetSync { server, names, need } => {
                self.begin(&server.clone(), move |link| async move {
                    let result = work::set_sync(&link, &names, need).await;
                    let result = result.map_err(|failure| failure.reason);
                    Some(Event::SyncSet { server, names, result })
                });
            }
            Action::CatchUp { server, end } => self.begin(&server, move |link| async move {
                Some(Event::CaughtUp(work::catch_up(&link, end).await))
            }),
            Action::Promote { server, mark, from } => {
                self.draft_losses(&server);
                self.begin(&server.clone(), move |link| async move {
                    let result = work::promote(&link, &mark, from).await;
                    Some(Event::Promoted { server, result })
                });
            }
            Action::CutOff(server) => {
                self.links.values().for_each(|link| link.forget());
                let (report, cut) = (self.report_losses(), self.cut(server));
                tokio::spawn(async move {
                    report.await;
                    cut.await;
                });
            }
            Action::Checkpoint(server) => {
                let (timeline, name) = (Arc::clone(&self.setup.timeline), self.config.name.clone());
                self.begin(&server.clone(), move |link| async move {
                    if let Err(failure) = work::checkpoint(&link).await {
                        let message = format!(
                            "{server} writes no checkpoint at once: the old primary \
                                               cannot be rewound before its next one"
                        );
                        let note = Note::new(Kind::Database, message).service(&name);
                        timeline.add(note.because(failure.reason));
                    }
                    None
                });
            }
            Action::Note(note) => self.setup.timeline.add(note),
            Action::Finish(result) => {
                // Who hears of the end, and looks, shall see it.
                self.show();
                if let Some(answer) = self.answer.take() {
                    // Who asked may have gone away meanwhile.
                    let _ = answer.send(result);
                }
            }
        }
        None
    }

    /// Keeps a record on the disk.
    pub(super) async fn keep(&mut self, record: Record) -> Event {
        let revision = record.revision;
        self.marked = self.machine.is_confirmed();
        match self.write(Kept::new(record, self.marked)).await {
            Ok(()) => Event::Committed(revision),
            Err(why) => Event::NotCommitted(revision, why),
        }
    }

    /// Puts a record into the store, and then keeps it.
    pub(super) fn propose(&self, record: Box<Record>, base: Option<Box<Record>>) {
        let Some(store) = self.store.clone() else { return };
        let (stored, ended) = (self.stored.clone(), self.ended.clone());
        tokio::spawn(async move {
            let revision = record.revision;
            // If the task has ended, the next one reads what the store has.
            match store.propose(&record, base.as_deref()).await {
                Ok(()) => drop(stored.send(record).await),
                Err(etcd::Error::Conflict(theirs)) => {
                    drop(ended.send(Event::Conflict(revision, theirs)).await);
                }
                Err(etcd::Error::Failed(why)) => {
                    drop(ended.send(Event::Unstored(revision, why)).await);
                }
            }
        });
    }

    /// Asks the store.
    pub(super) fn read(&self) {
        let Some(store) = self.store.clone() else { return };
        let ended = self.ended.clone();
        tokio::spawn(async move {
            let asked = clock::monotonic();
            let found = store.read().await;
            let found = found.map(|it| it.map(Box::new)).map_err(|error| error.to_string());
            // As above.
            let _ = ended.send(Event::Read { asked, found }).await;
        });
    }

    /// Runs work about a server; its event comes back when it is done.
    pub(super) fn begin<F>(&self, server: &str, work: impl FnOnce(Arc<Link>) -> F)
    where
        F: Future<Output = Option<Event>> + Send + 'static,
    {
        let Some(link) = self.links.get(server) else { return };
        let work = work(Arc::clone(link));
        let ended = self.ended.clone();
        tokio::spawn(async move {
            if let Some(event) = work.await {
                // If the task has ended, the next one begins anew.
                let _ = ended.send(event).await;
            }
        });
    }

    pub(super) fn follow(&self, standby: &str, primary: &str) {
        let Some(source) = self.links.get(primary).cloned() else { return };
        let (timeline, name) = (Arc::clone(&self.setup.timeline), self.config.name.clone());
        let message = format!("{standby} follows {primary}");
        self.begin(standby, move |link| async move {
            let note = match work::follow(&link, &source).await {
                Ok(()) => Note::new(Kind::Database, message),
                Err(failure) => {
                    let message = format!("{} does not follow {}", link.server, source.server);
                    Note::new(Kind::Fault, message).because(failure.reason)
                }
            };
            timeline.add(note.service(&name));
            None
        });
    }

    /// Ends the connections to a server, through all services of the database.
    pub(super) fn cut(&self, server: String) -> impl Future<Output = ()> + Send + 'static {
        let control = self.setup.control.clone();
        let services = self.services().map(|(_, service)| service).collect::<Vec<_>>();
        async move {
            for service in services {
                let ended = control.reset(&server, Some(&service), None, DEFAULT_RATE).await;
                if let Err(ResetError::Failed(error)) = ended {
                    tracing::warn!(%error, server, "end the connections");
                }
            }
        }
    }

    pub(super) async fn write(&self, kept: Kept) -> Result<(), String> {
        let (directory, name) = (self.setup.state_dir.clone(), self.config.name.clone());
        let saved =
            tokio::task::spawn_blocking(move || store::save(&directory, &name, &kept)).await;
        match saved {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(panicked) => Err(panicked.to_string()),
        }
    }
}
