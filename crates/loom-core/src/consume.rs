//! Groups that consume a log: what each has taken over and where it stands, and what it reads when it is behind.
//!
//! A durable event goes to a member's queue when there is room. Where there is none the group is *behind*: from there on
//! it reads from the log. An event that must wait (its handler failed, its member left) is *parked* by its position, with
//! all later ones of its lane, and holds nobody else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use smallvec::smallvec;

use crate::arena::{GroupId, LeaseId, SubId};
use crate::core::{Core, Todo};
use crate::envelope::Envelope;
use crate::error::{Code, Error, Result};
use crate::ident::Ident;
use crate::keeping::Left;
use crate::lane::{As, Item};
use crate::part::Part;
use crate::partition::{Begun, ConsumerState, START_NOW};
use crate::read::{Purpose, Stall};
use crate::record::{Consumer, Level, Record};
use crate::space::SpaceId;
use crate::spec::limits as spec;
use crate::ticket::Then;
use crate::time::{Moment, Nanos};
use crate::timers::Timer;
use crate::topic::Filter;
use crate::topics::Target;

/// Which consumer of which partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConsumerId {
    pub(crate) partition: u32,
    pub(crate) number: u32,
}

/// Where an event that was taken over is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// It was open when the log was opened; nobody has looked at it yet.
    Unread,
    /// It waits by its position.
    Parked,
    /// In a member's queue.
    Queued,
    /// A turn of it was begun, or is about to be.
    Leased(LeaseId),
    /// That it is given up is on its way into the log.
    Dying,
}

/// An event that was taken over and is not done.
#[derive(Debug)]
pub(crate) struct Open {
    /// How often it was begun.
    pub(crate) attempt: u32,
    pub(crate) place: Place,
    /// Not again before this, by the wall.
    pub(crate) until_ms: u64,
    /// How long that was when it began to wait: no clock that goes back makes it longer.
    pub(crate) pause_ms: u64,
    /// Of one that is parked.
    lane: Option<Ident>,
    /// The client that had begun it in an earlier life, and is given it if it is there; 0: none.
    pub(crate) client: u128,
}

/// How an event that was begun before goes on.
#[derive(Clone, Copy, Default)]
struct Again {
    attempt: u32,
    until_ms: u64,
    pause_ms: u64,
    client: u128,
}

impl Again {
    /// As the log has it; `grace`: until when those wait that a client may come back for, and how long that is.
    fn of(begun: &Begun, grace: (u64, u64)) -> Self {
        let waits = begun.client != 0 && begun.until_ms == 0;
        let (until_ms, pause_ms) = if waits {
            grace
        } else {
            (begun.until_ms, longest(begun.code))
        };
        Self {
            attempt: begun.attempt,
            until_ms,
            pause_ms,
            client: begun.client,
        }
    }

    const fn known(open: &Open) -> Self {
        Self {
            attempt: open.attempt,
            until_ms: open.until_ms,
            pause_ms: open.pause_ms,
            client: open.client,
        }
    }
}

/// Events of one lane that wait by their positions.
#[derive(Default)]
pub(crate) struct ParkedLane {
    /// With the event where there was room to keep it.
    events: BTreeMap<u64, Option<Arc<Envelope>>>,
    /// The timer of its first event.
    timer: Option<(Nanos, u64)>,
    /// It stands among those that may go on.
    loose: bool,
}

/// What is counted of a consumer. matched = spilled + fresh + begun + expired + dropped.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) matched: u64,
    /// Matched, and still in the log only.
    pub(crate) spilled: u64,
    /// Begun at least once.
    pub(crate) begun: u64,
    pub(crate) expired: u64,
    pub(crate) dropped: u64,
    pub(crate) redelivered: u64,
    pub(crate) acked: u64,
    pub(crate) dead: u64,
    pub(crate) lapsed: u64,
}

/// A group that consumes.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own and changes alone"
)]
pub(crate) struct Consuming {
    pub(crate) group: Arc<str>,
    filters: Vec<Filter>,
    /// Its record is in the log.
    pub(crate) born: bool,
    /// That record is with the log, or will be tried again.
    declaring: bool,
    start: u64,
    pub(crate) max_deliver: u32,
    /// A member hears.
    pub(crate) attended: bool,
    /// When the last member left in this life, by the wall.
    pub(crate) left_ms: u64,
    /// From where on its group needed the log when it was ended; it is told when it comes back.
    missed: Option<u64>,
    /// That what it needs before this is not kept any more was told.
    pub(crate) told_below: u64,
    /// It reads from the log, from `next` on.
    pub(crate) behind: bool,
    pub(crate) next: u64,
    /// What it reads before this was not counted as spilled.
    counted_from: u64,
    pub(crate) open: BTreeMap<u64, Open>,
    unread: BTreeSet<u64>,
    parked: BTreeMap<Ident, ParkedLane>,
    /// Parked lanes that may go on.
    loose: VecDeque<Ident>,
    /// Events and bytes that are kept with parked positions.
    kept: (usize, usize),
    /// The member that has a turn of this lane.
    pub(crate) holders: BTreeMap<Ident, SubId>,
    pub(crate) reading: Option<u64>,
    pub(crate) stall: Stall,
    feeding: bool,
    /// A filter of it is heard by no member now.
    uncovered: bool,
    /// Done since the last progress was written.
    pub(crate) acks: Vec<u64>,
    pub(crate) acks_due: Option<Nanos>,
    /// Acks of the progress that is with the log; none: there is none.
    pub(crate) flying: Option<Vec<u64>>,
    /// What turns have left whose acks are not known to be in the log, by position.
    pub(crate) states: BTreeMap<u64, Left>,
    /// The floor in the log.
    pub(crate) floor: u64,
    pub(crate) tally: Tally,
}

