//! Events that were given up: kept until somebody publishes them anew, or newer ones take their place.

use std::collections::{BTreeMap, VecDeque};

use prost::Message;

use crate::limits::Limits;
use crate::record::Dead;

/// An event that a consumer gave up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Whose.
    pub consumer: u32,
    /// The event's position.
    pub n: u64,
    /// How often it was begun.
    pub attempt: u32,
    /// The last error, by number; 0: its handler gave it up.
    pub code: u32,
    /// What the error said.
    pub message: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// All dead letters of a partition.
#[derive(Debug, Clone)]
pub(crate) struct DeadLetters {
    most: usize,
    all: BTreeMap<(u32, u64), DeadLetter>,
    /// In the order they died; entries of those that are gone are skipped.
    order: VecDeque<(u32, u64)>,
    /// How many went because there were too many.
    lost: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Image {
    /// In the order they died.
    #[prost(message, repeated, tag = "1")]
    all: Vec<LetterImage>,
    #[prost(uint64, tag = "2")]
    lost: u64,
}

#[derive(Clone, PartialEq, Message)]
struct LetterImage {
    #[prost(uint32, tag = "1")]
    consumer: u32,
    #[prost(uint64, tag = "2")]
    n: u64,
    #[prost(uint32, tag = "3")]
    attempt: u32,
    #[prost(uint32, tag = "4")]
    code: u32,
    #[prost(string, tag = "5")]
    message: String,
    #[prost(uint64, tag = "6")]
    at_ms: u64,
}

impl DeadLetters {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            most: limits.dead_letters,
            all: BTreeMap::new(),
            order: VecDeque::new(),
            lost: 0,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &DeadLetter> {
        self.all.values()
    }

    pub(crate) fn get(&self, consumer: u32, n: u64) -> Option<&DeadLetter> {
        self.all.get(&(consumer, n))
    }

    /// How many went because there were too many.
    pub(crate) const fn lost(&self) -> u64 {
        self.lost
    }

    pub(super) fn enter(&mut self, record: &Dead) {
        self.insert(DeadLetter {
            consumer: record.consumer,
            n: record.n,
            attempt: record.attempt,
            code: record.code,
            message: record.message.clone(),
            at_ms: record.at_ms,
        });
        while self.all.len() > self.most
            && let Some(first) = self.order.pop_front()
        {
            self.lost += u64::from(self.all.remove(&first).is_some());
        }
    }

    fn insert(&mut self, letter: DeadLetter) {
        let key = (letter.consumer, letter.n);
        if self.all.insert(key, letter).is_none() {
            self.order.push_back(key);
        }
    }

    pub(super) fn remove(&mut self, consumer: u32, n: u64) {
        self.all.remove(&(consumer, n));
        self.tidy();
    }

    /// The letters of a consumer that is gone are nobody's.
    pub(super) fn forget(&mut self, consumer: u32) {
        self.all.retain(|(other, _), _| *other != consumer);
        self.tidy();
    }

    fn tidy(&mut self) {
        if self.order.len() > 2 * self.all.len() + 64 {
            let all = &self.all;
            self.order.retain(|key| all.contains_key(key));
        }
    }

    pub(super) fn save(&self) -> Image {
        let letters = self.order.iter().filter_map(|key| self.all.get(key));
        let all = letters.map(|letter| LetterImage {
            consumer: letter.consumer,
            n: letter.n,
            attempt: letter.attempt,
            code: letter.code,
            message: letter.message.clone(),
            at_ms: letter.at_ms,
        });
        Image {
            all: all.collect(),
            lost: self.lost,
        }
    }

    pub(super) fn load(image: Image, limits: &Limits) -> Self {
        let mut new = Self {
            lost: image.lost,
            ..Self::new(limits)
        };
        for letter in image.all {
            new.insert(DeadLetter {
                consumer: letter.consumer,
                n: letter.n,
                attempt: letter.attempt,
                code: letter.code,
                message: letter.message,
                at_ms: letter.at_ms,
            });
        }
        new
    }
}
