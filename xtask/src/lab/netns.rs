//! Network namespaces, and the processes in them.

use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    sched::{CloneFlags, setns},
    unistd::Pid,
};

use crate::shell;

/// Identity of a namespace: device and inode number of its file.
pub(super) type Id = (u64, u64);

/// The file that keeps the namespace `name` alive.
pub(super) fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// The namespace's identity, if it exists.
///
/// Half of a namespace is an empty file with nothing mounted on it; it does not count.
pub(super) fn id(name: &str) -> Option<Id> {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    let path = path(name);
    let kind = nix::sys::statfs::statfs(&path).ok()?.filesystem_type();
    if i128::from(kind.0) != i128::from(NSFS_MAGIC) {
        return None;
    }
    identity(&path)
}

fn identity(path: &Path) -> Option<Id> {
    path.metadata().ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Identity of the namespace that this process is in.
pub(super) fn own() -> Option<Id> {
    identity(Path::new("/proc/self/ns/net"))
}

/// Whether it is the namespace of the machine itself: that of its first process.
pub(super) fn is_the_machines(id: Id) -> bool {
    identity(Path::new("/proc/1/ns/net")) == Some(id)
}

/// Gives the namespace that this process is in the name `name`, if it has not that name already.
pub(super) fn name_own(name: &str) -> Result<()> {
    match id(name) {
        Some(named) if Some(named) == own() => Ok(()),
        Some(_) => bail!("{name} is the name of another network namespace: a lab stands here"),
        None => {
            delete(name)?;
            let pid = std::process::id().to_string();
            shell::output(Command::new("ip").args(["netns", "attach", name, &pid])).map(drop)
        }
    }
}

/// Makes the namespace `name`.
pub(super) fn add(name: &str) -> Result<()> {
    shell::output(Command::new("ip").args(["netns", "add", name]))?;
    Ok(())
}

/// Removes the namespace `name`, if it is there.
pub(super) fn delete(name: &str) -> Result<()> {
    if !path(name).exists() {
        return Ok(());
    }
    if id(name).is_none() {
        return fs::remove_file(path(name)).with_context(|| format!("remove namespace {name}"));
    }
    shell::output(Command::new("ip").args(["netns", "del", name]))?;
    Ok(())
}

/// A command that will run in the namespace `name`.
///
/// Not by `ip netns exec`: that mounts a new `/sys`, without the BPF file system.
pub(super) fn command(name: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path(name).display())).arg("--").arg(program);
    command
}

/// Runs `work` in a thread that is in the namespace `name`; sockets that it opens stay there.
pub(super) fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(path(name)).with_context(|| format!("open namespace {name}"))?;
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("enter namespace {name}"))?;
            Ok(work())
        });
        thread.join().map_err(|_| anyhow!("the thread in namespace {name} panicked"))?
    })
}

/// All processes in one of these namespaces, except this one and those that it descends from.
pub(super) fn processes(namespaces: &HashSet<Id>) -> Vec<Pid> {
    let spared = ancestors();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| !spared.contains(pid))
        .filter(|pid| {
            identity(Path::new(&format!("/proc/{pid}/ns/net")))
                .is_some_and(|id| namespaces.contains(&id))
        })
        .map(Pid::from_raw)
        .collect()
}

/// Whether the process lives, is no zombie, and is in the namespace.
pub(super) fn holds(namespace: Id, pid: i32) -> bool {
    // A zombie has left its namespaces.
    identity(Path::new(&format!("/proc/{pid}/ns/net"))) == Some(namespace)
}

/// Whether all of the process has ended, so that nothing is open or locked by it any more.
///
/// A process whose first thread has left its namespaces may still have others that end.
pub(super) fn has_ended(pid: Pid) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    // A thread becomes a zombie when it has closed its files.
    threads.filter_map(Result::ok).all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat"));
        let state = stat.as_deref().ok().and_then(|stat| stat.rsplit_once(") "));
        state.is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
    })
}

/// This process and those that it descends from: a shell inside the lab may take the lab down.
fn ancestors() -> HashSet<i32> {
    let mut found = HashSet::new();
    let mut pid = std::process::id() as i32;
    while pid > 0 && found.insert(pid) {
        pid = parent(pid).unwrap_or(0);
    }
    found
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "PID (NAME) STATE PPID …"; the name may hold spaces and parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_and_its_parents_are_spared() {
        let found = ancestors();
        assert!(found.contains(&(std::process::id() as i32)));
        assert!(found.contains(&nix::unistd::getppid().as_raw()));
        let own = own().unwrap();
        assert!(holds(own, std::process::id() as i32));
        let others = processes(&HashSet::from([own]));
        assert!(!others.iter().any(|pid| found.contains(&pid.as_raw())));
    }

    #[test]
    fn a_process_has_ended_when_all_its_threads_have() {
        let own = std::process::id() as i32;
        assert!(!has_ended(Pid::from_raw(own)));
        let mut child = Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        // A zombie until it is waited for.
        while !has_ended(pid) {
            thread::yield_now();
        }
        child.wait().unwrap();
        assert!(has_ended(pid));
    }

    #[test]
    fn a_namespace_that_is_not_there_has_no_identity() {
        assert_eq!(id("ballast-no-such-namespace"), None);
    }
}