impl Consuming {
    fn new(group: Arc<str>, filters: Vec<Filter>, at: u64) -> Self {
        Self {
            group,
            filters,
            born: false,
            declaring: false,
            start: at,
            max_deliver: 0,
            attended: false,
            left_ms: 0,
            missed: None,
            told_below: 0,
            behind: true,
            next: at,
            counted_from: at,
            open: BTreeMap::new(),
            unread: BTreeSet::new(),
            parked: BTreeMap::new(),
            loose: VecDeque::new(),
            kept: (0, 0),
            holders: BTreeMap::new(),
            reading: None,
            stall: Stall::default(),
            feeding: false,
            uncovered: false,
            acks: Vec::new(),
            acks_due: None,
            flying: None,
            states: BTreeMap::new(),
            floor: at,
            tally: Tally::default(),
        }
    }

    /// One that goes on where its records say.
    pub(crate) fn again(state: &ConsumerState, filters: Vec<Filter>, grace: (u64, u64)) -> Self {
        let mut new = Self::new(state.group.as_str().into(), filters, state.floor);
        new.born = true;
        new.start = state.start;
        for (n, begun) in state.open.range(..state.floor) {
            new.unread.insert(*n);
            let again = Again::of(begun, grace);
            let open = Open {
                attempt: again.attempt,
                place: Place::Unread,
                until_ms: again.until_ms,
                pause_ms: again.pause_ms,
                lane: None,
                client: again.client,
            };
            new.tally.matched += 1;
            new.tally.begun += u64::from(begun.attempt > 0);
            new.open.insert(*n, open);
        }
        new
    }

    /// Whether an event of the log is one of its own.
    pub(crate) fn wants(&self, number: u32, n: u64, env: &Envelope) -> bool {
        match env.extra.as_ref().and_then(|extra| extra.only) {
            Some(only) => only == number,
            None => n >= self.start && self.filters.iter().any(|f| f.matches(&env.topic)),
        }
    }

    /// Everything before this has been taken over.
    pub(crate) fn taken(&self, end: u64) -> u64 {
        if self.behind { self.next } else { end }
    }

    /// The lowest position that is not done.
    pub(crate) fn needs(&self, end: u64) -> u64 {
        let open = self.open.first_key_value().map(|(n, _)| *n);
        open.map_or(u64::MAX, |open| open).min(self.taken(end))
    }

    /// The lowest position that a turn is open on.
    pub(crate) fn in_turn(&self) -> Option<u64> {
        let begun = |open: &Open| matches!(open.place, Place::Leased(_) | Place::Dying);
        let mut open = self.open.iter();
        open.find(|(_, open)| begun(open)).map(|(n, _)| *n)
    }

    /// It begins anew: what it had is nobody's. Its members stay.
    pub(crate) fn begin_anew(&mut self, end: u64) {
        let filters = std::mem::take(&mut self.filters);
        let new = Self::new(Arc::clone(&self.group), filters, end);
        let old = std::mem::replace(self, new);
        self.attended = old.attended;
        self.uncovered = old.uncovered;
        self.max_deliver = old.max_deliver;
        self.declaring = old.declaring;
        self.feeding = old.feeding;
    }

    /// Whether its record is with the log, or will be tried again.
    pub(crate) const fn is_declared(&self) -> bool {
        self.declaring
    }

    /// Events that wait by their positions.
    pub(crate) fn parked(&self) -> usize {
        self.parked.values().map(|lane| lane.events.len()).sum()
    }

    /// Open, and never begun.
    pub(crate) fn fresh(&self) -> usize {
        self.open.values().filter(|open| open.attempt == 0).count()
    }

    /// The first event of a parked lane.
    pub(crate) fn first_parked(&self, lane: &Ident) -> Option<u64> {
        let (n, _) = self.parked.get(lane)?.events.first_key_value()?;
        Some(*n)
    }

    /// Whether a parked lane may go on.
    pub(crate) fn has_loose(&self) -> bool {
        !self.loose.is_empty()
    }

    pub(crate) fn is_unread(&self, n: u64) -> bool {
        self.unread.contains(&n)
    }

    pub(crate) fn unread_before(&self, n: u64) -> Vec<u64> {
        self.unread.range(..n).copied().collect()
    }

    /// Counts an event that is read; says whether it had been counted as spilled.
    pub(crate) fn count_read(&mut self, n: u64) -> bool {
        let spilled = n >= self.counted_from;
        if spilled {
            self.tally.spilled -= 1;
        } else {
            self.tally.matched += 1;
        }
        spilled
    }

