//! Opening a partition: its newest sound snapshot, what recovery finds behind it, and the record that begins its new life.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use loom_core::Position;
use loom_core::record::{Epoch, Record};
use loom_core::spec::limits as spec;

use crate::api::{Boot, Opened, Options, Recovered};
use crate::blobs::Blobs;
use crate::error::{LogError, Result};
use crate::files::{sync_dir, write_whole};
use crate::format::Stored;
use crate::machine::{Ahead, Bounds, Machine, Refusal};
use crate::mark;
use crate::partition::{Partition, decode, gap, open as open_file, own};
use crate::recovery::{End, Found, Known, Recovery, Source, Unreadable, Why};
use crate::snapshots::{self, Snapshot};
use crate::storage::{Directory, Failure, File as Name};
use crate::walk::segments;
use crate::writer::{JUMP_MS, jump};

const NUMBER_FILE: &str = "partition";

/// Where a partition is.
pub(crate) struct Place<'a> {
    pub(crate) number: u32,
    pub(crate) namespace: &'a str,
    pub(crate) dir: PathBuf,
    pub(crate) is_new: bool,
}

/// The numbers of all namespaces of a data directory.
///
/// # Errors
/// What the operating system says.
pub(crate) fn numbers(dir: &Path) -> Result<BTreeMap<String, u32>> {
    let mut found = BTreeMap::new();
    let entries = fs::read_dir(dir).map_err(|e| LogError::io(dir, "reading", &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| LogError::io(dir, "reading", &e))?;
        let path = entry.path().join(NUMBER_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                continue;
            }
            Err(e) => return Err(LogError::io(&path, "reading", &e)),
        };
        let number = text.trim().parse().ok();
        let (Some(number), Ok(name)) = (number, entry.file_name().into_string()) else {
            return Err(LogError::Corrupt {
                path,
                at: 0,
                n: None,
                why: "it holds no number".to_owned(),
            });
        };
        found.insert(name, number);
    }
    Ok(found)
}

