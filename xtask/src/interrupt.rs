//! Ctrl-C: noted by the signal handler, asked for between steps.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static PENDING: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    PENDING.store(true, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP are noted and no longer end the process.
pub fn install() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler stores into an atomic and does nothing else, so it may run at any
        // point of any thread.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("handle {signal}"))?;
    }
    Ok(())
}

/// Whether the user wants to stop.
pub fn pending() -> bool {
    PENDING.load(Ordering::Relaxed)
}

/// An error as soon as the user wants to stop.
pub fn check() -> Result<()> {
    if pending() {
        bail!("interrupted");
    }
    Ok(())
}
