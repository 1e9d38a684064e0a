//! How others command the reconcile task.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Appointment, Change, Command, Refused, Reloaded, WishError, Wished, wish};
use crate::{
    control::{
        kernel::{Gates, Kernel},
        reset::{self, Resets},
        status::{NamedFlow, Status, View},
    },
    events::{Kind, Note, Timeline},
    peer::Others,
    trace::{
        Request,
        hub::{BeginError, Hub, Trace},
        show::{Names, Unknown},
    },
    vrrp::{Holder, router::Released},
};

/// Connections that are handed over together.
const FLOWS_IN_A_BATCH: usize = 256;

/// Batches that wait for a reader of connections. A slow one makes the reading wait, and nothing else.
const QUEUED_BATCHES: usize = 4;

/// Commands the task; cheap to copy.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    settled: watch::Receiver<bool>,
    kernel: Arc<dyn Kernel>,
    timeline: Arc<Timeline>,
    traces: Hub,
    others: Others,
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
        others: Others,
    ) -> Self {
        let traces = Hub::start(Arc::clone(&kernel));
        Self { commands, settled, kernel, timeline, traces, others }
    }

    /// The other nodes: how they stand, and what is asked of them.
    pub fn others(&self) -> &Others {
        &self.others
    }

    /// The leases of databases' servers.
    pub fn gates(&self) -> Arc<dyn Gates> {
        self.kernel.gates()
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

    /// The state of the node, as far as `view` shows it.
    pub async fn status(&self, view: View) -> anyhow::Result<Status> {
        let snapshot = self.ask(|answer| Command::Snapshot(view, answer)).await?;
        let kernel = Arc::clone(&self.kernel);
        tokio::task::spawn_blocking(move || snapshot.complete(&kernel)).await?
    }

    /// Up to `limit` connections, of one service if it is named: in batches, which are read from the
    /// kernel's tables no faster than they are taken.
    pub async fn flows(
        &self,
        service: Option<String>,
        limit: usize,
    ) -> Result<mpsc::Receiver<anyhow::Result<Vec<NamedFlow>>>, FlowsError> {
        let asked = service.clone();
        let names = self.ask(|answer| Command::FlowNames(service, answer)).await?;
        let names = names.map_err(|known| FlowsError::Unknown {
            name: asked.unwrap_or_default(),
            known: known.join(", "),
        })?;
        let kernel = Arc::clone(&self.kernel);
        let (sender, receiver) = mpsc::channel(QUEUED_BATCHES);
        tokio::task::spawn_blocking(move || {
            // What is sampled is little, and would not be seen behind all that is counted.
            let mut batch: Vec<_> = names.sampled().take(limit).collect();
            let mut left = limit - batch.len();
            let read = kernel.flows(&|backend| names.wants(backend), &mut |flow| {
                if left == 0 {
                    return ControlFlow::Break(());
                }
                left -= 1;
                batch.push(names.name(flow));
                let is_sent = batch.len() < FLOWS_IN_A_BATCH
                    || sender.blocking_send(Ok(std::mem::take(&mut batch))).is_ok();
                if is_sent && left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            // Who asked may have gone away: then nobody wants the rest.
            let _ = sender.blocking_send(Ok(batch));
            if let Err(error) = read {
                let _ = sender.blocking_send(Err(error));
            }
        });
        Ok(receiver)
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

    /// Puts what servers of a database are there for into force. It is an error if the kernel's tables do
    /// not say so yet; why.
    pub async fn appoint(
        &self,
        appointments: Vec<Appointment>,
    ) -> anyhow::Result<Result<(), String>> {
        self.ask(|answer| Command::Appoint(appointments, answer)).await
    }

    /// Lets new connections of a service wait until then on the monotonic clock, or no longer. It is an
    /// error if the kernel's tables do not say so yet; why.
    pub async fn park(
        &self,
        service: &str,
        until: Option<Duration>,
    ) -> anyhow::Result<Result<(), String>> {
        let service = service.to_owned();
        self.ask(|answer| Command::Park(service, until, answer)).await
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
        let (name, of) = (backend.to_owned(), service.map(str::to_owned));
        let backends = self.ask(|answer| Command::BackendIds(name, of, answer)).await?;
        let backends = backends.map_err(ResetError::Unknown)?;
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

    /// Hands the floating addresses to another node. Answers when one has them, or when it is clear that
    /// none takes them. `None`: this node shares them with nobody.
    pub async fn release(&self) -> anyhow::Result<Option<Vec<Released>>> {
        let released = self.ask(Command::Release).await?.transpose()?;
        if let Some(released) = &released {
            for Released { vrid, outcome, .. } in released {
                let message = format!("hand-over of vrid {vrid}: {outcome}");
                self.timeline.add(Note::new(Kind::Wish, message));
            }
        }
        Ok(released)
    }

    /// Ends the task. Forwarding goes on with the tables as they are. Gives what keeps addresses here that
    /// another node has, for connections of the proxy that go on: to be released when they have ended.
    pub async fn stop(&self) -> Option<Holder> {
        self.traces.stop().await;
        // If it has ended already, that is as good.
        self.ask(Command::Stop).await.ok().flatten()
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
