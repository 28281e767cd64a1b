//! A session at a node: the same doors as a session in process, over the client machine and its connection.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ::bytes::Bytes;
use loom_bridge::{Address, ClientTls, Dialing, Identity, Target, Way};
use loom_core::{CallId, Code, Handle, LeaseId, Level, Moment, Notice, Qos, Ticket};
use loom_proto::v1::{self, frame::Body};
use loom_session::{Client, ClientConfig, Invocation, LinkChange, LinkState, Note, Sending, Sent};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use crate::bridge::file;
use crate::clock::Clock;
use crate::convert::{Shown, effect_id, millis, refusal, refuse, show_notice, text};
use crate::delivery::{Delivery, Holder, Receipt, Settle};
use crate::engine::{next_number, random_id};
use crate::history::TIME;
use crate::session::text_of;
use crate::wake::{Wake, generation};

/// Notices of its own, beside those of a session in process.
pub(crate) const LINK: u8 = 12;

/// What the loop says goes out when it has come round; once it has said so much, the carrier begins before. With 64, realtime
/// events came to 0.95 of the rate: the carrier was woken twice as often, for half as much.
const TOGETHER: u32 = 256;

/// Where a url leads.
///
/// # Errors
/// `INVALID_PARAMS`, naming what of it is wrong.
fn target(url: &str, trust: Option<TrustFiles>) -> loom_core::Result<Target> {
    let wrong = |why: &str| {
        let hint = "loom://host:7420, looms://host:7420, ws://, wss://, unix:///path";
        loom_core::Error::invalid("url", why).hint(hint)
    };
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| wrong("a url has a scheme"))?;
    let (way, tls) = match scheme {
        "loom" => (Way::Grpc, false),
        "looms" => (Way::Grpc, true),
        "ws" => (Way::WebSocket, false),
        "wss" => (Way::WebSocket, true),
        "unix" => {
            let address = Address::Unix(rest.into());
            return Ok(Target {
                way: Way::Grpc,
                address,
                tls: None,
            });
        }
        _ => return Err(wrong("there is no such scheme")),
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') => (host, port.parse().ok()),
        _ => (authority, Some(7420)),
    };
    let port = port.filter(|port| *port > 0);
    let port = port.ok_or_else(|| wrong("the port is a number from 1 to 65535"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(wrong("a url names a host"));
    }
    let address = Address::Tcp {
        host: host.to_owned(),
        port,
    };
    Ok(Target {
        way,
        address,
        tls: tls.then(|| client_tls(trust)).transpose()?,
    })
}

/// Files of who vouches for the node, and of the certificate and the key that it is shown.
type TrustFiles = (Option<PathBuf>, Option<(PathBuf, PathBuf)>);

fn client_tls(trust: Option<TrustFiles>) -> loom_core::Result<ClientTls> {
    let (ca, own) = trust.unwrap_or_default();
    let identity = match own {
        None => None,
        Some((chain, key)) => Some(Identity {
            chain: file("cert", &chain)?,
            key: file("cert_key", &key)?,
        }),
    };
    Ok(ClientTls {
        ca: ca.map(|path| file("ca", &path)).transpose()?,
        identity,
        name: None,
    })
}

/// What the session, its deliveries and the thread that carries it share.
pub(crate) struct Remote {
    client: Arc<Mutex<Client>>,
    dialing: Dialing,
    clock: Arc<Clock>,
    wake: Arc<Wake>,
    /// Steps of the loop since it has flushed.
    steps: AtomicU32,
    number: u64,
    generation: u32,
}

impl Remote {
    /// Lets the carrier send what a step may have left: with what else the loop says in this round, for a connection that
    /// is written to for each step of a handler is slow. The loop is made to drain once it comes round.
    fn send(&self) {
        if self.wake.is_mine() {
            let before = self.steps.fetch_add(1, Ordering::Relaxed);
            if before == 0 {
                self.wake.write();
            }
            if before == 0 || !before.is_multiple_of(TOGETHER) {
                return;
            }
        }
        self.dialing.kick();
    }

    /// The loop has come round.
    fn flush(&self) {
        if self.steps.swap(0, Ordering::Relaxed) > 0 {
            self.dialing.kick();
        }
    }

