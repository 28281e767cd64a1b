//! The action broker: capabilities, their providers, and calls that end exactly once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::arena::{CallId, Handle, LeaseId, ProviderId, SessionId};
use crate::books::Timings;
use crate::bus::{Draft, Source};
use crate::core::{Core, Holding, Kind, Lease, Pending, Registration, Wanted};
use crate::credit::Credit;
use crate::directory::DirectoryKind;
use crate::envelope::{EffectClass, Envelope, Origin, Qos};
use crate::error::{Code, Detail, Error, Result};
use crate::health::Health;
use crate::ident::derive_id;
use crate::input::{Invoke, ProviderSpec};
use crate::notice::{Delivery, Notice, Work};
use crate::planted::Planted;
use crate::report::Subject;
use crate::space::SpaceId;
use crate::stats::Outcomes;
use crate::time::Moment;
use crate::topic::{check_capability, check_name};

/// Capabilities without a provider that are still known by name.
const KNOWN_GONE: usize = 1_024;

/// A name that providers offer.
#[derive(Default)]
pub(crate) struct Capability {
    pub(crate) providers: Vec<ProviderId>,
    pub(crate) version: Arc<str>,
    /// All versions that were ever offered.
    versions: BTreeSet<Arc<str>>,
    turn: usize,
    pub(crate) calls: u64,
    pub(crate) outcomes: Outcomes,
    pub(crate) errors: BTreeMap<Code, u64>,
    pub(crate) duration: Timings,
}

/// One that offers a capability.
pub(crate) struct Provider {
    pub(crate) capability: Arc<str>,
    pub(crate) origin: Arc<Origin>,
    pub(crate) space: SpaceId,
    pub(crate) session: SessionId,
    pub(crate) handle: Handle,
    /// Who offers it.
    name: Arc<str>,
    version: Arc<str>,
    health: Health,
    effect: EffectClass,
    concurrency: u32,
    queue: VecDeque<CallId>,
    pub(crate) leased: u32,
    armed: bool,
    /// Removed; lives until its last invocation ends.
    closing: bool,
}

impl Provider {
    pub(crate) fn outstanding(&self) -> usize {
        self.queue.len() + self.leased as usize
    }
}

/// What is known of an open call.
pub(crate) struct Served {
    pub(crate) provider: ProviderId,
    effect: EffectClass,
    /// It was taken: what is not pure may have happened.
    pub(crate) lease: Option<LeaseId>,
    pub(crate) streamed: bool,
    /// Chunks its caller reads.
    pub(crate) credit: Credit,
}

/// What ends a call.
pub(crate) enum End {
    Done(Box<[u8]>),
    Failed(Code, Detail),
    Timeout,
    Cancelled,
    /// Its provider went.
    Gone,
}

impl Core {
    /// Offers a capability.
    ///
    /// # Errors
    /// `INVALID_PARAMS`, `EXHAUSTED`.
    pub fn provide(
        &mut self,
        session: SessionId,
        spec: &ProviderSpec<'_>,
        at: Moment,
    ) -> Result<Handle> {
        let space = self.session(session)?.space;
        check_capability(spec.name, &self.limits)?;
        check_name("version", spec.version, &self.limits)?;
        check_name("provider", spec.provider, &self.limits)?;
        self.check_info(spec.info)?;
        let most = self.limits.agent_concurrency_max;
        if spec.concurrency == 0 || spec.concurrency as usize > most {
            let message = format!(
                "concurrency is {}, not one of 1 to {most}",
                spec.concurrency
            );
            return Err(Error::invalid("concurrency", message).limit("agent_concurrency"));
        }
        let namespace = self
            .space(space)
            .map(|space| Arc::clone(&space.name))
            .unwrap_or_default();
        let origin = Origin::new(&namespace, spec.name);
        let name: Arc<str> = spec.name.into();
        let handle = self.enrol(Registration {
            session,
            space,
            origin: Arc::clone(&origin),
            name: Arc::clone(&name),
            kind: Kind::Root,
        })?;
        let provider = self.providers.insert(Provider {
            capability: Arc::clone(&name),
            origin,
            space,
            session,
            handle,
            name: spec.provider.into(),
            version: spec.version.into(),
            health: Health::Up,
            effect: spec.effect,
            concurrency: spec.concurrency,
            queue: VecDeque::new(),
            leased: 0,
            armed: true,
            closing: false,
        });
        if let Some(found) = self.handles.get_mut(handle) {
            found.kind = Kind::Provider(provider);
        }
        self.list_provider(space, &name, provider, spec.version);
        self.enter(
            space,
            DirectoryKind::Capability,
            (spec.name, handle, spec.info),
        );
        self.flush(at);
        Ok(handle)
    }

