//! What becomes of turns that clients had begun when the node went down.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

mod common;

use common::World;
use common::log::Log;
use loom_core::{
    AgentSpec, Attach, Code, Delivery, EffectClass, GrantTexts, Handle, Limits, Offer, Options,
    Partition, Publish, Qos, Record, SessionId,
};

fn attach(w: &mut World, client: u128) -> SessionId {
    w.attach(Attach {
        client,
        ..Attach::default()
    })
}

fn member(w: &mut World, s: SessionId, name: &str) -> Handle {
    let spec = AgentSpec {
        name,
        filters: &["d.a"],
        group: "crew",
        concurrency: 4,
        qos: Qos::Batched,
        info: b"{}",
        start: loom_core::Start::Now,
        max_deliver: 0,
        exclusive: false,
    };
    w.core.register(s, &spec, w.at).unwrap()
}

fn put(w: &mut World, s: SessionId, key: &str, text: &str) {
    let options = Options {
        key: Some(key.to_owned()),
        ..Options::default()
    };
    let publish = Publish {
        options: Some(Box::new(options)),
        payload: text.as_bytes().into(),
        ..w.publish(s, "d.a")
    };
    assert!(matches!(w.offer(s, publish), Ok(Offer::Logging(_))));
}

/// Takes all there is, with the log answering in between; ends none.
fn taken(w: &mut World, log: &mut Log, s: SessionId, handle: Handle) -> Vec<Delivery> {
    let mut all = Vec::new();
    for _ in 0..6 {
        log.serve(w);
        all.extend(w.take_all(s, handle).into_iter().map(|(turn, _)| turn));
    }
    all
}

fn texts(turns: &[Delivery]) -> Vec<(String, u32)> {
    let text = |turn: &Delivery| String::from_utf8_lossy(&turn.envelope.payload).into_owned();
    turns
        .iter()
        .map(|turn| (text(turn), turn.attempt))
        .collect()
}

fn all(wanted: &[(&str, u32)]) -> Vec<(String, u32)> {
    let wanted = wanted.iter();
    wanted
        .map(|(text, attempt)| ((*text).to_owned(), *attempt))
        .collect()
}

/// A node that went down while the client 7 had two turns, and a third event waited behind one of them.
fn down() -> (World, Log) {
    let (mut w, mut log) = Log::world(Limits::default());
    let s = attach(&mut w, 7);
    let a = member(&mut w, s, "a");
    log.serve(&mut w);
    put(&mut w, s, "k", "1");
    put(&mut w, s, "l", "2");
    put(&mut w, s, "k", "3");
    assert_eq!(
        texts(&taken(&mut w, &mut log, s, a)),
        all(&[("1", 1), ("2", 1)])
    );
    log.restart(&mut w);
    (w, log)
}

// requirement: GRACE-KEPT, GRACE-BACK
#[test]
fn a_client_that_comes_back_finds_its_turns_and_nobody_else_was_given_them() {
    let (mut w, mut log) = down();
    let other = attach(&mut w, 8);
    let b = member(&mut w, other, "a");
    assert!(
        taken(&mut w, &mut log, other, b).is_empty(),
        "they wait for their client"
    );
    put(&mut w, other, "m", "4");
    assert_eq!(
        texts(&taken(&mut w, &mut log, other, b)),
        all(&[("4", 1)]),
        "others do not"
    );
    w.pass(20_000);
    let s = attach(&mut w, 7);
    assert!(
        taken(&mut w, &mut log, other, b).is_empty(),
        "attached is not registered"
    );
    let a = member(&mut w, s, "a");
    let back = taken(&mut w, &mut log, s, a);
    assert_eq!(texts(&back), all(&[("1", 2), ("2", 2)]));
    assert!(taken(&mut w, &mut log, other, b).is_empty());
    w.close_turn(s, &back[0]);
    assert_eq!(
        texts(&taken(&mut w, &mut log, s, a)),
        all(&[("3", 1)]),
        "its lane goes on there"
    );
    w.check();
}

// requirement: GRACE-BACK
#[test]
fn a_client_that_is_back_before_the_log_was_read_is_given_its_turns_too() {
    let (mut w, mut log) = down();
    let (other, s) = (attach(&mut w, 8), attach(&mut w, 7));
    let (b, a) = (member(&mut w, other, "a"), member(&mut w, s, "a"));
    assert_eq!(
        texts(&taken(&mut w, &mut log, s, a)),
        all(&[("1", 2), ("2", 2)])
    );
    assert!(taken(&mut w, &mut log, other, b).is_empty());
    w.check();
}

// requirement: GRACE-OVER
#[test]
fn after_the_grace_its_turns_are_anybodys() {
    let (mut w, mut log) = down();
    let other = attach(&mut w, 8);
    let b = member(&mut w, other, "a");
    assert!(taken(&mut w, &mut log, other, b).is_empty());
    w.pass(59_999);
    assert!(taken(&mut w, &mut log, other, b).is_empty());
    assert!(w.core.alarm().is_some(), "the node wakes by itself");
    w.pass(1);
    let given = taken(&mut w, &mut log, other, b);
    assert_eq!(texts(&given), all(&[("1", 2), ("2", 2)]));
    let s = attach(&mut w, 7);
    let a = member(&mut w, s, "a");
    assert!(
        taken(&mut w, &mut log, s, a).is_empty(),
        "it comes too late"
    );
    w.close_turn(other, &given[0]);
    assert_eq!(texts(&taken(&mut w, &mut log, other, b)), all(&[("3", 1)]));
    w.check();
}

