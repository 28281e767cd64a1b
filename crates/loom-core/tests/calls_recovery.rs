//! What the broker does when providers fail: it tries again, moves, joins, ejects, narrows, and says when to come back.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

mod common;

use std::collections::BTreeMap;

use common::{World, spec};
use loom_core::{
    CallId, Code, Delivery, DirectoryKind, EffectClass, Handle, Health, Invoke, Limits,
    ProviderSpec, SessionId,
};
use proptest::prelude::*;

const MINUTE: u64 = 60_000;

/// One caller, and providers of `tool`, each in a session of its own.
struct Broker {
    w: World,
    caller: SessionId,
    providers: Vec<(SessionId, Handle)>,
}

impl Broker {
    fn new(count: usize, effect: EffectClass) -> Self {
        Self::with(Limits::default(), count, effect)
    }

    fn with(limits: Limits, count: usize, effect: EffectClass) -> Self {
        let mut w = World::with(limits);
        let caller = w.session();
        let mut broker = Self {
            w,
            caller,
            providers: Vec::new(),
        };
        for _ in 0..count {
            broker.join(&ProviderSpec {
                effect,
                ..spec("tool")
            });
        }
        broker
    }

    fn join(&mut self, spec: &ProviderSpec<'_>) -> usize {
        let session = self.w.session();
        let handle = self.w.core.provide(session, spec, self.w.at).unwrap();
        self.providers.push((session, handle));
        self.providers.len() - 1
    }

    fn invoke(&self) -> Invoke<'static> {
        Invoke {
            timeout_ms: MINUTE,
            ..self.w.invoke(self.caller, "tool")
        }
    }

    fn make(&mut self, invoke: Invoke<'_>) -> loom_core::Result<CallId> {
        self.w.core.call(self.caller, invoke, self.w.at)
    }

    fn call(&mut self) -> loom_core::Result<CallId> {
        self.make(self.invoke())
    }

    fn keyed(&mut self, key: &'static str) -> CallId {
        let invoke = self.invoke();
        self.make(Invoke {
            key: Some(key),
            ..invoke
        })
        .unwrap()
    }

    fn take(&mut self, at: usize) -> Option<Delivery> {
        let (session, handle) = self.providers[at];
        self.w.take(session, handle)
    }

    /// Who has work now, and the work.
    fn work(&mut self) -> Option<(usize, Delivery)> {
        (0..self.providers.len()).find_map(|at| Some((at, self.take(at)?)))
    }

    fn fail(&mut self, at: usize, work: &Delivery, code: Code) {
        assert!(self.w.fail(self.providers[at].0, work, code).unwrap());
    }

    fn result(&mut self, at: usize, work: &Delivery) {
        assert!(self.w.result(self.providers[at].0, work, "ok").unwrap());
    }

    fn remove(&mut self, at: usize) {
        let (session, handle) = self.providers[at];
        self.w.core.remove(session, handle, self.w.at).unwrap();
    }

    fn set(&mut self, at: usize, state: Health) {
        let (session, handle) = self.providers[at];
        self.w
            .core
            .set_state(session, handle, state, self.w.at)
            .unwrap();
    }

    fn retried(&self) -> u64 {
        self.w.core.stats().calls.retried
    }

    /// Ejects a provider by failures one after the other.
    fn eject(&mut self, at: usize, times: usize) {
        for _ in 0..times {
            while self.w.core.stats().capabilities[0].providers[at].health == "up" {
                self.call().unwrap();
                while let Some((at, work)) = self.work() {
                    self.fail(at, &work, Code::ToolError);
                }
            }
        }
        self.w.seen(self.caller);
    }

    /// The health that each event of a stream shows.
    fn changes(&mut self, stream: Handle) -> Vec<String> {
        let mut told = Vec::new();
        let mut next = self.w.take(self.caller, stream);
        while let Some(event) = next {
            let shown: serde_json::Value = serde_json::from_slice(&event.envelope.payload).unwrap();
            told.push(shown["health"].as_str().unwrap().to_owned());
            next = self.w.end(self.caller, stream, &event);
        }
        told
    }

    fn health(&self) -> Vec<String> {
        let entries = self.w.core.directory("default", DirectoryKind::Capability);
        let entries = entries
            .iter()
            .map(|entry| serde_json::from_slice::<serde_json::Value>(entry).unwrap());
        entries
            .map(|entry| entry["health"].as_str().unwrap().to_owned())
            .collect()
    }
}

// -- retry ------------------------------------------------------------------------------------------

