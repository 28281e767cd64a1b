#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test says what it expects by failing"
)]

mod common;

use std::fs;
use std::path::PathBuf;

use loom_core::record::{
    Closed, Consumer, ConsumerGone, Dead, Dispatched, Ended, Epoch, Gap, Intent, Outcome, Progress,
    Redriven, Settled, Started, Step, Turn, TurnEnd, Waits,
};
use loom_core::{Code, Position, Record, show_uuid};
use rusqlite::Connection;
use tempfile::TempDir;

use common::{AT_MS, EVENT, SENT, at, event, event_of, one};

use loom_log::Batch;

use loom_view::{Follower, Source, View, mark};

/// A log that is written by hand, and its view.
struct Log {
    dir: TempDir,
    epoch: u32,
    records: Vec<(Position, Record)>,
}

impl Log {
    fn new() -> Self {
        let mut log = Self {
            dir: TempDir::new().unwrap(),
            epoch: 0,
            records: Vec::new(),
        };
        log.open();
        log
    }

    fn open(&mut self) {
        self.epoch += 1;
        let record = Epoch {
            epoch: self.epoch,
            at_ms: AT_MS,
            version: "1".to_owned(),
            ..Epoch::default()
        };
        self.put(Record::Epoch(record));
    }

    fn put(&mut self, record: Record) -> u64 {
        let n = self.records.len() as u64 + 1;
        self.records.push((at(self.epoch, n), record));
        n
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("default.sqlite")
    }

    /// Brings the view up to date in portions of this many records.
    fn view(&self, portion: usize) -> Connection {
        let mut view = View::open(&self.path()).unwrap();
        let from = view.reached().map_or(0, |reached| reached.next - 1);
        let rest = &self.records[usize::try_from(from).unwrap()..];
        for records in rest.chunks(portion) {
            let next = records.last().unwrap().0.n + 1;
            assert!(view.add(records, next).unwrap());
        }
        Connection::open(self.path()).unwrap()
    }
}

fn dump(db: &Connection) -> Vec<String> {
    let mut all = Vec::new();
    let sql = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name";
    let mut names = db.prepare(sql).unwrap();
    let names = names.query_map([], |row| row.get::<_, String>(0)).unwrap();
    for name in names.map(Result::unwrap) {
        let mut rows = db.prepare(&format!("SELECT * FROM \"{name}\"")).unwrap();
        let columns = rows.column_count();
        let mut rows = rows.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let cells: Vec<_> = (0..columns)
                .map(|at| format!("{:?}", row.get_ref(at).unwrap()))
                .collect();
            all.push(format!("{name}: {}", cells.join(", ")));
        }
    }
    all
}

fn turn(number: u64, agent: &str, (event, run): (u128, u128), attempt: u32) -> Record {
    Record::Turn(Turn {
        turn: number,
        agent: agent.to_owned(),
        event: Some(event.into()),
        run: Some(run.into()),
        attempt,
        at_ms: AT_MS,
        ..Turn::default()
    })
}

fn turn_end(turn: u64, code: u32) -> Record {
    Record::TurnEnd(TurnEnd {
        turn,
        code,
        message: if code > 0 { "it broke" } else { "" }.to_owned(),
        at_ms: AT_MS + 5,
    })
}

fn intent(call: u128, effect: u128, class: u32, (run, by): (u128, u128)) -> Record {
    let it = Intent {
        effect: Some(effect.into()),
        call: Some(call.into()),
        capability: "pay.card".to_owned(),
        class,
        caller: "default/clerk".to_owned(),
        run: Some(run.into()),
        event: Some(by.into()),
        at_ms: AT_MS,
        ..Intent::default()
    };
    Record::Intent(it, b"{\"amount\":3}".to_vec().into())
}

fn dispatched(call: u128, effect: u128, attempt: u32) -> Record {
    Record::Dispatched(Dispatched {
        effect: Some(effect.into()),
        call: Some(call.into()),
        attempt,
        provider: "default/bank".to_owned(),
        at_ms: AT_MS + 1,
    })
}

