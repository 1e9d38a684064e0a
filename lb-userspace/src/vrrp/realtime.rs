//! Real-time priority for a thread.

use std::io;

/// Above ordinary processes, far below the kernel's own threads.
const PRIORITY: i32 = 10;

/// Gives this thread real-time priority (`SCHED_FIFO`), and none to what it starts. Needs `CAP_SYS_NICE`,
/// or a limit that allows it (`LimitRTPRIO=` of systemd).
pub(super) fn take() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: 0 is this thread, and the parameters live through the call.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