// requirement: CALL-RETRY
#[test]
fn a_call_is_tried_three_times_under_one_id_and_ends_with_the_last_error() {
    let mut b = Broker::new(1, EffectClass::Idempotent);
    let call = b.call().unwrap();
    let mut seen = Vec::new();
    for code in [
        Code::Unavailable,
        Code::Exhausted,
        Code::ProviderUnavailable,
    ] {
        let (at, work) = b.work().unwrap();
        assert!(b.work().is_none());
        seen.push((work.attempt, work.work.unwrap().effect, work.envelope.id));
        b.fail(at, &work, code);
        b.w.pass(400);
    }
    let attempts: Vec<u32> = seen.iter().map(|(attempt, _, _)| *attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    assert!(
        seen.iter()
            .all(|(_, effect, id)| (*effect, *id) == (seen[0].1, seen[0].2))
    );
    let ended = b.w.seen(b.caller);
    assert_eq!(ended.due.len(), 2, "the caller's loop is told when to tick");
    assert_eq!(ended.outcomes[0].0, call);
    assert_eq!(ended.outcomes[0].1, Some(Code::ProviderUnavailable));
    assert_eq!((b.retried(), b.w.shown().retries), (2, 2));
}

// requirement: CALL-RETRY
#[test]
fn what_is_tried_again_depends_on_the_effect_the_key_and_the_code() {
    let effects = [
        EffectClass::Pure,
        EffectClass::Idempotent,
        EffectClass::Probeable,
        EffectClass::Unsafe,
    ];
    let may_pass = [
        Code::ProviderUnavailable,
        Code::Unavailable,
        Code::Exhausted,
        Code::Timeout,
        Code::Indeterminate,
    ];
    for effect in effects {
        for keyed in [false, true] {
            for code in Code::ALL {
                let mut b = Broker::new(1, effect);
                let key = keyed.then_some("k");
                let invoke = b.invoke();
                b.make(Invoke { key, ..invoke }).unwrap();
                let (at, work) = b.work().unwrap();
                b.fail(at, &work, code);
                let unknown = matches!(code, Code::Timeout | Code::Indeterminate);
                let repeats = effect <= EffectClass::Idempotent || (keyed && !unknown);
                let expected = repeats && may_pass.contains(&code);
                assert_eq!(b.retried() == 1, expected, "{effect:?} {keyed} {code:?}");
                assert_eq!(b.w.seen(b.caller).outcomes.is_empty(), expected);
                assert_eq!(b.w.core.gauges().pausing, usize::from(expected));
            }
        }
    }
}

// requirement: CALL-RETRY
#[test]
fn a_retry_prefers_another_provider_also_one_with_more_to_do() {
    let mut b = Broker::new(2, EffectClass::Pure);
    b.set(1, Health::Restarting);
    b.call().unwrap();
    let work = b.take(0).unwrap();
    b.set(0, Health::Restarting);
    b.set(1, Health::Up);
    for _ in 0..3 {
        b.call().unwrap();
    }
    b.set(0, Health::Up);
    b.fail(0, &work, Code::Unavailable);
    b.w.pass(200);
    assert!(b.take(0).is_none());
    let attempts: Vec<u32> = (0..4).map(|_| b.take(1).unwrap().attempt).collect();
    assert_eq!(attempts, [1, 1, 1, 2]);
}

// requirement: CALL-RETRY
#[test]
fn a_provider_that_is_alone_gets_the_retry_of_what_it_failed() {
    let mut b = Broker::new(2, EffectClass::Pure);
    b.call().unwrap();
    let (first, work) = b.work().unwrap();
    b.fail(first, &work, Code::Unavailable);
    b.remove(1 - first);
    b.w.pass(200);
    assert_eq!(b.take(first).unwrap().attempt, 2);
}

// requirement: CALL-RETRY
#[test]
fn a_call_without_time_for_another_attempt_ends_with_its_error_and_the_deadline_never_grows() {
    let mut b = Broker::new(1, EffectClass::Pure);
    let invoke = b.invoke();
    b.make(Invoke {
        timeout_ms: 500,
        ..invoke
    })
    .unwrap();
    let deadline = b.w.at.now.plus_millis(500);
    b.w.pass(100);
    let (at, work) = b.work().unwrap();
    b.fail(at, &work, Code::Unavailable);
    b.w.pass(100);
    let (at, work) = b.work().unwrap();
    assert_eq!(work.envelope.deadline, Some(deadline));
    b.w.pass(299);
    let fault = loom_core::Fault {
        lease: work.lease.unwrap(),
        code: Code::Unavailable,
        detail: br#"{"message":"later","retry_after_ms":2}"#,
    };
    assert!(b.w.core.fail(b.providers[at].0, fault, b.w.at).unwrap());
    assert_eq!(b.w.outcome(b.caller).0, Some(Code::Unavailable));
    assert_eq!(b.w.core.gauges().timers, 0);
}

// requirement: CALL-RETRY
#[test]
fn a_stream_that_has_begun_is_not_tried_again() {
    for sent in [false, true] {
        let mut b = Broker::new(1, EffectClass::Pure);
        let invoke = b.invoke();
        b.make(Invoke {
            credit: 2,
            ..invoke
        })
        .unwrap();
        let (at, work) = b.work().unwrap();
        if sent {
            let chunk =
                b.w.core
                    .chunk(b.providers[at].0, work.lease.unwrap(), Box::default());
            assert!(chunk.unwrap());
        }
        b.fail(at, &work, Code::Unavailable);
        assert_eq!(b.retried(), u64::from(!sent));
        if !sent {
            b.w.pass(200);
            assert_eq!(b.work().unwrap().1.work.unwrap().credit, 2);
        }
    }
}

// requirement: CALL-RETRY, CALL-INDETERMINATE
#[test]
fn work_whose_provider_went_is_tried_elsewhere_if_it_may_be_done_twice() {
    for (effect, key) in [
        (EffectClass::Pure, None),
        (EffectClass::Idempotent, None),
        (EffectClass::Unsafe, Some("k")),
        (EffectClass::Unsafe, None),
    ] {
        let mut b = Broker::new(2, effect);
        let invoke = b.invoke();
        b.make(Invoke { key, ..invoke }).unwrap();
        let (first, lost) = b.work().unwrap();
        b.remove(first);
        assert_eq!(b.w.seen(b.providers[first].0).cancels.len(), 1);
        b.w.pass(200);
        let again = b.work();
        if effect == EffectClass::Unsafe {
            assert!(again.is_none());
            assert_eq!(b.w.outcome(b.caller).0, Some(Code::Indeterminate));
            continue;
        }
        let (second, work) = again.unwrap();
        assert_eq!((second == first, work.attempt), (false, 2));
        let late = b.w.result(b.providers[first].0, &lost, "late").unwrap();
        assert!(!late, "what was given up is not heard");
        b.result(second, &work);
        assert_eq!(b.w.outcome(b.caller).0, None);
        assert_eq!(b.w.core.stats().calls.late, 1);
    }
}

// requirement: CALL-INDETERMINATE
#[test]
fn an_attempt_that_was_lost_is_not_forgotten_by_the_next_ones_error() {
    let mut b = Broker::new(2, EffectClass::Idempotent);
    b.call().unwrap();
    let (first, _) = b.work().unwrap();
    b.remove(first);
    for _ in 0..2 {
        b.w.pass(300);
        let (second, work) = b.work().unwrap();
        b.fail(second, &work, Code::Unavailable);
    }
    let (code, body) = b.w.outcome(b.caller);
    assert_eq!(code, Some(Code::Indeterminate));
    assert!(body["message"].as_str().unwrap().contains("UNAVAILABLE"));
}

// requirement: CALL-BUDGET
#[test]
fn a_provider_that_always_fails_is_offered_a_tenth_more_and_two() {
    for calls in [1u64, 10, 100, 400] {
        let limits = Limits {
            breaker_failures: usize::MAX,
            breaker_calls: usize::MAX,
            ..Limits::default()
        };
        let mut b = Broker::with(limits, 1, EffectClass::Pure);
        let mut offered = 0;
        for _ in 0..calls {
            b.call().unwrap();
            for _ in 0..4 {
                let (session, handle) = b.providers[0];
                offered += b.w.fail_all(session, handle, Code::ProviderUnavailable);
                b.w.pass(500);
            }
        }
        assert_eq!(
            b.w.seen(b.caller).outcomes.len(),
            usize::try_from(calls).unwrap()
        );
        assert!(
            offered as u64 * 10 <= calls * 11 + 20,
            "{offered} of {calls}"
        );
        assert!(offered as u64 > calls, "retries are made at all");
    }
}

// requirement: CALL-RETRY
#[test]
fn a_caller_that_gives_up_between_two_attempts_leaves_nothing() {
    let mut b = Broker::new(1, EffectClass::Pure);
    let call = b.call().unwrap();
    let (at, work) = b.work().unwrap();
    b.fail(at, &work, Code::Unavailable);
    b.w.core.cancel(b.caller, call, b.w.at).unwrap();
    let gauges = b.w.core.gauges();
    assert_eq!((gauges.jobs, gauges.timers, gauges.pausing), (0, 0, 0));
    assert_eq!(b.w.outcome(b.caller).0, Some(Code::Cancelled));
    b.w.pass(MINUTE);
    assert!(b.work().is_none());
}

// -- moving -----------------------------------------------------------------------------------------

// requirement: CALL-MOVES
#[test]
fn calls_that_wait_move_when_their_provider_goes_and_are_not_counted_as_tried() {
    type End = fn(&mut Broker, usize);
    let ends: [End; 3] = [
        |b, at| b.remove(at),
        |b, at| b.set(at, Health::Quarantined),
        |b, at| b.set(at, Health::Restarting),
    ];
    for end in ends {
        let mut b = Broker::new(2, EffectClass::Unsafe);
        for _ in 0..6 {
            b.call().unwrap();
        }
        end(&mut b, 0);
        let shown = b.w.core.stats().capabilities[0].providers[0].clone();
        assert!(shown.health == "up" || shown.outstanding == 0);
        let moved: Vec<Delivery> = (0..4).map(|_| b.take(1).unwrap()).collect();
        assert!(moved.iter().all(|work| work.attempt == 1));
        for work in moved {
            b.result(1, &work);
        }
        let rest = [b.take(1).unwrap(), b.take(1).unwrap()];
        for work in &rest {
            b.result(1, work);
        }
        assert_eq!(b.w.seen(b.caller).outcomes.len(), 6);
        assert_eq!(b.retried(), 0);
    }
}

// requirement: CALL-MOVES
#[test]
fn calls_wait_for_the_only_provider_while_it_restarts_and_end_when_it_is_in_quarantine() {
    for state in [Health::Up, Health::Quarantined] {
        let mut b = Broker::new(1, EffectClass::Unsafe);
        b.call().unwrap();
        b.set(0, Health::Restarting);
        assert_eq!(b.health(), ["restarting"]);
        assert_eq!(b.call().unwrap_err().code, Code::ProviderUnavailable);
        assert!(b.take(0).is_none() && b.w.seen(b.caller).outcomes.is_empty());
        b.w.seen(b.providers[0].0);
        b.set(0, state);
        if state == Health::Up {
            assert_eq!(b.w.seen(b.providers[0].0).ready.len(), 1, "it is told");
            let work = b.take(0).unwrap();
            b.result(0, &work);
        } else {
            assert_eq!(b.w.outcome(b.caller).0, Some(Code::ProviderUnavailable));
            assert_eq!(b.health(), ["quarantined"]);
        }
    }
}

// requirement: CALL-MOVES
#[test]
fn a_call_for_no_version_that_nobody_began_may_move_to_an_older_one() {
    let mut b = Broker::new(1, EffectClass::Pure);
    b.join(&ProviderSpec {
        version: "2",
        ..spec("tool")
    });
    b.call().unwrap();
    let invoke = b.invoke();
    b.make(Invoke {
        version: Some("2"),
        ..invoke
    })
    .unwrap();
    b.remove(1);
    assert!(b.take(0).is_some() && b.take(0).is_none());
    assert_eq!(b.w.outcome(b.caller).0, Some(Code::ProviderUnavailable));
}

// requirement: CALL-VERSIONS, CALL-RETRY
#[test]
fn work_that_one_version_began_is_not_tried_by_another() {
    let mut b = Broker::new(1, EffectClass::Pure);
    b.join(&ProviderSpec {
        version: "2",
        ..spec("tool")
    });
    b.call().unwrap();
    b.take(1).unwrap();
    b.remove(1);
    assert_eq!(b.w.outcome(b.caller).0, Some(Code::ProviderUnavailable));
    assert!(b.take(0).is_none());
}

// -- versions and weights ---------------------------------------------------------------------------

// requirement: CALL-VERSIONS
#[test]
fn a_call_goes_to_the_version_it_names_else_to_the_newest_that_somebody_can_serve() {
    let mut b = Broker::new(0, EffectClass::Pure);
    let versions = ["1.9", "1.10", "1.2"];
    for version in versions {
        b.join(&ProviderSpec {
            version,
            ..spec("tool")
        });
    }
    let ask = |b: &mut Broker, version| {
        let invoke = b.invoke();
        b.make(Invoke { version, ..invoke })?;
        Ok(versions[b.work().unwrap().0])
    };
    assert_eq!(ask(&mut b, None), Ok("1.10"));
    assert_eq!(ask(&mut b, Some("1.2")), Ok("1.2"));
    b.set(1, Health::Quarantined);
    assert_eq!(ask(&mut b, None), Ok("1.9"));
    let gone: loom_core::Error = ask(&mut b, Some("1.10")).unwrap_err();
    assert_eq!(gone.code, Code::ProviderUnavailable);
    let never: loom_core::Error = ask(&mut b, Some("3")).unwrap_err();
    assert_eq!(
        (never.code, never.field.as_deref()),
        (Code::NotFound, Some("version"))
    );
    assert_eq!(never.hint.unwrap(), "there are 1.10, 1.9, 1.2");
    let rows = b.w.core.stats().capabilities;
    let calls: Vec<_> = rows
        .iter()
        .map(|row| (row.version.as_str(), row.calls))
        .collect();
    assert_eq!(calls, [("1.2", 1), ("1.9", 1), ("1.10", 1)]);
}

// requirement: CALL-WEIGHTS
#[test]
fn a_table_spreads_calls_by_weight_and_drains_whom_it_gives_none() {
    let mut b = Broker::new(0, EffectClass::Pure);
    for provider in ["big", "small", "drained", "unnamed"] {
        b.join(&ProviderSpec {
            provider,
            concurrency: 64,
            ..spec("tool")
        });
    }
    let weights = [("big", 3.0), ("small", 0.5), ("drained", 0.0)];
    b.w.core.weigh(b.caller, "tool", Some(&weights)).unwrap();
    for _ in 0..45 {
        b.call().unwrap();
    }
    let counts: Vec<usize> = (0..4)
        .map(|at| std::iter::from_fn(|| b.take(at)).count())
        .collect();
    assert_eq!(counts, [30, 5, 0, 10]);
    let shown = serde_json::to_value(b.w.core.routes("default")).unwrap();
    let expected = serde_json::json!({"tool": {"big": 3.0, "small": 0.5, "drained": 0.0}});
    assert_eq!(shown, expected);
    let drained = ["big", "small", "drained", "unnamed"].map(|provider| (provider, 0.0));
    b.w.core.weigh(b.caller, "tool", Some(&drained)).unwrap();
    let refused = b.call().unwrap_err();
    assert_eq!(refused.code, Code::ProviderUnavailable);
    assert!(refused.message.contains("drained") && refused.retry_after_ms.is_none());
    b.w.core.weigh(b.caller, "tool", None).unwrap();
    b.call().unwrap();
    assert!(b.w.core.routes("default").is_empty());
}

// requirement: CALL-WEIGHTS
#[test]
fn a_table_that_is_wrong_or_one_too_many_is_refused() {
    let mut b = Broker::with(
        Limits {
            routes: 1,
            route_providers: 2,
            ..Limits::default()
        },
        1,
        EffectClass::Pure,
    );
    let mut refused = |name: &str, weights: &[(&str, f64)]| {
        let error = b.w.core.weigh(b.caller, name, Some(weights)).unwrap_err();
        (error.code, error.limit)
    };
    for weight in [-1.0, 1_000.5, f64::NAN, f64::INFINITY] {
        let error = refused("tool", &[("a", weight)]);
        assert_eq!(error, (Code::InvalidParams, Some("route_weight")));
    }
    assert_eq!(refused("tool", &[("a", 0.0001)]).0, Code::InvalidParams);
    assert_eq!(refused("tool", &[("a b", 1.0)]).0, Code::InvalidParams);
    let many = [("a", 1.0), ("b", 1.0), ("c", 1.0)];
    assert_eq!(refused("tool", &many).1, Some("route_providers"));
    b.w.core.weigh(b.caller, "tool", Some(&many[..1])).unwrap();
    b.w.core.weigh(b.caller, "tool", Some(&many[..2])).unwrap();
    let error = b.w.core.weigh(b.caller, "other", Some(&many[..1]));
    assert_eq!(error.unwrap_err().limit, Some("routes"));
}

// -- joining ----------------------------------------------------------------------------------------

// requirement: CALL-JOIN
#[test]
fn calls_with_the_same_key_are_one_job_with_an_outcome_for_each() {
    let mut b = Broker::new(2, EffectClass::Unsafe);
    let calls = [b.keyed("k"), b.keyed("k")];
    let (at, work) = b.work().unwrap();
    let third = b.keyed("k");
    assert!(b.work().is_none());
    let gauges = b.w.core.gauges();
    assert_eq!((gauges.pending, gauges.jobs, gauges.keys), (3, 1, 1));
    b.result(at, &work);
    let seen = b.w.seen(b.caller);
    let told: Vec<CallId> = seen.outcomes.iter().map(|(call, _, _)| *call).collect();
    assert_eq!(told, [calls[0], calls[1], third]);
    assert!(
        seen.outcomes
            .iter()
            .all(|(_, code, body)| code.is_none() && **body == *b"ok")
    );
    let stats = b.w.core.stats();
    assert_eq!((stats.calls.joined, stats.calls.ok), (2, 3));
    assert_eq!(
        (stats.capabilities[0].calls, stats.capabilities[0].ok),
        (3, 3)
    );
    b.keyed("k");
    assert!(b.work().is_some(), "what has ended is forgotten");
}

// requirement: CALL-JOIN
#[test]
fn another_version_or_namespace_is_another_key() {
    let mut b = Broker::new(1, EffectClass::Unsafe);
    b.join(&ProviderSpec {
        version: "2",
        ..spec("tool")
    });
    let versioned = |b: &Broker, version| Invoke {
        key: Some("k"),
        version,
        ..b.invoke()
    };
    for version in [Some("1"), Some("2"), None, Some("1")] {
        let invoke = versioned(&b, version);
        b.make(invoke).unwrap();
    }
    assert_eq!(b.w.core.gauges().jobs, 2);
    let other = b.w.session_in("elsewhere");
    b.w.core.provide(other, &spec("tool"), b.w.at).unwrap();
    let invoke = Invoke {
        sender: b.w.root(other),
        ..versioned(&b, None)
    };
    b.w.core.call(other, invoke, b.w.at).unwrap();
    assert_eq!(b.w.core.gauges().jobs, 3);
}

// requirement: CALL-JOIN
#[test]
fn other_arguments_or_a_stream_under_a_key_in_flight_are_a_conflict() {
    let mut b = Broker::new(1, EffectClass::Unsafe);
    b.keyed("k");
    let other = Invoke {
        key: Some("k"),
        payload: Box::from(*b"{\"n\":1}"),
        ..b.invoke()
    };
    let stream = Invoke {
        key: Some("k"),
        credit: 1,
        ..b.invoke()
    };
    for invoke in [other, stream] {
        let error = b.make(invoke).unwrap_err();
        assert_eq!(
            (error.code, error.field.as_deref()),
            (Code::Conflict, Some("key"))
        );
    }
    let streamed = Invoke {
        key: Some("s"),
        credit: 1,
        ..b.invoke()
    };
    b.make(streamed).unwrap();
    let invoke = b.invoke();
    let late = b.make(Invoke {
        key: Some("s"),
        ..invoke
    });
    assert_eq!(late.unwrap_err().code, Code::Conflict);
    assert_eq!(b.w.core.stats().calls.error, 3);
}

// requirement: CALL-JOIN
#[test]
fn the_work_goes_on_for_those_who_wait_and_stops_when_the_last_one_goes() {
    let mut b = Broker::new(1, EffectClass::Unsafe);
    let (leader, follower) = (b.keyed("k"), b.keyed("k"));
    let (at, work) = b.work().unwrap();
    b.w.core.cancel(b.caller, leader, b.w.at).unwrap();
    assert_eq!(b.w.outcome(b.caller).0, Some(Code::Indeterminate));
    assert!(b.w.seen(b.providers[at].0).cancels.is_empty());
    let third = b.keyed("k");
    for call in [follower, third] {
        b.w.core.cancel(b.caller, call, b.w.at).unwrap();
    }
    let told = b.w.seen(b.providers[at].0).cancels;
    assert_eq!(told, [(work.lease.unwrap(), Code::Indeterminate)]);
    assert_eq!((b.w.core.gauges().jobs, b.w.core.gauges().keys), (0, 0));
}

// requirement: CALL-JOIN
#[test]
fn each_who_waits_has_its_own_deadline_and_the_work_the_latest() {
    let mut b = Broker::new(1, EffectClass::Pure);
    let inner = b.w.provider(b.caller, "inner", EffectClass::Pure);
    let short = Invoke {
        key: Some("k"),
        timeout_ms: 100,
        ..b.invoke()
    };
    b.make(short).unwrap();
    let (at, work) = b.work().unwrap();
    let long = b.keyed("k");
    b.w.pass(100);
    assert_eq!(b.w.outcome(b.caller).0, Some(Code::Timeout));
    let (session, handle) = b.providers[at];
    let nested = Invoke {
        sender: handle,
        turn: work.lease,
        timeout_ms: MINUTE,
        ..b.w.invoke(session, "inner")
    };
    b.w.core.call(session, nested, b.w.at).unwrap();
    let nested = b.w.take(b.caller, inner).unwrap();
    assert!(nested.envelope.deadline > work.envelope.deadline);
    b.result(at, &work);
    assert_eq!(b.w.seen(b.caller).outcomes[0].0, long);
}

// requirement: CALL-JOIN, REQUEST-DEADLOCK
#[test]
fn work_that_would_join_itself_is_a_deadlock() {
    let mut b = Broker::new(1, EffectClass::Pure);
    b.keyed("k");
    let (at, work) = b.work().unwrap();
    let (session, handle) = b.providers[at];
    let same = Invoke {
        sender: handle,
        turn: work.lease,
        key: Some("k"),
        ..b.w.invoke(session, "tool")
    };
    let refused = b.w.core.call(session, same, b.w.at).unwrap_err();
    assert_eq!(refused.code, Code::Deadlock);
}

// -- breaker ----------------------------------------------------------------------------------------

// requirement: CALL-BREAKER, RETRY-AFTER
#[test]
fn the_only_provider_is_ejected_tried_by_one_call_and_comes_back() {
    let mut b = Broker::new(1, EffectClass::Unsafe);
    let changes = ["loom.directory.capability.changed"];
    let stream =
        b.w.core
            .subscribe(b.caller, &changes, loom_core::Qos::Batched);
    let stream = stream.unwrap();
    b.eject(0, 1);
    assert_eq!(
        (b.health(), b.w.shown().ejections),
        (vec!["ejected".to_owned()], 1)
    );
    let refused = b.call().unwrap_err();
    assert_eq!(refused.code, Code::ProviderUnavailable);
    assert_eq!(refused.retry_after_ms, Some(1_000));
    b.w.pass(999);
    assert_eq!(b.call().unwrap_err().code, Code::ProviderUnavailable);
    b.w.pass(1);
    b.call().unwrap();
    assert_eq!(b.health(), ["probing"]);
    assert_eq!(
        b.call().unwrap_err().code,
        Code::ProviderUnavailable,
        "one probe"
    );
    let (at, work) = b.work().unwrap();
    b.fail(at, &work, Code::ToolError);
    assert_eq!(b.call().unwrap_err().retry_after_ms, Some(2_000));
    b.w.pass(2_000);
    b.call().unwrap();
    let (at, work) = b.work().unwrap();
    b.result(at, &work);
    assert_eq!(b.health(), ["up"]);
    b.call().unwrap();
    b.call().unwrap();
    let told = b.changes(stream);
    assert_eq!(told, ["ejected", "probing", "ejected", "probing", "up"]);
}

// requirement: CALL-BREAKER
#[test]
fn a_probe_that_says_nothing_leaves_the_next_call_to_decide() {
    type End = fn(&mut Broker, CallId);
    let ends: [End; 3] = [
        |b, call| b.w.core.cancel(b.caller, call, b.w.at).unwrap(),
        |b, call| {
            b.work().unwrap();
            b.w.core.cancel(b.caller, call, b.w.at).unwrap();
        },
        |b, _| {
            let (at, work) = b.work().unwrap();
            b.fail(at, &work, Code::InvalidParams);
        },
    ];
    for end in ends {
        let mut b = Broker::new(1, EffectClass::Unsafe);
        b.eject(0, 1);
        b.w.pass(1_000);
        let call = b.call().unwrap();
        assert_eq!(b.health(), ["probing"]);
        end(&mut b, call);
        assert_eq!(b.health(), ["ejected"]);
        b.call().unwrap();
        let (at, work) = b.work().unwrap();
        b.result(at, &work);
        assert_eq!(b.health(), ["up"]);
    }
}

// requirement: CALL-BREAKER
#[test]
fn never_more_than_half_of_the_providers_are_ejected() {
    for count in 2..7 {
        let mut b = Broker::new(count, EffectClass::Unsafe);
        for _ in 0..count * 100 {
            b.call().unwrap();
            let (at, work) = b.work().unwrap();
            b.fail(at, &work, Code::ToolError);
        }
        let ejected = b
            .health()
            .iter()
            .filter(|health| *health == "ejected")
            .count();
        assert_eq!(ejected, count / 2);
    }
}

// requirement: CALL-BREAKER, CALL-MOVES
#[test]
fn what_waits_for_a_provider_that_is_ejected_moves_or_ends() {
    for count in [1, 2] {
        let mut b = Broker::new(count, EffectClass::Unsafe);
        for _ in 0..10 * count {
            b.call().unwrap();
        }
        let (session, handle) = b.providers[0];
        assert_eq!(b.w.fail_all(session, handle, Code::Internal), 10);
        let queued = b.call();
        if count == 1 {
            assert_eq!(queued.unwrap_err().code, Code::ProviderUnavailable);
            continue;
        }
        b.w.seen(b.caller);
        queued.unwrap();
        assert_eq!(b.w.fail_all(session, handle, Code::Internal), 0);
        let (session, handle) = b.providers[1];
        assert_eq!(b.w.fail_all(session, handle, Code::HandlerError), 11);
    }
}

// requirement: CALL-BREAKER
#[test]
fn the_callers_faults_eject_nobody() {
    let mut b = Broker::new(1, EffectClass::Unsafe);
    for _ in 0..100 {
        b.call().unwrap();
        let (at, work) = b.work().unwrap();
        b.fail(at, &work, Code::InvalidParams);
    }
    assert_eq!(b.health(), ["up"]);
}

// requirement: CALL-BREAKER
#[test]
fn a_retry_storm_ends_in_an_open_breaker_and_recovers_by_itself() {
    let mut b = Broker::new(1, EffectClass::Pure);
    let (session, handle) = b.providers[0];
    let (mut offered, mut calls) = (0, 0);
    for _ in 0..600 {
        calls += u64::from(b.call().is_ok());
        offered += b.w.fail_all(session, handle, Code::ProviderUnavailable) as u64;
        b.w.pass(100);
    }
    assert!(offered * 10 <= calls * 11 + 20, "{offered} of {calls}");
    assert!(offered < 30, "{offered} of 600 reached it");
    b.w.pass(MINUTE);
    b.call().unwrap();
    let (at, work) = b.work().unwrap();
    b.result(at, &work);
    assert_eq!(b.health(), ["up"]);
}

// -- bulkhead ---------------------------------------------------------------------------------------

// requirement: CALL-BULKHEAD
#[test]
fn a_hung_capability_of_ten_costs_the_others_nothing() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let names: Vec<String> = (0..10).map(|at| format!("tool{at}")).collect();
    let handles: Vec<Handle> = names
        .iter()
        .map(|name| w.provider(s, name, EffectClass::Pure))
        .collect();
    for round in 0..50 {
        for (name, handle) in names.iter().zip(&handles) {
            let hung = name == "tool0";
            let call = w.call(t, name);
            if hung {
                let _ = w.take(s, *handle);
                continue;
            }
            call.unwrap();
            let work = w.take(s, *handle);
            let work = work.unwrap_or_else(|| panic!("{name} waits in round {round}"));
            w.result(s, &work, "ok").unwrap();
        }
        w.pass(10);
    }
    let rows: BTreeMap<String, u64> = w
        .core
        .stats()
        .capabilities
        .into_iter()
        .map(|row| (row.name, row.ok))
        .collect();
    assert_eq!(rows["tool0"], 0);
    assert!(rows.iter().all(|(name, ok)| name == "tool0" || *ok == 50));
}

