//! How a service's proxy speaks to the backends.

use std::path::PathBuf;

use super::{Certificate, Proxy};

/// What the proxy's connections to backends are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstream {
    /// TLS, if the backends speak it.
    pub tls: Option<BackendTls>,
    /// HTTP/2: with TLS if the backend agrees (ALPN), without it at once (prior knowledge, RFC 9113,
    /// section 3.3). Else HTTP/1.1.
    pub http2: bool,
    /// Most requests that are under way on one connection of HTTP/2.
    pub max_streams: u32,
    /// The header of the PROXY protocol that each connection begins with.
    pub send_proxy: Option<ProxyHeader>,
}

impl Upstream {
    /// Whether connections begin with a request of HTTP/1.1.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.tls.is_none() && !self.http2 && self.send_proxy.is_none()
    }
}

/// TLS towards backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTls {
    /// The name that backends are asked for (SNI), and that their certificates must have. Without it
    /// they must have the backend's address.
    pub name: Option<String>,
    /// File with the certificates that are trusted, PEM; those of the system without it.
    pub ca_file: Option<PathBuf>,
    /// Whether certificates are verified.
    pub verify: bool,
    /// What backends are shown that ask for a certificate.
    pub certificate: Option<Certificate>,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl Proxy {
    /// Whether nobody but the proxy can take the service's connections: what clients send is not what
    /// backends understand, so the kernel must not hand it on.
    #[must_use]
    pub fn is_only(&self) -> bool {
        !self.certificates.is_empty() || !self.accept_proxy.is_empty() || !self.upstream.is_plain()
    }
}
