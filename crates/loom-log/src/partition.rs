//! One open partition: its machine, its files, and what may be read of it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use loom_core::record::{Gap, Outgoing, Record};
use loom_core::spec::limits as spec;
use loom_core::{Level, Position, Ticket};

use crate::api::{Answer, Batch, ReadLimit};
use crate::blobs::{Blobs, INLINE_BYTES};
use crate::error::{LogError, Result};
use crate::files::{Health, Storage};
use crate::format::{self, Form, Frame, Mark, Stored};
use crate::machine::{Ahead, Answered, Append, Machine, Refusal};
use crate::mark::MarkFile;
use crate::storage::{Failure, File as Name, Op, OpId};
use crate::walk::{Limit, Places, Walk};

/// Walks that are kept where the last read ended, one for each reader that goes on from there.
const WALKS: usize = 8;

/// A partition.
pub(crate) struct Partition {
    pub(crate) number: u32,
    pub(crate) namespace: String,
    pub(crate) dir: PathBuf,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) blobs: Mutex<Blobs>,
    /// Whether a sync outside the machine has failed.
    pub(crate) health: Arc<Health>,
    pub(crate) places: Places,
    driver: Mutex<Driver>,
    /// Something may have come true that somebody waits for.
    moved: Condvar,
    /// The position behind the last record that all may see.
    visible: AtomicU64,
    walks: Mutex<Vec<Walk>>,
}

/// What one thread at a time does with the machine.
pub(crate) struct Driver {
    pub(crate) machine: Machine,
    mark: MarkFile,
    /// How many of those whom the last sync answered have not come back.
    pub(crate) expected: usize,
    /// How many threads wait until something has moved.
    waiting: usize,
    /// How many syncs in a row have answered one batch only.
    pub(crate) lonely: u32,
    /// The last thing that went wrong, in more words than the machine keeps.
    failed: Option<LogError>,
}

/// What a drive leaves to others.
#[derive(Default)]
pub(crate) struct Left {
    /// Things that take long.
    pub(crate) ops: Vec<(OpId, Op)>,
    /// Answers.
    pub(crate) answers: Vec<Answer>,
    /// Bytes that wait in the machine, before and after.
    pub(crate) pending: (u64, u64),
}

impl Partition {
    pub(crate) fn new(
        (number, namespace, dir): (u32, &str, &Path),
        storage: Arc<dyn Storage>,
        blobs: Blobs,
        machine: Machine,
    ) -> Result<Self> {
        let visible = AtomicU64::new(machine.written());
        let mark = MarkFile::open(dir)?;
        Ok(Self {
            number,
            namespace: namespace.to_owned(),
            dir: dir.to_path_buf(),
            storage,
            health: blobs.health(),
            blobs: Mutex::new(blobs),
            places: Places::default(),
            driver: Mutex::new(Driver {
                machine,
                mark,
                expected: 0,
                waiting: 0,
                lonely: 0,
                failed: None,
            }),
            moved: Condvar::new(),
            visible,
            walks: Mutex::default(),
        })
    }

    pub(crate) fn driver(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn blobs(&self) -> MutexGuard<'_, Blobs> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn visible(&self) -> u64 {
        self.visible.load(Ordering::Acquire)
    }

    /// Does one thing that the machine asked for.
    pub(crate) fn perform(&self, op: &Op) -> Result<()> {
        let Op::Sync {
            file: file @ Name::Blobs(_),
        } = op
        else {
            return self.storage.perform(op);
        };
        let end = self.blobs().unsynced().filter(|(dirty, _)| dirty == file);
        self.health.sync(|| self.storage.perform(op))?;
        if let Some((_, end)) = end {
            self.blobs().synced(*file, end);
        }
        Ok(())
    }

    /// Why it is over, if a sync outside the machine has failed.
    pub(crate) fn lost(&self) -> Option<LogError> {
        let error = self.health.lost()?;
        Some(LogError::ReadOnly {
            path: self.dir.clone(),
            why: error.to_string(),
        })
    }

