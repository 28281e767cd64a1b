//! One run: the engine, those who use it, and the work they have taken.

use std::collections::BTreeMap;
use std::sync::Arc;

use loom_core::{
    CallId, Code, Core, Delivery, Envelope, Error, Handle, Health, LeaseId, Limits, Moment, Nanos,
    SessionId, Ticket,
};

use crate::afar::{Afar, Stay};
use crate::book::Book;
use crate::dice::Dice;

use crate::fuse::Breaker;
use crate::seen::Seen;
use crate::trace::{Check, Trace, broken, ensure};
use crate::waits::Waits;
use crate::watch::Watch;
use crate::work::{Budget, Job, Table};

/// Who takes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Taker {
    Sub(usize),
    Provider(usize),
}

/// What a taker knows of its own work.
#[derive(Default)]
pub(crate) struct Call {
    /// Its last take gave work, so it need not be told of more.
    pub(crate) busy: bool,
    /// It was told that there is work.
    pub(crate) called: bool,
}

pub(crate) struct Provider {
    pub(crate) session: SessionId,
    pub(crate) handle: Handle,
    pub(crate) space: usize,
    pub(crate) capability: &'static str,
    pub(crate) version: &'static str,
    /// Who offers it.
    pub(crate) name: &'static str,
    pub(crate) concurrency: usize,
    pub(crate) live: bool,
    pub(crate) health: Health,
    /// Most of its calls fail.
    pub(crate) fails: bool,
    pub(crate) breaker: Breaker,
    /// The call that decides whether it is well again.
    pub(crate) deciding: Option<LeaseId>,
}

pub(crate) struct Peer {
    pub(crate) id: SessionId,
    pub(crate) space: usize,
    pub(crate) name: String,
    pub(crate) root: Handle,
    pub(crate) live: bool,
    /// It was woken since its inbox was empty last.
    pub(crate) woken: bool,
    pub(crate) stay: Stay,
}

/// An open turn or invocation.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) session: SessionId,
    pub(crate) taker: Taker,
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) asked: bool,
    pub(crate) answered: bool,
    /// The request it was asked with.
    pub(crate) call: Option<CallId>,
    /// The job it is an attempt of.
    pub(crate) job: Option<usize>,
}

pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) limits: Limits,
    pub(crate) dice: Dice,
    /// Which sessions are elsewhere, and what they may do.
    pub(crate) afar: Afar,
    pub(crate) at: Moment,
    pub(crate) peers: Vec<Peer>,
    pub(crate) providers: Vec<Provider>,
    pub(crate) takers: BTreeMap<Taker, Call>,
    pub(crate) held: BTreeMap<LeaseId, Held>,
    pub(crate) past: Vec<LeaseId>,
    pub(crate) book: Book,
    pub(crate) waits: Waits,
    pub(crate) tickets: BTreeMap<Ticket, (SessionId, usize)>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) budgets: BTreeMap<(usize, &'static str), Budget>,
    pub(crate) tables: BTreeMap<(usize, &'static str), Table>,
    /// When the engine wants to be told the time.
    pub(crate) next: Option<Nanos>,
    pub(crate) watch: Watch,
    pub(crate) trace: Trace,
    pub(crate) seen: Seen,
}

impl World {
    pub(crate) fn new(core: Core, dice: Dice, trace: Trace) -> Self {
        Self {
            limits: core.limits().clone(),
            core,
            afar: Afar::new(&dice),
            dice,
            at: Moment {
                now: Nanos(1_000_000),
                wall_ms: 1_800_000_000_000,
            },
            peers: Vec::new(),
            providers: Vec::new(),
            takers: BTreeMap::new(),
            held: BTreeMap::new(),
            past: Vec::new(),
            book: Book::default(),
            waits: Waits::default(),
            tickets: BTreeMap::new(),
            jobs: Vec::new(),
            budgets: BTreeMap::new(),
            tables: BTreeMap::new(),
            next: None,
            watch: Watch::default(),
            trace,
            seen: Seen::default(),
        }
    }

    pub(crate) fn note(&mut self, line: impl Into<String>) {
        self.trace.note(line.into());
    }

    pub(crate) fn live_peers(&self) -> Vec<SessionId> {
        self.peers
            .iter()
            .filter(|peer| peer.live)
            .map(|peer| peer.id)
            .collect()
    }

    /// The session and the handle of a taker, and whether it still gets work.
    pub(crate) fn taker(&self, taker: Taker) -> Option<(SessionId, Handle, bool)> {
        match taker {
            Taker::Sub(at) => self
                .book
                .subs
                .get(at)
                .map(|s| (s.session, s.handle, s.live)),
            Taker::Provider(at) => self
                .providers
                .get(at)
                .map(|p| (p.session, p.handle, p.live)),
        }
    }

    pub(crate) fn health(&self, taker: Taker) -> Health {
        let known = match taker {
            Taker::Sub(at) => self.book.subs.get(at).map(|sub| sub.health),
            Taker::Provider(at) => self.providers.get(at).map(|provider| provider.health),
        };
        known.unwrap_or_default()
    }

    pub(crate) fn live_takers(&self) -> Vec<Taker> {
        let all = self.takers.keys().copied();
        all.filter(|taker| self.taker(*taker).is_some_and(|(_, _, live)| live))
            .collect()
    }

    /// Ends a lease, if one is given, and takes the next work.
    pub(crate) fn take(&mut self, taker: Taker, done: Option<LeaseId>) -> Check<bool> {
        let Some((session, handle, live)) = self.taker(taker) else {
            return Ok(false);
        };
        let held = done.and_then(|lease| self.held.get(&lease));
        if let Some(job) = held.and_then(|held| held.job) {
            self.end_overdue(job);
        }
        let given = if self.stay_of(session).ahead {
            self.take_ahead((session, handle), done, live)
        } else {
            self.core.take(session, handle, done, self.at)
        };
        self.note(format!("take {taker:?} {done:?} -> {}", show_taken(&given)));
        let delivery = match given {
            Ok(delivery) => delivery,
            Err(error) => return broken("LEASE-FENCED", format!("take was refused: {error}")),
        };
        let up = self.health(taker) == Health::Up;
        ensure(up || delivery.is_none(), "HEALTH-RESTARTING", || {
            format!("{taker:?} is not up, and was given work")
        })?;
        if let Some(lease) = done {
            self.end_held(lease, None)?;
        }
        self.end_streamed(taker)?;
        let call = self.takers.entry(taker).or_default();
        *call = Call {
            busy: delivery.is_some(),
            called: call.called && delivery.is_some(),
        };
        match delivery {
            Some(delivery) => self.hold(session, taker, &delivery).map(|()| true),
            None => Ok(false),
        }
    }

    /// A session elsewhere ends a turn by itself, and takes of what it still has.
    fn take_ahead(
        &mut self,
        (session, handle): (SessionId, Handle),
        done: Option<LeaseId>,
        live: bool,
    ) -> Result<Option<Delivery>, Error> {
        if let Some(lease) = done {
            self.core.done(session, lease, self.at)?;
        }
        if !live {
            return Ok(None);
        }
        let given = self.core.take_ahead(session, handle, self.at)?;
        Ok(given.map(|(delivery, _)| delivery))
    }

    /// What a stream gave is done when the next is asked for, or the stream ends, unless it is taken ahead.
    pub(crate) fn end_streamed(&mut self, taker: Taker) -> Check {
        let Taker::Sub(index) = taker else {
            return Ok(());
        };
        let sub = self.book.sub(index)?;
        let current = if sub.stream && sub.ahead.is_none() {
            sub.open.keys().next().copied()
        } else {
            None
        };
        current.map_or(Ok(()), |lease| self.end_held(lease, None))
    }

    pub(crate) fn hold(&mut self, session: SessionId, taker: Taker, delivery: &Delivery) -> Check {
        let Some(lease) = delivery.lease else {
            return broken("LEASE-FENCED", "work came without a lease");
        };
        let (call, job) = match taker {
            Taker::Sub(index) => (self.begin_turn(index, delivery)?, None),
            Taker::Provider(index) => (None, Some(self.begin_work(index, lease, delivery)?)),
        };
        self.held.insert(
            lease,
            Held {
                session,
                taker,
                envelope: Arc::clone(&delivery.envelope),
                asked: delivery.asked,
                answered: false,
                call,
                job,
            },
        );
        Ok(())
    }

    pub(crate) fn begin_turn(
        &mut self,
        index: usize,
        delivery: &Delivery,
    ) -> Check<Option<CallId>> {
        let known = self.book.deliver(index, delivery, self.at.now)?;
        let Some(event) = known else {
            let reply = delivery.envelope.topic.starts_with("thread.");
            self.seen.note(if reply {
                "reply copied to its thread"
            } else {
                "the engine's own event delivered"
            });
            return Ok(None);
        };
        let call = self.book.event(event)?.call.filter(|_| delivery.asked);
        let refused = call
            .and_then(|call| self.waits.asked(call))
            .is_some_and(|a| a.refused);
        ensure(!refused, "REQUEST-DECLINED", || {
            format!("{call:?} ended as declined by all, and then somebody was asked")
        })?;
        Ok(call)
    }

    /// A lease ended by a take, or with an error.
    pub(crate) fn end_held(&mut self, lease: LeaseId, failed: Option<Code>) -> Check {
        let Some(held) = self.held.remove(&lease) else {
            return Ok(());
        };
        self.past.push(lease);
        match held.taker {
            Taker::Sub(index) => self.book.end_turn(index, lease, failed.is_some())?,
            Taker::Provider(_) => return self.end_unanswered(lease, &held),
        }
        self.decline(&held);
        Ok(())
    }

    pub(crate) fn decline(&mut self, held: &Held) {
        if held.asked
            && !held.answered
            && let Some(asked) = held.call.and_then(|call| self.waits.asked(call))
        {
            asked.declined += 1;
        }
    }
}

impl Peer {
    pub(crate) fn new(id: SessionId, space: usize, name: String, root: Handle) -> Self {
        Self {
            id,
            space,
            name,
            root,
            live: true,
            woken: false,
            stay: Stay::default(),
        }
    }
}

fn show_taken(given: &Result<Option<Delivery>, Error>) -> String {
    match given {
        Ok(Some(delivery)) => {
            let env = &delivery.envelope;
            format!(
                "{:?} {} {} {}",
                delivery.lease,
                env.topic,
                env.lane(),
                env.id
            )
        }
        Ok(None) => "nothing".to_owned(),
        Err(error) => error.to_string(),
    }
}
