//! One namespace: its filters, routes, groups, capabilities and directory. Spaces never see each other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::arena::{CallId, GroupId, SubId};
use crate::broker::Capability;
use crate::directory::Directory;
use crate::envelope::Origin;
use crate::selection::Table;
use crate::trie::Trie;

/// Which namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SpaceId(pub(crate) u32);

/// Who an event of a topic is for.
pub(crate) enum Target {
    One(SubId),
    Group(GroupId, Vec<SubId>),
}

/// A topic that was read and matched.
pub(crate) struct Route {
    pub(crate) topic: Arc<str>,
    pub(crate) targets: Vec<Target>,
}

/// Routes that are kept ready: two halves, the older is dropped whole, so the bound costs nothing.
#[derive(Default)]
pub(crate) struct Routes {
    young: FxHashMap<Arc<str>, Arc<Route>>,
    old: FxHashMap<Arc<str>, Arc<Route>>,
}

impl Routes {
    pub(crate) fn find(&mut self, topic: &str, most: usize) -> Option<Arc<Route>> {
        if let Some(route) = self.young.get(topic) {
            return Some(Arc::clone(route));
        }
        let route = self.old.remove(topic)?;
        self.keep(Arc::clone(&route), most);
        Some(route)
    }

    pub(crate) fn keep(&mut self, route: Arc<Route>, most: usize) {
        if self.young.len() >= (most / 2).max(1) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(Arc::clone(&route.topic), route);
    }

    pub(crate) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// One namespace.
pub(crate) struct Space {
    pub(crate) name: Arc<str>,
    /// Who publishes what the engine itself has to say here.
    pub(crate) engine: Arc<Origin>,
    pub(crate) trie: Trie,
    pub(crate) routes: Routes,
    pub(crate) groups: FxHashMap<Arc<str>, GroupId>,
    pub(crate) capabilities: BTreeMap<Arc<str>, Capability>,
    /// Capabilities without a provider that are still known, the oldest first.
    pub(crate) gone: VecDeque<Arc<str>>,
    pub(crate) directory: Directory,
    /// Selection tables, by capability.
    pub(crate) tables: BTreeMap<Arc<str>, Table>,
    /// Requests that wait for a subscriber.
    pub(crate) waiting: Vec<CallId>,
}

impl Space {
    pub(crate) fn new(name: &str) -> Self {
        let name: Arc<str> = name.into();
        Self {
            engine: Origin::new(&name, "loom"),
            name,
            trie: Trie::new(),
            routes: Routes::default(),
            groups: FxHashMap::default(),
            capabilities: BTreeMap::new(),
            gone: VecDeque::new(),
            directory: Directory::default(),
            tables: BTreeMap::new(),
            waiting: Vec::new(),
        }
    }
}