    fn list_provider(
        &mut self,
        space: SpaceId,
        name: &Arc<str>,
        provider: ProviderId,
        version: &str,
    ) {
        let Some(space) = self.space_mut(space) else {
            return;
        };
        space.gone.retain(|gone| gone != name);
        let capability = space.capabilities.entry(Arc::clone(name)).or_default();
        capability.providers.push(provider);
        capability.version = version.into();
        capability.versions.insert(version.into());
    }

    /// Its queued and running calls end; work under way may still end its leases.
    pub(crate) fn remove_provider(&mut self, id: ProviderId, at: Moment) {
        let Some(provider) = self
            .providers
            .get_mut(id)
            .filter(|provider| !provider.closing)
        else {
            return;
        };
        provider.closing = true;
        let (space, handle) = (provider.space, provider.handle);
        let name = Arc::clone(&provider.capability);
        if let Some(found) = self.space_mut(space) {
            found.unlist_provider(&name, id);
        }
        let served = self.calls.iter().filter(
            |(_, call)| matches!(&call.wanted, Wanted::Call(served) if served.provider == id),
        );
        let served: Vec<CallId> = served.map(|(call, _)| call).collect();
        for call in served {
            self.end_call(call, End::Gone, at);
        }
        self.leave(space, DirectoryKind::Capability, (&name, handle));
        self.reclaim_provider(id);
    }

    fn reclaim_provider(&mut self, id: ProviderId) {
        if self
            .providers
            .get(id)
            .is_some_and(|provider| provider.closing && provider.leased == 0)
            && let Some(provider) = self.providers.remove(id)
        {
            self.release_handle(provider.session, provider.handle);
        }
    }

    /// Calls a capability; a [`Notice::Outcome`] is its one end.
    ///
    /// # Errors
    /// `NOT_FOUND` for a name nobody ever offered; `PROVIDER_UNAVAILABLE` where nobody offers it now; `EXHAUSTED` where all
    /// providers have too much to do; `INVALID_PARAMS`; `FENCED`.
    pub fn call(&mut self, session: SessionId, invoke: Invoke<'_>, at: Moment) -> Result<CallId> {
        let source = self.source(session, invoke.sender, invoke.turn)?;
        let deadline = self.deadline(
            invoke.timeout_ms,
            source.stamp.as_ref().and_then(|s| s.deadline),
            at,
        )?;
        self.check_pending(session)?;
        self.check_credit(invoke.credit)?;
        let key = invoke.key.map(|key| self.read_key(key)).transpose()?;
        let (space, parent) = (source.space, invoke.turn);
        let (name, provider) = match self.choose_provider(space, invoke.capability, invoke.version)
        {
            Ok(chosen) => chosen,
            Err(error) => {
                self.refuse_call(&source, invoke.capability, &error, at);
                return Err(error);
            }
        };
        let draft = Draft {
            topic: name,
            payload: invoke.payload,
            qos: Qos::Batched,
            options: None,
            reply_to: None,
            deadline: Some(deadline),
        };
        let mut env = self.compose(source, draft, at)?;
        env.key = key;
        let effect = self
            .providers
            .get(provider)
            .map_or(EffectClass::Unsafe, |found| found.effect);
        let wanted = Wanted::Call(Served {
            provider,
            effect,
            lease: None,
            streamed: invoke.credit > 0,
            credit: Credit::new(invoke.credit),
        });
        let env = Arc::new(env);
        let pending = Pending {
            session,
            space,
            parent,
            env,
            deadline,
            started: at.now,
            wanted,
        };
        let call = self.open_pending(pending);
        self.start_call(call, provider);
        self.flush(at);
        Ok(call)
    }

    pub(crate) fn check_credit(&self, credit: u64) -> Result<()> {
        let most = self.limits.stream_chunks_max as u64;
        if credit <= most {
            return Ok(());
        }
        let message = format!("a stream starts with {credit} chunks of at most {most}");
        Err(Error::invalid("credit", message).limit("stream_chunks"))
    }

