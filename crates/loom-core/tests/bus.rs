//! Events: matching, lanes, classes, losses, stamps.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::many_single_char_names,
    reason = "a test says what it expects by failing"
)]

mod common;

use common::{World, done, parked};
use loom_core::{
    AgentSpec, Code, Delivery, Handle, Health, Ident, Limits, Offer, Options, Publish, Qos,
    Request, SessionId,
};

fn small(items: usize) -> Limits {
    Limits {
        queue_items: items,
        ..Limits::default()
    }
}

// requirement: EVENT-ONCE
#[test]
fn an_event_that_two_filters_match_is_delivered_once() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["q.*", "q.>"]);
    assert_eq!(w.emit(s, "q.x").matched, 1);
    assert_eq!(w.run(s, a), ["q.x"]);
}

// requirement: EVENT-NAMESPACE
#[test]
fn namespaces_never_see_each_other() {
    let mut w = World::new();
    let s = w.session();
    let other = w.session_in("other");
    let a = w.agent(other, "a", &["q"]);
    assert_eq!(w.emit(s, "q").matched, 0);
    assert_eq!(w.run(other, a), Vec::<String>::new());
    assert_eq!(w.emit(other, "q").matched, 1);
}

// requirement: LANE-ORDER, LANE-PARALLEL, LANE-KEY
#[test]
fn one_lane_has_one_turn_at_a_time_and_lanes_run_side_by_side() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    for key in ["x", "x", "y"] {
        w.emit_key(s, "q", key, Qos::Batched).unwrap();
    }
    let first = w.take(s, a).unwrap();
    let second = w.take(s, a).unwrap();
    assert_eq!(first.envelope.key, Some(Ident::Name("x".into())));
    assert_eq!(second.envelope.key, Some(Ident::Name("y".into())));
    assert!(w.take(s, a).is_none());
    let third = w.end(s, a, &first).unwrap();
    assert_eq!(third.envelope.key, Some(Ident::Name("x".into())));
    assert!(third.envelope.id > first.envelope.id);
}

#[test]
fn an_agent_has_no_more_turns_than_its_concurrency() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent_of(s, "a", &["q"], 2);
    for _ in 0..3 {
        w.emit(s, "q");
    }
    let first = w.take(s, a).unwrap();
    assert!(w.take(s, a).is_some());
    assert!(w.take(s, a).is_none());
    w.seen(s);
    w.fail(s, &first, Code::HandlerError).unwrap();
    assert_eq!(
        w.seen(s).ready,
        [a],
        "a freed turn announces the work that waits"
    );
    assert!(w.take(s, a).is_some());
}

#[test]
fn readiness_is_announced_once_until_the_next_empty_take() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    w.emit(s, "q");
    w.emit(s, "q");
    assert_eq!(w.seen(s).ready, [a]);
    w.run(s, a);
    w.emit(s, "q");
    assert_eq!(w.seen(s).ready, [a]);
}

// requirement: LANE-GROUP
#[test]
fn members_of_a_group_share_events_and_a_key_stays_with_its_member() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let (a, b) = (w.agent(s, "a", &["q"]), w.agent(t, "a", &["q"]));
    w.emit_key(s, "q", "x", Qos::Batched).unwrap();
    let held = w.take(s, a).or_else(|| w.take(t, b)).unwrap();
    for _ in 0..4 {
        assert_eq!(
            done(w.emit_key(s, "q", "x", Qos::Batched).unwrap()).matched,
            1
        );
    }
    let stats = w.core.stats();
    let mut matched: Vec<u64> = stats.subscriptions.iter().map(|sub| sub.matched).collect();
    matched.sort_unstable();
    assert_eq!(matched, [0, 5]);
    let first_has_it = stats.subscriptions[0].matched == 5;
    let (owner, handle) = if first_has_it { (s, a) } else { (t, b) };
    let mut next = w.end(owner, handle, &held);
    while let Some(turn) = next {
        next = w.end(owner, handle, &turn);
    }
    for _ in 0..2 {
        w.emit_key(s, "q", "z", Qos::Batched).unwrap();
        w.run(s, a);
        w.run(t, b);
    }
    let stats = w.core.stats();
    assert!(
        stats.subscriptions.iter().all(|sub| sub.matched > 0),
        "a free key goes round"
    );
}

// requirement: EVENT-ORDER
#[test]
fn a_stream_gives_events_in_order_and_is_done_by_the_next_take() {
    let mut w = World::new();
    let s = w.session();
    let stream = w.core.subscribe(s, &["q.*"], Qos::Batched).unwrap();
    for topic in ["q.a", "q.b", "q.c"] {
        w.emit(s, topic);
    }
    for topic in ["q.a", "q.b", "q.c"] {
        assert_eq!(&*w.take(s, stream).unwrap().envelope.topic, topic);
    }
    assert!(w.take(s, stream).is_none());
    assert_eq!(w.core.gauges().leased, 0);
}

