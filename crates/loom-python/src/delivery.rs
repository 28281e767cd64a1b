//! Deliveries and receipts, read field by field: Python pays for what it looks at.

use std::collections::HashMap;

use loom_core::show_uuid;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::clock::{seconds, seconds_of_millis};

/// What a publish was promised.
#[pyclass(frozen, module = "loom._engine")]
pub(crate) struct Receipt {
    inner: loom_core::Receipt,
}

impl Receipt {
    pub(crate) fn new(inner: loom_core::Receipt) -> Self {
        Self { inner }
    }
}

#[pymethods]
impl Receipt {
    #[getter]
    fn id(&self) -> String {
        show_uuid(self.inner.id)
    }

    #[getter]
    fn level(&self) -> &'static str {
        self.inner.level.name()
    }

    #[getter]
    #[expect(clippy::unnecessary_wraps, reason = "a remote engine does not say")]
    fn matched(&self) -> Option<usize> {
        Some(self.inner.matched)
    }

    #[getter]
    fn position(&self) -> Option<String> {
        self.inner.position.map(|position| position.to_string())
    }
}

/// One event (a turn), one reply, or one invocation of a capability, as the engine holds it.
#[pyclass(frozen, module = "loom._engine")]
pub(crate) struct Delivery {
    inner: loom_core::Delivery,
    /// The number of the engine that delivered it: its lease means nothing to another one.
    engine: u64,
}

impl Delivery {
    pub(crate) fn new(inner: loom_core::Delivery, engine: u64) -> Self {
        Self { inner, engine }
    }

    pub(crate) fn is_of(&self, engine: u64) -> bool {
        self.engine == engine
    }

    pub(crate) fn lease_id(&self) -> Option<loom_core::LeaseId> {
        self.inner.lease
    }

    fn env(&self) -> &loom_core::Envelope {
        &self.inner.envelope
    }

    fn extra<T: Default>(&self, read: impl FnOnce(&loom_core::Extra) -> T) -> T {
        self.env().extra.as_deref().map(read).unwrap_or_default()
    }
}

#[pymethods]
impl Delivery {
    #[getter]
    fn lease(&self) -> u64 {
        self.inner.lease.map_or(0, |lease| lease.0)
    }

    #[getter]
    fn id(&self) -> String {
        show_uuid(self.env().id)
    }

    #[getter]
    fn topic(&self) -> &str {
        &self.env().topic
    }

    #[getter]
    fn payload<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.env().payload)
    }

    #[getter]
    fn content_type(&self) -> &str {
        self.env().content_type()
    }

    #[getter]
    fn is_json(&self) -> bool {
        self.env().is_json()
    }

    /// The payload if it is JSON: both in one look.
    #[getter]
    fn json<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.is_json().then(|| self.payload(py))
    }

    #[getter]
    fn sender(&self) -> &str {
        &self.env().origin.sender
    }

    #[getter]
    fn namespace(&self) -> &str {
        &self.env().origin.namespace
    }

    #[getter]
    fn thread_id(&self) -> String {
        self.env().thread.to_string()
    }

    #[getter]
    fn run_id(&self) -> String {
        show_uuid(self.env().run)
    }

    #[getter]
    fn correlation_id(&self) -> Option<String> {
        self.env().correlation.map(show_uuid)
    }

    #[getter]
    fn causation_id(&self) -> Option<String> {
        self.env().causation.map(show_uuid)
    }

    #[getter]
    fn causes(&self) -> Vec<String> {
        self.extra(|extra| extra.causes.iter().map(|id| show_uuid(*id)).collect())
    }

    #[getter]
    fn wants_reply(&self) -> bool {
        self.inner.asked
    }

    #[getter]
    fn reply_to(&self) -> Option<String> {
        self.env().reply_to.map(|call| format!("{:x}", call.0))
    }

    #[getter]
    fn deadline(&self) -> Option<f64> {
        self.env().deadline.map(|at| seconds(at.0))
    }

    #[getter]
    fn ttl_ms(&self) -> Option<u64> {
        self.env().ttl_ms
    }

    #[getter]
    fn hop(&self) -> u16 {
        self.env().hop
    }

    #[getter]
    fn qos(&self) -> u8 {
        self.env().qos.number()
    }

    #[getter]
    fn key(&self) -> Option<String> {
        self.env().key.as_ref().map(ToString::to_string)
    }

    #[getter]
    fn time(&self) -> f64 {
        seconds_of_millis(self.env().time_ms)
    }

    #[getter]
    fn traceparent(&self) -> Option<String> {
        self.extra(|extra| extra.traceparent.as_deref().map(str::to_owned))
    }

    #[getter]
    fn labels(&self) -> Vec<String> {
        self.extra(|extra| extra.labels.iter().map(ToString::to_string).collect())
    }

    #[getter]
    fn headers(&self) -> HashMap<String, String> {
        self.extra(|extra| {
            let pairs = extra.headers.iter();
            pairs
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect()
        })
    }

    #[getter]
    fn position(&self) -> Option<String> {
        self.env().position.map(|position| position.to_string())
    }

    #[getter]
    fn attempt(&self) -> u32 {
        self.inner.attempt
    }

    #[getter]
    fn streamed(&self) -> bool {
        self.inner.work.is_some_and(|work| work.streamed)
    }

    #[getter]
    fn credit(&self) -> u64 {
        self.inner.work.map_or(0, |work| work.credit)
    }

    #[getter]
    fn effect_id(&self) -> Option<String> {
        self.inner.work.and_then(|work| work.effect).map(show_uuid)
    }
}
