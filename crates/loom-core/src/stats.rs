//! What the engine counts, and the snapshot of it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::books::{Books, ClassBooks, Dropped, Reason, Summary, TopicBooks};
use crate::broker::Provider;
use crate::core::Core;
use crate::envelope::Qos;
use crate::error::Code;
use crate::ledger::EffectStats;
use crate::part::Part;
use crate::topics::Topic;

/// Counts of ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Outcomes {
    pub(crate) ok: u64,
    pub(crate) error: u64,
    pub(crate) timeout: u64,
    pub(crate) cancelled: u64,
    pub(crate) indeterminate: u64,
}

impl Outcomes {
    pub(crate) fn count(&mut self, code: Option<Code>) {
        let count = match code {
            None => &mut self.ok,
            Some(Code::Timeout) => &mut self.timeout,
            Some(Code::Cancelled) => &mut self.cancelled,
            Some(Code::Indeterminate) => &mut self.indeterminate,
            Some(_) => &mut self.error,
        };
        *count += 1;
    }
}

/// Counts of calls, or of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct Waits {
    pub started: u64,
    pub ok: u64,
    pub error: u64,
    pub timeout: u64,
    pub cancelled: u64,
    pub indeterminate: u64,
    /// Answers after the end.
    pub late: u64,
    /// Second answers.
    pub double: u64,
    /// Answers by a session that was not asked.
    pub foreign: u64,
    /// Calls that joined one in flight; requests join nothing.
    pub joined: u64,
    /// Attempts after a failed one; requests have none.
    pub retried: u64,
    pub pending: u64,
}

impl Waits {
    pub(crate) fn count(&mut self, code: Option<Code>) {
        let count = match code {
            None => &mut self.ok,
            Some(Code::Timeout) => &mut self.timeout,
            Some(Code::Cancelled) => &mut self.cancelled,
            Some(Code::Indeterminate) => &mut self.indeterminate,
            Some(_) => &mut self.error,
        };
        *count += 1;
    }
}

/// Counts of the whole engine.
#[derive(Default)]
pub(crate) struct Totals {
    published: [u64; 3],
    /// The books of subscriptions that are not there any more.
    pub(crate) gone: Books,
    pub(crate) calls: Waits,
    pub(crate) requests: Waits,
    errors: BTreeMap<Code, u64>,
}

impl Totals {
    pub(crate) fn count_published(&mut self, qos: Qos) {
        if let Some(count) = self.published.get_mut(qos as usize) {
            *count += 1;
        }
    }

    pub(crate) fn count_error(&mut self, code: Code) {
        *self.errors.entry(code).or_default() += 1;
    }

    fn waits(&mut self, request: bool) -> &mut Waits {
        if request {
            &mut self.requests
        } else {
            &mut self.calls
        }
    }

    pub(crate) fn double(&mut self, request: bool) {
        self.waits(request).double += 1;
    }

    pub(crate) fn foreign(&mut self, request: bool) {
        self.waits(request).foreign += 1;
    }
}

/// Events of the whole engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct EventCounts {
    pub published: u64,
    pub matched: u64,
    pub delivered: u64,
    pub dropped: Dropped,
    pub expired: u64,
}

/// One delivery class, at one subscription or at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct ClassStats {
    /// Of the whole engine only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published: Option<u64>,
    pub matched: u64,
    pub delivered: u64,
    pub failed: u64,
    pub dropped: Dropped,
    pub expired: u64,
    pub queued: usize,
    pub leased: u64,
    pub high_water: usize,
    pub latency: Summary,
}

impl ClassStats {
    fn of(books: &ClassBooks, queued: usize) -> Self {
        Self {
            published: None,
            matched: books.matched,
            delivered: books.delivered,
            failed: books.failed,
            dropped: books.dropped,
            expired: books.expired,
            queued,
            leased: books.open().saturating_sub(queued as u64),
            high_water: books.high_water,
            latency: books.latency.summary(),
        }
    }
}

/// One topic, at all who hear it.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct TopicStats {
    pub namespace: String,
    pub topic: String,
    pub published: u64,
    pub matched: u64,
    pub delivered: u64,
    pub dropped: Dropped,
    pub expired: u64,
    pub queued: usize,
    pub leased: u64,
    pub high_water: usize,
    pub latency: Summary,
}

