//! Who is the Active router of one virtual router: the state machine of VRRP.
//!
//! ```text
//!              Start             Active_Down_Timer                nobody objects
//!  Initialize ───────▶ Backup ─────────────────────▶ Claiming ───────────────────▶ Active
//!       ▲                ▲ ▲                            │                          │  │
//!       │ Fault          │ └──── a higher priority ─────┴──────────────────────────┘  │
//!       │ (from any)     │                                               Release, Stop │
//!       └────────────────┴──────────── another takes over ─────────────── Leaving ◀────┘
//! ```
//!
//! RFC 9568 §6.4 (version 3) and RFC 3768 §6.4 (version 2), with what they leave open:
//!
//! - **Claiming.** A new Active sends its advert, as they ask, and takes the addresses a moment later: as
//!   soon as the one that had them says that it has let go, or after [`Settings::claim`]. Of two that
//!   begin at the same time one yields before it has taken anything.
//! - **Letting go.** Who yields says so, by an advert of priority 0.
//! - **Leaving.** Who hands over says so (priority 0) and serves until it hears the next Active: nobody may
//!   answer, and then it has not left.
//! - **The lease.** With every advert the machine says until when this node may answer for the
//!   addresses: a little less than the time after which a Backup takes them. Whoever is later than
//!   that (a process that was stopped) behaves as Backup first.
//! - **A late Backup.** Adverts carry the time at which the kernel received them, so that a process that
//!   was stopped misses none. A Backup that is later than an interval listens once more all the same.
//!
//! Pure: a state, an event and `now` in, a state and actions out. The same code runs in the daemon and
//! in the simulator.

use std::{net::IpAddr, time::Duration};

use super::packet::Version;

#[cfg(test)]
mod tests;

/// Priority of who owns the addresses by itself (RFC 9568 §5.2.4).
pub const OWNER: u8 = 255;

/// Priority that says that the Active leaves.
pub const LEAVES: u8 = 0;

/// Of one interval, so much is the lease shorter than three: what clocks may differ by, and an advert
/// may be late by.
const GUARD: u32 = 8;

/// An advert of a lower priority is answered at once (RFC 9568 §6.4.3), but not more often than so many
/// times in an interval: a flood must not become another one.
const ANSWERS: u32 = 4;

/// A claim waits for objections no longer than this: a local network is faster.
const MOST_CLAIM: Duration = Duration::from_millis(10);

/// How long the addresses of a stopped node stay answered for if nobody has taken them: time for an
/// upgrade.
pub const STOPPED_LEASE: Duration = Duration::from_mins(1);

/// What an instance is configured to do. It may change at any time: see [`Event::Changed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Version of the protocol.
    pub version: Version,
    /// Source of our adverts: of two with the same priority, the higher address is preferred.
    pub address: IpAddr,
    /// 1 to 254, or [`OWNER`].
    pub priority: u8,
    /// Time between two of our adverts.
    pub interval: Duration,
    /// Takes over from a lower priority.
    pub preempt: bool,
    /// So long after the first advert of a lower priority.
    pub preempt_delay: Duration,
}

/// Where an instance is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It takes no part.
    #[default]
    Initialize,
    /// It listens, and does not answer for the addresses.
    Backup(Backup),
    /// It has said that it is Active, and is about to be.
    Claiming(Claiming),
    /// It answers for the addresses.
    #[doc(alias = "master")]
    Active(Active),
    /// It has said that it leaves, and answers until another does.
    Leaving(Leaving),
}

/// [`State::Backup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backup {
    /// RFC 9568's `Active_Adver_Interval`: that of the Active.
    pub interval: Duration,
    /// When `Active_Down_Timer` fires.
    pub down_at: Duration,
    /// Who is Active: whose advert was heard last.
    pub active: Option<IpAddr>,
    /// Since when the Active has had a lower priority than this node.
    pub lower_since: Option<Duration>,
    /// It was asked to hand over: it takes the addresses back only when nobody has them.
    pub released: bool,
    /// It was late, and has listened once more since.
    pub listened: bool,
    /// What it heard last.
    pub heard: Heard,
}

