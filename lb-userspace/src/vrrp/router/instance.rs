//! One virtual router: its machine, and what it has heard.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use jiff::Timestamp;

use super::{InstanceStatus, PeerStatus, Setup};
use crate::{
    clock,
    config::Floating,
    vrrp::{
        machine::{self, Action, Event, Sender, Settings, State},
        packet::{Advert, ChecksumForm, Envelope, Expected, GROUP_V4, GROUP_V6, Refusal},
        socket::Received,
    },
};

/// Sources that are remembered; more than these are strangers who make names up.
const MOST_PEERS: usize = 32;

/// A virtual router.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) floating: Floating,
    pub(super) state: State,
    settings: Settings,
    expected: Expected,
    /// Those of the family that the adverts go over.
    advertised: Vec<IpAddr>,
    since: Timestamp,
    takeovers: u64,
    sent: u64,
    received: u64,
    refused: BTreeMap<Refusal, u64>,
    last_refused: Option<(Refusal, IpAddr)>,
    peers: BTreeMap<IpAddr, Peer>,
    /// Another node is Active at the same time: which, and when that was heard last.
    pub(super) contested: Option<(IpAddr, Duration)>,
    /// Why the last advert could not be sent.
    pub(super) unsent: Option<String>,
}

#[derive(Debug)]
struct Peer {
    priority: u8,
    interval: Duration,
    at: Duration,
    adverts: u64,
    form: ChecksumForm,
    other_addresses: bool,
}

/// What was heard for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// A refusal.
    Refused(Refusal, IpAddr),
    /// A router with other addresses.
    OtherAddresses(IpAddr),
}

impl Instance {
    pub(super) fn new(floating: Floating, setup: &Setup, own: IpAddr) -> Self {
        let mut instance = Self {
            state: State::Initialize,
            settings: Settings {
                version: floating.version,
                address: own,
                priority: setup.priority,
                interval: floating.interval,
                preempt: floating.preempt,
                preempt_delay: floating.preempt_delay,
                many: setup.peers.len() > 1,
            },
            expected: Expected {
                version: floating.version,
                password: floating.password,
                interval: floating.interval,
                unicast: floating.unicast,
                peers: Vec::new(),
                own,
            },
            advertised: Vec::new(),
            floating,
            since: clock::wall(),
            takeovers: 0,
            sent: 0,
            received: 0,
            refused: BTreeMap::new(),
            last_refused: None,
            peers: BTreeMap::new(),
            contested: None,
            unsent: None,
        };
        instance.arrange(setup, own);
        instance
    }

    /// Takes over what the configuration says now.
    pub(super) fn configure(&mut self, floating: Floating, setup: &Setup) {
        let own = self.settings.address;
        self.floating = floating;
        self.arrange(setup, own);
    }

    fn arrange(&mut self, setup: &Setup, own: IpAddr) {
        let floating = &self.floating;
        self.settings = Settings {
            version: floating.version,
            address: own,
            priority: self.settings.priority,
            interval: floating.interval,
            preempt: floating.preempt,
            preempt_delay: floating.preempt_delay,
            many: setup.peers.len() > 1,
        };
        self.expected = Expected {
            version: floating.version,
            password: floating.password,
            interval: floating.interval,
            unicast: floating.unicast,
            peers: setup.peers.iter().map(|(_, address, _)| *address).collect(),
            own,
        };
        let of_family = floating.addresses.iter().map(|(address, _)| *address);
        self.advertised = of_family.filter(|it| it.is_ipv4() == self.is_v4()).collect();
    }

    pub(super) fn is_v4(&self) -> bool {
        self.floating.is_v4().unwrap_or(true)
    }

