//! Nodes, their clocks, the network between them, and what goes wrong.
//!
//! Time is virtual and runs from event to event. All that is random comes from one generator, so a seed
//! gives the same run again. A node sees its own clock alone, which may be ahead or behind and run too
//! fast or too slow.
//!
//! A node may be paused (its process does not run, while its kernel stamps what arrives), crash (the
//! process is gone, what the kernel has stays) or lose power (all is gone but what is on disk).

use std::{cmp::Reverse, collections::BinaryHeap, fmt, time::Duration};

use fastrand::Rng;

/// What runs on a node. Times that it sees are by its own clock.
pub(crate) trait Machine: fmt::Debug {
    /// What nodes tell each other.
    type Message: Clone + fmt::Debug;
    /// What an operator does to a node.
    type Wish: Copy + fmt::Debug;

    /// The process starts. What the kernel kept is there.
    fn start(&mut self, now: Duration, out: &mut Outbox<Self::Message>);
    /// A message that arrived at `at`.
    fn receive(
        &mut self,
        message: &Self::Message,
        at: Duration,
        now: Duration,
        out: &mut Outbox<Self::Message>,
    );
    /// Time has passed. All messages that have arrived were received.
    fn tick(&mut self, now: Duration, out: &mut Outbox<Self::Message>);
    /// An operator does something.
    fn wish(&mut self, wish: Self::Wish, now: Duration, out: &mut Outbox<Self::Message>);
    /// When `tick` is due.
    fn deadline(&self) -> Option<Duration>;
    /// The process is gone.
    fn crash(&mut self);
    /// The node is gone.
    fn power_off(&mut self);
}

/// What a machine sends: to one node, or to all others.
#[derive(Debug)]
pub(crate) struct Outbox<T>(Vec<(Option<usize>, T)>);

impl<T> Outbox<T> {
    /// To one node.
    pub(crate) fn tell(&mut self, node: usize, message: T) {
        self.0.push((Some(node), message));
    }

    /// To all others.
    pub(crate) fn tell_all(&mut self, message: T) {
        self.0.push((None, message));
    }
}

/// Something that goes wrong, or that somebody does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault<W> {
    /// The process of a node does not run for so long.
    Pause(usize, Duration),
    /// The process of a node is killed, and started again after so long.
    Crash(usize, Duration),
    /// A node loses power, and has it again after so long.
    PowerOff(usize, Duration),
    /// Nothing gets from the first node to the second for so long.
    Cut(usize, usize, Duration),
    /// So many of a thousand messages are lost from now on.
    Loss(u32),
    /// Messages take up to so long from now on.
    Delay(Duration),
    /// An operator does something.
    Wish(usize, W),
}

/// A node's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// What it shows when the world begins.
    pub(crate) offset: Duration,
    /// Millionths by which it runs too fast, or too slow.
    pub(crate) drift: i64,
}

impl Clock {
    /// What it shows at a time.
    pub(crate) fn local(self, time: Duration) -> Duration {
        let nanos = time.as_nanos() as i128;
        let nanos = nanos + nanos * i128::from(self.drift) / 1_000_000;
        self.offset + Duration::from_nanos(nanos.max(0) as u64)
    }

