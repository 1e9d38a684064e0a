//! Sizes of maps, and sweeps over many flows, on the real kernel without a packet. Needs root and a
//! BPF file system.

use std::{
    ops::ControlFlow,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use ballast::dataplane::{Dataplane, Op, Options, Sizes, Sweep, Timeouts, Tracer, remove_pins};
use lb_common::{
    backend::{Backend, FORWARD, IN_USE},
    flow::{FlowEntry4, FlowKey4, HalfOpen4, state},
    service::{STEERED, Service, ServiceKey, Slot},
    source::{LIST_BITS, Source},
    stats::BackendSignals,
    trace::{TraceFilter, filter},
};

/// A directory of pins of one test's own, removed at its end.
struct Pins(PathBuf);

impl Pins {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(format!("/sys/fs/bpf/ballast-scale-{}-{number}", std::process::id()).into())
    }

    fn open(&self, sizes: Sizes) -> Dataplane {
        let options = Options {
            pins: self.0.clone(),
            max_flows: 65_536,
            max_half_open: 1024,
            sizes,
            discard_pins: false,
        };
        Dataplane::open(&options).expect("open")
    }

    fn flows(&self) -> HashMap<MapData, FlowKey4, FlowEntry4> {
        let map = MapData::from_pin(self.0.join("FLOWS")).expect("FLOWS");
        Map::LruHashMap(map).try_into().expect("typed")
    }

    fn half_open(&self) -> HashMap<MapData, FlowKey4, HalfOpen4> {
        let map = MapData::from_pin(self.0.join("HALF_OPEN")).expect("HALF_OPEN");
        Map::LruHashMap(map).try_into().expect("typed")
    }

    /// `BACKEND_SIGNALS`, by every CPU.
    fn signals(&self) -> PerCpuArray<MapData, BackendSignals> {
        let map = MapData::from_pin(self.0.join("BACKEND_SIGNALS")).expect("BACKEND_SIGNALS");
        Map::PerCpuArray(map).try_into().expect("typed")
    }

    fn active(&self) -> Array<MapData, u64> {
        let map = MapData::from_pin(self.0.join("ACTIVE")).expect("ACTIVE");
        Map::Array(map).try_into().expect("typed")
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        remove_pins(&self.0).expect("remove the pins");
    }
}

const SMALL: Sizes = Sizes { services: 4, backends: 16, slots: 1024 };

const LARGE: Sizes = Sizes { services: 3000, backends: 70_000, slots: 300_000 };

const KEY: ServiceKey = ServiceKey { address: [9; 16], port: 80, protocol: 6, reserved: 0 };

/// The table of a steered service.
const SLOTS: [Slot; 2] = [Slot::of(15), Slot { backend: 15, base: 3 }];

const SOURCE: Source = Source { list: 6, address: [0; 16] };

const HOUR_NS: u64 = 3_600_000_000_000;

const TIMEOUTS: Timeouts =
    Timeouts { tcp_idle_ns: 2 * HOUR_NS, tcp_closing_ns: HOUR_NS, udp_idle_ns: HOUR_NS };

/// When the connections were last seen that are too old, and the others.
const OLD_NS: u64 = HOUR_NS;
const NEW_NS: u64 = 4 * HOUR_NS;
const NOW_NS: u64 = 4 * HOUR_NS + 1;

/// What a stamp may be off: it is true to a tick, of which the longest is a hundredth of a second.
const TICKS_NS: u64 = 20_000_000;

