//! `FLOWS` and `HALF_OPEN`: what happens to the packets of one tuple.
//!
//! A connection has two entries, one for each direction, and each is found by the tuple that the
//! packet itself carries. So a known packet costs one look-up, and its rewriting needs no idea of
//! direction.

use crate::map_type::map_type;

map_type! {
    /// Key of `FLOWS` and `HALF_OPEN`: an IPv4 packet's own tuple, in network byte order.
    #[repr(align(4))]
    pub struct FlowKey4 {
        /// Source address.
        pub src: [u8; 4],
        /// Destination address.
        pub dst: [u8; 4],
        /// Source port, network byte order.
        pub src_port: [u8; 2],
        /// Destination port, network byte order.
        pub dst_port: [u8; 2],
        /// IP protocol number.
        pub protocol: u8,
        /// Zero.
        pub reserved: [u8; 3],
    }
}

map_type! {
    /// Key of `FLOWS6` and `HALF_OPEN6`.
    #[repr(align(8))]
    pub struct FlowKey6 {
        /// Source address.
        pub src: [u8; 16],
        /// Destination address.
        pub dst: [u8; 16],
        /// Source port, network byte order.
        pub src_port: [u8; 2],
        /// Destination port, network byte order.
        pub dst_port: [u8; 2],
        /// IP protocol number.
        pub protocol: u8,
        /// Zero.
        pub reserved: [u8; 3],
    }
}

map_type! {
    /// Value of `FLOWS`: one cache line.
    #[repr(align(8))]
    pub struct FlowEntry4 {
        /// Backend identifier. It stands first, so that the entry's address is that of a look-up's key.
        pub backend: u32,
        /// Bits, see [`state`].
        pub state: u32,
        /// Source address after rewriting.
        pub new_src: [u8; 4],
        /// Destination address after rewriting.
        pub new_dst: [u8; 4],
        /// Source port after rewriting, network byte order.
        pub new_src_port: [u8; 2],
        /// Destination port after rewriting, network byte order.
        pub new_dst_port: [u8; 2],
        /// What the rewriting adds to the ones' complement sum of the IPv4 header, the lower TTL
        /// included (RFC 1624).
        pub ip_delta: u16,
        /// What the rewriting adds to the sum of the TCP or UDP checksum, pseudo-header included.
        pub l4_delta: u16,
        /// Time of the last packet of this direction, in ticks of the kernel ([`crate::clock`]).
        pub last_seen: u64,
        /// Bytes of this direction, Ethernet header included.
        pub bytes: u64,
        /// Packets of this direction; from 2^32 on, it begins anew.
        pub packets: u32,
        /// The last acknowledgement number that the sender of this direction's packets gave: the
        /// sequence number that it expects next. Network byte order; 0 before the first, and for UDP.
        pub ack: u32,
        /// Destination MAC address of this direction's frames on the client's side: in the client's own
        /// direction ours, as they come in; with [`state::RETURN`] the client's, or its router's, as they
        /// leave.
        pub dst_mac: [u8; 6],
        /// Source MAC address of the same frames.
        pub src_mac: [u8; 6],
        /// Interface on the client's side.
        pub client_ifindex: u32,
    }
}

map_type! {
    /// Value of `FLOWS6`; fields as in [`FlowEntry4`].
    #[repr(align(8))]
    pub struct FlowEntry6 {
        /// Backend identifier.
        pub backend: u32,
        /// Bits, see [`state`].
        pub state: u32,
        /// Source address after rewriting.
        pub new_src: [u8; 16],
        /// Destination address after rewriting.
        pub new_dst: [u8; 16],
        /// Source port after rewriting, network byte order.
        pub new_src_port: [u8; 2],
        /// Destination port after rewriting, network byte order.
        pub new_dst_port: [u8; 2],
        /// Zero: IPv6 has no header checksum.
        pub ip_delta: u16,
        /// What the rewriting adds to the sum of the TCP or UDP checksum, pseudo-header included.
        pub l4_delta: u16,
        /// Time of the last packet of this direction, in ticks of the kernel ([`crate::clock`]).
        pub last_seen: u64,
        /// Bytes of this direction, Ethernet header included.
        pub bytes: u64,
        /// Packets of this direction; from 2^32 on, it begins anew.
        pub packets: u32,
        /// The last acknowledgement number that the sender of this direction's packets gave: the
        /// sequence number that it expects next. Network byte order; 0 before the first, and for UDP.
        pub ack: u32,
        /// Destination MAC address of this direction's frames on the client's side: in the client's own
        /// direction ours, as they come in; with [`state::RETURN`] the client's, or its router's, as they
        /// leave.
        pub dst_mac: [u8; 6],
        /// Source MAC address of the same frames.
        pub src_mac: [u8; 6],
        /// Interface on the client's side.
        pub client_ifindex: u32,
    }
}

macro_rules! macs {
    ($entry:ty) => {
        impl $entry {
            /// MAC address that the client's packets come from; replies go there.
            #[must_use]
            pub const fn client_mac(&self) -> [u8; 6] {
                if self.state & state::RETURN == 0 { self.src_mac } else { self.dst_mac }
            }

            /// Our MAC address on the client's side.
            #[must_use]
            pub const fn local_mac(&self) -> [u8; 6] {
                if self.state & state::RETURN == 0 { self.dst_mac } else { self.src_mac }
            }
        }
    };
}

macs!(FlowEntry4);
macs!(FlowEntry6);

/// Most bytes of options in a TCP header (RFC 9293, section 3.1).
pub const MAX_TCP_OPTIONS: usize = 40;

