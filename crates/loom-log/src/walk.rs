//! Going through the frames of a partition's segments, in order, from any position, up to where they may be read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::{LogError, Result};
use crate::files::read_some;
use crate::format::{BadHeader, Frame, HEADER_BYTES, Header, Mark, VERSION};
use crate::storage::File as Name;

/// Read from the file at once, if a frame is not larger.
const CHUNK: usize = 256 << 10;
/// Bytes between two places of the sparse index.
const STRIDE: u64 = 64 << 10;
/// Places that the index keeps.
const PLACES: usize = 1 << 16;

/// Up to where frames are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Before this position: everything below it must be there.
    Before(u64),
    /// Up to the first thing that is no frame: what a recovery would keep.
    Found,
}

/// Where frames begin, learned while reading; a walk starts at the nearest.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<BTreeMap<u64, (u64, u64)>>);

impl Places {
    fn learn(&self, n: u64, segment: u64, at: u64) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let near = places.range(..=n).next_back().is_some_and(|(_, place)| {
            let (other, other_at) = *place;
            other == segment && at.saturating_sub(other_at) < STRIDE
        });
        if near {
            return;
        }
        if places.len() >= PLACES {
            places.pop_first();
        }
        places.insert(n, (segment, at));
    }

    fn nearest(&self, n: u64, segment: u64) -> Option<(u64, u64)> {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (found, (other, at)) = places.range(..=n).next_back()?;
        (*other == segment).then_some((*found, *at))
    }

    /// Forgets what lies before a position.
    pub(crate) fn forget(&self, before: u64) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *places = places.split_off(&before);
    }
}

#[derive(Debug)]
struct Segment {
    first: u64,
    path: PathBuf,
    file: File,
    salt: u32,
    /// The place behind what the buffer holds.
    read: u64,
}

/// A walk through the frames.
#[derive(Debug)]
pub(crate) struct Walk {
    dir: PathBuf,
    segment: Option<Segment>,
    buffer: Vec<u8>,
    /// The frame that was passed last ends here in the buffer.
    start: usize,
    next: u64,
    epoch: u32,
    log: Option<u64>,
    limit: Limit,
    synced: u64,
}

impl Walk {
    /// Begins at the frame that holds a position, or somewhat before it.
    ///
    /// # Errors
    /// [`LogError::Expired`] for what is deleted, [`LogError::Corrupt`], [`LogError::Newer`], and what the operating
    /// system says.
    pub(crate) fn from(dir: &Path, n: u64, limit: Limit, places: &Places) -> Result<Self> {
        let segments = segments(dir)?;
        let mut walk = Self {
            dir: dir.to_path_buf(),
            segment: None,
            buffer: Vec::new(),
            start: 0,
            next: n,
            epoch: 0,
            log: None,
            limit,
            synced: 0,
        };
        let Some(first) = segments.iter().copied().rfind(|first| *first <= n) else {
            return match segments.first() {
                Some(first) => Err(LogError::Expired { n, first: *first }),
                None => Ok(walk),
            };
        };
        walk.next = first;
        walk.enter()?;
        if let Some((found, at)) = places.nearest(n, first)
            && let Some(segment) = &mut walk.segment
        {
            segment.read = at;
            walk.next = found;
        }
        Ok(walk)
    }

    /// The position of the next frame.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Changes how far it goes.
    pub(crate) fn reach(&mut self, limit: Limit) {
        self.limit = limit;
    }

    /// How far it goes.
    pub(crate) fn limit(&self) -> Limit {
        self.limit
    }

    /// Says that it ended before a position that is known to be durable.
    pub(crate) fn short(&self, durable: u64) -> LogError {
        self.damage(&format!(
            "it ends before position {durable}, which was synced"
        ))
    }

    /// The segment that it is in, and the place there behind the last frame.
    pub(crate) fn place(&self) -> Option<(u64, u64)> {
        self.segment.as_ref().map(|s| (s.first, self.at(s)))
    }

