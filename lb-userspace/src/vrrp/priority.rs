//! What a node advertises, given how well it can serve.
//!
//! Who reaches fewer of its backends than another node must have a lower priority than that one, and
//! nodes that all see the same must keep their order. So every node takes off the same for the same, in
//! steps that are larger than the distance of any two of them.
//!
//! Pure, as the machine is.

use std::time::Duration;

/// How well a node can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fitness {
    /// The program is on the node's interface.
    pub attached: bool,
    /// Backends that are meant to serve.
    pub backends: usize,
    /// Those of them that cannot be reached.
    pub unreachable: usize,
}

/// The priority of a node with the configured priority `own`, of nodes with the priorities `all`.
pub fn of(own: u8, all: &[u8], fitness: Fitness) -> u8 {
    let lowest = all.iter().copied().min().unwrap_or(own).min(own);
    let highest = all.iter().copied().max().unwrap_or(own).max(own);
    // At the bottom too, the nodes keep their order.
    let least = 1 + all.iter().filter(|other| **other < own).count().min(253) as u8;
    let least = least.min(own);
    if !fitness.attached {
        return least;
    }
    if fitness.unreachable == 0 || fitness.backends == 0 {
        return own;
    }
    let step = usize::from(highest - lowest) + 1;
    let levels = usize::from(lowest).saturating_sub(1 + all.len()) / step;
    let level = (fitness.unreachable * levels).div_ceil(fitness.backends);
    if level == 0 {
        return least;
    }
    usize::from(own).saturating_sub(level * step).max(least.into()) as u8
}

/// A worse state counts after it has lasted so long, at least: every node has to see it.
const FALLS_AFTER: Duration = Duration::from_secs(3);

/// A better one counts after so long, and each time that it did not last makes that twice as long.
const RISES_AFTER: Duration = Duration::from_secs(10);
const MOST_DOUBLINGS: u32 = 5;

/// A state that has lasted for so long makes up for one that did not.
const FORGIVES_AFTER: Duration = Duration::from_mins(10);

/// What counts at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Haste {
    /// A lower priority.
    pub falls: bool,
    /// A higher one.
    pub rises: bool,
}

impl Haste {
    /// What moves no address: less, of a node that has none, and more, of the one that has them. The rest is
    /// damped. So nobody takes the addresses with what it was worth before its cable was out, and nobody loses
    /// them because it was once worth less. That the program is not `attached` no other node has to see first.
    pub const fn of(attached: bool, holds: bool) -> Self {
        Self { falls: !attached || !holds, rises: holds }
    }
}

/// Follows a priority, slowly: what flaps must not make the addresses flap.
#[derive(Clone, Copy, Debug)]
pub struct Damper {
    now: u8,
    wanted: u8,
    since: Duration,
    /// The last change was for the better.
    rose: bool,
    doublings: u32,
}

impl Damper {
    /// Begins at a priority.
    pub const fn new(priority: u8) -> Self {
        Self { now: priority, wanted: priority, since: Duration::ZERO, rose: true, doublings: 0 }
    }

    /// The priority to advertise now that `wanted` would be right. `notice` is how long the slowest check of a
    /// backend takes.
    pub fn follow(&mut self, wanted: u8, notice: Duration, haste: Haste, now: Duration) -> u8 {
        if wanted != self.wanted {
            let rises = wanted > self.wanted;
            self.doublings = if now >= self.since + FORGIVES_AFTER {
                0
            } else if !rises && self.rose {
                // A fall in several steps, as when the cable is out, is one.
                (self.doublings + 1).min(MOST_DOUBLINGS)
            } else {
                self.doublings
            };
            (self.wanted, self.since, self.rose) = (wanted, now, rises);
        }
        let lasts = now.saturating_sub(self.since);
        let after = match haste {
            Haste { falls: true, .. } if self.wanted < self.now => Duration::ZERO,
            Haste { rises: true, .. } if self.wanted > self.now => Duration::ZERO,
            _ if self.wanted < self.now => FALLS_AFTER.max(notice),
            _ => RISES_AFTER * 2_u32.pow(self.doublings.saturating_sub(1)),
        };
        if lasts >= after {
            self.now = self.wanted;
        }
        self.now
    }
}

/// Of a node that has no addresses, a priority has settled when it has been the same for so long: longer than the
/// checks of several backends differ in noticing the same.
const SETTLES_AFTER: Duration = Duration::from_secs(3);

/// What of the advertised priorities is news. That of a node which has the addresses always is. One that has none
/// goes down step by step as its checks fail, and nothing comes of a step: that is told when it has settled, or
/// when the addresses come or go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steps {
    /// What was told last, and the configured one then; none if it was that.
    told: Option<(u8, u8)>,
    /// What is advertised and has not been told.
    pending: Option<Pending>,
    holds: bool,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    now: u8,
    since: Duration,
    last: Duration,
    steps: u32,
}

