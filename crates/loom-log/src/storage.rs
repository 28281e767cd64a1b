//! What can be done to the files of a partition. Each thing leaves the machine under a number, several may be under way
//! at once, and each is told as done under its number.

use std::fmt;

/// A file of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum File {
    /// The records from this position on.
    Segment(u64),
    /// What becomes the next segment.
    Next,
    /// The chunks of large bodies.
    Blobs(u32),
}

impl File {
    /// The directory it is in.
    pub const fn directory(self) -> Directory {
        match self {
            Self::Segment(_) | Self::Next => Directory::Log,
            Self::Blobs(_) => Directory::Blobs,
        }
    }

    /// The segment with this file name.
    pub fn segment(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".seg")?;
        let first = u64::from_str_radix(digits, 16).ok()?;
        let file = Self::Segment(first);
        (file.name() == name).then_some(file)
    }

    /// Its name in its directory.
    pub fn name(self) -> String {
        match self {
            Self::Segment(first) => format!("{first:016x}.seg"),
            Self::Next => "next.tmp".to_owned(),
            Self::Blobs(number) => format!("{number:08x}.seg"),
        }
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.directory().name(), self.name())
    }
}

/// A directory of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Directory {
    /// Of segments.
    Log,
    /// Of chunks.
    Blobs,
}

impl Directory {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Blobs => "blobs",
        }
    }
}

/// Names one thing to do until it is done; rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// Something to do. Things that are handed out together may be done in any order, and at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Makes the file anew, of this many zeros, and syncs these; what had the name before is gone.
    Create {
        /// Which.
        file: File,
        /// Its size.
        bytes: u64,
    },
    /// Writes all of these bytes; a part of them is a failure.
    Write {
        /// Into which.
        file: File,
        /// From which byte on.
        at: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Writes zeros; a file that is shorter becomes as long.
    Zero {
        /// Into which.
        file: File,
        /// From this byte.
        from: u64,
        /// To before this one.
        to: u64,
    },
    /// Syncs what was written before this was handed out.
    Sync {
        /// Which.
        file: File,
    },
    /// Gives a file another name in its directory; what had that name is gone.
    Rename {
        /// What it is called.
        from: File,
        /// What it is to be called.
        to: File,
    },
    /// Removes a file if there is one.
    Remove {
        /// Which.
        file: File,
    },
    /// Syncs the names in a directory.
    SyncDirectory {
        /// Which.
        directory: Directory,
    },
}

/// Why something could not be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The disk or the quota is full.
    NoSpace,
    /// Anything else.
    Broken(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSpace => f.write_str("there is no space left"),
            Self::Broken(why) => f.write_str(why),
        }
    }
}
