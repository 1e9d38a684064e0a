//! The same packets through the library on the host and through the program in the kernel: same action,
//! same bytes, same counters, and at the end the same tables.
//!
//! What is different by nature is kept out: the clock (stamps are not compared, and ports beyond a
//! client's own, whose choice depends on it, are not needed: each client has a port of its own), and
//! the numbers of `random`.

use std::{collections::HashMap, fmt::Debug, hash::Hash, net::SocketAddr};

use anyhow::{Context as _, Result};
use aya::Pod;
use lb_common::{
    backend::{Backend, DIRECT, FORWARD, GUE, RESOLVED, TUNNEL},
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, HalfOpen4, HalfOpen6, Syn, state},
    names,
    service::{Balance, LOOK_UP, STEERED, Slot},
};
use lb_ebpf::{
    fake::{
        Counter, Error, Frame, Net, Setup, Xdp, assert_valid,
        frame::{Body, VLAN, VLAN_OUTER},
        setup::{backend, mapped_ip, steered_at},
        tables::tuple,
    },
    family::{Address, Family, V4, V6, protocol},
    packet::{
        Packet,
        tcp_flags::{ACK, FIN, RST, SYN},
    },
    parse::{self, Link, Segment},
};
use lb_tests::{
    kernel::Kernel,
    packets::{DataPath, Host, diff, moved},
};

/// Packets in each run.
const PACKETS: usize = 3000;

/// Clients in each run.
const CLIENTS: u16 = 40;

/// Set it to the seed that a failure prints, to run the same packets again.
const SEED: &str = "BALLAST_TEST_SEED";

fn seed() -> Result<u64> {
    match std::env::var(SEED) {
        Ok(seed) => seed.parse().with_context(|| format!("read {SEED} as a number")),
        Err(_) => Ok(fastrand::u64(..)),
    }
}

#[test]
fn host_and_kernel_agree() -> Result<()> {
    let seed = seed()?;
    let mut kernel = Kernel::load(16_384)?;
    let mut replayed = 0;
    for balance in [Balance::RoundRobin, Balance::LeastConn, Balance::Maglev] {
        for net in Net::both() {
            let mut setup = net.setup(balance).replays(2, 200);
            for (id, backend) in &mut setup.backends {
                *backend = fit(&net, *id);
            }
            let mut run = Run::new(net, setup, seed, &mut kernel)?;
            run.all().with_context(|| {
                format!("{balance:?}, clients like {}; again with {SEED}={seed}", net.client)
            })?;
            replayed += run.host.tables.service_stats(0).replayed;
        }
    }
    anyhow::ensure!(replayed > 10, "{replayed} replayed: this shows little; {SEED}={seed}");
    Ok(())
}

/// Slots of each steered service.
const SLOTS: u32 = 8;

#[test]
fn host_and_kernel_agree_on_steered_services() -> Result<()> {
    let seed = seed()?;
    let mut kernel = Kernel::load(16_384)?;
    for net in Net::both() {
        let mut run = Run::new(net, steered(&net), seed, &mut kernel)?;
        run.all().with_context(|| {
            format!("steered, clients like {}; again with {SEED}={seed}", net.client)
        })?;
    }
    Ok(())
}

/// Two steered services with a backend of each kind, the last beyond another interface. The second
/// tunnel takes no long packets.
fn steered(net: &Net) -> Setup {
    let by_v4 = ([203, 0, 113, 22], net.vip.port()).into();
    let by_v6 = ([0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0x23], net.vip.port()).into();
    let slots: Vec<Slot> = (0..SLOTS).map(|number| Slot::of(number % 3 + 1)).collect();
    Setup::default()
        .vip(net.vip.ip())
        .backend(1, steered_at(net.backends[0], DIRECT))
        .backend(2, Backend { max_packet: 1300, ..steered_at(by_v4, TUNNEL) })
        .backend(3, Backend { ifindex: 7, ..steered_at(by_v6, TUNNEL | GUE) })
        .steered(net.vip, protocol::TCP, &slots)
        .steered(net.vip, protocol::UDP, &slots)
}

/// A client as its packets show it.
#[derive(Clone, Copy)]
struct Client {
    address: SocketAddr,
    /// The backend of its last connection by TCP, and by UDP.
    tcp: Option<u32>,
    udp: Option<u32>,
    /// The sequence number of its last SYN.
    isn: u32,
}

