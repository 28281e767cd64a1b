//! What the log keeps of agents beside their events, and what odd clocks and repeated publishes come to.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cognitive_complexity,
    reason = "a test says what it expects by failing"
)]

mod common;

use common::World;
use common::log::Log;
use loom_core::record::{Body, Memory, State};
use loom_core::{
    Code, Delivery, Error, Level, Limits, Offer, Options, Publish, Record, SessionId, Ticket,
};

fn publish(w: &mut World, s: SessionId, id: Option<&str>, level: Level) -> Result<Offer, Error> {
    let options = Options {
        dedup: id.map(str::to_owned),
        key: Some("k".to_owned()),
        ..Options::default()
    };
    let publish = Publish {
        options: Some(Box::new(options)),
        ack: Some(level),
        ..w.publish(s, "d.a")
    };
    w.offer(s, publish)
}

fn put(w: &mut World, s: SessionId, id: Option<&str>, level: Level) -> Ticket {
    match publish(w, s, id, level).unwrap() {
        Offer::Logging(ticket) => ticket,
        other => panic!("not logged: {other:?}"),
    }
}

fn body(text: &str) -> Body {
    text.as_bytes().to_vec().into()
}

fn leave(
    w: &mut World,
    s: SessionId,
    turn: &Delivery,
    text: &str,
    failed: bool,
) -> Result<bool, Error> {
    let state = State {
        agent: "a".to_owned(),
        key: "k".to_owned(),
        ..State::default()
    };
    w.core
        .keep_state(s, turn.lease.unwrap(), (state, body(text)), failed)
}

fn states(log: &Log) -> Vec<String> {
    log.of(|record| match record {
        Record::State(_, body) => Some(String::from_utf8_lossy(body).into_owned()),
        _ => None,
    })
}

fn known(w: &World) -> Option<String> {
    let all = w.core.states_of("default", "a");
    let state = all.get("k")?;
    Some(String::from_utf8_lossy(state).into_owned())
}

/// The next turn, when the log has answered.
fn turn(w: &mut World, log: &mut Log, s: SessionId, a: loom_core::Handle) -> Option<Delivery> {
    log.serve(w);
    let first = w.take(s, a);
    log.serve(w);
    first.or_else(|| w.take(s, a))
}

// requirement: STATE-ACK
#[test]
fn a_state_goes_with_the_ack_of_its_turn_or_neither_is_there() {
    let (mut w, mut log) = Log::world(Limits::default());
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, None, Level::Disk);
    let first = turn(&mut w, &mut log, s, a).unwrap();
    assert!(leave(&mut w, s, &first, "1", false).unwrap());
    w.end(s, a, &first);
    assert_eq!(known(&w).as_deref(), Some("1"), "before the log has it");
    log.serve(&mut w);
    assert!(states(&log).is_empty(), "it waits with its ack");
    log.restart(&mut w);
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    assert_eq!(known(&w), None);
    let again = turn(&mut w, &mut log, s, a).unwrap();
    assert_eq!(again.attempt, 2);
    leave(&mut w, s, &again, "1", false).unwrap();
    w.end(s, a, &again);
    w.pass(50);
    log.collect(&mut w);
    let kinds: Vec<_> = log.waiting[0]
        .batch
        .iter()
        .map(|record| matches!(record, Record::State(..)))
        .collect();
    assert_eq!(kinds, [true, false], "state and ack in one batch");
    log.refuse(&mut w);
    assert_eq!(known(&w).as_deref(), Some("1"));
    put(&mut w, s, None, Level::Disk);
    let second = turn(&mut w, &mut log, s, a).unwrap();
    leave(&mut w, s, &second, "2", false).unwrap();
    w.end(s, a, &second);
    w.pass(1_000);
    log.serve(&mut w);
    assert_eq!(states(&log), ["2"], "the last of what goes together");
    log.restart(&mut w);
    assert_eq!(known(&w).as_deref(), Some("2"));
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    assert!(turn(&mut w, &mut log, s, a).is_none());
}