// requirement: QOS-REALTIME, LOSS-TOLD
#[test]
fn realtime_drops_the_oldest_and_counts_it() {
    let mut w = World::with(small(2));
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    let watch = w
        .core
        .subscribe(s, &["loom.dropped.>"], Qos::Realtime)
        .unwrap();
    let ids: Vec<u128> = (0..4)
        .map(|_| done(w.emit_key(s, "q", "k", Qos::Realtime).unwrap()).id)
        .collect();
    let first = w.take(s, a).unwrap();
    assert_eq!(first.envelope.id, ids[2]);
    assert_eq!(w.end(s, a, &first).unwrap().envelope.id, ids[3]);
    let stats = w.core.stats();
    assert_eq!(stats.subscriptions[0].dropped.overflow, 2);
    let said = w.take(s, watch).unwrap();
    assert_eq!(&*said.envelope.topic, "loom.dropped.overflow");
    assert!(
        w.take(s, watch).is_none(),
        "once a subscription, reason and second"
    );
}

// requirement: QOS-BACKGROUND
#[test]
fn background_is_refused_at_once_and_nothing_is_enqueued_anywhere() {
    let mut w = World::with(small(1));
    let s = w.session();
    w.agent(s, "a", &["q"]);
    w.emit(s, "q");
    w.agent(s, "b", &["q"]);
    let error = w.emit_key(s, "q", "k", Qos::Background).unwrap_err();
    assert_eq!(
        (error.code, error.limit),
        (Code::Exhausted, Some("queue_items"))
    );
    let stats = w.core.stats();
    assert_eq!(stats.subscriptions[1].matched, 0);
}

#[test]
fn batched_waits_for_room_and_is_accepted_when_there_is_some() {
    let mut w = World::with(small(1));
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    w.emit(s, "q");
    let publish = w.publish(s, "q");
    let ticket = parked(w.offer(s, publish).unwrap());
    let publish = w.publish(s, "q");
    let later = parked(w.offer(s, publish).unwrap());
    assert_eq!(w.core.gauges().parked, 2);
    let first = w.take(s, a).unwrap();
    let seen = w.seen(s);
    assert_eq!(
        seen.accepted.iter().map(|(t, _)| *t).collect::<Vec<_>>(),
        [ticket]
    );
    w.end(s, a, &first);
    assert_eq!(w.seen(s).accepted[0].0, later);
}

// requirement: QOS-BATCHED
#[test]
fn a_subscription_that_makes_no_room_in_time_lags_and_the_others_go_on() {
    let mut w = World::with(small(2));
    let s = w.session();
    let slow = w.agent(s, "slow", &["q"]);
    let quick = w.agent(s, "quick", &["q"]);
    for _ in 0..2 {
        w.emit(s, "q");
    }
    w.run(s, quick);
    let publish = w.publish(s, "q");
    parked(w.offer(s, publish).unwrap());
    assert!(w.take(s, quick).is_none(), "it is parked as a whole");
    w.pass(1_000);
    assert_eq!(w.seen(s).accepted.len(), 1);
    assert_eq!(w.run(s, quick).len(), 1);
    w.emit(s, "q");
    let stats = w.core.stats();
    assert_eq!(
        (
            stats.subscriptions[0].dropped.lagging,
            stats.subscriptions[0].lagging
        ),
        (2, true)
    );
    w.take(s, slow).unwrap();
    assert!(
        !w.core.stats().subscriptions[0].lagging,
        "half empty is caught up"
    );
    w.run(s, slow);
    w.run(s, quick);
    w.emit(s, "q");
    assert_eq!(w.run(s, slow).len(), 1);
}

// requirement: QOS-SELF
#[test]
fn a_turn_that_fills_the_queue_it_must_drain_is_told_at_once() {
    let mut w = World::with(small(1));
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    w.emit(s, "q");
    let turn = w.take(s, a).unwrap();
    let publish = |w: &World| Publish {
        sender: a,
        turn: turn.lease,
        ..w.publish(s, "q")
    };
    let first = publish(&w);
    done(w.offer(s, first).unwrap());
    let second = publish(&w);
    assert_eq!(w.offer(s, second).unwrap_err().code, Code::Exhausted);
}

#[test]
fn only_so_many_offers_of_a_session_wait() {
    let mut w = World::with(Limits {
        parked_offers: 1,
        ..small(1)
    });
    let s = w.session();
    w.agent(s, "a", &["q"]);
    w.emit(s, "q");
    let publish = w.publish(s, "q");
    parked(w.offer(s, publish).unwrap());
    let publish = w.publish(s, "q");
    let error = w.offer(s, publish).unwrap_err();
    assert_eq!(error.limit, Some("parked_offers"));
}

#[test]
fn an_offer_for_many_goes_when_the_last_of_them_has_room_and_keeps_its_place() {
    for a in 0..3 {
        for b in (0..3).filter(|b| *b != a) {
            goes_when_freed(a, b, 3 - a - b);
        }
    }
}

/// Three full agents take what they have in this order; behind the offer for all waits one for each of the first two.
fn goes_when_freed(first: usize, second: usize, third: usize) {
    let mut w = World::with(small(1));
    let s = w.session();
    let own = ["own.a", "own.b", "own.c"];
    let agents = own.map(|topic| w.agent(s, &topic[4..], &["all", topic]));
    w.emit(s, "all");
    let publish = w.publish(s, "all");
    let ticket = parked(w.offer(s, publish).unwrap());
    for freed in [first, second] {
        assert!(w.take(s, agents[freed]).is_some());
        let publish = w.publish(s, own[freed]);
        parked(w.offer(s, publish).unwrap());
        assert!(w.seen(s).accepted.is_empty(), "it waits for the others");
    }
    assert!(w.take(s, agents[third]).is_some());
    let accepted = w.seen(s).accepted;
    assert_eq!(accepted.len(), 1);
    assert_eq!(accepted[0].0, ticket);
    assert_eq!(w.run(s, agents[first]), ["all", own[first]]);
    assert_eq!(w.run(s, agents[second]), ["all", own[second]]);
    assert_eq!(w.run(s, agents[third]), ["all"]);
}