/// What a Backup heard last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Heard {
    /// No advert yet.
    #[default]
    Nothing,
    /// One that it follows.
    Active,
    /// One that it will take over from.
    Lower,
    /// That the Active leaves.
    Leaves,
}

/// [`State::Claiming`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claiming {
    /// When it takes the addresses.
    pub until: Duration,
    /// When it sent its advert.
    pub sent_at: Duration,
    /// Who has to let go of them.
    pub active: Option<IpAddr>,
    /// Why it does.
    pub cause: Cause,
}

/// [`State::Active`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Active {
    /// When the next advert is due.
    pub advert_at: Duration,
    /// When the last one was sent.
    pub sent_at: Duration,
    /// When another node's advert was last answered.
    pub answered_at: Option<Duration>,
    /// Until when this node may answer for the addresses.
    pub lease: Duration,
}

/// [`State::Leaving`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// When it is clear that nobody takes over.
    pub until: Duration,
    /// It ends; else it becomes Backup.
    pub stops: bool,
}

/// An advert that the instance listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advert {
    /// When it arrived, by the kernel's clock.
    pub at: Duration,
    /// Who sent it.
    pub source: IpAddr,
    /// Its priority.
    pub priority: u8,
    /// Its interval.
    pub interval: Duration,
    /// What is known of the sender.
    pub sender: Sender,
}

/// What is known of who sent an advert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sender {
    /// Nothing in particular.
    #[default]
    Peer,
    /// A node whose priority is less than the configured one: it gives way, also to a node that does not
    /// preempt.
    GivesWay,
    /// It answers for other addresses: somebody else's virtual router has our number. It is never
    /// preempted.
    Stranger,
}

/// What happens to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The interface is there, and this node can serve. `lease` is that of an earlier life that
    /// answered for the addresses.
    Start {
        /// Until when it lasts.
        lease: Option<Duration>,
    },
    /// An advert was received.
    Heard(Advert),
    /// Time has passed. All adverts that have arrived until now were told.
    Tick,
    /// The settings are others than before.
    Changed,
    /// The operator wants another node to take over.
    Release,
    /// The daemon ends.
    Stop,
    /// The interface is gone or its cable is out.
    Fault,
}

/// What has to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send an advert with this priority.
    Send(u8),
    /// This node may answer for the addresses until then; `None`: not any more.
    Lease(Option<Duration>),
    /// Put the addresses on the interface and announce them.
    Take,
    /// Take the addresses off.
    Drop,
    /// Announce the addresses once more: somebody else has claimed them.
    Announce,
    /// Tell what has happened.
    Tell(Cause),
}

/// Why the state changed, or what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It begins to listen.
    Starts,
    /// It goes on where an earlier life stopped.
    Resumes,
    /// It owns the addresses.
    Owns,
    /// No Active has been heard since the start.
    NobodyHeard,
    /// The Active is silent.
    ActiveSilent,
    /// The Active has left.
    ActiveLeft,
    /// The Active has a lower priority.
    Preempts,
    /// A node with a higher priority is Active.
    Yields {
        /// Which.
        to: IpAddr,
        /// Its priority.
        priority: u8,
    },
    /// Another node is Active at the same time, and has to yield.
    Contested {
        /// Which.
        by: IpAddr,
        /// Its priority.
        priority: u8,
    },
    /// No advert was sent for longer than the lease.
    Stalled {
        /// For so long.
        by: Duration,
    },
    /// Another node has taken over.
    HandedOver {
        /// Which.
        to: IpAddr,
    },
    /// It wanted to hand over, but nobody took the addresses.
    NobodyTakes,
    /// It ends, and nobody took the addresses: they stay.
    Stays,
    /// The interface cannot be used.
    Fault,
}

impl State {
    /// Its name in RFC 9568; `claiming` and `leaving` are ours.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Initialize => "initialize",
            Self::Backup(_) => "backup",
            Self::Claiming(_) => "claiming",
            Self::Active(_) => "active",
            Self::Leaving(_) => "leaving",
        }
    }

    /// Whether the addresses are this node's.
    pub const fn serves(&self) -> bool {
        matches!(self, Self::Active(_) | Self::Leaving(_))
    }

    /// When [`Event::Tick`] is due.
    pub const fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Initialize => None,
            Self::Backup(backup) => Some(backup.down_at),
            Self::Claiming(claiming) => Some(claiming.until),
            Self::Active(active) => Some(active.advert_at),
            Self::Leaving(leaving) => Some(leaving.until),
        }
    }
}

