//! The command line.

use std::{net::SocketAddr, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{interrupt, lab};

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
    match run(Cli::parse().command) {
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

fn run(command: Command) -> Result<ExitCode> {
    match command {
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
