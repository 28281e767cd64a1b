//! Dead letters: what was given up, and how it is published anew for the one consumer that gave it up.

use std::sync::Arc;

use smallvec::smallvec;

use crate::arena::{SessionId, Ticket};
use crate::bus::Keeper;
use crate::consume::ConsumerId;
use crate::core::Core;
use crate::envelope::{Envelope, Extra, Position};
use crate::error::{Code, Error, Result};
use crate::notice::{Notice, Receipt};
use crate::partition::DeadLetter;
use crate::planted::Planted;
use crate::read::{Purpose, Redriving};
use crate::record::{Level, Record, Redriven};
use crate::ticket::{Then, Waiting};
use crate::time::Moment;

/// A dead event that is with the log.
pub(crate) struct Redrive {
    consumer: ConsumerId,
    n: u64,
    session: SessionId,
    ticket: Ticket,
    env: Arc<Envelope>,
    level: Level,
}

impl Core {
    /// What the consumers of a namespace have given up, by consumer and position.
    pub fn dead(&self, namespace: &str) -> Vec<DeadLetter> {
        let part = self.partition_of(namespace);
        let part = part.and_then(|partition| self.partition(partition));
        part.map(|part| part.dead().cloned().collect())
            .unwrap_or_default()
    }

    /// Publishes a dead event anew, with other data if some is given, for the consumer that gave it up and nobody else.
    /// [`Notice::Accepted`] or [`Notice::Refused`] will follow; it happens once, whatever crashes in between.
    ///
    /// # Errors
    /// `NOT_FOUND` for what is not dead, `CONFLICT` for what is on its way already, `NOT_SUPPORTED` without a log; `DENIED` without
    /// an admin grant.
    pub fn redrive(
        &mut self,
        session: SessionId,
        (consumer, n): (u32, u64),
        payload: Option<Box<[u8]>>,
    ) -> Result<Ticket> {
        let space = self.session(session)?.space;
        self.check_admin(session, "loom.node.dead.redrive")?;
        if let Some(payload) = &payload {
            self.check_payload(payload, Keeper::Log)?;
        }
        let part = self.space(space).and_then(|space| space.partition);
        let Some(part) = part.and_then(|part| self.parts.get_mut(&part)) else {
            let message = "there is no log, so nothing is dead in it";
            return Err(Error::new(Code::NotSupported, message));
        };
        let partition = part.opened.partition;
        if part.folded.letters().get(consumer, n).is_none() {
            let message = format!("consumer {consumer} has no dead event at {n:x}");
            return Err(Error::new(Code::NotFound, message).field("n"));
        }
        let fresh = part.redriving.insert((consumer, n));
        if !fresh && !self.has(Planted::RedrivenTwice) {
            let message = "this event is being published anew already";
            return Err(Error::new(Code::Conflict, message).field("n"));
        }
        let ticket = self.tickets.insert(Waiting::Second);
        let id = ConsumerId {
            partition,
            number: consumer,
        };
        let redriving = Redriving {
            session,
            ticket,
            n,
            payload,
        };
        self.ask_read(partition, n, 1, (id, Purpose::Redrive(Box::new(redriving))));
        Ok(ticket)
    }

    /// The dead event was read: it goes to the log anew, in one batch with the note that it is dead no more.
    pub(crate) fn fed_dead(
        &mut self,
        id: ConsumerId,
        redriving: Redriving,
        events: Vec<(Position, Arc<Envelope>)>,
        at: Moment,
    ) {
        let n = redriving.n;
        let found = events.into_iter().find(|(position, _)| position.n == n);
        let Some((_, dead)) = found else {
            let message = format!("the event at {n:x} is not kept any more");
            let error = Error::new(Code::CursorExpired, message);
            return self.refuse_dead(id, &redriving, error);
        };
        let Redriving {
            session,
            ticket,
            payload,
            ..
        } = redriving;
        let mut env = Arc::unwrap_or_clone(dead);
        env.causation = Some(env.id);
        env.id = self.ids.mint(at.wall_ms);
        env.time_ms = at.wall_ms;
        env.position = None;
        env.expires = env.ttl_ms.map(|ttl| at.now.plus_millis(ttl));
        if let Some(payload) = payload {
            env.payload = payload;
        }
        let mut extra = env.extra.take().map_or_else(Extra::default, |extra| *extra);
        extra.only = Some(id.number);
        extra.dedup = None;
        env.extra = Some(Box::new(extra));
        let env = Arc::new(env);
        let part = self.parts.get(&id.partition);
        let level = part.map_or(Level::Disk, |part| part.ack.max(Level::Os));
        let note = Record::Redriven(Redriven {
            consumer: id.number,
            n,
        });
        let event = Record::Event(Arc::clone(&env));
        let redrive = Redrive {
            consumer: id,
            n,
            session,
            ticket,
            env,
            level,
        };
        let then = Then::Redriven(Box::new(redrive));
        self.append(id.partition, level, smallvec![note, event], then);
    }

    /// A dead event could not be read: it stays dead.
    pub(crate) fn refuse_dead(&mut self, id: ConsumerId, redriving: &Redriving, error: Error) {
        self.forget_redrive(id, redriving.n);
        self.tickets.remove(redriving.ticket);
        let notice = Notice::Refused(redriving.ticket, error);
        self.notify(redriving.session, notice);
    }

    fn forget_redrive(&mut self, id: ConsumerId, n: u64) {
        if let Some(part) = self.parts.get_mut(&id.partition) {
            part.redriving.remove(&(id.number, n));
        }
    }

    /// The log has both: the event goes to its consumer.
    pub(crate) fn redriven(&mut self, redrive: Redrive, first: Position, at: Moment) {
        let position = Position {
            n: first.n + 1,
            ..first
        };
        self.forget_redrive(redrive.consumer, redrive.n);
        let mut env = Arc::unwrap_or_clone(redrive.env);
        env.position = Some(position);
        let receipt = Receipt {
            id: env.id,
            matched: 1,
            position: Some(position),
            level: redrive.level,
        };
        self.arrive(redrive.consumer, position.n, &Arc::new(env), at);
        self.tickets.remove(redrive.ticket);
        self.notify(redrive.session, Notice::Accepted(redrive.ticket, receipt));
    }

    /// The log refused them: the event is dead as before.
    pub(crate) fn not_redriven(&mut self, redrive: &Redrive, error: &Error) {
        self.forget_redrive(redrive.consumer, redrive.n);
        self.tickets.remove(redrive.ticket);
        let notice = Notice::Refused(redrive.ticket, error.clone());
        self.notify(redrive.session, notice);
    }
}
