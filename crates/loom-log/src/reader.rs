//! Reading a log from outside: another process, or after the fact. It takes no lock and writes nothing.
//!
//! Beside an engine that runs it sees what is durable; of a log that nobody has open, all that the next engine will find.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use loom_core::Position;
use loom_core::record::Record;

use crate::api::{Batch, ReadLimit};
use crate::blobs::Blobs;
use crate::error::{LogError, Result};
use crate::format::Form;
use crate::lock::{check_format, holder};
use crate::mark;
use crate::opening::numbers;
use crate::partition::{Filling, decode};
use crate::snapshots::{self, Snapshot};
use crate::walk::{Limit, Places, Walk, segments};

/// A data directory that is read.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    namespaces: BTreeMap<String, Namespace>,
}

#[derive(Debug)]
struct Namespace {
    number: u32,
    dir: PathBuf,
    blobs: Blobs,
    places: Places,
}

/// What a check of everything found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Which namespace.
    pub namespace: String,
    /// The oldest position kept, and the one behind the newest.
    pub positions: (u64, u64),
    /// Records read.
    pub records: u64,
    /// Pieces of large bodies that they name, and that are there.
    pub pieces: u64,
    /// Sound snapshots.
    pub snapshots: u64,
}

/// Goes through the records of a namespace; ends where the log ended when it was made.
#[derive(Debug)]
pub struct Records<'a> {
    namespace: &'a Namespace,
    walk: Walk,
    /// Before this everything was synced: an end that comes earlier is damage.
    durable: u64,
    next: u64,
    ready: std::vec::IntoIter<(Position, Record)>,
    ended: bool,
}

impl Reader {
    /// Opens a data directory for reading.
    ///
    /// # Errors
    /// [`LogError::NotALog`], [`LogError::Newer`], and what the operating system says.
    pub fn open(dir: &Path) -> Result<Self> {
        check_format(dir)?;
        let mut reader = Self {
            dir: dir.to_path_buf(),
            namespaces: BTreeMap::new(),
        };
        reader.refresh()?;
        Ok(reader)
    }

    /// Takes in what was written since: namespaces and large bodies. Records are seen anyway.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn refresh(&mut self) -> Result<()> {
        for (name, number) in numbers(&self.dir)? {
            if let Some(known) = self.namespaces.get_mut(&name) {
                known.blobs.refresh()?;
                continue;
            }
            let dir = self.dir.join(&name);
            let blobs = Blobs::look(&dir.join("blobs"))?;
            let namespace = Namespace {
                number,
                dir,
                blobs,
                places: Places::default(),
            };
            self.namespaces.insert(name, namespace);
        }
        Ok(())
    }

    /// The namespaces that have a log, by name.
    pub fn namespaces(&self) -> Vec<String> {
        self.namespaces.keys().cloned().collect()
    }

    /// The number of a namespace's partition, as its positions show it.
    ///
    /// # Errors
    /// [`LogError::Unknown`].
    pub fn partition(&self, namespace: &str) -> Result<u32> {
        Ok(self.namespace(namespace)?.number)
    }

    /// The oldest position that is kept, and the one behind the newest that can be seen now.
    ///
    /// # Errors
    /// [`LogError::Unknown`], [`LogError::Corrupt`], and what the operating system says.
    pub fn bounds(&self, namespace: &str) -> Result<(u64, u64)> {
        let namespace = self.namespace(namespace)?;
        let first = segments(&namespace.log())?.first().copied().unwrap_or(0);
        let durable = mark::read(&namespace.dir)?.max(first);
        match self.limit(namespace)? {
            Limit::Before(end) => Ok((first, end)),
            Limit::Found => {
                let mut walk =
                    Walk::from(&namespace.log(), durable, Limit::Found, &namespace.places)?;
                while walk.seek(u64::MAX - 1, &namespace.places)?.is_some() {}
                if walk.next() < durable {
                    return Err(walk.short(durable));
                }
                Ok((first, walk.next()))
            }
        }
    }

    /// The records from a position on.
    ///
    /// # Errors
    /// [`LogError::Unknown`], [`LogError::Expired`], [`LogError::Corrupt`], and what the operating system says.
    pub fn records(&self, namespace: &str, from: u64) -> Result<Records<'_>> {
        let namespace = self.namespace(namespace)?;
        // The mark may move on between the two: what must be there is looked at first.
        let durable = mark::read(&namespace.dir)?;
        let limit = self.limit(namespace)?;
        let walk = Walk::from(&namespace.log(), from, limit, &namespace.places)?;
        Ok(Records {
            namespace,
            walk,
            durable,
            next: from,
            ready: Vec::new().into_iter(),
            ended: false,
        })
    }

    /// Up to so many records from a position on, and where to go on: for one who follows a log.
    ///
    /// # Errors
    /// As [`Reader::records`].
    pub fn read(&self, namespace: &str, from: u64, most: ReadLimit) -> Result<Batch> {
        self.records(namespace, from)?.batch(most)
    }

    /// The record at a position; none: there is none yet, or it is in a gap.
    ///
    /// # Errors
    /// As [`Reader::records`].
    pub fn get(&self, namespace: &str, n: u64) -> Result<Option<(Position, Record)>> {
        let batch = self.read(namespace, n, ReadLimit::ONE)?;
        let found = batch.records.into_iter().next();
        Ok(found.filter(|(position, _)| position.n == n))
    }

    /// The newest sound snapshot.
    ///
    /// # Errors
    /// [`LogError::Unknown`], and what the operating system says.
    pub fn snapshot(&self, namespace: &str) -> Result<Option<Snapshot>> {
        let dir = self.namespace(namespace)?.dir.join("snapshots");
        Ok(snapshots::newest(&dir)?.0)
    }

    /// The positions of the sound snapshots, oldest first: a replay starts at one of them, or at the beginning.
    ///
    /// # Errors
    /// [`LogError::Unknown`], and what the operating system says.
    pub fn snapshots(&self, namespace: &str) -> Result<Vec<Position>> {
        let dir = self.namespace(namespace)?.dir.join("snapshots");
        snapshots::sound(&dir)
    }

    /// Reads everything: each frame, each record, each piece that one names, each snapshot.
    ///
    /// # Errors
    /// The first damage, with file and place.
    pub fn verify(&self) -> Result<Vec<Verified>> {
        let mut all = Vec::new();
        for (name, namespace) in &self.namespaces {
            let durable = mark::read(&namespace.dir)?;
            let limit = self.limit(namespace)?;
            all.push(namespace.verify(name, limit, durable)?);
        }
        Ok(all)
    }

    fn namespace(&self, name: &str) -> Result<&Namespace> {
        self.namespaces.get(name).ok_or_else(|| LogError::Unknown {
            name: format!("of the namespace {name:?}"),
        })
    }

    /// Beside an engine up to the mark; else up to where recovery would end, which is never before the mark.
    fn limit(&self, namespace: &Namespace) -> Result<Limit> {
        if holder(&self.dir)?.is_none() {
            return Ok(Limit::Found);
        }
        Ok(Limit::Before(mark::read(&namespace.dir)?))
    }
}

