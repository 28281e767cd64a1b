//! The threads under a log on disk: one encodes and writes, one syncs (but for a lone publisher, whose batch is synced where
//! it was written), one does what takes long. They drive the machines of all partitions; whoever has done a thing tells
//! the machine, does what is quick of what it wants next, and passes the rest on. Answers leave on the thread that brought
//! them about, when no lock is held.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use loom_core::record::{ClockJump, Outgoing, Record};
use loom_core::spec::limits as spec;

use crate::api::{Answer, LogStats, Options, Sink};
use crate::error::{LogError, Result};
use crate::partition::{Driver, Left, Partition, own};
use crate::storage::{File, Op, OpId};

/// A jump of the wall clock over this is a record, in milliseconds.
pub(crate) const JUMP_MS: u64 = spec::LOG_CLOCK_JUMP_MS;
/// Those whom a sync answered have this part of its time to come back, and not more than that.
const MOMENT: u32 = 8;
const LONGEST_MOMENT: Duration = Duration::from_millis(1);
/// After so many syncs in a row that answered one batch only, the next of these is synced where it was written.
const LONELY: u32 = 8;
/// What a record takes while it waits, besides its body, about.
const HEAD: usize = 256;

/// What the threads share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    sink: Arc<dyn Sink>,
    partitions: RwLock<BTreeMap<u32, Arc<Partition>>>,
    queue: Mutex<Queue>,
    filled: Condvar,
    syncs: Work,
    chores: Work,
    /// Bytes taken off the queue and not yet written.
    taken: AtomicU64,
    pub(crate) counts: Counts,
    clock: Mutex<Clock>,
}

/// How long what nobody waits for waits for more of it: one wake-up for many records of turns.
const LINGER: Duration = Duration::from_millis(5);
/// And how much of it at most.
const LINGER_BYTES: u64 = 256 << 10;

/// What waits to be encoded.
#[derive(Default)]
struct Queue {
    batches: Vec<Outgoing>,
    bytes: u64,
    /// Somebody waits for one of them, or they are many: the thread takes them at once.
    urgent: bool,
    /// How many were ever taken in, how many of them the machines have, and how many the thread has in hand.
    counts: (u64, u64, u64),
    /// Nothing more is taken.
    closed: bool,
    /// The thread ends when it has written what is there.
    stop: bool,
}

/// Something to do for one partition.
type Todo = (Arc<Partition>, OpId, Op);

/// Things to do for one thread.
#[derive(Default)]
struct Work {
    list: Mutex<Todos>,
    filled: Condvar,
}

#[derive(Default)]
struct Todos {
    waiting: VecDeque<Todo>,
    stop: bool,
}

#[derive(Default)]
pub(crate) struct Counts {
    records: AtomicU64,
    bytes: AtomicU64,
    syncs: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    clock_jumps: AtomicU64,
}

/// The log's clock: it never goes back, and knows what the wall should show.
struct Clock {
    shown: u64,
    wall: u64,
    since: Instant,
}

#[expect(
    clippy::disallowed_methods,
    reason = "tells how long something lies unsynced, and whether the wall clock jumped"
)]
fn monotonic() -> Instant {
    Instant::now()
}

