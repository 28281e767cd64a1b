//! What is done about effects: a call that is not pure is intended before it is dispatched, a call whose key is known is
//! given what is known, and an effect that nobody knows of is probed, or waits for a person.
//!
//! What is known is folded from the log (`partition/effects.rs`); how a call goes on is in `job.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use crate::arena::{JobId, LeaseId, SessionId, Ticket};
use crate::core::Core;
use crate::envelope::{EffectClass, Position};
use crate::error::{Code, Detail, Error, Result};
use crate::ident::{Ident, show_uuid};
use crate::input::Invoke;
use crate::job::{Ended, Place, Stage};
use crate::ledger::EffectCounts;
use crate::notice::{Notice, Receipt};
use crate::partition::effects::{EffectState, Effects, hash_of};
use crate::planted::Planted;
use crate::probe::Probe;
use crate::record::{Body, Dispatched, Intent, Level, Outcome, Record, Settled};
use crate::retry::may_pass;
use crate::space::SpaceId;
use crate::ticket::Then;
use crate::time::Moment;
use crate::version::Version;

/// An effect of a partition.
pub(crate) type EffectKey = (u32, u128);

/// How much of a job the log has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// Nothing of what it does now.
    Nothing,
    /// That it is intended.
    Intent,
    /// That nobody knows what became of it.
    Unknown,
}

/// What is known of a call with a key.
pub(crate) enum Recalled {
    /// Nothing: it is new.
    Nothing,
    /// Where it goes.
    Place(Place),
    /// One was begun, and beginning it again does no harm: with this version.
    Again(Arc<Version>),
}

/// What an answer of the log is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// This job may be given to its provider.
    Intent(JobId),
    /// The outcome of this job may be handed out.
    Outcome(JobId),
    /// What is known of this effect is folded from the log from then on.
    Known(EffectKey),
    /// A person has settled this effect.
    Resolved(SessionId, EffectKey),
}

/// What was decided about an effect and is not in the log yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coming {
    /// Nothing happened, or nobody will ask.
    Nothing,
    Unknown,
    /// It is being settled.
    Settled,
}

/// What is known of effects beside the log.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) coming: BTreeMap<EffectKey, (u32, Coming)>,
    pub(crate) probes: BTreeMap<EffectKey, Probe>,
    /// Work under way that no call waits for any more, and what it may yet do.
    pub(crate) late: BTreeMap<LeaseId, EffectKey>,
    pub(crate) counts: EffectCounts,
}

impl Core {
    // -- calls with a key ----------------------------------------------------------------------------------------------

