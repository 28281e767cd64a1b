//! Writes a log of runs to a directory, and measures how fast the view takes it over and how far it lags behind one that
//! is written to: `cargo run --release -p loom-view --example measure -- DIR [RECORDS] [RATE]`.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "it measures, and is run by hand"
)]

#[path = "../tests/common/mod.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use loom_core::record::{Turn, TurnEnd};
use loom_core::{Level, Outgoing, Record};
use loom_log::{Answer, Boot, Log, Options, Sink};
use loom_view::{Follower, LogSource, View};

use common::{AT_MS, EVENT, SENT, event};

/// Nobody waits for an answer here.
struct Nobody;

impl Sink for Nobody {
    fn answered(&self, answers: &mut Vec<Answer>) {
        answers.clear();
    }
}

const DATA: &[u8] = br#"{"item":"milk","price":1.5,"who":"somebody over there"}"#;
/// What one event brings with it: itself, its turn, what it sends, the turn's end.
const GROUP: u64 = 4;

fn group(i: u64) -> [Record; 4] {
    // Ids as the engine mints them: rising in their upper half.
    let base = 0x0190_0000_0000_7000_8000_0000_0000_0000_u128;
    let low = u128::from(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 2);
    let (id, run) = (
        base + (u128::from(i) << 64) + low,
        base + (u128::from(i / 10) << 64) + 5,
    );
    let turn = Turn {
        turn: i + 1,
        agent: "clerk".to_owned(),
        event: Some(id.into()),
        run: Some(run.into()),
        attempt: 1,
        at_ms: AT_MS,
        ..Turn::default()
    };
    let end = TurnEnd {
        turn: i + 1,
        at_ms: AT_MS,
        ..TurnEnd::default()
    };
    [
        event(EVENT, id, run, "order.new", DATA),
        Record::Turn(turn),
        event(SENT, id + 1, run, "sold", DATA),
        Record::TurnEnd(end),
    ]
}

fn open(dir: &Path) -> (Log, u32) {
    let log = Log::open(dir, Options::default(), Arc::new(Nobody)).unwrap();
    let opened = log
        .partition("default", &Boot::default(), &mut |_| {})
        .unwrap();
    (log, opened.partition)
}

fn write(log: &Log, partition: u32, i: u64) {
    let out = group(i).map(|record| Outgoing {
        ticket: None,
        partition,
        level: Level::Accepted,
        batch: [record].into_iter().collect(),
    });
    while log.append(out.to_vec()).is_err() {
        log.flush().unwrap();
    }
}

fn follower(dir: &Path) -> Follower<LogSource> {
    let file = dir.join("view.sqlite");
    Follower::new(
        View::open(&file).unwrap(),
        LogSource::open(dir, "default").unwrap(),
    )
}

fn rate(dir: &Path, records: u64) {
    let (log, partition) = open(dir);
    for i in 0..records / GROUP {
        write(&log, partition, i);
    }
    log.close(Duration::from_secs(60)).unwrap();
    let mut follower = follower(dir);
    let (begin, mut taken) = (Instant::now(), 0);
    loop {
        let portion = follower.step().unwrap();
        taken += portion.records;
        if portion.at_end {
            break;
        }
    }
    let rate = taken as f64 / begin.elapsed().as_secs_f64();
    println!("took over {taken} records: {rate:.0}/s");
}

fn lag(dir: &Path, events: u64) {
    let (log, partition) = open(dir);
    let (written, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let writer = thread::spawn({
        let (written, stop) = (Arc::clone(&written), Arc::clone(&stop));
        move || {
            let (begin, mut i) = (Instant::now(), 0);
            while !stop.load(Ordering::Relaxed) {
                let millis = u64::try_from(begin.elapsed().as_millis()).unwrap();
                let due = millis * events / 2000; // two events a group
                while i < due {
                    write(&log, partition, (1 << 32) + i);
                    i += 1;
                }
                written.store(i, Ordering::Release);
                thread::sleep(Duration::from_millis(5));
            }
            log.close(Duration::from_secs(60)).unwrap();
        }
    });
    let mut follower = follower(dir);
    let (mut worst, begin) = (Duration::ZERO, Instant::now());
    while begin.elapsed() < Duration::from_secs(20) {
        // How long it takes until what is written now is in the view.
        let (asked, target) = (Instant::now(), written.load(Ordering::Acquire));
        loop {
            follower.step().unwrap();
            let next = follower.reached().map_or(0, |reached| reached.next);
            if next >= target * GROUP {
                break;
            }
        }
        if begin.elapsed() > Duration::from_secs(3) {
            worst = worst.max(asked.elapsed());
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    println!("lags at most {worst:?} at {events} events/s");
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().unwrap();
    let mut number = |or: u64| arguments.next().map_or(or, |text| text.parse().unwrap());
    let (records, events) = (number(1_000_000), number(10_000));
    let dir = Path::new(&dir);
    rate(&dir.join("rate"), records);
    lag(&dir.join("lag"), events);
}
