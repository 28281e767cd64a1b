//! One session: what a loop offers, takes and drains.

use std::sync::Arc;

use loom_core::record::{Memory, State};
use loom_core::{
    AgentSpec, Attach, CallId, Code, EffectClass, Fault, Handle, Health, Invoke, LeaseId, Level,
    LogLine, Offer, ProbeAnswer, Probed, ProviderSpec, Publish, Qos, Reply, Report, Request,
    Resolution, Resolve, SessionId, Ticket, Told,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::clock::seconds;
use crate::convert::{effect_id, millis, refusal, show_notice, text};
use crate::delivery::{Delivery, Holder, Receipt};
use crate::engine::Shared;
use crate::history::{Start, begin};
use crate::wake::Wake;

/// One process instance attached to an engine: its registrations, its waiting calls, its inbox.
#[pyclass(frozen, module = "loom._engine")]
pub(crate) struct Session {
    shared: Arc<Shared>,
    id: SessionId,
    root: Handle,
    wake: Arc<Wake>,
    holder: Arc<Holder>,
    namespace: String,
}

impl Session {
    pub(crate) fn attach(
        shared: &Arc<Shared>,
        namespace: &str,
        name: &str,
        is_node: bool,
    ) -> PyResult<Self> {
        let wake = Arc::new(Wake::new()?);
        let mut state = shared.lock()?;
        let id = state
            .core
            .attach_as(Attach {
                namespace,
                name,
                is_node,
                ..Attach::default()
            })
            .map_err(crate::convert::refuse)?;
        let root = state.core.root(id).map_err(crate::convert::refuse)?;
        state.wakes.insert(id, Arc::clone(&wake));
        drop(state);
        Ok(Self {
            shared: Arc::clone(shared),
            id,
            root,
            holder: Arc::new(Holder::Local {
                shared: Arc::downgrade(shared),
                session: id,
                wake: Arc::clone(&wake),
            }),
            wake,
            namespace: namespace.to_owned(),
        })
    }

    fn step<T>(
        &self,
        step: impl FnOnce(&mut loom_core::Core, loom_core::Moment) -> loom_core::Result<T>,
    ) -> PyResult<T> {
        self.shared.step(self.id, step)
    }

    /// The lease of a delivery; a reply has none.
    fn lease_of(&self, delivery: Option<&Bound<'_, Delivery>>) -> PyResult<Option<LeaseId>> {
        let Some(delivery) = delivery.map(Bound::get) else {
            return Ok(None);
        };
        if delivery.is_of(self.shared.number()) {
            return Ok(delivery.lease_id());
        }
        let message = "this delivery is of another engine";
        Err(refusal(Code::Fenced, message, None))
    }

    fn end(&self) -> PyResult<()> {
        self.step(|core, at| {
            core.close(self.id, at);
            Ok(())
        })?;
        self.shared.lock()?.wakes.remove(&self.id);
        self.wake.set_pending(false);
        self.wake.close();
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.shared.is_forked() {
            // An engine that failed has nothing left to give back.
            let _ = self.end();
        }
    }
}

pub(crate) fn text_of<'a>(
    field: &str,
    values: &'a [Bound<'_, PyString>],
) -> PyResult<Vec<&'a str>> {
    values.iter().map(|value| text(field, value)).collect()
}

#[pymethods]
impl Session {
    #[getter]
    fn fd(&self) -> i32 {
        self.wake.fd()
    }

    #[getter]
    fn pending(&self) -> bool {
        self.wake.is_pending()
    }

    #[getter]
    fn root(&self) -> u64 {
        self.root.0
    }