impl TopicStats {
    fn of(namespace: &str, topic: &str, books: &TopicBooks) -> Self {
        Self {
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            published: books.published,
            matched: books.matched,
            delivered: books.delivered,
            dropped: books.dropped,
            expired: books.expired,
            queued: books.queued,
            leased: books.leased(),
            high_water: books.high_water,
            latency: books.latency.summary(),
        }
    }
}

/// Topics that a snapshot names; the others are one more row.
const SHOWN_TOPICS: usize = 100;

/// The name of that row: no topic, since it is not one.
const OTHER: &str = "(other)";

/// One subscription.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct SubscriptionStats {
    pub namespace: String,
    pub name: String,
    pub kind: &'static str,
    pub filters: Vec<String>,
    pub matched: u64,
    pub delivered: u64,
    pub dropped: Dropped,
    pub expired: u64,
    pub queued: usize,
    pub queued_bytes: usize,
    pub leased: u32,
    pub again: usize,
    pub high_water: usize,
    pub failed: u64,
    pub redelivered: u64,
    pub lagging: bool,
    pub latency: Summary,
    pub by_qos: BTreeMap<&'static str, ClassStats>,
}

/// One provider of a capability.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct ProviderStats {
    pub provider: String,
    pub health: &'static str,
    pub outstanding: usize,
    pub window: u32,
    pub ejections: u64,
    pub retries: u64,
}

/// One version of a capability.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct CapabilityStats {
    pub namespace: String,
    pub name: String,
    pub version: String,
    pub providers: Vec<ProviderStats>,
    pub calls: u64,
    pub ok: u64,
    pub errors: BTreeMap<&'static str, u64>,
    pub timeout: u64,
    pub cancelled: u64,
    pub indeterminate: u64,
    pub outstanding: usize,
    pub duration: Summary,
}

/// One group that consumes a log.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct ConsumerStats {
    pub consumer: u32,
    pub group: String,
    pub behind: bool,
    /// Positions between it and the end of the log.
    pub lag: u64,
    pub open: usize,
    pub parked: usize,
    pub matched: u64,
    pub spilled: u64,
    pub begun: u64,
    pub redelivered: u64,
    pub lapsed: u64,
    pub acked: u64,
    pub dead: u64,
    pub expired: u64,
    pub dropped: u64,
}

/// The open log of one namespace, as the core knows it.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct LogStats {
    pub namespace: String,
    pub partition: u32,
    pub epoch: u32,
    pub oldest: u64,
    pub end: u64,
    pub waiting: usize,
    pub dead: usize,
    pub dead_lost: u64,
    pub consumers: Vec<ConsumerStats>,
}

/// What there is now; all but the first four are 0 when nothing is going on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct Gauges {
    pub sessions: usize,
    pub subscriptions: usize,
    pub providers: usize,
    pub handles: usize,
    pub lanes: usize,
    pub leased: usize,
    pub pending: usize,
    pub jobs: usize,
    pub keys: usize,
    pub pausing: usize,
    pub timers: usize,
    pub parked: usize,
    pub tickets: usize,
    pub inbox: usize,
}

/// A snapshot.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct Stats {
    pub events: EventCounts,
    pub by_qos: BTreeMap<&'static str, ClassStats>,
    pub topics: Vec<TopicStats>,
    pub topics_cached: usize,
    pub subscriptions: Vec<SubscriptionStats>,
    pub capabilities: Vec<CapabilityStats>,
    pub logs: Vec<LogStats>,
    pub calls: Waits,
    pub requests: Waits,
    pub effects: EffectStats,
    pub errors: BTreeMap<&'static str, u64>,
    pub gauges: Gauges,
}

fn provider_stats(provider: &Provider) -> ProviderStats {
    ProviderStats {
        provider: provider.name.to_string(),
        health: provider.health.token(),
        outstanding: provider.outstanding(),
        window: provider.bulkhead.width(),
        ejections: provider.breaker.opened,
        retries: provider.retries,
    }
}