struct Run<'k> {
    net: Net,
    random: fastrand::Rng,
    host: Host,
    kernel: &'k mut Kernel,
    clients: Vec<Client>,
    backends: Vec<(u32, Backend)>,
    /// Whether the services are steered.
    steered: bool,
}

impl<'k> Run<'k> {
    fn new(net: Net, setup: Setup, seed: u64, kernel: &'k mut Kernel) -> Result<Self> {
        let mut host = Host::new();
        host.reset(&setup)?;
        kernel.reset(&setup)?;
        let clients = (0..CLIENTS)
            .map(|n| Client {
                address: net.other_client(n, 20_000 + n),
                tcp: None,
                udp: None,
                isn: 0,
            })
            .collect();
        let random = fastrand::Rng::with_seed(seed);
        let steered = setup.services.iter().any(|(_, service)| service.flags & STEERED != 0);
        let backends = setup.backends;
        Ok(Self { net, random, host, kernel, clients, backends, steered })
    }

    fn all(&mut self) -> Result<()> {
        let mut forwarded = 0;
        for number in 0..PACKETS {
            if self.random.u32(..100) == 0 {
                self.change_backend()?;
            }
            if self.steered && self.random.u32(..50) == 0 {
                self.change_slot()?;
            }
            let index = self.random.usize(..self.clients.len());
            let frame = self.frame(index);
            let mut packet = frame.build();
            let mutated = self.random.u32(..4) == 0;
            if mutated || frame.dst == self.net.vip {
                self.forget_given_up(self.clients[index].address)?;
            }
            if mutated {
                self.mutate(&mut packet);
                if self.opens_by_chance(&mut packet) {
                    continue;
                }
            }
            let decided = self
                .both(&packet, !mutated)
                .with_context(|| format!("packet {number}: {packet:02x?}, made from {frame:?}"))?;
            forwarded += usize::from(decided);
            if decided && !mutated {
                self.note_backend(index, &frame);
            }
        }
        // Half of them in most runs; far fewer where a backend that many flows have is unfit for long.
        anyhow::ensure!(forwarded > PACKETS / 12, "{forwarded} forwarded: this run shows little");
        self.same_tables()
    }

    /// Runs a packet through both. Says whether it was forwarded.
    fn both(&mut self, packet: &[u8], valid: bool) -> Result<bool> {
        let before = (self.host.counters()?, self.kernel.counters()?);
        let on_host = self.host.run(packet)?;
        let in_kernel = DataPath::run(self.kernel, packet)?;
        let after = (self.host.counters()?, self.kernel.counters()?);
        let counted = moved(&before.0, &after.0);
        anyhow::ensure!(
            on_host.xdp == in_kernel.xdp,
            "{:?} on the host ({counted:?}), {:?} in the kernel ({:?})",
            on_host.xdp,
            in_kernel.xdp,
            moved(&before.1, &after.1),
        );
        anyhow::ensure!(
            on_host.frame == in_kernel.frame,
            "host (expected) and kernel: {}",
            diff(&in_kernel.frame, &on_host.frame)
        );
        anyhow::ensure!(after.0 == after.1, "counters: {:?} and {:?}", after.0, after.1);
        anyhow::ensure!(counted.len() == 1 && counted[0].1 == 1, "counted {counted:?}");
        if valid && matches!(on_host.xdp, Xdp::Transmit | Xdp::Redirect) {
            assert_valid(&on_host.frame);
        }
        Ok(!matches!(counted[0].0, Counter::Reason(_)))
    }

