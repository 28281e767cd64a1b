//! Turns: taking the next one, and ending one well or with an error.

use std::sync::Arc;

use crate::arena::{Handle, LeaseId, SessionId, SubId};
use crate::core::{Core, Holding, Kind, Lease};
use crate::envelope::Envelope;
use crate::error::{Code, Detail, Error, Result};
use crate::input::Fault;
use crate::job::Answer;
use crate::lane::{As, Item};
use crate::notice::Delivery;
use crate::planted::Planted;
use crate::report::Subject;
use crate::subscription::Subscription;
use crate::time::Moment;

impl Core {
    /// Ends lease `done` well, if one is given, and gives the next work of a handle.
    ///
    /// Without work, the handle is armed: one [`crate::Notice::Ready`] comes when there is some. A lease that has ended
    /// already is no mistake here.
    ///
    /// # Errors
    /// `FENCED` for a handle or a lease of another session; `INVALID_PARAMS` for a handle that delivers nothing.
    pub fn take(
        &mut self,
        session: SessionId,
        handle: Handle,
        done: Option<LeaseId>,
        at: Moment,
    ) -> Result<Option<Delivery>> {
        let kind = match self.registration(session, handle) {
            Ok(found) => found.kind,
            // The last turn of a removed agent ends with its handle; what is done is done.
            Err(_) if done.is_some() && self.handles.is_past(handle) => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Some(lease) = done {
            self.see(at);
            self.finish(session, lease, kind, at)?;
        }
        let delivery = match kind {
            Kind::Subscription(sub) => self.take_turn(sub, at),
            Kind::Provider(provider) => self.take_job(provider, at),
            Kind::Root => {
                return Err(Error::invalid(
                    "handle",
                    "the root of a session delivers nothing",
                ));
            }
        };
        self.flush(at);
        Ok(delivery)
    }

    /// Gives the next work of a handle to a session that runs it elsewhere, with the number of its lane: more of a lane than
    /// it has ended, in order, as long as none of that is durable; it runs one turn of a lane after the other. The lane is
    /// this member's as long as anything of it is queued or out. Each lease is ended by [`Self::done`], [`Self::fail`] or
    /// the session's end. Without work, the handle is armed as by [`Self::take`].
    ///
    /// A handle that was taken ahead once is from then on.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_ahead(
        &mut self,
        session: SessionId,
        handle: Handle,
        at: Moment,
    ) -> Result<Option<(Delivery, u32)>> {
        if let Kind::Subscription(sub) = self.registration(session, handle)?.kind {
            let most = u32::try_from(self.limits.ahead_items).unwrap_or(u32::MAX);
            let of_lane = u32::try_from(self.limits.lane_ahead).unwrap_or(u32::MAX);
            if let Some(found) = self.subs.get_mut(sub).filter(|it| it.ahead.is_none()) {
                found.ahead = Some(most);
                // All of a stream is one lane.
                let of_lane = if found.is_stream() { most } else { of_lane };
                found.lanes.run_ahead(of_lane);
            }
        }
        let Some(delivery) = self.take(session, handle, None, at)? else {
            return Ok(None);
        };
        let lease = delivery.lease.and_then(|lease| self.leases.get(lease));
        let lane = lease.map_or(0, |lease| match lease.holding {
            Holding::Turn { lane, .. } => lane,
            Holding::Work { .. } => 0,
        });
        Ok(Some((delivery, lane)))
    }

    /// Ends a lease well. One that has ended already is no mistake.
    ///
    /// # Errors
    /// `FENCED` for a lease of another session.
    pub fn done(&mut self, session: SessionId, lease: LeaseId, at: Moment) -> Result<()> {
        self.see(at);
        self.finish(session, lease, Kind::Root, at)?;
        self.flush(at);
        Ok(())
    }

    /// How many turns of an agent have gone well so far.
    ///
    /// # Errors
    /// `FENCED` for a handle of another session; `INVALID_PARAMS` for one that is no agent.
    pub fn turns_done(&self, session: SessionId, handle: Handle) -> Result<u64> {
        let Kind::Subscription(sub) = self.registration(session, handle)?.kind else {
            return Err(Error::invalid("handle", "only an agent has turns"));
        };
        let total = self.subs.get(sub).map(|sub| sub.books.total());
        Ok(total.map_or(0, |total| total.delivered - total.failed))
    }

