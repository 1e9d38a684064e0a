//! The `[start, end)` cursor: the only pointer arithmetic of the data path.

use lb_common::hash;
use network_types::{
    icmp::Icmpv4Hdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::checksum::Sum;

/// A header that can be laid over bytes of a packet.
///
/// # Safety
///
/// `repr(C)`, alignment 1, and every bit pattern is valid.
pub unsafe trait Header: Copy {}

/// Ethernet II header. (network-types' own has alignment 2.)
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EthernetHdr {
    /// Destination MAC address.
    pub dst: [u8; 6],
    /// Source MAC address.
    pub src: [u8; 6],
    /// Type of what follows.
    pub ether_type: [u8; 2],
}

impl EthernetHdr {
    /// Place of the destination in `MACS`.
    #[inline(always)]
    pub fn mac_place(&self) -> u32 {
        let [_, _, _, _, last @ ..] = &self.dst;
        hash::mac_place(load16(last))
    }

    /// Whether it is for all hosts of a group (IEEE 802).
    #[inline(always)]
    pub fn is_for_group(&self) -> bool {
        self.dst[0] & 1 != 0
    }

    /// Both MAC addresses.
    #[inline(always)]
    pub fn macs(&self) -> &[u8; 12] {
        // SAFETY: they are the first twelve bytes (`repr(C)`).
        unsafe { &*(&raw const *self).cast() }
    }

    /// All but the first four bytes of both MAC addresses.
    #[inline(always)]
    pub fn upper_macs(&self) -> u64 {
        let [_, _, _, _, upper @ ..] = self.macs();
        load64(upper)
    }

    /// Both MAC addresses.
    #[inline(always)]
    pub fn macs_mut(&mut self) -> &mut [u8; 12] {
        // SAFETY: they are the first twelve bytes (`repr(C)`).
        unsafe { &mut *(&raw mut *self).cast() }
    }
}

/// IEEE 802.1Q tag: what follows the type `0x8100` or `0x88a8`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct VlanTag {
    /// Priority and VLAN identifier.
    pub tci: [u8; 2],
    /// Type of what follows.
    pub ether_type: [u8; 2],
}

/// TCP header without options (RFC 9293, section 3.1). The flags are one byte here, so that a packet's
/// kind is one load and one mask.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TcpHdr {
    /// Source and destination port.
    pub ports: [u8; 4],
    /// Sequence number.
    pub seq: [u8; 4],
    /// Acknowledgement number.
    pub ack: [u8; 4],
    /// Length of the header in 32-bit words, in the upper half.
    pub data_offset: u8,
    /// Control bits, see [`tcp_flags`].
    pub flags: u8,
    /// Window.
    pub window: [u8; 2],
    /// Checksum.
    pub check: [u8; 2],
    /// Urgent pointer.
    pub urgent: [u8; 2],
}

/// Control bits of TCP.
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 2;
    /// Reset the connection.
    pub const RST: u8 = 4;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 16;
}

impl TcpHdr {
    /// The same bytes as the header of a UDP datagram, which is shorter.
    #[inline(always)]
    pub fn as_udp(&mut self) -> &mut UdpHdr {
        const { assert!(size_of::<UdpHdr>() <= size_of::<Self>()) }
        // SAFETY: both are bytes, of which the other has no more (asserted above).
        unsafe { &mut *(&raw mut *self).cast() }
    }
}

/// UDP header (RFC 768).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UdpHdr {
    /// Source and destination port.
    pub ports: [u8; 4],
    /// Length of header and data.
    pub len: [u8; 2],
    /// Checksum; 0 for none (IPv4 only).
    pub check: [u8; 2],
}

/// Four bytes of TCP options.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Word(pub [u8; 4]);

/// The headers of a plain packet, which lie one behind the other: checked at once, and reached from
/// one address.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Frame<I, L> {
    /// Without VLAN tags.
    pub ethernet: EthernetHdr,
    /// Without options.
    pub ip: I,
    /// TCP or UDP.
    pub l4: L,
}

/// The Ethernet and IP header of a frame without VLAN tags.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Outer<I> {
    /// Without VLAN tags.
    pub ethernet: EthernetHdr,
    /// Without options.
    pub ip: I,
}