    /// What is known of a call with this key that is not in flight; none: nothing, it is new.
    pub(crate) fn recall(
        &mut self,
        space: SpaceId,
        invoke: &Invoke<'_>,
        key: &Ident,
        at: Moment,
    ) -> Result<Recalled> {
        let Some(partition) = self.partition_in(space) else {
            return Ok(Recalled::Nothing);
        };
        let Some(effects) = self.effects(partition) else {
            return Ok(Recalled::Nothing);
        };
        let key = key.to_string();
        let found = effects
            .find(invoke.capability, &key, at.wall_ms)
            .filter(|effect| {
                invoke
                    .version
                    .is_none_or(|asked| effect.intent.version == asked)
            })
            .max_by_key(|effect| effect.n);
        let Some(effect) = found else {
            return if effects.is_full() {
                Err(too_many_unknown(&self.limits))
            } else {
                Ok(Recalled::Nothing)
            };
        };
        let coming = self
            .ledger
            .coming
            .get(&(partition, effect.id()))
            .map(|(_, c)| *c);
        if coming == Some(Coming::Nothing) {
            return Ok(Recalled::Nothing);
        }
        let state = match coming {
            Some(Coming::Unknown) => EffectState::Unknown,
            _ => effect.state(),
        };
        if state == EffectState::Failed && effect.outcome().is_none() {
            return Ok(Recalled::Nothing);
        }
        if effect.intent.args_hash != hash_of(&invoke.payload) && !self.has(Planted::OtherArguments)
        {
            let message = "a call with this key was made with other arguments";
            return Err(Error::new(Code::Conflict, message)
                .field("key")
                .hint("give other work another key"));
        }
        let name: Arc<str> = effect.intent.capability.as_str().into();
        let version = Arc::new(Version::read(&effect.intent.version));
        if let Some(outcome) = effect.outcome() {
            if invoke.credit > 0 || effect.is_streamed() {
                let message = "a call with this key has ended, and its chunks are not kept";
                return Err(Error::new(Code::Conflict, message).field("key"));
            }
            let end = match outcome {
                Ok(result) => Ok(result.into()),
                Err((code, detail)) => Err((code, Detail::read(detail.as_bytes(), usize::MAX))),
            };
            self.ledger.counts.replayed += 1;
            return Ok(Recalled::Place(Place::Kept(name, version, end)));
        }
        if coming == Some(Coming::Settled) {
            let message = "what became of a call with this key is being settled";
            return Err(Error::new(Code::Conflict, message)
                .field("key")
                .retry_after(self.limits.retry_base_ms)
                .hint("call again in a moment"));
        }
        let (effect_id, class) = (effect.id(), effect.class());
        if self.find_prober(space, &name, &version).is_some() {
            return Ok(Recalled::Place(Place::Probed(name, version)));
        }
        let repeatable =
            class == EffectClass::Idempotent && self.is_idempotent(space, &name, &version);
        if repeatable || self.has(Planted::UnknownRetried) {
            return Ok(Recalled::Again(version));
        }
        let message = format!(
            "a call of {name:?} with this key was begun before; whether it took effect is not known"
        );
        Err(Error::new(Code::Indeterminate, message)
            .field("key")
            .hint(settle_hint(effect_id)))
    }

    /// Whether all who offer a version say that doing it twice is doing it once.
    fn is_idempotent(&self, space: SpaceId, name: &str, version: &Version) -> bool {
        let Some(release) = self.release(space, name, version) else {
            return true; // nobody is there: it is refused for that
        };
        release.providers.iter().all(|id| {
            self.providers
                .get(*id)
                .is_some_and(|provider| provider.effect <= EffectClass::Idempotent)
        })
    }

    // -- what the log is told of a job ---------------------------------------------------------------------------------

    /// Whether the log must have the intent of a job before a provider of this class is given it.
    pub(crate) fn must_intend(&self, job: JobId, class: EffectClass) -> bool {
        let Some(job) = self.jobs.get(job) else {
            return false;
        };
        if class == EffectClass::Pure || (job.told == Told::Intent && class <= job.effect) {
            return false;
        }
        let named = job.env.key.is_some() || job.recorded > 0;
        job.partition
            .is_some_and(|partition| self.is_told(partition, named))
    }

    /// Whether the log is told of calls that are not pure. Where nothing outlives the process, it is told of those with a
    /// key and of recorded turns only, and of the others when nobody knows what became of them.
    pub(crate) fn is_told(&self, partition: u32, named: bool) -> bool {
        let part = self.parts.get(&partition);
        part.is_some_and(|part| named || part.opened.kept)
    }

    /// Writes down that a job will be done, and lets it wait until that is in the log.
    pub(crate) fn intend(&mut self, id: JobId, class: EffectClass, at: Moment) {
        let Some(record) = self.intent_of(id, class, at) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        job.stage = Stage::Planned;
        job.effect = job.effect.max(class);
        job.told = Told::Intent;
        let level = if job.durable || job.env.key.is_some() {
            Level::Disk
        } else {
            Level::Os
        };
        let Some(partition) = job.partition else {
            return;
        };
        self.ledger.counts.intended += 1;
        self.tell_log(partition, level, smallvec![record], Awaited::Intent(id));
        if self.has(Planted::IntentUnawaited) {
            self.begin_intended(id, at);
        }
    }

