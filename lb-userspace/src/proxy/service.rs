//! A proxied service, as all workers share it.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use lb_common::service::Balance;
use tokio::{sync::watch, task::JoinHandle, time::timeout_at};

use super::{
    access::Log,
    backend::Backend,
    budget::Budget,
    era::Era,
    inbound::admit::Admission,
    proof::Resets,
    queue::Queue,
    secure::Secure,
    stats::{Stats, Status},
    tls,
};
use crate::{
    clock,
    config::{self, Guard},
    control::{
        plan::DesiredService,
        state::{Record, ServiceState},
        verdict::{Admin, Why},
    },
    health::Health,
};

/// Whether a service goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It takes connections.
    Serving,
    /// None should come any more, and those that are open end with the next answer, or after
    /// [`LEAVE`].
    Draining,
    /// It takes none any more.
    Closing,
    /// They end now.
    Cut,
}

/// How long a service that ends still takes connections and requests: those that were on their way when
/// new ones were turned elsewhere.
pub(super) const LEAVE: Duration = Duration::from_secs(1);

/// How long connections may go on that came while the service waited for others to end.
const LATE: Duration = Duration::from_secs(5);

/// A service.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) listen: SocketAddr,
    view: watch::Sender<Arc<View>>,
    phase: watch::Sender<Phase>,
    /// What the seats were made of.
    judged: Mutex<Arc<DesiredService>>,
    /// The connections that it has now, and those of before that still end.
    eras: Mutex<Eras>,
    /// Those that came when it had begun to end.
    late: Arc<Era>,
    /// The phase is not the first.
    ends: AtomicBool,
    pub(super) stats: Stats,
    pub(super) budget: Arc<Budget>,
    pub(super) queue: Arc<Queue>,
    pub(super) memory: Memory,
    pub(super) admission: Admission,
    /// What notes the resets of connections to backends.
    pub(super) resets: Option<Arc<dyn Resets>>,
}

/// The connections of a service, by the time at which they came.
#[derive(Debug)]
struct Eras {
    now: Arc<Era>,
    /// Those that were handed over and still end.
    before: Vec<Arc<Era>>,
}

/// What holds for a service now.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) proxy: Arc<config::Proxy>,
    pub(super) balance: Balance,
    pub(super) drain_timeout: Duration,
    /// In the order of the configuration.
    pub(super) seats: Vec<Seat>,
    pub(super) log: Option<Arc<Log>>,
    pub(super) tls: Option<Arc<rustls::ServerConfig>>,
    /// TLS towards backends.
    pub(super) secure: Option<Arc<Secure>>,
    /// Who may connect, where only a header tells who does.
    pub(super) guard: Arc<Guard>,
}

/// A backend and the verdict on it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seat {
    pub(super) backend: Arc<Backend>,
    pub(super) weight: u32,
    /// It gets requests.
    pub(super) serving: bool,
    /// It gets those that no serving backend could answer.
    pub(super) spare: bool,
}

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

/// Memory for bodies that are kept to be sent again.
#[derive(Debug, Default)]
pub(super) struct Memory(AtomicU64);

/// Bytes that a service's requests may keep together.
const MOST_KEPT: u64 = 256 << 20;

