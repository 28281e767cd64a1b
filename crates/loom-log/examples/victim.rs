//! A process that is killed: it publishes batches that follow from a seed, and tells each answer on a line of its own.
//!
//! `victim run DIR KEY=VALUE…` lives; `victim check DIR KEY=VALUE…` opens what is left, and holds it against the seed.
//! `victim restore DIR FROM KEY=VALUE…` makes a log of a backup; `victim serve DIR KEY=VALUE…` checks many directories,
//! one for each line that it reads. Whoever starts it reads the lines, and so knows what was acked, whatever becomes of it.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::format_collect,
    clippy::format_push_string,
    reason = "a test's tool: it fails loudly, and what it prints is what it is for"
)]

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use loom_core::record::{Body, Level, Memory, Outgoing, Record};
use loom_core::{Code, Error, Position, Ticket};
use loom_log::{Answer, Boot, Log, Opened, Options, Reader, Recovered, Retention, Sink};

const NAMESPACE: &str = "victim";
/// How long an answer may take before the victim says that it hangs.
const LONGEST: Duration = Duration::from_secs(30);

/// How long it waits for space.
const PAUSE: Duration = Duration::from_millis(5);

/// What it is asked to do.
#[derive(Clone)]
struct Load {
    seed: u64,
    batches: u64,
    in_flight: usize,
    level: Level,
    segment_bytes: u64,
    snapshot_every: u64,
    keep_segments: u64,
    backup_every: u64,
    /// Publish again what was refused for want of space; then one batch at a time.
    again: bool,
}

impl Load {
    fn read(words: &[String]) -> Self {
        let given: BTreeMap<&str, &str> = words.iter().filter_map(|w| w.split_once('=')).collect();
        let number = |name: &str| -> u64 { given[name].parse().unwrap() };
        Self {
            seed: number("seed"),
            batches: number("batches"),
            in_flight: number("in-flight") as usize,
            level: if given["level"] == "os" {
                Level::Os
            } else {
                Level::Disk
            },
            segment_bytes: number("segment-bytes"),
            snapshot_every: number("snapshot-every"),
            keep_segments: number("keep-segments"),
            backup_every: number("backup-every"),
            again: number("again") == 1,
        }
    }

    fn options(&self) -> Options {
        let bytes = (self.keep_segments > 0).then(|| self.keep_segments * self.segment_bytes);
        Options {
            segment_bytes: self.segment_bytes,
            blob_segment_bytes: 4 * self.segment_bytes,
            retention: Retention {
                bytes,
                ..Retention::default()
            },
            ..Options::default()
        }
    }

    /// The batch with this number: one to four records, small ones mostly, and large ones that share their beginning.
    fn batch(&self, number: u64) -> Vec<Record> {
        let mut dice = Dice(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let of = if dice.below(10) < 7 {
            1
        } else {
            1 + dice.below(4)
        };
        (0..of)
            .map(|index| {
                let bytes = match dice.below(40) {
                    0 => 17_000 + dice.below(40_000),
                    1..=6 => 600 + dice.below(6_000),
                    _ => 20 + dice.below(580),
                };
                let mut body = dice.0.to_le_bytes().to_vec();
                let mut same = Dice(self.seed);
                body.extend((8..bytes).map(|_| same.next() as u8));
                let head = Memory {
                    key: format!("{number}/{index}/{of}"),
                    ..Memory::default()
                };
                Record::Memory(head, Body::from(body))
            })
            .collect()
    }
}

/// A generator of numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What a log of batches folds to: how many there are, and a hash of every byte of them in their order.
#[derive(Clone, PartialEq, Eq)]
struct State {
    batches: u64,
    /// Of the batch that is being read: how many of its records were there, of how many.
    part: (u64, u64),
    hash: [u8; 32],
}

impl State {
    const EMPTY: Self = Self {
        batches: 0,
        part: (0, 0),
        hash: [0; 32],
    };

    /// Takes a record in.
    fn apply(&mut self, record: &Record) -> Result<(), String> {
        let Record::Memory(head, body) = record else {
            return Ok(());
        };
        let numbers: Vec<u64> = head.key.split('/').map(|n| n.parse().unwrap()).collect();
        let (number, index, of) = (numbers[0], numbers[1], numbers[2]);
        if number != self.batches || index != self.part.0 {
            let (batches, at) = (self.batches, self.part.0);
            return Err(format!("{} where {batches}/{at} should be", head.key));
        }
        let mut hash = blake3::Hasher::new();
        hash.update(&self.hash).update(head.key.as_bytes());
        self.hash = hash.update(body).finalize().into();
        self.part = (index + 1, of);
        if index + 1 == of {
            self.part = (0, 0);
            self.batches += 1;
        }
        Ok(())
    }

    /// That of the first so many batches.
    fn expected(load: &Load, batches: u64) -> Self {
        let mut state = Self::EMPTY;
        for number in 0..batches {
            for record in load.batch(number) {
                state.apply(&record).unwrap();
            }
        }
        state
    }

