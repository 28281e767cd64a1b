//! What the log machine hands out, and when it answers.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

use loom_core::{Level, Ticket};
use loom_log::format::{Batch, Form, Header, Stored};
use loom_log::{Ahead, Answered, Append, Bounds, End, Failure, File, Machine, Op, OpId, Refusal};

const BOUNDS: Bounds = Bounds {
    segment_bytes: 16 << 10,
    reserve_bytes: 256,
    batch_bytes: 4 << 10,
    commit_bytes: 4 << 10,
    unsynced_bytes: 8 << 10,
    pending_bytes: 16 << 10,
};

fn nothing() -> End {
    End {
        log: None,
        end: 0,
        epoch: 0,
        active: None,
        torn_bytes: 0,
        closed: false,
        lost: Vec::new(),
        steps: Vec::new(),
    }
}

fn batch(records: usize, length: usize) -> Batch {
    let mut batch = Batch::default();
    for _ in 0..records {
        assert!(batch.push(Stored {
            kind: 10,
            form: Form::Whole,
            head: &[1],
            body: &vec![7; length],
        }));
    }
    batch
}

struct Driven {
    machine: Machine,
    under_way: Vec<(OpId, Op)>,
    asked: u64,
}

impl Driven {
    /// A machine whose first segment is there.
    fn open() -> Self {
        let machine = Machine::new(BOUNDS, 77, &nothing());
        let mut driven = Self {
            machine,
            under_way: Vec::new(),
            asked: 0,
        };
        driven.append(Level::Disk, batch(1, 8)).unwrap();
        driven.finish_all();
        assert_eq!(driven.answers(), [(1, Ok(0))]);
        driven
    }

    fn append(&mut self, level: Level, batch: Batch) -> Result<(), Refusal> {
        self.asked += 1;
        self.machine.append(Append {
            ticket: Some(Ticket(self.asked)),
            level,
            batch,
            ahead: Vec::new(),
            opens: false,
        })
    }

    fn ops(&mut self) -> Vec<Op> {
        while let Some(next) = self.machine.next_op() {
            self.under_way.push(next);
        }
        self.under_way.iter().map(|(_, op)| op.clone()).collect()
    }

    fn finish(&mut self, which: impl Fn(&Op) -> bool, result: Result<(), Failure>) {
        self.ops();
        let at = self.under_way.iter().position(|(_, op)| which(op));
        let (id, _) = self
            .under_way
            .remove(at.unwrap_or_else(|| panic!("not under way")));
        self.machine.done(id, result);
        self.ops();
    }

    fn finish_all(&mut self) {
        while !self.ops().is_empty() {
            self.finish(|_| true, Ok(()));
        }
    }

    fn answers(&mut self) -> Vec<(u64, Result<u64, Refusal>)> {
        let mut answers = Vec::new();
        self.machine.take_answers(&mut answers);
        let plain = |answer: Answered| (answer.ticket.0, answer.result);
        answers.into_iter().map(plain).collect()
    }
}

fn is_write(op: &Op) -> bool {
    matches!(op, Op::Write { .. })
}

fn is_sync(op: &Op) -> bool {
    matches!(op, Op::Sync { .. })
}

// requirement: LOG-ACKED
#[test]
fn a_new_log_names_its_first_segment_only_when_its_header_is_synced() {
    let mut machine = Machine::new(BOUNDS, 77, &nothing());
    assert!(machine.next_op().is_none());
    let append = Append {
        ticket: Some(Ticket(1)),
        level: Level::Disk,
        batch: batch(1, 8),
        ahead: Vec::new(),
        opens: true,
    };
    machine.append(append).unwrap();
    let mut seen = Vec::new();
    while let Some((id, op)) = machine.next_op() {
        assert!(machine.next_op().is_none(), "one thing at a time");
        machine.done(id, Ok(()));
        seen.push(op);
    }
    assert_eq!(
        seen.iter().map(short).collect::<Vec<_>>(),
        [
            "create log/next.tmp",
            "write log/next.tmp at 0",
            "sync log/next.tmp",
            "rename log/next.tmp",
            "sync directory",
            "write log/0000000000000000.seg at 4096",
            "sync log/0000000000000000.seg",
        ]
    );
    let Some(Op::Write { bytes, .. }) = seen.get(1) else {
        panic!("{seen:?}")
    };
    let header = Header::decode(bytes).unwrap();
    assert_eq!((header.log, header.first, header.epoch), (77, 0, 1));
}

