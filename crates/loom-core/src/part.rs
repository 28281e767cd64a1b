//! An open partition: the log of one namespace as the core sees it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::arena::{SubId, Ticket};
use crate::consume::Consuming;
use crate::core::Core;
use crate::error::{Code, Error, Result};
use crate::keeping::Unkept;
use crate::partition::{Partition, START_NOW};
use crate::planted::Planted;
use crate::record::Level;
use crate::recorder::{Recording, Track};
use crate::time::Moment;
use crate::topic::{Filter, check_name};

/// What the log says of a partition that it has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Its number.
    pub partition: u32,
    /// The life of it that begins.
    pub epoch: u32,
    /// The oldest position that is kept.
    pub oldest: u64,
    /// Whether it outlives the process: without a data directory it does not, and a turn need not wait for it.
    pub kept: bool,
    /// How its namespace uses it.
    pub how: Durability,
}

/// How a namespace uses its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durability {
    /// Topics whose events are durable.
    pub filters: Vec<String>,
    /// The level that their publishers wait for, unless they say so themselves.
    pub ack: Level,
    /// What is recorded in it.
    pub record: Recording,
}

impl Default for Durability {
    fn default() -> Self {
        Self {
            filters: Vec::new(),
            ack: Level::Disk,
            record: Recording::Off,
        }
    }
}

/// The log of one namespace.
pub(crate) struct Part {
    pub(crate) namespace: Arc<str>,
    pub(crate) opened: Opened,
    /// Until when turns that clients had begun before wait for them, by the wall.
    pub(crate) grace_ms: u64,
    pub(crate) filters: Vec<Filter>,
    pub(crate) ack: Level,
    /// What has been folded from its records.
    pub(crate) folded: Partition,
    /// Tickets that are with the log, in the order their answers are applied.
    pub(crate) order: VecDeque<Ticket>,
    /// Ids of publishes that are with the log: of what, under which ticket.
    pub(crate) flying: FxHashMap<u128, (u128, Ticket)>,
    /// Everything before this is on disk.
    pub(crate) synced: u64,
    pub(crate) consumers: BTreeMap<u32, Consuming>,
    /// The number of the next consumer.
    pub(crate) next_consumer: u32,
    /// Those that have a filter which no member hears now.
    pub(crate) uncovered: Vec<u32>,
    /// Dead events that went because there were too many, as far as that was told.
    pub(crate) letters_lost: u64,
    /// Dead events that are being published anew.
    pub(crate) redriving: BTreeSet<(u32, u64)>,
    /// States and memories that are on their way by themselves.
    pub(crate) unkept: Unkept,
    pub(crate) track: Track,
}

impl Core {
    /// Opens the log of a namespace, with what was folded from it.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for what is no namespace or filter; `CONFLICT` for one whose log is open.
    pub fn open_partition(
        &mut self,
        namespace: &str,
        opened: Opened,
        folded: Partition,
        at: Moment,
    ) -> Result<()> {
        check_name("namespace", namespace, &self.limits)?;
        let known = self.part_index.contains_key(namespace);
        if known || self.parts.contains_key(&opened.partition) {
            let message = format!("the log of {namespace:?} is open already");
            return Err(Error::new(Code::Conflict, message).field("namespace"));
        }
        let filters = opened.how.filters.iter();
        let filters: Result<Vec<Filter>> = filters
            .map(|text| Filter::parse(text, &self.limits))
            .collect();
        let namespace: Arc<str> = namespace.into();
        let folded = self.forget_some(folded);
        let grace_ms = at.wall_ms.saturating_add(self.limits.resume_grace_ms);
        let grace = (grace_ms, self.limits.resume_grace_ms);
        let mut consumers = BTreeMap::new();
        for state in folded.consumers() {
            let heard = state.filters.iter();
            let heard: Result<Vec<Filter>> = heard
                .map(|text| Filter::parse(text, &self.limits))
                .collect();
            consumers.insert(state.consumer, Consuming::again(state, heard?, grace));
        }
        let partition = opened.partition;
        let record = opened.how.record;
        let part = Part {
            consumers,
            next_consumer: folded.next_consumer(),
            uncovered: Vec::new(),
            letters_lost: folded.letters().lost(),
            redriving: BTreeSet::new(),
            namespace: Arc::clone(&namespace),
            ack: opened.how.ack,
            opened,
            grace_ms,
            filters: filters?,
            synced: folded.end(),
            folded,
            order: VecDeque::new(),
            flying: FxHashMap::default(),
            unkept: Unkept::default(),
            track: Track::new(record),
        };
        self.parts.insert(partition, part);
        self.begin_recording(record);
        self.part_index.insert(Arc::clone(&namespace), partition);
        if let Some(space) = self.space_index.get(&namespace).copied()
            && let Some(space) = self.space_mut(space)
        {
            space.partition = Some(partition);
            // What was matched before is looked at anew: its topics may be durable.
            space.version += 1;
            self.enlist_all(partition, at);
        }
        self.settle_orphans(partition);
        Ok(())
    }

    /// Agents that were there before the log become members of their groups' consumers.
    fn enlist_all(&mut self, partition: u32, at: Moment) {
        let space = self.space_of(partition);
        let members = self.subs.iter();
        let members = members.filter(|(_, sub)| Some(sub.space) == space && !sub.is_stream());
        let members: Vec<SubId> = members.map(|(id, _)| id).collect();
        for member in members {
            self.enlist(member, START_NOW, 0, at);
        }
        self.flush(at);
    }

    /// What a planted bug forgets at a restart.
    fn forget_some(&self, mut folded: Partition) -> Partition {
        if self.has(Planted::IdsForgotten) {
            folded.forget_ids();
        }
        if self.has(Planted::AttemptsForgotten) {
            folded.forget_attempts();
        }
        if self.has(Planted::ClientsForgotten) {
            folded.forget_clients();
        }
        if self.has(Planted::KeptForgotten) {
            folded.forget_kept();
        }
        folded
    }

    /// The fold of an open partition.
    pub fn partition(&self, partition: u32) -> Option<&Partition> {
        self.parts.get(&partition).map(|part| &part.folded)
    }

    /// The number of a namespace's partition, if its log is open.
    pub fn partition_of(&self, namespace: &str) -> Option<u32> {
        self.part_index.get(namespace).copied()
    }

    /// Says what the oldest kept position is, after retention.
    pub fn set_oldest(&mut self, partition: u32, oldest: u64) {
        if let Some(part) = self.parts.get_mut(&partition) {
            part.opened.oldest = part.opened.oldest.max(oldest);
        }
    }

    pub(crate) fn open_part(&self, namespace: &str) -> Result<u32> {
        self.partition_of(namespace).ok_or_else(|| {
            let message = format!("no log is open for {namespace:?}");
            Error::new(Code::NotSupported, message).hint("start with a data directory: --data DIR")
        })
    }
}
