use proptest::prelude::*;

use super::*;

const RULES: Rules = Rules { on_down: OnDown::Reset };

/// A slow start of 10 seconds, so far.
fn ramp(seconds: u64) -> Ramp {
    Ramp { done: Duration::from_secs(seconds), whole: Duration::from_secs(10) }
}

fn up() -> Facts<'static> {
    Facts {
        health: Health::Up,
        reason: "HTTP 200",
        admin: Admin::Enabled,
        drain_left: Duration::ZERO,
        weight: 2,
        backup: false,
        passive: &Passive::Fit,
        ramp: None,
        resolved: true,
    }
}

fn down() -> Facts<'static> {
    Facts { health: Health::Down, reason: "connection refused", ..up() }
}

fn serving(facts: &[Facts<'_>]) -> Vec<bool> {
    judge(RULES, facts).verdicts.iter().map(|verdict| verdict.serving).collect()
}

#[test]
fn a_fit_backend_serves_with_its_weight() {
    let judgement = judge(RULES, &[up(), down()]);
    assert!(judgement.verdicts[0].serving && judgement.verdicts[0].forward);
    assert_eq!(judgement.verdicts[0].weight, 2 * WEIGHT_SCALE);
    assert_eq!(judgement.verdicts[0].reasons, [Why::Fit]);
    assert!(!judgement.verdicts[1].serving && !judgement.verdicts[1].forward);
    assert_eq!(judgement.verdicts[1].reasons, [Why::Unhealthy("connection refused".into())]);
    assert!(!judgement.panic && !judgement.on_backups);
}

#[test]
fn on_down_keep_forwards_what_is_open() {
    let keep = Rules { on_down: OnDown::Keep };
    assert!(judge(keep, &[up(), down()]).verdicts[1].forward);
    let disabled = Facts { admin: Admin::Disabled, ..down() };
    assert!(!judge(keep, &[up(), disabled]).verdicts[1].forward);
}

#[test]
fn before_the_first_probe_nobody_serves_and_nobody_panics() {
    let unknown = Facts { health: Health::Unknown, ..up() };
    let judgement = judge(RULES, &[unknown.clone(), down()]);
    assert!(judgement.verdicts.iter().all(|verdict| !verdict.serving));
    assert!(!judgement.panic);
    assert!(judgement.verdicts[0].forward, "connections that a restart found go on");
}

#[test]
fn panic_takes_all_that_are_enabled_and_reachable() {
    let draining = Facts { admin: Admin::Draining, drain_left: Duration::from_secs(3), ..down() };
    let disabled = Facts { admin: Admin::Disabled, ..up() };
    let unreachable = Facts { resolved: false, ..down() };
    let backup = Facts { backup: true, ..down() };
    let facts = [down(), draining, disabled, unreachable, backup];
    let judgement = judge(RULES, &facts);
    assert!(judgement.panic);
    assert_eq!(serving(&facts), [true, false, false, false, true]);
    assert!(judgement.verdicts[0].forward, "what serves is forwarded, on_down or not");
    assert_eq!(judgement.verdicts[0].reasons[0], Why::Panic);
}

#[test]
fn nobody_reachable_is_not_panic_but_refusal() {
    let judgement = judge(RULES, &[Facts { resolved: false, ..down() }]);
    assert!(!judgement.panic && !judgement.verdicts[0].serving);
}

#[test]
fn backups_serve_only_when_no_primary_can() {
    let backup = Facts { backup: true, ..up() };
    assert_eq!(serving(&[up(), backup.clone()]), [true, false]);
    assert_eq!(judge(RULES, &[up(), backup.clone()]).verdicts[1].reasons, [Why::BackupRests]);
    let judgement = judge(RULES, &[down(), backup]);
    assert!(judgement.on_backups && !judgement.panic);
    assert_eq!(judgement.verdicts[1].reasons, [Why::BackupServes, Why::Fit]);
}

#[test]
fn draining_forwards_until_its_time_is_over() {
    let draining =
        |left| Facts { admin: Admin::Draining, drain_left: Duration::from_secs(left), ..up() };
    let judgement = judge(RULES, &[up(), draining(5), draining(0)]);
    assert!(!judgement.verdicts[1].serving && judgement.verdicts[1].forward);
    assert!(!judgement.verdicts[2].serving && !judgement.verdicts[2].forward);
    assert_eq!(judgement.verdicts[2].reasons, [Why::Drained]);
}

#[test]
fn slow_start_rises_from_a_tenth_to_all() {
    let risen = |seconds| Facts { ramp: Some(ramp(seconds)), ..up() };
    let weight = |seconds| judge(RULES, &[up(), risen(seconds)]).verdicts[1].weight;
    assert_eq!(weight(0), 3, "10 % of 32");
    assert_eq!(weight(5), 17, "55 % of 32");
    assert_eq!(weight(10), 32);
    let alone = judge(RULES, &[down(), risen(0)]);
    assert_eq!(alone.verdicts[1].weight, 32, "alone it takes all");
}

#[test]
fn the_next_step_is_where_the_share_changes() {
    let mut at = ramp(0);
    let mut seen = vec![ramp_percent(at)];
    while let Some(wait) = until_next_step(at) {
        at.done += wait.saturating_sub(Duration::from_nanos(1));
        assert_eq!(ramp_percent(at), *seen.last().unwrap());
        at.done += Duration::from_nanos(1);
        seen.push(ramp_percent(at));
    }
    assert_eq!(seen, [10, 19, 28, 37, 46, 55, 64, 73, 82, 91, 100]);
    assert_eq!(at.done, at.whole);
}

#[test]
fn an_ejected_one_rests_and_keeps_its_connections() {
    let ejected = Passive::Ejected("3 of 3 connections refused".into());
    let judgement = judge(RULES, &[up(), Facts { passive: &ejected, ..up() }]);
    let reasons = &judgement.verdicts[1].reasons;
    assert_eq!(reasons[0].to_string(), "ejected: 3 of 3 connections refused");
    assert!(!judgement.verdicts[1].serving && judgement.verdicts[1].forward);
    assert!(!judgement.panic);
    // A probe that condemns it too resets them.
    let down = Facts { passive: &ejected, ..down() };
    assert!(!judge(RULES, &[up(), down]).verdicts[1].forward);
}

#[test]
fn one_that_fails_and_stays_serves_and_backups_help_it() {
    let failing = Passive::Failing("it fails".into());
    let fails = Facts { passive: &failing, ..up() };
    let backup = Facts { backup: true, ..up() };
    assert_eq!(serving(&[up(), fails.clone(), backup.clone()]), [true, true, false]);
    assert_eq!(serving(&[fails.clone(), backup]), [true, true]);
    let judgement = judge(RULES, &[fails]);
    assert!(judgement.panic && judgement.verdicts[0].serving);
}

#[test]
fn all_that_connections_condemned_serve_in_panic() {
    let (ejected, failing) = (Passive::Ejected("x".into()), Passive::Failing("y".into()));
    let facts = [
        Facts { passive: &ejected, ..up() },
        Facts { passive: &failing, ..up() },
        down(),
        Facts { passive: &ejected, admin: Admin::Disabled, ..up() },
    ];
    let judgement = judge(RULES, &facts);
    assert!(judgement.panic);
    assert_eq!(serving(&facts), [true, true, true, false]);
}

#[test]
fn a_slow_one_has_a_part_of_its_share_unless_it_is_alone() {
    let slow = Passive::Slow(25);
    let slow = Facts { passive: &slow, ramp: Some(ramp(5)), ..up() };
    let judgement = judge(RULES, &[up(), slow.clone()]);
    assert_eq!(judgement.verdicts[1].weight, 4, "25 % of 55 % of 32");
    assert_eq!(judgement.verdicts[1].reasons, [Why::Slow(25), Why::SlowStart(55), Why::Fit]);
    assert_eq!(judge(RULES, &[slow, down()]).verdicts[0].weight, 32);
}

static PASSIVE: [Passive; 4] = [
    Passive::Fit,
    Passive::Slow(25),
    Passive::Failing(String::new()),
    Passive::Ejected(String::new()),
];

fn any_facts() -> impl Strategy<Value = Facts<'static>> {
    (0..3_u8, 0..3_u8, any::<bool>(), any::<bool>(), 0..20_u64, 1..=256_u32, 0..4_usize).prop_map(
        |(health, admin, backup, resolved, seconds, weight, passive)| Facts {
            health: [Health::Unknown, Health::Up, Health::Down][usize::from(health)],
            reason: "",
            admin: [Admin::Enabled, Admin::Draining, Admin::Disabled][usize::from(admin)],
            drain_left: Duration::from_secs(seconds),
            weight,
            backup,
            passive: &PASSIVE[passive],
            ramp: (seconds > 10).then(|| ramp(seconds - 10)),
            resolved,
        },
    )
}

