//! The probe tasks: one for each backend, kept over a reload that does not concern it.

use std::collections::BTreeMap;

use tokio::{sync::mpsc, task::JoinHandle};

use crate::health::{self, Health, Passes, Report, Target};

/// Reports that wait for the reconcile task. A probe whose report does not fit waits, which delays
/// its next probe and nothing else.
const QUEUED_REPORTS: usize = 1024;

#[derive(Debug)]
pub(super) struct Probes {
    running: BTreeMap<(String, String), Running>,
    sender: mpsc::Sender<Report>,
}

#[derive(Debug)]
struct Running {
    target: Target,
    passes: Passes,
    task: JoinHandle<()>,
}

impl Probes {
    pub(super) fn new() -> (Self, mpsc::Receiver<Report>) {
        let (sender, receiver) = mpsc::channel(QUEUED_REPORTS);
        (Self { running: BTreeMap::new(), sender }, receiver)
    }

    /// Ends the probes that are not among `targets`. When this returns they send no more.
    pub(super) async fn keep(&mut self, targets: impl Iterator<Item = &Target>) {
        let wanted: BTreeMap<_, _> = targets.map(|target| (key(target), target)).collect();
        let running = std::mem::take(&mut self.running);
        for (key, probe) in running {
            if wanted.get(&key).is_some_and(|wanted| **wanted == probe.target) {
                self.running.insert(key, probe);
            } else {
                probe.task.abort();
                // Its end is an error that says it was aborted: what was asked for.
                let _ = probe.task.await;
            }
        }
    }

    /// Starts what of `targets` does not run yet, from the health that is known of it.
    pub(super) fn start(&mut self, targets: Vec<(Target, Health)>) {
        let spread = health::spread(targets.len());
        for (target, health) in targets {
            self.running.entry(key(&target)).or_insert_with(|| {
                let passes = Passes::default();
                let sender = self.sender.clone();
                let task = health::resume(target.clone(), health, spread, sender, passes.clone());
                Running { target, passes, task }
            });
        }
    }

    /// How many probes of the backend have passed in a row, or since it was last in doubt.
    pub(super) fn passes(&self, service: &str, backend: &str) -> u32 {
        self.get(service, backend).map_or(0, |probe| probe.passes.count())
    }

    /// Something else speaks against the backend: its probes count from here on.
    pub(super) fn doubt(&self, service: &str, backend: &str) {
        if let Some(probe) = self.get(service, backend) {
            probe.passes.restart();
        }
    }

    fn get(&self, service: &str, backend: &str) -> Option<&Running> {
        self.running.get(&(service.to_owned(), backend.to_owned()))
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        for probe in self.running.values() {
            probe.task.abort();
        }
    }
}

fn key(target: &Target) -> (String, String) {
    (target.service.clone(), target.backend.clone())
}
