//! What is recorded of a run, and what is said of a run that could not be recorded whole.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

mod common;

use common::World;
use loom_core::record::{Body, Intent, Outcome, Sent, Step, Turn, TurnEnd};
use loom_core::{
    Code, Delivery, Durability, EffectClass, Invoke, Limits, LogLine, Opened, Partition, Position,
    Publish, Record, Recording, SessionId, Told,
};

const PARTITION: u32 = 3;

fn recorded(what: Recording) -> (World, SessionId) {
    let mut w = World::new();
    let opened = Opened {
        partition: PARTITION,
        epoch: 1,
        oldest: 1,
        kept: true,
        how: Durability {
            record: what,
            ..Durability::default()
        },
    };
    let folded = Partition::new(&Limits::default());
    w.core
        .open_partition("default", opened, folded, w.at)
        .unwrap();
    let s = w.session();
    (w, s)
}

fn records(w: &mut World) -> Vec<Record> {
    let mut all = Vec::new();
    for out in w.core.take_records() {
        assert_eq!(out.partition, PARTITION);
        if let Some(ticket) = out.ticket {
            // What durable events need is not recorded, it is logged.
            w.core.logged(ticket, position(), w.at);
            continue;
        }
        all.extend(out.batch);
    }
    all
}

fn position() -> Position {
    Position {
        partition: PARTITION,
        epoch: 1,
        n: 1,
    }
}

fn kinds(records: &[Record]) -> Vec<u8> {
    records.iter().map(Record::kind).collect()
}

fn sent(record: &Record) -> &Sent {
    match record {
        Record::Sent(sent) => sent,
        other => panic!("no event: {other:?}"),
    }
}

