//! A data path with its state, and checks that hold for every packet.

use std::net::SocketAddr;

use lb_common::{
    flow::state,
    reason::{Disposition, Reason},
    service::Balance,
};
use lb_ebpf::{
    Action,
    fake::{FakeTables, Frame, Net, Outcome, Xdp, assert_valid, run, setup::INGRESS},
    packet::tcp_flags::{ACK, FIN},
    tables::Tables,
};

/// A balancer.
pub(crate) struct Host {
    pub(crate) net: Net,
    pub(crate) tables: FakeTables,
}

impl Host {
    /// With one backend, number 1.
    pub(crate) fn single(net: Net) -> Self {
        Self { net, tables: FakeTables::new(&net.single()) }
    }

    /// With three backends, numbers 1 to 3.
    pub(crate) fn balanced(net: Net, balance: Balance) -> Self {
        Self { net, tables: FakeTables::new(&net.setup(balance)) }
    }

    /// Runs a frame through the data path. Checks that it ends in exactly one counter, and that what
    /// leaves is valid.
    pub(crate) fn run(&self, frame: &Frame) -> (Outcome, Result<Action, Reason>) {
        self.run_bytes(&frame.build())
    }

    pub(crate) fn run_bytes(&self, frame: &[u8]) -> (Outcome, Result<Action, Reason>) {
        assert_valid(frame);
        let counted = self.tables.counted();
        let (outcome, decision) = run(frame, INGRESS, &self.tables);
        assert_eq!(self.tables.counted(), counted + 1, "{decision:?} for {frame:02x?}");
        match outcome.xdp {
            Xdp::Transmit | Xdp::Redirect => assert_valid(&outcome.frame),
            Xdp::Pass => assert_eq!(outcome.frame, frame, "a packet that passes is untouched"),
            Xdp::Drop => {}
        }
        (outcome, decision)
    }

    /// The frame that leaves by the interface that it came in by.
    #[track_caller]
    pub(crate) fn forwarded(&self, frame: &Frame) -> Vec<u8> {
        let (outcome, decision) = self.run(frame);
        assert_eq!(decision, Ok(Action::Transmit), "for {frame:?}");
        outcome.frame
    }

    /// Why the frame is not forwarded, and what becomes of it.
    #[track_caller]
    pub(crate) fn refused(&self, frame: &Frame) -> (Reason, Outcome) {
        let (outcome, decision) = self.run(frame);
        (decision.expect_err("not forwarded"), outcome)
    }

    /// A frame is not forwarded for this reason; what becomes of it is as the reason says.
    #[track_caller]
    pub(crate) fn assert_refused(&self, frame: &Frame, expected: Reason) -> Outcome {
        let (reason, outcome) = self.refused(frame);
        assert_eq!(reason, expected, "for {frame:?}");
        match reason.disposition() {
            Disposition::Pass => assert_eq!(outcome.xdp, Xdp::Pass),
            Disposition::Drop | Disposition::TooBig => assert_eq!(outcome.xdp, Xdp::Drop),
            Disposition::Cookie | Disposition::HandOn => assert_eq!(outcome.xdp, Xdp::Transmit),
            Disposition::Reset => assert!(matches!(outcome.xdp, Xdp::Transmit | Xdp::Drop)),
        }
        outcome
    }

    /// The source port in a frame without tags.
    pub(crate) fn port(&self, frame: &[u8]) -> u16 {
        let l4 = 14 + if self.net.vip.is_ipv4() { 20 } else { 40 };
        u16::from_be_bytes([frame[l4], frame[l4 + 1]])
    }

    /// The backend that a frame goes to.
    pub(crate) fn backend_of(&self, frame: &[u8]) -> u32 {
        // By its MAC address, whose last byte is that of its address.
        let last = |address: SocketAddr| match address {
            SocketAddr::V4(address) => address.ip().octets()[3],
            SocketAddr::V6(address) => address.ip().octets()[15],
        };
        let index = self.net.backends.iter().position(|backend| last(*backend) == frame[5]);
        index.expect("a backend's MAC address") as u32 + 1
    }

    /// Opens a TCP connection.
    pub(crate) fn connect(&self, client: SocketAddr) -> Connection {
        let connection = self.begin(client);
        self.forwarded(&self.answer(&connection));
        self.forwarded(&self.up(&connection, ACK));
        connection
    }

    /// Sends the first segment of a TCP connection.
    pub(crate) fn begin(&self, client: SocketAddr) -> Connection {
        let out = self.forwarded(&Frame::syn(client, self.net.vip));
        Connection { client, backend: self.backend_of(&out), port: self.port(&out) }
    }

    /// The backend's answer to the first segment.
    pub(crate) fn answer(&self, connection: &Connection) -> Frame {
        let address = self.net.backends[connection.backend as usize - 1];
        let frame = Frame::syn_ack(address, self.net.nat(connection.port));
        self.net.sent_by_backend(frame, connection.backend)
    }

    /// A segment of the client.
    pub(crate) fn up(&self, connection: &Connection, flags: u8) -> Frame {
        Frame::tcp(connection.client, self.net.vip, flags)
    }

    /// A segment of the backend.
    pub(crate) fn down(&self, connection: &Connection, flags: u8) -> Frame {
        let address = self.net.backends[connection.backend as usize - 1];
        let frame = Frame::tcp(address, self.net.nat(connection.port), flags);
        self.net.sent_by_backend(frame, connection.backend)
    }

    /// Ends a connection in order.
    pub(crate) fn close(&self, connection: &Connection) {
        self.forwarded(&self.up(connection, FIN | ACK));
        self.forwarded(&self.down(connection, FIN | ACK));
        self.forwarded(&self.up(connection, ACK));
    }

    /// Open connections of a backend by the tables themselves: the client's halves that are half-open,
    /// or established and not closed.
    pub(crate) fn open_in_tables(&self, backend: u32) -> u64 {
        let counts = |entry_backend: u32, bits: u32| {
            entry_backend == backend && bits & state::RETURN == 0 && !state::closed(bits)
        };
        let v4 = &self.tables.v4;
        let v6 = &self.tables.v6;
        let halves = v4.flows().values().filter(|e| counts(e.backend, e.state)).count()
            + v4.half_open().values().filter(|e| counts(e.backend, e.state)).count()
            + v6.flows().values().filter(|e| counts(e.backend, e.state)).count()
            + v6.half_open().values().filter(|e| counts(e.backend, e.state)).count();
        halves as u64
    }

    /// The counts of open connections are those of the tables.
    #[track_caller]
    pub(crate) fn assert_counts_agree(&self) {
        for backend in 1..=3 {
            let counted = self.tables.active(backend);
            assert_eq!(counted, self.open_in_tables(backend), "backend {backend}");
        }
    }
}

/// A TCP connection through the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) client: SocketAddr,
    pub(crate) backend: u32,
    /// Port of the floating address that the backend sees.
    pub(crate) port: u16,
}
