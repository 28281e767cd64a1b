//! The node knows nothing of this session (any more): everything is registered again, and what was under way is sent
//! again where that repeats nothing, else ended as unknown.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use loom_core::{Code, Error, Moment, Notice, Ticket};
use loom_proto::v1::{self, frame::Body};
use rustc_hash::FxHashMap;

use super::calls::{call_of, lease_of, number_of};
use super::leaving::matters;
use super::{Client, LinkState, Note, Quoting, Turn};
use crate::attached::Flow;
use crate::channel::Channel;
use crate::planted::Planted;

/// Numbers of lanes that a node gives stay below this.
const LANES: u64 = 1 << 40;

/// A publish that the node knows by its id, if it has taken it.
fn is_named(it: &v1::Publish) -> bool {
    it.options.as_ref().is_some_and(|it| !it.id.is_empty())
}

impl Client {
    /// Begins anew at a node. `remembers`: whether that knows the calls with a key that were sent before; none: it was
    /// never attached before, so nothing is under way. `is_elsewhere`: it is the same life of the node, which has ended
    /// the session and given its durable turns to others.
    pub(super) fn restart(
        &mut self,
        credit: v1::Credit,
        remembers: Option<bool>,
        is_elsewhere: bool,
        at: Moment,
    ) {
        let (config, old) = (self.config.clone(), self.epoch);
        let is_over = self.state == LinkState::Closed;
        if is_over {
            // Publishes with an id are said again; nobody can say what became of the rest.
            let again = |body: &Body| matches!(body, Body::Publish(it) if is_named(it));
            self.forgone += self
                .channel
                .unconfirmed(|body| matters(body) && !again(body));
        }
        self.channel = Channel::new(config.limits.frame_bytes, config.whole);
        self.channel.bugs = self.bugs;
        self.gone = Flow::default();
        self.allowed = Flow {
            frames: credit.frames,
            bytes: credit.bytes,
        };
        self.dealt = Flow::default();
        self.granted = Flow {
            frames: config.limits.window_frames,
            bytes: config.limits.window_bytes,
        };
        if remembers.is_some() {
            self.forget_leases(old);
        }
        if !is_over {
            self.register_again();
        }
        let mut waiting = std::mem::take(&mut self.outbound);
        self.name_unsent(&mut waiting, at);
        self.outbound_bytes = 0;
        let quoting = std::mem::take(&mut self.quoting);
        let had = waiting.len();
        // Another life of the node waits for who had begun a turn: such a turn goes on.
        if is_elsewhere {
            let turns = self.leave_to_others(&mut waiting, &quoting);
            self.undo(&turns);
        }
        if is_over {
            let ends = |body: &&Body| matters(body) && !matches!(body, Body::Publish(_));
            self.forgone += had - waiting.len() + waiting.iter().filter(ends).count();
        }
        let unsent: BTreeSet<u64> = waiting.iter().filter_map(number_of).collect();
        self.publish_again(&unsent);
        self.call_again(&unsent, remembers == Some(true), at);
        self.ask_again();
        for body in waiting {
            self.keep_waiting(body);
        }
        if is_over {
            self.register_senders();
            self.say_farewell();
        }
    }

    fn register_again(&mut self) {
        for registration in self.registrations.values() {
            for frame in &registration.frames {
                self.channel.push(frame, crate::channel::Class::Data);
            }
        }
    }

    /// Of a client that was closed those are registered that have something to publish; they take nothing.
    fn register_senders(&mut self) {
        let senders = self.outbound.iter().filter_map(|body| match body {
            Body::Publish(it) => Some(it.sender),
            _ => None,
        });
        let senders: BTreeSet<u64> = senders.collect();
        self.registrations
            .retain(|handle, _| senders.contains(handle));
        for (handle, registration) in &mut self.registrations {
            registration.frames.truncate(1);
            registration.frames.push(Body::Status(v1::Status {
                handle: *handle,
                status: 1,
            }));
        }
        self.register_again();
    }

    /// Ends what durable turns have sent without an answer, as others do now what they did: whatever was not sent is not
    /// sent any more, and whether the rest was taken nobody can say. Gives the turns of which something has ended so.
    fn leave_to_others(
        &mut self,
        waiting: &mut VecDeque<Body>,
        quoting: &FxHashMap<u64, Quoting>,
    ) -> BTreeSet<Turn> {
        let mut turns = BTreeSet::new();
        waiting.retain(|body| {
            let quoted = lease_of(body).and_then(|lease| quoting.get(&lease));
            let Some(turn) = quoted.and_then(|it| it.turn).filter(|it| self.fences(it)) else {
                return true;
            };
            if self.fence(body) {
                turns.insert(turn);
            }
            false
        });
        let message = "the session of this turn is over, and nobody said whether this was taken";
        for number in self.publishes.keys().copied().collect::<Vec<_>>() {
            let publish = self.publishes.get(&number);
            let turn = publish.and_then(|it| it.turn).filter(|it| self.fences(it));
            let Some((turn, publish)) =
                turn.and_then(|it| Some((it, self.publishes.remove(&number)?)))
            else {
                continue;
            };
            if self.state == LinkState::Closed && is_named(&publish.frame) {
                self.forgone += 1;
            }
            let error = Error::new(Code::Indeterminate, message);
            self.note(Note::Core(Notice::Refused(Ticket(number), error)));
            turns.insert(turn);
        }
        for number in self.calls.keys().copied().collect::<Vec<_>>() {
            let calling = self.calls.get(&number);
            if let Some(turn) = calling.and_then(|it| it.turn).filter(|it| self.fences(it)) {
                self.end_call(number, Some(Code::Indeterminate), message);
                turns.insert(turn);
            }
        }
        turns
    }

