//! Services with `path = "proxy"`: requests that are retried.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::HostName;

use crate::{
    config::{self, APPS, Service, web, web6},
    http::Connection,
    load::{Load, PATIENCE},
    site::{Site, number, text},
};

/// Client threads under which things fail.
const CLIENTS: usize = 16;

fn proxied(name: &str, listen: std::net::SocketAddr) -> Service {
    Service::web(name, listen, &APPS).key("path = \"proxy\"")
}

fn site(name: &str) -> Result<Site> {
    Site::up(name, config::text(&[proxied("web", web()), proxied("web6", web6())]))
}

/// What the proxy of a service has counted.
fn counted(site: &Site, service: &str, field: &str) -> Result<u64> {
    Ok(number(&site.status()?.service(service)["proxy"][field]))
}

#[test]
fn requests_go_through_the_proxy_to_all_backends() -> Result<()> {
    let site = site("proxy")?;
    for (service, target) in [("web", web()), ("web6", web6())] {
        let report = Load::http_requests(site.client(), 4, 100, target).end();
        report.ensure_none_failed()?;
        ensure!(report.answers(None).len() == 3, "{:?}", report.answers(None));
        let status = site.status()?;
        let service = status.service(service);
        ensure!(service["path"] == "proxy", "{service}");
        ensure!(number(&service["proxy"]["requests"]) == 400, "{service}");
        ensure!(number(&service["proxy"]["answers"]["2xx"]) == 400, "{service}");
        ensure!(number(&service["connections"]) == 400, "the program counts them too: {service}");
        // Connections to the backends are kept.
        ensure!(number(&service["proxy"]["connections"]) == 400, "{service}");
    }
    let status = site.status()?;
    ensure!(status.reason("proxied") > 400, "{:?}", status.0["reasons"]);
    ensure!(number(&status.0["flows"]) == 0, "the kernel forwards some of it");
    let text = site.obeys("status")?;
    ensure!(text.contains("proxy") && text.contains("400 requests"), "{text}");
    a_client_keeps_its_connection(&site)?;
    an_upgrade_is_handed_through(&site)?;
    bodies_pass_whole(&site)?;
    site.finish()
}

fn a_client_keeps_its_connection(site: &Site) -> Result<()> {
    let mut connection = Connection::open(site.client(), web())?;
    for _ in 0..20 {
        connection.get("/id")?;
    }
    let before = counted(site, "web", "connections")?;
    connection.get("/id")?;
    ensure!(counted(site, "web", "connections")? == before, "a connection for each request");
    Ok(())
}

