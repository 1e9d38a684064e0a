//! Steered services under churn: the planner's tables, written by the data plane, read by the program in
//! the kernel, which says where each packet of 100,000 connections goes.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _,
    programs::{TestRunOptions, Xdp},
};
use ballast::{
    clock,
    config::{Forwarding, Guard, Protocol, Replay},
    control::plan::{Desired, DesiredBackend, DesiredService, Planner, Proxied, service_key},
    dataplane::{Adopted, Dataplane, Options, Sizes, Timeouts, load::OBJECT, remove_pins},
    net::NextHop,
};
use lb_common::{backend::FORWARD, names, service::Balance};
use lb_ebpf::{
    fake::Frame,
    packet::tcp_flags::{ACK, SYN},
};

const CONNECTIONS: usize = 100_000;

/// Changes of the table.
const ROUNDS: usize = 40;

/// Time from one change to the next, as the planner is told.
const ROUND: Duration = Duration::from_mins(10);

/// How long a connection may be silent. Each sends at least every fifth round.
const IDLE: Duration = Duration::from_mins(124);

const VIP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 100)), 80);

/// Hosts that can be backends, by their last number.
const HOSTS: std::ops::Range<u8> = 20..36;

/// A directory of pins, removed at the end.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        remove_pins(&self.0).expect("remove the pins");
    }
}

/// A connection: the frames that it sends, and the backend that it is at while it is open.
struct Connection {
    syn: Vec<u8>,
    data: Vec<u8>,
    at: Option<u8>,
}

impl Connection {
    fn new(number: usize) -> Self {
        let client = Ipv4Addr::from(0x0a00_0000 + (number / 1000) as u32);
        let client = SocketAddr::from((client, 2000 + (number % 1000) as u16));
        let frame = |flags| Frame::tcp(client, VIP, flags).build();
        Self { syn: frame(SYN), data: frame(ACK), at: None }
    }
}

struct Site {
    pins: Pins,
    dataplane: Dataplane,
    /// The same program with the same maps, to run packets through.
    ebpf: Ebpf,
    planner: Planner,
    now: Duration,
}

impl Site {
    fn new() -> Result<Self> {
        let pins = Pins(format!("/sys/fs/bpf/ballast-churn-{}", std::process::id()).into());
        let options = Options {
            pins: pins.0.clone(),
            max_flows: 4 * CONNECTIONS as u32,
            max_half_open: 1024,
            sizes: Sizes::default(),
            discard_pins: false,
        };
        let dataplane = Dataplane::open(&options)?;
        let mut loader = EbpfLoader::new();
        for name in names::PINNED {
            loader.map_pin_path(names::in_object(name), pins.0.join(name));
        }
        for (name, entries) in [
            (names::FLOWS, options.max_flows),
            (names::FLOWS6, options.max_flows),
            (names::HALF_OPEN, options.max_half_open),
            (names::HALF_OPEN6, options.max_half_open),
        ] {
            loader.map_max_entries(name, entries);
        }
        let mut ebpf = loader.load(OBJECT).context("use the pinned maps")?;
        let program: &mut Xdp = ebpf.program_mut(names::PROGRAM).context("find it")?.try_into()?;
        program.load().context("load the program")?;
        let planner = Planner::adopt(Adopted::default());
        Ok(Self { pins, dataplane, ebpf, planner, now: Duration::from_hours(1) })
    }

    /// Puts a table into force.
    fn want(&mut self, desired: &Desired) -> Result<()> {
        let plan = self.planner.plan(desired, self.now);
        ensure!(plan.problems.is_empty(), "{:?}", plan.problems);
        for op in &plan.ops {
            self.dataplane.apply(std::slice::from_ref(op))?;
            self.planner.applied(op, self.now);
        }
        Ok(())
    }

    /// What the daemon does once a second.
    fn sweep(&mut self) -> Result<()> {
        let idle_ns = IDLE.as_nanos() as u64;
        let timeouts =
            Timeouts { tcp_idle_ns: idle_ns, tcp_closing_ns: idle_ns, udp_idle_ns: idle_ns };
        let sweep = self.dataplane.sweep(clock::monotonic_coarse_ns(), &timeouts)?;
        self.planner.swept(&sweep.by_backend, self.now);
        self.planner.swept_steered(&sweep.steered, self.now);
        Ok(())
    }

    /// The host that a frame is sent to, by the MAC address; `None` if it is refused.
    fn run(&self, frame: &[u8]) -> Result<Option<u8>> {
        let program: &Xdp = self.ebpf.program(names::PROGRAM).context("find it")?.try_into()?;
        let mut after = [0; 256];
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut after),
            ..TestRunOptions::default()
        })?;
        // XDP_TX and XDP_REDIRECT; a reset goes back to the client by XDP_TX too.
        let sent = matches!(result.return_value, 3 | 4) && after[..5] == [2, 0, 0, 0, 1];
        Ok(sent.then_some(after[5]))
    }

    /// Hosts to which packets are forwarded.
    fn living(&self) -> Result<Vec<u8>> {
        let backends = self.dataplane.adopted()?.backends;
        let living = backends.into_iter().filter(|(_, backend)| backend.flags & FORWARD != 0);
        Ok(living.map(|(_, backend)| backend.address[15]).collect())
    }

    fn disturbed(&self) -> (u32, u32) {
        self.planner.disturbed(&service_key(VIP, Protocol::Tcp)).unwrap_or_default()
    }
}

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, host], VIP.port()))
}

