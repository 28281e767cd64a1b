//! The books of one subscription. At any quiescent point
//! matched = delivered + leased + queued + expired + dropped.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::envelope::Qos;
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
    pub(crate) fn add(&mut self, reason: Reason) {
        let count = match reason {
            Reason::Overflow => &mut self.overflow,
            Reason::Lagging => &mut self.lagging,
            Reason::Unsubscribed => &mut self.unsubscribed,
            Reason::SessionGone => &mut self.session_gone,
        };
        *count += 1;
    }

    /// Losses for one reason.
    pub const fn of(&self, reason: Reason) -> u64 {
        match reason {
            Reason::Overflow => self.overflow,
            Reason::Lagging => self.lagging,
            Reason::Unsubscribed => self.unsubscribed,
            Reason::SessionGone => self.session_gone,
        }
    }

    pub(crate) fn fold(&mut self, other: &Self) {
        self.overflow += other.overflow;
        self.lagging += other.lagging;
        self.unsubscribed += other.unsubscribed;
        self.session_gone += other.session_gone;
    }

    /// All losses.
    pub const fn total(&self) -> u64 {
        self.overflow + self.lagging + self.unsubscribed + self.session_gone
    }
}

/// What has been counted of one subscription, or of all, in one delivery class.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClassBooks {
    /// Events that were for it.
    pub(crate) matched: u64,
    /// Turns that ended.
    pub(crate) delivered: u64,
    /// Of these, turns that failed.
    pub(crate) failed: u64,
    /// Turns of events that had been begun before: they are no first deliveries, and stand in no sum.
    pub(crate) redelivered: u64,
    /// Events that were over before they were started.
    pub(crate) expired: u64,
    /// Losses.
    pub(crate) dropped: Dropped,
    /// The most events that were queued at once.
    pub(crate) high_water: usize,
    /// Publish to take.
    pub(crate) latency: Timings,
}

impl ClassBooks {
    /// Adds what another one counted; the high water is the higher of the two.
    pub(crate) fn fold(&mut self, other: &Self) {
        self.fold_counts(other);
        self.latency.fold(&other.latency);
    }

    fn fold_counts(&mut self, other: &Self) {
        self.matched += other.matched;
        self.delivered += other.delivered;
        self.failed += other.failed;
        self.redelivered += other.redelivered;
        self.expired += other.expired;
        self.dropped.fold(&other.dropped);
        self.high_water = self.high_water.max(other.high_water);
    }

    /// Of those that were for it, those that were neither handled nor lost: they are queued or leased.
    pub(crate) fn open(&self) -> u64 {
        let ended = self.delivered + self.expired + self.dropped.total();
        self.matched.saturating_sub(ended)
    }
}

/// The books of one subscription, or of all: one for each delivery class.
#[derive(Debug, Clone, Default)]
pub(crate) struct Books {
    classes: [ClassBooks; 3],
    /// The most events of any class that were queued at once.
    pub(crate) high_water: usize,
    /// When a loss was last published, by reason.
    pub(crate) told: [Option<Nanos>; 4],
}

impl Books {
    pub(crate) fn class(&mut self, qos: Qos) -> &mut ClassBooks {
        let [realtime, batched, background] = &mut self.classes;
        match qos {
            Qos::Realtime => realtime,
            Qos::Batched => batched,
            Qos::Background => background,
        }
    }

    pub(crate) fn classes(&self) -> &[ClassBooks; 3] {
        &self.classes
    }

    /// Losses of any class for this reason.
    pub(crate) fn lost(&self, reason: Reason) -> u64 {
        let classes = self.classes.iter();
        classes.map(|class| class.dropped.of(reason)).sum()
    }

    /// All classes together, without their times.
    pub(crate) fn total(&self) -> ClassBooks {
        let mut total = ClassBooks::default();
        for class in &self.classes {
            total.fold_counts(class);
        }
        total.high_water = self.high_water;
        total
    }

    /// The times of all classes together.
    pub(crate) fn latency(&self) -> Summary {
        let mut all = Timings::default();
        for class in &self.classes {
            all.fold(&class.latency);
        }
        all.summary()
    }

    pub(crate) fn fold(&mut self, other: &Self) {
        for (class, other) in self.classes.iter_mut().zip(&other.classes) {
            class.fold(other);
        }
        self.high_water = self.high_water.max(other.high_water);
    }
}

/// What has been counted of the events of one topic, at all who heard them.
#[derive(Debug, Clone, Default)]
pub(crate) struct TopicBooks {
    pub(crate) published: u64,
    pub(crate) matched: u64,
    pub(crate) delivered: u64,
    pub(crate) expired: u64,
    pub(crate) dropped: Dropped,
    pub(crate) queued: usize,
    pub(crate) high_water: usize,
    pub(crate) latency: Quarters,
}

impl TopicBooks {
    pub(crate) fn fold(&mut self, other: &Self) {
        self.published += other.published;
        self.matched += other.matched;
        self.delivered += other.delivered;
        self.expired += other.expired;
        self.dropped.fold(&other.dropped);
        self.queued += other.queued;
        self.high_water = self.high_water.max(other.high_water);
        self.latency.fold(&other.latency);
    }

