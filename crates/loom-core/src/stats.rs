//! What the engine counts, and the snapshot of it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::books::{Dropped, Reason, Summary};
use crate::broker::Provider;
use crate::core::Core;
use crate::envelope::Qos;
use crate::error::Code;

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
    pub(crate) published: u64,
    pub(crate) delivered: u64,
    pub(crate) expired: u64,
    pub(crate) dropped: Dropped,
    by_qos: [u64; 3],
    pub(crate) calls: Waits,
    pub(crate) requests: Waits,
    errors: BTreeMap<Code, u64>,
}

impl Totals {
    pub(crate) fn count_qos(&mut self, qos: Qos) {
        if let Some(count) = self.by_qos.get_mut(qos as usize) {
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
    pub delivered: u64,
    pub dropped: Dropped,
    pub expired: u64,
}

/// Publishes by delivery class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct QosCounts {
    pub realtime: u64,
    pub batched: u64,
    pub background: u64,
}

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
    pub high_water: usize,
    pub failed: u64,
    pub lagging: bool,
    pub latency: Summary,
}

/// One capability.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct CapabilityStats {
    pub namespace: String,
    pub name: String,
    pub version: String,
    pub providers: usize,
    pub calls: u64,
    pub ok: u64,
    pub errors: BTreeMap<&'static str, u64>,
    pub timeout: u64,
    pub cancelled: u64,
    pub indeterminate: u64,
    pub outstanding: usize,
    pub duration: Summary,
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
    pub by_qos: QosCounts,
    pub topics_cached: usize,
    pub subscriptions: Vec<SubscriptionStats>,
    pub capabilities: Vec<CapabilityStats>,
    pub calls: Waits,
    pub requests: Waits,
    pub errors: BTreeMap<&'static str, u64>,
    pub gauges: Gauges,
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
        let [realtime, batched, background] = self.totals.by_qos;
        let (calls, requests) = self.count_pending();
        Stats {
            events: EventCounts {
                published: self.totals.published,
                delivered: self.totals.delivered,
                dropped: self.totals.dropped,
                expired: self.totals.expired,
            },
            by_qos: QosCounts {
                realtime,
                batched,
                background,
            },
            topics_cached: self.spaces.iter().map(|space| space.routes.len()).sum(),
            subscriptions: self.subscription_stats(),
            capabilities: self.capability_stats(),
            calls: Waits {
                pending: calls,
                ..self.totals.calls
            },
            requests: Waits {
                pending: requests,
                ..self.totals.requests
            },
            errors: by_name(&self.totals.errors),
            gauges,
        }
    }

    fn count_pending(&self) -> (u64, u64) {
        let requests = self
            .calls
            .iter()
            .filter(|(_, pending)| matches!(pending.wanted, crate::core::Wanted::Request(_)))
            .count();
        ((self.calls.len() - requests) as u64, requests as u64)
    }

    fn subscription_stats(&self) -> Vec<SubscriptionStats> {
        let all = self.subs.iter().map(|(_, sub)| SubscriptionStats {
            namespace: sub.origin.namespace.to_string(),
            name: sub.name.to_string(),
            kind: if sub.is_stream() { "stream" } else { "agent" },
            filters: sub
                .filters
                .iter()
                .map(|filter| filter.as_str().to_owned())
                .collect(),
            matched: sub.books.matched,
            delivered: sub.books.delivered,
            dropped: sub.books.dropped,
            expired: sub.books.expired,
            queued: sub.lanes.items(),
            queued_bytes: sub.lanes.bytes(),
            leased: sub.leased,
            high_water: sub.books.high_water,
            failed: sub.books.failed,
            lagging: sub.lagging,
            latency: sub.books.latency.summary(),
        });
        all.collect()
    }

    fn capability_stats(&self) -> Vec<CapabilityStats> {
        let mut all = Vec::new();
        for space in &self.spaces {
            for (name, capability) in &space.capabilities {
                let providers = capability
                    .providers
                    .iter()
                    .filter_map(|id| self.providers.get(*id));
                all.push(CapabilityStats {
                    namespace: space.name.to_string(),
                    name: name.to_string(),
                    version: capability.version.to_string(),
                    providers: capability.providers.len(),
                    calls: capability.calls,
                    ok: capability.outcomes.ok,
                    errors: by_name(&capability.errors),
                    timeout: capability.outcomes.timeout,
                    cancelled: capability.outcomes.cancelled,
                    indeterminate: capability.outcomes.indeterminate,
                    outstanding: providers.map(Provider::outstanding).sum(),
                    duration: capability.duration.summary(),
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
            timers: self.timers.len(),
            parked,
            tickets: self.log_order.len(),
            inbox: self
                .sessions
                .iter()
                .map(|(_, session)| session.inbox.len())
                .sum(),
        }
    }

    /// Losses of the whole engine by reason, removed subscriptions included.
    pub fn dropped(&self, reason: Reason) -> u64 {
        match reason {
            Reason::Overflow => self.totals.dropped.overflow,
            Reason::Lagging => self.totals.dropped.lagging,
            Reason::Unsubscribed => self.totals.dropped.unsubscribed,
            Reason::SessionGone => self.totals.dropped.session_gone,
        }
    }
}
