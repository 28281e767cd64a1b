//! Between the core's values and the wire's.

use std::sync::Arc;

use bytes::Bytes;
use loom_core::record::Level;
use loom_core::{
    Code, Detail, EffectClass, Envelope, Error, Extra, Ident, Moment, Options, Origin, Position,
    Qos, parse_uuid, show_uuid,
};
use loom_proto::v1;

const JSON: &str = "application/json";

/// An id as its 16 bytes.
pub(crate) fn id_bytes(id: u128) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

/// An id from its 16 bytes.
pub(crate) fn id_of(field: &str, bytes: &[u8]) -> Result<u128, Error> {
    let sixteen = <[u8; 16]>::try_from(bytes)
        .map_err(|_| Error::invalid(field, format!("an id has 16 bytes, not {}", bytes.len())))?;
    Ok(u128::from_be_bytes(sixteen))
}

fn maybe_id(field: &str, bytes: &[u8]) -> Result<Option<u128>, Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    id_of(field, bytes).map(Some)
}

/// Refuses what an enumeration does not have; a name of JSON that it has not comes as -1.
fn unknown(field: &str, what: &str, number: i32, names: &str) -> Error {
    let message = match number {
        -1 => format!("there is no {what} of this name"),
        _ => format!("there is no {what} {number}"),
    };
    Error::invalid(field, message).hint(format!("one of {names}"))
}

pub(crate) fn qos_of(number: i32) -> Result<Qos, Error> {
    match v1::Qos::try_from(number) {
        Ok(v1::Qos::Unspecified | v1::Qos::Batched) => Ok(Qos::Batched),
        Ok(v1::Qos::Realtime) => Ok(Qos::Realtime),
        Ok(v1::Qos::Background) => Ok(Qos::Background),
        Err(_) => Err(unknown(
            "qos",
            "delivery class",
            number,
            "realtime, batched, background",
        )),
    }
}

pub(crate) fn qos_number(qos: Qos) -> i32 {
    let qos = match qos {
        Qos::Realtime => v1::Qos::Realtime,
        Qos::Batched => v1::Qos::Unspecified,
        Qos::Background => v1::Qos::Background,
    };
    qos as i32
}

pub(crate) fn effect_of(number: i32) -> Result<EffectClass, Error> {
    match v1::EffectClass::try_from(number) {
        Ok(v1::EffectClass::Pure) => Ok(EffectClass::Pure),
        Ok(v1::EffectClass::Idempotent) => Ok(EffectClass::Idempotent),
        Ok(v1::EffectClass::Probeable) => Ok(EffectClass::Probeable),
        Ok(v1::EffectClass::Unspecified | v1::EffectClass::Unsafe) => Ok(EffectClass::Unsafe),
        Err(_) => Err(unknown(
            "effect",
            "effect class",
            number,
            "pure, idempotent, probeable, unsafe",
        )),
    }
}

/// What a publish asks for; none: as its topic says.
pub(crate) fn ack_of(number: i32) -> Result<Option<Level>, Error> {
    match v1::AckLevel::try_from(number) {
        Ok(v1::AckLevel::Unspecified) => Ok(None),
        Ok(v1::AckLevel::Accepted) => Ok(Some(Level::Accepted)),
        Ok(v1::AckLevel::Os) => Ok(Some(Level::Os)),
        Ok(v1::AckLevel::Disk) => Ok(Some(Level::Disk)),
        Err(_) => Err(unknown("ack", "ack level", number, "accepted, os, disk")),
    }
}

pub(crate) fn ack_number(level: Option<Level>) -> i32 {
    let level = match level {
        None => v1::AckLevel::Unspecified,
        Some(Level::Accepted) => v1::AckLevel::Accepted,
        Some(Level::Os) => v1::AckLevel::Os,
        Some(Level::Disk) => v1::AckLevel::Disk,
    };
    level as i32
}

pub(crate) fn code_of(number: u32) -> Code {
    u16::try_from(number)
        .ok()
        .and_then(Code::from_number)
        .unwrap_or(Code::Internal)
}

