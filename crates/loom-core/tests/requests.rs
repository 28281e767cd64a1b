//! Requests: answers, declines, deadlines, and waits that would never end.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::many_single_char_names,
    reason = "a test says what it expects by failing"
)]

mod common;

use common::{World, parked};
use loom_core::{Code, EffectClass, Limits, Options, Publish, Qos, Request};

#[test]
fn a_request_ends_with_the_first_reply() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let a = w.agent(s, "a", &["q"]);
    let call = w.request(t, "q").unwrap();
    let turn = w.take(s, a).unwrap();
    assert!(turn.asked);
    assert!(w.reply(s, &turn, "yes").unwrap());
    let seen = w.seen(t);
    assert_eq!(seen.outcomes[0].0, call);
    assert_eq!((seen.outcomes.len(), seen.outcomes[0].1), (1, None));
    let answer = &seen.answers[0].1.envelope;
    assert_eq!(
        (&*answer.payload, answer.causation),
        (b"yes".as_slice(), Some(turn.envelope.id))
    );
    assert_eq!(&*answer.origin.sender, "default/a");
    assert_eq!(answer.correlation, Some(turn.envelope.id));
    w.end(s, a, &turn);
    assert!(w.seen(t).outcomes.is_empty());
}

// requirement: REQUEST-UNHEARD
#[test]
fn a_request_nobody_hears_is_refused_at_once() {
    let mut w = World::new();
    let s = w.session();
    w.core.subscribe(s, &[">"], Qos::Realtime).unwrap();
    let error = w.request(s, "q").unwrap_err();
    assert_eq!(
        error.code,
        Code::Unavailable,
        "who only watches does not hear"
    );
    assert_eq!(w.core.stats().errors["UNAVAILABLE"], 1);
}

#[test]
fn a_request_that_waits_is_asked_of_the_first_who_hears_it() {
    let mut w = World::new();
    let s = w.session();
    let ask = |w: &World| Request {
        publish: w.publish(s, "q"),
        timeout_ms: 1_000,
        first_k: 1,
        wait: true,
    };
    let (first, second) = (ask(&w), ask(&w));
    w.ask(s, first).unwrap();
    w.ask(s, second).unwrap();
    w.agent(s, "other", &["r"]);
    let a = w.agent(s, "a", &["q"]);
    let turn = w.take(s, a).unwrap();
    w.reply(s, &turn, "yes").unwrap();
    assert_eq!(w.seen(s).answers.len(), 1);
    w.pass(1_000);
    assert_eq!(w.outcome(s).0, Some(Code::Timeout));
}

#[test]
fn a_request_that_waits_in_vain_ends_by_its_deadline() {
    let mut w = World::new();
    let s = w.session();
    let request = Request {
        publish: w.publish(s, "q"),
        timeout_ms: 10,
        first_k: 1,
        wait: true,
    };
    w.ask(s, request).unwrap();
    w.pass(10);
    assert_eq!(w.outcome(s).0, Some(Code::Timeout));
}

// requirement: REQUEST-DECLINED
#[test]
fn a_request_ends_when_all_have_declined() {
    let mut w = World::new();
    let s = w.session();
    let (a, b) = (w.agent(s, "a", &["q"]), w.agent(s, "b", &["q"]));
    w.request(s, "q").unwrap();
    let (one, two) = (w.take(s, a).unwrap(), w.take(s, b).unwrap());
    w.end(s, a, &one);
    assert!(w.seen(s).outcomes.is_empty());
    w.end(s, b, &two);
    let (code, body) = w.outcome(s);
    assert_eq!(
        (code, &body["declined"]),
        (Some(Code::Unavailable), &2.into())
    );
}

