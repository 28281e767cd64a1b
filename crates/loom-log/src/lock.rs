//! The data directory: whether it is one, which format it has, and who may write to it.
//!
//! A directory that is no log is never touched. One engine at a time holds `LOCK` and the directory itself, so that a
//! second one is kept out also where somebody took `LOCK` for a leftover and deleted it; the kernel lets go of both when
//! the process ends, however it ends. Readers need none.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::backup::MANIFEST;
use crate::error::{LogError, Result};
use crate::files::{make_dirs, sync_dir, write_whole};

/// The newest format that this engine reads and writes.
pub const FORMAT: u32 = 1;

const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "LOCK";
const MAGIC: &str = "loom log";
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(5);

/// Holds the data directory until it is dropped by the process that took it.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    dir: File,
    /// A child that was forked has the same open file, and its end must not let go of what the parent holds.
    pid: u32,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            // Closing would not do: a forked child may keep the file open. If it fails, closing is what is left.
            let _ = flock(&self.file, FlockOperation::Unlock);
            let _ = flock(&self.dir, FlockOperation::Unlock);
        }
    }
}

/// Who holds a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process, if it said so.
    pub pid: Option<u32>,
    /// The start of the machine that the process belongs to.
    pub boot: String,
}

impl Lock {
    /// Makes the directory if there is none, and takes it.
    ///
    /// # Errors
    /// [`LogError::NotALog`] for a file or a foreign directory, [`LogError::IsBackup`], [`LogError::Newer`],
    /// [`LogError::Held`], and what the operating system refuses.
    pub(crate) fn take(dir: &Path) -> Result<Self> {
        let fresh = is_fresh(dir)?;
        if fresh {
            make_dirs(dir)?;
        } else {
            check_format(dir)?;
            if dir.join(MANIFEST).exists() {
                let path = dir.to_path_buf();
                return Err(LogError::IsBackup { path });
            }
        }
        let path = dir.join(LOCK_FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| LogError::io(&path, "opening", &e))?;
        let whole = File::open(dir).map_err(|e| LogError::io(dir, "opening", &e))?;
        // Not every file system has locks of directories: there the file has to do.
        if try_lock(&file).is_err() || try_lock(&whole) == Err(Errno::WOULDBLOCK) {
            let pid = read_holder(&mut file).and_then(|holder| holder.pid);
            let path = dir.to_path_buf();
            return Err(LogError::Held { path, pid });
        }
        let who = format!("{} {}\n", boot_id(), std::process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(who.as_bytes()))
            .map_err(|e| LogError::io(&path, "writing", &e))?;
        if fresh {
            write_format(dir)?;
        } else {
            // Who wrote it may have been killed before its name was durable.
            sync_dir(dir)?;
        }
        Ok(Self {
            file,
            dir: whole,
            pid: std::process::id(),
        })
    }
}

/// Says in the directory of which format it is.
pub(crate) fn write_format(dir: &Path) -> Result<()> {
    write_whole(dir, FORMAT_FILE, format!("{MAGIC} {FORMAT}\n").as_bytes())
}

/// Who holds the directory now; `None`: nobody.
///
/// # Errors
/// [`LogError::NotALog`], [`LogError::Newer`], and what the operating system refuses.
pub fn holder(dir: &Path) -> Result<Option<Holder>> {
    check_format(dir)?;
    let path = dir.join(LOCK_FILE);
    let mut file = match File::open(&path) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(LogError::io(&path, "opening", &error)),
    };
    let whole = File::open(dir).map_err(|e| LogError::io(dir, "opening", &e))?;
    // A shared lock fails while an engine holds it, and is given back at once when none does.
    let of_dir = flock(&whole, FlockOperation::NonBlockingLockShared);
    let of_file = file.as_ref().map_or(Ok(()), |file| {
        flock(file, FlockOperation::NonBlockingLockShared)
    });
    if of_file.is_ok() && of_dir != Err(Errno::WOULDBLOCK) {
        return Ok(None);
    }
    Ok(Some(file.as_mut().and_then(read_holder).unwrap_or(
        Holder {
            pid: None,
            boot: String::new(),
        },
    )))
}

