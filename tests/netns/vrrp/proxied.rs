//! The proxy's connections when the addresses go from one node to the other in order: all of them end as if
//! nothing had happened.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::{
    Balancers,
    HostName::{self, Client, Lb01, Lb02, Witness},
};

use super::pair::{FLOATING, Pair};
use crate::{
    config::{web, web6},
    http::{Connection, Download},
    load::{Load, PATIENCE},
    site::eventually,
};

/// Bytes of a body of which half is sent before the addresses move.
const BODY: usize = 64 << 10;

/// Both services have the proxy, and the nodes know each other.
const EDITS: [(&str, &str); 2] = [
    ("protocol = \"tcp\"\n", "protocol = \"tcp\"\npath = \"proxy\"\ndrain_timeout = \"40s\"\n"),
    ("[cluster]\n", "[cluster]\nsecret_file = \"@LAB@/cluster.key\"\n"),
];

/// A request whose body is not whole yet.
struct Upload(TcpStream);

impl Upload {
    fn begin(pair: &Pair, target: SocketAddr, name: &str) -> Result<Self> {
        let connect = || TcpStream::connect_timeout(&target, PATIENCE);
        let mut stream = pair.host(Client).within(connect)?.context("connect")?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let head =
            format!("PUT /upload/{name} HTTP/1.1\r\nHost: test\r\nContent-Length: {BODY}\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(&vec![b'x'; BODY / 2])?;
        Ok(Self(stream))
    }

    /// Sends the rest, and reads the answer, which is the connection's last.
    fn end(mut self, when: &str) -> Result<()> {
        self.0.write_all(&vec![b'y'; BODY - BODY / 2])?;
        let head: Vec<String> = BufReader::new(&self.0)
            .lines()
            .take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()))
            .collect::<std::io::Result<_>>()
            .with_context(|| format!("read the answer {when}"))?;
        let status = head.first().with_context(|| format!("there is no answer {when}"))?;
        ensure!(status.starts_with("HTTP/1.1 20"), "{when}: {head:?}");
        let closes = head.iter().any(|line| line.eq_ignore_ascii_case("connection: close"));
        ensure!(closes, "{when}: it is not the last: {head:?}");
        Ok(())
    }
}

/// What is under way when the addresses move, in both families.
struct UnderWay(Vec<(Download, Upload)>);

impl UnderWay {
    fn begin(pair: &Pair, name: &str) -> Result<Self> {
        let pairs = [web(), web6()].into_iter().enumerate().map(|(at, target)| {
            // It is longer than what fits on the way, so it goes on only as it is read.
            let download = Connection::open(pair.host(Client), target)?
                .patient(Duration::from_secs(30))?
                .download("/big")?;
            Ok((download, Upload::begin(pair, target, &format!("{name}-{at}"))?))
        });
        Ok(Self(pairs.collect::<Result<_>>()?))
    }

    fn end(self, pair: &Pair, when: &str) -> Result<()> {
        let big = pair.lab().big_file()?;
        for (download, upload) in self.0 {
            upload.end(when)?;
            download.compare(&big).with_context(|| format!("the download {when}"))?;
        }
        Ok(())
    }
}

fn handed_on(pair: &Pair, host: HostName) -> Result<u64> {
    Ok(pair.status(host)?["reasons"]["handed_on"].as_u64().unwrap_or(0))
}

/// Whether a host has a floating address where nobody is asked for it.
fn has_aside(pair: &Pair, host: HostName) -> Result<bool> {
    let shown = pair.ip(host, "-o address show dev lo")?;
    Ok(FLOATING.iter().any(|vip| shown.contains(vip)))
}

/// The node that may take the addresses knows what it would have to do.
fn until_known(pair: &Pair, host: HostName) -> Result<()> {
    eventually("the other node to be known", || {
        let status = pair.status(host)?;
        let peer = &status["peers"][0];
        let lingers = peer["lingers_ms"].as_u64().unwrap_or(0) > 0;
        Ok((peer["in_sync"] == true && lingers).then_some(()))
    })
}

#[test]
fn a_release_breaks_no_request_of_the_proxy() -> Result<()> {
    let pair = Pair::up("proxied-release", &EDITS)?;
    let load = Load::http(pair.host(Client), 2, web());
    for (from, to, when) in
        [(Lb01, Lb02, "after a release"), (Lb02, Lb01, "when they have come back")]
    {
        until_known(&pair, to)?;
        load.more(50)?;
        let before = handed_on(&pair, to)?;
        let under_way = UnderWay::begin(&pair, &format!("{from}"))?;
        pair.obeys(from, "release")?;
        pair.until_active(to)?;
        // Those who ask anew are served by the other node, and nobody asks the one before.
        load.more(50)?;
        let told = pair.ip(to, "-o link show dev eth0")?;
        for vip in FLOATING {
            let mac = pair.who_answers(vip)?;
            ensure!(told.contains(&mac), "{vip} is at {mac}, and {to} is {told}");
        }
        ensure!(has_aside(&pair, from)?, "{from} does not keep the addresses");
        under_way.end(&pair, when)?;
        ensure!(handed_on(&pair, to)? > before, "{to} has handed nothing on");
        eventually("the addresses to be gone", || Ok((!has_aside(&pair, from)?).then_some(())))?;
        eventually("the end to be known", || {
            Ok(pair.events(to)?.contains("proxy any more").then_some(()))
        })?;
    }
    let report = load.stop();
    println!("two releases: {} of {} requests failed", report.failed(), report.total());
    report.ensure_none_failed()?;
    pair.finish()
}