#[test]
fn offers_that_wait_go_on_when_who_blocked_them_is_removed() {
    let mut w = World::with(small(1));
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    w.emit(s, "q");
    let publish = w.publish(s, "q");
    let ticket = parked(w.offer(s, publish).unwrap());
    w.core.remove(s, a, w.at).unwrap();
    assert_eq!(w.seen(s).accepted[0].0, ticket);
}

// requirement: EVENT-TTL
#[test]
fn an_event_that_waited_too_long_expires_by_tick_and_by_take() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    let publish = |w: &World| Publish {
        options: Some(Box::new(Options {
            ttl_ms: Some(10),
            ..Options::default()
        })),
        ..w.publish(s, "q")
    };
    let first = publish(&w);
    w.offer(s, first).unwrap();
    w.pass(10);
    assert_eq!(w.core.stats().subscriptions[0].expired, 1);
    let second = publish(&w);
    w.offer(s, second).unwrap();
    w.at.now = w.at.now.plus_millis(10);
    assert!(w.take(s, a).is_none());
    assert_eq!(w.core.stats().subscriptions[0].expired, 2);
    assert_eq!(w.core.gauges().timers, 0);
}

// requirement: RUN-STAMPED, SENDER-STAMPED
#[test]
fn what_a_turn_sends_carries_its_thread_run_and_cause() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    let b = w.agent(s, "b", &["r"]);
    let root = w.emit(s, "q");
    let turn = w.take(s, a).unwrap();
    assert_eq!(turn.envelope.thread, Ident::Uuid(root.id));
    let publish = Publish {
        sender: a,
        turn: turn.lease,
        ..w.publish(s, "r")
    };
    w.offer(s, publish).unwrap();
    let next = w.take(s, b).unwrap().envelope;
    assert_eq!(
        (next.run, next.causation, next.hop),
        (root.id, Some(root.id), 1)
    );
    assert_eq!(next.thread, Ident::Uuid(root.id));
    assert_eq!(&*next.origin.sender, "default/a");
}

// requirement: EVENT-HOPS
#[test]
fn a_chain_ends_at_the_limit_of_hops() {
    let mut w = World::with(Limits {
        hops: 3,
        ..Limits::default()
    });
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    w.emit(s, "q");
    let mut turn = w.take(s, a).unwrap();
    loop {
        let publish = Publish {
            sender: a,
            turn: turn.lease,
            ..w.publish(s, "q")
        };
        if let Err(error) = w.offer(s, publish) {
            assert_eq!(
                (error.code, error.field.as_deref()),
                (Code::Exhausted, Some("hop"))
            );
            break;
        }
        turn = w.end(s, a, &turn).unwrap();
    }
    assert_eq!(turn.envelope.hop, 3);
}

// requirement: LEASE-FENCED
#[test]
fn handles_and_turns_of_others_are_fenced() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let a = w.agent(s, "a", &["q"]);
    w.emit(s, "q");
    let turn = w.take(s, a).unwrap();
    let foreign_sender = Publish {
        sender: a,
        ..w.publish(t, "q")
    };
    assert_eq!(w.offer(t, foreign_sender).unwrap_err().code, Code::Fenced);
    let foreign_turn = Publish {
        turn: turn.lease,
        ..w.publish(t, "q")
    };
    assert_eq!(w.offer(t, foreign_turn).unwrap_err().code, Code::Fenced);
    assert_eq!(
        w.core.take(t, a, None, w.at).unwrap_err().code,
        Code::Fenced
    );
    w.end(s, a, &turn);
    let dead_turn = Publish {
        turn: turn.lease,
        ..w.publish(s, "q")
    };
    assert_eq!(w.offer(s, dead_turn).unwrap_err().code, Code::Fenced);
}

// requirement: CAUSES-GIVEN
#[test]
fn a_cause_the_session_does_not_hold_is_refused() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    let id = w.emit(s, "q").id;
    let with = |w: &World, cause: String| Publish {
        options: Some(Box::new(Options {
            causes: vec![cause],
            ..Options::default()
        })),
        ..w.publish(s, "r")
    };
    let early = with(&w, loom_core::show_uuid(id));
    assert_eq!(
        w.offer(s, early).unwrap_err().field.as_deref(),
        Some("causes")
    );
    let turn = w.take(s, a).unwrap();
    let held = with(&w, loom_core::show_uuid(id));
    w.offer(s, held).unwrap();
    w.end(s, a, &turn);
}

// requirement: EVENT-RESERVED
#[test]
fn only_the_engine_publishes_its_own_topics() {
    let mut w = World::new();
    let s = w.session();
    let publish = w.publish(s, "loom.error.internal");
    assert_eq!(w.offer(s, publish).unwrap_err().code, Code::Denied);
}

