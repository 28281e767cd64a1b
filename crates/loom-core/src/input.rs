//! What is asked of the engine.

use crate::arena::{Handle, LeaseId};
use crate::envelope::{EffectClass, Position, Qos};
use crate::error::Code;
use crate::record::Level;

/// A session to attach.
#[derive(Debug, Clone, Default)]
pub struct Attach<'a> {
    /// Where.
    pub namespace: &'a str,
    /// Who publishes what the session publishes outside any agent.
    pub name: &'a str,
    /// What it may do; none: everything, as the process of the engine itself.
    pub grants: Option<std::sync::Arc<crate::Grants>>,
    /// What the client calls itself in all its connections and in all lives of the node; 0: it does not come back.
    pub client: u128,
    /// Whether it is the node's own: it provides what stands under `loom.`.
    pub is_node: bool,
}

/// The lists of [`crate::Grants`], as they are written.
#[derive(Debug, Clone, Copy, Default)]
pub struct GrantTexts<'a> {
    /// Topics to publish and request.
    pub publish: &'a [&'a str],
    /// Topics to hear, and to read in the log.
    pub subscribe: &'a [&'a str],
    /// Capabilities to call.
    pub call: &'a [&'a str],
    /// Capabilities to provide.
    pub provide: &'a [&'a str],
    /// Events of the engine to hear, agents and capabilities to see, capabilities of the node that look.
    pub observe: &'a [&'a str],
    /// All other capabilities of the node, and what others have that may be changed.
    pub admin: &'a [&'a str],
}

/// An agent to register: one subscription with a set of filters.
#[derive(Debug, Clone)]
pub struct AgentSpec<'a> {
    /// Its name; its identity is `namespace/name`.
    pub name: &'a str,
    /// What it hears, besides `spawn.{name}`.
    pub filters: &'a [&'a str],
    /// Whose members share the events; empty: its own name.
    pub group: &'a str,
    /// How many of its lanes may have a turn at once.
    pub concurrency: u32,
    /// The class it takes events as: realtime takes every event so, any other leaves each its own.
    pub qos: Qos,
    /// What the directory shows of it: JSON.
    pub info: &'a [u8],
    /// Where a group that is new begins to consume the log.
    pub start: Start,
    /// How often a durable event is begun before it is given up; 0: as the limit says.
    pub max_deliver: u32,
    /// Whether there is one agent of this name: the newer fences the older, in whatever session it is.
    pub exclusive: bool,
}

/// Where a group that is new begins to consume the log. One that is known goes on where it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Start {
    /// With what is published from now on.
    #[default]
    Now,
    /// With the oldest event that is kept.
    Beginning,
    /// With the event there, or the next one.
    At(Position),
}

/// A provider of a capability.
#[derive(Debug, Clone)]
pub struct ProviderSpec<'a> {
    /// The capability's name.
    pub name: &'a str,
    /// The version it offers.
    pub version: &'a str,
    /// What it does to the world outside.
    pub effect: EffectClass,
    /// Whether it can be asked if an effect of it was done.
    pub probes: bool,
    /// Who offers it: the name of an agent or an app; selection tables weigh by it.
    pub provider: &'a str,
    /// How many calls it serves at once.
    pub concurrency: u32,
    /// What the directory shows of it: JSON.
    pub info: &'a [u8],
}

/// What few events have; nothing of it is trusted before it is checked.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The lane, where it is not the thread.
    pub key: Option<String>,
    /// The conversation, where it is not the turn's, or the event's own.
    pub thread_id: Option<String>,
    /// How long it may wait in a queue.
    pub ttl_ms: Option<u64>,
    /// None: JSON.
    pub content_type: Option<String>,
    /// Free pairs.
    pub headers: Vec<(String, String)>,
    /// What policies match.
    pub labels: Vec<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// Ids of events this one follows from, each held by the sender's session now.
    pub causes: Vec<String>,
    /// The publisher's own id for what is durable: a second event of the topic with it is the same one.
    pub dedup: Option<String>,
}

/// An event to publish.
#[derive(Debug)]
pub struct Publish<'a> {
    /// Who publishes: a handle of the session.
    pub sender: Handle,
    /// The turn or invocation it follows from.
    pub turn: Option<LeaseId>,
    /// Where.
    pub topic: &'a str,
    /// Opaque bytes.
    pub payload: Box<[u8]>,
    /// The delivery class.
    pub qos: Qos,
    /// What few events have.
    pub options: Option<Box<Options>>,
    /// How far it must be in the log before anyone sees it; none: as the topic says.
    pub ack: Option<Level>,
    /// Whether it is taken at once or not at all: it is not parked where there is no room.
    pub eager: bool,
}

/// An event whose sender waits for answers.
#[derive(Debug)]
pub struct Request<'a> {
    /// The event; its class is [`Qos::Batched`], and it is never durable.
    pub publish: Publish<'a>,
    /// How long the sender waits.
    pub timeout_ms: u64,
    /// How many answers end it; 0: as many as there are.
    pub first_k: u32,
    /// Whether to wait for a subscriber where there is none.
    pub wait: bool,
}

/// A call of a capability.
#[derive(Debug)]
pub struct Invoke<'a> {
    /// Who calls: a handle of the session.
    pub sender: Handle,
    /// The turn or invocation it follows from.
    pub turn: Option<LeaseId>,
    /// The capability's name.
    pub capability: &'a str,
    /// The version; none: the newest that somebody can serve.
    pub version: Option<&'a str>,
    /// The arguments.
    pub payload: Box<[u8]>,
    /// How long the caller waits.
    pub timeout_ms: u64,
    /// The idempotency key, carried to the provider.
    pub key: Option<&'a str>,
    /// 0: one result; else streamed, with so many chunks granted.
    pub credit: u64,
}

/// An answer to the request that a turn was given with.
#[derive(Debug)]
pub struct Reply<'a> {
    /// The turn.
    pub lease: LeaseId,
    /// Opaque bytes.
    pub payload: Box<[u8]>,
    /// None: JSON.
    pub content_type: Option<&'a str>,
}

/// An error that ends a turn or an invocation.
#[derive(Debug, Clone, Copy)]
pub struct Fault<'a> {
    /// The turn or invocation.
    pub lease: LeaseId,
    /// What kind.
    pub code: Code,
    /// A [`crate::Detail`] as JSON.
    pub detail: &'a [u8],
}

/// An error that a client decided outside the engine.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// Who reports: a handle of the session.
    pub sender: Handle,
    /// The turn or invocation it arose in.
    pub turn: Option<LeaseId>,
    /// What kind.
    pub code: Code,
    /// A [`crate::Detail`] as JSON.
    pub detail: &'a [u8],
}

/// A line of log.
#[derive(Debug, Clone, Copy)]
pub struct LogLine<'a> {
    /// Who writes it: a handle of the session.
    pub sender: Handle,
    /// The turn or invocation it was written in.
    pub turn: Option<LeaseId>,
    /// `debug`, `info`, `warning`, `error` or `critical`.
    pub level: &'a str,
    /// JSON.
    pub payload: &'a [u8],
}
