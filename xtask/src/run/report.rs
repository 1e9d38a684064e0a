//! Without a terminal: a fixed story, and what came of it.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    NODE, SERVICE, VERDICT_LIMIT,
    client::{Load, Tally},
    status::{Attachment, Packets, Status},
};
use crate::{
    interrupt,
    lab::{Lab, topology},
    wait,
};

/// How long a phase lasts that ends by itself.
const PHASE: Duration = Duration::from_secs(3);

/// A stretch of the story.
struct Phase {
    title: &'static str,
    /// Whether no request that begins in it may fail.
    clean: bool,
    took: Duration,
}

/// What is printed, and judged.
struct Outcome {
    phases: Vec<(Phase, Tally)>,
    packets: Packets,
    attachments: Vec<Attachment>,
}

/// Plays the story and prints the report; whether all is well.
pub(super) fn report(lab: &Lab, threads: usize) -> Result<bool> {
    let target = SocketAddr::new(topology::FLOATING_V4.into(), 80);
    println!("{threads} clients ask http://{target}/id, a connection for each request\n");
    let before = Status::of(lab)?.packets(SERVICE);
    let load = Load::start(lab.host("client"), target, threads);
    let phases = play(lab, &load)?;
    let tallies = load.stop()?;
    let status = Status::of(lab)?;
    let outcome = Outcome {
        phases: phases.into_iter().zip(tallies).collect(),
        packets: status.packets(SERVICE).since(before),
        attachments: status.attachments().to_vec(),
    };
    print!("{}", outcome.table());
    let faults = outcome.faults();
    for fault in &faults {
        println!("FAILED: {fault}");
    }
    if faults.is_empty() {
        println!("ok: the floating IP served through the XDP program on {NODE}");
    }
    Ok(faults.is_empty())
}

fn play(lab: &Lab, load: &Load) -> Result<Vec<Phase>> {
    let mut phases = Vec::new();
    let mut phase = |title, clean, body: &dyn Fn() -> Result<()>| -> Result<()> {
        let begin = Instant::now();
        body()?;
        phases.push(Phase { title, clean, took: begin.elapsed() });
        load.next_phase()
    };
    phase("three servers", true, &pause)?;
    phase("app-02 killed", false, &|| {
        lab.kill("app-02")?;
        until_serving(lab, "app-02", false)
    })?;
    phase("app-02 ejected", true, &pause)?;
    phase("app-02 started again", true, &|| {
        lab.start("app-02")?;
        until_serving(lab, "app-02", true)
    })?;
    phase("three servers again", true, &pause)?;
    phase("app-03 cut off", false, &|| {
        lab.cut("app-03")?;
        until_serving(lab, "app-03", false)
    })?;
    phase("app-03 ejected", true, &pause)?;
    phase("app-03 plugged in again", true, &|| {
        lab.heal("app-03")?;
        until_serving(lab, "app-03", true)
    })?;
    Ok(phases)
}

fn pause() -> Result<()> {
    thread::sleep(PHASE);
    interrupt::check()
}

fn until_serving(lab: &Lab, backend: &str, wanted: bool) -> Result<()> {
    let what = format!("{backend} to be found {}", if wanted { "up" } else { "down" });
    wait::until(VERDICT_LIMIT, &what, || {
        let serving = Status::of(lab)?.serving(SERVICE).unwrap_or_default();
        Ok((serving.iter().any(|name| name == backend) == wanted).then_some(()))
    })
}

impl Outcome {
    fn answered(&self) -> u64 {
        self.phases.iter().map(|(_, tally)| tally.answered()).sum()
    }

