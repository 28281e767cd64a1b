//! The view: a `SQLite` file derived from the log, for whoever wants to look into it.
//!
//! It is never relied on: it may be deleted at any time, and is built anew when its format is another one or when the
//! log is not the one it was built from. Whoever asks brings it up to date, in portions of bounded size; an operating
//! engine knows nothing of it. It holds events, calls, effects, turns and sums, and no body larger than a limit.

mod errors;
mod follow;
mod rows;
mod schema;
mod source;
mod totals;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use loom_core::{Code, Error, Position, Record};
use rusqlite::{Connection, ErrorCode, TransactionBehavior, params};

pub use crate::follow::{Follower, Portion, Source};
use crate::rows::{Hears, Rows, load_consumers};
pub use crate::source::LogSource;
use crate::totals::Totals;

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;

/// How long one who asks waits for another one that is writing.
const BUSY: Duration = Duration::from_secs(10);
const PAGE_CACHE: &str = "-16384"; // KiB

/// How far the view has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The last record that it holds.
    pub last: Position,
    /// Where in the log to go on.
    pub next: u64,
    /// Tells that record from another one that stands at its position.
    pub mark: [u8; 32],
}

/// The file, open for writing.
#[derive(Debug)]
pub struct View {
    path: PathBuf,
    db: Connection,
    reached: Option<Reached>,
    consumers: BTreeMap<u32, Hears>,
}

impl View {
    /// Opens the file, and makes it where there is none. One of another format, and one that is damaged, is emptied.
    ///
    /// # Errors
    /// `DENIED` where the file cannot be made, `CONFLICT` while another process holds it, `EXHAUSTED` for a full disk.
    pub fn open(path: &Path) -> Result<Self> {
        match Self::try_open(path) {
            Err(error) if is_damaged(&error) => {
                remove(path)?;
                Self::try_open(path)
            }
            other => other,
        }
        .map_err(|error| told(path, &error))
    }

    fn try_open(path: &Path) -> rusqlite::Result<Self> {
        let db = Connection::open(path)?;
        db.busy_timeout(BUSY)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.pragma_update(None, "cache_size", PAGE_CACHE)?;
        db.set_prepared_statement_cache_capacity(64);
        let mut view = Self {
            path: path.to_path_buf(),
            db,
            reached: None,
            consumers: BTreeMap::new(),
        };
        let format: u32 = view
            .db
            .pragma_query_value(None, "user_version", |row| row.get(0))?;
        if format == schema::FORMAT {
            view.load()?;
        }
        Ok(view)
    }

    /// How far it has come; none: it is empty.
    pub fn reached(&self) -> Option<Reached> {
        self.reached
    }

    /// Forgets everything, so that it is built anew.
    ///
    /// # Errors
    /// As [`View::open`].
    pub fn clear(&mut self) -> Result<()> {
        let mut clear = || {
            let write = self
                .db
                .transaction_with_behavior(TransactionBehavior::Immediate)?;
            drop_all(&write)?;
            write.commit()
        };
        clear().map_err(|error| told(&self.path, &error))?;
        self.reached = None;
        self.consumers.clear();
        Ok(())
    }

    /// Takes over what follows in the log, all of it or nothing. `next` is where to go on after it.
    ///
    /// Returns false, and takes over nothing, where another process has been here in the meantime: ask [`View::reached`].
    ///
    /// # Errors
    /// As [`View::open`].
    pub fn add(&mut self, records: &[(Position, Record)], next: u64) -> Result<bool> {
        let Some((last, record)) = records.last() else {
            return Ok(true);
        };
        let reached = Reached {
            last: *last,
            next,
            mark: mark(record),
        };
        self.try_add(records, reached)
            .map_err(|error| told(&self.path, &error))
    }

    fn try_add(
        &mut self,
        records: &[(Position, Record)],
        reached: Reached,
    ) -> rusqlite::Result<bool> {
        let write = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        if read_reached(&write)? != self.reached {
            drop(write);
            self.load()?;
            return Ok(false);
        }
        if self.reached.is_none() {
            drop_all(&write)?;
            make_tables(&write, reached.last.partition)?;
        }
        let done = write_rows(&write, &mut self.consumers, records, reached);
        if let Err(error) = done.and_then(|()| write.commit()) {
            // What was not taken over must not be remembered either.
            self.consumers = match self.reached {
                Some(_) => load_consumers(&self.db)?,
                None => BTreeMap::new(),
            };
            return Err(error);
        }
        self.reached = Some(reached);
        Ok(true)
    }

