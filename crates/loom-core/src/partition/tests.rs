use std::sync::Arc;

use super::Partition;
use crate::envelope::Position;
use crate::limits::Limits;
use crate::record::{Consumer, Dead, Epoch, Progress, Record, Redriven, Started, State, Waits};

fn at(n: u64) -> Position {
    Position {
        partition: 1,
        epoch: 1,
        n,
    }
}

fn life() -> Vec<Record> {
    let consumer = 1;
    let begun = |n, attempt| {
        Record::Started(Started {
            consumer,
            n,
            attempt,
            session: 7,
            client: Vec::new(),
        })
    };
    vec![
        Record::Epoch(Epoch {
            epoch: 1,
            at_ms: 5,
            ..Epoch::default()
        }),
        Record::Consumer(Consumer {
            consumer,
            group: "a".into(),
            filters: vec!["q.>".into()],
            start: super::START_NOW,
            at_ms: 6,
        }),
        begun(10, 1),
        Record::Waits(Waits {
            consumer,
            n: 10,
            attempt: 1,
            until_ms: 900,
            code: 7,
            message: "no".into(),
        }),
        begun(12, 1),
        Record::Progress(Progress {
            consumer,
            floor: 14,
            acked: vec![12, 15],
            open: vec![10, 13],
        }),
        Record::Dead(Dead {
            consumer,
            n: 13,
            attempt: 20,
            at_ms: 40,
            ..Dead::default()
        }),
        Record::State(
            State {
                agent: "a".into(),
                key: "k".into(),
                ..State::default()
            },
            vec![1, 2].into(),
        ),
    ]
}

// requirement: DUR-FOLD
#[test]
fn a_partition_that_was_restored_anywhere_ends_as_one_that_was_not() {
    let limits = Limits::default();
    let records = life();
    let mut whole = Partition::new(&limits);
    for (n, record) in (1..).zip(&records) {
        whole.apply(at(n), record);
    }
    for cut in 0..=records.len() {
        let mut part = Partition::new(&limits);
        for (n, record) in (1..).zip(&records).take(cut) {
            part.apply(at(n), record);
        }
        let mut again = Partition::restore(&part.snapshot(), &limits).unwrap();
        assert_eq!(again.hash(), part.hash());
        for (n, record) in (1..).zip(&records).skip(cut) {
            again.apply(at(n), record);
        }
        assert_eq!(again.hash(), whole.hash(), "cut at {cut}");
    }
}

// requirement: DUR-FOLD
#[test]
fn what_is_open_is_what_was_listed_or_begun_and_not_done() {
    let mut part = Partition::new(&Limits::default());
    for (n, record) in (1..).zip(life()) {
        part.apply(at(n), &record);
    }
    let consumer = part.consumer_of("a").unwrap();
    assert_eq!((consumer.start, consumer.floor), (2, 14));
    let open: Vec<(u64, u32)> = consumer.open.iter().map(|(n, b)| (*n, b.attempt)).collect();
    assert_eq!(open, [(10, 1)]);
    assert_eq!(consumer.acked.iter().copied().collect::<Vec<_>>(), [15]);
    assert_eq!(part.needs(0), Some(10));
    assert_eq!(part.dead().map(|letter| letter.n).collect::<Vec<_>>(), [13]);
    part.apply(at(20), &Record::Redriven(Redriven { consumer: 1, n: 13 }));
    assert_eq!(part.dead().count(), 0);
    assert_eq!(part.states().next().unwrap().body, Arc::from([1, 2]));
}
