//! The queue of one subscription: lanes in order, one turn at a time in each unless its member takes ahead, bounded by its
//! owner.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

use crate::envelope::{Envelope, Qos};
use crate::ident::Ident;
use crate::time::Nanos;

/// An event in a queue.
pub(crate) struct Item {
    pub(crate) env: Arc<Envelope>,
    pub(crate) at: Nanos,
    pub(crate) seq: u64,
    pub(crate) kind: As,
}

/// As what an event is queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    Ordinary,
    /// It may be dropped for a newer one.
    Realtime,
    /// Its turn is noted in the log; `again`: it was begun before, and is counted apart.
    Durable {
        again: bool,
    },
}

impl As {
    /// Whether it is among the events that its member was given first.
    pub(crate) fn is_first(self) -> bool {
        self != Self::Durable { again: true }
    }
}

/// Events in a row. Most lanes have one at a time: that one costs no allocation and no detour.
#[derive(Default)]
struct Line {
    /// None: the line is empty.
    first: Option<Item>,
    rest: VecDeque<Item>,
}

impl Line {
    fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn push(&mut self, item: Item) {
        if self.first.is_none() {
            self.first = Some(item);
        } else {
            self.rest.push_back(item);
        }
    }

    fn pop(&mut self) -> Option<Item> {
        let item = self.first.take()?;
        if !self.rest.is_empty() {
            self.first = self.rest.pop_front();
        }
        Some(item)
    }

    fn pop_newest(&mut self) -> Option<Item> {
        self.rest.pop_back().or_else(|| self.first.take())
    }

    fn remove(&mut self, seq: u64) -> Option<Item> {
        if self.first.as_ref()?.seq == seq {
            return self.pop();
        }
        let found = self.rest.iter().position(|item| item.seq == seq)?;
        self.rest.remove(found)
    }

    fn iter(&self) -> impl Iterator<Item = &Item> + Clone {
        self.first.iter().chain(&self.rest)
    }

    fn drain(&mut self) -> impl Iterator<Item = Item> {
        self.first.take().into_iter().chain(self.rest.drain(..))
    }

    /// Gives back what a long line has allocated, once it is empty.
    fn shrink(&mut self) {
        if self.rest.capacity() > KEPT_ITEMS {
            self.rest = VecDeque::new();
        }
    }
}

struct Lane {
    ident: Ident,
    items: Line,
    /// How many of its events are out: one, unless its member takes ahead.
    leased: u32,
    /// What is out is durable: nothing else of the lane goes until it has ended.
    durable: bool,
    /// It stands among the ready ones.
    listed: bool,
}

impl Lane {
    /// Whether its next event may go: nothing of it is out, or what is out and what comes may be ahead of each other.
    fn is_free(&self, most: u32) -> bool {
        self.leased == 0 || (self.leased < most && !self.durable && !self.is_next_durable())
    }

    fn is_next_durable(&self) -> bool {
        let next = self.items.first.as_ref();
        next.is_some_and(|item| matches!(item.kind, As::Durable { .. }))
    }
}

/// A slot keeps its allocation when its lane is done, unless it has grown past this.
const KEPT_ITEMS: usize = 16;

fn hash(ident: &Ident) -> u64 {
    FxBuildHasher.hash_one(ident)
}

fn is_called(slots: &[Lane], at: u32, ident: &Ident) -> bool {
    slots
        .get(at as usize)
        .is_some_and(|lane| lane.ident == *ident)
}

/// All lanes of a subscription. A lane lives while something of it is queued or leased.
#[derive(Default)]
pub(crate) struct Lanes {
    /// Places in `slots` by name. The names stand there only: a hundred full queues fit into the processor's cache.
    index: HashTable<u32>,
    slots: Vec<Lane>,
    free: Vec<u32>,
    /// Lanes that have something whose turn may begin, the longest waiting first.
    ready: VecDeque<u32>,
    /// Realtime items in the order they came; entries of items that are gone are skipped.
    realtime: VecDeque<(u32, u64)>,
    items: usize,
    /// Of these, by delivery class.
    classes: [usize; 3],
    bytes: usize,
    next_seq: u64,
    /// So many events of one lane may be out at once, as long as none of them is durable.
    most_out: u32,
}

impl Lanes {
    pub(crate) fn items(&self) -> usize {
        self.items
    }

    /// Events of this class that are queued.
    pub(crate) fn items_of(&self, qos: Qos) -> usize {
        self.classes.get(qos as usize).copied().unwrap_or_default()
    }

