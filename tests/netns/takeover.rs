//! The daemon dies, is restarted, is replaced: the kernel goes on.

use std::{fs, process::Stdio, thread, time::Instant};

use anyhow::{Context as _, Result, ensure};
use xtask::{
    build,
    lab::{HostName, default_config},
};

use crate::{
    config::{echo, web, web6},
    http::Connection,
    load::Load,
    site::{Site, eventually, number},
};

#[test]
fn neither_a_killed_nor_a_replaced_daemon_loses_anything() -> Result<()> {
    let site = Site::up("takeover", default_config())?;
    let load = Load::http(site.client(), 8, web());
    let load6 = Load::http(site.client(), 4, web6());
    // A lost datagram is not sent again, as a lost segment is.
    let datagrams = Load::echo(site.client(), echo());
    let mut open = Connection::open(site.client(), web())?;
    let download = Connection::open(site.client(), web6())?.download("/big?rate=25m")?;
    let file = site.lab().big_file()?;
    let program = number(&site.status()?.0["dataplane"]["program_id"]);
    thread::scope(|scope| {
        let download = scope.spawn(move || download.compare(&file));
        load.more(300)?;

        site.daemon().kill()?;
        load.more(500)?;
        load6.more(100)?;
        datagrams.more(100)?;
        ensure!(!open.get("/id")?.is_empty());
        // A connection that begins and lasts while nobody is there.
        let mut orphan = Connection::open(site.client(), web())?;

        site.daemon().start()?;
        let status = adopted(&site)?;
        let second = number(&status.0["dataplane"]["program_id"]);
        ensure!(second != program, "the program has not been replaced");
        load.more(500)?;
        ensure!(!open.get("/id")?.is_empty());
        ensure!(!orphan.get("/id")?.is_empty());

        // As an upgrade does it.
        site.daemon().stop()?;
        load.more(300)?;
        datagrams.more(100)?;
        site.daemon().start()?;
        adopted(&site)?;
        load.more(300)?;

        // Again and again.
        for _ in 0..3 {
            site.daemon().kill()?;
            site.daemon().start()?;
        }
        adopted(&site)?;
        load.more(300)?;
        load6.more(100)?;
        datagrams.more(100)?;
        ensure!(!open.get("/id")?.is_empty());
        ensure!(!orphan.get("/id")?.is_empty());
        download.join().expect("join the download").context("download over the restarts")
    })?;
    for report in [load.stop(), load6.stop(), datagrams.stop()] {
        report.ensure_none_failed()?;
    }
    drop(open);
    // Counts have not drifted over all this.
    site.until("no connection to be open", |status| {
        ["web", "web6"].iter().all(|service| status.sum(service, "active") == 0)
    })?;
    detach_takes_everything_away(&site)?;
    site.finish()
}

#[test]
fn a_daemon_may_die_at_any_point_of_its_start() -> Result<()> {
    let site = Site::up("startdeath", default_config())?;
    let load = Load::http(site.client(), 4, web());
    let load6 = Load::http(site.client(), 2, web6());
    // A datagram that is not forwarded is lost.
    let datagrams = Load::echo(site.client(), echo());
    load.more(100)?;
    site.daemon().kill()?;
    // So many requests after its start: no clock is asked, and the points are spread over the start.
    for requests in (0..24).map(|step| step * 12) {
        site.daemon().spawn()?;
        eventually("the daemon to be in its namespace", || Ok(site.daemon().pid()))?;
        load.more(requests)?;
        site.daemon().kill()?;
        datagrams.more(2).with_context(|| format!("killed after {requests} requests"))?;
    }
    load.more(100)?;
    site.daemon().start()?;
    adopted(&site)?;
    // The same with a variant of the program in force.
    for _ in 0..3 {
        let mut command = site.lab().ballast_command(HostName::Lb01.as_str(), "trace");
        command.arg("--json").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut trace = command.spawn().context("start `ballast trace`")?;
        site.until("the trace to begin", |status| number(&status.0["dataplane"]["traces"]) == 1)?;
        site.daemon().kill()?;
        load.more(50)?;
        datagrams.more(10)?;
        trace.wait().context("wait for the trace to end")?;
        site.daemon().start()?;
        adopted(&site)?;
    }
    load.more(200)?;
    load6.more(100)?;
    for report in [load.stop(), load6.stop(), datagrams.stop()] {
        report.ensure_none_failed()?;
    }
    site.finish()
}

fn adopted(site: &Site) -> Result<crate::site::Status> {
    let status = site.settled()?;
    ensure!(status.0["dataplane"]["adopted"] == true, "the maps have not been adopted");
    let attachments = &status.0["dataplane"]["attachments"];
    ensure!(attachments[0]["mode"] == "driver", "{attachments}");
    Ok(status)
}

