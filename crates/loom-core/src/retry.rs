//! Whether, when and how often a call is tried again. Only the broker retries, and only by these rules.

use crate::envelope::EffectClass;
use crate::error::{Code, Detail};
use crate::ident::Ids;
use crate::limits::Limits;
use crate::time::Nanos;

/// Whether doing the work once more does no harm: nothing, or the same, happens outside. A key lets other work be done once
/// more where it is known that it was not done: a key alone makes no charge twice, and no lost one sure.
pub(crate) const fn is_repeatable(effect: EffectClass, keyed: bool, unknown: bool) -> bool {
    matches!(effect, EffectClass::Pure | EffectClass::Idempotent) || (keyed && !unknown)
}

/// Whether the error of an attempt may be gone with the next one.
pub(crate) fn may_pass(code: Code, detail: &Detail) -> bool {
    match code {
        Code::InvalidParams | Code::Denied | Code::Conflict | Code::Cancelled | Code::NotFound => {
            false
        }
        Code::ProviderUnavailable
        | Code::Unavailable
        | Code::Exhausted
        | Code::Timeout
        | Code::Indeterminate => detail.retry.unwrap_or(true),
        _ => detail.retry.unwrap_or(false),
    }
}

/// What the end of an attempt says of its provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It did its work.
    Well,
    /// It failed.
    Failed,
    /// Nothing: it is the caller's fault, or nobody's.
    Nothing,
}

pub(crate) const fn verdict(code: Option<Code>) -> Verdict {
    match code {
        None => Verdict::Well,
        Some(
            Code::CapabilityError
            | Code::ToolError
            | Code::Timeout
            | Code::ProviderUnavailable
            | Code::Indeterminate
            | Code::Internal,
        ) => Verdict::Failed,
        Some(_) => Verdict::Nothing,
    }
}

/// Whether the end of an attempt says that its provider has too much to do.
pub(crate) const fn is_pressed(code: Option<Code>) -> bool {
    matches!(code, Some(Code::Timeout | Code::Exhausted))
}

/// How long to pause after an attempt: full jitter under a bound that doubles, and not less than the provider asked for.
pub(crate) fn pause(attempt: u32, detail: &Detail, limits: &Limits, draw: &mut Ids) -> u64 {
    let longest = limits.retry_cap_seconds.saturating_mul(1_000);
    let doubled = limits
        .retry_base_ms
        .saturating_mul(1 << attempt.saturating_sub(1).min(32));
    let bound = Nanos::default().plus_millis(doubled.min(longest)).0;
    let jittered = draw.draw() % bound.max(1);
    let asked = Nanos::default()
        .plus_millis(detail.retry_after_ms.unwrap_or(0))
        .0;
    jittered.max(asked)
}

/// The retries that one capability may still make: it earns a part of one with each call.
#[derive(Debug)]
pub(crate) struct Budget {
    /// In hundredths of a retry.
    saved: usize,
}

/// Hundredths of a retry in one.
const RETRY: usize = 100;

impl Budget {
    pub(crate) const fn new(limits: &Limits) -> Self {
        Self {
            saved: limits.retry_start * RETRY,
        }
    }

    /// A call was tried for the first time.
    pub(crate) fn earn(&mut self, limits: &Limits) {
        let most = limits.retry_saved * RETRY;
        self.saved = (self.saved + limits.retry_percent).min(most);
    }

    /// Takes one retry, if there is one.
    pub(crate) const fn spend(&mut self) -> bool {
        let enough = self.saved >= RETRY;
        if enough {
            self.saved -= RETRY;
        }
        enough
    }
}

#[cfg(test)]
mod tests;
