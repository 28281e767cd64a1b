//! The log machine: takes batches, gathers them into commits, hands out what is to be done to files, and answers.
//!
//! One write and one sync are under way at most, and they may be so at once. While a sync is, what comes is gathered,
//! unless somebody waits for no more than the write. A sync answers for what had been written when it was handed out, and
//! nothing else. After a write or a sync that failed nothing is answered any more: only recovery knows what is there. A
//! full disk is no such failure: what does not fit is refused, and what comes when there is space again is not.

mod commit;
mod script;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use loom_core::{Level, Ticket};

use crate::format::{Batch, FRAME_LEAST, HEADER_BYTES, salt};
use crate::planted::{Bug, Planted};
use crate::recovery::End;
use crate::storage::{Failure, File, Op, OpId};

use self::commit::{Commit, Syncing};
use self::script::Script;

/// How large things may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The size of a segment.
    pub segment_bytes: u64,
    /// How much of each segment is for the records that open and close the log, so that it opens on a full disk.
    pub reserve_bytes: u64,
    /// The largest batch.
    pub batch_bytes: usize,
    /// A commit takes in no further batch over this.
    pub commit_bytes: usize,
    /// How much may be written and not synced; at least `batch_bytes`.
    pub unsynced_bytes: u64,
    /// How much may wait to be written.
    pub pending_bytes: usize,
}

/// One batch, and what is wanted for it.
#[derive(Debug)]
pub struct Append {
    /// Who waits for an answer; none: nobody.
    pub ticket: Option<Ticket>,
    /// How far it must have got before it is answered.
    pub level: Level,
    /// The records.
    pub batch: Batch,
    /// What is written before it, and synced with it.
    pub ahead: Vec<Ahead>,
    /// Whether it may use what is reserved: it opens the log.
    pub opens: bool,
}

/// A write of the chunks that a batch names.
#[derive(Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Into which file.
    pub file: File,
    /// From which byte on.
    pub at: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// Why a batch is not in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// As much waits already as may.
    Busy,
    /// It is larger than a batch may be.
    TooLarge,
    /// There was no space for it. What comes later is tried again.
    NoRoom(Failure),
    /// The log is closed, or is being so.
    Closed,
    /// A write or a sync failed: it is not known whether this batch will be found when the log is opened again.
    Fenced(Failure),
}

/// The answer to one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Who asked.
    pub ticket: Ticket,
    /// The position of its first record, once it has reached its level.
    pub result: Result<u64, Refusal>,
}

/// Room in a segment for the mark of positions that are lost.
const GAP_ROOM: u64 = FRAME_LEAST as u64;

/// The segment that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Active {
    /// The position of its first record.
    pub first: u64,
    /// Its size.
    pub bytes: u64,
    /// Where the next frame goes.
    pub at: u64,
}

/// What the machine is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Makes safe what was recovered.
    Starting,
    Open,
    /// Begins the next segment.
    Rotating,
    /// Overwrites what a write without space left behind.
    Repairing,
    Closed,
    Fenced(Failure),
}

/// The segment that comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    None,
    Making { needed: bool },
    Ready,
    Failed,
}

/// What an operation that is under way is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Script,
    Ahead,
    Commit,
    Sync,
    Next,
}

/// One partition's log as a state machine.
#[derive(Debug)]
pub struct Machine {
    bounds: Bounds,
    log: u64,
    epoch: u32,
    phase: Phase,
    active: Option<Active>,
    next: Next,
    script: Script,
    pending: VecDeque<Append>,
    pending_bytes: usize,
    /// How many of the pending wait for no more than the write.
    pending_os: usize,
    commit: Option<Commit>,
    syncing: Option<Syncing>,
    /// Written and not synced: who waits, its position, and the position behind it.
    unsynced: VecDeque<(Ticket, u64, u64)>,
    unsynced_bytes: u64,
    unsynced_files: BTreeSet<File>,
    written: u64,
    synced: u64,
    flush: bool,
    /// Batches gather although they could be written.
    held: bool,
    /// How many writes have ended since a sync began or ended.
    owed_writes: u32,
    /// The record that closes the log, once it is asked for.
    closing: Option<Batch>,
    /// Where a write without space may have left bytes.
    smeared: Option<(u64, u64)>,
    last_op: u64,
    under_way: BTreeMap<OpId, Purpose>,
    ops: VecDeque<(OpId, Op)>,
    answers: Vec<Answered>,
    bug: Bug,
}

