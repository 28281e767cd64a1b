//! Who may attach: credentials by the hashes of their tokens.

use std::sync::Arc;

use loom_core::Grants;
use sha2::{Digest, Sha256};

/// Any namespace.
pub const ANYWHERE: &str = "*";

/// One credential. The token itself is known to its owner only.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Names it in lists and logs.
    pub id: String,
    /// SHA-256 of the token.
    pub hash: [u8; 32],
    /// Its namespace, or [`ANYWHERE`].
    pub namespace: String,
    /// What it allows.
    pub grants: Arc<Grants>,
    /// Milliseconds since 1970; none: it does not expire.
    pub expires_ms: Option<u64>,
}

impl Credential {
    /// Whether it counts at this time.
    pub fn is_valid(&self, wall_ms: u64) -> bool {
        self.expires_ms.is_none_or(|end| wall_ms < end)
    }

    /// Whether a session with it may be in this namespace.
    pub fn covers(&self, namespace: &str) -> bool {
        self.namespace == ANYWHERE || self.namespace == namespace
    }
}

/// The table of credentials. Without one nobody may attach.
#[derive(Debug, Clone, Default)]
pub struct Authority {
    credentials: Vec<Credential>,
}

impl Authority {
    /// A table of these.
    pub fn new(credentials: Vec<Credential>) -> Self {
        Self { credentials }
    }

    /// The credential of a token, if there is one that counts. How long it takes does not depend on how much of the
    /// token is right.
    pub(crate) fn find(&self, token: &str, wall_ms: u64) -> Option<&Credential> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = None;
        for credential in &self.credentials {
            if is_equal(&credential.hash, &hash) {
                found = Some(credential);
            }
        }
        found.filter(|credential| credential.is_valid(wall_ms))
    }

    /// The credential of this id, if it still counts.
    pub(crate) fn get(&self, id: &str, wall_ms: u64) -> Option<&Credential> {
        self.credentials
            .iter()
            .find(|credential| credential.id == id && credential.is_valid(wall_ms))
    }
}

fn is_equal(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let differ = one
        .iter()
        .zip(other)
        .fold(0_u8, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(differ) == 0
}
