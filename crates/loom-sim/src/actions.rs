//! What those who use the engine do, one random step after the other.

use loom_core::{AgentSpec, Code, EffectClass, Handle, Ident, LeaseId, Limits, Offer, Options};
use loom_core::{ProviderSpec, Publish, Qos, SessionId};

use crate::asking::fault_of;
use crate::book::{Event, Stamp, State, Sub, space_name, tag};
use crate::dice::Dice;
use crate::trace::{Check, broken, ensure};
use crate::waits::is_pure;
use crate::world::{Call, Held, Peer, Provider, Record, Taker, World};

const TOPICS: &[&str] = &["a", "a.b", "a.c", "a.b.c", "b", "b.a", "x.y"];
const FILTERS: &[&str] = &["a", "a.*", "a.>", "a.b", "b.>", "x.y", "x.*", "a.*.c", "b"];
const WIDE_FILTERS: &[&str] = &[">", "*", "*.b", "loom.>", "loom.error.*", "thread.>"];
const KEYS: &[&str] = &["k0", "k1", "0190163d-8694-739b-aea5-966c26f8ad91"];
const THREADS: &[&str] = &["t0", "t1"];
const GROUPS: &[&str] = &["g0", "g1"];
pub(crate) const CAPABILITIES: &[&str] = &["pure.look", "act.send", "act.pay"];
/// Codes that handlers fail with; none that the engine itself gives to a wait.
const FAILURES: &[Code] = &[Code::HandlerError, Code::ToolError, Code::InvalidParams];

const MOST_PEERS: usize = 4;
const MOST_SUBS: usize = 9;
const MOST_PROVIDERS: usize = 4;

/// A step that a run may take.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    Attach,
    Register,
    Subscribe,
    Provide,
    Remove,
    Close,
    Publish,
    Request,
    Invoke,
    Take,
    Finish,
    Fail,
    Reply,
    Result,
    Chunk,
    Grant,
    Cancel,
    Drain,
    AnswerLog,
    Pass,
    Misuse,
    Check,
    Settle,
}

/// How often a step is taken in an ordinary run.
const USUAL: &[(Step, u64)] = &[
    (Step::Attach, 2),
    (Step::Register, 5),
    (Step::Subscribe, 2),
    (Step::Provide, 3),
    (Step::Remove, 1),
    (Step::Close, 1),
    (Step::Publish, 34),
    (Step::Request, 14),
    (Step::Invoke, 14),
    (Step::Take, 26),
    (Step::Finish, 10),
    (Step::Fail, 4),
    (Step::Reply, 9),
    (Step::Result, 7),
    (Step::Chunk, 8),
    (Step::Grant, 5),
    (Step::Cancel, 3),
    (Step::Drain, 12),
    (Step::AnswerLog, 8),
    (Step::Pass, 12),
    (Step::Misuse, 3),
    (Step::Check, 4),
    (Step::Settle, 1),
];

/// What a run leans to: the dice change how often each step is taken, and leave some out.
pub(crate) struct Habits {
    weights: Vec<(Step, u64)>,
    durable: u64,
    keyed: u64,
    mortal: u64,
    wide: u64,
    realtime: u64,
    grouped: u64,
}

impl Habits {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let mut weights = USUAL.to_vec();
        for (_, weight) in &mut weights {
            *weight = match dice.between(0, 9) {
                0 => 0,
                1 | 2 => *weight * 3,
                3 => weight.div_ceil(3),
                _ => *weight,
            };
        }
        Self {
            weights,
            durable: if dice.chance(50) {
                dice.between(0, 50)
            } else {
                0
            },
            keyed: dice.between(10, 90),
            mortal: if dice.chance(50) {
                dice.between(0, 40)
            } else {
                0
            },
            wide: if dice.chance(40) {
                dice.between(5, 40)
            } else {
                0
            },
            realtime: dice.between(0, 60),
            grouped: if dice.chance(50) {
                dice.between(20, 90)
            } else {
                0
            },
        }
    }

    fn draw_step(&self, dice: &mut Dice) -> Step {
        let all: u64 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut at = dice.between(0, all.max(1) - 1);
        for (step, weight) in &self.weights {
            if at < *weight {
                return *step;
            }
            at -= weight;
        }
        Step::Check
    }
}

