//! Durable publishes: logged first, then given to those who hear them, then answered.

use std::sync::Arc;

use smallvec::smallvec;

use crate::arena::{SessionId, Ticket, TopicId};
use crate::bus::{Plan, Targets};
use crate::consume::ConsumerId;
use crate::core::Core;
use crate::envelope::{Envelope, Position, Qos};
use crate::error::{Code, Error, Result};
use crate::input::Publish;
use crate::notice::{Notice, Offer, Receipt};
use crate::partition::{hash_of, id_of};
use crate::record::{Level, Record};
use crate::space::SpaceId;
use crate::ticket::{Then, Waiting, mark};
use crate::time::Moment;
use crate::topics::Target;

/// A publish that is with the log.
pub(crate) struct Publishing {
    pub(crate) session: SessionId,
    space: SpaceId,
    env: Arc<Envelope>,
    level: Level,
    /// The publisher's id in its topic.
    dedup: Option<u128>,
    /// Publishes with the same id that came meanwhile.
    seconds: Vec<(SessionId, Ticket, Level)>,
}

impl Core {
    /// The level that a publish is logged at; none: it is not durable.
    pub(crate) fn level_of(
        &self,
        space: SpaceId,
        topic: TopicId,
        publish: &Publish<'_>,
    ) -> Result<Option<Level>> {
        let by_topic = self.topics.get(topic).is_some_and(|topic| topic.durable);
        let asked = publish.ack.filter(|ack| by_topic || *ack > Level::Accepted);
        let has_id = || publish.options.as_ref().is_some_and(|o| o.dedup.is_some());
        if !by_topic && asked.is_none() {
            if has_id() {
                let message = "an id tells durable events apart, and this one is not durable";
                return Err(Error::invalid("id", message)
                    .hint("publish with ack=\"os\" or \"disk\", or make the topic durable by configuration"));
            }
            return Ok(None);
        }
        if publish.qos == Qos::Realtime {
            return Err(
                Error::invalid("qos", "a realtime event cannot be durable").hint("use batched")
            );
        }
        let part = self.space(space).and_then(|space| space.partition);
        let Some(part) = part.and_then(|part| self.parts.get(&part)) else {
            let message = "there is no log that this event could be kept in";
            return Err(Error::new(Code::NotSupported, message)
                .field("ack")
                .hint("start with a data directory: --data DIR"));
        };
        if !part.opened.kept {
            if publish.ack.is_some_and(|ack| ack > Level::Accepted) {
                let message = "an event that is to outlive the process needs a log on disk";
                return Err(Error::new(Code::NotSupported, message)
                    .field("ack")
                    .hint("start with a data directory: --data DIR"));
            }
            return Ok(Some(Level::Accepted));
        }
        Ok(Some(asked.unwrap_or(part.ack)))
    }

    /// Whether the events of a topic are durable by configuration.
    pub(crate) fn is_durable(&self, space: SpaceId, topic: &str) -> bool {
        let part = self.space(space).and_then(|space| space.partition);
        let Some(part) = part.and_then(|part| self.parts.get(&part)) else {
            return false;
        };
        part.filters.iter().any(|filter| filter.matches(topic))
    }

    /// First half: the event leaves as a record.
    pub(crate) fn publish_durable(
        &mut self,
        (session, space): (SessionId, SpaceId),
        env: Arc<Envelope>,
        level: Level,
        at: Moment,
    ) -> Result<Offer> {
        let part = self.space(space).and_then(|space| space.partition);
        let Some(partition) = part else {
            return Err(Error::new(Code::Internal, "there is no such log"));
        };
        let given = env.extra.as_ref().and_then(|extra| extra.dedup.as_deref());
        let dedup = given.map(|text| (id_of(&env.topic, text), hash_of(&env.payload)));
        if let Some(key) = dedup
            && let Some(offer) = self.is_second((session, level), partition, key, at)?
        {
            return Ok(offer);
        }
        let record = Record::Event(Arc::clone(&env));
        let then = Then::Publish(Box::new(Publishing {
            session,
            space,
            env,
            level,
            dedup: dedup.map(|(id, _)| id),
            seconds: Vec::new(),
        }));
        let ticket = self.append(partition, level, smallvec![record], then);
        if let Some((id, hash)) = dedup
            && let Some(part) = self.parts.get_mut(&partition)
        {
            part.flying.insert(id, (hash, ticket));
        }
        Ok(Offer::Logging(ticket))
    }

    /// What a publish with an id that is known is answered.
    fn is_second(
        &mut self,
        (session, level): (SessionId, Level),
        partition: u32,
        (id, hash): (u128, u128),
        at: Moment,
    ) -> Result<Option<Offer>> {
        let Some(part) = self.parts.get(&partition) else {
            return Ok(None);
        };
        let conflict = || {
            let message = "an event of this topic with this id and other data was published";
            Err(Error::new(Code::Conflict, message)
                .field("id")
                .hint("give each event an id of its own"))
        };
        if let Some((known, first)) = part.flying.get(&id).copied() {
            if known != hash {
                return conflict();
            }
            let most = self.limits.publish_seconds;
            let waiting = self.publishing(first).map_or(0, |it| it.seconds.len());
            if waiting >= most {
                let message = format!("{waiting} publishes with this id wait for the first");
                return Err(Error::exhausted("publish_seconds", message)
                    .field("id")
                    .hint("publish an event again only when its answer has not come for a while"));
            }
            let ticket = self.tickets.insert(Waiting::Second);
            if let Some(publishing) = self.publishing(first) {
                publishing.seconds.push((session, ticket, level));
            }
            return Ok(Some(Offer::Logging(ticket)));
        }
        let Some(known) = part.folded.known(id) else {
            return Ok(None);
        };
        if known.hash != hash {
            return conflict();
        }
        let synced = known.position.n < part.synced;
        let reached = match (part.opened.kept, synced) {
            (false, _) => Level::Accepted,
            (true, false) => Level::Os,
            (true, true) => Level::Disk,
        };
        let receipt = Receipt {
            id: known.event,
            matched: 0,
            position: Some(known.position),
            level: reached,
        };
        if level == Level::Disk && reached == Level::Os {
            return Ok(Some(self.sync(partition, session, receipt, at)));
        }
        Ok(Some(Offer::Done(receipt)))
    }

