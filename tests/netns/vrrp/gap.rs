//! What a client sees of a takeover: the longest time without an answer.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use xtask::lab::Host;

use crate::{config::echo, site::eventually};

/// Time between two questions.
const PACE: Duration = Duration::from_millis(1);

/// Asks a thousand times a second, by datagrams of one socket, and waits for no answer.
pub(super) struct Probe {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    longest: Arc<Mutex<Duration>>,
    threads: Vec<JoinHandle<()>>,
}

impl Probe {
    /// Asks the floating address from a host.
    pub(super) fn start(host: &Host) -> Self {
        let socket = host.within(|| UdpSocket::bind("0.0.0.0:0").expect("open a socket"));
        Self::with(socket.expect("enter the client's namespace"), echo())
    }

    /// Asks whoever is there, from here.
    pub(super) fn to(target: SocketAddr) -> Self {
        Self::with(UdpSocket::bind("127.0.0.1:0").expect("open a socket"), target)
    }

    fn with(socket: UdpSocket, target: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(AtomicU64::new(0));
        let longest = Arc::new(Mutex::new(Duration::ZERO));
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("set a limit");
        let asking = socket.try_clone().expect("share the socket");
        let ends = Arc::clone(&stop);
        let ask = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                // While nobody has the address, the host says that it cannot be reached.
                let _ = asking.send_to(b"are you there", target);
                thread::sleep(PACE);
            }
        });
        let (ends, count, gap) = (Arc::clone(&stop), Arc::clone(&answers), Arc::clone(&longest));
        let hear = thread::spawn(move || {
            let mut last: Option<Instant> = None;
            while !ends.load(Ordering::Relaxed) {
                if socket.recv_from(&mut [0; 64]).is_err() {
                    continue;
                }
                let now = Instant::now();
                if let Some(last) = last {
                    let mut longest = gap.lock().unwrap_or_else(PoisonError::into_inner);
                    *longest = longest.max(now - last);
                }
                last = Some(now);
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, answers, longest, threads: vec![ask, hear] }
    }

    /// Waits until so many more answers have come.
    pub(super) fn more(&self, answers: u64) -> Result<()> {
        let goal = self.answers.load(Ordering::Relaxed) + answers;
        eventually("more answers", || {
            Ok((self.answers.load(Ordering::Relaxed) >= goal).then_some(()))
        })
        .with_context(|| format!("{} answers in all", self.answers.load(Ordering::Relaxed)))
    }

    /// The longest time between two answers since the last call.
    pub(super) fn longest(&self) -> Duration {
        std::mem::take(&mut *self.longest.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}