    /// What is in the log only, and before this, is counted when it is read.
    pub(crate) fn recount_from(&mut self, end: u64) {
        self.tally.matched -= std::mem::take(&mut self.tally.spilled);
        self.counted_from = end;
    }

    pub(crate) fn uncount_read(&mut self, spilled: bool) {
        if spilled {
            self.tally.spilled += 1;
        } else {
            self.tally.matched -= 1;
        }
    }

    fn keep(&mut self, lane: &Ident, n: u64, env: Arc<Envelope>, most: (usize, usize)) {
        let fits = self.kept.0 < most.0 && self.kept.1 + env.size() <= most.1;
        let kept = fits.then(|| {
            self.kept = (self.kept.0 + 1, self.kept.1 + env.size());
            env
        });
        if let Some(open) = self.open.get_mut(&n) {
            open.lane = Some(lane.clone());
        }
        let lane = self.parked.entry(lane.clone()).or_default();
        lane.events.insert(n, kept);
    }

    fn unkeep(&mut self, lane: &Ident, n: u64) -> Option<Arc<Envelope>> {
        let kept = self.parked.get_mut(lane)?.events.remove(&n)??;
        self.kept = (self.kept.0 - 1, self.kept.1 - kept.size());
        Some(kept)
    }
}

/// The longest that an event may wait that failed with this code in another life, in milliseconds; without a code it
/// was given back for as long as its handler said.
fn longest(code: u32) -> u64 {
    if code == 0 {
        spec::TTL_MS_MAX
    } else {
        spec::REDELIVER_CAP_SECONDS * 1_000
    }
}

/// What became of an event that looked for a queue.
enum Routed {
    Queued,
    /// There is no room.
    Full,
    /// No member can have it now.
    Nobody,
}

impl Core {
    pub(crate) fn consuming(&self, id: ConsumerId) -> Option<&Consuming> {
        self.parts.get(&id.partition)?.consumers.get(&id.number)
    }

    pub(crate) fn consuming_mut(&mut self, id: ConsumerId) -> Option<&mut Consuming> {
        self.parts
            .get_mut(&id.partition)?
            .consumers
            .get_mut(&id.number)
    }

    /// The namespace of a partition, if anybody was attached to it.
    pub(crate) fn space_of(&self, partition: u32) -> Option<SpaceId> {
        let part = self.parts.get(&partition)?;
        self.space_index.get(&part.namespace).copied()
    }

    fn group_of(&self, id: ConsumerId) -> Option<GroupId> {
        let group = &self.consuming(id)?.group;
        let space = self.space(self.space_of(id.partition)?)?;
        space.groups.get(group).copied()
    }

    /// Where a consumer that is new begins.
    pub(crate) fn read_start(&self, space: SpaceId, start: crate::input::Start) -> Result<u64> {
        use crate::input::Start;
        let part = self.space(space).and_then(|space| space.partition);
        let Some(part) = part.and_then(|part| self.parts.get(&part)) else {
            return match start {
                Start::Now => Ok(START_NOW),
                _ => Err(
                    Error::new(Code::NotSupported, "there is no log to start in")
                        .field("start")
                        .hint("start with a data directory: --data DIR"),
                ),
            };
        };
        match start {
            Start::Now => Ok(START_NOW),
            Start::Beginning => Ok(part.opened.oldest),
            Start::At(position) => {
                let (number, oldest) = (part.opened.partition, part.opened.oldest);
                part.folded.check_cursor(number, oldest, position)
            }
        }
    }

    /// One more group consumes a log only where its place in it can be kept.
    pub(crate) fn check_consumers(&self, space: SpaceId, group: &str) -> Result<()> {
        let most = self.limits.consumers;
        let partition = self.space(space).and_then(|space| space.partition);
        let Some(part) = partition.and_then(|partition| self.parts.get(&partition)) else {
            return Ok(());
        };
        if part.consumers.len() < most || part.consumers.values().any(|it| *it.group == *group) {
            return Ok(());
        }
        let message = format!("{most} groups consume this log already");
        Err(Error::exhausted("consumers", message)
            .field("group")
            .hint("let agents share a group, or let them listen with qos=\"realtime\""))
    }

    /// Makes an agent a member of its group's consumer.
    pub(crate) fn enlist(&mut self, id: SubId, start: u64, max_deliver: u32, at: Moment) {
        let Some(sub) = self.subs.get(id).filter(|sub| !sub.lossy) else {
            return;
        };
        let Some(group) = sub.group.and_then(|group| self.groups.get(group)) else {
            return;
        };
        let partition = self.space(sub.space).and_then(|space| space.partition);
        let Some(part) = partition.and_then(|partition| self.parts.get(&partition)) else {
            return;
        };
        let partition = part.opened.partition;
        let alone = *group.name == *sub.name;
        let (name, filters) = (Arc::clone(&group.name), self.heard_by(sub));
        let known = part.consumers.iter();
        let known = known.filter(|(_, it)| it.group == name).map(|(n, _)| *n);
        let number = known.max().unwrap_or(part.next_consumer);
        let consumer = ConsumerId { partition, number };
        if let Some(sub) = self.subs.get_mut(id) {
            sub.consumer = Some(consumer);
        }
        let most = u32::try_from(self.limits.max_deliver).unwrap_or(u32::MAX);
        let changed = self.enter_consumer(consumer, &name, filters, alone);
        if let Some(found) = self.consuming_mut(consumer) {
            found.max_deliver = if max_deliver == 0 { most } else { max_deliver };
        }
        if changed {
            self.declare(consumer, start, at);
        }
        let session = self
            .subs
            .get(id)
            .and_then(|sub| self.sessions.get(sub.session));
        let client = session.map_or(0, |session| session.client);
        self.come_back(consumer, client);
        self.rejoin(consumer, at);
    }