    /// Removes what is kept of backends that were given up for a client's connections, as the daemon does
    /// after a while: it would stand in the way of the client's own port.
    fn forget_given_up(&mut self, client: SocketAddr) -> Result<()> {
        let port = client.port().to_be_bytes();
        let given_up = state::given_up;
        let tables = &self.host.tables;
        let kernel = &mut *self.kernel;
        let mut any = false;
        if self.net.vip.is_ipv4() {
            for (key, entry) in tables.v4.half_open() {
                any |= given_up(entry.state)
                    && key.dst_port == port
                    && tables.v4.evict_half_open(&key);
            }
            if any {
                kernel.remove(names::HALF_OPEN, |key: &FlowKey4, half: &HalfOpen4| {
                    given_up(half.flow.state) && key.dst_port == port
                })?;
            }
        } else {
            for (key, entry) in tables.v6.half_open() {
                any |= given_up(entry.state)
                    && key.dst_port == port
                    && tables.v6.evict_half_open(&key);
            }
            if any {
                kernel.remove(names::HALF_OPEN6, |key: &FlowKey6, half: &HalfOpen6| {
                    given_up(half.flow.state) && key.dst_port == port
                })?;
            }
        }
        Ok(())
    }

    /// The tables hold the same, but for stamps.
    fn same_tables(&mut self) -> Result<()> {
        let tables = &self.host.tables;
        let (v4, v6) = (&tables.v4, &tables.v6);
        let unstamped4 = |entry: FlowEntry4| FlowEntry4 { last_seen: 0, ..entry };
        let unstamped6 = |entry: FlowEntry6| FlowEntry6 { last_seen: 0, ..entry };
        let kernel = &*self.kernel;
        same::<FlowKey4, _>(names::FLOWS, &v4.flows(), kernel, unstamped4)?;
        let unsent = |syn: Syn| Syn { sent_ns: 0, ..syn };
        let half4 =
            |half: HalfOpen4| HalfOpen4 { flow: unstamped4(half.flow), syn: unsent(half.syn) };
        let half6 =
            |half: HalfOpen6| HalfOpen6 { flow: unstamped6(half.flow), syn: unsent(half.syn) };
        same::<FlowKey4, _>(names::HALF_OPEN, &v4.halves(), kernel, half4)?;
        same::<FlowKey6, _>(names::FLOWS6, &v6.flows(), kernel, unstamped6)?;
        same::<FlowKey6, _>(names::HALF_OPEN6, &v6.halves(), kernel, half6)
    }

    fn change_backend(&mut self) -> Result<()> {
        let index = self.random.usize(..self.backends.len());
        let (id, before) = self.backends[index];
        let fit = before.flags | FORWARD | RESOLVED;
        let flags = match self.random.u32(..6) {
            0 => fit & !FORWARD,
            1 => fit & !RESOLVED,
            _ => fit,
        };
        let changed = Backend { flags, weight: self.random.u32(1..4), ..before };
        self.host.set_backend(id, changed)?;
        self.kernel.set_backend(id, changed)?;
        self.backends[index].1 = changed;
        Ok(())
    }

    /// Disturbs a slot, or makes it undisturbed.
    fn change_slot(&mut self) -> Result<()> {
        let (backend, base) = (self.random.u32(1..4), self.random.u32(1..4));
        let slot = match self.random.u32(..4) {
            0 => Slot::of(backend),
            1 => Slot { backend, base: backend | LOOK_UP },
            2 => Slot { backend, base },
            _ => Slot { backend, base: base | LOOK_UP },
        };
        let index = self.random.u32(..2 * SLOTS);
        self.host.set_slot(index, slot)?;
        self.kernel.set_slot(index, slot)
    }