/// The halves of connection `number` of backend 5.
/// `last_seen` is a stamp ([`Dataplane::ticks`]).
fn halves(number: u16, last_seen: u64) -> [(FlowKey4, FlowEntry4); 2] {
    let [high, low] = number.to_be_bytes();
    let (client, vip, app) = ([10, 0, high, low], [192, 0, 2, 100], [192, 0, 2, 21]);
    let (port, nat, web) = ([1, 1], (1024 + number).to_be_bytes(), [0, 80]);
    let key = |src, src_port, dst, dst_port| FlowKey4 {
        src,
        dst,
        src_port,
        dst_port,
        protocol: 6,
        reserved: [0; 3],
    };
    let entry = |to: FlowKey4, bits| FlowEntry4 {
        new_src: to.src,
        new_src_port: to.src_port,
        new_dst: to.dst,
        new_dst_port: to.dst_port,
        backend: 5,
        state: bits,
        last_seen,
        ..FlowEntry4::ZERO
    };
    let forward = (key(client, port, vip, web), key(vip, nat, app, web));
    let back = (key(app, web, vip, nat), key(vip, web, client, port));
    [(forward.0, entry(forward.1, 0)), (back.0, entry(back.1, state::RETURN))]
}

fn count(pins: &Pins) -> usize {
    pins.flows().keys().flatten().count()
}

#[test]
fn a_larger_configuration_gets_larger_maps_that_hold_the_same() {
    let pins = Pins::new();
    let run = Service { table_start: 10, table_len: 2, ..Service::ZERO };
    let service = Service { index: 3, flags: STEERED, ..run };
    let backend = Backend { port: 8080, flags: IN_USE | FORWARD, weight: 7, ..Backend::ZERO };
    let [(key, entry), _] = halves(1, 0);
    {
        let mut small = pins.open(SMALL);
        assert_eq!(small.sizes(), SMALL);
        let ops = [
            Op::SetBackend { id: 15, backend },
            Op::SetTable { start: 10, slots: SLOTS.to_vec() },
            Op::SetService { key: KEY, service },
            Op::SetSource { bits: LIST_BITS, source: SOURCE, verdict: 1 },
        ];
        small.apply(&ops).expect("apply");
        assert!(small.apply(&[Op::SetBackend { id: 16, backend }]).is_err(), "past the end");
        pins.flows().insert(key, entry, 0).expect("a flow");
        pins.active().set(15, 42, 0).expect("a count");
        let mut signals = pins.signals();
        let mut values = signals.get(&15, 0).expect("the signals").to_vec();
        values[0].refused = 7;
        signals.set(15, values.try_into().expect("one for each CPU"), 0).expect("a signal");
    }
    let mut large = pins.open(LARGE);
    let adopted = large.adopted().expect("adopted");
    assert_eq!(adopted.services, [(KEY, service)]);
    assert_eq!(adopted.backends, [(15, backend)]);
    assert_eq!(adopted.sizes, LARGE);
    assert_eq!(adopted.steered.into_iter().collect::<Vec<_>>(), [(KEY, SLOTS.to_vec())]);
    assert_eq!(adopted.sources, [((SOURCE, LIST_BITS), 1)]);
    assert_eq!(pins.signals().get(&15, 0).expect("the signals")[0].refused, 7);
    assert_eq!(pins.signals().len(), LARGE.backends);
    assert_eq!(large.counters(&[3], &[15, 69_999]).expect("counters").backends[0].2, 42);
    assert_eq!(pins.flows().get(&key, 0).expect("the flow").backend, entry.backend);
    assert_eq!(pins.active().len(), LARGE.backends);
    large.apply(&[Op::SetBackend { id: 69_999, backend }]).expect("there is room");
    drop(large);

    // A smaller configuration goes on with the larger maps.
    let again = pins.open(SMALL);
    assert_eq!(again.sizes(), LARGE);
    assert_eq!(again.adopted().expect("adopted").backends.len(), 2);
    assert!(again.info().expect("info").notes.is_empty());
}

