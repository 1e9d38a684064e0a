//! Who is condemned: the tests, and the comparison with the siblings.

use std::time::Duration;

use super::{
    Evidence, FAILURES, Fault, Input, Live, Outcome, Rules, Stays, Track,
    evidence::{chance_of_alike, chance_of_all},
    window::{KEPT, Tally},
};

/// Chance explains the failures if it is at least this likely: seven failures of seven, while the only
/// sibling answers seven, are just not chance.
const CHANCE: f64 = 1e-4;

/// A backend is condemned only if its share of failures is at least so many times its siblings'.
const WORSE: f64 = 2.0;

/// How likely a failure is taken to be if there is nothing to compare with.
const UNKNOWN_SHARE: f64 = 0.5;

/// The test by ratio looks at this time, ...
const RATIO_TIME: Duration = Duration::from_secs(2);

/// ... at so many connections at least, ...
const RATIO_CONNECTIONS: u64 = 20;

/// ... and condemns from this share of failures on: with fewer, the backend serves more than it loses.
const RATIO_SHARE: f64 = 0.5;

/// Resets in the time of the test by ratio that may condemn, ...
const RESETS: u64 = 10;

/// ... if they were seen at so many readings: a process that crashes and is started again at once
/// resets all its connections together, and needs no ejection.
const RESET_READINGS: usize = 3;

/// What a backend's connections show now.
struct View<'a> {
    /// It may be compared with: it serves.
    serves: bool,
    live: Option<&'a Live>,
    grace: Duration,
    /// Silence counts.
    answers_pass: bool,
    /// Since its last answer.
    run: Tally,
    /// In the time of the test by ratio.
    short: Tally,
    reset_readings: usize,
    /// It has answered since the reading before, and has no run of failures.
    lives: bool,
}

impl<'a> View<'a> {
    fn of(track: &'a Track, input: &Input<'_>, answers_pass: bool, now: Duration) -> Self {
        let serves = input.eligible && !track.is_ejected();
        let mut view = Self {
            serves,
            live: track.live().filter(|_| serves),
            grace: track.grace(),
            answers_pass,
            run: Tally::default(),
            short: Tally::default(),
            reset_readings: 0,
            lives: false,
        };
        if let Some(live) = view.live {
            let short_ago = now.saturating_sub(RATIO_TIME);
            view.run = view.since(live.window.last_answer(), now);
            view.short = view.since(short_ago, now);
            view.reset_readings = live.window.readings_with_resets(short_ago);
            view.lives = live.window.answers_now() && view.run.failed() < FAILURES;
        }
        view
    }

    /// What speaks against it.
    fn since(&self, from: Duration, now: Duration) -> Tally {
        self.heard(self.live.map(|live| live.window.since(from, now, self.grace)))
    }

    /// What others are compared with.
    fn due_since(&self, from: Duration, now: Duration) -> Tally {
        self.heard(self.live.map(|live| live.window.due_since(from, now, self.grace)))
    }

    fn heard(&self, tally: Option<Tally>) -> Tally {
        let tally = tally.unwrap_or_default();
        if self.answers_pass { tally } else { Tally { silent: 0, ..tally } }
    }

    /// Whether its connections fail.
    fn fails(&self) -> bool {
        self.run.failed() > 0 || self.short.failed() > 0
    }

    /// What may condemn it: the numbers, and whether resets are what they count.
    fn accusations(&self) -> impl Iterator<Item = Evidence> + use<> {
        let Self { run, short, .. } = self;
        let in_a_row = run.failed() >= FAILURES;
        let by_ratio = Evidence::of_connections(short);
        let mostly = by_ratio.of >= RATIO_CONNECTIONS && by_ratio.share() >= RATIO_SHARE;
        let by_resets = Evidence::of_resets(short);
        let resets = by_resets.failed >= RESETS
            && self.reset_readings >= RESET_READINGS
            && by_resets.share() >= RATIO_SHARE;
        let in_a_row = in_a_row.then(|| Evidence::of_connections(run));
        in_a_row.into_iter().chain(mostly.then_some(by_ratio)).chain(resets.then_some(by_resets))
    }
}

