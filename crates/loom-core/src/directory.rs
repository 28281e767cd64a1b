//! Who is there: agents and capabilities with what they said of themselves, and the changes of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::arena::Handle;
use crate::core::Core;
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

/// What each that offers the same name said of itself.
type Infos = BTreeMap<Handle, Box<[u8]>>;

/// The directory of one namespace, in the order of the names.
#[derive(Default)]
pub(crate) struct Directory {
    entries: BTreeMap<(DirectoryKind, Arc<str>), Infos>,
}

impl Core {
    /// What is registered in a namespace, as it was given, in the order of the names; nothing for an unknown one.
    pub fn directory(&self, namespace: &str, kind: DirectoryKind) -> Vec<&[u8]> {
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
            .flat_map(|(_, infos)| infos.values())
            .map(|info| &**info)
            .collect()
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
        let infos = found
            .directory
            .entries
            .entry((kind, name.into()))
            .or_default();
        let what = if infos.is_empty() {
            "joined"
        } else {
            "changed"
        };
        infos.insert(handle, info.into());
        self.tell_change(
            space,
            Change {
                kind,
                what,
                info: info.to_vec(),
            },
        );
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
        let Some(infos) = found.directory.entries.get_mut(&key) else {
            return;
        };
        let Some(info) = infos.remove(&handle) else {
            return;
        };
        let what = if infos.is_empty() { "left" } else { "changed" };
        if infos.is_empty() {
            found.directory.entries.remove(&key);
        }
        self.tell_change(
            space,
            Change {
                kind,
                what,
                info: info.into(),
            },
        );
    }
}
