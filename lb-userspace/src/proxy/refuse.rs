//! Requests that are not handed on.

use std::fmt;

use hyper::{
    Method, Request, StatusCode, Version,
    header::{COOKIE, HOST, HeaderValue},
    http::uri::Authority,
};

use super::strict::{HEADERS, LINE_BYTES};

macro_rules! refusals {
    ($( $(#[$doc:meta])* $name:ident, $label:literal, $status:ident; )*) => {
        /// Why a request is refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub(super) enum Refusal {
            $( $(#[$doc])* $name, )*
        }

        impl Refusal {
            /// All of them, in order.
            pub(super) const ALL: &[Self] = &[ $( Self::$name, )* ];

            /// The name in `status`.
            pub(super) fn label(self) -> &'static str {
                match self { $( Self::$name => $label, )* }
            }

            /// What the client is told.
            pub(super) fn status(self) -> StatusCode {
                match self { $( Self::$name => StatusCode::$status, )* }
            }
        }
    };
}

refusals! {
    /// A request line or a line's end that is none: bare LF or CR, more spaces than two.
    Line, "line", BAD_REQUEST;
    /// A header field that is none: folded, without a name, a space before the colon, control
    /// characters.
    Field, "field", BAD_REQUEST;
    /// How long the body is cannot be said: `Content-Length` and `Transfer-Encoding` together, one of
    /// them twice, or a number that is none.
    Framing, "framing", BAD_REQUEST;
    /// A transfer coding that is not `chunked` alone (RFC 9112, section 6.1).
    Encoding, "encoding", NOT_IMPLEMENTED;
    /// Neither HTTP/1.1 nor HTTP/1.0.
    Version, "version", HTTP_VERSION_NOT_SUPPORTED;
    /// A head that is too long, or has too many fields (RFC 6585, section 5).
    TooLarge, "too_large", REQUEST_HEADER_FIELDS_TOO_LARGE;
    /// A request line that is too long.
    TargetTooLong, "target_too_long", URI_TOO_LONG;
    /// HTTP/1.1 without a `Host`, or one that is no host, or two (RFC 9112, section 3.2).
    Host, "host", BAD_REQUEST;
    /// CONNECT, or TRACE: the proxy opens no tunnels, and shows nobody what others have added.
    Method, "method", METHOD_NOT_ALLOWED;
    /// The target is neither a path, nor a URL, nor `*` for OPTIONS.
    Target, "target", BAD_REQUEST;
    /// Chunks that are none.
    Chunk, "chunk", BAD_REQUEST;
    /// The body ended early.
    Body, "body", BAD_REQUEST;
    /// The body did not come in time.
    SlowBody, "slow_body", REQUEST_TIMEOUT;
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "refused: {}", self.label())
    }
}

impl std::error::Error for Refusal {}

/// Looks whether a request can be handed on, and gives the host that it is for: that of a target that
/// is a URL, or else `Host`. HTTP/1.0 needs none.
///
/// `known` is a host that was asked for before, and is one.
pub(super) fn host<B>(
    request: &Request<B>,
    known: Option<&HeaderValue>,
) -> Result<Option<HeaderValue>, Refusal> {
    if *request.method() == Method::CONNECT || *request.method() == Method::TRACE {
        return Err(Refusal::Method);
    }
    if request.version() == Version::HTTP_2 {
        fits(request)?;
    }
    // Most requests have few fields, and looking through them costs less than a look-up.
    let mut hosts = request.headers().iter().filter(|(name, _)| **name == HOST);
    let host = hosts.next().map(|(_, host)| host);
    let needed = request.version() == Version::HTTP_11;
    if hosts.next().is_some() || (needed && host.is_none()) {
        return Err(Refusal::Host);
    }
    if host.is_some_and(|host| known != Some(host) && !is_host(host.as_bytes())) {
        return Err(Refusal::Host);
    }
    let uri = request.uri();
    if let Some(authority) = uri.authority() {
        // HTTP/2 has `:authority`, and a host that differs is another's (RFC 9113, section 8.3.1).
        let differs = |host: &HeaderValue| host.as_bytes() != authority.as_str().as_bytes();
        if request.version() == Version::HTTP_2 && host.is_some_and(differs) {
            return Err(Refusal::Host);
        }
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(Refusal::Target);
        }
        let named = HeaderValue::from_str(authority.as_str()).map_err(|_| Refusal::Target)?;
        return if is_host(named.as_bytes()) { Ok(Some(named)) } else { Err(Refusal::Target) };
    }
    let path = uri.path();
    if path.starts_with('/') || (path == "*" && request.method() == Method::OPTIONS) {
        Ok(host.cloned())
    } else {
        Err(Refusal::Target)
    }
}