impl Machine {
    /// Goes on where recovery ended; `log` names the log if it is a new one.
    pub fn new(bounds: Bounds, log: u64, recovered: &End) -> Self {
        let mut machine = Self {
            bounds,
            log: recovered.log.unwrap_or(log),
            epoch: recovered.epoch.saturating_add(1),
            phase: Phase::Starting,
            active: recovered.active,
            next: Next::None,
            script: Script::new(recovered.steps.iter().cloned()),
            pending: VecDeque::new(),
            pending_bytes: 0,
            pending_os: 0,
            commit: None,
            syncing: None,
            unsynced: VecDeque::new(),
            unsynced_bytes: 0,
            unsynced_files: BTreeSet::new(),
            written: recovered.end,
            synced: recovered.end,
            flush: false,
            held: false,
            owed_writes: 0,
            closing: None,
            smeared: None,
            last_op: 0,
            under_way: BTreeMap::new(),
            ops: VecDeque::new(),
            answers: Vec::new(),
            bug: Bug::default(),
        };
        machine.pump();
        machine
    }

    /// Switches one bug on.
    #[cfg(feature = "planted")]
    pub fn plant(&mut self, bug: Planted) {
        self.bug.on = Some(bug);
    }

    /// Takes a batch. What it returns here is not answered again.
    ///
    /// # Errors
    /// When it is too large, too much waits already, or the log takes nothing any more.
    pub fn append(&mut self, append: Append) -> Result<(), Refusal> {
        self.admit(&append)?;
        self.pending_bytes += append.bytes();
        self.pending_os += usize::from(append.level == Level::Os);
        self.pending.push_back(append);
        self.pump();
        Ok(())
    }

    fn admit(&self, append: &Append) -> Result<(), Refusal> {
        if let Phase::Fenced(failure) = &self.phase {
            return Err(Refusal::Fenced(failure.clone()));
        }
        if self.closing.is_some() || self.phase == Phase::Closed {
            return Err(Refusal::Closed);
        }
        let frame = append.batch.frame_bytes();
        let reserve = self.bounds.reserve_bytes;
        let whole = self
            .bounds
            .segment_bytes
            .saturating_sub(HEADER_BYTES + GAP_ROOM + reserve);
        if frame > self.bounds.batch_bytes || frame as u64 > whole || append.batch.count() == 0 {
            return Err(Refusal::TooLarge);
        }
        if self.pending_bytes + append.bytes() > self.bounds.pending_bytes {
            return Err(Refusal::Busy);
        }
        Ok(())
    }

    /// Syncs what is there, whether anybody waits for it or not.
    pub fn flush(&mut self) {
        self.flush = true;
        self.pump();
    }

    /// Lets batches gather that could be written, until [`Machine::release`]: for a moment after a sync, when those whom
    /// it answered may come back. Who waits for no more than the write does not wait for that.
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Writes what has gathered.
    pub fn release(&mut self) {
        if std::mem::take(&mut self.held) {
            self.pump();
        }
    }

    /// Writes what is there and then this record, which says that the log was closed well. Nothing more is taken.
    pub fn close(&mut self, last: Batch) {
        if self.closing.is_none() && self.is_alive() {
            self.closing = Some(last);
            self.held = false;
            self.pump();
        }
    }

    /// The next thing to do.
    pub fn next_op(&mut self) -> Option<(OpId, Op)> {
        self.ops.pop_front()
    }

    /// One thing is done, or could not be.
    pub fn done(&mut self, op: OpId, result: Result<(), Failure>) {
        let Some(purpose) = self.under_way.remove(&op) else {
            return;
        };
        if !self.is_alive() {
            return;
        }
        match purpose {
            Purpose::Script => self.script_done(result),
            Purpose::Ahead => self.ahead_done(result),
            Purpose::Commit => self.commit_done(result),
            Purpose::Sync => self.sync_done(result),
            Purpose::Next => self.next_done(result),
        }
        self.pump();
    }

    /// A sync of something that records rest on has failed outside: it is as if one of the machine's own had. Says
    /// whether it was still alive.
    pub fn lose(&mut self, failure: Failure) -> bool {
        let was_alive = self.is_alive();
        if was_alive {
            self.fence(failure);
        }
        was_alive
    }

    /// Moves the answers that are there to the end of `into`.
    pub fn take_answers(&mut self, into: &mut Vec<Answered>) {
        into.append(&mut self.answers);
    }

    /// How many answers wait to be taken.
    pub fn answers(&self) -> usize {
        self.answers.len()
    }

    /// The life of the log that this machine writes.
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The name of the log.
    pub const fn log(&self) -> u64 {
        self.log
    }

