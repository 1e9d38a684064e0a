//! Records of `NEWS`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::{
    flow::{FlowKey4, FlowKey6, state},
    news::{Begun4, Begun6},
};

use super::{Answered, Begun, Change, Ended, STATE_BITS};

/// The change that a record tells of. `address` knows the backends by their identifiers. `None`: the
/// record is of no known kind, or of a steered connection to a backend that is not known.
pub fn change(record: &[u8], address: &dyn Fn(u32) -> Option<SocketAddr>) -> Option<Change> {
    const BEGUN4: usize = size_of::<Begun4>();
    const BEGUN6: usize = size_of::<Begun6>();
    const ENDED4: usize = size_of::<FlowKey4>();
    const ENDED6: usize = size_of::<FlowKey6>();
    match record.len() {
        BEGUN4 => begun4(&read(record), address),
        BEGUN6 => begun6(&read(record), address),
        ENDED4 => Some(ended4(&read(record))),
        ENDED6 => Some(ended6(&read(record))),
        _ => None,
    }
}

/// A record of the length of `T`.
fn read<T: aya::Pod>(record: &[u8]) -> T {
    assert!(record.len() >= size_of::<T>(), "a record of another kind");
    // SAFETY: the record is long enough, and every bit pattern is a `T` (`Pod`).
    unsafe { record.as_ptr().cast::<T>().read_unaligned() }
}

macro_rules! family {
    ($begun:ident, $ended:ident, $record:ident, $key:ty, $address:ty) => {
        fn $begun(record: &$record, address: &dyn Fn(u32) -> Option<SocketAddr>) -> Option<Change> {
            let $record { client, server, ref entry } = *record;
            let (from, to) = ends(&client);
            let (backend, nat) = ends(&server);
            let steered = entry.state & state::STEERED != 0;
            let begun = Begun {
                protocol: client.protocol,
                state: (entry.state & STATE_BITS) as u8,
                client: from,
                listen: to,
                backend: if steered { address(entry.backend)? } else { backend },
                nat_port: if steered { 0 } else { nat.port() },
                client_mac: entry.client_mac(),
                idle_ms: 0,
            };
            if entry.state & state::ANSWERED != 0 {
                return Some(Change::Answered(Answered { begun, ack: u32::from_be(entry.ack) }));
            }
            Some(Change::Begun(begun))
        }

        fn $ended(server: &$key) -> Change {
            let (backend, nat) = ends(server);
            Change::Ended(Ended { protocol: server.protocol, backend, nat })
        }

        impl Ends for $key {
            fn ends(&self) -> (SocketAddr, SocketAddr) {
                let socket = |address, port| {
                    let address = IpAddr::from(<$address>::from(address));
                    SocketAddr::new(address, u16::from_be_bytes(port))
                };
                (socket(self.src, self.src_port), socket(self.dst, self.dst_port))
            }
        }
    };
}

/// Source and destination of a key.
trait Ends {
    fn ends(&self) -> (SocketAddr, SocketAddr);
}

fn ends(key: &impl Ends) -> (SocketAddr, SocketAddr) {
    key.ends()
}

family!(begun4, ended4, Begun4, FlowKey4, Ipv4Addr);
family!(begun6, ended6, Begun6, FlowKey6, Ipv6Addr);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_no_kind_are_none() {
        for len in [0, 1, 15, 17, 95, 97, 1000] {
            assert_eq!(change(&vec![0; len], &|_| None), None, "{len}");
        }
        assert!(change(&[0; size_of::<FlowKey6>()], &|_| None).is_some());
    }
}
