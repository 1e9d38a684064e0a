//! `--l7`: what a request costs the proxy, beside nginx and `HAProxy`.
//!
//! Each has one thread on one CPU, the last that there is; the clients and the app server share the
//! others. What counts is the CPU time of the proxy's own process ([`cpu`]), so that neither clients
//! nor app server are a bottleneck in it. All take turns, so that whatever else the machine does falls
//! on all of them alike.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail, ensure};
use ballast::proxy::files;
use serde::Serialize;
use xtask::{
    bench::Args,
    lab::{Balancers, Lab, Options, test_name},
    shell,
};

use self::{
    fronts::{Front, Fronts},
    paced::Paced,
};
use crate::{
    machine::{self, Machine},
    measure::{is_above, median},
    requests::Turn,
    rivals,
};

mod cpu;
mod fronts;
mod memory;
mod paced;
mod report;
mod train;
mod websockets;

/// Open connections of the clients.
const CONNECTIONS: u32 = 64;

/// The most that ballast's 99th percentile may be of nginx's, with `--check`. It scatters by a factor
/// from turn to turn, for all of them: so what counts is whether it is above in more of the rounds than by
/// chance ([`is_above`]).
const MOST_P99: f64 = 1.0;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Case {
    /// A few bytes, on connections that stay open.
    Short,
    /// 1 MiB, on connections that stay open.
    Large,
    /// A few bytes, each on a connection of its own.
    Close,
    /// A few bytes, on connections that stay open and speak TLS.
    Tls,
}

impl Case {
    const ALL: [Self; 4] = [Self::Short, Self::Large, Self::Close, Self::Tls];

    const fn name(self) -> &'static str {
        match self {
            Self::Short => "short requests, kept connections",
            Self::Large => "bodies of 1 MiB, kept connections",
            Self::Close => "short requests, a connection each",
            Self::Tls => "short requests, kept connections, TLS",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Large => "/large",
            Self::Short | Self::Close | Self::Tls => "/",
        }
    }

    /// Whether one of the words, if there are any, is in its name.
    fn is_wanted(self, words: &[String]) -> bool {
        words.is_empty() || words.iter().any(|words| self.name().contains(words.as_str()))
    }

    /// The least that ballast's requests for each CPU-second may be of nginx's, with `--check`.
    const fn least_ratio(self) -> f64 {
        match self {
            Self::Short | Self::Large | Self::Close | Self::Tls => 1.0,
        }
    }
}

/// How long to measure.
#[derive(Clone, Copy, Debug, Serialize)]
struct Load {
    /// Turns of each proxy and case.
    rounds: u32,
    /// Seconds of a turn.
    seconds: u32,
    /// Connections that are open and unused.
    idle: usize,
}

/// What a proxy did in a case: medians of the turns.
#[derive(Clone, Debug, Serialize)]
struct Figure {
    front: Front,
    case: Case,
    /// For each second of CPU time of its process.
    requests_per_cpu_second: f64,
    /// That, as a multiple of nginx's in the same round.
    times_nginx: f64,
    requests_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    /// The latter, as multiples of nginx's in the same rounds.
    p99_times_nginx: Vec<f64>,
    /// What it is made of.
    turns: Vec<Turn>,
}

/// How long requests take at a proxy that is not at its limit: medians of the turns.
#[derive(Clone, Debug, Serialize)]
struct Calm {
    front: Front,
    case: Case,
    /// The same for all of a case: [`paced::SHARE`] of nginx's at its limit.
    requests_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    /// The latter, as multiples of nginx's in the same rounds.
    p99_times_nginx: Vec<f64>,
    /// What it is made of.
    turns: Vec<Paced>,
}

/// Memory of a proxy.
#[derive(Clone, Debug, Serialize)]
struct Idle {
    front: Front,
    /// What each open and unused connection adds to the process's resident memory.
    bytes_per_connection: f64,
}

/// All that was measured.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    load: Load,
    figures: Vec<Figure>,
    calm: Vec<Calm>,
    idle: Vec<Idle>,
}

