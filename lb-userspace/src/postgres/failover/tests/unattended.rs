//! One of two balancers where the primary may change without a person.

use super::{steps::Site, *};
use crate::postgres::record::Cause;

pub(super) fn rules(veto: Option<Duration>, max_loss: u64) -> Settings {
    let unattended = Some(Unattended { veto, max_loss, available: None, seed: 42 });
    Settings { unattended, ..settings("lb-01", &["lb-02"], 2) }
}

/// A site whose store answers, and whose primary was seen with a standby that commits wait for.
pub(super) fn serving(settings: Settings) -> Site {
    let mut site = Site::serving(settings);
    site.stored();
    for _ in 0..3 {
        whole(&mut site);
    }
    assert_eq!(site.machine.record(), site.store.as_ref());
    site.left();
    site
}

pub(super) fn synchronous(received: u64) -> Sample {
    let replica = Replica {
        name: "pg-02".into(),
        address: Some(address("pg-02")),
        state: "streaming".into(),
        sync_state: "sync".into(),
    };
    let rule = SyncRule { need: 1, names: vec!["pg-02".into()] };
    Sample { sync: Some(rule), replicas: vec![replica], ..primary(received) }
}

/// A quarter of a second in which nothing is wrong.
fn whole(site: &mut Site) {
    site.tick(250);
    site.sees("pg-01", Ok(synchronous(1000)));
    site.sees("pg-02", Ok(standby(1000)));
}

pub(super) fn left_alone(received: u64) -> Sample {
    Sample { receiver: None, ..standby(received) }
}

/// The primary is found dead by this balancer and by its standby.
pub(super) fn fails(site: &mut Site) {
    for _ in 0..2 {
        site.tick(250);
        site.sees("pg-01", Err(failure(FailureKind::Dead)));
        site.sees("pg-02", Ok(left_alone(1000)));
    }
}

pub(super) fn phase(site: &Site) -> Phase {
    site.disk.as_ref().expect("a record").phase
}

pub(super) fn heard(message: Message) -> Event {
    Event::Heard { node: "lb-02".into(), message }
}

pub(super) fn place(site: &Site) -> (u64, u64) {
    site.disk.as_ref().expect("a record").place()
}

/// Whether the primary may be reached at this moment.
fn passes(site: &Site) -> bool {
    site.open.is_some() && site.machine.lease().is_some_and(|until| until > site.now)
}

#[test]
fn a_primary_that_failed_is_replaced() {
    let mut site = serving(rules(None, 0));
    site.tick(250);
    site.sees("pg-01", Err(failure(FailureKind::Dead)));
    site.sees("pg-02", Ok(left_alone(1000)));
    assert_eq!(phase(&site), Phase::Serving, "once is not enough");
    fails(&mut site);
    let record = site.disk.clone().unwrap();
    assert_eq!(record.phase, Phase::Fencing);
    assert_eq!(record.run.unwrap().cause, Cause::Failure);
    assert_eq!(site.store, site.disk, "the store has it");
    assert_eq!(site.open, None);
    assert!(!site.left().contains(&Action::Revoke("pg-02".into())), "the other has not agreed");
    let place = place(&site);
    site.take(heard(Message::Ack(place)));
    assert!(site.left().contains(&Action::Revoke("pg-02".into())));
    site.revoked("pg-02", 1000);
    assert_eq!(phase(&site), Phase::Promoting);
    assert!(matches!(&site.left()[..], [.., Action::Promote { .. }]), "the store has the intent");
}

/// Waits for something that the machine wants, while the primary and its standby stay as they are. Says how long
/// it took.
fn until_wanted(site: &mut Site, revoked: bool, wanted: impl Fn(&Action) -> bool) -> Duration {
    let begin = site.now;
    while !site.left().iter().any(&wanted) {
        assert!(site.now < begin + 2 * CLOSES);
        site.tick(50);
        site.sees("pg-01", Err(failure(FailureKind::Dead)));
        site.sees("pg-02", Ok(Sample { revoked, ..left_alone(1000) }));
    }
    site.now.saturating_sub(begin)
}

fn is_revocation(action: &Action) -> bool {
    *action == Action::Revoke("pg-02".into())
}

fn is_promotion(action: &Action) -> bool {
    matches!(action, Action::Promote { .. })
}

