//! The failover machine of one database on one balancer. Pure: events and the time in, actions out.
//!
//! ```text
//!            promote, switchover            all gates closed     receivers stopped, candidate chosen
//!  Serving ──────────────────────▶ Fencing ──────────────────▶ (revoke) ──────────▶ Promoting
//!     ▲  ▲                            │                            │                   │   │
//!     │  └──── refused: as before ────┴────────────────────────────┘                   │   ▼
//!     └──────────────────── epoch + 1: verified by a write ────────────────────────────┘  Frozen
//! ```
//!
//! Each arrow is a new [`Record`], which is safe on disk before anything that it announces is done. So a
//! balancer that dies at any point goes on from the record. Up to `Promoting` a failure leads back to
//! `Serving` with the primary as before. After it, only the candidate can become the primary, unless a
//! person decides otherwise.
//!
//! What holds at every moment ([`tests`] plays it through):
//!
//! - a gate is open only for the primary of the record, and not while the record is being changed;
//! - nobody is promoted before every balancer has closed its gate, or was said to be off by the operator;
//! - no more is lost than was agreed to, as far as the positions in the log can tell;
//! - epochs grow, and each has one candidate.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    lsn::Lsn,
    record::{Branch, Mark, Phase, Record},
    sample::{Failure, Sample},
};
use crate::events::{Kind, Note};

mod command;
mod cut;
mod degrade;
mod follow;
mod gate;
mod known;
mod names;
mod run;
mod store;
mod watch;

pub use known::{Known, Plan};
use run::Work;
pub use store::LEASE;

/// What the machine is set up with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the database.
    pub name: String,
    /// This balancer.
    pub node: String,
    /// The other balancers.
    pub peers: BTreeSet<String>,
    /// The servers, the preferred first, with their addresses.
    pub servers: Vec<(String, IpAddr)>,
    /// How the primary may change without a person; none: not at all.
    pub unattended: Option<Unattended>,
}

/// How the primary may change without a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unattended {
    /// How long a person has to say no; none: nobody is asked.
    pub veto: Option<Duration>,
    /// Bytes of acknowledged log that may be lost.
    pub max_loss: u64,
    /// Commits wait no longer for standbys that have been missing for so long; none: they wait.
    pub available: Option<Duration>,
    /// A number that nobody outside knows, for tokens.
    pub seed: u64,
}

/// What the balancers tell each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// What is your record? The number comes back with the answer, so that none is taken for the answer
    /// to a question of an earlier life.
    Ask(u64),
    /// My record, if I have one.
    Answer(u64, Option<Box<Record>>),
    /// My record, unasked.
    Record(Box<Record>),
    /// The record at this [place](Record::place) is safe with me, and my gate is as it says.
    Ack((u64, u64)),
    /// I do not take the record at this place; why.
    Refuse((u64, u64), String),
    /// The primary of the record at this place has answered me: so many milliseconds ago it was asked.
    Reach((u64, u64), u64),
}

/// What the operator wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Make another server the primary.
    Promote {
        /// Which; the most advanced if absent.
        server: Option<String>,
        /// Bytes of acknowledged log that may be lost; no limit if absent.
        may_lose: Option<u64>,
        /// Balancers that are off.
        absent: BTreeSet<String>,
        /// Although the primary lives.
        force: bool,
    },
    /// Make another server the primary and lose nothing.
    Switchover {
        /// Which; the most advanced if absent.
        server: Option<String>,
        /// Balancers that are off.
        absent: BTreeSet<String>,
    },
    /// Let commits go on without the standbys that they wait for.
    Degrade {
        /// Balancers that are off.
        absent: BTreeSet<String>,
        /// Although the standbys are there.
        force: bool,
    },
    /// Let commits wait for the standbys again.
    Restore,
    /// No packet for this server.
    Fence(String),
    /// Take a fence back, or a change that is stuck.
    Unfence {
        /// Which server.
        server: String,
        /// Although a candidate may have been promoted.
        force: bool,
    },
    /// What is asked may be done at once; the token of the question.
    Approve(String),
    /// What is asked must not be done; the token of the question.
    Veto(String),
}

/// What a promotion has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// The new timeline.
    pub timeline: u32,
    /// Where it begins.
    pub switch: Lsn,
}

/// Why a promotion has come to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromoteError {
    /// The server may have been told to promote itself.
    pub sent: bool,
    /// In words.
    pub why: String,
}

