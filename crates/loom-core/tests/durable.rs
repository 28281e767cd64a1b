//! Durable topics: what the log is given, and what follows when it answers.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cognitive_complexity,
    reason = "a test says what it expects by failing"
)]

mod common;

use common::log::Log;
use common::{World, done};
use loom_core::{
    AgentSpec, Code, Delivery, Error, Handle, Health, Level, Limits, Offer, Opened, Options,
    Partition, Publish, Qos, Record, SessionId, Start, Ticket,
};

fn world() -> (World, Log) {
    Log::world(Limits::default())
}

fn small(items: usize) -> Limits {
    Limits {
        queue_items: items,
        ..Limits::default()
    }
}

fn logging(w: &mut World, session: SessionId, publish: Publish<'_>) -> Ticket {
    match w.offer(session, publish).unwrap() {
        Offer::Logging(ticket) => ticket,
        other => panic!("not logged: {other:?}"),
    }
}

fn durable(w: &mut World, session: SessionId, topic: &str) -> Ticket {
    let publish = w.publish(session, topic);
    logging(w, session, publish)
}

fn keyed<'a>(w: &World, s: SessionId, topic: &'a str, key: &str, text: &str) -> Publish<'a> {
    let options = Options {
        key: Some(key.to_owned()),
        ..Options::default()
    };
    Publish {
        options: Some(Box::new(options)),
        payload: text.as_bytes().into(),
        ..w.publish(s, topic)
    }
}

/// Publishes to `d.a` in a lane.
fn put(w: &mut World, s: SessionId, key: &str, text: &str) {
    let publish = keyed(w, s, "d.a", key, text);
    logging(w, s, publish);
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.envelope.payload).into_owned()
}

/// Takes and ends turns until there are none, with the log answering in between.
fn run(w: &mut World, log: &mut Log, s: SessionId, a: Handle) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        log.serve(w);
        let Some(turn) = w.take(s, a) else {
            return all;
        };
        all.push(text(&turn));
        let mut next = w.end(s, a, &turn);
        while let Some(turn) = next {
            all.push(text(&turn));
            next = w.end(s, a, &turn);
        }
    }
}

fn turn(w: &mut World, log: &mut Log, s: SessionId, a: Handle) -> Delivery {
    log.serve(w);
    let first = w.take(s, a);
    log.serve(w);
    first.or_else(|| w.take(s, a)).unwrap()
}

fn started(log: &Log) -> Vec<(u64, u32)> {
    log.of(|record| match record {
        Record::Started(it) => Some((it.n, it.attempt)),
        _ => None,
    })
}

// requirement: TICKETS-ORDERED, DUR-LEVEL
#[test]
fn a_durable_event_is_answered_when_the_log_has_it_in_the_order_of_the_tickets() {
    let (mut w, mut log) = world();
    let s = w.session();
    let (first, second) = (durable(&mut w, s, "d.a"), durable(&mut w, s, "d.a"));
    let out = w.core.take_records();
    assert!(!w.core.has_records());
    let sent: Vec<_> = out.iter().map(|o| (o.ticket, o.level)).collect();
    let disk = Level::Disk;
    assert_eq!(sent, [(Some(first), disk), (Some(second), disk)]);
    assert!(matches!(out[0].batch[0], Record::Event(_)));
    w.core.logged(second, log.position(3), w.at);
    assert!(w.seen(s).accepted.is_empty(), "the first is not answered");
    w.core.logged(first, log.position(2), w.at);
    let accepted = w.seen(s).accepted;
    let tickets: Vec<_> = accepted.iter().map(|(ticket, _)| *ticket).collect();
    assert_eq!(tickets, [first, second]);
    assert_eq!(accepted[1].1.position, Some(log.position(3)));
    assert_eq!(accepted[1].1.level, Level::Disk);
    log.next = 4;
}

// requirement: DUR-LEVEL
#[test]
fn what_is_durable_is_said_by_the_topic_or_by_the_publisher() {
    let (mut w, mut log) = world();
    let s = w.session();
    let plain = w.publish(s, "plain");
    assert_eq!(done(w.offer(s, plain).unwrap()).level, Level::Accepted);
    let realtime = Publish {
        qos: Qos::Realtime,
        ..w.publish(s, "d.a")
    };
    let error = w.offer(s, realtime).unwrap_err();
    assert_eq!(
        (error.code, error.field.as_deref()),
        (Code::InvalidParams, Some("qos"))
    );
    let asked = Publish {
        ack: Some(Level::Os),
        ..w.publish(s, "plain")
    };
    logging(&mut w, s, asked);
    let eager = Publish {
        eager: true,
        ..w.publish(s, "d.a")
    };
    assert!(matches!(w.offer(s, eager).unwrap(), Offer::NoRoom));
    log.collect(&mut w);
    assert_eq!(log.waiting.len(), 1, "what is eager is not logged");
    assert_eq!(log.waiting[0].level, Level::Os);
    let named = Publish {
        options: Some(Box::new(id("one"))),
        ..w.publish(s, "plain")
    };
    assert_eq!(w.offer(s, named).unwrap_err().field.as_deref(), Some("id"));
    log.serve(&mut w);
    assert_eq!(w.seen(s).accepted[0].1.level, Level::Os);
    let other = w.session_in("other");
    let asked = Publish {
        ack: Some(Level::Os),
        ..w.publish(other, "plain")
    };
    assert_eq!(w.offer(other, asked).unwrap_err().code, Code::NotSupported);
}

fn id(text: &str) -> Options {
    Options {
        dedup: Some(text.to_owned()),
        ..Options::default()
    }
}

// requirement: DUR-STARTED
#[test]
fn a_durable_turn_is_handed_out_once_the_log_knows_that_it_begins() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "1");
    assert!(w.take(s, a).is_none(), "it is not logged");
    log.collect(&mut w);
    log.answer(&mut w, usize::MAX);
    assert!(w.take(s, a).is_none(), "that it begins is not logged");
    w.seen(s);
    log.collect(&mut w);
    let levels: Vec<Level> = log.waiting.iter().map(|out| out.level).collect();
    assert_eq!(levels, [Level::Os]);
    log.answer(&mut w, usize::MAX);
    assert_eq!(w.seen(s).ready, [a]);
    let turn = w.take(s, a).unwrap();
    assert!(turn.durable && turn.attempt == 1 && turn.envelope.position.is_some());
    let n = turn.envelope.position.unwrap().n;
    assert_eq!(started(&log), [(n, 1)]);
    w.end(s, a, &turn);
    log.serve(&mut w);
}

// requirement: DUR-STARTED
#[test]
fn a_claim_does_not_wait_for_what_stands_before_it_and_as_many_are_made_as_there_are_slots() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent_of(s, "a", &["d.a"], 3);
    log.serve(&mut w);
    for key in ["k", "l", "m", "n"] {
        put(&mut w, s, key, key);
    }
    log.collect(&mut w);
    log.answer(&mut w, usize::MAX);
    put(&mut w, s, "later", "later");
    log.collect(&mut w);
    assert_eq!(log.waiting.len(), 4, "three claims and an event");
    let claims: Vec<_> = log.waiting.drain(..3).collect();
    for (at, out) in claims.into_iter().enumerate() {
        let n = log.next + 1 + at as u64;
        log.records.insert(n, out.batch[0].clone());
        w.core.logged(out.ticket.unwrap(), log.position(n), w.at);
    }
    assert_eq!((0..3).filter_map(|_| w.take(s, a)).count(), 3);
    let event = log.waiting.remove(0);
    log.records.insert(log.next, event.batch[0].clone());
    w.core
        .logged(event.ticket.unwrap(), log.position(log.next), w.at);
    log.next += 4;
    w.check();
    log.collect(&mut w);
    assert!(log.waiting.is_empty(), "there is no slot");
}

