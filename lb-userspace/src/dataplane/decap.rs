//! The decapsulator of backends: a program of its own, which needs no daemon.
//!
//! Its link and maps are pinned, so it stays until it is taken off, or the machine restarts. A newer one
//! takes an older one's place in the same link, and goes on with its counters.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{LpmTrie, Map, MapData, MapInfo, MapType, PerCpuArray, lpm_trie::Key},
};
use lb_common::{
    decap::{COUNTS, Count, MAX_SOURCES, PROGRAM, SOURCES, Source},
    service::mapped,
};

use super::{AttachMode, load, pins};

/// The object that the build put into this binary. Aligned, because the ELF reader reads words.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ballast-decap"));

/// Where the pins are by default, a directory for each interface.
pub const PINS: &str = "/sys/fs/bpf/ballast-decap";

/// Addresses that tunnels may begin at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// Why a text is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no prefix: write an address, or one with its length, such as 192.0.2.0/24")]
pub struct NoPrefix(String);

impl FromStr for Prefix {
    type Err = NoPrefix;

    fn from_str(text: &str) -> Result<Self, NoPrefix> {
        let wrong = || NoPrefix(text.to_owned());
        let (address, len) = text.split_once('/').map_or((text, None), |(a, len)| (a, Some(len)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let len = len.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
        if len <= most { Ok(Self { address, len }) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for Prefix {
    type Error = NoPrefix;

    fn try_from(text: String) -> Result<Self, NoPrefix> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        format!("{}/{}", prefix.address, prefix.len)
    }
}

impl Prefix {
    /// As a key of the map. The bits behind the prefix do not matter to it.
    fn key(self) -> Key<Source> {
        match self.address {
            IpAddr::V4(v4) => {
                Key::new(u32::from(self.len) + 96, Source { address: mapped(v4.octets()) })
            }
            IpAddr::V6(v6) => Key::new(u32::from(self.len), Source { address: v6.octets() }),
        }
    }

    fn of_key(key: &Key<Source>) -> Self {
        let address = std::net::Ipv6Addr::from(key.data().address).to_canonical();
        let len = key.prefix_len();
        match address {
            IpAddr::V4(_) if len >= 96 => Self { address, len: (len - 96) as u8 },
            _ => Self { address, len: len as u8 },
        }
    }
}

/// Every address, IPv4 ones as well.
const ANY: Prefix = Prefix { address: IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), len: 0 };

/// What `ballast decap --status` says.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// The interface.
    pub interface: String,
    /// How the program runs there; none if it does not.
    pub mode: Option<AttachMode>,
    /// Where tunnels may begin; empty for anywhere.
    pub from: Vec<Prefix>,
    /// Packets by what became of them, all CPUs together.
    pub packets: Vec<(String, u64)>,
}

/// Puts the program on an interface, in place of one that is there, without losing a packet. `from` is
/// where tunnels may begin; empty for anywhere.
pub fn attach(directory: &Path, interface: &str, from: &[Prefix]) -> anyhow::Result<AttachMode> {
    let ifindex = ifindex(interface)?;
    if from.len() > MAX_SOURCES as usize {
        bail!("more than {MAX_SOURCES} prefixes do not fit into the kernel's table");
    }
    let directory = directory.join(interface);
    pins::require_bpffs(&directory)?;
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let counts = directory.join(COUNTS);
    if counts.exists() && !fits(&counts)? {
        fs::remove_file(&counts).with_context(|| format!("remove {}", counts.display()))?;
    }
    let mut ebpf = EbpfLoader::new()
        .map_pin_path(COUNTS, &counts)
        .load(OBJECT)
        .map_err(load::explain)
        .context("create the BPF maps")?;
    let sources = fill(&mut ebpf, from)?;
    let program = load::verified(&mut ebpf, PROGRAM)?;
    let mode = load::attach(program, &directory, interface, ifindex)?;
    let pin = directory.join(SOURCES);
    match fs::remove_file(&pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", pin.display()));
        }
        _ => sources.pin(&pin).with_context(|| format!("pin {}", pin.display()))?,
    }
    Ok(mode)
}

/// Takes the program off an interface, with all that is pinned. False if it was not there.
pub fn detach(directory: &Path, interface: &str) -> anyhow::Result<bool> {
    let directory = directory.join(interface);
    let mut was_there = false;
    for (path, _) in links(&directory)? {
        pins::remove_link(&path)?;
        was_there = true;
    }
    for name in [COUNTS, SOURCES] {
        let path = directory.join(name);
        if path.exists() {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    if directory.exists() {
        fs::remove_dir(&directory).with_context(|| format!("remove {}", directory.display()))?;
    }
    Ok(was_there)
}

/// What the program on an interface has done.
pub fn status(directory: &Path, interface: &str) -> anyhow::Result<Status> {
    let directory = directory.join(interface);
    let mode = links(&directory)?.pop().map(|(_, mode)| mode);
    if mode.is_none() {
        let (interface, from, packets) = (interface.to_owned(), Vec::new(), Vec::new());
        return Ok(Status { interface, mode, from, packets });
    }
    let counts: PerCpuArray<_, u64> =
        Map::PerCpuArray(open(&directory, COUNTS)?).try_into().context("open the counters")?;
    let packets = Count::ALL.iter().map(|&count| {
        let sum = counts.get(&(count as u32), 0).context("read the counters")?.iter().sum();
        Ok((count.label().to_owned(), sum))
    });
    let packets = packets.collect::<anyhow::Result<_>>()?;
    let sources: LpmTrie<_, Source, u32> =
        Map::LpmTrie(open(&directory, SOURCES)?).try_into().context("open the prefixes")?;
    let from = sources.keys().map(|key| Ok(Prefix::of_key(&key.context("read the prefixes")?)));
    let mut from = from.collect::<anyhow::Result<Vec<_>>>()?;
    from.retain(|prefix| *prefix != ANY);
    Ok(Status { interface: interface.to_owned(), mode, from, packets })
}

/// Writes the prefixes into the new program's map, and gives the map.
fn fill(ebpf: &mut Ebpf, from: &[Prefix]) -> anyhow::Result<MapData> {
    let any = [ANY];
    let from = if from.is_empty() { &any } else { from };
    {
        let map = ebpf.map_mut(SOURCES).context("find the map of prefixes")?;
        let mut sources: LpmTrie<_, Source, u32> = map.try_into().context("open the prefixes")?;
        for prefix in from {
            sources.insert(&prefix.key(), 1, 0).context("write the prefixes")?;
        }
    }
    match ebpf.take_map(SOURCES).context("find the map of prefixes")? {
        Map::LpmTrie(data) => Ok(data),
        other => bail!("the map of prefixes is of another kind: {other:?}"),
    }
}

/// Whether the counters of an older program can be gone on with.
fn fits(counts: &Path) -> anyhow::Result<bool> {
    let info = MapInfo::from_pin(counts)
        .with_context(|| format!("open the pinned map {}", counts.display()))?;
    Ok(info.map_type().ok() == Some(MapType::PerCpuArray)
        && info.value_size() == size_of::<u64>() as u32
        && info.max_entries() == Count::ALL.len() as u32)
}

/// The pinned links in a directory, with their modes.
fn links(directory: &Path) -> anyhow::Result<Vec<(PathBuf, AttachMode)>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", directory.display())),
    };
    let mut links = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
        links.extend(pins::link_mode(&path).map(|mode| (path, mode)));
    }
    Ok(links)
}

fn open(directory: &Path, name: &str) -> anyhow::Result<MapData> {
    let path = directory.join(name);
    MapData::from_pin(&path).with_context(|| format!("open the pinned map {}", path.display()))
}

fn ifindex(interface: &str) -> anyhow::Result<u32> {
    nix::net::if_::if_nametoindex(interface)
        .with_context(|| format!("find the interface `{interface}` (`ip link` lists them)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_go_into_keys_and_come_back() {
        for (text, len) in
            [("192.0.2.0/24", 120), ("192.0.2.11/32", 128), ("2001:db8::/32", 32), ("::/0", 0)]
        {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(prefix.key().prefix_len(), len);
            assert_eq!(String::from(Prefix::of_key(&prefix.key())), text);
        }
        let host: Prefix = "192.0.2.11".parse().unwrap();
        assert_eq!(String::from(host), "192.0.2.11/32");
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in ["", "eth0", "192.0.2.0/33", "2001:db8::/129", "192.0.2.0/", "192.0.2/24", "/8"]
        {
            assert_eq!(text.parse::<Prefix>(), Err(NoPrefix(text.to_owned())));
        }
    }
}
