//! Jobs: the work of calls, apart from those who wait for it. A call waits and ends once; a job is queued, tried, tried
//! again, moved, and ends for all who have joined it.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::arena::{CallId, JobId, LeaseId, ProviderId, SessionId};
use crate::broker::{Attempt, Choice, Wish};
use crate::bus::{Draft, Keeper, Source};
use crate::core::{Core, Holding, Lease, Pending, Wanted};
use crate::credit::Credit;
use crate::effect::{EffectKey, Recalled, Told, settle_hint};
use crate::envelope::{EffectClass, Envelope, Qos};
use crate::error::{Code, Detail, Error, Result};
use crate::ident::{Ident, derive_id};
use crate::input::Invoke;
use crate::notice::{Delivery, Notice, Work};
use crate::partition::effects::keyed_effect;
use crate::planted::Planted;
use crate::report::Subject;
use crate::retry::{is_repeatable, may_pass, pause};
use crate::space::SpaceId;
use crate::time::{Moment, Nanos};
use crate::timers::Timer;
use crate::version::Version;

/// What makes two calls the same: namespace, capability, version, idempotency key.
pub(crate) type JobKey = (SpaceId, Arc<str>, Arc<str>, Ident);

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It needs a provider.
    Unplaced,
    /// It waits for its provider.
    Queued,
    /// Its provider works on it.
    Leased(LeaseId),
    /// It is tried again at this moment.
    Pausing(Nanos),
    /// Its intent is with the log.
    Planned,
    /// A provider is asked whether it was done before.
    Probing,
    /// Its outcome is with the log.
    Ending,
}

/// The work of one call, or of several with the same key.
pub(crate) struct Job {
    pub(crate) space: SpaceId,
    /// The log of its namespace, if one is open.
    pub(crate) partition: Option<u32>,
    pub(crate) version: Arc<Version>,
    /// The version was asked for, or has begun its work: no other may go on with it.
    pinned: bool,
    /// The envelope of the call that began it; its deadline is the latest of those who wait.
    pub(crate) env: Arc<Envelope>,
    pub(crate) effect: EffectClass,
    /// Names the change outside.
    pub(crate) effect_id: u128,
    /// A durable turn calls.
    pub(crate) durable: bool,
    /// What the log was told of it.
    pub(crate) told: Told,
    pub(crate) started: Nanos,
    /// The recorded turn that calls; 0: none.
    pub(crate) recorded: u64,
    pub(crate) stage: Stage,
    /// Who has it, or had it last.
    pub(crate) provider: Option<ProviderId>,
    /// How often it was begun.
    pub(crate) attempt: u32,
    /// An attempt got no answer: whether it took effect is not known.
    pub(crate) unknown: bool,
    /// Who failed it last, and how.
    failed: Option<(ProviderId, Failure)>,
    pub(crate) waiters: SmallVec<[CallId; 1]>,
    /// Chunks that the caller of a streamed one reads.
    pub(crate) credit: Option<Credit>,
    /// How it ended, until the log has that.
    pub(crate) end: Option<Ended>,
}

type Failure = Box<(Code, Detail)>;

impl Job {
    fn key(&self) -> Option<JobKey> {
        let key = self.env.key.clone()?;
        let name = Arc::clone(&self.env.topic);
        Some((self.space, name, Arc::clone(&self.version.text), key))
    }

    /// Its effect, where there is a log that can know of it.
    pub(crate) fn effect_key(&self) -> Option<EffectKey> {
        let partition = self.partition?;
        (self.effect != EffectClass::Pure).then_some((partition, self.effect_id))
    }

    /// Whether an end without an answer leaves open whether it took effect.
    pub(crate) fn is_unknown(&self) -> bool {
        let begun = self.unknown || matches!(self.stage, Stage::Leased(_) | Stage::Ending);
        begun && self.effect != EffectClass::Pure
    }

    /// Which version it asks for, and what it may change outside.
    pub(crate) fn terms(&self) -> (&Arc<Version>, EffectClass) {
        (&self.version, self.effect)
    }

    pub(crate) const fn is_pausing(&self) -> bool {
        matches!(self.stage, Stage::Pausing(_))
    }

    /// An attempt has failed, and the next has not begun.
    pub(crate) const fn is_tried_again(&self) -> bool {
        self.attempt > 0 && !matches!(self.stage, Stage::Leased(_))
    }

    fn wish(&self) -> Wish<'_> {
        Wish {
            space: self.space,
            name: &self.env.topic,
            version: self.pinned.then_some(&*self.version.text),
            avoid: self.failed.as_ref().map(|(provider, _)| *provider),
        }
    }
}