/// Small limits, so that what is rare with the real ones is common.
pub(crate) fn draw_limits(dice: &mut Dice) -> Limits {
    Limits {
        queue_items: dice.count(1, 6),
        queue_bytes: dice.count(40, 400),
        batched_wait_ms: dice.between(1, 40),
        hops: dice.count(2, 6),
        parked_offers: dice.count(1, 5),
        provider_queue: dice.count(1, 4),
        pending_calls: dice.count(4, 30),
        stream_chunks_max: dice.count(1, 5),
        topic_cache: dice.count(1, 8),
        ..Limits::default()
    }
}

/// Who sends, in which turn.
pub(crate) struct From {
    pub(crate) session: SessionId,
    pub(crate) space: usize,
    pub(crate) handle: Handle,
    pub(crate) sender: String,
    pub(crate) turn: Option<(LeaseId, Held)>,
}

impl World {
    pub(crate) fn step(&mut self, habits: &Habits) -> Check {
        match habits.draw_step(&mut self.dice) {
            Step::Attach => self.attach(),
            Step::Register => self.register(habits),
            Step::Subscribe => self.subscribe(habits),
            Step::Provide => self.provide(),
            Step::Remove => self.remove(),
            Step::Close => self.close_one(),
            Step::Publish => self.publish(habits),
            Step::Request => self.request(habits),
            Step::Invoke => self.invoke(),
            Step::Take => self.take_some(),
            Step::Finish => self.finish_some(),
            Step::Fail => self.fail_some(),
            Step::Reply => self.reply_some(),
            Step::Result => self.result_some(),
            Step::Chunk => self.chunk_some(),
            Step::Grant => self.grant_some(),
            Step::Cancel => self.cancel_some(),
            Step::Drain => self.drain_some(),
            Step::AnswerLog => self.answer_some(),
            Step::Pass => self.pass_some(),
            Step::Misuse => self.misuse(),
            Step::Check => self.check(),
            Step::Settle => self.settle(),
        }
    }

    // Coming and going.

    pub(crate) fn attach(&mut self) -> Check {
        if self.live_peers().len() >= MOST_PEERS {
            return Ok(());
        }
        let space = usize::from(self.dice.chance(25));
        let name = format!("s{}", self.peers.len());
        let session = self.core.attach(&space_name(space), &name);
        let Ok((id, root)) = session.and_then(|id| Ok((id, self.core.root(id)?))) else {
            return broken("BAD-INPUT", "a session was refused");
        };
        self.note(format!("attach {id:?} to n{space}"));
        self.peers.push(Peer::new(id, space, name, root));
        Ok(())
    }

    fn some_peer(&mut self) -> Option<usize> {
        let live = self.peers.iter().enumerate().filter(|(_, peer)| peer.live);
        let live: Vec<usize> = live.map(|(at, _)| at).collect();
        self.dice.pick(&live)
    }

    fn draw_filters(&mut self, habits: &Habits) -> Vec<String> {
        let count = self.dice.count(1, 3);
        let mut filters = Vec::new();
        for _ in 0..count {
            let wide = self.dice.chance(habits.wide);
            filters.push(
                self.dice
                    .word(if wide { WIDE_FILTERS } else { FILTERS })
                    .to_owned(),
            );
        }
        filters
    }

