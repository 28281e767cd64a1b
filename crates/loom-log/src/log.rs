//! The log: opened once, shared by clones, closed well or by the end of the process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use loom_core::Position;
use loom_core::record::{Outgoing, Record};

use crate::api::{
    Answer, Batch, Boot, Deleted, LogStats, Needs, Opened, Options, ReadLimit, Recovered, Sink,
};
use crate::backup::{self, Report};
use crate::error::{LogError, Result};
use crate::lock::Lock;
use crate::machine::Refusal;
use crate::memory::Memory;
use crate::opening::{self, Place};
use crate::partition::own;
use crate::retention;
use crate::snapshots;
use crate::writer::Shared;

/// A log; clones are the same one. When the last goes, it is closed.
#[derive(Clone)]
pub struct Log {
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Disk(Arc<Disk>),
    Memory(Arc<Memory>),
}

/// A log in a directory.
struct Disk {
    dir: PathBuf,
    /// The process that opened it: one that was forked has none of the threads, and writes nothing.
    pid: u32,
    shared: Arc<Shared>,
    /// One partition is opened at a time; knows their numbers.
    opening: Mutex<BTreeMap<String, u32>>,
    /// Held by whoever deletes files or needs them to stay.
    keeper: Mutex<()>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    lock: Mutex<Option<Lock>>,
}

/// What a thread does until it is told to end.
type Loop = fn(&Arc<Shared>);

