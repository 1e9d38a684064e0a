//! `BPF_PROG_TEST_RUN` of a packet that comes in by an interface, which aya offers for none.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

const BPF_PROG_TEST_RUN: libc::c_long = 10;

const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// Room for the packet that comes out: any SYN fits.
const ROOM: usize = 256;

/// The `test` member of `union bpf_attr` (`linux/bpf.h`).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// `struct xdp_md` (`linux/bpf.h`).
#[repr(C)]
#[derive(Default)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// What the program said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Out by the interface that it came in by.
    Transmit,
    /// Out by another.
    Redirect,
    /// Neither.
    Other,
}

/// What became of a packet.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) action: Action,
    pub(super) frame: Vec<u8>,
}

/// Runs a frame as if it had come in by the interface, which is one of this thread's network namespace; 0 is
/// `lo`.
pub(super) fn run(program: BorrowedFd<'_>, ifindex: u32, frame: &[u8]) -> io::Result<Ran> {
    let mut out = vec![0; ROOM];
    let context =
        Context { data_end: frame.len() as u32, ingress_ifindex: ifindex, ..Context::default() };
    let mut attributes = Attributes {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_size_out: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        ctx_size_in: size_of::<Context>() as u32,
        ctx_in: &raw const context as u64,
        ..Attributes::default()
    };
    // SAFETY: the attributes are those of the command, and point to memory of the lengths given that
    // lives during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attributes,
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    out.truncate(attributes.data_size_out as usize);
    let action = match attributes.retval {
        XDP_TX => Action::Transmit,
        XDP_REDIRECT => Action::Redirect,
        _ => Action::Other,
    };
    Ok(Ran { action, frame: out })
}
