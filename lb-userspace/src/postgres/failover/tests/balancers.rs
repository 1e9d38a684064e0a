//! One of two balancers through a change of the primary.

use super::{steps::Site, *};
use crate::postgres::record::Cause;

#[test]
fn other_balancers_close_their_gates_first() {
    let mut site = Site::serving(settings("lb-01", &["lb-02"], 2));
    site.left();
    site.kill_primary();
    site.promote(Some(0));
    let record = Box::new(site.disk.clone().unwrap());
    let (epoch, revision) = record.place();
    let message = Message::Record(record);
    assert_eq!(site.left(), [Action::Tell { node: "lb-02".into(), message: message.clone() }]);
    let ack =
        |revision| Event::Heard { node: "lb-02".into(), message: Message::Ack((epoch, revision)) };
    site.take(ack(revision - 1));
    assert!(site.left().is_empty(), "that was about another record");
    site.tick(1100);
    assert_eq!(site.left(), [Action::Tell { node: "lb-02".into(), message }], "once more");
    site.take(ack(revision));
    assert_eq!(site.left(), [Action::Revoke("pg-02".into())]);
    site.revoked("pg-02", 1000);
    let left = site.left();
    assert!(matches!(&left[..], [Action::Tell { .. }]), "nor is it promoted yet: {left:?}");
    site.take(ack(revision + 1));
    assert!(matches!(&site.left()[..], [Action::Promote { .. }]));
}

#[test]
fn a_silent_balancer_stops_the_change() {
    let mut site = Site::serving(settings("lb-01", &["lb-02"], 2));
    site.kill_primary();
    site.promote(Some(0));
    for _ in 0..6 {
        site.tick(1000);
    }
    let why = site.finished().unwrap_err();
    assert!(why.contains("lb-02") && why.contains("--peer-is-down"), "{why}");
    assert_eq!(site.open.as_deref(), Some("pg-01"));
    let absent = ["lb-02".to_owned()].into();
    let command = Command::Promote { server: None, may_lose: Some(0), absent, force: false };
    site.take(Event::Command(command));
    assert!(site.left().contains(&Action::Revoke("pg-02".into())));
}

#[test]
fn a_balancer_follows_the_later_record() {
    let mut site = Site::serving(settings("lb-02", &["lb-01"], 2));
    site.left();
    let ours = site.disk.clone().unwrap();
    let run = site.machine.draft(&ours, Cause::Operator, site.now);
    let run = crate::postgres::record::Run { controller: "lb-01".into(), ..run };
    let fencing = ours.next(|next| (next.phase, next.run) = (Phase::Fencing, Some(run)));
    let heard = |record: &Record| Event::Heard {
        node: "lb-01".into(),
        message: Message::Record(Box::new(record.clone())),
    };
    site.take(heard(&fencing));
    assert_eq!(site.open, None);
    assert_eq!(site.disk.as_ref(), Some(&fencing));
    let ack = Action::Tell { node: "lb-01".into(), message: Message::Ack(fencing.place()) };
    assert_eq!(site.left(), std::slice::from_ref(&ack));
    site.take(heard(&fencing));
    assert_eq!(site.left(), [ack], "as often as it is asked");
    // An older record does not open the gate again.
    site.take(heard(&ours));
    assert_eq!(site.open, None);
    // A restart changes nothing about that.
    site.restart();
    assert_eq!(site.open, None);
    let serving = fencing.next(|next| {
        (next.epoch, next.phase, next.run) = (2, Phase::Serving, None);
        next.primary = "pg-02".into();
        next.branch.timeline = 2;
    });
    site.take(heard(&serving));
    assert_eq!(site.open, None, "it looks for itself");
    let promoted = Sample { timeline: 2, started: 5, ..primary(1200) };
    site.sees("pg-02", Ok(promoted));
    assert_eq!(site.open.as_deref(), Some("pg-02"));
}

#[test]
fn a_balancer_that_was_off_opens_nothing_by_itself() {
    let mut site = Site::serving(settings("lb-02", &["lb-01"], 2));
    let record = site.disk.clone().unwrap();
    let settings = site.machine.settings.clone();
    site.machine = Machine::new(settings, Some(record.clone()), false);
    site.tick(250);
    let asks = site.left().into_iter().rev().find_map(|action| match action {
        Action::Tell { message: Message::Ask(number), .. } => Some(number),
        _ => None,
    });
    let number = asks.expect("it asks the other");
    site.sees("pg-01", Ok(primary(1000)));
    site.sees("pg-02", Ok(standby(1000)));
    assert_eq!(site.open, None);
    let answer = |number: u64| Event::Heard {
        node: "lb-01".into(),
        message: Message::Answer(number, Some(Box::new(record.clone()))),
    };
    site.take(answer(number - 1));
    assert_eq!(site.open, None, "that was an answer to another life's question");
    site.take(answer(number));
    assert_eq!(site.open.as_deref(), Some("pg-01"));
}

#[test]
fn the_databases_tell_of_a_change_that_was_missed() {
    let mut site = Site::serving(settings("lb-02", &["lb-01"], 2));
    let mark = Mark { epoch: 4, server: "pg-02".into(), node: "lb-01".into() };
    let promoted = Sample { timeline: 2, mark: Some(mark), started: 5, ..primary(1200) };
    site.sees("pg-02", Ok(promoted));
    assert_eq!(site.open.as_deref(), Some("pg-02"));
    assert_eq!(site.disk.as_ref().unwrap().epoch, 4);
    // Somebody else's promotion, by hand, is none.
    let by_hand = Sample { timeline: 2, ..primary(1300) };
    site.sees("pg-01", Ok(by_hand));
    assert_eq!(site.open.as_deref(), Some("pg-02"));
    assert!(site.machine.barred().contains_key("pg-01"));
}

#[test]
fn what_another_balancer_began_to_promote_is_the_only_candidate() {
    let mut site = Site::serving(settings("lb-02", &["lb-01"], 3));
    let ours = site.disk.clone().unwrap();
    let run = crate::postgres::record::Run {
        controller: "lb-01".into(),
        candidate: Some("pg-02".into()),
        ..site.machine.draft(&ours, Cause::Operator, site.now)
    };
    let promoting = ours.next(|next| (next.phase, next.run) = (Phase::Promoting, Some(run)));
    let message = Message::Record(Box::new(promoting));
    site.take(Event::Heard { node: "lb-01".into(), message });
    site.left();
    let promote = |server: &str| {
        let server = Some(server.to_owned());
        let absent = ["lb-01".to_owned()].into();
        Event::Command(Command::Promote { server, may_lose: Some(0), absent, force: false })
    };
    site.take(promote("pg-03"));
    assert!(site.finished().unwrap_err().contains("pg-02 may have been promoted already"));
    site.take(promote("pg-02"));
    for _ in 0..25 {
        let result = Err(PromoteError { sent: false, why: "connection refused".into() });
        site.take(Event::Promoted { server: "pg-02".into(), result });
        site.tick(1100);
    }
    assert_eq!(site.disk.unwrap().phase, Phase::Frozen, "the old primary is not given back");
}
