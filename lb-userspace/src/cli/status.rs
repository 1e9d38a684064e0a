//! `ballast status` for people.

use std::fmt::Write as _;

use super::output::{age, bytes, columns};

mod vrrp;

use crate::{
    control::{
        status::{Backend, PassiveState, Service, Slots, Status},
        verdict::Admin,
    },
    dataplane::AttachMode,
    health::Health,
    peer::Fit,
    proxy,
};

/// The whole picture.
pub(super) fn render(status: &Status) -> String {
    let mut out = String::new();
    // Writing to a `String` cannot fail.
    let _ = writeln!(
        out,
        "node {} of {}, ballast {}, up {}, process {}",
        status.node,
        status.cluster,
        status.version,
        age(status.uptime_seconds),
        status.pid,
    );
    for warning in &status.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    out.push_str("\nFLOATING ADDRESSES\n");
    out.push_str(&columns(&floating(status), 2));
    if !status.peers.is_empty() {
        out.push_str("\nOTHER NODES\n");
        out.push_str(&columns(&peers(status), 2));
    }
    if !status.vrrp.is_empty() {
        out.push_str("\nVRRP\n");
        out.push_str(&columns(&vrrp::rows(&status.vrrp), 2));
    }
    out.push_str("\nDATA PLANE\n");
    out.push_str(&columns(&dataplane(status), 2));
    for service in &status.services {
        if !is_short(service) {
            out.push('\n');
        }
        out.push_str(&head(service));
        if is_short(service) {
            continue;
        }
        let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
        let now = status.started.as_second() + status.uptime_seconds as i64;
        rows.extend(service.backends.iter().map(|backend| row(backend, now)));
        out.push_str(&columns(&rows, 2));
        if let Some(proxy) = &service.proxy {
            out.push_str(&requests(proxy));
        }
    }
    for database in &status.postgres {
        out.push('\n');
        out.push_str(&super::pg::render(database));
    }
    if !status.retiring.is_empty() {
        out.push_str("\nREMOVED BACKENDS WITH CONNECTIONS\n");
        let rows = status.retiring.iter().map(|retiring| {
            let left = match retiring.seconds_left {
                Some(left) => format!("may go on for {}", age(left)),
                None => "are reset".to_owned(),
            };
            vec![retiring.address.to_string(), left]
        });
        out.push_str(&columns(&rows.collect::<Vec<_>>(), 2));
    }
    if !status.reasons.is_empty() {
        out.push_str("\nPACKETS NOT FORWARDED\n");
        let rows = status.reasons.iter();
        let rows = rows.map(|(label, count)| vec![label.clone(), count.to_string()]);
        out.push_str(&columns(&rows.collect::<Vec<_>>(), 2));
    }
    out
}

fn floating(status: &Status) -> Vec<Vec<String>> {
    let rows = status.floating.iter().map(|floating| {
        let state = match (&floating.problem, floating.held) {
            (Some(problem), _) => problem.clone(),
            (None, true) => "held".to_owned(),
            (None, false) if floating.holder == status.node => "not held yet".to_owned(),
            (None, false) if floating.holder.is_empty() => "held by nobody known".to_owned(),
            (None, false) => format!("held by {}", floating.holder),
        };
        vec![floating.address.clone(), format!("vrid {}", floating.vrid), state]
    });
    let anycast = status.anycast.iter().map(|anycast| {
        let state = match (&anycast.problem, anycast.held) {
            (Some(problem), _) => format!("not offered: {problem}"),
            (None, true) => "offered".to_owned(),
            (None, false) => "not offered yet".to_owned(),
        };
        vec![anycast.address.to_string(), "anycast".to_owned(), state]
    });
    rows.chain(anycast).collect()
}

