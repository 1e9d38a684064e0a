//! `cargo xtask drill`: what goes down, and what the clients see of it, beside the classic stack.
//!
//! Each fault is played several times in a lab with two balancers. Clients ask meanwhile, and everything is
//! measured at the clients: requests that failed, the longest time in which nobody got through, and which
//! of the connections that were open broke. A host that was cut off or stopped comes back, and that is
//! measured too.

use std::{
    collections::BTreeMap,
    fs,
    num::NonZero,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use nix::sys::signal::Signal;

use crate::{
    build, interrupt,
    lab::{self, Balancers, Lab, Options, topology::FLOATING_V4},
    run::status::Status,
    setup, shell, wait,
};

mod clients;
mod download;
mod report;

use self::{
    clients::{Clients, Seen},
    report::Row,
};

/// `cargo xtask drill …`
pub struct Settings {
    /// Name of the lab. There is none of this name yet.
    pub name: String,
    /// How often each fault is played.
    pub repeats: usize,
    /// What is measured, in this order.
    pub stacks: Vec<Stack>,
    /// What happens; everything if empty.
    pub faults: Vec<Fault>,
    /// Between two advertisements of ballast, in milliseconds, from 10 on.
    pub interval_ms: u16,
}

/// How long the clients ask before something happens.
const BEFORE: Duration = Duration::from_secs(1);

/// How long they ask after it.
const AFTER: Duration = Duration::from_secs(6);

/// How long all CPUs are busy.
const BUSY: Duration = Duration::from_mins(1);

/// How long the programs of a balancer stand still.
const PAUSE: Duration = Duration::from_secs(1);

/// How long everything may take to be well again.
const WELL_LIMIT: Duration = Duration::from_mins(1);

/// What carries the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stack {
    /// ballast on two nodes.
    Ballast,
    /// nginx and keepalived.
    Classic,
}

impl Stack {
    const fn name(self) -> &'static str {
        match self {
            Self::Ballast => "ballast",
            Self::Classic => "classic stack",
        }
    }
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// An app server's programs are killed.
    AppKilled,
    /// An app server's link is cut.
    AppSilent,
    /// The link of the active balancer is cut.
    BalancerOff,
    /// The active balancer is stopped in order.
    BalancerStopped,
    /// The active balancer's program is killed and started again.
    DaemonKilled,
    /// The active balancer's programs stand still for a second, and then go on.
    Paused,
    /// The other balancer's programs do.
    BackupPaused,
    /// Every CPU has more to do than it can.
    Busy,
}

const FAULTS: [Fault; 8] = [
    Fault::AppKilled,
    Fault::AppSilent,
    Fault::BalancerOff,
    Fault::BalancerStopped,
    Fault::DaemonKilled,
    Fault::Paused,
    Fault::BackupPaused,
    Fault::Busy,
];

impl Fault {
    const fn title(self) -> &'static str {
        match self {
            Self::AppKilled => "an app server, killed",
            Self::AppSilent => "an app server, silent (link cut)",
            Self::BalancerOff => "the active balancer, power off (link cut)",
            Self::BalancerStopped => "the active balancer, orderly stop",
            Self::DaemonKilled => "the balancer's program, kill -9 and restart",
            Self::Paused => "the active balancer's programs, still for 1 s",
            Self::BackupPaused => "the other balancer's programs, still for 1 s",
            Self::Busy => "nothing, but all CPUs are busy for 60 s",
        }
    }

    /// What the undoing of it is called, where that is worth measuring.
    const fn return_title(self) -> Option<&'static str> {
        match self {
            Self::AppKilled
            | Self::AppSilent
            | Self::DaemonKilled
            | Self::Paused
            | Self::BackupPaused
            | Self::Busy => None,
            Self::BalancerOff => Some("  its link is back"),
            Self::BalancerStopped => Some("  it is started again"),
        }
    }
}