    fn write(&self) -> Vec<u8> {
        let mut bytes = self.batches.to_le_bytes().to_vec();
        bytes.extend(self.hash);
        bytes
    }

    fn read(bytes: &[u8]) -> Self {
        Self {
            batches: u64::from_le_bytes(bytes[..8].try_into().unwrap()),
            part: (0, 0),
            hash: bytes[8..].try_into().unwrap(),
        }
    }

    fn shown(&self) -> String {
        let hash: String = self.hash.iter().map(|b| format!("{b:02x}")).collect();
        format!("{} {:?} {hash}", self.batches, self.part)
    }
}

/// The answers that came and were not looked at yet.
#[derive(Default)]
struct Answers {
    came: Mutex<VecDeque<Answer>>,
    more: Condvar,
}

impl Sink for Answers {
    fn answered(&self, answers: &mut Vec<Answer>) {
        let mut lines = String::new();
        for answer in answers.iter() {
            let batch = answer.ticket.0 - 1;
            lines += &match &answer.result {
                Ok(position) => format!("acked {batch} {}\n", position.n),
                Err(error) => format!("refused {batch} {} {}\n", error.code.name(), error.message),
            };
        }
        // One write each: the reader gets a line whole or not at all.
        for line in lines.split_inclusive('\n') {
            std::io::stdout().write_all(line.as_bytes()).unwrap();
            std::io::stdout().flush().unwrap();
        }
        self.came.lock().unwrap().extend(answers.drain(..));
        self.more.notify_all();
    }
}

impl Answers {
    fn next(&self) -> Answer {
        let mut came = self.came.lock().unwrap();
        loop {
            if let Some(answer) = came.pop_front() {
                return answer;
            }
            let (again, late) = self.more.wait_timeout(came, LONGEST).unwrap();
            came = again;
            assert!(!late.timed_out(), "no answer in {LONGEST:?}");
        }
    }
}

/// Opens the log and folds what is in it.
fn open(dir: &Path, load: &Load, sink: Arc<Answers>) -> Result<(Log, Opened, State), Error> {
    let log = Log::open(dir, load.options(), sink)?;
    let mut state = State::EMPTY;
    let mut wrong = None;
    let opened = log.partition(
        NAMESPACE,
        &Boot::default(),
        &mut |recovered| match recovered {
            Recovered::Snapshot(_, bytes) => state = State::read(bytes),
            Recovered::Record(_, record) => {
                if let Err(why) = state.apply(&record) {
                    wrong.get_or_insert(why);
                }
            }
        },
    )?;
    assert_eq!(wrong, None, "what was recovered is no prefix");
    assert_eq!(state.part, (0, 0), "a part of a batch was recovered");
    Ok((log, opened, state))
}

fn publish(log: &Log, opened: &Opened, load: &Load, number: u64) -> loom_log::Result<()> {
    let answered = log.append(vec![Outgoing {
        ticket: Some(Ticket(number + 1)),
        partition: opened.partition,
        level: load.level,
        batch: load.batch(number).into(),
    }]);
    answered.map(|_| ())
}

/// Publishes, with so many batches waiting for their answers; 3 where a batch was refused.
fn run(dir: &Path, load: &Load) -> Result<i32, Error> {
    let answers = Arc::new(Answers::default());
    let (log, opened, mut state) = open(dir, load, Arc::clone(&answers))?;
    // Not only behind a snapshot of its own: what stands on those of an earlier life may go at once.
    keep(&log, "retention", |log| {
        log.retain(opened.partition, None).map(drop)
    });
    let begin = state.batches;
    let end = begin + load.batches;
    let (mut next, mut waiting, mut refused) = (begin, 0, 0);
    // Two threads of the log answer: what came true first may be told second.
    let mut early = BTreeMap::new();
    while next < end || waiting > 0 {
        while next < end && waiting < load.in_flight && refused == 0 {
            publish(&log, &opened, load, next)?;
            next += 1;
            waiting += 1;
        }
        if refused > 0 && waiting == 0 {
            break;
        }
        let answer = answers.next();
        waiting -= 1;
        let number = answer.ticket.0 - 1;
        let position = match answer.result {
            Ok(position) => position,
            Err(error) if load.again && error.code == Code::Exhausted => {
                std::thread::sleep(PAUSE);
                publish(&log, &opened, load, number)?;
                waiting += 1;
                continue;
            }
            Err(_) => {
                refused += 1;
                continue;
            }
        };
        early.insert(number, position);
        while let Some(position) = early.remove(&state.batches) {
            let batch = load.batch(state.batches);
            for record in &batch {
                state.apply(record).unwrap();
            }
            let n = position.n + batch.len() as u64 - 1;
            between(&log, Position { n, ..position }, &state, load, dir)?;
        }
    }
    log.close(LONGEST)?;
    Ok(if refused > 0 { 3 } else { 0 })
}

/// Does what keeps the log small. That it failed is told; the log may go on.
fn keep(log: &Log, what: &str, done: impl FnOnce(&Log) -> loom_log::Result<()>) {
    if let Err(error) = done(log) {
        println!("unkept {what}: {error}");
    }
}

/// Does what is due when so many batches were acked: a snapshot, retention, a backup.
fn between(log: &Log, at: Position, state: &State, load: &Load, dir: &Path) -> Result<(), Error> {
    let is_due = |every: u64| every > 0 && state.batches.is_multiple_of(every);
    if is_due(load.snapshot_every) {
        keep(log, "a snapshot", |log| log.snapshot(at, &state.write()));
        keep(log, "retention", |log| {
            log.retain(at.partition, None).map(drop)
        });
    }
    if is_due(load.backup_every) {
        log.backup(&dir.with_file_name(format!("backup-{}", state.batches)))?;
        println!("backed {} 0", state.batches);
    }
    Ok(())
}

/// Makes a log of a backup.
fn restore(dir: &Path, from: &Path) -> Result<i32, Error> {
    loom_log::restore(from, dir)?;
    println!("restored 0 0");
    Ok(0)
}

/// Checks the directories that it reads: `check DIR` for a log, `verify DIR` for a backup. Answers each with a line.
fn serve(load: &Load) -> i32 {
    std::panic::set_hook(Box::new(|_| {}));
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (what, dir) = line.split_once(' ').unwrap();
        let dir = PathBuf::from(dir);
        let found = std::panic::catch_unwind(|| {
            if what == "check" {
                return check(&dir, load);
            }
            let restored = dir.with_extension("restored");
            loom_log::verify_backup(&dir)?;
            loom_log::restore(&dir, &restored)?;
            check(&restored, load)
        });
        match found {
            Ok(Ok(found)) => println!("{found}"),
            Ok(Err(error)) => println!("broken: {} {}", error.code.name(), error.message),
            Err(panic) => println!("broken: {}", said(&*panic)),
        }
    }
    0
}