/// So many words of 4 bytes: what is read or written as they lie.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Words<const N: usize>(pub [[u8; 4]; N]);

/// The start of a packet, as an ICMP error quotes it.
pub trait Quote: Header {
    /// Its ones' complement sum.
    fn sum(&self) -> Sum;
}

impl<const N: usize> Quote for Words<N> {
    #[inline(always)]
    fn sum(&self) -> Sum {
        let mut sum = Sum::ZERO;
        let mut index = 0;
        while index < N {
            sum = sum.add32(load32(&self.0[index]));
            index += 1;
        }
        sum
    }
}

// SAFETY: repr(C), of headers, which have alignment 1 and take any bit patterns.
unsafe impl<I: Header> Header for Outer<I> {}
// SAFETY: repr(C), byte arrays only.
unsafe impl<const N: usize> Header for Words<N> {}
// SAFETY: bytes.
unsafe impl Header for [u8; 2] {}
// SAFETY: repr(C), of headers, which have alignment 1 and take any bit patterns.
unsafe impl<I: Header, L: Header> Header for Frame<I, L> {}
// SAFETY: repr(C), byte arrays only.
unsafe impl Header for EthernetHdr {}
// SAFETY: as above.
unsafe impl Header for VlanTag {}
// SAFETY: as above.
unsafe impl Header for Word {}
// SAFETY: repr(C), bytes and byte arrays only.
unsafe impl Header for Ipv4Hdr {}
// SAFETY: as above.
unsafe impl Header for Ipv6Hdr {}
// SAFETY: as above.
unsafe impl Header for TcpHdr {}
// SAFETY: as above.
unsafe impl Header for UdpHdr {}
// SAFETY: as above.
unsafe impl Header for Icmpv4Hdr {}

/// The packet ends before the header that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;

/// A frame in memory: from its Ethernet header to its last byte.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    start: usize,
    end: usize,
    /// Interface that it came in by.
    pub ingress_ifindex: u32,
    /// The kernel's context for it, as a number; 0 on the host.
    pub context: usize,
}

impl Packet {
    /// A frame between two addresses.
    ///
    /// # Safety
    ///
    /// `[start, end)` is readable and writable, and nothing else uses it, for as long as the value
    /// or any header taken from it is used.
    #[inline(always)]
    pub const unsafe fn new(start: usize, end: usize, ingress_ifindex: u32) -> Self {
        Self { start, end, ingress_ifindex, context: 0 }
    }

    /// The same with the kernel's context.
    #[inline(always)]
    #[must_use]
    pub const fn within(self, context: usize) -> Self {
        Self { context, ..self }
    }

    /// Length in bytes.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether it has no bytes at all.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// The header at `offset`.
    ///
    /// Two headers that do not overlap may be held at once; that is what makes a packet's rewriting
    /// readable. Callers take each layer's header once.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the packet is a region of memory, not a value")]
    pub fn header<H: Header>(&self, offset: usize) -> Result<&mut H, Truncated> {
        const { assert!(align_of::<H>() == 1 && size_of::<H>() > 1) }
        let at = self.start + offset;
        if at + size_of::<H>() > self.end {
            return Err(Truncated);
        }
        // SAFETY: the bytes lie within the packet (checked above), which is valid and ours alone
        // (`new`); `H` has alignment 1 and no invalid bit patterns (`Header`).
        Ok(unsafe { &mut *(at as *mut H) })
    }
}

// The BPF target reads a byte array of alignment 1 byte by byte. The kernel accepts word accesses to
// packets and map values at any address on every machine with efficient unaligned access, so there a
// word is read at once; the host reads the same bytes by the portable way.
macro_rules! word {
    ($load:ident, $store:ident, $type:ty, $len:literal) => {
        /// Reads the bytes as a native word, in the order in which they lie.
        #[inline(always)]
        pub fn $load(bytes: &[u8; $len]) -> $type {
            #[cfg(target_arch = "bpf")]
            // SAFETY: the bytes are valid; the kernel's verifier allows the unaligned access.
            unsafe {
                *bytes.as_ptr().cast::<$type>()
            }
            #[cfg(not(target_arch = "bpf"))]
            <$type>::from_ne_bytes(*bytes)
        }

        /// Writes a native word over the bytes.
        #[inline(always)]
        pub fn $store(bytes: &mut [u8; $len], word: $type) {
            #[cfg(target_arch = "bpf")]
            // SAFETY: as for reading.
            unsafe {
                *bytes.as_mut_ptr().cast::<$type>() = word;
            }
            #[cfg(not(target_arch = "bpf"))]
            {
                *bytes = word.to_ne_bytes();
            }
        }
    };
}

