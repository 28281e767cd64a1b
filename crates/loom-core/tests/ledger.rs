//! The bus against a ledger of the tests' own: who should get what is worked out here, filter by filter and token by
//! token, and held against what the engine counted and delivered.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

mod common;

use std::collections::BTreeMap;

use common::World;
use loom_core::{Delivery, Handle, Limits, Offer, Options, Publish, Qos, SessionId, Ticket};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Emit {
        topic: usize,
        key: usize,
        qos: Qos,
        ttl: bool,
    },
    Take {
        agent: usize,
    },
    End {
        agent: usize,
    },
    Fail {
        agent: usize,
    },
    Pass {
        millis: u64,
    },
    Remove {
        agent: usize,
    },
}

const TOPICS: [&str; 4] = ["a", "a.b", "a.b.c", "b.c"];
const FILTERS: [&[&str]; 4] = [&["a.>", "a"], &["*.b", "a.b"], &[">"], &["b.*", "a.*.c"]];
const KEYS: [&str; 3] = ["x", "y", "z"];

fn is_match(filter: &str, topic: &str) -> bool {
    let (filter, topic): (Vec<&str>, Vec<&str>) =
        (filter.split('.').collect(), topic.split('.').collect());
    let tail = filter.last() == Some(&">");
    let fixed = if tail { filter.len() - 1 } else { filter.len() };
    let long_enough = if tail {
        topic.len() > fixed
    } else {
        topic.len() == fixed
    };
    long_enough && (0..fixed).all(|at| filter[at] == "*" || filter[at] == topic[at])
}

struct Agent {
    handle: Handle,
    filters: &'static [&'static str],
    held: Vec<Delivery>,
    expected: u64,
    ended: u64,
    last: BTreeMap<String, u128>,
    gone: bool,
}

struct Run {
    w: World,
    s: SessionId,
    agents: Vec<Agent>,
    parked: BTreeMap<Ticket, usize>,
}

impl Run {
    fn new(limits: Limits) -> Self {
        let mut w = World::with(limits);
        let s = w.session();
        let agents = FILTERS.iter().enumerate().map(|(at, filters)| Agent {
            handle: w.agent_of(s, &format!("agent{at}"), filters, 2),
            filters,
            held: Vec::new(),
            expected: 0,
            ended: 0,
            last: BTreeMap::new(),
            gone: false,
        });
        let agents = agents.collect();
        let mut run = Self {
            w,
            s,
            agents,
            parked: BTreeMap::new(),
        };
        // What the directory said to those who hear everything is none of the ledger's.
        for at in 0..run.agents.len() {
            run.empty(at);
            let stats = run.w.core.stats();
            run.agents[at].expected = stats.subscriptions[at].matched;
            run.agents[at].ended = stats.subscriptions[at].delivered;
            run.agents[at].last.clear();
        }
        run
    }

    fn hears_engine(&self, at: usize) -> bool {
        self.agents[at].filters.contains(&">")
    }

    fn count(&mut self, topic: usize) {
        for agent in self.agents.iter_mut().filter(|agent| !agent.gone) {
            agent.expected += u64::from(
                agent
                    .filters
                    .iter()
                    .any(|filter| is_match(filter, TOPICS[topic])),
            );
        }
    }

    fn emit(&mut self, topic: usize, key: usize, qos: Qos, ttl: bool) {
        let options = Options {
            key: Some(KEYS[key].to_owned()),
            ttl_ms: ttl.then_some(700),
            ..Options::default()
        };
        let publish = Publish {
            qos,
            options: Some(Box::new(options)),
            ..self.w.publish(self.s, TOPICS[topic])
        };
        match self.w.offer(self.s, publish) {
            Ok(Offer::Done(_)) => self.count(topic),
            Ok(Offer::Parked(ticket)) => {
                self.parked.insert(ticket, topic);
            }
            Ok(Offer::Logging(..) | Offer::NoRoom) => unreachable!("no log, and nothing is eager"),
            Err(error) => assert_eq!(error.code, loom_core::Code::Exhausted),
        }
        self.settle();
    }

    /// What was parked counts from when it was accepted; who was removed meanwhile did not get it.
    fn settle(&mut self) {
        for (ticket, _) in self.w.seen(self.s).accepted {
            let topic = self.parked.remove(&ticket).unwrap();
            self.count(topic);
        }
    }

