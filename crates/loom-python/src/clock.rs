//! The two clocks: the machine's, or one that moves only when it is told to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use loom_core::{Moment, Nanos};

/// Where the wall of a virtual clock starts: 2026-01-01T00:00:00Z.
const VIRTUAL_START_MS: u64 = 1_767_225_600_000;
/// How long the distance between the two real clocks is trusted.
const TRUSTED_NANOS: u64 = 1_000_000_000;

pub(crate) enum Clock {
    Real {
        start: Instant,
        /// What it shows at the start.
        base: u64,
        checked: AtomicU64,
        wall_start_ms: AtomicU64,
    },
    Virtual {
        nanos: AtomicU64,
        start_ms: AtomicU64,
    },
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the clock that the others are told of"
)]
impl Clock {
    pub(crate) fn real() -> Self {
        Self::real_from(0.0)
    }

    /// The machine's, which shows so many seconds now.
    pub(crate) fn real_from(seconds: f64) -> Self {
        let base = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let base = u64::try_from(base.as_nanos()).unwrap_or_default();
        Self::Real {
            start: Instant::now(),
            base,
            checked: AtomicU64::new(base),
            wall_start_ms: AtomicU64::new(
                wall_ms(SystemTime::now()).saturating_sub(base / 1_000_000),
            ),
        }
    }

    pub(crate) fn manual() -> Self {
        Self::Virtual {
            nanos: AtomicU64::new(0),
            start_ms: AtomicU64::new(VIRTUAL_START_MS),
        }
    }

    pub(crate) fn moment(&self) -> Moment {
        match self {
            Self::Virtual { nanos, start_ms } => {
                let now = nanos.load(Ordering::Relaxed);
                Moment {
                    now: Nanos(now),
                    wall_ms: start_ms.load(Ordering::Relaxed) + now / 1_000_000,
                }
            }
            Self::Real {
                start,
                base,
                checked,
                wall_start_ms,
            } => {
                let now = base + u64::try_from(start.elapsed().as_nanos()).unwrap_or(0);
                if now - checked.load(Ordering::Relaxed).min(now) > TRUSTED_NANOS {
                    let wall = wall_ms(SystemTime::now());
                    wall_start_ms.store(wall.saturating_sub(now / 1_000_000), Ordering::Relaxed);
                    checked.store(now, Ordering::Relaxed);
                }
                let wall_ms = wall_start_ms.load(Ordering::Relaxed) + now / 1_000_000;
                Moment {
                    now: Nanos(now),
                    wall_ms,
                }
            }
        }
    }

    /// Lets the wall of a virtual clock begin where an earlier one has ended, as a log tells it.
    pub(crate) fn not_before(&self, wall: u64) {
        if let Self::Virtual { start_ms, .. } = self {
            start_ms.fetch_max(wall, Ordering::Relaxed);
        }
    }

    /// Moves a virtual clock; `false` for a real one.
    pub(crate) fn advance(&self, nanos: u64) -> bool {
        match self {
            Self::Virtual { nanos: at, .. } => {
                at.fetch_add(nanos, Ordering::Relaxed);
                true
            }
            Self::Real { .. } => false,
        }
    }
}

fn wall_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds as Python shows them.
#[expect(
    clippy::cast_precision_loss,
    reason = "a float has microseconds for centuries"
)]
pub(crate) fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Milliseconds as seconds.
#[expect(
    clippy::cast_precision_loss,
    reason = "a float has microseconds for centuries"
)]
pub(crate) fn seconds_of_millis(millis: u64) -> f64 {
    millis as f64 / 1e3
}