#[test]
fn a_request_whose_receivers_failed_ends_with_the_first_failure() {
    let mut w = World::new();
    let s = w.session();
    let (a, b) = (w.agent(s, "a", &["q"]), w.agent(s, "b", &["q"]));
    w.request(s, "q").unwrap();
    let (one, two) = (w.take(s, a).unwrap(), w.take(s, b).unwrap());
    w.end(s, a, &one);
    assert!(w.fail(s, &two, Code::HandlerError).unwrap());
    let (code, body) = w.outcome(s);
    assert_eq!(code, Some(Code::HandlerError));
    assert_eq!(
        (&body["who"], &body["message"]),
        (&"default/b".into(), &"it broke".into())
    );
    assert_eq!(body["failures"][0]["code"], "HANDLER_ERROR");
    assert_eq!(
        w.core.stats().errors["HANDLER_ERROR"],
        1,
        "it is published where it arose, and once"
    );
}

// requirement: REQUEST-MANY
#[test]
fn a_request_of_many_gives_each_reply_and_then_its_outcome() {
    let mut w = World::new();
    let s = w.session();
    let handles = ["a", "b", "c"].map(|name| w.agent(s, name, &["q"]));
    let ask = |w: &World, first_k| Request {
        publish: w.publish(s, "q"),
        timeout_ms: 1_000,
        first_k,
        wait: false,
    };
    let all = ask(&w, 0);
    w.ask(s, all).unwrap();
    for handle in handles {
        let turn = w.take(s, handle).unwrap();
        if handle == handles[2] {
            w.fail(s, &turn, Code::HandlerError).unwrap();
        } else {
            w.reply(s, &turn, "yes").unwrap();
            w.end(s, handle, &turn);
        }
    }
    let seen = w.seen(s);
    assert_eq!(
        (seen.answers.len(), seen.outcomes.len(), seen.outcomes[0].1),
        (2, 1, None)
    );
    let body: serde_json::Value = serde_json::from_slice(&seen.outcomes[0].2).unwrap();
    assert_eq!((&body["matched"], &body["replied"]), (&3.into(), &2.into()));
    assert_eq!(body["failures"][0]["who"], "default/c");
    let first_two = ask(&w, 2);
    w.ask(s, first_two).unwrap();
    let turns = handles.map(|handle| w.take(s, handle).unwrap());
    for (turn, heard) in turns.iter().zip([true, true, false]) {
        assert_eq!(w.reply(s, turn, "yes").unwrap(), heard);
    }
    let seen = w.seen(s);
    assert_eq!((seen.answers.len(), seen.outcomes.len()), (2, 1));
    assert_eq!(w.core.stats().requests.late, 1);
}

#[test]
fn what_came_before_the_deadline_stays_with_a_request_of_many() {
    let mut w = World::new();
    let s = w.session();
    let (a, _) = (w.agent(s, "a", &["q"]), w.agent(s, "b", &["q"]));
    let request = Request {
        publish: w.publish(s, "q"),
        timeout_ms: 1_000,
        first_k: 0,
        wait: false,
    };
    w.ask(s, request).unwrap();
    let turn = w.take(s, a).unwrap();
    w.reply(s, &turn, "yes").unwrap();
    w.pass(1_000);
    let seen = w.seen(s);
    assert_eq!(
        (seen.answers.len(), seen.outcomes[0].1),
        (1, Some(Code::Timeout))
    );
}

// requirement: CALL-LATE
#[test]
fn late_and_double_replies_are_counted_and_not_delivered() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    w.request(s, "q").unwrap();
    let turn = w.take(s, a).unwrap();
    w.pass(1_000);
    assert_eq!(w.outcome(s).0, Some(Code::Timeout));
    assert!(!w.reply(s, &turn, "late").unwrap());
    assert!(!w.reply(s, &turn, "double").unwrap());
    w.end(s, a, &turn);
    assert!(!w.reply(s, &turn, "over").unwrap());
    let requests = w.core.stats().requests;
    assert_eq!((requests.late, requests.double), (1, 2));
    assert!(w.seen(s).answers.is_empty());
}

#[test]
fn a_reply_where_nothing_was_asked_is_a_mistake() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let a = w.agent(s, "a", &["q"]);
    w.emit(s, "q");
    let turn = w.take(s, a).unwrap();
    assert_eq!(
        w.reply(s, &turn, "x").unwrap_err().code,
        Code::InvalidParams
    );
    assert_eq!(w.reply(t, &turn, "x").unwrap_err().code, Code::Fenced);
    assert_eq!(w.core.stats().requests.foreign, 1);
}

