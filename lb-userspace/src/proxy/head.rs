//! The head of a request, as backends get it.

use hyper::{
    HeaderMap, Method, Request, Uri, Version,
    body::Bytes,
    header::{HOST, HeaderValue, TE},
    http::{request, uri},
};

use super::{access::Entry, headers, kept::Sending, serve::Client};

/// The head of a request, as backends get it.
pub(super) struct Head {
    pub(super) method: Method,
    /// The target, without scheme and host.
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    /// What else a backend is told in HTTP/1.1, as it is sent, and the name of the request.
    pub(super) told: Option<(Bytes, [u8; 32])>,
    /// It asks for a change of protocol.
    pub(super) upgrade: bool,
}

impl Head {
    /// `http2` is whether backends may be spoken to in HTTP/2.
    pub(super) fn new(
        parts: request::Parts,
        client: &Client,
        http2: bool,
        host: &HeaderValue,
        entry: Option<&mut Entry>,
    ) -> Self {
        let request::Parts { method, uri, version, mut headers, .. } = parts;
        let trailers = version == Version::HTTP_2 && headers::wants_trailers(&headers);
        let upgrade = headers::strip_hop_by_hop(&mut headers)
            .filter(|protocol| version == Version::HTTP_11 && headers::may_upgrade(protocol));
        if headers.get(HOST) != Some(host) {
            headers.insert(HOST, host.clone());
        }
        if trailers && http2 {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        headers::join_cookies(&mut headers);
        let lines = if http2 { None } else { client.named.lines(&headers, host) };
        let told = lines.map(|lines| (lines, headers::new_id()));
        let id = match &told {
            Some(_) => None,
            None => Some(headers::put_forwarded(&mut headers, &client.named, host)),
        };
        if let Some(entry) = entry {
            let id = id.or(told.as_ref().map(|(_, id)| headers::id_value(id)));
            entry.describe(&headers, host, id.as_ref());
        }
        let asks = upgrade.is_some();
        if let Some(protocol) = upgrade {
            headers::put_upgrade(&mut headers, protocol);
        }
        Self { method, uri: origin(uri), headers, told, upgrade: asks }
    }

    /// As hyper takes it.
    pub(super) fn request(&self, body: Sending) -> Request<Sending> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// The target without scheme and host (RFC 9112, section 3.2.1).
fn origin(target: Uri) -> Uri {
    if target.authority().is_none() {
        return target;
    }
    let mut parts = uri::Parts::default();
    parts.path_and_query = target.into_parts().path_and_query;
    Uri::from_parts(parts).unwrap_or_default()
}

/// The host of a request that names none.
pub(super) fn authority(client: &Client) -> HeaderValue {
    let listen = client.route.service.listen.to_string();
    HeaderValue::try_from(listen).unwrap_or(HeaderValue::from_static(""))
}
