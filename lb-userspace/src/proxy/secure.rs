//! TLS towards backends.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ClientConfig,
    client::Resumption,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::tls::{Error, HTTP_2};
use crate::{
    config::{BackendTls, Upstream},
    trust::{self, AnyCertificate},
};

/// Sessions of a backend that are kept, to be resumed.
const SESSIONS: usize = 16;

/// What the connections to a service's backends are made secure with.
#[derive(Debug)]
pub(crate) struct Secure {
    config: ClientConfig,
    name: Option<ServerName<'static>>,
    /// Backends that have one name do not share sessions.
    backends: Mutex<HashMap<SocketAddr, Arc<ClientConfig>>>,
}

impl Secure {
    /// Reads what the configuration names; nothing if backends are spoken to in the clear.
    pub(crate) fn new(upstream: &Upstream) -> Result<Option<Arc<Self>>, Error> {
        let Some(tls) = &upstream.tls else { return Ok(None) };
        let mut config = client(tls)?;
        if upstream.http2 {
            config.alpn_protocols.push(HTTP_2.to_vec());
        }
        config.alpn_protocols.push(b"http/1.1".to_vec());
        let name = tls.name.as_ref().map(|name| ServerName::try_from(name.clone()));
        let name = name.transpose().map_err(|error| Error::Name(error.to_string()))?;
        Ok(Some(Arc::new(Self { config, name, backends: Mutex::default() })))
    }

    /// Makes a connection to this backend secure.
    pub(crate) async fn connect<S>(
        &self,
        backend: SocketAddr,
        stream: S,
    ) -> std::io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = self.name.clone().unwrap_or_else(|| ServerName::from(backend.ip()));
        self.connector(backend).connect(name, stream).await
    }

    fn connector(&self, backend: SocketAddr) -> TlsConnector {
        // Each change leaves it whole.
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let connector = backends.entry(backend).or_insert_with(|| {
            let mut config = self.config.clone();
            config.resumption = Resumption::in_memory_sessions(SESSIONS);
            Arc::new(config)
        });
        TlsConnector::from(Arc::clone(connector))
    }
}

/// Whether a backend has agreed to HTTP/2.
pub(crate) fn is_http2<S>(stream: &TlsStream<S>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(HTTP_2)
}

fn client(tls: &BackendTls) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(Error::Setup)?;
    let builder = if tls.verify {
        builder.with_root_certificates(trust::roots(tls.ca_file.as_deref()).map_err(Error::Trust)?)
    } else {
        let verifier = Arc::new(AnyCertificate::new(&provider));
        builder.dangerous().with_custom_certificate_verifier(verifier)
    };
    let Some(own) = &tls.certificate else { return Ok(builder.with_no_client_auth()) };
    // The same mistakes are found as in a certificate for clients.
    super::tls::load(&own.chain, &own.key)?;
    let wrong = |path: &std::path::Path| {
        let path = path.to_owned();
        |source| Error::File { path, source }
    };
    let chain = CertificateDer::pem_file_iter(&own.chain)
        .map_err(wrong(&own.chain))?
        .collect::<Result<_, _>>()
        .map_err(wrong(&own.chain))?;
    let key = PrivateKeyDer::from_pem_file(&own.key).map_err(wrong(&own.key))?;
    builder.with_client_auth_cert(chain, key).map_err(Error::Key)
}
