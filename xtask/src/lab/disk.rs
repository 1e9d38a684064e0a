//! A disk for the data of one database server, which can be full.
//!
//! It is a `tmpfs`. Full is one whose size is set to what is used: nothing need be written for that, and the
//! memory stays free.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::statvfs::statvfs;

use super::{HostName, Lab, find, paths, postgres, topology::Role};
use crate::shell;

/// What it holds when it is not full.
const BYTES: u64 = 4 << 30;

/// Tries to set a size that the server outgrows meanwhile.
const TRIES: u32 = 50;

impl Lab {
    /// Moves the data of a database server, which must not run, to a disk of their own. Gives their folder.
    pub fn give_disk(&self, host: &str) -> Result<PathBuf> {
        let host = database(host)?;
        ensure!(
            self.programs(host).iter().all(|program| program.pid().is_none()),
            "{host} runs: its data cannot be moved"
        );
        let (disk, data) = (disk(self, host), postgres::data(self, host));
        paths::make_dir(&disk)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("mode=0700,size={BYTES}"), "tmpfs"]).arg(&disk);
        shell::output(&mut mount).with_context(|| format!("mount a disk for {host}"))?;
        postgres::give_to_postgres(&disk)?;
        let moved = disk.join("data");
        shell::output(Command::new("cp").arg("-a").arg(&data).arg(&moved)).context("copy data")?;
        paths::remove(&data)?;
        std::os::unix::fs::symlink(&moved, &data).context("lead to the disk")?;
        Ok(moved)
    }

    /// Lets a disk that was [given](Self::give_disk) take no further byte.
    pub fn fill_disk(&self, host: &str) -> Result<()> {
        let disk = disk(self, database(host)?);
        for _ in 0..TRIES {
            let stat = statvfs(&disk).with_context(|| format!("look at {}", disk.display()))?;
            let used = (stat.blocks() - stat.blocks_free()) * stat.fragment_size();
            // It is refused if more is used by now.
            if resize(&disk, used).is_ok() {
                return Ok(());
            }
        }
        bail!("the data on {} grow too fast", disk.display())
    }

    /// Makes room on it again.
    pub fn free_disk(&self, host: &str) -> Result<()> {
        resize(&disk(self, database(host)?), BYTES)
    }
}

fn database(host: &str) -> Result<HostName> {
    let host = find(host)?;
    ensure!(host.role() == Role::Postgres, "{host} has no database");
    Ok(host)
}

fn disk(lab: &Lab, host: HostName) -> PathBuf {
    postgres::data(lab, host).with_extension("disk")
}

fn resize(disk: &Path, bytes: u64) -> Result<()> {
    let mut mount = Command::new("mount");
    mount.args(["-o", &format!("remount,size={bytes}")]).arg(disk);
    shell::output(&mut mount).map(drop)
}

/// Takes away all disks of a lab, whose processes are gone.
pub(super) fn remove_all(lab: &str) -> Result<()> {
    let folder = paths::data_dir(lab);
    let mounts = fs::read_to_string("/proc/self/mounts").context("look what is mounted")?;
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1).map(Path::new));
    for disk in places.filter(|place| place.starts_with(&folder)) {
        shell::output(Command::new("umount").arg("--lazy").arg(disk))
            .context("take a disk away")?;
    }
    Ok(())
}
