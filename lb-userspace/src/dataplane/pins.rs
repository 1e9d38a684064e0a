//! Pinned maps and links: what outlives the daemon, and whether it may be gone on with.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use aya::maps::{Array, Map, MapData, MapInfo, MapType, lpm_trie::Key as Prefixed};
use lb_common::{
    backend::Backend,
    elder::{ELDERS, Elder},
    event::Event,
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, HalfOpen4, HalfOpen6},
    lease::{Lease, LeaseKey},
    limits, names,
    news::{NEWS_BYTES, Node},
    reason::Reason,
    service::{Service, ServiceKey, Slot},
    source::{Bucket, RateKey, Source},
    stats::{BackendSignals, BackendStats, Meta, ServiceStats},
    trace::{SAMPLES_BYTES, Sample},
};

use super::{AttachMode, Options, Sizes, grow, link as pinned_link};

/// What a map must look like for this version to use it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) name: &'static str,
    map_type: MapType,
    key_size: u32,
    value_size: u32,
    pub(super) max_entries: u32,
    size: Size,
}

/// What it means when a pinned map has another number of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// It is of another version.
    Fixed,
    /// It goes on as it is: it holds what must not be lost, and changes all the time.
    Kept,
    /// With fewer, it is replaced by a larger one that holds the same; with more, it goes on.
    Grows,
}

/// The layout of every pinned map, with the sizes that `options` ask for.
pub(super) fn layouts(options: &Options) -> Vec<Layout> {
    fn map<K, V>(name: &'static str, map_type: MapType, max_entries: u32) -> Layout {
        let (key_size, value_size) = (size_of::<K>() as u32, size_of::<V>() as u32);
        Layout { name, map_type, key_size, value_size, max_entries, size: Size::Fixed }
    }
    fn flows<K, V>(name: &'static str, max_entries: u32) -> Layout {
        Layout { size: Size::Kept, ..map::<K, V>(name, MapType::LruHash, max_entries) }
    }
    fn sized<K, V>(name: &'static str, map_type: MapType, max_entries: u32) -> Layout {
        Layout { size: Size::Grows, ..map::<K, V>(name, map_type, max_entries) }
    }
    let (flow_entries, half_open) = (options.max_flows, options.max_half_open);
    let Sizes { services, backends, slots } = options.sizes;
    vec![
        map::<u32, [u8; limits::VIP_BYTES]>(names::VIPS, MapType::Array, 1),
        map::<u32, [u8; limits::PORTS_BYTES]>(names::PORTS, MapType::Array, 1),
        map::<u32, [u8; limits::MAC_BYTES]>(names::MACS, MapType::Array, 1),
        sized::<ServiceKey, Service>(names::SERVICES, MapType::Hash, services),
        sized::<u32, Backend>(names::BACKENDS, MapType::Array, backends),
        sized::<u32, Slot>(names::MAGLEV, MapType::Array, slots),
        flows::<FlowKey4, FlowEntry4>(names::FLOWS, flow_entries),
        flows::<FlowKey6, FlowEntry6>(names::FLOWS6, flow_entries),
        flows::<FlowKey4, HalfOpen4>(names::HALF_OPEN, half_open),
        flows::<FlowKey6, HalfOpen6>(names::HALF_OPEN6, half_open),
        map::<u32, u64>(names::REASONS, MapType::PerCpuArray, Reason::COUNT),
        sized::<u32, ServiceStats>(names::SERVICE_STATS, MapType::PerCpuArray, services),
        sized::<u32, BackendStats>(names::BACKEND_STATS, MapType::PerCpuArray, backends),
        sized::<u32, BackendSignals>(names::BACKEND_SIGNALS, MapType::PerCpuArray, backends),
        map::<Prefixed<Source>, u32>(names::SOURCES, MapType::LpmTrie, limits::MAX_SOURCES),
        map::<RateKey, Bucket>(names::RATES, MapType::LruHash, limits::MAX_RATES),
        sized::<u32, u64>(names::ACTIVE, MapType::Array, backends),
        sized::<u32, u64>(names::CURSORS, MapType::Array, services),
        map::<LeaseKey, Lease>(names::LEASES, MapType::Hash, limits::MAX_LEASES),
        Layout {
            key_size: 0,
            value_size: 0,
            ..map::<(), Event>(names::EVENTS, MapType::RingBuf, limits::EVENTS_BYTES)
        },
        Layout {
            key_size: 0,
            value_size: 0,
            ..map::<(), Sample>(names::SAMPLES, MapType::RingBuf, SAMPLES_BYTES)
        },
        map::<u32, Node>(names::NODE, MapType::Array, 1),
        map::<u32, Elder>(names::ELDER, MapType::Array, ELDERS),
        Layout {
            key_size: 0,
            value_size: 0,
            ..map::<(), ()>(names::NEWS, MapType::RingBuf, NEWS_BYTES)
        },
        map::<u32, Meta>(names::META, MapType::Array, 1),
    ]
}

