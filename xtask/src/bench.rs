//! `cargo xtask bench`: what a packet costs, and what a request costs.
//!
//! The measuring itself is the binary `bench` of the crate `lb-tests`, which knows maps and packets.
//! Here is what both have in common: the arguments.

use std::{ffi::OsString, path::PathBuf};

use clap::Parser;

use crate::{build, setup, shell};

/// Nanoseconds for each packet, beside programs that do the least that any balancer must do;
/// requests a second, and CPU for each request, through the lab beside direct access.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench")]
pub struct Args {
    /// Fewer and shorter rounds: a first look, less exact.
    #[arg(long)]
    pub quick: bool,
    /// Measures single packets only, without a lab: neither frames over wires nor requests.
    #[arg(long)]
    pub no_requests: bool,
    /// Writes the figures as JSON to this file; `-` is standard output, in place of the table.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Exits with an error if a figure is above its bound.
    #[arg(long)]
    pub check: bool,
}

impl Args {
    /// The arguments of this process.
    pub fn from_command_line() -> Self {
        Self::parse()
    }

    fn list(&self) -> Vec<OsString> {
        let mut list = Vec::new();
        if self.quick {
            list.push("--quick".into());
        }
        if self.no_requests {
            list.push("--no-requests".into());
        }
        if let Some(file) = &self.json {
            list.extend(["--json".into(), file.into()]);
        }
        if self.check {
            list.push("--check".into());
        }
        list
    }
}

/// Installs what is missing, builds the benchmark, and runs it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    setup::setup()?;
    let mut command = build::cargo();
    command.args(["run", "--quiet", "--package", "lb-tests", "--bin", "bench", "--"]);
    shell::run(command.args(args.list()))
}
