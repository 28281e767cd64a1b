//! The second book of events: who should get what, by brute force, and what each subscription really got.

use std::collections::{BTreeMap, BTreeSet};

use loom_core::{AuditedSubscription, CallId, Delivery, Envelope, Handle, Ident, LeaseId, Limits};
use loom_core::{Nanos, Qos, SessionId};

use crate::trace::{Check, Violation, broken, ensure};

/// One subscription of an agent, or an ordered stream.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own and changes alone"
)]
pub(crate) struct Sub {
    pub(crate) session: SessionId,
    pub(crate) handle: Handle,
    pub(crate) space: usize,
    /// Of the agent; of a stream, its session's. No two are equal.
    pub(crate) name: String,
    /// Of a stream: a name that nobody else has.
    pub(crate) group: String,
    pub(crate) stream: bool,
    pub(crate) lossy: bool,
    pub(crate) filters: Vec<String>,
    pub(crate) concurrency: usize,
    pub(crate) live: bool,
    pub(crate) open: BTreeMap<LeaseId, Ident>,
    /// Turns that ended.
    pub(crate) ended: u64,
    /// Events that were for it and nobody else of its group.
    sole: u64,
    /// Events that were for it or another member.
    shared: u64,
    /// Events and bytes that it may hold at most, and the most there ever were.
    load: (usize, usize),
    peak: (usize, usize),
    /// Realtime events among them: only these may be lost while no offer waits.
    fleeting: u64,
    /// An offer has waited that was for it too.
    waited: bool,
    ring: Ring,
}

/// Realtime events of one subscription in the order they were put into its queue.
#[derive(Default)]
struct Ring {
    items: Vec<RingItem>,
    /// Some came at a time that is not known.
    blurred: bool,
}

struct RingItem {
    event: usize,
    placed: u64,
    taken: Option<u64>,
    /// It may have gone because its time was up.
    mortal: bool,
}

impl Sub {
    pub(crate) fn new(session: SessionId, space: usize, name: String, group: String) -> Self {
        Self {
            session,
            handle: Handle(0),
            space,
            name,
            group,
            stream: false,
            lossy: false,
            filters: Vec::new(),
            concurrency: 1,
            live: true,
            open: BTreeMap::new(),
            ended: 0,
            sole: 0,
            shared: 0,
            load: (0, 0),
            peak: (0, 0),
            fleeting: 0,
            waited: false,
            ring: Ring::default(),
        }
    }

    fn hears(&self, topic: &str) -> bool {
        self.filters.iter().any(|filter| hears(filter, topic))
    }

    /// It may get events that this book does not know beforehand: the engine's own, and copies of replies.
    pub(crate) fn hears_engine(&self) -> bool {
        let firsts = self
            .filters
            .iter()
            .filter_map(|filter| filter.split('.').next());
        firsts
            .into_iter()
            .any(|first| matches!(first, "*" | ">" | "loom" | "thread"))
    }
}

/// A filter's grammar, read token by token.
pub(crate) fn hears(filter: &str, topic: &str) -> bool {
    let filter: Vec<&str> = filter.split('.').collect();
    let topic: Vec<&str> = topic.split('.').collect();
    matches(&filter, &topic)
}

fn matches(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        ([], []) | ([">"], [_, ..]) => true,
        ([first, filter @ ..], [token, topic @ ..]) => {
            (*first == "*" || first == token) && matches(filter, topic)
        }
        _ => false,
    }
}

/// What an event took over from the turn it was sent in.
#[derive(Clone)]
pub(crate) struct Stamp {
    pub(crate) thread: Ident,
    pub(crate) run: u128,
    pub(crate) cause: u128,
    pub(crate) hop: u16,
}

impl Stamp {
    pub(crate) fn of(env: &Envelope) -> Self {
        Self {
            thread: env.thread.clone(),
            run: env.run,
            cause: env.id,
            hop: env.hop + 1,
        }
    }
}

/// How an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Nobody may get it.
    Refused,
    /// It waits for room.
    Parked,
    /// It is with the log: nobody may get it.
    Logging,
    /// A request that was parked, or waits for a hearer: whether it went is not told.
    Unsure,
    /// It went into queues.
    Applied,
}

/// One group, or one stream, that an event is for.
pub(crate) struct Target {
    pub(crate) group: String,
    pub(crate) members: Vec<usize>,
    pub(crate) stream: bool,
    taken: bool,
}