// requirement: DUR-ACK
#[test]
fn acks_are_written_together_after_a_while_and_what_is_acked_does_not_come_again() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    for at in 0..4 {
        put(&mut w, s, &at.to_string(), &at.to_string());
    }
    assert_eq!(run(&mut w, &mut log, s, a), ["0", "1", "2", "3"]);
    let progress = |log: &Log| {
        log.of(|r| matches!(r, Record::Progress(_)).then_some(()))
            .len()
    };
    assert_eq!(progress(&log), 0, "acks wait for others");
    w.pass(50);
    log.serve(&mut w);
    assert_eq!(progress(&log), 1);
    log.restart(&mut w);
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    assert!(run(&mut w, &mut log, s, a).is_empty());
    put(&mut w, s, "k", "new");
    assert_eq!(run(&mut w, &mut log, s, a), ["new"]);
}

// requirement: DUR-RESTART
#[test]
fn what_was_not_acked_comes_again_after_a_restart_with_its_count() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    for key in ["k", "k", "l"] {
        put(&mut w, s, key, key);
    }
    log.serve(&mut w);
    let first = w.take(s, a).unwrap();
    assert_eq!(text(&first), "k");
    for attempt in 2..5 {
        log.restart(&mut w);
        let s = w.session();
        let a = w.agent(s, "a", &["d.a"]);
        let turn = turn(&mut w, &mut log, s, a);
        assert_eq!((text(&turn).as_str(), turn.attempt), ("k", attempt));
        assert_eq!(turn.envelope.id, first.envelope.id);
    }
    log.restart(&mut w);
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    let mut all = run(&mut w, &mut log, s, a);
    all.sort();
    assert_eq!(all, ["k", "k", "l"]);
}

// requirement: DLQ-POISON
#[test]
fn an_event_that_ends_the_process_each_time_is_given_up_before_it_is_handed_out_again() {
    let (mut w, mut log) = Log::world(Limits {
        max_deliver: 3,
        ..Limits::default()
    });
    let s = w.session();
    w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "poison");
    put(&mut w, s, "k", "good");
    log.serve(&mut w);
    for _ in 0..3 {
        log.restart(&mut w);
        let s = w.session();
        let a = w.agent(s, "a", &["d.a"]);
        log.serve(&mut w);
        let turn = w.take(s, a).unwrap();
        if text(&turn) == "good" {
            break;
        }
    }
    log.restart(&mut w);
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    assert_eq!(run(&mut w, &mut log, s, a), ["good"]);
    let dead = w.core.dead("default");
    assert_eq!((dead.len(), dead[0].attempt), (1, 3));
}

// requirement: DUR-RETRY
#[test]
fn an_event_whose_handler_fails_waits_longer_each_time_and_holds_only_its_own_lane() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    for (key, text) in [("k", "1"), ("k", "2"), ("l", "3")] {
        put(&mut w, s, key, text);
    }
    for attempt in 1..4 {
        let turn = turn(&mut w, &mut log, s, a);
        assert_eq!((text(&turn).as_str(), turn.attempt), ("1", attempt));
        w.fail(s, &turn, Code::HandlerError).unwrap();
        let others = run(&mut w, &mut log, s, a);
        assert_eq!(others, if attempt == 1 { vec!["3"] } else { vec![] });
        let pause = 1_000 << (attempt - 1);
        w.pass(pause * 3 / 4 - 1);
        assert!(run(&mut w, &mut log, s, a).is_empty(), "it waits");
        w.pass(pause / 4 + 1);
    }
    assert_eq!(run(&mut w, &mut log, s, a), ["1", "2"]);
    let row = &w.core.stats().subscriptions[0];
    assert_eq!((row.matched, row.delivered, row.redelivered), (3, 3, 3));
}

// requirement: DUR-GROUPS
#[test]
fn one_group_too_many_is_refused_and_those_that_the_log_knows_come_back() {
    let (mut w, mut log) = Log::world(Limits {
        consumers: 2,
        ..Limits::default()
    });
    let s = w.session();
    w.agent(s, "a", &["d.a"]);
    w.agent(s, "b", &["d.a"]);
    log.serve(&mut w);
    log.restart(&mut w);
    let s = w.session();
    let spec = |name, group, qos| AgentSpec {
        name,
        filters: &["d.a"],
        group,
        concurrency: 1,
        qos,
        info: b"{}",
        start: Start::Now,
        max_deliver: 0,
        exclusive: false,
    };
    let third = spec("c", "", Qos::Batched);
    let refused = w.core.register(s, &third, w.at).unwrap_err();
    assert_eq!(refused.code, Code::Exhausted);
    assert_eq!(refused.field.as_deref(), Some("group"));
    assert_eq!(refused.limit, Some("consumers"));
    for known in ["a", "b"] {
        let member = spec("c", known, Qos::Batched);
        let handle = w.core.register(s, &member, w.at).unwrap();
        w.core.remove(s, handle, w.at).unwrap();
    }
    let lossy = spec("c", "", Qos::Realtime);
    w.core.register(s, &lossy, w.at).unwrap();
}

// requirement: DUR-RETRY, DUR-RESTART
#[test]
fn a_pause_holds_over_a_restart() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "1");
    put(&mut w, s, "k", "2");
    let first = turn(&mut w, &mut log, s, a);
    assert!(w.core.nak(s, first.lease.unwrap(), 60_000).unwrap());
    w.end(s, a, &first);
    log.serve(&mut w);
    log.restart(&mut w);
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    assert!(run(&mut w, &mut log, s, a).is_empty());
    w.pass(59_000);
    assert!(run(&mut w, &mut log, s, a).is_empty());
    w.pass(1_000);
    assert_eq!(run(&mut w, &mut log, s, a), ["1", "2"]);
}

// requirement: DUR-ACK
#[test]
fn a_turn_may_ack_give_back_or_give_up_its_event_itself() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "acked");
    let it = turn(&mut w, &mut log, s, a);
    let lease = it.lease.unwrap();
    assert!(w.core.ack(s, lease, w.at).unwrap());
    assert!(!w.core.ack(s, lease, w.at).unwrap(), "it is done");
    assert!(!w.core.nak(s, lease, 0).unwrap());
    w.fail(s, &it, Code::HandlerError).unwrap();
    assert!(
        run(&mut w, &mut log, s, a).is_empty(),
        "an error after the ack changes nothing"
    );
    assert_eq!(w.core.ack(s, lease, w.at).unwrap_err().code, Code::Fenced);
    put(&mut w, s, "k", "again");
    let it = turn(&mut w, &mut log, s, a);
    assert!(w.core.nak(s, it.lease.unwrap(), 0).unwrap());
    assert!(run(&mut w, &mut log, s, a).is_empty(), "its turn goes on");
    w.end(s, a, &it);
    let it = turn(&mut w, &mut log, s, a);
    assert_eq!((text(&it).as_str(), it.attempt), ("again", 2));
    assert!(w.core.term(s, it.lease.unwrap(), "no use", w.at).unwrap());
    w.fail(s, &it, Code::HandlerError).unwrap();
    assert!(run(&mut w, &mut log, s, a).is_empty());
    let dead = w.core.dead("default");
    assert_eq!(
        (dead.len(), dead[0].code, dead[0].message.as_str()),
        (1, 0, "no use")
    );
    let far = Limits::default().ttl_ms_max + 1;
    put(&mut w, s, "k", "last");
    let it = turn(&mut w, &mut log, s, a);
    let error = w.core.nak(s, it.lease.unwrap(), far).unwrap_err();
    assert_eq!(error.field.as_deref(), Some("delay"));
    w.end(s, a, &it);
    w.emit(s, "plain");
    let b = w.agent(s, "b", &["plain"]);
    w.emit(s, "plain");
    let it = w.take(s, b).unwrap();
    let error = w.core.ack(s, it.lease.unwrap(), w.at).unwrap_err();
    assert_eq!(error.code, Code::InvalidParams);
    w.end(s, b, &it);
    log.serve(&mut w);
}

