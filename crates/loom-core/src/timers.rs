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
    /// A consumer may read again where the log could not be read.
    Reread(ConsumerId),
    /// Acks have waited long enough for others.
    Acks(ConsumerId),
    /// A session has to have shown that its loop moves.
    Lapse(SessionId),
    /// That a group consumes, from where, is written again.
    Declare(ConsumerId, u64),
    /// States and memories that the log of this partition refused are tried again.
    Keep(u32),
}

impl Timer {
    /// Whether no session waits for it: the engine itself has to ring.
    fn is_own(self) -> bool {
        match self {
            Self::Probe(..)
            | Self::Again(..)
            | Self::Reread(_)
            | Self::Acks(_)
            | Self::Lapse(_)
            | Self::Declare(..)
            | Self::Keep(_) => true,
            Self::Call(_) | Self::Attempt(_) | Self::Park(..) | Self::Event(..) => false,
        }
    }
}

/// All deadlines of an engine.
#[derive(Default)]
pub(crate) struct Timers {
    /// Those that a session rings for.
    due: BTreeSet<(Nanos, Timer)>,
    /// Those of durable work and effects, which nobody rings for.
    own: BTreeSet<(Nanos, Timer)>,
}

impl Timers {
    fn set(&mut self, timer: Timer) -> &mut BTreeSet<(Nanos, Timer)> {
        if timer.is_own() {
            &mut self.own
        } else {
            &mut self.due
        }
    }

    pub(crate) fn add(&mut self, at: Nanos, timer: Timer) {
        self.set(timer).insert((at, timer));
    }

    pub(crate) fn remove(&mut self, at: Nanos, timer: Timer) {
        self.set(timer).remove(&(at, timer));
    }

    pub(crate) fn next(&self) -> Option<Nanos> {
        let first = |set: &BTreeSet<(Nanos, Timer)>| set.first().map(|(at, _)| *at);
        match (first(&self.due), first(&self.own)) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// When the first of durable work is due.
    pub(crate) fn next_own(&self) -> Option<Nanos> {
        self.own.first().map(|(at, _)| *at)
    }

    pub(crate) fn pop(&mut self, now: Nanos) -> Option<Timer> {
        let next = self.next()?;
        if next > now {
            return None;
        }
        let is_own = match (self.due.first(), self.own.first()) {
            (Some(due), Some(own)) => own < due,
            (due, _) => due.is_none(),
        };
        let set = if is_own { &mut self.own } else { &mut self.due };
        set.pop_first().map(|(_, timer)| timer)
    }

    pub(crate) fn len(&self) -> usize {
        self.due.len() + self.own.len()
    }
}
