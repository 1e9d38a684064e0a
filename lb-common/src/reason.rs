//! `REASONS`: why a packet was not forwarded.
//!
//! A packet is either forwarded, and counted in its backend's `BACKEND_STATS`, or counted under one
//! reason.

macro_rules! reasons {
    ($( $(#[$doc:meta])* $name:ident, $label:literal, $disposition:ident; )*) => {
        /// Why a packet was not forwarded to its other side.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Reason {
            $( $(#[$doc])* $name, )*
        }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )* ];

            /// Number of reasons, and of entries in `REASONS`.
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// The name in `status` and in metrics.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $( Self::$name => $label, )* }
            }

            /// What becomes of a packet that is counted under this reason.
            #[must_use]
            #[inline(always)]
            pub const fn disposition(self) -> Disposition {
                match self { $( Self::$name => Disposition::$disposition, )* }
            }
        }
    };
}

/// What becomes of a packet that is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Disposition {
    /// The node's own network stack gets it, unchanged.
    Pass,
    /// It ends here.
    Drop,
    /// A TCP packet is answered with a reset; one that must not be answered ends here.
    Reset,
    /// It is answered with an ICMP error that says how long a packet may be (RFC 1191, RFC 8201).
    TooBig,
    /// A SYN; it is answered in the name of the node's listener, whose the connection is once the client goes on
    /// with it.
    Cookie,
    /// It goes to another node, in the frame that it came in.
    HandOn,
}

reasons! {
    /// Neither IPv4 nor IPv6: ARP, LLDP and the like.
    NotIp, "not_ip", Pass;
    /// Its destination is no floating address.
    NotOurs, "not_ours", Pass;
    /// To a floating address, but no flow and no service has its port.
    NoService, "no_service", Pass;
    /// To a floating address, neither TCP, UDP nor an ICMP error: ping, for example.
    OtherProtocol, "other_protocol", Pass;
    /// An ICMP error about no flow of ours.
    IcmpUnrelated, "icmp_unrelated", Pass;
    /// Ends before the headers that it announces.
    Truncated, "truncated", Pass;
    /// With a header that contradicts itself, or the frame; the node's own stack drops it.
    Malformed, "malformed", Pass;
    /// A fragment to a floating address: only the first would show its ports. The node's own stack
    /// puts the datagram together and, having no socket for it, says so to the sender.
    Fragment, "fragment", Pass;
    /// It is of a connection that the proxy has, or shall have: the node's own stack gets it.
    Proxied, "proxied", Pass;
    /// A SYN for the proxy, whose listener has no room to remember it: answered with a SYN cookie (RFC 4987).
    SynCookie, "syn_cookie", Cookie;
    /// It is of a connection that the proxy of another node has, which had the address before and still answers:
    /// that node gets it.
    HandedOn, "handed_on", HandOn;
    /// In a frame for another host: a switch floods, or the interface is a port of a bridge. Of packets that the
    /// hot path knows, those that it would send to a client are not asked.
    OtherHost, "other_host", Pass;
    /// Its time to live ends here.
    TtlExpired, "ttl_expired", Drop;
    /// The service has no backend that can serve.
    NoBackend, "no_backend", Reset;
    /// A TCP packet in mid-connection whose connection is unknown.
    NoFlow, "no_flow", Reset;
    /// The connection's backend is gone.
    BackendGone, "backend_gone", Reset;
    /// An answer to a SYN from a backend that was given up for another.
    LateAnswer, "late_answer", Reset;
    /// An RST, or an ICMP error about a segment, whose sequence number is nowhere near what the
    /// segment's receiver expects (RFC 5961, section 3; RFC 5927, section 4.1).
    OutOfWindow, "out_of_window", Drop;
    /// Its source is a floating address of ours, or no address that a host may have.
    Spoofed, "spoofed", Drop;
    /// The service's lists do not allow its source.
    Denied, "denied", Drop;
    /// Its source begins more connections than the service allows.
    RateLimited, "rate_limited", Drop;
    /// New connections of the service wait for a moment: the client sends it again.
    Parked, "parked", Drop;
    /// Too long for the tunnel to its backend.
    TooBig, "too_big", TooBig;
    /// The MAC address of the backend's next hop is not known.
    NoNeighbour, "no_neighbour", Drop;
    /// All ports towards the chosen backend are taken.
    PortsExhausted, "ports_exhausted", Drop;
    /// The flow tables took no further entry.
    TableFull, "table_full", Drop;
    /// It asks for the MAC address of a floating address whose lease is over, or is of a connection to it that is
    /// not known here: another node answers. Or it is for a backend whose lease is over: another node may have
    /// put another server in its place.
    NoLease, "no_lease", Drop;
    /// Of a connection that is not known, moments after this node took the address: whoever had it may still
    /// tell of the connection, and TCP sends the packet again.
    NotYetTold, "not_yet_told", Drop;
    /// A map entry that user space should have written is missing: a defect of ballast.
    Inconsistent, "inconsistent", Drop;
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Disposition, Reason};

    #[test]
    fn numbers_are_the_indices_of_the_map() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
        assert_eq!(Reason::COUNT as usize, Reason::ALL.len());
    }

    #[test]
    fn labels_are_unique_and_fit_metrics() {
        let labels: HashSet<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        for label in labels {
            assert!(label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{label}");
        }
    }

    #[test]
    fn what_is_not_for_a_service_passes_and_nothing_else_does() {
        // These may be about anything that the node itself does.
        let pass = [
            Reason::NotIp,
            Reason::NotOurs,
            Reason::NoService,
            Reason::OtherProtocol,
            Reason::IcmpUnrelated,
            Reason::Truncated,
            Reason::Malformed,
            Reason::Fragment,
            Reason::Proxied,
            Reason::OtherHost,
        ];
        for reason in Reason::ALL {
            let passes = reason.disposition() == Disposition::Pass;
            assert_eq!(passes, pass.contains(reason), "{}", reason.label());
        }
    }
}
