//! Large bodies, snapshots, retention, backup and restore on a real directory.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cognitive_complexity,
    reason = "a test says what it expects by failing"
)]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use common::{Bench, boot, noise, open, small, step, texts, tree, try_open};
use loom_core::{Code, Error, Level, Position};
use loom_log::{LogError, Needs, Options, ReadLimit, Reader, Retention};
use tempfile::tempdir;

fn stored(dir: &Path) -> u64 {
    let main = dir.join("main");
    let blobs: u64 = tree(&main.join("blobs")).values().sum();
    blobs
}

// requirement: BLOB-ONCE
#[test]
fn a_large_body_is_stored_once_however_often_it_is_named() {
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    let body = noise(1, 500_000);
    let first = bench.put(Level::Disk, step(&body)).unwrap();
    let once = stored(dir.path());
    assert!((500_000..560_000).contains(&once), "{once}");
    for _ in 0..50 {
        bench.put(Level::Disk, step(&body)).unwrap();
    }
    assert_eq!(stored(dir.path()), once);
    bench.close();
    drop(bench);
    let mut again = open(dir.path());
    again.put(Level::Disk, step(&body)).unwrap();
    again.close();
    let after = stored(dir.path());
    assert!(
        after < once + once / 10,
        "{after} after {once}: known pieces were stored again"
    );
    let (_, record) = Reader::open(dir.path())
        .unwrap()
        .get("main", first.n)
        .unwrap()
        .unwrap();
    assert_eq!(record.body(), body);
}

// requirement: BLOB-TRANSCRIPT
#[test]
fn a_growing_transcript_takes_at_most_three_times_its_unique_bytes() {
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    let mut transcript = Vec::new();
    let mut places = Vec::new();
    for call in 0..100_u64 {
        transcript.extend(noise(call, 15_000));
        places.push((
            bench.put(Level::Disk, step(&transcript)).unwrap(),
            transcript.len(),
        ));
    }
    let end = Reader::open(dir.path()).unwrap();
    for (at, len) in &places {
        let (_, record) = end.get("main", at.n).unwrap().unwrap();
        assert_eq!(record.body(), &transcript[..*len]);
    }
    let total = stored(dir.path()) + bench.log.stats().bytes;
    let unique = transcript.len() as u64;
    assert!(
        unique > 1 << 20,
        "the last ones are larger than an event that nobody keeps"
    );
    assert!(
        total <= 3 * unique,
        "{total} bytes for {unique} unique ones"
    );
}

// requirement: BLOB-ONCE
#[test]
fn bodies_of_every_size_come_back_whole_over_a_restart() {
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    let sizes = [
        0,
        1,
        1_023,
        16_383,
        16_384,
        16_385,
        65_536,
        1 << 20,
        (1 << 20) + 1,
        5_000_000,
    ];
    let places: Vec<Position> = sizes
        .iter()
        .map(|size| {
            bench
                .put(Level::Disk, step(&noise(*size as u64, *size)))
                .unwrap()
        })
        .collect();
    bench.close();
    drop(bench);
    let again = open(dir.path());
    for (size, at) in sizes.iter().zip(places) {
        let (_, record) = again.log.get(again.partition, at.n).unwrap().unwrap();
        assert_eq!(record.body(), noise(*size as u64, *size), "{size}");
    }
}

// requirement: BLOB-ONCE
#[test]
fn an_index_of_pieces_that_is_missing_or_damaged_is_made_anew_from_the_pieces() {
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    let bodies: Vec<Vec<u8>> = (0..5).map(|i| noise(i, 500_000)).collect();
    let places: Vec<Position> = bodies
        .iter()
        .map(|body| bench.put(Level::Disk, step(body)).unwrap())
        .collect();
    bench.close();
    drop(bench);
    let blobs = dir.path().join("main/blobs");
    let indices: Vec<_> = tree(&blobs)
        .into_keys()
        .filter(|p| p.extension().unwrap() == "idx")
        .collect();
    assert!(indices.len() >= 2, "{indices:?}");
    fs::remove_file(blobs.join(&indices[0])).unwrap();
    let mut bytes = fs::read(blobs.join(&indices[1])).unwrap();
    bytes[40] ^= 1;
    fs::write(blobs.join(&indices[1]), bytes).unwrap();
    let again = open(dir.path());
    for (body, at) in bodies.iter().zip(places) {
        let (_, record) = again.log.get(again.partition, at.n).unwrap().unwrap();
        assert_eq!(record.body(), body);
    }
}

