//! What is wrong now. Pure.

use std::{collections::BTreeSet, time::Duration};

use super::{Severity, channel::ChannelStatus};
use crate::{
    control::status::Status,
    postgres::{
        record::Phase,
        sample::Role,
        status::{Database, Server},
    },
};

/// Something that is wrong while it is so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which alert.
    pub alert: &'static str,
    /// What it is about.
    pub subject: String,
    /// How grave it is.
    pub severity: Severity,
    /// For a person.
    pub text: String,
    /// It is told when it has lasted so long.
    pub hold: Duration,
}

/// What passes by itself in this time is not told.
const SOON: Duration = Duration::from_secs(1);

/// The same for what is often so for a short while.
const LASTING: Duration = Duration::from_secs(5);

/// What is wrong with a database.
pub fn of_database(database: &Database, out: &mut Vec<Condition>) {
    use Severity::{Critical, Warning};
    let name = &database.name;
    let mut add = |alert, subject: &str, severity, hold, text: String| {
        let subject = if subject.is_empty() { name.clone() } else { format!("{name}/{subject}") };
        out.push(Condition { alert, subject, severity, text, hold });
    };
    let primary = database.primary.as_deref();
    for server in &database.servers {
        let Server { name: it, address, .. } = server;
        let why = server.failure.as_deref().unwrap_or("it does not answer");
        if primary == Some(it) && !server.answers {
            let text = format!(
                "primary database {it} ({address}) is DOWN: {why}. {} Promotion: {}",
                standbys(database),
                database.promotion
            );
            add("primary_down", it, Critical, SOON, text);
        } else if !server.answers {
            let text = format!("database server {it} ({address}) does not answer: {why}");
            add("server_down", it, Warning, LASTING, text);
        }
        if let Some(why) = &server.quarantined {
            let text = format!(
                "database server {it} ({address}) is quarantined, it gets no packet: {why}. \
                 `ballast pg rejoin {it}` says how it comes back"
            );
            add("quarantined", it, Critical, SOON, text);
        }
        if server.role == Some(Role::Standby) && server.answers {
            standby(database, server, &mut add);
        }
        of_slots(database, server, &mut add);
        if let Some(why) = &server.cannot_write {
            let (role, severity) = if primary == Some(it) {
                ("primary database", Critical)
            } else {
                ("database server", Warning)
            };
            let cure = if server.answers { "switchover" } else { "promote --force" };
            let text = format!(
                "{role} {it} ({address}) cannot write: {why}. It lives, so nobody is promoted in its place: make \
                 room on its disk{}",
                if primary == Some(it) {
                    format!(", or `ballast pg {cure}`")
                } else {
                    String::new()
                }
            );
            add("cannot_write", it, severity, SOON, text);
        }
        if primary == Some(it)
            && server.answers
            && let Some(sync) = &server.sync
            && sync.have < sync.need
        {
            let text = format!(
                "commits on {it} wait for {} synchronous standby, and {} is there: writes hang until it is \
                 back. `ballast pg degrade` lets them go on without it",
                sync.need, sync.have
            );
            add("sync_lost", it, Critical, LASTING, text);
        }
    }
    if let Some(degraded) = &database.degraded {
        add("sync_degraded", &degraded.server, Warning, Duration::ZERO, degraded.describe());
    }
    if let Some(asks) = database.asks.as_ref().filter(|asks| asks.answer.is_none()) {
        let text = format!(
            "the primary of {name} has failed, and {} will be promoted. `ballast pg approve {}` does it now, \
             `ballast pg veto {}` forbids it",
            asks.candidate, asks.approve, asks.veto
        );
        add("promotion_announced", "", Critical, Duration::ZERO, text);
    }
    let down = database.servers.iter().any(|it| Some(&*it.name) == primary && !it.answers);
    match (&database.problem, database.phase) {
        (Some(why), Some(Phase::Frozen)) => {
            let stuck = database.change.as_ref().and_then(|it| it.stuck.clone());
            let text = format!("no writes reach {name}: {}", stuck.as_ref().unwrap_or(why));
            add("change_stuck", "", Critical, SOON, text);
        }
        // That has been told as `primary_down`.
        (Some(_), _) if down => {}
        (Some(why), _) => {
            add("no_writes", "", Critical, LASTING, format!("no writes reach {name}: {why}"));
        }
        (None, _) => {}
    }
}

/// What there is in place of the primary.
fn standbys(database: &Database) -> String {
    let standby = |server: &Server| {
        let lag = server.lag_bytes.filter(|_| server.answers)?;
        Some(format!("Standby {} is {lag} bytes behind.", server.name))
    };
    let all: Vec<_> = database
        .servers
        .iter()
        .filter(|it| it.role == Some(Role::Standby) && it.quarantined.is_none())
        .filter_map(standby)
        .collect();
    if all.is_empty() { "No standby answers.".into() } else { all.join(" ") }
}