    fn table(&self) -> String {
        let mut text = format!(
            "{:<24} {:>7} {:>9} {:>7} {:>9} {:>7} {:>7} {:>7}\n",
            "phase", "seconds", "answered", "failed", "slowest", "app-01", "app-02", "app-03"
        );
        for (phase, tally) in &self.phases {
            let by = |name: &str| tally.answers.get(name).copied().unwrap_or(0);
            let _ = writeln!(
                text,
                "{:<24} {:>7.1} {:>9} {:>7} {:>6} ms {:>7} {:>7} {:>7}",
                phase.title,
                phase.took.as_secs_f64(),
                tally.answered(),
                tally.failed(),
                tally.slowest.as_millis(),
                by("app-01"),
                by("app-02"),
                by("app-03"),
            );
            for (error, count) in &tally.failures {
                let _ = writeln!(text, "{:<24} {count} × {error}", "");
            }
        }
        let places: Vec<String> = self
            .attachments
            .iter()
            .map(|place| format!("{} ({} mode)", place.interface, place.mode))
            .collect();
        let _ = writeln!(
            text,
            "\nthe XDP program on {NODE}, at {}: {} packets to the servers, {} back",
            if places.is_empty() { "no interface".into() } else { places.join(", ") },
            self.packets.forward,
            self.packets.back,
        );
        text
    }

    /// What is not as it must be.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let answered = self.answered();
        if answered == 0 {
            faults.push("no request was answered".into());
        }
        for (phase, tally) in self.phases.iter().filter(|(phase, _)| phase.clean) {
            if tally.failed() > 0 {
                faults.push(format!("{} failed in phase `{}`", tally.failed(), phase.title));
            }
            if tally.answered() == 0 {
                faults.push(format!("nothing was answered in phase `{}`", phase.title));
            }
        }
        if self.attachments.is_empty() {
            faults.push("the XDP program is attached nowhere".into());
        }
        // A connection takes several packets each way.
        for (packets, where_to) in [(self.packets.forward, "to"), (self.packets.back, "from")] {
            if packets == 0 || packets < answered {
                faults.push(format!(
                    "the XDP program counted {packets} packets {where_to} the servers for \
                     {answered} answered requests: the traffic went past it"
                ));
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(answered: u64, failed: u64) -> Tally {
        let mut tally = Tally::default();
        tally.answers.insert("app-01".into(), answered);
        if failed > 0 {
            tally.failures.insert("connection refused".into(), failed);
        }
        tally
    }

    fn outcome() -> Outcome {
        let phase = |title, clean| Phase { title, clean, took: PHASE };
        Outcome {
            phases: vec![
                (phase("quiet", true), tally(90, 0)),
                (phase("kill", false), tally(10, 3)),
            ],
            packets: Packets { forward: 600, back: 500 },
            attachments: vec![Attachment { interface: "eth0".into(), mode: "driver".into() }],
        }
    }

    #[test]
    fn failures_count_only_where_there_must_be_none() {
        let mut outcome = outcome();
        assert_eq!(outcome.faults(), Vec::<String>::new());
        outcome.phases[0].1 = tally(90, 1);
        assert_eq!(outcome.faults(), ["1 failed in phase `quiet`"]);
    }

    #[test]
    fn traffic_past_the_program_fails_the_run() {
        let mut outcome = outcome();
        outcome.packets.forward = 99;
        assert_eq!(outcome.faults().len(), 1);
        assert!(outcome.faults()[0].contains("99 packets to the servers"));
        outcome.packets = Packets::default();
        assert_eq!(outcome.faults().len(), 2);
        outcome.attachments.clear();
        assert_eq!(outcome.faults().len(), 3);
    }

    #[test]
    fn nothing_answered_is_not_well() {
        let mut outcome = outcome();
        for (_, tally) in &mut outcome.phases {
            *tally = Tally::default();
        }
        assert!(outcome.faults()[0].contains("no request was answered"));
    }

    #[test]
    fn the_table_states_what_failed() {
        let table = outcome().table();
        assert!(table.contains("3 × connection refused"), "{table}");
        assert!(table.contains("eth0 (driver mode): 600 packets to the servers"), "{table}");
    }
}
