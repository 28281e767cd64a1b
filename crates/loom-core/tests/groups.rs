//! Groups against a small model: each event is one member's, a key stays where something of it waits or runs, and what
//! waits for a member that leaves is another's, or is counted as lost.
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
    AgentSpec, Code, Delivery, Handle, Health, Limits, Offer, Options, Publish, Qos, SessionId,
};
use proptest::prelude::*;

fn member(w: &mut World, s: SessionId, name: &str, filters: &[&str]) -> Handle {
    let spec = AgentSpec {
        name,
        filters,
        group: "crew",
        concurrency: 2,
        qos: Qos::Batched,
        info: b"{}",
        start: loom_core::Start::Now,
        max_deliver: 0,
        exclusive: false,
    };
    w.core.register(s, &spec, w.at).unwrap()
}

fn small(items: usize) -> World {
    World::with(Limits {
        queue_items: items,
        ..Limits::default()
    })
}

fn emit(w: &mut World, s: SessionId, key: &str) -> Offer {
    w.emit_key(s, "job", key, Qos::Batched).unwrap()
}

// requirement: GROUP-LEAVES
#[test]
fn what_waits_for_a_member_that_leaves_goes_to_another_in_its_order() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let a = member(&mut w, s, "a", &["job"]);
    let ids: Vec<u128> = (0..3).map(|_| done(emit(&mut w, s, "k")).id).collect();
    let running = w.take(s, a).unwrap();
    let b = member(&mut w, t, "b", &["job"]);
    w.core.remove(s, a, w.at).unwrap();
    let stats = w.core.stats();
    let row = stats.subscriptions.iter().find(|row| row.name == "b");
    assert_eq!(row.map(|row| (row.matched, row.queued)), Some((2, 2)));
    assert_eq!(stats.events.matched, 3, "matched once for the group");
    assert_eq!(stats.events.dropped.total(), 0);
    w.check();
    let first = w.take(t, b).unwrap();
    assert_eq!(first.envelope.id, ids[1]);
    let second = w.end(t, b, &first).unwrap();
    assert_eq!(second.envelope.id, ids[2]);
    w.end(t, b, &second);
    w.end(s, a, &running);
    assert_eq!(w.core.stats().events.delivered, 3);
}

// requirement: GROUP-LEAVES
#[test]
fn who_comes_back_in_the_middle_of_a_turn_does_not_overtake_what_another_was_given() {
    let mut w = World::new();
    let s = w.session();
    let a = member(&mut w, s, "a", &["job"]);
    let ids: Vec<u128> = (0..3).map(|_| done(emit(&mut w, s, "k")).id).collect();
    let running = w.take(s, a).unwrap();
    let b = member(&mut w, s, "b", &["job"]);
    w.core.set_state(s, a, Health::Quarantined, w.at).unwrap();
    w.core.set_state(s, a, Health::Up, w.at).unwrap();
    let newest = done(emit(&mut w, s, "k")).id;
    let again = w.end(s, a, &running);
    assert!(
        again.is_none(),
        "the key has moved, and nothing new came back"
    );
    assert_eq!(w.run_ids(s, b), [ids[1], ids[2], newest]);
}

// requirement: GROUP-LEAVES
#[test]
fn what_finds_no_room_at_another_member_is_counted_as_lost() {
    let mut w = small(2);
    let (s, t) = (w.session(), w.session());
    member(&mut w, s, "a", &["job"]);
    for _ in 0..2 {
        done(emit(&mut w, s, "k"));
    }
    let b = member(&mut w, t, "b", &["job"]);
    done(emit(&mut w, s, "other"));
    w.core.close(s, w.at);
    let events = w.core.stats().events;
    assert_eq!((events.matched, events.dropped.session_gone), (3, 1));
    assert_eq!(w.run(t, b).len(), 2);
    w.check();
}

// requirement: GROUP-LEAVES
#[test]
fn a_request_that_waits_for_a_member_that_leaves_is_answered_by_another() {
    let mut w = World::new();
    let (s, t) = (w.session(), w.session());
    let a = member(&mut w, t, "a", &["job"]);
    w.request(s, "job").unwrap();
    let b = member(&mut w, t, "b", &["job"]);
    w.core.set_state(t, a, Health::Quarantined, w.at).unwrap();
    assert!(w.seen(s).outcomes.is_empty(), "nobody declined");
    let asked = w.take(t, b).unwrap();
    assert!(asked.asked && w.reply(t, &asked, "yes").unwrap());
    assert_eq!(w.seen(s).answers.len(), 1);
    w.end(t, b, &asked);
    w.request(s, "job").unwrap();
    w.core.remove(t, b, w.at).unwrap();
    assert_eq!(
        w.outcome(s).0,
        Some(Code::Unavailable),
        "there is nobody left"
    );
}

