//! How others command the reconcile task.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Change, Command, Refused, Reloaded, WishError, Wished, snapshot::Snapshot, wish};
use crate::{
    control::{
        kernel::Kernel,
        reset::{self, Resets},
        status::{NamedFlow, Status},
    },
    events::{Kind, Note, Timeline},
    trace::{
        Request,
        hub::{BeginError, Hub, Trace},
        show::{Names, Unknown},
    },
};

/// Commands the task; cheap to copy.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    settled: watch::Receiver<bool>,
    kernel: Arc<dyn Kernel>,
    timeline: Arc<Timeline>,
    traces: Hub,
}

/// Why there is no list of connections.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    /// No service has that name.
    #[error("no service is called {name}; there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The tables could not be read.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It names what is not there.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// It could not be begun.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// The names could not be read.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// Why no connections were ended.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// There is no such backend or service.
    #[error("{0}")]
    Unknown(String),
    /// The tables could not be read or written, or there is no packet socket.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl Handle {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        settled: watch::Receiver<bool>,
        kernel: Arc<dyn Kernel>,
        timeline: Arc<Timeline>,
    ) -> Self {
        let traces = Hub::start(Arc::clone(&kernel));
        Self { commands, settled, kernel, timeline, traces }
    }

    /// The timeline.
    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.timeline
    }

    /// Returns once all backends have been probed, or that has taken too long, and the floating
    /// addresses are there if this node holds them.
    pub async fn settled(&mut self) {
        // It fails if the task has ended: then there is nothing to wait for.
        let _ = self.settled.wait_for(|settled| *settled).await;
    }

    /// The state of the node.
    pub async fn status(&self) -> anyhow::Result<Status> {
        let snapshot = self.snapshot().await?;
        let kernel = Arc::clone(&self.kernel);
        tokio::task::spawn_blocking(move || snapshot.complete(&kernel)).await?
    }

    /// Up to `limit` connections, of one service if it is named.
    pub async fn flows(
        &self,
        service: Option<String>,
        limit: usize,
    ) -> Result<Vec<NamedFlow>, FlowsError> {
        let snapshot = self.snapshot().await?;
        if let Some(name) = &service {
            let known = snapshot.service_names();
            if !known.contains(name) {
                let (name, known) = (name.clone(), known.join(", "));
                return Err(FlowsError::Unknown { name, known });
            }
        }
        let kernel = Arc::clone(&self.kernel);
        let read =
            tokio::task::spawn_blocking(move || snapshot.flows(&kernel, service.as_deref(), limit));
        Ok(read.await.map_err(anyhow::Error::from)??)
    }

    /// Begins to record the packets that are asked for. Gives also the names for what they show.
    pub async fn trace(&self, request: &Request) -> Result<(Names, Trace), TraceError> {
        let names: Names = self.ask(Command::TraceNames).await?;
        let filter = names.filter(request)?;
        Ok((names, self.traces.begin(filter).await?))
    }

    /// Reads the configuration anew, and puts it into force if it is right.
    pub async fn reload(&self) -> anyhow::Result<Result<Reloaded, Refused>> {
        self.ask(Command::Reload).await
    }

    /// Does what the operator wants of a backend: in one service, or in all that have it.
    pub async fn wish(
        &self,
        backend: String,
        service: Option<String>,
        change: Change,
    ) -> anyhow::Result<Result<Vec<Wished>, WishError>> {
        let request = wish::Request { backend, service, change };
        self.ask(|answer| Command::Wish(request, answer)).await
    }

    /// Ends the open connections of a backend, in one service or in all that have it: of one client if
    /// it is named, `rate` a second. See [`reset::end`].
    ///
    /// Returns when all have been ended. If nobody waits so long, they are ended all the same.
    pub async fn reset(
        &self,
        backend: &str,
        service: Option<&str>,
        client: Option<reset::Client>,
        rate: u32,
    ) -> Result<Resets, ResetError> {
        let backends = self.snapshot().await?.ids(backend, service).map_err(ResetError::Unknown)?;
        let kernel = Arc::clone(&self.kernel);
        let work = tokio::spawn(reset::end(kernel, reset::Scope { backends, client, rate }));
        let resets = work.await.map_err(anyhow::Error::from)??;
        let message = format!(
            "{} connections to {backend} are ended: {} clients and the backend's side of {} are told",
            resets.ended, resets.to_clients, resets.to_backends,
        );
        let mut note = Note::new(Kind::Wish, message).backend(backend);
        note.service = service.map(str::to_owned);
        self.timeline.add(note);
        Ok(resets)
    }

    /// Ends the task. Forwarding goes on with the tables as they are.
    pub async fn stop(&self) {
        self.traces.stop().await;
        // If it has ended already, that is as good.
        let _ = self.ask(Command::Stop).await;
    }

    async fn snapshot(&self) -> anyhow::Result<Snapshot> {
        self.ask(Command::Snapshot).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> anyhow::Result<T> {
        let (sender, answer) = oneshot::channel();
        let sent = self.commands.send(command(sender)).await;
        sent.ok().context("ask the reconcile task: it has ended")?;
        answer.await.context("ask the reconcile task: it has ended")
    }
}
