//! Traces of live traffic: what they show, and that nobody notices them.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pcap_file::pcapng::{Block, PcapNgReader, blocks::enhanced_packet::EnhancedPacketOption};
use serde_json::Value;
use xtask::lab::{HostName, default_config};

use crate::{
    config::{echo, web, web6},
    http::Connection,
    load::Load,
    site::{Site, Status, eventually, number, text},
};

/// `ballast trace` while it runs. Ends with the value.
struct Running {
    child: Child,
    out: PathBuf,
}

impl Running {
    /// Starts it, and waits until the trace is in force.
    fn start(site: &Site, name: &str, arguments: &str) -> Result<Self> {
        let out = site.lab().log(HostName::Lb01, name);
        let told = out.with_extension("told");
        let mut command = site.lab().ballast_command(HostName::Lb01.as_str(), "trace");
        command.args(arguments.split_whitespace()).stdin(Stdio::null());
        command.stdout(File::create(&out)?).stderr(File::create(&told)?);
        let mut running = Self { child: command.spawn().context("start `ballast trace`")?, out };
        eventually("the trace to begin", || {
            let told = fs::read_to_string(&told)?;
            let ended = running.child.try_wait()?;
            ensure!(ended.is_none() || told.contains("tracing"), "it ended: {told}");
            Ok(told.contains("tracing").then_some(()))
        })?;
        Ok(running)
    }

    /// The packets that it has printed so far.
    fn packets(&self) -> Result<Vec<Value>> {
        let lines = BufReader::new(File::open(&self.out)?).split(b'\n');
        // The last line may not be whole yet.
        lines
            .filter_map(|line| line.map(|line| serde_json::from_slice(&line).ok()).transpose())
            .map(|packet| packet.context("read what it printed"))
            .collect()
    }

    /// Waits for packets.
    fn until(&self, what: &str, so: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        eventually(what, || {
            let packets = self.packets()?;
            Ok(so(&packets).then_some(packets))
        })
    }

    /// Waits until it ends by itself.
    fn end(mut self) -> Result<()> {
        let status = eventually("the trace to end", || Ok(self.child.try_wait()?))?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    fn interrupt(self) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT)?;
        self.end()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Requests on connections that last for some of them: so many connections in so long a test would
/// otherwise use up the client's ports.
struct Steady {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// Requests on each connection.
const REQUESTS: usize = 50;

impl Steady {
    fn start(site: &Site, threads: usize, target: SocketAddr) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let threads = (0..threads).map(|_| {
            let (host, stop, done) = (site.client().clone(), Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut connection = Connection::open(&host, target)?;
                    for _ in 0..REQUESTS {
                        connection.get("/id")?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(())
            })
        });
        let threads = threads.collect();
        Self { stop, done, threads }
    }

    /// Waits until so many more requests have been answered.
    fn more(&self, requests: u64) -> Result<()> {
        let goal = self.done.load(Ordering::Relaxed) + requests;
        eventually(&format!("{requests} more requests"), || {
            Ok((self.done.load(Ordering::Relaxed) >= goal).then_some(()))
        })
    }

    /// Ends it; fails if any request has.
    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("join a client"))
            .context("a request failed")
    }
}

fn program_id(status: &Status) -> u64 {
    number(&status.0["dataplane"]["program_id"])
}

/// Waits until the plain program is in force, and makes sure that the kernel says so too.
fn until_plain(site: &Site) -> Result<Status> {
    let status = site.until("the plain program", |it| number(&it.0["dataplane"]["traces"]) == 0)?;
    let id = program_id(&status);
    ensure!(on_interface(site)? == id, "another program than {id} is on eth0");
    let name = program_name(site, id)?;
    ensure!(name == "ballast", "{name} is in force");
    Ok(status)
}

/// Identifier of the program on the balancer's interface.
fn on_interface(site: &Site) -> Result<u64> {
    let links: Value = serde_json::from_str(&site.ip(HostName::Lb01, "-j link show dev eth0")?)?;
    Ok(number(&links[0]["xdp"]["prog"]["id"]))
}

fn program_name(site: &Site, id: u64) -> Result<String> {
    let id = id.to_string();
    let text = site.run(HostName::Lb01, &["bpftool", "-j", "prog", "show", "id", &id])?;
    let program: Value = serde_json::from_str(&text)?;
    program["name"].as_str().map(str::to_owned).context("a program without a name")
}

