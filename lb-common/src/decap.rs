//! The decapsulator's maps: which tunnels it takes packets from, and what it has done with packets.

use crate::map_type::map_type;

/// The program, and its function's name in the object.
pub const PROGRAM: &str = "ballast_decap";

/// Prefixes that tunnels may begin at: an LPM trie by [`Source`].
pub const SOURCES: &str = "DECAP_SOURCES";

/// Packets by [`Count`], per CPU.
pub const COUNTS: &str = "DECAP_COUNTS";

/// Most prefixes in [`SOURCES`].
pub const MAX_SOURCES: u32 = 1024;

/// Destination port of Generic UDP Encapsulation (IANA, "gue").
pub const GUE_PORT: u16 = 6080;

map_type! {
    /// Data of a key of [`SOURCES`]: an address; IPv4 as an IPv4-mapped IPv6 address.
    pub struct Source {
        /// The address.
        pub address: [u8; 16],
    }
}

macro_rules! counts {
    ($( $(#[$doc:meta])* $name:ident, $label:literal, $passes:literal; )*) => {
        /// What became of a packet. Each is counted once.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Count {
            $( $(#[$doc])* $name, )*
        }

        impl Count {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )* ];

            /// The name in `ballast decap --status`.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $( Self::$name => $label, )* }
            }

            /// Whether the node's own stack gets the packet; otherwise it ends here.
            #[must_use]
            pub const fn passes(self) -> bool {
                match self { $( Self::$name => $passes, )* }
            }
        }
    };
}

counts! {
    /// Taken out of another IP packet.
    Ipip, "ip_in_ip", true;
    /// Taken out of a UDP datagram.
    Gue, "gue", true;
    /// Not in a tunnel that ends here; unchanged.
    Other, "other", true;
    /// In a tunnel, but with options in the outer header; unchanged.
    Options, "options", true;
    /// A piece of a packet in a tunnel; unchanged, since only the whole one could be taken out.
    Fragment, "fragment", true;
    /// In a tunnel, and its headers contradict each other or the packet's length.
    Malformed, "malformed", false;
    /// The checksum of the outer header is wrong.
    Checksum, "checksum", false;
    /// In a tunnel that begins elsewhere than it may.
    Denied, "denied", false;
    /// A router has marked the tunnel's packet for congestion, and the one inside cannot carry that on
    /// (RFC 6040, section 4.2).
    Congestion, "congestion", false;
}

#[cfg(test)]
mod tests {
    use super::{COUNTS, Count, PROGRAM, SOURCES};

    #[test]
    fn names_fit_the_kernel_and_numbers_are_indices() {
        // BPF_OBJ_NAME_LEN is 16, with the zero at the end.
        assert!([PROGRAM, SOURCES, COUNTS].iter().all(|name| name.len() < 16));
        for (index, count) in Count::ALL.iter().enumerate() {
            assert_eq!(*count as usize, index);
        }
    }
}