// requirement: STATE-ACK
#[test]
fn states_over_the_limit_go_one_after_the_other_each_with_its_own_ack() {
    let (mut w, mut log) = Log::world(Limits {
        ack_state_bytes: 3,
        log_body_bytes: 4,
        ..Limits::default()
    });
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    for text in ["aaaa", "bbbb"] {
        put(&mut w, s, None, Level::Disk);
        let turn = turn(&mut w, &mut log, s, a).unwrap();
        let error = leave(&mut w, s, &turn, "ccccc", false).unwrap_err();
        let named = (error.field.as_deref(), error.limit);
        assert_eq!(
            (error.code, named),
            (Code::InvalidParams, (Some("state"), Some("log_body_bytes")))
        );
        leave(&mut w, s, &turn, text, false).unwrap();
        w.end(s, a, &turn);
    }
    w.pass(50);
    log.serve(&mut w);
    assert_eq!(states(&log), ["aaaa"]);
    log.restart(&mut w);
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    let second = turn(&mut w, &mut log, s, a).unwrap();
    assert_eq!(second.attempt, 2, "its ack was not there either");
    assert_eq!(known(&w).as_deref(), Some("aaaa"));
}

// requirement: STATE-FENCED
#[test]
fn only_a_turn_that_goes_on_leaves_a_state_and_a_failed_one_leaves_none() {
    let (mut w, mut log) = Log::world(Limits::default());
    let (s, other) = (w.session(), w.session());
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, None, Level::Disk);
    let first = turn(&mut w, &mut log, s, a).unwrap();
    let error = leave(&mut w, other, &first, "x", false).unwrap_err();
    assert_eq!(error.code, Code::Fenced);
    assert!(!leave(&mut w, s, &first, "half", true).unwrap());
    w.fail(s, &first, Code::HandlerError).unwrap();
    w.pass(1_000);
    let again = turn(&mut w, &mut log, s, a).unwrap();
    w.core.nak(s, again.lease.unwrap(), 10).unwrap();
    assert!(!leave(&mut w, s, &again, "given back", false).unwrap());
    w.end(s, a, &again);
    w.pass(10);
    let third = turn(&mut w, &mut log, s, a).unwrap();
    leave(&mut w, s, &third, "then it failed", false).unwrap();
    w.fail(s, &third, Code::HandlerError).unwrap();
    assert_eq!(known(&w), None);
    w.pass(4_000);
    let fourth = turn(&mut w, &mut log, s, a).unwrap();
    w.core.ack(s, fourth.lease.unwrap(), w.at).unwrap();
    assert!(leave(&mut w, s, &fourth, "acked", true).unwrap());
    w.end(s, a, &fourth);
    let error = leave(&mut w, s, &fourth, "late", false).unwrap_err();
    assert_eq!(error.code, Code::Fenced);
    w.pass(50);
    log.serve(&mut w);
    assert_eq!(states(&log), ["acked"]);
}

// requirement: STATE-ACK
#[test]
fn what_goes_to_the_log_by_itself_is_tried_again_until_it_is_there_and_never_over_newer() {
    let (mut w, mut log) = Log::world(Limits::default());
    let keep = |w: &mut World, text: &str| {
        let memory = Memory {
            key: "m".to_owned(),
            ..Memory::default()
        };
        w.core.keep_memory("default", memory, body(text)).unwrap();
    };
    let values = |log: &Log| {
        log.of(|record| match record {
            Record::Memory(_, body) => Some(String::from_utf8_lossy(body).into_owned()),
            _ => None,
        })
    };
    keep(&mut w, "1");
    log.collect(&mut w);
    log.refuse(&mut w);
    w.pass(1_000);
    log.serve(&mut w);
    assert_eq!(values(&log), ["1"]);
    keep(&mut w, "2");
    log.collect(&mut w);
    keep(&mut w, "3");
    log.refuse(&mut w);
    log.serve(&mut w);
    w.pass(1_000);
    log.serve(&mut w);
    assert_eq!(values(&log), ["1", "3"]);
    let most = w.core.limits().log_body_bytes;
    let big = vec![0; most + 1].into();
    let error = w.core.keep_memory("default", Memory::default(), big);
    assert_eq!(error.unwrap_err().limit, Some("log_body_bytes"));
}

