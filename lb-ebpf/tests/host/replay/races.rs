//! Two CPUs with packets of one connection whose backend fails.

use super::*;

#[test]
fn two_copies_of_a_refusal_at_once() {
    for net in Net::both() {
        for after in 0..2 {
            let host = host(net, 3);
            let syn = syn(&net);
            let first = begin(&host, &syn);
            let frame = refusal(&host, &first);
            let copy = frame.build();
            host.tables.meanwhile_at(Step::Replay, after, move |tables| {
                let (outcome, decision) = run(&copy, INGRESS, tables);
                // The one that is first there gives the connection away, the other ends here.
                match after {
                    0 => assert_eq!(outcome.xdp, Xdp::Transmit),
                    _ => assert_eq!(decision, Err(Reason::LateAnswer)),
                }
            });
            let (outcome, decision) = run(&frame.build(), INGRESS, &host.tables);
            match after {
                0 => assert_eq!(decision, Err(Reason::LateAnswer), "{outcome:?}"),
                _ => assert_eq!(decision, Ok(Action::Transmit)),
            }
            assert_one_connection(&host, 1);
        }
    }
}

/// The client has one connection, at a backend that leads back to it; so many replays made it so.
#[track_caller]
fn assert_one_connection(host: &Host, replayed: u64) {
    assert_eq!(host.tables.service_stats(0).replayed, replayed);
    host.assert_counts_agree();
    assert_eq!((1..=3).map(|id| host.tables.active(id)).sum::<u64>(), 1);
    let alive = |state: u32| state & GIVEN_UP == 0;
    let halves = host.tables.v4.half_open().values().filter(|entry| alive(entry.state)).count()
        + host.tables.v6.half_open().values().filter(|entry| alive(entry.state)).count();
    assert_eq!(halves, 2);
}

#[test]
fn a_refusal_and_the_clients_syn_at_once() {
    for net in Net::both() {
        for refusal_first in [true, false] {
            for after in 0..2 {
                let host = host(net, 3);
                let syn = syn(&net);
                let first = begin(&host, &syn);
                host.tables.set_now_ns(OVERDUE_NS);
                let frames = [refusal(&host, &first).build(), syn.build()];
                let [one, other] = if refusal_first { [0, 1] } else { [1, 0] };
                let meanwhile = frames[other].clone();
                host.tables.meanwhile_at(Step::Replay, after, move |tables| {
                    let _ = run(&meanwhile, INGRESS, tables);
                });
                let _ = run(&frames[one], INGRESS, &host.tables);
                assert_one_connection(&host, 1);
            }
        }
    }
}

#[test]
fn a_refusal_and_the_answer_at_once() {
    // A backend that starts just now refuses one copy of the SYN and answers the next.
    for net in Net::both() {
        for after in 0..2 {
            let host = host(net, 3);
            let first = begin(&host, &syn(&net));
            let answer = host.answer(&first).build();
            host.tables.meanwhile_at(Step::Replay, after, move |tables| {
                let (_, decision) = run(&answer, INGRESS, tables);
                match after {
                    0 => assert_eq!(decision, Ok(Action::Transmit)),
                    _ => assert_eq!(decision, Err(Reason::LateAnswer)),
                }
            });
            let reset = refusal(&host, &first);
            let (outcome, decision) = run(&reset.build(), INGRESS, &host.tables);
            assert_eq!(decision, Ok(Action::Transmit));
            if after == 0 {
                // The connection was there, and is reset.
                assert_eq!(outcome.frame, net.at_client(&reset, net.client).build());
                assert_eq!(host.tables.service_stats(0).replayed, 0);
                host.assert_counts_agree();
                assert_eq!((1..=3).map(|id| host.tables.active(id)).sum::<u64>(), 0);
            } else {
                assert_one_connection(&host, 1);
            }
        }
    }
}

#[test]
fn a_refusal_and_the_clients_reset_at_once() {
    for net in Net::both() {
        for after in 0..2 {
            let host = host(net, 3);
            let first = begin(&host, &syn(&net));
            let reset = host.up(&first, RST).numbers(ISN.wrapping_add(1), 0).build();
            host.tables.meanwhile_at(Step::Replay, after, move |tables| {
                let _ = run(&reset, INGRESS, tables);
            });
            let _ = run(&refusal(&host, &first).build(), INGRESS, &host.tables);
            host.assert_counts_agree();
            let open = (1..=3).map(|id| host.tables.active(id)).sum::<u64>();
            // Too late for the connection to the next backend, which the client will reset when that
            // answers.
            assert_eq!(open, after.into());
        }
    }
}

#[test]
fn the_clients_half_is_evicted_meanwhile() {
    for net in Net::both() {
        let host = host(net, 3);
        let first = begin(&host, &syn(&net));
        host.tables.meanwhile_at(Step::Replay, 1, move |tables| {
            for (key, entry) in tables.v4.half_open() {
                if entry.backend == first.backend && entry.state == 0 {
                    assert!(tables.v4.evict_half_open(&key));
                    tables.close(entry.backend);
                }
            }
            for (key, entry) in tables.v6.half_open() {
                if entry.backend == first.backend && entry.state == 0 {
                    assert!(tables.v6.evict_half_open(&key));
                    tables.close(entry.backend);
                }
            }
        });
        let (_, decision) = run(&refusal(&host, &first).build(), INGRESS, &host.tables);
        assert_eq!(decision, Err(Reason::TableFull));
        host.assert_counts_agree();
        assert_eq!((1..=3).map(|id| host.tables.active(id)).sum::<u64>(), 0);
    }
}
