//! Requests through the lab: a client, the floating address, a real nginx; beside the same requests
//! straight to nginx, and through what else could stand in between.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, bail, ensure};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use serde::Serialize;
use xtask::{
    build,
    lab::{Balancers, Lab, Options, test_name},
    run::status::Status,
    shell, wait,
};

use crate::{
    measure::median,
    rivals::{self, Rival, Rivals},
};

/// The node that holds the floating addresses.
const NODE: &str = "lb-01";
/// The app server.
const APP: &str = "app-01";
/// The service.
const SERVICE: &str = "web";
/// How long the backend may take to be found up.
const VERDICT_LIMIT: Duration = Duration::from_secs(30);
/// Open connections of the client.
pub(crate) const CONNECTIONS: u32 = 16;

/// How long to measure.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Load {
    /// Turns of each way.
    pub(crate) rounds: u32,
    /// Seconds of a turn.
    pub(crate) seconds: u32,
}

/// What came of all of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Requests {
    pub(crate) load: Load,
    /// Straight to the app server.
    pub(crate) direct: Way,
    /// Through the floating address.
    pub(crate) balanced: Way,
    /// Through others, by their names.
    pub(crate) rivals: Vec<(&'static str, Way)>,
    pub(crate) program: ProgramTime,
}

/// Requests on one way: medians of the turns.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Way {
    pub(crate) requests_per_second: f64,
    /// Of the whole machine, interrupts included.
    pub(crate) cpu_us_per_request: f64,
    /// Of nginx alone.
    pub(crate) nginx_us_per_request: f64,
    /// Half of the requests took less.
    pub(crate) latency_p50_us: f64,
    /// Of 100 requests one took more.
    pub(crate) latency_p99_us: f64,
}

/// What the kernel says of the XDP program, in a turn of its own, since asking costs time too.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ProgramTime {
    pub(crate) ns_per_packet: f64,
    pub(crate) packets_per_request: f64,
    pub(crate) us_per_request: f64,
    /// Of nginx's CPU for the same requests.
    pub(crate) percent_of_nginx: f64,
}

/// Most that the program's own time may be of nginx's CPU for the same requests, percent.
const MOST_OF_NGINX: f64 = 6.0;

impl Requests {
    /// Whether the program takes more than it may.
    pub(crate) fn exceeded(&self) -> Option<String> {
        let percent = self.program.percent_of_nginx;
        (percent > MOST_OF_NGINX).then(|| {
            format!("the XDP program: {percent:.1} % of nginx's CPU, above {MOST_OF_NGINX} %")
        })
    }
}

/// Brings a lab up, measures, and takes it down.
pub(crate) fn measure(load: Load) -> anyhow::Result<Requests> {
    let ballast = build::ballast().context("build ballast")?;
    let lab = Lab::up(Options {
        name: test_name("bench"),
        balancers: Balancers::First,
        // One on both ways: else they would differ in the number of nginx processes too.
        apps: 1,
        ballast: Some(ballast),
        ..Options::default()
    })
    .context("bring up a lab")?;
    wait::until(VERDICT_LIMIT, "the one app server to be found up", || {
        let serving = Status::of(&lab)?.serving(SERVICE).unwrap_or_default();
        Ok((serving == [APP]).then_some(()))
    })?;

    for host in ["client", NODE, "lb-02", APP] {
        rivals::plain_packets(lab.host(host))?;
    }
    let app = format!("{}:8080", lab.host(APP).ipv4());
    let direct = format!("http://{app}/");
    let balanced = "http://192.0.2.100/".to_owned();
    let others = Rivals::start(&lab, &app).context("start the rivals")?;
    let urls: Vec<String> = [direct.clone(), balanced.clone()]
        .into_iter()
        .chain(Rival::ALL.map(|rival| rival.url(&lab)))
        .collect();
    let mut turns: BTreeMap<&str, Vec<Turn>> = BTreeMap::new();
    for _ in 0..load.rounds {
        for url in &urls {
            turns.entry(url).or_default().push(Turn::run(&lab, url, load.seconds)?);
        }
    }
    drop(others);
    let way = |url: &str| Way::of(&turns[url]);
    let program = program_time(&lab, &balanced, load.seconds)?;
    let requests = Requests {
        load,
        direct: way(&direct),
        balanced: way(&balanced),
        rivals: Rival::ALL.map(|rival| (rival.name(), way(&rival.url(&lab)))).to_vec(),
        program,
    };
    lab.down().context("take the lab down")?;
    Ok(requests)
}

/// One turn.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Turn {
    pub(crate) requests: f64,
    pub(crate) seconds: f64,
    pub(crate) cpu_us: f64,
    nginx_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Turn {
    fn run(lab: &Lab, url: &str, seconds: u32) -> anyhow::Result<Self> {
        let cpu = machine_us()?;
        let nginx = nginx_us(lab)?;
        let mut client = lab.host("client").command("wrk");
        client.arg("--threads=1").arg(format!("--connections={CONNECTIONS}"));
        client.arg(format!("--duration={seconds}s")).arg("--latency").arg(url);
        let output = shell::output(&mut client)?;
        let cpu_us = machine_us()? - cpu;
        let nginx_us = nginx_us(lab)? - nginx;
        Self::parse(&output, cpu_us, nginx_us)
            .with_context(|| format!("read what wrk says of {url}:\n{output}"))
    }

    /// What wrk says of a turn, with the CPU time that was read beside it.
    pub(crate) fn parse(output: &str, cpu_us: f64, nginx_us: f64) -> anyhow::Result<Self> {
        for trouble in ["Non-2xx", "Socket errors"] {
            if let Some(line) = output.lines().find(|line| line.contains(trouble)) {
                bail!("some requests failed: {}", line.trim());
            }
        }
        let words = |start: &str| {
            let line = output.lines().map(str::trim).find(|line| line.starts_with(start));
            line.map(|line| line.split_whitespace().collect::<Vec<_>>())
                .with_context(|| format!("find the line of {start}"))
        };
        // "54321 requests in 3.00s, 12.34MB read"
        let total = output.lines().find(|line| line.contains(" requests in "));
        let total: Vec<_> = total.context("find the sum")?.split_whitespace().collect();
        let requests: f64 = total[0].parse().context("read the number of requests")?;
        let per_second: f64 = words("Requests/sec:")?[1].parse().context("read the rate")?;
        ensure!(requests > 0.0 && per_second > 0.0, "no request was answered");
        Ok(Self {
            requests,
            seconds: requests / per_second,
            cpu_us,
            nginx_us,
            p50_us: time_us(words("50%")?[1])?,
            p99_us: time_us(words("99%")?[1])?,
        })
    }
}

