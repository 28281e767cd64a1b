//! Large bodies, cut where their content says so: each piece is stored once under its hash.
//!
//! A segment of blobs is a header and then pieces, one behind the other. The segment that was written to last is never
//! written to again by a later life of the log, so a torn end of it stays where it is and hurts nobody: what it held was
//! not durable. A finished segment has an index beside it, so that a start need not read all pieces.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fastcdc::v2020::FastCDC;

use crate::error::{LogError, Result};
use crate::files::{Health, Storage, read_some, remove_if_there, write_whole};
use crate::machine::Ahead;
use crate::storage::{Directory, File as Name, Op};

/// A piece under its blake3 hash.
pub(crate) type Hash = [u8; 32];

/// Bodies up to this are part of their record.
pub(crate) const INLINE_BYTES: usize = 16 * 1024;

const MAGIC: &[u8; 8] = b"loomblob";
const INDEX_MAGIC: &[u8; 8] = b"loombidx";
const VERSION: u32 = 1;
const HEADER: u32 = 16;
/// crc32c, length, how much of the segment was synced when this was written, hash.
const FRAME: u32 = 4 + 4 + 4 + 32;
const SHORTEST: usize = 1024;
const MEAN: usize = 4 * 1024;
const LONGEST: usize = 16 * 1024;
/// A reference in a record: hash and length.
const REF: usize = 36;
const INDEX_ENTRY: usize = 40;
/// Hashes that one half of [`Touched`] remembers: 8 MiB.
const TOUCHED: usize = 1 << 18;
/// Segments kept open for reading.
const OPEN_FILES: usize = 16;

/// Where a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    segment: u32,
    at: u32,
    len: u32,
    /// Known to be on the disk, or about to be synced by this life: another record may name it.
    sound: bool,
}

/// A segment that is written to.
#[derive(Debug)]
struct Active {
    number: u32,
    file: Arc<File>,
    end: u32,
    synced: u32,
    pieces: Vec<(Hash, u32, u32)>,
}

/// The blobs of one namespace.
#[derive(Debug)]
pub(crate) struct Blobs {
    dir: PathBuf,
    segment_bytes: u32,
    index: hash::Index<Place>,
    /// Bytes of each segment that is there.
    segments: BTreeMap<u32, u64>,
    active: Option<Active>,
    files: Mutex<BTreeMap<u32, Arc<File>>>,
    /// What was named since the collection before the last: its record may not be written yet.
    touched: Touched,
    buffer: Vec<u8>,
    /// What stands in the buffer, and where it was known to be before.
    gathered: Vec<(Hash, Option<Place>)>,
    health: Arc<Health>,
}

/// Hashes that were named lately; what is in neither half was named before the collection before the last.
#[derive(Debug, Default)]
struct Touched {
    now: HashSet<Hash>,
    before: HashSet<Hash>,
    /// There were more than are remembered: nothing can be said about them.
    over: bool,
}

impl Touched {
    fn note(&mut self, hash: Hash) {
        if self.now.len() < TOUCHED {
            self.now.insert(hash);
        } else {
            self.over = true;
        }
    }

    /// All of them; from here on the older half is forgotten.
    fn turn(&mut self) -> Option<HashSet<Hash>> {
        let mut all = std::mem::replace(&mut self.before, std::mem::take(&mut self.now));
        all.extend(self.before.iter().copied());
        let over = std::mem::take(&mut self.over);
        (!over).then_some(all)
    }
}

mod hash {
    //! A map by hashes that are evenly spread already.

    use std::collections::HashMap;
    use std::hash::{BuildHasherDefault, Hasher};

    #[derive(Debug, Default, Clone, Copy)]
    pub(super) struct First(u64);

    impl Hasher for First {
        fn finish(&self) -> u64 {
            self.0
        }

        fn write(&mut self, bytes: &[u8]) {
            if let Some(first) = bytes.first_chunk::<8>() {
                self.0 = u64::from_le_bytes(*first);
            }
        }

