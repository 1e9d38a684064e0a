//! Servers whose commits would wait for themselves.

use super::{steps::Site, unattended::rules, *};

const OWN: &str = "\"pg-02\"";

fn copy(received: u64) -> Sample {
    Sample { sync_names: OWN.into(), sync: SyncRule::parse(OWN), ..standby(received) }
}

fn manual() -> Settings {
    settings("lb-01", &[], 2)
}

fn orders(site: &mut Site) -> Vec<(String, String)> {
    let order = |action| match action {
        Action::SetSync { server, names, need: 0 } => Some((server, names)),
        _ => None,
    };
    site.left().into_iter().filter_map(order).collect()
}

fn done(site: &mut Site, server: &str, names: &str) {
    let result = Ok(Lsn(1000));
    site.take(Event::SyncSet { server: server.into(), names: names.into(), result });
}

#[test]
fn a_copy_of_the_primary_is_set_right() {
    let mut site = Site::serving(manual());
    site.sees("pg-02", Ok(copy(1000)));
    assert_eq!(orders(&mut site), [("pg-02".to_owned(), String::new())]);
    assert_eq!(site.disk.as_ref().unwrap().revision, 1, "no commit depends on it");
    done(&mut site, "pg-02", "");
    // What was asked before shows it as it was.
    site.sees("pg-02", Ok(copy(1000)));
    site.tick(100);
    assert_eq!(orders(&mut site), []);
    site.sees("pg-02", Ok(standby(1000)));
    for _ in 0..40 {
        site.tick(250);
        assert_eq!(orders(&mut site), []);
    }
    // It has not helped.
    site.sees("pg-02", Ok(copy(1000)));
    assert_eq!(orders(&mut site).len(), 1);
    // What may stand on every server is left alone.
    let mut site = Site::serving(settings("lb-01", &[], 3));
    let all = "ANY 1 (\"pg-01\", \"pg-02\", \"pg-03\")";
    site.sees("pg-02", Ok(Sample { sync_names: all.into(), ..standby(1000) }));
    assert_eq!(orders(&mut site), []);
    // Another one can be there.
    let both = "ANY 2 (\"pg-02\", \"pg-03\")";
    site.sees("pg-02", Ok(Sample { sync_names: both.into(), ..standby(1000) }));
    assert_eq!(orders(&mut site), [("pg-02".to_owned(), String::new())], "pg-01 would be gone");
}

#[test]
fn where_writes_matter_more_it_waits_for_the_other_one_once_that_is_back() {
    let mut settings = rules(None, 1000);
    settings.peers.clear();
    settings.unattended.as_mut().unwrap().available = Some(Duration::from_secs(5));
    let mut site = Site::serving(settings);
    site.stored();
    site.left();
    site.sees("pg-02", Ok(copy(1000)));
    assert_eq!(orders(&mut site), [("pg-02".to_owned(), "\"pg-01\"".to_owned())]);
}

#[test]
fn what_is_promoted_before_that_does_not_wait_for_itself() {
    let mut site = Site::serving(manual());
    site.kill_primary();
    site.sees("pg-02", Ok(Sample { receiver: None, ..copy(1000) }));
    assert_eq!(orders(&mut site).len(), 1, "it does not answer that");
    site.promote(Some(0));
    let revoked = Sample { revoked: true, receiver: None, ..copy(1000) };
    site.take(Event::Revoked { server: "pg-02".into(), found: Ok(revoked) });
    site.promoted("pg-02");
    let record = site.disk.clone().unwrap();
    let degraded = record.degraded().expect("the record says it first");
    assert_eq!(degraded.names, "\"pg-01\"", "which can come back");
    site.left();
    // The order from before has come to nothing.
    let result = Err("no answer".into());
    site.take(Event::SyncSet { server: "pg-02".into(), names: String::new(), result });
    let mark = record.mark.clone();
    let new = Sample { timeline: 2, mark, sync_names: OWN.into(), ..primary(1100) };
    let begin = site.now;
    while orders(&mut site) != [("pg-02".to_owned(), String::new())] {
        assert!(site.now < begin + Duration::from_secs(10));
        site.tick(100);
        site.sees("pg-02", Ok(new.clone()));
    }
}

#[test]
fn who_is_promoted_where_writes_matter_more_waits_for_nobody_who_is_missing() {
    let mut settings = rules(None, 1000);
    settings.peers.clear();
    settings.unattended.as_mut().unwrap().available = Some(Duration::from_secs(5));
    let mut site = Site::serving(settings);
    site.stored();
    let other = Sample { sync_names: "\"pg-01\"".into(), ..standby(1000) };
    site.sees("pg-02", Ok(other.clone()));
    site.kill_primary();
    site.sees("pg-02", Ok(Sample { receiver: None, ..other.clone() }));
    site.promote(Some(0));
    let revoked = Sample { revoked: true, receiver: None, ..other };
    site.take(Event::Revoked { server: "pg-02".into(), found: Ok(revoked) });
    site.promoted("pg-02");
    let record = site.disk.clone().unwrap();
    assert_eq!((record.epoch, record.primary.as_str()), (2, "pg-02"));
    assert_eq!(record.degraded().map(|it| it.names.as_str()), Some("\"pg-01\""));
}
