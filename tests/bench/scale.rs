//! What very many services, backends and flows cost the daemon: time and memory.
//!
//! The parts of the real daemon work on real maps, in a network namespace of this process alone, with
//! the program on its `lo`. Next hops are given, not asked for; no packet is sent.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use aya::maps::MapData;
use ballast::{
    clock,
    config::{self, sizes},
    control::{
        kernel::{Kernel, Shared},
        status::View,
        task::{Handle, Setup, Task},
    },
    dataplane::{self, Dataplane, Op, Timeouts},
    events::Timeline,
    net::{NextHop, NextHops},
};
use lb_common::{backend::Backend, names};
use lb_ebpf::family::{V4, V6};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::watch;
use xtask::bench::Scale;

use crate::{fill, net::Version};

/// Hosts that the backends are on. Many services share a host, as in a cluster of containers.
const HOSTS: u32 = 10_000;

/// Services of each floating address.
const SERVICES_AT_ONE: u32 = 1000;

/// Longest time that the tables may take to become true.
const PATIENCE: Duration = Duration::from_mins(30);

/// Measures, and prints as it goes.
pub(crate) fn run(args: &Scale) -> anyhow::Result<()> {
    // Before there is a second thread, which would stay behind.
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace: run this as root")?;
    let place = Place::new()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if cfg!(debug_assertions) {
        println!("(built without optimization: the times are several times too long)");
    }
    runtime.block_on(configuration(args, &place))?;
    drop(runtime);
    flows(args, &place)
}

/// Directories of this process, removed at its end.
struct Place {
    directory: PathBuf,
    pins: PathBuf,
}

