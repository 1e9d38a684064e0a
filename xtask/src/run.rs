//! `cargo xtask run`: from a fresh clone to a floating IP that serves while servers die.
//!
//! Setup, build, lab up, and then traffic through the floating address. On a terminal that is a live
//! picture until Ctrl-C; without one it is a report of fixed length, which fails unless the kernel
//! program's own counters say that the traffic went through it.

use std::{io::IsTerminal as _, process::ExitCode, time::Duration};

use anyhow::Result;

use crate::{
    build, interrupt,
    lab::{Balancers, Lab, Options},
    setup, wait,
};

pub(crate) mod client;
mod live;
mod report;
pub mod status;

use self::status::Status;

/// The node that holds the floating addresses.
const NODE: &str = "lb-01";

/// The service that the traffic goes to.
const SERVICE: &str = "web";

/// How long backends may take to be found up, or down.
const VERDICT_LIMIT: Duration = Duration::from_secs(30);

/// `cargo xtask run …`
pub struct Settings {
    /// Name of the lab. One that stands already is used, and left standing.
    pub name: String,
    /// Whether the databases run.
    pub postgres: bool,
    /// Threads of the client.
    pub threads: usize,
    /// A report even on a terminal.
    pub report: bool,
}

/// Does it all; the code is 0 if the traffic flowed.
pub fn run(settings: &Settings) -> Result<ExitCode> {
    setup::setup()?;
    println!("build");
    let ballast = build::ballast()?;
    interrupt::install()?;
    println!("lab up");
    let lab = Lab::up(Options {
        name: settings.name.clone(),
        balancers: Balancers::First,
        postgres: settings.postgres,
        ballast: Some(ballast),
        ..Options::default()
    })?;
    wait::until(VERDICT_LIMIT, "all app servers to be found up", || {
        Ok(Status::of(&lab)?.serving(SERVICE).filter(|names| names.len() == 3))
    })?;
    let good = if std::io::stdout().is_terminal() && !settings.report {
        live::show(&lab, settings.threads)?;
        true
    } else {
        report::report(&lab, settings.threads)?
    };
    if lab.is_owned() {
        println!("lab down");
        lab.down()?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
