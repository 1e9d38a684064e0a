//! What several tests of databases need.

use std::{net::SocketAddr, time::Duration};

use crate::config::{Durability, Postgres, Promotion, Server};

/// A database of one server, `pg-01`, which is asked as `ballast` without a password, and may take so long.
pub(super) fn one_server(address: SocketAddr, timeout: Duration) -> (Postgres, Server) {
    let server = Server { name: "pg-01".into(), address, host: None };
    let database = Postgres {
        name: "appdb".into(),
        read_write: None,
        read_only: None,
        read_from_primary: true,
        user: "ballast".into(),
        password_file: None,
        database: "postgres".into(),
        ca_file: None,
        interval: Duration::from_secs(1),
        timeout,
        promotion: Promotion::Manual,
        max_loss: 0,
        durability: Durability::Strict,
        max_lag: 0,
        max_retained: 0,
        servers: vec![server.clone()],
        consensus: None,
    };
    (database, server)
}