    /// Notes what a consumer hears; says whether that has to be written.
    fn enter_consumer(
        &mut self,
        id: ConsumerId,
        name: &Arc<str>,
        filters: Vec<Filter>,
        alone: bool,
    ) -> bool {
        let Some(part) = self.parts.get_mut(&id.partition) else {
            return false;
        };
        let end = part.folded.end();
        let missed = part.folded.ended(name);
        let Some(found) = part.consumers.get_mut(&id.number) else {
            part.next_consumer = part.next_consumer.max(id.number + 1);
            let mut new = Consuming::new(Arc::clone(name), filters, end);
            new.missed = missed;
            part.consumers.insert(id.number, new);
            return true;
        };
        // Members of a group may hear different things and come one after the other; who is alone says what it hears.
        let mut heard = if alone {
            Vec::new()
        } else {
            found.filters.clone()
        };
        heard.extend(
            filters
                .into_iter()
                .filter(|f| !found.filters.contains(f) || alone),
        );
        let same = heard.len() == found.filters.len()
            && heard.iter().all(|filter| found.filters.contains(filter));
        found.filters = heard;
        !same || !(found.born || found.declaring)
    }

    /// Writes that a group consumes, or what it hears now.
    pub(crate) fn declare(&mut self, id: ConsumerId, start: u64, at: Moment) {
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        found.declaring = true;
        let record = Record::Consumer(Consumer {
            consumer: id.number,
            group: found.group.to_string(),
            filters: found
                .filters
                .iter()
                .map(|f| f.as_str().to_owned())
                .collect(),
            start,
            at_ms: at.wall_ms,
        });
        self.append(
            id.partition,
            Level::Os,
            smallvec![record],
            Then::Born(id, start),
        );
    }

    /// The log knows of a consumer: what stands behind its start is for it.
    pub(crate) fn is_born(&mut self, id: ConsumerId, at: Moment) {
        let Some(part) = self.parts.get_mut(&id.partition) else {
            return;
        };
        let end = part.folded.end();
        let Some(state) = part.folded.consumer(id.number) else {
            return;
        };
        let Some(found) = part.consumers.get_mut(&id.number).filter(|it| !it.born) else {
            return;
        };
        (found.born, found.declaring) = (true, false);
        (found.start, found.floor, found.next) = (state.start, state.floor, state.start);
        (found.behind, found.counted_from) = (state.start < end, end);
        if let Some(needed) = found.missed.take() {
            self.tell_missed(id, needed);
        }
        self.ask_feed(id);
        self.rejoin(id, at);
    }

    /// Looks anew at who hears for a consumer.
    pub(crate) fn rejoin(&mut self, id: ConsumerId, at: Moment) {
        let group = self.group_of(id);
        let group = group.and_then(|group| self.groups.get_mut(group));
        let members = group.map(|group| {
            group.consumer = Some(id);
            group.members.clone()
        });
        let members = members.unwrap_or_default();
        let hearing = members.iter().filter_map(|member| self.subs.get(*member));
        let hearing = hearing.filter(|sub| !sub.is_deaf() && !sub.lossy);
        let heard: Vec<Filter> = hearing.flat_map(|sub| self.heard_by(sub)).collect();
        let attended = !heard.is_empty();
        let Some(part) = self.parts.get_mut(&id.partition) else {
            return;
        };
        let end = part.folded.end();
        let Some(found) = part.consumers.get_mut(&id.number) else {
            return;
        };
        let was = std::mem::replace(&mut found.attended, attended);
        found.uncovered = attended && !found.filters.iter().all(|filter| heard.contains(filter));
        if !found.behind && !attended {
            (found.behind, found.next) = (true, end);
        }
        found.recount_from(end);
        if attended && !was {
            found.told_below = 0;
        } else if was && !attended {
            found.left_ms = at.wall_ms;
        }
        let uncovered = part.consumers.iter().filter(|(_, it)| it.uncovered);
        part.uncovered = uncovered.map(|(number, _)| *number).collect();
        if attended {
            self.wake_parked(id, at);
        } else if was {
            self.forget_waits(id);
            self.write_progress(id, true);
        }
        self.ask_feed(id);
    }

    /// Looks at all lanes that are parked: each waits for its time, or may go on.
    fn wake_parked(&mut self, id: ConsumerId, at: Moment) {
        let lanes = self.consuming(id).map(|found| found.parked.keys().cloned());
        let lanes: Vec<Ident> = lanes.map(Iterator::collect).unwrap_or_default();
        for lane in lanes {
            self.wake_one(id, &lane, at);
        }
    }