/// What a panic says, in one line.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
    text.unwrap_or_default().replace('\n', " ")
}

/// Opens what is left, checks it, publishes one more batch, and reads it all as a reader does. Returns what it found.
fn check(dir: &Path, load: &Load) -> Result<String, Error> {
    let answers = Arc::new(Answers::default());
    let (log, opened, state) = open(dir, load, Arc::clone(&answers))?;
    let recovered = state.batches;
    publish(&log, &opened, load, recovered)?;
    let next = answers.next().result?.n;
    log.close(LONGEST)?;

    let mut read = State::EMPTY;
    let mut first = None;
    let mut positions = String::new();
    let mut last = None;
    let reader = Reader::open(dir)?;
    reader.verify()?;
    for item in reader.records(NAMESPACE, opened.first)? {
        let (position, record) = item?;
        assert!(last < Some(position.n), "{} after {last:?}", position.n);
        last = Some(position.n);
        let Record::Memory(head, _) = &record else {
            continue;
        };
        let mut parts = head.key.split('/');
        let (number, index) = (parts.next().unwrap(), parts.next().unwrap());
        if first.is_none() {
            first = number.parse().ok();
            read.batches = first.unwrap();
            read.part.0 = index.parse().unwrap();
        }
        if index == "0" {
            positions += &format!("\"{number}\":{},", position.n);
        }
        let sent = &load.batch(number.parse().unwrap())[index.parse::<usize>().unwrap()];
        assert_eq!(
            sent.body(),
            record.body(),
            "{} is not what was sent",
            head.key
        );
        read.apply(&record).expect("the reader reads a prefix");
    }
    assert_eq!(read.batches, recovered + 1, "the reader reads another log");
    Ok(format!(
        "{{\"recovered\":{recovered},\"first\":{},\"next\":{next},\"epoch\":{},\"torn\":{},\"clean\":{},\
         \"state\":\"{}\",\"expected\":\"{}\",\"positions\":{{{}}}}}",
        first.unwrap_or(0),
        opened.epoch,
        opened.torn_bytes,
        opened.clean,
        state.shown(),
        State::expected(load, recovered).shown(),
        positions.trim_end_matches(','),
    ))
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let dir = PathBuf::from(&words[1]);
    let load = Load::read(&words[2..]);
    let done = match words[0].as_str() {
        "run" => run(&dir, &load),
        "restore" => restore(&dir, Path::new(&words[2])),
        "serve" => Ok(serve(&load)),
        _ => check(&dir, &load).map(|found| {
            println!("{found}");
            0
        }),
    };
    match done {
        Ok(code) => std::process::exit(code),
        Err(error) => {
            println!("failed {} {}", error.code.name(), error.message);
            std::process::exit(1)
        }
    }
}
