// SPDX-License-Identifier: Apache-2.0
//! TLS of the stream, for both sides.
//!
//! In: the operator's own CA certificates (PEM). Out: a client that trusts exactly those, and a
//! server that presents whatever certificate is current.
//!
//! Public roots are never trusted: nobody else may pose as the operator. While a CA is being
//! replaced the client trusts the old and the new one together, and the server's certificate is
//! asked for at each handshake, so neither side restarts.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::ResolvesServerCert;
use tonic::transport::{Certificate, ClientTlsConfig};

/// What of the CA certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The PEM text holds no certificate.
    #[error("no CA certificate given; the operator publishes them in the ConfigMap that the agent mounts")]
    NoCa,
    /// The PEM text cannot be parsed.
    #[error("a CA certificate cannot be parsed: {0}")]
    BadPem(String),
    /// The protocol versions are not available in the provider.
    #[error("TLS cannot be configured: {0}")]
    Config(#[from] rustls::Error),
}

/// A client that trusts the CA certificates in `ca_pem` (one or more, concatenated) and expects a
/// server certificate for `server_name`.
///
/// # Errors
/// [`TlsError::NoCa`] and [`TlsError::BadPem`].
pub fn client(ca_pem: &[u8], server_name: &str) -> Result<ClientTlsConfig, TlsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(ca_pem).collect();
    if parsed.map_err(|error| TlsError::BadPem(error.to_string()))?.is_empty() {
        return Err(TlsError::NoCa);
    }
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca_pem)).domain_name(server_name))
}

/// A server that asks `certificate` at every handshake which certificate to present, and speaks
/// HTTP/2 only.
///
/// # Errors
/// [`TlsError::Config`] when the provider lacks the safe protocol versions.
pub fn server(certificate: Arc<dyn ResolvesServerCert>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_trusted_without_a_ca() {
        assert!(matches!(client(b"", "operator"), Err(TlsError::NoCa)));
        assert!(matches!(client(b"not pem", "operator"), Err(TlsError::NoCa)));
        let broken = b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
        assert!(matches!(client(broken, "operator"), Err(TlsError::BadPem(_))));
    }
}