impl Layout {
    /// Whether the number of entries comes from the configuration.
    pub(super) fn is_sized(&self) -> bool {
        self.size != Size::Fixed
    }

    /// Why a pinned map does not fit, if it does not.
    fn misfit(&self, info: &MapInfo) -> Option<String> {
        if info.map_type().ok() != Some(self.map_type) {
            return Some(format!("{} is a map of another type", self.name));
        }
        let found = [info.key_size(), info.value_size()];
        if found != [self.key_size, self.value_size] {
            return Some(format!(
                "{} has keys of {} and values of {} bytes, not {} and {}",
                self.name, found[0], found[1], self.key_size, self.value_size,
            ));
        }
        if !self.is_sized() && info.max_entries() != self.max_entries {
            return Some(format!(
                "{} has room for {} entries, not {}",
                self.name,
                info.max_entries(),
                self.max_entries,
            ));
        }
        None
    }
}

/// What [`prepare`] found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// There are maps to go on with.
    pub(super) adopted: bool,
    /// Differences that do not matter now but that the operator should know.
    pub(super) notes: Vec<String>,
    /// Maps that are too small, to be replaced by larger ones.
    pub(super) outgrown: Vec<&'static str>,
}

/// Makes the directory ready: it exists, lies on a BPF file system, and holds either nothing or maps
/// of this version.
pub(super) fn prepare(options: &Options) -> anyhow::Result<Found> {
    let pins = &options.pins;
    require_bpffs(pins)?;
    if options.discard_pins {
        super::remove_pins(pins)?;
    }
    fs::create_dir_all(pins).with_context(|| format!("create {}", pins.display()))?;
    grow::remove_leftovers(pins)?;
    let mut found = Found::default();
    let mut misfits = Vec::new();
    for layout in layouts(options) {
        let path = pins.join(layout.name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path)
            .with_context(|| format!("open the pinned map {}", path.display()))?;
        misfits.extend(layout.misfit(&info));
        let has = info.max_entries();
        match layout.size {
            Size::Kept if has != layout.max_entries => found.notes.push(format!(
                "{} keeps its {has} entries: the configured {} take effect after a start with \
                 --discard-pins, which loses open connections",
                layout.name, layout.max_entries,
            )),
            Size::Grows if has < layout.max_entries => found.outgrown.push(layout.name),
            Size::Fixed | Size::Kept | Size::Grows => {}
        }
        found.adopted = true;
    }
    let version = if found.adopted && misfits.is_empty() { pinned_version(pins)? } else { 0 };
    if version != 0 && version != limits::ABI_VERSION {
        misfits.push(format!("their version is {version}, not {}", limits::ABI_VERSION));
    }
    if !misfits.is_empty() {
        bail!(
            "the maps pinned in {} are of another version of ballast: {}. They still forward \
             packets; to replace them, and lose the connections that are open, start with \
             `ballast run --discard-pins`",
            pins.display(),
            misfits.join("; "),
        );
    }
    Ok(found)
}

/// Whether a daemon of this version has left a map, and its program on the interface.
pub(super) fn is_left(options: &Options, name: &str, ifindex: u32) -> anyhow::Result<bool> {
    let pins = &options.pins;
    let path = pins.join(name);
    if !path.exists()
        || pinned_version(pins)? != limits::ABI_VERSION
        || !links(pins)?.iter().any(|(of, _)| *of == ifindex)
    {
        return Ok(false);
    }
    let info = MapInfo::from_pin(&path)
        .with_context(|| format!("open the pinned map {}", path.display()))?;
    let layout = layouts(options).into_iter().find(|layout| layout.name == name);
    Ok(layout.is_some_and(|layout| layout.misfit(&info).is_none()))
}