// requirement: CALL-BULKHEAD
#[test]
fn a_provider_that_runs_out_of_time_or_room_serves_fewer_at_once_and_then_more_again() {
    let mut b = Broker::new(1, EffectClass::Unsafe);
    for expected in [2, 1, 1] {
        b.call().unwrap();
        let (at, work) = b.work().unwrap();
        b.fail(at, &work, Code::Exhausted);
        assert_eq!(b.w.shown().window, expected);
        b.w.pass(1_000);
    }
    let hung = Invoke {
        timeout_ms: 100,
        ..b.invoke()
    };
    b.make(hung).unwrap();
    b.call().unwrap();
    let (_, late) = b.work().unwrap();
    b.w.pass(100);
    assert!(b.work().is_none(), "one at a time");
    let (session, _) = b.providers[0];
    assert!(!b.w.result(session, &late, "late").unwrap());
    for (ended, expected) in [(0, 1), (1, 2), (3, 3), (6, 4), (12, 4)] {
        while b.w.core.stats().capabilities[0].ok < ended {
            b.call().unwrap();
            while b.w.shown().outstanding < 6 {
                b.call().unwrap();
            }
            let (at, work) = b.work().unwrap();
            let others: Vec<_> = std::iter::from_fn(|| b.work()).collect();
            b.result(at, &work);
            for (at, work) in others {
                b.fail(at, &work, Code::InvalidParams);
            }
        }
        assert_eq!(b.w.shown().window, expected, "after {ended}");
    }
}