// requirement: REQUEST-DEADLOCK
#[test]
fn a_request_into_the_lane_that_waits_for_it_is_refused() {
    let mut w = World::new();
    let s = w.session();
    let (a, b) = (w.agent(s, "a", &["q"]), w.agent(s, "b", &["r"]));
    w.request(s, "q").unwrap();
    let outer = w.take(s, a).unwrap();
    let inside = Publish {
        sender: a,
        turn: outer.lease,
        ..w.publish(s, "r")
    };
    w.ask(
        s,
        Request {
            publish: inside,
            timeout_ms: 500,
            first_k: 1,
            wait: false,
        },
    )
    .unwrap();
    let inner = w.take(s, b).unwrap();
    let back = Publish {
        sender: b,
        turn: inner.lease,
        ..w.publish(s, "q")
    };
    let error = w
        .ask(
            s,
            Request {
                publish: back,
                timeout_ms: 500,
                first_k: 1,
                wait: false,
            },
        )
        .unwrap_err();
    assert_eq!(error.code, Code::Deadlock);
    assert_eq!(
        w.core.stats().subscriptions[0].queued,
        0,
        "nothing is enqueued"
    );
    let options = Some(Box::new(Options {
        key: Some("free".into()),
        ..Options::default()
    }));
    let other = Publish {
        sender: b,
        turn: inner.lease,
        options,
        ..w.publish(s, "q")
    };
    w.ask(
        s,
        Request {
            publish: other,
            timeout_ms: 500,
            first_k: 1,
            wait: false,
        },
    )
    .unwrap();
    let free = w.take(s, a).unwrap();
    w.reply(s, &free, "fine").unwrap();
}

#[test]
fn a_deadlock_is_seen_through_a_call_on_the_way() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    let p = w.provider(s, "tool", EffectClass::Pure);
    w.emit(s, "q");
    let turn = w.take(s, a).unwrap();
    let invoke = loom_core::Invoke {
        sender: a,
        turn: turn.lease,
        ..w.invoke(s, "tool")
    };
    w.core.call(s, invoke, w.at).unwrap();
    let work = w.take(s, p).unwrap();
    let back = Publish {
        sender: p,
        turn: work.lease,
        ..w.publish(s, "q")
    };
    let error = w
        .ask(
            s,
            Request {
                publish: back,
                timeout_ms: 500,
                first_k: 1,
                wait: false,
            },
        )
        .unwrap_err();
    assert_eq!(error.code, Code::Deadlock);
}

#[test]
fn a_request_that_found_no_room_is_parked_and_ends_when_its_receiver_lags() {
    let mut w = World::with(Limits {
        queue_items: 1,
        ..Limits::default()
    });
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    w.emit(s, "q");
    let request = Request {
        publish: w.publish(s, "q"),
        timeout_ms: 5_000,
        first_k: 1,
        wait: false,
    };
    w.ask(s, request).unwrap();
    assert_eq!(w.core.gauges().parked, 1);
    w.pass(1_000);
    let (code, body) = w.outcome(s);
    assert_eq!(
        (code, &body["who"]),
        (Some(Code::Unavailable), &"default/a".into())
    );
    w.run(s, a);
    w.emit(s, "q");
    let request = Request {
        publish: w.publish(s, "q"),
        timeout_ms: 100,
        first_k: 1,
        wait: false,
    };
    let call = w.ask(s, request).unwrap();
    w.core.cancel(s, call, w.at).unwrap();
    assert_eq!(w.outcome(s).0, Some(Code::Cancelled));
    assert_eq!(w.core.gauges().parked, 0);
}

#[test]
fn a_request_over_its_deadline_is_not_started() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    w.request(s, "q").unwrap();
    w.pass(1_000);
    w.seen(s);
    assert!(w.take(s, a).is_none());
    assert_eq!(w.core.stats().subscriptions[0].expired, 1);
}

