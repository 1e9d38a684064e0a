//! Larger maps in place of those that the configuration has outgrown, at a start.
//!
//! The new map is created and pinned beside the old one, and the new program is loaded with it. Then
//! it is given what the old one holds, and takes over its pin in one step; then the new program takes
//! over the interfaces. Backends keep their identifiers, so flows, whose tables stay as they are, go
//! on. Until the last step the old program works with the old maps. What it counts between the copy
//! and its end is lost: packets of some milliseconds in the statistics, and connections opened or
//! closed in `ACTIVE`, which the next sweeps correct.
//!
//! A daemon that dies on the way leaves the old pins, or new ones that hold the same.

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use aya::maps::{MapData, MapInfo, MapType};
use lb_common::names;

use super::batch;

/// Where a map is pinned that is to replace another. A BPF file system allows no dot in a name.
pub(super) fn path(pins: &Path, name: &str) -> PathBuf {
    pins.join(format!("{name}_larger"))
}

/// Removes what a daemon that died on the way has left.
pub(super) fn remove_leftovers(pins: &Path) -> anyhow::Result<()> {
    for name in names::PINNED {
        let path = path(pins, name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Gives the larger maps what the old ones hold, and their names.
pub(super) fn replace(pins: &Path, outgrown: &[&str]) -> anyhow::Result<()> {
    for name in outgrown {
        let (old, new) = (pins.join(name), path(pins, name));
        copy(&old, &new).with_context(|| format!("copy {name} into a larger map"))?;
        fs::rename(&new, &old).with_context(|| format!("replace {}", old.display()))?;
        tracing::info!(name, "the map has been replaced by a larger one");
    }
    Ok(())
}

fn copy(old: &Path, new: &Path) -> anyhow::Result<()> {
    let info = MapInfo::from_pin(old)?;
    let (from, to) = (MapData::from_pin(old)?, MapData::from_pin(new)?);
    let value_bytes = info.value_size() as usize;
    let value_bytes = if info.map_type()? == MapType::PerCpuArray {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        value_bytes.next_multiple_of(8) * cpus
    } else {
        value_bytes
    };
    let key_bytes = info.key_size() as usize;
    Ok(batch::copy(from.fd().as_fd(), to.fd().as_fd(), key_bytes, value_bytes)?)
}
