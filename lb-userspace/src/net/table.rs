//! What is known of links, neighbours and routes, and the next hops that follow. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    NextHop, NextHops,
    netlink::{Event, Link, Route},
};

/// A neighbour: interface and address.
pub(super) type Neighbour = (u32, IpAddr);

#[derive(Debug, Default)]
pub(super) struct Table {
    /// By interface number; `None` for interfaces that are not Ethernet.
    links: BTreeMap<u32, Option<[u8; 6]>>,
    /// Those with a MAC address that can be used.
    neighbours: BTreeMap<Neighbour, [u8; 6]>,
    /// By wanted address.
    routes: BTreeMap<IpAddr, Route>,
}

impl Table {
    pub(super) fn new(links: Vec<Link>, neighbours: Vec<(u32, IpAddr, [u8; 6])>) -> Self {
        Self {
            links: links.into_iter().map(|link| (link.ifindex, link.mac)).collect(),
            neighbours: neighbours
                .into_iter()
                .map(|(ifindex, address, mac)| ((ifindex, address), mac))
                .collect(),
            routes: BTreeMap::new(),
        }
    }

    pub(super) fn set_routes(&mut self, routes: BTreeMap<IpAddr, Route>) {
        self.routes = routes;
    }

    /// Takes an announcement in. `true` if the routes must be asked for again.
    pub(super) fn apply(&mut self, event: Event) -> bool {
        match event {
            // A link that goes up or down takes routes with it, not all of which are announced.
            Event::Link(link) => {
                self.links.insert(link.ifindex, link.mac);
                true
            }
            Event::LinkGone(ifindex) => {
                self.links.remove(&ifindex);
                self.neighbours.retain(|&(on, _), _| on != ifindex);
                true
            }
            Event::Neighbour(ifindex, address, mac) => {
                match mac {
                    Some(mac) => self.neighbours.insert((ifindex, address), mac),
                    None => self.neighbours.remove(&(ifindex, address)),
                };
                false
            }
            // After a loss the caller starts a new table, too.
            Event::Addresses(_) | Event::Routes | Event::Lost => true,
        }
    }

    pub(super) fn next_hops(&self) -> NextHops {
        let next_hop = |(&wanted, route): (&IpAddr, &Route)| {
            let source_mac = self.links.get(&route.ifindex).copied().flatten()?;
            let mac = self.neighbours.get(&(route.ifindex, route.via)).copied();
            Some((wanted, NextHop { ifindex: route.ifindex, source_mac, mac }))
        };
        self.routes.iter().filter_map(next_hop).collect()
    }

    /// The neighbours that packets go to, and whether the MAC address of each is known.
    pub(super) fn targets(&self) -> BTreeMap<Neighbour, bool> {
        let forwardable =
            |route: &&Route| self.links.get(&route.ifindex).copied().flatten().is_some();
        self.routes
            .values()
            .filter(forwardable)
            .map(|route| (route.ifindex, route.via))
            .map(|neighbour| (neighbour, self.neighbours.contains_key(&neighbour)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 3];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link(ifindex: u32, mac: Option<[u8; 6]>) -> Link {
        Link { ifindex, name: format!("eth{ifindex}"), mac, running: true, mtu: 1500 }
    }

    /// eth1 with a neighbour and a gateway, and a tunnel without MAC addresses.
    fn table() -> Table {
        let mut table = Table::new(
            vec![link(1, Some(OURS)), link(2, None)],
            vec![(1, ip("192.0.2.21"), THEIRS)],
        );
        table.set_routes(BTreeMap::from([
            (ip("192.0.2.21"), Route { ifindex: 1, via: ip("192.0.2.21") }),
            (ip("203.0.113.5"), Route { ifindex: 1, via: ip("192.0.2.1") }),
            (ip("203.0.113.6"), Route { ifindex: 1, via: ip("192.0.2.1") }),
            (ip("198.51.100.1"), Route { ifindex: 2, via: ip("198.51.100.1") }),
        ]));
        table
    }

    #[test]
    fn next_hops_of_neighbours_and_gateways() {
        let hop = |mac| NextHop { ifindex: 1, source_mac: OURS, mac };
        assert_eq!(
            table().next_hops(),
            BTreeMap::from([
                (ip("192.0.2.21"), hop(Some(THEIRS))),
                (ip("203.0.113.5"), hop(None)),
                (ip("203.0.113.6"), hop(None)),
            ])
        );
        assert_eq!(
            table().targets(),
            BTreeMap::from([((1, ip("192.0.2.1")), false), ((1, ip("192.0.2.21")), true)])
        );
    }

    #[test]
    fn neighbours_come_change_and_go() {
        let mut table = table();
        let mac = |table: &Table, of| table.next_hops()[&ip(of)].mac;
        assert!(!table.apply(Event::Neighbour(1, ip("192.0.2.1"), Some(OTHER))));
        assert_eq!(mac(&table, "203.0.113.5"), Some(OTHER));
        assert_eq!(mac(&table, "203.0.113.6"), Some(OTHER));
        table.apply(Event::Neighbour(1, ip("192.0.2.21"), Some(OTHER)));
        assert_eq!(mac(&table, "192.0.2.21"), Some(OTHER));
        table.apply(Event::Neighbour(1, ip("192.0.2.21"), None));
        assert_eq!(mac(&table, "192.0.2.21"), None);
        // The same address on another interface is another neighbour.
        table.apply(Event::Neighbour(2, ip("192.0.2.21"), Some(OTHER)));
        assert_eq!(mac(&table, "192.0.2.21"), None);
    }

    #[test]
    fn links_change_and_go() {
        let mut table = table();
        assert!(table.apply(Event::Link(link(1, Some(OTHER)))));
        assert_eq!(table.next_hops()[&ip("192.0.2.21")].source_mac, OTHER);
        assert!(table.apply(Event::LinkGone(1)));
        assert!(table.next_hops().is_empty());
        assert!(table.targets().is_empty());
        // A new link of the same number does not inherit the neighbours of the old one.
        table.apply(Event::Link(link(1, Some(OURS))));
        assert_eq!(table.next_hops()[&ip("192.0.2.21")].mac, None);
    }
}