/// Opens one. Also says the latest time that the log has seen.
pub(crate) fn open(
    place: &Place<'_>,
    boot: &Boot,
    options: &Options,
    each: &mut dyn FnMut(Recovered<'_>),
) -> Result<(Partition, Opened, u64)> {
    prepare(place)?;
    let blobs = Blobs::open(&place.dir.join("blobs"), options.blob_segment_bytes)?;
    let (snapshot, damaged) = snapshots::newest(&place.dir.join("snapshots"))?;
    let mut telling = Telling {
        number: place.number,
        blobs: &blobs,
        each,
        failed: None,
        accept_loss: boot.accept_loss,
        latest: 0,
    };
    let mut known = telling.snapshot(snapshot.as_ref(), boot, options);
    // The mark is never ahead of a sync: what it covers is no torn tail, even in the very last commit.
    known.durable = known.durable.max(mark::read(&place.dir)?);
    let source = OnDisk {
        dir: place.dir.join("log"),
        blobs: &blobs,
        open: RefCell::default(),
    };
    let end = Recovery::new(known)
        .run(&source, &mut |found| telling.found(found))
        .map_err(|why| unreadable(&place.dir, why))?;
    let (failed, latest) = (telling.failed.take(), telling.latest);
    if let Some(error) = failed {
        return Err(error);
    }
    let machine = Machine::new(bounds(options), name_of(boot, place.number), &end);
    let storage = (options.storage)(&place.dir);
    let at = (place.number, place.namespace, place.dir.as_path());
    let partition = Partition::new(at, storage, blobs, machine)?;
    let start = begin(&partition, boot, &end, latest)?;
    let opened = Opened {
        partition: place.number,
        epoch: start.epoch,
        end: start,
        first: segments(&partition.log())?.first().copied().unwrap_or(0),
        torn_bytes: end.torn_bytes,
        clean: end.closed,
        damaged_snapshots: damaged.len() as u64,
    };
    for (n, record) in (end.end..).zip(beginning(boot, &end, start.epoch, latest)) {
        each(Recovered::Record(
            partition.position(start.epoch, n),
            record,
        ));
    }
    Ok((partition, opened, latest.max(boot.wall_ms)))
}

fn prepare(place: &Place<'_>) -> Result<()> {
    let name = place.namespace;
    let safe = !name.starts_with('.')
        && !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if !safe || place.dir.is_file() {
        return Err(LogError::NotALog {
            path: place.dir.clone(),
            why: "no directory can have the name of this namespace",
        });
    }
    // What is there may have been made by a process that was killed before the names were durable, and a directory that
    // a backup had nothing for is made only now: nothing that comes to lie below may go with the name of one above.
    for part in ["log", "blobs", "snapshots"] {
        let path = place.dir.join(part);
        fs::create_dir_all(&path).map_err(|e| LogError::io(&path, "making", &e))?;
        sync_dir(&path)?;
    }
    if place.is_new {
        let number = format!("{}\n", place.number);
        write_whole(&place.dir, NUMBER_FILE, number.as_bytes())?;
    } else {
        sync_dir(&place.dir)?;
    }
    place.dir.parent().map_or(Ok(()), sync_dir)
}

/// Writes what begins a life, and says where it is.
fn begin(partition: &Partition, boot: &Boot, end: &End, latest: u64) -> Result<Position> {
    let mut driver = partition.driver();
    let epoch = driver.machine.epoch();
    let first = end.end;
    let records = beginning(boot, end, epoch, latest);
    let wanted = first + records.len() as u64;
    for record in &records {
        let append = own(record, None, true);
        if let Err(refusal) = driver.machine.append(append) {
            return Err(partition.refused(&driver, &refusal));
        }
    }
    driver.machine.flush();
    partition.drive_here(&mut driver);
    if let Some(failure) = driver.machine.fenced().cloned() {
        return Err(partition.refused(&driver, &Refusal::Fenced(failure)));
    }
    if driver.machine.synced() < wanted {
        return Err(partition.refused(&driver, &Refusal::NoRoom(Failure::NoSpace)));
    }
    Ok(partition.position(epoch, wanted - 1))
}

fn beginning(boot: &Boot, end: &End, epoch: u32, latest: u64) -> Vec<Record> {
    let begun = Record::Epoch(Epoch {
        epoch,
        boot: Some(boot.id.into()),
        at_ms: boot.wall_ms.max(latest),
        version: boot.version.clone(),
        torn_bytes: end.torn_bytes,
    });
    let went_back = latest > boot.wall_ms.saturating_add(JUMP_MS);
    let jumped = went_back.then(|| jump(latest, boot.wall_ms));
    jumped.into_iter().chain([begun]).collect()
}

fn bounds(options: &Options) -> Bounds {
    Bounds {
        segment_bytes: options.segment_bytes,
        reserve_bytes: spec::LOG_RESERVE_BYTES as u64,
        batch_bytes: spec::LOG_BATCH_BYTES,
        commit_bytes: spec::LOG_COMMIT_BYTES,
        unsynced_bytes: spec::LOG_UNSYNCED_BYTES as u64,
        // What may wait is bounded where it comes in.
        pending_bytes: usize::MAX / 2,
    }
}

/// Names a new log: by whoever made it.
fn name_of(boot: &Boot, number: u32) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&boot.id.to_le_bytes());
    hasher.update(&boot.wall_ms.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    let hash = hasher.finalize();
    let first = hash.as_bytes().first_chunk::<8>();
    first.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Passes on what is found.
struct Telling<'a> {
    number: u32,
    blobs: &'a Blobs,
    each: &'a mut dyn FnMut(Recovered<'_>),
    failed: Option<LogError>,
    accept_loss: bool,
    /// The latest time that a record shows.
    latest: u64,
}

