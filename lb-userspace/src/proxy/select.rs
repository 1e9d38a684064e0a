//! Which backend a request goes to. Pure.

use std::{cmp::Ordering, hash::Hasher as _, net::IpAddr};

use lb_common::service::Balance;

/// A backend that a request may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Its place among the service's backends.
    pub(super) place: usize,
    /// 1 and up.
    pub(super) weight: u32,
    /// Requests that it has now.
    pub(super) active: u32,
    /// Microseconds that it takes to answer; 0 if that is not known.
    pub(super) micros: u32,
}

/// Chooses where the request is answered soonest: each that is there already takes its time, and more of
/// it where the weight is smaller. One that is not known is found out about.
pub(super) fn soonest(candidates: &[Candidate], turn: u32) -> Option<usize> {
    let cost = |it: &Candidate| (u128::from(it.active) + 1) * u128::from(it.micros);
    let compare = |one: &Candidate, other: &Candidate| {
        let share = |it: &Candidate, other: &Candidate| cost(it) * u128::from(other.weight);
        share(one, other).cmp(&share(other, one))
    };
    let best = candidates.iter().min_by(|one, other| compare(one, other))?;
    let equals = candidates.iter().filter(|it| compare(it, best) == Ordering::Equal);
    // Of several that nothing is known of, the least loaded.
    let least = equals.clone().min_by(|one, other| load(one, other))?;
    in_turn(equals.filter(|it| load(it, least) == Ordering::Equal), turn)
}

/// Chooses. `turn` goes up by one with each choice; `client` is who asks.
pub(super) fn choose(
    balance: Balance,
    candidates: &[Candidate],
    turn: u32,
    client: IpAddr,
) -> Option<usize> {
    match balance {
        Balance::LeastConn => {
            let least = candidates.iter().min_by(|one, other| load(one, other))?;
            let equals = candidates.iter().filter(|it| load(it, least) == Ordering::Equal);
            in_turn(equals, turn)
        }
        Balance::RoundRobin => in_turn(candidates.iter(), turn),
        Balance::Random => in_turn(candidates.iter(), fastrand::u32(..)),
        Balance::Maglev => {
            let best = candidates
                .iter()
                .max_by(|one, other| affinity(one, client).total_cmp(&affinity(other, client)));
            best.map(|it| it.place)
        }
    }
}

/// Compares the requests for the weight, with the one that is to come: an idle backend of twice the
/// weight comes first.
fn load(one: &Candidate, other: &Candidate) -> Ordering {
    let share =
        |it: &Candidate, other: &Candidate| (u64::from(it.active) + 1) * u64::from(other.weight);
    share(one, other).cmp(&share(other, one))
}

/// The turn's place in the sum of the weights. Multiples of the golden ratio are spread evenly over any
/// interval (Knuth, TAOCP vol. 3, 6.4, theorem S), so the weights are kept also over a few turns.
fn in_turn<'a>(
    candidates: impl Iterator<Item = &'a Candidate> + Clone,
    turn: u32,
) -> Option<usize> {
    let total: u64 = candidates.clone().map(|it| u64::from(it.weight)).sum();
    let point = u64::from(turn.wrapping_mul(0x9e37_79b9));
    let mut left = (point * total) >> 32;
    for candidate in candidates {
        match left.checked_sub(candidate.weight.into()) {
            Some(rest) => left = rest,
            None => return Some(candidate.place),
        }
    }
    None
}

/// How much a client belongs to a backend: weighted rendezvous hashing (Schindelhauer and Schomaker,
/// SPAA 2005). A backend that goes or comes moves only its own clients.
fn affinity(candidate: &Candidate, client: IpAddr) -> f64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    match client {
        IpAddr::V4(address) => hasher.write(&address.octets()),
        // A household has a /64.
        IpAddr::V6(address) => hasher.write(&address.octets()[..8]),
    }
    hasher.write(&candidate.place.to_le_bytes());
    // Finalizer of MurmurHash3, as the low bits of FNV are weak.
    let mut hash = hasher.finish();
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    let unit = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(candidate.weight) / unit.ln()
}

/// FNV-1a, 64 bits.
struct Fnv(u64);