pub(crate) struct Event {
    pub(crate) space: usize,
    pub(crate) sender: String,
    pub(crate) topic: &'static str,
    pub(crate) size: usize,
    pub(crate) qos: Qos,
    pub(crate) durable: bool,
    pub(crate) lane: Option<Ident>,
    pub(crate) thread: Option<Ident>,
    pub(crate) expires: Option<Nanos>,
    pub(crate) deadline: Option<Nanos>,
    pub(crate) stamp: Option<Stamp>,
    pub(crate) call: Option<CallId>,
    /// Nobody heard it when it came.
    pub(crate) waited: bool,
    pub(crate) targets: Vec<Target>,
    pub(crate) state: State,
    /// When it was put into queues, if that is known.
    placed: Option<u64>,
}

impl Event {
    pub(crate) fn new(space: usize, sender: String, topic: &'static str) -> Self {
        Self {
            space,
            sender,
            topic,
            size: 0,
            qos: Qos::Batched,
            durable: false,
            lane: None,
            thread: None,
            expires: None,
            deadline: None,
            stamp: None,
            call: None,
            waited: false,
            targets: Vec::new(),
            state: State::Refused,
            placed: None,
        }
    }

    pub(crate) fn responders(&self) -> u32 {
        let agents = self.targets.iter().filter(|target| !target.stream);
        u32::try_from(agents.count()).unwrap_or(u32::MAX)
    }

    fn is_over(&self, now: Nanos) -> bool {
        self.expires.is_some_and(|at| at <= now) || self.deadline.is_some_and(|at| at <= now)
    }
}

