//! Sessions that run their turns elsewhere: they are given more than they have ended, in order; and what a newer agent takes
//! from an older one.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::many_single_char_names,
    clippy::cognitive_complexity,
    reason = "a test says what it expects by failing"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::log::Log;
use common::{World, done};
use loom_core::{
    AgentSpec, Code, Delivery, EffectClass, Handle, Health, Limits, Offer, Options, ProviderSpec,
    Publish, Qos, Request, SessionId,
};
use proptest::prelude::*;

fn emit(w: &mut World, s: SessionId, key: &str) -> u128 {
    done(w.emit_key(s, "a", key, Qos::Batched).unwrap()).id
}

fn durable(w: &mut World, s: SessionId, key: &str) {
    let options = Options {
        key: Some(key.to_owned()),
        ..Options::default()
    };
    let publish = Publish {
        options: Some(Box::new(options)),
        ..w.publish(s, "d.a")
    };
    assert!(matches!(w.offer(s, publish), Ok(Offer::Logging(_))));
}

fn ids(taken: &[(Delivery, u32)]) -> Vec<u128> {
    taken.iter().map(|(it, _)| it.envelope.id).collect()
}

fn agent_as(w: &mut World, s: SessionId, name: &str, exclusive: bool) -> Handle {
    let spec = AgentSpec {
        name,
        filters: &["a", "d.a"],
        group: "",
        concurrency: 4,
        qos: Qos::Batched,
        info: b"{}",
        start: loom_core::Start::Now,
        max_deliver: 0,
        exclusive,
    };
    w.core.register(s, &spec, w.at).unwrap()
}

// requirement: AHEAD-ORDER
#[test]
fn events_of_one_lane_go_ahead_of_each_others_ends_in_their_order() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent_of(s, "a", &["a"], 1);
    let sent: Vec<u128> = ["k", "k", "l", "k"].map(|key| emit(&mut w, s, key)).into();
    let taken = w.take_all(s, a);
    let lanes: BTreeSet<u32> = taken.iter().map(|(_, lane)| *lane).collect();
    assert_eq!(
        lanes.len(),
        2,
        "the concurrency bounds what runs, and runs elsewhere"
    );
    let of_k: Vec<u128> = vec![sent[0], sent[1], sent[3]];
    let mine = |lane: u32| {
        let all = taken.iter().filter(|(_, it)| *it == lane);
        all.map(|(it, _)| it.envelope.id).collect::<Vec<_>>()
    };
    assert_eq!(mine(taken[0].1), of_k);
    for (turn, _) in &taken {
        w.close_turn(s, turn);
    }
    w.close_turn(s, &taken[0].0);
    assert_eq!(
        w.core.stats().events.delivered,
        4,
        "ended twice is ended once"
    );
    let foreign = w.session();
    let id = emit(&mut w, s, "k");
    let (turn, _) = w.take_ahead(s, a).unwrap();
    assert_eq!(turn.envelope.id, id);
    let lease = turn.lease.unwrap();
    assert_eq!(
        w.core.done(foreign, lease, w.at).unwrap_err().code,
        Code::Fenced
    );
    w.check();
}

// requirement: AHEAD-ORDER
#[test]
fn a_durable_event_is_out_alone_in_its_lane() {
    let (mut w, mut log) = Log::world(Limits::default());
    let s = w.session();
    let a = agent_as(&mut w, s, "a", false);
    log.serve(&mut w);
    emit(&mut w, s, "k");
    emit(&mut w, s, "k");
    durable(&mut w, s, "k");
    log.serve(&mut w);
    emit(&mut w, s, "k");
    durable(&mut w, s, "l");
    log.serve(&mut w);
    let taken = |w: &mut World, log: &mut Log| {
        let mut all = w.take_all(s, a);
        log.serve(w);
        all.extend(w.take_all(s, a));
        all
    };
    let first = taken(&mut w, &mut log);
    let durables = |all: &[(Delivery, u32)]| all.iter().filter(|(it, _)| it.durable).count();
    assert_eq!(
        (first.len(), durables(&first)),
        (3, 1),
        "that of k waits for those before it"
    );
    for (turn, _) in first.iter().filter(|(it, _)| !it.durable) {
        assert!(taken(&mut w, &mut log).is_empty());
        w.close_turn(s, turn);
    }
    let second = taken(&mut w, &mut log);
    assert_eq!(
        (second.len(), durables(&second)),
        (1, 1),
        "and what is behind it waits for it"
    );
    w.close_turn(s, &second[0].0);
    let third = taken(&mut w, &mut log);
    assert_eq!((third.len(), durables(&third)), (1, 0));
    w.check();
}

