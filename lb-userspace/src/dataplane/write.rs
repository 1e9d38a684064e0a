//! Writing to the maps: what lies side by side in a list of writes goes to the kernel in one call.

use std::{collections::BTreeSet, os::fd::AsFd as _};

use anyhow::Context as _;
use aya::maps::{MapError, lpm_trie::Key as Prefixed};
use lb_common::{
    backend::Backend,
    service::{Service, ServiceKey, Slot},
    stats::{BackendSignals, BackendStats, ServiceStats},
};

use super::{Dataplane, Op, Tracer, batch, filters::Filters};

impl Dataplane {
    /// Writes to the maps, in order. Stops at the first error; applying again is harmless.
    pub fn apply(&mut self, ops: &[Op]) -> anyhow::Result<()> {
        for run in ops.chunk_by(|one, next| one.kind() == next.kind()) {
            self.apply_run(run).with_context(|| format!("write to the BPF maps: {}", what(run)))?;
        }
        Ok(())
    }

    /// Writes of one kind.
    fn apply_run(&mut self, run: &[Op]) -> anyhow::Result<()> {
        match run {
            [Op::SetBackend { .. }, ..] => self.set_backends(run)?,
            [Op::ClearBackend { .. }, ..] => self.clear_backends(run)?,
            [Op::SetTable { .. }, ..] => self.set_tables(run)?,
            [Op::SetService { .. }, ..] => self.set_services(run)?,
            _ => {
                for op in run {
                    self.apply_one(op)?;
                }
            }
        }
        Ok(())
    }

    fn apply_one(&mut self, op: &Op) -> anyhow::Result<()> {
        match op {
            Op::RemoveService { key } => {
                if self.has_service(key)? {
                    self.services.remove(key)?;
                }
            }
            Op::SetSource { bits, source, verdict } => {
                self.sources.insert(&Prefixed::new(*bits, *source), verdict, 0)?;
            }
            Op::RemoveSource { bits, source } => {
                match self.sources.remove(&Prefixed::new(*bits, *source)) {
                    Err(MapError::SyscallError(error))
                        if error.io_error.raw_os_error() == Some(libc::ENOENT) => {}
                    removed => removed?,
                }
            }
            Op::SetVips { bytes } => self.every_filters(|filters| filters.set_vips(bytes))?,
            Op::SetPorts { bytes } => self.every_filters(|filters| filters.set_ports(bytes))?,
            Op::SetBackend { .. }
            | Op::ClearBackend { .. }
            | Op::SetTable { .. }
            | Op::SetService { .. } => self.apply_run(std::slice::from_ref(op))?,
        }
        Ok(())
    }

    /// Says which MAC addresses this node has: frames for others are not forwarded.
    pub fn set_macs(&self, macs: &BTreeSet<[u8; 6]>) -> anyhow::Result<()> {
        self.every_filters(|filters| filters.set_macs(macs)).context("write MACS")
    }

    /// Writes to the filters of every program that can be on an interface.
    fn every_filters(&self, write: impl Fn(&Filters) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let traced = self.tracer.as_ref().map(Tracer::address_filters);
        [Some(&self.filters), self.left_filters.as_ref(), traced]
            .into_iter()
            .flatten()
            .try_for_each(write)
    }

    fn set_backends(&self, run: &[Op]) -> anyhow::Result<()> {
        let writes = run.iter().filter_map(|op| match op {
            Op::SetBackend { id, backend } => Some((*id, *backend)),
            _ => None,
        });
        let (ids, backends): (Vec<u32>, Vec<Backend>) = writes.unzip();
        Ok(batch::update(self.backends.fd().as_fd(), &ids, &backends)?)
    }

    fn clear_backends(&self, run: &[Op]) -> anyhow::Result<()> {
        let ids = run.iter().filter_map(|op| match op {
            Op::ClearBackend { id } => Some(*id),
            _ => None,
        });
        let ids: Vec<u32> = ids.collect();
        let zeros = vec![Backend::ZERO; ids.len()];
        batch::update(self.backends.fd().as_fd(), &ids, &zeros)?;
        let stats = self.backend_stats.fd().as_fd();
        batch::update_per_cpu(stats, self.cpus, &ids, BackendStats::ZERO)?;
        let signals = self.backend_signals.fd().as_fd();
        batch::update_per_cpu(signals, self.cpus, &ids, BackendSignals::ZERO)?;
        for id in ids {
            self.active.clear(id);
        }
        Ok(())
    }

    /// Tables that follow one another, as those of a fresh start do, are one run of slots.
    fn set_tables(&self, run: &[Op]) -> anyhow::Result<()> {
        let mut slots: Vec<Slot> = Vec::new();
        let mut first = 0;
        for op in run {
            let Op::SetTable { start, slots: table } = op else { continue };
            let end = u64::from(*start) + table.len() as u64;
            anyhow::ensure!(
                end <= u64::from(self.sizes.slots),
                "the table does not fit into MAGLEV"
            );
            if u64::from(first) + slots.len() as u64 != u64::from(*start) {
                batch::update_array(self.slots.fd().as_fd(), first, &slots)?;
                slots.clear();
                first = *start;
            }
            slots.extend(table);
        }
        Ok(batch::update_array(self.slots.fd().as_fd(), first, &slots)?)
    }

    fn set_services(&self, run: &[Op]) -> anyhow::Result<()> {
        let writes = run.iter().filter_map(|op| match op {
            Op::SetService { key, service } => Some((*key, *service)),
            _ => None,
        });
        let (keys, services): (Vec<ServiceKey>, Vec<Service>) = writes.unzip();
        let mut fresh = Vec::new();
        for (key, service) in keys.iter().zip(&services) {
            if !self.has_service(key)? {
                fresh.push(service.index);
            }
        }
        let stats = self.service_stats.fd().as_fd();
        batch::update_per_cpu(stats, self.cpus, &fresh, ServiceStats::ZERO)?;
        Ok(batch::update(self.service_map.fd().as_fd(), &keys, &services)?)
    }

    fn has_service(&self, key: &ServiceKey) -> anyhow::Result<bool> {
        match self.services.get(key, 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// What a run of writes is to, for errors.
fn what(run: &[Op]) -> String {
    match run {
        [one] => one.what(),
        [first, .., last] => format!("{} to {}", first.what(), last.what()),
        [] => String::new(),
    }
}

impl Op {
    /// Writes of one kind may go together.
    fn kind(&self) -> std::mem::Discriminant<Self> {
        std::mem::discriminant(self)
    }

    /// What it writes, for errors.
    fn what(&self) -> String {
        match self {
            Self::SetBackend { id, .. } | Self::ClearBackend { id } => format!("BACKENDS[{id}]"),
            Self::SetTable { start, slots } => {
                format!("MAGLEV[{start}..{}]", u64::from(*start) + slots.len() as u64)
            }
            Self::SetService { .. } | Self::RemoveService { .. } => "SERVICES".to_owned(),
            Self::SetSource { .. } | Self::RemoveSource { .. } => "SOURCES".to_owned(),
            Self::SetVips { .. } => "VIPS".to_owned(),
            Self::SetPorts { .. } => "PORTS".to_owned(),
        }
    }
}
