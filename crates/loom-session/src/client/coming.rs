//! What the node says.

use std::sync::Arc;

use loom_core::{
    CallId, Code, Delivery, Envelope, Error, Handle, Moment, Notice, Receipt, Result, Ticket, Work,
};
use loom_proto::v1::{self, frame::Body};

use super::{Client, Gathered, Note};
use crate::convert::{ack_of, boxed, code_of, id_of, position_of, read_envelope, read_error};
use crate::planted::Planted;

impl Client {
    /// Takes a frame of the node in.
    ///
    /// # Errors
    /// What breaks the protocol: the connection is to be closed.
    pub(super) fn take_in(&mut self, frame: Body, at: Moment) -> Result<()> {
        match frame {
            Body::Deliver(deliver) => self.delivered(deliver, at)?,
            Body::Turn(turn) => self.turn(turn, at)?,
            Body::ActionCall(call) => self.action_call(call, at)?,
            Body::Accepted(accepted) => self.accepted(&accepted)?,
            Body::Done(done) => self.accept(
                done.r#ref,
                Receipt {
                    id: 0,
                    matched: 0,
                    position: None,
                    level: loom_core::record::Level::Accepted,
                },
            ),
            Body::Error(error) => self.refused(error),
            Body::Credit(credit) => {
                if self.bugs.has(Planted::CreditAsDelta) {
                    self.allowed.frames += credit.frames;
                }
                self.allowed.frames = self.allowed.frames.max(credit.frames);
                self.allowed.bytes = self.allowed.bytes.max(credit.bytes);
            }
            Body::Answer(answer) => {
                if let Some(event) = answer.event {
                    let env = self.envelope(event, true, at)?;
                    let delivery = plain(env);
                    let notice = Notice::Answer(CallId(answer.call), delivery);
                    if self.calls.contains_key(&answer.call) {
                        self.note(Note::Core(notice));
                    }
                }
            }
            Body::Outcome(outcome) => self.outcome(outcome),
            Body::Chunk(chunk) => {
                if self.calls.contains_key(&chunk.call) {
                    let notice = Notice::Chunk(CallId(chunk.call), boxed(chunk.payload).0);
                    self.note(Note::Core(notice));
                }
            }
            Body::Grant(_) | Body::Cancel(_) | Body::Probe(_) => self.for_provider(&frame)?,
            Body::Entries(it) => self.entries(it),
            Body::Kept(it) => self.kept(it),
            Body::Page(it) => self.page(it, at)?,
            // It says when it goes; until then all goes on. It waits to know that this has come.
            Body::Drain(_) => self.confirm(),
            _ => return Err(Error::invalid("frame", "a node does not send this frame")),
        }
        Ok(())
    }

    fn envelope(&mut self, shown: v1::Envelope, asked: bool, at: Moment) -> Result<Arc<Envelope>> {
        let mut origin = |sender: &str| self.origin(sender);
        let mut env = read_envelope(shown, &mut origin, at)?;
        env.reply_to = asked.then_some(CallId(1));
        env.expires = env.ttl_ms.map(|ttl| at.now.plus_millis(ttl));
        Ok(Arc::new(env))
    }

    fn delivered(&mut self, deliver: v1::Deliver, at: Moment) -> Result<()> {
        let Some(event) = deliver.event else {
            return Err(Error::invalid("deliver", "a delivery without an event"));
        };
        let asked = deliver.targets.iter().any(|target| target.asked);
        let env = self.envelope(event, asked, at)?;
        for target in deliver.targets {
            let delivery = Delivery {
                asked: target.asked,
                attempt: target.attempt.max(1),
                turn: target.recorded,
                ..plain(Arc::clone(&env))
            };
            self.deliver(target.handle, target.lease, target.lane, delivery);
        }
        Ok(())
    }

    fn turn(&mut self, turn: v1::Turn, at: Moment) -> Result<()> {
        let (Some(event), Some(target)) = (turn.event, turn.target) else {
            return Err(Error::invalid(
                "turn",
                "a turn without an event or a target",
            ));
        };
        let env = self.envelope(event, target.asked, at)?;
        let delivery = Delivery {
            asked: target.asked,
            attempt: target.attempt.max(1),
            turn: target.recorded,
            durable: true,
            ..plain(env)
        };
        self.deliver(target.handle, target.lease, target.lane, delivery);
        Ok(())
    }

    fn action_call(&mut self, call: v1::ActionCall, at: Moment) -> Result<()> {
        let Some(event) = call.event else {
            return Err(Error::invalid("action_call", "a call without an event"));
        };
        let env = self.envelope(event, true, at)?;
        let effect = (!call.effect_id.is_empty()).then(|| id_of("effect_id", &call.effect_id));
        let delivery = Delivery {
            asked: true,
            attempt: call.attempt.max(1),
            turn: call.recorded,
            work: Some(Work {
                streamed: call.streamed,
                credit: call.credit,
                effect: effect.transpose()?,
            }),
            ..plain(env)
        };
        self.deliver(call.handle, call.lease, 0, delivery);
        Ok(())
    }

