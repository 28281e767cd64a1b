//! The log under an engine: where records go, where answers come back, and who reads.
//!
//! Appending happens under the core's lock, in the order in which the core gave the records out, and never waits.
//! Answers come on a thread of the log, which takes the core's lock for a bounded portion of them at a time. Nothing
//! here touches Python.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use loom_core::record::Record;
use loom_core::spec::limits as spec;
use loom_core::{
    Core, Durability, Envelope, Error, Fed, Limits, Moment, Partition, Position, Read, Result,
};
use loom_log::{
    Answer, Batch, Boot, Deleted, Log, LogError, LogStats, Needs, Options, ReadLimit, Recovered,
    Retention, Sink,
};

use crate::engine::Shared;
use crate::threads::{Threads, lock, monotonic};

/// Answers that are applied under one hold of the core's lock.
const PORTION: usize = 256;
/// How often the keeper looks whether something is too old: by its own clock, and by the engine's where that is virtual.
const LOOK: Duration = Duration::from_secs(60);

/// The share of the queue beyond which the log is behind.
const BEHIND: f64 = 0.5;

/// How the log of an engine is kept.
pub(crate) struct Settings {
    pub(crate) data: Option<PathBuf>,
    pub(crate) durability: Durability,
    pub(crate) retention: Retention,
    pub(crate) accept_loss: bool,
}

/// The log of one engine, and the threads that read and tidy where it is on disk.
pub(crate) struct Store {
    log: Log,
    dir: Option<PathBuf>,
    /// More than [`BEHIND`] of what may wait to be written does.
    behind: AtomicBool,
    reads: Queue<Read>,
    keeper: Keeper,
    threads: Arc<Threads>,
    /// What opening each partition found.
    found: Mutex<BTreeMap<u32, loom_log::Opened>>,
}

/// What a thread does until it is told to end.
type Work = fn(&Store, &Shared);

/// What waits for the log, by count: the first two only grow.
#[derive(Default)]
pub(crate) struct Waiting {
    asked: AtomicU64,
    answered: AtomicU64,
    reading: AtomicU64,
    /// How many threads wait.
    gate: Mutex<usize>,
    moved: Condvar,
}

/// What is to be read: a consumer asks for one portion after the other, so each has one entry at most.
struct Queue<T> {
    inner: Mutex<(VecDeque<T>, bool)>,
    filled: Condvar,
}

/// How the keeper ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Not,
    /// With a snapshot of what there is.
    Well,
    /// The log has not answered all: there is nothing whole to keep.
    Short,
}

/// When snapshots are due.
struct Keeper {
    /// Records since the last look.
    records: AtomicU64,
    stop: Mutex<Stop>,
    due: Condvar,
    /// Where the last snapshot of each partition stands, and how many were taken.
    taken: Mutex<BTreeMap<u32, (u64, u64)>>,
    deleted: AtomicU64,
    /// One looks at a time: what the log had written, in bytes, when snapshots were due for that last.
    looking: Mutex<u64>,
    /// When the engine's clock was moved to the last look, if it is virtual.
    looked: AtomicU64,
}

/// How long a stop and a look may wait for the disk.
pub(crate) fn patience() -> Duration {
    Duration::from_secs(spec::STOP_SECONDS)
}

impl<T> Queue<T> {
    fn new() -> Self {
        Self {
            inner: Mutex::new((VecDeque::new(), false)),
            filled: Condvar::new(),
        }
    }

    fn push(&self, items: Vec<T>) {
        lock(&self.inner).0.extend(items);
        self.filled.notify_one();
    }

