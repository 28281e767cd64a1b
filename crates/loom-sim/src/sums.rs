//! What the engine counts adds up: of each class and each topic to the whole, and to what this book knows.

use loom_core::{ClassStats, Limits, Qos, Stats, SubscriptionStats, TopicStats};

use crate::event::State;
use crate::sub::Sub;
use crate::trace::{Check, ensure};
use crate::world::World;

/// Matched, delivered, expired; dropped by reason; queued and leased.
type Sum = [u64; 9];

impl World {
    pub(crate) fn check_totals(&mut self, stats: &Stats) -> Check {
        let told = || format!("{:?} {:?} {:?}", stats.events, stats.by_qos, stats.topics);
        let classes = add(stats.by_qos.values().map(of_class));
        let topics = add(stats.topics.iter().map(of_topic));
        ensure(classes == topics, "STATS-TOPIC", told)?;
        let events = &stats.events;
        let dropped = &events.dropped;
        let whole = [
            events.matched,
            events.delivered,
            events.expired,
            dropped.overflow,
            dropped.lagging,
            dropped.unsubscribed,
            dropped.session_gone,
        ];
        ensure(classes.starts_with(&whole), "STATS-QOS", told)?;
        let published: [u64; 2] = [
            stats.by_qos.values().filter_map(|row| row.published).sum(),
            stats.topics.iter().map(|row| row.published).sum(),
        ];
        ensure(published == [events.published; 2], "STATS-QOS", told)?;
        ensure(
            stats.topics_cached <= self.limits.topic_cache,
            "BOUNDED",
            || {
                format!(
                    "{} topics are known of {}",
                    stats.topics_cached, self.limits.topic_cache
                )
            },
        )?;
        let ended = self.book.ended + self.watch.ended;
        ensure(events.delivered == ended, "STATS-QOS", || {
            format!("{ended} turns have ended: {}", told())
        })?;
        let folded = stats.topics.iter().any(|row| row.topic == "(other)");
        self.seen
            .note_if("topic forgotten, its counts kept", folded);
        self.check_published(stats)
    }

    /// What this book knows to have gone was published in its class; the engine's own is realtime.
    fn check_published(&self, stats: &Stats) -> Check {
        let known = |qos, state: fn(State) -> bool| {
            let events = self.book.events.iter();
            let such = events.filter(|event| event.qos == qos && state(event.state));
            such.count() as u64
        };
        for qos in Qos::ALL {
            let row = stats.by_qos.get(qos.name());
            let count = row.and_then(|row| row.published).unwrap_or_default();
            let sure = known(qos, |state| state == State::Applied);
            let maybe = known(qos, |state| matches!(state, State::Unsure | State::Parked));
            let most = if qos == Qos::Realtime {
                u64::MAX
            } else {
                sure + maybe
            };
            ensure((sure..=most).contains(&count), "STATS-QOS", || {
                format!("{count} of {qos:?} went, and should {sure} to {most}")
            })?;
        }
        Ok(())
    }
}

/// What a queue may hold: an eighth more than its limit, for realtime alone.
pub(crate) fn most_queued(limits: &Limits) -> usize {
    limits.queue_items + limits.queue_items / 8
}

/// What is counted of one subscription, beside the law.
pub(crate) fn check_row(sub: &Sub, row: &SubscriptionStats, limits: &Limits) -> Check {
    let told = || format!("{row:?} against ended {}, failed {}", sub.ended, sub.failed);
    let dropped = &row.dropped;
    let whole = [
        row.matched,
        row.delivered,
        row.expired,
        dropped.overflow,
        dropped.lagging,
        dropped.unsubscribed,
        dropped.session_gone,
        row.queued as u64,
        u64::from(row.leased),
    ];
    let classes = add(row.by_qos.values().map(of_class));
    ensure(classes == whole, "STATS-QOS", told)?;
    let taken = sub.ended + sub.open.len() as u64;
    let same = row.delivered == sub.ended && row.failed == sub.failed && row.latency.count == taken;
    ensure(same, "STATS-QOS", told)?;
    let bounded = (row.queued..=most_queued(limits)).contains(&row.high_water);
    ensure(bounded, "BOUNDED", told)?;
    let half = row.queued <= limits.queue_items / 2 && row.queued_bytes <= limits.queue_bytes / 2;
    ensure(!row.lagging || !half || !sub.eased, "QOS-LAGGING", told)?;
    let kept = dropped.session_gone == 0 && (dropped.unsubscribed == 0 || sub.shed.is_some());
    ensure(kept, "CONSERVATION", told)
}

fn of_class(row: &ClassStats) -> Sum {
    let dropped = &row.dropped;
    [
        row.matched,
        row.delivered,
        row.expired,
        dropped.overflow,
        dropped.lagging,
        dropped.unsubscribed,
        dropped.session_gone,
        row.queued as u64,
        row.leased,
    ]
}

fn of_topic(row: &TopicStats) -> Sum {
    let dropped = &row.dropped;
    [
        row.matched,
        row.delivered,
        row.expired,
        dropped.overflow,
        dropped.lagging,
        dropped.unsubscribed,
        dropped.session_gone,
        row.queued as u64,
        row.leased,
    ]
}

fn add(rows: impl Iterator<Item = Sum>) -> Sum {
    rows.fold([0; 9], |all, row| {
        let mut both = all.into_iter().zip(row);
        all.map(|_| both.next().map_or(0, |(one, other)| one + other))
    })
}