/// Condemns those that chance does not explain, and ejects those for which there is room.
pub(super) fn condemn(
    rules: Rules,
    backends: &mut [(&mut Track, Input<'_>)],
    now: Duration,
    outcome: &mut Outcome,
) {
    let answers_pass = backends.iter().any(|(track, _)| track.answered() > 0);
    let views: Vec<_> =
        backends.iter().map(|(track, input)| View::of(track, input, answers_pass, now)).collect();
    let eligible = backends.iter().filter(|(_, input)| input.eligible).count();
    let serving = views.iter().enumerate().filter(|(_, view)| view.serves);
    let mut condemned: Vec<_> = serving
        .filter_map(|(place, view)| {
            view.accusations().find_map(|evidence| {
                match sentence(&views, place, evidence, eligible, now) {
                    Sentence::Spared => None,
                    Sentence::Out => Some((place, evidence, None)),
                    Sentence::Stays(stays) => Some((place, evidence, Some(stays))),
                }
            })
        })
        .collect();
    for (place, (track, input)) in backends.iter_mut().enumerate() {
        if !condemned.iter().any(|(condemned, ..)| *condemned == place) {
            outcome.news.extend(track.recover(input.eligible, now).map(|news| (place, news)));
        }
    }
    // The worst first, if there is not room for all.
    condemned.sort_by_key(|(place, evidence, _)| (std::cmp::Reverse(evidence.failed), *place));
    let room = (eligible * rules.eject_percent as usize / 100).max(1);
    for (place, evidence, stays) in condemned {
        let ejected =
            backends.iter().filter(|(track, input)| input.eligible && track.is_ejected()).count();
        let (track, input) = &mut backends[place];
        let stays = stays.or((ejected >= room).then_some(Stays::Cap(ejected, eligible)));
        let news = match stays {
            Some(stays) => track.fail(evidence, stays, rules, now),
            None => Some(track.eject(evidence, rules, input.confirmed.is_some(), now)),
        };
        outcome.news.extend(news.map(|news| (place, news)));
    }
}

/// What follows from evidence.
#[derive(Clone, Copy, Debug)]
enum Sentence {
    /// Chance explains it, or the siblings are no better.
    Spared,
    /// The backend should be ejected.
    Out,
    /// It fails, but must stay.
    Stays(Stays),
}

/// What follows from the evidence, by what the siblings show.
fn sentence(
    views: &[View<'_>],
    place: usize,
    evidence: Evidence,
    eligible: usize,
    now: Duration,
) -> Sentence {
    let siblings =
        || views.iter().enumerate().filter(|(other, view)| *other != place && view.serves);
    let living = || siblings().filter(|(_, view)| view.lives);
    // Their failures of the same kind since then, of so many.
    let theirs = |from: Duration| {
        living().fold((0, 0), |(failed, of), (_, view)| {
            let tally = view.due_since(from, now);
            let more = match evidence.fault {
                Fault::Resets => Evidence::of_resets(&tally),
                Fault::Refused | Fault::Unreachable | Fault::Silent => {
                    Evidence::of_connections(&tally)
                }
            };
            (failed + more.failed, of + more.of)
        })
    };
    let alone = |sentence| {
        let chance = chance_of_all(evidence.failed, UNKNOWN_SHARE);
        if chance <= CHANCE { sentence } else { Sentence::Spared }
    };
    if living().next().is_some() {
        let same_time = theirs(now.saturating_sub(evidence.within));
        let is_worse =
            |(failed, of): (u64, u64)| evidence.share() * of as f64 >= WORSE * failed as f64;
        // What the others went through before counts as well, if it was bad.
        let condemned = is_worse(same_time)
            && is_worse(theirs(now.saturating_sub(KEPT)))
            && chance_of_alike((evidence.failed, evidence.of), same_time) <= CHANCE;
        if condemned { Sentence::Out } else { Sentence::Spared }
    } else if evidence.fault == Fault::Resets || evidence.failed < evidence.of {
        // Some servers end every connection by a reset, some are always full: without a sibling that
        // does better, that says nothing.
        Sentence::Spared
    } else if eligible <= 1 {
        alone(Sentence::Stays(Stays::Alone))
    } else if siblings().any(|(_, view)| view.fails()) {
        alone(Sentence::Stays(Stays::Alike))
    } else {
        alone(Sentence::Out)
    }
}
