//! What is read from the log: asked for here, done by the shell on a thread of its own, and answered by [`Core::fed`].

use std::sync::Arc;

use crate::arena::{SessionId, Ticket};
use crate::consume::ConsumerId;
use crate::core::Core;
use crate::envelope::{Envelope, Position};
use crate::error::{Code, Error};
use crate::ident::Ident;
use crate::planted::Planted;
use crate::report::Subject;
use crate::time::{Moment, Nanos};
use crate::timers::Timer;

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

/// What a read is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// What was open when the log was opened.
    Unread,
    /// What a consumer that is behind has not taken over.
    Next,
    /// The event of a parked lane at this position: its first one when it was asked for.
    Lane(Ident, u64),
    /// A dead event that is published anew.
    Redrive(Box<Redriving>),
}

/// Reads of a consumer that failed one after the other.
#[derive(Debug, Default)]
pub(crate) struct Stall {
    /// How many.
    failed: u32,
    /// Nothing is read for it before this.
    pub(crate) until: Option<Nanos>,
}

/// A dead event on its way back.
#[derive(Debug)]
pub(crate) struct Redriving {
    pub(crate) session: SessionId,
    pub(crate) ticket: Ticket,
    pub(crate) n: u64,
    /// None: what it had.
    pub(crate) payload: Option<Box<[u8]>>,
}

impl Core {
    /// Whether events have to be read from a log.
    pub fn has_reads(&self) -> bool {
        !self.reads.is_empty()
    }

    /// What has to be read from the logs. The shell reads on a thread of its own and answers each by [`Self::fed`].
    pub fn take_reads(&mut self) -> Vec<Read> {
        std::mem::take(&mut self.reads)
    }

    pub(crate) fn ask_read(
        &mut self,
        partition: u32,
        from: u64,
        most: usize,
        what: (ConsumerId, Purpose),
    ) -> u64 {
        self.read_token += 1;
        let token = self.read_token;
        self.reading.insert(token, what);
        let most = if matches!(self.reading.get(&token), Some((_, Purpose::Lane(..)))) {
            1
        } else {
            most
        };
        self.reads.push(Read {
            token,
            partition,
            from,
            most,
        });
        token
    }

    /// What a read was for, now that it is answered.
    fn answered(&mut self, token: u64) -> Option<(ConsumerId, Purpose)> {
        let (id, purpose) = self.reading.remove(&token)?;
        if let Some(found) = self.consuming_mut(id)
            && found.reading == Some(token)
        {
            found.reading = None;
        }
        Some((id, purpose))
    }

    /// Answers a read that the log could serve; one that it could not is answered by [`Self::unread`].
    pub fn fed(&mut self, fed: Fed, at: Moment) {
        let Some((id, purpose)) = self.answered(fed.token) else {
            return;
        };
        if !matches!(purpose, Purpose::Redrive(_)) {
            self.end_stall(id);
        }
        let mut end = self
            .partition(id.partition)
            .map_or(0, crate::partition::Partition::end);
        if self.has(Planted::ShownEarly) {
            end = u64::MAX;
        }
        // What is in the log and not answered yet does not show.
        let Fed {
            mut events, next, ..
        } = fed;
        events.retain(|(position, _)| position.n < end);
        let attended = self.consuming(id).is_some_and(|found| found.attended);
        match purpose {
            Purpose::Redrive(redriving) => self.fed_dead(id, *redriving, events, at),
            Purpose::Lane(lane, n) => self.fed_lane(id, (&lane, n), (events, next), at),
            // Nobody is there any more: it is read again when somebody comes.
            Purpose::Unread | Purpose::Next if !attended => {}
            Purpose::Unread => self.fed_open(id, events, next.min(end), at),
            Purpose::Next => self.fed_next(id, events, next.min(end), at),
        }
        self.flush(at);
    }

    /// The log could not be read. `oldest`, where it says so, is the first position that it still keeps: what was asked
    /// for before that is lost, and told. With any other error a consumer stays where it is, says so once, and reads
    /// there again after a pause that grows.
    pub fn unread(&mut self, read: Read, error: &Error, oldest: Option<u64>, at: Moment) {
        let Some((id, purpose)) = self.answered(read.token) else {
            return;
        };
        match (purpose, oldest.filter(|oldest| *oldest > read.from)) {
            (Purpose::Redrive(redriving), _) => self.refuse_dead(id, &redriving, error.clone()),
            (_, None) => self.stall(id, read.from, error, at),
            (Purpose::Lane(lane, n), Some(_)) => self.lose_first(id, &lane, n, at),
            (Purpose::Unread, Some(oldest)) => self.lose_unread(id, oldest, at),
            (Purpose::Next, Some(oldest)) => self.skip_lost(id, read.from, oldest),
        }
        self.ask_feed(id);
        self.flush(at);
    }

    /// Nothing is read for a consumer for a while: the log cannot be read where it is.
    fn stall(&mut self, id: ConsumerId, from: u64, error: &Error, at: Moment) {
        let cap = self.limits.retry_cap_seconds * 1_000;
        let base = self.limits.retry_base_ms;
        // Who has no member reads when one comes.
        let Some(found) = self.consuming_mut(id).filter(|found| found.attended) else {
            return;
        };
        let failed = found.stall.failed;
        let until = at.now.plus_millis((base << failed.min(20)).min(cap));
        found.stall.failed = failed.saturating_add(1);
        let before = found.stall.until.replace(until);
        let group = Arc::clone(&found.group);
        if let Some(before) = before {
            self.timers.remove(before, Timer::Reread(id));
        }
        self.timers.add(until, Timer::Reread(id));
        if failed > 0 {
            return;
        }
        if let Some(space) = self.space_of(id.partition) {
            let mut detail = error.detail();
            detail.message = format!("{group:?} waits at position {from}: {}", detail.message);
            self.tell_error(space, error.code, &detail, &Subject::group(group));
        }
    }

