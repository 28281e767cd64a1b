//! Probes: a provider is asked what became of an effect that nobody knows of, a few at a time, and not for ever.

use std::sync::Arc;

use smallvec::smallvec;

use crate::arena::{Handle, JobId, ProviderId, SessionId};
use crate::broker::Provider;
use crate::bus::Keeper;
use crate::core::{Core, Kind};
use crate::effect::{Coming, EffectKey, Told, settle_hint, settled};
use crate::error::{Code, Detail, Error, Result};
use crate::job::Stage;
use crate::notice::Notice;
use crate::partition::{Effect, EffectState};
use crate::record::{Body, Level, Record};
use crate::space::SpaceId;
use crate::time::{Moment, Nanos};
use crate::timers::Timer;
use crate::version::Version;

/// What a probe says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probed {
    /// It was done, with this result.
    Done(Box<[u8]>),
    /// It was not done.
    NotDone,
    /// It cannot be told.
    Unknown,
    /// The probe itself failed: it is asked again, a few times.
    Failed,
}

/// The answer of a provider's probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// The provider that was asked.
    pub handle: Handle,
    /// About which effect.
    pub effect: u128,
    /// What it says.
    pub says: Probed,
}

/// A question to a provider: was this effect done?
pub(crate) struct Probe {
    /// Who is asked, and until when its answer counts.
    asked: Option<(ProviderId, Nanos)>,
    /// When it is asked again.
    again: Option<Nanos>,
    attempt: u32,
    /// The call that waits for the answer.
    pub(crate) job: Option<JobId>,
}

impl Core {
    /// Who can tell whether an effect of this version was done.
    pub(crate) fn find_prober(
        &self,
        space: SpaceId,
        name: &str,
        version: &Version,
    ) -> Option<ProviderId> {
        let release = self.release(space, name, version)?;
        let probers = release
            .providers
            .iter()
            .copied()
            .filter(|id| self.providers.get(*id).is_some_and(Provider::can_probe));
        probers.min_by_key(|id| {
            self.providers
                .get(*id)
                .map_or(0, |provider| provider.probing.len())
        })
    }

    /// Whether a provider can tell what became of a job.
    pub(crate) fn is_probed(&self, id: JobId) -> bool {
        self.jobs.get(id).is_some_and(|job| {
            self.find_prober(job.space, &job.env.topic, &job.version)
                .is_some()
        })
    }

    /// Lets a job wait for what a probe says, if there is one. It is told of as unknown by then.
    pub(crate) fn probe_for(&mut self, id: JobId, at: Moment) -> bool {
        let Some(job) = self.jobs.get(id) else {
            return false;
        };
        let (space, name) = (job.space, Arc::clone(&job.env.topic));
        let version = Arc::clone(&job.version);
        let Some(key) = job.effect_key() else {
            return false;
        };
        if self.find_prober(space, &name, &version).is_none() {
            return false;
        }
        let Some(job) = self.jobs.get_mut(id) else {
            return false;
        };
        job.stage = Stage::Probing;
        job.unknown = true;
        job.told = Told::Unknown;
        let probe = self.ledger.probes.entry(key).or_insert(Probe {
            asked: None,
            again: None,
            attempt: 0,
            job: None,
        });
        probe.job = Some(id);
        if probe.asked.is_none() && probe.again.is_none() {
            self.ask_probe(key, at);
        }
        true
    }

    /// Probes an effect that no call waits for.
    fn probe_unknown(&mut self, key: EffectKey, at: Moment) {
        if self.ledger.probes.contains_key(&key) || !self.is_unknown(key) {
            return;
        }
        let probe = Probe {
            asked: None,
            again: None,
            attempt: 0,
            job: None,
        };
        self.ledger.probes.insert(key, probe);
        self.ask_probe(key, at);
    }

    /// Asks a provider, unless work under way may still change the answer.
    fn ask_probe(&mut self, key: EffectKey, at: Moment) {
        if self.ledger.late.values().any(|late| *late == key) {
            return;
        }
        let Some((name, version)) = self.probed_version(key) else {
            return self.give_up_probe(key, at);
        };
        let prober = self
            .space_of(key.0)
            .and_then(|space| self.find_prober(space, &name, &version));
        let Some(provider) = prober else {
            return self.give_up_probe(key, at);
        };
        let until = at.now.plus_millis(self.limits.probe_seconds * 1_000);
        let most = self.limits.probes;
        let Some(found) = self.providers.get_mut(provider) else {
            return;
        };
        if found.probing.len() >= most {
            found.to_probe.push_back(key.1);
            return;
        }
        found.probing.insert(key.1);
        let (session, handle) = (found.session, found.handle);
        if let Some(probe) = self.ledger.probes.get_mut(&key) {
            probe.asked = Some((provider, until));
            probe.attempt += 1;
        }
        self.ledger.counts.probed += 1;
        self.timers.add(until, Timer::Probe(key.0, key.1));
        self.notify(session, Notice::Due(self.limits.probe_seconds * 1_000));
        self.notify(session, Notice::Probe(handle, key.1));
    }