// requirement: DLQ-AFTER-MAX
#[test]
fn an_event_is_given_up_after_so_many_attempts_and_that_is_an_event() {
    let (mut w, mut log) = Log::world(Limits {
        max_deliver: 2,
        ..Limits::default()
    });
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    let ear = w.agent(s, "ear", &["loom.dead.>"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "bad");
    put(&mut w, s, "k", "good");
    for _ in 0..2 {
        let it = turn(&mut w, &mut log, s, a);
        assert_eq!(text(&it), "bad");
        w.fail(s, &it, Code::ToolError).unwrap();
        w.pass(60_000);
    }
    assert_eq!(run(&mut w, &mut log, s, a), ["good"], "its lane goes on");
    let told = w.take(s, ear).unwrap();
    assert_eq!(&*told.envelope.topic, "loom.dead.d.a");
    let body: serde_json::Value = serde_json::from_slice(&told.envelope.payload).unwrap();
    assert_eq!(body["consumer"], "a");
    assert_eq!(
        (&body["attempt"], &body["code"]),
        (&2.into(), &"TOOL_ERROR".into())
    );
    assert_eq!(body["message"], "it broke");
    w.end(s, ear, &told);
    w.core.flush_acks();
    log.serve(&mut w);
    let dead = w.core.dead("default");
    assert_eq!((dead.len(), dead[0].attempt), (1, 2));
    assert_eq!(w.core.needs(1), Some(dead[0].n), "its data is still needed");
}

// requirement: DLQ-MISFIT
#[test]
fn data_that_does_not_fit_is_given_up_at_once() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "bad");
    let it = turn(&mut w, &mut log, s, a);
    w.fail(s, &it, Code::InvalidParams).unwrap();
    log.serve(&mut w);
    assert_eq!(w.core.dead("default").len(), 1);
}

// requirement: DLQ-REDRIVE
#[test]
fn a_dead_event_is_published_anew_once_for_the_consumer_that_gave_it_up() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    let b = w.agent(s, "b", &["d.>"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "bad");
    let it = turn(&mut w, &mut log, s, a);
    w.fail(s, &it, Code::InvalidParams).unwrap();
    assert_eq!(run(&mut w, &mut log, s, b), ["bad"]);
    let dead = w.core.dead("default")[0].clone();
    let which = (dead.consumer, dead.n);
    let ticket = w
        .core
        .redrive(s, which, Some(Box::from(*b"mended")))
        .unwrap();
    let second = w.core.redrive(s, which, None).unwrap_err();
    assert_eq!(second.code, Code::Conflict);
    w.seen(s);
    log.serve(&mut w);
    let accepted = w.seen(s).accepted;
    assert_eq!(accepted[0].0, ticket);
    assert_eq!(run(&mut w, &mut log, s, a), ["mended"]);
    assert!(
        run(&mut w, &mut log, s, b).is_empty(),
        "it is for nobody else"
    );
    assert!(w.core.dead("default").is_empty());
    assert_eq!(
        w.core.redrive(s, which, None).unwrap_err().code,
        Code::NotFound
    );
    w.pass(50);
    log.serve(&mut w);
    log.restart(&mut w);
    let s = w.session();
    let b = w.agent(s, "b", &["d.>"]);
    assert!(run(&mut w, &mut log, s, b).is_empty());
}

// requirement: DLQ-REDRIVE
#[test]
fn a_redrive_that_the_log_did_not_get_leaves_the_event_dead() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "bad");
    let it = turn(&mut w, &mut log, s, a);
    w.fail(s, &it, Code::InvalidParams).unwrap();
    log.serve(&mut w);
    let dead = w.core.dead("default")[0].clone();
    let which = (dead.consumer, dead.n);
    let ticket = w.core.redrive(s, which, None).unwrap();
    log.feed(&mut w);
    log.collect(&mut w);
    log.refuse(&mut w);
    assert_eq!(w.seen(s).refused[0].0, ticket);
    assert_eq!(w.core.dead("default").len(), 1);
    w.core.redrive(s, which, None).unwrap();
    log.feed(&mut w);
    assert_eq!(log.collect(&mut w), 1, "both records are one batch");
    assert_eq!(log.waiting[0].batch.len(), 2);
    log.restart(&mut w);
    assert_eq!(
        w.core.dead("default").len(),
        1,
        "what crashed in between did not happen"
    );
}

// requirement: DUR-LEASE
#[test]
fn a_lease_holds_while_its_loop_moves_and_lapses_with_the_stack_when_it_does_not() {
    let (mut w, mut log) = world();
    let s = w.session();
    let other = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    let ear = w.agent(other, "ear", &["loom.error.fenced"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "long");
    let it = turn(&mut w, &mut log, s, a);
    for _ in 0..10 {
        w.pass(20_000);
        w.core.renew(s, w.at);
    }
    let b = w.session();
    let spec = AgentSpec {
        name: "a",
        filters: &["d.a"],
        group: "",
        concurrency: 4,
        qos: Qos::Batched,
        info: b"{}",
        start: Start::Now,
        max_deliver: 0,
        exclusive: false,
    };
    let again = w.core.register(b, &spec, w.at).unwrap();
    assert!(
        run(&mut w, &mut log, b, again).is_empty(),
        "a long turn is not given again"
    );
    w.core.stalls(s, "app.py:7 in crunch");
    w.pass(29_999);
    assert!(w.take(other, ear).is_none());
    w.pass(1);
    log.serve(&mut w);
    let told = w.take(other, ear).unwrap();
    let body = String::from_utf8_lossy(&told.envelope.payload).into_owned();
    assert!(body.contains("app.py:7 in crunch"), "{body}");
    w.end(other, ear, &told);
    let lease = it.lease.unwrap();
    assert_eq!(w.core.ack(s, lease, w.at).unwrap_err().code, Code::Fenced);
    w.end(s, a, &it);
    log.serve(&mut w);
    let turns = [w.take(s, a), w.take(b, again)];
    let turns: Vec<_> = turns.into_iter().flatten().collect();
    assert_eq!(turns.len(), 1);
    assert_eq!((text(&turns[0]).as_str(), turns[0].attempt), ("long", 2));
}

fn later(w: &mut World, millis: u64) {
    w.at.now = w.at.now.plus_millis(millis);
    w.at.wall_ms += millis;
}

// requirement: DUR-LEASE
#[test]
fn a_loop_that_comes_back_too_late_does_not_save_its_leases() {
    type Sign = fn(&mut World, &mut Log, SessionId, Handle);
    let signs: [Sign; 3] = [
        |w, _, s, _| w.core.renew(s, w.at),
        |w, _, _, _| {
            w.core.tick(w.at);
        },
        |w, log, s, a| drop(turn(w, log, s, a)),
    ];
    for sign in signs {
        let (mut w, mut log) = world();
        let s = w.session();
        let a = w.agent(s, "a", &["d.a"]);
        log.serve(&mut w);
        put(&mut w, s, "k", "long");
        let it = turn(&mut w, &mut log, s, a);
        put(&mut w, s, "l", "other");
        log.serve(&mut w);
        later(&mut w, 29_000);
        w.core.renew(s, w.at);
        later(&mut w, 29_999);
        assert!(w.core.extend(s, it.lease.unwrap(), w.at).is_ok());
        later(&mut w, 30_000);
        sign(&mut w, &mut log, s, a);
        let refused = w.core.ack(s, it.lease.unwrap(), w.at).unwrap_err();
        assert_eq!(refused.code, Code::Fenced);
        log.serve(&mut w);
    }
}

// requirement: DUR-LEASE
#[test]
fn a_clock_that_is_moved_by_hand_lets_no_lease_lapse() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "long");
    let it = turn(&mut w, &mut log, s, a);
    later(&mut w, 90_000);
    w.core.renew_all(w.at);
    w.core.tick(w.at);
    assert!(w.core.ack(s, it.lease.unwrap(), w.at).unwrap());
    w.end(s, a, &it);
    log.serve(&mut w);
}