/// Looks whether a head of HTTP/2 keeps to the limits that `strict` has for those of HTTP/1. Its size as a
/// whole h2 looks at.
fn fits<B>(request: &Request<B>) -> Result<(), Refusal> {
    let uri = request.uri();
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target + uri.authority().map_or(0, |authority| authority.as_str().len()) > LINE_BYTES {
        return Err(Refusal::TargetTooLong);
    }
    // Cookies may come one by one, and go on as one.
    let fields = request.headers().iter().filter(|(name, _)| *name != COOKIE).count();
    if fields > HEADERS { Err(Refusal::TooLarge) } else { Ok(()) }
}

/// A host with or without a port, and nobody's name before it.
fn is_host(host: &[u8]) -> bool {
    if host.is_empty() {
        return true;
    }
    !host.contains(&b'@') && Authority::try_from(host).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &str, uri: &str, hosts: &[&str], version: Version) -> Result<String, Refusal> {
        let mut builder = Request::builder().method(method).uri(uri).version(version);
        for host in hosts {
            builder = builder.header(HOST, *host);
        }
        let host = host(&builder.body(()).unwrap(), None)?;
        Ok(host.map_or_else(|| "none".into(), |host| host.to_str().unwrap().into()))
    }

    #[test]
    fn who_is_asked_for() {
        let one = Version::HTTP_11;
        for (method, uri, hosts, version, expected) in [
            ("GET", "/", &["a.example"][..], one, Ok("a.example")),
            ("GET", "/", &["a.example:8080"], one, Ok("a.example:8080")),
            ("GET", "/", &["[2001:db8::1]:80"], one, Ok("[2001:db8::1]:80")),
            ("GET", "/", &[""], one, Ok("")),
            ("GET", "/", &[], one, Err(Refusal::Host)),
            ("GET", "/", &[], Version::HTTP_10, Ok("none")),
            ("GET", "/", &["a", "a"], one, Err(Refusal::Host)),
            ("GET", "/", &["a b"], one, Err(Refusal::Host)),
            ("GET", "/", &["user@a"], one, Err(Refusal::Host)),
            ("GET", "/", &["a/b"], one, Err(Refusal::Host)),
            ("GET", "http://b.example/x", &["a.example"], one, Ok("b.example")),
            ("GET", "ftp://b.example/x", &["a.example"], one, Err(Refusal::Target)),
            ("GET", "http://u@b.example/x", &["a.example"], one, Err(Refusal::Target)),
            ("GET", "https://b/x", &[], Version::HTTP_2, Ok("b")),
            ("GET", "https://b/x", &["b"], Version::HTTP_2, Ok("b")),
            ("GET", "https://b/x", &["c"], Version::HTTP_2, Err(Refusal::Host)),
            ("OPTIONS", "*", &["a"], one, Ok("a")),
            ("GET", "*", &["a"], one, Err(Refusal::Target)),
            ("CONNECT", "a:443", &["a:443"], one, Err(Refusal::Method)),
            ("TRACE", "/", &["a"], one, Err(Refusal::Method)),
            ("BREW", "/", &["a"], one, Ok("a")),
        ] {
            let given = asked(method, uri, hosts, version);
            assert_eq!(given, expected.map(str::to_owned), "{method} {uri} {hosts:?}");
        }
    }

    #[test]
    fn refusals_are_counted_by_their_number() {
        for (at, refusal) in Refusal::ALL.iter().enumerate() {
            assert_eq!(*refusal as usize, at);
            let status = refusal.status();
            assert!(status.is_client_error() || status.is_server_error(), "{refusal}");
        }
    }
}
