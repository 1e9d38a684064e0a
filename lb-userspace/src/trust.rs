//! Whom TLS clients of ours believe.

use std::path::Path;

use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};

/// Where the system keeps the certificates that it trusts: Debian, Fedora, SUSE, Alpine.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The certificates in a file (PEM), or those that the system trusts. Says what is wrong.
pub(crate) fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let system = || SYSTEM.iter().map(Path::new).find(|path| path.exists());
    let path = ca_file.or_else(system).ok_or(
        "this system has no certificates that it trusts: install ca-certificates, or write `ca_file`",
    )?;
    let wrong = |why: String| format!("read certificates from {}: {why}", path.display());
    let found = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in found {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        let added = roots.add(certificate);
        // A system has old ones that cannot be read, beside those that are needed.
        if ca_file.is_some() {
            added.map_err(|error| wrong(error.to_string()))?;
        }
    }
    if roots.is_empty() {
        return Err(wrong("there is none".into()));
    }
    Ok(roots)
}

/// Takes every certificate: for those who ask whether a server works, not who it is, or have been told
/// not to look.
#[derive(Debug)]
pub(crate) struct AnyCertificate {
    schemes: Vec<SignatureScheme>,
}

impl AnyCertificate {
    /// With the signatures that this provider knows.
    pub(crate) fn new(provider: &CryptoProvider) -> Self {
        Self { schemes: provider.signature_verification_algorithms.supported_schemes() }
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}