    /// Ends a lease well. The handle whose work is taken next needs no announcement of it.
    fn finish(&mut self, session: SessionId, id: LeaseId, taker: Kind, at: Moment) -> Result<()> {
        let Some(lease) = self.leases.get(id) else {
            if self.leases.is_past(id) {
                return Ok(());
            }
            self.totals.foreign(false);
            return Err(Error::fenced("there is no such lease"));
        };
        if lease.session != session && !self.has(Planted::ForeignLease) {
            let request = matches!(lease.holding, Holding::Turn { .. });
            self.totals.foreign(request);
            return Err(Error::fenced("this lease is of another session"));
        }
        let holding = lease.holding;
        match holding {
            Holding::Turn { sub, lane } => {
                let Some(lease) = self.leases.remove(id) else {
                    return Ok(());
                };
                if lease.durable.is_some() {
                    self.settle_turn((sub, lane), &lease, None, at);
                }
                self.end_turn(sub, lane, &lease, None);
                if taker != Kind::Subscription(sub) {
                    self.poke(sub);
                }
            }
            Holding::Work { provider, .. } => {
                let detail = Detail::message("the work ended without a result");
                self.end_work(id, Answer::Failed(Code::CapabilityError, detail), at);
                if taker != Kind::Provider(provider) {
                    self.poke_provider(provider);
                }
            }
        }
        Ok(())
    }

    fn take_turn(&mut self, id: SubId, at: Moment) -> Option<Delivery> {
        self.end_current(id);
        if self.subs.get(id)?.consumer.is_some() {
            self.claim_ahead(id, at);
            if let Some(lease) = self.take_claimed(id, at) {
                return self.claimed(lease);
            }
        }
        let Some((lane, item)) = self.next_item(id, at) else {
            // What was claimed without a log that must know of it is there at once.
            let lease = self.take_claimed(id, at)?;
            return self.claimed(lease);
        };
        let sub = self.subs.get_mut(id)?;
        sub.leased += 1;
        let waited = at.now.micros_since(item.at);
        sub.books.class(item.env.qos).latency.record(waited);
        let books = self.topics.books(item.env.books);
        books.queued -= 1;
        books.latency.record(waited);
        let (session, stream) = (sub.session, sub.is_stream());
        let ahead = sub.ahead.is_some();
        let asked = !stream && item.env.reply_to.is_some();
        let lease = self.leases.insert(Lease {
            session,
            holding: Holding::Turn { sub: id, lane },
            env: Arc::clone(&item.env),
            asked,
            answered: false,
            durable: None,
            turn: 0,
        });
        let turn = self.tape_turn(lease, id, (1, waited), at);
        if stream
            && !ahead
            && let Some(sub) = self.subs.get_mut(id)
        {
            sub.current = Some(lease);
        }
        Some(Delivery {
            lease: Some(lease),
            envelope: item.env,
            asked,
            attempt: 1,
            durable: false,
            work: None,
            turn,
        })
    }

    /// A durable turn as it is handed out.
    fn claimed(&mut self, lease: LeaseId) -> Option<Delivery> {
        let found = self.leases.get(lease)?;
        let durable = found.durable.as_ref()?;
        let delivery = Delivery {
            lease: Some(lease),
            envelope: Arc::clone(&found.env),
            asked: false,
            attempt: durable.attempt,
            durable: true,
            work: None,
            turn: found.turn,
        };
        Some(delivery)
    }

    /// A stream's event is done when the next one is asked for.
    pub(crate) fn end_current(&mut self, id: SubId) {
        let current = self.subs.get_mut(id).and_then(|sub| sub.current.take());
        if let Some(lease) = current.and_then(|current| self.leases.remove(current))
            && let Holding::Turn { sub, lane } = lease.holding
        {
            self.end_turn(sub, lane, &lease, None);
        }
    }

    /// The next event that is not over, still counted as queued in the books of its topic; `queue_items` bounds how many are skipped.
    fn next_item(&mut self, id: SubId, at: Moment) -> Option<(u32, Item)> {
        loop {
            let (newest, reordered) = (
                self.has(Planted::NewestFirst),
                self.has(Planted::AheadReordered),
            );
            let sub = self.subs.get_mut(id)?;
            let newest = newest || (reordered && sub.ahead.is_some());
            let next = if sub.has_slot() {
                sub.lanes.pop(newest)
            } else {
                None
            };
            let Some((lane, item)) = next else {
                sub.armed = true;
                return None;
            };
            self.left_line(id);
            self.untime(id, lane, &item);
            if let As::Durable { .. } = item.kind {
                self.claim(id, lane, item, at);
                continue;
            }
            if self.has(Planted::ExpiredStarts) || !item.env.is_over(at.now) {
                return Some((lane, item));
            }
            self.topics.books(item.env.books).queued -= 1;
            if let Some(sub) = self.subs.get_mut(id) {
                sub.lanes.skip(lane);
            }
            self.expire(id, &item.env, at);
        }
    }

