//! The command line.
//!
//! Exit codes: 0 done, 1 failed or invalid, 2 wrong usage.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{
    Args, CommandFactory as _, Parser, Subcommand, ValueEnum, builder::RangedU64ValueParser,
};

use crate::{
    admin::{DEFAULT_FLOW_LIMIT, client::Call},
    config::Paths,
    control::reset::{Client, DEFAULT_RATE},
    dataplane::decap::Prefix,
};

mod alert;
mod ask;
mod check;
mod decap;
mod output;
mod pg;
mod run;
mod status;
mod top;
mod trace;

use output::print;

const EXAMPLES: &str = "\
Examples:
  ballast check -c ballast.toml      is the configuration right?
  ballast run                        the daemon
  ballast status                     what it does now, and why
  ballast drain app-01               no new connections to app-01
  ballast events --follow            what happens, as it happens

Exit codes: 0 done, 1 failed or invalid, 2 wrong usage.";

/// A load balancer in the kernel (XDP) that knows which backends are fit to serve.
#[derive(Debug, Parser)]
#[command(name = "ballast", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// Unix socket of the daemon
    /// [default: /run/ballast/ballast.sock; for `run` and `detach`, what the configuration says]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a configuration: all mistakes at once, each with its place and its cure
    #[command(after_help = "Examples:\n  ballast check\n  ballast check -c new.toml --json")]
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run the daemon
    #[command(after_help = RUN_HELP)]
    Run(RunArgs),
    /// Put a changed configuration into force, as a whole or not at all
    ///
    /// Open connections live on. If the file has mistakes they are printed, and nothing changes.
    Reload,
    /// Show what the daemon does and why
    #[command(
        after_help = "Examples:\n  ballast status\n  ballast status --json | jq '.services[].backends[] | {name, serving, verdict}'"
    )]
    Status {
        /// Only this service, with its backends
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
        /// All backends, however many; without this, more than 10,000 are only counted
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a backend finish: no new connections, open ones go on for `drain_timeout`
    #[command(after_help = WISH_HELP)]
    Drain(BackendArgs),
    /// Let a backend serve again after `drain` or `disable`
    #[command(after_help = WISH_HELP)]
    Enable(BackendArgs),
    /// Take a backend out at once: no new connections, open ones are reset
    #[command(after_help = WISH_HELP)]
    Disable(BackendArgs),
    /// Change a backend's share of new connections
    #[command(
        after_help = "Examples:\n  ballast weight app-01 5\n  ballast weight app-01 default      as configured\n\nThe wish survives a restart."
    )]
    Weight {
        /// Name of the backend
        backend: String,
        /// 1 to 256, or `default` for the configured weight
        weight: String,
        #[command(flatten)]
        service: InService,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End the open connections of a backend: both sides are told, and reconnect at once
    ///
    /// The backend goes on to get new connections; `drain` it first if it shall not.
    #[command(after_help = RESET_HELP)]
    Reset {
        /// Name of the backend
        backend: String,
        #[command(flatten)]
        service: InService,
        /// Only those of this client, or of one of its ports
        #[arg(long, value_name = "CLIENT[:PORT]")]
        flows: Option<Client>,
        /// So many a second
        #[arg(long, value_name = "N", default_value_t = DEFAULT_RATE,
              value_parser = RangedU64ValueParser::<u32>::new().range(1..))]
        rate: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List connections
    #[command(
        after_help = "Examples:\n  ballast flows --service web\n  ballast flows --limit 100000 --json | jq length"
    )]
    Flows {
        /// Only those of this service
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = DEFAULT_FLOW_LIMIT as u64,
              value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
        limit: u64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what happened, when and why
    #[command(
        after_help = "Examples:\n  ballast events\n  ballast events --follow --json | jq -r .message"
    )]
    Events {
        /// Go on with new events until interrupted
        #[arg(long, short)]
        follow: bool,
        /// Print JSON, an object a line
        #[arg(long)]
        json: bool,
    },
    /// Show what happens now: rates, backends, busiest flows, drops, events
    #[command(after_help = top::HELP)]
    Top(top::TopArgs),
    /// Show packets as they come: before and after, which step decided, and why
    #[command(after_help = trace::HELP)]
    Trace(trace::TraceArgs),
    /// Take everything away that a stopped daemon left: floating addresses, program, maps
    ///
    /// A daemon that ends leaves forwarding in place, so that a restart loses nothing. This ends
    /// it: open connections through this node break.
    Detach {
        #[command(flatten)]
        config: ConfigFile,
        /// Name of this node [default: the host's name]
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// Directory of the pinned maps [default: what the configuration says]
        #[arg(long, value_name = "PATH")]
        pin_dir: Option<PathBuf>,
    },
    /// On a backend: take packets out of the tunnels that the balancers put them into
    ///
    /// For services with `forward = "tunnel"`. Puts a program on the interface and ends; the program
    /// stays until `--detach`, or until the machine restarts. A second call takes the first one's
    /// place without losing a packet. Needs no daemon and no configuration.
    ///
    /// Takes out IPv4 and IPv6 inside IPv4 and IPv6, and both inside UDP to port 6080 (GUE, variant
    /// 1), one layer, if the outer address is this host's. What contradicts itself is dropped and
    /// counted; pieces (fragments) and outer options go to the host's own stack.
    #[command(after_help = DECAP_HELP)]
    Decap(DecapArgs),
    /// The databases: show them, change their primary
    #[command(subcommand)]
    Pg(pg::PgCommand),
    /// Alerts: what is wrong now, where it is told, and whether that works
    #[command(subcommand)]
    Alert(alert::AlertCommand),
    /// Hand the floating addresses to another node at once
    ///
    /// This node serves until another one has taken them, and takes them back only when nobody has them.
    /// If no other node is there, it goes on.
    #[command(after_help = "Example:\n  ballast release && systemctl restart ballast")]
    Release {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a shell's completions
    #[command(after_help = "Example:\n  ballast completions bash > /etc/bash_completion.d/ballast")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(
        after_help = "Examples:\n  ballast man | man -l -\n  ballast man --dir /usr/share/man/man1"
    )]
    Man {
        /// Write a page for each command into this directory
        #[arg(long, value_name = "PATH")]
        dir: Option<PathBuf>,
    },
}

