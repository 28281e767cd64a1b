//! One session at the node: what its frames do to the core, and what the core has for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use loom_core::record::{Body as Kept, Memory, State};
use loom_core::spec::limits;
use loom_core::{
    AgentSpec, CallId, Code, Core, Delivery, DirectoryKind, Error, Fault, Handle, Health, Invoke,
    LeaseId, LogLine, Moment, Nanos, Notice, Offer, Position, ProbeAnswer, Probed, ProviderSpec,
    Publish, Receipt, Reply, Report, Request, Resolution, Resolve, SessionId, Start, Ticket, Told,
};
use loom_proto::v1::{self, frame::Body};
use rustc_hash::FxHashMap;

use crate::channel::{Channel, Class};
use crate::convert::{
    ack_number, ack_of, boxed, code_number, code_of, effect_of, id_bytes, id_of, json, position_of,
    qos_of, read_options, show_envelope, show_error,
};
use crate::info;
use crate::limits::Limits;
use crate::planted::{Bugs, Planted};

/// Who may call these may read and write the memory of its namespace.
const MEMORY_GET: &str = "memory.get";
const MEMORY_PUT: &str = "memory.put";
/// Notices that are taken out of the inbox at once.
const NOTICES: usize = 512;
/// What may wait in the channel before no more deliveries are taken from the core.
const BACKLOG_BYTES: usize = 256 << 10;
/// What may be sent, or wait to be, and not be confirmed: beyond it nothing is taken from the core, and nothing granted.
/// A client confirms each 64 frames and each 128 KiB.
const HELD_BYTES: usize = 16 << 20;
const HELD_FRAMES: usize = 16 << 10;
/// Answers to what spends no credit, of these: a client that asks on and does not listen is sent away.
const OWED_BYTES: usize = 8 << 20;
const OWED_FRAMES: usize = 8 << 10;
/// Entries of the directory, or kept values, in one frame at most.
const PAGE: usize = 256;
const PAGE_BYTES: usize = 48 << 10;

/// What has to be done outside, as it waits for the disk.
#[derive(Debug, Clone)]
pub struct ReadErrand {
    /// Quoted in the answer.
    pub reference: u64,
    /// Whose log.
    pub namespace: String,
    /// What to read of it.
    pub filters: Vec<String>,
    /// "beginning", a position, "time:" and milliseconds, or what an earlier look gave.
    pub start: String,
    /// Only the place of the first is asked for: a group is to begin there.
    pub(crate) finds: bool,
}

/// All others read it who look through the memory: one that they cannot read would keep them from all of it.
fn check_kept(it: &v1::Keep) -> Result<(), Error> {
    let given = |message: String| Error::invalid("key", message);
    if it.key.is_empty() {
        return Err(given("a key must not be empty".to_owned()).hint("name what is kept"));
    }
    if it.key.len() > limits::KEY_BYTES {
        let (came, most) = (it.key.len(), limits::KEY_BYTES);
        let message = format!("the key has {came} bytes of at most {most}");
        return Err(given(message).limit("key_bytes"));
    }
    if it.key.chars().any(char::is_control) {
        return Err(given("the key has a control character".to_owned()).hint("leave it out"));
    }
    if it.gone {
        return Ok(());
    }
    let (data, kind) = it.value.as_ref().map_or((&[][..], ""), |value| {
        (&value.data[..], value.content_type.as_str())
    });
    let wrong = match serde_json::from_slice::<serde_json::Value>(data) {
        Err(error) => error.to_string(),
        Ok(_) if !matches!(kind, "" | "application/json") => format!("its type is {kind:?}"),
        Ok(_) => return Ok(()),
    };
    let message = format!("it is no JSON that can be read: {wrong}");
    Err(Error::invalid("value", message).hint("a memory keeps JSON values, not bytes"))
}

/// What a registration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Agent,
    Stream,
    Provider,
}

#[derive(Debug)]
struct Registered {
    handle: Handle,
    kind: Kind,
    /// Deliveries of it that are out.
    out: usize,
    /// And at most: those that its client works on, and some before they are begun.
    most_out: usize,
    /// It may have work in the core.
    ready: bool,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    id: LeaseId,
    /// The client's number of its registration.
    handle: u64,
    durable: bool,
    attempt: u32,
}

/// What of the credit is out with an answer.
#[derive(Debug, Clone, Copy)]
struct Ref {
    number: u64,
    /// What it spent; none: it spends nothing.
    bytes: Option<u64>,
}

/// What a session did in all; counted since it began.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flow {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

/// One session.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) core: SessionId,
    root: Handle,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) channel: Channel,
    handles: BTreeMap<u64, Registered>,
    numbers: FxHashMap<Handle, u64>,
    /// Registrations that may have work, each once.
    ready: VecDeque<u64>,
    leases: FxHashMap<u64, Lease>,
    /// Of invocations: what the core calls by the lease's own number.
    works: FxHashMap<LeaseId, u64>,
    next_lease: u64,
    calls: FxHashMap<u64, (CallId, u64)>,
    call_numbers: FxHashMap<CallId, u64>,
    tickets: FxHashMap<Ticket, Ref>,
    refs: FxHashMap<u64, Ticket>,
    /// What came in, what of it has been dealt with, and what was granted.
    came: Flow,
    dealt: Flow,
    granted: Flow,
    /// What went out, and what the client granted.
    gone: Flow,
    allowed: Flow,
    /// When the core has to be ticked for what this session waits for.
    pub(crate) due: Option<Nanos>,
    pub(crate) reads: Vec<ReadErrand>,
    /// Reads of the log that have no answer yet.
    reading: usize,
    /// A new group that begins at a time: where that is has to be read. All that comes meanwhile waits for it.
    finding: Option<Box<v1::Register>>,
    held_back: VecDeque<Body>,
    held_back_bytes: usize,
    draining: bool,
    /// The client is gone for good.
    pub(crate) has_left: bool,
}