        fn write_usize(&mut self, _len: usize) {}
    }

    pub(super) type Index<V> = HashMap<super::Hash, V, BuildHasherDefault<First>>;
}

impl Blobs {
    /// Opens the blobs of a namespace for writing.
    ///
    /// # Errors
    /// What the operating system says, and damage to what is there.
    pub(crate) fn open(dir: &Path, segment_bytes: u64) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| LogError::io(dir, "making", &e))?;
        let mut blobs = Self::empty(dir, segment_bytes);
        blobs.load(true)?;
        Ok(blobs)
    }

    /// Opens them for reading only: nothing is written, whatever is found.
    ///
    /// # Errors
    /// As [`Blobs::open`].
    pub(crate) fn look(dir: &Path) -> Result<Self> {
        let mut blobs = Self::empty(dir, u64::from(u32::MAX));
        blobs.load(false)?;
        Ok(blobs)
    }

    fn empty(dir: &Path, segment_bytes: u64) -> Self {
        Self {
            dir: dir.to_path_buf(),
            segment_bytes: u32::try_from(segment_bytes).unwrap_or(u32::MAX / 2),
            index: hash::Index::default(),
            segments: BTreeMap::new(),
            active: None,
            files: Mutex::default(),
            touched: Touched::default(),
            buffer: Vec::new(),
            gathered: Vec::new(),
            health: Arc::default(),
        }
    }

    /// Takes in what has been written since: segments that are new or have grown.
    ///
    /// # Errors
    /// As [`Blobs::open`].
    pub(crate) fn refresh(&mut self) -> Result<()> {
        self.load(false)
    }

    fn load(&mut self, own: bool) -> Result<()> {
        for (number, bytes) in list(&self.dir)? {
            if self.segments.get(&number) == Some(&bytes) {
                continue;
            }
            let indexed = read_index(&self.dir, number, bytes);
            let found = match indexed {
                Some(found) => found,
                None => self.scan(number, own)?,
            };
            for (hash, at, len) in found.pieces {
                let place = Place {
                    segment: number,
                    at,
                    len,
                    sound: at.saturating_add(FRAME + len) <= found.synced,
                };
                let known = self.index.get(&hash).is_some_and(|known| known.sound);
                if !known {
                    self.index.insert(hash, place);
                }
            }
            self.segments.insert(number, bytes);
        }
        Ok(())
    }

    fn scan(&self, number: u32, own: bool) -> Result<Found> {
        let path = segment_path(&self.dir, number);
        let bytes = fs::read(&path).map_err(|e| LogError::io(&path, "reading", &e))?;
        let found = scan(&bytes);
        if own {
            // What a process that was killed had written is on its way to the disk: wait for it.
            File::open(&path)
                .and_then(|file| file.sync_data())
                .map_err(|e| LogError::io(&path, "syncing", &e))?;
            match write_index(&self.dir, number, bytes.len() as u64, &found) {
                Err(error) if !error.is_no_space() => return Err(error),
                _ => {}
            }
        }
        Ok(found)
    }

    /// Stores a body and appends the references to its pieces. The pieces are written, not synced.
    ///
    /// # Errors
    /// What the operating system says; then no record may name the pieces, and what was written is overwritten.
    pub(crate) fn store(
        &mut self,
        storage: &dyn Storage,
        body: &[u8],
        refs: &mut Vec<u8>,
    ) -> Result<()> {
        let mut from = 0;
        for piece in FastCDC::new(body, SHORTEST, MEAN, LONGEST) {
            let Some(bytes) = body.get(from..from + piece.length) else {
                break;
            };
            from += piece.length;
            let hash = *blake3::hash(bytes).as_bytes();
            self.touched.note(hash);
            if !self.index.get(&hash).is_some_and(|place| place.sound) {
                self.add(storage, hash, bytes)?;
            }
            refs.extend_from_slice(&hash);
            refs.extend_from_slice(&u32_of(bytes.len()).to_le_bytes());
        }
        self.flush(storage)
    }

    fn add(&mut self, storage: &dyn Storage, hash: Hash, bytes: &[u8]) -> Result<()> {
        let len = u32_of(bytes.len());
        let room = self.active.as_ref().is_some_and(|active| {
            let taken = active.end + u32_of(self.buffer.len());
            taken.saturating_add(FRAME + len) <= self.segment_bytes
        });
        if !room {
            self.rotate(storage)?;
        }
        let Some(active) = &mut self.active else {
            return Err(LogError::Closed);
        };
        let at = active.end + u32_of(self.buffer.len());
        put_frame(&mut self.buffer, active.synced, &hash, bytes);
        active.pieces.push((hash, at, len));
        let segment = active.number;
        let place = Place {
            segment,
            at,
            len,
            sound: true,
        };
        let before = self.index.insert(hash, place);
        self.gathered.push((hash, before));
        Ok(())
    }

    /// Writes what is gathered. If that fails, the pieces are forgotten.
    fn flush(&mut self, storage: &dyn Storage) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let Some(active) = &mut self.active else {
            return Err(LogError::Closed);
        };
        let len = u32_of(self.buffer.len());
        let written = storage.perform(&Op::Write {
            file: Name::Blobs(active.number),
            at: active.end.into(),
            bytes: std::mem::take(&mut self.buffer),
        });
        let gathered = std::mem::take(&mut self.gathered);
        match written {
            Ok(()) => {
                active.end += len;
                self.segments.insert(active.number, active.end.into());
                Ok(())
            }
            Err(error) => {
                let written = active.pieces.len().saturating_sub(gathered.len());
                active.pieces.truncate(written);
                for (hash, before) in gathered {
                    match before {
                        Some(place) => self.index.insert(hash, place),
                        None => self.index.remove(&hash),
                    };
                }
                Err(error)
            }
        }
    }

    /// Whether a sync of them has failed.
    pub(crate) fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// The file that must be synced before records that name the pieces written so far count as synced, and its end.
    pub(crate) fn unsynced(&self) -> Option<(Name, u32)> {
        let active = self.active.as_ref()?;
        let file = Name::Blobs(active.number);
        (active.synced < active.end).then_some((file, active.end))
    }

    /// A file is synced up to this place.
    pub(crate) fn synced(&mut self, file: Name, end: u32) {
        if let Some(active) = &mut self.active
            && Name::Blobs(active.number) == file
        {
            active.synced = active.synced.max(end);
        }
    }

    /// Ends the active segment, with its index, and begins the next.
    fn rotate(&mut self, storage: &dyn Storage) -> Result<()> {
        self.finish(storage)?;
        let number = self.segments.keys().next_back().map_or(0, |last| last + 1);
        let path = segment_path(&self.dir, number);
        // A power cut may have taken an earlier segment of this number, and left its index.
        remove_if_there(&index_path(&self.dir, number))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| LogError::io(&path, "making", &e))?;
        let mut header = Vec::with_capacity(HEADER as usize);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&number.to_le_bytes());
        let begun = file
            .write_all_at(&header, 0)
            .map_err(|e| LogError::io(&path, "writing", &e))
            .and_then(|()| self.sync_names(storage));
        if let Err(error) = begun {
            // It holds nothing; when it cannot be removed either, the next life passes over it.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        self.segments.insert(number, HEADER.into());
        self.active = Some(Active {
            number,
            file: Arc::new(file),
            end: HEADER,
            synced: 0,
            pieces: Vec::new(),
        });
        Ok(())
    }

    /// Syncs the active segment and writes its index.
    ///
    /// # Errors
    /// What the operating system says.
    pub(crate) fn finish(&mut self, storage: &dyn Storage) -> Result<()> {
        self.flush(storage)?;
        self.sync(storage)?;
        let Some(active) = &self.active else {
            return Ok(());
        };
        let found = Found {
            synced: active.end,
            pieces: active.pieces.clone(),
        };
        match write_index(&self.dir, active.number, active.end.into(), &found) {
            // It may have been the directory that could not be synced, and the next sync of that proves nothing.
            Err(error @ LogError::Io { .. }) => return self.health.sync(|| Err(error)),
            written => written?,
        }
        self.active = None;
        Ok(())
    }

    fn sync_names(&self, storage: &dyn Storage) -> Result<()> {
        let directory = Directory::Blobs;
        self.health
            .sync(|| storage.perform(&Op::SyncDirectory { directory }))
    }

    fn sync(&mut self, storage: &dyn Storage) -> Result<()> {
        if let Some((file, end)) = self.unsynced() {
            self.health.sync(|| storage.perform(&Op::Sync { file }))?;
            self.synced(file, end);
        }
        Ok(())
    }

    /// Where to read a body from.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] when a piece is missing.
    pub(crate) fn find(&self, refs: &[u8]) -> Result<Body> {
        let missing = |why: &str| LogError::Corrupt {
            path: self.dir.clone(),
            at: 0,
            n: None,
            why: why.to_owned(),
        };
        let all = pieces(refs).ok_or_else(|| missing("a list of pieces has an odd length"))?;
        let mut body = Body {
            parts: Vec::with_capacity(refs.len() / REF),
        };
        for (hash, len) in all {
            let place = self.index.get(&hash).filter(|place| place.len == len);
            let place = place.ok_or_else(|| {
                missing(&format!(
                    "the piece {} is missing",
                    blake3::Hash::from(hash)
                ))
            })?;
            let file = self.file(place.segment)?;
            let path = segment_path(&self.dir, place.segment);
            body.parts.push((hash, place.at, place.len, file, path));
        }
        Ok(body)
    }

    fn file(&self, segment: u32) -> Result<Arc<File>> {
        if let Some(active) = self.active.as_ref().filter(|a| a.number == segment) {
            return Ok(Arc::clone(&active.file));
        }
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&segment) {
            return Ok(Arc::clone(file));
        }
        let path = segment_path(&self.dir, segment);
        let file = File::open(&path).map_err(|e| LogError::io(&path, "opening", &e))?;
        if files.len() >= OPEN_FILES {
            files.pop_first();
        }
        let file = Arc::new(file);
        files.insert(segment, Arc::clone(&file));
        Ok(file)
    }

    /// The pieces as they are stored, each with its file and place; none if one is missing or damaged.
    pub(crate) fn stored(&self, refs: &[u8]) -> Option<Vec<Ahead>> {
        let mut all = Vec::new();
        for (hash, len) in pieces(refs)? {
            let place = self.index.get(&hash).filter(|place| place.len == len)?;
            let file = self.file(place.segment).ok()?;
            let mut bytes = Vec::new();
            let path = segment_path(&self.dir, place.segment);
            let whole = (FRAME + len) as usize;
            read_some(&file, &path, place.at.into(), whole, &mut bytes).ok()?;
            let (found, found_len, _) = frame(&bytes, 0)?;
            if (found, found_len) != (hash, len) {
                return None;
            }
            all.push(Ahead {
                file: Name::Blobs(place.segment),
                at: place.at.into(),
                bytes,
            });
        }
        Some(all)
    }

    /// Pieces and bytes of the segments.
    pub(crate) fn stats(&self) -> (u64, u64) {
        (self.index.len() as u64, self.segments.values().sum())
    }

    /// Deletes the finished segments of which no piece is named, and moves the last pieces out of those that are mostly
    /// dead. `named` are the pieces that the records of the log name. Returns which files went, with their bytes.
    ///
    /// # Errors
    /// What the operating system says; nothing that is named is lost.
    pub(crate) fn collect(
        &mut self,
        storage: &dyn Storage,
        named: &HashSet<Hash>,
    ) -> Result<Vec<(String, u64)>> {
        let Some(touched) = self.touched.turn() else {
            return Ok(Vec::new());
        };
        let mut live: BTreeMap<u32, Vec<(Hash, Place)>> = BTreeMap::new();
        #[expect(clippy::iter_over_hash_type, reason = "sorted by place below")]
        for (hash, place) in &self.index {
            if named.contains(hash) || touched.contains(hash) {
                live.entry(place.segment).or_default().push((*hash, *place));
            }
        }
        let active = self.active.as_ref().map(|active| active.number);
        let finished = self.segments.iter().filter(|(n, _)| Some(**n) != active);
        let finished: Vec<(u32, u64)> = finished.map(|(n, bytes)| (*n, *bytes)).collect();
        let mut gone = Vec::new();
        for (number, bytes) in finished {
            let mut kept = live.remove(&number).unwrap_or_default();
            let weight: u64 = kept.iter().map(|(_, p)| u64::from(p.len + FRAME)).sum();
            if weight * 2 > bytes {
                continue;
            }
            kept.sort_unstable_by_key(|(_, place)| place.at);
            self.relocate(storage, &kept)?;
            self.drop_segment(storage, number)?;
            gone.push((Name::Blobs(number).name(), bytes));
        }
        Ok(gone)
    }

    /// Copies pieces to the active segment and syncs them there.
    fn relocate(&mut self, storage: &dyn Storage, kept: &[(Hash, Place)]) -> Result<()> {
        for (hash, place) in kept {
            let mut refs = hash.to_vec();
            refs.extend_from_slice(&place.len.to_le_bytes());
            let bytes = self.find(&refs)?.read()?;
            self.add(storage, *hash, &bytes)?;
        }
        if kept.is_empty() {
            return Ok(());
        }
        self.flush(storage)?;
        self.sync(storage)
    }

    fn drop_segment(&mut self, storage: &dyn Storage, number: u32) -> Result<()> {
        self.index.retain(|_, place| place.segment != number);
        self.segments.remove(&number);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.remove(&number);
        drop(files);
        let path = segment_path(&self.dir, number);
        fs::remove_file(&path).map_err(|e| LogError::io(&path, "removing", &e))?;
        remove_if_there(&index_path(&self.dir, number))?;
        self.sync_names(storage)
    }
}

