//! What the log keeps: one enum of plain structs, and how each becomes bytes.
//!
//! A record is a kind, a head and a body. The head is a protobuf message whose field numbers never change; the body is
//! the one part that may be large (a payload, arguments, a result, a state) and is kept apart, so that the log can store
//! it once however often it is named. What is not known to an older reader is skipped by it, field by field; a kind that
//! it does not know is an error.

use std::ops::Deref;
use std::sync::Arc;

use prost::Message;
use smallvec::SmallVec;

use crate::arena::{Ticket, TopicId};
use crate::envelope::{Envelope, Extra, Origin, Position, Qos};
use crate::error::{Code, Error, Result};
use crate::ident::Ident;

/// How far a record must have got before its ticket is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Level {
    /// Queued in memory: nobody waits.
    #[default]
    Accepted,
    /// Written: survives the end of the process.
    Os,
    /// Synced: survives a power cut.
    Disk,
}

impl Level {
    /// Its name, as a receipt shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Os => "os",
            Self::Disk => "disk",
        }
    }

    /// Reads the number as it crosses languages.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for any other than 0, 1, 2.
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Accepted),
            1 => Ok(Self::Os),
            2 => Ok(Self::Disk),
            _ => Err(Error::invalid(
                "ack",
                format!("there is no ack level {number}"),
            )),
        }
    }
}

/// Records that go to the log together: all of them or none.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Who waits for the answer; none: nobody.
    pub ticket: Option<Ticket>,
    /// Which log.
    pub partition: u32,
    /// How far it must have got before the ticket is answered.
    pub level: Level,
    /// In order; at least one.
    pub batch: SmallVec<[Record; 1]>,
}

/// One fact.
#[derive(Debug, Clone)]
pub enum Record {
    /// The log was opened: a new life of it begins.
    Epoch(Epoch),
    /// It was closed well.
    Closed(Closed),
    /// Positions that are lost, and known to be.
    Gap(Gap),
    /// The wall clock jumped; by nothing: a mark, so that what is before it is synced.
    ClockJump(ClockJump),
    /// A durable event.
    Event(Arc<Envelope>),
    /// A group began to consume, or changed what it hears.
    Consumer(Consumer),
    /// A group consumes no more.
    ConsumerGone(ConsumerGone),
    /// A durable turn is about to be handed out.
    Started(Started),
    /// How far a group has consumed.
    Progress(Progress),
    /// An event waits before it is given again.
    Waits(Waits),
    /// An event is given up.
    Dead(Dead),
    /// A dead event was published anew: the event itself follows in the same batch.
    Redriven(Redriven),
    /// A call is about to be made; the body is its arguments.
    Intent(Intent, Body),
    /// A provider was given the call.
    Dispatched(Dispatched),
    /// A call ended; the body is its result.
    Outcome(Outcome, Body),
    /// What became of an effect whose call had no outcome; the body is its result, if it has one.
    Settled(Settled, Body),
    /// A turn of a recorded run began.
    Turn(Turn),
    /// An event of a recorded run that is not durable, an answer, or one of the engine's own.
    Sent(Sent),
    /// A request of a recorded turn ended.
    Ended(Ended),
    /// A step of a recorded turn that is neither event nor call; the body is its result.
    Step(Step, Body),
    /// A turn of a recorded run ended.
    TurnEnd(TurnEnd),
    /// The state of an agent; the body is it as JSON.
    State(State, Body),
    /// A value of the memory; the body is it as JSON.
    Memory(Memory, Body),
}

/// What a record carries besides its head.
#[derive(Debug, Clone)]
pub enum Body {
    /// Bytes of its own.
    Own(Arc<[u8]>),
    /// The payload of an envelope that lives anyway.
    Of(Arc<Envelope>),
}

impl Body {
    /// Its bytes, shared where they can be.
    pub fn share(&self) -> Arc<[u8]> {
        match self {
            Self::Own(bytes) => Arc::clone(bytes),
            Self::Of(envelope) => (*envelope.payload).into(),
        }
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Of(envelope) => &envelope.payload,
        }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Own(bytes.into())
    }
}

impl From<Box<[u8]>> for Body {
    fn from(bytes: Box<[u8]>) -> Self {
        Self::Own(bytes.into())
    }
}