/// What happens to the machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Time passes. Comes several times a second.
    Tick,
    /// A server was asked.
    Seen {
        /// Its name.
        server: String,
        /// When.
        asked: Duration,
        /// What it said.
        found: Result<Sample, Failure>,
    },
    /// The operator commands.
    Command(Command),
    /// The record of this revision is safe.
    Committed(u64),
    /// The record of this revision could not be kept; why.
    NotCommitted(u64, String),
    /// The store has another record than the one that was to be replaced by that of this revision.
    Conflict(u64, Box<Record>),
    /// The store has not said that it has the record of this revision; it may have it; why.
    Unstored(u64, String),
    /// The store was asked.
    Read {
        /// When.
        asked: Duration,
        /// What it has, or why it does not answer.
        found: Result<Option<Box<Record>>, String>,
    },
    /// Another balancer speaks.
    Heard {
        /// Its name.
        node: String,
        /// What it says.
        message: Message,
    },
    /// The tables are as the gate of this number says.
    Gated(u64),
    /// [`Action::Revoke`] is done, and the server is as it was found then.
    Revoked {
        /// Its name.
        server: String,
        /// How it was found.
        found: Result<Sample, Failure>,
    },
    /// [`Action::Quiesce`] is done: no transaction is open, and the log ends here.
    Quiesced(Result<Lsn, String>),
    /// [`Action::CatchUp`] is done.
    CaughtUp(Result<(), String>),
    /// [`Action::SetSync`] is done.
    SyncSet {
        /// The server.
        server: String,
        /// What it was to be set to.
        names: String,
        /// Where the log ended when it was in force.
        result: Result<Lsn, String>,
    },
    /// [`Action::Promote`] is done.
    Promoted {
        /// The server.
        server: String,
        /// What it has come to.
        result: Result<Promotion, PromoteError>,
    },
}

/// Who may be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    /// Grows with each gate of this machine.
    pub number: u64,
    /// The server that writes go to.
    pub open: Option<String>,
    /// Servers that get no packet whatever.
    pub barred: BTreeSet<String>,
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Keep the record, then [`Event::Committed`].
    Commit(Box<Record>),
    /// Put the record into the store, if that has `base` or an older one, and keep it; then
    /// [`Event::Committed`], [`Event::Conflict`] or [`Event::Unstored`].
    Propose {
        /// The record.
        record: Box<Record>,
        /// The one that it follows; none if it is the first.
        base: Option<Box<Record>>,
    },
    /// Ask the store for its record, then [`Event::Read`].
    Read,
    /// Packets may go to the servers until then.
    Lease(Duration),
    /// Make the tables so, then [`Event::Gated`].
    Gate(Gate),
    /// Tell another balancer. It may get lost.
    Tell {
        /// Its name.
        node: String,
        /// What.
        message: Message,
    },
    /// Take a standby's way to its source, for good, then [`Event::Revoked`].
    Revoke(String),
    /// Let a standby follow this server.
    Follow {
        /// The standby.
        standby: String,
        /// The primary.
        primary: String,
    },
    /// Wait until no transaction is open on the primary, then [`Event::Quiesced`].
    Quiesce(String),
    /// Wait until the standby has received the log up to there, then [`Event::CaughtUp`].
    CatchUp {
        /// The standby.
        server: String,
        /// The end of the primary's log.
        end: Lsn,
    },
    /// Set `synchronous_standby_names`, then [`Event::SyncSet`].
    SetSync {
        /// The server.
        server: String,
        /// What to.
        names: String,
        /// So many of the standbys must be there, and have all that was committed before; 0: none.
        need: usize,
    },
    /// Promote the server, unless it is already, and write the mark, then [`Event::Promoted`].
    Promote {
        /// The server.
        server: String,
        /// What it shall carry.
        mark: Mark,
        /// The history that it leaves.
        from: Branch,
    },
    /// End the connections to a server that is the primary no longer.
    CutOff(String),
    /// Write a checkpoint, so that the old primary can be rewound.
    Checkpoint(String),
    /// Put it on the timeline.
    Note(Note),
    /// What the operator commanded is over.
    Finish(Result<String, String>),
}

/// A record that is on its way to the disk.
#[derive(Clone, Debug, PartialEq)]
struct Pending {
    record: Record,
    /// When it is tried again.
    again: Option<Duration>,
    /// Another balancer's, which waits for an answer.
    of: Option<String>,
    /// That one has said it when we asked.
    fresh: bool,
    /// It goes into the store first.
    stores: bool,
    /// When it was first given away to be kept.
    since: Option<Duration>,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    settings: Settings,
    record: Option<Record>,
    pending: Option<Pending>,
    work: Work,
    servers: BTreeMap<String, Known>,
    /// The record is known to be the latest.
    confirmed: bool,
    /// The epoch whose primary has been seen to be one.
    verified: Option<u64>,
    /// What was wanted last, for the record of which revision, and the number of what the tables say.
    gate: Option<(Gate, u64)>,
    gated: Option<u64>,
    /// Who waits for our gate.
    ack: Option<(String, (u64, u64))>,
    /// A command waits for its end.
    commanded: bool,
    /// What it has come to, if the tables follow.
    outcome: Option<String>,
    /// Why the last change came to nothing.
    refused: Option<String>,
    /// When standbys were last told whom to follow.
    followed: BTreeMap<String, Duration>,
    asked: Option<Duration>,
    /// The store, where there is one.
    store: store::Store,
    /// Until when packets may go to the servers, where they need a lease.
    lease: Option<Duration>,
    /// The latest moment of which the store, or all other balancers, have said that this record is in force.
    sure: Option<Duration>,
    /// Other balancers that have this record, and when they were asked.
    agreed: BTreeMap<String, Duration>,
    /// When other balancers were heard, and when the primary had answered them.
    heard: BTreeMap<String, Duration>,
    reach: BTreeMap<String, Duration>,
    /// When this record came; and the epoch that began without a person, and when that was seen.
    since: Duration,
    calm: Option<(u64, Duration)>,
    /// The last one that came to nothing.
    given_up: Option<Duration>,
    /// Nothing begins without a person before this: the last beginning could not be kept.
    not_before: Duration,
    /// Since when a person is asked by this balancer.
    doubted: Option<Duration>,
    /// Balancers whose gates have closed by themselves in this change.
    silent: BTreeSet<String>,
    /// Standbys whose way to the old primary this balancer has taken in this change, and since when.
    cut: BTreeMap<String, Duration>,
    /// What was said last about a primary that does not answer.
    said: Option<String>,
    /// Another balancer has replaced this server: its connections through this one must end.
    replaced: Option<String>,
    /// What commits wait for, and whether that changes.
    upkeep: degrade::Upkeep,
}

