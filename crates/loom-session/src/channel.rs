//! One direction pair of a session: frames get numbers, stay until the other side has them, and come in order.
//!
//! It knows nothing of what frames mean. A channel outlives its connections: what was not confirmed is sent again on
//! the next one, and what comes twice is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use loom_core::Error;
use loom_proto::v1::{Frame, Packet, Part, frame::Body};
use loom_proto::{Encoded, Message, encoded};

use crate::planted::{Bugs, Planted};

/// A packet has at most so many bytes, head included.
pub const PACKET_BYTES: usize = 64 << 10;
/// What the head of a packet and the heads of its frames take at most, beside the frames themselves.
const HEAD_BYTES: usize = 64;
/// A frame above this goes in parts.
const WHOLE_BYTES: usize = PACKET_BYTES - 2 * HEAD_BYTES;
/// What one part carries: control frames pass between two of them.
const PART_BYTES: usize = 32 << 10;
/// Frames in parts that may be under way towards us at once. Ours go one after the other.
const PARTIALS: usize = 4;
/// Frames that come are confirmed when so many, or so many bytes of them, have not been.
const CONFIRM_FRAMES: u64 = 64;
const CONFIRM_BYTES: usize = 128 << 10;
/// Frames in one packet at most.
const PACKET_FRAMES: usize = 1_024;

/// What passes what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Passes data, also between two parts of a large frame.
    Control,
    /// In the order it was given.
    Data,
}

/// A frame that waits to be sent, or to be confirmed.
#[derive(Debug, Clone)]
struct Held {
    frame: Bytes,
    /// It answers what has spent no credit: so many bytes are owed for it.
    owed: Option<usize>,
}

/// A large frame that is being cut.
#[derive(Debug)]
struct Cutting {
    id: u64,
    whole: Bytes,
    at: usize,
    owed: Option<usize>,
}

/// A large frame that is being put together.
#[derive(Debug, Default)]
struct Partial {
    bytes: usize,
    data: BytesMut,
}

/// How far one end of a session has got. Nothing is under way where each end has received what the other has sent, and
/// nothing is queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The number of the last frame that was sent.
    pub sent: u64,
    /// All numbered frames of the other end up to this one have come.
    pub received: u64,
    /// Frames that wait to be sent for the first time.
    pub queued: usize,
}

/// Both directions of one session.
#[derive(Debug)]
pub(crate) struct Channel {
    /// What a frame may have after it was put together.
    most: usize,
    /// Frames go whole, however large: the carrier says so.
    whole: bool,
    loose: VecDeque<Bytes>,
    control: VecDeque<Held>,
    data: VecDeque<Held>,
    /// A large control frame, and a large one of data, that are being cut.
    cutting: [Option<Cutting>; 2],
    parts: u64,
    /// Sent and not confirmed; the first has the number `base`.
    unconfirmed: VecDeque<Held>,
    base: u64,
    unconfirmed_bytes: usize,
    /// How many of them were sent over this connection.
    sent: usize,
    queued_bytes: usize,
    /// Answers to what spends no credit that were not confirmed.
    owed: usize,
    owed_bytes: usize,
    /// All frames up to this one have come.
    received: u64,
    /// Frames and bytes that came since the other side was told.
    untold: u64,
    untold_bytes: usize,
    partials: BTreeMap<u64, Partial>,
    pub(crate) bugs: Bugs,
}

impl Channel {
    /// A channel whose frames have at most `most` bytes. `whole`: they are never cut.
    pub(crate) fn new(most: usize, whole: bool) -> Self {
        Self {
            most,
            whole,
            loose: VecDeque::new(),
            control: VecDeque::new(),
            data: VecDeque::new(),
            cutting: [None, None],
            parts: 0,
            unconfirmed: VecDeque::new(),
            unconfirmed_bytes: 0,
            base: 1,
            sent: 0,
            queued_bytes: 0,
            owed: 0,
            owed_bytes: 0,
            received: 0,
            untold: 0,
            untold_bytes: 0,
            partials: BTreeMap::new(),
            bugs: Bugs::default(),
        }
    }