    pub(crate) fn register(&mut self, habits: &Habits) -> Check {
        let live = self.book.subs.iter().filter(|sub| sub.live).count();
        let Some(peer) = self.some_peer().and_then(|at| self.peers.get(at)) else {
            return Ok(());
        };
        if live >= MOST_SUBS {
            return Ok(());
        }
        let (session, space) = (peer.id, peer.space);
        let name = format!("a{}", self.book.subs.len());
        let grouped = self.dice.chance(habits.grouped);
        let group = if grouped { self.dice.word(GROUPS) } else { "" };
        // A lane can stay with one member only if all hear the same.
        let twin = self
            .book
            .subs
            .iter()
            .find(|sub| sub.live && sub.group == group);
        let twin = twin.map(|sub| {
            sub.filters
                .iter()
                .filter(|f| !f.starts_with("spawn"))
                .cloned()
        });
        let mut filters = match twin {
            Some(filters) => filters.collect(),
            None => self.draw_filters(habits),
        };
        let concurrency = self.dice.pick(&[1, 1, 2, 3]).unwrap_or(1);
        let texts: Vec<&str> = filters.iter().map(String::as_str).collect();
        let spec = AgentSpec {
            name: &name,
            filters: &texts,
            group,
            concurrency,
            info: b"{}",
        };
        let handle = self.core.register(session, &spec, self.at);
        self.note(format!(
            "register {name} at {session:?} in {group:?} for {filters:?}"
        ));
        let Ok(handle) = handle else {
            return broken("BAD-INPUT", format!("an agent was refused: {handle:?}"));
        };
        filters.push(format!("spawn.{name}"));
        let own = if group.is_empty() {
            name.clone()
        } else {
            group.to_owned()
        };
        let mut sub = Sub::new(session, space, name, own);
        sub.handle = handle;
        sub.filters = filters;
        sub.concurrency = concurrency as usize;
        self.enter_sub(sub);
        self.ask_waiting(space)
    }

    fn subscribe(&mut self, habits: &Habits) -> Check {
        let Some(peer) = self.some_peer().and_then(|at| self.peers.get(at)) else {
            return Ok(());
        };
        let (session, space, name) = (peer.id, peer.space, peer.name.clone());
        let has = self
            .book
            .subs
            .iter()
            .any(|sub| sub.stream && sub.session == session);
        if has {
            return Ok(());
        }
        let filters = self.draw_filters(habits);
        let lossy = self.dice.chance(40);
        let texts: Vec<&str> = filters.iter().map(String::as_str).collect();
        let qos = if lossy { Qos::Realtime } else { Qos::Batched };
        let handle = self.core.subscribe(session, &texts, qos);
        self.note(format!("subscribe {name} to {filters:?} lossy {lossy}"));
        let Ok(handle) = handle else {
            return broken("BAD-INPUT", format!("a stream was refused: {handle:?}"));
        };
        let group = format!("stream of {name}");
        let mut sub = Sub::new(session, space, name, group);
        sub.handle = handle;
        sub.filters = filters;
        sub.stream = true;
        sub.lossy = lossy;
        self.enter_sub(sub);
        Ok(())
    }

    fn enter_sub(&mut self, sub: Sub) {
        self.takers
            .insert(Taker::Sub(self.book.subs.len()), Call::default());
        self.book.subs.push(sub);
    }

    /// An agent came: requests that wait for a hearer may have found one.
    fn ask_waiting(&mut self, space: usize) -> Check {
        let waiting = self.waits.all.iter_mut().filter_map(|(_, wait)| {
            let open = !wait.told && !wait.gone;
            wait.asked()
                .filter(|asked| open && asked.waiting && !asked.cancelled)
        });
        for asked in waiting {
            let Some(event) = self.book.events.get(asked.event) else {
                continue;
            };
            if event.space != space {
                continue;
            }
            let responders = self.book.aim(asked.event)?;
            if responders > 0 {
                asked.matched = responders;
                asked.waiting = false;
                self.seen.note("request heard by a later agent");
            }
        }
        Ok(())
    }