    /// Answers a publish whose event is in the log when all that is there is synced.
    fn sync(
        &mut self,
        partition: u32,
        session: SessionId,
        mut receipt: Receipt,
        at: Moment,
    ) -> Offer {
        let level = Level::Disk;
        receipt.level = level;
        let then = Then::Synced(session, Box::new(receipt));
        Offer::Logging(self.append(partition, level, smallvec![mark(at)], then))
    }

    /// Everything before this is on disk.
    pub(crate) fn synced(&mut self, partition: u32, before: u64) {
        if let Some(part) = self.parts.get_mut(&partition) {
            part.synced = part.synced.max(before);
        }
    }

    /// Second half: the log has the event.
    pub(crate) fn published(
        &mut self,
        publishing: Publishing,
        partition: u32,
        (ticket, position): (Ticket, Position),
        at: Moment,
    ) {
        let Publishing {
            session,
            space,
            env,
            level,
            dedup,
            seconds,
        } = publishing;
        if let Some(part) = self.parts.get_mut(&partition) {
            if level == Level::Disk {
                part.synced = part.synced.max(position.n + 1);
            }
            if let Some(id) = dedup {
                part.flying.remove(&id);
            }
        }
        let mut env: Envelope = Arc::unwrap_or_clone(env);
        env.position = Some(position);
        let env = Arc::new(env);
        let matched = self.deliver_logged(space, &env, at);
        let receipt = Receipt {
            id: env.id,
            matched,
            position: Some(position),
            level,
        };
        for (session, ticket, wanted) in seconds {
            if wanted > level {
                self.sync_second(partition, (session, ticket), receipt.clone(), at);
                continue;
            }
            self.tickets.remove(ticket);
            self.notify(session, Notice::Accepted(ticket, receipt.clone()));
        }
        self.notify(session, Notice::Accepted(ticket, receipt));
    }

    /// Gives an event that is in the log to those who hear it now; says how many these are.
    fn deliver_logged(&mut self, space: SpaceId, env: &Arc<Envelope>, at: Moment) -> usize {
        let Ok((topic, _)) = self.topic(space, &env.topic) else {
            return 0;
        };
        let Some(position) = env.position else {
            return 0;
        };
        let Some(found) = self.topics.get_mut(topic) else {
            return 0;
        };
        // Taken out while groups are asked, so that nothing is copied.
        let targets = std::mem::take(&mut found.targets);
        let matched = targets.len();
        let mut fleeting = Targets::new();
        let mut consumers = self.uncovered(space);
        for target in &targets {
            match self.consumer_of(target) {
                Some(consumer) if !consumers.contains(&consumer) => consumers.push(consumer),
                Some(_) => {}
                None => fleeting.extend(self.pick_of(std::slice::from_ref(target), env.lane())),
            }
        }
        if let Some(found) = self.topics.get_mut(topic) {
            found.targets = targets;
        }
        // Streams, and agents that take all as realtime, get it as any other event.
        let plan = Plan {
            env: Arc::clone(env),
            targets: fleeting,
            own: None,
            call: None,
            tape: None,
        };
        self.apply(&plan, at);
        for consumer in consumers {
            self.arrive(consumer, position.n, env, at);
        }
        matched
    }

    /// What a group consumes the log as, if it does.
    fn consumer_of(&self, target: &Target) -> Option<ConsumerId> {
        let Target::Group(group, members) = target else {
            return None;
        };
        let consumer = self.groups.get(*group)?.consumer?;
        let mut members = members.iter().filter_map(|member| self.subs.get(*member));
        members.any(|sub| !sub.lossy).then_some(consumer)
    }

    /// Consumers that may want an event though none of their members hears it now.
    fn uncovered(&self, space: SpaceId) -> Vec<ConsumerId> {
        let partition = self.space(space).and_then(|space| space.partition);
        let Some(part) = partition.and_then(|partition| self.parts.get(&partition)) else {
            return Vec::new();
        };
        let partition = part.opened.partition;
        let all = part.uncovered.iter();
        all.map(|number| ConsumerId {
            partition,
            number: *number,
        })
        .collect()
    }

    /// Second half: the log refused the event.
    pub(crate) fn unpublished(
        &mut self,
        publishing: Publishing,
        (partition, ticket): (u32, Ticket),
        error: &Error,
    ) {
        if let (Some(part), Some(id)) = (self.parts.get_mut(&partition), publishing.dedup) {
            part.flying.remove(&id);
        }
        for (session, ticket, _) in publishing.seconds {
            self.tickets.remove(ticket);
            self.notify(session, Notice::Refused(ticket, error.clone()));
        }
        self.notify(publishing.session, Notice::Refused(ticket, error.clone()));
    }
}