/// A UUID in two halves: no allocation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Id {
    /// The upper half.
    #[prost(fixed64, tag = "1")]
    pub high: u64,
    /// The lower half.
    #[prost(fixed64, tag = "2")]
    pub low: u64,
}

impl From<u128> for Id {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    fn from(id: u128) -> Self {
        Self {
            high: (id >> 64) as u64,
            low: id as u64,
        }
    }
}

impl From<Id> for u128 {
    fn from(id: Id) -> Self {
        Self::from(id.high) << 64 | Self::from(id.low)
    }
}

/// The log was opened.
#[derive(Clone, PartialEq, Message)]
pub struct Epoch {
    /// Which life of the log it is, from 1.
    #[prost(uint32, tag = "1")]
    pub epoch: u32,
    /// Names the engine that opened it.
    #[prost(message, optional, tag = "2")]
    pub boot: Option<Id>,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "3")]
    pub at_ms: u64,
    /// The version of Loom that opened it.
    #[prost(string, tag = "4")]
    pub version: String,
    /// Bytes of a torn tail that were cut off.
    #[prost(uint64, tag = "5")]
    pub torn_bytes: u64,
}

/// The log was closed well.
#[derive(Clone, PartialEq, Message)]
pub struct Closed {
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "1")]
    pub at_ms: u64,
}

/// Positions that are lost, and known to be.
#[derive(Clone, PartialEq, Message)]
pub struct Gap {
    /// The first position that is lost.
    #[prost(uint64, tag = "1")]
    pub from: u64,
    /// The first that is not.
    #[prost(uint64, tag = "2")]
    pub to: u64,
    /// Why; for a recording that fell behind, how many records are missing stands in `to - from`.
    #[prost(string, tag = "3")]
    pub why: String,
    /// The run that is not whole, if it is one.
    #[prost(message, optional, tag = "4")]
    pub run: Option<Id>,
}

/// The wall clock jumped.
#[derive(Clone, PartialEq, Message)]
pub struct ClockJump {
    /// What the log's clock showed, in milliseconds since 1970.
    #[prost(uint64, tag = "1")]
    pub from_ms: u64,
    /// What the wall showed.
    #[prost(uint64, tag = "2")]
    pub to_ms: u64,
}

/// A group began to consume, or changed what it hears.
#[derive(Clone, PartialEq, Message)]
pub struct Consumer {
    /// Its number in this partition; never used again.
    #[prost(uint32, tag = "1")]
    pub consumer: u32,
    /// The group's name.
    #[prost(string, tag = "2")]
    pub group: String,
    /// What it hears.
    #[prost(string, repeated, tag = "3")]
    pub filters: Vec<String>,
    /// Everything before this position is not for it.
    #[prost(uint64, tag = "4")]
    pub start: u64,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "5")]
    pub at_ms: u64,
}

/// A group consumes no more.
#[derive(Clone, PartialEq, Message)]
pub struct ConsumerGone {
    /// Which.
    #[prost(uint32, tag = "1")]
    pub consumer: u32,
    /// Why: "removed", "idle", "bytes".
    #[prost(string, tag = "2")]
    pub why: String,
}

/// A durable turn is about to be handed out.
#[derive(Clone, PartialEq, Message)]
pub struct Started {
    /// Whose.
    #[prost(uint32, tag = "1")]
    pub consumer: u32,
    /// Of which event.
    #[prost(uint64, tag = "2")]
    pub n: u64,
    /// 1 for the first.
    #[prost(uint32, tag = "3")]
    pub attempt: u32,
    /// Which session has it.
    #[prost(uint64, tag = "4")]
    pub session: u64,
    /// What the client of that session calls itself, in 16 bytes; none: it does not come back.
    #[prost(bytes = "vec", tag = "5")]
    pub client: Vec<u8>,
}

/// How far a group has consumed: everything up to the floor but what is open, and what is above it and acked.
#[derive(Clone, PartialEq, Message)]
pub struct Progress {
    /// Whose.
    #[prost(uint32, tag = "1")]
    pub consumer: u32,
    /// Everything before this position has been taken over.
    #[prost(uint64, tag = "2")]
    pub floor: u64,
    /// Done since the last one: below the floor they are open no more, above it they are skipped when it is read again.
    #[prost(uint64, repeated, tag = "3")]
    pub acked: Vec<u64>,
    /// Below the new floor, above the old one, and not done.
    #[prost(uint64, repeated, tag = "4")]
    pub open: Vec<u64>,
}

