//! `cargo xtask bench`.
//!
//! Nanoseconds a packet by `BPF_PROG_TEST_RUN`, for each path of the program that the daemon loads,
//! beside floors: programs that do the least that any such balancer must do. All cases take turns, so
//! that whatever else the machine does falls on all of them alike; what counts are the ratios.

mod cases;
mod fill;
mod machine;
mod measure;
mod net;
mod packets;
#[path = "../../lb-ebpf/src/floors/plan.rs"]
mod plan;
mod programs;
mod report;

use std::fs;

use anyhow::{Context as _, bail};
use xtask::bench::Args;

use crate::{cases::Scope, measure::Rounds, programs::Programs, report::Report};

fn main() -> anyhow::Result<()> {
    let args = Args::from_command_line();
    let rounds = if args.quick {
        Rounds { count: 3, repeats: 30_000 }
    } else {
        Rounds { count: 9, repeats: 200_000 }
    };
    machine::stay_on_this_cpu()?;
    let mut report = Report::new(rounds)?;
    for scope in Scope::ALL {
        eprintln!("{scope} …");
        let mut programs = Programs::load(scope).context("load the programs")?;
        programs.fill(scope).context("fill the tables")?;
        for order in scope.orders() {
            let cases = cases::of(scope, *order);
            report.add(scope, *order, measure::run(&mut programs, cases, rounds)?);
        }
    }

    match &args.json {
        Some(path) if path.as_os_str() == "-" => println!("{}", report.json()?),
        Some(path) => {
            fs::write(path, report.json()?).with_context(|| format!("write {}", path.display()))?;
            print!("{report}");
        }
        None => print!("{report}"),
    }
    let exceeded = report.exceeded();
    for gate in &exceeded {
        eprintln!("above its bound: {gate}");
    }
    if args.check && !exceeded.is_empty() {
        bail!("{} of the figures are above their bounds", exceeded.len());
    }
    Ok(())
}
