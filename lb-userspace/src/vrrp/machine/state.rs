//! What the machine is made of: settings, states, events, actions.

use std::{net::IpAddr, time::Duration};

use crate::vrrp::packet::Version;

/// Priority of who owns the addresses by itself (RFC 9568 §5.2.4).
pub const OWNER: u8 = 255;

/// Priority that says that the Active leaves.
pub const LEAVES: u8 = 0;

/// Of one interval, so much is the lease shorter than three: what clocks may differ by, and an advert
/// may be late by.
const GUARD: u32 = 8;

/// A claim waits for objections no longer than this: a local network is faster.
const MOST_CLAIM: Duration = Duration::from_millis(10);

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
    /// There are more nodes than this and another one. Then two may claim the addresses when their Active lets
    /// go, so that this is no sign for either of them to take them before its time.
    pub many: bool,
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
    /// Whether somebody who is to let go was heard meanwhile, and was told again.
    pub insisted: bool,
    /// Whether it has said that it leaves. That may have been before it heard of the claim; if it says so again, it
    /// has let go.
    pub leaves: bool,
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
    /// answered for the addresses, and was not about to give them away ([`Action::LastLease`]).
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
    /// This node may answer for them until then, and has said that it lets them go: whoever is started meanwhile does
    /// not go on with this lease, since another may have claimed the addresses while nobody listened here.
    LastLease(Duration),
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
    /// It had them, was stopped, and nobody has taken them meanwhile.
    NobodyTook,
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
    pub(super) fn patience(&self) -> Duration {
        match self.version {
            Version::V2 => self.interval * 3 + Duration::from_secs(1),
            Version::V3 => self.interval * 4,
        }
    }

    /// Version 2 has one interval for all.
    pub(super) fn interval_of(&self, advert: &Advert) -> Duration {
        match self.version {
            Version::V2 => self.interval,
            Version::V3 => advert.interval,
        }
    }
}