/// Checks that the directory is that of a log, and of a format that this engine knows.
///
/// # Errors
/// [`LogError::NotALog`], [`LogError::Newer`], and what the operating system refuses.
pub(crate) fn check_format(dir: &Path) -> Result<()> {
    let foreign = |why| {
        let path = dir.to_path_buf();
        Err(LogError::NotALog { path, why })
    };
    let path = dir.join(FORMAT_FILE);
    let mut text = String::new();
    let read = File::open(&path).and_then(|file| file.take(64).read_to_string(&mut text));
    match read {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound && dir.exists() => {
            return foreign("the file \"format\" is missing");
        }
        Err(e) if e.kind() == ErrorKind::NotFound => return foreign("there is nothing"),
        Err(e) if e.kind() == ErrorKind::NotADirectory => return foreign("it is a file"),
        Err(e) if e.kind() == ErrorKind::InvalidData => {
            return foreign("its file \"format\" is of something else");
        }
        Err(e) => return Err(LogError::io(&path, "reading", &e)),
    }
    let Some(version) = text.strip_prefix(MAGIC).and_then(|v| v.trim().parse().ok()) else {
        return foreign("its file \"format\" is of something else");
    };
    if version > FORMAT {
        return Err(LogError::Newer {
            path: dir.to_path_buf(),
            found: version,
            known: FORMAT,
        });
    }
    Ok(())
}

/// A reader that looks who holds the directory has it for a moment, so one refusal is not enough.
fn try_lock(file: &File) -> std::result::Result<(), Errno> {
    let mut said = Ok(());
    for _ in 0..TRIES {
        said = flock(file, FlockOperation::NonBlockingLockExclusive);
        if said != Err(Errno::WOULDBLOCK) {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    said
}

/// Whether a log may be made here: nothing is there, or what a start that was cut short has left.
fn is_fresh(dir: &Path) -> Result<bool> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            return Err(LogError::NotALog {
                path: dir.to_path_buf(),
                why: "it is a file",
            });
        }
        Err(error) => return Err(LogError::io(dir, "reading", &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| LogError::io(dir, "reading", &e))?;
        let name = entry.file_name();
        let own = [LOCK_FILE, "format.new"].iter().any(|own| name == *own);
        if !own {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read_holder(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(128).read_to_string(&mut text).ok()?;
    let (boot, pid) = text.trim().split_once(' ')?;
    let same = boot == boot_id();
    Some(Holder {
        pid: same.then(|| pid.parse().ok()).flatten(),
        boot: boot.to_owned(),
    })
}

/// Names the start of the machine: a process number means something only within it.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "-".to_owned(), |id| id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    // requirement: LOG-ONE-ENGINE
    #[test]
    fn a_forked_child_keeps_no_directory_that_its_parent_closed() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::take(dir.path()).unwrap();
        // What a fork leaves in the child: a second descriptor of the same open file.
        let of_child = (
            held.file.try_clone().unwrap(),
            held.dir.try_clone().unwrap(),
        );
        drop(held);
        assert_eq!(holder(dir.path()).unwrap(), None);
        let again = Lock::take(dir.path()).unwrap();
        drop(of_child);
        assert!(holder(dir.path()).unwrap().is_some());
        drop(again);
    }

    // requirement: LOG-ONE-ENGINE
    #[test]
    fn a_second_engine_is_kept_out_also_when_the_file_of_the_lock_was_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::take(dir.path()).unwrap();
        fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();
        assert!(holder(dir.path()).unwrap().is_some());
        let error = Lock::take(dir.path()).unwrap_err();
        assert!(matches!(error, LogError::Held { .. }), "{error}");
        drop(held);
        assert_eq!(holder(dir.path()).unwrap(), None);
        Lock::take(dir.path()).unwrap();
    }

    // requirement: LOG-ONE-ENGINE
    #[test]
    fn a_forked_child_that_ends_does_not_let_go_of_what_its_parent_holds() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::take(dir.path()).unwrap();
        let of_child = Lock {
            file: held.file.try_clone().unwrap(),
            dir: held.dir.try_clone().unwrap(),
            pid: held.pid + 1,
        };
        drop(of_child);
        let error = Lock::take(dir.path()).unwrap_err();
        assert!(error.to_string().contains("child"), "{error}");
        drop(held);
        assert_eq!(holder(dir.path()).unwrap(), None);
    }
}
