//! The machine under simulated traffic.

use proptest::prelude::*;

use super::{drift::SLOW_ACCEPTED, track::LONGEST, window::KEPT, *};

mod model;

use model::{Manner, Model, RULES};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_dead_backend_is_out_within_three_ticks() {
    for (seed, manner) in (0..).zip([Manner::Refuses, Manner::Unreachable, Manner::Silent]) {
        for backends in 2..=6 {
            for rate in [4.0, 10.0, 100.0, 3000.0] {
                let mut model = Model::warm(backends, rate, seed);
                model.backends[1].manner = manner;
                for _ in 0..3 {
                    model.tick();
                }
                assert_eq!(model.ejected(), [1], "{manner:?}, {rate} a tick, of {backends}");
                let Stand::Ejected(ejection) = model.backends[1].track.stand() else {
                    unreachable!()
                };
                assert!(ejection.evidence.failed >= FAILURES);
                assert_eq!(ejection.evidence.failed, ejection.evidence.of);
                assert!(ejection.evidence.within <= 4 * TICK);
            }
        }
    }
}

#[test]
fn under_little_traffic_it_takes_a_few_connections() {
    let mut model = Model::warm(3, 0.4, 5);
    model.backends[2].manner = Manner::Refuses;
    let before = model.backends[2].signals.refused;
    model.run(seconds(10));
    assert_eq!(model.ejections(), 1);
    let refused = model.backends[2].signals.refused - before;
    assert!((FAILURES..=8).contains(&refused), "{refused} connections were refused");
}

#[test]
fn a_backend_that_was_never_alive_is_out_soon() {
    let mut model = Model::new(3, 5.0, 1);
    model.backends[0].manner = Manner::Silent;
    for _ in 0..5 {
        model.tick();
    }
    assert_eq!(model.ejected(), [0]);
}

#[test]
fn mostly_refused_is_enough() {
    let mut model = Model::warm(3, 10.0, 1);
    model.backends[0].manner = Manner::RefusesShare(0.7);
    model.run(seconds(3));
    assert_eq!(model.ejected(), [0]);
    let Stand::Ejected(ejection) = model.backends[0].track.stand() else { unreachable!() };
    assert!(ejection.evidence.failed < ejection.evidence.of);
}

#[test]
fn the_cap_leaves_half_and_panic_is_seen() {
    let mut model = Model::warm(4, 10.0, 1);
    for backend in &mut model.backends[..3] {
        backend.manner = Manner::Refuses;
    }
    model.run(seconds(1));
    assert_eq!(model.ejected().len(), 2);
    let failing: Vec<_> = model.backends.iter().map(|backend| backend.track.stand()).collect();
    let stays = failing.iter().find_map(|stand| match stand {
        Stand::Failing(failing) => Some(failing.stays),
        _ => None,
    });
    assert_eq!(stays, Some(Stays::Cap(2, 4)));
    assert_eq!(failing[3], Stand::Fit);

    // The last one dies too, and nobody is left who is fit.
    model.backends[3].manner = Manner::Refuses;
    model.run(seconds(1));
    assert!(model.backends.iter().all(|backend| backend.track.stand() != Stand::Fit));
    assert_eq!(model.ejected().len(), 2);

    // All are well again. The verdict has let all serve, so all are seen to answer.
    model.all(Manner::Answers(100));
    model.run(seconds(1));
    assert!(model.backends.iter().all(|backend| backend.track.stand() == Stand::Fit));
}

#[test]
fn a_third_of_three_is_one_and_a_percentage_is_a_percentage() {
    for (percent, backends, most) in [(50, 3, 1), (1, 3, 1), (100, 3, 3), (50, 2, 1), (34, 3, 1)] {
        let mut model = Model::warm(backends, 10.0, 1);
        model.rules.eject_percent = percent;
        for place in 0..backends {
            model.backends[place].manner = Manner::Refuses;
            model.run(seconds(1));
        }
        assert!(model.ejected().len() <= most, "{percent} % of {backends}");
        assert!(!model.ejected().is_empty());
    }
}

