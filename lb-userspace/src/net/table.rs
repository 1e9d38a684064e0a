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
    /// By interface number: MAC address and MTU; `None` for interfaces that are not Ethernet.
    links: BTreeMap<u32, Option<([u8; 6], u32)>>,
    /// Those with a MAC address that can be used.
    neighbours: BTreeMap<Neighbour, [u8; 6]>,
    /// By wanted address.
    routes: BTreeMap<IpAddr, Route>,
}

impl Table {
    pub(super) fn new(links: Vec<Link>, neighbours: Vec<(u32, IpAddr, [u8; 6])>) -> Self {
        Self {
            links: links.into_iter().map(|link| (link.ifindex, ethernet(&link))).collect(),
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
                self.links.insert(link.ifindex, ethernet(&link));
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
            let (source_mac, mtu) = self.links.get(&route.ifindex).copied().flatten()?;
            let mac = self.neighbours.get(&(route.ifindex, route.via)).copied();
            let Route { ifindex, source, .. } = *route;
            // A route may ask for less than its link.
            let mtu = route.mtu.map_or(mtu, |of_route| of_route.min(mtu));
            Some((wanted, NextHop { ifindex, source_mac, mac, mtu, source }))
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

/// MAC address and MTU of a link that packets are forwarded by.
fn ethernet(link: &Link) -> Option<([u8; 6], u32)> {
    link.mac.map(|mac| (mac, link.mtu))
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

    fn route(ifindex: u32, via: &str) -> Route {
        Route { ifindex, via: ip(via), source: Some(ip("192.0.2.11")), mtu: None }
    }

    /// eth1 with a neighbour and a gateway, and a tunnel without MAC addresses.
    fn table() -> Table {
        let mut table = Table::new(
            vec![link(1, Some(OURS)), link(2, None)],
            vec![(1, ip("192.0.2.21"), THEIRS)],
        );
        table.set_routes(BTreeMap::from([
            (ip("192.0.2.21"), route(1, "192.0.2.21")),
            (ip("203.0.113.5"), route(1, "192.0.2.1")),
            (ip("203.0.113.6"), route(1, "192.0.2.1")),
            (ip("198.51.100.1"), route(2, "198.51.100.1")),
        ]));
        table
    }

    #[test]
    fn next_hops_of_neighbours_and_gateways() {
        let source = Some(ip("192.0.2.11"));
        let hop = |mac| NextHop { ifindex: 1, source_mac: OURS, mac, mtu: 1500, source };
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
    fn the_mtu_is_the_links_unless_the_route_has_a_smaller_one() {
        let mut table = table();
        let mtu = |table: &Table| table.next_hops()[&ip("192.0.2.21")].mtu;
        let mut longer = link(1, Some(OURS));
        longer.mtu = 9000;
        table.apply(Event::Link(longer));
        assert_eq!(mtu(&table), 9000);
        for (of_route, expected) in [(1400, 1400), (9001, 9000)] {
            let short = Route { mtu: Some(of_route), ..route(1, "192.0.2.21") };
            table.set_routes(BTreeMap::from([(ip("192.0.2.21"), short)]));
            assert_eq!(mtu(&table), expected);
        }
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
