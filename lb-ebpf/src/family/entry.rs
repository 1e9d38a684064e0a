//! Keys and values of the flow tables, of either family.

use lb_common::{
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, HalfOpen4, HalfOpen6, Syn, state},
    service::ServiceKey,
};

use super::{Address, Family, Ports, Tuple, V4, V6, address::Octets};
use crate::{
    checksum::{Sum, TTL_DECREMENT},
    packet::{Macs, load64},
    tables::{Entry, HalfOpen},
};

/// The link that a client's packets come by, and replies go back by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientSide {
    /// The MAC addresses of the client's frames: ours, and the client's or its router's.
    pub macs: Macs,
    /// The interface.
    pub ifindex: u32,
}

impl ClientSide {
    /// That of an entry of the client's direction.
    #[inline(always)]
    pub fn of_client<F: Family>(entry: &F::Entry) -> Self {
        Self { macs: entry.macs(), ifindex: entry.client_ifindex() }
    }
}

/// A flow key in words: written field by field, the compiler makes bytes of it, and the kernel, which
/// reads words, waits until the last byte has come through.
#[repr(C)]
pub(super) struct KeyWords<A> {
    pub(super) src: A,
    pub(super) dst: A,
    pub(super) ports: Ports,
    /// The protocol, and zeros.
    pub(super) last: u32,
}

#[inline(always)]
pub(super) const fn last_word(protocol: u8) -> u32 {
    u32::from_ne_bytes([protocol, 0, 0, 0])
}

impl From<KeyWords<u32>> for FlowKey4 {
    #[inline(always)]
    fn from(words: KeyWords<u32>) -> Self {
        // SAFETY: both are the same fields in the same order, without padding, and any bytes are valid.
        unsafe { core::mem::transmute(words) }
    }
}

impl From<KeyWords<[u64; 2]>> for FlowKey6 {
    #[inline(always)]
    fn from(words: KeyWords<[u64; 2]>) -> Self {
        // SAFETY: as above.
        unsafe { core::mem::transmute(words) }
    }
}

/// A service's key in words, for the same reason.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ServiceWords {
    address: [u64; 2],
    /// Port in host byte order, protocol, and zero.
    last: u32,
    /// No part of the key.
    unused: u32,
}

impl ServiceWords {
    /// The service that packets of the tuple are for.
    #[inline(always)]
    pub fn new<A: Address>(tuple: &Tuple<A>, protocol: u8) -> Self {
        let port = u16::from_be_bytes(tuple.ports.dst());
        let [a, b] = port.to_ne_bytes();
        let last = u32::from_ne_bytes([a, b, protocol, 0]);
        Self { address: tuple.dst.mapped_words(), last, unused: 0 }
    }

    /// The key itself.
    #[inline(always)]
    pub fn key(&self) -> &ServiceKey {
        const { assert!(size_of::<ServiceKey>() == core::mem::offset_of!(Self, unused)) }
        let start: *const Self = self;
        // SAFETY: the first fields are those of the key in the same order, and any bytes are valid.
        unsafe { &*start.cast() }
    }
}

