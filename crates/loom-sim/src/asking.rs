//! Requests, calls and streams: asking, answering, cancelling, and what must be refused.

use loom_core::{
    CallId, Code, Error, Fault, Invoke, LeaseId, Nanos, Publish, Qos, Reply, Request, SessionId,
};

use crate::actions::{CAPABILITIES, From, Habits};
use crate::book::{Event, State, tag};
use crate::trace::{Check, broken, ensure};
use crate::waits::{Asked, Served, Wait, Wanted};
use crate::world::{Held, Taker, World};

/// Whether a request waits for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Circle {
    No,
    Yes,
    /// A turn that has answered already is in it.
    Unsure,
}

/// What is expected of a request before it is made.
struct Outlook {
    responders: u32,
    wait: bool,
    circle: Circle,
    over: bool,
}

impl World {
    fn draw_deadline(&mut self, from: &From) -> (u64, Nanos) {
        let timeout = match self.dice.between(0, 9) {
            0 => 0,
            1..=5 => self.dice.between(1, 60),
            _ => self.dice.between(60, 5_000),
        };
        let own = self.at.now.plus_millis(timeout);
        let turn = from
            .turn
            .as_ref()
            .and_then(|(_, held)| held.envelope.deadline);
        (timeout, turn.map_or(own, |turn| turn.min(own)))
    }

    // Requests.

    pub(crate) fn request(&mut self, habits: &Habits) -> Check {
        let Some(from) = self.some_sender(60) else {
            return Ok(());
        };
        let (mut event, options) = self.draft(&from, habits);
        event.qos = Qos::Batched;
        let (timeout_ms, deadline) = self.draw_deadline(&from);
        event.deadline = Some(deadline);
        let first_k = self.dice.pick(&[1, 1, 1, 0, 2]).unwrap_or(1);
        let outlook = Outlook {
            responders: event.responders(),
            wait: self.dice.chance(20),
            circle: self.circle(&from, &event),
            over: self.hops_over(&from),
        };
        self.seen
            .note_if("request to many", first_k != 1 && outlook.responders > 1);
        let (topic, size) = (event.topic, event.size);
        let index = self.book.offer(event);
        let parked = self.core.gauges().parked;
        let publish = Publish {
            sender: from.handle,
            turn: from.turn.as_ref().map(|(lease, _)| *lease),
            topic,
            payload: tag(b'E', index, size),
            qos: Qos::Batched,
            options,
            durable: false,
        };
        let request = Request {
            publish,
            timeout_ms,
            first_k,
            wait: outlook.wait,
        };
        let call = self.core.request(from.session, request, self.at);
        self.note(format!(
            "request {index} {} {topic} {first_k} -> {call:?}",
            from.sender
        ));
        match call {
            Ok(call) => {
                let waiting = outlook.responders == 0;
                check_asked(call, &outlook)?;
                let went = self.core.gauges().parked == parked;
                self.enter_request(call, (index, waiting), went)?;
                let asked = Asked {
                    event: index,
                    enough: if first_k == 0 { u32::MAX } else { first_k },
                    matched: outlook.responders,
                    waiting,
                    ..Asked::default()
                };
                self.open_wait(call, &from, deadline, Wanted::Request(asked))
            }
            Err(error) => self.check_refused(index, &outlook, &error),
        }
    }

    fn enter_request(&mut self, call: CallId, of: (usize, bool), went: bool) -> Check {
        let (index, waiting) = of;
        let event = self.book.event(index)?;
        event.call = Some(call);
        if waiting {
            event.waited = true;
            event.targets.clear();
        }
        if went && !waiting {
            return self.book.apply(index, true);
        }
        self.seen.note_if("request parked", !waiting);
        self.book.wait(index, State::Unsure)
    }

