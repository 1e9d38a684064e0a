//! TLS towards clients.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    client::verify_server_name,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::config;

/// What clients may speak, the best first.
const PROTOCOLS: [&[u8]; 2] = [HTTP_2, b"http/1.1"];

/// HTTP/2, in the words of ALPN (RFC 7301).
pub(super) const HTTP_2: &[u8] = b"h2";

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read, or is no PEM.
    #[error("{} cannot be read: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// The file has no certificate.
    #[error("{} has no certificate", .0.display())]
    Empty(PathBuf),
    /// The key is no key, or not the certificate's.
    #[error("the key does not fit the certificate: {0}")]
    Key(rustls::Error),
    /// The certificates that are to be trusted cannot be had.
    #[error("{0}")]
    Trust(String),
    /// A name that no certificate can have.
    #[error("the name of the backends: {0}")]
    Name(String),
    /// The rest of it.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// Reads a certificate and its key.
pub fn load(chain: &Path, key: &Path) -> Result<CertifiedKey, Error> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        |source| Error::File { path, source }
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(chain)
        .map_err(wrong(chain))?
        .collect::<Result<_, _>>()
        .map_err(wrong(chain))?;
    if certificates.is_empty() {
        return Err(Error::Empty(chain.to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(wrong(key))?;
    CertifiedKey::from_der(certificates, private, &ring::default_provider()).map_err(Error::Key)
}

/// What a service with these certificates says to clients.
pub(super) fn server(certificates: &[config::Certificate]) -> Result<Arc<ServerConfig>, Error> {
    let keys = certificates.iter().map(|it| load(&it.chain, &it.key).map(Arc::new));
    let resolver = Resolver(keys.collect::<Result<_, _>>()?);
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(Error::Setup)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    // Whichever worker a client comes back to knows it again.
    config.ticketer = ring::Ticketer::new().map_err(Error::Setup)?;
    Ok(Arc::new(config))
}

/// The certificate for the name that a client asks for, or else the first.
struct Resolver(Vec<Arc<CertifiedKey>>);

impl fmt::Debug for Resolver {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Resolver({} certificates)", self.0.len())
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = name.and_then(|name| self.0.iter().find(|key| is_for(key, &name)));
        named.or(self.0.first()).cloned()
    }
}

fn is_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let certificate = key.cert.first().and_then(|it| ParsedCertificate::try_from(it).ok());
    certificate.is_some_and(|certificate| verify_server_name(&certificate, name).is_ok())
}
