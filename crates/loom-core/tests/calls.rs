//! Calls: one outcome each, whatever happens to caller and provider.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::many_single_char_names,
    reason = "a test says what it expects by failing"
)]

mod common;

use common::World;
use loom_core::{Code, EffectClass, Invoke, LeaseId, Limits, Publish};

#[test]
fn a_call_ends_with_the_result_of_its_provider() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let p = w.provider(s, "notes.search", EffectClass::Pure);
    let invoke = Invoke {
        key: Some("k"),
        ..w.invoke(t, "notes.search")
    };
    let call = w.core.call(t, invoke, w.at).unwrap();
    assert_eq!(w.seen(s).ready, [p]);
    let work = w.take(s, p).unwrap();
    assert_eq!(&*work.envelope.topic, "notes.search");
    assert_eq!(work.envelope.key, Some(loom_core::Ident::Name("k".into())));
    assert_eq!(work.work.unwrap().effect, None);
    assert!(w.result(s, &work, "found").unwrap());
    let seen = w.seen(t);
    assert_eq!((seen.outcomes[0].0, seen.outcomes[0].1), (call, None));
    assert_eq!(&*seen.outcomes[0].2, b"found");
    assert!(w.take(s, p).is_none());
}

// requirement: CALL-UNKNOWN
#[test]
fn an_unknown_capability_is_not_found_and_a_known_one_without_provider_unavailable() {
    let mut w = World::new();
    let s = w.session();
    assert_eq!(w.call(s, "tool").unwrap_err().code, Code::NotFound);
    let p = w.provider(s, "tool", EffectClass::Pure);
    w.core.remove(s, p, w.at).unwrap();
    assert_eq!(
        w.call(s, "tool").unwrap_err().code,
        Code::ProviderUnavailable
    );
    assert_eq!(w.call(s, "Tool").unwrap_err().code, Code::InvalidParams);
    assert_eq!(w.core.stats().calls.error, 3);
}

// requirement: CALL-PROVIDERS
#[test]
fn calls_go_to_the_provider_with_the_least_to_do() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let (p, q) = (
        w.provider(s, "tool", EffectClass::Pure),
        w.provider(t, "tool", EffectClass::Pure),
    );
    for _ in 0..4 {
        w.call(s, "tool").unwrap();
    }
    let mut counts = [0, 0];
    for (at, (session, handle)) in [(s, p), (t, q)].into_iter().enumerate() {
        while w.take(session, handle).is_some() {
            counts[at] += 1;
        }
    }
    assert_eq!(counts, [2, 2]);
}

// requirement: CALL-ONE-OUTCOME, CALL-INDETERMINATE, CALL-HUNG
#[test]
fn what_ends_a_call_without_an_answer_depends_on_whether_it_was_under_way() {
    let ends: [fn(&mut World, Ends); 3] = [
        |w, _| assert!(w.pass(1_000).is_none()),
        |w, ends| w.core.cancel(ends.caller, ends.call, w.at).unwrap(),
        |w, ends| w.core.remove(ends.provider, ends.handle, w.at).unwrap(),
    ];
    let plain = [Code::Timeout, Code::Cancelled, Code::ProviderUnavailable];
    let effects = [
        EffectClass::Pure,
        EffectClass::Idempotent,
        EffectClass::Unsafe,
    ];
    for (end, plain) in ends.into_iter().zip(plain) {
        for (effect, taken) in effects
            .into_iter()
            .flat_map(|effect| [(effect, false), (effect, true)])
        {
            end_without_an_answer(end, plain, effect, taken);
        }
    }
}

fn end_without_an_answer(end: fn(&mut World, Ends), plain: Code, effect: EffectClass, taken: bool) {
    let mut w = World::new();
    let (caller, provider) = (w.session(), w.session());
    let handle = w.provider(provider, "tool", effect);
    let call = w.call(caller, "tool").unwrap();
    let work = if taken {
        w.take(provider, handle)
    } else {
        None
    };
    end(
        &mut w,
        Ends {
            caller,
            call,
            provider,
            handle,
        },
    );
    let unknown = taken && effect != EffectClass::Pure;
    let code = if unknown { Code::Indeterminate } else { plain };
    assert_eq!(w.outcome(caller).0, Some(code));
    let cancels = w.seen(provider).cancels;
    let told: Vec<_> = work
        .iter()
        .map(|work| (work.lease.unwrap(), code))
        .collect();
    assert_eq!(cancels, told, "work under way is told to stop");
    if let Some(work) = work {
        assert!(!w.result(provider, &work, "late").unwrap());
    }
    assert_eq!(w.core.stats().calls.late, u64::from(taken));
    assert_eq!(
        (w.seen(caller).outcomes.len(), w.core.gauges().pending),
        (0, 0)
    );
}

#[derive(Clone, Copy)]
struct Ends {
    caller: loom_core::SessionId,
    call: loom_core::CallId,
    provider: loom_core::SessionId,
    handle: loom_core::Handle,
}