// requirement: RETRY-AFTER
#[test]
fn a_full_queue_and_too_many_waits_say_when_to_come_back() {
    let limits = Limits {
        provider_queue: 1,
        pending_calls: 2,
        ..Limits::default()
    };
    let mut b = Broker::with(limits, 1, EffectClass::Pure);
    b.call().unwrap();
    let full = b.call().unwrap_err();
    assert_eq!(
        (full.limit, full.retry_after_ms),
        (Some("provider_queue"), Some(100))
    );
    b.take(0).unwrap();
    b.call().unwrap();
    let many = b.call().unwrap_err();
    assert_eq!(
        (many.limit, many.retry_after_ms),
        (Some("pending_calls"), Some(100))
    );
}

// -- anything ---------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Step {
    Call { key: Option<usize>, timeout: u64 },
    Take(usize),
    End { place: usize, code: usize },
    Cancel(usize),
    Set { at: usize, state: usize },
    Remove(usize),
    Join,
    Pass(u64),
}

const KEYS: [&str; 2] = ["k", "l"];
const CODES: [Option<Code>; 6] = [
    None,
    None,
    Some(Code::ProviderUnavailable),
    Some(Code::Indeterminate),
    Some(Code::ToolError),
    Some(Code::InvalidParams),
];
const STATES: [Health; 3] = [Health::Up, Health::Restarting, Health::Quarantined];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        6 => (proptest::option::of(0usize..2), 1u64..3_000)
            .prop_map(|(key, timeout)| Step::Call { key, timeout }),
        6 => (0usize..4).prop_map(Step::Take),
        6 => (0usize..8, 0usize..6).prop_map(|(place, code)| Step::End { place, code }),
        1 => (0usize..16).prop_map(Step::Cancel),
        1 => (0usize..4, 0usize..3).prop_map(|(at, state)| Step::Set { at, state }),
        1 => (0usize..4).prop_map(Step::Remove),
        1 => Just(Step::Join),
        3 => (0u64..1_500).prop_map(Step::Pass),
    ];
    proptest::collection::vec(one, 0..200)
}