impl std::hash::Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn candidates(weights_and_active: &[(u32, u32)]) -> Vec<Candidate> {
        let all = weights_and_active.iter().enumerate();
        all.map(|(place, &(weight, active))| Candidate { place, weight, active, micros: 0 })
            .collect()
    }

    fn shares(balance: Balance, candidates: &[Candidate], rounds: u32) -> Vec<u32> {
        let mut shares = vec![0; candidates.len()];
        for turn in 0..rounds {
            shares[choose(balance, candidates, turn, CLIENT).unwrap()] += 1;
        }
        shares
    }

    #[test]
    fn nobody_is_chosen_of_none() {
        for balance in [Balance::LeastConn, Balance::RoundRobin, Balance::Random, Balance::Maglev] {
            assert_eq!(choose(balance, &[], 7, CLIENT), None);
        }
    }

    #[test]
    fn the_least_loaded_for_its_weight_is_chosen() {
        for (given, chosen) in [
            (&[(16, 3), (16, 2), (16, 9)][..], 1),
            (&[(16, 1), (64, 4)], 1),
            (&[(16, 0), (64, 4)], 0),
            (&[(16, 0), (32, 0)], 1),
        ] {
            for turn in 0..9 {
                let choice = choose(Balance::LeastConn, &candidates(given), turn, CLIENT);
                assert_eq!(choice, Some(chosen), "{given:?}");
            }
        }
    }

    #[test]
    fn the_soonest_is_chosen() {
        // Weight, requests, microseconds.
        for (given, chosen) in [
            (&[(16, 0, 100), (16, 0, 90), (16, 0, 200)][..], 1),
            (&[(16, 3, 100), (16, 0, 350), (16, 4, 90)], 1),
            (&[(16, 0, 100), (64, 2, 100)], 1),
            (&[(16, 0, 100), (16, 9, 0)], 1),
            (&[(16, 2, 0), (16, 1, 0)], 1),
        ] {
            let all = given.iter().enumerate();
            let all: Vec<_> = all
                .map(|(place, &(weight, active, micros))| Candidate {
                    place,
                    weight,
                    active,
                    micros,
                })
                .collect();
            for turn in 0..9 {
                assert_eq!(soonest(&all, turn), Some(chosen), "{given:?}");
            }
        }
        assert_eq!(soonest(&[], 3), None);
    }

    #[test]
    fn equals_have_their_turns() {
        let equal = candidates(&[(16, 2), (16, 2), (16, 2), (16, 3)]);
        let shares = shares(Balance::LeastConn, &equal, 300);
        assert_eq!(shares[3], 0);
        assert!(shares[..3].iter().all(|share| (99..=101).contains(share)), "{shares:?}");
    }

    #[test]
    fn turns_follow_the_weights() {
        let weighted = candidates(&[(16, 0), (48, 0), (160, 0)]);
        let taken = shares(Balance::RoundRobin, &weighted, 1400);
        for (share, wanted) in taken.iter().zip([100, 300, 1000_i64]) {
            assert!((i64::from(*share) - wanted).abs() <= 3, "{taken:?}");
        }
        let random = shares(Balance::Random, &weighted, 14_000);
        assert!(random[0] > 700 && random[0] < 1300, "{random:?}");
    }

    #[test]
    fn a_client_stays_with_its_backend_while_others_come_and_go() {
        let all = candidates(&[(16, 0), (16, 0), (32, 0), (16, 0)]);
        let mut shares = [0_i32; 4];
        for last in 0..=u16::MAX {
            let client = IpAddr::from([10, 0, (last >> 8) as u8, last as u8]);
            let chosen = choose(Balance::Maglev, &all, 0, client).unwrap();
            shares[chosen] += 1;
            let fewer: Vec<_> = all.iter().copied().filter(|it| it.place != 1).collect();
            let left = choose(Balance::Maglev, &fewer, 5, client).unwrap();
            assert!(left == chosen || chosen == 1, "{client}");
        }
        let fifth = 65_536 / 5;
        for (share, wanted) in shares.iter().zip([fifth, fifth, 2 * fifth, fifth]) {
            assert!((share - wanted).abs() < fifth / 20, "{shares:?}");
        }
    }
}
