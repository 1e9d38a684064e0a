//! One daemon for a socket: a lock file beside it, with the process's number inside. The lock goes
//! with the process, however it ends.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};
use tokio::time::sleep;

/// How often the lock is tried: a daemon that runs is given a second to be gone.
const TRIES: u32 = 100;

/// The time between two tries.
const PERIOD: Duration = Duration::from_millis(10);

/// Why a lock was not taken.
enum Refused {
    /// A process has it.
    Held(String),
    /// It could not be tried.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Held while the daemon runs.
#[derive(Debug)]
pub(super) struct Lock(Flock<File>);

impl Lock {
    /// Takes the lock of `socket`, or says who has it. A socket that a dead daemon left is removed.
    ///
    /// A daemon that was killed has the lock until the kernel has cleared up after it, which may be a moment
    /// after whoever waited for its end was told of that: so this waits a little.
    pub(super) async fn take(socket: &Path) -> anyhow::Result<Self> {
        let mut left = TRIES;
        loop {
            left -= 1;
            match Self::try_take(socket) {
                Err(Refused::Held(_)) if left > 0 => sleep(PERIOD).await,
                Err(Refused::Held(message)) => bail!(message),
                Err(Refused::Failed(error)) => return Err(error),
                Ok(lock) => return Ok(lock),
            }
        }
    }

    fn try_take(socket: &Path) -> Result<Self, Refused> {
        let path = path(socket);
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        let mut pid = String::new();
        // What stands there is only for the message.
        let _ = file.read_to_string(&mut pid);
        let Ok(mut lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            return Err(Refused::Held(format!(
                "another ballast runs (process {}, socket {}): stop it, or give this one paths of \
                 its own",
                pid.trim(),
                socket.display()
            )));
        };
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut lock).with_context(|| format!("write {}", path.display()))?;
        match fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let message = format!("remove the stale socket {}", socket.display());
                Err(anyhow::Error::from(error).context(message).into())
            }
            _ => Ok(Self(lock)),
        }
    }

    /// Removes the socket and gives the lock back. The file stays: removing it could take it from
    /// under a daemon that has just opened it.
    pub(super) fn release(self, socket: &Path) {
        let _ = fs::remove_file(socket);
        drop(self.0);
    }
}

/// The process that holds the lock of `socket`, if one does.
pub(super) fn holder(socket: &Path) -> Option<String> {
    let mut file = File::open(path(socket)).ok()?;
    let mut pid = String::new();
    let _ = file.read_to_string(&mut pid);
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err().then(|| pid.trim().to_owned())
}

fn path(socket: &Path) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(".lock");
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch;

    #[tokio::test(start_paused = true)]
    async fn only_one_holds_it_and_the_other_learns_who() {
        let directory = scratch::Directory::new("lock");
        let socket = directory.path().join("ballast.sock");
        assert_eq!(holder(&socket), None);
        fs::write(&socket, "stale").unwrap();
        let lock = Lock::take(&socket).await.unwrap();
        assert!(!socket.exists(), "the stale socket is gone");
        let pid = std::process::id().to_string();
        assert_eq!(holder(&socket), Some(pid.clone()));
        let error = Lock::take(&socket).await.unwrap_err().to_string();
        assert!(error.contains(&format!("another ballast runs (process {pid}")), "{error}");
        let waiting = Lock::take(&socket);
        let ending = async {
            sleep(PERIOD * TRIES / 2).await;
            lock.release(&socket);
        };
        let (lock, ()) = tokio::join!(waiting, ending);
        lock.unwrap().release(&socket);
        assert_eq!(holder(&socket), None);
        Lock::take(&socket).await.unwrap();
    }
}
