//! The clock that jumps, and the log that delays and refuses.

use loom_core::{CallId, Code};

use crate::trace::{Check, ensure};
use crate::waits::Wanted;
use crate::world::World;

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
}
