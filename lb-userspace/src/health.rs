//! Active health checks: when to probe, how to probe, and when enough probes agree.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::{sleep, sleep_until},
};

use crate::{clock, config};

pub mod command;
mod deadline;
pub mod http;
pub mod passive;
pub mod postgres;
pub mod tcp;
pub mod threshold;

pub use deadline::Deadline;

/// What active probes say of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Not enough probes yet.
    Unknown,
    /// Fit.
    Up,
    /// Not fit.
    Down,
}

/// The result of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// It answered as expected; the text says how (`"HTTP 200"`). It holds nothing that differs from
    /// probe to probe, such as times: each new text is a [`Report`].
    Pass(String),
    /// It did not; the text says what happened (`"connection refused"`, `"HTTP 503, expected 200-399"`).
    Fail(String),
}

/// One backend to probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Name of its service.
    pub service: String,
    /// Its name.
    pub backend: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// How to ask.
    pub health: config::Health,
}

/// Sent when a backend's health or its reason changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Name of the service.
    pub service: String,
    /// Name of the backend.
    pub backend: String,
    /// The health after this probe.
    pub health: Health,
    /// What the last probe said.
    pub reason: String,
}

/// How many probes of a backend have passed in a row. Copies count together.
#[derive(Clone, Debug, Default)]
pub struct Passes(Arc<AtomicU32>);

impl Passes {
    /// Counts from here on.
    pub fn restart(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The number.
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn observe(&self, passed: bool) {
        if passed {
            self.0.fetch_add(1, Ordering::Relaxed);
        } else {
            self.restart();
        }
    }
}

/// First probes are spread over at least this time, so that a daemon with many backends does not ask
/// all of them in the same instant, and yet knows all of them soon.
const SPREAD: Duration = Duration::from_millis(100);

/// With very many backends, first probes come no faster than one in this time.
const SPREAD_EACH: Duration = Duration::from_micros(50);

/// Most probes under way at once: each may hold a socket, or a process. The others wait; the time that
/// a probe may take counts from when it begins.
const MOST_AT_ONCE: usize = 4096;

static UNDER_WAY: Semaphore = Semaphore::const_new(MOST_AT_ONCE);

/// Over which time the first probes of so many backends are spread.
pub fn spread(backends: usize) -> Duration {
    SPREAD.max(SPREAD_EACH * u32::try_from(backends).unwrap_or(u32::MAX))
}

/// Each interval is this much shorter or longer, by chance, so that the probes of several balancers
/// and backends do not fall into step.
const JITTER: f64 = 0.1;

/// Starts the task that probes `target` until it is aborted, or until nobody receives `reports`. It
/// sends a [`Report`] at its first probe and whenever the health or the reason changes.
pub fn spawn(target: Target, reports: mpsc::Sender<Report>) -> JoinHandle<()> {
    resume(target, Health::Unknown, SPREAD, reports, Passes::default())
}

/// Like [`spawn`], for a backend whose health is known: after a reload that changed only how it is
/// asked, one failure is no reason to eject it. The first probe comes within `spread`, or within the
/// interval if that is shorter. The probes that pass are counted in `passes`.
pub fn resume(
    target: Target,
    health: Health,
    spread: Duration,
    reports: mpsc::Sender<Report>,
    passes: Passes,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if target.health.probe.is_active() {
            let trust = http::Trust::default();
            run(&target, health, spread, &reports, &passes, || async {
                // It is never closed; if it was, that would be no reason to probe no more.
                let _turn = UNDER_WAY.acquire().await;
                probe(&target, &trust).await
            })
            .await;
        } else {
            let report = target.report(Health::Up, "not probed".into());
            if reports.send(report).await.is_ok() {
                reports.closed().await;
            }
        }
    })
}

