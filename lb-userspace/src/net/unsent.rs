//! Connections that their process has ended, while their last bytes are still on their way.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// `FIN_WAIT1`, `LAST_ACK` and `CLOSING`, as the kernel counts TCP's states: the other side has not
/// acknowledged the end.
const UNACKNOWLEDGED: [&str; 3] = ["04", "09", "0B"];

/// Whether a connection of one of these addresses has ended here and its last bytes are not acknowledged. If the
/// kernel does not tell, no.
pub(crate) fn is_any_unsent(addresses: &BTreeSet<IpAddr>) -> bool {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(fs::read_to_string);
    tables.iter().flatten().any(|table| is_any_in(table, addresses))
}

fn is_any_in(table: &str, addresses: &BTreeSet<IpAddr>) -> bool {
    table.lines().skip(1).any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next(), words.nth(1));
        let unacknowledged = state.is_some_and(|state| UNACKNOWLEDGED.contains(&state));
        unacknowledged && local.and_then(address).is_some_and(|it| addresses.contains(&it))
    })
}

/// The address of `ADDRESS:PORT`, in hexadecimal digits: words of the address as they stand in memory, each
/// written as a number of this host.
fn address(local: &str) -> Option<IpAddr> {
    let (digits, _) = local.split_once(':')?;
    let word = |at: usize| {
        let word = u32::from_str_radix(digits.get(8 * at..8 * at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match digits.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut octets = [0; 16];
            for (at, octets) in octets.chunks_exact_mut(4).enumerate() {
                octets.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(octets).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue\n\
        \x20  0: 640200C0:0050 090200C0:9C40 01 00000000:00000000\n\
        \x20  1: 640200C0:0050 090200C0:9C41 04 00000100:00000000\n\
        \x20  2: 650200C0:0050 090200C0:9C42 06 00000000:00000000\n";

    #[test]
    fn an_end_that_is_not_acknowledged_is_found() {
        let has =
            |address: &str| is_any_in(TABLE, &BTreeSet::from([address.parse::<IpAddr>().unwrap()]));
        assert!(has("192.0.2.100"));
        assert!(!has("192.0.2.101"), "that one has only to wait");
        assert!(!has("192.0.2.9"), "that is the other side");
        let six = address("B80D0120000000000000000000010000:0050");
        assert_eq!(six, Some("2001:db8::100".parse().unwrap()));
        assert_eq!(address("nothing"), None);
    }
}
