//! Whole frames over real interfaces: what one core forwards in a second.
//!
//! The kernel makes frames on the client (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18) and sends them
//! through the lab's wires: client, switch, balancer, switch, app server, where they are counted and
//! end. An XDP program stands in for the bridge, which would cost more than all of the rest. All of
//! it runs on one core: the figure is what making, switching, forwarding and receiving a frame cost
//! together, and is set beside the same way with a balancer that only writes MAC addresses.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, ProgramArray},
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
};
use ballast::dataplane::load::{FLOORS_PATH, OBJECT};
use lb_common::{
    backend::{Backend, FORWARD, IN_USE, RESOLVED},
    hash,
    limits::VIP_BYTES,
    names,
};
use lb_ebpf::family::V4;
use serde::Serialize;
use xtask::{
    lab::{Balancers, Lab, Options, test_name},
    shell, wait,
};

use crate::{
    fill, machine,
    measure::median,
    net::{BACKEND_MAC, BACKEND_PORT, BACKENDS, CLIENT_MAC, Connection, LOCAL_MAC, PORT, Version},
    packets::{self, ACK, Carried, Mac},
    plan::Plan,
};

const CLIENT: &str = "client";
const BALANCER: &str = "lb-01";
const APP: &str = "app-01";

/// Flows that the frames belong to: as many as one core's caches have a use for.
const FLOWS: u32 = 65_536;

/// Frames that the kernel makes in one go.
const BATCH: u32 = 64;

/// The last frames are still on their way when the call that made them returns.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(10);

/// How long to measure.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Frames {
    /// Turns of each way.
    pub(crate) rounds: u32,
    /// Frames of a turn.
    pub(crate) frames: u32,
}

/// What came of it: medians of the turns.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Live {
    pub(crate) frames: Frames,
    /// Frames a second with a balancer that only writes MAC addresses.
    pub(crate) bounce_per_second: f64,
    /// Frames a second through ballast, NAT, known flows.
    pub(crate) nat_per_second: f64,
    /// What ballast adds to each frame over the other, in nanoseconds.
    pub(crate) nat_adds_ns: f64,
}

/// Brings a lab up, measures, and takes it down.
pub(crate) fn measure(frames: Frames) -> anyhow::Result<Live> {
    let lab = Lab::up(Options {
        name: test_name("live"),
        balancers: Balancers::None,
        apps: 0,
        ..Options::default()
    })
    .context("bring up a lab")?;
    let mut wires = Wires::join(&lab)?;
    let (mut bounce, mut nat) = (Vec::new(), Vec::new());
    for _ in 0..frames.rounds {
        for (under, times) in [(Under::Bounce, &mut bounce), (Under::Nat, &mut nat)] {
            wires.put(&lab, under)?;
            // The first frames of each flow find their way; they are not counted.
            wires.send(&lab, 2 * FLOWS)?;
            times.push(wires.send(&lab, frames.frames)?.as_secs_f64() / f64::from(frames.frames));
        }
    }
    drop(wires);
    lab.down().context("take the lab down")?;
    let added: Vec<f64> = nat.iter().zip(&bounce).map(|(nat, bounce)| nat - bounce).collect();
    Ok(Live {
        frames,
        bounce_per_second: 1.0 / median(&bounce),
        nat_per_second: 1.0 / median(&nat),
        nat_adds_ns: 1e9 * median(&added),
    })
}

/// What stands on the balancer's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Under {
    Bounce,
    Nat,
}

/// The programs on the lab's interfaces.
struct Wires {
    floors: Ebpf,
    ballast: Ebpf,
    under_test: ProgramArray<MapData>,
    plan: Array<MapData, Plan>,
    on_balancer: Option<Under>,
}