fn detach_takes_everything_away(site: &Site) -> Result<()> {
    let detach = || {
        let mut command = site.balancer().command(build::ballast()?);
        command.arg("detach").arg("--config").arg(site.lab().config());
        command.args(["--node", "lb-01", "--pin-dir"]).arg(site.pins());
        command.arg("--socket").arg(site.lab().socket(HostName::Lb01));
        command.output().context("run `ballast detach`")
    };
    let attached = || site.ip(HostName::Lb01, "-o link show dev eth0");
    let addresses = || site.ip(HostName::Lb01, "-o address show dev eth0");
    site.holding()?;
    ensure!(attached()?.contains("xdp"), "there is no program on eth0");
    ensure!(addresses()?.contains("192.0.2.100/"), "there is no floating address on eth0");

    let output = detach()?;
    let text = crate::site::text(&output);
    ensure!(output.status.code() == Some(1) && text.contains("runs"), "while it runs: {text}");

    site.daemon().stop()?;
    ensure!(attached()?.contains("xdp"), "a stopped daemon took its program along");
    ensure!(addresses()?.contains("192.0.2.100/"), "a stopped daemon took its addresses along");
    let output = detach()?;
    ensure!(output.status.success(), "{}", crate::site::text(&output));
    ensure!(!attached()?.contains("xdp"), "the program is still on eth0");
    let left = addresses()?;
    ensure!(!left.contains("192.0.2.100/") && !left.contains("2001:db8::100/"), "{left}");
    ensure!(left.contains("192.0.2.11/"), "the host's own address is gone: {left}");
    ensure!(!site.pins().exists(), "pins are left");
    ensure!(detach()?.status.success(), "it cannot be repeated");

    // And all of it again.
    site.daemon().start()?;
    let status = site.settled()?;
    ensure!(status.0["dataplane"]["adopted"] == false, "maps were adopted from nowhere");
    site.holding()?;
    let load = Load::http(site.client(), 2, web());
    load.more(50)?;
    load.stop().ensure_none_failed()
}

#[test]
fn what_changed_while_the_daemon_was_dead_is_caught_up_with() -> Result<()> {
    let site = Site::up("changed", default_config())?;
    site.daemon().kill()?;
    site.lab().kill("app-01")?;
    // The kernel still believes in the dead one, and tries what it refuses at the others.
    let report = Load::http_requests(site.client(), 2, 30, web()).end();
    ensure!(report.answers(None).len() == 2, "{:?}", report.answers(None));
    report.ensure_none_failed()?;
    let config = default_config();
    // Meanwhile a service went out of the file.
    let (head, rest) = config.split_once("\n[[service]]\nname = \"echo\"").context("find echo")?;
    let (_, rest) = rest.split_once("\n[[service]]").context("find the service after it")?;
    site.write_config(&format!("{head}\n[[service]]{rest}"))?;
    site.daemon().start()?;
    site.until_serving("web", "app-01", false)?;
    let ejected = Instant::now();
    let status = site.settled()?;
    ensure!(!status.has_service("echo") && status.has_service("echo6"));
    let load = Load::http(site.client(), 4, web());
    load.more(200)?;
    load.stop().ensure_none_failed_since(ejected)?;
    let services = site.pins().join("SERVICES");
    let path = services.to_str().context("write the path")?;
    let text = site.run(HostName::Lb01, &["bpftool", "map", "dump", "pinned", path])?;
    ensure!(
        text.matches("\"port\": 9000").count() == 1,
        "the old service is in the kernel: {text}"
    );
    site.finish()
}

#[test]
fn the_state_directory_and_the_socket_survive_a_crash() -> Result<()> {
    let site = Site::up("crash", default_config())?;
    let socket = site.lab().socket(HostName::Lb01);
    site.daemon().kill()?;
    ensure!(socket.exists(), "a killed daemon leaves its socket");
    site.daemon().start()?;
    site.settled()?;
    site.daemon().stop()?;
    ensure!(!socket.exists(), "a stopped daemon removes its socket");
    // A wish file of a machine that lost power is no reason not to serve.
    let state = socket.with_file_name("state");
    site.daemon().start()?;
    site.obeys("drain app-01")?;
    site.daemon().stop()?;
    let wishes = state.join("wishes.json");
    ensure!(wishes.exists(), "there is no {}", wishes.display());
    fs::write(&wishes, "{")?;
    site.daemon().start()?;
    let status = site.settled()?;
    ensure!(status.backend("web", "app-01")["serving"] == true);
    let told = site.log();
    ensure!(told.contains("wishes"), "it does not say that wishes are lost");
    site.finish()
}
