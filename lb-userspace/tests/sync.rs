//! Flow tables of two nodes, kept alike: on the real kernel, without a packet. Needs root and a BPF file
//! system.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use ballast::{
    clock,
    dataplane::{
        Dataplane, Flow, Op, Options, Sizes, Timeouts, remove_pins,
        sync::{Answered, Applied, Begun, Change, Ended, FlowSync, Side, Walk, Which},
    },
    peer::wire::{
        End, Keys,
        change::{Item, pack, unpack},
    },
};
use lb_common::{
    backend::{Backend, FORWARD, IN_USE},
    flow::state,
    service::{Service, ServiceKey, mapped},
};

const SIDE: Side = Side { ifindex: 7, mac: [2, 0, 0, 0, 0, 7] };

const SECOND: u64 = 1_000_000_000;

const TIMEOUTS: Timeouts = Timeouts {
    tcp_idle_ns: 7440 * SECOND,
    tcp_closing_ns: 240 * SECOND,
    udp_idle_ns: 120 * SECOND,
};

/// A node: its tables, and the identifiers of its two backends.
struct Node {
    dataplane: Dataplane,
    sync: FlowSync,
    ids: [u32; 2],
    pins: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        remove_pins(&self.pins).expect("remove the pins");
    }
}

fn octets(socket: SocketAddr) -> [u8; 16] {
    match socket {
        SocketAddr::V4(socket) => mapped(socket.ip().octets()),
        SocketAddr::V6(socket) => socket.ip().octets(),
    }
}

/// A family's addresses: the client, the floating address, and a backend of each protocol's service.
#[derive(Clone, Copy)]
struct Net {
    client: SocketAddr,
    listen: SocketAddr,
    backend: SocketAddr,
}

fn nets() -> [Net; 2] {
    let net = |client: &str, listen: &str, backend: &str| Net {
        client: client.parse().unwrap(),
        listen: listen.parse().unwrap(),
        backend: backend.parse().unwrap(),
    };
    [
        net("192.0.2.9:40000", "192.0.2.100:80", "192.0.2.21:8080"),
        net("[2001:db8::9]:40000", "[2001:db8::100]:80", "[2001:db8::21]:8080"),
    ]
}

impl Node {
    /// With identifiers from `first` up for the backends of the TCP services, and of the UDP ones.
    fn new(first: u32) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pins = format!("/sys/fs/bpf/ballast-sync-{}-{number}", std::process::id());
        let pins = PathBuf::from(pins);
        let options = Options {
            pins: pins.clone(),
            max_flows: 65_536,
            max_half_open: 1024,
            sizes: Sizes::default(),
            discard_pins: false,
        };
        let mut dataplane = Dataplane::open(&options).expect("open");
        let mut ops = Vec::new();
        for (at, net) in (0..).zip(nets()) {
            for (protocol, which) in [(6, 0), (17, 1)] {
                let index = first + 2 * at + which;
                let backend = Backend {
                    address: octets(net.backend),
                    port: net.backend.port(),
                    flags: IN_USE | FORWARD,
                    weight: 1,
                    service: index,
                    ..Backend::ZERO
                };
                ops.push(Op::SetBackend { id: index + 10, backend });
                let address = octets(net.listen);
                let key = ServiceKey { address, port: net.listen.port(), protocol, reserved: 0 };
                ops.push(Op::SetService { key, service: Service { index, ..Service::ZERO } });
            }
        }
        dataplane.apply(&ops).expect("apply");
        let sync = dataplane.flow_sync().expect("open the flow tables");
        Self { dataplane, sync, ids: [first + 10, first + 12], pins }
    }

    fn apply(&mut self, changes: &[Change]) -> Applied {
        self.sync.apply(changes, SIDE, clock::monotonic_coarse_ns()).expect("apply changes")
    }

    /// All that a walk finds.
    fn all(&self) -> Vec<Change> {
        self.all_for(0)
    }

    /// All that a walk finds for a node whose table is of this age.
    fn all_for(&self, table_age_ns: u64) -> Vec<Change> {
        let mut walk = Walk::new(Which::All { table_age_ns });
        let mut changes = Vec::new();
        let now_ns = clock::monotonic_coarse_ns();
        while self.sync.walk(&mut walk, now_ns, &mut changes).expect("walk") {}
        changes
    }

    fn flows(&self) -> Vec<Flow> {
        self.dataplane.flows(usize::MAX).expect("read the flows")
    }

    /// Open connections of the TCP services' backends.
    fn active(&self) -> [u64; 2] {
        self.ids.map(|id| self.dataplane.counters(&[], &[id]).expect("count").backends[0].2)
    }
}

