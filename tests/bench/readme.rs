//! The table of packets in the README, ready to be put there.

use std::fmt::Write as _;

use crate::{measure::Figure, report::Report};

/// Rows: what the README calls it, and the name of the case.
const ROWS: [(&str, &str); 5] = [
    ("nat, TCP, IPv4", "TCP v4 known, to backend"),
    ("nat, TCP, IPv6", "TCP v6 known, to backend"),
    ("nat, UDP, IPv4", "UDP v4 known, to backend"),
    ("direct, TCP, IPv4", "TCP v4 direct"),
    ("tunnel (IP in IP), TCP, IPv4", "TCP v4 tunnel, IP in IP"),
];

/// What is told in sentences below it.
const SINGLE: [(&str, &str); 6] = [
    ("new connection, tunnel", "TCP v4 new flow, tunnel"),
    ("new connection, nat", "TCP v4 new flow"),
    ("not ours", "TCP v4 not ours"),
    ("SYN to a port without a service", "TCP v4 no service"),
    ("answered with a reset", "TCP v4 unknown, answered RST"),
    ("new connection, slot changes hands", "TCP v4 new flow, slot changes"),
];

/// The table and the single figures, as Markdown. Figures that were not measured are left empty.
pub(crate) fn table(report: &Report) -> String {
    let mut text = String::from(
        "| known flow | 1 flow | 10 thousand, scattered | 1 million, scattered |\n|---|---|---|---|\n",
    );
    for (row, case) in ROWS {
        let cells = [1, 10_000, 1_000_000]
            .map(|flows| report.scattered(flows, case).map(cell).unwrap_or_default());
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {row} | {} |", cells.join(" | "));
    }
    text.push('\n');
    for (what, case) in SINGLE {
        if let Some(figure) = report.any(case) {
            let _ = writeln!(text, "- {what}: {}", cell(figure));
        }
    }
    text
}

/// Nanoseconds, and how many times the floor.
fn cell(figure: &Figure) -> String {
    let ns = figure.net_ns;
    let places = usize::from(ns < 10.0);
    match figure.times_floor {
        Some(times) => format!("{ns:.places$} ({times:.2} ×)"),
        None => format!("{ns:.places$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{self, Order, Scope};

    #[test]
    fn every_row_is_a_case() {
        let mut names: Vec<String> = Scope::ALL
            .iter()
            .flat_map(|scope| cases::of(*scope, Order::InTurn))
            .map(|case| case.name)
            .collect();
        names.extend(cases::with_full_tables().into_iter().map(|case| case.name));
        for (_, case) in ROWS.into_iter().chain(SINGLE) {
            assert!(names.iter().any(|name| name == case), "{case}");
        }
    }
}
