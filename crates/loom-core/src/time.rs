//! Time as a value. The core never reads a clock: each call is told what time it is.

/// A point of the monotonic clock, in nanoseconds from a start that only the shell knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// This many milliseconds later.
    #[must_use]
    pub const fn plus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis.saturating_mul(1_000_000)))
    }

    /// This many nanoseconds later.
    #[must_use]
    pub const fn plus(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// Whole microseconds since `earlier`; 0 when that lies ahead.
    pub const fn micros_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000
    }
}

/// The two clocks at the moment of a call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moment {
    /// Monotonic: deadlines, durations.
    pub now: Nanos,
    /// Milliseconds since the epoch: what an envelope shows.
    pub wall_ms: u64,
}