    /// Any packet of a client's conversation, or about it.
    fn frame(&mut self, index: usize) -> Frame {
        let net = self.net;
        let Client { address, tcp, udp, isn } = self.clients[index];
        let nat = net.nat(address.port());
        // Seldom too long for a tunnel: answers about that are paced, by the clock.
        let most = if self.random.u32(..50) == 0 { 1400 } else { 100 };
        let payload: Vec<u8> = (0..self.random.usize(..most)).map(|_| self.random.u8(..)).collect();
        let numbers = (self.random.u32(..), self.random.u32(..));
        let frame = match self.random.u32(..100) {
            0..=44 => {
                let flags = self.flags();
                let frame = Frame::tcp(address, net.vip, flags).numbers(numbers.0, numbers.1);
                if flags == SYN && self.random.u32(..4) != 0 {
                    // The same SYN again, or another.
                    let seq = if self.random.bool() { isn } else { numbers.0 };
                    frame.numbers(seq, 0).window(numbers.1 as u16).traffic_class(numbers.1 as u8)
                } else {
                    frame.payload(&payload)
                }
            }
            45..=74 => {
                let id = tcp.unwrap_or(1);
                // A backend answers a SYN more often than not.
                let flags = match self.random.u32(..8) {
                    0..=1 if self.is_waiting(address) => RST | ACK,
                    0..=5 => SYN | ACK,
                    _ => self.flags(),
                };
                let ack = if self.random.u32(..4) == 0 { numbers.1 } else { isn.wrapping_add(1) };
                let frame = Frame::tcp(net.backends[id as usize - 1], nat, flags);
                net.sent_by_backend(frame.numbers(numbers.0, ack).payload(&payload), id)
            }
            75..=82 => Frame::udp(address, net.vip, &payload),
            83..=88 => {
                let id = udp.unwrap_or(1);
                net.sent_by_backend(Frame::udp(net.backends[id as usize - 1], nat, &payload), id)
            }
            89..=94 => self.error(self.clients[index], nat, &payload),
            95 => Frame::echo(address.ip(), net.vip.ip()),
            96 => Frame::other(address.ip(), net.vip.ip(), 132, &payload),
            97 => Frame::syn(address, net.nat(81)),
            98 => Frame::tcp(address, net.backends[0], ACK),
            _ => Frame::tcp(address, net.vip, ACK)
                .payload(&payload)
                .fragment(self.random.u16(..20), self.random.bool()),
        };
        self.dress(frame)
    }

    /// Whether a client waits for the answer to its SYN.
    fn is_waiting(&self, client: SocketAddr) -> bool {
        let tables = &self.host.tables;
        if self.net.vip.is_ipv4() {
            let key = V4::key(tuple::<V4>(client, self.net.vip), protocol::TCP);
            tables.v4.half_open().contains_key(&key)
        } else {
            let key = V6::key(tuple::<V6>(client, self.net.vip), protocol::TCP);
            tables.v6.half_open().contains_key(&key)
        }
    }

    fn flags(&mut self) -> u8 {
        match self.random.u32(..20) {
            0..=6 => SYN,
            7..=13 => ACK,
            14 | 15 => FIN | ACK,
            16 => RST,
            17 => RST | ACK,
            18 => ACK | 8,
            _ => self.random.u8(..) & (FIN | SYN | RST | ACK | 8),
        }
    }

    fn error(&mut self, client: Client, nat: SocketAddr, payload: &[u8]) -> Frame {
        let net = self.net;
        let backend = net.backends[client.tcp.unwrap_or(1) as usize - 1];
        let (src, dst) =
            if self.random.bool() { (nat, backend) } else { (net.vip, client.address) };
        let about = if self.random.bool() {
            Frame::tcp(src, dst, ACK).numbers(client.isn, 0).payload(payload)
        } else {
            Frame::udp(src, dst, payload)
        };
        let errors = [
            Error::PortUnreachable,
            Error::TooBig(1280),
            Error::TimeExceeded,
            Error::ParameterProblem(2),
        ];
        let error = errors[self.random.usize(..errors.len())];
        Frame::icmp_error(dst.ip(), error, &about, self.random.usize(28..160))
    }

    fn dress(&mut self, frame: Frame) -> Frame {
        let frame = match self.random.u32(..20) {
            0 => frame.vlan(VLAN, 7),
            1 => frame.vlan(VLAN_OUTER, 7).vlan(VLAN, 8),
            2 => frame.vlan(VLAN, 7).vlan(VLAN, 8),
            3 => frame.trailer(&[0x55; 40]),
            4 => frame.without_checksum(),
            5 => frame.link([2, 2, 2, 2, 2, 2], [2, 0, 0, 0, 0, 0xb]),
            6 => frame.ttl(1),
            7 => frame.tcp_options(&[1; 12]),
            8 if self.net.vip.is_ipv4() => frame.ip_options(&[1; 20]),
            _ => frame,
        };
        // Without a checksum there is no UDP in IPv6; such a packet is for its receiver to drop, and
        // not valid.
        if self.net.vip.is_ipv4() { frame } else { with_checksum(frame) }
    }

