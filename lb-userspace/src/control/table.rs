//! Builds the selection tables that the kernel program reads: runs of backend identifiers.
//!
//! A table depends on the addresses and weights of the backends alone, not on their names,
//! identifiers or order. So every node chooses the same backend for the same slot, whatever number
//! it knows that backend by.

use std::net::{IpAddr, SocketAddr};

use lb_common::{hash, maglev, service::Balance};

use crate::config::sizes::Density;

/// A configured backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Address and port: what places it in the table.
    pub address: SocketAddr,
    /// Its identifier: what stands in the slots.
    pub id: u32,
    /// Relative share while it serves in full, 1 and up.
    pub full_weight: u32,
    /// Relative share now, at most `full_weight`: 0 if it does not serve.
    pub weight: u32,
}

/// What the kernel program reads for one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The table itself; empty if no backend serves.
    pub slots: Vec<u32>,
    /// Each backend of the table once, for [`Balance::LeastConn`] and for connections that are tried at
    /// another.
    pub members: Vec<u32>,
}

/// The table of a service with these backends, in the form that `balance` reads, as fine as `density`
/// says.
pub fn build(balance: Balance, members: &[Member], density: Density) -> Table {
    let mut members = members.to_vec();
    members.sort_unstable_by_key(|member| member.address);
    let serving: Vec<_> = members.iter().copied().filter(|member| member.weight > 0).collect();
    if serving.is_empty() {
        return Table::default();
    }
    let slots = match balance {
        Balance::Maglev => {
            let size = density.maglev_size(members.len() as u32);
            maglev(&members, size, maglev::preference)
        }
        Balance::RoundRobin | Balance::Random | Balance::LeastConn => schedule(&serving, density),
    };
    Table { slots, members: serving.iter().map(|member| member.id).collect() }
}

/// The table of a steered service with these backends; empty if none serves. Its size depends on how
/// many are configured, and is one of [`maglev::STEERED_SIZES`].
pub fn steered(members: &[Member]) -> Vec<u32> {
    if members.iter().all(|member| member.weight == 0) {
        return Vec::new();
    }
    let mut members = members.to_vec();
    members.sort_unstable_by_key(|member| member.address);
    let size = maglev::steered_size(members.len() as u32);
    maglev(&members, size, maglev::steered_preference)
}

/// The slot that a backend prefers after so many others: seeds, step, size of the table.
type Preference = fn(u32, u32, u32, u32) -> u32;

/// A Maglev table in two rounds.
///
/// In the first, all configured backends take their turns, as the paper has it. In the second, the
/// slots of those that do not serve (and a part of the slots of those that serve with less than
/// their full weight) are given to the others, again by turns. So a backend that goes down or
/// comes back moves no slot of another. Plain Maglev hashing moves a few percent of them, and with
/// unlucky neighbours a third. The shares are the same.
fn maglev(members: &[Member], size: u32, preference: Preference) -> Vec<u32> {
    let mut table = MaglevTable::new(members, size, preference);
    table.give_out(&members.iter().map(|member| member.full_weight).collect::<Vec<_>>());
    for (index, member) in members.iter().enumerate() {
        let mine = table.taken[index].len() as u64;
        let kept = (mine * u64::from(member.weight)).div_ceil(u64::from(member.full_weight));
        for slot in table.taken[index].split_off(kept as usize) {
            table.owners[slot as usize] = None;
            table.free += 1;
        }
    }
    table.steps.fill(0);
    table.give_out(&members.iter().map(|member| member.weight).collect::<Vec<_>>());
    table.owners.into_iter().flatten().map(|index| members[index].id).collect()
}

/// A Maglev table that is being filled.
struct MaglevTable {
    preference: Preference,
    /// Index of the member that has the slot.
    owners: Vec<Option<usize>>,
    free: u32,
    /// By member: the seeds of its permutation of the slots.
    seeds: Vec<(u32, u32)>,
    /// By member: how far it has come in its permutation.
    steps: Vec<u32>,
    /// By member: its slots, in the order that it took them.
    taken: Vec<Vec<u32>>,
}

