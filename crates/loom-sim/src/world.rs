//! One run: the engine, those who use it, their clock and their log, and the checks between the steps.

use std::collections::BTreeMap;
use std::sync::Arc;

use loom_core::{CallId, Code, Core, Delivery, Envelope, Error, Gauges, Handle, LeaseId};
use loom_core::{Limits, Moment, Nanos, Notice, Position, Reason, Receipt, SessionId, Ticket};

use crate::book::{Book, State, space_name};
use crate::dice::Dice;
use crate::seen::Seen;
use crate::trace::{Check, Trace, broken, ensure};
use crate::waits::{Wait, Waits, Wanted, is_pure};

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
    busy: bool,
    /// It was told that there is work.
    called: bool,
}

pub(crate) struct Provider {
    pub(crate) session: SessionId,
    pub(crate) handle: Handle,
    pub(crate) space: usize,
    pub(crate) capability: &'static str,
    pub(crate) concurrency: usize,
    pub(crate) live: bool,
}

pub(crate) struct Peer {
    pub(crate) id: SessionId,
    pub(crate) space: usize,
    pub(crate) name: String,
    pub(crate) root: Handle,
    pub(crate) live: bool,
    /// It was woken since its inbox was empty last.
    woken: bool,
    /// The last of its logged offers that was taken.
    last_logged: usize,
}

/// An open turn or invocation.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) session: SessionId,
    pub(crate) taker: Taker,
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) asked: bool,
    pub(crate) answered: bool,
    /// The call it serves, or the request it was asked with.
    pub(crate) call: Option<CallId>,
}

/// A record that is with the log.
pub(crate) struct Record {
    pub(crate) ticket: Ticket,
    pub(crate) event: usize,
    pub(crate) answer: Option<Answer>,
}

/// What the log said to a record.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    Logged(Position),
    Refused,
}

pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) limits: Limits,
    pub(crate) dice: Dice,
    pub(crate) at: Moment,
    pub(crate) peers: Vec<Peer>,
    pub(crate) providers: Vec<Provider>,
    pub(crate) takers: BTreeMap<Taker, Call>,
    pub(crate) held: BTreeMap<LeaseId, Held>,
    pub(crate) past: Vec<LeaseId>,
    pub(crate) book: Book,
    pub(crate) waits: Waits,
    pub(crate) tickets: BTreeMap<Ticket, (SessionId, usize)>,
    pub(crate) positions: BTreeMap<usize, Position>,
    pub(crate) log: Vec<Record>,
    pub(crate) log_end: u64,
    pub(crate) calls_made: usize,
    pub(crate) trace: Trace,
    pub(crate) seen: Seen,
}

