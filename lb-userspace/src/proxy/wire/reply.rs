//! The head of an answer, and how its end is found.

use std::mem::MaybeUninit;

use bytes::BytesMut;
use hyper::{
    Response, StatusCode, Version,
    ext::ReasonPhrase,
    header::{CONNECTION, CONTENT_LENGTH, GetAll, HeaderName, HeaderValue, TRANSFER_ENCODING},
};

use super::chunks::Chunks;

/// Longest head of an answer.
const HEAD_BYTES: usize = 64 << 10;

/// Most header fields of an answer, as of a request.
const HEADERS: usize = 100;

/// What cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// How the end of an answer's body is found.
#[derive(Debug)]
pub(super) enum Framing {
    /// So many bytes are left.
    Length(u64),
    Chunked(Chunks),
    /// It is the connection's.
    UntilEnd,
}

impl Framing {
    /// Whether nothing is left.
    pub(super) fn is_whole(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.is_over(),
            Self::UntilEnd => false,
        }
    }
}

/// A head.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) response: Response<()>,
    pub(super) framing: Framing,
    /// The connection may be used again.
    pub(super) keeps: bool,
}

/// Takes the head of the final answer, once it is whole; interim ones before it are passed over.
/// `bodiless` is whether the request was one whose answer has no body.
pub(super) fn read(input: &mut BytesMut, bodiless: bool) -> Result<Option<Reply>, Malformed> {
    loop {
        let Some(head) = one(input)? else {
            return if input.len() > HEAD_BYTES { Err(Malformed) } else { Ok(None) };
        };
        let status = head.status();
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            continue;
        }
        let framing = framing(&head, bodiless)?;
        let keeps = keeps(&head)
            && status != StatusCode::SWITCHING_PROTOCOLS
            && !matches!(framing, Framing::UntilEnd);
        return Ok(Some(Reply { response: head, framing, keeps }));
    }
}

/// Takes one head.
fn one(input: &mut BytesMut) -> Result<Option<Response<()>>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let status = config.parse_response_with_uninit_headers(&mut parsed, input, &mut fields);
    let length = match status.map_err(|_| Malformed)? {
        httparse::Status::Complete(length) if length <= HEAD_BYTES => length,
        httparse::Status::Complete(_) => return Err(Malformed),
        httparse::Status::Partial => return Ok(None),
    };
    let mut response = Response::new(());
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed)?;
    *response.status_mut() = status;
    *response.version_mut() =
        if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    if let Some(reason) = parsed.reason
        && status.canonical_reason() != Some(reason)
        && let Ok(reason) = ReasonPhrase::try_from(reason.as_bytes())
    {
        response.extensions_mut().insert(reason);
    }
    let start = input.as_ptr().addr();
    let place = |bytes: &[u8]| {
        let from = bytes.as_ptr().addr() - start;
        from..from + bytes.len()
    };
    let fields = parsed.headers.iter();
    let places: Vec<_> =
        fields.map(|field| (place(field.name.as_bytes()), place(field.value))).collect();
    let head = input.split_to(length).freeze();
    let headers = response.headers_mut();
    headers.reserve(places.len());
    for (name, value) in places {
        let name = HeaderName::from_bytes(&head[name]).map_err(|_| Malformed)?;
        let value = HeaderValue::from_maybe_shared(head.slice(value)).map_err(|_| Malformed)?;
        headers.append(name, value);
    }
    Ok(Some(response))
}

/// RFC 9112, section 6.3. What is said in two ways is refused.
fn framing(head: &Response<()>, bodiless: bool) -> Result<Framing, Malformed> {
    let none = [StatusCode::SWITCHING_PROTOCOLS, StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED];
    if bodiless || none.contains(&head.status()) {
        return Ok(Framing::Length(0));
    }
    let encodings = head.headers().get_all(TRANSFER_ENCODING);
    if let Some(last) = encodings.iter().next_back() {
        if head.version() == Version::HTTP_10 {
            return Err(Malformed);
        }
        let last = last.to_str().ok().and_then(|list| list.rsplit(',').next());
        let chunked = last.is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked"));
        return Ok(if chunked { Framing::Chunked(Chunks::default()) } else { Framing::UntilEnd });
    }
    let length = length(&head.headers().get_all(CONTENT_LENGTH))?;
    Ok(length.map_or(Framing::UntilEnd, Framing::Length))
}

/// The length that is said, however often it is said alike.
fn length(said: &GetAll<'_, HeaderValue>) -> Result<Option<u64>, Malformed> {
    let mut length = None;
    for part in said.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
        let part = part.trim_ascii();
        if part.is_empty() || !part.iter().all(u8::is_ascii_digit) {
            return Err(Malformed);
        }
        let number = str::from_utf8(part).ok().and_then(|text| text.parse::<u64>().ok());
        // hyper keeps the highest numbers for itself.
        let number = number.filter(|number| *number < u64::MAX - 2).ok_or(Malformed)?;
        if length.replace(number).is_some_and(|before| before != number) {
            return Err(Malformed);
        }
    }
    Ok(length)
}

/// Whether the backend keeps the connection open (RFC 9112, section 9.3).
fn keeps(head: &Response<()>) -> bool {
    let options = head.headers().get_all(CONNECTION);
    let mut options = options.iter().flat_map(|list| list.as_bytes().split(|byte| *byte == b','));
    let mut keeps = head.version() == Version::HTTP_11;
    options.all(|option| {
        let option = option.trim_ascii();
        keeps |= option.eq_ignore_ascii_case(b"keep-alive");
        !option.eq_ignore_ascii_case(b"close")
    }) && keeps
}