#[test]
fn a_payload_over_the_limit_names_it() {
    let mut w = World::new();
    let s = w.session();
    let publish = Publish {
        payload: vec![0; (1 << 20) + 1].into(),
        ..w.publish(s, "q")
    };
    assert_eq!(
        w.offer(s, publish).unwrap_err().limit,
        Some("payload_bytes")
    );
}

// requirement: BAD-INPUT
#[test]
fn every_option_over_its_limit_names_its_field() {
    let mut w = World::new();
    let s = w.session();
    let plain = Options::default;
    let bad: [(&str, Options); 9] = [
        (
            "key",
            Options {
                key: Some(String::new()),
                ..plain()
            },
        ),
        (
            "key",
            Options {
                key: Some("k".repeat(257)),
                ..plain()
            },
        ),
        (
            "thread_id",
            Options {
                thread_id: Some("a b".to_owned()),
                ..plain()
            },
        ),
        (
            "ttl",
            Options {
                ttl_ms: Some(0),
                ..plain()
            },
        ),
        (
            "headers",
            Options {
                headers: vec![("a".into(), "b".into()); 33],
                ..plain()
            },
        ),
        (
            "headers",
            Options {
                headers: vec![("a".into(), "b".repeat(4_096))],
                ..plain()
            },
        ),
        (
            "labels",
            Options {
                labels: vec!["l".into(); 17],
                ..plain()
            },
        ),
        (
            "causes",
            Options {
                causes: vec!["x".into()],
                ..plain()
            },
        ),
        (
            "content_type",
            Options {
                content_type: Some(String::new()),
                ..plain()
            },
        ),
    ];
    for (field, options) in bad {
        let publish = Publish {
            options: Some(Box::new(options)),
            ..w.publish(s, "q")
        };
        let error = w.offer(s, publish).unwrap_err();
        assert_eq!(
            (error.code, error.field.as_deref()),
            (Code::InvalidParams, Some(field))
        );
    }
}

// requirement: DUPLICATE-AGENT
#[test]
fn a_second_agent_of_one_name_in_a_session_conflicts() {
    let mut w = World::new();
    let s = w.session();
    w.agent(s, "a", &["q"]);
    let spec = AgentSpec {
        name: "a",
        filters: &["q"],
        group: "",
        concurrency: 1,
        qos: Qos::Batched,
        info: b"{}",
        start: loom_core::Start::Now,
        max_deliver: 0,
        exclusive: false,
    };
    let error = w.core.register(s, &spec, w.at).unwrap_err();
    assert_eq!(
        (error.code, error.field.as_deref()),
        (Code::Conflict, Some("name"))
    );
}

#[test]
fn a_removed_agent_drops_what_waits_and_ends_what_runs() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    w.emit(s, "q");
    w.emit(s, "q");
    let turn = w.take(s, a).unwrap();
    w.core.remove(s, a, w.at).unwrap();
    assert_eq!(w.emit(s, "q").matched, 0);
    let publish = Publish {
        sender: a,
        turn: turn.lease,
        ..w.publish(s, "r")
    };
    w.offer(s, publish)
        .expect("a turn under way may still publish");
    assert!(w.end(s, a, &turn).is_none());
    assert_eq!(w.core.stats().events.dropped.unsubscribed, 1);
    assert_eq!(w.core.gauges().subscriptions, 0);
    assert!(w.core.take(s, a, turn.lease, w.at).unwrap().is_none());
}

#[test]
fn every_agent_hears_its_spawn_topic() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "team.a", &[]);
    w.emit(s, "spawn.team.a");
    assert_eq!(w.run(s, a), ["spawn.team.a"]);
}

// requirement: BOUNDED
#[test]
fn closing_a_session_leaves_nothing() {
    let mut w = World::with(small(4));
    let (s, t) = (w.session(), w.session());
    let a = w.agent(s, "a", &["q"]);
    for _ in 0..4 {
        w.emit(t, "q");
    }
    let publish = w.publish(t, "q");
    parked(w.offer(t, publish).unwrap());
    w.take(s, a).unwrap();
    w.core.close(s, w.at);
    assert_eq!(w.seen(t).accepted.len(), 1);
    let stats = w.core.stats();
    assert_eq!(stats.events.dropped.session_gone, 5);
    assert_eq!(
        (
            stats.gauges.subscriptions,
            stats.gauges.leased,
            stats.gauges.lanes
        ),
        (0, 0, 0)
    );
    assert_eq!(
        w.core.take(s, a, None, w.at).unwrap_err().code,
        Code::Fenced
    );
}

// requirement: ERRORS-PUBLISHED
#[test]
fn errors_are_published_once_and_an_error_about_an_error_is_counted_only() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    let b = w.agent(s, "b", &["loom.error.>"]);
    w.emit(s, "q");
    let turn = w.take(s, a).unwrap();
    w.fail(s, &turn, Code::HandlerError).unwrap();
    let error = w.take(s, b).unwrap();
    assert_eq!(&*error.envelope.topic, "loom.error.handler_error");
    let body: serde_json::Value = serde_json::from_slice(&error.envelope.payload).unwrap();
    assert_eq!(
        (&body["who"], &body["topic"]),
        (&"default/a".into(), &"q".into())
    );
    w.fail(s, &error, Code::HandlerError).unwrap();
    assert!(w.take(s, b).is_none());
    assert_eq!(w.core.stats().errors["HANDLER_ERROR"], 2);
}

