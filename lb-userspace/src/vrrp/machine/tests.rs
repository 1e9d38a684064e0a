//! Every event in every state, and the times that the RFCs give.

use Cause::{
    ActiveLeft, ActiveSilent, Contested, HandedOver, NobodyHeard, NobodyTakes, Owns, Preempts,
    Resumes, Stalled, Starts, Stays, Yields,
};

use super::*;
use crate::vrrp::packet::Version;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn ip(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

/// Priority 100, 100 ms, at 192.0.2.11.
fn settings() -> Settings {
    Settings {
        version: Version::V3,
        address: ip(11),
        priority: 100,
        interval: ms(100),
        preempt: true,
        preempt_delay: Duration::ZERO,
        many: false,
    }
}

fn advert(priority: u8, source: u8) -> Advert {
    let sender = Sender::Peer;
    Advert { at: NOW, source: ip(source), priority, interval: ms(100), sender }
}

const NOW: Duration = ms(10_000);

/// So many milliseconds before [`NOW`].
const fn ago(millis: u64) -> Duration {
    ms(10_000 - millis)
}

/// The states that the table has, all of them at [`NOW`].
const STATES: [&str; 11] = [
    "initialize",
    "backup",          // armed
    "backup released", // armed, will not preempt
    "claiming",
    "claiming again", // has told a lower one twice, which leaves
    "claiming asleep",
    "active",        // next advert not due
    "active asleep", // its lease is over
    "leaving",
    "leaving asleep",
    "stopping",
];

fn state(name: &str) -> State {
    let backup = Backup {
        interval: ms(100),
        down_at: NOW + ms(200),
        active: Some(ip(12)),
        lower_since: None,
        released: name == "backup released",
        listened: false,
        heard: Heard::Active,
    };
    let active = |sent_at: Duration| {
        let lease = sent_at + settings().lease();
        State::Active(Active { advert_at: sent_at + ms(100), sent_at, answered_at: None, lease })
    };
    match name {
        "initialize" => State::Initialize,
        "backup" | "backup released" => State::Backup(backup),
        "claiming" | "claiming again" | "claiming asleep" => {
            let (awake, asleep) = ((NOW + ms(6), ago(4)), (ago(290), ago(300)));
            let (until, sent_at) = if name == "claiming asleep" { asleep } else { awake };
            State::Claiming(Claiming {
                until,
                sent_at,
                active: Some(ip(12)),
                insisted: name == "claiming again",
                leaves: name == "claiming again",
                cause: ActiveSilent,
            })
        }
        "active" => active(ago(60)),
        "active asleep" => active(ago(300)),
        "leaving asleep" => State::Leaving(Leaving { until: ago(300), stops: false }),
        _ => State::Leaving(Leaving { until: NOW + ms(90), stops: name == "stopping" }),
    }
}

/// The events of the table.
const EVENTS: [&str; 16] = [
    "start",
    "resume",
    "stale lease",
    "zero",
    "lower",
    "equal, lower address",
    "equal, higher address",
    "higher",
    "gives way",
    "stranger",
    "tick",
    "tick when due",
    "changed",
    "release",
    "stop",
    "fault",
];

/// An event, and when it happens.
fn event(name: &str, state: &State) -> (Event, Duration) {
    let heard = |priority, source| Event::Heard(advert(priority, source));
    let due = state.deadline().unwrap_or(NOW);
    let from = |sender| Event::Heard(Advert { sender, ..advert(90, 12) });
    let event = match name {
        "start" => Event::Start { lease: None },
        "resume" => Event::Start { lease: Some(NOW + ms(1)) },
        "stale lease" => Event::Start { lease: Some(NOW) },
        "zero" => heard(0, 12),
        "lower" => heard(99, 12),
        "equal, lower address" => heard(100, 10),
        "equal, higher address" => heard(100, 12),
        "higher" => heard(101, 10),
        "gives way" => from(Sender::GivesWay),
        "stranger" => from(Sender::Stranger),
        "tick when due" => return (Event::Tick, due.max(NOW)),
        "tick" => Event::Tick,
        "changed" => Event::Changed,
        "release" => Event::Release,
        "stop" => Event::Stop,
        _ => Event::Fault,
    };
    (event, NOW)
}

/// What the state becomes, and what is done: `=` is the same state to the last field, `+` the same
/// kind of state.
#[expect(clippy::match_same_arms, reason = "a row stands beside those of its state")]
fn row(state: &str, event: &str) -> (&'static str, Vec<Action>) {
    use Action::{Announce, Drop, LastLease, Lease, Send, Take, Tell};
    let lease_at = |at: Duration| Lease(Some(at + Duration::from_micros(287_500)));
    let lease = lease_at(NOW);
    let closed = Lease(None);
    let yields = |last, priority| Tell(Yields { to: ip(last), priority });
    let lets_go = |more| vec![closed, Drop, Send(0), Send(0), more];
    let contested = |last, priority| {
        vec![Tell(Contested { by: ip(last), priority }), Send(100), lease, Announce]
    };
    let asleep = |mut more: Vec<Action>| {
        let mut all = vec![closed, Drop, Tell(Stalled { by: ms(300) })];
        all.append(&mut more);
        all
    };
    let handed = |last| vec![closed, Drop, Send(0), Tell(HandedOver { to: ip(last) })];
    let stalled = Tell(Stalled { by: ms(300) });
    let fault = || vec![Tell(Cause::Fault)];
    match (state, event) {
        ("initialize", "start" | "stale lease") => ("backup", vec![Tell(Starts)]),
        ("initialize", "resume") => ("active", vec![Send(100), lease, Take, Tell(Resumes)]),
        ("initialize", _) => ("=", vec![]),

        ("claiming asleep", "stop") => ("initialize", vec![stalled]),
        ("claiming asleep", "fault") => ("initialize", vec![stalled, Tell(Cause::Fault)]),
        ("claiming asleep", _) => ("backup", vec![stalled]),
        ("active asleep" | "leaving asleep", "stop") => ("initialize", asleep(vec![])),
        ("active asleep" | "leaving asleep", "fault") => ("initialize", asleep(fault())),
        ("active asleep", "tick" | "tick when due") => ("claiming", asleep(vec![Send(100)])),
        ("active asleep" | "leaving asleep", _) => ("backup", asleep(vec![])),
        (_, "start" | "resume" | "stale lease") => ("=", vec![]),

        ("backup" | "backup released", "zero") => ("+", vec![]),
        ("backup", "lower" | "gives way") => ("+", vec![]),
        ("backup" | "backup released", "higher" | "stranger") => ("+", vec![]),
        ("backup" | "backup released", "equal, lower address" | "equal, higher address") => {
            ("+", vec![])
        }
        ("backup released", "lower" | "gives way") => ("+", vec![]),
        ("backup" | "backup released", "tick when due") => ("claiming", vec![Send(100)]),
        ("backup" | "backup released", "tick" | "changed" | "release") => ("=", vec![]),
        ("backup" | "backup released", "stop") => ("initialize", vec![]),
        ("backup" | "backup released", "fault") => ("initialize", fault()),

        ("claiming", "zero") => ("+", vec![]),
        ("claiming again", "zero") => {
            ("active", vec![lease_at(ago(4)), Take, Tell(ActiveSilent), Send(100)])
        }
        ("claiming" | "claiming again", "equal, higher address") => {
            ("backup", vec![yields(12, 100)])
        }
        ("claiming" | "claiming again", "higher") => ("backup", vec![yields(10, 101)]),
        ("claiming", "lower" | "gives way" | "stranger") => ("+", vec![Send(100)]),
        ("claiming again", "lower" | "gives way" | "stranger") => ("=", vec![]),
        // Now this one has to let go.
        ("claiming", "equal, lower address") => ("+", vec![Send(100)]),
        ("claiming again", "equal, lower address") => ("+", vec![]),
        ("claiming" | "claiming again", "tick" | "changed") => ("=", vec![]),
        ("claiming" | "claiming again", "tick when due") => {
            ("active", vec![lease_at(ago(4)), Take, Tell(ActiveSilent)])
        }
        ("claiming" | "claiming again", "release") => ("backup", vec![Send(0)]),
        ("claiming" | "claiming again", "stop") => ("initialize", vec![Send(0)]),
        ("claiming" | "claiming again", "fault") => ("initialize", fault()),

        ("active", "zero" | "changed") => ("+", vec![Send(100), lease]),
        ("active", "lower") => ("+", contested(12, 99)),
        ("active", "equal, lower address") => ("+", contested(10, 100)),
        ("active", "gives way" | "stranger") => ("+", contested(12, 90)),
        ("active", "equal, higher address") => ("backup", lets_go(yields(12, 100))),
        ("active", "higher") => ("backup", lets_go(yields(10, 101))),
        ("active", "tick") => ("=", vec![]),
        ("active", "tick when due") => ("+", vec![Send(100), lease_at(NOW + ms(40))]),
        ("active", "release" | "stop") => ("leaving", vec![Send(0), LastLease(NOW + ms(400))]),
        ("active", "fault") => ("initialize", vec![closed, Drop, Tell(Cause::Fault)]),

        ("leaving" | "stopping", "zero" | "tick" | "changed" | "release") => ("=", vec![]),
        ("leaving", "lower") => ("backup", handed(12)),
        ("leaving", "equal, higher address" | "gives way" | "stranger") => ("backup", handed(12)),
        ("leaving", "equal, lower address" | "higher") => ("backup", handed(10)),
        ("stopping", "lower") => ("initialize", handed(12)),
        ("stopping", "equal, higher address" | "gives way" | "stranger") => {
            ("initialize", handed(12))
        }
        ("stopping", "equal, lower address" | "higher") => ("initialize", handed(10)),
        ("leaving", "tick when due") => {
            let at = NOW + ms(90);
            ("active", vec![Send(100), lease_at(at), Tell(NobodyTakes)])
        }
        ("stopping", "tick when due") => {
            let lease = Lease(Some(NOW + ms(90) + STOPPED_LEASE));
            ("initialize", vec![lease, Tell(Stays)])
        }
        ("leaving" | "stopping", "stop") => ("+", vec![]),
        ("leaving" | "stopping", "fault") => ("initialize", vec![closed, Drop, Tell(Cause::Fault)]),
        (state, event) => panic!("no row for {event} in {state}"),
    }
}

#[test]
fn every_event_in_every_state() {
    for name in STATES {
        for event_name in EVENTS {
            let before = state(name);
            let (event, at) = event(event_name, &before);
            let (after, actions) = step(&settings(), before, event, at);
            let (becomes, does) = row(name, event_name);
            let row = format!("{event_name} in {name}");
            assert_eq!(actions, does, "{row}");
            match becomes {
                "=" => assert_eq!(after, before, "{row}"),
                "+" => assert_eq!(after.name(), before.name(), "{row}"),
                kind => assert_eq!(after.name(), kind, "{row}"),
            }
            // Whoever serves has a timer, and nobody's is in the past.
            assert_eq!(after.deadline().is_none(), after == State::Initialize, "{row}");
            if after != before {
                assert!(after.deadline().is_none_or(|due| due > at), "{row}");
            }
            // The lease runs before the addresses are taken, and ends before they are given up.
            let place = |wanted: Action| actions.iter().position(|it| *it == wanted);
            if let Some(take) = place(Action::Take) {
                assert!(actions[..take].iter().any(|it| matches!(it, Action::Lease(Some(_)))));
            }
            if let Some(drop) = place(Action::Drop) {
                assert!(place(Action::Lease(None)).is_some_and(|at| at < drop), "{row}");
            }
            // Nobody comes to serve, or ceases to, without an action that does it.
            if !before.serves() && after.serves() {
                assert!(actions.contains(&Action::Take), "{row}");
            }
            if before.serves() && !after.serves() && event_name != "tick when due" {
                assert!(actions.contains(&Action::Drop), "{row}");
            }
        }
    }
}

/// The state of Backup after an advert.
fn heard(settings: &Settings, before: &str, advert: Advert) -> Backup {
    match step(settings, state(before), Event::Heard(advert), NOW).0 {
        State::Backup(backup) => backup,
        other => panic!("{other:?}"),
    }
}

/// Why a Backup claims the addresses when its timer fires.
fn claims(state: State, at: Duration) -> Cause {
    match step(&settings(), state, Event::Tick, at).0 {
        State::Claiming(claim) => claim.cause,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_times_of_the_rfcs() {
    let with = |priority, version| Settings { version, priority, ..settings() };
    let second = Duration::from_secs(1);
    let micros = |duration: Duration| duration.as_micros();
    assert_eq!(micros(with(90, Version::V2).down(second)), 3_648_437);
    assert_eq!(micros(with(90, Version::V3).down(second)), 3_648_437);
    assert_eq!(micros(with(90, Version::V3).down(ms(100))), 364_843);
    assert_eq!(micros(with(254, Version::V3).down(second)), 3_007_812);
    assert_eq!(micros(with(90, Version::V3).skew(second)), 648_437);
    assert_eq!(micros(with(90, Version::V2).skew(ms(10))), 648_437, "always of a second");
    // No Backup takes over before the lease of the Active is over, whatever their priorities.
    for priority in 1..=254 {
        for version in [Version::V2, Version::V3] {
            let settings = Settings { interval: second, ..with(priority, version) };
            assert!(settings.lease() + second / 10 < settings.down(second));
            assert!(settings.patience() >= settings.down(second));
        }
    }
}

#[test]
fn a_backup_arms_its_timer_by_the_time_of_arrival() {
    let at = ago(70);
    let backup = heard(&settings(), "backup", Advert { at, ..advert(101, 12) });
    assert_eq!(backup.down_at, at + settings().down(ms(100)));
    // Version 3 learns the interval; version 2 does not.
    let slow = Advert { interval: ms(400), ..advert(101, 12) };
    let backup = heard(&settings(), "backup", slow);
    assert_eq!((backup.interval, backup.down_at), (ms(400), NOW + settings().down(ms(400))));
    let v2 = Settings { version: Version::V2, ..settings() };
    assert_eq!(heard(&v2, "backup", slow).interval, ms(100));
    // Priority 0: only the skew is waited for.
    let backup = heard(&settings(), "backup", Advert { at, ..advert(0, 12) });
    assert_eq!(backup.down_at, at + settings().skew(ms(100)));
    assert_eq!(claims(State::Backup(backup), backup.down_at), ActiveLeft);
    // Of one that is not Active any more, it says nothing.
    let backup = heard(&settings(), "backup", advert(0, 13));
    assert_eq!(State::Backup(backup), state("backup"));
}

#[test]
fn a_lower_priority_is_preempted_only_by_who_may() {
    let armed = NOW + ms(200);
    let fresh = NOW + settings().down(ms(100));
    let lower = advert(90, 12);
    let gives_way = Advert { sender: Sender::GivesWay, ..lower };
    let stranger = Advert { sender: Sender::Stranger, ..lower };
    let patient = Settings { preempt: false, ..settings() };
    let timer = |settings: &Settings, before, advert| heard(settings, before, advert).down_at;
    assert_eq!(timer(&settings(), "backup", lower), armed, "the timer runs on");
    assert_eq!(timer(&patient, "backup", lower), fresh);
    assert_eq!(timer(&patient, "backup", gives_way), armed);
    assert_eq!(timer(&settings(), "backup", stranger), fresh);
    assert_eq!(timer(&settings(), "backup released", lower), fresh);
    assert_eq!(
        timer(&settings(), "backup", advert(100, 10)),
        fresh,
        "an equal one is no lower one"
    );

    let backup = heard(&settings(), "backup", lower);
    assert_eq!(claims(State::Backup(backup), armed), Preempts);

    // With a delay: only after it, and a higher one cancels it.
    let delayed = Settings { preempt_delay: ms(250), ..settings() };
    let mut state = state("backup");
    let hear = |state: &mut State, at: Duration, advert: Advert| {
        *state = step(&delayed, *state, Event::Heard(Advert { at, ..advert }), at).0;
        state.deadline().unwrap()
    };
    assert_eq!(hear(&mut state, NOW, lower), fresh);
    assert_eq!(hear(&mut state, NOW + ms(240), lower), fresh + ms(240));
    assert_eq!(hear(&mut state, NOW + ms(250), lower), fresh + ms(240), "the delay is over");
    assert_eq!(hear(&mut state, NOW + ms(260), advert(101, 12)), fresh + ms(260));
    assert_eq!(hear(&mut state, NOW + ms(270), lower), fresh + ms(270), "it begins anew");
}

#[test]
fn a_late_backup_listens_once_more() {
    let State::Backup(backup) = state("backup") else { panic!() };
    let due = backup.down_at;
    assert_eq!(
        claims(State::Backup(backup), due + ms(12)),
        ActiveSilent,
        "an eighth of an interval is not late"
    );
    let woken = due + ms(1000);
    let (late, actions) = step(&settings(), State::Backup(backup), Event::Tick, woken);
    assert_eq!((late.name(), actions.len()), ("backup", 0));
    let again = late.deadline().unwrap();
    assert_eq!(again, woken + ms(100) + settings().skew(ms(100)));
    // Once, so that a node that is always late takes over too.
    assert_eq!(claims(late, again + ms(1000)), ActiveSilent);
    // An advert in between is followed as any other.
    let advert = Event::Heard(Advert { at: woken, ..advert(101, 12) });
    let (after, _) = step(&settings(), late, advert, woken);
    assert_eq!(after.deadline(), Some(woken + settings().down(ms(100))));
}

#[test]
fn who_was_stopped_with_all_others_goes_on() {
    let woken = NOW + ms(1000);
    let (state, actions) = step(&settings(), state("active"), Event::Tick, woken);
    assert_eq!(state.name(), "claiming");
    assert!(actions.contains(&Action::Lease(None)) && actions.contains(&Action::Drop));
    assert!(actions.contains(&Action::Send(100)), "a Backup that wakes now hears it");
    let (after, actions) = step(&settings(), state, Event::Tick, woken + settings().claim());
    assert_eq!(after.name(), "active");
    assert!(actions.contains(&Action::Take));
    assert_eq!(actions.last(), Some(&Action::Tell(Cause::NobodyTook)));
    // Somebody has taken over, and is preferred.
    let heard = Event::Heard(Advert { at: woken, ..advert(101, 12) });
    assert_eq!(step(&settings(), state, heard, woken).0.name(), "backup");
}

#[test]
fn of_two_that_claim_when_the_active_lets_go_neither_takes_before_its_time() {
    for (many, name) in [(false, "active"), (true, "claiming")] {
        let settings = Settings { many, ..settings() };
        let claim = state("claiming again");
        let State::Claiming(Claiming { active: Some(active), .. }) = claim else { panic!() };
        let lets_go = Advert { source: active, ..advert(0, 12) };
        let (after, _) = step(&settings, claim, Event::Heard(lets_go), NOW);
        assert_eq!(after.name(), name);
    }
}

#[test]
fn that_the_active_leaves_is_no_sign_that_it_has_let_go() {
    let heard = |state, event| step(&settings(), state, event, NOW).0;
    let zero = Event::Heard(advert(0, 12));
    // It was asked to hand over as the claim was on its way, and serves until it hears that.
    let crossed = heard(state("claiming"), zero);
    assert_eq!(crossed.name(), "claiming");
    assert_eq!(heard(crossed, zero).name(), "active");
    // The claim came since it leaves, so that what comes now is its answer.
    let armed = heard(state("backup"), zero);
    let (claim, _) = step(&settings(), armed, Event::Tick, armed.deadline().unwrap());
    assert_eq!(heard(claim, zero).name(), "active");
}

#[test]
fn who_has_just_begun_to_listen_waits_for_an_active_that_it_has_not_heard() {
    for (many, waits) in [(false, Duration::ZERO), (true, ms(100))] {
        let settings = Settings { many, ..settings() };
        let (fresh, _) = step(&settings, State::Initialize, Event::Start { lease: None }, NOW);
        let (armed, _) = step(&settings, fresh, Event::Heard(advert(0, 12)), NOW);
        assert_eq!(armed.deadline(), Some(NOW + settings.skew(ms(100)) + waits), "many: {many}");
    }
}

#[test]
fn a_flood_of_lower_adverts_is_not_answered_by_a_flood() {
    let mut state = state("active");
    let mut sent = 0;
    for micros in 0..100_000 {
        let at = NOW + Duration::from_micros(micros);
        let (after, actions) =
            step(&settings(), state, Event::Heard(Advert { at, ..advert(1, 12) }), at);
        sent += actions.iter().filter(|it| matches!(it, Action::Send(_))).count();
        state = after;
    }
    assert!((1..=5).contains(&sent), "{sent} adverts in an interval");
    // And the flood does not keep it from advertising.
    assert!(state.deadline().unwrap() <= NOW + ms(200));
}

#[test]
fn adverts_keep_their_pace() {
    let mut state = state("active");
    let first = state.deadline().unwrap();
    for number in 1..=50_u32 {
        // Each a little late.
        let at = state.deadline().unwrap() + ms(3);
        let (after, actions) = step(&settings(), state, Event::Tick, at);
        assert!(matches!(actions[0], Action::Send(100)));
        state = after;
        assert_eq!(state.deadline(), Some(first + ms(100) * number));
    }
    // One that is later than an interval is not made up for.
    let at = state.deadline().unwrap() + ms(150);
    let (after, _) = step(&settings(), state, Event::Tick, at);
    assert_eq!(after.deadline(), Some(at + ms(100)));
}

#[test]
fn the_owner_is_active_at_once() {
    let owner = Settings { priority: OWNER, ..settings() };
    let (state, actions) = step(&owner, State::Initialize, Event::Start { lease: None }, NOW);
    assert_eq!((state.name(), actions), ("claiming", vec![Action::Send(OWNER)]));
    let (state, actions) = step(&owner, state, Event::Tick, NOW + owner.claim());
    assert_eq!(actions.last(), Some(&Action::Tell(Owns)));
    // Of two owners the one with the lower address yields (RFC 9568 §6.4.3).
    for (last, name) in [(10, "active"), (12, "backup")] {
        let heard = Event::Heard(advert(OWNER, last));
        assert_eq!(step(&owner, state, heard, NOW + ms(50)).0.name(), name);
    }
}

#[test]
fn who_starts_alone_takes_the_addresses_after_the_down_interval() {
    let (state, _) = step(&settings(), State::Initialize, Event::Start { lease: None }, NOW);
    let due = NOW + settings().down(ms(100));
    assert_eq!(state.deadline(), Some(due));
    assert_eq!(claims(state, due), NobodyHeard);
    let (state, _) = step(&settings(), state, Event::Tick, due);
    let takes = due + ms(10);
    assert_eq!(state.deadline(), Some(takes), "nobody may object for longer");
    let (state, actions) = step(&settings(), state, Event::Tick, takes);
    assert!(actions.contains(&Action::Take));
    assert_eq!(state.deadline(), Some(due + ms(100)), "adverts keep their pace");
    let fast = Settings { interval: ms(10), ..settings() };
    let (first, _) = step(&fast, State::Initialize, Event::Start { lease: None }, NOW);
    assert_eq!(first.deadline(), Some(NOW + FIRST_LISTENS), "no hurry at the start");
    let heard = Event::Heard(Advert { interval: ms(10), ..advert(90, 12) });
    let fast_follower = Settings { preempt: false, ..fast };
    let (followed, _) = step(&fast_follower, first, heard, NOW);
    assert_eq!(followed.deadline(), Some(NOW + fast.down(ms(10))), "and then as fast as asked for");
    // A change of the interval is no sleep.
    let (state, actions) = step(&fast, state, Event::Changed, due + ms(90));
    assert_eq!(actions[0], Action::Send(100));
    assert_eq!(state.deadline(), Some(due + ms(100)));
}
