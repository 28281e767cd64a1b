//! Files of a real directory: whole reads and writes, and the one way in which a file is replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{LogError, Result};

/// Waits until what was made, renamed or removed in a directory is durable.
///
/// # Errors
/// What the operating system says.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| LogError::io(dir, "syncing", &e))
}

/// Puts a file in place: the old one or the new one is there, whatever happens in between.
///
/// # Errors
/// What the operating system says.
pub fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
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
    sync_dir(dir)
}

/// Appends up to `len` bytes of a file to `out`: fewer only where the file ends.
///
/// # Errors
/// What the operating system says.
pub fn read_some(file: &File, path: &Path, at: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
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