// requirement: DIRECTORY-EVENTS, DIRECTORY-LIST
#[test]
fn the_directory_says_who_came_and_who_left() {
    let mut w = World::new();
    let s = w.session();
    let watch = w
        .core
        .subscribe(s, &["loom.directory.>"], Qos::Batched)
        .unwrap();
    let a = w.agent(s, "a", &["q"]);
    assert_eq!(
        w.core.directory("default", loom_core::DirectoryKind::Agent),
        [br#"{"health":"up","queued":0,"leased":0,"lagging":false,"delivered":0,"failed":0,"dropped":0}"#]
    );
    w.core.remove(s, a, w.at).unwrap();
    let topics = ["loom.directory.agent.joined", "loom.directory.agent.left"];
    for topic in topics {
        assert_eq!(&*w.take(s, watch).unwrap().envelope.topic, topic);
    }
    assert!(
        w.core
            .directory("default", loom_core::DirectoryKind::Agent)
            .is_empty()
    );
}

#[test]
fn a_removed_stream_leaves_nothing_though_its_event_was_not_done() {
    let mut w = World::new();
    let s = w.session();
    let stream = w.core.subscribe(s, &["q"], Qos::Batched).unwrap();
    w.emit(s, "q");
    w.take(s, stream).unwrap();
    w.core.remove(s, stream, w.at).unwrap();
    assert_eq!(
        (w.core.gauges().subscriptions, w.core.gauges().leased),
        (0, 0)
    );
}

// requirement: TOPIC-COST
#[test]
fn thousands_of_agents_register_and_an_event_finds_its_one() {
    let mut w = World::new();
    let s = w.session();
    for at in 0..20_000 {
        w.agent(s, &format!("agent{at}"), &[&format!("only.{at}.>")]);
    }
    assert_eq!(w.emit(s, "only.777.x").matched, 1);
}

fn directory_of(w: &World) -> String {
    let all = w.core.directory("default", loom_core::DirectoryKind::Agent);
    String::from_utf8(all.concat()).unwrap()
}

// requirement: HEALTH-RESTARTING
#[test]
fn an_agent_that_restarts_takes_nothing_and_finds_its_queue_when_it_is_up() {
    let mut w = World::with(small(2));
    let (s, t) = (w.session(), w.session());
    let a = w.agent(t, "a", &["q"]);
    w.core.set_state(t, a, Health::Restarting, w.at).unwrap();
    w.emit(s, "q");
    let call = w.request(s, "q").unwrap();
    assert!(w.seen(t).ready.is_empty() && w.take(t, a).is_none());
    let publish = w.publish(s, "q");
    parked(w.offer(s, publish).unwrap());
    assert!(directory_of(&w).contains("restarting"));
    w.core.set_state(t, a, Health::Up, w.at).unwrap();
    assert_eq!(w.seen(t).ready, [a], "it is told of what waits");
    let first = w.take(t, a).unwrap();
    let asked = w.end(t, a, &first).unwrap();
    assert!(w.reply(t, &asked, "yes").unwrap());
    assert_eq!(w.seen(s).answers[0].0, call);
    let waited = w.end(t, a, &asked).unwrap();
    w.end(t, a, &waited);
    assert_eq!(w.core.stats().subscriptions[0].delivered, 3);
}

// requirement: HEALTH-QUARANTINED
#[test]
fn a_quarantined_agent_hears_nothing_loses_its_queue_and_stays_in_the_directory() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    let changes = w
        .core
        .subscribe(s, &["loom.directory.agent.changed"], Qos::Batched)
        .unwrap();
    w.emit(s, "q");
    let running = w.take(s, a).unwrap();
    w.emit(s, "q");
    w.request(s, "q").unwrap();
    w.core.set_state(s, a, Health::Quarantined, w.at).unwrap();
    assert_eq!(w.outcome(s).0, Some(Code::Unavailable), "it declines");
    assert!(w.end(s, a, &running).is_none(), "turns under way may end");
    let row = &w.core.stats().subscriptions[0];
    assert_eq!((row.dropped.unsubscribed, row.queued), (2, 0));
    assert_eq!(w.emit(s, "q").matched, 0);
    assert_eq!(w.request(s, "q").unwrap_err().code, Code::Unavailable);
    assert!(directory_of(&w).contains(r#""health":"quarantined""#));
    let said = w.take(s, changes).unwrap();
    assert_eq!(&*said.envelope.payload, br#"{"health":"quarantined"}"#);
    w.core.set_state(s, a, Health::Up, w.at).unwrap();
    assert_eq!(w.emit(s, "q").matched, 1);
    assert_eq!(w.run(s, a), ["q"]);
    w.end(s, changes, &said);
}

// requirement: HEALTH-QUARANTINED
#[test]
fn the_other_members_of_a_group_get_what_a_quarantined_one_does_not_hear() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let (a, b) = (w.agent(s, "a", &["q"]), w.agent(t, "a", &["q"]));
    w.core.set_state(s, a, Health::Quarantined, w.at).unwrap();
    for _ in 0..3 {
        assert_eq!(w.emit(s, "q").matched, 1);
    }
    assert_eq!(w.run(t, b).len(), 3);
    w.core.remove(s, a, w.at).unwrap();
    assert_eq!(w.emit(s, "q").matched, 1);
    w.run(t, b);
}

#[test]
fn a_request_that_waits_for_a_hearer_finds_one_that_comes_back() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    w.core.set_state(s, a, Health::Quarantined, w.at).unwrap();
    let publish = w.publish(s, "q");
    let request = Request {
        publish,
        timeout_ms: 1_000,
        first_k: 1,
        wait: true,
    };
    w.ask(s, request).unwrap();
    w.core.set_state(s, a, Health::Up, w.at).unwrap();
    let asked = w.take(s, a).unwrap();
    assert!(w.reply(s, &asked, "yes").unwrap());
    w.end(s, a, &asked);
}

#[test]
fn a_state_is_set_by_its_own_session_and_for_an_agent_only() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let a = w.agent(s, "a", &["q"]);
    let stream = w.core.subscribe(s, &["q"], Qos::Batched).unwrap();
    let set = |w: &mut World, by, handle| {
        let set = w.core.set_state(by, handle, Health::Restarting, w.at);
        set.unwrap_err().code
    };
    assert_eq!(set(&mut w, t, a), Code::Fenced);
    assert_eq!(set(&mut w, s, stream), Code::InvalidParams);
    let root = w.root(s);
    assert_eq!(set(&mut w, s, root), Code::InvalidParams);
    assert_eq!(
        Health::from_number(3).unwrap_err().field,
        Some("state".into())
    );
}

