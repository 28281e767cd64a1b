//! The one that deletes. A segment goes only when two sound snapshots stand behind its end: for its age when nobody needs
//! what it holds, and when the log is too large unless a turn is open on it; pieces of large bodies go when no record names them. Each file that goes is told.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::api::{Deleted, Needs, Retention};
use crate::blobs::{self, Hash};
use crate::error::{LogError, Result};
use crate::files::sync_dir;
use crate::format::Form;
use crate::partition::Partition;
use crate::snapshots;
use crate::storage::File as Name;
use crate::walk::{Limit, Walk, segments};

/// A segment that may be looked at: its first position, the first behind it, its bytes, and when it was last written.
struct Sealed {
    first: u64,
    next: u64,
    bytes: u64,
    written_ms: u64,
}

/// Deletes what may go.
pub(crate) fn retain(
    partition: &Partition,
    rules: Retention,
    now_ms: u64,
    needs: Needs,
) -> Result<Vec<Deleted>> {
    let mut deleted = Vec::new();
    if rules == Retention::default() {
        return Ok(deleted);
    }
    if let Some(error) = partition.lost() {
        // It may have been the sync of a snapshot.
        return Err(error);
    }
    let dir = partition.log();
    let sound = free_below(partition)?;
    // No group keeps a log larger than it may be. A turn that is open does: it ends.
    let most = sound.min(needs.turns.unwrap_or(u64::MAX));
    let free = most.min(needs.all.unwrap_or(u64::MAX));
    let firsts = segments(&dir)?;
    let total = size(&dir)? + partition.blobs().stats().1;
    let mut over = rules.bytes.map_or(0, |most| total.saturating_sub(most));
    for pair in firsts.windows(2) {
        let &[first, next] = pair else { continue };
        let segment = sealed(&dir, first, next)?;
        let old = rules
            .age_ms
            .is_some_and(|age| segment.written_ms.saturating_add(age) <= now_ms);
        let too_much = over > 0 && segment.next <= most;
        let too_old = old && segment.next <= free;
        if !too_much && !too_old {
            break;
        }
        over = over.saturating_sub(segment.bytes);
        deleted.push(remove(
            partition,
            &segment,
            if too_old { "age" } else { "bytes" },
        )?);
    }
    deleted.extend(collect(partition)?);
    Ok(deleted)
}

/// Everything before this is in two sound snapshots.
fn free_below(partition: &Partition) -> Result<u64> {
    let sound = snapshots::sound(&partition.dir.join("snapshots"))?;
    let older = sound.iter().rev().nth(snapshots::KEPT - 1);
    Ok(older.map_or(0, |at| at.n + 1))
}

fn sealed(dir: &Path, first: u64, next: u64) -> Result<Sealed> {
    let path = dir.join(Name::Segment(first).name());
    let meta = fs::metadata(&path).map_err(|e| LogError::io(&path, "looking at", &e))?;
    let modified = meta
        .modified()
        .map_err(|e| LogError::io(&path, "looking at", &e))?;
    let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Sealed {
        first,
        next,
        bytes: meta.len(),
        written_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    })
}

fn size(dir: &Path) -> Result<u64> {
    let mut total = 0;
    for first in segments(dir)? {
        let path = dir.join(Name::Segment(first).name());
        let meta = fs::metadata(&path).map_err(|e| LogError::io(&path, "looking at", &e))?;
        total += meta.len();
    }
    Ok(total)
}

fn remove(partition: &Partition, segment: &Sealed, why: &'static str) -> Result<Deleted> {
    let file = Name::Segment(segment.first);
    partition
        .storage
        .perform(&crate::storage::Op::Remove { file })?;
    partition.forget(segment.next);
    // Before the next one goes: else a power cut could bring this one back alone, with a hole behind it. The machine makes
    // files there too, and would be told of a failure no more.
    partition.health.sync(|| sync_dir(&partition.log()))?;
    Ok(Deleted {
        namespace: partition.namespace.clone(),
        file: format!("log/{}", file.name()),
        bytes: segment.bytes,
        positions: Some((segment.first, segment.next)),
        why,
    })
}

/// Lets the pieces go that no record names any more.
fn collect(partition: &Partition) -> Result<Vec<Deleted>> {
    if partition.blobs().stats().0 == 0 {
        return Ok(Vec::new());
    }
    let named = named(partition)?;
    let gone = partition.blobs().collect(&*partition.storage, &named)?;
    let deleted = gone.into_iter().map(|(file, bytes)| Deleted {
        namespace: partition.namespace.clone(),
        file: format!("blobs/{file}"),
        bytes,
        positions: None,
        why: "unreachable",
    });
    Ok(deleted.collect())
}

/// The pieces that the records of the log name.
fn named(partition: &Partition) -> Result<HashSet<Hash>> {
    let mut named = HashSet::new();
    let dir = partition.log();
    let Some(mut next) = segments(&dir)?.first().copied() else {
        return Ok(named);
    };
    let end = partition.driver().machine.written();
    let mut walk = Walk::from(&dir, next, Limit::Before(end), &partition.places)?;
    while let Some(frame) = walk.seek(next, &partition.places)? {
        for record in frame.records().filter(|r| r.form == Form::Chunked) {
            let pieces = blobs::pieces(record.body);
            named.extend(pieces.into_iter().flatten().map(|(hash, _)| hash));
        }
        next = frame.next();
    }
    Ok(named)
}
