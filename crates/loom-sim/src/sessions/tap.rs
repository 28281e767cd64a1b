//! Listens to one direction of a session and counts what is spent and granted, by the frames alone.

use std::collections::BTreeMap;

use loom_proto::Message;
use loom_proto::v1::{Frame, Packet, frame::Body};

/// What a packet holds, frames in parts put together.
#[derive(Default)]
pub(super) struct Tap {
    /// Numbered frames below this were heard.
    next: u64,
    parts: BTreeMap<u64, Vec<u8>>,
}

/// What is spent against what is granted.
#[derive(Clone, Copy, Default)]
pub(super) struct Purse {
    pub(super) spent: u64,
    pub(super) allowed: u64,
}

impl Tap {
    /// The frames of a packet that were not heard before.
    pub(super) fn hear(&mut self, packet: &Packet) -> Vec<Body> {
        let mut heard = Vec::new();
        let next = self.next.max(1);
        if packet.first > next {
            // Something is missing before it: nobody takes it.
            return heard;
        }
        for (number, frame) in (packet.first..).zip(&packet.frames) {
            if packet.first > 0 && number < next {
                continue;
            }
            if packet.first > 0 {
                self.next = number + 1;
            }
            heard.extend(self.whole(frame.body.clone()));
        }
        heard
    }

    fn whole(&mut self, body: Option<Body>) -> Option<Body> {
        let Some(Body::Part(part)) = body else {
            return body;
        };
        let all = self.parts.entry(part.id).or_default();
        all.extend_from_slice(&part.data);
        if !part.last {
            return None;
        }
        let all = self.parts.remove(&part.id)?;
        Frame::decode(all.as_slice()).ok()?.body
    }

    /// Whether a packet holds what was heard before.
    pub(super) fn knows(&self, packet: &Packet) -> bool {
        packet.first > 0 && packet.first < self.next
    }

    pub(super) fn has_parts(&self) -> bool {
        !self.parts.is_empty()
    }
}

/// How much of its credit a client spends by a frame.
pub(super) fn cost_to_node(body: &Body) -> u64 {
    u64::from(matches!(
        body,
        Body::Publish(_) | Body::Request(_) | Body::Call(_)
    ))
}

/// How much of its credit a node spends by a frame.
pub(super) fn cost_to_client(body: &Body) -> u64 {
    match body {
        Body::Deliver(it) => it.targets.len() as u64,
        Body::Turn(_) | Body::ActionCall(_) => 1,
        _ => 0,
    }
}
