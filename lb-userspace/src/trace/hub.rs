//! The task that owns the kernel's side of all traces.
//!
//! It begins a trace when it is asked to, takes the records while any runs, and ends a trace when its
//! reader has gone. When the task is cancelled the second variant stays in force: slower, but right;
//! the next daemon puts the plain program in force when it starts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use lb_common::trace::{MAX_TRACES, TraceFilter, TraceRecord};
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};

use crate::control::kernel::Kernel;

/// Time between two looks at the records: the ring buffer holds those of a hundred thousand packets a
/// second for much longer.
const LOOK: Duration = Duration::from_millis(20);

/// Records that wait for a slow reader before the rest is lost.
const QUEUED_RECORDS: usize = 16_384;

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// So many run already.
    #[error("{MAX_TRACES} traces run already, and there is no room for more: end one")]
    Full,
    /// The kernel refused.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// Begins traces; cheap to copy.
#[derive(Clone, Debug)]
pub struct Hub(mpsc::Sender<Command>);

/// A trace that runs. It ends when this is dropped.
#[derive(Debug)]
pub struct Trace {
    records: mpsc::Receiver<TraceRecord>,
    lost: Arc<AtomicU64>,
}

impl Trace {
    /// The next record.
    pub async fn next(&mut self) -> Option<TraceRecord> {
        self.records.recv().await
    }

    /// Records lost so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
enum Command {
    Begin(TraceFilter, oneshot::Sender<Result<Trace, BeginError>>),
    Stop(oneshot::Sender<()>),
}

impl Hub {
    /// Starts the task.
    pub fn start(kernel: Arc<dyn Kernel>) -> Self {
        let (sender, commands) = mpsc::channel(8);
        let task = Task { kernel, running: Default::default() };
        tokio::spawn(task.run(commands));
        Self(sender)
    }

    /// Begins a trace. When this returns, the kernel records what `filter` wants.
    pub async fn begin(&self, filter: TraceFilter) -> Result<Trace, BeginError> {
        let (answer, begun) = oneshot::channel();
        let sent = self.0.send(Command::Begin(filter, answer)).await;
        sent.ok().context("ask the task of the traces: it has ended")?;
        begun.await.context("ask the task of the traces: it has ended")?
    }

    /// Ends all traces, and the task.
    pub async fn stop(&self) {
        let (answer, stopped) = oneshot::channel();
        // If the task has ended already, that is as good.
        if self.0.send(Command::Stop(answer)).await.is_ok() {
            let _ = stopped.await;
        }
    }
}

/// One of the traces.
#[derive(Debug)]
struct Running {
    records: mpsc::Sender<TraceRecord>,
    lost: Arc<AtomicU64>,
    /// Records that its reader was too slow for.
    dropped: u64,
}

#[derive(Debug)]
struct Task {
    kernel: Arc<dyn Kernel>,
    running: [Option<Running>; MAX_TRACES as usize],
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let busy = self.running.iter().any(Option::is_some);
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Begin(filter, answer)) => {
                        // If who asked has gone, the trace is dropped here, and so ends.
                        let _ = answer.send(self.begin(filter).await);
                    }
                    Some(Command::Stop(stopped)) => {
                        self.end_all().await;
                        let _ = stopped.send(());
                        return;
                    }
                    None => return self.end_all().await,
                },
                _ = look.tick(), if busy => {
                    self.deliver().await;
                    self.end_unread().await;
                }
            }
        }
    }

    async fn begin(&mut self, filter: TraceFilter) -> Result<Trace, BeginError> {
        let index = self.running.iter().position(Option::is_none).ok_or(BeginError::Full)?;
        if self.running.iter().any(Option::is_some) {
            // Records of an earlier trace of this index are not for this one.
            self.deliver().await;
        }
        if let Err(error) = self.set(index, Some(filter)).await {
            // What has been done of it is undone; if that fails too, the first error says why.
            let _ = self.set(index, None).await;
            return Err(error.into());
        }
        let (sender, records) = mpsc::channel(QUEUED_RECORDS);
        let lost = Arc::new(AtomicU64::new(0));
        self.running[index] =
            Some(Running { records: sender, lost: Arc::clone(&lost), dropped: 0 });
        Ok(Trace { records, lost })
    }

    /// Takes the records and hands them on.
    async fn deliver(&mut self) {
        let kernel = Arc::clone(&self.kernel);
        let taken = tokio::task::spawn_blocking(move || kernel.take_traces()).await;
        let traced = match taken.map_err(anyhow::Error::from).flatten() {
            Ok(traced) => traced,
            Err(error) => {
                tracing::warn!(%error, "take the records of traces");
                return;
            }
        };
        for record in &traced.records {
            for (index, running) in self.running.iter_mut().enumerate() {
                if record.wanted >> index & 1 == 0 {
                    continue;
                }
                if let Some(running) = running
                    && running.records.try_send(*record).is_err()
                {
                    running.dropped += 1;
                }
            }
        }
        for (running, lost) in self.running.iter().zip(traced.lost) {
            if let Some(running) = running {
                running.lost.store(lost + running.dropped, Ordering::Relaxed);
            }
        }
    }

    async fn end_unread(&mut self) {
        for index in 0..self.running.len() {
            if self.running[index].as_ref().is_some_and(|it| it.records.is_closed()) {
                self.end(index).await;
            }
        }
    }

    async fn end_all(&mut self) {
        for index in 0..self.running.len() {
            if self.running[index].is_some() {
                self.end(index).await;
            }
        }
    }

    async fn end(&mut self, index: usize) {
        match self.set(index, None).await {
            Ok(()) => self.running[index] = None,
            // It stays, and so is tried again with the next look.
            Err(error) => tracing::warn!(error = format!("{error:#}"), "end a trace"),
        }
    }

    async fn set(&self, index: usize, filter: Option<TraceFilter>) -> anyhow::Result<()> {
        let kernel = Arc::clone(&self.kernel);
        let set = move || kernel.set_trace(index as u32, filter.as_ref());
        tokio::task::spawn_blocking(set).await?
    }
}
