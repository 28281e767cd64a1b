//! Grants: what a session may do is held against an evaluator of the tests' own, for random policies; and what follows when
//! they change.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::log::Log;
use common::{World, done, parked, spec};
use loom_core::{
    AgentSpec, Attach, Code, DirectoryKind, EffectClass, Filter, GrantTexts, Grants, Limits,
    LogLine, Offer, Options, ProviderSpec, Publish, Qos, SessionId, Start,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// The evaluator: tokens against tokens, and nothing that the engine has.
mod reference {
    const LOOKS: &[&str] = &[
        "list",
        "stats",
        "logs",
        "runs",
        "why",
        "dead",
        "dead.list",
        "dead.show",
        "effects",
        "effects.list",
        "effects.show",
        "sessions",
    ];

    /// Tokens with what stands before each.
    fn split(text: &str) -> Vec<(char, String)> {
        let mut all = vec![('.', String::new())];
        for c in text.chars() {
            match c {
                '.' | ':' => all.push((c, String::new())),
                c => all.last_mut().unwrap().1.push(c),
            }
        }
        all
    }

    fn walk(filter: &[(char, String)], name: &[(char, String)], first: bool) -> bool {
        match (filter.first(), name.first()) {
            (None, None) => true,
            (Some((before, wanted)), Some((sign, token))) => {
                let same = before == sign;
                match wanted.as_str() {
                    ">" => first || same,
                    "*" => same && walk(&filter[1..], &name[1..], false),
                    _ => same && wanted == token && walk(&filter[1..], &name[1..], false),
                }
            }
            _ => false,
        }
    }

    pub(super) fn any(list: &[String], name: &str) -> bool {
        let name = split(name);
        list.iter().any(|filter| walk(&split(filter), &name, true))
    }

    pub(super) struct Policy(pub(super) [Vec<String>; 6]);

    impl Policy {
        pub(super) fn publish(&self, topic: &str) -> bool {
            !topic.starts_with("loom.") && any(&self.0[0], topic)
        }

        pub(super) fn hear(&self, topic: &str) -> bool {
            any(
                &self.0[if topic.starts_with("loom.") { 4 } else { 1 }],
                topic,
            )
        }

        pub(super) fn call(&self, name: &str) -> bool {
            let Some(own) = name.strip_prefix("loom.") else {
                return any(&self.0[2], name);
            };
            let looks = own
                .strip_prefix("node.")
                .is_some_and(|it| LOOKS.contains(&it));
            any(&self.0[5], name) || (looks && any(&self.0[4], name))
        }

        pub(super) fn provide(&self, name: &str) -> bool {
            !name.starts_with("loom.") && any(&self.0[3], name)
        }
    }
}

use reference::Policy;

const CAPABILITIES: [&str; 14] = [
    "a",
    "a.b",
    "a.b.c",
    "b",
    "b.a",
    "a:b",
    "a:c",
    "a.b:c",
    "b:a.b",
    "loom.node.stats",
    "loom.node.dead.list",
    "loom.node.dead.redrive",
    "loom.node.drain",
    "loom.other",
];

/// All topics of up to four tokens of a few: `z` stands in no filter.
fn topics() -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut last = vec![String::new()];
    for _ in 0..4 {
        last = last
            .iter()
            .flat_map(|before| {
                ["a", "b", "z", "loom"].map(|token| match before.as_str() {
                    "" => token.to_owned(),
                    before => format!("{before}.{token}"),
                })
            })
            .collect();
        all.extend(last.iter().filter(|topic| *topic != "loom").cloned());
    }
    all
}

fn texts(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

fn read(policy: &Policy) -> Grants {
    let lists: Vec<Vec<&str>> = policy.0.iter().map(|list| texts(list)).collect();
    let given = GrantTexts {
        publish: &lists[0],
        subscribe: &lists[1],
        call: &lists[2],
        provide: &lists[3],
        observe: &lists[4],
        admin: &lists[5],
    };
    Grants::parse(&given, &Limits::default()).unwrap()
}

fn topic_filter() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        4 => Just("a"), 3 => Just("b"), 2 => Just("*"), 1 => Just("loom")
    ];
    let tokens = prop::collection::vec(token, 0..3);
    (tokens, prop_oneof![Just(None), Just(Some(">"))]).prop_map(|(tokens, tail)| {
        let all: Vec<&str> = tokens.into_iter().chain(tail).collect();
        if all.is_empty() {
            "b.a".to_owned()
        } else {
            all.join(".")
        }
    })
}