    fn took(&mut self, at: usize, delivery: Delivery) {
        let agent = &mut self.agents[at];
        let lane = delivery.envelope.lane().to_string();
        assert!(
            agent
                .held
                .iter()
                .all(|held| held.envelope.lane().to_string() != lane)
        );
        if delivery.envelope.qos == Qos::Batched {
            let order = format!("{} {lane}", delivery.envelope.topic);
            let last = agent.last.insert(order, delivery.envelope.id);
            assert!(
                last.is_none_or(|last| last < delivery.envelope.id),
                "overtaken"
            );
        }
        agent.held.push(delivery);
    }

    fn take(&mut self, at: usize) {
        if self.agents[at].gone {
            return;
        }
        if let Some(delivery) = self.w.take(self.s, self.agents[at].handle) {
            self.took(at, delivery);
        }
    }

    fn end(&mut self, at: usize, fail: bool) {
        if self.agents[at].held.is_empty() {
            return;
        }
        let delivery = self.agents[at].held.remove(0);
        self.agents[at].ended += 1;
        if fail {
            self.w
                .fail(self.s, &delivery, loom_core::Code::HandlerError)
                .unwrap();
        } else if let Some(next) = self.w.end(self.s, self.agents[at].handle, &delivery) {
            self.took(at, next);
        }
    }

    fn empty(&mut self, at: usize) {
        for _ in 0..10_000 {
            self.take(at);
            if self.agents[at].held.is_empty() {
                return;
            }
            self.end(at, false);
            self.settle();
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Emit {
                topic,
                key,
                qos,
                ttl,
            } => self.emit(topic, key, qos, ttl),
            Step::Take { agent } => self.take(agent),
            Step::End { agent } => self.end(agent, false),
            Step::Fail { agent } => self.end(agent, true),
            Step::Pass { millis } => {
                self.w.pass(millis);
            }
            Step::Remove { agent } => {
                if !std::mem::replace(&mut self.agents[agent].gone, true) {
                    self.w
                        .core
                        .remove(self.s, self.agents[agent].handle, self.w.at)
                        .unwrap();
                }
            }
        }
        self.settle();
        self.w.check();
    }

    fn finish(mut self) {
        self.w.pass(5_000);
        self.settle();
        assert!(self.parked.is_empty(), "every parked offer is answered");
        for at in 0..self.agents.len() {
            self.empty(at);
        }
        let stats = self.w.core.stats();
        for (at, agent) in self
            .agents
            .iter()
            .enumerate()
            .filter(|(_, agent)| !agent.gone)
        {
            let name = format!("agent{at}");
            let found = stats
                .subscriptions
                .iter()
                .find(|sub| sub.name == name)
                .unwrap();
            if !self.hears_engine(at) {
                assert_eq!(
                    (found.matched, found.delivered),
                    (agent.expected, agent.ended),
                    "{name}"
                );
            }
            let lost = found.dropped.total() + found.expired;
            assert_eq!(found.matched, found.delivered + lost, "{name}");
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let qos =
        prop_oneof![1 => Just(Qos::Realtime), 3 => Just(Qos::Batched), 1 => Just(Qos::Background)];
    let step = prop_oneof![
        8 => (0..4usize, 0..3usize, qos, proptest::bool::weighted(0.2))
            .prop_map(|(topic, key, qos, ttl)| Step::Emit { topic, key, qos, ttl }),
        5 => (0..4usize).prop_map(|agent| Step::Take { agent }),
        5 => (0..4usize).prop_map(|agent| Step::End { agent }),
        1 => (0..4usize).prop_map(|agent| Step::Fail { agent }),
        2 => (1..800u64).prop_map(|millis| Step::Pass { millis }),
        1 => (0..4usize).prop_map(|agent| Step::Remove { agent }),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    // requirement: CONSERVATION, EVENT-ORDER
    #[test]
    fn what_was_matched_was_delivered_or_is_accounted_for(steps in steps(), items in 1..6usize) {
        let mut run = Run::new(Limits { queue_items: items, ..Limits::default() });
        for step in &steps {
            run.step(step);
        }
        run.finish();
    }
}