#[test]
fn a_trace_has_the_maps_that_there_are() {
    let pins = Pins::new();
    let backends = || {
        let map = MapData::from_pin(pins.0.join("BACKENDS")).expect("BACKENDS");
        let info = map.info().expect("info");
        (info.id(), info.max_entries())
    };
    drop(pins.open(SMALL));
    for (sizes, room) in [(LARGE, LARGE), (SMALL, LARGE)] {
        let mut dataplane = pins.open(sizes);
        let before = backends();
        assert_eq!(before.1, room.backends);
        let plain = dataplane.info().expect("info").program_id;
        let tracer = Tracer::load(dataplane.options()).expect("load");
        dataplane.begin_tracing(tracer).expect("begin");
        let filter = TraceFilter { flags: filter::ACTIVE, ..TraceFilter::ZERO };
        dataplane.set_trace(0, Some(&filter)).expect("a trace");
        let info = dataplane.info().expect("info");
        assert_eq!(info.traces, 1);
        assert_ne!(info.program_id, plain);
        dataplane.set_trace(0, None).expect("its end");
        let info = dataplane.info().expect("info");
        assert_eq!((info.traces, info.program_id), (0, plain));
        assert_eq!(backends(), before);
    }
}

#[test]
fn a_daemon_that_died_while_maps_were_replaced_leaves_no_trace() {
    let pins = Pins::new();
    let backend = Backend { port: 8080, flags: IN_USE | FORWARD, ..Backend::ZERO };
    pins.open(SMALL).apply(&[Op::SetBackend { id: 7, backend }]).expect("apply");
    // It had created one larger map, and given it nothing yet.
    let map: Array<MapData, u64> = Array::create(LARGE.backends, 0).expect("create a map");
    map.pin(pins.0.join("BACKENDS_larger")).expect("pin it");
    let adopted = pins.open(LARGE).adopted().expect("adopted");
    assert_eq!(adopted.backends, [(7, backend)]);
    assert!(!pins.0.join("BACKENDS_larger").exists());
}

#[test]
fn writes_of_many_kinds_arrive_in_batches() {
    let pins = Pins::new();
    let mut dataplane = pins.open(LARGE);
    let backend = |id: u32| Backend { port: id as u16, flags: IN_USE, ..Backend::ZERO };
    let key = |number: u32| ServiceKey { port: number as u16, ..KEY };
    let service =
        |index: u32| Service { index, table_start: index * 90, table_len: 90, ..Service::ZERO };
    let mut ops: Vec<Op> =
        (0..60_000).map(|id| Op::SetBackend { id, backend: backend(id) }).collect();
    ops.extend((0..3000).map(|at| Op::SetTable { start: at * 90, slots: vec![Slot::of(at); 90] }));
    ops.extend((0..3000).map(|at| Op::SetService { key: key(at), service: service(at) }));
    dataplane.apply(&ops).expect("apply");
    dataplane.apply(&ops).expect("apply again");
    let adopted = dataplane.adopted().expect("adopted");
    assert_eq!((adopted.services.len(), adopted.backends.len()), (3000, 60_000));
    assert!(adopted.backends.iter().all(|&(id, found)| found == backend(id)));
    assert!(adopted.services.iter().all(|&(at, found)| found == service(u32::from(at.port))));
    let counters = dataplane.counters(&[0, 2999], &(0..60_000).collect::<Vec<_>>());
    assert_eq!(counters.expect("counters").backends.len(), 60_000);

    let clear: Vec<Op> = (0..60_000).map(|id| Op::ClearBackend { id }).collect();
    dataplane.apply(&clear).expect("clear");
    assert!(dataplane.adopted().expect("adopted").backends.is_empty());
    let too_many = Op::SetService { key: key(3000), service: service(0) };
    assert!(dataplane.apply(&[too_many]).is_err(), "SERVICES is full");
}