    fn provide(&mut self) -> Check {
        let live = self
            .providers
            .iter()
            .filter(|provider| provider.live)
            .count();
        let Some(peer) = self.some_peer().and_then(|at| self.peers.get(at)) else {
            return Ok(());
        };
        if live >= MOST_PROVIDERS {
            return Ok(());
        }
        let (session, space) = (peer.id, peer.space);
        let capability = self.dice.word(CAPABILITIES);
        let effect = if is_pure(capability) {
            EffectClass::Pure
        } else {
            EffectClass::Unsafe
        };
        let concurrency = self.dice.pick(&[1, 1, 2]).unwrap_or(1);
        let spec = ProviderSpec {
            name: capability,
            version: "1",
            effect,
            concurrency,
            info: b"{}",
        };
        let handle = self.core.provide(session, &spec, self.at);
        self.note(format!("provide {capability} at {session:?}"));
        let Ok(handle) = handle else {
            return broken("BAD-INPUT", format!("a provider was refused: {handle:?}"));
        };
        self.takers
            .insert(Taker::Provider(self.providers.len()), Call::default());
        let concurrency = concurrency as usize;
        self.providers.push(Provider {
            session,
            handle,
            space,
            capability,
            concurrency,
            live: true,
        });
        Ok(())
    }

    fn remove(&mut self) -> Check {
        let takers = self.live_takers();
        let Some(taker) = self.dice.pick(&takers) else {
            return Ok(());
        };
        let Some((session, handle, _)) = self.taker(taker) else {
            return Ok(());
        };
        let removed = self.core.remove(session, handle, self.at);
        self.note(format!("remove {taker:?}"));
        ensure(removed.is_ok(), "LEASE-FENCED", || format!("{removed:?}"))?;
        self.end_streamed(taker)?;
        match taker {
            Taker::Sub(index) => {
                let sub = self.book.sub(index)?;
                sub.live = false;
                let open = !sub.open.is_empty();
                self.seen
                    .note_if("subscription removed with turns open", open);
            }
            Taker::Provider(index) => self.retire(index, Some(session)),
        }
        Ok(())
    }

    /// A provider goes: what it has begun ends.
    fn retire(&mut self, index: usize, told: Option<SessionId>) {
        let Some(provider) = self
            .providers
            .get_mut(index)
            .filter(|provider| provider.live)
        else {
            return;
        };
        provider.live = false;
        *self
            .waits
            .gone
            .entry((provider.space, provider.capability))
            .or_default() += 1;
        let work = self
            .held
            .values()
            .filter(|held| held.taker == Taker::Provider(index));
        let calls: Vec<_> = work.filter_map(|held| held.call).collect();
        for call in calls {
            self.waits
                .end_unanswered(call, Code::ProviderUnavailable, told);
        }
    }

    fn close_one(&mut self) -> Check {
        match self.some_peer() {
            Some(at) => self.close(at),
            None => Ok(()),
        }
    }

    pub(crate) fn close(&mut self, at: usize) -> Check {
        let Some(peer) = self.peers.get(at) else {
            return Ok(());
        };
        let session = peer.id;
        self.drain_all(session)?;
        self.core.close(session, self.at);
        self.note(format!("close {session:?}"));
        if let Some(peer) = self.peers.get_mut(at) {
            peer.live = false;
        }
        for sub in self
            .book
            .subs
            .iter_mut()
            .filter(|sub| sub.session == session)
        {
            sub.live = false;
        }
        for index in 0..self.providers.len() {
            if self
                .providers
                .get(index)
                .is_some_and(|provider| provider.session == session)
            {
                self.retire(index, None);
            }
        }
        self.close_held(session);
        self.close_waits(session);
        self.close_tickets(session)
    }

    fn close_held(&mut self, session: SessionId) {
        let held = self.held.iter().filter(|(_, held)| held.session == session);
        let held: Vec<LeaseId> = held.map(|(lease, _)| *lease).collect();
        self.seen
            .note_if("session closed with turns open", !held.is_empty());
        for lease in held {
            let Some(held) = self.held.remove(&lease) else {
                continue;
            };
            self.past.push(lease);
            match held.taker {
                Taker::Sub(index) => {
                    if let Ok(sub) = self.book.sub(index) {
                        sub.open.remove(&lease);
                    }
                    self.decline(&held);
                }
                Taker::Provider(_) => {
                    if let Some(call) = held.call {
                        self.waits
                            .end_unanswered(call, Code::ProviderUnavailable, None);
                    }
                }
            }
        }
    }

