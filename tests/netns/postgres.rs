//! The database through the floating address: who gets what, and a change of the primary.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use xtask::lab::{
    Balancers, Host, HostName, Options, automatic_config, default_config, etcd_config,
    postgres_config,
};

use crate::site::{Site, eventually};

mod degrade;
mod disk;
mod figures;
mod nemesis;
mod pair;
mod sessions;
mod switchover;
mod unattended;
mod wrong;

/// What one try of a client may take.
const TRY: Duration = Duration::from_secs(2);

/// A lab with databases, whose daemon has found the primary.
pub(crate) fn site(name: &str, more: &str) -> Result<Site> {
    let config = default_config() + &postgres_config() + more;
    let site = Site::with(
        name,
        Options { config: Some(config), postgres: true, apps: 0, ..Options::default() },
    )?;
    until(&site, "pg-01 to be the primary, with its standby", |database| {
        database["writes_to"] == "pg-01"
            && server(database, "pg-02")["read_only"]["state"] == "serves"
    })?;
    Ok(site)
}

pub(crate) fn database(site: &Site) -> Result<Value> {
    let all: Value = serde_json::from_str(&site.obeys("pg status --json")?)?;
    Ok(all[0].clone())
}

pub(crate) fn until(site: &Site, what: &str, so: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(what, || {
        let database = database(site)?;
        Ok(so(&database).then_some(database))
    })
}

pub(crate) fn server<'a>(database: &'a Value, name: &str) -> &'a Value {
    let servers = database["servers"].as_array().into_iter().flatten();
    servers.into_iter().find(|it| it["name"] == name).unwrap_or(&Value::Null)
}

/// Asks through the floating address; one value.
pub(crate) async fn ask(port: u16, statement: &str) -> Result<String> {
    let mut config = tokio_postgres::Config::new();
    config.host("192.0.2.100").port(port).user("app").password("app").dbname("app");
    let work = async {
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        let connection = tokio::spawn(connection);
        let rows = client.simple_query(statement).await;
        connection.abort();
        let value = rows?.into_iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok(value.unwrap_or_default())
    };
    tokio::time::timeout(TRY, work).await.context("wait")?
}

pub(crate) fn on<T: Send>(host: &Host, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    host.within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work())
    })?
}

/// The address of the server that a port leads to.
pub(crate) fn leads_to(site: &Site, port: u16) -> Result<String> {
    on(site.client(), async || ask(port, "select host(inet_server_addr())").await)
}

/// A client that writes numbers, one after the other, on a connection that it makes anew when it breaks.
struct Writer {
    stop: Arc<AtomicBool>,
    /// Numbers that were acknowledged, and when.
    acknowledged: Arc<Mutex<Vec<(u64, Instant)>>>,
    thread: JoinHandle<Result<()>>,
}

impl Writer {
    fn start(site: &Site) -> Result<Self> {
        let statement = "create table if not exists written (number bigint)";
        eventually("a table to write into", || {
            Ok(on(site.client(), async || ask(5432, statement).await).ok())
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let (host, ended, list) =
            (site.client().clone(), Arc::clone(&stop), Arc::clone(&acknowledged));
        let thread = std::thread::spawn(move || {
            on(&host, async || {
                let mut number = 0;
                while !ended.load(Ordering::Relaxed) {
                    // What goes wrong is tried again, with another number.
                    let _ = write(&mut number, &ended, &list).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(())
            })
        });
        let writer = Self { stop, acknowledged, thread };
        writer.more(20)?;
        Ok(writer)
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().expect("no writer panicked").len()
    }

    /// Waits until so many more have been acknowledged.
    fn more(&self, count: usize) -> Result<()> {
        let goal = self.count() + count;
        eventually("more writes", || Ok((self.count() >= goal).then_some(())))
    }

    fn end(self) -> Result<Vec<(u64, Instant)>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("join the writer")??;
        Ok(self.acknowledged.lock().expect("no writer panicked").clone())
    }
}

async fn write(
    number: &mut u64,
    ended: &AtomicBool,
    acknowledged: &Mutex<Vec<(u64, Instant)>>,
) -> Result<()> {
    let mut config = tokio_postgres::Config::new();
    config.host("192.0.2.100").port(5432).user("app").password("app").dbname("app");
    let connect = config.connect(tokio_postgres::NoTls);
    let (client, connection) = tokio::time::timeout(TRY, connect).await??;
    let connection = tokio::spawn(connection);
    while !ended.load(Ordering::Relaxed) {
        *number += 1;
        let statement = format!("insert into written values ({number})");
        let result = tokio::time::timeout(TRY, client.batch_execute(&statement)).await;
        if !matches!(result, Ok(Ok(()))) {
            break;
        }
        acknowledged.lock().expect("no writer panicked").push((*number, Instant::now()));
    }
    connection.abort();
    Ok(())
}

/// A client that is connected and does nothing, until its connection ends.
fn idle(site: &Site) -> Result<JoinHandle<()>> {
    let host = site.client().clone();
    let (connected, wait) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = on(&host, async || {
            let mut config = tokio_postgres::Config::new();
            config.host("192.0.2.100").port(5432).user("app").password("app").dbname("app");
            let (_client, connection) = config.connect(tokio_postgres::NoTls).await?;
            connected.send(())?;
            // Its end is an error that says that it was reset.
            let _ = connection.await;
            Ok(())
        });
    });
    wait.recv().context("connect an idle client")?;
    Ok(thread)
}

