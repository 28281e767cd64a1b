//! The log without a directory: the same answers, nothing outlives the process, and the oldest events go when it is full.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use loom_core::record::{Epoch, Outgoing, Record};
use loom_core::{Envelope, Position};

use crate::api::{Answer, Batch, Boot, Opened, ReadLimit, Recovered};
use crate::error::{LogError, Result};

/// The one life of what is in memory.
const EPOCH: u32 = 1;
/// What a record takes besides its body, about.
const OVERHEAD: u64 = 256;

/// Partitions in memory.
#[derive(Debug, Default)]
pub struct Memory {
    most_bytes: u64,
    partitions: Mutex<Partitions>,
}

#[derive(Debug, Default)]
struct Partitions {
    names: BTreeMap<String, u32>,
    kept: Vec<Kept>,
    bytes: u64,
}

#[derive(Debug)]
struct Kept {
    records: VecDeque<(u64, Record)>,
    next: u64,
    first: u64,
}

impl Memory {
    /// Keeps about this many bytes of all partitions together.
    pub fn new(most_bytes: u64) -> Self {
        Self {
            most_bytes,
            partitions: Mutex::default(),
        }
    }

    /// Opens the partition of a namespace, or gives back the one that is open. A new one begins as on a disk: with the
    /// record of its life, which `each` is given.
    pub fn partition(
        &self,
        namespace: &str,
        boot: &Boot,
        each: &mut dyn FnMut(Recovered<'_>),
    ) -> Opened {
        let mut all = self.lock();
        let new = u32::try_from(all.kept.len()).unwrap_or(u32::MAX - 1) + 1;
        let partition = *all.names.entry(namespace.to_owned()).or_insert(new);
        let mut told = None;
        if partition == new {
            let begun = Record::Epoch(Epoch {
                epoch: EPOCH,
                boot: Some(boot.id.into()),
                at_ms: boot.wall_ms,
                version: boot.version.clone(),
                torn_bytes: 0,
            });
            all.bytes += size(&begun);
            all.kept.push(Kept {
                records: VecDeque::from([(0, begun.clone())]),
                next: 1,
                first: 0,
            });
            told = Some(begun);
        }
        let kept = all.kept.get(partition as usize - 1);
        let opened = Opened {
            partition,
            epoch: EPOCH,
            end: at(partition, kept.map_or(0, |kept| kept.next - 1)),
            first: kept.map_or(0, |kept| kept.first),
            torn_bytes: 0,
            clean: true,
            damaged_snapshots: 0,
        };
        drop(all);
        if let Some(begun) = told {
            each(Recovered::Record(at(partition, 0), begun));
        }
        opened
    }

    /// Takes batches in; the answers are there at once.
    ///
    /// # Errors
    /// [`LogError::Unknown`] for a partition that is not open; then none of the batches is taken.
    pub fn append(&self, out: Vec<Outgoing>) -> Result<Vec<Answer>> {
        let mut all = self.lock();
        if let Some(foreign) = out.iter().find(|o| all.get(o.partition).is_err()) {
            return Err(unknown(foreign.partition));
        }
        let mut answers = Vec::with_capacity(out.len());
        for Outgoing {
            ticket,
            partition,
            batch,
            ..
        } in out
        {
            let first = all.take(partition, batch)?;
            if let Some(ticket) = ticket {
                let result = Ok(at(partition, first));
                answers.push(Answer { ticket, result });
            }
        }
        while all.bytes > self.most_bytes && all.drop_oldest() {}
        Ok(answers)
    }

    /// Reads from a position on.
    ///
    /// # Errors
    /// [`LogError::Expired`] for what is gone, [`LogError::Foreign`] for what is not there yet, [`LogError::Unknown`].
    pub fn read(&self, partition: u32, from: u64, most: ReadLimit) -> Result<Batch> {
        let mut all = self.lock();
        let kept = all.get(partition)?;
        if from < kept.first {
            let first = kept.first;
            return Err(LogError::Expired { n: from, first });
        }
        if from > kept.next {
            let end = kept.next - 1;
            return Err(LogError::Foreign { n: from, end });
        }
        let begin = kept.records.partition_point(|(n, _)| *n < from);
        let mut records = Vec::new();
        let mut bytes = 0;
        for (n, record) in kept.records.range(begin..) {
            if most.only.is_some_and(|kind| kind != record.kind()) {
                continue;
            }
            bytes += record.body().len();
            let full = records.len() >= most.records || bytes > most.bytes;
            if full && !records.is_empty() {
                return Ok(Batch {
                    records,
                    next: *n,
                    at_end: false,
                });
            }
            let position = at(partition, *n);
            records.push((position, placed(record, position)));
        }
        Ok(Batch {
            records,
            next: kept.next,
            at_end: true,
        })
    }

    /// Reads one record.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn get(&self, partition: u32, n: u64) -> Result<Option<(Position, Record)>> {
        let batch = self.read(partition, n, ReadLimit::ONE)?;
        let found = batch.records.into_iter().next();
        Ok(found.filter(|(position, _)| position.n == n))
    }

    /// Bytes kept.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Partitions> {
        // What a thread that died has left is whole: each step ends with the books in order.
        self.partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Partitions {
    fn get(&mut self, partition: u32) -> Result<&mut Kept> {
        let place = (partition as usize).wrapping_sub(1);
        self.kept.get_mut(place).ok_or_else(|| unknown(partition))
    }

    fn take(&mut self, partition: u32, batch: impl IntoIterator<Item = Record>) -> Result<u64> {
        let kept = self.get(partition)?;
        let first = kept.next;
        let mut bytes = 0;
        for record in batch {
            if is_read_again(&record) {
                bytes += size(&record);
                kept.records.push_back((kept.next, record));
            }
            kept.next += 1;
        }
        self.bytes += bytes;
        Ok(first)
    }

    /// Lets the oldest record of the partition go that holds the most of them.
    fn drop_oldest(&mut self) -> bool {
        let Some(kept) = self.kept.iter_mut().max_by_key(|kept| kept.records.len()) else {
            return false;
        };
        let Some((n, record)) = kept.records.pop_front() else {
            return false;
        };
        kept.first = n + 1;
        self.bytes = self.bytes.saturating_sub(size(&record));
        true
    }
}

/// What only a recovery would read is not kept: there will be none.
fn is_read_again(record: &Record) -> bool {
    !matches!(
        record,
        Record::Started(_) | Record::Progress(_) | Record::Waits(_)
    )
}

fn size(record: &Record) -> u64 {
    record.body().len() as u64 + OVERHEAD
}

fn at(partition: u32, n: u64) -> Position {
    Position {
        partition,
        epoch: EPOCH,
        n,
    }
}

fn placed(record: &Record, position: Position) -> Record {
    match record {
        Record::Event(env) => {
            let mut env = Envelope::clone(env);
            env.position = Some(position);
            Record::Event(Arc::new(env))
        }
        other => other.clone(),
    }
}

fn unknown(partition: u32) -> LogError {
    LogError::Unknown {
        name: format!("partition {partition}"),
    }
}
