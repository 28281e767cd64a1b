//! What is kept of topics: books that add up, a table that stays small, and memory that comes back.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

mod common;

use std::alloc::System;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::World;
use loom_core::{Handle, Limits, Qos, SessionId, TopicStats};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Tests of this file run one after the other: they count what the whole process holds.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn held() -> isize {
    let stats = MEMORY.stats();
    let signed = |bytes: usize| isize::try_from(bytes).unwrap();
    signed(stats.bytes_allocated) - signed(stats.bytes_deallocated)
}

fn row(w: &World, topic: &str) -> TopicStats {
    let rows = w.core.stats().topics;
    rows.into_iter().find(|row| row.topic == topic).unwrap()
}

/// The sums over all topics are those of the engine.
fn add_up(w: &World) {
    let stats = w.core.stats();
    let sum = |of: &dyn Fn(&TopicStats) -> u64| -> u64 { stats.topics.iter().map(of).sum() };
    assert_eq!(sum(&|row| row.published), stats.events.published);
    assert_eq!(sum(&|row| row.matched), stats.events.matched);
    assert_eq!(sum(&|row| row.delivered), stats.events.delivered);
    assert_eq!(sum(&|row| row.expired), stats.events.expired);
    assert_eq!(
        sum(&|row| row.dropped.total()),
        stats.events.dropped.total()
    );
    let classes: u64 = stats.by_qos.values().map(|class| class.matched).sum();
    assert_eq!(classes, stats.events.matched);
    let queued: usize = stats.topics.iter().map(|row| row.queued).sum();
    let waiting: usize = stats.subscriptions.iter().map(|row| row.queued).sum();
    assert_eq!(queued, waiting);
    w.check();
}

// requirement: STATS-TOPIC
#[test]
fn each_topic_counts_what_became_of_its_events() {
    let _alone = alone();
    let mut w = World::with(Limits {
        queue_items: 2,
        ..Limits::default()
    });
    let s = w.session();
    let a = w.agent_of(s, "a", &["q.>"], 1);
    w.agent(s, "b", &["q.one"]);
    for qos in [Qos::Batched, Qos::Batched, Qos::Realtime] {
        w.emit_key(s, "q.two", "k", qos).unwrap();
    }
    w.emit_key(s, "q.one", "k", Qos::Realtime).unwrap();
    let two = row(&w, "q.two");
    assert_eq!((two.published, two.matched, two.queued), (3, 3, 2));
    assert_eq!((two.dropped.overflow, two.high_water), (1, 2));
    let one = row(&w, "q.one");
    assert_eq!((one.published, one.matched, one.queued), (1, 2, 1));
    assert_eq!(one.dropped.overflow, 1);
    w.at.now = w.at.now.plus_millis(3);
    let turn = w.take(s, a).unwrap();
    let two = row(&w, "q.two");
    assert_eq!((two.queued, two.leased, two.latency.count), (1, 1, 1));
    assert!((3_000..3_750).contains(&two.latency.p99_us));
    w.end(s, a, &turn);
    assert_eq!(row(&w, "q.two").delivered, 1);
    add_up(&w);
}

// requirement: STATS-QOS
#[test]
fn each_class_counts_at_its_subscription_and_in_all() {
    let _alone = alone();
    let mut w = World::with(small(4));
    let s = w.session();
    let a = w.agent(s, "a", &["q"]);
    for qos in [Qos::Background, Qos::Batched, Qos::Realtime, Qos::Realtime] {
        w.emit_key(s, "q", "k", qos).unwrap();
    }
    w.emit_key(s, "q", "k", Qos::Realtime).unwrap();
    let turn = w.take(s, a).unwrap();
    let stats = w.core.stats();
    let classes = &stats.subscriptions[0].by_qos;
    let background = classes["background"];
    assert_eq!(
        (background.matched, background.leased, background.queued),
        (1, 1, 0)
    );
    let realtime = classes["realtime"];
    assert_eq!(
        (realtime.matched, realtime.queued, realtime.high_water),
        (3, 2, 2)
    );
    assert_eq!(realtime.dropped.overflow, 1);
    assert_eq!(stats.by_qos["realtime"].published, Some(3));
    assert_eq!(stats.by_qos["background"].latency.count, 1);
    w.end(s, a, &turn);
    let before = w.core.stats().by_qos["batched"];
    w.run(s, a);
    w.core.remove(s, a, w.at).unwrap();
    let after = w.core.stats().by_qos["batched"];
    assert_eq!(
        (before.matched, after.matched),
        (1, 1),
        "who left is still counted"
    );
    add_up(&w);
}

fn small(items: usize) -> Limits {
    Limits {
        queue_items: items,
        ..Limits::default()
    }
}

