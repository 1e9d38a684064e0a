//! The files that this process may have open: a connection through the proxy needs two.
//!
//! Clients may not have all of them. A daemon without a file could not probe its backends, and would take them
//! for dead; nor could it reach one for a client that it has. So the last ones are kept: some for connections
//! to backends and everything else, and the last of them for everything but the proxy. A worker that has
//! reached them takes no more clients, who wait in the kernel's queue, until others have gone.
//!
//! The kernel gives the lowest number that is free. So a new file's number tells whether all below it are in
//! use, and nothing has to be counted.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
    sync::atomic::{AtomicI32, AtomicU64, Ordering},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};
use serde::{Deserialize, Serialize};

use crate::clock;

/// As many as are asked for: a socket of each of half a million clients and to the backends. What the unit of
/// systemd says.
const WANTED: u64 = 1 << 20;

/// With fewer than this, an operator is told so when the daemon starts.
const FEW: u64 = 16 << 10;

/// The share that is kept from clients, and its bounds.
const SHARE: u64 = 32;
const LEAST_KEPT: u64 = 32;
const MOST_KEPT: u64 = 4096;

/// How often it is looked whether there is room again.
const PAUSE: Duration = Duration::from_millis(20);

/// Clients wait for files now if one had to within this time.
const LATELY: Duration = Duration::from_secs(5);

/// Those of this process.
pub(super) static FILES: Files = Files::new();

/// Who may have which of them.
#[derive(Debug)]
pub(super) struct Files {
    /// The first number that is kept from clients.
    clients_end: AtomicI32,
    /// The first that is kept from the proxy.
    proxy_end: AtomicI32,
    /// When somebody last went without, as the monotonic clock's milliseconds; 0 for never.
    short_at_ms: AtomicU64,
    /// How often that began.
    shortages: AtomicU64,
}

/// What `status` says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// How many this process may have open.
    pub limit: u64,
    /// How many it has; unknown before Linux 6.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<u64>,
    /// How often clients, or requests, have begun to wait for one.
    pub shortages: u64,
    /// They do now.
    pub short: bool,
}

/// What clients, and all of the proxy, may have of so many.
fn bounds(limit: u64) -> (u64, u64) {
    let kept = (limit / SHARE).clamp(LEAST_KEPT, MOST_KEPT);
    (limit.saturating_sub(kept), limit.saturating_sub(kept / 2))
}

impl Files {
    const fn new() -> Self {
        Self {
            clients_end: AtomicI32::new(i32::MAX),
            proxy_end: AtomicI32::new(i32::MAX),
            short_at_ms: AtomicU64::new(0),
            shortages: AtomicU64::new(0),
        }
    }

    /// Takes the limit that holds: it can be changed from outside.
    pub(super) fn look(&self) -> io::Result<u64> {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let (clients, proxy) = bounds(limit);
        let number = |end: u64| i32::try_from(end).unwrap_or(i32::MAX);
        self.clients_end.store(number(clients), Ordering::Relaxed);
        self.proxy_end.store(number(proxy), Ordering::Relaxed);
        Ok(limit)
    }

    /// Whether a client's connection is beyond what clients may have.
    pub(super) fn is_last(&self, client: &impl AsRawFd) -> bool {
        client.as_raw_fd() >= self.clients_end.load(Ordering::Relaxed)
    }

    /// Whether a connection to a backend is beyond what the proxy may have. If so, that is noted.
    pub(super) fn is_reserved(&self, backend: &impl AsRawFd) -> bool {
        let reserved = backend.as_raw_fd() >= self.proxy_end.load(Ordering::Relaxed);
        if reserved {
            self.note();
        }
        reserved
    }