/// The longest time between two acknowledgements.
fn gap(acknowledged: &[(u64, Instant)]) -> Duration {
    let pairs = acknowledged.windows(2).map(|pair| pair[1].1 - pair[0].1);
    pairs.max().unwrap_or_default()
}

/// The acknowledged writes that the database does not have.
fn missing(site: &Site, acknowledged: &[(u64, Instant)]) -> Result<Vec<u64>> {
    let all = on(site.client(), async || {
        ask(5432, "select string_agg(number::text, ',') from written").await
    })?;
    let has: BTreeSet<u64> = all.split(',').filter_map(|number| number.parse().ok()).collect();
    let numbers = acknowledged.iter().map(|(number, _)| *number);
    Ok(numbers.filter(|number| !has.contains(number)).collect())
}

/// Commits wait for pg-02.
fn make_synchronous(site: &Site) -> Result<()> {
    let lab = site.lab();
    lab.query("pg-01", "alter system set synchronous_standby_names = '\"pg-02\"'")?;
    lab.query("pg-01", "select pg_reload_conf()")?;
    eventually("pg-02 to be synchronous", || {
        let state = lab.query("pg-01", "select sync_state from pg_stat_replication")?;
        Ok((state == "sync").then_some(()))
    })
}

#[test]
fn writes_reach_the_primary_and_reads_the_standby_that_is_not_late() -> Result<()> {
    let site = site("pg-routes", "")?;
    let config = site.lab().complete_config(&(default_config() + &postgres_config()));
    ensure!(leads_to(&site, 5432)? == "192.0.2.31");
    ensure!(leads_to(&site, 5433)? == "192.0.2.32");
    let status = site.status()?;
    ensure!(status.backend("appdb.read_write", "pg-02")["serving"] == false);
    ensure!(status.0["postgres"][0]["primary"] == "pg-01", "{}", status.0["postgres"]);
    let text = site.obeys("pg status")?;
    ensure!(text.contains("writes go to pg-01"), "{text}");
    // Late: replay stands still while the primary writes more than is allowed.
    site.write_config(
        &config.replace("user = \"ballast\"", "user = \"ballast\"\nmax_lag = \"1MiB\""),
    )?;
    site.obeys("reload")?;
    let lab = site.lab();
    lab.query("pg-02", "select pg_wal_replay_pause()")?;
    lab.query(
        "pg-01",
        "create table filler as select repeat('x', 1000) from generate_series(1, 8000)",
    )?;
    until(&site, "pg-02 to be late", |it| server(it, "pg-02")["read_only"]["state"] == "rests")?;
    eventually("reads to go to the primary", || {
        Ok((leads_to(&site, 5433)? == "192.0.2.31").then_some(()))
    })?;
    let plan = site.refuses("pg promote --yes --force --peer-is-down lb-02")?;
    ensure!(plan.contains("replay is paused"), "{plan}");
    lab.query("pg-02", "select pg_wal_replay_resume()")?;
    until(&site, "pg-02 to be back", |it| server(it, "pg-02")["read_only"]["state"] == "serves")?;
    eventually("reads to go to the standby", || {
        Ok((leads_to(&site, 5433)? == "192.0.2.32").then_some(()))
    })?;
    // A restart of the daemon changes nothing for writes.
    let before = Writer::start(&site)?;
    site.daemon().kill()?;
    site.daemon().start()?;
    before.more(50)?;
    ensure!(missing(&site, &before.end()?)?.is_empty());
    // A fence lets nothing through, and is kept.
    site.obeys("pg fence pg-01")?;
    ensure!(leads_to(&site, 5432).is_err());
    site.obeys("pg unfence pg-01")?;
    eventually("writes to go on", || Ok(leads_to(&site, 5432).ok()))?;
    site.finish()
}