fn begun(net: &Net, protocol: u8, port: u16, idle_ms: u32) -> Begun {
    let mut client = net.client;
    client.set_port(port);
    Begun {
        protocol,
        state: 0,
        client,
        listen: net.listen,
        backend: net.backend,
        nat_port: port,
        client_mac: [2, 0, 0, 0, 0, 9],
        idle_ms,
    }
}

fn ended(begun: &Begun) -> Change {
    let nat = SocketAddr::new(begun.listen.ip(), begun.nat_port);
    Change::Ended(Ended { protocol: begun.protocol, backend: begun.backend, nat })
}

/// The connections of a list, without their ages, in order.
fn connections(changes: &[Change]) -> Vec<String> {
    let mut all: Vec<_> = changes
        .iter()
        .map(|change| match change {
            Change::Begun(begun) => format!("{:?}", Begun { idle_ms: 0, ..*begun }),
            Change::Answered(Answered { begun, ack }) => {
                format!("{:?} to be {ack}", Begun { idle_ms: 0, ..*begun })
            }
            Change::Ended(ended) => format!("{ended:?}"),
        })
        .collect();
    all.sort();
    all
}

#[test]
fn what_one_node_has_another_has_too() {
    let (mut first, mut second) = (Node::new(0), Node::new(20));
    let mut changes = Vec::new();
    for net in nets() {
        for port in 1..=500 {
            changes.push(Change::Begun(begun(&net, 6, 1024 + port, 5000)));
        }
        changes.push(Change::Begun(begun(&net, 17, 2000, 0)));
        let closing = Begun { state: state::CLIENT_FIN as u8, ..begun(&net, 6, 9000, 0) };
        changes.push(Change::Begun(closing));
        let steered = Begun {
            state: state::STEERED as u8,
            nat_port: 0,
            client_mac: [0; 6],
            ..begun(&net, 6, 9001, 0)
        };
        changes.push(Change::Begun(steered));
    }
    let count = changes.len() as u64;
    assert_eq!(first.apply(&changes), Applied { begun: count, ..Applied::default() });
    assert_eq!(first.active(), [501, 501]);

    // By the walk to the other, whose backends have other numbers.
    let walked = first.all();
    assert_eq!(connections(&walked), connections(&changes));
    assert_eq!(second.apply(&walked), Applied { begun: count, ..Applied::default() });
    assert_eq!(connections(&second.all()), connections(&changes));
    assert_eq!(second.active(), [501, 501]);
    for flow in second.flows() {
        let wanted = second.ids[usize::from(flow.client.is_ipv6())];
        assert!(flow.backend_id == wanted || flow.protocol == 17, "{flow:?}");
        // The age goes along.
        let is_old = flow.client.port() < 1525;
        assert_eq!(flow.idle_ms >= 5000, is_old, "{flow:?}");
        assert!(flow.idle_ms < 60_000, "{flow:?}");
        let phase = match flow.client.port() {
            2000 => "udp",
            9000 => "closing",
            9001 => "steered",
            _ => "established",
        };
        assert_eq!(flow.phase, phase);
    }
    // Again, and back: nothing changes.
    assert_eq!(second.apply(&walked), Applied { known: count, ..Applied::default() });
    assert_eq!(first.apply(&second.all()), Applied { known: count, ..Applied::default() });
    assert_eq!((first.active(), second.active()), ([501, 501], [501, 501]));

    // A sweep finds nothing wrong with them.
    let sweep = second.dataplane.sweep(clock::monotonic_coarse_ns(), &TIMEOUTS).expect("sweep");
    assert_eq!((sweep.orphans, sweep.expired), (0, 0));
    assert_eq!(second.active(), [501, 501]);

    // What ends there ends here, once.
    let ends: Vec<Change> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Begun(begun) if begun.nat_port != 0 => Some(ended(begun)),
            _ => None,
        })
        .collect();
    let gone = ends.len() as u64;
    assert_eq!(second.apply(&ends), Applied { ended: gone, ..Applied::default() });
    assert_eq!(second.apply(&ends), Applied::default());
    assert_eq!(second.active(), [0, 0]);
    assert!(second.flows().iter().all(|flow| flow.phase == "steered"));
}

