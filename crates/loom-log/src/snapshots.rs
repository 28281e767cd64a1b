//! Snapshots of what the log folds to: written whole or not at all, checked when read, the two newest kept.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use loom_core::Position;

use crate::error::{LogError, Result};
use crate::files::{Health, put_whole, sync_dir};

const MAGIC: &[u8; 8] = b"loomsnap";
const VERSION: u32 = 1;
/// Magic, version, partition, epoch, position, length, crc32c of all these and of the bytes.
const HEADER: usize = 8 + 4 + 4 + 4 + 8 + 8 + 4;
/// How many are kept: one may turn out to be damaged.
pub(crate) const KEPT: usize = 2;

/// A snapshot that was read and is sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The last record that is folded into it.
    pub at: Position,
    /// What the core wrote.
    pub bytes: Vec<u8>,
}

/// Writes one, checks it by reading it back, and lets the oldest go.
///
/// # Errors
/// What the operating system says; then those before it are untouched, and it is not there.
pub(crate) fn write(dir: &Path, at: Position, bytes: &[u8], health: &Health) -> Result<()> {
    let name = format!("{:016x}.snap", at.n);
    put_whole(dir, &name, &encode(at, bytes))?;
    let path = dir.join(name);
    if let Err(error) = health.sync(|| sync_dir(dir)) {
        // A power cut may take its name back, so nothing may be deleted for it. If it stays, nobody deletes any more: the
        // sync that failed was the last one that the partition counts on.
        let _ = fs::remove_file(&path);
        return Err(error);
    }
    let written = read(&path)?;
    if written.at != at || written.bytes != bytes {
        return Err(damaged(&path, "it is not what was written"));
    }
    trim(dir)
}

/// The newest sound one, with the files of newer ones that are not.
///
/// # Errors
/// What the operating system says; a damaged one is passed over.
pub(crate) fn newest(dir: &Path) -> Result<(Option<Snapshot>, Vec<LogError>)> {
    let mut bad = Vec::new();
    for (_, path) in list(dir)?.into_iter().rev() {
        match read(&path) {
            Ok(snapshot) => return Ok((Some(snapshot), bad)),
            Err(error @ LogError::Corrupt { .. }) => bad.push(error),
            Err(error) => return Err(error),
        }
    }
    Ok((None, bad))
}

/// The position of every sound one, oldest first.
///
/// # Errors
/// What the operating system says.
pub(crate) fn sound(dir: &Path) -> Result<Vec<Position>> {
    let mut found = Vec::new();
    for (_, path) in list(dir)? {
        match read(&path) {
            Ok(snapshot) => found.push(snapshot.at),
            Err(LogError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The files, oldest first.
///
/// # Errors
/// What the operating system says.
pub(crate) fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(LogError::io(dir, "reading", &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| LogError::io(dir, "reading", &e))?;
        let name = entry.file_name();
        let hex = name.to_str().and_then(|name| name.strip_suffix(".snap"));
        if let Some(n) = hex.and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
            found.push((n, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Reads one.
///
/// # Errors
/// [`LogError::Corrupt`], [`LogError::Newer`], and what the operating system says.
pub(crate) fn read(path: &Path) -> Result<Snapshot> {
    let bytes = fs::read(path).map_err(|e| LogError::io(path, "reading", &e))?;
    decode(path, &bytes)
}

fn encode(at: Position, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + bytes.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&at.partition.to_le_bytes());
    out.extend_from_slice(&at.epoch.to_le_bytes());
    out.extend_from_slice(&at.n.to_le_bytes());
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out), bytes);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(bytes);
    out
}

fn decode(path: &Path, file: &[u8]) -> Result<Snapshot> {
    let Some((header, bytes)) = file.split_at_checked(HEADER) else {
        return Err(damaged(path, "it is too short"));
    };
    let fields = || {
        let (magic, rest) = header.split_first_chunk::<8>()?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (partition, rest) = rest.split_first_chunk::<4>()?;
        let (epoch, rest) = rest.split_first_chunk::<4>()?;
        let (n, rest) = rest.split_first_chunk::<8>()?;
        let (length, crc) = rest.split_first_chunk::<8>()?;
        let at = Position {
            partition: u32::from_le_bytes(*partition),
            epoch: u32::from_le_bytes(*epoch),
            n: u64::from_le_bytes(*n),
        };
        let length = u64::from_le_bytes(*length);
        let crc = u32::from_le_bytes(*crc.first_chunk()?);
        Some((*magic, u32::from_le_bytes(*version), at, length, crc))
    };
    let Some((magic, version, at, length, crc)) = fields() else {
        return Err(damaged(path, "it is too short"));
    };
    if magic != *MAGIC {
        return Err(damaged(path, "it is no snapshot"));
    }
    let covered = header.get(..HEADER - 4).unwrap_or_default();
    if length != bytes.len() as u64 || crc32c::crc32c_append(crc32c::crc32c(covered), bytes) != crc
    {
        return Err(damaged(path, "its checksum does not fit"));
    }
    if version > VERSION {
        return Err(LogError::Newer {
            path: path.to_path_buf(),
            found: version,
            known: VERSION,
        });
    }
    Ok(Snapshot {
        at,
        bytes: bytes.to_vec(),
    })
}

fn trim(dir: &Path) -> Result<()> {
    let mut sound_ones = 0;
    for (_, path) in list(dir)?.into_iter().rev() {
        if sound_ones < KEPT {
            // One that is damaged counts for nothing, and stays as evidence until two sound ones are newer.
            sound_ones += usize::from(read(&path).is_ok());
            continue;
        }
        fs::remove_file(&path).map_err(|e| LogError::io(&path, "removing", &e))?;
    }
    // Nobody needs it to be gone for good: one that comes back is as sound as it was.
    Ok(())
}

fn damaged(path: &Path, why: &str) -> LogError {
    LogError::Corrupt {
        path: path.to_path_buf(),
        at: 0,
        n: None,
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u64) -> Position {
        Position {
            partition: 1,
            epoch: 1,
            n,
        }
    }

    // requirement: SNAP-NAMED
    #[test]
    fn a_snapshot_whose_name_could_not_be_synced_is_not_there_for_anybody_to_count_on() {
        let dir = tempfile::tempdir().unwrap();
        let health = Health::default();
        write(dir.path(), at(10), b"one", &health).unwrap();
        write(dir.path(), at(20), b"two", &health).unwrap();
        let failed = std::io::Error::from_raw_os_error(5);
        let failed = LogError::io(dir.path(), "syncing", &failed);
        health.sync(|| Err(failed.clone())).unwrap_err();
        assert_eq!(write(dir.path(), at(30), b"three", &health), Err(failed));
        assert_eq!(sound(dir.path()).unwrap(), [at(10), at(20)]);
        assert_eq!(newest(dir.path()).unwrap().0.unwrap().bytes, b"two");
    }
}
