//! The bytes of a segment. A header of one page; then frames, one behind the other; then zeros up to its size.
//!
//! A frame is one batch: all of it is valid or nothing. Its checksum begins with a number that follows from the log and
//! the segment, so that no bytes of another segment, nor of a payload that looks like a frame, are ever taken for one.
//! All numbers are little-endian. Nothing here trusts a length before it has looked whether there is so much.

use crc32c::{crc32c, crc32c_append};

/// The version that this one writes, and the newest that it reads.
pub const VERSION: u32 = 1;
/// A header takes a page.
pub const HEADER_PAGE: usize = 4 << 10;
/// The same, as a place in a file.
pub const HEADER_BYTES: u64 = HEADER_PAGE as u64;
/// The fixed part of a frame.
pub const FRAME_BYTES: usize = 24;
/// Frames begin at multiples of this.
pub const ALIGN: usize = 8;
/// A frame is never shorter: its fixed part, and the shortest record or a mark.
pub const FRAME_LEAST: usize = FRAME_BYTES + ALIGN;
/// More records do not fit into one batch.
pub const BATCH_RECORDS: usize = u16::MAX as usize;

const MAGIC: [u8; 8] = *b"loom.log";
const HEADER_USED: usize = 64;
const SYNCED: u8 = 1;
const GAP: u8 = 2;
const CLOSED: u8 = 4;

/// What stands first in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Names the log: the same in all its segments, and in no other log.
    pub log: u64,
    /// The position of the first record. Everything before it was synced before the segment got its name.
    pub first: u64,
    /// The epoch in which the segment was begun.
    pub epoch: u32,
    /// The size of the file.
    pub bytes: u64,
}

/// Why a header cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadHeader {
    /// It is damaged, or none at all.
    Broken,
    /// It is of a newer version.
    Newer(u32),
}

impl Header {
    /// As a page.
    pub fn encode(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(HEADER_PAGE);
        page.extend_from_slice(&MAGIC);
        page.extend_from_slice(&VERSION.to_le_bytes());
        page.extend_from_slice(&self.epoch.to_le_bytes());
        page.extend_from_slice(&self.log.to_le_bytes());
        page.extend_from_slice(&self.first.to_le_bytes());
        page.extend_from_slice(&self.bytes.to_le_bytes());
        page.resize(HEADER_USED - 4, 0);
        let crc = crc32c(&page);
        page.extend_from_slice(&crc.to_le_bytes());
        page.resize(HEADER_PAGE, 0);
        page
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is damaged, or of a newer version.
    pub fn decode(page: &[u8]) -> Result<Self, BadHeader> {
        let mut bytes = page.get(..HEADER_USED).ok_or(BadHeader::Broken)?;
        let crc = crc32c(bytes.get(..HEADER_USED - 4).ok_or(BadHeader::Broken)?);
        let broken = || BadHeader::Broken;
        if take::<8>(&mut bytes).ok_or_else(broken)? != MAGIC {
            return Err(BadHeader::Broken);
        }
        let version = take_u32(&mut bytes).ok_or_else(broken)?;
        let epoch = take_u32(&mut bytes).ok_or_else(broken)?;
        let header = Self {
            log: take_u64(&mut bytes).ok_or_else(broken)?,
            first: take_u64(&mut bytes).ok_or_else(broken)?,
            epoch,
            bytes: take_u64(&mut bytes).ok_or_else(broken)?,
        };
        let stored = bytes.last_chunk::<4>().ok_or_else(broken)?;
        if u32::from_le_bytes(*stored) != crc {
            return Err(BadHeader::Broken);
        }
        if version != VERSION {
            return Err(BadHeader::Newer(version));
        }
        Ok(header)
    }

    /// What the checksums of its frames begin with.
    pub fn salt(&self) -> u32 {
        salt(self.log, self.first)
    }
}

/// What the checksums of the frames in a segment begin with.
pub fn salt(log: u64, first: u64) -> u32 {
    crc32c_append(crc32c(&log.to_le_bytes()), &first.to_le_bytes())
}

/// How the body of a record is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    Whole,
    /// As a list of chunks that are stored elsewhere.
    Chunked,
}

/// One record as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored<'a> {
    /// What kind of record it is.
    pub kind: u8,
    /// How its body is stored.
    pub form: Form,
    /// The part that is small.
    pub head: &'a [u8],
    /// The part that may be large.
    pub body: &'a [u8],
}

/// Records that are kept together: all of them or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    count: u16,
    bytes: Vec<u8>,
}