fn outcome(call: u128, effect: u128, code: u32) -> Record {
    let it = Outcome {
        effect: Some(effect.into()),
        call: Some(call.into()),
        code,
        detail: if code > 0 { "{\"message\":\"no\"}" } else { "" }.to_owned(),
        at_ms: AT_MS + 2,
        micros: 2000,
        last: true,
    };
    Record::Outcome(it, b"true".to_vec().into())
}

fn number(code: Code) -> u32 {
    code.number().into()
}

fn error_event(id: u128, run: u128, data: &str) -> Record {
    event_of(
        "default/loom",
        SENT,
        (id, run),
        "loom.error.handler_error",
        data.as_bytes(),
    )
}

fn consumer(start: u64) -> Record {
    Record::Consumer(Consumer {
        consumer: 1,
        group: "clerk".to_owned(),
        filters: vec!["order.*".to_owned()],
        start,
        at_ms: AT_MS,
    })
}

fn progress(floor: u64, acked: &[u64], open: &[u64]) -> Record {
    Record::Progress(Progress {
        consumer: 1,
        floor,
        acked: acked.to_vec(),
        open: open.to_vec(),
    })
}

fn undone(db: &Connection) -> Vec<(u64, String, u32)> {
    let mut rows = db
        .prepare("SELECT n, state, attempt FROM deliveries ORDER BY n")
        .unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

// requirement: VIEW-TABLES
#[test]
fn an_event_is_a_row_that_says_where_it_stands_in_the_log() {
    let mut log = Log::new();
    let n = log.put(event(EVENT, 5, 5, "order.new", b"{\"item\":\"milk\"}"));
    let db = log.view(10);
    let id: String = one(&db, "SELECT id FROM events");
    assert_eq!(id, show_uuid(5));
    assert_eq!(one::<String>(&db, "SELECT agent FROM events"), "clerk");
    assert!(one::<bool>(&db, "SELECT durable FROM events"));
    assert_eq!(
        one::<String>(&db, "SELECT data ->> 'item' FROM events"),
        "milk"
    );
    let position: String = one(&db, "SELECT position FROM events");
    assert_eq!(position.parse::<Position>().unwrap(), at(1, n));
    let time: String = one(&db, "SELECT time FROM events");
    assert_eq!(time, "2023-11-14T22:13:20.005Z");
}

// requirement: VIEW-TABLES
#[test]
fn positions_are_written_as_the_engine_writes_them_however_large() {
    let mut log = Log::new();
    let far = at(0x1f, 0x00ab_cdef_0123);
    log.records.push((far, event(SENT, 5, 5, "a", b"")));
    let db = log.view(10);
    let position: String = one(&db, "SELECT position FROM events");
    assert_eq!(position, far.to_string());
}

// requirement: VIEW-TABLES
#[test]
fn data_that_is_no_text_or_too_large_is_left_to_the_log() {
    let mut log = Log::new();
    log.put(event(SENT, 1, 1, "a", b"\xff\xfe"));
    log.put(event(SENT, 2, 2, "a", &vec![b'1'; 65_536]));
    log.put(event(SENT, 3, 3, "a", &vec![b'1'; 65_537]));
    log.put(event(SENT, 4, 4, "a", b"\"nul \0\""));
    let db = log.view(10);
    let kept =
        "SELECT group_concat(data IS NOT NULL, '') FROM (SELECT data FROM events ORDER BY n)";
    assert_eq!(one::<String>(&db, kept), "0100");
    assert_eq!(one::<u32>(&db, "SELECT max(bytes) FROM events"), 65_537);
}

// requirement: VIEW-REBUILT
#[test]
fn portions_of_any_size_and_a_new_start_between_any_two_give_the_same_rows() {
    let mut log = Log::new();
    log.put(consumer(1));
    for id in 1..20 {
        log.put(event(EVENT, id, 1, "order.new", b"1"));
        log.put(turn(u64::try_from(id).unwrap(), "clerk", (id, 1), 1));
        log.put(intent(100 + id, 200 + id, 3, (1, id)));
        log.put(dispatched(100 + id, 200 + id, 1));
        log.put(outcome(100 + id, 200 + id, u32::from(id % 3 == 0) * 7));
        log.put(turn_end(
            u64::try_from(id).unwrap(),
            u32::from(id % 5 == 0) * 7,
        ));
        log.put(progress(u64::try_from(id * 6).unwrap(), &[], &[]));
    }
    log.put(Record::Closed(Closed { at_ms: AT_MS }));
    let whole = dump(&log.view(1000));
    assert!(whole.len() > 80);
    for portion in [1, 2, 3, 7, 50] {
        fs::remove_file(log.path()).unwrap();
        assert_eq!(dump(&log.view(portion)), whole, "in portions of {portion}");
    }
}

// requirement: VIEW-REBUILT
#[test]
fn a_file_of_another_format_a_damaged_one_and_a_foreign_one_are_built_anew() {
    let mut log = Log::new();
    log.put(event(EVENT, 1, 1, "a", b"1"));
    let whole = dump(&log.view(10));
    Connection::open(log.path())
        .unwrap()
        .execute_batch("PRAGMA user_version = 77; DROP TABLE events; CREATE TABLE \"o'dd\" (a)")
        .unwrap();
    assert_eq!(dump(&log.view(10)), whole);
    fs::write(
        log.path(),
        b"no database at all, but long enough to be one: ".repeat(40),
    )
    .unwrap();
    assert_eq!(dump(&log.view(10)), whole);
    let mut bytes = fs::read(log.path()).unwrap();
    for byte in bytes.iter_mut().skip(100).take(4000) {
        *byte = 0xee;
    }
    fs::write(log.path(), bytes).unwrap();
    assert_eq!(dump(&log.view(10)), whole);
}

// requirement: VIEW-REBUILT
#[test]
fn two_that_build_one_file_at_a_time_lose_and_repeat_nothing() {
    let mut log = Log::new();
    for id in 1..9 {
        log.put(event(SENT, id, 1, "a", b"1"));
    }
    let mut first = View::open(&log.path()).unwrap();
    let mut second = View::open(&log.path()).unwrap();
    assert!(first.add(&log.records[..4], 5).unwrap());
    assert!(
        !second.add(&log.records[..2], 3).unwrap(),
        "the other was first"
    );
    assert_eq!(second.reached().unwrap().next, 5);
    assert!(second.add(&log.records[4..], 10).unwrap());
    assert!(!first.add(&log.records[4..], 10).unwrap());
    assert_eq!(first.reached(), second.reached());
    let db = Connection::open(log.path()).unwrap();
    assert_eq!(one::<u32>(&db, "SELECT events FROM runs"), 8);
}

// requirement: VIEW-REBUILT
#[test]
fn the_mark_tells_the_last_record_from_another_one_at_its_place() {
    let mut log = Log::new();
    let record = event(EVENT, 1, 1, "a", b"1");
    log.put(record.clone());
    log.view(10);
    let reached = View::open(&log.path()).unwrap().reached().unwrap();
    assert_eq!((reached.last, reached.next), (at(1, 2), 3));
    assert_eq!(reached.mark, mark(&record));
    assert_ne!(reached.mark, mark(&event(EVENT, 1, 1, "a", b"2")));
    assert_ne!(reached.mark, mark(&event(EVENT, 1, 1, "b", b"1")));
    assert_ne!(reached.mark, mark(&event(SENT, 1, 1, "a", b"1")));
}

// requirement: VIEW-REBUILT
#[test]
fn what_is_cleared_starts_anew_and_what_is_forgotten_leaves_the_rest() {
    let mut log = Log::new();
    for id in 1..5 {
        log.put(event(SENT, id, id, "a", b"1"));
    }
    let whole = dump(&log.view(10));
    let mut view = View::open(&log.path()).unwrap();
    view.forget_before(4).unwrap();
    let db = Connection::open(log.path()).unwrap();
    assert_eq!(one::<u32>(&db, "SELECT min(n) FROM events"), 4);
    assert_eq!(one::<u32>(&db, "SELECT count(*) FROM runs"), 2);
    view.clear().unwrap();
    assert_eq!(view.reached(), None);
    assert_eq!(dump(&log.view(10)), whole);
}

// requirement: VIEW-SUMS
#[test]
fn a_retried_call_is_one_call_and_one_effect_with_its_attempts() {
    let mut log = Log::new();
    log.put(event(SENT, 1, 1, "order.new", b"1"));
    log.put(intent(10, 20, 3, (1, 1)));
    for attempt in 1..=3 {
        log.put(dispatched(10, 20, attempt));
    }
    log.put(outcome(10, 20, 0));
    log.put(outcome(10, 20, number(Code::Timeout)));
    let db = log.view(10);
    assert_eq!(one::<u32>(&db, "SELECT calls FROM runs"), 1);
    assert_eq!(one::<u32>(&db, "SELECT attempts FROM calls"), 3);
    assert_eq!(
        one::<String>(&db, "SELECT code FROM calls"),
        "OK",
        "the first end counts"
    );
    assert_eq!(one::<u32>(&db, "SELECT attempts FROM effects"), 3);
    assert_eq!(one::<String>(&db, "SELECT state FROM effects"), "confirmed");
    assert_eq!(one::<u32>(&db, "SELECT errors FROM runs"), 0);
    assert_eq!(
        one::<u32>(&db, "SELECT arguments ->> 'amount' FROM calls"),
        3
    );
}

// requirement: VIEW-SUMS
#[test]
fn calls_that_share_an_effect_are_two_calls_and_one_effect() {
    let mut log = Log::new();
    log.put(intent(10, 20, 1, (1, 1)));
    log.put(intent(11, 20, 1, (1, 1)));
    log.put(dispatched(10, 20, 1));
    log.put(outcome(10, 20, 0));
    log.put(outcome(11, 20, 0));
    log.put(intent(12, 21, 0, (1, 1)));
    let db = log.view(10);
    assert_eq!(one::<u32>(&db, "SELECT calls FROM runs"), 3);
    assert_eq!(
        one::<u32>(&db, "SELECT count(*) FROM effects"),
        1,
        "a pure call has none"
    );
    assert_eq!(one::<u32>(&db, "SELECT calls FROM effects"), 2);
}

// requirement: VIEW-SUMS
#[test]
fn an_error_that_is_recorded_told_and_repeated_is_one() {
    let mut log = Log::new();
    log.put(event(EVENT, 1, 1, "order.new", b"1"));
    let failed = number(Code::HandlerError);
    let told = format!(
        "{{\"code\":\"HANDLER_ERROR\",\"message\":\"it broke\",\"who\":\"clerk\",\"topic\":\"order.new\",\"event_id\":\"{}\"}}",
        show_uuid(1)
    );
    for attempt in 1..=3_u32 {
        log.put(turn(attempt.into(), "clerk", (1, 1), attempt));
        log.put(turn_end(attempt.into(), failed));
        log.put(error_event(100 + u128::from(attempt), 1, &told));
    }
    let db = log.view(4);
    assert_eq!(one::<u32>(&db, "SELECT errors FROM runs"), 1);
    assert_eq!(one::<u32>(&db, "SELECT turns FROM runs"), 1);
    assert_eq!(one::<u32>(&db, "SELECT count(*) FROM turns"), 3);
    let counted = "SELECT records || '-' || events || '-' || kind || '-' || agent FROM errors";
    assert_eq!(one::<String>(&db, counted), "3-3-turn-clerk");
    let level = "SELECT level || code || agent FROM events WHERE topic LIKE 'loom.%' LIMIT 1";
    assert_eq!(one::<String>(&db, level), "errorHANDLER_ERRORclerk");
}

// requirement: VIEW-SUMS
#[test]
fn failures_of_two_agents_of_calls_and_of_requests_are_errors_each() {
    let mut log = Log::new();
    log.put(event(SENT, 1, 1, "order.new", b"1"));
    log.put(turn(1, "a", (1, 1), 1));
    log.put(turn(2, "b", (1, 1), 1));
    log.put(turn_end(1, number(Code::HandlerError)));
    log.put(turn_end(2, number(Code::HandlerError)));
    log.put(intent(10, 20, 0, (1, 1)));
    log.put(outcome(10, 20, number(Code::Timeout)));
    let ended = Ended {
        event: Some(1.into()),
        code: number(Code::Unavailable),
        at_ms: AT_MS + 9,
        ..Ended::default()
    };
    log.put(Record::Ended(ended.clone()));
    log.put(Record::Ended(ended));
    let db = log.view(100);
    assert_eq!(one::<u32>(&db, "SELECT errors FROM runs"), 4);
    assert_eq!(one::<u32>(&db, "SELECT requests FROM runs"), 1);
    assert_eq!(one::<u32>(&db, "SELECT calls FROM runs"), 1);
    let kinds = "SELECT group_concat(kind || ':' || code || ':' || agent, ' ') FROM errors";
    assert_eq!(
        one::<String>(&db, kinds),
        "turn:HANDLER_ERROR:a turn:HANDLER_ERROR:b call:TIMEOUT:clerk request:UNAVAILABLE:clerk"
    );
}

// requirement: VIEW-SUMS
#[test]
fn what_a_run_spent_is_the_sum_of_its_model_calls_and_of_nothing_else() {
    let mut log = Log::new();
    log.put(event(SENT, 1, 1, "ask", b"1"));
    log.put(turn(1, "a", (1, 1), 1));
    for (kind, facts) in [
        (
            "model",
            "{\"input_tokens\":100,\"output_tokens\":20,\"cost\":0.5}",
        ),
        ("model", "{\"input_tokens\":7,\"output_tokens\":3}"),
        ("now", ""),
        ("memory.get", "{\"hit\":true}"),
        ("model", "no json"),
    ] {
        let step = Step {
            turn: 1,
            kind: kind.to_owned(),
            name: "gpt".to_owned(),
            facts: facts.to_owned(),
            ..Step::default()
        };
        log.put(Record::Step(step, Vec::new().into()));
    }
    log.put(turn_end(1, 0));
    let db = log.view(3);
    let spent = "SELECT input_tokens || '/' || output_tokens || '/' || cost FROM runs";
    assert_eq!(one::<String>(&db, spent), "107/23/0.5");
    let sums =
        "SELECT sum(input_tokens) || '/' || sum(output_tokens) || '/' || sum(cost) FROM costs";
    assert_eq!(one::<String>(&db, sums), "107/23/0.5");
    assert_eq!(one::<u32>(&db, "SELECT count(*) FROM costs"), 2);
    assert_eq!(one::<u32>(&db, "SELECT count(*) FROM steps"), 5);
}

// requirement: VIEW-DELIVERIES
#[test]
fn a_consumer_has_not_done_with_what_it_hears_until_progress_says_so() {
    let mut log = Log::new();
    let old = log.put(event(EVENT, 1, 1, "order.new", b"1"));
    log.put(consumer(old + 1));
    let first = log.put(event(EVENT, 2, 2, "order.new", b"1"));
    log.put(event(EVENT, 3, 3, "other", b"1"));
    log.put(event(SENT, 4, 4, "order.new", b"1"));
    let second = log.put(event(EVENT, 5, 5, "order.new", b"1"));
    let third = log.put(event(EVENT, 6, 6, "order.new", b"1"));
    let new = |n| (n, "new".to_owned(), 0);
    assert_eq!(undone(&log.view(2)), [new(first), new(second), new(third)]);
    for n in [first, second] {
        log.put(Record::Started(Started {
            consumer: 1,
            n,
            attempt: 1,
            session: 1,
            client: Vec::new(),
        }));
    }
    log.put(progress(third, &[second], &[first]));
    let given = (first, "given".to_owned(), 1);
    assert_eq!(undone(&log.view(2)), [given, new(third)]);
    log.put(Record::Waits(Waits {
        consumer: 1,
        n: first,
        attempt: 1,
        until_ms: AT_MS + 1000,
        code: number(Code::HandlerError),
        message: "later".to_owned(),
    }));
    log.put(progress(third + 1, &[], &[]));
    let waits = (first, "waits".to_owned(), 1);
    assert_eq!(
        undone(&log.view(2)),
        [waits],
        "below the floor it stays open until it is acked"
    );
    log.put(progress(third + 1, &[first], &[]));
    assert_eq!(undone(&log.view(2)), []);
}

// requirement: VIEW-DELIVERIES
#[test]
fn a_consumer_that_starts_in_the_past_has_that_before_it_and_one_that_is_gone_nothing() {
    let mut log = Log::new();
    let old = log.put(event(EVENT, 1, 1, "order.new", b"1"));
    log.put(event(EVENT, 2, 2, "other", b"1"));
    log.put(consumer(0));
    assert_eq!(undone(&log.view(2)), [(old, "new".to_owned(), 0)]);
    log.put(Record::ConsumerGone(ConsumerGone {
        consumer: 1,
        why: "idle".to_owned(),
    }));
    log.put(event(EVENT, 3, 3, "order.new", b"1"));
    let db = log.view(2);
    assert_eq!(undone(&db), []);
    assert_eq!(one::<String>(&db, "SELECT gone FROM consumers"), "idle");
}

// requirement: VIEW-DELIVERIES
#[test]
fn a_dead_letter_says_what_died_of_what_and_where_it_went() {
    let mut log = Log::new();
    log.put(consumer(1));
    let n = log.put(event(EVENT, 9, 9, "order.new", b"1"));
    log.put(Record::Dead(Dead {
        consumer: 1,
        n,
        attempt: 20,
        code: number(Code::HandlerError),
        message: "it broke".to_owned(),
        at_ms: AT_MS,
    }));
    let db = log.view(10);
    let said = "SELECT name || ' ' || topic || ' ' || attempt || ' ' || code FROM dead_letters";
    assert_eq!(one::<String>(&db, said), "clerk order.new 20 HANDLER_ERROR");
    assert_eq!(
        one::<Option<u64>>(&db, "SELECT redriven_n FROM dead_letters"),
        None
    );
    assert_eq!(undone(&db), []);
    let again = log.put(Record::Redriven(Redriven { consumer: 1, n }));
    let db = log.view(10);
    assert_eq!(
        one::<u64>(&db, "SELECT redriven_n FROM dead_letters"),
        again
    );
}

fn state(log: &Log, run: u128) -> String {
    let sql = format!(
        "SELECT state FROM run_states WHERE run = '{}'",
        show_uuid(run)
    );
    one(&log.view(10), &sql)
}

// requirement: VIEW-RUN-STATE
#[test]
fn a_run_is_running_while_something_of_it_is_open_and_then_ended() {
    let mut log = Log::new();
    log.put(consumer(1));
    let n = log.put(event(EVENT, 1, 1, "order.new", b"1"));
    assert_eq!(state(&log, 1), "running", "the event is not consumed");
    log.put(turn(1, "clerk", (1, 1), 1));
    log.put(progress(n + 1, &[], &[]));
    assert_eq!(state(&log, 1), "running", "its turn is open");
    log.put(intent(10, 20, 3, (1, 1)));
    log.put(turn_end(1, 0));
    assert_eq!(state(&log, 1), "running", "a call is open");
    log.put(outcome(10, 20, 0));
    assert_eq!(state(&log, 1), "ended");
}

// requirement: VIEW-RUN-STATE
#[test]
fn a_run_that_a_crash_cut_off_is_incomplete_unless_its_turn_was_made_again() {
    let mut log = Log::new();
    for run in [1, 2] {
        log.put(event(SENT, run, run, "order.new", b"1"));
        log.put(turn(u64::try_from(run).unwrap(), "clerk", (run, run), 1));
    }
    log.open();
    assert_eq!(
        (state(&log, 1), state(&log, 2)),
        ("incomplete".into(), "incomplete".into())
    );
    log.put(turn(1, "clerk", (2, 2), 2));
    log.put(turn_end(1, 0));
    assert_eq!(
        (state(&log, 1), state(&log, 2)),
        ("incomplete".into(), "ended".into())
    );
}

// requirement: VIEW-RUN-STATE
#[test]
fn a_run_with_records_missing_is_incomplete_and_one_that_was_closed_over_too() {
    let mut log = Log::new();
    log.put(event(SENT, 1, 1, "a", b"1"));
    log.put(Record::Gap(Gap {
        from: 3,
        to: 9,
        why: "behind".to_owned(),
        run: Some(1.into()),
    }));
    log.put(event(SENT, 2, 2, "a", b"1"));
    log.put(turn(1, "clerk", (2, 2), 1));
    assert_eq!(
        (state(&log, 1), state(&log, 2)),
        ("incomplete".into(), "running".into())
    );
    log.put(Record::Closed(Closed { at_ms: AT_MS }));
    assert_eq!(state(&log, 2), "incomplete");
    let db = log.view(1);
    let noted = "SELECT group_concat(kind || ':' || level, ' ') FROM notes";
    assert_eq!(
        one::<String>(&db, noted),
        "opened:info gap:error closed:info"
    );
}

// requirement: VIEW-RUN-STATE
#[test]
fn an_effect_that_nobody_knows_of_ends_its_call_as_indeterminate() {
    let mut log = Log::new();
    log.put(event(SENT, 1, 1, "a", b"1"));
    log.put(intent(10, 20, 3, (1, 1)));
    log.put(dispatched(10, 20, 1));
    log.open();
    let settled = |state, by: &str| {
        let it = Settled {
            effect: Some(20.into()),
            state,
            by: by.to_owned(),
            at_ms: AT_MS,
            ..Settled::default()
        };
        Record::Settled(it, Vec::new().into())
    };
    log.put(settled(5, "recovery"));
    let db = log.view(10);
    assert_eq!(one::<String>(&db, "SELECT state FROM effects"), "unknown");
    assert_eq!(
        one::<String>(&db, "SELECT code FROM calls"),
        "INDETERMINATE"
    );
    log.put(settled(6, "operator"));
    let db = log.view(10);
    let now = "SELECT state || ' ' || settled_by FROM effects";
    assert_eq!(one::<String>(&db, now), "reconciled operator");
}

/// A log in memory that is read in portions of two.
struct Kept<'a> {
    records: &'a [(Position, Record)],
    first: u64,
}

