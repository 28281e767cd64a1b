//! One provider's circuit breaker: it ejects a provider that fails, and lets one call at a time find out whether it is
//! well again. A machine of its own: it knows nothing of calls, and is told what time it is.

use crate::limits::Limits;
use crate::time::Nanos;

/// How finely the window of the failure rate slides.
const BUCKETS: usize = 10;
const SLOTS: u64 = BUCKETS as u64;

/// What a breaker goes by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Failures one after the other that open it.
    pub(crate) failures: u32,
    /// Percent of failures that open it, of at least so many calls, within so many nanoseconds.
    pub(crate) percent: u64,
    pub(crate) calls: u64,
    pub(crate) window: u64,
    /// How long it is open at first, and at most.
    pub(crate) open: u64,
    pub(crate) longest: u64,
}

impl Rules {
    pub(crate) fn of(limits: &Limits) -> Self {
        Self {
            failures: u32::try_from(limits.breaker_failures).unwrap_or(u32::MAX),
            percent: limits.breaker_percent as u64,
            calls: limits.breaker_calls as u64,
            window: Nanos::default()
                .plus_millis(limits.breaker_window_ms.max(1))
                .0,
            open: Nanos::default().plus_millis(limits.breaker_open_ms).0,
            longest: Nanos::default()
                .plus_millis(limits.breaker_longest_seconds.saturating_mul(1_000))
                .0,
        }
    }
}

/// Whether a provider may be given a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admits {
    /// Any.
    All,
    /// One, that decides.
    Probe,
    /// None before this moment; with a probe under way, none before that has ended.
    None(Nanos),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until: Nanos,
    },
    /// The call that decides has time until then; after it another one does.
    Probing {
        until: Nanos,
    },
}

/// What the end of a call changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turned {
    Not,
    Opened,
    Closed,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    slot: u64,
    calls: u64,
    failed: u64,
}

/// The breaker.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    /// Failures one after the other.
    row: u32,
    buckets: [Bucket; BUCKETS],
    /// How often it opened, less what it was forgiven: each makes the next time twice as long.
    level: u32,
    well_since: Nanos,
    pub(crate) opened: u64,
}

impl Breaker {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Closed,
            row: 0,
            buckets: [Bucket::default(); BUCKETS],
            level: 0,
            well_since: Nanos::default(),
            opened: 0,
        }
    }

    pub(crate) fn admits(&self, now: Nanos) -> Admits {
        match self.state {
            State::Closed => Admits::All,
            State::Open { until } if until <= now => Admits::Probe,
            State::Open { until } => Admits::None(until),
            State::Probing { until } if until <= now => Admits::Probe,
            State::Probing { .. } => Admits::None(now),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    pub(crate) fn is_probing(&self) -> bool {
        matches!(self.state, State::Probing { .. })
    }

    /// The call that decides is on its way, until when it may take.
    pub(crate) fn probe(&mut self, until: Nanos) {
        debug_assert!(self.state != State::Closed);
        self.state = State::Probing { until };
    }

    /// The call that should have decided has ended and says nothing: the next one does.
    pub(crate) fn give_up_probe(&mut self, now: Nanos) {
        if self.is_probing() {
            self.state = State::Open { until: now };
        }
    }

    /// Takes the end of a call into account: it went well, or it failed. `probe`: it is the one that decides.
    ///
    /// What began before it opened says nothing. One that may not open, or stay so, is
    /// closed, and remembers what it has seen since.
    pub(crate) fn record(&mut self, call: Ended, rules: &Rules, may_open: bool) -> Turned {
        let Ended { well, probe, now } = call;
        match self.state {
            State::Open { .. } => return Turned::Not,
            State::Probing { .. } if !probe => return Turned::Not,
            State::Probing { .. } if well || !may_open => {
                self.close(now);
                return Turned::Closed;
            }
            State::Probing { .. } => {
                self.open(rules, now);
                return Turned::Opened;
            }
            State::Closed => self.count(well, rules, now),
        }
        if !well && self.is_tripped(rules, now) && may_open {
            let healthy = (now.0 - self.well_since.0.min(now.0)) / rules.window;
            self.level = self
                .level
                .saturating_sub(u32::try_from(healthy).unwrap_or(u32::MAX));
            self.open(rules, now);
            return Turned::Opened;
        }
        Turned::Not
    }

    fn count(&mut self, well: bool, rules: &Rules, now: Nanos) {
        self.row = if well { 0 } else { self.row.saturating_add(1) };
        let slot = slot(rules, now);
        let Some(bucket) = self.buckets.get_mut((slot % SLOTS) as usize) else {
            return;
        };
        if bucket.slot != slot {
            *bucket = Bucket {
                slot,
                ..Bucket::default()
            };
        }
        bucket.calls += 1;
        bucket.failed += u64::from(!well);
    }

    fn is_tripped(&self, rules: &Rules, now: Nanos) -> bool {
        if self.row >= rules.failures {
            return true;
        }
        let slot = slot(rules, now);
        let recent = self.buckets.iter().filter(|b| b.slot + SLOTS > slot);
        let (calls, failed) = recent.fold((0, 0), |(calls, failed), bucket| {
            (calls + bucket.calls, failed + bucket.failed)
        });
        calls >= rules.calls && failed * 100 >= rules.percent * calls
    }

    fn open(&mut self, rules: &Rules, now: Nanos) {
        let time = rules.open.saturating_mul(1 << self.level.min(32));
        if time < rules.longest {
            self.level += 1;
        }
        self.state = State::Open {
            until: now.plus(time.min(rules.longest)),
        };
        self.opened += 1;
        self.row = 0;
        self.buckets = [Bucket::default(); BUCKETS];
    }

    fn close(&mut self, now: Nanos) {
        self.state = State::Closed;
        self.well_since = now;
        self.row = 0;
        self.buckets = [Bucket::default(); BUCKETS];
    }
}

/// The end of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) well: bool,
    pub(crate) probe: bool,
    pub(crate) now: Nanos,
}

/// Slots are counted from one: a bucket that was never used is of none.
fn slot(rules: &Rules, now: Nanos) -> u64 {
    now.0 / (rules.window / SLOTS).max(1) + SLOTS
}

#[cfg(test)]
mod tests;
