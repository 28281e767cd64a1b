//! Calls and streams: calling, giving results and chunks, granting credit, cancelling.

use loom_core::{CallId, Code, Health, Invoke, LeaseId};

use crate::event::{Stamp, tag};
use crate::trace::{Check, ensure};
use crate::waits::{Served, Wanted};
use crate::world::{Held, Taker, World};

pub(crate) const CAPABILITIES: &[&str] = &["pure.look", "act.send", "act.pay"];

impl World {
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
                version: None,
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
        let offered = live.filter(|p| p.health == Health::Up).count() > 0;
        let known = self
            .providers
            .iter()
            .any(|p| (p.space, p.capability) == key);
        let gone_before = self.waits.gone.get(&key).copied().unwrap_or_default();
        let meant = match &call {
            Ok(_) => offered && !over,
            Err(error) => match (error.code, error.limit) {
                (Code::Exhausted, Some("hops")) => over,
                (Code::Exhausted, Some("provider_queue")) => {
                    offered && self.queued(key) >= self.limits.provider_queue
                }
                (Code::Exhausted, Some("pending_calls")) => true,
                (Code::NotFound, _) => !known,
                (Code::ProviderUnavailable, _) => !offered && known,
                _ => false,
            },
        };
        ensure(meant, "CALL-UNKNOWN", || {
            format!("call {number} of {capability}: {call:?}")
        })?;
        let Ok(call) = call else { return Ok(()) };
        let served = Served {
            number,
            sender: from.sender.clone(),
            stamp: from
                .turn
                .as_ref()
                .map(|(_, held)| Stamp::of(&held.envelope)),
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
    pub(crate) fn queued(&self, key: (usize, &'static str)) -> usize {
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
    pub(crate) fn is_open(&self, call: CallId) -> bool {
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
}
