//! An orderly change of the primary while pgbench works.

use std::process::Stdio;

use super::{figures::repeated, pair::pair, *};
use crate::peers::Key;

/// How long an attempt to connect may take. SYNs that are dropped come again after 1, 3 and 7 s.
const PATIENCE: Duration = Duration::from_secs(20);

/// Clients that connect one after the other, ask once, and go.
const VISITORS: usize = 4;

/// `pgbench`, over and over: a client of it ends when its connection does.
struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

fn pgbench(host: &Host, arguments: &[&str]) -> std::process::Command {
    let mut command = host.command("pgbench");
    command.args(["-h", "192.0.2.100", "-p", "5432", "-U", "app"]).args(arguments).arg("app");
    command.env("PGPASSWORD", "app").stdin(Stdio::null());
    command
}

impl Load {
    fn start(site: &Site) -> Result<Self> {
        let host = site.client().clone();
        xtask::shell::output(&mut pgbench(&host, &["-i", "-q", "-s", "1"]))
            .context("fill tables")?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut done = 0;
            while !ended.load(Ordering::Relaxed) {
                let output = pgbench(&host, &["-n", "-c", "4", "-R", "300", "-T", "2"]).output()?;
                // Whoever lost its connection makes it fail; what it has done counts all the same.
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                let line = said.lines().find_map(|line| {
                    line.strip_prefix("number of transactions actually processed: ")
                });
                let number =
                    line.and_then(|line| line.split(['/', ' ']).next()?.parse::<u64>().ok());
                done += number.unwrap_or(0);
            }
            Ok(done)
        });
        Ok(Self { stop, thread })
    }

    /// Says how many transactions were acknowledged.
    fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("join pgbench")?
    }
}

/// What became of those that connect.
#[derive(Default)]
struct Visits {
    /// How long each waited for its connection.
    waited: Vec<Duration>,
    /// Those that got none; why.
    refused: Vec<String>,
    /// Those whose connection was there, and ended before the answer.
    cut: usize,
}

/// Connects again and again until it is told to stop.
fn visit(host: &Host, stop: &AtomicBool) -> Result<Visits> {
    on(host, async || {
        let mut visits = Visits::default();
        while !stop.load(Ordering::Relaxed) {
            let begin = Instant::now();
            let stream = tokio::net::TcpStream::connect(("192.0.2.100", 5432));
            let stream = match tokio::time::timeout(PATIENCE, stream).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    visits.refused.push(error.to_string());
                    continue;
                }
                Err(_) => {
                    visits.refused.push("it has waited in vain".into());
                    continue;
                }
            };
            visits.waited.push(begin.elapsed());
            let mut config = tokio_postgres::Config::new();
            config.user("app").password("app").dbname("app");
            let ask = async {
                let (client, connection) =
                    config.connect_raw(stream, tokio_postgres::NoTls).await?;
                let connection = tokio::spawn(connection);
                let answer = client.simple_query("select 1").await;
                connection.abort();
                answer
            };
            if !matches!(tokio::time::timeout(PATIENCE, ask).await, Ok(Ok(_))) {
                visits.cut += 1;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(visits)
    })
}

fn hand_over() -> Result<Duration> {
    let key = Key::new("one key for both balancers\n")?;
    let site = pair("pg-bench", &key)?;
    let writer = Writer::start(&site)?;
    let load = Load::start(&site)?;
    let stop = Arc::new(AtomicBool::new(false));
    let visitors: Vec<_> = (0..VISITORS)
        .map(|_| {
            let (host, stop) = (site.client().clone(), Arc::clone(&stop));
            std::thread::spawn(move || visit(&host, &stop))
        })
        .collect();
    let transactions = "select count(*) from pgbench_history";
    eventually("pgbench to work", || {
        let count = on(site.client(), async || ask(5432, transactions).await)?;
        Ok((count.parse::<u64>()? > 100).then_some(()))
    })?;
    site.obeys("pg switchover --yes")?;
    writer.more(100)?;
    eventually("the way to the new primary", || {
        Ok((leads_to(&site, 5432)? == "192.0.2.32").then_some(()))
    })?;
    stop.store(true, Ordering::Relaxed);
    let mut all = Visits::default();
    for visitor in visitors {
        let visits = visitor.join().ok().context("join a visitor")??;
        all.waited.extend(visits.waited);
        all.refused.extend(visits.refused);
        all.cut += visits.cut;
    }
    let done = load.end()?;
    let acknowledged = writer.end()?;
    let pause = gap(&acknowledged);
    let waited = all.waited.iter().filter(|it| **it > Duration::from_millis(500)).count();
    println!(
        "switchover under pgbench: nothing was written for {pause:?}; of {} that connected {waited} waited, \
         {:?} at most; {} were cut off; pgbench did {done} transactions",
        all.waited.len(),
        all.waited.iter().max().copied().unwrap_or_default(),
        all.cut,
    );
    ensure!(all.refused.is_empty(), "these did not get a connection: {:?}", all.refused);
    ensure!(all.waited.len() > VISITORS, "nobody connected");
    ensure!(missing(&site, &acknowledged)?.is_empty(), "{:?}", missing(&site, &acknowledged)?);
    let kept: u64 = on(site.client(), async || ask(5432, transactions).await)?.parse()?;
    ensure!(kept >= done, "pgbench heard of {done} commits, and {kept} are there");
    site.finish()?;
    Ok(pause)
}

#[test]
fn who_connects_during_a_switchover_waits_and_nothing_is_lost() -> Result<()> {
    repeated("switchover under pgbench, longest pause", hand_over)
}
