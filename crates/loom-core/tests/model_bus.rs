//! The bus against a reference model of two hundred lines: who gets which event next, what is lost, what waits and what
//! is refused is foretold for every step. Two agents hear a topic each, and a dashboard hears both as realtime.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

mod common;

use std::collections::VecDeque;

use common::World;
use loom_core::{
    AgentSpec, Code, Delivery, Handle, Limits, Offer, Options, Publish, Qos, SessionId, Ticket,
};
use proptest::prelude::*;

const KEYS: [&str; 3] = ["x", "y", "z"];
const TOPICS: [&str; 2] = ["a", "b"];
const SUBS: usize = 3;
const DASHBOARD: usize = 2;
const CONCURRENCY: usize = 2;
const WAIT_MS: u64 = 1_000;

#[derive(Debug, Clone, Copy)]
enum Step {
    Emit {
        topic: usize,
        key: usize,
        qos: Qos,
        ttl: Option<u64>,
    },
    Take(usize),
    End(usize),
    Fail(usize),
    Pass(u64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Item {
    id: u128,
    key: usize,
    qos: Qos,
    /// In milliseconds.
    expires: Option<u64>,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Counts {
    matched: u64,
    delivered: u64,
    failed: u64,
    overflow: u64,
    lagging: u64,
    expired: u64,
}

/// One subscription as it should be.
#[derive(Default)]
struct Sub {
    lossy: bool,
    queue: Vec<Item>,
    held: Vec<Item>,
    /// Lanes that have something and no turn, the longest waiting first.
    ready: VecDeque<usize>,
    /// With the end of its wait, and its place among all that wait.
    parked: VecDeque<(Item, u64, u64)>,
    lags: bool,
    counts: Counts,
}

impl Sub {
    fn is_realtime(&self, qos: Qos) -> bool {
        self.lossy || qos == Qos::Realtime
    }

    fn busy(&self, key: usize) -> bool {
        self.held.iter().any(|item| item.key == key)
    }

    fn put(&mut self, item: Item, most: usize) {
        self.counts.matched += 1;
        if !self.is_realtime(item.qos) {
            if self.lags || self.queue.len() >= most {
                self.counts.lagging += 1;
                return;
            }
        } else if self.queue.len() >= most {
            self.counts.overflow += 1;
            let oldest = self.queue.iter().position(|old| self.is_realtime(old.qos));
            let Some(oldest) = oldest else { return };
            self.cut(oldest);
            self.catch_up(most);
        }
        let waits = self.queue.iter().any(|old| old.key == item.key);
        if !waits && !self.busy(item.key) {
            self.ready.push_back(item.key);
        }
        self.queue.push(item);
    }

    /// Takes an event out of the middle.
    fn cut(&mut self, at: usize) {
        let key = self.queue.remove(at).key;
        if !self.queue.iter().any(|item| item.key == key) {
            self.ready.retain(|other| *other != key);
        }
    }

    fn release(&mut self, key: usize) {
        if self.queue.iter().any(|item| item.key == key) {
            self.ready.push_back(key);
        }
    }

    fn catch_up(&mut self, most: usize) {
        self.lags &= self.queue.len() > most / 2;
    }

    fn next(&mut self, now: u64, most: usize) -> Option<Item> {
        while self.held.len() < CONCURRENCY {
            let key = self.ready.pop_front()?;
            let at = self.queue.iter().position(|item| item.key == key)?;
            let item = self.queue.remove(at);
            self.catch_up(most);
            if item.expires.is_none_or(|at| at > now) {
                self.held.push(item);
                return Some(item);
            }
            self.counts.expired += 1;
            // The lane keeps its place.
            if self.queue.iter().any(|item| item.key == key) {
                self.ready.push_front(key);
            }
        }
        None
    }
}

struct Model {
    subs: [Sub; SUBS],
    most: usize,
    now: u64,
    /// Parked offers that went, in their order.
    accepted: Vec<u128>,
    places: u64,
}

#[derive(Debug, PartialEq)]
enum Fate {
    Taken,
    Waits,
    Refused,
}

impl Model {
    fn emit(&mut self, topic: usize, item: Item) -> Fate {
        let sub = &self.subs[topic];
        let most = if item.qos == Qos::Background {
            self.most.div_ceil(2)
        } else {
            self.most
        };
        let lags = item.qos == Qos::Batched && sub.lags;
        let room = sub.parked.is_empty() && (lags || sub.queue.len() < most);
        match item.qos {
            Qos::Background if !room => return Fate::Refused,
            Qos::Batched if !room => {
                let until = self.now + WAIT_MS;
                self.subs[topic]
                    .parked
                    .push_back((item, until, self.places));
                self.places += 1;
                return Fate::Waits;
            }
            _ => self.apply(topic, item),
        }
        Fate::Taken
    }

    fn apply(&mut self, topic: usize, item: Item) {
        self.subs[topic].put(item, self.most);
        self.subs[DASHBOARD].put(item, self.most);
    }

    /// Lets those go that wait for room, as far as there is some; who lags loses all of them.
    fn unpark(&mut self, topic: usize) {
        while self.subs[topic].lags || self.subs[topic].queue.len() < self.most {
            let Some((item, ..)) = self.subs[topic].parked.pop_front() else {
                return;
            };
            self.apply(topic, item);
            self.accepted.push(item.id);
        }
    }

    fn take(&mut self, at: usize) -> Option<Item> {
        let taken = self.subs[at].next(self.now, self.most);
        self.settle();
        taken
    }

    fn settle(&mut self) {
        (0..TOPICS.len()).for_each(|topic| self.unpark(topic));
    }

    fn end(&mut self, at: usize, failed: bool) {
        let sub = &mut self.subs[at];
        let item = sub.held.remove(0);
        sub.counts.delivered += 1;
        sub.counts.failed += u64::from(failed);
        sub.release(item.key);
    }

    /// The next thing that is due: a parked offer (its topic), or a queued event (its subscription and place).
    fn due(&self) -> Option<(u64, u64, usize, Option<usize>)> {
        let offers = (0..TOPICS.len()).filter_map(|topic| {
            let (_, until, place) = self.subs[topic].parked.front()?;
            Some((*until, *place, topic, None))
        });
        let events = self.subs.iter().enumerate().flat_map(|(sub, s)| {
            let mortal = s.queue.iter().enumerate();
            mortal.filter_map(move |(at, item)| Some((item.expires?, u64::MAX, sub, Some(at))))
        });
        let first = offers.chain(events).min()?;
        (first.0 <= self.now).then_some(first)
    }

    fn pass(&mut self, millis: u64) {
        self.now += millis;
        while let Some((_, _, sub, place)) = self.due() {
            match place {
                Some(place) => {
                    self.subs[sub].cut(place);
                    self.subs[sub].counts.expired += 1;
                    self.subs[sub].catch_up(self.most);
                }
                None => self.subs[sub].lags = true,
            }
            self.settle();
        }
    }
}

struct Run {
    w: World,
    s: SessionId,
    agents: Vec<Handle>,
    held: [Vec<Delivery>; SUBS],
    waiting: Vec<(Ticket, u128)>,
    model: Model,
}

impl Run {
    fn new(most: usize) -> Self {
        let mut w = World::with(Limits {
            queue_items: most,
            ..Limits::default()
        });
        let s = w.session();
        let heard: [(&str, &[&str]); SUBS] = [("a", &["a"]), ("b", &["b"]), ("d", &["a", "b"])];
        let agents = heard.iter().map(|(name, filters)| {
            let spec = AgentSpec {
                name,
                filters,
                group: "",
                concurrency: 2,
                qos: if *name == "d" {
                    Qos::Realtime
                } else {
                    Qos::Batched
                },
                info: b"{}",
                start: loom_core::Start::Now,
                max_deliver: 0,
                exclusive: false,
            };
            w.core.register(s, &spec, w.at).unwrap()
        });
        let agents = agents.collect();
        let mut subs: [Sub; SUBS] = Default::default();
        subs[DASHBOARD].lossy = true;
        let model = Model {
            subs,
            most,
            now: 0,
            accepted: Vec::new(),
            places: 0,
        };
        let (held, waiting) = (Default::default(), Vec::new());
        Self {
            w,
            s,
            agents,
            held,
            waiting,
            model,
        }
    }

    fn emit(&mut self, topic: usize, mut item: Item, ttl_ms: Option<u64>) {
        let options = Options {
            key: Some(KEYS[item.key].to_owned()),
            ttl_ms,
            ..Options::default()
        };
        let publish = Publish {
            qos: item.qos,
            options: Some(Box::new(options)),
            ..self.w.publish(self.s, TOPICS[topic])
        };
        let fate = match self.w.offer(self.s, publish) {
            Ok(Offer::Done(receipt)) => {
                item.id = receipt.id;
                Fate::Taken
            }
            Ok(Offer::Parked(ticket)) => {
                // Its id is told when it is accepted; until then its place in the line names it.
                item.id = u128::from(ticket.0);
                self.waiting.push((ticket, item.id));
                Fate::Waits
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert_eq!(error.code, Code::Exhausted);
                Fate::Refused
            }
        };
        assert_eq!(self.model.emit(topic, item), fate, "{item:?}");
    }

    fn took(&mut self, at: usize, given: Option<Delivery>, foretold: Option<Item>) {
        let seen = given.as_ref().map(|delivery| {
            let lane = delivery.envelope.lane().to_string();
            let key = KEYS.iter().position(|key| *key == lane).unwrap();
            (delivery.envelope.id, key)
        });
        assert_eq!(
            seen,
            foretold.map(|item| (item.id, item.key)),
            "of agent {at}"
        );
        self.held[at].extend(given);
    }

    fn take(&mut self, at: usize) {
        let given = self.w.take(self.s, self.agents[at]);
        let foretold = self.model.take(at);
        self.settle();
        self.took(at, given, foretold);
    }

    fn end(&mut self, at: usize) {
        if self.held[at].is_empty() {
            return;
        }
        let done = self.held[at].remove(0);
        let given = self.w.end(self.s, self.agents[at], &done);
        self.model.end(at, false);
        let foretold = self.model.take(at);
        self.settle();
        self.took(at, given, foretold);
    }

    fn fail(&mut self, at: usize) {
        if self.held[at].is_empty() {
            return;
        }
        let done = self.held[at].remove(0);
        self.w.fail(self.s, &done, Code::HandlerError).unwrap();
        self.model.end(at, true);
    }

    /// Parked offers are accepted in the order that was foretold; from then on their events have their ids.
    fn settle(&mut self) {
        let accepted = self.w.seen(self.s).accepted;
        let foretold = std::mem::take(&mut self.model.accepted);
        let told: Vec<u128> = accepted
            .iter()
            .map(|(ticket, _)| u128::from(ticket.0))
            .collect();
        assert_eq!(told, foretold);
        for (ticket, receipt) in accepted {
            self.waiting.retain(|(other, _)| *other != ticket);
            for sub in &mut self.model.subs {
                let items = sub.queue.iter_mut().chain(&mut sub.held);
                items
                    .filter(|item| item.id == u128::from(ticket.0))
                    .for_each(|item| item.id = receipt.id);
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Emit {
                topic,
                key,
                qos,
                ttl,
            } => {
                let expires = ttl.map(|ttl| self.model.now + ttl);
                let item = Item {
                    id: 0,
                    key,
                    qos,
                    expires,
                };
                self.emit(topic, item, ttl);
            }
            Step::Take(at) => self.take(at),
            Step::End(at) => self.end(at),
            Step::Fail(at) => self.fail(at),
            Step::Pass(millis) => {
                self.w.pass(millis);
                self.model.pass(millis);
            }
        }
        self.settle();
        self.w.check();
        self.compare();
    }

    fn compare(&self) {
        let stats = self.w.core.stats();
        for (row, sub) in stats.subscriptions.iter().zip(&self.model.subs) {
            let counts = Counts {
                matched: row.matched,
                delivered: row.delivered,
                failed: row.failed,
                overflow: row.dropped.overflow,
                lagging: row.dropped.lagging,
                expired: row.expired,
            };
            assert_eq!(counts, sub.counts, "{}", row.name);
            let now = (row.queued, row.leased as usize, row.lagging);
            assert_eq!(
                now,
                (sub.queue.len(), sub.held.len(), sub.lags),
                "{}",
                row.name
            );
        }
        let parked: usize = self.model.subs.iter().map(|sub| sub.parked.len()).sum();
        assert_eq!(stats.gauges.parked, parked);
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let qos = prop_oneof![
        2 => Just(Qos::Realtime),
        4 => Just(Qos::Batched),
        1 => Just(Qos::Background),
    ];
    let ttl = prop_oneof![3 => Just(None), 1 => (1..1_500u64).prop_map(Some)];
    let emit = (0..2usize, 0..3usize, qos, ttl).prop_map(|(topic, key, qos, ttl)| Step::Emit {
        topic,
        key,
        qos,
        ttl,
    });
    let step = prop_oneof![
        10 => emit,
        5 => (0..SUBS).prop_map(Step::Take),
        4 => (0..SUBS).prop_map(Step::End),
        1 => (0..SUBS).prop_map(Step::Fail),
        2 => (1..1_200u64).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    // requirement: QOS-MATRIX, LANE-ORDER, LANE-PARALLEL, EVENT-TTL, CONSERVATION
    #[test]
    fn the_bus_does_what_the_model_foretells(steps in steps(), most in 1..7usize) {
        let mut run = Run::new(most);
        for step in steps {
            run.step(step);
        }
    }
}
