//! The sessions with all other nodes, and what goes between them and the flow tables: no socket, no map,
//! no clock.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{
    Board, Peer,
    session::{Fresh, Output, Session},
    wire::{
        Keys, Refusal,
        change::Item,
        frame::{About, Fence},
    },
};
use crate::{
    dataplane::sync::{Applied, Change, Refresh, Walk, Which},
    events::{Kind, Note},
};

/// A walk goes on while each node that it is for has room for so many parts.
const ROOM: usize = 512;

/// Time between two steps of a walk that nobody waits for.
const PACE: Duration = Duration::from_millis(100);

/// A node that has just been started waits so long for the others, before it counts as having all that
/// there is.
const PATIENCE: Duration = Duration::from_secs(3);

/// Senders that are no node, and are told of; of more, nobody wants to hear.
const MOST_STRANGERS: usize = 16;

/// What another node's stream brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A change.
    Change(Change),
    /// From here on come all its connections.
    All,
    /// All have come. Its tables are of this age.
    AllCame(Duration),
}

/// What has come of an event.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Datagrams, and where they go.
    pub(super) datagrams: Vec<(SocketAddr, Vec<u8>)>,
    /// To be made in this node's tables, in order.
    pub(super) steps: Vec<Step>,
    /// For the timeline.
    pub(super) notes: Vec<Note>,
    /// Wishes to cut something off, and whose they are.
    pub(super) wishes: Vec<(String, Fence)>,
    /// Who has cut something off.
    pub(super) fenced: Vec<(String, Fence)>,
    /// What other nodes have said.
    pub(super) words: Vec<(String, Vec<u8>)>,
    /// A session has begun.
    pub(super) began: bool,
}

/// The sessions.
#[derive(Debug)]
pub(super) struct Hub {
    neighbours: Vec<Neighbour>,
    about: About,
    since: Duration,
    /// Which nodes want all connections, and have not been served.
    wanting: BTreeSet<usize>,
    walk: Option<Under>,
    refresh: Refresh,
    refreshed: u64,
    next_refresh: Duration,
    next_step: Duration,
    strangers: BTreeSet<SocketAddr>,
    applied: Applied,
    effects: Effects,
}

/// A walk that is under way.
#[derive(Debug)]
struct Under {
    walk: Walk,
    to: BTreeSet<usize>,
    all: bool,
}

#[derive(Debug)]
struct Neighbour {
    name: String,
    address: SocketAddr,
    session: Session,
    since: Timestamp,
    /// Refusals that have been told since the last session began.
    told: BTreeSet<Refusal>,
    /// What is wrong, as long as there is no session.
    problem: Option<String>,
    /// That its configuration is another has been told.
    differs: bool,
    unsynced: bool,
}

impl Hub {
    /// For the node `own` and these others.
    pub(super) fn new(
        own: &str,
        others: &[(String, SocketAddr)],
        keys: &Arc<Keys>,
        refresh: Refresh,
        (now, wall): (Duration, Timestamp),
        fresh: Fresh<'_>,
    ) -> Self {
        let neighbours = others.iter().map(|(name, address)| Neighbour {
            name: name.clone(),
            address: *address,
            session: Session::new(own, name, Arc::clone(keys), &mut *fresh),
            since: wall,
            told: BTreeSet::new(),
            problem: None,
            differs: false,
            unsynced: true,
        });
        Self {
            neighbours: neighbours.collect(),
            about: About::default(),
            since: now,
            wanting: BTreeSet::new(),
            walk: None,
            refresh,
            refreshed: 0,
            next_refresh: now + refresh.every,
            next_step: now,
            strangers: BTreeSet::new(),
            applied: Applied::default(),
            effects: Effects::default(),
        }
    }

