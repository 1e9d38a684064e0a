//! Requests for a binary that counts what it does (`cargo xtask build --optimized`): of every kind that
//! the proxy has much of, and some that go wrong. Nothing is measured.
//!
//! The daemon writes its counts when it ends in order, to where `LLVM_PROFILE_FILE` says.

use std::{path::Path, process::Command};

use anyhow::Context as _;
use xtask::{
    interrupt,
    lab::{Balancers, Lab, Options, test_name},
    shell,
};

use super::{
    CONNECTIONS,
    fronts::{self, APP_ADDRESS, BALLAST, FLOATING, Front},
    shares,
};
use crate::{machine, rivals};

/// The service whose backends fail.
const SHAKY_PORT: u16 = 81;
/// Its backends: one that answers 503, one that closes the connection, one that nobody listens for.
const SICK: &str = "192.0.2.21:8092";
const CLOSING: &str = "192.0.2.21:8093";
const ABSENT: &str = "192.0.2.21:8094";

/// Requests of a kind that clients send one by one.
const SOME: u32 = 2000;

/// Bytes of a request's body.
const BODY_BYTES: usize = 20_000;

/// Starts the daemon from this binary, sends it requests, and ends it in order.
pub(super) fn run(ballast: &Path) -> anyhow::Result<()> {
    let (own, others) = shares()?;
    let lab = machine::on_cpus(&others, || {
        Lab::up(Options {
            name: test_name("train-l7"),
            balancers: Balancers::None,
            apps: 0,
            config: Some(config()),
            ballast: Some(ballast.to_owned()),
            ..Options::default()
        })
        .context("bring up a lab")
    })?;
    for host in ["client", "app-01", BALLAST] {
        rivals::plain_packets(lab.host(host))?;
    }
    fronts::certify(&lab.state_dir())?;
    let app = machine::on_cpus(&others, || fronts::start_app(&lab, &failing()))?;
    let daemon = machine::on_cpus(&own, || {
        let mut daemon = lab.daemon(BALLAST);
        daemon.start()?;
        Ok(daemon)
    })?;
    for tls in [false, true] {
        fronts::answers(&lab, Front::Ballast, tls)?;
    }
    let body = lab.state_dir().join("body");
    std::fs::write(&body, vec![b'x'; BODY_BYTES]).context("write a body")?;
    machine::on_cpus(&others, || requests(&lab, &body))?;
    daemon.stop().context("end the daemon in order, so that it writes its counts")?;
    drop(app);
    lab.down().context("take the lab down")
}

/// About as much work of each kind as a proxy has of it.
fn requests(lab: &Lab, body: &Path) -> anyhow::Result<()> {
    let [plain, secure] = [false, true].map(|tls| Front::Ballast.address(tls));
    let wrk = |seconds: u32, close: bool, url: &str| {
        let mut wrk = lab.host("client").command("wrk");
        wrk.arg("--threads=1").arg(format!("--connections={CONNECTIONS}"));
        wrk.arg(format!("--duration={seconds}s")).arg("--timeout=30s");
        if close {
            wrk.args(["--header", "Connection: close"]);
        }
        wrk.arg(url);
        wrk
    };
    let curl = |words: &[&str], url: &str| {
        let mut curl = lab.host("client").command("curl");
        curl.args(["--silent", "--insecure", "--output", "/dev/null", "--max-time", "120"]);
        curl.args(words).arg(format!("{url}?[1-{SOME}]"));
        curl
    };
    let sent = format!("@{}", body.display());
    let at_once = ["--parallel", "--parallel-max", "32"];
    let with = |words: &[&'static str]| [words, &at_once].concat();
    let steps: [(&str, Command); 9] = [
        ("short requests", wrk(6, false, &format!("http://{plain}/"))),
        ("short requests, a connection each", wrk(5, true, &format!("http://{plain}/"))),
        ("short requests, TLS", wrk(4, false, &format!("https://{secure}/"))),
        ("large answers", wrk(2, false, &format!("http://{plain}/large"))),
        ("large answers, TLS", wrk(2, false, &format!("https://{secure}/large"))),
        ("TLS, a connection each", wrk(1, true, &format!("https://{secure}/"))),
        ("HTTP/2", curl(&with(&["--http2"]), &format!("https://{secure}/"))),
        ("requests with bodies", curl(&["--data-binary", &sent], &format!("http://{plain}/"))),
        ("requests that fail", curl(&at_once, &format!("http://{FLOATING}:{SHAKY_PORT}/"))),
    ];
    for (name, mut command) in steps {
        eprintln!("{name} …");
        interrupt::check()?;
        shell::output(&mut command).with_context(|| format!("send {name}"))?;
    }
    Ok(())
}

/// The configuration of the benchmark, and a service whose backends fail.
fn config() -> String {
    let backends: String =
        [("well", APP_ADDRESS), ("sick", SICK), ("closing", CLOSING), ("absent", ABSENT)]
            .map(|(name, address)| {
                format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n")
            })
            .concat();
    format!(
        "{}[[service]]\nname = \"shaky\"\nlisten = \"{FLOATING}:{SHAKY_PORT}\"\npath = \"proxy\"\n\
         {backends}[service.health]\nprobe = \"none\"\n\
         [service.proxy]\nkeepalive = 64\nnext_upstream = [\"error\", \"timeout\", \"http_503\"]\n",
        fronts::ballast_config()
    )
}

/// What the app server needs for it.
fn failing() -> String {
    // nginx's 444 closes the connection without an answer.
    [(SICK, 503), (CLOSING, 444)]
        .map(|(address, status)| {
            format!("server {{\nlisten {address};\nlocation / {{ return {status}; }}\n}}\n")
        })
        .concat()
}
