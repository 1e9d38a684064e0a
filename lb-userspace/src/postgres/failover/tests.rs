//! Tables of what the machine does, step by step; [`sim`] plays whole lives of a site.

use super::{store::CLOSES, *};
use crate::postgres::{
    record::Loss,
    sample::{FailureKind, Receiver, Replica, Role},
    sync::SyncRule,
};

mod balancers;
mod calm;
mod names;
mod sim;
mod steps;
mod unattended;

/// The servers of all tests.
pub(super) const SERVERS: [&str; 3] = ["pg-01", "pg-02", "pg-03"];

pub(super) fn address(server: &str) -> IpAddr {
    let at = SERVERS.iter().position(|it| *it == server).expect("a server of the tests");
    IpAddr::from([192, 0, 2, 31 + at as u8])
}

pub(super) fn settings(node: &str, peers: &[&str], servers: usize) -> Settings {
    Settings {
        name: "appdb".into(),
        node: node.into(),
        peers: peers.iter().map(|&peer| peer.to_owned()).collect(),
        servers: SERVERS[..servers].iter().map(|&it| (it.to_owned(), address(it))).collect(),
        unattended: None,
    }
}

pub(super) fn primary(received: u64) -> Sample {
    Sample {
        role: Role::Primary,
        system_id: 7,
        timeline: 1,
        received: Lsn(received),
        replayed: Lsn(received),
        mark: None,
        receiver: None,
        patience: Some(Duration::from_secs(2)),
        paused: false,
        delay: Duration::ZERO,
        revoked: false,
        sync: None,
        sync_names: String::new(),
        replicas: Vec::new(),
        lacks: None,
        started: 1,
        version: 150_000,
    }
}

pub(super) fn standby(received: u64) -> Sample {
    let receiver = Receiver {
        streaming: true,
        host: "192.0.2.31".into(),
        heard: Some(Duration::from_millis(10)),
    };
    Sample { role: Role::Standby, receiver: Some(receiver), ..primary(received) }
}

pub(super) fn failure(kind: FailureKind) -> Failure {
    Failure { kind, reason: format!("{kind:?}") }
}
