//! How new connections are spread.

use std::collections::BTreeMap;

use lb_common::{
    backend::{FORWARD, RESOLVED},
    limits::LEAST_CONN_SCAN,
    reason::Reason,
    service::{Balance, Service},
};
use lb_ebpf::{
    fake::{FakeTables, Frame, Net, Setup, setup::backend},
    family::protocol,
    packet::tcp_flags::RST,
    select::select,
    tables::Tables,
};

use crate::driver::Host;

fn shares(picks: impl Iterator<Item = u32>) -> BTreeMap<u32, u32> {
    let mut shares = BTreeMap::new();
    for id in picks {
        *shares.entry(id).or_default() += 1;
    }
    shares
}

fn with_table(balance: Balance, table: &[u32]) -> (FakeTables, Service) {
    let net = Net::v4();
    let mut setup = Setup::default().vip(net.vip.ip());
    for id in table {
        if !setup.backends.iter().any(|(other, _)| other == id) {
            setup = setup.backend(*id, backend(net.backends[0]));
        }
    }
    let setup = setup.service(net.vip, protocol::TCP, balance, table);
    let service = setup.services[0].1;
    (FakeTables::new(&setup), service)
}

/// Hashes that are spread over all numbers.
fn hashes(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| number.wrapping_mul(0x9e37_79b9))
}

#[test]
fn round_robin_follows_the_schedule() {
    let (tables, service) = with_table(Balance::RoundRobin, &[5, 5, 6, 5, 7]);
    let picks: Vec<_> = (0..10).map(|_| select(&tables, &service, 0)).collect();
    let turn = [5, 5, 6, 5, 7].map(Some);
    assert_eq!(picks, [turn, turn].concat());
}

#[test]
fn services_take_turns_of_their_own() {
    let net = Net::v4();
    let host = Host::balanced(net, Balance::RoundRobin);
    let tcp: Vec<_> =
        (0..4).map(|number| host.begin(net.other_client(number, 5000)).backend).collect();
    assert_eq!(tcp, [1, 2, 3, 1]);
    let udp = host.forwarded(&Frame::udp(net.client, net.vip, b"x"));
    assert_eq!(host.backend_of(&udp), 1);
}

#[test]
fn random_takes_slots_in_proportion() {
    let (tables, service) = with_table(Balance::Random, &[1, 2, 2, 3, 3, 3]);
    let shares = shares((0..60_000).filter_map(|_| select(&tables, &service, 0)));
    for (id, weight) in [(1, 1), (2, 2), (3, 3)] {
        let expected = 10_000 * weight;
        assert!(shares[&id].abs_diff(expected) < expected / 20, "{shares:?}");
    }
}

#[test]
fn maglev_takes_the_slot_of_the_hash() {
    let (tables, service) = with_table(Balance::Maglev, &[1, 2, 2, 3]);
    let shares = shares(hashes(40_000).filter_map(|hash| select(&tables, &service, hash)));
    for (id, expected) in [(1, 10_000_u32), (2, 20_000), (3, 10_000)] {
        assert!(shares[&id].abs_diff(expected) < expected / 50, "{shares:?}");
    }
    for hash in hashes(100) {
        assert_eq!(select(&tables, &service, hash), select(&tables, &service, hash));
    }
}

#[test]
fn maglev_gives_a_tuple_the_same_backend_on_every_node() {
    for net in Net::both() {
        let (one, two) =
            (Host::balanced(net, Balance::Maglev), Host::balanced(net, Balance::Maglev));
        // The nodes have seen different traffic before.
        for number in 1000..1100 {
            two.begin(net.other_client(number, 1234));
        }
        let mut shares = BTreeMap::<u32, u32>::new();
        for number in 0..900 {
            let client = net.other_client(number, 20_000 + number);
            let backend = one.begin(client).backend;
            assert_eq!(backend, two.begin(client).backend);
            *shares.entry(backend).or_default() += 1;
        }
        assert!(shares.values().all(|count| count.abs_diff(300) < 75), "{shares:?}");
    }
}

#[test]
fn least_conn_fills_in_proportion_to_weight() {
    for net in Net::both() {
        let setup = net.setup(Balance::LeastConn).change(2, |backend| backend.weight = 3);
        let host = Host { net, tables: FakeTables::new(&setup) };
        for number in 0..500 {
            host.connect(net.other_client(number, 30_000));
        }
        assert_eq!([1, 2, 3].map(|id| host.tables.active(id)), [100, 300, 100]);
    }
}

