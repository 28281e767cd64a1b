//! Decisions in two halves. What needs the log leaves as records under a ticket, and shows nowhere until the log has
//! answered; in each partition, answers are applied in the order the tickets were given out.

use smallvec::SmallVec;

use crate::ack::Dying;
use crate::arena::{LeaseId, SessionId, SubId, Ticket};
use crate::bus::{Plan, Targets};
use crate::consume::ConsumerId;
use crate::core::Core;
use crate::durable::Publishing;
use crate::effect::Awaited;
use crate::envelope::Position;
use crate::error::{Error, Result};
use crate::notice::{Notice, Receipt};
use crate::planted::Planted;
use crate::record::{ClockJump, Level, Outgoing, Record};
use crate::redrive::Redrive;
use crate::time::{Moment, Nanos};

/// What has a ticket and no answer yet.
pub(crate) enum Waiting {
    /// An offer that waits for room.
    Parked(Parked),
    /// Records that are with the log.
    Logging(Box<Logging>),
    /// A publish whose id is with the log already: it is answered with that one.
    Second,
}

/// An offer that waits for room.
pub(crate) struct Parked {
    pub(crate) session: SessionId,
    pub(crate) plan: Plan,
    /// Its place among all of them.
    pub(crate) seq: u64,
    pub(crate) until: Nanos,
    /// Whose lists it stands in.
    pub(crate) listed: Targets,
    /// Which of these was the last that had no room.
    pub(crate) last: Option<SubId>,
}

/// Records that are with the log; the answer waits for those before it.
pub(crate) struct Logging {
    partition: u32,
    batch: SmallVec<[Record; 1]>,
    then: Then,
    answer: Option<Result<Position>>,
}

/// What follows when the log has answered.
pub(crate) enum Then {
    /// Nothing but the fold.
    Fold,
    /// A state or a value of the memory is kept.
    Keep,
    /// Everything before it is synced, and a publish that waited for that is answered.
    Synced(SessionId, Box<Receipt>),
    /// An event goes to those who hear it, and its publisher hears of it.
    Publish(Box<Publishing>),
    /// A durable turn may be handed out.
    Hand(LeaseId),
    /// A group consumes, or hears something else; it was to start there.
    Born(ConsumerId, u64),
    /// How far it is was written.
    Noted(ConsumerId),
    /// It is gone.
    Gone(ConsumerId),
    /// An event is given up.
    Died(Box<Dying>),
    /// A dead event is published anew.
    Redriven(Box<Redrive>),
    /// What was told of an effect is there.
    Effect(Awaited),
}

/// A record that is there to be synced, with all before it: the clock goes on from where it was.
pub(crate) fn mark(at: Moment) -> Record {
    Record::ClockJump(ClockJump {
        from_ms: at.wall_ms,
        to_ms: at.wall_ms,
    })
}

impl Then {
    /// Whether it may be done before what stands ahead of it in the log has reached its own level.
    const fn is_early(&self) -> bool {
        matches!(self, Self::Hand(_) | Self::Effect(Awaited::Intent(_)))
    }
}

impl Core {
    /// First half: records that go to the log together, and what follows when they are there.
    pub(crate) fn append(
        &mut self,
        partition: u32,
        level: Level,
        batch: SmallVec<[Record; 1]>,
        then: Then,
    ) -> Ticket {
        let logging = Logging {
            partition,
            batch: batch.clone(),
            then,
            answer: None,
        };
        let ticket = self.tickets.insert(Waiting::Logging(Box::new(logging)));
        self.leave_batch(ticket, (partition, level), batch);
        ticket
    }

    /// A publish that waits with another goes to the log for itself: all before it is to be synced.
    pub(crate) fn sync_second(
        &mut self,
        partition: u32,
        (session, ticket): (SessionId, Ticket),
        mut receipt: Receipt,
        at: Moment,
    ) {
        let level = Level::Disk;
        receipt.level = level;
        let batch: SmallVec<[Record; 1]> = SmallVec::from_buf([mark(at)]);
        let logging = Logging {
            partition,
            batch: batch.clone(),
            then: Then::Synced(session, Box::new(receipt)),
            answer: None,
        };
        if let Some(waiting) = self.tickets.get_mut(ticket) {
            *waiting = Waiting::Logging(Box::new(logging));
            self.leave_batch(ticket, (partition, level), batch);
        }
    }