    /// All addresses that move with it.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.floating.addresses.iter().map(|(address, _)| *address).collect()
    }

    /// Our adverts come from this address.
    pub(super) fn set_own(&mut self, own: IpAddr) {
        (self.settings.address, self.expected.own) = (own, own);
    }

    /// What it does of its own accord: the priority, and whether it may preempt.
    pub(super) fn adapt(&mut self, priority: u8, may_preempt: bool) -> bool {
        let before = self.settings;
        self.settings.priority = priority;
        self.settings.preempt = self.floating.preempt && may_preempt;
        before != self.settings
    }

    pub(super) fn interval(&self) -> Duration {
        self.settings.interval
    }

    /// Takes an event in, and gives what has to be done.
    pub(super) fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let before = self.state.name();
        let (state, actions) = machine::step(&self.settings, self.state, event, now);
        self.state = state;
        if state.name() != before {
            self.since = clock::wall();
        }
        self.takeovers += u64::from(actions.contains(&Action::Take));
        actions
    }

    /// Reads an advert. If it is listened to, gives what the machine makes of it; and what is new about
    /// it.
    pub(super) fn hear(
        &mut self,
        packet: &Received,
        setup: &Setup,
    ) -> (Option<Event>, Option<First>) {
        let envelope = &packet.envelope;
        let read = Advert::parse(&packet.message, envelope).and_then(|(advert, form)| {
            advert.check(envelope, &self.expected)?;
            Ok((advert, form))
        });
        match read {
            Ok((advert, form)) => self.heard(&advert, form, packet.at, envelope, setup),
            Err(refusal) => {
                let count = self.refused.entry(refusal).or_insert(0);
                *count += 1;
                self.last_refused = Some((refusal, envelope.source));
                let first = First::Refused(refusal, envelope.source);
                (None, (*count == 1).then_some(first))
            }
        }
    }

    fn heard(
        &mut self,
        advert: &Advert,
        form: ChecksumForm,
        at: Duration,
        envelope: &Envelope,
        setup: &Setup,
    ) -> (Option<Event>, Option<First>) {
        self.received += 1;
        let (source, priority, interval) = (envelope.source, advert.priority, advert.interval);
        let known = |address: &IpAddr| self.advertised.contains(address);
        let alike =
            advert.addresses.len() == self.advertised.len() && advert.addresses.iter().all(known);
        let stranger = !advert.addresses.iter().any(known);
        let mut first = None;
        if self.peers.len() < MOST_PEERS || self.peers.contains_key(&source) {
            let peer = self.peers.entry(source).or_insert(Peer {
                priority,
                interval,
                at,
                adverts: 0,
                form,
                other_addresses: false,
            });
            first = (!alike && !peer.other_addresses).then_some(First::OtherAddresses(source));
            let adverts = peer.adverts + 1;
            *peer = Peer { priority, interval, at, adverts, form, other_addresses: !alike };
        }
        let base = setup.peers.iter().find(|(_, address, _)| *address == source);
        let sender = match base {
            _ if stranger => Sender::Stranger,
            Some((_, _, base)) if priority < *base => Sender::GivesWay,
            _ => Sender::Peer,
        };
        let advert = machine::Advert { at, source, priority, interval, sender };
        (Some(Event::Heard(advert)), first)
    }

    /// The messages of an advert, and where each goes.
    pub(super) fn adverts(&mut self, priority: u8) -> Vec<(Vec<u8>, IpAddr)> {
        let Settings { version, address: own, interval, .. } = self.settings;
        let advert = Advert {
            version,
            vrid: self.floating.vrid,
            priority,
            interval,
            addresses: self.advertised.clone(),
            password: self.floating.password,
        };
        let group = if self.is_v4() { GROUP_V4.into() } else { GROUP_V6.into() };
        let to = if self.floating.unicast { self.expected.peers.clone() } else { vec![group] };
        self.sent += 1;
        let form = self.floating.checksum;
        to.into_iter().map(|to| (advert.encode(own, to, form), to)).collect()
    }

    /// Who is Active, as far as that is known: `None` is nobody.
    pub(super) fn active(&self) -> Option<IpAddr> {
        match self.state {
            State::Active(_) | State::Leaving(_) => Some(self.settings.address),
            State::Backup(backup) => backup.active,
            State::Claiming(_) | State::Initialize => None,
        }
    }

    pub(super) fn status(&self, setup: &Setup, now: Duration) -> InstanceStatus {
        let name = |address: IpAddr| match name_of(setup, address) {
            Some(name) => name.to_owned(),
            None if address == self.settings.address => setup.name.clone(),
            None => address.to_string(),
        };
        let peers = self.peers.iter().map(|(&address, peer)| PeerStatus {
            node: name_of(setup, address).map(str::to_owned),
            address,
            priority: peer.priority,
            interval_ms: peer.interval.as_millis() as u64,
            last_advert_ms: now.saturating_sub(peer.at).as_millis() as u64,
            adverts: peer.adverts,
            checksum: peer.form.word().to_owned(),
            other_addresses: peer.other_addresses,
        });
        let stranger = self.peers.iter().find(|(_, peer)| peer.other_addresses);
        let problem = if let Some((by, _)) = self.contested {
            Some(format!("{} is Active too: split brain", name(by)))
        } else if let Some(error) = &self.unsent {
            Some(format!("adverts cannot be sent: {error}"))
        } else {
            stranger.map(|(address, _)| {
                format!("{} has this vrid for other addresses: choose another one", name(*address))
            })
        };
        InstanceStatus {
            vrid: self.floating.vrid,
            role: self.state.name().to_owned(),
            since: self.since,
            version: self.settings.version.number(),
            priority: self.settings.priority,
            configured_priority: setup.priority,
            interval_ms: self.settings.interval.as_millis() as u64,
            active: self.active().map(name),
            takeovers: self.takeovers,
            sent: self.sent,
            received: self.received,
            refused: self.refused.iter().map(|(it, n)| (it.label().to_owned(), *n)).collect(),
            last_refused: self.last_refused.map(|(why, source)| format!("{source}: {why}")),
            peers: peers.collect(),
            problem,
        }
    }
}

/// The name of the node that has an address.
pub(super) fn name_of(setup: &Setup, address: IpAddr) -> Option<&str> {
    setup.peers.iter().find(|(_, it, _)| *it == address).map(|(name, _, _)| name.as_str())
}
