//! The proxy's connections, when an address goes from one node to another in order.
//!
//! Such a connection is a socket, which does not move. The node that gives the address away keeps it on its
//! loopback interface, where nobody is asked for it (the program does not let this host answer once the lease
//! is over), and answers on: each answer from then on is its connection's last. The node that takes the address
//! hands on what is of connections that it does not know: the program sends those packets there, in the frames
//! that they came in, since both nodes are on one segment.
//!
//! Several nodes may answer on, if the addresses go on to a third one soon. Who has the addresses hands to who had
//! them last, and what that one does not know it hands to another that answers on. Further than that nothing goes: so
//! no frame goes in a circle. With three nodes that is all there can be.
//!
//! Each node says all the time for how long it would answer on. So whoever takes an address knows it already,
//! and no packet comes in between.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use lb_common::{
    elder::{ELDERS, Elder},
    reason::Reason,
};

use super::{Task, anycast};
use crate::{
    clock,
    events::{Kind, Note},
    net::unsent::is_any_unsent,
    peer::Peer,
    vrrp::Holder,
};

/// A node that is heard, and whose MAC address is not found for so long, is not on this segment.
const FIND: Duration = Duration::from_secs(5);

/// How often it is looked whether all is sent.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Both sides of it.
#[derive(Debug, Default)]
pub(super) struct Elders {
    /// The node that had the addresses last.
    last: Option<Last>,
    /// A third node that answers on, while neither that one nor this has the addresses.
    relay: Option<Relay>,
    /// What the kernel program knows of them.
    written: Option<[Elder; ELDERS as usize]>,
    /// Since when it is not known by which MAC address to reach it.
    unreached: Option<Duration>,
    /// Addresses that this node holds.
    held: BTreeSet<IpAddr>,
    /// Those that it has given away, and until when it answers on.
    lingering: Option<(BTreeSet<IpAddr>, Duration)>,
    /// Keeps them meanwhile.
    holder: Option<Holder>,
    /// This daemon ends.
    leaves: bool,
}

/// Another node, while it had the addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Last {
    name: String,
    address: IpAddr,
    /// For how long it answers on.
    lingers: Duration,
    /// It has said that it ends: its silence means nothing.
    leaves: bool,
    /// Since when this node has the addresses, and what had been handed on by then.
    since: Option<(Duration, u64)>,
}

/// A node that answers on beside this one: what comes from who has the addresses goes there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Relay {
    name: String,
    address: IpAddr,
    until: Duration,
    /// It has said that it ends: its silence means nothing.
    leaves: bool,
}

/// What becomes of [`Last`] with what is known now.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// It is as it was.
    Stays,
    /// This node has the addresses now, and hands on until then.
    Begins(Duration),
    /// It answers no more; why.
    Over(&'static str),
}

/// Of nodes that do not have the addresses, the one that answers on for longest.
fn lingering(peers: &[Peer]) -> Option<&Peer> {
    let lingering = peers.iter().filter(|it| it.up && it.holds == Some(false) && it.lingers_ms > 0);
    lingering.max_by_key(|peer| peer.lingers_ms)
}

impl Relay {
    /// The one that there is still, or else another.
    fn follow(known: Option<Self>, peers: &[Peer], now: Duration) -> Option<Self> {
        let stays = known.and_then(|mut known| {
            let peer = peers.iter().find(|peer| peer.name == known.name && peer.up);
            known.leaves |= peer.is_some_and(|peer| peer.leaves);
            let answers = match peer {
                Some(peer) => peer.holds == Some(false) && peer.lingers_ms > 0,
                None => known.leaves,
            };
            (answers && now < known.until).then_some(known)
        });
        stays.or_else(|| {
            lingering(peers).map(|peer| Self {
                name: peer.name.clone(),
                address: peer.address.ip(),
                until: now + Duration::from_millis(peer.lingers_ms.into()),
                leaves: peer.leaves,
            })
        })
    }
}

impl Last {
    /// The node that has the addresses.
    fn of(peer: &Peer) -> Option<Self> {
        (peer.up && peer.holds == Some(true) && peer.lingers_ms > 0).then(|| Self::new(peer))
    }

    fn new(peer: &Peer) -> Self {
        Self {
            name: peer.name.clone(),
            address: peer.address.ip(),
            lingers: Duration::from_millis(peer.lingers_ms.into()),
            leaves: peer.leaves,
            since: None,
        }
    }