    fn wake_one(&mut self, id: ConsumerId, lane: &Ident, at: Moment) {
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        let Some(parked) = found.parked.get_mut(lane) else {
            return;
        };
        let Some((first, _)) = parked.events.first_key_value() else {
            return;
        };
        let first = *first;
        let open = found.open.get(&first);
        let (until_ms, pause_ms) = open.map_or((0, 0), |open| (open.until_ms, open.pause_ms));
        let before = parked.timer.take();
        let mut after = None;
        if until_ms > at.wall_ms {
            parked.loose = false;
            let mut due = at.now.plus_millis((until_ms - at.wall_ms).min(pause_ms));
            if let Some((known, _)) = before.filter(|(_, n)| *n == first) {
                due = due.min(known);
            }
            after = Some((due, first));
            parked.timer = after;
        } else if !parked.loose {
            parked.loose = true;
            found.loose.push_back(lane.clone());
        }
        if let Some((until, n)) = before {
            self.timers.remove(until, Timer::Again(id, n));
        }
        if let Some((until, n)) = after {
            self.timers.add(until, Timer::Again(id, n));
        }
    }

    /// Nobody is there for whom the clock would matter.
    pub(crate) fn forget_waits(&mut self, id: ConsumerId) {
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        let timers = found.parked.values_mut();
        let timers: Vec<(Nanos, u64)> = timers.filter_map(|lane| lane.timer.take()).collect();
        for (until, n) in timers {
            self.timers.remove(until, Timer::Again(id, n));
        }
    }

    /// An event that is in the log arrives at a consumer that hears it.
    pub(crate) fn arrive(&mut self, id: ConsumerId, n: u64, env: &Arc<Envelope>, at: Moment) {
        let most = self.limits.consumer_open;
        let Some(found) = self.consuming_mut(id).filter(|it| it.born) else {
            return;
        };
        if !found.wants(id.number, n, env) || (found.behind && !found.attended) {
            return;
        }
        found.tally.matched += 1;
        let full = found.open.len() >= most;
        if !found.behind && !full && self.take_over(id, n, env, at) {
            return;
        }
        if let Some(found) = self.consuming_mut(id) {
            found.tally.spilled += 1;
            if !found.behind {
                (found.behind, found.next) = (true, n);
                found.counted_from = n;
                self.make_hungry(id);
            }
        }
    }

    /// Takes an event over: into a queue, or behind those of its lane that wait. `false`: there is no room.
    pub(crate) fn take_over(
        &mut self,
        id: ConsumerId,
        n: u64,
        env: &Arc<Envelope>,
        at: Moment,
    ) -> bool {
        let begun = self.begun_before(id, n);
        let most = (self.limits.queue_items, self.limits.queue_bytes);
        let Some(found) = self.consuming_mut(id) else {
            return true;
        };
        let known = found.open.get(&n).map(Again::known);
        let Again {
            attempt,
            until_ms,
            pause_ms,
            client,
        } = known.unwrap_or(begun);
        let waits = until_ms > at.wall_ms;
        let parked = found.parked.contains_key(env.lane());
        let routed = if parked || waits {
            Routed::Nobody
        } else {
            self.route(id, (n, attempt, client), env, at)
        };
        if matches!(routed, Routed::Full) {
            return false;
        }
        let Some(found) = self.consuming_mut(id) else {
            return true;
        };
        if known.is_none() {
            found.tally.begun += u64::from(attempt > 0);
        }
        found.unread.remove(&n);
        let place = match routed {
            Routed::Queued => Place::Queued,
            _ => Place::Parked,
        };
        let open = Open {
            attempt,
            place,
            until_ms,
            pause_ms,
            lane: None,
            client,
        };
        found.open.insert(n, open);
        if place == Place::Parked {
            found.keep(env.lane(), n, Arc::clone(env), most);
            if !parked {
                self.wake_one(id, env.lane(), at);
            }
        }
        true
    }

    /// What the log knows of an event that was begun, and not done, in an earlier life.
    fn begun_before(&self, id: ConsumerId, n: u64) -> Again {
        let Some(part) = self.parts.get(&id.partition) else {
            return Again::default();
        };
        let state = part.folded.consumer(id.number);
        let Some(begun) = state.and_then(|state| state.open.get(&n)) else {
            return Again::default();
        };
        let mut again = Again::of(begun, (part.grace_ms, self.limits.resume_grace_ms));
        if again.client != 0 && self.is_back(id, again.client) {
            again.until_ms = 0;
        }
        again
    }

    /// Whether a client has a member of this consumer's group again.
    fn is_back(&self, id: ConsumerId, client: u128) -> bool {
        let members = self.group_of(id).and_then(|group| self.groups.get(group));
        members.is_some_and(|group| self.member_of(client, &group.members).is_some())
    }