#[test]
fn a_sweep_in_slices_sees_everything_and_removes_what_is_old() {
    let pins = Pins::new();
    let mut dataplane = pins.open(SMALL);
    let ticks = dataplane.ticks();
    let mut flows = pins.flows();
    for number in 0..10_000 {
        let seen = if number % 4 == 0 { OLD_NS } else { NEW_NS };
        for (key, entry) in halves(number, ticks.at(seen)) {
            flows.insert(key, entry, 0).expect("a flow");
        }
    }
    pins.active().set(5, 10_000, 0).expect("a count");
    let sweeper = dataplane.sweeper();
    let mut slices = 0;
    let sweep = loop {
        let mut sweeper = sweeper.lock().expect("nobody else sweeps");
        slices += 1;
        if let Some(sweep) = sweeper.slice_of(4096, NOW_NS, &TIMEOUTS).expect("a slice") {
            break sweep;
        }
        // Others go on while a sweep is under way.
        let backend = Backend { flags: IN_USE, ..Backend::ZERO };
        dataplane.apply(&[Op::SetBackend { id: 1, backend }]).expect("apply");
    };
    assert!(slices > 3, "{slices} slices");
    assert_eq!((sweep.flows, sweep.expired, sweep.orphans), (10_000, 2500, 0));
    assert_eq!(sweep.began_ns, NOW_NS);
    assert_eq!(count(&pins), 15_000);
    assert_eq!(dataplane.counters(&[], &[5]).expect("counters").backends[0].2, 7500);
    let again = dataplane.sweep(NOW_NS, &TIMEOUTS).expect("a sweep");
    assert_eq!((again.flows, again.expired), (7500, 0));
    assert_eq!(again.by_backend.into_iter().collect::<Vec<_>>(), [(5, 15_000)]);
}

#[test]
fn entries_of_steered_connections_stand_alone() {
    const MINUTE_NS: u64 = 60_000_000_000;
    let pins = Pins::new();
    let mut dataplane = pins.open(SMALL);
    let ticks = dataplane.ticks();
    let backend = Backend { port: 8080, flags: IN_USE, ..Backend::ZERO };
    let living = Backend { flags: IN_USE | FORWARD, ..backend };
    let ops = [Op::SetBackend { id: 5, backend: living }, Op::SetBackend { id: 6, backend }];
    dataplane.apply(&ops).expect("apply");
    // By backend: seen just now, two minutes ago, and longer ago than an idle connection lives.
    let mut flows = pins.flows();
    for (number, backend, age_ns) in [
        (0, 5, 1),
        (1, 5, 2 * MINUTE_NS),
        (2, 5, 2 * HOUR_NS),
        (3, 6, MINUTE_NS - TICKS_NS),
        (4, 6, MINUTE_NS),
        (5, 9, MINUTE_NS),
    ] {
        let [(key, entry), _] = halves(number, ticks.at(NOW_NS - age_ns));
        let alone = FlowEntry4 { state: state::STEERED, backend, new_dst: [0; 4], ..entry };
        flows.insert(key, alone, 0).expect("a flow");
    }
    let phases = |dataplane: &Dataplane| -> Vec<_> {
        let flows = dataplane.flows(9).expect("flows");
        flows.into_iter().map(|flow| (flow.phase, flow.backend_id, flow.backend.port())).collect()
    };
    assert_eq!(phases(&dataplane).len(), 6);

    let sweep = dataplane.sweep(NOW_NS, &TIMEOUTS).expect("a sweep");
    assert_eq!((sweep.flows, sweep.expired, sweep.orphans), (0, 3, 0));
    let entries: Vec<_> = sweep.by_backend.into_iter().collect();
    assert_eq!(entries, [(5, 3), (6, 2), (9, 1)]);
    let places: Vec<_> = sweep.steered.iter().map(|(id, places)| (*id, places.len())).collect();
    assert_eq!(places, [(5, 3), (6, 2), (9, 1)]);
    let mut left = phases(&dataplane);
    left.sort();
    let steered = |id| ("steered".to_owned(), id, 8080);
    assert_eq!(left, [steered(5), steered(5), steered(6)]);

    // No other half is looked for, and none is counted as an open connection.
    for _ in 0..12 {
        let sweep = dataplane.sweep(NOW_NS, &TIMEOUTS).expect("a sweep");
        assert_eq!((sweep.flows, sweep.expired, sweep.orphans), (0, 0, 0));
    }
    assert_eq!(dataplane.counters(&[], &[5]).expect("counters").backends[0].2, 0);
}

