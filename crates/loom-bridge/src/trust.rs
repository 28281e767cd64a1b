//! Why one side does not trust the other, in words, with what is to be changed.

use std::error::Error as Cause;
use std::io;

use loom_core::{Code, Error};
use rustls::{AlertDescription, CertificateError, InvalidMessage};

/// What TLS says against the other side, wherever among the causes of an error it stands.
pub(crate) fn untrusted(error: &(dyn Cause + 'static)) -> Option<Error> {
    if let Some(found) = find(error) {
        return told(found);
    }
    // HTTP/2 keeps of an error below it what it said, and not the error.
    let text = crate::carrier::cause(error);
    let is_it =
        |alert: &&AlertDescription| rustls::Error::AlertReceived(**alert).to_string() == text;
    of_client(*ALERTS.iter().find(is_it)?)
}

/// What a node says to a client whose certificate it does not take.
const ALERTS: [AlertDescription; 5] = [
    AlertDescription::CertificateRequired,
    AlertDescription::UnknownCA,
    AlertDescription::BadCertificate,
    AlertDescription::DecryptError,
    AlertDescription::CertificateExpired,
];

fn find<'a>(error: &'a (dyn Cause + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn told(error: &rustls::Error) -> Option<Error> {
    Some(match error {
        rustls::Error::InvalidCertificate(why) => of_node(why),
        rustls::Error::AlertReceived(alert) => of_client(*alert)?,
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            let message = "the node speaks no TLS there";
            wrong("url", message, "loom:// and ws:// are without TLS")
        }
        _ => return None,
    })
}

fn wrong(field: &str, message: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::new(Code::Unauthenticated, message)
        .field(field)
        .hint(hint)
}

fn of_node(why: &CertificateError) -> Error {
    match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => wrong(
            "ca",
            "nobody who is trusted here has signed the node's certificate",
            "give ca=…, --ca or LOOM_CA: the certificate of who has signed it, PEM",
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => wrong(
            "url",
            "the node's certificate has expired",
            "renew it and start the node again; or the clock of this machine is wrong",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => wrong(
            "url",
            "the node's certificate is not valid yet",
            "is the clock of this machine right?",
        ),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => wrong(
            "url",
            format!(
                "the node's certificate is not for {}, but for: {}",
                expected.to_str(),
                names(presented)
            ),
            "connect by a name that is in it, or have one made for this name",
        ),
        // A server that shows the certificate of an authority: webpki has no error of its own for it in rustls.
        CertificateError::Other(inner) if inner.to_string().contains("CaUsedAsEndEntity") => wrong(
            "url",
            "the node's certificate is that of an authority, which no node may show",
            "make one with basicConstraints CA:FALSE; openssl makes others unless told",
        ),
        _ => wrong(
            "url",
            format!("the node's certificate cannot be trusted: {why:?}"),
            "renew it at the node",
        ),
    }
}

fn names(presented: &[String]) -> String {
    match presented {
        [] => "nobody, as it names no subjectAltName".to_owned(),
        all => all
            .iter()
            .map(|name| plain(name))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// A name as people write it: rustls hands it on as `DnsName("node")` or `IpAddress(127.0.0.1)`.
fn plain(presented: &str) -> &str {
    let inner = |of: &str| presented.strip_prefix(of)?.strip_suffix(')');
    ["DnsName(", "IpAddress("]
        .into_iter()
        .find_map(inner)
        .unwrap_or(presented)
        .trim_matches('"')
}

fn of_client(alert: AlertDescription) -> Option<Error> {
    let hint = "give cert=… and cert_key=…, or LOOM_CERT and LOOM_CERT_KEY";
    Some(match alert {
        AlertDescription::CertificateRequired => wrong(
            "cert",
            "the node asks for a certificate, and none was shown",
            hint,
        ),
        AlertDescription::UnknownCA | AlertDescription::BadCertificate => wrong(
            "cert",
            "the node does not trust who has signed the certificate that it was shown",
            "have it signed by an authority in the node's --tls-client-ca",
        ),
        AlertDescription::DecryptError => wrong(
            "cert",
            "the node does not trust the certificate that it was shown",
            "have it signed by an authority in the node's --tls-client-ca",
        ),
        AlertDescription::CertificateExpired => wrong(
            "cert",
            "the certificate that the node was shown has expired",
            "renew it",
        ),
        _ => return None,
    })
}