    fn intent_of(&self, id: JobId, class: EffectClass, at: Moment) -> Option<Record> {
        let job = self.jobs.get(id)?;
        let env = &job.env;
        let intent = Intent {
            effect: Some(job.effect_id.into()),
            call: Some(env.id.into()),
            capability: env.topic.to_string(),
            version: job.version.text.to_string(),
            class: job.effect.max(class).number().into(),
            key: env
                .key
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            args_hash: hash_of(&env.payload).to_vec(),
            caller: env.origin.sender.to_string(),
            run: Some(env.run.into()),
            event: env.causation.map(Into::into),
            turn: job.recorded,
            at_ms: at.wall_ms,
            thread: env.thread.to_string(),
            streamed: job.credit.is_some(),
        };
        Some(Record::Intent(intent, Body::Of(Arc::clone(env))))
    }

    /// The intent is in the log.
    fn begin_intended(&mut self, id: JobId, at: Moment) {
        let Some(job) = self.jobs.get_mut(id) else {
            return; // nobody waits for it any more
        };
        if job.stage == Stage::Planned {
            job.stage = Stage::Unplaced;
            self.place_job(id, at);
        }
    }

    /// A provider is given a job.
    pub(crate) fn tell_dispatched(&mut self, id: JobId, at: Moment) {
        let Some(job) = self.jobs.get(id).filter(|job| job.told == Told::Intent) else {
            return;
        };
        let provider = job.provider.and_then(|id| self.providers.get(id));
        let record = Record::Dispatched(Dispatched {
            effect: Some(job.effect_id.into()),
            attempt: job.attempt,
            provider: provider
                .map(|provider| provider.name.to_string())
                .unwrap_or_default(),
            at_ms: at.wall_ms,
            call: Some(job.env.id.into()),
        });
        if let Some(partition) = job.partition {
            self.append(partition, Level::Accepted, smallvec![record], Then::Fold);
        }
    }

    /// Writes down how a job has ended. `true`: the outcome may be handed out only when that is in the log.
    pub(crate) fn tell_end(&mut self, id: JobId, end: &Ended, at: Moment) -> bool {
        let Some(job) = self.jobs.get(id) else {
            return false;
        };
        let Some(partition) = job.partition else {
            return false;
        };
        let (key, keyed) = ((partition, job.effect_id), job.env.key.is_some());
        let code = end.as_ref().err().map(|(code, _)| *code);
        let unknown = code == Some(Code::Indeterminate);
        let mut batch: SmallVec<[Record; 1]> = SmallVec::new();
        match job.told {
            Told::Intent => {}
            Told::Unknown if unknown || end.is_err() => return false,
            Told::Unknown => {
                let Ok(result) = end else { return false };
                let record = settled(key.1, EffectState::Reconciled, "probe", at);
                let body = Body::from(result.clone());
                self.ledger.counts.reconciled += 1;
                return self.tell_outcome_of(id, key, Record::Settled(record, body), keyed);
            }
            Told::Nothing => {
                // What nobody knows is written down, also where a call is not.
                if !unknown || !job.is_unknown() {
                    return false;
                }
                batch.extend(self.intent_of(id, job.effect, at));
            }
        }
        let last = is_last(end);
        let (detail, body) = match end {
            Ok(result) => (String::new(), Body::from(result.clone())),
            Err((_, detail)) => {
                let json = String::from_utf8(detail.json()).unwrap_or_default();
                (json, Body::from(Vec::new()))
            }
        };
        let outcome = Outcome {
            effect: Some(job.effect_id.into()),
            call: Some(job.env.id.into()),
            code: code.map_or(0, |code| code.number().into()),
            detail,
            at_ms: at.wall_ms,
            micros: at.now.micros_since(job.started),
            last,
        };
        batch.push(Record::Outcome(outcome, body));
        if keyed && last {
            self.tell_log(partition, Level::Disk, batch, Awaited::Outcome(id));
            return true;
        }
        let coming = if unknown {
            Coming::Unknown
        } else {
            Coming::Nothing
        };
        if unknown && let Some(job) = self.jobs.get_mut(id) {
            job.told = Told::Unknown;
        }
        self.tell_coming(key, Level::Os, batch, coming);
        false
    }

