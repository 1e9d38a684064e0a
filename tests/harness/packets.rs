//! Cases: packets in, and what must become of them. Each runs on the host and in the kernel.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use lb_common::{backend::Backend, reason::Reason, service::Slot};
use lb_ebpf::{
    fake::{
        self, Counter, FakeTables, Frame, Outcome, Setup, Xdp,
        outer::{flow_hash, inside, inside_as_flow},
        setup::INGRESS,
        valid,
    },
    tables::Tables as _,
};

use crate::kernel::{Counters, Kernel, untimed};

pub mod table;

/// A data path with its state: the library on the host, or the program in the kernel.
pub trait DataPath {
    /// Forgets everything and takes a configuration.
    fn reset(&mut self, setup: &Setup) -> Result<()>;
    /// Changes a backend.
    fn set_backend(&mut self, id: u32, backend: Backend) -> Result<()>;
    /// Changes a slot of `MAGLEV`.
    fn set_slot(&mut self, index: u32, slot: Slot) -> Result<()>;
    /// What becomes of a packet that comes in by [`INGRESS`].
    fn run(&mut self, packet: &[u8]) -> Result<Outcome>;
    /// What has been counted.
    fn counters(&self) -> Result<Counters>;
    /// The reasons that user space was told of since the last call.
    fn take_reports(&mut self) -> Result<Vec<u32>>;
}

/// The data path on the host.
pub struct Host {
    /// Its state.
    pub tables: FakeTables,
    setup: Setup,
}

impl Host {
    /// With nothing configured.
    #[must_use]
    pub fn new() -> Self {
        let setup = Setup::default();
        Self { tables: FakeTables::new(&setup), setup }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl DataPath for Host {
    fn reset(&mut self, setup: &Setup) -> Result<()> {
        *self = Self { tables: FakeTables::new(setup), setup: setup.clone() };
        Ok(())
    }

    fn set_backend(&mut self, id: u32, backend: Backend) -> Result<()> {
        self.tables.set_backend(id, backend);
        Ok(())
    }

    fn set_slot(&mut self, index: u32, slot: Slot) -> Result<()> {
        self.tables.set_slot(index, slot);
        Ok(())
    }

    fn run(&mut self, packet: &[u8]) -> Result<Outcome> {
        Ok(fake::run(packet, INGRESS, &self.tables).0)
    }

    fn counters(&self) -> Result<Counters> {
        let tables = &self.tables;
        let backends = || self.setup.backends.iter().map(|(id, _)| *id);
        let services = self.setup.services.iter().map(|(_, service)| service.index);
        Ok(Counters {
            reasons: tables.reasons(),
            backends: backends().map(|id| (id, tables.backend_stats(id))).collect(),
            services: services.map(|index| (index, tables.service_stats(index))).collect(),
            signals: backends().map(|id| (id, untimed(tables.signals(id)))).collect(),
            active: backends().map(|id| (id, tables.active(id))).collect(),
        })
    }

    fn take_reports(&mut self) -> Result<Vec<u32>> {
        Ok(self.tables.take_events().iter().map(|event| event.reason).collect())
    }
}

impl DataPath for Kernel {
    fn reset(&mut self, setup: &Setup) -> Result<()> {
        Self::reset(self, setup)
    }

    fn set_backend(&mut self, id: u32, backend: Backend) -> Result<()> {
        Self::set_backend(self, id, backend)
    }

    fn set_slot(&mut self, index: u32, slot: Slot) -> Result<()> {
        Self::set_slot(self, index, slot)
    }

    fn run(&mut self, packet: &[u8]) -> Result<Outcome> {
        Self::run(self, packet)
    }

    fn counters(&self) -> Result<Counters> {
        Self::counters(self)
    }

    fn take_reports(&mut self) -> Result<Vec<u32>> {
        Ok(self.take_events()?.iter().map(|event| event.reason).collect())
    }
}

/// A row: a configuration, and packets with what must become of each.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it shows.
    pub name: String,
    /// What the maps hold before the first packet.
    pub setup: Setup,
    /// In this order.
    pub steps: Vec<Step>,
}

/// One packet.
#[derive(Clone, Debug)]
pub struct Step {
    /// Backends that change before it comes.
    pub changes: Vec<(u32, Backend)>,
    /// Slots that change before it comes.
    pub slots: Vec<(u32, Slot)>,
    /// The packet.
    pub packet: Vec<u8>,
    /// The action.
    pub xdp: Xdp,
    /// The packet afterwards; `None` where nobody will see it.
    pub after: Option<Vec<u8>>,
    /// The one counter that moves.
    pub counter: Counter,
    /// Whether user space is told.
    pub reported: bool,
    /// The packet is wrong in a way that only its receiver looks at, and must still be so afterwards.
    pub wrong: bool,
}

impl Case {
    /// A row without packets yet.
    #[must_use]
    pub fn new(name: impl Into<String>, setup: Setup) -> Self {
        Self { name: name.into(), setup, steps: Vec::new() }
    }

