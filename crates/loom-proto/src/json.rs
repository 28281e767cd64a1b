//! The JSON form of a packet: one text, and beside it the data that is not JSON, as it is.
//!
//! ```json
//! {"first": 1, "received": 7, "attachments": 1, "frames": [{"publish": {"topic": "a", "payload": {"attachment": 0}}}]}
//! ```
//!
//! Fields have the names of the `.proto` files; an absent one has its default, an unknown one is passed over. Numbers are
//! numbers, enumerations lower-case names, ids UUIDs, other short bytes hexadecimal. What is JSON already stands inline; a
//! payload is `{"json": …}`, or `{"attachment": k, "type": "image/png"}` with the k-th attachment. Nothing is base64.
//!
//! It carries what is JSON and what is not without loss. What a `.proto` calls JSON and is not (a peer's fault) becomes a
//! JSON string, and a number that is not finite becomes null.

mod read;
mod table;
mod write;

use std::fmt;

use bytes::Bytes;

use self::read::In;
use self::write::Out;
use crate::v1::Packet;
use loom_core::spec::limits;

/// How deep a JSON value may be that stands inline; a deeper one travels as an attachment.
pub const DEPTH: usize = limits::PACKET_DEPTH;
/// Levels of a packet around such a value.
const AROUND: usize = 8;

/// Why a text is no packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// Where: `frames.publish.qos`.
    pub field: String,
    /// What is wrong there.
    pub reason: String,
}

impl Malformed {
    fn new(reason: impl Into<String>) -> Self {
        Self {
            field: String::new(),
            reason: reason.into(),
        }
    }

    fn within(mut self, name: &str) -> Self {
        if !self.field.is_empty() {
            self.field.insert(0, '.');
        }
        self.field.insert_str(0, name);
        self
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => write!(f, "the packet {}", self.reason),
            field => write!(f, "{field} of the packet {}", self.reason),
        }
    }
}

impl std::error::Error for Malformed {}

type Result<T> = std::result::Result<T, Malformed>;

/// A packet as text, and the binary messages that follow it.
pub fn encode(packet: &Packet) -> (String, Vec<Bytes>) {
    let mut out = Out::default();
    out.packet(packet);
    (out.text, out.attachments)
}

/// How many binary messages follow this text.
///
/// # Errors
///
/// The text is no JSON object, or says that more follow than are allowed.
pub fn attachments(text: &str) -> Result<usize> {
    if !text.contains("\"attachments\"") {
        return Ok(0);
    }
    let mut count = 0;
    for (name, raw) in read::members(text)? {
        if name == "attachments" {
            count = read::number::<usize>(raw).map_err(|error| error.within("attachments"))?;
        }
    }
    if count > limits::PACKET_ATTACHMENTS {
        return Err(
            Malformed::new(format!("may be at most {}", limits::PACKET_ATTACHMENTS))
                .within("attachments"),
        );
    }
    Ok(count)
}

/// A packet from its text and as many binary messages as [`attachments`] says.
///
/// # Errors
///
/// The text is not JSON or too deep, a field has the wrong type, or an attachment is missing or used twice.
pub fn decode(text: &str, attachments: Vec<Bytes>) -> Result<Packet> {
    if read::depth(text.as_bytes()) > DEPTH + AROUND {
        return Err(Malformed::new(format!(
            "is nested more than {DEPTH} levels deep: send such data as an attachment"
        )));
    }
    let announced = self::attachments(text)?;
    if announced != attachments.len() {
        let came = attachments.len();
        return Err(
            Malformed::new(format!("are {announced}, but {came} came")).within("attachments")
        );
    }
    In::new(attachments).packet(text)
}