    fn probed_version(&self, key: EffectKey) -> Option<(Arc<str>, Arc<Version>)> {
        let job = self.ledger.probes.get(&key).and_then(|probe| probe.job);
        if let Some(job) = job.and_then(|job| self.jobs.get(job)) {
            return Some((Arc::clone(&job.env.topic), Arc::clone(&job.version)));
        }
        let effect = self.effects(key.0)?.get(key.1)?;
        let version = Version::read(&effect.intent.version);
        Some((effect.intent.capability.as_str().into(), Arc::new(version)))
    }

    /// What kept a probe from being asked is over.
    pub(crate) fn unblock_probe(&mut self, key: EffectKey, at: Moment) {
        match self.ledger.probes.get(&key) {
            Some(probe) if probe.asked.is_none() && probe.again.is_none() => {
                self.ask_probe(key, at);
            }
            Some(_) => {}
            None => self.probe_unknown(key, at),
        }
    }

    /// What a provider's probe says. `false`: nobody asked, or not any more.
    ///
    /// # Errors
    /// `FENCED` for a handle of another session; `INVALID_PARAMS` for one that is no provider, or a result over the limit.
    pub fn probed(&mut self, session: SessionId, answer: ProbeAnswer, at: Moment) -> Result<bool> {
        let ProbeAnswer {
            handle,
            effect,
            says,
        } = answer;
        let found = self.registration(session, handle)?;
        let (space, kind) = (found.space, found.kind);
        let Kind::Provider(provider) = kind else {
            return Err(Error::invalid("handle", "only a provider is probed"));
        };
        if let Probed::Done(result) = &says {
            self.check_payload(result, Keeper::Log)?;
        }
        let Some(partition) = self.partition_in(space) else {
            return Ok(false);
        };
        let key = (partition, effect);
        let asked = self.ledger.probes.get(&key).and_then(|probe| probe.asked);
        if asked.is_none_or(|(id, until)| id != provider || until <= at.now) {
            return Ok(false);
        }
        self.free_prober(key, at);
        self.hear_probe(key, says, at);
        self.flush(at);
        Ok(true)
    }

    /// A probe has not answered in time, or is asked again.
    pub(crate) fn probe_is_due(&mut self, key: EffectKey, at: Moment) {
        let Some(probe) = self.ledger.probes.get_mut(&key) else {
            return;
        };
        if probe.again.take().is_some() {
            return self.ask_probe(key, at);
        }
        self.free_prober(key, at);
        self.hear_probe(key, Probed::Failed, at);
    }

    /// The provider that was asked may be asked about another one.
    fn free_prober(&mut self, key: EffectKey, at: Moment) {
        let Some((id, until)) = self
            .ledger
            .probes
            .get_mut(&key)
            .and_then(|probe| probe.asked.take())
        else {
            return;
        };
        self.timers.remove(until, Timer::Probe(key.0, key.1));
        let Some(provider) = self.providers.get_mut(id) else {
            return;
        };
        provider.probing.remove(&key.1);
        while let Some(next) = self
            .providers
            .get_mut(id)
            .and_then(|provider| provider.to_probe.pop_front())
        {
            let next = (key.0, next);
            // One that is settled meanwhile is asked about no more.
            if self.ledger.probes.contains_key(&next) {
                return self.ask_probe(next, at);
            }
        }
    }

    fn hear_probe(&mut self, key: EffectKey, says: Probed, at: Moment) {
        let Some(probe) = self.ledger.probes.get_mut(&key) else {
            return;
        };
        if says == Probed::Failed && (probe.attempt as usize) < self.limits.probe_attempts {
            let pause = self.limits.probe_pause_ms << probe.attempt.saturating_sub(1).min(16);
            let until = at.now.plus_millis(pause);
            probe.again = Some(until);
            self.timers.add(until, Timer::Probe(key.0, key.1));
            self.tell_due(key, pause);
            return;
        }
        let job = self
            .end_probe(key, at)
            .filter(|id| self.jobs.get(*id).is_some());
        if !self.is_unknown(key) && job.is_none() {
            return; // somebody else has settled it
        }
        match (says, job) {
            (Probed::Done(result), Some(job)) => self.close_job(job, Ok(result), at),
            (Probed::Done(result), None) => {
                self.ledger.counts.reconciled += 1;
                self.settle_as(key, EffectState::Reconciled, Body::from(result), at);
            }
            (Probed::NotDone, job) => {
                self.ledger.counts.refuted += 1;
                self.settle_as(key, EffectState::Failed, Body::from(Vec::new()), at);
                if let Some(job) = job {
                    self.resume_job(job, at);
                }
            }
            (Probed::Unknown | Probed::Failed, Some(job)) => self.leave_unknown(job, at),
            (Probed::Unknown | Probed::Failed, None) => {}
        }
    }

