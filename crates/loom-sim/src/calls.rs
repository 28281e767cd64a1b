//! Calls and streams: calling, granting credit, cancelling; who gets a call, and who joins one.

use loom_core::{CallId, CapabilityStats, Code, Error, Health, Invoke, Nanos};

use crate::event::{Stamp, space_name, tag};
use crate::habits::Habits;
use crate::publishing::From;
use crate::trace::{Check, broken, ensure};
use crate::waits::{Served, Wanted};
use crate::work::Job;
use crate::world::World;

pub(crate) const CAPABILITIES: &[&str] = &["pure.look", "same.put", "act.send"];
/// From the oldest to the newest.
pub(crate) const VERSIONS: &[&str] = &["1", "2-beta", "2", "10"];
pub(crate) const NAMES: &[&str] = &["p0", "p1", "p2"];
/// Idempotency keys, each with the version that is asked for with it.
const CALL_KEYS: &[(&str, Option<&str>)] = &[("k0", None), ("k1", None), ("k2", Some("1"))];

/// A call as it is made.
pub(crate) struct Draft {
    from: From,
    capability: &'static str,
    version: Option<&'static str>,
    key: Option<&'static str>,
    number: usize,
    credit: u64,
    deadline: Nanos,
    over: bool,
}

/// One who may be given a call, and how much it has to do.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    index: usize,
    outstanding: usize,
    name: &'static str,
}

/// Who may be given a call.
enum Outlook {
    Unknown,
    Nobody,
    Full,
    Some(Vec<Candidate>),
}

impl World {
    pub(crate) fn invoke(&mut self, habits: &Habits) -> Check {
        let Some(from) = self.some_sender(40) else {
            return Ok(());
        };
        let capability = self.dice.word(CAPABILITIES);
        let (timeout_ms, deadline) = self.draw_deadline(&from);
        let most = self.limits.stream_chunks_max as u64;
        let streamed = self.dice.chance(30);
        let credit = if streamed {
            self.dice.between(1, most)
        } else {
            0
        };
        let keyed = self.dice.chance(habits.joined);
        let key = self.dice.pick(CALL_KEYS).filter(|_| keyed);
        let asked = self.dice.pick(VERSIONS).filter(|_| self.dice.chance(25));
        let version = key.map_or(asked, |(_, version)| version);
        let key = key.map(|(key, _)| key);
        let twin = self.twins((from.space, capability, key)).last().copied();
        let same = twin.filter(|_| self.dice.chance(75));
        let number = same
            .and_then(|job| self.jobs.get(job))
            .map_or(self.jobs.len(), |job| job.number);
        let over = self.hops_over(&from);
        let draft = Draft {
            from,
            capability,
            version,
            key,
            number,
            credit,
            deadline,
            over,
        };
        let before = self.core.stats();
        let outlook = self.outlook(&draft, &before.capabilities);
        let from = &draft.from;
        let call = self.core.call(
            from.session,
            Invoke {
                sender: from.handle,
                turn: from.turn.as_ref().map(|(lease, _)| *lease),
                capability,
                version,
                payload: tag(b'C', number, 9),
                timeout_ms,
                key,
                credit,
            },
            self.at,
        );
        self.note(format!(
            "call {number} {capability} {version:?} {key:?} {timeout_ms} ms -> {call:?}"
        ));
        let call = match call {
            Ok(call) => call,
            Err(error) => return self.check_not_called(&draft, &outlook, &error),
        };
        let after = self.core.stats();
        let joined = after.calls.joined > before.calls.joined;
        let job = if joined {
            self.join(&draft)?
        } else {
            self.check_placed(&draft, &outlook, &before.capabilities, &after.capabilities)?;
            self.open_job(&draft)?
        };
        if let Some(found) = self.jobs.get_mut(job) {
            found.waiters.push(call);
            found.deadline = found.deadline.max(draft.deadline);
        }
        let served = Served {
            job,
            ending: Vec::new(),
        };
        self.open_wait(call, &draft.from, draft.deadline, Wanted::Call(served))
    }

    /// Jobs that have a key and may not be over, the newest last.
    fn twins(&self, of: (usize, &str, Option<&str>)) -> Vec<usize> {
        let (space, capability, key) = of;
        let jobs = self.jobs.iter().enumerate();
        let twins = jobs.filter(|(_, job)| {
            !job.over
                && key.is_some()
                && (job.space, job.capability, job.key) == (space, capability, key)
        });
        twins.map(|(at, _)| at).collect()
    }

