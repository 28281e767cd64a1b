//! What was delivered to one registration and waits for its worker: lanes in order, one turn at a time in each.

use std::collections::VecDeque;

use loom_core::{Delivery, LeaseId};
use rustc_hash::FxHashMap;

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Delivery>,
    is_busy: bool,
}

/// Deliveries of one registration. What may be in it is bounded by what the client has granted.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    lanes: FxHashMap<u64, Lane>,
    /// Lanes that have something and in which no turn runs, the longest waiting first.
    ready: VecDeque<u64>,
}

impl Queue {
    /// Puts a delivery at the end of its lane; whether it can be taken now.
    pub(crate) fn push(&mut self, lane: u64, delivery: Delivery) -> bool {
        let found = self.lanes.entry(lane).or_default();
        let is_first = found.waiting.is_empty() && !found.is_busy;
        found.waiting.push_back(delivery);
        if is_first {
            self.ready.push_back(lane);
        }
        is_first
    }

    /// Takes the first delivery of the lane that waits longest; no other of that lane is given before [`Self::release`].
    pub(crate) fn pop(&mut self) -> Option<(u64, Delivery)> {
        let lane = self.ready.pop_front()?;
        let found = self.lanes.get_mut(&lane)?;
        let delivery = found.waiting.pop_front()?;
        found.is_busy = true;
        Some((lane, delivery))
    }

    /// The turn of a lane has ended.
    pub(crate) fn release(&mut self, lane: u64) {
        let Some(found) = self.lanes.get_mut(&lane) else {
            return;
        };
        found.is_busy = false;
        if found.waiting.is_empty() {
            self.lanes.remove(&lane);
        } else {
            self.ready.push_back(lane);
        }
    }

    /// Takes one out of its lane that was not begun; none: it runs, or is not here.
    pub(crate) fn remove(&mut self, lane: u64, lease: LeaseId) -> Option<Delivery> {
        let found = self.lanes.get_mut(&lane)?;
        let at = found
            .waiting
            .iter()
            .position(|one| one.lease == Some(lease))?;
        let delivery = found.waiting.remove(at);
        if found.waiting.is_empty() {
            self.ready.retain(|ready| *ready != lane);
            if !found.is_busy {
                self.lanes.remove(&lane);
            }
        }
        delivery
    }

    /// Whether [`Self::pop`] has something.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Empties it; lanes in which a turn runs stay until that ends, under new numbers: `rename` gives them.
    pub(crate) fn restart(
        &mut self,
        keep: impl Fn(&Delivery) -> bool,
        rename: impl Fn(u64) -> u64,
    ) -> Vec<Delivery> {
        let mut gone = Vec::new();
        let mut lanes: Vec<(u64, Lane)> = self.lanes.drain().collect();
        lanes.sort_by_key(|(number, _)| *number);
        self.ready.clear();
        for (number, mut lane) in lanes {
            let (kept, dropped): (VecDeque<_>, VecDeque<_>) =
                lane.waiting.drain(..).partition(&keep);
            gone.extend(dropped);
            lane.waiting = kept;
            if !lane.waiting.is_empty() && !lane.is_busy {
                self.ready.push_back(rename(number));
            }
            if lane.is_busy || !lane.waiting.is_empty() {
                self.lanes.insert(rename(number), lane);
            }
        }
        gone
    }
}