    fn start_call(&mut self, call: CallId, id: ProviderId) {
        self.totals.calls.started += 1;
        if let Some(provider) = self.providers.get_mut(id) {
            provider.queue.push_back(call);
        }
        self.with_capability(id, |capability| capability.calls += 1);
        self.poke_provider(id);
    }

    fn with_capability(&mut self, provider: ProviderId, count: impl FnOnce(&mut Capability)) {
        let Some(provider) = self.providers.get(provider) else {
            return;
        };
        let (space, name) = (provider.space, Arc::clone(&provider.capability));
        if let Some(found) = self
            .space_mut(space)
            .and_then(|s| s.capabilities.get_mut(&name))
        {
            count(found);
        }
    }

    fn refuse_call(&mut self, source: &Source, name: &str, error: &Error, at: Moment) {
        self.totals.calls.started += 1;
        self.totals.calls.error += 1;
        let mut detail = error.detail();
        detail.who = Some(name.to_owned());
        self.tell_error(source.space, error.code, &detail, &Subject::default());
        self.flush(at);
    }

    /// The provider with the least to do; among equals, one after the other.
    fn choose_provider(
        &mut self,
        space: SpaceId,
        name: &str,
        version: Option<&str>,
    ) -> Result<(Arc<str>, ProviderId)> {
        check_capability(name, &self.limits)?;
        let Some(found) = self.spaces.get_mut(space.0 as usize) else {
            return Err(Error::new(Code::Internal, "there is no such namespace"));
        };
        let Some((name, capability)) = found.capabilities.get_key_value(name) else {
            let message = format!(
                "no capability {name:?} was ever offered in {:?}",
                found.name
            );
            return Err(Error::new(Code::NotFound, message)
                .field("capability")
                .hint("look at ctx.capabilities() for those there are"));
        };
        if let Some(version) = version.filter(|version| !capability.versions.contains(*version)) {
            let known: Vec<&str> = capability.versions.iter().map(|v| &**v).collect();
            let message = format!("version {version:?} of {name:?} was never offered");
            return Err(Error::new(Code::NotFound, message)
                .field("version")
                .hint(format!("there are {}", known.join(", "))));
        }
        let name = Arc::clone(name);
        let table = found.tables.get(&name);
        let count = capability.providers.len();
        let order = (0..count)
            .filter_map(|step| capability.providers.get((capability.turn + step) % count))
            .filter(|id| {
                self.providers.get(**id).is_some_and(|provider| {
                    provider.health == Health::Up
                        && version.is_none_or(|version| *provider.version == *version)
                        && table.is_none_or(|table| table.weight(&provider.name) > 0)
                })
            });
        let load = |id: &&ProviderId| {
            self.providers
                .get(**id)
                .map_or(usize::MAX, Provider::outstanding)
        };
        let Some(chosen) = order.min_by_key(load).copied() else {
            let message = format!("nobody offers {name:?} now");
            return Err(Error::new(Code::ProviderUnavailable, message).field("capability"));
        };
        let most = self.limits.provider_queue;
        if self
            .providers
            .get(chosen)
            .is_some_and(|provider| provider.queue.len() >= most)
        {
            let message = format!("{most} calls wait for each provider of {name:?} already");
            return Err(Error::exhausted("provider_queue", message)
                .field("capability")
                .retry_after(self.limits.retry_base_ms));
        }
        if let Some(capability) = found.capabilities.get_mut(&name) {
            capability.turn = capability.turn.wrapping_add(1);
        }
        Ok((name, chosen))
    }

    /// Says how a provider fares: one that is not up is given nothing, and one in quarantine loses what it has queued.
    pub(crate) fn set_provider_state(
        &mut self,
        id: ProviderId,
        state: Health,
        at: Moment,
    ) -> Result<()> {
        let Some(provider) = self.providers.get_mut(id).filter(|p| !p.closing) else {
            return Err(Error::fenced("this provider was removed"));
        };
        if std::mem::replace(&mut provider.health, state) == state {
            return Ok(());
        }
        let (space, handle) = (provider.space, provider.handle);
        let name = Arc::clone(&provider.capability);
        let queue = if state == Health::Quarantined {
            std::mem::take(&mut provider.queue)
        } else {
            VecDeque::new()
        };
        for call in queue {
            self.end_call(call, End::Gone, at);
        }
        self.set_health(space, DirectoryKind::Capability, (&name, handle), state);
        self.poke_provider(id);
        Ok(())
    }

