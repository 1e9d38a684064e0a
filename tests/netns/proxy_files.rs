//! The files that a daemon may have open: a connection through the proxy needs two of them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use xtask::{lab::HostName, shell};

use crate::{
    config::{self, APPS, Service, web},
    http::Connection,
    load::PATIENCE,
    site::{Site, eventually, number},
};

fn text() -> String {
    config::text(&[Service::web("web", web(), &APPS).key("path = \"proxy\"")])
}

/// Starts the daemon with a hard limit of 1024 files, and with these words before its own.
fn start_with_few(site: &Site, before: &[&str]) -> Result<()> {
    let daemon = site.lab().daemon_command(HostName::Lb01.as_str());
    let words = [before, &["prlimit", "--nofile=512:1024"]].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(daemon.get_program()).args(daemon.get_args());
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(site.lab().log(HostName::Lb01, "ballast"))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = command.spawn().context("start the daemon")?;
    fs::write(site.lab().pid_file(HostName::Lb01, "ballast"), child.id().to_string())?;
    thread::spawn(move || child.wait());
    site.daemon().wait_ready()?;
    site.settled().map(drop)
}

/// What may be had by this daemon, by what it says and by what the kernel does.
fn limit(site: &Site) -> Result<u64> {
    let said = number(&site.status()?.0["files"]["limit"]);
    let pid = site.daemon().pid().context("find the daemon")?;
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().nth(3)).context("find the limit")?;
    ensure!(soft == said.to_string(), "it says {said}, and has {soft}");
    Ok(said)
}

/// Whether this process, and so what it starts, has `CAP_SYS_RESOURCE`.
fn may_raise() -> Result<bool> {
    /// By its number in `capabilities(7)`.
    const SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = u64::from_str_radix(line.context("find the capabilities")?.trim(), 16)?;
    Ok(held & 1 << SYS_RESOURCE != 0)
}

#[test]
fn a_daemon_takes_as_many_files_as_it_may() -> Result<()> {
    let site = Site::without_daemon("files", text())?;
    start_with_few(&site, &["setpriv", "--bounding-set=-sys_resource"])?;
    ensure!(limit(&site)? == 1024, "it has more than it may");
    ensure!(site.log().contains("few files may be open"), "nobody is told");
    site.daemon().stop()?;

    // With CAP_SYS_RESOURCE the hard limit is none. Not every container's root has that.
    start_with_few(&site, &["env"])?;
    let most: u64 = fs::read_to_string("/proc/sys/fs/nr_open")?.trim().parse()?;
    let expected = if may_raise()? { most.min(1 << 20) } else { 1024 };
    let limit = limit(&site)?;
    ensure!(limit == expected, "it may have {limit} files, and not {expected}");
    let told = site.obeys("status")?;
    ensure!(told.contains("that the daemon may have open"), "{told}");
    site.finish()
}

/// A request whose answer may come later.
struct Asked(TcpStream);

impl Asked {
    fn send(site: &Site) -> Result<Self> {
        let connect = || TcpStream::connect_timeout(&web(), PATIENCE);
        let mut stream = site.client().within(connect)?.context("connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /id HTTP/1.1\r\nHost: test\r\n\r\n")?;
        Ok(Self(stream))
    }

    fn answered(&mut self) -> Result<()> {
        let mut status = [0; 12];
        self.0.read_exact(&mut status).context("read an answer")?;
        ensure!(status == *b"HTTP/1.1 200", "{}", status.escape_ascii());
        Ok(())
    }
}

#[test]
fn where_no_file_is_left_new_clients_wait_and_nobody_else_suffers() -> Result<()> {
    /// Clients that come; about half of them find a place.
    const COMING: usize = 60;
    let site = Site::up("files-short", text())?;
    let mut served = Connection::open(site.client(), web())?;
    served.get("/id")?;
    let open = number(&site.status()?.0["files"]["open"]);
    ensure!(open > 0, "it is not known how many there are: this needs Linux 6.2");
    // Of so few, 32 are kept from clients.
    let few = open + 60;
    let pid = site.daemon().pid().context("find the daemon")?.to_string();
    let limit = format!("--nofile={few}:");
    shell::output(Command::new("prlimit").args(["--pid", &pid, &limit]))?;
    site.until("the limit to be known", |status| number(&status.0["files"]["limit"]) == few)?;

    let asked: Result<Vec<_>> = (0..COMING).map(|_| Asked::send(&site)).collect();
    let mut asked = asked?;
    let is_told = |words: &str| {
        let events = site.events()?;
        let told = events.iter().any(|it| it["message"].as_str().is_some_and(|it| it == words));
        anyhow::Ok(told)
    };
    eventually("the shortage to be told", || {
        let events = site.events()?;
        let is_it = |event: &serde_json::Value| {
            let message = event["message"].as_str().unwrap_or_default();
            message.starts_with("open files: clients wait")
        };
        Ok(events.iter().any(is_it).then_some(()))
    })?;
    let status = site.status()?;
    let taken = number(&status.service("web")["proxy"]["open"]) as usize;
    ensure!(0 < taken && taken < COMING, "{taken} of {COMING} were taken");
    ensure!(status.0["files"]["short"] == true, "{}", status.0["files"]);
    ensure!(status.warnings().contains("open files"), "{}", status.warnings());

    // Who is served stays so, backends are probed as ever, and commands are obeyed.
    for _ in 0..50 {
        served.get("/id")?;
        let status = site.status()?;
        ensure!(status.backends().all(|it| it["serving"] == true), "a backend is taken for dead");
    }
    ensure!(!is_told("open files: it works again")?, "it has ended by itself");

    // When some go, others come.
    drop(asked.drain(..COMING - 20));
    for one in &mut asked {
        one.answered()?;
    }
    eventually("the end to be told", || Ok(is_told("open files: it works again")?.then_some(())))?;
    served.get("/id")?;
    let lines = site.log().lines().filter(|line| line.contains("open files: clients")).count();
    ensure!(lines == 1, "it is logged {lines} times");
    site.finish()
}
