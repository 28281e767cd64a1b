//! A copy of a log that can be checked, and a log made of one.
//!
//! A backup is a directory: the files of the log as far as it was durable, and a `MANIFEST` that names each with its size
//! and its blake3 hash. Nothing in it is packed, so nothing can unpack to more than it is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write as _};
use std::path::{Path, PathBuf};

use loom_core::spec::limits as spec;

use crate::error::{LogError, Result};
use crate::files::{make_dirs, sync_dir, write_whole};
use crate::lock::{FORMAT, check_format, write_format};
use crate::reader::{Reader, Verified};
use crate::storage::File as Name;
use crate::walk::{Limit, Places, Walk, segments};

/// What makes a directory a backup.
pub(crate) const MANIFEST: &str = "MANIFEST";
const FIRST_LINE: &str = "loom backup 1";
/// A line of the manifest is not longer, about.
const LINE: u64 = 512;
/// Copied at once.
const CHUNK: usize = 256 << 10;

/// What a backup or a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What is in it, each namespace up to the position behind its last record.
    pub namespaces: Vec<Verified>,
    /// Its files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One file of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    bytes: u64,
    hash: blake3::Hash,
}

/// Copies a log that may be in use, checks the copy, and says what is in it.
///
/// # Errors
/// [`LogError::NotEmpty`] when there is something at `to`, [`LogError::Inside`] when it lies in the log,
/// [`LogError::Corrupt`] when that is damaged, and what the operating system says. Then nothing is left at `to`.
pub fn write(from: &Path, to: &Path, now_ms: u64) -> Result<Report> {
    check_format(from)?;
    check_outside(from, to)?;
    let partial = beside(to)?;
    let copied = copy_all(from, &partial, now_ms).and_then(|()| verify(&partial));
    finish(&partial, to, copied)
}

/// Reads a backup whole: the manifest, every file, every record.
///
/// # Errors
/// [`LogError::Tampered`] when a file is missing, too many, or not as it was written.
pub fn verify(dir: &Path) -> Result<Report> {
    let entries = read_manifest(dir)?;
    check_files(dir, &entries)?;
    for (path, entry) in &entries {
        let file = dir.join(path);
        let (bytes, hash) = copy(&file, None, u64::MAX)?;
        if (bytes, hash) != (entry.bytes, entry.hash) {
            return Err(tampered(&file, "its content is not what the manifest says"));
        }
    }
    Ok(Report {
        namespaces: Reader::open(dir)?.verify()?,
        files: entries.len() as u64,
        bytes: entries.values().map(|entry| entry.bytes).sum(),
    })
}

/// Makes a log of a backup.
///
/// # Errors
/// [`LogError::NotEmpty`] when there is something at `to`, [`LogError::Inside`] when it lies in the backup,
/// [`LogError::Tampered`] when that is not as it was written, [`LogError::NoSpace`] when it does not fit. Then nothing is left at `to`.
pub fn restore(from: &Path, to: &Path) -> Result<Report> {
    let entries = read_manifest(from)?;
    check_files(from, &entries)?;
    check_outside(from, to)?;
    let partial = beside(to)?;
    let restored = restore_all(from, &partial, &entries);
    finish(&partial, to, restored)
}

fn restore_all(from: &Path, to: &Path, entries: &BTreeMap<String, Entry>) -> Result<Report> {
    let bytes: u64 = entries.values().map(|entry| entry.bytes).sum();
    let room = rustix::fs::statvfs(to).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    if room.is_ok_and(|room| room < bytes) {
        return Err(LogError::NoSpace {
            path: to.to_path_buf(),
        });
    }
    for (path, entry) in entries {
        let (source, target) = (from.join(path), to.join(path));
        make_parent(&target)?;
        let copied = copy(&source, Some(&target), entry.bytes)?;
        if copied != (entry.bytes, entry.hash) {
            return Err(tampered(
                &source,
                "its content is not what the manifest says",
            ));
        }
    }
    Ok(Report {
        namespaces: Reader::open(to)?.verify()?,
        files: entries.len() as u64,
        bytes,
    })
}