pub(crate) fn code_number(code: Option<Code>) -> u32 {
    code.map_or(0, |code| u32::from(code.number()))
}

/// Data and its type; the type is left out where it is JSON.
pub(crate) fn payload(data: Bytes, content_type: &str) -> v1::Payload {
    let content_type = if content_type == JSON {
        String::new()
    } else {
        content_type.to_owned()
    };
    v1::Payload { data, content_type }
}

/// Data in JSON.
pub(crate) fn json(data: impl Into<Bytes>) -> v1::Payload {
    v1::Payload {
        data: data.into(),
        content_type: String::new(),
    }
}

pub(crate) fn boxed(payload: Option<v1::Payload>) -> (Box<[u8]>, Option<String>) {
    let payload = payload.unwrap_or_default();
    let kind = Some(payload.content_type).filter(|kind| !kind.is_empty());
    (payload.data.as_ref().into(), kind)
}

/// An event as it crosses the wire.
pub(crate) fn show_envelope(env: &Envelope, at: Moment) -> v1::Envelope {
    let extra = env.extra.as_deref();
    let (thread_id, thread_name) = match &env.thread {
        Ident::Uuid(id) if *id == env.id => (Bytes::new(), String::new()),
        Ident::Uuid(id) => (id_bytes(*id), String::new()),
        Ident::Name(name) => (Bytes::new(), name.to_string()),
    };
    let mut shown = v1::Envelope {
        id: id_bytes(env.id),
        topic: env.topic.to_string(),
        payload: Some(payload(
            Bytes::copy_from_slice(&env.payload),
            env.content_type(),
        )),
        sender: env.origin.sender.to_string(),
        time_ms: env.time_ms,
        thread_id,
        thread_name,
        run_id: if env.run == env.id {
            Bytes::new()
        } else {
            id_bytes(env.run)
        },
        causation_id: env.causation.map(id_bytes).unwrap_or_default(),
        correlation_id: env.correlation.map(id_bytes).unwrap_or_default(),
        remaining_ms: env
            .deadline
            .map(|at_end| at_end.0.saturating_sub(at.now.0) / 1_000_000),
        ttl_ms: env.ttl_ms,
        hop: u32::from(env.hop),
        qos: qos_number(env.qos),
        key: env
            .key
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        position: env
            .position
            .map(|position| position.to_string())
            .unwrap_or_default(),
        ..v1::Envelope::default()
    };
    if let Some(extra) = extra {
        shown.causes = extra.causes.iter().map(|id| id_bytes(*id)).collect();
        shown.headers = extra
            .headers
            .iter()
            .map(|(name, value)| v1::Header {
                name: name.to_string(),
                value: value.to_string(),
            })
            .collect();
        shown.labels = extra.labels.iter().map(ToString::to_string).collect();
        let traceparent = extra.traceparent.as_deref().unwrap_or_default();
        traceparent.clone_into(&mut shown.traceparent);
    }
    shown
}

