//! Two CPUs with packets of one connection: the other is between any two steps of the first.

use lb_ebpf::{
    Action,
    fake::{Frame, Net, run, setup::INGRESS},
    packet::tcp_flags::{ACK, RST},
    tables::Tables,
};

use crate::driver::Host;

#[test]
fn two_cpus_establish_one_connection() {
    // The client's first acknowledgement and a copy, at once: the other CPU is between any two steps.
    for net in Net::both() {
        for after in 0..2 {
            let host = Host::single(net);
            let connection = host.begin(net.client);
            host.forwarded(&host.answer(&connection));
            let ack = host.up(&connection, ACK);
            let copy = ack.build();
            let seen = net.at_backend(&ack, 1, connection.port).build();
            let expected = seen.clone();
            host.tables.meanwhile(after, move |tables| {
                let (outcome, decision) = run(&copy, INGRESS, tables);
                assert_eq!(decision, Ok(Action::Transmit));
                assert_eq!(outcome.frame, expected);
            });
            let (outcome, decision) = run(&ack.build(), INGRESS, &host.tables);
            assert_eq!(decision, Ok(Action::Transmit));
            assert_eq!(outcome.frame, seen);
            assert_eq!(host.tables.active(1), 1);
            host.assert_counts_agree();
            host.close(&connection);
            assert_eq!(host.tables.active(1), 0);
        }
    }
}

#[test]
fn an_acknowledgement_and_the_backends_reset_at_once() {
    for net in Net::both() {
        for after in 0..2 {
            let host = Host::single(net);
            let connection = host.begin(net.client);
            host.forwarded(&host.answer(&connection));
            let ack = host.up(&connection, ACK);
            let reset = host.down(&connection, RST).build();
            host.tables.meanwhile(after, move |tables| {
                assert_eq!(run(&reset, INGRESS, tables).1, Ok(Action::Transmit));
            });
            assert_eq!(run(&ack.build(), INGRESS, &host.tables).1, Ok(Action::Transmit));
            // Whichever came first, a later segment of the backend meets one count for one entry.
            let _ = host.run(&host.down(&connection, RST));
            let _ = host.run(&Frame::tcp(net.client, net.vip, RST));
            host.assert_counts_agree();
            assert_eq!(host.tables.active(1), 0);
        }
    }
}
