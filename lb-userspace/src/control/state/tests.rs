use lb_common::{service::Balance, stats::BackendSignals};

use super::*;
use crate::{
    config::{OnDown, Probe, Protocol, Replay},
    net::NextHop,
};

pub(crate) fn service(name: &str, backends: &[&str]) -> config::Service {
    config::Service {
        name: name.into(),
        listen: "192.0.2.100:80".parse().unwrap(),
        protocol: Protocol::Tcp,
        forward: config::Forwarding::Nat,
        balance: Balance::Maglev,
        on_down: OnDown::Reset,
        drain_timeout: Duration::from_secs(30),
        slow_start: Duration::from_secs(10),
        replay: Replay { tries: 3, per_mille: 200 },
        backends: (21..)
            .zip(backends)
            .map(|(host, name)| config::Backend {
                name: (*name).into(),
                address: format!("192.0.2.{host}:8080").parse().unwrap(),
                weight: 1,
                backup: false,
            })
            .collect(),
        health: config::Health {
            probe: Probe::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 3,
        },
        guard: config::Guard::default(),
        passive: Some(config::Passive { eject_percent: 50, eject_time: Duration::from_secs(10) }),
        proxy: None,
    }
}

fn report(backend: &str, health: Health, reason: &str) -> Report {
    Report { service: "web".into(), backend: backend.into(), health, reason: reason.into() }
}