fn name_filter() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => topic_filter(),
        2 => prop::sample::select(vec![
            "a:*", "a:>", "*:*", "a.*:c", "a.b:>", "b:a.*", "*:c", "loom.node.>",
            "loom.node.dead.*", "loom.node.stats", "loom.>", "loom.*", ">",
        ]).prop_map(str::to_owned),
    ]
}

fn policy() -> impl Strategy<Value = [Vec<String>; 6]> {
    let topics = || prop::collection::vec(topic_filter(), 0..4);
    let names = || prop::collection::vec(name_filter(), 0..4);
    (topics(), topics(), names(), names(), names(), names())
        .prop_map(|(a, b, c, d, e, f)| [a, b, c, d, e, f])
}

/// A world in which each of the capabilities is offered, and who does that.
fn offering() -> (World, SessionId) {
    let mut w = World::new();
    let node = w.attach(Attach {
        is_node: true,
        ..Attach::default()
    });
    for name in CAPABILITIES {
        w.provider(node, name, EffectClass::Pure);
    }
    (w, node)
}

/// Which of the topics a session hears by one filter, and whether it may ask for it at all.
fn heard(w: &mut World, s: SessionId, filter: &str, topics: &[String]) -> Option<BTreeSet<String>> {
    let stream = match w.core.subscribe(s, &[filter], Qos::Batched) {
        Ok(stream) => stream,
        Err(error) => {
            assert_eq!(
                (error.code, error.field.as_deref()),
                (Code::Denied, Some("filters"))
            );
            return None;
        }
    };
    let speaker = w.session();
    for topic in topics {
        if !topic.starts_with("loom.") {
            w.emit(speaker, topic);
        }
    }
    let line = LogLine {
        sender: w.root(speaker),
        turn: None,
        level: "info",
        payload: b"{}",
    };
    w.core.log(speaker, &line, w.at).unwrap();
    let heard = w.run(s, stream).into_iter().collect();
    w.core.remove(s, stream, w.at).unwrap();
    w.core.close(speaker, w.at);
    Some(heard)
}

// requirement: AUTHZ-REFERENCE
#[test]
fn the_engine_decides_as_the_reference_does_for_any_policy() {
    let topics = topics();
    let known: BTreeSet<&String> = topics.iter().collect();
    assert_eq!(known.len(), 339);
    let decisions = std::cell::Cell::new(0_usize);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(160));
    let filters = prop::collection::vec(topic_filter(), 1..4);
    let outcome = runner.run(&(policy(), filters), |(lists, filters)| {
        let policy = Policy(lists);
        let (mut w, _) = offering();
        let s = w.attach(Attach {
            grants: Some(Arc::new(read(&policy))),
            ..Attach::default()
        });
        let mut count = 0;
        for topic in &topics {
            let publish = w.publish(s, topic);
            let said = w.offer(s, publish).map_err(|error| error.code);
            prop_assert_eq!(said.is_ok(), policy.publish(topic), "publish to {}", topic);
            prop_assert!(said.is_ok() || said.is_err_and(|code| code == Code::Denied));
            count += 1;
        }
        for name in CAPABILITIES {
            let said = w.call(s, name).map_err(|error| error.code);
            let wanted = policy.call(name).then_some(()).ok_or(Code::NotFound);
            prop_assert_eq!(said.map(|_| ()), wanted, "call of {}", name);
            let said = w
                .core
                .provide(s, &spec(name), w.at)
                .map_err(|error| error.code);
            let wanted = policy.provide(name).then_some(()).ok_or(Code::Denied);
            prop_assert_eq!(said.map(|_| ()), wanted, "provide of {}", name);
            count += 2;
        }
        for filter in &filters {
            let asks = |topic: &String| reference::any(std::slice::from_ref(filter), topic);
            let allowed = |topic: &&String| asks(topic) && policy.hear(topic);
            let all: BTreeSet<&String> = topics.iter().filter(allowed).collect();
            let line = "loom.log.info".to_owned();
            let mut wanted: BTreeSet<String> = all.iter().map(|it| (*it).clone()).collect();
            wanted.retain(|topic| !topic.starts_with("loom."));
            wanted.extend(Some(line).filter(|line| allowed(&line)));
            let said = heard(&mut w, s, filter, &topics);
            // The topics that are listed here are not all there are: what is not denied may hear one that is not.
            if !all.is_empty() || !wanted.is_empty() {
                prop_assert!(said.is_some(), "{} may hear {:?}", filter, all);
            }
            prop_assert_eq!(said.unwrap_or_default(), wanted, "heard by {}", filter);
            count += topics.len();
        }
        decisions.set(decisions.get() + count);
        Ok(())
    });
    outcome.unwrap();
    assert!(decisions.get() >= 100_000, "{} decisions", decisions.get());
}

