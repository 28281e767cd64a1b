//! The books of one subscription. At any quiescent point
//! matched = delivered + leased + queued + expired + dropped.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::time::Nanos;

/// Why a matched event was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A newer realtime event took its place, or found none.
    Overflow,
    /// The subscription did not make room in time.
    Lagging,
    /// The subscription was removed.
    Unsubscribed,
    /// Its session ended.
    SessionGone,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Overflow,
        Self::Lagging,
        Self::Unsubscribed,
        Self::SessionGone,
    ];

    /// Its token in `loom.dropped.{reason}`.
    pub const fn token(self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::Lagging => "lagging",
            Self::Unsubscribed => "unsubscribed",
            Self::SessionGone => "session_gone",
        }
    }
}

/// Counts of losses by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "each is a Reason")]
pub struct Dropped {
    pub overflow: u64,
    pub lagging: u64,
    pub unsubscribed: u64,
    pub session_gone: u64,
}

impl Dropped {
    pub(crate) fn add(&mut self, reason: Reason) -> u64 {
        let count = match reason {
            Reason::Overflow => &mut self.overflow,
            Reason::Lagging => &mut self.lagging,
            Reason::Unsubscribed => &mut self.unsubscribed,
            Reason::SessionGone => &mut self.session_gone,
        };
        *count += 1;
        *count
    }

    /// All losses.
    pub const fn total(&self) -> u64 {
        self.overflow + self.lagging + self.unsubscribed + self.session_gone
    }
}

/// What has been counted of one subscription.
#[derive(Debug, Clone, Default)]
pub(crate) struct Books {
    /// Events that were for it.
    pub(crate) matched: u64,
    /// Turns that ended.
    pub(crate) delivered: u64,
    /// Of these, turns that failed.
    pub(crate) failed: u64,
    /// Events that were over before they were started.
    pub(crate) expired: u64,
    /// Losses.
    pub(crate) dropped: Dropped,
    /// The most events that were queued at once.
    pub(crate) high_water: usize,
    /// Publish to take.
    pub(crate) latency: Timings,
    /// When a loss was last published, by reason.
    pub(crate) told: [Option<Nanos>; 4],
}

/// A histogram of microseconds that costs nothing until it is used.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timings {
    histogram: Option<Box<Histogram<u32>>>,
}

impl Timings {
    pub(crate) fn record(&mut self, micros: u64) {
        if self.histogram.is_none() {
            // It grows with what it sees: short times need few buckets.
            self.histogram = Histogram::new(2).ok().map(Box::new);
        }
        if let Some(histogram) = &mut self.histogram {
            // Only a time of centuries has no bucket.
            let _ = histogram.record(micros.max(1));
        }
    }

    pub(crate) fn summary(&self) -> Summary {
        let Some(histogram) = &self.histogram else {
            return Summary::default();
        };
        Summary {
            p50_us: histogram.value_at_quantile(0.5),
            p90_us: histogram.value_at_quantile(0.9),
            p99_us: histogram.value_at_quantile(0.99),
            count: histogram.len(),
        }
    }
}

/// Quantiles of durations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "names and units say it")]
pub struct Summary {
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub count: u64,
}
