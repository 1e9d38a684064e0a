//! SYNs from spoofed sources, as fast as a core can send them.

use std::{
    net::Ipv4Addr,
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use xtask::{
    lab::{
        Host, HostName,
        topology::{APP_PORT, FLOATING_V4},
    },
    wait,
};

use crate::{
    config::{self, APPS, Service, web},
    http::Connection,
    load::Load,
    site::{Site, number},
};

/// Entries of `FLOWS`: few, so that a flood that got there would be seen to overflow them.
const FLOWS: u64 = 16_384;

/// Entries of `HALF_OPEN`: two for each connection that begins within the time that a handshake takes, on
/// CPUs that have much else to do.
const HALF_OPEN: u64 = 262_144;

/// SYNs that are sent at least.
const SYNS: u64 = 2 * HALF_OPEN;

/// How long anything may take while segments are lost in queues before they reach the balancer.
const LIMIT: Duration = Duration::from_mins(5);

/// Connections that say nothing while it lasts.
const IDLE: usize = 200;

/// Requests over one connection at most: nginx ends it after a thousand.
const MOST_ASKED: u64 = 900;

/// Requests over new connections while it lasts.
const REQUESTS: u64 = 50;

/// A service with all app servers.
fn everywhere() -> Service {
    APPS.iter().fold(Service::new("web", web()), |service, app| {
        service.backend(app.as_str(), app.sockets(APP_PORT)[0], "")
    })
}

#[test]
fn a_syn_flood_breaks_no_connection_and_lets_new_ones_through() -> Result<()> {
    // In a lab, the flood takes the CPUs of the backends as well, and with them the probes' answers.
    let web_service = everywhere().key("balance = \"round_robin\"").health("probe = \"none\"");
    let text = config::text(&[web_service])
        + &format!("\n[dataplane]\nmax_flows = {FLOWS}\nmax_half_open = {HALF_OPEN}\n");
    let site = Site::up("flood", text)?;
    let mut idle = (0..IDLE)
        .map(|_| Connection::open(site.client(), web())?.patient(LIMIT))
        .collect::<Result<Vec<Connection>>>()?;
    for connection in &mut idle {
        connection.get("/id")?;
    }
    let busy = Busy::start(Connection::open(site.client(), web())?.patient(LIMIT)?);
    // 200 MB at 30 MB a second, if there is room for it.
    let download =
        Connection::open(site.client(), web())?.patient(LIMIT)?.download("/big?rate=30m")?;
    let file = site.lab().big_file()?;
    let download = thread::spawn(move || download.compare(&file));
    let before = site.status()?;
    let flood = Flood::start(site.client());
    let load = Load::http(site.client(), 16, web());
    load.more_within(REQUESTS, LIMIT)?;
    wait::until(LIMIT, "the flood", || {
        Ok((flood.sent.load(Ordering::Relaxed) >= SYNS).then_some(()))
    })?;
    let status = site.until("the flood to be told", |status| {
        status.warnings().contains("possible SYN flood on web")
    })?;
    load.more_within(REQUESTS, LIMIT)?;
    let report = load.stop();
    let asked = busy.asked()?;
    let sent = flood.stop()?;
    download.join().expect("join the download").context("download during the flood")?;

    let begun = |status: &crate::site::Status| number(&status.service("web")["connections"]);
    println!(
        "{sent} SYNs, {} connections begun of them; {} of {} requests over new connections failed, \
         the slowest took {:?}; {asked} requests over an open connection, none failed",
        begun(&status) - begun(&before),
        report.failed(),
        report.total(),
        report.slowest(),
    );
    // The flood reached the tables, and many times over.
    ensure!(begun(&site.status()?) - begun(&before) > HALF_OPEN / 2, "the flood went elsewhere");
    ensure!(asked > 0, "the open connection had to wait for the flood's end");
    // A client's SYN may be lost in a queue more often than it tries; most come through.
    let through = report.total() - report.failed();
    ensure!(through * 2 > report.total(), "{through} of {} came through", report.total());
    // Idle connections are where they were.
    for connection in &mut idle {
        let backend = connection.backend().to_owned();
        let answer = connection.get("/id").context("use an idle connection after the flood")?;
        ensure!(answer == backend, "a connection has moved from {backend} to {answer}");
    }
    let events = site.events()?;
    let told = events.iter().any(|event| event.to_string().contains("half-open table full"));
    ensure!(told, "the timeline does not tell of the flood");
    // The counts are those of the tables again.
    site.until("the counts of open connections to be right", |status| {
        status.sum("web", "active") == number(&status.0["flows"])
    })?;
    ensure!(site.status()?.sum("web", "active") >= IDLE as u64);
    site.finish()
}

/// SYNs for the proxy that are sent at least: many times what the queues of its listeners hold.
const SYNS_FOR_PROXY: u64 = 500_000;

/// The same, where the connections are the node's own: its listeners' queues are full at once, and from then on
/// the kernel program answers.
#[test]
fn a_syn_flood_breaks_no_connection_of_the_proxy_and_lets_new_ones_through() -> Result<()> {
    let web_service = everywhere().key("path = \"proxy\"").health("probe = \"none\"");
    let site = Site::up("flood-proxy", config::text(&[web_service]))?;
    // The node's stack remembers no SYN whose sender it knows no way to.
    let route = ["ip", "route", "add", "198.18.0.0/15", "via", "192.0.2.9"];
    site.run(HostName::Lb01, &route)?;
    let mut idle = (0..IDLE)
        .map(|_| Connection::open(site.client(), web())?.patient(LIMIT))
        .collect::<Result<Vec<Connection>>>()?;
    for connection in &mut idle {
        connection.get("/id")?;
    }
    let busy = Busy::start(Connection::open(site.client(), web())?.patient(LIMIT)?);
    let download =
        Connection::open(site.client(), web())?.patient(LIMIT)?.download("/big?rate=30m")?;
    let file = site.lab().big_file()?;
    let download = thread::spawn(move || download.compare(&file));
    let began = Instant::now();
    let flood = Flood::start(site.client());
    let load = Load::http(site.client(), 16, web());
    load.more_within(REQUESTS, LIMIT)?;
    wait::until(LIMIT, "the flood", || {
        Ok((flood.sent.load(Ordering::Relaxed) >= SYNS_FOR_PROXY).then_some(()))
    })?;
    let status = site.until("the flood to be told", |status| {
        status.warnings().contains("possible SYN flood on web")
    })?;
    load.more_within(REQUESTS, LIMIT)?;
    let report = load.stop();
    let asked = busy.asked()?;
    let took = began.elapsed();
    let sent = flood.stop()?;
    download.join().expect("join the download").context("download during the flood")?;
    println!(
        "{sent} SYNs in {took:?}, {} answered with cookies, {} passed; {} of {} requests over new \
         connections failed, the slowest took {:?}; {asked} requests over an open connection, none failed",
        status.reason("syn_cookie"),
        status.reason("proxied"),
        report.failed(),
        report.total(),
        report.slowest(),
    );
    ensure!(asked > 0, "the open connection had to wait for the flood's end");
    let through = report.total() - report.failed();
    ensure!(through * 2 > report.total(), "{through} of {} came through", report.total());
    for connection in &mut idle {
        connection.get("/id").context("use an idle connection after the flood")?;
    }
    ensure!(site.status()?.reason("syn_cookie") > 0, "no SYN was answered with a cookie");
    let events = site.events()?;
    let told = events.iter().any(|event| event.to_string().contains("answered with SYN cookies"));
    ensure!(told, "the timeline does not tell of the flood");
    site.until("the flood to be over", |status| !status.warnings().contains("SYN flood"))?;
    site.finish()
}

/// Asks again and again over one connection.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Busy {
    fn start(mut connection: Connection) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut asked = 0;
            while !stopped.load(Ordering::Relaxed) && asked < MOST_ASKED {
                connection.get("/id").context("ask over an open connection")?;
                asked += 1;
            }
            Ok(asked)
        });
        Self { stop, thread }
    }

    /// Stops it, and gives how often it has asked.
    fn asked(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("join the client")
    }
}