/// A body whose pieces are found; reading it needs no lock.
#[derive(Debug)]
pub(crate) struct Body {
    parts: Vec<(Hash, u32, u32, Arc<File>, PathBuf)>,
}

impl Body {
    /// Reads the pieces, checks each against its hash, and puts them together.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] with the file and the place of a piece that is not what its name says.
    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        let total: usize = self.parts.iter().map(|part| part.2 as usize).sum();
        let mut whole = Vec::with_capacity(total);
        for (hash, at, len, file, path) in &self.parts {
            let from = whole.len();
            let start = u64::from(at + FRAME);
            read_some(file, path, start, *len as usize, &mut whole)?;
            let piece = whole.get(from..).unwrap_or_default();
            if piece.len() != *len as usize || blake3::hash(piece).as_bytes() != hash {
                return Err(LogError::Corrupt {
                    path: path.clone(),
                    at: start,
                    n: None,
                    why: "a piece is not what its name says".to_owned(),
                });
            }
        }
        Ok(whole)
    }
}

/// The pieces that references name; `None` when they are none.
pub(crate) fn pieces(refs: &[u8]) -> Option<impl Iterator<Item = (Hash, u32)>> {
    let (all, rest) = refs.as_chunks::<REF>();
    rest.is_empty().then(|| {
        all.iter().filter_map(|entry| {
            let (hash, len) = entry.split_first_chunk::<32>()?;
            Some((*hash, u32::from_le_bytes(*len.first_chunk()?)))
        })
    })
}