/// nginx knows no protocol to change to, so it answers as if it had not been asked.
fn an_upgrade_is_handed_through(site: &Site) -> Result<()> {
    let mut stream = site.client().within(|| TcpStream::connect_timeout(&web(), PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(
        b"GET /id HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    )?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 200"), "{line}");
    Ok(())
}

fn bodies_pass_whole(site: &Site) -> Result<()> {
    let big = site.lab().big_file()?;
    Connection::open(site.client(), web())?.download("/big")?.compare(&big)?;
    let name = "proxied-upload";
    let url = format!("http://192.0.2.100/upload/{name}");
    let file = big.to_str().context("write the path")?;
    let words = ["curl", "-sS", "-f", "-m", "120", "-T", file, &url];
    site.run(HostName::Client, &words)?;
    let copies = APPS.iter().map(|app| site.lab().upload(app.as_str(), name));
    let copies: Vec<_> = copies.filter(|file| file.exists()).collect();
    ensure!(copies.len() == 1, "the upload is on {} hosts", copies.len());
    ensure!(std::fs::read(&copies[0])? == std::fs::read(&big)?, "the upload differs");
    Ok(())
}

#[test]
fn a_killed_app_costs_no_request_through_the_proxy() -> Result<()> {
    let site = site("proxy-killed")?;
    let load = Load::http(site.client(), CLIENTS, web());
    let load6 = Load::http(site.client(), 2, web6());
    for round in 0..3 {
        load.more(500)?;
        site.lab().kill("app-02")?;
        site.until_serving("web", "app-02", false)?;
        load.more(500)?;
        site.lab().start("app-02")?;
        site.until_serving("web", "app-02", true)?;
        println!("round {round}: app-02 was away, and is back");
    }
    load.more(500)?;
    let (report, report6) = (load.stop(), load6.stop());
    println!("app killed 3 times: {} requests, slowest {:?}", report.total(), report.slowest());
    report.ensure_none_failed()?;
    report6.ensure_none_failed()?;
    ensure!(counted(&site, "web", "retries")? > 0, "none was retried");
    site.finish()
}

#[test]
fn a_silent_app_holds_requests_up_but_fails_none() -> Result<()> {
    let site = site("proxy-silent")?;
    let load = Load::http(site.client(), CLIENTS, web());
    load.more(500)?;
    let cut = Instant::now();
    site.lab().cut("app-02")?;
    site.until_serving("web", "app-02", false)?;
    let out = Instant::now();
    load.more(500)?;
    site.lab().heal("app-02")?;
    site.until_serving("web", "app-02", true)?;
    load.more(500)?;
    let report = load.stop();
    println!(
        "link cut: {} requests, slowest {:?}, out after {:?}",
        report.total(),
        report.slowest(),
        out - cut
    );
    report.ensure_none_failed()?;
    // The connect timeout is 5 s, the read timeout 30 s: nobody waits for either.
    ensure!(report.slowest() < Duration::from_secs(5), "{:?}", report.slowest());
    site.finish()
}

#[test]
fn a_daemon_that_ends_leaves_connections_to_the_kernel_and_takes_them_back() -> Result<()> {
    let site = site("proxy-restart")?;
    let load = Load::http(site.client(), 4, web());
    load.more(200)?;
    let mut kept = Connection::open(site.client(), web())?;
    for _ in 0..2 {
        site.daemon().stop()?;
        // Nobody listens; the program forwards.
        load.more(200)?;
        site.daemon().start()?;
        site.until("the proxy to have requests", |status| {
            number(&status.service("web")["proxy"]["requests"]) > 100
        })?;
    }
    ensure!(kept.get("/id").is_err(), "a connection outlives its proxy");
    let report = load.stop();
    report.ensure_none_failed()?;
    site.finish()
}

#[test]
fn while_a_killed_daemon_is_away_the_kernel_forwards() -> Result<()> {
    let site = site("proxy-orphaned")?;
    for round in 0..2 {
        let loads = [(4, web()), (2, web6())]
            .map(|(clients, target)| Load::http(site.client(), clients, target));
        loads.iter().try_for_each(|load| load.more(200))?;
        site.daemon().kill()?;
        // What the proxy had in its hands is lost with it, until its last socket is closed.
        let killed = Instant::now();
        loads.iter().try_for_each(|load| load.more(200))?;
        site.daemon().start()?;
        site.until("the proxy to have requests", |status| {
            number(&status.service("web")["proxy"]["requests"]) > 100
        })?;
        loads.iter().try_for_each(|load| load.more(200))?;
        for report in loads.map(Load::stop) {
            println!("round {round}: {} of {} requests failed", report.failed(), report.total());
            report.ensure_none_failed_since(killed)?;
        }
    }
    site.finish()
}

#[test]
fn with_auto_the_proxy_takes_over_while_a_backend_is_shaky() -> Result<()> {
    let service = Service::web("web", web(), &APPS).key("path = \"auto\"");
    let site = Site::up("proxy-auto", config::text(&[service]))?;
    let load = Load::http(site.client(), CLIENTS, web());
    load.more(500)?;
    let status = site.status()?;
    ensure!(status.service("web")["path"] == "auto" && status.service("web")["proxied"] == false);
    ensure!(counted(&site, "web", "requests")? == 0, "the proxy has requests of a sound service");
    let mut before = Connection::to(site.client(), web(), "app-01")?;

    site.lab().kill("app-02")?;
    let lifted = |status: &crate::site::Status| status.service("web")["proxied"] == true;
    site.until("the proxy to take over", lifted)?;
    // What the kernel had begun by then ends as it may.
    let over = Instant::now();
    load.more(1000)?;
    site.lab().start("app-02")?;
    site.until_serving("web", "app-02", true)?;
    site.lab().kill("app-03")?;
    load.more(1000)?;
    site.lab().start("app-03")?;
    site.until_serving("web", "app-03", true)?;
    ensure!(counted(&site, "web", "requests")? > 1000, "the requests are not the proxy's");
    ensure!(before.get("/id")? == "app-01", "an open connection did not stay where it was");

    site.until("the kernel to forward again", |status| !lifted(status))?;
    let after = counted(&site, "web", "requests")?;
    load.more(500)?;
    // One that was on its way is let in.
    let late = counted(&site, "web", "requests")? - after;
    ensure!(late <= CLIENTS as u64, "the proxy had {late} more");
    let report = load.stop();
    println!("auto: {} of {} requests failed", report.failed(), report.total());
    report.ensure_none_failed_since(over)?;
    let told = site.events()?;
    let paths: Vec<_> = told.iter().filter(|event| event["kind"] == "path").collect();
    ensure!(paths.len() == 2, "it swings: {paths:?}");
    ensure!(paths[0]["cause"].is_string(), "{paths:?}");
    site.finish()
}

#[test]
fn a_request_that_no_backend_answers_is_told_so() -> Result<()> {
    let site = site("proxy-none")?;
    for app in APPS {
        site.lab().kill(app.as_str())?;
    }
    let asked = |words: &str| -> Result<Output> {
        let mut command = site.client().command("curl");
        command.args(["-sS", "-m", "30", "-o", "/dev/null", "-w", "%{http_code}"]);
        command.args(words.split(' '));
        command.output().context("run curl")
    };
    for words in ["http://192.0.2.100/", "-X POST -d x http://192.0.2.100/"] {
        let output = asked(words)?;
        ensure!(text(&output) == "502", "{words}: {}", text(&output));
    }
    let output = asked("-X TRACE http://192.0.2.100/")?;
    ensure!(text(&output) == "405", "{}", text(&output));
    let status = site.status()?;
    let proxy = &status.service("web")["proxy"];
    ensure!(
        number(&proxy["bad_gateway"]) == 2 && number(&proxy["refused"]["method"]) == 1,
        "{proxy}"
    );
    let mut stream = site.client().within(|| TcpStream::connect_timeout(&web(), PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 400 "), "without a host: {answer}");
    site.finish()
}
