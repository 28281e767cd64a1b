//! What the bus costs without Python: `cargo bench -p loom-core`. The figures stand in
//! `target/criterion/<group>/<case>/new/estimates.json`, nanoseconds for one event; `make bench` reads them there.
//!
//! - `publish/one`: publish, take and finish one event for one subscriber.
//! - `fanout/100`: the same for one event with a hundred subscribers: a hundred deliveries.
//! - `warm/{10,10000}`, `cold/{10,10000}`: publish to one of a thousand topics, or to one never seen, with so many
//!   filters of which one matches, then take and finish it.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark stops when what it measures fails, and reads the clock"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use loom_core::{AgentSpec, Core, Handle, Limits, Moment, Nanos, Offer, Publish, Qos, SessionId};

/// Events between two looks at the clock: long enough that the clock costs nothing, short enough for the queues.
const BATCH: u64 = 64;
const TOPICS: usize = 1_000;
/// Filters of one agent.
const EACH: usize = 10;

struct Bus {
    core: Core,
    session: SessionId,
    sender: Handle,
    at: Moment,
    agents: Vec<Handle>,
}

impl Bus {
    fn new() -> Self {
        let mut core = Core::new(Limits::default(), 1);
        let session = core.attach("default", "bench").unwrap();
        let sender = core.root(session).unwrap();
        let at = Moment {
            now: Nanos(1_000_000),
            wall_ms: 1_700_000_000_000,
        };
        Self {
            core,
            session,
            sender,
            at,
            agents: Vec::new(),
        }
    }

    fn agent(&mut self, filters: &[&str]) {
        let name = format!("a{}", self.agents.len());
        let spec = AgentSpec {
            name: &name,
            filters,
            group: "",
            concurrency: 64,
            qos: Qos::Batched,
            info: b"{}",
            start: loom_core::Start::Now,
            max_deliver: 0,
            exclusive: false,
        };
        let handle = self.core.register(self.session, &spec, self.at).unwrap();
        self.agents.push(handle);
    }

    fn publish(&mut self, topic: &str) {
        let publish = Publish {
            sender: self.sender,
            turn: None,
            topic,
            payload: Box::from(
                *b"{\"n\": 12345678901234567890, \"text\": \"as much as an event has\"}",
            ),
            qos: Qos::Batched,
            options: None,
            ack: None,
            eager: true,
        };
        self.at.now = self.at.now.plus(1_000);
        let offer = self.core.offer(self.session, publish, self.at).unwrap();
        assert!(matches!(offer, Offer::Done(receipt) if receipt.matched > 0));
    }

    /// Takes and finishes all of these agents; says how many events it were.
    fn empty(&mut self, agents: impl Iterator<Item = usize>) -> u64 {
        let mut count = 0;
        for agent in agents {
            let Some(handle) = self.agents.get(agent).copied() else {
                continue;
            };
            let mut done = None;
            while let Some(turn) = self.core.take(self.session, handle, done, self.at).unwrap() {
                count += 1;
                done = turn.lease;
                black_box(&turn.envelope);
            }
        }
        self.core.drain(self.session, usize::MAX).unwrap();
        count
    }
}

fn publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("publish");
    let mut bus = Bus::new();
    bus.agent(&["order.>"]);
    group.bench_function("one", |b| {
        b.iter_custom(|events| {
            let start = Instant::now();
            let mut left = events;
            while left > 0 {
                let batch = left.min(BATCH);
                (0..batch).for_each(|_| bus.publish("order.paid"));
                assert_eq!(bus.empty(0..1), batch);
                left -= batch;
            }
            start.elapsed()
        });
    });
    group.finish();
}

fn fan_out(c: &mut Criterion) {
    let mut group = c.benchmark_group("fanout");
    let mut bus = Bus::new();
    (0..100).for_each(|_| bus.agent(&["order.>"]));
    group.bench_function("100", |b| {
        b.iter_custom(|events| {
            let start = Instant::now();
            let mut left = events;
            while left > 0 {
                let batch = left.min(BATCH);
                (0..batch).for_each(|_| bus.publish("order.paid"));
                assert_eq!(bus.empty(0..100), batch * 100);
                left -= batch;
            }
            start.elapsed()
        });
    });
    group.finish();
}

fn with_filters(count: usize) -> Bus {
    let mut bus = Bus::new();
    let filters: Vec<String> = (0..count).map(|n| format!("org.{n}.>")).collect();
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    filters.chunks(EACH).for_each(|some| bus.agent(some));
    bus
}

/// Publishes so many events, and times only that and their delivery, not the making of the topics.
fn pass(
    bus: &mut Bus,
    filters: usize,
    events: u64,
    topic: &mut dyn FnMut() -> (usize, String),
) -> Duration {
    let mut took = Duration::ZERO;
    let mut left = events;
    while left > 0 {
        let batch = left.min(BATCH);
        let topics: Vec<(usize, String)> = (0..batch).map(|_| topic()).collect();
        let start = Instant::now();
        for (_, topic) in &topics {
            bus.publish(topic);
        }
        let hearers = topics.iter().map(|(filter, _)| (filter % filters) / EACH);
        assert_eq!(bus.empty(hearers), batch);
        took += start.elapsed();
        left -= batch;
    }
    took
}

fn filters(c: &mut Criterion) {
    for kind in ["warm", "cold"] {
        let mut group = c.benchmark_group(kind);
        for count in [10, 10_000] {
            let mut bus = with_filters(count);
            let mut n = 0;
            let warm = kind == "warm";
            let mut topic = || {
                n += 1;
                // A step that shares no factor with the number of filters visits them all.
                let filter = (n * 7_919) % count;
                let last = if warm { n % TOPICS } else { n };
                let filter = if warm { (last * 7_919) % count } else { filter };
                (filter, format!("org.{filter}.t{last}"))
            };
            pass(&mut bus, count, 2 * TOPICS as u64, &mut topic);
            group.bench_function(count.to_string(), |b| {
                b.iter_custom(|events| pass(&mut bus, count, events, &mut topic));
            });
        }
        group.finish();
    }
}

fn quick() -> Criterion {
    Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
}

criterion_group! {
    name = bus;
    config = quick();
    targets = publish, fan_out, filters
}
criterion_main!(bus);
