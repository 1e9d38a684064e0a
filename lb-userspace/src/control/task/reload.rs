//! Reload: the whole new configuration, or no change at all.

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::Task;
use crate::{
    alert::task::Settings,
    clock,
    config::{
        self, Config,
        report::{Diagnostic, Severity, render, summary},
        sizes,
    },
    events::{Kind, Note},
    health::Report,
};

/// A new configuration is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Services that it has.
    pub services: usize,
    /// Backends that it has.
    pub backends: usize,
    /// Warnings, as a person reads them.
    pub warnings: String,
}

/// A new configuration was refused, and nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// What is wrong, in one line.
    pub message: String,
    /// What is wrong, as a person reads it: with lines and carets, where there are some.
    pub text: String,
    /// The mistakes in the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
}

impl Task {
    pub(super) async fn reload(
        &mut self,
        reports: &mut mpsc::Receiver<Report>,
    ) -> Result<Reloaded, Refused> {
        let result = self.try_reload(reports).await;
        let note = match &result {
            Ok(reloaded) => {
                let Reloaded { services, backends, .. } = reloaded;
                let counts = format!("{services} services, {backends} backends");
                Note::new(Kind::Reloaded, format!("a new configuration is in force: {counts}"))
            }
            Err(refused) => {
                let message = "a new configuration is refused; nothing has changed";
                Note::new(Kind::ReloadRefused, message).because(refused.message.clone())
            }
        };
        self.timeline.add(note);
        result
    }

    async fn try_reload(
        &mut self,
        reports: &mut mpsc::Receiver<Report>,
    ) -> Result<Reloaded, Refused> {
        let path = self.config_path.clone();
        let loaded = match tokio::task::spawn_blocking(move || config::load(&path)).await {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(rejected)) => {
                let message =
                    format!("{}: {}", self.config_path.display(), headline(&rejected.diagnostics));
                let text = rejected.to_string();
                return Err(Refused { message, text, diagnostics: rejected.diagnostics });
            }
            Err(panicked) => return Err(refused(&[format!("read the file: {panicked}")])),
        };
        let mut obstacles = obstacles(&self.config, &loaded.config, &self.node);
        obstacles.extend(sizes::shortages(&loaded.config, self.planner.sizes()));
        if !obstacles.is_empty() {
            return Err(refused(&obstacles));
        }
        self.config = loaded.config;
        self.config_loaded = clock::wall();
        self.publish_databases();
        self.warnings = warnings(&loaded.warnings);
        self.alerts.send_replace(Settings::new(&self.config, &self.warnings));
        // Probes whose questions have changed end first, so that what they have found is not taken
        // for what the new ones find.
        self.probes.keep(targets(&self.config).iter()).await;
        while let Ok(report) = reports.try_recv() {
            self.observe(&report);
        }
        self.forget_wishes().await;
        self.configure().await;
        if *self.settled.borrow() {
            self.follow_peers().await;
            self.follow_addresses().await;
        }
        Ok(Reloaded {
            services: self.config.services.len(),
            backends: self.config.services.iter().map(|service| service.backends.len()).sum(),
            warnings: render(&loaded.warnings, &loaded.source, false),
        })
    }
}

/// The warnings of a file, a line each; of very many, the first.
pub(crate) fn warnings(diagnostics: &[Diagnostic]) -> Vec<String> {
    let more = diagnostics.len().saturating_sub(MOST_WARNINGS);
    diagnostics
        .iter()
        .take(MOST_WARNINGS)
        .map(|diagnostic| {
            let place = diagnostic.place.as_ref().map(|place| format!(":{}", place.line));
            let place = place.unwrap_or_default();
            format!("{}{place}: {}", diagnostic.file, diagnostic.message)
        })
        .chain((more > 0).then(|| format!("{more} more: `ballast check` has them all")))
        .collect()
}

/// Warnings of a file that `status` repeats.
const MOST_WARNINGS: usize = 100;

