//! The clock that jumps, and the log that delays and refuses.

use loom_core::{CallId, Code, Error, Position};

use crate::trace::{Check, ensure};
use crate::waits::Wanted;
use crate::world::{Answer, World};

impl World {
    /// Moves the clock, and tells the engine unless its shell is late.
    pub(crate) fn pass(&mut self, nanos: u64, told: bool) -> Check {
        self.at.now = self.at.now.plus(nanos);
        self.at.wall_ms += nanos / 1_000_000;
        self.note(format!("now {} told {told}", self.at.now.0));
        if told { self.tick() } else { Ok(()) }
    }

    pub(crate) fn tick(&mut self) -> Check {
        for sub in &mut self.book.subs {
            sub.eased = false;
        }
        let mut next = self.core.tick(self.at);
        for _ in 0..64 {
            if next.is_none_or(|next| next > self.at.now) {
                break;
            }
            next = self.core.tick(self.at);
        }
        self.next = next;
        self.end_due();
        let open = self.waits.all.values().filter(|wait| {
            let begun = matches!(&wait.wanted, Wanted::Call(served)
                if self.jobs.get(served.job).is_some_and(|job| job.lease.is_some()));
            begun && !wait.is_over()
        });
        let first = open.map(|wait| wait.deadline).min();
        ensure(
            first.is_none_or(|first| next.is_some_and(|next| next <= first)),
            "TIMERS",
            || format!("the next deadline is {next:?}, and a call is due at {first:?}"),
        )
    }

    pub(crate) fn end_due(&mut self) {
        let mut due = Vec::new();
        for (call, wait) in &mut self.waits.all {
            if wait.deadline <= self.at.now {
                wait.due = true;
                due.push((wait.deadline, *call));
            }
        }
        // Those due first end first.
        due.sort_unstable();
        for (_, call) in due {
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
        self.end_waiter(call, code);
    }

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

    pub(crate) fn settle_log(&mut self) -> Check {
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
}

fn log_error() -> Error {
    Error {
        code: Code::Unavailable,
        message: "the log cannot take it now".to_owned(),
        field: None,
        limit: None,
        hint: None,
        retry_after_ms: None,
    }
}
