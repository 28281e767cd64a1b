//! The node knows nothing of this session (any more): everything is registered again, and what was under way is sent
//! again where that repeats nothing, else ended as unknown.

use std::collections::{BTreeMap, BTreeSet};

use loom_core::{Code, Error, Moment, Notice, Ticket};
use loom_proto::v1::{self, frame::Body};

use super::calls::number_of;
use super::{Client, Note};
use crate::attached::Flow;
use crate::channel::Channel;
use crate::planted::Planted;

/// Numbers of lanes that a node gives stay below this.
const LANES: u64 = 1 << 40;

impl Client {
    /// Begins anew at a node. `is_first`: it was never attached before, so nothing is under way.
    pub(super) fn restart(&mut self, credit: v1::Credit, is_first: bool, at: Moment) {
        let (config, old) = (self.config.clone(), self.epoch);
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
        if !is_first {
            self.forget_leases(old);
        }
        for registration in self.registrations.values() {
            for frame in &registration.frames {
                self.channel
                    .push(frame.clone(), crate::channel::Class::Data);
            }
        }
        let waiting = std::mem::take(&mut self.outbound);
        self.outbound_bytes = 0;
        self.quoting.clear();
        let unsent: BTreeSet<u64> = waiting.iter().filter_map(number_of).collect();
        self.publish_again(&unsent);
        self.call_again(&unsent, at);
        self.ask_again();
        for body in waiting {
            self.keep_waiting(body);
        }
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
        for (number, publish) in all {
            if unsent.contains(&number) {
                kept.insert(number, publish);
            } else if publish.options.as_ref().is_some_and(|it| !it.id.is_empty()) {
                let mut again = v1::Publish {
                    lease: 0,
                    ..publish.clone()
                };
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

    fn call_again(&mut self, unsent: &BTreeSet<u64>, at: Moment) {
        let numbers: Vec<u64> = self.calls.keys().copied().collect();
        for number in numbers {
            if unsent.contains(&number) {
                continue;
            }
            let Some(calling) = self.calls.get(&number) else {
                continue;
            };
            let left = calling.deadline.0.saturating_sub(at.now.0) / 1_000_000;
            match &calling.frame {
                Body::Call(call) if !call.key.is_empty() && call.credit == 0 => {
                    let again = v1::Call {
                        timeout_ms: left,
                        lease: 0,
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
                self.send(body);
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
