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
//!   soon as the one that had them says that it has let go, if there are two nodes, or after
//!   [`Settings::claim`]. Of two that
//!   begin at the same time one yields before it has taken anything. Who hears an Active of a lower priority
//!   meanwhile tells it once more, and waits once more.
//! - **Letting go.** Who yields says so, by two adverts of priority 0.
//! - **Leaving.** Who hands over says so (priority 0), serves until it hears the next Active, and then says it again:
//!   nobody may answer, and then it has not left. So one such advert is no sign that the addresses are free, and a
//!   claim waits for two. The lease says so too: killed and started again meanwhile, it does not know whether
//!   another has claimed the addresses, and listens as at any start.
//! - **The lease.** With every advert the machine says until when this node may answer for the
//!   addresses: a little less than the time after which a Backup takes them. Whoever is later than
//!   that (a process that was stopped) lets go. If no advert has come meanwhile, nobody has taken over:
//!   then it claims them at once. Else it is Backup.
//! - **A late Backup.** Adverts carry the time at which the kernel received them, so that a process that
//!   was stopped misses none. But what stopped it may have stopped the Active too, as where both run on one
//!   machine: a Backup that is late listens once more, for an interval, in which that one would be heard.
//!
//! Pure: a state, an event and `now` in, a state and actions out. The same code runs in the daemon and
//! in the simulator.

use std::{net::IpAddr, time::Duration};

mod state;
#[cfg(test)]
mod tests;

pub use state::{
    Action, Active, Advert, Backup, Cause, Claiming, Event, Heard, LEAVES, Leaving, OWNER, Sender,
    Settings, State,
};

/// An advert of a lower priority is answered at once (RFC 9568 §6.4.3), but not more often than so many
/// times in an interval: a flood must not become another one.
const ANSWERS: u32 = 4;

/// A Backup whose Active falls silent is late if its timer fires by more than this part of an interval after its time, but never if by less
/// than [`LEAST_LATE`], which an ordinary machine may need.
const LATE: u32 = 8;
const LEAST_LATE: Duration = Duration::from_millis(5);

/// How long a node listens at least, when it starts or its interface is back: there its own checks and queues
/// have yet to settle, and the Active is in no hurry. More than `Active_Down_Interval` only with fast adverts.
pub const FIRST_LISTENS: Duration = Duration::from_millis(300);

/// How long the addresses of a stopped node stay answered for if nobody has taken them: time for an
/// upgrade.
pub const STOPPED_LEASE: Duration = Duration::from_mins(1);

/// Takes one event in.
pub fn step(
    settings: &Settings,
    state: State,
    event: Event,
    now: Duration,
) -> (State, Vec<Action>) {
    let mut step = Step { settings, now, actions: Vec::new() };
    let state = step.wake(state, event);
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
    fn wake(&mut self, state: State, event: Event) -> State {
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
        if matches!((state, event), (State::Active(_), Event::Tick)) {
            // All that has arrived was told, and no advert was there: if another claims them at this moment too, one
            // of the two yields.
            return self.claim(None, Cause::NobodyTook);
        }
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
        let backup = self.listen(self.settings.interval, self.now);
        State::Backup(Backup { down_at: backup.down_at.max(self.now + FIRST_LISTENS), ..backup })
    }

    /// RFC 9568 §6.4.2 (105): the advert goes first.
    fn claim(&mut self, active: Option<IpAddr>, cause: Cause) -> State {
        State::Claiming(self.announce_claim(active, cause))
    }

    fn announce_claim(&mut self, active: Option<IpAddr>, cause: Cause) -> Claiming {
        self.act(&[Action::Send(self.settings.priority)]);
        let until = self.now + self.settings.claim();
        Claiming {
            until,
            sent_at: self.now,
            active,
            insisted: false,
            leaves: cause == Cause::ActiveLeft,
            cause,
        }
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
            // Who has just begun to listen may have missed that advert: the next comes within an interval.
            let missed = settings.many && backup.active.is_none();
            let next = if missed { backup.interval } else { Duration::ZERO };
            let down_at = advert.at + next + settings.skew(backup.interval);
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
        // An Active that it will take over from lives, and was not stopped with it.
        let stopped = match backup.heard {
            Heard::Active => (backup.interval / LATE).max(LEAST_LATE).min(backup.interval),
            Heard::Nothing | Heard::Lower | Heard::Leaves => backup.interval,
        };
        if late > stopped && !backup.listened {
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
            if claim.active != Some(advert.source) || self.settings.many {
                return State::Claiming(claim);
            }
            if !claim.leaves {
                return State::Claiming(Claiming { leaves: true, ..claim });
            }
            // Who had the addresses has let go.
            let state = self.take(claim);
            self.act(&[Action::Send(self.settings.priority)]);
            return state;
        }
        if self.is_preferred(advert) {
            return State::Backup(self.follow(advert));
        }
        let active = Some(advert.source);
        if claim.insisted {
            return State::Claiming(Claiming { active, ..claim });
        }
        // An Active of a lower priority that has not heard the claim: it may just be back within its lease.
        let again = self.announce_claim(active, claim.cause);
        State::Claiming(Claiming { insisted: true, leaves: claim.leaves, ..again })
    }

    fn active_heard(&mut self, active: Active, advert: &Advert) -> State {
        if advert.priority == LEAVES {
            return self.advertise(active);
        }
        if self.is_preferred(advert) {
            // Twice, as from who hands over: once when it leaves, and once when it has let go.
            let leaves = Action::Send(LEAVES);
            self.act(&[Action::Lease(None), Action::Drop, leaves, leaves]);
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
        self.act(&[Action::Send(LEAVES), Action::LastLease(until)]);
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