/// Plays it all and prints the table. The code is 0 if ballast broke no connection and failed no request where it
/// must not.
pub fn run(settings: &Settings) -> Result<ExitCode> {
    setup::setup()?;
    println!("build");
    let ballast = build::ballast()?;
    interrupt::install()?;
    let mut tables = Vec::new();
    let mut faults = Vec::new();
    for &stack in &settings.stacks {
        println!("{}: lab up", stack.name());
        let site = Site::up(stack, settings, ballast.clone())?;
        let rows = site.play(settings)?;
        site.lab.down()?;
        if stack == Stack::Ballast {
            faults = report::faults(&rows);
        }
        tables.push((stack.name(), rows));
    }
    print!("\n{}", report::table(&tables, settings.repeats));
    for fault in &faults {
        println!("FAILED: {fault}");
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A lab with two balancers of one kind.
struct Site {
    lab: Lab,
    stack: Stack,
}

impl Site {
    fn up(stack: Stack, settings: &Settings, ballast: std::path::PathBuf) -> Result<Self> {
        let balancers = match stack {
            Stack::Ballast => Balancers::Both,
            Stack::Classic => Balancers::None,
        };
        let lab = Lab::up(Options {
            name: settings.name.clone(),
            balancers,
            ballast: Some(ballast),
            config: Some(config(settings.interval_ms)),
            ..Options::default()
        })?;
        if !lab.is_owned() {
            bail!("lab `{}` stands already: take it down, or give another name", settings.name);
        }
        let site = Self { lab, stack };
        if stack == Stack::Classic {
            for host in BALANCERS {
                site.lab.start_classic(host)?;
            }
        }
        Ok(site)
    }

    fn play(&self, settings: &Settings) -> Result<Vec<Row>> {
        let repeats = settings.repeats;
        let mut rows = Vec::new();
        let wanted = |fault: &Fault| settings.faults.is_empty() || settings.faults.contains(fault);
        for fault in FAULTS.into_iter().filter(wanted) {
            let mut happened = Vec::new();
            let mut undone = Vec::new();
            for repeat in 0..repeats {
                println!("{}: {} ({} of {repeats})", self.stack.name(), fault.title(), repeat + 1);
                let active = self.until_well()?;
                happened.push(self.measure("it", || self.make(fault, active))?);
                let undo = || self.undo(fault, active);
                if let Some(title) = fault.return_title() {
                    undone.push(self.measure(title.trim(), undo)?);
                } else {
                    undo()?;
                }
            }
            rows.push(Row { title: fault.title(), seen: happened });
            if let Some(title) = fault.return_title() {
                rows.push(Row { title, seen: undone });
            }
        }
        Ok(rows)
    }

    /// What the clients see of something.
    fn measure(&self, title: &str, happens: impl FnOnce() -> Result<()>) -> Result<Seen> {
        let clients = Clients::start(self.lab.host("client"), Some(self.lab.big_file()?))?;
        let before = self.not_forwarded();
        let begin_ms = uptime_ms()?;
        thread::sleep(BEFORE);
        let outcome = happens();
        thread::sleep(AFTER);
        let after = self.not_forwarded();
        let seen = clients.stop()?;
        println!("  {title}: {}", report::line(&seen));
        for (host, after) in &after {
            let line = before.get(host).and_then(|before| report::not_forwarded(before, after));
            if let Some(line) = line {
                println!("    {host}: {line}");
            }
        }
        if self.stack == Stack::Ballast && (outcome.is_err() || !report::is_clean(&seen)) {
            for host in BALANCERS {
                let mut command = self.lab.ballast_command(host, "events");
                let events = shell::output(command.arg("--json")).unwrap_or_default();
                for line in report::roles(&events, begin_ms) {
                    println!("    {host}: {line}");
                }
            }
        }
        interrupt::check()?;
        outcome?;
        Ok(seen)
    }

    /// Packets that were not forwarded, by reason, of each balancer that says so.
    fn not_forwarded(&self) -> BTreeMap<&'static str, BTreeMap<String, u64>> {
        let hosts = BALANCERS.into_iter().filter(|_| self.stack == Stack::Ballast);
        hosts
            .filter_map(|host| {
                let status = Status::of_host(&self.lab, host).ok()?;
                Some((host, status.reasons().clone()))
            })
            .collect()
    }

    /// Waits until both balancers and all servers are well; gives the balancer that has the address.
    fn until_well(&self) -> Result<&'static str> {
        let active = wait::until(WELL_LIMIT, "one balancer to have the floating address", || {
            let holders = self.holders()?;
            Ok(if let [one] = holders[..] { Some(one) } else { None })
        })?;
        if self.stack == Stack::Ballast {
            wait::until(WELL_LIMIT, "both balancers to find all app servers well", || {
                for host in BALANCERS {
                    let serving = Status::of_host(&self.lab, host)?.serving("web");
                    if serving.is_none_or(|names| names.len() < 3) {
                        return Ok(None);
                    }
                }
                Ok(Some(()))
            })?;
        }
        let clients = || -> Result<Seen> {
            let clients = Clients::start(self.lab.host("client"), None)?;
            thread::sleep(BEFORE);
            clients.stop()
        };
        wait::until(WELL_LIMIT, "all requests to be answered", || {
            let seen = clients()?;
            Ok((seen.failed == 0 && seen.broken == 0).then_some(()))
        })?;
        Ok(active)
    }

    /// The balancers that have the floating address on their interface.
    fn holders(&self) -> Result<Vec<&'static str>> {
        let mut holders = Vec::new();
        for host in BALANCERS {
            let mut command = self.lab.host(host).command("ip");
            command.args(["-o", "-4", "address", "show", "dev", "eth0"]);
            if shell::output(&mut command)?.contains(&format!(" {FLOATING_V4}/")) {
                holders.push(host);
            }
        }
        Ok(holders)
    }

    fn make(&self, fault: Fault, active: &'static str) -> Result<()> {
        match (fault, self.stack) {
            (Fault::AppKilled, _) => self.lab.kill(APP),
            (Fault::AppSilent, _) => self.lab.cut(APP),
            (Fault::BalancerOff, _) => self.lab.cut(active),
            (Fault::BalancerStopped, Stack::Ballast) => {
                shell::output(&mut self.lab.ballast_command(active, "release"))
                    .context("hand the addresses over")?;
                self.lab.daemon(active).stop()
            }
            (Fault::BalancerStopped, Stack::Classic) => self.lab.stop_classic(active),
            (Fault::DaemonKilled, Stack::Ballast) => {
                self.lab.daemon(active).signal(Signal::SIGKILL)?;
                wait::until(WELL_LIMIT, "the daemon to be gone", || {
                    Ok(self.lab.daemon(active).pid().is_none().then_some(()))
                })?;
                self.lab.start(active)
            }
            (Fault::Paused, _) => self.pause(active),
            (Fault::BackupPaused, _) => {
                let other = BALANCERS.into_iter().find(|host| *host != active);
                self.pause(other.context("find the other balancer")?)?;
                self.still(active)
            }
            (Fault::Busy, _) => {
                busy(BUSY)?;
                self.still(active)
            }
            (Fault::DaemonKilled, Stack::Classic) => {
                self.lab.kill_classic_nginx(active)?;
                self.lab.start_classic(active)
            }
        }
    }

    /// Lets the programs of a balancer stand still for a moment.
    fn pause(&self, host: &str) -> Result<()> {
        let signal = |signal| match self.stack {
            Stack::Ballast => self.lab.daemon(host).signal(signal),
            Stack::Classic => self.lab.signal_classic(host, signal),
        };
        signal(Signal::SIGSTOP)?;
        thread::sleep(PAUSE);
        signal(Signal::SIGCONT)
    }

    /// The address has not moved from a balancer that was only slow.
    fn still(&self, active: &str) -> Result<()> {
        let holders = self.holders()?;
        if holders != [active] {
            bail!("the address has moved from {active}, which was only slow: {holders:?}");
        }
        Ok(())
    }

    fn undo(&self, fault: Fault, active: &'static str) -> Result<()> {
        match (fault, self.stack) {
            (Fault::AppKilled, _) => self.lab.start(APP),
            (Fault::AppSilent, _) => self.lab.heal(APP),
            (Fault::BalancerOff, _) => self.lab.heal(active),
            (Fault::BalancerStopped, Stack::Ballast) => self.lab.start(active),
            (Fault::BalancerStopped, Stack::Classic) => self.lab.start_classic(active),
            (Fault::DaemonKilled | Fault::Paused | Fault::BackupPaused | Fault::Busy, _) => Ok(()),
        }
    }
}

/// Milliseconds since the machine started, as the daemons count them.
fn uptime_ms() -> Result<u64> {
    let text = fs::read_to_string("/proc/uptime").context("read /proc/uptime")?;
    let seconds: f64 = text.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(Duration::from_secs_f64(seconds).as_millis() as u64)
}

/// The lab's configuration, with this time between two advertisements.
fn config(interval_ms: u16) -> String {
    let wanted = format!("interval = \"{interval_ms}ms\"");
    lab::with_key(&lab::default_config()).replace("interval = \"100ms\"", &wanted)
}

/// Keeps every CPU busy with two threads that do nothing else.
fn busy(how_long: Duration) -> Result<()> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 * thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let end = Instant::now() + how_long;
        let mut outcome = Ok(());
        while Instant::now() < end && outcome.is_ok() {
            thread::sleep(Duration::from_millis(100));
            outcome = interrupt::check();
        }
        stop.store(true, Ordering::Relaxed);
        outcome
    })
}

/// The app server that fails.
const APP: &str = "app-02";

const BALANCERS: [&str; 2] = ["lb-01", "lb-02"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_configuration() {
        assert!(config(10).contains("\ninterval = \"10ms\"\n"));
        assert!(!config(10).contains("interval = \"100ms\""));
    }
}
