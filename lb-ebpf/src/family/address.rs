//! Addresses, ports and tuples, as native words in the order of the packet's bytes.

use lb_common::{hash, service::mapped};

use crate::{
    checksum::Sum,
    packet::{load32, load128, store128},
};

/// An address of one family, as native words in the order of the packet's bytes.
pub trait Address: Copy + PartialEq {
    /// Its ones' complement sum.
    fn sum(self) -> Sum;
    /// As in `SERVICES` and `BACKENDS`.
    fn mapped(self) -> [u8; 16];
    /// [`Address::mapped`] in words.
    fn mapped_words(self) -> [u64; 2];
    /// Back from [`Address::mapped`].
    fn from_mapped(bytes: &[u8; 16]) -> Self;
    /// Its bit in `VIPS`.
    fn vip_bit(self) -> u32;
    /// Two words to hash.
    fn words(self) -> (u64, u64);
    /// Whether no host may send from it: "this host", loopback, multicast, reserved (RFC 6890), or
    /// an IPv4 address in IPv6's form.
    fn is_unfit_source(self) -> bool;
    /// As in `RATES`: of IPv6 the first 64 bits, since a host has all of such a network to itself.
    fn limited(self) -> [u8; 16];
}

impl Address for u32 {
    #[inline(always)]
    fn sum(self) -> Sum {
        Sum::ZERO.add32(self)
    }

    #[inline(always)]
    fn mapped(self) -> [u8; 16] {
        mapped(self.to_ne_bytes())
    }

    #[inline(always)]
    fn mapped_words(self) -> [u64; 2] {
        let [a, b, c, d] = self.to_ne_bytes();
        [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])]
    }

    #[inline(always)]
    fn from_mapped(bytes: &[u8; 16]) -> Self {
        // SAFETY: 16 bytes are four arrays of 4.
        let [.., address] = unsafe { &*bytes.as_ptr().cast::<[[u8; 4]; 4]>() };
        load32(address)
    }

    #[inline(always)]
    fn vip_bit(self) -> u32 {
        let [_, _, last @ ..] = self.to_ne_bytes();
        hash::vip_place(u16::from_ne_bytes(last))
    }

    #[inline(always)]
    fn words(self) -> (u64, u64) {
        (u64::from(self), 0)
    }

    #[inline(always)]
    fn is_unfit_source(self) -> bool {
        let first = u32::from_be(self) >> 24;
        first == 0 || first == 127 || first >= 224
    }

    #[inline(always)]
    fn limited(self) -> [u8; 16] {
        self.mapped()
    }
}

impl Address for [u64; 2] {
    #[inline(always)]
    fn sum(self) -> Sum {
        Sum::ZERO.add64(self[0]).add64(self[1])
    }

    #[inline(always)]
    fn mapped(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        store128(&mut bytes, self);
        bytes
    }

    #[inline(always)]
    fn mapped_words(self) -> [u64; 2] {
        self
    }

    #[inline(always)]
    fn from_mapped(bytes: &[u8; 16]) -> Self {
        load128(bytes)
    }

    #[inline(always)]
    fn vip_bit(self) -> u32 {
        let [_, _, _, _, _, _, last @ ..] = self[1].to_ne_bytes();
        hash::vip_place(u16::from_ne_bytes(last))
    }

    #[inline(always)]
    fn words(self) -> (u64, u64) {
        (self[0], self[1])
    }

    #[inline(always)]
    fn is_unfit_source(self) -> bool {
        // ff00::/8; ::/96, where `::` and `::1` are, and ::ffff:0:0/96.
        u64::from_be(self[0]) >> 56 == 0xff
            || self[0] == 0 && matches!(u64::from_be(self[1]) >> 32, 0 | 0xffff)
    }

    #[inline(always)]
    fn limited(self) -> [u8; 16] {
        [self[0], 0].mapped()
    }
}

/// Source and destination port, as one native word in the order of the packet's bytes.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports(pub u32);

impl Ports {
    /// From two ports in network byte order.
    #[inline(always)]
    pub const fn new(src: [u8; 2], dst: [u8; 2]) -> Self {
        Self(u32::from_ne_bytes([src[0], src[1], dst[0], dst[1]]))
    }

    /// Source port, network byte order.
    #[inline(always)]
    pub const fn src(self) -> [u8; 2] {
        let [a, b, _, _] = self.0.to_ne_bytes();
        [a, b]
    }

    /// Destination port, network byte order.
    #[inline(always)]
    pub const fn dst(self) -> [u8; 2] {
        let [_, _, c, d] = self.0.to_ne_bytes();
        [c, d]
    }

    /// Source and destination changed over.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self(self.0.rotate_left(16))
    }
}

/// Who sends to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Tuple<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Ports.
    pub ports: Ports,
}

impl<A: Address> Tuple<A> {
    /// The other direction.
    #[inline(always)]
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, ports: self.ports.reversed() }
    }

    /// What it adds to a TCP or UDP checksum.
    #[inline(always)]
    pub fn sum(self) -> Sum {
        self.src.sum().add(self.dst.sum()).add32(self.ports.0)
    }

    /// A hash of the tuple.
    #[inline(always)]
    pub fn hash(self) -> u32 {
        hash::tuple(self.src.words(), self.dst.words(), self.ports.0)
    }
}

/// An address as the bytes of a map value.
pub(super) trait Octets {
    type Bytes;
    fn octets(self) -> Self::Bytes;
    fn from_octets(bytes: &Self::Bytes) -> Self;
}

impl Octets for u32 {
    type Bytes = [u8; 4];

    #[inline(always)]
    fn octets(self) -> [u8; 4] {
        self.to_ne_bytes()
    }

    #[inline(always)]
    fn from_octets(bytes: &[u8; 4]) -> Self {
        load32(bytes)
    }
}

impl Octets for [u64; 2] {
    type Bytes = [u8; 16];

    #[inline(always)]
    fn octets(self) -> [u8; 16] {
        self.mapped()
    }

    #[inline(always)]
    fn from_octets(bytes: &[u8; 16]) -> Self {
        load128(bytes)
    }
}
