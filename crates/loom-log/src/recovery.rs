//! What an earlier life of the log left: where it ends, what must be made safe before it goes on, or what is damaged.
//!
//! Every commit says how far the log was synced when it was written; the highest of these is the floor. What is bad at or
//! above the floor was never synced: a torn tail, which is cut off. What is bad below it was synced once: damage, which is
//! never passed over unless that is asked for, and then is marked in the log. A segment gets its name only after all
//! before it was synced, so only the last one can be torn.

mod segment;

use crate::format::{
    BadHeader, FRAME_LEAST, Frame, HEADER_BYTES, HEADER_PAGE, Header, Mark, Place, Stored, put_gap,
};
use crate::machine::{Active, Ahead};
use crate::planted::{Bug, Planted};
use crate::storage::{Directory, Failure, File, Op};

use self::segment::{Segment, Tail, Walk};

/// No segment is larger: recovery holds one in memory.
const SEGMENT_MOST: u64 = 1 << 30;

/// The files of a partition, as they are found.
pub trait Source {
    /// The first positions of the segments, as their names say, and their sizes; in any order.
    ///
    /// # Errors
    /// When the directory cannot be read.
    fn segments(&self) -> Result<Vec<(u64, u64)>, Failure>;

    /// Reads bytes of a segment; how many, which is less at its end only.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read(&self, first: u64, at: u64, into: &mut [u8]) -> Result<usize, Failure>;

    /// Whether there is a file that was to become the next segment.
    ///
    /// # Errors
    /// When the directory cannot be read.
    fn has_next(&self) -> Result<bool, Failure>;

    /// The chunks that this body names, as they are stored; none if one is missing or damaged.
    fn chunks(&self, body: &[u8]) -> Option<Vec<Ahead>>;
}

/// What is known besides the segments, and what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Records before this position are not needed.
    pub from: u64,
    /// Everything before this position was synced: a snapshot stands on it.
    pub durable: u64,
    /// The highest life of the log that is known of.
    pub epoch: u32,
    /// How much may have been written and not synced: [`crate::Bounds::unsynced_bytes`].
    pub unsynced_bytes: u64,
    /// Whether damage is marked as lost instead of refused.
    pub accept_loss: bool,
}

/// One thing that is found in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// A record.
    Record {
        /// Its position.
        position: u64,
        /// The life it was written in.
        epoch: u32,
        /// What it is.
        record: Stored<'a>,
    },
    /// Positions that are lost.
    Gap {
        /// The first.
        from: u64,
        /// The first that is not.
        to: u64,
    },
}

/// What is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corrupt {
    /// In which file.
    pub file: File,
    /// At which byte.
    pub offset: u64,
    /// At which position of the log.
    pub position: u64,
    /// What is wrong.
    pub why: Why,
}

/// What is wrong with a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its header cannot be read.
    Header,
    /// It is a segment of another log.
    Foreign,
    /// By its header it has another name.
    Misnamed,
    /// It is of an earlier life than the segment before it, or has records that the next one has too.
    Stale,
    /// A frame that was synced is not as it was written.
    Damaged,
    /// A segment is not there.
    Missing,
}

/// Why the log cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// It is damaged.
    Corrupt(Corrupt),
    /// It is of a newer version.
    Newer {
        /// Which file says so.
        file: File,
        /// The version.
        version: u32,
    },
    /// A file or the directory cannot be read.
    Failed {
        /// Which file; none: the directory.
        file: Option<File>,
        /// From which byte on.
        offset: u64,
        /// Why.
        failure: Failure,
    },
}

/// What recovery ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The name of the log; none: there is none yet.
    pub log: Option<u64>,
    /// The position behind the last record.
    pub end: u64,
    /// The life of the last record; 0: there was none.
    pub epoch: u32,
    /// The segment that goes on.
    pub active: Option<Active>,
    /// Bytes of a torn tail that are cut off.
    pub torn_bytes: u64,
    /// Whether the log was closed well.
    pub closed: bool,
    /// Positions that were lost in this recovery: from, to.
    pub lost: Vec<(u64, u64)>,
    /// What makes the end safe; the machine does it, in order, before anything else.
    pub steps: Vec<Op>,
}

/// Reads what there is.
#[derive(Debug, Clone, Copy)]
pub struct Recovery {
    known: Known,
    bug: Bug,
}

impl Recovery {
    /// One that knows this.
    pub fn new(known: Known) -> Self {
        Self {
            known,
            bug: Bug::default(),
        }
    }

    /// Switches one bug on.
    #[cfg(feature = "planted")]
    #[must_use]
    pub fn plant(mut self, bug: Planted) -> Self {
        self.bug.on = Some(bug);
        self
    }

