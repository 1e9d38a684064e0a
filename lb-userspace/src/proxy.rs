//! The proxy: HTTP requests that are handed on to a backend, and to another if that one fails.
//!
//! ```text
//!   control ──▶ Service, its View (verdicts, weights) ──▶ Route of each worker
//!
//!   client ──▶ serve ──▶ exchange ──▶ connect ──▶ attempt ──▶ answer ──▶ client
//!              hyper     one          which       one         a body on its
//!              server    request      backend     try         way back
//! ```
//!
//! A service with `path = "proxy"` is kept out of the kernel path by a flag in `SERVICES`: the program
//! admits its connections as it does any (`allow`, `deny`, `source_rate`), and passes their packets to
//! the node's own stack, where the workers listen. While nobody listens (before the listeners are
//! there, and once the daemon ends in order) the flag is off, and the kernel forwards new connections
//! to the backends by itself.
//!
//! Each worker is a thread with a runtime, a listening socket (`SO_REUSEPORT`) and idle connections of
//! its own; counts, verdicts and the retry budget are shared. What the proxy sees of the backends goes
//! to the one verdict through the same counters as what the kernel sees ([`Backend::signals`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lb_common::stats::BackendSignals;

use crate::{config, control::state::ServiceState};

mod access;
mod answer;
mod attempt;
mod backend;
mod budget;
mod calm;
mod connect;
pub mod decide;
mod early;
mod edge;
mod era;
mod exchange;
pub mod files;
mod frames;
mod gate;
mod head;
mod headers;
mod http1;
mod inbound;
mod kept;
mod listener;
mod multiplex;
pub(crate) mod outbound;
mod packets;
mod pool;
mod proof;
mod queue;
mod refuse;
pub(crate) mod secure;
mod select;
mod serve;
mod service;
mod speed;
mod stall;
mod stats;
mod store;
mod stream;
mod strict;
pub mod tls;
mod tried;
mod tunnel;
mod wire;
mod worker;

pub use backend::Backend;
pub use proof::{Reset, Resets};
use service::Service;
pub use stats::{BackendStatus, Status};
use store::Store;
use worker::Worker;

/// How long the connections of clients may go on when the daemon ends, unless a service's
/// `drain_timeout` is shorter. A service manager waits for longer.
const DRAIN: Duration = Duration::from_secs(30);

/// The proxy, as the control plane commands it; copies are the same one.
#[derive(Clone, Debug, Default)]
pub struct Proxy(Arc<Mutex<Inner>>);

/// How it went with a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Its connections can come.
    pub listens: bool,
    /// What is wrong.
    pub wrong: Option<String>,
}

#[derive(Debug, Default)]
struct Inner {
    workers: Vec<Worker>,
    services: BTreeMap<String, Arc<Service>>,
    /// Copies of the sockets of each service, and whether the service manager keeps them.
    sockets: BTreeMap<String, (Vec<TcpListener>, bool)>,
    /// What notes the resets of connections to backends, where the kernel lets it.
    resets: Option<Arc<dyn Resets>>,
    /// What an earlier daemon has left, until it is known what of it is needed.
    store: Option<Store>,
}

impl Proxy {
    /// Has resets noted by this. To be said before the first service begins.
    pub fn note_resets(&self, resets: Arc<dyn Resets>) {
        self.lock().resets = Some(resets);
    }

