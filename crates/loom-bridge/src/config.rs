//! What a bridge is told: where it listens or dials, and whom it trusts.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Where and how a node serves.
#[derive(Debug, Clone, Default)]
pub struct ServeConfig {
    /// Addresses of TCP sockets; port 0: any free one.
    pub listen: Vec<SocketAddr>,
    /// Paths of Unix sockets; only their owner may connect.
    pub unix: Vec<PathBuf>,
    /// TLS on the TCP sockets.
    pub tls: Option<ServerTls>,
    /// Web pages from these origins may connect: `https://shop.example:8443`.
    pub origins: Vec<String>,
    /// Further names by which the node is reached: `node.internal`, or with a port.
    pub hosts: Vec<String>,
}

/// What a server shows, and whom it lets in.
#[derive(Clone)]
pub struct ServerTls {
    /// Certificate chain and private key.
    pub identity: Identity,
    /// Clients must show a certificate that these authorities have signed: PEM.
    pub client_ca: Option<Vec<u8>>,
}

/// A certificate chain and its private key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate first, then those that lead to an authority.
    pub chain: Vec<u8>,
    /// PKCS #8, PKCS #1 or SEC 1.
    pub key: Vec<u8>,
}

/// Which carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `loom.v1.Bridge/Attach`.
    Grpc,
    /// `/v1/ws` with `loom.v1.proto`.
    WebSocket,
}

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A name or an address, and a port.
    Tcp {
        /// Without brackets.
        host: String,
        /// From 1 on.
        port: u16,
    },
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// What a client dials.
#[derive(Clone)]
pub struct Target {
    /// gRPC or WebSocket.
    pub way: Way,
    /// Where.
    pub address: Address,
    /// With TLS; never on a Unix socket.
    pub tls: Option<ClientTls>,
}

/// Whom a client trusts, and what it shows.
#[derive(Clone, Default)]
pub struct ClientTls {
    /// Authorities, PEM. Unset: those of the system.
    pub ca: Option<Vec<u8>>,
    /// What the client shows to a node that asks for it.
    pub identity: Option<Identity>,
    /// The name in the node's certificate, where it is not the host that is dialled.
    pub name: Option<String>,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mutual = self.client_ca.is_some();
        f.debug_struct("ServerTls")
            .field("mutual", &mutual)
            .finish_non_exhaustive()
    }
}
