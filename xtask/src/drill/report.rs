//! The table of a drill: medians and worst cases.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde::Deserialize;

use super::clients::{CONNECTIONS, Seen};

/// One line: what happened, and what the clients saw each time.
pub(super) struct Row {
    pub(super) title: &'static str,
    pub(super) seen: Vec<Seen>,
}

/// Median and worst of a figure.
fn spread<T: Ord + Copy>(seen: &[Seen], figure: impl Fn(&Seen) -> T) -> Option<(T, T)> {
    let mut values: Vec<T> = seen.iter().map(figure).collect();
    values.sort_unstable();
    Some((*values.get(values.len() / 2)?, *values.last()?))
}

/// The lines of all stacks, one below the other for each fault.
pub(super) fn table(stacks: &[(&str, Vec<Row>)], repeats: usize) -> String {
    let mut text = format!(
        "what the clients saw, {repeats} times each: median (worst)\n\n\
         {:<44} {:<14} {:>14} {:>18} {:>10} {:>9} {:>18}\n",
        "what goes down",
        "",
        "failed",
        "longest gap",
        format!("broken/{CONNECTIONS}"),
        "download",
        "slowest",
    );
    let lines = stacks.first().map_or(0, |(_, rows)| rows.len());
    for line in 0..lines {
        for (at, (stack, rows)) in stacks.iter().enumerate() {
            let Row { title, seen } = &rows[line];
            let title = if at == 0 { title } else { "" };
            let counts = |figure: Option<(u64, u64)>| {
                figure.map_or_else(|| "-".into(), |(median, worst)| format!("{median} ({worst})"))
            };
            let times = |figure: Option<(Duration, Duration)>| {
                figure.map_or_else(
                    || "-".into(),
                    |(median, worst)| format!("{} ({})", time(median), time(worst)),
                )
            };
            let _ = writeln!(
                text,
                "{title:<44} {stack:<14} {:>14} {:>18} {:>10} {:>9} {:>18}",
                counts(spread(seen, |seen| seen.failed)),
                times(spread(seen, |seen| seen.gap)),
                counts(spread(seen, |seen| seen.broken as u64)),
                format!("{}/{}", whole(seen), seen.len()),
                times(spread(seen, |seen| seen.slowest)),
            );
        }
    }
    text + "\nfailed: requests not answered well within 2 s, of about 13,000 in each run. longest gap: between \
            two\nconnections that were answered within 150 ms, one begun every 5 ms. broken: open connections\n\
            that ended, or got no answer for 10 s. download: of 200 MB, in flight meanwhile, whole and right.\n"
}

/// How often the download was whole.
fn whole(seen: &[Seen]) -> usize {
    seen.iter().filter(|seen| seen.download.is_none()).count()
}

/// One line about one time.
pub(super) fn line(seen: &Seen) -> String {
    let Seen { requests, failed, gap, broken, slowest, download, .. } = seen;
    let download =
        download.as_ref().map_or_else(String::new, |why| format!(", download broken: {why}"));
    let why: Vec<String> =
        seen.failures.iter().map(|(why, count)| format!("{count} × {why}")).collect();
    let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join(", ")) };
    format!(
        "{failed} of {requests} failed{why}, longest gap {}, {broken} of {CONNECTIONS} broken, \
         slowest {}{download}",
        time(*gap),
        time(*slowest)
    )
}

/// Reasons for which a packet is not forwarded and yet not lost: the node's own stack gets it.
const PASSED: [&str; 9] = [
    "not_ip",
    "not_ours",
    "no_service",
    "other_protocol",
    "icmp_unrelated",
    "truncated",
    "malformed",
    "fragment",
    "proxied",
];

/// What a balancer dropped or refused since: one line, if anything.
pub(super) fn not_forwarded(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
) -> Option<String> {
    let lost: Vec<String> = after
        .iter()
        .filter(|(reason, _)| !PASSED.contains(&reason.as_str()))
        .filter_map(|(reason, now)| {
            let more = now.saturating_sub(before.get(reason).copied().unwrap_or(0));
            (more > 0).then(|| format!("{more} × {reason}"))
        })
        .collect();
    (!lost.is_empty()).then(|| format!("packets dropped or refused: {}", lost.join(", ")))
}

/// Whether the clients saw nothing bad.
pub(super) fn is_clean(seen: &Seen) -> bool {
    seen.failed == 0 && seen.broken == 0 && seen.download.is_none()
}