    fn lock(&self) -> PyResult<MutexGuard<'_, Client>> {
        self.guard().map_err(refuse)
    }

    fn guard(&self) -> loom_core::Result<MutexGuard<'_, Client>> {
        if self.generation != generation() {
            let message =
                "this process was forked after the link was made; connect anew in the child";
            return Err(loom_core::Error::fenced(message));
        }
        let failed =
            |_| loom_core::Error::new(Code::Internal, "the link failed in an earlier call");
        self.client.lock().map_err(failed)
    }

    /// Does one step of the client; what it has to send goes out, and whoever drains is told of what came into the inbox.
    fn step<T>(
        &self,
        step: impl FnOnce(&mut Client, Moment) -> loom_core::Result<T>,
    ) -> loom_core::Result<T> {
        let at = self.clock.moment();
        let mut client = self.guard()?;
        let done = step(&mut client, at);
        let woken = client.take_woken();
        drop(client);
        self.send();
        if woken {
            self.wake.set_pending(true);
            if !self.wake.is_mine() {
                self.wake.write();
            }
        }
        done
    }

    /// Ends a durable turn as its handler says.
    pub(crate) fn settle(&self, lease: LeaseId, how: Settle<'_>) -> loom_core::Result<()> {
        self.step(|client, _| match how {
            Settle::Ack => client.ack(lease),
            Settle::Nak(millis) => client.nak(lease, millis),
            Settle::Extend => client.extend(lease),
            Settle::Term(reason) => client.term(lease, reason),
        })
    }
}

/// A session at a node: it dials, resumes and registers again by itself.
#[pyclass(frozen, module = "loom._engine")]
pub(crate) struct RemoteSession {
    remote: Arc<Remote>,
    holder: Arc<Holder>,
}

impl RemoteSession {
    fn step<T>(
        &self,
        step: impl FnOnce(&mut Client, Moment) -> loom_core::Result<T>,
    ) -> PyResult<T> {
        self.remote.step(step).map_err(refuse)
    }

    /// The lease of a delivery; a reply has none.
    fn lease_of(&self, delivery: Option<&Bound<'_, Delivery>>) -> PyResult<Option<LeaseId>> {
        let Some(delivery) = delivery.map(Bound::get) else {
            return Ok(None);
        };
        if delivery.is_of(self.remote.number) {
            return Ok(delivery.lease_id());
        }
        Err(refusal(
            Code::Fenced,
            "this delivery is of another engine",
            None,
        ))
    }

    /// A receipt, or a ticket.
    fn offer_it<'py>(&self, py: Python<'py>, sending: Sending<'_>) -> PyResult<Bound<'py, PyAny>> {
        match self.step(|client, at| client.offer(sending, at))? {
            Sent::Done(receipt) => Ok(Bound::new(py, Receipt::remote(receipt))?.into_any()),
            Sent::Waits(ticket) => Ok(ticket.0.into_pyobject(py)?.into_any()),
        }
    }

    fn ask(&self, make: impl FnOnce(u64) -> Body) -> PyResult<u64> {
        self.step(|client, _| client.ask(make))
            .map(|ticket| ticket.0)
    }
}

fn start_text(start: Option<&Bound<'_, PyAny>>) -> PyResult<String> {
    let Some(start) = start else {
        return Ok(String::new());
    };
    if let Ok(ms) = start.extract::<i64>() {
        return Ok(format!("{TIME}{}", ms.max(0)));
    }
    let Ok(start) = start.cast::<PyString>() else {
        let message = "start is neither text nor a time";
        return Err(refusal(Code::InvalidParams, message, Some("start")));
    };
    Ok(text("start", start)?.to_owned())
}

fn copied(data: &[u8]) -> Bytes {
    Bytes::copy_from_slice(data)
}

fn json(data: &[u8]) -> v1::Payload {
    v1::Payload {
        data: copied(data),
        content_type: String::new(),
    }
}

fn hash_of(data: &[u8]) -> Bytes {
    if data.is_empty() {
        Bytes::new()
    } else {
        Bytes::copy_from_slice(&loom_core::digest(data))
    }
}