// requirement: DUR-ALARM
#[test]
fn the_shell_is_told_when_durable_work_is_due_and_of_nothing_else() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    w.agent(s, "other", &["r.a"]);
    w.request(s, "r.a").unwrap();
    assert_eq!(
        w.core.alarm(),
        None,
        "a session rings for what it waits for"
    );
    put(&mut w, s, "k", "one");
    let it = turn(&mut w, &mut log, s, a);
    let lapse = w.at.now.plus_millis(30_000);
    assert_eq!(w.core.alarm(), Some(lapse));
    w.fail(s, &it, Code::Unavailable).unwrap();
    log.serve(&mut w);
    let again = w.core.alarm().unwrap();
    assert!(again > w.at.now && again <= w.at.now.plus_millis(1_500));
    w.pass(1_500);
    let it = turn(&mut w, &mut log, s, a);
    w.end(s, a, &it);
    assert_eq!(
        w.core.alarm(),
        Some(w.at.now.plus_millis(50)),
        "for its ack"
    );
    w.pass(50);
    log.serve(&mut w);
    w.pass(30_000);
    assert_eq!(w.core.alarm(), None);
}

// requirement: DUR-LEASE
#[test]
fn a_turn_may_extend_its_own_lease() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "one");
    put(&mut w, s, "l", "two");
    let (one, two) = (turn(&mut w, &mut log, s, a), turn(&mut w, &mut log, s, a));
    w.pass(20_000);
    assert!(w.core.extend(s, two.lease.unwrap(), w.at).unwrap());
    w.pass(10_000);
    assert_eq!(
        w.core.ack(s, one.lease.unwrap(), w.at).unwrap_err().code,
        Code::Fenced
    );
    assert!(w.core.ack(s, two.lease.unwrap(), w.at).unwrap());
    w.end(s, a, &two);
    log.serve(&mut w);
}

// requirement: DUR-BEHIND
#[test]
fn a_full_queue_makes_its_group_read_from_the_log_and_nothing_is_lost_or_out_of_order() {
    let (mut w, mut log) = Log::world(small(4));
    let s = w.session();
    let a = w.agent_of(s, "a", &["d.a"], 1);
    log.serve(&mut w);
    for at in 0..40 {
        let qos = if at % 2 == 0 {
            Qos::Background
        } else {
            Qos::Batched
        };
        let key = (at % 3).to_string();
        let publish = Publish {
            qos,
            ..keyed(&w, s, "d.a", &key, &at.to_string())
        };
        logging(&mut w, s, publish);
        log.serve(&mut w);
    }
    assert_eq!(
        w.seen(s).accepted.len(),
        40,
        "its publishers do not wait for it"
    );
    assert!(w.core.stats().subscriptions[0].queued <= 4);
    let consumers = &w.core.stats().logs[0].consumers;
    assert!(consumers[0].behind && consumers[0].spilled > 30);
    let all: Vec<u32> = run(&mut w, &mut log, s, a)
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
    for lane in 0..3 {
        let own: Vec<u32> = all.iter().copied().filter(|at| at % 3 == lane).collect();
        assert_eq!(own, (0..40).filter(|at| at % 3 == lane).collect::<Vec<_>>());
    }
    assert_eq!(all.len(), 40);
    let consumers = &w.core.stats().logs[0].consumers;
    assert!(!consumers[0].behind && consumers[0].spilled == 0);
    assert_eq!((consumers[0].matched, consumers[0].acked), (40, 40));
}

/// Answers what waits for the log, and leaves the reads.
fn write(w: &mut World, log: &mut Log) {
    while log.collect(w) > 0 {
        log.answer(w, usize::MAX);
    }
}

/// A lane of 12 events, of which more are parked than are kept in memory: gives the turn that is under way when one of
/// them has to be read, and what was done before.
fn reading(w: &mut World, log: &mut Log, s: SessionId, a: Handle) -> (Vec<String>, Delivery) {
    log.serve(w);
    for at in 0..12 {
        put(w, s, "k", &at.to_string());
    }
    let first = turn(w, log, s, a);
    assert!(w.core.nak(s, first.lease.unwrap(), 1_000).unwrap());
    w.end(s, a, &first);
    log.serve(w);
    w.pass(1_000);
    let mut all = Vec::new();
    loop {
        write(w, log);
        let turn = w.take(s, a).unwrap();
        write(w, log);
        if w.core.has_reads() {
            return (all, turn);
        }
        all.push(text(&turn));
        w.end(s, a, &turn);
    }
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|at| at.to_string()).collect()
}

// requirement: DUR-READ
#[test]
fn an_event_that_comes_back_while_a_later_one_of_its_lane_is_read_is_given_again() {
    let (mut w, mut log) = Log::world(small(4));
    let s = w.session();
    let a = w.agent_of(s, "a", &["d.a"], 1);
    let errors = w.agent(s, "errors", &["loom.error.>"]);
    let (mut all, turn) = reading(&mut w, &mut log, s, a);
    assert!(w.core.nak(s, turn.lease.unwrap(), 2_000).unwrap());
    w.end(s, a, &turn);
    write(&mut w, &mut log);
    assert_eq!(log.feed(&mut w), 1, "the read of the later one");
    log.serve(&mut w);
    assert!(run(&mut w, &mut log, s, a).is_empty(), "it waits");
    w.pass(2_000);
    all.extend(run(&mut w, &mut log, s, a));
    assert_eq!(all, numbers(12));
    assert!(w.take(s, errors).is_none(), "nothing is told as lost");
}

/// What the log says when it cannot be read for now.
fn shut() -> Error {
    Error::new(Code::Exhausted, "no file descriptor is left for 1.seg")
}

/// Answers all reads with an error; gives the places.
fn refuse_reads(w: &mut World, oldest: Option<u64>) -> Vec<u64> {
    let reads = w.core.take_reads();
    for read in &reads {
        w.core.unread(*read, &shut(), oldest, w.at);
    }
    reads.iter().map(|read| read.from).collect()
}

// requirement: DUR-READ
#[test]
fn a_log_that_cannot_be_read_loses_nothing_and_is_asked_again_ever_more_slowly() {
    let (mut w, mut log) = Log::world(small(4));
    let s = w.session();
    let a = w.agent_of(s, "a", &["d.a"], 1);
    let errors = w.agent(s, "errors", &["loom.error.>"]);
    let (mut all, turn) = reading(&mut w, &mut log, s, a);
    all.push(text(&turn));
    w.end(s, a, &turn);
    let place = refuse_reads(&mut w, None);
    for pause in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
        write(&mut w, &mut log);
        w.pass(pause - 1);
        write(&mut w, &mut log);
        assert!(!w.core.has_reads(), "it pauses {pause} ms");
        w.pass(1);
        assert_eq!(refuse_reads(&mut w, None), place, "it stays where it is");
    }
    let told = w.take(s, errors).unwrap();
    assert_eq!(&*told.envelope.topic, "loom.error.exhausted");
    assert!(text(&told).contains(&format!("\\\"a\\\" waits at position {}", place[0])));
    w.end(s, errors, &told);
    assert!(w.take(s, errors).is_none(), "it is told once");
    w.pass(5_000);
    all.extend(run(&mut w, &mut log, s, a));
    assert_eq!(all, numbers(12));
}

