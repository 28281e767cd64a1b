//! A wire: bytes both ways, that arrive in pieces, late, or not at all.

use std::collections::VecDeque;

use loom_core::Nanos;
use loom_proto::Message;
use loom_proto::v1::Packet;

/// What may be under way before a sender has to wait.
const ROOM: usize = 96 << 10;

/// One direction.
#[derive(Default)]
pub(super) struct Pipe {
    flying: VecDeque<u8>,
    arrived: VecDeque<u8>,
    /// A packet that the next one overtakes: no carrier does that, and who receives it must notice.
    overtaken: Option<Vec<u8>>,
    /// Nothing arrives before this.
    pub(super) stuck_until: Nanos,
    /// Nothing more is sent; what is under way arrives.
    pub(super) ended: bool,
}

/// What happens to one packet below the ordered wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Twist {
    None,
    Twice,
    Overtaken,
}

impl Pipe {
    pub(super) fn has_room(&self) -> bool {
        self.flying.len() < ROOM
    }

    /// Sends a packet, its length before it.
    pub(super) fn write(&mut self, packet: &Packet, twist: Twist) {
        let body = packet.encode_to_vec();
        let mut bytes = u32::try_from(body.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes()
            .to_vec();
        bytes.extend(body);
        if twist == Twist::Overtaken && self.overtaken.is_none() {
            self.overtaken = Some(bytes);
            return;
        }
        self.flying.extend(&bytes);
        if twist == Twist::Twice {
            self.flying.extend(&bytes);
        }
        if let Some(late) = self.overtaken.take() {
            self.flying.extend(late);
        }
    }

    /// All after these bytes is lost, and the sender sends no more.
    pub(super) fn cut(&mut self, keep: usize) {
        self.flying.truncate(keep);
        self.overtaken = None;
        self.ended = true;
    }

    pub(super) fn flying(&self) -> usize {
        self.flying.len()
    }

    /// So many bytes arrive.
    pub(super) fn carry(&mut self, bytes: usize, now: Nanos) {
        if now >= self.stuck_until {
            let count = bytes.min(self.flying.len());
            self.arrived.extend(self.flying.drain(..count));
        }
    }

    /// The next whole packet that has arrived.
    pub(super) fn read(&mut self) -> Option<Packet> {
        let head: Vec<u8> = self.arrived.iter().take(4).copied().collect();
        let size = u32::from_be_bytes(head.try_into().ok()?) as usize;
        if self.arrived.len() < 4 + size {
            return None;
        }
        self.arrived.drain(..4);
        let body: Vec<u8> = self.arrived.drain(..size).collect();
        Packet::decode(body.as_slice()).ok()
    }

    /// The receiver learns now that the sender is gone; a part of a packet is lost.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.flying.is_empty()
    }
}

/// Both directions of one connection.
pub(super) struct Wire {
    /// Whose it is.
    pub(super) end: usize,
    /// The client holds it.
    pub(super) at_client: bool,
    /// The node holds it.
    pub(super) at_node: bool,
    pub(super) to_node: Pipe,
    pub(super) to_client: Pipe,
    /// Its client gives it up as soon as it has said hello, which comes late.
    pub(super) doomed: bool,
    /// The client is told that the node ended the stream well.
    pub(super) ends_well: bool,
}

impl Wire {
    pub(super) fn new(end: usize) -> Self {
        Self {
            end,
            at_client: true,
            at_node: true,
            to_node: Pipe::default(),
            to_client: Pipe::default(),
            doomed: false,
            ends_well: false,
        }
    }
}