impl Source for Kept<'_> {
    fn first(&mut self) -> loom_view::Result<u64> {
        Ok(self.first)
    }

    fn read(&mut self, from: Option<u64>) -> loom_view::Result<Batch> {
        let from = from.unwrap_or(self.first);
        let rest = self.records.iter().filter(|(at, _)| at.n >= from);
        let records: Vec<_> = rest.take(2).cloned().collect();
        let next = records.last().map_or(from, |(at, _)| at.n + 1);
        let at_end = self.records.last().is_none_or(|(at, _)| at.n < next);
        Ok(Batch {
            records,
            next,
            at_end,
        })
    }

    fn get(&mut self, n: u64) -> loom_view::Result<Option<(Position, Record)>> {
        let found = self
            .records
            .iter()
            .find(|(at, _)| at.n == n && n >= self.first);
        Ok(found.cloned())
    }
}

/// Follows to the end; how many records were taken over, and the first that is there then.
fn follow(log: &Log, records: &[(Position, Record)], first: u64) -> (usize, Option<u64>) {
    let source = Kept { records, first };
    let mut follower = Follower::new(View::open(&log.path()).unwrap(), source);
    let mut taken = 0;
    loop {
        let portion = follower.step().unwrap();
        taken += portion.records;
        if portion.at_end {
            break;
        }
    }
    let db = Connection::open(log.path()).unwrap();
    (taken, one(&db, "SELECT min(n) FROM events"))
}