/// A thread that sends SYNs.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Flood {
    fn start(host: &Host) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, count, host) = (Arc::clone(&stop), Arc::clone(&sent), host.clone());
        let thread = thread::spawn(move || host.within(|| send(&stopped, &count))?);
        Self { stop, sent, thread: Some(thread) }
    }

    /// Ends it, and gives how many were sent.
    fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("taken once").join().expect("join the flood")?;
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Frames in one call.
const BATCH: usize = 64;

/// Sends SYNs from random addresses of 198.18.0.0/15 (RFC 2544) until it is stopped.
fn send(stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .context("open a packet socket")?;
    let ifindex = if_nametoindex("eth0").context("find eth0")?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0x0800_u16.to_be(),
        sll_ifindex: ifindex as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let mut frames = vec![syn()?; BATCH];
    let mut random = fastrand::Rng::new();
    while !stop.load(Ordering::Relaxed) {
        for frame in &mut frames {
            renew(frame, &mut random);
        }
        let mut parts: Vec<libc::iovec> = frames
            .iter_mut()
            .map(|frame| libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: zeros are a valid message: without name, data or control.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_name = (&raw const address).cast_mut().cast();
                message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        // SAFETY: the messages point to the address and to the frames, which live longer than the
        // call and are not touched during it.
        let taken =
            unsafe { libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), BATCH as u32, 0) };
        // A full queue of the interface takes none.
        sent.fetch_add(u64::try_from(taken).unwrap_or(0), Ordering::Relaxed);
    }
    Ok(())
}

/// A SYN to the web service, from nobody yet.
fn syn() -> Result<Vec<u8>> {
    let mac = |host: HostName| -> Result<Vec<u8>> {
        host.mac().split(':').map(|byte| Ok(u8::from_str_radix(byte, 16)?)).collect()
    };
    let mut frame = [mac(HostName::Lb01)?, mac(HostName::Client)?, vec![8, 0]].concat();
    frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0]);
    frame.extend(FLOATING_V4.octets());
    frame.extend([0, 0]);
    frame.extend(web().port().to_be_bytes());
    frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0xfa, 0xf0, 0, 0, 0, 0]);
    Ok(frame)
}

/// Gives a SYN another source and sequence number.
fn renew(frame: &mut [u8], random: &mut fastrand::Rng) {
    let source = Ipv4Addr::from_bits(0xc612_0000 | random.u32(..0x2_0000));
    frame[26..30].copy_from_slice(&source.octets());
    frame[34..36].copy_from_slice(&random.u16(1024..).to_be_bytes());
    frame[38..42].copy_from_slice(&random.u32(..).to_be_bytes());
    frame[24..26].fill(0);
    frame[50..52].fill(0);
    let sum = |bytes: &[u8]| -> u32 {
        let words = bytes.chunks_exact(2);
        words.map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
    };
    let fold = |mut sum: u32| {
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    };
    let header = fold(sum(&frame[14..34]));
    // The pseudo-header: addresses, protocol, length (RFC 9293, section 3.1).
    let segment = fold(sum(&frame[26..34]) + 6 + 20 + sum(&frame[34..54]));
    frame[24..26].copy_from_slice(&header);
    frame[50..52].copy_from_slice(&segment);
}