    /// Counts what became of one event, which is in its queues now.
    pub(crate) fn join(&mut self, fates: Fates) {
        self.matched += (fates.queued + fates.lost) as u64;
        self.high_water = self.high_water.max(self.queued);
    }

    /// Counts an event that a member is given from the log.
    pub(crate) fn rematch(&mut self) {
        self.matched += 1;
        self.rejoin();
    }

    /// Counts an event that went from one queue into another.
    pub(crate) fn rejoin(&mut self) {
        self.queued += 1;
        self.high_water = self.high_water.max(self.queued);
    }

    /// What is neither queued, nor handled, nor lost.
    pub(crate) fn leased(&self) -> u64 {
        let ended = self.delivered + self.expired + self.dropped.total() + self.queued as u64;
        self.matched.saturating_sub(ended)
    }
}

/// At how many subscriptions an event went into a queue, or was lost at once.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fates {
    pub(crate) queued: usize,
    pub(crate) lost: usize,
}

/// Buckets of [`Quarters`]: four for each power of two microseconds, up to an hour.
const QUARTERS: usize = 128;

/// Times that are kept one by one before they are counted.
const FEW: usize = 7;

/// A histogram of microseconds in half a KiB, with steps of a quarter of a power of two: there may be thousands. The
/// first few times need no histogram: most topics of short threads have no more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quarters {
    few: [u8; FEW],
    count: u8,
    counts: Option<Box<[u32; QUARTERS]>>,
}

impl Quarters {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "two bits of it, and the number of a bit"
    )]
    fn bucket(micros: u64) -> usize {
        let micros = micros.max(1);
        let power = micros.ilog2() as usize;
        let part = if power >= 2 {
            (micros >> (power - 2)) as usize & 3
        } else {
            (micros << (2 - power)) as usize & 3
        };
        (power * 4 + part).min(QUARTERS - 1)
    }

    /// The largest time of a bucket.
    fn bound(bucket: usize) -> u64 {
        let (power, part) = (bucket / 4, bucket as u64 % 4);
        ((5 + part) << power).div_ceil(4) - 1
    }

    pub(crate) fn record(&mut self, micros: u64) {
        let bucket = Self::bucket(micros);
        if let Some(counts) = &mut self.counts {
            if let Some(count) = counts.get_mut(bucket) {
                *count = count.saturating_add(1);
            }
        } else if let Some(place) = self.few.get_mut(usize::from(self.count)) {
            #[expect(clippy::cast_possible_truncation, reason = "there are 128 buckets")]
            let bucket = bucket as u8;
            *place = bucket;
            self.count += 1;
        } else {
            self.counts = Some(Box::new(self.counted()));
            self.record(micros);
        }
    }

    /// The counts of all times.
    fn counted(&self) -> [u32; QUARTERS] {
        if let Some(counts) = &self.counts {
            return **counts;
        }
        let mut counts = [0; QUARTERS];
        for bucket in self.few.iter().take(usize::from(self.count)) {
            if let Some(count) = counts.get_mut(usize::from(*bucket)) {
                *count += 1;
            }
        }
        counts
    }

    pub(crate) fn fold(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        let mut counts = self.counted();
        for (count, more) in counts.iter_mut().zip(other.counted()) {
            *count = count.saturating_add(more);
        }
        self.counts = Some(Box::new(counts));
        self.count = self.count.max(1);
    }

    pub(crate) fn summary(&self) -> Summary {
        if self.count == 0 {
            return Summary::default();
        }
        let counts = self.counted();
        let total: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        let at = |percent: u64| {
            let mut left = (total * percent).div_ceil(100).max(1);
            let found = counts.iter().position(|count| {
                left = left.saturating_sub(u64::from(*count));
                left == 0
            });
            found.map_or(0, Self::bound)
        };
        Summary {
            p50_us: at(50),
            p90_us: at(90),
            p99_us: at(99),
            count: total,
        }
    }
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

    pub(crate) fn fold(&mut self, other: &Self) {
        match (&mut self.histogram, &other.histogram) {
            (_, None) => {}
            (Some(mine), Some(theirs)) => {
                // Both grow with what they see.
                let _ = mine.add(&**theirs);
            }
            (none, Some(theirs)) => *none = Some(theirs.clone()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_is_at_most_a_quarter_above_what_it_holds(micros in 1..4_000_000_000u64) {
            let bound = Quarters::bound(Quarters::bucket(micros));
            prop_assert!(bound >= micros && bound <= micros + micros / 4, "{} in {}", micros, bound);
        }
    }

    #[test]
    fn quantiles_come_from_the_counts() {
        let mut times = Quarters::default();
        (0..98).for_each(|_| times.record(3));
        times.record(1_000);
        times.record(100_000);
        let summary = times.summary();
        assert_eq!((summary.p50_us, summary.p90_us, summary.count), (3, 3, 100));
        assert!((1_000..=1_250).contains(&summary.p99_us));
    }
}