// requirement: DUR-READ
#[test]
fn a_group_that_is_behind_waits_before_what_cannot_be_read() {
    let (mut w, mut log) = Log::world(small(4));
    let s = w.session();
    let a = w.agent_of(s, "a", &["d.a"], 1);
    log.serve(&mut w);
    for at in 0..12 {
        put(&mut w, s, &at.to_string(), &at.to_string());
    }
    write(&mut w, &mut log);
    let mut all = Vec::new();
    while !w.core.has_reads() {
        let turn = w.take(s, a).unwrap();
        all.push(text(&turn));
        w.end(s, a, &turn);
        write(&mut w, &mut log);
    }
    assert_eq!(refuse_reads(&mut w, None).len(), 1);
    write(&mut w, &mut log);
    assert!(!w.core.has_reads(), "it does not read without a pause");
    w.pass(100);
    all.extend(run(&mut w, &mut log, s, a));
    assert_eq!(all, numbers(12));
}

// requirement: DUR-READ
#[test]
fn what_the_log_keeps_no_more_is_told_and_its_lane_goes_on() {
    let (mut w, mut log) = Log::world(small(4));
    let s = w.session();
    let a = w.agent_of(s, "a", &["d.a"], 1);
    let errors = w.agent(s, "errors", &["loom.error.>"]);
    let (mut all, turn) = reading(&mut w, &mut log, s, a);
    all.push(text(&turn));
    w.end(s, a, &turn);
    let read = w.core.take_reads()[0];
    let Record::Event(gone) = &log.records[&read.from] else {
        panic!("no event is read");
    };
    let lost = String::from_utf8_lossy(&gone.payload).into_owned();
    w.core.unread(read, &shut(), Some(read.from + 1), w.at);
    let told = w.take(s, errors).unwrap();
    assert_eq!(&*told.envelope.topic, "loom.error.cursor_expired");
    w.end(s, errors, &told);
    all.extend(run(&mut w, &mut log, s, a));
    assert!(w.take(s, errors).is_none(), "nothing else is lost");
    let mut rest = numbers(12);
    rest.retain(|at| *at != lost);
    assert_eq!(all, rest);
}

// requirement: DUR-READ
#[test]
fn a_dead_event_that_cannot_be_read_now_stays_dead_and_says_why() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "bad");
    let it = turn(&mut w, &mut log, s, a);
    w.fail(s, &it, Code::InvalidParams).unwrap();
    log.serve(&mut w);
    let dead = w.core.dead("default")[0].clone();
    let which = (dead.consumer, dead.n);
    w.seen(s);
    w.core.redrive(s, which, None).unwrap();
    refuse_reads(&mut w, None);
    assert_eq!(w.seen(s).refused[0].1.code, Code::Exhausted);
    w.core.redrive(s, which, None).unwrap();
    assert_eq!(run(&mut w, &mut log, s, a), ["bad"]);
}

// requirement: DUR-START
#[test]
fn a_new_group_starts_where_it_says_and_a_known_one_goes_on() {
    let (mut w, mut log) = world();
    let s = w.session();
    for at in 0..3 {
        put(&mut w, s, "k", &at.to_string());
    }
    log.serve(&mut w);
    let accepted = w.seen(s).accepted;
    let second = accepted[1].1.position.unwrap();
    let begin = |w: &mut World, name: &str, start| {
        let spec = AgentSpec {
            name,
            filters: &["d.a"],
            group: "",
            concurrency: 4,
            qos: Qos::Batched,
            info: b"{}",
            start,
            max_deliver: 0,
            exclusive: false,
        };
        w.core.register(s, &spec, w.at)
    };
    let now = begin(&mut w, "now", Start::Now).unwrap();
    let all = begin(&mut w, "all", Start::Beginning).unwrap();
    let some = begin(&mut w, "some", Start::At(second)).unwrap();
    assert!(run(&mut w, &mut log, s, now).is_empty());
    assert_eq!(run(&mut w, &mut log, s, all), ["0", "1", "2"]);
    assert_eq!(run(&mut w, &mut log, s, some), ["1", "2"]);
    w.core.remove(s, all, w.at).unwrap();
    put(&mut w, s, "k", "3");
    log.serve(&mut w);
    let all = begin(&mut w, "all", Start::Beginning).unwrap();
    assert_eq!(
        run(&mut w, &mut log, s, all),
        ["3"],
        "it goes on where it was"
    );
    let wrong = |p| begin(&mut w, "wrong", Start::At(p)).unwrap_err().code;
    let elsewhere = loom_core::Position {
        partition: 2,
        ..second
    };
    let mut wrong = wrong;
    assert_eq!(wrong(elsewhere), Code::InvalidCursor);
    let of_no_epoch = loom_core::Position { epoch: 7, ..second };
    assert_eq!(wrong(of_no_epoch), Code::InvalidCursor);
    let not_yet = loom_core::Position { n: 9_999, ..second };
    assert_eq!(wrong(not_yet), Code::InvalidCursor);
    w.core.set_oldest(1, second.n + 1);
    let spec_error = begin(&mut w, "late", Start::At(second)).unwrap_err();
    assert_eq!(spec_error.code, Code::CursorExpired);
    assert!(run(&mut w, &mut log, s, now).contains(&"3".to_owned()));
    assert_eq!(run(&mut w, &mut log, s, some), ["3"]);
}

// requirement: DUR-GROUP
#[test]
fn what_a_member_leaves_goes_to_the_others_or_waits_in_the_log() {
    let (mut w, mut log) = world();
    let (one, two) = (w.session(), w.session());
    let publisher = w.session();
    let a = w.agent(one, "a", &["d.a"]);
    let b = w.agent(two, "a", &["d.a"]);
    log.serve(&mut w);
    for key in ["k", "l", "m", "n"] {
        put(&mut w, publisher, key, "1");
        put(&mut w, publisher, key, "2");
    }
    log.serve(&mut w);
    let held = w.take(one, a).unwrap();
    w.core.close(one, w.at);
    log.serve(&mut w);
    let mut seen = Vec::new();
    let mut next = w.take(two, b);
    while let Some(it) = next {
        let again = it.envelope.id == held.envelope.id;
        assert_eq!(
            it.attempt,
            1 + u32::from(again),
            "begun by the one that left"
        );
        seen.push((it.envelope.lane().to_string(), text(&it)));
        next = w.end(two, b, &it);
        if next.is_none() {
            log.serve(&mut w);
            next = w.take(two, b);
        }
    }
    for lane in ["k", "l", "m", "n"] {
        let own = seen.iter().filter(|(key, _)| key == lane);
        assert_eq!(
            own.map(|(_, text)| text.as_str()).collect::<Vec<_>>(),
            ["1", "2"]
        );
    }
    put(&mut w, publisher, "k", "3");
    log.serve(&mut w);
    w.core.close(two, w.at);
    put(&mut w, publisher, "k", "4");
    log.serve(&mut w);
    let back = w.session();
    let a = w.agent(back, "a", &["d.a"]);
    assert_eq!(run(&mut w, &mut log, back, a), ["3", "4"]);
}

// requirement: DUR-GROUP
#[test]
fn an_agent_in_quarantine_finds_in_the_log_what_it_did_not_hear() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "1");
    log.serve(&mut w);
    w.core.set_state(s, a, Health::Quarantined, w.at).unwrap();
    put(&mut w, s, "k", "2");
    log.serve(&mut w);
    assert!(w.take(s, a).is_none());
    w.core.set_state(s, a, Health::Up, w.at).unwrap();
    assert_eq!(run(&mut w, &mut log, s, a), ["1", "2"]);
}

// requirement: DUR-GROUP
#[test]
fn members_that_hear_different_things_may_come_one_after_the_other() {
    let (mut w, mut log) = world();
    let s = w.session();
    let of = |w: &mut World, s, name: &str, filters: &[&str]| {
        let spec = AgentSpec {
            name,
            filters,
            group: "g",
            concurrency: 4,
            qos: Qos::Batched,
            info: b"{}",
            start: Start::Now,
            max_deliver: 0,
            exclusive: false,
        };
        w.core.register(s, &spec, w.at).unwrap()
    };
    of(&mut w, s, "a", &["d.a"]);
    of(&mut w, s, "b", &["d.b"]);
    log.serve(&mut w);
    log.restart(&mut w);
    let s = w.session();
    let a = of(&mut w, s, "a", &["d.a"]);
    let b_event = keyed(&w, s, "d.b", "k", "b");
    logging(&mut w, s, b_event);
    put(&mut w, s, "l", "a");
    assert_eq!(run(&mut w, &mut log, s, a), ["a"]);
    let b = of(&mut w, s, "b", &["d.b"]);
    assert_eq!(run(&mut w, &mut log, s, b), ["b"]);
}