/// A time as wrk writes it.
fn time_us(text: &str) -> anyhow::Result<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6)] {
        if let Some(number) = text.strip_suffix(unit) {
            let number: f64 = number.parse().with_context(|| format!("read the time {text}"))?;
            return Ok(number * factor);
        }
    }
    bail!("read the time {text}")
}

impl Way {
    fn of(turns: &[Turn]) -> Self {
        let middle =
            |figure: fn(&Turn) -> f64| median(&turns.iter().map(figure).collect::<Vec<_>>());
        Self {
            requests_per_second: middle(|turn| turn.requests / turn.seconds),
            cpu_us_per_request: middle(|turn| turn.cpu_us / turn.requests),
            nginx_us_per_request: middle(|turn| turn.nginx_us / turn.requests),
            latency_p50_us: middle(|turn| turn.p50_us),
            latency_p99_us: middle(|turn| turn.p99_us),
        }
    }
}

fn program_time(lab: &Lab, url: &str, seconds: u32) -> anyhow::Result<ProgramTime> {
    let id = Status::of(lab)?.program_id();
    // Until it is dropped, the kernel keeps the time of all programs.
    let stats = enable_stats(Stats::RunTime).context("switch BPF statistics on")?;
    let before = run_time(id)?;
    let turn = Turn::run(lab, url, seconds)?;
    let after = run_time(id)?;
    drop(stats);
    let (ns, packets) = (after.0 - before.0, after.1 - before.1);
    // A request is at least a packet each way.
    ensure!(packets >= 2.0 * turn.requests, "the requests did not go through the XDP program");
    let us_per_request = ns / 1e3 / turn.requests;
    Ok(ProgramTime {
        ns_per_packet: ns / packets,
        packets_per_request: packets / turn.requests,
        us_per_request,
        percent_of_nginx: 100.0 * us_per_request / (turn.nginx_us / turn.requests),
    })
}

/// Nanoseconds and packets so far.
fn run_time(id: u32) -> anyhow::Result<(f64, f64)> {
    for program in loaded_programs() {
        let program = program.context("list the BPF programs")?;
        if program.id() == id {
            return Ok((program.run_time().as_nanos() as f64, program.run_count() as f64));
        }
    }
    bail!("there is no BPF program {id}")
}

/// CPU time that the machine has spent, idle time aside.
fn machine_us() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = text.lines().next().context("read /proc/stat")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).map_while(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq
    ensure!(ticks.len() >= 7, "/proc/stat begins with {line:?}");
    let busy = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6];
    // SAFETY: the call takes a number and gives one.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(busy * 1e6 / per_second as f64)
}

/// CPU time that the app server's nginx has spent.
fn nginx_us(lab: &Lab) -> anyhow::Result<f64> {
    let master = lab.program(APP, "nginx").pid().context("find nginx")?;
    let file = format!("/proc/{master}/task/{master}/children");
    let workers = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let mut sum = 0.0;
    for worker in workers.split_whitespace() {
        let file = format!("/proc/{worker}/schedstat");
        let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
        let ns = text.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok());
        sum += ns.with_context(|| format!("read {file}"))? / 1e3;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "Running 3s test @ http://192.0.2.21:8080/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   123.45us  200.00us   5.00ms   95.00%
    Req/Sec   100.00k     5.00k  110.00k    70.00%
  Latency Distribution
     50%   80.00us
     75%  100.00us
     90%  150.00us
     99%    1.25ms
  300000 requests in 3.00s, 70.00MB read
Requests/sec: 100000.00
Transfer/sec:     23.33MB
";

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6 * b.abs()
    }

    #[test]
    fn what_wrk_says_is_understood() {
        let turn = Turn::parse(OUTPUT, 6e6, 3e6).unwrap();
        let way = Way::of(&[turn]);
        assert!(near(way.requests_per_second, 100_000.0));
        assert!(near(way.cpu_us_per_request, 20.0));
        assert!(near(way.nginx_us_per_request, 10.0));
        assert!(near(way.latency_p50_us, 80.0));
        assert!(near(way.latency_p99_us, 1250.0));
    }

    #[test]
    fn failed_requests_spoil_the_figure() {
        for line in [
            "  Socket errors: connect 0, read 3, write 0, timeout 0",
            "  Non-2xx or 3xx responses: 5",
        ] {
            let error = Turn::parse(&format!("{OUTPUT}{line}\n"), 1.0, 1.0).unwrap_err();
            assert!(error.to_string().contains(line.trim()), "{error}");
        }
        assert!(Turn::parse("", 1.0, 1.0).is_err());
    }
}
