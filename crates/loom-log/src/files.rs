//! Files of a real directory: what the machine asks for, done; whole reads and writes; and the one way in which a file is
//! replaced.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{LogError, Result};
use crate::storage::{File as Name, Op};

/// Does what the machine of one partition asks for. Several threads do so at once.
pub trait Storage: Send + Sync {
    /// Does one thing, all of it.
    ///
    /// # Errors
    /// What the operating system says; then it is not known how much of it was done.
    fn perform(&self, op: &Op) -> Result<()>;
}

/// Whether what was written outside the machine's own files can still be trusted: the first sync that failed, if any did.
///
/// The operating system tells a failed sync once. The next one of the same file succeeds although what was to be synced
/// may be lost, so after the first nothing that is synced later proves anything.
#[derive(Debug, Default)]
pub(crate) struct Health {
    lost: Mutex<Option<LogError>>,
}

impl Health {
    fn state(&self) -> MutexGuard<'_, Option<LogError>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs, unless an earlier sync has failed. One at a time: who comes while one fails must not take its own for good.
    ///
    /// # Errors
    /// What the operating system says, now or when the first one failed.
    pub(crate) fn sync(&self, sync: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut lost = self.state();
        if let Some(error) = &*lost {
            return Err(error.clone());
        }
        let done = sync();
        if let Err(error) = &done
            && !matches!(error, LogError::Descriptors { .. })
        {
            // Without a descriptor nothing was begun, and it can be tried again; anything else is told only once.
            *lost = Some(error.clone());
        }
        done
    }

    /// The sync that failed.
    pub(crate) fn lost(&self) -> Option<LogError> {
        self.state().clone()
    }
}

/// The files of one namespace in a real directory.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    open: Mutex<BTreeMap<Name, Arc<File>>>,
}

/// Written at once where zeros are needed.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];
/// Files kept open for writing.
const OPEN_FILES: usize = 8;

impl Files {
    /// Those below this directory.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
            open: Mutex::default(),
        }
    }

    fn path(&self, file: Name) -> PathBuf {
        self.dir.join(file.directory().name()).join(file.name())
    }

    fn opened(&self) -> std::sync::MutexGuard<'_, BTreeMap<Name, Arc<File>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, file: Name) -> Result<Arc<File>> {
        if let Some(open) = self.opened().get(&file) {
            return Ok(Arc::clone(open));
        }
        let path = self.path(file);
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let opened = Arc::new(opened.map_err(|e| LogError::io(&path, "opening", &e))?);
        Ok(self.keep(file, opened))
    }

    fn keep(&self, file: Name, opened: Arc<File>) -> Arc<File> {
        let mut all = self.opened();
        if all.len() >= OPEN_FILES {
            // The oldest segment: nothing is written there any more.
            all.pop_first();
        }
        all.insert(file, Arc::clone(&opened));
        opened
    }

    fn create(&self, file: Name, bytes: u64) -> Result<()> {
        let path = self.path(file);
        self.opened().remove(&file);
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|e| LogError::io(&path, "making", &e))?;
        let filled = zero(&made, &path, 0, bytes).and_then(|()| {
            let synced = made.sync_all();
            synced.map_err(|e| LogError::io(&path, "syncing", &e))
        });
        if filled.is_err() {
            // Half a file is of no use, and its space may be what is missing.
            let _ = fs::remove_file(&path);
            return filled;
        }
        self.keep(file, Arc::new(made));
        Ok(())
    }

    fn rename(&self, from: Name, to: Name) -> Result<()> {
        let (old, new) = (self.path(from), self.path(to));
        fs::rename(&old, &new).map_err(|e| LogError::io(&new, "renaming", &e))?;
        let moved = self.opened().remove(&from);
        if let Some(moved) = moved {
            self.keep(to, moved);
        }
        Ok(())
    }

    fn remove(&self, file: Name) -> Result<()> {
        self.opened().remove(&file);
        remove_if_there(&self.path(file))
    }
}

