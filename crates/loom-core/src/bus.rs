//! The event bus: reading an offer, stamping it, finding whom it is for, and putting it into queues.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::arena::{CallId, LeaseId, SessionId, SubId, TopicId};
use crate::books::{Fates, Reason};
use crate::core::{Core, Holding, Todo};
use crate::envelope::{Envelope, Extra, Origin, Qos};
use crate::error::{Code, Detail, Error, Result};
use crate::ident::Ident;
use crate::input::{Options, Publish};
use crate::lane::{As, Item};
use crate::notice::{Notice, Offer, Receipt};
use crate::planted::Planted;
use crate::record::Level;
use crate::recorder::Tape;
use crate::report::EngineEvent;
use crate::request::Failure;
use crate::space::SpaceId;
use crate::time::{Moment, Nanos};
use crate::timers::Timer;
use crate::topic::{check_thread, check_topic};
use crate::topics::Target;

/// Topics that one tick looks at to forget those that are idle.
const SWEPT: usize = 1_024;

pub(crate) type Targets = SmallVec<[SubId; 4]>;

/// What a turn hands on to what it sends.
pub(crate) struct Stamp {
    pub(crate) thread: Ident,
    pub(crate) run: u128,
    pub(crate) event: u128,
    pub(crate) correlation: Option<u128>,
    pub(crate) hop: u16,
    pub(crate) deadline: Option<Nanos>,
    /// The subscription whose queue this turn must drain.
    pub(crate) sub: Option<SubId>,
}

/// Who sends, and from where.
pub(crate) struct Source {
    pub(crate) space: SpaceId,
    pub(crate) session: SessionId,
    pub(crate) origin: Arc<Origin>,
    pub(crate) stamp: Option<Stamp>,
    /// The session has grants.
    pub(crate) bound: bool,
}

/// An envelope before it is stamped.
pub(crate) struct Draft {
    pub(crate) topic: Arc<str>,
    pub(crate) payload: Box<[u8]>,
    pub(crate) qos: Qos,
    pub(crate) options: Option<Box<Options>>,
    pub(crate) reply_to: Option<CallId>,
    pub(crate) deadline: Option<Nanos>,
    pub(crate) keeper: Keeper,
}

/// Who keeps a payload: what the log keeps may be larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeper {
    Log,
    /// Nobody, as this event is not durable.
    Event,
    /// Nobody, as the log does not record this call.
    Call,
    /// Nobody ever does.
    Nobody,
}

/// A publish that was read and matched: what is left is room.
pub(crate) struct Plan {
    pub(crate) env: Arc<Envelope>,
    pub(crate) targets: Targets,
    /// The subscription whose turn publishes.
    pub(crate) own: Option<SubId>,
    /// The request it is.
    pub(crate) call: Option<CallId>,
    /// Where it is recorded.
    pub(crate) tape: Option<Tape>,
}

/// What became of an event at one of those it is for.
enum Fate {
    Queued,
    Lost,
    /// It went after the event was aimed at it.
    Unheard,
}

/// Whether there is room for a plan.
pub(crate) enum Verdict {
    Room,
    Park,
}