#[test]
fn connections_age_as_they_do_at_the_other_node() {
    let mut node = Node::new(0);
    let [net, _] = nets();
    let (young, old) = (begun(&net, 17, 2000, 0), begun(&net, 17, 2001, 119_000));
    node.apply(&[Change::Begun(young), Change::Begun(old)]);
    let now_ns = clock::monotonic_coarse_ns();
    let sweep = node.dataplane.sweep(now_ns + 2 * SECOND, &TIMEOUTS).expect("sweep");
    assert_eq!(sweep.expired, 1);
    assert_eq!(node.flows()[0].client, young.client);
    // It is refreshed, and lives on.
    let later = now_ns + 100 * SECOND;
    let refreshed = node.sync.apply(&[Change::Begun(young)], SIDE, later).expect("refresh");
    assert_eq!(refreshed, Applied { known: 1, ..Applied::default() });
    let sweep = node.dataplane.sweep(later + 100 * SECOND, &TIMEOUTS).expect("sweep");
    assert_eq!(sweep.expired, 0);
    let sweep = node.dataplane.sweep(later + 121 * SECOND, &TIMEOUTS).expect("sweep");
    assert_eq!(sweep.expired, 1);
    // A side has closed meanwhile.
    let half = Begun { state: state::BACKEND_FIN as u8, ..begun(&net, 6, 3000, 0) };
    node.apply(&[Change::Begun(Begun { state: 0, ..half }), Change::Begun(half)]);
    assert_eq!(node.flows()[0].phase, "closing");
}

#[test]
fn what_cannot_be_taken_is_counted_and_changes_nothing() {
    let mut node = Node::new(0);
    let [net, net6] = nets();
    let unknown = |begun: Begun| {
        let mut node = Node::new(0);
        assert_eq!(
            node.apply(&[Change::Begun(begun)]),
            Applied { unknown: 1, ..Applied::default() },
            "{begun:?}"
        );
        assert_eq!((node.flows().len(), node.active()), (0, [0, 0]));
    };
    let one = begun(&net, 6, 4000, 0);
    unknown(Begun { backend: "192.0.2.22:8080".parse().unwrap(), ..one });
    unknown(Begun { backend: "192.0.2.21:8081".parse().unwrap(), ..one });
    unknown(Begun { listen: "192.0.2.100:81".parse().unwrap(), ..one });
    unknown(Begun { protocol: 1, ..one });
    unknown(Begun { backend: net6.backend, ..one });
    unknown(Begun { listen: net6.listen, ..one });
    // A backend that comes later is found then.
    let listen = "192.0.2.100:81".parse().unwrap();
    let later = Begun { listen, ..begun(&net, 6, 4001, 0) };
    assert_eq!(node.apply(&[Change::Begun(later)]).unknown, 1);
    let key = ServiceKey { address: octets(listen), port: 81, protocol: 6, reserved: 0 };
    let backend = Backend {
        address: octets(net.backend),
        port: net.backend.port(),
        flags: IN_USE | FORWARD,
        service: 50,
        ..Backend::ZERO
    };
    let service = Service { index: 50, ..Service::ZERO };
    node.dataplane
        .apply(&[Op::SetBackend { id: 60, backend }, Op::SetService { key, service }])
        .expect("apply");
    let now_ns = clock::monotonic_coarse_ns() + 2 * SECOND;
    let applied = node.sync.apply(&[Change::Begun(later)], SIDE, now_ns).expect("apply changes");
    assert_eq!(applied, Applied { begun: 1, ..Applied::default() });
}

