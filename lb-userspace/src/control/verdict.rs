//! The one verdict on each backend of a service: does it serve, with which weight, and why.
//!
//! Everything that wants to know whether a backend is fit asks here, so that the kernel's tables,
//! `status` and the timeline cannot disagree.

use std::{fmt, time::Duration};

use crate::{config::OnDown, health::Health};

/// A table weight is the configured weight times this, so that the fractions of a slow start matter.
pub const WEIGHT_SCALE: u32 = 16;

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
    /// How long ago it came back from being down, if it has.
    pub risen_for: Option<Duration>,
    /// Whether the MAC address of its next hop is known.
    pub resolved: bool,
}

/// The service's own rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What happens to the connections of a backend that is down.
    pub on_down: OnDown,
    /// How long a backend that came up takes to its full share; zero: at once.
    pub slow_start: Duration,
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
            Self::NoNextHop => out.write_str("the MAC address of its next hop is not known"),
            Self::BackupRests => out.write_str("backup, while others can serve"),
            Self::BackupServes => out.write_str("backup, because no other can serve"),
            Self::Panic => out.write_str("panic: no backend is fit, so all that are enabled serve"),
            Self::SlowStart(percent) => write!(out, "slow start: {percent} % of its weight"),
            Self::Fit => out.write_str("fit"),
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
    let fit = |facts: &Facts<'_>| {
        facts.admin == Admin::Enabled && facts.health == Health::Up && facts.resolved
    };
    let primary_can = backends.iter().any(|facts| !facts.backup && fit(facts));
    let backup_can = backends.iter().any(|facts| facts.backup && fit(facts));
    // Panic is for backends that probes have condemned. One that waits for its first probe may be
    // fit a moment later; one without a next hop cannot be sent anything.
    let undecided =
        |facts: &Facts<'_>| facts.admin == Admin::Enabled && facts.health == Health::Unknown;
    let condemned = |facts: &Facts<'_>| {
        facts.admin == Admin::Enabled && facts.health == Health::Down && facts.resolved
    };
    let panic = !primary_can
        && !backup_can
        && !backends.iter().any(undecided)
        && backends.iter().any(condemned);
    let serves = |facts: &Facts<'_>| {
        (fit(facts) && (!facts.backup || !primary_can)) || (panic && condemned(facts))
    };
    let alone = backends.iter().filter(|facts| serves(facts)).count() == 1;
    let verdicts = backends
        .iter()
        .map(|facts| {
            let serving = serves(facts);
            // A slow start protects a cold backend by leaving the rest to others; alone, it would
            // protect nobody.
            let percent = if alone { 100 } else { ramp_percent(rules, facts.risen_for) };
            Verdict {
                serving,
                forward: serving || forwards(rules, facts),
                weight: scaled(facts.weight, percent),
                reasons: reasons(facts, serving, panic, percent),
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

fn reasons(facts: &Facts<'_>, serving: bool, panic: bool, percent: u32) -> Vec<Why> {
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
    if !facts.resolved {
        reasons.push(Why::NoNextHop);
    }
    if serving && !panic {
        if facts.backup {
            reasons.push(Why::BackupServes);
        }
        if percent < 100 {
            reasons.push(Why::SlowStart(percent));
        }
        reasons.push(Why::Fit);
    } else if reasons.is_empty() {
        reasons.push(Why::BackupRests);
    }
    reasons
}

/// Share of its weight that a backend has, so long after it came back.
fn ramp_percent(rules: Rules, risen_for: Option<Duration>) -> u32 {
    let Some(elapsed) = risen_for.filter(|&elapsed| elapsed < rules.slow_start) else {
        return 100;
    };
    let step = (elapsed.as_nanos() * RAMP_STEPS / rules.slow_start.as_nanos()) as u32;
    RAMP_FIRST_PERCENT + (100 - RAMP_FIRST_PERCENT) * step / RAMP_STEPS as u32
}

/// How long until the share of a backend that came back so long ago changes.
pub(crate) fn until_next_step(rules: Rules, risen_for: Duration) -> Option<Duration> {
    if risen_for >= rules.slow_start {
        return None;
    }
    let total = rules.slow_start.as_nanos();
    let next = risen_for.as_nanos() * RAMP_STEPS / total + 1;
    // Rounded up, so that a timer set for it never wakes just before the step.
    let at = (next * total).div_ceil(RAMP_STEPS);
    Some(Duration::from_nanos(at as u64).saturating_sub(risen_for))
}

fn scaled(weight: u32, percent: u32) -> u32 {
    (weight * WEIGHT_SCALE * percent / 100).max(1)
}

#[cfg(test)]
mod tests;