// requirement: DUR-FLEETING
#[test]
fn streams_and_agents_that_take_all_as_realtime_get_a_durable_event_once_and_hold_nothing() {
    let (mut w, mut log) = world();
    let s = w.session();
    let stream = w.core.subscribe(s, &["d.a"], Qos::Batched).unwrap();
    let spec = AgentSpec {
        name: "board",
        filters: &["d.a"],
        group: "",
        concurrency: 4,
        qos: Qos::Realtime,
        info: b"{}",
        start: Start::Now,
        max_deliver: 0,
        exclusive: false,
    };
    let board = w.core.register(s, &spec, w.at).unwrap();
    put(&mut w, s, "k", "1");
    log.serve(&mut w);
    let it = w.take(s, stream).unwrap();
    assert!(!it.durable && it.envelope.position.is_some());
    w.take(s, stream);
    let it = w.take(s, board).unwrap();
    assert!(!it.durable);
    w.fail(s, &it, Code::HandlerError).unwrap();
    assert!(w.take(s, board).is_none());
    assert_eq!(w.core.partition(1).unwrap().consumers().count(), 0);
    assert_eq!(w.seen(s).accepted[0].1.matched, 2);
}

// requirement: DUR-TTL
#[test]
fn a_durable_event_whose_time_is_up_is_not_begun_and_is_done() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent_of(s, "a", &["d.a"], 1);
    log.serve(&mut w);
    put(&mut w, s, "k", "first");
    log.serve(&mut w);
    let held = w.take(s, a).unwrap();
    let mut publish = keyed(&w, s, "d.a", "k", "short");
    publish.options.as_mut().unwrap().ttl_ms = Some(10);
    logging(&mut w, s, publish);
    log.serve(&mut w);
    w.pass(20);
    w.end(s, a, &held);
    assert!(run(&mut w, &mut log, s, a).is_empty());
    w.pass(50);
    log.serve(&mut w);
    assert_eq!(w.core.stats().subscriptions[0].expired, 1);
    let consumer = w
        .core
        .partition(1)
        .unwrap()
        .consumers()
        .next()
        .unwrap()
        .clone();
    assert!(consumer.open.is_empty(), "{consumer:?}");
}

// requirement: DEDUP-ONCE
#[test]
fn a_second_publish_with_an_id_gets_the_receipt_of_the_first() {
    let (mut w, mut log) = world();
    let s = w.session();
    let named = |w: &World, text: &str| Publish {
        options: Some(Box::new(id("order-7"))),
        payload: text.as_bytes().into(),
        ..w.publish(s, "d.a")
    };
    let publish = named(&w, "x");
    let first = logging(&mut w, s, publish);
    let publish = named(&w, "x");
    let second = logging(&mut w, s, publish);
    let publish = named(&w, "y");
    assert_eq!(w.offer(s, publish).unwrap_err().code, Code::Conflict);
    assert_eq!(log.collect(&mut w), 1, "one record");
    log.serve(&mut w);
    let accepted = w.seen(s).accepted;
    let by = |ticket| {
        accepted
            .iter()
            .find(|(t, _)| *t == ticket)
            .unwrap()
            .1
            .clone()
    };
    assert_eq!(by(first), by(second));
    let publish = named(&w, "x");
    let third = done(w.offer(s, publish).unwrap());
    assert_eq!(
        (third.id, third.position),
        (by(first).id, by(first).position)
    );
    assert_eq!(third.level, Level::Disk);
    let publish = named(&w, "y");
    assert_eq!(w.offer(s, publish).unwrap_err().code, Code::Conflict);
    log.restart(&mut w);
    let s = w.session();
    let named = |w: &World, text: &str| Publish {
        options: Some(Box::new(id("order-7"))),
        payload: text.as_bytes().into(),
        ..w.publish(s, "d.a")
    };
    let publish = named(&w, "x");
    assert_eq!(
        done(w.offer(s, publish).unwrap()).id,
        by(first).id,
        "also in another life"
    );
    w.pass(10 * 60 * 1_000);
    // One reading of the clock alone makes no id old.
    durable(&mut w, s, "d.clock");
    durable(&mut w, s, "d.clock");
    log.serve(&mut w);
    let publish = named(&w, "y");
    logging(&mut w, s, publish);
    log.serve(&mut w);
}

// requirement: DEDUP-ONCE
#[test]
fn an_id_counts_in_its_topic_whoever_publishes() {
    let (mut w, mut log) = world();
    let named = |w: &World, s: SessionId, topic: &'static str, text: &str| Publish {
        options: Some(Box::new(id("order-7"))),
        payload: text.as_bytes().into(),
        ..w.publish(s, topic)
    };
    let s = w.session();
    for (topic, text) in [("d.a", "x"), ("d.b", "y"), ("d.c", "x")] {
        let publish = named(&w, s, topic, text);
        logging(&mut w, s, publish);
    }
    log.serve(&mut w);
    let accepted = w.seen(s).accepted;
    assert_eq!(accepted.len(), 3);
    log.restart(&mut w);
    let s = w.session();
    let publish = named(&w, s, "d.e", "z");
    logging(&mut w, s, publish);
    log.serve(&mut w);
    let other = w.session();
    for (at, (topic, text)) in [("d.a", "x"), ("d.b", "y"), ("d.c", "x")]
        .into_iter()
        .enumerate()
    {
        let publish = named(&w, other, topic, text);
        let second = done(w.offer(other, publish).unwrap());
        assert_eq!(second.id, accepted[at].1.id, "{topic}");
        let publish = named(&w, other, topic, "z");
        assert_eq!(w.offer(other, publish).unwrap_err().code, Code::Conflict);
    }
}

// requirement: DEDUP-ONCE
#[test]
fn those_who_waited_for_a_first_publish_are_refused_with_it() {
    let (mut w, mut log) = world();
    let s = w.session();
    for _ in 0..2 {
        let publish = Publish {
            options: Some(Box::new(id("x"))),
            ..w.publish(s, "d.a")
        };
        logging(&mut w, s, publish);
    }
    log.collect(&mut w);
    log.refuse(&mut w);
    assert_eq!(w.seen(s).refused.len(), 2);
    let publish = Publish {
        options: Some(Box::new(id("x"))),
        ..w.publish(s, "d.a")
    };
    logging(&mut w, s, publish);
    log.serve(&mut w);
    assert_eq!(w.seen(s).accepted.len(), 1);
}

// requirement: DUR-REFUSED
#[test]
fn a_log_that_is_full_loses_nothing_and_all_goes_on_when_it_takes_records_again() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.collect(&mut w);
    log.refuse(&mut w);
    w.pass(1_000);
    log.serve(&mut w);
    put(&mut w, s, "k", "1");
    put(&mut w, s, "k", "2");
    log.collect(&mut w);
    log.answer(&mut w, usize::MAX);
    log.collect(&mut w);
    log.refuse(&mut w);
    w.check();
    assert!(w.take(s, a).is_none(), "what is not noted is not begun");
    w.pass(1_000);
    let it = turn(&mut w, &mut log, s, a);
    assert_eq!((text(&it).as_str(), it.attempt), ("1", 1));
    w.end(s, a, &it);
    w.pass(50);
    for _ in 0..3 {
        log.collect(&mut w);
        log.refuse(&mut w);
        w.check();
        w.pass(1_000);
    }
    let mut left = run(&mut w, &mut log, s, a);
    left.dedup();
    assert_eq!(left, ["2"]);
    w.pass(1_000);
    log.serve(&mut w);
    log.restart(&mut w);
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    assert!(run(&mut w, &mut log, s, a).is_empty());
}