    /// The one of these members that is this client's.
    fn member_of(&self, client: u128, members: &[SubId]) -> Option<SubId> {
        let is_its = |member: &&SubId| {
            let sub = self.subs.get(**member).filter(|sub| !sub.is_deaf());
            let session = sub.and_then(|sub| self.sessions.get(sub.session));
            client != 0 && session.is_some_and(|session| session.client == client)
        };
        members.iter().find(is_its).copied()
    }

    /// A client has a member of the group again: the turns that it had begun in an earlier life wait for it no longer.
    fn come_back(&mut self, id: ConsumerId, client: u128) {
        if client == 0 {
            return;
        }
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        let mine = found.open.values_mut().filter(|open| open.client == client);
        for open in mine.filter(|open| matches!(open.place, Place::Unread | Place::Parked)) {
            open.until_ms = 0;
        }
    }

    /// Finds the member that has the lane, or had begun the event, or the next one, and puts the event into its queue.
    fn route(
        &mut self,
        id: ConsumerId,
        (n, attempt, client): (u64, u32, u128),
        env: &Arc<Envelope>,
        at: Moment,
    ) -> Routed {
        let Some(space) = self.space_of(id.partition) else {
            return Routed::Nobody;
        };
        let Ok((topic, _)) = self.topic(space, &env.topic) else {
            return Routed::Nobody;
        };
        let members = self.durable_members(id, topic);
        let Some(group) = self.group_of(id).filter(|_| !members.is_empty()) else {
            return Routed::Nobody;
        };
        // What its lane has elsewhere goes before who had begun it.
        let elsewhere = |back: &SubId| {
            let mut others = members.iter().filter(|member| *member != back);
            others.any(|member| self.holds_lane(*member, env.lane()))
        };
        let back = self.member_of(client, &members);
        let member = match back.filter(|back| !elsewhere(back)) {
            Some(back) => Some(back),
            None => self.pick_member(group, &members, env.lane()),
        };
        let Some(member) = member else {
            return Routed::Nobody;
        };
        let holder = self.consuming(id).and_then(|it| it.holders.get(env.lane()));
        if holder.is_some_and(|holder| *holder != member) {
            return Routed::Nobody;
        }
        let Some(sub) = self.subs.get_mut(member) else {
            return Routed::Nobody;
        };
        if !sub.has_room(env, &self.limits) {
            return Routed::Full;
        }
        let again = attempt > 0;
        let mut env = Arc::clone(env);
        if env.books != topic {
            let mut own = Arc::unwrap_or_clone(env);
            own.books = topic;
            env = Arc::new(own);
        }
        if !again {
            sub.books.class(env.qos).matched += 1;
            self.topics.books(topic).rematch();
        }
        if let Some(open) = self
            .consuming_mut(id)
            .and_then(|found| found.open.get_mut(&n))
        {
            open.place = Place::Queued;
        }
        self.push(member, &env, As::Durable { again }, at);
        Routed::Queued
    }

    /// The members of a consumer's group that hear a topic.
    fn durable_members(&self, id: ConsumerId, topic: crate::arena::TopicId) -> Vec<SubId> {
        let Some(topic) = self.topics.get(topic) else {
            return Vec::new();
        };
        let is_member = |sub: &&SubId| {
            self.subs
                .get(**sub)
                .is_some_and(|sub| sub.consumer == Some(id))
        };
        for target in &topic.targets {
            if let Target::Group(group, members) = target
                && self
                    .groups
                    .get(*group)
                    .is_some_and(|g| g.consumer == Some(id))
            {
                return members.iter().filter(is_member).copied().collect();
            }
        }
        // A redriven event is for its consumer, whatever its members hear.
        Vec::new()
    }

    /// Asks for a look at what a consumer can be given.
    pub(crate) fn ask_feed(&mut self, id: ConsumerId) {
        if let Some(found) = self.consuming_mut(id)
            && !found.feeding
        {
            found.feeding = true;
            self.todo.push_back(Todo::Feed(id));
        }
    }

    /// Gives a consumer what waits for it, as far as there is room: first what was open at the start, then lanes that may
    /// go on, then the log.
    pub(crate) fn feed(&mut self, id: ConsumerId, at: Moment) {
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        found.feeding = false;
        let waits = found.reading.is_some() || found.stall.until.is_some();
        if !found.born || !found.attended || waits {
            return;
        }
        if let Some(first) = found.unread.first().copied() {
            return self.read_if_room(id, first, Purpose::Unread);
        }
        if !self.feed_loose(id, at) {
            return;
        }
        let most = self.limits.consumer_open;
        if let Some(found) = self.consuming(id)
            && found.behind
            && found.open.len() < most
        {
            let next = found.next;
            self.read_if_room(id, next, Purpose::Next);
        }
    }

    fn read_if_room(&mut self, id: ConsumerId, from: u64, purpose: Purpose) {
        if !self.has_half(id) {
            return self.make_hungry(id);
        }
        let most = self.limits.read_events;
        let token = self.ask_read(id.partition, from, most, (id, purpose));
        if let Some(found) = self.consuming_mut(id) {
            found.reading = Some(token);
        }
    }