impl Core {
    /// Publishes an event.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for what is not a topic, a class or an option; `DENIED` under `loom.>`, and where the session may not
    /// publish; `FENCED` for a sender or
    /// turn of another session; `EXHAUSTED` for hops, and where there is no room and the class does not wait.
    pub fn offer(&mut self, session: SessionId, publish: Publish<'_>, at: Moment) -> Result<Offer> {
        let source = self.source(session, publish.sender, publish.turn)?;
        if source.bound {
            self.check_publish(session, publish.topic)?;
        }
        self.topics.now = at.now;
        let (topic, name) = self.read_topic(source.space, publish.topic)?;
        let level = self.level_of(source.space, topic, &publish)?;
        if level.is_some() && publish.eager {
            return Ok(Offer::NoRoom);
        }
        let space = source.space;
        let draft = Draft {
            topic: name,
            payload: publish.payload,
            qos: publish.qos,
            options: publish.options,
            reply_to: None,
            deadline: None,
            keeper: level.map_or(Keeper::Event, |_| Keeper::Log),
        };
        let own = source.stamp.as_ref().and_then(|stamp| stamp.sub);
        let tape = self.tape(source.space, publish.turn);
        let eager = publish.eager;
        let mut env = self.compose(source, draft, at)?;
        env.books = topic;
        let env = Arc::new(env);
        let targets = match level {
            Some(_) => Targets::new(),
            None => self.pick(topic, env.lane()),
        };
        let (run, hop) = (env.run, env.hop);
        self.check_fanout(targets.len())?;
        if hop > 0 {
            self.count_run(run, at.now)?;
        }
        let offer = if let Some(level) = level {
            self.publish_durable((session, space), env, level, at)
        } else {
            let plan = Plan {
                env,
                targets,
                own,
                call: None,
                tape,
            };
            self.send(session, plan, eager, at)
        };
        if hop > 0 && matches!(offer, Err(_) | Ok(Offer::NoRoom)) {
            self.uncount_run(run, at.now);
        }
        self.flush(at);
        offer
    }

    /// Puts an event into its queues, or lets it wait for room.
    fn send(&mut self, session: SessionId, plan: Plan, eager: bool, at: Moment) -> Result<Offer> {
        Ok(match self.judge(&plan)? {
            Verdict::Room => Offer::Done(self.apply(&plan, at)),
            Verdict::Park if eager => Offer::NoRoom,
            Verdict::Park => Offer::Parked(self.park(session, plan, at)?),
        })
    }

    /// Who sends: the handle and the lease must both be of this session.
    pub(crate) fn source(
        &self,
        session: SessionId,
        sender: crate::arena::Handle,
        turn: Option<LeaseId>,
    ) -> Result<Source> {
        let found = self.registration(session, sender)?;
        let (space, origin, bound) = (found.space, Arc::clone(&found.origin), found.bound);
        let stamp = match turn {
            Some(lease) => Some(self.stamp(session, lease)?),
            None => None,
        };
        Ok(Source {
            space,
            session,
            origin,
            stamp,
            bound,
        })
    }

    /// The hop of what follows from an event; a chain of events ends at the limit.
    pub(crate) fn next_hop(&self, env: &Envelope) -> Result<u16> {
        let hop = env.hop.saturating_add(1);
        if usize::from(hop) > self.limits.hops {
            let message = format!("this would be hop {hop} of at most {}", self.limits.hops);
            return Err(Error::exhausted("hops", message).field("hop").hint(
                "agents that answer each other need an end; a new thread starts from a root event",
            ));
        }
        Ok(hop)
    }

    fn stamp(&self, session: SessionId, lease: LeaseId) -> Result<Stamp> {
        let lease = self.lease(session, lease)?;
        let env = &lease.env;
        let hop = self.next_hop(env)?;
        let sub = match lease.holding {
            Holding::Turn { sub, .. } => Some(sub),
            Holding::Work { .. } => None,
        };
        Ok(Stamp {
            thread: env.thread.clone(),
            run: env.run,
            event: env.id,
            correlation: env.correlation,
            hop,
            deadline: env.deadline,
            sub,
        })
    }

    /// A topic that a user may publish to.
    pub(crate) fn read_topic(
        &mut self,
        space: SpaceId,
        topic: &str,
    ) -> Result<(TopicId, Arc<str>)> {
        let found = self.topic(space, topic)?;
        if topic.starts_with("loom.") || topic == "loom" {
            let message = format!("{topic:?} is the engine's own; only it publishes under loom.>");
            return Err(Error::new(Code::Denied, message).field("topic"));
        }
        Ok(found)
    }