    /// When it shows this, or a nanosecond later.
    pub(crate) fn time(self, local: Duration) -> Duration {
        let nanos = local.saturating_sub(self.offset).as_nanos() as i128;
        let nanos = nanos * 1_000_000 / (1_000_000 + i128::from(self.drift));
        Duration::from_nanos(nanos.max(0) as u64 + 2)
    }
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node<M: Machine> {
    /// What runs on it.
    pub(crate) machine: M,
    /// Its clock.
    pub(crate) clock: Clock,
    /// Since when its process runs without having been stopped.
    pub(crate) awake_since: Option<Duration>,
    power: Power,
    until: Duration,
    inbox: Vec<(Duration, M::Message)>,
    wakes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    Runs,
    Paused,
    Gone,
}

/// What a run is made of.
#[derive(Debug)]
pub(crate) struct Plan<W> {
    /// The clock of each node.
    pub(crate) clocks: Vec<Clock>,
    /// When each node is started first.
    pub(crate) starts: Vec<Duration>,
    /// What happens, and when.
    pub(crate) faults: Vec<(Duration, Fault<W>)>,
    /// Messages take this long at most.
    pub(crate) delay: Duration,
    /// So much later than due a process may be woken.
    pub(crate) jitter: Duration,
    /// When it ends.
    pub(crate) end: Duration,
}

/// Looks at every instant.
pub(crate) trait Observer<M: Machine> {
    /// Called before and after each event. An error is an invariant that does not hold.
    fn look(&mut self, now: Duration, nodes: &[Node<M>]) -> Result<(), String>;
}

/// A run.
pub(crate) struct World<M: Machine> {
    nodes: Vec<Node<M>>,
    rng: Rng,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: Vec<Option<Event<M>>>,
    cut_until: Vec<Vec<Duration>>,
    loss: u32,
    delay: Duration,
    jitter: Duration,
    end: Duration,
    trace: bool,
}

#[derive(Debug)]
enum Event<M: Machine> {
    Arrive(usize, M::Message),
    Wake(usize, u64),
    Power(usize),
    Fault(Fault<M::Wish>),
}

impl<M: Machine> World<M> {
    /// A world in which nothing runs yet. `trace` prints every step.
    pub(crate) fn new(machines: Vec<M>, plan: &Plan<M::Wish>, rng: Rng, trace: bool) -> Self {
        let count = machines.len();
        let nodes = machines.into_iter().zip(&plan.clocks).map(|(machine, clock)| Node {
            machine,
            clock: *clock,
            awake_since: None,
            power: Power::Gone,
            until: Duration::ZERO,
            inbox: Vec::new(),
            wakes: 0,
        });
        let mut world = Self {
            nodes: nodes.collect(),
            rng,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            cut_until: vec![vec![Duration::ZERO; count]; count],
            loss: 0,
            delay: plan.delay,
            jitter: plan.jitter,
            end: plan.end,
            trace,
        };
        for (node, start) in plan.starts.iter().enumerate() {
            world.nodes[node].until = *start;
            world.at(*start, Event::Power(node));
        }
        for (time, fault) in &plan.faults {
            world.at(*time, Event::Fault(*fault));
        }
        world
    }

    /// Plays it to its end, or to the first thing that the observer objects to.
    pub(crate) fn run(&mut self, observer: &mut impl Observer<M>) -> Result<(), String> {
        while let Some(Reverse((now, number))) = self.queue.pop() {
            if now > self.end {
                break;
            }
            let Some(event) = self.events[number as usize].take() else { continue };
            observer.look(now, &self.nodes)?;
            if self.trace && !matches!(event, Event::Wake(..)) {
                println!("{now:>14?} {event:?}");
            }
            match event {
                Event::Arrive(node, message) => self.arrive(node, message, now),
                Event::Wake(node, wake) => {
                    if self.nodes[node].wakes == wake && self.nodes[node].power == Power::Runs {
                        self.tick(node, now);
                    }
                }
                Event::Power(node) => self.power(node, now),
                Event::Fault(fault) => self.fault(fault, now),
            }
            observer.look(now, &self.nodes)?;
        }
        observer.look(self.end, &self.nodes)
    }

    fn at(&mut self, time: Duration, event: Event<M>) {
        self.queue.push(Reverse((time, self.events.len() as u64)));
        self.events.push(Some(event));
    }

    fn arrive(&mut self, node: usize, message: M::Message, now: Duration) {
        let to = &mut self.nodes[node];
        match to.power {
            Power::Gone => {}
            Power::Paused => to.inbox.push((to.clock.local(now), message)),
            Power::Runs => {
                let local = to.clock.local(now);
                self.act(node, now, |machine, out| machine.receive(&message, local, local, out));
            }
        }
    }

