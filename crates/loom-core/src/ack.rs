//! How a durable turn ends: done, given back, or given up; and the leases of the sessions that have them.

use std::sync::Arc;

use smallvec::smallvec;

use crate::arena::{Key, LeaseId, SessionId, SubId};
use crate::consume::{ConsumerId, Place};
use crate::core::{Core, Holding, Lease};
use crate::envelope::Envelope;
use crate::error::{Code, Detail, Error, Result, to_json};
use crate::ident::show_uuid;
use crate::keeping::Left;
use crate::lane::{As, Item};
use crate::planted::Planted;
use crate::record::{Dead, Level, Progress, Record, Started, Waits};
use crate::report::Subject;
use crate::ticket::Then;
use crate::time::{Moment, Nanos};
use crate::timers::Timer;

/// What a lease has that is of a durable event.
pub(crate) struct Durable {
    pub(crate) consumer: ConsumerId,
    pub(crate) n: u64,
    pub(crate) attempt: u32,
    /// It was begun before.
    pub(crate) again: bool,
    /// It was handed out.
    pub(crate) out: bool,
    /// Since when it waited.
    since: Nanos,
    /// When it was renewed last, by itself.
    extended: Nanos,
    pub(crate) fate: Fate,
    /// What it leaves if it goes well.
    pub(crate) state: Option<Left>,
}

/// What was said of an event while its turn goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Open,
    /// Acked, or given up.
    Done,
    /// To be given again after so many milliseconds.
    Again(u64),
}

impl Durable {
    pub(crate) fn is_done(&self) -> bool {
        self.fate == Fate::Done
    }
}

/// An event that is given up.
pub(crate) struct Dying {
    pub(crate) consumer: ConsumerId,
    n: u64,
    attempt: u32,
    code: u32,
    message: String,
    env: Arc<Envelope>,
}

