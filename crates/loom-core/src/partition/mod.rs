//! What is folded from the records of one log: consumers and how far they are, ids of publishes, dead letters, states.
//!
//! It is no reader and no writer. Live and in replay the same [`Partition::apply`] is given the same records in the same
//! order, so that both end with the same hash.

mod consumers;
mod dead;
mod dedup;
pub(crate) mod effects;
mod kept;

use std::collections::BTreeMap;

use prost::Message;

pub use self::consumers::{Begun, ConsumerState};
pub use self::dead::DeadLetter;
pub use self::effects::{Effect, EffectState};
pub use self::kept::{KeptMemory, KeptState};

pub(crate) use self::consumers::Consumers;
pub(crate) use self::consumers::{START_NOW, show_client};
pub(crate) use self::dead::DeadLetters;
pub(crate) use self::dedup::{Dedup, Known, hash_of, id_of};
pub(crate) use self::effects::Effects;
pub(crate) use self::kept::Kept;

use crate::envelope::Position;
use crate::error::{Code, Error, Result};
use crate::limits::Limits;
use crate::record::{Record, Redriven};

/// The shape of a snapshot; one of a newer shape is refused.
const SHAPE: u32 = 1;

/// Epochs whose first position is known; older cursors have expired.
const EPOCHS: usize = 1_024;

/// The live state of one log: the fold of its records.
#[derive(Debug, Clone)]
pub struct Partition {
    /// Behind the last record that was applied.
    end: u64,
    epoch: u32,
    /// Where each epoch began.
    epochs: BTreeMap<u32, u64>,
    /// The clock of the log: it never goes back.
    clock_ms: u64,
    consumers: Consumers,
    dedup: Dedup,
    dead: DeadLetters,
    kept: Kept,
    effects: Effects,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(uint32, tag = "1")]
    shape: u32,
    #[prost(uint64, tag = "2")]
    end: u64,
    #[prost(uint32, tag = "3")]
    epoch: u32,
    #[prost(uint64, tag = "4")]
    clock_ms: u64,
    /// An epoch and its first position, in turn.
    #[prost(uint64, repeated, tag = "5")]
    epochs: Vec<u64>,
    #[prost(message, optional, tag = "6")]
    consumers: Option<consumers::Image>,
    #[prost(message, optional, tag = "7")]
    dedup: Option<dedup::Image>,
    #[prost(message, optional, tag = "8")]
    dead: Option<dead::Image>,
    #[prost(message, optional, tag = "9")]
    kept: Option<kept::Image>,
    #[prost(message, optional, tag = "10")]
    effects: Option<effects::Image>,
}

impl Partition {
    /// The fold of nothing.
    pub fn new(limits: &Limits) -> Self {
        Self {
            end: 0,
            epoch: 0,
            epochs: BTreeMap::new(),
            clock_ms: 0,
            consumers: Consumers::default(),
            dedup: Dedup::new(limits),
            dead: DeadLetters::new(limits),
            kept: Kept::default(),
            effects: Effects::new(limits),
        }
    }

    /// Takes one record in: the same code live and in replay. Records come in the order of their positions.
    pub fn apply(&mut self, position: Position, record: &Record) {
        self.end = self.end.max(position.n + 1);
        match record {
            Record::Epoch(it) => {
                self.epoch = self.epoch.max(it.epoch);
                self.epochs.insert(it.epoch, position.n);
                while self.epochs.len() > EPOCHS {
                    self.epochs.pop_first();
                }
                self.pass(it.at_ms);
            }
            Record::Closed(it) => self.pass(it.at_ms),
            Record::Event(env) => {
                self.pass(env.time_ms);
                self.dedup.apply(position, env);
            }
            Record::Consumer(it) => {
                self.pass(it.at_ms);
                self.consumers.enter(position.n, it, self.clock_ms);
            }
            Record::ConsumerGone(it) => {
                self.consumers.leave(it.consumer, self.clock_ms);
                self.dead.forget(it.consumer);
            }
            Record::Started(it) => self.consumers.start(it, self.clock_ms),
            Record::Progress(it) => self.consumers.progress(it, self.clock_ms),
            Record::Waits(it) => self.consumers.wait(it),
            Record::Dead(it) => {
                self.pass(it.at_ms);
                self.consumers.end(it.consumer, it.n);
                self.dead.enter(it);
            }
            Record::Redriven(Redriven { consumer, n }) => self.dead.remove(*consumer, *n),
            Record::Intent(..)
            | Record::Dispatched(_)
            | Record::Outcome(..)
            | Record::Settled(..) => self.effects.apply(position, record),
            Record::State(it, body) => self.kept.put_state(it, body),
            Record::Memory(it, body) => self.kept.put_memory(it, body),
            _ => {}
        }
    }

    fn pass(&mut self, wall_ms: u64) {
        self.clock_ms = self.clock_ms.max(wall_ms);
        self.dedup.pass(wall_ms);
    }

    /// Behind the last record that was applied.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// The life of the log that the last record was written in.
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The clock of the log, in milliseconds since 1970.
    pub const fn clock_ms(&self) -> u64 {
        self.clock_ms
    }

    /// Who consumes, by number.
    pub fn consumers(&self) -> impl Iterator<Item = &ConsumerState> {
        self.consumers.iter()
    }

    /// A consumer by its group.
    pub fn consumer_of(&self, group: &str) -> Option<&ConsumerState> {
        self.consumers.iter().find(|it| it.group == group)
    }

    /// Events that were given up, by consumer and position.
    pub fn dead(&self) -> impl Iterator<Item = &DeadLetter> {
        self.dead.iter()
    }