// requirement: AHEAD-BOUND
#[test]
fn what_is_out_is_bounded_and_announced_when_there_is_room() {
    let mut w = World::with(Limits {
        ahead_items: 2,
        ..Limits::default()
    });
    let s = w.session();
    let a = w.agent(s, "a", &["a"]);
    assert!(w.take_ahead(s, a).is_none(), "it is armed");
    for _ in 0..4 {
        emit(&mut w, s, "k");
    }
    assert_eq!(w.seen(s).ready, [a]);
    let taken = w.take_all(s, a);
    assert_eq!(taken.len(), 2);
    emit(&mut w, s, "l");
    assert!(w.seen(s).ready.is_empty(), "there is no room");
    w.close_turn(s, &taken[0].0);
    assert_eq!(w.seen(s).ready, [a]);
    assert_eq!(w.take_all(s, a).len(), 1);
    let row = &w.core.stats().subscriptions[0];
    assert_eq!((row.leased, row.queued), (2, 2));
    w.core.set_state(s, a, Health::Restarting, w.at).unwrap();
    w.fail(s, &taken[1].0, Code::HandlerError).unwrap();
    assert!(w.take_ahead(s, a).is_none());
    w.core.set_state(s, a, Health::Up, w.at).unwrap();
    assert_eq!(w.take_all(s, a).len(), 1);
    w.check();
}

// requirement: AHEAD-STUCK
#[test]
fn a_lane_that_is_stuck_leaves_room_for_the_others() {
    let mut w = World::with(Limits {
        ahead_items: 8,
        lane_ahead: 3,
        ..Limits::default()
    });
    let s = w.session();
    let a = w.agent(s, "a", &["a"]);
    for _ in 0..20 {
        emit(&mut w, s, "stuck");
    }
    w.seen(s);
    let stuck = w.take_all(s, a);
    assert_eq!(stuck.len(), 3);
    assert!(w.seen(s).ready.is_empty(), "nothing of the lane may go");
    let sent = emit(&mut w, s, "k");
    assert_eq!(w.seen(s).ready, [a]);
    let taken = w.take_all(s, a);
    assert_eq!(ids(&taken), [sent]);
    w.close_turn(s, &taken[0].0);
    w.close_turn(s, &stuck[0].0);
    assert_eq!(w.seen(s).ready, [a], "one of it has ended: the next may go");
    assert_eq!(w.take_all(s, a).len(), 1);
    w.check();
}

// requirement: AHEAD-LANE
#[test]
fn a_lane_stays_with_its_member_while_anything_of_it_is_out() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let member = |w: &mut World, s, name| {
        let spec = AgentSpec {
            group: "crew",
            name,
            filters: &["a"],
            concurrency: 2,
            qos: Qos::Batched,
            info: b"{}",
            start: loom_core::Start::Now,
            max_deliver: 0,
            exclusive: false,
        };
        w.core.register(s, &spec, w.at).unwrap()
    };
    let a = member(&mut w, s, "a");
    emit(&mut w, s, "k");
    let (first, lane) = w.take_ahead(s, a).unwrap();
    let b = member(&mut w, t, "b");
    for _ in 0..3 {
        emit(&mut w, s, "k");
    }
    let more = w.take_all(s, a);
    assert_eq!(more.len(), 3);
    assert!(
        more.iter().all(|(_, it)| *it == lane),
        "it keeps its number"
    );
    w.close_turn(s, &first);
    w.close_turn(s, &more[0].0);
    w.close_turn(s, &more[1].0);
    emit(&mut w, s, "k");
    assert!(w.take_ahead(t, b).is_none());
    w.core.close(s, w.at);
    assert_eq!(w.take_all(t, b).len(), 1, "what was queued is the other's");
    let stats = w.core.stats();
    assert_eq!(stats.events.dropped.session_gone, 1, "what was out is lost");
    w.check();
}

