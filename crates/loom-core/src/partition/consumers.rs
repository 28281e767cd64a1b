//! Groups that consume, and how far each is: a floor, what is open below it, and what is done above it.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use crate::record::{Consumer, Progress, Started, Waits};
use crate::spec::limits as spec;

/// The start of a consumer that begins behind the record that says so.
pub(crate) const START_NOW: u64 = u64::MAX;

/// What is known of an event that is open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Begun {
    /// How often it was begun.
    pub attempt: u32,
    /// Not again before this, in milliseconds since 1970; 0: at once.
    pub until_ms: u64,
    /// The error that it waits after, by number; 0: none.
    pub code: u32,
    /// What the error said.
    pub message: String,
    /// The client that had it when it was begun last, and may come back for it; 0: none.
    pub client: u128,
}

/// What a client calls itself, as records have it; 0: nothing, or what is no such name.
fn read_client(bytes: &[u8]) -> u128 {
    bytes.try_into().map_or(0, u128::from_be_bytes)
}

/// The same to be written: nothing for who has no name.
pub(crate) fn show_client(client: u128) -> Vec<u8> {
    if client == 0 {
        return Vec::new();
    }
    client.to_be_bytes().to_vec()
}

/// One consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerState {
    /// Its number in this partition.
    pub consumer: u32,
    /// The group's name.
    pub group: String,
    /// What it hears.
    pub filters: Vec<String>,
    /// Everything before this is not for it.
    pub start: u64,
    /// Everything before this has been taken over.
    pub floor: u64,
    /// Taken over and not done, or begun above the floor.
    pub open: BTreeMap<u64, Begun>,
    /// Done, above the floor.
    pub acked: BTreeSet<u64>,
    /// When it was heard of last, by the clock of the log.
    pub seen_ms: u64,
}

impl ConsumerState {
    /// The lowest position from `oldest` on that it needs.
    pub fn needs(&self, oldest: u64) -> u64 {
        let floor = self.floor.max(oldest);
        let open = self.open.range(oldest..).next().map(|(n, _)| *n);
        open.map_or(floor, |open| open.min(floor))
    }

    fn is_done(&self, n: u64) -> bool {
        self.acked.contains(&n) || (n < self.floor && !self.open.contains_key(&n))
    }
}