    fn leave_batch(
        &mut self,
        ticket: Ticket,
        (partition, level): (u32, Level),
        batch: SmallVec<[Record; 1]>,
    ) {
        if let Some(part) = self.parts.get_mut(&partition) {
            part.order.push_back(ticket);
        }
        self.outbox.push(Outgoing {
            ticket: Some(ticket),
            partition,
            level,
            batch,
        });
    }

    /// Leaves a record that nobody waits for and that no fold knows.
    pub(crate) fn leave_record(&mut self, partition: u32, record: Record) {
        self.outbox.push(Outgoing {
            ticket: None,
            partition,
            level: Level::Accepted,
            batch: SmallVec::from_buf([record]),
        });
    }

    /// Whether a step has left records for the log.
    pub fn has_records(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The records that the steps so far have left, in the order they must reach the log: the shell appends them before
    /// it lets go of the core, and answers those with a ticket by [`Self::logged`] or [`Self::refused`].
    pub fn take_records(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outbox)
    }

    /// The parked offer of this ticket.
    pub(crate) fn parked_offer(&self, ticket: Ticket) -> Option<&Parked> {
        match self.tickets.get(ticket) {
            Some(Waiting::Parked(parked)) => Some(parked),
            _ => None,
        }
    }

    pub(crate) fn parked_offer_mut(&mut self, ticket: Ticket) -> Option<&mut Parked> {
        match self.tickets.get_mut(ticket) {
            Some(Waiting::Parked(parked)) => Some(parked),
            _ => None,
        }
    }

    /// Keeps an offer that waits. Its lane stays with the members it was chosen for, as if it were queued there.
    pub(crate) fn enter_ticket(&mut self, parked: Parked) -> Ticket {
        for target in &parked.plan.targets {
            if let Some(sub) = self.subs.get_mut(*target) {
                let lane = parked.plan.env.lane().clone();
                *sub.awaited.entry(lane).or_default() += 1;
            }
        }
        self.tickets.insert(Waiting::Parked(parked))
    }

    pub(crate) fn leave_ticket(&mut self, ticket: Ticket) -> Option<Parked> {
        self.parked_offer(ticket)?;
        let Some(Waiting::Parked(parked)) = self.tickets.remove(ticket) else {
            return None;
        };
        for target in &parked.plan.targets {
            if let Some(sub) = self.subs.get_mut(*target) {
                sub.forget_awaited(parked.plan.env.lane());
            }
        }
        Some(parked)
    }

    /// Second half: the log has the batch, its first record at this position.
    pub fn logged(&mut self, ticket: Ticket, position: Position, at: Moment) {
        self.answer(ticket, Ok(position), at);
    }

    /// Second half: the log does not have it.
    pub fn refused(&mut self, ticket: Ticket, error: Error, at: Moment) {
        self.answer(ticket, Err(error), at);
    }

    /// The publish that is with the log under this ticket.
    pub(crate) fn publishing(&mut self, ticket: Ticket) -> Option<&mut Publishing> {
        let Some(Waiting::Logging(logging)) = self.tickets.get_mut(ticket) else {
            return None;
        };
        match &mut logging.then {
            Then::Publish(publishing) => Some(publishing),
            _ => None,
        }
    }

    /// What is to be kept under this ticket.
    pub(crate) fn kept_by(&self, ticket: Ticket) -> Option<&Record> {
        match self.tickets.get(ticket) {
            Some(Waiting::Logging(logging)) => logging.batch.first(),
            _ => None,
        }
    }

