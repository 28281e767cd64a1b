//! Python's values to the core's and back.

use std::sync::LazyLock;

use loom_core::{Code, Error, Notice, Options, parse_uuid, show_uuid};
use memchr::memmem::Finder;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::clock::seconds_of_millis;
use crate::delivery::{Delivery, Receipt};

pub(crate) const READY: u8 = 1;
pub(crate) const ANSWER: u8 = 2;
pub(crate) const OUTCOME: u8 = 3;
pub(crate) const CHUNK: u8 = 4;
pub(crate) const CREDIT: u8 = 5;
pub(crate) const CANCEL: u8 = 6;
pub(crate) const ACCEPTED: u8 = 7;
pub(crate) const REFUSED: u8 = 8;
pub(crate) const DUE: u8 = 9;
pub(crate) const PROBE: u8 = 10;
pub(crate) const REMOVED: u8 = 11;

create_exception!(
    loom._engine,
    EngineError,
    PyException,
    "What the engine refused. ``args`` is (code, message, field, limit, hint, retry_after)."
);

/// What stands for bytes where two of them are compared; nothing for nothing.
pub(crate) fn digest_of(bytes: &[u8]) -> Vec<u8> {
    if bytes.is_empty() {
        return Vec::new();
    }
    loom_core::digest(bytes).to_vec()
}

/// The same for Python.
#[pyfunction]
#[pyo3(signature = (payload, /))]
pub(crate) fn digest<'py>(py: Python<'py>, payload: &[u8]) -> Bound<'py, pyo3::types::PyBytes> {
    pyo3::types::PyBytes::new(py, &digest_of(payload))
}

/// Whether the bytes hold `null`: where NaN may hide in JSON.
#[pyfunction]
#[pyo3(signature = (payload, /))]
pub(crate) fn has_null(payload: &[u8]) -> bool {
    static NULL: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"null"));
    NULL.find(payload).is_some()
}

/// What an error says, as the `args` of an `EngineError`.
pub(crate) type Refusal = (
    u16,
    String,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<f64>,
);

pub(crate) fn refuse(error: Error) -> PyErr {
    EngineError::new_err(parts(error))
}

pub(crate) fn parts(error: Error) -> Refusal {
    let Error {
        code,
        message,
        field,
        limit,
        hint,
        retry_after_ms,
    } = error;
    let retry_after = retry_after_ms.map(seconds_of_millis);
    let limit = limit.map(str::to_owned);
    (code.number(), message, field, limit, hint, retry_after)
}

pub(crate) fn refusal(code: Code, message: &str, field: Option<&str>) -> PyErr {
    let (field, message) = (field.map(str::to_owned), message.to_owned());
    EngineError::new_err((
        code.number(),
        message,
        field,
        None::<String>,
        None::<String>,
        None::<f64>,
    ))
}

/// The text of an argument; one that is not Unicode names its field.
pub(crate) fn text<'a>(field: &str, value: &'a Bound<'_, PyString>) -> PyResult<&'a str> {
    value.to_str().map_err(|_| {
        refusal(
            Code::InvalidParams,
            "this text is not valid Unicode",
            Some(field),
        )
    })
}

/// The id of an effect from its text.
pub(crate) fn effect_id(value: &Bound<'_, PyString>) -> PyResult<u128> {
    let text = text("effect", value)?;
    parse_uuid(text).ok_or_else(|| {
        let message = format!("{text:?} is not the id of an effect");
        refusal(Code::InvalidParams, &message, Some("effect"))
    })
}

/// Seconds to whole milliseconds, rounded up.
pub(crate) fn millis(field: &str, seconds: f64) -> PyResult<u64> {
    if seconds.is_nan() || seconds < 0.0 {
        return Err(refusal(
            Code::InvalidParams,
            &format!("{field} is {seconds}, not 0 or more seconds"),
            Some(field),
        ));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast of a float saturates, and the limit refuses what is too long"
    )]
    let millis = (seconds * 1e3).ceil() as u64;
    Ok(millis)
}

pub(crate) fn code(number: u16) -> PyResult<Code> {
    Code::from_number(number).ok_or_else(|| {
        refusal(
            Code::InvalidParams,
            &format!("there is no error code {number}"),
            Some("code"),
        )
    })
}

type RawOptions = (
    Option<String>,
    Option<String>,
    Option<u64>,
    Option<String>,
    Option<Vec<(String, String)>>,
    Option<Vec<String>>,
    Option<String>,
    Option<Vec<String>>,
    Option<String>,
);

pub(crate) fn options(given: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Box<Options>>> {
    let Some(given) = given else { return Ok(None) };
    let raw: PyResult<RawOptions> = given.extract();
    let (key, thread_id, ttl_ms, content_type, headers, labels, traceparent, causes, dedup) =
        raw.map_err(|error| {
            refusal(
                Code::InvalidParams,
                &format!("an option has the wrong type: {error}"),
                Some("options"),
            )
        })?;
    Ok(Some(Box::new(Options {
        key,
        thread_id,
        ttl_ms,
        content_type,
        headers: headers.unwrap_or_default(),
        labels: labels.unwrap_or_default(),
        traceparent,
        causes: causes.unwrap_or_default(),
        dedup,
    })))
}

pub(crate) type Shown<'py> = (u8, u64, u64, Option<Bound<'py, PyAny>>);

/// A notice as Python sees it: (kind, id, number, value).
pub(crate) fn show_notice(py: Python<'_>, notice: Notice, engine: u64) -> PyResult<Shown<'_>> {
    let number = |code: Option<Code>| code.map_or(0, |code| u64::from(code.number()));
    Ok(match notice {
        Notice::Ready(handle) => (READY, handle.0, 0, None),
        Notice::Answer(call, delivery) => (
            ANSWER,
            call.0,
            0,
            Some(Bound::new(py, Delivery::new(delivery, engine))?.into_any()),
        ),
        Notice::Outcome(call, code, body) => (OUTCOME, call.0, number(code), bytes(py, &body)),
        Notice::Chunk(call, body) => (CHUNK, call.0, 0, bytes(py, &body)),
        Notice::Credit(lease, total) => (CREDIT, lease.0, total, None),
        Notice::Cancel(lease, code) => (CANCEL, lease.0, number(Some(code)), None),
        Notice::Due(millis) => (DUE, 0, millis, None),
        Notice::Probe(handle, effect) => (
            PROBE,
            handle.0,
            0,
            Some(PyString::new(py, &show_uuid(effect)).into_any()),
        ),
        Notice::Accepted(ticket, receipt) => (
            ACCEPTED,
            ticket.0,
            0,
            Some(Bound::new(py, Receipt::new(receipt))?.into_any()),
        ),
        Notice::Refused(ticket, error) => refused(py, (REFUSED, ticket.0), &error),
        Notice::Removed(handle, error) => refused(py, (REMOVED, handle.0), &error),
    })
}

fn refused<'py>(py: Python<'py>, (kind, ident): (u8, u64), error: &Error) -> Shown<'py> {
    let body = serde_json::to_vec(&error.detail()).unwrap_or_default();
    (kind, ident, error.code.number().into(), bytes(py, &body))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "it stands where a value may be absent"
)]
fn bytes<'py>(py: Python<'py>, body: &[u8]) -> Option<Bound<'py, PyAny>> {
    Some(PyBytes::new(py, body).into_any())
}
