//! What a server says of itself, or why it says nothing.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{lsn::Lsn, record::Mark, sync::SyncRule};

/// What a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It takes writes.
    Primary,
    /// It follows another.
    Standby,
}

/// What a server has said of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// What it is.
    pub role: Role,
    /// Identifies the cluster that it was made as, or was copied from.
    pub system_id: u64,
    /// Its timeline.
    pub timeline: u32,
    /// The end of the log that it has: flushed (primary) or received (standby).
    pub received: Lsn,
    /// The end of what queries see.
    pub replayed: Lsn,
    /// The last mark that it carries.
    pub mark: Option<Mark>,
    /// A standby's way to its source.
    pub receiver: Option<Receiver>,
    /// A standby gives a source up that it has not heard for so long (`wal_receiver_timeout`); none: it
    /// waits for ever.
    pub patience: Option<Duration>,
    /// A standby's replay is paused by hand.
    pub paused: bool,
    /// A standby is late on purpose (`recovery_min_apply_delay`).
    pub delay: Duration,
    /// Its way to its source has been taken by us.
    pub revoked: bool,
    /// What a commit on it waits for.
    pub sync: Option<SyncRule>,
    /// `synchronous_standby_names` as it stands.
    pub sync_names: String,
    /// The standbys that a primary feeds.
    pub replicas: Vec<Replica>,
    /// What our role lacks to promote it.
    pub lacks: Option<String>,
    /// When it was started, seconds since 1970.
    pub started: i64,
    /// `server_version_num`: 150018 is 15.18.
    pub version: u32,
}

impl Sample {
    /// Of the standbys that commits wait for, so many are there.
    #[must_use]
    pub fn there(&self, rule: &SyncRule) -> usize {
        let streams = self.replicas.iter().filter(|it| it.state == "streaming");
        streams.filter(|it| rule.counts(&it.name)).count()
    }
}

/// A standby's way to its source.
#[derive(Clone, Debug, PartialEq)]
pub struct Receiver {
    /// It is connected and receives.
    pub streaming: bool,
    /// Address or name of its source.
    pub host: String,
    /// Time since the source was last heard.
    pub heard: Option<Duration>,
}

/// A standby, as the primary sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// `application_name`, by which `synchronous_standby_names` knows it.
    pub name: String,
    /// Its address.
    pub address: Option<IpAddr>,
    /// `streaming`, `catchup`…
    pub state: String,
    /// `async`, `sync`, `potential` or `quorum`.
    pub sync_state: String,
}

/// Why a server did not say anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// In words.
    pub reason: String,
}

/// What a failure says of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Its host answers that nobody listens, or has ended the connection.
    Dead,
    /// Nothing comes back.
    Silent,
    /// It lives, but does not let us ask: wrong password, starting up, too many clients.
    Refuses,
    /// It lives, but its disk takes nothing, and without that it lets nobody in.
    Full,
    /// It answers, but cannot be used: too old, a privilege is missing.
    Unfit,
}

impl FailureKind {
    /// Whether the server may be down.
    #[must_use]
    pub fn is_down(self) -> bool {
        matches!(self, Self::Dead | Self::Silent)
    }
}