// requirement: GROUP-LEAVES
#[test]
fn an_offer_that_waits_for_a_member_that_leaves_goes_to_another() {
    let mut w = small(1);
    let (s, t) = (w.session(), w.session());
    let a = member(&mut w, t, "a", &["job"]);
    done(emit(&mut w, s, "k"));
    let ticket = parked(emit(&mut w, s, "k"));
    let b = member(&mut w, t, "b", &["job"]);
    w.core.remove(t, a, w.at).unwrap();
    assert_eq!(
        w.core.gauges().parked,
        1,
        "it waits for room at the other now"
    );
    let first = w.take(t, b).unwrap();
    assert_eq!(w.seen(s).accepted[0].0, ticket);
    let second = w.end(t, b, &first).unwrap();
    w.end(t, b, &second);
    assert_eq!(w.core.stats().events.delivered, 2);
}

// requirement: GROUP-FILTERS
#[test]
fn members_may_hear_different_things_and_get_only_what_they_hear() {
    let mut w = World::new();
    let s = w.session();
    let a = member(&mut w, s, "a", &["job", "only.a"]);
    let b = member(&mut w, s, "b", &["job"]);
    for _ in 0..3 {
        assert_eq!(w.emit(s, "only.a").matched, 1);
    }
    assert_eq!((w.run(s, a).len(), w.run(s, b).len()), (3, 0));
    for _ in 0..4 {
        assert_eq!(w.emit(s, "job").matched, 1);
    }
    assert_eq!((w.run(s, a).len(), w.run(s, b).len()), (2, 2));
    w.emit(s, "only.a");
    w.core.remove(s, a, w.at).unwrap();
    assert_eq!(
        w.core.stats().events.dropped.unsubscribed,
        1,
        "nobody else hears it"
    );
    w.run(s, b);
}

#[derive(Debug, Clone)]
enum Step {
    Join,
    Leave(usize),
    Quarantine(usize),
    Release(usize),
    Emit(usize),
    Take(usize),
    End(usize),
}

struct Member {
    session: SessionId,
    handle: Handle,
    held: Vec<Delivery>,
    /// Events that it must have, in their order, as far as the model knows.
    queue: Vec<(usize, u128)>,
    deaf: bool,
    gone: bool,
}

/// Who has what, worked out from what the engine promises. At most two members hear at a time, so that it is known who
/// gets what a member leaves.
struct Model {
    w: World,
    s: SessionId,
    items: usize,
    members: Vec<Member>,
    delivered: u64,
    published: u64,
    lost: u64,
}

const KEYS: [&str; 3] = ["x", "y", "z"];

fn key_of(delivery: &Delivery) -> usize {
    let lane = delivery.envelope.lane().to_string();
    KEYS.iter().position(|key| *key == lane).unwrap()
}

impl Model {
    fn new(items: usize) -> Self {
        let mut w = small(items);
        let s = w.session();
        let (members, delivered, published, lost) = (Vec::new(), 0, 0, 0);
        Self {
            w,
            s,
            items,
            members,
            delivered,
            published,
            lost,
        }
    }

    fn hearing(&self) -> Vec<usize> {
        let all = self.members.iter().enumerate();
        all.filter(|(_, m)| !m.deaf && !m.gone)
            .map(|(at, _)| at)
            .collect()
    }

    fn join(&mut self) {
        if self.hearing().len() == 2 {
            return;
        }
        let session = self.w.session();
        let name = format!("m{}", self.members.len());
        let handle = member(&mut self.w, session, &name, &["job"]);
        self.members.push(Member {
            session,
            handle,
            held: Vec::new(),
            queue: Vec::new(),
            deaf: false,
            gone: false,
        });
    }

    /// Those that hear and have something of this key: more than one only when one came back from quarantine.
    fn owners(&self, key: usize) -> Vec<usize> {
        let mut hearing = self.hearing();
        hearing.retain(|at| {
            let member = &self.members[*at];
            let queued = member.queue.iter().any(|(other, _)| *other == key);
            queued || member.held.iter().any(|held| key_of(held) == key)
        });
        hearing
    }

    /// How many each member has queued, as the engine counts.
    fn queued(&self) -> Vec<usize> {
        let stats = self.w.core.stats();
        let of = |at: usize| {
            let name = format!("m{at}");
            let row = stats.subscriptions.iter().find(|row| row.name == name);
            row.map_or(0, |row| row.queued)
        };
        (0..self.members.len()).map(of).collect()
    }