    /// Reads all records from [`Known::from`] on, in order, and finds the end. It changes nothing.
    ///
    /// # Errors
    /// When the log is damaged, of a newer version, or cannot be read.
    pub fn run(
        &self,
        source: &dyn Source,
        each: &mut dyn FnMut(Found<'_>),
    ) -> Result<End, Unreadable> {
        let mut out = End {
            log: None,
            end: 0,
            epoch: self.known.epoch,
            active: None,
            torn_bytes: 0,
            closed: false,
            lost: Vec::new(),
            steps: Vec::new(),
        };
        if source.has_next().map_err(|e| failed(None, 0, e))? {
            out.steps.push(Op::Remove { file: File::Next });
        }
        let headers = self.headers(source, &mut out)?;
        self.begin(headers.first(), &mut out, each)?;
        let skips = |pair: &&[Header]| matches!(pair, [_, after] if after.first <= self.known.from);
        let skipped = headers.windows(2).take_while(skips).count();
        for (index, header) in headers.iter().enumerate().skip(skipped) {
            let mut segment = Segment::read(source, *header)?;
            match headers.get(index + 1) {
                Some(after) => self.sealed(&mut segment, after, &mut out)?,
                None => self.last(&mut segment, source, &mut out)?,
            }
            self.show(&segment, out.end, each);
        }
        let directory = Directory::Log;
        out.steps.push(Op::SyncDirectory { directory });
        Ok(out)
    }

    /// The headers of all segments, each as its name and its neighbours want it.
    fn headers(&self, source: &dyn Source, out: &mut End) -> Result<Vec<Header>, Unreadable> {
        let mut segments = source.segments().map_err(|e| failed(None, 0, e))?;
        segments.sort_unstable();
        let mut read = Vec::new();
        for (first, bytes) in segments {
            let header = read_header(source, first)?;
            out.log = out.log.or(header.map(|header| header.log));
            read.push((first, bytes, header));
        }
        let mut headers: Vec<Header> = Vec::new();
        for (first, bytes, header) in read {
            let header = match (header, out.log) {
                (Some(header), _) => header,
                (None, Some(log)) if self.known.accept_loss => {
                    let epoch = headers.last().map_or(0, |before| before.epoch);
                    let header = Header {
                        log,
                        first,
                        epoch,
                        bytes,
                    };
                    mend(out, first, 0, header.encode());
                    header
                }
                _ => return Err(corrupt(first, 0, first, Why::Header)),
            };
            check_header(first, &header, out.log, headers.last())?;
            headers.push(header);
        }
        Ok(headers)
    }

    /// Sees to it that the log begins where it is wanted from.
    fn begin(
        &self,
        start: Option<&Header>,
        out: &mut End,
        each: &mut dyn FnMut(Found<'_>),
    ) -> Result<(), Unreadable> {
        let from = self.known.from;
        let to = start.map_or(self.known.durable, |header| header.first);
        out.end = to;
        if to <= from && (start.is_some() || to == 0) {
            return Ok(());
        }
        if !self.known.accept_loss {
            return Err(corrupt(from, 0, from, Why::Missing));
        }
        if to > from {
            out.lost.push((from, to));
            each(Found::Gap { from, to });
        }
        Ok(())
    }

    /// Reads a segment that has one behind it: all of it was synced.
    fn sealed(
        &self,
        segment: &mut Segment,
        after: &Header,
        out: &mut End,
    ) -> Result<(), Unreadable> {
        let name = after.first;
        loop {
            let walk = segment.walk(self.bug);
            if walk.position == name && after.epoch >= walk.epoch {
                out.epoch = out.epoch.max(walk.epoch);
                out.end = name;
                return Ok(());
            }
            if walk.position >= name {
                return Err(corrupt(name, 0, name, Why::Stale));
            }
            let behind = segment.behind(&walk, self.bug);
            let resume = behind.resume.filter(|(_, position)| *position <= name);
            self.lose(segment, &walk, (resume, name), out)?;
        }
    }

    /// Reads the last segment, and finds where it ends.
    fn last(
        &self,
        segment: &mut Segment,
        source: &dyn Source,
        out: &mut End,
    ) -> Result<(), Unreadable> {
        let (floor, walk) = loop {
            let walk = segment.walk(self.bug);
            let behind = segment.behind(&walk, self.bug);
            let mut floor = walk.synced.max(self.known.durable);
            if !self.bug.is(Planted::StopsAtHole) {
                floor = floor.max(behind.synced);
            }
            if walk.position >= floor || self.bug.is(Planted::CutBelowFloor) {
                break (floor, walk);
            }
            self.lose(segment, &walk, (behind.resume, floor), out)?;
        };
        let tail = segment.tail(source, floor, &walk, self.bug);
        out.epoch = out.epoch.max(tail.epoch);
        out.end = tail.position;
        out.closed = tail.closed;
        self.make_safe(segment, tail, out);
        Ok(())
    }

    /// Marks positions as lost, if that is allowed: up to where the log resumes, or to where it must have been.
    fn lose(
        &self,
        segment: &mut Segment,
        walk: &Walk,
        (resume, to): (Option<(usize, u64)>, u64),
        out: &mut End,
    ) -> Result<(), Unreadable> {
        let (at, from) = (walk.at, walk.position);
        let first = segment.header.first;
        let damaged = corrupt(first, at as u64, from, Why::Damaged);
        let (end, to) = resume.unwrap_or((at + FRAME_LEAST, to));
        if !self.known.accept_loss || end < at + FRAME_LEAST {
            return Err(damaged);
        }
        let place = Place {
            position: from,
            epoch: walk.epoch,
            mark: Mark::Gap(to),
        };
        let mut frame = Vec::new();
        put_gap(&mut frame, segment.header.salt(), place, end - at);
        if !segment.replace(at, &frame) {
            return Err(damaged);
        }
        out.lost.push((from, to));
        mend(out, first, at as u64, frame);
        Ok(())
    }

    fn show(&self, segment: &Segment, end: u64, each: &mut dyn FnMut(Found<'_>)) {
        for frame in segment.read_frames() {
            if frame.place.position >= end {
                return;
            }
            self.show_frame(&frame, each);
        }
    }

    fn show_frame(&self, frame: &Frame<'_>, each: &mut dyn FnMut(Found<'_>)) {
        if frame.next() <= self.known.from {
            return;
        }
        let epoch = frame.place.epoch;
        if let Mark::Gap(to) = frame.place.mark {
            let from = frame.place.position.max(self.known.from);
            each(Found::Gap { from, to });
        }
        for (record, position) in frame.records().zip(frame.place.position..) {
            if position >= self.known.from {
                each(Found::Record {
                    position,
                    epoch,
                    record,
                });
            }
        }
    }

    /// What is behind the floor is written again, since a sync that failed may have left it in memory only; what is
    /// behind the end becomes zeros, so that nothing of it is ever taken for what comes there.
    fn make_safe(&self, segment: &Segment, tail: Tail, out: &mut End) {
        let bytes = segment.header.bytes;
        let file = File::Segment(segment.header.first);
        let used = segment.used().max(tail.at) as u64;
        let (floor_at, at) = (tail.floor_at as u64, tail.at as u64);
        out.torn_bytes = used - at;
        out.active = Some(Active {
            first: segment.header.first,
            bytes,
            at,
        });
        let mut files = vec![file];
        for ahead in tail.chunks {
            let (file, at, bytes) = (ahead.file, ahead.at, ahead.bytes);
            files.extend((!files.contains(&file)).then_some(file));
            out.steps.push(Op::Write { file, at, bytes });
        }
        if floor_at < at && !self.bug.is(Planted::TailTrusted) {
            let bytes = segment.bytes(tail.floor_at, tail.at).to_vec();
            out.steps.push(Op::Write {
                file,
                at: floor_at,
                bytes,
            });
        }
        let window = at.saturating_add(self.known.unsynced_bytes).min(bytes);
        let to = if segment.is_short() {
            bytes
        } else {
            used.max(window)
        };
        if at < to && !self.bug.is(Planted::TailKept) {
            out.steps.push(Op::Zero { file, from: at, to });
        }
        out.steps
            .extend(files.into_iter().map(|file| Op::Sync { file }));
    }
}

fn mend(out: &mut End, first: u64, at: u64, bytes: Vec<u8>) {
    let file = File::Segment(first);
    out.steps.push(Op::Write { file, at, bytes });
    out.steps.push(Op::Sync { file });
}

/// The header of a segment; none: it is damaged.
fn read_header(source: &dyn Source, first: u64) -> Result<Option<Header>, Unreadable> {
    let file = File::Segment(first);
    let mut page = [0; HEADER_PAGE];
    source
        .read(first, 0, &mut page)
        .map_err(|failure| failed(Some(file), 0, failure))?;
    match Header::decode(&page) {
        Ok(header) => Ok(Some(header)),
        Err(BadHeader::Broken) => Ok(None),
        Err(BadHeader::Newer(version)) => Err(Unreadable::Newer { file, version }),
    }
}

fn check_header(
    name: u64,
    header: &Header,
    log: Option<u64>,
    before: Option<&Header>,
) -> Result<(), Unreadable> {
    let why = if log != Some(header.log) {
        Why::Foreign
    } else if header.first != name {
        Why::Misnamed
    } else if before.is_some_and(|before| before.epoch > header.epoch) {
        Why::Stale
    } else if !(HEADER_BYTES..=SEGMENT_MOST).contains(&header.bytes) {
        Why::Header
    } else {
        return Ok(());
    };
    Err(corrupt(name, 0, name, why))
}

fn corrupt(first: u64, offset: u64, position: u64, why: Why) -> Unreadable {
    Unreadable::Corrupt(Corrupt {
        file: File::Segment(first),
        offset,
        position,
        why,
    })
}

fn failed(file: Option<File>, offset: u64, failure: Failure) -> Unreadable {
    Unreadable::Failed {
        file,
        offset,
        failure,
    }
}