fn peers(status: &Status) -> Vec<Vec<String>> {
    let now = status.started.as_second() + status.uptime_seconds as i64;
    let rows = status.peers.iter().map(|peer| {
        let state = match (peer.up, &peer.problem) {
            (true, _) => "up".to_owned(),
            (false, Some(problem)) => format!("refused: {problem}"),
            (false, None) => "not heard".to_owned(),
        };
        let mut row = vec![
            peer.name.clone(),
            peer.address.to_string(),
            state,
            age((now - peer.since.as_second()).max(0) as u64),
        ];
        if peer.up {
            let config = match peer.same_config {
                Some(false) => "OTHER CONFIGURATION",
                Some(true) => "same configuration",
                None => "configuration not known",
            };
            let sync = if peer.in_sync { "in sync" } else { "not in sync" };
            let time = peer.round_trip_us.map_or(String::new(), |us| format!("{us} us"));
            let fit = peer
                .services
                .map_or(String::new(), |Fit { fit, all }| format!("{fit} of {all} services serve"));
            let flows = format!("{} changes sent, {} received", peer.sent, peer.received);
            row.extend([time, config.to_owned(), sync.to_owned(), fit, flows]);
            if peer.backlog > 0 {
                row.push(format!("{} behind", peer.backlog));
            }
        }
        row
    });
    rows.collect()
}

fn dataplane(status: &Status) -> Vec<Vec<String>> {
    let info = &status.dataplane;
    let adopted = if info.adopted { ", went on with the maps of the daemon before" } else { "" };
    let tracing = match info.traces {
        0 => String::new(),
        1 => ", which makes a trace".to_owned(),
        more => format!(", which makes {more} traces"),
    };
    let program = format!("{}{adopted}{tracing}", info.program_id);
    let mut rows = vec![vec!["program".into(), program]];
    rows.extend(info.attachments.iter().map(|attachment| {
        let mode = match attachment.mode {
            AttachMode::Driver => "driver mode",
            AttachMode::Generic => "generic mode (slow: the driver has no XDP)",
        };
        vec!["interface".into(), format!("{}, {mode}", attachment.interface)]
    }));
    rows.push(vec!["connections".into(), status.flows.to_string()]);
    let total: u64 = info.maps.iter().map(|map| map.bytes).sum();
    rows.push(vec!["maps".into(), format!("{} in {}", bytes(total), info.maps.len())]);
    if let Some(files) = status.files {
        let open = files.open.map_or(String::new(), |open| format!("{open} of "));
        let short = match files.shortages {
            0 => String::new(),
            1 => ", which were too few once".to_owned(),
            times => format!(", which were too few {times} times"),
        };
        let row = format!("{open}{} that the daemon may have open{short}", files.limit);
        rows.push(vec!["files".into(), row]);
    }
    rows
}

/// Whether its backends are counted and not listed.
fn is_short(service: &Service) -> bool {
    service.backends.is_empty() && service.backend_count > 0
}

fn head(service: &Service) -> String {
    let mut flags = String::new();
    if service.panic {
        flags.push_str("  PANIC: no backend is fit, all that are enabled serve");
    }
    if service.on_backups {
        flags.push_str("  ON BACKUPS");
    }
    if is_short(service) {
        // Writing to a `String` cannot fail.
        let _ = write!(
            flags,
            "  {} of {} backends serve",
            service.serving_count, service.backend_count
        );
    }
    let serves = if is_short(service) {
        service.serving_count > 0
    } else {
        service.backends.iter().any(|backend| backend.serving)
    };
    if !serves {
        flags.push_str("  DOWN: no backend serves");
    }
    let forward = match &service.encapsulation {
        _ if service.path == "proxy" => "proxy".to_owned(),
        _ if service.path == "auto" && service.proxied => "nat (auto: now by the proxy)".to_owned(),
        _ if service.path == "auto" => "nat (auto)".to_owned(),
        Some(encapsulation) => format!("{} ({encapsulation})", service.forward),
        None => service.forward.clone(),
    };
    let slots = match service.slots {
        Some(Slots { total, disturbed }) if disturbed > 0 => {
            format!("  {disturbed} of {total} slots remember an earlier table")
        }
        _ => String::new(),
    };
    let count = |count: u64, what: &str| match count {
        0 => String::new(),
        _ => format!(", {count} {what}"),
    };
    let replayed = count(service.replayed, "tried at another backend");
    let not_replayed = count(service.not_replayed, "failed with no other to try");
    format!(
        "SERVICE {}  {} {}  {forward}  {}  {} connections ({:.1}/s), {} refused{replayed}{not_replayed}\
         {slots}{flags}\n",
        service.name,
        service.protocol,
        service.listen,
        service.balance,
        service.connections,
        service.connections_per_second,
        service.refused,
    )
}

