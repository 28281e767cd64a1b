//! Commits and syncs.

use std::collections::BTreeSet;

use loom_core::{Level, Ticket};

use super::{Answered, Append, Machine, Phase, Planted, Purpose, Refusal};
use crate::format::{Batch, Mark, Place, put_frame};
use crate::storage::{Failure, File, Op};

/// No more writes than these are taken together before they are synced.
const OWED_WRITES: u32 = 4;

/// Who waits for a batch of a commit.
#[derive(Debug)]
struct Waiter {
    ticket: Ticket,
    level: Level,
    position: u64,
    next: u64,
}

/// One write: some batches in the order they came.
#[derive(Debug)]
pub(super) struct Commit {
    /// Writes ahead of it that are under way.
    ahead: usize,
    /// The frames, until they are handed out.
    frames: Option<Vec<u8>>,
    length: u64,
    /// The position behind it.
    next: u64,
    waiting: Vec<Waiter>,
    files: BTreeSet<File>,
    failed: Option<Failure>,
}

impl Commit {
    pub(super) fn into_waiting(self) -> impl Iterator<Item = Ticket> {
        self.waiting.into_iter().map(|waiter| waiter.ticket)
    }
}

/// Syncs of all that was written when they were handed out.
#[derive(Debug)]
pub(super) struct Syncing {
    /// Which are under way.
    left: usize,
    next: u64,
    bytes: u64,
    failed: Option<Failure>,
}

impl Machine {
    /// Begins the next commit if one is due.
    pub(super) fn begin_commit(&mut self) -> bool {
        let gathers = self.held && self.pending_os == 0;
        if self.pending.is_empty() || gathers || !self.may_write() {
            return false;
        }
        let taken = self.take_pending();
        if taken.is_empty() {
            return false;
        }
        let mark = Mark::Synced(self.synced_mark());
        self.write(taken, mark);
        true
    }

    /// Writes the record that closes the log, if it fits.
    pub(super) fn begin_closing(&mut self, last: Batch) -> bool {
        let fits = |active: super::Active| active.room(0) >= last.frame_bytes() as u64;
        if !self.active.is_some_and(fits) {
            return false;
        }
        let append = Append {
            ticket: None,
            level: Level::Disk,
            batch: last,
            ahead: Vec::new(),
            opens: true,
        };
        self.flush = true;
        self.write(vec![append], Mark::Closed(self.synced));
        true
    }

    fn synced_mark(&self) -> u64 {
        if self.bug.is(Planted::SyncedTooHigh) {
            return self.written;
        }
        self.synced
    }

    /// While a sync is under way batches gather, unless somebody waits for no more than the write, or they are many.
    fn may_write(&self) -> bool {
        let gathers = self.syncing.is_some()
            && self.pending_os == 0
            && self.pending_bytes < self.bounds.commit_bytes;
        !gathers && (self.unsynced_bytes == 0 || self.front_bytes() <= self.unsynced_room())
    }

    fn unsynced_room(&self) -> u64 {
        self.bounds
            .unsynced_bytes
            .saturating_sub(self.unsynced_bytes)
    }

    fn front_bytes(&self) -> u64 {
        self.pending
            .front()
            .map_or(0, |append| append.batch.frame_bytes() as u64)
    }

    /// The batches that fit, in order: into the segment, into the commit, and into what may be unsynced.
    fn take_pending(&mut self) -> Vec<Append> {
        let mut taken = Vec::new();
        let (mut bytes, mut frames) = (0, 0_u64);
        while let Some(front) = self.pending.front() {
            let frame = front.batch.frame_bytes() as u64;
            let fits = self.fits(front, frames)
                && (taken.is_empty()
                    || (bytes + front.bytes() <= self.bounds.commit_bytes
                        && frames + frame <= self.unsynced_room()));
            if !fits {
                break;
            }
            bytes += front.bytes();
            frames += frame;
            self.pending_os -= usize::from(front.level == Level::Os);
            taken.extend(self.pending.pop_front());
        }
        self.pending_bytes = self.pending_bytes.saturating_sub(bytes);
        taken
    }

