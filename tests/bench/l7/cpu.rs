//! CPU time of a process.
//!
//! `utime` and `stime` of `/proc/PID/stat` (proc(5)): all of its threads, those that have ended
//! included, and the same of its children. The kernel counts to `stime` also what it does for packets
//! while the process sends; what it does for those that arrive falls on whoever has sent them, as
//! everything here is one machine.

use std::fs;

use anyhow::{Context as _, ensure};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Microseconds so far, of the process and its children.
pub(super) fn time_us(process: Pid) -> anyhow::Result<f64> {
    let file = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let ticks = ticks(&stat).with_context(|| format!("understand {file}"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK).context("ask for the ticks of a second")?;
    let per_second = per_second.context("the kernel does not say what a tick is")?;
    let mut sum = ticks as f64 * 1e6 / per_second as f64;
    for child in children(process)? {
        sum += time_us(child)?;
    }
    Ok(sum)
}

/// The children of a process.
pub(super) fn children(process: Pid) -> anyhow::Result<Vec<Pid>> {
    let mut children = Vec::new();
    let tasks = format!("/proc/{process}/task");
    for task in fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))? {
        let file = task.with_context(|| format!("list {tasks}"))?.path().join("children");
        // A thread may have ended meanwhile.
        let text = fs::read_to_string(file).unwrap_or_default();
        children
            .extend(text.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw));
    }
    Ok(children)
}

/// `utime` and `stime` together. The name of the program, in brackets, may hold anything.
fn ticks(stat: &str) -> anyhow::Result<u64> {
    let (_, rest) = stat.rsplit_once(") ").context("find the end of the name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // The third field of all is the first of these.
    ensure!(fields.len() > 12, "it has too few fields");
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_is_no_obstacle() {
        let stat = "7 (a) S (b) S 1 7 7 0 -1 4194560 10 20 0 0 123 45 6 7 20 0 3 0 99";
        assert_eq!(ticks(stat).unwrap(), 168);
        assert!(ticks("7 (a) S 1 2").is_err());
        assert!(ticks("").is_err());
    }
}