struct Found {
    synced: u32,
    pieces: Vec<(Hash, u32, u32)>,
}

fn put_frame(out: &mut Vec<u8>, synced: u32, hash: &Hash, bytes: &[u8]) {
    let from = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&u32_of(bytes.len()).to_le_bytes());
    out.extend_from_slice(&synced.to_le_bytes());
    out.extend_from_slice(hash);
    out.extend_from_slice(bytes);
    let crc = crc32c::crc32c(out.get(from + 4..).unwrap_or_default());
    if let Some(place) = out.get_mut(from..from + 4) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

fn scan(bytes: &[u8]) -> Found {
    let mut found = Found {
        synced: 0,
        pieces: Vec::new(),
    };
    if bytes.get(..8) != Some(MAGIC.as_slice()) || number_at(bytes, 8) != Some(VERSION) {
        return found;
    }
    let mut at = HEADER;
    while let Some((hash, len, synced)) = frame(bytes, at) {
        found.pieces.push((hash, at, len));
        found.synced = found.synced.max(synced);
        at += FRAME + len;
    }
    found
}

fn frame(bytes: &[u8], at: u32) -> Option<(Hash, u32, u32)> {
    let rest = bytes.get(at as usize..)?;
    let crc = number_at(rest, 0)?;
    let len = number_at(rest, 4)?;
    let synced = number_at(rest, 8)?;
    if len == 0 || len as usize > LONGEST {
        return None;
    }
    let covered = rest.get(4..(FRAME + len) as usize)?;
    let hash = *rest.get(12..44)?.first_chunk()?;
    (crc32c::crc32c(covered) == crc).then_some((hash, len, synced))
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?.first_chunk()?;
    Some(u32::from_le_bytes(*four))
}

