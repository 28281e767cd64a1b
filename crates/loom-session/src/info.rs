//! What a registration says of itself: all others read it who look into the directory, so that one that they cannot
//! read would keep them from all of it.

use bytes::Bytes;
use loom_core::Error;
use serde_json::{Map, Value, json};

use crate::convert::effect_of;
use loom_proto::v1;

type Check = fn(&Value) -> bool;

/// What readers know besides what the node knows itself, and what it has to be where it is given.
const AGENT: [(&str, &str, Check); 2] = [
    ("description", "text", Value::is_string),
    ("capabilities", "a list of texts", is_texts),
];
const CAPABILITY: [(&str, &str, Check); 8] = [
    ("timeout", "a number", Value::is_number),
    ("cost", "a number", Value::is_number),
    ("tags", "a list of texts", is_texts),
    ("description", "text", Value::is_string),
    ("input", "an object", Value::is_object),
    ("output", "an object", Value::is_object),
    ("streams", "true or false", Value::is_boolean),
    ("needs_approval", "true or false", Value::is_boolean),
];

fn is_texts(value: &Value) -> bool {
    let all = value.as_array();
    all.is_some_and(|all| all.iter().all(Value::is_string))
}

/// What the directory shows of an agent.
pub(crate) fn of_agent(it: &v1::Register) -> Result<Bytes, Error> {
    let group = if it.group.is_empty() {
        &it.name
    } else {
        &it.group
    };
    let known = [
        ("name", json!(it.name)),
        ("filters", json!(it.filters)),
        ("group", json!(group)),
        ("concurrency", json!(it.concurrency)),
    ];
    shown(&it.info, &AGENT, known)
}

/// What the directory shows of a capability.
pub(crate) fn of_provider(it: &v1::Provide) -> Result<Bytes, Error> {
    let known = [
        ("name", json!(it.name)),
        ("version", json!(it.version)),
        ("effect", json!(effect_of(it.effect)?.name())),
        ("provider", json!(it.provider)),
    ];
    shown(&it.info, &CAPABILITY, known)
}

/// What was given, with what the node knows itself as it is.
fn shown<const N: usize>(
    info: &Bytes,
    checks: &[(&str, &str, Check)],
    known: [(&'static str, Value); N],
) -> Result<Bytes, Error> {
    // Its reader of JSON refuses what is nested more than 127 levels deep.
    let mut given: Map<String, Value> = serde_json::from_slice(info).map_err(|error| {
        let message = format!("it is no JSON object that can be read: {error}");
        Error::invalid("info", message)
    })?;
    for (name, kind, is_well) in checks {
        if given.get(*name).is_some_and(|value| !is_well(value)) {
            let message = format!("{name} is not {kind}");
            let hint = "leave out what is not known";
            return Err(Error::invalid(&format!("info.{name}"), message).hint(hint));
        }
    }
    if known
        .iter()
        .all(|(name, value)| given.get(*name) == Some(value))
    {
        // As it came: numbers and the order of members, too.
        return Ok(info.clone());
    }
    given.extend(known.map(|(name, value)| (name.to_owned(), value)));
    let bytes = serde_json::to_vec(&given);
    let bytes = bytes.map_err(|error| Error::invalid("info", error.to_string()))?;
    Ok(bytes.into())
}
