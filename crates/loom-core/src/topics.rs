//! What is kept of each topic: whom it is for, and its books. The table is bounded; what it forgets is folded into the
//! books of all others, so that sums stay equal.

use std::sync::Arc;

use crate::arena::{Arena, GroupId, SubId, TopicId};
use crate::books::TopicBooks;
use crate::space::SpaceId;
use crate::time::Nanos;

/// Who an event of a topic is for.
pub(crate) enum Target {
    One(SubId),
    Group(GroupId, Vec<SubId>),
}

/// A topic that was read and matched.
pub(crate) struct Topic {
    pub(crate) name: Arc<str>,
    pub(crate) space: SpaceId,
    pub(crate) targets: Vec<Target>,
    /// The state of the namespace's filters that the targets were found in.
    pub(crate) version: u64,
    /// Its events are logged, whoever publishes them.
    pub(crate) durable: bool,
    used: Nanos,
    pub(crate) books: TopicBooks,
}

/// Topics that are looked at to find one that was not used for long.
const SAMPLE: usize = 8;

/// All topics that are known.
pub(crate) struct Topics {
    known: Arena<TopicId, Box<Topic>>,
    /// Of those that are not known any more, and of copies that are kept for nobody.
    pub(crate) other: TopicBooks,
    hand: usize,
    /// The latest time that was told.
    pub(crate) now: Nanos,
}

impl Topics {
    pub(crate) fn new() -> Self {
        Self {
            known: Arena::new(),
            other: TopicBooks::default(),
            hand: 0,
            now: Nanos::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (TopicId, &Topic)> {
        self.known.iter().map(|(id, topic)| (id, &**topic))
    }

    pub(crate) fn get(&self, id: TopicId) -> Option<&Topic> {
        self.known.get(id).map(|topic| &**topic)
    }

    pub(crate) fn get_mut(&mut self, id: TopicId) -> Option<&mut Topic> {
        self.known.get_mut(id).map(|topic| &mut **topic)
    }

    /// Notes that a topic is used; says of which state of the filters its targets are.
    pub(crate) fn touch(&mut self, id: TopicId) -> Option<u64> {
        let topic = self.known.get_mut(id)?;
        topic.used = self.now;
        Some(topic.version)
    }

    /// The books an event of this topic is counted in.
    pub(crate) fn books(&mut self, id: TopicId) -> &mut TopicBooks {
        match self.known.get_mut(id) {
            Some(topic) => &mut topic.books,
            None => &mut self.other,
        }
    }

    pub(crate) fn enter(&mut self, space: SpaceId, name: Arc<str>) -> TopicId {
        let used = self.now;
        self.known.insert(Box::new(Topic {
            name,
            space,
            targets: Vec::new(),
            version: 0,
            durable: false,
            used,
            books: TopicBooks::default(),
        }))
    }

    /// Of the next few, the one that was not used for longest.
    pub(crate) fn oldest(&mut self) -> Option<TopicId> {
        let slots = self.known.slots().max(1);
        let start = self.hand;
        self.hand = (start + SAMPLE) % slots;
        let next = (start..start + SAMPLE).map(|at| at % slots);
        let found = next.filter_map(|at| self.known.at(at));
        found.min_by_key(|(_, topic)| topic.used).map(|(id, _)| id)
    }

    /// Of the next few, those that were not used since `then`.
    pub(crate) fn idle(&mut self, since: Nanos, look: usize) -> Vec<TopicId> {
        let slots = self.known.slots().max(1);
        let look = look.min(slots);
        let start = self.hand;
        self.hand = (start + look) % slots;
        let next = (start..start + look).map(|at| at % slots);
        let found = next.filter_map(|at| self.known.at(at));
        found
            .filter(|(_, topic)| topic.used < since)
            .map(|(id, _)| id)
            .collect()
    }

    /// Forgets a topic: from now on its events are among the others.
    pub(crate) fn fold(&mut self, id: TopicId) -> Option<Box<Topic>> {
        let topic = self.known.remove(id)?;
        self.other.fold(&topic.books);
        Some(topic)
    }
}
