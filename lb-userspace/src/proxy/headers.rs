//! Header fields: which end here, and which are added.

use std::{fmt::Write as _, net::IpAddr, sync::OnceLock};

use hyper::{
    HeaderMap, Version,
    body::Bytes,
    header::{
        CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, Entry, HOST, HeaderName, HeaderValue, TE,
        TRANSFER_ENCODING, UPGRADE,
    },
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The key by which a backend knows a request again.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The name of a request, for logs.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest name that a client may give a request.
const ID_BYTES: usize = 128;

/// Removes what is for this connection alone (RFC 9110, section 7.6.1): the fields that are so by
/// definition, and those that `Connection` names. Gives the protocol that the sender wants to change
/// to, if it does.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) -> Option<HeaderValue> {
    // Most messages have none of these, or one.
    let present: Vec<HeaderName> =
        headers.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
    if present.is_empty() {
        return None;
    }
    let mut upgrade = false;
    if present.contains(&CONNECTION) {
        let nominated: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            // What nearly all say, and what names no field that would be left.
            .filter(|name| {
                !name.eq_ignore_ascii_case(b"keep-alive") && !name.eq_ignore_ascii_case(b"close")
            })
            .filter_map(|name| HeaderName::from_bytes(name).ok())
            .collect();
        for name in nominated {
            if name == UPGRADE {
                upgrade = true;
            } else if !is_kept(&name) {
                headers.remove(name);
            }
        }
    }
    let mut protocol = None;
    for name in present {
        let removed = headers.remove(&name);
        if name == UPGRADE {
            protocol = removed;
        } else if name == TRANSFER_ENCODING {
            // What comes with chunks has the length that it has.
            headers.remove(CONTENT_LENGTH);
        }
    }
    protocol.filter(|_| upgrade)
}

/// Whether a client's connection ends with the answer to this request (RFC 9112, section 9.3).
pub(super) fn is_last(version: Version, headers: &HeaderMap) -> bool {
    let mut keeps = version != Version::HTTP_10;
    // Most requests have few fields, and looking through them costs less than a look-up.
    for (_, value) in headers.iter().filter(|(name, _)| **name == CONNECTION) {
        for word in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if word.eq_ignore_ascii_case(b"close") {
                return true;
            }
            keeps |= word.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    !keeps
}

/// Whether a field is for one connection by definition. Looked at by its length first: it is asked of
/// each field of each message.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    match name.as_str().len() {
        2 => *name == TE,
        7 => *name == UPGRADE,
        10 => *name == CONNECTION || *name == KEEP_ALIVE,
        16 => *name == PROXY_CONNECTION,
        17 => *name == TRANSFER_ENCODING,
        _ => false,
    }
}

/// Whether the sender can read trailers, as gRPC asks for (RFC 9110, section 10.1.4).
pub(super) fn wants_trailers(headers: &HeaderMap) -> bool {
    headers.get(TE).is_some_and(|te| {
        te.as_bytes().split(|byte| *byte == b',').any(|it| it.trim_ascii() == b"trailers")
    })
}

/// Fields that a request is not understood without: naming them in `Connection` would take them away
/// from the backend.
fn is_kept(name: &HeaderName) -> bool {
    *name == HOST
        || *name == CONTENT_LENGTH
        || *name == TRANSFER_ENCODING
        || [FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO].contains(name)
}

