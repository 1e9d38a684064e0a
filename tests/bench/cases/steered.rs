//! Packets of steered services, and the floors beside them.

use std::net::SocketAddr;

use lb_common::limits::DEFAULT_FLOWS;

use super::{Bound, Case, Counter, Direction, NEW_TUPLES, Outcome, Under, Walk, label};
use crate::{
    net::{
        CLIENT_MAC, DIRECT_PORT, DISTURBED_PORT, GUE_PORT, LOCAL_MAC, PORT, TUNNEL_PORT, Version,
    },
    packets::{self, ACK, Carried, SYN},
};

/// New connections to steered services, while the flow tables are full. The first fills them, and so
/// takes the flows of other cases out of them.
pub(crate) fn with_full_tables() -> Vec<Case> {
    let walk = Walk { flows: 1, stride: 0, one_by_one: false };
    let mut cases = vec![];
    for version in [Version::V4, Version::V6] {
        cases.push(walk.transmit(version));
        cases.push(Walk::learned(version));
        cases.push(walk.stateless(version, Carried::Tcp(ACK)));
        cases.push(Walk::steered_new(version));
    }
    cases
}

impl Walk {
    pub(super) fn flow_table(self, version: Version, carried: Carried) -> Case {
        Case {
            under: Under::FlowTable(version, carried.protocol()),
            outcome: Outcome::Inside { gue: false },
            counter: Counter::Floor,
            ..self.case(
                flow_table_name(version, carried),
                version,
                carried,
                Direction::Forward,
                PORT,
            )
        }
    }

    pub(super) fn stateless(self, version: Version, carried: Carried) -> Case {
        Case {
            under: Under::Stateless(version, carried.protocol()),
            outcome: Outcome::Inside { gue: false },
            counter: Counter::Floor,
            ..self.case(
                stateless_name(version, carried),
                version,
                carried,
                Direction::Forward,
                TUNNEL_PORT,
            )
        }
    }

    /// A packet of a steered connection. With one flow it is compared with the floor that has a flow
    /// table, with many with the one that has none.
    pub(super) fn tunnel(self, version: Version, carried: Carried, one: bool) -> Case {
        let (floor, bound) = if one {
            (flow_table_name(version, carried), Some(1.2))
        } else {
            (stateless_name(version, carried), self.bound_of_many())
        };
        Case {
            floor: Some(floor),
            bound: bound.map(Bound::Floor),
            outcome: Outcome::Inside { gue: false },
            counter: Counter::Forward,
            ..self.case(
                format!("{} tunnel, IP in IP", label(version, carried)),
                version,
                carried,
                Direction::Forward,
                TUNNEL_PORT,
            )
        }
    }

    pub(super) fn gue(self, version: Version, carried: Carried) -> Case {
        Case {
            floor: Some(flow_table_name(version, carried)),
            outcome: Outcome::Inside { gue: true },
            counter: Counter::Forward,
            ..self.case(
                format!("{} tunnel, GUE", label(version, carried)),
                version,
                carried,
                Direction::Forward,
                GUE_PORT,
            )
        }
    }

    /// Bound of steered packets of a million flows, in multiples of the floor without a flow table.
    fn bound_of_many(self) -> Option<f64> {
        (self.flows == 1_000_000).then_some(1.3)
    }

    pub(super) fn direct(self, version: Version, carried: Carried) -> Case {
        Case {
            floor: Some(stateless_name(version, carried)),
            bound: self.bound_of_many().map(Bound::Floor),
            outcome: Outcome::Direct,
            counter: Counter::Forward,
            ..self.case(
                format!("{} direct", label(version, carried)),
                version,
                carried,
                Direction::Forward,
                DIRECT_PORT,
            )
        }
    }

    /// A new connection in an undisturbed slot.
    pub(super) fn steered_new(version: Version) -> Case {
        let mut case = Self { flows: NEW_TUPLES, stride: 1, one_by_one: false }.tunnel(
            version,
            Carried::Tcp(SYN),
            true,
        );
        case.name = format!("{} new flow, tunnel", label(version, Carried::Tcp(SYN)));
        case.floor = Some(stateless_name(version, Carried::Tcp(ACK)));
        case.bound = Some(Bound::Floor(9.0));
        case.counter = Counter::Connections;
        case.warm_up = 1000;
        case
    }

    /// A new connection in a disturbed slot, which makes an entry.
    fn learned(version: Version) -> Case {
        let mut case = Self::steered_new(version);
        case.name = format!("{} new flow, slot changes", label(version, Carried::Tcp(SYN)));
        case.plan.ports = u32::from(DISTURBED_PORT);
        let (src, dst) = packets::endpoints(&case.plan.packet);
        let dst = SocketAddr::new(dst.ip(), DISTURBED_PORT);
        case.plan.packet = packets::segment((CLIENT_MAC, LOCAL_MAC), src, dst, Carried::Tcp(SYN));
        case.bound = None;
        case.warm_up = 2 * DEFAULT_FLOWS;
        case.fewer = 4;
        case
    }
}

fn flow_table_name(version: Version, carried: Carried) -> String {
    format!("{} floor: flow table + tunnel", label(version, carried))
}

fn stateless_name(version: Version, carried: Carried) -> String {
    format!("{} floor: hash + tunnel", label(version, carried))
}
