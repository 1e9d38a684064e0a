//! The filters of floating addresses, of services and of other hosts' frames: data of the program, so that it reaches
//! them without a look-up.
//!
//! Each loaded program has filters of its own. They are no maps that programs share: the loader writes the
//! data of an object, which are zeros here, when it loads it, and a program in force would see that. So:
//!
//! 1. A program is loaded with filters that nobody reads yet.
//! 2. They are given what is in force, and only then is the program put on an interface.
//! 3. Each write goes to the filters of every program that can be on one.
//!
//! The pins are there for the next daemon and for whoever looks. They are moved to the new program's filters
//! once no interface has the old program any more; until then both hold the same, since nothing is written
//! before [`super::Dataplane::open`] is over. So there is no step after which a daemon that dies leaves an
//! interface with a program that does not know its addresses, or pins that do not say what is in force.

use std::{collections::BTreeSet, fs, os::fd::AsFd as _, path::Path};

use anyhow::{Context as _, anyhow};
use aya::{
    Ebpf, Pod,
    maps::{Map, MapData},
};
use lb_common::{
    hash,
    limits::{MAC_BYTES, PORTS_BYTES, VIP_BYTES},
    names,
};

use super::{batch, grow, pinned};

/// The filters of one loaded program.
#[derive(Debug)]
pub(super) struct Filters {
    vips: MapData,
    ports: MapData,
    macs: MapData,
}

impl Filters {
    /// Those of an object that has just been loaded, where all is zero.
    pub(super) fn take(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let mut take = |name: &str| match ebpf.take_map(names::in_object(name)) {
            Some(Map::Array(data)) => Ok(data),
            _ => Err(anyhow!("find the data {name}")),
        };
        let (vips, ports) = (take(names::VIPS)?, take(names::PORTS)?);
        Ok(Self { vips, ports, macs: take(names::MACS)? })
    }

    /// Those that are pinned; `None` if there are none, or not all yet.
    pub(super) fn pinned(pins: &Path) -> anyhow::Result<Option<Self>> {
        if [names::VIPS, names::PORTS, names::MACS].iter().any(|name| !pins.join(name).exists()) {
            return Ok(None);
        }
        let (vips, ports) = (pinned(pins, names::VIPS)?, pinned(pins, names::PORTS)?);
        Ok(Some(Self { vips, ports, macs: pinned(pins, names::MACS)? }))
    }

    /// Writes here what others hold.
    pub(super) fn copy(&self, from: &Self) -> anyhow::Result<()> {
        copy::<VIP_BYTES>(&from.vips, &self.vips).context("copy VIPS")?;
        copy::<PORTS_BYTES>(&from.ports, &self.ports).context("copy PORTS")?;
        copy::<MAC_BYTES>(&from.macs, &self.macs).context("copy MACS")
    }

    /// Pins them, in place of those that are pinned; each in one step.
    pub(super) fn pin(&self, pins: &Path) -> anyhow::Result<()> {
        for (name, map) in
            [(names::VIPS, &self.vips), (names::PORTS, &self.ports), (names::MACS, &self.macs)]
        {
            let (new, path) = (grow::path(pins, name), pins.join(name));
            map.pin(&new).with_context(|| format!("pin {}", new.display()))?;
            fs::rename(&new, &path).with_context(|| format!("replace {}", path.display()))?;
        }
        Ok(())
    }

    /// Writes the filter of floating addresses.
    pub(super) fn set_vips(&self, bytes: &[u8]) -> anyhow::Result<()> {
        set::<VIP_BYTES>(&self.vips, bytes)
    }

    /// Writes the filter of services.
    pub(super) fn set_ports(&self, bytes: &[u8]) -> anyhow::Result<()> {
        set::<PORTS_BYTES>(&self.ports, bytes)
    }

    /// Writes the filter of other hosts' frames, by the MAC addresses of this node. Without any, every frame
    /// counts as this node's.
    pub(super) fn set_macs(&self, macs: &BTreeSet<[u8; 6]>) -> anyhow::Result<()> {
        let mut bytes = vec![u8::from(!macs.is_empty()); MAC_BYTES];
        for [.., e, f] in macs {
            bytes[hash::mac_place(u16::from_ne_bytes([*e, *f])) as usize] = 0;
        }
        set::<MAC_BYTES>(&self.macs, &bytes)
    }
}

fn copy<const N: usize>(from: &MapData, to: &MapData) -> anyhow::Result<()>
where
    [u8; N]: Pod,
{
    let held = batch::read_array::<[u8; N]>(from.fd().as_fd(), 0, 1)?;
    set::<N>(to, held.as_flattened())
}

/// Writes a filter as a whole. A byte that stays as it is does not change in between.
fn set<const N: usize>(map: &MapData, bytes: &[u8]) -> anyhow::Result<()>
where
    [u8; N]: Pod,
{
    let (filters, _) = bytes.as_chunks::<N>();
    anyhow::ensure!(bytes.len() == N, "the filter has {} bytes, not {N}", bytes.len());
    Ok(batch::update_array(map.fd().as_fd(), 0, filters)?)
}