    fn close_waits(&mut self, session: SessionId) {
        let own = self
            .waits
            .all
            .iter()
            .filter(|(_, wait)| wait.session == session && !wait.told);
        let own: Vec<_> = own.map(|(call, _)| *call).collect();
        for call in own {
            self.end_call(call, Code::Cancelled);
            if let Some(wait) = self.waits.all.get_mut(&call) {
                wait.gone = true;
            }
        }
        self.waits
            .cancels_due
            .retain(|(other, _)| *other != session);
        self.waits
            .credits_due
            .retain(|(other, _, _)| *other != session);
    }

    /// What was parked will never go; what is with the log goes without its session.
    fn close_tickets(&mut self, session: SessionId) -> Check {
        let own = self
            .tickets
            .iter()
            .filter(|(_, (owner, _))| *owner == session);
        let own: Vec<_> = own.map(|(ticket, (_, event))| (*ticket, *event)).collect();
        for (ticket, event) in own {
            self.tickets.remove(&ticket);
            if self.book.event(event)?.state == State::Parked {
                self.book.refuse(event)?;
            }
        }
        Ok(())
    }

    // Publishing.

    /// Someone to send, in a turn of its session if that has one and the dice say so.
    pub(crate) fn some_sender(&mut self, in_turn: u64) -> Option<From> {
        let at = self.some_peer()?;
        let peer = self.peers.get(at)?;
        let (session, space) = (peer.id, peer.space);
        let own = self
            .book
            .subs
            .iter()
            .filter(|sub| sub.live && sub.session == session);
        let mut handles: Vec<(Handle, String)> =
            own.map(|sub| (sub.handle, sub.name.clone())).collect();
        handles.push((peer.root, peer.name.clone()));
        let (handle, name) = self.dice.pick(&handles)?;
        let open = self.held.iter().filter(|(_, held)| held.session == session);
        let open: Vec<LeaseId> = open.map(|(lease, _)| *lease).collect();
        let turn = if self.dice.chance(in_turn) {
            self.dice.pick(&open)
        } else {
            None
        };
        let turn = turn.and_then(|lease| Some((lease, self.held.get(&lease)?.clone())));
        let sender = format!("{}/{name}", space_name(space));
        Some(From {
            session,
            space,
            handle,
            sender,
            turn,
        })
    }

    /// An event as it will be stamped, with its options.
    pub(crate) fn draft(&mut self, from: &From, habits: &Habits) -> (Event, Option<Box<Options>>) {
        let alone = self
            .book
            .subs
            .first()
            .is_some_and(|sub| sub.group == sub.name);
        let spawned = alone && self.dice.chance(3);
        let topic = if spawned {
            "spawn.a0"
        } else {
            self.dice.word(TOPICS)
        };
        let mut event = Event::new(from.space, from.sender.clone(), topic);
        event.size = self.dice.pick(&[9, 9, 12, 40, 90]).unwrap_or(9);
        event.stamp = from
            .turn
            .as_ref()
            .map(|(_, held)| Stamp::of(&held.envelope));
        event.thread = event.stamp.as_ref().map(|stamp| stamp.thread.clone());
        let mut options = Options::default();
        if self.dice.chance(20) {
            let thread = self.dice.word(THREADS);
            options.thread_id = Some(thread.to_owned());
            event.thread = Some(Ident::parse(thread));
        }
        event.lane.clone_from(&event.thread);
        if self.dice.chance(habits.keyed) {
            let key = self.dice.word(KEYS);
            options.key = Some(key.to_owned());
            event.lane = Some(Ident::parse(key));
        }
        if self.dice.chance(habits.mortal) {
            let ttl = self.dice.between(1, 30);
            options.ttl_ms = Some(ttl);
            event.expires = Some(self.at.now.plus_millis(ttl));
        }
        event.targets = self.book.targets(from.space, topic);
        let many = event.targets.iter().any(|target| target.members.len() > 1);
        self.seen.note_if("group with several members", many);
        (event, Some(Box::new(options)))
    }