// requirement: AUTHZ-SUBSCRIBE
#[test]
fn a_filter_of_which_nothing_may_be_heard_is_denied() {
    let may = |lists: &GrantTexts<'_>, filter: &str| {
        let limits = Limits::default();
        let grants = Grants::parse(lists, &limits).unwrap();
        grants.may_hear_of(&Filter::parse(filter, &limits).unwrap())
    };
    let lists = GrantTexts {
        subscribe: &["a.*.c", "b.>"],
        observe: &["loom.error.>"],
        ..GrantTexts::default()
    };
    for filter in ["a.>", "*.b.c", ">", "b.*", "loom.>", "loom.error.x", "*.*"] {
        assert!(may(&lists, filter), "{filter}");
    }
    for filter in ["a.b", "a.*.d", "b", "c.>", "loom.dead.>", "loom.log.*"] {
        assert!(!may(&lists, filter), "{filter}");
    }
    let all_topics = GrantTexts {
        subscribe: &[">"],
        ..GrantTexts::default()
    };
    assert!(!may(&all_topics, "loom.>"), "the engine's own need observe");
    assert!(!may(&GrantTexts::default(), ">"), "no grant is none");
}

// requirement: AUTHZ-ABSENT
#[test]
fn a_capability_that_may_not_be_called_looks_as_if_it_were_not_there() {
    let (mut w, _) = offering();
    let s = w.session_as(&GrantTexts {
        call: &["b"],
        ..GrantTexts::default()
    });
    let keyed = |w: &World, name: &'static str| loom_core::Invoke {
        key: Some("k"),
        version: Some("7"),
        ..w.invoke(s, name)
    };
    let mut said = Vec::new();
    for name in ["a.b.c", "a.b.d"] {
        let plain = w.call(s, name).unwrap_err();
        let invoke = keyed(&w, name);
        let keyed = w.core.call(s, invoke, w.at).unwrap_err();
        said.push(format!("{plain:?} {keyed:?}").replace(name, "it"));
    }
    assert_eq!(said[0], said[1]);
    let seen = w.core.directory_for(s, DirectoryKind::Capability).unwrap();
    assert_eq!(seen.len(), 1, "only what may be called is shown");
    w.call(s, "b").unwrap();
}

// requirement: AUTHZ-DIRECTORY
#[test]
fn the_directory_shows_what_may_be_called_or_observed_and_what_is_ones_own() {
    let (mut w, node) = offering();
    w.agent(node, "planner", &["x"]);
    let s = w.session_as(&GrantTexts {
        subscribe: &["spawn.>", "x"],
        provide: &["mine"],
        observe: &["a:*", "plan*r", "loom.node.stats"]
            .map(|text| if text == "plan*r" { "planner" } else { text }),
        ..GrantTexts::default()
    });
    w.agent(s, "own", &["x"]);
    w.provider(s, "mine", EffectClass::Pure);
    w.agent(node, "hidden", &["x"]);
    let count = |w: &World, s, kind| w.core.directory_for(s, kind).unwrap().len();
    assert_eq!(count(&w, s, DirectoryKind::Agent), 2);
    assert_eq!(
        count(&w, s, DirectoryKind::Capability),
        4,
        "two of a:*, one of the node, its own"
    );
    assert_eq!(count(&w, node, DirectoryKind::Agent), 3);
    assert_eq!(
        w.core
            .directory_for(node, DirectoryKind::Capability)
            .unwrap(),
        w.core.directory("default", DirectoryKind::Capability)
    );
}