/// Who sent what class of events where, as far as order is promised.
type Line = (usize, String, String, &'static str, Ident, bool, bool);

#[derive(Default)]
pub(crate) struct Book {
    pub(crate) subs: Vec<Sub>,
    pub(crate) events: Vec<Event>,
    beat: u64,
    lines: BTreeMap<Line, usize>,
    /// The last event of a lane whose place in the queue is known.
    places: BTreeMap<(usize, Ident), u64>,
    others: BTreeSet<(u128, usize, String)>,
}

fn unknown() -> Violation {
    Violation {
        law: "SIM-BOOK",
        what: "the simulator lost track of what it made".to_owned(),
    }
}

impl Book {
    pub(crate) fn sub(&mut self, index: usize) -> Check<&mut Sub> {
        self.subs.get_mut(index).ok_or_else(unknown)
    }

    pub(crate) fn event(&mut self, index: usize) -> Check<&mut Event> {
        self.events.get_mut(index).ok_or_else(unknown)
    }

    /// Whom a topic is for: groups and streams, each with those of its members that hear it.
    pub(crate) fn targets(&self, space: usize, topic: &str) -> Vec<Target> {
        let mut groups: BTreeMap<&str, (bool, Vec<usize>)> = BTreeMap::new();
        for (index, sub) in self.subs.iter().enumerate() {
            if sub.live && sub.space == space && sub.hears(topic) {
                groups
                    .entry(&sub.group)
                    .or_insert((sub.stream, Vec::new()))
                    .1
                    .push(index);
            }
        }
        let targets = groups.into_iter().map(|(group, (stream, members))| Target {
            group: group.to_owned(),
            members,
            stream,
            taken: false,
        });
        targets.collect()
    }

    /// Enters an event that is offered now.
    pub(crate) fn offer(&mut self, event: Event) -> usize {
        self.events.push(event);
        self.load(self.events.len() - 1);
        self.events.len() - 1
    }

    fn load(&mut self, index: usize) {
        let Some(event) = self.events.get(index) else {
            return;
        };
        for member in event.targets.iter().flat_map(|target| &target.members) {
            if let Some(sub) = self.subs.get_mut(*member) {
                sub.load = (sub.load.0 + 1, sub.load.1 + event.size);
                sub.peak = (sub.peak.0.max(sub.load.0), sub.peak.1.max(sub.load.1));
            }
        }
    }

    /// A subscription came: who an event that waited for it is for.
    pub(crate) fn aim(&mut self, index: usize) -> Check<u32> {
        let (space, topic) = (self.event(index)?.space, self.event(index)?.topic);
        let targets = self.targets(space, topic);
        let event = self.event(index)?;
        event.targets = targets;
        let responders = event.responders();
        if responders > 0 {
            self.load(index);
            self.wait(index, State::Unsure)?;
        }
        Ok(responders)
    }

    /// What was refused, or taken by another member, is no load.
    fn unload(&mut self, index: usize, group: Option<&str>) {
        let Some(event) = self.events.get(index) else {
            return;
        };
        let targets = event
            .targets
            .iter()
            .filter(|t| group.is_none_or(|group| t.group == group));
        for member in targets.flat_map(|target| &target.members) {
            if let Some(sub) = self.subs.get_mut(*member) {
                let (items, bytes) = sub.load;
                sub.load = (items.saturating_sub(1), bytes.saturating_sub(event.size));
            }
        }
    }

    pub(crate) fn refuse(&mut self, index: usize) -> Check {
        self.unload(index, None);
        self.event(index)?.state = State::Refused;
        Ok(())
    }

    /// An event waits: when it goes into the queues of its targets, if it does, is not told.
    pub(crate) fn wait(&mut self, index: usize, state: State) -> Check {
        let event = self.event(index)?;
        event.state = state;
        let members = event
            .targets
            .iter()
            .flat_map(|target| target.members.clone());
        for member in members.collect::<Vec<usize>>() {
            let sub = self.sub(member)?;
            sub.ring.blurred |= sub.lossy;
            sub.waited = true;
        }
        Ok(())
    }

    /// Whether one of those an event is for may have been full when it came.
    pub(crate) fn may_be_full(&self, index: usize, limits: &Limits) -> bool {
        let Some(event) = self.events.get(index) else {
            return false;
        };
        let mut members = event.targets.iter().flat_map(|target| &target.members);
        members.any(|member| {
            self.subs.get(*member).is_some_and(|sub| {
                sub.load.0 > limits.queue_items
                    || sub.load.1 > limits.queue_bytes
                    || sub.hears_engine()
            })
        })
    }

    /// The event went into the queues of its targets, now or at a time that is not known.
    pub(crate) fn apply(&mut self, index: usize, known: bool) -> Check {
        self.beat += 1;
        let beat = self.beat;
        let event = self.event(index)?;
        if event.state == State::Applied {
            return Ok(());
        }
        event.state = State::Applied;
        event.placed = known.then_some(beat);
        let (qos, mortal) = (
            event.qos,
            event.expires.is_some() || event.deadline.is_some(),
        );
        let groups: Vec<Vec<usize>> = event.targets.iter().map(|t| t.members.clone()).collect();
        for members in groups {
            let alone = members.len() == 1;
            for member in members {
                let sub = self.sub(member)?;
                if alone {
                    sub.sole += u64::from(sub.live);
                } else {
                    sub.shared += 1;
                }
                if sub.lossy || qos == Qos::Realtime {
                    sub.fleeting += 1;
                    let item = RingItem {
                        event: index,
                        placed: beat,
                        taken: None,
                        mortal,
                    };
                    sub.ring.items.push(item);
                }
            }
        }
        Ok(())
    }

    /// Holds a delivery to a subscription against what is known; the event's number, if it is one of the run's.
    pub(crate) fn deliver(
        &mut self,
        index: usize,
        delivery: &Delivery,
        now: Nanos,
    ) -> Check<Option<usize>> {
        let env = &delivery.envelope;
        let sub = self.sub(index)?;
        let (space, group) = (sub.space, sub.group.clone());
        ensure(sub.hears(&env.topic), "TOPIC-MATCH", || {
            format!("{} was given an event of {:?}", sub.name, env.topic)
        })?;
        ensure(
            *env.origin.namespace == *space_name(space),
            "EVENT-NAMESPACE",
            || format!("{} was given an event of {:?}", sub.name, env.origin),
        )?;
        self.open_turn(index, delivery)?;
        let Some(event) = read_tag(b'E', &env.payload) else {
            let own = env.topic.starts_with("loom.") || env.topic.starts_with("thread.");
            let first = self.others.insert((env.id, space, group));
            ensure(own && first, "EVENT-ONCE", || {
                format!("{env:?} came twice or from nowhere")
            })?;
            return Ok(None);
        };
        self.take(event, (index, &group), delivery, now)?;
        Ok(Some(event))
    }

    fn open_turn(&mut self, index: usize, delivery: &Delivery) -> Check {
        let Some(lease) = delivery.lease else {
            return broken("LEASE-FENCED", "a turn was given without a lease");
        };
        let stream = self.sub(index)?.stream;
        let lane = if stream {
            Ident::Uuid(0)
        } else {
            delivery.envelope.lane().clone()
        };
        let sub = self.sub(index)?;
        let busy = sub.open.values().any(|open| *open == lane);
        ensure(!busy, "LANE-ORDER", || {
            format!("lane {lane} of {} has a turn already", sub.name)
        })?;
        sub.open.insert(lease, lane);
        ensure(sub.open.len() <= sub.concurrency, "LANE-PARALLEL", || {
            format!(
                "{} has {} turns of {}",
                sub.name,
                sub.open.len(),
                sub.concurrency
            )
        })
    }

    fn take(&mut self, index: usize, by: (usize, &str), delivery: &Delivery, now: Nanos) -> Check {
        let (member, group) = by;
        let env = &delivery.envelope;
        let stream = self.sub(member)?.stream;
        match self.event(index)?.state {
            State::Refused => {
                return broken("QOS-BACKGROUND", format!("refused event {index} came"));
            }
            State::Logging => {
                return broken(
                    "TICKETS-ORDERED",
                    format!("event {index} came before it was logged"),
                );
            }
            State::Parked | State::Unsure => self.apply(index, false)?,
            State::Applied => {}
        }
        self.unload(index, Some(group));
        let event = self.event(index)?;
        ensure(!event.is_over(now), "EVENT-TTL", || {
            format!("event {index} was over at {now:?}")
        })?;
        check_stamps(event, env)?;
        ensure(
            delivery.asked == (event.call.is_some() && !stream),
            "REQUEST-ASKED",
            || format!("event {index}: asked is {}", delivery.asked),
        )?;
        let Some(target) = event
            .targets
            .iter_mut()
            .find(|target| target.group == group)
        else {
            return broken("TOPIC-MATCH", format!("event {index} was not for {group}"));
        };
        ensure(target.members.contains(&member), "LANE-GROUP", || {
            format!("event {index} went to a member of {group} that did not hear it")
        })?;
        ensure(!target.taken, "EVENT-ONCE", || {
            format!("event {index} came to {group} twice")
        })?;
        target.taken = true;
        let others = target.members.iter().filter(|other| **other != member);
        for other in others.copied().collect::<Vec<usize>>() {
            let other = self.sub(other)?;
            let busy = other.live && other.open.values().any(|open| open == env.lane());
            ensure(!busy, "LANE-GROUP", || {
                format!(
                    "lane {} of {group} moved while {} has it",
                    env.lane(),
                    other.name
                )
            })?;
        }
        self.check_order(index, member, env.lane())?;
        self.beat += 1;
        let beat = self.beat;
        let ring = &mut self.sub(member)?.ring;
        if let Some(item) = ring.items.iter_mut().find(|item| item.event == index) {
            item.taken = Some(beat);
        }
        Ok(())
    }

    /// In a lane: what one sender publishes to a topic in the order it was offered, and of what went into the queue at
    /// once all in that order.
    fn check_order(&mut self, index: usize, member: usize, lane: &Ident) -> Check {
        let sub = self.sub(member)?;
        let (space, group, name) = (sub.space, sub.group.clone(), sub.name.clone());
        let queue = if sub.stream {
            Ident::Uuid(0)
        } else {
            lane.clone()
        };
        let event = self.event(index)?;
        if event.waited {
            return Ok(());
        }
        let realtime = event.qos == Qos::Realtime;
        let (durable, placed) = (event.durable, event.placed);
        let source = (
            space,
            group,
            event.sender.clone(),
            event.topic,
            lane.clone(),
            realtime,
            durable,
        );
        let last = self.lines.insert(source, index);
        ensure(last.is_none_or(|last| last < index), "EVENT-ORDER", || {
            format!("{name} got event {index} after {last:?} of the same sender, topic and lane")
        })?;
        let Some(placed) = placed else { return Ok(()) };
        let last = self.places.insert((member, queue), placed);
        ensure(last.is_none_or(|last| last < placed), "LANE-ORDER", || {
            format!("{name} got event {index} after one that came later in lane {lane}")
        })
    }

    /// A turn is over, well or not.
    pub(crate) fn end_turn(&mut self, index: usize, lease: LeaseId) -> Check {
        let sub = self.sub(index)?;
        sub.open.remove(&lease);
        sub.ended += 1;
        Ok(())
    }

    /// Holds a row of the engine's audit against this book. All inboxes have been read.
    pub(crate) fn check_row(
        &self,
        index: usize,
        row: &AuditedSubscription,
        limits: &Limits,
    ) -> Check {
        let Some(sub) = self.subs.get(index) else {
            return Err(unknown());
        };
        let told = || format!("{row:?} against ended {}, open {:?}", sub.ended, sub.open);
        ensure(row.balanced, "CONSERVATION", told)?;
        ensure(row.delivered == sub.ended, "CONSERVATION", told)?;
        ensure(row.walked_leased == sub.open.len(), "CONSERVATION", told)?;
        ensure(row.queued <= limits.queue_items, "BOUNDED", told)?;
        let unsure = self.unsure_of(index);
        ensure(row.matched >= sub.sole, "CONSERVATION", || {
            format!("{row:?} counts less than the {} it must have got", sub.sole)
        })?;
        if sub.hears_engine() {
            return Ok(());
        }
        ensure(
            row.matched <= sub.sole + sub.shared + unsure,
            "CONSERVATION",
            || {
                format!(
                    "{row:?} counts more than {} + {} + {unsure}",
                    sub.sole, sub.shared
                )
            },
        )?;
        let full = sub.peak.0 > limits.queue_items || sub.peak.1 > limits.queue_bytes;
        ensure(
            sub.waited || row.dropped <= sub.fleeting,
            "QOS-BATCHED",
            || {
                format!(
                    "{row:?} lost more than the {} realtime events",
                    sub.fleeting
                )
            },
        )?;
        ensure(row.dropped == 0 || full, "QOS-BATCHED", || {
            format!(
                "{row:?} lost events, and never had more than {:?}",
                sub.peak
            )
        })
    }

    fn unsure_of(&self, index: usize) -> u64 {
        let open = self
            .events
            .iter()
            .filter(|event| event.state == State::Unsure);
        let aimed = open.flat_map(|event| &event.targets);
        aimed
            .filter(|target| target.members.contains(&index))
            .count() as u64
    }

    /// All queues are empty: of realtime events, those that were lost must not be newer than one that stayed.
    pub(crate) fn check_rings(&mut self) -> Check {
        for sub in &mut self.subs {
            let exact = sub.live && sub.shared == 0 && !sub.ring.blurred && !sub.hears_engine();
            let ring = std::mem::take(&mut sub.ring);
            if exact {
                ring.check(&sub.name)?;
            }
        }
        Ok(())
    }
}

impl Ring {
    fn check(&self, name: &str) -> Check {
        let last = self.items.last().map_or(0, |item| item.placed);
        let first_lost = self
            .items
            .iter()
            .position(|item| item.taken.is_none() && !item.mortal);
        let Some(first_lost) = first_lost else {
            return Ok(());
        };
        let survivor = self
            .items
            .iter()
            .take(first_lost)
            .find(|item| item.taken > Some(last));
        ensure(survivor.is_none(), "QOS-REALTIME", || {
            format!("{name} lost a newer realtime event and kept an older one")
        })
    }
}

fn check_stamps(event: &Event, env: &Envelope) -> Check {
    let told = || {
        format!(
            "{env:?} was published by {:?} to {:?}",
            event.sender, event.topic
        )
    };
    let same = *env.topic == *event.topic
        && *env.origin.sender == *event.sender
        && env.qos == event.qos
        && env.payload.len() == event.size
        && env.deadline == event.deadline
        && env.reply_to == event.call
        && event.lane.as_ref().is_none_or(|lane| lane == env.lane())
        && event
            .thread
            .as_ref()
            .is_none_or(|thread| *thread == env.thread);
    ensure(same, "SENDER-STAMPED", told)?;
    let stamped = match &event.stamp {
        Some(stamp) => {
            env.run == stamp.run && env.causation == Some(stamp.cause) && env.hop == stamp.hop
        }
        None => env.run == env.id && env.causation.is_none() && env.hop == 0,
    };
    ensure(stamped, "RUN-STAMPED", told)
}

/// A payload that says what it is: a letter and a number, filled up.
pub(crate) fn tag(kind: u8, number: usize, size: usize) -> Box<[u8]> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&(number as u64).to_be_bytes());
    bytes.resize(size.max(bytes.len()), 0);
    bytes.into()
}

pub(crate) fn read_tag(kind: u8, payload: &[u8]) -> Option<usize> {
    let (first, rest) = payload.split_first()?;
    if *first != kind {
        return None;
    }
    let number: [u8; 8] = rest.get(..8)?.try_into().ok()?;
    usize::try_from(u64::from_be_bytes(number)).ok()
}

/// The namespaces of a run.
pub(crate) fn space_name(space: usize) -> String {
    format!("n{space}")
}
