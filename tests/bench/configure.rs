//! What user space would write into the maps.

use std::net::IpAddr;

use anyhow::anyhow;
use aya::{
    Ebpf,
    maps::{Array, HashMap, Map},
};
use lb_common::{
    backend::{Backend, DIRECT, FORWARD, GUE, IN_USE, RESOLVED, TUNNEL},
    hash,
    limits::{PORTS_BYTES, VIP_BYTES},
    names,
    service::{Balance, STEERED, Service, ServiceKey, Slot},
};

use crate::{
    fill,
    net::{
        BACKEND_MAC, BACKEND_PORT, BACKENDS as GROUP, DIRECT_PORT, DISTURBED_PORT, GUE_PORT,
        IFINDEX, LEAST_CONN_PORT, LOCAL_MAC, PORT, TUNNEL_PORT, Version,
    },
    packets::Carried,
};

/// Slots of the table of a service of NAT.
const SLOTS: u32 = 4093;

/// Slots of a steered service's table: the largest that there is.
const STEERED_SLOTS: u32 = 65_521;

/// Longest packet that a tunnel takes.
const MAX_PACKET: u16 = 1400;

/// Both versions, with the number of each.
const VERSIONS: [(u32, Version); 2] = [(0, Version::V4), (1, Version::V6)];

/// What distinguishes a group of services and backends: bits of the backends, ports with the method of
/// each, and whether its slots name two backends.
struct Group {
    flags: u16,
    services: &'static [(u16, Balance)],
    disturbed: bool,
}

const GROUPS: [Group; 5] = [
    Group {
        flags: 0,
        services: &[(PORT, Balance::Maglev), (LEAST_CONN_PORT, Balance::LeastConn)],
        disturbed: false,
    },
    steered(TUNNEL, &[(TUNNEL_PORT, Balance::Maglev)], false),
    steered(TUNNEL | GUE, &[(GUE_PORT, Balance::Maglev)], false),
    steered(DIRECT, &[(DIRECT_PORT, Balance::Maglev)], false),
    steered(TUNNEL, &[(DISTURBED_PORT, Balance::Maglev)], true),
];

const fn steered(flags: u16, services: &'static [(u16, Balance)], disturbed: bool) -> Group {
    Group { flags, services, disturbed }
}

/// Backends in all.
pub(crate) const BACKENDS: u32 = 2 * GROUP * GROUPS.len() as u32;

/// More than the number of services.
pub(crate) const SERVICES: u32 = 64;

impl Group {
    /// Slots of a table.
    const fn slots(&self) -> u32 {
        if self.flags == 0 { SLOTS } else { STEERED_SLOTS }
    }

    /// Identifier of the first backend: those of NAT are numbered as [`Version::backend_id`] does.
    const fn first_backend(number: u32, version: u32) -> u32 {
        (2 * number + version) * GROUP
    }
}

/// Writes the configuration.
pub(crate) fn write(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    backends(ebpf)?;
    let mut services: Vec<(ServiceKey, Service)> = vec![];
    let mut table_start = 0;
    for (number, group) in (0..).zip(&GROUPS) {
        for (version_number, version) in VERSIONS {
            let first = Group::first_backend(number, version_number);
            slots(ebpf, table_start, group, first)?;
            for (port, balance) in group.services {
                for carried in [Carried::Tcp(0), Carried::Udp] {
                    let vip = if group.flags == 0 { version.vip() } else { version.steered_vip() };
                    let service = Service {
                        index: services.len() as u32,
                        table_start,
                        table_len: group.slots(),
                        balance: *balance as u32,
                        members_start: table_start,
                        members_len: GROUP,
                        flags: if group.flags == 0 { 0 } else { STEERED },
                        ..Service::ZERO
                    };
                    services.push((key(vip, *port, carried), service));
                }
            }
            table_start += group.slots();
        }
    }
    filters(ebpf, &services)?;
    let mut map: HashMap<_, ServiceKey, Service> =
        HashMap::try_from(map_mut(ebpf, names::SERVICES)?)?;
    for (key, service) in services {
        map.insert(key, service, 0)?;
    }
    Ok(())
}

fn key(vip: IpAddr, port: u16, carried: Carried) -> ServiceKey {
    ServiceKey { address: fill::octets(vip), port, protocol: carried.protocol(), reserved: 0 }
}

fn backends(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    let mut backends: Array<_, Backend> = Array::try_from(map_mut(ebpf, names::BACKENDS)?)?;
    for (group_number, group) in (0..).zip(&GROUPS) {
        for (version_number, version) in VERSIONS {
            for number in 0..GROUP {
                let backend = Backend {
                    address: fill::octets(version.backend(number)),
                    source: fill::octets(version.local()),
                    port: BACKEND_PORT,
                    flags: IN_USE | FORWARD | RESOLVED | group.flags,
                    weight: 1,
                    service: 0,
                    ifindex: IFINDEX,
                    next_hop: BACKEND_MAC,
                    source_mac: LOCAL_MAC,
                    max_packet: MAX_PACKET,
                    patience_ms: 0,
                };
                let id = Group::first_backend(group_number, version_number) + number;
                backends.set(id, backend, 0)?;
            }
        }
    }
    Ok(())
}

fn slots(ebpf: &mut Ebpf, start: u32, group: &Group, first: u32) -> anyhow::Result<()> {
    let mut slots: Array<_, Slot> = Array::try_from(map_mut(ebpf, names::MAGLEV)?)?;
    for number in 0..group.slots() {
        let backend = first + number % GROUP;
        let base = if group.disturbed { first + (number + 1) % GROUP } else { backend };
        slots.set(start + number, Slot { backend, base }, 0)?;
    }
    Ok(())
}

/// The bits of addresses and services.
fn filters(ebpf: &mut Ebpf, services: &[(ServiceKey, Service)]) -> anyhow::Result<()> {
    let mut vips = vec![0; VIP_BYTES];
    let mut ports = vec![0; PORTS_BYTES];
    for (key, service) in services {
        let bit = vip_bit(key.address);
        let place = hash::port_place(bit, key.port.to_be(), key.protocol) as usize;
        ports[place] |= hash::PORT_SERVED;
        if service.flags & STEERED == 0 {
            vips[bit as usize] |= hash::VIP;
        } else {
            vips[bit as usize] |= hash::VIP_STEERED;
            ports[place] |= hash::PORT_STEERED;
        }
    }
    set_filter::<VIP_BYTES>(ebpf, names::VIPS, &vips)?;
    set_filter::<PORTS_BYTES>(ebpf, names::PORTS, &ports)
}

fn set_filter<const N: usize>(ebpf: &mut Ebpf, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let mut map: Array<_, [u8; N]> = Array::try_from(map_mut(ebpf, name)?)?;
    Ok(map.set(0, <&[u8; N]>::try_from(bytes)?, 0)?)
}

fn vip_bit(octets: [u8; 16]) -> u32 {
    hash::vip_place(u16::from_ne_bytes([octets[14], octets[15]]))
}

fn map_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Map> {
    ebpf.map_mut(names::in_object(name)).ok_or_else(|| anyhow!("no map {name}"))
}