/// What the proxy has to tell.
fn requests(proxy: &proxy::Status) -> String {
    let proxy::Status { requests, active, open, tunnels, .. } = proxy;
    let mut out = format!("  {requests} requests, {active} under way; {open} connections");
    let counts = [
        (proxy.still, "still"),
        (*tunnels, "upgraded"),
        (proxy.retries, "retried"),
        (proxy.reopened, "sent anew as a kept connection was closed"),
        (proxy.budget_spent, "not retried as the budget was spent"),
        (proxy.bad_gateway, "answered 502"),
        (proxy.gateway_timeout, "answered 504"),
        (proxy.truncated, "broken off"),
        (proxy.gone, "left by the client"),
        (proxy.slow_heads, "too slow"),
        (proxy.handshakes, "without a TLS handshake"),
        (proxy.proxy_headers, "without a good PROXY header"),
        (proxy.denied, "of clients that may not connect"),
        (proxy.cancelled, "taken back by the client"),
        (proxy.stalled, "not taken by the client"),
    ];
    for (count, what) in counts.iter().filter(|(count, _)| *count > 0) {
        // Writing to a `String` cannot fail.
        let _ = write!(out, ", {count} {what}");
    }
    for (reason, count) in &proxy.refused {
        let _ = write!(out, ", {count} refused ({reason})");
    }
    for (error, count) in &proxy.resets {
        let _ = write!(out, ", {count} streams reset ({error})");
    }
    for (error, count) in &proxy.sent_away {
        let _ = write!(out, ", {count} clients sent away ({error})");
    }
    out.push('\n');
    out
}

const HEAD: [&str; 10] =
    ["BACKEND", "ADDRESS", "STATE", "FOR", "WEIGHT", "OPEN", "NEW/S", "TO/S", "FROM/S", "WHY"];

fn row(backend: &Backend, now: i64) -> Vec<String> {
    let passive = backend.passive.as_ref().map_or(PassiveState::Quiet, |passive| passive.state);
    let state = match (backend.admin, backend.health, backend.serving) {
        (Admin::Enabled, Health::Up, true) if passive == PassiveState::Ejected => "ejected, serves",
        (Admin::Enabled, Health::Up, false) if passive == PassiveState::Ejected => "ejected",
        (Admin::Enabled, Health::Up, true) if passive == PassiveState::Failing => "fails, serves",
        (Admin::Draining, ..) => "draining",
        (Admin::Disabled, ..) => "disabled",
        (Admin::Enabled, Health::Down, true) => "down, serves",
        (Admin::Enabled, Health::Down, false) => "down",
        (Admin::Enabled, Health::Unknown, _) => "unknown",
        (Admin::Enabled, Health::Up, true) => "serves",
        (Admin::Enabled, Health::Up, false) => "rests",
    };
    let share = match backend.weight_percent {
        100 => String::new(),
        percent => format!(" ({percent} %)"),
    };
    let reasons: Vec<_> = backend.verdict.iter().filter(|why| *why != "fit").cloned().collect();
    let why = if reasons.is_empty() { backend.reason.clone() } else { reasons.join("; ") };
    vec![
        backend.name.clone(),
        backend.address.to_string(),
        state.to_owned(),
        age((now - backend.since.as_second()).max(0) as u64),
        format!("{}{share}", backend.weight),
        (backend.active + backend.proxy.as_ref().map_or(0, |proxy| proxy.active)).to_string(),
        format!("{:.1}", backend.connections_per_second),
        format!("{}/s", bytes(backend.forward_bytes_per_second as u64)),
        format!("{}/s", bytes(backend.return_bytes_per_second as u64)),
        why,
    ]
}

#[cfg(test)]
mod tests;