// requirement: QOS-LOWERED
#[test]
fn an_agent_that_takes_its_events_as_realtime_never_holds_up_a_sender() {
    let mut w = World::with(small(2));
    let s = w.session();
    let spec = AgentSpec {
        name: "dashboard",
        filters: &["q"],
        group: "",
        concurrency: 1,
        qos: Qos::Realtime,
        info: b"{}",
        start: loom_core::Start::Now,
        max_deliver: 0,
        exclusive: false,
    };
    let a = w.core.register(s, &spec, w.at).unwrap();
    let ids: Vec<u128> = (0..4)
        .map(|_| done(w.emit_key(s, "q", "k", Qos::Batched).unwrap()).id)
        .collect();
    let first = w.take(s, a).unwrap();
    assert_eq!(first.envelope.id, ids[2], "the newest win");
    w.end(s, a, &first);
    assert_eq!(w.core.stats().subscriptions[0].dropped.overflow, 2);
    done(w.emit_key(s, "q", "k", Qos::Background).unwrap());
    w.run(s, a);
}

/// How a subscription stands when an event comes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Standing {
    Room,
    /// Half full: enough for background.
    Half,
    Full,
    Lagging,
    /// Full, and it is the turn of this agent that publishes.
    Own,
    /// There is room, but a larger offer waits before it.
    ParkedBefore,
    /// It takes every event as realtime, and is full.
    Lowered,
}

/// What becomes of an event.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Taken,
    /// Taken; the oldest realtime event went, or it went itself where there was none.
    Overflow,
    Waits,
    Lagging,
    Refused,
}

/// A world in which agent `a` of the second session stands so; the turn it has under way, if it has one.
fn stand(standing: Standing) -> (World, [SessionId; 2], Handle, Option<Delivery>) {
    let mut w = World::with(Limits {
        queue_bytes: 100,
        ..small(4)
    });
    let (s, t) = (w.session(), w.session());
    let lowered = standing == Standing::Lowered;
    let spec = AgentSpec {
        name: "a",
        filters: &["q"],
        group: "",
        concurrency: 1,
        qos: if lowered { Qos::Realtime } else { Qos::Batched },
        info: b"{}",
        start: loom_core::Start::Now,
        max_deliver: 0,
        exclusive: false,
    };
    let a = w.core.register(t, &spec, w.at).unwrap();
    let (queued, filler) = match standing {
        Standing::Room => (1, Qos::Batched),
        Standing::Half => (2, Qos::Batched),
        Standing::Full | Standing::Lowered => (4, Qos::Realtime),
        Standing::Lagging | Standing::Own => (4, Qos::Batched),
        Standing::ParkedBefore => (0, Qos::Batched),
    };
    let mut turn = None;
    if standing == Standing::Own {
        w.emit(s, "q");
        turn = w.take(t, a);
    }
    for _ in 0..queued {
        done(w.emit_key(s, "q", "k", filler).unwrap());
    }
    let sized = |w: &mut World, bytes: usize| {
        let payload = vec![b'1'; bytes].into();
        let publish = Publish {
            payload,
            ..w.publish(s, "q")
        };
        w.offer(s, publish).unwrap()
    };
    if standing == Standing::ParkedBefore {
        done(sized(&mut w, 40));
        parked(sized(&mut w, 90));
    }
    if standing == Standing::Lagging {
        parked(sized(&mut w, 2));
        w.pass(1_000);
        assert!(w.core.stats().subscriptions[0].lagging);
    }
    (w, [s, t], a, turn)
}

