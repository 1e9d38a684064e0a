//! `LEASES`: until when this node may answer for a floating address, and until when packets may go to a
//! backend that has a lease.

use crate::map_type::map_type;

map_type! {
    /// Key of `LEASES`.
    pub struct LeaseKey {
        /// The floating address, IPv4 as an IPv4-mapped IPv6 address; or a backend, see
        /// [`LeaseKey::backend`].
        pub address: [u8; 16],
    }
}

/// What the keys of backends begin with: no address that a host may have does (RFC 4291, section 2.7).
const BACKEND: [u8; 2] = [0xff, 0xbe];

impl LeaseKey {
    /// The key of a backend. Where it listens stands in it whole for IPv4; of an IPv6 address the first four
    /// bytes, which servers of one site share, are folded into the next.
    // By words: the kernel program has little stack, and bytes take more.
    #[inline(always)]
    #[must_use]
    pub const fn backend(address: &[u8; 16], port: u16) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
        let head =
            ((BACKEND[0] as u32) << 24 | (BACKEND[1] as u32) << 16 | port as u32).to_be_bytes();
        let fold = u32::from_ne_bytes([a, b, c, d]) ^ u32::from_ne_bytes([e, f, g, h]);
        let [q, r, s, t] = fold.to_ne_bytes();
        let [u, v, w, x] = head;
        Self { address: [u, v, w, x, q, r, s, t, i, j, k, l, m, n, o, p] }
    }

    /// Whether it is of a backend.
    #[must_use]
    pub const fn is_backend(&self) -> bool {
        self.address[0] == BACKEND[0] && self.address[1] == BACKEND[1]
    }
}

map_type! {
    /// Value of `LEASES`.
    pub struct Lease {
        /// `CLOCK_MONOTONIC`, nanoseconds. From then on, questions for the address are not answered, and no
        /// packet goes to the backend.
        pub until_ns: u64,
        /// `CLOCK_MONOTONIC`, nanoseconds. Until then, the node that had the address before may still tell
        /// of connections that are not known here.
        pub told_ns: u64,
        /// Not 0: the daemon has said that it lets the address go, and answers until another node has it. One that
        /// starts meanwhile cannot know whether that has happened. The kernel program does not look at it.
        pub given_away: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::LeaseKey;
    use crate::service::mapped;

    #[test]
    fn keys_of_backends_are_no_addresses_and_differ() {
        let server = LeaseKey::backend(&mapped([192, 0, 2, 31]), 5432);
        assert!(server.is_backend());
        assert!(!LeaseKey { address: mapped([192, 0, 2, 31]) }.is_backend());
        assert_ne!(server, LeaseKey::backend(&mapped([192, 0, 2, 31]), 5433));
        assert_ne!(server, LeaseKey::backend(&mapped([192, 0, 2, 32]), 5432));
    }
}