    fn check_refused(&mut self, index: usize, outlook: &Outlook, error: &Error) -> Check {
        let full = self.book.may_be_full(index, &self.limits);
        let meant = match (error.code, error.limit) {
            (Code::Exhausted, Some("hops")) => outlook.over,
            (Code::Exhausted, Some("queue_items")) => full,
            (Code::Exhausted, Some("parked_offers" | "pending_calls")) => true,
            (Code::Unavailable, _) => outlook.responders == 0 && !outlook.wait,
            (Code::Deadlock, _) => outlook.circle != Circle::No,
            _ => false,
        };
        self.seen
            .note_if("deadlock refused", error.code == Code::Deadlock);
        ensure(meant, "REQUEST-DEADLOCK", || {
            format!("request {index} was refused: {error}")
        })?;
        self.book.refuse(index)
    }

    /// Follows who waits for whom, from the asking turn on.
    fn circle(&self, from: &From, event: &Event) -> Circle {
        let mut unsure = false;
        let mut next = from.turn.as_ref().map(|(lease, _)| *lease);
        while let Some(held) = next.and_then(|lease| self.held.get(&lease)) {
            if let Taker::Sub(index) = held.taker
                && is_asked(index, held, event)
            {
                return if unsure { Circle::Unsure } else { Circle::Yes };
            }
            let serves = held.call.filter(|call| !self.waits.is_over(*call));
            unsure |= held.answered || self.is_stream(held.taker);
            let of_stream = held
                .envelope
                .reply_to
                .filter(|_| self.is_stream(held.taker));
            let wait = serves
                .or(of_stream)
                .and_then(|call| self.waits.all.get(&call));
            next = wait.and_then(|wait| wait.parent);
        }
        Circle::No
    }

    fn is_stream(&self, taker: Taker) -> bool {
        matches!(taker, Taker::Sub(index)
            if self.book.subs.get(index).is_some_and(|sub| sub.stream))
    }

    fn open_wait(&mut self, call: CallId, from: &From, deadline: Nanos, wanted: Wanted) -> Check {
        let wait = Wait {
            session: from.session,
            deadline,
            due: false,
            parent: from.turn.as_ref().map(|(lease, _)| *lease),
            told: false,
            gone: false,
            wanted,
        };
        let known = self.waits.all.insert(call, wait);
        ensure(known.is_none(), "CALL-ONE-OUTCOME", || {
            format!("{call:?} was given out twice")
        })
    }

    pub(crate) fn reply_some(&mut self) -> Check {
        let turn = self.some_held(|held| held.asked && matches!(held.taker, Taker::Sub(_)));
        match turn {
            Some((lease, held)) => self.give_reply(lease, &held),
            None => Ok(()),
        }
    }

    pub(crate) fn give_reply(&mut self, lease: LeaseId, held: &Held) -> Check {
        let Some(call) = held.call else { return Ok(()) };
        if !held.answered {
            self.end_if_over(call);
        }
        let over = self.waits.is_over(call);
        let number = self.waits.replies.len();
        let who = match held.taker {
            Taker::Sub(index) => self.book.sub(index)?.name.clone(),
            Taker::Provider(_) => String::new(),
        };
        let who = format!("{}/{who}", held.envelope.origin.namespace);
        self.waits.replies.push((call, who));
        let heard = self
            .core
            .reply(held.session, reply_of(lease, number), self.at);
        self.note(format!(
            "reply {number} of {lease:?} to {call:?} -> {heard:?}"
        ));
        let Ok(heard) = heard else {
            return broken(
                "CALL-FOREIGN",
                format!("reply {number} was refused: {heard:?}"),
            );
        };
        self.seen.note_if("reply that comes twice", held.answered);
        self.seen
            .note_if("reply that comes late", over && !held.answered);
        ensure(!heard || (!held.answered && !over), "CALL-LATE", || {
            format!("reply {number} came late or twice, and was heard")
        })?;
        if let Some(held) = self.held.get_mut(&lease) {
            held.answered = true;
        }
        if held.answered {
            return Ok(());
        }
        if let Some(asked) = self.waits.asked(call) {
            asked.replied += u32::from(heard);
            asked.doubted |= !heard;
        }
        Ok(())
    }

    // Calls.