    /// Whether a member has half of its queue free.
    fn has_half(&self, id: ConsumerId) -> bool {
        let members = self.group_of(id).and_then(|group| self.groups.get(group));
        members.is_some_and(|group| {
            let mut members = group.members.iter().filter_map(|sub| self.subs.get(*sub));
            members.any(|sub| !sub.is_deaf() && sub.is_half_empty(&self.limits))
        })
    }

    /// From now on members say when they have room.
    pub(crate) fn make_hungry(&mut self, id: ConsumerId) {
        let members = self.group_of(id).and_then(|group| self.groups.get(group));
        for member in members
            .map(|group| group.members.clone())
            .unwrap_or_default()
        {
            if let Some(sub) = self.subs.get_mut(member) {
                sub.hungry = true;
            }
        }
    }

    /// Lets parked lanes go on. `false`: something has to be read first, or there is no room.
    fn feed_loose(&mut self, id: ConsumerId, at: Moment) -> bool {
        let count = self.consuming(id).map_or(0, |found| found.loose.len());
        for _ in 0..count {
            let Some(found) = self.consuming_mut(id) else {
                return true;
            };
            let Some(lane) = found.loose.pop_front() else {
                return true;
            };
            if !found.parked.get(&lane).is_some_and(|parked| parked.loose) {
                continue;
            }
            match self.feed_lane(id, &lane, at) {
                Routed::Queued => {}
                Routed::Nobody => {
                    if let Some(found) = self.consuming_mut(id) {
                        found.loose.push_back(lane);
                    }
                }
                Routed::Full => {
                    if let Some(found) = self.consuming_mut(id) {
                        found.loose.push_front(lane);
                    }
                    return false;
                }
            }
        }
        true
    }

    /// Gives one parked lane what there is room for. `Queued`: nothing of it is parked any more.
    fn feed_lane(&mut self, id: ConsumerId, lane: &Ident, at: Moment) -> Routed {
        loop {
            let Some(found) = self.consuming_mut(id) else {
                return Routed::Queued;
            };
            let Some(parked) = found.parked.get(lane) else {
                return Routed::Queued;
            };
            let Some((n, kept)) = parked.events.first_key_value() else {
                found.parked.remove(lane);
                return Routed::Queued;
            };
            let (n, kept) = (*n, kept.clone());
            let open = found.open.get(&n);
            let (attempt, client) = open.map_or((0, 0), |open| (open.attempt, open.client));
            let Some(env) = kept else {
                self.read_if_room(id, n, Purpose::Lane(lane.clone(), n));
                return Routed::Full;
            };
            let routed = self.route(id, (n, attempt, client), &env, at);
            if !matches!(routed, Routed::Queued) {
                if matches!(routed, Routed::Full) {
                    self.make_hungry(id);
                }
                return routed;
            }
            if let Some(found) = self.consuming_mut(id) {
                found.unkeep(lane, n);
                if found
                    .parked
                    .get(lane)
                    .is_some_and(|lane| lane.events.is_empty())
                {
                    found.parked.remove(lane);
                }
            }
        }
    }

    /// Keeps the event of a parked position that was read.
    pub(crate) fn keep_read(&mut self, id: ConsumerId, lane: &Ident, n: u64, env: Arc<Envelope>) {
        if let Some(found) = self.consuming_mut(id)
            && let Some(parked) = found.parked.get_mut(lane)
            && let Some(kept @ None) = parked.events.get_mut(&n)
        {
            found.kept = (found.kept.0 + 1, found.kept.1 + env.size());
            *kept = Some(env);
        }
    }

    /// Events that were open when the log was opened and are not kept any more: it is told of the first.
    pub(crate) fn lose_unread(&mut self, id: ConsumerId, before: u64, at: Moment) {
        let lost = self.consuming(id).map(|found| found.unread_before(before));
        let lost = lost.unwrap_or_default();
        if let Some(first) = lost.first() {
            self.tell_expired(id, *first);
        }
        for n in lost {
            self.lost_read(id, None, n, at);
        }
    }

    /// An event of a parked lane that should be in the log is not.
    pub(crate) fn lose_parked(&mut self, id: ConsumerId, lane: &Ident, n: u64, at: Moment) {
        self.tell_expired(id, n);
        self.lost_read(id, Some(lane), n, at);
    }

    /// What is not kept cannot be delivered.
    fn lost_read(&mut self, id: ConsumerId, lane: Option<&Ident>, n: u64, at: Moment) {
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        found.unread.remove(&n);
        if found.open.get(&n).is_some_and(|open| open.attempt == 0) {
            found.tally.dropped += 1;
        }
        if let Some(lane) = lane {
            self.unpark_lost(id, lane, n, at);
        }
        self.consumed(id, n, at);
    }

    /// A lost event leaves its lane: those behind it do not wait for its time.
    fn unpark_lost(&mut self, id: ConsumerId, lane: &Ident, n: u64, at: Moment) {
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        found.unkeep(lane, n);
        let Some(parked) = found.parked.get_mut(lane) else {
            return;
        };
        if let Some((until, first)) = parked.timer.take() {
            self.timers.remove(until, Timer::Again(id, first));
        }
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        if found
            .parked
            .get(lane)
            .is_some_and(|lane| lane.events.is_empty())
        {
            found.parked.remove(lane);
        } else if found.attended {
            self.wake_one(id, lane, at);
        }
    }

