//! The maps of the loaded program are those that `lb_common` says.

use anyhow::Context as _;
use aya::maps::{MapType, lpm_trie::Key as Prefixed};
use aya_obj::{Map, Object};
use ballast::dataplane::load::OBJECT;
use lb_common::{
    backend::Backend,
    elder::{ELDERS, Elder},
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, HalfOpen4, HalfOpen6},
    lease::{Lease, LeaseKey},
    limits::{
        DEFAULT_BACKENDS, DEFAULT_SERVICES, DEFAULT_SLOTS, MAC_BYTES, MAX_LEASES, MAX_RATES,
        MAX_SOURCES, PORTS_BYTES, VIP_BYTES,
    },
    names,
    news::{NEWS_BYTES, Node},
    reason::Reason,
    service::{Service, ServiceKey, Slot},
    source::{Bucket, RateKey, Source},
    stats::{BackendSignals, BackendStats, Meta, ServiceStats},
    trace::SAMPLES_BYTES,
};
use lb_tests::kernel::Kernel;

/// Entries of the flow tables in this test.
const FLOWS: u32 = 128;

#[derive(Clone, Copy)]
struct Expected {
    name: &'static str,
    map_type: MapType,
    key: usize,
    value: usize,
    entries: u32,
}

fn expected<K, V>(name: &'static str, map_type: MapType, entries: u32) -> Expected {
    Expected { name, map_type, key: size_of::<K>(), value: size_of::<V>(), entries }
}

fn maps() -> Vec<Expected> {
    use MapType::{Array, Hash, LpmTrie, LruHash, PerCpuArray};
    let events = Expected {
        key: 0,
        value: 0,
        ..expected::<(), ()>(names::EVENTS, MapType::RingBuf, 1 << 18)
    };
    let samples = Expected { name: names::SAMPLES, entries: SAMPLES_BYTES, ..events };
    let news = Expected { entries: NEWS_BYTES, name: names::NEWS, ..events };
    vec![
        expected::<u32, [u8; VIP_BYTES]>(names::VIPS, Array, 1),
        expected::<u32, [u8; PORTS_BYTES]>(names::PORTS, Array, 1),
        expected::<u32, [u8; MAC_BYTES]>(names::MACS, Array, 1),
        expected::<ServiceKey, Service>(names::SERVICES, Hash, DEFAULT_SERVICES),
        expected::<u32, Backend>(names::BACKENDS, Array, DEFAULT_BACKENDS),
        expected::<u32, Slot>(names::MAGLEV, Array, DEFAULT_SLOTS),
        expected::<FlowKey4, FlowEntry4>(names::FLOWS, LruHash, FLOWS),
        expected::<FlowKey6, FlowEntry6>(names::FLOWS6, LruHash, FLOWS),
        expected::<FlowKey4, HalfOpen4>(names::HALF_OPEN, LruHash, FLOWS),
        expected::<FlowKey6, HalfOpen6>(names::HALF_OPEN6, LruHash, FLOWS),
        expected::<u32, u64>(names::REASONS, PerCpuArray, Reason::COUNT),
        expected::<u32, ServiceStats>(names::SERVICE_STATS, PerCpuArray, DEFAULT_SERVICES),
        expected::<u32, BackendStats>(names::BACKEND_STATS, PerCpuArray, DEFAULT_BACKENDS),
        expected::<u32, BackendSignals>(names::BACKEND_SIGNALS, PerCpuArray, DEFAULT_BACKENDS),
        expected::<Prefixed<Source>, u32>(names::SOURCES, LpmTrie, MAX_SOURCES),
        expected::<LeaseKey, Lease>(names::LEASES, Hash, MAX_LEASES),
        expected::<RateKey, Bucket>(names::RATES, LruHash, MAX_RATES),
        expected::<u32, u64>(names::ACTIVE, Array, DEFAULT_BACKENDS),
        expected::<u32, u64>(names::CURSORS, Array, DEFAULT_SERVICES),
        events,
        samples,
        expected::<u32, Node>(names::NODE, Array, 1),
        expected::<u32, Elder>(names::ELDER, Array, ELDERS),
        news,
        expected::<u32, Meta>(names::META, Array, 1),
    ]
}

#[test]
fn sizes_and_kinds_are_those_of_the_contract() -> anyhow::Result<()> {
    let kernel = Kernel::load(FLOWS)?;
    let maps = maps();
    let mut named: Vec<_> = maps.iter().map(|map| map.name).collect();
    let mut pinned = names::PINNED.to_vec();
    named.sort_unstable();
    pinned.sort_unstable();
    assert_eq!(named, pinned, "this test knows every pinned map");
    for map in maps {
        let info = kernel.map(map.name)?;
        assert_eq!(info.map_type()?, map.map_type, "{}", map.name);
        assert_eq!(info.key_size() as usize, map.key, "key of {}", map.name);
        assert_eq!(info.value_size() as usize, map.value, "value of {}", map.name);
        assert_eq!(info.max_entries(), map.entries, "entries of {}", map.name);
        assert_eq!(info.name_as_str(), Some(names::in_object(map.name)));
    }
    Ok(())
}

/// With types in BTF, `bpftool map dump` prints field names.
#[test]
fn every_map_is_declared_with_types() -> anyhow::Result<()> {
    let object = Object::parse(OBJECT).context("parse the object")?;
    for name in names::PINNED {
        if names::in_object(name) != name {
            // Data of the program: bytes.
            assert!(object.maps.contains_key(names::in_object(name)), "{name} is in the object");
            continue;
        }
        let map = object.maps.get(name).with_context(|| format!("find {name} in the object"))?;
        let Map::Btf(map) = map else { panic!("{name} is not in `.maps`: use #[btf_map]") };
        if ![names::EVENTS, names::NEWS, names::SAMPLES].contains(&name) {
            assert_ne!(map.def.btf_key_type_id, 0, "{name} has no type for its key");
            assert_ne!(map.def.btf_value_type_id, 0, "{name} has no type for its value");
        }
    }
    assert!(object.programs.contains_key(names::PROGRAM));
    Ok(())
}
