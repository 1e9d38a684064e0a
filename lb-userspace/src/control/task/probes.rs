//! The probe tasks: one for each backend, kept over a reload that does not concern it.

use std::collections::BTreeMap;

use tokio::{sync::mpsc, task::JoinHandle};

use crate::health::{self, Health, Report, Target};

/// Reports that wait for the reconcile task. A probe whose report does not fit waits, which delays
/// its next probe and nothing else.
const QUEUED_REPORTS: usize = 1024;

#[derive(Debug)]
pub(super) struct Probes {
    running: BTreeMap<(String, String), (Target, JoinHandle<()>)>,
    sender: mpsc::Sender<Report>,
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
        for (key, (target, task)) in running {
            if wanted.get(&key).is_some_and(|wanted| **wanted == target) {
                self.running.insert(key, (target, task));
            } else {
                task.abort();
                // Its end is an error that says it was aborted: what was asked for.
                let _ = task.await;
            }
        }
    }

    /// Starts what of `targets` does not run yet, from the health that is known of it.
    pub(super) fn start(&mut self, targets: Vec<(Target, Health)>) {
        let spread = health::spread(targets.len());
        for (target, health) in targets {
            self.running.entry(key(&target)).or_insert_with(|| {
                let task = health::resume(target.clone(), health, spread, self.sender.clone());
                (target, task)
            });
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        for (_, task) in self.running.values() {
            task.abort();
        }
    }
}

fn key(target: &Target) -> (String, String) {
    (target.service.clone(), target.backend.clone())
}
