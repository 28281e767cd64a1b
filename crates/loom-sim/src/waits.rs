//! The second book of calls and requests: each ends once, and only its own answers reach it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use loom_core::{CallId, Code, Delivery, Envelope, LeaseId, Nanos, SessionId};

use crate::event::read_tag;
use crate::trace::{Check, broken, ensure};
use crate::work::Ending;

pub(crate) struct Wait {
    pub(crate) session: SessionId,
    pub(crate) deadline: Nanos,
    /// A tick came after its deadline.
    pub(crate) due: bool,
    /// The turn that waits.
    pub(crate) parent: Option<LeaseId>,
    /// Its outcome was read.
    pub(crate) told: bool,
    /// Its session ended.
    pub(crate) gone: bool,
    pub(crate) wanted: Wanted,
}

pub(crate) enum Wanted {
    Request(Asked),
    Call(Served),
}

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Asked {
    pub(crate) event: usize,
    pub(crate) enough: u32,
    pub(crate) matched: u32,
    /// Answers that were heard, and those that were read.
    pub(crate) replied: u32,
    pub(crate) answers: u32,
    /// Turns that are known to have ended without one.
    pub(crate) declined: u32,
    /// It waits for a hearer.
    pub(crate) waiting: bool,
    pub(crate) cancelled: bool,
    /// An answer was not heard, so it must have ended.
    pub(crate) doubted: bool,
    /// All declined, it says.
    pub(crate) refused: bool,
}

pub(crate) struct Served {
    pub(crate) job: usize,
    /// How it has ended, once that is certain: one of these.
    pub(crate) ending: Vec<Ending>,
}

#[derive(Default)]
pub(crate) struct Waits {
    pub(crate) all: BTreeMap<CallId, Wait>,
    /// Which request each reply is for, who sent it, and the event it answers.
    pub(crate) replies: Vec<(CallId, String, Arc<Envelope>)>,
    read: BTreeSet<usize>,
    pub(crate) cancels_due: BTreeSet<(SessionId, LeaseId)>,
    pub(crate) credits_due: BTreeSet<(SessionId, LeaseId, u64)>,
    /// How often providers of a capability gave up their queue, by namespace.
    pub(crate) gone: BTreeMap<(usize, &'static str), u64>,
}

impl Wait {
    pub(crate) fn asked(&mut self) -> Option<&mut Asked> {
        match &mut self.wanted {
            Wanted::Request(asked) => Some(asked),
            Wanted::Call(_) => None,
        }
    }

    pub(crate) fn served(&mut self) -> Option<&mut Served> {
        match &mut self.wanted {
            Wanted::Call(served) => Some(served),
            Wanted::Request(_) => None,
        }
    }

    /// Whether it is certain to have ended.
    pub(crate) fn is_over(&self) -> bool {
        let ended = match &self.wanted {
            Wanted::Request(asked) => {
                let all = asked.replied + asked.declined >= asked.matched;
                asked.cancelled || asked.replied >= asked.enough || (all && !asked.waiting)
            }
            Wanted::Call(served) => !served.ending.is_empty(),
        };
        ended || self.told || self.gone || self.due
    }
}

impl Waits {
    pub(crate) fn served(&mut self, call: CallId) -> Option<&mut Served> {
        self.all.get_mut(&call)?.served()
    }

    pub(crate) fn asked(&mut self, call: CallId) -> Option<&mut Asked> {
        self.all.get_mut(&call)?.asked()
    }

    /// Whether a call is certain to have ended; requests of which nothing is known have not.
    pub(crate) fn is_over(&self, call: CallId) -> bool {
        self.all.get(&call).is_none_or(Wait::is_over)
    }

    pub(crate) fn hear(&mut self, session: SessionId, call: CallId, delivery: &Delivery) -> Check {
        let Some(number) = read_tag(b'R', &delivery.envelope.payload) else {
            return broken(
                "CALL-LATE",
                format!("{call:?} was answered with something else"),
            );
        };
        let known = self.replies.get(number);
        let env = &delivery.envelope;
        let own =
            known.is_some_and(|(asked, who, _)| *asked == call && **who == *env.origin.sender);
        ensure(own, "CALL-LATE", || {
            format!("{call:?} got reply {number} to {known:?}")
        })?;
        let stamped = known.is_some_and(|(_, _, of)| {
            env.run == of.run
                && env.causation == Some(of.id)
                && env.thread == of.thread
                && env.correlation == of.correlation
        });
        ensure(stamped, "RUN-STAMPED", || {
            format!("{known:?} was answered with {env:?}")
        })?;
        ensure(self.read.insert(number), "CALL-LATE", || {
            format!("reply {number} came twice")
        })?;
        let Some(wait) = self.all.get_mut(&call) else {
            return broken(
                "CALL-LATE",
                format!("an answer to {call:?}, which nobody made"),
            );
        };
        ensure(wait.session == session && !wait.told, "CALL-LATE", || {
            format!("an answer to {call:?} came to another session or after the end")
        })?;
        let Some(asked) = wait.asked() else {
            return broken("CALL-LATE", format!("an answer to the call {call:?}"));
        };
        asked.answers += 1;
        Ok(())
    }

    /// Holds the one outcome of a call or request against what is known of it.
    pub(crate) fn end(
        &mut self,
        session: SessionId,
        call: CallId,
        code: Option<Code>,
        now: Nanos,
    ) -> Check {
        let Some(wait) = self.all.get_mut(&call) else {
            return broken(
                "CALL-ONE-OUTCOME",
                format!("an outcome of {call:?}, made by nobody"),
            );
        };
        ensure(
            !wait.told && wait.session == session,
            "CALL-ONE-OUTCOME",
            || format!("{call:?} had a second outcome, or one at another session: {code:?}"),
        )?;
        wait.told = true;
        let due = wait.deadline <= now;
        match &mut wait.wanted {
            Wanted::Request(asked) => asked.check(call, code, due),
            Wanted::Call(_) => Ok(()),
        }
    }
}

impl Asked {
    fn check(&mut self, call: CallId, code: Option<Code>, due: bool) -> Check {
        let told = |what: &str| format!("request {call:?} ended with {code:?}: {what}");
        ensure(self.answers == self.replied, "REQUEST-MANY", || {
            told(&format!(
                "{} of {} answers were read",
                self.answers, self.replied
            ))
        })?;
        match code {
            None => ensure(self.replied > 0, "CALL-ONE-OUTCOME", || {
                told("nobody had answered")
            }),
            Some(Code::Timeout) => {
                ensure(due, "CALL-ONE-OUTCOME", || told("it was not due"))?;
                ensure(self.replied < self.enough, "CALL-ONE-OUTCOME", || {
                    told("it had enough")
                })
            }
            Some(Code::Cancelled) => ensure(self.cancelled, "CALL-ONE-OUTCOME", || {
                told("nobody cancelled it")
            }),
            Some(_) => {
                self.refused = true;
                ensure(self.replied == 0, "REQUEST-DECLINED", || {
                    told("somebody had answered")
                })
            }
        }
    }
}