    /// Whether what a durable turn has sent may not be sent outside of it: always.
    fn fences(&self, turn: &Turn) -> bool {
        !self.bugs.has(Planted::EndedUnfenced) || self.turns.contains_key(turn)
    }

    /// Ends what was not sent. `false`: a realtime event, which nobody waits for.
    fn fence(&mut self, body: &Body) -> bool {
        let message = "the session of this turn is over, and the turn begins again";
        match body {
            Body::Publish(it) if it.r#ref == 0 => {
                self.dropped += 1;
                return false;
            }
            Body::Publish(it) => {
                if self.publishes.remove(&it.r#ref).is_some() {
                    let error = Error::fenced(message).field("lease");
                    self.note(Note::Core(Notice::Refused(Ticket(it.r#ref), error)));
                }
            }
            _ => {
                if let Some(number) = call_of(body) {
                    self.end_call(number, Some(Code::Fenced), message);
                }
            }
        }
        true
    }

    /// These turns have not ended well after all: one that comes again is begun again.
    fn undo(&mut self, turns: &BTreeSet<Turn>) {
        self.acked_known.retain(|turn| !turns.contains(turn));
        self.acked.retain(|turn| !turns.contains(turn));
    }

    /// Leases of the node's earlier life mean nothing to it now. Durable events that were not begun come again; others are
    /// here for the last time, and are still given out.
    #[expect(clippy::iter_over_hash_type, reason = "all of them are treated alike")]
    fn forget_leases(&mut self, epoch: u64) {
        self.by_wire.clear();
        self.acks.clear();
        let forgets = !self.bugs.has(Planted::OldLeaseQuoted);
        for held in self.leases.values_mut() {
            held.wire = held.wire.filter(|_| !forgets);
        }
        let rename = |lane: u64| {
            if lane < LANES {
                lane | epoch.wrapping_mul(LANES)
            } else {
                lane
            }
        };
        let mut dropped = Vec::new();
        for registration in self.registrations.values_mut() {
            let gone = registration
                .queue
                .restart(|delivery| !delivery.durable, rename);
            for delivery in gone {
                dropped.extend(delivery.lease);
            }
        }
        for lease in dropped {
            if let Some(held) = self.leases.remove(&lease.0) {
                self.forget_turn(&held);
            }
        }
        for held in self.leases.values_mut() {
            held.lane = rename(held.lane);
        }
    }

    /// Durable publishes carry an id that the node knows them by; whether another one was taken nobody can say.
    fn publish_again(&mut self, unsent: &BTreeSet<u64>) {
        let all = std::mem::take(&mut self.publishes);
        let mut kept = BTreeMap::new();
        for (number, mut publish) in all {
            publish.turn = None;
            if unsent.contains(&number) {
                kept.insert(number, publish);
            } else if is_named(&publish.frame) {
                let mut again = publish.frame.clone();
                if self.bugs.has(Planted::SentAgainUnnamed) {
                    again.options = None;
                }
                self.keep_waiting(Body::Publish(again));
                kept.insert(number, publish);
            } else {
                let message =
                    "the node was restarted before it said whether it has taken this event";
                let error = Error::new(Code::Indeterminate, message)
                    .hint("durable events are sent again by themselves");
                self.note(Note::Core(Notice::Refused(Ticket(number), error)));
            }
        }
        self.publishes = kept;
    }

    fn call_again(&mut self, unsent: &BTreeSet<u64>, remembers: bool, at: Moment) {
        let numbers: Vec<u64> = self.calls.keys().copied().collect();
        for number in numbers {
            let Some(calling) = self.calls.get_mut(&number) else {
                continue;
            };
            calling.turn = None;
            if unsent.contains(&number) {
                continue;
            }
            let left = calling.deadline.0.saturating_sub(at.now.0) / 1_000_000;
            match &calling.frame {
                // Only a node that remembers what it has begun begins it once for its key.
                Body::Call(call) if remembers && !call.key.is_empty() && call.credit == 0 => {
                    let again = v1::Call {
                        timeout_ms: left,
                        ..call.clone()
                    };
                    self.keep_waiting(Body::Call(again));
                }
                Body::Call(_) => {
                    let message = "the node was restarted before it said how the call ended";
                    self.end_call(number, Some(Code::Indeterminate), message);
                }
                _ => {
                    let message = "the node was restarted before the request was answered";
                    self.end_call(number, Some(Code::Unavailable), message);
                }
            }
        }
    }

    fn ask_again(&mut self) {
        self.gathered.clear();
        let asks: Vec<(u64, Body)> = self
            .asks
            .iter()
            .map(|(number, body)| (*number, body.clone()))
            .collect();
        for (number, body) in asks {
            if matches!(
                body,
                Body::Directory(_) | Body::Read(_) | Body::Keep(_) | Body::Route(_)
            ) {
                self.send(&body);
            } else {
                self.asks.remove(&number);
                let message = "the node was restarted before it said whether it has done this";
                let error = Error::new(Code::Indeterminate, message);
                self.note(Note::Core(Notice::Refused(Ticket(number), error)));
            }
        }
    }

    /// Puts a frame behind what waits for credit; the leases it quotes are none any more.
    fn keep_waiting(&mut self, mut body: Body) {
        match &mut body {
            Body::Publish(it) => it.lease = 0,
            Body::Request(it) => it.lease = 0,
            Body::Call(it) => it.lease = 0,
            // What was to be said of a lease of the node's earlier life.
            _ => return,
        }
        self.outbound_bytes += super::calls::data_of(&body);
        self.outbound.push_back(body);
    }
}