/// Why one of those who wait does so no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Timeout,
    Cancelled,
}

/// What a provider ends an invocation with.
pub(crate) enum Answer {
    Done(Box<[u8]>),
    Failed(Code, Detail),
}

impl Answer {
    fn code(&self) -> Option<Code> {
        match self {
            Self::Done(_) => None,
            Self::Failed(code, _) => Some(*code),
        }
    }
}

pub(crate) type Ended = std::result::Result<Box<[u8]>, (Code, Detail)>;

/// How the call asks that opens a job.
struct Opening {
    turn: Option<LeaseId>,
    /// Chunks that are granted; 0: one result.
    credit: u64,
    now: Nanos,
    /// The recorded turn that calls; 0: none.
    recorded: u64,
}

/// What a job begins with.
enum Next {
    Nothing,
    Queue(ProviderId),
    End(Ended),
    Probe,
}

/// Where a call goes.
pub(crate) enum Place {
    /// To the job that its key names.
    Joined(JobId, Arc<str>),
    New(Choice),
    /// To the outcome that a call with its key had.
    Kept(Arc<str>, Arc<Version>, Ended),
    /// To a probe: a call with its key was begun, and nobody knows what became of it.
    Probed(Arc<str>, Arc<Version>),
}

impl Core {
    /// Calls a capability; a [`Notice::Outcome`] is its one end.
    ///
    /// # Errors
    /// `NOT_FOUND` for a name or a version nobody ever offered; `PROVIDER_UNAVAILABLE` where nobody can serve it now, or where
    /// who offered it before this start may yet come back; `EXHAUSTED`
    /// where all providers have too much to do; `CONFLICT` for a key that other arguments have in flight, or a stream;
    /// `DEADLOCK` for a call that would wait for itself; `INVALID_PARAMS`; `FENCED`.
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
        let tape = self.tape(space, parent).filter(|tape| tape.turn > 0);
        let place = match self.find_place(&source, &invoke, key.as_ref(), at) {
            Ok(place) => place,
            Err(error) => {
                let error = self.not_back_yet(error, &source, invoke.capability, at);
                self.refuse_call(&source, &invoke, &error, at);
                return Err(error);
            }
        };
        let topic = match &place {
            Place::Joined(_, name) | Place::Kept(name, ..) | Place::Probed(name, _) => {
                Arc::clone(name)
            }
            Place::New(choice) => Arc::clone(&choice.name),
        };
        let asked = Opening {
            turn: invoke.turn,
            credit: invoke.credit,
            now: at.now,
            recorded: tape.map_or(0, |tape| tape.turn),
        };
        let keeper = if invoke.payload.len() > self.limits.payload_bytes {
            self.check_held(space, invoke.payload.len())?;
            self.keeper_of_call(space, &place, key.is_some(), asked.recorded > 0)
        } else {
            Keeper::Nobody
        };
        let draft = Draft {
            topic,
            payload: invoke.payload,
            qos: Qos::Batched,
            options: None,
            reply_to: None,
            deadline: Some(deadline),
            keeper,
        };
        let mut env = self.compose(source, draft, at)?;
        env.key = key;
        let env = Arc::new(env);
        let (job, next) = match place {
            Place::Joined(job, _) => {
                self.totals.calls.joined += 1;
                self.extend_job(job, deadline);
                (job, Next::Nothing)
            }
            Place::New(choice) => {
                let provider = choice.provider;
                let pinned = invoke.version.is_some() || env.key.is_some();
                let version = (choice.version, pinned);
                let job = self.open_job(space, version, &env, &asked);
                (job, Next::Queue(provider))
            }
            Place::Kept(_, version, end) => {
                let job = self.open_job(space, (version, true), &env, &asked);
                (job, Next::End(end))
            }
            Place::Probed(_, version) => {
                let job = self.open_job(space, (version, true), &env, &asked);
                (job, Next::Probe)
            }
        };
        let call = self.open_pending(Pending {
            session,
            space,
            parent,
            env,
            deadline,
            started: at.now,
            tape,
            wanted: Wanted::Call(job),
        });
        self.enter_call(job, call);
        if let Next::Queue(provider) = next {
            self.queue_job(job, provider, at);
            self.tape_call(call, false, at);
        } else {
            // Its own intent is not written: it has joined one, or follows one that was written before.
            self.tape_call(call, true, at);
            match next {
                Next::End(end) => self.finish_job(job, end, at),
                Next::Probe => self.begin_probing(job, at),
                Next::Nothing | Next::Queue(_) => {}
            }
        }
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