    /// Does all that the machine asks for and that is quick, and takes its answers.
    pub(crate) fn drive(&self, driver: &mut Driver, before: u64) -> Left {
        let mut left = Left::default();
        while let Some((id, op)) = driver.machine.next_op() {
            if matches!(op, Op::Write { .. }) {
                let done = self.perform(&op);
                driver.done(id, done);
            } else {
                left.ops.push((id, op));
            }
        }
        self.settle(driver, &mut left, before);
        left
    }

    /// Does all that the machine asks for, and waits for it.
    pub(crate) fn drive_here(&self, driver: &mut Driver) -> Left {
        let mut left = Left::default();
        while let Some((id, op)) = driver.machine.next_op() {
            let done = self.perform(&op);
            driver.done(id, done);
        }
        self.settle(driver, &mut left, 0);
        left
    }

    fn settle(&self, driver: &mut Driver, left: &mut Left, before: u64) {
        let mut answered = Vec::new();
        driver.machine.take_answers(&mut answered);
        let answers = answered.into_iter().map(|a| self.answer(driver, a));
        left.answers.extend(answers);
        left.pending = (before, driver.machine.pending_bytes() as u64);
        if driver.machine.fenced().is_none() {
            // What recovery found counts as synced, and is so once it was made safe: not if that has failed.
            driver.mark.show(driver.machine.synced());
        }
        self.visible
            .store(driver.machine.visible(), Ordering::Release);
        if driver.waiting > 0 {
            self.moved.notify_all();
        }
    }

    fn answer(&self, driver: &Driver, answered: Answered) -> Answer {
        let epoch = driver.machine.epoch();
        let result = answered.result.map(|n| self.position(epoch, n));
        Answer {
            ticket: answered.ticket,
            result: result.map_err(|refusal| self.refused(driver, &refusal).into()),
        }
    }

    /// Why the machine did not take something.
    pub(crate) fn refused(&self, driver: &Driver, refusal: &Refusal) -> LogError {
        match refusal {
            Refusal::Busy => LogError::Full {
                pending: driver.machine.pending_bytes() as u64,
            },
            Refusal::TooLarge => over_batch(spec::LOG_BATCH_BYTES as u64 + 1),
            Refusal::NoRoom(_) => driver.failed.clone().unwrap_or(LogError::NoSpace {
                path: self.dir.clone(),
            }),
            Refusal::Closed => LogError::Closed,
            Refusal::Fenced(failure) => LogError::ReadOnly {
                path: self.dir.clone(),
                why: driver
                    .failed
                    .as_ref()
                    .map_or_else(|| failure.to_string(), ToString::to_string),
            },
        }
    }