    /// Forgets what stands before a position: the log has it no more.
    ///
    /// # Errors
    /// As [`View::open`].
    pub fn forget_before(&mut self, first: u64) -> Result<()> {
        let mut forget = || {
            let write = self
                .db
                .transaction_with_behavior(TransactionBehavior::Immediate)?;
            for (table, place) in schema::PLACES {
                let sql = format!("DELETE FROM {table} WHERE {place} < ?1");
                write.execute(&sql, params![first])?;
            }
            write.commit()
        };
        forget().map_err(|error| told(&self.path, &error))
    }

    fn load(&mut self) -> rusqlite::Result<()> {
        self.reached = read_reached(&self.db)?;
        self.consumers = match self.reached {
            Some(_) => load_consumers(&self.db)?,
            None => BTreeMap::new(),
        };
        Ok(())
    }
}

fn write_rows(
    db: &Connection,
    consumers: &mut BTreeMap<u32, Hears>,
    records: &[(Position, Record)],
    reached: Reached,
) -> rusqlite::Result<()> {
    let mut totals = Totals::default();
    let mut rows = Rows {
        db,
        totals: &mut totals,
        consumers,
    };
    for (at, record) in records {
        rows.add(*at, record)?;
    }
    rows.meta("partition", &reached.last.partition)?;
    rows.meta("epoch", &reached.last.epoch)?;
    rows.meta("n", &reached.last.n)?;
    rows.meta("next", &reached.next)?;
    rows.meta("mark", &reached.mark.as_slice())?;
    totals.flush(db)
}

/// Tells a record from another one.
pub fn mark(record: &Record) -> [u8; 32] {
    let mut head = vec![record.kind()];
    record.encode_head(&mut head);
    let mut hash = blake3::Hasher::new();
    hash.update(&head).update(record.body());
    *hash.finalize().as_bytes()
}

fn drop_all(db: &Connection) -> rusqlite::Result<()> {
    let names: Vec<(String, String)> = db
        .prepare("SELECT type, name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY type DESC")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (kind, name) in names {
        db.execute_batch(&format!("DROP {kind} \"{name}\""))?;
    }
    db.pragma_update(None, "user_version", 0)
}

fn make_tables(db: &Connection, partition: u32) -> rusqlite::Result<()> {
    let position = Position {
        partition,
        epoch: 0,
        n: 0,
    };
    let text = position.to_string();
    let begin = text.split('-').next().unwrap_or_default();
    db.execute_batch(&schema::TABLES.replace("{partition}", begin))?;
    db.pragma_update(None, "user_version", schema::FORMAT)
}

fn read_reached(db: &Connection) -> rusqlite::Result<Option<Reached>> {
    let format: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if format != schema::FORMAT {
        return Ok(None);
    }
    let mut get = db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    if !get.exists(["mark"])? {
        return Ok(None);
    }
    let last = Position {
        partition: get.query_row(["partition"], |row| row.get(0))?,
        epoch: get.query_row(["epoch"], |row| row.get(0))?,
        n: get.query_row(["n"], |row| row.get(0))?,
    };
    Ok(Some(Reached {
        last,
        next: get.query_row(["next"], |row| row.get(0))?,
        mark: get.query_row(["mark"], |row| row.get(0))?,
    }))
}

/// Takes the file away, with what `SQLite` keeps beside it.
fn remove(path: &Path) -> Result<()> {
    for end in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        match fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(refusal(Code::Denied, path, &error.to_string()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_damaged(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
    ) || matches!(
        error,
        // A format of ours with other columns than ours was written by somebody else.
        rusqlite::Error::QueryReturnedNoRows | rusqlite::Error::InvalidColumnType(..)
    )
}

fn refusal(code: Code, path: &Path, why: &str) -> Error {
    Error {
        code,
        message: format!("the view {} cannot be written: {why}", path.display()),
        field: Some("data".to_owned()),
        limit: None,
        hint: None,
        retry_after_ms: None,
    }
}

fn told(path: &Path, error: &rusqlite::Error) -> Error {
    let (code, hint) = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (Code::Conflict, "another process is building it: try again")
        }
        Some(ErrorCode::DiskFull) => (Code::Exhausted, "free some space on that disk"),
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::AuthorizationForStatementDenied,
        ) => (Code::Denied, "give a directory that can be written"),
        _ => (Code::Internal, "delete the file: it is built anew"),
    };
    Error {
        hint: Some(hint.to_owned()),
        ..refusal(code, path, &error.to_string())
    }
}
