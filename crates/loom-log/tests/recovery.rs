//! What recovery makes of the files that it finds.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test says what it expects by failing"
)]

use std::collections::BTreeMap;

use loom_log::format::{Batch, Form, HEADER_PAGE, Header, Mark, Place, Stored, put_frame};
use loom_log::{
    Ahead, Corrupt, End, Failure, File, Found, Known, Op, Recovery, Source, Unreadable, Why,
};
use proptest::prelude::*;

const BYTES: usize = 12 << 10;

#[derive(Clone, Default)]
struct Files {
    segments: BTreeMap<u64, Vec<u8>>,
    next: bool,
    /// Bodies whose chunks are there.
    chunks: Vec<Vec<u8>>,
    broken: bool,
}

impl Source for Files {
    fn segments(&self) -> Result<Vec<(u64, u64)>, Failure> {
        let sized = self
            .segments
            .iter()
            .map(|(first, bytes)| (*first, bytes.len() as u64));
        Ok(sized.collect())
    }

    fn read(&self, first: u64, at: u64, into: &mut [u8]) -> Result<usize, Failure> {
        if self.broken && at > 0 {
            return Err(Failure::Broken("input/output error".to_owned()));
        }
        let at = usize::try_from(at).unwrap();
        let bytes = self.segments[&first].get(at..).unwrap_or_default();
        // A file is read piece by piece.
        let count = bytes.len().min(into.len()).min(HEADER_PAGE);
        into[..count].copy_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn has_next(&self) -> Result<bool, Failure> {
        Ok(self.next)
    }

    fn chunks(&self, body: &[u8]) -> Option<Vec<Ahead>> {
        let file = File::Blobs(0);
        let bytes = body.to_vec();
        let ahead = Ahead { file, at: 0, bytes };
        self.chunks.contains(&body.to_vec()).then(|| vec![ahead])
    }
}

/// A frame: position, epoch, mark, and whether its one record is chunked.
type Spec = (u64, u32, Mark, bool);

fn segment(log: u64, first: u64, epoch: u32, frames: &[Spec]) -> Vec<u8> {
    let bytes = BYTES as u64;
    let header = Header {
        log,
        first,
        epoch,
        bytes,
    };
    let mut out = header.encode();
    for (position, epoch, mark, chunked) in frames {
        let mut batch = Batch::default();
        let form = if *chunked { Form::Chunked } else { Form::Whole };
        let body = format!("record {position}");
        assert!(batch.push(Stored {
            kind: 10,
            form,
            head: &[],
            body: body.as_bytes()
        }));
        let (position, epoch, mark) = (*position, *epoch, *mark);
        put_frame(
            &mut out,
            header.salt(),
            Place {
                position,
                epoch,
                mark,
            },
            &batch,
        );
    }
    out.resize(BYTES, 0);
    out
}

fn plain(positions: std::ops::Range<u64>) -> Vec<Spec> {
    let frame = |n: u64| (n, 1, Mark::Synced(n.saturating_sub(1)), false);
    positions.map(frame).collect()
}

/// Two segments of one log: positions 0 to 4 and 5 to 9, all but the last two known to be synced.
fn two() -> Files {
    let segments = [
        (0, segment(7, 0, 1, &plain(0..5))),
        (5, segment(7, 5, 1, &plain(5..10))),
    ];
    Files {
        segments: segments.into(),
        ..Files::default()
    }
}

fn known() -> Known {
    Known {
        from: 0,
        durable: 0,
        epoch: 0,
        unsynced_bytes: 1024,
        accept_loss: false,
    }
}

/// The positions that were found, and how it ended.
fn run(files: &Files, known: Known) -> (Vec<u64>, Result<End, Unreadable>) {
    let mut positions = Vec::new();
    let end = Recovery::new(known).run(files, &mut |found| match found {
        Found::Record { position, .. } => positions.push(position),
        Found::Gap { from, to } => positions.extend([from, to, u64::MAX]),
    });
    (positions, end)
}

fn why(files: &Files, known: Known) -> (File, u64, u64, Why) {
    match run(files, known).1 {
        Err(Unreadable::Corrupt(Corrupt {
            file,
            offset,
            position,
            why,
        })) => (file, offset, position, why),
        other => unreachable(&other),
    }
}

#[expect(clippy::panic, reason = "a test says what it expects by failing")]
fn unreachable(other: &Result<End, Unreadable>) -> ! {
    panic!("{other:?}")
}

// requirement: LOG-TORN
#[test]
fn a_log_is_read_from_any_position_to_its_end() {
    let (positions, end) = run(&two(), known());
    assert_eq!(positions, (0..10).collect::<Vec<_>>());
    let end = end.unwrap();
    assert_eq!(
        (end.log, end.end, end.epoch, end.torn_bytes),
        (Some(7), 10, 1, 0)
    );
    for from in 0..=10 {
        let (positions, again) = run(&two(), Known { from, ..known() });
        assert_eq!(positions, (from..10).collect::<Vec<_>>());
        assert_eq!(again.unwrap(), end);
    }
}

// requirement: LOG-TORN
#[test]
fn nothing_is_a_new_log_and_what_was_to_be_a_segment_is_removed() {
    let files = Files {
        next: true,
        ..Files::default()
    };
    let end = run(&files, known()).1.unwrap();
    assert_eq!(
        (end.log, end.end, end.epoch, end.active),
        (None, 0, 0, None)
    );
    assert_eq!(end.steps[0], Op::Remove { file: File::Next });
}

// requirement: LOG-TORN
#[test]
fn the_end_is_made_safe_before_the_log_goes_on() {
    let mut files = two();
    let last = files.segments.get_mut(&5).unwrap();
    last[HEADER_PAGE + 5 * 48 + 700] = 1;
    let end = run(&files, known()).1.unwrap();
    let at = end.active.unwrap().at;
    let file = File::Segment(5);
    assert_eq!(end.torn_bytes, HEADER_PAGE as u64 + 5 * 48 + 701 - at);
    let [
        Op::Write {
            at: floor, bytes, ..
        },
        Op::Zero { from, to, .. },
        Op::Sync { file: synced },
        _,
    ] = &end.steps[..]
    else {
        unreachable(&Ok(end));
    };
    // The floor is 8: the frames of 8 and 9 are written again.
    assert_eq!(*floor + bytes.len() as u64, at);
    assert_eq!(bytes.len(), 2 * 48);
    assert_eq!((*from, *to, *synced), (at, at + 1024, file));
}

// requirement: LOG-VERSION
#[test]
fn a_newer_version_is_refused_by_its_number_even_if_loss_is_accepted() {
    let mut files = two();
    let page = files.segments.get_mut(&5).unwrap();
    page[8] = 9;
    let crc = crc32c::crc32c(&page[..60]);
    page[60..64].copy_from_slice(&crc.to_le_bytes());
    for accept_loss in [false, true] {
        let error = run(
            &files,
            Known {
                accept_loss,
                ..known()
            },
        )
        .1
        .unwrap_err();
        let file = File::Segment(5);
        assert_eq!(error, Unreadable::Newer { file, version: 9 });
    }
}

// requirement: LOG-DAMAGE
#[test]
fn a_segment_that_is_gone_is_missed() {
    let mut files = two();
    files.segments.remove(&0);
    assert_eq!(why(&files, known()), (File::Segment(0), 0, 0, Why::Missing));
    assert_eq!(run(&files, Known { from: 5, ..known() }).0, [5, 6, 7, 8, 9]);

    let mut files = two();
    files.segments.insert(10, segment(7, 10, 1, &plain(10..12)));
    files.segments.remove(&5);
    let (file, _, position, why_) = why(&files, known());
    assert_eq!((file, position, why_), (File::Segment(0), 5, Why::Damaged));
}

// requirement: LOG-DAMAGE
#[test]
fn a_log_that_ends_before_what_is_known_to_be_synced_is_refused() {
    let durable = Known {
        durable: 10,
        ..known()
    };
    assert!(run(&two(), durable).1.is_ok());
    let mut files = two();
    files.segments.remove(&5);
    assert_eq!(why(&files, durable).2, 5);
    files.segments.clear();
    assert_eq!(why(&files, durable), (File::Segment(0), 0, 0, Why::Missing));
    let accepted = Known {
        accept_loss: true,
        epoch: 4,
        ..durable
    };
    let (positions, end) = run(&files, accepted);
    assert_eq!(positions, [0, 10, u64::MAX]);
    let end = end.unwrap();
    assert_eq!((end.end, end.epoch), (10, 4));
}

// requirement: LOG-DAMAGE
#[test]
fn a_segment_of_another_log_or_of_an_earlier_life_or_under_another_name_is_refused() {
    let mut files = two();
    files.segments.insert(10, segment(8, 10, 1, &[]));
    assert_eq!(
        why(&files, known()),
        (File::Segment(10), 0, 10, Why::Foreign)
    );

    let mut files = two();
    let copy = files.segments[&5].clone();
    files.segments.insert(10, copy);
    assert_eq!(
        why(&files, known()),
        (File::Segment(10), 0, 10, Why::Misnamed)
    );

    let mut files = two();
    files.segments.insert(0, segment(7, 0, 2, &plain(0..5)));
    assert_eq!(why(&files, known()).3, Why::Stale);

    // A first segment that holds more than there is place for.
    let mut files = two();
    files.segments.insert(0, segment(7, 0, 1, &plain(0..7)));
    assert_eq!(why(&files, known()).3, Why::Stale);
}

// requirement: LOG-TORN
#[test]
fn a_record_whose_chunks_are_not_there_is_torn_if_it_was_not_synced() {
    let mut frames = plain(0..4);
    frames[3].3 = true;
    let mut files = Files {
        segments: [(0, segment(7, 0, 1, &frames))].into(),
        ..Files::default()
    };
    let (positions, end) = run(&files, known());
    assert_eq!(positions, [0, 1, 2]);
    assert_eq!(end.unwrap().end, 3);
    files.chunks.push(b"record 3".to_vec());
    let (positions, end) = run(&files, known());
    assert_eq!(positions, [0, 1, 2, 3]);
    let end = end.unwrap();
    let blobs = |op: &&Op| {
        matches!(
            op,
            Op::Write {
                file: File::Blobs(0),
                ..
            } | Op::Sync {
                file: File::Blobs(0)
            }
        )
    };
    assert_eq!(
        end.steps.iter().filter(blobs).count(),
        2,
        "they are made safe as well"
    );
    // One that was synced is read, and its reader says what is missing.
    files.chunks.clear();
    assert_eq!(
        run(
            &files,
            Known {
                durable: 4,
                ..known()
            }
        )
        .0,
        [0, 1, 2, 3]
    );
}

// requirement: LOG-DAMAGE
#[test]
fn a_length_of_gigabytes_is_damage_and_takes_no_memory() {
    let mut files = two();
    let first = files.segments.get_mut(&0).unwrap();
    first[HEADER_PAGE..HEADER_PAGE + 4].copy_from_slice(&0xffff_fff8_u32.to_le_bytes());
    let place = (File::Segment(0), HEADER_PAGE as u64, 0, Why::Damaged);
    assert_eq!(why(&files, known()), place);
}

// requirement: LOG-DAMAGE
#[test]
fn a_file_that_cannot_be_read_is_named_with_the_place() {
    let files = Files {
        broken: true,
        ..two()
    };
    let failure = Failure::Broken("input/output error".to_owned());
    let file = Some(File::Segment(0));
    let offset = HEADER_PAGE as u64;
    assert_eq!(
        run(&files, known()).1,
        Err(Unreadable::Failed {
            file,
            offset,
            failure
        })
    );
}

// requirement: LOG-LOSS
#[test]
fn damage_that_is_accepted_is_a_gap_that_stays() {
    let mut files = two();
    let first = files.segments.get_mut(&0).unwrap();
    first[HEADER_PAGE + 2 * 48 + 30] ^= 1;
    assert_eq!(why(&files, known()).2, 2);
    let (positions, end) = run(
        &files,
        Known {
            accept_loss: true,
            ..known()
        },
    );
    assert_eq!(positions, [0, 1, 2, 3, u64::MAX, 3, 4, 5, 6, 7, 8, 9]);
    let end = end.unwrap();
    assert_eq!(end.lost, [(2, 3)]);
    for step in &end.steps {
        if let Op::Write {
            file: File::Segment(first),
            at,
            bytes,
        } = step
        {
            let at = usize::try_from(*at).unwrap();
            let segment = files.segments.get_mut(first).unwrap();
            segment[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
    let (again, end) = run(&files, known());
    assert_eq!(again, positions);
    assert_eq!(end.unwrap().lost, []);
}

fn noise() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..3000),
        // A good segment with noise over a part of it.
        (
            prop::collection::vec(any::<u8>(), 1..300),
            any::<prop::sample::Index>(),
            0..20_u64
        )
            .prop_map(|(noise, at, frames)| {
                let mut bytes = segment(7, 0, 1, &plain(0..frames));
                let at = at.index(HEADER_PAGE + 1200);
                bytes[at..at + noise.len()].copy_from_slice(&noise);
                bytes
            }),
    ]
}

proptest! {
    // requirement: LOG-DAMAGE
    #[test]
    fn no_files_make_recovery_panic_or_find_what_was_not_written(
        first in noise(), second in noise(), at in 0..6_u64, accept_loss: bool, durable in 0..12_u64
    ) {
        let files = Files { segments: [(0, first), (at, second)].into(), ..Files::default() };
        let mut wrong = None;
        let known = Known { accept_loss, durable, ..known() };
        let end = Recovery::new(known).run(&files, &mut |found| {
            if let Found::Record { position, record, .. } = found
                && record.body != format!("record {position}").as_bytes()
            {
                wrong = Some(position);
            }
        });
        prop_assert_eq!(wrong, None);
        if let Ok(end) = end {
            prop_assert!(end.end >= durable);
        }
    }
}
