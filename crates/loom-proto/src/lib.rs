//! What crosses the wire, generated from `proto/loom/v1`: an envelope, and packets of frames.
//!
//! The types only; what the frames mean and in which order they come is in `loom-session` and `docs/protocol.md`.

/// Version 1 of the protocol.
#[expect(
    clippy::pedantic,
    missing_docs,
    reason = "generated; the .proto files carry the comments"
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/loom.v1.rs"));
}

pub mod encoded;
pub mod json;

pub use encoded::Encoded;

pub use prost::Message;