/// A backup with a log in it is no longer what was backed up, and a log with a backup in it is copied with that.
fn check_outside(from: &Path, to: &Path) -> Result<()> {
    let whole = |path: &Path| fs::canonicalize(path).ok();
    // What is not there yet has no links in it: the nearest directory above that is there says where it will be.
    let above = to.ancestors().skip(1).find_map(|up| {
        whole(if up.as_os_str().is_empty() {
            Path::new(".")
        } else {
            up
        })
    });
    match (above, whole(from)) {
        (Some(above), Some(of)) if above.starts_with(&of) => Err(LogError::Inside {
            path: to.to_path_buf(),
            of: from.to_path_buf(),
        }),
        _ => Ok(()),
    }
}

/// The directory that is filled before it gets its name.
fn beside(to: &Path) -> Result<PathBuf> {
    match fs::read_dir(to).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Ok(false) => {
            let path = to.to_path_buf();
            return Err(LogError::NotEmpty { path });
        }
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            let path = to.to_path_buf();
            return Err(LogError::NotEmpty { path });
        }
        Err(error) => return Err(LogError::io(to, "reading", &error)),
    }
    let Some(name) = to.file_name() else {
        return Err(LogError::NotEmpty {
            path: to.to_path_buf(),
        });
    };
    let mut partial = name.to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = to.with_file_name(partial);
    // A process of this number may have been cut short there, before the last start of the machine.
    match fs::remove_dir_all(&partial) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(LogError::io(&partial, "removing", &error));
        }
        _ => {}
    }
    make_dirs(&partial)?;
    Ok(partial)
}

/// Gives the directory its name if all went well, else removes it.
fn finish(partial: &Path, to: &Path, report: Result<Report>) -> Result<Report> {
    let named = report.and_then(|report| {
        sync_tree(partial)?;
        fs::rename(partial, to).map_err(|e| LogError::io(to, "naming", &e))?;
        Ok(report)
    });
    // What is left of it after a failure bears a name of its own and hurts nobody.
    let Ok(report) = named else {
        let _ = fs::remove_dir_all(partial);
        return named;
    };
    let above = to.parent().filter(|p| !p.as_os_str().is_empty());
    let above = above.unwrap_or(Path::new("."));
    let Err(error) = sync_dir(above) else {
        return Ok(report);
    };
    // Nothing in it is removed before a power cut can no more bring it back under the name of a whole one.
    if fs::rename(to, partial).is_ok() && sync_dir(above).is_ok() {
        let _ = fs::remove_dir_all(partial);
    }
    Err(error)
}

fn sync_tree(dir: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(|e| LogError::io(dir, "reading", &e))?;
    for entry in entries {
        let path = entry.map_err(|e| LogError::io(dir, "reading", &e))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        }
    }
    sync_dir(dir)
}

fn copy_all(from: &Path, to: &Path, now_ms: u64) -> Result<()> {
    let reader = Reader::open(from)?;
    let mut text = format!("{FIRST_LINE}\nat {now_ms}\n");
    write_format(to)?;
    let (bytes, hash) = copy(&to.join("format"), None, u64::MAX)?;
    let _ = writeln!(text, "file {bytes} {hash} format");
    for name in reader.namespaces() {
        let (_, end) = reader.bounds(&name)?;
        let _ = writeln!(text, "end {end} {name}");
        for (path, most) in files_of(from, &name, end)? {
            let target = to.join(&path);
            make_parent(&target)?;
            let (bytes, hash) = copy(&from.join(&path), Some(&target), most)?;
            let _ = writeln!(text, "file {bytes} {hash} {path}");
        }
    }
    let seal = blake3::hash(text.as_bytes());
    let _ = writeln!(text, "seal {seal}");
    write_whole(to, MANIFEST, text.as_bytes())
}