// requirement: AUTHZ-SPAWN
#[test]
fn an_agent_is_who_may_hear_what_spawns_it_and_its_group() {
    let mut w = World::new();
    let other = w.session();
    let grants = GrantTexts {
        subscribe: &["chat.>", "spawn.a.b", "spawn.helpers", "spawn.loom"],
        ..GrantTexts::default()
    };
    let s = w.session_as(&grants);
    let mut register = |name, group| {
        let agent = AgentSpec {
            name,
            filters: &[],
            group,
            concurrency: 1,
            qos: Qos::Batched,
            info: b"{}",
            start: Start::Now,
            max_deliver: 0,
            exclusive: false,
        };
        w.core.register(s, &agent, w.at)
    };
    for (name, group, field) in [
        ("billing", "", "name"),
        ("a.b", "billing", "group"),
        ("a", "a.b", "name"),
        ("loom", "", "name"),
        ("a.b", "loom", "group"),
        ("loom.barrier", "a.b", "name"),
    ] {
        let error = register(name, group).unwrap_err();
        assert_eq!(
            (error.code, error.field.as_deref()),
            (Code::Denied, Some(field)),
            "{name} in {group:?}"
        );
    }
    let a = register("a.b", "").unwrap();
    register("helpers", "a.b").unwrap();
    for topic in ["spawn.a.b", "spawn.a", "spawn.c", "x"] {
        w.emit(other, topic);
    }
    assert_eq!(w.run(s, a), ["spawn.a.b"]);
}

// requirement: AUTHZ-SPAWN
#[test]
fn nobody_but_the_engine_speaks_under_its_name() {
    let mut w = World::new();
    for name in ["loom", "loom.node"] {
        let error = w
            .core
            .attach_as(Attach {
                namespace: "n",
                name,
                grants: Some(Arc::new(Grants::all())),
                ..Attach::default()
            })
            .unwrap_err();
        assert_eq!(
            (error.code, error.field.as_deref()),
            (Code::Denied, Some("name"))
        );
    }
}

// requirement: AUTHZ-NODE
#[test]
fn what_stands_under_loom_is_provided_by_the_node_alone() {
    let mut w = World::new();
    let (app, all) = (
        w.session(),
        w.attach(Attach {
            grants: Some(Arc::new(Grants::all())),
            ..Attach::default()
        }),
    );
    let node = w.attach(Attach {
        is_node: true,
        ..Attach::default()
    });
    for s in [app, all] {
        let said = w
            .core
            .provide(s, &spec("loom.node.stats"), w.at)
            .unwrap_err();
        assert_eq!(
            (said.code, said.field.as_deref()),
            (Code::Denied, Some("capability"))
        );
    }
    let handle = w.provider(node, "loom.node.stats", EffectClass::Pure);
    w.call(all, "loom.node.stats").unwrap();
    assert!(w.take(node, handle).is_some());
}

// requirement: AUTHZ-ADMIN
#[test]
fn what_others_have_is_changed_only_with_an_admin_grant() {
    let (mut w, mut log) = Log::world(Limits::default());
    log.serve(&mut w);
    let s = w.session_as(&GrantTexts {
        call: &[">"],
        observe: &[">"],
        ..GrantTexts::default()
    });
    let resolve = || loom_core::Resolve {
        effect: 7,
        says: loom_core::Resolution::Failed,
        note: "",
    };
    assert_eq!(
        w.core.redrive(s, (1, 1), None).unwrap_err().code,
        Code::Denied
    );
    assert_eq!(
        w.core.resolve(s, resolve(), w.at).unwrap_err().code,
        Code::Denied
    );
    assert_eq!(w.core.weigh(s, "a.b", None).unwrap_err().code, Code::Denied);
    w.grant(
        s,
        &GrantTexts {
            admin: &["loom.node.>", "a.*"],
            ..GrantTexts::default()
        },
    );
    assert_eq!(
        w.core.redrive(s, (1, 1), None).unwrap_err().code,
        Code::NotFound
    );
    assert_eq!(
        w.core.resolve(s, resolve(), w.at).unwrap_err().code,
        Code::NotFound
    );
    w.core.weigh(s, "a.b", None).unwrap();
    assert_eq!(w.core.weigh(s, "b", None).unwrap_err().code, Code::Denied);
}