/// Measures, and prints.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let load = if args.quick {
        Load { rounds: 5, seconds: 2, idle: 500 }
    } else {
        Load { rounds: 11, seconds: 3, idle: 2000 }
    };
    // Each connection needs one.
    files::raise().context("raise the limit of files")?;
    if let Some(ballast) = &args.l7.train {
        return train::run(ballast);
    }
    let ballast = args.l7.binary()?;
    if let Some(count) = args.l7.websockets {
        return websockets::run(ballast, count, args.l7.minutes, args.check);
    }
    let cases: Vec<_> = Case::ALL.into_iter().filter(|case| case.is_wanted(&args.only)).collect();
    ensure!(!cases.is_empty(), "no line of the table has any of the words of --only");
    let report = measure(load, &cases, ballast)?;
    let json = || serde_json::to_string_pretty(&report).context("write JSON");
    match &args.json {
        Some(path) if path.as_os_str() == "-" => println!("{}", json()?),
        Some(path) => {
            fs::write(path, json()?).with_context(|| format!("write {}", path.display()))?;
            print!("{report}");
        }
        None => print!("{report}"),
    }
    let short = report.short();
    for figure in &short {
        eprintln!("beyond its bound: {figure}");
    }
    if args.check && !short.is_empty() {
        bail!("{} of the figures are beyond their bounds", short.len());
    }
    Ok(())
}

/// The proxy's CPU, and those of everybody else.
fn shares() -> anyhow::Result<(Vec<usize>, Vec<usize>)> {
    let mut cpus = machine::cpus()?;
    let own = vec![cpus.pop().context("find a CPU")?];
    let others = if cpus.is_empty() { own.clone() } else { cpus };
    Ok((own, others))
}

fn measure(load: Load, cases: &[Case], ballast: PathBuf) -> anyhow::Result<Report> {
    let (own, others) = shares()?;
    let lab = machine::on_cpus(&others, || {
        Lab::up(Options {
            name: test_name("bench-l7"),
            balancers: Balancers::None,
            apps: 0,
            config: Some(fronts::ballast_config()),
            ballast: Some(ballast),
            ..Options::default()
        })
        .context("bring up a lab")
    })?;
    for host in ["client", "app-01", "lb-01", "lb-02"] {
        let host = lab.host(host);
        rivals::plain_packets(host)?;
        // All that arrives anywhere is taken in by the proxy's CPU. Else each packet that it sends may
        // have to wake another CPU, which costs it more than the packet does, and the more so the more
        // seldom it sends.
        host.receive_on(&own)?;
    }
    lab.host("lb-02").pass_by_xdp().context("put a program on the rivals' interface")?;
    let fronts = Fronts::start(&lab, &own, &others).context("start the proxies")?;
    // Before anything else: memory that was used once stays with the process.
    let mut idle = Vec::new();
    for front in Front::ALL.into_iter().filter(|_| cases == Case::ALL) {
        eprintln!("{}: {} unused connections …", front.name(), load.idle);
        let bytes_per_connection = memory::of_idle(&lab, &fronts, front, load.idle)?;
        idle.push(Idle { front, bytes_per_connection });
    }
    let (mut figures, mut calm) = (Vec::new(), Vec::new());
    for &case in cases {
        eprintln!("{} …", case.name());
        let mut rounds = Vec::new();
        for _ in 0..load.rounds {
            let mut round = Vec::new();
            for front in Front::ALL {
                round.push(machine::on_cpus(&others, || {
                    turn(&lab, &fronts, front, case, load.seconds)
                })?);
            }
            rounds.push(round);
        }
        for (at, front) in Front::ALL.into_iter().enumerate() {
            figures.push(Figure::of(front, case, at, &rounds));
        }
        // How long 1 MiB takes says how fast the wire is.
        if case == Case::Large {
            continue;
        }
        let nginx = figures.iter().rfind(|figure| figure.front == Front::Nginx);
        let rate = nginx.context("find nginx's rate")?.requests_per_second * paced::SHARE;
        let mut rounds = Vec::new();
        for _ in 0..load.rounds {
            let turn = |front| {
                machine::on_cpus(&others, || paced::turn(&lab, front, case, rate, load.seconds))
            };
            rounds.push(Front::ALL.into_iter().map(turn).collect::<anyhow::Result<Vec<_>>>()?);
        }
        for (at, front) in Front::ALL.into_iter().enumerate() {
            calm.push(Calm::of(front, case, at, rate, &rounds));
        }
    }
    drop(fronts);
    lab.down().context("take the lab down")?;
    Ok(Report { machine: Machine::read()?, load, figures, calm, idle })
}

