//! The databases of the configuration, each with its task.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::{
    failover::{Command, Plan},
    handover::{self, Handover},
    monitor::Link,
    peers::{Peers, Word},
    rejoin::{self, Remote},
    status::Database,
    task::{self, Task},
};
use crate::{
    config::Postgres,
    control::task::Handle as Control,
    events::{Kind, Note, Timeline},
};

/// What all of them need.
#[derive(Clone, Debug)]
pub struct Setup {
    /// This balancer.
    pub node: String,
    /// The other balancers.
    pub peers: BTreeSet<String>,
    /// Directory of what survives a restart.
    pub state_dir: PathBuf,
    /// Who writes the kernel's tables.
    pub control: Control,
    /// Where events go.
    pub timeline: Arc<Timeline>,
    /// How the other balancers are told.
    pub channel: Arc<dyn Peers>,
}

/// The databases; cheap to copy.
#[derive(Clone, Debug, Default)]
pub struct Databases(Arc<Mutex<BTreeMap<String, Entry>>>);

#[derive(Debug)]
struct Entry {
    config: Postgres,
    /// None if its record cannot be read; why.
    task: Result<task::Handle, String>,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such database or server.
    #[error("{0}")]
    Unknown(String),
    /// It was refused.
    #[error("{0}")]
    Refused(String),
}

impl Databases {
    /// Follows changes of the configuration until its sender is gone.
    pub async fn run(self, setup: Setup, mut configs: watch::Receiver<Vec<Postgres>>) {
        while configs.changed().await.is_ok() {
            let new = configs.borrow_and_update().clone();
            self.follow(&setup, new).await;
        }
    }

    /// Starts the tasks of these databases, and ends all others.
    pub async fn follow(&self, setup: &Setup, configs: Vec<Postgres>) {
        self.keep(&configs).await;
        for config in configs {
            self.start(setup, config).await;
        }
    }

    /// Ends the tasks of databases that are configured no longer, or otherwise.
    async fn keep(&self, configs: &[Postgres]) {
        let ended: Vec<task::Handle> = {
            let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let gone: Vec<String> = entries
                .iter()
                .filter(|(_, entry)| !configs.contains(&entry.config))
                .map(|(name, _)| name.clone())
                .collect();
            gone.iter().filter_map(|name| entries.remove(name)?.task.ok()).collect()
        };
        for task in ended {
            task.stop().await;
        }
    }

    async fn start(&self, setup: &Setup, config: Postgres) {
        let name = config.name.clone();
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&name) {
            return;
        }
        let task = Task::start(setup, config.clone()).await;
        if let Err(why) = &task {
            let message =
                format!("the record of database {name} cannot be used: it gets no packet");
            setup.timeline.add(Note::new(Kind::Fault, message).service(&name).because(why));
        }
        let entry = Entry { config, task };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, entry);
    }

    /// How all of them stand.
    pub fn status(&self) -> Vec<Database> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let statuses = entries.values().map(|entry| match &entry.task {
            Ok(task) => task.status(),
            Err(why) => Database {
                name: entry.config.name.clone(),
                read_write: entry.config.read_write,
                read_only: entry.config.read_only,
                problem: Some(why.clone()),
                warnings: vec![why.clone()],
                ..Database::default()
            },
        });
        statuses.collect()
    }

    /// Another balancer says something.
    pub async fn hear(&self, word: Word) {
        if let Ok((_, task)) = self.find(Some(&word.database)) {
            task.hear(word.node, word.message).await;
        }
    }

    /// The database of this name, or the only one.
    fn find(&self, name: Option<&str>) -> Result<(Postgres, task::Handle), Error> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = || entries.keys().cloned().collect::<Vec<_>>().join(", ");
        let entry = match name {
            Some(name) => entries.get(name).ok_or_else(|| {
                Error::Unknown(format!("no database is called {name}; there are: {}", known()))
            })?,
            None if entries.len() == 1 => entries.values().next().ok_or_else(no_database)?,
            None if entries.is_empty() => return Err(no_database()),
            None => {
                let known = known();
                return Err(Error::Unknown(format!(
                    "there are several databases: name one with --db ({known})"
                )));
            }
        };
        let task = entry.task.clone().map_err(Error::Refused)?;
        Ok((entry.config.clone(), task))
    }

    /// What a promotion would do now.
    pub async fn plan(&self, name: Option<&str>, server: Option<String>) -> Result<Plan, Error> {
        self.find(name)?.1.plan(server).await.map_err(Error::Refused)
    }

    /// Does what the operator wants, and answers when it is done.
    pub async fn command(&self, name: Option<&str>, command: Command) -> Result<String, Error> {
        self.find(name)?.1.command(command).await.map_err(Error::Refused)
    }

    /// Hands over to a standby: waits for long transactions, and then does it; or only says what it would
    /// find.
    pub async fn switchover(
        &self,
        name: Option<&str>,
        handover: Handover,
    ) -> Result<String, Error> {
        let (config, task) = self.find(name)?;
        let target = task.plan(handover.server.clone()).await.map_err(Error::Refused)?.to;
        let command = Command::Switchover {
            server: handover.server.clone(),
            absent: handover.absent.clone(),
        };
        task.would(command.clone()).await.map_err(Error::Refused)?;
        let link = |name: Option<String>| {
            let server = config.servers.iter().find(|it| Some(&it.name) == name.as_ref());
            // Nothing is late yet, so a busy server may take its time.
            let limit = config.timeout.max(handover::STATEMENT);
            let link = server.map(|server| Link::new(&config, server).patient(limit));
            link.ok_or_else(|| Error::Refused("no primary is known yet".into()))
        };
        let primary = link(task.status().primary)?;
        if handover.rehearse {
            let standby = link(target)?;
            let found = handover::rehearse(&primary, &standby, &handover).await;
            return found.map_err(Error::Refused);
        }
        handover::settle(&primary, &handover).await.map_err(Error::Refused)?;
        task.command(command).await.map_err(Error::Refused)
    }

    /// The commands that make a server a standby of the primary, and what does it if that is configured.
    pub fn rejoin(
        &self,
        name: Option<&str>,
        server: &str,
        clone: bool,
    ) -> Result<(String, Option<Remote>), Error> {
        let (config, task) = self.find(name)?;
        let primary = task.status().primary.ok_or_else(|| {
            Error::Refused("no primary is known yet, so there is nobody to follow".into())
        })?;
        let find = |name: &str| config.servers.iter().find(|it| it.name == name);
        let names =
            || config.servers.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(", ");
        let server = find(server).ok_or_else(|| {
            Error::Unknown(format!("no server is called {server}; there are: {}", names()))
        })?;
        if server.name == primary {
            return Err(Error::Refused(format!("{primary} is the primary")));
        }
        let leader = find(&primary).ok_or_else(|| {
            Error::Refused(format!("the primary {primary} is configured no longer"))
        })?;
        let remote = rejoin::remote(&config, server, leader, clone);
        Ok((rejoin::commands(&config, server, leader), remote))
    }
}

fn no_database() -> Error {
    Error::Unknown("the configuration has no [[postgres]]".into())
}