#[test]
fn a_newer_connection_takes_the_place_of_one_that_was_never_used_here() {
    let mut node = Node::new(0);
    let [net, _] = nets();
    let old = begun(&net, 6, 4000, 0);
    node.apply(&[Change::Begun(old)]);
    // The same client, by another port; and another client, by the port of the first.
    let again = Begun { nat_port: 4002, ..old };
    assert_eq!(node.apply(&[Change::Begun(again)]).begun, 1);
    assert_eq!((node.flows().len(), node.active()[0]), (1, 1));
    let other = Begun { nat_port: 4002, ..begun(&net, 6, 5000, 0) };
    assert_eq!(node.apply(&[Change::Begun(other)]).begun, 1);
    assert_eq!((node.flows().len(), node.active()[0]), (1, 1));
    assert_eq!(node.flows()[0].client, other.client);
    // The end of the first comes late, and is of nothing that there is.
    assert_eq!(node.apply(&[ended(&old)]), Applied::default());
    assert_eq!(node.flows().len(), 1);
}

#[test]
fn what_is_half_open_is_so_at_the_other_node() {
    let (mut first, mut second) = (Node::new(0), Node::new(20));
    let one = |net: &Net, port| Answered { begun: begun(net, 6, port, 300), ack: 0x0506_0708 };
    let some: Vec<Answered> =
        nets().iter().flat_map(|net| (2000..2003).map(|port| one(net, port))).collect();
    let all: Vec<Change> = some.iter().copied().map(Change::Answered).collect();
    assert_eq!(first.apply(&all), Applied { answered: 6, ..Applied::default() });
    assert_eq!(first.apply(&all), Applied { known: 6, ..Applied::default() });
    // By the walk that gives all, and by no other.
    let walked = first.all();
    assert_eq!(connections(&walked), connections(&all));
    assert_eq!(second.apply(&walked), Applied { answered: 6, ..Applied::default() });
    assert_eq!((first.active(), second.active()), ([3, 3], [3, 3]));
    assert!(second.flows().iter().all(|flow| flow.phase == "half_open" && flow.idle_ms >= 300));
    assert_eq!(second.dataplane.sweep(clock::monotonic_coarse_ns(), &TIMEOUTS).unwrap().orphans, 0);

    // Some become established there, and one client has begun anew, by another port of the node.
    let begun: Vec<Change> = some[1..].iter().map(|it| Change::Begun(it.begun)).collect();
    assert_eq!(second.apply(&begun), Applied { begun: 5, ..Applied::default() });
    assert_eq!(second.active(), [3, 3], "each counts once");
    let mut again = some[0];
    again.begun.nat_port = 2100;
    let again = [Change::Answered(again)];
    assert_eq!(second.apply(&again), Applied { answered: 1, ..Applied::default() });
    assert_eq!(second.active(), [3, 3]);
    // What is known to be established is not half open any more.
    assert_eq!(second.apply(&all[1..]), Applied { known: 5, ..Applied::default() });
    let phases = |phase| second.flows().iter().filter(|flow| flow.phase == phase).count();
    assert_eq!((phases("established"), phases("half_open")), (5, 1));
    assert_eq!(second.dataplane.sweep(clock::monotonic_coarse_ns(), &TIMEOUTS).unwrap().orphans, 0);
    assert_eq!(second.active(), [3, 3]);

    // It ages as any other that is half open.
    let later = clock::monotonic_coarse_ns() + 61 * SECOND;
    assert_eq!(second.dataplane.sweep(later, &TIMEOUTS).expect("sweep").expired, 1);
    assert_eq!(second.active(), [2, 3]);
    // Nobody gets an entry for what cannot be: no connection of UDP, and none without a backend here.
    let udp = Answered { begun: Begun { protocol: 17, ..some[0].begun }, ack: 1 };
    let backend = "192.0.2.22:8080".parse().unwrap();
    let strange = Answered { begun: Begun { backend, ..some[0].begun }, ack: 1 };
    let unknown = [udp, strange].map(Change::Answered);
    assert_eq!(second.apply(&unknown), Applied { unknown: 2, ..Applied::default() });
}