    fn join(&mut self, draft: &Draft) -> Check<usize> {
        let twins = self.twins((draft.from.space, draft.capability, draft.key));
        let twin = twins
            .last()
            .copied()
            .and_then(|at| Some((at, self.jobs.get(at)?)));
        let Some((at, job)) = twin else {
            return broken("CALL-JOIN", "a call has joined one that there is not");
        };
        let same = job.number == draft.number && !job.streamed && draft.credit == 0;
        ensure(same, "CALL-JOIN", || {
            format!(
                "call {} has joined {}, with other arguments, or a stream",
                draft.number, job.number
            )
        })?;
        ensure(!self.waits_for_job(draft, at), "CALL-JOIN", || {
            format!("call {} waits for the job that makes it", draft.number)
        })?;
        self.seen.note("call joined one in flight");
        Ok(at)
    }

    fn open_job(&mut self, draft: &Draft) -> Check<usize> {
        let from = &draft.from;
        let key = (from.space, draft.capability);
        for twin in self.twins((key.0, key.1, draft.key)) {
            // There is one job of a key at a time: the one before has ended unseen.
            let known = self.jobs.get(twin).is_some_and(|job| job.lease.is_some());
            ensure(!known, "CALL-JOIN", || {
                format!("call {} did not join the one with its key", draft.number)
            })?;
            if let Some(job) = self.jobs.get_mut(twin) {
                job.over = true;
            }
        }
        self.jobs.push(Job {
            number: draft.number,
            space: from.space,
            capability: draft.capability,
            asked: draft.version,
            key: draft.key,
            sender: from.sender.clone(),
            stamp: from
                .turn
                .as_ref()
                .map(|(_, held)| Stamp::of(&held.envelope)),
            streamed: draft.credit > 0,
            deadline: draft.deadline,
            waiters: Vec::new(),
            lease: None,
            provider: None,
            version: None,
            attempt: 0,
            ids: None,
            unknown: false,
            last: None,
            gone_before: self.waits.gone.get(&key).copied().unwrap_or_default(),
            over: false,
            granted: draft.credit,
            sent: 0,
            got: 0,
            starved: false,
        });
        Ok(self.jobs.len() - 1)
    }

    fn check_not_called(&mut self, draft: &Draft, outlook: &Outlook, error: &Error) -> Check {
        let twins = self.twins((draft.from.space, draft.capability, draft.key));
        let sure = twins
            .iter()
            .any(|at| self.jobs.get(*at).is_some_and(|job| job.lease.is_some()));
        let conflict = twins
            .iter()
            .filter_map(|at| self.jobs.get(*at))
            .any(|job| job.number != draft.number || job.streamed || draft.credit > 0);
        let circle = twins.iter().any(|at| self.waits_for_job(draft, *at));
        let meant = match (error.code, error.limit) {
            (Code::Exhausted, Some("hops")) => draft.over,
            (Code::Exhausted, Some("pending_calls")) => true,
            (Code::Exhausted, Some("provider_queue")) => !sure && matches!(outlook, Outlook::Full),
            (Code::NotFound, _) => !sure && matches!(outlook, Outlook::Unknown),
            (Code::ProviderUnavailable, _) => !sure && matches!(outlook, Outlook::Nobody),
            (Code::Conflict, _) => conflict,
            (Code::Deadlock, _) => circle,
            _ => false,
        };
        let code = error.code;
        self.seen
            .note_if("join with other arguments refused", code == Code::Conflict);
        self.seen
            .note_if("call that waits for itself refused", code == Code::Deadlock);
        self.seen.note_if(
            "call refused, nobody is usable",
            code == Code::ProviderUnavailable,
        );
        ensure(meant, "CALL-UNKNOWN", || {
            format!("call {} of {}: {error:?}", draft.number, draft.capability)
        })
    }

    /// Whether the turn that calls is, at some remove, part of this job.
    fn waits_for_job(&self, draft: &Draft, job: usize) -> bool {
        let mut next: Vec<_> = draft.from.turn.iter().map(|(lease, _)| *lease).collect();
        while let Some(held) = next.pop().and_then(|lease| self.held.get(&lease)) {
            if held.job == Some(job) {
                return true;
            }
            next.extend(self.parents(held));
        }
        false
    }

