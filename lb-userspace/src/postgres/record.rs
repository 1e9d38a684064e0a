//! The record of a database: who is the primary, and what is under way to change that.
//!
//! It is kept on disk by each balancer (or in the consensus store), and a step is taken only when the
//! record that announces it is safe there. So whoever reads it after a crash knows how far things came.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{lsn::Lsn, sync::SyncRule};

/// One history of a database. Two servers that were promoted from the same parent have the same
/// timeline, so the place where it began belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// Identifies the cluster.
    pub system_id: u64,
    /// Timeline.
    pub timeline: u32,
    /// Where this timeline began; 0/0 if it was there before us.
    pub switch: Lsn,
}

/// What a promotion writes into the database as its first change. Every server that has it descends
/// from that promotion, whatever the number of its timeline says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    /// The epoch that began with it.
    pub epoch: u64,
    /// The server that was promoted.
    pub server: String,
    /// The balancer that did it.
    pub node: String,
}

/// How far a change has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The primary serves.
    Serving,
    /// No balancer lets a write through; nobody has been promoted.
    Fencing,
    /// The candidate is chosen, and may have been promoted already.
    Promoting,
    /// It cannot be said whether the candidate was promoted. A person must look.
    Frozen,
}

/// Why the primary changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// `ballast pg promote`.
    Operator,
    /// `ballast pg switchover`: the old primary lives, and nothing may be lost.
    Switchover,
    /// The primary failed.
    Failure,
}

/// What was last known of the old primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastKnown {
    /// The end of its log.
    pub end: Lsn,
    /// Bytes that it may have written since, by the rate that it had: at most this many.
    pub since: u64,
}

/// A change that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The balancer that carries it out.
    pub controller: String,
    /// Why.
    pub cause: Cause,
    /// Who shall be the primary; the most advanced if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Bytes of acknowledged log that may be lost; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_lose: Option<u64>,
    /// Balancers that the operator has said to be off.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub absent: BTreeSet<String>,
    /// What was last known of the old primary; absent if nothing ever was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_known: Option<LastKnown>,
    /// What a commit on it waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<SyncRule>,
    /// The server behind each name of `sync`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sync_servers: BTreeMap<String, String>,
    /// Where the log ended when commits were first seen to wait for that. What was acknowledged before may not
    /// have waited.
    #[serde(default)]
    pub sync_from: Lsn,
    /// The one that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<String>,
    /// What its promotion loses, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// Why it goes no further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck: Option<String>,
}

/// What a promotion loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Bytes of log that are known to be missing from the candidate.
    pub known: u64,
    /// Bytes that may be missing, `known` included.
    pub at_most: u64,
    /// That no acknowledged commit is missing follows from synchronous replication.
    pub proven: bool,
}

/// A person is asked whether a standby may be promoted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    /// The balancer that counts the time.
    pub by: String,
    /// The standby that is the best one so far.
    pub candidate: String,
    /// The token that agrees.
    pub approve: String,
    /// The token that forbids.
    pub veto: String,
    /// What the person has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<bool>,
}

/// What is left to do after a promotion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowUp {
    /// The old primary, whose connections must end.
    pub from: String,
}

/// A server whose commits shall wait for no standby, as those that they waited for are missing. While this
/// stands in the record, nobody may say that synchronous replication proves anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degraded {
    /// `synchronous_standby_names` as it was, and shall be again.
    pub names: String,
    /// The balancer that sees to it.
    pub by: String,
    /// Balancers that need not know of it first: the operator has said that they are off.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub absent: BTreeSet<String>,
    /// It is being set back.
    #[serde(default)]
    pub restoring: bool,
}

/// The record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Grows with each promotion.
    pub epoch: u64,
    /// Grows with each change of the record.
    pub revision: u64,
    /// How far a change has come.
    pub phase: Phase,
    /// The primary of this epoch.
    pub primary: String,
    /// Its history.
    pub branch: Branch,
    /// The mark of its promotion; none if it was not promoted by us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// The change that is under way, in every phase but [`Phase::Serving`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
    /// Servers that get no packet, by command.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub fenced: BTreeSet<String>,
    /// What is left to do after the promotion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow_up: Option<FollowUp>,
    /// A person is asked, as the primary does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<Doubt>,
    /// Servers whose commits shall wait for no standby, or that have not been set back yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub degraded: BTreeMap<String, Degraded>,
    /// Where the log of the primary ended when its commits were last made to wait again: a standby that has
    /// not come so far proves nothing.
    #[serde(default, skip_serializing_if = "is_start")]
    pub sync_since: Lsn,
    /// The epoch began without a person, and not long ago: the next one does not begin so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub calm: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_start(lsn: &Lsn) -> bool {
    *lsn == Lsn::default()
}

impl Record {
    /// The first record of a database.
    #[must_use]
    pub fn first(primary: &str, branch: Branch, mark: Option<Mark>) -> Self {
        Self {
            epoch: mark.as_ref().map_or(1, |mark| mark.epoch),
            revision: 1,
            phase: Phase::Serving,
            primary: primary.to_owned(),
            branch,
            mark,
            run: None,
            fenced: BTreeSet::new(),
            follow_up: None,
            doubt: None,
            degraded: BTreeMap::new(),
            sync_since: Lsn::default(),
            calm: false,
        }
    }

    /// The primary, if its commits may wait for no standby.
    #[must_use]
    pub fn degraded(&self) -> Option<&Degraded> {
        self.degraded.get(&self.primary)
    }

    /// The next record, which differs by what `change` does.
    #[must_use]
    pub fn next(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        next.revision += 1;
        change(&mut next);
        next
    }

    /// Epoch and revision: of two records, the one that is higher here is right.
    #[must_use]
    pub fn place(&self) -> (u64, u64) {
        (self.epoch, self.revision)
    }

    /// Whether this balancer carries a change out.
    #[must_use]
    pub fn is_run_by(&self, node: &str) -> bool {
        self.run.as_ref().is_some_and(|run| run.controller == node)
    }
}