    fn step(mut self, packet: Vec<u8>, xdp: Xdp, after: Option<Vec<u8>>, counter: Counter) -> Self {
        let (changes, slots) = (Vec::new(), Vec::new());
        let (reported, wrong) = (false, false);
        self.steps.push(Step { changes, slots, packet, xdp, after, counter, reported, wrong });
        self
    }

    /// `packet` leaves by its own interface as `after`, to a backend.
    #[must_use]
    pub fn forwards(self, packet: &Frame, after: &Frame, id: u32) -> Self {
        let after = Some(after.build());
        self.step(packet.build(), Xdp::Transmit, after, Counter::Forward(id))
    }

    /// `packet` leaves by its own interface inside another, through the tunnel to a backend.
    #[must_use]
    pub fn forwards_inside(self, packet: &Frame, id: u32) -> Self {
        let (_, backend) =
            self.setup.backends.iter().find(|(other, _)| *other == id).expect("set up");
        let after = Some(inside(packet, backend));
        self.step(packet.build(), Xdp::Transmit, after, Counter::Forward(id))
    }

    /// As [`Case::forwards_inside`], for an error about a packet that `answers` would answer.
    #[must_use]
    pub fn forwards_error(self, packet: &Frame, answers: &Frame, id: u32) -> Self {
        let (_, backend) =
            self.setup.backends.iter().find(|(other, _)| *other == id).expect("set up");
        let after = Some(inside_as_flow(packet, backend, flow_hash(answers)));
        self.step(packet.build(), Xdp::Transmit, after, Counter::Forward(id))
    }

    /// `packet` leaves by its own interface to a backend, and is as wrong as it came.
    #[must_use]
    pub fn forwards_wrong(self, packet: Vec<u8>, id: u32) -> Self {
        let mut case = self.step(packet, Xdp::Transmit, None, Counter::Forward(id));
        if let Some(step) = case.steps.last_mut() {
            step.wrong = true;
        }
        case
    }

    /// `packet` leaves by its own interface as `after`, from a backend.
    #[must_use]
    pub fn returns(self, packet: &Frame, after: &Frame, id: u32) -> Self {
        let after = Some(after.build());
        self.step(packet.build(), Xdp::Transmit, after, Counter::Return(id))
    }

    /// `packet` leaves by another interface as `after`, to a backend.
    #[must_use]
    pub fn redirects(self, packet: &Frame, after: &Frame, id: u32) -> Self {
        let after = Some(after.build());
        self.step(packet.build(), Xdp::Redirect, after, Counter::Forward(id))
    }

    /// `packet` is answered with `after`: a reset, or an ICMP error.
    #[must_use]
    pub fn resets(self, packet: &Frame, after: &Frame, reason: Reason) -> Self {
        let after = Some(after.build());
        self.step(packet.build(), Xdp::Transmit, after, Counter::Reason(reason))
    }

    /// `packet` goes to the node's own stack as it came.
    #[must_use]
    pub fn passes(self, packet: &Frame, reason: Reason) -> Self {
        self.passes_bytes(packet.build(), reason)
    }

    /// As [`Case::passes`], for bytes that no [`Frame`] makes.
    #[must_use]
    pub fn passes_bytes(self, packet: Vec<u8>, reason: Reason) -> Self {
        let after = Some(packet.clone());
        self.step(packet, Xdp::Pass, after, Counter::Reason(reason))
    }

    /// `packet` ends here.
    #[must_use]
    pub fn drops(self, packet: &Frame, reason: Reason) -> Self {
        self.step(packet.build(), Xdp::Drop, None, Counter::Reason(reason))
    }

