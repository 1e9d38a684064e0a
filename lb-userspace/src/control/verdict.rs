//! The one verdict on each backend of a service: does it serve, with which weight, and why.
//!
//! Everything that wants to know whether a backend is fit asks here, so that the kernel's tables,
//! `status` and the timeline cannot disagree.

use std::{fmt, time::Duration};

use crate::{config::OnDown, health::Health};

mod appointed;

pub use appointed::{Appointed, Server, judge as judge_servers};

/// A table weight is the configured weight times this, so that the fractions of a slow start matter.
pub const WEIGHT_SCALE: u32 = 16;

/// What the connections of clients say of a backend; see [`crate::health::passive`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Passive {
    /// Nothing that matters.
    #[default]
    Fit,
    /// It is slow, and should have this share of its weight, in percent.
    Slow(u32),
    /// It fails, and is not ejected for a reason that the text names.
    Failing(String),
    /// It is ejected, because of this.
    Ejected(String),
}

/// A slow start that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ramp {
    /// How much of it is over.
    pub done: Duration,
    /// How long it takes, not zero.
    pub whole: Duration,
}

/// Steps from the first share of a slow start to the full one.
const RAMP_STEPS: u128 = 10;

/// Share at the beginning of a slow start, in percent.
const RAMP_FIRST_PERCENT: u32 = 10;

/// What the operator wants of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admin {
    /// It serves if it is fit.
    #[default]
    Enabled,
    /// It gets no new connections; those that it has go on for `drain_timeout`, then they are reset.
    Draining,
    /// It gets no new connections, and those that it has are reset at once.
    Disabled,
}

impl Admin {
    /// The word in commands and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Draining => "draining",
            Self::Disabled => "disabled",
        }
    }
}

/// What is known of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    /// What the probes say.
    pub health: Health,
    /// What the last probe said.
    pub reason: &'a str,
    /// What the operator wants.
    pub admin: Admin,
    /// How long its connections may still go on, while it is draining.
    pub drain_left: Duration,
    /// Configured weight, or the operator's.
    pub weight: u32,
    /// Serves only while no other backend can.
    pub backup: bool,
    /// What the connections of clients say.
    pub passive: &'a Passive,
    /// Its slow start, if it came back a short time ago.
    pub ramp: Option<Ramp>,
    /// Whether the MAC address of its next hop is known.
    pub resolved: bool,
}

impl Facts<'_> {
    /// Whether the operator, the probes and its next hop let it serve.
    fn is_able(&self) -> bool {
        self.admin == Admin::Enabled && self.health == Health::Up && self.resolved
    }
}

/// The service's own rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What happens to the connections of a backend that is down.
    pub on_down: OnDown,
}

/// Why a backend serves or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The operator disabled it.
    Disabled,
    /// It is draining, and its connections may go on for so long.
    Draining(Duration),
    /// It was drained: what was left of its connections has been reset.
    Drained,
    /// No probe has ended yet.
    FirstProbe,
    /// The probes say that it is down; the last one said this.
    Unhealthy(String),
    /// Its connections failed, so it gets no more of them for a while.
    Ejected(String),
    /// Its connections fail, and it stays for the reason given.
    Failing(String),
    /// Its handshakes have become slow, so it has this share of its weight, in percent.
    Slow(u32),
    /// The MAC address of its next hop is not known.
    NoNextHop,
    /// It is a backup, and others can serve.
    BackupRests,
    /// It is a backup, and no other can serve.
    BackupServes,
    /// It is not fit, but nor is any other of the service.
    Panic,
    /// It came back a short time ago, and has this share of its weight, in percent.
    SlowStart(u32),
    /// It is fit.
    Fit,
    /// It is a server of a database, and this is what it is there.
    Appointed(String),
}

impl fmt::Display for Why {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => out.write_str("disabled by the operator"),
            Self::Draining(left) => {
                write!(out, "draining; its connections may go on for {} s", left.as_secs())
            }
            Self::Drained => out.write_str("drained; connections that were left are reset"),
            Self::FirstProbe => out.write_str("waiting for the first probe"),
            Self::Unhealthy(reason) => write!(out, "down: {reason}"),
            Self::Ejected(reason) => write!(out, "ejected: {reason}"),
            Self::Failing(reason) => write!(out, "fails: {reason}"),
            Self::Slow(percent) => {
                write!(out, "its handshakes have become slow: {percent} % of its weight")
            }
            Self::NoNextHop => out.write_str("the MAC address of its next hop is not known"),
            Self::BackupRests => out.write_str("backup, while others can serve"),
            Self::BackupServes => out.write_str("backup, because no other can serve"),
            Self::Panic => out.write_str("panic: no backend is fit, so all that are enabled serve"),
            Self::SlowStart(percent) => write!(out, "slow start: {percent} % of its weight"),
            Self::Fit => out.write_str("fit"),
            Self::Appointed(what) => out.write_str(what),
        }
    }
}

/// What was decided about one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// It gets new connections.
    pub serving: bool,
    /// Packets of its connections are forwarded; otherwise they are answered with a reset.
    pub forward: bool,
    /// Weight in the tables, 1 and up: the weight times [`WEIGHT_SCALE`], less during a slow start.
    pub weight: u32,
    /// Why, the most important first. Never empty once judged.
    pub reasons: Vec<Why>,
}