    /// Whether a batch fits into the segment behind so many bytes.
    pub(super) fn fits(&self, append: &Append, behind: u64) -> bool {
        let reserve = if append.opens {
            0
        } else {
            self.bounds.reserve_bytes
        };
        let needed = behind + append.batch.frame_bytes() as u64;
        self.active
            .is_some_and(|active| needed <= active.room(reserve))
    }

    fn write(&mut self, taken: Vec<Append>, first: Mark) {
        let mut commit = Commit {
            ahead: 0,
            frames: None,
            length: 0,
            next: self.written,
            waiting: Vec::new(),
            files: BTreeSet::new(),
            failed: None,
        };
        let mut frames = Vec::new();
        let mut mark = first;
        for append in taken {
            self.put_batch(&mut frames, &append.batch, commit.next, mark);
            mark = Mark::None;
            let position = commit.next;
            commit.next += u64::from(append.batch.count());
            if let Some(ticket) = append.ticket {
                commit.waiting.push(Waiter {
                    ticket,
                    level: append.level,
                    position,
                    next: commit.next,
                });
            }
            for ahead in append.ahead {
                commit.ahead += 1;
                commit.files.insert(ahead.file);
                let (file, at, bytes) = (ahead.file, ahead.at, ahead.bytes);
                self.issue(Purpose::Ahead, Op::Write { file, at, bytes });
            }
        }
        commit.length = frames.len() as u64;
        commit.frames = Some(frames);
        self.commit = Some(commit);
        self.write_frames();
    }

    fn put_batch(&self, frames: &mut Vec<u8>, batch: &Batch, position: u64, mark: Mark) {
        let place = Place {
            position,
            epoch: self.epoch,
            mark,
        };
        if !self.bug.is(Planted::BatchSplit) {
            return put_frame(frames, self.salt(), place, batch);
        }
        for (part, position) in batch.split().iter().zip(position..) {
            put_frame(frames, self.salt(), Place { position, ..place }, part);
        }
    }

    /// Hands out the frames once all ahead of them is written.
    fn write_frames(&mut self) {
        let Some(active) = self.active else { return };
        let Some(commit) = &mut self.commit else {
            return;
        };
        if commit.ahead > 0 {
            return;
        }
        if let Some(failure) = commit.failed.take() {
            return self.commit_failed(failure);
        }
        if let Some(bytes) = commit.frames.take() {
            let (file, at) = (File::Segment(active.first), active.at);
            self.issue(Purpose::Commit, Op::Write { file, at, bytes });
        }
    }

    pub(super) fn ahead_done(&mut self, result: Result<(), Failure>) {
        if let Some(commit) = &mut self.commit {
            commit.ahead = commit.ahead.saturating_sub(1);
            commit.failed = commit.failed.take().or(result.err());
            self.write_frames();
        }
    }

    pub(super) fn commit_done(&mut self, result: Result<(), Failure>) {
        if self.bug.is(Planted::AckFailed) {
            return self.commit_written();
        }
        match result {
            Ok(()) => self.commit_written(),
            Err(failure) => {
                if let (Some(active), Some(commit)) = (self.active, &self.commit) {
                    let to = active.at + commit.length;
                    self.smeared =
                        (!self.bug.is(Planted::FullUnrepaired)).then_some((active.at, to));
                }
                self.commit_failed(failure);
            }
        }
    }

    fn commit_failed(&mut self, failure: Failure) {
        if failure != Failure::NoSpace {
            return self.fence(failure);
        }
        let Some(commit) = self.commit.take() else {
            return;
        };
        // Chunks that were written stay, and may be named by what comes next.
        self.unsynced_files.extend(commit.files.iter().copied());
        let refusal = Refusal::NoRoom(failure);
        self.refuse_all(commit.into_waiting().collect(), &refusal);
        self.refuse_pending(&refusal);
    }