/// The files of a namespace that are needed up to a position, and how many bytes of each.
fn files_of(from: &Path, name: &str, end: u64) -> Result<Vec<(String, u64)>> {
    let dir = from.join(name);
    let mut files = vec![(format!("{name}/partition"), u64::MAX)];
    let log = dir.join("log");
    let last = last_place(&log, end)?;
    for first in segments(&log)?.into_iter().filter(|first| *first < end) {
        let most = last.filter(|(segment, _)| *segment == first);
        let file = Name::Segment(first).name();
        files.push((
            format!("{name}/log/{file}"),
            most.map_or(u64::MAX, |(_, at)| at),
        ));
    }
    for part in ["blobs", "snapshots"] {
        for file in names(&dir.join(part))? {
            if is_kept(part, &file, end) {
                files.push((format!("{name}/{part}/{file}"), u64::MAX));
            }
        }
    }
    Ok(files)
}

/// Where the frame ends that comes before a position.
fn last_place(log: &Path, end: u64) -> Result<Option<(u64, u64)>> {
    let Some(before) = end.checked_sub(1) else {
        return Ok(None);
    };
    let places = Places::default();
    let mut walk = Walk::from(log, before, Limit::Before(end), &places)?;
    while walk.seek(before, &places)?.is_some() {}
    Ok(walk.place())
}

fn is_kept(part: &str, file: &str, end: u64) -> bool {
    if part == "blobs" {
        return is_blob(file);
    }
    let hex = file.strip_suffix(".snap");
    let n = hex.and_then(|hex| u64::from_str_radix(hex, 16).ok());
    n.is_some_and(|n| n < end)
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LogError::io(dir, "reading", &error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| LogError::io(dir, "reading", &e))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

fn make_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    fs::create_dir_all(parent).map_err(|e| LogError::io(parent, "making", &e))
}

/// Reads up to `most` bytes of a file, to another one if one is given, synced; says how many there were and their hash.
fn copy(from: &Path, to: Option<&Path>, most: u64) -> Result<(u64, blake3::Hash)> {
    let source = File::open(from).map_err(|e| LogError::io(from, "opening", &e))?;
    let mut source = source.take(most);
    let target = to.map(|to| {
        let made = OpenOptions::new().write(true).create_new(true).open(to);
        made.map(|file| (to, file))
            .map_err(|e| LogError::io(to, "making", &e))
    });
    let mut target = target.transpose()?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(LogError::io(from, "reading", &error)),
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        hasher.update(bytes);
        total += read as u64;
        if let Some((to, file)) = &mut target {
            let written = file.write_all(bytes);
            written.map_err(|e| LogError::io(to, "writing", &e))?;
        }
    }
    if let Some((to, file)) = &target {
        file.sync_all()
            .map_err(|e| LogError::io(to, "syncing", &e))?;
    }
    Ok((total, hasher.finalize()))
}

fn read_manifest(dir: &Path) -> Result<BTreeMap<String, Entry>> {
    let path = dir.join(MANIFEST);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(LogError::NotALog {
                path: dir.to_path_buf(),
                why: "it has no MANIFEST, as a backup has",
            });
        }
        Err(error) => return Err(LogError::io(&path, "opening", &error)),
    };
    let most = spec::LOG_BACKUP_FILES as u64 * LINE;
    let mut text = String::new();
    match file.take(most).read_to_string(&mut text) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            return Err(tampered(&path, "it is no text"));
        }
        Err(error) => return Err(LogError::io(&path, "reading", &error)),
    }
    parse(&path, &text)
}

