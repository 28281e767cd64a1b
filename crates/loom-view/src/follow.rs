//! Bringing the view up to date with its log, portion by portion.

use loom_core::{Code, Position, Record};
use loom_log::Batch;

use crate::{Reached, Result, View, mark};

/// What is read: a log, up to its durable mark.
pub trait Source {
    /// The oldest position that it still has.
    ///
    /// # Errors
    /// What the log says.
    fn first(&mut self) -> Result<u64>;

    /// The next records from a position on, a bounded number of them; without one, from the oldest on.
    ///
    /// # Errors
    /// What the log says: where it is damaged, and how.
    fn read(&mut self, from: Option<u64>) -> Result<Batch>;

    /// One record; none where nothing stands at that position.
    ///
    /// # Errors
    /// What the log says.
    fn get(&mut self, n: u64) -> Result<Option<(Position, Record)>>;
}

/// A view that follows its log.
#[derive(Debug)]
pub struct Follower<S> {
    view: View,
    source: S,
    is_checked: bool,
}

/// What one step of a follower did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Portion {
    /// How many records it took over.
    pub records: usize,
    /// There was no more.
    pub at_end: bool,
}

impl<S: Source> Follower<S> {
    /// Follows a log.
    pub fn new(view: View, source: S) -> Self {
        Self {
            view,
            source,
            is_checked: false,
        }
    }

    /// How far the view has come.
    pub fn reached(&self) -> Option<Reached> {
        self.view.reached()
    }

    /// Takes over the next portion. What was built from another log is built anew first.
    ///
    /// # Errors
    /// What the log or the file says; what was taken over before stays.
    pub fn step(&mut self) -> Result<Portion> {
        if !self.is_checked {
            self.check()?;
            self.is_checked = true;
        }
        let from = self.view.reached().map(|reached| reached.next);
        let batch = self.source.read(from)?;
        let taken = self.view.add(&batch.records, batch.next)?;
        Ok(Portion {
            records: if taken { batch.records.len() } else { 0 },
            at_end: taken && batch.at_end,
        })
    }

    /// Clears a view whose last record is not, or not provably, one of this log, and forgets what the log has no more.
    fn check(&mut self) -> Result<()> {
        let Some(reached) = self.view.reached() else {
            return Ok(());
        };
        let found = match self.source.get(reached.last.n) {
            Err(error) if matches!(error.code, Code::InvalidCursor | Code::CursorExpired) => None,
            other => other?,
        };
        if found.is_none_or(|(at, record)| at != reached.last || mark(&record) != reached.mark) {
            return self.view.clear();
        }
        match self.source.first() {
            Ok(first) => self.view.forget_before(first),
            // Somewhere behind it is damaged: who reads on is told of that.
            Err(_) => Ok(()),
        }
    }
}
