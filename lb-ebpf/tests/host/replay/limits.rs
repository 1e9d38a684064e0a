//! When a connection is not tried at another backend, and at which.

use super::*;

#[test]
fn no_backend_is_tried_twice() {
    for balance in [Balance::RoundRobin, Balance::Maglev, Balance::Random, Balance::LeastConn] {
        for net in Net::both() {
            let host = balanced(net, balance, 4);
            let syn = syn(&net);
            let mut tried = vec![];
            let mut connection = begin(&host, &syn);
            for _ in 0..2 {
                tried.push(connection.backend);
                connection = assert_replayed(&host, &refusal(&host, &connection), &syn, &tried);
            }
            // All three have refused: now the client is told.
            let last = refusal(&host, &connection);
            assert_eq!(host.forwarded(&last), net.at_client(&last, net.client).build());
            let stats = host.tables.service_stats(0);
            assert_eq!((stats.replayed, stats.not_replayed), (2, 1));
            assert_eq!((1..=3).map(|id| host.tables.active(id)).sum::<u64>(), 0);
            host.assert_counts_agree();
        }
    }
}

#[test]
fn not_more_often_than_the_service_says() {
    for net in Net::both() {
        for tries in 0..=1 {
            let host = host(net, tries);
            let syn = syn(&net);
            let mut connection = begin(&host, &syn);
            if tries == 1 {
                connection = assert_replayed(
                    &host,
                    &refusal(&host, &connection),
                    &syn,
                    &[connection.backend],
                );
            }
            let last = refusal(&host, &connection);
            assert_eq!(host.forwarded(&last), net.at_client(&last, net.client).build());
            let stats = host.tables.service_stats(0);
            assert_eq!(stats.replayed, u64::from(tries));
            // Who switched it off is not told that it did not happen.
            assert_eq!(stats.not_replayed, u64::from(tries));
            assert_eq!(host.tables.signals(connection.backend).refused, 1);
            host.assert_counts_agree();
            assert_eq!(host.tables.active(connection.backend), 0);
        }
    }
}

#[test]
fn not_to_a_backend_that_cannot_take_it() {
    for balance in [Balance::RoundRobin, Balance::LeastConn] {
        for flag in [FORWARD, RESOLVED] {
            let net = Net::v4();
            let mut host = balanced(net, balance, 3);
            let syn = syn(&net);
            let first = begin(&host, &syn);
            let unfit = first.backend % 3 + 1;
            host.tables.set_flag(unfit, flag, false);
            let refusal_frame = refusal(&host, &first);
            let second = assert_replayed(&host, &refusal_frame, &syn, &[first.backend, unfit]);
            let last = refusal(&host, &second);
            assert_eq!(host.forwarded(&last), net.at_client(&last, net.client).build());
        }
    }
}

#[test]
fn the_budget_is_a_share_of_the_connections() {
    let net = Net::v4();
    let host = host(net, 3);
    let full = REPLAY_BUDGET / REPLAY_COST;
    let mut replayed = 0;
    // Every connection is refused everywhere: two replays each, until the budget is used up.
    for number in 0..2000_u16 {
        let client = net.other_client(number, 20_000);
        let syn = Frame::syn(client, net.vip).numbers(ISN, 0);
        let mut connection = Connection { client, ..begin(&host, &syn) };
        for _ in 0..2 {
            let out = host.forwarded(&refusal(&host, &connection));
            if host.tables.service_stats(0).replayed == replayed {
                break;
            }
            replayed += 1;
            connection.backend = host.backend_of(&out);
            connection.port = host.port(&out);
        }
        let _ = host.run(&host.up(&connection, RST));
    }
    // What there was at first, and 20 % of the connections since.
    let expected = full + 2000 / 5;
    assert!(replayed.abs_diff(expected) <= 1, "{replayed} instead of {expected}");
    assert!(host.tables.service_stats(0).not_replayed > 0);
    host.assert_counts_agree();
}

#[test]
fn a_silent_backend_has_as_much_time_again_when_the_budget_is_used_up() {
    let net = Net::v4();
    let setup = net.setup(Balance::RoundRobin).replays(3, 0);
    let host = Host { net, tables: FakeTables::new(&setup) };
    for _ in 0..REPLAY_BUDGET / REPLAY_COST {
        assert!(host.tables.spend_replay(0));
    }
    let syn = syn(&net);
    let first = begin(&host, &syn);
    let again = net.at_backend(&syn, first.backend, first.port).build();
    for round in 1..=3_u64 {
        host.tables.set_now_ns(START_NS + round * (OVERDUE_NS - START_NS));
        assert_eq!(host.forwarded(&syn), again);
        assert_eq!(host.forwarded(&syn), again);
        assert_eq!(host.tables.service_stats(0).not_replayed, round);
    }
    assert_eq!(host.tables.signals(first.backend).unanswered, 1, "each connection once");
    host.tables.earn_replays(0, REPLAY_COST);
    host.tables.set_now_ns(START_NS + 4 * (OVERDUE_NS - START_NS));
    assert_replayed(&host, &syn, &syn, &[first.backend]);
}

#[test]
fn never_with_data() {
    for net in Net::both() {
        let host = host(net, 3);
        let first = begin(&host, &syn(&net).payload(b"early data"));
        let reset = refusal(&host, &first);
        assert_eq!(host.forwarded(&reset), net.at_client(&reset, net.client).build());
        assert_eq!(host.tables.service_stats(0).replayed, 0);
        host.assert_counts_agree();
    }
}

#[test]
fn never_after_the_answer() {
    for net in Net::both() {
        let host = host(net, 3);
        let syn = syn(&net);
        let first = begin(&host, &syn);
        host.forwarded(&host.answer(&first));
        host.tables.set_now_ns(OVERDUE_NS);
        assert_eq!(
            host.forwarded(&syn),
            net.at_backend(&syn, first.backend, first.port).build(),
            "it belongs to the connection"
        );
        let reset = refusal(&host, &first);
        assert_eq!(host.forwarded(&reset), net.at_client(&reset, net.client).build());
        assert_eq!(host.tables.service_stats(0).replayed, 0);
        let signals = host.tables.signals(first.backend);
        assert_eq!((signals.resets, signals.refused, signals.unanswered), (1, 0, 0));
        host.assert_counts_agree();
    }
}

#[test]
fn a_full_table_takes_no_other_half() {
    for net in Net::both() {
        let host = host(net, 3);
        let first = begin(&host, &syn(&net));
        host.tables.v4.limit(usize::MAX, 2);
        host.tables.v6.limit(usize::MAX, 2);
        let reset = refusal(&host, &first);
        assert_eq!(host.forwarded(&reset), net.at_client(&reset, net.client).build());
        assert_eq!(host.tables.service_stats(0).not_replayed, 1);
        host.assert_counts_agree();
        assert_eq!(host.tables.active(first.backend), 0);
    }
}
