//! Bugs that a simulator switches on to see whether its checks catch them. Without the feature `planted` none can be.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    not(feature = "planted"),
    expect(unreachable_pub, reason = "public with the feature")
)]
pub enum Planted {
    /// What asked for the disk is answered when it is written.
    AckBeforeSync,
    /// What could not be written is answered as if it were.
    AckFailed,
    /// A sync answers for what was written after it began.
    SyncCoversLater,
    /// A commit says that all is synced that is written.
    SyncedTooHigh,
    /// The log goes on after a sync that failed.
    GoesOnAfterFailure,
    /// The next segment is begun before the last one is synced.
    RotatesUnsynced,
    /// The next segment has its name before its header is synced.
    HeaderUnsynced,
    /// The names of segments are not synced.
    NamesUnsynced,
    /// Each record of a batch is a frame of its own.
    BatchSplit,
    /// What a write without space left behind is not overwritten with zeros.
    FullUnrepaired,
    /// Nobody looks whether a frame is as it was written.
    CrcSkipped,
    /// A bad record is cut off, whatever was synced behind it.
    CutBelowFloor,
    /// What stands behind a bad record is not looked at.
    StopsAtHole,
    /// What stands behind the end is not overwritten with zeros.
    TailKept,
    /// What is behind the floor is not written again.
    TailTrusted,
    /// Chunks are not synced with the record that names them.
    ChunksUnsynced,
    /// Nobody looks whether the chunks of a record are there.
    ChunksTrusted,
}

impl Planted {
    /// All of them.
    #[cfg(feature = "planted")]
    pub const ALL: [Self; 17] = [
        Self::AckBeforeSync,
        Self::AckFailed,
        Self::SyncCoversLater,
        Self::SyncedTooHigh,
        Self::GoesOnAfterFailure,
        Self::RotatesUnsynced,
        Self::HeaderUnsynced,
        Self::NamesUnsynced,
        Self::BatchSplit,
        Self::FullUnrepaired,
        Self::CrcSkipped,
        Self::CutBelowFloor,
        Self::StopsAtHole,
        Self::TailKept,
        Self::TailTrusted,
        Self::ChunksUnsynced,
        Self::ChunksTrusted,
    ];
}

/// Which of them is on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bug {
    #[cfg(feature = "planted")]
    pub(crate) on: Option<Planted>,
}

impl Bug {
    #[cfg(feature = "planted")]
    pub(crate) fn is(self, bug: Planted) -> bool {
        self.on == Some(bug)
    }

    #[cfg(not(feature = "planted"))]
    #[expect(clippy::unused_self, reason = "with the feature it looks")]
    pub(crate) const fn is(self, _bug: Planted) -> bool {
        false
    }
}