    /// Looks at what it says of itself. `holds` is whether this node has the addresses.
    fn look(&mut self, peer: Option<&Peer>, holds: bool, now: Duration, handed_on: u64) -> Next {
        let up = peer.filter(|peer| peer.up);
        self.leaves |= up.is_some_and(|peer| peer.leaves);
        if !holds {
            self.since = None;
            return Next::Stays;
        }
        let begins = self.since.is_none();
        let (since, _) = *self.since.get_or_insert((now, handed_on));
        match up {
            None if !self.leaves => Next::Over("it is not heard any more"),
            // It may not have said yet that it has them no more.
            Some(peer) if peer.lingers_ms == 0 => Next::Over("it has ended them all"),
            _ if now >= since + self.lingers => Next::Over("its time is over"),
            _ if begins => Next::Begins(since + self.lingers),
            _ => Next::Stays,
        }
    }
}

impl Elders {
    /// Until when this node answers on for addresses that it has given away.
    fn lingers_until(&self) -> Option<Duration> {
        self.lingering.as_ref().map(|(_, until)| *until)
    }
}

impl Task {
    /// For how long this node answers, or would answer, on connections of its proxy, in milliseconds; and
    /// whether it is about to end.
    pub(super) fn lingers(&self) -> (u32, bool) {
        let lingers = match self.elders.lingers_until() {
            Some(until) if !self.addresses.holds() => {
                Some(until.saturating_sub(clock::monotonic()))
            }
            _ if self.addresses.holds() => self.proxy.lingers(),
            _ => None,
        };
        let ms = lingers.map_or(0, |time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX));
        (ms, self.elders.leaves)
    }

    /// Follows who has the addresses, and who had them.
    pub(super) async fn follow_elder(&mut self) {
        self.linger().await;
        let result = self.hand_on().await;
        let wrong = result.err().map(|error| format!("{error:#}"));
        self.fault("connections of another node's proxy", wrong);
    }

    /// Answers on for addresses that have gone.
    async fn linger(&mut self) {
        let held = self.addresses.held();
        let lost: BTreeSet<IpAddr> = self.elders.held.difference(&held).copied().collect();
        let now = clock::monotonic();
        if let Some(within) = self.proxy.hand_over(&lost)
            && self.proxy.handed_over() > 0
        {
            let (addresses, until) =
                self.elders.lingering.get_or_insert_with(|| (BTreeSet::new(), now));
            addresses.extend(&lost);
            *until = (*until).max(now + within);
            let count = self.proxy.handed_over();
            let message = format!(
                "{count} connections of the proxy go on here, for {} s at most",
                within.as_secs()
            );
            self.note(Kind::Address, message);
        }
        if held != self.elders.held {
            // Whoever takes them next must know it before: that may be at once.
            self.elders.held = held;
            self.tell_peers();
        }
        let Some((addresses, until)) = &mut self.elders.lingering else { return };
        // What is here again needs nothing.
        let before = addresses.len();
        addresses.retain(|address| !self.elders.held.contains(address));
        // Some were on their way here when the others were handed over.
        self.proxy.hand_over(addresses);
        let is_over = addresses.is_empty()
            || now >= *until
            || (self.proxy.handed_over() == 0 && !is_any_unsent(addresses));
        if !is_over && before == addresses.len() && lost.is_empty() {
            return;
        }
        let wanted: Vec<(IpAddr, u8)> = if is_over {
            Vec::new()
        } else {
            addresses.iter().map(|it| (*it, anycast::host_prefix(*it))).collect()
        };
        if is_over {
            self.elders.lingering = None;
            self.note(
                Kind::Address,
                "no connection of the proxy is left of an address that has gone",
            );
        }
        let kept = self.keep_aside(wanted).await;
        let wrong = kept.err().map(|error| format!("{error:#}"));
        self.fault("addresses that have gone", wrong);
        self.tell_peers();
    }

    /// Keeps addresses where nobody is asked for them.
    async fn keep_aside(&mut self, addresses: Vec<(IpAddr, u8)>) -> anyhow::Result<()> {
        match (&self.elders.holder, addresses.is_empty()) {
            (Some(_), true) => {
                if let Some(holder) = self.elders.holder.take() {
                    holder.release().await?;
                }
            }
            (Some(holder), false) => holder.set_addresses(addresses).await,
            (None, true) => {}
            (None, false) => {
                let holder = Holder::start(anycast::INTERFACE.to_owned(), addresses)?;
                self.elders.holder = Some(holder);
            }
        }
        Ok(())
    }

    /// Has the kernel program hand on what is of connections of the node that had the addresses.
    async fn hand_on(&mut self) -> anyhow::Result<()> {
        let (holds, now) = (self.addresses.holds(), clock::monotonic());
        let board = self.peers.board();
        if !holds && let Some(last) = board.peers.iter().find_map(Last::of) {
            // It may still be about to end when it is heard of again.
            self.elders.last = Some(last);
        }
        if holds && self.elders.last.is_none() {
            // Who had the addresses last answers no more, but one that had them before still does.
            self.elders.last = lingering(&board.peers).map(Last::new);
        }
        let Some(mut last) = self.elders.last.clone() else {
            // This node answers on itself, and says nothing of what it does not know.
            let until = self.elders.lingers_until().filter(|_| !holds).unwrap_or_default();
            let elder = Elder { until_ns: until.as_nanos() as u64, ..Elder::ZERO };
            return self.write_elders(elder, Elder::ZERO).await;
        };
        let handed_on = if holds && self.elders.written.is_some_and(|[it, _]| it.until_ns != 0) {
            self.handed_on().await?
        } else {
            0
        };
        let peer = board.peers.iter().find(|peer| peer.name == last.name);
        let next = last.look(peer, holds, now, handed_on);
        match next {
            Next::Stays => {}
            Next::Begins(_) => {
                let message = format!("what is of connections of {}'s proxy goes there", last.name);
                let why = format!(
                    "it has given the addresses away, and answers on for {} s at most",
                    last.lingers.as_secs()
                );
                self.timeline.add(Note::new(Kind::Address, message).because(why));
            }
            Next::Over(why) => {
                let before = last.since.map_or(0, |(_, before)| before);
                let message = format!(
                    "nothing goes to {}'s proxy any more: {} packets did",
                    last.name,
                    handed_on.saturating_sub(before)
                );
                self.timeline.add(Note::new(Kind::Address, message).because(why));
                self.elders.last = None;
                return self.write_elders(Elder::ZERO, Elder::ZERO).await;
            }
        }
        let mac = self.state.next_hops().get(&last.address).and_then(|hop| hop.mac);
        self.elders.unreached =
            if mac.is_some() { None } else { self.elders.unreached.or(Some(now)) };
        let elder = mac.map_or(Elder::ZERO, |mac| {
            // The program asks for the lease too, so that it hands on nothing before.
            let until = last.since.map(|(since, _)| since + last.lingers);
            let until_ns = until.map_or(u64::MAX, |until| until.as_nanos() as u64);
            Elder { until_ns, mac, ..Elder::ZERO }
        });
        let has_them = peer.is_some_and(|peer| peer.up && peer.holds == Some(true));
        self.elders.last = Some(last);
        let relay = match mac {
            Some(from) if !holds && has_them => self.relay(&board.peers, from, now),
            _ => None,
        };
        self.write_elders(elder, relay.unwrap_or(Elder::ZERO)).await
    }

    /// Where frames go that come from this address, of who has the addresses, and are of no connection that is
    /// known here.
    fn relay(&mut self, peers: &[Peer], from: [u8; 6], now: Duration) -> Option<Elder> {
        self.elders.relay = Relay::follow(self.elders.relay.take(), peers, now);
        let relay = self.elders.relay.as_ref()?;
        let mac = self.state.next_hops().get(&relay.address).and_then(|hop| hop.mac)?;
        Some(Elder { until_ns: relay.until.as_nanos() as u64, mac, from, reserved: 0 })
    }

    async fn write_elders(&mut self, last: Elder, relay: Elder) -> anyhow::Result<()> {
        let elders = [last, relay];
        if self.elders.written == Some(elders) {
            return Ok(());
        }
        let kernel = Arc::clone(&self.kernel);
        let written = tokio::task::spawn_blocking(move || kernel.set_elders(elders)).await?;
        written.context("tell the kernel program of the nodes that had the addresses")?;
        self.elders.written = Some(elders);
        Ok(())
    }

    /// Whether this node may take the addresses as far as this goes: it knows where to hand on what is of
    /// connections of who has them.
    pub(super) fn knows_elder(&self) -> bool {
        let has_proxy = self.peers.board().peers.iter().any(|peer| Last::of(peer).is_some());
        !has_proxy
            || self.elders.written.is_some_and(|[last, _]| last.until_ns != 0)
            || self.elders.unreached.is_some_and(|since| clock::monotonic() >= since + FIND)
    }

    /// Packets that have been handed on.
    async fn handed_on(&self) -> anyhow::Result<u64> {
        let kernel = Arc::clone(&self.kernel);
        let counters = tokio::task::spawn_blocking(move || kernel.counters(&[], &[])).await??;
        Ok(counters.reasons.get(Reason::HandedOn as usize).copied().unwrap_or(0))
    }

    /// Other nodes are told that this one ends, and that its silence means nothing.
    pub(super) fn take_leave(&mut self) {
        self.elders.leaves = true;
        self.tell_peers();
    }

    /// The addresses have gone, and the daemon ends: what keeps them until the proxy has ended.
    pub(super) async fn leave(&mut self) -> Option<Holder> {
        self.follow_elder().await;
        self.elders.holder.take()
    }
}