    pub(crate) fn end_stall(&mut self, id: ConsumerId) {
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        if let Some(until) = std::mem::take(&mut found.stall).until {
            self.timers.remove(until, Timer::Reread(id));
        }
    }

    /// The pause after a read that failed is over.
    pub(crate) fn reread_is_due(&mut self, id: ConsumerId, at: Moment) {
        if let Some(found) = self.consuming_mut(id) {
            found.stall.until = None;
            self.feed(id, at);
        }
    }

    /// What a consumer was to read next is not kept any more, up to where it goes on.
    fn skip_lost(&mut self, id: ConsumerId, from: u64, oldest: u64) {
        let end = self
            .partition(id.partition)
            .map_or(0, crate::partition::Partition::end);
        let Some(found) = self.consuming_mut(id).filter(|found| found.behind) else {
            return;
        };
        found.next = found.next.max(oldest.min(end));
        // How many of those that were counted are among the lost cannot be known: the rest is counted when it is read.
        found.recount_from(end);
        if found.next >= end {
            found.behind = false;
        }
        self.tell_expired(id, from);
    }

    fn fed_lane(
        &mut self,
        id: ConsumerId,
        (lane, n): (&Ident, u64),
        (events, next): (Vec<(Position, Arc<Envelope>)>, u64),
        at: Moment,
    ) {
        let first = self
            .consuming(id)
            .and_then(|found| found.first_parked(lane));
        let event = events.into_iter().next();
        if first == Some(n) {
            match event {
                Some((position, env)) if position.n == n => {
                    self.keep_read(id, lane, n, placed(env, position));
                }
                // It was looked at, and there is no event there.
                Some(_) => self.lose_parked(id, lane, n, at),
                None if next > n => self.lose_parked(id, lane, n, at),
                None => {
                    let error = Error::new(Code::Unavailable, "the log ends before it");
                    self.stall(id, n, &error, at);
                }
            }
        }
        // Else an earlier one of its lane has come back meanwhile: it is read again when its turn has come.
        self.ask_feed(id);
    }

    fn lose_first(&mut self, id: ConsumerId, lane: &Ident, n: u64, at: Moment) {
        let found = self.consuming(id);
        if found.and_then(|found| found.first_parked(lane)) == Some(n) {
            self.lose_parked(id, lane, n, at);
        }
    }

    fn fed_open(
        &mut self,
        id: ConsumerId,
        events: Vec<(Position, Arc<Envelope>)>,
        next: u64,
        at: Moment,
    ) {
        let (mut seen, mut full) = (next, false);
        for (position, env) in events {
            let Some(found) = self.consuming(id) else {
                return;
            };
            if found.is_unread(position.n)
                && !self.take_over(id, position.n, &placed(env, position), at)
            {
                (seen, full) = (position.n, true);
                break;
            }
        }
        // Those that were looked for and not found are not kept any more.
        self.lose_unread(id, seen, at);
        self.go_on(id, full);
    }

    fn fed_next(
        &mut self,
        id: ConsumerId,
        events: Vec<(Position, Arc<Envelope>)>,
        next: u64,
        at: Moment,
    ) {
        let (mut reached, mut full) = (next, false);
        let first = self.consuming(id).map_or(0, |found| found.next);
        for (position, env) in events {
            if position.n < first {
                continue;
            }
            if !self.read_one(id, position.n, &placed(env, position), at) {
                (reached, full) = (position.n, true);
                break;
            }
        }
        let end = self
            .partition(id.partition)
            .map_or(0, crate::partition::Partition::end);
        let Some(found) = self.consuming_mut(id) else {
            return;
        };
        found.next = found.next.max(reached);
        if found.next >= end {
            found.behind = false;
        }
        self.go_on(id, full);
    }

    /// Reads on, or waits for room: the member that has the lane may be full while others are not.
    fn go_on(&mut self, id: ConsumerId, full: bool) {
        if full {
            self.make_hungry(id);
        }
        // Lanes that came back while it was read go on first, also where nothing more is taken over: no member's queue
        // need get shorter for them.
        let most = self.limits.consumer_open;
        let found = self.consuming(id);
        if !full || found.is_some_and(|it| it.open.len() >= most && it.has_loose()) {
            self.ask_feed(id);
        }
    }

    /// One event that a consumer comes upon. `false`: there is no room for it.
    fn read_one(&mut self, id: ConsumerId, n: u64, env: &Arc<Envelope>, at: Moment) -> bool {
        let most = self.limits.consumer_open;
        let acked = self
            .partition(id.partition)
            .and_then(|part| part.consumer(id.number))
            .is_some_and(|state| state.acked.contains(&n));
        let Some(found) = self.consuming_mut(id) else {
            return true;
        };
        if acked || !found.wants(id.number, n, env) || found.open.contains_key(&n) {
            return true;
        }
        if found.open.len() >= most {
            return false;
        }
        let counted = found.count_read(n);
        if self.take_over(id, n, env, at) {
            return true;
        }
        if let Some(found) = self.consuming_mut(id) {
            found.uncount_read(counted);
        }
        false
    }
}

/// The event with its position.
fn placed(env: Arc<Envelope>, position: Position) -> Arc<Envelope> {
    if env.position == Some(position) {
        return env;
    }
    let mut own = Arc::unwrap_or_clone(env);
    own.position = Some(position);
    Arc::new(own)
}