proptest! {
    #[test]
    fn what_always_holds(facts in prop::collection::vec(any_facts(), 1..8)) {
        let judgement = judge(RULES, &facts);
        let able = |facts: &Facts<'_>| {
            facts.admin == Admin::Enabled && facts.health == Health::Up && facts.resolved
        };
        let can_serve = facts.iter().any(|facts| {
            able(facts) && matches!(facts.passive, Passive::Fit | Passive::Slow(_))
        });
        if can_serve {
            prop_assert!(judgement.verdicts.iter().any(|verdict| verdict.serving));
            prop_assert!(!judgement.panic);
        }
        let unprobed = facts.iter().any(|facts| facts.health == Health::Unknown);
        if facts.iter().any(able) && !unprobed {
            prop_assert!(judgement.verdicts.iter().any(|verdict| verdict.serving));
        }
        for (facts, verdict) in facts.iter().zip(&judgement.verdicts) {
            let ejected = matches!(facts.passive, Passive::Ejected(_));
            prop_assert!(!verdict.serving || !ejected || judgement.panic);
            prop_assert!(!verdict.reasons.is_empty());
            prop_assert!(!verdict.serving || verdict.forward);
            prop_assert!(!verdict.serving || facts.admin == Admin::Enabled);
            prop_assert!(!verdict.serving || facts.resolved);
            prop_assert!((1..=facts.weight * WEIGHT_SCALE).contains(&verdict.weight));
        }
    }
}
