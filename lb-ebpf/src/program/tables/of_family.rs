//! The state of one family, in BPF maps.

use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_EXIST, BPF_NOEXIST, BPF_RB_NO_WAKEUP};
use lb_common::{
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, HalfOpen4, HalfOpen6},
    news::{Begun4, Begun6, TELL},
};
use lb_ebpf::{
    admit, connect,
    cookie::{Cookie, Question},
    family::{Family, Tuple, V4, V6},
    packet::Packet,
    select,
    tables::{Flows, NotInserted, Scratch, Tables},
};

use super::Maps;
use crate::program::{
    cookie,
    maps::{FLOWS, FLOWS6, HALF_OPEN, HALF_OPEN6, NEWS, SCRATCH, SCRATCH6},
};

/// Tells the other nodes something, if there are any. The daemon looks often enough not to be woken.
#[inline(always)]
fn tell<T>(news: &T) {
    if Maps::<false>.node().flags & TELL != 0 {
        // A full buffer means that the daemon is gone or slow: it looks at all connections then.
        let _ = NEWS.output_untyped::<T>(news, u64::from(BPF_RB_NO_WAKEUP));
    }
}

/// The search for a port, IPv4. A global subprogram: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_port4() -> u32 {
    u32::from(connect::find_port::<V4, Maps>(&Maps))
}

/// The search for a port, IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_port6() -> u32 {
    u32::from(connect::find_port::<V6, Maps>(&Maps))
}

/// One attempt at a port, IPv4. A global subprogram: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_port4(attempt: u32) -> u32 {
    u32::from(connect::take_port::<V4, Maps>(&Maps, attempt))
}

/// One attempt at a port, IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_port6(attempt: u32) -> u32 {
    u32::from(connect::take_port::<V6, Maps>(&Maps, attempt))
}

/// Judges who begins a connection, IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge4(index: u32, flags: u32, rate: u32, burst: u32) -> u32 {
    admit::judge::<V4, Maps>(&Maps, index, flags, rate, burst)
}

/// Judges who begins a connection, IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge6(index: u32, flags: u32, rate: u32, burst: u32) -> u32 {
    admit::judge::<V6, Maps>(&Maps, index, flags, rate, burst)
}

/// One step of the search for another backend, IPv4. A global subprogram, as above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn consider4(step: u32) -> u32 {
    u32::from(select::consider::<V4, Maps>(&Maps, step))
}

/// One step of the search for another backend, IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn consider6(step: u32) -> u32 {
    u32::from(select::consider::<V6, Maps>(&Maps, step))
}

macro_rules! flows {
    (
        $family:ty,
        $key:ty,
        $entry:ty,
        $half:ty,
        $begun:ty,
        $flows:ident,
        $half_open:ident,
        $scratch:ident,
        $find_port:ident,
        $take_port:ident,
        $judge:ident,
        $consider:ident
    ) => {
        impl<const TRACEABLE: bool> Flows<$family> for Maps<TRACEABLE> {
            #[inline(always)]
            fn flow(&self, key: &$key) -> Option<&mut $entry> {
                // SAFETY: the kernel keeps an element's memory valid while the program runs. It may
                // be given to another flow meanwhile; then this packet is forwarded as that one, or
                // stamps it: harmless and rarer than a lost packet.
                $flows.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
            }

            #[inline(always)]
            fn insert_flow(&self, key: &$key, entry: &$entry) -> Result<(), NotInserted> {
                $flows.insert(key, entry, u64::from(BPF_NOEXIST)).map_err(|_| NotInserted)
            }

            #[inline(always)]
            fn remove_flow(&self, key: &$key) -> bool {
                $flows.remove(key).is_ok()
            }

            #[inline(always)]
            fn half_open(&self, key: &$key) -> Option<&mut $half> {
                // SAFETY: as above.
                $half_open.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
            }

            #[inline(always)]
            fn insert_half_open(&self, key: &$key, entry: &$half) -> Result<(), NotInserted> {
                $half_open.insert(key, entry, u64::from(BPF_NOEXIST)).map_err(|_| NotInserted)
            }

            #[inline(always)]
            fn replace_half_open(&self, key: &$key, entry: &$half) -> Result<(), NotInserted> {
                $half_open.insert(key, entry, u64::from(BPF_EXIST)).map_err(|_| NotInserted)
            }

            #[inline(always)]
            fn remove_half_open(&self, key: &$key) -> bool {
                $half_open.remove(key).is_ok()
            }

            #[inline(always)]
            fn scratch(&self) -> Option<&mut Scratch<$family>> {
                // SAFETY: this CPU's own element; the program is not entered again before it ends.
                $scratch.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
            }

            #[inline(always)]
            fn tell_begun(&self) {
                const {
                    assert!(offset_of!(Scratch<$family>, client) == offset_of!($begun, client));
                    assert!(offset_of!(Scratch<$family>, server) == offset_of!($begun, server));
                    assert!(offset_of!(Scratch<$family>, entry) == offset_of!($begun, entry));
                }
                if let Some(scratch) = Flows::<$family>::scratch(self) {
                    let start: *const Scratch<$family> = scratch;
                    // SAFETY: the scratch begins with the fields of the record (asserted above), and is
                    // aligned as its entry, which the record's alignment comes from too.
                    tell::<$begun>(unsafe { &*start.cast() });
                }
            }

            #[inline(always)]
            fn tell_ended(&self, server: &$key) {
                tell::<$key>(server);
            }

            #[inline(always)]
            fn cookie(
                &self,
                packet: &Packet,
                tuple: &Tuple<<$family as Family>::Address>,
                question: &Question<$family>,
            ) -> Option<Cookie> {
                cookie::ask(packet, tuple, question)
            }

            #[inline(always)]
            fn find_port(&self) -> bool {
                $find_port() != 0
            }

            #[inline(always)]
            fn take_port(&self, attempt: u32) -> bool {
                $take_port(attempt) != 0
            }

            #[inline(always)]
            fn judge(&self, index: u32, flags: u32, rate: u32, burst: u32) -> u32 {
                $judge(index, flags, rate, burst)
            }

            #[inline(always)]
            fn consider(&self, step: u32) -> bool {
                $consider(step) != 0
            }
        }
    };
}

flows!(
    V4, FlowKey4, FlowEntry4, HalfOpen4, Begun4, FLOWS, HALF_OPEN, SCRATCH, find_port4, take_port4,
    judge4, consider4
);
flows!(
    V6, FlowKey6, FlowEntry6, HalfOpen6, Begun6, FLOWS6, HALF_OPEN6, SCRATCH6, find_port6,
    take_port6, judge6, consider6
);