    pub(crate) fn hops_over(&mut self, from: &From) -> bool {
        let over = from
            .turn
            .as_ref()
            .is_some_and(|(_, held)| usize::from(held.envelope.hop) + 1 > self.limits.hops);
        self.seen.note_if("hop limit reached", over);
        over
    }

    fn publish(&mut self, habits: &Habits) -> Check {
        let Some(from) = self.some_sender(35) else {
            return Ok(());
        };
        let (mut event, options) = self.draft(&from, habits);
        let realtime = self.dice.chance(habits.realtime);
        let qos = self
            .dice
            .pick(&[Qos::Batched, Qos::Batched, Qos::Background]);
        event.qos = if realtime {
            Qos::Realtime
        } else {
            qos.unwrap_or(Qos::Batched)
        };
        event.durable = event.qos != Qos::Realtime && self.dice.chance(habits.durable);
        let (qos, durable, topic, size) = (event.qos, event.durable, event.topic, event.size);
        let over = self.hops_over(&from);
        let index = self.book.offer(event);
        let offer = self.core.offer(
            from.session,
            Publish {
                sender: from.handle,
                turn: from.turn.as_ref().map(|(lease, _)| *lease),
                topic,
                payload: tag(b'E', index, size),
                qos,
                options,
                durable,
            },
            self.at,
        );
        self.note(format!(
            "offer {index} {} {topic} {qos:?} {offer:?}",
            from.sender
        ));
        match offer {
            Ok(offer) => {
                ensure(!over, "EVENT-HOPS", || {
                    format!("event {index} went too far")
                })?;
                self.offered(index, from.session, offer)
            }
            Err(error) => {
                let full = self.book.may_be_full(index, &self.limits);
                let meant = match error.limit {
                    Some("hops") => over,
                    Some("queue_items") => qos != Qos::Realtime && full,
                    Some("parked_offers") => qos != Qos::Realtime,
                    _ => false,
                };
                self.seen
                    .note_if("background publish refused", qos == Qos::Background && full);
                ensure(meant, "BAD-INPUT", || {
                    format!("event {index} was refused: {error}")
                })?;
                self.book.refuse(index)
            }
        }
    }

    fn offered(&mut self, index: usize, session: SessionId, offer: Offer) -> Check {
        let known = self.book.event(index)?;
        let (qos, durable, matched) = (known.qos, known.durable, known.targets.len());
        match offer {
            Offer::Done(receipt) => {
                let same = receipt.matched == matched && !durable && receipt.position.is_none();
                ensure(same, "TOPIC-MATCH", || {
                    format!("event {index} matched {receipt:?}, and should {matched}")
                })?;
                self.book.apply(index, true)
            }
            Offer::Parked(ticket) => {
                self.seen.note("batched publish parked");
                let meant = qos != Qos::Realtime && !durable;
                ensure(meant, "QOS-REALTIME", || {
                    format!("event {index} was parked")
                })?;
                self.tickets.insert(ticket, (session, index));
                self.book.wait(index, State::Parked)
            }
            Offer::Logging(ticket, record) => {
                ensure(durable, "TICKETS-ORDERED", || {
                    format!("{record:?} is not durable")
                })?;
                self.tickets.insert(ticket, (session, index));
                self.log.push(Record {
                    ticket,
                    event: index,
                    answer: None,
                });
                self.book.event(index)?.state = State::Logging;
                Ok(())
            }
        }
    }

    // Working.

    fn take_some(&mut self) -> Check {
        let takers = self.live_takers();
        match self.dice.pick(&takers) {
            Some(taker) => self.take(taker, None).map(|_| ()),
            None => Ok(()),
        }
    }

    pub(crate) fn some_held(&mut self, wanted: impl Fn(&Held) -> bool) -> Option<(LeaseId, Held)> {
        let fit = self.held.iter().filter(|(_, held)| wanted(held));
        let fit: Vec<LeaseId> = fit.map(|(lease, _)| *lease).collect();
        let lease = self.dice.pick(&fit)?;
        Some((lease, self.held.get(&lease)?.clone()))
    }

