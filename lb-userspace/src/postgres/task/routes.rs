//! What was decided is put into the kernel's tables.

use std::collections::BTreeMap;

use super::{FIRST_ROUND, Task};
use crate::{
    clock,
    config::{Access, Postgres},
    control::{task::Appointment, verdict::Appointed},
    postgres::{
        failover::Event,
        route::{self, Rules, View},
    },
};

impl Task {
    /// The services that the database has.
    pub(super) fn services(&self) -> impl Iterator<Item = (Access, String)> {
        let Postgres { read_write, read_only, .. } = self.config;
        let both = [(Access::ReadWrite, read_write), (Access::ReadOnly, read_only)];
        both.into_iter()
            .filter(|(_, listen)| listen.is_some())
            .map(|(access, _)| (access, self.config.service(access)))
    }

    /// Puts the routes into force, if they are others now. The event says that a gate is.
    pub(super) async fn put_routes(&mut self) -> Option<Event> {
        // What the daemon before has left is better than what is not known yet.
        let asked = self.links.keys().all(|server| self.machine.servers().contains_key(server));
        if !asked && clock::monotonic() < self.began + FIRST_ROUND {
            return None;
        }
        let routes = self.routes();
        if routes == self.applied && self.gate.is_none() {
            return None;
        }
        let services: Vec<_> = self.services().collect();
        let appointments = routes.iter().flat_map(|(server, (write, read))| {
            services.iter().map(move |(access, service)| Appointment {
                service: service.clone(),
                backend: server.clone(),
                appointed: match access {
                    Access::ReadWrite => write.clone(),
                    Access::ReadOnly => read.clone(),
                },
            })
        });
        let applied = self.setup.control.appoint(appointments.collect()).await;
        let applied = applied.unwrap_or_else(|error| Err(error.to_string()));
        self.behind = applied.err();
        if self.behind.is_some() {
            // The next tick tries again.
            return None;
        }
        self.applied = routes;
        self.gate.take().map(Event::Gated)
    }

    /// Whether the kernel's tables say what was decided, or why they do not yet.
    pub(super) fn in_force(&self) -> Result<(), String> {
        if self.routes() == self.applied {
            return Ok(());
        }
        let unknown = || "not every server has been asked yet".to_owned();
        Err(self.behind.clone().unwrap_or_else(unknown))
    }

    pub(super) fn routes(&self) -> BTreeMap<String, (Appointed, Appointed)> {
        let rules = Rules {
            max_lag: self.config.max_lag,
            read_from_primary: self.config.read_from_primary,
            interval: self.config.interval,
        };
        let names: Vec<_> = self.config.servers.iter().map(|server| server.name.clone()).collect();
        let (open, barred) = (self.machine.open(), self.machine.barred());
        let view = View {
            record: self.machine.record(),
            open: open.as_ref().map(|server| *server).map_err(String::as_str),
            barred: &barred,
            servers: self.machine.servers(),
            lags: &self.lags,
        };
        route::appoint(rules, &names, view, clock::monotonic())
    }
}