impl Wires {
    fn join(lab: &Lab) -> anyhow::Result<Self> {
        let object = fs::read(FLOORS_PATH).with_context(|| format!("read {FLOORS_PATH}"))?;
        let mut floors = EbpfLoader::new().load(&object).context("load the floors")?;
        for name in ["trampoline4", "live_send", "live_switch", "live_bounce", "live_sink"] {
            program(&mut floors, name)?.load().with_context(|| format!("load {name}"))?;
        }
        let mut ballast = EbpfLoader::new().load(OBJECT).context("load the data path")?;
        program(&mut ballast, names::PROGRAM)?.load().context("load the data path")?;

        let eth0 = ifindex(lab, CLIENT, "eth0")?;
        array::<u32>(&mut floors, "SEND_TO")?.set(0, eth0, 0)?;
        array::<[u8; 12]>(&mut floors, "BOUNCE")?.set(0, macs(BACKEND_MAC, LOCAL_MAC), 0)?;
        let sending = program(&mut floors, "live_send")?.fd()?.try_clone()?;
        let mut under_test = ProgramArray::try_from(take(&mut floors, "UNDER_TEST")?)?;
        under_test.set(0, &sending, 0).context("put the program into its slot")?;
        let plan = Array::try_from(take(&mut floors, "PLAN")?)?;

        let mut wires = Self { floors, ballast, under_test, plan, on_balancer: None };
        wires.join_switch(lab)?;
        wires.attach_sink(lab)?;
        wires.configure(ifindex(lab, BALANCER, "eth0")?).context("configure the data path")?;
        Ok(wires)
    }

