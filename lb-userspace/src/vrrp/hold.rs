//! The task behind [`super::Holder`].
//!
//! It owns its sockets and the entry of each address. Cancelling it leaves the addresses on the
//! interface; the next task finds them there and announces them again.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use rtnetlink::MulticastGroup;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

use super::{HeldAddress, HolderState, address, announce};
use crate::{
    clock,
    net::{
        Error, Mac,
        netlink::{Event, Link, Netlink, Notifications},
    },
};

/// Announcements in a burst, and the time between two: lost ones are made good, and a switch that
/// limits ARP does not see them all at once.
const BURST: u32 = 5;
const BURST_PAUSE: Duration = Duration::from_millis(50);

/// A second burst follows the first: a switch port may need seconds to forward.
const SECOND_BURST: Duration = Duration::from_secs(5);

/// Then one announcement each minute, for neighbours that heard none.
const REFRESH: Duration = Duration::from_mins(1);

/// RFC 5227 §1.1 `PROBE_NUM`. The probes go with the first announcements: the address is not held back
/// for their answer, because a node that takes over must serve at once.
const PROBES: u32 = 3;

/// How long after a probe another host may answer.
const LISTEN: Duration = Duration::from_secs(1);

/// Time until what failed is tried again, and between two additions of an address that somebody keeps
/// taking off.
const RETRY: Duration = Duration::from_millis(500);

/// What the loopback interface says of its own.
const NO_MAC: [u8; 6] = [0; 6];

pub(super) enum Command {
    Set(Vec<(IpAddr, u8)>, oneshot::Sender<()>),
    Announce,
    Release(oneshot::Sender<Result<(), Error>>),
}

pub(super) struct Sockets {
    netlink: Netlink,
    notifications: Notifications,
    sender: announce::Sender,
}

impl Sockets {
    pub(super) fn open() -> Result<Self, Error> {
        let notifications = Notifications::open(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])?;
        let sender = announce::Sender::open()
            .map_err(|error| Error::Refused { what: "open a packet socket", error })?;
        Ok(Self { netlink: Netlink::open()?, notifications, sender })
    }
}

pub(super) async fn run(
    sockets: Sockets,
    interface: String,
    addresses: Vec<(IpAddr, u8)>,
    mut commands: mpsc::Receiver<Command>,
    state: watch::Sender<HolderState>,
) {
    let entries = addresses.into_iter().map(|(ip, prefix)| Entry::new(ip, prefix)).collect();
    let mut hold = Hold { sockets, interface, entries, link: None, listening: None, state };
    while let Err(error) = hold.run(&mut commands).await {
        warn!(%error, interface = hold.interface, "floating addresses are not watched; trying again");
        loop {
            sleep(RETRY).await;
            match Sockets::open() {
                Ok(sockets) => break hold.sockets = sockets,
                Err(error) => debug!(%error, "open sockets"),
            }
        }
    }
}

/// One floating address.
struct Entry {
    public: HeldAddress,
    /// Announcements since it was put on, or since the link came back, and when the next is due.
    announced: u32,
    announce_at: Instant,
    /// Not added again before this.
    add_at: Instant,
}

impl Entry {
    fn new(address: IpAddr, prefix: u8) -> Self {
        let public = HeldAddress {
            address,
            prefix,
            held: false,
            restored: 0,
            conflict: None,
            problem: None,
        };
        let now = clock::timer();
        Self { public, announced: 0, announce_at: now, add_at: now }
    }

    fn announce_anew(&mut self) {
        self.announced = 0;
        self.announce_at = clock::timer();
    }

    /// Begins a burst, unless one has only just begun.
    fn announce_again(&mut self, now: Instant) {
        if self.announced != 1 || now >= self.announce_at {
            (self.announced, self.announce_at) = (0, now);
        }
    }

    fn fail(&mut self, problem: String) {
        self.public.held = false;
        if self.public.problem.as_ref() != Some(&problem) {
            warn!(address = %self.public.address, problem, "floating address is not held");
            self.public.problem = Some(problem);
        }
    }
}