    fn mutate(&mut self, packet: &mut Vec<u8>) {
        for _ in 0..self.random.usize(1..4) {
            let at = self.random.usize(12..packet.len().min(110));
            packet[at] = match self.random.u32(..4) {
                0 => 0,
                1 => 0xff,
                2 => packet[at] ^ 1 << self.random.u32(..8),
                _ => self.random.u8(..),
            };
        }
        if self.random.u32(..4) == 0 {
            // The kernel takes no test packet shorter than an Ethernet header.
            packet.truncate(self.random.usize(14..=packet.len()));
        }
    }

    /// Whether a mutated packet opens a connection from a port that is not its client's own: then which
    /// port the backend sees is a matter of the clock.
    fn opens_by_chance(&self, packet: &mut [u8]) -> bool {
        // SAFETY: the buffer is not touched but through the packet while that is in use.
        let view = unsafe {
            let range = packet.as_mut_ptr_range();
            Packet::new(range.start as usize, range.end as usize, 1)
        };
        match Link::parse(&view) {
            Ok(Link { ether_type: parse::IPV4, l3 }) => self.is_stranger::<V4>(&view, l3),
            Ok(Link { ether_type: parse::IPV6, l3 }) => self.is_stranger::<V6>(&view, l3),
            _ => false,
        }
    }

    fn is_stranger<F: Family>(&self, packet: &Packet, l3: usize) -> bool {
        let Ok(datagram) = F::datagram(packet, l3) else { return false };
        let Ok(segment) = Segment::parse::<F>(packet, l3, &datagram) else { return false };
        let known = self.clients.iter().any(|client| {
            mapped_ip(client.address.ip()) == segment.tuple.src.mapped()
                && client.address.port().to_be_bytes() == segment.tuple.ports.src()
        });
        segment.starts() && !known
    }

    /// Learns which backend a client's packet went to.
    fn note_backend(&mut self, index: usize, frame: &Frame) {
        let address = self.clients[index].address;
        let carried = match frame.body {
            Body::Tcp { .. } => protocol::TCP,
            Body::Udp { .. } => protocol::UDP,
            _ => return,
        };
        let backend = self.backend_of(address, carried);
        let client = &mut self.clients[index];
        if let Body::Tcp { flags: SYN, seq, .. } = frame.body
            && frame.dst == self.net.vip
        {
            client.isn = seq;
        }
        if carried == protocol::TCP { client.tcp = backend } else { client.udp = backend }
    }

    fn backend_of(&self, client: SocketAddr, carried: u8) -> Option<u32> {
        let tables = &self.host.tables;
        if self.net.vip.is_ipv4() {
            let key = V4::key(tuple::<V4>(client, self.net.vip), carried);
            let entry = tables.v4.flows().remove(&key).or(tables.v4.half_open().remove(&key))?;
            Some(entry.backend)
        } else {
            let key = V6::key(tuple::<V6>(client, self.net.vip), carried);
            let entry = tables.v6.flows().remove(&key).or(tables.v6.half_open().remove(&key))?;
            Some(entry.backend)
        }
    }
}

/// A backend that is fit to serve, and is given time: whether it has had enough is a matter of the clock.
fn fit(net: &Net, id: u32) -> Backend {
    let ifindex = if id == 3 { 7 } else { 1 };
    Backend { ifindex, patience_ms: u16::MAX, ..backend(net.backends[id as usize - 1]) }
}

fn with_checksum(mut frame: Frame) -> Frame {
    if let Body::Udp { checksum, .. } = &mut frame.body {
        *checksum = true;
    }
    frame
}

fn same<K: Pod + Eq + Hash + Debug, V: Pod + PartialEq + Debug>(
    name: &str,
    on_host: &HashMap<K, V>,
    kernel: &Kernel,
    unstamped: impl Fn(V) -> V,
) -> Result<()> {
    let in_kernel = kernel.entries::<K, V>(name)?;
    for (key, entry) in on_host {
        let other =
            in_kernel.get(key).with_context(|| format!("{key:?} not in kernel's {name}"))?;
        let (entry, other) = (unstamped(*entry), unstamped(*other));
        anyhow::ensure!(entry == other, "{name} of {key:?}: {entry:?} on the host, {other:?}");
    }
    anyhow::ensure!(
        on_host.len() == in_kernel.len(),
        "{name} has {} entries on the host, {} in the kernel",
        on_host.len(),
        in_kernel.len()
    );
    Ok(())
}