// requirement: SNAP-NEWEST
#[test]
fn the_newest_sound_snapshot_and_what_stands_behind_it_are_given_back() {
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    let mut places = Vec::new();
    for i in 0..4 {
        let at = bench.put_text(&format!("text {i}"));
        bench
            .log
            .snapshot(at, format!("state {i}").as_bytes())
            .unwrap();
        places.push(at);
    }
    bench.put_text("behind");
    bench.close();
    drop(bench);
    let snapshots = dir.path().join("main/snapshots");
    assert_eq!(tree(&snapshots).len(), 2);

    let again = open(dir.path());
    assert_eq!(again.snapshot, Some((places[3], b"state 3".to_vec())));
    assert_eq!(texts(&again.found), ["behind"]);
    again.close();
    drop(again);

    let newest = snapshots.join(format!("{:016x}.snap", places[3].n));
    let whole = fs::read(&newest).unwrap();
    for (at, bit) in (0..whole.len()).zip((0..8).cycle()) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << bit;
        fs::write(&newest, bytes).unwrap();
        let reader = Reader::open(dir.path()).unwrap();
        assert_eq!(
            reader.snapshot("main").unwrap().unwrap().bytes,
            b"state 2",
            "byte {at}"
        );
        assert!(reader.verify().is_err());
    }
    fs::write(&newest, &whole[..whole.len() - 1]).unwrap();
    let older = open(dir.path());
    assert_eq!(older.snapshot, Some((places[2], b"state 2".to_vec())));
    assert_eq!(texts(&older.found), ["text 3", "behind"]);
    assert_eq!(older.opened.damaged_snapshots, 1);
}

// requirement: SNAP-AHEAD
#[test]
fn a_snapshot_that_is_newer_than_the_log_is_refused_and_nothing_is_deleted() {
    let dir = tempdir().unwrap();
    let old = dir.path().join("old");
    let mut bench = open(&dir.path().join("log"));
    bench.put_text("one");
    bench.log.backup(&old).unwrap();
    let at = (0..100)
        .map(|i| bench.put_text(&format!("{i}")))
        .last()
        .unwrap();
    bench.log.snapshot(at, b"state").unwrap();
    bench.close();
    drop(bench);
    let log = dir.path().join("log/main/log/0000000000000000.seg");
    fs::copy(old.join("main/log/0000000000000000.seg"), &log).unwrap();
    let before = tree(dir.path());
    let error = try_open(&dir.path().join("log"), small(), &boot())
        .err()
        .unwrap();
    assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
    let after = tree(dir.path());
    assert_eq!(
        before.keys().collect::<BTreeSet<_>>(),
        after.keys().collect::<BTreeSet<_>>()
    );
}

fn fill(bench: &mut Bench, records: usize) -> Position {
    let body = noise(9, 15_000);
    let tickets: Vec<u64> = (0..records)
        .map(|_| bench.send(Level::Os, step(&body)))
        .collect();
    let places: Vec<Position> = tickets
        .iter()
        .map(|t| bench.inbox.wait(*t).unwrap())
        .collect();
    *places.last().unwrap()
}

fn keeping(bytes: u64) -> Options {
    let retention = Retention {
        age_ms: None,
        bytes: Some(bytes),
    };
    Options {
        retention,
        ..small()
    }
}