impl Memory {
    /// Takes so many bytes, if there are so many left.
    pub(super) fn take(&self, bytes: u64) -> bool {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |kept| {
            (kept + bytes <= MOST_KEPT).then_some(kept + bytes)
        });
        taken.is_ok()
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Service {
    pub(super) fn new(
        state: &ServiceState,
        proxy: &Arc<config::Proxy>,
        resets: Option<Arc<dyn Resets>>,
    ) -> io::Result<Arc<Self>> {
        let log = proxy.access_log.as_deref().map(Log::open).transpose()?;
        let queue = Arc::<Queue>::default();
        let view = View {
            proxy: Arc::clone(proxy),
            balance: state.config.balance,
            drain_timeout: state.config.drain_timeout,
            seats: seats(state, &[], &queue),
            log,
            tls: server(proxy).map_err(io::Error::other)?,
            secure: Secure::new(&proxy.upstream).map_err(io::Error::other)?,
            guard: Arc::new(state.config.guard.clone()),
        };
        Ok(Arc::new(Self {
            name: state.config.name.clone(),
            listen: state.config.listen,
            view: watch::Sender::new(Arc::new(view)),
            phase: watch::Sender::new(Phase::Serving),
            judged: Mutex::new(Arc::clone(state.desired())),
            eras: Mutex::new(Eras { now: Era::new(), before: Vec::new() }),
            late: Era::new(),
            ends: AtomicBool::new(false),
            stats: Stats::default(),
            budget: Arc::default(),
            queue,
            memory: Memory::default(),
            admission: Admission::default(),
            resets,
        }))
    }

    /// Takes the verdicts.
    pub(super) fn judge(&self, state: &ServiceState) {
        // Whenever a verdict changes, so does what the maps should say.
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&judged, state.desired()) {
            return;
        }
        *judged = Arc::clone(state.desired());
        drop(judged);
        self.view.send_if_modified(|view| {
            let seats = seats(state, &view.seats, &self.queue);
            let new = seats != view.seats;
            if new {
                *view = Arc::new(View { seats, ..View::clone(view) });
            }
            new
        });
    }

    /// Takes the configuration, and reads anew what it names. What cannot be read stays as it was, and
    /// is said.
    pub(super) fn follow(
        &self,
        state: &ServiceState,
        proxy: &Arc<config::Proxy>,
    ) -> Option<String> {
        let mut wrong = None;
        self.view.send_modify(|view| {
            let log = match (&view.log, &proxy.access_log) {
                (_, None) => None,
                (Some(log), Some(path)) if log.path() == path => {
                    // Whoever turns logs moves the old file away and reloads.
                    log.reopen();
                    Some(Arc::clone(log))
                }
                (_, Some(path)) => {
                    Log::open(path).map_err(|error| wrong = Some(error.to_string())).ok()
                }
            };
            let tls = server(proxy).unwrap_or_else(|error| {
                wrong = Some(error.to_string());
                view.tls.clone()
            });
            let secure = Secure::new(&proxy.upstream).unwrap_or_else(|error| {
                wrong = Some(error.to_string());
                view.secure.clone()
            });
            *view = Arc::new(View {
                proxy: Arc::clone(proxy),
                balance: state.config.balance,
                drain_timeout: state.config.drain_timeout,
                seats: seats(state, &view.seats, &self.queue),
                log,
                tls,
                secure,
                guard: Arc::new(state.config.guard.clone()),
            });
        });
        wrong
    }

