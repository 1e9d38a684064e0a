//! Walks over the flow tables: which connections other nodes are told of, and when.

use std::{
    hash::{DefaultHasher, Hasher as _},
    time::Duration,
};

use lb_common::flow::state;

use crate::dataplane::{
    Timeouts,
    batch::Cursor,
    flows::{Key, TCP, View},
};

/// The longest time between two walks that refresh connections, and the shortest.
const LONGEST_ROUND: Duration = Duration::from_secs(30);
const SHORTEST_ROUND: Duration = Duration::from_secs(1);

/// The most rounds in which each TCP connection is refreshed once.
const MOST_ROUNDS: u64 = 16;

/// When connections are refreshed at other nodes, so that they do not age there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refresh {
    /// Time between two walks.
    pub every: Duration,
    /// Each TCP connection is refreshed in one of so many walks.
    pub rounds: u64,
}

impl Refresh {
    /// Four times within each timeout, as far as that is not too often or needlessly so.
    #[must_use]
    pub fn new(timeouts: &Timeouts) -> Self {
        let shortest = Duration::from_nanos(timeouts.udp_idle_ns.min(timeouts.tcp_closing_ns) / 4);
        let every = shortest.clamp(SHORTEST_ROUND, LONGEST_ROUND);
        let every_ns = every.as_nanos() as u64;
        Self { every, rounds: (timeouts.tcp_idle_ns / 4 / every_ns).clamp(1, MOST_ROUNDS) }
    }
}

/// Which connections a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All that are open, for a node whose table is of this age, nanoseconds. One that it must have had, and
    /// that had no packet here since, is its own matter.
    All {
        /// 0: it has nothing.
        table_age_ns: u64,
    },
    /// Those that have had packets here since they were last refreshed; this is the walk of that number.
    Active(Refresh, u64),
}

/// A walk over the flow tables, a step at a time.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    pub(super) which: Which,
    pub(super) at: At,
    pub(super) cursor: Cursor,
}

/// The table in which a walk is. Half-open connections come first, so that one that is established
/// meanwhile is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    HalfOpen,
    HalfOpen6,
    Flows,
    Flows6,
}

impl Walk {
    /// From the beginning. Half-open connections are only for those who want all: a client that has sent
    /// nothing since the last walk is gone.
    #[must_use]
    pub fn new(which: Which) -> Self {
        let at = match which {
            Which::All { .. } => At::HalfOpen,
            Which::Active(..) => At::Flows,
        };
        Self { which, at, cursor: Cursor::default() }
    }

    /// Goes on in another table.
    pub(super) fn enter(&mut self, at: At) {
        (self.at, self.cursor) = (at, Cursor::default());
    }
}

/// Whether a walk is for a connection.
pub(super) fn is_wanted<K: Key>(which: Which, key: &K, client: &View, age_ns: u64) -> bool {
    let (refresh, number) = match which {
        Which::All { table_age_ns } => return client.packets > 0 || age_ns >= table_age_ns,
        // Without a packet here it is another node's, and here only in case.
        Which::Active(..) if client.packets == 0 => return false,
        Which::Active(refresh, number) => (refresh, number),
    };
    let rounds = if client.protocol == TCP && !client.is_steered() && !state::closing(client.state)
    {
        refresh.rounds
    } else {
        1
    };
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let due = hasher.finish() % rounds == number % rounds;
    // A little more than since it was last due: walks take their time.
    due && age_ns <= (refresh.every * (rounds as u32 + 1)).as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use lb_common::flow::FlowKey4;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn timeouts(tcp: u64, closing: u64, udp: u64) -> Timeouts {
        Timeouts {
            tcp_idle_ns: tcp * SECOND,
            tcp_closing_ns: closing * SECOND,
            udp_idle_ns: udp * SECOND,
        }
    }

    #[test]
    fn connections_are_refreshed_well_within_their_timeouts() {
        let refresh = Refresh::new(&timeouts(7440, 240, 120));
        assert_eq!((refresh.every, refresh.rounds), (Duration::from_secs(30), 16));
        for (tcp, closing, udp) in
            [(7440, 240, 120), (60, 60, 60), (1000, 10, 600), (5, 5, 5), (100_000, 100, 1)]
        {
            let timeouts = timeouts(tcp, closing, udp);
            let Refresh { every, rounds } = Refresh::new(&timeouts);
            let ns = every.as_nanos() as u64;
            assert!(ns * rounds * 4 <= timeouts.tcp_idle_ns.max(4 * ns), "{tcp} {closing} {udp}");
            assert!(ns * 4 <= timeouts.udp_idle_ns.max(4 * SECOND), "{tcp} {closing} {udp}");
            assert!(ns * 4 <= timeouts.tcp_closing_ns.max(4 * SECOND), "{tcp} {closing} {udp}");
        }
    }

    #[test]
    fn each_active_connection_is_refreshed_once_in_all_rounds() {
        let refresh = Refresh { every: Duration::from_secs(30), rounds: 16 };
        let socket = |port| SocketAddr::from(([192, 0, 2, 9], port));
        let client = |packets, protocol, state| View {
            protocol,
            src: socket(1),
            dst: socket(2),
            new_src: socket(3),
            new_dst: socket(4),
            backend: 1,
            state,
            last_seen_ns: 0,
            packets,
            bytes: 0,
        };
        let walks = |port: u16, view: &View, age_ns| {
            let key = FlowKey4 { src_port: port.to_be_bytes(), ..FlowKey4::ZERO };
            let wanted =
                |number: &u64| is_wanted(Which::Active(refresh, *number), &key, view, age_ns);
            (0..16).filter(wanted).count()
        };
        for port in 0..100 {
            assert_eq!(walks(port, &client(5, 6, 0), SECOND), 1);
            assert_eq!(walks(port, &client(5, 6, 0), 600 * SECOND), 0, "idle since it was told");
            assert_eq!(walks(port, &client(0, 6, 0), SECOND), 0, "not of this node");
            assert_eq!(walks(port, &client(5, 17, 0), SECOND), 16);
            assert_eq!(walks(port, &client(5, 6, state::CLIENT_FIN), SECOND), 16);
            assert_eq!(walks(port, &client(5, 6, state::STEERED), SECOND), 16);
        }
        let key = FlowKey4::ZERO;
        let all = |age_ns, packets| {
            let which = Which::All { table_age_ns: 100 * SECOND };
            is_wanted(which, &key, &client(packets, 6, 0), age_ns)
        };
        assert!(all(7000 * SECOND, 0), "the other node has lost it");
        assert!(!all(99 * SECOND, 0), "the other node knows better");
        assert!(all(99 * SECOND, 1), "this node knows better");
    }
}