impl Namespace {
    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn verify(&self, name: &str, limit: Limit, durable: u64) -> Result<Verified> {
        let first = segments(&self.log())?.first().copied().unwrap_or(0);
        let mut verified = Verified {
            namespace: name.to_owned(),
            positions: (first, first),
            records: 0,
            pieces: 0,
            snapshots: 0,
        };
        let bodies = |refs: &[u8]| self.blobs.find(refs)?.read();
        let mut walk = Walk::from(&self.log(), first, limit, &self.places)?;
        while let Some(frame) = walk.seek(verified.positions.1, &self.places)? {
            for (n, stored) in (frame.place.position..).zip(frame.records()) {
                let at = Position {
                    partition: self.number,
                    epoch: frame.place.epoch,
                    n,
                };
                decode(stored, at, &bodies)?;
                verified.records += 1;
                if stored.form == Form::Chunked {
                    let pieces = crate::blobs::pieces(stored.body);
                    verified.pieces += pieces.into_iter().flatten().count() as u64;
                }
            }
            verified.positions.1 = frame.next();
        }
        if verified.positions.1 < durable {
            return Err(walk.short(durable));
        }
        for (_, path) in snapshots::list(&self.dir.join("snapshots"))? {
            snapshots::read(&path)?;
            verified.snapshots += 1;
        }
        Ok(verified)
    }
}

impl Records<'_> {
    /// Up to so many, and where to go on.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] with file and place for damage, and what the operating system says.
    pub fn batch(&mut self, most: ReadLimit) -> Result<Batch> {
        let bodies = |refs: &[u8]| self.namespace.blobs.find(refs)?.read();
        let mut filling = Filling::new(self.namespace.number, self.next, most);
        let filled = filling.fill(&mut self.walk, &self.namespace.places, &bodies);
        let filled = match filled {
            Ok(false) if self.walk.next() < self.durable => Err(self.walk.short(self.durable)),
            other => other,
        };
        let full = match filled {
            Err(error) if filling.is_empty() => return Err(error),
            // What stands before the damage is given; who goes on is told of it.
            Err(_) => true,
            Ok(full) => full,
        };
        let batch = filling.end(!full);
        if full && self.walk.next() != batch.next {
            // It ended within a frame: the next one begins there again.
            let (log, places) = (self.namespace.log(), &self.namespace.places);
            let limit = self.walk.limit();
            self.walk = Walk::from(&log, batch.next, limit, places)?;
        }
        self.next = batch.next;
        Ok(batch)
    }
}

impl Iterator for Records<'_> {
    type Item = Result<(Position, Record)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.ready.next() {
                return Some(Ok(record));
            }
            if self.ended {
                return None;
            }
            match self.batch(ReadLimit::default()) {
                Ok(batch) => {
                    self.ended = batch.at_end;
                    self.ready = batch.records.into_iter();
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }
}