    fn tell_outcome_of(&mut self, id: JobId, key: EffectKey, record: Record, keyed: bool) -> bool {
        if keyed {
            self.tell_log(key.0, Level::Disk, smallvec![record], Awaited::Outcome(id));
        } else {
            self.tell_coming(key, Level::Os, smallvec![record], Coming::Settled);
        }
        keyed
    }

    pub(crate) fn tell_coming(
        &mut self,
        key: EffectKey,
        level: Level,
        batch: SmallVec<[Record; 1]>,
        coming: Coming,
    ) {
        self.expect(key, coming);
        self.tell_log(key.0, level, batch, Awaited::Known(key));
    }

    /// What an effect will be when the log has all that it was told of it.
    pub(crate) fn expect(&mut self, key: EffectKey, coming: Coming) {
        let entry = self.ledger.coming.entry(key).or_insert((0, coming));
        *entry = (entry.0 + 1, coming);
    }

    pub(crate) fn tell_log(
        &mut self,
        partition: u32,
        level: Level,
        batch: SmallVec<[Record; 1]>,
        awaited: Awaited,
    ) -> Ticket {
        self.append(partition, level, batch, Then::Effect(awaited))
    }

    pub(crate) fn effects(&self, partition: u32) -> Option<&Effects> {
        Some(self.parts.get(&partition)?.folded.effects())
    }

    pub(crate) fn partition_in(&self, space: SpaceId) -> Option<u32> {
        self.space(space)?.partition
    }

    // -- answers of the log --------------------------------------------------------------------------------------------

    /// The log has what was told; what it means is folded already.
    pub(crate) fn effect_logged(
        &mut self,
        awaited: Awaited,
        placed: Option<(Ticket, Position)>,
        at: Moment,
    ) {
        match awaited {
            Awaited::Intent(job) => self.begin_intended(job, at),
            Awaited::Outcome(job) => self.hand_out(job, None, at),
            Awaited::Known(key) => self.forget_coming(key),
            Awaited::Resolved(session, key) => {
                self.forget_coming(key);
                if let Some((ticket, position)) = placed {
                    let receipt = Receipt {
                        id: key.1,
                        matched: 0,
                        position: Some(position),
                        level: Level::Disk,
                    };
                    self.notify(session, Notice::Accepted(ticket, receipt));
                }
            }
        }
    }

    /// The log does not have it.
    pub(crate) fn effect_refused(
        &mut self,
        awaited: Awaited,
        ticket: Ticket,
        error: &Error,
        at: Moment,
    ) {
        match awaited {
            Awaited::Intent(id) => {
                let Some(job) = self.jobs.get_mut(id) else {
                    return;
                };
                job.told = Told::Nothing;
                if job.stage == Stage::Planned {
                    job.stage = Stage::Unplaced;
                    self.close_job(id, Err((error.code, error.detail())), at);
                }
            }
            Awaited::Outcome(job) => {
                self.ledger.counts.unlogged += 1;
                self.hand_out(job, Some(error), at);
            }
            Awaited::Known(key) => {
                self.ledger.counts.unlogged += 1;
                self.forget_coming(key);
            }
            Awaited::Resolved(session, key) => {
                self.forget_coming(key);
                self.notify(session, Notice::Refused(ticket, error.clone()));
            }
        }
    }