/// The verdicts on a service's backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// In the order of the facts.
    pub verdicts: Vec<Verdict>,
    /// No backend is fit, so all that are enabled serve.
    pub panic: bool,
    /// Backups serve because no other backend can.
    pub on_backups: bool,
}

/// Judges the backends of one service.
pub fn judge(rules: Rules, backends: &[Facts<'_>]) -> Judgement {
    let usable =
        |facts: &Facts<'_>| facts.is_able() && !matches!(facts.passive, Passive::Ejected(_));
    let fit = |facts: &Facts<'_>| usable(facts) && !matches!(facts.passive, Passive::Failing(_));
    let primary_can = backends.iter().any(|facts| !facts.backup && fit(facts));
    let backup_can = backends.iter().any(|facts| facts.backup && fit(facts));
    // Panic is for backends that probes or connections have condemned. One that waits for its first probe may be
    // fit a moment later; one without a next hop cannot be sent anything.
    let undecided =
        |facts: &Facts<'_>| facts.admin == Admin::Enabled && facts.health == Health::Unknown;
    let condemned = |facts: &Facts<'_>| {
        let probed = facts.admin == Admin::Enabled && facts.health == Health::Down;
        facts.resolved && (probed || (facts.is_able() && !fit(facts)))
    };
    let panic = !primary_can
        && !backup_can
        && !backends.iter().any(undecided)
        && backends.iter().any(condemned);
    let serves = |facts: &Facts<'_>| {
        // One that fails and stays does serve; backups come to its help if no other primary can.
        (usable(facts) && (!facts.backup || !primary_can)) || (panic && condemned(facts))
    };
    let alone = backends.iter().filter(|facts| serves(facts)).count() == 1;
    let verdicts = backends
        .iter()
        .map(|facts| {
            let serving = serves(facts);
            // A slow start protects a cold backend by leaving the rest to others; alone, it would
            // protect nobody.
            let ramp = if alone { 100 } else { facts.ramp.map_or(100, ramp_percent) };
            let slow = match facts.passive {
                Passive::Slow(percent) if !alone => *percent,
                _ => 100,
            };
            Verdict {
                serving,
                forward: serving || forwards(rules, facts),
                weight: scaled(facts.weight, ramp * slow / 100),
                reasons: reasons(facts, serving, panic, ramp, slow),
            }
        })
        .collect();
    Judgement { verdicts, panic, on_backups: !primary_can && backup_can }
}

/// Whether the connections that a backend has may go on though it gets no new ones.
fn forwards(rules: Rules, facts: &Facts<'_>) -> bool {
    let wanted = match facts.admin {
        Admin::Enabled => true,
        Admin::Draining => !facts.drain_left.is_zero(),
        Admin::Disabled => false,
    };
    wanted && (facts.health != Health::Down || rules.on_down == OnDown::Keep)
}

fn reasons(facts: &Facts<'_>, serving: bool, panic: bool, ramp: u32, slow: u32) -> Vec<Why> {
    let mut reasons = Vec::new();
    match facts.admin {
        Admin::Enabled => {}
        Admin::Disabled => reasons.push(Why::Disabled),
        Admin::Draining if facts.drain_left.is_zero() => reasons.push(Why::Drained),
        Admin::Draining => reasons.push(Why::Draining(facts.drain_left)),
    }
    if serving && panic {
        reasons.push(Why::Panic);
    }
    match facts.health {
        Health::Unknown => reasons.push(Why::FirstProbe),
        Health::Down => reasons.push(Why::Unhealthy(facts.reason.to_owned())),
        Health::Up => {}
    }
    match facts.passive {
        Passive::Fit | Passive::Slow(_) => {}
        Passive::Failing(reason) => reasons.push(Why::Failing(reason.clone())),
        Passive::Ejected(reason) => reasons.push(Why::Ejected(reason.clone())),
    }
    if !facts.resolved {
        reasons.push(Why::NoNextHop);
    }
    if serving && !panic {
        if facts.backup {
            reasons.push(Why::BackupServes);
        }
        if slow < 100 {
            reasons.push(Why::Slow(slow));
        }
        if ramp < 100 {
            reasons.push(Why::SlowStart(ramp));
        }
        if !matches!(facts.passive, Passive::Failing(_)) {
            reasons.push(Why::Fit);
        }
    } else if reasons.is_empty() {
        reasons.push(Why::BackupRests);
    }
    reasons
}

/// Share of its weight that a backend has at this point of its slow start.
fn ramp_percent(ramp: Ramp) -> u32 {
    if ramp.done >= ramp.whole {
        return 100;
    }
    let step = (ramp.done.as_nanos() * RAMP_STEPS / ramp.whole.as_nanos()) as u32;
    RAMP_FIRST_PERCENT + (100 - RAMP_FIRST_PERCENT) * step / RAMP_STEPS as u32
}

/// How much more of a slow start must be over until the share changes.
pub(crate) fn until_next_step(ramp: Ramp) -> Option<Duration> {
    if ramp.done >= ramp.whole {
        return None;
    }
    let total = ramp.whole.as_nanos();
    let next = ramp.done.as_nanos() * RAMP_STEPS / total + 1;
    // Rounded up, so that a timer set for it never wakes just before the step.
    let at = (next * total).div_ceil(RAMP_STEPS);
    Some(Duration::from_nanos(at as u64).saturating_sub(ramp.done))
}

fn scaled(weight: u32, percent: u32) -> u32 {
    (weight * WEIGHT_SCALE * percent / 100).max(1)
}

#[cfg(test)]
mod tests;