#[test]
fn a_connection_is_shown_from_its_first_to_its_last_packet() -> Result<()> {
    let site = Site::up("trace", default_config())?;
    let trace = Running::start(&site, "connection", "--service web --json")?;
    let status = site.status()?;
    ensure!(number(&status.0["dataplane"]["traces"]) == 1);
    ensure!(program_name(&site, on_interface(&site)?)? == "ballast_trace");
    let connection = Connection::open(site.client(), web())?;
    let (client, backend) = (connection.local().to_string(), connection.backend().to_owned());
    drop(connection);
    let of_client = |packet: &Value| {
        packet["before"]["source"] == client.as_str()
            || packet["after"]["destination"] == client.as_str()
    };
    let has = |packets: &[Value], forwarded: &str, flag: &str| {
        packets.iter().any(|packet| {
            of_client(packet)
                && packet["forwarded"] == forwarded
                && packet["before"]["flags"].as_str().is_some_and(|flags| flags.contains(flag))
        })
    };
    let packets = trace.until("both ends to say FIN", |packets| {
        has(packets, "to", "FIN") && has(packets, "from", "FIN")
    })?;
    trace.interrupt()?;
    let packets: Vec<_> = packets.into_iter().filter(of_client).collect();
    let listen = web().to_string();
    for packet in &packets {
        ensure!(packet["service"] == "web" && packet["backend"] == backend.as_str(), "{packet}");
        ensure!(packet["interface"] == "eth0" && packet["reason"].is_null(), "{packet}");
        let (before, after) = (&packet["before"], &packet["after"]);
        match packet["forwarded"].as_str() {
            Some("to") => {
                ensure!(before["source"] == client.as_str(), "{packet}");
                ensure!(before["destination"] == listen.as_str(), "{packet}");
                ensure!(after["source"].as_str().is_some_and(|it| it.starts_with("192.0.2.100:")));
            }
            Some("from") => {
                ensure!(after["source"] == listen.as_str(), "{packet}");
                ensure!(after["destination"] == client.as_str(), "{packet}");
            }
            other => anyhow::bail!("forwarded {other:?}: {packet}"),
        }
        ensure!(before["length"] == after["length"], "{packet}");
    }
    // What the backend sees is what it answers to.
    let to = packets.iter().find(|packet| packet["forwarded"] == "to").context("nothing went")?;
    let from = packets.iter().find(|packet| packet["forwarded"] == "from").context("no answer")?;
    ensure!(to["after"]["destination"] == from["before"]["source"]);
    ensure!(to["after"]["source"] == from["before"]["destination"]);
    ensure!(to["stage"] == "connect" && to["before"]["flags"] == "SYN", "{to}");
    ensure!(from["stage"] == "half_open" && from["before"]["flags"] == "SYN ACK", "{from}");
    for stage in ["known", "follow"] {
        ensure!(packets.iter().any(|packet| packet["stage"] == stage), "nothing was {stage}");
    }
    until_plain(&site)?;

    what_is_not_forwarded_has_its_reason(&site)?;
    what_is_wrong_is_told(&site)?;
    the_screen_shows_what_there_is(&site)?;
    site.finish()
}

fn what_is_not_forwarded_has_its_reason(site: &Site) -> Result<()> {
    let trace = Running::start(site, "refused", "--reason no_service --count 1")?;
    // Nothing listens there.
    let closed = site.client().within(|| std::net::TcpStream::connect("192.0.2.100:81"))?;
    ensure!(closed.is_err());
    let out = trace.out.clone();
    trace.end()?;
    let line = fs::read_to_string(out)?;
    ensure!(line.contains("> 192.0.2.100:81"), "{line}");
    ensure!(line.contains("filter: passed to this host, no_service"), "{line}");
    until_plain(site).map(drop)
}

fn what_is_wrong_is_told(site: &Site) -> Result<()> {
    let told = site.refuses("trace --service nothing")?;
    ensure!(told.contains("nothing") && told.contains("web6"), "{told}");
    let told = site.refuses("trace --backend app-01")?;
    ensure!(told.contains("--service"), "{told}");
    let told = site.refuses("trace --from 192.0.2.0/99")?;
    ensure!(told.contains("--from"), "{told}");
    let told = site.refuses("trace --reason boredom")?;
    ensure!(told.contains("no_backend"), "{told}");
    let mut running = Vec::new();
    for number in 0..4 {
        running.push(Running::start(site, &format!("many-{number}"), "--json")?);
    }
    let told = site.refuses("trace")?;
    ensure!(told.contains("4 traces"), "{told}");
    let others = running.split_off(1);
    drop(others);
    site.until("one trace", |it| number(&it.0["dataplane"]["traces"]) == 1)?;
    Connection::open(site.client(), web())?;
    running[0].until("packets for the one that is left", |packets| !packets.is_empty())?;
    drop(running);
    until_plain(site).map(drop)
}

fn the_screen_shows_what_there_is(site: &Site) -> Result<()> {
    let load = Load::http(site.client(), 2, web());
    load.more(20)?;
    let screen = site.obeys("top --once")?;
    load.more(20)?;
    load.stop().ensure_none_failed()?;
    for shown in ["lb-01", "web", "web6", "app-01", "app-03"] {
        ensure!(screen.contains(shown), "no {shown} on the screen:\n{screen}");
    }
    let told = site.refuses("top")?;
    ensure!(told.contains("--once"), "without a terminal: {told}");
    Ok(())
}