/// The schedule. A probe never overlaps itself: one that takes longer than the interval delays the
/// next.
async fn run<F>(
    target: &Target,
    health: Health,
    spread: Duration,
    reports: &mpsc::Sender<Report>,
    passes: &Passes,
    mut probe: impl FnMut() -> F,
) where
    F: Future<Output = Observation>,
{
    let config::Health { interval, rise, fall, .. } = target.health;
    let threshold = threshold::Threshold { rise, fall };
    let mut state = threshold::State::new(health);
    let mut reported: Option<(Health, String)> = None;
    sleep(spread.min(interval).mul_f64(fastrand::f64())).await;
    loop {
        let next = clock::timer() + interval.mul_f64(1.0 + JITTER * (2.0 * fastrand::f64() - 1.0));
        let (passed, reason) = match probe().await {
            Observation::Pass(reason) => (true, reason),
            Observation::Fail(reason) => (false, reason),
        };
        passes.observe(passed);
        state = state.observe(passed, threshold).0;
        let report = (state.health(), reason);
        if reported.as_ref() != Some(&report) {
            let (health, reason) = report.clone();
            if reports.send(target.report(health, reason)).await.is_err() {
                return;
            }
            reported = Some(report);
        }
        sleep_until(next).await;
    }
}

/// Asks once.
async fn probe(target: &Target, trust: &http::Trust) -> Observation {
    let deadline = &Deadline::after(target.health.timeout);
    match &target.health.probe {
        config::Probe::None | config::Probe::Database { .. } => {
            Observation::Pass("not probed".into())
        }
        config::Probe::Tcp => tcp::probe(target.address, deadline).await,
        config::Probe::Http(probe) => http::probe(target.address, probe, deadline).await,
        config::Probe::Https(probe) => {
            http::probe_tls(target.address, probe, trust, deadline).await
        }
        config::Probe::Postgres => postgres::probe(target.address, deadline).await,
        config::Probe::Command(command) => command::probe(command, target, deadline).await,
    }
}

impl Target {
    fn report(&self, health: Health, reason: String) -> Report {
        Report { service: self.service.clone(), backend: self.backend.clone(), health, reason }
    }
}