const WEEK_MS: u64 = 604_800_000;

/// What was told of groups that hold nothing any more: messages, in order.
fn ended(w: &mut World, s: SessionId, ear: Handle) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(told) = w.take(s, ear) {
        assert_eq!(&*told.envelope.topic, "loom.error.cursor_expired");
        let body: serde_json::Value = serde_json::from_slice(&told.envelope.payload).unwrap();
        assert!(body["hint"].is_string(), "it says the way out");
        let detail = body["message"].as_str().unwrap().to_owned();
        all.push(detail);
        w.end(s, ear, &told);
    }
    all
}

fn ear(w: &mut World, s: SessionId) -> Handle {
    let topics = ["loom.error.cursor_expired"];
    w.core.subscribe(s, &topics, Qos::Batched).unwrap()
}

/// What the keeper does at each look, and the log's answers.
fn look(w: &mut World, log: &mut Log) {
    w.core.stop_holding(1, w.at);
    log.serve(w);
}

/// The log deletes what stands before a position.
fn delete(w: &mut World, log: &mut Log, oldest: u64) {
    log.oldest = oldest;
    let files = ["{}".to_owned(), "{}".to_owned()];
    w.core.deleted(1, Some(oldest), &files, w.at);
}

fn places(w: &mut World, s: SessionId) -> Vec<u64> {
    let accepted = w.seen(s).accepted;
    accepted
        .iter()
        .map(|(_, receipt)| receipt.position.unwrap().n)
        .collect()
}

// requirement: DUR-NEEDS
#[test]
fn a_group_that_nobody_belongs_to_for_long_holds_nothing_any_more_and_is_told_so_when_it_is_back() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    w.core.remove(s, a, w.at).unwrap();
    put(&mut w, s, "k", "1");
    log.serve(&mut w);
    let n = places(&mut w, s)[0];
    let ear = ear(&mut w, s);
    for _ in 0..7 {
        assert!(w.core.needs(1).unwrap() <= n);
        w.pass(WEEK_MS / 7);
        // What is written every now and then makes it no younger.
        w.core.flush_acks();
        log.serve(&mut w);
        assert_eq!(ended(&mut w, s, ear), [""; 0]);
        w.pass(1);
        look(&mut w, &mut log);
    }
    assert_eq!(w.core.needs(1), None);
    assert_eq!(ended(&mut w, s, ear).len(), 1, "that is an event");
    look(&mut w, &mut log);
    assert_eq!(ended(&mut w, s, ear), [""; 0], "it is told once");
    // Also in another life.
    log.restart(&mut w);
    let s = w.session();
    let ear = self::ear(&mut w, s);
    let a = w.agent(s, "a", &["d.a"]);
    assert!(run(&mut w, &mut log, s, a).is_empty(), "it begins anew");
    let told = ended(&mut w, s, ear);
    assert_eq!(told.len(), 1, "its next member is told");
    assert!(told[0].contains("\"a\" was ended") && told[0].contains("begins anew"));
    put(&mut w, s, "k", "2");
    assert_eq!(run(&mut w, &mut log, s, a), ["2"]);
    w.core.remove(s, a, w.at).unwrap();
    w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    assert_eq!(ended(&mut w, s, ear), [""; 0], "and only that one");
}

// requirement: DUR-NEEDS
#[test]
fn a_group_that_comes_back_while_its_end_is_written_begins_anew() {
    let (mut w, mut log) = world();
    let s = w.session();
    let ear = ear(&mut w, s);
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    w.core.remove(s, a, w.at).unwrap();
    put(&mut w, s, "k", "1");
    log.serve(&mut w);
    w.pass(WEEK_MS + 1);
    w.core.stop_holding(1, w.at);
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    assert_eq!(ended(&mut w, s, ear).len(), 1);
    put(&mut w, s, "k", "2");
    assert_eq!(run(&mut w, &mut log, s, a), ["2"]);
    w.check();
}

// requirement: DUR-NEEDS
#[test]
fn a_group_is_idle_from_when_its_last_member_left_and_not_while_it_has_one() {
    let (mut w, mut log) = world();
    let s = w.session();
    let ear = ear(&mut w, s);
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    w.pass(2 * WEEK_MS);
    look(&mut w, &mut log);
    w.core.remove(s, a, w.at).unwrap();
    look(&mut w, &mut log);
    w.pass(WEEK_MS - 1);
    look(&mut w, &mut log);
    assert_eq!(ended(&mut w, s, ear), [""; 0]);
    assert!(w.core.needs(1).is_some());
    w.pass(1);
    look(&mut w, &mut log);
    assert_eq!(ended(&mut w, s, ear).len(), 1);
}

// requirement: DUR-NEEDS
#[test]
fn a_group_that_seldom_hears_anything_holds_little_of_what_is_not_for_it() {
    let (mut w, mut log) = world();
    let s = w.session();
    w.agent(s, "seldom", &["d.seldom"]);
    log.serve(&mut w);
    for at in 0..1_100 {
        put(&mut w, s, "k", &at.to_string());
        log.serve(&mut w);
    }
    let last = *places(&mut w, s).last().unwrap();
    look(&mut w, &mut log);
    assert_eq!(w.core.needs(1), Some(last + 1));
    let records = log.records.len();
    look(&mut w, &mut log);
    assert_eq!(log.records.len(), records, "what is quiet writes nothing");
}

// requirement: DUR-HOLD
#[test]
fn a_group_away_does_not_keep_a_log_that_is_too_large_and_is_told_when_it_is_back() {
    let (mut w, mut log) = world();
    let s = w.session();
    let ear = ear(&mut w, s);
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    w.core.remove(s, a, w.at).unwrap();
    for at in 0..9 {
        put(&mut w, s, "k", &at.to_string());
    }
    log.serve(&mut w);
    let at = places(&mut w, s);
    delete(&mut w, &mut log, at[2]);
    let told = ended(&mut w, s, ear);
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("over its limit of bytes"));
    assert_eq!(w.core.needs(1), Some(at[2]), "it holds what is still kept");
    delete(&mut w, &mut log, at[4]);
    assert_eq!(ended(&mut w, s, ear), [""; 0], "it is told once");
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    let kept = run(&mut w, &mut log, s, a);
    assert_eq!(kept, ["4", "5", "6", "7", "8"]);
    let told = ended(&mut w, s, ear);
    assert_eq!(told.len(), 1, "its next member is told");
    assert!(told[0].contains("not kept any more"));
    w.check();
}

// requirement: DUR-HOLD
#[test]
fn a_group_that_is_too_slow_for_the_log_is_told_and_ends_what_it_has() {
    let (mut w, mut log) = Log::world(small(2));
    let s = w.session();
    let ear = ear(&mut w, s);
    let a = w.agent_of(s, "a", &["d.a"], 1);
    log.serve(&mut w);
    for at in 0..9 {
        put(&mut w, s, "k", &at.to_string());
    }
    log.serve(&mut w);
    let at = places(&mut w, s);
    let first = turn(&mut w, &mut log, s, a);
    assert_eq!(
        w.core.in_turn(1),
        Some(at[0]),
        "an open turn needs its event"
    );
    delete(&mut w, &mut log, at[5]);
    assert_eq!(ended(&mut w, s, ear).len(), 1);
    w.end(s, a, &first);
    log.serve(&mut w);
    let rest = run(&mut w, &mut log, s, a);
    assert_eq!(
        rest,
        ["1", "2", "5", "6", "7", "8"],
        "what was queued, and what is kept"
    );
    assert_eq!(ended(&mut w, s, ear), [""; 0], "it is told once");
    assert_eq!(w.core.in_turn(1), None);
    w.check();
}

