//! A client that reads through the floating address, and who answers it.

use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::*;

/// What a read may take.
const READ: Duration = Duration::from_secs(2);

/// Time between two reads.
const EVERY: Duration = Duration::from_millis(50);

/// A read that was answered by a server that takes writes. There are some while no standby can answer.
#[derive(Clone, Debug)]
pub(super) struct OfPrimary {
    pub(super) server: String,
    pub(super) timeline: u64,
    pub(super) invoked: Instant,
}

#[derive(Default)]
pub(super) struct Reads {
    pub(super) answered: u64,
    pub(super) failed: u64,
    pub(super) of_primaries: Vec<OfPrimary>,
}

pub(super) struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Reads>>,
}

impl Reader {
    pub(super) fn start(host: &Host) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (host, ended) = (host.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            on(&host, async || {
                let mut reads = Reads::default();
                while !ended.load(Ordering::Relaxed) {
                    let invoked = Instant::now();
                    match tokio::time::timeout(READ, read()).await {
                        Ok(Ok(found)) => {
                            reads.answered += 1;
                            let of = |(server, timeline)| OfPrimary { server, timeline, invoked };
                            reads.of_primaries.extend(found.map(of));
                        }
                        _ => reads.failed += 1,
                    }
                    tokio::time::sleep(EVERY).await;
                }
                Ok(reads)
            })
        });
        Self { stop, thread }
    }

    pub(super) fn end(self) -> Result<Reads> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("join the reader")?
    }
}

/// Asks on a connection of its own; gives server and timeline, if it takes writes.
async fn read() -> Result<Option<(String, u64)>> {
    let mut config = tokio_postgres::Config::new();
    config.host("192.0.2.100").port(5433).user("app").password("app").dbname("app");
    let (client, connection) = config.connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    let statement = "select host(inet_server_addr()), case when not pg_is_in_recovery() then \
                     ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int end";
    let messages = client.simple_query(statement).await;
    connection.abort();
    Ok(messages?.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((row.get(0)?.to_owned(), row.get(1)?.parse().ok()?)),
        _ => None,
    }))
}
