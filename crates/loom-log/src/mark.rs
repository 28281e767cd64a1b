//! How far a partition is durable, for readers in other processes: a file that is written after each sync and never
//! ahead of one, so it may be late and is never wrong.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{LogError, Result};
use crate::files::read_some;

const NAME: &str = "mark";
const BYTES: usize = 12;
/// A reader that meets a write tries again.
const TRIES: usize = 16;

/// The file, for the one who writes it.
#[derive(Debug)]
pub(crate) struct MarkFile {
    file: File,
    shown: u64,
}

impl MarkFile {
    /// Opens or makes it.
    ///
    /// # Errors
    /// What the operating system says.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| LogError::io(&path, "opening", &e))?;
        Ok(Self { file, shown: 0 })
    }

    /// Says that everything before this position is durable.
    pub(crate) fn show(&mut self, synced: u64) {
        if synced <= self.shown {
            return;
        }
        let n = synced.to_le_bytes();
        let crc = crc32c::crc32c(&n).to_le_bytes();
        let mut bytes = [0; BYTES];
        for (to, from) in bytes.iter_mut().zip(n.into_iter().chain(crc)) {
            *to = from;
        }
        // A reader that finds no mark, or an old one, sees less for a while: nothing to tell anybody about.
        if self.file.write_all_at(&bytes, 0).is_ok() {
            self.shown = synced;
        }
    }
}

/// Before which position everything is durable; 0 when nobody said so.
///
/// # Errors
/// What the operating system says.
pub(crate) fn read(dir: &Path) -> Result<u64> {
    let path = dir.join(NAME);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(LogError::io(&path, "opening", &error)),
    };
    for _ in 0..TRIES {
        let mut bytes = Vec::with_capacity(BYTES);
        read_some(&file, &path, 0, BYTES, &mut bytes)?;
        let Some((n, crc)) = bytes.split_first_chunk::<8>() else {
            return Ok(0);
        };
        if crc == crc32c::crc32c(n).to_le_bytes() {
            return Ok(u64::from_le_bytes(*n));
        }
    }
    Ok(0)
}