// requirement: DEDUP-LEVEL
#[test]
fn a_second_publish_that_asks_for_more_than_the_first_waits_for_it() {
    let (mut w, mut log) = Log::world(Limits {
        publish_seconds: 1,
        ..Limits::default()
    });
    let s = w.session();
    let first = put(&mut w, s, Some("x"), Level::Os);
    let second = put(&mut w, s, Some("x"), Level::Disk);
    let error = publish(&mut w, s, Some("x"), Level::Os).unwrap_err();
    let named = (error.field.as_deref(), error.limit);
    assert_eq!(
        (error.code, named),
        (Code::Exhausted, (Some("id"), Some("publish_seconds")))
    );
    log.collect(&mut w);
    log.answer(&mut w, usize::MAX);
    let accepted = w.seen(s).accepted;
    assert_eq!((accepted.len(), accepted[0].0), (1, first));
    let written = accepted[0].1.clone();
    assert_eq!(written.level, Level::Os);
    let third = put(&mut w, s, Some("x"), Level::Disk);
    let low = publish(&mut w, s, Some("x"), Level::Os).unwrap();
    assert_eq!(common::done(low).level, Level::Os);
    log.collect(&mut w);
    assert!(log.waiting.iter().all(|out| out.level == Level::Disk));
    log.answer(&mut w, usize::MAX);
    let accepted = w.seen(s).accepted;
    let tickets: Vec<_> = accepted.iter().map(|(ticket, _)| *ticket).collect();
    assert_eq!(tickets, [second, third]);
    for (_, receipt) in &accepted {
        assert_eq!(
            (receipt.position, receipt.level),
            (written.position, Level::Disk)
        );
    }
    let events = |record: &Record| matches!(record, Record::Event(_)).then_some(());
    assert_eq!(log.of(events).len(), 1);
    let known = publish(&mut w, s, Some("x"), Level::Disk).unwrap();
    assert_eq!(common::done(known).level, Level::Disk);
    put(&mut w, s, Some("y"), Level::Os);
    put(&mut w, s, Some("y"), Level::Disk);
    log.collect(&mut w);
    log.answer(&mut w, usize::MAX);
    w.seen(s);
    log.collect(&mut w);
    log.refuse(&mut w);
    assert_eq!(w.seen(s).refused.len(), 1, "it is not synced");
}

// requirement: CLOCK-ODD
#[test]
fn one_reading_a_day_ahead_forgets_no_id() {
    let (mut w, mut log) = Log::world(Limits::default());
    let s = w.session();
    put(&mut w, s, Some("x"), Level::Disk);
    log.serve(&mut w);
    let wall = w.at.wall_ms;
    w.at.wall_ms = wall + 24 * 60 * 60 * 1_000;
    put(&mut w, s, Some("odd"), Level::Disk);
    log.serve(&mut w);
    w.at.wall_ms = wall + 1;
    for id in ["x", "odd"] {
        let again = publish(&mut w, s, Some(id), Level::Disk).unwrap();
        common::done(again);
    }
    put(&mut w, s, Some("y"), Level::Disk);
    log.serve(&mut w);
    common::done(publish(&mut w, s, Some("x"), Level::Disk).unwrap());
    log.restart(&mut w);
    let s = w.session();
    common::done(publish(&mut w, s, Some("x"), Level::Disk).unwrap());
}

// requirement: CLOCK-ODD
#[test]
fn a_wall_that_goes_back_makes_no_event_wait_longer() {
    let (mut w, mut log) = Log::world(Limits::default());
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, None, Level::Disk);
    let first = turn(&mut w, &mut log, s, a).unwrap();
    w.fail(s, &first, Code::HandlerError).unwrap();
    log.serve(&mut w);
    w.at.wall_ms -= 60 * 60 * 1_000;
    log.serve(&mut w);
    w.pass(1_000);
    let second = turn(&mut w, &mut log, s, a);
    assert!(second.is_some_and(|turn| turn.attempt == 2));
    log.restart(&mut w);
    w.at.wall_ms -= 60 * 60 * 1_000;
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    let third = turn(&mut w, &mut log, s, a).unwrap();
    w.fail(s, &third, Code::HandlerError).unwrap();
    log.serve(&mut w);
    log.restart(&mut w);
    w.at.wall_ms -= 60 * 60 * 1_000;
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    assert!(turn(&mut w, &mut log, s, a).is_none());
    w.pass(60_000);
    let fourth = turn(&mut w, &mut log, s, a);
    assert!(fourth.is_some_and(|turn| turn.attempt == 4));
}