/// What a lock guards is whole after each step, so a thread that died leaves nothing broken.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Work {
    fn push(&self, partition: &Arc<Partition>, id: OpId, op: Op) {
        let mut list = lock(&self.list);
        list.waiting.push_back((Arc::clone(partition), id, op));
        drop(list);
        self.filled.notify_one();
    }

    fn next(&self) -> Option<Todo> {
        let mut list = lock(&self.list);
        loop {
            if let Some(work) = list.waiting.pop_front() {
                return Some(work);
            }
            if list.stop {
                return None;
            }
            let waited = self.filled.wait(list);
            list = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_empty(&self) -> bool {
        lock(&self.list).waiting.is_empty()
    }

    fn stop(&self) {
        lock(&self.list).stop = true;
        self.filled.notify_all();
    }
}

impl Shared {
    pub(crate) fn new(options: Options, sink: Arc<dyn Sink>) -> Self {
        let wall = (options.clock)();
        Self {
            options,
            sink,
            partitions: RwLock::default(),
            queue: Mutex::default(),
            filled: Condvar::new(),
            syncs: Work::default(),
            chores: Work::default(),
            taken: AtomicU64::new(0),
            counts: Counts::default(),
            clock: Mutex::new(Clock {
                shown: wall,
                wall,
                since: monotonic(),
            }),
        }
    }

    /// Takes batches to be written; never waits.
    pub(crate) fn append(&self, out: Vec<Outgoing>) -> Result<()> {
        let bytes: u64 = out.iter().map(weight).sum();
        let mut queue = lock(&self.queue);
        if queue.closed {
            return Err(LogError::Closed);
        }
        let pending = queue.bytes + self.taken.load(Ordering::Relaxed);
        // One that is larger than the limit is taken when nothing else waits.
        if pending > 0 && pending + bytes > self.options.pending_bytes {
            let refused = out.iter().map(|o| o.batch.len() as u64).sum();
            self.counts.refused.fetch_add(refused, Ordering::Relaxed);
            return Err(LogError::Full { pending });
        }
        queue.bytes += bytes;
        queue.counts.0 += out.len() as u64;
        let first = queue.batches.is_empty();
        let urgent = queue.bytes > LINGER_BYTES || out.iter().any(|one| one.ticket.is_some());
        // What nobody waits for wakes the thread once; it lets more of it come.
        let wake = first || (urgent && !queue.urgent);
        queue.urgent |= urgent;
        if first {
            queue.batches = out;
        } else {
            queue.batches.extend(out);
        }
        drop(queue);
        if wake {
            self.filled.notify_one();
        }
        Ok(())
    }

    pub(crate) fn partition(&self, number: u32) -> Result<Arc<Partition>> {
        let all = self.partitions.read();
        let all = all.unwrap_or_else(PoisonError::into_inner);
        all.get(&number).cloned().ok_or_else(|| LogError::Unknown {
            name: format!("partition {number}"),
        })
    }

    pub(crate) fn all(&self) -> Vec<Arc<Partition>> {
        let all = self.partitions.read();
        let all = all.unwrap_or_else(PoisonError::into_inner);
        all.values().cloned().collect()
    }

    pub(crate) fn enter(&self, partition: Arc<Partition>) {
        let all = self.partitions.write();
        let mut all = all.unwrap_or_else(PoisonError::into_inner);
        all.insert(partition.number, partition);
    }

    /// What the log's clock shows: the wall's time, or the latest that was ever shown.
    pub(crate) fn now_ms(&self) -> u64 {
        let wall = (self.options.clock)();
        let mut clock = lock(&self.clock);
        clock.shown = clock.shown.max(wall);
        clock.shown
    }

    /// An earlier life has shown this.
    pub(crate) fn clock_was(&self, shown: u64) {
        let mut clock = lock(&self.clock);
        clock.shown = clock.shown.max(shown);
    }

    #[expect(clippy::cast_precision_loss, reason = "a share")]
    pub(crate) fn pressure(&self) -> f64 {
        let waiting = lock(&self.queue).bytes + self.taken.load(Ordering::Relaxed);
        waiting as f64 / self.options.pending_bytes.max(1) as f64
    }

    pub(crate) fn stats(&self) -> LogStats {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut stats = LogStats {
            records: read(&self.counts.records),
            bytes: read(&self.counts.bytes),
            syncs: read(&self.counts.syncs),
            pending_bytes: lock(&self.queue).bytes + read(&self.taken),
            failed: read(&self.counts.failed),
            refused: read(&self.counts.refused),
            clock_jumps: read(&self.counts.clock_jumps),
            ..LogStats::default()
        };
        for partition in self.all() {
            let (pieces, bytes) = partition.blobs().stats();
            stats.pieces += pieces;
            stats.blob_bytes += bytes;
        }
        stats
    }

    /// From here on nothing more is taken; what is there is written.
    pub(crate) fn refuse_more(&self) {
        lock(&self.queue).closed = true;
    }

    /// The thread that writes ends when it has written what is there.
    pub(crate) fn stop_writing(&self) {
        lock(&self.queue).stop = true;
        self.filled.notify_all();
    }

    /// The other threads end.
    pub(crate) fn stop_working(&self) {
        self.syncs.stop();
        self.chores.stop();
    }

    /// How many batches were ever taken in.
    pub(crate) fn appended(&self) -> u64 {
        lock(&self.queue).counts.0
    }

    /// Whether so many have been given to the machines.
    pub(crate) fn has_given(&self, batches: u64) -> bool {
        lock(&self.queue).counts.1 >= batches
    }

    /// Whether everything appended so far has been given to the machines.
    pub(crate) fn is_drained(&self) -> bool {
        let queue = lock(&self.queue);
        queue.counts.0 == queue.counts.1
    }

    /// The thread that encodes and writes.
    pub(crate) fn write(self: &Arc<Self>) {
        let mut dirty: BTreeMap<u32, Instant> = BTreeMap::new();
        let mut head = Vec::new();
        while let Some((batches, bytes)) = self.take(!dirty.is_empty()) {
            self.look_at_clock();
            for batch in group(batches) {
                if let Some(partition) = self.write_batches(batch, &mut head) {
                    dirty.entry(partition).or_insert_with(monotonic);
                }
            }
            self.taken.fetch_sub(bytes, Ordering::Relaxed);
            self.flush_old(&mut dirty);
        }
    }

    /// Waits for batches; where something lies unsynced, no longer than that may lie.
    fn take(&self, dirty: bool) -> Option<(Vec<Outgoing>, u64)> {
        let most = Duration::from_millis(self.options.sync_ms);
        let mut queue = lock(&self.queue);
        queue.counts.1 += std::mem::take(&mut queue.counts.2);
        while !queue.urgent {
            let empty = queue.batches.is_empty();
            if queue.stop && empty {
                return None;
            }
            if queue.stop {
                break;
            }
            if empty && !dirty {
                let waited = self.filled.wait(queue);
                queue = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let patience = if empty { most } else { LINGER };
            let waited = self.filled.wait_timeout(queue, patience);
            let (back, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = back;
            if timeout.timed_out() {
                break;
            }
        }
        queue.urgent = false;
        let bytes = std::mem::take(&mut queue.bytes);
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        queue.counts.2 = queue.batches.len() as u64;
        Some((std::mem::take(&mut queue.batches), bytes))
    }

    /// Gives batches of one partition to its machine; says which, if it lives.
    fn write_batches(self: &Arc<Self>, batches: Vec<Outgoing>, head: &mut Vec<u8>) -> Option<u32> {
        let number = batches.first()?.partition;
        let partition = match self.partition(number) {
            Ok(partition) => partition,
            Err(error) => {
                let refused = batches.into_iter().map(|out| (out, error.clone()));
                self.refuse(refused.collect());
                return None;
            }
        };
        let mut appends = Vec::with_capacity(batches.len());
        let mut refused = Vec::new();
        let (mut records, mut bytes) = (0, 0);
        for out in batches {
            match partition.encode(&out, self.options.body_bytes, head) {
                Ok(append) => {
                    records += u64::from(append.batch.count());
                    bytes += append.batch.frame_bytes() as u64;
                    appends.push(append);
                }
                Err(error) => refused.push((out, partition.lost().unwrap_or(error))),
            }
        }
        if !refused.is_empty() {
            self.look_after(&partition);
        }
        self.counts.records.fetch_add(records, Ordering::Relaxed);
        self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut driver = partition.driver();
        let before = driver.machine.pending_bytes() as u64;
        let mut answers = Vec::new();
        let is_alone = driver.lonely >= LONELY && appends.len() == 1;
        driver.came_back(appends.len());
        for append in appends {
            let ticket = append.ticket;
            if let Err(refusal) = driver.machine.append(append) {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
                let error = partition.refused(&driver, &refusal);
                answers.extend(ticket.map(|ticket| Answer {
                    ticket,
                    result: Err(error.into()),
                }));
            }
        }
        if driver.expected == 0 {
            driver.machine.release();
        }
        let mut left = partition.drive(&mut driver, before);
        drop(driver);
        left.answers.append(&mut answers);
        let sync = left.ops.pop_if(|(_, op)| is_alone && is_commit(op));
        self.pass_on(&partition, left);
        self.refuse(refused);
        if let Some((id, op)) = sync {
            self.commit_here(&partition, id, &op);
        }
        Some(number)
    }

    fn refuse(&self, refused: Vec<(Outgoing, LogError)>) {
        let records: usize = refused.iter().map(|(out, _)| out.batch.len()).sum();
        self.counts
            .refused
            .fetch_add(records as u64, Ordering::Relaxed);
        let answers = refused.into_iter().filter_map(|(out, error)| {
            let ticket = out.ticket?;
            let result = Err(error.into());
            Some(Answer { ticket, result })
        });
        self.deliver(answers.collect());
    }

    fn deliver(&self, mut answers: Vec<Answer>) {
        if !answers.is_empty() {
            self.sink.answered(&mut answers);
        }
    }

    /// Hands out what a drive left.
    pub(crate) fn pass_on(&self, partition: &Arc<Partition>, left: Left) {
        let (before, after) = left.pending;
        self.taken.fetch_add(after, Ordering::Relaxed);
        self.taken.fetch_sub(before, Ordering::Relaxed);
        for (id, op) in left.ops {
            let work = match op {
                Op::Create { .. } | Op::Zero { .. } => &self.chores,
                _ => &self.syncs,
            };
            work.push(partition, id, op);
        }
        self.deliver(left.answers);
    }

    /// Drives a machine after something was asked of it.
    pub(crate) fn ask(&self, partition: &Arc<Partition>, what: impl FnOnce(&mut Driver)) {
        let mut driver = partition.driver();
        let before = driver.machine.pending_bytes() as u64;
        what(&mut driver);
        let left = partition.drive(&mut driver, before);
        drop(driver);
        self.pass_on(partition, left);
    }

    /// Ends the machine of a partition when a sync that it did not ask for has failed.
    pub(crate) fn look_after(&self, partition: &Arc<Partition>) {
        let Some(error) = partition.health.lost() else {
            return;
        };
        let mut is_news = false;
        self.ask(partition, |driver| is_news = driver.lost(error));
        self.counts
            .failed
            .fetch_add(u64::from(is_news), Ordering::Relaxed);
    }

    /// Syncs what nobody waits for, when it has lain long enough.
    fn flush_old(&self, dirty: &mut BTreeMap<u32, Instant>) {
        let now = monotonic();
        let most = Duration::from_millis(self.options.sync_ms);
        dirty.retain(|number, since| {
            if now.duration_since(*since) < most {
                return true;
            }
            *since = now;
            let Ok(partition) = self.partition(*number) else {
                return false;
            };
            let mut is_dirty = false;
            self.ask(&partition, |driver| {
                is_dirty = driver.machine.written() > driver.machine.synced()
                    && driver.machine.fenced().is_none();
                if is_dirty {
                    driver.machine.flush();
                }
            });
            is_dirty
        });
    }

    /// Notes in every log when the wall clock has jumped.
    fn look_at_clock(self: &Arc<Self>) {
        let wall = (self.options.clock)();
        let now = monotonic();
        let mut clock = lock(&self.clock);
        let since = now.duration_since(clock.since).as_millis();
        let expected = clock.wall + u64::try_from(since).unwrap_or(u64::MAX / 2);
        (clock.wall, clock.since) = (wall, now);
        clock.shown = clock.shown.max(wall);
        drop(clock);
        if wall.abs_diff(expected) <= JUMP_MS {
            return;
        }
        self.counts.clock_jumps.fetch_add(1, Ordering::Relaxed);
        let record = jump(expected, wall);
        for partition in self.all() {
            self.ask(&partition, |driver| {
                // A log that takes nothing any more has said so to those who asked.
                let _ = driver.machine.append(own(&record, None, false));
            });
        }
    }

    /// The thread that syncs.
    pub(crate) fn sync(&self) {
        while let Some((partition, id, op)) = self.syncs.next() {
            if is_commit(&op) {
                self.commit(&partition, id, &op);
            } else {
                self.work(&partition, id, &op);
            }
        }
    }

    /// Syncs a commit, answers, and gives those who were answered a moment to come back before the next one: else two
    /// halves of them take turns, and each sync carries one half.
    fn commit(&self, partition: &Arc<Partition>, id: OpId, op: &Op) {
        self.counts.syncs.fetch_add(1, Ordering::Relaxed);
        let begun = monotonic();
        let done = self.perform(partition, op);
        let moment = (monotonic().duration_since(begun) / MOMENT).min(LONGEST_MOMENT);
        let mut waits = false;
        self.ask(partition, |driver| waits = driver.synced(id, done));
        if !waits {
            return;
        }
        let until = monotonic() + moment;
        let mut driver = partition.driver();
        while driver.expected > 0 && self.syncs.is_empty() {
            let left = until.saturating_duration_since(monotonic());
            if left.is_zero() {
                break;
            }
            driver = partition.wait(driver, left);
        }
        drop(driver);
        self.ask(partition, Driver::go_on);
    }

    /// Syncs a commit on the thread that wrote it. To wake the other one takes longer than all that could be written
    /// meanwhile, as long as one publisher at a time waits for the disk.
    fn commit_here(&self, partition: &Arc<Partition>, id: OpId, op: &Op) {
        self.counts.syncs.fetch_add(1, Ordering::Relaxed);
        let done = self.perform(partition, op);
        let is_crowded = !lock(&self.queue).batches.is_empty();
        self.ask(partition, |driver| {
            driver.synced(id, done);
            driver.go_on();
            if is_crowded {
                driver.lonely = 0;
            }
        });
    }

    /// The thread that does what takes long.
    pub(crate) fn chores(&self) {
        while let Some((partition, id, op)) = self.chores.next() {
            self.work(&partition, id, &op);
        }
    }

    fn work(&self, partition: &Arc<Partition>, id: OpId, op: &Op) {
        let done = self.perform(partition, op);
        self.ask(partition, |driver| driver.done(id, done));
    }

    fn perform(&self, partition: &Partition, op: &Op) -> Result<()> {
        let done = partition.perform(op);
        if done.is_err() {
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
        }
        done
    }
}

/// The record of a jump.
pub(crate) fn jump(from_ms: u64, to_ms: u64) -> Record {
    Record::ClockJump(ClockJump { from_ms, to_ms })
}

/// Whether it makes written records durable.
fn is_commit(op: &Op) -> bool {
    matches!(
        op,
        Op::Sync {
            file: File::Segment(_)
        }
    )
}

/// Batches of one partition together, in their order.
fn group(batches: Vec<Outgoing>) -> Vec<Vec<Outgoing>> {
    let first = batches.first().map(|out| out.partition);
    if batches.iter().all(|out| Some(out.partition) == first) {
        return vec![batches];
    }
    let mut groups: BTreeMap<u32, Vec<Outgoing>> = BTreeMap::new();
    for out in batches {
        groups.entry(out.partition).or_default().push(out);
    }
    groups.into_values().collect()
}

/// Bytes that a batch takes while it waits, about.
fn weight(out: &Outgoing) -> u64 {
    let bodies: usize = out.batch.iter().map(|r| r.body().len() + HEAD).sum();
    bodies as u64
}