impl Batch {
    /// Appends a record; says whether there was room.
    #[must_use]
    pub fn push(&mut self, record: Stored<'_>) -> bool {
        let Some(count) = self.count.checked_add(1) else {
            return false;
        };
        self.count = count;
        self.bytes.push(record.kind);
        self.bytes.push(match record.form {
            Form::Whole => 0,
            Form::Chunked => 1,
        });
        put_length(&mut self.bytes, record.head.len());
        put_length(&mut self.bytes, record.body.len());
        self.bytes.extend_from_slice(record.head);
        self.bytes.extend_from_slice(record.body);
        true
    }

    /// How many records.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// How many bytes a frame of it takes at most.
    pub fn frame_bytes(&self) -> usize {
        (FRAME_BYTES + ALIGN + self.bytes.len()).next_multiple_of(ALIGN)
    }

    /// Its records, encoded.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Batch {
    /// Its records, each as a batch.
    pub(crate) fn split(&self) -> Vec<Self> {
        let records = Records {
            bytes: &self.bytes,
            left: self.count,
        };
        let one = |record| {
            let mut part = Self::default();
            let _ = part.push(record);
            part
        };
        records.map(one).collect()
    }
}

/// What a frame says besides its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Nothing.
    None,
    /// It is the first of its commit, and everything before this position had been synced.
    Synced(u64),
    /// The same, and the log was closed well: it is the last of its life.
    Closed(u64),
    /// It has no records: those from its own position up to before this one are lost.
    Gap(u64),
}

impl Mark {
    const fn flags(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Synced(_) => SYNCED,
            Self::Closed(_) => SYNCED | CLOSED,
            Self::Gap(_) => GAP,
        }
    }

    const fn number(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Synced(n) | Self::Closed(n) | Self::Gap(n) => Some(n),
        }
    }

    fn read(flags: u8, rest: &mut &[u8]) -> Option<Self> {
        Some(match flags {
            0 => Self::None,
            SYNCED => Self::Synced(take_u64(rest)?),
            GAP => Self::Gap(take_u64(rest)?),
            _ if flags == SYNCED | CLOSED => Self::Closed(take_u64(rest)?),
            _ => return None,
        })
    }
}

/// Where a frame is, and in which life of the log it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The position of its first record.
    pub position: u64,
    /// The life.
    pub epoch: u32,
    /// What else it says.
    pub mark: Mark,
}

/// Appends a frame.
pub fn put_frame(out: &mut Vec<u8>, salt: u32, place: Place, batch: &Batch) {
    let marked = place.mark.number().map_or(0, |_| ALIGN);
    let length = (FRAME_BYTES + marked + batch.bytes.len()).next_multiple_of(ALIGN);
    put_padded(out, salt, place, (batch, length));
}

/// Appends a frame without records that says which positions are lost, and takes `length` bytes: a multiple of
/// [`ALIGN`], and at least [`FRAME_LEAST`].
pub fn put_gap(out: &mut Vec<u8>, salt: u32, place: Place, length: usize) {
    put_padded(out, salt, place, (&Batch::default(), length));
}

fn put_padded(out: &mut Vec<u8>, salt: u32, place: Place, (batch, length): (&Batch, usize)) {
    let start = out.len();
    // A batch that does not fit into four bytes never gets here: there is a limit far below.
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    let mut fixed = [0; FRAME_BYTES];
    for (to, from) in fixed.iter_mut().skip(8).zip(
        place
            .position
            .to_le_bytes()
            .into_iter()
            .chain(place.epoch.to_le_bytes())
            .chain(batch.count.to_le_bytes())
            .chain([place.mark.flags()]),
    ) {
        *to = from;
    }
    out.extend_from_slice(&fixed);
    if let Some(number) = place.mark.number() {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&batch.bytes);
    out.resize(start + u32::from_le_bytes(length) as usize, 0);
    let Some((head, rest)) = out
        .get_mut(start..)
        .and_then(|frame| frame.split_first_chunk_mut::<FRAME_BYTES>())
    else {
        return;
    };
    let [l0, l1, l2, l3, c0, c1, c2, c3, stem @ .., seal] = head;
    [*l0, *l1, *l2, *l3] = length;
    let sealed = crc32c_append(crc32c_append(salt, &length), stem);
    [*seal, ..] = sealed.to_le_bytes();
    let crc = crc32c_append(crc32c_append(sealed, &[*seal]), rest);
    [*c0, *c1, *c2, *c3] = crc.to_le_bytes();
}

