//! What kind of reset a socket of this node got, noted by a filter on the socket.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use anyhow::Context as _;
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
    programs::SocketFilter,
};
use lb_common::resets::{ACKNOWLEDGING, BARE, MAP, PROGRAM};

use super::load;
use crate::proxy::{Reset, Resets};

/// The object that the build put into this binary. Aligned, because the ELF reader reads words.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ballast-resets"));

/// The filter, loaded, and what it has noted.
#[derive(Debug)]
pub struct Noted {
    filter: aya::programs::ProgramFd,
    map: HashMap<MapData, u64, u32>,
    /// What belongs to both.
    _object: Ebpf,
}

impl Noted {
    /// Loads the filter. Nothing of it stays when this process ends.
    pub fn load() -> anyhow::Result<Self> {
        let mut object =
            Ebpf::load(OBJECT).map_err(load::explain).context("create the map of resets")?;
        let map = object.take_map(MAP).context("the object has no map of resets")?;
        let map = HashMap::try_from(map).context("read the map of resets")?;
        let program = object.program_mut(PROGRAM).context("the object has no filter")?;
        let program: &mut SocketFilter = program.try_into().context("use the filter")?;
        program.load().context("load the filter of resets")?;
        let filter = program.fd().context("hold the filter")?;
        let filter = filter.try_clone().context("hold the filter")?;
        Ok(Self { filter, map, _object: object })
    }
}

impl Resets for Noted {
    fn watch(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let filter = self.filter.as_fd().as_raw_fd();
        // SAFETY: both descriptors are open, and the kernel reads no more than the number it is given.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_BPF,
                (&raw const filter).cast(),
                size_of_val(&filter) as libc::socklen_t,
            )
        };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn seen(&self, socket: BorrowedFd<'_>) -> Option<Reset> {
        let cookie = cookie(socket).ok()?;
        match self.map.get(&cookie, 0).ok()? {
            kinds if kinds & ACKNOWLEDGING != 0 => Some(Reset::Acknowledging),
            kinds if kinds & BARE != 0 => Some(Reset::Bare),
            _ => None,
        }
    }
}

/// The number that a socket has for as long as the system runs (`SO_COOKIE`).
fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes no more than `length` bytes.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if got == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