    /// Waits until clients may have one more; `open` is any file.
    pub(super) async fn room(&self, open: &impl AsFd) {
        while !self.has_room(open) {
            self.note();
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn has_room(&self, open: &impl AsFd) -> bool {
        // The copy has the lowest number that is free, from this one on.
        let copy = open.as_fd().try_clone_to_owned();
        copy.is_ok_and(|copy| !self.is_last(&copy))
    }

    /// Takes note of an error, if it is that there is no file left: here, or on the whole machine.
    pub(super) fn is_shortage(&self, error: &io::Error) -> bool {
        let none = [Errno::EMFILE, Errno::ENFILE].map(|errno| Some(errno as i32));
        let is_shortage = none.contains(&error.raw_os_error());
        if is_shortage {
            self.note();
        }
        is_shortage
    }

    fn note(&self) {
        let now_ms = clock::monotonic().as_millis() as u64;
        let before = self.short_at_ms.swap(now_ms.max(1), Ordering::Relaxed);
        if before == 0 || before + (LATELY.as_millis() as u64) < now_ms {
            self.shortages.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_short(&self) -> bool {
        let at_ms = self.short_at_ms.load(Ordering::Relaxed);
        at_ms != 0 && clock::monotonic() < Duration::from_millis(at_ms) + LATELY
    }
}

/// How many of so many files the clients of a daemon and their connections to backends may have.
#[must_use]
pub fn for_clients(limit: u64) -> u64 {
    bounds(limit).0
}

/// Lets this process have as many files as it may: the hard limit; and with `CAP_SYS_RESOURCE` more than that,
/// up to a million or `fs.nr_open`. Gives the limit that holds.
///
/// # Errors
///
/// The limit cannot be asked for, or not raised at all.
pub fn raise() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = hard.max(WANTED.min(most()));
    let raised = wanted > hard && setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok();
    if !raised {
        // Whoever started this process knows why it may not have more.
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(if raised { wanted } else { hard })
}

/// The most that any process may have; what Linux has unless it is set, if it cannot be read.
fn most() -> u64 {
    let text = fs::read_to_string("/proc/sys/fs/nr_open").unwrap_or_default();
    text.trim().parse().unwrap_or(WANTED)
}

/// Takes all that this process may have, and says how many they are.
pub(super) fn take() {
    if let Err(error) = raise() {
        tracing::warn!(%error, "raise the limit of open files");
    }
    match FILES.look() {
        Ok(limit) if limit < FEW => tracing::warn!(
            limit,
            "few files may be open: {} connections through the proxy at once, as each needs two; raise the \
             hard limit (LimitNOFILE of the unit), or let ballast have CAP_SYS_RESOURCE",
            bounds(limit).0 / 2
        ),
        Ok(limit) => tracing::info!(limit, "files that may be open"),
        Err(error) => tracing::warn!(%error, "ask for the limit of open files"),
    }
}

/// What can be told of them now.
pub(super) fn status() -> Option<Status> {
    let limit = FILES.look().ok()?;
    // The length of this folder is how many there are, where the kernel says it at all.
    let open = fs::metadata("/proc/self/fd").map_or(0, |fd| fd.len());
    Some(Status {
        limit,
        open: (open > 0).then_some(open),
        shortages: FILES.shortages.load(Ordering::Relaxed),
        short: FILES.is_short(),
    })
}

/// What is wrong with them now.
pub(super) fn wrong() -> Option<String> {
    let limit = FILES.look().ok()?;
    FILES.is_short().then(|| {
        format!(
            "clients wait to be taken: of {limit} that may be open, {} are theirs, and each connection through \
             the proxy needs two; raise LimitNOFILE",
            bounds(limit).0
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_may_have_less_than_the_proxy_and_that_less_than_all() {
        for limit in [64, 256, 1024, 20_000, 1 << 20] {
            let (clients, proxy) = bounds(limit);
            assert!(0 < clients && clients < proxy && proxy < limit, "{limit}");
            assert!(limit - clients <= MOST_KEPT, "{limit}");
        }
        assert_eq!(bounds(20), (0, 4));
    }

    #[test]
    fn a_number_tells_whether_there_is_room() {
        let files = Files::new();
        let file = fs::File::open("/proc/self/stat").unwrap();
        assert!(files.has_room(&file) && !files.is_last(&file) && !files.is_reserved(&file));
        let number = file.as_raw_fd();
        files.clients_end.store(number + 1, Ordering::Relaxed);
        assert!(!files.is_last(&file));
        files.clients_end.store(number, Ordering::Relaxed);
        assert!(files.is_last(&file) && !files.is_short());
        files.proxy_end.store(number, Ordering::Relaxed);
        assert!(files.is_reserved(&file) && files.is_short());
        // It goes on, and has not begun again.
        assert!(files.is_shortage(&io::Error::from(Errno::EMFILE)));
        assert!(!files.is_shortage(&io::Error::from(Errno::ECONNABORTED)));
        assert_eq!(files.shortages.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_to_wait_is_let_in_once_there_is_room() {
        let files = Files::new();
        let file = fs::File::open("/proc/self/stat").unwrap();
        files.clients_end.store(0, Ordering::Relaxed);
        let wait = files.room(&file);
        let waits = tokio::time::timeout(Duration::from_secs(1), wait).await;
        assert!(waits.is_err() && files.is_short());
        files.clients_end.store(i32::MAX, Ordering::Relaxed);
        files.room(&file).await;
    }
}