    /// What holds now, for a worker.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// Whether it goes on.
    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Whether it has begun to end.
    pub(super) fn ends(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    pub(super) fn drain_timeout(&self) -> Duration {
        self.view.borrow().drain_timeout
    }

    /// The backend at this address.
    pub(super) fn backend(&self, address: SocketAddr) -> Option<Arc<Backend>> {
        let view = self.view.borrow();
        let seat = view.seats.iter().find(|seat| seat.backend.address == address)?;
        Some(Arc::clone(&seat.backend))
    }

    /// A connection of a client, or what became of one; open as long as this lives.
    pub(super) fn open(&self) -> Open {
        let era = if self.ends() { Arc::clone(&self.late) } else { Arc::clone(&self.eras().now) };
        era.open.add();
        Open(era)
    }

    fn eras(&self) -> MutexGuard<'_, Eras> {
        // Each step leaves it whole.
        self.eras.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address goes to another node: ends the connections that there are, in order, or after this time at
    /// once. It takes new ones as ever.
    pub(super) fn hand_over(&self, within: Duration) {
        let mut eras = self.eras();
        eras.before.retain(|era| era.open.get() > 0);
        if eras.now.open.get() > 0 {
            let old = std::mem::replace(&mut eras.now, Era::new());
            drop(old.end(within));
            eras.before.push(old);
        }
    }

    /// Connections that were handed over and are still open.
    pub(super) fn handed_over(&self) -> u64 {
        self.eras().before.iter().map(|era| era.open.get()).sum()
    }

    /// Whether nobody else can take its connections.
    pub(super) fn is_only(&self) -> bool {
        self.view.borrow().proxy.is_only()
    }

    /// Takes no more connections, and ends those that there are: in order, or after this time at once.
    ///
    /// One that `lingers` takes more until those that there are have ended: nobody else can.
    pub(super) fn end(self: &Arc<Self>, within: Duration, lingers: bool) -> JoinHandle<()> {
        self.ends.store(true, Ordering::Relaxed);
        let (now, before) = {
            let eras = self.eras();
            (Arc::clone(&eras.now), eras.before.clone())
        };
        self.phase.send_replace(Phase::Draining);
        now.enter(Phase::Draining);
        self.late.enter(Phase::Draining);
        let service = Arc::clone(self);
        tokio::spawn(async move {
            let cut = clock::timer() + within;
            tokio::time::sleep(LEAVE.min(within)).await;
            if lingers {
                let _ = timeout_at(cut, now.open.none()).await;
            }
            service.phase.send_replace(Phase::Closing);
            let cut = if lingers { cut.max(clock::timer() + LATE) } else { cut };
            let all = async {
                for era in [&now, &service.late].into_iter().chain(&before) {
                    era.open.none().await;
                }
            };
            let _ = timeout_at(cut, all).await;
            service.phase.send_replace(Phase::Cut);
            for era in [&now, &service.late].into_iter().chain(&before) {
                era.enter(Phase::Cut);
            }
        })
    }

    pub(super) fn status(&self) -> Status {
        let now = self.eras().now.open.get();
        let open = now + self.late.open.get() + self.handed_over();
        self.stats.status(self.budget.requests(), open)
    }
}

/// What clients are told if they are to speak TLS.
fn server(proxy: &config::Proxy) -> Result<Option<Arc<rustls::ServerConfig>>, tls::Error> {
    if proxy.certificates.is_empty() {
        return Ok(None);
    }
    tls::server(&proxy.certificates).map(Some)
}

/// See [`Service::open`].
#[derive(Debug)]
pub(super) struct Open(Arc<Era>);

impl Open {
    /// Whether it goes on.
    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.0.phase()
    }

    /// Whether its next answer should be its last.
    pub(super) fn ends(&self) -> bool {
        self.0.ends()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.remove();
    }
}

/// The backends as they are judged; those that stay are the same as before.
fn seats(state: &ServiceState, before: &[Seat], queue: &Arc<Queue>) -> Vec<Seat> {
    let known: HashMap<_, _> =
        before.iter().map(|seat| (seat.backend.address, &seat.backend)).collect();
    let seats = state.records.iter().map(|record| {
        let config::Backend { name, address, .. } = &record.config;
        let known = known.get(address).filter(|backend| backend.name == *name);
        let backend = known
            .map_or_else(|| Arc::new(Backend::new(name, *address, queue)), |it| Arc::clone(it));
        backend.judge(is_condemned(record), record.track.patience_ms());
        let verdict = &record.verdict;
        Seat {
            backend,
            weight: verdict.weight.max(1),
            serving: verdict.serving,
            // One that has not been probed yet is better than none: a daemon that has just begun knows
            // nothing, and may have clients already.
            spare: record.wish.admin == Admin::Enabled && record.health != Health::Down,
        }
    });
    seats.collect()
}

/// Whether what it has not answered yet is better asked of another.
fn is_condemned(record: &Record) -> bool {
    let bad = |why: &Why| matches!(why, Why::Unhealthy(_) | Why::Ejected(_));
    !record.verdict.serving && record.verdict.reasons.iter().any(bad)
}
