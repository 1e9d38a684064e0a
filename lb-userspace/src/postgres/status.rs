//! What `ballast pg status` says: plain data, the same for JSON and for the text on a terminal.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{
    losses::Report,
    monitor::Detail,
    record::{Cause, Loss, Phase},
    sample::{FailureKind, Role},
};
use crate::control::verdict::Appointed;

/// A database.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Where clients write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_write: Option<SocketAddr>,
    /// Where clients read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<SocketAddr>,
    /// Who changes the primary: `manual`, `veto` or `automatic`.
    pub promotion: String,
    /// The primary, by the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// The server that writes go to now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes_to: Option<String>,
    /// Why writes go nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Grows with each promotion; 0 while no primary is known.
    pub epoch: u64,
    /// Grows with each change of the record.
    pub revision: u64,
    /// How far a change of the primary has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The timeline of the epoch.
    pub timeline: u32,
    /// Commits on the primary wait for no standby, or do not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<Degradation>,
    /// What becomes of commits whose synchronous standbys are missing: `strict` or `available TIME`.
    #[serde(default)]
    pub durability: String,
    /// The change of the primary that is under way, or stuck.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// A person is asked whether a standby may be promoted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asks: Option<Asks>,
    /// The primary was promoted without a person less than a minute ago: the next one is not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub calm: bool,
    /// Why the last change came to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Its servers, in the order of the configuration.
    pub servers: Vec<Server>,
    /// What a human should look at.
    pub warnings: Vec<String>,
    /// Who may have lost writes by the last promotion of this balancer; only the first clients are named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losses: Option<Report>,
    /// Bytes that a standby may be behind and still serve reads.
    #[serde(default)]
    pub max_lag: u64,
    /// Bytes of log that a replication slot may keep before an alert says so.
    #[serde(default)]
    pub max_retained: u64,
}

/// Commits on a primary that wait for no standby, or do not yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degradation {
    /// The primary.
    pub server: String,
    /// `synchronous_standby_names` as it was, and shall be again.
    pub names: String,
    /// The balancer that sees to it.
    pub by: String,
    /// It is being set back.
    pub restoring: bool,
    /// So many of the standbys must be there before that.
    pub need: usize,
    /// So many are.
    pub have: usize,
    /// It is set back as soon as they are; otherwise by `ballast pg restore`.
    pub by_itself: bool,
}

impl Degradation {
    /// For a person.
    #[must_use]
    pub fn describe(&self) -> String {
        let Self { server, names, need, have, .. } = self;
        if self.restoring {
            return format!("commits on {server} are about to wait for {names} again");
        }
        let then = match (self.by_itself, have >= need) {
            (true, _) => "they wait again once enough are there".to_owned(),
            (false, true) => "`ballast pg restore` lets them wait again".to_owned(),
            (false, false) => "`ballast pg restore`, once enough are there".to_owned(),
        };
        format!(
            "commits on {server} wait for no standby, and are lost with it: {have} of the {need} that they \
             waited for ({names}) are there; {then}"
        )
    }
}

/// What a person is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asks {
    /// The standby that would be promoted.
    pub candidate: String,
    /// The token of `ballast pg approve`.
    pub approve: String,
    /// The token of `ballast pg veto`.
    pub veto: String,
    /// What the person has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<bool>,
}

/// A change of the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The balancer that carries it out.
    pub by: String,
    /// Why.
    pub cause: Cause,
    /// The one that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<String>,
    /// What that loses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// Why it goes no further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck: Option<String>,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// It answered when it was last asked.
    pub answers: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// What that says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_kind: Option<FailureKind>,
    /// What it is, or was when it answered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Version, such as `15.18`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// System identifier, in decimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<String>,
    /// Timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// End of the log that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<String>,
    /// End of what queries see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed: Option<String>,
    /// A standby: bytes of log that it has not replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_bytes: Option<u64>,
    /// A standby: age of the oldest of them, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    /// A standby: whom it streams from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams_from: Option<String>,
    /// It gets no packet, because its history is another one than the primary's; why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<String>,
    /// A primary: the synchronous standbys that its commits wait for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<Sync>,
    /// Why nothing can be written there, although it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cannot_write: Option<String>,
    /// What it is there for, for writes.
    pub read_write: Route,
    /// What it is there for, for reads.
    pub read_only: Route,
    /// What changes slowly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
}

/// The synchronous standbys of a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sync {
    /// So many must have a commit before it is acknowledged.
    pub need: usize,
    /// So many can.
    pub have: usize,
}

/// What a server is there for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// `serves`, `rests` (no new connections) or `barred` (no packet).
    pub state: String,
    /// Why.
    pub why: String,
}

impl From<&Appointed> for Route {
    fn from(appointed: &Appointed) -> Self {
        let state = match appointed {
            Appointed::Serves(_) => "serves",
            Appointed::Rests(_) => "rests",
            Appointed::Barred(_) => "barred",
        };
        Self { state: state.into(), why: appointed.why().into() }
    }
}

/// A version as people write it.
pub(crate) fn version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}