#[test]
fn a_silent_balancer_is_waited_for_until_its_lease_is_over() {
    let mut site = serving(rules(None, 0));
    fails(&mut site);
    let begin = site.now;
    // Its word is waited for a little, and the end of its lease together with that of what the servers say.
    let early = until_wanted(&mut site, false, is_revocation);
    assert!((Duration::from_millis(200)..CLOSES / 4).contains(&early), "{early:?}");
    site.revoked("pg-02", 1000);
    let cut = site.now;
    until_wanted(&mut site, true, is_revocation);
    assert_eq!(phase(&site), Phase::Fencing);
    assert!(site.now >= begin + CLOSES);
    site.revoked("pg-02", 1000);
    assert_eq!(phase(&site), Phase::Promoting);
    until_wanted(&mut site, true, is_promotion);
    assert!(site.now >= cut + CLOSES, "it may have been sure by what the servers said");
    assert!(site.now < cut + CLOSES + Duration::from_millis(200), "both run at once");
}

#[test]
fn a_standby_that_follows_again_is_waited_for_anew() {
    let fence = || {
        let mut site = serving(rules(None, 0));
        fails(&mut site);
        until_wanted(&mut site, false, is_revocation);
        site
    };
    let waits_in_full = |mut site: Site| {
        site.revoked("pg-02", 1000);
        assert_eq!(phase(&site), Phase::Promoting);
        assert!(until_wanted(&mut site, true, is_promotion) >= CLOSES);
    };
    // It cannot be taken off at first; then, in the end, it can.
    let mut site = fence();
    for _ in 0..2 {
        // Once more meanwhile, and in the end.
        until_wanted(&mut site, false, is_revocation);
    }
    waits_in_full(site);
    // Somebody has led it back.
    let mut site = fence();
    site.revoked("pg-02", 1000);
    site.tick(50);
    site.sees("pg-02", Ok(left_alone(1000)));
    for _ in 0..2 {
        until_wanted(&mut site, false, is_revocation);
    }
    waits_in_full(site);
    // A balancer that confirms ends all that.
    let mut site = fence();
    let place = place(&site);
    site.take(heard(Message::Ack(place)));
    until_wanted(&mut site, true, is_revocation);
    site.revoked("pg-02", 1000);
    assert!(matches!(&site.left()[..], [.., Action::Promote { .. }]));
}

#[test]
fn a_standby_is_led_back_by_whoever_knows_that_no_change_is_under_way() {
    let mut site = serving(rules(None, 0));
    let follow = |action: &Action| matches!(action, Action::Follow { .. });
    let looks = |site: &mut Site| {
        site.tick(250);
        site.sees("pg-01", Ok(synchronous(1000)));
        site.sees("pg-02", Ok(Sample { revoked: true, ..left_alone(1000) }));
    };
    // Nobody says that the record is in force still: another may have taken the standby off to promote it.
    site.store_down = true;
    for _ in 0..20 {
        looks(&mut site);
    }
    assert!(!site.left().iter().any(follow));
    site.store_down = false;
    for _ in 0..20 {
        looks(&mut site);
    }
    assert!(site.left().iter().any(follow));
}

#[test]
fn a_record_that_the_store_has_taken_opens_the_gate() {
    let mut site = serving(rules(None, 0));
    for _ in 0..20 {
        site.tick(250);
        // Neither the servers nor the other balancer say that the record is in force.
        site.sees("pg-02", Err(failure(FailureKind::Dead)));
    }
    assert!(passes(&site));
    site.now += Duration::from_mins(1);
    assert!(!passes(&site));
    site.take(Event::Command(Command::Fence("pg-02".into())));
    assert!(passes(&site));
}

#[test]
fn whoever_reaches_the_primary_has_a_veto() {
    // The standby.
    let mut site = serving(rules(None, 0));
    for _ in 0..20 {
        site.tick(250);
        site.sees("pg-01", Err(failure(FailureKind::Silent)));
        site.sees("pg-02", Ok(standby(1000)));
    }
    assert_eq!(phase(&site), Phase::Serving);
    assert!(site.machine.refused().is_some_and(|why| why.contains("pg-02 still hears pg-01")));
    // The other balancer, before it begins.
    let mut site = serving(rules(None, 0));
    let place = place(&site);
    for _ in 0..8 {
        site.tick(250);
        site.sees("pg-01", Err(failure(FailureKind::Silent)));
        site.take(heard(Message::Reach(place, 10)));
        site.sees("pg-02", Ok(left_alone(1000)));
    }
    assert_eq!(phase(&site), Phase::Serving);
    assert!(site.machine.refused().is_some_and(|why| why.contains("lb-02 still reaches pg-01")));
    // And after.
    fails(&mut site);
    for _ in 0..8 {
        site.tick(250);
        site.sees("pg-02", Ok(left_alone(1000)));
    }
    assert_eq!(phase(&site), Phase::Fencing);
    let place = self::place(&site);
    site.take(heard(Message::Refuse(place, "pg-01 answers it".into())));
    assert_eq!(phase(&site), Phase::Serving);
}

