//! Ids that publishers gave to their events: within a window, a second event with one is the first.

use std::collections::VecDeque;

use prost::Message;
use rustc_hash::FxHashMap;

use crate::envelope::{Envelope, Position};
use crate::limits::Limits;
use crate::record::Id;

/// An event that was published with an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// The publisher's id and the topic, hashed.
    pub(crate) id: u128,
    /// Of the payload.
    pub(crate) hash: u128,
    /// The event's own id.
    pub(crate) event: u128,
    pub(crate) position: Position,
    at_ms: u64,
}

/// The ids of the last minutes, the oldest first.
#[derive(Debug, Clone)]
pub(crate) struct Dedup {
    window_ms: u64,
    most: usize,
    /// By which ids grow old: a reading of the wall that a second one confirmed. It never goes back.
    clock_ms: u64,
    /// The last reading.
    read_ms: u64,
    order: VecDeque<Known>,
    /// How many have left the front; never walked.
    gone: u64,
    /// Numbers of entries, counted from the first ever.
    index: FxHashMap<u128, u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Image {
    #[prost(message, repeated, tag = "1")]
    order: Vec<KnownImage>,
    #[prost(uint64, tag = "2")]
    clock_ms: u64,
    #[prost(uint64, tag = "3")]
    read_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct KnownImage {
    #[prost(message, optional, tag = "1")]
    id: Option<Id>,
    #[prost(message, optional, tag = "2")]
    hash: Option<Id>,
    #[prost(message, optional, tag = "3")]
    event: Option<Id>,
    #[prost(uint32, tag = "4")]
    partition: u32,
    #[prost(uint32, tag = "5")]
    epoch: u32,
    #[prost(uint64, tag = "6")]
    n: u64,
    #[prost(uint64, tag = "7")]
    at_ms: u64,
}

fn short(hash: &blake3::Hash) -> u128 {
    let bytes = hash.as_bytes().iter().take(16);
    bytes.fold(0, |id, byte| id << 8 | u128::from(*byte))
}

/// The key of a publisher's id: it counts in its topic, so that nobody takes an id where he may not publish.
pub(crate) fn id_of(topic: &str, text: &str) -> u128 {
    let mut hasher = blake3::Hasher::new();
    // No topic has a zero in it.
    hasher
        .update(topic.as_bytes())
        .update(&[0])
        .update(text.as_bytes());
    short(&hasher.finalize())
}

/// What makes two events with one id the same.
pub(crate) fn hash_of(payload: &[u8]) -> u128 {
    short(&blake3::hash(payload))
}

impl Dedup {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            window_ms: limits.dedup_window_ms,
            most: limits.dedup_ids,
            clock_ms: 0,
            read_ms: 0,
            order: VecDeque::new(),
            gone: 0,
            index: FxHashMap::default(),
        }
    }

    /// Takes a reading of the wall in. One alone that is far ahead makes no id old.
    pub(super) fn pass(&mut self, wall_ms: u64) {
        let last_ms = match std::mem::replace(&mut self.read_ms, wall_ms) {
            0 => wall_ms,
            last_ms => last_ms,
        };
        self.clock_ms = self.clock_ms.max(wall_ms.min(last_ms));
        self.forget();
    }

    pub(super) fn apply(&mut self, position: Position, env: &Envelope) {
        let given = env.extra.as_ref().and_then(|extra| extra.dedup.as_deref());
        let Some(given) = given else { return };
        if self.order.len() >= self.most {
            self.drop_first();
        }
        self.push(Known {
            id: id_of(&env.topic, given),
            hash: hash_of(&env.payload),
            event: env.id,
            position,
            at_ms: self.clock_ms,
        });
    }

    fn push(&mut self, known: Known) {
        self.index
            .insert(known.id, self.gone + self.order.len() as u64);
        self.order.push_back(known);
    }

    fn drop_first(&mut self) {
        if let Some(first) = self.order.pop_front() {
            if self.index.get(&first.id) == Some(&self.gone) {
                self.index.remove(&first.id);
            }
            self.gone += 1;
        }
    }

    fn forget(&mut self) {
        while let Some(first) = self.order.front() {
            if first.at_ms.saturating_add(self.window_ms) > self.clock_ms {
                return;
            }
            self.drop_first();
        }
    }

    pub(super) fn get(&self, id: u128) -> Option<&Known> {
        let at = self.index.get(&id)?.checked_sub(self.gone)?;
        self.order.get(usize::try_from(at).ok()?)
    }

    pub(super) fn clear(&mut self) {
        self.order.clear();
        self.index.clear();
        self.gone = 0;
    }

    pub(super) fn save(&self) -> Image {
        let order = self.order.iter().map(|known| KnownImage {
            id: Some(known.id.into()),
            hash: Some(known.hash.into()),
            event: Some(known.event.into()),
            partition: known.position.partition,
            epoch: known.position.epoch,
            n: known.position.n,
            at_ms: known.at_ms,
        });
        Image {
            order: order.collect(),
            clock_ms: self.clock_ms,
            read_ms: self.read_ms,
        }
    }

    pub(super) fn load(image: Image, limits: &Limits) -> Self {
        let mut new = Self::new(limits);
        (new.clock_ms, new.read_ms) = (image.clock_ms, image.read_ms);
        let read = |id: Option<Id>| id.map(u128::from).unwrap_or_default();
        for known in image.order {
            new.push(Known {
                id: read(known.id),
                hash: read(known.hash),
                event: read(known.event),
                position: Position {
                    partition: known.partition,
                    epoch: known.epoch,
                    n: known.n,
                },
                at_ms: known.at_ms,
            });
        }
        new
    }
}
