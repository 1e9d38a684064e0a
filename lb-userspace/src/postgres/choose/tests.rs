use std::time::Duration;

use super::*;
use crate::postgres::{
    record::{Cause, Phase},
    sync::SyncRule,
};

fn record() -> Record {
    let branch = Branch { system_id: 7, timeline: 3, switch: Lsn(0) };
    Record::first("pg-01", branch, None)
}

fn run() -> Run {
    Run {
        controller: "lb-01".into(),
        cause: Cause::Operator,
        target: None,
        may_lose: Some(0),
        absent: BTreeSet::new(),
        last_known: Some(LastKnown { end: Lsn(1000), since: 0 }),
        sync: None,
        sync_servers: BTreeMap::new(),
        sync_from: Lsn(0),
        candidate: None,
        loss: None,
        stuck: None,
    }
}

fn standby(received: u64) -> Sample {
    Sample {
        role: Role::Standby,
        system_id: 7,
        timeline: 3,
        received: Lsn(received),
        replayed: Lsn(received),
        mark: None,
        receiver: None,
        patience: Some(Duration::from_secs(2)),
        paused: false,
        delay: Duration::ZERO,
        revoked: true,
        sync: None,
        sync_names: String::new(),
        replicas: Vec::new(),
        lacks: None,
        started: 0,
        version: 150_000,
    }
}

/// Names and positions; the preferred first.
fn chosen(run: &Run, servers: &[(&str, Sample)]) -> Result<Choice, Refusal> {
    let order: Vec<String> = servers.iter().map(|(name, _)| (*name).to_owned()).collect();
    let seen = servers.iter().map(|(name, it)| ((*name).to_owned(), it.clone())).collect();
    assert_eq!(record().phase, Phase::Serving);
    choose(&record(), run, &seen, &order)
}

fn server(run: &Run, servers: &[(&str, Sample)]) -> String {
    chosen(run, servers).unwrap().server
}

#[test]
fn the_most_advanced_is_chosen() {
    let run = run();
    assert_eq!(server(&run, &[("b", standby(1000)), ("c", standby(1001))]), "c");
    // Of equals the one that has replayed more, and then the first.
    let late = Sample { replayed: Lsn(900), ..standby(1000) };
    assert_eq!(server(&run, &[("b", late), ("c", standby(1000))]), "c");
    assert_eq!(server(&run, &[("c", standby(1000)), ("b", standby(1000))]), "c");
}

#[test]
fn the_old_primary_is_nobodys_choice() {
    let mut old = standby(5000);
    old.role = Role::Primary;
    assert!(matches!(chosen(&run(), &[("pg-01", old)]), Err(Refusal::Nobody(_))));
}

#[test]
fn what_cannot_be_promoted_is_named() {
    let other = Sample { system_id: 8, ..standby(1000) };
    let behind = Sample { timeline: 2, ..standby(1000) };
    let paused = Sample { paused: true, ..standby(1000) };
    let late = Sample { delay: Duration::from_mins(1), ..standby(1000) };
    let zombie = Sample { role: Role::Primary, ..standby(1000) };
    let promoted = Sample { role: Role::Primary, timeline: 4, ..standby(1000) };
    for (sample, word) in [
        (other, "another cluster"),
        (behind, "timeline 2"),
        (paused, "paused"),
        (late.clone(), "late on purpose"),
        (zombie, "no standby"),
        (promoted.clone(), "promoted already"),
    ] {
        let error = chosen(&run(), &[("b", sample)]).unwrap_err().to_string();
        assert!(error.contains("b: ") && error.contains(word), "{error}");
    }
    // What is asked for by name may be late, or out of recovery already.
    let asked = Run { target: Some("b".into()), ..run() };
    assert_eq!(server(&asked, &[("b", late)]), "b");
    assert_eq!(server(&asked, &[("b", promoted)]), "b");
    let error = chosen(&asked, &[("c", standby(2000))]).unwrap_err().to_string();
    assert_eq!(error, "b cannot be promoted: it does not answer");
}

#[test]
fn what_is_lost_is_counted_from_the_last_that_was_known() {
    let loss = |run: &Run, servers: &[(&str, Sample)]| chosen(run, servers).unwrap().loss.unwrap();
    let generous = Run { may_lose: Some(10_000), ..run() };
    assert_eq!(loss(&generous, &[("b", standby(400))]).known, 600);
    // It received more than was last known of the primary.
    assert_eq!(loss(&generous, &[("b", standby(2000))]).at_most, 0);
    let since = LastKnown { end: Lsn(1000), since: 300 };
    let unsure = Run { last_known: Some(since), ..generous.clone() };
    let lost = loss(&unsure, &[("b", standby(900))]);
    assert_eq!((lost.known, lost.at_most, lost.proven), (100, 400, false));
    assert_eq!(loss(&unsure, &[("b", standby(1200))]).at_most, 100);
    // Somebody else has more.
    let asked = Run { target: Some("b".into()), ..generous };
    assert_eq!(loss(&asked, &[("b", standby(900)), ("c", standby(1500))]).known, 600);
}

#[test]
fn more_than_is_allowed_is_not_lost() {
    let error = chosen(&run(), &[("b", standby(999))]).unwrap_err();
    assert!(matches!(error, Refusal::Loss { at_most: 1, limit: 0, .. }), "{error}");
    let one = Run { may_lose: Some(1), ..run() };
    assert_eq!(server(&one, &[("b", standby(999))]), "b");
    let blind = Run { last_known: None, ..run() };
    assert!(matches!(chosen(&blind, &[("b", standby(999))]), Err(Refusal::Unknown(_))));
    let reckless = Run { may_lose: None, ..blind };
    let choice = chosen(&reckless, &[("b", standby(999))]).unwrap();
    assert_eq!(choice.loss, None);
}

#[test]
fn synchronous_replication_proves_that_nothing_is_lost() {
    let sync = |rule: &str| Run {
        sync: SyncRule::parse(rule),
        sync_servers: ["b", "c"].map(|name| (name.to_owned(), name.to_owned())).into(),
        last_known: None,
        ..run()
    };
    // Nothing need be known of the primary.
    let one = sync("FIRST 1 (b)");
    assert!(chosen(&one, &[("b", standby(10))]).unwrap().loss.unwrap().proven);
    // What it lacks was acknowledged before commits waited for it.
    let late = Run { sync_from: Lsn(11), ..one };
    assert!(matches!(chosen(&late, &[("b", standby(10))]), Err(Refusal::Unknown(_))));
    let two = sync("ANY 1 (b, c)");
    assert!(matches!(chosen(&two, &[("b", standby(10))]), Err(Refusal::Unknown(_))));
    assert_eq!(server(&two, &[("b", standby(10)), ("c", standby(20))]), "c");
    // The less advanced proves nothing, nor does one that still hears the old primary.
    let asked = Run { target: Some("b".into()), ..two.clone() };
    assert!(chosen(&asked, &[("b", standby(10)), ("c", standby(20))]).is_err());
    let open = Sample { revoked: false, ..standby(20) };
    assert!(chosen(&two, &[("c", standby(30)), ("b", open.clone())]).is_err());
    assert_eq!(server(&two, &[("c", standby(10)), ("b", open)]), "b", "promotion takes its way");
}