fn short(op: &Op) -> String {
    match op {
        Op::Create { file, .. } => format!("create {file}"),
        Op::Write { file, at, .. } => format!("write {file} at {at}"),
        Op::Zero { file, .. } => format!("zero {file}"),
        Op::Sync { file } => format!("sync {file}"),
        Op::Rename { from, .. } => format!("rename {from}"),
        Op::Remove { file } => format!("remove {file}"),
        Op::SyncDirectory { .. } => "sync directory".to_owned(),
    }
}

// requirement: LOG-ACKED
#[test]
fn what_comes_during_a_sync_is_one_write_and_one_sync() {
    let mut log = Driven::open();
    log.append(Level::Disk, batch(1, 8)).unwrap();
    log.finish(is_write, Ok(()));
    for _ in 0..10 {
        log.append(Level::Disk, batch(2, 8)).unwrap();
    }
    assert!(matches!(log.ops()[..], [Op::Sync { .. }]));
    log.finish(is_sync, Ok(()));
    assert_eq!(log.answers(), [(2, Ok(1))]);
    assert!(matches!(log.ops()[..], [Op::Write { .. }]));
    log.finish(is_write, Ok(()));
    assert!(log.answers().is_empty());
    log.finish(is_sync, Ok(()));
    let answers: Vec<_> = (0..10).map(|i| (3 + i, Ok(2 + 2 * i))).collect();
    assert_eq!(log.answers(), answers);
    assert!(log.machine.is_idle());
}

// requirement: LOG-ACKED
#[test]
fn what_comes_during_a_write_is_synced_with_it() {
    let mut log = Driven::open();
    for _ in 0..10 {
        log.append(Level::Disk, batch(1, 8)).unwrap();
    }
    log.finish(is_write, Ok(()));
    assert!(
        matches!(log.ops()[..], [Op::Write { .. }]),
        "the nine others"
    );
    log.finish(is_write, Ok(()));
    assert!(matches!(log.ops()[..], [Op::Sync { .. }]));
    log.finish(is_sync, Ok(()));
    assert_eq!(log.answers().len(), 10);
}

// requirement: LOG-ACKED
#[test]
fn a_sync_is_not_put_off_for_ever_by_what_comes() {
    let mut log = Driven::open();
    let mut writes = 0;
    log.append(Level::Disk, batch(1, 8)).unwrap();
    while log.ops().iter().any(is_write) {
        log.append(Level::Disk, batch(1, 8)).unwrap();
        log.finish(is_write, Ok(()));
        writes += 1;
    }
    assert_eq!(writes, 4);
}

// requirement: LOG-ACKED
#[test]
fn who_waits_for_the_write_only_does_not_wait_for_a_sync_under_way() {
    let mut log = Driven::open();
    log.append(Level::Disk, batch(1, 8)).unwrap();
    log.finish(is_write, Ok(()));
    log.append(Level::Disk, batch(1, 8)).unwrap();
    log.append(Level::Os, batch(1, 8)).unwrap();
    log.finish(is_write, Ok(()));
    assert_eq!(log.answers(), [(4, Ok(3))]);
    // This sync began before the second write had ended.
    log.finish(is_sync, Ok(()));
    assert_eq!(log.answers(), [(2, Ok(1))]);
    log.finish(is_sync, Ok(()));
    assert_eq!(log.answers(), [(3, Ok(2))]);
}

// requirement: LOG-ACKED
#[test]
fn what_nobody_waits_for_is_synced_when_it_is_much_or_when_that_is_asked_for() {
    let mut log = Driven::open();
    log.append(Level::Os, batch(1, 8)).unwrap();
    log.finish_all();
    assert_eq!((log.machine.written(), log.machine.synced()), (2, 1));
    log.machine.flush();
    log.finish_all();
    assert_eq!(log.machine.synced(), 2);
    log.append(Level::Os, batch(1, 3000)).unwrap();
    log.append(Level::Os, batch(1, 3000)).unwrap();
    log.finish_all();
    assert_eq!(log.machine.synced(), 4);
}

