//! Consistency under faults, in the manner of Jepsen (<https://jepsen.io/consistency>): clients write through the
//! floating address while servers, links and daemons are killed, paused and cut, in an order that a seed gives.
//!
//! What must hold: each write that was acknowledged is there at the end, once; and no write is acknowledged by a
//! server of an earlier timeline after one of a later one was acknowledged, so that there are never two servers
//! that clients can write to. Commits that came back with "canceling wait for synchronous replication" count as
//! unknown.
//!
//! `BALLAST_NEMESIS_SECONDS` says how long it goes on, `BALLAST_NEMESIS_SEED` repeats the order of an earlier run.

use std::{collections::BTreeMap, env, future::poll_fn, path::Path, sync::atomic::AtomicU64};

use tokio_postgres::{AsyncMessage, NoTls};

use super::{
    pair::{BOTH, both_see, database_of, pair},
    *,
};
use crate::{
    peers::{self, Key},
    rejoin,
};

/// How long faults go on, if nobody says so.
const SECONDS: u64 = 60;

const WRITERS: usize = 4;

/// What one statement of a writer may take: a commit may wait for a standby that is off for a while.
const STATEMENT: Duration = Duration::from_secs(10);

/// A write that was acknowledged.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    value: u64,
    /// The timeline of the server that took it, which each promotion raises.
    timeline: u64,
    invoked: Instant,
    completed: Instant,
}

#[derive(Default)]
struct History {
    acknowledged: Vec<Acknowledged>,
    /// Writes of which nobody knows whether they are there.
    unknown: u64,
}

struct Writers {
    stop: Arc<AtomicBool>,
    history: Arc<Mutex<History>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Writers {
    fn start(site: &Site) -> Self {
        let (stop, history) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
        let next = Arc::new(AtomicU64::new(1));
        let mut threads = Vec::new();
        for _ in 0..WRITERS {
            let (host, stop) = (site.client().clone(), Arc::clone(&stop));
            let (history, next) = (Arc::clone(&history), Arc::clone(&next));
            threads.push(std::thread::spawn(move || {
                on(&host, async || {
                    while !stop.load(Ordering::Relaxed) {
                        // What breaks is begun anew, with another value.
                        let _ = append(&stop, &history, &next).await;
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Ok(())
                })
            }));
        }
        Self { stop, history, threads }
    }

    fn count(&self) -> usize {
        self.history.lock().expect("no writer panicked").acknowledged.len()
    }

    fn more(&self, count: usize) -> Result<()> {
        let goal = self.count() + count;
        eventually("more writes", || Ok((self.count() >= goal).then_some(())))
    }

    fn end(self) -> Result<History> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().ok().context("join a writer")??;
        }
        let history = Arc::into_inner(self.history).context("take the history")?;
        Ok(history.into_inner().expect("no writer panicked"))
    }
}

/// Connects, and appends values until something breaks.
async fn append(stop: &AtomicBool, history: &Mutex<History>, next: &AtomicU64) -> Result<()> {
    let mut config = tokio_postgres::Config::new();
    config.host("192.0.2.100").port(5432).user("app").password("app").dbname("app");
    let connect = config.connect(NoTls);
    let (client, mut connection) = tokio::time::timeout(TRY, connect).await??;
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
    while !stop.load(Ordering::Relaxed) {
        let value = next.fetch_add(1, Ordering::Relaxed);
        let statement = format!(
            "insert into acked values ({value}) \
             returning ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int"
        );
        let invoked = Instant::now();
        let result = tokio::time::timeout(STATEMENT, client.simple_query(&statement)).await;
        let completed = Instant::now();
        let timeline = match result {
            Ok(Ok(messages)) => messages.iter().find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
                _ => None,
            }),
            _ => None,
        };
        let known = timeline.filter(|_| !cancelled.swap(false, Ordering::SeqCst));
        {
            let mut history = history.lock().expect("no writer panicked");
            let Some(timeline) = known else {
                history.unknown += 1;
                break;
            };
            history.acknowledged.push(Acknowledged { value, timeline, invoked, completed });
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    connection.abort();
    Ok(())
}

/// What is done to the system.
#[derive(Clone, Copy, Debug)]
enum Fault {
    KillPrimary,
    CutPrimary,
    PausePrimary,
    DeafPrimary,
    KillStandby,
    CutStandby,
    KillDaemon(HostName),
    PauseDaemon(HostName),
    Switchover,
}

impl Fault {
    fn choose(random: &mut fastrand::Rng) -> Self {
        let node = BOTH[random.usize(..BOTH.len())];
        let all = [
            Self::KillPrimary,
            Self::CutPrimary,
            Self::PausePrimary,
            Self::DeafPrimary,
            Self::KillStandby,
            Self::CutStandby,
            Self::KillDaemon(node),
            Self::PauseDaemon(node),
            Self::Switchover,
        ];
        all[random.usize(..all.len())]
    }
}