    pub(crate) fn invoke(&mut self) -> Check {
        let Some(from) = self.some_sender(40) else {
            return Ok(());
        };
        let capability = self.dice.word(CAPABILITIES);
        let (timeout_ms, deadline) = self.draw_deadline(&from);
        let most = self.limits.stream_chunks_max as u64;
        let credit = if self.dice.chance(50) {
            self.dice.between(1, most)
        } else {
            0
        };
        let over = self.hops_over(&from);
        let number = self.calls_made;
        self.calls_made += 1;
        let call = self.core.call(
            from.session,
            Invoke {
                sender: from.handle,
                turn: from.turn.as_ref().map(|(lease, _)| *lease),
                capability,
                payload: tag(b'C', number, 9),
                timeout_ms,
                key: None,
                credit,
            },
            self.at,
        );
        self.note(format!(
            "call {number} {capability} {timeout_ms} ms -> {call:?}"
        ));
        let key = (from.space, capability);
        let live = self
            .providers
            .iter()
            .filter(|p| p.live && (p.space, p.capability) == key);
        let offered = live.count() > 0;
        let gone_before = self.waits.gone.get(&key).copied().unwrap_or_default();
        let meant = match &call {
            Ok(_) => offered && !over,
            Err(error) => match (error.code, error.limit) {
                (Code::Exhausted, Some("hops")) => over,
                (Code::Exhausted, Some("provider_queue")) => {
                    offered && self.queued(key) >= self.limits.provider_queue
                }
                (Code::Exhausted, Some("pending_calls")) => true,
                (Code::NotFound, _) => !offered && gone_before == 0,
                (Code::ProviderUnavailable, _) => !offered && gone_before > 0,
                _ => false,
            },
        };
        ensure(meant, "CALL-UNKNOWN", || {
            format!("call {number} of {capability}: {call:?}")
        })?;
        let Ok(call) = call else { return Ok(()) };
        let served = Served {
            number,
            space: from.space,
            capability,
            gone_before,
            lease: None,
            taken: false,
            streamed: credit > 0,
            granted: credit,
            sent: 0,
            got: 0,
            starved: false,
            ending: None,
        };
        self.open_wait(call, &from, deadline, Wanted::Call(served))
    }