    /// A topic with those it is for; a warm one costs one look-up.
    pub(crate) fn topic(&mut self, space: SpaceId, topic: &str) -> Result<(TopicId, Arc<str>)> {
        let Some(found) = self.spaces.get(space.0 as usize) else {
            return Err(Error::new(Code::Internal, "there is no such namespace"));
        };
        let version = found.version;
        let known = found.topics.get_key_value(topic);
        let (id, name) = if let Some((name, id)) = known {
            let (id, name) = (*id, Arc::clone(name));
            if self.topics.touch(id) == Some(version) {
                return Ok((id, name));
            }
            (id, name)
        } else {
            check_topic(topic, &self.limits)?;
            self.enter_topic(space, topic)
        };
        let targets = self.find_targets(space, topic);
        let durable = self.is_durable(space, topic);
        if let Some(topic) = self.topics.get_mut(id) {
            topic.targets = targets;
            topic.durable = durable;
            topic.version = version;
        }
        Ok((id, name))
    }

    /// Keeps a topic that was not known; a full table forgets one that was not used for long.
    fn enter_topic(&mut self, space: SpaceId, topic: &str) -> (TopicId, Arc<str>) {
        if self.topics.len() >= self.limits.topic_cache
            && let Some(oldest) = self.topics.oldest()
        {
            self.forget_topic(oldest);
        }
        let name: Arc<str> = topic.into();
        let id = self.topics.enter(space, Arc::clone(&name));
        if let Some(found) = self.space_mut(space) {
            found.topics.insert(Arc::clone(&name), id);
        }
        (id, name)
    }

    pub(crate) fn forget_topic(&mut self, id: TopicId) {
        if self.has(Planted::TopicKept) {
            return;
        }
        let Some(topic) = self.topics.fold(id) else {
            return;
        };
        if let Some(space) = self.space_mut(topic.space) {
            space.topics.remove(&topic.name);
            if space.topics.len() < space.topics.capacity() / 4 {
                space.topics.shrink_to(space.topics.len() * 2);
            }
        }
    }

    /// Forgets some of the topics that nobody has used for a minute, down to those that are kept anyway.
    pub(crate) fn forget_idle(&mut self, now: Nanos) {
        self.topics.now = now;
        let kept = self.limits.topics_kept;
        let surplus = self.topics.len().saturating_sub(kept);
        if surplus == 0 {
            return;
        }
        let since = Nanos(now.0.saturating_sub(self.limits.topic_idle_ms * 1_000_000));
        let idle = self.topics.idle(since, SWEPT);
        for topic in idle.into_iter().take(surplus) {
            self.forget_topic(topic);
        }
    }

    /// Matches a topic: streams one by one, members of a group together.
    pub(crate) fn find_targets(&self, space: SpaceId, topic: &str) -> Vec<Target> {
        let Some(space) = self.space(space) else {
            return Vec::new();
        };
        let mut targets: Vec<Target> = Vec::new();
        for sub in space.trie.find(topic) {
            let Some(found) = self.subs.get(sub).filter(|it| self.may_reach(it, topic)) else {
                continue;
            };
            let Some(group) = found.group else {
                targets.push(Target::One(sub));
                continue;
            };
            let same = targets.iter_mut().find_map(|target| match target {
                Target::Group(other, members) if *other == group => Some(members),
                _ => None,
            });
            match same {
                Some(members) => members.push(sub),
                None => targets.push(Target::Group(group, vec![sub])),
            }
        }
        targets
    }

    /// Whom an event of this topic goes to: all streams, and one member of each group.
    pub(crate) fn pick(&mut self, topic: TopicId, lane: &Ident) -> Targets {
        let Some(found) = self.topics.get_mut(topic) else {
            return Targets::new();
        };
        // Taken out while groups are asked, so that nothing is copied.
        let targets = std::mem::take(&mut found.targets);
        let picked = self.pick_of(&targets, lane);
        if let Some(found) = self.topics.get_mut(topic) {
            found.targets = targets;
        }
        picked
    }

    pub(crate) fn pick_of(&mut self, targets: &[Target], lane: &Ident) -> Targets {
        let mut picked = Targets::new();
        for target in targets {
            match target {
                Target::One(sub) => picked.push(*sub),
                Target::Group(_, members) if members.len() == 1 => {
                    picked.extend(members.first().copied());
                }
                Target::Group(group, members) => {
                    picked.extend(self.pick_member(*group, members, lane));
                }
            }
        }
        if self.has(Planted::DeliveredTwice) {
            picked.extend(picked.first().copied());
        }
        picked
    }

