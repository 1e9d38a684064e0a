//! When the connections to the primary are looked at, and when the report of a promotion is made.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::JoinHandle, time::timeout};

use super::Task;
use crate::{
    clock,
    config::Access,
    events::{Kind, Note},
    postgres::{
        failover::Known,
        losses::{self, Connections, Draft, History, Report},
        record::Cause,
    },
};

/// The end of old connections waits so long for the report, which must have seen them.
const LIMIT: Duration = Duration::from_secs(2);

/// Time between two looks at the connections while all is well.
const PACE: Duration = Duration::from_secs(1);

/// After a look, none follows for so many times what it took.
const REST: u32 = 50;

/// What is gathered for the report of a promotion.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// The server whose connections these are.
    of: String,
    /// Looks while it answered.
    history: Arc<Mutex<History>>,
    /// When the next of these is due, and the one that is being taken.
    next: Duration,
    looking: Option<JoinHandle<()>>,
    /// Looks when it failed, and when it was replaced, and when the first of them began.
    looks: Vec<JoinHandle<Connections>>,
    looked: Duration,
    draft: Option<Draft>,
    /// The last report.
    pub(super) report: Arc<Mutex<Option<Report>>>,
}

impl Gathered {
    /// Nothing, but the report of an earlier promotion.
    pub(super) fn new(report: Option<Report>) -> Self {
        Self { report: Arc::new(Mutex::new(report)), ..Self::default() }
    }

    /// The last report, as `status` shows it.
    pub(super) fn shown(&self) -> Option<Report> {
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.as_ref().map(Report::shown)
    }
}

impl Task {
    /// Looks at the connections to the primary when it begins to fail, and forgets them when it answers
    /// again.
    pub(super) fn watch_for_losses(&mut self, server: &str, fails: bool, failed: bool) {
        let record = self.machine.record();
        if !record.is_some_and(|record| record.primary == server && record.run.is_none()) {
            return;
        }
        if fails && !failed {
            self.look_at_connections(server);
        } else if failed && !fails {
            self.gathered.looks.clear();
        }
    }

    /// Looks at the connections to a primary that is well, now and then.
    pub(super) fn watch_connections(&mut self) {
        let now = clock::monotonic();
        let busy = self.gathered.looking.as_ref().is_some_and(|it| !it.is_finished());
        if busy || now < self.gathered.next {
            return;
        }
        let record = self.machine.record().filter(|record| record.run.is_none());
        let Some(record) = record.cloned() else { return };
        match &self.gathered.draft {
            // The report comes first.
            Some(draft) if draft.epoch <= record.epoch => return,
            // It has come to nothing.
            Some(_) => self.gathered.draft = None,
            None => {}
        }
        let answers = self.machine.servers().get(&record.primary).is_some_and(Known::answers);
        if !answers || self.config.read_write.is_none() {
            return;
        }
        let server = record.primary;
        self.gathered.next = now + PACE;
        self.gather_of(&server);
        let (service, control) =
            (self.config.service(Access::ReadWrite), self.setup.control.clone());
        let history = Arc::clone(&self.gathered.history);
        self.gathered.looking = Some(tokio::spawn(async move {
            let look = Connections::look(&control, &service, &server, now).await;
            history.lock().unwrap_or_else(PoisonError::into_inner).add(now, look);
            // A large table is looked at less often: this keeps the next look away.
            let took = clock::monotonic().saturating_sub(now);
            tokio::time::sleep(took * REST).await;
        }));
    }

    /// What was gathered of another server is of no use.
    fn gather_of(&mut self, server: &str) {
        if self.gathered.of == server {
            return;
        }
        server.clone_into(&mut self.gathered.of);
        self.gathered.looks.clear();
        // A look that is still being taken goes into the old one.
        self.gathered.history = Arc::default();
    }

    fn look_at_connections(&mut self, server: &str) {
        if self.config.read_write.is_none() {
            return;
        }
        self.gather_of(server);
        let service = self.config.service(Access::ReadWrite);
        let (control, name) = (self.setup.control.clone(), server.to_owned());
        let now = clock::monotonic();
        if self.gathered.looks.is_empty() {
            self.gathered.looked = now;
        }
        self.gathered.looks.push(tokio::spawn(async move {
            Connections::look(&control, &service, &name, now).await
        }));
    }

    /// The candidate is told to become the primary: looks once more, and notes what is known.
    pub(super) fn draft_losses(&mut self, candidate: &str) {
        let Some(record) = self.machine.record().cloned() else { return };
        let Some(run) = record.run.filter(|run| run.cause != Cause::Switchover) else { return };
        self.look_at_connections(&record.primary);
        let servers = self.machine.servers();
        let received = servers.get(candidate).and_then(Known::sample).map(|it| it.received);
        let primary = servers.get(&record.primary);
        let sampled = primary.and_then(|known| Some((known.sampled()?, known.sample()?.received)));
        let since = received.and_then(|received| match sampled {
            Some((at, end)) if end <= received => Some(at),
            _ => self.lags.reached(received),
        });
        self.gathered.draft = Some(Draft {
            epoch: record.epoch + 1,
            from: record.primary,
            to: candidate.to_owned(),
            received,
            since,
            loss: run.loss,
        });
    }

    /// Makes the report, if there is one to be made. What ends the connections waits for it.
    pub(super) fn report_losses(&mut self) -> impl Future<Output = ()> + Send + 'static {
        let looks = std::mem::take(&mut self.gathered.looks);
        let looked = self.gathered.looked;
        let draft = self.gathered.draft.take();
        let history = Arc::clone(&self.gathered.history);
        let (timeline, report) = (self.setup.timeline.clone(), self.gathered.report.clone());
        let (directory, name) = (self.setup.state_dir.clone(), self.config.name.clone());
        async move {
            let Some(draft) = draft else { return };
            let mut seen = Connections::default();
            let gather = async {
                for look in looks {
                    seen.join(&look.await.unwrap_or_default());
                }
            };
            let whole = timeout(LIMIT, gather).await.is_ok();
            let history = history.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let made = draft.report(&history, (looked, &seen), clock::monotonic(), clock::wall());
            let database = name.clone();
            let copy = made.clone();
            let kept =
                tokio::task::spawn_blocking(move || losses::save(&directory, &database, copy));
            let (made, cause) = match kept.await {
                Ok(Ok(kept)) => {
                    let file = kept.file.display().to_string();
                    (kept, file)
                }
                Ok(Err(error)) => (made, format!("the list could not be kept: {error}")),
                Err(panicked) => (made, format!("the list could not be kept: {panicked}")),
            };
            let more = if whole { "" } else { "; not all connections could be looked at in time" };
            let note = Note::new(Kind::Failover, format!("{}{more}", made.describe()));
            timeline.add(note.service(&name).because(cause));
            *report.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        }
    }
}
