//! The last state of each agent and the last value of each memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;

use crate::record::{Body, Memory, State};

/// The state of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptState {
    /// Whose: the agent's name.
    pub agent: String,
    /// Which of its states.
    pub key: String,
    /// blake3 of the schema it was written with; empty: it has none.
    pub schema_hash: Vec<u8>,
    /// It as JSON.
    pub body: Arc<[u8]>,
}

/// A value of the memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptMemory {
    /// Which.
    pub key: String,
    /// Who wrote it.
    pub writer: String,
    /// It as JSON.
    pub body: Arc<[u8]>,
    /// It is forgotten then, in milliseconds since 1970.
    pub until_ms: Option<u64>,
}

/// All that is kept of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    states: BTreeMap<(String, String), KeptState>,
    memories: BTreeMap<String, KeptMemory>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Image {
    #[prost(message, repeated, tag = "1")]
    states: Vec<StateImage>,
    #[prost(message, repeated, tag = "2")]
    memories: Vec<MemoryImage>,
}

#[derive(Clone, PartialEq, Message)]
struct StateImage {
    #[prost(string, tag = "1")]
    agent: String,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(bytes = "vec", tag = "3")]
    schema_hash: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    body: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct MemoryImage {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    writer: String,
    #[prost(bytes = "vec", tag = "3")]
    body: Vec<u8>,
    #[prost(uint64, optional, tag = "4")]
    until_ms: Option<u64>,
}

impl Kept {
    pub(crate) fn states(&self) -> impl Iterator<Item = &KeptState> {
        self.states.values()
    }

    pub(crate) fn memories(&self) -> impl Iterator<Item = &KeptMemory> {
        self.memories.values()
    }

    pub(crate) fn state(&self, agent: &str, key: &str) -> Option<&KeptState> {
        self.states.get(&(agent.to_owned(), key.to_owned()))
    }

    pub(crate) fn memory(&self, key: &str) -> Option<&KeptMemory> {
        self.memories.get(key)
    }

    pub(super) fn put_state(&mut self, record: &State, body: &Body) {
        let key = (record.agent.clone(), record.key.clone());
        let state = KeptState {
            agent: record.agent.clone(),
            key: record.key.clone(),
            schema_hash: record.schema_hash.clone(),
            body: body.share(),
        };
        self.states.insert(key, state);
    }

    pub(super) fn put_memory(&mut self, record: &Memory, body: &Body) {
        if record.gone {
            self.memories.remove(&record.key);
            return;
        }
        let value = KeptMemory {
            key: record.key.clone(),
            writer: record.writer.clone(),
            body: body.share(),
            until_ms: record.until_ms,
        };
        self.memories.insert(record.key.clone(), value);
    }

    pub(super) fn save(&self) -> Image {
        let states = self.states.values().map(|it| StateImage {
            agent: it.agent.clone(),
            key: it.key.clone(),
            schema_hash: it.schema_hash.clone(),
            body: it.body.to_vec(),
        });
        let memories = self.memories.values().map(|it| MemoryImage {
            key: it.key.clone(),
            writer: it.writer.clone(),
            body: it.body.to_vec(),
            until_ms: it.until_ms,
        });
        Image {
            states: states.collect(),
            memories: memories.collect(),
        }
    }

    pub(super) fn load(image: Image) -> Self {
        let states = image.states.into_iter().map(|it| {
            let key = (it.agent.clone(), it.key.clone());
            let state = KeptState {
                agent: it.agent,
                key: it.key,
                schema_hash: it.schema_hash,
                body: it.body.into(),
            };
            (key, state)
        });
        let memories = image.memories.into_iter().map(|it| {
            let value = KeptMemory {
                key: it.key.clone(),
                writer: it.writer,
                body: it.body.into(),
                until_ms: it.until_ms,
            };
            (it.key, value)
        });
        Self {
            states: states.collect(),
            memories: memories.collect(),
        }
    }
}
