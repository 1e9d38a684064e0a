use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn slots_of(balance: Balance, members: &[Member]) -> Vec<u32> {
    build(balance, members, Density::FULL).slots
}

fn member(host: u32, weight: u32) -> Member {
    let address = IpAddr::from((0x0a00_0000 + host).to_be_bytes());
    let address = SocketAddr::new(address, 8080);
    Member { address, id: 1000 + host, full_weight: weight, weight }
}

fn members(weights: &[u32]) -> Vec<Member> {
    (1..).zip(weights).map(|(host, &weight)| member(host, weight)).collect()
}

fn count(slots: &[u32]) -> BTreeMap<u32, u32> {
    slots.iter().fold(BTreeMap::new(), |mut count, &id| {
        *count.entry(id).or_default() += 1;
        count
    })
}

/// Slots of others than `id` that are the same in both tables, of so many.
fn unmoved(before: &[u32], after: &[u32], id: u32) -> (usize, usize) {
    let others = || before.iter().zip(after).filter(move |(before, _)| **before != id);
    (others().filter(|(before, after)| before == after).count(), others().count())
}

#[test]
fn without_backends_that_serve_there_is_no_table() {
    let idle = Member { weight: 0, ..member(1, 16) };
    for balance in [Balance::Maglev, Balance::RoundRobin, Balance::Random, Balance::LeastConn] {
        assert_eq!(build(balance, &[], Density::FULL), Table::default());
        assert_eq!(build(balance, &[idle], Density::FULL), Table::default());
    }
}

#[test]
fn the_schedule_is_that_of_nginx() {
    // The example in nginx's own source: weights 5, 1, 1 give a a b a c a a.
    let slots = slots_of(Balance::RoundRobin, &members(&[80, 16, 16]));
    assert_eq!(slots, [1001, 1001, 1002, 1001, 1003, 1001, 1001]);
}

#[test]
fn least_conn_lists_each_once() {
    let idle = Member { weight: 0, ..member(9, 16) };
    let members = [members(&[32, 16]), vec![idle]].concat();
    for balance in [Balance::LeastConn, Balance::RoundRobin, Balance::Random, Balance::Maglev] {
        assert_eq!(build(balance, &members, Density::FULL).members, [1001, 1002]);
    }
    assert_eq!(slots_of(Balance::LeastConn, &members), [1001, 1002, 1001]);
}

#[test]
fn a_table_is_the_same_in_every_version() {
    // Nodes of different versions must agree while a cluster is upgraded.
    let slots = slots_of(Balance::Maglev, &members(&[16, 16, 32]));
    assert_eq!(slots.len(), 1021);
    let fingerprint = slots.iter().fold(0, |sum, &id| hash::mix(u64::from(sum), u64::from(id)));
    assert_eq!(fingerprint, FINGERPRINT);
}

const FINGERPRINT: u32 = 2_798_768_231;

#[test]
fn a_backend_taken_out_of_the_configuration_moves_few_slots_of_the_others() {
    let mut kept = (0, 0);
    for start in 0..100 {
        let all: Vec<_> = (0..8).map(|host| member(start * 50 + host, 16)).collect();
        let before = slots_of(Balance::Maglev, &all);
        let (same, of) = unmoved(&before, &slots_of(Balance::Maglev, &all[1..]), all[0].id);
        kept = (kept.0 + same, kept.1 + of);
    }
    assert!(kept.0 * 100 >= kept.1 * 95, "{kept:?}");
}

fn any_weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(1..=4096_u32, 1..40)
}

/// Members of which some serve in part or not at all; the first serves in full.
fn any_members() -> impl Strategy<Value = Vec<Member>> {
    prop::collection::vec((1..=4096_u32, 0..=12_u32), 1..40).prop_map(|weights| {
        let weights = (1..).zip(weights).map(|(host, (weight, tenths))| Member {
            weight: if host == 1 { weight } else { weight * tenths.min(10) / 10 },
            ..member(host, weight)
        });
        weights.collect()
    })
}

proptest! {
    #[test]
    fn maglev_gives_each_its_share(members in any_members()) {
        let slots = slots_of(Balance::Maglev, &members);
        prop_assert_eq!(slots.len() as u32, maglev::table_size(members.len() as u32));
        let total: f64 = members.iter().map(|member| f64::from(member.weight)).sum();
        let count = count(&slots);
        for member in &members {
            let got = count.get(&member.id).copied().unwrap_or(0);
            prop_assert_eq!(got > 0, member.weight > 0);
            let fair = slots.len() as f64 * f64::from(member.weight) / total;
            // Each round may round by one, and what the first rounds is multiplied when few serve.
            let bound = 4.0 + fair * 0.05;
            prop_assert!((f64::from(got) - fair).abs() <= bound, "{got} instead of {fair}");
        }
    }

    #[test]
    fn order_and_identifiers_do_not_matter(members in any_members(), seed in any::<u64>()) {
        let mut other = members.clone();
        fastrand::Rng::with_seed(seed).shuffle(&mut other);
        for member in &mut other {
            member.id += 500;
        }
        for balance in [Balance::Maglev, Balance::RoundRobin, Balance::LeastConn] {
            let here = slots_of(balance, &members);
            let there: Vec<_> = slots_of(balance, &other).iter().map(|id| id - 500).collect();
            prop_assert_eq!(here, there);
        }
    }

    #[test]
    fn schedules_are_bounded_and_keep_the_shares(weights in any_weights()) {
        let members = members(&weights);
        let slots = slots_of(Balance::Random, &members);
        prop_assert!(slots.len() <= Density::FULL.longest_schedule(40) as usize);
        let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        let count = count(&slots);
        for member in &members {
            let got = f64::from(count[&member.id]) / slots.len() as f64;
            let fair = f64::from(member.weight) / total;
            prop_assert!((got - fair).abs() < 0.01, "{got} instead of {fair}");
        }
    }

    #[test]
    fn a_backend_that_goes_down_moves_no_slot_of_the_others(
        weights in prop::collection::vec(1..=256_u32, 2..40), gone in any::<prop::sample::Index>(),
        percent in 0..100_u32,
    ) {
        let before = members(&weights);
        let mut after = before.clone();
        let gone = gone.index(after.len());
        after[gone].weight = after[gone].full_weight * percent / 100;
        let after = slots_of(Balance::Maglev, &after);
        let (same, of) = unmoved(&slots_of(Balance::Maglev, &before), &after, before[gone].id);
        prop_assert_eq!(same, of);
    }
}