// requirement: AHEAD-LOST
#[test]
fn what_was_out_when_the_session_went_is_lost_and_counted_once() {
    let mut w = World::new();
    let (s, asker) = (w.session(), w.session());
    let a = w.agent(s, "a", &["a", "q"]);
    for _ in 0..3 {
        emit(&mut w, asker, "k");
    }
    let call = w.request(asker, "q").unwrap();
    let taken = w.take_all(s, a);
    assert_eq!(taken.len(), 4);
    w.close_turn(s, &taken[0].0);
    w.core.close(s, w.at);
    let outcomes = w.seen(asker).outcomes;
    assert_eq!(
        (outcomes.len(), outcomes[0].0),
        (1, call),
        "who asked is told"
    );
    let events = w.core.stats().events;
    assert_eq!((events.delivered, events.dropped.session_gone), (1, 3));
}

// requirement: AHEAD-ORDER
#[test]
fn a_stream_is_taken_ahead_in_order_and_ends_one_by_one() {
    let mut w = World::with(Limits {
        lane_ahead: 2, // which is of agents: all of a stream is one lane
        ..Limits::default()
    });
    let s = w.session();
    let stream = w.core.subscribe(s, &["a"], Qos::Batched).unwrap();
    let sent: Vec<u128> = ["k", "l", "m"].map(|key| emit(&mut w, s, key)).into();
    let taken = w.take_all(s, stream);
    assert_eq!(ids(&taken), sent);
    assert_eq!(w.core.stats().events.delivered, 0);
    for (turn, lane) in &taken {
        assert_eq!(*lane, taken[0].1);
        w.close_turn(s, turn);
    }
    assert_eq!(w.core.stats().events.delivered, 3);
    w.check();
}

// requirement: AHEAD-BOUND
#[test]
fn what_has_expired_is_not_handed_out() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["a"]);
    let options = |ttl_ms| Options {
        key: Some("k".to_owned()),
        ttl_ms,
        ..Options::default()
    };
    for ttl in [None, Some(10), None] {
        let publish = Publish {
            options: Some(Box::new(options(ttl))),
            ..w.publish(s, "a")
        };
        w.offer(s, publish).unwrap();
    }
    let first = w.take_ahead(s, a).unwrap();
    w.at.now = w.at.now.plus_millis(10);
    assert_eq!(w.take_all(s, a).len(), 1);
    w.close_turn(s, &first.0);
    assert_eq!(w.core.stats().events.expired, 1);
    w.check();
}

// requirement: AHEAD-ORDER
#[test]
fn a_lane_whose_first_event_has_expired_keeps_its_place_among_the_lanes() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["a"]);
    assert!(w.take_ahead(s, a).is_none());
    let put = |w: &mut World, key: &str, ttl_ms| {
        let options = Options {
            key: Some(key.to_owned()),
            ttl_ms,
            ..Options::default()
        };
        let publish = Publish {
            options: Some(Box::new(options)),
            ..w.publish(s, "a")
        };
        done(w.offer(s, publish).unwrap()).id
    };
    put(&mut w, "k", Some(10));
    let sent = [put(&mut w, "k", None), put(&mut w, "l", None)];
    w.at.now = w.at.now.plus_millis(10);
    assert_eq!(ids(&w.take_all(s, a)), sent);
}

