//! The carriers of the Bridge: how packets of `loom-session` travel between processes.
//!
//! [`Serving`] is one port of a node for gRPC and WebSocket, over TCP and Unix sockets, with or without TLS; [`Dialing`] is a
//! client's way to it. Each runs on a thread of its own with a tokio runtime of its own, which ends with it. No meaning is
//! here: what a frame does is decided by the machines of `loom-session`, when a connection may stand is decided here.
#![warn(missing_docs)]

mod admission;
mod attend;
mod carrier;
mod client_tls;
mod config;
mod dial;
mod door;
mod grpc;
mod http;
mod idle;
mod node;
mod origin;
mod runtime;
mod serve;
mod server_tls;
mod sizes;
mod socket;
mod trust;
mod websocket;

pub use crate::admission::Counts as Visits;
pub use crate::config::{Address, ClientTls, Identity, ServeConfig, ServerTls, Target, Way};
pub use crate::dial::{Clock, Dialing, Wake};
pub use crate::door::Door;
pub use crate::serve::{Serving, Stats};