/// What becomes of one event of this class.
fn fate(qos: Qos, standing: Standing) -> Fate {
    let (mut w, [s, t], a, turn) = stand(standing);
    let lost = |w: &World| w.core.stats().subscriptions[0].dropped;
    let before = lost(&w);
    let publish = Publish {
        turn: turn.as_ref().and_then(|turn| turn.lease),
        qos,
        ..w.publish(s, "q")
    };
    let offer = if turn.is_some() {
        w.offer(
            t,
            Publish {
                sender: a,
                ..publish
            },
        )
    } else {
        w.offer(s, publish)
    };
    w.check();
    match offer {
        Ok(Offer::Done(_)) if lost(&w).overflow > before.overflow => Fate::Overflow,
        Ok(Offer::Done(_)) if lost(&w).lagging > before.lagging => Fate::Lagging,
        Ok(Offer::Done(_)) => Fate::Taken,
        Ok(_) => Fate::Waits,
        Err(error) => {
            let told = (error.code, error.limit, error.retry_after_ms.is_some());
            assert_eq!(told, (Code::Exhausted, Some("queue_items"), true));
            Fate::Refused
        }
    }
}

// requirement: QOS-MATRIX, QOS-REALTIME, QOS-BATCHED, QOS-BACKGROUND, QOS-SELF, QOS-LOWERED
#[test]
fn what_becomes_of_an_event_follows_from_its_class_and_how_the_subscription_stands() {
    let expected = [
        (Standing::Room, [Fate::Taken, Fate::Taken, Fate::Taken]),
        (Standing::Half, [Fate::Taken, Fate::Taken, Fate::Refused]),
        (Standing::Full, [Fate::Overflow, Fate::Waits, Fate::Refused]),
        (
            Standing::Lagging,
            [Fate::Overflow, Fate::Lagging, Fate::Refused],
        ),
        (
            Standing::Own,
            [Fate::Overflow, Fate::Refused, Fate::Refused],
        ),
        (
            Standing::ParkedBefore,
            [Fate::Taken, Fate::Waits, Fate::Refused],
        ),
        (Standing::Lowered, [Fate::Overflow; 3]),
    ];
    for (standing, fates) in expected {
        assert_eq!(
            Qos::ALL.map(|qos| fate(qos, standing)),
            fates,
            "{standing:?}"
        );
    }
}

// requirement: SHED-ORDER
#[test]
fn under_load_background_is_shed_before_batched_and_batched_before_realtime() {
    let mut w = World::with(small(8));
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    let mut refused = Vec::new();
    for n in 0..24 {
        let qos = Qos::ALL[n % 3];
        match w.emit_key(s, "q", "k", qos) {
            Ok(Offer::Done(_)) => {}
            Ok(_) => refused.push(("batched waits", w.core.stats().subscriptions[0].queued)),
            Err(_) => refused.push(("background", w.core.stats().subscriptions[0].queued)),
        }
    }
    assert_eq!(refused[0], ("background", 5), "when half is full");
    let batched = refused.iter().find(|(what, _)| *what == "batched waits");
    assert_eq!(batched, Some(&("batched waits", 8)), "when all is full");
    let realtime = w.core.stats().by_qos["realtime"];
    assert_eq!(realtime.matched, 8, "realtime is always taken");
    w.run(s, a);
}

fn taken(offer: loom_core::Result<Offer>) -> u128 {
    match offer {
        Ok(Offer::Done(receipt)) => receipt.id,
        other => panic!("it was not taken: {other:?}"),
    }
}

// requirement: SHED-ORDER
#[test]
fn a_queue_full_of_batched_events_keeps_the_newest_realtime_ones_in_its_reserve() {
    let mut w = World::with(small(16));
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    for _ in 0..16 {
        assert!(matches!(
            w.emit_key(s, "q", "k", Qos::Batched),
            Ok(Offer::Done(_))
        ));
    }
    let sent: Vec<u128> = (0..5)
        .map(|_| taken(w.emit_key(s, "q", "k", Qos::Realtime)))
        .collect();
    let stats = w.core.stats();
    assert_eq!(stats.subscriptions[0].queued, 18, "an eighth more");
    assert_eq!(stats.by_qos["realtime"].dropped.overflow, 3);
    assert!(!matches!(
        w.emit_key(s, "q", "k", Qos::Batched),
        Ok(Offer::Done(_))
    ));
    let kept = w.run_ids(s, a);
    assert_eq!(kept[16..18], sent[3..]);
    assert_eq!(kept.len(), 19, "the batched one that waited came last");
}

// requirement: QOS-BACKGROUND
#[test]
fn background_fills_half_of_the_bytes_of_a_queue() {
    let mut w = World::with(Limits {
        queue_bytes: 100,
        ..Limits::default()
    });
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    let send = |w: &mut World, bytes: usize, qos| {
        let publish = Publish {
            payload: vec![b'1'; bytes].into(),
            qos,
            ..w.publish(s, "q")
        };
        w.offer(s, publish).is_ok()
    };
    assert!(send(&mut w, 30, Qos::Background) && send(&mut w, 20, Qos::Background));
    assert!(!send(&mut w, 1, Qos::Background));
    assert!(send(&mut w, 50, Qos::Batched));
    w.run(s, a);
    assert!(
        send(&mut w, 60, Qos::Background),
        "an empty queue takes one of any size"
    );
    w.run(s, a);
}