    /// Takes what has come of the events since the last call.
    pub(super) fn take(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// When the flow tables here were created.
    pub(super) fn set_created(&mut self, created: Duration) {
        for neighbour in &mut self.neighbours {
            neighbour.session.set_created(created);
        }
    }

    /// How all of them stand.
    pub(super) fn board(&self, now: Duration) -> Board {
        let peers: Vec<Peer> = self.neighbours.iter().map(|it| it.status(&self.about)).collect();
        let waited = now.saturating_sub(self.since) >= PATIENCE;
        let in_sync = peers.iter().all(|peer| peer.in_sync || (!peer.up && waited));
        Board { peers, in_sync, applied: self.applied }
    }

    /// Whether anybody listens.
    pub(super) fn is_heard(&self) -> bool {
        self.neighbours.iter().any(|it| it.session.summary().up)
    }

    /// What this node tells of itself.
    pub(super) fn set_about(&mut self, about: About) {
        self.about = about;
        for neighbour in &mut self.neighbours {
            neighbour.session.set_about(about);
            let other = neighbour.session.summary().about;
            self.effects.notes.extend(other.and_then(|other| neighbour.compare(about, other)));
        }
    }

    /// Takes a datagram.
    pub(super) fn receive(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        (now, wall): (Duration, Timestamp),
        fresh: Fresh<'_>,
    ) {
        let Some(at) = self.neighbours.iter().position(|it| it.address.ip() == from.ip()) else {
            if self.strangers.len() < MOST_STRANGERS && self.strangers.insert(from) {
                let message = format!("{from} sends to the peer channel, and is no [[node]]");
                self.effects.notes.push(Note::new(Kind::Peer, message));
            }
            return;
        };
        self.neighbours[at].session.receive(datagram, now, fresh);
        self.collect(at, now, wall);
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Duration, wall: Timestamp) {
        for at in 0..self.neighbours.len() {
            self.neighbours[at].session.tick(now);
            if self.neighbours[at].session.take_lost() {
                self.wanting.insert(at);
            }
            self.collect(at, now, wall);
        }
    }

    /// When [`Hub::tick`] has something to do at the latest, if nothing comes.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.neighbours.iter().map(|it| it.session.deadline()).min()
    }

    /// Tells all nodes of changes here.
    pub(super) fn tell(&mut self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let items: Vec<Item> = changes.iter().copied().map(Item::Change).collect();
        for neighbour in &mut self.neighbours {
            neighbour.session.send(&items);
        }
    }

    /// The walk that is to go on now, if any.
    pub(super) fn walk(&mut self, now: Duration) -> Option<Walk> {
        if self.walk.is_none() {
            self.begin_walk(now);
        }
        let under = self.walk.as_mut()?;
        under.to.retain(|at| self.neighbours[*at].session.summary().up);
        if under.to.is_empty() {
            self.walk = None;
            return None;
        }
        let has_room = |at: &usize| self.neighbours[*at].session.room() >= ROOM;
        let is_due = under.all || now >= self.next_step;
        if !is_due || !under.to.iter().all(has_room) {
            return None;
        }
        self.next_step = now + PACE;
        Some(under.walk)
    }

    fn begin_walk(&mut self, now: Duration) {
        // Those that have said how old their tables are.
        let age = |at: &usize| self.neighbours[*at].session.table_age(now);
        let to: BTreeSet<usize> =
            self.wanting.iter().copied().filter(|at| age(at).is_some()).collect();
        if !to.is_empty() {
            // Among more than two, whose a connection is cannot be told: then all are sent.
            let alone = if self.neighbours.len() == 1 { to.first().and_then(age) } else { None };
            let table_age_ns = alone.map_or(0, |age| age.as_nanos() as u64);
            self.wanting.retain(|at| !to.contains(at));
            for at in &to {
                self.neighbours[*at].session.send(&[Item::All]);
            }
            let walk = Walk::new(Which::All { table_age_ns });
            self.walk = Some(Under { walk, to, all: true });
        } else if now >= self.next_refresh {
            self.next_refresh = now + self.refresh.every;
            self.refreshed += 1;
            let walk = Walk::new(Which::Active(self.refresh, self.refreshed));
            self.walk = Some(Under { walk, to: (0..self.neighbours.len()).collect(), all: false });
        }
    }

    /// A step of the walk has brought this.
    pub(super) fn walked(&mut self, walk: Walk, changes: &[Change], more: bool) {
        let Some(under) = &mut self.walk else { return };
        under.walk = walk;
        let mut items: Vec<Item> = changes.iter().copied().map(Item::Change).collect();
        if !more && under.all {
            items.push(Item::AllSent);
        }
        for at in &under.to {
            self.neighbours[*at].session.send(&items);
        }
        if !more {
            self.walk = None;
        }
    }

    /// The walk cannot go on. Who has waited for all connections waits for the next.
    pub(super) fn give_up_walk(&mut self) {
        if let Some(under) = self.walk.take()
            && under.all
        {
            self.wanting.extend(under.to);
        }
    }

    /// What became of changes.
    pub(super) fn count(&mut self, applied: Applied) {
        self.applied += applied;
    }

    /// Asks all nodes to cut something off.
    pub(super) fn fence(&mut self, fence: &Fence, now: Duration) {
        for neighbour in &mut self.neighbours {
            neighbour.session.fence(fence.clone(), now);
        }
    }

