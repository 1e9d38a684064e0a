//! `[[postgres]]`: a database and its servers.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

/// `[[postgres]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postgres {
    /// Name, unique.
    pub name: String,
    /// Where clients write: leads to the primary only.
    pub read_write: Option<SocketAddr>,
    /// Where clients read: leads to the standbys that are not too late.
    pub read_only: Option<SocketAddr>,
    /// The primary serves reads while no standby is fit.
    pub read_from_primary: bool,
    /// The role that the servers are asked as.
    pub user: String,
    /// File with its password.
    pub password_file: Option<PathBuf>,
    /// The database that is connected to.
    pub database: String,
    /// Certificates that the servers' are verified by; without them, connections are not encrypted.
    pub ca_file: Option<PathBuf>,
    /// Time between two questions to a server.
    pub interval: Duration,
    /// A question that takes longer has failed.
    pub timeout: Duration,
    /// Who changes the primary.
    pub promotion: Promotion,
    /// Bytes of acknowledged log that a promotion without a person may lose.
    pub max_loss: u64,
    /// What becomes of commits whose synchronous standbys are missing.
    pub durability: Durability,
    /// Bytes that a standby may be behind and still serve reads.
    pub max_lag: u64,
    /// Bytes of log that a replication slot may keep before an alert says so.
    pub max_retained: u64,
    /// Its servers, the preferred candidates first; at least one.
    pub servers: Vec<Server>,
    /// Where the record is kept, unless only a person changes the primary.
    pub consensus: Option<Consensus>,
}

/// `[consensus]`: where a majority keeps who the primary is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consensus {
    /// Addresses of the members of etcd, such as `https://192.0.2.11:2379`; at least one.
    pub etcd: Vec<String>,
    /// Certificates that the members' are verified by, for `https`.
    pub ca_file: Option<PathBuf>,
    /// The user that etcd is asked as, if it asks for one.
    pub user: Option<String>,
    /// File with the user's password.
    pub password_file: Option<PathBuf>,
    /// Name of the cluster: what keys begin with.
    pub cluster: String,
}

/// `[[postgres.server]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Name, unique within the database.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// How commands get to its host; none if they do not.
    pub host: Option<ServerHost>,
}

/// How commands get to the host of a server, and what they need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHost {
    /// What stands before a command: it begins a shell there, as the server's user.
    pub command: Vec<String>,
    /// Its data.
    pub data_directory: PathBuf,
    /// A line of shell that stops the server; `pg_ctl` if absent.
    pub stop_command: Option<String>,
    /// A line of shell that starts the server; `pg_ctl` if absent.
    pub start_command: Option<String>,
    /// The role that standbys stream as.
    pub replication_user: String,
    /// The role that `pg_rewind` connects as; it is cloned if absent.
    pub rewind_user: Option<String>,
}

/// Who changes the primary of a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Promotion {
    /// A person, by `ballast pg promote`.
    #[default]
    Manual,
    /// The balancers, unless a person says no within this time.
    Veto(Duration),
    /// The balancers.
    Automatic,
}

/// What becomes of commits whose synchronous standbys are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// They wait, until a standby or a person comes.
    #[default]
    Strict,
    /// They go on without one that has been missing for so long.
    Available(Duration),
}

/// Which of the two services of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `read_write`.
    ReadWrite,
    /// `read_only`.
    ReadOnly,
}

impl Postgres {
    /// Name of the service that is made of an address of the database.
    #[must_use]
    pub fn service(&self, access: Access) -> String {
        let word = match access {
            Access::ReadWrite => "read_write",
            Access::ReadOnly => "read_only",
        };
        format!("{}.{word}", self.name)
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Strict => f.write_str("strict"),
            Self::Available(time) => write!(f, "available {}", super::units::show(*time)),
        }
    }
}

impl fmt::Display for Promotion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manual => f.write_str("manual"),
            Self::Veto(time) => write!(f, "veto {}", super::units::show(*time)),
            Self::Automatic => f.write_str("automatic"),
        }
    }
}