// requirement: LOG-RETENTION
#[test]
fn a_segment_goes_only_behind_two_sound_snapshots_and_when_nobody_needs_it() {
    let dir = tempdir().unwrap();
    let mut bench = try_open(dir.path(), keeping(0), &boot()).unwrap();
    let first = fill(&mut bench, 1_200);
    assert_eq!(bench.log.retain(bench.partition, None).unwrap(), []);
    bench.log.snapshot(first, b"one").unwrap();
    assert_eq!(
        bench.log.retain(bench.partition, None).unwrap(),
        [],
        "one snapshot may be damaged"
    );
    let second = fill(&mut bench, 1_200);
    bench.log.snapshot(second, b"two").unwrap();
    assert_eq!(
        bench.log.retain(bench.partition, Some(100)).unwrap(),
        [],
        "position 100 is needed"
    );

    let deleted = bench.log.retain(bench.partition, None).unwrap();
    assert!(!deleted.is_empty());
    let (mut next, mut ended) = (0, 0);
    for gone in &deleted {
        let (from, to) = gone.positions.unwrap();
        assert_eq!(
            (from, gone.why, gone.namespace.as_str()),
            (next, "bytes", "main")
        );
        assert!(!dir.path().join("main").join(&gone.file).exists());
        (next, ended) = (to, to);
    }
    assert!(
        ended <= first.n + 1,
        "only what the older snapshot holds may go"
    );
    let gone = bench
        .log
        .read(bench.partition, 0, ReadLimit::default())
        .unwrap_err();
    assert_eq!(gone, LogError::Expired { n: 0, first: ended });
    assert_eq!(Error::from(gone).code, Code::CursorExpired);
    let behind = bench
        .log
        .read(bench.partition, 1 << 40, ReadLimit::default())
        .unwrap_err();
    assert_eq!(Error::from(behind).code, Code::InvalidCursor);
    assert_eq!(
        bench
            .log
            .read(bench.partition, ended, ReadLimit::default())
            .unwrap()
            .records[0]
            .0
            .n,
        ended
    );
    bench.close();
    drop(bench);
    let again = open(dir.path());
    assert_eq!(again.opened.first, ended);
    assert_eq!(again.snapshot.unwrap().1, b"two");
}

// requirement: LOG-RETENTION, DUR-HOLD
#[test]
fn what_a_group_needs_does_not_keep_a_log_that_is_too_large_and_what_an_open_turn_needs_does() {
    let dir = tempdir().unwrap();
    let mut bench = try_open(dir.path(), keeping(0), &boot()).unwrap();
    for name in [b"one", b"two"] {
        let at = fill(&mut bench, 1_200);
        bench.log.snapshot(at, name).unwrap();
    }
    let mut needs = Needs {
        all: Some(100),
        turns: Some(100),
    };
    assert_eq!(bench.log.retain(bench.partition, needs).unwrap(), []);
    needs.turns = None;
    let deleted = bench.log.retain(bench.partition, needs).unwrap();
    assert!(
        deleted[0]
            .positions
            .is_some_and(|(from, to)| from == 0 && to > 100)
    );
    assert!(deleted.iter().all(|one| one.why == "bytes"));
}

// requirement: LOG-RETENTION
#[test]
fn by_age_only_what_is_older_goes() {
    let dir = tempdir().unwrap();
    let retention = Retention {
        age_ms: Some(1_000_000),
        bytes: None,
    };
    let clock: loom_log::Clock = std::sync::Arc::new(|| 4_000_000_000_000);
    let mut bench = try_open(
        dir.path(),
        Options {
            retention,
            clock,
            ..small()
        },
        &boot(),
    )
    .unwrap();
    let first = fill(&mut bench, 1_200);
    bench.log.snapshot(first, b"one").unwrap();
    let second = fill(&mut bench, 1_200);
    bench.log.snapshot(second, b"two").unwrap();
    let segments: Vec<_> = tree(&dir.path().join("main/log")).into_keys().collect();
    for segment in &segments[1..] {
        let file = fs::File::options()
            .write(true)
            .open(dir.path().join("main/log").join(segment))
            .unwrap();
        let young = std::time::UNIX_EPOCH + std::time::Duration::from_secs(4_000_000_000);
        file.set_modified(young).unwrap();
    }
    let needs = Needs {
        all: Some(0),
        turns: None,
    };
    let kept = bench.log.retain(bench.partition, needs).unwrap();
    assert_eq!(kept, [], "a group needs it");
    let deleted = bench.log.retain(bench.partition, None).unwrap();
    assert_eq!(deleted.len(), 1);
    assert_eq!(
        (deleted[0].why, deleted[0].positions.unwrap().0),
        ("age", 0)
    );
}