#[test]
fn a_killed_primary_is_replaced_by_one_command() -> Result<()> {
    let site = site("pg-promote", "")?;
    make_synchronous(&site)?;
    let writer = Writer::start(&site)?;
    // It needs no primary that lives.
    let refused = site.refuses("pg promote --yes --peer-is-down lb-02")?;
    ensure!(refused.contains("switchover"), "{refused}");
    until(&site, "synchronous replication to be seen", |it| {
        it["servers"][0]["detail"]["standbys"][0]["sync_state"] == "sync"
    })?;
    site.lab().kill("pg-01")?;
    until(&site, "pg-01 to be found dead", |it| server(it, "pg-01")["failure_kind"] == "dead")?;
    let refused = site.refuses("pg promote --yes")?;
    ensure!(refused.contains("lb-02") && refused.contains("--peer-is-down"), "{refused}");
    until(&site, "pg-02 to answer", |it| server(it, "pg-02")["answers"] == true)?;
    let begin = Instant::now();
    let said = site.obeys("pg promote --yes --peer-is-down lb-02")?;
    let told = begin.elapsed();
    ensure!(said.contains("as synchronous replication proves"), "{said}");
    writer.more(50)?;
    let acknowledged = writer.end()?;
    let first = acknowledged.iter().find(|(_, at)| *at > begin).context("find a write")?.1;
    println!("from Enter to the answer {told:?}, to the first write {:?}", first - begin);
    ensure!(missing(&site, &acknowledged)?.is_empty(), "{:?}", missing(&site, &acknowledged)?);
    ensure!(leads_to(&site, 5432)? == "192.0.2.32");

    // The old primary comes back as it was, and is not reachable.
    site.lab().start("pg-01")?;
    ensure!(site.lab().query("pg-01", "select pg_is_in_recovery()")? == "f", "it takes writes");
    let database = until(&site, "pg-01 to be seen", |it| server(it, "pg-01")["answers"] == true)?;
    for service in ["read_write", "read_only"] {
        ensure!(server(&database, "pg-01")[service]["state"] == "barred", "{database}");
    }
    for _ in 0..10 {
        ensure!(leads_to(&site, 5432)? == "192.0.2.32");
        ensure!(leads_to(&site, 5433)? == "192.0.2.32", "reads go to the new primary, alone");
    }
    let commands = site.obeys("pg rejoin pg-01")?;
    ensure!(commands.contains("pg_rewind") && commands.contains("192.0.2.32"), "{commands}");
    // Nor after a restart of the daemon.
    site.daemon().kill()?;
    site.daemon().start()?;
    until(&site, "pg-02 to be the primary", |it| it["writes_to"] == "pg-02")?;
    ensure!(leads_to(&site, 5432)? == "192.0.2.32");
    site.finish()
}

/// A client that has asked once, and then is silent; its port.
fn silent(site: &Site) -> Result<(u16, std::sync::mpsc::Sender<()>)> {
    let host = site.client().clone();
    let (end, ended) = std::sync::mpsc::channel();
    let (connected, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        on(&host, async move || {
            let stream = tokio::net::TcpStream::connect(("192.0.2.100", 5432)).await?;
            let port = stream.local_addr()?.port();
            let mut config = tokio_postgres::Config::new();
            config.user("app").password("app").dbname("app");
            let (client, connection) = config.connect_raw(stream, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            client.simple_query("select 1").await?;
            connected.send(port)?;
            // Until the test is over; the connection needs no turn.
            Ok(ended.recv()?)
        })
    });
    Ok((wait.recv().context("connect a silent client")?, end))
}

/// A client that writes once and goes; its address.
fn passing(site: &Site) -> Result<String> {
    on(site.client(), async || {
        let stream = tokio::net::TcpStream::connect(("192.0.2.100", 5432)).await?;
        let address = stream.local_addr()?.to_string();
        let mut config = tokio_postgres::Config::new();
        config.user("app").password("app").dbname("app");
        let (client, connection) = config.connect_raw(stream, tokio_postgres::NoTls).await?;
        let connection = tokio::spawn(connection);
        client
            .batch_execute(
                "create table if not exists passed (); insert into passed default values",
            )
            .await?;
        drop(client);
        connection.await??;
        Ok(address)
    })
}