    fn commit_written(&mut self) {
        let Some(commit) = self.commit.take() else {
            return;
        };
        if let Some(active) = &mut self.active {
            active.at += commit.length;
        }
        self.written = commit.next;
        self.unsynced_bytes += commit.length;
        if !self.bug.is(Planted::ChunksUnsynced) {
            self.unsynced_files.extend(commit.files);
        }
        for waiter in commit.waiting {
            if waiter.level < Level::Disk || self.bug.is(Planted::AckBeforeSync) {
                self.accept(waiter.ticket, waiter.position);
            } else {
                self.unsynced
                    .push_back((waiter.ticket, waiter.position, waiter.next));
            }
        }
        self.owed_writes += 1;
    }

    fn accept(&mut self, ticket: Ticket, position: u64) {
        self.answers.push(Answered {
            ticket,
            result: Ok(position),
        });
    }

    /// After a write those who wait for the disk come first; but what came during the write goes with them, else the first
    /// of many who append at once would have a sync of its own, and all others would wait for it.
    pub(super) fn begin_owed_sync(&mut self) -> bool {
        let due = self.pending.is_empty() || self.owed_writes >= OWED_WRITES;
        self.owed_writes > 0 && due && self.begin_sync()
    }

    /// Begins a sync if somebody needs one.
    pub(super) fn begin_sync(&mut self) -> bool {
        let Some(active) = self.active else {
            return false;
        };
        if self.syncing.is_some() || !self.wants_sync() {
            return false;
        }
        self.owed_writes = 0;
        self.flush = false;
        let files = std::mem::take(&mut self.unsynced_files);
        let all = files.into_iter().chain([File::Segment(active.first)]);
        let left = all
            .map(|file| self.issue(Purpose::Sync, Op::Sync { file }))
            .count();
        self.syncing = Some(Syncing {
            left,
            next: self.written,
            bytes: self.unsynced_bytes,
            failed: None,
        });
        true
    }

    fn wants_sync(&self) -> bool {
        let dirty = self.written > self.synced;
        let asked = self.flush || self.closing.is_some() || self.needs_room();
        let much = self.unsynced_bytes >= self.bounds.unsynced_bytes / 2;
        !self.unsynced.is_empty() || (dirty && (asked || much || !self.may_write()))
    }

    pub(super) fn sync_done(&mut self, result: Result<(), Failure>) {
        let Some(syncing) = &mut self.syncing else {
            return;
        };
        syncing.left = syncing.left.saturating_sub(1);
        syncing.failed = syncing.failed.take().or(result.err());
        if syncing.left > 0 {
            return;
        }
        let Some(ended) = self.syncing.take() else {
            return;
        };
        match ended.failed {
            Some(failure) if !self.bug.is(Planted::GoesOnAfterFailure) => self.fence(failure),
            _ => self.sync_ended(ended.next, ended.bytes),
        }
    }

    fn sync_ended(&mut self, mut next: u64, bytes: u64) {
        if self.bug.is(Planted::SyncCoversLater) {
            next = self.written;
        }
        self.synced = next;
        self.owed_writes = 0;
        self.unsynced_bytes = self.unsynced_bytes.saturating_sub(bytes);
        while let Some((ticket, position, behind)) = self.unsynced.front().copied()
            && behind <= next
        {
            self.unsynced.pop_front();
            self.accept(ticket, position);
        }
    }

    /// The position behind all that was taken, if nothing of it is refused.
    pub fn coming(&self) -> u64 {
        let written = self
            .commit
            .as_ref()
            .map_or(self.written, |commit| commit.next);
        let pending = self
            .pending
            .iter()
            .map(|append| u64::from(append.batch.count()));
        written + pending.sum::<u64>()
    }

    /// Whether the machine is in the middle of nothing.
    pub(super) fn is_quiet(&self) -> bool {
        self.phase == Phase::Open && self.commit.is_none() && self.syncing.is_none()
    }
}