/// An event waits before it is given again.
#[derive(Clone, PartialEq, Message)]
pub struct Waits {
    /// Whose.
    #[prost(uint32, tag = "1")]
    pub consumer: u32,
    /// Which event.
    #[prost(uint64, tag = "2")]
    pub n: u64,
    /// How often it was begun.
    #[prost(uint32, tag = "3")]
    pub attempt: u32,
    /// Not before this, in milliseconds since 1970.
    #[prost(uint64, tag = "4")]
    pub until_ms: u64,
    /// The error that it follows, by number; 0: it was asked for.
    #[prost(uint32, tag = "5")]
    pub code: u32,
    /// What the error said.
    #[prost(string, tag = "6")]
    pub message: String,
}

/// An event is given up.
#[derive(Clone, PartialEq, Message)]
pub struct Dead {
    /// Whose.
    #[prost(uint32, tag = "1")]
    pub consumer: u32,
    /// Which event.
    #[prost(uint64, tag = "2")]
    pub n: u64,
    /// How often it was begun.
    #[prost(uint32, tag = "3")]
    pub attempt: u32,
    /// The last error, by number; 0: its handler gave it up.
    #[prost(uint32, tag = "4")]
    pub code: u32,
    /// What the error said.
    #[prost(string, tag = "5")]
    pub message: String,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "6")]
    pub at_ms: u64,
}

/// A dead event was published anew.
#[derive(Clone, PartialEq, Message)]
pub struct Redriven {
    /// Whose.
    #[prost(uint32, tag = "1")]
    pub consumer: u32,
    /// The position of the event that had died.
    #[prost(uint64, tag = "2")]
    pub n: u64,
}

/// A call is about to be made.
#[derive(Clone, PartialEq, Message)]
pub struct Intent {
    /// Names the change outside; for a pure call, the call.
    #[prost(message, optional, tag = "1")]
    pub effect: Option<Id>,
    /// Names the call.
    #[prost(message, optional, tag = "2")]
    pub call: Option<Id>,
    /// Of what.
    #[prost(string, tag = "3")]
    pub capability: String,
    /// Which version.
    #[prost(string, tag = "4")]
    pub version: String,
    /// The effect class, by number.
    #[prost(uint32, tag = "5")]
    pub class: u32,
    /// The idempotency key; empty: none.
    #[prost(string, tag = "6")]
    pub key: String,
    /// blake3 of the arguments.
    #[prost(bytes = "vec", tag = "7")]
    pub args_hash: Vec<u8>,
    /// Who calls.
    #[prost(string, tag = "8")]
    pub caller: String,
    /// The run it belongs to.
    #[prost(message, optional, tag = "9")]
    pub run: Option<Id>,
    /// The event whose turn calls.
    #[prost(message, optional, tag = "10")]
    pub event: Option<Id>,
    /// The recorded turn that calls; 0: none.
    #[prost(uint64, tag = "11")]
    pub turn: u64,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "12")]
    pub at_ms: u64,
    /// The thread of the call, as text.
    #[prost(string, tag = "13")]
    pub thread: String,
    /// Its caller reads chunks, which are not kept.
    #[prost(bool, tag = "14")]
    pub streamed: bool,
}

/// A provider was given the call.
#[derive(Clone, PartialEq, Message)]
pub struct Dispatched {
    /// Of which effect.
    #[prost(message, optional, tag = "1")]
    pub effect: Option<Id>,
    /// 1 for the first.
    #[prost(uint32, tag = "2")]
    pub attempt: u32,
    /// Who has it.
    #[prost(string, tag = "3")]
    pub provider: String,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "4")]
    pub at_ms: u64,
    /// Which call.
    #[prost(message, optional, tag = "5")]
    pub call: Option<Id>,
}

