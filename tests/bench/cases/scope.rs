//! How many flows there are, and in which order their packets come.

use std::fmt;

use crate::packets::{ACK, Carried};

/// How many connections the tables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) connections: u32,
}

/// In which order their packets come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// As the flows were made: neighbours in memory.
    InTurn,
    /// Far from each other.
    Scattered,
    /// Far from each other, and one is not begun before the last is through.
    OneByOne,
}

impl Scope {
    /// All of them, the smallest first.
    pub(crate) const ALL: [Self; 3] =
        [Self { connections: 1 }, Self { connections: 10_000 }, Self { connections: 1_000_000 }];

    /// The orders that make a difference.
    pub(crate) fn orders(self) -> &'static [Order] {
        if self.connections == 1 {
            &[Order::InTurn]
        } else {
            &[Order::InTurn, Order::Scattered, Order::OneByOne]
        }
    }
}

impl Scope {
    /// The protocols that flows of the tables have. TCP alone for the largest number, which takes a
    /// quarter of a gigabyte of kernel memory as it is.
    pub(crate) fn carried(self) -> &'static [Carried] {
        if self.connections > 100_000 {
            &[Carried::Tcp(ACK)]
        } else {
            &[Carried::Tcp(ACK), Carried::Udp]
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.connections {
            1 => f.write_str("1 flow"),
            1_000_000 => f.write_str("1 M flows"),
            many => write!(f, "{} k flows", many / 1000),
        }
    }
}

impl Order {
    /// From one flow to the next.
    pub(super) fn stride(self, flows: u32) -> u32 {
        match self {
            Self::InTurn => u32::from(flows > 1),
            Self::Scattered | Self::OneByOne => {
                // The golden section leaves the widest gaps; then up to a number that has no common
                // divisor with that of the flows.
                let start = (f64::from(flows) * 0.618) as u32;
                (start..flows).find(|stride| gcd(*stride, flows) == 1).unwrap_or(1)
            }
        }
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn in_either_order_every_flow_has_its_turn_before_one_has_its_second() {
        for order in [Order::InTurn, Order::Scattered, Order::OneByOne] {
            for flows in [1, 2, 10, 10_000] {
                let stride = order.stride(flows);
                let seen: HashSet<u32> = (0..flows).map(|run| run * stride % flows).collect();
                assert_eq!(seen.len(), flows as usize, "{order:?} of {flows}");
            }
        }
    }

    #[test]
    fn scattered_flows_are_far_apart() {
        let stride = Order::Scattered.stride(1_000_000);
        assert!((300_000..700_000).contains(&stride), "{stride}");
    }
}
