//! Reading inboxes: each notice is held against what is known.

use loom_core::{CallId, Code, Error, Notice, Receipt, SessionId, Ticket};

use crate::event::State;
use crate::trace::{Check, broken, ensure};
use crate::world::World;

impl World {
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

    pub(crate) fn read(&mut self, session: SessionId, notice: Notice) -> Check {
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
            Notice::Chunk(call, bytes) => self.hear_chunk(session, call, &bytes),
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
            Notice::Probe(..) => ensure(false, "EFFECT-PROBE", || {
                "a provider without a probe is asked".to_owned()
            }),
            Notice::Due(millis) => {
                let bound = self.limits.retry_base_ms << self.limits.call_attempts;
                let longest = bound.min(self.limits.retry_cap_seconds * 1_000) + 1;
                self.seen.note("pause told to a caller");
                ensure(millis <= longest, "CALL-RETRY", || {
                    format!("a pause of {millis} ms, and {longest} is the longest")
                })
            }
            Notice::Accepted(ticket, receipt) => self.read_accepted(session, ticket, &receipt),
            Notice::Refused(ticket, error) => self.read_refused(session, ticket, &error),
            Notice::Removed(handle, _) => broken("LEASE-FENCED", format!("{handle:?} was removed")),
        }
    }

    pub(crate) fn read_outcome(
        &mut self,
        session: SessionId,
        call: CallId,
        code: Option<Code>,
        body: &[u8],
    ) -> Check {
        self.waits.end(session, call, code, self.at.now)?;
        self.check_served(call, code, body)?;
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

    pub(crate) fn read_accepted(
        &mut self,
        session: SessionId,
        ticket: Ticket,
        receipt: &Receipt,
    ) -> Check {
        let Some((owner, event)) = self.tickets.remove(&ticket) else {
            return broken("TICKETS-ORDERED", format!("{ticket:?} was taken twice"));
        };
        let known = self.book.event(event)?;
        let matched = known.targets.len();
        ensure(
            owner == session && receipt.matched == matched,
            "TICKETS-ORDERED",
            || format!("{ticket:?} of {owner:?} for {matched}: {receipt:?} at {session:?}"),
        )?;
        let id = *self.book.event(event)?.id.get_or_insert(receipt.id);
        ensure(id == receipt.id, "EVENT-IMMUTABLE", || {
            format!("event {event} has two ids, the second in {receipt:?}")
        })?;
        self.seen.note("batched publish taken after it was parked");
        self.book.apply(event, false)
    }

    pub(crate) fn read_refused(
        &mut self,
        session: SessionId,
        ticket: Ticket,
        error: &Error,
    ) -> Check {
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