/// Longest wait for what the kernel still has to send of connections that have ended.
const SENT_WITHIN: Duration = Duration::from_secs(30);

/// Gives addresses up that were kept aside, once the kernel has sent all that the proxy's connections have
/// left with it.
pub(in crate::control) async fn give_up(kept: Holder) -> anyhow::Result<()> {
    let addresses = kept.state().borrow().addresses.iter().map(|it| it.address).collect();
    let end = clock::monotonic() + SENT_WITHIN;
    while is_any_unsent(&addresses) && clock::monotonic() < end {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    kept.release().await.context("take off addresses that have gone")
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn peer(up: bool, holds: bool, lingers_ms: u32, leaves: bool) -> Peer {
        Peer {
            name: "lb-01".into(),
            address: "192.0.2.11:9181".parse().unwrap(),
            up,
            since: clock::wall(),
            round_trip_us: None,
            same_config: None,
            in_sync: true,
            holds: Some(holds),
            lingers_ms,
            leaves,
            services: None,
            backends: None,
            sent: 0,
            received: 0,
            backlog: 0,
            repeated: 0,
            problem: None,
        }
    }

    fn holder() -> Last {
        Last::of(&peer(true, true, 30_000, false)).unwrap()
    }

    #[test]
    fn only_a_node_that_holds_and_has_a_proxy_is_remembered() {
        assert!(Last::of(&peer(false, true, 30_000, false)).is_none());
        assert!(Last::of(&peer(true, false, 30_000, false)).is_none());
        assert!(Last::of(&peer(true, true, 0, false)).is_none());
        assert_eq!(holder().lingers, S(30));
    }

    #[test]
    fn it_is_handed_on_until_that_node_has_ended_or_its_time_is_over() {
        let mut last = holder();
        let holding = peer(true, true, 30_000, false);
        assert_eq!(last.look(Some(&holding), false, S(10), 0), Next::Stays);
        // It has not said yet that it has them no more.
        assert_eq!(last.look(Some(&holding), true, S(11), 5), Next::Begins(S(41)));
        let lingers = peer(true, false, 29_000, false);
        assert_eq!(last.look(Some(&lingers), true, S(12), 9), Next::Stays);
        assert_eq!(last.since, Some((S(11), 5)));
        let mut other = last.clone();
        let ended = peer(true, false, 0, false);
        assert!(matches!(other.look(Some(&ended), true, S(13), 9), Next::Over(_)));
        assert!(matches!(last.look(Some(&lingers), true, S(41), 9), Next::Over(_)));
    }

    #[test]
    fn a_third_node_that_answers_on_is_handed_to_as_long_as_it_does() {
        let named = |name: &str, peer: Peer| Peer { name: name.into(), ..peer };
        let holder = named("lb-03", peer(true, true, 30_000, false));
        let lingers = |ms| named("lb-01", peer(true, false, ms, false));
        assert_eq!(Relay::follow(None, &[holder.clone(), lingers(0)], S(1)), None);
        let other = named("lb-04", peer(true, false, 4000, false));
        let relay = Relay::follow(None, &[holder.clone(), other, lingers(9000)], S(1)).unwrap();
        assert_eq!((relay.name.as_str(), relay.until), ("lb-01", S(10)));
        let next = |peer: Peer, now| {
            Relay::follow(Some(relay.clone()), &[holder.clone(), peer], S(now)).map(|it| it.until)
        };
        // Its time does not begin anew with each beat.
        assert_eq!(next(lingers(8000), 2), Some(S(10)));
        assert_eq!(next(lingers(0), 2), None);
        // It has the addresses again, or is not heard.
        assert_eq!(next(named("lb-01", peer(true, true, 30_000, false)), 2), None);
        let silent = named("lb-01", peer(false, false, 0, false));
        assert_eq!(next(silent.clone(), 2), None);
        let told = named("lb-01", peer(true, false, 8000, true));
        let leaves = Relay::follow(Some(relay.clone()), &[told], S(2));
        let silent = [silent];
        assert_eq!(Relay::follow(leaves.clone(), &silent, S(9)), leaves);
        assert_eq!(Relay::follow(leaves, &silent, S(10)), None);
    }

    #[test]
    fn who_is_silent_without_a_word_is_dead() {
        for (leaves, over) in [(false, true), (true, false)] {
            let mut last = holder();
            let told = peer(true, true, 30_000, leaves);
            assert_eq!(last.look(Some(&told), false, S(1), 0), Next::Stays);
            assert_eq!(last.look(Some(&told), true, S(2), 0), Next::Begins(S(32)));
            let silent = peer(false, false, 0, false);
            for silent in [Some(&silent), None] {
                let next = last.clone().look(silent, true, S(5), 0);
                assert_eq!(matches!(next, Next::Over(_)), over, "{leaves}");
            }
            assert!(matches!(last.look(None, true, S(32), 0), Next::Over(_)));
        }
    }
}
