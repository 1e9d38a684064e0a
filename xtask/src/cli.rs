//! The command line.

use std::{net::SocketAddr, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{bench, build, drill, interrupt, lab, run, setup, test, tidy};

mod lab_command;

/// Builds, tests and tries ballast.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what building and testing need, as far as it is missing
    ///
    /// On Debian 12 by apt-get: Debian's Rust compiler for BPF, and the servers and tools that the
    /// lab runs. Then bpf-linker by cargo. Where nightly Rust with rust-src and bpf-linker are there,
    /// these compile the kernel program instead. The other commands do all this first; the second
    /// time it takes no time.
    Setup {
        /// Prints the commands and does nothing
        #[arg(long)]
        dry_run: bool,
    },

    /// Builds the `ballast` binary, with the XDP program inside
    Build {
        /// As it is to be installed: link-time optimization, by a profile of requests through its proxy
        ///
        /// Builds it twice. The first one counts what it does while clients send it requests, in network
        /// namespaces, which need root; by these counts the second one is compiled. The counts are
        /// kept, and used again until the daemon's source or the compiler changes. What `rustup` lacks
        /// for it (llvm-tools) is added. `cargo xtask bench --l7` measures this binary.
        #[arg(long)]
        optimized: bool,
        /// Also puts it, and this program, where the machines of `vagrant/` take them from
        #[arg(long)]
        vagrant: bool,
    },

    /// Shows it: setup, build, lab up, and traffic through the floating IP while servers die
    ///
    /// On a terminal a live picture until Ctrl-C. Without one a report, and exit code 0 only if the
    /// counters of the XDP program prove that the traffic went through it. A lab of this name that
    /// stands already is used, and left standing.
    Run {
        /// Name of the lab
        #[arg(long, default_value = lab::DEFAULT_NAME)]
        name: String,
        /// Starts no databases
        #[arg(long)]
        no_postgres: bool,
        /// Threads of the client
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1000))]
        threads: u16,
        /// Prints the report on a terminal too
        #[arg(long)]
        report: bool,
    },

    /// Runs the tests; all that this version has if no tier is named
    Test {
        /// Which
        tiers: Vec<test::Tier>,
    },

    /// Measures what a packet costs, and a request
    ///
    /// Nanoseconds for each packet on each path, beside programs that do the least that any such
    /// balancer must, with 1, 10 thousand and 1 million flows; requests a second, and CPU for each
    /// request, through a lab, beside the same straight to the app server.
    Bench(bench::Args),

    /// Plays what can go down, several times each, and measures what the clients see of it
    ///
    /// An app server killed or silent; the active balancer without power, stopped, started again; its
    /// program killed, or still for a second; all CPUs busy. In a lab with two balancers; with --compare in one with nginx and keepalived too.
    Drill {
        /// Name of the lab; there is none of this name yet
        #[arg(long, default_value = "drill")]
        name: String,
        /// How often each is played
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
        repeats: u16,
        /// Measures nginx with keepalived too, in the same run
        #[arg(long)]
        compare: bool,
        /// Only this; may be repeated
        #[arg(long = "fault", value_name = "FAULT")]
        faults: Vec<drill::Fault>,
        /// Milliseconds between two advertisements of ballast
        #[arg(
            long = "interval",
            value_name = "MS",
            default_value_t = 100,
            value_parser = clap::value_parser!(u16).range(10..=40_950)
        )]
        interval_ms: u16,
        /// What carries the traffic; may be repeated
        #[arg(
            long = "stack",
            value_name = "STACK",
            conflicts_with = "compare",
            default_value = "ballast"
        )]
        stacks: Vec<drill::Stack>,
    },

    /// Checks the source against the rules of the house
    ///
    /// Directions of imports, clocks and raw sockets in the wrong place, unfinished work, links that
    /// lead nowhere.
    Tidy,

    /// A whole site on this machine, in network namespaces
    #[command(subcommand)]
    Lab(lab_command::LabCommand),

    /// Takes a lab down when the process that brought it up dies
    #[command(hide = true)]
    LabGuard {
        /// Name of the lab
        name: String,
    },

    /// Answers datagrams
    #[command(hide = true)]
    ServeUdpEcho {
        /// What every answer begins with
        #[arg(long)]
        name: String,
        /// Where to listen
        #[arg(required = true)]
        addresses: Vec<SocketAddr>,
    },
}

/// Runs the command, prints its error, and says how it ended.
pub fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(code) => code,
        Err(_) if interrupt::pending() => {
            eprintln!("interrupted");
            // What a shell gives a command that Ctrl-C ended.
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup { dry_run: true } => setup::dry_run()?,
        Command::Setup { dry_run: false } => setup::setup()?,
        Command::Build { vagrant, optimized } => {
            setup::setup()?;
            let ballast = if optimized { build::optimized_ballast()? } else { build::ballast()? };
            println!("{}", ballast.display());
            if vagrant {
                println!("{}", build::for_vagrant(&ballast)?.display());
            }
        }
        Command::Run { name, no_postgres, threads, report } => {
            let threads = threads.into();
            return run::run(&run::Settings { name, postgres: !no_postgres, threads, report });
        }
        Command::Test { tiers } => test::test(&tiers)?,
        Command::Drill { name, repeats, compare, faults, interval_ms, mut stacks } => {
            if compare {
                stacks = vec![drill::Stack::Ballast, drill::Stack::Classic];
            }
            let settings =
                drill::Settings { name, repeats: repeats.into(), stacks, faults, interval_ms };
            return drill::run(&settings);
        }
        Command::Bench(args) => bench::run(&args)?,
        Command::Tidy => tidy::tidy()?,
        Command::Lab(command) => command.run()?,
        Command::LabGuard { name } => lab::watch(&name)?,
        Command::ServeUdpEcho { name, addresses } => lab::serve_udp_echo(&name, &addresses)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
