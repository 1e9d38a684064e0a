//! A header of the PROXY protocol: how many bytes belong to it, and what it says. Pure.

use proxy_header::{ParseConfig, Protocol, ProxyHeader};

use super::Ends;

/// What version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// What version 1 begins with.
const WORD: &[u8; 6] = b"PROXY ";

/// Bytes of version 2 before the addresses.
const FIXED: usize = 16;
/// Longest header of version 2, additional fields included.
const LONGEST: usize = 4096;
/// Longest line of version 1.
const LONGEST_LINE: usize = 107;
/// Version 2, command LOCAL: the sender speaks for itself, and the addresses say nothing.
const LOCAL: u8 = 0x20;

/// It is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What of a header is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Nothing: it is whole.
    Nothing,
    /// So many bytes, at least.
    Bytes(usize),
    /// The rest of a line, so many bytes at most.
    Line(usize),
}

/// What is missing of what begins so.
pub(super) fn missing(head: &[u8]) -> Result<Missing, Malformed> {
    let begins = |with: &[u8]| head.iter().zip(with).all(|(is, ought)| is == ought);
    let missing = if begins(SIGNATURE) && head.first() != Some(&b'P') {
        if head.len() < FIXED {
            // No header of either version is shorter than the signature.
            let next = if head.len() < SIGNATURE.len() { SIGNATURE.len() } else { FIXED };
            return Ok(Missing::Bytes(next - head.len()));
        }
        let whole = FIXED + usize::from(u16::from_be_bytes([head[14], head[15]]));
        if whole > LONGEST {
            return Err(Malformed);
        }
        whole.saturating_sub(head.len())
    } else if begins(WORD) {
        if head.ends_with(b"\n") {
            0
        } else if head.len() < LONGEST_LINE {
            return Ok(Missing::Line(LONGEST_LINE - head.len()));
        } else {
            return Err(Malformed);
        }
    } else {
        return Err(Malformed);
    };
    Ok(if missing == 0 { Missing::Nothing } else { Missing::Bytes(missing) })
}

/// What a whole header states; nothing if it leaves the connection what it is: `LOCAL`, `UNKNOWN`,
/// addresses that are not of the internet, and those of datagrams.
pub(super) fn stated(head: &[u8]) -> Result<Option<Ends>, Malformed> {
    if head.starts_with(SIGNATURE) && head.get(12) == Some(&LOCAL) {
        // Its family is to be ignored too, whatever it is.
        return Ok(None);
    }
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    let (header, length) = ProxyHeader::parse(head, config).map_err(|_| Malformed)?;
    if length != head.len() {
        return Err(Malformed);
    }
    let stated = header.proxied_address().filter(|stated| stated.protocol == Protocol::Stream);
    Ok(stated.map(|stated| Ends { client: stated.source, target: stated.destination }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 2: version and command, family and protocol, what follows.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut head = SIGNATURE.to_vec();
        head.extend([command, family]);
        head.extend((rest.len() as u16).to_be_bytes());
        head.extend(rest);
        head
    }

    fn four(more: &[u8]) -> Vec<u8> {
        let mut rest = vec![198, 51, 100, 7, 192, 0, 2, 100, 0x30, 0x39, 0, 80];
        rest.extend(more);
        rest
    }

    fn ends(client: &str, target: &str) -> Ends {
        Ends { client: client.parse().unwrap(), target: target.parse().unwrap() }
    }

    #[test]
    fn what_headers_say() {
        let v4 = Some(ends("198.51.100.7:12345", "192.0.2.100:80"));
        let mut six = Vec::new();
        for last in [7, 8] {
            six.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        six.extend([0x30, 0x39, 0, 80]);
        for (head, stated) in [
            (b"PROXY TCP4 198.51.100.7 192.0.2.100 12345 80\r\n".to_vec(), v4),
            (
                b"PROXY TCP6 2001:db8::7 2001:db8::8 12345 80\r\n".to_vec(),
                Some(ends("[2001:db8::7]:12345", "[2001:db8::8]:80")),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (binary(0x21, 0x11, &four(&[])), v4),
            (binary(0x21, 0x21, &six), Some(ends("[2001:db8::7]:12345", "[2001:db8::8]:80"))),
            // Additional fields: a name, and one that nobody knows.
            (binary(0x21, 0x11, &four(b"\x02\x00\x03abc\xee\x00\x01x")), v4),
            // Nonsense behind the addresses is not ours to judge.
            (binary(0x21, 0x11, &four(b"\x02\xff\xff")), v4),
            // LOCAL, with and without addresses, and with a family that nobody knows.
            (binary(0x20, 0x00, &[]), None),
            (binary(0x20, 0x11, &four(&[])), None),
            (binary(0x20, 0x77, b"whatever"), None),
            // AF_UNSPEC, and what is behind it.
            (binary(0x21, 0x00, &[]), None),
            (binary(0x21, 0x00, b"\x04\x00\x01x"), None),
            // AF_UNIX, UDP.
            (binary(0x21, 0x31, &[0; 216]), None),
            (binary(0x21, 0x12, &four(&[])), None),
        ] {
            assert_eq!(missing(&head), Ok(Missing::Nothing), "{}", head.escape_ascii());
            assert_eq!(super::stated(&head), Ok(stated), "{}", head.escape_ascii());
            for length in 0..head.len() {
                let asked = missing(&head[..length]).unwrap();
                let (Missing::Bytes(most) | Missing::Line(most)) = asked else {
                    panic!("{length} bytes are enough for {}", head.escape_ascii());
                };
                let is_line = matches!(asked, Missing::Line(_));
                assert!(is_line || length + most <= head.len(), "reads what is not the header's");
            }
        }
    }

    #[test]
    fn what_is_no_header() {
        for head in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXYTCP4 198.51.100.7 192.0.2.100 12345 80\r\n",
            b"POST / HTTP/1.1\r\n",
            b"\r\n\r\nGET",
            b"\x16\x03\x01\x02\x00",
            &[b"PROXY ".as_slice(), &[b'x'; 101]].concat(),
            &binary(0x21, 0x11, &[0; 5000])[..16],
        ] {
            let refused = (1..=head.len()).any(|length| missing(&head[..length]) == Err(Malformed));
            assert!(refused, "{}", head.escape_ascii());
        }
        for head in [
            b"PROXY TCP4 198.51.100.7 192.0.2.100 12345 80\n".to_vec(),
            b"PROXY TCP4 2001:db8::7 192.0.2.100 12345 80\r\n".to_vec(),
            b"PROXY TCP4 198.51.100.7 192.0.2.100 123456 80\r\n".to_vec(),
            b"PROXY TCP4 198.51.100.7 192.0.2.100 12345\r\n".to_vec(),
            b"PROXY UDP4 198.51.100.7 192.0.2.100 12345 80\r\n".to_vec(),
            b"PROXY \r\n".to_vec(),
            // Another version, another command, an unknown family, too short for its addresses.
            binary(0x31, 0x11, &four(&[])),
            binary(0x22, 0x11, &four(&[])),
            binary(0x21, 0x41, &four(&[])),
            binary(0x21, 0x11, &four(&[])[..11]),
        ] {
            assert_eq!(missing(&head), Ok(Missing::Nothing), "{}", head.escape_ascii());
            assert_eq!(super::stated(&head), Err(Malformed), "{}", head.escape_ascii());
        }
    }
}