/// One frame that is as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Where it is.
    pub place: Place,
    /// How many records it has.
    pub count: u16,
    /// How many bytes it takes.
    pub bytes: usize,
    records: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads the frame that these bytes begin with; none: it is not one, or not as it was written.
    pub fn read(bytes: &'a [u8], salt: u32) -> Option<Self> {
        Self::checked(bytes, salt, true)
    }

    pub(crate) fn checked(bytes: &'a [u8], salt: u32, strict: bool) -> Option<Self> {
        let (fixed, _) = bytes.split_first_chunk::<FRAME_BYTES>()?;
        let [l0, l1, l2, l3, c0, c1, c2, c3, stem @ .., seal] = fixed;
        let length = [*l0, *l1, *l2, *l3];
        let size = u32::from_le_bytes(length) as usize;
        if size < FRAME_LEAST || !size.is_multiple_of(ALIGN) {
            return None;
        }
        let mut rest = bytes.get(FRAME_BYTES..size)?;
        // The seal is a part of the checksum: most bytes that are no frame are told without reading all of them.
        let sealed = crc32c_append(crc32c_append(salt, &length), stem);
        if strict && sealed.to_le_bytes().first() != Some(seal) {
            return None;
        }
        let crc = crc32c_append(crc32c_append(sealed, &[*seal]), rest);
        if strict && crc != u32::from_le_bytes([*c0, *c1, *c2, *c3]) {
            return None;
        }
        let mut stem: &[u8] = stem;
        let position = take_u64(&mut stem)?;
        let epoch = take_u32(&mut stem)?;
        let count = u16::from_le_bytes(take(&mut stem)?);
        let [flags] = take(&mut stem)?;
        let mark = Mark::read(flags, &mut rest)?;
        let place = Place {
            position,
            epoch,
            mark,
        };
        let frame = Self {
            place,
            count,
            bytes: size,
            records: rest,
        };
        frame.is_whole().then_some(frame)
    }

    /// The position behind its last record.
    pub fn next(&self) -> u64 {
        match self.place.mark {
            Mark::Gap(to) => to,
            _ => self.place.position.saturating_add(self.count.into()),
        }
    }

    /// Its records.
    pub fn records(&self) -> Records<'a> {
        Records {
            bytes: self.records,
            left: self.count,
        }
    }

    fn is_whole(&self) -> bool {
        if let Mark::Gap(to) = self.place.mark {
            return self.count == 0 && to > self.place.position;
        }
        self.count > 0 && self.records().count() == usize::from(self.count)
    }
}

/// The records of a frame, in order.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    bytes: &'a [u8],
    left: u16,
}

impl<'a> Iterator for Records<'a> {
    type Item = Stored<'a>;

    fn next(&mut self) -> Option<Stored<'a>> {
        self.left = self.left.checked_sub(1)?;
        let [kind, form] = take(&mut self.bytes)?;
        let form = match form {
            0 => Form::Whole,
            1 => Form::Chunked,
            _ => return None,
        };
        let head = take_length(&mut self.bytes)?;
        let body = take_length(&mut self.bytes)?;
        let (head, rest) = self.bytes.split_at_checked(head)?;
        let (body, rest) = rest.split_at_checked(body)?;
        self.bytes = rest;
        Some(Stored {
            kind,
            form,
            head,
            body,
        })
    }
}

/// The frames of a segment in order, as far as each goes on where the one before it ended.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    bytes: &'a [u8],
    salt: u32,
    at: usize,
    next: u64,
    epoch: u32,
    pub(crate) strict: bool,
}

impl<'a> Frames<'a> {
    /// Reads on in the bytes of a segment at a place where a frame with this position begins; the life of the log is
    /// at least `epoch`.
    pub fn new(bytes: &'a [u8], salt: u32, at: usize, (next, epoch): (u64, u32)) -> Self {
        Self {
            bytes,
            salt,
            at,
            next,
            epoch,
            strict: true,
        }
    }

    /// Where the next frame begins, or should.
    pub const fn at(&self) -> usize {
        self.at
    }

    /// The position it has, or should have.
    pub const fn position(&self) -> u64 {
        self.next
    }

    /// The life of the last frame.
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        let frame = Frame::checked(self.bytes.get(self.at..)?, self.salt, self.strict)?;
        if frame.place.position != self.next || frame.place.epoch < self.epoch {
            return None;
        }
        self.at += frame.bytes;
        self.next = frame.next();
        self.epoch = frame.place.epoch;
        Some(frame)
    }
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    let mut left = length;
    while left >= 0x80 {
        out.push(low_byte(left) | 0x80);
        left >>= 7;
    }
    out.push(low_byte(left));
}

const fn low_byte(number: usize) -> u8 {
    let [low, ..] = number.to_le_bytes();
    low
}