    #[pyo3(signature = (name, filters, group, concurrency, info, realtime, start = None, max_deliver = None, exclusive = false, /))]
    #[expect(
        clippy::too_many_arguments,
        reason = "positional arguments cost Python least"
    )]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a list of Python's strings is extracted"
    )]
    fn register(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        filters: Vec<Bound<'_, PyString>>,
        group: &Bound<'_, PyString>,
        concurrency: u32,
        info: &[u8],
        realtime: bool,
        start: Option<&Bound<'_, PyAny>>,
        max_deliver: Option<u32>,
        exclusive: bool,
    ) -> PyResult<u64> {
        let filters = text_of("filters", &filters)?;
        let (name, group) = (text("name", name)?, text("group", group)?);
        let member_of = if group.is_empty() { name } else { group };
        let start = start.map(Start::of).transpose()?.unwrap_or(Start::Now);
        let start = py
            .detach(|| begin(&self.shared, &self.namespace, member_of, start))
            .map_err(crate::convert::refuse)?;
        let spec = AgentSpec {
            name,
            filters: &filters,
            group,
            concurrency,
            qos: if realtime {
                Qos::Realtime
            } else {
                Qos::Batched
            },
            info,
            start,
            max_deliver: max_deliver.unwrap_or(0),
            exclusive,
        };
        self.step(|core, at| core.register(self.id, &spec, at))
            .map(|handle| handle.0)
    }

    #[pyo3(signature = (name, version, effect, concurrency, info, provider, probes, /))]
    #[expect(
        clippy::too_many_arguments,
        reason = "positional arguments cost Python least"
    )]
    fn provide(
        &self,
        name: &Bound<'_, PyString>,
        version: &Bound<'_, PyString>,
        effect: u8,
        concurrency: u32,
        info: &[u8],
        provider: &Bound<'_, PyString>,
        probes: bool,
    ) -> PyResult<u64> {
        let (name, version) = (text("name", name)?, text("version", version)?);
        let provider = text("provider", provider)?;
        let effect = EffectClass::from_number(effect).map_err(crate::convert::refuse)?;
        let spec = ProviderSpec {
            name,
            version,
            effect,
            probes,
            provider,
            concurrency,
            info,
        };
        self.step(|core, at| core.provide(self.id, &spec, at))
            .map(|handle| handle.0)
    }

    #[pyo3(signature = (filters, qos, /))]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a list of Python's strings is extracted"
    )]
    fn subscribe(&self, filters: Vec<Bound<'_, PyString>>, qos: u8) -> PyResult<u64> {
        let filters = text_of("filters", &filters)?;
        let qos = Qos::from_number(qos).map_err(crate::convert::refuse)?;
        self.step(|core, _| core.subscribe(self.id, &filters, qos))
            .map(|handle| handle.0)
    }

    #[pyo3(signature = (handle, /))]
    fn remove(&self, handle: u64) -> PyResult<()> {
        self.step(|core, at| core.remove(self.id, Handle(handle), at))
    }

    #[pyo3(signature = (handle, /))]
    fn turns_done(&self, handle: u64) -> PyResult<u64> {
        self.step(|core, _| core.turns_done(self.id, Handle(handle)))
    }

    #[pyo3(signature = (handle, state, /))]
    fn set_state(&self, handle: u64, state: u8) -> PyResult<()> {
        let state = Health::from_number(state).map_err(crate::convert::refuse)?;
        self.step(|core, at| core.set_state(self.id, Handle(handle), state, at))
    }

    #[pyo3(signature = (capability, weights, /))]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a list of Python's pairs is extracted"
    )]
    fn route(
        &self,
        capability: &Bound<'_, PyString>,
        weights: Option<Vec<(Bound<'_, PyString>, f64)>>,
    ) -> PyResult<()> {
        let capability = text("capability", capability)?;
        let weights: Option<Vec<(&str, f64)>> = weights
            .as_ref()
            .map(|weights| {
                let pairs = weights.iter();
                pairs
                    .map(|(provider, weight)| Ok((text("provider", provider)?, *weight)))
                    .collect::<PyResult<_>>()
            })
            .transpose()?;
        self.step(|core, _| core.weigh(self.id, capability, weights.as_deref()))
    }

    #[pyo3(signature = (sender, turn, topic, payload, qos, /))]
    #[expect(
        clippy::too_many_arguments,
        reason = "positional arguments cost Python least"
    )]
    fn emit(
        &self,
        sender: u64,
        turn: Option<&Bound<'_, Delivery>>,
        topic: &Bound<'_, PyString>,
        payload: &[u8],
        qos: u8,
    ) -> PyResult<Option<Receipt>> {
        if crate::convert::has_null(payload) {
            return Ok(None);
        }
        let publish = Publish {
            sender: Handle(sender),
            turn: self.lease_of(turn)?,
            topic: text("topic", topic)?,
            payload: payload.into(),
            qos: Qos::from_number(qos).map_err(crate::convert::refuse)?,
            options: None,
            ack: None,
            eager: true,
        };
        let offer = self.step(|core, at| core.offer(self.id, publish, at))?;
        if self.wake.is_pending() {
            self.wake.write();
        }
        match offer {
            Offer::Done(receipt) => Ok(Some(Receipt::new(receipt))),
            Offer::NoRoom | Offer::Parked(_) | Offer::Logging(_) => Ok(None),
        }
    }

    #[pyo3(signature = (sender, turn, topic, payload, qos, options, ack = None, /))]
    #[expect(
        clippy::too_many_arguments,
        reason = "positional arguments cost Python least"
    )]
    fn offer<'py>(
        &self,
        py: Python<'py>,
        sender: u64,
        turn: Option<&Bound<'_, Delivery>>,
        topic: &Bound<'py, PyString>,
        payload: &[u8],
        qos: u8,
        options: Option<&Bound<'py, PyAny>>,
        ack: Option<u8>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let publish = Publish {
            sender: Handle(sender),
            turn: self.lease_of(turn)?,
            topic: text("topic", topic)?,
            payload: payload.into(),
            qos: Qos::from_number(qos).map_err(crate::convert::refuse)?,
            options: crate::convert::options(options)?,
            ack: ack
                .map(Level::from_number)
                .transpose()
                .map_err(crate::convert::refuse)?,
            eager: false,
        };
        match self.step(|core, at| core.offer(self.id, publish, at))? {
            Offer::Done(receipt) => Ok(Bound::new(py, Receipt::new(receipt))?.into_any()),
            Offer::NoRoom => Err(refusal(
                Code::Internal,
                "an offer that waits was given up",
                None,
            )),
            Offer::Parked(ticket) | Offer::Logging(ticket) => {
                Ok(ticket.0.into_pyobject(py)?.into_any())
            }
        }
    }

    /// Publishes a dead event anew for the consumer that gave it up; ACCEPTED or REFUSED of this ticket follows.
    #[pyo3(signature = (consumer, n, payload, /))]
    fn redrive(&self, consumer: u32, n: u64, payload: Option<&[u8]>) -> PyResult<u64> {
        let payload = payload.map(Into::into);
        self.step(|core, _| core.redrive(self.id, (consumer, n), payload))
            .map(|ticket| ticket.0)
    }

    #[pyo3(signature = (ticket, /))]
    fn withdraw(&self, ticket: u64) -> PyResult<bool> {
        self.step(|core, at| core.withdraw_offer(self.id, Ticket(ticket), at))
    }

    #[pyo3(signature = (sender, turn, topic, payload, timeout, first_k, wait, options, /))]
    #[expect(
        clippy::too_many_arguments,
        reason = "positional arguments cost Python least"
    )]
    fn request(
        &self,
        sender: u64,
        turn: Option<&Bound<'_, Delivery>>,
        topic: &Bound<'_, PyString>,
        payload: &[u8],
        timeout: f64,
        first_k: u32,
        wait: bool,
        options: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<u64> {
        let publish = Publish {
            sender: Handle(sender),
            turn: self.lease_of(turn)?,
            topic: text("topic", topic)?,
            payload: payload.into(),
            qos: Qos::Batched,
            options: crate::convert::options(options)?,
            ack: None,
            eager: false,
        };
        let request = Request {
            publish,
            timeout_ms: millis("timeout", timeout)?,
            first_k,
            wait,
        };
        self.step(|core, at| core.request(self.id, request, at))
            .map(|call| call.0)
    }

    #[pyo3(signature = (sender, turn, capability, payload, timeout, key, credit, version, /))]
    #[expect(
        clippy::too_many_arguments,
        reason = "positional arguments cost Python least"
    )]
    fn call(
        &self,
        sender: u64,
        turn: Option<&Bound<'_, Delivery>>,
        capability: &Bound<'_, PyString>,
        payload: &[u8],
        timeout: f64,
        key: Option<&Bound<'_, PyString>>,
        credit: u64,
        version: Option<&Bound<'_, PyString>>,
    ) -> PyResult<u64> {
        let key = key.map(|key| text("key", key)).transpose()?;
        let invoke = Invoke {
            sender: Handle(sender),
            turn: self.lease_of(turn)?,
            capability: text("capability", capability)?,
            version: version
                .map(|version| text("version", version))
                .transpose()?,
            payload: payload.into(),
            timeout_ms: millis("timeout", timeout)?,
            key,
            credit,
        };
        self.step(|core, at| core.call(self.id, invoke, at))
            .map(|call| call.0)
    }

    #[pyo3(signature = (handle, effect, verdict, result, /))]
    fn probed(
        &self,
        handle: u64,
        effect: &Bound<'_, PyString>,
        verdict: u8,
        result: &[u8],
    ) -> PyResult<bool> {
        let says = match verdict {
            0 => Probed::Done(result.into()),
            1 => Probed::NotDone,
            2 => Probed::Unknown,
            _ => Probed::Failed,
        };
        let answer = ProbeAnswer {
            handle: Handle(handle),
            effect: effect_id(effect)?,
            says,
        };
        self.step(|core, at| core.probed(self.id, answer, at))
    }

    #[pyo3(signature = (effect, result, note, /))]
    fn resolve(
        &self,
        effect: &Bound<'_, PyString>,
        result: Option<&[u8]>,
        note: &Bound<'_, PyString>,
    ) -> PyResult<u64> {
        let says = result.map_or(Resolution::Failed, |result| Resolution::Done(result.into()));
        let resolve = Resolve {
            effect: effect_id(effect)?,
            says,
            note: text("note", note)?,
        };
        self.step(|core, at| core.resolve(self.id, resolve, at))
            .map(|ticket| ticket.0)
    }

    #[pyo3(signature = (call, /))]
    fn cancel(&self, call: u64) -> PyResult<()> {
        self.step(|core, at| core.cancel(self.id, CallId(call), at))
    }

    #[pyo3(signature = (call, total, /))]
    fn grant(&self, call: u64, total: u64) -> PyResult<()> {
        self.step(|core, at| core.grant(self.id, CallId(call), total, at))
    }

    #[pyo3(signature = (handle, done, /))]
    fn take(&self, handle: u64, done: Option<&Bound<'_, Delivery>>) -> PyResult<Option<Delivery>> {
        let done = self.lease_of(done)?;
        let taken = self.step(|core, at| core.take(self.id, Handle(handle), done, at))?;
        Ok(taken.map(|taken| Delivery::taken(taken, self.shared.number(), &self.holder)))
    }

    #[pyo3(signature = (lease, payload, content_type, /))]
    fn reply(
        &self,
        lease: u64,
        payload: &[u8],
        content_type: Option<&Bound<'_, PyString>>,
    ) -> PyResult<bool> {
        let kind = content_type
            .map(|kind| text("content_type", kind))
            .transpose()?;
        let reply = Reply {
            lease: LeaseId(lease),
            payload: payload.into(),
            content_type: kind,
        };
        self.step(|core, at| core.reply(self.id, reply, at))
    }

    #[pyo3(signature = (lease, payload, /))]
    fn result(&self, lease: u64, payload: &[u8]) -> PyResult<bool> {
        self.step(|core, at| core.result(self.id, LeaseId(lease), payload.into(), at))
    }

    #[pyo3(signature = (lease, payload, /))]
    fn chunk(&self, lease: u64, payload: &[u8]) -> PyResult<bool> {
        self.step(|core, _| core.chunk(self.id, LeaseId(lease), payload.into()))
    }

    #[pyo3(signature = (lease, code, detail, /))]
    fn fail(&self, lease: u64, code: u16, detail: &[u8]) -> PyResult<bool> {
        let code = crate::convert::code(code)?;
        let fault = Fault {
            lease: LeaseId(lease),
            code,
            detail,
        };
        self.step(|core, at| core.fail(self.id, fault, at))
    }

    #[pyo3(signature = (handle, /))]
    fn lost(&self, handle: u64) -> PyResult<u64> {
        self.step(|core, _| core.lost(self.id, Handle(handle)))
    }

    #[pyo3(signature = (sender, turn, lane, schema, payload, failed, /))]
    #[expect(
        clippy::too_many_arguments,
        reason = "positional arguments cost Python least"
    )]
    fn keep_state(
        &self,
        sender: u64,
        turn: &Bound<'_, Delivery>,
        lane: &Bound<'_, PyString>,
        schema: &[u8],
        payload: Vec<u8>,
        failed: bool,
    ) -> PyResult<bool> {
        let lane = text("key", lane)?;
        let lease = self.lease_of(Some(turn))?;
        let Some(lease) = lease else {
            let message = "an answer is no turn that could leave a state";
            return Err(refusal(Code::Fenced, message, None));
        };
        let schema_hash = if schema.is_empty() {
            Vec::new()
        } else {
            loom_core::digest(schema).to_vec()
        };
        self.step(|core, _| {
            let state = State {
                agent: core.name_of(self.id, Handle(sender))?.to_owned(),
                key: lane.to_owned(),
                turn: core.turn_of(lease),
                schema_hash,
            };
            core.keep_state(self.id, lease, (state, payload.into()), failed)
        })
    }

    #[pyo3(signature = (sender, /))]
    fn states<'py>(
        &self,
        py: Python<'py>,
        sender: u64,
    ) -> PyResult<Vec<(String, Bound<'py, PyBytes>)>> {
        let found = self.step(|core, _| {
            let agent = core.name_of(self.id, Handle(sender))?.to_owned();
            Ok(core.states_of(&self.namespace, &agent))
        })?;
        Ok(found
            .into_iter()
            .map(|(key, body)| (key, PyBytes::new(py, &body)))
            .collect())
    }

    #[pyo3(signature = (sender, key, payload, until_ms, /))]
    fn keep_memory(
        &self,
        sender: u64,
        key: &Bound<'_, PyString>,
        payload: Option<Vec<u8>>,
        until_ms: Option<u64>,
    ) -> PyResult<()> {
        let key = text("key", key)?;
        self.step(|core, _| {
            let memory = Memory {
                key: key.to_owned(),
                writer: core.name_of(self.id, Handle(sender))?.to_owned(),
                turn: 0,
                gone: payload.is_none(),
                until_ms,
            };
            core.keep_memory(&self.namespace, memory, payload.unwrap_or_default().into())
        })
    }

    #[expect(
        clippy::type_complexity,
        reason = "a list of what Python unpacks at once"
    )]
    fn memories<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<Vec<(String, Bound<'py, PyBytes>, Option<u64>)>> {
        let found = self.step(|core, _| {
            let folded = core
                .partition_of(&self.namespace)
                .and_then(|number| core.partition(number));
            let all = folded.into_iter().flat_map(loom_core::Partition::memories);
            let all = all.map(|it| (it.key.clone(), Arc::clone(&it.body), it.until_ms));
            Ok(all.collect::<Vec<_>>())
        })?;
        Ok(found
            .into_iter()
            .map(|(key, body, until_ms)| (key, PyBytes::new(py, &body), until_ms))
            .collect())
    }

    #[pyo3(signature = (sender, turn, level, payload, /))]
    fn log(
        &self,
        sender: u64,
        turn: Option<&Bound<'_, Delivery>>,
        level: &Bound<'_, PyString>,
        payload: &[u8],
    ) -> PyResult<()> {
        let level = text("level", level)?;
        let line = LogLine {
            sender: Handle(sender),
            turn: self.lease_of(turn)?,
            level,
            payload,
        };
        self.step(|core, at| core.log(self.id, &line, at))
    }

    #[pyo3(signature = (sender, turn, code, detail, /))]
    fn report(
        &self,
        sender: u64,
        turn: Option<&Bound<'_, Delivery>>,
        code: u16,
        detail: &[u8],
    ) -> PyResult<()> {
        let code = crate::convert::code(code)?;
        let report = Report {
            sender: Handle(sender),
            turn: self.lease_of(turn)?,
            code,
            detail,
        };
        self.step(|core, at| core.report(self.id, &report, at))
    }

    /// Records a step of a turn.
    #[pyo3(signature = (turn, kind, name, args, code, micros, facts, result, /))]
    #[expect(
        clippy::too_many_arguments,
        reason = "positional arguments cost Python least"
    )]
    fn step_done(
        &self,
        turn: &Bound<'_, Delivery>,
        kind: &Bound<'_, PyString>,
        name: &Bound<'_, PyString>,
        args: &[u8],
        code: u16,
        micros: u64,
        facts: &Bound<'_, PyString>,
        result: &[u8],
    ) -> PyResult<()> {
        let Some(lease) = self.lease_of(Some(turn))? else {
            return Ok(());
        };
        let told = Told {
            kind: text("kind", kind)?,
            name: text("name", name)?,
            args_hash: &crate::convert::digest_of(args),
            code: (code > 0).then(|| crate::convert::code(code)).transpose()?,
            micros,
            facts: text("facts", facts)?,
            result: result.into(),
        };
        self.step(|core, at| core.step(self.id, lease, told, at))
    }

    /// Says which code an agent runs.
    #[pyo3(signature = (handle, version, source, /))]
    fn describe(&self, handle: u64, version: &Bound<'_, PyString>, source: &[u8]) -> PyResult<()> {
        let (version, hash) = (text("version", version)?, crate::convert::digest_of(source));
        self.step(|core, _| core.describe(self.id, Handle(handle), version, &hash))
    }

    #[pyo3(signature = (most, /))]
    fn drain<'py>(
        &self,
        py: Python<'py>,
        most: usize,
    ) -> PyResult<Vec<crate::convert::Shown<'py>>> {
        let notices = {
            self.wake.read();
            let mut state = self.shared.lock()?;
            let notices = state
                .core
                .drain(self.id, most)
                .map_err(crate::convert::refuse)?;
            self.wake.set_pending(state.core.waiting(self.id) > 0);
            notices
        };
        notices
            .into_iter()
            .map(|notice| show_notice(py, notice, self.shared.number()))
            .collect()
    }

    fn renew(&self) -> PyResult<()> {
        self.step(|core, at| {
            core.renew(self.id, at);
            Ok(())
        })
    }

    #[pyo3(signature = (stack, /))]
    fn stalls(&self, stack: &str) -> PyResult<()> {
        self.step(|core, _| {
            core.stalls(self.id, stack);
            Ok(())
        })
    }

    fn tick(&self) -> PyResult<Option<f64>> {
        let next =
            self.step(|core, at| Ok(core.tick(at).map(|next| next.0.saturating_sub(at.now.0))))?;
        Ok(next.map(seconds))
    }

    fn close(&self) -> PyResult<()> {
        self.end()
    }
}