// requirement: FANOUT-BOUNDED
#[test]
fn an_event_for_too_many_is_refused_and_nobody_gets_it() {
    let mut w = World::with(Limits {
        fanout: 3,
        ..Limits::default()
    });
    let s = w.session();
    let agents: Vec<Handle> = (0..4)
        .map(|n| w.agent(s, &format!("a{n}"), &["q.>", "loom.log.>"]))
        .collect();
    let publish = w.publish(s, "q.x");
    let error = w.offer(s, publish).unwrap_err();
    let told = (error.code, error.limit, error.field.as_deref());
    assert_eq!(told, (Code::Exhausted, Some("fanout"), Some("topic")));
    assert_eq!(w.request(s, "q.x").unwrap_err().limit, Some("fanout"));
    let line = loom_core::LogLine {
        sender: w.root(s),
        turn: None,
        level: "info",
        payload: b"{}",
    };
    w.core.log(s, &line, w.at).unwrap();
    assert_eq!(
        w.core.stats().errors["EXHAUSTED"],
        1,
        "the engine's own is counted"
    );
    assert_eq!(w.core.stats().events.matched, 0);
    w.core.remove(s, agents[0], w.at).unwrap();
    assert_eq!(w.emit(s, "q.x").matched, 3);
    agents
        .iter()
        .skip(1)
        .for_each(|agent| drop(w.run(s, *agent)));
}

/// A turn of the first event of a new run, in agent `a`.
fn root_turn(w: &mut World, s: SessionId, a: Handle) -> Delivery {
    w.emit(s, "root");
    w.take(s, a).unwrap()
}

fn emit_in(w: &mut World, s: SessionId, turn: &Delivery) -> Result<Offer, loom_core::Error> {
    let publish = Publish {
        turn: turn.lease,
        ..w.publish(s, "unheard")
    };
    w.offer(s, publish)
}

// requirement: RUN-BOUNDED
#[test]
fn what_follows_from_one_root_is_bounded_within_a_window_and_other_runs_go_on() {
    let mut w = World::with(Limits {
        run_events: 10,
        ..Limits::default()
    });
    let s = w.session();
    let a = w.agent(s, "a", &["root"]);
    let (one, two) = (root_turn(&mut w, s, a), root_turn(&mut w, s, a));
    for _ in 0..6 {
        emit_in(&mut w, s, &one).unwrap();
    }
    w.pass(31_000);
    for _ in 0..4 {
        emit_in(&mut w, s, &one).unwrap();
    }
    let error = emit_in(&mut w, s, &one).unwrap_err();
    let told = (error.code, error.limit, error.field.as_deref());
    assert_eq!(told, (Code::Exhausted, Some("run_events"), Some("run_id")));
    emit_in(&mut w, s, &two).unwrap();
    w.emit(s, "unheard");
    w.pass(31_000);
    for _ in 0..6 {
        emit_in(&mut w, s, &one).unwrap();
    }
    assert!(
        emit_in(&mut w, s, &one).is_err(),
        "half of the window is over"
    );
    w.pass(61_000);
    for _ in 0..10 {
        emit_in(&mut w, s, &one).unwrap();
    }
    w.end(s, a, &one);
    w.end(s, a, &two);
}

// requirement: RUN-BOUNDED
#[test]
fn two_agents_that_answer_each_other_in_many_branches_are_stopped() {
    let mut w = World::with(Limits {
        run_events: 200,
        queue_items: 1_000,
        ..Limits::default()
    });
    let s = w.session();
    let (a, b) = (w.agent(s, "a", &["ping"]), w.agent(s, "b", &["pong"]));
    w.emit(s, "ping");
    let (mut published, mut refused) = (0, 0);
    loop {
        let turn = w.take(s, a).map(|turn| (a, turn));
        let Some((agent, turn)) = turn.or_else(|| w.take(s, b).map(|turn| (b, turn))) else {
            break;
        };
        for _ in 0..4 {
            let publish = Publish {
                turn: turn.lease,
                ..w.publish(s, if agent == a { "pong" } else { "ping" })
            };
            match w.offer(s, publish) {
                Ok(_) => published += 1,
                Err(error) => {
                    assert_eq!(error.code, Code::Exhausted);
                    refused += 1;
                }
            }
        }
        if let Some(next) = w.end(s, agent, &turn) {
            // Its own end is enough: it is given back to the loop as a turn that ends at once.
            w.fail(s, &next, Code::HandlerError).unwrap();
        }
    }
    assert_eq!(published, 200);
    assert!(refused > 0);
}

// requirement: RUN-BOUNDED, BOUNDED
#[test]
fn runs_that_are_idle_are_forgotten_first() {
    let mut w = World::with(Limits {
        run_events: 4,
        runs: 8,
        ..Limits::default()
    });
    let s = w.session();
    let a = w.agent(s, "a", &["root"]);
    let busy = root_turn(&mut w, s, a);
    for n in 0..4 {
        emit_in(&mut w, s, &busy).unwrap();
        let other = root_turn(&mut w, s, a);
        emit_in(&mut w, s, &other).unwrap();
        w.end(s, a, &other);
        assert!(n < 4);
    }
    assert!(
        emit_in(&mut w, s, &busy).is_err(),
        "who goes on is not forgotten"
    );
    for _ in 0..8 {
        let other = root_turn(&mut w, s, a);
        emit_in(&mut w, s, &other).unwrap();
        w.end(s, a, &other);
    }
    emit_in(&mut w, s, &busy).unwrap();
    w.end(s, a, &busy);
}
