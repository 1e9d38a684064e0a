//! A program that does nothing, on the switch's side of a balancer's link.
//!
//! A veth delivers what its peer sends by `XDP_TX` only while it has an XDP program of its own:
//! the frames arrive on a ring that is polled for the program's sake. The program is two
//! instructions, so it is written here in the kernel's encoding instead of being compiled.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};

use super::netns;
use crate::shell;

/// `r0 = XDP_PASS; exit`, as `struct bpf_insn`: opcode, registers, 16 bits offset, 32 bits value.
const PROGRAM: [u64; 2] = [instruction(0xb7, 2), instruction(0x95, 0)];

const fn instruction(opcode: u8, value: i32) -> u64 {
    let value = value.to_ne_bytes();
    u64::from_ne_bytes([opcode, 0, 0, 0, value[0], value[1], value[2], value[3]])
}

/// Puts the program on an interface in a namespace. It stays until the interface goes.
///
/// `pin` is a path on a BPF file system that is used in between, because `ip` takes no descriptor.
pub(super) fn attach(namespace: &str, interfaces: &[String], pin: &Path) -> Result<()> {
    let program = load().context("load the XDP program for the switch")?;
    // A pin can be left only by a process that was killed right here.
    let _ = fs::remove_file(pin);
    pin_at(&program, pin).with_context(|| format!("pin a program at {}", pin.display()))?;
    let attached = interfaces.iter().try_for_each(|interface| {
        let mut command = netns::command(namespace, "ip");
        command.args(["link", "set", "dev", interface, "xdpdrv", "pinned"]).arg(pin);
        shell::output(&mut command).map(drop)
    });
    fs::remove_file(pin).with_context(|| format!("remove {}", pin.display()))?;
    attached
}

/// Switches off the offloads that keep the balancer from seeing what would be on a wire: sums that
/// are left to hardware, and VLAN tags beside the packet.
pub(super) fn plain_frames(namespace: &str, interface: &str) -> Result<()> {
    let mut command = netns::command(namespace, "ethtool");
    command.args(["-K", interface, "tx", "off", "txvlan", "off"]);
    shell::output(&mut command).map(drop)
}

/// Head of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest as zero.
#[repr(C)]
struct LoadAttr {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
}

/// Head of `union bpf_attr` for `BPF_OBJ_PIN`.
#[repr(C)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

fn load() -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_XDP: u32 = 6;
    let attr = LoadAttr {
        kind: BPF_PROG_TYPE_XDP,
        instruction_count: PROGRAM.len() as u32,
        instructions: PROGRAM.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    let fd = bpf(BPF_PROG_LOAD, &attr)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pin_at(program: &OwnedFd, path: &Path) -> io::Result<()> {
    const BPF_OBJ_PIN: libc::c_int = 6;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = PinAttr { path: path.as_ptr() as u64, fd: program.as_raw_fd() as u32, flags: 0 };
    bpf(BPF_OBJ_PIN, &attr).map(drop)
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<i32> {
    // SAFETY: `attr` is a `repr(C)` head of `union bpf_attr` of the size that is passed; the
    // addresses in it are of values that the callers keep alive; the kernel writes into none.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_returns_pass() {
        let bytes: Vec<u8> = PROGRAM.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes, [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0]);
    }
}