#[test]
fn alone_it_fails_and_stays() {
    let mut model = Model::warm(1, 10.0, 1);
    model.backends[0].manner = Manner::Silent;
    model.run(seconds(2));
    let Stand::Failing(failing) = model.backends[0].track.stand() else { panic!("it is fit") };
    assert_eq!(failing.stays, Stays::Alone);
    model.backends[0].manner = Manner::Answers(100);
    model.run(seconds(1));
    assert_eq!(model.backends[0].track.stand(), Stand::Fit);
}

#[test]
fn what_hits_all_alike_ejects_nobody() {
    for seed in 0..8 {
        for share in [0.05, 0.3, 0.5, 0.8, 1.0] {
            for rate in [0.3, 3.0, 30.0] {
                let mut model = Model::warm(3, rate, seed);
                model.all(Manner::Loses(share));
                model.run(seconds(60));
                assert_eq!(
                    model.ejections(),
                    0,
                    "seed {seed}, {share} lost, {rate}: {:?}",
                    model.told
                );
            }
        }
    }
}

#[test]
fn a_flood_that_nobody_answers_ejects_nobody() {
    let mut model = Model::warm(4, 20.0, 9);
    model.rate = 20_000.0;
    model.all(Manner::Silent);
    model.run(seconds(20));
    assert_eq!(model.ejections(), 0);
    // Everybody fails: that is told.
    assert!(model.backends.iter().all(|it| matches!(it.track.stand(), Stand::Failing(_))));
}

#[test]
fn noise_ejects_nobody() {
    for seed in 0..4 {
        for (share, rate) in [(0.001, 300.0), (0.01, 10.0), (0.02, 0.5), (0.02, 40.0)] {
            let mut model = Model::new(3, rate, seed);
            model.all(Manner::Loses(share));
            // One is worse than the others, and still serves nearly all.
            model.backends[0].manner = Manner::Loses(share * 5.0);
            model.run(seconds(300));
            assert_eq!(model.told, [], "seed {seed}, {share} lost, {rate} a tick");
        }
    }
}

#[test]
fn without_a_probe_time_lets_it_back_and_each_time_later() {
    let mut model = Model::warm(3, 10.0, 3);
    model.backends[0].manner = Manner::Refuses;
    model.run(seconds(2000));
    let of = |wanted: fn(&News) -> bool| {
        let told = model.told.iter().filter(move |(_, place, news)| *place == 0 && wanted(news));
        told.map(|(at, ..)| *at).collect::<Vec<_>>()
    };
    let ejected = of(|news| matches!(news, News::Ejected(..)));
    let restored = of(|news| matches!(news, News::Restored(Restored::Time)));
    let lasted: Vec<_> = ejected
        .iter()
        .zip(&restored)
        .map(|(from, to)| to.saturating_sub(*from).as_secs())
        .collect();
    assert_eq!(lasted, [10, 20, 40, 80, 160, 300, 300, 300, 300, 300]);

    // After it has served for long, it begins anew.
    model.backends[0].manner = Manner::Answers(100);
    model.run(seconds(1000));
    model.told.clear();
    model.backends[0].manner = Manner::Refuses;
    model.run(seconds(1));
    assert!(matches!(model.told[..], [(_, 0, News::Ejected(_, hold))] if hold == seconds(10)));
}

#[test]
fn with_a_probe_its_passes_let_it_back() {
    let mut model = Model::warm(3, 10.0, 3);
    model.backends.iter_mut().for_each(|backend| backend.confirmed = Some(false));
    model.backends[0].manner = Manner::Refuses;
    model.run(seconds(100));
    assert_eq!(model.ejected(), [0], "without a pass it stays out");
    model.backends[0].manner = Manner::Answers(100);
    model.backends[0].confirmed = Some(true);
    model.tick();
    assert_eq!(model.ejected(), Vec::<usize>::new());

    // A probe that passes while connections fail is believed for shorter and shorter.
    model.backends[0].manner = Manner::Refuses;
    model.told.clear();
    model.run(seconds(60));
    let holds: Vec<_> = model
        .told
        .iter()
        .filter_map(|(_, _, news)| match news {
            News::Ejected(_, hold) => Some(hold.as_secs()),
            _ => None,
        })
        .collect();
    assert_eq!(holds, [10, 20, 40]);

    // If the probe saw it down, it is a true recovery.
    model.backends[0].eligible = false;
    model.backends[0].down = true;
    model.backends[0].confirmed = Some(false);
    model.run(seconds(1));
    assert_eq!(model.ejected(), [0]);
    model.backends[0].eligible = true;
    model.backends[0].down = false;
    model.backends[0].confirmed = Some(true);
    model.tick();
    assert_eq!(model.ejected(), Vec::<usize>::new());
}

