//! What `ballast status --json` says, as far as it is needed here.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::NODE;
use crate::{lab::Lab, shell};

/// The daemon's answer.
#[derive(Debug, Deserialize)]
pub struct Status {
    services: Vec<Service>,
    dataplane: Dataplane,
    #[serde(default)]
    reasons: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct Service {
    name: String,
    backends: Vec<Backend>,
}

#[derive(Debug, Deserialize)]
struct Backend {
    name: String,
    /// Whether new connections may go to it.
    serving: bool,
    /// Packets from clients, since the maps were made.
    forward_packets: u64,
    /// Packets to clients.
    return_packets: u64,
}

#[derive(Debug, Deserialize)]
struct Dataplane {
    program_id: u32,
    attachments: Vec<Attachment>,
}

/// Where the kernel program is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Attachment {
    /// The interface.
    pub(super) interface: String,
    /// `driver` or `generic`.
    pub(super) mode: String,
}

/// Packets that the kernel program has forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Packets {
    /// To the backends.
    pub(super) forward: u64,
    /// To the clients.
    pub(super) back: u64,
}

impl Status {
    /// Asks the daemon of the node that holds the floating addresses of a lab with one balancer.
    pub fn of(lab: &Lab) -> Result<Self> {
        Self::of_host(lab, NODE)
    }

    /// Asks the daemon of a balancer.
    pub fn of_host(lab: &Lab, host: &str) -> Result<Self> {
        let text = shell::output(lab.ballast_command(host, "status").arg("--json"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("read the answer of `ballast status --json`")
    }

    /// Names of the backends of a service that take new connections; `None` without the service.
    pub fn serving(&self, service: &str) -> Option<Vec<String>> {
        let service = self.services.iter().find(|found| found.name == service)?;
        let serving = service.backends.iter().filter(|backend| backend.serving);
        Some(serving.map(|backend| backend.name.clone()).collect())
    }

    /// The kernel's number of the XDP program.
    pub fn program_id(&self) -> u32 {
        self.dataplane.program_id
    }

    /// Packets that were not forwarded, by reason, since the maps were made.
    pub fn reasons(&self) -> &BTreeMap<String, u64> {
        &self.reasons
    }

    /// What has been forwarded for a service.
    pub(super) fn packets(&self, service: &str) -> Packets {
        let services = self.services.iter().filter(|found| found.name == service);
        services.flat_map(|service| &service.backends).fold(Packets::default(), |sum, backend| {
            Packets {
                forward: sum.forward + backend.forward_packets,
                back: sum.back + backend.return_packets,
            }
        })
    }

    /// Where the kernel program is.
    pub(super) fn attachments(&self) -> &[Attachment] {
        &self.dataplane.attachments
    }
}

impl Packets {
    /// What has come since.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            forward: self.forward.saturating_sub(earlier.forward),
            back: self.back.saturating_sub(earlier.back),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{
        "node": "lb-01",
        "services": [{
            "name": "web", "listen": "192.0.2.100:80",
            "backends": [
                {"name": "app-01", "health": "up", "serving": true, "reason": null,
                 "connections": 7, "active": 1, "forward_packets": 40, "return_packets": 30},
                {"name": "app-02", "health": "down", "serving": false, "reason": "refused",
                 "connections": 3, "active": 0, "forward_packets": 2, "return_packets": 1}
            ]
        }],
        "dataplane": {"program_id": 42, "attachments": [{"interface": "eth0", "mode": "driver"}]}
    }"#;

    #[test]
    fn the_answer_is_understood() {
        let status = Status::parse(ANSWER).unwrap();
        assert_eq!(status.serving("web"), Some(vec!["app-01".into()]));
        assert_eq!(status.serving("web6"), None);
        assert_eq!(status.packets("web"), Packets { forward: 42, back: 31 });
        assert_eq!(status.attachments()[0].mode, "driver");
        assert_eq!(status.program_id(), 42);
    }

    #[test]
    fn only_what_is_new_counts() {
        let earlier = Packets { forward: 10, back: 10 };
        let later = Packets { forward: 15, back: 5 };
        assert_eq!(later.since(earlier), Packets { forward: 5, back: 0 });
    }
}
