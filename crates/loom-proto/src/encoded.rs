//! A packet as its bytes: its frames were encoded one by one, when they were made. What is kept to be sent again costs no
//! second encoding, and a large message is not moved from queue to queue.

use bytes::{BufMut, Bytes};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len, uint64};

use crate::v1::{Packet, frame::Body};

/// Numbers of a packet's fields.
const FIRST: u32 = 1;
const RECEIVED: u32 = 2;
const FRAMES: u32 = 3;

/// A packet that is to be sent, as the bytes of a `Packet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded(Bytes);

/// A frame's bytes.
pub fn frame(body: &Body) -> Bytes {
    let mut bytes = Vec::with_capacity(body.encoded_len());
    body.encode(&mut bytes);
    bytes.into()
}

impl Encoded {
    /// A packet of frames as [`frame`] makes them. `first` is the number of the first one, 0: they have none; all numbered
    /// frames of the other end up to `received` have come.
    ///
    /// The frames are copied: that costs less than to share each of them with whoever writes the packet.
    pub fn of<'a>(
        first: u64,
        received: u64,
        frames: impl Iterator<Item = &'a Bytes> + Clone,
    ) -> Self {
        let numbers = [(FIRST, first), (RECEIVED, received)];
        let numbers = numbers.iter().filter(|(_, value)| *value > 0);
        let heads = numbers
            .clone()
            .map(|(tag, value)| uint64::encoded_len(*tag, value));
        let sizes = frames
            .clone()
            .map(|frame| key_len(FRAMES) + encoded_len_varint(frame.len() as u64) + frame.len());
        let mut bytes = Vec::with_capacity(heads.sum::<usize>() + sizes.sum::<usize>());
        for (tag, value) in numbers {
            uint64::encode(*tag, value, &mut bytes);
        }
        for frame in frames {
            encode_key(FRAMES, WireType::LengthDelimited, &mut bytes);
            encode_varint(frame.len() as u64, &mut bytes);
            bytes.put_slice(frame);
        }
        Self(bytes.into())
    }

    /// A packet of one frame that has no number.
    pub fn alone(body: &Body) -> Self {
        Self::of(0, 0, std::iter::once(&frame(body)))
    }

    /// What it is once it has come.
    pub fn packet(&self) -> Packet {
        // It was made here, of frames that were: it is one.
        Packet::decode(self.0.clone()).unwrap_or_default()
    }

    /// Its bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl From<&Packet> for Encoded {
    fn from(packet: &Packet) -> Self {
        Self(packet.encode_to_vec().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Ack, Frame, Heartbeat};

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
            let frames: Vec<Bytes> = bodies.map(frame).collect();
            let encoded = Encoded::of(first, received, frames.iter());
            assert_eq!(encoded.packet(), whole);
            assert_eq!(encoded, Encoded::from(&whole));
            assert_eq!(*encoded.bytes(), whole.encode_to_vec());
        }
    }
}
