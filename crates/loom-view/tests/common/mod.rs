//! Records as a log has them, made by hand.

use loom_core::record::Id;
use loom_core::{Position, Record};
use prost::Message;
use rusqlite::{Connection, types::FromSql};

/// The head of an event, as the log has it.
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
    #[prost(message, optional, tag = "9")]
    causation: Option<Id>,
    #[prost(uint64, tag = "12")]
    time_ms: u64,
    #[prost(uint32, tag = "14")]
    qos: u32,
    #[prost(string, optional, tag = "15")]
    content_type: Option<String>,
    #[prost(uint64, tag = "21")]
    turn: u64,
}

pub(crate) const EVENT: u8 = 10;
pub(crate) const SENT: u8 = 31;
pub(crate) const AT_MS: u64 = 1_700_000_000_000;

pub(crate) fn event(kind: u8, id: u128, run: u128, topic: &str, data: &[u8]) -> Record {
    event_of("default/clerk", kind, (id, run), topic, data)
}

pub(crate) fn event_of(
    sender: &str,
    kind: u8,
    (id, run): (u128, u128),
    topic: &str,
    data: &[u8],
) -> Record {
    let head = Head {
        id: Some(id.into()),
        topic: topic.to_owned(),
        sender: sender.to_owned(),
        namespace: "default".to_owned(),
        thread: Some(7.into()),
        run: Some(run.into()),
        causation: (id != run).then(|| run.into()),
        time_ms: AT_MS + u64::try_from(id).unwrap_or(0),
        qos: 1,
        ..Head::default()
    };
    Record::decode(kind, &head.encode_to_vec(), data.to_vec(), at(0, 0)).unwrap()
}

pub(crate) fn at(epoch: u32, n: u64) -> Position {
    Position {
        partition: 3,
        epoch,
        n,
    }
}

pub(crate) fn one<T: FromSql>(db: &Connection, sql: &str) -> T {
    db.query_row(sql, [], |row| row.get(0)).unwrap()
}