#[test]
fn a_standby_that_may_hear_the_primary_is_waited_for() {
    let mut site = serving(rules(None, 0));
    let mut quiet = Duration::ZERO;
    let heard = |quiet| {
        let receiver = Receiver { streaming: true, host: String::new(), heard: Some(quiet) };
        Sample { receiver: Some(receiver), ..standby(1000) }
    };
    // It asks after a second, half of its patience.
    while quiet < Duration::from_millis(1400) {
        assert_eq!(phase(&site), Phase::Serving, "after {quiet:?}");
        site.tick(200);
        quiet += Duration::from_millis(200);
        site.sees("pg-01", Err(failure(FailureKind::Silent)));
        site.sees("pg-02", Ok(heard(quiet)));
    }
    site.tick(200);
    site.sees("pg-02", Ok(heard(quiet + Duration::from_millis(200))));
    assert_eq!(phase(&site), Phase::Fencing);
}

#[test]
fn the_other_balancer_looks_before_it_agrees() {
    let mut site = serving(Settings { node: "lb-02".into(), ..rules(None, 0) });
    let ours = site.disk.clone().unwrap();
    let run = site.machine.draft(&ours, Cause::Failure, site.now);
    let run = crate::postgres::record::Run { controller: "lb-01".into(), ..run };
    let fencing = ours.next(|next| (next.phase, next.run) = (Phase::Fencing, Some(run)));
    let record = Message::Record(Box::new(fencing.clone()));
    site.machine.settings.peers = ["lb-01".to_owned()].into();
    site.take(Event::Heard { node: "lb-01".into(), message: record });
    assert_eq!(site.open, None);
    let told = |site: &mut Site| {
        site.left().into_iter().find_map(|action| match action {
            Action::Tell { message: it @ (Message::Ack(_) | Message::Refuse(..)), .. } => Some(it),
            _ => None,
        })
    };
    assert_eq!(told(&mut site), None, "what it saw before proves nothing");
    let mut other = site.machine.clone();
    site.tick(100);
    site.sees("pg-01", Ok(synchronous(1000)));
    assert!(matches!(told(&mut site), Some(Message::Refuse(..))));
    std::mem::swap(&mut other, &mut site.machine);
    site.sees("pg-01", Err(failure(FailureKind::Dead)));
    assert_eq!(told(&mut site), Some(Message::Ack(fencing.place())));
}

#[test]
fn the_loss_of_the_store_closes_no_gate_and_promotes_nobody() {
    let mut site = serving(rules(None, 0));
    site.store_down = true;
    // The other balancer is silent too: the servers say that nobody has gone on.
    for _ in 0..40 {
        whole(&mut site);
        assert!(passes(&site));
    }
    // A standby is lost as well, but the other balancer agrees.
    for _ in 0..40 {
        site.tick(250);
        site.sees("pg-01", Ok(synchronous(1000)));
        site.sees("pg-02", Err(failure(FailureKind::Dead)));
        let asked = site.left().into_iter().rev().find_map(|action| match action {
            Action::Tell { message: Message::Ask(number), .. } => Some(number),
            _ => None,
        });
        if let Some(number) = asked {
            let record = site.disk.clone().map(Box::new);
            site.take(heard(Message::Answer(number, record)));
        }
        assert!(passes(&site));
    }
    for _ in 0..4 {
        whole(&mut site);
    }
    for _ in 0..10 {
        fails(&mut site);
    }
    assert_eq!(phase(&site), Phase::Serving);
    assert!(site.machine.refused().is_some_and(|why| why.contains("etcd does not answer")));
    assert!(!passes(&site), "nobody is sure of anything any more");
    site.store_down = false;
    for _ in 0..6 {
        fails(&mut site);
    }
    assert_eq!(phase(&site), Phase::Fencing);
}

#[test]
fn a_beginning_that_cannot_be_kept_is_tried_again_later() {
    let mut site = serving(rules(None, 0));
    site.store_down = true;
    // The store has not been asked since.
    fails(&mut site);
    assert_eq!(phase(&site), Phase::Serving);
    site.store_down = false;
    for _ in 0..4 {
        fails(&mut site);
    }
    assert_eq!(phase(&site), Phase::Fencing);
}

