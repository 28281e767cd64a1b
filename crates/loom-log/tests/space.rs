//! A disk that is really full, filled and freed over and over; and a log that has no disk at all.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cognitive_complexity,
    reason = "a test says what it expects by failing"
)]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Bench, boot, noise, small, step, texts, try_open};
use loom_core::record::{Outgoing, Progress, Record};
use loom_core::{Code, Error, Level, Position, Ticket};
use loom_log::{Log, LogError, Options, ReadLimit};
use tempfile::tempdir;

/// A file system of a few megabytes, where one may be made.
struct Disk {
    path: PathBuf,
}

impl Disk {
    fn make(at: &Path, bytes: u64) -> Option<Self> {
        let size = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "loom-test"])
            .arg(at)
            .output()
            .is_ok_and(|done| done.status.success());
        mounted.then(|| Self {
            path: at.to_path_buf(),
        })
    }

    /// Takes all the space that is left.
    fn fill(&self) {
        let ballast = self.path.join("ballast");
        let mut bytes = 1 << 20;
        let mut taken = 0;
        while bytes >= 4_096 {
            let file = fs::File::options()
                .append(true)
                .create(true)
                .open(&ballast)
                .unwrap();
            match std::io::Write::write(&mut &file, &vec![1; bytes]) {
                Ok(written) if written > 0 => taken += written,
                _ => bytes /= 2,
            }
        }
        assert!(taken > 0, "there was no space to take");
    }

    fn free(&self) {
        fs::remove_file(self.path.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).output();
    }
}

/// Sends bodies until one is refused.
fn until_refused(bench: &mut Bench, kept: &mut Vec<String>, cycle: usize) -> Error {
    for i in 0..4_000 {
        let text = format!("{cycle}-{i}-{}", "x".repeat(3_000));
        match bench.put(Level::Disk, step(text.as_bytes())) {
            Ok(_) => kept.push(text),
            Err(error) => return error,
        }
    }
    panic!("a full disk refuses nothing");
}

// requirement: LOG-FULL-DISK
#[test]
fn a_disk_that_is_filled_and_freed_many_times_loses_nothing_that_was_acknowledged() {
    let dir = tempdir().unwrap();
    let Some(disk) = Disk::make(dir.path(), 48 << 20) else {
        // Who may not mount has the same over injected errors, in the tests of faults.
        return;
    };
    let log = disk.path.join("log");
    let options = || Options {
        segment_bytes: 6 << 20,
        ..small()
    };
    let mut bench = try_open(&log, options(), &boot()).unwrap();
    let mut kept = Vec::new();
    for cycle in 0..6 {
        disk.fill();
        let error = until_refused(&mut bench, &mut kept, cycle);
        assert_eq!(
            (error.code, error.field.as_deref()),
            (Code::Exhausted, Some("data"))
        );
        let large = bench
            .put(Level::Disk, step(&noise(cycle as u64, 200_000)))
            .unwrap_err();
        assert_eq!(large.code, Code::Exhausted);
        disk.free();
        let text = format!("after {cycle}");
        bench.put_text(&text);
        kept.push(text);
    }
    assert_eq!(bench.texts(), kept);
    disk.fill();
    bench.close();
    drop(bench);
    let again = try_open(&log, options(), &boot()).unwrap();
    assert_eq!(texts(&again.found), kept);
    assert_eq!(again.opened.epoch, 2);
}

fn out(n: u64, partition: u32, record: Record) -> Outgoing {
    Outgoing {
        ticket: Some(Ticket(n)),
        partition,
        level: Level::Disk,
        batch: vec![record].into(),
    }
}

fn at(n: u64) -> Position {
    Position {
        partition: 1,
        epoch: 1,
        n,
    }
}

// requirement: LOG-MEMORY
#[test]
fn a_log_in_memory_answers_at_once_and_is_read_as_one_on_disk() {
    let log = Log::memory(&Options::default());
    let mut found = 0;
    let opened = log.partition("main", &boot(), &mut |_| found += 1).unwrap();
    assert_eq!(
        (opened.partition, opened.epoch, opened.end, found),
        (1, 1, at(0), 1)
    );
    assert!(!log.is_durable());
    let batch: Vec<Outgoing> = (0..5).map(|n| out(n, 1, step(&[0; 10]))).collect();
    let answers = log.append(batch).unwrap();
    let places: Vec<Position> = answers.into_iter().map(|a| a.result.unwrap()).collect();
    assert_eq!(places, (1..6).map(at).collect::<Vec<_>>());
    let noise_of_recovery = Record::Progress(Progress::default());
    log.append(vec![out(9, 1, noise_of_recovery)]).unwrap();
    let three = ReadLimit {
        records: 3,
        bytes: 1 << 20,
        only: None,
    };
    let batch = log.read(1, 0, three).unwrap();
    assert_eq!(
        (batch.records.len(), batch.next, batch.at_end),
        (3, 3, false)
    );
    let batch = log.read(1, batch.next, three).unwrap();
    assert_eq!(
        (batch.records.len(), batch.next, batch.at_end),
        (3, 7, true)
    );
    assert_eq!(log.get(1, 5).unwrap().unwrap().0, at(5));
    assert!(log.get(1, 6).unwrap().is_none());
    let error = log.read(1, 8, three).unwrap_err();
    assert_eq!(Error::from(error).code, Code::InvalidCursor);
    let unknown = log.append(vec![out(1, 2, step(b"x"))]).unwrap_err();
    assert!(matches!(unknown, LogError::Unknown { .. }));
}

// requirement: LOG-MEMORY
#[test]
fn a_log_in_memory_keeps_so_many_bytes_and_lets_the_oldest_go() {
    let log = Log::memory(&Options {
        memory_bytes: 100_000,
        ..Options::default()
    });
    log.partition("main", &boot(), &mut |_| {}).unwrap();
    log.partition("other", &boot(), &mut |_| {}).unwrap();
    log.append(vec![out(0, 2, step(b"of the other"))]).unwrap();
    for n in 0..1_000 {
        log.append(vec![out(n, 1, step(&[0; 744]))]).unwrap();
    }
    let LogError::Expired { first, .. } = log.read(1, 0, ReadLimit::default()).unwrap_err() else {
        panic!("the oldest is still there");
    };
    assert!((900..=904).contains(&first), "{first}");
    let batch = log.read(1, first, ReadLimit::default()).unwrap();
    assert_eq!(batch.records.len() as u64, 1_001 - first);
    assert_eq!(
        log.read(2, 0, ReadLimit::default()).unwrap().records.len(),
        2
    );
}
