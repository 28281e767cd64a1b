//! Deliveries and receipts, read field by field: Python pays for what it looks at.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use loom_core::{Envelope, Error, SessionId, show_uuid};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::clock::{seconds, seconds_of_millis};
use crate::convert::{Refusal, parts};
use crate::engine::Shared;
use crate::remote::Remote;
use crate::wake::Wake;

/// What a publish was promised.
#[pyclass(frozen, module = "loom._engine")]
pub(crate) struct Receipt {
    inner: loom_core::Receipt,
    /// It says how many the event was for.
    is_counted: bool,
}

impl Receipt {
    pub(crate) fn new(inner: loom_core::Receipt) -> Self {
        let is_counted = true;
        Self { inner, is_counted }
    }

    /// Of an event that was sent to a node, which does not answer it.
    pub(crate) fn remote(inner: loom_core::Receipt) -> Self {
        let is_counted = false;
        Self { inner, is_counted }
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
    fn matched(&self) -> Option<usize> {
        self.is_counted.then_some(self.inner.matched)
    }

    #[getter]
    fn position(&self) -> Option<String> {
        self.inner.position.map(|position| position.to_string())
    }

    fn __repr__(&self) -> String {
        let position = self.position();
        let position = position.map_or_else(|| "None".to_owned(), |text| format!("'{text}'"));
        format!(
            "Receipt(id='{}', level='{}', matched={}, position={position})",
            self.id(),
            self.level(),
            self.matched()
                .map_or_else(|| "None".to_owned(), |count| count.to_string()),
        )
    }
}

/// One event (a turn), one reply, or one invocation of a capability, as the engine holds it.
#[pyclass(frozen, module = "loom._engine")]
pub(crate) struct Delivery {
    inner: loom_core::Delivery,
    /// The number of the engine that delivered it: its lease means nothing to another one.
    engine: u64,
    /// Who can say how a durable turn ends; none for what is not durable.
    holder: Option<Arc<Holder>>,
}

/// What can be said of a durable turn.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Settle<'a> {
    Ack,
    Nak(Option<u64>),
    Extend,
    Term(&'a str),
}

/// The session that a durable turn was given to.
pub(crate) enum Holder {
    /// Of an engine in this process.
    Local {
        shared: Weak<Shared>,
        session: SessionId,
        wake: Arc<Wake>,
    },
    /// At a node.
    Remote(Weak<Remote>),
}

impl Delivery {
    pub(crate) fn new(inner: loom_core::Delivery, engine: u64) -> Self {
        Self {
            inner,
            engine,
            holder: None,
        }
    }

    /// One that was taken: a durable one can be settled.
    pub(crate) fn taken(inner: loom_core::Delivery, engine: u64, holder: &Arc<Holder>) -> Self {
        let holder = inner.durable.then(|| Arc::clone(holder));
        Self {
            inner,
            engine,
            holder,
        }
    }

    /// One that was read from the log: nobody's turn.
    pub(crate) fn read(envelope: Arc<Envelope>, engine: u64) -> Self {
        let inner = loom_core::Delivery {
            lease: None,
            envelope,
            asked: false,
            attempt: 1,
            work: None,
            turn: 0,
            durable: false,
        };
        Self::new(inner, engine)
    }

    fn end(&self, how: Settle<'_>) -> Result<(), Error> {
        let (Some(holder), Some(lease)) = (&self.holder, self.inner.lease) else {
            let message = "this event is not durable, or was not given to a handler";
            return Err(Error::invalid("event", message).hint(
                "only durable events are acknowledged: [log] durable, or emit(…, ack=…); see event.attempt and event.position",
            ));
        };
        let gone = || Error::fenced("the engine of this turn is gone");
        let (shared, session, wake) = match &**holder {
            Holder::Remote(remote) => {
                return remote.upgrade().ok_or_else(gone)?.settle(lease, how);
            }
            Holder::Local {
                shared,
                session,
                wake,
            } => (shared.upgrade().ok_or_else(gone)?, *session, wake),
        };
        shared.outside(|core, at| match how {
            Settle::Ack => core.ack(session, lease, at),
            Settle::Nak(millis) => {
                let pause = millis.unwrap_or_else(|| core.pause(self.inner.attempt));
                core.nak(session, lease, pause)
            }
            Settle::Extend => core.extend(session, lease, at),
            Settle::Term(reason) => core.term(session, lease, reason, at),
        })??;
        if wake.is_pending() {
            wake.write();
        }
        Ok(())
    }

    pub(crate) fn is_durable_turn(&self) -> bool {
        self.inner.durable
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

    /// The number of a recorded turn; 0: it is not recorded.
    #[getter]
    fn turn(&self) -> u64 {
        self.inner.turn
    }

    #[getter]
    fn is_durable(&self) -> bool {
        self.inner.durable
    }

    #[pyo3(signature = (how, millis, reason, /))]
    fn settle(&self, how: u8, millis: Option<u64>, reason: Option<&str>) -> Option<Refusal> {
        let how = match how {
            0 => Settle::Ack,
            1 => Settle::Nak(millis),
            2 => Settle::Extend,
            _ => Settle::Term(reason.unwrap_or_default()),
        };
        self.end(how).err().map(parts)
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
