//! One namespace: its filters, routes, groups, capabilities and directory. Spaces never see each other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::arena::{CallId, GroupId, TopicId};
use crate::broker::Capability;
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
        }
    }
}