// requirement: AUTHZ-PUBLISH
#[test]
fn a_topic_that_may_not_be_published_to_is_denied_with_the_way_out() {
    let mut w = World::new();
    let s = w.session_as(&GrantTexts {
        publish: &["a.>"],
        ..GrantTexts::default()
    });
    let error = w.request(s, "b").unwrap_err();
    assert_eq!(
        (error.code, error.field.as_deref()),
        (Code::Denied, Some("topic"))
    );
    assert!(error.hint.unwrap().contains("--publish"));
    let publish = w.publish(s, "b..c");
    let error = w.offer(s, publish).unwrap_err();
    assert_eq!(
        error.code,
        Code::InvalidParams,
        "what is no topic is told as that"
    );
    let error = w.request(s, "a.b").unwrap_err();
    assert_eq!(
        error.code,
        Code::Unavailable,
        "it may ask, and nobody hears it"
    );
    assert_eq!(
        w.core.stats().topics_cached,
        1,
        "what was denied takes no place in the cache"
    );
}

// requirement: AUTHZ-PARSE
#[test]
fn a_grant_that_is_no_filter_names_its_list() {
    let limits = Limits::default();
    let many = vec!["a"; 65];
    let lists = [
        GrantTexts {
            publish: &["a..b"],
            ..GrantTexts::default()
        },
        GrantTexts {
            subscribe: &["a:b"],
            ..GrantTexts::default()
        },
        GrantTexts {
            call: &["a:b:c"],
            ..GrantTexts::default()
        },
        GrantTexts {
            provide: &["a."],
            ..GrantTexts::default()
        },
        GrantTexts {
            observe: &[":a"],
            ..GrantTexts::default()
        },
        GrantTexts {
            admin: &many,
            ..GrantTexts::default()
        },
    ];
    let fields = [
        "publish",
        "subscribe",
        "call",
        "provide",
        "observe",
        "admin",
    ];
    for (lists, field) in lists.iter().zip(fields) {
        let error = Grants::parse(lists, &limits).unwrap_err();
        assert_eq!(error.code, Code::InvalidParams);
        assert_eq!(error.field.as_deref(), Some(field));
    }
}

// requirement: AUTHZ-CHANGE
#[test]
fn other_grants_hold_at_once_for_what_is_queued_and_for_what_is_provided() {
    let mut w = World::new();
    let speaker = w.session();
    let wide = GrantTexts {
        subscribe: &["spawn.>", "a.>", "b"],
        provide: &["p.>"],
        ..GrantTexts::default()
    };
    let s = w.session_as(&wide);
    let agent = w.agent(s, "agent", &[">"]);
    let kept = w.provider(s, "p.kept", EffectClass::Pure);
    let lost = w.provider(s, "p.lost", EffectClass::Pure);
    for topic in ["a.x", "b", "c", "a.y"] {
        w.emit(speaker, topic);
    }
    let running = w.take(s, agent).unwrap();
    w.seen(s);
    w.grant(
        s,
        &GrantTexts {
            subscribe: &["spawn.>", "b"],
            provide: &["p.kept"],
            ..GrantTexts::default()
        },
    );
    let removed = w.seen(s).removed;
    assert_eq!(removed.len(), 1);
    assert_eq!((removed[0].0, removed[0].1.code), (lost, Code::Denied));
    assert!(w.core.provide(s, &spec("p.lost"), w.at).is_err());
    w.emit(speaker, "a.z");
    assert_eq!(
        w.end(s, agent, &running)
            .map(|it| it.envelope.topic.to_string()),
        Some("b".into())
    );
    let row = &w.core.stats().subscriptions[0];
    assert_eq!(
        (row.matched, row.dropped.unsubscribed),
        (3, 1),
        "a.y was taken back"
    );
    w.call(speaker, "p.kept").unwrap();
    assert!(w.take(s, kept).is_some());
    assert_eq!(
        w.call(speaker, "p.lost").unwrap_err().code,
        Code::ProviderUnavailable
    );
    w.core.set_grants(s, None, w.at).unwrap();
    w.emit(speaker, "c");
    w.check();
}

