//! A small world around a core: a clock that tests move, short ways to say things, and the law at the end.
#![expect(dead_code, reason = "each test file uses its part")]

pub(crate) mod log;

use std::sync::Arc;

use loom_core::{
    AgentSpec, Attach, CallId, Code, Core, Delivery, EffectClass, Fault, GrantTexts, Grants,
    Handle, Invoke, LeaseId, Limits, Moment, Nanos, Notice, Offer, Options, Position, ProviderSpec,
    Publish, Qos, Receipt, Reply, Request, Result, SessionId, Ticket,
};

pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) at: Moment,
    sessions: Vec<SessionId>,
}

/// What a session found in its inbox, told apart.
#[derive(Default, Debug)]
pub(crate) struct Seen {
    pub(crate) ready: Vec<Handle>,
    pub(crate) answers: Vec<(CallId, Delivery)>,
    pub(crate) outcomes: Vec<(CallId, Option<Code>, Box<[u8]>)>,
    pub(crate) chunks: Vec<(CallId, Box<[u8]>)>,
    pub(crate) credits: Vec<(LeaseId, u64)>,
    pub(crate) cancels: Vec<(LeaseId, Code)>,
    pub(crate) accepted: Vec<(Ticket, Receipt)>,
    pub(crate) probes: Vec<(Handle, u128)>,
    pub(crate) due: Vec<u64>,
    pub(crate) refused: Vec<(Ticket, loom_core::Error)>,
    pub(crate) removed: Vec<(Handle, loom_core::Error)>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let at = Moment {
            now: Nanos(1_000_000_000),
            wall_ms: 1_700_000_000_000,
        };
        Self {
            core: Core::new(limits, 7),
            at,
            sessions: Vec::new(),
        }
    }

    /// The engine is another one: what was attached to the old one is gone.
    pub(crate) fn forget_sessions(&mut self) {
        self.sessions.clear();
    }

    /// Answers all that is with the log, so that nothing waits for it.
    fn answer_rest(&mut self) {
        while self.core.has_records() {
            for out in self.core.take_records() {
                let end = self
                    .core
                    .partition(out.partition)
                    .map_or(1, loom_core::Partition::end);
                let position = Position {
                    partition: out.partition,
                    epoch: 9,
                    n: end + 1_000,
                };
                if let Some(ticket) = out.ticket {
                    self.core.logged(ticket, position, self.at);
                }
            }
        }
    }

    pub(crate) fn session(&mut self) -> SessionId {
        self.session_in("default")
    }

    pub(crate) fn session_in(&mut self, namespace: &str) -> SessionId {
        let session = self.core.attach(namespace, "app").unwrap();
        self.sessions.push(session);
        session
    }

    /// A session that may do what these lists say.
    pub(crate) fn session_as(&mut self, texts: &GrantTexts<'_>) -> SessionId {
        let grants = Grants::parse(texts, self.core.limits()).unwrap();
        self.attach(Attach {
            grants: Some(Arc::new(grants)),
            ..Attach::default()
        })
    }

    pub(crate) fn attach(&mut self, attach: Attach<'_>) -> SessionId {
        let attach = Attach {
            namespace: "default",
            name: "app",
            ..attach
        };
        let session = self.core.attach_as(attach).unwrap();
        self.sessions.push(session);
        session
    }

    /// Other grants from now on.
    pub(crate) fn grant(&mut self, session: SessionId, texts: &GrantTexts<'_>) {
        let grants = Grants::parse(texts, self.core.limits()).unwrap();
        let grants = Some(Arc::new(grants));
        self.core.set_grants(session, grants, self.at).unwrap();
    }

    pub(crate) fn take_ahead(&mut self, s: SessionId, handle: Handle) -> Option<(Delivery, u32)> {
        self.core.take_ahead(s, handle, self.at).unwrap()
    }

    /// All that can be taken ahead now.
    pub(crate) fn take_all(&mut self, s: SessionId, handle: Handle) -> Vec<(Delivery, u32)> {
        std::iter::from_fn(|| self.take_ahead(s, handle)).collect()
    }

    pub(crate) fn close_turn(&mut self, session: SessionId, delivery: &Delivery) {
        let lease = delivery.lease.unwrap();
        self.core.done(session, lease, self.at).unwrap();
    }

    pub(crate) fn root(&self, session: SessionId) -> Handle {
        self.core.root(session).unwrap()
    }

    pub(crate) fn agent(&mut self, session: SessionId, name: &str, filters: &[&str]) -> Handle {
        self.agent_of(session, name, filters, 64)
    }

    pub(crate) fn agent_of(
        &mut self,
        s: SessionId,
        name: &str,
        filters: &[&str],
        concurrency: u32,
    ) -> Handle {
        let spec = AgentSpec {
            name,
            filters,
            group: "",
            concurrency,
            qos: Qos::Batched,
            info: b"{}",
            start: loom_core::Start::Now,
            max_deliver: 0,
            exclusive: false,
        };
        self.core.register(s, &spec, self.at).unwrap()
    }

    pub(crate) fn provider(
        &mut self,
        session: SessionId,
        name: &str,
        effect: EffectClass,
    ) -> Handle {
        let spec = ProviderSpec {
            effect,
            ..spec(name)
        };
        self.core.provide(session, &spec, self.at).unwrap()
    }

    /// Fails all work there is with this code; says how much there was.
    pub(crate) fn fail_all(&mut self, session: SessionId, handle: Handle, code: Code) -> usize {
        let mut count = 0;
        while let Some(work) = self.take(session, handle) {
            self.fail(session, &work, code).unwrap();
            count += 1;
        }
        count
    }

    /// The first provider of the first capability, as the figures show it.
    pub(crate) fn shown(&self) -> loom_core::ProviderStats {
        self.core.stats().capabilities[0].providers[0].clone()
    }

    pub(crate) fn publish<'a>(&self, session: SessionId, topic: &'a str) -> Publish<'a> {
        Publish {
            sender: self.root(session),
            turn: None,
            topic,
            payload: Box::from(*b"{}"),
            qos: Qos::Batched,
            options: None,
            ack: None,
            eager: false,
        }
    }

    pub(crate) fn offer(&mut self, session: SessionId, publish: Publish<'_>) -> Result<Offer> {
        self.core.offer(session, publish, self.at)
    }

    /// Publishes to a topic and must be taken at once.
    pub(crate) fn emit(&mut self, session: SessionId, topic: &str) -> Receipt {
        let publish = self.publish(session, topic);
        done(self.offer(session, publish).unwrap())
    }

    pub(crate) fn emit_key(
        &mut self,
        session: SessionId,
        topic: &str,
        key: &str,
        qos: Qos,
    ) -> Result<Offer> {
        let options = Options {
            key: Some(key.to_owned()),
            ..Options::default()
        };
        let publish = Publish {
            qos,
            options: Some(Box::new(options)),
            ..self.publish(session, topic)
        };
        self.offer(session, publish)
    }

    pub(crate) fn take(&mut self, session: SessionId, handle: Handle) -> Option<Delivery> {
        self.core.take(session, handle, None, self.at).unwrap()
    }

    pub(crate) fn end(
        &mut self,
        session: SessionId,
        handle: Handle,
        done: &Delivery,
    ) -> Option<Delivery> {
        self.core
            .take(session, handle, done.lease, self.at)
            .unwrap()
    }

    /// Takes and ends turns until there are none; says their topics.
    pub(crate) fn run(&mut self, session: SessionId, handle: Handle) -> Vec<String> {
        let all = self.run_all(session, handle);
        all.iter().map(|env| env.topic.to_string()).collect()
    }

    pub(crate) fn run_ids(&mut self, session: SessionId, handle: Handle) -> Vec<u128> {
        let all = self.run_all(session, handle);
        all.iter().map(|env| env.id).collect()
    }

    fn run_all(
        &mut self,
        session: SessionId,
        handle: Handle,
    ) -> Vec<std::sync::Arc<loom_core::Envelope>> {
        let mut all = Vec::new();
        let mut next = self.take(session, handle);
        while let Some(delivery) = next {
            all.push(std::sync::Arc::clone(&delivery.envelope));
            next = self.end(session, handle, &delivery);
        }
        all
    }

    pub(crate) fn request(&mut self, session: SessionId, topic: &str) -> Result<CallId> {
        let publish = self.publish(session, topic);
        self.ask(
            session,
            Request {
                publish,
                timeout_ms: 1_000,
                first_k: 1,
                wait: false,
            },
        )
    }

    pub(crate) fn ask(&mut self, session: SessionId, request: Request<'_>) -> Result<CallId> {
        self.core.request(session, request, self.at)
    }

    pub(crate) fn reply(
        &mut self,
        session: SessionId,
        delivery: &Delivery,
        text: &str,
    ) -> Result<bool> {
        let lease = delivery.lease.unwrap();
        let reply = Reply {
            lease,
            payload: text.as_bytes().into(),
            content_type: None,
        };
        self.core.reply(session, reply, self.at)
    }

    pub(crate) fn fail(
        &mut self,
        session: SessionId,
        delivery: &Delivery,
        code: Code,
    ) -> Result<bool> {
        let lease = delivery.lease.unwrap();
        let fault = Fault {
            lease,
            code,
            detail: br#"{"message":"it broke"}"#,
        };
        self.core.fail(session, fault, self.at)
    }

    pub(crate) fn invoke<'a>(&self, session: SessionId, capability: &'a str) -> Invoke<'a> {
        Invoke {
            sender: self.root(session),
            turn: None,
            capability,
            version: None,
            payload: Box::from(*b"{}"),
            timeout_ms: 1_000,
            key: None,
            credit: 0,
        }
    }

    pub(crate) fn call(&mut self, session: SessionId, capability: &str) -> Result<CallId> {
        let invoke = self.invoke(session, capability);
        self.core.call(session, invoke, self.at)
    }

    pub(crate) fn result(
        &mut self,
        session: SessionId,
        delivery: &Delivery,
        text: &str,
    ) -> Result<bool> {
        self.core.result(
            session,
            delivery.lease.unwrap(),
            text.as_bytes().into(),
            self.at,
        )
    }

    pub(crate) fn pass(&mut self, millis: u64) -> Option<Nanos> {
        self.at.now = self.at.now.plus_millis(millis);
        self.at.wall_ms += millis;
        self.core.tick(self.at)
    }

    pub(crate) fn seen(&mut self, session: SessionId) -> Seen {
        let mut seen = Seen::default();
        for notice in self.core.drain(session, usize::MAX).unwrap() {
            match notice {
                Notice::Ready(handle) => seen.ready.push(handle),
                Notice::Answer(call, delivery) => seen.answers.push((call, delivery)),
                Notice::Outcome(call, code, body) => seen.outcomes.push((call, code, body)),
                Notice::Chunk(call, body) => seen.chunks.push((call, body)),
                Notice::Credit(lease, total) => seen.credits.push((lease, total)),
                Notice::Cancel(lease, code) => seen.cancels.push((lease, code)),
                Notice::Probe(handle, effect) => seen.probes.push((handle, effect)),
                Notice::Due(millis) => seen.due.push(millis),
                Notice::Accepted(ticket, receipt) => seen.accepted.push((ticket, receipt)),
                Notice::Refused(ticket, error) => seen.refused.push((ticket, error)),
                Notice::Removed(handle, error) => seen.removed.push((handle, error)),
            }
        }
        seen
    }

    /// The one outcome that must be there.
    pub(crate) fn outcome(&mut self, session: SessionId) -> (Option<Code>, serde_json::Value) {
        let seen = self.seen(session);
        assert_eq!(seen.outcomes.len(), 1, "{seen:?}");
        let (_, code, body) = &seen.outcomes[0];
        (*code, serde_json::from_slice(body).unwrap_or_default())
    }

    /// The law holds now.
    pub(crate) fn check(&self) {
        let audit = self.core.audit();
        assert!(audit.balanced, "{audit:#?}");
    }
}

impl Drop for World {
    /// The law holds at the end of every test, and when all sessions are closed nothing is left.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.check();
        for session in std::mem::take(&mut self.sessions) {
            self.core.close(session, self.at);
        }
        self.core.tick(self.at);
        self.answer_rest();
        self.check();
        let left = loom_core::Gauges::default();
        assert_eq!(self.core.gauges(), left);
    }
}

/// A provider of version 1, with four calls at a time.
pub(crate) fn spec(name: &str) -> ProviderSpec<'_> {
    ProviderSpec {
        name,
        version: "1",
        effect: EffectClass::Pure,
        probes: false,
        provider: "app",
        concurrency: 4,
        info: b"{}",
    }
}

pub(crate) fn done(offer: Offer) -> Receipt {
    match offer {
        Offer::Done(receipt) => receipt,
        other => panic!("not taken at once: {other:?}"),
    }
}

pub(crate) fn parked(offer: Offer) -> Ticket {
    match offer {
        Offer::Parked(ticket) => ticket,
        other => panic!("not parked: {other:?}"),
    }
}