// requirement: BLOB-COLLECT
#[test]
fn pieces_that_no_record_names_go_and_those_that_one_names_stay() {
    let dir = tempdir().unwrap();
    let mut bench = try_open(dir.path(), keeping(0), &boot()).unwrap();
    let shared = noise(1, 100_000);
    bench.put(Level::Disk, step(&shared)).unwrap();
    for i in 0..30 {
        bench
            .put(Level::Disk, step(&noise(100 + i, 200_000)))
            .unwrap();
    }
    let first = fill(&mut bench, 1_200);
    bench.log.snapshot(first, b"one").unwrap();
    let kept = bench.put(Level::Disk, step(&shared)).unwrap();
    let young = bench.put(Level::Disk, step(&noise(500, 200_000))).unwrap();
    let second = fill(&mut bench, 1_200);
    bench.log.snapshot(second, b"two").unwrap();
    let before = stored(dir.path());
    let mut deleted = Vec::new();
    for _ in 0..3 {
        // What was named lately may be on its way: it goes at the third time at the latest.
        deleted.extend(bench.log.retain(bench.partition, None).unwrap());
    }
    assert!(
        deleted.iter().any(|gone| gone.why == "unreachable"),
        "{deleted:?}"
    );
    let after = stored(dir.path());
    assert!(after < before / 4, "{after} of {before} bytes are left");
    let check = |bench: &Bench| {
        let (_, record) = bench.log.get(bench.partition, kept.n).unwrap().unwrap();
        assert_eq!(record.body(), shared);
        let (_, record) = bench.log.get(bench.partition, young.n).unwrap().unwrap();
        assert_eq!(record.body(), noise(500, 200_000));
    };
    check(&bench);
    bench.put(Level::Disk, step(&noise(105, 200_000))).unwrap();
    bench.close();
    drop(bench);
    let again = open(dir.path());
    check(&again);
    assert_eq!(Reader::open(dir.path()).unwrap().verify().unwrap().len(), 1);
}

// requirement: BACKUP-ONLINE
#[test]
fn a_backup_of_a_log_in_use_holds_all_up_to_its_position_and_restores_to_the_same() {
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    let mut bench = open(&log);
    fill(&mut bench, 700);
    let large = bench.put(Level::Disk, step(&noise(5, 300_000))).unwrap();
    bench.log.snapshot(large, b"state").unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (told, first_sent) = std::sync::mpsc::channel();
    let busy = {
        let (log, stop, partition) = (bench.log.clone(), stop.clone(), bench.partition);
        std::thread::spawn(move || {
            let mut sent = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let out = loom_core::record::Outgoing {
                    ticket: None,
                    partition,
                    level: Level::Os,
                    batch: vec![step(&noise(sent, 20_000))].into(),
                };
                sent += u64::from(log.append(vec![out]).is_ok());
                told.send(()).unwrap();
            }
            sent
        })
    };
    first_sent.recv_timeout(common::LONG).unwrap();
    let copy = dir.path().join("copy");
    let report = bench.log.backup(&copy).unwrap();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(busy.join().unwrap() > 0);
    let (_, end) = report.namespaces[0].positions;
    assert!(end > large.n);
    assert_eq!(loom_log::verify_backup(&copy).unwrap(), report);

    let restored = dir.path().join("restored");
    let again = loom_log::restore(&copy, &restored).unwrap();
    assert_eq!(again.namespaces, report.namespaces);
    let back = open(&restored);
    assert_eq!(back.snapshot.as_ref().unwrap().1, b"state");
    let (last, _) = back.found[back.found.len() - 2].clone();
    assert_eq!(last.n, end - 1);
    for n in (1..end).step_by(97) {
        let here = bench.log.get(bench.partition, n).unwrap().unwrap();
        let there = back.log.get(back.partition, n).unwrap().unwrap();
        assert_eq!((here.0, here.1.body()), (there.0, there.1.body()));
    }
}

// requirement: BACKUP-WHOLE
#[test]
fn what_a_process_of_the_same_number_left_half_done_is_in_nobodys_way() {
    let dir = tempdir().unwrap();
    let mut bench = open(&dir.path().join("log"));
    bench.put_text("one");
    let copy = dir.path().join("copy");
    let left = dir
        .path()
        .join(format!("copy.{}.partial", std::process::id()));
    fs::create_dir_all(left.join("main/log")).unwrap();
    fs::write(left.join("main/partition"), "7").unwrap();
    fs::write(left.join("main/stray"), "x").unwrap();
    let report = bench.log.backup(&copy).unwrap();
    assert_eq!(loom_log::verify_backup(&copy).unwrap(), report);
    assert!(!left.exists());
}