/// A call ended.
#[derive(Clone, PartialEq, Message)]
pub struct Outcome {
    /// Of which effect.
    #[prost(message, optional, tag = "1")]
    pub effect: Option<Id>,
    /// Which call.
    #[prost(message, optional, tag = "2")]
    pub call: Option<Id>,
    /// The error's number; 0: it went well.
    #[prost(uint32, tag = "3")]
    pub code: u32,
    /// The error's detail as JSON.
    #[prost(string, tag = "4")]
    pub detail: String,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "5")]
    pub at_ms: u64,
    /// Microseconds from the call to its end.
    #[prost(uint64, tag = "6")]
    pub micros: u64,
    /// It is final: another call with the key is given it.
    #[prost(bool, tag = "7")]
    pub last: bool,
}

/// What became of an effect whose call had no outcome.
#[derive(Clone, PartialEq, Message)]
pub struct Settled {
    /// Which.
    #[prost(message, optional, tag = "1")]
    pub effect: Option<Id>,
    /// How it stands now, by the numbers of `EffectState`.
    #[prost(uint32, tag = "2")]
    pub state: u32,
    /// Who says so: "recovery", "probe", "operator", "provider" (its answer came late).
    #[prost(string, tag = "3")]
    pub by: String,
    /// Why, in words.
    #[prost(string, tag = "4")]
    pub note: String,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "5")]
    pub at_ms: u64,
    /// The error's number, where it failed with one that its callers are given; 0: none.
    #[prost(uint32, tag = "6")]
    pub code: u32,
    /// That error's detail as JSON.
    #[prost(string, tag = "7")]
    pub detail: String,
}

/// A turn of a recorded run began.
#[derive(Clone, PartialEq, Message)]
pub struct Turn {
    /// Names it among the turns of one epoch.
    #[prost(uint64, tag = "1")]
    pub turn: u64,
    /// Whose turn: the agent's name.
    #[prost(string, tag = "2")]
    pub agent: String,
    /// The agent's version; empty: it has none.
    #[prost(string, tag = "3")]
    pub version: String,
    /// Of which event.
    #[prost(message, optional, tag = "4")]
    pub event: Option<Id>,
    /// The run.
    #[prost(message, optional, tag = "5")]
    pub run: Option<Id>,
    /// 1 for the first.
    #[prost(uint32, tag = "6")]
    pub attempt: u32,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "9")]
    pub at_ms: u64,
    /// Microseconds that the event waited.
    #[prost(uint64, tag = "10")]
    pub waited_micros: u64,
    /// What the agent's code hashes to; empty: not known.
    #[prost(bytes = "vec", tag = "11")]
    pub code_hash: Vec<u8>,
}

/// An event of a recorded run that is not durable.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The recorded turn that sent it; 0: none.
    pub turn: u64,
    /// The event.
    pub envelope: Arc<Envelope>,
    /// How many subscriptions and groups it was for.
    pub matched: u32,
    /// Somebody waited for an answer to it.
    pub asks: bool,
}

/// A request of a recorded turn ended.
#[derive(Clone, PartialEq, Message)]
pub struct Ended {
    /// The recorded turn that asked; 0: none.
    #[prost(uint64, tag = "1")]
    pub turn: u64,
    /// The event that it asked with.
    #[prost(message, optional, tag = "2")]
    pub event: Option<Id>,
    /// The error's number; 0: it went well.
    #[prost(uint32, tag = "3")]
    pub code: u32,
    /// The error's detail as JSON.
    #[prost(string, tag = "4")]
    pub detail: String,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "5")]
    pub at_ms: u64,
}

/// A step of a recorded turn that is neither event nor call.
#[derive(Clone, PartialEq, Message)]
pub struct Step {
    /// The recorded turn.
    #[prost(uint64, tag = "1")]
    pub turn: u64,
    /// What it is: "now", "uuid", "memory.get", "model", …
    #[prost(string, tag = "2")]
    pub kind: String,
    /// Of what: a memory's key, a model's name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// blake3 of what it was asked with; empty: with nothing.
    #[prost(bytes = "vec", tag = "4")]
    pub args_hash: Vec<u8>,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "5")]
    pub at_ms: u64,
    /// The error's number; 0: it went well.
    #[prost(uint32, tag = "6")]
    pub code: u32,
    /// Microseconds that it took.
    #[prost(uint64, tag = "7")]
    pub micros: u64,
    /// Further facts as JSON: tokens, cost.
    #[prost(string, tag = "8")]
    pub facts: String,
}

