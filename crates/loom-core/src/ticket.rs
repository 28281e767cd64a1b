//! Decisions in two halves. What needs the log reserves its room, leaves as a record under a ticket, and shows
//! nowhere until the log has answered; answers are applied in the order the tickets were given out.

use std::sync::Arc;

use crate::arena::{SessionId, SubId, Ticket};
use crate::bus::{Plan, Targets};
use crate::core::Core;
use crate::envelope::{Envelope, Position, Qos};
use crate::error::{Error, Result};
use crate::notice::{Notice, Offer};
use crate::planted::Planted;
use crate::time::{Moment, Nanos};

/// An offer without an answer yet.
pub(crate) struct Waiting {
    pub(crate) session: SessionId,
    pub(crate) plan: Plan,
    pub(crate) stage: Stage,
}

pub(crate) enum Stage {
    /// Waits for room: its place among all parked ones, its end, whose lists it stands in, and which of these was
    /// the last that had no room.
    Parked {
        seq: u64,
        until: Nanos,
        listed: Targets,
        last: Option<SubId>,
    },
    /// With the log; the answer waits for those before it.
    Logging {
        answer: Option<std::result::Result<Position, Error>>,
    },
}

impl Waiting {
    pub(crate) fn is_parked_of(&self, session: SessionId) -> bool {
        self.session == session && matches!(self.stage, Stage::Parked { .. })
    }
}

impl Core {
    /// First half: reserves room in all targets and hands out the record.
    pub(crate) fn reserve(&mut self, session: SessionId, plan: Plan) -> Result<Offer> {
        for target in &plan.targets {
            let Some(sub) = self.subs.get(*target) else {
                continue;
            };
            if sub.class(plan.env.qos) != Qos::Realtime && !sub.admits(&plan.env, &self.limits) {
                let message = format!("the queue of {:?} is full", sub.name);
                return Err(Error::exhausted("queue_items", message)
                    .hint("send later")
                    .retry_after(self.limits.retry_base_ms));
            }
        }
        self.book(&plan, true);
        let record = Arc::clone(&plan.env);
        let stage = Stage::Logging { answer: None };
        let ticket = self.enter_ticket(Waiting {
            session,
            plan,
            stage,
        });
        self.log_order.push_back(ticket);
        Ok(Offer::Logging(ticket, record))
    }

    /// Keeps an offer that waits. Its lane stays with the members it was chosen for, as if it were queued there.
    pub(crate) fn enter_ticket(&mut self, waiting: Waiting) -> Ticket {
        for target in &waiting.plan.targets {
            if let Some(sub) = self.subs.get_mut(*target) {
                let lane = waiting.plan.env.lane().clone();
                *sub.awaited.entry(lane).or_default() += 1;
            }
        }
        self.tickets.insert(waiting)
    }

    pub(crate) fn leave_ticket(&mut self, ticket: Ticket) -> Option<Waiting> {
        let waiting = self.tickets.remove(ticket)?;
        for target in &waiting.plan.targets {
            if let Some(sub) = self.subs.get_mut(*target) {
                sub.forget_awaited(waiting.plan.env.lane());
            }
        }
        Some(waiting)
    }

    fn book(&mut self, plan: &Plan, reserve: bool) {
        let bytes = plan.env.size();
        for target in &plan.targets {
            if let Some(sub) = self.subs.get_mut(*target) {
                let (items, held) = sub.reserved;
                sub.reserved = if reserve {
                    (items + 1, held + bytes)
                } else {
                    (items - 1, held - bytes)
                };
            }
        }
    }

    /// Second half: the log has the record at this position.
    pub fn logged(&mut self, ticket: Ticket, position: Position, at: Moment) {
        self.answer(ticket, Ok(position), at);
    }

    /// Second half: the log does not have it.
    pub fn refused(&mut self, ticket: Ticket, error: Error, at: Moment) {
        self.answer(ticket, Err(error), at);
    }

    fn answer(&mut self, ticket: Ticket, given: std::result::Result<Position, Error>, at: Moment) {
        if let Some(waiting) = self.tickets.get_mut(ticket)
            && let Stage::Logging { answer } = &mut waiting.stage
        {
            *answer = Some(given);
        }
        if self.has(Planted::LogUnordered) {
            self.log_order.retain(|other| *other != ticket);
            self.settle(ticket, at);
        }
        while let Some(ticket) = self.log_order.front().copied() {
            let answered = self.tickets.get(ticket).is_none_or(Waiting::is_answered);
            if !answered {
                break;
            }
            self.log_order.pop_front();
            self.settle(ticket, at);
        }
        self.flush(at);
    }

    fn settle(&mut self, ticket: Ticket, at: Moment) {
        let Some(mut waiting) = self.leave_ticket(ticket) else {
            return;
        };
        self.book(&waiting.plan, false);
        let Stage::Logging {
            answer: Some(answer),
        } = waiting.stage
        else {
            return;
        };
        match answer {
            Ok(position) => {
                let mut env: Envelope = Arc::unwrap_or_clone(waiting.plan.env);
                env.position = Some(position);
                waiting.plan.env = Arc::new(env);
                let receipt = self.apply(&waiting.plan, at);
                self.notify(waiting.session, Notice::Accepted(ticket, receipt));
            }
            Err(error) => {
                for target in &waiting.plan.targets {
                    self.made_room(*target);
                }
                self.notify(waiting.session, Notice::Refused(ticket, error));
            }
        }
    }
}

impl Waiting {
    fn is_answered(&self) -> bool {
        matches!(self.stage, Stage::Logging { answer: Some(_) })
    }
}
