//! Which path the connections of a service take: the kernel's, or the proxy's.

use std::time::Duration;

use super::ServiceState;
use crate::{
    config,
    control::{lift::Lift, plan::Proxied},
    events::{Kind, Note},
};

/// What decides about the path.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Path {
    /// The proxy can take its connections.
    pub(super) listens: bool,
    /// The proxy has, or may have, some of them.
    used: bool,
    /// With `path = "auto"`: whether new ones take the proxy.
    lift: Lift,
    /// Failures of its connections so far, once they have been read.
    failures: Option<u64>,
}

impl Path {
    /// For a service of a new configuration; one that has been proxied may have connections of that
    /// time.
    pub(super) fn after(old: Option<Self>, service: &config::Service) -> Self {
        let old = old.unwrap_or_default();
        let proxied = service.proxy.is_some();
        Self { listens: old.listens && proxied, used: old.used || proxied, ..old }
    }

    pub(super) fn is_lifted(&self) -> bool {
        self.lift.is_up()
    }

    /// When the kernel forwards again.
    pub(super) fn until(&self) -> Option<Duration> {
        self.lift.until()
    }

    /// Takes how many connections have failed so far; says how many since the reading before.
    pub(super) fn failed(&mut self, failures: u64) -> u64 {
        let before = self.failures.replace(failures);
        before.map_or(0, |before| failures.saturating_sub(before))
    }
}

impl ServiceState {
    /// What the proxy has of its connections.
    pub fn proxied(&self) -> Proxied {
        match &self.config.proxy {
            Some(proxy) if self.path.listens && (!proxy.auto || self.path.lift.is_up()) => {
                // The backends may not understand what its clients speak.
                if proxy.is_only() { Proxied::Only } else { Proxied::New }
            }
            _ if self.path.used => Proxied::Old,
            _ => Proxied::None,
        }
    }

    /// Takes a sign that something is wrong with a backend.
    pub(super) fn sign(&mut self, because: &str, now: Duration) -> Option<Note> {
        if !self.config.proxy.as_ref().is_some_and(|proxy| proxy.auto) || !self.path.lift.sign(now)
        {
            return None;
        }
        self.news.add_facts();
        let name = &self.config.name;
        let message = format!("{name}: new connections take the proxy, as a backend is shaky");
        Some(Note::new(Kind::Path, message).service(name).because(because))
    }

    /// Lets the kernel forward again once nothing has gone wrong for long enough.
    pub(super) fn lower(&mut self, now: Duration, notes: &mut Vec<Note>) {
        // A service without a fit backend is not sound, however quiet it is.
        if self.panic && self.path.lift.is_up() {
            self.path.lift.sign(now);
        }
        if self.path.lift.pass(now) {
            let name = &self.config.name;
            let message = format!("{name}: the kernel forwards new connections again");
            let because = "nothing has gone wrong for a while";
            notes.push(Note::new(Kind::Path, message).service(name).because(because));
        }
    }
}
