//! Taking a lab down, whatever state it is in.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};

use super::{
    check_privilege, disk, netns,
    options::check_name,
    paths::{self, make_dir, remove},
    postgres,
    topology::{HOSTS, Role},
};
use crate::bpffs;

/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Takes down the lab `name`: processes, namespaces, pins, files. Nothing may be left of it, and
/// there is nothing wrong with a lab of which little or nothing is there.
pub fn down(name: &str) -> Result<()> {
    check_name(name)?;
    check_privilege()?;
    let _lock = Lock::take(name)?;
    clear(name)
}

pub(super) fn clear(name: &str) -> Result<()> {
    let namespaces = paths::namespaces(name);
    kill_all(&namespaces.iter().filter_map(|name| netns::id(name)).collect())?;
    for host in HOSTS.into_iter().filter(|host| host.role() == Role::Postgres) {
        postgres::clear_shared_memory(&paths::data_dir(name).join(host.as_str()));
    }
    for namespace in &namespaces {
        netns::delete(namespace)?;
        // Pins of balancers, and what a killed `lab up` may have left.
        remove(&Path::new(bpffs::MOUNT_POINT).join(namespace))?;
    }
    postgres::clear_shared_memory(&paths::draft(name, "postgres"));
    for what in ["postgres", "big"] {
        remove(&paths::draft(name, what))?;
    }
    disk::remove_all(name)?;
    remove(&paths::data_dir(name))?;
    remove(&paths::run_dir(name))
}

/// Kills all processes in the namespaces and waits until they are gone.
///
/// Never those of the machine itself: it may have been made one host of a lab.
pub(super) fn kill_all(namespaces: &HashSet<netns::Id>) -> Result<()> {
    if namespaces.iter().any(|id| netns::is_the_machines(*id)) {
        bail!(
            "this machine itself is a host of the lab, and everything on it would be killed; \
             `systemctl stop ballast-lab` ends what the lab runs here"
        );
    }
    // No check for interrupts: this is what an interrupt leads to.
    let end = Instant::now() + KILL_LIMIT;
    let mut dying = HashSet::new();
    loop {
        // Looked up again each time: a process may start another before it dies.
        let found = netns::processes(namespaces);
        for &pid in &found {
            // It may have ended by itself.
            let _ = kill(pid, Signal::SIGKILL);
            dying.insert(pid);
        }
        // A process leaves its namespace before it closes its sockets.
        dying.retain(|&pid| !netns::has_ended(pid));
        if found.is_empty() && dying.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("processes {dying:?} did not die in {KILL_LIMIT:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Keeps a second `up` or `down` of the same lab waiting.
pub(super) struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for it.
    pub(super) fn take(name: &str) -> Result<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let path = paths::run_dir(name).with_extension("lock");
        loop {
            make_dir(Path::new(paths::RUN))?;
            let file = match File::create(&path) {
                // The folder went away in between, with the last lab.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                file => file.with_context(|| format!("open {}", path.display()))?,
            };
            file.lock().with_context(|| format!("lock {}", path.display()))?;
            // The one who had it may have removed the file meanwhile.
            let current = fs::metadata(&path).map(|meta| meta.ino()).ok();
            if current == file.metadata().map(|meta| meta.ino()).ok() {
                return Ok(Self { _file: file, path });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while it is held, so that nobody else can hold what is removed. The folders go
        // with the last lab; they are not empty before.
        let _ = fs::remove_file(&self.path);
        for folder in [paths::RUN, paths::DATA] {
            let _ = fs::remove_dir(folder);
        }
    }
}
