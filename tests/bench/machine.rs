//! What the figures were measured on.

use std::{fs, mem, process::Command, thread};

use anyhow::{Context as _, anyhow};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde::Serialize;

/// The machine, as far as it matters to the figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// As the CPU calls itself.
    pub(crate) cpu: String,
    /// Release of the kernel.
    pub(crate) kernel: String,
    /// Whether the kernel compiles BPF programs. Without, all figures mean little.
    pub(crate) jit: bool,
}

impl Machine {
    /// This machine.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
        let cpu = cpuinfo
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.trim() == "model name")
            .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned());
        let uname = Command::new("uname").arg("-r").output().context("run uname")?;
        // Where the file is missing, the kernel was built to compile always.
        let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
            .map_or(true, |text| text.trim() != "0");
        Ok(Self { cpu, kernel: String::from_utf8_lossy(&uname.stdout).trim().to_owned(), jit })
    }
}

/// The CPUs that this thread may run on, in order.
pub(crate) fn cpus() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("ask for the CPUs")?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect())
}

/// Runs `work` in a thread that has these CPUs; so have the programs that it starts.
pub(crate) fn on_cpus<T: Send>(
    cpus: &[usize],
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let pinned = || {
        let mut set = CpuSet::new();
        cpus.iter().try_for_each(|&cpu| set.set(cpu)).context("name the CPUs")?;
        sched_setaffinity(Pid::from_raw(0), &set).context("choose the CPUs")?;
        work()
    };
    thread::scope(|scope| scope.spawn(pinned).join())
        .map_err(|_| anyhow!("the thread of the CPUs {cpus:?} panicked"))?
}

/// Keeps this thread on the CPU that it runs on, so that per-CPU memory and caches stay its own.
pub(crate) fn stay_on_this_cpu() -> anyhow::Result<()> {
    // SAFETY: the set is plain memory, for which zeros are valid, and outlives the calls.
    let result = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        let cpu = usize::try_from(libc::sched_getcpu()).context("ask for the CPU")?;
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, mem::size_of_val(&set), &raw const set)
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context("stay on one CPU");
    }
    Ok(())
}
