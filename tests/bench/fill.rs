//! Fills the tables with connections as the data path would have made them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd},
};

use anyhow::{Context as _, ensure};
use aya::Pod;
use lb_common::{flow::state, service::mapped};
use lb_ebpf::{
    family::{Address as _, ClientSide, Family, Ports, Tuple},
    packet::Macs,
    tables::Entry as _,
};

use crate::net::{CLIENT_MAC, Connection, IFINDEX, LOCAL_MAC, Version};

/// Entries for each call into the kernel.
const BATCH: u32 = 16_384;

/// Puts both entries of the first `connections` connections of a protocol into a flow table.
pub(crate) fn flows<F>(
    map: BorrowedFd<'_>,
    version: Version,
    protocol: u8,
    connections: u32,
) -> anyhow::Result<()>
where
    F: Family<Key: Pod, Entry: Pod>,
{
    for start in (0..connections).step_by(BATCH as usize / 2) {
        let (mut keys, mut entries) = (Vec::new(), Vec::new());
        for number in start..connections.min(start + BATCH / 2) {
            let connection = Connection::new(version, number);
            let from_client = tuple::<F>(connection.client, connection.listen);
            let to_backend = tuple::<F>(connection.nat, connection.backend);
            let [[a, b, c, d, e, f], [g, h, i, j, k, l]] = [LOCAL_MAC, CLIENT_MAC];
            let macs = [a, b, c, d, e, f, g, h, i, j, k, l];
            for (from, to, bits) in [
                (from_client, to_backend, 0),
                (to_backend.reversed(), from_client.reversed(), state::RETURN),
            ] {
                let mut entry = F::Entry::new(from, to, connection.backend_id, bits);
                entry.set_client_side(ClientSide { macs: Macs::load(&macs), ifindex: IFINDEX });
                keys.push(F::key(from, protocol));
                entries.push(entry);
            }
        }
        update(map, &keys, &entries).context("write a batch of flows")?;
    }
    Ok(())
}

fn tuple<F: Family>(src: SocketAddr, dst: SocketAddr) -> Tuple<F::Address> {
    Tuple {
        src: F::Address::from_mapped(&octets(src.ip())),
        dst: F::Address::from_mapped(&octets(dst.ip())),
        ports: Ports::new(src.port().to_be_bytes(), dst.port().to_be_bytes()),
    }
}

/// An address as in `SERVICES` and `BACKENDS`.
pub(crate) fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// `BPF_MAP_UPDATE_BATCH` (Linux 5.6), which aya does not offer: a million flows, one call for each,
/// would take most of the benchmark's time.
fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> anyhow::Result<()> {
    #[repr(C)]
    struct Attributes {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: i32,
        elem_flags: u64,
        flags: u64,
    }
    const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
    ensure!(keys.len() == values.len(), "keys and values differ in number");
    let mut batch = Attributes {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: map.as_raw_fd(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the pointers are to `count` keys and values, which outlive the call; the kernel takes a
    // structure that is shorter than its own to end in zeros.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_BATCH, &raw mut batch, size_of::<Attributes>())
    };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("BPF_MAP_UPDATE_BATCH");
    }
    Ok(())
}