    /// Whether the log keeps the large arguments of a call.
    fn keeper_of_call(&self, space: SpaceId, place: &Place, keyed: bool, recorded: bool) -> Keeper {
        let class = match place {
            Place::Joined(job, _) => return self.keeper_of_job(*job),
            // A call of its key was written down.
            Place::Kept(..) | Place::Probed(..) => return Keeper::Log,
            Place::New(choice) => self.providers.get(choice.provider).map(|it| it.effect),
        };
        let told = class != Some(EffectClass::Pure)
            && self
                .partition_in(space)
                .is_some_and(|it| self.is_told(it, keyed));
        if recorded || told {
            Keeper::Log
        } else {
            Keeper::Call
        }
    }

    /// Whether the log keeps the large arguments of a job, or its large result.
    fn keeper_of_job(&self, job: JobId) -> Keeper {
        let is_kept = |job: &Job| job.recorded > 0 || job.told == Told::Intent;
        if self.jobs.get(job).is_some_and(is_kept) {
            Keeper::Log
        } else {
            Keeper::Call
        }
    }

    /// Whether the log keeps what an invocation ends with.
    fn keeper_of_result(&self, lease: LeaseId) -> Keeper {
        // What nobody waits for any more is written down as what became of its effect.
        if self.ledger.late.contains_key(&lease) {
            return Keeper::Log;
        }
        match self.leases.get(lease).map(|lease| lease.holding) {
            Some(Holding::Work { job, .. }) => self.keeper_of_job(job),
            _ => Keeper::Nobody,
        }
    }

    /// Calls hold their arguments until they have ended.
    fn check_held(&self, space: SpaceId, bytes: usize) -> Result<()> {
        let most = self.limits.held_payload_bytes;
        let held = self.space(space).map_or(0, |space| space.held);
        if held + bytes <= most {
            return Ok(());
        }
        let message =
            format!("calls under way hold {held} bytes of large arguments, of at most {most}");
        Err(Error::exhausted("held_payload_bytes", message)
            .field("payload")
            .hint("let some of them end first, or hand over a reference to where it lies")
            .retry_after(self.limits.retry_base_ms))
    }

    fn refuse_call(&mut self, source: &Source, invoke: &Invoke<'_>, error: &Error, at: Moment) {
        self.totals.calls.started += 1;
        self.totals.calls.error += 1;
        // It belongs to the run of the turn that calls, not to one of its own.
        let turn = invoke
            .turn
            .and_then(|turn| self.lease(source.session, turn).ok());
        let cause = turn.map(|turn| Arc::clone(&turn.env));
        let subject = Subject::refused(invoke.capability.into(), cause);
        self.tell_error(source.space, error.code, &error.detail(), &subject);
        self.flush(at);
    }

    fn find_place(
        &mut self,
        source: &Source,
        invoke: &Invoke<'_>,
        key: Option<&Ident>,
        at: Moment,
    ) -> Result<Place> {
        let space = source.space;
        crate::topic::check_capability(invoke.capability, &self.limits)?;
        if let Some(version) = invoke.version {
            crate::topic::check_name("version", version, &self.limits)?;
        }
        self.check_call(source, invoke.capability)?;
        if let Some(key) = key
            && let Some(job) = self.find_job(space, invoke, key)
        {
            return self.join_job(job, invoke);
        }
        let mut again = None;
        if let Some(key) = key {
            match self.recall(space, invoke, key, at)? {
                Recalled::Nothing => {}
                Recalled::Place(place) => return Ok(place),
                Recalled::Again(version) => again = Some(version),
            }
        }
        let wish = Wish {
            space,
            name: invoke.capability,
            version: again.as_ref().map(|v| &*v.text).or(invoke.version),
            avoid: None,
        };
        self.pick_provider(&wish, at).map(Place::New)
    }

    /// The job in flight that has this key; without a version, of any.
    fn find_job(&self, space: SpaceId, invoke: &Invoke<'_>, key: &Ident) -> Option<JobId> {
        if self.keys.is_empty() {
            return None;
        }
        let found = self.space(space)?;
        let (name, capability) = found.capabilities.get_key_value(invoke.capability)?;
        let mut versions = capability
            .releases
            .keys()
            .rev()
            .filter(|version| invoke.version.is_none_or(|asked| *version.text == *asked));
        versions.find_map(|version| {
            let (name, version) = (Arc::clone(name), Arc::clone(&version.text));
            self.keys.get(&(space, name, version, key.clone())).copied()
        })
    }