/// What happened so far, told by the notices alone.
#[derive(Default)]
struct Told {
    open: Vec<CallId>,
    held: Vec<(usize, Delivery)>,
    attempts: BTreeMap<u128, u32>,
    live: Vec<bool>,
}

impl Told {
    fn step(&mut self, b: &mut Broker, step: &Step) {
        match *step {
            Step::Call { key, timeout } => {
                let invoke = Invoke {
                    key: key.map(|key| KEYS[key]),
                    timeout_ms: timeout,
                    ..b.invoke()
                };
                self.open.extend(b.make(invoke));
            }
            Step::Take(at) => self.take(b, at),
            Step::End { place, code } if place < self.held.len() => self.end(b, place, code),
            Step::Cancel(place) if place < self.open.len() => {
                b.w.core.cancel(b.caller, self.open[place], b.w.at).unwrap();
            }
            Step::Set { at, state } if self.live.get(at) == Some(&true) => b.set(at, STATES[state]),
            Step::Remove(at) if self.live.get(at) == Some(&true) => {
                self.live[at] = false;
                b.remove(at);
            }
            Step::Join if self.live.len() < 4 => self.join(b),
            Step::Pass(millis) => {
                b.w.pass(millis);
            }
            _ => {}
        }
        self.read(b);
    }