    /// Answers a node that it is cut off.
    pub(super) fn fenced(&mut self, node: &str, fence: Fence, (now, wall): (Duration, Timestamp)) {
        if let Some(at) = self.neighbours.iter().position(|it| it.name == node) {
            self.neighbours[at].session.fenced(fence);
            self.collect(at, now, wall);
        }
    }

    /// Says a word to a node.
    pub(super) fn say(&mut self, node: &str, word: &[u8], (now, wall): (Duration, Timestamp)) {
        if let Some(at) = self.neighbours.iter().position(|it| it.name == node) {
            self.neighbours[at].session.say(word);
            self.collect(at, now, wall);
        }
    }

    fn collect(&mut self, at: usize, now: Duration, wall: Timestamp) {
        let (about, two) = (self.about, self.neighbours.len() == 1);
        let effects = &mut self.effects;
        let neighbour = &mut self.neighbours[at];
        for output in neighbour.session.take() {
            match output {
                Output::Send(datagram) => effects.datagrams.push((neighbour.address, datagram)),
                Output::Change(change) => effects.steps.push(Step::Change(change)),
                Output::All if two => effects.steps.push(Step::All),
                Output::All => {}
                Output::Up => {
                    neighbour.since = wall;
                    neighbour.told.clear();
                    neighbour.problem = None;
                    neighbour.unsynced = true;
                    self.wanting.insert(at);
                    effects.began = true;
                    let message = format!("node {} is there", neighbour.name);
                    effects.notes.push(Note::new(Kind::Peer, message));
                }
                Output::Down => {
                    neighbour.since = wall;
                    let message = format!("node {} is silent", neighbour.name);
                    effects.notes.push(Note::new(Kind::Peer, message));
                }
                Output::About(other) => effects.notes.extend(neighbour.compare(about, other)),
                Output::InSync => {
                    if let Some(age) = neighbour.session.table_age(now).filter(|_| two) {
                        effects.steps.push(Step::AllCame(age));
                    }
                    if std::mem::take(&mut neighbour.unsynced) {
                        let message = format!("all connections of {} are here", neighbour.name);
                        effects.notes.push(Note::new(Kind::Peer, message));
                    }
                }
                Output::FenceWanted(fence) => effects.wishes.push((neighbour.name.clone(), fence)),
                Output::Fenced(fence) => effects.fenced.push((neighbour.name.clone(), fence)),
                Output::Word(word) => effects.words.push((neighbour.name.clone(), word)),
                Output::Refused(refusal) => effects.notes.extend(neighbour.refuse(refusal)),
            }
        }
    }
}

impl Neighbour {
    /// Whether the other node's configuration is the same, told when that changes.
    fn compare(&mut self, own: About, other: About) -> Option<Note> {
        let differs = own.generation != other.generation;
        if std::mem::replace(&mut self.differs, differs) == differs {
            return None;
        }
        let name = &self.name;
        Some(if differs {
            let message = format!(
                "the configuration of {name} is another: compare the two files, and reload both"
            );
            Note::new(Kind::Fault, message)
        } else {
            Note::new(Kind::Recovered, format!("the configuration of {name} is the same again"))
        })
    }

    /// Tells of a refusal, once for each session.
    fn refuse(&mut self, refusal: Refusal) -> Option<Note> {
        // What is late or doubled on the way is no news, and a node that was started anew gets what is
        // meant for the one before.
        if matches!(refusal, Refusal::NoSession | Refusal::Replayed) {
            return None;
        }
        let text = refusal.to_string();
        if !self.session.summary().up {
            self.problem = Some(text.clone());
        }
        self.told.insert(refusal).then(|| {
            let message = format!("what comes from {} is refused", self.name);
            Note::new(Kind::Fault, message).because(text)
        })
    }

    fn status(&self, own: &About) -> Peer {
        let summary = self.session.summary();
        let problem = if summary.up { None } else { self.problem.clone() };
        Peer {
            name: self.name.clone(),
            address: self.address,
            up: summary.up,
            since: self.since,
            round_trip_us: summary.round_trip.map(|time| time.as_micros() as u64),
            same_config: summary.about.map(|other| other.generation == own.generation),
            in_sync: summary.in_sync,
            holds: summary.about.map(|other| other.holds),
            lingers_ms: summary.about.map_or(0, |other| other.lingers_ms),
            leaves: summary.about.is_some_and(|other| other.leaves),
            services: summary.about.map(|other| other.services.into()),
            backends: summary.about.map(|other| other.backends.into()),
            sent: summary.sent,
            received: summary.received,
            backlog: summary.backlog as u64,
            repeated: summary.repeated,
            problem,
        }
    }
}

#[cfg(test)]
mod tests;