// requirement: GRACE-OVER
#[test]
fn a_grace_that_has_passed_while_nobody_was_there_is_over() {
    let (mut w, mut log) = down();
    w.pass(60_000);
    let other = attach(&mut w, 8);
    let b = member(&mut w, other, "a");
    assert_eq!(
        texts(&taken(&mut w, &mut log, other, b)),
        all(&[("1", 2), ("2", 2)])
    );
}

// requirement: GRACE-KEPT
#[test]
fn a_turn_that_was_taken_up_by_another_client_waits_for_that_one() {
    let (mut w, mut log) = down();
    w.pass(60_000);
    let other = attach(&mut w, 8);
    let b = member(&mut w, other, "a");
    assert_eq!(taken(&mut w, &mut log, other, b).len(), 2);
    log.restart(&mut w);
    let s = attach(&mut w, 7);
    let a = member(&mut w, s, "a");
    assert!(taken(&mut w, &mut log, s, a).is_empty());
    let other = attach(&mut w, 8);
    let b = member(&mut w, other, "a");
    assert_eq!(
        texts(&taken(&mut w, &mut log, other, b)),
        all(&[("1", 3), ("2", 3)])
    );
}

// requirement: GRACE-KEPT
#[test]
fn a_snapshot_knows_which_client_had_begun_a_turn() {
    let (w, log) = down();
    let folded = log.fold(w.core.limits());
    let again = Partition::restore(&folded.snapshot(), w.core.limits()).unwrap();
    assert_eq!(folded.hash(), again.hash());
    let begun: Vec<u128> = again
        .consumers()
        .next()
        .unwrap()
        .open
        .values()
        .map(|it| it.client)
        .collect();
    assert_eq!(begun, [7, 7]);
}

// requirement: GRACE-LOCAL
#[test]
fn what_no_client_had_begun_waits_for_nobody() {
    let (mut w, mut log) = Log::world(Limits::default());
    let s = w.session();
    let a = member(&mut w, s, "a");
    log.serve(&mut w);
    put(&mut w, s, "k", "1");
    assert_eq!(taken(&mut w, &mut log, s, a).len(), 1);
    let begun = log.records.values().find_map(|record| match record {
        Record::Started(it) => Some(it.clone()),
        _ => None,
    });
    assert!(
        begun.unwrap().client.is_empty(),
        "as versions before wrote it"
    );
    log.restart(&mut w);
    let other = attach(&mut w, 8);
    let b = member(&mut w, other, "a");
    assert_eq!(texts(&taken(&mut w, &mut log, other, b)), all(&[("1", 2)]));
}

// requirement: GRACE-OVER
#[test]
fn an_event_that_was_given_back_by_its_handler_waits_as_long_as_that_said() {
    let (mut w, mut log) = Log::world(Limits::default());
    let s = attach(&mut w, 7);
    let a = member(&mut w, s, "a");
    log.serve(&mut w);
    put(&mut w, s, "k", "1");
    let turn = taken(&mut w, &mut log, s, a).remove(0);
    w.core.nak(s, turn.lease.unwrap(), 5_000).unwrap();
    w.close_turn(s, &turn);
    log.serve(&mut w);
    log.restart(&mut w);
    let other = attach(&mut w, 8);
    let b = member(&mut w, other, "a");
    w.pass(4_999);
    assert!(taken(&mut w, &mut log, other, b).is_empty());
    w.pass(1);
    assert_eq!(texts(&taken(&mut w, &mut log, other, b)), all(&[("1", 2)]));
}

/// What a call of a name that nobody offers ends with: the code, and whether it says when to try again.
fn refused(w: &mut World, s: SessionId, name: &str) -> (Code, bool) {
    let error = w.call(s, name).unwrap_err();
    (error.code, error.retry_after_ms.is_some())
}

// requirement: CALL-NOT-BACK
#[test]
fn what_nobody_offers_after_a_restart_may_come_back_until_it_had_its_time() {
    let (unknown, away) = ((Code::NotFound, false), (Code::ProviderUnavailable, true));
    let (mut w, mut log) = Log::world(Limits::default());
    let s = attach(&mut w, 7);
    assert_eq!(refused(&mut w, s, "tool"), unknown, "in the first life");
    log.restart(&mut w);
    let (s, own) = (attach(&mut w, 7), w.session());
    assert_eq!(refused(&mut w, s, "tool"), away);
    assert_eq!(
        refused(&mut w, own, "tool"),
        unknown,
        "in one's own process"
    );
    assert_eq!(
        refused(&mut w, s, "loom.node.none"),
        unknown,
        "the node's own"
    );
    w.grant(s, &GrantTexts::default());
    assert_eq!(refused(&mut w, s, "tool"), away, "absent or not granted");
    w.provider(own, "tool", EffectClass::Pure);
    assert_eq!(refused(&mut w, s, "tool"), away, "there and not granted");
    w.pass(w.core.limits().resume_grace_ms - 1);
    assert_eq!(refused(&mut w, s, "tool"), away);
    w.pass(1);
    assert_eq!(refused(&mut w, s, "tool"), unknown);
}