/// The primary and its standby, as the balancers know them.
fn roles(site: &Site) -> Result<(&'static str, &'static str)> {
    let database = both_agree(site)?;
    Ok(if database["primary"] == "pg-01" { ("pg-01", "pg-02") } else { ("pg-02", "pg-01") })
}

/// Both balancers have the same record, and writes go to its primary.
fn both_agree(site: &Site) -> Result<Value> {
    eventually("both balancers to agree", || {
        let [one, two] = BOTH.map(|host| database_of(site, host));
        let (one, two) = (one?, two?);
        let same =
            ["primary", "writes_to", "epoch", "phase"].iter().all(|key| one[key] == two[key]);
        Ok((same && one["phase"] == "serving" && one["writes_to"] == one["primary"]).then_some(one))
    })
}

fn signal_all(site: &Site, server: &str, signal: Signal) -> Result<()> {
    let host = if server == "pg-01" { HostName::Pg01 } else { HostName::Pg02 };
    for pid in processes(site, host, "")? {
        // It may have ended meanwhile.
        let _ = kill(pid, signal);
    }
    if signal == Signal::SIGKILL {
        // Where nobody reaps it, `pg_ctl` would take its zombie for a server that runs.
        fs::remove_file(site.lab().data_dir().join(server).join("postmaster.pid"))?;
    }
    Ok(())
}

/// Lets no packet in, and all out.
fn deafen(site: &Site, server: &str, deaf: bool) -> Result<()> {
    let host = if server == "pg-01" { HostName::Pg01 } else { HostName::Pg02 };
    let rules: &[&str] = if deaf {
        &[
            "nft add table inet deaf; add chain inet deaf in { type filter hook input priority 0; policy drop; }",
        ]
    } else {
        &["nft delete table inet deaf"]
    };
    for rule in rules {
        let words = rule.trim_start_matches("nft ");
        site.run(host, &["nft", words])?;
    }
    Ok(())
}

/// Makes a server a standby of the primary.
fn come_back(site: &Site, server: &str) -> Result<()> {
    eventually(&format!("{server} to come back"), || {
        for folder in [site.lab().state_dir(), site.lab().data_dir()] {
            for name in [".s.PGSQL.5432.lock", "postmaster.pid"] {
                forget_the_dead(&folder.join(server).join(name));
            }
        }
        let output = site.ballast(&format!("pg rejoin {server} --yes"))?;
        Ok(output.status.success().then_some(()))
    })
}

/// Removes a lock of a process that was killed and that nobody has collected yet: the server takes it for one
/// that runs.
fn forget_the_dead(lock: &Path) {
    let Ok(text) = fs::read_to_string(lock) else { return };
    let pid = text.lines().next().unwrap_or_default();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')) {
        // If it stays, the server says so.
        let _ = fs::remove_file(lock);
    }
}

/// Promotes the standby of a primary that is gone, as a person would, and makes the old one a standby.
fn replace(site: &Site, old: &str, new: &str, heal: impl FnOnce() -> Result<()>) -> Result<()> {
    eventually("the standby to be promoted", || {
        let output = site.ballast("pg promote --yes")?;
        // Until all have seen that it is down, it is refused.
        Ok(output.status.success().then_some(()))
    })?;
    heal()?;
    come_back(site, old)?;
    synchronous(site, new, old)
}

/// Commits on `primary` wait for `standby`.
fn synchronous(site: &Site, primary: &str, standby: &str) -> Result<()> {
    let lab = site.lab();
    lab.query(primary, &format!("alter system set synchronous_standby_names = '\"{standby}\"'"))?;
    lab.query(primary, "select pg_reload_conf()")?;
    Ok(())
}

/// All is well: the standby streams and is synchronous, and both balancers have seen that.
fn steady(site: &Site) -> Result<()> {
    let (primary, standby) = roles(site)?;
    eventually("the standby to be synchronous", || {
        let state = site.lab().query(primary, "select sync_state from pg_stat_replication")?;
        Ok((state == "sync").then_some(()))
    })?;
    both_see(site, "all to be well", |it| {
        let sync = &server(it, primary)["sync"];
        sync["have"] == 1
            && server(it, primary)["answers"] == true
            && server(it, standby)["read_only"]["state"] == "serves"
    })?;
    peers::until_in_sync(site)
}