// requirement: LOG-FENCED
#[test]
fn after_a_failed_sync_all_is_refused_and_nothing_more_is_done() {
    let mut log = Driven::open();
    log.append(Level::Disk, batch(1, 8)).unwrap();
    log.finish(is_write, Ok(()));
    log.append(Level::Disk, batch(1, 8)).unwrap();
    let failure = Failure::Broken("input/output error".to_owned());
    log.finish(is_sync, Err(failure.clone()));
    let refusal = Refusal::Fenced(failure);
    assert_eq!(
        log.answers(),
        [(2, Err(refusal.clone())), (3, Err(refusal.clone()))]
    );
    assert_eq!(log.append(Level::Os, batch(1, 8)), Err(refusal));
    assert!(log.ops().is_empty());
    log.machine.close(batch(1, 0));
    assert!(log.ops().is_empty() && !log.machine.is_closed());
}

// requirement: LOG-FENCED
#[test]
fn after_a_failed_write_what_was_synced_before_is_not_answered_by_it() {
    let mut log = Driven::open();
    log.append(Level::Disk, batch(1, 8)).unwrap();
    log.finish(is_write, Ok(()));
    log.append(Level::Os, batch(1, 8)).unwrap();
    log.finish(is_write, Err(Failure::Broken("no device".to_owned())));
    let refused =
        |(_, result): &(u64, Result<u64, Refusal>)| matches!(result, Err(Refusal::Fenced(_)));
    let answers = log.answers();
    assert_eq!(answers.len(), 2);
    assert!(answers.iter().all(refused));
    log.finish(is_sync, Ok(()));
    assert!(log.answers().is_empty());
}