impl Place {
    fn new() -> anyhow::Result<Self> {
        let name = format!("ballast-bench-{}", std::process::id());
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir_all(&directory).context("create a directory")?;
        Ok(Self { directory, pins: Path::new("/sys/fs/bpf").join(name) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = dataplane::remove_pins(&self.pins);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A file with so many services; the first `heavier` of them give their first backend more weight.
fn file(args: &Scale, heavier: u32) -> String {
    let mut text = String::from(
        "[[node]]\nname = \"lb-01\"\naddress = \"192.0.2.11\"\ninterface = \"lo\"\n\
         priority = 90\n[[node]]\nname = \"lb-02\"\naddress = \"192.0.2.12\"\n\
         interface = \"lo\"\npriority = 100\n[[floating]]\nvrid = 51\naddresses = [",
    );
    // Writing to a `String` cannot fail.
    for number in 0..=args.services / SERVICES_AT_ONE {
        let _ = write!(text, "\"{}/16\", ", vip(number));
    }
    text += "]\n";
    for service in 0..args.services {
        let (vip, port) = (vip(service / SERVICES_AT_ONE), 1000 + service % SERVICES_AT_ONE);
        let _ = write!(
            text,
            "[[service]]\nname = \"service-{service}\"\nlisten = \"{vip}:{port}\"\n\
             [service.health]\nprobe = \"none\"\n"
        );
        for number in 0..args.backends {
            let (host, port) = (host(service, number), 1024 + service % 60_000);
            let weight = if service < heavier && number == 0 { 2 } else { 1 };
            let _ = write!(
                text,
                "[[service.backend]]\nname = \"app-{number}\"\naddress = \"{host}:{port}\"\n\
                 weight = {weight}\n"
            );
        }
    }
    text
}

fn vip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xc612_0001 + number)
}

fn host(service: u32, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0001 + (service * 7 + number) % HOSTS)
}

async fn configuration(args: &Scale, place: &Place) -> anyhow::Result<()> {
    let path = place.directory.join("ballast.toml");
    let text = file(args, 0);
    println!(
        "{} services of {} backends, a file of {}",
        args.services,
        args.backends,
        mib(text.len() as u64)
    );
    fs::write(&path, text).context("write the configuration")?;
    let start = Instant::now();
    let loaded = config::load(&path).map_err(|rejected| anyhow!("{rejected}"))?;
    row("read and check the file", start.elapsed());
    println!("{:44}{:>12}", "daemon, with the configuration", mib(resident()?));

    let sizes = sizes::sizes(&loaded.config);
    let start = Instant::now();
    let dataplane = open(place, sizes, 1 << 16)?;
    row("load the program, create the maps", start.elapsed());
    let config_maps = [
        names::SERVICES,
        names::BACKENDS,
        names::MAGLEV,
        names::SERVICE_STATS,
        names::BACKEND_STATS,
        names::ACTIVE,
        names::CURSORS,
    ];
    let info = dataplane.info()?;
    let bytes = info.maps.iter().filter(|map| config_maps.contains(&map.name.as_str()));
    println!(
        "{:44}{:>12}",
        "kernel, maps of the configuration",
        mib(bytes.map(|map| map.bytes).sum())
    );

    let kernel: Arc<dyn Kernel> = Arc::new(Shared::new(dataplane)?);
    let hop =
        NextHop { ifindex: 1, source_mac: [2; 6], mac: Some([4; 6]), mtu: 1500, source: None };
    let hops: NextHops = (0..HOSTS).map(|number| (IpAddr::V4(host(0, number)), hop)).collect();
    let (_sender, next_hops) = watch::channel(hops);
    let mut next_hops = next_hops;
    next_hops.mark_changed();
    let start = Instant::now();
    let handle = Task::start(Setup {
        databases: tokio::sync::watch::Sender::default(),
        alerts: watch::Sender::default(),
        node: "lb-01".into(),
        config_path: path.clone(),
        config: loaded.config,
        warnings: Vec::new(),
        state_dir: place.directory.clone(),
        kernel: Arc::clone(&kernel),
        router: None,
        timeline: Arc::new(Timeline::new(None)),
        next_hops,
        wanted: watch::Sender::new(BTreeSet::new()),
        proxy: ballast::proxy::Proxy::default(),
    })
    .await?;
    until_serving(&handle, args).await?;
    row("start, until every backend serves", start.elapsed());
    println!("{:44}{:>12}", "daemon, in service", mib(resident()?));

    for (what, heavier) in [
        ("nothing changed", 0),
        ("one weight changed", 1),
        ("a weight of each service", args.services),
    ] {
        fs::write(&path, file(args, heavier)).context("write the configuration")?;
        let start = Instant::now();
        if let Err(refused) = handle.reload().await? {
            bail!("a reload is refused: {refused}");
        }
        row(&format!("reload, {what}"), start.elapsed());
    }
    println!("{:44}{:>12}", "daemon, after three reloads", mib(resident()?));

    let start = Instant::now();
    let overview = handle.status(View::default()).await?;
    row("status, overview", start.elapsed());
    anyhow::ensure!(overview.services.len() == args.services as usize, "services are missing");
    let start = Instant::now();
    handle.status(View { service: Some("service-0".into()), all: false }).await?;
    row("status, one service", start.elapsed());
    let ids: Vec<u32> = (0..args.services * args.backends).collect();
    let start = Instant::now();
    kernel.counters(&[], &ids)?;
    row("counters of all backends", start.elapsed());
    handle.stop().await;
    Ok(())
}

/// Returns when all backends of all services serve, by the daemon's own account.
async fn until_serving(handle: &Handle, args: &Scale) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = handle.status(View::default()).await?;
        let serving: usize = status.services.iter().map(|service| service.serving_count).sum();
        if serving == (args.services * args.backends) as usize {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "only {serving} backends serve");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn open(place: &Place, sizes: dataplane::Sizes, max_flows: u32) -> anyhow::Result<Dataplane> {
    Dataplane::open(&dataplane::Options {
        pins: place.pins.clone(),
        max_flows,
        max_half_open: 1 << 16,
        sizes,
        discard_pins: true,
    })
}

/// Memory of a flow, and sweeps over all of them beside a writer.
fn flows(args: &Scale, place: &Place) -> anyhow::Result<()> {
    let max_flows = (2 * args.flows + (1 << 16)).max(1 << 16);
    println!("\n{} connections of IPv4, and as many of IPv6", args.flows);
    let mut dataplane = open(place, dataplane::Sizes::default(), max_flows)?;
    for (name, version) in [(names::FLOWS, Version::V4), (names::FLOWS6, Version::V6)] {
        use std::os::fd::AsFd as _;
        let map = MapData::from_pin(place.pins.join(name)).context("open a flow table")?;
        match version {
            Version::V4 => fill::flows::<V4>(map.fd().as_fd(), version, 6, args.flows)?,
            Version::V6 => fill::flows::<V6>(map.fd().as_fd(), version, 6, args.flows)?,
        }
    }
    for map in dataplane.info()?.maps {
        let per_entry = map.bytes as f64 / f64::from(map.max_entries);
        if [names::FLOWS, names::FLOWS6].contains(&map.name.as_str()) {
            println!(
                "{:44}{:>12}   {per_entry:.0} bytes an entry, {:.0} a connection",
                format!("kernel, {} of {} entries", map.name, map.max_entries),
                mib(map.bytes),
                2.0 * per_entry
            );
        }
    }

    // The entries were last seen at zero.
    let timeouts =
        Timeouts { tcp_idle_ns: u64::MAX, tcp_closing_ns: u64::MAX, udp_idle_ns: u64::MAX };
    let sweeper = dataplane.sweeper();
    let (slices, result) = (Mutex::new(Vec::new()), Mutex::new(None));
    let mut longest_write = Duration::ZERO;
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut sweeper = sweeper.lock().expect("nobody else sweeps");
            loop {
                let start = Instant::now();
                let sweep = sweeper.slice(clock::monotonic_coarse_ns(), &timeouts);
                slices.lock().expect("not poisoned").push(start.elapsed());
                match sweep {
                    Ok(None) => {}
                    ended => {
                        *result.lock().expect("not poisoned") = Some(ended);
                        return;
                    }
                }
            }
        });
        while !worker.is_finished() {
            let start = Instant::now();
            dataplane.apply(&[Op::SetBackend { id: 0, backend: Backend::ZERO }])?;
            longest_write = longest_write.max(start.elapsed());
        }
        anyhow::Ok(())
    })?;
    let sweep = result.into_inner()?.context("the sweep has not ended")??.context("no sweep")?;
    let slices = slices.into_inner()?;
    row("sweep, all slices together", slices.iter().sum());
    row(
        &format!("sweep, the longest of {} slices", slices.len()),
        slices.into_iter().max().unwrap_or_default(),
    );
    row("the longest write to the tables meanwhile", longest_write);
    println!("{:44}{:>12}", "connections seen", sweep.flows);
    println!("{:44}{:>12}", "daemon, with the sweeper", mib(resident()?));
    Ok(())
}

fn row(what: &str, took: Duration) {
    println!("{what:44}{:>9.1} ms", took.as_secs_f64() * 1e3);
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Memory of this process.
fn resident() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("find VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("read VmRSS")?;
    Ok(kib * 1024)
}
