//! `cargo xtask bench`: what a packet costs, and what a request costs.
//!
//! The measuring itself is the binary `bench` of the crate `lb-tests`, which knows maps and packets.
//! Here is what both have in common: the arguments.

use std::{ffi::OsString, path::PathBuf};

use anyhow::Context as _;
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
    #[arg(long, group = "part")]
    pub no_requests: bool,
    /// Measures only what has this in its line of the table: packets, with their floors, or requests
    /// with `--l7`. May be repeated
    #[arg(long, value_name = "WORDS", requires = "part")]
    pub only: Vec<String>,
    /// Measures only with so many flows: 1, 10000 or 1000000. May be repeated
    #[arg(long, value_name = "NUMBER", requires = "no_requests")]
    pub connections: Vec<u32>,
    /// What very many services cost, in place of packets.
    #[command(flatten)]
    pub scale: Scale,
    /// What the proxy costs, in place of packets.
    #[command(flatten)]
    pub l7: L7,
    /// Writes the figures as JSON to this file; `-` is standard output, in place of the table.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Exits with an error if a figure is above its bound.
    #[arg(long)]
    pub check: bool,
}

/// What very many services, backends and flows cost the daemon.
#[derive(Clone, Debug, clap::Args)]
pub struct Scale {
    /// Measures, in place of packets, what very many services, backends and flows cost the daemon
    #[arg(long = "scale")]
    pub wanted: bool,
    /// Services, with `--scale`
    #[arg(long, default_value_t = 10_000, requires = "wanted")]
    pub services: u32,
    /// Backends of each service, with `--scale`
    #[arg(long, default_value_t = 100, requires = "wanted")]
    pub backends: u32,
    /// Connections in the flow tables, with `--scale`
    #[arg(long, default_value_t = 1_000_000, requires = "wanted")]
    pub flows: u32,
}

/// What a request costs the proxy, beside nginx and `HAProxy`.
#[derive(Clone, Debug, clap::Args)]
pub struct L7 {
    /// Measures, in place of packets, what requests cost the proxy, nginx and `HAProxy`
    #[arg(long = "l7", conflicts_with = "wanted", group = "part")]
    pub requests: bool,
    /// With `--l7`: in place of that, so many silent `WebSocket`s beside 2,000 requests a second, and
    /// what becomes of the daemon's memory
    #[arg(long, requires = "requests", value_name = "NUMBER")]
    pub websockets: Option<usize>,
    /// With `--l7`: this binary of ballast, and not the one that `cargo xtask build --optimized` makes
    #[arg(long, requires = "requests", value_name = "FILE")]
    pub ballast: Option<PathBuf>,
    /// Sends requests through this binary, which counts what it does, and measures nothing
    #[arg(long, hide = true, requires = "requests", value_name = "FILE")]
    pub train: Option<PathBuf>,
    /// For so many minutes, with `--websockets`
    #[arg(long, requires = "websockets", default_value_t = 10)]
    pub minutes: u32,
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
        for words in &self.only {
            list.extend(["--only".into(), words.into()]);
        }
        for number in &self.connections {
            list.extend(["--connections".into(), number.to_string().into()]);
        }
        if self.scale.wanted {
            list.push("--scale".into());
            for (name, number) in [
                ("--services", self.scale.services),
                ("--backends", self.scale.backends),
                ("--flows", self.scale.flows),
            ] {
                list.extend([name.into(), number.to_string().into()]);
            }
        }
        if self.l7.requests {
            list.push("--l7".into());
            if let Some(number) = self.l7.websockets {
                list.extend(["--websockets".into(), number.to_string().into()]);
                list.extend(["--minutes".into(), self.l7.minutes.to_string().into()]);
            }
            for (name, file) in [("--ballast", &self.l7.ballast), ("--train", &self.l7.train)] {
                if let Some(file) = file {
                    list.extend([name.into(), file.into()]);
                }
            }
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

impl L7 {
    /// The binary that is measured; built, unless it was given.
    pub fn binary(&self) -> anyhow::Result<PathBuf> {
        match &self.ballast {
            Some(file) => file.canonicalize().with_context(|| format!("find {}", file.display())),
            None => build::optimized_ballast().context("build ballast"),
        }
    }
}

/// Installs what is missing, builds the benchmark, and runs it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    setup::setup()?;
    let mut command = build::cargo();
    command.args(["run", "--quiet", "--package", "lb-tests", "--bin", "bench"]);
    if args.scale.wanted {
        // Here it is the daemon's own code that is measured.
        command.arg("--release");
    }
    command.arg("--");
    shell::run(command.args(args.list()))
}
