//! TLS of a node: its certificate, and those it asks for.

use std::sync::Arc;

use loom_core::{Error, Result};
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio_rustls::TlsAcceptor;

use crate::config::{Identity, ServerTls};

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

pub(crate) fn acceptor(tls: &ServerTls) -> Result<TlsAcceptor> {
    let wrong = |error: rustls::Error| Error::invalid("tls", format!("it cannot be used: {error}"));
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(wrong)?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let roots = Arc::new(authorities("tls_client_ca", ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(|error| Error::invalid("tls_client_ca", error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let (chain, key) = identity(&tls.identity, ["tls_cert", "tls_key"])?;
    let mut config = builder.with_single_cert(chain, key).map_err(wrong)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

pub(crate) fn identity(
    identity: &Identity,
    [cert, key]: [&str; 2],
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates(cert, &identity.chain)?;
    let key = PrivateKeyDer::from_pem_slice(&identity.key)
        .map_err(|error| Error::invalid(key, format!("no private key in PEM: {error}")))?;
    Ok((chain, key))
}

pub(crate) fn authorities(field: &str, pem: &[u8]) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(field, pem)? {
        roots
            .add(certificate)
            .map_err(|error| Error::invalid(field, format!("no authority: {error}")))?;
    }
    Ok(roots)
}

fn certificates(field: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<std::result::Result<Vec<_>, _>>();
    let all =
        all.map_err(|error| Error::invalid(field, format!("no certificate in PEM: {error}")))?;
    if all.is_empty() {
        return Err(Error::invalid(field, "there is no certificate in it"));
    }
    Ok(all)
}
