//! What becomes due, in order of its deadline.

use std::collections::BTreeSet;

use crate::arena::{CallId, JobId, SessionId, SubId, Ticket};
use crate::consume::ConsumerId;
use crate::time::Nanos;

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A call or a request ends.
    Call(CallId),
    /// A call is tried again.
    Attempt(JobId),
    /// A probe has not answered, or is asked again: partition, effect.
    Probe(u32, u128),
    /// A parked offer has waited long enough; those due together go in the order they came.
    Park(u64, Ticket),
    /// A queued event is over: subscription, lane, number.
    Event(SubId, u32, u64),
    /// The event at this position may be given again.
    Again(ConsumerId, u64),
    /// Acks have waited long enough for others.
    Acks(ConsumerId),
    /// A session has to have shown that its loop moves.
    Lapse(SessionId),
    /// That a group consumes, from where, is written again.
    Declare(ConsumerId, u64),
}

/// All deadlines of an engine.
#[derive(Default)]
pub(crate) struct Timers {
    due: BTreeSet<(Nanos, Timer)>,
}

impl Timers {
    pub(crate) fn add(&mut self, at: Nanos, timer: Timer) {
        self.due.insert((at, timer));
    }

    pub(crate) fn remove(&mut self, at: Nanos, timer: Timer) {
        self.due.remove(&(at, timer));
    }

    pub(crate) fn next(&self) -> Option<Nanos> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(crate) fn pop(&mut self, now: Nanos) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        self.due.pop_first().map(|(_, timer)| timer)
    }

    pub(crate) fn len(&self) -> usize {
        self.due.len()
    }
}
