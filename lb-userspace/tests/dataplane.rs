//! The data plane on the real kernel, without a packet: maps, pins, adoption. Needs root and a BPF
//! file system.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use ballast::{
    clock,
    dataplane::{Dataplane, Op, Options, Sizes, Timeouts, remove_pins},
};
use lb_common::{
    backend::{Backend, FORWARD, IN_USE},
    service::{Service, ServiceKey, Slot},
    source::{ALLOW, SOURCE_BITS, Source},
    stats::{BackendSignals, HANDSHAKE_CLASSES},
};

/// A directory of pins of one test's own, removed at its end.
struct Pins(PathBuf);

impl Pins {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "/sys/fs/bpf/ballast-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed),
        );
        Self(name.into())
    }

    fn options(&self) -> Options {
        Options {
            pins: self.0.clone(),
            max_flows: 4096,
            max_half_open: 1024,
            sizes: Sizes::default(),
            discard_pins: false,
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        remove_pins(&self.0).expect("remove the pins");
    }
}

fn backend(port: u16) -> Backend {
    Backend { port, flags: IN_USE | FORWARD, weight: 7, ..Backend::ZERO }
}

const SOURCE: Source = Source { list: 6, address: [9; 16] };

const KEY: ServiceKey = ServiceKey { address: [9; 16], port: 80, protocol: 6, reserved: 0 };

const TIMEOUTS: Timeouts =
    Timeouts { tcp_idle_ns: 1_000, tcp_closing_ns: 1_000, udp_idle_ns: 1_000 };

#[test]
fn a_second_daemon_goes_on_with_the_tables_of_the_first() {
    let pins = Pins::new();
    let service = Service { index: 3, table_start: 10, table_len: 2, ..Service::ZERO };
    let ops = [
        Op::SetBackend { id: 5, backend: backend(8080) },
        Op::SetTable { start: 10, slots: vec![Slot::of(5); 2] },
        Op::SetService { key: KEY, service },
        // This map takes memory for what is in it.
        Op::SetSource { bits: SOURCE_BITS, source: SOURCE, verdict: ALLOW },
    ];
    {
        let mut first = Dataplane::open(&pins.options()).expect("open");
        assert!(!first.info().expect("info").adopted);
        first.apply(&ops).expect("apply");
        first.apply(&ops).expect("apply again");
    }
    let mut second = Dataplane::open(&pins.options()).expect("open again");
    let info = second.info().expect("info");
    assert!(info.adopted);
    assert_eq!(info.notes, Vec::<String>::new());
    // A trie takes memory for the entries that it has.
    let full = |name: &str| name != lb_common::names::SOURCES;
    assert!(info.maps.iter().all(|map| map.bytes > 0 || !full(&map.name)), "{:?}", info.maps);
    let adopted = second.adopted().expect("adopted");
    assert_eq!(adopted.services, [(KEY, service)]);
    assert_eq!(adopted.backends, [(5, backend(8080))]);
    assert_eq!(adopted.sources, [((SOURCE, SOURCE_BITS), ALLOW)]);

    second
        .apply(&[Op::RemoveService { key: KEY }, Op::RemoveService { key: KEY }])
        .expect("remove, twice");
    let gone = Op::RemoveSource { bits: SOURCE_BITS, source: SOURCE };
    second.apply(&[Op::ClearBackend { id: 5 }, gone.clone(), gone]).expect("clear");
    let adopted = second.adopted().expect("adopted");
    assert_eq!((adopted.services.len(), adopted.backends.len()), (0, 0));
    assert_eq!(adopted.sources, []);
}

#[test]
fn another_size_is_noted_and_the_flows_are_kept() {
    let pins = Pins::new();
    drop(Dataplane::open(&pins.options()).expect("open"));
    let larger = Options { max_flows: 8192, ..pins.options() };
    let notes = Dataplane::open(&larger).expect("open").info().expect("info").notes;
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].contains("FLOWS keeps its 4096 entries"), "{notes:?}");
    assert!(notes[0].contains("--discard-pins"), "{notes:?}");

    let discard = Options { discard_pins: true, ..larger };
    let info = Dataplane::open(&discard).expect("open anew").info().expect("info");
    assert!(!info.adopted && info.notes.is_empty(), "{info:?}");
    let flows = info.maps.iter().find(|map| map.name == "FLOWS").expect("FLOWS");
    assert_eq!(flows.max_entries, 8192);
}

#[test]
fn pins_of_another_version_are_refused_by_name() {
    let pins = Pins::new();
    drop(Dataplane::open(&pins.options()).expect("open"));
    // A map of another layout in the place of BACKENDS.
    fs::remove_file(pins.0.join("BACKENDS")).expect("remove");
    let strange: Array<MapData, u64> = Array::create(4096, 0).expect("create a map");
    strange.pin(pins.0.join("BACKENDS")).expect("pin it");

    let error = format!("{:#}", Dataplane::open(&pins.options()).expect_err("refused"));
    for part in ["BACKENDS", "8 bytes", "--discard-pins", "still forward"] {
        assert!(error.contains(part), "`{part}` is missing: {error}");
    }
    let discard = Options { discard_pins: true, ..pins.options() };
    Dataplane::open(&discard).expect("open anew");
}