    /// The last packet makes a report to user space.
    #[must_use]
    pub fn reported(mut self) -> Self {
        if let Some(step) = self.steps.last_mut() {
            step.reported = true;
        }
        self
    }

    /// A backend changes before the last packet comes.
    #[must_use]
    pub fn after_change(mut self, id: u32, backend: Backend) -> Self {
        if let Some(step) = self.steps.last_mut() {
            step.changes.push((id, backend));
        }
        self
    }

    /// A slot changes before the last packet comes.
    #[must_use]
    pub fn after_slot(mut self, index: u32, slot: Slot) -> Self {
        if let Some(step) = self.steps.last_mut() {
            step.slots.push((index, slot));
        }
        self
    }

    /// Runs the row.
    pub fn run(&self, path: &mut impl DataPath) -> Result<()> {
        path.reset(&self.setup)?;
        for (number, step) in self.steps.iter().enumerate() {
            let place = format!("packet {} of `{}`", number + 1, self.name);
            for (id, backend) in &step.changes {
                path.set_backend(*id, *backend)?;
            }
            for (index, slot) in &step.slots {
                path.set_slot(*index, *slot)?;
            }
            let before = path.counters()?;
            let outcome = path.run(&step.packet)?;
            let after = path.counters()?;
            ensure!(
                outcome.xdp == step.xdp,
                "{place}: {:?} instead of {:?}; counted {:?}",
                outcome.xdp,
                step.xdp,
                moved(&before, &after),
            );
            if let Some(expected) = &step.after {
                ensure!(outcome.frame == *expected, "{place}: {}", diff(&outcome.frame, expected));
            }
            if matches!(outcome.xdp, Xdp::Transmit | Xdp::Redirect) {
                let found = valid::check(&outcome.frame);
                if step.wrong {
                    ensure!(found.is_err(), "{place}: a wrong packet was made right");
                } else {
                    found.map_err(|mistake| anyhow::anyhow!("{place}: {mistake}"))?;
                }
            }
            let moved = moved(&before, &after);
            ensure!(
                moved == [(step.counter, 1)],
                "{place}: counted {moved:?} instead of {:?} alone",
                step.counter
            );
            let reports = path.take_reports()?;
            let expected = match step.counter {
                Counter::Reason(reason) if step.reported => vec![reason as u32],
                _ => vec![],
            };
            ensure!(reports == expected, "{place}: reported {reports:?} instead of {expected:?}");
        }
        Ok(())
    }
}

/// The counters that a packet may end in which moved, and by how much.
#[must_use]
pub fn moved(before: &Counters, after: &Counters) -> Vec<(Counter, u64)> {
    let mut moved = Vec::new();
    for ((reason, before), after) in Reason::ALL.iter().zip(&before.reasons).zip(&after.reasons) {
        moved.push((Counter::Reason(*reason), after.wrapping_sub(*before)));
    }
    for ((id, before), (_, after)) in before.backends.iter().zip(&after.backends) {
        let forward = after.forward_packets.wrapping_sub(before.forward_packets);
        moved.push((Counter::Forward(*id), forward));
        let returned = after.return_packets.wrapping_sub(before.return_packets);
        moved.push((Counter::Return(*id), returned));
    }
    moved.retain(|(_, by)| *by != 0);
    moved
}

/// Two packets, and where they begin to differ.
#[must_use]
pub fn diff(got: &[u8], expected: &[u8]) -> String {
    let same = got.iter().zip(expected).take_while(|(one, other)| one == other).count();
    let mut text = format!("differs from byte {same} on\n");
    for (label, bytes) in [("got", got), ("expected", expected)] {
        let _ = write!(text, "{label:>9}:");
        for byte in bytes {
            let _ = write!(text, " {byte:02x}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Host, table::cases};

    #[test]
    fn every_case_holds_on_the_host() {
        let mut host = Host::new();
        let failures: Vec<String> = cases()
            .iter()
            .filter_map(|case| case.run(&mut host).err())
            .map(|error| error.to_string())
            .collect();
        assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
    }

    #[test]
    fn names_are_unique_and_rows_are_many() {
        let cases = cases();
        let names: HashSet<_> = cases.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), cases.len());
        assert!(cases.len() >= 80, "{}", cases.len());
        assert!(cases.iter().all(|case| !case.steps.is_empty()));
    }
}