#[test]
fn an_orderly_stop_breaks_no_request_of_the_proxy() -> Result<()> {
    let preempts = ("interval = \"100ms\"\n", "interval = \"100ms\"\npreempt = true\n");
    let pair = Pair::up("proxied-stop", &[&EDITS[..], &[preempts]].concat())?;
    until_known(&pair, Lb02)?;
    let load = Load::http(pair.host(Client), 2, web());
    load.more(50)?;
    let under_way = UnderWay::begin(&pair, "stop")?;
    thread::scope(|scope| {
        // It ends when they have ended.
        let stopped = scope.spawn(|| pair.lab().daemon("lb-01").stop());
        pair.until_active(Lb02)?;
        load.more(50)?;
        under_way.end(&pair, "after an orderly stop")?;
        stopped.join().ok().context("join the stop")?
    })?;
    ensure!(handed_on(&pair, Lb02)? > 0, "lb-02 has handed nothing on");
    ensure!(!has_aside(&pair, Lb01)?, "what has ended keeps an address");

    // It comes back, and takes the addresses: it is preferred.
    let under_way = UnderWay::begin(&pair, "back")?;
    pair.lab().daemon("lb-01").start()?;
    pair.until_active(Lb01)?;
    under_way.end(&pair, "when they were taken back")?;
    ensure!(handed_on(&pair, Lb01)? > 0, "lb-01 has handed nothing on");
    load.more(50)?;
    let report = load.stop();
    println!("stop and return: {} of {} requests failed", report.failed(), report.total());
    report.ensure_none_failed()?;
    pair.finish()
}

#[test]
fn addresses_that_come_back_at_once_break_no_request_of_the_proxy() -> Result<()> {
    let pair = Pair::up("proxied-back", &EDITS)?;
    let load = Load::http(pair.host(Client), 2, web());
    until_known(&pair, Lb02)?;
    // Each node's connections are still there when the next one has the addresses.
    let mut under_way = Vec::new();
    for (from, to, name) in [(Lb01, Lb02, "first"), (Lb02, Lb01, "second"), (Lb01, Lb02, "third")] {
        under_way.push((name, UnderWay::begin(&pair, name)?));
        pair.obeys(from, "release")?;
        pair.until_active(to)?;
        load.more(20)?;
    }
    let before = [handed_on(&pair, Lb01)?, handed_on(&pair, Lb02)?];
    ensure!(before[0] > 0, "lb-01 has handed on nothing of lb-02's");
    for (name, requests) in under_way {
        requests.end(&pair, name)?;
    }
    ensure!(handed_on(&pair, Lb02)? > before[1], "lb-02 has handed on nothing of lb-01's");
    let report = load.stop();
    println!("there and back: {} of {} requests failed", report.failed(), report.total());
    report.ensure_none_failed()?;
    pair.finish()
}

/// A third node, on a host that is no balancer otherwise; ended with this.
struct Third(Child);

impl Third {
    fn start(pair: &Pair) -> Result<Self> {
        let log = File::create(pair.lab().log(Witness, "ballast"))?;
        let mut command = pair.lab().daemon_command(Witness.as_str());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("start a third node")?;
        eventually("it to serve", || Ok(pair.status(Witness).ok()))?;
        Ok(Self(child))
    }
}

impl Drop for Third {
    fn drop(&mut self) {
        // It is ours alone, and nothing waits for it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a node hears both others, and all agree on who has the addresses.
fn until_all_known(pair: &Pair, of: HostName) -> Result<()> {
    eventually("the other nodes to be known", || {
        let peers = pair.status(of)?["peers"].clone();
        let peers = peers.as_array().context("list the nodes")?.clone();
        let up = peers.iter().filter(|peer| peer["in_sync"] == true).count();
        let holds = peers.iter().any(|peer| peer["lingers_ms"].as_u64().unwrap_or(0) > 0);
        Ok((up == 2 && holds).then_some(()))
    })
}

#[test]
fn addresses_that_go_on_to_a_third_node_break_no_request_of_the_proxy() -> Result<()> {
    let third = (
        "[[floating]]\n",
        "[[node]]\nname = \"witness\"\naddress = \"192.0.2.41\"\ninterface = \"eth0\"\n\
         priority = 80\n\n[[floating]]\n",
    );
    let edits = [&EDITS[..], &[third]].concat();
    let pair = Pair::with("proxied-third", &edits, Balancers::None)?;
    let third = Third::start(&pair)?;
    pair.until_active(Witness)?;
    for host in ["lb-01", "lb-02"] {
        pair.lab().daemon(host).start()?;
    }
    for host in [Lb01, Lb02] {
        until_all_known(&pair, host)?;
    }
    let load = Load::http(pair.host(Client), 2, web());
    load.more(20)?;
    // By their priority: first to lb-01, and from there to lb-02.
    let first = UnderWay::begin(&pair, "of-the-first")?;
    pair.obeys(Witness, "release")?;
    pair.until_active(Lb01)?;
    load.more(20)?;
    let second = UnderWay::begin(&pair, "of-the-second")?;
    pair.obeys(Lb01, "release")?;
    pair.until_active(Lb02)?;
    load.more(20)?;
    ensure!(has_aside(&pair, Witness)? && has_aside(&pair, Lb01)?, "one of them is done");
    let relayed = handed_on(&pair, Lb01)?;
    first.end(&pair, "of the first node")?;
    ensure!(handed_on(&pair, Lb01)? > relayed, "lb-01 hands nothing on that comes from lb-02");
    second.end(&pair, "of the second node")?;
    ensure!(handed_on(&pair, Lb02)? > 0, "lb-02 has handed nothing on");
    let report = load.stop();
    println!("three nodes: {} of {} requests failed", report.failed(), report.total());
    report.ensure_none_failed()?;
    drop(third);
    pair.finish()
}
