//! The head of an answer, and how its end is found.

use std::mem::MaybeUninit;

use bytes::BytesMut;
use hyper::{
    Response, StatusCode, Version,
    ext::ReasonPhrase,
    header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING},
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

/// What the fields of a head say of the message itself.
#[derive(Debug, Default)]
struct Said {
    /// How long the body is.
    length: Option<u64>,
    /// That is said in two ways, or in none that can be understood.
    unclear: bool,
    /// How it is encoded; the last one.
    encoding: Option<HeaderValue>,
    /// `Connection: close`.
    closes: bool,
    /// `Connection: keep-alive`.
    keeps: bool,
}

/// Takes the head of the final answer, once it is whole; interim ones before it are passed over.
/// `bodiless` is whether the request was one whose answer has no body.
pub(super) fn read(input: &mut BytesMut, bodiless: bool) -> Result<Option<Reply>, Malformed> {
    loop {
        let Some((response, said)) = one(input)? else {
            return if input.len() > HEAD_BYTES { Err(Malformed) } else { Ok(None) };
        };
        let status = response.status();
        let switches = status == StatusCode::SWITCHING_PROTOCOLS;
        if status.is_informational() && !switches {
            continue;
        }
        let http_11 = response.version() == Version::HTTP_11;
        let framing = if bodiless
            || switches
            || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
        {
            Framing::Length(0)
        } else {
            said.framing(http_11)?
        };
        let keeps = !switches
            && !said.closes
            && (said.keeps || http_11)
            && !matches!(framing, Framing::UntilEnd);
        return Ok(Some(Reply { response, framing, keeps }));
    }
}

/// Takes one head.
fn one(input: &mut BytesMut) -> Result<Option<(Response<()>, Said)>, Malformed> {
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
    // A head is far shorter than 4 GiB.
    let place = |bytes: &[u8]| [bytes.as_ptr().addr() - start, bytes.len()].map(|it| it as u32);
    let fields = parsed.headers.iter();
    let mut places = [[[0_u32; 2]; 2]; HEADERS];
    let count = fields.len();
    for (place_of, field) in places.iter_mut().zip(fields) {
        *place_of = [place(field.name.as_bytes()), place(field.value)];
    }
    let head = input.split_to(length).freeze();
    let headers = response.headers_mut();
    headers.reserve(count);
    let mut said = Said::default();
    for places in &places[..count] {
        let [name, value] = places.map(|[from, length]| from as usize..(from + length) as usize);
        let name = HeaderName::from_bytes(&head[name]).map_err(|_| Malformed)?;
        let value = HeaderValue::from_maybe_shared(head.slice(value)).map_err(|_| Malformed)?;
        if name == CONNECTION {
            said.connection(&value);
            if value.as_bytes().eq_ignore_ascii_case(b"keep-alive") {
                // It is for this connection alone, and says nothing else.
                continue;
            }
        } else if name == CONTENT_LENGTH {
            said.length(&value);
        } else if name == TRANSFER_ENCODING {
            said.encoding = Some(value.clone());
        }
        headers.append(name, value);
    }
    Ok(Some((response, said)))
}

impl Said {
    /// How the end is found (RFC 9112, section 6.3). What is said in two ways is refused.
    fn framing(&self, http_11: bool) -> Result<Framing, Malformed> {
        let Some(last) = &self.encoding else {
            let length = self.length.map_or(Framing::UntilEnd, Framing::Length);
            return if self.unclear { Err(Malformed) } else { Ok(length) };
        };
        if !http_11 {
            return Err(Malformed);
        }
        let last = last.to_str().ok().and_then(|list| list.rsplit(',').next());
        let chunked = last.is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked"));
        Ok(if chunked { Framing::Chunked(Chunks::default()) } else { Framing::UntilEnd })
    }

    /// Takes a length. It may be said often, but not differently.
    fn length(&mut self, said: &HeaderValue) {
        for part in said.as_bytes().split(|byte| *byte == b',') {
            let part = part.trim_ascii();
            let is_number = !part.is_empty() && part.iter().all(u8::is_ascii_digit);
            let text = str::from_utf8(part).ok().filter(|_| is_number);
            // hyper keeps the two highest numbers for itself.
            let number = text.and_then(|text| text.parse().ok()).filter(|it| *it <= u64::MAX - 2);
            let before = self.length;
            self.length = number;
            self.unclear |= number.is_none() || before.is_some_and(|it| number != Some(it));
        }
    }

    /// Takes what is said of the connection (RFC 9112, section 9.3).
    fn connection(&mut self, said: &HeaderValue) {
        for option in said.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            self.closes |= option.eq_ignore_ascii_case(b"close");
            self.keeps |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
}