/// An I/O error in the words that an operator looks for.
fn io_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset => "connection reset".into(),
        io::ErrorKind::HostUnreachable => "no route to host".into(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".into(),
        io::ErrorKind::TimedOut => "connection timed out".into(),
        io::ErrorKind::UnexpectedEof => "connection closed".into(),
        io::ErrorKind::NotFound => "no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => {
            let text = error.to_string();
            match text.find(" (os error") {
                Some(end) => text[..end].to_owned(),
                None => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        collections::VecDeque,
    };

    use proptest::prelude::*;

    use tokio::time::Instant;

    use super::*;

    fn target(interval: Duration) -> Target {
        Target {
            service: "web".into(),
            backend: "app-01".into(),
            address: "192.0.2.21:8080".parse().unwrap(),
            health: config::Health {
                probe: config::Probe::Tcp,
                interval,
                timeout: Duration::from_millis(500),
                rise: 2,
                fall: 3,
            },
        }
    }

    fn pass(reason: &str) -> Observation {
        Observation::Pass(reason.into())
    }

    fn fail(reason: &str) -> Observation {
        Observation::Fail(reason.into())
    }

    /// Runs the schedule over a script; gives the reports, and when each probe began.
    async fn play(
        health: Health,
        interval: Duration,
        takes: Duration,
        script: Vec<Observation>,
    ) -> (Vec<(Health, String)>, Vec<Duration>) {
        let target = target(interval);
        let (sender, mut receiver) = mpsc::channel(script.len() + 1);
        let script = RefCell::new(VecDeque::from(script));
        let begin = Instant::now();
        let starts = RefCell::new(Vec::new());
        let busy = Cell::new(false);
        let passes = Passes::default();
        let schedule = run(&target, health, SPREAD, &sender, &passes, || async {
            assert!(!busy.replace(true), "a probe overlaps itself");
            starts.borrow_mut().push(begin.elapsed());
            sleep(takes).await;
            busy.set(false);
            let next = script.borrow_mut().pop_front();
            match next {
                Some(observation) => observation,
                None => std::future::pending().await,
            }
        });
        let end = takes + (interval + takes) * (script.borrow().len() as u32 + 2);
        tokio::time::timeout(end, schedule).await.expect_err("the schedule does not end");
        drop(sender);
        let mut reports = Vec::new();
        while let Some(report) = receiver.recv().await {
            assert_eq!((report.service.as_str(), report.backend.as_str()), ("web", "app-01"));
            reports.push((report.health, report.reason));
        }
        (reports, starts.into_inner())
    }

    fn report(health: Health, reason: &str) -> (Health, String) {
        (health, reason.into())
    }

    #[tokio::test(start_paused = true)]
    async fn reports_changes_of_health_and_reason_only() {
        use Health::{Down, Up};
        let script = vec![
            pass("HTTP 200"),
            pass("HTTP 200"),
            fail("connection refused"),
            fail("connection refused"),
            fail("connection refused"),
            fail("connection refused"),
            fail("no answer within 500 ms"),
            pass("HTTP 200"),
            pass("HTTP 200"),
            pass("HTTP 200"),
        ];
        let second = Duration::from_secs(1);
        let (reports, _) = play(Health::Unknown, second, Duration::ZERO, script).await;
        assert_eq!(
            reports,
            [
                report(Up, "HTTP 200"),
                report(Up, "connection refused"),
                report(Down, "connection refused"),
                report(Down, "no answer within 500 ms"),
                report(Down, "HTTP 200"),
                report(Up, "HTTP 200"),
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_known_backend_is_not_ejected_by_its_first_failure() {
        let script = vec![fail("x"), fail("x"), fail("x")];
        let second = Duration::from_secs(1);
        let (reports, _) = play(Health::Up, second, Duration::ZERO, script).await;
        assert_eq!(reports, [report(Health::Up, "x"), report(Health::Down, "x")]);
    }

    #[tokio::test(start_paused = true)]
    async fn probes_start_soon_and_keep_their_interval() {
        let interval = Duration::from_secs(1);
        let script = vec![pass("ok"); 50];
        let (_, starts) = play(Health::Unknown, interval, Duration::from_millis(400), script).await;
        assert!(starts[0] <= SPREAD + Duration::from_millis(1), "{:?}", starts[0]);
        let mut gaps: Vec<Duration> = starts.windows(2).map(|w| w[1].abs_diff(w[0])).collect();
        gaps.sort();
        // Tokio's timers have a grain of a millisecond.
        assert!(gaps[0] >= Duration::from_millis(899), "{gaps:?}");
        assert!(gaps[gaps.len() - 1] <= Duration::from_millis(1102), "{gaps:?}");
        assert!(
            gaps[gaps.len() - 1].abs_diff(gaps[0]) > Duration::from_millis(20),
            "no jitter: {gaps:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_probe_delays_the_next() {
        let interval = Duration::from_millis(100);
        let script = vec![pass("ok"); 10];
        let (_, starts) = play(Health::Unknown, interval, Duration::from_millis(300), script).await;
        assert!(
            starts.windows(2).all(|w| w[1].abs_diff(w[0]) >= Duration::from_millis(300)),
            "{starts:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn not_probed_is_up_at_once_and_ends_with_its_reader() {
        let mut target = target(Duration::from_secs(1));
        target.health.probe = config::Probe::None;
        let (sender, mut receiver) = mpsc::channel(1);
        let task = spawn(target, sender);
        let report = receiver.recv().await.unwrap();
        assert_eq!((report.health, report.reason.as_str()), (Health::Up, "not probed"));
        assert!(tokio::time::timeout(Duration::from_mins(1), receiver.recv()).await.is_err());
        drop(receiver);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn times_read_as_they_were_configured() {
        for (timeout, text) in [
            (Duration::from_millis(500), "no answer within 500 ms"),
            (Duration::from_micros(2500), "no answer within 2.5 ms"),
            (Duration::from_millis(1500), "no answer within 1.5 s"),
            (Duration::from_secs(2), "no answer within 2 s"),
        ] {
            assert_eq!(Deadline::after(timeout).missed("no answer"), text);
        }
    }

    proptest! {
        #[test]
        fn io_errors_have_no_numbers(code in 1..134_i32) {
            let reason = io_reason(&io::Error::from_raw_os_error(code));
            prop_assert!(!reason.is_empty() && !reason.contains("os error"), "{}", reason);
        }
    }
}
