//! How others ask the task of a database.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};

use crate::{
    clock,
    postgres::{
        failover::{Command, Message, Plan},
        status::Database,
    },
};

/// A fence that is not in force after so long is told to be late, and how often that is looked at.
const IN_FORCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// What others ask of the task.
#[derive(Debug)]
pub(super) enum Ask {
    Command(Command, oneshot::Sender<Result<String, String>>),
    Plan(Option<String>, oneshot::Sender<Plan>),
    Try(Command, oneshot::Sender<Result<(), String>>),
    Hear(String, Message),
    InForce(oneshot::Sender<Result<(), String>>),
    Stop(oneshot::Sender<()>),
}

/// Commands the task; cheap to copy.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) asks: mpsc::Sender<Ask>,
    pub(super) status: watch::Receiver<Database>,
}

impl Handle {
    /// How the database stands.
    pub fn status(&self) -> Database {
        self.status.borrow().clone()
    }

    /// What a promotion would do now.
    pub async fn plan(&self, server: Option<String>) -> Result<Plan, String> {
        self.ask(|answer| Ask::Plan(server, answer)).await
    }

    /// Whether a command would be begun now, or why not. Nothing is done.
    pub async fn would(&self, command: Command) -> Result<(), String> {
        self.ask(|answer| Ask::Try(command, answer)).await?
    }

    /// Does what the operator wants, and answers when it is done.
    pub async fn command(&self, command: Command) -> Result<String, String> {
        let fences = matches!(command, Command::Fence(_));
        let done = self.ask(|answer| Ask::Command(command, answer)).await??;
        if fences {
            let late = |why| format!("it is decided, and not in force yet: {why}");
            self.wait_in_force().await.map_err(late)?;
        }
        Ok(done)
    }

    /// Waits until the kernel's tables say what was decided. Those of a daemon that has just started are its
    /// predecessor's for a moment.
    async fn wait_in_force(&self) -> Result<(), String> {
        let until = clock::monotonic() + IN_FORCE;
        loop {
            match self.ask(Ask::InForce).await? {
                Err(why) if clock::monotonic() >= until => return Err(why),
                Err(_) => sleep(LOOK).await,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Another balancer says something.
    pub async fn hear(&self, node: String, message: Message) {
        // It is said again, if it matters.
        let _ = self.asks.send(Ask::Hear(node, message)).await;
    }

    /// Ends the task. The kernel's tables stay as they are.
    pub async fn stop(&self) {
        // If it has ended already, that is as good.
        let _ = self.ask(Ask::Stop).await;
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, String> {
        let (sender, answer) = oneshot::channel();
        let ended = || "the task of the database has ended".to_owned();
        self.asks.send(ask(sender)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }
}