word!(load16, store16, u16, 2);
word!(load32, store32, u32, 4);
word!(load64, store64, u64, 8);

/// Reads 16 bytes as two native words.
#[inline(always)]
pub fn load128(bytes: &[u8; 16]) -> [u64; 2] {
    let (high, low) = halves(bytes);
    [load64(high), load64(low)]
}

/// Writes two native words over 16 bytes.
#[inline(always)]
pub fn store128(bytes: &mut [u8; 16], words: [u64; 2]) {
    // SAFETY: 16 bytes are two arrays of 8.
    let halves = unsafe { &mut *bytes.as_mut_ptr().cast::<[[u8; 8]; 2]>() };
    let [high, low] = halves;
    store64(high, words[0]);
    store64(low, words[1]);
}

#[inline(always)]
pub(crate) fn halves(bytes: &[u8; 16]) -> (&[u8; 8], &[u8; 8]) {
    // SAFETY: 16 bytes are two arrays of 8.
    let [high, low] = unsafe { &*bytes.as_ptr().cast::<[[u8; 8]; 2]>() };
    (high, low)
}

/// Both MAC addresses of a frame, destination first, as two words, to compare and copy them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Macs(u64, u32);

impl Macs {
    /// The other way: source and destination changed over.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(self) -> Self {
        // The twelve bytes as one number whose lowest byte is the first.
        let (low, high) = (u64::from_le(self.0), u32::from_le(self.1));
        let to_low = low >> 48 | (high as u64) << 16 | low << 48;
        Self(to_low.to_le(), ((low >> 16) as u32).to_le())
    }

    /// Whether the frame comes from that address.
    #[inline(always)]
    #[must_use]
    pub fn is_from(self, address: [u8; 6]) -> bool {
        let [a, b, c, d, e, f] = address;
        let (low, high) = (u64::from_le(self.0), u32::from_le(self.1));
        low >> 48 | u64::from(high) << 16 == u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    /// Those of a frame that goes on: from whom this one is for, to that address. `None`: it comes from there.
    #[inline(always)]
    #[must_use]
    pub fn onward(self, to: [u8; 6]) -> Option<Self> {
        if self.is_from(to) {
            return None;
        }
        let [a, b, c, d, e, f] = to;
        let to = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        let own = u64::from_le(self.0) << 16 >> 16;
        Some(Self((to | own << 48).to_le(), ((own >> 16) as u32).to_le()))
    }

    /// Reads twelve bytes.
    #[inline(always)]
    pub fn load(bytes: &[u8; 12]) -> Self {
        #[cfg(target_arch = "bpf")]
        // SAFETY: twelve bytes; the kernel's verifier allows the unaligned access.
        unsafe {
            let start = bytes.as_ptr();
            Self(*start.cast::<u64>(), *start.add(8).cast::<u32>())
        }
        #[cfg(not(target_arch = "bpf"))]
        // SAFETY: twelve bytes.
        unsafe {
            let start = bytes.as_ptr();
            Self(start.cast::<u64>().read_unaligned(), start.add(8).cast::<u32>().read_unaligned())
        }
    }

    /// Writes twelve bytes.
    #[inline(always)]
    pub fn store(self, bytes: &mut [u8; 12]) {
        #[cfg(target_arch = "bpf")]
        // SAFETY: as for reading.
        unsafe {
            let start = bytes.as_mut_ptr();
            *start.cast::<u64>() = self.0;
            *start.add(8).cast::<u32>() = self.1;
        }
        #[cfg(not(target_arch = "bpf"))]
        // SAFETY: twelve bytes.
        unsafe {
            let start = bytes.as_mut_ptr();
            start.cast::<u64>().write_unaligned(self.0);
            start.add(8).cast::<u32>().write_unaligned(self.1);
        }
    }
}
