//! The world itself: what it promises to every machine.

use std::time::Duration;

use fastrand::Rng;

use crate::world::{Clock, Fault, Machine, Node, Observer, Outbox, Plan, World};

const SECOND: Duration = Duration::from_secs(1);

/// Counts, and says its count to the other node each second.
#[derive(Debug, Default)]
struct Counter {
    other: usize,
    count: u32,
    next: Option<Duration>,
    /// What it heard: the number, and how late it was read.
    heard: Vec<(u32, Duration)>,
    /// Ticks, by its own clock.
    ticks: Vec<Duration>,
    starts: u32,
}

impl Machine for Counter {
    type Message = u32;
    type Wish = u32;

    fn start(&mut self, now: Duration, _: &mut Outbox<u32>) {
        self.starts += 1;
        self.next = Some(now + SECOND);
    }

    fn receive(&mut self, message: &u32, at: Duration, now: Duration, _: &mut Outbox<u32>) {
        self.heard.push((*message, now.saturating_sub(at)));
    }

    fn tick(&mut self, now: Duration, out: &mut Outbox<u32>) {
        let Some(due) = self.next.filter(|due| now >= *due) else { return };
        self.ticks.push(now);
        self.count += 1;
        self.next = Some(due.max(now) + SECOND);
        out.tell(self.other, self.count);
    }

    fn wish(&mut self, wish: u32, _: Duration, _: &mut Outbox<u32>) {
        self.count = wish;
    }

    fn deadline(&self) -> Option<Duration> {
        self.next
    }

    fn crash(&mut self) {
        self.next = None;
    }

    fn power_off(&mut self) {
        self.crash();
        self.count = 0;
    }
}

/// Keeps what it saw last.
#[derive(Default)]
struct Last(String, Vec<Duration>);

impl Observer<Counter> for Last {
    fn look(&mut self, now: Duration, nodes: &[Node<Counter>]) -> Result<(), String> {
        self.0 = format!("{:?}", nodes.iter().map(|node| &node.machine).collect::<Vec<_>>());
        self.1.push(now);
        Ok(())
    }
}

fn run(seed: u64, faults: Vec<(Duration, Fault<u32>)>, look: &mut impl Observer<Counter>) {
    let plan = Plan {
        clocks: vec![
            Clock { offset: SECOND * 500, drift: 0 },
            Clock { offset: Duration::ZERO, drift: 100_000 },
        ],
        starts: vec![Duration::ZERO; 2],
        faults,
        delay: Duration::from_millis(5),
        jitter: Duration::ZERO,
        end: Duration::from_millis(20_500),
    };
    let machines = vec![Counter { other: 1, ..Counter::default() }, Counter::default()];
    World::new(machines, &plan, Rng::with_seed(seed), false).run(look).unwrap();
}

/// Checks the machines when all is over.
struct AtTheEnd<F>(F);

impl<F: FnMut(&Counter, &Counter)> Observer<Counter> for AtTheEnd<F> {
    fn look(&mut self, now: Duration, nodes: &[Node<Counter>]) -> Result<(), String> {
        if now == Duration::from_millis(20_500) {
            (self.0)(&nodes[0].machine, &nodes[1].machine);
        }
        Ok(())
    }
}

#[test]
fn a_seed_gives_the_same_run_again() {
    let play = |seed| {
        let mut last = Last::default();
        run(
            seed,
            vec![(SECOND * 3, Fault::Loss(300)), (SECOND * 9, Fault::Pause(0, SECOND))],
            &mut last,
        );
        (last.0, last.1)
    };
    assert_eq!(play(7), play(7));
    assert_ne!(play(7), play(8));
}

#[test]
fn clocks_run_at_their_own_pace() {
    run(
        1,
        Vec::new(),
        &mut AtTheEnd(|right: &Counter, fast: &Counter| {
            assert_eq!((right.count, fast.count), (20, 22), "one runs a tenth too fast");
            assert_eq!(right.heard.len(), 22);
            assert!(right.ticks[0] >= SECOND * 501);
        }),
    );
}

#[test]
fn what_arrives_at_a_paused_node_is_stamped() {
    let pause = Fault::Pause(1, SECOND * 5);
    run(
        1,
        vec![(Duration::from_millis(9_500), pause)],
        &mut AtTheEnd(|_: &Counter, paused: &Counter| {
            assert_eq!(paused.heard.len(), 20, "nothing is lost");
            let late = paused.heard.iter().filter(|(_, late)| *late > Duration::ZERO).count();
            assert_eq!(late, 5);
            // And it did nothing itself.
            assert_eq!(paused.count, 22 - 5);
        }),
    );
}

#[test]
fn the_dead_hear_nothing_and_the_cut_off_speak() {
    let faults = vec![
        (Duration::from_millis(4_500), Fault::PowerOff(1, SECOND * 3)),
        (Duration::from_millis(9_500), Fault::Crash(1, SECOND * 3)),
        (Duration::from_millis(14_500), Fault::Cut(0, 1, SECOND * 2)),
        (Duration::from_millis(19_900), Fault::Wish(0, 99)),
    ];
    run(
        1,
        faults,
        &mut AtTheEnd(|first: &Counter, second: &Counter| {
            assert_eq!(second.heard.len(), 20 - 3 - 3 - 2);
            assert_eq!(second.starts, 3);
            assert!(first.heard.len() > 12, "its own messages got through");
            assert_eq!(first.count, 100);
        }),
    );
}
