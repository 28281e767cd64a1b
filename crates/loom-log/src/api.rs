//! The words that the log and its users share.

use std::path::Path;
use std::sync::Arc;

use loom_core::record::Record;
use loom_core::spec::limits as spec;
use loom_core::{Error, Position, Ticket};

use crate::files::{Files, Storage};

/// Says what the wall shows, in milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;
/// Makes what touches the files below a directory.
pub type MakeStorage = Arc<dyn Fn(&Path) -> Arc<dyn Storage> + Send + Sync>;

/// How a log is kept.
#[derive(Clone)]
pub struct Options {
    /// Bytes of one segment; they are prepared ahead.
    pub segment_bytes: u64,
    /// Bytes of one segment of large bodies.
    pub blob_segment_bytes: u64,
    /// Bytes of records that may wait to be written.
    pub pending_bytes: u64,
    /// Bytes that one body may have.
    pub body_bytes: u64,
    /// How long what nobody waits for may stay unsynced, in milliseconds.
    pub sync_ms: u64,
    /// Bytes of events that are kept where there is no directory.
    pub memory_bytes: u64,
    /// What may be deleted.
    pub retention: Retention,
    /// The wall: milliseconds since 1970. The log's own clock never goes back.
    pub clock: Clock,
    /// What touches the files of a namespace, given its directory.
    pub storage: MakeStorage,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: spec::LOG_SEGMENT_BYTES as u64,
            blob_segment_bytes: spec::LOG_BLOB_SEGMENT_BYTES as u64,
            pending_bytes: spec::LOG_PENDING_BYTES as u64,
            body_bytes: spec::LOG_BODY_BYTES as u64,
            sync_ms: spec::LOG_SYNC_MS,
            memory_bytes: spec::LOG_MEMORY_BYTES as u64,
            retention: Retention::default(),
            clock: Arc::new(wall_ms),
            storage: Arc::new(|dir| Arc::new(Files::new(dir))),
        }
    }
}

/// The one place where the log looks at the wall.
#[expect(
    clippy::disallowed_methods,
    reason = "records carry wall times, and the thread that writes them is their clock"
)]
fn wall_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// What may be deleted, when two snapshots stand behind it, as far as [`Needs`] lets it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Segments whose last record is older than this, in milliseconds.
    pub age_ms: Option<u64>,
    /// The oldest segments, while all together have more bytes than this.
    pub bytes: Option<u64>,
}

/// From where on a log is needed; none: nothing of it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// By anybody. Nothing goes for its age from there on; what the log has too much goes in spite of it.
    pub all: Option<u64>,
    /// By turns that are open. Nothing goes from there on.
    pub turns: Option<u64>,
}

impl From<Option<u64>> for Needs {
    /// Needed by an open turn, so kept whatever the rules are.
    fn from(position: Option<u64>) -> Self {
        Self {
            all: position,
            turns: position,
        }
    }
}

/// Who opens a partition, and when.
#[derive(Debug, Clone, Default)]
pub struct Boot {
    /// What the wall shows, in milliseconds since 1970.
    pub wall_ms: u64,
    /// Names the engine.
    pub id: u128,
    /// The version of Loom.
    pub version: String,
    /// Go on behind damage, at the price of an explicit gap.
    pub accept_loss: bool,
}

/// What a partition holds, given when it is opened: the newest sound snapshot, then every record behind it.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "handed through, never kept")]
pub enum Recovered<'a> {
    /// What the core wrote; comes first, if at all.
    Snapshot(Position, &'a [u8]),
    /// A record, in order.
    Record(Position, Record),
}

/// A partition that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Its number in this data directory.
    pub partition: u32,
    /// Which life of it this is, from 1.
    pub epoch: u32,
    /// The last record there is: the one that began this life.
    pub end: Position,
    /// The oldest position that can be read.
    pub first: u64,
    /// Bytes of a torn end that were cut off.
    pub torn_bytes: u64,
    /// The log had been closed well.
    pub clean: bool,
    /// Snapshots that were passed over because they are damaged.
    pub damaged_snapshots: u64,
}

/// The answer to an [`Outgoing`] with a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whose.
    pub ticket: Ticket,
    /// The position of the first record of its batch (the next ones follow it without a gap), or why it is not there.
    pub result: Result<Position, Error>,
}

/// Takes the answers.
pub trait Sink: Send + Sync {
    /// Takes all of `answers`, in the order in which they came true. Called on threads of the log, which hold none of
    /// its locks.
    fn answered(&self, answers: &mut Vec<Answer>);
}

/// How much one read may return; it returns at least one record if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimit {
    /// Records.
    pub records: usize,
    /// Bytes of heads and bodies.
    pub bytes: usize,
    /// Only those of this kind ([`Record::kind`]); the others are passed over.
    pub only: Option<u8>,
}

impl ReadLimit {
    /// One record, however large.
    pub(crate) const ONE: Self = Self {
        records: 1,
        bytes: 1,
        only: None,
    };
}

impl Default for ReadLimit {
    fn default() -> Self {
        Self {
            records: 1_024,
            bytes: 4 << 20,
            only: None,
        }
    }
}

/// What one read returned.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// In order.
    pub records: Vec<(Position, Record)>,
    /// Where to go on.
    pub next: u64,
    /// There was no more.
    pub at_end: bool,
}

/// What retention did to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// Which namespace.
    pub namespace: String,
    /// Which file, below the namespace.
    pub file: String,
    /// Its bytes.
    pub bytes: u64,
    /// For a segment: its first position and the first behind it.
    pub positions: Option<(u64, u64)>,
    /// Which rule: "age", "bytes", "unreachable".
    pub why: &'static str,
}

/// What the log did so far, over all partitions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Records written.
    pub records: u64,
    /// Bytes written to segments.
    pub bytes: u64,
    /// Syncs done.
    pub syncs: u64,
    /// Bytes that wait to be written.
    pub pending_bytes: u64,
    /// Writes and syncs that failed.
    pub failed: u64,
    /// Records refused before they were written.
    pub refused: u64,
    /// Distinct pieces of large bodies.
    pub pieces: u64,
    /// Bytes of their segments.
    pub blob_bytes: u64,
    /// Jumps of the wall clock over a minute.
    pub clock_jumps: u64,
}