    /// Whether frames go whole here.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Puts a frame behind those of its class.
    pub(crate) fn push(&mut self, body: &Body, class: Class) {
        self.put(body, class, false);
    }

    /// As [`Self::push`], for the answer to something that spends no credit: how much of that may wait is bounded by what
    /// [`Self::owed`] says.
    pub(crate) fn push_owed(&mut self, body: &Body, class: Class) {
        self.put(body, class, true);
    }

    fn put(&mut self, body: &Body, class: Class, is_owed: bool) {
        let frame = encoded::frame(body);
        let bytes = frame.len();
        self.queued_bytes += bytes;
        let owed = is_owed.then_some(bytes);
        self.owed += usize::from(is_owed);
        self.owed_bytes += owed.unwrap_or_default();
        let held = Held { frame, owed };
        match class {
            Class::Control => self.control.push_back(held),
            Class::Data => self.data.push_back(held),
        }
    }

    /// Sends a frame that has no number: it goes first, and is not sent again.
    pub(crate) fn push_loose(&mut self, body: &Body) {
        self.loose.push_back(encoded::frame(body));
    }

    /// Bytes that wait to be sent for the first time.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Bytes that were not confirmed, sent or not.
    pub(crate) fn held_bytes(&self) -> usize {
        self.queued_bytes + self.unconfirmed_bytes
    }

    /// Answers to what spends no credit that were not confirmed: frames, and their bytes.
    pub(crate) fn owed(&self) -> (usize, usize) {
        (self.owed, self.owed_bytes)
    }

    /// Frames that were not confirmed, sent or not.
    pub(crate) fn held(&self) -> usize {
        self.unconfirmed.len()
            + self.control.len()
            + self.data.len()
            + self.cutting.iter().flatten().count()
    }

    /// Frames of those that were not confirmed, sent or not.
    pub(crate) fn unconfirmed(&self, which: impl Fn(&Body) -> bool) -> usize {
        let all = self
            .unconfirmed
            .iter()
            .chain(&self.control)
            .chain(&self.data);
        let body = |held: &Held| Frame::decode(held.frame.clone()).ok()?.body;
        let known = all.filter(|held| body(held).as_ref().is_some_and(&which));
        known.count() + self.cutting.iter().flatten().count()
    }

    /// What has come so far, to be said once more before the connection is closed.
    pub(crate) fn last_word(&mut self) -> Encoded {
        self.packet(0..0)
    }

    /// How far both directions have got.
    pub(crate) fn progress(&self) -> Progress {
        let cutting = self.cutting.iter().flatten().count();
        Progress {
            sent: self.base + self.unconfirmed.len() as u64 - 1,
            received: self.received,
            queued: self.control.len() + self.data.len() + cutting,
        }
    }

    /// All numbered frames up to this one have come.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// A new connection: `received` is what the other side has. What it has not is sent again.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for a number that was never sent, or one that was confirmed and taken back.
    pub(crate) fn resume(&mut self, received: u64) -> Result<(), Error> {
        if self.bugs.has(Planted::ResendDropped) {
            self.unconfirmed.clear();
            self.unconfirmed_bytes = 0;
            self.base = received + 1;
        }
        if !self.can_resume(received) {
            let message =
                "it knows of other frames than were sent, or misses some that were let go";
            return Err(Error::invalid("received", message));
        }
        self.confirm(received)?;
        self.sent = 0;
        self.untold = 0;
        self.untold_bytes = 0;
        Ok(())
    }

    /// A connection has ended: what was to be said over it, and only over it, is forgotten.
    pub(crate) fn pause(&mut self) {
        self.loose.clear();
        self.sent = 0;
        if self.bugs.has(Planted::PartsForgotten) {
            self.partials.clear();
        }
    }