/// A turn of a recorded run ended.
#[derive(Clone, PartialEq, Message)]
pub struct TurnEnd {
    /// The recorded turn.
    #[prost(uint64, tag = "1")]
    pub turn: u64,
    /// The error's number; 0: it went well.
    #[prost(uint32, tag = "2")]
    pub code: u32,
    /// What the error said.
    #[prost(string, tag = "3")]
    pub message: String,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "5")]
    pub at_ms: u64,
}

/// The state of an agent.
#[derive(Clone, PartialEq, Message)]
pub struct State {
    /// Whose: the agent's name.
    #[prost(string, tag = "1")]
    pub agent: String,
    /// Which of its states.
    #[prost(string, tag = "2")]
    pub key: String,
    /// The recorded turn that left it; 0: none.
    #[prost(uint64, tag = "3")]
    pub turn: u64,
    /// blake3 of the schema it was written with; empty: it has none.
    #[prost(bytes = "vec", tag = "4")]
    pub schema_hash: Vec<u8>,
}

/// A value of the memory.
#[derive(Clone, PartialEq, Message)]
pub struct Memory {
    /// Which.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Who wrote it.
    #[prost(string, tag = "2")]
    pub writer: String,
    /// The recorded turn that wrote it; 0: none.
    #[prost(uint64, tag = "3")]
    pub turn: u64,
    /// It was taken away.
    #[prost(bool, tag = "4")]
    pub gone: bool,
    /// It is forgotten then, in milliseconds since 1970.
    #[prost(uint64, optional, tag = "5")]
    pub until_ms: Option<u64>,
}

/// The header of an envelope.
#[derive(Clone, PartialEq, Message)]
struct EventHead {
    #[prost(message, optional, tag = "1")]
    id: Option<Id>,
    #[prost(string, tag = "2")]
    topic: String,
    /// `namespace/name`.
    #[prost(string, tag = "3")]
    sender: String,
    #[prost(string, tag = "4")]
    namespace: String,
    #[prost(message, optional, tag = "5")]
    thread_id: Option<Id>,
    /// Where the thread has a name of the user's own.
    #[prost(string, optional, tag = "6")]
    thread: Option<String>,
    #[prost(message, optional, tag = "7")]
    run: Option<Id>,
    #[prost(message, optional, tag = "8")]
    correlation: Option<Id>,
    #[prost(message, optional, tag = "9")]
    causation: Option<Id>,
    #[prost(uint64, optional, tag = "10")]
    ttl_ms: Option<u64>,
    #[prost(string, optional, tag = "11")]
    key: Option<String>,
    #[prost(uint64, tag = "12")]
    time_ms: u64,
    #[prost(uint32, tag = "13")]
    hop: u32,
    #[prost(uint32, tag = "14")]
    qos: u32,
    #[prost(string, optional, tag = "15")]
    content_type: Option<String>,
    #[prost(string, repeated, tag = "16")]
    headers: Vec<String>,
    #[prost(string, repeated, tag = "17")]
    labels: Vec<String>,
    #[prost(string, optional, tag = "18")]
    traceparent: Option<String>,
    #[prost(message, repeated, tag = "19")]
    causes: Vec<Id>,
    /// The publisher's own id.
    #[prost(string, optional, tag = "20")]
    dedup: Option<String>,
    /// Of a recorded event: the turn that sent it.
    #[prost(uint64, tag = "21")]
    turn: u64,
    /// Somebody waits for an answer to it.
    #[prost(bool, tag = "22")]
    asks: bool,
    /// The one consumer that a redriven event is for.
    #[prost(uint32, optional, tag = "23")]
    only: Option<u32>,
    /// Of a recorded event: how many it was for.
    #[prost(uint32, tag = "24")]
    matched: u32,
}

