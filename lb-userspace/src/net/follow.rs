//! The task that keeps the table of next hops true.
//!
//! It owns its two sockets and the table. Cancelling it loses nothing but the table, which the next
//! one reads again from the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use rtnetlink::MulticastGroup;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, warn};

use super::{
    NextHops,
    netlink::{Error, Event, Netlink, Notifications},
    table::{Neighbour, Table},
};
use crate::clock;

/// Known neighbours are used this often in the kernel's eyes. The packets that the kernel program
/// forwards never refresh its table; without this, an entry would go stale and be collected, and a
/// neighbour that moved would not be noticed. Shorter than `delay_first_probe_time` (5 s), so that an
/// entry in use is probed as soon as its reachable time is over.
const REFRESH: Duration = Duration::from_secs(3);

/// Unknown neighbours are asked for again after so long, doubled each time up to [`MAX_RETRY`]. It
/// matters once the kernel has given up; while it tries, it repeats its question each second itself.
const MIN_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(1);

/// Announced changes of routes are collected for so long before routes are looked up again: a routing
/// daemon changes thousands at once.
const SETTLE: Duration = Duration::from_millis(5);

/// Time before the sockets are opened again after an error.
const REOPEN: Duration = Duration::from_secs(1);

pub(super) struct Sockets {
    netlink: Netlink,
    notifications: Notifications,
}

impl Sockets {
    pub(super) fn open() -> Result<Self, Error> {
        // First the subscription: what changes while the tables are read is then announced.
        let notifications = Notifications::open(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])?;
        Ok(Self { netlink: Netlink::open()?, notifications })
    }
}

pub(super) async fn run(
    sockets: Sockets,
    mut wanted: watch::Receiver<BTreeSet<IpAddr>>,
    next_hops: watch::Sender<NextHops>,
) {
    let mut sockets = Some(sockets);
    loop {
        let result = match sockets.take().map_or_else(Sockets::open, Ok) {
            Ok(sockets) => Watch::new(sockets).run(&mut wanted, &next_hops).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => return,
            Err(error) => warn!(%error, "next hops are not followed; trying again"),
        }
        sleep(REOPEN).await;
    }
}

/// When a neighbour is used next, in the kernel's eyes.
#[derive(Clone, Copy, Debug)]
struct Use {
    known: bool,
    next: Instant,
    retry: Duration,
}

struct Watch {
    sockets: Sockets,
    table: Table,
    uses: BTreeMap<Neighbour, Use>,
    /// Wanted addresses that cannot be forwarded to, as far as the log knows.
    unroutable: BTreeSet<IpAddr>,
}

impl Watch {
    fn new(sockets: Sockets) -> Self {
        Self {
            sockets,
            table: Table::default(),
            uses: BTreeMap::new(),
            unroutable: BTreeSet::new(),
        }
    }

    /// Follows until nobody wants it any more.
    async fn run(
        &mut self,
        wanted: &mut watch::Receiver<BTreeSet<IpAddr>>,
        next_hops: &watch::Sender<NextHops>,
    ) -> Result<(), Error> {
        self.read_table().await?;
        let mut routes_due = clock::timer();
        loop {
            if clock::timer() >= routes_due {
                let addresses = wanted.borrow_and_update().clone();
                self.look_up_routes(addresses).await?;
                // Changes of nexthop objects are not announced as changes of routes.
                routes_due = clock::timer() + REFRESH;
            }
            let found = self.table.next_hops();
            next_hops.send_if_modified(|published| {
                let changed = *published != found;
                *published = found;
                changed
            });
            let use_due = self.use_neighbours().await;
            let due = use_due.map_or(routes_due, |due| due.min(routes_due));
            let mut event = tokio::select! {
                event = self.sockets.notifications.next() => Some(event),
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    routes_due = clock::timer();
                    None
                }
                () = sleep_until(due) => None,
                () = next_hops.closed() => return Ok(()),
            };
            let (mut lost, mut stale) = (false, false);
            while let Some(next) = event {
                let next = next?;
                lost |= next == Event::Lost;
                stale |= self.table.apply(next);
                event = self.sockets.notifications.try_next();
            }
            if lost {
                debug!("netlink announcements were lost; reading all tables again");
                self.read_table().await?;
                routes_due = clock::timer();
            } else if stale {
                routes_due = routes_due.min(clock::timer() + SETTLE);
            }
        }
    }

    async fn read_table(&mut self) -> Result<(), Error> {
        let netlink = &self.sockets.netlink;
        self.table = Table::new(netlink.links().await?, netlink.neighbours().await?);
        Ok(())
    }

    async fn look_up_routes(&mut self, wanted: BTreeSet<IpAddr>) -> Result<(), Error> {
        let mut routes = BTreeMap::new();
        for &address in &wanted {
            match self.sockets.netlink.route(address).await? {
                Some(route) => {
                    self.unroutable.remove(&address);
                    routes.insert(address, route);
                }
                None => {
                    if self.unroutable.insert(address) {
                        debug!(%address, "no next hop: this host's own, or no route");
                    }
                }
            }
        }
        self.unroutable.retain(|address| wanted.contains(address));
        self.table.set_routes(routes);
        Ok(())
    }

    /// Uses the neighbours whose time has come; gives the time of the next.
    async fn use_neighbours(&mut self) -> Option<Instant> {
        let targets = self.table.targets();
        let now = clock::timer();
        self.uses.retain(|neighbour, _| targets.contains_key(neighbour));
        for (neighbour, known) in targets {
            let at_once = Use { known, next: now, retry: MIN_RETRY };
            let entry = self.uses.entry(neighbour).or_insert(at_once);
            if entry.known && !known {
                *entry = at_once;
            } else if !entry.known && known {
                // It was just heard of.
                *entry = Use { known, next: now + REFRESH, retry: MIN_RETRY };
            }
            if now < entry.next {
                continue;
            }
            let (ifindex, address) = neighbour;
            if let Err(error) = self.sockets.netlink.resolve(ifindex, address).await {
                // The interface is down or gone, which is announced too.
                debug!(%error, ifindex, %address, "a neighbour is not asked for");
            }
            if known {
                entry.next = now + REFRESH;
            } else {
                entry.next = now + entry.retry;
                entry.retry = (entry.retry * 2).min(MAX_RETRY);
            }
        }
        self.uses.values().map(|entry| entry.next).min()
    }
}