const RUN_HELP: &str = "\
Signals: SIGHUP reloads the configuration; SIGTERM and SIGINT end the daemon. Forwarding goes on
without it; `ballast detach` ends that too.

Examples:
  ballast run
  ballast run -c ballast.toml --node lb-01 --log-format json";

const RESET_HELP: &str = "\
Examples:
  ballast reset app-01
  ballast reset app-01 --service web --flows 192.0.2.9
  ballast reset app-01 --flows [2001:db8::9]:40000

Connections of a service with forward = \"direct\" or \"tunnel\" are not known one by one: `disable` the
backend to end them.";
const DECAP_HELP: &str = "\
The host also needs the floating address on `lo`; `ballast check` on a balancer prints the commands.

Examples:
  ballast decap --interface eth0 --from 192.0.2.11 --from 192.0.2.12
  ballast decap --interface eth0 --status
  ballast decap --interface eth0 --detach";

const WISH_HELP: &str = "\
The wish survives a restart. A backend of that name in several services is meant in all of them,
unless --service names one.";

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration
    #[arg(
        long = "config",
        short = 'c',
        value_name = "FILE",
        default_value = "/etc/ballast/ballast.toml"
    )]
    path: PathBuf,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Directory of what survives a restart [default: what the configuration says]
    #[arg(long, value_name = "PATH")]
    state_dir: Option<PathBuf>,
    /// Directory of the pinned maps, on a BPF file system [default: what the configuration says]
    #[arg(long, value_name = "PATH")]
    pin_dir: Option<PathBuf>,
    /// Throw the pinned maps of an earlier daemon away; open connections are lost
    #[arg(long)]
    discard_pins: bool,
    /// Form of the log on standard error; `RUST_LOG` sets its level
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// A line for people
    Text,
    /// A JSON object a line
    Json,
}

#[derive(Debug, Args)]
struct DecapArgs {
    /// The interface that the packets come in by
    #[arg(long, value_name = "NAME")]
    interface: String,
    /// Only from tunnels that begin there, an address or prefix; may be given several times
    #[arg(long, value_name = "CIDR", conflicts_with_all = ["detach", "status"])]
    from: Vec<Prefix>,
    /// Take the program off the interface
    #[arg(long, conflicts_with = "status")]
    detach: bool,
    /// Show what it has done
    #[arg(long)]
    status: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "detach")]
    json: bool,
    /// Directory of the pins, on a BPF file system [default: /sys/fs/bpf/ballast-decap]
    #[arg(long, value_name = "PATH")]
    pin_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct BackendArgs {
    /// Name of the backend
    backend: String,
    #[command(flatten)]
    service: InService,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct InService {
    /// Only in this service
    #[arg(long = "service", value_name = "NAME")]
    name: Option<String>,
}

/// Runs the command and says how it ended.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    let given = cli.socket;
    let socket = given.clone().unwrap_or_else(|| Paths::default().socket);
    let wish = |what: &str, args: BackendArgs| {
        let call = Call::post(&["backends", &args.backend, what]);
        ask::wish(&socket, call, args.service.name.as_deref(), args.json)
    };
    match cli.command {
        Command::Check { config, json } => return check::check(&config.path, json),
        Command::Run(args) => return run::run(args, given),
        Command::Detach { config, node, pin_dir } => {
            return run::detach(&config.path, node.as_deref(), pin_dir, given);
        }
        Command::Decap(args) => decap::decap(&args)?,
        Command::Reload => return ask::reload(&socket),
        Command::Status { service, all, json } => {
            ask::status(&socket, service.as_deref(), all, json)?;
        }
        Command::Drain(args) => wish("drain", args)?,
        Command::Enable(args) => wish("enable", args)?,
        Command::Disable(args) => wish("disable", args)?,
        Command::Weight { backend, weight, service, json } => {
            let call = Call::post(&["backends", &backend, "weight", &weight]);
            ask::wish(&socket, call, service.name.as_deref(), json)?;
        }
        Command::Reset { backend, service, flows, rate, json } => {
            let call = Call::post(&["backends", &backend, "reset"])
                .with("service", service.name.as_deref())
                .with("flows", flows.map(|client| client.to_string()).as_deref())
                .with("rate", Some(&rate.to_string()));
            ask::reset(&socket, call, &backend, json)?;
        }
        Command::Flows { service, limit, json } => {
            ask::flows(&socket, service.as_deref(), limit, json)?;
        }
        Command::Events { follow, json } => ask::events(&socket, follow, json)?,
        Command::Top(args) => top::top(&socket, &args)?,
        Command::Trace(args) => trace::trace(&socket, &args)?,
        Command::Pg(command) => return pg::run(&socket, command),
        Command::Alert(command) => return alert::run(&socket, command),
        Command::Release { json } => return ask::release(&socket, json),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ballast", &mut script);
            print(&String::from_utf8_lossy(&script))?;
        }
        Command::Man { dir: Some(dir) } => clap_mangen::generate_to(Cli::command(), dir)?,
        Command::Man { dir: None } => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            print(&String::from_utf8_lossy(&page))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether diagnostics may be coloured.
fn colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