fn from(w: &World, s: SessionId, turn: &Delivery, topic: &'static str) -> Publish<'static> {
    Publish {
        turn: turn.lease,
        ..w.publish(s, topic)
    }
}

// requirement: RECORD-TURN
#[test]
fn a_turn_is_recorded_with_its_agent_its_code_its_event_and_what_it_sent() {
    let (mut w, s) = recorded(Recording::Runs);
    let a = w.agent(s, "a", &["q"]);
    w.core.describe(s, a, "2", &[7; 32]).unwrap();
    let root = w.emit(s, "q").id;
    w.at.now = w.at.now.plus_millis(5);
    let turn = w.take(s, a).unwrap();
    assert!(turn.turn > 0);
    let publish = from(&w, s, &turn, "r");
    w.offer(s, publish).unwrap();
    assert!(w.end(s, a, &turn).is_none());
    let all = records(&mut w);
    assert_eq!(kinds(&all), [31, 30, 31, 34]);
    assert_eq!((sent(&all[0]).turn, sent(&all[0]).matched), (0, 1));
    let Record::Turn(begun) = &all[1] else {
        panic!("{:?}", all[1]);
    };
    let expected = Turn {
        turn: turn.turn,
        agent: "a".to_owned(),
        version: "2".to_owned(),
        event: Some(root.into()),
        run: Some(root.into()),
        attempt: 1,
        at_ms: w.at.wall_ms,
        waited_micros: 5_000,
        code_hash: vec![7; 32],
    };
    assert_eq!(begun, &expected);
    assert_eq!((sent(&all[2]).turn, sent(&all[2]).matched), (turn.turn, 0));
    assert!(
        matches!(&all[3], Record::TurnEnd(TurnEnd { turn: ended, code: 0, .. }) if *ended == turn.turn)
    );
}

// requirement: RECORD-TURN
#[test]
fn a_turn_that_fails_is_recorded_with_its_error_and_the_error_event_though_nobody_hears_it() {
    let (mut w, s) = recorded(Recording::Runs);
    let a = w.agent(s, "a", &["q"]);
    w.emit(s, "q");
    let turn = w.take(s, a).unwrap();
    w.fail(s, &turn, Code::HandlerError).unwrap();
    let all = records(&mut w);
    assert_eq!(kinds(&all), [31, 30, 34, 31]);
    let Record::TurnEnd(end) = &all[2] else {
        panic!("{:?}", all[2]);
    };
    assert_eq!(
        (end.code, &*end.message),
        (u32::from(Code::HandlerError.number()), "it broke")
    );
    assert_eq!(&*sent(&all[3]).envelope.topic, "loom.error.handler_error");
}

// requirement: RECORD-REQUEST
#[test]
fn a_request_is_recorded_with_its_answer_and_its_end() {
    let (mut w, s) = recorded(Recording::Runs);
    let (a, b) = (w.agent(s, "a", &["q"]), w.agent(s, "b", &["ask"]));
    w.emit(s, "q");
    let asking = w.take(s, a).unwrap();
    let publish = from(&w, s, &asking, "ask");
    w.ask(
        s,
        loom_core::Request {
            publish,
            timeout_ms: 1_000,
            first_k: 1,
            wait: false,
        },
    )
    .unwrap();
    let asked = w.take(s, b).unwrap();
    w.reply(s, &asked, "7").unwrap();
    w.end(s, b, &asked);
    w.end(s, a, &asking);
    let all = records(&mut w);
    assert_eq!(kinds(&all), [31, 30, 31, 30, 31, 32, 34, 34]);
    let (question, answer) = (sent(&all[2]), sent(&all[4]));
    assert!(question.asks && !answer.asks);
    assert_eq!((question.turn, answer.turn), (asking.turn, asked.turn));
    assert_eq!(answer.envelope.causation, Some(question.envelope.id));
    let Record::Ended(ended) = &all[5] else {
        panic!("{:?}", all[5]);
    };
    assert_eq!((ended.turn, ended.code), (asking.turn, 0));
    assert_eq!(ended.event.map(u128::from), Some(question.envelope.id));
}

// requirement: RECORD-CALL
#[test]
fn a_pure_call_of_a_turn_is_recorded_with_its_arguments_and_its_result() {
    let (mut w, s) = recorded(Recording::Runs);
    let a = w.agent(s, "a", &["q"]);
    let p = w.provider(s, "add", EffectClass::Pure);
    w.emit(s, "q");
    let turn = w.take(s, a).unwrap();
    let invoke = Invoke {
        turn: turn.lease,
        ..w.invoke(s, "add")
    };
    w.core.call(s, invoke, w.at).unwrap();
    let work = w.take(s, p).unwrap();
    assert_eq!(work.turn, 0, "an invocation is no turn");
    w.result(s, &work, "42").unwrap();
    w.end(s, a, &turn);
    let all = records(&mut w);
    assert_eq!(kinds(&all), [31, 30, 20, 22, 34]);
    let (
        Record::Intent(
            Intent {
                call,
                turn: by,
                capability,
                ..
            },
            args,
        ),
        Record::Outcome(outcome, result),
    ) = (&all[2], &all[3])
    else {
        panic!("{all:?}");
    };
    assert_eq!(
        (&**capability, *by, &**args),
        ("add", turn.turn, &b"{}"[..])
    );
    assert!(matches!(args, Body::Of(_)), "the arguments are not copied");
    let Outcome {
        call: ended, code, ..
    } = outcome;
    assert_eq!((ended, *code, &**result), (call, 0, &b"42"[..]));
    w.call(s, "add").unwrap();
    let work = w.take(s, p).unwrap();
    w.result(s, &work, "42").unwrap();
    assert!(
        records(&mut w).is_empty(),
        "a call of no turn belongs to no run"
    );
}

// requirement: RECORD-STEP
#[test]
fn a_step_is_recorded_for_its_turn_and_nobodys_when_that_is_over() {
    let (mut w, s) = recorded(Recording::Runs);
    let a = w.agent(s, "a", &["q"]);
    w.emit(s, "q");
    let turn = w.take(s, a).unwrap();
    let told = || Told {
        kind: "now",
        name: "",
        args_hash: b"",
        code: None,
        micros: 3,
        facts: "",
        result: Box::from(*b"1.5"),
    };
    let lease = turn.lease.unwrap();
    w.core.step(s, lease, told(), w.at).unwrap();
    w.end(s, a, &turn);
    let all = records(&mut w);
    let Record::Step(Step { turn: by, kind, .. }, body) = &all[2] else {
        panic!("{:?}", all[2]);
    };
    assert_eq!((*by, &**kind, &**body), (turn.turn, "now", &b"1.5"[..]));
    w.core.step(s, lease, told(), w.at).unwrap();
    assert!(records(&mut w).is_empty());
    let other = w.session();
    w.emit(s, "q");
    let lease = w.take(s, a).unwrap().lease.unwrap();
    let foreign = w.core.step(other, lease, told(), w.at);
    assert_eq!(foreign.unwrap_err().code, Code::Fenced);
    w.core.take(s, a, Some(lease), w.at).unwrap();
}

// requirement: RECORD-SETTING
#[test]
fn nothing_is_recorded_unless_it_is_asked_for_and_the_engines_own_only_with_all() {
    for (what, expected) in [
        (Recording::Off, 0),
        (Recording::Runs, 1),
        (Recording::All, 2),
    ] {
        let (mut w, s) = recorded(what);
        w.agent(s, "a", &["q"]);
        let line = LogLine {
            sender: w.root(s),
            turn: None,
            level: "info",
            payload: b"{}",
        };
        w.core.log(s, &line, w.at).unwrap();
        let topics: Vec<String> = records(&mut w)
            .iter()
            .map(|record| sent(record).envelope.topic.to_string())
            .collect();
        assert_eq!(topics.len(), expected, "{what:?}: {topics:?}");
    }
}

// requirement: RECORD-BEHIND
#[test]
fn while_the_log_is_behind_nothing_is_recorded_and_each_run_gets_its_gap() {
    let (mut w, s) = recorded(Recording::Runs);
    let a = w.agent(s, "a", &["q"]);
    let run = w.emit(s, "q").id;
    w.core.press(true);
    let turn = w.take(s, a).unwrap();
    w.end(s, a, &turn);
    assert_eq!(kinds(&records(&mut w)), [31]);
    w.core.press(false);
    let all = records(&mut w);
    assert_eq!(kinds(&all), [3]);
    let Record::Gap(gap) = &all[0] else {
        panic!("{:?}", all[0]);
    };
    assert_eq!(
        (gap.from, gap.to, gap.run.map(u128::from)),
        (0, 2, Some(run))
    );
    assert_eq!(w.core.skipped(), 2);
    w.emit(s, "q");
    assert_eq!(kinds(&records(&mut w)), [31], "afterwards it goes on");
    let turn = w.take(s, a).unwrap();
    w.end(s, a, &turn);
}

// requirement: RECORD-BEHIND
#[test]
fn the_runs_that_are_left_out_are_bounded_and_none_is_forgotten() {
    let (mut w, s) = recorded(Recording::Runs);
    w.core.press(true);
    let runs: Vec<u128> = (0..1_500).map(|_| w.emit(s, "nobody").id).collect();
    let early = records(&mut w);
    assert_eq!(early.len(), 1_500 - 1_024);
    w.core.press(false);
    let mut gaps = early;
    gaps.extend(records(&mut w));
    let mut named: Vec<u128> = gaps
        .iter()
        .map(|record| match record {
            Record::Gap(gap) => u128::from(gap.run.unwrap()),
            other => panic!("{other:?}"),
        })
        .collect();
    named.sort_unstable();
    assert_eq!(named, runs);
}

// requirement: LARGE-CALL
#[test]
fn a_recorded_turn_may_call_with_large_arguments_and_keep_large_steps() {
    let (mut w, s) = recorded(Recording::Runs);
    let a = w.agent(s, "a", &["q"]);
    let tool = w.provider(s, "tool", EffectClass::Pure);
    w.emit(s, "q");
    let turn = w.take(s, a).unwrap();
    let large = || vec![b'1'; (1 << 20) + 1].into_boxed_slice();
    let from = |turn| Invoke {
        turn,
        payload: large(),
        ..w.invoke(s, "tool")
    };
    let (outside, inside) = (from(None), from(turn.lease));
    let refused = w.core.call(s, outside, w.at).unwrap_err();
    assert_eq!(refused.limit, Some("payload_bytes"));
    w.core.call(s, inside, w.at).unwrap();
    let work = w.take(s, tool).unwrap();
    let lease = work.lease.unwrap();
    assert!(w.core.result(s, lease, large(), w.at).unwrap());
    let told = Told {
        kind: "memory.get",
        name: "k",
        args_hash: b"",
        code: None,
        micros: 3,
        facts: "",
        result: large(),
    };
    w.core.step(s, turn.lease.unwrap(), told, w.at).unwrap();
    let sizes = |wanted: fn(&Record) -> bool, all: &[Record]| {
        let found: Vec<usize> = all
            .iter()
            .filter(|it| wanted(it))
            .map(|it| it.body().len())
            .collect();
        found
    };
    let all = records(&mut w);
    let bytes = (1 << 20) + 1;
    assert_eq!(sizes(|it| matches!(it, Record::Intent(..)), &all), [bytes]);
    assert_eq!(sizes(|it| matches!(it, Record::Outcome(..)), &all), [bytes]);
    assert_eq!(sizes(|it| matches!(it, Record::Step(..)), &all), [bytes]);
}
