//! `cargo xtask bench`: what a packet costs, and what a request costs.
//!
//! The measuring itself is the binary `bench` of the crate `lb-tests`, which knows maps and packets.
//! Here is what both have in common: the arguments.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, bail};
use clap::Parser;

/// Nanoseconds for each packet, beside programs that do the least that any balancer must do; and
/// requests a second, and CPU for each request, through the lab beside direct access.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench")]
pub struct Args {
    /// Fewer and shorter rounds: a first look, less exact.
    #[arg(long)]
    pub quick: bool,
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

    fn list(&self) -> Vec<std::ffi::OsString> {
        let mut list = Vec::new();
        if self.quick {
            list.push("--quick".into());
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

/// Builds the benchmark and runs it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["run", "--quiet", "-p", "lb-tests", "--bin", "bench", "--"])
        .args(args.list())
        .status()
        .context("run cargo")?;
    if !status.success() {
        bail!("the benchmark ended with {status}");
    }
    Ok(())
}