    fn tell_due(&mut self, key: EffectKey, millis: u64) {
        let Some((name, version)) = self.probed_version(key) else {
            return;
        };
        let prober = self
            .space_of(key.0)
            .and_then(|space| self.find_prober(space, &name, &version));
        if let Some(session) = prober.and_then(|id| Some(self.providers.get(id)?.session)) {
            self.notify(session, Notice::Due(millis));
        }
    }

    fn settle_as(&mut self, key: EffectKey, state: EffectState, body: Body, at: Moment) {
        let record = Record::Settled(settled(key.1, state, "probe", at), body);
        let coming = if state == EffectState::Failed {
            Coming::Nothing
        } else {
            Coming::Settled
        };
        self.tell_coming(key, Level::Os, smallvec![record], coming);
    }

    /// A job for which a probe found that nothing was done goes on, if it may be tried once more.
    fn resume_job(&mut self, id: JobId, at: Moment) {
        let most = self.limits.call_attempts;
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        job.stage = Stage::Unplaced;
        job.unknown = false;
        job.told = Told::Nothing;
        if (job.attempt as usize) < most {
            return self.place_job(id, at);
        }
        let message = format!("{most} attempts were lost, and none of them took effect");
        let detail = Detail::message(message);
        self.close_job(id, Err((Code::ProviderUnavailable, detail)), at);
    }

    /// Nobody could tell a job what became of its effect.
    pub(crate) fn leave_unknown(&mut self, id: JobId, at: Moment) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        job.stage = Stage::Unplaced;
        let message = format!(
            "a call of {:?} was begun; whether it took effect is not known, and its probe cannot tell",
            job.env.topic
        );
        let hint = settle_hint(job.effect_id);
        let detail = Detail {
            hint: Some(hint),
            ..Detail::message(message)
        };
        self.close_job(id, Err((Code::Indeterminate, detail)), at);
    }

    /// There is nobody left to ask.
    fn give_up_probe(&mut self, key: EffectKey, at: Moment) {
        if let Some(job) = self.end_probe(key, at) {
            self.leave_unknown(job, at);
        }
    }

    /// Forgets a probe; says which call waits for it.
    pub(crate) fn end_probe(&mut self, key: EffectKey, at: Moment) -> Option<JobId> {
        self.free_prober(key, at);
        let probe = self.ledger.probes.remove(&key)?;
        if let Some(until) = probe.again {
            self.timers.remove(until, Timer::Probe(key.0, key.1));
        }
        probe.job
    }

    /// No call waits for a probe any more; it goes on for the ledger.
    pub(crate) fn leave_probe(&mut self, job: JobId, key: EffectKey) {
        if let Some(probe) = self.ledger.probes.get_mut(&key)
            && probe.job == Some(job)
        {
            probe.job = None;
        }
    }

    /// A provider has come that can tell: it is asked about all that nobody knows of.
    pub(crate) fn probe_all(&mut self, id: ProviderId, at: Moment) {
        let Some(provider) = self
            .providers
            .get(id)
            .filter(|provider| provider.can_probe())
        else {
            return;
        };
        let (space, name) = (provider.space, Arc::clone(&provider.capability));
        let version = Arc::clone(&provider.version);
        let Some(partition) = self.partition_in(space) else {
            return;
        };
        let Some(effects) = self.effects(partition) else {
            return;
        };
        let coming = self
            .ledger
            .coming
            .range((partition, 0)..=(partition, u128::MAX));
        let coming = coming.filter_map(|((_, effect), _)| effects.get(*effect));
        let unknown = effects.unknown().chain(coming).filter(|effect| {
            *effect.intent.capability == *name && *effect.intent.version == *version.text
        });
        let unknown: Vec<u128> = unknown.map(Effect::id).collect();
        for effect in unknown {
            self.probe_unknown((partition, effect), at);
        }
    }

    /// A provider goes: what it was asked is asked of another one.
    pub(crate) fn lose_probes(&mut self, id: ProviderId, at: Moment) {
        let Some(provider) = self.providers.get_mut(id) else {
            return;
        };
        let space = provider.space;
        let queued = std::mem::take(&mut provider.to_probe);
        let asked = std::mem::take(&mut provider.probing);
        let Some(partition) = self.partition_in(space) else {
            return;
        };
        for effect in asked {
            let key = (partition, effect);
            if let Some(probe) = self.ledger.probes.get_mut(&key)
                && let Some((_, until)) = probe.asked.take()
            {
                self.timers.remove(until, Timer::Probe(partition, effect));
                self.ask_probe(key, at);
            }
        }
        for effect in queued {
            self.ask_probe((partition, effect), at);
        }
    }
}