#[test]
fn what_has_ended_unheard_is_forgotten() {
    let mut node = Node::new(0);
    let [net, net6] = nets();
    let kept = [begun(&net, 6, 4000, 0), begun(&net6, 17, 4000, 0)];
    let gone = [begun(&net, 6, 4001, 0), begun(&net6, 6, 4001, 0), begun(&net, 17, 4001, 0)];
    let old = begun(&net, 6, 4002, 100_000);
    let all = kept.iter().chain(&gone).chain([&old]).map(|it| Change::Begun(*it));
    node.apply(&all.collect::<Vec<_>>());
    // Another node, whose table is a minute old, says what it has.
    node.sync.begin_all();
    node.apply(&kept.map(Change::Begun));
    let now_ns = clock::monotonic_coarse_ns();
    node.sync.end_all(60 * SECOND, now_ns);
    let mut forgotten = 0;
    loop {
        let (some, more) = node.sync.forget(now_ns).expect("forget");
        forgotten += some;
        if !more {
            break;
        }
    }
    assert_eq!(forgotten, gone.len() as u64);
    let mut left: Vec<_> = node.flows().iter().map(|flow| flow.client).collect();
    left.sort();
    let mut wanted = [kept[0].client, kept[1].client, old.client];
    wanted.sort();
    assert_eq!(left, wanted, "the old one is of a time before its table");
    assert_eq!(node.active(), [2, 0]);
    assert_eq!(node.sync.forget(now_ns).expect("forget again"), (0, false));
    // It gets back what it has lost, and nothing that it must know better.
    let told: Vec<_> = node.all_for(60 * SECOND);
    assert_eq!(connections(&told), connections(&[Change::Begun(old)]));
}

/// Processor time of this thread.
fn cpu() -> std::time::Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("time");
    std::time::Duration::new(time.tv_sec() as u64, time.tv_nsec() as u32)
}

/// Prints what 10,000 connections cost each of two nodes: that of an unoptimised build is no measure, so
/// nothing depends on it.
#[test]
fn what_it_costs() {
    const CONNECTIONS: u16 = 10_000;
    let mut node = Node::new(0);
    let [net, _] = nets();
    let mut items = Vec::new();
    for port in 0..CONNECTIONS {
        items.push(Item::Change(Change::Begun(begun(&net, 6, 1024 + port, 0))));
    }
    for port in 0..CONNECTIONS {
        items.push(Item::Change(ended(&begun(&net, 6, 1024 + port, 0))));
    }
    let keys = Keys::new(b"a key for the measurement");
    let (a, b) = (End { name: "a", nonce: &[1; 16] }, End { name: "b", nonce: &[2; 16] });
    let (sender, receiver) = (keys.session(a, b), keys.session(b, a));
    let before = cpu();
    let parts = pack(&items);
    let sealed: Vec<_> =
        (1..).zip(&parts).map(|(number, part)| sender.seal(number, part)).collect();
    let sent = cpu().saturating_sub(before);
    let before = cpu();
    let mut applied = Applied::default();
    for datagram in &sealed {
        let (_, part) = receiver.open(datagram).expect("open");
        let changes: Vec<Change> = unpack(part)
            .filter_map(|item| if let Item::Change(change) = item { Some(change) } else { None })
            .collect();
        applied += node.apply(&changes);
    }
    let received = cpu().saturating_sub(before);
    let wanted = u64::from(CONNECTIONS);
    assert_eq!((applied.begun, applied.ended), (wanted, wanted));
    assert_eq!((node.flows().len(), node.active()[0]), (0, 0));
    let bytes: usize = sealed.iter().map(Vec::len).sum();
    println!(
        "10,000 connections begun and ended: {} datagrams, {bytes} bytes; sender {sent:?}, receiver \
         {received:?} of one CPU",
        sealed.len()
    );
}