    /// Listens for the services that have a proxy, and no more for those that have none; those that
    /// stay learn their configuration, and read the files that it names anew. Answers how it went, by
    /// service.
    ///
    /// A socket that cannot be had is asked for again by the next call.
    pub fn follow(&self, services: &[ServiceState]) -> BTreeMap<String, Followed> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let mut outcome = BTreeMap::new();
        let proxied = services.iter().filter(|service| service.config.proxy.is_some());
        let wanted: BTreeMap<&str, &ServiceState> =
            proxied.map(|service| (service.config.name.as_str(), service)).collect();
        inner.services.retain(|name, service| {
            let stays = wanted
                .get(name.as_str())
                .is_some_and(|wanted| wanted.config.listen == service.listen);
            if !stays {
                service.end(service.drain_timeout(), false);
                if let Some((_, true)) = inner.sockets.remove(name) {
                    store::forget(service.listen);
                }
                outcome.insert(name.clone(), Followed { listens: false, wrong: None });
            }
            stays
        });
        for (name, state) in wanted {
            let Some(proxy) = &state.config.proxy else { continue };
            let followed = if let Some(service) = inner.services.get(name) {
                Followed { listens: true, wrong: service.follow(state, proxy) }
            } else {
                let begun = inner.begin(state, proxy);
                let wrong = begun.as_ref().err().map(ToString::to_string);
                Followed { listens: begun.is_ok(), wrong }
            };
            inner.keep(name, state.config.listen, proxy.is_only());
            outcome.insert(name.to_owned(), followed);
        }
        if let Some(store) = &mut inner.store {
            store.clear();
        }
        outcome
    }

    /// Tells the workers the new verdicts on a service's backends.
    pub fn judge(&self, state: &ServiceState) {
        if let Some(service) = self.lock().services.get(&state.config.name) {
            service.judge(state);
        }
    }

    /// What requests have shown of a backend.
    pub fn signals(&self, service: &str, backend: SocketAddr) -> Option<BackendSignals> {
        Some(self.service(service)?.backend(backend)?.signals())
    }

    /// The counts of a service.
    pub fn status(&self, service: &str) -> Option<Status> {
        Some(self.service(service)?.status())
    }

    /// The files that this process may have open, if it has listened for a service.
    pub fn files(&self) -> Option<files::Status> {
        let begun = !self.lock().workers.is_empty();
        begun.then(files::status).flatten()
    }

    /// What is wrong with them: clients wait for one.
    pub fn lacks_files(&self) -> Option<String> {
        let begun = !self.lock().workers.is_empty();
        begun.then(files::wrong).flatten()
    }

    /// The counts of a backend of a service.
    pub fn backend_status(&self, service: &str, backend: SocketAddr) -> Option<BackendStatus> {
        Some(self.service(service)?.backend(backend)?.status())
    }

    /// Takes no more connections, and waits until those that there are have ended, for `drain_timeout`
    /// of their services at most.
    pub async fn stop(&self) {
        let ends: Vec<_> = {
            let mut inner = self.lock();
            inner.sockets.clear();
            let services = inner.services.values();
            let end = |service: &Arc<Service>| {
                service.end(service.drain_timeout().min(DRAIN), service.is_only())
            };
            services.map(end).collect()
        };
        for end in ends {
            // It fails only if it panicked; then nothing is left to wait for.
            let _ = end.await;
        }
    }

    /// The addresses go to another node: the connections to them that there are end in order, within
    /// `drain_timeout` of their service or [`DRAIN`]. Gives the longest of these times, if there are any.
    pub fn hand_over(&self, addresses: &BTreeSet<IpAddr>) -> Option<Duration> {
        let inner = self.lock();
        let services = inner.services.values();
        let within =
            services.filter(|service| addresses.contains(&service.listen.ip())).map(|it| {
                let within = it.drain_timeout().min(DRAIN);
                it.hand_over(within);
                within
            });
        within.max()
    }

    /// Connections that were handed over and are still open.
    pub fn handed_over(&self) -> u64 {
        self.lock().services.values().map(|service| service.handed_over()).sum()
    }

    /// For how long connections would go on that are handed over now; nothing if no service has a proxy.
    pub fn lingers(&self) -> Option<Duration> {
        let inner = self.lock();
        inner.services.values().map(|service| service.drain_timeout().min(DRAIN)).max()
    }

    fn service(&self, name: &str) -> Option<Arc<Service>> {
        self.lock().services.get(name).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Begins to serve.
    fn begin(&mut self, state: &ServiceState, proxy: &Arc<config::Proxy>) -> io::Result<()> {
        if self.workers.is_empty() {
            files::take();
            let count = std::thread::available_parallelism().map_or(1, usize::from);
            self.workers = (0..count).map(Worker::start).collect::<io::Result<_>>()?;
        }
        let listen = state.config.listen;
        let service = Service::new(state, proxy, self.resets.clone())?;
        let mut sockets = self.store.get_or_insert_with(Store::open).take(listen);
        let is_kept = !sockets.is_empty();
        // An earlier version may have opened them.
        sockets.iter().for_each(listener::answer_acknowledges);
        let mut new = Vec::new();
        while sockets.len() + new.len() < self.workers.len() {
            new.push(listener::bind(listen)?);
        }
        if is_kept {
            store::keep(listen, &new);
        }
        sockets.extend(new);
        let copies = sockets.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?;
        // There may be more of them than workers, if an earlier daemon had more.
        for (worker, socket) in self.workers.iter().cycle().zip(sockets) {
            worker.listen(Arc::clone(&service), socket)?;
        }
        self.sockets.insert(state.config.name.clone(), (copies, is_kept));
        self.services.insert(state.config.name.clone(), service);
        Ok(())
    }

    /// Has the sockets of a service kept for the next daemon, or not.
    fn keep(&mut self, name: &str, listen: SocketAddr, keeps: bool) {
        let Some((sockets, kept)) = self.sockets.get_mut(name) else { return };
        match (keeps, *kept) {
            (true, false) => store::keep(listen, sockets),
            (false, true) => store::forget(listen),
            (true, true) | (false, false) => {}
        }
        *kept = keeps;
    }
}