#[test]
fn least_conn_goes_where_connections_ended() {
    let net = Net::v4();
    let host = Host::balanced(net, Balance::LeastConn);
    let connections: Vec<_> =
        (0..30).map(|number| host.connect(net.other_client(number, 30_000))).collect();
    assert_eq!([1, 2, 3].map(|id| host.tables.active(id)), [10; 3]);
    for connection in connections.iter().filter(|connection| connection.backend == 3) {
        host.forwarded(&host.down(connection, RST));
    }
    for number in 0..10 {
        assert_eq!(host.connect(net.other_client(100 + number, 30_000)).backend, 3);
    }
    assert_eq!([1, 2, 3].map(|id| host.tables.active(id)), [10; 3]);
}

#[test]
fn least_conn_takes_turns_among_equals() {
    let (tables, service) = with_table(Balance::LeastConn, &[1, 2, 3]);
    let shares = shares((0..30).filter_map(|_| select(&tables, &service, 0)));
    assert_eq!(shares.into_values().collect::<Vec<_>>(), [10; 3]);
}

#[test]
fn a_count_below_zero_is_no_connections() {
    let (tables, service) = with_table(Balance::LeastConn, &[1, 2, 3]);
    for id in [1, 2, 3] {
        tables.open(id);
    }
    for _ in 0..3 {
        tables.close(2);
    }
    assert!((0..30).all(|_| select(&tables, &service, 0) == Some(2)));
}

#[test]
fn least_conn_finds_an_empty_backend_among_more_than_it_looks_at_once() {
    let many = LEAST_CONN_SCAN * 3;
    let table: Vec<u32> = (1..=many).collect();
    let (tables, service) = with_table(Balance::LeastConn, &table);
    for id in 1..=many {
        if id != 70 {
            tables.open(id);
        }
    }
    let found = (0..many).filter(|_| select(&tables, &service, 0) == Some(70)).count();
    assert!(found >= LEAST_CONN_SCAN as usize, "seen in {found} of {many} looks");
}

#[test]
fn a_service_without_backends_refuses() {
    for balance in [Balance::Maglev, Balance::RoundRobin, Balance::Random, Balance::LeastConn] {
        let (tables, service) = with_table(balance, &[]);
        assert_eq!(select(&tables, &service, 1), None);
        let net = Net::v4();
        let host = Host { net, tables };
        host.assert_refused(&Frame::syn(net.client, net.vip), Reason::NoBackend);
        assert_eq!(host.tables.service_stats(0).refused, 1);
    }
}

#[test]
fn a_method_that_this_version_does_not_know_refuses() {
    let (tables, service) = with_table(Balance::Maglev, &[1]);
    assert_eq!(select(&tables, &Service { balance: 9, ..service }, 1), None);
}

#[test]
fn least_conn_passes_over_what_cannot_take_a_packet() {
    for lost in [FORWARD, RESOLVED] {
        for net in Net::both() {
            let mut host = Host::balanced(net, Balance::LeastConn);
            host.connect(net.other_client(500, 30_000));
            // Without connections it would seem to be the least loaded.
            host.tables.set_flag(2, lost, false);
            let backends: Vec<_> = (0..7)
                .map(|number| host.connect(net.other_client(number, 30_000)).backend)
                .collect();
            assert!(!backends.contains(&2), "{backends:?}");
            assert_eq!([1, 2, 3].map(|id| host.tables.active(id)), [4, 0, 4]);
            // With none left, the reason is told.
            host.tables.set_flag(1, lost, false);
            host.tables.set_flag(3, lost, false);
            let reason = if lost == FORWARD { Reason::NoBackend } else { Reason::NoNeighbour };
            host.assert_refused(&Frame::syn(net.client, net.vip), reason);
        }
    }
}

#[test]
fn every_method_serves_with_the_last_backend() {
    for balance in [Balance::Maglev, Balance::RoundRobin, Balance::Random, Balance::LeastConn] {
        let net = Net::v4();
        let mut host = Host::balanced(net, balance);
        for id in [1, 3] {
            host.tables.set_flag(id, FORWARD, false);
        }
        host.tables.set_table(net.vip, protocol::TCP, &[2]);
        for number in 0..20 {
            assert_eq!(host.begin(net.other_client(number, 6000)).backend, 2);
        }
    }
}
