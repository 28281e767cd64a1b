//! The log on a real directory: what is answered is there, in order, in this life and the next.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test says what it expects by failing"
)]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod common;

use std::sync::Arc;

use common::{LONG, boot, noise, open, small, step, text, texts, tree, try_open};
use loom_core::Level;
use loom_core::record::{ClockJump, Outgoing, Record};
use loom_log::{Log, LogError, Options, ReadLimit, Reader};
use tempfile::tempdir;

// requirement: LOG-FILES
#[test]
fn what_was_answered_is_found_by_the_next_life_in_its_order() {
    let dir = tempdir().unwrap();
    let mut first = open(dir.path());
    assert_eq!((first.opened.epoch, first.opened.end.n), (1, 0));
    let sent: Vec<String> = (0..500).map(|i| format!("record {i}")).collect();
    let tickets: Vec<u64> = sent
        .iter()
        .zip([Level::Accepted, Level::Os, Level::Disk].iter().cycle())
        .map(|(text, level)| first.send(*level, step(text.as_bytes())))
        .collect();
    let places: Vec<u64> = tickets
        .iter()
        .map(|t| first.inbox.wait(*t).unwrap().n)
        .collect();
    assert_eq!(places, (1..=500).collect::<Vec<u64>>());
    assert_eq!(first.texts(), sent);
    first.close();

    let second = open(dir.path());
    assert_eq!(texts(&second.found), sent);
    assert_eq!(
        (
            second.opened.epoch,
            second.opened.torn_bytes,
            second.opened.clean
        ),
        (2, 0, true)
    );
    assert!(matches!(&second.found.last().unwrap().1, Record::Epoch(epoch) if epoch.epoch == 2));
    assert_eq!(second.texts(), sent);
}

// requirement: LOG-POSITIONS
#[test]
fn the_records_of_a_batch_have_positions_without_a_gap_and_the_answer_names_the_first() {
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    let ticket = bench.send_all(Level::Disk, vec![step(b"a"), step(b"b"), step(b"c")]);
    let at = bench.inbox.wait(ticket).unwrap();
    for (n, wanted) in (at.n..).zip(["a", "b", "c"]) {
        let (place, record) = bench.log.get(bench.partition, n).unwrap().unwrap();
        assert_eq!(
            (place.n, place.epoch, text(&record).unwrap().as_str()),
            (n, 1, wanted)
        );
    }
    assert!(bench.log.get(bench.partition, at.n + 3).unwrap().is_none());
}

// requirement: LOG-FILES
#[test]
fn a_log_goes_on_over_many_segments() {
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    let body = noise(1, 15_000);
    let tickets: Vec<u64> = (0..2_000)
        .map(|_| bench.send(Level::Os, step(&body)))
        .collect();
    for ticket in tickets {
        bench.inbox.wait(ticket).unwrap();
    }
    let segments = tree(&dir.path().join("main/log"));
    assert!(segments.len() >= 4, "{segments:?}");
    assert_eq!(bench.texts().len(), 2_000);
    let from_the_middle = bench
        .log
        .read(bench.partition, 1_234, ReadLimit::default())
        .unwrap();
    assert_eq!(from_the_middle.records[0].0.n, 1_234);
    bench.close();
    drop(bench);
    let again = open(dir.path());
    assert_eq!(again.found.len(), 2_000 + 3);
}

// requirement: LOG-READ
#[test]
fn a_read_stops_at_its_limits_and_goes_on_where_it_stopped() {
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    let ticket = bench.send_all(Level::Disk, (0..10).map(|i| step(&[i; 100])).collect());
    let at = bench.inbox.wait(ticket).unwrap();
    let mut from = at.n;
    let mut seen = Vec::new();
    let three = ReadLimit {
        records: 3,
        bytes: 1 << 20,
        only: None,
    };
    loop {
        let batch = bench.log.read(bench.partition, from, three).unwrap();
        assert!(batch.records.len() <= 3);
        seen.extend(batch.records.iter().map(|(at, _)| at.n));
        from = batch.next;
        if batch.at_end {
            break;
        }
    }
    assert_eq!(seen, (at.n..at.n + 10).collect::<Vec<u64>>());
    let few_bytes = ReadLimit {
        records: 100,
        bytes: 150,
        only: None,
    };
    let batch = bench.log.read(bench.partition, at.n, few_bytes).unwrap();
    assert_eq!(batch.records.len(), 2);
    let behind = bench
        .log
        .read(bench.partition, at.n + 11, three)
        .unwrap_err();
    assert!(matches!(behind, LogError::Foreign { .. }), "{behind}");
}