/// A site whose backends are these hosts, with their weights; 0: it drains.
fn desired(weights: &BTreeMap<u8, u32>) -> Desired {
    let hop = |host: u8| NextHop {
        ifindex: 2,
        source_mac: [2, 0, 0, 0, 0, 0xb],
        mac: Some([2, 0, 0, 0, 1, host]),
        mtu: 1500,
        source: None,
    };
    let backends = weights.iter().map(|(&host, &weight)| DesiredBackend {
        address: address(host),
        weight: weight.max(1),
        full_weight: 64,
        serving: weight > 0,
        forward: true,
        patience_ms: 0,
        leased: false,
    });
    let service = DesiredService {
        key: service_key(VIP, Protocol::Tcp),
        balance: Balance::Maglev,
        forward: Forwarding::Direct,
        drain_timeout: 2 * ROUND,
        backends: backends.collect(),
        guard: Guard::default(),
        proxied: Proxied::None,
        parked_until: 0,
        replay: Replay { tries: 0, per_mille: 0 },
    };
    Desired {
        floating: [VIP.ip()].into(),
        services: vec![Arc::new(service)],
        next_hops: Arc::new(HOSTS.map(|host| (address(host).ip(), hop(host))).collect()),
        tcp_idle: IDLE,
        udp_idle: IDLE,
        untouched: false,
    }
}

/// Adds a backend, removes one, or gives one another weight.
fn change(weights: &mut BTreeMap<u8, u32>, random: &mut fastrand::Rng) {
    let host = random.u8(HOSTS);
    if weights.len() > 2 && weights.contains_key(&host) && random.bool() {
        weights.remove(&host);
    } else {
        let least = u32::from(!weights.contains_key(&host));
        weights.insert(host, random.u32(least..=64));
    }
    if weights.values().all(|weight| *weight == 0) {
        weights.insert(host, 64);
    }
}

#[test]
fn no_connection_of_a_living_backend_is_moved_by_churn() -> Result<()> {
    let seed = 0x0ba1_1a57;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut site = Site::new()?;
    let mut weights: BTreeMap<u8, u32> = (20..26).map(|host| (host, 64)).collect();
    site.want(&desired(&weights))?;
    let mut connections: Vec<_> = (0..CONNECTIONS).map(Connection::new).collect();
    for connection in &mut connections {
        connection.at = site.run(&connection.syn)?;
        ensure!(connection.at.is_some(), "a SYN is refused");
    }
    ensure!(site.disturbed().0 == 0, "a first table has nothing to remember");

    let (mut packets, mut ended, mut most_disturbed) = (0_u64, 0_u64, 0);
    for round in 0..ROUNDS {
        site.now += ROUND;
        if random.u8(0..8) == 0 {
            site.planner = Planner::adopt(site.dataplane.adopted()?);
        }
        change(&mut weights, &mut random);
        site.want(&desired(&weights))?;
        let living = site.living()?;
        most_disturbed = most_disturbed.max(site.disturbed().0);
        for (number, connection) in connections.iter_mut().enumerate() {
            // Those of a backend that is cut off are over, and some others end too.
            let gone = connection.at.is_none_or(|host| !living.contains(&host));
            if gone || random.u8(..) == 0 {
                ended += u64::from(gone);
                connection.at = site.run(&connection.syn)?;
            } else if number % 5 == round % 5 || random.u8(0..8) == 0 {
                let goes = site.run(&connection.data)?;
                ensure!(
                    goes == connection.at,
                    "seed {seed:#x}, round {round}, connection {number}: it is at {:?}, and its \
                     packet goes to {goes:?}",
                    connection.at,
                );
                packets += 1;
            }
        }
        site.sweep()?;
    }
    // With no further change, and nothing silent for too long, hardly a slot remembers.
    for round in 0..20 {
        site.now += ROUND;
        site.want(&desired(&weights))?;
        for (_, connection) in connections.iter().enumerate().filter(|(at, _)| at % 5 == round % 5)
        {
            let goes = site.run(&connection.data)?;
            let living = connection.at.is_some_and(|host| weights.contains_key(&host));
            ensure!(goes == connection.at || !living, "a connection has moved at rest");
            packets += 1;
        }
        site.sweep()?;
    }
    println!(
        "{packets} packets of {CONNECTIONS} connections over {ROUNDS} changes: none moved; {ended} \
         ended with their backends; at most {most_disturbed} of {} slots disturbed, {} at the end; {}",
        site.disturbed().1,
        site.disturbed().0,
        site.pins.0.display(),
    );
    ensure!(most_disturbed > 0, "the churn has moved no slot");
    ensure!(fs::exists(&site.pins.0)?, "the maps are pinned");
    Ok(())
}