/// Room in the pinned maps.
pub(super) fn sizes(pins: &Path) -> anyhow::Result<Sizes> {
    let entries = |name: &str| {
        let info = MapInfo::from_pin(pins.join(name));
        info.map(|info| info.max_entries()).with_context(|| format!("look at {name}"))
    };
    let least = |names: &[&str]| -> anyhow::Result<u32> {
        let entries = names.iter().map(|name| entries(name)).collect::<Result<Vec<_>, _>>()?;
        Ok(entries.into_iter().min().unwrap_or(0))
    };
    Ok(Sizes {
        services: least(&[names::SERVICES, names::SERVICE_STATS, names::CURSORS])?,
        backends: least(&[
            names::BACKENDS,
            names::BACKEND_STATS,
            names::BACKEND_SIGNALS,
            names::ACTIVE,
        ])?,
        slots: entries(names::MAGLEV)?,
    })
}

/// The version of whoever created the maps; 0 if it did not come to writing it.
fn pinned_version(pins: &Path) -> anyhow::Result<u32> {
    let path = pins.join(names::META);
    if !path.exists() {
        return Ok(0);
    }
    let map = MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
    let meta: Array<_, Meta> = Map::Array(map).try_into().context("read META")?;
    Ok(meta.get(&0, 0).context("read META")?.abi_version)
}

/// Fails unless the directory lies, or would lie, on a BPF file system.
pub(super) fn require_bpffs(pins: &Path) -> anyhow::Result<()> {
    let existing = pins.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let kind = nix::sys::statfs::statfs(existing)
        .with_context(|| format!("look at {}", existing.display()))?
        .filesystem_type();
    if kind == nix::sys::statfs::BPF_FS_MAGIC {
        return Ok(());
    }
    bail!(
        "{} is not on a BPF file system, where maps can be pinned: run `mount -t bpf bpf \
         /sys/fs/bpf`, or set `[paths] pins` to a directory on one",
        pins.display(),
    )
}

/// Where the link of an interface is pinned. The name says how the program is attached, which the
/// kernel does not tell of a link.
pub(super) fn link(pins: &Path, ifindex: u32, mode: AttachMode) -> PathBuf {
    let mode = match mode {
        AttachMode::Driver => "driver",
        AttachMode::Generic => "generic",
    };
    pins.join(format!("link_{ifindex}_{mode}"))
}

/// The links that are pinned: interface and mode.
pub(super) fn links(pins: &Path) -> anyhow::Result<Vec<(u32, AttachMode)>> {
    let list = || format!("list {}", pins.display());
    let mut links = Vec::new();
    for entry in fs::read_dir(pins).with_context(list)? {
        links.extend(parse_link(&entry.with_context(list)?.path()));
    }
    links.sort_unstable_by_key(|&(ifindex, _)| ifindex);
    Ok(links)
}

/// How the program of a pinned link is attached; `None` if the path is no link's.
pub(super) fn link_mode(path: &Path) -> Option<AttachMode> {
    parse_link(path).map(|(_, mode)| mode)
}

/// The interface and the mode of a link, by the name of its pin.
fn parse_link(path: &Path) -> Option<(u32, AttachMode)> {
    let (ifindex, mode) = path.file_name()?.to_str()?.strip_prefix("link_")?.split_once('_')?;
    let mode = match mode {
        "driver" => AttachMode::Driver,
        "generic" => AttachMode::Generic,
        _ => return None,
    };
    Some((ifindex.parse().ok()?, mode))
}

/// Takes the program of a pinned link off its interface, and removes the pin.
pub(super) fn remove_link(path: &Path) -> anyhow::Result<()> {
    if let Err(error) = pinned_link::detach(path) {
        // Without its pin the link goes all the same, if a little later.
        tracing::debug!(%error, path = %path.display(), "detach a link");
    }
    fs::remove_file(path).with_context(|| format!("remove {}", path.display()))
}

/// Removes the pins, and with the links the program from its interfaces.
pub(super) fn remove(pins: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(pins) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("list {}", pins.display())),
    };
    grow::remove_leftovers(pins)?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", pins.display()))?;
        let name = entry.file_name();
        if name.as_bytes().starts_with(b"link_") {
            remove_link(&entry.path())?;
        } else if names::PINNED.iter().any(|pinned| name.as_bytes() == pinned.as_bytes()) {
            fs::remove_file(entry.path())
                .with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    match fs::remove_dir(pins) {
        Ok(()) => Ok(()),
        // Somebody else's pin is in there: leave it.
        Err(error) if error.raw_os_error() == Some(libc::ENOTEMPTY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {}", pins.display())),
    }
}