impl Settings {
    /// `Skew_Time`, if the Active's interval is this: RFC 9568 §6.1, RFC 3768 §6.1.
    pub fn skew(&self, interval: Duration) -> Duration {
        let of = match self.version {
            Version::V2 => Duration::from_secs(1),
            Version::V3 => interval,
        };
        of * (256 - u32::from(self.priority)) / 256
    }

    /// `Active_Down_Interval`, if the Active's interval is this.
    pub fn down(&self, interval: Duration) -> Duration {
        interval * 3 + self.skew(interval)
    }

    /// How long after an advert of ours this node may answer for the addresses: no Backup takes them
    /// in three intervals.
    pub fn lease(&self) -> Duration {
        (self.interval * 3).saturating_sub(self.interval / GUARD)
    }

    /// How long a new Active waits for objections.
    pub fn claim(&self) -> Duration {
        (self.interval / GUARD).min(MOST_CLAIM)
    }

    /// The longest time in which a Backup notices that its Active has left, or is silent.
    fn patience(&self) -> Duration {
        match self.version {
            Version::V2 => self.interval * 3 + Duration::from_secs(1),
            Version::V3 => self.interval * 4,
        }
    }

    /// Version 2 has one interval for all.
    fn interval_of(&self, advert: &Advert) -> Duration {
        match self.version {
            Version::V2 => self.interval,
            Version::V3 => advert.interval,
        }
    }
}

/// Takes one event in.
pub fn step(
    settings: &Settings,
    state: State,
    event: Event,
    now: Duration,
) -> (State, Vec<Action>) {
    let mut step = Step { settings, now, actions: Vec::new() };
    let state = step.wake(state);
    let state = match (state, event) {
        (_, Event::Fault) => step.fault(state),
        (State::Initialize, Event::Start { lease }) => step.start(lease),
        (State::Backup(backup), Event::Heard(advert)) => step.backup_heard(backup, &advert),
        (State::Backup(backup), Event::Tick) => step.backup_tick(backup),
        (State::Backup(_), Event::Stop) => State::Initialize,
        (State::Claiming(claim), Event::Heard(advert)) => step.claiming_heard(claim, &advert),
        (State::Claiming(claim), Event::Tick) if now >= claim.until => step.take(claim),
        (State::Claiming(_), Event::Release) => step.withdraw(),
        (State::Claiming(_), Event::Stop) => {
            step.withdraw();
            State::Initialize
        }
        (State::Active(active), Event::Heard(advert)) => step.active_heard(active, &advert),
        (State::Active(active), Event::Tick) if now >= active.advert_at => step.advertise(active),
        (State::Active(active), Event::Changed) => step.advertise(active),
        (State::Active(_), Event::Release) => step.leave(false),
        (State::Active(_), Event::Stop) => step.leave(true),
        (State::Leaving(leaving), Event::Heard(advert)) => step.leaving_heard(leaving, &advert),
        (State::Leaving(leaving), Event::Tick) if now >= leaving.until => step.not_taken(leaving),
        (State::Leaving(leaving), Event::Stop) => {
            State::Leaving(Leaving { stops: true, ..leaving })
        }
        (state, _) => state,
    };
    (state, step.actions)
}

struct Step<'a> {
    settings: &'a Settings,
    now: Duration,
    actions: Vec<Action>,
}