/// What a daemon's events since a time, in milliseconds since the machine started, say of who has the addresses.
pub(super) fn roles(events: &str, since_ms: u64) -> Vec<String> {
    let of_interest = |event: &Event| {
        event.monotonic_ms >= since_ms
            && ["started", "stopped", "role", "address", "peer"].contains(&event.kind.as_str())
    };
    events
        .lines()
        .filter_map(|line| serde_json::from_str::<Event>(line).ok())
        .filter(of_interest)
        .map(|Event { monotonic_ms, message, cause, .. }| {
            let cause = cause.map_or_else(String::new, |cause| format!(" ({cause})"));
            format!("after {} ms: {message}{cause}", monotonic_ms - since_ms)
        })
        .collect()
}

/// An event of a daemon.
#[derive(Deserialize)]
struct Event {
    monotonic_ms: u64,
    kind: String,
    message: String,
    cause: Option<String>,
}

/// What must not be, whatever the machine's speed.
pub(super) fn faults(rows: &[Row]) -> Vec<String> {
    let mut faults = Vec::new();
    for Row { title, seen } in rows {
        let broken: usize = seen.iter().map(|seen| seen.broken).max().unwrap_or(0);
        // A connection to a server that dies ends with it.
        if broken > 0 && !title.contains("app server") {
            faults.push(format!("{}: {broken} open connections broke", title.trim()));
        }
        let downloads = seen.len() - whole(seen);
        if downloads > 0 && !title.contains("app server") {
            faults.push(format!("{}: {downloads} downloads broke", title.trim()));
        }
        if seen.iter().any(|seen| seen.requests == 0) {
            faults.push(format!("{}: no request was sent", title.trim()));
        }
    }
    faults
}

fn time(time: Duration) -> String {
    if time == Duration::MAX {
        "never".into()
    } else if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(failed: u64, gap_ms: u64, broken: usize) -> Seen {
        let (gap, slowest) = (Duration::from_millis(gap_ms), Duration::from_millis(gap_ms + 1));
        Seen { requests: 100, failed, slowest, gap, broken, ..Seen::default() }
    }

    #[test]
    fn the_table_has_median_and_worst_of_each_stack() {
        let row = |seen| vec![Row { title: "the cable", seen }];
        let stacks = [
            ("ballast", row(vec![seen(0, 20, 0), seen(0, 10, 0), seen(1, 30, 0)])),
            ("classic stack", row(vec![seen(40, 3400, 20); 3])),
        ];
        let text = table(&stacks, 3);
        let lines: Vec<&str> = text.lines().filter(|line| line.contains('(')).collect();
        assert!(lines[1].starts_with("the cable"), "{text}");
        assert!(lines[1].contains("0 (1)") && lines[1].contains("20 ms (30 ms)"), "{text}");
        assert!(lines[2].contains("3.40 s (3.40 s)") && lines[2].contains("20 (20)"), "{text}");
    }

    #[test]
    fn a_broken_connection_is_a_fault_unless_its_server_died() {
        let row = |title, broken| Row { title, seen: vec![seen(0, 1, broken)] };
        assert!(faults(&[row("an app server, killed", 6)]).is_empty());
        let broken = faults(&[row("the active balancer, power off", 1)]);
        assert_eq!(broken, ["the active balancer, power off: 1 open connections broke"]);
        let download = Seen { download: Some("other bytes".into()), ..seen(0, 1, 0) };
        let broken = faults(&[Row { title: "nothing", seen: vec![seen(0, 1, 0), download] }]);
        assert_eq!(broken, ["nothing: 1 downloads broke"]);
    }

    #[test]
    fn what_was_dropped_is_told_and_what_was_passed_on_is_not() {
        let counts = |counts: &[(&str, u64)]| -> BTreeMap<String, u64> {
            counts.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
        };
        let before = counts(&[("no_flow", 2), ("not_ours", 5)]);
        let after = counts(&[("no_flow", 3), ("no_lease", 4), ("not_ours", 9)]);
        assert_eq!(
            not_forwarded(&before, &after).as_deref(),
            Some("packets dropped or refused: 1 × no_flow, 4 × no_lease")
        );
        assert_eq!(not_forwarded(&after, &after), None);
    }

    #[test]
    fn events_of_roles_are_told_from_the_beginning_on() {
        let event = |ms: u64, kind, message| {
            format!(
                "{{\"number\":1,\"monotonic_ms\":{ms},\"kind\":\"{kind}\",\"message\":\"{message}\"}}\n"
            )
        };
        let events = event(90, "role", "early")
            + &event(120, "health", "down")
            + &event(130, "role", "Active");
        assert_eq!(roles(&events, 100), ["after 30 ms: Active"]);
    }

    #[test]
    fn times_are_short_to_read() {
        assert_eq!(time(Duration::from_millis(7)), "7 ms");
        assert_eq!(time(Duration::from_millis(3440)), "3.44 s");
        assert_eq!(time(Duration::MAX), "never");
    }
}