    fn answer(&mut self, ticket: Ticket, given: Result<Position>, at: Moment) {
        let Some(Waiting::Logging(logging)) = self.tickets.get_mut(ticket) else {
            return;
        };
        let partition = logging.partition;
        if given.is_ok() && logging.then.is_early() {
            let then = std::mem::replace(&mut logging.then, Then::Fold);
            logging.answer = Some(given);
            self.follow(then, partition, None, at);
        } else {
            logging.answer = Some(given);
        }
        if self.has(Planted::LogUnordered) {
            if let Some(part) = self.parts.get_mut(&partition) {
                part.order.retain(|other| *other != ticket);
            }
            self.settle(ticket, at);
        }
        while let Some(ticket) = self.next_answered(partition) {
            self.settle(ticket, at);
        }
        self.flush(at);
    }

    /// The ticket that stands first, if it is answered.
    fn next_answered(&mut self, partition: u32) -> Option<Ticket> {
        let first = *self.parts.get(&partition)?.order.front()?;
        let answered = match self.tickets.get(first) {
            Some(Waiting::Logging(logging)) => logging.answer.is_some(),
            _ => true,
        };
        if !answered {
            return None;
        }
        self.parts.get_mut(&partition)?.order.pop_front()
    }

    fn settle(&mut self, ticket: Ticket, at: Moment) {
        let Some(Waiting::Logging(logging)) = self.tickets.remove(ticket) else {
            return;
        };
        let Logging {
            partition,
            batch,
            then,
            answer,
        } = *logging;
        match answer {
            Some(Ok(first)) => {
                if let Some(part) = self.parts.get_mut(&partition) {
                    for (n, record) in (first.n..).zip(&batch) {
                        part.folded.apply(Position { n, ..first }, record);
                    }
                }
                if let Then::Keep = then {
                    self.kept(partition, ticket, &batch);
                }
                drop(batch);
                self.follow(then, partition, Some((ticket, first)), at);
            }
            Some(Err(error)) => match then {
                Then::Keep => self.not_kept((partition, ticket), batch, at),
                then => self.undo(then, (partition, ticket), &error, at),
            },
            None => {}
        }
    }

    /// What follows from records that are in the log.
    fn follow(
        &mut self,
        then: Then,
        partition: u32,
        placed: Option<(Ticket, Position)>,
        at: Moment,
    ) {
        match (then, placed) {
            (Then::Publish(publishing), Some((ticket, position))) => {
                self.published(*publishing, partition, (ticket, position), at);
            }
            (Then::Redriven(redrive), Some((_, first))) => self.redriven(*redrive, first, at),
            (Then::Hand(lease), _) => self.hand(lease, at),
            (Then::Born(consumer, _), _) => self.is_born(consumer, at),
            (Then::Noted(consumer), _) => self.noted(consumer, false, at),
            (Then::Gone(consumer), _) => self.gone(consumer),
            (Then::Died(dying), _) => self.died(&dying),
            (Then::Effect(awaited), placed) => self.effect_logged(awaited, placed, at),
            (Then::Synced(session, receipt), Some((ticket, position))) => {
                self.synced(partition, position.n + 1);
                self.notify(session, Notice::Accepted(ticket, *receipt));
            }
            (
                Then::Fold | Then::Keep | Then::Publish(_) | Then::Redriven(_) | Then::Synced(..),
                _,
            ) => {}
        }
    }

    /// What follows from records that the log refused.
    fn undo(&mut self, then: Then, refused: (u32, Ticket), error: &Error, at: Moment) {
        match then {
            Then::Publish(publishing) => self.unpublished(*publishing, refused, error),
            Then::Redriven(redrive) => self.not_redriven(&redrive, error),
            Then::Hand(lease) => self.unclaim(lease, at),
            Then::Born(consumer, start) => self.not_born(consumer, start, at),
            Then::Noted(consumer) => self.noted(consumer, true, at),
            Then::Gone(consumer) => self.not_gone(consumer),
            Then::Died(dying) => self.undied(&dying, at),
            Then::Effect(awaited) => self.effect_refused(awaited, refused.1, error, at),
            Then::Synced(session, _) => {
                self.notify(session, Notice::Refused(refused.1, error.clone()));
            }
            Then::Fold | Then::Keep => {}
        }
    }
}
