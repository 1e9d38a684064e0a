//! Lets all cases of a scope take turns, and takes the medians.

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::{
    cases::{self, Bound, Case, Counter},
    plan::Plan,
    programs::Programs,
};

/// How long to measure.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rounds {
    /// Turns of each case.
    pub(crate) count: u32,
    /// Runs in a turn.
    pub(crate) repeats: u32,
}

/// What came of one case.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    /// Name of the case.
    pub(crate) name: String,
    /// Nanoseconds for each packet, the trampoline included: median of the rounds.
    pub(crate) gross_ns: f64,
    /// The least of the rounds.
    pub(crate) gross_min_ns: f64,
    /// The most.
    pub(crate) gross_max_ns: f64,
    /// Less what the trampoline and `return XDP_TX` cost in the same round: median of the rounds.
    pub(crate) net_ns: f64,
    /// Name of the floor that it is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) floor: Option<String>,
    /// Net of the case over net of its floor in the same round: median of the rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) times_floor: Option<f64>,
    /// Why it is above its bound, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exceeded: Option<String>,
}

/// Checks each case, then measures all.
pub(crate) fn run(
    programs: &mut Programs,
    mut cases: Vec<Case>,
    rounds: Rounds,
) -> anyhow::Result<Vec<Figure>> {
    for case in &mut cases {
        check(programs, case).with_context(|| format!("check \"{}\"", case.name))?;
    }
    let mut samples = vec![Vec::new(); cases.len()];
    for _ in 0..rounds.count {
        for (case, samples) in cases.iter_mut().zip(&mut samples) {
            let repeats = rounds.repeats / case.fewer;
            programs.prepare(case.under, case.plan)?;
            // The first runs find the caches full of the last case.
            let cold = (repeats / 10).min(case.plan.flows);
            programs.run(case.version, &case.plan, cold)?;
            samples.push(programs.run(case.version, &case.plan, repeats)?.ns);
            advance(&mut case.plan, cold + repeats);
        }
    }
    let by_name = |name: &str| {
        let at = cases.iter().position(|case| case.name == name);
        &samples[at.expect("floors and baselines are cases too")]
    };
    Ok(cases
        .iter()
        .zip(&samples)
        .map(|(case, gross)| {
            let baseline = by_name(&cases::baseline(case.version));
            let net = pairs(gross, baseline, |gross, baseline| gross - baseline);
            let times_floor = case.floor.as_ref().map(|floor| {
                let floor = pairs(by_name(floor), baseline, |gross, baseline| gross - baseline);
                median(&pairs(&net, &floor, |net, floor| net / floor))
            });
            let exceeded = case.bound.and_then(|bound| {
                let (times, most, of) = match bound {
                    Bound::Floor(most) => (times_floor?, most, "its floor"),
                    Bound::Transmit(most) => {
                        let times = pairs(gross, baseline, |gross, baseline| gross / baseline);
                        (median(&times), most, "XDP_TX alone")
                    }
                };
                (times > most).then(|| format!("{times:.2} × {of}, above {most} ×"))
            });
            Figure {
                name: case.name.clone(),
                exceeded,
                gross_ns: median(gross),
                gross_min_ns: gross.iter().copied().fold(f64::INFINITY, f64::min),
                gross_max_ns: gross.iter().copied().fold(0.0, f64::max),
                net_ns: median(&net),
                floor: case.floor.clone(),
                times_floor,
            }
        })
        .collect())
}

/// A fast wrong answer is the usual one: checks action and bytes of the first packet and of the last,
/// and that the counters saw each of those between.
fn check(programs: &mut Programs, case: &mut Case) -> anyhow::Result<()> {
    programs.prepare(case.under, case.plan)?;
    for repeats in [1, case.warm_up] {
        let before = programs.count(case.counter)?;
        let run = programs.run(case.version, &case.plan, repeats)?;
        let last = {
            let mut plan = case.plan;
            advance(&mut plan, repeats - 1);
            plan.position
        };
        case.check(last, &run)
            .with_context(|| format!("look at the packet after {repeats} runs"))?;
        let counted = programs.count(case.counter)? - before;
        ensure!(
            case.counter == Counter::None || counted == u64::from(repeats),
            "{:?} counted {counted} of {repeats} packets",
            case.counter
        );
        advance(&mut case.plan, repeats);
    }
    Ok(())
}

/// Moves on as the trampoline does in so many runs.
fn advance(plan: &mut Plan, runs: u32) {
    let distance = u64::from(plan.stride) * u64::from(runs) + u64::from(plan.position);
    plan.position = (distance % u64::from(plan.flows)) as u32;
}

fn pairs(a: &[f64], b: &[f64], join: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| join(*a, *b)).collect()
}

/// The middle one; the mean of the two in the middle if they are even in number.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// Least probability of what is taken for chance.
const CHANCE: f64 = 0.05;

/// Whether so many of the samples are above a bound that it is not by chance: the sign test. If their
/// median were the bound, each would be above it with probability 1/2.
pub(crate) fn is_above(samples: &[f64], bound: f64) -> bool {
    let below = samples.iter().filter(|sample| **sample <= bound).count();
    let count = samples.len();
    // Of all ways in which they can fall, those with no more below it than these.
    let (mut ways, mut rare) = (1.0, 0.0);
    for at in 0..=below {
        rare += ways;
        ways *= (count - at) as f64 / (at + 1) as f64;
    }
    rare / 2_f64.powi(count as i32) < CHANCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }

    /// By the table of the binomial distribution: of 11, two or fewer by chance is 67/2048.
    #[test]
    fn what_is_above_by_chance_is_not_above() {
        let of = |above: usize, count: usize| {
            let samples: Vec<_> = (0..count).map(|at| if at < above { 1.1 } else { 0.9 }).collect();
            is_above(&samples, 1.0)
        };
        assert!(of(9, 11) && !of(8, 11), "67 and 232 of 2048");
        assert!(of(7, 7) && !of(6, 7), "1 and 8 of 128");
        assert!(of(5, 5) && !of(4, 4), "1 of 32, 1 of 16");
        assert!(!of(2, 2) && !of(0, 11) && !is_above(&[], 1.0));
        assert!(!is_above(&[1.0; 11], 1.0), "at the bound is not above it");
    }
}
