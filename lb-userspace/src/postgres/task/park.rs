//! New connections to the primary wait while it is handed over.
//!
//! Their SYNs are dropped; clients send them again after a second, and then find the new primary. In a
//! promotion without a primary they are refused instead: clients that come again at once are served sooner
//! than those that wait for their second SYN.

use std::time::Duration;

use super::Task;
use crate::{
    clock,
    config::Access,
    postgres::{
        failover::Event,
        record::{Cause, Phase, Record},
    },
};

/// So long they wait at most; then they are refused. Clients give up after ten seconds or more.
const LONGEST: Duration = Duration::from_secs(10);

/// Whether new connections shall wait.
fn is_wanted(record: Option<&Record>) -> bool {
    record.is_some_and(|record| {
        matches!(record.phase, Phase::Fencing | Phase::Promoting)
            && record.run.as_ref().is_some_and(|run| run.cause == Cause::Switchover)
    })
}

impl Task {
    /// Puts the routes into force, if they are others now; before them that connections wait, and after
    /// them that they do so no longer. The event says that a gate is in force.
    pub(super) async fn route(&mut self) -> Option<Event> {
        let wanted = is_wanted(self.machine.record());
        if wanted && !self.parked {
            self.park(Some(clock::monotonic() + LONGEST)).await;
        }
        let event = self.put_routes().await;
        if !wanted && self.parked && self.behind.is_none() {
            self.park(None).await;
        }
        event
    }

    async fn park(&mut self, until: Option<Duration>) {
        // If it cannot be written, connections are refused meanwhile, or wait until their time is over.
        self.parked = until.is_some();
        if self.config.read_write.is_none() {
            return;
        }
        let service = self.config.service(Access::ReadWrite);
        let parked = self.setup.control.park(&service, until).await;
        let why = match parked {
            Ok(Ok(())) => return,
            Ok(Err(why)) => why,
            Err(error) => error.to_string(),
        };
        tracing::warn!(why, service, "let new connections wait");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::record::{Branch, Run};

    #[test]
    fn they_wait_in_a_switchover_alone() {
        let branch = Branch { system_id: 1, timeline: 1, switch: crate::postgres::lsn::Lsn(0) };
        let serving = Record::first("pg-01", branch, None);
        let in_phase = |phase, cause| {
            let run = Run {
                controller: "lb-01".into(),
                cause,
                target: None,
                may_lose: None,
                absent: std::collections::BTreeSet::new(),
                last_known: None,
                sync: None,
                sync_servers: std::collections::BTreeMap::new(),
                sync_from: crate::postgres::lsn::Lsn(0),
                candidate: None,
                loss: None,
                stuck: None,
            };
            serving.next(|next| (next.phase, next.run) = (phase, Some(run)))
        };
        assert!(!is_wanted(None) && !is_wanted(Some(&serving)));
        for phase in [Phase::Fencing, Phase::Promoting] {
            assert!(is_wanted(Some(&in_phase(phase, Cause::Switchover))));
            assert!(!is_wanted(Some(&in_phase(phase, Cause::Operator))));
        }
        assert!(!is_wanted(Some(&in_phase(Phase::Frozen, Cause::Switchover))));
    }
}
