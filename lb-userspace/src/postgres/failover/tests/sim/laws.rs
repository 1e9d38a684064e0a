//! What must hold in every life.

use std::collections::BTreeSet;

use super::{NODES, Site, server_at};
use crate::postgres::{
    record::{Cause, LastKnown, Record},
    sample::Role,
};

impl Site {
    /// Nobody is promoted while a write may still pass a balancer.
    pub(super) fn check_nobody_writes(&self, at: usize) {
        for (place, node) in NODES.iter().enumerate() {
            let open = self.gate(place);
            assert!(
                open.is_none(),
                "{} promotes while {node} lets writes through to {open:?}",
                NODES[at],
            );
        }
    }

    /// What this promotion loses is what it said.
    pub(super) fn count_losses(&mut self, at: usize, server: usize) {
        let disk = self.balancers[at].disk.clone().expect("a record announces it");
        let run = disk.run.expect("a run promotes");
        let has: BTreeSet<u64> = self.servers[server].log.iter().map(|it| it.number).collect();
        let lost: Vec<u64> =
            self.acknowledged.iter().copied().filter(|number| !has.contains(number)).collect();
        if let Some(loss) = run.loss {
            if loss.proven {
                assert!(lost.is_empty(), "it was proven that nothing is lost: {lost:?}");
            }
            let Some(LastKnown { end, .. }) = run.last_known else { return };
            let old = &self.servers[server_at(&disk.primary)].log;
            let seen = old.iter().take(end.0 as usize).filter(|it| lost.contains(&it.number));
            assert!(seen.count() as u64 <= loss.known, "more is lost than was said: {loss:?}");
            if run.cause == Cause::Switchover {
                assert!(lost.is_empty(), "an orderly change loses {lost:?}");
            }
        }
        self.lost += lost.len() as u64;
        self.acknowledged.retain(|number| !lost.contains(number));
    }

    /// Revisions grow, and an epoch has one primary.
    pub(super) fn check_record(&mut self, at: usize, record: &Record) {
        if let Some(before) = &self.balancers[at].disk {
            // What the store has replaces another record with the same number.
            let grows = record.place() > before.place()
                || (self.unattended.is_some() && record.place() == before.place());
            assert!(grows, "{before:?} {record:?}");
        }
        let primary = self.epochs.entry(record.epoch).or_insert_with(|| record.primary.clone());
        assert_eq!(*primary, record.primary, "epoch {} has two primaries", record.epoch);
    }

    /// The one thing that must never be.
    pub(super) fn check(&self) {
        let reachable: BTreeSet<&str> = (0..2)
            .filter_map(|at| self.gate(at))
            .filter(|name| {
                let server = &self.servers[server_at(name)];
                server.up && server.role == Role::Primary
            })
            .collect();
        assert!(reachable.len() <= 1, "two primaries can be reached: {reachable:?}");
    }
}