    fn forget_coming(&mut self, key: EffectKey) {
        if let Some((count, _)) = self.ledger.coming.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.ledger.coming.remove(&key);
            }
        }
    }

    /// Ends a job whose outcome is in the log, or cannot be.
    fn hand_out(&mut self, id: JobId, refused: Option<&Error>, at: Moment) {
        let Some(end) = self.jobs.get_mut(id).and_then(|job| job.end.take()) else {
            return;
        };
        let end = match refused {
            None => end,
            Some(error) => {
                let message = format!("the outcome could not be logged: {}", error.message);
                let hint = "call again with the same key when the log is well";
                let detail = Detail {
                    hint: Some(hint.to_owned()),
                    ..Detail::message(message)
                };
                Err((Code::Indeterminate, detail))
            }
        };
        self.finish_job(id, end, at);
    }

    // -- work that goes on when nobody waits ---------------------------------------------------------------------------

    /// Nobody waits for this work any more, and it may still take effect.
    pub(crate) fn note_late(&mut self, lease: LeaseId, key: EffectKey) {
        self.ledger.late.insert(lease, key);
    }

    /// Work under way has ended; if nobody waited for it, what it says of its effect is written down.
    pub(crate) fn end_late(&mut self, lease: LeaseId, end: Option<&Ended>, at: Moment) {
        let Some(key) = self.ledger.late.remove(&lease) else {
            return;
        };
        let unknown = self.is_unknown(key);
        let last = end.filter(|end| unknown && is_last(end));
        let Some(end) = last else {
            return self.unblock_probe(key, at);
        };
        let (state, body) = match end {
            Ok(result) => (EffectState::Reconciled, Body::from(result.clone())),
            Err(_) => (EffectState::Failed, Body::from(Vec::new())),
        };
        let mut settled = settled(key.1, state, "provider", at);
        if let Err((code, detail)) = end {
            settled.code = code.number().into();
            settled.detail = String::from_utf8(detail.json()).unwrap_or_default();
        }
        let record = Record::Settled(settled, body);
        self.ledger.counts.reconciled += 1;
        let job = self.end_probe(key, at);
        match job.filter(|id| self.jobs.get(*id).is_some()) {
            Some(id) => {
                // A call waits for a probe, and here is the answer itself.
                if let Some(job) = self.jobs.get_mut(id) {
                    job.stage = Stage::Ending;
                    job.end = Some(end.clone());
                }
                self.tell_log(key.0, Level::Disk, smallvec![record], Awaited::Outcome(id));
            }
            None => self.tell_coming(key, Level::Os, smallvec![record], Coming::Settled),
        }
    }

    /// Whether nobody knows what became of an effect, as far as it is decided.
    pub(crate) fn is_unknown(&self, key: EffectKey) -> bool {
        match self.ledger.coming.get(&key) {
            Some((_, coming)) => *coming == Coming::Unknown,
            None => self
                .effects(key.0)
                .and_then(|effects| effects.get(key.1))
                .is_some_and(|effect| effect.state() == EffectState::Unknown),
        }
    }
}

pub(crate) fn settled(effect: u128, state: EffectState, by: &str, at: Moment) -> Settled {
    Settled {
        effect: Some(effect.into()),
        state: state.number(),
        by: by.to_owned(),
        at_ms: at.wall_ms,
        ..Settled::default()
    }
}

/// Whether an end is the last word: another call with the key is given the same. What may pass is not, and what a call was
/// cancelled with neither.
fn is_last(end: &Ended) -> bool {
    match end {
        Ok(_) => true,
        Err((Code::Indeterminate | Code::Cancelled | Code::Timeout, _)) => false,
        Err((code, detail)) => !may_pass(*code, detail),
    }
}

/// What a person can do about an effect that nobody knows the end of.
pub(crate) fn settle_hint(effect_id: u128) -> String {
    format!(
        "look at the outside world, then say it: loom effects resolve {} --done or --failed",
        show_uuid(effect_id)
    )
}

fn too_many_unknown(limits: &crate::limits::Limits) -> Error {
    let most = limits.unknown_effects;
    let message = format!("the outcome of {most} calls with a key is not known");
    Error::exhausted("unknown_effects", message)
        .field("key")
        .hint(
            "settle some: loom effects list --unknown, loom effects resolve ID --done or --failed",
        )
}