    /// Calls of a capability that nobody has begun; some may have ended unseen.
    fn queued(&self, key: (usize, &'static str)) -> usize {
        let open = self.waits.all.values().filter(|wait| !wait.is_over());
        let queued = open.filter(|wait| {
            matches!(&wait.wanted, Wanted::Call(served)
                if !served.taken && (served.space, served.capability) == key)
        });
        queued.count()
    }

    pub(crate) fn result_some(&mut self) -> Check {
        match self.some_held(|held| matches!(held.taker, Taker::Provider(_))) {
            Some((lease, held)) => self.give_result(lease, &held),
            None => Ok(()),
        }
    }

    pub(crate) fn give_result(&mut self, lease: LeaseId, held: &Held) -> Check {
        let Some(call) = held.call else { return Ok(()) };
        let number = self.waits.served(call).map_or(0, |served| served.number);
        self.end_if_over(call);
        let open = self.is_open(call);
        let heard = self
            .core
            .result(held.session, lease, tag(b'O', number, 9), self.at);
        self.note(format!("result of {lease:?} for {call:?} -> {heard:?}"));
        self.seen
            .note_if("answer of a provider that comes late", !open);
        ensure(heard == Ok(open), "CALL-LATE", || {
            format!("the result of {call:?}, open {open}, was answered {heard:?}")
        })?;
        self.held.remove(&lease);
        self.past.push(lease);
        self.waits.answer(call, None);
        Ok(())
    }

    /// Whether a call that was taken has no end yet.
    fn is_open(&self, call: CallId) -> bool {
        self.waits.all.get(&call).is_some_and(|wait| {
            !wait.gone && matches!(&wait.wanted, Wanted::Call(served) if served.ending.is_none())
        })
    }

    pub(crate) fn chunk_some(&mut self) -> Check {
        let work = self.some_held(|held| matches!(held.taker, Taker::Provider(_)));
        let Some((lease, held)) = work else {
            return Ok(());
        };
        let Some(call) = held.call else { return Ok(()) };
        let open = self.is_open(call);
        let Some(served) = self.waits.served(call) else {
            return Ok(());
        };
        let (streamed, credit) = (served.streamed, served.sent < served.granted);
        let next = usize::try_from(served.sent).unwrap_or(usize::MAX);
        let went = self.core.chunk(held.session, lease, tag(b'K', next, 9));
        self.note(format!("chunk {next} of {call:?} -> {went:?}"));
        let meant = match &went {
            Ok(went) => *went == (open && credit) && (streamed || !open),
            Err(error) => !streamed && open && error.code == Code::InvalidParams,
        };
        ensure(meant, "STREAM-CREDIT", || {
            format!("chunk {next} of {call:?}, open {open}, credit {credit}: {went:?}")
        })?;
        self.seen
            .note_if("chunk waited for credit", open && streamed && !credit);
        let Some(served) = self.waits.served(call).filter(|_| open && streamed) else {
            return Ok(());
        };
        served.sent += u64::from(credit);
        served.starved |= !credit;
        Ok(())
    }

    pub(crate) fn grant_some(&mut self) -> Check {
        let streams = self.waits.all.iter().filter(|(_, wait)| {
            let streamed = matches!(&wait.wanted, Wanted::Call(served) if served.streamed);
            streamed && !wait.gone && !wait.told
        });
        let streams: Vec<CallId> = streams.map(|(call, _)| *call).collect();
        let Some(call) = self.dice.pick(&streams) else {
            return Ok(());
        };
        let open = self.is_open(call);
        let most = self.limits.stream_chunks_max as u64;
        let Some(wait) = self.waits.all.get_mut(&call) else {
            return Ok(());
        };
        let session = wait.session;
        let Some(served) = wait.served() else {
            return Ok(());
        };
        let total = self
            .dice
            .between(served.granted.saturating_sub(1), served.granted + 3);
        let ahead = total.saturating_sub(served.sent) > most;
        let granted = self.core.grant(session, call, total, self.at);
        self.trace
            .note(format!("grant {total} to {call:?} -> {granted:?}"));
        // What was never taken may have ended with its provider.
        let meant = granted.is_ok() != (open && ahead) || (granted.is_ok() && !served.taken);
        ensure(meant, "STREAM-CREDIT", || {
            format!("credit {total} to {call:?}: {granted:?}")
        })?;
        self.seen
            .note_if("credit that comes twice", total <= served.granted);
        if granted.is_ok() && open && total > served.granted {
            served.granted = total;
            if std::mem::take(&mut served.starved)
                && let Some(lease) = served.lease
                && let Some(held) = self.held.get(&lease)
            {
                self.waits.credits_due.insert((held.session, lease, total));
            }
        }
        Ok(())
    }

    pub(crate) fn cancel_some(&mut self) -> Check {
        let open = self
            .waits
            .all
            .iter()
            .filter(|(_, wait)| !wait.gone && !wait.told);
        let open: Vec<CallId> = open.map(|(call, _)| *call).collect();
        let Some(call) = self.dice.pick(&open) else {
            return Ok(());
        };
        let Some(wait) = self.waits.all.get(&call) else {
            return Ok(());
        };
        let (session, due) = (wait.session, wait.due);
        let cancelled = self.core.cancel(session, call, self.at);
        self.note(format!("cancel {call:?} -> {cancelled:?}"));
        ensure(cancelled.is_ok(), "CALL-CANCEL", || {
            format!("{call:?}: {cancelled:?}")
        })?;
        self.end_call(call, Code::Cancelled);
        if let Some(asked) = self.waits.asked(call) {
            asked.cancelled |= !due;
        }
        Ok(())
    }

    // Misuse.

    /// Answers with a lease of another session, or with one that is over.
    pub(crate) fn misuse(&mut self) -> Check {
        if self.dice.chance(50) {
            self.use_foreign()
        } else {
            self.use_past()
        }
    }

    fn use_foreign(&mut self) -> Check {
        let Some((lease, held)) = self.some_held(|_| true) else {
            return Ok(());
        };
        let others = self.live_peers();
        let others: Vec<_> = others
            .into_iter()
            .filter(|other| *other != held.session)
            .collect();
        let Some(other) = self.dice.pick(&others) else {
            return Ok(());
        };
        let at = self.at;
        let own = self.live_takers();
        let own = own.into_iter().filter_map(|taker| self.taker(taker));
        let handle = own.into_iter().find(|(session, _, _)| *session == other);
        let refused: Vec<Option<Code>> = vec![
            self.core
                .reply(other, reply_of(lease, 0), at)
                .err()
                .map(|e| e.code),
            self.core
                .result(other, lease, tag(b'O', 0, 9), at)
                .err()
                .map(|e| e.code),
            self.core
                .fail(other, fault_of(lease, Code::ToolError), at)
                .err()
                .map(|e| e.code),
            self.core
                .chunk(other, lease, tag(b'K', 0, 9))
                .err()
                .map(|e| e.code),
            handle.map_or(Some(Code::Fenced), |(session, handle, _)| {
                self.core
                    .take(session, handle, Some(lease), at)
                    .err()
                    .map(|e| e.code)
            }),
        ];
        let refused = refused
            .into_iter()
            .chain(self.speak_foreign(other, lease, &held));
        let refused: Vec<Option<Code>> = refused.collect();
        self.note(format!("{other:?} uses {lease:?} -> {refused:?}"));
        self.seen.note("foreign lease refused");
        let all = refused.iter().all(|code| *code == Some(Code::Fenced));
        ensure(all, "CALL-FOREIGN", || {
            format!(
                "{other:?} used {lease:?} of {:?}: {refused:?}",
                held.session
            )
        })
    }

    /// Publishes in a turn, and with a handle, of another session.
    fn speak_foreign(
        &mut self,
        other: SessionId,
        lease: LeaseId,
        held: &Held,
    ) -> [Option<Code>; 2] {
        let roots = |session| self.core.root(session).ok();
        let (own, theirs) = (roots(other), roots(held.session));
        [(own, Some(lease)), (theirs, None)].map(|(sender, turn)| {
            let publish = Publish {
                sender: sender?,
                turn,
                topic: "a",
                payload: tag(b'X', 0, 9),
                qos: Qos::Realtime,
                options: None,
                durable: false,
            };
            let offered = self.core.offer(other, publish, self.at);
            offered.err().map(|error| error.code)
        })
    }

    fn use_past(&mut self) -> Check {
        let past = self.past.clone();
        let live = self.live_peers();
        let (Some(lease), Some(session)) = (self.dice.pick(&past), self.dice.pick(&live)) else {
            return Ok(());
        };
        let heard = [
            self.core.reply(session, reply_of(lease, 0), self.at),
            self.core.result(session, lease, tag(b'O', 0, 9), self.at),
            self.core
                .fail(session, fault_of(lease, Code::ToolError), self.at),
        ];
        self.note(format!("{session:?} uses past {lease:?} -> {heard:?}"));
        let none = heard.iter().all(|heard| !matches!(heard, Ok(true)));
        ensure(none, "CALL-LATE", || {
            format!("{lease:?} is over and was heard: {heard:?}")
        })
    }
}

fn reply_of(lease: LeaseId, number: usize) -> Reply<'static> {
    Reply {
        lease,
        payload: tag(b'R', number, 9),
        content_type: None,
    }
}

pub(crate) fn fault_of(lease: LeaseId, code: Code) -> Fault<'static> {
    Fault {
        lease,
        code,
        detail: b"{\"message\":\"no\"}",
    }
}

fn check_asked(call: CallId, outlook: &Outlook) -> Check {
    ensure(!outlook.over, "EVENT-HOPS", || {
        format!("request {call:?} went too far")
    })?;
    let heard = outlook.responders > 0 || outlook.wait;
    ensure(heard, "REQUEST-UNHEARD", || {
        format!("{call:?} is heard by nobody")
    })?;
    ensure(outlook.circle != Circle::Yes, "REQUEST-DEADLOCK", || {
        format!("{call:?} waits for itself")
    })
}

fn is_asked(index: usize, held: &Held, event: &Event) -> bool {
    let heard = event
        .targets
        .iter()
        .any(|t| !t.stream && t.members.contains(&index));
    heard && event.lane.as_ref() == Some(held.envelope.lane())
}
