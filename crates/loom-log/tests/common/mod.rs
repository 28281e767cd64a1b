//! What the tests of the log on real files share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use loom_core::record::{Outgoing, Record, Step};
use loom_core::{Error, Level, Position, Ticket};
use loom_log::{Answer, Boot, Log, Opened, Options, Recovered, Sink};

/// More than anything here takes: a test that waits so long has failed.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Collects answers, and wakes who waits for one.
#[derive(Default)]
pub(crate) struct Inbox {
    answers: Mutex<BTreeMap<u64, Result<Position, Error>>>,
    came: Condvar,
}

impl Sink for Inbox {
    fn answered(&self, answers: &mut Vec<Answer>) {
        let mut all = self.answers.lock().unwrap();
        for answer in answers.drain(..) {
            let twice = all.insert(answer.ticket.0, answer.result);
            assert!(twice.is_none(), "{:?} is answered twice", answer.ticket);
        }
        self.came.notify_all();
    }
}

impl Inbox {
    pub(crate) fn wait(&self, ticket: u64) -> Result<Position, Error> {
        let all = self.answers.lock().unwrap();
        let (all, timeout) = self
            .came
            .wait_timeout_while(all, LONG, |all| !all.contains_key(&ticket))
            .unwrap();
        assert!(!timeout.timed_out(), "ticket {ticket} is not answered");
        all[&ticket].clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.answers.lock().unwrap().len()
    }
}

/// A log with what a test needs to use it.
pub(crate) struct Bench {
    pub(crate) log: Log,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) partition: u32,
    pub(crate) opened: Opened,
    pub(crate) found: Vec<(Position, Record)>,
    pub(crate) snapshot: Option<(Position, Vec<u8>)>,
    next: u64,
}

pub(crate) fn boot() -> Boot {
    Boot {
        wall_ms: 1_000,
        id: 7,
        version: "test".to_owned(),
        accept_loss: false,
    }
}

/// Small segments, so that a test sees several.
pub(crate) fn small() -> Options {
    Options {
        segment_bytes: 8 << 20,
        blob_segment_bytes: 1 << 20,
        sync_ms: 5,
        clock: Arc::new(|| 1_000),
        ..Options::default()
    }
}

pub(crate) fn open(dir: &Path) -> Bench {
    try_open(dir, small(), &boot()).unwrap()
}

pub(crate) fn try_open(
    dir: &Path,
    options: Options,
    boot: &Boot,
) -> Result<Bench, loom_log::LogError> {
    let inbox = Arc::new(Inbox::default());
    let log = Log::open(dir, options, Arc::clone(&inbox) as Arc<dyn Sink>)?;
    let mut found = Vec::new();
    let mut snapshot = None;
    let opened = log.partition("main", boot, &mut |recovered| match recovered {
        Recovered::Snapshot(at, bytes) => snapshot = Some((at, bytes.to_vec())),
        Recovered::Record(at, record) => found.push((at, record)),
    })?;
    Ok(Bench {
        log,
        inbox,
        partition: opened.partition,
        opened,
        found,
        snapshot,
        next: 1,
    })
}

impl Bench {
    /// Appends one record and says its ticket.
    pub(crate) fn send(&mut self, level: Level, record: Record) -> u64 {
        self.send_all(level, vec![record])
    }

    pub(crate) fn send_all(&mut self, level: Level, batch: Vec<Record>) -> u64 {
        let ticket = self.next;
        self.next += 1;
        let out = Outgoing {
            ticket: Some(Ticket(ticket)),
            partition: self.partition,
            level,
            batch: batch.into(),
        };
        self.log.append(vec![out]).unwrap();
        ticket
    }

    /// Appends one record and waits for it.
    pub(crate) fn put(&mut self, level: Level, record: Record) -> Result<Position, Error> {
        let ticket = self.send(level, record);
        self.inbox.wait(ticket)
    }

    pub(crate) fn put_text(&mut self, text: &str) -> Position {
        self.put(Level::Disk, step(text.as_bytes())).unwrap()
    }

    pub(crate) fn close(&self) {
        self.log.close(LONG).unwrap();
    }

    /// The bodies of the steps in the log, in order.
    pub(crate) fn texts(&self) -> Vec<String> {
        let mut texts = Vec::new();
        let mut from = self.opened.first;
        loop {
            let batch = self
                .log
                .read(self.partition, from, loom_log::ReadLimit::default())
                .unwrap();
            texts.extend(batch.records.iter().filter_map(|(_, record)| text(record)));
            from = batch.next;
            if batch.at_end {
                return texts;
            }
        }
    }
}

/// A record with a body.
pub(crate) fn step(body: &[u8]) -> Record {
    let head = Step {
        turn: 1,
        kind: "test".to_owned(),
        ..Step::default()
    };
    Record::Step(head, body.to_vec().into())
}

pub(crate) fn text(record: &Record) -> Option<String> {
    matches!(record, Record::Step(..)).then(|| String::from_utf8_lossy(record.body()).into_owned())
}

pub(crate) fn texts(records: &[(Position, Record)]) -> Vec<String> {
    records.iter().filter_map(|(_, r)| text(r)).collect()
}

/// Bytes that no compression and no chance makes alike.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect()
}

/// All files below a directory, with their sizes.
pub(crate) fn tree(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut all = BTreeMap::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else {
                let size = entry.metadata().unwrap().len();
                all.insert(entry.path().strip_prefix(dir).unwrap().to_path_buf(), size);
            }
        }
    }
    all
}