// requirement: VIEW-REBUILT
#[test]
fn a_follower_takes_over_what_is_new_and_forgets_what_the_log_has_no_more() {
    let mut log = Log::new();
    for id in 1..6 {
        log.put(event(EVENT, id, 1, "a", b"1"));
    }
    assert_eq!(follow(&log, &log.records, 1), (6, Some(2)));
    assert_eq!(follow(&log, &log.records, 1), (0, Some(2)));
    log.put(event(EVENT, 6, 1, "a", b"1"));
    assert_eq!(
        follow(&log, &log.records, 1),
        (1, Some(2)),
        "only what is new"
    );
    assert_eq!(
        follow(&log, &log.records, 4),
        (0, Some(4)),
        "what the log has no more is gone"
    );
}

// requirement: VIEW-REBUILT
#[test]
fn a_follower_starts_anew_on_another_log() {
    let mut log = Log::new();
    for id in 1..7 {
        log.put(event(EVENT, id, 1, "a", b"1"));
    }
    follow(&log, &log.records, 1);
    let mut other = log.records.clone();
    *other.last_mut().unwrap() = (at(1, 7), event(EVENT, 60, 1, "a", b"1"));
    assert_eq!(
        follow(&log, &other, 1),
        (7, Some(2)),
        "another record at its place"
    );
    other.last_mut().unwrap().0.epoch = 9;
    assert_eq!(follow(&log, &other, 1), (7, Some(2)), "another epoch");
    assert_eq!(
        follow(&log, &other[..3], 1),
        (3, Some(2)),
        "a log that is shorter"
    );
    let later: Vec<_> = (20..23)
        .map(|n| (at(9, n), event(EVENT, n.into(), 1, "a", b"1")))
        .collect();
    assert_eq!(
        follow(&log, &later, 20),
        (3, Some(20)),
        "retention was past it"
    );
    let db = Connection::open(log.path()).unwrap();
    assert_eq!(one::<u32>(&db, "SELECT events FROM runs"), 3);
}

