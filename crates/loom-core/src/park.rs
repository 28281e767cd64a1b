//! Offers that wait for room: as a whole, in the order they came, at most `batched_wait`.

use crate::arena::{SessionId, SubId, Ticket};
use crate::bus::{Plan, Targets};
use crate::core::{Core, Todo, Wanted};
use crate::envelope::{Envelope, Qos};
use crate::error::{Error, Result};
use crate::notice::Notice;
use crate::ticket::Parked;
use crate::time::Moment;
use crate::timers::Timer;

impl Core {
    /// Lets an offer wait for room.
    pub(crate) fn park(&mut self, session: SessionId, plan: Plan, at: Moment) -> Result<Ticket> {
        let most = self.limits.parked_offers;
        if self.session(session)?.parked >= most {
            let message = format!("{most} offers of this session wait for room already");
            return Err(Error::exhausted("parked_offers", message)
                .hint("await each emit before the next")
                .retry_after(self.limits.retry_base_ms));
        }
        self.park_seq += 1;
        let seq = self.park_seq;
        let until = at.now.plus_millis(self.limits.batched_wait_ms);
        let call = plan.call;
        let ticket = self.enter_ticket(Parked {
            session,
            plan,
            seq,
            until,
            listed: Targets::new(),
            last: None,
        });
        self.timers.add(until, Timer::Park(seq, ticket));
        if let Some(found) = self.sessions.get_mut(session) {
            found.parked += 1;
        }
        if let Some(pending) = call.and_then(|call| self.calls.get_mut(call))
            && let Wanted::Request(asked) = &mut pending.wanted
        {
            asked.ticket = Some(ticket);
        }
        self.list(ticket);
        Ok(ticket)
    }

    /// Puts a parked offer into the lists of those it waits for; `false` if it waits for nobody.
    ///
    /// Each of many receivers that makes room asks for this: as long as the one that was found last still has none,
    /// nothing has changed, and nobody else is looked at.
    fn list(&mut self, ticket: Ticket) -> bool {
        let Some(waiting) = self.parked_offer(ticket) else {
            return false;
        };
        let (seq, env) = (waiting.seq, &waiting.plan.env);
        if waiting
            .last
            .is_some_and(|last| self.has_to_wait(last, seq, env))
        {
            return true;
        }
        let blocking = |target: &&SubId| self.has_to_wait(**target, seq, env);
        let blocking: Targets = waiting
            .plan
            .targets
            .iter()
            .filter(blocking)
            .copied()
            .collect();
        let last = blocking.last().copied();
        let mut new = Targets::new();
        for target in blocking {
            if let Some(sub) = self.subs.get_mut(target) {
                let place = sub.parked.partition_point(|(other, _)| *other < seq);
                if sub.parked.get(place).is_none_or(|(at, _)| *at != seq) {
                    sub.parked.insert(place, (seq, ticket));
                    new.push(target);
                }
            }
        }
        if let Some(waiting) = self.parked_offer_mut(ticket) {
            waiting.listed.extend(new);
            waiting.last = last;
        }
        last.is_some()
    }

    /// Whether the parked offer of this number cannot go to that subscription yet.
    fn has_to_wait(&self, target: SubId, seq: u64, env: &Envelope) -> bool {
        let Some(sub) = self.subs.get(target) else {
            return false;
        };
        if sub.is_deaf() || sub.class(env.qos) == Qos::Realtime {
            return false;
        }
        let behind = sub.parked.front().is_some_and(|(first, _)| *first < seq);
        // Who lags needs no room, but keeps the order of those that wait.
        behind || !(sub.lagging || sub.has_room(env, &self.limits))
    }

    /// Takes a parked offer out of the lists it stands in; those behind it may go now.
    pub(crate) fn unlist(&mut self, ticket: Ticket) {
        let Some(waiting) = self.parked_offer_mut(ticket) else {
            return;
        };
        let (seq, until) = (waiting.seq, waiting.until);
        let listed = std::mem::take(&mut waiting.listed);
        let session = waiting.session;
        self.timers.remove(until, Timer::Park(seq, ticket));
        for target in listed {
            let Some(sub) = self.subs.get_mut(target) else {
                continue;
            };
            let place = sub.parked.partition_point(|(other, _)| *other < seq);
            if sub.parked.get(place).is_some_and(|(at, _)| *at == seq) {
                sub.parked.remove(place);
            }
            if !sub.parked.is_empty() {
                self.todo.push_back(Todo::Unpark(target));
            }
        }
        if let Some(found) = self.sessions.get_mut(session) {
            found.parked -= 1;
        }
    }

    /// Takes back an offer that still waits for room. `false`: it has been answered, or is with the log.
    ///
    /// # Errors
    /// `FENCED` for an offer of another session.
    pub fn withdraw_offer(
        &mut self,
        session: SessionId,
        ticket: Ticket,
        at: Moment,
    ) -> Result<bool> {
        let Some(waiting) = self.parked_offer(ticket) else {
            return Ok(false);
        };
        if waiting.session != session {
            return Err(Error::fenced("this offer is of another session"));
        }
        self.unlist(ticket);
        self.leave_ticket(ticket);
        self.flush(at);
        Ok(true)
    }

    /// Lets the offers at the front of a subscription's list go while there is room.
    pub(crate) fn unpark(&mut self, id: SubId, at: Moment) {
        for _ in 0..self.limits.queue_items {
            let front = self
                .subs
                .get(id)
                .and_then(|sub| sub.parked.front().copied());
            let Some((_, ticket)) = front else { return };
            if !self.try_unpark(ticket, at) {
                return;
            }
        }
    }

    /// Lets a parked offer go if nothing stands in its way.
    pub(crate) fn try_unpark(&mut self, ticket: Ticket, at: Moment) -> bool {
        if self.parked_offer(ticket).is_none() || self.list(ticket) {
            return false;
        }
        self.let_go(ticket, at);
        true
    }

    fn let_go(&mut self, ticket: Ticket, at: Moment) {
        self.unlist(ticket);
        let Some(waiting) = self.leave_ticket(ticket) else {
            return;
        };
        if let Some(call) = waiting.plan.call {
            let Some(pending) = self.calls.get_mut(call) else {
                return;
            };
            if let Wanted::Request(asked) = &mut pending.wanted {
                asked.ticket = None;
            }
            self.apply(&waiting.plan, at);
            return;
        }
        let receipt = self.apply(&waiting.plan, at);
        self.notify(waiting.session, Notice::Accepted(ticket, receipt));
    }

    /// An offer has waited long enough: who is still full lags from now on, the others get it.
    pub(crate) fn park_is_due(&mut self, ticket: Ticket, at: Moment) {
        let Some(waiting) = self.parked_offer(ticket) else {
            return;
        };
        let targets = waiting.plan.targets.clone();
        let env = std::sync::Arc::clone(&waiting.plan.env);
        for target in targets {
            let Some(sub) = self.subs.get_mut(target) else {
                continue;
            };
            if !sub.is_deaf()
                && sub.class(env.qos) != Qos::Realtime
                && !sub.has_room(&env, &self.limits)
            {
                sub.lagging = true;
                self.todo.push_back(Todo::Unpark(target));
            }
        }
        self.let_go(ticket, at);
    }
}