// requirement: LOG-FULL
#[test]
fn a_full_disk_refuses_what_needs_a_new_segment_and_takes_it_when_there_is_space() {
    let mut log = Driven::open();
    let is_create = |op: &Op| matches!(op, Op::Create { .. });
    let mut taken = 0;
    let refused = loop {
        log.append(Level::Disk, batch(1, 1500)).unwrap();
        while !log.ops().is_empty() {
            let full = log.ops().iter().any(is_create);
            let result = if full { Err(Failure::NoSpace) } else { Ok(()) };
            log.finish(|op| !full || is_create(op), result);
        }
        match log.answers().pop().unwrap().1 {
            Ok(_) => taken += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refused, Refusal::NoRoom(Failure::NoSpace));
    assert!(taken >= 6, "what was prepared is used: {taken}");
    let before = log.machine.written();
    log.append(Level::Disk, batch(1, 1500)).unwrap();
    log.finish_all();
    assert_eq!(log.answers().pop().unwrap().1, Ok(before));
    assert_eq!(log.machine.active().unwrap().first, before);
}

// requirement: LOG-FULL
#[test]
fn the_records_that_open_and_close_a_log_fit_on_a_full_disk() {
    let mut log = Driven::open();
    loop {
        log.append(Level::Disk, batch(1, 100)).unwrap();
        while let Some(op) = log.ops().pop() {
            let make = matches!(op, Op::Create { .. });
            let result = if make { Err(Failure::NoSpace) } else { Ok(()) };
            log.finish(|other| *other == op, result);
        }
        if log.answers().pop().unwrap().1.is_err() {
            break;
        }
    }
    let active = log.machine.active().unwrap();
    let found = End {
        log: Some(77),
        end: log.machine.synced(),
        epoch: 1,
        active: Some(active),
        ..nothing()
    };
    let mut again = Driven {
        machine: Machine::new(BOUNDS, 1, &found),
        under_way: Vec::new(),
        asked: 0,
    };
    let opening = Append {
        ticket: Some(Ticket(9)),
        level: Level::Disk,
        batch: batch(1, 40),
        ahead: Vec::new(),
        opens: true,
    };
    again.machine.append(opening).unwrap();
    let no_space = |op: &Op| matches!(op, Op::Create { .. });
    while let Some(op) = again.ops().pop() {
        let result = if no_space(&op) {
            Err(Failure::NoSpace)
        } else {
            Ok(())
        };
        again.finish(|other| *other == op, result);
    }
    assert_eq!(again.answers(), [(9, Ok(found.end))]);
    again.machine.close(batch(1, 8));
    again.finish_all();
    assert!(again.machine.is_closed());
    assert_eq!(again.machine.synced(), found.end + 2);
}

// requirement: LOG-FULL
#[test]
fn what_a_write_without_space_left_is_zero_before_anything_is_written_there() {
    let mut log = Driven::open();
    log.append(Level::Disk, batch(3, 100)).unwrap();
    let Op::Write { file, at, bytes } = log.ops().pop().unwrap() else {
        panic!("a write comes first")
    };
    log.finish(is_write, Err(Failure::NoSpace));
    assert_eq!(log.answers(), [(2, Err(Refusal::NoRoom(Failure::NoSpace)))]);
    assert!(log.ops().is_empty());
    log.append(Level::Disk, batch(1, 8)).unwrap();
    let to = at + bytes.len() as u64;
    assert_eq!(log.ops(), [Op::Zero { file, from: at, to }]);
    log.finish(|_| true, Ok(()));
    assert_eq!(log.ops(), [Op::Sync { file }]);
    log.finish(|_| true, Ok(()));
    assert!(matches!(log.ops()[..], [Op::Write { at: again, .. }] if again == at));
    log.finish_all();
    assert_eq!(log.answers(), [(3, Ok(1))]);
}

// requirement: LOG-ACKED
#[test]
fn chunks_are_written_before_the_record_that_names_them_and_synced_with_it() {
    let mut log = Driven::open();
    let file = File::Blobs(3);
    let ahead = |at| Ahead {
        file,
        at,
        bytes: vec![5; 10],
    };
    let append = Append {
        ticket: Some(Ticket(5)),
        level: Level::Disk,
        batch: batch(1, 8),
        ahead: vec![ahead(0), ahead(10)],
        opens: false,
    };
    log.machine.append(append).unwrap();
    let to_blobs = |op: &Op| {
        matches!(
            op,
            Op::Write {
                file: File::Blobs(3),
                ..
            }
        )
    };
    assert_eq!(log.ops().len(), 2);
    log.finish(to_blobs, Ok(()));
    assert_eq!(log.ops().len(), 1);
    log.finish(to_blobs, Ok(()));
    assert!(matches!(
        log.ops()[..],
        [Op::Write {
            file: File::Segment(0),
            ..
        }]
    ));
    log.finish(is_write, Ok(()));
    let is_blobs = |op: &Op| *op == Op::Sync { file };
    log.finish(|op| !is_blobs(op), Ok(()));
    assert!(log.answers().is_empty());
    log.finish(is_blobs, Ok(()));
    assert_eq!(log.answers(), [(5, Ok(1))]);
}

// requirement: LOG-BATCH
#[test]
fn a_batch_that_does_not_fit_goes_whole_into_the_next_segment_once_the_last_is_synced() {
    let mut log = Driven::open();
    for _ in 0..3 {
        log.append(Level::Os, batch(1, 3500)).unwrap();
        log.finish_all();
    }
    log.append(Level::Os, batch(2, 1500)).unwrap();
    assert!(
        matches!(
            log.ops()[..],
            [Op::Sync {
                file: File::Segment(0)
            }]
        ),
        "{:?}",
        log.ops()
    );
    log.finish_all();
    let active = log.machine.active().unwrap();
    assert_eq!(active.first, 4);
    assert_eq!(log.machine.written(), 6);
    assert_eq!(log.answers().pop(), Some((5, Ok(4))));
}

// requirement: BOUNDED
#[test]
fn what_is_too_large_or_too_much_is_refused_at_once() {
    let mut log = Driven::open();
    assert_eq!(
        log.append(Level::Os, batch(1, 5000)),
        Err(Refusal::TooLarge)
    );
    assert_eq!(
        log.append(Level::Os, Batch::default()),
        Err(Refusal::TooLarge)
    );
    let taken = (0..100).take_while(|_| log.append(Level::Disk, batch(1, 1000)).is_ok());
    let taken = taken.count();
    assert!(taken < 20, "{taken} of a kilobyte each");
    assert_eq!(log.append(Level::Disk, batch(1, 1000)), Err(Refusal::Busy));
    assert!(log.machine.pending_bytes() <= BOUNDS.pending_bytes);
    log.answers();
    log.finish_all();
    assert_eq!(log.answers().len(), taken);
}

// requirement: LOG-CLOSED
#[test]
fn a_log_that_closes_ends_what_waits_and_takes_nothing_more() {
    let mut log = Driven::open();
    log.append(Level::Os, batch(1, 8)).unwrap();
    log.append(Level::Disk, batch(1, 8)).unwrap();
    log.machine.close(batch(1, 0));
    assert_eq!(log.append(Level::Os, batch(1, 8)), Err(Refusal::Closed));
    assert!(!log.machine.is_closed());
    log.finish_all();
    assert!(log.machine.is_closed());
    assert_eq!(log.answers().len(), 2);
    assert_eq!((log.machine.written(), log.machine.synced()), (4, 4));
    assert_eq!(log.append(Level::Os, batch(1, 8)), Err(Refusal::Closed));
}