fn headline(diagnostics: &[Diagnostic]) -> String {
    let mut errors = diagnostics.iter().filter(|it| it.severity == Severity::Error);
    match (errors.next(), errors.next()) {
        (Some(one), None) => one.message.clone(),
        (Some(first), Some(_)) => format!("{}; the first: {}", summary(diagnostics), first.message),
        (None, _) => summary(diagnostics),
    }
}

fn refused(obstacles: &[String]) -> Refused {
    Refused {
        message: obstacles.join("; "),
        text: format!("error: {}\n", obstacles.join("\nerror: ")),
        diagnostics: Vec::new(),
    }
}

fn targets(config: &Config) -> Vec<crate::health::Target> {
    let probed = config.services.iter().filter(|service| service.health.probe.is_active());
    probed
        .flat_map(|service| {
            service.backends.iter().map(|backend| crate::health::Target {
                service: service.name.clone(),
                backend: backend.name.clone(),
                address: backend.address,
                health: service.health.clone(),
            })
        })
        .collect()
}

/// What a running daemon cannot change. Each is a sentence with what to do.
fn obstacles(old: &Config, new: &Config, node: &str) -> Vec<String> {
    let mut obstacles = Vec::new();
    let mut fixed = |what: &str, same: bool| {
        if !same {
            obstacles.push(format!(
                "{what} cannot change while ballast runs: change it back, or restart ballast"
            ));
        }
    };
    fixed("dataplane.max_flows", old.dataplane.max_flows == new.dataplane.max_flows);
    fixed("dataplane.max_half_open", old.dataplane.max_half_open == new.dataplane.max_half_open);
    fixed("dataplane.max_services", old.dataplane.max_services == new.dataplane.max_services);
    fixed("dataplane.max_backends", old.dataplane.max_backends == new.dataplane.max_backends);
    fixed("dataplane.max_slots", old.dataplane.max_slots == new.dataplane.max_slots);
    fixed("paths.socket", old.paths.socket == new.paths.socket);
    fixed("paths.state", old.paths.state == new.paths.state);
    fixed("paths.pins", old.paths.pins == new.paths.pins);
    let interface = |config: &Config| config.node(node).map(|node| node.interface.clone());
    if new.node(node).is_none() {
        obstacles.push(format!("no [[node]] is called {node} any more, and that is this node"));
    } else if interface(old) != interface(new) {
        obstacles.push(format!(
            "the interface of node {node} cannot change while ballast runs: change it back, or \
             restart ballast"
        ));
    }
    obstacles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let text = r#"
            [cluster]
            name = "edge"
            [[node]]
            name = "lb-01"
            address = "192.0.2.11"
            interface = "eth0"
            priority = 100
            [[floating]]
            vrid = 51
            addresses = ["192.0.2.100/24"]
            [[service]]
            name = "web"
            listen = "192.0.2.100:80"
            protocol = "tcp"
            [[service.backend]]
            name = "app-01"
            address = "192.0.2.21:8080"
        "#;
        config::parse("test.toml", text).expect("the test's configuration is right").config
    }

    #[test]
    fn what_cannot_change_is_named() {
        let old = config();
        assert!(obstacles(&old, &old, "lb-01").is_empty());
        let mut new = config();
        new.dataplane.max_flows *= 2;
        new.paths.state = "/elsewhere".into();
        new.nodes[0].interface = "eth1".into();
        let named = obstacles(&old, &new, "lb-01");
        assert_eq!(named.len(), 3);
        assert!(named[0].contains("max_flows") && named[0].contains("restart"));
        new = config();
        new.nodes[0].name = "lb-03".into();
        assert!(obstacles(&old, &new, "lb-01")[0].contains("no [[node]] is called lb-01"));
    }

    #[test]
    fn what_can_change_is_no_obstacle() {
        let old = config();
        let mut new = config();
        new.services.clear();
        new.nodes[0].priority = 7;
        new.dataplane.tcp_idle_timeout *= 2;
        assert!(obstacles(&old, &new, "lb-01").is_empty());
    }
}
