//! What the engine answers: receipts, deliveries, and the notices of a session's inbox.

use std::sync::Arc;

use crate::arena::{CallId, Handle, LeaseId, Ticket};
use crate::envelope::{Envelope, Position};
use crate::error::{Code, Error};
use crate::record::Level;

/// What a publish was promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The event's id.
    pub id: u128,
    /// How many subscriptions and groups it was for.
    pub matched: usize,
    /// Where the log put it, if it was logged.
    pub position: Option<Position>,
    /// How far it has got.
    pub level: Level,
}

/// How an offer stands.
#[derive(Debug)]
pub enum Offer {
    /// Taken.
    Done(Receipt),
    /// Waits for room: [`Notice::Accepted`] or [`Notice::Refused`] will follow.
    Parked(Ticket),
    /// Was eager, and there is no room, or it must be logged: nothing was done.
    NoRoom,
    /// With the log: [`Notice::Accepted`] or [`Notice::Refused`] will follow.
    Logging(Ticket),
}

/// What an invocation has beyond its envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// The caller reads chunks.
    pub streamed: bool,
    /// Chunks granted when it was taken.
    pub credit: u64,
    /// Names the change outside, for what is not pure: the same in every attempt, and for a call with a key in every life.
    pub effect: Option<u128>,
}

/// One event, one reply, or one invocation, as it is handed out.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Names the turn or invocation; none for a reply.
    pub lease: Option<LeaseId>,
    /// The record.
    pub envelope: Arc<Envelope>,
    /// Whether an answer of this receiver is waited for.
    pub asked: bool,
    /// 1 for the first.
    pub attempt: u32,
    /// Whether it is acked, and given again if it is not.
    pub durable: bool,
    /// Of an invocation.
    pub work: Option<Work>,
    /// The number of a recorded turn; 0: it is not recorded.
    pub turn: u64,
}

/// What a session finds in its inbox.
#[derive(Debug)]
pub enum Notice {
    /// `take` of this handle has work.
    Ready(Handle),
    /// One reply to an open request.
    Answer(CallId, Delivery),
    /// The one end of a call or request. Without a code it is ok. The bytes are a call's result, else a detail in JSON.
    Outcome(CallId, Option<Code>, Box<[u8]>),
    /// One chunk of a streamed call.
    Chunk(CallId, Box<[u8]>),
    /// The caller grants this many chunks in all.
    Credit(LeaseId, u64),
    /// Was this effect done? The provider answers by [`crate::Core::probed`].
    Probe(Handle, u128),
    /// Nobody waits for this invocation any more.
    Cancel(LeaseId, Code),
    /// Something of this session's becomes due in this many milliseconds, earlier than it knows of: tick then.
    Due(u64),
    /// A parked or logged offer was taken.
    Accepted(Ticket, Receipt),
    /// A parked or logged offer was refused.
    Refused(Ticket, Error),
    /// The engine has removed a registration of this session: `FENCED` by a newer agent, `DENIED` by other grants.
    Removed(Handle, Error),
}