// requirement: AUTHZ-CHANGE
#[test]
fn what_waits_for_one_that_may_not_hear_it_any_more_goes_to_another_member_or_passes_by() {
    let mut w = World::with(Limits {
        queue_items: 2,
        ..Limits::default()
    });
    let speaker = w.session();
    let s = w.session_as(&GrantTexts {
        subscribe: &["spawn.>", ">"],
        ..GrantTexts::default()
    });
    let narrow = GrantTexts {
        subscribe: &["spawn.>", "b"],
        ..GrantTexts::default()
    };
    let agent = w.agent(s, "agent", &["a", "b"]);
    let stream = w.core.subscribe(s, &["a"], Qos::Batched).unwrap();
    for _ in 0..2 {
        w.emit(speaker, "a");
    }
    let publish = w.publish(speaker, "a");
    let waits = parked(w.offer(speaker, publish).unwrap());
    let other = w.session();
    let heir = w.agent(other, "agent", &["a"]);
    w.grant(s, &narrow);
    assert!(w.take(s, agent).is_none());
    assert!(w.take(s, stream).is_none());
    assert!(w.seen(speaker).accepted.is_empty(), "the heir is full");
    assert_eq!(w.run(other, heir).len(), 3);
    assert_eq!(w.seen(speaker).accepted[0].0, waits);
    for _ in 0..3 {
        w.emit_key(speaker, "a", "k", Qos::Batched).unwrap();
    }
    w.core.remove(other, heir, w.at).unwrap();
    assert_eq!(w.seen(speaker).accepted.len(), 1, "nobody may hear it");
    w.check();
}

// requirement: AUTHZ-CHANGE
#[test]
fn one_who_is_asked_and_may_not_hear_it_any_more_has_declined() {
    let mut w = World::new();
    let asker = w.session();
    let s = w.session_as(&GrantTexts {
        subscribe: &["spawn.>", "a"],
        ..GrantTexts::default()
    });
    w.agent(s, "agent", &["a"]);
    let call = w.request(asker, "a").unwrap();
    w.grant(s, &GrantTexts::default());
    let outcomes = w.seen(asker).outcomes;
    assert_eq!(outcomes.len(), 1);
    assert_eq!(
        (outcomes[0].0, outcomes[0].1),
        (call, Some(Code::Unavailable))
    );
}

// requirement: AUTHZ-CHANGE
#[test]
fn a_request_that_waits_finds_the_one_that_may_hear_it_now() {
    let mut w = World::new();
    let asker = w.session();
    let s = w.session_as(&GrantTexts {
        subscribe: &["spawn.>", "b"],
        ..GrantTexts::default()
    });
    let agent = w.agent(s, "agent", &["*"]);
    let request = loom_core::Request {
        publish: w.publish(asker, "a"),
        timeout_ms: 1_000,
        first_k: 1,
        wait: true,
    };
    w.ask(asker, request).unwrap();
    assert!(w.take(s, agent).is_none());
    w.grant(
        s,
        &GrantTexts {
            subscribe: &["spawn.>", "a"],
            ..GrantTexts::default()
        },
    );
    assert!(w.take(s, agent).is_some_and(|it| it.asked));
}