    /// Goes to the next frame that ends behind `n`; none: there is no more to read now.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] for what must be there and is not, and what the operating system says.
    pub(crate) fn seek(&mut self, n: u64, places: &Places) -> Result<Option<Frame<'_>>> {
        loop {
            let Some(length) = self.step(places)? else {
                return Ok(None);
            };
            self.start += length;
            if self.next > n {
                let salt = self.segment.as_ref().map_or(0, |segment| segment.salt);
                let bytes = self.buffer.get(self.start - length..self.start);
                return Ok(Frame::checked(bytes.unwrap_or_default(), salt, false));
            }
        }
    }

    fn at(&self, segment: &Segment) -> u64 {
        segment.read - (self.buffer.len() - self.start) as u64
    }

    /// Finds the next frame, which then stands at the start, and says how long it is.
    fn step(&mut self, places: &Places) -> Result<Option<usize>> {
        if matches!(self.limit, Limit::Before(end) if self.next >= end) {
            return Ok(None);
        }
        loop {
            if self.segment.is_none() && !self.enter()? {
                return self.missing("the segment is missing");
            }
            if let Some(length) = self.find(places)? {
                return Ok(Some(length));
            }
            let ended = self.segment.as_ref().is_some_and(|s| s.first < self.next);
            if !ended || !self.dir.join(name(self.next)).exists() {
                return self.missing("there is no sound frame");
            }
            self.segment = None;
        }
    }

    /// What stands in the buffer may be older than what stands in the file: it is read anew before it is given up.
    fn find(&mut self, places: &Places) -> Result<Option<usize>> {
        if self.start < self.buffer.len()
            && let Some(length) = self.check(places)
        {
            return Ok(Some(length));
        }
        self.fill(CHUNK)?;
        if let Some(length) = self.check(places) {
            return Ok(Some(length));
        }
        let announced = self.buffer.get(self.start..).and_then(|b| b.first_chunk());
        let announced = announced.map_or(0, |length| u32::from_le_bytes(*length) as usize);
        if announced <= CHUNK {
            return Ok(None);
        }
        self.fill(announced)?;
        Ok(self.check(places))
    }

    /// Reads anew from the place of the next frame on.
    fn fill(&mut self, bytes: usize) -> Result<()> {
        let Some(mut segment) = self.segment.take() else {
            return Ok(());
        };
        let at = self.at(&segment);
        self.buffer.clear();
        self.start = 0;
        let size = segment.file.metadata();
        let size = size.map_err(|e| LogError::io(&segment.path, "looking at", &e))?;
        let there = size.len().saturating_sub(at);
        let bytes = bytes.min(usize::try_from(there).unwrap_or(usize::MAX));
        let read = read_some(&segment.file, &segment.path, at, bytes, &mut self.buffer);
        segment.read = at + self.buffer.len() as u64;
        self.segment = Some(segment);
        read
    }

    fn check(&mut self, places: &Places) -> Option<usize> {
        let segment = self.segment.as_ref()?;
        let frame = Frame::read(self.buffer.get(self.start..)?, segment.salt)?;
        if frame.place.position != self.next || frame.place.epoch < self.epoch {
            return None;
        }
        places.learn(self.next, segment.first, self.at(segment));
        self.next = frame.next();
        self.epoch = frame.place.epoch;
        if let Mark::Synced(n) | Mark::Closed(n) = frame.place.mark {
            self.synced = self.synced.max(n);
        }
        Some(frame.bytes)
    }

    fn enter(&mut self) -> Result<bool> {
        let path = self.dir.join(name(self.next));
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(LogError::io(&path, "opening", &error)),
        };
        let header = read_header(&file, &path)?;
        let log = *self.log.get_or_insert(header.log);
        if header.first != self.next || header.log != log {
            return Err(LogError::Corrupt {
                path,
                at: 0,
                n: Some(self.next),
                why: "it is a segment of another place or another log".to_owned(),
            });
        }
        self.buffer.clear();
        self.start = 0;
        self.segment = Some(Segment {
            first: self.next,
            path,
            file,
            salt: header.salt(),
            read: HEADER_BYTES,
        });
        Ok(true)
    }

    /// What stands where a frame was expected: damage, or the end.
    fn missing(&self, why: &str) -> Result<Option<usize>> {
        let later = || {
            let all = segments(&self.dir)?;
            Ok::<_, LogError>(all.last().is_some_and(|last| *last > self.next))
        };
        let is_damage = match self.limit {
            Limit::Before(_) => true,
            Limit::Found => self.synced > self.next || later()?,
        };
        if !is_damage {
            return Ok(None);
        }
        if let Some(first) = segments(&self.dir)?.first().filter(|f| **f > self.next) {
            return Err(LogError::Expired {
                n: self.next,
                first: *first,
            });
        }
        Err(self.damage(why))
    }

    fn damage(&self, why: &str) -> LogError {
        let (path, at) = match &self.segment {
            Some(segment) => (segment.path.clone(), self.at(segment)),
            None => (self.dir.join(name(self.next)), 0),
        };
        LogError::Corrupt {
            path,
            at,
            n: Some(self.next),
            why: why.to_owned(),
        }
    }
}

/// The header of a segment.
///
/// # Errors
/// [`LogError::Corrupt`], [`LogError::Newer`], and what the operating system says.
pub(crate) fn read_header(file: &File, path: &Path) -> Result<Header> {
    let mut page = Vec::new();
    read_some(
        file,
        path,
        0,
        usize::try_from(HEADER_BYTES).unwrap_or(0),
        &mut page,
    )?;
    Header::decode(&page).map_err(|bad| match bad {
        BadHeader::Newer(found) => LogError::Newer {
            path: path.to_path_buf(),
            found,
            known: VERSION,
        },
        BadHeader::Broken => LogError::Corrupt {
            path: path.to_path_buf(),
            at: 0,
            n: None,
            why: "it does not begin as a segment does".to_owned(),
        },
    })
}

/// The first positions of all segments, in order.
///
/// # Errors
/// What the operating system says.
pub(crate) fn segments(dir: &Path) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(LogError::io(dir, "reading", &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| LogError::io(dir, "reading", &e))?;
        let file = entry.file_name().to_str().and_then(Name::segment);
        if let Some(Name::Segment(first)) = file {
            found.push(first);
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn name(first: u64) -> String {
    Name::Segment(first).name()
}
