//! Clients that append values through the floating address, and what they were told.

use std::{future::poll_fn, sync::atomic::AtomicU64};

use tokio_postgres::{AsyncMessage, NoTls, SimpleQueryMessage};

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
    pub(super) invoked: Instant,
    pub(super) completed: Instant,
}

#[derive(Default)]
pub(super) struct History {
    pub(super) acknowledged: Vec<Acknowledged>,
    /// Values that a server refused with an error: they are surely not there.
    pub(super) refused: Vec<u64>,
    /// How many of these because its disk was full.
    pub(super) disk_full: u64,
    /// Writes of which nobody knows whether they are there.
    pub(super) unknown: u64,
}

/// A client.
#[derive(Clone)]
pub(super) struct Client {
    host: Host,
    /// It connects anew for each write.
    fresh: bool,
}

impl Client {
    /// One with a long session.
    pub(super) fn session(host: &Host) -> Self {
        Self { host: host.clone(), fresh: false }
    }

    /// One that connects anew for each write.
    pub(super) fn fresh(host: &Host) -> Self {
        Self { host: host.clone(), fresh: true }
    }
}

pub(super) struct Writers {
    stop: Arc<AtomicBool>,
    history: Arc<Mutex<History>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Writers {
    pub(super) fn start(clients: &[Client]) -> Self {
        let (stop, history) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
        let next = Arc::new(AtomicU64::new(1));
        let mut threads = Vec::new();
        for client in clients.iter().cloned() {
            let (history, next) = (Arc::clone(&history), Arc::clone(&next));
            let stop = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || {
                on(&client.host, async || {
                    while !stop.load(Ordering::Relaxed) {
                        // What breaks is begun anew, with another value.
                        let _ = append(&client, &stop, &history, &next).await;
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Ok(())
                })
            }));
        }
        Self { stop, history, threads }
    }

    pub(super) fn look<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.history.lock().expect("no writer panicked"))
    }

    /// Waits until so many more have been acknowledged.
    pub(super) fn more(&self, count: usize) -> Result<()> {
        let goal = self.look(|history| history.acknowledged.len()) + count;
        wait::until(PATIENCE, "more writes", || {
            Ok(self.look(|history| history.acknowledged.len() >= goal).then_some(()))
        })
    }

    /// The longest time without an acknowledgement since then.
    pub(super) fn pause(&self, since: Instant) -> Duration {
        let mut times = self.look(|history| {
            let times = history.acknowledged.iter().map(|it| it.completed);
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
    config.host("192.0.2.100").port(5432).user("app").password("app").dbname("app");
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
            let write = Acknowledged { value, timeline, server, invoked, completed };
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
            let full = *error.code() == tokio_postgres::error::SqlState::DISK_FULL;
            self.disk_full += u64::from(full);
        } else {
            self.unknown += 1;
        }
    }
}