fn play(site: &Site, fault: Fault, random: &mut fastrand::Rng) -> Result<()> {
    let (primary, standby) = roles(site)?;
    let lab = site.lab();
    let while_it_lasts = Duration::from_millis(random.u64(200..3000));
    match fault {
        Fault::KillPrimary => {
            signal_all(site, primary, Signal::SIGKILL)?;
            replace(site, primary, standby, || Ok(()))
        }
        Fault::CutPrimary => {
            lab.cut(primary)?;
            replace(site, primary, standby, || lab.heal(primary))
        }
        Fault::PausePrimary => {
            signal_all(site, primary, Signal::SIGSTOP)?;
            std::thread::sleep(while_it_lasts);
            signal_all(site, primary, Signal::SIGCONT)
        }
        Fault::DeafPrimary => {
            deafen(site, primary, true)?;
            std::thread::sleep(while_it_lasts);
            deafen(site, primary, false)
        }
        Fault::KillStandby => {
            signal_all(site, standby, Signal::SIGKILL)?;
            std::thread::sleep(while_it_lasts);
            // It was started with the passwords that only this way has.
            come_back(site, standby)
        }
        Fault::CutStandby => {
            lab.cut(standby)?;
            std::thread::sleep(while_it_lasts);
            lab.heal(standby)
        }
        Fault::KillDaemon(node) => {
            lab.daemon(node.as_str()).kill()?;
            std::thread::sleep(while_it_lasts);
            lab.daemon(node.as_str()).start()
        }
        Fault::PauseDaemon(node) => {
            lab.daemon(node.as_str()).signal(Signal::SIGSTOP)?;
            std::thread::sleep(while_it_lasts);
            lab.daemon(node.as_str()).signal(Signal::SIGCONT)
        }
        Fault::Switchover => {
            site.obeys("pg switchover --yes --wait 30s --cut")?;
            come_back(site, primary)?;
            synchronous(site, standby, primary)
        }
    }
}

/// Checks what clients have seen against what there is.
fn judge(site: &Site, history: &History) -> Result<()> {
    let all = on(site.client(), async || {
        ask(5432, "select string_agg(value::text, ',') from acked").await
    })?;
    let mut has = BTreeMap::<u64, usize>::new();
    for value in all.split(',').filter_map(|value| value.parse().ok()) {
        *has.entry(value).or_default() += 1;
    }
    let lost: Vec<_> =
        history.acknowledged.iter().filter(|it| !has.contains_key(&it.value)).collect();
    ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    ensure!(has.values().all(|&count| count == 1), "a value is there twice");
    let mut by_end = history.acknowledged.clone();
    by_end.sort_by_key(|it| it.completed);
    let mut by_begin = history.acknowledged.clone();
    by_begin.sort_by_key(|it| it.invoked);
    let (mut ended, mut newest) = (by_end.iter().peekable(), 0);
    for write in &by_begin {
        while let Some(before) = ended.next_if(|before| before.completed < write.invoked) {
            newest = newest.max(before.timeline);
        }
        ensure!(
            write.timeline >= newest,
            "{write:?} was acknowledged after a server of timeline {newest} had taken a write"
        );
    }
    Ok(())
}

/// The longest time between two acknowledgements in a span.
fn pause(history: &Mutex<History>, since: Instant) -> Duration {
    let history = history.lock().expect("no writer panicked");
    let mut times: Vec<_> =
        history.acknowledged.iter().map(|it| it.completed).filter(|at| *at >= since).collect();
    times.push(since);
    times.sort();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

#[test]
fn no_acknowledged_write_is_lost_whatever_happens() -> Result<()> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("BALLAST_NEMESIS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let lasts = Duration::from_secs(number("BALLAST_NEMESIS_SECONDS").unwrap_or(SECONDS));
    println!("BALLAST_NEMESIS_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let key = Key::new("one key for both balancers\n")?;
    let site = pair("nemesis", &key)?;
    rejoin::prepare(&site)?;
    let config = peers::config(&key) + &postgres_config();
    site.write_config(&rejoin::with_hosts(&site, &config))?;
    for host in BOTH {
        peers::obeys(&site, host, "reload")?;
    }
    make_synchronous(&site)?;
    steady(&site)?;
    on(site.client(), async || ask(5432, "create table acked (value bigint)").await)?;
    let writers = Writers::start(&site);
    writers.more(50)?;
    let begin = Instant::now();
    let mut faults = 0;
    while begin.elapsed() < lasts {
        let fault = Fault::choose(&mut random);
        let since = Instant::now();
        play(&site, fault, &mut random).with_context(|| format!("{fault:?}, seed {seed}"))?;
        steady(&site).with_context(|| format!("after {fault:?}, seed {seed}"))?;
        writers.more(20).with_context(|| format!("after {fault:?}, seed {seed}"))?;
        println!("{fault:?}: longest pause {:?}", pause(&writers.history, since));
        faults += 1;
    }
    let history = writers.end()?;
    println!(
        "{faults} faults, {} writes acknowledged, {} unknown",
        history.acknowledged.len(),
        history.unknown
    );
    judge(&site, &history).with_context(|| format!("seed {seed}"))?;
    site.finish()
}