// requirement: AHEAD-LANE
#[test]
fn a_request_into_a_lane_whose_turns_are_out_is_a_deadlock() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["a"]);
    emit(&mut w, s, "k");
    emit(&mut w, s, "k");
    let taken = w.take_all(s, a);
    for (turn, _) in &taken {
        let options = Options {
            key: Some("k".to_owned()),
            ..Options::default()
        };
        let request = Request {
            publish: Publish {
                turn: turn.lease,
                options: Some(Box::new(options)),
                ..w.publish(s, "a")
            },
            timeout_ms: 1_000,
            first_k: 1,
            wait: false,
        };
        assert_eq!(w.ask(s, request).unwrap_err().code, Code::Deadlock);
    }
}

// requirement: AHEAD-PROVIDER
#[test]
fn a_provider_is_given_as_much_as_it_serves_at_once() {
    let mut w = World::new();
    let (s, caller) = (w.session(), w.session());
    let spec = ProviderSpec {
        concurrency: 2,
        effect: EffectClass::Pure,
        ..common::spec("p")
    };
    let p = w.core.provide(s, &spec, w.at).unwrap();
    for _ in 0..3 {
        w.call(caller, "p").unwrap();
    }
    let taken = w.take_all(s, p);
    assert_eq!(taken.len(), 2);
    w.result(s, &taken[0].0, "1").unwrap();
    assert_eq!(w.take_all(s, p).len(), 1);
    w.close_turn(s, &taken[1].0);
    let outcomes = w.seen(caller).outcomes;
    assert_eq!(
        outcomes[1].1,
        Some(Code::CapabilityError),
        "it ended without a result"
    );
}

/// What was published and not handed out, by key.
type Waiting = BTreeMap<usize, VecDeque<u128>>;

