//! The log of Loom: what is acknowledged is in it, and nothing else is.
//!
//! [`Machine`] decides: it takes batches of records, hands out what is to be done to files, is told when each thing is
//! done, and answers. [`Recovery`] reads what an earlier life left. Both do no I/O, so a simulator drives them as well as
//! a disk does. It is not a database: it appends, and reads in order.
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

mod api;
mod backup;
mod blobs;
mod error;
mod files;
pub mod format;
mod lock;
mod log;
mod machine;
mod mark;
mod memory;
mod opening;
mod partition;
mod planted;
mod reader;
mod recovery;
mod retention;
mod snapshots;
mod storage;
mod walk;
mod writer;

pub use crate::api::{
    Answer, Batch, Boot, Clock, Deleted, LogStats, MakeStorage, Needs, Opened, Options, ReadLimit,
    Recovered, Retention, Sink,
};
pub use crate::backup::{Report, restore, verify as verify_backup, write as backup};
pub use crate::error::{LogError, Result};
pub use crate::files::{Files, Storage};
pub use crate::lock::{FORMAT, Holder, holder};
pub use crate::log::Log;
pub use crate::machine::{Active, Ahead, Answered, Append, Bounds, Machine, Refusal};
pub use crate::memory::Memory;
#[cfg(feature = "planted")]
pub use crate::planted::Planted;
pub use crate::reader::{Reader, Records, Verified};
pub use crate::recovery::{Corrupt, End, Found, Known, Recovery, Source, Unreadable, Why};
pub use crate::snapshots::Snapshot;
pub use crate::storage::{Directory, Failure, File, Op, OpId};
