//! A disk that keeps a promise only when it has said so: what was written is in memory until it is synced, the pages of
//! it reach the disk in any order, whole or torn between sectors, and names last only once their directory is synced.

use std::collections::BTreeMap;
use std::rc::Rc;

use loom_log::{Ahead, Failure, File, Op, Source};

use crate::dice::Dice;

pub(crate) const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// Decides what a power cut leaves.
pub(crate) trait Fate {
    /// One of so many ways.
    fn one_of(&mut self, ways: usize) -> usize;
    /// Which sectors of a page are of another way than the one decided, as bits.
    fn torn(&mut self) -> Option<u8>;
}

impl Fate for Dice {
    fn one_of(&mut self, ways: usize) -> usize {
        self.count(0, ways.saturating_sub(1))
    }

    fn torn(&mut self) -> Option<u8> {
        let [mask, ..] = self.roll().to_le_bytes();
        (mask < 64).then(|| self.roll().to_le_bytes()[0])
    }
}

/// Every way there is, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Every {
    digits: Vec<(usize, usize)>,
    at: usize,
}

impl Every {
    /// Goes on to the next combination; says whether there is one.
    pub(crate) fn next(&mut self) -> bool {
        self.at = 0;
        while let Some((digit, ways)) = self.digits.pop() {
            if digit + 1 < ways {
                self.digits.push((digit + 1, ways));
                return true;
            }
        }
        false
    }
}

impl Fate for Every {
    fn one_of(&mut self, ways: usize) -> usize {
        if self.at == self.digits.len() {
            self.digits.push((0, ways));
        }
        let digit = self.digits.get(self.at).map_or(0, |digit| digit.0);
        self.at += 1;
        digit
    }

    fn torn(&mut self) -> Option<u8> {
        None
    }
}

#[derive(Debug, Clone)]
struct Inode {
    /// As it reads.
    cache: Rc<Vec<u8>>,
    /// As it is after a power cut, but for what is pending.
    disk: Rc<Vec<u8>>,
    /// What each page was since it was last synced, oldest first.
    pending: BTreeMap<usize, Vec<Rc<[u8]>>>,
    /// Its name as it is durable, and all it had since; none: it has no name.
    names: Vec<Option<File>>,
}

impl Inode {
    fn new(bytes: Vec<u8>, names: Vec<Option<File>>) -> Self {
        let bytes = Rc::new(bytes);
        Self {
            cache: Rc::clone(&bytes),
            disk: bytes,
            pending: BTreeMap::new(),
            names,
        }
    }

    fn name(&self) -> Option<File> {
        self.names.last().copied().flatten()
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let cache = Rc::make_mut(&mut self.cache);
        if cache.len() < at + bytes.len() {
            cache.resize(at + bytes.len(), 0);
        }
        if let Some(place) = cache.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        for page in at / PAGE..(at + bytes.len()).div_ceil(PAGE) {
            let whole = self.cache.chunks(PAGE).nth(page).unwrap_or_default();
            self.pending.entry(page).or_default().push(Rc::from(whole));
        }
    }

    fn persist(&mut self, page: usize, bytes: &[u8]) {
        let disk = Rc::make_mut(&mut self.disk);
        let at = page * PAGE;
        if disk.len() < at + bytes.len() {
            disk.resize(at + bytes.len(), 0);
        }
        if let Some(place) = disk.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// Ends a sync that began with so many versions of each page; pages that are `lost` read as they were written, and
    /// will never reach the disk by themselves.
    fn synced(&mut self, begun: &[(usize, usize)], mut lost: impl FnMut() -> bool) {
        for (page, count) in begun {
            let Some(versions) = self.pending.get_mut(page) else {
                continue;
            };
            let done: Vec<Rc<[u8]>> = versions.drain(..(*count).min(versions.len())).collect();
            if versions.is_empty() {
                self.pending.remove(page);
            }
            if let Some(last) = done.last()
                && !lost()
            {
                self.persist(*page, last);
            }
        }
    }

    fn cut(&self, fate: &mut dyn Fate) -> Self {
        let name = self.names.get(fate.one_of(self.names.len()));
        let name = name.copied().flatten();
        let mut left = self.clone();
        left.pending.clear();
        for (page, versions) in &self.pending {
            let chosen = fate.one_of(versions.len() + 1);
            if let Some(version) = chosen.checked_sub(1).and_then(|at| versions.get(at)) {
                left.persist(*page, version);
            }
            if let (Some(mask), Some(other)) = (fate.torn(), versions.get(chosen)) {
                left.tear(*page, other, mask);
            }
        }
        left.cache = Rc::clone(&left.disk);
        left.names = vec![name];
        left
    }

    fn tear(&mut self, page: usize, other: &[u8], mask: u8) {
        let at = page * PAGE;
        let Some(place) = Rc::make_mut(&mut self.disk).get_mut(at..at + other.len()) else {
            return;
        };
        let sectors = place.chunks_mut(SECTOR).zip(other.chunks(SECTOR));
        for (bit, (to, from)) in sectors.enumerate() {
            if mask >> bit & 1 == 1 && to.len() == from.len() {
                to.copy_from_slice(from);
            }
        }
    }
}

/// What a sync found when it began.
#[derive(Debug, Clone, Default)]
pub(crate) struct Begun {
    inode: Option<usize>,
    pages: Vec<(usize, usize)>,
    names: Vec<usize>,
}

/// How something ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Full,
    Broken,
}

