//! `allow`, `deny` and `source_rate`, for clients that only a header tells.
//!
//! Where others stand before this node, the kernel program sees their addresses and not the clients'. So
//! it lets them through ([`Guard::for_fronts`]), and the lists and rates are applied here.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::contains;
use crate::config::Guard;

/// Sources whose rates are known at a time. When there are more, those that have all their tokens again
/// are forgotten first, and then all.
const MOST_SOURCES: usize = 1 << 16;

/// What has been admitted.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Admission {
    /// When the bucket of each source is full again (ITU-T I.371, as in the program).
    buckets: Mutex<HashMap<IpAddr, Instant>>,
}

impl Admission {
    /// Whether this client may connect now.
    pub(in crate::proxy) fn admits(&self, guard: &Guard, client: IpAddr, now: Instant) -> bool {
        let client = client.to_canonical();
        if !is_allowed(guard, client) {
            return false;
        }
        let Some((rate, burst)) = guard.rate else { return true };
        let token = Duration::from_secs(1) / rate.max(1);
        let most = token * burst;
        // Each change leaves it whole.
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MOST_SOURCES {
            buckets.retain(|_, full| *full > now);
            if buckets.len() >= MOST_SOURCES {
                buckets.clear();
            }
        }
        let full = buckets.entry(limited(client)).or_insert(now);
        let missing = full.saturating_duration_since(now);
        // More than a bucket holds is missing only if it was a larger one, before a reload.
        let missing = if missing > most { Duration::ZERO } else { missing };
        if missing + token > most {
            return false;
        }
        *full = now + missing + token;
        true
    }
}

/// The longest prefix decides.
fn is_allowed(guard: &Guard, client: IpAddr) -> bool {
    let networks = guard.sources.iter().filter(|(network, _)| contains(*network, client));
    networks.max_by_key(|((_, length), _)| *length).map_or(guard.others, |(_, allowed)| *allowed)
}

/// A household has a /64.
fn limited(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_decides() {
        let guard = Guard {
            sources: vec![
                ((ip("198.51.100.0"), 24), true),
                ((ip("198.51.100.128"), 25), false),
                ((ip("198.51.100.200"), 32), true),
            ],
            others: false,
            rate: None,
        };
        let admission = Admission::default();
        for (client, admitted) in [
            ("198.51.100.1", true),
            ("::ffff:198.51.100.1", true),
            ("198.51.100.129", false),
            ("198.51.100.200", true),
            ("203.0.113.1", false),
            ("2001:db8::1", false),
        ] {
            let now = Instant::now();
            assert_eq!(admission.admits(&guard, ip(client), now), admitted, "{client}");
        }
        let open = Guard { others: true, ..Guard::default() };
        assert!(admission.admits(&open, ip("2001:db8::1"), Instant::now()));
    }

    #[test]
    fn each_source_has_its_rate() {
        let guard = Guard { sources: Vec::new(), others: true, rate: Some((10, 3)) };
        let admission = Admission::default();
        let begun = Instant::now();
        let asked = |client: &str, millis| {
            admission.admits(&guard, ip(client), begun + Duration::from_millis(millis))
        };
        for client in ["198.51.100.1", "198.51.100.2", "2001:db8::1"] {
            let taken: Vec<_> = (0..4).map(|_| asked(client, 0)).collect();
            assert_eq!(taken, [true, true, true, false], "{client}");
        }
        assert!(!asked("2001:db8::2", 0), "a household has one bucket");
        assert!(!asked("198.51.100.1", 99));
        assert!(asked("198.51.100.1", 100));
        assert!(!asked("198.51.100.1", 150));
    }
}
