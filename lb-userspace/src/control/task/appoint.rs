//! What the servers of databases are there for.

use std::time::Duration;

use lb_common::service::PARK_SHIFT;

use super::Task;
use crate::{clock, control::verdict::Appointed};

/// What a server of a database is there for, in one of its services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appointment {
    /// The service.
    pub service: String,
    /// The server.
    pub backend: String,
    /// What it is there for.
    pub appointed: Appointed,
}

impl Task {
    /// Puts appointments into force. It is an error if the kernel's tables do not say so yet; why.
    pub(super) async fn appoint(&mut self, appointments: Vec<Appointment>) -> Result<(), String> {
        let now = clock::monotonic();
        for Appointment { service, backend, appointed } in appointments {
            self.state.appoint(&service, &backend, appointed, now);
        }
        self.write_facts().await
    }

    /// Lets new connections of a service wait until then, or no longer.
    pub(super) async fn park(
        &mut self,
        service: &str,
        until: Option<Duration>,
    ) -> Result<(), String> {
        // Rounded down: never longer than was asked for.
        let until = until.map_or(0, |until| (until.as_nanos() >> PARK_SHIFT) as u32);
        self.state.park(service, until);
        self.write_facts().await
    }

    async fn write_facts(&mut self) -> Result<(), String> {
        self.reconcile().await;
        if self.adopted && !self.is_settled(clock::monotonic()) {
            return Err("the tables of the daemon before are still in force".into());
        }
        match self.retry {
            None => Ok(()),
            Some(_) => Err("the kernel's tables could not be written".into()),
        }
    }

    pub(super) fn publish_databases(&self) {
        self.databases.send_if_modified(|current| {
            let new = *current != self.config.databases;
            if new {
                current.clone_from(&self.config.databases);
            }
            new
        });
    }
}