impl Storage for Files {
    fn perform(&self, op: &Op) -> Result<()> {
        match op {
            Op::Create { file, bytes } => self.create(*file, *bytes),
            Op::Write { bytes, .. } if bytes.is_empty() => Ok(()),
            Op::Write { file, at, bytes } => {
                let written = self.handle(*file)?.write_all_at(bytes, *at);
                written.map_err(|e| LogError::io(&self.path(*file), "writing", &e))
            }
            Op::Zero { file, from, to } => {
                zero(&*self.handle(*file)?, &self.path(*file), *from, *to)
            }
            Op::Sync { file } => {
                let synced = self.handle(*file)?.sync_data();
                synced.map_err(|e| LogError::io(&self.path(*file), "syncing", &e))
            }
            Op::Rename { from, to } => self.rename(*from, *to),
            Op::Remove { file } => self.remove(*file),
            Op::SyncDirectory { directory } => sync_dir(&self.dir.join(directory.name())),
        }
    }
}

fn zero(file: &File, path: &Path, from: u64, to: u64) -> Result<()> {
    let mut at = from;
    while at < to {
        let left = usize::try_from(to - at).unwrap_or(usize::MAX);
        let zeros = ZEROS.get(..left).unwrap_or(&ZEROS);
        let written = file.write_all_at(zeros, at);
        written.map_err(|e| LogError::io(path, "writing", &e))?;
        at += zeros.len() as u64;
    }
    Ok(())
}

/// Removes a file if there is one.
///
/// # Errors
/// What the operating system says.
pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(LogError::io(path, "removing", &error))
        }
        _ => Ok(()),
    }
}

/// Waits until what was made, renamed or removed in a directory is durable.
///
/// # Errors
/// What the operating system says.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| LogError::io(dir, "syncing", &e))
}

/// Makes a directory and those above it, and waits until their names are durable: all the way up to where the file system
/// begins, for one that is there may have been made by a process that was killed before it could wait.
///
/// # Errors
/// What the operating system says.
pub(crate) fn make_dirs(dir: &Path) -> Result<()> {
    let failed = |e| LogError::io(dir, "making", &e);
    fs::create_dir_all(dir).map_err(failed)?;
    let whole = fs::canonicalize(dir).map_err(failed)?;
    let device = fs::metadata(&whole).map_err(failed)?.dev();
    for above in whole.ancestors().skip(1) {
        let meta = fs::metadata(above).map_err(|e| LogError::io(above, "looking at", &e))?;
        if meta.dev() != device {
            break;
        }
        match sync_dir(above) {
            // Who may not look into it has made nothing there.
            Err(LogError::Denied { .. }) => break,
            synced => synced?,
        }
    }
    Ok(())
}

/// Puts a file in place and waits until its name is durable: the old one or the new one is there, whatever happens in
/// between.
///
/// # Errors
/// What the operating system says; then either may be there.
pub(crate) fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    put_whole(dir, name, bytes)?;
    sync_dir(dir)
}

/// The same, but for the name.
///
/// # Errors
/// What the operating system says; then the old one is there.
pub(crate) fn put_whole(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let new = dir.join(format!("{name}.new"));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&new)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, dir.join(name)));
    if let Err(error) = written {
        // What could not be finished is of no use; the next one overwrites it if it stays.
        let _ = fs::remove_file(&new);
        return Err(LogError::io(&new, "writing", &error));
    }
    Ok(())
}

/// Appends up to `len` bytes of a file to `out`: fewer only where the file ends.
///
/// # Errors
/// What the operating system says.
pub(crate) fn read_some(
    file: &File,
    path: &Path,
    at: u64,
    len: usize,
    out: &mut Vec<u8>,
) -> Result<()> {
    let from = out.len();
    out.resize(from + len, 0);
    let mut done = 0;
    while let Some(rest) = out.get_mut(from + done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                out.truncate(from);
                return Err(LogError::io(path, "reading", &error));
            }
        }
    }
    out.truncate(from + done);
    Ok(())
}
