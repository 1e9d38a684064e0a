//! `least_time`: a server that answers later gets fewer requests, as long as it does.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::HostName;

use crate::{
    config::{self, Service, web, web6},
    load::Load,
    site::{Site, eventually},
};

const FAST: HostName = HostName::App01;
const SLOW: HostName = HostName::App02;

/// Where the servers listen.
const PORT: u16 = 8091;

/// How much later the slow one answers: far more than a request takes on a machine that does something else.
const LATER: Duration = Duration::from_millis(20);

/// Clients, and requests of each.
const CLIENTS: usize = 4;
const EACH: u64 = 100;
const ALL: usize = CLIENTS * EACH as usize;

/// Answers with the name of its host, after the given milliseconds.
fn serve(site: &Site, host: HostName, later_ms: &Arc<AtomicU64>) -> Result<()> {
    for address in host.sockets(PORT) {
        let listener = site.host(host).within(|| TcpListener::bind(address))?.context("listen")?;
        let later_ms = Arc::clone(later_ms);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let later_ms = Arc::clone(&later_ms);
                // How it ended, the client sees.
                thread::spawn(move || answer(&stream, host.as_str(), &later_ms).ok());
            }
        });
    }
    Ok(())
}

fn answer(stream: &TcpStream, name: &str, later_ms: &AtomicU64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    for line in BufReader::new(stream).lines() {
        if line?.is_empty() {
            thread::sleep(Duration::from_millis(later_ms.load(Ordering::Relaxed)));
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            (&*stream).write_all(head.as_bytes())?;
        }
    }
    Ok(())
}

/// A service of both servers.
fn service(name: &str, listen: SocketAddr) -> Service {
    let family = usize::from(listen.is_ipv6());
    [FAST, SLOW]
        .iter()
        .fold(Service::new(name, listen), |service, host| {
            service.backend(host.as_str(), host.sockets(PORT)[family], "")
        })
        .key("path = \"proxy\"")
        .key("balance = \"round_robin\"")
}

/// How many of [`ALL`] requests the slow server has answered.
fn of_slow(site: &Site, target: SocketAddr) -> Result<usize> {
    let report = Load::http_requests(site.client(), CLIENTS, EACH, target).end();
    report.ensure_none_failed()?;
    let answers = report.answers(None);
    ensure!(answers.values().sum::<usize>() == ALL, "{answers:?}");
    Ok(answers.get(SLOW.as_str()).copied().unwrap_or(0))
}

#[test]
fn a_slow_server_gets_few_requests_until_it_is_fast() -> Result<()> {
    let least_time = service("web", web()).health("[service.proxy]").health("least_time = true");
    let text = config::text(&[least_time, service("web6", web6())]);
    let site = Site::without_daemon("proxy-speed", text)?;
    let later_ms = Arc::new(AtomicU64::new(LATER.as_millis() as u64));
    serve(&site, FAST, &Arc::default())?;
    serve(&site, SLOW, &later_ms)?;
    site.daemon().start()?;
    site.settled()?;
    site.holding()?;

    // In turn, each has its half, however long it takes.
    let in_turn = of_slow(&site, web6())?;
    ensure!(in_turn > ALL * 2 / 5, "{in_turn} of {ALL} in turn");
    let soonest = of_slow(&site, web())?;
    ensure!(soonest < ALL / 5, "{soonest} of {ALL} where answers come late");
    println!("slow: {soonest} of {ALL}, in turn {in_turn}");

    later_ms.store(0, Ordering::Relaxed);
    let again = eventually("the server that is fast again to have its share", || {
        let share = of_slow(&site, web())?;
        Ok((share > ALL / 4).then_some(share))
    })?;
    println!("fast again: {again} of {ALL}");
    site.finish()
}
