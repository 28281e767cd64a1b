//! How fast a log on a real disk is: beside a bare append and fdatasync, under many publishers, read, and recovered.
//! `cargo bench -p loom-log --bench disk [-- EVENTS] [DIRECTORY]`; without one it is below `target`.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "it measures and prints"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use loom_core::record::Outgoing;
use loom_core::{Level, Ticket};
use loom_log::{Answer, Boot, Log, Options, ReadLimit, Reader, Recovered, Sink};

mod common;

use common::{PAYLOAD, event};

const RUN: Duration = Duration::from_secs(3);

struct Answers(Mutex<Sender<usize>>);

impl Sink for Answers {
    fn answered(&self, answers: &mut Vec<Answer>) {
        assert!(answers.iter().all(|answer| answer.result.is_ok()));
        let _ = self.0.lock().unwrap().send(answers.len());
        answers.clear();
    }
}

fn open(dir: &Path) -> (Log, Receiver<usize>, u64) {
    let (tell, told) = channel();
    let log = Log::open(dir, Options::default(), Arc::new(Answers(Mutex::new(tell)))).unwrap();
    let boot = Boot {
        wall_ms: 1,
        id: 1,
        version: "bench".to_owned(),
        accept_loss: false,
    };
    let mut found = 0;
    log.partition("main", &boot, &mut |r| {
        found += u64::from(matches!(r, Recovered::Record(..)));
    })
    .unwrap();
    (log, told, found)
}

fn out(n: u64, level: Level) -> Outgoing {
    Outgoing {
        ticket: Some(Ticket(n)),
        partition: 1,
        level,
        batch: vec![event(n)].into(),
    }
}

/// Keeps so many in flight and says how many were answered a second.
fn publish(dir: &Path, level: Level, in_flight: usize) -> f64 {
    let (log, told, _) = open(dir);
    let (mut sent, mut answered, mut flying) = (0, 0, 0);
    let start = Instant::now();
    while start.elapsed() < RUN {
        let batch: Vec<Outgoing> = (flying..in_flight)
            .map(|i| out(sent + i as u64, level))
            .collect();
        sent += batch.len() as u64;
        log.append(batch).unwrap();
        flying = in_flight;
        let mut came = told.recv().unwrap();
        came += told.try_iter().sum::<usize>();
        flying -= came;
        answered += came;
    }
    let rate = answered as f64 / start.elapsed().as_secs_f64();
    let stats = log.stats();
    println!(
        "  {in_flight:>5} in flight, {}: {rate:>9.0}/s, {:.0} a sync",
        level.name(),
        stats.records as f64 / stats.syncs.max(1) as f64
    );
    log.close(Duration::from_secs(10)).unwrap();
    rate
}

/// One record after the other with a file's own means.
fn bare(dir: &Path, zeroed: bool) -> f64 {
    let file = File::create(dir.join("bare")).unwrap();
    if zeroed {
        file.write_all_at(&vec![0; 32 << 20], 0).unwrap();
        file.sync_all().unwrap();
    }
    let record = [b'x'; PAYLOAD + 100];
    let (start, mut at) = (Instant::now(), 0);
    while start.elapsed() < RUN {
        file.write_all_at(&record, at).unwrap();
        file.sync_data().unwrap();
        at += record.len() as u64;
    }
    (at / record.len() as u64) as f64 / start.elapsed().as_secs_f64()
}

fn fresh(base: &Path) -> tempfile::TempDir {
    tempfile::tempdir_in(base).unwrap()
}

fn durable(base: &Path) {
    let append = bare(fresh(base).path(), false);
    let zeroed = bare(fresh(base).path(), true);
    println!("bare append + fdatasync {append:.0}/s, into a zeroed file {zeroed:.0}/s");
    let one = publish(fresh(base).path(), Level::Disk, 1);
    println!(
        "  one in flight: {:.2} of bare, {:.2} of zeroed",
        one / append,
        one / zeroed
    );
    for in_flight in [64, 256, 1_000] {
        publish(fresh(base).path(), Level::Disk, in_flight);
    }
    publish(fresh(base).path(), Level::Os, 64);
}

fn read(base: &Path, events: u64) {
    let dir = fresh(base);
    let (log, told, _) = open(dir.path());
    let (mut sent, mut answered) = (0, 0);
    while answered < events {
        while sent < events && sent - answered < 20_000 {
            log.append((sent..sent + 1_000).map(|n| out(n, Level::Os)).collect())
                .unwrap();
            sent += 1_000;
        }
        answered += told.recv().unwrap() as u64;
    }
    let start = Instant::now();
    let (mut from, mut seen) = (0, 0);
    loop {
        let batch = log.read(1, from, ReadLimit::default()).unwrap();
        seen += batch.records.len();
        from = batch.next;
        if batch.at_end {
            break;
        }
    }
    let rate = seen as f64 / start.elapsed().as_secs_f64();
    println!("read by the engine: {rate:.0} events/s");
    log.close(Duration::from_secs(30)).unwrap();
    drop(log);

    let reader = Reader::open(dir.path()).unwrap();
    let start = Instant::now();
    let seen = reader.records("main", 0).unwrap().count();
    let rate = seen as f64 / start.elapsed().as_secs_f64();
    println!("read by another process: {rate:.0} events/s");

    let start = Instant::now();
    let (log, _told, found) = open(dir.path());
    println!(
        "recovery of {found} records: {:.2} s",
        start.elapsed().as_secs_f64()
    );
    log.close(Duration::from_secs(10)).unwrap();
}

fn main() {
    let events = std::env::args()
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(1_000_000);
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let given = std::env::args()
        .skip(1)
        .map(PathBuf::from)
        .find(|path| path.is_dir());
    let base = given.unwrap_or(target);
    durable(&base);
    read(&base, events);
}