impl Outcome {
    pub(crate) fn result(self) -> Result<(), Failure> {
        match self {
            Self::Done => Ok(()),
            Self::Full => Err(Failure::NoSpace),
            Self::Broken => Err(Failure::Broken("input/output error".to_owned())),
        }
    }
}

/// The disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    inodes: Vec<Inode>,
}

impl Disk {
    /// One with a durable file of zeros for chunks.
    pub(crate) fn with_blobs(bytes: usize) -> Self {
        let name = Some(File::Blobs(0));
        Self {
            inodes: vec![Inode::new(vec![0; bytes], vec![name])],
        }
    }

    fn find(&self, file: File) -> Option<usize> {
        self.inodes
            .iter()
            .position(|inode| inode.name() == Some(file))
    }

    fn inode(&mut self, file: File) -> Option<&mut Inode> {
        let at = self.find(file)?;
        self.inodes.get_mut(at)
    }

    fn unname(&mut self, file: File) {
        if let Some(inode) = self.inode(file) {
            inode.names.push(None);
        }
    }

    /// What a sync that is handed out now will answer for.
    pub(crate) fn begin(&self, op: &Op) -> Begun {
        let mut begun = Begun::default();
        match op {
            Op::Sync { file } => {
                begun.inode = self.find(*file);
                let inode = begun.inode.and_then(|at| self.inodes.get(at));
                let pages = inode.into_iter().flat_map(|inode| &inode.pending);
                begun.pages = pages
                    .map(|(page, versions)| (*page, versions.len()))
                    .collect();
            }
            Op::SyncDirectory { .. } => {
                begun.names = self.inodes.iter().map(|inode| inode.names.len()).collect();
            }
            _ => {}
        }
        begun
    }

    /// Ends what was begun.
    pub(crate) fn end(&mut self, op: &Op, begun: &Begun, outcome: Outcome, dice: &mut Dice) {
        match op {
            Op::Sync { .. } if outcome == Outcome::Full => {}
            Op::Sync { .. } => {
                if let Some(inode) = begun.inode.and_then(|at| self.inodes.get_mut(at)) {
                    inode.synced(&begun.pages, || outcome != Outcome::Done && dice.chance(60));
                }
            }
            Op::SyncDirectory { .. } if outcome == Outcome::Done => {
                for (inode, count) in self.inodes.iter_mut().zip(&begun.names) {
                    inode.names.drain(..count.saturating_sub(1));
                }
                self.inodes.retain(|inode| inode.names != [None]);
            }
            _ if outcome == Outcome::Done => self.apply(op),
            _ => self.apply_some(op, dice),
        }
    }

