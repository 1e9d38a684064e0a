//! The head of a request.

use memchr::{memchr, memchr_iter};

use crate::proxy::refuse::Refusal;

/// Longest head of a request.
pub(in crate::proxy) const HEAD_BYTES: usize = 64 << 10;

/// Longest request line (nginx: 8 KiB).
pub(in crate::proxy) const LINE_BYTES: usize = 16 << 10;

/// Most header fields of a request. hyper has room for as many without an allocation.
pub(in crate::proxy) const HEADERS: usize = 100;

/// How the end of a request is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// It has no body.
    None,
    /// So many bytes follow.
    Length(u64),
    /// Chunks follow.
    Chunked,
}

/// Where the first head in these bytes ends: behind its empty line. The first `searched` bytes are known
/// to hold no end. An empty line before a request is part of it (RFC 9112, section 2.2).
pub(super) fn end(bytes: &[u8], searched: usize) -> Result<Option<usize>, Refusal> {
    let start = leading(bytes);
    // The end is four bytes long, so three of those that were searched may belong to it.
    let from = searched.saturating_sub(3).max(start);
    let rest = bytes.get(from..).unwrap_or_default();
    let mut ends = memchr_iter(b'\n', rest).map(|at| &rest[..=at]);
    let end = ends.find(|line| line.ends_with(b"\r\n\r\n")).map(|lines| from + lines.len());
    let length = end.unwrap_or(bytes.len()) - start.min(bytes.len());
    if length > HEAD_BYTES {
        return Err(Refusal::TooLarge);
    }
    if end.is_none() {
        let head = bytes.get(start..).unwrap_or_default();
        // Without this a client that ends its lines by LF alone would wait for ever.
        if has_bare_lf(&bytes[searched.saturating_sub(1).min(bytes.len())..]) {
            return Err(Refusal::Line);
        }
        if head.len() > LINE_BYTES && !head[..LINE_BYTES].contains(&b'\n') {
            return Err(Refusal::TargetTooLong);
        }
    }
    Ok(end)
}

/// An LF that is not the first byte, without a CR before it.
fn has_bare_lf(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r')
}

/// Bytes of the empty line before a request.
fn leading(bytes: &[u8]) -> usize {
    if bytes.starts_with(b"\r\n") { 2 } else { 0 }
}

/// Checks a whole head.
pub(super) fn check(head: &[u8]) -> Result<Framing, Refusal> {
    let head = &head[leading(head)..];
    // Without the empty line.
    let lines = head.strip_suffix(b"\r\n\r\n").ok_or(Refusal::Line)?;
    let mut lines = split_lines(lines);
    let http_10 = request_line(lines.next().unwrap_or_default())?;
    let mut length = None;
    let mut chunked = false;
    for (count, line) in lines.enumerate() {
        if count == HEADERS {
            return Err(Refusal::TooLarge);
        }
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            if length.replace(content_length(value)?).is_some() {
                return Err(Refusal::Framing);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || http_10 {
                return Err(Refusal::Framing);
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::Encoding);
            }
            chunked = true;
        }
    }
    match (length, chunked) {
        (Some(_), true) => Err(Refusal::Framing),
        (None, true) => Ok(Framing::Chunked),
        (None | Some(0), false) => Ok(Framing::None),
        (Some(length), false) => Ok(Framing::Length(length)),
    }
}

/// The lines between CRLFs. A CR or LF that is left in one is refused by who reads it.
fn split_lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest?;
        let mut ends = memchr_iter(b'\n', bytes);
        match ends.find(|at| bytes[..*at].ends_with(b"\r")) {
            Some(at) => {
                rest = Some(&bytes[at + 1..]);
                Some(&bytes[..at - 1])
            }
            None => rest.take(),
        }
    })
}

/// Checks a request line. Says whether it is of HTTP/1.0.
fn request_line(line: &[u8]) -> Result<bool, Refusal> {
    if line.len() > LINE_BYTES {
        return Err(Refusal::TargetTooLong);
    }
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::Line);
    };
    let is_target = !target.is_empty() && !has(target, |byte| byte <= b' ' || byte == 0x7f);
    if !is_token(method) || !is_target {
        return Err(Refusal::Line);
    }
    match version {
        b"HTTP/1.1" => Ok(false),
        b"HTTP/1.0" => Ok(true),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(Refusal::Version)
        }
        _ => Err(Refusal::Line),
    }
}

/// Name and value of a field line.
pub(super) fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let colon = memchr(b':', line).ok_or(Refusal::Field)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    // A folded line begins with a space, so its name is none.
    if !is_token(name) {
        return Err(Refusal::Field);
    }
    if has(value, |byte| (byte < b' ' && byte != b'\t') || byte == 0x7f) {
        return Err(Refusal::Field);
    }
    Ok((name, value.trim_ascii()))
}

/// RFC 9110, section 5.6.2.
fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && !has(bytes, |byte| !IN_TOKEN[usize::from(byte)])
}

/// Which bytes a token may have.
const IN_TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

/// Whether any byte is such a one. All are looked at: that is faster than to stop at the first.
fn has(bytes: &[u8], is_such: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(false, |found, byte| found | is_such(*byte))
}

/// Digits and nothing else; not so many that the number does not fit.
fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Framing);
    }
    let number = str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    // hyper keeps the highest numbers for itself.
    number.filter(|number| *number < u64::MAX - 2).ok_or(Refusal::Framing)
}
