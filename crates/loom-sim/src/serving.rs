//! Serving calls: beginning, answering, failing and losing an attempt, and what follows for the job and its provider.

use loom_core::{CallId, Code, Delivery, EffectClass, Health, LeaseId, SessionId};

use crate::event::{is_stamped, read_tag, space_name, tag};
use crate::fuse::{Fuse, blames};
use crate::health::token;
use crate::misuse::fault_of;
use crate::trace::{Check, broken, ensure};
use crate::waits::Wanted;
use crate::work::{Budget, Ending, Lapse, passes};
use crate::world::{Held, Taker, World};

impl World {
    pub(crate) fn held_by(&self, index: usize) -> usize {
        let held = self.held.values();
        held.filter(|held| held.taker == Taker::Provider(index))
            .count()
    }

    pub(crate) fn begin_work(
        &mut self,
        index: usize,
        lease: LeaseId,
        delivery: &Delivery,
    ) -> Check<usize> {
        let env = &delivery.envelope;
        let number = read_tag(b'C', &env.payload);
        let mut jobs = self.jobs.iter().enumerate().rev();
        let found = jobs.find(|(_, job)| {
            Some(job.number) == number
                && *env.topic == *job.capability
                && !job.over
                && job.lease.is_none()
        });
        let Some(at) = found.map(|(at, _)| at) else {
            return broken(
                "CALL-LATE",
                format!("work came from nowhere, twice or late: {env:?}"),
            );
        };
        self.end_overdue(at);
        let busy = self.held_by(index);
        let Some(provider) = self.providers.get(index) else {
            return broken("SIM-BOOK", "the simulator lost a provider");
        };
        ensure(busy < provider.concurrency, "LANE-PARALLEL", || {
            format!(
                "a provider has {} calls of {}",
                busy + 1,
                provider.concurrency
            )
        })?;
        let whole = provider.breaker.is_whole() || provider.deciding.is_none();
        ensure(whole, "CALL-BREAKER", || {
            format!(
                "provider {index} is tried by {:?} and given another call",
                provider.deciding
            )
        })?;
        let Some(job) = self.jobs.get(at) else {
            return broken("SIM-BOOK", "the simulator lost a job");
        };
        ensure(!job.waiters.is_empty(), "CALL-LATE", || {
            format!("job {at} was begun, and nobody waits for it")
        })?;
        let own = job.space == provider.space
            && *env.origin.namespace == space_name(provider.space)
            && env.deadline == Some(job.deadline);
        ensure(own, "EVENT-NAMESPACE", || {
            format!("job {at}, due at {:?}, came as {env:?}", job.deadline)
        })?;
        let stamped = *env.origin.sender == *job.sender
            && is_stamped(job.stamp.as_ref(), env)
            && job.stamp.as_ref().is_none_or(|s| s.thread == env.thread);
        ensure(stamped, "RUN-STAMPED", || {
            format!("job {at} of {} came as {env:?}", job.sender)
        })?;
        let version = job.asked.is_none_or(|asked| asked == provider.version)
            && job.version.is_none_or(|begun| begun == provider.version);
        ensure(version, "CALL-VERSIONS", || {
            format!(
                "job {at} asked for {:?}, began with {:?} and came to {:?}",
                job.asked, job.version, provider.version
            )
        })?;
        self.check_work(at, delivery)?;
        self.check_attempt(at, delivery.attempt)?;
        let earned = self.limits.retry_percent as u64;
        let most = self.limits.retry_saved as u64 * 100;
        let (capability, space) = (provider.capability, provider.space);
        let version = provider.version;
        let first = delivery.attempt == 1;
        if first {
            let budget = self.budget((space, capability));
            budget.low = (budget.low + earned).min(most);
            budget.high = (budget.high + earned).min(most);
        }
        self.seen.note_if("call tried again", !first);
        if let Some(provider) = self.providers.get_mut(index)
            && !provider.breaker.is_whole()
        {
            provider.deciding = Some(lease);
        }
        if let Some(job) = self.jobs.get_mut(at) {
            job.lease = Some(lease);
            job.provider = Some(index);
            job.version = Some(version);
            job.attempt = delivery.attempt;
            job.ids = Some((env.id, delivery.work.and_then(|work| work.effect)));
        }
        Ok(at)
    }