impl World {
    pub(crate) fn new(core: Core, dice: Dice, trace: Trace) -> Self {
        Self {
            limits: core.limits().clone(),
            core,
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
            positions: BTreeMap::new(),
            log: Vec::new(),
            log_end: 0,
            calls_made: 0,
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

    pub(crate) fn live_takers(&self) -> Vec<Taker> {
        let all = self.takers.keys().copied();
        all.filter(|taker| self.taker(*taker).is_some_and(|(_, _, live)| live))
            .collect()
    }

    // Taking work.

    /// Ends a lease, if one is given, and takes the next work.
    pub(crate) fn take(&mut self, taker: Taker, done: Option<LeaseId>) -> Check<bool> {
        let Some((session, handle, _)) = self.taker(taker) else {
            return Ok(false);
        };
        let given = self.core.take(session, handle, done, self.at);
        self.note(format!("take {taker:?} {done:?} -> {}", show_taken(&given)));
        let delivery = match given {
            Ok(delivery) => delivery,
            Err(error) => return broken("LEASE-FENCED", format!("take was refused: {error}")),
        };
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

    /// What a stream gave is done when the next is asked for, or the stream ends.
    pub(crate) fn end_streamed(&mut self, taker: Taker) -> Check {
        let Taker::Sub(index) = taker else {
            return Ok(());
        };
        let sub = self.book.sub(index)?;
        let current = if sub.stream {
            sub.open.keys().next().copied()
        } else {
            None
        };
        current.map_or(Ok(()), |lease| self.end_held(lease, None))
    }

    fn hold(&mut self, session: SessionId, taker: Taker, delivery: &Delivery) -> Check {
        let Some(lease) = delivery.lease else {
            return broken("LEASE-FENCED", "work came without a lease");
        };
        let call = match taker {
            Taker::Sub(index) => self.begin_turn(index, delivery)?,
            Taker::Provider(index) => Some(self.begin_work(index, lease, delivery)?),
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
            },
        );
        Ok(())
    }

    fn begin_turn(&mut self, index: usize, delivery: &Delivery) -> Check<Option<CallId>> {
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

    fn begin_work(&mut self, index: usize, lease: LeaseId, delivery: &Delivery) -> Check<CallId> {
        let env = &delivery.envelope;
        let Some(provider) = self.providers.get(index) else {
            return broken("SIM-BOOK", "the simulator lost a provider");
        };
        let (space, concurrency) = (provider.space, provider.concurrency);
        let number = crate::book::read_tag(b'C', &env.payload);
        let now = self.at.now;
        let busy = self
            .held
            .values()
            .filter(|held| held.taker == Taker::Provider(index))
            .count();
        ensure(busy < concurrency, "LANE-PARALLEL", || {
            format!("a provider has {} calls of {concurrency}", busy + 1)
        })?;
        let found = self.waits.all.iter_mut().find_map(|(call, wait)| {
            let (told, deadline) = (wait.told || wait.gone, wait.deadline);
            let served = wait
                .served()
                .filter(|served| Some(served.number) == number)?;
            Some((*call, told, deadline, served))
        });
        let Some((call, told, deadline, served)) = found else {
            return broken("CALL-FOREIGN", format!("work came from nowhere: {env:?}"));
        };
        let open = !told && served.ending.is_none() && !served.taken && deadline > now;
        ensure(open, "CALL-LATE", || {
            format!("{call:?} was started twice or after its end")
        })?;
        let own = served.space == space
            && *env.topic == *served.capability
            && *env.origin.namespace == *space_name(space)
            && env.deadline == Some(deadline);
        ensure(own, "EVENT-NAMESPACE", || {
            format!("{call:?} went to a provider of another")
        })?;
        let work = delivery.work.as_ref();
        let same = work.is_some_and(|work| {
            work.streamed == served.streamed
                && work.credit == served.granted
                && work.effect.is_none() == is_pure(served.capability)
        });
        ensure(same, "STREAM-CREDIT", || {
            format!("{call:?} was told {work:?}")
        })?;
        served.taken = true;
        served.lease = Some(lease);
        Ok(call)
    }

    /// A lease ended by a take, or with an error.
    pub(crate) fn end_held(&mut self, lease: LeaseId, failed: Option<Code>) -> Check {
        let Some(held) = self.held.remove(&lease) else {
            return Ok(());
        };
        self.past.push(lease);
        match held.taker {
            Taker::Sub(index) => self.book.end_turn(index, lease)?,
            Taker::Provider(_) => {
                if let Some(call) = held.call {
                    self.waits
                        .answer(call, Some(failed.unwrap_or(Code::CapabilityError)));
                }
                return Ok(());
            }
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

    // Reading inboxes.

    /// The shell wakes those that the engine names.
    pub(crate) fn wake(&mut self) {
        for session in self.core.take_woken() {
            if let Some(peer) = self.peers.iter_mut().find(|peer| peer.id == session) {
                peer.woken = true;
            }
        }
    }

    pub(crate) fn drain(&mut self, session: SessionId, most: usize) -> Check {
        self.wake();
        let notices = match self.core.drain(session, most) {
            Ok(notices) => notices,
            Err(error) => return broken("LEASE-FENCED", format!("drain was refused: {error}")),
        };
        let left = self.core.waiting(session);
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.id == session) {
            ensure(peer.woken || notices.is_empty(), "WAKE-LOOP", || {
                format!(
                    "{session:?} has {} notices and was not woken",
                    notices.len()
                )
            })?;
            peer.woken = left > 0;
        }
        for notice in notices {
            self.note(format!("{session:?} reads {}", show_notice(&notice)));
            self.read(session, notice)?;
        }
        Ok(())
    }

    pub(crate) fn drain_all(&mut self, session: SessionId) -> Check {
        while self.core.waiting(session) > 0 {
            self.drain(session, 8)?;
        }
        Ok(())
    }

    fn read(&mut self, session: SessionId, notice: Notice) -> Check {
        match notice {
            Notice::Ready(handle) => {
                let all = self.takers.keys().copied();
                let found = all.into_iter().find(|taker| {
                    self.taker(*taker)
                        .is_some_and(|(own, h, _)| own == session && h == handle)
                });
                if let Some(call) = found.and_then(|taker| self.takers.get_mut(&taker)) {
                    call.called = true;
                }
                Ok(())
            }
            Notice::Answer(call, delivery) => self.waits.hear(session, call, &delivery),
            Notice::Outcome(call, code, body) => self.read_outcome(session, call, code, &body),
            Notice::Chunk(call, bytes) => self.waits.hear_chunk(session, call, &bytes),
            Notice::Credit(lease, total) => {
                self.seen.note("credit told to a provider");
                let due = self.waits.credits_due.remove(&(session, lease, total));
                ensure(due, "STREAM-CREDIT", || {
                    format!("credit {total} for {lease:?} is not due")
                })
            }
            Notice::Cancel(lease, _) => {
                self.seen.note("cancel told to a provider");
                let due = self.waits.cancels_due.remove(&(session, lease));
                ensure(due, "CALL-CANCEL", || {
                    format!("{lease:?} was cancelled for no reason")
                })
            }
            Notice::Accepted(ticket, receipt) => self.read_accepted(session, ticket, &receipt),
            Notice::Refused(ticket, error) => self.read_refused(session, ticket, &error),
        }
    }

    fn read_outcome(
        &mut self,
        session: SessionId,
        call: CallId,
        code: Option<Code>,
        body: &[u8],
    ) -> Check {
        self.waits.end(session, call, (code, body), self.at.now)?;
        let Some(wait) = self.waits.all.get_mut(&call) else {
            return Ok(());
        };
        let request = wait.asked().is_some();
        let declined = wait
            .asked()
            .is_some_and(|asked| asked.refused && !asked.waiting);
        self.seen
            .note_if("call indeterminate", code == Some(Code::Indeterminate));
        let gone = code == Some(Code::ProviderUnavailable) && !request;
        self.seen.note_if("call of a provider that went", gone);
        let due = code == Some(Code::Timeout);
        self.seen.note_if(
            if request {
                "request timed out"
            } else {
                "call timed out"
            },
            due,
        );
        if declined {
            self.seen.note("request declined by all");
            let open = self
                .held
                .values()
                .any(|h| h.call == Some(call) && h.asked && !h.answered);
            ensure(!open, "REQUEST-DECLINED", || {
                format!("{call:?} ended as declined while one who was asked is at work")
            })?;
        }
        Ok(())
    }

    fn read_accepted(&mut self, session: SessionId, ticket: Ticket, receipt: &Receipt) -> Check {
        let Some((owner, event)) = self.tickets.remove(&ticket) else {
            return broken("TICKETS-ORDERED", format!("{ticket:?} was taken twice"));
        };
        let known = self.book.event(event)?;
        let (durable, matched, state) = (known.durable, known.targets.len(), known.state);
        ensure(
            owner == session && receipt.matched == matched,
            "TICKETS-ORDERED",
            || format!("{ticket:?} of {owner:?} for {matched}: {receipt:?} at {session:?}"),
        )?;
        if !durable {
            self.seen.note("batched publish taken after it was parked");
            return self.book.apply(event, false);
        }
        let position = self.positions.get(&event).copied();
        let logged = state == State::Applied && position.is_some() && receipt.position == position;
        ensure(logged, "TICKETS-ORDERED", || {
            format!("{ticket:?} was taken as {receipt:?}, the log has {position:?}")
        })?;
        let peer = self.peers.iter_mut().find(|peer| peer.id == session);
        let last = peer.map(|peer| std::mem::replace(&mut peer.last_logged, event));
        ensure(
            last.is_some_and(|last| last <= event),
            "TICKETS-ORDERED",
            || format!("event {event} was taken after {last:?}"),
        )
    }

    fn read_refused(&mut self, session: SessionId, ticket: Ticket, error: &Error) -> Check {
        let Some((owner, event)) = self.tickets.remove(&ticket) else {
            return broken("TICKETS-ORDERED", format!("{ticket:?} was refused twice"));
        };
        let state = self.book.event(event)?.state;
        ensure(
            owner == session && state == State::Refused,
            "TICKETS-ORDERED",
            || format!("{ticket:?} was refused, its event is {state:?}: {error}"),
        )
    }

    // Time.

    /// Moves the clock, and tells the engine unless its shell is late.
    pub(crate) fn pass(&mut self, nanos: u64, told: bool) -> Check {
        self.at.now = self.at.now.plus(nanos);
        self.at.wall_ms += nanos / 1_000_000;
        self.note(format!("now {} told {told}", self.at.now.0));
        if told { self.tick() } else { Ok(()) }
    }

    fn tick(&mut self) -> Check {
        let mut next = self.core.tick(self.at);
        for _ in 0..64 {
            if next.is_none_or(|next| next > self.at.now) {
                break;
            }
            next = self.core.tick(self.at);
        }
        self.end_due();
        let open = self.waits.all.values().filter(|wait| {
            let begun = matches!(&wait.wanted, Wanted::Call(served) if served.taken);
            begun && !wait.is_over()
        });
        let first = open.map(|wait| wait.deadline).min();
        ensure(
            first.is_none_or(|first| next.is_some_and(|next| next <= first)),
            "TIMERS",
            || format!("the next deadline is {next:?}, and a call is due at {first:?}"),
        )
    }

    fn end_due(&mut self) {
        let mut due = Vec::new();
        for (call, wait) in &mut self.waits.all {
            if wait.deadline <= self.at.now {
                wait.due = true;
                due.push(*call);
            }
        }
        for call in due {
            self.end_call(call, Code::Timeout);
        }
    }

    /// What is answered after its deadline has ended then, also when nobody has ticked since.
    pub(crate) fn end_if_over(&mut self, call: CallId) {
        let wait = self.waits.all.get_mut(&call);
        if let Some(wait) = wait.filter(|wait| wait.deadline <= self.at.now) {
            wait.due = true;
            self.end_call(call, Code::Timeout);
        }
    }

    /// A call ends without an answer of its provider.
    pub(crate) fn end_call(&mut self, call: CallId, code: Code) {
        let lease = self.waits.served(call).and_then(|served| served.lease);
        let provider = lease
            .and_then(|lease| self.held.get(&lease))
            .map(|held| held.session);
        self.waits.end_unanswered(call, code, provider);
    }

    // The log.

    /// Gives one answer to the engine, and does what follows from all that are answered in order.
    pub(crate) fn answer_log(&mut self, at: usize, accepted: bool) -> Check {
        let Some(record) = self.log.get_mut(at) else {
            return Ok(());
        };
        let (ticket, event) = (record.ticket, record.event);
        let n = self.log_end;
        let position = Position {
            partition: 1,
            epoch: 1,
            n,
        };
        let answer = if accepted {
            Answer::Logged(position)
        } else {
            Answer::Refused
        };
        record.answer = Some(answer);
        self.seen.note_if("log answered out of order", at > 0);
        self.seen.note_if("log refused a record", !accepted);
        self.note(format!("log {ticket:?} event {event} -> {answer:?}"));
        match answer {
            Answer::Logged(position) => self.core.logged(ticket, position, self.at),
            Answer::Refused => self.core.refused(ticket, log_error(), self.at),
        }
        self.log_end += self.dice.between(1, 3);
        self.settle_log()
    }

    fn settle_log(&mut self) -> Check {
        while self
            .log
            .first()
            .is_some_and(|record| record.answer.is_some())
        {
            let record = self.log.remove(0);
            if let Some(Answer::Logged(position)) = record.answer {
                self.positions.insert(record.event, position);
                self.book.apply(record.event, true)?;
            } else {
                self.book.refuse(record.event)?;
            }
        }
        Ok(())
    }

    // Checks.

    /// Reads all inboxes, lets those look for work who were not told of any, and holds both books against each other.
    pub(crate) fn check(&mut self) -> Check {
        self.note("check");
        self.drain_every()?;
        self.probe()?;
        self.drain_every()?;
        self.check_waits()?;
        self.check_books()
    }

    pub(crate) fn drain_every(&mut self) -> Check {
        for session in self.live_peers() {
            self.drain_all(session)?;
        }
        Ok(())
    }

    /// No wake-up is lost: who found nothing and was not told since finds nothing.
    fn probe(&mut self) -> Check {
        for taker in self.live_takers() {
            let idle = self
                .takers
                .get(&taker)
                .is_some_and(|call| !call.busy && !call.called);
            let streaming = matches!(taker, Taker::Sub(index)
                if self.book.subs.get(index).is_some_and(|s| s.stream && !s.open.is_empty()));
            if idle && !streaming {
                let found = self.take(taker, None)?;
                ensure(!found, "WAKE-LOOP", || {
                    format!("{taker:?} had work and was not told")
                })?;
            }
        }
        Ok(())
    }

    fn check_waits(&mut self) -> Check {
        for (call, wait) in &self.waits.all {
            let over = wait.is_over() || is_doubted(wait);
            ensure(wait.told || wait.gone || !over, "CALL-ONE-OUTCOME", || {
                format!("{call:?} is over and has no outcome")
            })?;
        }
        let due = (
            self.waits.cancels_due.first(),
            self.waits.credits_due.first(),
        );
        ensure(due.0.is_none(), "CALL-CANCEL", || {
            format!("{due:?} was never told")
        })?;
        ensure(due.1.is_none(), "STREAM-CREDIT", || {
            format!("{due:?} was never told")
        })
    }

    fn check_books(&mut self) -> Check {
        let audit = self.core.audit();
        ensure(audit.balanced, "CONSERVATION", || format!("{audit:?}"))?;
        for (index, sub) in self
            .book
            .subs
            .iter()
            .enumerate()
            .filter(|(_, sub)| sub.live)
        {
            let space = space_name(sub.space);
            let row = audit
                .subscriptions
                .iter()
                .find(|row| row.name == sub.name && row.namespace == space);
            let Some(row) = row else {
                return broken("CONSERVATION", format!("{} is not in the audit", sub.name));
            };
            self.seen.note_if("event expired", row.expired > 0);
            self.book.check_row(index, row, &self.limits)?;
        }
        let gauges = audit.gauges;
        let leased = self.held.len();
        ensure(gauges.leased == leased, "BOUNDED", || {
            format!("{leased} leases, {gauges:?}")
        })?;
        ensure(gauges.tickets == self.log.len(), "BOUNDED", || {
            format!("{gauges:?}")
        })
    }

    /// Nothing is left to do: every queue is empty and who still waits has nobody to wait for.
    pub(crate) fn check_rest(&mut self) -> Check {
        self.check()?;
        let audit = self.core.audit();
        for row in &audit.subscriptions {
            ensure(row.queued == 0 && row.leased == 0, "SETTLES", || {
                format!("{row:?}")
            })?;
        }
        let gauges = audit.gauges;
        let rest = gauges.parked + gauges.tickets + gauges.inbox + gauges.leased + gauges.lanes;
        ensure(rest == 0, "SETTLES", || format!("{gauges:?}"))?;
        for (call, wait) in &self.waits.all {
            let waiting = matches!(&wait.wanted, Wanted::Request(asked) if asked.waiting);
            ensure(wait.told || wait.gone || waiting, "SETTLES", || {
                format!("{call:?} has no outcome, and all work is done")
            })?;
        }
        self.book.check_rings()
    }

    /// All sessions have ended: nothing is left.
    pub(crate) fn check_gone(&mut self) -> Check {
        let gauges = self.core.gauges();
        ensure(gauges == Gauges::default(), "BOUNDED", || {
            format!("left behind: {gauges:?}")
        })
    }

    /// Notes the rare states that only the engine's own counts show.
    pub(crate) fn look_back(&mut self) {
        let lost = |reason| self.core.dropped(reason) > 0;
        let (lagging, overflow) = (lost(Reason::Lagging), lost(Reason::Overflow));
        self.seen
            .note_if("lagging subscription lost an event", lagging);
        self.seen.note_if("realtime event overflowed", overflow);
    }
}

fn is_doubted(wait: &Wait) -> bool {
    matches!(&wait.wanted, Wanted::Request(asked) if asked.doubted)
}

fn log_error() -> Error {
    Error {
        code: Code::Unavailable,
        message: "the log cannot take it now".to_owned(),
        field: None,
        limit: None,
        hint: None,
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
            last_logged: 0,
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

fn show_notice(notice: &Notice) -> String {
    match notice {
        Notice::Answer(call, delivery) => format!("answer {call:?} {}", delivery.envelope.id),
        Notice::Outcome(call, code, body) => {
            format!(
                "outcome {call:?} {code:?} {}",
                String::from_utf8_lossy(body).escape_debug()
            )
        }
        other => format!("{other:?}"),
    }
}