    fn accepted(&mut self, it: &v1::Accepted) -> Result<()> {
        let receipt = Receipt {
            id: id_of("id", &it.id)?,
            matched: usize::try_from(it.matched).unwrap_or(usize::MAX),
            position: position_of(&it.position)?,
            // A newer node may have levels that are not known here: the least is claimed.
            level: ack_of(it.level).ok().flatten().unwrap_or_default(),
        };
        self.newest = self.newest.max(receipt.position);
        self.accept(it.r#ref, receipt);
        Ok(())
    }

    fn accept(&mut self, number: u64, receipt: Receipt) {
        let registered = self.registrations.get_mut(&number);
        // One that is registered again with another life of its node was told of before.
        let is_new =
            registered.is_some_and(|found| !std::mem::replace(&mut found.is_accepted, true));
        let is_known =
            self.publishes.remove(&number).is_some() || self.asks.remove(&number).is_some();
        if is_new || is_known {
            self.note(Note::Core(Notice::Accepted(Ticket(number), receipt)));
        }
    }

    fn refused(&mut self, shown: v1::Error) {
        let number = shown.r#ref;
        let (code, detail) = read_error(shown);
        let mut error = Error::new(code, detail.message);
        error.field = detail.field;
        error.hint = detail.hint;
        error.retry_after_ms = detail.retry_after_ms;
        error.limit = detail.limit.as_deref().and_then(limit_named);
        let registered = self.registrations.get(&number);
        if registered.is_some() && code == Code::Unavailable {
            // A node that is about to stop registers nobody: it is said again to the next life of it.
            return;
        }
        if registered.is_some_and(|found| found.is_accepted) {
            self.forget(number);
            self.note(Note::Core(Notice::Removed(Handle(number), error)));
        } else if number > 0 {
            self.gathered.remove(&number);
            // One that was withdrawn, or taken back, has ended already.
            let is_waited_for = self.forget(number)
                || self.publishes.remove(&number).is_some()
                || self.asks.remove(&number).is_some();
            if is_waited_for {
                self.note(Note::Core(Notice::Refused(Ticket(number), error)));
            }
        }
    }

    fn outcome(&mut self, outcome: v1::Outcome) {
        let Some(calling) = self.calls.remove(&outcome.call) else {
            return;
        };
        self.deadlines.remove(&(calling.deadline, outcome.call));
        let code = (outcome.code > 0).then(|| code_of(outcome.code));
        let notice = Notice::Outcome(CallId(outcome.call), code, boxed(outcome.payload).0);
        self.note(Note::Core(notice));
    }

    fn for_provider(&mut self, frame: &Body) -> Result<()> {
        match frame {
            Body::Grant(grant) => {
                if let Some(lease) = self.local(grant.lease)
                    && let Some(held) = self.leases.get_mut(&lease.0)
                {
                    held.credit = held.credit.max(grant.total);
                    self.note(Note::Core(Notice::Credit(lease, grant.total)));
                }
            }
            Body::Cancel(cancel) => {
                if let Some(lease) = self.local(cancel.lease)
                    && !self.give_up_waiting(lease)
                {
                    let code = if cancel.code == 0 {
                        Code::Cancelled
                    } else {
                        code_of(cancel.code)
                    };
                    self.note(Note::Core(Notice::Cancel(lease, code)));
                }
            }
            Body::Probe(probe) => {
                let effect = id_of("effect_id", &probe.effect_id)?;
                self.note(Note::Core(Notice::Probe(Handle(probe.handle), effect)));
            }
            _ => {}
        }
        Ok(())
    }

    fn gather(&mut self, number: u64) -> &mut Gathered {
        self.gathered.entry(number).or_default()
    }

    fn entries(&mut self, it: v1::Entries) {
        if !self.asks.contains_key(&it.r#ref) {
            return;
        }
        self.gather(it.r#ref).entries.extend(it.entries);
        if it.last {
            let all = self.gathered.remove(&it.r#ref).unwrap_or_default();
            if self.asks.remove(&it.r#ref).is_some() {
                self.note(Note::Entries(it.r#ref, all.entries));
            }
        }
    }

    fn kept(&mut self, it: v1::Kept) {
        if !self.asks.contains_key(&it.r#ref) {
            return;
        }
        let values = it.values.into_iter();
        let values = values.map(|it| (it.key, it.value.unwrap_or_default().data, it.until_ms));
        self.gather(it.r#ref).kept.extend(values);
        if it.last {
            let all = self.gathered.remove(&it.r#ref).unwrap_or_default();
            if let Some(Body::Keep(asked)) = self.asks.remove(&it.r#ref) {
                self.note(Note::Kept(it.r#ref, all.kept, asked.sender == 0));
            }
        }
    }

    fn page(&mut self, it: v1::Page, at: Moment) -> Result<()> {
        if !self.asks.contains_key(&it.r#ref) {
            return Ok(());
        }
        for event in it.events {
            let env = self.envelope(event, false, at)?;
            self.gather(it.r#ref).events.push(env);
        }
        if !it.next.is_empty() {
            let all = self.gathered.remove(&it.r#ref).unwrap_or_default();
            if self.asks.remove(&it.r#ref).is_some() {
                self.note(Note::Page(it.r#ref, all.events, it.next, it.at_end));
            }
        }
        Ok(())
    }
}

/// A delivery that is nobody's turn yet.
fn plain(envelope: Arc<Envelope>) -> Delivery {
    Delivery {
        lease: None,
        envelope,
        asked: false,
        attempt: 1,
        durable: false,
        work: None,
        turn: 0,
    }
}

/// A limit of this name, if there is one: errors name those of the spec only.
fn limit_named(name: &str) -> Option<&'static str> {
    let names = &loom_core::spec::limits::NAMES;
    names
        .binary_search(&name)
        .ok()
        .and_then(|at| names.get(at).copied())
}
