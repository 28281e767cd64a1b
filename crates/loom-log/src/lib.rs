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
pub mod blobs;
mod error;
pub mod files;
pub mod format;
mod lock;
mod machine;
mod memory;
mod planted;
mod recovery;
pub mod snapshots;
mod storage;

pub use crate::api::{
    Answer, Batch, Boot, Deleted, LogStats, Opened, Options, ReadLimit, Recovered, Retention, Sink,
};
pub use crate::error::{LogError, Result};
pub use crate::lock::{FORMAT, Holder, Lock, holder};
pub use crate::machine::{Active, Ahead, Answered, Append, Bounds, Machine, Refusal};
pub use crate::memory::Memory;
#[cfg(feature = "planted")]
pub use crate::planted::Planted;
pub use crate::recovery::{Corrupt, End, Found, Known, Recovery, Source, Unreadable, Why};
pub use crate::storage::{Directory, Failure, File, Op, OpId};
