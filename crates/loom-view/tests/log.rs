//! The view of a log on a real directory: beside an engine, after it, and where the log is damaged.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use loom_core::{Code, Level, Outgoing, Position, Record, Ticket};
use loom_log::{Answer, Boot, Log, Options, Sink};
use loom_view::{Follower, LogSource, View};
use rusqlite::Connection;
use tempfile::{TempDir, tempdir};

use common::{AT_MS, EVENT, SENT, event, one};

/// Hands the answers to who waits for them.
struct Answers(Sender<Answer>);

impl Sink for Answers {
    fn answered(&self, answers: &mut Vec<Answer>) {
        for answer in answers.drain(..) {
            let _ = self.0.send(answer);
        }
    }
}

/// A log that is written to.
struct Writer {
    log: Log,
    answers: Receiver<Answer>,
    partition: u32,
}

const NOW_MS: u64 = AT_MS + 1_000;
const WAIT: Duration = Duration::from_secs(10);

impl Writer {
    fn open(dir: &Path) -> Self {
        let (sender, answers) = channel();
        let options = Options {
            clock: Arc::new(|| NOW_MS),
            ..Options::default()
        };
        let log = Log::open(dir, options, Arc::new(Answers(sender))).unwrap();
        let boot = Boot {
            wall_ms: NOW_MS,
            ..Boot::default()
        };
        let opened = log.partition("default", &boot, &mut |_| {}).unwrap();
        Self {
            log,
            answers,
            partition: opened.partition,
        }
    }

    /// Writes records one by one, and waits until they are on the disk.
    fn write(&self, records: Vec<Record>) -> Position {
        let count = records.len();
        let out = records
            .into_iter()
            .enumerate()
            .map(|(at, record)| Outgoing {
                ticket: (at + 1 == count).then_some(Ticket(1)),
                partition: self.partition,
                level: Level::Disk,
                batch: [record].into_iter().collect(),
            });
        self.log.append(out.collect()).unwrap();
        self.answers.recv_timeout(WAIT).unwrap().result.unwrap()
    }

    fn close(self) {
        self.log.close(WAIT).unwrap();
    }
}

fn events(ids: std::ops::Range<u128>) -> Vec<Record> {
    ids.map(|id| event(EVENT, id, 1, "order.new", b"{\"item\":1}"))
        .collect()
}

struct Data {
    dir: TempDir,
}

