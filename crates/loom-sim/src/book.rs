//! The second book of events: who should get what, by brute force, and what each subscription really got.

use std::collections::{BTreeMap, BTreeSet};

use loom_core::{
    AuditedSubscription, Delivery, Ident, LeaseId, Limits, Nanos, Qos, SessionId, SubscriptionStats,
};

use crate::event::{Event, State, Target, check_stamps, read_tag, space_name};
use crate::sub::{RingItem, Sub};
use crate::sums::most_queued;
use crate::trace::{Check, Violation, broken, ensure};

/// Who sent what class of events where, as far as order is promised.
type Line = (usize, String, String, &'static str, Ident, bool);

#[derive(Default)]
pub(crate) struct Book {
    pub(crate) subs: Vec<Sub>,
    pub(crate) events: Vec<Event>,
    beat: u64,
    /// When events of each run were published, those that began one aside, and how many were offered.
    pub(crate) runs: BTreeMap<u128, Vec<(Nanos, bool)>>,
    /// Turns that ended, of all there ever were.
    pub(crate) ended: u64,
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
            if sub.listens() && sub.space == space && sub.hears(topic) {
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

    /// A session ended: all its subscriptions at once.
    pub(crate) fn leave(&mut self, session: SessionId) -> Check {
        let mut left = Vec::new();
        for (index, sub) in self.subs.iter_mut().enumerate() {
            if sub.session == session && sub.live {
                sub.live = false;
                left.push(index);
            }
        }
        left.into_iter().try_for_each(|index| self.hand_over(index))
    }

    /// A subscription left, or is quarantined: what waits for it may go to any member of its group that is there now and hears it.
    pub(crate) fn hand_over(&mut self, left: usize) -> Check {
        for index in 0..self.events.len() {
            let event = self.event(index)?;
            let (space, topic, size, state) = (event.space, event.topic, event.size, event.state);
            let (realtime, waits) = (event.qos == Qos::Realtime, state != State::Applied);
            let aimed = event.targets.iter().position(|target| {
                !target.stream && !target.taken && target.members.contains(&left)
            });
            let Some(aimed) = aimed.filter(|_| state != State::Refused) else {
                continue;
            };
            let Some(target) = event.targets.get(aimed) else {
                continue;
            };
            let (group, members) = (target.group.clone(), target.members.clone());
            event.handed = true;
            let heirs = self
                .subs
                .iter()
                .enumerate()
                .filter(|(_, sub)| sub.listens() && sub.space == space && sub.group == group);
            let heirs: Vec<usize> = heirs
                .filter(|(_, sub)| sub.hears(topic))
                .map(|(heir, _)| heir)
                .collect();
            if !waits && members.len() == 1 && !heirs.is_empty() {
                let sub = self.sub(left)?;
                sub.sole = sub.sole.saturating_sub(1);
                sub.shared += 1;
            }
            for heir in heirs {
                let sub = self.sub(heir)?;
                // What waits for room or for the log may find none at another member.
                sub.waited |= waits;
                if members.contains(&heir) {
                    continue;
                }
                sub.shared += u64::from(!waits);
                sub.fleeting += u64::from(!waits && (realtime || sub.lossy));
                sub.load = (sub.load.0 + 1, sub.load.1 + size);
                sub.peak = (sub.peak.0.max(sub.load.0), sub.peak.1.max(sub.load.1));
                if let Some(target) = self.event(index)?.targets.get_mut(aimed) {
                    target.members.push(heir);
                }
            }
        }
        Ok(())
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
        let (items, bytes) = if event.qos == Qos::Background {
            (limits.queue_items.div_ceil(2), limits.queue_bytes / 2)
        } else {
            (limits.queue_items, limits.queue_bytes)
        };
        let mut members = event.targets.iter().flat_map(|target| &target.members);
        members.any(|member| {
            self.subs
                .get(*member)
                .is_some_and(|sub| sub.load.0 > items || sub.load.1 > bytes || sub.hears_engine())
                || self.is_awaited(*member, index)
        })
    }

    /// Background may fill half of a queue: where an event went that is background, no more than that is queued.
    pub(crate) fn check_half(
        &self,
        index: usize,
        rows: &[AuditedSubscription],
        limits: &Limits,
    ) -> Check {
        let Some(event) = self.events.get(index) else {
            return Ok(());
        };
        let half = limits.queue_items.div_ceil(2);
        for target in event
            .targets
            .iter()
            .filter(|target| target.members.len() == 1)
        {
            let sub = target
                .members
                .first()
                .and_then(|member| self.subs.get(*member));
            let Some(sub) = sub.filter(|sub| !sub.lossy && sub.listens()) else {
                continue;
            };
            let space = space_name(sub.space);
            let mut rows = rows.iter();
            let row = rows.find(|row| row.name == sub.name && row.namespace == space);
            ensure(
                row.is_none_or(|row| row.walked_queued <= half),
                "QOS-BACKGROUND",
                || format!("event {index} is background, and {half} are half: {row:?}"),
            )?;
        }
        Ok(())
    }

    /// A run publishes so much in half a window at most, and is refused only after so much in a whole one.
    pub(crate) fn count_run(
        &mut self,
        run: u128,
        taken: (bool, bool),
        now: Nanos,
        limits: &Limits,
    ) -> Check {
        let (accepted, refused) = taken;
        let all = self.runs.entry(run).or_default();
        all.push((now, accepted));
        let since = |millis: u64| Nanos(now.0.saturating_sub(Nanos(0).plus_millis(millis).0));
        let half = since(limits.run_window_ms / 2);
        // The window moves by halves, and a half may last as long as the whole.
        let whole = since(limits.run_window_ms * 2);
        let fresh = all
            .iter()
            .filter(|(at, accepted)| *at > half && *accepted)
            .count();
        let offered = all.iter().filter(|(at, _)| *at >= whole).count();
        ensure(fresh <= limits.run_events, "RUN-BOUNDED", || {
            format!(
                "a run published {fresh} events in half a window, {} is the most",
                limits.run_events
            )
        })?;
        ensure(
            !refused || offered > limits.run_events,
            "RUN-BOUNDED",
            || {
                format!(
                    "a run was refused after {offered} events of {}",
                    limits.run_events
                )
            },
        )
    }

    /// Whether an offer before this one may wait for room there: nobody goes ahead of it.
    fn is_awaited(&self, member: usize, index: usize) -> bool {
        let mut before = self.events.iter().take(index);
        before.any(|event| {
            let waits = matches!(event.state, State::Parked | State::Unsure);
            let mut members = event.targets.iter().flat_map(|target| &target.members);
            waits && members.any(|other| *other == member)
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
                // When what waited went is not known, nor whether it was heard then.
                let sure = known || sub.shed.is_none();
                if alone && sure {
                    sub.sole += u64::from(sub.listens());
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
        ensure(!busy || sub.ahead.is_some(), "LANE-ORDER", || {
            format!("lane {lane} of {} has a turn already", sub.name)
        })?;
        sub.open.insert(lease, lane);
        sub.eased = true;
        let most = sub.ahead.unwrap_or(sub.concurrency);
        ensure(sub.open.len() <= most, "LANE-PARALLEL", || {
            format!("{} has {} turns of {most}", sub.name, sub.open.len())
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
            State::Parked | State::Unsure => self.apply(index, false)?,
            State::Applied => {}
        }
        self.unload(index, Some(group));
        let shed = self.sub(member)?.shed;
        let event = self.event(index)?;
        let mut targets = event.targets.iter();
        let shared = targets.any(|t| t.group == group && t.members.len() > 1);
        let lost = !shared && event.placed.is_some_and(|placed| shed > Some(placed));
        ensure(!lost, "HEALTH-QUARANTINED", || {
            format!("event {index} was queued before {group} was quarantined, and came after")
        })?;
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
        // What waits for a member that was quarantined does not keep its key from the others.
        let firm = shed.is_none();
        let others = target
            .members
            .iter()
            .filter(|other| firm && **other != member);
        for other in others.copied().collect::<Vec<usize>>() {
            let other = self.sub(other)?;
            let busy = other.live
                && other.shed.is_none()
                && other.open.values().any(|open| open == env.lane());
            ensure(!busy, "LANE-GROUP", || {
                format!(
                    "lane {} of {group} moved while {} has it",
                    env.lane(),
                    other.name
                )
            })?;
        }
        self.check_order(index, member, env.lane())?;
        self.check_fair(member, env.lane())?;
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
        if event.waited || event.handed {
            return Ok(());
        }
        let realtime = event.qos == Qos::Realtime;
        let placed = event.placed;
        let source = (
            space,
            group,
            event.sender.clone(),
            event.topic,
            lane.clone(),
            realtime,
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

    /// Lanes are served in turn: none is served again while one waits that was ready when it was served last.
    fn check_fair(&mut self, member: usize, lane: &Ident) -> Check {
        self.beat += 1;
        let beat = self.beat;
        let sub = self.sub(member)?;
        let last = sub.given.insert(lane.clone(), beat);
        let Some(sub) = self.subs.get(member).filter(|sub| sub.keeps_all()) else {
            return Ok(());
        };
        let last = last.unwrap_or_default();
        let starved = self.events.iter().position(|event| {
            event.stays_with(member)
                && event.placed.is_some_and(|placed| {
                    sub.shed.is_none_or(|shed| shed < placed)
                        && sub.is_ready(event.lane.as_ref(), placed, last)
                })
        });
        ensure(starved.is_none(), "LANE-FAIR", || {
            format!(
                "{} serves lane {lane} again, and event {starved:?} waits in another",
                sub.name
            )
        })
    }

    /// A turn is over, well or not.
    pub(crate) fn end_turn(&mut self, index: usize, lease: LeaseId, failed: bool) -> Check {
        self.beat += 1;
        let beat = self.beat;
        self.ended += 1;
        let sub = self.sub(index)?;
        if let Some(lane) = sub.open.remove(&lease) {
            sub.freed.insert(lane, beat);
        }
        sub.ended += 1;
        sub.failed += u64::from(failed);
        Ok(())
    }

    /// A quarantined agent has lost what was queued, or other members of its group have it.
    pub(crate) fn shed(&mut self, index: usize) -> Check {
        self.beat += 1;
        let beat = self.beat;
        let sub = self.sub(index)?;
        sub.shed = Some(beat);
        sub.ring.items.clear();
        sub.ring.blurred = true;
        self.hand_over(index)
    }

    /// Holds a row of the engine's audit against this book. All inboxes have been read.
    pub(crate) fn check_row(
        &self,
        index: usize,
        row: &AuditedSubscription,
        counted: &SubscriptionStats,
        limits: &Limits,
    ) -> Check {
        let Some(sub) = self.subs.get(index) else {
            return Err(unknown());
        };
        let told = || format!("{row:?} against ended {}, open {:?}", sub.ended, sub.open);
        ensure(row.balanced, "CONSERVATION", told)?;
        ensure(row.delivered == sub.ended, "CONSERVATION", told)?;
        ensure(row.walked_leased == sub.open.len(), "CONSERVATION", told)?;
        ensure(row.queued <= most_queued(limits), "BOUNDED", told)?;
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
        let lost = counted.dropped.overflow + counted.dropped.lagging;
        let full = sub.peak.0 > limits.queue_items || sub.peak.1 > limits.queue_bytes;
        ensure(sub.waited || lost <= sub.fleeting, "QOS-BATCHED", || {
            format!(
                "{row:?} lost more than the {} realtime events",
                sub.fleeting
            )
        })?;
        ensure(lost == 0 || full, "QOS-BATCHED", || {
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