impl Attached {
    pub(crate) fn new(
        core: &Core,
        session: SessionId,
        (name, namespace): (&str, &str),
        channel: Channel,
    ) -> Result<Self, Error> {
        Ok(Self {
            core: session,
            root: core.root(session)?,
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            channel,
            handles: BTreeMap::new(),
            numbers: FxHashMap::default(),
            ready: VecDeque::new(),
            leases: FxHashMap::default(),
            works: FxHashMap::default(),
            next_lease: 0,
            calls: FxHashMap::default(),
            call_numbers: FxHashMap::default(),
            tickets: FxHashMap::default(),
            refs: FxHashMap::default(),
            came: Flow::default(),
            dealt: Flow::default(),
            granted: Flow::default(),
            gone: Flow::default(),
            allowed: Flow::default(),
            due: None,
            reads: Vec::new(),
            reading: 0,
            finding: None,
            held_back: VecDeque::new(),
            held_back_bytes: 0,
            draining: false,
            has_left: false,
        })
    }

    /// What the client may send from here on.
    pub(crate) fn grant(&mut self, limits: &Limits) -> v1::Credit {
        self.granted = Flow {
            frames: self.dealt.frames.saturating_add(limits.window_frames),
            bytes: self.dealt.bytes.saturating_add(limits.window_bytes),
        };
        self.granted()
    }

    /// What the client was granted so far.
    pub(crate) fn granted(&self) -> v1::Credit {
        v1::Credit {
            frames: self.granted.frames,
            bytes: self.granted.bytes,
        }
    }

    /// What we may send; a number that falls is an old one.
    pub(crate) fn allow(&mut self, credit: v1::Credit) {
        self.allowed.frames = self.allowed.frames.max(credit.frames);
        self.allowed.bytes = self.allowed.bytes.max(credit.bytes);
    }