    fn tick(&mut self, node: usize, now: Duration) {
        let local = self.nodes[node].clock.local(now);
        self.act(node, now, |machine, out| machine.tick(local, out));
    }

    /// Lets a machine do something, sends what it says, and sets its alarm.
    fn act(
        &mut self,
        node: usize,
        now: Duration,
        act: impl FnOnce(&mut M, &mut Outbox<M::Message>),
    ) {
        let mut out = Outbox(Vec::new());
        act(&mut self.nodes[node].machine, &mut out);
        for (to, message) in out.0 {
            match to {
                Some(to) => self.send(node, to, message, now),
                None => {
                    for to in (0..self.nodes.len()).filter(|to| *to != node) {
                        self.send(node, to, message.clone(), now);
                    }
                }
            }
        }
        let sleeper = &mut self.nodes[node];
        sleeper.wakes += 1;
        let (wakes, due) = (sleeper.wakes, sleeper.machine.deadline());
        if let Some(due) = due {
            let due = sleeper.clock.time(due).max(now) + up_to(&mut self.rng, self.jitter);
            self.at(due, Event::Wake(node, wakes));
        }
    }

    fn send(&mut self, from: usize, to: usize, message: M::Message, now: Duration) {
        if now < self.cut_until[from][to] || self.rng.u32(..1000) < self.loss {
            return;
        }
        let time = now + Duration::from_nanos(1) + up_to(&mut self.rng, self.delay);
        self.at(time, Event::Arrive(to, message));
    }

    /// A node goes on, or starts, if it is time.
    fn power(&mut self, node: usize, now: Duration) {
        let it = &mut self.nodes[node];
        if now < it.until || it.power == Power::Runs {
            return;
        }
        let before = std::mem::replace(&mut it.power, Power::Runs);
        it.awake_since = Some(now);
        let local = it.clock.local(now);
        if before == Power::Gone {
            self.act(node, now, |machine, out| machine.start(local, out));
            return;
        }
        // What has arrived meanwhile comes before any decision about time.
        for (at, message) in std::mem::take(&mut self.nodes[node].inbox) {
            self.act(node, now, |machine, out| machine.receive(&message, at, local, out));
        }
        self.tick(node, now);
    }

    fn fault(&mut self, fault: Fault<M::Wish>, now: Duration) {
        match fault {
            Fault::Pause(node, time) if self.nodes[node].power == Power::Runs => {
                self.stop(node, now + time, Power::Paused);
            }
            Fault::Pause(..) => {}
            Fault::Crash(node, time) => {
                self.nodes[node].machine.crash();
                self.stop(node, now + time, Power::Gone);
            }
            Fault::PowerOff(node, time) => {
                self.nodes[node].machine.power_off();
                self.stop(node, now + time, Power::Gone);
            }
            Fault::Cut(from, to, time) => {
                let until = &mut self.cut_until[from][to];
                *until = (*until).max(now + time);
            }
            Fault::Loss(per_mille) => self.loss = per_mille,
            Fault::Delay(delay) => self.delay = delay,
            Fault::Wish(node, wish) => {
                if self.nodes[node].power == Power::Runs {
                    let local = self.nodes[node].clock.local(now);
                    self.act(node, now, |machine, out| machine.wish(wish, local, out));
                }
            }
        }
    }

    fn stop(&mut self, node: usize, until: Duration, power: Power) {
        let it = &mut self.nodes[node];
        it.power = power;
        it.awake_since = None;
        it.inbox.clear();
        it.until = it.until.max(until);
        let until = it.until;
        self.at(until, Event::Power(node));
    }
}

/// A time from nothing up to this.
pub(crate) fn up_to(rng: &mut Rng, most: Duration) -> Duration {
    Duration::from_nanos(rng.u64(..=most.as_nanos() as u64))
}

/// A time between these.
pub(crate) fn between(rng: &mut Rng, least: Duration, most: Duration) -> Duration {
    least + up_to(rng, most.saturating_sub(least))
}