    /// The position behind the last record that is written.
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// The position behind the last record that is synced.
    pub const fn synced(&self) -> u64 {
        self.synced
    }

    /// The position behind the last record that all may see: no record before it waits for the disk.
    pub fn visible(&self) -> u64 {
        let waits = self.unsynced.front();
        waits.map_or(self.written, |(_, position, _)| *position)
    }

    /// The segment that is written; none before the first one is there.
    pub const fn active(&self) -> Option<Active> {
        self.active
    }

    /// How many bytes wait to be written.
    pub const fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Whether nothing is under way and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty() && self.pending.is_empty() && self.unsynced.is_empty()
    }

    /// Whether the closing record, if there was room for it, is synced.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Why the log takes nothing more until it is opened again.
    pub const fn fenced(&self) -> Option<&Failure> {
        match &self.phase {
            Phase::Fenced(failure) => Some(failure),
            _ => None,
        }
    }

    const fn is_alive(&self) -> bool {
        !matches!(self.phase, Phase::Closed | Phase::Fenced(_))
    }

    fn issue(&mut self, purpose: Purpose, op: Op) -> OpId {
        self.last_op += 1;
        let id = OpId(self.last_op);
        self.under_way.insert(id, purpose);
        self.ops.push_back((id, op));
        id
    }

    /// Begins all that can be begun.
    fn pump(&mut self) {
        while self.is_alive() && self.step() {}
    }

    /// Begins one thing; says whether there may be another.
    fn step(&mut self) -> bool {
        if self.script.is_under_way() || self.commit.is_some() {
            return false;
        }
        if let Some(op) = self.script.next() {
            self.issue(Purpose::Script, op);
            return false;
        }
        match self.phase {
            Phase::Starting | Phase::Rotating | Phase::Repairing => self.script_ended(),
            Phase::Open => self.step_open(),
            Phase::Closed | Phase::Fenced(_) => false,
        }
    }

    fn step_open(&mut self) -> bool {
        self.prepare_early();
        if self.smeared.is_some() {
            return self.repair() || self.begin_sync();
        }
        if self.needs_room() {
            return self.make_room();
        }
        if self.begin_owed_sync() || self.begin_commit() || self.begin_sync() {
            return true;
        }
        self.step_closing()
    }

    fn step_closing(&mut self) -> bool {
        if self.closing.is_none() || !self.pending.is_empty() || self.syncing.is_some() {
            return false;
        }
        if self.written > self.synced {
            return self.begin_sync();
        }
        let last = self.closing.clone().unwrap_or_default();
        if last.count() > 0 && self.begin_closing(last) {
            self.closing = Some(Batch::default());
            return false;
        }
        self.phase = Phase::Closed;
        false
    }

    /// Nothing is answered any more but with this.
    fn fence(&mut self, failure: Failure) {
        for (id, _) in self.ops.drain(..) {
            self.under_way.remove(&id);
        }
        let refusal = Refusal::Fenced(failure.clone());
        let commit = self.commit.take().map(Commit::into_waiting);
        let waiting = self.unsynced.drain(..).map(|(ticket, _, _)| ticket);
        let tickets: Vec<Ticket> = waiting.chain(commit.into_iter().flatten()).collect();
        self.refuse_all(tickets, &refusal);
        self.refuse_pending(&refusal);
        self.phase = Phase::Fenced(failure);
    }

    fn refuse_all(&mut self, tickets: Vec<Ticket>, refusal: &Refusal) {
        self.answers
            .extend(tickets.into_iter().map(|ticket| Answered {
                ticket,
                result: Err(refusal.clone()),
            }));
    }

    fn refuse_pending(&mut self, refusal: &Refusal) {
        let tickets = self
            .pending
            .drain(..)
            .filter_map(|append| append.ticket)
            .collect();
        self.pending_bytes = 0;
        self.pending_os = 0;
        self.refuse_all(tickets, refusal);
    }

    fn salt(&self) -> u32 {
        salt(self.log, self.active.map_or(0, |active| active.first))
    }
}

impl Append {
    /// What it takes of the room of those that wait.
    fn bytes(&self) -> usize {
        let ahead: usize = self.ahead.iter().map(|ahead| ahead.bytes.len()).sum();
        self.batch.frame_bytes() + ahead
    }
}

impl Active {
    /// How many bytes fit; `reserve` of them are kept back.
    fn room(&self, reserve: u64) -> u64 {
        self.bytes.saturating_sub(self.at + GAP_ROOM + reserve)
    }
}