    fn join_job(&self, id: JobId, invoke: &Invoke<'_>) -> Result<Place> {
        let Some(job) = self.jobs.get(id) else {
            return Err(Error::new(Code::Internal, "a key names no job"));
        };
        let conflict = |what: &str| {
            let message = format!("a call with this key is in flight, {what}");
            Err(Error::new(Code::Conflict, message).field("key"))
        };
        if job.env.payload != invoke.payload && !self.has(Planted::OtherArguments) {
            return conflict("with other arguments");
        }
        if job.credit.is_some() || invoke.credit > 0 {
            return conflict("and a stream has one reader");
        }
        self.each_waiting(invoke.turn, |lease| match lease.holding {
            Holding::Work { job, .. } if job == id => {
                let message = "this call would wait for the invocation that makes it";
                Err(Error::new(Code::Deadlock, message)
                    .field("key")
                    .hint("give the inner call another key"))
            }
            _ => Ok(()),
        })?;
        Ok(Place::Joined(id, Arc::clone(&job.env.topic)))
    }

    /// One who waits longer has joined.
    fn extend_job(&mut self, id: JobId, deadline: Nanos) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        if job.env.deadline >= Some(deadline) {
            return;
        }
        Arc::make_mut(&mut job.env).deadline = Some(deadline);
        if let Stage::Leased(lease) = job.stage
            && let Some(lease) = self.leases.get_mut(lease)
        {
            lease.env = Arc::clone(&job.env);
        }
    }

    fn open_job(
        &mut self,
        space: SpaceId,
        version: (Arc<Version>, bool),
        env: &Arc<Envelope>,
        asked: &Opening,
    ) -> JobId {
        let (version, pinned) = version;
        let credit = asked.credit;
        let effect_id = match &env.key {
            Some(key) => {
                let key = key.to_string();
                keyed_effect(&env.origin.namespace, &env.topic, &version.text, &key)
            }
            None => derive_id(env.id),
        };
        let turn = asked.turn.and_then(|turn| self.leases.get(turn));
        let durable = turn.is_some_and(|turn| turn.env.position.is_some());
        let job = Job {
            space,
            version,
            pinned,
            env: Arc::clone(env),
            partition: self.partition_in(space),
            effect: EffectClass::Pure,
            effect_id,
            durable,
            told: Told::Nothing,
            recorded: asked.recorded,
            started: asked.now,
            end: None,
            stage: Stage::Unplaced,
            provider: None,
            attempt: 0,
            unknown: false,
            failed: None,
            waiters: SmallVec::new(),
            credit: (credit > 0).then(|| Credit::new(credit)),
        };
        let key = job.key();
        let id = self.jobs.insert(job);
        if let Some(key) = key {
            self.keys.insert(key, id);
        }
        id
    }

    fn enter_call(&mut self, id: JobId, call: CallId) {
        self.totals.calls.started += 1;
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        job.waiters.push(call);
        let (space, name, version) = (
            job.space,
            Arc::clone(&job.env.topic),
            Arc::clone(&job.version),
        );
        if let Some(release) = self.release_mut(space, &name, &version) {
            release.calls += 1;
        }
    }

    /// Those who wait for a job.
    pub(crate) fn waiters(&self, job: JobId) -> &[CallId] {
        self.jobs.get(job).map_or(&[], |job| &job.waiters)
    }

    /// Puts a job into a provider's queue; the first one after an ejection decides whether the provider is well.
    fn queue_job(&mut self, id: JobId, provider: ProviderId, at: Moment) {
        let class = self.providers.get(provider).map(|found| found.effect);
        if let Some(class) = class
            && self.must_intend(id, class)
        {
            return self.intend(id, class, at);
        }
        let (Some(job), Some(found)) = (self.jobs.get_mut(id), self.providers.get_mut(provider))
        else {
            return;
        };
        job.stage = Stage::Queued;
        job.provider = Some(provider);
        job.effect = if job.attempt == 0 && job.told == Told::Nothing {
            found.effect
        } else {
            job.effect.max(found.effect)
        };
        found.queue.push_back(id);
        let until = at.now.plus_millis(self.limits.breaker_probe_ms);
        if found.begin_probe(id, at.now, until) {
            self.show_provider(provider);
        }
        self.poke_provider(provider);
    }

    /// Finds a provider for a job that lost its place, or that is tried again.
    pub(crate) fn place_job(&mut self, id: JobId, at: Moment) {
        let Some(job) = self.jobs.get(id).filter(|j| j.stage == Stage::Unplaced) else {
            return;
        };
        let env = Arc::clone(&job.env);
        let (space, version, pinned) = (job.space, Arc::clone(&job.version), job.pinned);
        let wish = Wish {
            name: &env.topic,
            version: pinned.then_some(&*version.text),
            ..job.wish()
        };
        match self.pick_provider(&wish, at) {
            Ok(choice) => {
                if let Some(job) = self.jobs.get_mut(id) {
                    job.version = choice.version;
                }
                self.queue_job(id, choice.provider, at);
            }
            Err(error) => match self.find_restarting(space, &env.topic, &version) {
                Some(provider) => self.queue_job(id, provider, at),
                None => self.give_up(id, &error, at),
            },
        }
    }

    /// A job for which there is nobody ends with the last error of its own, or with there being nobody.
    fn give_up(&mut self, id: JobId, error: &Error, at: Moment) {
        let last = self
            .jobs
            .get_mut(id)
            .and_then(|job| job.failed.take())
            .map(|(_, failure)| *failure);
        let retry_after_ms = error.retry_after_ms;
        let (code, detail) = last.unwrap_or_else(|| {
            let message = format!("its provider went, and {}", error.message);
            (Code::ProviderUnavailable, Detail::message(message))
        });
        let detail = Detail {
            retry_after_ms,
            ..detail
        };
        self.close_job(id, Err((code, detail)), at);
    }

    /// The next job of a provider that is not over yet.
    pub(crate) fn take_job(&mut self, id: ProviderId, at: Moment) -> Option<Delivery> {
        loop {
            let job = self.next_job(id)?;
            self.end_overdue(job, at);
            if self.jobs.get(job).is_some() {
                return self.lease_job(id, job, at);
            }
        }
    }

    fn lease_job(&mut self, id: ProviderId, job_id: JobId, at: Moment) -> Option<Delivery> {
        let changes = self.has(Planted::EffectIdChanges);
        let provider = self.providers.get_mut(id)?;
        let job = self.jobs.get_mut(job_id)?;
        let env = Arc::clone(&job.env);
        let lease = self.leases.insert(Lease {
            session: provider.session,
            holding: Holding::Work {
                provider: id,
                job: job_id,
            },
            env: Arc::clone(&env),
            asked: true,
            answered: false,
            durable: None,
            turn: 0,
        });
        provider.queue.pop_front();
        provider.held.insert(lease);
        job.stage = Stage::Leased(lease);
        job.pinned = true;
        job.attempt += 1;
        let attempt = job.attempt;
        let effect_id = if changes {
            derive_id(job.effect_id ^ u128::from(attempt))
        } else {
            job.effect_id
        };
        let work = Work {
            streamed: job.credit.is_some(),
            credit: job.credit.map_or(0, |credit| credit.granted()),
            effect: (job.effect != EffectClass::Pure).then_some(effect_id),
        };
        let space = job.space;
        if attempt == 1
            && let Some(found) = self.spaces.get_mut(space.0 as usize)
            && let Some(capability) = found.capabilities.get_mut(&env.topic)
        {
            capability.budget.earn(&self.limits);
        }
        self.tell_dispatched(job_id, at);
        Some(Delivery {
            durable: false,
            lease: Some(lease),
            envelope: env,
            asked: true,
            attempt,
            work: Some(work),
            turn: 0,
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
        if payload.len() > self.limits.payload_bytes {
            self.check_payload(&payload, self.keeper_of_result(lease))?;
        }
        let Some(found) = self.own_lease(session, lease, false)? else {
            return Ok(false);
        };
        let Holding::Work { provider, .. } = found.holding else {
            return Err(Error::invalid("lease", "a turn is answered by a reply"));
        };
        let heard = self.end_work(lease, Answer::Done(payload), at);
        self.poke_provider(provider);
        self.flush(at);
        Ok(heard)
    }

    /// Ends the lease of an invocation; its answer counts if its job is still with it.
    pub(crate) fn end_work(&mut self, id: LeaseId, answer: Answer, at: Moment) -> bool {
        let Some(Holding::Work { provider, job }) = self.leases.get(id).map(|l| l.holding) else {
            return false;
        };
        self.end_overdue(job, at);
        self.leases.remove(id);
        let full = self.free_work(provider, id);
        let current = self
            .jobs
            .get(job)
            .is_some_and(|job| job.stage == Stage::Leased(id));
        if current {
            let attempt = Attempt {
                provider,
                job,
                full,
            };
            self.answer_job(attempt, answer, at);
        } else {
            if !matches!(answer, Answer::Failed(Code::Cancelled, _)) {
                self.totals.calls.late += 1;
            }
            let end = match answer {
                Answer::Done(payload) => Ok(payload),
                Answer::Failed(code, detail) => Err((code, detail)),
            };
            self.end_late(id, Some(&end), at);
        }
        self.reclaim_provider(provider);
        current
    }

    fn answer_job(&mut self, attempt: Attempt, answer: Answer, at: Moment) {
        let (id, provider) = (attempt.job, attempt.provider);
        self.judge_provider(attempt, answer.code(), at);
        if let Some(job) = self.jobs.get_mut(id) {
            job.stage = Stage::Unplaced;
        }
        match answer {
            Answer::Done(payload) => self.close_job(id, Ok(payload), at),
            Answer::Failed(code, detail) => self.fail_attempt(id, provider, (code, detail), at),
        }
    }

    /// The provider of an invocation under way went.
    pub(crate) fn lose_work(&mut self, provider: ProviderId, lease: LeaseId, at: Moment) {
        let Some(found) = self.leases.get(lease) else {
            return;
        };
        let (session, holding) = (found.session, found.holding);
        let Holding::Work { job: id, .. } = holding else {
            return;
        };
        let Some(job) = self
            .jobs
            .get_mut(id)
            .filter(|job| job.stage == Stage::Leased(lease))
        else {
            return;
        };
        let (code, detail) = without_answer(job, Code::ProviderUnavailable, "its provider went");
        job.stage = Stage::Unplaced;
        if let Some(key) = job.effect_key() {
            self.note_late(lease, key);
        }
        self.tell_cancel(session, lease, code);
        self.fail_attempt(id, provider, (code, detail), at);
    }

    /// An attempt failed: it is tried again, or was the last.
    fn fail_attempt(
        &mut self,
        id: JobId,
        provider: ProviderId,
        failure: (Code, Detail),
        at: Moment,
    ) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        job.unknown |= failure.0 == Code::Indeterminate;
        job.failed = Some((provider, Box::new(failure.clone())));
        let Some(until) = self.next_attempt(id, (failure.0, &failure.1), at) else {
            return self.end_or_probe(id, failure, at);
        };
        self.totals.calls.retried += 1;
        if let Some(provider) = self.providers.get_mut(provider) {
            provider.retries += 1;
        }
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        job.stage = Stage::Pausing(until);
        self.timers.add(until, Timer::Attempt(id));
        let millis = (until.0 - at.now.0).div_ceil(1_000_000);
        for call in job.waiters.clone() {
            if let Some(pending) = self.calls.get(call) {
                self.notify(pending.session, Notice::Due(millis));
            }
        }
    }

    /// The last attempt of a job failed: if nobody knows what became of it, and its provider can tell, it is asked.
    fn end_or_probe(&mut self, id: JobId, failure: (Code, Detail), at: Moment) {
        let Some(job) = self.jobs.get(id) else {
            return;
        };
        let (code, detail) = lasting(job, failure);
        let can = code == Code::Indeterminate && job.told == Told::Intent && self.is_probed(id);
        let end = Err((code, detail));
        if can {
            self.tell_end(id, &end, at);
            if self.probe_for(id, at) {
                return;
            }
        }
        self.close_job(id, end, at);
    }

    /// A call waits for what a probe says of one before it.
    fn begin_probing(&mut self, id: JobId, at: Moment) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.effect = EffectClass::Probeable;
            job.recorded = 0;
        }
        if !self.probe_for(id, at) {
            self.leave_unknown(id, at);
        }
    }

    /// When a job is tried again, if it is: the work may be done twice, the error may pass, there is time, somebody who may be
    /// usable then, and budget.
    fn next_attempt(&mut self, id: JobId, failure: (Code, &Detail), at: Moment) -> Option<Nanos> {
        let (code, detail) = failure;
        let job = self.jobs.get(id)?;
        let begun = job.credit.is_some_and(|credit| credit.is_begun());
        let unknown = job.unknown || code == Code::Timeout;
        let may = !begun
            && (job.attempt as usize) < self.limits.call_attempts
            && (is_repeatable(job.effect, job.env.key.is_some(), unknown)
                || self.has(Planted::UnsafeRetried))
            && may_pass(code, detail);
        if !may {
            return None;
        }
        let until = at
            .now
            .plus(pause(job.attempt, detail, &self.limits, &mut self.jitter));
        let late = job.env.deadline <= Some(until) && !self.has(Planted::RetryOutlives);
        let free = self.has(Planted::BudgetIgnored);
        if late || !self.is_reachable(&job.wish(), until) {
            return None;
        }
        let found = self.spaces.get_mut(job.space.0 as usize)?;
        let capability = found.capabilities.get_mut(&job.env.topic)?;
        (capability.budget.spend() || free).then_some(until)
    }

    pub(crate) fn attempt_is_due(&mut self, id: JobId, at: Moment) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        if matches!(job.stage, Stage::Pausing(_)) {
            job.stage = Stage::Unplaced;
            self.place_job(id, at);
        }
    }

    /// Ends those of a job's calls whose deadline has passed, also when nobody has ticked since.
    fn end_overdue(&mut self, id: JobId, at: Moment) {
        if !self
            .waiters(id)
            .iter()
            .any(|call| self.is_overdue(*call, at))
        {
            return;
        }
        let waiters: SmallVec<[CallId; 4]> = self.waiters(id).into();
        for call in waiters {
            self.end_if_over(call, at);
        }
    }

    fn is_overdue(&self, call: CallId, at: Moment) -> bool {
        self.calls
            .get(call)
            .is_some_and(|pending| pending.deadline <= at.now)
    }

    /// Ends one call without an answer; with the last of its calls the job goes.
    pub(crate) fn end_call(&mut self, call: CallId, why: Why, at: Moment) {
        let forgets = self.has(Planted::FollowerForgotten) && why == Why::Cancelled;
        let Some(pending) = self.close_pending(call) else {
            return;
        };
        let Wanted::Call(id) = pending.wanted else {
            return;
        };
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        let (code, said) = match why {
            Why::Timeout => (Code::Timeout, "its time was up"),
            Why::Cancelled => (Code::Cancelled, "its caller cancelled it"),
        };
        let (code, detail) = without_answer(job, code, said);
        job.waiters.retain(|other| *other != call && !forgets);
        let about = About {
            version: Arc::clone(&job.version),
            provider: job.provider,
        };
        if job.waiters.is_empty() && job.stage != Stage::Ending {
            self.abandon_job(id, why, (code, &detail), at);
        }
        self.tell_outcome((call, &pending), Err((code, detail)), &about, at);
    }

    /// Nobody waits for a job any more: it is taken out of its queue, or its provider is told to stop.
    fn abandon_job(&mut self, id: JobId, why: Why, end: (Code, &Detail), at: Moment) {
        let Some(job) = self.jobs.get(id) else {
            return;
        };
        let (code, key, stage) = (end.0, job.effect_key(), job.stage);
        if let (Stage::Leased(lease), Some(provider)) = (job.stage, job.provider) {
            let verdict = match why {
                Why::Timeout => Code::Timeout,
                Why::Cancelled => Code::Cancelled,
            };
            let attempt = Attempt {
                provider,
                job: id,
                full: false,
            };
            self.judge_provider(attempt, Some(verdict), at);
            if let Some(session) = self.leases.get(lease).map(|lease| lease.session) {
                self.tell_cancel(session, lease, code);
            }
            if let Some(key) = key {
                self.note_late(lease, key);
            }
        }
        if let Some(key) = key {
            if stage == Stage::Probing {
                self.leave_probe(id, key);
            }
            self.tell_end(id, &Err((code, end.1.clone())), at);
        }
        self.drop_job(id, at);
    }

    fn tell_cancel(&mut self, session: SessionId, lease: LeaseId, code: Code) {
        if !self.has(Planted::UntoldCancel) {
            self.notify(session, Notice::Cancel(lease, code));
        }
    }

    /// Takes a job out of all lists.
    fn drop_job(&mut self, id: JobId, at: Moment) -> Option<Job> {
        self.leave_queue(id, at);
        let job = self.jobs.remove(id)?;
        if let Some(key) = job.key() {
            self.keys.remove(&key);
        }
        Some(job)
    }

    /// Takes a job out of what it waits in.
    fn leave_queue(&mut self, id: JobId, at: Moment) {
        let Some((stage, provider)) = self.jobs.get(id).map(|job| (job.stage, job.provider)) else {
            return;
        };
        match stage {
            Stage::Pausing(until) => self.timers.remove(until, Timer::Attempt(id)),
            Stage::Queued => {
                if let Some(found) = provider.and_then(|id| self.providers.get_mut(id)) {
                    found.unqueue(id, at.now);
                }
                if let Some(provider) = provider {
                    self.show_provider(provider);
                }
            }
            _ => {}
        }
    }

    /// Ends a job: at once, or when the log has its outcome.
    pub(crate) fn close_job(&mut self, id: JobId, end: Ended, at: Moment) {
        let Some(job) = self.jobs.get(id) else {
            return;
        };
        let end = end.map_err(|failure| lasting(job, failure));
        if job.effect_key().is_some() && self.tell_end(id, &end, at) {
            self.leave_queue(id, at);
            if let Some(job) = self.jobs.get_mut(id) {
                job.stage = Stage::Ending;
                job.end = Some(end);
            }
            return;
        }
        self.finish_job(id, end, at);
    }

    /// Ends a job, and all calls that wait for it.
    pub(crate) fn finish_job(&mut self, id: JobId, end: Ended, at: Moment) {
        let Some(job) = self.drop_job(id, at) else {
            return;
        };
        let about = About {
            version: Arc::clone(&job.version),
            provider: job.provider,
        };
        let mut waiters = job.waiters.into_iter().peekable();
        let mut end = Some(end);
        while let Some(call) = waiters.next() {
            let own = if waiters.peek().is_some() {
                end.clone()
            } else {
                end.take()
            };
            if let (Some(own), Some(pending)) = (own, self.close_pending(call)) {
                self.tell_outcome((call, &pending), own, &about, at);
            }
        }
    }

    /// The one end of a call.
    fn tell_outcome(&mut self, of: (CallId, &Pending), end: Ended, about: &About, at: Moment) {
        let (call, pending) = of;
        let code = end.as_ref().err().map(|(code, _)| *code);
        self.count_call(pending, about, code, at);
        let body = match end {
            Ok(payload) => payload,
            Err((code, mut detail)) => {
                let who = about
                    .provider
                    .and_then(|id| self.providers.get(id))
                    .map_or_else(
                        || Arc::clone(&pending.env.topic),
                        |provider| Arc::clone(&provider.origin.sender),
                    );
                detail.who.get_or_insert_with(|| who.to_string());
                let subject = Subject::call(who, call, &pending.env);
                self.tell_error(pending.space, code, &detail, &subject);
                detail.json().into()
            }
        };
        self.tape_outcome(pending, code, &body, at);
        if self.has(Planted::SecondOutcome) && code.is_some() {
            self.notify(pending.session, Notice::Outcome(call, code, body.clone()));
        }
        self.notify(pending.session, Notice::Outcome(call, code, body));
    }

    fn count_call(&mut self, pending: &Pending, about: &About, code: Option<Code>, at: Moment) {
        self.totals.calls.count(code);
        let micros = at.now.micros_since(pending.started);
        let Some(release) = self.release_mut(pending.space, &pending.env.topic, &about.version)
        else {
            return;
        };
        release.outcomes.count(code);
        release.duration.record(micros);
        if let Some(code) = code {
            *release.errors.entry(code).or_default() += 1;
        }
    }
}

