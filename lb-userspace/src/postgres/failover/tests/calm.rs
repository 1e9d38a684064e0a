//! After a promotion without a person there is none for a minute, whatever becomes of the daemons.

use super::{
    steps::Site,
    unattended::{fails, heard, left_alone, phase, place, rules, serving, synchronous},
    *,
};

/// A site in which pg-02 has just been promoted without a person, and pg-01 follows it.
fn promoted() -> Site {
    let mut site = serving(rules(None, 0));
    fails(&mut site);
    let place = place(&site);
    site.take(heard(Message::Ack(place)));
    site.revoked("pg-02", 1000);
    site.promoted("pg-02");
    assert!(site.disk.as_ref().unwrap().calm);
    site
}

/// How the servers are then.
fn follows(site: &mut Site) {
    let mark = site.disk.as_ref().unwrap().mark.clone();
    let replica = Replica {
        name: "pg-01".into(),
        address: Some(address("pg-01")),
        ..synchronous(0).replicas.remove(0)
    };
    let rule = SyncRule { need: 1, names: vec!["pg-01".into()] };
    let new = Sample {
        timeline: 2,
        mark: mark.clone(),
        sync: Some(rule),
        replicas: vec![replica],
        ..primary(1100)
    };
    site.tick(250);
    site.sees("pg-02", Ok(new));
    site.sees("pg-01", Ok(Sample { timeline: 2, mark, started: 9, ..standby(1100) }));
}

/// The new primary fails too.
fn fails_too(site: &mut Site) {
    let mark = site.disk.as_ref().unwrap().mark.clone();
    for _ in 0..2 {
        site.tick(250);
        site.sees("pg-02", Err(failure(FailureKind::Dead)));
        site.sees(
            "pg-01",
            Ok(Sample { timeline: 2, mark: mark.clone(), started: 9, ..left_alone(1100) }),
        );
    }
}

/// Plays on until something begins, and says after how long.
fn until_it_begins(site: &mut Site) -> Duration {
    let begin = site.now;
    while phase(site) == Phase::Serving {
        assert!(site.now < begin + Duration::from_mins(2));
        fails_too(site);
    }
    site.now.saturating_sub(begin)
}

fn says_why(site: &Site) -> bool {
    site.machine.refused().is_some_and(|why| why.contains("less than a minute ago"))
}

#[test]
fn the_next_promotion_without_a_person_waits_a_minute() {
    let mut site = promoted();
    for _ in 0..8 {
        follows(&mut site);
    }
    fails_too(&mut site);
    assert!(says_why(&site), "{:?}", site.machine.refused());
    let waited = until_it_begins(&mut site);
    assert!((Duration::from_secs(50)..Duration::from_secs(70)).contains(&waited), "{waited:?}");
}

#[test]
fn a_daemon_that_was_killed_holds_to_it() {
    let mut site = promoted();
    for _ in 0..80 {
        follows(&mut site);
    }
    let settings = site.machine.settings.clone();
    site.machine = Machine::new(settings, site.disk.clone(), true);
    for _ in 0..8 {
        follows(&mut site);
    }
    fails_too(&mut site);
    assert!(says_why(&site), "{:?}", site.machine.refused());
    let waited = until_it_begins(&mut site);
    assert!(waited > Duration::from_secs(50), "it counts anew: {waited:?}");
}

#[test]
fn once_the_minute_is_over_a_restart_is_no_reason() {
    let mut site = promoted();
    for _ in 0..260 {
        follows(&mut site);
    }
    assert!(!site.disk.as_ref().unwrap().calm, "the record says that it is over");
    let settings = site.machine.settings.clone();
    site.machine = Machine::new(settings, site.disk.clone(), true);
    for _ in 0..8 {
        follows(&mut site);
    }
    assert!(until_it_begins(&mut site) < Duration::from_secs(2));
}
