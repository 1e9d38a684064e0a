//! `cargo xtask lab`.

use std::{ffi::OsString, os::unix::process::CommandExt as _, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use crate::{
    interrupt,
    lab::{self, Balancers, HostName, Lab, Machine, Options},
    shell,
};

/// What `lab up --help` begins with.
const UP_HELP: &str = "\
Brings the lab up, or starts what is missing of it.

Every host is a network namespace NAME-HOST with an eth0, joined by a bridge in NAME-sw:

  client         192.0.2.9    2001:db8::9
  lb-01, lb-02   .11, .12     ballast; etcd with --etcd
  app-01..03     .21 to .23   nginx on 8080, UDP echo on 9000
  pg-01, pg-02   .31, .32     PostgreSQL 15: primary, streaming standby
  witness        .41          etcd with --etcd
  floating       .100         2001:db8::100; web on 80, UDP echo on 9000

The app servers answer / and /id with their name; /big is 200 MB; PUT /upload/NAME keeps the body.
The database, its user and the password are all `app`. With --etcd, the standby becomes the primary by itself
when that fails: `lab kill pg-01` or `lab cut pg-01`, and `ballast pg status`.";

/// `cargo xtask lab …`
#[derive(Subcommand)]
pub(super) enum LabCommand {
    /// Brings the lab up, or starts what is missing of it
    #[command(long_about = UP_HELP)]
    Up(UpArgs),

    /// Takes the lab down: processes, namespaces, pinned maps, files
    Down(Name),

    /// Shows what every host is and does
    Status(Name),

    /// Makes this machine one host of the lab, for a lab of several machines
    ///
    /// Installs what the host runs, adds its addresses to the interface, writes the same files as a lab on
    /// one machine, and starts the same programs. May be repeated; it is needed again after a reboot.
    /// `vagrant/` does this in each of its virtual machines.
    Host {
        #[command(flatten)]
        name: Name,
        /// The host that this machine is
        host: HostName,
        /// The machine's interface in the lab's network
        #[arg(long)]
        interface: String,
        /// The `ballast` binary, for a balancer; built if it is not given
        #[arg(long, value_name = "FILE")]
        ballast: Option<PathBuf>,
    },

    /// Runs a command on a host
    Exec {
        #[command(flatten)]
        name: Name,
        /// The host
        host: HostName,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },

    /// Kills every process on a host (SIGKILL); the host itself goes on answering pings
    ///
    /// What a crash of the server program looks like: connections are refused at once. `lab start`
    /// starts the programs again.
    Kill(OnHost),

    /// Starts what a host ought to run
    Start(OnHost),

    /// Pulls a host's cable: its port of the switch goes down
    ///
    /// What others see of a power cut, too: silence. The processes on the host go on, and find
    /// their link without carrier. `lab heal` plugs it in again.
    Cut(OnHost),

    /// Plugs a host's cable in again
    Heal(OnHost),
}

/// Which lab.
#[derive(Args)]
pub(super) struct Name {
    /// Name of the lab; labs of different names stand side by side
    #[arg(long, default_value = lab::DEFAULT_NAME)]
    name: String,
}

/// Which host of which lab.
#[derive(Args)]
pub(super) struct OnHost {
    #[command(flatten)]
    name: Name,
    /// The host
    host: HostName,
}

/// `cargo xtask lab up …`
#[derive(Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own on the command line"
)]
pub(super) struct UpArgs {
    #[command(flatten)]
    name: Name,
    /// Starts the daemon on lb-02 too
    #[arg(long, conflicts_with = "no_balancers")]
    both: bool,
    /// Starts no daemon on either balancer
    #[arg(long)]
    no_balancers: bool,
    /// Starts no databases
    #[arg(long)]
    no_postgres: bool,
    /// Starts etcd on both balancers and on the witness, and the daemon on both; the standby is synchronous, and
    /// replaces a primary that has failed (`promotion = "automatic"`)
    #[arg(long, conflicts_with_all = ["no_balancers", "no_postgres"])]
    etcd: bool,
    /// The app servers can answer the clients by themselves, on ports 80 to 83: for services with
    /// `forward = "direct"` or `"tunnel"`
    #[arg(long)]
    steered: bool,
    /// Configuration for the balancers, instead of the lab's own
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl LabCommand {
    /// Does it.
    pub(super) fn run(self) -> Result<()> {
        match self {
            Self::Up(args) => args.run(),
            Self::Down(name) => lab::down(&name.name),
            Self::Status(name) => status(&Lab::attach(&name.name)?),
            Self::Host { name, host, interface, ballast } => {
                interrupt::install()?;
                lab::host(Machine { name: name.name, host, interface, ballast })
            }
            Self::Exec { name, host, command } => {
                let lab = Lab::attach(&name.name)?;
                let mut wrapped = lab.host(host.as_str()).command(&command[0]);
                let error = wrapped.args(&command[1..]).exec();
                Err(error).with_context(|| format!("start `{}`", shell::display(&wrapped)))
            }
            Self::Kill(on) => on.lab()?.kill(on.host.as_str()),
            Self::Start(on) => on.lab()?.start(on.host.as_str()),
            Self::Cut(on) => on.lab()?.cut(on.host.as_str()),
            Self::Heal(on) => on.lab()?.heal(on.host.as_str()),
        }
    }
}

impl OnHost {
    fn lab(&self) -> Result<Lab> {
        Lab::attach(&self.name.name)
    }
}

impl UpArgs {
    fn run(self) -> Result<()> {
        let config = self
            .config
            .map(|file| {
                std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
            })
            .transpose()?;
        interrupt::install()?;
        let balancers = match (self.both || self.etcd, self.no_balancers) {
            (_, true) => Balancers::None,
            (true, _) => Balancers::Both,
            _ => Balancers::First,
        };
        let lab = Lab::up(Options {
            name: self.name.name,
            balancers,
            postgres: !self.no_postgres,
            etcd: self.etcd,
            steered: self.steered,
            config,
            ..Options::default()
        })?;
        status(&lab)?;
        println!("\nfiles: {}", lab.state_dir().display());
        lab.keep();
        Ok(())
    }
}

fn status(lab: &Lab) -> Result<()> {
    println!("{:<9} {:<12} {:<14} {:<6} runs", "HOST", "IPV4", "IPV6", "LINK");
    for line in lab.status()? {
        let programs: Vec<String> = line
            .programs
            .iter()
            .map(|(name, pid)| match pid {
                Some(pid) => format!("{name} ({pid})"),
                None => format!("{name} (dead)"),
            })
            .collect();
        let link = if line.plugged_in { "up" } else { "cut" };
        let note = if line.note.is_empty() { String::new() } else { format!(" - {}", line.note) };
        let text = format!(
            "{:<9} {:<12} {:<14} {link:<6} {}{note}",
            line.host,
            line.host.ipv4().to_string(),
            line.host.ipv6().to_string(),
            programs.join(", "),
        );
        println!("{}", text.trim_end());
    }
    Ok(())
}