impl Data {
    fn new() -> Self {
        Self {
            dir: tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn view(&self) -> PathBuf {
        self.dir.path().join("view.sqlite")
    }

    fn follower(&self) -> Follower<LogSource> {
        let source = LogSource::open(&self.path(), "default").unwrap();
        Follower::new(View::open(&self.view()).unwrap(), source)
    }

    fn count(&self) -> u32 {
        let db = Connection::open(self.view()).unwrap();
        one(&db, "SELECT count(*) FROM events")
    }
}

/// Follows to the end; says how many records were taken over.
fn catch_up(follower: &mut Follower<LogSource>) -> loom_view::Result<usize> {
    let mut taken = 0;
    loop {
        let portion = follower.step()?;
        taken += portion.records;
        if portion.at_end {
            return Ok(taken);
        }
    }
}

// requirement: VIEW-BESIDE
#[test]
fn beside_an_engine_it_holds_all_that_is_on_the_disk_and_after_it_the_rest() {
    let data = Data::new();
    let writer = Writer::open(&data.path());
    let mut follower = data.follower();
    let last = writer.write(events(1..20));
    catch_up(&mut follower).unwrap();
    assert_eq!(data.count(), 19);
    assert_eq!(follower.reached().unwrap().last, last);
    writer.write(events(20..30));
    assert_eq!(catch_up(&mut follower).unwrap(), 10, "only what is new");
    writer.close();
    assert_eq!(catch_up(&mut follower).unwrap(), 1, "the closing record");
    assert_eq!(catch_up(&mut data.follower()).unwrap(), 0);
    let writer = Writer::open(&data.path());
    writer.write(events(30..31));
    catch_up(&mut data.follower()).unwrap();
    let db = Connection::open(data.view()).unwrap();
    let lives: String = one(&db, "SELECT group_concat(kind || n) FROM notes");
    assert_eq!(lives, "opened0,closed30,opened31");
    assert_eq!(data.count(), 30);
    writer.close();
}

// requirement: VIEW-BESIDE
#[test]
fn one_who_reads_without_pause_beside_a_busy_engine_never_takes_the_end_for_damage() {
    let data = Data::new();
    let writer = Writer::open(&data.path());
    writer.write(events(1..2));
    thread::scope(|scope| {
        let writing = scope.spawn(move || {
            for id in 2..400 {
                writer.write(events(id..id + 1));
            }
            writer.write(vec![event(SENT, 5, 1, "last", b"1")]);
            writer
        });
        let mut follower = data.follower();
        let db = Connection::open(data.view()).unwrap();
        loop {
            catch_up(&mut follower).unwrap();
            if one(&db, "SELECT count(*) FROM events WHERE topic = 'last'") {
                break;
            }
        }
        writing.join().unwrap().close();
    });
    assert_eq!(data.count(), 400);
}

// requirement: VIEW-BESIDE
#[test]
fn a_large_body_that_was_cut_up_comes_back_in_one_piece_also_to_one_who_followed_before() {
    let data = Data::new();
    let writer = Writer::open(&data.path());
    let mut follower = data.follower();
    writer.write(events(1..2));
    catch_up(&mut follower).unwrap();
    let large = format!("\"{}\"", "loom ".repeat(10_000));
    writer.write(vec![event(SENT, 5, 1, "a", large.as_bytes())]);
    catch_up(&mut follower).unwrap();
    let db = Connection::open(data.view()).unwrap();
    let kept: String = one(&db, "SELECT data FROM events WHERE topic = 'a'");
    assert_eq!(kept, large);
    writer.close();
}

// requirement: VIEW-REBUILT
#[test]
fn a_directory_that_was_put_back_to_an_earlier_state_is_seen_as_what_it_is_now() {
    let data = Data::new();
    let writer = Writer::open(&data.path());
    writer.write(events(1..4));
    writer.close();
    let copy = data.dir.path().join("copy");
    loom_log::backup(&data.path(), &copy, 0).unwrap();
    let writer = Writer::open(&data.path());
    writer.write(events(4..9));
    writer.close();
    catch_up(&mut data.follower()).unwrap();
    assert_eq!(data.count(), 8);
    fs::remove_dir_all(data.path()).unwrap();
    loom_log::restore(&copy, &data.path()).unwrap();
    catch_up(&mut data.follower()).unwrap();
    assert_eq!(data.count(), 3);
    let writer = Writer::open(&data.path());
    writer.write(events(100..120));
    writer.close();
    catch_up(&mut data.follower()).unwrap();
    assert_eq!(data.count(), 23);
}

// requirement: VIEW-DAMAGED
// requirement: LOG-DAMAGE
#[test]
fn of_a_damaged_log_it_holds_what_stands_before_the_damage_and_says_where_it_is() {
    let data = Data::new();
    let writer = Writer::open(&data.path());
    writer.write(events(1..1000));
    writer.close();
    let log = data.path().join("default").join("log");
    let segment = fs::read_dir(log).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end / 2] ^= 0x40;
    fs::write(&segment, bytes).unwrap();

    let error = catch_up(&mut data.follower()).unwrap_err();
    assert_eq!(error.code, Code::Internal);
    assert!(error.message.contains(".seg is damaged at byte"), "{error}");
    let held = data.count();
    assert!((1..999).contains(&held), "{held}");
    let again = catch_up(&mut data.follower()).unwrap_err();
    assert_eq!(again.message, error.message);
    assert_eq!(data.count(), held);
}

// requirement: VIEW-DAMAGED
#[test]
fn a_path_that_is_no_log_is_refused_and_a_namespace_that_is_not_there_yet_is_empty() {
    let data = Data::new();
    let missing = LogSource::open(&data.path(), "default").unwrap_err();
    assert_eq!(missing.code, Code::InvalidParams);
    fs::create_dir(data.path()).unwrap();
    fs::write(data.path().join("letter.txt"), "mine").unwrap();
    let foreign = LogSource::open(&data.path(), "default").unwrap_err();
    assert_eq!(foreign.code, Code::InvalidParams);
    assert!(foreign.message.contains("is no log"), "{foreign}");
    fs::remove_dir_all(data.path()).unwrap();

    let writer = Writer::open(&data.path());
    let source = LogSource::open(&data.path(), "other").unwrap();
    let mut follower = Follower::new(View::open(&data.view()).unwrap(), source);
    assert_eq!(catch_up(&mut follower).unwrap(), 0);
    assert_eq!(follower.reached(), None);
    writer.close();
}
