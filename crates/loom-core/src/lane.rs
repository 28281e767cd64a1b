//! The queue of one subscription: lanes in order, one turn at a time in each, bounded by its owner.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::envelope::{Envelope, Qos};
use crate::ident::Ident;
use crate::time::Nanos;

/// An event in a queue.
pub(crate) struct Item {
    pub(crate) env: Arc<Envelope>,
    pub(crate) at: Nanos,
    pub(crate) seq: u64,
    pub(crate) realtime: bool,
}

struct Lane {
    ident: Ident,
    items: VecDeque<Item>,
    leased: bool,
}

/// A slot keeps its allocation when its lane is done, unless it has grown past this.
const KEPT_ITEMS: usize = 16;

/// All lanes of a subscription. A lane lives while something of it is queued or leased.
#[derive(Default)]
pub(crate) struct Lanes {
    index: FxHashMap<Ident, u32>,
    slots: Vec<Lane>,
    free: Vec<u32>,
    /// Lanes that have something and are not leased, the longest waiting first.
    ready: VecDeque<u32>,
    /// Realtime items in the order they came; entries of items that are gone are skipped.
    realtime: VecDeque<(u32, u64)>,
    items: usize,
    /// Of these, by delivery class.
    classes: [usize; 3],
    bytes: usize,
    next_seq: u64,
}

impl Lanes {
    pub(crate) fn items(&self) -> usize {
        self.items
    }