/// Time until the next announcement, after so many.
fn pause_after(announced: u32) -> Duration {
    match announced {
        BURST => SECOND_BURST,
        _ if announced < 2 * BURST => BURST_PAUSE,
        _ => REFRESH,
    }
}

/// While probes may be answered.
struct Listening {
    socket: announce::ArpListener,
    until: Instant,
    heard: Vec<Ipv4Addr>,
}

struct Hold {
    sockets: Sockets,
    interface: String,
    entries: Vec<Entry>,
    /// The interface as it was last seen.
    link: Option<Link>,
    listening: Option<Listening>,
    state: watch::Sender<HolderState>,
}

impl Hold {
    /// Holds until the holder is dropped or releases. An error is one of the sockets'.
    async fn run(&mut self, commands: &mut mpsc::Receiver<Command>) -> Result<(), Error> {
        let mut reconcile_at = clock::timer();
        loop {
            let now = clock::timer();
            if now >= reconcile_at {
                let retry = self.reconcile().await?;
                // Announcements of changes may be lost without a word on a socket that is never
                // full; looking from time to time is cheap.
                reconcile_at = retry.unwrap_or_else(|| clock::timer() + REFRESH);
            }
            let announce_at = self.announce();
            self.stop_listening();
            self.publish();
            let mut due = reconcile_at.min(announce_at.unwrap_or(reconcile_at));
            if let Some(listening) = &self.listening {
                due = due.min(listening.until);
            }
            tokio::select! {
                command = commands.recv() => match command {
                    None => return Ok(()),
                    Some(Command::Release(done)) => {
                        // The caller may have gone; the addresses are released all the same.
                        let _ = done.send(self.release().await);
                        return Ok(());
                    }
                    Some(Command::Announce) => {
                        let now = clock::timer();
                        for entry in &mut self.entries {
                            entry.announce_again(now);
                        }
                    }
                    Some(Command::Set(addresses, done)) => {
                        self.set(&addresses).await;
                        let retry = self.reconcile().await?;
                        reconcile_at = retry.unwrap_or_else(|| clock::timer() + REFRESH);
                        self.announce();
                        self.publish();
                        let _ = done.send(());
                    }
                },
                event = self.sockets.notifications.next() => {
                    let mut event = Some(event);
                    while let Some(next) = event {
                        if self.concerns(&next?) {
                            reconcile_at = clock::timer();
                        }
                        event = self.sockets.notifications.try_next();
                    }
                }
                frame = hear(self.listening.as_ref()) => match frame {
                    Ok(frame) => self.heard(&frame).await?,
                    Err(error) => {
                        debug!(%error, interface = self.interface, "cannot hear ARP");
                        self.listening = None;
                    }
                },
                () = sleep_until(due) => {}
            }
        }
    }

    fn concerns(&self, event: &Event) -> bool {
        let ifindex = self.link.as_ref().map(|link| link.ifindex);
        match event {
            Event::Link(link) => link.name == self.interface || Some(link.ifindex) == ifindex,
            Event::LinkGone(on) | Event::Addresses(on) => Some(*on) == ifindex,
            Event::Lost => true,
            Event::Neighbour(..) | Event::Routes => false,
        }
    }