type Add<'a> = &'a mut dyn FnMut(&'static str, &str, Severity, Duration, String);

fn standby(database: &Database, server: &Server, add: Add<'_>) {
    let it = &server.name;
    let primary = database.primary.as_deref().unwrap_or("nobody");
    if server.streams_from.is_none() {
        let text = format!("standby {it} receives nothing from {primary}, although it answers");
        add("standby_not_streaming", it, Severity::Warning, LASTING, text);
    }
    if let (Some(lag), Some(millis)) = (server.lag_bytes, server.lag_ms)
        && lag > database.max_lag
    {
        let seconds = millis as f64 / 1e3;
        let text = format!(
            "standby {it} is {lag} bytes ({seconds:.1} s) behind {primary}, more than max_lag ({} bytes)",
            database.max_lag
        );
        add("standby_lag", it, Severity::Warning, LASTING, text);
    }
}

fn of_slots(database: &Database, server: &Server, add: Add<'_>) {
    let slots = server.detail.iter().flat_map(|detail| &detail.slots);
    for slot in slots.filter(|_| server.answers) {
        let about = format!("{}/{}", server.name, slot.name);
        let used = if slot.active { "" } else { ", and nobody uses it" };
        let (kept, name) = (slot.retained_bytes, &slot.name);
        match slot.wal_status.as_str() {
            "lost" => {
                let text = format!(
                    "replication slot {name} on {} is lost: its standby must be cloned anew",
                    server.name
                );
                add("slot_lost", &about, Severity::Critical, SOON, text);
            }
            "unreserved" => {
                let text = format!(
                    "replication slot {name} on {} is about to be lost (max_slot_wal_keep_size){used}",
                    server.name
                );
                add("slot_retention", &about, Severity::Critical, SOON, text);
            }
            _ if kept > database.max_retained => {
                let text = format!(
                    "replication slot {name} on {} keeps {kept} bytes of log{used}: the disk fills up",
                    server.name
                );
                add("slot_retention", &about, Severity::Warning, LASTING, text);
            }
            _ => {}
        }
    }
}

/// What is wrong with the node. `known` are warnings of its configuration, which whoever wrote it has seen.
pub fn of_node(status: &Status, known: &BTreeSet<String>, out: &mut Vec<Condition>) {
    let mut told = BTreeSet::new();
    for instance in &status.vrrp {
        let Some(problem) = &instance.problem else { continue };
        let about = format!("vrid {}", instance.vrid);
        told.insert(format!("{about}: {problem}"));
        let split = problem.contains("split brain");
        out.push(Condition {
            alert: if split { "split_brain" } else { "vrrp" },
            text: format!("floating addresses of {about} on {}: {problem}", status.node),
            subject: about,
            severity: if split { Severity::Critical } else { Severity::Warning },
            hold: SOON,
        });
    }
    for floating in &status.floating {
        let Some(problem) = &floating.problem else { continue };
        let split = problem.starts_with("claimed by another host");
        out.push(Condition {
            alert: if split { "split_brain" } else { "floating_address" },
            subject: floating.address.clone(),
            severity: Severity::Critical,
            text: format!("floating address {} on {}: {problem}", floating.address, status.node),
            hold: SOON,
        });
    }
    for warning in &status.warnings {
        if told.contains(warning) || known.contains(warning) {
            continue;
        }
        // What it is about stands before the colon, so that another wording is the same alert.
        let about = warning.split_once(": ").map_or(warning.as_str(), |(about, _)| about);
        let subject = format!("{}/{about}", status.node);
        if out.iter().any(|it| it.alert == "warning" && it.subject == subject) {
            continue;
        }
        out.push(Condition {
            alert: "warning",
            subject,
            severity: Severity::Warning,
            text: format!("{}: {warning}", status.node),
            hold: LASTING,
        });
    }
}

/// Channels that do not get through: the others say so.
pub fn of_channels(node: &str, channels: &[ChannelStatus], out: &mut Vec<Condition>) {
    for channel in channels {
        let Some(why) = &channel.failing else { continue };
        out.push(Condition {
            alert: CHANNEL_FAILING,
            subject: format!("{node}/{}", channel.name),
            severity: Severity::Warning,
            text: format!("alerts of {node} do not get through to {}: {why}", channel.name),
            hold: LASTING,
        });
    }
}

/// The alert that a channel does not get through.
pub const CHANNEL_FAILING: &str = "channel_failing";

#[cfg(test)]
mod tests;