/// The index is only a short cut: without a sound one that fits, the segment is read.
fn read_index(dir: &Path, number: u32, bytes: u64) -> Option<Found> {
    let index = fs::read(index_path(dir, number)).ok()?;
    let (body, crc) = index.split_last_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let rest = body.strip_prefix(INDEX_MAGIC.as_slice())?;
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (synced, rest) = rest.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || u64::from_le_bytes(*length) != bytes {
        return None;
    }
    let (entries, over) = rest.as_chunks::<INDEX_ENTRY>();
    if !over.is_empty() {
        return None;
    }
    let read = |entry: &[u8; INDEX_ENTRY]| {
        let (hash, rest) = entry.split_first_chunk::<32>()?;
        Some((*hash, number_at(rest, 0)?, number_at(rest, 4)?))
    };
    Some(Found {
        synced: u32::from_le_bytes(*synced),
        pieces: entries.iter().filter_map(read).collect(),
    })
}

fn write_index(dir: &Path, number: u32, bytes: u64, found: &Found) -> Result<()> {
    let mut out = Vec::with_capacity(32 + found.pieces.len() * INDEX_ENTRY);
    out.extend_from_slice(INDEX_MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&bytes.to_le_bytes());
    out.extend_from_slice(&found.synced.to_le_bytes());
    for (hash, at, len) in &found.pieces {
        out.extend_from_slice(hash);
        out.extend_from_slice(&at.to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    write_whole(dir, &format!("{number:08x}.idx"), &out)
}

fn list(dir: &Path) -> Result<BTreeMap<u32, u64>> {
    let mut found = BTreeMap::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(LogError::io(dir, "reading", &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| LogError::io(dir, "reading", &e))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".seg"));
        let Some(number) = number.and_then(|hex| u32::from_str_radix(hex, 16).ok()) else {
            continue;
        };
        match entry.metadata() {
            Ok(meta) => found.insert(number, meta.len()),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(LogError::io(&entry.path(), "looking at", &error)),
        };
    }
    Ok(found)
}

fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08x}.seg"))
}

fn index_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08x}.idx"))
}

/// Lengths here are bounded far below.
fn u32_of(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
