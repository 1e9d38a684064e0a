//! Clients that append values through the floating address, or around it, and what they were told.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicU64, AtomicUsize},
};

use tokio_postgres::{AsyncMessage, NoTls, SimpleQueryMessage, error::SqlState};
use xtask::lab::topology::FLOATING_V4;

use super::*;

/// What a statement of a session may take: a commit may wait for a standby that is off for a while.
const STATEMENT: Duration = Duration::from_secs(10);

/// The same of one that has a connection of its own.
const SHORT: Duration = Duration::from_secs(3);

/// A write that was acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Acknowledged {
    pub(super) value: u64,
    /// The timeline of the server that took it, which each promotion raises.
    pub(super) timeline: u64,
    /// Its address.
    pub(super) server: String,
    /// It was asked around the balancers.
    pub(super) direct: bool,
    pub(super) invoked: Instant,
    pub(super) completed: Instant,
}

#[derive(Default)]
pub(super) struct History {
    pub(super) acknowledged: Vec<Acknowledged>,
    /// How many of these the balancers have handed on.
    handed_on: usize,
    /// Values that a server refused with an error: they are surely not there.
    pub(super) refused: Vec<u64>,
    /// How many of these because its disk was full.
    pub(super) disk_full: u64,
    /// And because it was a standby, which was asked around the balancers.
    pub(super) standby: u64,
    /// Writes of which nobody knows whether they are there.
    pub(super) unknown: u64,
}

/// A client.
#[derive(Clone)]
pub(super) struct Client {
    host: Host,
    /// It connects anew for each write.
    fresh: bool,
    /// The server that it asks, around the balancers.
    server: Option<HostName>,
}

impl Client {
    /// One with a long session.
    pub(super) fn session(host: &Host) -> Self {
        Self { host: host.clone(), fresh: false, server: None }
    }

    /// One that connects anew for each write.
    pub(super) fn fresh(host: &Host) -> Self {
        Self { fresh: true, ..Self::session(host) }
    }

    /// One that asks a server around the balancers.
    pub(super) fn direct(host: &Host, server: HostName) -> Self {
        Self { server: Some(server), ..Self::fresh(host) }
    }
}

/// Keeps those from writing that ask around the balancers.
#[derive(Default)]
struct Hold {
    held: AtomicBool,
    /// How many of them are at it.
    busy: AtomicUsize,
}

pub(super) struct Writers {
    stop: Arc<AtomicBool>,
    history: Arc<Mutex<History>>,
    hold: Arc<Hold>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Writers {
    pub(super) fn start(clients: &[Client]) -> Self {
        let (stop, history) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
        let next = Arc::new(AtomicU64::new(1));
        let hold = Arc::new(Hold::default());
        let mut threads = Vec::new();
        for client in clients.iter().cloned() {
            let (history, next) = (Arc::clone(&history), Arc::clone(&next));
            let (stop, hold) = (Arc::clone(&stop), Arc::clone(&hold));
            threads.push(std::thread::spawn(move || {
                on(&client.host, async || {
                    while !stop.load(Ordering::Relaxed) {
                        let direct = usize::from(client.server.is_some());
                        hold.busy.fetch_add(direct, Ordering::SeqCst);
                        if direct == 0 || !hold.held.load(Ordering::SeqCst) {
                            // What breaks is begun anew, with another value.
                            let _ = append(&client, &stop, &history, &next).await;
                        }
                        hold.busy.fetch_sub(direct, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Ok(())
                })
            }));
        }
        Self { stop, history, hold, threads }
    }

    /// Nobody writes around the balancers while `work` goes on.
    pub(super) fn none_direct<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.hold.held.store(true, Ordering::SeqCst);
        let result = wait::until(PATIENCE, "those who ask around the balancers to end", || {
            Ok((self.hold.busy.load(Ordering::SeqCst) == 0).then_some(()))
        })
        .and_then(|()| work());
        self.hold.held.store(false, Ordering::SeqCst);
        result
    }

    pub(super) fn look<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.history.lock().expect("no writer panicked"))
    }