fn take_length(from: &mut &[u8]) -> Option<usize> {
    let mut length = 0;
    for shift in (0..35).step_by(7) {
        let [byte] = take(from)?;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(length);
        }
    }
    None
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*taken)
}

fn take_u32(from: &mut &[u8]) -> Option<u32> {
    take(from).map(u32::from_le_bytes)
}

fn take_u64(from: &mut &[u8]) -> Option<u64> {
    take(from).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batches() -> impl Strategy<Value = Vec<(u8, bool, Vec<u8>, Vec<u8>)>> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..300);
        prop::collection::vec((any::<u8>(), any::<bool>(), bytes(), bytes()), 1..6)
    }

    fn batch(records: &[(u8, bool, Vec<u8>, Vec<u8>)]) -> Batch {
        let mut batch = Batch::default();
        for (kind, chunked, head, body) in records {
            let form = if *chunked { Form::Chunked } else { Form::Whole };
            assert!(batch.push(Stored {
                kind: *kind,
                form,
                head,
                body
            }));
        }
        batch
    }

    fn mark() -> impl Strategy<Value = Mark> {
        prop_oneof![
            Just(Mark::None),
            any::<u64>().prop_map(Mark::Synced),
            any::<u64>().prop_map(Mark::Closed),
        ]
    }

    proptest! {
        // requirement: LOG-FORMAT
        #[test]
        fn what_is_written_into_a_frame_is_read_from_it(
            records in batches(), position in 0..u64::MAX / 2, epoch: u32, mark in mark(), salt: u32
        ) {
            let batch = batch(&records);
            let place = Place { position, epoch, mark };
            let mut bytes = vec![7; ALIGN];
            put_frame(&mut bytes, salt, place, &batch);
            prop_assert!(bytes.len() - ALIGN <= batch.frame_bytes());
            bytes.extend_from_slice(&[9; 40]);
            let frame = Frame::read(&bytes[ALIGN..], salt).unwrap();
            prop_assert_eq!(frame.place, place);
            prop_assert_eq!(frame.bytes + ALIGN + 40, bytes.len());
            prop_assert_eq!(frame.next(), position + records.len() as u64);
            let read: Vec<_> = frame
                .records()
                .map(|r| (r.kind, r.form == Form::Chunked, r.head.to_vec(), r.body.to_vec()))
                .collect();
            prop_assert_eq!(read, records);
        }

        // requirement: LOG-FORMAT
        #[test]
        fn a_frame_of_another_segment_or_with_any_bit_flipped_is_none(
            records in batches(), salt: u32, other: u32, place in any::<prop::sample::Index>(), bit in 0..8_u8
        ) {
            let mut bytes = Vec::new();
            let at = Place { position: 5, epoch: 1, mark: Mark::Synced(3) };
            put_frame(&mut bytes, salt, at, &batch(&records));
            prop_assert_eq!(Frame::read(&bytes, other).is_some(), other == salt);
            let index = place.index(bytes.len());
            bytes[index] ^= 1 << bit;
            prop_assert!(Frame::read(&bytes, salt).is_none());
        }

        // requirement: LOG-FORMAT
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), salt: u32) {
            let _ = Frame::read(&bytes, salt);
            let _ = Header::decode(&bytes);
        }

        // requirement: LOG-FORMAT
        #[test]
        fn a_header_is_read_as_it_was_written(log: u64, first: u64, epoch: u32, bytes: u64, bit in 0..512_usize) {
            let header = Header { log, first, epoch, bytes };
            let mut page = header.encode();
            prop_assert_eq!(page.len() as u64, HEADER_BYTES);
            prop_assert_eq!(Header::decode(&page), Ok(header));
            page[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Header::decode(&page), Err(BadHeader::Broken));
        }
    }

    // requirement: LOG-FORMAT
    #[test]
    fn a_frame_that_marks_lost_positions_leads_on_behind_them() {
        for length in [FRAME_LEAST, 4096] {
            let mut bytes = Vec::new();
            let place = Place {
                position: 7,
                epoch: 2,
                mark: Mark::Gap(12),
            };
            put_gap(&mut bytes, 3, place, length);
            let frame = Frame::read(&bytes, 3).unwrap();
            assert_eq!((frame.next(), frame.bytes), (12, length));
            assert_eq!(frame.records().count(), 0);
        }
    }

    // requirement: LOG-VERSION
    #[test]
    fn a_header_of_a_newer_version_is_told_from_a_broken_one() {
        let mut page = Header {
            log: 1,
            first: 0,
            epoch: 1,
            bytes: 8192,
        }
        .encode();
        page[8] = 2;
        let crc = crc32c(&page[..60]);
        page[60..64].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&page), Err(BadHeader::Newer(2)));
    }
}