    fn confirm(&mut self, received: u64) -> Result<(), Error> {
        let last = self.base + self.unconfirmed.len() as u64 - 1;
        if received > last {
            return Err(Error::invalid(
                "received",
                "it confirms frames that were never sent",
            ));
        }
        if received + 1 < self.base {
            // An older word that came late; a resume with it would miss what was let go.
            return Ok(());
        }
        while self.base <= received {
            if let Some(held) = self.unconfirmed.pop_front() {
                self.unconfirmed_bytes -= held.frame.len();
                self.owed -= usize::from(held.owed.is_some());
                self.owed_bytes -= held.owed.unwrap_or_default();
            }
            self.base += 1;
            self.sent = self.sent.saturating_sub(1);
        }
        Ok(())
    }

    /// Whether the other side could resume here: nothing that it has not was let go.
    pub(crate) fn can_resume(&self, received: u64) -> bool {
        let last = self.base + self.unconfirmed.len() as u64 - 1;
        (self.base - 1..=last).contains(&received) || self.bugs.has(Planted::ResendDropped)
    }

    /// Takes a packet in; the frames are in order, each of them once.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for a gap, a number never sent, or parts that are none: the connection is to be closed.
    pub(crate) fn accept(&mut self, packet: Packet) -> Result<Vec<Frame>, Error> {
        if packet.received > 0 {
            self.confirm(packet.received)?;
        }
        if packet.first == 0 || packet.frames.is_empty() {
            return Ok(packet.frames);
        }
        if packet.first > self.received + 1 {
            return Err(Error::invalid("first", "frames are missing before these"));
        }
        let known = usize::try_from(self.received + 1 - packet.first).unwrap_or(usize::MAX);
        let count = packet.frames.len();
        if known >= count {
            self.untold += 1;
            let again = self.bugs.has(Planted::DuplicateTaken);
            return Ok(if again { packet.frames } else { Vec::new() });
        }
        let fresh = (count - known) as u64;
        self.received += fresh;
        self.untold += fresh;
        let mut frames = packet.frames;
        if known > 0 {
            frames.drain(..known);
        }
        let has_parts = frames
            .iter()
            .any(|frame| matches!(frame.body, Some(Body::Part(_))));
        if !has_parts {
            self.untold_bytes += 64 * frames.len();
            return Ok(frames);
        }
        let mut whole = Vec::with_capacity(frames.len());
        for frame in frames {
            match frame.body {
                Some(Body::Part(part)) => {
                    self.untold_bytes += part.data.len();
                    whole.extend(self.join(&part)?);
                }
                body => whole.push(Frame { body }),
            }
        }
        Ok(whole)
    }

    fn join(&mut self, part: &Part) -> Result<Option<Frame>, Error> {
        let broken = |why: &str| Error::invalid("part", why);
        if !self.partials.contains_key(&part.id) {
            let bytes = usize::try_from(part.bytes).unwrap_or(usize::MAX);
            if bytes > self.most {
                return Err(broken("a frame in parts is larger than one may be")
                    .limit("kept_payload_bytes"));
            }
            let all: usize = self.partials.values().map(|it| it.bytes).sum();
            if self.partials.len() >= PARTIALS || all + bytes > 2 * self.most || bytes == 0 {
                return Err(broken(
                    "too many frames in parts at once, or one without a size",
                ));
            }
            self.partials.insert(
                part.id,
                Partial {
                    bytes,
                    data: BytesMut::new(),
                },
            );
        }
        let Some(partial) = self.partials.get_mut(&part.id) else {
            return Err(broken("a part of nothing"));
        };
        if partial.data.len() + part.data.len() > partial.bytes {
            return Err(broken("the parts have more bytes than was said"));
        }
        partial.data.extend_from_slice(&part.data);
        if !part.last {
            return Ok(None);
        }
        let Some(partial) = self.partials.remove(&part.id) else {
            return Ok(None);
        };
        if partial.data.len() != partial.bytes {
            return Err(broken("the parts have fewer bytes than was said"));
        }
        let frame = Frame::decode(partial.data.freeze())
            .map_err(|_| broken("what the parts add up to is no frame"))?;
        if matches!(frame.body, Some(Body::Part(_))) {
            return Err(broken("a part in parts"));
        }
        Ok(Some(frame))
    }

