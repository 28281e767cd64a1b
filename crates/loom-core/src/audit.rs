//! Holds the books against the queues: what the counters say, and what walking finds.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::arena::{SubId, TopicId};
use crate::books::TopicBooks;
use crate::core::{Core, Holding};
use crate::envelope::Envelope;
use crate::space::SpaceId;
use crate::stats::Gauges;
use crate::subscription::Subscription;

/// One subscription's books and what was found.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct AuditedSubscription {
    pub namespace: String,
    pub name: String,
    pub matched: u64,
    pub delivered: u64,
    pub leased: u32,
    pub queued: usize,
    pub expired: u64,
    pub dropped: u64,
    pub walked_queued: usize,
    pub walked_bytes: usize,
    pub walked_leased: usize,
    /// matched = delivered + leased + queued + expired + dropped, with what walking found.
    pub balanced: bool,
}

/// What an audit found.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct Audit {
    pub balanced: bool,
    pub subscriptions: Vec<AuditedSubscription>,
    pub gauges: Gauges,
}

impl Core {
    /// Walks all queues and leases and holds the books against them.
    pub fn audit(&self) -> Audit {
        let subscriptions: Vec<AuditedSubscription> = self
            .subs
            .iter()
            .map(|(id, sub)| self.audit_one(id, sub))
            .collect();
        let balanced = subscriptions.iter().all(|sub| sub.balanced)
            && self.topics_balance()
            && self.consumers_balance()
            && self.waits_balance()
            && self.held_balances();
        Audit {
            balanced,
            subscriptions,
            gauges: self.gauges(),
        }
    }

    fn audit_one(&self, id: SubId, sub: &Subscription) -> AuditedSubscription {
        let (items, bytes, lanes, leased_lanes) = sub.lanes.walk();
        let held = self
            .leases
            .iter()
            .filter(|(_, lease)| matches!(lease.holding, Holding::Turn { sub, .. } if sub == id));
        let (mut again, mut held_count) = (0, 0);
        let mut spare = self.most_held();
        for (_, lease) in held {
            held_count += 1;
            if lease.durable.is_some() {
                spare -= self.held_by(&lease.env);
            }
            again += usize::from(lease.durable.as_ref().is_some_and(|it| it.again));
        }
        let held = held_count;
        let books = sub.books.total();
        // Events that were begun before are counted apart.
        let first = sub.lanes.queued().count() + held - again;
        let sum = books.delivered + first as u64 + books.expired + books.dropped.total();
        let same = items == sub.lanes.items()
            && bytes == sub.lanes.bytes()
            && lanes == sub.lanes.len()
            && held == leased_lanes
            && spare == sub.spare
            && held == sub.leased as usize;
        AuditedSubscription {
            namespace: sub.origin.namespace.to_string(),
            name: sub.name.to_string(),
            matched: books.matched,
            delivered: books.delivered,
            leased: sub.leased,
            queued: sub.lanes.items(),
            expired: books.expired,
            dropped: books.dropped.total(),
            walked_queued: items,
            walked_bytes: bytes,
            walked_leased: held,
            balanced: same && books.matched == sum,
        }
    }

    /// The law for each topic and for all others together, with what walking the queues and leases finds.
    fn topics_balance(&self) -> bool {
        let mut held: BTreeMap<TopicId, (usize, u64)> = BTreeMap::new();
        let known = |env: &Envelope| match self.topics.get(env.books) {
            Some(_) => env.books,
            None => TopicId(0),
        };
        for env in self.subs.iter().flat_map(|(_, sub)| sub.lanes.queued()) {
            held.entry(known(env)).or_default().0 += 1;
        }
        for (_, lease) in self.leases.iter() {
            let first = lease.durable.as_ref().is_none_or(|durable| !durable.again);
            if first && matches!(lease.holding, Holding::Turn { .. }) {
                held.entry(known(&lease.env)).or_default().1 += 1;
            }
        }
        let mut all = self.topics.iter().map(|(id, topic)| (id, &topic.books));
        let is_true = |(id, books): (TopicId, &TopicBooks)| {
            let (queued, leased) = held.get(&id).copied().unwrap_or_default();
            let sum = books.delivered + leased + books.expired + books.dropped.total();
            books.queued == queued && books.matched == sum + queued as u64
        };
        all.all(is_true) && is_true((TopicId(0), &self.topics.other))
    }

    /// The law for each group that consumes.
    fn consumers_balance(&self) -> bool {
        self.parts.values().all(|part| {
            let mut consumers = part.consumers.iter();
            consumers.all(|(number, found)| self.consumer_balances(part, *number, found))
        })
    }

    /// What calls hold of large arguments is what walking them finds.
    fn held_balances(&self) -> bool {
        let mut held: BTreeMap<SpaceId, usize> = BTreeMap::new();
        for (_, pending) in self.calls.iter() {
            *held.entry(pending.space).or_default() += self.large_bytes(&pending.env);
        }
        let mut spaces = (0..).map(SpaceId).zip(&self.spaces);
        spaces.all(|(id, space)| space.held == held.get(&id).copied().unwrap_or_default())
    }

    /// Each call and request that was started has ended once, or is open.
    fn waits_balance(&self) -> bool {
        self.waits().iter().all(|waits| {
            let ended =
                waits.ok + waits.error + waits.timeout + waits.cancelled + waits.indeterminate;
            waits.started == ended + waits.pending
        })
    }
}