// requirement: BACKUP-REFUSED
#[test]
fn a_backup_or_a_restore_into_something_that_is_there_is_refused() {
    let dir = tempdir().unwrap();
    let mut bench = open(&dir.path().join("log"));
    bench.put_text("one");
    let copy = dir.path().join("copy");
    bench.log.backup(&copy).unwrap();
    let taken = dir.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("file"), "mine").unwrap();
    let before = tree(dir.path());
    let targets = [taken.clone(), taken.join("file"), dir.path().join("log")];
    for target in &targets {
        for result in [loom_log::restore(&copy, target), bench.log.backup(target)] {
            let error = result.unwrap_err();
            assert!(matches!(error, LogError::NotEmpty { .. }), "{error}");
            assert_eq!(Error::from(error).code, Code::Conflict);
        }
    }
    assert_eq!(tree(dir.path()), before);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    loom_log::restore(&copy, &empty).unwrap();
    let nothing = loom_log::restore(&taken, &dir.path().join("x")).unwrap_err();
    assert!(matches!(nothing, LogError::NotALog { .. }), "{nothing}");
}

// requirement: BACKUP-REFUSED
#[test]
fn a_backup_in_the_log_and_a_log_in_the_backup_are_refused() {
    let dir = tempdir().unwrap();
    let mut bench = open(&dir.path().join("log"));
    bench.put_text("one");
    let copy = dir.path().join("copy");
    bench.log.backup(&copy).unwrap();
    std::os::unix::fs::symlink(dir.path().join("log"), dir.path().join("link")).unwrap();
    let before = tree(dir.path());
    for inside in [
        "log/copy",
        "log/default/far/below",
        "copy/../log/copy",
        "link/copy",
    ] {
        let error = bench.log.backup(&dir.path().join(inside)).unwrap_err();
        assert!(
            matches!(error, LogError::Inside { .. }),
            "{inside}: {error}"
        );
    }
    for inside in ["copy/log", "copy/default/log/log"] {
        let error = loom_log::restore(&copy, &dir.path().join(inside)).unwrap_err();
        assert!(
            matches!(error, LogError::Inside { .. }),
            "{inside}: {error}"
        );
    }
    assert_eq!(tree(dir.path()), before);
}

// requirement: BACKUP-REFUSED
#[test]
fn a_backup_is_no_log_to_write_to_and_stays_as_it_was() {
    let dir = tempdir().unwrap();
    let mut bench = open(&dir.path().join("log"));
    bench.put_text("one");
    let copy = dir.path().join("copy");
    let report = bench.log.backup(&copy).unwrap();
    let error = try_open(&copy, small(), &boot()).err().unwrap();
    assert!(matches!(error, LogError::IsBackup { .. }), "{error}");
    assert!(Error::from(error).hint.unwrap().contains("loom restore"));
    assert_eq!(loom_log::verify_backup(&copy).unwrap(), report);
}

fn sealed(lines: &str) -> String {
    format!("{lines}seal {}\n", blake3::hash(lines.as_bytes()))
}

