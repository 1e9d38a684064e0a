//! The capabilities that the README names are enough.

use std::{io, thread};

use anyhow::{Context as _, Result, ensure};

use crate::pins::Pins;

/// `CAP_NET_ADMIN`, `CAP_NET_RAW`, `CAP_PERFMON` and `CAP_BPF` (`linux/capability.h`).
const NAMED: [u32; 4] = [12, 13, 38, 39];

/// Takes all other capabilities from this thread.
fn keep(capabilities: &[u32]) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    /// The one with 64 bits of each set, in two words.
    const VERSION: u32 = 0x2008_0522;
    let mut data = [Data::default(); 2];
    for number in capabilities {
        let word = &mut data[*number as usize / 32];
        word.effective |= 1 << (number % 32);
        word.permitted |= 1 << (number % 32);
    }
    let header = Header { version: VERSION, pid: 0 };
    // SAFETY: both are as the kernel wants them for this version.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Opens twice: the second time finds the pins of the first.
fn open_with(capabilities: &[u32]) -> Result<()> {
    let pins = Pins::new("privilege");
    let open = || {
        keep(capabilities).context("give capabilities up")?;
        pins.open()?.counters(&[0], &[0])?;
        ensure!(pins.open().context("open again")?.info()?.adopted);
        Ok(())
    };
    thread::scope(|scope| {
        scope.spawn(open).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn the_named_capabilities_are_enough() -> Result<()> {
    open_with(&NAMED)?;
    let error = open_with(&[]).expect_err("none is too few");
    let text = format!("{error:#}");
    ensure!(text.contains("run as root, or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN"), "{text}");
    Ok(())
}
