//! Requests: asking, answering, and circles of those who wait for each other.

use std::sync::Arc;

use loom_core::{CallId, Code, Error, LeaseId, Nanos, Publish, Qos, Reply, Request};

use crate::event::{Event, State, tag};
use crate::habits::Habits;
use crate::publishing::From;
use crate::trace::{Check, broken, ensure};
use crate::waits::{Asked, Wait, Wanted};
use crate::world::{Held, Taker, World};

/// Whether a request waits for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Circle {
    No,
    Yes,
    /// A turn that has answered already is in it.
    Unsure,
}

/// What is expected of a request before it is made.
pub(crate) struct Outlook {
    responders: u32,
    wait: bool,
    circle: Circle,
    over: bool,
}

impl World {
    pub(crate) fn draw_deadline(&mut self, from: &From) -> (u64, Nanos) {
        let timeout = match self.dice.between(0, 9) {
            0 => 0,
            1..=5 => self.dice.between(1, 60),
            _ => self.dice.between(60, 5_000),
        };
        let own = self.at.now.plus_millis(timeout);
        let turn = from.turn.as_ref().and_then(|(_, held)| {
            // One who waits longer may have joined since the work began.
            let job = held.job.and_then(|job| self.jobs.get(job));
            job.map(|job| job.deadline).or(held.envelope.deadline)
        });
        (timeout, turn.map_or(own, |turn| turn.min(own)))
    }

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
            ack: None,
            eager: false,
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
        let refused = call
            .as_ref()
            .is_err_and(|error| error.limit == Some("run_events"));
        self.count_run(&from, (call.is_ok(), refused))?;
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

    pub(crate) fn enter_request(&mut self, call: CallId, of: (usize, bool), went: bool) -> Check {
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

    pub(crate) fn check_refused(
        &mut self,
        index: usize,
        outlook: &Outlook,
        error: &Error,
    ) -> Check {
        let full = self.book.may_be_full(index, &self.limits);
        let meant = match (error.code, error.limit) {
            (Code::Exhausted, Some("hops")) => outlook.over,
            (Code::Exhausted, Some("queue_items")) => full,
            (Code::Exhausted, Some("parked_offers" | "pending_calls" | "run_events")) => true,
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
    pub(crate) fn circle(&self, from: &From, event: &Event) -> Circle {
        // Who is back from quarantine may have a lane that another member has by now.
        let shed = |at: usize| self.book.subs.get(at).is_some_and(|s| s.shed.is_some());
        let spread = event.is_spread(shed);
        let first = from.turn.iter().map(|(lease, _)| (*lease, spread));
        let mut next: Vec<(LeaseId, bool)> = first.collect();
        let mut found = Circle::No;
        while let Some((lease, unsure)) = next.pop() {
            let Some(held) = self.held.get(&lease) else {
                continue;
            };
            if let Taker::Sub(index) = held.taker
                && is_asked(index, held, event)
            {
                if !unsure {
                    return Circle::Yes;
                }
                found = Circle::Unsure;
            }
            let job = held.job.and_then(|job| self.jobs.get(job));
            let adrift = job.is_some_and(|job| job.lease.is_none());
            let unsure = unsure || held.answered || adrift || self.is_stream(held.taker);
            next.extend(self.parents(held).into_iter().map(|lease| (lease, unsure)));
        }
        found
    }

    /// The turns that wait for what is done under a lease.
    pub(crate) fn parents(&self, held: &Held) -> Vec<LeaseId> {
        let job = held.job.and_then(|job| self.jobs.get(job));
        let calls = job.map(|job| job.waiters.clone()).unwrap_or_default();
        let asked = held.call.filter(|call| !self.waits.is_over(*call));
        let of_stream = held
            .envelope
            .reply_to
            .filter(|_| self.is_stream(held.taker));
        let calls = calls.into_iter().chain(asked.or(of_stream));
        let waits = calls.filter_map(|call| self.waits.all.get(&call));
        waits.filter_map(|wait| wait.parent).collect()
    }

    pub(crate) fn is_stream(&self, taker: Taker) -> bool {
        matches!(taker, Taker::Sub(index)
            if self.book.subs.get(index).is_some_and(|sub| sub.stream))
    }

    pub(crate) fn open_wait(
        &mut self,
        call: CallId,
        from: &From,
        deadline: Nanos,
        wanted: Wanted,
    ) -> Check {
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
        let of = Arc::clone(&held.envelope);
        self.waits.replies.push((call, who, of));
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
}

pub(crate) fn reply_of(lease: LeaseId, number: usize) -> Reply<'static> {
    Reply {
        lease,
        payload: tag(b'R', number, 9),
        content_type: None,
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