#[test]
fn of_two_who_begin_one_does() {
    let mut site = serving(rules(None, 0));
    let ours = site.disk.clone().unwrap();
    let run = site.machine.draft(&ours, Cause::Failure, site.now);
    let run = crate::postgres::record::Run { controller: "lb-02".into(), ..run };
    let theirs = ours.next(|next| (next.phase, next.run) = (Phase::Fencing, Some(run)));
    site.store = Some(theirs.clone());
    fails(&mut site);
    assert_eq!(site.disk, Some(theirs.clone()));
    let ack = Action::Tell { node: "lb-02".into(), message: Message::Ack(theirs.place()) };
    assert!(site.left().contains(&ack));
}

#[test]
fn without_proof_a_dead_process_may_come_back_and_too_much_is_not_lost() {
    let mut site = Site::serving(rules(None, 1 << 20));
    site.stored();
    for _ in 0..4 {
        site.tick(250);
        site.sees("pg-01", Ok(primary(1000)));
        site.sees("pg-02", Ok(standby(1000)));
    }
    for _ in 0..4 {
        fails(&mut site);
    }
    assert_eq!(phase(&site), Phase::Serving, "it may be started again");
    for _ in 0..10 {
        fails(&mut site);
    }
    assert_eq!(phase(&site), Phase::Fencing);

    let mut site = Site::serving(rules(None, 100));
    site.stored();
    for _ in 0..4 {
        site.tick(250);
        site.sees("pg-01", Ok(primary(2000)));
        site.sees("pg-02", Ok(standby(1000)));
    }
    for _ in 0..20 {
        fails(&mut site);
    }
    assert_eq!(phase(&site), Phase::Serving);
    assert!(site.machine.refused().is_some_and(|why| why.contains("may lose")));
}

#[test]
fn a_person_has_the_last_word() {
    let asked = |site: &Site| site.disk.as_ref().unwrap().doubt.clone();
    let wait = Some(Duration::from_secs(30));
    let mut site = serving(rules(wait, 0));
    fails(&mut site);
    let doubt = asked(&site).expect("a person is asked");
    assert_eq!((phase(&site), site.open.as_deref()), (Phase::Serving, Some("pg-01")));
    assert_ne!(doubt.approve, doubt.veto);
    site.take(Event::Command(Command::Approve(doubt.veto.clone())));
    assert!(site.finished().unwrap_err().contains("not the token"));
    site.take(Event::Command(Command::Veto(doubt.veto.clone())));
    assert!(site.finished().unwrap().contains("forbidden"));
    for _ in 0..100 {
        fails(&mut site);
    }
    assert_eq!(phase(&site), Phase::Serving, "no is no");
    site.take(Event::Command(Command::Approve(doubt.approve.clone())));
    assert!(site.finished().unwrap_err().contains("already"));
    // It comes back, and fails again: that is another question.
    whole(&mut site);
    assert_eq!(asked(&site), None);
    site.take(Event::Command(Command::Approve(doubt.approve)));
    assert!(site.finished().unwrap_err().contains("nothing is asked"));
    fails(&mut site);
    let doubt = asked(&site).expect("a person is asked again");
    site.take(Event::Command(Command::Approve(doubt.approve)));
    assert_eq!(phase(&site), Phase::Fencing);

    // Who says nothing agrees.
    let mut site = serving(rules(wait, 0));
    fails(&mut site);
    let begin = site.now;
    while phase(&site) == Phase::Serving {
        assert!(site.now < begin + Duration::from_secs(40));
        fails(&mut site);
    }
    assert!(site.now >= begin + Duration::from_secs(30));
}

#[test]
fn another_balancer_goes_on_for_one_that_fell_silent() {
    let mut site = serving(rules(None, 0));
    fails(&mut site);
    let ours = site.disk.clone().unwrap();
    let run = ours.run.clone().map(|run| crate::postgres::record::Run {
        controller: "lb-02".into(),
        candidate: Some("pg-02".into()),
        ..run
    });
    let theirs = ours.next(|next| (next.phase, next.run) = (Phase::Promoting, run));
    site.store = Some(theirs.clone());
    site.take(heard(Message::Record(Box::new(theirs))));
    site.left();
    let begin = site.now;
    while !site.left().iter().any(|it| matches!(it, Action::Promote { .. })) {
        assert!(site.now < begin + Duration::from_secs(20));
        site.tick(250);
    }
    assert!(site.now >= begin + Duration::from_secs(4));
    assert!(site.disk.as_ref().unwrap().is_run_by("lb-01"));
}