    /// Ends a turn, mostly with the next take of the same handle.
    pub(crate) fn finish_some(&mut self) -> Check {
        let Some((lease, held)) = self.some_held(|_| true) else {
            return Ok(());
        };
        let mut takers = self.live_takers();
        takers.retain(|taker| {
            self.taker(*taker)
                .is_some_and(|(session, _, _)| session == held.session)
        });
        let other = self.dice.pick(&takers).filter(|_| self.dice.chance(20));
        let taker = other.unwrap_or(held.taker);
        self.take(taker, Some(lease)).map(|_| ())
    }

    fn fail_some(&mut self) -> Check {
        let Some((lease, held)) = self.some_held(|_| true) else {
            return Ok(());
        };
        let code = self.dice.pick(FAILURES).unwrap_or(Code::HandlerError);
        if let (Taker::Provider(_), Some(call)) = (held.taker, held.call) {
            self.end_if_over(call);
        }
        let open = held.call.is_some_and(|call| !self.waits.is_over(call));
        let heard = self.core.fail(held.session, fault_of(lease, code), self.at);
        self.note(format!("fail {lease:?} {code:?} -> {heard:?}"));
        let Ok(heard) = heard else {
            return broken(
                "LEASE-FENCED",
                format!("{lease:?} could not fail: {heard:?}"),
            );
        };
        let waited = held.asked && !held.answered && open;
        ensure(waited || !heard, "CALL-LATE", || {
            format!("{lease:?} failed late and was heard")
        })?;
        self.end_held(lease, Some(code))
    }

    fn drain_some(&mut self) -> Check {
        let live = self.live_peers();
        let Some(session) = self.dice.pick(&live) else {
            return Ok(());
        };
        let most = self.dice.count(1, 6);
        self.drain(session, most)
    }

    fn answer_some(&mut self) -> Check {
        let open = self
            .log
            .iter()
            .enumerate()
            .filter(|(_, record)| record.answer.is_none());
        let open: Vec<usize> = open.map(|(at, _)| at).collect();
        let first = self.dice.chance(60);
        let at = if first {
            open.first().copied()
        } else {
            self.dice.pick(&open)
        };
        let accepted = self.dice.chance(80);
        at.map_or(Ok(()), |at| self.answer_log(at, accepted))
    }

    fn pass_some(&mut self) -> Check {
        let nanos = match self.dice.between(0, 9) {
            0..=4 => self.dice.between(1, 1_000_000),
            5..=7 => self.dice.between(1, 20) * 1_000_000,
            8 => self.dice.between(20, 200) * 1_000_000,
            _ => self.dice.between(1, 5) * 1_000_000_000,
        };
        let told = self.dice.chance(85);
        self.pass(nanos, told)
    }

    /// Does all the work there is, without letting time pass.
    pub(crate) fn settle(&mut self) -> Check {
        self.note("settle");
        for _ in 0..400 {
            let mut moved = false;
            while !self.log.is_empty() {
                self.answer_some()?;
                moved = true;
            }
            self.drain_every()?;
            for taker in self.live_takers() {
                moved |= self.take(taker, None)?;
            }
            let held: Vec<LeaseId> = self.held.keys().copied().collect();
            for lease in held {
                moved = true;
                self.end_somehow(lease)?;
            }
            if !moved && self.core.gauges().inbox == 0 {
                return self.check_rest();
            }
        }
        broken("SETTLES", "the work never ends")
    }

    fn end_somehow(&mut self, lease: LeaseId) -> Check {
        let Some(held) = self.held.get(&lease).cloned() else {
            return Ok(());
        };
        let answer = self.dice.chance(60);
        match held.taker {
            Taker::Provider(_) if answer => self.give_result(lease, &held),
            Taker::Sub(_) if answer && held.asked && !held.answered => {
                self.give_reply(lease, &held)
            }
            _ => self.take(held.taker, Some(lease)).map(|_| ()),
        }
    }

    /// Everybody leaves, in an order of the dice's.
    pub(crate) fn leave(&mut self) -> Check {
        while let Some(at) = self.some_peer() {
            self.close(at)?;
        }
        self.check_gone()
    }
}