#[test]
fn who_may_have_lost_writes_is_named() -> Result<()> {
    let site = site("pg-losses", "")?;
    let (silent, _open) = silent(&site)?;
    let writer = Writer::start(&site)?;
    let began = Instant::now();
    eventually("the silent client to be silent for a while", || {
        writer.more(20)?;
        // Looks of the last twenty seconds stand for themselves.
        Ok((began.elapsed() > Duration::from_secs(20)).then_some(()))
    })?;
    // What is written from here on is lost.
    site.lab().cut("pg-02")?;
    until(&site, "pg-02 to be missed", |it| server(it, "pg-02")["answers"] == false)?;
    writer.more(50)?;
    let flows: Value =
        serde_json::from_str(&site.obeys("flows --service appdb.read_write --json")?)?;
    let clients: BTreeSet<String> = flows
        .as_array()
        .into_iter()
        .flatten()
        .filter(|flow| flow["phase"] == "established")
        .filter_map(|flow| Some(flow["client"].as_str()?.to_owned()))
        .collect();
    let silent = format!("192.0.2.9:{silent}");
    ensure!(clients.contains(&silent) && clients.len() == 2, "{clients:?}");
    // Some are over so long that nothing in the tables tells of them any more.
    let short = (0..3).map(|_| passing(&site)).collect::<Result<Vec<_>>>()?;
    eventually("the tables to forget them", || {
        let flows = site.obeys("flows --service appdb.read_write --json")?;
        Ok((!short.iter().any(|client| flows.contains(client))).then_some(()))
    })?;
    site.lab().kill("pg-01")?;
    until(&site, "pg-01 to be found dead", |it| server(it, "pg-01")["failure_kind"] == "dead")?;
    site.lab().heal("pg-02")?;
    until(&site, "pg-02 to answer", |it| server(it, "pg-02")["answers"] == true)?;
    eventually("a promotion, once pg-02 has noticed too that pg-01 is gone", || {
        let output = site.ballast("pg promote --yes --accept-data-loss --peer-is-down lb-02")?;
        Ok(output.status.success().then_some(()))
    })?;
    let database = until(&site, "the report", |it| !it["losses"].is_null())?;
    let report = &database["losses"];
    let named: BTreeSet<String> = report["clients"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|client| Some(client["address"].as_str()?.to_owned()))
        .collect();
    ensure!(!named.contains(&silent), "it has written nothing since: {report}");
    let writers: BTreeSet<_> = clients.into_iter().filter(|client| *client != silent).collect();
    ensure!(writers.is_subset(&named), "{writers:?} are not in {report}");
    ensure!(short.iter().all(|client| named.contains(client)), "{short:?} are not in {report}");
    ensure!(report["clients"][0]["first"].is_string(), "{report}");
    ensure!(report["loss"]["known"].as_u64() > Some(0), "{report}");
    let kept = fs::read_to_string(report["file"].as_str().context("find the file")?)?;
    ensure!(writers.iter().all(|client| kept.contains(client.as_str())), "{kept}");
    let told = site.events()?.into_iter().any(|event| {
        event["message"].as_str().is_some_and(|it| it.contains("may have lost writes to pg-01"))
    });
    ensure!(told, "it is on the timeline");
    let shown = site.obeys("pg status")?;
    ensure!(shown.contains("may have lost writes to pg-01"), "{shown}");
    let acknowledged = writer.end()?;
    ensure!(!missing(&site, &acknowledged)?.is_empty(), "nothing was lost");
    // A new daemon knows it too.
    site.daemon().kill()?;
    site.daemon().start()?;
    until(&site, "the report again", |it| it["losses"]["epoch"] == 2)?;
    site.finish()
}

#[test]
fn an_orderly_change_loses_nothing() -> Result<()> {
    let site = site("pg-switch", "")?;
    let writer = Writer::start(&site)?;
    let dry = site.obeys("pg switchover --dry-run --peer-is-down lb-02")?;
    ensure!(dry.contains("nothing was done") && dry.contains("pg-02"), "{dry}");
    ensure!(leads_to(&site, 5432)? == "192.0.2.31");
    let idle = idle(&site)?;
    site.obeys("pg switchover --yes --peer-is-down lb-02")?;
    eventually("the idle client to be told", || Ok(idle.is_finished().then_some(())))?;
    writer.more(50)?;
    let acknowledged = writer.end()?;
    println!("longest pause {:?}", gap(&acknowledged));
    ensure!(missing(&site, &acknowledged)?.is_empty(), "{:?}", missing(&site, &acknowledged)?);
    ensure!(leads_to(&site, 5432)? == "192.0.2.32");
    let database = until(&site, "pg-01 to be barred", |it| {
        server(it, "pg-01")["read_only"]["state"] == "barred"
    })?;
    ensure!(database["epoch"] == 2, "{database}");
    site.finish()
}