/// Looked at again after this, while something is waited for.
const LOOK: Duration = Duration::from_millis(20);
/// How long the last clone waits for the disk when nobody closed the log.
const LAST_CLOSE: Duration = Duration::from_secs(10);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// Opens the log in a directory, or makes one, and takes its lock. Answers go to `sink`.
    ///
    /// # Errors
    /// [`LogError::NotALog`], [`LogError::Newer`], [`LogError::Held`], and what the operating system refuses.
    pub fn open(dir: &Path, options: Options, sink: Arc<dyn Sink>) -> Result<Self> {
        let held = Lock::take(dir)?;
        let shared = Arc::new(Shared::new(options, sink));
        let disk = Disk {
            dir: dir.to_path_buf(),
            pid: std::process::id(),
            shared: Arc::clone(&shared),
            opening: Mutex::new(opening::numbers(dir)?),
            keeper: Mutex::default(),
            threads: Mutex::default(),
            lock: Mutex::new(Some(held)),
        };
        let mut threads = Vec::new();
        let works: [(&str, Loop); 3] = [
            ("loom-log-write", Shared::write),
            ("loom-log-sync", |shared| shared.sync()),
            ("loom-log-make", |shared| shared.chores()),
        ];
        for (name, work) in works {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(name.to_owned());
            let started = thread.spawn(move || work(&shared));
            threads.push(started.map_err(|e| LogError::io(dir, "starting a thread for", &e))?);
        }
        *lock(&disk.threads) = threads;
        Ok(Self {
            kind: Kind::Disk(Arc::new(disk)),
        })
    }

    /// A log without a directory: it ends with the process.
    pub fn memory(options: &Options) -> Self {
        Self {
            kind: Kind::Memory(Arc::new(Memory::new(options.memory_bytes))),
        }
    }

    /// Whether it outlives the process.
    pub fn is_durable(&self) -> bool {
        matches!(self.kind, Kind::Disk(_))
    }

    /// Opens the partition of a namespace, or makes it: finds its end, makes it safe, begins a new life of it. Gives `each`
    /// the newest sound snapshot, then every record behind it, the one that begins this life being the last.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] with file and place for damage, unless `boot.accept_loss`; [`LogError::Newer`]; and what the
    /// operating system refuses.
    pub fn partition(
        &self,
        namespace: &str,
        boot: &Boot,
        each: &mut dyn FnMut(Recovered<'_>),
    ) -> Result<Opened> {
        match &self.kind {
            Kind::Disk(disk) => disk.partition(namespace, boot, each),
            Kind::Memory(memory) => Ok(memory.partition(namespace, boot, each)),
        }
    }

    /// Closes one partition, whose records nobody could use: it may be opened again.
    ///
    /// # Errors
    /// [`LogError::ReadOnly`] when it cannot be closed well; it is over then as well.
    pub fn leave(&self, partition: u32) -> Result<()> {
        match &self.kind {
            Kind::Disk(disk) => disk.leave(partition),
            Kind::Memory(_) => Ok(()),
        }
    }

    /// Takes batches; never waits. Those to a log on disk are answered through the sink, those to one in memory are
    /// answered here and now. The order of calls is the order of the log.
    ///
    /// # Errors
    /// [`LogError::Full`] when too much waits for the disk, [`LogError::Closed`]; then nothing of it was taken.
    pub fn append(&self, out: Vec<Outgoing>) -> Result<Vec<Answer>> {
        match &self.kind {
            Kind::Disk(disk) => disk.shared.append(out).map(|()| Vec::new()),
            Kind::Memory(memory) => memory.append(out),
        }
    }

    /// Reads from a position on what all may see. Reads files: not for a thread that must not wait.
    ///
    /// # Errors
    /// [`LogError::Expired`] for what is deleted, [`LogError::Foreign`] behind the end, [`LogError::Corrupt`] with file and
    /// place for damage.
    pub fn read(&self, partition: u32, from: u64, most: ReadLimit) -> Result<Batch> {
        match &self.kind {
            Kind::Disk(disk) => disk.shared.partition(partition)?.read(from, most),
            Kind::Memory(memory) => memory.read(partition, from, most),
        }
    }

    /// Reads the record at a position; none: there is none yet, or it is in a gap.
    ///
    /// # Errors
    /// As [`Log::read`].
    pub fn get(&self, partition: u32, n: u64) -> Result<Option<(Position, Record)>> {
        let batch = self.read(partition, n, ReadLimit::ONE)?;
        let found = batch.records.into_iter().next();
        Ok(found.filter(|(position, _)| position.n == n))
    }

    /// Keeps what the core folds to at `at`, synced. Two are kept, the newest sound one counts.
    ///
    /// # Errors
    /// What the operating system says; a log in memory keeps none, and says nothing.
    pub fn snapshot(&self, at: Position, bytes: &[u8]) -> Result<()> {
        let Kind::Disk(disk) = &self.kind else {
            return Ok(());
        };
        let partition = disk.shared.partition(at.partition)?;
        // A snapshot may stand on nothing that a power cut could take back.
        disk.flush(at.partition, Some(at.n + 1))?;
        let _kept = lock(&disk.keeper);
        let dir = partition.dir.join("snapshots");
        let kept = snapshots::write(&dir, at, bytes, &partition.health);
        if kept.is_err() {
            disk.shared.look_after(&partition);
        }
        kept
    }

    /// Deletes what may go: by the rules of the options, behind two sound snapshots, and as far as `needs` lets it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn retain(&self, partition: u32, needs: impl Into<Needs>) -> Result<Vec<Deleted>> {
        let Kind::Disk(disk) = &self.kind else {
            return Ok(Vec::new());
        };
        let _kept = lock(&disk.keeper);
        let partition = disk.shared.partition(partition)?;
        let now = disk.shared.now_ms();
        let rules = disk.shared.options.retention;
        let deleted = retention::retain(&partition, rules, now, needs.into());
        if deleted.is_err() {
            disk.shared.look_after(&partition);
        }
        deleted
    }

    /// Copies the log to a new directory while it goes on, and checks the copy.
    ///
    /// # Errors
    /// [`LogError::NotEmpty`], and what the operating system says; then there is no copy.
    pub fn backup(&self, to: &Path) -> Result<Report> {
        let Kind::Disk(disk) = &self.kind else {
            return Err(LogError::Unknown {
                name: "in a directory: it is in memory".to_owned(),
            });
        };
        let _kept = lock(&disk.keeper);
        for partition in disk.shared.all() {
            disk.flush(partition.number, None)?;
        }
        backup::write(&disk.dir, to, disk.shared.now_ms())
    }

    /// Waits until everything appended so far is synced.
    ///
    /// # Errors
    /// [`LogError::ReadOnly`] when it cannot be.
    pub fn flush(&self) -> Result<()> {
        let Kind::Disk(disk) = &self.kind else {
            return Ok(());
        };
        for partition in disk.shared.all() {
            disk.flush(partition.number, None)?;
        }
        Ok(())
    }

    /// The log's clock in milliseconds since 1970: the wall's time, and never less than it was, here or in the log.
    pub fn now_ms(&self) -> u64 {
        match &self.kind {
            Kind::Disk(disk) => disk.shared.now_ms(),
            Kind::Memory(_) => (Options::default().clock)(),
        }
    }

    /// Bytes that wait to be written, as a share of those that may: 0 to 1.
    pub fn pressure(&self) -> f64 {
        match &self.kind {
            Kind::Disk(disk) => disk.shared.pressure(),
            Kind::Memory(_) => 0.0,
        }
    }

    /// What it did so far.
    pub fn stats(&self) -> LogStats {
        match &self.kind {
            Kind::Disk(disk) => disk.shared.stats(),
            Kind::Memory(_) => LogStats::default(),
        }
    }

    /// Writes what is there, closes each partition with a record that says so, and lets go of the directory.
    ///
    /// # Errors
    /// [`LogError::Io`] when the disk does not finish within `timeout`; the lock is held until the process ends then.
    pub fn close(&self, timeout: Duration) -> Result<()> {
        match &self.kind {
            Kind::Disk(disk) => disk.close(timeout),
            Kind::Memory(_) => Ok(()),
        }
    }
}

