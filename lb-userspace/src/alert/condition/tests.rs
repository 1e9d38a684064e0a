use super::*;
use crate::postgres::{
    monitor::Detail,
    monitor::SlotState,
    sample::FailureKind,
    status::{Asks, Degradation, Route, Sync},
};

fn server(name: &str, role: Role) -> Server {
    let route = Route { state: "serves".into(), why: String::new() };
    let standby = role == Role::Standby;
    Server {
        name: name.into(),
        address: "192.0.2.31:5432".parse().unwrap(),
        answers: true,
        failure: None,
        failure_kind: None,
        role: Some(role),
        version: None,
        system_id: None,
        timeline: Some(1),
        received: None,
        replayed: None,
        lag_bytes: standby.then_some(0),
        lag_ms: standby.then_some(0),
        streams_from: standby.then(|| "192.0.2.31".into()),
        quarantined: None,
        cannot_write: None,
        sync: None,
        read_write: route.clone(),
        read_only: route,
        detail: None,
    }
}

/// A primary with its standby; all is well.
fn whole() -> Database {
    Database {
        name: "appdb".into(),
        promotion: "manual".into(),
        primary: Some("pg-01".into()),
        writes_to: Some("pg-01".into()),
        epoch: 1,
        phase: Some(Phase::Serving),
        servers: vec![server("pg-01", Role::Primary), server("pg-02", Role::Standby)],
        max_lag: 1 << 20,
        max_retained: 1 << 30,
        ..Database::default()
    }
}

fn found(change: impl FnOnce(&mut Database)) -> Vec<(&'static str, String, String)> {
    let mut database = whole();
    change(&mut database);
    let mut conditions = Vec::new();
    of_database(&database, &mut conditions);
    conditions.into_iter().map(|it| (it.alert, it.subject, it.text)).collect()
}

#[test]
fn nothing_is_said_of_what_is_well() {
    assert_eq!(found(|_| ()), []);
}

#[test]
fn a_primary_that_is_down_is_one_alert_that_names_what_there_is_in_its_place() {
    let found = found(|it| {
        it.servers[0].answers = false;
        it.servers[0].failure = Some("Connection refused".into());
        it.servers[0].failure_kind = Some(FailureKind::Dead);
        it.servers[1].lag_bytes = Some(12);
        it.problem = Some("nobody to write to".into());
    });
    let [(alert, subject, text)] = &found[..] else { panic!("{found:?}") };
    assert_eq!((*alert, subject.as_str()), ("primary_down", "appdb/pg-01"));
    assert_eq!(
        text,
        "primary database pg-01 (192.0.2.31:5432) is DOWN: Connection refused. Standby pg-02 is 12 \
         bytes behind. Promotion: manual"
    );
}

/// An alert, what it is about, and what leads to it.
type Case = (&'static str, &'static str, Box<dyn FnOnce(&mut Database)>);

#[test]
fn each_thing_that_is_wrong_with_a_database_has_its_alert() {
    let slot = |status: &str, retained_bytes| Detail {
        slots: vec![SlotState {
            name: "pg2".into(),
            active: false,
            retained_bytes,
            wal_status: status.into(),
        }],
        ..Detail::default()
    };
    let cases: Vec<Case> = vec![
        ("server_down", "appdb/pg-02", Box::new(|it| it.servers[1].answers = false)),
        ("standby_not_streaming", "appdb/pg-02", Box::new(|it| it.servers[1].streams_from = None)),
        ("standby_lag", "appdb/pg-02", Box::new(|it| it.servers[1].lag_bytes = Some(2 << 20))),
        (
            "quarantined",
            "appdb/pg-02",
            Box::new(|it| {
                it.servers[1].role = Some(Role::Primary);
                it.servers[1].quarantined = Some("it takes writes on timeline 1".into());
            }),
        ),
        (
            "sync_lost",
            "appdb/pg-01",
            Box::new(|it| {
                it.servers[0].sync = Some(Sync { need: 1, have: 0 });
            }),
        ),
        (
            "sync_degraded",
            "appdb/pg-01",
            Box::new(|it| {
                it.degraded = Some(Degradation {
                    server: "pg-01".into(),
                    names: "pg-02".into(),
                    by: "lb-01".into(),
                    restoring: false,
                    need: 1,
                    have: 0,
                    by_itself: false,
                });
            }),
        ),
        (
            "slot_retention",
            "appdb/pg-01/pg2",
            Box::new(move |it| {
                it.servers[0].detail = Some(slot("extended", 2 << 30));
            }),
        ),
        (
            "slot_retention",
            "appdb/pg-01/pg2",
            Box::new(move |it| {
                it.servers[0].detail = Some(slot("unreserved", 1));
            }),
        ),
        (
            "cannot_write",
            "appdb/pg-01",
            Box::new(|it| it.servers[0].cannot_write = Some("No space left on device".into())),
        ),
        (
            "slot_lost",
            "appdb/pg-01/pg2",
            Box::new(move |it| {
                it.servers[0].detail = Some(slot("lost", 0));
            }),
        ),
        (
            "promotion_announced",
            "appdb",
            Box::new(|it| {
                let (approve, veto) = ("yes-1".into(), "no-1".into());
                it.asks = Some(Asks { candidate: "pg-02".into(), approve, veto, answer: None });
            }),
        ),
        ("no_writes", "appdb", Box::new(|it| it.problem = Some("pg-01 is a standby now".into()))),
        (
            "change_stuck",
            "appdb",
            Box::new(|it| {
                it.problem = Some("the change of the primary is stuck".into());
                it.phase = Some(Phase::Frozen);
            }),
        ),
    ];
    for (alert, subject, change) in cases {
        let found = found(change);
        let [(told, about, _)] = &found[..] else { panic!("{alert}: {found:?}") };
        assert_eq!((*told, about.as_str()), (alert, subject));
    }
    let well = found(|it| it.servers[0].sync = Some(Sync { need: 1, have: 1 }));
    assert_eq!(well, []);
    let well = found(|it| it.servers[0].detail = Some(slot("extended", 1 << 20)));
    assert_eq!(well, []);
}

#[test]
fn a_channel_that_fails_is_told_by_the_others() {
    let channel = ChannelStatus { name: "slack".into(), ..ChannelStatus::default() };
    let failing = ChannelStatus {
        name: "hook".into(),
        failing: Some("it answers 500".into()),
        ..ChannelStatus::default()
    };
    let mut conditions = Vec::new();
    of_channels("lb-01", &[channel, failing], &mut conditions);
    assert_eq!(conditions.len(), 1);
    assert_eq!(conditions[0].subject, "lb-01/hook");
    assert!(conditions[0].text.contains("it answers 500"));
}