fn log_stats(part: &Part) -> LogStats {
    let end = part.folded.end();
    let consumers = part.consumers.iter().map(|(number, found)| {
        let tally = &found.tally;
        ConsumerStats {
            consumer: *number,
            group: found.group.to_string(),
            behind: found.behind,
            lag: end.saturating_sub(found.taken(end)),
            open: found.open.len(),
            parked: found.parked(),
            matched: tally.matched,
            spilled: tally.spilled,
            begun: tally.begun,
            redelivered: tally.redelivered,
            lapsed: tally.lapsed,
            acked: tally.acked,
            dead: tally.dead,
            expired: tally.expired,
            dropped: tally.dropped,
        }
    });
    LogStats {
        namespace: part.namespace.to_string(),
        partition: part.opened.partition,
        epoch: part.opened.epoch,
        oldest: part.opened.oldest,
        end,
        waiting: part.order.len(),
        dead: part.folded.dead().count(),
        dead_lost: part.folded.letters().lost(),
        consumers: consumers.collect(),
    }
}

fn by_name(errors: &BTreeMap<Code, u64>) -> BTreeMap<&'static str, u64> {
    errors
        .iter()
        .map(|(code, count)| (code.name(), *count))
        .collect()
}

impl Core {
    /// A snapshot of all that is counted.
    pub fn stats(&self) -> Stats {
        let gauges = self.gauges();
        let [calls, requests] = self.waits();
        let books = self.all_books();
        let total = books.total();
        Stats {
            events: EventCounts {
                published: self.totals.published.iter().sum(),
                matched: total.matched,
                delivered: total.delivered,
                dropped: total.dropped,
                expired: total.expired,
            },
            by_qos: self.class_stats(&books),
            topics: self.topic_stats(),
            topics_cached: self.topics.len(),
            subscriptions: self.subscription_stats(),
            capabilities: self.capability_stats(),
            logs: self.parts.values().map(log_stats).collect(),
            calls,
            requests,
            effects: self.effect_stats(),
            errors: by_name(&self.totals.errors),
            gauges,
        }
    }

    /// The books of all subscriptions together, those that are gone included.
    fn all_books(&self) -> Books {
        let mut books = self.totals.gone.clone();
        for (_, sub) in self.subs.iter() {
            books.fold(&sub.books);
        }
        books
    }

