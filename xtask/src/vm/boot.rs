//! Running the virtual machine.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::{prctl, signal::Signal};

use super::{
    console::{Progress, end_of},
    packages::Packages,
};
use crate::{interrupt, shell};

/// How long the machine may run; it needs about a minute when it has two cores for itself.
const LIMIT: Duration = Duration::from_mins(30);

/// Between two looks at whether the user wants to stop.
const PERIOD: Duration = Duration::from_millis(100);

/// The kernel's options. Without watchdogs: on a busy machine they would take slowness for a lock-up.
const KERNEL_OPTIONS: &str = "console=ttyS0 ignore_loglevel oops=panic panic=-1 nowatchdog \
     rcupdate.rcu_cpu_stall_suppress=1 tsc=unstable random.trust_cpu=on";

/// What the machine is given.
pub(super) struct Machine<'a> {
    /// With the kernel and the emulator.
    pub(super) packages: &'a Packages,
    /// The archive of its file system.
    pub(super) archive: &'a Path,
    /// Where the kernel's lines go.
    pub(super) log: &'a Path,
}

impl Machine<'_> {
    /// By emulation, also where /dev/kvm is: the same everywhere, and it is fast enough.
    fn command(&self) -> Command {
        let mut qemu = self.packages.qemu();
        qemu.args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "3G"]);
        qemu.args(["-nodefaults", "-no-reboot", "-display", "none"]);
        qemu.arg("-kernel").arg(self.packages.kernel());
        qemu.arg("-initrd").arg(self.archive);
        qemu.args(["-append", KERNEL_OPTIONS]);
        let mut log = std::ffi::OsString::from("file:");
        log.push(self.log);
        qemu.arg("-serial").arg(log);
        qemu.args(["-serial", "stdio"]);
        qemu
    }

    /// Runs it until it ends, and prints what the tests print.
    pub(super) fn run(&self) -> Result<Progress> {
        let mut command = self.command();
        let mut running = Running::start(&mut command)?;
        let stdout = running.0.stdout.take().context("read the machine's serial port")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = Vec::new();
            // What a test prints need not be text.
            while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let end = Instant::now() + LIMIT;
        let mut progress = Progress::default();
        loop {
            match lines.recv_timeout(PERIOD) {
                Ok(line) if progress.take(&line) => println!("{line}"),
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            interrupt::check()?;
            if Instant::now() >= end {
                bail!(
                    "the machine was still running after {} minutes ({}); the kernel's last \
                     lines, all of which are in {}:\n{}",
                    LIMIT.as_secs() / 60,
                    progress.running.as_deref().unwrap_or("between two tests"),
                    self.log.display(),
                    end_of(&read(self.log)),
                );
            }
        }
        let status = running.0.wait().context("wait for qemu")?;
        if !status.success() {
            bail!("`{}` ended with {status}", shell::display(&command));
        }
        Ok(progress)
    }
}

/// A file's text, whatever its bytes.
pub(super) fn read(file: &Path) -> String {
    fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The emulator; it ends with this value.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        // Ctrl-C is noted here, and ends the machine from here.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        // SAFETY: between fork and exec nothing but one system call is made.
        unsafe {
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command.spawn().context("start qemu")?;
        Ok(Self(child))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, or is of no use any more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