    /// Each outcome is the first of its call, and the gauges fit.
    fn read(&mut self, b: &mut Broker) {
        for (call, _, _) in b.w.seen(b.caller).outcomes {
            let place = self.open.iter().position(|open| *open == call);
            self.open
                .swap_remove(place.unwrap_or_else(|| panic!("{call:?} ended twice")));
        }
        let gauges = b.w.core.gauges();
        assert_eq!(gauges.pending, self.open.len());
        assert!(gauges.jobs <= gauges.pending && gauges.keys <= gauges.jobs);
        b.w.check();
    }

    fn end(&mut self, b: &mut Broker, place: usize, code: usize) {
        let (at, work) = self.held.swap_remove(place);
        let (session, _) = b.providers[at];
        let _ = match CODES[code] {
            None => b.w.result(session, &work, "ok").unwrap(),
            Some(code) => b.w.fail(session, &work, code).unwrap(),
        };
    }

    fn join(&mut self, b: &mut Broker) {
        self.live.push(true);
        b.join(&ProviderSpec {
            effect: [EffectClass::Pure, EffectClass::Unsafe][self.live.len() % 2],
            concurrency: 2,
            ..spec("tool")
        });
    }

    fn take(&mut self, b: &mut Broker, at: usize) {
        if self.live.get(at) != Some(&true) {
            return;
        }
        let Some(work) = b.take(at) else { return };
        let attempt = self.attempts.entry(work.envelope.id).or_default();
        *attempt += 1;
        assert_eq!(work.attempt, *attempt, "each attempt is counted");
        assert!(*attempt <= 3);
        assert!(
            work.envelope.deadline > Some(b.w.at.now),
            "nothing is begun too late"
        );
        self.held.push((at, work));
    }
}

proptest! {
    // requirement: CALL-ONE-OUTCOME, CALL-RETRY, CALL-JOIN, CALL-MOVES, BOUNDED
    #[test]
    fn whatever_providers_do_each_call_ends_once_and_nothing_is_left(steps in steps()) {
        let mut b = Broker::new(2, EffectClass::Pure);
        let mut told = Told { live: vec![true, true], ..Told::default() };
        for step in &steps {
            told.step(&mut b, step);
        }
        for _ in 0..4 {
            told.step(&mut b, &Step::Pass(MINUTE));
        }
        prop_assert!(told.open.is_empty(), "{:?} never ended", told.open);
        for (at, work) in told.held {
            let session = b.providers[at].0;
            prop_assert!(!b.w.result(session, &work, "late").unwrap());
        }
        let gauges = b.w.core.gauges();
        prop_assert_eq!((gauges.jobs, gauges.keys, gauges.timers, gauges.leased), (0, 0, 0, 0));
    }
}
