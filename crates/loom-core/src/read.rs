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
use crate::time::Moment;

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
    /// The first event of a parked lane.
    Lane(Ident),
    /// A dead event that is published anew.
    Redrive(Box<Redriving>),
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
        let most = if matches!(self.reading.get(&token), Some((_, Purpose::Lane(_)))) {
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

    /// Answers a read; one that the log cannot serve is answered with no events and `next` where it began, and is asked
    /// for again when something moves.
    pub fn fed(&mut self, fed: Fed, at: Moment) {
        let Some((id, purpose)) = self.reading.remove(&fed.token) else {
            return;
        };
        if let Some(found) = self.consuming_mut(id)
            && found.reading == Some(fed.token)
        {
            found.reading = None;
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
            Purpose::Lane(lane) => self.fed_lane(id, &lane, events, at),
            // Nobody is there any more: it is read again when somebody comes.
            Purpose::Unread | Purpose::Next if !attended => {}
            Purpose::Unread => self.fed_open(id, events, next.min(end), at),
            Purpose::Next => self.fed_next(id, events, next.min(end), at),
        }
        self.flush(at);
    }

    fn fed_lane(
        &mut self,
        id: ConsumerId,
        lane: &Ident,
        events: Vec<(Position, Arc<Envelope>)>,
        at: Moment,
    ) {
        let Some(n) = self
            .consuming(id)
            .and_then(|found| found.first_parked(lane))
        else {
            return self.ask_feed(id);
        };
        match events.into_iter().next() {
            Some((position, env)) if position.n == n => {
                self.keep_read(id, lane, n, placed(env, position));
            }
            // It stood somewhere else in its lane when it was asked for.
            Some((position, _)) if position.n < n => {}
            _ => self.lost_read(id, Some(lane), n, at),
        }
        self.ask_feed(id);
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
        let lost = self.consuming(id).map(|found| found.unread_before(seen));
        for n in lost.unwrap_or_default() {
            self.lost_read(id, None, n, at);
        }
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
        } else {
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

    /// What a consumer should have been given is not kept any more: it goes on behind it.
    pub(crate) fn tell_expired(&mut self, id: ConsumerId, n: u64) {
        let Some(space) = self.space_of(id.partition) else {
            return;
        };
        let Some(group) = self.consuming(id).map(|found| Arc::clone(&found.group)) else {
            return;
        };
        let message = format!("{group:?} needs position {n}, and it is not kept any more");
        let detail = Error::new(Code::CursorExpired, message).detail();
        self.tell_error(space, Code::CursorExpired, &detail, &Subject::group(group));
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