#[pymethods]
impl RemoteSession {
    /// `now`: the seconds of Python's monotonic clock, in which deadlines are shown. `keep`: so many seconds the node keeps
    /// the session without a connection; 0: as long as it does. `trust` is for TLS: without it, the authorities of the system.
    #[new]
    #[expect(clippy::too_many_arguments, reason = "it is made once")]
    fn new(
        py: Python<'_>,
        url: &str,
        token: &str,
        name: &str,
        namespace: &str,
        now: f64,
        keep: f64,
        trust: Option<TrustFiles>,
    ) -> PyResult<Self> {
        let target = target(url, trust).map_err(refuse)?;
        let config = ClientConfig {
            session: random_id().to_be_bytes(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            token: token.to_owned(),
            agent: concat!("loom-python/", env!("CARGO_PKG_VERSION")).to_owned(),
            keep_ms: millis("keep", keep)?,
            whole: false,
            limits: loom_session::Limits::default(),
        };
        #[expect(clippy::cast_possible_truncation, reason = "a seed is any 64 bits")]
        let seed = random_id() as u64;
        let client = Arc::new(Mutex::new(Client::new(config, seed)));
        let wake = Arc::new(Wake::new()?);
        let told = Arc::clone(&wake);
        let tell = Arc::new(move || {
            told.set_pending(true);
            told.write();
        });
        let clock = Arc::new(Clock::real_from(now));
        let tells = Arc::clone(&clock);
        let moment: loom_bridge::Clock = Arc::new(move || tells.moment());
        let dialing = py
            .detach(|| Dialing::start(target, Arc::clone(&client), moment, tell))
            .map_err(refuse)?;
        let remote = Arc::new(Remote {
            client,
            dialing,
            clock,
            wake,
            steps: AtomicU32::new(0),
            number: next_number(),
            generation: generation(),
        });
        let holder = Arc::new(Holder::Remote(Arc::downgrade(&remote)));
        Ok(Self { remote, holder })
    }

    #[getter]
    fn fd(&self) -> i32 {
        self.remote.wake.fd()
    }

    #[getter]
    fn pending(&self) -> bool {
        self.remote.wake.is_pending()
    }

    #[getter]
    #[expect(
        clippy::unused_self,
        reason = "it stands where a session in process has a number"
    )]
    fn root(&self) -> u64 {
        0
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
        let frame = v1::Register {
            handle: 0,
            name: text("name", name)?.to_owned(),
            filters: filters.into_iter().map(str::to_owned).collect(),
            group: text("group", group)?.to_owned(),
            concurrency,
            info: copied(info),
            realtime,
            start: start_text(start)?,
            max_deliver: max_deliver.unwrap_or(0),
            exclusive,
        };
        self.step(|client, _| {
            client.enrol(|handle| Body::Register(v1::Register { handle, ..frame }))
        })
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
        // The wire's numbers begin with the one that says nothing.
        let effect = i32::from(effect) + 1;
        let frame = v1::Provide {
            handle: 0,
            name: text("name", name)?.to_owned(),
            version: text("version", version)?.to_owned(),
            effect,
            concurrency,
            info: copied(info),
            provider: text("provider", provider)?.to_owned(),
            probes,
        };
        self.step(|client, _| client.enrol(|handle| Body::Provide(v1::Provide { handle, ..frame })))
            .map(|handle| handle.0)
    }

    #[pyo3(signature = (filters, qos, /))]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a list of Python's strings is extracted"
    )]
    fn subscribe(&self, filters: Vec<Bound<'_, PyString>>, qos: u8) -> PyResult<u64> {
        let filters = text_of("filters", &filters)?;
        let frame = v1::Subscribe {
            handle: 0,
            filters: filters.into_iter().map(str::to_owned).collect(),
            qos: i32::from(Qos::from_number(qos).map_err(refuse)?.number()) + 1,
        };
        self.step(|client, _| {
            client.enrol(|handle| Body::Subscribe(v1::Subscribe { handle, ..frame }))
        })
        .map(|handle| handle.0)
    }

    #[pyo3(signature = (handle, /))]
    fn remove(&self, handle: u64) -> PyResult<()> {
        self.step(|client, _| {
            client.remove(Handle(handle));
            Ok(())
        })
    }

    #[pyo3(signature = (handle, /))]
    fn turns_done(&self, handle: u64) -> PyResult<u64> {
        self.step(|client, _| Ok(client.turns_done(Handle(handle))))
    }

    #[pyo3(signature = (handle, state, /))]
    fn set_state(&self, handle: u64, state: u8) -> PyResult<()> {
        let frame = Body::Status(v1::Status {
            handle,
            status: u32::from(state),
        });
        self.step(|client, _| client.tell(Handle(handle), frame))
    }

    #[pyo3(signature = (handle, version, source, /))]
    fn describe(&self, handle: u64, version: &Bound<'_, PyString>, source: &[u8]) -> PyResult<()> {
        let frame = Body::Describe(v1::Describe {
            handle,
            version: text("version", version)?.to_owned(),
            source_hash: hash_of(source),
        });
        self.step(|client, _| client.tell(Handle(handle), frame))
    }

    #[pyo3(signature = (handle, /))]
    #[expect(clippy::unused_self, reason = "the node counts what it drops")]
    fn lost(&self, handle: u64) -> u64 {
        let _ = handle;
        0
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
    ) -> PyResult<u64> {
        let capability = text("capability", capability)?.to_owned();
        let pairs = weights.iter().flatten();
        let pairs = pairs.map(|(name, weight)| Ok((text("provider", name)?.to_owned(), *weight)));
        let weights = pairs.collect::<PyResult<_>>()?;
        self.ask(|number| {
            Body::Route(v1::Route {
                r#ref: number,
                capability,
                weights,
            })
        })
    }

    /// The usual publish. A receipt; or a ticket: accepted or refused follows.
    #[pyo3(signature = (sender, turn, topic, payload, qos, /))]
    #[expect(
        clippy::too_many_arguments,
        reason = "positional arguments cost Python least"
    )]
    fn emit<'py>(
        &self,
        py: Python<'py>,
        sender: u64,
        turn: Option<&Bound<'_, Delivery>>,
        topic: &Bound<'_, PyString>,
        payload: &[u8],
        qos: u8,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if crate::convert::has_null(payload) {
            return Ok(None);
        }
        let sending = Sending {
            sender,
            turn: self.lease_of(turn)?,
            topic: text("topic", topic)?,
            payload: copied(payload),
            qos: Qos::from_number(qos).map_err(refuse)?,
            options: None,
            ack: None,
        };
        self.offer_it(py, sending).map(Some)
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
        let sending = Sending {
            sender,
            turn: self.lease_of(turn)?,
            topic: text("topic", topic)?,
            payload: copied(payload),
            qos: Qos::from_number(qos).map_err(refuse)?,
            options: crate::convert::options(options)?,
            ack: ack.map(Level::from_number).transpose().map_err(refuse)?,
        };
        self.offer_it(py, sending)
    }

    #[pyo3(signature = (ticket, /))]
    fn withdraw(&self, ticket: u64) -> PyResult<bool> {
        self.step(|client, _| Ok(client.withdraw(Ticket(ticket))))
    }

    #[pyo3(signature = (consumer, n, payload, /))]
    fn redrive(&self, consumer: u32, n: u64, payload: Option<&[u8]>) -> PyResult<u64> {
        let payload = payload.map(json);
        self.ask(|number| {
            Body::Redrive(v1::Redrive {
                r#ref: number,
                consumer,
                n,
                payload,
            })
        })
    }

    #[pyo3(signature = (effect, result, note, /))]
    fn resolve(
        &self,
        effect: &Bound<'_, PyString>,
        result: Option<&[u8]>,
        note: &Bound<'_, PyString>,
    ) -> PyResult<u64> {
        let frame = v1::Resolve {
            r#ref: 0,
            effect_id: Bytes::copy_from_slice(&effect_id(effect)?.to_be_bytes()),
            result: result.map(json),
            note: text("note", note)?.to_owned(),
        };
        self.ask(|number| {
            Body::Resolve(v1::Resolve {
                r#ref: number,
                ..frame
            })
        })
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
        let sending = Sending {
            sender,
            turn: self.lease_of(turn)?,
            topic: text("topic", topic)?,
            payload: copied(payload),
            qos: Qos::Batched,
            options: crate::convert::options(options)?,
            ack: None,
        };
        let how = (millis("timeout", timeout)?, first_k, wait);
        self.step(|client, at| client.request(sending, how, at))
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
        let call = Invocation {
            sender,
            turn: self.lease_of(turn)?,
            capability: text("capability", capability)?,
            version: version
                .map(|version| text("version", version))
                .transpose()?,
            payload: copied(payload),
            timeout_ms: millis("timeout", timeout)?,
            key: key.map(|key| text("key", key)).transpose()?,
            credit,
        };
        self.step(|client, at| client.call(&call, at))
            .map(|call| call.0)
    }

    #[pyo3(signature = (call, /))]
    fn cancel(&self, call: u64) -> PyResult<()> {
        self.step(|client, _| {
            client.cancel(CallId(call));
            Ok(())
        })
    }

    #[pyo3(signature = (call, total, /))]
    fn grant(&self, call: u64, total: u64) -> PyResult<()> {
        self.step(|client, _| {
            client.grant(CallId(call), total);
            Ok(())
        })
    }

    #[pyo3(signature = (handle, done, /))]
    fn take(&self, handle: u64, done: Option<&Bound<'_, Delivery>>) -> PyResult<Option<Delivery>> {
        let done = self.lease_of(done)?;
        let taken = self.step(|client, at| client.take(Handle(handle), done, at))?;
        Ok(taken.map(|taken| Delivery::taken(taken, self.remote.number, &self.holder)))
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
        self.step(|client, _| client.reply(LeaseId(lease), copied(payload), kind))
    }

    #[pyo3(signature = (lease, payload, /))]
    fn result(&self, lease: u64, payload: &[u8]) -> PyResult<bool> {
        self.step(|client, _| client.result(LeaseId(lease), copied(payload)))
    }

    #[pyo3(signature = (lease, payload, /))]
    fn chunk(&self, lease: u64, payload: &[u8]) -> PyResult<bool> {
        self.step(|client, _| client.chunk(LeaseId(lease), copied(payload)))
    }

    #[pyo3(signature = (lease, code, detail, /))]
    fn fail(&self, lease: u64, code: u16, detail: &[u8]) -> PyResult<bool> {
        let code = crate::convert::code(code)?;
        self.step(|client, _| client.fail(LeaseId(lease), code, detail))
    }

    #[pyo3(signature = (handle, effect, verdict, result, /))]
    fn probed(
        &self,
        handle: u64,
        effect: &Bound<'_, PyString>,
        verdict: u8,
        result: &[u8],
    ) -> PyResult<bool> {
        let frame = Body::Probed(v1::Probed {
            handle,
            effect_id: Bytes::copy_from_slice(&effect_id(effect)?.to_be_bytes()),
            verdict: u32::from(verdict),
            result: Some(json(result)),
        });
        self.step(|client, _| client.say(&frame).map(|()| true))
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
        payload: &[u8],
        failed: bool,
    ) -> PyResult<bool> {
        let Some(lease) = self.lease_of(Some(turn))? else {
            let message = "an answer is no turn that could leave a state";
            return Err(refusal(Code::Fenced, message, None));
        };
        let commit = v1::Commit {
            sender,
            lease: 0,
            lane: text("key", lane)?.to_owned(),
            schema_hash: hash_of(schema),
            state: Some(json(payload)),
            failed,
        };
        let durable = turn.get().is_durable_turn();
        self.step(|client, _| {
            client.about(lease, |lease| Body::Commit(v1::Commit { lease, ..commit }))?;
            // The event of a durable turn that failed is given again, to the state as it was before.
            Ok(!(failed && durable))
        })
    }

    /// `key`: of that lane alone, or that value of the memory where `sender` is 0.
    #[pyo3(signature = (sender, key, /))]
    fn states(&self, sender: u64, key: Option<&Bound<'_, PyString>>) -> PyResult<u64> {
        let key = key.map(|key| text("key", key)).transpose()?;
        let key = key.unwrap_or_default().to_owned();
        self.ask(|number| {
            Body::Keep(v1::Keep {
                r#ref: number,
                sender,
                key,
                ..v1::Keep::default()
            })
        })
    }

    #[pyo3(signature = (sender, key, payload, until_ms, /))]
    fn keep_memory(
        &self,
        sender: u64,
        key: &Bound<'_, PyString>,
        payload: Option<&[u8]>,
        until_ms: Option<u64>,
    ) -> PyResult<()> {
        let frame = Body::Keep(v1::Keep {
            r#ref: 0,
            sender,
            key: text("key", key)?.to_owned(),
            value: payload.map(json),
            gone: payload.is_none(),
            until_ms,
        });
        self.step(|client, _| client.say(&frame))
    }

    #[pyo3(signature = (key, /))]
    fn memories(&self, key: Option<&Bound<'_, PyString>>) -> PyResult<u64> {
        self.states(0, key)
    }

    #[pyo3(signature = (kind, /))]
    fn directory(&self, kind: &Bound<'_, PyString>) -> PyResult<u64> {
        let kind = text("kind", kind)?.to_owned();
        self.ask(|number| {
            Body::Directory(v1::Directory {
                r#ref: number,
                kind,
            })
        })
    }

    #[pyo3(signature = (filters, start, /))]
    fn read(&self, filters: Vec<String>, start: &Bound<'_, PyAny>) -> PyResult<u64> {
        let start = start_text(Some(start))?;
        self.ask(|number| {
            Body::Read(v1::Read {
                r#ref: number,
                filters,
                start,
            })
        })
    }

    #[pyo3(signature = (sender, turn, level, payload, /))]
    fn log(
        &self,
        sender: u64,
        turn: Option<&Bound<'_, Delivery>>,
        level: &Bound<'_, PyString>,
        payload: &[u8],
    ) -> PyResult<()> {
        let (turn, level) = (self.lease_of(turn)?, text("level", level)?.to_owned());
        let data = copied(payload);
        self.step(|client, _| {
            client.report(turn, |lease| v1::Report {
                sender,
                lease,
                level,
                code: 0,
                data,
            })
        })
    }

    #[pyo3(signature = (sender, turn, code, detail, /))]
    fn report(
        &self,
        sender: u64,
        turn: Option<&Bound<'_, Delivery>>,
        code: u16,
        detail: &[u8],
    ) -> PyResult<()> {
        let (turn, code) = (
            self.lease_of(turn)?,
            u32::from(crate::convert::code(code)?.number()),
        );
        let data = copied(detail);
        self.step(|client, _| {
            let level = String::new();
            client.report(turn, |lease| v1::Report {
                sender,
                lease,
                level,
                code,
                data,
            })
        })
    }

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
        let step = v1::Step {
            lease: 0,
            kind: text("kind", kind)?.to_owned(),
            name: text("name", name)?.to_owned(),
            args_hash: hash_of(args),
            code: u32::from(code),
            micros,
            facts: text("facts", facts)?.to_owned(),
            result: Some(json(result)),
        };
        self.step(|client, _| client.step(lease, step))
    }

    #[pyo3(signature = (most, /))]
    fn drain<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Vec<Shown<'py>>> {
        let notes = {
            self.remote.flush();
            self.remote.wake.read();
            let mut client = self.remote.lock()?;
            let notes = client.drain(most);
            self.remote.wake.set_pending(client.waiting() > 0);
            notes
        };
        notes.into_iter().map(|note| self.show(py, note)).collect()
    }

    fn renew(&self) -> PyResult<()> {
        self.step(|client, _| {
            client.renew();
            Ok(())
        })
    }

    #[pyo3(signature = (stack, /))]
    fn stalls(&self, stack: &str) -> PyResult<()> {
        self.step(|client, _| {
            client.stalls(stack);
            Ok(())
        })
    }

    /// The thread that carries it ends what is due.
    #[expect(
        clippy::unused_self,
        reason = "a session in process has something to do here"
    )]
    fn tick(&self) -> Option<f64> {
        None
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let (open, progress) = {
            let client = self.remote.lock()?;
            (client.open(), client.progress())
        };
        let shown = serde_json::json!({
            "waiting": open.0,
            "leases": open.1,
            "frames": frames(progress),
        });
        Ok(PyBytes::new(py, shown.to_string().as_bytes()))
    }

    /// Ends the session; what was sent goes out, and [`Self::join`] waits for that.
    fn close(&self) -> PyResult<()> {
        self.step(|client, _| {
            client.close();
            Ok(())
        })?;
        self.remote.flush();
        self.remote.wake.set_pending(false);
        self.remote.wake.close();
        Ok(())
    }

    /// Waits until what was sent has been taken; how many frames were not, or nobody knows it of.
    #[pyo3(signature = (seconds, /))]
    fn join(&self, py: Python<'_>, seconds: f64) -> usize {
        let most = Duration::try_from_secs_f64(seconds.clamp(0.0, 3_600.0)).unwrap_or_default();
        py.detach(|| self.remote.dialing.finish(most))
    }
}

