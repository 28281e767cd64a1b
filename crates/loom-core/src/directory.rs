//! Who is there: agents and capabilities with what they said of themselves, and the changes of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::arena::{Handle, SessionId};
use crate::core::{Core, Kind};
use crate::error::Result;
use crate::health::Health;
use crate::planted::Planted;
use crate::space::SpaceId;

/// The two halves of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DirectoryKind {
    /// Agents.
    Agent,
    /// Capabilities.
    Capability,
}

impl DirectoryKind {
    const fn token(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Capability => "capability",
        }
    }
}

/// An entry came, went, or is offered by more or fewer.
pub(crate) struct Change {
    kind: DirectoryKind,
    what: &'static str,
    pub(crate) info: Vec<u8>,
}

impl Change {
    pub(crate) fn topic(&self) -> String {
        format!("loom.directory.{}.{}", self.kind.token(), self.what)
    }
}

/// One that offers a name: what it said of itself, and how it fares.
struct Entry {
    info: Box<[u8]>,
    health: Health,
}

impl Entry {
    /// The JSON object it gave, with its health in it.
    fn show(&self) -> Vec<u8> {
        self.show_with("")
    }

    /// The JSON object it gave, with its health and more members in it; what is no object stays as it is.
    fn show_with(&self, more: &str) -> Vec<u8> {
        let inner = self.info.trim_ascii().strip_prefix(b"{");
        let Some(inner) = inner.and_then(|inner| inner.strip_suffix(b"}")) else {
            return self.info.to_vec();
        };
        let comma = if inner.trim_ascii().is_empty() {
            ""
        } else {
            ","
        };
        let health = format!("{comma}\"health\":\"{}\"{more}}}", self.health.token());
        [b"{", inner, health.as_bytes()].concat()
    }
}

/// Those that offer the same name.
type Entries = BTreeMap<Handle, Entry>;

/// The directory of one namespace, in the order of the names.
#[derive(Default)]
pub(crate) struct Directory {
    entries: BTreeMap<(DirectoryKind, Arc<str>), Entries>,
}

impl Core {
    /// What is registered in a namespace, as it was given, with its health and what it has to do, in the order of the
    /// names; nothing for an unknown one.
    pub fn directory(&self, namespace: &str, kind: DirectoryKind) -> Vec<Vec<u8>> {
        let space = self
            .space_index
            .get(namespace)
            .and_then(|space| self.space(*space));
        let Some(space) = space else {
            return Vec::new();
        };
        let entries = space
            .directory
            .entries
            .iter()
            .filter(|((other, _), _)| *other == kind);
        entries
            .flat_map(|(_, offered)| offered)
            .map(|(handle, entry)| entry.show_with(&self.load_of(*handle)))
            .collect()
    }

    /// What [`Self::directory`] shows a session: agents and capabilities that it may call or observe, and its own.
    ///
    /// # Errors
    /// `FENCED` when the session has ended.
    pub fn directory_for(&self, session: SessionId, kind: DirectoryKind) -> Result<Vec<Vec<u8>>> {
        let found = self.session(session)?;
        let Some(space) = self.space(found.space) else {
            return Ok(Vec::new());
        };
        let entries = space.directory.entries.iter();
        let entries = entries.filter(|((other, name), offered)| {
            *other == kind
                && found.grants.as_ref().is_none_or(|grants| {
                    grants.may_see(name) || offered.keys().any(|it| found.handles.contains(it))
                })
        });
        let offered = entries.flat_map(|(_, offered)| offered);
        Ok(offered
            .map(|(handle, entry)| entry.show_with(&self.load_of(*handle)))
            .collect())
    }

    /// The handles of those who offer a name.
    pub(crate) fn entered(&self, space: SpaceId, kind: DirectoryKind, name: &str) -> Vec<Handle> {
        let offered = self
            .space(space)
            .and_then(|space| space.directory.entries.get(&(kind, name.into())));
        offered
            .map(|it| it.keys().copied().collect())
            .unwrap_or_default()
    }

    /// What an agent or a provider has to do now, and what an agent has done, as members of a JSON object.
    fn load_of(&self, handle: Handle) -> String {
        match self.handles.get(handle).map(|found| found.kind) {
            Some(Kind::Subscription(sub)) => {
                self.subs.get(sub).map_or_else(String::new, |sub| {
                    let total = sub.books.total();
                    format!(
                        ",\"queued\":{},\"leased\":{},\"lagging\":{},\"delivered\":{},\"failed\":{},\"dropped\":{}",
                        sub.lanes.items(),
                        sub.leased,
                        sub.lagging,
                        total.delivered,
                        total.failed,
                        total.dropped.total(),
                    )
                })
            }
            Some(Kind::Provider(provider)) => {
                self.providers.get(provider).map_or_else(String::new, |found| {
                    let (queued, leased) = (found.queue.len(), found.held.len());
                    format!(",\"queued\":{queued},\"leased\":{leased}")
                })
            }
            _ => String::new(),
        }
    }

    pub(crate) fn enter(
        &mut self,
        space: SpaceId,
        kind: DirectoryKind,
        entry: (&str, Handle, &[u8]),
    ) {
        let (name, handle, info) = entry;
        let Some(found) = self.space_mut(space) else {
            return;
        };
        let offered = found
            .directory
            .entries
            .entry((kind, name.into()))
            .or_default();
        let what = if offered.is_empty() {
            "joined"
        } else {
            "changed"
        };
        let entry = Entry {
            info: info.into(),
            health: Health::Up,
        };
        let info = entry.show();
        offered.insert(handle, entry);
        self.tell_change(space, Change { kind, what, info });
    }

    pub(crate) fn leave(
        &mut self,
        space: SpaceId,
        kind: DirectoryKind,
        entry: (&Arc<str>, Handle),
    ) {
        let (name, handle) = entry;
        let Some(found) = self.space_mut(space) else {
            return;
        };
        let key = (kind, Arc::clone(name));
        let Some(offered) = found.directory.entries.get_mut(&key) else {
            return;
        };
        let Some(entry) = offered.remove(&handle) else {
            return;
        };
        let what = if offered.is_empty() {
            "left"
        } else {
            "changed"
        };
        if offered.is_empty() {
            found.directory.entries.remove(&key);
        }
        let info = entry.show();
        self.tell_change(space, Change { kind, what, info });
    }

    /// Notes how one of the entries fares, and says that it changed.
    pub(crate) fn set_health(
        &mut self,
        space: SpaceId,
        kind: DirectoryKind,
        entry: (&Arc<str>, Handle),
        health: Health,
    ) {
        let (name, handle) = entry;
        let silent = self.has(Planted::HealthUntold);
        let found = self
            .space_mut(space)
            .and_then(|found| found.directory.entries.get_mut(&(kind, Arc::clone(name))))
            .and_then(|offered| offered.get_mut(&handle));
        let Some(entry) = found else { return };
        entry.health = health;
        if silent && health == Health::Quarantined {
            return;
        }
        let info = entry.show();
        let what = "changed";
        self.tell_change(space, Change { kind, what, info });
    }
}