    /// States of agents, by agent and key.
    pub fn states(&self) -> impl Iterator<Item = &KeptState> {
        self.kept.states()
    }

    /// Values of the memory, by key.
    pub fn memories(&self) -> impl Iterator<Item = &KeptMemory> {
        self.kept.memories()
    }

    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    pub(crate) fn consumer(&self, number: u32) -> Option<&ConsumerState> {
        self.consumers.get(number)
    }

    pub(crate) fn next_consumer(&self) -> u32 {
        self.consumers.next()
    }

    pub(crate) fn known(&self, id: u128) -> Option<&Known> {
        self.dedup.get(id)
    }

    pub(crate) fn effects(&self) -> &Effects {
        &self.effects
    }

    pub(crate) fn letters(&self) -> &DeadLetters {
        &self.dead
    }

    pub(crate) fn forget_ids(&mut self) {
        self.dedup.clear();
    }

    /// A bug that the simulator asks for.
    pub(crate) fn forget_kept(&mut self) {
        self.effects.forget_kept();
    }

    pub(crate) fn forget_attempts(&mut self) {
        self.consumers.forget_attempts();
    }

    /// Forgets which clients had begun turns.
    pub(crate) fn forget_clients(&mut self) {
        self.consumers.forget_clients();
    }

    /// The lowest position from `oldest` on that a consumer or a dead letter still needs; none: nothing is needed.
    pub fn needs(&self, oldest: u64) -> Option<u64> {
        let consumed = self.consumers.iter().map(|it| it.needs(oldest));
        let dead = self.dead.iter().map(|letter| letter.n);
        consumed.chain(dead.filter(|n| *n >= oldest)).min()
    }

    /// From where on a group had needed the log when it was ended; it has not come back since.
    pub(crate) fn ended(&self, group: &str) -> Option<u64> {
        self.consumers.ended(group)
    }

    /// Checks where a cursor stands.
    ///
    /// # Errors
    /// `INVALID_CURSOR` for one of another partition, or whose epoch does not match; `CURSOR_EXPIRED` before `oldest`.
    pub(crate) fn check_cursor(&self, number: u32, oldest: u64, at: Position) -> Result<u64> {
        let invalid = |message: String| {
            Err(Error::new(Code::InvalidCursor, message)
                .field("start")
                .hint("take positions from receipts and events of this namespace only"))
        };
        if at.partition != number {
            return invalid(format!("{at} is a position of another log"));
        }
        let known = self.epochs.get(&at.epoch);
        let next = self
            .epochs
            .range(at.epoch.saturating_add(1)..)
            .next()
            .map(|(_, first)| *first);
        let forgotten = self
            .epochs
            .first_key_value()
            .is_some_and(|(first, _)| at.epoch < *first);
        let fits = known.is_some_and(|first| at.n >= *first)
            && at.n <= self.end
            && next.is_none_or(|next| at.n < next);
        if !(fits || forgotten && at.n < oldest) {
            return invalid(format!("{at} is no position of this log"));
        }
        if at.n < oldest {
            let message = format!("what stood at {at} is not kept any more");
            return Err(Error::new(Code::CursorExpired, message)
                .field("start")
                .hint("start at the beginning: the oldest event that is kept"));
        }
        Ok(at.n)
    }

    /// All of it as bytes; equal states give equal bytes.
    pub fn snapshot(&self) -> Vec<u8> {
        let epochs = self.epochs.iter();
        Image {
            shape: SHAPE,
            end: self.end,
            epoch: self.epoch,
            clock_ms: self.clock_ms,
            epochs: epochs
                .flat_map(|(epoch, n)| [u64::from(*epoch), *n])
                .collect(),
            consumers: Some(self.consumers.save()),
            dedup: Some(self.dedup.save()),
            dead: Some(self.dead.save()),
            kept: Some(self.kept.save()),
            effects: Some(self.effects.save()),
        }
        .encode_to_vec()
    }

    /// Reads what [`Self::snapshot`] wrote.
    ///
    /// # Errors
    /// `INTERNAL` for bytes that are no snapshot; `NOT_SUPPORTED` for one of a newer version.
    pub fn restore(bytes: &[u8], limits: &Limits) -> Result<Self> {
        let image = Image::decode(bytes).map_err(|error| {
            Error::new(
                Code::Internal,
                format!("a snapshot cannot be read: {error}"),
            )
        })?;
        if image.shape != SHAPE {
            let message = format!("a snapshot of shape {} is not of this version", image.shape);
            return Err(Error::new(Code::NotSupported, message).hint("update Loom"));
        }
        let mut epochs = BTreeMap::new();
        for pair in image.epochs.chunks_exact(2) {
            if let [epoch, n] = pair {
                epochs.insert(u32::try_from(*epoch).unwrap_or(u32::MAX), *n);
            }
        }
        Ok(Self {
            end: image.end,
            epoch: image.epoch,
            epochs,
            clock_ms: image.clock_ms,
            consumers: Consumers::load(image.consumers.unwrap_or_default()),
            dedup: Dedup::load(image.dedup.unwrap_or_default(), limits),
            dead: DeadLetters::load(image.dead.unwrap_or_default(), limits),
            kept: Kept::load(image.kept.unwrap_or_default()),
            effects: Effects::load(image.effects.unwrap_or_default(), limits),
        })
    }

    /// blake3 of the snapshot: two with the same hash are the same.
    pub fn hash(&self) -> [u8; 32] {
        blake3::hash(&self.snapshot()).into()
    }
}

#[cfg(test)]
mod tests;