// requirement: BACKUP-REFUSED
#[test]
fn a_backup_that_was_changed_anywhere_is_refused_and_leaves_nothing_behind() {
    let dir = tempdir().unwrap();
    let mut bench = open(&dir.path().join("log"));
    for i in 0..5 {
        bench.put(Level::Disk, step(&noise(i, 20_000))).unwrap();
    }
    let copy = dir.path().join("copy");
    bench.log.backup(&copy).unwrap();
    let target = dir.path().join("target");
    let refused = |what: &str| {
        let error = loom_log::restore(&copy, &target).unwrap_err();
        assert!(
            matches!(error, LogError::Tampered { .. }),
            "{what}: {error}"
        );
        assert!(loom_log::verify_backup(&copy).is_err(), "{what}");
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left.len(), 2, "{what}: {left:?}");
    };
    for (file, size) in tree(&copy) {
        let path = copy.join(&file);
        let whole = fs::read(&path).unwrap();
        for at in [0, size / 2, size - 1] {
            let mut bytes = whole.clone();
            bytes[usize::try_from(at).unwrap()] ^= 4;
            fs::write(&path, bytes).unwrap();
            refused(&format!("{} at {at}", file.display()));
        }
        if file.as_os_str() != "MANIFEST" {
            fs::write(&path, &whole[..whole.len() - 1]).unwrap();
            refused("a file that is shorter");
            fs::remove_file(&path).unwrap();
            refused("a file that is missing");
            fs::create_dir(&path).unwrap();
            refused("a directory in place of a file");
            fs::remove_dir(&path).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
            refused("a link in place of a file");
            fs::remove_file(&path).unwrap();
        }
        fs::write(&path, whole).unwrap();
    }
    fs::write(copy.join("main/extra"), "x").unwrap();
    refused("a file too many");
    fs::remove_file(copy.join("main/extra")).unwrap();

    let manifest = copy.join("MANIFEST");
    let whole = fs::read_to_string(&manifest).unwrap();
    let (body, _) = whole.trim_end().rsplit_once('\n').unwrap();
    let hash = blake3::hash(b"x");
    for path in [
        "../escaped",
        "main/log/../../../escaped",
        "/etc/escaped",
        "main/log/0000000000000000.seg/x",
        "main/log/x.seg",
        ".hidden/partition",
        "main//partition",
        "main/blobs/ffffffff",
        "MANIFEST",
    ] {
        fs::write(
            &manifest,
            sealed(&format!("{body}\nfile 1 {hash} {path}\n")),
        )
        .unwrap();
        refused(path);
    }
    fs::write(
        &manifest,
        sealed(&format!(
            "{body}\nfile 99999999999999999999 {hash} main/log/00000000000000ff.seg\n"
        )),
    )
    .unwrap();
    refused("a size that is no number");
    let twice = body.lines().rfind(|line| line.starts_with("file")).unwrap();
    fs::write(&manifest, sealed(&format!("{body}\n{twice}\n"))).unwrap();
    refused("a file twice");
    fs::write(&manifest, &whole).unwrap();
    loom_log::restore(&copy, &target).unwrap();
}

// requirement: BACKUP-REFUSED
#[test]
fn a_backup_that_says_it_is_larger_than_the_disk_is_refused_before_anything_is_copied() {
    let dir = tempdir().unwrap();
    let mut bench = open(&dir.path().join("log"));
    bench.put_text("one");
    let copy = dir.path().join("copy");
    bench.log.backup(&copy).unwrap();
    let segment = copy.join("main/log/0000000000000000.seg");
    let huge: u64 = 8 << 40;
    fs::File::options()
        .write(true)
        .open(&segment)
        .unwrap()
        .set_len(huge)
        .unwrap();
    let manifest = copy.join("MANIFEST");
    let whole = fs::read_to_string(&manifest).unwrap();
    let lines: String = whole
        .lines()
        .filter(|line| !line.starts_with("seal"))
        .map(
            |line| match line.strip_suffix("main/log/0000000000000000.seg") {
                Some(start) => {
                    let hash = start.split(' ').nth(2).unwrap();
                    format!("file {huge} {hash} main/log/0000000000000000.seg\n")
                }
                None => format!("{line}\n"),
            },
        )
        .collect();
    fs::write(&manifest, sealed(&lines)).unwrap();
    let target = dir.path().join("target");
    let error = loom_log::restore(&copy, &target).unwrap_err();
    assert!(matches!(error, LogError::NoSpace { .. }), "{error}");
    assert!(!target.exists());
}

// requirement: BACKUP-ONLINE
#[test]
fn a_backup_of_a_damaged_log_is_not_made() {
    let dir = tempdir().unwrap();
    let log = dir.path().join("log");
    let mut bench = open(&log);
    for i in 0..50 {
        bench.put_text(&format!("text number {i}"));
    }
    let segment = log.join("main/log/0000000000000000.seg");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes
        .windows(14)
        .position(|w| w == b"text number 25")
        .unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let copy = dir.path().join("copy");
    let error = bench.log.backup(&copy).unwrap_err();
    assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
    assert!(!copy.exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