/// Most backends that one connection has been tried at before the last.
pub const MAX_TRIED: usize = 4;

map_type! {
    /// What is needed to send a client's SYN to another backend, and to judge the answer to it.
    #[repr(align(8))]
    pub struct Syn {
        /// When it was last sent, `CLOCK_MONOTONIC`, nanoseconds.
        pub sent_ns: u64,
        /// Its sequence number, network byte order.
        pub seq: [u8; 4],
        /// Its window, network byte order.
        pub window: [u8; 2],
        /// Its control bits.
        pub flags: u8,
        /// Length of its options in bytes, a multiple of 4 up to [`MAX_TCP_OPTIONS`].
        pub options_len: u8,
        /// Its options.
        pub options: [u8; MAX_TCP_OPTIONS],
        /// Time to live of the packet, as we send it on.
        pub ttl: u8,
        /// Type of service, or traffic class.
        pub tos: u8,
        /// Backends tried before this one: so many of `tried` are set.
        pub tries: u8,
        /// Bits, see [`syn`]; the upper half is that of its data offset's byte: the control bits that
        /// are there (RFC 9768).
        pub bits: u8,
        /// Index of the service, as in [`crate::service::Service::index`].
        pub service: u32,
        /// Identifiers of the backends tried before this one, the last one first.
        pub tried: [u32; MAX_TRIED],
    }
}

map_type! {
    /// Value of `HALF_OPEN`.
    #[repr(align(8))]
    pub struct HalfOpen4 {
        /// As in `FLOWS`.
        pub flow: FlowEntry4,
        /// Of the backend's half ([`state::RETURN`]) alone; zeros in the client's.
        pub syn: Syn,
    }
}

map_type! {
    /// Value of `HALF_OPEN6`.
    #[repr(align(8))]
    pub struct HalfOpen6 {
        /// As in `FLOWS6`.
        pub flow: FlowEntry6,
        /// Of the backend's half ([`state::RETURN`]) alone; zeros in the client's.
        pub syn: Syn,
    }
}

/// Bits of [`Syn::bits`].
pub mod syn {
    /// It may be sent to another backend.
    pub const REPLAYABLE: u8 = 1;
    /// The client has sent it again, so that the answer does not tell how long the backend took (Karn
    /// and Partridge, 1987).
    pub const RESENT: u8 = 2;
    /// The backend is counted as one that has not answered in time.
    pub const OVERDUE: u8 = 4;
    /// It came in a VLAN, which is not kept here.
    pub const TAGGED: u8 = 8;
}

/// Bits of a flow entry's `state`.
///
/// `RETURN` is set in one of the two entries of a connection. The others describe the connection;
/// they are kept in the entry of the client's direction alone.
pub mod state {
    /// The entry is for packets from the backend to the client.
    pub const RETURN: u32 = 1;
    /// The client has sent FIN.
    pub const CLIENT_FIN: u32 = 2;
    /// The backend has sent FIN.
    pub const BACKEND_FIN: u32 = 4;
    /// Either side has sent RST, or we did.
    pub const RESET: u32 = 8;
    /// The entry stands alone: packets of this tuple are steered to its backend as they are (`direct`,
    /// `tunnel`), because the present table would send them elsewhere.
    pub const STEERED: u32 = 16;
    /// The half-open entry is for what a backend sends that was given up for another.
    pub const GIVEN_UP: u32 = 32;
    /// The backend has answered: the half-open entry leads to no other backend any more.
    pub const ANSWERED: u32 = 64;
    /// We have ended the connection: packets of either side are answered with a reset. Goes with
    /// [`RESET`].
    pub const CUT: u32 = 128;

    /// [`GIVEN_UP`] came after [`ANSWERED`], and means nothing.
    pub const KEPT: u32 = 256;

    /// Whether a half-open entry is for what a backend sends that was given up for another.
    #[must_use]
    #[inline(always)]
    pub const fn given_up(state: u32) -> bool {
        state & (GIVEN_UP | KEPT) == GIVEN_UP
    }

    /// Whether the connection is over, so that it no longer counts as open and its tuple may be
    /// used anew.
    #[must_use]
    #[inline(always)]
    pub const fn closed(state: u32) -> bool {
        state & RESET != 0 || state & (CLIENT_FIN | BACKEND_FIN) == CLIENT_FIN | BACKEND_FIN
    }

    /// Whether one side has finished and the other has not.
    #[must_use]
    #[inline(always)]
    pub const fn closing(state: u32) -> bool {
        !closed(state) && state & (CLIENT_FIN | BACKEND_FIN) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::{
        FlowEntry4,
        state::{BACKEND_FIN, CLIENT_FIN, RESET, RETURN, closed, closing},
    };

    #[test]
    fn a_connection_is_open_closing_or_closed() {
        for return_bit in [0, RETURN] {
            for (bits, is_closing, is_closed) in [
                (0, false, false),
                (CLIENT_FIN, true, false),
                (BACKEND_FIN, true, false),
                (CLIENT_FIN | BACKEND_FIN, false, true),
                (RESET, false, true),
                (RESET | CLIENT_FIN, false, true),
                (RESET | BACKEND_FIN, false, true),
                (RESET | CLIENT_FIN | BACKEND_FIN, false, true),
            ] {
                let state = bits | return_bit;
                assert_eq!((closing(state), closed(state)), (is_closing, is_closed), "{state:#b}");
            }
        }
    }

    #[test]
    fn an_entry_of_ipv4_is_one_cache_line() {
        assert_eq!(size_of::<FlowEntry4>(), 64);
    }
}