impl Disk {
    fn partition(
        &self,
        namespace: &str,
        boot: &Boot,
        each: &mut dyn FnMut(Recovered<'_>),
    ) -> Result<Opened> {
        let mut numbers = lock(&self.opening);
        if lock(&self.lock).is_none() {
            return Err(LogError::Closed);
        }
        let known = numbers.get(namespace).copied();
        if known.is_some_and(|number| self.shared.partition(number).is_ok_and(|p| p.is_alive())) {
            return Err(LogError::Held {
                path: self.dir.join(namespace),
                pid: Some(std::process::id()),
            });
        }
        let number = known.unwrap_or_else(|| numbers.values().max().map_or(1, |most| most + 1));
        let place = Place {
            number,
            namespace,
            dir: self.dir.join(namespace),
            is_new: known.is_none(),
        };
        let (partition, opened, latest) = opening::open(&place, boot, &self.shared.options, each)?;
        self.shared.clock_was(latest);
        numbers.insert(namespace.to_owned(), number);
        self.shared.enter(Arc::new(partition));
        Ok(opened)
    }

    fn leave(&self, number: u32) -> Result<()> {
        let partition = self.shared.partition(number)?;
        let closed = Record::Closed(loom_core::record::Closed {
            at_ms: self.shared.now_ms(),
        });
        self.shared.ask(&partition, |driver| {
            driver.machine.close(own(&closed, None, true).batch);
        });
        let mut driver = partition.driver();
        loop {
            if let Some(failure) = driver.machine.fenced().cloned() {
                return Err(partition.refused(&driver, &Refusal::Fenced(failure)));
            }
            if driver.machine.is_closed() {
                return Ok(());
            }
            driver = partition.wait(driver, LOOK);
        }
    }

    /// Waits until a partition is synced: before a position, or all that was appended.
    fn flush(&self, number: u32, before: Option<u64>) -> Result<()> {
        let partition = self.shared.partition(number)?;
        let appended = self.shared.appended();
        let mut wanted = before;
        let mut driver = partition.driver();
        loop {
            if let Some(failure) = driver.machine.fenced().cloned() {
                return Err(partition.refused(&driver, &Refusal::Fenced(failure)));
            }
            if wanted.is_none() && self.shared.has_given(appended) {
                wanted = Some(driver.machine.coming());
            }
            let is_done = |before| driver.machine.synced() >= before || driver.machine.is_closed();
            let has_all =
                driver.machine.is_idle() && driver.machine.synced() >= driver.machine.written();
            if wanted.is_some_and(|before| is_done(before) || has_all) {
                return Ok(());
            }
            drop(driver);
            self.shared.ask(&partition, |driver| driver.machine.flush());
            driver = partition.wait(partition.driver(), LOOK);
        }
    }

    fn close(&self, timeout: Duration) -> Result<()> {
        if self.pid != std::process::id() || lock(&self.lock).is_none() {
            return Ok(());
        }
        self.shared.refuse_more();
        let mut rounds = timeout.as_millis() / LOOK.as_millis() + 1;
        let partitions = self.shared.all();
        let mut asked = false;
        loop {
            if self.shared.is_drained() && !asked {
                asked = true;
                let closed = Record::Closed(loom_core::record::Closed {
                    at_ms: self.shared.now_ms(),
                });
                for partition in &partitions {
                    let last = own(&closed, None, true).batch;
                    self.shared
                        .ask(partition, |driver| driver.machine.close(last));
                }
            }
            let open = partitions.iter().find(|p| !p.is_over());
            match open {
                None if asked => break,
                _ if rounds == 0 => return Err(self.late()),
                _ => rounds -= 1,
            }
            match open {
                Some(partition) => drop(partition.wait(partition.driver(), LOOK)),
                None => std::thread::sleep(LOOK),
            }
        }
        self.shared.stop_writing();
        self.shared.stop_working();
        for thread in lock(&self.threads).drain(..) {
            // One that died has left its message where the process writes those.
            let _ = thread.join();
        }
        for partition in &partitions {
            // The index of the last pieces is a short cut; without it they are read at the next start.
            let _ = partition.blobs().finish(&*partition.storage);
        }
        lock(&self.lock).take();
        Ok(())
    }

    fn late(&self) -> LogError {
        LogError::Io {
            path: self.dir.clone(),
            what: "closing",
            errno: 0,
            message: "the disk did not finish in time".to_owned(),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is not synced by then was acknowledged to nobody.
        let _ = self.close(LAST_CLOSE);
    }
}