/// A priority is news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Changes that led to it.
    pub steps: u32,
    /// From the first of them to the last.
    pub took: Duration,
}

impl Steps {
    /// Takes in what is advertised now by a node with the configured priority `own`, and answers if it is to be
    /// told.
    pub fn follow(&mut self, priority: u8, own: u8, holds: bool, now: Duration) -> Option<Settled> {
        let moved = std::mem::replace(&mut self.holds, holds) != holds;
        let told = self.told.map_or(own, |(told, _)| told);
        let before = self.pending.map_or(told, |pending| pending.now);
        let mut pending = self.pending;
        if priority != before {
            let begun =
                pending.unwrap_or(Pending { now: priority, since: now, last: now, steps: 0 });
            pending = Some(Pending { now: priority, last: now, steps: begun.steps + 1, ..begun });
        }
        let due = |it: &Pending| holds || moved || now >= it.last + SETTLES_AFTER;
        self.pending = pending.filter(|it| !due(it));
        let Pending { since, last, steps, .. } = pending.filter(due)?;
        let is = (priority != own).then_some((priority, own));
        let was = std::mem::replace(&mut self.told, is);
        // Down and up again: nothing has come of it.
        (is != was).then_some(Settled { steps, took: last.saturating_sub(since) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fit(backends: usize, unreachable: usize) -> Fitness {
        Fitness { attached: true, backends, unreachable }
    }

    #[test]
    fn one_backend_less_is_enough_to_give_way() {
        let all = [100, 90];
        assert_eq!(of(100, &all, fit(12, 0)), 100);
        assert_eq!(of(100, &all, fit(12, 1)), 89);
        assert_eq!(of(90, &all, fit(12, 1)), 79);
        assert_eq!(of(100, &all, fit(12, 12)), 23);
        assert_eq!(of(100, &all, Fitness { attached: false, ..fit(12, 0) }), 2);
        assert_eq!(of(90, &all, Fitness { attached: false, ..fit(12, 0) }), 1);
        assert_eq!(of(100, &all, fit(0, 0)), 100, "nothing to serve is no fault");
    }

    proptest! {
        #[test]
        fn who_sees_less_is_below_who_sees_all_and_equals_keep_their_order(
            mut all in prop::collection::vec(1_u8..=254, 2..5),
            backends in 1_usize..500,
            unreachable in 1_usize..500,
        ) {
            all.sort_unstable();
            all.dedup();
            let unreachable = unreachable.min(backends);
            let worse: Vec<u8> = all.iter().map(|own| of(*own, &all, fit(backends, unreachable))).collect();
            prop_assert!(worse.is_sorted_by(|a, b| a < b), "{all:?} become {worse:?}");
            prop_assert!(worse.iter().all(|priority| *priority >= 1));
            // Nodes of the lowest priorities have no room below them.
            if usize::from(all[0]) > 2 * all.len() + usize::from(all[all.len() - 1] - all[0]) {
                prop_assert!(worse[worse.len() - 1] < all[0], "{all:?} become {worse:?}");
            }
        }
    }

    #[test]
    fn what_flaps_moves_nothing() {
        let second = Duration::from_secs;
        let mut damper = Damper::new(100);
        let none = Haste { falls: false, rises: false };
        let mut at = |wanted, seconds| damper.follow(wanted, second(2), none, second(seconds));
        // Down and up again within three seconds, many times.
        for time in 1000..1100 {
            assert_eq!(at(if time % 2 == 0 { 89 } else { 100 }, time), 100);
        }
        // It lasts: then it counts, and what is better must last much longer.
        assert_eq!(at(89, 1100), 100);
        assert_eq!(at(89, 1103), 89);
        assert_eq!(at(100, 1104), 89);
        assert_eq!(at(100, 1104 + 159), 89);
        assert_eq!(at(100, 1104 + 160), 100);
        // After a long quiet time, all is forgiven.
        assert_eq!(at(89, 5000), 100);
        assert_eq!(at(89, 5003), 89);
        assert_eq!(at(100, 5004), 89);
        assert_eq!(at(100, 5014), 100);
    }

    #[test]
    fn what_only_this_node_sees_counts_at_once() {
        let mut damper = Damper::new(100);
        let now = Duration::from_secs(50);
        assert_eq!(damper.follow(2, Duration::ZERO, Haste::of(false, true), now), 2);
        let mut slow = Damper::new(100);
        let notice = Duration::from_secs(30);
        let holds = Haste::of(true, true);
        assert_eq!(slow.follow(89, notice, holds, now), 100);
        assert_eq!(slow.follow(89, notice, holds, now + notice), 89);
    }

    #[test]
    fn a_fall_in_several_steps_is_damped_as_one() {
        let second = Duration::from_secs;
        let backup = Haste::of(true, false);
        let mut damper = Damper::new(100);
        // Its cable is out, check after check fails, and then it is back.
        for (at, priority) in [(20, 89), (21, 78), (22, 67), (23, 56), (24, 45), (25, 23)] {
            assert_eq!(damper.follow(priority, second(3), backup, second(at)), priority);
        }
        assert_eq!(damper.follow(100, second(3), backup, second(30)), 23);
        assert_eq!(damper.follow(100, second(3), backup, second(39)), 23);
        assert_eq!(damper.follow(100, second(3), backup, second(40)), 100);
        // What flaps waits longer each time: it falls at 50, 51, and at 52.
        for at in 50..53 {
            assert_eq!(damper.follow(23, second(3), backup, second(at)), 23);
            assert_eq!(damper.follow(100, second(3), backup, second(at)), 23);
        }
        assert_eq!(damper.follow(100, second(3), backup, second(52 + 79)), 23);
        assert_eq!(damper.follow(100, second(3), backup, second(52 + 80)), 100);
    }

    #[test]
    fn steps_of_a_node_without_addresses_are_told_as_one() {
        let ms = Duration::from_millis;
        let mut steps = Steps::default();
        let mut told = Vec::new();
        // Its cable is out: check after check fails, and it has no addresses any more.
        assert_eq!(steps.follow(100, 100, true, ms(0)), None);
        for (at, priority) in [(100, 100), (900, 89), (1000, 67), (1100, 67), (1200, 23)] {
            told.extend(steps.follow(priority, 100, false, ms(at)));
        }
        assert_eq!(told, []);
        assert_eq!(steps.follow(23, 100, false, ms(4199)), None);
        let settled = Settled { steps: 3, took: ms(300) };
        assert_eq!(steps.follow(23, 100, false, ms(4200)), Some(settled));
        assert_eq!(steps.follow(23, 100, false, ms(9000)), None, "once");
        // The cable is back, and it takes the addresses: that is told before it has settled.
        assert_eq!(steps.follow(56, 100, false, ms(10_000)), None);
        let settled = Settled { steps: 2, took: ms(100) };
        assert_eq!(steps.follow(100, 100, true, ms(10_100)), Some(settled));
        // Of the one that has them each step counts, and what comes before it loses them too.
        let settled = Some(Settled { steps: 1, took: ms(0) });
        assert_eq!(steps.follow(89, 100, true, ms(20_000)), settled);
        assert_eq!(steps.follow(78, 100, false, ms(20_100)), settled);
        assert_eq!(steps.follow(78, 100, false, ms(30_000)), None);
    }

    #[test]
    fn a_priority_that_is_back_before_it_is_told_is_no_news() {
        let second = Duration::from_secs;
        let mut steps = Steps::default();
        for at in 0..100 {
            let priority = if at % 2 == 0 { 100 } else { 89 };
            assert_eq!(steps.follow(priority, 100, false, second(at)), None);
        }
        for at in 200..210 {
            assert_eq!(steps.follow(100, 100, false, second(at)), None);
        }
        // Another configuration says what it advertises already.
        assert_eq!(steps.follow(89, 100, false, second(300)), None);
        let settled = Some(Settled { steps: 1, took: second(0) });
        assert_eq!(steps.follow(89, 100, false, second(303)), settled);
        assert_eq!(steps.follow(89, 89, false, second(304)), None);
        assert_eq!(steps.follow(78, 89, true, second(305)), settled);
    }

    #[test]
    fn what_moves_no_address_counts_at_once() {
        let (mut first, mut second) = (Damper::new(100), Damper::new(90));
        let notice = Duration::from_secs(30);
        let (rests, serves) = (Haste::of(true, false), Haste::of(true, true));
        let mut now = Duration::from_secs(1000);
        // Their cables are out and in again, one after the other, many times.
        for _ in 0..10 {
            assert_eq!(first.follow(23, notice, rests, now), 23);
            assert_eq!(second.follow(90, notice, serves, now), 90);
            now += Duration::from_secs(1);
            assert_eq!(first.follow(100, notice, rests, now), 23, "it takes nothing back");
            assert_eq!(second.follow(13, notice, rests, now), 13);
            now += Duration::from_secs(1);
            assert_eq!(first.follow(100, notice, serves, now), 100, "it serves, and loses nothing");
            assert_eq!(second.follow(90, notice, rests, now), 13);
        }
    }
}