    pub(crate) fn poke_provider(&mut self, id: ProviderId) {
        let Some(provider) = self.providers.get_mut(id) else {
            return;
        };
        let up = provider.health == Health::Up;
        if up
            && provider.armed
            && provider.leased < provider.concurrency
            && !provider.queue.is_empty()
        {
            provider.armed = false;
            let (session, handle) = (provider.session, provider.handle);
            self.notify(session, Notice::Ready(handle));
        }
    }

    /// The next call of a provider that is not over yet.
    pub(crate) fn take_work(&mut self, id: ProviderId, at: Moment) -> Option<Delivery> {
        loop {
            let provider = self.providers.get_mut(id)?;
            let free = provider.health == Health::Up && provider.leased < provider.concurrency;
            let next = if free {
                provider.queue.pop_front()
            } else {
                None
            };
            let Some(call) = next else {
                provider.armed = true;
                return None;
            };
            let Some(pending) = self.calls.get(call) else {
                continue;
            };
            if pending.deadline <= at.now {
                self.end_call(call, End::Timeout, at);
                continue;
            }
            return self.lease_call(id, call);
        }
    }

    fn lease_call(&mut self, id: ProviderId, call: CallId) -> Option<Delivery> {
        let session = self.providers.get(id)?.session;
        let env = Arc::clone(&self.calls.get(call)?.env);
        let lease = self.leases.insert(Lease {
            session,
            holding: Holding::Work { provider: id, call },
            env: Arc::clone(&env),
            asked: true,
            answered: false,
        });
        self.providers.get_mut(id)?.leased += 1;
        let Wanted::Call(served) = &mut self.calls.get_mut(call)?.wanted else {
            return None;
        };
        served.lease = Some(lease);
        let pure = served.effect == EffectClass::Pure;
        let work = Work {
            streamed: served.streamed,
            credit: served.credit.granted(),
            effect: if pure { None } else { Some(derive_id(env.id)) },
        };
        Some(Delivery {
            lease: Some(lease),
            envelope: env,
            asked: true,
            attempt: 1,
            work: Some(work),
        })
    }

    /// Ends an invocation well. `false`: nobody waits any more.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for the lease of a turn; `FENCED` for one of another session.
    pub fn result(
        &mut self,
        session: SessionId,
        lease: LeaseId,
        payload: Box<[u8]>,
        at: Moment,
    ) -> Result<bool> {
        self.check_payload(&payload)?;
        let Some(found) = self.own_lease(session, lease, false)? else {
            return Ok(false);
        };
        if matches!(found.holding, Holding::Turn { .. }) {
            return Err(Error::invalid("lease", "a turn is answered by a reply"));
        }
        let heard = self.end_work(lease, End::Done(payload), at);
        self.flush(at);
        Ok(heard)
    }

    /// Ends the lease of an invocation, and its call if that is still open.
    pub(crate) fn end_work(&mut self, id: LeaseId, end: End, at: Moment) -> bool {
        let Some(lease) = self.leases.remove(id) else {
            return false;
        };
        let Holding::Work { provider, call } = lease.holding else {
            return false;
        };
        self.end_if_over(call, at);
        let open = self.calls.get(call).is_some();
        if open {
            self.answer_call(call, end, at);
        } else if !matches!(end, End::Failed(Code::Cancelled, _)) {
            self.totals.calls.late += 1;
        }
        self.free_work(provider);
        self.poke_provider(provider);
        open
    }

    /// The lease of an invocation has ended.
    pub(crate) fn free_work(&mut self, id: ProviderId) {
        if let Some(provider) = self.providers.get_mut(id) {
            provider.leased -= 1;
        }
        self.reclaim_provider(id);
    }

    fn answer_call(&mut self, call: CallId, end: End, at: Moment) {
        if let Some(pending) = self.calls.get_mut(call)
            && let Wanted::Call(served) = &mut pending.wanted
        {
            // Its provider ends it, so there is nobody to tell.
            served.lease = None;
        }
        self.end_call(call, end, at);
    }

