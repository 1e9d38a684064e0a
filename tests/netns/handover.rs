//! An orderly change of the primary under load: what clients see that connect meanwhile.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;

use crate::{
    postgres::{self, ask, leads_to, on},
    site::{Site, eventually},
};

/// Clients that connect, write a row, and go, one time after the other.
const CLIENTS: usize = 6;

/// A client waits so long for a connection, as many libraries do and more.
const CONNECT: Duration = Duration::from_secs(30);

/// What the clients have seen.
#[derive(Default)]
struct Seen {
    acknowledged: BTreeSet<u64>,
    /// Connects that came to nothing, and why.
    refused: Vec<String>,
    /// Connections that broke before their row was acknowledged.
    broken: usize,
    slowest: Duration,
}

struct Load {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    fn start(site: &Site) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
        let next = Arc::new(AtomicU64::new(0));
        let threads = (0..CLIENTS).map(|_| {
            let (host, stop) = (site.client().clone(), Arc::clone(&stop));
            let (seen, next) = (Arc::clone(&seen), Arc::clone(&next));
            std::thread::spawn(move || {
                on(&host, async || {
                    while !stop.load(Ordering::Relaxed) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        visit(number, &seen).await;
                    }
                    Ok(())
                })
            })
        });
        let threads = threads.collect();
        Self { stop, seen, threads }
    }

    fn count(&self) -> usize {
        self.seen.lock().expect("no client panicked").acknowledged.len()
    }

    fn more(&self, count: usize) -> Result<()> {
        let goal = self.count() + count;
        eventually("more rows", || Ok((self.count() >= goal).then_some(())))
    }

    fn end(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().ok().context("join a client")??;
        }
        let seen = Arc::into_inner(self.seen).context("take what the clients have seen")?;
        Ok(seen.into_inner().expect("no client panicked"))
    }
}

/// Connects, writes a row, and goes.
async fn visit(number: u64, seen: &Mutex<Seen>) {
    let began = Instant::now();
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect(("192.0.2.100", 5432))).await;
    let took = began.elapsed();
    let stream = {
        let mut seen = seen.lock().expect("no client panicked");
        seen.slowest = seen.slowest.max(took);
        match stream {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return seen.refused.push(error.to_string()),
            Err(_) => return seen.refused.push(format!("no connection after {took:?}")),
        }
    };
    let written = tokio::time::timeout(CONNECT, write(number, stream)).await;
    let mut seen = seen.lock().expect("no client panicked");
    match written {
        Ok(Ok(())) => drop(seen.acknowledged.insert(number)),
        _ => seen.broken += 1,
    }
}

async fn write(number: u64, stream: TcpStream) -> Result<()> {
    let mut config = tokio_postgres::Config::new();
    config.user("app").password("app").dbname("app");
    let (client, connection) = config.connect_raw(stream, NoTls).await?;
    let connection = tokio::spawn(connection);
    client.batch_execute(&format!("insert into visits values ({number})")).await?;
    drop(client);
    connection.await??;
    Ok(())
}

/// A client with a transaction that is open until it is told to end it.
fn long_transaction(site: &Site) -> Result<(std::sync::mpsc::Sender<()>, JoinHandle<Result<()>>)> {
    let host = site.client().clone();
    let (end, told) = std::sync::mpsc::channel::<()>();
    let (open, wait) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        on(&host, async move || {
            let mut config = tokio_postgres::Config::new();
            config.host("192.0.2.100").port(5432).user("app").password("app").dbname("app");
            config.application_name("monthly-report");
            let (client, connection) = config.connect(NoTls).await?;
            tokio::spawn(connection);
            client.batch_execute("begin; insert into visits values (1000000)").await?;
            open.send(())?;
            // The connection needs no turn meanwhile.
            told.recv()?;
            client.batch_execute("commit").await?;
            Ok(())
        })
    });
    wait.recv().context("open a long transaction")?;
    Ok((end, thread))
}

#[test]
fn clients_that_connect_wait_while_the_primary_is_handed_over() -> Result<()> {
    let site = postgres::site("handover", "")?;
    on(site.client(), async || ask(5432, "create table visits (number bigint)").await)?;
    let load = Load::start(&site);
    load.more(50)?;

    // A transaction that does not end stops the change before it begins.
    let (end, transaction) = long_transaction(&site)?;
    eventually("the transaction to be old", || {
        let dry = site.obeys("pg switchover --dry-run --peer-is-down lb-02")?;
        ensure!(dry.contains("nothing was done") && dry.contains("pg-02 had all of it"), "{dry}");
        Ok(dry
            .contains("monthly-report, idle in transaction): they may go on for 10 s")
            .then_some(()))
    })?;
    let refused = site.refuses("pg switchover --yes --wait 200ms --peer-is-down lb-02")?;
    ensure!(refused.contains("monthly-report") && refused.contains("--cut"), "{refused}");
    ensure!(leads_to(&site, 5432)? == "192.0.2.31", "nothing has changed");
    ensure!(site.status()?.reason("parked") == 0, "nobody has waited");

    // One that does is waited for.
    let command = std::thread::scope(|scope| {
        let command =
            scope.spawn(|| site.obeys("pg switchover --yes --wait 60s --peer-is-down lb-02"));
        load.more(50)?;
        end.send(())?;
        command.join().ok().context("join the command")?
    })?;
    ensure!(command.contains("pg-02 is the primary"), "{command}");
    transaction.join().ok().context("join the long transaction")??;
    load.more(50)?;
    ensure!(leads_to(&site, 5432)? == "192.0.2.32");
    let seen = load.end()?;
    let parked = site.status()?.reason("parked");
    println!(
        "{} rows, {} connects refused, {} connections broken, slowest connect {:?}, {parked} SYNs waited",
        seen.acknowledged.len(),
        seen.refused.len(),
        seen.broken,
        seen.slowest
    );
    ensure!(seen.refused.is_empty(), "{:?}", seen.refused);
    ensure!(parked > 0, "nobody has connected meanwhile");
    ensure!(seen.broken <= CLIENTS, "only those that were open when it was closed");
    let all = on(site.client(), async || {
        ask(5432, "select string_agg(number::text, ',') from visits").await
    })?;
    let has: BTreeSet<u64> = all.split(',').filter_map(|number| number.parse().ok()).collect();
    let missing: Vec<_> = seen.acknowledged.difference(&has).collect();
    ensure!(missing.is_empty(), "{missing:?}");
    ensure!(has.contains(&1_000_000), "the long transaction has ended in time");
    site.finish()
}