/// As much of a text as fits.
fn cut(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Why an attempt did not go well.
pub(crate) struct Why {
    pub(crate) code: Option<Code>,
    pub(crate) message: String,
}

impl Why {
    fn number(&self) -> u32 {
        self.code.map_or(0, |code| code.number().into())
    }
}

impl Core {
    /// Takes the first event of a lane for a turn, once the log knows that it is begun.
    pub(crate) fn claim(&mut self, sub: SubId, lane: u32, item: Item, at: Moment) {
        let Some(found) = self.subs.get(sub) else {
            return;
        };
        let (Some(id), session) = (found.consumer, found.session) else {
            return;
        };
        let Some(position) = item.env.position else {
            return;
        };
        let n = position.n;
        if item.env.is_over(at.now) {
            if let Some(found) = self.subs.get_mut(sub) {
                found.lanes.skip(lane);
            }
            return self.expire_durable(sub, &item, at);
        }
        let again = item.kind == (As::Durable { again: true });
        let Some(consumer) = self.consuming_mut(id) else {
            return;
        };
        let most = consumer.max_deliver;
        let Some(open) = consumer.open.get_mut(&n) else {
            return;
        };
        if open.attempt >= most {
            let attempt = open.attempt;
            if let Some(found) = self.subs.get_mut(sub) {
                found.lanes.skip(lane);
            }
            return self.die(id, (n, attempt, &item.env), None, at);
        }
        open.attempt += 1;
        open.client = 0;
        let attempt = open.attempt;
        consumer.tally.begun += u64::from(!again);
        consumer.holders.insert(item.env.lane().clone(), sub);
        if !again {
            self.topics.books(item.env.books).queued -= 1;
        }
        let held = self.held_by(&item.env);
        if let Some(found) = self.subs.get_mut(sub) {
            found.leased += 1;
            found.durables += 1;
            found.spare -= held;
        }
        let lease = self.leases.insert(Lease {
            session,
            holding: Holding::Turn { sub, lane },
            env: item.env,
            asked: false,
            answered: false,
            durable: Some(Box::new(Durable {
                consumer: id,
                n,
                attempt,
                again,
                out: false,
                since: item.at,
                extended: at.now,
                fate: Fate::Open,
                state: None,
            })),
            turn: 0,
        });
        self.place(id, n, Place::Leased(lease));
        let kept = self
            .parts
            .get(&id.partition)
            .is_some_and(|part| part.opened.kept);
        if !kept {
            return self.hand(lease, at);
        }
        let client = self.sessions.get(session).map_or(0, |found| found.client);
        let record = Record::Started(Started {
            consumer: id.number,
            n,
            attempt,
            session: session.raw(),
            client: crate::partition::show_client(client),
        });
        self.append(
            id.partition,
            Level::Os,
            smallvec![record],
            Then::Hand(lease),
        );
    }

    fn place(&mut self, id: ConsumerId, n: u64, place: Place) {
        if let Some(open) = self
            .consuming_mut(id)
            .and_then(|found| found.open.get_mut(&n))
        {
            open.place = place;
        }
    }

    /// A turn that was claimed may be taken.
    pub(crate) fn hand(&mut self, lease: LeaseId, at: Moment) {
        let Some(found) = self.leases.get(lease) else {
            return;
        };
        let Holding::Turn { sub, .. } = found.holding else {
            return;
        };
        let Some(found) = self.subs.get_mut(sub) else {
            return;
        };
        if found.is_deaf() {
            return self.return_claim(lease, at);
        }
        found.claimed.push_back(lease);
        self.poke(sub);
    }

    /// A claimed turn that its member will not take.
    pub(crate) fn return_claim(&mut self, lease: LeaseId, at: Moment) {
        if let Some(found) = self.leases.remove(lease) {
            self.give_back(&found, None, at);
        }
    }

    /// What the turns of an agent may hold of large events.
    pub(crate) fn most_held(&self) -> i64 {
        i64::try_from(self.limits.held_payload_bytes).unwrap_or(i64::MAX)
    }

    /// What the turn of a durable event takes of the bytes that large ones may hold.
    pub(crate) fn held_by(&self, env: &Envelope) -> i64 {
        i64::try_from(self.large_bytes(env)).unwrap_or(i64::MAX)
    }

    /// Claims turns of durable events as long as they are next and there are slots.
    pub(crate) fn claim_ahead(&mut self, id: SubId, at: Moment) {
        loop {
            let Some(sub) = self.subs.get_mut(id) else {
                return;
            };
            if !sub.has_slot() || !sub.lanes.is_next_durable() {
                return;
            }
            let Some((lane, item)) = sub.lanes.pop(false) else {
                return;
            };
            self.left_line(id);
            self.untime(id, lane, &item);
            self.claim(id, lane, item, at);
        }
    }

    /// The log would not note that a turn begins: it does not, and is tried again later.
    pub(crate) fn unclaim(&mut self, lease: LeaseId, at: Moment) {
        let Some(found) = self.leases.remove(lease) else {
            return;
        };
        let pause = at.wall_ms + self.limits.redeliver_base_ms;
        self.give_back(&found, Some(pause), at);
    }

    /// The next turn that was claimed. It is counted when it is handed out.
    pub(crate) fn take_claimed(&mut self, id: SubId, at: Moment) -> Option<LeaseId> {
        loop {
            let sub = self.subs.get_mut(id)?;
            if sub.health != crate::health::Health::Up {
                return None;
            }
            let lease = sub.claimed.pop_front()?;
            let books = sub.books.class(crate::envelope::Qos::Batched);
            let Some(found) = self.leases.get_mut(lease) else {
                continue;
            };
            let Some(durable) = &mut found.durable else {
                continue;
            };
            durable.out = true;
            let (consumer, n) = (durable.consumer, durable.n);
            let attempt = durable.attempt;
            durable.extended = at.now;
            let waited = at.now.micros_since(durable.since);
            books.latency.record(waited);
            let (session, topic) = (found.session, found.env.books);
            self.topics.books(topic).latency.record(waited);
            self.tape_turn(lease, id, (attempt, waited), at);
            self.watch_leases(session, at);
            if self.has(Planted::AckedEarly) {
                self.consumed(consumer, n, at);
            }
            return Some(lease);
        }
    }

    /// From now on the session's loop has to show that it moves.
    fn watch_leases(&mut self, session: SessionId, at: Moment) {
        self.end_lapsed(session, at);
        let due = at.now.plus_millis(self.limits.lease_ms);
        let Some(found) = self.sessions.get_mut(session) else {
            return;
        };
        found.renewed = at.now;
        if found.lapses.is_none() {
            found.lapses = Some(due);
            self.timers.add(due, Timer::Lapse(session));
        }
    }

    pub(crate) fn unwatch_leases(&mut self, session: SessionId) {
        let due = self
            .sessions
            .get_mut(session)
            .and_then(|it| it.lapses.take());
        if let Some(due) = due {
            self.timers.remove(due, Timer::Lapse(session));
        }
    }

    /// Says that a session's loop goes on: its leases hold for another [`crate::Limits::lease_ms`]. One whose time is
    /// over has lapsed, also when nobody has ticked since: a loop that comes back does not save it.
    pub fn renew(&mut self, session: SessionId, at: Moment) {
        self.end_lapsed(session, at);
        if let Some(found) = self.sessions.get_mut(session) {
            found.renewed = found.renewed.max(at.now);
            found.stack = None;
        }
    }

    /// Says that a clock was moved by hand: no loop has stood still meanwhile, so all leases hold.
    pub fn renew_all(&mut self, at: Moment) {
        let all: Vec<SessionId> = self.sessions.iter().map(|(id, _)| id).collect();
        for session in all {
            if let Some(found) = self.sessions.get_mut(session) {
                found.renewed = at.now;
            }
        }
    }

    fn end_lapsed(&mut self, session: SessionId, at: Moment) {
        let due = self.sessions.get(session).and_then(|found| found.lapses);
        if due.is_some_and(|due| due <= at.now) {
            self.unwatch_leases(session);
            self.lapse_is_due(session, at);
            self.flush(at);
        }
    }

    /// Says where a session's loop stands still: it is told with the leases that lapse because of it.
    pub fn stalls(&mut self, session: SessionId, stack: &str) {
        if let Some(found) = self.sessions.get_mut(session) {
            let most = self.limits.error_detail_bytes / 2;
            found.stack = Some(cut(stack, most).into());
        }
    }

    pub(crate) fn lapse_is_due(&mut self, session: SessionId, at: Moment) {
        let wait = self.limits.lease_ms;
        let Some(found) = self.sessions.get(session) else {
            return;
        };
        let renewed = if self.has(Planted::GivenWhileLeased) {
            Nanos::default()
        } else {
            found.renewed
        };
        let held = self.leases.iter();
        let held: Vec<(LeaseId, Nanos)> = held
            .filter(|(_, lease)| lease.session == session)
            .filter_map(|(id, lease)| {
                let durable = lease.durable.as_ref().filter(|it| it.out)?;
                Some((id, durable.extended.max(renewed).plus_millis(wait)))
            })
            .collect();
        for (lease, due) in &held {
            if *due <= at.now {
                self.lapse(*lease, at);
            }
        }
        let next = held.iter().map(|(_, due)| *due).filter(|due| *due > at.now);
        let next = next.min();
        if let Some(found) = self.sessions.get_mut(session) {
            found.lapses = next;
        }
        if let Some(next) = next {
            self.timers.add(next, Timer::Lapse(session));
        }
    }

    /// A loop has stood still for too long: the turn goes to somebody else, and its lease is fenced.
    fn lapse(&mut self, id: LeaseId, at: Moment) {
        let Some(lease) = self.leases.remove(id) else {
            return;
        };
        self.tape_cut(&lease, "its loop stood still", at);
        let Some(consumer) = lease.durable.as_ref().map(|durable| durable.consumer) else {
            return;
        };
        if let Some(found) = self.consuming_mut(consumer) {
            found.tally.lapsed += 1;
        }
        let stack = self
            .sessions
            .get(lease.session)
            .and_then(|session| session.stack.clone());
        if let Holding::Turn { sub, .. } = lease.holding
            && let Some(found) = self.subs.get(sub)
        {
            let (space, who) = (found.space, Arc::clone(&found.origin.sender));
            let wait = self.limits.lease_ms;
            let message = match stack {
                Some(stack) => {
                    format!("the loop has not moved for {wait} ms; it stands at {stack}")
                }
                None => format!("the loop has not moved for {wait} ms"),
            };
            let error = Error::fenced(message)
                .limit("lease_ms")
                .hint("do blocking work in a thread, or call event.extend() from one");
            let subject = Subject::turn(who, &lease.env);
            self.tell_error(space, Code::Fenced, &error.detail(), &subject);
        }
        self.give_back(&lease, None, at);
    }

    /// Ends a durable turn that nobody will end: it is given again, at once or later.
    pub(crate) fn give_back(&mut self, lease: &Lease, until_ms: Option<u64>, at: Moment) {
        let Holding::Turn { sub, lane } = lease.holding else {
            return;
        };
        let Some(durable) = &lease.durable else {
            return;
        };
        let (id, n) = (durable.consumer, durable.n);
        let base_ms = self.limits.redeliver_base_ms;
        if !durable.is_done() {
            if let Some(open) = self.consuming_mut(id).and_then(|it| it.open.get_mut(&n)) {
                open.until_ms = until_ms.unwrap_or(0);
                open.pause_ms = base_ms;
                // What was not handed out was not begun; the log may say otherwise, and is right after a restart.
                if !durable.out {
                    open.attempt -= 1;
                }
            }
            self.park_back(id, (sub, lane), (n, &lease.env), at);
        }
        self.end_held(sub, lane, lease, Some(Code::Fenced));
    }

    /// Ends the lease of a durable turn in the books of its member, and lets its lane go.
    fn end_held(&mut self, sub: SubId, lane: u32, lease: &Lease, failed: Option<Code>) {
        let Some(durable) = &lease.durable else {
            return;
        };
        if let Some(found) = self.consuming_mut(durable.consumer) {
            found.holders.remove(lease.env.lane());
            if !durable.out && !durable.again {
                found.tally.begun -= 1;
            }
        }
        let held = self.held_by(&lease.env);
        if let Some(found) = self.subs.get_mut(sub) {
            found.lanes.release(lane);
            found.leased -= 1;
            found.durables -= 1;
            found.spare += held;
        }
        if durable.out {
            self.count_durable(sub, lease, failed.is_some());
        } else if !durable.again {
            self.unmatch(sub, &lease.env);
        }
        self.poke(sub);
        self.ask_feed(durable.consumer);
        self.reclaim_subscription(sub);
    }

    /// Counts the end of a durable turn: the first as a delivery, others apart.
    pub(crate) fn count_durable(&mut self, sub: SubId, lease: &Lease, failed: bool) {
        let Some(durable) = &lease.durable else {
            return;
        };
        if durable.again {
            if let Some(found) = self.subs.get_mut(sub) {
                found.books.class(lease.env.qos).redelivered += 1;
            }
            if let Some(found) = self.consuming_mut(durable.consumer) {
                found.tally.redelivered += 1;
            }
        } else {
            self.count_turn(sub, &lease.env, failed);
        }
    }

    /// What follows from the end of a durable turn, before its lane goes on.
    pub(crate) fn settle_turn(
        &mut self,
        (sub, lane): (SubId, u32),
        lease: &Lease,
        failed: Option<&(Code, Detail)>,
        at: Moment,
    ) {
        let Some(durable) = &lease.durable else {
            return;
        };
        let (id, n, attempt) = (durable.consumer, durable.n, durable.attempt);
        if let Some(found) = self.consuming_mut(id) {
            found.holders.remove(lease.env.lane());
        }
        self.ask_feed(id);
        match (durable.fate, failed) {
            (Fate::Done, _) => {}
            (Fate::Open, None) => {
                self.leave_state(lease);
                self.consumed(id, n, at);
            }
            (Fate::Again(delay), _) => {
                let why = Why {
                    code: None,
                    message: String::new(),
                };
                self.retry((sub, lane), lease, (delay, &why), at);
            }
            (Fate::Open, Some((code, detail))) => {
                let why = Why {
                    code: Some(*code),
                    message: detail.message.clone(),
                };
                let hopeless = *code == Code::InvalidParams && detail.retry != Some(true);
                let most = self.consuming(id).map_or(1, |found| found.max_deliver);
                if hopeless || attempt >= most {
                    return self.die(id, (n, attempt, &lease.env), Some(why), at);
                }
                let delay = self.pause(attempt);
                self.retry((sub, lane), lease, (delay, &why), at);
            }
        }
    }

    /// The pause before the next attempt, in milliseconds: it doubles, and a quarter of it is chance.
    pub fn pause(&mut self, attempt: u32) -> u64 {
        let cap = self.limits.redeliver_cap_seconds * 1_000;
        let doubled = self.limits.redeliver_base_ms << attempt.saturating_sub(1).min(20);
        let pause = doubled.min(cap);
        pause - self.jitter.draw() % (pause / 4 + 1)
    }

    fn retry(&mut self, turn: (SubId, u32), lease: &Lease, (delay, why): (u64, &Why), at: Moment) {
        let Some(durable) = &lease.durable else {
            return;
        };
        let (id, n) = (durable.consumer, durable.n);
        let until_ms = at.wall_ms + delay;
        if let Some(open) = self.consuming_mut(id).and_then(|it| it.open.get_mut(&n)) {
            open.until_ms = until_ms;
            open.pause_ms = delay;
        }
        let record = Record::Waits(Waits {
            consumer: id.number,
            n,
            attempt: durable.attempt,
            until_ms,
            code: why.number(),
            message: why.message.clone(),
        });
        self.append(id.partition, Level::Os, smallvec![record], Then::Fold);
        self.park_back(id, turn, (n, &lease.env), at);
    }

    /// Gives an event up, once the log knows it.
    pub(crate) fn die(
        &mut self,
        id: ConsumerId,
        (n, attempt, env): (u64, u32, &Arc<Envelope>),
        why: Option<Why>,
        at: Moment,
    ) {
        let (code, message) = match why {
            Some(why) => (why.number(), why.message),
            None => self.last_error(id, n),
        };
        self.place(id, n, Place::Dying);
        if self.has(Planted::DeadDropped) {
            return self.consumed(id, n, at);
        }
        let record = Record::Dead(Dead {
            consumer: id.number,
            n,
            attempt,
            code,
            message: message.clone(),
            at_ms: at.wall_ms,
        });
        let dying = Dying {
            consumer: id,
            n,
            attempt,
            code,
            message,
            env: Arc::clone(env),
        };
        let then = Then::Died(Box::new(dying));
        self.append(id.partition, Level::Os, smallvec![record], then);
    }

    /// What the last attempt failed with, as the log has it.
    fn last_error(&self, id: ConsumerId, n: u64) -> (u32, String) {
        let part = self.partition(id.partition);
        let state = part.and_then(|part| part.consumer(id.number));
        let begun = state.and_then(|state| state.open.get(&n));
        match begun {
            Some(begun) if begun.code > 0 => (begun.code, begun.message.clone()),
            _ => (0, "each attempt ended without an answer".to_owned()),
        }
    }

    /// The log knows that an event is given up.
    pub(crate) fn died(&mut self, dying: &Dying) {
        let id = dying.consumer;
        let lost = self
            .partition(id.partition)
            .map_or(0, |part| part.letters().lost());
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        found.open.remove(&dying.n);
        found.tally.dead += 1;
        let group = Arc::clone(&found.group);
        let Some(space) = self.space_of(id.partition) else {
            return;
        };
        let code = u16::try_from(dying.code).ok().and_then(Code::from_number);
        let env = &dying.env;
        let body = || {
            to_json(&serde_json::json!({
                "consumer": &*group,
                "topic": &*env.topic,
                "event_id": show_uuid(env.id),
                "position": env.position.map(|position| position.to_string()),
                "attempt": dying.attempt,
                "code": code.map(Code::name),
                "message": &dying.message,
            }))
        };
        self.say(space, format!("loom.dead.{}", env.topic), Some(env), body);
        let known = self
            .parts
            .get_mut(&id.partition)
            .map_or(lost, |part| std::mem::replace(&mut part.letters_lost, lost));
        if lost > known {
            let lost = lost - known;
            let most = self.limits.dead_letters;
            let error = Error::exhausted(
                "dead_letters",
                format!("{lost} dead events went because there were more than {most}"),
            );
            self.tell_error(
                space,
                Code::Exhausted,
                &error.detail(),
                &Subject::group(group),
            );
        }
        self.ask_feed(id);
    }

    /// The log would not note that an event is given up: it is given again, and fails again.
    pub(crate) fn undied(&mut self, dying: &Dying, at: Moment) {
        let (id, env) = (dying.consumer, &dying.env);
        let pause_ms = self.limits.redeliver_base_ms;
        let until_ms = at.wall_ms + pause_ms;
        if let Some(open) = self
            .consuming_mut(id)
            .and_then(|it| it.open.get_mut(&dying.n))
        {
            open.until_ms = until_ms;
            open.pause_ms = pause_ms;
        }
        self.park_alone(id, dying.n, env);
        self.wake_lane(id, env.lane(), at);
    }

    /// A durable event whose time was up before it was begun.
    pub(crate) fn expire_durable(&mut self, sub: SubId, item: &Item, at: Moment) {
        let Some(id) = self.subs.get(sub).and_then(|sub| sub.consumer) else {
            return;
        };
        let Some(position) = item.env.position else {
            return;
        };
        if item.kind == (As::Durable { again: false }) {
            self.topics.books(item.env.books).queued -= 1;
            self.expire(sub, &item.env, at);
            if let Some(found) = self.consuming_mut(id) {
                found.tally.expired += 1;
            }
        }
        self.consumed(id, position.n, at);
    }

    /// An event is done: the log learns of it with others.
    pub(crate) fn consumed(&mut self, id: ConsumerId, n: u64, at: Moment) {
        let (most, delay) = (self.limits.ack_batch, self.limits.ack_delay_ms);
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        found.open.remove(&n);
        found.acks.push(n);
        found.tally.acked += 1;
        let (full, alone) = (found.acks.len() >= most, !found.attended);
        if full || alone {
            self.write_progress(id, false);
        } else if let Some(found) = self.consuming_mut(id)
            && found.acks_due.is_none()
            && found.flying.is_none()
        {
            let due = at.now.plus_millis(delay);
            found.acks_due = Some(due);
            self.timers.add(due, Timer::Acks(id));
        }
        self.ask_feed(id);
    }

    pub(crate) fn acks_are_due(&mut self, id: ConsumerId) {
        if let Some(found) = self.consuming_mut(id) {
            found.acks_due = None;
        }
        self.write_progress(id, false);
    }

    /// Writes how far a consumer is, if anything is new. One such record is with the log at a time, so that a refused
    /// one can be taken back.
    pub(crate) fn write_progress(&mut self, id: ConsumerId, seen: bool) {
        let skips = self.has(Planted::FloorOverParked);
        let most = self.limits.ack_state_bytes;
        let Some(part) = self.parts.get_mut(&id.partition) else {
            return;
        };
        let end = part.folded.end();
        let Some(found) = part.consumers.get_mut(&id.number) else {
            return;
        };
        let floor = found.taken(end);
        if !found.born || found.flying.is_some() {
            return;
        }
        if found.acks.is_empty() && !(seen && floor > found.floor) {
            return;
        }
        let due = found.acks_due.take();
        let acked = found.take_acks(most);
        let from = found.floor.min(floor);
        let open = found.open.range(from..floor);
        let open = open.filter(|(_, open)| !skips || open.place != Place::Parked);
        // What is acked later is open until then.
        let later = found.acks.iter().copied();
        let later = later.filter(|n| (from..floor).contains(n));
        let mut open: Vec<u64> = open.map(|(n, _)| *n).chain(later).collect();
        open.sort_unstable();
        let mut batch = found.states_with(&acked);
        batch.push(Record::Progress(Progress {
            consumer: id.number,
            floor,
            acked: acked.clone(),
            open,
        }));
        found.flying = Some(acked);
        found.floor = found.floor.max(floor);
        if let Some(due) = due {
            self.timers.remove(due, Timer::Acks(id));
        }
        self.append(id.partition, Level::Os, batch, Then::Noted(id));
    }

    /// The log has the progress, or refused it; what came since is written next.
    pub(crate) fn noted(&mut self, id: ConsumerId, refused: bool, at: Moment) {
        let (most, delay) = (self.limits.ack_batch, self.limits.ack_delay_ms);
        let folded = self.partition(id.partition);
        let folded = folded.and_then(|part| part.consumer(id.number));
        let floor = folded.map(|state| state.floor);
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        let mut flown = found.flying.take().unwrap_or_default();
        if refused {
            found.floor = floor.unwrap_or(found.floor);
            // In front of those that came since: a state must not be overwritten by an older one.
            flown.append(&mut found.acks);
            found.acks = flown;
        } else {
            for n in flown {
                found.states.remove(&n);
            }
        }
        if found.acks.is_empty() {
            return;
        }
        if !refused && (found.acks.len() >= most || !found.attended) {
            return self.write_progress(id, false);
        }
        if found.acks_due.is_none() {
            let pause = if refused { delay * 20 } else { delay };
            let due = at.now.plus_millis(pause);
            found.acks_due = Some(due);
            self.timers.add(due, Timer::Acks(id));
        }
    }

    /// Leaves records of how far all consumers are: before a snapshot, before retention, and at the end. One that nobody
    /// belongs to is left as it was seen last, or it would never have been idle for long.
    pub fn flush_acks(&mut self) {
        let all = self.parts.iter().flat_map(|(partition, part)| {
            part.consumers.iter().map(|(number, found)| {
                let id = ConsumerId {
                    partition: *partition,
                    number: *number,
                };
                (id, found.attended)
            })
        });
        let all: Vec<(ConsumerId, bool)> = all.collect();
        for (id, attended) in all {
            self.write_progress(id, attended);
        }
    }

    /// The durable turn of a lease, to say something of it.
    fn open_durable(&mut self, session: SessionId, id: LeaseId) -> Result<Option<&mut Durable>> {
        if self.own_lease(session, id, false)?.is_none() {
            return Err(Error::fenced("this turn is over")
                .hint("its lease may have lapsed: the event is given again"));
        }
        let durable = self
            .leases
            .get_mut(id)
            .and_then(|lease| lease.durable.as_deref_mut());
        let Some(durable) = durable else {
            let message = "only a durable event is acked, given back or given up";
            return Err(Error::invalid("event", message)
                .hint("publish it with ack=, or make its topic durable by configuration"));
        };
        Ok((durable.fate != Fate::Done).then_some(durable))
    }

    /// Acks an event before its turn ends: an error that comes later does not give it again. `false`: it was done.
    ///
    /// # Errors
    /// `FENCED` for a lease that is over or of another session; `INVALID_PARAMS` for what is not durable.
    pub fn ack(&mut self, session: SessionId, lease: LeaseId, at: Moment) -> Result<bool> {
        let Some(durable) = self.open_durable(session, lease)? else {
            return Ok(false);
        };
        durable.fate = Fate::Done;
        let (id, n) = (durable.consumer, durable.n);
        self.consumed(id, n, at);
        self.flush(at);
        Ok(true)
    }

    /// Asks for an event to be given again after its turn has ended and so many milliseconds. `false`: it was done.
    ///
    /// # Errors
    /// As [`Self::ack`], and `INVALID_PARAMS` for a delay over the limit of a TTL.
    pub fn nak(&mut self, session: SessionId, lease: LeaseId, delay_ms: u64) -> Result<bool> {
        let most = self.limits.ttl_ms_max;
        if delay_ms > most {
            let message = format!("the delay is {delay_ms} ms, at most {most}");
            return Err(Error::invalid("delay", message).limit("ttl_ms_max"));
        }
        let Some(durable) = self.open_durable(session, lease)? else {
            return Ok(false);
        };
        durable.fate = Fate::Again(delay_ms);
        Ok(true)
    }

    /// Renews one lease from now on, whatever the session's loop does. `false`: its event is done.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub fn extend(&mut self, session: SessionId, lease: LeaseId, at: Moment) -> Result<bool> {
        let Some(durable) = self.open_durable(session, lease)? else {
            return Ok(false);
        };
        durable.extended = at.now;
        Ok(true)
    }

    /// Gives an event up: it is not given again. `false`: it was done.
    ///
    /// # Errors
    /// As [`Self::ack`].
    pub fn term(
        &mut self,
        session: SessionId,
        lease: LeaseId,
        reason: &str,
        at: Moment,
    ) -> Result<bool> {
        let message = cut(reason, self.limits.error_detail_bytes).to_owned();
        let Some(durable) = self.open_durable(session, lease)? else {
            return Ok(false);
        };
        durable.fate = Fate::Done;
        let (id, n, attempt) = (durable.consumer, durable.n, durable.attempt);
        let Some(env) = self.leases.get(lease).map(|lease| Arc::clone(&lease.env)) else {
            return Ok(false);
        };
        let why = Why {
            code: None,
            message,
        };
        self.die(id, (n, attempt, &env), Some(why), at);
        self.flush(at);
        Ok(true)
    }
}
