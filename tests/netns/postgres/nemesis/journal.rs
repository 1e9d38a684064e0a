//! What was done when, what the daemons said then, and how long nobody could write.

use std::{collections::BTreeMap, time::SystemTime};

use ballast::events::Event;

use super::*;

/// The ends of the classes of the histogram, in milliseconds.
const ENDS: [u64; 9] = [100, 250, 500, 1000, 2000, 4000, 8000, 16_000, 64_000];

pub(super) struct Journal {
    seed: u64,
    began: SystemTime,
    entries: Vec<(SystemTime, String)>,
    /// The longest time without an acknowledged write, by what was done.
    pauses: BTreeMap<String, Vec<Duration>>,
}

impl Journal {
    /// Begins, and prints the seed.
    pub(super) fn begin(seed: u64) -> Self {
        println!("BALLAST_NEMESIS_SEED={seed}");
        let began = SystemTime::now();
        Self { seed, began, entries: Vec::new(), pauses: BTreeMap::new() }
    }

    pub(super) fn note(&mut self, what: impl Into<String>) {
        let (now, what) = (SystemTime::now(), what.into());
        println!("{} {what}", self.when(now));
        self.entries.push((now, what));
    }

    pub(super) fn paused(&mut self, class: &str, pause: Duration) {
        self.note(format!("{class}: nothing was written for {pause:.2?}"));
        self.pauses.entry(class.to_owned()).or_default().push(pause);
    }

    fn when(&self, at: SystemTime) -> String {
        let since = at.duration_since(self.began).unwrap_or_default();
        format!("{:>8.3}", since.as_secs_f64())
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn faults(&self) -> usize {
        self.pauses.values().map(Vec::len).sum()
    }

    /// Prints how long nobody could write, by what was done.
    pub(super) fn print_pauses(&self) {
        println!(
            "longest time without an acknowledged write, by fault: median, longest, and how many took"
        );
        let ends = ENDS.iter().map(|end| format!("{:>6}", format!("<{}", *end as f64 / 1000.0)));
        println!("{:<44} {:>7} {:>7} {}", "", "median", "longest", ends.collect::<String>());
        for (class, pauses) in &self.pauses {
            let mut pauses = pauses.clone();
            pauses.sort();
            let mut counts = [0; ENDS.len()];
            for pause in &pauses {
                let at = ENDS.iter().position(|end| pause.as_millis() < u128::from(*end));
                counts[at.unwrap_or(ENDS.len() - 1)] += 1;
            }
            let counts = counts.map(|count| match count {
                0 => format!("{:>6}", "."),
                count => format!("{count:>6}"),
            });
            println!(
                "{class:<44} {:>7.2} {:>7.2} {}",
                pauses[pauses.len() / 2].as_secs_f64(),
                pauses.last().copied().unwrap_or_default().as_secs_f64(),
                counts.concat()
            );
        }
    }

    /// Prints all that was done and what the daemons have said, in the order in which it happened.
    pub(super) fn print(&self, site: &Site) {
        let mut lines = self.entries.clone();
        for host in BOTH {
            let file = site.lab().state_dir().join(host.as_str()).join("state/events.jsonl");
            let text = fs::read_to_string(file).unwrap_or_default();
            for event in text.lines().filter_map(|line| serde_json::from_str::<Event>(line).ok()) {
                let cause = event.cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
                lines.push((event.time.into(), format!("  {host}: {}{cause}", event.message)));
            }
        }
        lines.sort_by_key(|(at, _)| *at);
        println!("--- what happened; BALLAST_NEMESIS_SEED={}", self.seed);
        for (at, line) in lines {
            println!("{} {line}", self.when(at));
        }
        for (name, host) in [("pg-01", HostName::Pg01), ("pg-02", HostName::Pg02)] {
            for log in [site.lab().log(host, "postgres"), rejoin_log(site, name)] {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                println!("--- end of {}", log.display());
                for line in &lines[lines.len().saturating_sub(40)..] {
                    println!("{line}");
                }
            }
        }
    }
}
