//! The book of one provider's breaker, by its own reading of the rules: when it opens, for how long, and who decides.

use loom_core::{Code, Limits, Nanos};

use crate::trace::{Check, ensure};

/// The window of the failure rate slides in so many steps.
const STEPS: u64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fuse {
    Whole,
    Blown {
        until: Nanos,
    },
    /// One call decides.
    Tried,
}

/// What is known of a provider's failures.
#[derive(Debug, Clone)]
pub(crate) struct Breaker {
    pub(crate) fuse: Fuse,
    /// How each call ended since it was whole: in which step of the window, and whether it failed.
    ends: Vec<(u64, bool)>,
    row: usize,
    level: u32,
    well_since: Nanos,
    pub(crate) blown: u64,
}

impl Breaker {
    pub(crate) fn new() -> Self {
        Self {
            fuse: Fuse::Whole,
            ends: Vec::new(),
            row: 0,
            level: 0,
            well_since: Nanos::default(),
            blown: 0,
        }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.fuse == Fuse::Whole
    }

    /// Whether it may be given a call.
    pub(crate) fn admits(&self, now: Nanos) -> bool {
        match self.fuse {
            Fuse::Whole => true,
            Fuse::Blown { until } => until <= now,
            Fuse::Tried => false,
        }
    }

    /// A call ended: `tried`, it is the one that decides; `may_blow`, enough others are whole. Whether it blew.
    pub(crate) fn end(&mut self, end: (bool, bool), may_blow: bool, at: (Nanos, &Limits)) -> bool {
        let (failed, tried) = end;
        let (now, limits) = at;
        match self.fuse {
            Fuse::Blown { .. } => return false,
            Fuse::Tried if !tried => return false,
            Fuse::Tried if failed && may_blow => {
                self.blow(now, limits);
                return true;
            }
            Fuse::Tried => {
                self.mend(now);
                return false;
            }
            Fuse::Whole => {}
        }
        let window = Nanos(0).plus_millis(limits.breaker_window_ms.max(1)).0;
        let step = now.0 / (window / STEPS).max(1);
        self.row = if failed { self.row + 1 } else { 0 };
        self.ends.push((step, failed));
        let recent: Vec<bool> = self
            .ends
            .iter()
            .filter(|(then, _)| then + STEPS > step)
            .map(|(_, failed)| *failed)
            .collect();
        let bad = recent.iter().filter(|failed| **failed).count();
        let often = recent.len() >= limits.breaker_calls
            && bad * 100 >= limits.breaker_percent * recent.len();
        let blows = failed && may_blow && (self.row >= limits.breaker_failures || often);
        if blows {
            let healthy = now.0.saturating_sub(self.well_since.0) / window;
            let healthy = u32::try_from(healthy).unwrap_or(u32::MAX);
            self.level = self.level.saturating_sub(healthy);
            self.blow(now, limits);
        }
        blows
    }

    fn blow(&mut self, now: Nanos, limits: &Limits) {
        let longest = limits.breaker_longest_seconds * 1_000;
        let time = limits.breaker_open_ms << self.level.min(20);
        self.level += u32::from(time < longest);
        self.fuse = Fuse::Blown {
            until: now.plus_millis(time.min(longest)),
        };
        self.blown += 1;
        self.row = 0;
        self.ends.clear();
    }

    fn mend(&mut self, now: Nanos) {
        self.fuse = Fuse::Whole;
        self.well_since = now;
        self.row = 0;
        self.ends.clear();
    }

    /// What the directory must show, and what it may: a call that decides comes and goes unseen.
    pub(crate) fn show(&mut self, shown: &str, deciding: bool, now: Nanos) -> Check {
        let known = self.fuse;
        let meant = match (known, shown) {
            (Fuse::Whole, "up") | (Fuse::Blown { .. }, "ejected") | (Fuse::Tried, "probing") => {
                true
            }
            (Fuse::Blown { until }, "probing") => {
                self.fuse = Fuse::Tried;
                until <= now
            }
            (Fuse::Tried, "ejected") => {
                self.fuse = Fuse::Blown { until: now };
                !deciding
            }
            _ => false,
        };
        ensure(meant, "CALL-BREAKER", || {
            format!("a provider is shown as {shown:?} at {now:?}, and is {known:?}")
        })
    }
}

/// What the end of an attempt says of its provider: it failed, or did not; nothing if it is the caller's fault.
pub(crate) fn blames(code: Option<Code>) -> Option<bool> {
    match code {
        None => Some(false),
        Some(
            Code::CapabilityError
            | Code::ToolError
            | Code::Timeout
            | Code::ProviderUnavailable
            | Code::Indeterminate
            | Code::Internal,
        ) => Some(true),
        Some(_) => None,
    }
}
