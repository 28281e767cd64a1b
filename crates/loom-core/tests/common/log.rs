//! A log in memory that answers when it is told to, and from which a new life begins.
#![expect(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::sync::Arc;

use loom_core::{
    Code, Core, Durability, Envelope, Error, Fed, Level, Limits, Moment, Opened, Outgoing,
    Partition, Position, Record,
};

use super::World;

pub(crate) struct Log {
    pub(crate) records: BTreeMap<u64, Record>,
    pub(crate) next: u64,
    /// What stands before this is deleted: it cannot be read.
    pub(crate) oldest: u64,
    pub(crate) epoch: u32,
    pub(crate) kept: bool,
    /// Records that were taken and not answered.
    pub(crate) waiting: Vec<Outgoing>,
}

impl Log {
    /// A world whose topics under `d.` are durable, and its log.
    pub(crate) fn world(limits: Limits) -> (World, Self) {
        let mut log = Self {
            records: BTreeMap::new(),
            next: 1,
            oldest: 0,
            epoch: 0,
            kept: true,
            waiting: Vec::new(),
        };
        let mut w = World::with(limits);
        log.open(&mut w.core, w.at);
        (w, log)
    }

    /// A new life from what was written: whatever was not is gone.
    pub(crate) fn restart(&mut self, w: &mut World) {
        self.waiting.clear();
        let limits = w.core.limits().clone();
        let seed = u64::from(self.epoch) + 77;
        let old = std::mem::replace(&mut w.core, Core::new(limits, seed));
        drop(old);
        w.forget_sessions();
        self.open(&mut w.core, w.at);
    }

    fn open(&mut self, core: &mut Core, at: Moment) {
        self.epoch += 1;
        let epoch = Record::Epoch(loom_core::record::Epoch {
            epoch: self.epoch,
            at_ms: at.wall_ms,
            ..Default::default()
        });
        self.records.insert(self.next, epoch);
        self.next += 1;
        let opened = Opened {
            partition: 1,
            epoch: self.epoch,
            oldest: self.oldest,
            kept: self.kept,
            how: Durability {
                filters: vec!["d.>".to_owned()],
                ..Durability::default()
            },
        };
        let folded = self.fold(core.limits());
        core.open_partition("default", opened, folded, at).unwrap();
    }

    /// The fold of all that was written.
    pub(crate) fn fold(&self, limits: &Limits) -> Partition {
        let mut folded = Partition::new(limits);
        for (n, record) in &self.records {
            folded.apply(self.position(*n), record);
        }
        folded
    }

    pub(crate) fn position(&self, n: u64) -> Position {
        Position {
            partition: 1,
            epoch: self.epoch,
            n,
        }
    }

    /// Takes what the core has left, without an answer.
    pub(crate) fn collect(&mut self, w: &mut World) -> usize {
        self.waiting.extend(w.core.take_records());
        self.waiting.len()
    }

    /// Writes and answers the records that were taken, up to the first `most`.
    pub(crate) fn answer(&mut self, w: &mut World, most: usize) {
        let count = most.min(self.waiting.len());
        for out in self.waiting.drain(..count).collect::<Vec<_>>() {
            let first = self.position(self.next);
            for record in out.batch {
                self.records.insert(self.next, record);
                self.next += 1;
            }
            if let Some(ticket) = out.ticket {
                w.core.logged(ticket, first, w.at);
            }
        }
    }

    /// Refuses all that were taken.
    pub(crate) fn refuse(&mut self, w: &mut World) {
        for out in std::mem::take(&mut self.waiting) {
            if let Some(ticket) = out.ticket {
                w.core.refused(ticket, full(), w.at);
            }
        }
    }

    /// Answers reads from what was written.
    pub(crate) fn feed(&mut self, w: &mut World) -> usize {
        let reads = w.core.take_reads();
        for read in &reads {
            if read.from < self.oldest {
                w.core.unread(*read, &gone(), Some(self.oldest), w.at);
                continue;
            }
            let mut events: Vec<(Position, Arc<Envelope>)> = Vec::new();
            let mut next = read.from;
            for (n, record) in self.records.range(read.from..) {
                next = n + 1;
                if let Record::Event(env) = record {
                    events.push((self.position(*n), Arc::clone(env)));
                }
                if events.len() == read.most {
                    break;
                }
            }
            let fed = Fed {
                token: read.token,
                events,
                next,
                at_end: next >= self.next,
            };
            w.core.fed(fed, w.at);
        }
        reads.len()
    }

    /// Answers everything until nothing is left.
    pub(crate) fn serve(&mut self, w: &mut World) {
        for _ in 0..10_000 {
            self.collect(w);
            let waiting = self.waiting.len();
            self.answer(w, usize::MAX);
            if waiting + self.feed(w) == 0 {
                w.core.tick(w.at);
                if !w.core.has_records() && !w.core.has_reads() {
                    return self.check(w);
                }
            }
        }
        panic!("the log never rests");
    }

    /// What the core folded is what a replay folds.
    pub(crate) fn check(&self, w: &World) {
        w.check();
        let live = w.core.partition(1).unwrap();
        let again = self.fold(w.core.limits());
        assert_eq!(
            live.consumers().collect::<Vec<_>>(),
            again.consumers().collect::<Vec<_>>()
        );
        assert!(live.hash() == again.hash() || live.end() < again.end());
    }

    /// The records of a kind, in order.
    pub(crate) fn of<T>(&self, read: impl Fn(&Record) -> Option<T>) -> Vec<T> {
        self.records.values().filter_map(read).collect()
    }
}

pub(crate) fn full() -> Error {
    Error {
        code: Code::Exhausted,
        message: "the disk is full".to_owned(),
        field: Some("data".to_owned()),
        limit: None,
        hint: None,
        retry_after_ms: None,
    }
}

fn gone() -> Error {
    Error {
        code: Code::CursorExpired,
        message: "it is deleted".to_owned(),
        field: None,
        limit: None,
        hint: None,
        retry_after_ms: None,
    }
}

/// Whether a level is one that is waited for.
pub(crate) fn is_waited(level: Level) -> bool {
    level > Level::Accepted
}