    /// No new work is taken.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether nothing of it is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.leases.is_empty()
            && self.tickets.is_empty()
            && self.finding.is_none()
            && self.channel.held() == 0
    }

    /// Turns and invocations that are out, registrations, and calls that wait.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.leases.len(), self.handles.len(), self.calls.len())
    }

    fn control(&mut self, body: &Body) {
        self.channel.push(body, Class::Control);
    }

    /// Answers what has spent no credit.
    fn owe(&mut self, body: &Body, class: Class) {
        self.channel.push_owed(body, class);
    }

    fn refuse(&mut self, reference: u64, error: &Error) {
        self.owe(&Body::Error(show_error(reference, error)), Class::Control);
    }

    fn answer(&mut self, reference: u64, done: Result<(), Error>) {
        match done {
            Ok(()) => self.owe(&Body::Done(v1::Done { r#ref: reference }), Class::Control),
            Err(error) => self.refuse(reference, &error),
        }
    }

    // -- frames of the client -------------------------------------------------------------------

    /// Does what a frame asks for.
    ///
    /// # Errors
    /// What breaks the protocol: the connection is to be closed.
    pub(crate) fn take_in(
        &mut self,
        frame: Body,
        core: &mut Core,
        at: Moment,
        limits: &Limits,
    ) -> Result<(), Error> {
        if self.channel.owed().0 > OWED_FRAMES {
            let message = "answers to this session are not taken";
            return Err(Error::exhausted("session_frames", message));
        }
        if self.finding.is_some() && !matches!(frame, Body::Credit(_)) {
            return self.hold_back(frame);
        }
        match frame {
            Body::Publish(publish) => self.publish(publish, core, at)?,
            Body::Ack(ack) if ack.goes_on => self.ack_early(&ack.leases, core, at),
            Body::Ack(ack) => self.ack(&ack.leases, core, at),
            Body::Credit(credit) => self.allow(credit),
            Body::Request(request) => self.request(request, core, at)?,
            Body::Call(call) => self.call(call, core, at)?,
            Body::Reply(_) | Body::Result(_) | Body::Fail(_) | Body::Chunk(_) => {
                self.end_work(frame, core, at);
            }
            Body::Nak(_) | Body::Extend(_) | Body::Term(_) => self.settle(&frame, core, at),
            Body::Cancel(cancel) => self.cancel(&cancel, core, at),
            Body::Grant(grant) => {
                if let Some((call, _)) = self.calls.get(&grant.call) {
                    // A grant for a call that has ended meanwhile is no mistake.
                    let _ = core.grant(self.core, *call, grant.total, at);
                }
            }
            Body::Register(it) if self.begins_at_a_time(&it, core) => self.find(it, limits),
            Body::Register(_) | Body::Provide(_) | Body::Subscribe(_) => {
                self.enrol(&frame, core, at, limits);
            }
            Body::Unsubscribe(it) => self.unsubscribe(it.handle, core, at),
            Body::Status(_) | Body::Describe(_) => self.tell(&frame, core, at),
            Body::Withdraw(it) => self.withdraw(it.r#ref, core, at),
            Body::Probed(probed) => self.probed(probed, core, at),
            Body::Step(step) => self.step(step, core, at),
            Body::Commit(commit) => self.commit(&commit, core, at),
            Body::Report(report) => self.report(&report, core, at),
            Body::Keep(keep) => self.keep(keep, core, at),
            Body::Route(_) | Body::Resolve(_) | Body::Redrive(_) => self.operate(frame, core, at),
            Body::Directory(it) => self.directory(&it, core),
            Body::Read(read) => self.read(read, limits),
            Body::Blob(blob) => {
                let error = Error::new(Code::NotSupported, "pieces of bodies are not served yet");
                self.refuse(blob.r#ref, &error);
            }
            Body::Drain(_) => self.has_left = true,
            _ => return Err(Error::invalid("frame", "a client does not send this frame")),
        }
        Ok(())
    }

    fn spend(&mut self, bytes: usize) -> Result<u64, Error> {
        if self.came.frames >= self.granted.frames || self.came.bytes >= self.granted.bytes {
            return Err(Error::exhausted(
                "session_window",
                "more was sent than was granted",
            ));
        }
        let bytes = bytes as u64;
        self.came.frames += 1;
        self.came.bytes = self.came.bytes.saturating_add(bytes);
        Ok(bytes)
    }

    fn give_back(&mut self, bytes: u64) {
        self.dealt.frames += 1;
        self.dealt.bytes += bytes;
    }

    /// The handle of a sender: 0 is the session itself.
    fn sender(&self, number: u64) -> Result<Handle, Error> {
        if number == 0 {
            return Ok(self.root);
        }
        let found = self.handles.get(&number).map(|it| it.handle);
        found.ok_or_else(|| {
            Error::fenced("this sender is not registered, or no longer").field("sender")
        })
    }

    fn lease(&self, number: u64) -> Result<Option<LeaseId>, Error> {
        if number == 0 {
            return Ok(None);
        }
        let found = self.leases.get(&number).map(|lease| Some(lease.id));
        found.ok_or_else(|| {
            Error::fenced("this turn is over, or not one of this session")
                .field("lease")
                .hint("a context may be used only while its handler runs")
        })
    }

    fn publish(&mut self, publish: v1::Publish, core: &mut Core, at: Moment) -> Result<(), Error> {
        let size = publish.payload.as_ref().map_or(0, |it| it.data.len());
        let bytes = self.spend(size)?;
        let (reference, sender, lease) = (publish.r#ref, publish.sender, publish.lease);
        if self.refs.contains_key(&reference) {
            return Err(Error::invalid(
                "ref",
                "a publish with this number is under way",
            ));
        }
        match self.offer(publish, core, at) {
            Ok(Offer::Parked(ticket) | Offer::Logging(ticket)) => {
                self.tickets.insert(
                    ticket,
                    Ref {
                        number: reference,
                        bytes: Some(bytes),
                    },
                );
                if reference > 0 {
                    self.refs.insert(reference, ticket);
                }
                self.due = Some(at.now);
            }
            Ok(Offer::Done(receipt)) => {
                self.give_back(bytes);
                if reference > 0 {
                    self.accepted(reference, &receipt);
                }
            }
            Ok(Offer::NoRoom) => self.give_back(bytes),
            Err(error) => {
                self.give_back(bytes);
                if reference > 0 {
                    self.refuse(reference, &error);
                } else {
                    self.report_lost((sender, lease), &error, core, at);
                }
            }
        }
        Ok(())
    }

    /// Nobody waits for the end of a realtime publish: its refusal is an error event.
    fn report_lost(&self, (sender, lease): (u64, u64), error: &Error, core: &mut Core, at: Moment) {
        let Ok(sender) = self.sender(sender) else {
            return;
        };
        let report = Report {
            sender,
            turn: self.lease(lease).ok().flatten(),
            code: error.code,
            detail: &serde_json::to_vec(&error.detail()).unwrap_or_default(),
        };
        // It is the report of a loss already: one that cannot be made is counted by the core.
        let _ = core.report(self.core, &report, at);
    }

    fn offer(&mut self, publish: v1::Publish, core: &mut Core, at: Moment) -> Result<Offer, Error> {
        if self.draining {
            return Err(draining());
        }
        let (payload, kind) = boxed(publish.payload);
        let publish = Publish {
            sender: self.sender(publish.sender)?,
            turn: self.lease(publish.lease)?,
            topic: &publish.topic,
            payload,
            qos: qos_of(publish.qos)?,
            options: read_options(publish.options, kind)?,
            ack: ack_of(publish.ack)?,
            eager: false,
        };
        core.offer(self.core, publish, at)
    }

    fn accepted(&mut self, reference: u64, receipt: &Receipt) {
        self.control(&Body::Accepted(v1::Accepted {
            r#ref: reference,
            id: id_bytes(receipt.id),
            level: ack_number(Some(receipt.level)),
            matched: receipt.matched as u64,
            position: receipt
                .position
                .map(|it| it.to_string())
                .unwrap_or_default(),
        }));
    }

    fn withdraw(&mut self, reference: u64, core: &mut Core, at: Moment) {
        let Some(ticket) = self.refs.get(&reference).copied() else {
            return;
        };
        if core.withdraw_offer(self.core, ticket, at).unwrap_or(false) {
            self.forget_ticket(ticket);
        }
    }

    fn forget_ticket(&mut self, ticket: Ticket) -> Option<u64> {
        let found = self.tickets.remove(&ticket)?;
        self.refs.remove(&found.number);
        if let Some(bytes) = found.bytes {
            self.give_back(bytes);
        }
        Some(found.number)
    }

    fn request(&mut self, request: v1::Request, core: &mut Core, at: Moment) -> Result<(), Error> {
        let size = request.payload.as_ref().map_or(0, |it| it.data.len());
        let bytes = self.spend(size)?;
        let (number, timeout_ms) = (request.call, request.timeout_ms);
        self.check_call(number)?;
        let asked = self.ask(request, core, at);
        self.began(number, (timeout_ms, bytes), asked, at);
        Ok(())
    }

    fn ask(&mut self, it: v1::Request, core: &mut Core, at: Moment) -> Result<CallId, Error> {
        if self.draining {
            return Err(draining());
        }
        let (payload, kind) = boxed(it.payload);
        let publish = Publish {
            sender: self.sender(it.sender)?,
            turn: self.lease(it.lease)?,
            topic: &it.topic,
            payload,
            qos: loom_core::Qos::Batched,
            options: read_options(it.options, kind)?,
            ack: None,
            eager: false,
        };
        let request = Request {
            publish,
            timeout_ms: it.timeout_ms,
            first_k: it.first_k,
            wait: it.wait,
        };
        core.request(self.core, request, at)
    }

    fn call(&mut self, call: v1::Call, core: &mut Core, at: Moment) -> Result<(), Error> {
        let size = call.payload.as_ref().map_or(0, |it| it.data.len());
        let bytes = self.spend(size)?;
        let (number, timeout_ms) = (call.call, call.timeout_ms);
        self.check_call(number)?;
        let begun = self.invoke(call, core, at);
        self.began(number, (timeout_ms, bytes), begun, at);
        Ok(())
    }

    fn invoke(&mut self, it: v1::Call, core: &mut Core, at: Moment) -> Result<CallId, Error> {
        if self.draining {
            return Err(draining());
        }
        let some = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned());
        let (version, key) = (some(&it.version), some(&it.key));
        let invoke = Invoke {
            sender: self.sender(it.sender)?,
            turn: self.lease(it.lease)?,
            capability: &it.capability,
            version: version.as_deref(),
            payload: boxed(it.payload).0,
            timeout_ms: it.timeout_ms,
            key: key.as_deref(),
            credit: it.credit,
        };
        core.call(self.core, invoke, at)
    }

    /// The client draws numbers of calls, each once.
    fn check_call(&self, number: u64) -> Result<(), Error> {
        if number == 0 || self.calls.contains_key(&number) {
            return Err(Error::invalid(
                "call",
                "the number of a call is 0, or in use",
            ));
        }
        Ok(())
    }

    fn began(
        &mut self,
        number: u64,
        (timeout_ms, bytes): (u64, u64),
        begun: Result<CallId, Error>,
        at: Moment,
    ) {
        match begun {
            Ok(call) => {
                self.calls.insert(number, (call, bytes));
                self.call_numbers.insert(call, number);
                self.is_due(at.now.plus_millis(timeout_ms));
            }
            Err(error) => {
                self.give_back(bytes);
                let detail = serde_json::to_vec(&error.detail()).unwrap_or_default();
                self.control(&Body::Outcome(v1::Outcome {
                    call: number,
                    code: u32::from(error.code.number()),
                    payload: Some(json(detail)),
                }));
            }
        }
    }

    fn is_due(&mut self, when: Nanos) {
        self.due = Some(self.due.map_or(when, |due| due.min(when)));
    }

    fn cancel(&mut self, cancel: &v1::Cancel, core: &mut Core, at: Moment) {
        if let Some((call, _)) = self.calls.get(&cancel.call) {
            // A call that has ended meanwhile has its outcome on the way.
            let _ = core.cancel(self.core, *call, at);
        }
    }

    fn over(&mut self, number: u64) -> Option<Lease> {
        let lease = self.leases.remove(&number)?;
        self.works.remove(&lease.id);
        if let Some(found) = self.handles.get_mut(&lease.handle) {
            found.out = found.out.saturating_sub(1);
            if !found.ready {
                found.ready = true;
                self.ready.push_back(lease.handle);
            }
        }
        Some(lease)
    }

    fn ack(&mut self, leases: &[u64], core: &mut Core, at: Moment) {
        for number in leases {
            if let Some(lease) = self.over(*number) {
                // One that lapsed meanwhile is given again; the core counts it.
                let _ = core.done(self.core, lease.id, at);
            }
        }
    }

    fn ack_early(&self, leases: &[u64], core: &mut Core, at: Moment) {
        for number in leases {
            if let Some(lease) = self.leases.get(number) {
                // One that lapsed meanwhile is given again; the core counts it.
                let _ = core.ack(self.core, lease.id, at);
            }
        }
    }

    fn end_work(&mut self, frame: Body, core: &mut Core, at: Moment) {
        match frame {
            Body::Reply(reply) => {
                if let Ok(Some(lease)) = self.lease(reply.lease) {
                    let (payload, kind) = boxed(reply.payload);
                    let reply = Reply {
                        lease,
                        payload,
                        content_type: kind.as_deref(),
                    };
                    let done = core.reply(self.core, reply, at);
                    self.work_refused(lease, done.err(), core, at);
                }
            }
            Body::Result(result) => {
                if let Some(lease) = self.over(result.lease) {
                    let done = core.result(self.core, lease.id, boxed(result.payload).0, at);
                    self.work_refused(lease.id, done.err(), core, at);
                }
            }
            Body::Fail(fail) => {
                if let Some(lease) = self.over(fail.lease) {
                    let fault = Fault {
                        lease: lease.id,
                        code: code_of(fail.code),
                        detail: &fail.detail,
                    };
                    // One that is over already needs no error.
                    let _ = core.fail(self.core, fault, at);
                }
            }
            Body::Chunk(chunk) => {
                if let Ok(Some(lease)) = self.lease(chunk.lease) {
                    let done = core.chunk(self.core, lease, boxed(chunk.payload).0);
                    self.work_refused(lease, done.err(), core, at);
                }
            }
            _ => {}
        }
    }

    /// What a provider sent cannot be taken: its caller is told, or it would wait until its deadline.
    fn work_refused(&self, lease: LeaseId, error: Option<Error>, core: &mut Core, at: Moment) {
        let Some(error) = error.filter(|error| error.code != Code::Fenced) else {
            return;
        };
        let detail = serde_json::to_vec(&error.detail()).unwrap_or_default();
        let fault = Fault {
            lease,
            code: error.code,
            detail: &detail,
        };
        let _ = core.fail(self.core, fault, at);
    }

    fn settle(&mut self, frame: &Body, core: &mut Core, at: Moment) {
        let session = self.core;
        match frame {
            Body::Nak(nak) => {
                let lease = self.leases.get(&nak.lease).copied();
                if let Some(lease) = lease.filter(|lease| lease.durable) {
                    let usual = core.pause(lease.attempt);
                    let done = core.nak(session, lease.id, nak.after_ms.unwrap_or(usual));
                    if let Err(error) = done
                        && error.code == Code::InvalidParams
                    {
                        // It is to be given again in any case, and not done when its turn ends well.
                        let _ = core.nak(session, lease.id, usual);
                        self.report_lost((0, nak.lease), &error.field("after_ms"), core, at);
                    }
                }
            }
            Body::Extend(it) => {
                if let Some(lease) = self.leases.get(&it.lease) {
                    let _ = core.extend(session, lease.id, at);
                }
            }
            Body::Term(it) => {
                if let Some(lease) = self.leases.get(&it.lease) {
                    let _ = core.term(session, lease.id, &it.reason, at);
                }
            }
            _ => {}
        }
    }

    fn enrol(&mut self, frame: &Body, core: &mut Core, at: Moment, limits: &Limits) {
        let (number, kind) = match frame {
            Body::Register(it) => (it.handle, Kind::Agent),
            Body::Provide(it) => (it.handle, Kind::Provider),
            Body::Subscribe(it) => (it.handle, Kind::Stream),
            _ => return,
        };
        let added = if number == 0 || self.handles.contains_key(&number) {
            Err(Error::invalid(
                "handle",
                format!("{number} is in use, or 0"),
            ))
        } else if self.draining {
            Err(draining())
        } else if self.handles.len() >= limits.registrations {
            let message = format!(
                "this session has {} registrations already",
                self.handles.len()
            );
            Err(Error::exhausted("registrations", message))
        } else {
            self.add(frame, core, at)
        };
        let width = match frame {
            Body::Register(it) => it.concurrency,
            Body::Provide(it) => it.concurrency,
            _ => 0,
        };
        let width = usize::try_from(width).unwrap_or(usize::MAX);
        let done = added.map(|handle| {
            self.numbers.insert(handle, number);
            self.handles.insert(
                number,
                Registered {
                    handle,
                    kind,
                    out: 0,
                    most_out: limits.ahead.saturating_add(width),
                    ready: true,
                },
            );
            self.ready.push_back(number);
        });
        self.answer(number, done);
    }

    fn begins_at_a_time(&self, it: &v1::Register, core: &Core) -> bool {
        let group = if it.group.is_empty() {
            &it.name
        } else {
            &it.group
        };
        let folded = core
            .partition_of(&self.namespace)
            .and_then(|it| core.partition(it));
        // One that is known goes on where it was.
        it.start.starts_with(TIME) && folded.is_none_or(|it| it.consumer_of(group).is_none())
    }

    fn find(&mut self, it: v1::Register, limits: &Limits) {
        if self.reading >= limits.reads {
            self.refuse(it.handle, &self.reads_enough());
            return;
        }
        self.reading += 1;
        self.reads.push(ReadErrand {
            reference: it.handle,
            namespace: self.namespace.clone(),
            filters: vec![">".to_owned()],
            start: it.start.clone(),
            finds: true,
        });
        self.finding = Some(Box::new(it));
    }

    fn hold_back(&mut self, frame: Body) -> Result<(), Error> {
        self.held_back_bytes += frame.encoded_len();
        self.held_back.push_back(frame);
        if self.held_back_bytes > HELD_BYTES || self.held_back.len() > HELD_FRAMES {
            let message = "too much was said before it was known where a group begins";
            return Err(Error::exhausted("session_frames", message));
        }
        Ok(())
    }

    /// The place is known at which a group begins, none: behind all that is there. What waited for it goes on.
    ///
    /// # Errors
    /// As [`Self::take_in`].
    pub(crate) fn found(
        &mut self,
        place: Result<Option<Position>, Error>,
        core: &mut Core,
        at: Moment,
        limits: &Limits,
    ) -> Result<(), Error> {
        self.reading = self.reading.saturating_sub(1);
        if let Some(mut register) = self.finding.take() {
            match place {
                Ok(place) => {
                    register.start = place.map(|it| it.to_string()).unwrap_or_default();
                    self.enrol(&Body::Register(*register), core, at, limits);
                }
                Err(error) => self.refuse(register.handle, &error),
            }
        }
        while self.finding.is_none() {
            let Some(frame) = self.held_back.pop_front() else {
                break;
            };
            self.held_back_bytes -= frame.encoded_len();
            self.take_in(frame, core, at, limits)?;
        }
        Ok(())
    }

    fn add(&self, frame: &Body, core: &mut Core, at: Moment) -> Result<Handle, Error> {
        match frame {
            Body::Register(it) => {
                let info = info::of_agent(it)?;
                let filters: Vec<&str> = it.filters.iter().map(String::as_str).collect();
                let spec = AgentSpec {
                    name: &it.name,
                    filters: &filters,
                    group: &it.group,
                    concurrency: it.concurrency,
                    qos: if it.realtime {
                        loom_core::Qos::Realtime
                    } else {
                        loom_core::Qos::Batched
                    },
                    info: &info,
                    start: start_of(&it.start)?,
                    max_deliver: it.max_deliver,
                    exclusive: it.exclusive,
                };
                core.register(self.core, &spec, at)
            }
            Body::Provide(it) => {
                let info = info::of_provider(it)?;
                let spec = ProviderSpec {
                    name: &it.name,
                    version: &it.version,
                    effect: effect_of(it.effect)?,
                    probes: it.probes,
                    provider: &it.provider,
                    concurrency: it.concurrency,
                    info: &info,
                };
                core.provide(self.core, &spec, at)
            }
            Body::Subscribe(it) => {
                let filters: Vec<&str> = it.filters.iter().map(String::as_str).collect();
                core.subscribe(self.core, &filters, qos_of(it.qos)?)
            }
            _ => Err(Error::new(Code::Internal, "this frame registers nothing")),
        }
    }

    fn unsubscribe(&mut self, number: u64, core: &mut Core, at: Moment) {
        let Some(found) = self.handles.remove(&number) else {
            let error = Error::fenced("there is no such registration").field("handle");
            self.refuse(number, &error);
            return;
        };
        self.numbers.remove(&found.handle);
        self.ready.retain(|ready| *ready != number);
        let done = core.remove(self.core, found.handle, at);
        self.answer(number, done);
    }

    fn tell(&mut self, frame: &Body, core: &mut Core, at: Moment) {
        let done = match frame {
            Body::Status(it) => {
                let state = u8::try_from(it.status).unwrap_or(u8::MAX);
                let handle = self.sender(it.handle);
                handle.and_then(|handle| {
                    core.set_state(self.core, handle, Health::from_number(state)?, at)
                })
            }
            Body::Describe(it) => {
                let handle = self.sender(it.handle);
                handle.and_then(|handle| {
                    core.describe(self.core, handle, &it.version, &it.source_hash)
                })
            }
            _ => return,
        };
        if let Err(error) = done {
            self.refuse(0, &error);
        }
    }

    fn probed(&mut self, it: v1::Probed, core: &mut Core, at: Moment) {
        let (Ok(handle), Ok(effect)) = (self.sender(it.handle), id_of("effect_id", &it.effect_id))
        else {
            return;
        };
        let says = match it.verdict {
            0 => Probed::Done(boxed(it.result).0),
            1 => Probed::NotDone,
            2 => Probed::Unknown,
            _ => Probed::Failed,
        };
        // One that comes too late changes nothing.
        let _ = core.probed(
            self.core,
            ProbeAnswer {
                handle,
                effect,
                says,
            },
            at,
        );
    }

    fn step(&mut self, it: v1::Step, core: &mut Core, at: Moment) {
        let Ok(Some(lease)) = self.lease(it.lease) else {
            return;
        };
        let told = Told {
            kind: &it.kind,
            name: &it.name,
            args_hash: &it.args_hash,
            code: (it.code > 0).then(|| code_of(it.code)),
            micros: it.micros,
            facts: &it.facts,
            result: boxed(it.result).0,
        };
        let (number, done) = (it.lease, core.step(self.core, lease, told, at));
        if let Err(error) = done {
            self.report_lost((0, number), &error, core, at);
        }
    }

    fn commit(&self, it: &v1::Commit, core: &mut Core, at: Moment) {
        let done = (|| {
            let Some(lease) = self.lease(it.lease)? else {
                return Err(Error::invalid("lease", "a commit quotes its turn"));
            };
            let state = State {
                agent: core.name_of(self.core, self.sender(it.sender)?)?.to_owned(),
                key: it.lane.clone(),
                turn: core.turn_of(lease),
                schema_hash: it.schema_hash.to_vec(),
            };
            let body: Arc<[u8]> = boxed(it.state.clone()).0.into();
            core.keep_state(self.core, lease, (state, Kept::Own(body)), it.failed)
        })();
        if let Err(error) = done {
            self.report_lost((it.sender, it.lease), &error, core, at);
        }
    }

    fn report(&mut self, it: &v1::Report, core: &mut Core, at: Moment) {
        let Ok(sender) = self.sender(it.sender) else {
            return;
        };
        let turn = self.lease(it.lease).ok().flatten();
        let done = if it.code > 0 {
            let report = Report {
                sender,
                turn,
                code: code_of(it.code),
                detail: &it.data,
            };
            core.report(self.core, &report, at)
        } else {
            let line = LogLine {
                sender,
                turn,
                level: &it.level,
                payload: &it.data,
            };
            core.log(self.core, &line, at)
        };
        if let Err(error) = done {
            self.refuse(0, &error);
        }
    }

    fn keep(&mut self, it: v1::Keep, core: &mut Core, at: Moment) {
        if it.r#ref > 0 {
            if self.is_owed_much(it.r#ref) {
                return;
            }
            let values = self.kept(&it, core);
            match values {
                Ok(values) => self.show_kept(it.r#ref, values),
                Err(error) => self.refuse(it.r#ref, &error),
            }
            return;
        }
        let sender = it.sender;
        let done = (|| {
            if !core.may_call(self.core, MEMORY_PUT) {
                let message = "this credential may not write the memory";
                let hint = format!("grant it to call {MEMORY_PUT}");
                return Err(Error::new(Code::Denied, message).field("key").hint(hint));
            }
            check_kept(&it)?;
            let memory = Memory {
                key: it.key,
                writer: core.name_of(self.core, self.sender(it.sender)?)?.to_owned(),
                turn: 0,
                gone: it.gone,
                until_ms: it.until_ms,
            };
            core.keep_memory(&self.namespace, memory, boxed(it.value).0.into())
        })();
        if let Err(error) = done {
            self.report_lost((sender, 0), &error, core, at);
        }
    }

    fn kept(&self, it: &v1::Keep, core: &Core) -> Result<Vec<v1::KeptValue>, Error> {
        let value = |key: String, body: Arc<[u8]>, until_ms| v1::KeptValue {
            key,
            value: Some(json(Bytes::copy_from_slice(&body))),
            until_ms,
        };
        if it.sender > 0 {
            let agent = core.name_of(self.core, self.sender(it.sender)?)?;
            if !it.key.is_empty() {
                let state = core.state_of(&self.namespace, agent, &it.key);
                let state = state.map(|body| value(it.key.clone(), body, None));
                return Ok(state.into_iter().collect());
            }
            let states = core.states_of(&self.namespace, agent).into_iter();
            return Ok(states.map(|(key, body)| value(key, body, None)).collect());
        }
        if !core.may_call(self.core, MEMORY_GET) {
            // What is forbidden looks as what is absent.
            return Ok(Vec::new());
        }
        if !it.key.is_empty() {
            let found = core.memory_of(&self.namespace, &it.key);
            let found = found.map(|(body, until_ms)| value(it.key.clone(), body, until_ms));
            return Ok(found.into_iter().collect());
        }
        let all = core.memories_of(&self.namespace).into_iter();
        Ok(all
            .map(|(key, (body, until_ms))| value(key, body, until_ms))
            .collect())
    }

    /// Refuses a question where the answers to those before it have not been taken.
    fn is_owed_much(&mut self, reference: u64) -> bool {
        let is_much = self.channel.owed().1 > OWED_BYTES;
        if is_much {
            let message = "the answers to earlier questions of this session were not taken yet";
            let error = Error::exhausted("session_bytes", message).retry_after(100);
            self.refuse(reference, &error);
        }
        is_much
    }

    fn show_kept(&mut self, reference: u64, values: Vec<v1::KeptValue>) {
        let size = |it: &v1::KeptValue| {
            it.key.len() + it.value.as_ref().map_or(0, |value| value.data.len())
        };
        for (page, last) in pages(values, size) {
            let kept = v1::Kept {
                r#ref: reference,
                values: page,
                last,
            };
            self.owe(&Body::Kept(kept), Class::Data);
        }
    }

    fn operate(&mut self, frame: Body, core: &mut Core, at: Moment) {
        let (number, ticket) = match frame {
            Body::Route(it) => {
                let weights: Vec<(&str, f64)> = it
                    .weights
                    .iter()
                    .map(|(name, weight)| (name.as_str(), *weight))
                    .collect();
                let table = (!weights.is_empty()).then_some(weights.as_slice());
                let done = core.weigh(self.core, &it.capability, table);
                self.answer(it.r#ref, done);
                return;
            }
            Body::Resolve(it) => {
                let ticket = id_of("effect_id", &it.effect_id).and_then(|effect| {
                    let says = match it.result {
                        Some(result) => Resolution::Done(boxed(Some(result)).0),
                        None => Resolution::Failed,
                    };
                    core.resolve(
                        self.core,
                        Resolve {
                            effect,
                            says,
                            note: &it.note,
                        },
                        at,
                    )
                });
                (it.r#ref, ticket)
            }
            Body::Redrive(it) => {
                let payload = it.payload.map(|payload| boxed(Some(payload)).0);
                (
                    it.r#ref,
                    core.redrive(self.core, (it.consumer, it.n), payload),
                )
            }
            _ => return,
        };
        match ticket {
            Ok(ticket) => {
                self.tickets.insert(
                    ticket,
                    Ref {
                        number,
                        bytes: None,
                    },
                );
                self.refs.insert(number, ticket);
            }
            Err(error) => self.refuse(number, &error),
        }
    }

    fn directory(&mut self, it: &v1::Directory, core: &Core) {
        let kind = match it.kind.as_str() {
            "agent" => DirectoryKind::Agent,
            "capability" => DirectoryKind::Capability,
            other => {
                let message = format!("there is no directory of {other:?}; agent, capability");
                self.refuse(it.r#ref, &Error::invalid("kind", message));
                return;
            }
        };
        if self.is_owed_much(it.r#ref) {
            return;
        }
        let entries = core.directory_for(self.core, kind).unwrap_or_default();
        let entries: Vec<Bytes> = entries.into_iter().map(Bytes::from).collect();
        for (page, last) in pages(entries, Bytes::len) {
            let entries = v1::Entries {
                r#ref: it.r#ref,
                entries: page,
                last,
            };
            self.owe(&Body::Entries(entries), Class::Data);
        }
    }

    fn reads_enough(&self) -> Error {
        let message = format!("this session reads the log {} times at once", self.reading);
        Error::exhausted("session_reads", message)
    }

    fn read(&mut self, it: v1::Read, limits: &Limits) {
        if self.reading >= limits.reads {
            self.refuse(it.r#ref, &self.reads_enough());
            return;
        }
        if self.is_owed_much(it.r#ref) {
            return;
        }
        self.reading += 1;
        self.reads.push(ReadErrand {
            reference: it.r#ref,
            namespace: self.namespace.clone(),
            filters: it.filters,
            start: it.start,
            finds: false,
        });
    }

    /// What reading the log has given.
    pub(crate) fn has_read(&mut self, reference: u64, read: Result<Vec<v1::Page>, Error>) {
        self.reading = self.reading.saturating_sub(1);
        match read {
            Ok(pages) => {
                for page in pages {
                    self.owe(&Body::Page(page), Class::Data);
                }
            }
            Err(error) => self.refuse(reference, &error),
        }
    }

    // -- what the core has for the client ---------------------------------------------------------

    /// Takes what the core has for this session, as far as the client has granted.
    pub(crate) fn pump(&mut self, core: &mut Core, at: Moment, limits: &Limits) {
        if self.channel.held_bytes() > HELD_BYTES || self.channel.held() > HELD_FRAMES {
            // It takes nothing: what is for it waits in the core, whose own bounds hold.
            return;
        }
        self.notices(core, at);
        self.deliver(core, at);
        self.regrant(limits);
    }

    fn regrant(&mut self, limits: &Limits) {
        let frames = self.dealt.frames.saturating_add(limits.window_frames);
        let bytes = self.dealt.bytes.saturating_add(limits.window_bytes);
        let is_worth_it = frames.saturating_sub(self.granted.frames)
            >= quarter(limits.window_frames)
            || bytes.saturating_sub(self.granted.bytes) >= quarter(limits.window_bytes);
        if is_worth_it {
            let credit = self.grant(limits);
            self.control(&Body::Credit(credit));
        }
    }

    fn notices(&mut self, core: &mut Core, at: Moment) {
        loop {
            let Ok(notices) = core.drain(self.core, NOTICES) else {
                return;
            };
            let all = notices.len();
            for notice in notices {
                self.notice(notice, at);
            }
            if all < NOTICES {
                return;
            }
        }
    }

    fn notice(&mut self, notice: Notice, at: Moment) {
        match notice {
            Notice::Ready(handle) => self.is_ready(handle),
            Notice::Accepted(ticket, receipt) => {
                if let Some(number) = self.forget_ticket(ticket).filter(|number| *number > 0) {
                    self.accepted(number, &receipt);
                }
            }
            Notice::Refused(ticket, error) => {
                if let Some(number) = self.forget_ticket(ticket).filter(|number| *number > 0) {
                    self.refuse(number, &error);
                }
            }
            Notice::Answer(call, delivery) => {
                if let Some(number) = self.call_numbers.get(&call).copied() {
                    let event = Some(show_envelope(&delivery.envelope, at));
                    self.control(&Body::Answer(v1::Answer {
                        call: number,
                        event,
                    }));
                }
            }
            Notice::Outcome(call, code, body) => self.outcome(call, code, body),
            Notice::Chunk(call, body) => {
                if let Some(number) = self.call_numbers.get(&call).copied() {
                    let payload = Some(json(body.into_vec()));
                    self.control(&Body::Chunk(v1::Chunk {
                        lease: 0,
                        call: number,
                        payload,
                    }));
                }
            }
            Notice::Due(millis) => self.is_due(at.now.plus_millis(millis)),
            Notice::Removed(handle, error) => self.removed(handle, &error),
            Notice::Credit(..) | Notice::Probe(..) | Notice::Cancel(..) => {
                self.for_provider(&notice);
            }
        }
    }

    /// The core has taken a registration back.
    fn removed(&mut self, handle: Handle, error: &Error) {
        if let Some(number) = self.numbers.remove(&handle) {
            self.handles.remove(&number);
            self.ready.retain(|ready| *ready != number);
            self.channel
                .push(&Body::Error(show_error(number, error)), Class::Data);
        }
    }

    fn for_provider(&mut self, notice: &Notice) {
        match notice {
            Notice::Credit(lease, total) => {
                if let Some(lease) = self.works.get(lease).copied() {
                    // Behind the invocation itself.
                    let grant = v1::Grant {
                        call: 0,
                        lease,
                        total: *total,
                    };
                    self.channel.push(&Body::Grant(grant), Class::Data);
                }
            }
            Notice::Probe(handle, effect) => {
                if let Some(handle) = self.numbers.get(handle).copied() {
                    let effect_id = id_bytes(*effect);
                    self.control(&Body::Probe(v1::Probe { handle, effect_id }));
                }
            }
            Notice::Cancel(lease, code) => {
                if let Some(lease) = self.works.get(lease).copied() {
                    let code = code_number(Some(*code));
                    let cancel = v1::Cancel {
                        call: 0,
                        lease,
                        code,
                    };
                    self.channel.push(&Body::Cancel(cancel), Class::Data);
                }
            }
            _ => {}
        }
    }

    fn outcome(&mut self, call: CallId, code: Option<Code>, body: Box<[u8]>) {
        let Some(number) = self.call_numbers.remove(&call) else {
            return;
        };
        if let Some((_, bytes)) = self.calls.remove(&number) {
            self.give_back(bytes);
        }
        self.control(&Body::Outcome(v1::Outcome {
            call: number,
            code: code_number(code),
            payload: Some(json(body.into_vec())),
        }));
    }

    fn is_ready(&mut self, handle: Handle) {
        let Some(number) = self.numbers.get(&handle).copied() else {
            return;
        };
        if let Some(found) = self.handles.get_mut(&number)
            && !found.ready
        {
            found.ready = true;
            self.ready.push_back(number);
        }
    }

    fn has_credit(&self) -> bool {
        self.bugs().has(Planted::GrantIgnored)
            || self.gone.frames < self.allowed.frames && self.gone.bytes < self.allowed.bytes
    }

    fn bugs(&self) -> Bugs {
        self.channel.bugs
    }

    /// Takes from the registrations in turn, so that an event for several of them goes once.
    fn deliver(&mut self, core: &mut Core, at: Moment) {
        let mut last: Option<(Arc<loom_core::Envelope>, v1::Deliver)> = None;
        while self.has_credit() && self.channel.queued_bytes() < BACKLOG_BYTES {
            let Some(number) = self.ready.pop_front() else {
                break;
            };
            let Some((delivery, lane, kind)) = self.take(number, core, at) else {
                continue;
            };
            self.ready.push_back(number);
            let same = last.as_ref().is_some_and(|(env, deliver)| {
                Arc::ptr_eq(env, &delivery.envelope) && deliver.targets.len() < PAGE
            });
            if !same || kind == Kind::Provider || delivery.durable {
                self.flush(&mut last);
            }
            self.hand_out(number, (delivery, lane, kind), &mut last, at);
        }
        self.flush(&mut last);
    }

    fn flush(&mut self, last: &mut Option<(Arc<loom_core::Envelope>, v1::Deliver)>) {
        if let Some((_, deliver)) = last.take() {
            self.channel.push(&Body::Deliver(deliver), Class::Data);
        }
    }

    fn take(&mut self, number: u64, core: &mut Core, at: Moment) -> Option<(Delivery, u32, Kind)> {
        let found = self.handles.get_mut(&number)?;
        if found.out >= found.most_out {
            found.ready = false;
            return None;
        }
        let taken = core.take_ahead(self.core, found.handle, at).ok().flatten();
        let Some((delivery, lane)) = taken else {
            found.ready = false;
            return None;
        };
        found.out += 1;
        Some((delivery, lane, found.kind))
    }

    fn hand_out(
        &mut self,
        handle: u64,
        (delivery, lane, kind): (Delivery, u32, Kind),
        last: &mut Option<(Arc<loom_core::Envelope>, v1::Deliver)>,
        at: Moment,
    ) {
        let Some(id) = delivery.lease else { return };
        self.next_lease += 1;
        let lease = self.next_lease;
        let (durable, attempt) = (delivery.durable, delivery.attempt);
        self.leases.insert(
            lease,
            Lease {
                id,
                handle,
                durable,
                attempt,
            },
        );
        self.gone.frames += 1;
        self.gone.bytes += delivery.envelope.size() as u64;
        if kind == Kind::Provider {
            self.works.insert(id, lease);
            self.action_call((handle, lease), &delivery, at);
            return;
        }
        let target = v1::Target {
            handle,
            lease,
            lane: u64::from(lane),
            asked: delivery.asked,
            attempt: delivery.attempt,
            recorded: delivery.turn,
        };
        if durable {
            let event = Some(show_envelope(&delivery.envelope, at));
            let turn = v1::Turn {
                event,
                target: Some(target),
                state: None,
                journal: Vec::new(),
            };
            self.channel.push(&Body::Turn(turn), Class::Data);
            return;
        }
        let (_, deliver) = last.get_or_insert_with(|| {
            let event = Some(show_envelope(&delivery.envelope, at));
            (
                Arc::clone(&delivery.envelope),
                v1::Deliver {
                    event,
                    targets: Vec::new(),
                },
            )
        });
        deliver.targets.push(target);
    }

    fn action_call(&mut self, (handle, lease): (u64, u64), delivery: &Delivery, at: Moment) {
        let work = delivery.work;
        let call = v1::ActionCall {
            handle,
            lease,
            event: Some(show_envelope(&delivery.envelope, at)),
            streamed: work.is_some_and(|work| work.streamed),
            credit: work.map_or(0, |work| work.credit),
            effect_id: work
                .and_then(|work| work.effect)
                .map(id_bytes)
                .unwrap_or_default(),
            attempt: delivery.attempt,
            recorded: delivery.turn,
        };
        self.channel.push(&Body::ActionCall(call), Class::Data);
    }
}

/// More credit is told when there is so much of it.
pub(crate) fn quarter(window: u64) -> u64 {
    (window / 4).max(1)
}

/// What stands before milliseconds since 1970.
const TIME: &str = "time:";

/// Where a new group begins.
fn start_of(text: &str) -> Result<Start, Error> {
    match text {
        "" | "now" => Ok(Start::Now),
        "beginning" => Ok(Start::Beginning),
        // Of a group that is known: it goes on where it was.
        _ if text.starts_with(TIME) => Ok(Start::Now),
        _ => {
            let position: Option<Position> = position_of(text).map_err(|it| it.field("start"))?;
            Ok(position.map_or(Start::Now, Start::At))
        }
    }
}

fn draining() -> Error {
    Error::new(Code::Unavailable, "the node is about to stop").retry_after(1_000)
}

/// Cuts values into pages that fit into a packet; the last one says so, and there is always one.
fn pages<T>(values: Vec<T>, size: impl Fn(&T) -> usize) -> Vec<(Vec<T>, bool)> {
    let mut all = vec![(Vec::new(), false)];
    let mut bytes = 0;
    for value in values {
        let more = size(&value) + 16;
        let full =
            |page: &Vec<T>| page.len() >= PAGE || (bytes + more > PAGE_BYTES && !page.is_empty());
        if all.last().is_some_and(|(page, _)| full(page)) {
            all.push((Vec::new(), false));
            bytes = 0;
        }
        bytes += more;
        if let Some((page, _)) = all.last_mut() {
            page.push(value);
        }
    }
    if let Some((_, last)) = all.last_mut() {
        *last = true;
    }
    all
}