    /// What comes with the work: the stream, and the effect's id, the same for each attempt.
    fn check_work(&self, at: usize, delivery: &Delivery) -> Check {
        let (Some(job), Some(work)) = (self.jobs.get(at), delivery.work) else {
            return broken("CALL-FOREIGN", format!("job {at} came as a turn"));
        };
        let pure = job.effect() == EffectClass::Pure;
        let flows = work.streamed == job.streamed && work.credit == job.granted;
        ensure(
            flows && work.effect.is_none() == pure,
            "STREAM-CREDIT",
            || format!("job {at} was told {work:?}"),
        )?;
        let ids = (delivery.envelope.id, work.effect);
        ensure(
            job.ids.is_none_or(|known| known == ids),
            "CALL-RETRY",
            || format!("job {at} was {:?} and is {ids:?}", job.ids),
        )
    }

    /// One attempt after the other, as many as may be, of what may be done twice, when its pause is over.
    fn check_attempt(&self, at: usize, attempt: u32) -> Check {
        let Some(job) = self.jobs.get(at) else {
            return Ok(());
        };
        let told = || {
            format!(
                "job {at} of {} begins attempt {attempt} after {}",
                job.capability, job.attempt
            )
        };
        let most = u32::try_from(self.limits.call_attempts).unwrap_or(u32::MAX);
        ensure(
            attempt == job.attempt + 1 && attempt <= most,
            "CALL-RETRY",
            told,
        )?;
        let passed = |last: &Lapse| last.passes && job.is_repeatable(last.code);
        let again = job.last.as_ref().is_some_and(passed) && job.sent == 0;
        ensure(attempt == 1 || again, "CALL-RETRY", told)
    }

