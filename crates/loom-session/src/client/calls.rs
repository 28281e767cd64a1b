//! Publishing, requesting, calling: what goes to the node and is answered once.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use loom_core::record::Level;
use loom_core::{
    CallId, Code, Error, LeaseId, Moment, Notice, Options, Qos, Receipt, Result, Ticket,
    check_topic,
};
use loom_proto::v1::{self, frame::Body};

use super::{Calling, Client, LinkState, Note, Publishing, Turn};
use crate::convert::{ack_number, ack_of, payload, qos_number, show_options};

/// An event to publish.
#[derive(Debug)]
pub struct Sending<'a> {
    /// A handle of this session; 0: the app itself.
    pub sender: u64,
    /// The turn or invocation it follows from.
    pub turn: Option<LeaseId>,
    /// Where.
    pub topic: &'a str,
    /// Opaque bytes.
    pub payload: Bytes,
    /// The delivery class.
    pub qos: Qos,
    /// What few events have.
    pub options: Option<Box<Options>>,
    /// How far it has to get; none: as the topic says.
    pub ack: Option<Level>,
}

/// What became of a publish so far.
#[derive(Debug)]
pub enum Sent {
    /// Realtime: it is on its way, and nobody will say more of it.
    Done(Receipt),
    /// Accepted or refused will follow.
    Waits(Ticket),
}

/// A call of a capability.
#[derive(Debug)]
pub struct Invocation<'a> {
    /// A handle of this session; 0: the app itself.
    pub sender: u64,
    /// The turn or invocation it follows from.
    pub turn: Option<LeaseId>,
    /// The capability's name.
    pub capability: &'a str,
    /// None: the newest that somebody can serve.
    pub version: Option<&'a str>,
    /// The arguments.
    pub payload: Bytes,
    /// How long the caller waits.
    pub timeout_ms: u64,
    /// The idempotency key.
    pub key: Option<&'a str>,
    /// 0: one result; else streamed, with so many chunks granted.
    pub credit: u64,
}

/// A call that the node answers ends there; one whose node is away ends here, so much later.
const GRACE_MS: u64 = 1_000;

impl Client {
    /// Publishes an event.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for what is no topic; `EXHAUSTED` where no more can be kept until the node takes it; `FENCED`.
    pub fn offer(&mut self, sending: Sending<'_>, at: Moment) -> Result<Sent> {
        self.check_open()?;
        check_topic(sending.topic, &self.core_limits)?;
        self.check_size(sending.payload.len())?;
        let quoted = self.quoted(sending.turn)?;
        let realtime = sending.qos == Qos::Realtime;
        if realtime && sending.ack.is_some_and(|ack| ack > Level::Accepted) {
            let message = "a realtime event cannot be durable";
            return Err(Error::invalid("qos", message).hint("use batched"));
        }
        let content_type = sending
            .options
            .as_ref()
            .and_then(|it| it.content_type.clone());
        let mut options = sending.options.as_deref().map(show_options).transpose()?;
        if !realtime && self.is_durable(sending.ack, sending.topic) {
            self.name(&mut options, at);
        }
        let number = if realtime { 0 } else { self.number() };
        let publish = v1::Publish {
            r#ref: number,
            sender: sending.sender,
            lease: quoted.wire,
            topic: sending.topic.to_owned(),
            payload: Some(payload(
                sending.payload,
                content_type.as_deref().unwrap_or_default(),
            )),
            qos: qos_number(sending.qos),
            ack: ack_number(sending.ack),
            options,
        };
        let frame = Body::Publish(publish);
        self.hold(&frame, quoted.turn, realtime)?;
        if realtime {
            return Ok(Sent::Done(Receipt {
                id: self.ids.mint(at.wall_ms),
                matched: 0,
                position: None,
                level: Level::Accepted,
            }));
        }
        if let Body::Publish(frame) = frame {
            let turn = quoted.turn;
            self.publishes.insert(number, Publishing { frame, turn });
        }
        Ok(Sent::Waits(Ticket(number)))
    }

    fn is_durable(&self, ack: Option<Level>, topic: &str) -> bool {
        match ack {
            Some(level) => level != Level::Accepted,
            None => self.durable.iter().any(|filter| filter.matches(topic)),
        }
    }

    /// Gives a publish the id by which another life of the node knows it, where it is sent again.
    fn name(&mut self, options: &mut Option<v1::Options>, at: Moment) {
        let options = options.get_or_insert_with(v1::Options::default);
        if options.id.is_empty() {
            options.id = loom_core::show_uuid(self.ids.mint(at.wall_ms));
        }
    }