    /// Waits for the next one; none: it was stopped.
    fn next(&self) -> Option<T> {
        let mut inner = lock(&self.inner);
        loop {
            if inner.1 {
                return None;
            }
            if let Some(item) = inner.0.pop_front() {
                return Some(item);
            }
            let woken = self.filled.wait(inner);
            inner = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn stop(&self) {
        lock(&self.inner).1 = true;
        self.filled.notify_all();
    }
}

impl Waiting {
    fn answer(&self, count: u64) {
        self.answered.fetch_add(count, Ordering::SeqCst);
        // Who has looked and not slept yet holds the gate.
        if *lock(&self.gate) > 0 {
            self.moved.notify_all();
        }
    }

    pub(crate) fn is_any(&self) -> bool {
        self.asked.load(Ordering::SeqCst) != self.answered.load(Ordering::SeqCst)
            || self.reading.load(Ordering::SeqCst) > 0
    }

    /// Waits until all that was asked before is answered, at most until then; `false`: it is not.
    pub(crate) fn wait(&self, until: Instant) -> bool {
        let asked = self.asked.load(Ordering::SeqCst);
        let mut gate = lock(&self.gate);
        while self.answered.load(Ordering::SeqCst) < asked {
            let left = until.saturating_duration_since(monotonic());
            if left.is_zero() {
                return false;
            }
            *gate += 1;
            let waited = self.moved.wait_timeout(gate, left);
            gate = waited.unwrap_or_else(PoisonError::into_inner).0;
            *gate -= 1;
        }
        true
    }
}

/// Gives the log's answers to the core.
struct Answers(Weak<Shared>);

impl Sink for Answers {
    fn answered(&self, answers: &mut Vec<Answer>) {
        let Some(shared) = self.0.upgrade() else {
            return;
        };
        let mut all = answers.drain(..);
        loop {
            let portion: Vec<Answer> = all.by_ref().take(PORTION).collect();
            if portion.is_empty() {
                return;
            }
            let count = portion.len() as u64;
            // An engine that failed in an earlier call tells everybody so itself.
            let _ = shared.outside(|core, at| {
                for answer in portion {
                    apply(core, answer, at);
                }
            });
            shared.waiting.answer(count);
        }
    }
}

fn apply(core: &mut Core, answer: Answer, at: Moment) {
    match answer.result {
        Ok(position) => core.logged(answer.ticket, position, at),
        Err(error) => core.refused(answer.ticket, error, at),
    }
}

/// Events and where to go on, or what is wrong with the log there.
type Found = loom_log::Result<(Vec<(Position, Arc<Envelope>)>, u64, bool)>;

fn feed(core: &mut Core, read: Read, found: Found, at: Moment) {
    match found {
        Ok((events, next, at_end)) => {
            let fed = Fed {
                token: read.token,
                events,
                next,
                at_end,
            };
            core.fed(fed, at);
        }
        Err(error) => {
            let oldest = match &error {
                LogError::Expired { first, .. } => Some(*first),
                _ => None,
            };
            core.unread(read, &error.into(), oldest, at);
        }
    }
}

impl Store {
    /// Takes the lock of a data directory; without one the log is in memory.
    ///
    /// # Errors
    /// Says where and what to do.
    pub(crate) fn open(settings: &Settings, shared: &Arc<Shared>) -> Result<Self> {
        let clock = Arc::downgrade(shared);
        let options = Options {
            retention: settings.retention,
            clock: Arc::new(move || clock.upgrade().map_or(0, |shared| shared.moment().wall_ms)),
            ..Options::default()
        };
        let log = match &settings.data {
            None => Log::memory(&options),
            Some(dir) => Log::open(dir, options, Arc::new(Answers(Arc::downgrade(shared))))?,
        };
        Ok(Self {
            log,
            dir: settings.data.clone(),
            behind: AtomicBool::new(false),
            reads: Queue::new(),
            keeper: Keeper {
                records: AtomicU64::new(0),
                stop: Mutex::new(Stop::Not),
                due: Condvar::new(),
                taken: Mutex::default(),
                deleted: AtomicU64::new(0),
                looking: Mutex::new(0),
                looked: AtomicU64::new(0),
            },
            threads: Arc::default(),
            found: Mutex::default(),
        })
    }

    /// Starts the threads of a log on disk; they end with [`Self::close`].
    ///
    /// # Errors
    /// `EXHAUSTED`: there is no thread left.
    pub(crate) fn go(&self, shared: &Arc<Shared>) -> Result<()> {
        if !self.log.is_durable() {
            return Ok(());
        }
        let works: [(&str, Work); 2] = [
            ("loom-log-read", Self::read_all),
            ("loom-log-keep", Self::keep),
        ];
        for (name, work) in works {
            let shared = Arc::clone(shared);
            self.threads.start(name, move || {
                if let Some(store) = shared.store.get() {
                    work(store, &shared);
                }
            })?;
        }
        Ok(())
    }

    /// Opens the partition of a namespace, and folds what it holds.
    ///
    /// # Errors
    /// What the log says.
    pub(crate) fn fold(
        &self,
        namespace: &str,
        boot: &Boot,
        limits: &Limits,
        how: &Durability,
    ) -> Result<(loom_core::Opened, Partition)> {
        let mut folded = Partition::new(limits);
        let (mut broken, mut snapshot) = (None, 0);
        let found = self
            .log
            .partition(namespace, boot, &mut |found| match found {
                Recovered::Snapshot(at, bytes) => match Partition::restore(bytes, limits) {
                    Ok(restored) => (folded, snapshot) = (restored, at.n),
                    Err(error) => broken = Some(error),
                },
                Recovered::Record(position, record) => folded.apply(position, &record),
            })?;
        if let Some(error) = broken {
            // Nobody can use it; who tries again finds it as it is now, and not open in this very process. What keeps it
            // from being closed well is worth less than why it is of no use.
            let _ = self.log.leave(found.partition);
            return Err(error);
        }
        let opened = loom_core::Opened {
            partition: found.partition,
            epoch: found.epoch,
            oldest: found.first,
            kept: self.log.is_durable(),
            how: how.clone(),
        };
        lock(&self.keeper.taken).insert(found.partition, (snapshot, 0));
        lock(&self.found).insert(found.partition, found);
        Ok((opened, folded))
    }

    /// Hands out what the core left: appends its records, and lets its reads be read. A log in memory answers at once.
    pub(crate) fn serve(&self, core: &mut Core, waiting: &Waiting, at: Moment) {
        while core.has_records() {
            let out = core.take_records();
            let tickets: Vec<_> = out.iter().filter_map(|one| one.ticket).collect();
            let records: usize = out.iter().map(|one| one.batch.len()).sum();
            match self.log.append(out) {
                Ok(answers) if self.log.is_durable() => {
                    drop(answers);
                    waiting
                        .asked
                        .fetch_add(tickets.len() as u64, Ordering::SeqCst);
                    self.keeper.count(records as u64);
                    self.tell_pressure(core);
                }
                Ok(answers) => answers.into_iter().for_each(|one| apply(core, one, at)),
                Err(error) => {
                    let error = Error::from(error);
                    for ticket in tickets {
                        core.refused(ticket, error.clone(), at);
                    }
                }
            }
        }
        if !core.has_reads() {
            return;
        }
        let reads = core.take_reads();
        waiting
            .reading
            .fetch_add(reads.len() as u64, Ordering::SeqCst);
        if self.log.is_durable() {
            self.reads.push(reads);
            return;
        }
        for read in reads {
            let found = self.look(read);
            feed(core, read, found, at);
            waiting.reading.fetch_sub(1, Ordering::SeqCst);
        }
        self.serve(core, waiting, at);
    }

    /// Tells the core when the log falls behind, and when it has caught up: what nobody waits for is left out meanwhile.
    fn tell_pressure(&self, core: &mut Core) {
        let behind = self.log.pressure() > BEHIND;
        if self.behind.swap(behind, Ordering::Relaxed) != behind {
            core.press(behind);
        }
    }

    /// Whether it outlives the process.
    pub(crate) fn is_durable(&self) -> bool {
        self.log.is_durable()
    }

    /// Reads records from a position on.
    ///
    /// # Errors
    /// What the log says.
    pub(crate) fn read(
        &self,
        partition: u32,
        from: u64,
        most: ReadLimit,
    ) -> loom_log::Result<Batch> {
        self.log.read(partition, from, most)
    }

    /// Reads until there are as many events as a consumer wants, or as much as its queue holds, or no more.
    fn look(&self, read: Read) -> Found {
        let (mut events, mut next, mut bytes) = (Vec::new(), read.from, 0);
        loop {
            let most = ReadLimit {
                records: (read.most - events.len()).max(1),
                only: Some(Record::EVENT),
                ..ReadLimit::default()
            };
            let batch = match self.log.read(read.partition, next, most) {
                Ok(batch) => batch,
                // What stands before the damage is given; who goes on is told of it.
                Err(_) if !events.is_empty() => return Ok((events, next, false)),
                Err(error) => return Err(error),
            };
            next = batch.next;
            for (position, record) in batch.records {
                if let Record::Event(env) = record {
                    bytes += env.size();
                    events.push((position, env));
                }
            }
            if batch.at_end || events.len() >= read.most || bytes >= spec::QUEUE_BYTES {
                return Ok((events, next, batch.at_end));
            }
        }
    }

    /// The thread that reads for consumers that are behind.
    fn read_all(&self, shared: &Shared) {
        while let Some(read) = self.reads.next() {
            let found = self.look(read);
            let fed = shared.outside(|core, at| feed(core, read, found, at));
            shared.waiting.reading.fetch_sub(1, Ordering::SeqCst);
            if fed.is_err() {
                return;
            }
        }
    }

    /// The thread that takes snapshots and lets old segments go.
    fn keep(&self, shared: &Shared) {
        let mut stop = lock(&self.keeper.stop);
        while *stop == Stop::Not {
            let waited = self.keeper.due.wait_timeout(stop, LOOK);
            stop = waited.unwrap_or_else(PoisonError::into_inner).0;
            if *stop != Stop::Not {
                break;
            }
            drop(stop);
            self.look_after(shared);
            stop = lock(&self.keeper.stop);
        }
        let is_well = *stop == Stop::Well;
        drop(stop);
        if is_well {
            self.snapshot(shared, 1);
        }
    }

    /// The virtual clock of the engine was moved: looks at once if it is time, so that what follows is there when the
    /// move is done.
    pub(crate) fn passed(&self, shared: &Shared, now: u64) {
        let last = self.keeper.looked.load(Ordering::Relaxed);
        if self.log.is_durable() && Duration::from_nanos(now.saturating_sub(last)) >= LOOK {
            self.keeper.looked.store(now, Ordering::Relaxed);
            self.look_after(shared);
        }
    }

    /// Takes the snapshots that are due, and lets go what is kept for nobody.
    fn look_after(&self, shared: &Shared) {
        let mut looking = lock(&self.keeper.looking);
        let retention = shared.settings.retention;
        if retention != Retention::default() {
            stop_holding(shared);
        }
        // A log with few and large records would grow far over its limit before a snapshot lets anything of it go.
        let written = self.log.stats().bytes;
        let is_large = written >= looking.saturating_add(spec::LOG_SEGMENT_BYTES as u64);
        let grown = if retention.bytes.is_some() && is_large {
            *looking = written;
            1
        } else {
            spec::LOG_SNAPSHOT_RECORDS as u64
        };
        self.snapshot(shared, grown);
        self.retain(shared);
    }

    /// Takes a snapshot of each partition that has grown by so many records since its last one.
    fn snapshot(&self, shared: &Shared, grown: u64) {
        self.keeper.records.store(0, Ordering::Relaxed);
        for number in numbers(shared) {
            let (last, count) = lock(&self.keeper.taken)
                .get(&number)
                .copied()
                .unwrap_or_default();
            let folded = shared.outside(|core, _| {
                let folded = core.partition(number)?;
                let n = folded.end().checked_sub(1)?;
                let at = Position {
                    partition: number,
                    epoch: folded.epoch(),
                    n,
                };
                (n >= last + grown).then(|| (at, folded.clone()))
            });
            // The copy is written out of the core's lock. What cannot be kept now is kept the next time.
            if let Ok(Some((at, folded))) = folded
                && self.log.snapshot(at, &folded.snapshot()).is_ok()
            {
                lock(&self.keeper.taken).insert(number, (at.n, count + 1));
            }
        }
    }

    /// Lets go what retention no longer keeps, and says so.
    fn retain(&self, shared: &Shared) {
        for number in numbers(shared) {
            let needs = shared.outside(|core, _| Needs {
                all: core.needs(number),
                turns: core.in_turn(number),
            });
            let Ok(deleted) = needs.and_then(|needs| Ok(self.log.retain(number, needs)?)) else {
                continue;
            };
            self.keeper
                .deleted
                .fetch_add(deleted.len() as u64, Ordering::Relaxed);
            let _ = shared.outside(|core, at| tell_deleted(core, number, &deleted, at));
        }
    }

    /// What the log on disk did so far. Waits for the disk where a sync of large bodies is under way, so it is for
    /// nobody who holds the core's lock or Python's.
    pub(crate) fn figures(&self) -> LogStats {
        self.log.stats()
    }

    /// Figures for people, as JSON.
    pub(crate) fn stats(&self, core: &Core, figures: LogStats) -> serde_json::Value {
        let found = lock(&self.found);
        let taken = lock(&self.keeper.taken);
        let partitions = core.partitions().map(|(namespace, number)| {
            let opened = found.get(&number);
            let (snapshot, snapshots) = taken.get(&number).copied().unwrap_or_default();
            serde_json::json!({
                "namespace": namespace,
                "partition": number,
                "epoch": opened.map(|it| it.epoch),
                "oldest": core.oldest(number),
                "end": core.partition(number).map(Partition::end),
                "needs": core.needs(number),
                "torn_bytes": opened.map(|it| it.torn_bytes),
                "clean": opened.map(|it| it.clean),
                "snapshot": snapshot,
                "snapshots": snapshots,
            })
        });
        let partitions: Vec<serde_json::Value> = partitions.collect();
        serde_json::json!({
            "dir": self.dir,
            "records": figures.records,
            "bytes": figures.bytes,
            "syncs": figures.syncs,
            "pending_bytes": figures.pending_bytes,
            "failed": figures.failed,
            "refused": figures.refused,
            "clock_jumps": figures.clock_jumps,
            "pieces": figures.pieces,
            "blob_bytes": figures.blob_bytes,
            "left_out": core.skipped(),
            "files_deleted": self.keeper.deleted.load(Ordering::Relaxed),
            "partitions": partitions,
        })
    }

    /// Stops the threads, and syncs what was appended; gives up then. A thread that is late ends when the disk lets it.
    ///
    /// # Errors
    /// What the log says when it could not be closed well in time.
    pub(crate) fn close(&self, shared: &Shared, until: Instant) -> Result<()> {
        if !self.log.is_durable() {
            return Ok(());
        }
        self.reads.stop();
        let flushed = shared.outside(|core, _| core.flush_acks());
        let is_whole = flushed.is_ok() && shared.waiting.wait(until);
        *lock(&self.keeper.stop) = if is_whole { Stop::Well } else { Stop::Short };
        self.keeper.due.notify_all();
        self.threads.join(until);
        let closed = self.log.close(until.saturating_duration_since(monotonic()));
        flushed?;
        Ok(closed?)
    }
}

fn numbers(shared: &Shared) -> Vec<u32> {
    let all = shared.outside(|core, _| core.partitions().map(|(_, number)| number).collect());
    all.unwrap_or_default()
}

/// Writes how far groups are, and ends those that were idle for too long. Where nothing is deleted nobody holds
/// anything, so nobody is ended.
fn stop_holding(shared: &Shared) {
    for number in numbers(shared) {
        // An engine that failed in an earlier call tells everybody so itself.
        let _ = shared.outside(|core, at| core.stop_holding(number, at));
    }
    // Retention goes by what is in the log. What is not there in time is seen at the next look.
    let _ = shared.waiting.wait(monotonic() + patience());
}

fn tell_deleted(core: &mut Core, number: u32, deleted: &[Deleted], at: Moment) {
    let behind = deleted.iter().filter_map(|one| one.positions);
    let oldest = behind.map(|(_, behind)| behind).max();
    let files = deleted.iter().map(|one| {
        let facts = serde_json::json!({"file": one.file, "bytes": one.bytes, "why": one.why});
        facts.to_string()
    });
    let files: Vec<String> = files.collect();
    core.deleted(number, oldest, &files, at);
}

impl Keeper {
    fn count(&self, records: u64) {
        let before = self.records.fetch_add(records, Ordering::Relaxed);
        if before + records >= spec::LOG_SNAPSHOT_RECORDS as u64 {
            self.due.notify_one();
        }
    }
}
