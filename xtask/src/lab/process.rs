//! The lab's long-running programs: started in a namespace, known by a file with their pid.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::netns;
use crate::{shell, wait};

/// How long a program may take until it serves.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long a program may take to end when told to.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Lines of a log that an error quotes.
const QUOTED_LINES: usize = 12;

/// A program of a host. Made anew whenever it is needed: what it is doing stands in the kernel.
pub struct Program {
    pub(super) name: &'static str,
    pub(super) namespace: String,
    /// The whole command, with what enters the namespace.
    pub(super) command: Command,
    pub(super) pid_file: PathBuf,
    pub(super) log: PathBuf,
    /// Whether it serves.
    pub(super) ready: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Program {
    /// Its name: `ballast`, `nginx`, `echo`, `etcd` or `postgres`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where it logs to, restart after restart.
    pub fn log(&self) -> &std::path::Path {
        &self.log
    }

    /// Its process, if it runs.
    pub fn pid(&self) -> Option<Pid> {
        let pid = fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()?;
        // The number may be another process's by now, but not one in this namespace.
        netns::holds(netns::id(&self.namespace)?, pid).then(|| Pid::from_raw(pid))
    }

    /// Starts it, if it does not run, and does not wait until it serves.
    pub fn spawn(&mut self) -> Result<()> {
        if self.pid().is_some() {
            return Ok(());
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start `{}`", shell::display(&self.command)))?;
        // `nsenter` and `setpriv` become the program, so the number stays.
        fs::write(&self.pid_file, child.id().to_string())
            .with_context(|| format!("write {}", self.pid_file.display()))?;
        // Somebody must collect it when it ends; after this process that is init.
        thread::spawn(move || child.wait());
        Ok(())
    }

    /// Waits until it serves; when it ends instead, the error quotes its log.
    pub fn wait_ready(&self) -> Result<()> {
        let what = format!("{} to serve", self.name);
        let outcome = wait::until(START_LIMIT, &what, || {
            if (self.ready)() {
                return Ok(Some(()));
            }
            // `nsenter` enters the namespace only after a moment.
            let pid = fs::read_to_string(&self.pid_file).unwrap_or_default();
            let state =
                fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            let state = state.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]);
            if matches!(state, None | Some(b'Z')) {
                bail!("{} ended", self.name);
            }
            Ok(None)
        });
        outcome.with_context(|| {
            let quote = quote(&self.log);
            format!("start {}; its log {} ends with:\n{quote}", self.name, self.log.display())
        })
    }

    /// Starts it and waits until it serves.
    pub fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Tells it to end and waits until it has.
    pub fn stop(&self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    /// Kills it, without a chance to clear up, and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    fn end(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        self.signal(signal)?;
        wait::until(STOP_LIMIT, &format!("{} to end", self.name), || {
            Ok(netns::has_ended(pid).then_some(()))
        })
    }

    /// Sends it a signal. It must run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid() else { bail!("{} does not run", self.name) };
        kill(pid, signal).with_context(|| format!("send {signal} to {}", self.name))
    }
}

fn quote(log: &std::path::Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(QUOTED_LINES)..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