/// Whether the length of an answer is said in two ways: then it is none. One that is said twice alike
/// is said once afterwards.
pub(super) fn has_two_lengths(headers: &mut HeaderMap) -> bool {
    // Most answers have few fields, and looking through them costs less than a look-up.
    if headers.iter().filter(|(name, _)| **name == CONTENT_LENGTH).count() < 2 {
        return false;
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let first = lengths.next().cloned();
    match (first, lengths.next()) {
        (Some(first), Some(second)) => {
            let differ = *second != first || lengths.any(|length| *length != first);
            headers.insert(CONTENT_LENGTH, first);
            differ
        }
        _ => false,
    }
}

/// Whether a client may change to a protocol. Not to HTTP/2 in the clear: its requests would reach the
/// backend unseen (RFC 9113 has done away with it).
pub(super) fn may_upgrade(protocol: &HeaderValue) -> bool {
    let mut protocols = protocol.as_bytes().split(|byte| *byte == b',');
    !protocols.any(|it| it.trim_ascii().to_ascii_lowercase().starts_with(b"h2c"))
}

/// HTTP/2 may send cookies one by one; HTTP/1.1 has one field for all (RFC 9113, section 8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    if headers.iter().filter(|(name, _)| **name == COOKIE).count() < 2 {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Asks for a change of protocol.
pub(super) fn put_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// What backends are told of a client, written once for a connection.
#[derive(Debug)]
pub(super) struct Named {
    scheme: &'static str,
    /// The address, as it stands in `X-Forwarded-For`.
    text: String,
    /// For the first host that was asked for; most clients ask for no other.
    first: OnceLock<First>,
}

/// What backends are told of a client that asks for this host.
#[derive(Debug)]
struct First {
    host: HeaderValue,
    /// All of it but the name of the request, as it is sent.
    lines: Bytes,
}

impl Named {
    pub(super) fn new(address: IpAddr, scheme: &'static str) -> Self {
        let address = address.to_canonical();
        let mut text = String::with_capacity(ADDRESS_BYTES);
        write_address(&mut text, address);
        Self { scheme, text, first: OnceLock::new() }
    }

    /// An element of `Forwarded` (RFC 7239).
    fn forwarded(&self, host: &HeaderValue) -> String {
        let mut element = String::with_capacity(host.len() + ADDRESS_BYTES + FORWARDED_BYTES);
        write_forwarded(&mut element, &self.text, host, self.scheme);
        element
    }

    /// What is the same in all requests for the first host.
    fn first(&self, host: &HeaderValue) -> Option<&First> {
        let first = self.first.get_or_init(|| {
            // What stands in it beside the host, twice, and the address, twice.
            const REST: usize = 160;
            let mut lines = Vec::with_capacity(2 * (host.len() + ADDRESS_BYTES) + REST);
            for (name, value) in [
                (X_FORWARDED_FOR, self.text.as_bytes()),
                (X_FORWARDED_PROTO, self.scheme.as_bytes()),
                (X_FORWARDED_HOST, host.as_bytes()),
                (FORWARDED, self.forwarded(host).as_bytes()),
            ] {
                lines.extend_from_slice(name.as_str().as_bytes());
                lines.extend_from_slice(b": ");
                lines.extend_from_slice(value);
                lines.extend_from_slice(b"\r\n");
            }
            // A copy: the host as it came is part of a buffer, which would be kept for it.
            let host = HeaderValue::from_bytes(host.as_bytes()).unwrap_or_else(|_| host.clone());
            First { host, lines: lines.into() }
        });
        (first.host == host).then_some(first)
    }

    /// The first host, if one was asked for.
    pub(super) fn first_host(&self) -> Option<&HeaderValue> {
        self.first.get().map(|first| &first.host)
    }

    /// All that a backend is told of a request for this host but its name, as it is sent in HTTP/1.1;
    /// nothing if the request says something of that itself, or asks for another host than the first.
    pub(super) fn lines(&self, headers: &HeaderMap, host: &HeaderValue) -> Option<Bytes> {
        let says = headers.keys().any(|name| match name.as_str().len() {
            6 => *name == EXPECT,
            9 => *name == FORWARDED,
            12 => *name == X_REQUEST_ID,
            15 => *name == X_FORWARDED_FOR,
            16 => *name == X_FORWARDED_HOST,
            17 => *name == X_FORWARDED_PROTO,
            _ => false,
        });
        if says { None } else { self.first(host).map(|first| first.lines.clone()) }
    }
}

/// Text of ours as a value.
fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("-"))
}

/// Says for whom the request is made: `X-Forwarded-*`, `Forwarded`, `X-Request-Id`. Gives the latter.
pub(super) fn put_forwarded(
    headers: &mut HeaderMap,
    client: &Named,
    host: &HeaderValue,
) -> HeaderValue {
    headers.remove(EXPECT);
    append(headers, X_FORWARDED_FOR, value(client.text.clone()));
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(client.scheme));
    headers.insert(X_FORWARDED_HOST, host.clone());
    append(headers, FORWARDED, value(client.forwarded(host)));
    let given = headers.get(X_REQUEST_ID).filter(|id| is_fit_id(id.as_bytes()));
    if let Some(given) = given {
        return given.clone();
    }
    let id = id_value(&new_id());
    headers.insert(X_REQUEST_ID, id.clone());
    id
}

