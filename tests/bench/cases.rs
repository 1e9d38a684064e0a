//! What is measured.

use std::net::{IpAddr, SocketAddr};

use anyhow::ensure;
use lb_common::reason::Reason;

use crate::{
    net::{
        BACKEND_MAC, BACKEND_PORT, CLIENT_MAC, CLOSED_PORT, Connection, LEAST_CONN_PORT, LOCAL_MAC,
        PORT, Version,
    },
    packets::{self, ACK, Carried, Packet, SYN},
    plan::{FIRST_PORT, PORT_BITS, Plan},
    programs::Run,
};

mod scope;
mod selection;
mod steered;

pub(crate) use self::{
    scope::{Order, Scope},
    selection::Selection,
    steered::with_full_tables,
};

/// The program under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Under {
    Ballast,
    Transmit,
    Swap,
    Nat(Version, u8),
    /// A balancer with a flow table and tunnels.
    FlowTable(Version, u8),
    /// A balancer with tunnels and without a flow table.
    Stateless(Version, u8),
}

impl Under {
    /// All programs of the floors' object.
    pub(crate) const FLOORS: [Self; 14] = [
        Self::Transmit,
        Self::Swap,
        Self::Nat(Version::V4, 6),
        Self::Nat(Version::V4, 17),
        Self::Nat(Version::V6, 6),
        Self::Nat(Version::V6, 17),
        Self::FlowTable(Version::V4, 6),
        Self::FlowTable(Version::V4, 17),
        Self::FlowTable(Version::V6, 6),
        Self::FlowTable(Version::V6, 17),
        Self::Stateless(Version::V4, 6),
        Self::Stateless(Version::V4, 17),
        Self::Stateless(Version::V6, 6),
        Self::Stateless(Version::V6, 17),
    ];

    /// As its object calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ballast => lb_common::names::PROGRAM,
            Self::Transmit => "floor_tx",
            Self::Swap => "floor_swap",
            Self::Nat(Version::V4, 6) => "floor_nat_tcp4",
            Self::Nat(Version::V4, _) => "floor_nat_udp4",
            Self::Nat(Version::V6, 6) => "floor_nat_tcp6",
            Self::Nat(Version::V6, _) => "floor_nat_udp6",
            Self::FlowTable(Version::V4, 6) => "floor_flow_tcp4",
            Self::FlowTable(Version::V4, _) => "floor_flow_udp4",
            Self::FlowTable(Version::V6, 6) => "floor_flow_tcp6",
            Self::FlowTable(Version::V6, _) => "floor_flow_udp6",
            Self::Stateless(Version::V4, 6) => "floor_hash_tcp4",
            Self::Stateless(Version::V4, _) => "floor_hash_udp4",
            Self::Stateless(Version::V6, 6) => "floor_hash_tcp6",
            Self::Stateless(Version::V6, _) => "floor_hash_udp6",
        }
    }
}

/// What proves that each run took the path that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    None,
    Forward,
    Return,
    Connections,
    Reason(Reason),
    Floor,
}

/// What must come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The packet as it went in.
    Same(u32),
    /// MAC addresses changed over.
    Swapped,
    /// A packet of a known flow, with these MAC addresses (source, destination).
    Translated((packets::Mac, packets::Mac)),
    /// A packet to any of the backends.
    Connected,
    /// The packet inside another, to any of the backends; behind a UDP header or not.
    Inside { gue: bool },
    /// The packet to any of the backends, with other MAC addresses.
    Direct,
    /// A reset.
    Reset,
}

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// Direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Forward,
    Return,
}

/// Most that a case may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    /// Its net, in multiples of its floor's net.
    Floor(f64),
    /// Its gross, in multiples of the trampoline with `return XDP_TX`.
    Transmit(f64),
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Name in the table and in JSON; the same in every scope.
    pub(crate) name: String,
    /// Name of the case that this one is compared with.
    pub(crate) floor: Option<String>,
    /// Most that it may cost, in multiples of what it is compared with.
    pub(crate) bound: Option<Bound>,
    pub(crate) version: Version,
    pub(crate) under: Under,
    pub(crate) plan: Plan,
    pub(crate) counter: Counter,
    /// Runs before measuring; they are checked.
    pub(crate) warm_up: u32,
    /// Its runs cost much: so many times fewer.
    pub(crate) fewer: u32,
    direction: Direction,
    outcome: Outcome,
}