    /// Waits until something has moved.
    pub(crate) fn wait<'a>(
        &self,
        mut driver: MutexGuard<'a, Driver>,
        most: std::time::Duration,
    ) -> MutexGuard<'a, Driver> {
        driver.waiting += 1;
        let waited = self.moved.wait_timeout(driver, most);
        let mut driver = waited.unwrap_or_else(PoisonError::into_inner).0;
        driver.waiting -= 1;
        driver
    }

    pub(crate) fn position(&self, epoch: u32, n: u64) -> Position {
        Position {
            partition: self.number,
            epoch,
            n,
        }
    }

    /// Makes a batch ready for the machine; large bodies are stored on the way.
    pub(crate) fn encode(&self, out: &Outgoing, most: u64, head: &mut Vec<u8>) -> Result<Append> {
        let mut batch = format::Batch::default();
        let mut chunked = false;
        for record in &out.batch {
            let body = record.body();
            if body.len() as u64 > most {
                return Err(LogError::TooLarge {
                    bytes: body.len() as u64,
                    most,
                    limit: "log_body_bytes",
                });
            }
            head.clear();
            record.encode_head(head);
            let kind = record.kind();
            let whole = if body.len() <= INLINE_BYTES {
                let form = Form::Whole;
                batch.push(Stored {
                    kind,
                    form,
                    head,
                    body,
                })
            } else {
                let mut refs = Vec::new();
                self.blobs().store(&*self.storage, body, &mut refs)?;
                chunked = true;
                let (form, body) = (Form::Chunked, refs.as_slice());
                batch.push(Stored {
                    kind,
                    form,
                    head,
                    body,
                })
            };
            if !whole {
                return Err(over_batch(batch.frame_bytes() as u64));
            }
        }
        // The pieces are written already; an empty write makes the machine sync their file with the batch.
        let dirty = self.blobs().unsynced().filter(|_| chunked);
        let ahead = dirty.map(|(file, end)| Ahead {
            file,
            at: end.into(),
            bytes: Vec::new(),
        });
        Ok(Append {
            ticket: out.ticket,
            level: out.level,
            batch,
            ahead: ahead.into_iter().collect(),
            opens: false,
        })
    }

    /// Reads what all may see, from a position on.
    pub(crate) fn read(&self, from: u64, most: ReadLimit) -> Result<Batch> {
        let end = self.visible();
        if from > end {
            return Err(LogError::Foreign { n: from, end });
        }
        let mut walk = match self.resume(from) {
            Some(walk) => walk,
            None => Walk::from(&self.log(), from, Limit::Before(end), &self.places)?,
        };
        walk.reach(Limit::Before(end));
        let mut filling = Filling::new(self.number, from, most);
        let bodies = |refs: &[u8]| {
            let found = self.blobs().find(refs)?;
            found.read()
        };
        let full = filling.fill(&mut walk, &self.places, &bodies)?;
        let batch = filling.end(!full);
        if walk.next() == batch.next {
            let mut walks = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
            if walks.len() >= WALKS {
                walks.remove(0);
            }
            walks.push(walk);
        }
        Ok(batch)
    }

    fn resume(&self, from: u64) -> Option<Walk> {
        let mut walks = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
        let place = walks.iter().position(|walk| walk.next() == from)?;
        Some(walks.swap_remove(place))
    }

    /// Forgets where readers were: files have gone.
    pub(crate) fn forget(&self, before: u64) {
        self.places.forget(before);
        let mut walks = self.walks.lock().unwrap_or_else(PoisonError::into_inner);
        walks.clear();
    }

    /// Whether it takes records.
    pub(crate) fn is_alive(&self) -> bool {
        let driver = self.driver();
        driver.machine.fenced().is_none() && !driver.machine.is_closed()
    }

    /// Whether it will do nothing more: it is closed, or cannot be.
    pub(crate) fn is_over(&self) -> bool {
        !self.is_alive()
    }

    /// The directory of the segments.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Driver {
    pub(crate) fn done(&mut self, id: OpId, result: Result<()>) {
        let result = result.map_err(|error| {
            let failure = match &error {
                // Nothing was done for want of a descriptor: it can be tried again, as when space was missing.
                LogError::NoSpace { .. } | LogError::Descriptors { .. } => Failure::NoSpace,
                other => Failure::Broken(other.to_string()),
            };
            self.failed = Some(error);
            failure
        });
        self.machine.done(id, result);
    }

    /// A sync that the machine did not ask for has failed. Says whether that ended it.
    pub(crate) fn lost(&mut self, error: LogError) -> bool {
        let is_news = self.machine.lose(Failure::Broken(error.to_string()));
        if is_news {
            self.failed = Some(error);
        }
        is_news
    }

    /// A commit is synced: what comes next gathers for a moment if somebody was answered; says whether it does.
    pub(crate) fn synced(&mut self, id: OpId, result: Result<()>) -> bool {
        self.machine.hold();
        self.done(id, result);
        self.expected = self.machine.answers();
        self.lonely = match self.expected {
            1 => self.lonely.saturating_add(1),
            _ => 0,
        };
        if self.expected == 0 {
            self.machine.release();
        }
        self.expected > 0
    }

    /// So many batches came: when all have come back who were answered, they are written.
    pub(crate) fn came_back(&mut self, batches: usize) {
        self.expected = self.expected.saturating_sub(batches);
    }

    /// The moment is over.
    pub(crate) fn go_on(&mut self) {
        self.expected = 0;
        self.machine.release();
    }
}