/// Processes of a host whose titles have these words.
fn processes(site: &Site, host: HostName, words: &str) -> Result<Vec<Pid>> {
    let folder = site.lab().data_dir().join(host.as_str());
    let postmaster = fs::read_to_string(folder.join("postmaster.pid"))?;
    let postmaster: i32 = postmaster.lines().next().context("read postmaster.pid")?.parse()?;
    let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"))?;
    let all = children.split_whitespace().map(str::parse).chain([Ok(postmaster)]);
    let mut found = Vec::new();
    for pid in all {
        let pid: i32 = pid?;
        let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&title).contains(words) {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// What the daemon has kept of the database.
fn kept_phase(site: &Site) -> String {
    let file = site.lab().state_dir().join("lb-01/state/postgres-appdb.json");
    let text = fs::read(file).unwrap_or_default();
    let kept: Value = serde_json::from_slice(&text).unwrap_or_default();
    kept["record"]["phase"].as_str().unwrap_or_default().to_owned()
}

/// Begins a promotion that the standby does not let end, kills the daemon in that phase, and lets go.
fn killed_in(site: &Site, phase: &str, stopped: &str) -> Result<()> {
    site.lab().kill("pg-01")?;
    until(site, "pg-01 to be found dead", |it| server(it, "pg-01")["failure_kind"] == "dead")?;
    let stopped = processes(site, HostName::Pg02, stopped)?;
    ensure!(!stopped.is_empty(), "pg-02 has no such process");
    for pid in &stopped {
        kill(*pid, Signal::SIGSTOP)?;
    }
    let mut command = site.lab().ballast_command("lb-01", "pg");
    command.args(["promote", "--yes", "--accept-data-loss", "--peer-is-down", "lb-02"]);
    let mut command = command.spawn().context("begin a promotion")?;
    eventually("the daemon to come so far", || Ok((kept_phase(site) == phase).then_some(())))?;
    site.daemon().kill()?;
    ensure!(!command.wait()?.success(), "the command has heard of no end");
    for pid in stopped {
        kill(pid, Signal::SIGCONT)?;
    }
    ensure!(kept_phase(site) == phase);
    site.daemon().start()?;
    until(site, "pg-02 to be the primary", |it| it["writes_to"] == "pg-02")?;
    ensure!(leads_to(site, 5432)? == "192.0.2.32");
    Ok(())
}

#[test]
fn a_daemon_killed_while_it_fences_goes_on() -> Result<()> {
    // Nothing of pg-02 answers; the daemon waits for it longer than the test takes.
    let site = site("pg-kill-fence", "")?;
    let slow = (default_config() + &postgres_config())
        .replace("user = \"ballast\"", "user = \"ballast\"\ntimeout = \"30s\"");
    site.write_config(&slow)?;
    site.obeys("reload")?;
    until(&site, "both to answer", |it| {
        it["writes_to"] == "pg-01" && server(it, "pg-02")["answers"] == true
    })?;
    killed_in(&site, "fencing", "postgres")?;
    site.finish()
}

#[test]
fn a_daemon_killed_while_it_promotes_goes_on() -> Result<()> {
    // Only the process that ends the recovery stands still.
    let site = site("pg-kill-promote", "")?;
    killed_in(&site, "promoting", "startup")?;
    site.finish()
}

#[test]
fn what_is_wrong_with_a_server_is_said() -> Result<()> {
    let site = site("pg-wrong", "")?;
    let password = site.lab().state_dir().join("pg.password");
    fs::write(&password, "not this one\n")?;
    // What is connected goes on; what is not is refused.
    until(&site, "the password to be refused", |it| {
        it["warnings"].to_string().contains("no new connections: wrong password")
    })?;
    site.daemon().kill()?;
    site.daemon().start()?;
    let database = until(&site, "the password to be refused again", |it| {
        server(it, "pg-01")["failure_kind"] == "refuses"
    })?;
    let why = server(&database, "pg-01")["failure"].to_string();
    ensure!(why.contains("wrong password"), "{why}");
    ensure!(database["writes_to"] == "pg-01", "who cannot look changes nothing: {database}");
    ensure!(leads_to(&site, 5432)? == "192.0.2.31");
    fs::write(&password, "ballast\n")?;
    until(&site, "pg-01 to answer", |it| server(it, "pg-01")["answers"] == true)?;
    site.lab()
        .query("pg-01", "revoke execute on function pg_promote(boolean, integer) from ballast")?;
    let database = until(&site, "the missing privilege to be named", |it| {
        it["warnings"].to_string().contains("EXECUTE on pg_promote")
    })?;
    ensure!(database["writes_to"] == "pg-01", "{database}");
    site.finish()
}