macro_rules! entry {
    ($entry:ty, $family:ty, $ip_delta:expr) => {
        impl Entry<$family> for $entry {
            #[inline(always)]
            fn new(
                from: Tuple<<$family as Family>::Address>,
                to: Tuple<<$family as Family>::Address>,
                backend: u32,
                state: u32,
            ) -> Self {
                let addresses = to.src.sum().add(to.dst.sum());
                let delta = addresses.sub(from.src.sum().add(from.dst.sum()));
                let ip_delta: fn(Sum) -> u16 = $ip_delta;
                Self {
                    new_src: to.src.octets(),
                    new_dst: to.dst.octets(),
                    new_src_port: to.ports.src(),
                    new_dst_port: to.ports.dst(),
                    ip_delta: ip_delta(delta),
                    l4_delta: to.sum().sub(from.sum()).fold(),
                    backend,
                    state,
                    last_seen: 0,
                    bytes: 0,
                    packets: 0,
                    ack: 0,
                    dst_mac: [0; 6],
                    src_mac: [0; 6],
                    client_ifindex: 0,
                }
            }

            #[inline(always)]
            fn copy(&mut self, other: &Self, state: u32) {
                const WORDS: usize = size_of::<$entry>() / 8;
                const { assert!(size_of::<$entry>() % 8 == 0 && align_of::<$entry>() == 8) }
                let (to, from): (*mut Self, *const Self) = (self, other);
                let (to, from) = (to.cast::<u64>(), from.cast::<u64>());
                let mut word = 0;
                while word < WORDS {
                    // SAFETY: the words of two valid entries. Volatile, so that they stay stores of
                    // their own.
                    unsafe { to.add(word).write_volatile(from.add(word).read()) };
                    word += 1;
                }
                self.state = state;
            }

            #[inline(always)]
            fn rewritten(&self) -> Tuple<<$family as Family>::Address> {
                Tuple {
                    src: Octets::from_octets(&self.new_src),
                    dst: Octets::from_octets(&self.new_dst),
                    ports: Ports::new(self.new_src_port, self.new_dst_port),
                }
            }

            #[inline(always)]
            fn ports(&self) -> Ports {
                Ports::new(self.new_src_port, self.new_dst_port)
            }

            #[inline(always)]
            fn l4_delta(&self) -> u16 {
                self.l4_delta
            }

            #[inline(always)]
            fn backend(&self) -> u32 {
                self.backend
            }

            #[inline(always)]
            fn backend_at(&self) -> &u32 {
                &self.backend
            }

            #[inline(always)]
            fn state(&self) -> u32 {
                self.state
            }

            #[inline(always)]
            fn set_backend(&mut self, backend: u32) {
                self.backend = backend;
            }

            #[inline(always)]
            fn backend_and_state(&mut self) -> *mut u64 {
                const {
                    assert!(core::mem::offset_of!($entry, backend) % 8 == 0);
                    assert!(
                        core::mem::offset_of!($entry, state)
                            == core::mem::offset_of!($entry, backend) + 4
                    );
                }
                let entry: *mut Self = self;
                entry.cast::<u8>().wrapping_add(core::mem::offset_of!($entry, backend)).cast()
            }

            #[inline(always)]
            fn seen(&mut self, ticks: u64, bytes: u64) {
                self.last_seen = ticks;
                self.packets = self.packets.wrapping_add(1);
                self.bytes += bytes;
            }

            #[inline(always)]
            fn ack(&self) -> u32 {
                self.ack
            }

            #[inline(always)]
            fn set_ack(&mut self, ack: u32) {
                self.ack = ack;
            }

            #[inline(always)]
            fn macs(&self) -> Macs {
                const {
                    assert!(
                        core::mem::offset_of!($entry, src_mac)
                            == core::mem::offset_of!($entry, dst_mac) + 6
                    );
                }
                let start: *const Self = self;
                let offset = core::mem::offset_of!($entry, dst_mac);
                // SAFETY: both addresses, which lie side by side (asserted above).
                Macs::load(unsafe { &*start.byte_add(offset).cast() })
            }

            #[inline(always)]
            fn upper_macs(&self) -> u64 {
                let start: *const Self = self;
                let offset = core::mem::offset_of!($entry, src_mac) - 2;
                // SAFETY: the end of one address and the other, as in `macs`.
                load64(unsafe { &*start.byte_add(offset).cast() })
            }

            #[inline(always)]
            fn client_side(&self) -> ClientSide {
                let macs = Entry::<$family>::macs(self);
                let returns = self.state & state::RETURN != 0;
                ClientSide {
                    macs: if returns { macs.reversed() } else { macs },
                    ifindex: self.client_ifindex,
                }
            }

            #[inline(always)]
            fn client_ifindex(&self) -> u32 {
                self.client_ifindex
            }

            #[inline(always)]
            fn set_client_side(&mut self, side: ClientSide) {
                let returns = self.state & state::RETURN != 0;
                let macs = if returns { side.macs.reversed() } else { side.macs };
                let start: *mut Self = self;
                let offset = core::mem::offset_of!($entry, dst_mac);
                // SAFETY: both addresses, as in `macs`.
                macs.store(unsafe { &mut *start.byte_add(offset).cast() });
                self.client_ifindex = side.ifindex;
            }
        }
    };
}

entry!(FlowEntry4, V4, |addresses| addresses.add16(TTL_DECREMENT).fold());
entry!(FlowEntry6, V6, |_| 0);

macro_rules! half_open {
    ($half_open:ty, $family:ty) => {
        impl HalfOpen<$family> for $half_open {
            #[inline(always)]
            fn flow(&self) -> &<$family as Family>::Entry {
                &self.flow
            }

            #[inline(always)]
            fn flow_mut(&mut self) -> &mut <$family as Family>::Entry {
                &mut self.flow
            }

            #[inline(always)]
            fn syn(&self) -> &Syn {
                &self.syn
            }

            #[inline(always)]
            fn syn_mut(&mut self) -> &mut Syn {
                &mut self.syn
            }
        }
    };
}

half_open!(HalfOpen4, V4);
half_open!(HalfOpen6, V6);
