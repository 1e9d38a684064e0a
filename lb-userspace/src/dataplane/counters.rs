//! Reading the counters: those of every CPU, summed.

use std::os::fd::AsFd as _;

use anyhow::Context as _;
use lb_common::{
    reason::Reason,
    stats::{BackendStats, ServiceStats},
};

use super::{Counters, Dataplane, batch};

/// With more than one in so many of the indexes asked for, all up to the last are read in a walk,
/// which costs a fraction of a system call for each.
const WALK_FROM: usize = 8;

impl Dataplane {
    /// Counters of the given services and backends.
    pub fn counters(&self, services: &[u32], backends: &[u32]) -> anyhow::Result<Counters> {
        let mut reasons = vec![0; Reason::COUNT as usize];
        batch::read_per_cpu(
            self.reasons.fd().as_fd(),
            self.cpus,
            0..Reason::COUNT,
            |reason, values: &[u64]| reasons[reason as usize] = values.iter().sum(),
        )
        .context("read REASONS")?;
        let services = read(&self.service_stats, self.cpus, services, sum_service)
            .context("read SERVICE_STATS")?;
        let backends = read(&self.backend_stats, self.cpus, backends, sum_backend)
            .context("read BACKEND_STATS")?;
        let backends = backends.into_iter().map(|(id, sum)| (id, sum, self.active.get(id)));
        Ok(Counters { reasons, services, backends: backends.collect() })
    }
}

fn sum_service(cpus: &[ServiceStats]) -> ServiceStats {
    cpus.iter().fold(ServiceStats::ZERO, |sum, cpu| ServiceStats {
        connections: sum.connections + cpu.connections,
        refused: sum.refused + cpu.refused,
        replayed: sum.replayed + cpu.replayed,
        not_replayed: sum.not_replayed + cpu.not_replayed,
    })
}

fn sum_backend(cpus: &[BackendStats]) -> BackendStats {
    cpus.iter().fold(BackendStats::ZERO, |sum, cpu| BackendStats {
        connections: sum.connections + cpu.connections,
        answered: sum.answered + cpu.answered,
        forward_packets: sum.forward_packets + cpu.forward_packets,
        forward_bytes: sum.forward_bytes + cpu.forward_bytes,
        return_packets: sum.return_packets + cpu.return_packets,
        return_bytes: sum.return_bytes + cpu.return_bytes,
    })
}

/// The sums at these indexes, in this order.
fn read<V: aya::Pod>(
    map: &aya::maps::MapData,
    cpus: usize,
    indexes: &[u32],
    sum: impl Fn(&[V]) -> V,
) -> anyhow::Result<Vec<(u32, V)>> {
    let Some(last) = indexes.iter().copied().max() else { return Ok(Vec::new()) };
    let entries = map.info()?.max_entries();
    anyhow::ensure!(last < entries, "index {last} is past the end, {entries}");
    if indexes.len() < last as usize / WALK_FROM {
        let one = |&index: &u32| {
            let values = batch::get_per_cpu::<V>(map.fd().as_fd(), cpus, index)?;
            Ok((index, sum(&values)))
        };
        return indexes.iter().map(one).collect();
    }
    let mut sums = Vec::with_capacity(last as usize + 1);
    batch::read_per_cpu(map.fd().as_fd(), cpus, 0..last + 1, |_, values| sums.push(sum(values)))?;
    anyhow::ensure!(sums.len() > last as usize, "it ends at {}, not {entries}", sums.len());
    Ok(indexes.iter().map(|&index| (index, sums[index as usize])).collect())
}