#[test]
fn an_error_of_the_provider_reaches_the_caller_with_its_code() {
    let mut w = World::new();
    let s = w.session();
    let p = w.provider(s, "tool", EffectClass::Unsafe);
    w.call(s, "tool").unwrap();
    let work = w.take(s, p).unwrap();
    assert!(w.fail(s, &work, Code::ToolError).unwrap());
    let (code, body) = w.outcome(s);
    assert_eq!(code, Some(Code::ToolError));
    assert_eq!(
        (&body["message"], &body["who"]),
        (&"it broke".into(), &"default/tool".into())
    );
    assert_eq!(w.core.stats().capabilities[0].errors["TOOL_ERROR"], 1);
}

#[test]
fn work_that_ends_without_a_result_is_an_error() {
    let mut w = World::new();
    let s = w.session();
    let p = w.provider(s, "tool", EffectClass::Pure);
    w.call(s, "tool").unwrap();
    let work = w.take(s, p).unwrap();
    w.end(s, p, &work);
    assert_eq!(w.outcome(s).0, Some(Code::CapabilityError));
}

// requirement: CALL-FOREIGN, CALL-LATE
#[test]
fn answers_of_those_who_were_not_asked_are_refused_and_counted() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let p = w.provider(s, "tool", EffectClass::Pure);
    w.call(s, "tool").unwrap();
    let work = w.take(s, p).unwrap();
    assert_eq!(w.result(t, &work, "x").unwrap_err().code, Code::Fenced);
    assert_eq!(
        w.core.take(t, p, work.lease, w.at).unwrap_err().code,
        Code::Fenced
    );
    let made_up = w.core.result(t, LeaseId(12_345), Box::default(), w.at);
    assert_eq!(made_up.unwrap_err().code, Code::Fenced);
    assert!(w.result(s, &work, "x").unwrap());
    assert!(!w.result(s, &work, "x").unwrap());
    let calls = w.core.stats().calls;
    assert_eq!((calls.foreign, calls.double, calls.ok), (2, 1, 1));
}

#[test]
fn a_provider_serves_no_more_than_its_concurrency_and_is_told_when_it_may_go_on() {
    let mut w = World::new();
    let s = w.session();
    let p = w.provider(s, "tool", EffectClass::Pure);
    for _ in 0..5 {
        w.call(s, "tool").unwrap();
    }
    let work: Vec<_> = (0..4).map(|_| w.take(s, p).unwrap()).collect();
    assert!(w.take(s, p).is_none());
    w.seen(s);
    w.result(s, &work[0], "x").unwrap();
    assert_eq!(w.seen(s).ready, [p]);
    assert!(w.take(s, p).is_some());
}

#[test]
fn a_provider_with_too_much_to_do_is_not_given_more() {
    let mut w = World::with(Limits {
        provider_queue: 2,
        ..Limits::default()
    });
    let s = w.session();
    w.provider(s, "tool", EffectClass::Pure);
    w.call(s, "tool").unwrap();
    w.call(s, "tool").unwrap();
    assert_eq!(w.call(s, "tool").unwrap_err().limit, Some("provider_queue"));
}

// requirement: CALL-DEADLINE
#[test]
fn a_call_inside_a_turn_ends_not_later_than_that_turn() {
    let mut w = World::new();
    let s = w.session();
    let (outer, inner) = (
        w.provider(s, "outer", EffectClass::Pure),
        w.provider(s, "inner", EffectClass::Pure),
    );
    w.call(s, "outer").unwrap();
    let work = w.take(s, outer).unwrap();
    let invoke = Invoke {
        sender: outer,
        turn: work.lease,
        timeout_ms: 60_000,
        ..w.invoke(s, "inner")
    };
    w.core.call(s, invoke, w.at).unwrap();
    let nested = w.take(s, inner).unwrap();
    assert_eq!(nested.envelope.deadline, work.envelope.deadline);
    assert_eq!(
        (nested.envelope.run, nested.envelope.hop),
        (work.envelope.run, 1)
    );
    w.pass(1_000);
    assert_eq!(w.seen(s).outcomes.len(), 2);
}

#[test]
fn what_a_provider_publishes_belongs_to_the_run_of_its_caller() {
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["done"]);
    let p = w.provider(s, "tool", EffectClass::Pure);
    w.call(s, "tool").unwrap();
    let work = w.take(s, p).unwrap();
    let publish = Publish {
        sender: p,
        turn: work.lease,
        ..w.publish(s, "done")
    };
    w.offer(s, publish).unwrap();
    assert_eq!(w.take(s, a).unwrap().envelope.run, work.envelope.run);
}

#[test]
fn an_effect_has_an_id_that_follows_from_its_call() {
    let mut w = World::new();
    let s = w.session();
    let p = w.provider(s, "tool", EffectClass::Unsafe);
    let ids: Vec<_> = (0..2)
        .map(|_| {
            w.call(s, "tool").unwrap();
            w.take(s, p).unwrap().work.unwrap().effect.unwrap()
        })
        .collect();
    assert_ne!(ids[0], ids[1]);
}

