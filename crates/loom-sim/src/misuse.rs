//! What must be refused: leases and handles of another session, and leases that are over.

use loom_core::{Code, Fault, LeaseId, Publish, Qos, SessionId};

use crate::event::tag;
use crate::requests::reply_of;
use crate::trace::{Check, ensure};
use crate::world::{Held, World};

impl World {
    /// Answers with a lease of another session, or with one that is over.
    pub(crate) fn misuse(&mut self) -> Check {
        if self.dice.chance(50) {
            self.use_foreign()
        } else {
            self.use_past()
        }
    }

    pub(crate) fn use_foreign(&mut self) -> Check {
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
                .fail(other, fault_of(lease, Code::ToolError, None), at)
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
    pub(crate) fn speak_foreign(
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
                ack: None,
                eager: false,
            };
            let offered = self.core.offer(other, publish, self.at);
            offered.err().map(|error| error.code)
        })
    }

    pub(crate) fn use_past(&mut self) -> Check {
        let past = self.past.clone();
        let live = self.live_peers();
        let (Some(lease), Some(session)) = (self.dice.pick(&past), self.dice.pick(&live)) else {
            return Ok(());
        };
        let heard = [
            self.core.reply(session, reply_of(lease, 0), self.at),
            self.core.result(session, lease, tag(b'O', 0, 9), self.at),
            self.core
                .fail(session, fault_of(lease, Code::ToolError, None), self.at),
        ];
        self.note(format!("{session:?} uses past {lease:?} -> {heard:?}"));
        let none = heard.iter().all(|heard| !matches!(heard, Ok(true)));
        ensure(none, "CALL-LATE", || {
            format!("{lease:?} is over and was heard: {heard:?}")
        })
    }
}

/// A fault; `said`, whether the same again may help.
pub(crate) fn fault_of(lease: LeaseId, code: Code, said: Option<bool>) -> Fault<'static> {
    let detail: &[u8] = match said {
        None => b"{\"message\":\"no\"}",
        Some(true) => b"{\"message\":\"no\",\"retry\":true}",
        Some(false) => b"{\"message\":\"no\",\"retry\":false}",
    };
    Fault {
        lease,
        code,
        detail,
    }
}
