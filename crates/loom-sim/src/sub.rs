//! What is known of one subscription: what it hears, what it may hold, and what it was given.

use std::collections::BTreeMap;

use loom_core::{Handle, Health, Ident, LeaseId, SessionId};

use crate::afar::{MayHear, may_hear};
use crate::trace::{Check, ensure};

/// One subscription of an agent, or an ordered stream.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own and changes alone"
)]
pub(crate) struct Sub {
    pub(crate) session: SessionId,
    pub(crate) handle: Handle,
    pub(crate) space: usize,
    /// Of the agent; of a stream, its session's. No two are equal.
    pub(crate) name: String,
    /// Of a stream: a name that nobody else has.
    pub(crate) group: String,
    pub(crate) stream: bool,
    pub(crate) lossy: bool,
    pub(crate) filters: Vec<String>,
    pub(crate) concurrency: usize,
    /// What its session may hear.
    pub(crate) may_hear: MayHear,
    /// Its session takes ahead: how much may be out; none: one turn of a lane after the other.
    pub(crate) ahead: Option<usize>,
    pub(crate) live: bool,
    pub(crate) health: Health,
    /// When it was quarantined last, and lost all that was queued.
    pub(crate) shed: Option<u64>,
    pub(crate) open: BTreeMap<LeaseId, Ident>,
    /// When a turn of a lane was given out last, and when one ended last.
    pub(crate) given: BTreeMap<Ident, u64>,
    pub(crate) freed: BTreeMap<Ident, u64>,
    /// Turns that ended, and those of them that failed.
    pub(crate) ended: u64,
    pub(crate) failed: u64,
    /// Events that were for it and nobody else of its group.
    pub(crate) sole: u64,
    /// Events that were for it or another member.
    pub(crate) shared: u64,
    /// Events and bytes that it may hold at most, and the most there ever were.
    pub(crate) load: (usize, usize),
    pub(crate) peak: (usize, usize),
    /// Realtime events among them: only these may be lost while no offer waits.
    pub(crate) fleeting: u64,
    /// An offer has waited that was for it too.
    pub(crate) waited: bool,
    /// It was given something since the clock moved, so its queue got shorter.
    pub(crate) eased: bool,
    pub(crate) ring: Ring,
}

/// Realtime events of one subscription in the order they were put into its queue.
#[derive(Default)]
pub(crate) struct Ring {
    pub(crate) items: Vec<RingItem>,
    /// Some came at a time that is not known.
    pub(crate) blurred: bool,
}

pub(crate) struct RingItem {
    pub(crate) event: usize,
    pub(crate) placed: u64,
    pub(crate) taken: Option<u64>,
    /// It may have gone because its time was up.
    pub(crate) mortal: bool,
}

impl Sub {
    pub(crate) fn new(session: SessionId, space: usize, name: String, group: String) -> Self {
        Self {
            session,
            handle: Handle(0),
            space,
            name,
            group,
            stream: false,
            lossy: false,
            filters: Vec::new(),
            concurrency: 1,
            may_hear: None,
            ahead: None,
            live: true,
            health: Health::Up,
            shed: None,
            open: BTreeMap::new(),
            given: BTreeMap::new(),
            freed: BTreeMap::new(),
            ended: 0,
            failed: 0,
            sole: 0,
            shared: 0,
            load: (0, 0),
            peak: (0, 0),
            fleeting: 0,
            waited: false,
            eased: false,
            ring: Ring::default(),
        }
    }

    /// Whether what matches its filters is for it.
    pub(crate) fn listens(&self) -> bool {
        self.live && self.health != Health::Quarantined
    }

    /// Whether only realtime events can leave its queue without a turn.
    pub(crate) fn keeps_all(&self) -> bool {
        !self.stream && !self.lossy && !self.waited
    }

    /// Whether a lane that has an event since `placed` was ready before `then`, and is still.
    pub(crate) fn is_ready(&self, lane: Option<&Ident>, placed: u64, then: u64) -> bool {
        let freed = lane.and_then(|lane| self.freed.get(lane)).copied();
        let open = lane.is_some_and(|lane| self.open.values().any(|open| open == lane));
        !open && freed.map_or(placed, |freed| placed.max(freed)) < then
    }

    pub(crate) fn hears(&self, topic: &str) -> bool {
        let asks = self.filters.iter().any(|filter| hears(filter, topic));
        asks && may_hear(self.may_hear, topic)
    }

    /// It may get events that this book does not know beforehand: the engine's own, and copies of replies.
    pub(crate) fn hears_engine(&self) -> bool {
        let firsts = self
            .filters
            .iter()
            .filter_map(|filter| filter.split('.').next());
        firsts
            .into_iter()
            .any(|first| matches!(first, "*" | ">" | "loom" | "thread"))
    }
}

impl Ring {
    pub(crate) fn check(&self, name: &str) -> Check {
        let last = self.items.last().map_or(0, |item| item.placed);
        let first_lost = self
            .items
            .iter()
            .position(|item| item.taken.is_none() && !item.mortal);
        let Some(first_lost) = first_lost else {
            return Ok(());
        };
        let survivor = self
            .items
            .iter()
            .take(first_lost)
            .find(|item| item.taken > Some(last));
        ensure(survivor.is_none(), "QOS-REALTIME", || {
            format!("{name} lost a newer realtime event and kept an older one")
        })
    }
}

/// A filter's grammar, read token by token.
pub(crate) fn hears(filter: &str, topic: &str) -> bool {
    let filter: Vec<&str> = filter.split('.').collect();
    let topic: Vec<&str> = topic.split('.').collect();
    matches(&filter, &topic)
}

fn matches(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        ([], []) | ([">"], [_, ..]) => true,
        ([first, filter @ ..], [token, topic @ ..]) => {
            (*first == "*" || first == token) && matches(filter, topic)
        }
        _ => false,
    }
}
