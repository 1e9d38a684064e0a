//! Who may be reached, by the record and by what the servers say.

use std::collections::BTreeMap;

use super::{Action, Gate, Machine};
use crate::postgres::{
    record::{Branch, Mark, Phase, Record},
    sample::{Role, Sample},
};

impl Machine {
    /// The server that writes go to, or why to none.
    pub fn open(&self) -> Result<&str, String> {
        let Some(record) = &self.record else {
            return Err("no primary is known yet".into());
        };
        let primary = record.primary.as_str();
        match record.phase {
            Phase::Serving => {}
            Phase::Fencing | Phase::Promoting => return Err("the primary is being changed".into()),
            Phase::Frozen => return Err("the change of the primary is stuck".into()),
        }
        // A change that begins closes the gate before it is known to be kept.
        if self.pending.as_ref().is_some_and(|it| it.record.phase != Phase::Serving) {
            return Err("the primary is being changed".into());
        }
        if !self.confirmed {
            return Err(format!(
                "this balancer was off, and no other has confirmed yet that {primary} is still the \
                 primary: `ballast pg unfence {primary}` says so"
            ));
        }
        if record.fenced.contains(primary) {
            return Err(format!("{primary} is fenced by command"));
        }
        if let Some(mark) = self.newer_mark() {
            return Err(format!(
                "{} was made the primary in epoch {}, and the record ends with epoch {}",
                mark.server, mark.epoch, record.epoch
            ));
        }
        if let Some(why) = self.contradiction(record) {
            return Err(why);
        }
        if self.verified != Some(record.epoch) {
            return Err(format!("{primary} has not been seen as the primary yet"));
        }
        Ok(primary)
    }

    /// What the primary says of itself that the record does not.
    pub(super) fn contradiction(&self, record: &Record) -> Option<String> {
        let primary = &record.primary;
        let sample = self.servers.get(primary)?.sample()?;
        let Branch { system_id, timeline, .. } = record.branch;
        if sample.system_id != system_id {
            Some(format!("{primary} belongs to another cluster now ({})", sample.system_id))
        } else if sample.role == Role::Standby {
            Some(format!("{primary} is a standby now"))
        } else if sample.timeline != timeline {
            let has = sample.timeline;
            Some(format!("{primary} is on timeline {has}, and the record says {timeline}"))
        } else if let (Some(mark), Some(ours)) = (&sample.mark, &record.mark)
            // Two balancers may have finished the same promotion, one after the other.
            && (mark.epoch, &mark.server) != (ours.epoch, &ours.server)
        {
            Some(format!("{primary} does not carry the mark of epoch {}", record.epoch))
        } else {
            None
        }
    }

    /// A mark that is newer than the record: another balancer has gone on without us.
    pub(super) fn newer_mark(&self) -> Option<&Mark> {
        let record = self.record.as_ref()?;
        let marks = self.servers.values().filter_map(|it| it.sample()?.mark.as_ref());
        marks.filter(|mark| mark.epoch > record.epoch).max()
    }

    /// Servers that get no packet at all; why.
    pub fn barred(&self) -> BTreeMap<String, String> {
        let mut barred = BTreeMap::new();
        let Some(record) = &self.record else { return barred };
        for (name, known) in &self.servers {
            if let Some(why) = known.sample().and_then(|sample| foreign(record, name, sample)) {
                barred.insert(name.clone(), why);
            }
        }
        if record.phase != Phase::Serving {
            let why = "the primary is being changed".to_owned();
            barred.insert(record.primary.clone(), why);
        }
        for name in &record.fenced {
            barred.insert(name.clone(), "fenced by command".into());
        }
        barred
    }

    /// Why a server gets no packet because of its history, whatever is under way.
    pub fn quarantined(&self, server: &str) -> Option<String> {
        let record = self.record.as_ref().filter(|record| record.phase == Phase::Serving)?;
        foreign(record, server, self.servers.get(server)?.sample()?)
    }

    pub(super) fn update_gate(&mut self, out: &mut Vec<Action>) {
        let revision = self.record.as_ref().map_or(0, |record| record.revision);
        let number = self.gate.as_ref().map_or(0, |(gate, _)| gate.number);
        let mut gate = Gate {
            number,
            open: self.open().ok().map(str::to_owned),
            barred: self.barred().into_keys().collect(),
        };
        if self.gate.as_ref().is_none_or(|(old, of)| (old, *of) != (&gate, revision)) {
            gate.number += 1;
            self.gate = Some((gate.clone(), revision));
            out.push(Action::Gate(gate));
        }
    }

    /// Whether the tables are as the record says.
    pub(super) fn is_gated(&self) -> bool {
        let (Some((gate, of)), Some(record)) = (&self.gate, &self.record) else { return false };
        *of == record.revision && self.gated == Some(gate.number)
    }
}

/// Why a server cannot belong to the history of the record.
fn foreign(record: &Record, server: &str, sample: &Sample) -> Option<String> {
    if sample.system_id != record.branch.system_id {
        return Some(format!("it belongs to another cluster ({})", sample.system_id));
    }
    (sample.role == Role::Primary && server != record.primary).then(|| {
        format!(
            "it takes writes on timeline {}, and {} is the primary, on timeline {}",
            sample.timeline, record.primary, record.branch.timeline
        )
    })
}
