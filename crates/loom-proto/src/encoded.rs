//! A packet whose frames were encoded one by one, when they were made: what is kept to be sent again costs no second
//! encoding, and a large message is not moved from queue to queue.

use bytes::{BufMut, Bytes};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len, uint64};

use crate::v1::{Frame, Packet, frame::Body};

/// Numbers of a packet's fields.
const FIRST: u32 = 1;
const RECEIVED: u32 = 2;
const FRAMES: u32 = 3;

/// A packet that is to be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The number of its first frame; 0: they have none.
    pub first: u64,
    /// All numbered frames of the other end up to this one have come.
    pub received: u64,
    /// Frames as [`frame`] makes them.
    pub frames: Vec<Bytes>,
}

/// A frame's bytes.
pub fn frame(body: &Body) -> Bytes {
    let mut bytes = Vec::with_capacity(body.encoded_len());
    body.encode(&mut bytes);
    bytes.into()
}

impl Encoded {
    /// A packet of one frame that has no number.
    pub fn alone(body: &Body) -> Self {
        Self {
            frames: vec![frame(body)],
            ..Self::default()
        }
    }

    /// What it is once it has come. Frames that this end did not make with [`frame`] would be left out.
    pub fn packet(&self) -> Packet {
        let frames = self.frames.iter().cloned();
        Packet {
            first: self.first,
            received: self.received,
            frames: frames
                .filter_map(|bytes| Frame::decode(bytes).ok())
                .collect(),
        }
    }

    /// How many bytes [`Self::encode`] writes.
    pub fn encoded_len(&self) -> usize {
        let number = |tag, value: &u64| match value {
            0 => 0,
            value => uint64::encoded_len(tag, value),
        };
        let frames: usize = self
            .frames
            .iter()
            .map(|frame| key_len(FRAMES) + encoded_len_varint(frame.len() as u64) + frame.len())
            .sum();
        number(FIRST, &self.first) + number(RECEIVED, &self.received) + frames
    }

    /// Writes it as a `Packet`.
    pub fn encode(&self, to: &mut impl BufMut) {
        for (tag, value) in [(FIRST, self.first), (RECEIVED, self.received)] {
            if value > 0 {
                uint64::encode(tag, &value, to);
            }
        }
        for frame in &self.frames {
            encode_key(FRAMES, WireType::LengthDelimited, to);
            encode_varint(frame.len() as u64, to);
            to.put_slice(frame);
        }
    }

    /// Its bytes as a `Packet`.
    pub fn encode_to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_len());
        self.encode(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Ack, Heartbeat};

    fn packet(first: u64, received: u64) -> Packet {
        let bodies = [
            Body::Ack(Ack {
                leases: (1..500).collect(),
                goes_on: true,
            }),
            Body::Heartbeat(Heartbeat::default()),
        ];
        Packet {
            first,
            received,
            frames: bodies.map(|body| Frame { body: Some(body) }).into(),
        }
    }

    // requirement: WIRE-GOLDEN
    #[test]
    fn a_packet_of_encoded_frames_has_the_bytes_of_one_that_is_encoded_at_once() {
        for (first, received) in [(0, 0), (1, 0), (0, 300), (70_000, 1 << 40)] {
            let whole = packet(first, received);
            let bodies = whole.frames.iter().filter_map(|it| it.body.as_ref());
            let encoded = Encoded {
                first,
                received,
                frames: bodies.map(frame).collect(),
            };
            assert_eq!(encoded.encode_to_vec(), whole.encode_to_vec());
            assert_eq!(encoded.encoded_len(), whole.encoded_len());
            assert_eq!(encoded.packet(), whole);
        }
    }
}
