//! `ACTIVE`: how many connections each backend has open.
//!
//! The kernel adds and subtracts as connections come and go; user space subtracts those that it
//! forgets. The map lies in this process's memory too, so both sides do so atomically.
//!
//! What the kernel's LRU tables push out unasked is subtracted by nobody. So each sweep compares the
//! counters with the tables. A difference that stays over several sweeps is a drift and is corrected;
//! one that comes and goes is traffic that moved while the tables were read.

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Context;
use aya::maps::MapData;
use lb_common::limits::MAX_BACKENDS;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Sweeps over which a difference must stay to count as drift.
const WINDOW: usize = 4;

/// The mapped array.
#[derive(Debug)]
pub(super) struct Active {
    start: NonNull<AtomicU64>,
    /// The differences of the last sweeps, newest last, of backends that had one.
    differences: BTreeMap<u32, VecDeque<i64>>,
}

// SAFETY: the memory is shared with the kernel anyway, and only accessed atomically.
unsafe impl Send for Active {}

const BYTES: NonZeroUsize =
    NonZeroUsize::new(MAX_BACKENDS as usize * size_of::<AtomicU64>()).expect("not zero");

impl Active {
    pub(super) fn map(map: &MapData) -> anyhow::Result<Self> {
        // SAFETY: a new mapping of a map that holds `BYTES` bytes and may be mapped.
        let start = unsafe {
            mmap(
                None,
                BYTES,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map.fd().as_fd(),
                0,
            )
        }
        .context("map ACTIVE into memory")?;
        Ok(Self { start: start.cast(), differences: BTreeMap::new() })
    }

    fn counter(&self, backend: u32) -> Option<&AtomicU64> {
        if backend >= MAX_BACKENDS {
            return None;
        }
        // SAFETY: within the mapping, which lives as long as `self`; pages are aligned.
        Some(unsafe { self.start.add(backend as usize).as_ref() })
    }

    /// Open connections of a backend. Never negative: a counter that is below zero for a moment,
    /// while a drift is not yet corrected, reads as zero.
    pub(super) fn get(&self, backend: u32) -> u64 {
        let count = self.counter(backend).map_or(0, |counter| counter.load(Ordering::Relaxed));
        if count as i64 > 0 { count } else { 0 }
    }

    /// A connection was forgotten.
    pub(super) fn close(&self, backend: u32) {
        if let Some(counter) = self.counter(backend) {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The identifier is free again.
    pub(super) fn clear(&mut self, backend: u32) {
        if let Some(counter) = self.counter(backend) {
            counter.store(0, Ordering::Relaxed);
        }
        self.differences.remove(&backend);
    }

    /// Compares the counters with what a sweep counted in the tables (`open`), and corrects drifts.
    pub(super) fn reconcile(&mut self, open: &BTreeMap<u32, u64>) {
        for backend in 0..MAX_BACKENDS {
            let Some(counter) = self.counter(backend) else { return };
            let count = counter.load(Ordering::Relaxed) as i64;
            let counted = open.get(&backend).copied().unwrap_or(0) as i64;
            if count == counted {
                self.differences.remove(&backend);
                continue;
            }
            let differences = self.differences.entry(backend).or_default();
            differences.push_back(count - counted);
            if differences.len() > WINDOW {
                differences.pop_front();
            }
            let drift = persisting(differences);
            if drift != 0 {
                for difference in differences.iter_mut() {
                    *difference -= drift;
                }
                if let Some(counter) = self.counter(backend) {
                    counter.fetch_sub(drift as u64, Ordering::Relaxed);
                }
            }
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`, with this length; nothing refers to it any more.
        let _ = unsafe { munmap(self.start.cast(), BYTES.get()) };
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
    use super::{VecDeque, persisting};

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
}
