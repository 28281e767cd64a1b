//! Which fields there are, and which form each has. A field that a `.proto` gets and that is not here does not compile.

use std::marker::PhantomData;

use bytes::Bytes;

use super::read::{In, Readable};
use super::write::{Out, Value};
use super::{Malformed, Result};
use crate::v1;

/// A message: an object whose members have these names.
pub(super) trait Object: Default {
    /// Writes the members.
    fn write(&self, out: &mut Out);
    /// Takes a member; one that it does not know is passed over.
    fn read(&mut self, name: &str, raw: &str, from: &mut In) -> Result<()>;
}

/// The form of a field.
pub(super) trait Kind<T> {
    fn absent(value: &T) -> bool;
    fn write(value: &T, out: &mut Out);
    fn read(raw: &str, from: &mut In) -> Result<T>;
}

/// As JSON has it.
pub(super) struct Plain;
/// Bytes as hexadecimal text.
pub(super) struct Hex;
/// 16 bytes as a UUID, other ones as hexadecimal text.
pub(super) struct Id;
/// Bytes that are JSON.
pub(super) struct Inline;
/// Bytes that travel beside the text.
pub(super) struct Attached;
/// A lower-case name; a number that this version does not know, as it is.
pub(super) struct Enum<E>(PhantomData<E>);

impl<T: Value + Readable> Kind<T> for Plain {
    fn absent(value: &T) -> bool {
        value.absent()
    }
    fn write(value: &T, out: &mut Out) {
        Self::write(value, out);
    }
    fn read(raw: &str, from: &mut In) -> Result<T> {
        T::read(raw, from)
    }
}

impl Kind<Bytes> for Hex {
    fn absent(value: &Bytes) -> bool {
        value.is_empty()
    }
    fn write(value: &Bytes, out: &mut Out) {
        Self::write(value, out);
    }
    fn read(raw: &str, _: &mut In) -> Result<Bytes> {
        Self::read(raw)
    }
}

impl Kind<Bytes> for Id {
    fn absent(value: &Bytes) -> bool {
        value.is_empty()
    }
    fn write(value: &Bytes, out: &mut Out) {
        Self::write(value, out);
    }
    fn read(raw: &str, _: &mut In) -> Result<Bytes> {
        Self::read(raw)
    }
}

impl Kind<Vec<Bytes>> for Id {
    fn absent(value: &Vec<Bytes>) -> bool {
        value.is_empty()
    }
    fn write(value: &Vec<Bytes>, out: &mut Out) {
        Self::write_all(value, out);
    }
    fn read(raw: &str, _: &mut In) -> Result<Vec<Bytes>> {
        Self::read_all(raw)
    }
}

impl Kind<Bytes> for Inline {
    fn absent(value: &Bytes) -> bool {
        value.is_empty()
    }
    fn write(value: &Bytes, out: &mut Out) {
        Self::write(value, out);
    }
    fn read(raw: &str, _: &mut In) -> Result<Bytes> {
        Ok(Self::read(raw))
    }
}

impl Kind<Vec<Bytes>> for Inline {
    fn absent(value: &Vec<Bytes>) -> bool {
        value.is_empty()
    }
    fn write(value: &Vec<Bytes>, out: &mut Out) {
        Self::write_all(value, out);
    }
    fn read(raw: &str, _: &mut In) -> Result<Vec<Bytes>> {
        Self::read_all(raw)
    }
}

impl Kind<Bytes> for Attached {
    fn absent(value: &Bytes) -> bool {
        value.is_empty()
    }
    fn write(value: &Bytes, out: &mut Out) {
        Self::write(value, out);
    }
    fn read(raw: &str, from: &mut In) -> Result<Bytes> {
        Self::read(raw, from)
    }
}

impl<E: Named> Kind<i32> for Enum<E> {
    fn absent(value: &i32) -> bool {
        *value == 0
    }
    fn write(value: &i32, out: &mut Out) {
        Self::write(*value, out);
    }
    fn read(raw: &str, _: &mut In) -> Result<i32> {
        Self::read(raw)
    }
}

/// The names of an enumeration, by number from 1 on; 0 is an absent member.
pub(super) trait Named {
    const NAMES: &'static [&'static str];

    fn name(value: i32) -> Option<&'static str> {
        let index = usize::try_from(value).ok()?.checked_sub(1)?;
        Self::NAMES.get(index).copied()
    }

    fn number(name: &str) -> Option<i32> {
        let index = Self::NAMES.iter().position(|known| *known == name)?;
        i32::try_from(index + 1).ok()
    }
}

