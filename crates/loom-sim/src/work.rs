//! The second book of work: a job is what a call wants done, tried once or several times, for one who waits or for many.

use std::collections::BTreeMap;

use loom_core::{CallId, Code, EffectClass, LeaseId, Nanos};

use crate::event::Stamp;

/// How a call ends: with a code, or well.
pub(crate) type Ending = Option<Code>;

/// The last failure of a job that may be tried again.
#[derive(Clone)]
pub(crate) struct Lapse {
    pub(crate) code: Code,
    pub(crate) passes: bool,
}

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Job {
    pub(crate) number: usize,
    pub(crate) space: usize,
    pub(crate) capability: &'static str,
    pub(crate) asked: Option<&'static str>,
    pub(crate) key: Option<&'static str>,
    pub(crate) sender: String,
    pub(crate) stamp: Option<Stamp>,
    pub(crate) streamed: bool,
    /// The latest of those who wait, or have.
    pub(crate) deadline: Nanos,
    /// Those who are not certain to have ended.
    pub(crate) waiters: Vec<CallId>,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) provider: Option<usize>,
    pub(crate) version: Option<&'static str>,
    pub(crate) attempt: u32,
    /// The envelope's id, and the effect's, of the first attempt.
    pub(crate) ids: Option<(u128, Option<u128>)>,
    pub(crate) unknown: bool,
    pub(crate) last: Option<Lapse>,
    /// How often providers of it had lost their queue when it was made.
    pub(crate) gone_before: u64,
    pub(crate) over: bool,
    pub(crate) granted: u64,
    pub(crate) sent: u64,
    pub(crate) got: u64,
    pub(crate) starved: bool,
}

impl Job {
    pub(crate) fn effect(&self) -> EffectClass {
        effect_of(self.capability)
    }

    /// Whether it may be done once more after an attempt that ended so.
    pub(crate) fn is_repeatable(&self, code: Code) -> bool {
        let harmless = matches!(self.effect(), EffectClass::Pure | EffectClass::Idempotent);
        let undone = !self.unknown && code != Code::Timeout;
        harmless || (self.key.is_some() && undone)
    }

    fn is_unknown(&self) -> bool {
        (self.unknown || self.lease.is_some()) && self.effect() != EffectClass::Pure
    }

    /// What an end without an answer means.
    pub(crate) fn without_answer(&self, code: Code) -> Code {
        if self.is_unknown() {
            Code::Indeterminate
        } else {
            code
        }
    }

    /// What the last failure means, after all there were.
    pub(crate) fn lasting(&self, code: Code, passes: bool) -> Code {
        let unknown = self.unknown && self.effect() != EffectClass::Pure;
        if unknown && passes {
            Code::Indeterminate
        } else {
            code
        }
    }

    /// How its calls may have ended unseen: there was nobody to go on with it.
    pub(crate) fn may_end(&self, gone: u64) -> Vec<Ending> {
        if self.lease.is_some() {
            return Vec::new();
        }
        match &self.last {
            Some(last) => vec![Some(self.lasting(last.code, last.passes))],
            None if gone > self.gone_before => vec![Some(Code::ProviderUnavailable)],
            None => Vec::new(),
        }
    }
}

/// Retries that a capability may still make, in hundredths: at least, and at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) low: u64,
    pub(crate) high: u64,
}

/// Weights of one capability's providers, and what each has saved, if that is known.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) weights: BTreeMap<&'static str, u32>,
    pub(crate) saved: Option<BTreeMap<&'static str, i64>>,
}

impl Table {
    pub(crate) fn weight(&self, name: &str) -> u32 {
        self.weights.get(name).copied().unwrap_or(1_000)
    }

    /// Whether it is the turn of this one, of those there are: each saves its weight, who has most pays what all save.
    pub(crate) fn turn(&mut self, names: &[&'static str], chosen: &'static str) -> bool {
        let Some(before) = self.saved.take() else {
            return true;
        };
        let mut saved: BTreeMap<&'static str, i64> = BTreeMap::new();
        for name in names {
            let had = before.get(name).copied().unwrap_or_default();
            saved.insert(name, had + i64::from(self.weight(name)));
        }
        let all: i64 = saved.keys().map(|name| i64::from(self.weight(name))).sum();
        let most = saved.values().max().copied();
        let own = saved.get(chosen).copied();
        if let Some(saved) = saved.get_mut(chosen) {
            *saved -= all;
        }
        self.saved = Some(saved);
        own == most
    }
}

pub(crate) fn effect_of(capability: &str) -> EffectClass {
    if capability.starts_with("pure") {
        EffectClass::Pure
    } else if capability.starts_with("same") {
        EffectClass::Idempotent
    } else {
        EffectClass::Unsafe
    }
}

/// Whether an error may be gone with the next attempt.
pub(crate) fn passes(code: Code, said: Option<bool>) -> bool {
    use Code::{Cancelled, Conflict, Denied, InvalidParams, NotFound};
    use Code::{Exhausted, Indeterminate, ProviderUnavailable, Timeout, Unavailable};
    let never = [InvalidParams, Denied, Conflict, Cancelled, NotFound];
    let may = [
        ProviderUnavailable,
        Unavailable,
        Exhausted,
        Timeout,
        Indeterminate,
    ];
    !never.contains(&code) && said.unwrap_or(may.contains(&code))
}