#[test]
fn a_backend_that_answers_late_comes_back_and_is_known_to_be_slow() {
    let mut model = Model::warm(3, 10.0, 3);
    model.backends[0].manner = Manner::Late(4);
    model.run(seconds(5));
    let answers = |news: &News| matches!(news, News::Restored(Restored::Answers));
    assert!(model.told.iter().any(|(_, _, news)| answers(news)), "{:?}", model.told);
    model.told.clear();
    model.run(seconds(60));
    let ejections = model.ejections();
    assert!(ejections <= 1, "it is ejected {ejections} times more");
}

#[test]
fn one_crash_is_no_reason_and_resets_that_go_on_are() {
    let mut model = Model::warm(3, 10.0, 3);
    model.backends[0].signals.resets += 1000;
    model.run(seconds(5));
    assert_eq!(model.told, []);
    model.backends[0].manner = Manner::Resets(1.0);
    model.run(seconds(3));
    assert_eq!(model.ejected(), [0]);
    let Stand::Ejected(ejection) = model.backends[0].track.stand() else { unreachable!() };
    assert_eq!(ejection.evidence.fault, Fault::Resets);

    // A server that ends every connection by a reset is no worse than its siblings.
    let mut model = Model::warm(3, 10.0, 3);
    model.all(Manner::Resets(1.0));
    model.run(seconds(20));
    assert_eq!(model.told, []);
}

#[test]
fn a_slow_one_gets_less_and_what_is_slow_for_all_changes_nothing() {
    let mut model = Model::warm(3, 20.0, 3);
    model.backends[2].manner = Manner::Answers(3_000);
    model.run(seconds(10));
    assert_eq!(model.backends[2].track.share_percent(), 25, "30 times as long");
    assert!(model.backends[2].track.is_above_siblings());
    assert_eq!(model.ejected(), Vec::<usize>::new());
    model.backends[2].manner = Manner::Answers(100);
    model.run(seconds(20));
    assert_eq!(model.backends[2].track.share_percent(), 100);
    assert!(!model.backends[2].track.is_above_siblings());
    let changes = model.told.len();
    assert!(changes <= 4, "{:?}", model.told);

    model.told.clear();
    model.all(Manner::Answers(3_000));
    model.run(seconds(20));
    assert_eq!(model.told, []);

    // Far away is not slow.
    let mut model = Model::new(3, 20.0, 3);
    model.backends[0].manner = Manner::Answers(20_000);
    model.run(seconds(60));
    assert_eq!(model.told, []);
}

#[test]
fn slow_for_long_is_usual() {
    let mut model = Model::warm(3, 20.0, 3);
    model.backends[2].manner = Manner::Answers(3_000);
    model.run(SLOW_ACCEPTED + seconds(20));
    assert_eq!(model.backends[2].track.share_percent(), 100);
    model.told.clear();
    model.run(seconds(60));
    assert_eq!(model.told, []);
}

#[test]
fn patience_follows_the_handshakes_within_its_bounds() {
    let mut model = Model::new(2, 0.5, 3);
    assert_eq!(model.backends[0].track.patience_ms(), 0);
    model.rate = 20.0;
    model.run(seconds(2));
    assert_eq!(model.backends[0].track.patience_ms(), 50, "the least");
    model.backends[0].manner = Manner::Answers(100_000);
    model.run(seconds(1));
    let patience = model.backends[0].track.patience_ms();
    assert!((300..=800).contains(&patience), "three times 100 ms or a class more: {patience}");
    model.backends[0].manner = Manner::Answers(3_000_000);
    model.run(seconds(20));
    assert_eq!(model.backends[0].track.patience_ms(), 5000, "the most");
    let mut writes = 0;
    model.backends[0].manner = Manner::Answers(100);
    for _ in 0..6000 {
        let before = model.backends[0].track.patience_ms();
        model.tick();
        writes += u32::from(model.backends[0].track.patience_ms() != before);
    }
    assert_eq!(model.backends[0].track.patience_ms(), 50);
    assert!(writes <= 10, "{writes} writes");
}

