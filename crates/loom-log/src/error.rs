//! What can go wrong with a log, as data: where, what, and what to do about it.
//!
//! Each can be told to many who wait for one commit, so it is cheap to clone and holds no file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use loom_core::{Code, Error};

/// A refusal of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogError {
    /// The path is something else: it is left alone.
    NotALog {
        /// Where.
        path: PathBuf,
        /// What it is instead.
        why: &'static str,
    },
    /// A later version wrote it.
    Newer {
        /// Where.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The newest that this engine reads.
        known: u32,
    },
    /// Another engine has it open.
    Held {
        /// The data directory.
        path: PathBuf,
        /// The process that holds it, if it said so.
        pid: Option<u32>,
    },
    /// What was written is no longer what is there.
    Corrupt {
        /// In which file.
        path: PathBuf,
        /// At which byte.
        at: u64,
        /// The position it should hold, where that is known.
        n: Option<u64>,
        /// What is wrong.
        why: String,
    },
    /// The disk is full.
    NoSpace {
        /// Where.
        path: PathBuf,
    },
    /// The operating system does not let the engine in.
    Denied {
        /// Where.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The operating system's number for it.
        errno: i32,
    },
    /// The process has no file descriptor left.
    Descriptors {
        /// What it would have been for.
        path: PathBuf,
    },
    /// Any other failure of the operating system.
    Io {
        /// Where.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The operating system's number for it; 0: it gave none.
        errno: i32,
        /// What it says.
        message: String,
    },
    /// More is waiting to be written than may wait.
    Full {
        /// Bytes that wait.
        pending: u64,
    },
    /// One record is larger than any may be.
    TooLarge {
        /// Its bytes.
        bytes: u64,
        /// How many it may have.
        most: u64,
        /// The limit that says so.
        limit: &'static str,
    },
    /// A write or a sync failed: nothing more is written until it is opened again.
    ReadOnly {
        /// The namespace's directory.
        path: PathBuf,
        /// What had failed.
        why: String,
    },
    /// The position lies before the oldest kept one.
    Expired {
        /// What was asked for.
        n: u64,
        /// The oldest kept.
        first: u64,
    },
    /// The position is none of this log.
    Foreign {
        /// What was asked for.
        n: u64,
        /// The end of the log.
        end: u64,
    },
    /// There is no such partition or namespace here.
    Unknown {
        /// Which.
        name: String,
    },
    /// The log is closed.
    Closed,
    /// The directory that a restore or a backup would write to is in use.
    NotEmpty {
        /// Which.
        path: PathBuf,
    },
    /// A copy would lie in what it is a copy of.
    Inside {
        /// Where it would be written.
        path: PathBuf,
        /// What it would lie in.
        of: PathBuf,
    },
    /// The directory is a backup: writing into it would spoil it.
    IsBackup {
        /// Which.
        path: PathBuf,
    },
    /// A backup is not what was written.
    Tampered {
        /// In which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A record could not be read by the core.
    Unreadable(Box<Error>),
}

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, LogError>;

impl LogError {
    /// What the operating system said about a file.
    pub fn io(path: &Path, what: &'static str, error: &io::Error) -> Self {
        let path = path.to_path_buf();
        let errno = error.raw_os_error().unwrap_or(0);
        let known = rustix::io::Errno::from_raw_os_error(errno);
        match known {
            rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT => Self::NoSpace { path },
            rustix::io::Errno::ACCESS | rustix::io::Errno::PERM | rustix::io::Errno::ROFS => {
                Self::Denied { path, what, errno }
            }
            rustix::io::Errno::NAMETOOLONG => Self::NotALog {
                path,
                why: "its name is too long",
            },
            rustix::io::Errno::LOOP => Self::NotALog {
                path,
                why: "its links lead in a circle",
            },
            rustix::io::Errno::MFILE | rustix::io::Errno::NFILE => Self::Descriptors { path },
            _ => Self::Io {
                path,
                what,
                errno,
                message: error.to_string(),
            },
        }
    }

    /// Whether it goes away by itself when there is space again.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }

    fn code(&self) -> Code {
        match self {
            Self::NotALog { .. }
            | Self::TooLarge { .. }
            | Self::Inside { .. }
            | Self::IsBackup { .. } => Code::InvalidParams,
            Self::Newer { .. } => Code::NotSupported,
            Self::Held { .. } | Self::NotEmpty { .. } => Code::Conflict,
            Self::Corrupt { .. } | Self::Io { .. } | Self::Tampered { .. } => Code::Internal,
            Self::NoSpace { .. } | Self::Descriptors { .. } | Self::Full { .. } => Code::Exhausted,
            Self::Denied { .. } => Code::Denied,
            Self::ReadOnly { .. } | Self::Closed => Code::Unavailable,
            Self::Expired { .. } => Code::CursorExpired,
            Self::Foreign { .. } => Code::InvalidCursor,
            Self::Unknown { .. } => Code::NotFound,
            Self::Unreadable(error) => error.code,
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::NotALog { .. } => {
                "name the data directory of a log; `loom run --data DIR` begins one, where DIR is new or empty"
            }
            Self::Newer { .. } => "update Loom; an older one would destroy what it cannot read",
            Self::Held { .. } => {
                "stop that process and the children that it forked, or name another directory"
            }
            Self::Corrupt { .. } => {
                "restore a backup, or start it with `loom run --accept-loss` and lose what cannot be read"
            }
            Self::NoSpace { .. } => "free space on that disk; writing goes on by itself",
            Self::Denied { .. } => "let this user write there, and mount it writable",
            Self::Descriptors { .. } => "raise the limit of open files (ulimit -n)",
            Self::Io { .. } => "look at the disk and at the system's log",
            Self::Full { .. } => "send slower: the disk does not keep up",
            Self::TooLarge { .. } => "keep it elsewhere, and send where",
            Self::ReadOnly { .. } => "look at the disk, then start the engine again",
            Self::Expired { .. } => "start from the oldest kept position",
            Self::Foreign { .. } => "take positions only from this log",
            Self::Unknown { .. } => "open it first",
            Self::Closed => "open the log again",
            Self::NotEmpty { .. } => "name a new or an empty directory",
            Self::Inside { .. } => "name a directory outside of it",
            Self::IsBackup { .. } => "make a log of it with `loom restore`, and open that",
            Self::Tampered { .. } => "take another backup",
            Self::Unreadable(_) => "update Loom",
        }
    }

    fn limit(&self) -> Option<&'static str> {
        match self {
            Self::Full { .. } => Some("log_pending_bytes"),
            Self::TooLarge { limit, .. } => Some(limit),
            _ => None,
        }
    }
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotALog { path, why } => write!(f, "{} is no log: {why}", path.display()),
            Self::Newer { path, found, known } => write!(
                f,
                "{} has the format {found}; this engine reads up to {known}",
                path.display()
            ),
            Self::Held { path, pid } => {
                write!(f, "{} is open in ", path.display())?;
                match pid {
                    Some(pid) => write!(f, "process {pid}, or in a child that it forked"),
                    None => write!(f, "another process"),
                }
            }
            Self::Corrupt { path, at, n, why } => {
                write!(f, "{} is damaged at byte {at}", path.display())?;
                n.map_or(Ok(()), |n| write!(f, " (position {n})"))?;
                write!(f, ": {why}")
            }
            Self::NoSpace { path } => write!(f, "no space is left for {}", path.display()),
            Self::Denied { path, what, errno } => {
                let why = io::Error::from_raw_os_error(*errno);
                write!(f, "{what} {} is not allowed: {why}", path.display())
            }
            Self::Descriptors { path } => {
                write!(f, "no file descriptor is left for {}", path.display())
            }
            Self::Io {
                path,
                what,
                message,
                ..
            } => write!(f, "{what} {} failed: {message}", path.display()),
            Self::Full { pending } => write!(f, "{pending} bytes already wait for the disk"),
            Self::TooLarge { bytes, most, .. } => {
                write!(f, "{bytes} bytes at once are over the limit of {most}")
            }
            Self::ReadOnly { path, why } => {
                write!(f, "{} takes no more records: {why}", path.display())
            }
            Self::Expired { n, first } => {
                write!(f, "position {n} is no longer kept; the oldest is {first}")
            }
            Self::Foreign { n, end } => {
                write!(f, "there is no position {n}; the log ends at {end}")
            }
            Self::Unknown { name } => write!(f, "there is no log {name}"),
            Self::Closed => write!(f, "the log is closed"),
            Self::NotEmpty { path } => write!(f, "{} is not empty", path.display()),
            Self::Inside { path, of } => {
                write!(f, "{} lies inside of {}", path.display(), of.display())
            }
            Self::IsBackup { path } => write!(f, "{} is a backup", path.display()),
            Self::Tampered { path, why } => {
                write!(f, "{} is not what was backed up: {why}", path.display())
            }
            Self::Unreadable(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for LogError {}

impl From<&LogError> for Error {
    fn from(error: &LogError) -> Self {
        if let LogError::Unreadable(inner) = error {
            return (**inner).clone();
        }
        let field = match error {
            LogError::Expired { .. } | LogError::Foreign { .. } => "position",
            LogError::TooLarge { .. } => "payload",
            _ => "data",
        };
        Self {
            code: error.code(),
            message: error.to_string(),
            field: Some(field.to_owned()),
            limit: error.limit(),
            hint: Some(error.hint().to_owned()),
            retry_after_ms: error.is_no_space().then_some(1_000),
        }
    }
}

impl From<LogError> for Error {
    fn from(error: LogError) -> Self {
        Self::from(&error)
    }
}

impl From<Error> for LogError {
    fn from(error: Error) -> Self {
        Self::Unreadable(Box::new(error))
    }
}