// requirement: VIEW-TABLES
#[test]
fn numbers_that_use_all_their_bits_are_taken() {
    let mut log = Log::new();
    log.put(event(SENT, 1, 1, "a", b"1"));
    log.put(turn(u64::MAX, "clerk", (1, 1), 1));
    let step = Step {
        turn: u64::MAX,
        facts: "{\"input_tokens\":7}".to_owned(),
        ..Step::default()
    };
    log.put(Record::Step(step, Vec::new().into()));
    log.put(turn_end(u64::MAX, 0));
    log.put(Record::Waits(Waits {
        consumer: 1,
        n: 1,
        until_ms: u64::MAX,
        ..Waits::default()
    }));
    let db = log.view(2);
    assert_eq!(one::<String>(&db, "SELECT code FROM turns"), "OK");
    assert_eq!(one::<u32>(&db, "SELECT input_tokens FROM runs"), 7);
}

// requirement: VIEW-SUMS
#[test]
fn an_error_that_a_handler_let_through_is_told_of_its_turn_whoever_it_names() {
    let told = format!(
        "{{\"code\":\"HANDLER_ERROR\",\"who\":\"prices.get\",\"topic\":\"a\",\"event_id\":\"{}\"}}",
        show_uuid(1)
    );
    for told_first in [true, false] {
        let mut log = Log::new();
        log.put(event(SENT, 1, 1, "a", b"1"));
        log.put(turn(1, "clerk", (1, 1), 1));
        if told_first {
            log.put(error_event(9, 1, &told));
        }
        log.put(turn_end(1, number(Code::HandlerError)));
        if !told_first {
            log.put(error_event(9, 1, &told));
        }
        let db = log.view(1);
        assert_eq!(one::<u32>(&db, "SELECT errors FROM runs"), 1);
    }
}