    /// The one end of a call.
    pub(crate) fn end_call(&mut self, call: CallId, end: End, at: Moment) {
        let Some(pending) = self.close_pending(call) else {
            return;
        };
        let Wanted::Call(served) = &pending.wanted else {
            return;
        };
        let who = self
            .providers
            .get(served.provider)
            .map(|provider| Arc::clone(&provider.origin.sender));
        let answered = matches!(end, End::Done(_) | End::Failed(..));
        let end = judge_end(end, served, &pending.env);
        let code = match &end {
            Ok(_) => None,
            Err(error) => Some(error.0),
        };
        if !answered {
            self.withdraw(call, served, code.unwrap_or(Code::Cancelled));
        }
        self.count_call(&pending, code, at);
        let body = match end {
            Ok(payload) => payload,
            Err(error) => {
                let (code, mut detail) = *error;
                let name = who.unwrap_or_else(|| Arc::clone(&pending.env.topic));
                detail.who.get_or_insert_with(|| name.to_string());
                let subject = Subject::call(name, call, &pending.env);
                self.tell_error(pending.space, code, &detail, &subject);
                detail.json().into()
            }
        };
        if self.has(Planted::SecondOutcome) && code.is_some() {
            self.notify(pending.session, Notice::Outcome(call, code, body.clone()));
        }
        self.notify(pending.session, Notice::Outcome(call, code, body));
    }

    /// Takes a call that ended back from its provider: out of the queue, or by telling it to stop.
    fn withdraw(&mut self, call: CallId, served: &Served, code: Code) {
        let Some(provider) = self.providers.get_mut(served.provider) else {
            return;
        };
        match served.lease {
            Some(lease) => {
                let session = provider.session;
                if !self.has(Planted::UntoldCancel) {
                    self.notify(session, Notice::Cancel(lease, code));
                }
            }
            None => provider.queue.retain(|other| *other != call),
        }
    }

    fn count_call(&mut self, pending: &Pending, code: Option<Code>, at: Moment) {
        self.totals.calls.count(code);
        let micros = at.now.micros_since(pending.started);
        let name = &pending.env.topic;
        let Some(space) = self.spaces.get_mut(pending.space.0 as usize) else {
            return;
        };
        let Some(capability) = space.capabilities.get_mut(name) else {
            return;
        };
        capability.outcomes.count(code);
        capability.duration.record(micros);
        if let Some(code) = code {
            *capability.errors.entry(code).or_default() += 1;
        }
    }
}

impl crate::space::Space {
    fn unlist_provider(&mut self, name: &Arc<str>, id: ProviderId) {
        let Some(capability) = self.capabilities.get_mut(name) else {
            return;
        };
        capability.providers.retain(|other| *other != id);
        if !capability.providers.is_empty() {
            return;
        }
        self.gone.push_back(Arc::clone(name));
        if self.gone.len() > KNOWN_GONE
            && let Some(oldest) = self.gone.pop_front()
        {
            self.capabilities.remove(&oldest);
        }
    }
}

type Ended = std::result::Result<Box<[u8]>, Box<(Code, Detail)>>;

/// Says what an end means to the caller: what was dispatched, is not pure, and has no answer, is indeterminate.
fn judge_end(end: End, served: &Served, env: &Envelope) -> Ended {
    let (code, why) = match end {
        End::Done(payload) => return Ok(payload),
        End::Failed(code, detail) => return Err(Box::new((code, detail))),
        End::Timeout => (Code::Timeout, "its time was up"),
        End::Cancelled => (Code::Cancelled, "its caller cancelled it"),
        End::Gone => (Code::ProviderUnavailable, "its provider went"),
    };
    let name = &env.topic;
    if served.lease.is_none() || served.effect == EffectClass::Pure {
        let message = format!("the call of {name:?} ended without a result: {why}");
        return Err(Box::new((code, Detail::message(message))));
    }
    let message = format!(
        "the call of {name:?} was under way when {why}; whether it took effect is not known"
    );
    let hint = "look at the outside world before you try again, or declare the effect pure";
    let detail = Detail {
        hint: Some(hint.to_owned()),
        ..Detail::message(message)
    };
    Err(Box::new((Code::Indeterminate, detail)))
}