// requirement: STATS-TOPIC
#[test]
fn a_topic_that_is_forgotten_is_counted_among_the_others() {
    let _alone = alone();
    let mut w = World::with(Limits {
        topic_cache: 8,
        ..Limits::default()
    });
    let s = w.session();
    let a = w.agent(s, "a", &["t.>"]);
    let early = (0..4).map(|n| format!("t.{n}"));
    early.for_each(|topic| assert_eq!(w.emit(s, &topic).matched, 1));
    let held = w.take(s, a).unwrap();
    for n in 4..100 {
        w.emit(s, &format!("t.{n}"));
        add_up(&w);
    }
    assert!(w.core.stats().topics_cached <= 8);
    let other = row(&w, "(other)");
    assert!(
        other.queued > 80,
        "what waits of them waits among the others"
    );
    assert_eq!(other.leased, 1);
    let mut next = w.end(s, a, &held);
    while let Some(turn) = next {
        next = w.end(s, a, &turn);
    }
    add_up(&w);
    assert_eq!(w.core.stats().events.delivered, 100);
}

// requirement: STATS-TOPIC
#[test]
fn a_snapshot_names_the_busiest_topics_and_sums_up_the_rest() {
    let _alone = alone();
    let mut w = World::new();
    let s = w.session();
    for n in 0..150 {
        w.emit(s, &format!("t.{n}"));
    }
    (0..3).for_each(|_| {
        w.emit(s, "t.149");
    });
    let topics = w.core.stats().topics;
    assert_eq!(topics.len(), 101);
    assert_eq!((&*topics[0].topic, topics[0].published), ("t.149", 4));
    assert_eq!(
        (&*topics[100].topic, topics[100].published),
        ("(other)", 50)
    );
    add_up(&w);
}

/// One short thread: a request and its reply.
fn exchange(w: &mut World, who: (SessionId, Handle), n: u32) {
    let (s, a) = who;
    w.at.now = w.at.now.plus_millis(1);
    let topic = format!("thread.0190b5c0-7e5f-7000-8000-{n:012x}.ask");
    w.request(s, &topic).unwrap();
    let asked = w.take(s, a).unwrap();
    assert!(w.reply(s, &asked, "yes").unwrap());
    assert!(w.end(s, a, &asked).is_none());
    assert_eq!(w.seen(s).answers.len(), 1);
    w.core.take_woken();
}

// requirement: TOPIC-RECLAIMED
#[test]
fn a_hundred_thousand_short_threads_with_replies_leave_nothing_behind() {
    let _alone = alone();
    let mut w = World::new();
    let s = w.session();
    let a = w.agent(s, "a", &["thread.*.ask"]);
    (0..1_000).for_each(|n| exchange(&mut w, (s, a), n));
    w.pass(120_000);
    w.pass(1);
    let (before, gauges) = (held(), w.core.gauges());
    (1_000..101_000).for_each(|n| exchange(&mut w, (s, a), n));
    let busy = held() - before;
    assert!(busy < 6_000_000, "{busy} bytes while it runs");
    w.pass(61_000);
    for _ in 0..8 {
        w.pass(1);
    }
    let left = held() - before;
    assert!(left < 400_000, "{left} bytes are left of 100,000 topics");
    assert_eq!(w.core.gauges(), gauges);
    assert!(w.core.stats().topics_cached <= Limits::default().topics_kept);
    add_up(&w);
    assert_eq!(w.core.stats().events.delivered, 101_000);
}

// requirement: IDLE-AGENTS
#[test]
fn an_idle_agent_takes_little_memory() {
    let _alone = alone();
    let mut w = World::new();
    let s = w.session();
    w.agent(s, "first", &["q.>"]);
    let before = held();
    for n in 0..1_000 {
        w.agent(s, &format!("agent{n}"), &["a.*.x", "b.>"]);
    }
    let each = (held() - before) / 1_000;
    assert!(each < 4_000, "{each} bytes for each");
}

// requirement: SPACE-RECLAIMED
#[test]
fn namespaces_that_nobody_uses_are_forgotten() {
    let _alone = alone();
    let mut w = World::with(Limits {
        namespaces_idle: 4,
        ..Limits::default()
    });
    let visit = |w: &mut World, n: usize, provides: bool| {
        let s = w.session_in(&format!("tenant{n}"));
        let a = w.agent(s, "a", &["q.>"]);
        w.emit(s, "q.x");
        assert_eq!(w.run(s, a), ["q.x"]);
        if provides {
            w.provider(s, "look", loom_core::EffectClass::Pure);
        }
        w.core.close(s, w.at);
        w.core.take_woken();
    };
    (0..50).for_each(|n| visit(&mut w, n, n % 2 == 0));
    let before = held();
    (50..2_050).for_each(|n| visit(&mut w, n, n % 2 == 0));
    let grown = held() - before;
    assert!(
        grown < 200_000,
        "{grown} bytes are left of 2,000 namespaces"
    );
    let s = w.session_in("tenant2048");
    let gone = w.call(s, "look").unwrap_err();
    assert_eq!(
        gone.code,
        loom_core::Code::ProviderUnavailable,
        "still known"
    );
    let s = w.session_in("tenant2");
    let forgotten = w.call(s, "look").unwrap_err();
    assert_eq!(forgotten.code, loom_core::Code::NotFound);
    assert_eq!(w.core.stats().events.delivered, 2_050);
    add_up(&w);
}