#[derive(Debug, Clone)]
enum Step {
    Emit(usize, Option<u64>),
    Take,
    Done(usize),
    Fail(usize),
    Pass(u64),
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let ttl = prop_oneof![4 => Just(None), 1 => (1..30_u64).prop_map(Some)];
    prop_oneof![
        6 => (0..3_usize, ttl).prop_map(|(key, ttl)| Step::Emit(key, ttl)),
        5 => Just(Step::Take),
        3 => (0..8_usize).prop_map(Step::Done),
        1 => (0..8_usize).prop_map(Step::Fail),
        1 => (1..20_u64).prop_map(Step::Pass),
        1 => Just(Step::Close),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    // requirement: AHEAD-ORDER, AHEAD-BOUND, AHEAD-LOST
    #[test]
    fn each_event_is_given_once_in_its_lanes_order_whatever_ends_when(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut w = World::with(Limits { ahead_items: 4, queue_items: 8, ..Limits::default() });
        let speaker = w.session();
        let (mut s, mut a) = (speaker, Handle(0));
        let mut attached = false;
        let mut waiting = Waiting::new();
        let mut out: Vec<Delivery> = Vec::new();
        let mut lanes: BTreeMap<u32, (String, usize)> = BTreeMap::new();
        for step in steps {
            if !attached {
                s = w.session();
                a = w.agent_of(s, "a", &["a"], 2);
                attached = true;
            }
            match step {
                Step::Emit(key, ttl_ms) => {
                    let options = Options {
                        key: Some(key.to_string()),
                        ttl_ms,
                        ..Options::default()
                    };
                    let publish = Publish {
                        options: Some(Box::new(options)),
                        eager: true,
                        ..w.publish(speaker, "a")
                    };
                    if let Offer::Done(receipt) = w.offer(speaker, publish).unwrap() {
                        waiting.entry(key).or_default().push_back(receipt.id);
                    }
                }
                Step::Take => {
                    let Some((turn, lane)) = w.take_ahead(s, a) else {
                        continue;
                    };
                    let key = turn.envelope.lane().to_string();
                    let queue = waiting.get_mut(&key.parse().unwrap()).unwrap();
                    // Those that were over were passed by.
                    while let Some(id) = queue.pop_front() {
                        if id == turn.envelope.id { break; }
                        prop_assert!(!queue.is_empty(), "it was given before");
                    }
                    prop_assert!(turn.envelope.expires.is_none_or(|over| over > w.at.now));
                    let known = lanes.entry(lane).or_insert((key.clone(), 0));
                    known.1 += 1;
                    prop_assert_eq!(&known.0, &key, "a lane number is one lane's while it lives");
                    out.push(turn);
                    prop_assert!(out.len() <= 4);
                }
                Step::Done(at) | Step::Fail(at) if !out.is_empty() => {
                    let turn = out.remove(at % out.len());
                    if matches!(step, Step::Done(_)) {
                        w.close_turn(s, &turn);
                    } else {
                        w.fail(s, &turn, Code::HandlerError).unwrap();
                    }
                    let key = turn.envelope.lane().to_string();
                    let count = out.iter().filter(|it| it.envelope.lane().to_string() == key);
                    if count.count() == 0 {
                        lanes.retain(|_, (other, _)| *other != key);
                    }
                }
                Step::Pass(millis) => { w.pass(millis); }
                Step::Close => {
                    w.core.close(s, w.at);
                    attached = false;
                    out.clear();
                    waiting.clear();
                    lanes.clear();
                }
                Step::Done(_) | Step::Fail(_) => {}
            }
            let audit = w.core.audit();
            prop_assert!(audit.balanced, "{:?}", audit.subscriptions);
        }
    }
}

// requirement: FENCE-EXCLUSIVE
#[test]
fn a_newer_agent_fences_an_older_one_if_either_is_exclusive() {
    for (older, newer) in [(true, true), (true, false), (false, true)] {
        let (mut w, mut log) = Log::world(Limits::default());
        let (s, t) = (w.session(), w.session());
        let watch = w
            .core
            .subscribe(t, &["loom.error.fenced"], Qos::Batched)
            .unwrap();
        let a = agent_as(&mut w, s, "a", older);
        log.serve(&mut w);
        durable(&mut w, s, "k");
        for _ in 0..2 {
            emit(&mut w, s, "l");
        }
        log.serve(&mut w);
        let mut ahead = w.take_all(s, a);
        log.serve(&mut w);
        ahead.extend(w.take_all(s, a));
        let running = ahead.iter().find(|(it, _)| it.durable).unwrap().0.clone();
        emit(&mut w, s, "l");
        w.seen(s);
        let b = agent_as(&mut w, t, "a", newer);
        log.serve(&mut w);
        let removed = w.seen(s).removed;
        assert_eq!(removed.len(), 1);
        assert_eq!((removed[0].0, removed[0].1.code), (a, Code::Fenced));
        assert_eq!(w.run(t, watch), ["loom.error.fenced"]);
        let lease = running.lease.unwrap();
        assert_eq!(w.core.ack(s, lease, w.at).unwrap_err().code, Code::Fenced);
        assert_eq!(
            w.core.take(s, a, None, w.at).unwrap_err().code,
            Code::Fenced
        );
        let mut given = w.take_all(t, b);
        log.serve(&mut w);
        given.extend(w.take_all(t, b));
        let attempts: Vec<(bool, u32)> = given
            .iter()
            .map(|(it, _)| (it.durable, it.attempt))
            .collect();
        assert_eq!(
            attempts,
            [(false, 1), (true, 2)],
            "what was queued, and the turn anew"
        );
        assert_eq!(w.core.stats().events.dropped.session_gone, 2);
        w.check();
    }
}

// requirement: FENCE-EXCLUSIVE
#[test]
fn agents_that_are_not_exclusive_share_a_name_and_its_events() {
    let mut w = World::new();
    let (s, t, elsewhere) = (w.session(), w.session(), w.session_in("other"));
    let a = agent_as(&mut w, s, "a", false);
    agent_as(&mut w, elsewhere, "a", true);
    let b = agent_as(&mut w, t, "a", false);
    for key in ["k", "l"] {
        emit(&mut w, s, key);
    }
    assert_eq!((w.take_all(s, a).len(), w.take_all(t, b).len()), (1, 1));
    assert!(w.seen(s).removed.is_empty());
}
