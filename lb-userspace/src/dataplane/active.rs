//! `ACTIVE`: how many connections each backend has open.
//!
//! The kernel adds and subtracts as connections come and go; user space subtracts those that it
//! forgets. The map lies in this process's memory too, so both sides do so atomically, and nobody
//! here needs a lock.
//!
//! What the kernel's LRU tables push out unasked is subtracted by nobody. So each sweep compares the
//! counters with the tables. A difference that stays over several sweeps is a drift and is corrected;
//! one that comes and goes is traffic that moved while the tables were read.

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context;
use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Sweeps over which a difference must stay to count as drift.
const WINDOW: usize = 4;

/// The mapped array.
#[derive(Debug)]
pub(super) struct Active {
    start: NonNull<AtomicU64>,
    entries: u32,
    bytes: NonZeroUsize,
    /// Identifiers that have become free since the last sweep.
    cleared: Mutex<Vec<u32>>,
}

// SAFETY: the memory is shared with the kernel anyway, and only accessed atomically.
unsafe impl Send for Active {}
// SAFETY: as above.
unsafe impl Sync for Active {}

impl Active {
    pub(super) fn map(map: &MapData) -> anyhow::Result<Self> {
        let entries = map.info().context("look at ACTIVE")?.max_entries();
        let bytes = entries as usize * size_of::<AtomicU64>();
        let bytes = NonZeroUsize::new(bytes).context("map ACTIVE into memory: it is empty")?;
        // SAFETY: a new mapping of a map that holds `bytes` bytes and may be mapped.
        let start = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map.fd().as_fd(),
                0,
            )
        }
        .context("map ACTIVE into memory")?;
        Ok(Self { start: start.cast(), entries, bytes, cleared: Mutex::default() })
    }

    /// Number of counters.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    fn counter(&self, backend: u32) -> Option<&AtomicU64> {
        if backend >= self.entries {
            return None;
        }
        // SAFETY: within the mapping, which lives as long as `self`; pages are aligned.
        Some(unsafe { self.start.add(backend as usize).as_ref() })
    }

    /// The counter as it stands.
    fn raw(&self, backend: u32) -> i64 {
        self.counter(backend).map_or(0, |counter| counter.load(Ordering::Relaxed)) as i64
    }

    /// Open connections of a backend. Never negative: a counter that is below zero for a moment,
    /// while a drift is not yet corrected, reads as zero.
    pub(super) fn get(&self, backend: u32) -> u64 {
        self.raw(backend).max(0) as u64
    }

    /// A connection has come from another node.
    pub(super) fn open(&self, backend: u32) {
        self.subtract(backend, -1);
    }

    /// A connection was forgotten.
    pub(super) fn close(&self, backend: u32) {
        self.subtract(backend, 1);
    }

    fn subtract(&self, backend: u32, number: i64) {
        if let Some(counter) = self.counter(backend) {
            counter.fetch_sub(number as u64, Ordering::Relaxed);
        }
    }

    /// The identifier is free again.
    pub(super) fn clear(&self, backend: u32) {
        if let Some(counter) = self.counter(backend) {
            counter.store(0, Ordering::Relaxed);
            self.cleared.lock().unwrap_or_else(PoisonError::into_inner).push(backend);
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`, with this length; nothing refers to it any more.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}

/// Finds and corrects what the counters are wrong by.
#[derive(Debug, Default)]
pub(super) struct Drift {
    /// The counters when the sweep began.
    before: Vec<i64>,
    /// The differences of the last sweeps, newest last, of backends that had one.
    differences: BTreeMap<u32, VecDeque<i64>>,
}

impl Drift {
    /// A sweep begins.
    pub(super) fn begin(&mut self, active: &Active) {
        self.before.clear();
        self.before.extend((0..active.entries()).map(|backend| active.raw(backend)));
    }

    /// A sweep has ended: it counted so many open connections, by backend. Corrects drifts.
    ///
    /// A sweep takes its time, so its count belongs to no one instant. What lies between the
    /// counter at its begin and at its end is no difference.
    pub(super) fn end(&mut self, active: &Active, open: &[u32]) {
        let cleared =
            std::mem::take(&mut *active.cleared.lock().unwrap_or_else(PoisonError::into_inner));
        for backend in cleared {
            self.differences.remove(&backend);
        }
        for (backend, (&before, &counted)) in (0..).zip(self.before.iter().zip(open)) {
            let difference = outside(before, active.raw(backend), i64::from(counted));
            if difference == 0 {
                self.differences.remove(&backend);
                continue;
            }
            let differences = self.differences.entry(backend).or_default();
            differences.push_back(difference);
            if differences.len() > WINDOW {
                differences.pop_front();
            }
            let drift = persisting(differences);
            if drift != 0 {
                for difference in differences.iter_mut() {
                    *difference -= drift;
                }
                active.subtract(backend, drift);
            }
        }
    }
}

/// How far both counters are above what was counted; below zero if they are below it.
fn outside(before: i64, after: i64, counted: i64) -> i64 {
    let (low, high) = (before.min(after), before.max(after));
    if counted < low {
        low - counted
    } else if counted > high {
        high - counted
    } else {
        0
    }
}

/// The part of the differences that was there in each of the last [`WINDOW`] sweeps.
fn persisting(differences: &VecDeque<i64>) -> i64 {
    if differences.len() < WINDOW {
        return 0;
    }
    let least = differences.iter().copied().min().unwrap_or(0);
    let most = differences.iter().copied().max().unwrap_or(0);
    if least > 0 {
        least
    } else if most < 0 {
        most
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::{VecDeque, outside, persisting};

    #[test]
    fn only_what_stays_is_drift() {
        let of = |differences: [i64; 4]| persisting(&VecDeque::from(differences));
        assert_eq!(of([5, 5, 5, 5]), 5);
        assert_eq!(of([7, 3, 9, 4]), 3);
        assert_eq!(of([-2, -8, -3, -2]), -2);
        assert_eq!(of([5, -1, 5, 5]), 0);
        assert_eq!(of([0, 5, 5, 5]), 0);
        assert_eq!(persisting(&VecDeque::from([5, 5, 5])), 0);
    }

    #[test]
    fn what_came_or_went_during_a_sweep_is_no_difference() {
        // A thousand connections more each second, and the table was read somewhere in between.
        assert_eq!(outside(4000, 9000, 6500), 0);
        assert_eq!(outside(9000, 4000, 6500), 0);
        assert_eq!(outside(7, 7, 7), 0);
        assert_eq!(outside(10, 12, 7), 3);
        assert_eq!(outside(12, 10, 15), -3);
        assert_eq!(outside(-2, -2, 0), -2);
    }
}