// requirement: DUR-HOLD
#[test]
fn dead_events_do_not_keep_a_log_that_is_too_large() {
    let (mut w, mut log) = world();
    let s = w.session();
    let ear = ear(&mut w, s);
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "bad");
    let it = turn(&mut w, &mut log, s, a);
    w.fail(s, &it, Code::InvalidParams).unwrap();
    log.serve(&mut w);
    w.core.flush_acks();
    log.serve(&mut w);
    let dead = w.core.dead("default")[0].clone();
    assert_eq!(w.core.needs(1), Some(dead.n));
    delete(&mut w, &mut log, dead.n + 1);
    let told = ended(&mut w, s, ear);
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("1 dead events of \"a\""));
    assert!(w.core.needs(1) > Some(dead.n));
    w.seen(s);
    w.core.redrive(s, (dead.consumer, dead.n), None).unwrap();
    log.serve(&mut w);
    assert_eq!(w.seen(s).refused[0].1.code, Code::CursorExpired);
}

// requirement: DUR-MEMORY
#[test]
fn without_a_data_directory_a_turn_need_not_wait_for_the_log() {
    let mut w = World::new();
    let mut log = Log {
        records: std::collections::BTreeMap::new(),
        next: 1,
        oldest: 0,
        epoch: 1,
        kept: false,
        waiting: Vec::new(),
    };
    let opened = Opened {
        partition: 1,
        epoch: 1,
        oldest: 0,
        kept: false,
        how: loom_core::Durability {
            filters: vec!["d.>".to_owned()],
            ..loom_core::Durability::default()
        },
    };
    let at = w.at;
    let folded = Partition::new(&Limits::default());
    w.core
        .open_partition("default", opened, folded, at)
        .unwrap();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    put(&mut w, s, "k", "1");
    log.collect(&mut w);
    log.answer(&mut w, usize::MAX);
    assert_eq!(w.seen(s).accepted[0].1.level, Level::Accepted);
    let it = w.take(s, a).unwrap();
    assert_eq!((text(&it).as_str(), it.attempt), ("1", 1));
    w.fail(s, &it, Code::HandlerError).unwrap();
    w.pass(1_000);
    assert_eq!(run(&mut w, &mut log, s, a), ["1"]);
}

/// A publish of so many bytes in a lane of its own.
fn sized<'a>(w: &World, s: SessionId, topic: &'a str, (key, bytes): (&str, usize)) -> Publish<'a> {
    Publish {
        payload: vec![b'x'; bytes].into(),
        ..keyed(w, s, topic, key, "")
    }
}

/// Payloads of 10 bytes are small, of 40 large, and turns hold 50.
fn tight() -> Limits {
    Limits {
        payload_bytes: 10,
        kept_payload_bytes: 40,
        held_payload_bytes: 50,
        queue_bytes: 40,
        ..Limits::default()
    }
}

// requirement: LARGE-EVENT
#[test]
fn a_durable_event_may_have_as_many_bytes_as_the_log_keeps_and_not_one_more() {
    let (mut w, mut log) = world();
    let s = w.session();
    let a = w.agent(s, "a", &["d.a", "q"]);
    log.serve(&mut w);
    let (small, large) = (1 << 20, 8 << 20);
    done(w.offer(s, sized(&w, s, "q", ("k", small))).unwrap());
    let refused = w.offer(s, sized(&w, s, "q", ("k", small + 1))).unwrap_err();
    assert_eq!(refused.limit, Some("payload_bytes"));
    assert!(refused.hint.unwrap().contains("durable"));
    for topic in ["d.a", "q"] {
        let publish = |bytes| Publish {
            ack: Some(Level::Os),
            ..sized(&w, s, topic, ("k", bytes))
        };
        let (fits, over) = (publish(large), publish(large + 1));
        logging(&mut w, s, fits);
        let refused = w.offer(s, over).unwrap_err();
        assert_eq!(refused.limit, Some("kept_payload_bytes"), "{topic}");
        assert_eq!(refused.code, Code::InvalidParams);
    }
    let sizes: Vec<usize> = run(&mut w, &mut log, s, a)
        .iter()
        .map(String::len)
        .collect();
    assert_eq!(sizes, [small, large, large]);
}

// requirement: LARGE-EVENT
#[test]
fn a_large_event_that_fails_is_given_again_and_from_the_dead_with_other_data_of_its_size() {
    let (mut w, mut log) = Log::world(tight());
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    let publish = sized(&w, s, "d.a", ("k", 40));
    logging(&mut w, s, publish);
    let first = turn(&mut w, &mut log, s, a);
    w.fail(s, &first, Code::HandlerError).unwrap();
    log.serve(&mut w);
    w.pass(2_000);
    let again = turn(&mut w, &mut log, s, a);
    assert_eq!((text(&again).len(), again.attempt), (40, 2));
    w.check();
    log.restart(&mut w);
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    let third = turn(&mut w, &mut log, s, a);
    assert_eq!((text(&third).len(), third.attempt), (40, 3));
    w.fail(s, &third, Code::InvalidParams).unwrap();
    log.serve(&mut w);
    let dead = w.core.dead("default")[0].clone();
    let which = (dead.consumer, dead.n);
    let data = |bytes: usize| Some(vec![b'y'; bytes].into_boxed_slice());
    let refused = w.core.redrive(s, which, data(41)).unwrap_err();
    assert_eq!(refused.limit, Some("kept_payload_bytes"));
    w.core.redrive(s, which, data(40)).unwrap();
    assert_eq!(run(&mut w, &mut log, s, a), ["y".repeat(40)]);
}

// requirement: LARGE-BOUNDED
#[test]
fn turns_of_an_agent_hold_so_many_bytes_of_large_events_and_further_ones_wait() {
    let (mut w, mut log) = Log::world(tight());
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    log.serve(&mut w);
    for (key, bytes) in [("a", 40), ("b", 40), ("c", 40), ("d", 1)] {
        let publish = sized(&w, s, "d.a", (key, bytes));
        logging(&mut w, s, publish);
    }
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(turn(&mut w, &mut log, s, a));
        w.check();
    }
    log.serve(&mut w);
    assert!(
        w.take(s, a).is_none(),
        "the third waits, and what is behind it"
    );
    for lost in [false, true] {
        let one = open.pop().unwrap();
        if lost {
            w.fail(s, &one, Code::HandlerError).unwrap();
        } else {
            assert!(w.end(s, a, &one).is_none(), "it is claimed through the log");
        }
        let next = turn(&mut w, &mut log, s, a);
        w.check();
        open.insert(0, next);
    }
    assert_eq!(open.len(), 2);
    log.restart(&mut w);
    let s = w.session();
    let a = w.agent(s, "a", &["d.a"]);
    w.pass(5_000);
    let mut all: Vec<usize> = run(&mut w, &mut log, s, a)
        .iter()
        .map(String::len)
        .collect();
    all.sort_unstable();
    assert!(all.ends_with(&[40, 40]), "{all:?}");
    w.check();
}

// requirement: LARGE-BOUNDED
#[test]
fn an_event_as_large_as_a_queue_waits_in_the_log_until_the_queue_is_empty() {
    let (mut w, mut log) = Log::world(tight());
    let s = w.session();
    let a = w.agent_of(s, "a", &["d.a"], 1);
    log.serve(&mut w);
    for (key, bytes) in [("a", 5), ("b", 5), ("c", 40), ("d", 40), ("e", 6)] {
        let publish = sized(&w, s, "d.a", (key, bytes));
        logging(&mut w, s, publish);
        log.serve(&mut w);
        let audit = w.core.audit();
        assert!(audit.subscriptions[0].walked_bytes <= 40, "{audit:#?}");
    }
    let all: Vec<usize> = run(&mut w, &mut log, s, a)
        .iter()
        .map(String::len)
        .collect();
    assert_eq!(all, [5, 5, 40, 40, 6]);
}