impl RemoteSession {
    fn show<'py>(&self, py: Python<'py>, note: Note) -> PyResult<Shown<'py>> {
        let number = self.remote.number;
        match note {
            Note::Core(Notice::Accepted(ticket, receipt)) => {
                let receipt = Bound::new(py, Receipt::new(receipt))?.into_any();
                Ok((crate::convert::ACCEPTED, ticket.0, 0, Some(receipt)))
            }
            Note::Core(notice) => show_notice(py, notice, number),
            Note::Entries(ticket, entries) => {
                let entries = entries.iter().map(|entry| PyBytes::new(py, entry));
                Ok((
                    crate::convert::ACCEPTED,
                    ticket,
                    0,
                    Some(PyList::new(py, entries)?.into_any()),
                ))
            }
            Note::Kept(ticket, values, is_memory) => {
                let shown = PyList::empty(py);
                for (key, value, until_ms) in values {
                    let value = PyBytes::new(py, &value);
                    if is_memory {
                        shown.append((key, value, until_ms))?;
                    } else {
                        shown.append((key, value))?;
                    }
                }
                Ok((crate::convert::ACCEPTED, ticket, 0, Some(shown.into_any())))
            }
            Note::Page(ticket, events, next, at_end) => {
                let events = events
                    .into_iter()
                    .map(|env| Bound::new(py, Delivery::read(env, number)));
                let events = PyList::new(py, events.collect::<PyResult<Vec<_>>>()?)?;
                let page = (events, next, at_end).into_pyobject(py)?;
                let page: Bound<'py, PyTuple> = page;
                Ok((crate::convert::ACCEPTED, ticket, 0, Some(page.into_any())))
            }
            Note::Link(change) => {
                let namespace = self.remote.lock()?.namespace().to_owned();
                let shown = show_link(&change, &namespace);
                Ok((
                    LINK,
                    0,
                    0,
                    Some(PyBytes::new(py, shown.to_string().as_bytes()).into_any()),
                ))
            }
        }
    }
}

pub(crate) fn frames(progress: loom_session::Progress) -> serde_json::Value {
    serde_json::json!({
        "sent": progress.sent,
        "received": progress.received,
        "queued": progress.queued,
    })
}

fn show_link(change: &LinkChange, namespace: &str) -> serde_json::Value {
    let state = match &change.state {
        LinkState::Connecting => "connecting",
        LinkState::Up => "up",
        LinkState::Lost => "lost",
        LinkState::Refused(_) => "refused",
        LinkState::Closed => "closed",
    };
    let mut shown = serde_json::json!({
        "state": state,
        "namespace": namespace,
        "resumed": change.resumed,
        "missed_from": change.missed_from.map(|position| position.to_string()),
        "reason": change.reason,
        "dropped": change.dropped,
    });
    let error = match &change.state {
        LinkState::Refused(error) => Some(error),
        _ => change.untrusted.as_ref(),
    };
    if let (Some(error), Some(shown)) = (error, shown.as_object_mut()) {
        shown.insert("code".to_owned(), error.code.number().into());
        if let Ok(serde_json::Value::Object(detail)) = serde_json::to_value(error.detail()) {
            shown.extend(detail);
        }
    }
    shown
}
