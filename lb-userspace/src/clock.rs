//! The one place that asks the time.

use std::time::Duration;

/// Nanoseconds of `CLOCK_MONOTONIC_COARSE`: the clock that ages of flows are counted by.
pub fn monotonic_coarse_ns() -> u64 {
    clock_ns(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
}

/// Length of the kernel's ticks, nanoseconds: the resolution of its coarse clocks.
pub fn tick_ns() -> u64 {
    let clock = nix::time::ClockId::CLOCK_MONOTONIC_COARSE;
    // It exists on every Linux, so the call cannot fail.
    let tick = nix::time::clock_getres(clock).expect("clock_getres of a standard clock");
    tick.tv_sec() as u64 * 1_000_000_000 + tick.tv_nsec() as u64
}

/// A point on the monotonic clock, for timers and ages.
pub fn monotonic() -> Duration {
    Duration::from_nanos(clock_ns(nix::time::ClockId::CLOCK_MONOTONIC))
}

/// The point on the monotonic clock at which the wall clock showed `wall`, nanoseconds since 1970: what
/// the kernel stamps packets with. If the wall clock has been set since, it is wrong by as much.
pub fn from_wall(wall_ns: u64) -> Duration {
    let age = clock_ns(nix::time::ClockId::CLOCK_REALTIME).saturating_sub(wall_ns);
    monotonic().saturating_sub(Duration::from_nanos(age))
}

/// The runtime's clock, which its timers run by. A test can pause it.
pub fn timer() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// Wall-clock time, for people.
pub fn wall() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

fn clock_ns(clock: nix::time::ClockId) -> u64 {
    // The clocks named here exist on every Linux, so the call cannot fail.
    let time = nix::time::clock_gettime(clock).expect("clock_gettime of a standard clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}