impl EventHead {
    fn of(env: &Envelope, sent: Option<&Sent>) -> Self {
        let extra = env.extra.as_deref();
        let (thread_id, thread) = match &env.thread {
            Ident::Uuid(id) => (Some((*id).into()), None),
            Ident::Name(name) => (None, Some(name.to_string())),
        };
        Self {
            id: Some(env.id.into()),
            topic: env.topic.to_string(),
            sender: env.origin.sender.to_string(),
            namespace: env.origin.namespace.to_string(),
            thread_id,
            thread,
            run: Some(env.run.into()),
            correlation: env.correlation.map(Into::into),
            causation: env.causation.map(Into::into),
            ttl_ms: env.ttl_ms,
            key: env.key.as_ref().map(ToString::to_string),
            time_ms: env.time_ms,
            hop: env.hop.into(),
            qos: env.qos.number().into(),
            content_type: extra.and_then(|e| e.content_type.as_deref().map(Into::into)),
            headers: extra.map_or_else(Vec::new, |e| {
                let pairs = e.headers.iter();
                pairs
                    .flat_map(|(name, value)| [name.to_string(), value.to_string()])
                    .collect()
            }),
            labels: extra.map_or_else(Vec::new, |e| {
                e.labels.iter().map(ToString::to_string).collect()
            }),
            traceparent: extra.and_then(|e| e.traceparent.as_deref().map(Into::into)),
            causes: extra.map_or_else(Vec::new, |e| {
                e.causes.iter().map(|id| (*id).into()).collect()
            }),
            dedup: extra.and_then(|e| e.dedup.as_deref().map(Into::into)),
            turn: sent.map_or(0, |sent| sent.turn),
            asks: sent.map_or(env.reply_to.is_some(), |sent| sent.asks),
            matched: sent.map_or(0, |sent| sent.matched),
            only: extra.and_then(|e| e.only),
        }
    }

    fn envelope(self, body: Vec<u8>) -> Result<Envelope> {
        let missing = || broken("an event has no id, run or thread");
        let thread = match (self.thread_id, self.thread) {
            (Some(id), _) => Ident::Uuid(id.into()),
            (None, Some(name)) => Ident::Name(name.into()),
            (None, None) => return Err(missing()),
        };
        let mut pairs = self.headers.into_iter();
        let mut headers = Vec::new();
        while let (Some(name), Some(value)) = (pairs.next(), pairs.next()) {
            headers.push((name.into(), value.into()));
        }
        let extra = Extra {
            content_type: self.content_type.map(Into::into),
            headers,
            labels: self.labels.into_iter().map(Into::into).collect(),
            traceparent: self.traceparent.map(Into::into),
            causes: self.causes.into_iter().map(Into::into).collect(),
            dedup: self.dedup.map(Into::into),
            only: self.only,
        };
        let qos = u8::try_from(self.qos).unwrap_or(u8::MAX);
        Ok(Envelope {
            id: self.id.ok_or_else(missing)?.into(),
            topic: self.topic.into(),
            payload: body.into(),
            origin: Arc::new(Origin {
                namespace: self.namespace.into(),
                sender: self.sender.into(),
            }),
            thread,
            run: self.run.ok_or_else(missing)?.into(),
            correlation: self.correlation.map(Into::into),
            causation: self.causation.map(Into::into),
            reply_to: None,
            deadline: None,
            ttl_ms: self.ttl_ms,
            expires: None,
            key: self.key.as_deref().map(Ident::parse),
            time_ms: self.time_ms,
            hop: u16::try_from(self.hop).unwrap_or(u16::MAX),
            qos: Qos::from_number(qos)?,
            extra: (extra != Extra::default()).then(|| Box::new(extra)),
            position: None,
            books: TopicId(0),
        })
    }
}

fn broken(message: impl Into<String>) -> Error {
    Error::new(Code::Internal, message)
}

fn read<M: Message + Default>(kind: u8, head: &[u8]) -> Result<M> {
    M::decode(head)
        .map_err(|error| broken(format!("a record of kind {kind} cannot be read: {error}")))
}

impl Record {
    /// The number of events.
    pub const EVENT: u8 = 10;