/// Bound of the known path of NAT: so many times its floor.
const KNOWN_BOUND: f64 = 1.25;

/// New tuples, of which none comes twice within a run of the benchmark.
const NEW_TUPLES: u32 = 1 << 26;

/// Enough new connections to fill the half-open table, which then evicts one for each.
const FILLS_HALF_OPEN: u32 = 100_000;

/// The trampoline with nothing behind it.
pub(crate) fn baseline(version: Version) -> String {
    match version {
        Version::V4 => "return XDP_TX, v4".to_owned(),
        Version::V6 => "return XDP_TX, v6".to_owned(),
    }
}

/// The cases of a scope, in the order of the table.
pub(crate) fn of(scope: Scope, order: Order) -> Vec<Case> {
    let walk = Walk {
        flows: scope.connections,
        stride: order.stride(scope.connections),
        one_by_one: order == Order::OneByOne,
    };
    let mut cases = vec![];
    for version in [Version::V4, Version::V6] {
        cases.push(walk.transmit(version));
    }
    cases.push(walk.swap());
    for version in [Version::V4, Version::V6] {
        for carried in scope.carried() {
            let carried = *carried;
            cases.push(walk.floor(version, carried));
            cases.push(walk.known(version, carried, Direction::Forward));
            cases.push(walk.known(version, carried, Direction::Return));
        }
    }
    if order == Order::OneByOne {
        return cases;
    }
    for version in [Version::V4, Version::V6] {
        for carried in scope.carried() {
            let carried = *carried;
            let one = scope.connections == 1;
            cases.push(walk.flow_table(version, carried));
            cases.push(walk.stateless(version, carried));
            cases.push(walk.tunnel(version, carried, one));
            if one {
                cases.push(walk.gue(version, carried));
            }
            cases.push(walk.direct(version, carried));
        }
    }
    if scope.connections == 1 {
        for version in [Version::V4, Version::V6] {
            cases.push(Walk::connect("new flow", version, PORT));
            cases.push(Walk::connect("new flow, least_conn", version, LEAST_CONN_PORT));
            cases.push(Walk::steered_new(version));
            cases.push(walk.refused(version));
            cases.push(walk.closed(version));
            cases.push(walk.not_ours(version));
        }
        cases.push(walk.arp());
    }
    cases
}

/// A way through the flows.
#[derive(Clone, Copy, Debug)]
struct Walk {
    flows: u32,
    stride: u32,
    one_by_one: bool,
}

impl Walk {
    fn transmit(self, version: Version) -> Case {
        Case {
            under: Under::Transmit,
            outcome: Outcome::Same(XDP_TX),
            ..self.case(baseline(version), version, Carried::Tcp(ACK), Direction::Forward, PORT)
        }
    }

    fn swap(self) -> Case {
        Case {
            under: Under::Swap,
            outcome: Outcome::Swapped,
            ..self.case(
                "parse + MAC swap, v4".to_owned(),
                Version::V4,
                Carried::Tcp(ACK),
                Direction::Forward,
                PORT,
            )
        }
    }

    fn floor(self, version: Version, carried: Carried) -> Case {
        Case {
            under: Under::Nat(version, carried.protocol()),
            // The floor takes both MAC addresses from the flow, whichever way it leads.
            outcome: Outcome::Translated((CLIENT_MAC, LOCAL_MAC)),
            counter: Counter::Floor,
            ..self.case(floor_name(version, carried), version, carried, Direction::Forward, PORT)
        }
    }