    /// Names what was kept for a node that has only now said which topics are durable.
    pub(super) fn name_unsent(&mut self, waiting: &mut VecDeque<Body>, at: Moment) {
        for body in waiting {
            let Body::Publish(publish) = body else {
                continue;
            };
            let ack = ack_of(publish.ack).ok().flatten();
            if publish.r#ref > 0 && self.is_durable(ack, &publish.topic) {
                self.name(&mut publish.options, at);
                if let Some(known) = self.publishes.get_mut(&publish.r#ref) {
                    known.frame.options.clone_from(&publish.options);
                }
            }
        }
    }

    /// Gives up waiting for a publish.
    pub fn withdraw(&mut self, ticket: Ticket) -> bool {
        if self.publishes.remove(&ticket.0).is_none() {
            return false;
        }
        let waits = |body: &Body| matches!(body, Body::Publish(it) if it.r#ref == ticket.0);
        if !self.take_back(waits) {
            self.send(&Body::Withdraw(v1::Withdraw { r#ref: ticket.0 }));
        }
        true
    }

    /// Publishes an event whose sender waits for answers.
    ///
    /// # Errors
    /// As [`Self::offer`].
    pub fn request(
        &mut self,
        sending: Sending<'_>,
        (timeout_ms, first_k, wait): (u64, u32, bool),
        at: Moment,
    ) -> Result<CallId> {
        self.check_open()?;
        check_topic(sending.topic, &self.core_limits)?;
        self.check_size(sending.payload.len())?;
        let content_type = sending
            .options
            .as_ref()
            .and_then(|it| it.content_type.clone());
        let number = self.number();
        let quoted = self.quoted(sending.turn)?;
        let request = v1::Request {
            call: number,
            sender: sending.sender,
            lease: quoted.wire,
            topic: sending.topic.to_owned(),
            payload: Some(payload(
                sending.payload,
                content_type.as_deref().unwrap_or_default(),
            )),
            timeout_ms,
            first_k,
            wait,
            options: sending.options.as_deref().map(show_options).transpose()?,
        };
        let asked = (Body::Request(request), quoted.turn);
        self.begin(number, asked, timeout_ms, at)
    }

    /// Calls a capability.
    ///
    /// # Errors
    /// As [`Self::offer`].
    pub fn call(&mut self, call: &Invocation<'_>, at: Moment) -> Result<CallId> {
        self.check_open()?;
        self.check_size(call.payload.len())?;
        let number = self.number();
        let quoted = self.quoted(call.turn)?;
        let frame = v1::Call {
            call: number,
            sender: call.sender,
            lease: quoted.wire,
            capability: call.capability.to_owned(),
            version: call.version.unwrap_or_default().to_owned(),
            payload: Some(payload(call.payload.clone(), "")),
            timeout_ms: call.timeout_ms,
            key: call.key.unwrap_or_default().to_owned(),
            credit: call.credit,
        };
        let called = (Body::Call(frame), quoted.turn);
        self.begin(number, called, call.timeout_ms, at)
    }

    fn begin(
        &mut self,
        number: u64,
        (frame, turn): (Body, Option<Turn>),
        timeout_ms: u64,
        at: Moment,
    ) -> Result<CallId> {
        let deadline = at.now.plus_millis(timeout_ms);
        self.hold(&frame, turn, false)?;
        let is_sent = !self.is_outbound(number);
        self.calls.insert(
            number,
            Calling {
                frame,
                turn,
                deadline,
                is_sent,
                is_cancelled: false,
            },
        );
        self.deadlines.insert((deadline, number));
        Ok(CallId(number))
    }

    /// Nobody waits for a call any more.
    pub fn cancel(&mut self, call: CallId) {
        let Some(calling) = self.calls.get_mut(&call.0) else {
            return;
        };
        let is_first = !std::mem::replace(&mut calling.is_cancelled, true);
        if !calling.is_sent && self.take_back(|body| call_of(body) == Some(call.0)) {
            self.end_call(
                call.0,
                Some(Code::Cancelled),
                "the call was cancelled before it was sent",
            );
        } else if is_first {
            self.stop(call.0);
        }
    }

    /// Tells the node that nobody waits for a call any more.
    fn stop(&mut self, call: u64) {
        self.send(&Body::Cancel(v1::Cancel {
            call,
            lease: 0,
            code: 0,
        }));
    }

    /// Grants `total` chunks in all to a streamed call.
    pub fn grant(&mut self, call: CallId, total: u64) {
        if self.calls.contains_key(&call.0) {
            self.send(&Body::Grant(v1::Grant {
                call: call.0,
                lease: 0,
                total,
            }));
        }
    }

    /// Ends a call here.
    pub(super) fn end_call(&mut self, number: u64, code: Option<Code>, message: &str) {
        let Some(calling) = self.calls.remove(&number) else {
            return;
        };
        self.deadlines.remove(&(calling.deadline, number));
        let detail = serde_json::json!({ "message": message }).to_string();
        let outcome = Notice::Outcome(CallId(number), code, detail.into_bytes().into());
        self.note(Note::Core(outcome));
    }

    /// The node takes this session no more: everything that waits for it ends.
    pub(super) fn end_all(&mut self, error: &Error) {
        let waiting: BTreeSet<u64> = self.outbound.iter().filter_map(number_of).collect();
        self.outbound.clear();
        self.outbound_bytes = 0;
        self.quoting.clear();
        let unknown = Error::new(
            Code::Indeterminate,
            "the node ended the session before it said whether it has taken this",
        );
        for number in std::mem::take(&mut self.publishes).into_keys() {
            let error = if waiting.contains(&number) {
                error
            } else {
                &unknown
            };
            self.note(Note::Core(Notice::Refused(Ticket(number), error.clone())));
        }
        for number in std::mem::take(&mut self.asks).into_keys() {
            self.note(Note::Core(Notice::Refused(Ticket(number), error.clone())));
        }
        self.gathered.clear();
        let calls: Vec<(u64, bool)> = self
            .calls
            .iter()
            .map(|(number, it)| (*number, it.is_sent && matches!(it.frame, Body::Call(_))))
            .collect();
        for (number, is_unknown) in calls {
            let error = if is_unknown { &unknown } else { error };
            self.end_call(number, Some(error.code), &error.message);
        }
        let new = self.registrations.iter().filter(|(_, it)| !it.is_accepted);
        for number in new.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.registrations.remove(&number);
            self.note(Note::Core(Notice::Refused(Ticket(number), error.clone())));
        }
    }

    /// Ends calls that the node should have ended, or cannot end as it is away.
    pub(super) fn end_overdue(&mut self, at: Moment) {
        loop {
            let Some((deadline, number)) = self.deadlines.first().copied() else {
                return;
            };
            if self.local_end(deadline) > at.now {
                return;
            }
            let is_sent = self
                .calls
                .get(&number)
                .is_some_and(|calling| calling.is_sent);
            let is_call = self
                .calls
                .get(&number)
                .is_some_and(|it| matches!(it.frame, Body::Call(_)));
            if is_sent {
                // Should it reach the node only now, it is not to begin what nobody waits for.
                self.stop(number);
            } else {
                self.take_back(|body| call_of(body) == Some(number));
            }
            if is_sent && is_call {
                let message =
                    "the link to the node was lost, and it did not say in time how the call ended";
                self.end_call(number, Some(Code::Indeterminate), message);
            } else {
                self.end_call(
                    number,
                    Some(Code::Timeout),
                    "the node did not answer in time",
                );
            }
            self.deadlines.remove(&(deadline, number));
        }
    }

    fn local_end(&self, deadline: loom_core::Nanos) -> loom_core::Nanos {
        if self.state == LinkState::Up {
            deadline.plus_millis(GRACE_MS)
        } else {
            deadline
        }
    }

    /// When a call is to be ended here.
    pub(super) fn next_end(&self) -> Option<loom_core::Nanos> {
        self.deadlines
            .first()
            .map(|(deadline, _)| self.local_end(*deadline))
    }

    // -- what waits for credit ----------------------------------------------------------------------

    /// Sends a frame that spends credit, or keeps it until there is some. `turn`: the durable one that it quotes.
    fn hold(&mut self, body: &Body, turn: Option<Turn>, realtime: bool) -> Result<()> {
        // While the link is down nothing counts as sent: it can be taken back, and realtime events give way to newer ones.
        let is_up = self.wire.is_some_and(|wire| wire.is_welcome);
        if is_up && self.outbound.is_empty() && self.may_send() {
            self.spend(body);
            self.send(body);
            return Ok(());
        }
        let bytes = data_of(body);
        let (frames, most) = (
            self.config.limits.window_frames,
            self.config.limits.window_bytes,
        );
        let full = |it: &Self| {
            let more = it.outbound_bytes as u64 + bytes as u64;
            it.outbound.len() as u64 >= frames || more > most && !it.outbound.is_empty()
        };
        while full(self) {
            if !(realtime && self.drop_realtime()) {
                let message =
                    "the node has not taken what was sent before, and no more can be kept";
                return Err(Error::exhausted("session_frames", message)
                    .hint("wait for what was published, or publish less")
                    .retry_after(100));
            }
        }
        self.outbound_bytes += bytes;
        if let Some(lease) = lease_of(body) {
            let quoting = self.quoting.entry(lease).or_default();
            quoting.frames += 1;
            quoting.turn = turn;
        }
        self.outbound.push_back(body.clone());
        Ok(())
    }

    /// Drops the oldest realtime event that waits; the newest win.
    fn drop_realtime(&mut self) -> bool {
        let found = self.take_back(|body| matches!(body, Body::Publish(it) if it.r#ref == 0));
        self.dropped += u64::from(found);
        found
    }

    /// Takes the first frame out of those that wait for credit.
    pub(super) fn take_back(&mut self, which: impl Fn(&Body) -> bool) -> bool {
        let Some(at) = self.outbound.iter().position(which) else {
            return false;
        };
        if let Some(body) = self.outbound.remove(at) {
            self.let_go(&body);
        }
        true
    }

    fn let_go(&mut self, body: &Body) {
        self.outbound_bytes -= data_of(body);
        if let Some(lease) = lease_of(body)
            && let Some(quoting) = self.quoting.get_mut(&lease)
        {
            quoting.frames -= 1;
            if quoting.frames == 0 {
                self.quoting.remove(&lease);
            }
        }
    }

    fn is_outbound(&self, call: u64) -> bool {
        self.outbound
            .iter()
            .rev()
            .any(|body| call_of(body) == Some(call))
    }

    fn may_send(&self) -> bool {
        self.gone.frames < self.allowed.frames && self.gone.bytes < self.allowed.bytes
    }

    fn spend(&mut self, body: &Body) {
        self.gone.frames = self.gone.frames.saturating_add(1);
        self.gone.bytes = self.gone.bytes.saturating_add(data_of(body) as u64);
    }

    /// Sends what waits, as far as there is credit.
    pub(super) fn pump(&mut self) {
        while let Some(body) = self.outbound.front() {
            let costs = costs(body);
            if costs && !self.may_send() {
                return;
            }
            let Some(body) = self.outbound.pop_front() else {
                return;
            };
            self.let_go(&body);
            if costs {
                self.spend(&body);
            }
            if let Some(calling) = call_of(&body).and_then(|call| self.calls.get_mut(&call)) {
                calling.is_sent = true;
            }
            self.send(&body);
        }
    }

    /// Sends a frame about a lease, behind what quotes that lease and waits for credit.
    pub(super) fn send_after(&mut self, wire: u64, body: Body) {
        if self.quoting.contains_key(&wire) {
            self.outbound_bytes += data_of(&body);
            self.outbound.push_back(body);
        } else {
            self.send(&body);
        }
    }
}

/// Whether a frame spends credit.
fn costs(body: &Body) -> bool {
    matches!(body, Body::Publish(_) | Body::Request(_) | Body::Call(_))
}

pub(super) fn call_of(body: &Body) -> Option<u64> {
    match body {
        Body::Request(it) => Some(it.call),
        Body::Call(it) => Some(it.call),
        _ => None,
    }
}

/// What a frame that spends credit is known by.
pub(super) fn number_of(body: &Body) -> Option<u64> {
    match body {
        Body::Publish(it) => (it.r#ref > 0).then_some(it.r#ref),
        _ => call_of(body),
    }
}

pub(super) fn lease_of(body: &Body) -> Option<u64> {
    let lease = match body {
        Body::Publish(it) => it.lease,
        Body::Request(it) => it.lease,
        Body::Call(it) => it.lease,
        _ => 0,
    };
    (lease > 0).then_some(lease)
}

pub(super) fn data_of(body: &Body) -> usize {
    let data = match body {
        Body::Publish(it) => &it.payload,
        Body::Request(it) => &it.payload,
        Body::Call(it) => &it.payload,
        _ => &None,
    };
    data.as_ref().map_or(0, |payload| payload.data.len())
}