    /// Its number in the log.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Epoch(_) => 1,
            Self::Closed(_) => 2,
            Self::Gap(_) => 3,
            Self::ClockJump(_) => 4,
            Self::Event(_) => Self::EVENT,
            Self::Consumer(_) => 11,
            Self::ConsumerGone(_) => 12,
            Self::Started(_) => 13,
            Self::Progress(_) => 14,
            Self::Waits(_) => 15,
            Self::Dead(_) => 16,
            Self::Redriven(_) => 17,
            Self::Intent(..) => 20,
            Self::Dispatched(_) => 21,
            Self::Outcome(..) => 22,
            Self::Settled(..) => 23,
            Self::Turn(_) => 30,
            Self::Sent(_) => 31,
            Self::Ended(_) => 32,
            Self::Step(..) => 33,
            Self::TurnEnd(_) => 34,
            Self::State(..) => 35,
            Self::Memory(..) => 36,
        }
    }

    /// Appends its head.
    pub fn encode_head(&self, out: &mut Vec<u8>) {
        let message: &dyn Head = match self {
            Self::Event(env) => return EventHead::of(env, None).put(out),
            Self::Sent(sent) => {
                return EventHead::of(&sent.envelope, Some(sent)).put(out);
            }
            Self::Epoch(it) => it,
            Self::Closed(it) => it,
            Self::Gap(it) => it,
            Self::ClockJump(it) => it,
            Self::Consumer(it) => it,
            Self::ConsumerGone(it) => it,
            Self::Started(it) => it,
            Self::Progress(it) => it,
            Self::Waits(it) => it,
            Self::Dead(it) => it,
            Self::Redriven(it) => it,
            Self::Intent(it, _) => it,
            Self::Dispatched(it) => it,
            Self::Outcome(it, _) => it,
            Self::Settled(it, _) => it,
            Self::Turn(it) => it,
            Self::Ended(it) => it,
            Self::Step(it, _) => it,
            Self::TurnEnd(it) => it,
            Self::State(it, _) => it,
            Self::Memory(it, _) => it,
        };
        message.put(out);
    }

    /// Its body.
    pub fn body(&self) -> &[u8] {
        match self {
            Self::Event(env) => &env.payload,
            Self::Sent(sent) => &sent.envelope.payload,
            Self::Intent(_, body)
            | Self::Outcome(_, body)
            | Self::Settled(_, body)
            | Self::Step(_, body)
            | Self::State(_, body)
            | Self::Memory(_, body) => body,
            _ => &[],
        }
    }

    /// Reads a record. The position becomes that of its event.
    ///
    /// # Errors
    /// `INTERNAL` for bytes that are no such record, and for a kind that this version does not know.
    pub fn decode(kind: u8, head: &[u8], body: Vec<u8>, position: Position) -> Result<Self> {
        Ok(match kind {
            1 => Self::Epoch(read(kind, head)?),
            2 => Self::Closed(read(kind, head)?),
            3 => Self::Gap(read(kind, head)?),
            4 => Self::ClockJump(read(kind, head)?),
            Self::EVENT => {
                let mut envelope = read::<EventHead>(kind, head)?.envelope(body)?;
                envelope.position = Some(position);
                Self::Event(Arc::new(envelope))
            }
            11 => Self::Consumer(read(kind, head)?),
            12 => Self::ConsumerGone(read(kind, head)?),
            13 => Self::Started(read(kind, head)?),
            14 => Self::Progress(read(kind, head)?),
            15 => Self::Waits(read(kind, head)?),
            16 => Self::Dead(read(kind, head)?),
            17 => Self::Redriven(read(kind, head)?),
            20 => Self::Intent(read(kind, head)?, body.into()),
            21 => Self::Dispatched(read(kind, head)?),
            22 => Self::Outcome(read(kind, head)?, body.into()),
            23 => Self::Settled(read(kind, head)?, body.into()),
            30 => Self::Turn(read(kind, head)?),
            31 => {
                let head: EventHead = read(kind, head)?;
                let (turn, matched, asks) = (head.turn, head.matched, head.asks);
                let envelope = Arc::new(head.envelope(body)?);
                Self::Sent(Sent {
                    turn,
                    envelope,
                    matched,
                    asks,
                })
            }
            32 => Self::Ended(read(kind, head)?),
            33 => Self::Step(read(kind, head)?, body.into()),
            34 => Self::TurnEnd(read(kind, head)?),
            35 => Self::State(read(kind, head)?, body.into()),
            36 => Self::Memory(read(kind, head)?, body.into()),
            _ => {
                let message = format!("a record of kind {kind} is of a newer version of Loom");
                return Err(Error::new(Code::NotSupported, message).hint("update Loom"));
            }
        })
    }
}

/// A message that can be written, whatever it is.
trait Head {
    fn put(&self, out: &mut Vec<u8>);
}

impl<M: Message> Head for M {
    fn put(&self, out: &mut Vec<u8>) {
        // A vector has room for whatever there is.
        let _ = self.encode(out);
    }
}

#[cfg(test)]
mod tests;