#[test]
fn half_open_connections_are_counted_apart() {
    let pins = Pins::new();
    let mut dataplane = pins.open(SMALL);
    let ticks = dataplane.ticks();
    let mut half_open = pins.half_open();
    for number in 0..128 {
        for (key, flow) in halves(number, ticks.at(NOW_NS)) {
            half_open.insert(key, HalfOpen4 { flow, ..HalfOpen4::ZERO }, 0).expect("a flow");
        }
    }
    for (key, entry) in halves(500, ticks.at(NOW_NS)) {
        pins.flows().insert(key, entry, 0).expect("a flow");
    }
    let sweep = dataplane.sweep(NOW_NS, &TIMEOUTS).expect("a sweep");
    assert_eq!(sweep.flows, 129);
    assert_eq!(sweep.by_backend.into_iter().collect::<Vec<_>>(), [(5, 258)]);
    assert_eq!(sweep.half_open.into_iter().collect::<Vec<_>>(), [(5, 256)]);
    assert_eq!(sweep.half_open_percent, 25);
}

#[test]
fn what_is_kept_of_a_backend_that_was_given_up_stands_alone_and_is_soon_forgotten() {
    let pins = Pins::new();
    let mut dataplane = pins.open(SMALL);
    let ticks = dataplane.ticks();
    let mut half_open = pins.half_open();
    // Those of even numbers have gone to backend 6, by another half.
    for number in 0..100 {
        let [(client, mut entry), (backend, mut back)] = halves(number, ticks.at(NEW_NS));
        if number % 2 == 0 {
            back.state |= state::GIVEN_UP;
            let other = FlowKey4 { src: [192, 0, 2, 22], ..backend };
            (entry.new_dst, entry.backend) = (other.src, 6);
            let half = FlowEntry4 { backend: 6, state: state::RETURN, ..back };
            half_open
                .insert(other, HalfOpen4 { flow: half, ..HalfOpen4::ZERO }, 0)
                .expect("a half");
        }
        for (key, flow) in [(client, entry), (backend, back)] {
            half_open.insert(key, HalfOpen4 { flow, ..HalfOpen4::ZERO }, 0).expect("a half");
        }
    }
    pins.active().set(5, 50, 0).expect("a count");
    pins.active().set(6, 50, 0).expect("a count");
    for _ in 0..12 {
        let sweep = dataplane.sweep(NEW_NS + 5_000_000_000 - TICKS_NS, &TIMEOUTS).expect("a sweep");
        assert_eq!((sweep.flows, sweep.expired, sweep.orphans), (100, 0, 0));
        let entries: Vec<_> = sweep.by_backend.into_iter().collect();
        assert_eq!(entries, [(5, 150), (6, 100)], "their identifiers are in use");
    }
    dataplane.sweep(NEW_NS + 5_000_000_000, &TIMEOUTS).expect("a sweep");
    let sweep = dataplane.sweep(NEW_NS + 5_000_000_000, &TIMEOUTS).expect("a sweep");
    assert_eq!(sweep.flows, 100, "the connections go on");
    assert_eq!(sweep.by_backend.into_iter().collect::<Vec<_>>(), [(5, 100), (6, 100)]);
    let counters = dataplane.counters(&[], &[5, 6]).expect("counters");
    assert!(counters.backends.iter().all(|(_, _, open)| *open == 50), "they count as open");
}