/// An [`Append`] of the log's own.
pub(crate) fn own(record: &Record, ticket: Option<Ticket>, opens: bool) -> Append {
    let mut batch = format::Batch::default();
    let mut head = Vec::new();
    record.encode_head(&mut head);
    let _ = batch.push(Stored {
        kind: record.kind(),
        form: Form::Whole,
        head: &head,
        body: record.body(),
    });
    Append {
        ticket,
        level: Level::Disk,
        batch,
        ahead: Vec::new(),
        opens,
    }
}

fn over_batch(bytes: u64) -> LogError {
    LogError::TooLarge {
        bytes,
        most: spec::LOG_BATCH_BYTES as u64,
        limit: "log_batch_bytes",
    }
}

/// Reads the body that references name.
pub(crate) type Bodies<'a> = dyn Fn(&[u8]) -> Result<Vec<u8>> + 'a;

/// Makes a record of what is stored.
pub(crate) fn decode(stored: Stored<'_>, at: Position, bodies: &Bodies<'_>) -> Result<Record> {
    let body = match stored.form {
        Form::Whole => stored.body.to_vec(),
        Form::Chunked => bodies(stored.body).map_err(|error| placed(error, at.n))?,
    };
    Ok(Record::decode(stored.kind, stored.head, body, at)?)
}

/// Says at which position a damaged piece is missed.
fn placed(error: LogError, n: u64) -> LogError {
    match error {
        LogError::Corrupt { path, at, why, .. } => LogError::Corrupt {
            path,
            at,
            n: Some(n),
            why,
        },
        other => other,
    }
}

/// Positions that recovery gave up, as a record.
pub(crate) fn gap(from: u64, to: u64) -> Record {
    Record::Gap(Gap {
        from,
        to,
        why: "damaged".to_owned(),
        run: None,
    })
}

/// A batch that is being read.
pub(crate) struct Filling {
    partition: u32,
    most: ReadLimit,
    bytes: usize,
    batch: Batch,
}

impl Filling {
    pub(crate) fn new(partition: u32, from: u64, most: ReadLimit) -> Self {
        Self {
            partition,
            most,
            bytes: 0,
            batch: Batch {
                records: Vec::new(),
                next: from,
                at_end: false,
            },
        }
    }

    /// Reads until it is full, and says whether it is.
    pub(crate) fn fill(
        &mut self,
        walk: &mut Walk,
        places: &Places,
        bodies: &Bodies<'_>,
    ) -> Result<bool> {
        loop {
            let Some(frame) = walk.seek(self.batch.next, places)? else {
                return Ok(false);
            };
            if self.take(&frame, bodies)? {
                return Ok(true);
            }
        }
    }

    fn take(&mut self, frame: &Frame<'_>, bodies: &Bodies<'_>) -> Result<bool> {
        let at = |n| Position {
            partition: self.partition,
            epoch: frame.place.epoch,
            n,
        };
        if let Mark::Gap(to) = frame.place.mark {
            let from = frame.place.position;
            self.batch.records.push((at(from), gap(from, to)));
            self.batch.next = to;
            return Ok(self.is_full());
        }
        for (n, stored) in (frame.place.position..).zip(frame.records()) {
            if n < self.batch.next {
                continue;
            }
            if self.most.only.is_some_and(|kind| kind != stored.kind) {
                self.batch.next = n + 1;
                continue;
            }
            if self.is_full() {
                return Ok(true);
            }
            let record = decode(stored, at(n), bodies)?;
            self.bytes += stored.head.len() + record.body().len();
            self.batch.records.push((at(n), record));
            self.batch.next = n + 1;
        }
        Ok(self.is_full())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batch.records.is_empty()
    }

    fn is_full(&self) -> bool {
        let full = self.batch.records.len() >= self.most.records || self.bytes >= self.most.bytes;
        full && !self.batch.records.is_empty()
    }

    pub(crate) fn end(mut self, at_end: bool) -> Batch {
        self.batch.at_end = at_end;
        self.batch
    }
}

/// A file of the partition, opened for reading.
pub(crate) fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| LogError::io(path, "opening", &e))
}