/// Which version a call went to, and which provider.
struct About {
    version: Arc<Version>,
    provider: Option<ProviderId>,
}

/// What an end without an answer means to the caller: what was begun, is not pure, and has no answer, is indeterminate.
fn without_answer(job: &Job, code: Code, why: &str) -> (Code, Detail) {
    let name = &job.env.topic;
    if !job.is_unknown() {
        let message = format!("the call of {name:?} ended without a result: {why}");
        return (code, Detail::message(message));
    }
    let message = format!(
        "the call of {name:?} was under way when {why}; whether it took effect is not known"
    );
    (Code::Indeterminate, indeterminate(job, message))
}

/// What the last error of a job means: if an earlier attempt has no answer, an error that may pass does not say that nothing
/// happened.
fn lasting(job: &Job, failure: (Code, Detail)) -> (Code, Detail) {
    let (code, detail) = failure;
    if !job.is_unknown() || code == Code::Indeterminate || !may_pass(code, &detail) {
        return (code, detail);
    }
    let message = format!(
        "an attempt of {:?} was lost, whether it took effect is not known; the last one ended with {}: {}",
        job.env.topic,
        code.name(),
        detail.message
    );
    let told = indeterminate(job, message);
    let retry_after_ms = detail.retry_after_ms;
    (
        Code::Indeterminate,
        Detail {
            retry_after_ms,
            ..told
        },
    )
}

fn indeterminate(job: &Job, message: String) -> Detail {
    let hint = match (&job.env.key, job.effect) {
        (Some(_), EffectClass::Unsafe) => settle_hint(job.effect_id),
        (Some(_), _) => "call again with the same key".to_owned(),
        (None, _) => "look at the outside world before you try again, or declare the effect pure \
                      if it changes nothing"
            .to_owned(),
    };
    Detail {
        hint: Some(hint),
        ..Detail::message(message)
    }
}