// requirement: LOG-READ
#[test]
fn a_read_of_one_kind_passes_the_others_over() {
    let kind = step(b"").kind();
    let memory = Log::memory(&Options::default());
    let opened = memory.partition("main", &boot(), &mut |_| {}).unwrap();
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    let jump = || {
        Record::ClockJump(ClockJump {
            from_ms: 1,
            to_ms: 2,
        })
    };
    let records = || vec![jump(), step(b"a"), jump(), jump(), step(b"b"), jump()];
    let ticket = bench.send_all(Level::Disk, records());
    bench.inbox.wait(ticket).unwrap();
    let out = Outgoing {
        partition: opened.partition,
        ticket: None,
        level: Level::Disk,
        batch: records().into(),
    };
    memory.append(vec![out]).unwrap();
    for (log, partition) in [(&bench.log, bench.partition), (&memory, opened.partition)] {
        let found = |from, most| {
            let batch = log.read(partition, from, most).unwrap();
            let places: Vec<u64> = batch.records.iter().map(|(at, _)| at.n).collect();
            (places, batch.next, batch.at_end)
        };
        let whole = log.read(partition, 0, ReadLimit::default()).unwrap();
        let steps = whole.records.iter().filter(|(_, r)| r.kind() == kind);
        let steps: Vec<u64> = steps.map(|(at, _)| at.n).collect();
        let (first, second) = (vec![steps[0]], vec![steps[1]]);
        let mut most = ReadLimit {
            only: Some(kind),
            ..ReadLimit::default()
        };
        assert_eq!(found(0, most), (steps, whole.next, true));
        most.records = 1;
        assert_eq!(found(0, most).0, first);
        assert_eq!(found(first[0] + 1, most).0, second);
    }
}

// requirement: LOG-READ
#[test]
fn a_reader_beside_the_engine_sees_what_is_durable_and_takes_no_lock() {
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    let durable = bench.put_text("durable");
    let mut reader = Reader::open(dir.path()).unwrap();
    assert_eq!(reader.namespaces(), ["main"]);
    let seen: Vec<_> = reader
        .records("main", 0)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(seen.last().unwrap().0, durable);
    assert_eq!(texts(&seen), ["durable"]);
    assert_eq!(reader.bounds("main").unwrap(), (0, durable.n + 1));

    let large = noise(3, 100_000);
    let at = bench.put(Level::Disk, step(&large)).unwrap();
    reader.refresh().unwrap();
    let (_, record) = reader.get("main", at.n).unwrap().unwrap();
    assert_eq!(record.body(), large);
    assert_eq!(reader.verify().unwrap()[0].records, 3);
    bench.close();
    assert_eq!(reader.records("main", 0).unwrap().count(), 4);
}

// requirement: LOG-READ
#[test]
fn a_follower_sees_each_record_once_while_the_log_grows() {
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    let reader = Reader::open(dir.path()).unwrap();
    let mut next = 0;
    let mut seen = Vec::new();
    for i in 0..200 {
        let wanted = bench.put_text(&format!("{i}"));
        let batch = reader.read("main", next, ReadLimit::default()).unwrap();
        assert_eq!(batch.next, wanted.n + 1);
        seen.extend(texts(&batch.records));
        next = batch.next;
    }
    assert_eq!(seen, (0..200).map(|i| i.to_string()).collect::<Vec<_>>());
}

// requirement: LOG-BOUNDED
#[test]
fn more_than_may_wait_is_refused_at_once_and_taken_when_there_is_room() {
    let dir = tempdir().unwrap();
    let options = Options {
        pending_bytes: 200_000,
        ..small()
    };
    let mut bench = try_open(dir.path(), options, &boot()).unwrap();
    let out = |n: u64| loom_core::record::Outgoing {
        ticket: Some(loom_core::Ticket(n)),
        partition: 1,
        level: Level::Disk,
        batch: vec![step(&[0; 10_000])].into(),
    };
    let mut taken = Vec::new();
    let refused = (1_000..).find_map(|n| match bench.log.append(vec![out(n)]) {
        Ok(_) => {
            taken.push(n);
            None
        }
        Err(error) => Some(error),
    });
    let error = loom_core::Error::from(refused.unwrap());
    assert_eq!(
        (error.code, error.limit),
        (loom_core::Code::Exhausted, Some("log_pending_bytes"))
    );
    for n in taken {
        bench.inbox.wait(n).unwrap();
    }
    assert_eq!(bench.log.stats().refused, 1);
    bench.put_text("there is room again");
}

// requirement: LOG-BOUNDED
#[test]
fn a_body_over_the_limit_is_refused_by_name_and_the_others_go_on() {
    let dir = tempdir().unwrap();
    let options = Options {
        body_bytes: 1 << 20,
        ..small()
    };
    let mut bench = try_open(dir.path(), options, &boot()).unwrap();
    let most = noise(1, 1 << 20);
    let at = bench.put(Level::Disk, step(&most)).unwrap();
    let error = bench
        .put(Level::Disk, step(&noise(2, (1 << 20) + 1)))
        .unwrap_err();
    assert_eq!(
        (error.code, error.limit),
        (loom_core::Code::InvalidParams, Some("log_body_bytes"))
    );
    bench.put_text("next");
    let (_, record) = bench.log.get(bench.partition, at.n).unwrap().unwrap();
    assert_eq!(record.body(), most);
}