    /// Makes the interface have the addresses. Gives the time to try again, if something failed.
    async fn reconcile(&mut self) -> Result<Option<Instant>, Error> {
        let netlink = &self.sockets.netlink;
        let link = match netlink.link(&self.interface).await {
            Ok(link) => link,
            Err(error @ Error::NoInterface(_)) => {
                self.link = None;
                for entry in &mut self.entries {
                    entry.fail(error.to_string());
                }
                // Its arrival is announced.
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let same_link = |old: &Link| {
            (old.ifindex, old.mac, old.running) == (link.ifindex, link.mac, link.running)
        };
        let announce_anew = !self.link.as_ref().is_some_and(same_link);
        let present = netlink.addresses(link.ifindex).await?;
        let now = clock::timer();
        let mut retry: Option<Instant> = None;
        for entry in &mut self.entries {
            let HeldAddress { address, prefix, .. } = entry.public;
            let found = present.iter().find(|p| (p.ip, p.prefix) == (address, prefix));
            let usable = found.is_some_and(|found| !found.duplicate);
            if usable && entry.public.held {
                if announce_anew {
                    entry.announce_anew();
                }
                continue;
            }
            if now < entry.add_at {
                retry = Some(retry.map_or(entry.add_at, |retry| retry.min(entry.add_at)));
                continue;
            }
            entry.add_at = now + RETRY;
            let added = async {
                if found.is_some() && !usable {
                    address::remove(netlink, &link, address, prefix).await?;
                }
                if !usable {
                    address::add(netlink, &link, address, prefix).await?;
                }
                Ok::<_, Error>(())
            };
            match added.await {
                Ok(()) => {
                    let interface = &self.interface;
                    if entry.public.held {
                        entry.public.restored += 1;
                        warn!(%address, interface, "floating address was taken off; put on again");
                    } else {
                        info!(%address, interface, "floating address held");
                    }
                    entry.public.held = true;
                    entry.public.problem = None;
                    entry.announce_anew();
                }
                Err(error) => {
                    entry.fail(error.to_string());
                    retry = Some(retry.map_or(entry.add_at, |retry| retry.min(entry.add_at)));
                }
            }
        }
        self.link = Some(link);
        Ok(retry)
    }

    /// Sends the announcements that are due. Gives the time of the next.
    fn announce(&mut self) -> Option<Instant> {
        let link = self.link.as_ref()?;
        // Without a MAC address (a tunnel, the loopback interface) there is nobody to tell.
        let mac = link.mac.filter(|mac| *mac != NO_MAC)?;
        let now = clock::timer();
        let mut next: Option<Instant> = None;
        let (sender, ifindex) = (&self.sockets.sender, link.ifindex);
        for entry in self.entries.iter_mut().filter(|entry| entry.public.held) {
            if now >= entry.announce_at {
                let sent = match entry.public.address {
                    IpAddr::V4(address) => {
                        let probe = entry.announced < PROBES || entry.announced >= 2 * BURST;
                        if probe {
                            listen(&mut self.listening, ifindex, now + LISTEN);
                        }
                        announce_v4(sender, ifindex, mac, address, probe)
                    }
                    // The kernel too answers as a host, unless it forwards.
                    IpAddr::V6(address) => sender
                        .send(ifindex, &announce::neighbour_advertisement(mac, address, false)),
                };
                if let Err(error) = sent {
                    // Mostly that the link is down; it is announced anew when the link comes back.
                    debug!(%error, address = %entry.public.address, "not announced");
                }
                entry.announced = entry.announced.saturating_add(1);
                entry.announce_at = now + pause_after(entry.announced);
            }
            next = Some(next.map_or(entry.announce_at, |next| next.min(entry.announce_at)));
        }
        next
    }

    /// Looks for another host that claims one of the addresses.
    async fn heard(&mut self, frame: &[u8]) -> Result<(), Error> {
        let claim =
            self.entries.iter().enumerate().find_map(|(index, entry)| match entry.public.address {
                IpAddr::V4(address) => {
                    announce::arp_claim(frame, address).map(|mac| (index, address, mac))
                }
                IpAddr::V6(_) => None,
            });
        let Some((index, address, mac)) = claim else { return Ok(()) };
        // Another interface of this host on the same link answers too; that is no conflict.
        if self.sockets.netlink.links().await?.iter().any(|link| link.mac == Some(mac)) {
            return Ok(());
        }
        if let Some(listening) = &mut self.listening {
            listening.heard.push(address);
        }
        let claimant = Mac(mac).to_string();
        let conflict = &mut self.entries[index].public.conflict;
        if conflict.as_ref() != Some(&claimant) {
            let interface = &self.interface;
            warn!(%address, interface, mac = claimant, "another host claims the floating address");
            *conflict = Some(claimant);
        }
        Ok(())
    }

    /// Ends the time for answers: a claim that was not repeated is over.
    fn stop_listening(&mut self) {
        let over = self.listening.take_if(|listening| clock::timer() >= listening.until);
        let Some(Listening { heard, .. }) = over else { return };
        for HeldAddress { address, conflict, .. } in
            self.entries.iter_mut().map(|entry| &mut entry.public)
        {
            let repeated = heard.iter().any(|heard| *address == IpAddr::V4(*heard));
            if !repeated && conflict.take().is_some() {
                info!(%address, "nobody else claims the floating address any more");
            }
        }
    }

    async fn set(&mut self, addresses: &[(IpAddr, u8)]) {
        let wanted =
            |entry: &Entry| addresses.contains(&(entry.public.address, entry.public.prefix));
        let (mut kept, gone): (Vec<_>, Vec<_>) = self.entries.drain(..).partition(wanted);
        for &(address, prefix) in addresses {
            if !kept
                .iter()
                .any(|entry| (entry.public.address, entry.public.prefix) == (address, prefix))
            {
                kept.push(Entry::new(address, prefix));
            }
        }
        // In the order that was asked for.
        kept.sort_by_key(|entry| {
            addresses.iter().position(|a| *a == (entry.public.address, entry.public.prefix))
        });
        self.entries = kept;
        for Entry { public: HeldAddress { address, prefix, .. }, .. } in gone {
            if let Err(error) = self.remove(address, prefix).await {
                warn!(%address, %error, "floating address is not taken off");
            }
        }
    }

    async fn release(&mut self) -> Result<(), Error> {
        let mut first = Ok(());
        for Entry { public: HeldAddress { address, prefix, .. }, .. } in
            std::mem::take(&mut self.entries)
        {
            let removed = self.remove(address, prefix).await;
            if first.is_ok() {
                first = removed;
            }
        }
        self.publish();
        first
    }

    async fn remove(&mut self, address: IpAddr, prefix: u8) -> Result<(), Error> {
        // Asked for again: the interface may have been made anew under its name.
        let link = match self.sockets.netlink.link(&self.interface).await {
            Err(Error::NoInterface(_)) => return Ok(()),
            link => link?,
        };
        address::remove(&self.sockets.netlink, &link, address, prefix).await?;
        info!(%address, interface = self.interface, "floating address released");
        Ok(())
    }

    fn publish(&self) {
        let now = HolderState {
            interface: self.interface.clone(),
            addresses: self.entries.iter().map(|entry| entry.public.clone()).collect(),
        };
        self.state.send_if_modified(|state| {
            let changed = *state != now;
            *state = now;
            changed
        });
    }
}

fn announce_v4(
    sender: &announce::Sender,
    ifindex: u32,
    mac: [u8; 6],
    address: Ipv4Addr,
    probe: bool,
) -> io::Result<()> {
    if probe {
        sender.send(ifindex, &announce::arp_probe(mac, address))?;
    }
    announce::gratuitous_arp(mac, address).iter().try_for_each(|frame| sender.send(ifindex, frame))
}

fn listen(listening: &mut Option<Listening>, ifindex: u32, until: Instant) {
    if let Some(listening) = listening {
        listening.until = until;
        return;
    }
    match announce::ArpListener::open(ifindex) {
        Ok(socket) => *listening = Some(Listening { socket, until, heard: Vec::new() }),
        Err(error) => debug!(%error, "cannot hear ARP"),
    }
}

/// The next ARP packet while answers are waited for; else never.
async fn hear(listening: Option<&Listening>) -> io::Result<Vec<u8>> {
    match listening {
        Some(listening) => listening.socket.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_bursts_then_each_minute() {
        let pauses: Vec<u64> = (1..13).map(|n| pause_after(n).as_millis() as u64).collect();
        assert_eq!(pauses, [50, 50, 50, 50, 5_000, 50, 50, 50, 50, 60_000, 60_000, 60_000]);
        assert_eq!(pause_after(u32::MAX), REFRESH);
    }
}