    /// Stamps a draft.
    pub(crate) fn compose(&mut self, source: Source, draft: Draft, at: Moment) -> Result<Envelope> {
        self.check_payload(&draft.payload, draft.keeper)?;
        let id = self.ids.mint(at.wall_ms);
        let mut env = Envelope {
            id,
            topic: draft.topic,
            payload: draft.payload,
            origin: source.origin,
            thread: Ident::Uuid(id),
            run: id,
            correlation: None,
            causation: None,
            reply_to: draft.reply_to,
            deadline: draft.deadline,
            ttl_ms: None,
            expires: None,
            key: None,
            time_ms: at.wall_ms,
            hop: 0,
            qos: draft.qos,
            extra: None,
            position: None,
            books: TopicId(0),
        };
        if let Some(stamp) = source.stamp {
            env.thread = stamp.thread;
            env.run = stamp.run;
            env.causation = Some(stamp.event);
            env.correlation = stamp.correlation;
            env.hop = stamp.hop;
        }
        if env.reply_to.is_some() && env.correlation.is_none() {
            env.correlation = Some(id);
        }
        if let Some(options) = draft.options {
            self.read_options(&mut env, source.session, *options, at)?;
        }
        Ok(env)
    }

    pub(crate) fn check_payload(&self, payload: &[u8], keeper: Keeper) -> Result<()> {
        if payload.len() <= self.limits.payload_bytes {
            return Ok(());
        }
        self.check_large(payload.len(), keeper)
    }

    /// The bytes of a payload that only the log keeps; 0: it is small.
    pub(crate) fn large_bytes(&self, env: &Envelope) -> usize {
        let bytes = env.size();
        if bytes > self.limits.payload_bytes {
            bytes
        } else {
            0
        }
    }

    /// What is too large for a queue that nobody keeps may be small enough for the log.
    #[cold]
    fn check_large(&self, bytes: usize, keeper: Keeper) -> Result<()> {
        let (most, limit) = match keeper {
            Keeper::Log => (self.limits.kept_payload_bytes, "kept_payload_bytes"),
            _ => (self.limits.payload_bytes, "payload_bytes"),
        };
        if bytes <= most {
            return Ok(());
        }
        let hint = match keeper {
            Keeper::Log | Keeper::Nobody => "send a reference to where it lies, or several pieces",
            Keeper::Event => {
                "make the event durable (ack=, or [log] durable), or send a reference to where it lies"
            }
            Keeper::Call => {
                "call with a key, or in a recorded turn, what has an effect: the log keeps that; \
                 or hand over a reference to where it lies"
            }
        };
        let message = format!("the payload has {bytes} bytes of at most {most}");
        Err(Error::invalid("payload", message).limit(limit).hint(hint))
    }

    fn read_options(
        &self,
        env: &mut Envelope,
        session: SessionId,
        options: Options,
        at: Moment,
    ) -> Result<()> {
        if let Some(key) = &options.key {
            env.key = Some(self.read_key(key)?);
        }
        if let Some(thread) = &options.thread_id {
            check_thread(thread, &self.limits)?;
            env.thread = Ident::parse(thread);
        }
        if let Some(ttl) = options.ttl_ms {
            if ttl == 0 || ttl > self.limits.ttl_ms_max {
                let message = format!(
                    "ttl is {ttl} ms, not one of 1 to {}",
                    self.limits.ttl_ms_max
                );
                return Err(Error::invalid("ttl", message).limit("ttl_ms_max"));
            }
            env.ttl_ms = Some(ttl);
            env.expires = Some(at.now.plus_millis(ttl));
        }
        env.extra = self.read_extra(session, options)?;
        Ok(())
    }