    /// An XDP program in place of the bridge, for the three hosts.
    fn join_switch(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let hosts = [(CLIENT, CLIENT_MAC), (BALANCER, LOCAL_MAC), (APP, BACKEND_MAC)];
        let ports = hosts.map(|(host, mac)| (format!("p-{host}"), mac));
        let Self { floors, .. } = self;
        lab.within_switch(|| {
            for (port, mac) in &ports {
                // The lab's own program is on the balancers' ports.
                shell::output(Command::new("ip").args(["link", "set", port, "xdpdrv", "off"]))?;
                let index = nix::net::if_::if_nametoindex(port.as_str())
                    .with_context(|| format!("find {port}"))?;
                let mut table: HashMap<_, u64, u32> =
                    HashMap::try_from(map(floors, "SWITCH_PORTS")?)?;
                let [a, b, c, d, e, f] = *mac;
                table.insert(u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]), index, 0)?;
                program(floors, "live_switch")?
                    .attach_to_if_index(index, XdpMode::Driver)
                    .with_context(|| format!("attach to {port}"))?;
            }
            anyhow::Ok(())
        })?
    }

    fn attach_sink(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let Self { floors, .. } = self;
        lab.host(APP).within(|| attach(program(floors, "live_sink")?))?
    }

    fn configure(&mut self, ifindex: u32) -> anyhow::Result<()> {
        let version = Version::V4;
        let mut backends: Array<_, Backend> =
            Array::try_from(map(&mut self.ballast, names::BACKENDS)?)?;
        for number in 0..BACKENDS {
            let backend = Backend {
                address: fill::octets(version.backend(number)),
                port: BACKEND_PORT,
                flags: IN_USE | FORWARD | RESOLVED,
                weight: 1,
                ifindex,
                next_hop: BACKEND_MAC,
                source_mac: LOCAL_MAC,
                ..Backend::ZERO
            };
            backends.set(version.backend_id(number), backend, 0)?;
        }
        let octets = fill::octets(version.vip());
        let bit = hash::vip_place(u16::from_ne_bytes([octets[14], octets[15]]));
        let mut filter = vec![0; VIP_BYTES];
        filter[bit as usize] = hash::VIP;
        let mut vips: Array<_, [u8; VIP_BYTES]> =
            Array::try_from(map(&mut self.ballast, names::VIPS)?)?;
        vips.set(0, <&[u8; VIP_BYTES]>::try_from(filter.as_slice())?, 0)?;
        let Map::LruHashMap(table) = map(&mut self.ballast, names::FLOWS)? else {
            return Err(anyhow!("{} is of another type", names::FLOWS));
        };
        fill::flows::<V4>(
            std::os::fd::AsFd::as_fd(&table.fd()),
            version,
            Carried::Tcp(ACK).protocol(),
            FLOWS,
        )
    }

    /// Puts a program on the balancer's interface.
    fn put(&mut self, lab: &Lab, under: Under) -> anyhow::Result<()> {
        let host = lab.host(BALANCER);
        if let Some(old) = self.on_balancer.take() {
            let program = self.balancer(old)?;
            program.unload().context("take the last program off")?;
            program.load().context("load it again")?;
        }
        let program = self.balancer(under)?;
        host.within(|| attach(program))??;
        self.on_balancer = Some(under);
        Ok(())
    }

    fn balancer(&mut self, under: Under) -> anyhow::Result<&mut Xdp> {
        match under {
            Under::Bounce => program(&mut self.floors, "live_bounce"),
            Under::Nat => program(&mut self.ballast, names::PROGRAM),
        }
    }

    /// Sends frames and waits until all have arrived; gives the time that it took.
    fn send(&mut self, lab: &Lab, frames: u32) -> anyhow::Result<Duration> {
        let first = Connection::new(Version::V4, 0);
        let plan = Plan {
            address: match first.client.ip() {
                std::net::IpAddr::V4(address) => u64::from(address.to_bits()),
                std::net::IpAddr::V6(_) => return Err(anyhow!("the client is no IPv4 client")),
            },
            ports: u32::from(PORT),
            port_shift: 16,
            flows: FLOWS,
            stride: 1,
            position: 0,
            one_by_one: 0,
            packet: packets::segment(
                (CLIENT_MAC, LOCAL_MAC),
                first.client,
                first.listen,
                Carried::Tcp(ACK),
            ),
        };
        self.plan.set(0, plan, 0).context("write the plan")?;
        let before = self.arrived()?;
        let trampoline = program(&mut self.floors, "trampoline4")?;
        let start = Instant::now();
        let sent = lab.host(CLIENT).within(|| {
            machine::stay_on_this_cpu()?;
            trampoline.test_run(TestRunOptions {
                data_in: Some(&plan.packet),
                repeat: frames,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            })?;
            anyhow::Ok(())
        })?;
        sent.context("send live frames")?;
        let time = start.elapsed();
        let all = before + u64::from(frames);
        wait::until(ARRIVAL_LIMIT, "all frames to arrive", || {
            Ok((self.arrived()? >= all).then_some(()))
        })
        .with_context(|| {
            let arrived = self.arrived().unwrap_or(before) - before;
            format!("{arrived} of {frames} frames arrived")
        })?;
        Ok(time)
    }

    fn arrived(&self) -> anyhow::Result<u64> {
        let map = self.floors.map("ARRIVED").context("find ARRIVED")?;
        let counts: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        Ok(counts.get(&0, 0)?.iter().sum())
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        // The slot's program is let go before the programs themselves are.
        let _ = self.under_test.clear_index(&0);
    }
}

/// Puts a program on `eth0` of the host that this thread is on.
fn attach(program: &mut Xdp) -> anyhow::Result<()> {
    program.attach("eth0", XdpMode::Driver).context("attach to eth0")?;
    Ok(())
}

fn ifindex(lab: &Lab, host: &str, name: &str) -> anyhow::Result<u32> {
    let index = lab.host(host).within(|| nix::net::if_::if_nametoindex(name))?;
    index.with_context(|| format!("find {name} of {host}"))
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("find {name}"))?.try_into()?)
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Map> {
    ebpf.map_mut(names::in_object(name)).with_context(|| format!("find {name}"))
}

fn array<'a, V: Pod>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<Array<&'a mut MapData, V>> {
    Ok(Array::try_from(map(ebpf, name)?)?)
}

fn take(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<Map> {
    ebpf.take_map(name).with_context(|| format!("find {name}"))
}

/// Two MAC addresses, side by side.
fn macs(dst: Mac, src: Mac) -> [u8; 12] {
    let mut both = [0; 12];
    both[..6].copy_from_slice(&dst);
    both[6..].copy_from_slice(&src);
    both
}
