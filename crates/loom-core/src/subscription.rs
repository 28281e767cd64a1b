//! One subscription, and the group whose members share a stream of events.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::arena::{GroupId, Handle, LeaseId, SessionId, SubId, Ticket};
use crate::books::Books;
use crate::consume::ConsumerId;
use crate::envelope::{Envelope, Origin, Qos};
use crate::health::Health;
use crate::ident::Ident;
use crate::lane::Lanes;
use crate::limits::Limits;
use crate::space::SpaceId;
use crate::topic::Filter;

/// An agent's subscription, or an ordered stream.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own and changes alone"
)]
pub(crate) struct Subscription {
    pub(crate) name: Arc<str>,
    pub(crate) origin: Arc<Origin>,
    pub(crate) space: SpaceId,
    pub(crate) session: SessionId,
    pub(crate) handle: Handle,
    /// None: a stream, which is alone.
    pub(crate) group: Option<GroupId>,
    pub(crate) filters: Vec<Filter>,
    pub(crate) concurrency: u32,
    /// It takes every event as realtime.
    pub(crate) lossy: bool,
    /// There is one agent of its name.
    pub(crate) exclusive: bool,
    pub(crate) lanes: Lanes,
    pub(crate) leased: u32,
    /// Of these, turns of durable events.
    pub(crate) durables: u32,
    /// It is taken ahead: how many events that are not durable may be out at once; none: as many as its concurrency.
    pub(crate) ahead: Option<u32>,
    /// Bytes of large events that its turns may hold beside those they do; used up, no further turn begins.
    pub(crate) spare: i64,
    /// Of a stream: what the next take ends.
    pub(crate) current: Option<LeaseId>,
    /// The next ready turn is announced.
    pub(crate) armed: bool,
    pub(crate) lagging: bool,
    /// What its runtime says of it.
    pub(crate) health: Health,
    /// Removed; lives until its last turn ends.
    pub(crate) closing: bool,
    /// What its group consumes of the log as.
    pub(crate) consumer: Option<ConsumerId>,
    /// Durable turns that may be taken.
    pub(crate) claimed: VecDeque<LeaseId>,
    /// Its consumer waits for room here.
    pub(crate) hungry: bool,
    /// Offers that wait for room here, the oldest first.
    pub(crate) parked: VecDeque<(u64, Ticket)>,
    /// Lanes of offers that wait, here or elsewhere, and will come here.
    pub(crate) awaited: FxHashMap<Ident, usize>,
    pub(crate) books: Books,
}

impl Subscription {
    pub(crate) fn is_stream(&self) -> bool {
        self.group.is_none()
    }

    /// The class an event has here.
    pub(crate) fn class(&self, qos: Qos) -> Qos {
        if self.lossy { Qos::Realtime } else { qos }
    }

    /// Whether an event fits. An eighth more is for realtime alone: a queue full of batched events keeps the newest, too.
    pub(crate) fn has_room(&self, env: &Envelope, limits: &Limits) -> bool {
        let reserve = limits.queue_items / 8;
        let fleeting = env.qos == Qos::Realtime && !self.lossy;
        if fleeting && self.lanes.items_of(Qos::Realtime) < reserve {
            let bytes = limits.queue_bytes + limits.queue_bytes / 8;
            return self.fits(env, limits.queue_items + reserve, bytes);
        }
        self.fits(env, limits.queue_items, limits.queue_bytes)
    }

    /// Whether an event that comes now may have the room there is: background may fill half of a queue, so under load it
    /// is the first that finds none.
    pub(crate) fn admits(&self, env: &Envelope, limits: &Limits) -> bool {
        if self.class(env.qos) == Qos::Background {
            return self.fits(env, limits.queue_items.div_ceil(2), limits.queue_bytes / 2);
        }
        self.has_room(env, limits)
    }

    fn fits(&self, env: &Envelope, most: usize, most_bytes: usize) -> bool {
        let items = self.lanes.items();
        items < most && (self.lanes.bytes() + env.size() <= most_bytes || items == 0)
    }

    pub(crate) fn is_half_empty(&self, limits: &Limits) -> bool {
        self.lanes.items() <= limits.queue_items / 2 && self.lanes.bytes() <= limits.queue_bytes / 2
    }

    /// One offer less of this lane will come here.
    pub(crate) fn forget_awaited(&mut self, lane: &Ident) {
        if let Some(count) = self.awaited.get_mut(lane) {
            *count -= 1;
            if *count == 0 {
                self.awaited.remove(lane);
            }
        }
    }

    pub(crate) fn can_start(&self) -> bool {
        (self.has_slot() && self.lanes.is_ready())
            || (!self.claimed.is_empty() && self.health == Health::Up)
    }

    /// Whether one more turn may be given out.
    pub(crate) fn has_slot(&self) -> bool {
        let free = match self.ahead {
            None => self.leased < self.concurrency,
            Some(_) if self.lanes.is_next_durable() => self.durables < self.concurrency,
            Some(most) => self.leased - self.durables < most,
        };
        free && self.spare > 0 && self.health == Health::Up
    }

    /// Whether what is for it finds no queue any more.
    pub(crate) fn is_deaf(&self) -> bool {
        self.closing || self.health == Health::Quarantined
    }
}

/// Subscriptions of one name: of those that match, one gets the event.
pub(crate) struct Group {
    pub(crate) name: Arc<str>,
    pub(crate) members: Vec<SubId>,
    pub(crate) turn: usize,
    /// What it consumes of the log as.
    pub(crate) consumer: Option<ConsumerId>,
}