#[test]
fn another_abi_version_is_refused() {
    let pins = Pins::new();
    drop(Dataplane::open(&pins.options()).expect("open"));
    let map = MapData::from_pin(pins.0.join("META")).expect("META");
    let mut meta: Array<_, lb_common::stats::Meta> =
        aya::maps::Map::Array(map).try_into().expect("typed");
    let other = lb_common::stats::Meta { abi_version: 9999, created_s: 1 };
    meta.set(0, other, 0).expect("write");
    let error = format!("{:#}", Dataplane::open(&pins.options()).expect_err("refused"));
    assert!(error.contains("9999") && error.contains("--discard-pins"), "{error}");
}

#[test]
fn a_directory_on_another_file_system_is_refused_with_the_cure() {
    let directory = std::env::temp_dir().join("ballast-no-bpffs");
    let options = Options { pins: directory, ..Pins::new().options() };
    let error = format!("{:#}", Dataplane::open(&options).expect_err("refused"));
    assert!(error.contains("mount -t bpf bpf"), "{error}");
}

#[test]
fn counters_flows_and_sweeps_of_empty_tables_are_empty() {
    let pins = Pins::new();
    let mut dataplane = Dataplane::open(&pins.options()).expect("open");
    let counters = dataplane.counters(&[0, 1], &[0, 4095]).expect("counters");
    assert!(counters.reasons.iter().all(|&count| count == 0));
    assert_eq!(counters.backends[1].2, 0);
    assert!(dataplane.flows(100).expect("flows").is_empty());
    assert!(dataplane.take_events().is_empty());
    for _ in 0..12 {
        let sweep = dataplane.sweep(clock::monotonic_coarse_ns(), &TIMEOUTS).expect("sweep");
        assert_eq!((sweep.flows, sweep.expired, sweep.orphans), (0, 0, 0));
    }
    assert!(dataplane.counters(&[u32::MAX], &[]).is_err(), "an index past the end is an error");
    let past_the_end =
        Op::SetTable { start: lb_common::limits::DEFAULT_SLOTS - 1, slots: vec![Slot::ZERO; 2] };
    assert!(dataplane.apply(&[past_the_end]).is_err());
}

/// The kernel gives a process that wants it a release of the time before 3.0.
#[test]
fn an_old_kernel_is_refused_with_the_cure() {
    const UNAME26: libc::c_ulong = 0x0002_0000;
    let refused = std::thread::spawn(|| {
        // SAFETY: changes this thread alone, which ends soon.
        assert_ne!(unsafe { libc::personality(UNAME26) }, -1);
        let pins = Pins::new();
        format!("{:#}", Dataplane::open(&pins.options()).expect_err("refused"))
    });
    let error = refused.join().expect("join");
    for part in ["Linux 2.6.", "needs Linux 6.1 or newer", "linux-image-amd64"] {
        assert!(error.contains(part), "`{part}` is missing: {error}");
    }
}

#[test]
fn signals_are_read_in_batches_and_summed_over_the_cpus() {
    let pins = Pins::new();
    let mut dataplane = Dataplane::open(&pins.options()).expect("open");
    let reader = dataplane.signals().expect("a reader");
    let ids = [0, 1, 2, 19, 20, 300, 4095];
    assert_eq!(reader.read(&ids).expect("read"), vec![BackendSignals::ZERO; ids.len()]);

    let map = MapData::from_pin(pins.0.join("BACKEND_SIGNALS")).expect("BACKEND_SIGNALS");
    let mut map: PerCpuArray<_, BackendSignals> =
        aya::maps::Map::PerCpuArray(map).try_into().expect("typed");
    let cpus = aya::util::nr_cpus().expect("the number of CPUs") as u64;
    for id in 0..4096_u32 {
        let each = (0..cpus).map(|cpu| {
            let mut handshakes = [0; HANDSHAKE_CLASSES];
            handshakes[id as usize % HANDSHAKE_CLASSES] = 1;
            let attempts = u64::from(id) + cpu;
            BackendSignals { attempts, resets: 1, handshakes, ..BackendSignals::ZERO }
        });
        let each = PerCpuValues::try_from(each.collect::<Vec<_>>()).expect("values");
        map.set(id, each, 0).expect("write");
    }
    let all: Vec<u32> = (0..4096).collect();
    for ids in [&ids[..], &all[..], &all[4095..], &[]] {
        let signals = reader.read(ids).expect("read");
        assert_eq!(signals.len(), ids.len());
        for (id, signals) in ids.iter().zip(signals) {
            assert_eq!(signals.attempts, u64::from(*id) * cpus + cpus * (cpus - 1) / 2);
            assert_eq!(signals.resets, cpus);
            assert_eq!(u64::from(signals.handshakes[*id as usize % HANDSHAKE_CLASSES]), cpus);
        }
    }
    assert!(reader.read(&[4095, 4096]).is_err(), "an identifier past the end is an error");
    dataplane.apply(&[Op::ClearBackend { id: 20 }]).expect("clear");
    assert_eq!(reader.read(&[20]).expect("read"), [BackendSignals::ZERO]);
}