    /// Puts a turn's event back behind its position, with all later ones of its lane that this member has.
    pub(crate) fn park_back(
        &mut self,
        id: ConsumerId,
        (sub, lane): (SubId, u32),
        (n, env): (u64, &Arc<Envelope>),
        at: Moment,
    ) {
        let later = self
            .subs
            .get_mut(sub)
            .map(|sub| sub.lanes.take_durable(lane))
            .unwrap_or_default();
        self.park_alone(id, n, env);
        for item in later {
            self.leaves_queue(sub, lane, &item);
            self.unqueue(sub, &item);
        }
        self.wake_lane(id, env.lane(), at);
    }

    /// An event that was queued at a member waits by its position again.
    pub(crate) fn unqueue(&mut self, sub: SubId, item: &Item) {
        let Some(id) = self.subs.get(sub).and_then(|sub| sub.consumer) else {
            return;
        };
        if item.kind == (As::Durable { again: false }) {
            self.unmatch(sub, &item.env);
        }
        if let Some(position) = item.env.position {
            self.park_alone(id, position.n, &item.env);
        }
    }

    /// A match that a member gives back: nobody has it now.
    pub(crate) fn unmatch(&mut self, sub: SubId, env: &Envelope) {
        self.topics.books(env.books).matched -= 1;
        if let Some(sub) = self.subs.get_mut(sub) {
            sub.books.class(env.qos).matched -= 1;
        }
    }

    pub(crate) fn park_alone(&mut self, id: ConsumerId, n: u64, env: &Arc<Envelope>) {
        let most = (self.limits.queue_items, self.limits.queue_bytes);
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        let Some(open) = found.open.get_mut(&n) else {
            return;
        };
        open.place = Place::Parked;
        found.keep(env.lane(), n, Arc::clone(env), most);
    }

    /// A parked lane waits for the time of its first event, or may go on.
    pub(crate) fn wake_lane(&mut self, id: ConsumerId, lane: &Ident, at: Moment) {
        if self.consuming(id).is_some_and(|found| found.attended) {
            self.wake_one(id, lane, at);
        }
        self.ask_feed(id);
    }

    /// The time of a parked lane has come.
    pub(crate) fn again_is_due(&mut self, id: ConsumerId, n: u64, at: Moment) {
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        let lane = found.open.get_mut(&n).and_then(|open| {
            open.until_ms = 0;
            open.lane.clone()
        });
        // An event that is gone leaves its lane to those behind it.
        let of_lane = |(lane, parked): (&Ident, &ParkedLane)| Some((lane.clone(), parked.timer?.1));
        let lane = lane.or_else(|| {
            let mut lanes = found.parked.iter().filter_map(of_lane);
            lanes.find(|(_, first)| *first == n).map(|(lane, _)| lane)
        });
        let Some(lane) = lane else {
            return;
        };
        if let Some(parked) = found.parked.get_mut(&lane) {
            parked.timer = None;
        }
        self.wake_one(id, &lane, at);
        self.feed(id, at);
    }

    /// The log would not note a consumer: it is tried again.
    pub(crate) fn not_born(&mut self, id: ConsumerId, start: u64, at: Moment) {
        let pause = self.limits.redeliver_base_ms;
        if let Some(found) = self.consuming_mut(id) {
            found.declaring = found.attended;
            if found.attended {
                self.timers
                    .add(at.now.plus_millis(pause), Timer::Declare(id, start));
            }
        }
    }

    /// The log would not note that it is gone: it stays.
    pub(crate) fn not_gone(&mut self, id: ConsumerId) {
        if let Some(found) = self.consuming_mut(id) {
            found.born = true;
        }
        self.ask_feed(id);
    }

    /// Whether the books of a consumer fit to what walking finds.
    pub(crate) fn consumer_balances(&self, part: &Part, number: u32, found: &Consuming) -> bool {
        let id = ConsumerId {
            partition: part.opened.partition,
            number,
        };
        let count = |wanted: fn(&Place) -> bool| {
            found
                .open
                .values()
                .filter(|open| wanted(&open.place))
                .count()
        };
        let mine = |sub: &SubId| {
            self.subs
                .get(*sub)
                .is_some_and(|sub| sub.consumer == Some(id))
        };
        let subs = self.subs.iter().filter(|(sub, _)| mine(sub));
        let queued: usize = subs.map(|(_, sub)| sub.lanes.walk_durable()).sum();
        let held = self.leases.iter().filter(|(_, lease)| {
            lease
                .durable
                .as_ref()
                .is_some_and(|it| it.consumer == id && !it.is_done())
        });
        let tally = &found.tally;
        let sum =
            tally.spilled + found.fresh() as u64 + tally.begun + tally.expired + tally.dropped;
        tally.matched == sum
            && queued == count(|place| *place == Place::Queued)
            && held.count() == count(|place| matches!(place, Place::Leased(_)))
            && found.parked() == count(|place| *place == Place::Parked)
            && found.unread.len() == count(|place| *place == Place::Unread)
    }
}