    pub(crate) fn read_key(&self, key: &str) -> Result<Ident> {
        if key.is_empty() {
            return Err(Error::invalid("key", "a key must not be empty").hint("leave it out"));
        }
        if key.len() > self.limits.key_bytes {
            let message = format!(
                "the key has {} bytes of at most {}",
                key.len(),
                self.limits.key_bytes
            );
            return Err(Error::invalid("key", message).limit("key_bytes"));
        }
        Ok(Ident::parse(key))
    }

    fn read_extra(&self, session: SessionId, options: Options) -> Result<Option<Box<Extra>>> {
        let plain = options.content_type.is_none()
            && options.traceparent.is_none()
            && options.headers.is_empty()
            && options.labels.is_empty()
            && options.causes.is_empty()
            && options.dedup.is_none();
        if plain {
            return Ok(None);
        }
        self.check_headers(&options)?;
        self.check_short("content_type", options.content_type.as_deref())?;
        self.check_short("traceparent", options.traceparent.as_deref())?;
        self.check_short("id", options.dedup.as_deref())?;
        if options.labels.len() > self.limits.labels {
            let message = format!(
                "{} labels of at most {}",
                options.labels.len(),
                self.limits.labels
            );
            return Err(Error::invalid("labels", message).limit("labels"));
        }
        for label in &options.labels {
            self.check_short("labels", Some(label))?;
        }
        let causes = self.read_causes(session, &options.causes)?;
        let headers = options
            .headers
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()));
        Ok(Some(Box::new(Extra {
            content_type: options.content_type.map(Into::into),
            headers: headers.collect(),
            labels: options.labels.into_iter().map(Into::into).collect(),
            traceparent: options.traceparent.map(Into::into),
            causes,
            dedup: options.dedup.map(Into::into),
            only: None,
        })))
    }

    fn check_headers(&self, options: &Options) -> Result<()> {
        if options.headers.len() > self.limits.headers {
            let message = format!(
                "{} headers of at most {}",
                options.headers.len(),
                self.limits.headers
            );
            return Err(Error::invalid("headers", message).limit("headers"));
        }
        let bytes: usize = options
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if bytes > self.limits.header_bytes {
            let message = format!(
                "the headers have {bytes} bytes of at most {}",
                self.limits.header_bytes
            );
            return Err(Error::invalid("headers", message).limit("header_bytes"));
        }
        Ok(())
    }

    pub(crate) fn check_short(&self, field: &str, text: Option<&str>) -> Result<()> {
        let Some(text) = text else { return Ok(()) };
        if !text.is_empty() && text.len() <= self.limits.name_bytes {
            return Ok(());
        }
        let message = format!(
            "{field} has {} bytes, not 1 to {}",
            text.len(),
            self.limits.name_bytes
        );
        Err(Error::invalid(field, message).limit("name_bytes"))
    }

    /// Causes must be events that the session was given and still holds.
    fn read_causes(&self, session: SessionId, texts: &[String]) -> Result<Vec<u128>> {
        if texts.len() > self.limits.causes {
            let message = format!("{} causes of at most {}", texts.len(), self.limits.causes);
            return Err(Error::invalid("causes", message).limit("causes"));
        }
        let mut causes = Vec::with_capacity(texts.len());
        for text in texts {
            let id = crate::ident::parse_uuid(text);
            let held = id.filter(|id| {
                self.leases
                    .iter()
                    .any(|(_, lease)| lease.session == session && is_or_follows(&lease.env, *id))
            });
            let Some(id) = held else {
                let message = format!("{text:?} is no event that this session holds now");
                return Err(Error::invalid("causes", message));
            };
            causes.push(id);
        }
        Ok(causes)
    }

    /// Says whether a plan can go at once. Nothing has been enqueued when it is refused.
    pub(crate) fn judge(&self, plan: &Plan) -> Result<Verdict> {
        let mut verdict = Verdict::Room;
        for target in &plan.targets {
            let Some(sub) = self.subs.get(*target) else {
                continue;
            };
            let class = sub.class(plan.env.qos);
            if class == Qos::Realtime {
                continue;
            }
            let lags = class == Qos::Batched && sub.lagging;
            let unshed = self.has(Planted::BackgroundUnshed);
            let room = lags
                || sub.admits(&plan.env, &self.limits)
                || (unshed && sub.has_room(&plan.env, &self.limits));
            if room && sub.parked.is_empty() {
                continue;
            }
            // Background is shed before those who wait; a turn that waits for room in its own queue waits for itself.
            if class == Qos::Background || (!room && plan.own == Some(*target)) {
                return Err(self.full(*target, plan));
            }
            verdict = Verdict::Park;
        }
        Ok(verdict)
    }

    fn full(&self, target: SubId, plan: &Plan) -> Error {
        let name = self
            .subs
            .get(target)
            .map(|sub| Arc::clone(&sub.name))
            .unwrap_or_default();
        let hint = if plan.own == Some(target) {
            "this turn's own agent must drain that queue: emit less, raise its concurrency, or use realtime"
        } else {
            "background fills half of a queue and is refused first: send later, or use batched to wait for room"
        };
        Error::exhausted("queue_items", format!("the queue of {name:?} has no room"))
            .field("qos")
            .hint(hint)
            .retry_after(self.limits.retry_base_ms)
    }

    /// Puts an event into all its queues: the same code whether it was logged, had waited, or went at once.
    pub(crate) fn apply(&mut self, plan: &Plan, at: Moment) -> Receipt {
        self.totals.count_published(plan.env.qos);
        self.tape_sent(plan.tape, &plan.env, plan.targets.len());
        let count = plan.targets.len();
        let books = self.topics.books(plan.env.books);
        books.published += 1;
        // Room is counted for all at once, and given back where there was none.
        books.queued += count;
        let mut fates = Fates::default();
        for target in &plan.targets {
            match self.enqueue(*target, &plan.env, at) {
                Fate::Queued => fates.queued += 1,
                Fate::Lost => fates.lost += 1,
                Fate::Unheard => {}
            }
        }
        let books = self.topics.books(plan.env.books);
        books.queued -= count - fates.queued;
        books.join(fates);
        Receipt {
            id: plan.env.id,
            matched: plan.targets.len(),
            position: plan.env.position,
            level: Level::Accepted,
        }
    }

    /// Puts an event into one queue, or counts why not.
    fn enqueue(&mut self, id: SubId, env: &Arc<Envelope>, at: Moment) -> Fate {
        let Some(sub) = self.subs.get_mut(id).filter(|sub| !sub.is_deaf()) else {
            self.decline_for(id, env, None);
            return Fate::Unheard;
        };
        sub.books.class(env.qos).matched += 1;
        let class = sub.class(env.qos);
        let realtime = class == Qos::Realtime;
        let lags = !realtime && sub.lagging;
        let mut room = !lags && sub.has_room(env, &self.limits);
        if !room && realtime {
            room = self.make_room(id, env, at);
        }
        if room {
            let kind = if realtime { As::Realtime } else { As::Ordinary };
            self.push(id, env, kind, at);
            return Fate::Queued;
        }
        let reason = if realtime {
            Reason::Overflow
        } else {
            Reason::Lagging
        };
        self.lose(id, env, reason, at);
        Fate::Lost
    }

    /// Drops the oldest realtime events until there is room.
    fn make_room(&mut self, id: SubId, env: &Arc<Envelope>, at: Moment) -> bool {
        let spares = self.has(Planted::NewestDropped);
        loop {
            let Some(sub) = self.subs.get_mut(id) else {
                return false;
            };
            if sub.has_room(env, &self.limits) {
                return true;
            }
            if spares {
                return false;
            }
            let Some((lane, item)) = sub.lanes.remove_oldest_realtime() else {
                return false;
            };
            self.leaves_queue(id, lane, &item);
            self.lose(id, &item.env, Reason::Overflow, at);
            self.made_room(id);
        }
    }

    /// Puts an event at the end of its lane.
    pub(crate) fn push(&mut self, id: SubId, env: &Arc<Envelope>, kind: As, at: Moment) {
        let twice = self.has(Planted::TwoTurns);
        let Some(sub) = self.subs.get_mut(id) else {
            return;
        };
        let single = Ident::Uuid(0);
        let lane = if sub.is_stream() { &single } else { env.lane() };
        let (lane, seq) = sub.lanes.push(lane, Arc::clone(env), at.now, kind);
        if twice {
            sub.lanes.hurry(lane);
        }
        sub.books.high_water = sub.books.high_water.max(sub.lanes.items());
        let queued = sub.lanes.items_of(env.qos);
        let class = sub.books.class(env.qos);
        class.high_water = class.high_water.max(queued);
        if let Some(expires) = env.expires {
            self.timers.add(expires, Timer::Event(id, lane, seq));
        }
        self.poke(id);
    }

    /// Announces ready work to a subscription that asked for it.
    pub(crate) fn poke(&mut self, id: SubId) {
        let forgets = self.has(Planted::LostWake);
        let Some(sub) = self.subs.get_mut(id) else {
            return;
        };
        if sub.consumer.is_some() && sub.has_slot() && sub.lanes.is_next_durable() {
            self.todo.push_back(Todo::Claim(id));
            return;
        }
        if sub.armed && sub.can_start() {
            sub.armed = false;
            if forgets && sub.leased > 0 {
                return;
            }
            let (session, handle) = (sub.session, sub.handle);
            self.notify(session, Notice::Ready(handle));
        }
    }

    /// Counts an event out of its queue, and takes back its timer.
    pub(crate) fn leaves_queue(&mut self, sub: SubId, lane: u32, item: &Item) {
        if item.kind.is_first() {
            self.topics.books(item.env.books).queued -= 1;
        }
        self.untime(sub, lane, item);
    }

    /// Takes back the timer of an event that leaves its queue.
    pub(crate) fn untime(&mut self, sub: SubId, lane: u32, item: &Item) {
        if let Some(expires) = item.env.expires {
            self.timers
                .remove(expires, Timer::Event(sub, lane, item.seq));
        }
    }

    /// Counts a loss, says so at most once a second, and declines what was asked with the event.
    pub(crate) fn lose(&mut self, id: SubId, env: &Arc<Envelope>, reason: Reason, at: Moment) {
        let mut told = None;
        let again = self.has(Planted::LossToldTwice);
        if self.has(Planted::UncountedLoss) && reason == Reason::Overflow {
            return;
        }
        self.topics.books(env.books).dropped.add(reason);
        if let Some(sub) = self.subs.get_mut(id) {
            sub.books.class(env.qos).dropped.add(reason);
            let count = sub.books.lost(reason);
            let due = sub.books.told.get_mut(reason as usize);
            if !env.is_of_engine()
                && let Some(last) = due
                && (again || last.is_none_or(|last| at.now >= last.plus_millis(1_000)))
            {
                *last = Some(at.now);
                told = Some((sub.space, Arc::clone(&sub.origin), count));
            }
        }
        if let Some((space, origin, count)) = told {
            let topic = format!("loom.dropped.{}", reason.token());
            let body = || {
                crate::error::to_json(&serde_json::json!({
                    "subscription": &*origin.sender,
                    "reason": reason.token(),
                    "dropped": count,
                    "topic": &*env.topic,
                    "event_id": crate::ident::show_uuid(env.id),
                }))
            };
            self.say(space, topic, Some(env), body);
        }
        if env.reply_to.is_some() {
            let message = format!("the event was dropped: {}", reason.token());
            self.decline_for(id, env, Some((Code::Unavailable, Detail::message(message))));
        }
    }

    /// Declines for a subscription that will not answer, if the event asked it.
    pub(crate) fn decline_for(&mut self, id: SubId, env: &Envelope, why: Option<(Code, Detail)>) {
        let Some(call) = env.reply_to else { return };
        if self.was_asked(call, id) {
            let sub = self.subs.get(id);
            let who = sub
                .map(|sub| Arc::clone(&sub.origin.sender))
                .unwrap_or_default();
            self.todo.push_back(Todo::Decline(
                call,
                Failure {
                    who,
                    why,
                    told: false,
                },
            ));
        }
    }

    /// A queued event has waited too long.
    pub(crate) fn event_is_due(&mut self, id: SubId, lane: u32, seq: u64, at: Moment) {
        let Some(sub) = self.subs.get_mut(id) else {
            return;
        };
        if let Some(item) = sub.lanes.remove(lane, seq) {
            if let As::Durable { .. } = item.kind {
                self.expire_durable(id, &item, at);
            } else {
                self.leaves_queue(id, lane, &item);
                self.expire(id, &item.env, at);
            }
            self.made_room(id);
            self.flush(at);
        }
    }

    /// Counts an event that was over before it was started.
    ///
    /// A request whose own time is up ends as that, and not as declined.
    pub(crate) fn expire(&mut self, id: SubId, env: &Arc<Envelope>, at: Moment) {
        if let Some(call) = env.reply_to {
            self.end_if_over(call, at);
        }
        self.topics.books(env.books).expired += 1;
        if let Some(sub) = self.subs.get_mut(id) {
            sub.books.class(env.qos).expired += 1;
        }
        self.decline_for(id, env, None);
    }

    /// A queue got shorter: it may have caught up, and offers may be waiting for it.
    pub(crate) fn made_room(&mut self, id: SubId) {
        let longer = self.has(Planted::LagsLonger);
        let Some(sub) = self.subs.get_mut(id) else {
            return;
        };
        let empty = sub.lanes.items() == 0;
        if sub.lagging && sub.is_half_empty(&self.limits) && (empty || !longer) {
            sub.lagging = false;
        }
        if !sub.parked.is_empty() {
            self.todo.push_back(Todo::Unpark(id));
        }
        if sub.hungry && sub.is_half_empty(&self.limits) {
            sub.hungry = false;
            if let Some(consumer) = sub.consumer {
                self.ask_feed(consumer);
            }
        }
    }

    /// Publishes what the engine has to say: realtime, so that it never waits.
    pub(crate) fn publish_own(&mut self, event: EngineEvent, at: Moment) {
        let Ok((topic, name)) = self.topic(event.space, &event.topic) else {
            return;
        };
        let id = self.ids.mint(at.wall_ms);
        let cause = event.cause.as_deref();
        // What the engine has to say of the last hop is said on it: it ends no loop, and hides none.
        let most = u16::try_from(self.limits.hops).unwrap_or(u16::MAX);
        let hop = cause.map_or(0, |cause| cause.hop.saturating_add(1).min(most));
        let env = Arc::new(Envelope {
            id,
            topic: name,
            payload: event.payload.into(),
            origin: event.origin,
            thread: cause.map_or(Ident::Uuid(id), |cause| cause.thread.clone()),
            run: cause.map_or(id, |cause| cause.run),
            correlation: cause.and_then(|cause| cause.correlation),
            causation: cause.map(|cause| cause.id),
            reply_to: None,
            deadline: None,
            ttl_ms: None,
            expires: None,
            key: None,
            time_ms: at.wall_ms,
            hop,
            qos: Qos::Realtime,
            extra: None,
            position: None,
            books: topic,
        });
        let targets = self.pick(topic, env.lane());
        let tape = Tape {
            space: event.space,
            turn: event.turn,
        };
        if self.check_fanout(targets.len()).is_err() {
            // There is nobody who could be told; it is counted, and the engine goes on.
            return self.totals.count_error(Code::Exhausted);
        }
        if targets.is_empty() && self.is_taped(event.space, &event.topic) {
            // It is recorded, and that is all.
            return self.tape_sent(Some(tape), &env, 0);
        }
        self.apply(
            &Plan {
                env,
                targets,
                own: None,
                call: None,
                tape: Some(tape),
            },
            at,
        );
    }
}

fn is_or_follows(env: &Envelope, id: u128) -> bool {
    env.id == id
        || env
            .extra
            .as_ref()
            .is_some_and(|extra| extra.causes.contains(&id))
}