/// 128 random bits, in hexadecimal digits.
pub(super) fn new_id() -> [u8; 32] {
    // Computed, not looked up: so the compiler can do many at once.
    let digit = |half: u8| half + if half < 10 { b'0' } else { b'a' - 10 };
    let mut digits = [0; 32];
    for (pair, byte) in
        digits.as_chunks_mut::<2>().0.iter_mut().zip(fastrand::u128(..).to_le_bytes())
    {
        *pair = [digit(byte >> 4), digit(byte & 15)];
    }
    digits
}

/// The name of a request as a value.
pub(super) fn id_value(id: &[u8; 32]) -> HeaderValue {
    HeaderValue::from_bytes(id).unwrap_or(HeaderValue::from_static("-"))
}

/// Bytes of an element of `Forwarded` beside address and host, at most.
const FORWARDED_BYTES: usize = 40;

/// Writes an element of `Forwarded`. IPv6 addresses stand in brackets and quotation marks.
fn write_forwarded(out: &mut String, address: &str, host: &HeaderValue, scheme: &str) {
    let is_ipv6 = address.contains(':');
    out.push_str(if is_ipv6 { "for=\"[" } else { "for=" });
    out.push_str(address);
    if is_ipv6 {
        out.push_str("]\"");
    }
    if let Ok(host) = host.to_str()
        && !host.contains(['"', '\\'])
    {
        out.push_str(";host=\"");
        out.push_str(host);
        out.push('"');
    }
    out.push_str(";proto=");
    out.push_str(scheme);
}

/// Longest address as text.
const ADDRESS_BYTES: usize = 39;

/// Writes an address. Formatting one costs a connection more than a look-up of its service does, so
/// those of IPv4 are written digit by digit.
fn write_address(out: &mut String, address: IpAddr) {
    let IpAddr::V4(address) = address else {
        // Writing to a `String` cannot fail.
        let _ = write!(out, "{address}");
        return;
    };
    for (at, octet) in address.octets().into_iter().enumerate() {
        if at > 0 {
            out.push('.');
        }
        for unit in [100, 10, 1] {
            if octet >= unit || unit == 1 {
                out.push(char::from(b'0' + octet / unit % 10));
            }
        }
    }
}

/// Adds to a list. What the client has sent stands first: it is not to be trusted, and who reads the
/// list knows that the last entry is ours.
fn append(headers: &mut HeaderMap, name: HeaderName, entry: HeaderValue) {
    let mut given = match headers.entry(name) {
        Entry::Vacant(place) => {
            place.insert(entry);
            return;
        }
        Entry::Occupied(given) => given,
    };
    let mut list = given.iter().fold(Vec::new(), |mut list, value| {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
        list
    });
    list.extend_from_slice(entry.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&list) {
        given.insert(value);
    }
}