impl Step<'_> {
    fn act(&mut self, actions: &[Action]) {
        self.actions.extend(actions);
    }

    /// An Active that has slept longer than its lease is none any more, whatever wakes it.
    fn wake(&mut self, state: State) -> State {
        let (sent_at, lease) = match state {
            State::Active(active) => (active.sent_at, active.lease),
            State::Claiming(claim) => (claim.sent_at, claim.sent_at + self.settings.lease()),
            State::Leaving(Leaving { until, stops: false }) => {
                (until, until + self.settings.interval)
            }
            _ => return state,
        };
        if self.now <= lease {
            return state;
        }
        if state.serves() {
            self.act(&[Action::Lease(None), Action::Drop]);
        }
        let by = self.now.saturating_sub(sent_at);
        self.act(&[Action::Tell(Cause::Stalled { by })]);
        State::Backup(self.listen(self.settings.interval, self.now))
    }

    /// Backup, with the timer armed as if an advert had come at `since`.
    fn listen(&self, interval: Duration, since: Duration) -> Backup {
        Backup {
            interval,
            down_at: since + self.settings.down(interval),
            active: None,
            lower_since: None,
            released: false,
            listened: false,
            heard: Heard::Nothing,
        }
    }

    fn start(&mut self, lease: Option<Duration>) -> State {
        if lease.is_some_and(|until| self.now < until) {
            let state = self.send(self.now + self.settings.interval);
            self.act(&[Action::Take, Action::Tell(Cause::Resumes)]);
            return State::Active(state);
        }
        if self.settings.priority == OWNER {
            return self.claim(None, Cause::Owns);
        }
        self.act(&[Action::Tell(Cause::Starts)]);
        State::Backup(self.listen(self.settings.interval, self.now))
    }

    /// RFC 9568 §6.4.2 (105): the advert goes first.
    fn claim(&mut self, active: Option<IpAddr>, cause: Cause) -> State {
        self.act(&[Action::Send(self.settings.priority)]);
        let until = self.now + self.settings.claim();
        State::Claiming(Claiming { until, sent_at: self.now, active, cause })
    }

    fn take(&mut self, claim: Claiming) -> State {
        let Claiming { sent_at, cause, .. } = claim;
        let lease = sent_at + self.settings.lease();
        self.act(&[Action::Lease(Some(lease)), Action::Take, Action::Tell(cause)]);
        let advert_at = (sent_at + self.settings.interval).max(self.now);
        State::Active(Active { advert_at, sent_at, answered_at: None, lease })
    }

    /// Gives a claim up.
    fn withdraw(&mut self) -> State {
        self.act(&[Action::Send(LEAVES)]);
        let backup = self.listen(self.settings.interval, self.now);
        State::Backup(Backup { released: true, ..backup })
    }

    fn send(&mut self, advert_at: Duration) -> Active {
        let lease = self.now + self.settings.lease();
        self.act(&[Action::Send(self.settings.priority), Action::Lease(Some(lease))]);
        Active { advert_at, sent_at: self.now, answered_at: None, lease }
    }

    fn advertise(&mut self, active: Active) -> State {
        // By the clock, so that lateness does not add up; but never two at once.
        let due = active.advert_at + self.settings.interval;
        let on_time = self.now >= active.advert_at && due > self.now;
        let next = self.send(if on_time { due } else { self.now + self.settings.interval });
        State::Active(Active { answered_at: active.answered_at, ..next })
    }

    fn backup_heard(&mut self, backup: Backup, advert: &Advert) -> State {
        let settings = self.settings;
        if advert.priority == LEAVES {
            // Of one that has yielded to the Active, it may come after the Active's own advert.
            if backup.active.is_some_and(|active| active != advert.source) {
                return State::Backup(backup);
            }
            let down_at = advert.at + settings.skew(backup.interval);
            return State::Backup(Backup { down_at, heard: Heard::Leaves, ..backup });
        }
        let lower = advert.priority < settings.priority;
        let may_preempt = match advert.sender {
            Sender::Peer => settings.preempt,
            Sender::GivesWay => true,
            Sender::Stranger => false,
        };
        let lower_since = backup.lower_since.filter(|_| lower).or(lower.then_some(advert.at));
        let waits = lower_since.is_some_and(|since| advert.at < since + settings.preempt_delay);
        if lower && may_preempt && !backup.released && !waits {
            // The timer runs on: RFC 9568 §6.4.2 (155).
            let active = Some(advert.source);
            return State::Backup(Backup { active, lower_since, heard: Heard::Lower, ..backup });
        }
        let interval = settings.interval_of(advert);
        State::Backup(Backup {
            interval,
            down_at: advert.at + settings.down(interval),
            active: Some(advert.source),
            lower_since,
            listened: false,
            heard: Heard::Active,
            ..backup
        })
    }

    fn backup_tick(&mut self, backup: Backup) -> State {
        let Some(late) = self.now.checked_sub(backup.down_at) else {
            return State::Backup(backup);
        };
        if late > backup.interval && !backup.listened {
            let down_at = self.now + backup.interval + self.settings.skew(backup.interval);
            return State::Backup(Backup { down_at, listened: true, ..backup });
        }
        let cause = match backup.heard {
            Heard::Nothing => Cause::NobodyHeard,
            Heard::Active => Cause::ActiveSilent,
            Heard::Lower => Cause::Preempts,
            Heard::Leaves => Cause::ActiveLeft,
        };
        self.claim(backup.active, cause)
    }

    /// Whether the sender of an advert is preferred to this node as Active (RFC 9568 §6.4.3).
    fn is_preferred(&self, advert: &Advert) -> bool {
        (advert.priority, advert.source) > (self.settings.priority, self.settings.address)
    }

    fn follow(&mut self, advert: &Advert) -> Backup {
        let cause = Cause::Yields { to: advert.source, priority: advert.priority };
        self.act(&[Action::Tell(cause)]);
        let backup = self.listen(self.settings.interval_of(advert), advert.at);
        Backup { active: Some(advert.source), heard: Heard::Active, ..backup }
    }

    fn claiming_heard(&mut self, claim: Claiming, advert: &Advert) -> State {
        if advert.priority == LEAVES {
            if claim.active != Some(advert.source) {
                return State::Claiming(claim);
            }
            // Who had the addresses has let go.
            let state = self.take(claim);
            self.act(&[Action::Send(self.settings.priority)]);
            return state;
        }
        if self.is_preferred(advert) {
            return State::Backup(self.follow(advert));
        }
        State::Claiming(Claiming { active: Some(advert.source), ..claim })
    }

    fn active_heard(&mut self, active: Active, advert: &Advert) -> State {
        if advert.priority == LEAVES {
            return self.advertise(active);
        }
        if self.is_preferred(advert) {
            self.act(&[Action::Lease(None), Action::Drop, Action::Send(LEAVES)]);
            return State::Backup(self.follow(advert));
        }
        let (by, priority) = (advert.source, advert.priority);
        self.act(&[Action::Tell(Cause::Contested { by, priority })]);
        let pause = self.settings.interval / ANSWERS;
        if active.answered_at.is_some_and(|at| self.now < at + pause) {
            return State::Active(active);
        }
        // RFC 9568 §6.4.3 (765), so that the other hears at once who is preferred.
        let next = self.send(self.now + self.settings.interval);
        self.act(&[Action::Announce]);
        State::Active(Active { answered_at: Some(self.now), ..next })
    }

    fn leave(&mut self, stops: bool) -> State {
        let until = self.now + self.settings.patience();
        self.act(&[Action::Send(LEAVES), Action::Lease(Some(until))]);
        State::Leaving(Leaving { until, stops })
    }

    fn leaving_heard(&mut self, leaving: Leaving, advert: &Advert) -> State {
        if advert.priority == LEAVES {
            return State::Leaving(leaving);
        }
        let cause = Cause::HandedOver { to: advert.source };
        let leaves = Action::Send(LEAVES);
        self.act(&[Action::Lease(None), Action::Drop, leaves, Action::Tell(cause)]);
        if leaving.stops {
            return State::Initialize;
        }
        let backup = self.listen(self.settings.interval_of(advert), advert.at);
        let active = Some(advert.source);
        State::Backup(Backup { active, released: true, heard: Heard::Active, ..backup })
    }

    fn not_taken(&mut self, leaving: Leaving) -> State {
        if leaving.stops {
            let lease = self.now + STOPPED_LEASE;
            self.act(&[Action::Lease(Some(lease)), Action::Tell(Cause::Stays)]);
            return State::Initialize;
        }
        let state = self.send(self.now + self.settings.interval);
        self.act(&[Action::Tell(Cause::NobodyTakes)]);
        State::Active(state)
    }

    fn fault(&mut self, state: State) -> State {
        if state.serves() {
            self.act(&[Action::Lease(None), Action::Drop]);
        }
        if state != State::Initialize {
            self.act(&[Action::Tell(Cause::Fault)]);
        }
        State::Initialize
    }
}