    /// Whether something without a number waits.
    pub(crate) fn has_loose(&self) -> bool {
        !self.loose.is_empty()
    }

    /// Whether [`Self::transmit`] has something.
    pub(crate) fn has_output(&self) -> bool {
        !self.loose.is_empty()
            || self.sent < self.unconfirmed.len()
            || !self.control.is_empty()
            || !self.data.is_empty()
            || self.cutting.iter().any(Option::is_some)
            || self.untold >= CONFIRM_FRAMES
            || self.untold_bytes >= CONFIRM_BYTES
    }

    /// The next packet, or none: then everything that was pushed is on its way.
    pub(crate) fn transmit(&mut self) -> Option<Encoded> {
        if !self.has_output() {
            return None;
        }
        if !self.loose.is_empty() {
            let received = self.told();
            let packet = Encoded::of(0, received, self.loose.iter());
            self.loose.clear();
            return Some(packet);
        }
        let mut room = PACKET_BYTES - HEAD_BYTES;
        let begin = self.sent;
        while self.sent - begin < PACKET_FRAMES {
            let Some(bytes) = self.peek() else { break };
            let taken = bytes + 4;
            if taken > room && !(self.whole && self.sent == begin) {
                break;
            }
            room = room.saturating_sub(taken);
            self.sent += 1;
        }
        Some(self.packet(begin..self.sent))
    }

    /// The size of the next frame to send; it stands in `unconfirmed` then.
    fn peek(&mut self) -> Option<usize> {
        if self.sent >= self.unconfirmed.len() {
            let held = self.next()?;
            self.unconfirmed_bytes += held.frame.len();
            self.unconfirmed.push_back(held);
        }
        self.unconfirmed.get(self.sent).map(|held| held.frame.len())
    }

    /// The next frame to number.
    fn next(&mut self) -> Option<Held> {
        self.next_of(Class::Control)
            .or_else(|| self.next_of(Class::Data))
    }

    fn next_of(&mut self, class: Class) -> Option<Held> {
        let (queue, cutting) = match class {
            Class::Control => (&mut self.control, &mut self.cutting[0]),
            Class::Data => (&mut self.data, &mut self.cutting[1]),
        };
        if cutting.is_none() {
            let held = queue.pop_front()?;
            self.queued_bytes -= held.frame.len();
            if self.whole || held.frame.len() <= WHOLE_BYTES {
                return Some(held);
            }
            self.parts += 1;
            *cutting = Some(Cutting {
                id: self.parts,
                whole: held.frame,
                at: 0,
                owed: held.owed,
            });
        }
        cut(cutting)
    }

    /// A packet of these of the frames that were not confirmed.
    fn packet(&mut self, frames: Range<usize>) -> Encoded {
        let received = self.told();
        let first = if frames.is_empty() {
            0
        } else {
            self.base + frames.start as u64
        };
        let frames = self.unconfirmed.range(frames);
        Encoded::of(first, received, frames.map(|held| &held.frame))
    }

    /// The other side is about to hear how far its frames have come.
    fn told(&mut self) -> u64 {
        self.untold = 0;
        self.untold_bytes = 0;
        self.received
    }
}

/// The next part of what is being cut.
fn cut(cutting: &mut Option<Cutting>) -> Option<Held> {
    let going = cutting.as_mut()?;
    let end = (going.at + PART_BYTES).min(going.whole.len());
    let last = end == going.whole.len();
    let part = Part {
        id: going.id,
        bytes: if going.at == 0 {
            going.whole.len() as u64
        } else {
            0
        },
        data: going.whole.slice(going.at..end),
        last,
    };
    going.at = end;
    let owed = going.owed.filter(|_| last);
    if last {
        *cutting = None;
    }
    let frame = encoded::frame(&Body::Part(part));
    Some(Held { frame, owed })
}