    fn rows<'a>(draft: &Draft, all: &'a [CapabilityStats]) -> Vec<&'a CapabilityStats> {
        let namespace = space_name(draft.from.space);
        let own = all.iter().filter(|row| {
            row.namespace == namespace
                && row.name == draft.capability
                && draft.version.is_none_or(|version| row.version == version)
        });
        own.collect()
    }

    /// Those who offer one version, with what each has to do.
    fn providers_of(&self, draft: &Draft, row: &CapabilityStats) -> Vec<Candidate> {
        let live = self.providers.iter().enumerate().filter(|(_, p)| {
            p.live
                && (p.space, p.capability) == (draft.from.space, draft.capability)
                && p.version == row.version
        });
        let counts = row.providers.iter().map(|provider| provider.outstanding);
        live.zip(counts)
            .map(|((index, provider), outstanding)| Candidate {
                index,
                outstanding,
                name: provider.name,
            })
            .collect()
    }

    fn outlook(&self, draft: &Draft, all: &[CapabilityStats]) -> Outlook {
        let key = (draft.from.space, draft.capability);
        let known = self.providers.iter().any(|p| {
            (p.space, p.capability) == key
                && draft.version.is_none_or(|version| p.version == version)
        });
        if !known {
            return Outlook::Unknown;
        }
        let rows = Self::rows(draft, all);
        for version in VERSIONS.iter().rev() {
            let Some(row) = rows.iter().find(|row| row.version == *version) else {
                continue;
            };
            let mut usable = self.providers_of(draft, row);
            usable.retain(|candidate| self.is_usable(candidate.index));
            if usable.is_empty() {
                continue;
            }
            usable.retain(|candidate| {
                let held = self.held_by(candidate.index);
                candidate.outstanding - held < self.limits.provider_queue
            });
            return if usable.is_empty() {
                Outlook::Full
            } else {
                Outlook::Some(usable)
            };
        }
        Outlook::Nobody
    }

    pub(crate) fn is_usable(&self, index: usize) -> bool {
        self.providers.get(index).is_some_and(|provider| {
            let table = self.tables.get(&(provider.space, provider.capability));
            provider.live
                && provider.health == Health::Up
                && provider.breaker.admits(self.at.now)
                && table.is_none_or(|table| table.weight(provider.name) > 0)
        })
    }

    /// Who got the call is one of those who could, whose turn it was, with the least to do.
    fn check_placed(
        &mut self,
        draft: &Draft,
        outlook: &Outlook,
        before: &[CapabilityStats],
        after: &[CapabilityStats],
    ) -> Check {
        let told = || format!("call {} of {}", draft.number, draft.capability);
        let Outlook::Some(candidates) = outlook else {
            return broken("CALL-UNKNOWN", format!("{} was taken", told()));
        };
        ensure(!draft.over, "EVENT-HOPS", told)?;
        let more = |old: &&CapabilityStats, new: &&CapabilityStats| {
            let (old, new) = (self.providers_of(draft, old), self.providers_of(draft, new));
            let mut both = old.into_iter().zip(new);
            both.find(|(old, new)| new.outstanding > old.outstanding)
                .map(|(old, _)| old)
        };
        let (old, new) = (Self::rows(draft, before), Self::rows(draft, after));
        let chosen = old.iter().zip(&new).find_map(|(old, new)| more(old, new));
        let chosen = chosen.and_then(|chosen| candidates.iter().find(|c| c.index == chosen.index));
        let Some(chosen) = chosen else {
            return broken(
                "CALL-PROVIDERS",
                format!("{} went to nobody who could be chosen", told()),
            );
        };
        let mut names: Vec<&'static str> = candidates.iter().map(|c| c.name).collect();
        names.sort_unstable();
        names.dedup();
        let table = self.tables.get_mut(&(draft.from.space, draft.capability));
        let weighed = table.is_some();
        let turn = table.is_none_or(|table| table.turn(&names, chosen.name));
        ensure(turn, "CALL-WEIGHTS", || {
            format!(
                "{} went to {chosen:?}, and it was the turn of another",
                told()
            )
        })?;
        let rivals = candidates
            .iter()
            .filter(|c| !weighed || c.name == chosen.name);
        let least = rivals.map(|c| c.outstanding).min();
        ensure(least == Some(chosen.outstanding), "CALL-PROVIDERS", || {
            format!("{} went to {chosen:?} of {candidates:?}", told())
        })?;
        self.seen
            .note_if("call chosen by weight", weighed && names.len() > 1);
        self.seen
            .note_if("call chosen among several", candidates.len() > 1);
        Ok(())
    }

    /// Writes a selection table, or takes it away.
    pub(crate) fn weigh(&mut self) -> Check {
        let Some(peer) = self.some_peer().and_then(|at| self.peers.get(at)) else {
            return Ok(());
        };
        let (session, space) = (peer.id, peer.space);
        let capability = self.dice.word(CAPABILITIES);
        let mut table = crate::work::Table::default();
        for name in NAMES {
            let weight = self
                .dice
                .pick(&[0, 500, 1_000, 1_000, 2_000, 3_000])
                .unwrap_or(1_000);
            if self.dice.chance(70) {
                table.weights.insert(name, weight);
            }
        }
        let weights: Vec<(&str, f64)> = table
            .weights
            .iter()
            .map(|(name, weight)| (*name, f64::from(*weight) / 1_000.0))
            .collect();
        let removed = self.dice.chance(30);
        let put = self
            .core
            .weigh(session, capability, (!removed).then_some(&weights));
        self.note(format!(
            "weigh {capability} of n{space} {weights:?} {removed} -> {put:?}"
        ));
        ensure(put.is_ok(), "BAD-INPUT", || format!("{put:?}"))?;
        if removed {
            self.tables.remove(&(space, capability));
        } else {
            table.saved = Some(std::collections::BTreeMap::new());
            self.tables.insert((space, capability), table);
        }
        Ok(())
    }

    pub(crate) fn grant_some(&mut self) -> Check {
        let streams = self.waits.all.iter().filter(|(_, wait)| {
            let streamed = matches!(&wait.wanted, Wanted::Call(served)
                if self.jobs.get(served.job).is_some_and(|job| job.streamed));
            streamed && !wait.gone && !wait.told
        });
        let streams: Vec<CallId> = streams.map(|(call, _)| *call).collect();
        let Some(call) = self.dice.pick(&streams) else {
            return Ok(());
        };
        let open = !self.waits.is_over(call);
        let most = self.limits.stream_chunks_max as u64;
        let Some((session, at)) = self.waits.all.get_mut(&call).and_then(|wait| {
            let session = wait.session;
            Some((session, wait.served()?.job))
        }) else {
            return Ok(());
        };
        let Some(job) = self.jobs.get_mut(at) else {
            return Ok(());
        };
        let total = self
            .dice
            .between(job.granted.saturating_sub(1), job.granted + 3);
        let ahead = total.saturating_sub(job.sent) > most;
        let granted = self.core.grant(session, call, total, self.at);
        self.trace
            .note(format!("grant {total} to {call:?} -> {granted:?}"));
        // What nobody works on may have ended with its provider.
        let meant = granted.is_ok() != (open && ahead) || (granted.is_ok() && job.lease.is_none());
        ensure(meant, "STREAM-CREDIT", || {
            format!("credit {total} to {call:?}: {granted:?}")
        })?;
        self.seen
            .note_if("credit that comes twice", total <= job.granted);
        if granted.is_ok() && open && total > job.granted {
            job.granted = total;
            if std::mem::take(&mut job.starved)
                && let Some(lease) = job.lease
                && let Some(held) = self.held.get(&lease)
            {
                self.waits.credits_due.insert((held.session, lease, total));
            }
        }
        Ok(())
    }

    pub(crate) fn cancel_some(&mut self) -> Check {
        let open = self
            .waits
            .all
            .iter()
            .filter(|(_, wait)| !wait.gone && !wait.told);
        let open: Vec<CallId> = open.map(|(call, _)| *call).collect();
        let Some(call) = self.dice.pick(&open) else {
            return Ok(());
        };
        let Some(wait) = self.waits.all.get(&call) else {
            return Ok(());
        };
        let (session, due) = (wait.session, wait.due);
        let cancelled = self.core.cancel(session, call, self.at);
        self.note(format!("cancel {call:?} -> {cancelled:?}"));
        ensure(cancelled.is_ok(), "CALL-CANCEL", || {
            format!("{call:?}: {cancelled:?}")
        })?;
        self.end_call(call, Code::Cancelled);
        if let Some(asked) = self.waits.asked(call) {
            asked.cancelled |= !due;
        }
        Ok(())
    }
}