impl Telling<'_> {
    fn snapshot(&mut self, snapshot: Option<&Snapshot>, boot: &Boot, options: &Options) -> Known {
        let from = snapshot.map_or(0, |snapshot| snapshot.at.n + 1);
        if let Some(snapshot) = snapshot {
            (self.each)(Recovered::Snapshot(snapshot.at, &snapshot.bytes));
        }
        Known {
            from,
            durable: from,
            epoch: snapshot.map_or(0, |snapshot| snapshot.at.epoch),
            unsynced_bytes: bounds(options).unsynced_bytes,
            accept_loss: boot.accept_loss,
        }
    }

    fn found(&mut self, found: Found<'_>) {
        if self.failed.is_some() {
            return;
        }
        let told = match found {
            Found::Gap { from, to } => Ok((self.at(0, from), gap(from, to))),
            Found::Record {
                position,
                epoch,
                record,
            } => self.record(self.at(epoch, position), record),
        };
        match told {
            Ok((at, record)) => {
                self.latest = self.latest.max(time_of(&record));
                (self.each)(Recovered::Record(at, record));
            }
            Err(error) => self.failed = Some(error),
        }
    }

    fn record(&self, at: Position, stored: Stored<'_>) -> Result<(Position, Record)> {
        let bodies = |refs: &[u8]| self.blobs.find(refs)?.read();
        match decode(stored, at, &bodies) {
            Err(LogError::Corrupt { .. }) if self.accept_loss => Ok((at, gap(at.n, at.n + 1))),
            other => other.map(|record| (at, record)),
        }
    }

    fn at(&self, epoch: u32, n: u64) -> Position {
        Position {
            partition: self.number,
            epoch,
            n,
        }
    }
}

/// When a record was made, where it says so.
fn time_of(record: &Record) -> u64 {
    match record {
        Record::Event(event) => event.time_ms,
        Record::Epoch(epoch) => epoch.at_ms,
        Record::Closed(closed) => closed.at_ms,
        _ => 0,
    }
}

/// The files, as recovery reads them.
struct OnDisk<'a> {
    dir: PathBuf,
    blobs: &'a Blobs,
    open: RefCell<Option<(u64, Arc<File>)>>,
}

impl OnDisk<'_> {
    fn file(&self, first: u64) -> Result<Arc<File>> {
        let mut open = self.open.borrow_mut();
        if let Some((name, file)) = &*open
            && *name == first
        {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(open_file(&self.dir.join(Name::Segment(first).name()))?);
        *open = Some((first, Arc::clone(&file)));
        Ok(file)
    }
}

fn failure(error: &LogError) -> Failure {
    Failure::Broken(error.to_string())
}

impl Source for OnDisk<'_> {
    fn segments(&self) -> std::result::Result<Vec<(u64, u64)>, Failure> {
        let firsts = segments(&self.dir).map_err(|e| failure(&e))?;
        let sized = firsts.into_iter().map(|first| {
            let path = self.dir.join(Name::Segment(first).name());
            let meta = fs::metadata(&path).map_err(|e| LogError::io(&path, "looking at", &e));
            meta.map(|meta| (first, meta.len()))
                .map_err(|e| failure(&e))
        });
        sized.collect()
    }

    fn read(&self, first: u64, at: u64, into: &mut [u8]) -> std::result::Result<usize, Failure> {
        use std::os::unix::fs::FileExt;
        let file = self.file(first).map_err(|e| failure(&e))?;
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, at + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Broken(error.to_string())),
            }
        }
        Ok(done)
    }

    fn has_next(&self) -> std::result::Result<bool, Failure> {
        Ok(self.dir.join(Name::Next.name()).exists())
    }

    fn chunks(&self, body: &[u8]) -> Option<Vec<Ahead>> {
        self.blobs.stored(body)
    }
}

/// Says where and what.
fn unreadable(dir: &Path, why: Unreadable) -> LogError {
    let path = |file: Name| dir.join(file.directory().name()).join(file.name());
    match why {
        Unreadable::Corrupt(corrupt) => LogError::Corrupt {
            path: path(corrupt.file),
            at: corrupt.offset,
            n: Some(corrupt.position),
            why: in_words(corrupt.why).to_owned(),
        },
        Unreadable::Newer { file, version } => LogError::Newer {
            path: path(file),
            found: version,
            known: crate::format::VERSION,
        },
        Unreadable::Failed { file, failure, .. } => LogError::Io {
            path: file.map_or_else(|| dir.join(Directory::Log.name()), path),
            what: "reading",
            errno: 0,
            message: failure.to_string(),
        },
    }
}

fn in_words(why: Why) -> &'static str {
    match why {
        Why::Header => "its header cannot be read",
        Why::Foreign => "it is a segment of another log",
        Why::Misnamed => "by its header it has another name",
        Why::Stale => "it is of an earlier life, or holds what its neighbour holds too",
        Why::Damaged => "what was synced is not as it was written",
        Why::Missing => "it is not there; a snapshot or a neighbour says that it was",
    }
}
