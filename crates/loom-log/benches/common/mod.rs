//! The event that the benches write.

use loom_core::Position;
use loom_core::record::{Id, Record};
use prost::Message;

/// Bytes of its payload.
pub(crate) const PAYLOAD: usize = 256;

/// The part of an event's head that each one has.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(message, optional, tag = "1")]
    id: Option<Id>,
    #[prost(string, tag = "2")]
    topic: String,
    #[prost(string, tag = "3")]
    sender: String,
    #[prost(string, tag = "4")]
    namespace: String,
    #[prost(message, optional, tag = "5")]
    thread: Option<Id>,
    #[prost(message, optional, tag = "7")]
    run: Option<Id>,
    #[prost(uint64, tag = "12")]
    time_ms: u64,
    #[prost(uint32, tag = "14")]
    qos: u32,
}

pub(crate) fn event(n: u64) -> Record {
    let id = Some(Id {
        high: 1 << 40,
        low: n,
    });
    let head = Head {
        id,
        topic: "orders.created".to_owned(),
        sender: "main/shop".to_owned(),
        namespace: "main".to_owned(),
        thread: id,
        run: id,
        time_ms: 1_700_000_000_000,
        qos: 1,
    };
    let at = Position {
        partition: 1,
        epoch: 1,
        n,
    };
    Record::decode(10, &head.encode_to_vec(), vec![b'x'; PAYLOAD], at).unwrap()
}