    pub(crate) fn budget(&mut self, key: (usize, &'static str)) -> &mut Budget {
        let start = self.limits.retry_start as u64 * 100;
        self.budgets.entry(key).or_insert(Budget {
            low: start,
            high: start,
        })
    }

    pub(crate) fn result_some(&mut self) -> Check {
        let Some((lease, held)) = self.some_held(|held| matches!(held.taker, Taker::Provider(_)))
        else {
            return Ok(());
        };
        let fails = matches!(held.taker, Taker::Provider(at)
            if self.providers.get(at).is_some_and(|provider| provider.fails));
        if fails && self.dice.chance(85) {
            self.fail_work(lease, &held)
        } else {
            self.give_result(lease, &held)
        }
    }

    /// A provider begins to fail, or does well again.
    pub(crate) fn turn_mood(&mut self) {
        let live = self.providers.iter().enumerate().filter(|(_, p)| p.live);
        let live: Vec<usize> = live.map(|(at, _)| at).collect();
        if let Some(at) = self.dice.pick(&live)
            && let Some(provider) = self.providers.get_mut(at)
        {
            provider.fails = !provider.fails;
        }
    }

    pub(crate) fn give_result(&mut self, lease: LeaseId, held: &Held) -> Check {
        let Some(at) = held.job else { return Ok(()) };
        self.end_overdue(at);
        let open = self.is_at_work(at, lease);
        let heard = self
            .core
            .result(held.session, lease, tag(b'O', at, 9), self.at);
        self.note(format!("result of {lease:?} for job {at} -> {heard:?}"));
        self.seen
            .note_if("answer of a provider that comes late", !open);
        ensure(heard == Ok(open), "CALL-LATE", || {
            format!("the result of job {at}, open {open}, was answered {heard:?}")
        })?;
        self.held.remove(&lease);
        self.past.push(lease);
        if open {
            self.judge(held.taker, (lease, None));
            let again = self.jobs.get(at).is_some_and(|job| job.attempt > 1);
            self.seen.note_if("retry that succeeded", again);
            self.end_job(at, None);
        }
        Ok(())
    }

    /// A lease ended without a result: that is an error, and not one that passes.
    pub(crate) fn end_unanswered(&mut self, lease: LeaseId, held: &Held) -> Check {
        let Some(at) = held.job.filter(|at| self.is_at_work(*at, lease)) else {
            return Ok(());
        };
        let code = Code::CapabilityError;
        self.judge(held.taker, (lease, Some(code)));
        self.lapse(at, (code, false), false, held.taker)
    }

    /// Whether this lease is the one that a job which is not over has.
    pub(crate) fn is_at_work(&self, at: usize, lease: LeaseId) -> bool {
        self.jobs
            .get(at)
            .is_some_and(|job| job.lease == Some(lease) && !job.waiters.is_empty())
    }

    /// All of a job's calls end so.
    fn end_job(&mut self, at: usize, ending: Ending) {
        let Some(job) = self.jobs.get_mut(at) else {
            return;
        };
        job.over = true;
        job.lease = None;
        for call in std::mem::take(&mut job.waiters) {
            if let Some(served) = self.waits.served(call) {
                served.ending = vec![ending];
            }
        }
    }

    pub(crate) fn fail_work(&mut self, lease: LeaseId, held: &Held) -> Check {
        const CODES: &[Code] = &[
            Code::HandlerError,
            Code::CapabilityError,
            Code::ToolError,
            Code::InvalidParams,
            Code::ProviderUnavailable,
            Code::ProviderUnavailable,
            Code::Exhausted,
            Code::Timeout,
            Code::Indeterminate,
        ];
        let Some(at) = held.job else { return Ok(()) };
        self.end_overdue(at);
        let code = self.dice.pick(CODES).unwrap_or(Code::ToolError);
        let said = self
            .dice
            .pick(&[None, None, None, Some(true), Some(false)])
            .flatten();
        let open = self.is_at_work(at, lease);
        let before = self.core.stats().calls.retried;
        let heard = self
            .core
            .fail(held.session, fault_of(lease, code, said), self.at);
        let retried = self.core.stats().calls.retried - before;
        self.note(format!(
            "fail {lease:?} of job {at} {code:?} {said:?} -> {heard:?}, retried {retried}"
        ));
        ensure(heard == Ok(open), "CALL-LATE", || {
            format!("the failure of job {at}, open {open}, was answered {heard:?}")
        })?;
        self.held.remove(&lease);
        self.past.push(lease);
        if !open {
            return ensure(retried == 0, "CALL-RETRY", || {
                format!("job {at} was over, and is tried again")
            });
        }
        self.judge(held.taker, (lease, Some(code)));
        self.lapse(at, (code, passes(code, said)), retried == 1, held.taker)
    }

    /// An attempt has failed: it is tried again only where that is allowed, and always where nothing stands against it.
    fn lapse(&mut self, at: usize, why: (Code, bool), retried: bool, taker: Taker) -> Check {
        let (code, passing) = why;
        let (now, limits) = (self.at.now, self.limits.clone());
        let most = u32::try_from(limits.call_attempts).unwrap_or(u32::MAX);
        let Taker::Provider(index) = taker else {
            return Ok(());
        };
        let reachable = self.is_usable(index)
            && self
                .providers
                .get(index)
                .is_some_and(|p| p.breaker.is_whole());
        let Some(job) = self.jobs.get_mut(at) else {
            return Ok(());
        };
        job.unknown |= code == Code::Indeterminate;
        let allowed = passing && job.is_repeatable(code) && job.sent == 0 && job.attempt < most;
        let bound = limits.retry_base_ms << job.attempt.saturating_sub(1);
        let bound = bound.min(limits.retry_cap_seconds * 1_000);
        let timely = job.deadline > now.plus_millis(bound);
        let open = job.deadline > now;
        let key = (job.space, job.capability);
        let ending = job.lasting(code, passing);
        job.lease = None;
        job.last = Some(Lapse {
            code,
            passes: passing,
        });
        let budget = *self.budget(key);
        let told =
            || format!("job {at} failed with {code:?}, retried {retried}, budget {budget:?}");
        ensure(!retried || (allowed && open), "CALL-RETRY", told)?;
        ensure(!retried || budget.high >= 100, "CALL-BUDGET", told)?;
        let due = allowed && timely && reachable && budget.low >= 100;
        ensure(retried || !due, "CALL-RETRY", told)?;
        self.seen.note_if(
            "retry without budget",
            !retried && allowed && timely && budget.high < 100,
        );
        if retried {
            let budget = self.budget(key);
            budget.low = budget.low.saturating_sub(100);
            budget.high -= 100;
            self.blur(key);
        } else {
            self.end_job(at, Some(ending));
        }
        Ok(())
    }

    /// Its provider went while it worked on a job: that is tried again, or has ended; which of them is not told.
    pub(crate) fn lose_work(&mut self, at: usize, told: Option<SessionId>) {
        let Some(job) = self.jobs.get_mut(at) else {
            return;
        };
        let Some(lease) = job.lease else { return };
        let code = job.without_answer(Code::ProviderUnavailable);
        job.lease = None;
        job.unknown = true;
        let again = job.is_repeatable(code) && job.sent == 0;
        job.last = Some(Lapse { code, passes: true });
        let key = (job.space, job.capability);
        if let Some(session) = told {
            self.waits.cancels_due.insert((session, lease));
        }
        if again {
            self.budget(key).low = 0;
            self.blur(key);
            self.seen
                .note("call lost with its provider may be tried again");
        } else {
            self.end_job(at, Some(code));
        }
    }

    /// Some of its calls may have gone elsewhere, by turns that are not known.
    pub(crate) fn blur(&mut self, key: (usize, &'static str)) {
        if let Some(table) = self.tables.get_mut(&key) {
            table.saved = None;
        }
    }

    /// What the end of an attempt says of its provider.
    pub(crate) fn judge(&mut self, taker: Taker, end: (LeaseId, Ending)) {
        let (lease, code) = end;
        let Taker::Provider(index) = taker else {
            return;
        };
        let may_blow = self.may_blow(index);
        let (now, limits) = (self.at.now, self.limits.clone());
        let Some(provider) = self.providers.get_mut(index).filter(|p| p.live) else {
            return;
        };
        let tried = provider.deciding == Some(lease);
        if tried {
            provider.deciding = None;
        }
        let Some(failed) = blames(code) else {
            if tried {
                provider.breaker.fuse = Fuse::Blown { until: now };
            }
            return;
        };
        let was = provider.breaker.is_whole();
        let blew = provider
            .breaker
            .end((failed, tried), may_blow, (now, &limits));
        let key = (provider.space, provider.capability);
        let mended = !was && provider.breaker.is_whole();
        self.seen
            .note_if("half-open probe went well", mended && !failed);
        self.seen.note_if("half-open probe failed", blew && tried);
        self.seen.note_if("provider ejected", blew);
        if blew {
            *self.waits.gone.entry(key).or_default() += 1;
            self.blur(key);
        }
    }

    /// Whether one more may be ejected: never more than half of a version's, unless it is alone.
    fn may_blow(&self, index: usize) -> bool {
        let Some(own) = self.providers.get(index) else {
            return false;
        };
        let same: Vec<usize> = self
            .providers
            .iter()
            .enumerate()
            .filter(|(_, p)| {
                p.live
                    && (p.space, p.capability, p.version)
                        == (own.space, own.capability, own.version)
            })
            .map(|(at, _)| at)
            .collect();
        let others = same.iter().filter(|at| **at != index);
        let blown = others.filter(|at| {
            self.providers
                .get(**at)
                .is_some_and(|p| !p.breaker.is_whole())
        });
        same.len() == 1 || (blown.count() + 1) * 2 <= same.len()
    }

    /// Calls of a job whose time is up end when somebody looks at it.
    pub(crate) fn end_overdue(&mut self, at: usize) {
        let waiters = self.jobs.get(at).map(|job| job.waiters.clone());
        for call in waiters.unwrap_or_default() {
            self.end_if_over(call);
        }
    }

    /// A call ends without an answer; with the last of its calls the job goes, and its provider is told.
    pub(crate) fn end_waiter(&mut self, call: CallId, code: Code) {
        let wait = self.waits.all.get(&call);
        let overdue = wait.is_some_and(|wait| wait.deadline <= self.at.now);
        let Some(at) = self.waits.served(call).map(|served| served.job) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(at) else {
            return;
        };
        if !job.waiters.contains(&call) {
            return;
        }
        let led = job.waiters.first() == Some(&call);
        job.waiters.retain(|other| *other != call);
        let left = led && !job.waiters.is_empty() && code == Code::Cancelled;
        self.seen.note_if("join whose leader left", left);
        let gone = self.waits.gone.get(&(job.space, job.capability));
        let mut endings = job.may_end(gone.copied().unwrap_or_default());
        endings.push(Some(job.without_answer(code)));
        if job.lease.is_none() && overdue {
            // Who looked for work may have ended it unseen.
            endings.push(Some(job.without_answer(Code::Timeout)));
        }
        if let Some(served) = self.waits.served(call) {
            served.ending = endings;
        }
        let Some(job) = self.jobs.get_mut(at).filter(|job| job.waiters.is_empty()) else {
            return;
        };
        job.over = true;
        let lease = job.lease.take();
        self.abandon(lease, code);
    }

    fn abandon(&mut self, lease: Option<LeaseId>, code: Code) {
        let Some(lease) = lease else { return };
        let Some(held) = self.held.get(&lease) else {
            return;
        };
        let (session, taker) = (held.session, held.taker);
        self.waits.cancels_due.insert((session, lease));
        self.judge(taker, (lease, Some(code)));
    }

    pub(crate) fn chunk_some(&mut self) -> Check {
        let work = self.some_held(|held| matches!(held.taker, Taker::Provider(_)));
        let Some((lease, held)) = work else {
            return Ok(());
        };
        let Some(at) = held.job else { return Ok(()) };
        let open = self.is_at_work(at, lease);
        let Some(job) = self.jobs.get_mut(at) else {
            return Ok(());
        };
        let (streamed, credit) = (job.streamed, job.sent < job.granted);
        let next = usize::try_from(job.sent).unwrap_or(usize::MAX);
        let went = self.core.chunk(held.session, lease, tag(b'K', next, 9));
        self.trace
            .note(format!("chunk {next} of job {at} -> {went:?}"));
        let meant = match &went {
            Ok(went) => *went == (open && credit) && (streamed || !open),
            Err(error) => !streamed && open && error.code == Code::InvalidParams,
        };
        ensure(meant, "STREAM-CREDIT", || {
            format!("chunk {next} of job {at}, open {open}, credit {credit}: {went:?}")
        })?;
        self.seen
            .note_if("chunk waited for credit", open && streamed && !credit);
        if open && streamed {
            job.sent += u64::from(credit);
            job.starved |= !credit;
        }
        Ok(())
    }

    /// A chunk was read by who calls.
    pub(crate) fn hear_chunk(&mut self, session: SessionId, call: CallId, bytes: &[u8]) -> Check {
        let wait = self.waits.all.get(&call);
        let open = wait.is_some_and(|wait| wait.session == session && !wait.told);
        let job = wait.and_then(|wait| match &wait.wanted {
            Wanted::Call(served) => Some(served.job),
            Wanted::Request(_) => None,
        });
        let Some(job) = job.and_then(|at| self.jobs.get_mut(at)) else {
            return broken(
                "STREAM-CREDIT",
                format!("a chunk of {call:?}, which is no call"),
            );
        };
        let number = read_tag(b'K', bytes);
        let next = u64::try_from(number.unwrap_or(usize::MAX)) == Ok(job.got);
        ensure(
            open && next && job.got < job.granted,
            "STREAM-CREDIT",
            || {
                format!(
                    "chunk {number:?} of {call:?}: {} of {} read",
                    job.got, job.granted
                )
            },
        )?;
        job.got += 1;
        Ok(())
    }

    /// Holds the end of a call against what is known of its job.
    pub(crate) fn check_served(&self, call: CallId, code: Ending, body: &[u8]) -> Check {
        let Some(wait) = self.waits.all.get(&call) else {
            return Ok(());
        };
        let Wanted::Call(served) = &wait.wanted else {
            return Ok(());
        };
        let Some(job) = self.jobs.get(served.job) else {
            return broken("SIM-BOOK", "the simulator lost a job");
        };
        let gone = self.waits.gone.get(&(job.space, job.capability));
        let mut meant = served.ending.clone();
        if meant.is_empty() {
            meant = job.may_end(gone.copied().unwrap_or_default());
            if wait.deadline <= self.at.now {
                meant.push(Some(job.without_answer(Code::Timeout)));
            }
        }
        ensure(meant.contains(&code), "CALL-ONE-OUTCOME", || {
            format!(
                "call {call:?} of job {} ended with {code:?}, and should with {meant:?}",
                served.job
            )
        })?;
        let own = code.is_some() || read_tag(b'O', body) == Some(served.job);
        ensure(own, "CALL-LATE", || {
            format!("call {call:?} got the result of another one")
        })?;
        ensure(
            code.is_some() || job.got == job.sent,
            "STREAM-CREDIT",
            || {
                format!(
                    "call {call:?} ended after {} of {} chunks",
                    job.got, job.sent
                )
            },
        )
    }

    /// What the directory shows of each provider is what follows from how its calls ended.
    pub(crate) fn observe(&mut self) -> Check {
        for (handle, shown) in self.shown_capabilities() {
            let Some(provider) = self
                .providers
                .iter_mut()
                .find(|p| p.live && p.handle == handle)
            else {
                return broken(
                    "DIRECTORY-LIST",
                    format!("{handle:?} is shown as {shown:?}"),
                );
            };
            let deciding = provider.deciding.is_some();
            if provider.health == Health::Up {
                provider.breaker.show(&shown, deciding, self.at.now)?;
            } else {
                ensure(shown == token(provider.health), "DIRECTORY-LIST", || {
                    format!("{handle:?} is {:?} and shown as {shown:?}", provider.health)
                })?;
            }
            self.watch.fare(handle, &shown);
        }
        Ok(())
    }
}