/// An event that came over the wire. `answers`: an answer of its receiver is waited for.
pub(crate) fn read_envelope(
    shown: v1::Envelope,
    origin: &mut dyn FnMut(&str) -> Arc<Origin>,
    at: Moment,
) -> Result<Envelope, Error> {
    let id = id_of("id", &shown.id)?;
    let thread = if !shown.thread_id.is_empty() {
        Ident::Uuid(id_of("thread_id", &shown.thread_id)?)
    } else if shown.thread_name.is_empty() {
        Ident::Uuid(id)
    } else {
        Ident::parse(&shown.thread_name)
    };
    let (data, kind) = boxed(shown.payload);
    let mut env = Envelope::arrived(id, shown.topic.into(), data, origin(&shown.sender));
    env.thread = thread;
    env.run = maybe_id("run_id", &shown.run_id)?.unwrap_or(id);
    env.causation = maybe_id("causation_id", &shown.causation_id)?;
    env.correlation = maybe_id("correlation_id", &shown.correlation_id)?;
    env.deadline = shown.remaining_ms.map(|left| at.now.plus_millis(left));
    env.ttl_ms = shown.ttl_ms;
    env.key = (!shown.key.is_empty()).then(|| Ident::parse(&shown.key));
    env.time_ms = shown.time_ms;
    env.hop = u16::try_from(shown.hop).unwrap_or(u16::MAX);
    // Only a node sends these, and a newer one may have classes that are not known here.
    env.qos = qos_of(shown.qos).unwrap_or(Qos::Batched);
    env.position = position_of(&shown.position)?;
    let is_plain = kind.is_none()
        && shown.headers.is_empty()
        && shown.labels.is_empty()
        && shown.causes.is_empty()
        && shown.traceparent.is_empty();
    if !is_plain {
        env.extra = Some(Box::new(Extra {
            content_type: kind.map(Into::into),
            headers: shown
                .headers
                .into_iter()
                .map(|header| (header.name.into(), header.value.into()))
                .collect(),
            labels: shown.labels.into_iter().map(Into::into).collect(),
            traceparent: (!shown.traceparent.is_empty()).then(|| shown.traceparent.into()),
            causes: shown
                .causes
                .iter()
                .map(|id| id_of("causes", id))
                .collect::<Result<_, _>>()?,
            dedup: None,
            only: None,
        }));
    }
    Ok(env)
}

pub(crate) fn position_of(text: &str) -> Result<Option<Position>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some)
}

/// What few events have, as a client sends it.
pub(crate) fn show_options(options: &Options) -> Result<v1::Options, Error> {
    let causes = options.causes.iter().map(|text| {
        let id = parse_uuid(text);
        let id = id.ok_or_else(|| Error::invalid("causes", format!("{text:?} is no id")))?;
        Ok(id_bytes(id))
    });
    Ok(v1::Options {
        key: options.key.clone().unwrap_or_default(),
        thread: options.thread_id.clone().unwrap_or_default(),
        ttl_ms: options.ttl_ms,
        headers: options
            .headers
            .iter()
            .map(|(name, value)| v1::Header {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
        labels: options.labels.clone(),
        traceparent: options.traceparent.clone().unwrap_or_default(),
        causes: causes.collect::<Result<_, Error>>()?,
        id: options.dedup.clone().unwrap_or_default(),
    })
}

/// What few events have, as the core takes it; none where nothing is set.
pub(crate) fn read_options(
    shown: Option<v1::Options>,
    content_type: Option<String>,
) -> Result<Option<Box<Options>>, Error> {
    let Some(shown) = shown else {
        return Ok(content_type.map(|kind| {
            Box::new(Options {
                content_type: Some(kind),
                ..Options::default()
            })
        }));
    };
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let causes = shown.causes.iter();
    let causes = causes.map(|id| Ok(show_uuid(id_of("causes", id)?)));
    Ok(Some(Box::new(Options {
        key: some(shown.key),
        thread_id: some(shown.thread),
        ttl_ms: shown.ttl_ms,
        content_type,
        headers: shown
            .headers
            .into_iter()
            .map(|it| (it.name, it.value))
            .collect(),
        labels: shown.labels,
        traceparent: some(shown.traceparent),
        causes: causes.collect::<Result<_, Error>>()?,
        dedup: some(shown.id),
    })))
}

/// An error as a frame.
pub(crate) fn show_error(reference: u64, error: &Error) -> v1::Error {
    v1::Error {
        r#ref: reference,
        code: u32::from(error.code.number()),
        message: error.message.clone(),
        field: error.field.clone().unwrap_or_default(),
        limit: error.limit.unwrap_or_default().to_owned(),
        hint: error.hint.clone().unwrap_or_default(),
        who: String::new(),
        retry_after_ms: error.retry_after_ms,
        retry: None,
        keeps: false,
    }
}

/// An error frame as a code and its detail.
pub(crate) fn read_error(error: v1::Error) -> (Code, Detail) {
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let detail = Detail {
        message: error.message,
        field: some(error.field),
        limit: some(error.limit),
        hint: some(error.hint),
        who: some(error.who),
        retry: error.retry,
        retry_after_ms: error.retry_after_ms,
    };
    (code_of(error.code), detail)
}