// requirement: CALL-DEADLINE
#[test]
fn a_request_inside_a_turn_ends_not_later_than_that_turn() {
    let mut w = World::new();
    let s = w.session();
    let (a, _) = (w.agent(s, "a", &["q"]), w.agent(s, "b", &["r"]));
    w.request(s, "q").unwrap();
    let turn = w.take(s, a).unwrap();
    let inside = Publish {
        sender: a,
        turn: turn.lease,
        ..w.publish(s, "r")
    };
    w.ask(
        s,
        Request {
            publish: inside,
            timeout_ms: 60_000,
            first_k: 1,
            wait: false,
        },
    )
    .unwrap();
    w.pass(1_000);
    assert_eq!(w.seen(s).outcomes.len(), 2);
}

#[test]
fn members_of_a_thread_see_each_answer() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    let member = w
        .core
        .subscribe(s, &["thread.t1.reply"], Qos::Batched)
        .unwrap();
    let options = Some(Box::new(Options {
        thread_id: Some("t1".into()),
        ..Options::default()
    }));
    let publish = Publish {
        options,
        ..w.publish(s, "q")
    };
    w.ask(
        s,
        Request {
            publish,
            timeout_ms: 1_000,
            first_k: 1,
            wait: false,
        },
    )
    .unwrap();
    let turn = w.take(s, a).unwrap();
    w.reply(s, &turn, "yes").unwrap();
    assert_eq!(&*w.take(s, member).unwrap().envelope.payload, b"yes");
}

#[test]
fn a_request_of_a_session_that_closed_ends_for_those_it_asked_too() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let a = w.agent(s, "a", &["q"]);
    w.request(t, "q").unwrap();
    let turn = w.take(s, a).unwrap();
    w.core.close(t, w.at);
    assert!(!w.reply(s, &turn, "yes").unwrap());
    let requests = w.core.stats().requests;
    assert_eq!((requests.cancelled, requests.late), (1, 1));
}

#[test]
fn who_leaves_without_an_answer_declines() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let a = w.agent(s, "a", &["q"]);
    w.request(t, "q").unwrap();
    w.take(s, a).unwrap();
    w.core.close(s, w.at);
    assert_eq!(w.outcome(t).0, Some(Code::Unavailable));
    let b = w.agent(t, "b", &["r"]);
    w.request(t, "r").unwrap();
    w.core.remove(t, b, w.at).unwrap();
    assert_eq!(w.outcome(t).0, Some(Code::Unavailable));
}

#[test]
fn only_so_many_waits_are_open_and_foreign_ones_are_fenced() {
    let mut w = World::with(Limits {
        pending_calls: 1,
        ..Limits::default()
    });
    let (s, t) = (w.session(), w.session());
    w.agent(s, "a", &["q"]);
    let call = w.request(s, "q").unwrap();
    assert_eq!(w.request(s, "q").unwrap_err().limit, Some("pending_calls"));
    assert_eq!(w.core.cancel(t, call, w.at).unwrap_err().code, Code::Fenced);
    w.core.cancel(s, call, w.at).unwrap();
    w.core.cancel(s, call, w.at).unwrap();
    assert_eq!(w.outcome(s).0, Some(Code::Cancelled));
}

#[test]
fn a_turn_that_asks_its_own_full_queue_is_told_at_once() {
    let mut w = World::with(Limits {
        queue_items: 1,
        ..Limits::default()
    });
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    w.emit(s, "q");
    let turn = w.take(s, a).unwrap();
    w.emit(s, "q");
    let publish = w.publish(s, "q");
    parked(w.offer(s, publish).unwrap());
    let options = Some(Box::new(Options {
        key: Some("free".into()),
        ..Options::default()
    }));
    let publish = Publish {
        sender: a,
        turn: turn.lease,
        options,
        ..w.publish(s, "q")
    };
    let error = w
        .ask(
            s,
            Request {
                publish,
                timeout_ms: 100,
                first_k: 1,
                wait: false,
            },
        )
        .unwrap_err();
    assert_eq!(error.code, Code::Exhausted);
}
