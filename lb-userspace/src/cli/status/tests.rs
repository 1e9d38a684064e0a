use std::collections::BTreeMap;

use jiff::Timestamp;

use super::*;
use crate::{
    control::status::{Floating, Passive, Retiring},
    dataplane::{Attachment, Info, MapSize},
    peer::Peer,
};

fn backend(name: &str) -> Backend {
    Backend {
        name: name.into(),
        address: "192.0.2.21:8080".parse().unwrap(),
        health: Health::Up,
        serving: true,
        draining: false,
        backup: false,
        admin: Admin::Enabled,
        reason: "HTTP 200".into(),
        verdict: vec!["fit".into()],
        passive: None,
        since: Timestamp::from_second(1_700_000_000).unwrap(),
        weight: 1,
        weight_percent: 100,
        next_hop: None,
        connections: 10,
        answered: 10,
        active: 3,
        forward_packets: 100,
        forward_bytes: 10_000,
        return_packets: 100,
        return_bytes: 20_000,
        connections_per_second: 2.5,
        forward_bytes_per_second: 1500.0,
        return_bytes_per_second: 0.0,
        proxy: None,
    }
}

fn status() -> Status {
    let down = Backend {
        health: Health::Down,
        serving: false,
        reason: "connection refused".into(),
        verdict: vec!["down: connection refused".into()],
        ..backend("app-02")
    };
    Status {
        alerts: None,
        files: None,
        node: "lb-01".into(),
        cluster: "edge".into(),
        version: "0.1.0".into(),
        pid: 42,
        started: Timestamp::from_second(1_700_000_000).unwrap(),
        uptime_seconds: 125,
        config_loaded: Timestamp::from_second(1_700_000_000).unwrap(),
        anycast: Vec::new(),
        floating: vec![Floating {
            vrid: 51,
            address: "192.0.2.100/24".into(),
            holder: "lb-01".into(),
            held: true,
            role: None,
            problem: None,
        }],
        peers: vec![Peer {
            name: "lb-02".into(),
            address: "192.0.2.12:9181".parse().unwrap(),
            up: true,
            since: Timestamp::from_second(1_700_000_065).unwrap(),
            round_trip_us: Some(300),
            same_config: Some(false),
            in_sync: true,
            holds: Some(false),
            lingers_ms: 0,
            leaves: false,
            services: Some(Fit { fit: 1, all: 2 }),
            backends: Some(Fit { fit: 3, all: 4 }),
            sent: 70,
            received: 80,
            backlog: 9,
            repeated: 0,
            problem: None,
        }],
        vrrp: Vec::new(),
        dataplane: Info {
            program_id: 7,
            traces: 0,
            adopted: true,
            attachments: vec![Attachment {
                interface: "eth0".into(),
                ifindex: 2,
                mode: AttachMode::Generic,
            }],
            maps: vec![MapSize { name: "FLOWS".into(), max_entries: 8, bytes: 2_000_000 }],
            notes: Vec::new(),
        },
        flows: 3,
        services: vec![Service {
            serving_count: 1,
            backend_count: 2,
            path: "kernel".into(),
            proxied: false,
            proxy: None,
            name: "web".into(),
            listen: "192.0.2.100:80".parse().unwrap(),
            protocol: "tcp".into(),
            forward: "tunnel".into(),
            encapsulation: Some("gue".into()),
            slots: Some(Slots { total: 4096, disturbed: 17 }),
            balance: "least_conn".into(),
            panic: false,
            on_backups: false,
            connections: 20,
            refused: 1,
            replayed: 0,
            not_replayed: 0,
            connections_per_second: 2.5,
            backends: vec![backend("app-01"), down],
        }],
        retiring: vec![Retiring {
            id: 3,
            address: "192.0.2.29:8080".parse().unwrap(),
            seconds_left: Some(12),
        }],
        postgres: Vec::new(),
        reasons: BTreeMap::from([("no_service".into(), 5)]),
        warnings: vec!["something".into()],
    }
}

#[test]
fn all_that_matters_is_there() {
    let text = render(&status());
    for line in [
        "node lb-01 of edge, ballast 0.1.0, up 2 min 5 s, process 42",
        "warning: something",
        "  192.0.2.100/24  vrid 51  held",
        "  lb-02  192.0.2.12:9181  up  1 min 0 s  300 us  OTHER CONFIGURATION  in sync  1 of 2 services \
         serve  70 changes sent, 80 received  9 behind",
        "  interface    eth0, generic mode (slow: the driver has no XDP)",
        "  maps         2.0 MB in 1",
        "SERVICE web  tcp 192.0.2.100:80  tunnel (gue)  least_conn  20 connections (2.5/s), 1 \
         refused  17 of 4096 slots remember an earlier table",
        "  192.0.2.29:8080  may go on for 12 s",
        "  no_service  5",
    ] {
        assert!(text.lines().any(|it| it == line), "{line:?} is not in:\n{text}");
    }
    let row = |name: &str| text.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
    assert!(row("app-01").contains("serves") && row("app-01").ends_with("HTTP 200"));
    assert!(row("app-02").ends_with("down: connection refused"));
}

#[test]
fn a_node_that_is_not_heard_says_why() {
    let mut status = status();
    status.peers[0].up = false;
    assert!(render(&status).contains("  not heard  "));
    status.peers[0].problem = Some("it is sealed with another key".into());
    assert!(render(&status).contains("  refused: it is sealed with another key  "));
}

#[test]
fn a_service_without_backends_that_serve_says_so() {
    let mut status = status();
    status.services[0].backends.remove(0);
    assert!(render(&status).contains("DOWN: no backend serves"));
    status.services[0].backends[0].serving = true;
    status.services[0].panic = true;
    assert!(render(&status).contains("PANIC"));
}

#[test]
fn what_connections_say_is_a_state_of_its_own() {
    let mut status = status();
    let service = &mut status.services[0];
    for (state, serving, word) in [
        (PassiveState::Ejected, false, "  ejected  "),
        (PassiveState::Ejected, true, "  ejected, serves  "),
        (PassiveState::Failing, true, "  fails, serves  "),
        (PassiveState::Fit, true, "  serves  "),
    ] {
        service.backends[0].serving = serving;
        service.backends[0].passive = Some(Passive {
            state,
            reason: None,
            ejected_for: None,
            handshake_p50_us: Some(80),
            handshake_p99_us: None,
            patience_ms: Some(50),
        });
        let rows = columns(&[row(&service.backends[0], 0)], 2);
        assert!(rows.contains(word), "{rows}");
    }
}

#[test]
fn it_survives_the_way_through_json() {
    let status = status();
    let json = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
}