    /// Does something at once; none of it is durable by that.
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { file, bytes } => {
                self.unname(*file);
                let zeros = vec![0; usize::try_from(*bytes).unwrap_or(0)];
                self.inodes.push(Inode::new(zeros, vec![None, Some(*file)]));
            }
            Op::Write { file, at, bytes } => self.write(*file, *at, bytes),
            Op::Zero { file, from, to } => {
                let zeros = vec![0; usize::try_from(to - from).unwrap_or(0)];
                self.write(*file, *from, &zeros);
            }
            Op::Rename { from, to } => {
                self.unname(*to);
                if let Some(inode) = self.inode(*from) {
                    inode.names.push(Some(*to));
                }
            }
            Op::Remove { file } => self.unname(*file),
            Op::Sync { .. } | Op::SyncDirectory { .. } => {}
        }
    }

    fn write(&mut self, file: File, at: u64, bytes: &[u8]) {
        if let Some(inode) = self.inode(file) {
            inode.write(usize::try_from(at).unwrap_or(0), bytes);
        }
    }

    /// Does something as far as it had come when it was cut short.
    pub(crate) fn apply_some(&mut self, op: &Op, dice: &mut Dice) {
        let part = |length: usize, dice: &mut Dice| match dice.between(0, 3) {
            0 => 0,
            1 => length,
            2 => dice.count(0, length),
            _ => dice.count(0, length) / SECTOR * SECTOR,
        };
        match op {
            Op::Create { file, bytes } => {
                let bytes = part(usize::try_from(*bytes).unwrap_or(0), dice) as u64;
                self.apply(&Op::Create { file: *file, bytes });
            }
            Op::Write { file, at, bytes } => {
                let length = part(bytes.len(), dice);
                self.write(*file, *at, bytes.get(..length).unwrap_or_default());
            }
            Op::Zero { file, from, to } => {
                let length = part(usize::try_from(to - from).unwrap_or(0), dice);
                self.write(*file, *from, &vec![0; length]);
            }
            Op::Rename { .. } | Op::Remove { .. } if dice.chance(50) => self.apply(op),
            _ => {}
        }
    }

    /// The disk as a power cut leaves it.
    pub(crate) fn cut(&self, fate: &mut dyn Fate) -> Self {
        let mut left: Vec<Inode> = self.inodes.iter().map(|inode| inode.cut(fate)).collect();
        left.retain(|inode| inode.name().is_some());
        // A name is that of the younger one: it was taken from the other.
        let names: Vec<Option<File>> = left.iter().map(Inode::name).collect();
        let mut at = 0;
        left.retain(|inode| {
            at += 1;
            !names.iter().skip(at).any(|name| *name == inode.name())
        });
        Self { inodes: left }
    }

    /// How many ways a power cut may go, torn pages aside.
    pub(crate) fn ways(&self) -> usize {
        let of = |inode: &Inode| {
            let pages = inode.pending.values().map(|versions| versions.len() + 1);
            pages.fold(inode.names.len(), usize::saturating_mul)
        };
        self.inodes.iter().map(of).fold(1, usize::saturating_mul)
    }

    /// Does all of it, one after the other, and syncs.
    pub(crate) fn do_all(&mut self, ops: &[Op]) {
        for op in ops {
            self.apply(op);
        }
        for inode in &mut self.inodes {
            inode.disk = Rc::clone(&inode.cache);
            inode.pending.clear();
        }
    }

    /// Changes the bytes of a file for good, as age and faults do.
    pub(crate) fn damage(&mut self, file: File, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(inode) = self.inode(file) {
            change(Rc::make_mut(&mut inode.cache));
            inode.disk = Rc::clone(&inode.cache);
        }
    }

    /// Removes a file for good.
    pub(crate) fn remove(&mut self, file: File) {
        self.inodes.retain(|inode| inode.name() != Some(file));
    }

    /// The names and the sizes of the files.
    pub(crate) fn files(&self) -> Vec<(File, usize)> {
        let mut files: Vec<(File, usize)> = self
            .inodes
            .iter()
            .filter_map(|inode| Some((inode.name()?, inode.cache.len())))
            .collect();
        files.sort_unstable();
        files
    }

    /// The bytes of a file.
    pub(crate) fn bytes(&self, file: File) -> &[u8] {
        let inode = self.find(file).and_then(|at| self.inodes.get(at));
        inode.map_or(&[], |inode| &inode.cache)
    }
}

/// Where a chunk is, as the simulated bodies say it: place, length, checksum.
pub(crate) fn chunk_name(at: u64, bytes: &[u8]) -> Vec<u8> {
    let mut name = at.to_le_bytes().to_vec();
    name.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    name.extend_from_slice(&sum(bytes).to_le_bytes());
    name
}

/// The chunk that has this name.
pub(crate) fn chunk(blobs: &[u8], name: &[u8]) -> Option<(u64, Vec<u8>)> {
    let (at, rest) = name.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (sums, _) = rest.split_first_chunk::<8>()?;
    let at = u64::from_le_bytes(*at);
    let start = usize::try_from(at).ok()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let bytes = blobs.get(start..start.checked_add(length)?)?;
    (sum(bytes) == u64::from_le_bytes(*sums)).then(|| (at, bytes.to_vec()))
}

fn sum(bytes: &[u8]) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325;
    let mix = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(start, mix)
}

impl Source for Disk {
    fn segments(&self) -> Result<Vec<(u64, u64)>, Failure> {
        let named = |(file, bytes): (File, usize)| match file {
            File::Segment(first) => Some((first, bytes as u64)),
            _ => None,
        };
        Ok(self.files().into_iter().filter_map(named).collect())
    }

    fn read(&self, first: u64, at: u64, into: &mut [u8]) -> Result<usize, Failure> {
        let bytes = self.bytes(File::Segment(first));
        let from = bytes
            .get(usize::try_from(at).unwrap_or(usize::MAX)..)
            .unwrap_or_default();
        let count = from.len().min(into.len());
        for (to, from) in into.iter_mut().zip(from) {
            *to = *from;
        }
        Ok(count)
    }

    fn has_next(&self) -> Result<bool, Failure> {
        Ok(self.find(File::Next).is_some())
    }

    fn chunks(&self, body: &[u8]) -> Option<Vec<Ahead>> {
        let file = File::Blobs(0);
        let (at, bytes) = chunk(self.bytes(file), body)?;
        Some(vec![Ahead { file, at, bytes }])
    }
}