    /// An event left its line to be begun: there is room.
    pub(crate) fn left_line(&mut self, id: SubId) {
        let waited = |sub: &Subscription| sub.lagging || sub.hungry || !sub.parked.is_empty();
        if self.subs.get(id).is_some_and(waited) {
            self.made_room(id);
        }
    }

    /// Ends a turn: its lane goes on, and who waited for its answer learns that none comes.
    pub(crate) fn end_turn(
        &mut self,
        id: SubId,
        lane: u32,
        lease: &Lease,
        failed: Option<(Code, Detail)>,
    ) {
        let starves = self.has(Planted::LaneStarves);
        self.tape_end(lease, failed.as_ref());
        let held = lease
            .durable
            .as_ref()
            .map_or(0, |_| self.held_by(&lease.env));
        let Some(sub) = self.subs.get_mut(id) else {
            return;
        };
        if starves {
            sub.lanes.skip(lane);
        } else {
            sub.lanes.release(lane);
        }
        sub.leased -= 1;
        sub.durables -= u32::from(lease.durable.is_some());
        sub.spare += held;
        let closing = sub.closing;
        if lease.durable.is_some() {
            self.count_durable(id, lease, failed.is_some());
        } else {
            self.count_turn(id, &lease.env, failed.is_some());
        }
        let forgets = self.has(Planted::ForgottenDecline) && failed.is_none();
        if lease.asked && !lease.answered && !forgets {
            self.decline_told(id, &lease.env, failed);
        }
        if closing {
            self.reclaim_subscription(id);
        }
    }

    pub(crate) fn count_turn(&mut self, id: SubId, env: &Envelope, failed: bool) {
        self.topics.books(env.books).delivered += 1;
        if let Some(sub) = self.subs.get_mut(id) {
            let books = sub.books.class(env.qos);
            books.delivered += 1;
            books.failed += u64::from(failed);
        }
    }

    /// Ends a turn or an invocation with an error. `false`: nobody waited for it any more.
    ///
    /// # Errors
    /// `FENCED` for a lease of another session.
    pub fn fail(&mut self, session: SessionId, fault: Fault<'_>, at: Moment) -> Result<bool> {
        let id = fault.lease;
        let Some(lease) = self.own_lease(session, id, false)? else {
            return Ok(false);
        };
        let holding = lease.holding;
        self.see(at);
        let detail = Detail::read(fault.detail, self.limits.error_detail_bytes);
        let heard = match holding {
            Holding::Turn { sub, lane } => {
                self.fail_turn(id, (sub, lane), (fault.code, detail), at)
            }
            Holding::Work { provider, .. } => {
                let heard = self.end_work(id, Answer::Failed(fault.code, detail), at);
                self.poke_provider(provider);
                heard
            }
        };
        self.flush(at);
        Ok(heard)
    }

    fn fail_turn(
        &mut self,
        id: LeaseId,
        turn: (SubId, u32),
        why: (Code, Detail),
        at: Moment,
    ) -> bool {
        let Some(lease) = self.leases.remove(id) else {
            return false;
        };
        let (sub, lane) = turn;
        if let Some(found) = self.subs.get_mut(sub)
            && found.current == Some(id)
        {
            found.current = None;
        }
        let (code, detail) = why.clone();
        self.tell_turn_failed(sub, &lease.env, code, &detail);
        let waited = lease.asked && !lease.answered && self.waits_for(&lease.env);
        if lease.durable.is_some() {
            self.settle_turn(turn, &lease, Some(&why), at);
        }
        self.end_turn(sub, lane, &lease, Some(why));
        self.poke(sub);
        waited
    }

    fn waits_for(&self, env: &Envelope) -> bool {
        env.reply_to
            .is_some_and(|call| self.calls.get(call).is_some())
    }

    fn tell_turn_failed(&mut self, id: SubId, env: &Arc<Envelope>, code: Code, detail: &Detail) {
        let Some(sub) = self.subs.get(id) else { return };
        let (space, who) = (sub.space, Arc::clone(&sub.origin.sender));
        self.tell_error(space, code, detail, &Subject::turn(who, env));
    }

    /// The open lease; none if it has ended, which is counted; an error if it is of another session.
    pub(crate) fn own_lease(
        &mut self,
        session: SessionId,
        id: LeaseId,
        request: bool,
    ) -> Result<Option<&Lease>> {
        let known = self.leases.get(id).map(|lease| lease.session);
        match known {
            Some(owner) if owner == session => Ok(self.leases.get(id)),
            None if self.leases.is_past(id) => {
                self.totals.double(request);
                Ok(None)
            }
            _ => {
                self.totals.foreign(request);
                Err(Error::fenced("this lease is not one of this session"))
            }
        }
    }
}