// requirement: STREAM-CREDIT
#[test]
fn a_stream_sends_as_many_chunks_as_were_granted() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let p = w.provider(s, "tool", EffectClass::Pure);
    let invoke = Invoke {
        credit: 2,
        ..w.invoke(t, "tool")
    };
    let call = w.core.call(t, invoke, w.at).unwrap();
    let work = w.take(s, p).unwrap();
    assert_eq!(
        (work.work.unwrap().streamed, work.work.unwrap().credit),
        (true, 2)
    );
    let lease = work.lease.unwrap();
    let sent: Vec<bool> = (0..3)
        .map(|_| w.core.chunk(s, lease, Box::from(*b"c")).unwrap())
        .collect();
    assert_eq!(sent, [true, true, false]);
    w.core.grant(t, call, 1, w.at).unwrap();
    assert!(
        w.seen(s).credits.is_empty(),
        "less than before changes nothing"
    );
    w.core.grant(t, call, 3, w.at).unwrap();
    assert_eq!(w.seen(s).credits, [(lease, 3)]);
    assert!(w.core.chunk(s, lease, Box::from(*b"c")).unwrap());
    w.result(s, &work, "end").unwrap();
    let seen = w.seen(t);
    assert_eq!((seen.chunks.len(), seen.outcomes.len()), (3, 1));
    w.core.grant(t, call, 9, w.at).unwrap();
    assert!(!w.core.chunk(s, lease, Box::default()).unwrap());
}

#[test]
fn chunks_go_only_where_they_are_read_and_credit_has_a_limit() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let p = w.provider(s, "tool", EffectClass::Pure);
    let call = w.call(t, "tool").unwrap();
    let lease = w.take(s, p).unwrap().lease.unwrap();
    assert_eq!(
        w.core.chunk(s, lease, Box::default()).unwrap_err().code,
        Code::InvalidParams
    );
    assert_eq!(
        w.core.chunk(t, lease, Box::default()).unwrap_err().code,
        Code::Fenced
    );
    assert_eq!(
        w.core.grant(t, call, 1, w.at).unwrap_err().code,
        Code::InvalidParams
    );
    let invoke = Invoke {
        credit: 1,
        ..w.invoke(t, "tool")
    };
    let streamed = w.core.call(t, invoke, w.at).unwrap();
    assert_eq!(
        w.core.grant(t, streamed, 5_000, w.at).unwrap_err().limit,
        Some("stream_chunks")
    );
    assert_eq!(
        w.core.grant(s, call, 1, w.at).unwrap_err().code,
        Code::Fenced
    );
    let invoke = Invoke {
        credit: 5_000,
        ..w.invoke(t, "tool")
    };
    assert_eq!(
        w.core.call(t, invoke, w.at).unwrap_err().limit,
        Some("stream_chunks")
    );
}

// requirement: STREAM-END
#[test]
fn a_stream_that_is_left_tells_its_producer() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let p = w.provider(s, "tool", EffectClass::Pure);
    let invoke = Invoke {
        credit: 2,
        ..w.invoke(t, "tool")
    };
    let call = w.core.call(t, invoke, w.at).unwrap();
    let lease = w.take(s, p).unwrap().lease.unwrap();
    w.core.cancel(t, call, w.at).unwrap();
    assert_eq!(w.seen(s).cancels, [(lease, Code::Cancelled)]);
    assert!(!w.core.chunk(s, lease, Box::default()).unwrap());
    assert_eq!(w.outcome(t).0, Some(Code::Cancelled));
}

#[test]
fn closing_the_callers_session_stops_its_work_and_closing_the_providers_ends_its_calls() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let p = w.provider(s, "tool", EffectClass::Unsafe);
    w.call(t, "tool").unwrap();
    let lease = w.take(s, p).unwrap().lease.unwrap();
    w.core.close(t, w.at);
    assert_eq!(w.seen(s).cancels, [(lease, Code::Indeterminate)]);
    let u = w.session();
    w.call(u, "tool").unwrap();
    w.call(u, "tool").unwrap();
    w.take(s, p).unwrap();
    w.core.close(s, w.at);
    let codes: Vec<_> = w
        .seen(u)
        .outcomes
        .into_iter()
        .map(|(_, code, _)| code)
        .collect();
    assert_eq!(codes.len(), 2);
    assert!(codes.contains(&Some(Code::Indeterminate)));
    assert!(codes.contains(&Some(Code::ProviderUnavailable)));
    assert_eq!(w.core.gauges().leased, 0);
}

#[test]
fn a_call_whose_time_is_up_is_not_started() {
    let mut w = World::new();
    let s = w.session();
    let p = w.provider(s, "tool", EffectClass::Unsafe);
    w.call(s, "tool").unwrap();
    w.at.now = w.at.now.plus_millis(1_000);
    assert!(w.take(s, p).is_none());
    assert_eq!(w.outcome(s).0, Some(Code::Timeout));
}