#[test]
fn the_half_of_another_connection_is_left_alone() {
    let pins = Pins::new();
    let mut dataplane = pins.open(SMALL);
    let ticks = dataplane.ticks();
    let mut flows = pins.flows();
    let [(old, old_entry), (back, _)] = halves(1, ticks.at(OLD_NS));
    // The port of an old connection belongs to another client by now.
    let [(_, _), (_, mut others)] = halves(2, ticks.at(NEW_NS));
    others.new_dst = [10, 9, 9, 9];
    flows.insert(old, old_entry, 0).expect("a flow");
    flows.insert(back, others, 0).expect("a flow");
    let other = FlowKey4 { src: others.new_dst, src_port: others.new_dst_port, ..old };
    let forward = FlowEntry4 { last_seen: ticks.at(NEW_NS), ..old_entry };
    flows.insert(other, forward, 0).expect("a flow");
    let sweep = dataplane.sweep(NOW_NS, &TIMEOUTS).expect("a sweep");
    assert_eq!((sweep.flows, sweep.expired), (2, 1));
    assert!(flows.get(&old, 0).is_err(), "it is forgotten");
    assert!(flows.get(&back, 0).is_ok() && flows.get(&other, 0).is_ok(), "these live on");
}

#[test]
fn halves_that_have_lost_the_other_are_found_within_ten_sweeps() {
    let pins = Pins::new();
    let mut dataplane = pins.open(SMALL);
    let ticks = dataplane.ticks();
    let mut flows = pins.flows();
    for number in 0..300 {
        let halves = halves(number, ticks.at(NEW_NS));
        let kept =
            if number % 3 == 0 { &halves[..] } else { &halves[usize::from(number % 2)..][..1] };
        for (key, entry) in kept {
            flows.insert(key, entry, 0).expect("a flow");
        }
    }
    let sweeps: Vec<Sweep> =
        (0..12).map(|_| dataplane.sweep(NOW_NS, &TIMEOUTS).expect("a sweep")).collect();
    assert_eq!(sweeps.iter().map(|sweep| sweep.orphans).sum::<u64>(), 200);
    assert_eq!(count(&pins), 200, "the whole ones are left");
}

#[test]
fn a_drift_of_the_counts_is_corrected() {
    let pins = Pins::new();
    let mut dataplane = pins.open(SMALL);
    let ticks = dataplane.ticks();
    let mut flows = pins.flows();
    for number in 0..10 {
        for (key, entry) in halves(number, ticks.at(NEW_NS)) {
            flows.insert(key, entry, 0).expect("a flow");
        }
    }
    pins.active().set(5, 17, 0).expect("a count");
    let count =
        |dataplane: &Dataplane| dataplane.counters(&[], &[5]).expect("counters").backends[0].2;
    for _ in 0..3 {
        dataplane.sweep(NOW_NS, &TIMEOUTS).expect("a sweep");
        assert_eq!(count(&dataplane), 17, "it may still be traffic");
    }
    dataplane.sweep(NOW_NS, &TIMEOUTS).expect("a sweep");
    assert_eq!(count(&dataplane), 10);
}

#[test]
fn a_reader_takes_what_it_wants_and_no_more() {
    let pins = Pins::new();
    let dataplane = pins.open(SMALL);
    let ticks = dataplane.ticks();
    let mut flows = pins.flows();
    for number in 0..5000 {
        for (key, mut entry) in halves(number, ticks.at(NEW_NS)) {
            entry.backend = u32::from(number % 5);
            flows.insert(key, entry, 0).expect("a flow");
        }
    }
    let reader = dataplane.reader();
    let read = |wanted: &dyn Fn(u32) -> bool, limit: usize| {
        let mut seen = Vec::new();
        let each = &mut |flow: ballast::dataplane::Flow| {
            seen.push(flow);
            if seen.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        reader.read(wanted, each).expect("read");
        seen
    };
    assert_eq!(read(&|_| true, usize::MAX).len(), 5000);
    let third = read(&|backend| backend == 3, usize::MAX);
    assert!(third.len() == 1000 && third.iter().all(|flow| flow.backend_id == 3));
    assert_eq!(read(&|backend| backend == 3, 7).len(), 7);
    assert_eq!(dataplane.flows(12).expect("flows").len(), 12);
}