    fn class_stats(&self, books: &Books) -> BTreeMap<&'static str, ClassStats> {
        let queued = |qos| {
            self.subs
                .iter()
                .map(|(_, sub)| sub.lanes.items_of(qos))
                .sum()
        };
        let classes = Qos::ALL.into_iter().zip(books.classes());
        let counted = classes.zip(self.totals.published);
        counted
            .map(|((qos, books), published)| {
                let stats = ClassStats {
                    published: Some(published),
                    ..ClassStats::of(books, queued(qos))
                };
                (qos.name(), stats)
            })
            .collect()
    }

    /// The busiest topics, and one row for all others.
    fn topic_stats(&self) -> Vec<TopicStats> {
        let mut rows: Vec<&Topic> = self.topics.iter().map(|(_, topic)| topic).collect();
        let busy = |topic: &Topic| topic.books.published + topic.books.matched;
        rows.sort_by(|a, b| busy(b).cmp(&busy(a)).then_with(|| a.name.cmp(&b.name)));
        let mut other = self.topics.other.clone();
        for topic in rows.iter().skip(SHOWN_TOPICS) {
            other.fold(&topic.books);
        }
        let named = rows
            .iter()
            .take(SHOWN_TOPICS)
            .filter(|topic| busy(topic) > 0);
        let mut all: Vec<TopicStats> = named
            .map(|topic| {
                let space = self.space(topic.space).map_or("", |space| &*space.name);
                TopicStats::of(space, &topic.name, &topic.books)
            })
            .collect();
        if other.published + other.matched > 0 {
            all.push(TopicStats::of("", OTHER, &other));
        }
        all
    }

    /// Calls, and requests, with those that are open.
    pub(crate) fn waits(&self) -> [Waits; 2] {
        let requests = self
            .calls
            .iter()
            .filter(|(_, pending)| matches!(pending.wanted, crate::core::Wanted::Request(_)))
            .count();
        let calls = self.calls.len() - requests;
        [
            Waits {
                pending: calls as u64,
                ..self.totals.calls
            },
            Waits {
                pending: requests as u64,
                ..self.totals.requests
            },
        ]
    }

    fn subscription_stats(&self) -> Vec<SubscriptionStats> {
        let all = self.subs.iter().map(|(_, sub)| {
            let total = sub.books.total();
            let queued = sub.lanes.firsts();
            let leased = total.open().saturating_sub(queued as u64);
            let leased = u32::try_from(leased).unwrap_or(u32::MAX);
            let again = sub.lanes.items() - queued;
            let classes = Qos::ALL.into_iter().zip(sub.books.classes());
            let heard = classes.filter(|(_, books)| books.matched > 0);
            SubscriptionStats {
                namespace: sub.origin.namespace.to_string(),
                name: sub.name.to_string(),
                kind: if sub.is_stream() { "stream" } else { "agent" },
                filters: sub
                    .filters
                    .iter()
                    .map(|filter| filter.as_str().to_owned())
                    .collect(),
                matched: total.matched,
                delivered: total.delivered,
                dropped: total.dropped,
                expired: total.expired,
                queued,
                queued_bytes: sub.lanes.bytes(),
                leased,
                again: again + sub.leased.saturating_sub(leased) as usize,
                high_water: sub.books.high_water,
                failed: total.failed,
                redelivered: total.redelivered,
                lagging: sub.lagging,
                latency: sub.books.latency(),
                by_qos: heard
                    .map(|(qos, books)| {
                        let stats = ClassStats::of(books, sub.lanes.items_of(qos));
                        (qos.name(), stats)
                    })
                    .collect(),
            }
        });
        all.collect()
    }

    fn capability_stats(&self) -> Vec<CapabilityStats> {
        let mut all = Vec::new();
        for space in &self.spaces {
            let releases = space.capabilities.iter().flat_map(|(name, capability)| {
                let releases = capability.releases.iter();
                releases.map(move |(version, release)| (name, version, release))
            });
            for (name, version, release) in releases {
                let providers = release
                    .providers
                    .iter()
                    .filter_map(|id| self.providers.get(*id));
                all.push(CapabilityStats {
                    namespace: space.name.to_string(),
                    name: name.to_string(),
                    version: version.text.to_string(),
                    providers: providers.clone().map(provider_stats).collect(),
                    calls: release.calls,
                    ok: release.outcomes.ok,
                    errors: by_name(&release.errors),
                    timeout: release.outcomes.timeout,
                    cancelled: release.outcomes.cancelled,
                    indeterminate: release.outcomes.indeterminate,
                    outstanding: providers.map(Provider::outstanding).sum(),
                    duration: release.duration.summary(),
                });
            }
        }
        all
    }

    /// What there is now.
    pub fn gauges(&self) -> Gauges {
        let parked = self
            .sessions
            .iter()
            .map(|(_, session)| session.parked)
            .sum();
        Gauges {
            sessions: self.sessions.len(),
            subscriptions: self.subs.len(),
            providers: self.providers.len(),
            handles: self.handles.len(),
            lanes: self.subs.iter().map(|(_, sub)| sub.lanes.len()).sum(),
            leased: self.leases.len(),
            pending: self.calls.len(),
            jobs: self.jobs.len(),
            keys: self.keys.len(),
            pausing: self.jobs.iter().filter(|(_, job)| job.is_pausing()).count(),
            timers: self.timers.len(),
            parked,
            tickets: self.parts.values().map(|part| part.order.len()).sum(),
            inbox: self
                .sessions
                .iter()
                .map(|(_, session)| session.inbox.len())
                .sum(),
        }
    }

    /// Losses of the whole engine by reason, removed subscriptions included.
    pub fn dropped(&self, reason: Reason) -> u64 {
        let live: u64 = self
            .subs
            .iter()
            .map(|(_, sub)| sub.books.lost(reason))
            .sum();
        live + self.totals.gone.lost(reason)
    }
}