impl MaglevTable {
    fn new(members: &[Member], size: u32, preference: Preference) -> Self {
        Self {
            preference,
            owners: vec![None; size as usize],
            free: size,
            seeds: members.iter().map(|member| seeds(member.address)).collect(),
            steps: vec![0; members.len()],
            taken: vec![Vec::new(); members.len()],
        }
    }

    /// Gives the free slots out: the members take turns, each takes the first free slot of its own
    /// permutation, and a turn comes as often as the weight says. One weight is not 0.
    fn give_out(&mut self, weights: &[u32]) {
        let heaviest = weights.iter().copied().max().unwrap_or(0);
        // Each has credit for a turn in the first round, so that the lightest gets a slot too.
        let mut credit: Vec<_> = weights.iter().map(|weight| heaviest - weight).collect();
        while self.free > 0 {
            for (index, &weight) in weights.iter().enumerate() {
                credit[index] += weight;
                if weight > 0 && credit[index] >= heaviest && self.free > 0 {
                    credit[index] -= heaviest;
                    self.take(index);
                }
            }
        }
    }

    fn take(&mut self, index: usize) {
        let (offset, skip) = self.seeds[index];
        loop {
            let size = self.owners.len() as u32;
            let slot = (self.preference)(offset, skip, self.steps[index], size);
            self.steps[index] += 1;
            let owner = &mut self.owners[slot as usize];
            if owner.is_none() {
                *owner = Some(index);
                self.taken[index].push(slot);
                self.free -= 1;
                return;
            }
        }
    }
}

/// Two independent hashes of an address and port.
fn seeds(address: SocketAddr) -> (u32, u32) {
    let bytes = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let word = u128::from_be_bytes(bytes);
    let (high, low) = ((word >> 64) as u64, word as u64);
    let port = u64::from(address.port());
    let place = u64::from(hash::mix(high, low)) << 32 | u64::from(hash::mix(low, !high));
    (hash::mix(place, port), hash::mix(place.rotate_left(32), !port))
}

/// nginx's smooth weighted round-robin, one whole period: every backend as often as its weight
/// says, and spread out (`ngx_http_upstream_get_peer`).
fn schedule(members: &[Member], density: Density) -> Vec<u32> {
    let longest = density.longest_schedule(members.len() as u32);
    let weights = reduced(members.iter().map(|member| member.weight).collect(), longest);
    if weights.iter().all(|&weight| weight == 1) {
        // The same result as below, without a step for each pair of members.
        return members.iter().map(|member| member.id).collect();
    }
    let total: i64 = weights.iter().sum();
    let mut current = vec![0_i64; members.len()];
    let mut slots = Vec::with_capacity(total as usize);
    for _ in 0..total {
        let mut best = 0;
        for index in 0..members.len() {
            current[index] += weights[index];
            if current[index] > current[best] {
                best = index;
            }
        }
        current[best] -= total;
        slots.push(members[best].id);
    }
    slots
}

/// The weights in lowest terms, their sum at most `longest`, each at least 1.
fn reduced(weights: Vec<u32>, longest: u32) -> Vec<i64> {
    let mut weights = divided(weights.into_iter().map(i64::from).collect());
    let total: i64 = weights.iter().sum();
    if total > i64::from(longest) {
        // Room for a slot for each is put aside first, since rounding down may need one for each.
        let room = i64::from(longest).saturating_sub(weights.len() as i64).max(0);
        for weight in &mut weights {
            *weight = (*weight * room / total).max(1);
        }
        weights = divided(weights);
    }
    weights
}

fn divided(weights: Vec<i64>) -> Vec<i64> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    weights.into_iter().map(|weight| weight / divisor).collect()
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