/// Time between two tries of what other balancers or servers did not answer.
const AGAIN: Duration = Duration::from_secs(1);

impl Machine {
    /// A machine that begins with the record that was kept. `warm` says that the record was
    /// [confirmed](Self::is_confirmed) since this host was started: no other balancer can have gone on
    /// without it.
    pub fn new(settings: Settings, record: Option<Record>, warm: bool) -> Self {
        // Where others may go on without a balancer that is silent, only what is said now counts.
        let trusted = (warm && settings.unattended.is_none()) || settings.peers.is_empty();
        let serves = record.as_ref().filter(|it| it.phase == Phase::Serving);
        Self {
            verified: serves.filter(|_| trusted).map(|it| it.epoch),
            confirmed: trusted,
            work: Work::resume(record.as_ref(), &settings.node),
            settings,
            record,
            pending: None,
            servers: BTreeMap::new(),
            gate: None,
            gated: None,
            ack: None,
            commanded: false,
            outcome: None,
            refused: None,
            followed: BTreeMap::new(),
            asked: None,
            store: store::Store::default(),
            lease: None,
            sure: None,
            agreed: BTreeMap::new(),
            heard: BTreeMap::new(),
            reach: BTreeMap::new(),
            since: Duration::ZERO,
            calm: None,
            given_up: None,
            not_before: Duration::ZERO,
            doubted: None,
            silent: BTreeSet::new(),
            cut: BTreeMap::new(),
            said: None,
            replaced: None,
            upkeep: degrade::Upkeep::default(),
        }
    }

    /// Takes an event, and says what is to be done.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Tick => self.tick(now, &mut out),
            Event::Seen { server, asked, found } => {
                self.see(&server, asked, found, now, &mut out);
            }
            Event::Command(command) => self.command(command, now, &mut out),
            Event::Committed(revision) => self.committed(revision, now, &mut out),
            Event::NotCommitted(revision, why) => {
                self.not_committed(revision, &why, now, &mut out);
            }
            Event::Conflict(revision, theirs) => self.conflict(revision, *theirs, &mut out),
            Event::Unstored(revision, why) => self.unstored(revision, &why, now, &mut out),
            Event::Read { asked, found } => self.read(asked, found, now, &mut out),
            Event::Heard { node, message } => self.hear(&node, message, now, &mut out),
            Event::Gated(number) => {
                self.gated = Some(number);
                self.acknowledge(now, &mut out);
            }
            Event::Revoked { server, found } => self.revoked(&server, found, now, &mut out),
            Event::Quiesced(result) => self.quiesced(result, now, &mut out),
            Event::CaughtUp(result) => self.caught_up(result, now, &mut out),
            Event::SyncSet { server, names, result } => {
                self.sync_set(&server, &names, result, now, &mut out);
            }
            Event::Promoted { server, result } => self.promoted(&server, result, now, &mut out),
        }
        self.advance(now, &mut out);
        self.consider(now, &mut out);
        self.keep_sync(now, &mut out);
        self.update_gate(&mut out);
        if let Some(pending) = &mut self.pending {
            pending.since.get_or_insert(now);
        }
        out
    }

    /// The record.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Whether the record is known to be the latest.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// What is known of the servers.
    pub fn servers(&self) -> &BTreeMap<String, Known> {
        &self.servers
    }

    /// Why the last change came to nothing.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Keeps a record; what it announces begins in [`Self::committed`].
    fn commit(&mut self, record: Record, of: Option<&str>, out: &mut Vec<Action>) {
        let stores = of.is_none() && self.is_unattended();
        let of = of.map(str::to_owned);
        let pending = Pending { record, again: None, of, fresh: false, stores, since: None };
        out.push(pending.order(self.record.as_ref()));
        self.pending = Some(pending);
    }

    fn note(&self, kind: Kind, message: impl Into<String>) -> Action {
        Action::Note(Note::new(kind, message).service(&self.settings.name))
    }
}

/// Tells these balancers the same.
fn broadcast(nodes: &BTreeSet<String>, message: &Message, out: &mut Vec<Action>) {
    for node in nodes {
        out.push(Action::Tell { node: node.clone(), message: message.clone() });
    }
}

#[cfg(test)]
mod tests;