/// One turn of a proxy.
fn turn(
    lab: &Lab,
    fronts: &Fronts,
    front: Front,
    case: Case,
    seconds: u32,
) -> anyhow::Result<Turn> {
    let scheme = if case == Case::Tls { "https" } else { "http" };
    let url = format!("{scheme}://{}{}", front.address(case == Case::Tls), case.path());
    let mut client = lab.host("client").command("wrk");
    client.arg("--threads=1").arg(format!("--connections={CONNECTIONS}"));
    client.arg(format!("--duration={seconds}s")).arg("--latency").arg("--timeout=30s");
    if case == Case::Close {
        client.args(["--header", "Connection: close"]);
    }
    client.arg(&url);
    let before = cpu::time_us(fronts.process(front)?)?;
    let output = shell::output(&mut client)?;
    let spent = cpu::time_us(fronts.process(front)?)? - before;
    Turn::parse(&output, spent, 0.0)
        .with_context(|| format!("read what wrk says of {url}:\n{output}"))
}

/// Which of the turns of a round is nginx's.
fn nginx() -> usize {
    Front::ALL.iter().position(|front| *front == Front::Nginx).unwrap_or_default()
}

/// What each round comes to.
fn each<Turn>(rounds: &[Vec<Turn>], figure: impl Fn(&[Turn]) -> f64) -> Vec<f64> {
    rounds.iter().map(|round| figure(round)).collect()
}

impl Figure {
    /// The figure of the proxy that is the one of this number in each round.
    fn of(front: Front, case: Case, at: usize, rounds: &[Vec<Turn>]) -> Self {
        let nginx = nginx();
        let middle = |figure: &dyn Fn(&[Turn]) -> f64| median(&each(rounds, figure));
        let per_cpu_second = |turn: &Turn| turn.requests / turn.cpu_us * 1e6;
        Self {
            front,
            case,
            requests_per_cpu_second: middle(&|round| per_cpu_second(&round[at])),
            times_nginx: middle(&|round| {
                per_cpu_second(&round[at]) / per_cpu_second(&round[nginx])
            }),
            requests_per_second: middle(&|round| round[at].requests / round[at].seconds),
            p50_us: middle(&|round| round[at].p50_us),
            p99_us: middle(&|round| round[at].p99_us),
            p99_times_nginx: each(rounds, |round| round[at].p99_us / round[nginx].p99_us),
            turns: rounds.iter().map(|round| round[at]).collect(),
        }
    }
}

impl Calm {
    /// The figure of the proxy that is the one of this number in each round.
    fn of(front: Front, case: Case, at: usize, rate: f64, rounds: &[Vec<Paced>]) -> Self {
        let nginx = nginx();
        Self {
            front,
            case,
            requests_per_second: rate,
            p50_us: median(&each(rounds, |round| round[at].p50_us)),
            p99_us: median(&each(rounds, |round| round[at].p99_us)),
            p99_times_nginx: each(rounds, |round| round[at].p99_us / round[nginx].p99_us),
            turns: rounds.iter().map(|round| round[at]).collect(),
        }
    }
}

impl Report {
    /// The figures beyond their bounds, each with its bound.
    fn short(&self) -> Vec<String> {
        let mut short = Vec::new();
        for figure in self.figures.iter().filter(|figure| figure.front == Front::Ballast) {
            let Figure { case, times_nginx, .. } = figure;
            let (name, least) = (case.name(), case.least_ratio());
            if *times_nginx < least {
                short.push(format!("{name}: {times_nginx:.2} × nginx, at least {least:.2}"));
            }
            short.extend(slow(name, &figure.p99_times_nginx));
        }
        for calm in self.calm.iter().filter(|calm| calm.front == Front::Ballast) {
            let name = format!("{}, {:.0}/s", calm.case.name(), calm.requests_per_second);
            short.extend(slow(&name, &calm.p99_times_nginx));
        }
        short
    }
}

/// Says so, if 99th percentiles, as multiples of nginx's, are more than they may be.
fn slow(name: &str, times_nginx: &[f64]) -> Option<String> {
    let above = times_nginx.iter().filter(|times| **times > MOST_P99).count();
    is_above(times_nginx, MOST_P99).then(|| {
        let (median, rounds) = (median(times_nginx), times_nginx.len());
        format!(
            "{name}: p99 {median:.2} × nginx, above {MOST_P99:.2} in {above} of {rounds} rounds"
        )
    })
}