    fn emit(&mut self, key: usize) {
        let (owners, before) = (self.owners(key), self.queued());
        let options = Options {
            key: Some(KEYS[key].to_owned()),
            ..Options::default()
        };
        let publish = Publish {
            options: Some(Box::new(options)),
            eager: true,
            ..self.w.publish(self.s, "job")
        };
        let offer = self.w.offer(self.s, publish).unwrap();
        let may = if owners.is_empty() {
            self.hearing()
        } else {
            owners
        };
        let Offer::Done(receipt) = offer else {
            let full = may.iter().any(|at| before[*at] >= self.items);
            return assert!(full, "refused though there is room");
        };
        let after = self.queued();
        let got: Vec<usize> = (0..after.len())
            .filter(|at| after[*at] > before[*at])
            .collect();
        assert_eq!(got.len(), receipt.matched, "one member gets it");
        assert_eq!(receipt.matched, may.len().min(1), "whoever hears");
        for at in got {
            assert!(may.contains(&at), "a key moved");
            self.members[at].queue.push((key, receipt.id));
            self.published += 1;
        }
    }

    /// What waited for this member is the other's as far as there is room, or lost.
    fn left(&mut self, at: usize) {
        let heir = self.hearing().first().copied();
        for item in std::mem::take(&mut self.members[at].queue) {
            match heir.map(|heir| &mut self.members[heir].queue) {
                Some(queue) if queue.len() < self.items => queue.push(item),
                _ => self.lost += 1,
            }
        }
    }

    fn took(&mut self, at: usize, delivery: Delivery) {
        let (key, id) = (key_of(&delivery), delivery.envelope.id);
        let member = &mut self.members[at];
        let busy = member.held.iter().any(|held| key_of(held) == key);
        assert!(!busy, "one turn at a time in a lane");
        let first = member.queue.iter().position(|(other, _)| *other == key);
        let first = first.map(|first| member.queue.remove(first));
        assert_eq!(first, Some((key, id)), "in the order of the key");
        member.held.push(delivery);
    }

    fn take(&mut self, at: usize) {
        let (session, handle) = (self.members[at].session, self.members[at].handle);
        if self.members[at].gone {
            return;
        }
        if let Some(delivery) = self.w.take(session, handle) {
            self.took(at, delivery);
        }
    }

    fn end(&mut self, at: usize) {
        if self.members[at].held.is_empty() {
            return;
        }
        let delivery = self.members[at].held.remove(0);
        self.delivered += 1;
        let (session, handle) = (self.members[at].session, self.members[at].handle);
        if let Some(next) = self.w.end(session, handle, &delivery) {
            self.took(at, next);
        }
    }

    fn step(&mut self, step: &Step) {
        let count = self.members.len();
        match *step {
            Step::Join => self.join(),
            Step::Emit(key) => self.emit(key),
            _ if count == 0 => {}
            Step::Take(at) => self.take(at % count),
            Step::End(at) => self.end(at % count),
            Step::Leave(at) => self.leave(at % count),
            Step::Quarantine(at) => self.set_deaf(at % count, true),
            Step::Release(at) => self.set_deaf(at % count, false),
        }
        self.w.check();
        let events = self.w.core.stats().events;
        let counted = (events.matched, events.delivered, events.dropped.total());
        assert_eq!(counted, (self.published, self.delivered, self.lost));
        let queues: Vec<usize> = self.members.iter().map(|m| m.queue.len()).collect();
        assert_eq!(self.queued(), queues);
    }

    fn leave(&mut self, at: usize) {
        let member = &mut self.members[at];
        if !std::mem::replace(&mut member.gone, true) {
            let (session, handle) = (member.session, member.handle);
            self.w.core.remove(session, handle, self.w.at).unwrap();
            self.left(at);
        }
    }

    fn set_deaf(&mut self, at: usize, deaf: bool) {
        let full = self.hearing().len() == 2;
        let member = &mut self.members[at];
        if member.gone || member.deaf == deaf || (full && !deaf) {
            return;
        }
        member.deaf = deaf;
        let state = if deaf {
            Health::Quarantined
        } else {
            Health::Up
        };
        let (session, handle) = (member.session, member.handle);
        let set = self.w.core.set_state(session, handle, state, self.w.at);
        set.unwrap();
        if deaf {
            self.left(at);
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Join),
        1 => (0..8usize).prop_map(Step::Leave),
        1 => (0..8usize).prop_map(Step::Quarantine),
        1 => (0..8usize).prop_map(Step::Release),
        8 => (0..3usize).prop_map(Step::Emit),
        4 => (0..8usize).prop_map(Step::Take),
        4 => (0..8usize).prop_map(Step::End),
    ];
    proptest::collection::vec(step, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    // requirement: LANE-GROUP, GROUP-LEAVES, CONSERVATION
    #[test]
    fn one_member_gets_each_event_and_nothing_is_lost_uncounted(
        steps in steps(),
        items in 1..6usize,
    ) {
        let mut model = Model::new(items);
        for step in &steps {
            model.step(step);
        }
    }
}
