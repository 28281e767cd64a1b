//! One namespace: its filters, routes, groups, capabilities and directory. Spaces never see each other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::arena::{CallId, GroupId, TopicId};
use crate::broker::Capability;
use crate::core::Core;
use crate::directory::Directory;
use crate::envelope::Origin;
use crate::selection::Table;
use crate::trie::Trie;
use crate::version::Version;

/// Which namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SpaceId(pub(crate) u32);

/// One namespace.
pub(crate) struct Space {
    pub(crate) name: Arc<str>,
    /// Who publishes what the engine itself has to say here.
    pub(crate) engine: Arc<Origin>,
    pub(crate) trie: Trie,
    /// Rises with each change of the filters: what was matched before is matched anew.
    pub(crate) version: u64,
    /// Its topics that are known; never walked.
    pub(crate) topics: FxHashMap<Arc<str>, TopicId>,
    pub(crate) groups: FxHashMap<Arc<str>, GroupId>,
    pub(crate) capabilities: BTreeMap<Arc<str>, Capability>,
    /// Versions of capabilities without a provider that are still known, the oldest first.
    pub(crate) gone: VecDeque<(Arc<str>, Arc<Version>)>,
    pub(crate) directory: Directory,
    /// Selection tables, by capability.
    pub(crate) tables: BTreeMap<Arc<str>, Table>,
    /// Requests that wait for a subscriber.
    pub(crate) waiting: Vec<CallId>,
    /// The number of its log, if one is open.
    pub(crate) partition: Option<u32>,
    /// How many are attached.
    pub(crate) sessions: usize,
    /// Bytes of large arguments that calls hold.
    pub(crate) held: usize,
}

impl Space {
    pub(crate) fn new(name: &str) -> Self {
        let name: Arc<str> = name.into();
        Self {
            engine: Origin::new(&name, "loom"),
            name,
            trie: Trie::new(),
            version: 1,
            topics: FxHashMap::default(),
            groups: FxHashMap::default(),
            capabilities: BTreeMap::new(),
            gone: VecDeque::new(),
            directory: Directory::default(),
            tables: BTreeMap::new(),
            waiting: Vec::new(),
            partition: None,
            sessions: 0,
            held: 0,
        }
    }
}

impl Core {
    /// The namespace of this name, with one session more.
    pub(crate) fn enter_space(&mut self, namespace: &str) -> SpaceId {
        let known = self.space_index.get(namespace).copied();
        let id = known.unwrap_or_else(|| self.open_space(namespace));
        if let Some(space) = self.space_mut(id) {
            space.sessions += 1;
            if space.sessions == 1 {
                self.idle_spaces.retain(|idle| *idle != id);
            }
        }
        id
    }

    fn open_space(&mut self, namespace: &str) -> SpaceId {
        let new = Space {
            partition: self.partition_of(namespace),
            ..Space::new(namespace)
        };
        let name = Arc::clone(&new.name);
        let free = self.free_spaces.pop();
        let id = if let Some(free) = free {
            if let Some(place) = self.space_mut(free) {
                *place = new;
            }
            free
        } else {
            self.spaces.push(new);
            SpaceId(u32::try_from(self.spaces.len() - 1).unwrap_or(u32::MAX))
        };
        self.space_index.insert(name, id);
        id
    }

    /// One session less; the last one leaves a namespace idle.
    pub(crate) fn leave_space(&mut self, id: SpaceId) {
        let Some(space) = self.space_mut(id) else {
            return;
        };
        space.sessions -= 1;
        if space.sessions == 0 {
            self.idle_spaces.push_back(id);
        }
        self.reclaim_spaces();
    }

    /// Forgets idle namespaces of which nothing is known any more, and the longest idle ones beyond the limit. What is on
    /// its way may still name one: then it stays until another session ends.
    fn reclaim_spaces(&mut self) {
        if !self.todo.is_empty() {
            return;
        }
        let surplus = self
            .idle_spaces
            .len()
            .saturating_sub(self.limits.namespaces_idle);
        let idle = std::mem::take(&mut self.idle_spaces);
        for (at, id) in idle.into_iter().enumerate() {
            let known = self
                .space(id)
                .is_some_and(|space| !space.capabilities.is_empty() || !space.tables.is_empty());
            let logs = self
                .space(id)
                .is_some_and(|space| space.partition.is_some());
            let busy = logs || self.jobs.iter().any(|(_, job)| job.space == id);
            if busy || (known && at >= surplus) {
                self.idle_spaces.push_back(id);
            } else {
                self.forget_space(id);
            }
        }
    }

    fn forget_space(&mut self, id: SpaceId) {
        let topics = self.topics.iter().filter(|(_, topic)| topic.space == id);
        let topics: Vec<TopicId> = topics.map(|(topic, _)| topic).collect();
        for topic in topics {
            self.forget_topic(topic);
        }
        let gone = Space::new("");
        if let Some(place) = self.space_mut(id) {
            let space = std::mem::replace(place, gone);
            self.space_index.remove(&space.name);
            self.free_spaces.push(id);
        }
    }
}