    fn known(self, version: Version, carried: Carried, direction: Direction) -> Case {
        let (name, counter, macs) = match direction {
            Direction::Forward => ("to backend", Counter::Forward, (LOCAL_MAC, BACKEND_MAC)),
            Direction::Return => ("to client", Counter::Return, (LOCAL_MAC, CLIENT_MAC)),
        };
        Case {
            floor: Some(floor_name(version, carried)),
            bound: Some(Bound::Floor(KNOWN_BOUND)),
            outcome: Outcome::Translated(macs),
            counter,
            ..self.case(
                format!("{} known, {name}", label(version, carried)),
                version,
                carried,
                direction,
                PORT,
            )
        }
    }

    fn connect(name: &str, version: Version, port: u16) -> Case {
        let walk = Self { flows: NEW_TUPLES, stride: 1, one_by_one: false };
        let carried = Carried::Tcp(SYN);
        // Beyond the known flows, so that none is met.
        let mut case = walk.case(
            format!("{} {name}", label(version, carried)),
            version,
            carried,
            Direction::Forward,
            port,
        );
        case.plan.position = 1 << 21;
        Case {
            outcome: Outcome::Connected,
            counter: Counter::Connections,
            warm_up: FILLS_HALF_OPEN,
            fewer: 4,
            ..case
        }
    }

    fn refused(self, version: Version) -> Case {
        let carried = Carried::Tcp(ACK);
        let mut case = self.case(
            format!("{} unknown, answered RST", label(version, carried)),
            version,
            carried,
            Direction::Forward,
            LEAST_CONN_PORT,
        );
        case.outcome = Outcome::Reset;
        case.counter = Counter::Reason(Reason::NoFlow);
        case
    }

    fn closed(self, version: Version) -> Case {
        let carried = Carried::Tcp(SYN);
        Case {
            outcome: Outcome::Same(XDP_PASS),
            counter: Counter::Reason(Reason::NoService),
            bound: Some(Bound::Transmit(2.0)),
            ..self.case(
                format!("{} no service", label(version, carried)),
                version,
                carried,
                Direction::Forward,
                CLOSED_PORT,
            )
        }
    }

    fn not_ours(self, version: Version) -> Case {
        let carried = Carried::Tcp(ACK);
        let mut case = self.case(
            format!("{} not ours", label(version, carried)),
            version,
            carried,
            Direction::Forward,
            PORT,
        );
        let (src, dst) = packets::endpoints(&case.plan.packet);
        let dst = SocketAddr::new(version.elsewhere(), dst.port());
        case.plan.packet = packets::segment((CLIENT_MAC, LOCAL_MAC), src, dst, carried);
        Case {
            outcome: Outcome::Same(XDP_PASS),
            counter: Counter::Reason(Reason::NotOurs),
            bound: Some(Bound::Transmit(2.0)),
            ..case
        }
    }

    fn arp(self) -> Case {
        let mut case =
            self.case("ARP".to_owned(), Version::V4, Carried::Tcp(ACK), Direction::Forward, PORT);
        case.plan.packet = packets::arp((CLIENT_MAC, LOCAL_MAC));
        Case { outcome: Outcome::Same(XDP_PASS), counter: Counter::Reason(Reason::NotIp), ..case }
    }

    /// A case of the data path. `port` is that of the floating address.
    fn case(
        self,
        name: String,
        version: Version,
        carried: Carried,
        direction: Direction,
        port: u16,
    ) -> Case {
        let first = Connection::new(version, 0);
        let listen = SocketAddr::new(version.listens(port), port);
        let (src, dst, macs, ports, port_shift) = match direction {
            Direction::Forward => {
                (first.client, listen, (CLIENT_MAC, LOCAL_MAC), u32::from(port), 16)
            }
            Direction::Return => (
                first.backend,
                first.nat,
                (BACKEND_MAC, LOCAL_MAC),
                u32::from(BACKEND_PORT) << 16,
                0,
            ),
        };
        let address = match src.ip() {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits() as u64,
        };
        Case {
            name,
            floor: None,
            bound: None,
            version,
            under: Under::Ballast,
            plan: Plan {
                address,
                ports,
                port_shift,
                flows: self.flows,
                stride: self.stride,
                position: 0,
                one_by_one: self.one_by_one.into(),
                packet: packets::segment(macs, src, dst, carried),
            },
            counter: Counter::None,
            warm_up: self.flows.max(1000),
            fewer: 1,
            direction,
            outcome: Outcome::Same(XDP_PASS),
        }
    }
}