    /// Events of this class that are queued.
    pub(crate) fn items_of(&self, qos: Qos) -> usize {
        self.classes.get(qos as usize).copied().unwrap_or_default()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The lane of this name, if anything of it is queued or leased.
    pub(crate) fn find(&self, ident: &Ident) -> Option<u32> {
        self.index.get(ident).copied()
    }

    fn open(&mut self, ident: &Ident) -> u32 {
        let at = if let Some(at) = self.free.pop() {
            if let Some(lane) = self.slots.get_mut(at as usize) {
                lane.ident = ident.clone();
            }
            at
        } else {
            self.slots.push(Lane {
                ident: ident.clone(),
                items: VecDeque::new(),
                leased: false,
            });
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        };
        self.index.insert(ident.clone(), at);
        at
    }

    fn shut(&mut self, at: u32) {
        let Some(lane) = self.slots.get_mut(at as usize) else {
            return;
        };
        self.index.remove(&lane.ident);
        if lane.items.capacity() > KEPT_ITEMS {
            lane.items = VecDeque::new();
        }
        self.free.push(at);
    }

    /// Puts an event at the end of its lane; returns where, for [`Self::remove`].
    pub(crate) fn push(
        &mut self,
        ident: &Ident,
        env: Arc<Envelope>,
        at: Nanos,
        realtime: bool,
    ) -> (u32, u64) {
        let place = self.find(ident).unwrap_or_else(|| self.open(ident));
        let seq = self.next_seq;
        self.next_seq += 1;
        self.items += 1;
        if let Some(count) = self.classes.get_mut(env.qos as usize) {
            *count += 1;
        }
        self.bytes += env.size();
        if realtime {
            self.note_realtime(place, seq);
        }
        if let Some(lane) = self.slots.get_mut(place as usize) {
            if lane.items.is_empty() && !lane.leased {
                self.ready.push_back(place);
            }
            lane.items.push_back(Item {
                env,
                at,
                seq,
                realtime,
            });
        }
        (place, seq)
    }

    fn note_realtime(&mut self, place: u32, seq: u64) {
        if self.realtime.len() > 2 * self.items + 64 {
            let slots = &self.slots;
            self.realtime.retain(|(place, seq)| {
                let lane = slots.get(*place as usize);
                lane.is_some_and(|lane| lane.items.iter().any(|item| item.seq == *seq))
            });
        }
        self.realtime.push_back((place, seq));
    }

    fn forget(&mut self, item: &Item) {
        self.items -= 1;
        if let Some(count) = self.classes.get_mut(item.env.qos as usize) {
            *count -= 1;
        }
        self.bytes -= item.env.size();
        if item.realtime
            && self
                .realtime
                .front()
                .is_some_and(|(_, seq)| *seq == item.seq)
        {
            self.realtime.pop_front();
        }
    }

    /// Takes the first event of the lane that waits longest; that lane is leased then. `newest` is a planted bug.
    pub(crate) fn pop(&mut self, newest: bool) -> Option<(u32, Item)> {
        let place = self.ready.pop_front()?;
        let lane = self.slots.get_mut(place as usize)?;
        let item = if newest {
            lane.items.pop_back()?
        } else {
            lane.items.pop_front()?
        };
        lane.leased = true;
        self.forget(&item);
        Some((place, item))
    }

    /// Ends the lease of a lane: its next event is ready, or it is done.
    pub(crate) fn release(&mut self, place: u32) {
        let Some(lane) = self.slots.get_mut(place as usize) else {
            return;
        };
        debug_assert!(lane.leased, "only a leased lane is released");
        lane.leased = false;
        if lane.items.is_empty() {
            self.shut(place);
        } else {
            self.ready.push_back(place);
        }
    }

    /// Makes a leased lane ready as well: a bug that the simulator asks for.
    pub(crate) fn hurry(&mut self, place: u32) {
        let lane = self.slots.get(place as usize);
        if lane.is_some_and(|lane| lane.leased) && !self.ready.contains(&place) {
            self.ready.push_back(place);
        }
    }

    /// Takes one event out of the middle.
    pub(crate) fn remove(&mut self, place: u32, seq: u64) -> Option<Item> {
        let lane = self.slots.get_mut(place as usize)?;
        let found = lane.items.iter().position(|item| item.seq == seq)?;
        let item = lane.items.remove(found)?;
        if lane.items.is_empty() && !lane.leased {
            if let Some(waiting) = self.ready.iter().position(|other| *other == place) {
                self.ready.remove(waiting);
            }
            self.shut(place);
        }
        self.forget(&item);
        Some(item)
    }

    /// Takes the oldest realtime event.
    pub(crate) fn remove_oldest_realtime(&mut self) -> Option<(u32, Item)> {
        while let Some((place, seq)) = self.realtime.pop_front() {
            if let Some(item) = self.remove(place, seq) {
                return Some((place, item));
            }
        }
        None
    }

    /// Takes everything that is queued with its lane, in the order it came; leased lanes stay.
    pub(crate) fn clear(&mut self) -> Vec<(u32, Item)> {
        let mut all = Vec::with_capacity(self.items);
        self.ready.clear();
        self.realtime.clear();
        for place in 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX) {
            let Some(lane) = self.slots.get_mut(place as usize) else {
                continue;
            };
            if lane.items.is_empty() {
                continue;
            }
            let leased = lane.leased;
            all.extend(lane.items.drain(..).map(|item| (place, item)));
            if !leased {
                self.shut(place);
            }
        }
        self.items = 0;
        self.classes = [0; 3];
        self.bytes = 0;
        all.sort_by_key(|(_, item)| item.seq);
        all
    }

    /// All that is queued.
    pub(crate) fn queued(&self) -> impl Iterator<Item = &Envelope> {
        self.slots
            .iter()
            .flat_map(|lane| lane.items.iter().map(|item| &*item.env))
    }

    /// Counts by walking: (events, bytes, lanes, leased lanes). The books are held against this.
    pub(crate) fn walk(&self) -> (usize, usize, usize, usize) {
        let items = self.slots.iter().flat_map(|lane| &lane.items);
        let bytes = items.clone().map(|item| item.env.size()).sum();
        let leased = self.slots.iter().filter(|lane| lane.leased).count();
        let live = self
            .slots
            .iter()
            .filter(|lane| lane.leased || !lane.items.is_empty())
            .count();
        (items.count(), bytes, live, leased)
    }
}