/// All consumers of a partition.
#[derive(Debug, Clone, Default)]
pub(crate) struct Consumers {
    all: BTreeMap<u32, ConsumerState>,
    /// The number of the next one: none is used again.
    next: u32,
    /// Groups that were ended and have not come back: what they needed, and when they were ended.
    ended: BTreeMap<String, (u64, u64)>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Image {
    #[prost(uint32, tag = "1")]
    next: u32,
    #[prost(message, repeated, tag = "2")]
    all: Vec<OneImage>,
    #[prost(message, repeated, tag = "3")]
    ended: Vec<EndedImage>,
}

#[derive(Clone, PartialEq, Message)]
struct EndedImage {
    #[prost(string, tag = "1")]
    group: String,
    #[prost(uint64, tag = "2")]
    needed: u64,
    #[prost(uint64, tag = "3")]
    at_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct OneImage {
    #[prost(uint32, tag = "1")]
    consumer: u32,
    #[prost(string, tag = "2")]
    group: String,
    #[prost(string, repeated, tag = "3")]
    filters: Vec<String>,
    #[prost(uint64, tag = "4")]
    start: u64,
    #[prost(uint64, tag = "5")]
    floor: u64,
    #[prost(message, repeated, tag = "6")]
    open: Vec<BegunImage>,
    #[prost(uint64, repeated, tag = "7")]
    acked: Vec<u64>,
    #[prost(uint64, tag = "8")]
    seen_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct BegunImage {
    #[prost(uint64, tag = "1")]
    n: u64,
    #[prost(uint32, tag = "2")]
    attempt: u32,
    #[prost(uint64, tag = "3")]
    until_ms: u64,
    #[prost(uint32, tag = "4")]
    code: u32,
    #[prost(string, tag = "5")]
    message: String,
    #[prost(bytes = "vec", tag = "6")]
    client: Vec<u8>,
}

impl Consumers {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &ConsumerState> {
        self.all.values()
    }

    pub(crate) fn get(&self, consumer: u32) -> Option<&ConsumerState> {
        self.all.get(&consumer)
    }

    pub(crate) fn next(&self) -> u32 {
        self.next.max(1)
    }

    pub(super) fn enter(&mut self, at: u64, record: &Consumer, clock_ms: u64) {
        self.next = self.next().max(record.consumer.saturating_add(1));
        if let Some(known) = self.all.get_mut(&record.consumer) {
            known.filters.clone_from(&record.filters);
            known.seen_ms = clock_ms;
            return;
        }
        let start = if record.start == START_NOW {
            at
        } else {
            record.start
        };
        let new = ConsumerState {
            consumer: record.consumer,
            group: record.group.clone(),
            filters: record.filters.clone(),
            start,
            floor: start,
            open: BTreeMap::new(),
            acked: BTreeSet::new(),
            seen_ms: clock_ms,
        };
        self.ended.remove(&record.group);
        self.all.insert(record.consumer, new);
    }

    /// A group is ended. That is known until it comes back, or too many others were ended after it.
    pub(super) fn leave(&mut self, consumer: u32, clock_ms: u64) {
        let Some(gone) = self.all.remove(&consumer) else {
            return;
        };
        let needed = gone.needs(0);
        self.ended.insert(gone.group, (needed, clock_ms));
        if self.ended.len() > spec::CONSUMERS {
            let first = self.ended.iter().min_by_key(|(_, (_, at_ms))| *at_ms);
            if let Some(first) = first.map(|(group, _)| group.clone()) {
                self.ended.remove(&first);
            }
        }
    }

    pub(super) fn ended(&self, group: &str) -> Option<u64> {
        self.ended.get(group).map(|(needed, _)| *needed)
    }

    /// What is open at this position; none for what is done, and for a consumer that is gone.
    fn begun(&mut self, consumer: u32, n: u64) -> Option<&mut Begun> {
        let found = self.all.get_mut(&consumer)?;
        if found.is_done(n) {
            return None;
        }
        Some(found.open.entry(n).or_default())
    }

    pub(super) fn start(&mut self, record: &Started, clock_ms: u64) {
        if let Some(begun) = self.begun(record.consumer, record.n) {
            begun.attempt = begun.attempt.max(record.attempt);
            begun.until_ms = 0;
            begun.client = read_client(&record.client);
        }
        if let Some(found) = self.all.get_mut(&record.consumer) {
            found.seen_ms = clock_ms;
        }
    }

    pub(super) fn wait(&mut self, record: &Waits) {
        if let Some(begun) = self.begun(record.consumer, record.n) {
            *begun = Begun {
                attempt: begun.attempt.max(record.attempt),
                until_ms: record.until_ms,
                code: record.code,
                message: record.message.clone(),
                client: 0,
            };
        }
    }

    /// One event is done.
    pub(super) fn end(&mut self, consumer: u32, n: u64) {
        if let Some(found) = self.all.get_mut(&consumer) {
            found.open.remove(&n);
            if n >= found.floor {
                found.acked.insert(n);
            }
        }
    }

    pub(super) fn progress(&mut self, record: &Progress, clock_ms: u64) {
        let Some(found) = self.all.get_mut(&record.consumer) else {
            return;
        };
        found.seen_ms = clock_ms;
        let (old, new) = (found.floor, found.floor.max(record.floor));
        let listed: BTreeSet<u64> = record.open.iter().copied().collect();
        for n in &listed {
            // What was done in the meantime is not opened again.
            if *n >= old && !found.acked.contains(n) {
                found.open.entry(*n).or_default();
            }
        }
        found
            .open
            .retain(|n, _| *n < old || *n >= new || listed.contains(n));
        found.floor = new;
        for n in &record.acked {
            found.open.remove(n);
            found.acked.insert(*n);
        }
        found.acked = found.acked.split_off(&new);
    }

    pub(super) fn forget_attempts(&mut self) {
        for found in self.all.values_mut() {
            for begun in found.open.values_mut() {
                begun.attempt = 0;
            }
        }
    }

    pub(super) fn forget_clients(&mut self) {
        for found in self.all.values_mut() {
            for begun in found.open.values_mut() {
                begun.client = 0;
            }
        }
    }

    pub(super) fn save(&self) -> Image {
        let all = self.all.values().map(|it| OneImage {
            consumer: it.consumer,
            group: it.group.clone(),
            filters: it.filters.clone(),
            start: it.start,
            floor: it.floor,
            open: it
                .open
                .iter()
                .map(|(n, begun)| BegunImage {
                    n: *n,
                    attempt: begun.attempt,
                    until_ms: begun.until_ms,
                    code: begun.code,
                    message: begun.message.clone(),
                    client: show_client(begun.client),
                })
                .collect(),
            acked: it.acked.iter().copied().collect(),
            seen_ms: it.seen_ms,
        });
        let ended = self
            .ended
            .iter()
            .map(|(group, (needed, at_ms))| EndedImage {
                group: group.clone(),
                needed: *needed,
                at_ms: *at_ms,
            });
        Image {
            next: self.next,
            all: all.collect(),
            ended: ended.collect(),
        }
    }

    pub(super) fn load(image: Image) -> Self {
        let all = image.all.into_iter().map(|it| {
            let open = it.open.into_iter().map(|begun| {
                let known = Begun {
                    attempt: begun.attempt,
                    until_ms: begun.until_ms,
                    code: begun.code,
                    message: begun.message,
                    client: read_client(&begun.client),
                };
                (begun.n, known)
            });
            let state = ConsumerState {
                consumer: it.consumer,
                group: it.group,
                filters: it.filters,
                start: it.start,
                floor: it.floor,
                open: open.collect(),
                acked: it.acked.into_iter().collect(),
                seen_ms: it.seen_ms,
            };
            (state.consumer, state)
        });
        let ended = image.ended.into_iter();
        Self {
            next: image.next,
            all: all.collect(),
            ended: ended.map(|it| (it.group, (it.needed, it.at_ms))).collect(),
        }
    }
}