// requirement: AUTHZ-DURABLE
#[test]
fn a_group_consumes_of_the_log_what_its_agent_may_hear() {
    let (mut w, mut log) = Log::world(Limits::default());
    let speaker = w.session();
    let s = w.session_as(&GrantTexts {
        subscribe: &["spawn.>", "d.a.*"],
        ..GrantTexts::default()
    });
    let agent = w.agent(s, "agent", &["d.>"]);
    log.serve(&mut w);
    for topic in ["d.a.x", "d.b.x", "d.a.y", "d.a.x.y"] {
        let publish = w.publish(speaker, topic);
        assert!(matches!(w.offer(speaker, publish), Ok(Offer::Logging(_))));
    }
    log.serve(&mut w);
    let run = |w: &mut World, log: &mut Log| {
        let mut all = Vec::new();
        while let Some(turn) = {
            log.serve(w);
            w.take(s, agent)
        } {
            all.push(turn.envelope.topic.to_string());
            w.close_turn(s, &turn);
        }
        all
    };
    assert_eq!(run(&mut w, &mut log), ["d.a.x", "d.a.y"]);
    let row = &w.core.stats().logs[0].consumers[0];
    assert_eq!(
        (row.matched, row.spilled),
        (2, 0),
        "the rest is not for it, and holds nothing"
    );
    w.grant(
        s,
        &GrantTexts {
            subscribe: &["spawn.>", "d.b.>"],
            ..GrantTexts::default()
        },
    );
    log.serve(&mut w);
    for topic in ["d.a.x", "d.b.x"] {
        let publish = w.publish(speaker, topic);
        assert!(matches!(w.offer(speaker, publish), Ok(Offer::Logging(_))));
    }
    assert_eq!(run(&mut w, &mut log), ["d.b.x"]);
    w.check();
}

// requirement: AUTHZ-DURABLE
#[test]
fn a_durable_event_that_may_not_be_heard_any_more_waits_for_a_member_that_may() {
    let (mut w, mut log) = Log::world(Limits::default());
    let speaker = w.session();
    let wide = GrantTexts {
        subscribe: &["spawn.>", "d.>"],
        ..GrantTexts::default()
    };
    let s = w.session_as(&wide);
    let agent = w.agent(s, "agent", &["d.a"]);
    log.serve(&mut w);
    let options = Options {
        key: Some("k".to_owned()),
        ..Options::default()
    };
    for _ in 0..2 {
        let publish = Publish {
            options: Some(Box::new(options.clone())),
            ..w.publish(speaker, "d.a")
        };
        w.offer(speaker, publish).unwrap();
    }
    log.serve(&mut w);
    w.grant(s, &GrantTexts::default());
    log.serve(&mut w);
    assert!(
        w.take(s, agent).is_none(),
        "neither what was claimed nor what was queued"
    );
    w.grant(s, &wide);
    log.serve(&mut w);
    let turn = w.take(s, agent).unwrap();
    assert_eq!((turn.attempt, turn.durable), (1, true));
    w.close_turn(s, &turn);
    log.serve(&mut w);
    assert!(w.take(s, agent).is_some());
    w.check();
}

// requirement: AUTHZ-SPACES
#[test]
fn sessions_say_what_they_have_and_namespaces_see_their_own() {
    let mut w = World::new();
    let s = w.attach(Attach {
        client: 77,
        ..Attach::default()
    });
    let agent = w.agent(s, "agent", &["a"]);
    w.core.subscribe(s, &["b"], Qos::Batched).unwrap();
    w.provider(s, "p", EffectClass::Pure);
    let other = w.session_in("other");
    for _ in 0..3 {
        done(w.emit_key(s, "a", "k", Qos::Batched).unwrap());
    }
    let turn = w.take(s, agent).unwrap();
    let all = w.core.sessions(Some("default"));
    assert_eq!(all.len(), 1);
    let info = &all[0];
    assert_eq!(
        (info.session, info.client, info.name.as_str()),
        (s, 77, "app")
    );
    assert_eq!(
        (info.agents.len(), info.capabilities.len(), info.streams),
        (1, 1, 1)
    );
    assert_eq!((info.queued, info.leased), (2, 1));
    assert!(w.core.is_agent_of(s, "agent") && !w.core.is_agent_of(other, "agent"));
    assert_eq!(w.core.sessions(None).len(), 2);
    w.close_turn(s, &turn);
    w.core.close(s, w.at);
    assert!(w.core.session_info(s).is_none());
}

// requirement: AUTHZ-PROVIDE
#[test]
fn a_capability_is_provided_only_where_that_was_granted() {
    let mut w = World::new();
    let s = w.session_as(&GrantTexts {
        provide: &["files:*"],
        ..GrantTexts::default()
    });
    w.provider(s, "files:read", EffectClass::Pure);
    let other = ProviderSpec {
        concurrency: 1,
        ..spec("files.read")
    };
    let error = w.core.provide(s, &other, w.at).unwrap_err();
    assert_eq!(
        (error.code, error.field.as_deref()),
        (Code::Denied, Some("capability"))
    );
}
