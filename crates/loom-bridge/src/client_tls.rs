//! TLS of a client: whom it trusts. There is no way to trust everybody.

use std::sync::Arc;

use loom_core::{Error, Result};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio_rustls::TlsConnector;

use crate::config::ClientTls;
use crate::server_tls::{authorities, identity, provider};

pub(crate) fn connector(tls: &ClientTls, protocol: &str) -> Result<TlsConnector> {
    let wrong = |error: rustls::Error| Error::invalid("tls", format!("it cannot be used: {error}"));
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(wrong)?;
    let builder = match &tls.ca {
        Some(ca) => builder.with_root_certificates(authorities("ca", ca)?),
        None => builder.with_platform_verifier().map_err(wrong)?,
    };
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let (chain, key) = identity(own, ["cert", "cert_key"])?;
            builder.with_client_auth_cert(chain, key).map_err(wrong)?
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

pub(crate) fn name(tls: &ClientTls, host: &str) -> Result<ServerName<'static>> {
    let name = tls.name.as_deref().unwrap_or(host).to_owned();
    ServerName::try_from(name.clone()).map_err(|_| {
        Error::invalid(
            "url",
            format!("{name:?} is no name that a certificate may have"),
        )
    })
}