fn is_fit_id(id: &[u8]) -> bool {
    !id.is_empty() && id.len() <= ID_BYTES && id.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let lines = lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(name, value);
        }
        map
    }

    #[test]
    fn what_is_for_one_connection_ends_there() {
        let mut given = headers(&[
            ("host", "example.org"),
            ("connection", "keep-alive, X-Private,host"),
            ("connection", "x-forwarded-for , Transfer-Encoding"),
            ("x-private", "1"),
            ("x-forwarded-for", "198.51.100.1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("accept", "*/*"),
        ]);
        assert_eq!(strip_hop_by_hop(&mut given), None, "`Connection` does not say upgrade");
        let left = headers(&[
            ("host", "example.org"),
            ("x-forwarded-for", "198.51.100.1"),
            ("accept", "*/*"),
        ]);
        assert_eq!(given, left);
    }

    #[test]
    fn the_last_request_says_so() {
        for (version, connection, last) in [
            (Version::HTTP_11, &[][..], false),
            (Version::HTTP_11, &["keep-alive"], false),
            (Version::HTTP_11, &["x-closed, Upgrade"], false),
            (Version::HTTP_11, &["upgrade, Close"], true),
            (Version::HTTP_11, &["keep-alive", "close"], true),
            (Version::HTTP_10, &[], true),
            (Version::HTTP_10, &["Keep-Alive"], false),
            (Version::HTTP_10, &["keep-alive", "close"], true),
        ] {
            let mut given = headers(&[("host", "close")]);
            for value in connection {
                given.append(CONNECTION, HeaderValue::from_static(value));
            }
            assert_eq!(is_last(version, &given), last, "{version:?} {connection:?}");
        }
    }

    #[test]
    fn an_upgrade_is_found() {
        let mut given = headers(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(strip_hop_by_hop(&mut given).unwrap(), "websocket");
        assert!(given.is_empty());
        let mut without = headers(&[("connection", "upgrade")]);
        assert_eq!(strip_hop_by_hop(&mut without), None);
    }

    #[test]
    fn a_length_is_said_once() {
        for (lengths, two) in
            [(&[][..], false), (&["1"], false), (&["1", "1", "1"], false), (&["1", "1", "2"], true)]
        {
            let mut given = HeaderMap::new();
            for length in lengths {
                given.append(CONTENT_LENGTH, HeaderValue::from_static(length));
            }
            assert_eq!(has_two_lengths(&mut given), two, "{lengths:?}");
            assert!(given.get_all(CONTENT_LENGTH).iter().count() < 2, "{lengths:?}");
        }
    }

    #[test]
    fn cookies_come_in_one_field() {
        let mut given = headers(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut given);
        assert_eq!(given.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }

    #[test]
    fn nobody_changes_to_http_2() {
        for (protocol, may) in
            [("websocket", true), ("h2c", false), ("websocket, H2C", false), ("x-h2c", true)]
        {
            assert_eq!(may_upgrade(&HeaderValue::from_static(protocol)), may, "{protocol}");
        }
    }

    #[test]
    fn an_address_is_written_as_always() {
        for address in ["0.0.0.0", "1.20.103.255", "100.9.10.99", "2001:db8::9", "::"] {
            let mut text = String::new();
            write_address(&mut text, address.parse().unwrap());
            assert_eq!(text, address);
        }
    }

    #[test]
    fn the_client_is_named() {
        let client = Named::new("192.0.2.9".parse().unwrap(), "http");
        let host = HeaderValue::from_static("example.org:80");
        let mut given = headers(&[
            ("x-forwarded-for", "198.51.100.1"),
            ("x-forwarded-for", "198.51.100.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil"),
            ("forwarded", "for=evil"),
            ("expect", "100-continue"),
        ]);
        let id = put_forwarded(&mut given, &client, &host);
        assert_eq!(given["x-forwarded-for"], "198.51.100.1, 198.51.100.2, 192.0.2.9");
        assert_eq!(given.get_all("x-forwarded-for").iter().count(), 1);
        assert_eq!(given["x-forwarded-proto"], "http");
        assert_eq!(given["x-forwarded-host"], "example.org:80");
        let forwarded = "for=evil, for=192.0.2.9;host=\"example.org:80\";proto=http";
        assert_eq!(given["forwarded"], forwarded);
        assert!(!given.contains_key("expect"));
        assert_eq!(given["x-request-id"], id);
        assert_eq!(id.len(), 32);
        let mut given = HeaderMap::new();
        let client = Named::new("2001:db8::9".parse().unwrap(), "https");
        put_forwarded(&mut given, &client, &HeaderValue::from_static("other"));
        given.clear();
        put_forwarded(&mut given, &client, &host);
        let forwarded = "for=\"[2001:db8::9]\";host=\"example.org:80\";proto=https";
        assert_eq!(given["forwarded"], forwarded);
    }

    #[test]
    fn names_are_of_digits_and_differ() {
        let mut seen = std::collections::HashSet::new();
        let mut used = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let id = new_id();
            used.extend(id);
            assert!(seen.insert(id));
        }
        assert_eq!(used.into_iter().collect::<Vec<_>>(), b"0123456789abcdef");
    }

    #[test]
    fn a_request_keeps_a_name_that_is_one() {
        let client = Named::new("192.0.2.9".parse().unwrap(), "http");
        let host = HeaderValue::from_static("example.org");
        for (given, kept) in [("abc-123", true), ("two words", false), ("", false)] {
            let mut map = headers(&[]);
            map.insert(X_REQUEST_ID, HeaderValue::from_static(given));
            let id = put_forwarded(&mut map, &client, &host);
            assert_eq!(id == given, kept, "{given}");
            assert_eq!(map[X_REQUEST_ID], id);
        }
    }
}