fn parse(path: &Path, text: &str) -> Result<BTreeMap<String, Entry>> {
    let bad = |why: &str| tampered(path, why);
    let body = text.trim_end_matches('\n');
    let (body, seal) = body
        .rsplit_once('\n')
        .ok_or_else(|| bad("it is cut short"))?;
    let sealed = format!("{body}\n");
    let seal = seal.strip_prefix("seal ");
    if seal != Some(blake3::hash(sealed.as_bytes()).to_hex().as_str()) {
        return Err(bad("its seal does not fit"));
    }
    let mut lines = body.lines();
    let first = lines.next().unwrap_or_default();
    if let Some(version) = first
        .strip_prefix("loom backup ")
        .filter(|_| first != FIRST_LINE)
    {
        return Err(LogError::Newer {
            path: path.to_path_buf(),
            found: version.parse().unwrap_or(u32::MAX),
            known: FORMAT,
        });
    }
    if first != FIRST_LINE {
        return Err(bad("it does not begin as one"));
    }
    let mut entries = BTreeMap::new();
    for line in lines.filter_map(|line| line.strip_prefix("file ")) {
        let mut parts = line.splitn(3, ' ');
        let bytes = parts.next().and_then(|bytes| bytes.parse().ok());
        let hash = parts
            .next()
            .and_then(|hex| blake3::Hash::from_hex(hex).ok());
        let (Some(bytes), Some(hash), Some(name)) = (bytes, hash, parts.next()) else {
            return Err(bad("a line of it cannot be read"));
        };
        if !is_ours(name) {
            return Err(bad("it names a file that no backup has"));
        }
        if entries
            .insert(name.to_owned(), Entry { bytes, hash })
            .is_some()
        {
            return Err(bad("it names a file twice"));
        }
        if entries.len() > spec::LOG_BACKUP_FILES {
            return Err(bad("it names more files than a backup has"));
        }
    }
    Ok(entries)
}

/// Whether a path is one that a backup writes: no other leads anywhere.
fn is_ours(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["format"] => true,
        [name, "partition"] => is_name(name),
        [name, "log", file] => is_name(name) && Name::segment(file).is_some(),
        [name, "blobs", file] => is_name(name) && is_blob(file),
        [name, "snapshots", file] => is_name(name) && is_hex(file, 16, ".snap"),
        _ => false,
    }
}

fn is_name(name: &str) -> bool {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(safe)
}

fn is_blob(file: &str) -> bool {
    is_hex(file, 8, ".seg") || is_hex(file, 8, ".idx")
}

fn is_hex(file: &str, digits: usize, suffix: &str) -> bool {
    let hex = file.strip_suffix(suffix);
    hex.is_some_and(|hex| hex.len() == digits && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Each file is there, is a file, has its size; and there is no other.
fn check_files(dir: &Path, entries: &BTreeMap<String, Entry>) -> Result<()> {
    for (name, entry) in entries {
        let path = dir.join(name);
        let meta = fs::symlink_metadata(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => tampered(&path, "it is missing"),
            _ => LogError::io(&path, "looking at", &error),
        })?;
        if !meta.is_file() {
            return Err(tampered(&path, "it is no file"));
        }
        if meta.len() != entry.bytes {
            return Err(tampered(&path, "it has another size"));
        }
    }
    check_others(dir, "", entries)
}

fn check_others(dir: &Path, below: &str, entries: &BTreeMap<String, Entry>) -> Result<()> {
    for name in names(&dir.join(below))? {
        let path = if below.is_empty() {
            name
        } else {
            format!("{below}/{name}")
        };
        let full = dir.join(&path);
        let meta = fs::symlink_metadata(&full);
        let meta = meta.map_err(|e| LogError::io(&full, "looking at", &e))?;
        if meta.is_dir() && path.matches('/').count() < 2 {
            check_others(dir, &path, entries)?;
        } else if path != MANIFEST && !entries.contains_key(&path) {
            return Err(tampered(&full, "the manifest does not name it"));
        }
    }
    Ok(())
}

fn tampered(path: &Path, why: &str) -> LogError {
    LogError::Tampered {
        path: path.to_path_buf(),
        why: why.to_owned(),
    }
}