    /// Waits until so many more have been acknowledged.
    pub(super) fn more(&self, count: usize) -> Result<()> {
        let goal = self.look(|history| history.handed_on) + count;
        wait::until(PATIENCE, "more writes", || {
            Ok((self.look(|history| history.handed_on) >= goal).then_some(()))
        })
    }

    /// The longest time without an acknowledgement since then.
    pub(super) fn pause(&self, since: Instant) -> Duration {
        let mut times = self.look(|history| {
            let writes = history.acknowledged.iter().filter(|it| !it.direct);
            let times = writes.map(|it| it.completed);
            times.filter(|at| *at >= since).collect::<Vec<_>>()
        });
        times.push(since);
        times.sort();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    pub(super) fn end(self) -> Result<History> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().ok().context("join a writer")??;
        }
        let history = Arc::into_inner(self.history).context("take the history")?;
        Ok(history.into_inner().expect("no writer panicked"))
    }
}

/// Connects, and appends values until something breaks.
async fn append(
    client: &Client,
    stop: &AtomicBool,
    history: &Mutex<History>,
    next: &AtomicU64,
) -> Result<()> {
    let mut config = tokio_postgres::Config::new();
    let address = client.server.map_or(FLOATING_V4, HostName::ipv4).to_string();
    config.host(&address).port(5432).user("app").password("app").dbname("app");
    let connect = config.connect(NoTls);
    let (session, mut connection) = tokio::time::timeout(TRY, connect).await??;
    let cancelled = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancelled);
    let connection = tokio::spawn(async move {
        loop {
            // A notice comes before the word that the statement is complete.
            let message = poll_fn(|context| connection.poll_message(context));
            match message.await {
                Some(Ok(AsyncMessage::Notice(_))) => flag.store(true, Ordering::SeqCst),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            }
        }
    });
    let limit = if client.fresh { SHORT } else { STATEMENT };
    while !stop.load(Ordering::Relaxed) {
        let value = next.fetch_add(1, Ordering::Relaxed);
        let statement = format!(
            "insert into acked values ({value}) returning host(inet_server_addr()), \
             ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int"
        );
        let invoked = Instant::now();
        let result = tokio::time::timeout(limit, session.simple_query(&statement)).await;
        let completed = Instant::now();
        let known = match &result {
            Ok(Ok(messages)) if !cancelled.swap(false, Ordering::SeqCst) => said(messages),
            _ => None,
        };
        {
            let mut history = history.lock().expect("no writer panicked");
            let Some((server, timeline)) = known else {
                match result {
                    Ok(Err(error)) => history.fail(value, &error),
                    _ => history.unknown += 1,
                }
                break;
            };
            let direct = client.server.is_some();
            let write = Acknowledged { value, timeline, server, direct, invoked, completed };
            history.handed_on += usize::from(!direct);
            history.acknowledged.push(write);
        }
        if client.fresh {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    connection.abort();
    Ok(())
}

/// The server that took a write, and its timeline.
fn said(messages: &[SimpleQueryMessage]) -> Option<(String, u64)> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((row.get(0)?.to_owned(), row.get(1)?.parse().ok()?)),
        _ => None,
    })
}

impl History {
    /// An error of the statement takes all of it back. One that ends the session may come after the commit.
    fn fail(&mut self, value: u64, error: &tokio_postgres::Error) {
        let error = error.as_db_error();
        if let Some(error) = error.filter(|error| error.severity() == "ERROR") {
            self.refused.push(value);
            self.disk_full += u64::from(*error.code() == SqlState::DISK_FULL);
            self.standby += u64::from(*error.code() == SqlState::READ_ONLY_SQL_TRANSACTION);
        } else {
            self.unknown += 1;
        }
    }
}
