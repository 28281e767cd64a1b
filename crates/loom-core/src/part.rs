//! An open partition: the log of one namespace as the core sees it.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::arena::Ticket;
use crate::core::Core;
use crate::envelope::{Envelope, Position};
use crate::error::{Code, Error, Result};
use crate::partition::Partition;
use crate::record::{Level, Record};
use crate::time::Moment;
use crate::topic::{Filter, check_name};

/// What the log says of a partition that it has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Its number.
    pub partition: u32,
    /// The life of it that begins.
    pub epoch: u32,
    /// The oldest position that is kept.
    pub oldest: u64,
    /// Whether it outlives the process: without a data directory it does not, and a turn need not wait for it.
    pub kept: bool,
}

/// How a namespace uses its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durability {
    /// Topics whose events are durable.
    pub filters: Vec<String>,
    /// The level that their publishers wait for, unless they say so themselves.
    pub ack: Level,
}

impl Default for Durability {
    fn default() -> Self {
        Self {
            filters: Vec::new(),
            ack: Level::Disk,
        }
    }
}

/// Events to read from the log: answered by [`Core::fed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// Names it.
    pub token: u64,
    /// Which log.
    pub partition: u32,
    /// The first position to look at.
    pub from: u64,
    /// How many events at most.
    pub most: usize,
}

/// What was read.
#[derive(Debug, Clone)]
pub struct Fed {
    /// Of the read.
    pub token: u64,
    /// The events found, in order.
    pub events: Vec<(Position, Arc<Envelope>)>,
    /// Where to go on: behind all that was looked at.
    pub next: u64,
    /// There was nothing behind that when it was read.
    pub at_end: bool,
}

/// The log of one namespace.
pub(crate) struct Part {
    #[expect(dead_code, reason = "dead letters will tell it")]
    pub(crate) namespace: Arc<str>,
    pub(crate) opened: Opened,
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
        how: &Durability,
    ) -> Result<()> {
        check_name("namespace", namespace, &self.limits)?;
        let known = self.part_index.contains_key(namespace);
        if known || self.parts.contains_key(&opened.partition) {
            let message = format!("the log of {namespace:?} is open already");
            return Err(Error::new(Code::Conflict, message).field("namespace"));
        }
        let filters = how.filters.iter();
        let filters: Result<Vec<Filter>> = filters
            .map(|text| Filter::parse(text, &self.limits))
            .collect();
        let namespace: Arc<str> = namespace.into();
        let part = Part {
            namespace: Arc::clone(&namespace),
            opened,
            filters: filters?,
            ack: how.ack,
            synced: folded.end(),
            folded,
            order: VecDeque::new(),
            flying: FxHashMap::default(),
        };
        self.parts.insert(opened.partition, part);
        self.part_index
            .insert(Arc::clone(&namespace), opened.partition);
        if let Some(space) = self.space_index.get(&namespace).copied()
            && let Some(space) = self.space_mut(space)
        {
            space.partition = Some(opened.partition);
            // What was matched before is looked at anew: its topics may be durable.
            space.version += 1;
        }
        Ok(())
    }

    /// The fold of an open partition.
    pub fn partition(&self, partition: u32) -> Option<&Partition> {
        self.parts.get(&partition).map(|part| &part.folded)
    }

    /// The number of a namespace's partition, if its log is open.
    pub fn partition_of(&self, namespace: &str) -> Option<u32> {
        self.part_index.get(namespace).copied()
    }

    /// The lowest position that a consumer, an open turn or a dead letter still needs; none: nothing is needed.
    pub fn needs(&self, partition: u32) -> Option<u64> {
        self.parts.get(&partition)?.folded.needs()
    }

    /// Says what the oldest kept position is, after retention.
    pub fn set_oldest(&mut self, partition: u32, oldest: u64) {
        if let Some(part) = self.parts.get_mut(&partition) {
            part.opened.oldest = part.opened.oldest.max(oldest);
        }
    }

    /// Whether events have to be read from a log.
    pub fn has_reads(&self) -> bool {
        !self.reads.is_empty()
    }

    /// What has to be read from the logs. The shell reads on a thread of its own and answers each by [`Self::fed`].
    pub fn take_reads(&mut self) -> Vec<Read> {
        std::mem::take(&mut self.reads)
    }

    /// Answers a read.
    pub fn fed(&mut self, fed: Fed, at: Moment) {
        drop(fed);
        self.flush(at);
    }

    /// Puts the state of an agent, or a value of the memory, into the log; nobody waits for it.
    ///
    /// # Errors
    /// `NOT_SUPPORTED` where no log is open; `INVALID_PARAMS` for any other record.
    pub fn keep(&mut self, namespace: &str, record: Record) -> Result<()> {
        if !matches!(record, Record::State(..) | Record::Memory(..)) {
            return Err(Error::invalid(
                "record",
                "only states and memories are kept so",
            ));
        }
        let partition = self.open_part(namespace)?;
        self.append(
            partition,
            Level::Os,
            smallvec::smallvec![record],
            crate::ticket::Then::Fold,
        );
        Ok(())
    }

    pub(crate) fn open_part(&self, namespace: &str) -> Result<u32> {
        self.partition_of(namespace).ok_or_else(|| {
            let message = format!("no log is open for {namespace:?}");
            Error::new(Code::NotSupported, message).hint("start with a data directory: --data DIR")
        })
    }
}
