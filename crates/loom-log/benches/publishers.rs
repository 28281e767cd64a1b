//! The log alone, in Rust: `cargo bench -p loom-log --bench publishers -- SIDE COUNT DIR`; prints its figures as JSON.
//!
//! Sides: `loom` and `sqlite` have 256 publishers, each of which waits until its record is on the disk; `prepare` writes
//! COUNT records, which `recover` folds and `read` reads.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "it measures, and fails loudly"
)]

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use loom_core::Ticket;
use loom_core::record::{Level, Outgoing, Record};
use loom_log::{Answer, Boot, Log, Options, Reader, Sink};

mod common;

use common::{PAYLOAD, event};

const PUBLISHERS: usize = 256;
const NAMESPACE: &str = "bench";
const LONGEST: Duration = Duration::from_secs(60);

/// What takes records and tells which of them are on the disk.
trait Backend {
    /// Takes records in: their numbers.
    fn publish(&mut self, numbers: &[u64]);
    /// Waits until some are on the disk; how many.
    fn acked(&mut self) -> usize;
}

struct Loom {
    log: Log,
    partition: u32,
    acked: Receiver<usize>,
}

struct Told(Mutex<Sender<usize>>);

impl Sink for Told {
    fn answered(&self, answers: &mut Vec<Answer>) {
        assert!(answers.iter().all(|answer| answer.result.is_ok()));
        let _ = self.0.lock().unwrap().send(answers.len());
        answers.clear();
    }
}

impl Loom {
    fn open(dir: &Path) -> Self {
        let (told, acked) = channel();
        let log = Log::open(dir, Options::default(), Arc::new(Told(Mutex::new(told)))).unwrap();
        let opened = log
            .partition(NAMESPACE, &Boot::default(), &mut |_| {})
            .unwrap();
        Self {
            log,
            partition: opened.partition,
            acked,
        }
    }
}

impl Backend for Loom {
    fn publish(&mut self, numbers: &[u64]) {
        let outgoing = numbers.iter().map(|number| Outgoing {
            ticket: Some(Ticket(number + 1)),
            partition: self.partition,
            level: Level::Disk,
            batch: [event(*number)].into(),
        });
        self.log.append(outgoing.collect()).unwrap();
    }

    fn acked(&mut self) -> usize {
        self.acked.recv_timeout(LONGEST).unwrap()
    }
}

/// A thread that puts all that has come into one transaction, and then what has come meanwhile.
struct Sqlite {
    rows: Sender<(u64, Vec<u8>)>,
    acked: Receiver<usize>,
}

impl Sqlite {
    fn open(dir: &Path) -> Self {
        let base = rusqlite::Connection::open(dir.join("log.sqlite")).unwrap();
        base.execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
             CREATE TABLE log (n INTEGER PRIMARY KEY, head TEXT, body BLOB)",
        )
        .unwrap();
        let (rows, came) = channel::<(u64, Vec<u8>)>();
        let (told, acked) = channel();
        std::thread::spawn(move || {
            while let Ok(first) = came.recv() {
                let mut batch = vec![first];
                batch.extend(came.try_iter().take(PUBLISHERS - 1));
                base.execute_batch("BEGIN").unwrap();
                {
                    let mut insert = base
                        .prepare_cached("INSERT INTO log VALUES (?1, ?2, ?3)")
                        .unwrap();
                    for (number, body) in &batch {
                        insert
                            .execute((number, format!("{number:012}"), body))
                            .unwrap();
                    }
                }
                base.execute_batch("COMMIT").unwrap();
                let _ = told.send(batch.len());
            }
        });
        Self { rows, acked }
    }
}

impl Backend for Sqlite {
    fn publish(&mut self, numbers: &[u64]) {
        for number in numbers {
            let body = vec![b'x'; PAYLOAD];
            self.rows.send((*number, body)).unwrap();
        }
    }

    fn acked(&mut self) -> usize {
        self.acked.recv_timeout(LONGEST).unwrap()
    }
}

/// Publishes with so many publishers, each of which waits for its ack before the next; returns how long it took.
fn drive(backend: &mut dyn Backend, begin: u64, count: u64, publishers: usize) -> Duration {
    let start = Instant::now();
    let end = begin + count;
    let first = (begin + publishers as u64).min(end);
    backend.publish(&(begin..first).collect::<Vec<_>>());
    let (mut next, mut acked) = (first, begin);
    while acked < end {
        let came = backend.acked() as u64;
        acked += came;
        let until = (next + came).min(end);
        backend.publish(&(next..until).collect::<Vec<_>>());
        next = until;
    }
    start.elapsed()
}

fn publish(backend: &mut dyn Backend, count: u64) -> String {
    let warm_up = count / 10;
    drive(backend, 0, warm_up, PUBLISHERS);
    let took = drive(backend, warm_up, count, PUBLISHERS);
    rate(count, took)
}

fn rate(count: u64, took: Duration) -> String {
    format!("{{\"rate\": {}}}", count as f64 / took.as_secs_f64())
}

fn time(took: Duration) -> String {
    format!("{{\"time\": {}}}", took.as_secs_f64() * 1e3)
}

/// Opens the log, folding all records, as a start does after the process was killed.
fn recover(dir: &Path, count: u64) -> String {
    let (told, _acked) = channel();
    let start = Instant::now();
    let log = Log::open(dir, Options::default(), Arc::new(Told(Mutex::new(told)))).unwrap();
    let (mut records, mut bytes) = (0, 0_u64);
    log.partition(NAMESPACE, &Boot::default(), &mut |recovered| {
        if let loom_log::Recovered::Record(_, Record::Event(event)) = recovered {
            records += 1;
            bytes += event.payload.len() as u64;
        }
    })
    .unwrap();
    let took = start.elapsed();
    assert!(records >= count, "{records} records");
    assert_eq!(bytes, records * PAYLOAD as u64);
    time(took)
}

fn read(dir: &Path, count: u64) -> String {
    let start = Instant::now();
    let reader = Reader::open(dir).unwrap();
    let mut records = 0;
    for item in reader.records(NAMESPACE, 0).unwrap() {
        let (_, record) = item.unwrap();
        records += u64::from(record.body().len() == PAYLOAD);
    }
    let took = start.elapsed();
    assert!(records >= count, "{records} records");
    rate(records, took)
}

fn main() {
    // cargo adds --bench
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|w| w != "--bench")
        .collect();
    let count: u64 = words[1].parse().unwrap();
    let dir = PathBuf::from(&words[2]);
    let told = match words[0].as_str() {
        "loom" => publish(&mut Loom::open(&dir), count),
        "sqlite" => publish(&mut Sqlite::open(&dir), count),
        "prepare" => time(drive(&mut Loom::open(&dir), 0, count, 16 * PUBLISHERS)),
        "recover" => recover(&dir, count),
        "read" => read(&dir, count),
        side => panic!("there is no side {side}"),
    };
    println!("{told}");
}
