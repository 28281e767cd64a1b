//! One segment in memory.

use super::{Source, Unreadable, failed};
use crate::format::{ALIGN, Form, Frame, Frames, HEADER_PAGE, Header, Mark};
use crate::machine::Ahead;
use crate::planted::{Bug, Planted};
use crate::storage::File;

pub(super) struct Segment {
    pub(super) header: Header,
    bytes: Vec<u8>,
    short: bool,
}

/// How far the frames of a segment go, one behind the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk {
    pub(super) at: usize,
    pub(super) position: u64,
    pub(super) epoch: u32,
    /// The highest that a frame says of how far the log was synced.
    pub(super) synced: u64,
}

/// What stands behind the end of a walk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Behind {
    pub(super) synced: u64,
    /// The first frame from which the log may go on: its place and its position.
    pub(super) resume: Option<(usize, u64)>,
}

/// The end of the log.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) at: usize,
    pub(super) position: u64,
    pub(super) epoch: u32,
    pub(super) closed: bool,
    /// Where the first frame that may not have been synced begins.
    pub(super) floor_at: usize,
    /// Their chunks, which may not have been synced either.
    pub(super) chunks: Vec<Ahead>,
}

impl Segment {
    pub(super) fn read(source: &dyn Source, header: Header) -> Result<Self, Unreadable> {
        let file = Some(File::Segment(header.first));
        let mut bytes = vec![0; usize::try_from(header.bytes).unwrap_or(usize::MAX)];
        let mut read = 0;
        while let Some(rest) = bytes.get_mut(read..)
            && !rest.is_empty()
        {
            let count = source
                .read(header.first, read as u64, rest)
                .map_err(|failure| failed(file, read as u64, failure))?;
            if count == 0 {
                break;
            }
            read += count;
        }
        let short = read < bytes.len();
        Ok(Self {
            header,
            bytes,
            short,
        })
    }

    /// Whether the file is smaller than it was made.
    pub(super) const fn is_short(&self) -> bool {
        self.short
    }

    pub(super) fn bytes(&self, from: usize, to: usize) -> &[u8] {
        self.bytes.get(from..to).unwrap_or_default()
    }

    pub(super) fn replace(&mut self, at: usize, frame: &[u8]) -> bool {
        let place = self.bytes.get_mut(at..at + frame.len());
        place.is_some_and(|place| {
            place.copy_from_slice(frame);
            true
        })
    }

    /// Behind the last byte that is not zero.
    pub(super) fn used(&self) -> usize {
        let last = self.bytes.iter().rposition(|byte| *byte != 0);
        last.map_or(0, |at| at + 1)
    }

    pub(super) fn frames(&self, bug: Bug) -> Frames<'_> {
        let place = (self.header.first, self.header.epoch);
        let mut frames = Frames::new(&self.bytes, self.header.salt(), HEADER_PAGE, place);
        frames.strict = !bug.is(Planted::CrcSkipped);
        frames
    }

    /// The same, once they have been walked: there is no need to sum them up again.
    pub(super) fn read_frames(&self) -> Frames<'_> {
        let mut frames = self.frames(Bug::default());
        frames.strict = false;
        frames
    }

    pub(super) fn walk(&self, bug: Bug) -> Walk {
        let mut frames = self.frames(bug);
        let marks = frames.by_ref().map(|frame| synced(&frame));
        let synced = marks.fold(self.header.first, u64::max);
        Walk {
            at: frames.at(),
            position: frames.position(),
            epoch: frames.epoch(),
            synced,
        }
    }

    /// Looks for frames behind the end of a walk. Each of them is one of this segment's own, so what it says of the
    /// sync was true, whatever stands before it.
    pub(super) fn behind(&self, walk: &Walk, bug: Bug) -> Behind {
        let strict = !bug.is(Planted::CrcSkipped);
        let mut behind = Behind {
            synced: 0,
            resume: None,
        };
        let mut at = walk.at;
        while let Some(rest) = self.bytes.get(at..)
            && let Some(word) = rest.first_chunk::<ALIGN>()
        {
            let frame = if *word == [0; ALIGN] {
                None
            } else {
                Frame::checked(rest, self.header.salt(), strict)
            };
            if let Some(frame) = frame {
                behind.synced = behind.synced.max(synced(&frame));
                let place = frame.place;
                let goes_on = place.position > walk.position && place.epoch >= walk.epoch;
                if goes_on && behind.resume.is_none() {
                    behind.resume = Some((at, place.position));
                }
                at += frame.bytes;
            } else {
                at += ALIGN;
            }
        }
        behind
    }

    /// Follows the walk from the floor on, as long as the chunks of what is there are there too.
    pub(super) fn tail(&self, source: &dyn Source, floor: u64, walk: &Walk, bug: Bug) -> Tail {
        let mut tail = Tail {
            at: HEADER_PAGE,
            position: self.header.first,
            epoch: self.header.epoch,
            closed: false,
            floor_at: HEADER_PAGE,
            chunks: Vec::new(),
        };
        for frame in self.read_frames() {
            if tail.at >= walk.at {
                break;
            }
            if frame.place.position >= floor && !bug.is(Planted::ChunksTrusted) {
                let Some(chunks) = chunks(source, &frame) else {
                    break;
                };
                tail.chunks.extend(chunks);
            } else {
                tail.floor_at = tail.at + frame.bytes;
            }
            tail.at += frame.bytes;
            tail.position = frame.next();
            tail.epoch = frame.place.epoch;
            tail.closed = matches!(frame.place.mark, Mark::Closed(_));
        }
        tail
    }
}

fn chunks(source: &dyn Source, frame: &Frame<'_>) -> Option<Vec<Ahead>> {
    let mut all = Vec::new();
    for record in frame
        .records()
        .filter(|record| record.form == Form::Chunked)
    {
        all.extend(source.chunks(record.body)?);
    }
    Some(all)
}

fn synced(frame: &Frame<'_>) -> u64 {
    match frame.place.mark {
        Mark::Synced(n) | Mark::Closed(n) => n,
        Mark::None | Mark::Gap(_) => 0,
    }
}