impl Named for v1::Qos {
    const NAMES: &'static [&'static str] = &["realtime", "batched", "background"];
}

impl Named for v1::AckLevel {
    const NAMES: &'static [&'static str] = &["accepted", "os", "disk"];
}

impl Named for v1::EffectClass {
    const NAMES: &'static [&'static str] = &["pure", "idempotent", "probeable", "unsafe"];
}

/// The name of a field whose name is a word of Rust.
fn bare(name: &'static str) -> &'static str {
    name.strip_prefix("r#").unwrap_or(name)
}

macro_rules! objects {
    ($($name:ident { $($field:ident: $kind:ty),* $(,)? })*) => {$(
        impl Object for v1::$name {
            fn write(&self, out: &mut Out) {
                let Self { $($field),* } = self;
                $(out.member::<$kind, _>(bare(stringify!($field)), $field);)*
            }

            fn read(&mut self, name: &str, raw: &str, from: &mut In) -> Result<()> {
                $(if name == bare(stringify!($field)) {
                    self.$field = <$kind as Kind<_>>::read(raw, from)?;
                })*
                Ok(())
            }
        }
    )*};
}

macro_rules! frames {
    ($($field:ident: $name:ident),* $(,)?) => {
        impl Object for v1::Frame {
            fn write(&self, out: &mut Out) {
                match &self.body {
                    $(Some(v1::frame::Body::$name(body)) => {
                        out.name(stringify!($field));
                        out.object(body);
                    })*
                    None => {}
                }
            }

            fn read(&mut self, name: &str, raw: &str, from: &mut In) -> Result<()> {
                let body = match name {
                    $(stringify!($field) => v1::frame::Body::$name(from.object(raw)?),)*
                    _ => return Ok(()),
                };
                match self.body.replace(body) {
                    Some(_) => Err(Malformed::new("is the second body of this frame")),
                    None => Ok(()),
                }
            }
        }
    };
}

objects! {
    Header { name: Plain, value: Plain }
    Envelope {
        id: Id, topic: Plain, payload: Plain, sender: Plain, time_ms: Plain, thread_id: Id,
        thread_name: Plain, run_id: Id, causation_id: Id, correlation_id: Id, causes: Id,
        remaining_ms: Plain, ttl_ms: Plain, hop: Plain, qos: Enum<v1::Qos>, key: Plain, headers:
        Plain, labels: Plain, traceparent: Plain, position: Plain,
    }
    Hello {
        versions: Plain, token: Plain, session: Hex, epoch: Plain, name: Plain, namespace: Plain,
        boot: Hex, received: Plain, agent: Plain, credit: Plain, keep_ms: Plain,
    }
    Welcome {
        version: Plain, boot: Hex, resumed: Plain, received: Plain, namespace: Plain, agent: Plain,
        credit: Plain, heartbeat_ms: Plain, keep_ms: Plain, time_ms: Plain, payload_bytes: Plain,
        durable: Plain, keeps_log: Plain,
    }
    Heartbeat { alive: Plain, stack: Plain }
    Error {
        r#ref: Plain, code: Plain, message: Plain, field: Plain, limit: Plain, hint: Plain, who:
        Plain, retry_after_ms: Plain, retry: Plain, keeps: Plain,
    }
    Drain { within_ms: Plain }
    Part { id: Plain, bytes: Plain, data: Attached, last: Plain }
    Credit { frames: Plain, bytes: Plain }
    Register {
        handle: Plain, name: Plain, filters: Plain, group: Plain, concurrency: Plain, info: Inline,
        realtime: Plain, start: Plain, max_deliver: Plain, exclusive: Plain,
    }
    Provide {
        handle: Plain, name: Plain, version: Plain, effect: Enum<v1::EffectClass>, concurrency:
        Plain, info: Inline, provider: Plain, probes: Plain,
    }
    Subscribe { handle: Plain, filters: Plain, qos: Enum<v1::Qos> }
    Unsubscribe { handle: Plain }
    Status { handle: Plain, status: Plain }
    Done { r#ref: Plain }
    Options {
        key: Plain, thread: Plain, ttl_ms: Plain, headers: Plain, labels: Plain, traceparent: Plain,
        causes: Id, id: Plain,
    }
    Publish {
        r#ref: Plain, sender: Plain, lease: Plain, topic: Plain, payload: Plain, qos: Enum<v1::Qos>,
        ack: Enum<v1::AckLevel>, options: Plain,
    }
    Accepted { r#ref: Plain, id: Id, level: Enum<v1::AckLevel>, matched: Plain, position: Plain }
    Withdraw { r#ref: Plain }
    Target {
        handle: Plain, lease: Plain, lane: Plain, asked: Plain, attempt: Plain, recorded: Plain,
    }
    Deliver { event: Plain, targets: Plain }
    Turn { event: Plain, target: Plain, state: Plain, journal: Plain }
    Ack { leases: Plain, goes_on: Plain }
    Nak { lease: Plain, after_ms: Plain }
    Extend { lease: Plain }
    Term { lease: Plain, reason: Plain }
    Fail { lease: Plain, code: Plain, detail: Inline }
    Request {
        call: Plain, sender: Plain, lease: Plain, topic: Plain, payload: Plain, timeout_ms: Plain,
        first_k: Plain, wait: Plain, options: Plain,
    }
    Reply { lease: Plain, payload: Plain }
    Answer { call: Plain, event: Plain }
    Call {
        call: Plain, sender: Plain, lease: Plain, capability: Plain, version: Plain, payload: Plain,
        timeout_ms: Plain, key: Plain, credit: Plain,
    }
    ActionCall {
        handle: Plain, lease: Plain, event: Plain, streamed: Plain, credit: Plain, effect_id: Id,
        attempt: Plain, recorded: Plain,
    }
    Chunk { lease: Plain, call: Plain, payload: Plain }
    Grant { call: Plain, lease: Plain, total: Plain }
    Result { lease: Plain, payload: Plain }
    Outcome { call: Plain, code: Plain, payload: Plain }
    Cancel { call: Plain, lease: Plain, code: Plain }
    Probe { handle: Plain, effect_id: Id }
    Probed { handle: Plain, effect_id: Id, verdict: Plain, result: Plain }
    Step {
        lease: Plain, kind: Plain, name: Plain, args_hash: Hex, code: Plain, micros: Plain, facts:
        Plain, result: Plain,
    }
    Commit {
        sender: Plain, lease: Plain, lane: Plain, schema_hash: Hex, state: Plain, failed: Plain,
    }
    Read { r#ref: Plain, filters: Plain, start: Plain }
    Page { r#ref: Plain, events: Plain, next: Plain, at_end: Plain }
    Blob { r#ref: Plain, hash: Hex, data: Attached }
    Directory { r#ref: Plain, kind: Plain }
    Entries { r#ref: Plain, entries: Inline, last: Plain }
    Report { sender: Plain, lease: Plain, level: Plain, code: Plain, data: Inline }
    Keep { r#ref: Plain, sender: Plain, key: Plain, value: Plain, gone: Plain, until_ms: Plain }
    Kept { r#ref: Plain, values: Plain, last: Plain }
    KeptValue { key: Plain, value: Plain, until_ms: Plain }
    Route { r#ref: Plain, capability: Plain, weights: Plain }
    Resolve { r#ref: Plain, effect_id: Id, result: Plain, note: Plain }
    Redrive { r#ref: Plain, consumer: Plain, n: Plain, payload: Plain }
    Describe { handle: Plain, version: Plain, source_hash: Hex }
}

frames! {
    hello: Hello,
    welcome: Welcome,
    heartbeat: Heartbeat,
    error: Error,
    drain: Drain,
    part: Part,
    credit: Credit,
    register: Register,
    provide: Provide,
    subscribe: Subscribe,
    unsubscribe: Unsubscribe,
    status: Status,
    done: Done,
    publish: Publish,
    accepted: Accepted,
    deliver: Deliver,
    turn: Turn,
    ack: Ack,
    nak: Nak,
    extend: Extend,
    term: Term,
    fail: Fail,
    request: Request,
    reply: Reply,
    answer: Answer,
    call: Call,
    action_call: ActionCall,
    chunk: Chunk,
    grant: Grant,
    result: Result,
    outcome: Outcome,
    cancel: Cancel,
    probe: Probe,
    probed: Probed,
    step: Step,
    commit: Commit,
    read: Read,
    page: Page,
    blob: Blob,
    directory: Directory,
    entries: Entries,
    report: Report,
    keep: Keep,
    route: Route,
    resolve: Resolve,
    redrive: Redrive,
    describe: Describe,
    withdraw: Withdraw,
    kept: Kept,
}