#[test]
fn where_answers_do_not_pass_silence_says_nothing() {
    let mut model = Model::new(3, 50.0, 3);
    model.all(Manner::Silent);
    model.run(seconds(30));
    assert_eq!(model.told, []);
    // Refusals do.
    model.backends[0].manner = Manner::Unreachable;
    model.run(seconds(3));
    assert_eq!(model.ejected(), [0]);
}

#[test]
fn counters_of_the_past_and_of_others_say_nothing() {
    let old = BackendSignals { attempts: 1000, refused: 1000, ..BackendSignals::ZERO };
    let well = BackendSignals { attempts: 1000, answered: 1000, ..BackendSignals::ZERO };
    let mut tracks = [Track::default(), Track::default()];
    let mut step = |ids: [u32; 2], signals: [BackendSignals; 2], at: u64| {
        let [first, second] = &mut tracks;
        let input = |id, signals| Input {
            signals: Some((id, signals)),
            eligible: true,
            down: false,
            confirmed: None,
        };
        let mut backends =
            [(first, input(ids[0], &signals[0])), (second, input(ids[1], &signals[1]))];
        judge(RULES, &mut backends, Duration::from_millis(at))
    };
    // A daemon that has just started.
    assert_eq!(step([1, 2], [old, well], 100), Outcome::default());
    assert_eq!(step([1, 2], [old, well], 200), Outcome::default());
    // The identifier is another's now, and another's counters began anew.
    assert_eq!(step([3, 2], [well, BackendSignals::ZERO], 300), Outcome::default());
    assert_eq!(step([1, 2], [old, well], 400), Outcome::default());
}

#[test]
fn a_quiet_service_costs_no_judgement() {
    let mut model = Model::warm(3, 5.0, 1);
    model.rate = 0.0;
    model.run(KEPT + seconds(1));
    assert!(model.backends.iter().all(|backend| !backend.track.is_busy(model.now)));
    let outcome = model.tick();
    assert_eq!(outcome, Outcome::default());
}

fn any_manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        4 => (50_u64..20_000).prop_map(Manner::Answers),
        2 => Just(Manner::Refuses),
        1 => Just(Manner::Unreachable),
        2 => Just(Manner::Silent),
        1 => (0.0..1.0).prop_map(Manner::Loses),
        1 => (0.0..1.0).prop_map(Manner::RefusesShare),
        1 => (1_usize..10).prop_map(Manner::Late),
        1 => (0.0..1.0).prop_map(Manner::Resets),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_happens_the_cap_holds(
        backends in 1_usize..8,
        percent in 1_u32..=100,
        rate in 0.0..50.0,
        seed in any::<u64>(),
        story in prop::collection::vec((0_usize..8, any_manner(), any::<bool>(), 1_u64..8), 1..12),
    ) {
        let mut model = Model::new(backends, rate, seed);
        model.rules.eject_percent = percent;
        for (place, manner, probed, lasts) in story {
            let backend = &mut model.backends[place % backends];
            backend.manner = manner;
            backend.confirmed = probed.then_some(seed.is_multiple_of(2));
            for _ in 0..lasts * 10 {
                let outcome = model.tick();
                let cap = (backends * percent as usize / 100).max(1);
                prop_assert!(model.ejected().len() <= cap);
                prop_assert!(backends > 1 || model.ejected().is_empty(), "the only one");
                let news = !outcome.news.is_empty();
                prop_assert!(!news || outcome.changed);
                for backend in &model.backends {
                    let track = &backend.track;
                    prop_assert!([25, 50, 100].contains(&track.share_percent()));
                    prop_assert!(track.patience_ms() == 0 || (50..=5000).contains(&track.patience_ms()));
                }
            }
        }
        // Once all are well, all serve again.
        model.all(Manner::Answers(100));
        model.rate = 10.0;
        model.backends.iter_mut().for_each(|it| it.confirmed = it.confirmed.map(|_| true));
        model.run(LONGEST + seconds(60));
        for backend in &model.backends {
            prop_assert_eq!(backend.track.stand(), Stand::Fit);
            prop_assert_eq!(backend.track.share_percent(), 100);
        }
    }
}
