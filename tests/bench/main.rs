//! `cargo xtask bench`.
//!
//! Nanoseconds a packet by `BPF_PROG_TEST_RUN`, for each path of the program that the daemon loads,
//! beside floors: programs that do the least that any such balancer must do. All cases take turns, so
//! that whatever else the machine does falls on all of them alike; what counts are the ratios.
//!
//! Then whole frames over the lab's wires, and requests a second, and CPU for each request, through a lab of real programs, beside the same
//! requests straight to the app server.
//!
//! With `--l7`, what requests cost the proxy, nginx and `HAProxy`.
//!
//! With `--scale`, what very many services, backends and flows cost the daemon.

mod cases;
mod configure;
mod fill;
mod l7;
mod live;
mod machine;
mod measure;
mod net;
mod packets;
#[path = "../../lb-ebpf/src/floors/plan.rs"]
mod plan;
mod programs;
mod readme;
mod report;
mod requests;
mod rivals;
mod scale;

use std::{fs, thread};

use anyhow::{Context as _, anyhow, bail};
use xtask::{bench::Args, interrupt};

use crate::{
    cases::{Scope, Selection},
    live::Frames,
    measure::Rounds,
    programs::Programs,
    report::Report,
    requests::Load,
};

fn main() -> anyhow::Result<()> {
    let args = Args::from_command_line();
    interrupt::install()?;
    if args.scale.wanted {
        return scale::run(&args.scale);
    }
    if args.l7.requests {
        return l7::run(&args);
    }
    let (rounds, load, frames) = if args.quick {
        (
            Rounds { count: 3, repeats: 30_000 },
            Load { rounds: 1, seconds: 1 },
            Frames { rounds: 3, frames: 500_000 },
        )
    } else {
        (
            Rounds { count: 9, repeats: 200_000 },
            Load { rounds: 5, seconds: 3 },
            Frames { rounds: 7, frames: 4_000_000 },
        )
    };
    let mut report = Report::new(rounds)?;
    // A thread of its own, since it stays on one CPU, and so would the programs of the lab.
    let selection = Selection { words: args.only, connections: args.connections };
    let packets = thread::spawn(move || packets(&mut report, &selection, rounds).map(|()| report));
    let mut report = packets.join().map_err(|_| anyhow!("the measuring thread panicked"))??;
    if !args.no_requests {
        eprintln!("frames through the lab …");
        report.live = Some(live::measure(frames).context("measure frames")?);
        eprintln!("requests through the lab …");
        report.requests = Some(requests::measure(load).context("measure requests")?);
    }

    match &args.json {
        Some(path) if path.as_os_str() == "-" => println!("{}", report.json()?),
        Some(path) => {
            fs::write(path, report.json()?).with_context(|| format!("write {}", path.display()))?;
            print!("{report}\n{}", readme::table(&report));
        }
        None => print!("{report}\n{}", readme::table(&report)),
    }
    let exceeded = report.exceeded();
    for figure in &exceeded {
        eprintln!("above its bound: {figure}");
    }
    if args.check && !exceeded.is_empty() {
        bail!("{} of the figures are above their bounds", exceeded.len());
    }
    Ok(())
}

/// Measures what packets cost.
fn packets(report: &mut Report, selection: &Selection, rounds: Rounds) -> anyhow::Result<()> {
    machine::stay_on_this_cpu()?;
    for scope in Scope::ALL {
        if !selection.has(scope) {
            continue;
        }
        eprintln!("{scope} …");
        let mut programs = Programs::load(scope).context("load the programs")?;
        programs.fill(scope).context("fill the tables")?;
        for order in scope.orders() {
            interrupt::check()?;
            let cases = selection.of(cases::of(scope, *order));
            report.add(scope, *order, measure::run(&mut programs, cases, rounds)?);
        }
    }
    let full_tables = selection.of(cases::with_full_tables());
    if full_tables.is_empty() || !selection.has(Scope::ALL[0]) {
        return Ok(());
    }
    eprintln!("full tables …");
    let mut programs = Programs::load(Scope::ALL[0]).context("load the programs")?;
    programs.fill(Scope::ALL[0]).context("fill the tables")?;
    report.add_full_tables(measure::run(&mut programs, full_tables, rounds)?);
    Ok(())
}