fn no_wish(_: &str, _: &str) -> Wish {
    Wish::default()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn next_hops() -> NextHops {
    let hop =
        NextHop { ifindex: 2, source_mac: [2; 6], mac: Some([4; 6]), mtu: 1500, source: None };
    (20..30).map(|host| (IpAddr::from([192, 0, 2, host]), hop)).collect()
}

/// Two backends that are up.
fn running() -> State {
    let mut state = State::default();
    state.configure(&[service("web", &["app-01", "app-02"])], no_wish, seconds(0));
    state.set_next_hops(next_hops());
    for name in ["app-01", "app-02"] {
        state.observe(&report(name, Health::Up, "HTTP 200"), seconds(1));
    }
    state.judge(seconds(1));
    state
}

fn messages(notes: &[Note]) -> Vec<&str> {
    notes.iter().map(|note| note.message.as_str()).collect()
}

#[test]
fn a_start_goes_from_unknown_to_full_weight() {
    let mut state = State::default();
    state.configure(&[service("web", &["app-01", "app-02"])], no_wish, seconds(0));
    assert!(state.judge(seconds(0)).is_empty());
    assert!(!state.is_settled());
    let state = running();
    assert!(state.is_settled());
    assert!(state.records().all(|(_, record)| record.verdict.serving));
    assert!(state.records().all(|(_, record)| record.verdict.weight == verdict::WEIGHT_SCALE));
    assert_eq!(state.next_deadline(seconds(1)), None);
}

#[test]
fn down_and_up_again_is_told_with_its_cause_and_rises_slowly() {
    let mut state = running();
    let note = state.observe(&report("app-01", Health::Down, "connection refused"), seconds(5));
    assert_eq!(note[0].cause.as_deref(), Some("connection refused"));
    let notes = state.judge(seconds(5));
    assert_eq!(messages(&notes), ["app-01 serves no longer"]);
    assert_eq!(notes[0].cause.as_deref(), Some("down: connection refused"));

    state.observe(&report("app-01", Health::Up, "HTTP 200"), seconds(20));
    assert_eq!(messages(&state.judge(seconds(20))), ["app-01 serves"]);
    let weight = |state: &State| state.services()[0].records[0].verdict.weight;
    assert!(weight(&state) < 3);
    let mut now = seconds(20);
    let mut steps = 0;
    while let Some(at) = state.next_deadline(now) {
        assert!(at > now, "time goes on");
        now = at;
        let before = weight(&state);
        assert!(state.judge(now).is_empty());
        assert!(weight(&state) >= before);
        steps += 1;
    }
    assert_eq!((steps, now), (10, seconds(30)));
    assert_eq!(weight(&state), verdict::WEIGHT_SCALE);
}

#[test]
fn a_lone_slow_start_is_over_at_once() {
    let mut state = running();
    for name in ["app-01", "app-02"] {
        state.observe(&report(name, Health::Down, "refused"), seconds(5));
    }
    let notes = state.judge(seconds(5));
    assert!(
        messages(&notes).contains(&"web panics: no backend is fit, so all that are enabled serve")
    );
    state.observe(&report("app-01", Health::Up, "HTTP 200"), seconds(20));
    assert!(messages(&state.judge(seconds(20))).contains(&"web panics no longer"));
    assert_eq!(state.services()[0].records[0].verdict.weight, verdict::WEIGHT_SCALE);
    state.observe(&report("app-02", Health::Up, "HTTP 200"), seconds(21));
    state.judge(seconds(21));
    assert_eq!(state.services()[0].records[0].verdict.weight, verdict::WEIGHT_SCALE);
    assert!(state.services()[0].records[1].verdict.weight < verdict::WEIGHT_SCALE);
}

#[test]
fn draining_ends_in_time() {
    let mut state = running();
    let wish = Wish { admin: Admin::Draining, since: seconds(10), ..Wish::default() };
    state.wish("web", "app-01", wish);
    assert_eq!(messages(&state.judge(seconds(10))), ["app-01 serves no longer"]);
    assert_eq!(state.next_deadline(seconds(10)), Some(seconds(40)));
    assert!(state.judge(seconds(39)).is_empty());
    let notes = state.judge(seconds(40));
    assert_eq!(notes[0].kind, Kind::Drained);
    assert!(!state.services()[0].records[0].verdict.forward);
    assert_eq!(state.next_deadline(seconds(40)), None);
    assert!(state.judge(seconds(41)).is_empty());
}

#[test]
fn a_reload_keeps_what_is_known_of_the_same_backend() {
    let mut state = running();
    let mut next = service("web", &["app-01", "app-02", "app-03"]);
    next.backends[1].address = "192.0.2.29:8080".parse().unwrap();
    next.backends[0].weight = 3;
    state.configure(&[next], no_wish, seconds(50));
    let health: Vec<_> = state.records().map(|(_, record)| record.health).collect();
    assert_eq!(health, [Health::Up, Health::Unknown, Health::Unknown]);
    state.judge(seconds(50));
    assert_eq!(state.services()[0].records[0].verdict.weight, 3 * verdict::WEIGHT_SCALE);
    assert_eq!(state.services()[0].records[0].since, seconds(1));
}

#[test]
fn the_desired_state_follows_the_verdicts() {
    let mut state = running();
    state.observe(&report("app-02", Health::Down, "refused"), seconds(5));
    state.judge(seconds(5));
    let desired = state.desired(BTreeSet::new());
    let flags: Vec<_> =
        desired.services[0].backends.iter().map(|it| (it.serving, it.forward)).collect();
    assert_eq!(flags, [(true, true), (false, false)]);
}

#[test]
fn what_is_not_watched_is_not_held_against_a_backend() {
    let mut state = running();
    assert_eq!(state.watched().count(), 2);
    let mut signals = [BackendSignals::ZERO; 2];
    let mut now = seconds(10);
    let mut ejected = Vec::new();
    while ejected.is_empty() {
        assert!(now < seconds(20), "it is not ejected");
        let watched =
            state.watch(|_| true, |_, place| Some((place as u32, &signals[place])), |_, _| 0, now);
        ejected = watched.ejected;
        signals[0].attempts += 10;
        signals[1].attempts += 10;
        signals[0].answered += 10;
        signals[1].refused += 10;
        now += Duration::from_millis(100);
    }
    assert_eq!(ejected, [("web".to_owned(), "app-02".to_owned())]);
    assert_eq!(messages(&state.judge(now)), ["app-02 serves no longer"]);

    let mut next = service("web", &["app-01", "app-02"]);
    next.passive = None;
    state.configure(&[next], no_wish, now);
    assert_eq!(messages(&state.judge(now)), ["app-02 serves"]);
    assert_eq!(state.watched().count(), 0);
    let watched =
        state.watch(|_| true, |_, place| Some((place as u32, &signals[place])), |_, _| 0, now);
    assert!(!watched.changed && watched.notes.is_empty());
}