impl Case {
    /// The packet that the trampoline makes of a flow.
    pub(crate) fn input(&self, flow: u32) -> Packet {
        let Plan { address, ports, port_shift, mut packet, .. } = self.plan;
        let address = address + u64::from(flow >> PORT_BITS);
        let port = FIRST_PORT + flow % (1 << PORT_BITS);
        let ports = (ports + (port << port_shift)).to_be_bytes();
        match self.version {
            Version::V4 => {
                packet[26..30].copy_from_slice(&(address as u32).to_be_bytes());
                packet[34..38].copy_from_slice(&ports);
            }
            Version::V6 => {
                packet[30..38].copy_from_slice(&address.to_be_bytes());
                packet[54..58].copy_from_slice(&ports);
            }
        }
        packet
    }

    /// Checks what became of the packet of a flow.
    pub(crate) fn check(&self, flow: u32, run: &Run) -> anyhow::Result<()> {
        let input = self.input(flow);
        let action = match self.outcome {
            Outcome::Same(action) => action,
            _ => XDP_TX,
        };
        ensure!(run.action == action, "the action is {}, not {action}", run.action);
        let connection = Connection::new(self.version, flow);
        match self.outcome {
            Outcome::Same(_) => {
                ensure!(run.output == input, "the packet changed: {:02x?}", run.output);
                Ok(())
            }
            Outcome::Swapped => {
                let mut expected = input;
                expected[0..6].copy_from_slice(&input[6..12]);
                expected[6..12].copy_from_slice(&input[0..6]);
                ensure!(run.output == expected, "came out: {:02x?}", run.output);
                Ok(())
            }
            Outcome::Translated(macs) => {
                let (src, dst) = match self.direction {
                    Direction::Forward => (connection.nat, connection.backend),
                    Direction::Return => (connection.listen, connection.client),
                };
                packets::check_translated(&input, &run.output, macs, src, dst)
            }
            Outcome::Connected => {
                let (src, dst) = packets::endpoints(&run.output);
                ensure!(src.ip() == self.version.vip(), "the source is {src}");
                ensure!(dst.port() == BACKEND_PORT, "the destination is {dst}");
                packets::check_translated(&input, &run.output, (LOCAL_MAC, BACKEND_MAC), src, dst)
            }
            Outcome::Inside { gue } => {
                let outer = packets::Outer {
                    macs: (LOCAL_MAC, BACKEND_MAC),
                    src: self.version.local(),
                    gue,
                };
                packets::check_inside(&input, &run.output, outer)
            }
            Outcome::Direct => packets::check_direct(&input, &run.output, (LOCAL_MAC, BACKEND_MAC)),
            Outcome::Reset => {
                let (src, dst) = packets::endpoints(&input);
                packets::check_reset(&run.output, dst, src)
            }
        }
    }
}

fn floor_name(version: Version, carried: Carried) -> String {
    format!("{} floor: look-up + NAT", label(version, carried))
}

fn label(version: Version, carried: Carried) -> &'static str {
    match (version, carried) {
        (Version::V4, Carried::Tcp(_)) => "TCP v4",
        (Version::V4, Carried::Udp) => "UDP v4",
        (Version::V6, Carried::Tcp(_)) => "TCP v6",
        (Version::V6, Carried::Udp) => "UDP v6",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_floor_is_a_case_of_the_same_scope() {
        let columns = Scope::ALL
            .into_iter()
            .flat_map(|scope| scope.orders().iter().map(move |order| of(scope, *order)));
        for cases in columns.chain([with_full_tables()]) {
            {
                let names: HashSet<_> = cases.iter().map(|case| case.name.as_str()).collect();
                assert_eq!(names.len(), cases.len(), "names are unique");
                for case in &cases {
                    assert!(names.contains(baseline(case.version).as_str()));
                    assert!(case.floor.as_ref().is_none_or(|floor| names.contains(floor.as_str())));
                }
            }
        }
    }
}
