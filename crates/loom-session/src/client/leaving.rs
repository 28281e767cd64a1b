//! The end of a session: what was said before it reaches the node, or is counted.

use loom_proto::v1::{self, frame::Body};

use super::{Client, LinkState};
use crate::channel::Channel;

impl Client {
    /// Ends the session: what was said goes out, also over another connection where this one breaks, and the node is told.
    /// Nothing is taken or begun any more; what waits for an answer gets none.
    pub fn close(&mut self) {
        if self.state == LinkState::Closed {
            return;
        }
        self.flush_acks();
        self.calls.clear();
        self.deadlines.clear();
        self.asks.clear();
        self.gathered.clear();
        self.leases.clear();
        self.by_wire.clear();
        self.turns.clear();
        // Who called or asked is told that the app has stopped: what was not sent is not begun.
        while self.take_back(|body| matches!(body, Body::Request(_) | Body::Call(_))) {}
        self.state = LinkState::Closed;
        self.say_farewell();
    }

    /// Says that the session ends, behind all that it has to say.
    pub(super) fn say_farewell(&mut self) {
        let drain = Body::Drain(v1::Drain { within_ms: 0 });
        if self.outbound.is_empty() {
            self.send(&drain);
        } else {
            self.outbound.push_back(drain);
        }
    }

    /// Frames of which nobody knows whether the node has taken them, and that say more than that the session ends.
    pub fn unsaid(&self) -> usize {
        let waiting = self.outbound.iter().filter(|body| matters(body)).count();
        self.forgone + waiting + self.acks.len() + self.channel.unconfirmed(matters)
    }

    /// The node takes nothing of this session any more.
    pub(super) fn forgo(&mut self) {
        self.forgone = self.unsaid();
        self.outbound.clear();
        self.outbound_bytes = 0;
        self.quoting.clear();
        self.acks.clear();
        self.channel = Channel::new(self.config.limits.frame_bytes, self.config.whole);
    }

    /// It was closed, and no connection would change what the node knows.
    pub fn is_over(&self) -> bool {
        let is_needed = self.wire.is_some() || self.wants_connection().is_some();
        self.state == LinkState::Closed && (self.is_flushed() || !is_needed)
    }
}

/// Whether a frame of a session that ends does something: registrations and what is waited for go with it.
pub(super) fn matters(body: &Body) -> bool {
    matches!(
        body,
        Body::Publish(_)
            | Body::Ack(_)
            | Body::Nak(_)
            | Body::Term(_)
            | Body::Fail(_)
            | Body::Reply(_)
            | Body::Result(_)
            | Body::Chunk(_)
            | Body::Part(_)
            | Body::Step(_)
            | Body::Commit(_)
            | Body::Report(_)
            | Body::Keep(_)
            | Body::Resolve(_)
            | Body::Redrive(_)
            | Body::Route(_)
            | Body::Probed(_)
    )
}