    /// Of these, those that its member is given first.
    pub(crate) fn firsts(&self) -> usize {
        self.classes.iter().sum()
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
        let is_it = |at: &u32| is_called(&self.slots, *at, ident);
        self.index.find(hash(ident), is_it).copied()
    }

    /// Whether something of this lane waits here.
    pub(crate) fn waits(&self, ident: &Ident) -> bool {
        let lane = self.find(ident).and_then(|at| self.slots.get(at as usize));
        lane.is_some_and(|lane| !lane.items.is_empty())
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
                items: Line::default(),
                leased: 0,
                durable: false,
                listed: false,
            });
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        };
        let slots = &self.slots;
        let again = |at: &u32| slots.get(*at as usize).map_or(0, |lane| hash(&lane.ident));
        self.index.insert_unique(hash(ident), at, again);
        at
    }

    fn shut(&mut self, at: u32) {
        let Some(lane) = self.slots.get_mut(at as usize) else {
            return;
        };
        if let Ok(found) = self
            .index
            .find_entry(hash(&lane.ident), |other| *other == at)
        {
            found.remove();
        }
        lane.items.shrink();
        self.free.push(at);
    }

    /// Puts an event at the end of its lane; returns where, for [`Self::remove`].
    pub(crate) fn push(
        &mut self,
        ident: &Ident,
        env: Arc<Envelope>,
        at: Nanos,
        kind: As,
    ) -> (u32, u64) {
        let place = self.find(ident).unwrap_or_else(|| self.open(ident));
        let seq = self.next_seq;
        self.next_seq += 1;
        self.items += 1;
        if kind.is_first()
            && let Some(count) = self.classes.get_mut(env.qos as usize)
        {
            *count += 1;
        }
        self.bytes += env.size();
        if kind == As::Realtime {
            self.note_realtime(place, seq);
        }
        if let Some(lane) = self.slots.get_mut(place as usize) {
            lane.items.push(Item { env, at, seq, kind });
            if !lane.listed && lane.is_free(self.most_out) {
                lane.listed = true;
                self.ready.push_back(place);
            }
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
        if item.kind.is_first()
            && let Some(count) = self.classes.get_mut(item.env.qos as usize)
        {
            *count -= 1;
        }
        self.bytes -= item.env.size();
        if item.kind == As::Realtime
            && self
                .realtime
                .front()
                .is_some_and(|(_, seq)| *seq == item.seq)
        {
            self.realtime.pop_front();
        }
    }

    /// From now on so many events of one lane may be out at once.
    pub(crate) fn run_ahead(&mut self, most_out: u32) {
        self.most_out = most_out;
        for place in 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX) {
            self.list(place);
        }
    }

    /// Lets a lane stand among the ready ones if it belongs there.
    fn list(&mut self, place: u32) {
        let Some(lane) = self.slots.get_mut(place as usize) else {
            return;
        };
        if !lane.listed && !lane.items.is_empty() && lane.is_free(self.most_out) {
            lane.listed = true;
            self.ready.push_back(place);
        }
    }

    fn unlist(&mut self, place: u32) {
        let Some(lane) = self.slots.get_mut(place as usize) else {
            return;
        };
        if std::mem::take(&mut lane.listed)
            && let Some(waiting) = self.ready.iter().position(|other| *other == place)
        {
            self.ready.remove(waiting);
        }
    }

    /// Takes the first event of the lane that waits longest; that lane is leased then. `newest` is a planted bug.
    pub(crate) fn pop(&mut self, newest: bool) -> Option<(u32, Item)> {
        let place = self.ready.pop_front()?;
        let lane = self.slots.get_mut(place as usize)?;
        lane.listed = false;
        let item = if newest {
            lane.items.pop_newest()?
        } else {
            lane.items.pop()?
        };
        lane.leased += 1;
        lane.durable = matches!(item.kind, As::Durable { .. });
        self.list(place);
        self.forget(&item);
        Some((place, item))
    }

    /// Ends a lease of a lane: its next event is ready behind all other lanes, or it is done.
    pub(crate) fn release(&mut self, place: u32) {
        if self.let_go(place) {
            self.ready.push_back(place);
        }
    }

    /// Ends the lease of a lane whose event was not started: the next one is ready in its place.
    pub(crate) fn skip(&mut self, place: u32) {
        let lane = self.slots.get(place as usize);
        if lane.is_some_and(|lane| lane.listed) {
            // It was taken ahead, and stands behind all others since.
            self.unlist(place);
        }
        if self.let_go(place) {
            self.ready.push_front(place);
        }
    }

    /// Ends a lease of a lane; says whether it is ready now and was not before.
    fn let_go(&mut self, place: u32) -> bool {
        let Some(lane) = self.slots.get_mut(place as usize) else {
            return false;
        };
        debug_assert!(lane.leased > 0, "only a leased lane is released");
        lane.leased = lane.leased.saturating_sub(1);
        lane.durable &= lane.leased > 0;
        let empty = lane.items.is_empty();
        if !empty && !lane.listed && lane.is_free(self.most_out) {
            lane.listed = true;
            return true;
        }
        if empty && lane.leased == 0 {
            self.shut(place);
        }
        false
    }

    /// Makes a leased lane ready as well: a bug that the simulator asks for.
    pub(crate) fn hurry(&mut self, place: u32) {
        if let Some(lane) = self.slots.get_mut(place as usize)
            && lane.leased > 0
            && !lane.listed
        {
            lane.listed = true;
            self.ready.push_back(place);
        }
    }

    /// Takes one event out of the middle.
    pub(crate) fn remove(&mut self, place: u32, seq: u64) -> Option<Item> {
        let lane = self.slots.get_mut(place as usize)?;
        let item = lane.items.remove(seq)?;
        let (empty, out) = (lane.items.is_empty(), lane.leased > 0);
        let free = !empty && lane.is_free(self.most_out);
        if free {
            self.list(place);
        } else {
            self.unlist(place);
        }
        if empty && !out {
            self.shut(place);
        }
        self.forget(&item);
        Some(item)
    }

    /// Where those events are for which this is so.
    pub(crate) fn find_all(&self, mut is_so: impl FnMut(&Envelope) -> bool) -> Vec<(u32, u64)> {
        let mut found = Vec::new();
        for (place, lane) in (0..).zip(&self.slots) {
            let items = lane.items.iter().filter(|item| is_so(&item.env));
            found.extend(items.map(|item| (place, item.seq)));
        }
        found.sort_by_key(|(_, seq)| *seq);
        found
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
            lane.listed = false;
            if lane.items.is_empty() {
                continue;
            }
            let leased = lane.leased > 0;
            all.extend(lane.items.drain().map(|item| (place, item)));
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

    /// Whether the next event is durable.
    pub(crate) fn is_next_durable(&self) -> bool {
        let next = self.ready.front();
        let next = next.and_then(|place| self.slots.get(*place as usize));
        next.is_some_and(Lane::is_next_durable)
    }

    /// Takes all durable events of a leased lane out.
    pub(crate) fn take_durable(&mut self, place: u32) -> Vec<Item> {
        let Some(lane) = self.slots.get_mut(place as usize) else {
            return Vec::new();
        };
        let is_durable = |item: &Item| matches!(item.kind, As::Durable { .. });
        if !lane.items.iter().any(is_durable) {
            return Vec::new();
        }
        let all: Vec<Item> = lane.items.drain().collect();
        let (durable, others): (Vec<Item>, Vec<Item>) = all.into_iter().partition(is_durable);
        for item in others {
            lane.items.push(item);
        }
        for item in &durable {
            self.forget(item);
        }
        durable
    }

    /// All that its member was given first, and is queued.
    pub(crate) fn queued(&self) -> impl Iterator<Item = &Envelope> {
        let items = self.slots.iter().flat_map(|lane| lane.items.iter());
        items
            .filter(|item| item.kind.is_first())
            .map(|item| &*item.env)
    }

    /// Counts the durable ones by walking.
    pub(crate) fn walk_durable(&self) -> usize {
        let items = self.slots.iter().flat_map(|lane| lane.items.iter());
        items
            .filter(|item| matches!(item.kind, As::Durable { .. }))
            .count()
    }

    /// Counts by walking: (events, bytes, lanes, events of them that are out). The books are held against this.
    pub(crate) fn walk(&self) -> (usize, usize, usize, usize) {
        let items = self.slots.iter().flat_map(|lane| lane.items.iter());
        let bytes = items.clone().map(|item| item.env.size()).sum();
        let leased = self.slots.iter().map(|lane| lane.leased as usize).sum();
        let live = self
            .slots
            .iter()
            .filter(|lane| lane.leased > 0 || !lane.items.is_empty())
            .count();
        (items.count(), bytes, live, leased)
    }
}
