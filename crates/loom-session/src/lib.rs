//! Sessions over the wire as state machines: a [`Hub`] holds all sessions of a node, a [`Client`] is one of them at its
//! other end. Frames are numbered, resent and put in order; credit bounds what is under way; what reconnects goes on
//! where it was; newer attachments fence older ones.
//!
//! Nothing here opens a socket, reads a clock or draws a random number: drivers do, and the simulator stands in for them.
#![warn(missing_docs)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        reason = "a test says what it expects by failing"
    )
)]

mod attached;
mod authority;
mod channel;
mod client;
mod convert;
mod hub;
mod info;
mod limits;
mod planted;
mod queue;

pub use crate::attached::ReadErrand;
pub use crate::authority::{ANYWHERE, Authority, Credential};
pub use crate::channel::{PACKET_BYTES, Progress};
pub use crate::client::{
    Client, ClientConfig, Invocation, LinkChange, LinkState, Note, Sending, Sent, Why,
};
pub use crate::hub::{ConnId, Counts, Errand, Hub, HubConfig, Looked, SessionKey, Shown, VERSION};
pub use crate::limits::Limits;
#[cfg(feature = "planted")]
pub use crate::planted::Planted;