#[test]
fn nothing_is_lost_when_traces_begin_and_end() -> Result<()> {
    let site = Site::up("tracing", default_config())?;
    let plain = program_id(&site.status()?);
    let load = Steady::start(&site, 4, web());
    let load6 = Steady::start(&site, 2, web6());
    // A lost datagram is not sent again, as a lost segment is.
    let datagrams = Load::echo(site.client(), echo());
    let mut open = Connection::open(site.client(), web())?;
    load.more(100)?;
    for round in 0..3 {
        let trace =
            Running::start(&site, &format!("some-{round}"), "--one-in 10 --json --count 30")?;
        let out = trace.out.clone();
        load.more(100)?;
        datagrams.more(30)?;
        trace.end()?;
        let shown = fs::read_to_string(out)?.lines().count();
        ensure!(shown == 30, "{shown} packets of 30");
        let status = until_plain(&site)?;
        ensure!(program_id(&status) == plain, "the plain program is another one");
        load.more(50)?;
    }

    // A reader that is killed.
    let trace = Running::start(&site, "killed", "--json")?;
    trace.until("packets", |packets| packets.len() > 50)?;
    drop(trace);
    until_plain(&site)?;
    load.more(100)?;

    // One that has had enough time.
    let trace = Running::start(&site, "timed", "--seconds 1 --json")?;
    trace.end()?;
    until_plain(&site)?;

    // A daemon that ends as it should.
    let trace = Running::start(&site, "stopped", "--json")?;
    load.more(50)?;
    site.daemon().stop()?;
    ensure!(program_name(&site, on_interface(&site)?)? == "ballast", "a stop left the trace on");
    drop(trace);
    load.more(50)?;
    site.daemon().start()?;
    site.settled()?;

    // And one that does not: forwarding goes on with what there is, and the next clears up.
    let trace = Running::start(&site, "orphaned", "--json")?;
    load.more(50)?;
    site.daemon().kill()?;
    ensure!(program_name(&site, on_interface(&site)?)? == "ballast_trace");
    load.more(300)?;
    datagrams.more(50)?;
    ensure!(!open.get("/id")?.is_empty());
    drop(trace);
    site.daemon().start()?;
    site.settled()?;
    until_plain(&site)?;
    load.more(100)?;
    load6.more(50)?;
    ensure!(!open.get("/id")?.is_empty());
    load.stop()?;
    load6.stop()?;
    datagrams.stop().ensure_none_failed()?;
    drop(open);
    site.until("no connection to be open", |status| {
        ["web", "web6"].iter().all(|service| status.sum(service, "active") == 0)
    })?;
    site.finish()
}

#[test]
fn a_capture_can_be_read_by_others() -> Result<()> {
    let site = Site::up("capture", default_config())?;
    let file = site.lab().log(HostName::Lb01, "capture").with_extension("pcapng");
    let path = file.to_str().context("write the path")?;
    let trace =
        Running::start(&site, "written", &format!("--service web --pcapng {path} --count 8"))?;
    let load = Load::http(site.client(), 2, web());
    trace.end()?;
    load.stop().ensure_none_failed()?;

    let mut reader = PcapNgReader::new(File::open(&file)?)?;
    let mut comments = Vec::new();
    let (mut before, mut after) = (0, 0);
    while let Some(block) = reader.next_block() {
        match block?.into_owned() {
            Block::EnhancedPacket(packet) => {
                if packet.interface_id == 0 {
                    before += 1;
                } else {
                    after += 1;
                }
                ensure!(packet.data.len() >= 54, "{} bytes", packet.data.len());
                let [EnhancedPacketOption::Comment(comment)] = &packet.options[..] else {
                    anyhow::bail!("{:?}", packet.options);
                };
                comments.push(comment.to_string());
            }
            Block::InterfaceDescription(_) => {}
            other => anyhow::bail!("{other:?}"),
        }
    }
    ensure!((before, after) == (8, 8), "{before} packets before, {after} after");
    ensure!(comments.iter().all(|it| it.contains("(web)")), "{comments:?}");
    ensure!(comments.iter().any(|it| it.starts_with("connect: forwarded to app-")), "{comments:?}");

    // As anybody would.
    let output = Command::new("tcpdump").args(["-n", "-r", path]).output();
    if let Ok(output) = output {
        let text = text(&output);
        ensure!(output.status.success(), "{text}");
        ensure!(text.matches("192.0.2.100").count() >= 16, "{text}");
        ensure!(text.contains("192.0.2.100.80: Flags [S]"), "{text}");
    }
    site.finish()
}