// requirement: LOG-CLOSE
#[test]
fn what_was_taken_before_a_close_is_answered_and_what_comes_after_is_refused() {
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    let tickets: Vec<u64> = (0..300)
        .map(|_| bench.send(Level::Disk, step(b"x")))
        .collect();
    bench.close();
    for ticket in tickets {
        bench.inbox.wait(ticket).unwrap();
    }
    let late = bench.log.append(Vec::new()).unwrap_err();
    assert_eq!(late, LogError::Closed);
    bench.log.close(LONG).unwrap();
    let again = open(dir.path());
    assert!(again.opened.clean);
    assert_eq!(texts(&again.found).len(), 300);
}

// requirement: LOG-CLOSE
#[test]
fn the_last_clone_closes_the_log_and_lets_go_of_the_directory() {
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.put_text("kept");
    let clone = bench.log.clone();
    drop(bench);
    clone.flush().unwrap();
    drop(clone);
    let again = open(dir.path());
    assert!(again.opened.clean);
}

// requirement: LOG-CLOCK
#[test]
fn a_jump_of_the_wall_clock_is_a_record_and_the_clock_of_the_log_never_goes_back() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let dir = tempdir().unwrap();
    let wall = Arc::new(AtomicU64::new(10_000_000));
    let shown = Arc::clone(&wall);
    let clock: loom_log::Clock = Arc::new(move || shown.load(Ordering::Relaxed));
    let options = Options { clock, ..small() };
    let mut bench = try_open(dir.path(), options, &boot()).unwrap();
    bench.put_text("before");
    wall.fetch_add(86_400_000, Ordering::Relaxed);
    bench.put_text("a day on");
    let highest = bench.log.now_ms();
    assert_eq!(highest, 96_400_000);
    wall.fetch_sub(3_600_000, Ordering::Relaxed);
    bench.put_text("an hour back");
    wall.fetch_add(1_000, Ordering::Relaxed);
    bench.put_text("a second on");
    assert_eq!(bench.log.now_ms(), highest);
    let all = bench
        .log
        .read(bench.partition, 0, ReadLimit::default())
        .unwrap();
    let jumps: Vec<i64> = all
        .records
        .iter()
        .filter_map(|(_, record)| match record {
            Record::ClockJump(jump) => Some(jump.to_ms.cast_signed() - jump.from_ms.cast_signed()),
            _ => None,
        })
        .collect();
    assert_eq!(jumps.len(), 2, "{jumps:?}");
    assert!((86_390_000..=86_400_000).contains(&jumps[0]), "{jumps:?}");
    assert!((-3_610_000..=-3_590_000).contains(&jumps[1]), "{jumps:?}");
    assert_eq!(bench.log.stats().clock_jumps, 2);
}

// requirement: LOG-CLOCK
#[test]
fn a_log_that_is_opened_before_its_last_record_notes_the_jump() {
    let dir = tempdir().unwrap();
    let late = loom_log::Boot {
        wall_ms: 10_000_000,
        ..boot()
    };
    try_open(dir.path(), small(), &late).unwrap().close();
    let again = open(dir.path());
    let jump = again.found.iter().find_map(|(_, record)| match record {
        Record::ClockJump(jump) => Some((jump.from_ms, jump.to_ms)),
        _ => None,
    });
    assert_eq!(jump, Some((10_000_000, 1_000)));
    assert_eq!(again.log.now_ms(), 10_000_000);
}

// requirement: LOG-PARTITIONS
#[test]
fn namespaces_have_logs_of_their_own_under_numbers_that_stay() {
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    let other = bench.log.partition("other", &boot(), &mut |_| {}).unwrap();
    assert_eq!((bench.partition, other.partition), (1, 2));
    bench.put_text("main's");
    bench.partition = other.partition;
    assert_eq!(bench.put_text("other's").n, 1);
    assert_eq!(bench.texts(), ["other's"]);
    bench.close();
    drop(bench);
    let again = open(dir.path());
    assert_eq!(again.partition, 1);
    assert_eq!(again.texts(), ["main's"]);
    let other = again.log.partition("other", &boot(), &mut |_| {}).unwrap();
    assert_eq!(other.partition, 2);
    for bad in ["", "..", "a/b", "LOCK", "format", ".x"] {
        let refused = again.log.partition(bad, &boot(), &mut |_| {}).unwrap_err();
        assert!(
            matches!(refused, LogError::NotALog { .. }),
            "{bad}: {refused}"
        );
    }
}

// requirement: LOG-CLOSE
#[test]
fn a_partition_that_is_left_is_closed_well_and_opens_again() {
    let dir = tempdir().unwrap();
    let mut bench = open(dir.path());
    bench.put_text("one");
    let twice = bench.log.partition("main", &boot(), &mut |_| {});
    assert!(twice.is_err());
    bench.log.leave(bench.partition).unwrap();
    assert!(bench.put(Level::Os, step(b"closed")).is_err());
    let mut found = Vec::new();
    let again = bench.log.partition("main", &boot(), &mut |recovered| {
        if let loom_log::Recovered::Record(at, record) = recovered {
            found.push((at, record));
        }
    });
    let again = again.unwrap();
    assert!(again.clean);
    assert_eq!((again.partition, again.epoch), (bench.partition, 2));
    assert_eq!(texts(&found), ["one"]);
    bench.put_text("two");
}
